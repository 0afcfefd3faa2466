"""Membership on real loopback sockets: libp2p streams and UDP datagrams, several nodes in one process."""

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from node.blame import BlameLedger
from node.errors import JoinRefused
from node.events import EventBus
from node.identity import Identity
from node.services.membership.memory import FILE_NAME
from node.services.membership.service import MembershipService
from node.small_file import DiskFile
from node.transport.config import NetworkConfig
from node.transport.datagram import UdpDatagrams, open_udp_datagrams
from node.transport.libp2p import open_libp2p_transport
from node.trust.mesh_key import MeshKeyDoor
from protocols.ids import PeerId
from protocols.membership.config import MembershipConfig
from tests.support_transport import until

pytestmark = pytest.mark.slow

QUICK = MembershipConfig(
    probe_interval_s=0.3,
    probe_timeout_s=0.12,
    gossip_interval_s=0.05,
    suspicion_multiplier=2,
    suspicion_max_multiplier=2,
    reconnect_interval_s=0.5,
    join_retry_s=0.1,
)
KEY, OTHER_KEY = b"m" * 32, b"x" * 32


@attrs.define(eq=False)
class Running:
    """One node."""

    service: MembershipService
    multiaddr: str
    scope: trio.CancelScope


class Firewalled(UdpDatagrams):
    """A host whose firewall lets no datagram out."""

    def send(self, to: PeerId, address: str, payload: bytes) -> None:
        """Lost."""


@asynccontextmanager
async def node(
    number: int, bootstrap: list[str], *, key: bytes = KEY, firewalled: bool = False, home: Path | None = None
) -> AsyncIterator[Running]:
    """A node until the block ends; it does not say goodbye."""
    me, door, bus = Identity(bytes([number]) * 32), MeshKeyDoor(key), EventBus()
    blame = BlameLedger(bus)
    async with (
        open_libp2p_transport(me, door, NetworkConfig(host="127.0.0.1", port=0), blame) as transport,
        open_udp_datagrams(me, door, "127.0.0.1", 0) as datagrams,
        trio.open_nursery() as nursery,
    ):
        if firewalled:
            datagrams.__class__ = Firewalled
        rng = random.Random(number)
        remembered = DiskFile(home / FILE_NAME) if home is not None else None
        service = MembershipService(
            transport, datagrams, QUICK, me.peer_id, me.sign, rng, bus, blame, remembered, {}, lambda: 10**9, bootstrap
        )
        await nursery.start(service.run)
        yield Running(service, f"{transport.addresses()[0]}/p2p/{me.peer_id}", nursery.cancel_scope)
        nursery.cancel_scope.cancel()


async def test_three_nodes_meet_one_dies_and_one_leaves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "herd.membership")
    async with node(1, []) as one, node(2, [one.multiaddr]) as two:
        await two.service.join()
        async with node(3, [one.multiaddr]) as three:
            await three.service.join()
            await until(lambda: all(len(each.service.alive()) == 2 for each in (one, two, three)))
            third = three.service.members()[0].peer
        await until(lambda: third not in one.service.alive())
        await until(lambda: third not in two.service.alive())
        gone = two.service.members()[0].peer
        await two.service.leave()
        await until(lambda: [m.state for m in one.service.members() if m.peer == gone] == ["left"])
        assert {gone, third}.isdisjoint(one.service.alive())


async def test_wrong_mesh_key_is_refused_at_join() -> None:
    async with node(1, []) as one, node(2, [one.multiaddr], key=OTHER_KEY) as stranger:
        with pytest.raises(JoinRefused, match="no bootstrap peer admits this node"):
            await stranger.service.join()
        assert one.service.alive() == []


async def test_host_without_udp_stays_alive_over_streams() -> None:
    async with node(1, []) as one, node(2, [one.multiaddr], firewalled=True) as mute:
        changes: list[bool] = []
        await mute.service.join()
        one.service.subscribe_alive(lambda _peer, alive: changes.append(alive))
        await until(lambda: one.service.statistics().probes_answered_over_stream >= 5)
        assert changes == []


async def test_restarted_node_finds_its_mesh_without_a_bootstrap_peer(tmp_path: Path) -> None:
    async with node(1, []) as one:
        async with node(2, [one.multiaddr], home=tmp_path) as two:
            await two.service.join()
        async with node(2, [], home=tmp_path) as again:
            await again.service.join()
            assert again.service.alive() == [one.service.members()[0].peer]
