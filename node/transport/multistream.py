"""multistream-select 1.0: the two ends of a connection or stream agree on a protocol id.

Ours because py-libp2p's takes 64 KiB for a protocol id, ends the whole node over one that is not UTF-8, and needs a
round trip more: a dialer here sends the greeting and its one proposal together.
"""

from collections.abc import Callable
from typing import Protocol

from node.ports import TransportError
from protocols.errors import RemoteProtocolError

_GREETING = "/multistream/1.0.0"
_REFUSED = "na"
_LINE_SIZE_BYTES_MAX = 1024
_PROPOSALS_MAX = 32


class Channel(Protocol):
    """What is negotiated over."""

    async def read(self, n: int) -> bytes:
        """1 to `n` bytes, b"" at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all."""
        ...


class ProtocolRefused(TransportError):
    """The peer does not serve the proposed protocol."""


async def propose(channel: Channel, protocol: str) -> None:
    """Agree on one protocol id as the dialer. ProtocolRefused when the peer does not serve it.

    RemoteProtocolError when the peer speaks something else, TransportError when it goes away.
    """
    await channel.write(_line(_GREETING) + _line(protocol))
    if (greeting := await _read_line(channel)) != _GREETING:
        raise RemoteProtocolError(f"{greeting[:40]!r} is no greeting of multistream-select")
    answer = await _read_line(channel)
    if answer == _REFUSED:
        raise ProtocolRefused(f"the peer does not serve {protocol}")
    if answer != protocol:
        raise RemoteProtocolError(f"{answer[:40]!r} is no answer to {protocol}")


async def answer(channel: Channel, serves: Callable[[str], bool]) -> str:
    """Agree as the listener, taking the first proposal that `serves` accepts.

    RemoteProtocolError when the peer speaks something else or proposes too much, TransportError when it goes away.
    """
    await channel.write(_line(_GREETING))
    if (greeting := await _read_line(channel)) != _GREETING:
        raise RemoteProtocolError(f"{greeting[:40]!r} is no greeting of multistream-select")
    for _ in range(_PROPOSALS_MAX):
        proposal = await _read_line(channel)
        if serves(proposal):
            await channel.write(_line(proposal))
            return proposal
        await channel.write(_line(_REFUSED))
    raise RemoteProtocolError(f"{_PROPOSALS_MAX} proposals of protocols that are not served")


def _line(text: str) -> bytes:
    data = text.encode() + b"\n"
    size = len(data)
    prefix = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return prefix + data


async def _read_line(channel: Channel) -> str:
    size_bytes = (await _read_exactly(channel, 1))[0]
    if size_bytes & 128:
        size_bytes = size_bytes & 127 | (await _read_exactly(channel, 1))[0] << 7
    if not 0 < size_bytes <= _LINE_SIZE_BYTES_MAX:
        raise RemoteProtocolError(f"a protocol id of {size_bytes} bytes")
    data = await _read_exactly(channel, size_bytes)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"a protocol id that is not UTF-8: {data[:40]!r}") from error
    if not text.endswith("\n"):
        raise RemoteProtocolError(f"a protocol id without its newline: {text[:40]!r}")
    return text[:-1]


async def _read_exactly(channel: Channel, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        part = await channel.read(size_bytes - len(data))
        if not part:
            raise TransportError("the peer ended the negotiation of a protocol")
        data += part
    return data
