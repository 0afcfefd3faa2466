"""How an inbound stream is served and always ended; the real transport and the simulated one share it."""

import logging
from collections.abc import Iterator
from typing import Protocol

from node.blame import BlameLedger
from node.ports import Stream, StreamHandler, TransportError
from protocols.errors import RemoteProtocolError

log = logging.getLogger("herd.transport")

LINGER_S = 5.0
"""How long a stream whose handler returned waits for the peer to finish its side too."""


class InboundStream(Stream, Protocol):
    """A stream that can also be ended gently."""

    async def linger(self) -> None:
        """Finish, then drop what still comes, until the peer finishes or `LINGER_S` is over."""
        ...


async def serve_stream(handler: StreamHandler, stream: InboundStream, blame: BlameLedger | None) -> None:
    """Run a handler over one inbound stream; the stream is ended whatever happens, and nothing is raised.

    A handler that returns has said all: the peer still reads it to the end. One that raises breaks the stream off.
    """
    try:
        await handler(stream)
        await stream.linger()
    except BaseExceptionGroup as group:
        # boundary: a handler's nursery wraps what failed; a cancellation inside must go on, the rest ends here.
        failures, rest = group.split(Exception)
        if failures is not None:
            _report(failures, stream, blame)
        if rest is not None:
            raise rest from None
    except Exception as error:  # boundary: whatever a handler raises ends its stream, never the node.
        _report(error, stream, blame)
    finally:
        await stream.abort()


def _report(error: Exception, stream: Stream, blame: BlameLedger | None) -> None:
    for leaf in _leaves(error):
        if isinstance(leaf, RemoteProtocolError):
            if blame is not None:
                blame.blame(stream.peer, "protocol", str(leaf))
        elif isinstance(leaf, TransportError):
            log.debug("a stream of %s broke off: %s", stream.peer, leaf)
        else:
            log.error("the handler of a stream of %s failed", stream.peer, exc_info=leaf)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for child in error.exceptions:
            yield from _leaves(child)
    else:
        yield error
