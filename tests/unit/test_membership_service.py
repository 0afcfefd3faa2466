"""The membership service over simulated streams and datagrams, under virtual time."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.errors import JoinRefused, UsageError
from node.events import MemberChanged
from node.ports import TransportError
from node.services.membership.memory import FILE_NAME
from node.services.membership.service import MembershipService
from protocols.membership.config import MembershipConfig
from protocols.membership.messages import PROTOCOL
from tests.support_membership_service import OTHER_DOOR, Mesh, identity, mesh_of


async def test_ten_join_through_one_that_dies_and_an_eleventh_through_another(autojump_clock: MockClock) -> None:
    async with mesh_of(10) as mesh:
        await mesh.crash(1)
        await mesh.start(11, bootstrap=[mesh.nodes[7].multiaddr])
        assert await mesh.until(mesh.complete, within_s=30)
        assert mesh.state(of=1, seen_by=11) == "dead"


async def test_members_tell_their_labels_addresses_and_disk(autojump_clock: MockClock) -> None:
    async with mesh_of(1) as mesh:
        await mesh.start(2, bootstrap=[mesh.nodes[1].multiaddr], labels={"region": "north", "gpu": "a100"})
        member = mesh.nodes[1].service.member(identity(2).peer_id)
        assert member is not None
        assert member.record.labels == {"region": "north", "gpu": "a100"}
        assert list(member.record.addresses) == mesh.nodes[2].transport.addresses()
        assert member.record.free_disk_bytes == 10**12
        assert [m.state for m in mesh.nodes[1].service.members()] == ["self", "alive"]


async def test_changes_are_told_to_subscribers_and_on_the_bus(autojump_clock: MockClock) -> None:
    async with mesh_of(2) as mesh:
        heard: list[tuple[str, bool]] = []
        mesh.nodes[1].service.subscribe_alive(lambda peer, alive: heard.append((peer, alive)))
        with mesh.nodes[1].bus.subscribe() as events:
            await mesh.start(3, bootstrap=[mesh.nodes[1].multiaddr])
            await mesh.crash(3)
            assert await mesh.until(lambda: mesh.state(of=3, seen_by=1) == "dead", within_s=30)
            published = [await anext(events) for _ in range(3)]
        third = identity(3).peer_id
        assert heard == [(third, True), (third, False)]
        assert [(event.peer, event.state) for event in published if isinstance(event, MemberChanged)] == [
            (third, "alive"),
            (third, "suspect"),
            (third, "dead"),
        ]


async def test_a_failing_subscriber_does_not_stop_the_service(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with mesh_of(1) as mesh:

        def fail(_peer: str, _alive: bool) -> None:
            raise ZeroDivisionError

        mesh.nodes[1].service.subscribe_alive(fail)
        await mesh.start(2, bootstrap=[mesh.nodes[1].multiaddr])
        assert await mesh.until(mesh.complete, within_s=5)
    assert "a listener to members failed" in caplog.text


async def test_leave_reaches_everybody_within_two_seconds_and_is_no_crash(autojump_clock: MockClock) -> None:
    async with mesh_of(8) as mesh:
        began = trio.current_time()
        await mesh.nodes[3].service.leave()
        assert trio.current_time() - began <= 1
        await mesh.crash(3)
        assert await mesh.until(lambda: all(mesh.state(of=3, seen_by=n) == "left" for n in mesh.nodes), within_s=2)
        await trio.sleep(60)
        assert all(mesh.state(of=3, seen_by=n) == "left" for n in mesh.nodes)


async def test_leave_takes_a_second_at_most_when_nobody_answers(autojump_clock: MockClock) -> None:
    async with mesh_of(2) as mesh:
        mesh.network.cut(identity(1).peer_id, identity(2).peer_id)
        began = trio.current_time()
        await mesh.nodes[2].service.leave()
        assert trio.current_time() - began == pytest.approx(1)


async def test_host_without_udp_stays_a_member_through_streams(autojump_clock: MockClock) -> None:
    async with mesh_of(5) as mesh:
        mesh.datagrams.block(identity(2).peer_id)
        dead: list[str] = []
        for node in mesh.nodes.values():
            node.service.subscribe_alive(lambda peer, alive: dead.append(peer))
        await trio.sleep(300)
        assert dead == []
        assert mesh.complete()
        assert sum(node.service.statistics().probes_answered_over_stream for node in mesh.nodes.values()) > 100
        await mesh.crash(2)
        assert await mesh.until(lambda: mesh.complete(), within_s=60)


async def test_mesh_entirely_without_udp_works(autojump_clock: MockClock) -> None:
    async with mesh_of(1) as mesh:
        mesh.datagrams.loss = 1.0
        for number in range(2, 7):
            await mesh.start(number, bootstrap=[mesh.nodes[1].multiaddr])
        assert await mesh.until(mesh.complete, within_s=60)
        await mesh.crash(4)
        assert await mesh.until(mesh.complete, within_s=120)


async def test_partition_heals_without_anybody_ordering_it(autojump_clock: MockClock) -> None:
    async with mesh_of(6) as mesh:
        pairs = [(identity(one).peer_id, identity(other).peer_id) for one in (1, 2, 3) for other in (4, 5, 6)]
        for pair in pairs:
            mesh.network.cut(*pair)
            mesh.datagrams.cut(*pair)
        assert await mesh.until(lambda: mesh.sees(1) == [2, 3] and mesh.sees(4) == [5, 6], within_s=90)
        for pair in pairs:
            mesh.network.mend(*pair)
            mesh.datagrams.mend(*pair)
        assert await mesh.until(mesh.complete, within_s=60)


async def test_restart_finds_the_mesh_by_memory_when_the_bootstrap_peer_is_gone(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with mesh_of(4) as mesh:
        bootstrap = [mesh.nodes[1].multiaddr]
        await mesh.start(5, bootstrap=bootstrap, home=tmp_path)
        assert await mesh.until(mesh.complete, within_s=5)
        await mesh.crash(5)
        await mesh.crash(1)
        await mesh.start(5, bootstrap=bootstrap, home=tmp_path)
        assert set(mesh.sees(5)) >= {2, 3, 4}
        assert await mesh.until(mesh.complete, within_s=60)


async def test_one_that_is_gone_does_not_end_the_wait_for_the_others(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with mesh_of(2) as mesh:
        await mesh.start(3, bootstrap=[mesh.nodes[1].multiaddr], home=tmp_path)
        assert await mesh.until(mesh.complete, within_s=5)
        await mesh.crash(3)
        await mesh.crash(1)
        await mesh.start(3, home=tmp_path)
        assert 2 in mesh.sees(3)
        assert "no member answers yet" not in caplog.text


async def test_racks_restarted_apart_grow_together_by_memory_when_the_wire_between_them_is_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    homes = {number: tmp_path / str(number) for number in (1, 2, 3, 4)}
    between = [(identity(one).peer_id, identity(other).peer_id) for one in (1, 2) for other in (3, 4)]
    async with mesh_of(0) as mesh:
        for number, home in homes.items():
            home.mkdir()
            await mesh.start(number, bootstrap=[mesh.nodes[1].multiaddr] if number > 1 else [], home=home)
        assert await mesh.until(mesh.complete, within_s=10)
        addresses = {number: mesh.nodes[number].transport.addresses()[0] for number in homes}
        await trio.sleep(5)
        for pair in between:
            mesh.network.cut(*pair)
            mesh.datagrams.cut(*pair)
        # Power comes and goes: each rack is started twice without the other, with nothing but members.json.
        for _ in range(2):
            for number in homes:
                await mesh.crash(number)
            for number, home in homes.items():
                await mesh.start(number, home=home, address=addresses[number])
            await trio.sleep(300)
            assert {number: mesh.sees(number) for number in homes} == {1: [2], 2: [1], 3: [4], 4: [3]}
        for pair in between:
            mesh.network.mend(*pair)
            mesh.datagrams.mend(*pair)
        assert await mesh.until(mesh.complete, within_s=40)


async def test_who_is_gone_is_remembered_after_who_is_there(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with mesh_of(3) as mesh:
        await mesh.start(4, bootstrap=[mesh.nodes[1].multiaddr], home=tmp_path)
        assert await mesh.until(mesh.complete, within_s=10)
        await mesh.nodes[2].service.leave()
        await mesh.crash(2)
        await mesh.crash(3)
        assert await mesh.until(lambda: mesh.sees(4) == [1], within_s=60)
        await trio.sleep(5)
        rows = json.loads((tmp_path / FILE_NAME).read_text())["members"]
        assert [row["peer"] for row in rows] == [identity(number).peer_id for number in (1, 3, 2)]


async def test_all_leave_and_come_back_at_once_without_a_bootstrap_peer(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    homes = {number: tmp_path / str(number) for number in (1, 2, 3)}
    async with mesh_of(0) as mesh:
        for number, home in homes.items():
            home.mkdir()
            await mesh.start(number, bootstrap=[mesh.nodes[1].multiaddr] if number > 1 else [], home=home)
        assert await mesh.until(mesh.complete, within_s=10)
        addresses = {number: mesh.nodes[number].transport.addresses()[0] for number in homes}
        async with trio.open_nursery() as nursery:
            for node in mesh.nodes.values():
                nursery.start_soon(node.service.leave)
        for number in homes:
            await mesh.crash(number)
        for number, home in homes.items():
            await mesh.start(number, home=home, address=addresses[number])
        assert await mesh.until(mesh.complete, within_s=10)


async def test_a_bootstrap_peer_away_for_longer_than_the_dead_are_remembered_is_found_again(
    autojump_clock: MockClock,
) -> None:
    async with mesh_of(2, MembershipConfig(forget_after_s=300)) as mesh:
        pair = identity(1).peer_id, identity(2).peer_id
        mesh.network.cut(*pair)
        mesh.datagrams.cut(*pair)
        await trio.sleep(600)
        assert (mesh.state(of=1, seen_by=2), mesh.state(of=2, seen_by=1)) == ("unknown", "unknown")
        mesh.network.mend(*pair)
        mesh.datagrams.mend(*pair)
        assert await mesh.until(mesh.complete, within_s=40)


async def test_members_json_survives_nonsense_in_it(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, nonsense in enumerate(
        ["", "{", "[]", '{"version": 9}', '{"version": 1, "members": [{"peer": "x", "addresses": []}]}', "\x00" * 99]
    ):
        home = tmp_path / str(number)
        home.mkdir()
        (home / FILE_NAME).write_text(nonsense)
        async with mesh_of(1) as mesh:
            await mesh.start(2, bootstrap=[mesh.nodes[1].multiaddr], home=home)
            await trio.sleep(3)
            document = json.loads((home / FILE_NAME).read_text())
            assert [row["peer"] for row in document["members"]] == [identity(1).peer_id]
    assert caplog.text.count("cannot be used") == 6


async def test_unwritable_home_is_logged_and_nothing_else(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with mesh_of(1) as mesh:
        await mesh.start(2, bootstrap=[mesh.nodes[1].multiaddr], home=tmp_path / "missing")
        await trio.sleep(3)
        assert mesh.complete()
    assert "cannot remember members" in caplog.text


async def test_wrong_mesh_key_is_a_clear_error_at_join(autojump_clock: MockClock) -> None:
    async with mesh_of(2) as mesh:
        bootstrap = [mesh.nodes[1].multiaddr, mesh.nodes[2].multiaddr]
        stranger = await mesh.start(9, bootstrap=bootstrap, join=False, door=OTHER_DOOR)
        with pytest.raises(JoinRefused, match=r"no bootstrap peer admits this node: .*mesh keys differ"):
            await stranger.service.join()
        assert mesh.sees(1) == [2]


async def test_one_bootstrap_peer_of_two_suffices(autojump_clock: MockClock) -> None:
    async with mesh_of(2) as mesh:
        gone = mesh.nodes[2].multiaddr
        await mesh.crash(2)
        began = trio.current_time()
        await mesh.start(3, bootstrap=[gone, mesh.nodes[1].multiaddr])
        assert trio.current_time() - began < 1
        assert 1 in mesh.sees(3)


async def test_unreachable_bootstrap_peer_does_not_keep_a_node_from_starting(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with mesh_of(1) as mesh:
        address = mesh.nodes[1].multiaddr
        await mesh.crash(1)
        await mesh.start(2, bootstrap=[address])
        assert mesh.sees(2) == []
        assert "no member answers yet" in caplog.text
        await trio.sleep(600)
        assert caplog.text.count("no member answers yet") == 1
        assert len(caplog.records) < 10


async def test_bootstrap_peer_that_comes_later_is_found(autojump_clock: MockClock) -> None:
    async with mesh_of(2) as mesh:
        one, two = identity(1).peer_id, identity(3).peer_id
        mesh.network.cut(one, two)
        await mesh.start(3, bootstrap=[mesh.nodes[1].multiaddr])
        assert mesh.sees(3) == []
        await trio.sleep(300)
        mesh.network.mend(one, two)
        assert await mesh.until(mesh.complete, within_s=60)


async def test_two_meshes_with_a_common_member_grow_together(autojump_clock: MockClock) -> None:
    async with mesh_of(2) as mesh:
        await mesh.start(3)
        await mesh.start(4, bootstrap=[mesh.nodes[1].multiaddr, mesh.nodes[3].multiaddr])
        assert await mesh.until(mesh.complete, within_s=10)


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "/ip4/1.2.3.4/tcp/4701",
        "/ip4/1.2.3.4/udp/4701/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo",
        "/ip4/1.2.3.4/tcp/99999/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo",
        "/ip4/1.2.3.4/tcp/4701/p2p/QmNotEd25519",
    ],
)
async def test_bad_bootstrap_address_is_a_usage_error_naming_it(autojump_clock: MockClock, text: str) -> None:
    async with mesh_of(1) as mesh:
        with pytest.raises(UsageError) as refused:
            MembershipService(**_arguments(mesh, bootstrap=[text]))
        assert repr(text) in str(refused.value)


async def test_labels_over_the_limit_are_a_usage_error_saying_the_limit(autojump_clock: MockClock) -> None:
    async with mesh_of(1) as mesh:
        with pytest.raises(UsageError, match=r"305 bytes .* over the limit of 300"):
            MembershipService(**_arguments(mesh, labels={"note": "x" * 301}))
        with pytest.raises(UsageError, match="17 labels are over the limit of 16"):
            mesh.nodes[1].service.update_local(labels={str(number): "" for number in range(17)})


def _arguments(mesh: Mesh, **changes: Any) -> dict[str, Any]:
    node, me = mesh.nodes[1], identity(50)
    return {
        "transport": node.transport,
        "datagrams": node.datagrams,
        "config": mesh.config,
        "peer_id": me.peer_id,
        "signer": me.sign,
        "rng": random.Random(1),
        "bus": node.bus,
        "blame": node.blame,
        "remembered": None,
        "labels": {},
        "free_disk_bytes": lambda: 0,
        "bootstrap": [],
        **changes,
    }


async def test_new_labels_and_shrinking_disk_space_spread(autojump_clock: MockClock) -> None:
    async with mesh_of(5) as mesh:
        mesh.nodes[1].service.update_local(labels={"region": "south"})

        def told(number: int) -> tuple[str | None, int]:
            member = mesh.nodes[number].service.member(identity(1).peer_id)
            assert member is not None
            return member.record.labels.get("region"), member.record.free_disk_bytes

        assert await mesh.until(lambda: all(told(number)[0] == "south" for number in mesh.nodes), within_s=5)
        mesh.free_disk_bytes = int(0.995 * 10**12)
        await trio.sleep(130)
        assert told(4) == ("south", 10**12)
        mesh.free_disk_bytes = 10**9
        await trio.sleep(130)
        assert {told(number) for number in mesh.nodes} == {("south", 10**9)}


async def test_a_host_whose_network_came_up_late_announces_where_it_is_then(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(3) as mesh:
        monkeypatch.setattr(mesh.nodes[1].transport, "addresses", lambda: ["/ip4/10.9.9.9/tcp/4701"])
        monkeypatch.setattr(mesh.nodes[1].datagrams, "address", lambda: "/ip4/10.9.9.9/udp/4701")

        def told(number: int) -> tuple[tuple[str, ...], str]:
            member = mesh.nodes[number].service.member(identity(1).peer_id)
            assert member is not None
            return member.record.addresses, member.record.datagram_address

        moved = ("/ip4/10.9.9.9/tcp/4701",), "/ip4/10.9.9.9/udp/4701"
        assert await mesh.until(lambda: told(2) == told(3) == moved, within_s=70)


async def test_nonsense_on_the_stream_and_in_a_datagram_is_blamed(autojump_clock: MockClock) -> None:
    async with mesh_of(2) as mesh:
        one, two = mesh.nodes[1], mesh.nodes[2]
        stream = await two.transport.open(identity(1).peer_id, PROTOCOL, timeout_s=5)
        await stream.send(b"\xc1 no msgpack")
        await stream.finish()
        assert await stream_end(stream)
        two.datagrams.send(identity(1).peer_id, one.datagrams.address(), b"\xc1")
        await trio.sleep(1)
        assert one.blame.view(identity(2).peer_id).counts == {"protocol": 1, "membership": 1}
        assert mesh.complete()


async def test_a_member_that_asks_and_says_nothing_keeps_nobody_else_waiting(autojump_clock: MockClock) -> None:
    async with mesh_of(2) as mesh:
        for _ in range(40):
            await mesh.nodes[2].transport.open(identity(1).peer_id, PROTOCOL, timeout_s=5)
        began = trio.current_time()
        await mesh.start(3, bootstrap=[mesh.nodes[1].multiaddr])
        assert trio.current_time() - began < 1
        assert 1 in mesh.sees(3)


async def stream_end(stream: Any) -> bool:
    """Whether a stream ends without an answer."""
    try:
        return await stream.receive(100) is None
    except TransportError:
        return True


async def test_found_peers_are_met_once_and_junk_is_ignored(autojump_clock: MockClock) -> None:
    async with mesh_of(2) as mesh:
        other = await mesh.start(3)
        other.service.meet("junk")
        other.service.meet(other.multiaddr)
        other.service.meet(mesh.nodes[1].multiaddr)
        assert await mesh.until(mesh.complete, within_s=10)


async def test_a_found_peer_of_another_mesh_is_told_once_with_the_reason(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "herd.membership")
    async with mesh_of(2) as mesh:
        stranger = await mesh.start(9, door=OTHER_DOOR)
        stranger.service.meet(mesh.nodes[1].multiaddr)
        await trio.sleep(60)
        assert caplog.text.count(f"found peer {identity(1).peer_id} does not admit this node") == 1
        assert "mesh keys differ" in caplog.text


async def test_a_bootstrap_peer_found_by_multicast_before_the_join_does_not_hold_it_up(
    autojump_clock: MockClock,
) -> None:
    async with mesh_of(2) as mesh:
        gone = mesh.nodes[2].multiaddr
        await mesh.crash(2)
        other = await mesh.start(3, bootstrap=[gone], join=False)
        other.service.meet(gone)
        with trio.fail_after(60):
            await other.service.join()
        assert mesh.sees(3) == []


async def test_restart_with_the_same_identity_is_alive_again_at_once(autojump_clock: MockClock) -> None:
    async with mesh_of(5) as mesh:
        await mesh.crash(3)
        await mesh.start(3, bootstrap=[mesh.nodes[2].multiaddr])
        assert await mesh.until(mesh.complete, within_s=5)
        await trio.sleep(60)
        assert mesh.complete()
