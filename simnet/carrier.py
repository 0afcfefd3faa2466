"""Chunks of declared sizes: the stream carrier's twin, whose chunks take the time of more bytes than they have.

A world with a `bytes_scale` of 1024 plays a chunk of 16 MiB with 16 KiB: links are as fast as declared, what bounds the
exchange in bytes is that much smaller, and control frames weigh what they are.
"""

from collections.abc import Callable

import attrs

from node.ports import CarriedChunk, Stream, Transport
from node.services.exchange.carrier import StreamCarrier, StreamLink
from protocols.errors import LocalProtocolError
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import CHUNKS_CODEC, ChunkHeader
from simnet.stream import SimStream

SCALED_FIELDS = ("outstanding_start_bytes", "outstanding_bytes_max", "receive_buffer_bytes", "serve_buffer_bytes")
"""What `ExchangeConfig` bounds in bytes of chunks."""


class SimCarrier(StreamCarrier):
    """Implements `node.ports.ChunkCarrier` over simulated streams; a chunk weighs `bytes_scale` times its bytes."""

    def __init__(self, transport: Transport, bytes_scale: int = 1) -> None:
        super().__init__(transport)
        if bytes_scale < 1:
            raise LocalProtocolError(f"a chunk weighs at least what it is: bytes_scale {bytes_scale} is under 1")
        self._bytes_scale = bytes_scale

    def link(self, stream: Stream, ticket: bytes) -> "SimLink":
        """A link over an attached stream."""
        if not isinstance(stream, SimStream):
            raise LocalProtocolError(f"chunks of declared sizes travel over simulated streams, not {type(stream)}")
        return SimLink(stream, ticket, self._bytes_scale)


class SimLink(StreamLink):
    """A link whose payload frames weigh what their chunks are declared to be."""

    def __init__(self, stream: SimStream, ticket: bytes, bytes_scale: int) -> None:
        super().__init__(stream, ticket)
        self._simulated = stream
        self._bytes_scale = bytes_scale

    async def send(self, chunk: CarriedChunk, wanted: Callable[[], bool]) -> bool:
        """Send one chunk if it is still wanted when its turn comes; whether it went."""
        async with self._sending:
            if not wanted():
                return False
            header = ChunkHeader(chunk.digest, chunk.index, len(chunk.data))
            await self._simulated.send(CHUNKS_CODEC.encode(header))
            await self._simulated.send_as(chunk.data, len(chunk.data) * self._bytes_scale, chunk=True)
            return True


def scaled(config: ExchangeConfig, bytes_scale: int) -> ExchangeConfig:
    """The same bounds for chunks that have `bytes_scale` times fewer bytes than declared."""
    smaller = {field: max(1, getattr(config, field) // bytes_scale) for field in SCALED_FIELDS}
    # Their lower limits are meant for bytes as declared.
    with attrs.validators.disabled():
        return attrs.evolve(config, **smaller)
