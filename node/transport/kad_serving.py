"""An inbound stream in the form the handler of py-libp2p's DHT expects."""

from typing import Any

from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.stream.net_stream import INetStream


class ServedStream:
    """The stream as it is, but that its end reads as no bytes, and that it has no channel for metrics.

    The handler takes an exception at the end for a failure and resets a stream that ended in order. Waiting for the
    peer's end is left to whoever serves the stream.
    """

    metric_send_channel: None = None

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, n: int | None = None) -> bytes:
        """1 to `n` bytes, none at the end; StreamReset when the stream broke off."""
        try:
            data: bytes = await self._stream.read(n)
        except StreamEOF:
            return b""
        return data

    async def close(self) -> None:
        """Finish our side."""
        await self._stream.close_write()
