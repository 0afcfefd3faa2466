"""What every listener here does alike: accepting for as long as the node runs, and saying why a dial failed."""

import errno
import logging
from collections.abc import Callable

import trio

log = logging.getLogger("herd.transport")

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
PAUSE_S = 0.1


async def accept_forever(
    listener: trio.abc.Listener[trio.SocketStream], take: Callable[[trio.SocketStream], None]
) -> None:
    """Hand every connection to `take`, which does not wait, until cancelled. A lack of descriptors is waited out."""
    accepting = True
    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in _OUT_OF_RESOURCES:
                raise
            if accepting:
                log.error("cannot accept connections for now: %s; `ulimit -n` may be too low", error.strerror)
            accepting = False
            await trio.sleep(PAUSE_S)
            continue
        accepting = True
        take(stream)


def failure_reason(error: OSError) -> str:
    """Why a dial failed, in words."""
    # Trio wraps the failures of a name's several addresses in a group behind one OSError.
    causes = getattr(error.__cause__, "exceptions", None) or [error.__cause__ or error]
    return "; ".join(dict.fromkeys(getattr(cause, "strerror", None) or str(cause) for cause in causes))
