"""What in an exception is for a person: the API and the command line tell the same failures by the same class."""

from collections.abc import Iterator

import trio

from node.errors import HerdError, JoinRefused, NotFound, UsageError
from node.ports import AdmissionError, BlobMissing, TransportError
from protocols.names import InvalidName


def herd_error_in(error: BaseException) -> HerdError | None:
    """The one failure for a person inside an exception or a group of them; None when something unexpected is in it."""
    found = [_herd_error(leaf) for leaf in _leaves(error)]
    return found[0] if found and all(one is not None for one in found) else None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    elif not isinstance(error, trio.Cancelled):
        yield error


def _herd_error(error: BaseException) -> HerdError | None:
    match error:
        case HerdError():
            return error
        case AdmissionError():
            return JoinRefused(str(error))
        case TransportError():
            return HerdError(str(error))
        case BlobMissing():
            return NotFound(str(error))
        case InvalidName():
            return UsageError(str(error))
        case _:
            return None
