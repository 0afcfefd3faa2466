"""Chunks over streams: frames in pairs, a ticket first, and nothing else.

What holds for every carrier stands in `tests/conformance/test_carrier_conformance.py`.
"""

import pytest
import trio
from trio.testing import MockClock

from node.ports import ChunkLink, Stream, TransportError
from node.services.exchange.carrier import StreamCarrier
from protocols.errors import RemoteProtocolError
from protocols.exchange.messages import CHUNKS_CODEC, CHUNKS_PROTOCOL, Attach, ChunkHeader
from protocols.ids import digest_of
from tests.support_transport import MESH_KEY, pair, simulated_nodes

TICKET = b"t" * 16
BLOB = digest_of(b"blob")


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xff"],
        [CHUNKS_CODEC.encode(Attach(TICKET))],
        [CHUNKS_CODEC.encode(ChunkHeader(BLOB, 0, 5)), b"four"],
        [CHUNKS_CODEC.encode(ChunkHeader(BLOB, 0, 5)), b"sixsix"],
        [b"x" * 1000],
    ],
)
async def test_anything_else_on_a_link_is_an_offence(autojump_clock: MockClock, frames: list[bytes]) -> None:
    async with pair(simulated_nodes(), MESH_KEY) as (ann, bob):

        async def send(stream: Stream) -> None:
            await stream.receive(256)
            for frame in frames:
                await stream.send(frame)
            await trio.sleep_forever()

        bob.transport.serve(CHUNKS_PROTOCOL, send)
        link = await StreamCarrier(ann.transport).connect(bob.peer, TICKET, timeout_s=5)
        with pytest.raises(RemoteProtocolError):
            await link.receive()


async def test_a_stream_without_a_ticket_is_no_link(autojump_clock: MockClock) -> None:
    async with pair(simulated_nodes(), MESH_KEY) as (ann, bob):
        links = []

        async def keep(link: ChunkLink) -> None:
            links.append(link)

        StreamCarrier(bob.transport).serve(keep)
        stream = await ann.transport.open(bob.peer, CHUNKS_PROTOCOL, timeout_s=5)
        await stream.send(CHUNKS_CODEC.encode(ChunkHeader(BLOB, 0, 5)))
        with pytest.raises(TransportError):
            await stream.receive(256)
        assert links == []
        assert bob.blame.view(ann.peer).counts == {"protocol": 1}
