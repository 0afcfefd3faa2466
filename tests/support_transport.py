"""Small worlds of two or three nodes over either transport, and the handlers the stories use."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import trio

from node.blame import BlameLedger
from node.events import EventBus
from node.identity import Identity
from node.ports import Stream, Transport
from node.transport.config import NetworkConfig
from node.transport.libp2p import Libp2pTransport, open_libp2p_transport
from node.trust.mesh_key import MeshKeyDoor
from protocols.framing import FRAME_SIZE_BYTES_MAX
from protocols.ids import PeerId
from simnet.network import SimNetwork

MESH_KEY = b"k" * 32
ECHO = "/herd/echo/1"


@attrs.frozen
class Node:
    """One end of a story."""

    peer: PeerId
    transport: Transport
    blame: BlameLedger


OpenNode = Callable[[str, bytes], AbstractAsyncContextManager[Node]]


def identity_of(name: str) -> Identity:
    """The same key for the same name, always."""
    return Identity(name.encode().ljust(32, b"."))


def simulated_nodes(latency_s: float = 0.01, bytes_per_s: float | None = None) -> OpenNode:
    """Nodes on one simulated network, each link limited to `bytes_per_s` both ways."""
    network = SimNetwork(random.Random(7), latency_s=latency_s, jitter_s=latency_s)

    @asynccontextmanager
    async def open_node(name: str, mesh_key: bytes) -> AsyncIterator[Node]:
        identity, blame = identity_of(name), BlameLedger(EventBus())
        host = network.transport(
            identity.peer_id, MeshKeyDoor(mesh_key), blame, up_bytes_per_s=bytes_per_s, down_bytes_per_s=bytes_per_s
        )
        async with host as transport:
            yield Node(identity.peer_id, transport, blame)

    return open_node


def loopback_nodes(config: NetworkConfig | None = None) -> OpenNode:
    """Nodes on 127.0.0.1, each on a free port."""
    used = config if config is not None else loopback_config()

    @asynccontextmanager
    async def open_node(name: str, mesh_key: bytes) -> AsyncIterator[Node]:
        identity, blame = identity_of(name), BlameLedger(EventBus())
        async with open_libp2p_transport(identity, MeshKeyDoor(mesh_key), used, blame) as transport:
            yield Node(identity.peer_id, transport, blame)

    return open_node


def loopback_config(**changes: Any) -> NetworkConfig:
    """A configuration that listens on 127.0.0.1 and a free port."""
    return attrs.evolve(NetworkConfig(host="127.0.0.1", port=0), **changes)


@asynccontextmanager
async def pair(open_node: OpenNode, mesh_key: bytes = MESH_KEY) -> AsyncIterator[tuple[Node, Node]]:
    """Ann and Bob, who know each other's addresses; Bob echoes."""
    async with open_node("ann", mesh_key) as ann, open_node("bob", mesh_key) as bob:
        ann.transport.learn(bob.peer, bob.transport.addresses())
        bob.transport.learn(ann.peer, ann.transport.addresses())
        bob.transport.serve(ECHO, echo)
        yield ann, bob


async def echo(stream: Stream) -> None:
    """Send every frame back."""
    while (frame := await stream.receive(FRAME_SIZE_BYTES_MAX)) is not None:
        await stream.send(frame)


async def call(node: Node, peer: PeerId, payload: bytes, protocol: str = ECHO) -> bytes | None:
    """One question on a stream of its own, ended in order."""
    stream = await node.transport.open(peer, protocol, timeout_s=5)
    try:
        await stream.send(payload)
        await stream.finish()
        return await stream.receive(FRAME_SIZE_BYTES_MAX)
    finally:
        await stream.abort()


def libp2p(node: Node) -> Libp2pTransport:
    """The transport of a loopback node, with what only it has."""
    assert isinstance(node.transport, Libp2pTransport)
    return node.transport


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something that happens elsewhere has happened."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for lies in other rooms, which owe tests no event
            await trio.sleep(0.005)  # real time: sockets know no other, and a virtual clock jumps over it
