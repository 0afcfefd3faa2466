"""Small swarms for the stories of the exchange: nodes on one simulated network, blobs in memory."""

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import trio

from node.blame import BlameLedger
from node.events import EventBus
from node.identity import Identity
from node.ports import Stream
from node.services.exchange.carrier import StreamCarrier
from node.services.exchange.service import ExchangeService, FetchProgress, FetchReport
from node.services.limits.service import LimitsService
from node.trust.mesh_key import MeshKeyDoor
from protocols.exchange.acquaintances import alike
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import CODEC
from protocols.ids import Digest, PeerId, RecipeId
from protocols.limits.config import LimitsConfig, Purpose
from simnet.blobs import MemoryBlobs
from simnet.network import SimNetwork, SimTransport

KIB = 1024
CHUNK = 64 * KIB
LIMIT = 2 * 1024 * KIB
"""The largest frame that a peer played by hand takes."""


def some_bytes(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that do not repeat, the same for the same seed."""
    return random.Random(seed).randbytes(size_bytes)


async def hear(stream: Stream) -> object:
    """The next message of a session that is played by hand."""
    frame = await stream.receive(LIMIT)
    assert frame is not None, "the peer ended the stream"
    return CODEC.decode(frame)


async def say(stream: Stream, *messages: object) -> None:
    """Messages of a session that is played by hand."""
    for message in messages:
        await stream.send(CODEC.encode(message))


@attrs.frozen
class Peer:
    """One node of a swarm."""

    id: PeerId
    transport: SimTransport
    blobs: MemoryBlobs
    blame: BlameLedger
    exchange: ExchangeService
    scope: trio.CancelScope
    bus: EventBus
    limits: LimitsService

    def kill(self) -> None:
        """End the node at once, streams and all."""
        self.scope.cancel()

    async def fetch(
        self,
        digest: Digest,
        size_bytes: int,
        sources: "Sequence[Peer] | Callable[[], Sequence[PeerId]]",
        *,
        recipe_id: RecipeId | None = None,
        on_progress: Callable[[FetchProgress], None] | None = None,
        purpose: Purpose = Purpose.PULL,
    ) -> FetchReport:
        """Fetch from these peers."""
        holders = sources if callable(sources) else lambda: [peer.id for peer in sources]
        return await self.exchange.fetch(
            digest, size_bytes, recipe_id=recipe_id, sources=holders, on_progress=on_progress, purpose=purpose
        )


class Swarm:
    """Nodes that all know each other."""

    def __init__(self, network: SimNetwork, nursery: trio.Nursery, config: ExchangeConfig) -> None:
        self.peers: dict[str, Peer] = {}
        self._network = network
        self._nursery = nursery
        self._config = config

    async def add(
        self,
        name: str,
        blobs: MemoryBlobs | None = None,
        config: ExchangeConfig | None = None,
        nearness: Callable[[PeerId], int] = alike,
        *,
        up_bytes_per_s: float | None = None,
        down_bytes_per_s: float | None = None,
        limits: LimitsConfig | None = None,
    ) -> Peer:
        """Start a node, its link limited to these rates, with limits of its operator's."""
        blobs = blobs if blobs is not None else MemoryBlobs(chunk_size_bytes=CHUNK)
        rates = (up_bytes_per_s, down_bytes_per_s)
        peer: Peer = await self._nursery.start(self._run, name, blobs, config or self._config, nearness, rates, limits)
        for other in self.peers.values():
            other.transport.learn(peer.id, peer.transport.addresses())
            peer.transport.learn(other.id, other.transport.addresses())
        self.peers[name] = peer
        return peer

    async def _run(
        self,
        name: str,
        blobs: MemoryBlobs,
        config: ExchangeConfig,
        nearness: Callable[[PeerId], int],
        rates: tuple[float | None, float | None],
        limits: LimitsConfig | None,
        *,
        task_status: trio.TaskStatus[Peer],
    ) -> None:
        me = Identity(name.encode().ljust(32, b".")).peer_id
        bus = EventBus()
        blame = BlameLedger(bus)
        with trio.CancelScope() as scope:
            async with AsyncExitStack() as stack:
                up, down = rates
                host = self._network.transport(
                    me, MeshKeyDoor(b"k" * 32), blame, up_bytes_per_s=up, down_bytes_per_s=down
                )
                transport = await stack.enter_async_context(host)
                carrier = StreamCarrier(transport)
                rng = random.Random(name)
                limiting = LimitsService(limits or LimitsConfig(), lambda: time.gmtime(0), Path("herd.toml"))
                exchange = ExchangeService(
                    transport,
                    blobs,
                    blame,
                    bus,
                    config,
                    me,
                    rng,
                    carrier=carrier,
                    nearness=nearness,
                    limits=limiting,
                )
                nursery = await stack.enter_async_context(trio.open_nursery())
                await nursery.start(exchange.run)
                task_status.started(Peer(me, transport, blobs, blame, exchange, scope, bus, limiting))


@asynccontextmanager
async def open_swarm(
    *, latency_s: float = 0.01, config: ExchangeConfig | None = None, network: SimNetwork | None = None
) -> AsyncIterator[Swarm]:
    """A network with no node yet; all nodes end with the block."""
    network = network or SimNetwork(random.Random(7), latency_s=latency_s)
    async with trio.open_nursery() as nursery:
        yield Swarm(network, nursery, config or ExchangeConfig())
        nursery.cancel_scope.cancel()
