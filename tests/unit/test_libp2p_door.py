"""What strangers get of a node: a handshake and nothing else, for a bounded time, in bounded numbers."""

import contextlib
import socket

import pytest
import trio
import trio.testing

from node.ports import AdmissionError, TransportError
from node.transport.addresses import tcp_target
from node.transport.admission import admit_as_dialer, admit_as_listener
from node.transport.multistream import propose
from node.transport.secured import SecuredConnection
from node.transport.statistics import TransportStatistics
from node.trust.mesh_key import MeshKeyDoor
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId
from tests.support_libp2p import PipeEnd, Target, dial_admitted, dial_noise, echoes, herd_target
from tests.support_transport import (
    ECHO,
    MESH_KEY,
    call,
    echo,
    identity_of,
    libp2p,
    loopback_config,
    loopback_nodes,
    until,
)

MALLORY, BOB = identity_of("mallory"), identity_of("bob")
HASTY = loopback_config(admission_timeout_s=0.5)


def statistics_of(target: Target) -> TransportStatistics:
    assert target.node is not None
    return libp2p(target.node).statistics()


async def all_that_comes(channel: SecuredConnection) -> bytes:
    """Every byte until the node hangs up."""
    heard = b""
    while part := await channel.read(4096):
        heard += part
    return heard


async def test_a_stranger_without_a_key_is_told_nothing() -> None:
    async with herd_target() as target:
        channel = await dial_noise(target, MALLORY)
        # What any libp2p program says next: the node reads it as a bad greeting of the door.
        await channel.write(b"\x13/multistream/1.0.0\n\x0d/yamux/1.0.0\n" + bytes(64))
        with trio.fail_after(10):
            heard = await all_that_comes(channel)
        assert len(heard) == len(b"herd-1\r\n") + 32
        assert heard.startswith(b"herd-1\r\n")
        await channel.close()


async def test_a_wrong_proof_is_answered_with_one_byte() -> None:
    async with herd_target() as target:
        assert target.node is not None
        channel = await dial_noise(target, MALLORY)
        await channel.write(b"herd-1\r\n" + bytes(32) + bytes(32))
        with trio.fail_after(10):
            heard = await all_that_comes(channel)
        assert heard[40:] == b"\x00"
        await channel.close()
        await until(lambda: statistics_of(target).handshakes == 0)
        statistics = statistics_of(target)
        assert (statistics.admissions_refused, statistics.connections, statistics.streams_accepted) == (1, 0, 0)
        assert target.node.blame.view(MALLORY.peer_id).counts == {"admission": 1}


async def test_a_proof_is_good_for_one_handshake_only() -> None:
    async with herd_target() as target:
        recording = RecordingDoor()
        channel = await dial_noise(target, MALLORY)
        await admit_as_dialer(channel, recording, MALLORY.peer_id)
        (good,) = recording.proofs
        again = await dial_noise(target, MALLORY)
        with pytest.raises(AdmissionError):
            await admit_as_dialer(again, ReplayingDoor(recording.nonce, good), MALLORY.peer_id)
        for each in (channel, again):
            await each.close()


async def test_a_listener_that_cannot_prove_itself_is_left() -> None:
    """Somebody who took over a member's address, and even its identity, but not the key."""
    near, far = door_ends()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admit_as_listener, far, GullibleDoor(b"x" * 32), BOB.peer_id)
        with pytest.raises(AdmissionError, match="did not prove the mesh key of this node"):
            await admit_as_dialer(near, MeshKeyDoor(MESH_KEY), MALLORY.peer_id)


async def test_a_dialer_meets_a_program_that_is_no_node() -> None:
    near, far = door_ends()
    await far.write(b"\x13/multistream/1.0.0\n" + bytes(64))
    with pytest.raises(RemoteProtocolError, match="no herd node of this version"):
        await admit_as_dialer(near, MeshKeyDoor(MESH_KEY), MALLORY.peer_id)


async def test_two_members_admit_each_other() -> None:
    near, far = door_ends()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admit_as_listener, far, MeshKeyDoor(MESH_KEY), BOB.peer_id)
        await admit_as_dialer(near, MeshKeyDoor(MESH_KEY), MALLORY.peer_id)
    # Nothing of the door is left on the channel for what comes after it.
    await far.write(b"what comes after")
    assert await near.read() == b"what comes after"


async def test_one_who_sends_back_what_it_hears_proves_nothing() -> None:
    near, far = door_ends()

    async def mirror() -> None:
        greeting_and_nonce = await far.read_exactly(40)
        assert greeting_and_nonce is not None
        await far.write(greeting_and_nonce)
        proof = await far.read_exactly(32)
        assert proof is not None
        await far.write(b"\x01" + proof)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirror)
        with pytest.raises(AdmissionError, match="did not prove the mesh key of this node"):
            await admit_as_dialer(near, MeshKeyDoor(MESH_KEY), MALLORY.peer_id)


async def test_a_peer_that_leaves_the_door_is_no_stranger() -> None:
    near, far = door_ends()
    await near.write(b"herd-1\r\n" + bytes(32))
    await near.finish()
    with pytest.raises(TransportError, match="closed the connection during the admission") as caught:
        await admit_as_listener(far, MeshKeyDoor(MESH_KEY), BOB.peer_id)
    assert not isinstance(caught.value, AdmissionError)


async def test_after_the_door_only_yamux_is_spoken() -> None:
    async with herd_target() as target:
        assert target.door is not None
        channel = await dial_noise(target, MALLORY)
        await admit_as_dialer(channel, target.door, MALLORY.peer_id)
        with pytest.raises(TransportError, match="does not serve /mplex"):
            await propose(channel, "/mplex/6.7.0")
        await channel.close()
        admitted = await dial_admitted(target, MALLORY)
        await admitted.close()


@pytest.mark.parametrize(
    "said", [b"", b"\x13/multi", b"\x13/multistream/1.0.0\n", b"GET / HTTP/1.1\r\n\r\n", bytes(99)]
)
@pytest.mark.slow
async def test_whatever_a_stranger_says_or_not_ends_in_time(said: bytes) -> None:
    async with loopback_nodes(HASTY)("node", MESH_KEY) as node:
        host, port = tcp_target(node.transport.addresses()[0])
        stream = await trio.open_tcp_stream(host, port)
        await stream.send_all(said)
        with trio.fail_after(10):
            await hung_up(stream)
        await stream.aclose()
        await until(lambda: libp2p(node).statistics().handshakes == 0)
        assert libp2p(node).statistics().handshakes_failed == 1


@pytest.mark.slow
async def test_a_crowd_that_dawdles_at_the_door_does_not_keep_a_member_out() -> None:
    config = loopback_config(admission_timeout_s=60, handshakes_max=16, handshakes_per_host_max=8)
    async with loopback_nodes(config)("node", MESH_KEY) as node, loopback_nodes()("ann", MESH_KEY) as ann:
        node.transport.serve(ECHO, echo)
        host, port = tcp_target(node.transport.addresses()[0])
        crowd = [socket.create_connection((host, port)) for _ in range(50)]
        await until(lambda: libp2p(node).statistics().connections_offered == 50)
        assert libp2p(node).statistics().handshakes == 8
        await trio.sleep(1.1)  # real time: a handshake younger than a second is not pushed out
        ann.transport.learn(node.peer, node.transport.addresses())
        assert await call(ann, node.peer, b"let me in") == b"let me in"
        for each in crowd:
            each.close()


async def test_connections_have_a_limit() -> None:
    config = loopback_config(connections_max=3)
    async with loopback_nodes(config)("node", MESH_KEY) as node:
        target = Target(node.transport.addresses()[0], node.peer, MeshKeyDoor(MESH_KEY))
        channels = [await dial_admitted(target, identity_of(f"peer {number}")) for number in range(3)]
        await until(lambda: libp2p(node).statistics().connections == 3)
        with pytest.raises(TransportError):
            await dial_admitted(target, MALLORY)
        node.transport.learn(MALLORY.peer_id, ["/ip4/127.0.0.1/tcp/1"])
        with pytest.raises(TransportError, match="3 connections are open"):
            await node.transport.open(MALLORY.peer_id, ECHO, timeout_s=1)
        for channel in channels:
            await channel.close()


async def test_a_member_keeps_four_connections_at_most() -> None:
    async with herd_target() as target:
        assert target.node is not None
        channels = [await dial_admitted(target, MALLORY) for _ in range(10)]
        await until(lambda: statistics_of(target).connections_accepted == 10)
        await until(lambda: statistics_of(target).connections == 4)
        for channel in channels:
            await channel.close()
        assert await echoes(target, identity_of("ann"))


async def test_a_flood_of_strangers_is_counted_but_not_logged_without_end() -> None:
    async with herd_target() as target:
        assert target.node is not None
        for number in range(30):
            channel = await dial_noise(target, identity_of(f"stranger {number}"))
            with pytest.raises(AdmissionError):
                await admit_as_dialer(channel, MeshKeyDoor(b"x" * 32), identity_of(f"stranger {number}").peer_id)
            await channel.close()
        await until(lambda: statistics_of(target).admissions_refused == 30)
        assert target.node.blame.statistics() == {"admission": 20}


class RecordingDoor(MeshKeyDoor):
    """A member's door that keeps what it said."""

    def __init__(self) -> None:
        super().__init__(MESH_KEY)
        self.proofs: list[bytes] = []
        self.nonce = b""

    def challenge(self) -> bytes:
        self.nonce = super().challenge()
        return self.nonce

    def proof(self, role: str, prover: PeerId, verifier: PeerId, nonces: bytes) -> bytes:
        made = super().proof(role, prover, verifier, nonces)
        self.proofs.append(made)
        return made


class ReplayingDoor(MeshKeyDoor):
    """Without the key, but with everything a member once said."""

    def __init__(self, nonce: bytes, proof: bytes) -> None:
        super().__init__(b"x" * 32)
        self._nonce, self._proof = nonce, proof

    def challenge(self) -> bytes:
        return self._nonce

    def proof(self, role: str, prover: PeerId, verifier: PeerId, nonces: bytes) -> bytes:
        return self._proof


class GullibleDoor(MeshKeyDoor):
    """Lets everybody in, so that its own proof is what is judged."""

    def admits(self, role: str, prover: PeerId, verifier: PeerId, nonces: bytes, proof: bytes) -> bool:
        return True


def door_ends() -> tuple[PipeEnd, PipeEnd]:
    """Mallory's channel to Bob, and Bob's to Mallory."""
    near, far = trio.testing.memory_stream_pair()
    return PipeEnd(near, BOB.peer_id, dialed_here=True), PipeEnd(far, MALLORY.peer_id, dialed_here=False)


async def hung_up(stream: trio.SocketStream) -> None:
    """Wait until the node closes the connection."""
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some(4096):
            pass
