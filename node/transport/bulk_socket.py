"""A plain TCP socket that moves exact amounts between the kernel and lent memory, without a copy in between.

Trio's own sockets go through the scheduler at each call; here a call that would not wait does not, and a reader is
woken when what it waits for is largely there, not for each segment. Cancelling leaves the stream of bytes torn: the
owner closes the socket then.
"""

import contextlib
import socket

import trio

from node.ports import TransportError

TCP_NOTSENT_LOWAT = 25
"""The option's number on Linux (tcp(7)); Python's socket module has no name for it."""
UNSENT_SIZE_BYTES = 256 * 1024
"""How much the kernel takes beyond what is on its way: what lies there cannot go to another asker that waits less."""
WAKE_SIZE_BYTES_MAX = 512 * 1024
"""A reader sleeps until so much is there; more at once would leave the socket's buffer full and the sender waiting."""
USER_TIMEOUT_MS = 30_000
"""A peer that confirms nothing for so long is gone."""
KEEPALIVE_IDLE_S = 30


class BulkSocket:
    """Owns the socket. One task may send and one may receive at a time."""

    def __init__(self, stream: trio.SocketStream, congestion_control: str = "") -> None:
        # Trio's dialer or listener made it; from here on it belongs to this object alone.
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._wake_size_bytes = 1
        self.remote_host = ""
        with contextlib.suppress(OSError):
            self.remote_host = str(self._socket.getpeername()[0])
        with contextlib.suppress(OSError):
            # What a system does not know it does without.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
            self._socket.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_SIZE_BYTES)
            if congestion_control:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion_control.encode())

    async def send_all(self, data: memoryview) -> None:
        """Hand all of it to the kernel. TransportError when the peer is gone."""
        sent = 0
        try:
            while sent < len(data):
                try:
                    sent += self._socket.send(data[sent:])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket)
        except (OSError, trio.ClosedResourceError) as error:
            raise TransportError(f"the bulk connection broke off: {_reason(error)}") from error

    async def receive_exactly(self, buffer: memoryview) -> bool:
        """Fill the buffer. False when the peer ended before its first byte; TransportError when it ended within."""
        got = 0
        try:
            while got < len(buffer):
                try:
                    count = self._socket.recv_into(buffer[got:])
                except BlockingIOError:
                    self._wake_at(min(len(buffer) - got, WAKE_SIZE_BYTES_MAX))
                    await trio.lowlevel.wait_readable(self._socket)
                    continue
                if not count:
                    if not got:
                        return False
                    raise TransportError("the bulk connection ended in the middle of a frame")
                got += count
        except (OSError, trio.ClosedResourceError) as error:
            raise TransportError(f"the bulk connection broke off: {_reason(error)}") from error
        return True

    def _wake_at(self, size_bytes: int) -> None:
        if size_bytes != self._wake_size_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)
            self._wake_size_bytes = size_bytes

    def close(self) -> None:
        """Close at once; idempotent. Who waits on it gets a TransportError."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or "it was closed"
