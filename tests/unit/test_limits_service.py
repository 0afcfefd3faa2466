"""The limits of a running node: askers wait, the clock on the wall turns, a person sets other limits meanwhile."""

import time
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.errors import UsageError
from node.services.limits.service import LimitsService
from protocols.ids import PeerId
from protocols.limits.config import Direction, LimitsConfig, Purpose

UP, DOWN = Direction.UP, Direction.DOWN
PULL, REPAIR = Purpose.PULL, Purpose.REPAIR
ANN, BOB = PeerId("ann"), PeerId("bob")
MEGABYTE = 1_000_000


class Wall:
    """A wall clock that goes on with Trio's, from Monday 21:58:40."""

    def __init__(self) -> None:
        self.began_s = trio.current_time()

    def __call__(self) -> time.struct_time:
        # 1970 began on a Thursday; four days later it was Monday.
        return time.gmtime(4 * 86_400 + 21 * 3600 + 58 * 60 + 40 + trio.current_time() - self.began_s)


def service(**settings: Any) -> LimitsService:
    return LimitsService(LimitsConfig(**settings), Wall(), Path("/home-of/herd.toml"))


async def test_askers_share_what_goes_and_each_chunk_waits_its_time(autojump_clock: MockClock) -> None:
    limits, began_s = service(up="1MB/s"), trio.current_time()
    went: list[float] = []

    async def give(peer: PeerId) -> None:
        for _ in range(3):
            await limits.take(UP, peer, PULL, 2 * MEGABYTE)
            went.append(round(trio.current_time() - began_s, 2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give, ANN)
        nursery.start_soon(give, BOB)
    assert went == [0, 2, 4, 6, 8, 10]
    assert limits.statistics().counted_bytes == {"up": 12 * MEGABYTE, "down": 0}
    assert limits.statistics().delayed_bytes["up"] >= 8 * MEGABYTE


async def test_peers_take_turns_however_many_streams_each_waits_with(autojump_clock: MockClock) -> None:
    limits, served = service(up="1MB/s"), list[PeerId]()
    limits.took(UP, ANN, PULL, MEGABYTE)

    async def give(peer: PeerId) -> None:
        await limits.take(UP, peer, PULL, MEGABYTE)
        served.append(peer)

    async with trio.open_nursery() as nursery:
        for peer in [*[ANN] * 6, *[BOB] * 3]:
            nursery.start_soon(give, peer)
    assert {*served[:2]} == {*served[2:4]} == {*served[4:6]} == {ANN, BOB}
    assert served[6:] == [ANN] * 3


async def test_purposes_take_turns_at_the_limit_of_the_node(autojump_clock: MockClock) -> None:
    limits, began_s = service(up="1MB/s"), trio.current_time()
    limits.took(UP, ANN, PULL, MEGABYTE)
    repaired_after_s = []

    async def repair() -> None:
        for _ in range(3):
            await limits.take(UP, BOB, REPAIR, MEGABYTE)
            repaired_after_s.append(round(trio.current_time() - began_s))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(limits.take, UP, PeerId(f"peer{number}"), PULL, MEGABYTE)
        await trio.sleep(0.5)
        await repair()
        assert repaired_after_s == [2, 4, 6], "not after the twenty who pull"


async def test_who_waits_for_its_own_limit_holds_nobody_else_up(autojump_clock: MockClock) -> None:
    limits, began_s = service(up="10MB/s", peer_up="1MB/s"), trio.current_time()
    limits.took(UP, ANN, PULL, 8 * MEGABYTE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.take, UP, ANN, PULL, MEGABYTE)
        await limits.take(UP, BOB, PULL, MEGABYTE)
        assert trio.current_time() - began_s == pytest.approx(0.8)
    assert trio.current_time() - began_s == pytest.approx(8 - 0.25)


async def test_who_goes_past_the_line_is_waited_for_too(autojump_clock: MockClock) -> None:
    limits, began_s = service(up="1MB/s", peer_up="1MB/s"), trio.current_time()
    limits.took(UP, BOB, PULL, 2 * MEGABYTE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.take, UP, ANN, PULL, 1)
        await trio.sleep(1)
        limits.took(UP, ANN, REPAIR, 4 * MEGABYTE)
    assert trio.current_time() - began_s == pytest.approx(6)


async def test_a_cancelled_wait_costs_nobody_anything(autojump_clock: MockClock) -> None:
    limits, began_s = service(down="1MB/s"), trio.current_time()
    await limits.take(DOWN, ANN, PULL, 2 * MEGABYTE)
    with trio.move_on_after(1) as given_up:
        await limits.take(DOWN, ANN, PULL, 50 * MEGABYTE)
    assert given_up.cancelled_caught
    await limits.take(DOWN, BOB, PULL, 1)
    assert trio.current_time() - began_s == pytest.approx(2)
    assert limits.statistics().delayed_s["down"] == pytest.approx(2), "ann gave up after one second"
    assert limits.statistics().delayed_bytes["down"] == 1


async def test_many_who_give_up_together_leave_the_line_whole_for_who_comes_next(autojump_clock: MockClock) -> None:
    limits, began_s = service(up="1MB/s"), trio.current_time()
    limits.took(UP, ANN, PULL, 2 * MEGABYTE)
    with trio.move_on_after(1):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(limits.take, UP, PeerId(f"peer{number % 10}"), PULL, MEGABYTE)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(limits.take, UP, BOB, PULL, MEGABYTE)
    assert trio.current_time() - began_s == pytest.approx(4), "at 2, 3 and 4 s: nobody of the twenty took anything"


async def test_nothing_waits_while_nothing_is_limited(autojump_clock: MockClock) -> None:
    limits, began_s = service(), trio.current_time()
    for _ in range(1000):
        await limits.take(UP, ANN, PULL, 1000 * MEGABYTE)
    assert trio.current_time() == began_s


async def test_who_waits_goes_at_once_when_the_limit_is_lifted(autojump_clock: MockClock) -> None:
    limits, began_s = service(up="1KB/s"), trio.current_time()
    limits.took(UP, ANN, PULL, 4 * MEGABYTE)
    assert limits.wait_s(UP, BOB, REPAIR) == pytest.approx(4000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.wait, UP, BOB, REPAIR)
        await trio.sleep(5)
        limits.change({"up": "unlimited"})
        assert limits.unlimited(UP)
    assert trio.current_time() - began_s == pytest.approx(5)
    await trio.sleep(3600)
    limits.change({"up": "1MB/s"})
    await limits.take(UP, BOB, REPAIR, MEGABYTE)
    assert limits.statistics().delayed_s["up"] == pytest.approx(5), (
        "neither the 4000 s that were told first nor the hour after"
    )


async def test_who_waits_waits_longer_when_the_limit_is_lowered(autojump_clock: MockClock) -> None:
    limits, began_s = service(up="1MB/s"), trio.current_time()
    limits.took(UP, ANN, PULL, 4 * MEGABYTE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.wait, UP, ANN, PULL)
        await trio.sleep(2)
        limits.change({"up": "500KB/s"})
    assert trio.current_time() - began_s == pytest.approx(6)


async def test_the_night_begins_within_its_first_second(autojump_clock: MockClock) -> None:
    limits, began_s = service(up="1KB/s, night=unlimited"), trio.current_time()
    limits.took(UP, ANN, PULL, 4 * MEGABYTE)
    async with trio.open_nursery() as nursery:
        await nursery.start(limits.run)
        assert limits.current().limits[0].bytes_per_s == 1000
        await limits.wait(UP, ANN, PULL)
        assert 80 <= trio.current_time() - began_s <= 81, "it was 21:58:40"
        view = limits.current()
        assert (view.limits[0].bytes_per_s, view.limits[0].period, view.local_time) == (None, "night", "mon 22:00")
        await limits.wait_changed()
        assert limits.current().local_time == "tue 06:00"
        assert limits.wait_s(UP, BOB, PULL) == 0.0, "what went at night is not owed by day"
        nursery.cancel_scope.cancel()


async def test_periods_are_set_together_with_the_rates_that_name_them(autojump_clock: MockClock) -> None:
    limits = service()
    view = limits.change({"up": "1MB/s, late=5MB/s", "periods": "late=20:00-22:00, night=22:00-06:00"})
    assert (view.limits[0].setting, view.limits[0].bytes_per_s, view.limits[0].period) == (
        "1MB/s, late=5MB/s",
        5_000_000,
        "late",
    )
    assert view.periods == ["late=20:00-22:00", "night=22:00-06:00"]
    assert view.changed == ["up", "periods"]
    assert view.note == (
        "changes hold until this node stops; to keep them, write them under [limits] in /home-of/herd.toml"
    )
    assert limits.change({"up": "unlimited", "periods": "night=22:00-06:00"}).changed == [], "as it was at the start"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "nothing to set: give KEY=RATE, such as up=50MB/s"),
        ({"pul_up": "1MB/s"}, "unknown limit 'pul_up'; did you mean pull_up?"),
        ({"xyzzy": "1MB/s"}, "unknown limit 'xyzzy'; known are down, peer_down,"),
        ({"up": "2MB/s", "night": "unlimited"}, "night is a period, not a limit: quote it together with its limit, as"),
        ({"up": "2MB/s", "down": "2"}, "limits.down: '2' is not allowed: a rate such as"),
        ({"periods": "day=09:00-18:00"}, "limits.up: no period is named 'night'; known are day"),
    ],
)
async def test_a_wrong_change_is_told_and_changes_nothing(changes: dict[str, str], told: str) -> None:
    limits = service(up="1MB/s, night=2MB/s")
    before = limits.current()
    with pytest.raises(UsageError) as error:
        limits.change(changes)
    assert str(error.value).startswith(told)
    assert limits.current() == before


async def test_a_member_that_is_gone_owes_nothing(autojump_clock: MockClock) -> None:
    limits = service(peer_down="1MB/s")
    limits.took(DOWN, ANN, PULL, 4 * MEGABYTE)
    assert limits.statistics().peers == {"up": 0, "down": 1}
    limits.forget(ANN)
    assert limits.wait_s(DOWN, ANN, PULL) == 0.0
