"""Stories of whole nodes that fetch from each other, under virtual time."""

import pytest
import trio

from node.errors import TransferFailed, VerificationFailed
from node.services.exchange import FetchProgress
from protocols.ids import Digest, digest_of
from simnet.blobs import MemoryBlobs, cut
from tests.support_exchange import CHUNK, Peer, open_swarm, some_bytes

pytestmark = pytest.mark.usefixtures("autojump_clock")


async def test_one_holder_one_asker() -> None:
    async with open_swarm() as swarm:
        seed, asker = await swarm.add("seed"), await swarm.add("asker")
        data = some_bytes(10 * CHUNK + 17)
        digest = seed.blobs.add(data)
        progress: list[FetchProgress] = []

        report = await asker.fetch(digest, len(data), [seed], on_progress=progress.append)

        assert asker.blobs.whole(digest) == data
        assert report.fetched_bytes == len(data)
        assert report.sources == {seed.id: len(data)}
        assert (report.resumed_bytes, report.duplicate_bytes, report.refused_chunks, report.refused_bytes) == (0, 0, 0, 0)
        assert seed.exchange.statistics().served_bytes == len(data)
        assert progress[0].held_bytes == 0
        assert progress[-1] == FetchProgress(len(data), len(data), {seed.id: len(data)}, 0)
        assert asker.exchange.statistics().outstanding_bytes == 0
