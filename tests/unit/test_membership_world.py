"""Many pure cores in one virtual world: what the papers promise, seen from outside."""

import pytest

from protocols.membership.config import MembershipConfig
from tests.support_membership import World


def _mesh(count: int, **options: object) -> World:
    world = World(**options)  # type: ignore[arg-type]
    for number in range(1, count + 1):
        world.start(number)
        if number > 1:
            world.join(number, through=1)
    world.run(5)
    assert world.everybody_sees_everybody()
    return world


def test_thirty_nodes_join_through_one_and_all_see_all() -> None:
    world = World()
    for number in range(1, 31):
        world.start(number)
        if number > 1:
            world.join(number, through=1)
    world.run(3)
    assert world.everybody_sees_everybody()
    assert not world.blames


def test_nobody_is_suspected_for_ten_minutes_on_a_clean_network() -> None:
    world = _mesh(10)
    world.changes.clear()
    world.run(600)
    assert world.changes == []


def test_nobody_dies_in_ten_minutes_of_a_tenth_of_all_datagrams_lost() -> None:
    world = _mesh(10, loss=0.1)
    world.run(600)
    assert [change for change in world.changes if change[3] == "dead"] == []


def test_idle_mesh_sends_one_ping_and_one_ack_a_period_a_node() -> None:
    world = _mesh(10)
    world.run(60)
    world.datagrams = 0
    world.run(100)
    assert world.datagrams <= 10 * 100 * 2 + 20


def test_crash_is_detected_by_everyone_within_a_minute() -> None:
    world = _mesh(10)
    world.crash(4)
    world.run(30)
    assert all(world.state(4, seen_by=number) == "dead" for number in world.cores)
    assert {change[2] for change in world.changes if change[3] == "dead"} == {4}


def test_crash_is_detected_in_the_smallest_mesh_too() -> None:
    world = _mesh(2)
    world.crash(2)
    world.run(10)
    assert world.state(2, seen_by=1) == "dead"


def test_leave_is_told_at_once_and_is_no_crash() -> None:
    from protocols.membership.events import Leave

    world = _mesh(10)
    world.feed(4, Leave())
    world.run(1)
    world.crash(4)
    world.run(120)
    assert all(world.state(4, seen_by=number) == "left" for number in world.cores)
    assert {change[3] for change in world.changes if change[2] == 4} == {"alive", "left"}


def test_restart_is_seen_as_a_new_incarnation() -> None:
    world = _mesh(5)
    world.crash(3)
    world.run(30)
    world.start(3)
    world.join(3, through=2)
    world.run(5)
    assert world.everybody_sees_everybody()


def test_restart_with_a_clock_set_back_goes_past_its_earlier_life() -> None:
    world = _mesh(5)
    world.crash(3)
    world.run(30)
    world.start(3, incarnation=0)
    world.join(3, through=2)
    world.run(5)
    assert world.everybody_sees_everybody()


def test_partition_splits_the_mesh_and_heals_by_itself() -> None:
    world = _mesh(10)
    world.partition(range(1, 6), range(6, 11))
    world.run(60)
    assert world.alive(seen_by=1) == [2, 3, 4, 5]
    assert world.alive(seen_by=6) == [7, 8, 9, 10]
    world.heal()
    world.run(60)
    assert world.everybody_sees_everybody()


@pytest.mark.parametrize("cut_s", [30, 40, 60, 80, 100])
@pytest.mark.parametrize("count", [5, 10, 30])
def test_whoever_was_cut_off_talks_nobody_to_death_when_it_is_back(count: int, cut_s: float) -> None:
    world = _mesh(count)
    world.partition([count], range(1, count))
    world.run(cut_s)
    world.heal()
    world.changes.clear()
    world.run(45)
    assert world.everybody_sees_everybody()
    assert [change for change in world.changes if change[1] != count and change[3] == "dead"] == []


def test_member_without_udp_stays_alive_through_stream_probes() -> None:
    world = _mesh(6)
    world.changes.clear()
    world.udp_blocked.add(2)
    world.run(300)
    assert [change for change in world.changes if change[3] == "dead"] == []
    assert world.everybody_sees_everybody()
    probes = [core.statistics() for core in world.cores.values()]
    assert sum(statistics.probes_answered_over_stream for statistics in probes) > 100


def test_crash_of_a_member_without_udp_is_still_detected() -> None:
    world = _mesh(6)
    world.udp_blocked.add(2)
    world.run(30)
    world.crash(2)
    world.run(60)
    assert all(world.state(2, seen_by=number) == "dead" for number in world.cores)


def test_dead_members_are_forgotten_after_a_while() -> None:
    world = _mesh(4, config=MembershipConfig(forget_after_s=100))
    world.crash(3)
    world.run(200)
    assert all(world.state(3, seen_by=number) == "unknown" for number in world.cores)


def test_bootstrap_peer_dies_and_an_eleventh_joins_through_another() -> None:
    world = _mesh(10)
    world.crash(1)
    world.start(11)
    world.join(11, through=7)
    world.run(30)
    assert world.everybody_sees_everybody()


@pytest.mark.parametrize("seed", range(5))
def test_joins_crashes_and_losses_at_once_settle(seed: int) -> None:
    world = _mesh(12, seed=seed, loss=0.05)
    world.crash(2)
    world.crash(9)
    world.start(13)
    world.join(13, through=5)
    world.run(90)
    assert world.everybody_sees_everybody()


def test_no_message_is_over_the_limit_even_when_everybody_has_much_to_say() -> None:
    from protocols.membership.events import LocalChanged

    world = _mesh(20)
    for number in world.cores:
        world.feed(
            number, LocalChanged(labels={"note": "x" * 280}, addresses=tuple(f"/dns4/{i:040}/tcp/1" for i in range(5)))
        )
    world.run(20)
    assert world.largest_datagram_bytes > 1000
    labels = [member.record.labels for core in world.cores.values() for member in core.members()]
    assert labels == [{"note": "x" * 280}] * 400
