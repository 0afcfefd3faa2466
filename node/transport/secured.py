"""A TCP connection with a read buffer, and the Noise channel over it.

py-libp2p's channel reads two bytes from the socket before every message, writes every message by itself and goes on
after a cancelled write as if nothing had happened. Here reads are buffered, a write is one call on the socket, and a
channel whose write was torn takes no other.
"""

import struct
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from noise.exceptions import NoiseInvalidMessage

from node.ports import TransportError
from protocols.ids import PeerId

_READ_SIZE_BYTES = 256 * 1024
_LENGTH = struct.Struct(">H")
_PLAINTEXT_SIZE_BYTES_MAX = 65_535 - 16


class TcpConnection:
    """A socket as libp2p's Noise wants it (`IRawConnection`), with buffered reads."""

    def __init__(self, stream: trio.abc.Stream, *, dialed_here: bool, remote_host: str) -> None:
        self.dialed_here = dialed_here
        self.is_initiator = dialed_here
        self.remote_host = remote_host
        self._stream = stream
        self._buffer = b""
        self._offset = 0
        self._torn = False

    async def read(self, n: int | None = None) -> bytes:
        """1 to `n` bytes, b"" at the end. TransportError when the connection broke."""
        if self._offset == len(self._buffer):
            await self._fill()
        end = len(self._buffer) if n is None else min(len(self._buffer), self._offset + n)
        data = self._buffer[self._offset : end]
        self._offset = end
        return data

    async def read_exactly(self, size_bytes: int) -> bytes | None:
        """Exactly so many bytes, or None when the connection ended before the first. TransportError when inside."""
        if len(self._buffer) - self._offset >= size_bytes:
            self._offset += size_bytes
            return self._buffer[self._offset - size_bytes : self._offset]
        parts = []
        missing_bytes = size_bytes
        while missing_bytes > 0:
            part = await self.read(missing_bytes)
            if not part:
                if missing_bytes == size_bytes:
                    return None
                raise TransportError("the peer closed the connection inside a message")
            parts.append(part)
            missing_bytes -= len(part)
        return b"".join(parts)

    async def write(self, data: bytes | memoryview) -> None:
        """Send all bytes. TransportError when the connection broke, or when an earlier write was cut short."""
        if self._torn:
            raise TransportError("an earlier write was cut short")
        self._torn = True
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportError("the connection broke while sending") from error
        self._torn = False

    async def close(self) -> None:
        """Close the socket at once."""
        await trio.aclose_forcefully(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port 0, for libraries that ask."""
        return (self.remote_host, 0)

    def get_transport_addresses(self) -> list[Any]:
        """None are kept here."""
        return []

    def get_connection_type(self) -> ConnectionType:
        """Always direct: there are no relays."""
        return ConnectionType.DIRECT

    async def _fill(self) -> None:
        try:
            data = await self._stream.receive_some(_READ_SIZE_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportError("the connection broke while receiving") from error
        self._buffer = bytes(data)
        self._offset = 0


class SecuredConnection:
    """A Noise channel to an authenticated peer. One task reads, one writes; a cancelled write ends the writing side."""

    def __init__(self, raw: TcpConnection, noise_state: Any, remote_peer: ID, peer: PeerId) -> None:
        self.remote_peer = remote_peer
        self.peer = peer
        self.dialed_here = raw.dialed_here
        self.remote_host = raw.remote_host
        self._raw = raw
        self._noise = noise_state
        self._buffer = b""
        self._offset = 0

    async def read(self, n: int | None = None) -> bytes:
        """1 to `n` bytes, b"" at the end. TransportError when the channel broke or a message does not open."""
        while self._offset == len(self._buffer):
            message = await self._read_message()
            if message is None:
                return b""
            self._buffer, self._offset = message, 0
        end = len(self._buffer) if n is None else min(len(self._buffer), self._offset + n)
        data = self._buffer if self._offset == 0 and end == len(self._buffer) else self._buffer[self._offset : end]
        self._offset = end
        return data

    async def read_exactly(self, size_bytes: int) -> bytes | None:
        """Exactly so many bytes, or None when the channel ended before the first. TransportError when inside."""
        data = await self.read(size_bytes)
        if not data:
            return None
        while len(data) < size_bytes:
            part = await self.read(size_bytes - len(data))
            if not part:
                raise TransportError("the peer closed the connection inside a message")
            data += part
        return data

    async def write(self, data: bytes) -> None:
        """Seal and send all bytes, as one write on the socket."""
        sealed = bytearray()
        for start in range(0, len(data), _PLAINTEXT_SIZE_BYTES_MAX):
            message = self._noise.encrypt(data[start : start + _PLAINTEXT_SIZE_BYTES_MAX])
            sealed += _LENGTH.pack(len(message))
            sealed += message
        await self._raw.write(memoryview(sealed))

    async def close(self) -> None:
        """Close the socket at once."""
        await self._raw.close()

    async def _read_message(self) -> bytes | None:
        header = await self._raw.read_exactly(_LENGTH.size)
        if header is None:
            return None
        sealed = await self._raw.read_exactly(_LENGTH.unpack(header)[0])
        if sealed is None:
            raise TransportError("the peer closed the connection inside a message")
        try:
            return bytes(self._noise.decrypt(sealed))
        except NoiseInvalidMessage as error:
            raise TransportError("a message of the connection does not open") from error
