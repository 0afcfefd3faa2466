"""One suite for both kinds of datagrams: a UDP socket on loopback, and the simulated network."""

import errno
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from node.errors import UsageError
from node.identity import Identity
from node.ports import Datagrams
from node.transport import datagram
from node.transport.datagram import announced_host, open_udp_datagrams, udp_address
from node.trust.mesh_key import MeshKeyDoor
from protocols.datagram import DATAGRAM_SIZE_BYTES_MAX
from protocols.errors import LocalProtocolError
from protocols.ids import PeerId
from simnet.datagrams import SimDatagramNetwork

ALICE, BOB, CAROL = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
DOOR, OTHER_DOOR = MeshKeyDoor(b"m" * 32), MeshKeyDoor(b"x" * 32)


@attrs.frozen
class Network:
    """How to open a socket, and how a stranger throws raw bytes at an address."""

    open: Callable[..., Any]
    throw: Callable[[str, bytes], None]


@asynccontextmanager
async def _udp() -> AsyncIterator[Network]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:

        def throw(address: str, datagram: bytes) -> None:
            parsed = udp_address(address)
            assert parsed is not None
            stranger.sendto(datagram, (str(parsed[0]), parsed[1]))

        yield Network(lambda identity, door=DOOR: open_udp_datagrams(identity, door, "127.0.0.1", 0), throw)


@asynccontextmanager
async def _simulated(*, sealed: bool = True) -> AsyncIterator[Network]:
    network = SimDatagramNetwork(random.Random(1), sealed=sealed)

    def throw(address: str, datagram: bytes) -> None:
        network.carry(CAROL.peer_id, address, datagram)

    yield Network(lambda identity, door=DOOR: network.datagrams(identity, door), throw)


@pytest.fixture(params=[_udp, _simulated, partial(_simulated, sealed=False)], ids=["udp", "simulated", "unsealed"])
async def network(request: pytest.FixtureRequest) -> AsyncIterator[Network]:
    async with request.param() as made:
        yield made


@asynccontextmanager
async def _pair(network: Network) -> AsyncIterator[tuple[Any, Any]]:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(network.open(ALICE))
        bob = await stack.enter_async_context(network.open(BOB))
        with trio.fail_after(5):
            yield alice, bob


def _count(datagrams: Any, name: str) -> int:
    statistics = datagrams.statistics()
    counts = statistics if isinstance(statistics, dict) else attrs.asdict(statistics)
    return int(counts.get(name, 0))


async def _spoiled(alice: Datagrams, bob: Datagrams, name: str) -> None:
    """What was thrown at bob is dropped and counted under one name, and bob still hears alice."""
    alice.send(BOB.peer_id, bob.address(), b"after")
    assert await bob.receive() == (ALICE.peer_id, b"after")
    assert _count(bob, name) == 1


async def test_payload_arrives_with_its_senders_name(network: Network) -> None:
    async with _pair(network) as (alice, bob):
        alice.send(BOB.peer_id, bob.address(), b"hello")
        assert await bob.receive() == (ALICE.peer_id, b"hello")
        bob.send(ALICE.peer_id, alice.address(), b"")
        assert await alice.receive() == (BOB.peer_id, b"")
        assert _count(alice, "sent") == _count(bob, "received") == 1


async def test_largest_payload_arrives_and_a_larger_one_is_our_mistake(network: Network) -> None:
    async with _pair(network) as (alice, bob):
        largest = bytes(alice.payload_size_bytes_max())
        alice.send(BOB.peer_id, bob.address(), largest)
        assert await bob.receive() == (ALICE.peer_id, largest)
        with pytest.raises(LocalProtocolError):
            alice.send(BOB.peer_id, bob.address(), largest + b"x")


async def test_many_arrive_in_any_order_none_twice(network: Network) -> None:
    async with _pair(network) as (alice, bob):
        payloads = [number.to_bytes(2, "big") for number in range(200)]
        for payload in payloads:
            alice.send(BOB.peer_id, bob.address(), payload)
        assert sorted([(await bob.receive())[1] for _ in payloads]) == payloads


async def test_datagram_for_another_member_is_forged(network: Network) -> None:
    async with _pair(network) as (alice, bob):
        alice.send(CAROL.peer_id, bob.address(), b"for carol")
        await _spoiled(alice, bob, "forged")


async def test_datagram_of_another_mesh_is_foreign(network: Network) -> None:
    async with _pair(network) as (alice, bob), network.open(CAROL, OTHER_DOOR) as stranger:
        stranger.send(BOB.peer_id, bob.address(), b"let me in")
        await _spoiled(alice, bob, "foreign")


async def test_junk_of_every_kind_is_dropped_under_its_name(network: Network) -> None:
    async with _pair(network) as (alice, bob):
        for name, junk in {
            "foreign": b"GET / HTTP/1.1\r\n\r\n",
            "truncated": b"hrd\x01short",
            "oversize": bytes(DATAGRAM_SIZE_BYTES_MAX + 1),
        }.items():
            network.throw(bob.address(), junk)
            await _spoiled(alice, bob, name)


async def test_recorded_datagram_played_again_is_replayed(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _pair(network) as (alice, bob):
        recorded: list[bytes] = []
        seal = alice._sealer.seal

        def record(to: PeerId, payload: bytes) -> bytes:
            recorded.append(seal(to, payload))
            return recorded[-1]

        monkeypatch.setattr(alice._sealer, "seal", record)
        alice.send(BOB.peer_id, bob.address(), b"once")
        assert await bob.receive() == (ALICE.peer_id, b"once")
        network.throw(bob.address(), recorded[0])
        await _spoiled(alice, bob, "replayed")


@pytest.mark.parametrize(
    "address", ["/ip4/127.0.0.1/udp/9", "/dns4/localhost/udp/9", "/ip6/::1/udp/9", "nonsense", "", "/ip4/1.2.3.4/udp/0"]
)
async def test_useless_address_loses_the_datagram_and_nothing_else(network: Network, address: str) -> None:
    async with _pair(network) as (alice, bob):
        alice.send(BOB.peer_id, address, b"lost")
        alice.send(BOB.peer_id, bob.address(), b"kept")
        assert await bob.receive() == (ALICE.peer_id, b"kept")


async def test_cancelled_receive_loses_nothing(network: Network) -> None:
    async with _pair(network) as (alice, bob):
        with trio.CancelScope() as scope:
            scope.cancel()
            await bob.receive()
        assert scope.cancelled_caught
        alice.send(BOB.peer_id, bob.address(), b"still here")
        assert await bob.receive() == (ALICE.peer_id, b"still here")


async def test_restarted_sender_is_heard_again(network: Network) -> None:
    async with network.open(BOB) as bob:
        for life in (b"first", b"second"):
            async with network.open(ALICE) as alice:
                alice.send(BOB.peer_id, bob.address(), life)
                with trio.fail_after(5):
                    assert await bob.receive() == (ALICE.peer_id, life)


async def test_port_in_use_is_a_clear_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1 port {port}"):
            async with open_udp_datagrams(ALICE, DOOR, "127.0.0.1", port):
                raise AssertionError("the port is somebody else's")


async def test_host_that_is_no_ip_address_is_a_clear_error() -> None:
    with pytest.raises(UsageError, match="'myhost' is no IP address"):
        async with open_udp_datagrams(ALICE, DOOR, "myhost", 0):
            raise AssertionError("no such address")


async def test_dual_stack_socket_reaches_an_ipv4_one() -> None:
    async with open_udp_datagrams(ALICE, DOOR, "::", 0) as alice, open_udp_datagrams(BOB, DOOR, "127.0.0.1", 0) as bob:
        alice.send(BOB.peer_id, bob.address(), b"over IPv4")
        with trio.fail_after(5):
            assert await bob.receive() == (ALICE.peer_id, b"over IPv4")


async def test_wildcard_is_never_announced() -> None:
    async with open_udp_datagrams(ALICE, DOOR, "0.0.0.0", 0) as alice:
        parsed = udp_address(alice.address())
        assert parsed is not None
        assert not parsed[0].is_unspecified
        assert str(parsed[0]) == announced_host("0.0.0.0")
    async with open_udp_datagrams(ALICE, DOOR, "0.0.0.0", 0, advertise="192.0.2.7") as alice:
        assert alice.address().startswith("/ip4/192.0.2.7/udp/")


async def test_advertised_host_name_travels_as_an_address() -> None:
    async with open_udp_datagrams(ALICE, DOOR, "127.0.0.1", 0, advertise="localhost") as alice:
        parsed = udp_address(alice.address())
        assert parsed is not None
        assert parsed[0].is_loopback


async def test_advertised_host_name_that_is_not_found_is_logged_and_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(*_arguments: object, **_options: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", unknown)
    async with open_udp_datagrams(ALICE, DOOR, "127.0.0.1", 0, advertise="nowhere.invalid") as alice:
        assert alice.address().startswith("/ip4/127.0.0.1/udp/")
    assert "cannot be announced at nowhere.invalid" in caplog.text


async def test_without_a_way_out_of_the_machine_the_first_interface_there_is_now_is_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_route(_socket: socket.socket, _address: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    async with open_udp_datagrams(ALICE, DOOR, "0.0.0.0", 0) as alice:
        monkeypatch.setattr(socket, "socket", type("Routeless", (socket.socket,), {"connect": no_route}))
        monkeypatch.setattr(datagram, "interface_addresses", lambda version: {4: ["10.0.1.5"], 6: ["fd00::5"]}[version])
        assert alice.address().startswith("/ip4/10.0.1.5/udp/")
        assert announced_host("::") == "fd00::5"


async def test_a_peer_is_answered_where_it_was_heard_from_though_it_announces_another_network() -> None:
    async with (
        open_udp_datagrams(ALICE, DOOR, "127.0.0.1", 0) as alice,
        open_udp_datagrams(BOB, DOOR, "127.0.0.1", 0, advertise="192.0.2.7") as bob,
    ):
        with trio.fail_after(5):
            bob.send(ALICE.peer_id, alice.address(), b"from the other network")
            assert await alice.receive() == (BOB.peer_id, b"from the other network")
            alice.send(BOB.peer_id, bob.address(), b"answered there")
            assert await bob.receive() == (ALICE.peer_id, b"answered there")


async def test_a_replayed_datagram_from_elsewhere_leads_no_answer_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[bytes] = []
    async with (
        open_udp_datagrams(ALICE, DOOR, "127.0.0.1", 0) as alice,
        open_udp_datagrams(BOB, DOOR, "127.0.0.1", 0) as bob,
    ):
        seal = bob._sealer.seal

        def record(to: PeerId, payload: bytes) -> bytes:
            recorded.append(seal(to, payload))
            return recorded[-1]

        monkeypatch.setattr(bob._sealer, "seal", record)
        bob.send(ALICE.peer_id, alice.address(), b"once")
        with trio.fail_after(5), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
            assert await alice.receive() == (BOB.peer_id, b"once")
            alice_at = udp_address(alice.address())
            assert alice_at is not None
            thief.sendto(recorded[0], (str(alice_at[0]), alice_at[1]))
            with trio.move_on_after(0.05):
                await alice.receive()
            assert alice.statistics().replayed == 1
            alice.send(BOB.peer_id, bob.address(), b"answer")
            assert await bob.receive() == (ALICE.peer_id, b"answer")
