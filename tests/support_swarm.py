"""Swarms over links of limited rate in virtual time, and what they took, against what the links allow.

Chunks are small and rates are small with them, so that a chunk takes as long as 1 MiB takes on the link that is meant.
"""

import math
import random
from collections.abc import Sequence

import attrs
import trio

from protocols.exchange.config import ExchangeConfig
from protocols.ids import Digest
from simnet.blobs import MemoryBlobs
from simnet.network import SimNetwork
from tests.support_exchange import KIB, Peer, Swarm, open_swarm, some_bytes

MIB = 1024 * KIB
START_SPREAD_S = 0.05
"""Receivers begin within this time of each other, as people and scripts make them."""


@attrs.frozen
class Links:
    """Every host's link: `mbit_per_s` both ways for chunks of 1 MiB, played with chunks of `chunk_size_bytes`.

    `buffered_chunks` is what a connection leaves with its host when a send returns: the kernel's send buffer.
    """

    mbit_per_s: float = 100.0
    chunk_size_bytes: int = 32 * KIB
    latency_s: float = 0.001
    buffered_chunks: float = 0.25
    segments_per_chunk: int = 16

    @property
    def bytes_per_s(self) -> float:
        """The rate in the small world."""
        return self.mbit_per_s * 1e6 / 8 * self.chunk_size_bytes / MIB

    def network(self, seed: int) -> SimNetwork:
        """A network of such links."""
        return SimNetwork(
            random.Random(seed),
            latency_s=self.latency_s,
            segment_size_bytes=self.chunk_size_bytes // self.segments_per_chunk,
            window_size_bytes=4 * self.chunk_size_bytes,
            send_buffer_bytes=int(self.buffered_chunks * self.chunk_size_bytes),
        )

    def config(self) -> ExchangeConfig:
        """The defaults, as small as the chunks."""
        usual = ExchangeConfig()
        small = self.chunk_size_bytes / MIB
        return attrs.evolve(
            usual,
            outstanding_start_bytes=int(usual.outstanding_start_bytes * small),
            outstanding_bytes_max=int(usual.outstanding_bytes_max * small),
        )


@attrs.frozen
class SwarmFigures:
    """What a distribution of one blob from one seed took."""

    links: Links
    chunks: int
    seconds: tuple[float, ...]
    seed_bytes: int
    duplicate_bytes: int

    @property
    def one_copy_s(self) -> float:
        """S/B: how long the seed needs to send the blob once."""
        return self.chunks * self.links.chunk_size_bytes / self.links.bytes_per_s

    @property
    def ideal_s(self) -> float:
        """T*: no schedule in whole chunks ends sooner."""
        return self.one_copy_s * (1 + math.floor(math.log2(len(self.seconds))) / self.chunks)

    @property
    def last(self) -> float:
        """How much of T* the last finisher reached."""
        return self.ideal_s / max(self.seconds)

    @property
    def median(self) -> float:
        """The median receiver's rate, as a part of the link's."""
        return self.one_copy_s / sorted(self.seconds)[len(self.seconds) // 2]

    @property
    def seed_copies(self) -> float:
        """How many times the blob left the seed."""
        return self.seed_bytes / (self.chunks * self.links.chunk_size_bytes)

    @property
    def duplicates(self) -> float:
        """Bytes that came twice, as a part of what had to come."""
        return self.duplicate_bytes / (self.chunks * self.links.chunk_size_bytes * len(self.seconds))

    def __str__(self) -> str:
        return (
            f"1 -> {len(self.seconds)} at {self.links.mbit_per_s:g} Mbit/s, {self.chunks} chunks: last {self.last:.3f}"
            f" of T*, median {self.median:.3f} of S/B, seed {self.seed_copies:.3f} S, duplicates {self.duplicates:.4f}"
        )


async def distribute(receivers: int, links: Links, *, chunks: int = 128, seed: int = 1) -> SwarmFigures:
    """One seed, receivers that begin almost together and know all others; until the last has it."""
    config, rng = links.config(), random.Random(seed)
    seconds: list[float] = []
    async with open_swarm(config=config, network=links.network(seed)) as swarm:
        peers = [await _add(swarm, f"{seed}-{number}", links) for number in range(receivers + 1)]
        giver, *takers = peers
        digest = giver.blobs.add(some_bytes(chunks * links.chunk_size_bytes))
        began_s = trio.current_time()

        async def fetch(taker: Peer, delay_s: float) -> None:
            await trio.sleep(delay_s)  # real time: never; every test of a swarm uses the autojump clock
            # None is nearer than others, so each prefers its own.
            others = rng.sample([peer for peer in peers if peer is not taker], receivers)
            await taker.fetch(digest, chunks * links.chunk_size_bytes, others)
            seconds.append(trio.current_time() - began_s)

        async with trio.open_nursery() as nursery:
            for taker in takers:
                nursery.start_soon(fetch, taker, rng.random() * START_SPREAD_S)
        return SwarmFigures(
            links,
            chunks,
            tuple(seconds),
            giver.exchange.statistics().served_bytes,
            sum(taker.exchange.statistics().duplicate_bytes for taker in takers),
        )


async def _add(swarm: Swarm, name: str, links: Links) -> Peer:
    blobs = MemoryBlobs(chunk_size_bytes=links.chunk_size_bytes)
    rate = links.bytes_per_s
    return await swarm.add(name, blobs, up_bytes_per_s=rate, down_bytes_per_s=rate)


async def gather(taker: Peer, digest: Digest, size_bytes: int, givers: Sequence[Peer]) -> float:
    """How long one receiver needs."""
    began_s = trio.current_time()
    await taker.fetch(digest, size_bytes, givers)
    return trio.current_time() - began_s
