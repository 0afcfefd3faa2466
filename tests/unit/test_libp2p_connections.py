"""Which of several connections is used, and when one that stands is given up."""

import pytest
import trio

from node.ports import TransportError
from node.transport import libp2p as libp2p_module
from node.transport import network as network_module
from protocols.ids import PeerId
from tests.support_libp2p import dial_admitted, herd_target
from tests.support_transport import ECHO, Node, call, identity_of, libp2p, loopback_nodes, pair, until


async def connect_twice(ann: Node, bob: Node) -> None:
    """What two dials at the same moment leave: a connection from either end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(libp2p(ann)._network._dial, bob.peer, bob.transport.addresses())
        nursery.start_soon(libp2p(bob)._network._dial, ann.peer, ann.transport.addresses())
    await until(lambda: all(libp2p(node).statistics().connections == 2 for node in (ann, bob)))


async def test_of_two_simultaneous_connections_both_ends_choose_the_same() -> None:
    async with pair(loopback_nodes()) as (ann, bob):
        for _ in range(5):
            await connect_twice(ann, bob)
            chosen = libp2p(ann)._network.connections_of(bob.peer)[0]
            mirror = libp2p(bob)._network.connections_of(ann.peer)[0]
            assert chosen.dialed_here != mirror.dialed_here
            assert chosen.dialed_here == (ann.peer < bob.peer)
            await ann.transport.drop(bob.peer)
            await until(lambda: libp2p(bob).statistics().connections == 0)


@pytest.mark.slow
async def test_the_spare_connection_goes_once_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "TIDY_INTERVAL_S", 0.1)
    async with pair(loopback_nodes()) as (ann, bob):
        await connect_twice(ann, bob)
        held = libp2p(ann)._network.connections_of(bob.peer)[1].open_stream()
        monkeypatch.setattr(network_module, "SIMULTANEOUS_S", 0.0)
        await trio.sleep(0.4)  # real time: sockets know no other
        # Whatever is in use stays.
        assert not held.muxed_conn.is_closed
        await held.reset()
        await until(lambda: all(libp2p(node).statistics().connections == 1 for node in (ann, bob)))
        assert await call(ann, bob.peer, b"still here") == b"still here"


@pytest.mark.slow
async def test_a_connection_on_which_nothing_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer's host lost its power: the socket stands, nobody is behind it."""
    monkeypatch.setattr(libp2p_module, "SILENCE_S", 0.2)
    async with herd_target() as target:
        assert target.node is not None
        mallory = identity_of("mallory")
        deaf = await dial_admitted(target, mallory)
        node = target.node
        await until(lambda: libp2p(node).statistics().connections == 1)
        with pytest.raises(TransportError, match="did not answer within"):
            await node.transport.open(mallory.peer_id, ECHO, timeout_s=0.3)
        await until(lambda: libp2p(node).statistics().connections == 0)
        await deaf.close()


async def test_a_stale_connection_is_replaced_within_one_open() -> None:
    async with pair(loopback_nodes()) as (ann, bob):
        assert await call(ann, bob.peer, b"first") == b"first"
        # Bob's end closes while Ann already decided to use it.
        for connection in libp2p(bob)._network.connections_of(ann.peer):
            connection.fail("restarted")
        assert await call(ann, bob.peer, b"second") == b"second"
        assert libp2p(ann).statistics().connections_dialed == 2


async def test_learning_nonsense_harms_nobody() -> None:
    async with pair(loopback_nodes()) as (ann, bob):
        ann.transport.learn(PeerId("no peer id 0OIl"), ["/ip4/127.0.0.1/tcp/1"])
        ann.transport.learn(bob.peer, ["", "/ip4/", "nonsense", *bob.transport.addresses()])
        assert await call(ann, bob.peer, b"fine") == b"fine"
        with pytest.raises(TransportError):
            await ann.transport.open(PeerId("no peer id 0OIl"), ECHO, timeout_s=1)
