"""What only the simulated datagram network can do: latency, loss, cuts and blocks under virtual time."""

import random

import trio
from trio.testing import MockClock

from node.identity import Identity
from node.trust.mesh_key import MeshKeyDoor
from simnet.datagrams import QUEUE_LENGTH_MAX, SimDatagramNetwork, SimDatagrams

ALICE, BOB = (Identity(bytes([number]) * 32) for number in (1, 2))
DOOR = MeshKeyDoor(b"m" * 32)


async def _drain(datagrams: SimDatagrams, patience_s: float) -> int:
    count = 0
    with trio.move_on_after(patience_s):
        while True:
            await datagrams.receive()
            count += 1
    return count


async def test_datagrams_take_the_latency_to_arrive(autojump_clock: MockClock) -> None:
    network = SimDatagramNetwork(random.Random(1), latency_s=0.25)
    async with network.datagrams(ALICE, DOOR) as alice, network.datagrams(BOB, DOOR) as bob:
        began = trio.current_time()
        alice.send(BOB.peer_id, bob.address(), b"x")
        await bob.receive()
        assert trio.current_time() - began == 0.25


async def test_the_lost_share_is_lost(autojump_clock: MockClock) -> None:
    network = SimDatagramNetwork(random.Random(1), loss=0.25)
    async with network.datagrams(ALICE, DOOR) as alice, network.datagrams(BOB, DOOR) as bob:
        for _ in range(400):
            alice.send(BOB.peer_id, bob.address(), b"x")
        assert 270 < await _drain(bob, 1) < 330


async def test_cut_and_block_hold_until_undone(autojump_clock: MockClock) -> None:
    network = SimDatagramNetwork(random.Random(1))
    async with network.datagrams(ALICE, DOOR) as alice, network.datagrams(BOB, DOOR) as bob:
        network.cut(BOB.peer_id, ALICE.peer_id)
        alice.send(BOB.peer_id, bob.address(), b"cut")
        network.mend(ALICE.peer_id, BOB.peer_id)
        network.block(BOB.peer_id)
        alice.send(BOB.peer_id, bob.address(), b"blocked")
        bob.send(ALICE.peer_id, alice.address(), b"blocked too")
        network.unblock(BOB.peer_id)
        alice.send(BOB.peer_id, bob.address(), b"through")
        assert await bob.receive() == (ALICE.peer_id, b"through")
        assert await _drain(alice, 1) == 0


async def test_a_receiver_that_does_not_read_loses_the_surplus_and_counts_it(autojump_clock: MockClock) -> None:
    network = SimDatagramNetwork(random.Random(1))
    async with network.datagrams(ALICE, DOOR) as alice, network.datagrams(BOB, DOOR) as bob:
        for _ in range(QUEUE_LENGTH_MAX + 10):
            alice.send(BOB.peer_id, bob.address(), b"x")
        assert await _drain(bob, 1) == QUEUE_LENGTH_MAX
        assert bob.statistics()["overflow"] == 10
