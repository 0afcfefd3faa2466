"""Buckets and the limiter above them, played like a conversation: who asks when, who may go, who waits how long."""

import pytest

from protocols.ids import PeerId
from protocols.limits.bucket import BURST_S, WAIT_S_MIN, Bucket, burst_bytes
from protocols.limits.config import Direction, LimitsConfig, Purpose
from protocols.limits.delays import WAITING_MAX, Delays
from protocols.limits.limiter import PEERS_MAX, Limiter
from protocols.limits.periods import LocalTime

UP, DOWN = Direction.UP, Direction.DOWN
PULL, REPLICATE, REPAIR = Purpose.PULL, Purpose.REPLICATE, Purpose.REPAIR
ANN, BOB = PeerId("ann"), PeerId("bob")
MEGABYTE = 1_000_000
MONDAY_NOON, MONDAY_NIGHT = LocalTime(0, 12 * 60), LocalTime(0, 23 * 60)


def limiter(**settings: str) -> Limiter:
    return Limiter(LimitsConfig(**settings), MONDAY_NOON, 0.0)  # type: ignore[arg-type]


def test_a_chunk_larger_than_the_rate_goes_whole_and_is_waited_for_after() -> None:
    bucket = Bucket(MEGABYTE, 100.0)
    assert bucket.wait_s(100.0) == 0.0
    bucket.take(4 * MEGABYTE, 100.0)
    assert bucket.wait_s(100.0) == pytest.approx(4 - BURST_S)
    assert bucket.wait_s(103.0) == pytest.approx(1 - BURST_S)
    assert bucket.wait_s(103.8) == 0.0
    bucket.take(4 * MEGABYTE, 103.8)
    assert bucket.wait_s(103.8) == pytest.approx(3.95), "0.05 s were gathered since the debt was paid"


def test_an_idle_bucket_gathers_a_quarter_of_a_second_and_no_more() -> None:
    bucket = Bucket(MEGABYTE, 0.0)
    bucket.take(MEGABYTE // 4, 3600.0)
    assert bucket.wait_s(3600.0) == 0.0, "at zero nothing is owed"
    bucket.take(1, 3600.0)
    assert bucket.wait_s(3600.0) == WAIT_S_MIN
    assert (burst_bytes(MEGABYTE), burst_bytes(1), burst_bytes(None)) == (250_000, 1, 0)


def test_another_rate_keeps_the_debt_and_pays_it_faster_or_slower() -> None:
    bucket = Bucket(MEGABYTE, 0.0)
    bucket.take(3 * MEGABYTE + 250_000, 0.0)
    bucket.change(2 * MEGABYTE, 1.0)
    assert bucket.wait_s(1.0) == pytest.approx(1.0), "2 MB are still owed"
    bucket.change(MEGABYTE // 2, 1.5)
    assert bucket.wait_s(1.5) == pytest.approx(2.0), "1 MB is still owed"
    bucket.change(None, 1.5)
    bucket.take(100 * MEGABYTE, 1.5)
    assert bucket.wait_s(1.5) == 0.0
    bucket.change(MEGABYTE, 2.0)
    bucket.take(MEGABYTE, 2.0)
    assert bucket.wait_s(2.0) == pytest.approx(1.0), "on and off gives no burst"


def test_a_clock_that_runs_backwards_pays_nothing_twice() -> None:
    bucket = Bucket(MEGABYTE, 10.0)
    bucket.take(2 * MEGABYTE + 250_000, 10.0)
    assert bucket.wait_s(9.0) == bucket.wait_s(10.0) == pytest.approx(2.0)
    assert bucket.wait_s(11.0) == pytest.approx(1.0)


def test_a_node_without_limits_lets_everything_go_and_counts_nothing() -> None:
    free = limiter()
    assert free.unlimited(UP)
    assert free.unlimited(DOWN)
    free.took(UP, ANN, PULL, 10**12, 0.0)
    assert free.wait_s(UP, ANN, PULL, 0.0) == 0.0
    assert free.statistics().counted_bytes == {"up": 0, "down": 0}


def test_the_longest_of_the_three_limits_decides_and_directions_are_apart() -> None:
    three = limiter(up="8MB/s", peer_up="2MB/s", repair_up="1MB/s")
    assert (three.unlimited(UP), three.unlimited(DOWN)) == (False, True)
    three.took(UP, ANN, REPAIR, 4 * MEGABYTE, 0.0)
    waits = {
        "ann repairs": three.wait_s(UP, ANN, REPAIR, 0.0),
        "bob repairs": three.wait_s(UP, BOB, REPAIR, 0.0),
        "ann pulls": three.wait_s(UP, ANN, PULL, 0.0),
        "bob pulls": three.wait_s(UP, BOB, PULL, 0.0),
        "down": three.wait_s(DOWN, ANN, REPAIR, 0.0),
    }
    # All began without a burst except ann's own bucket, which was made full for her first chunk.
    assert waits == {"ann repairs": 4.0, "bob repairs": 4.0, "ann pulls": 1.75, "bob pulls": 0.5, "down": 0.0}


def test_rates_follow_the_schedule() -> None:
    nightly = limiter(down="1MB/s, night=unlimited", peer_down="2MB/s")
    nightly.took(DOWN, ANN, PULL, 4 * MEGABYTE, 0.0)
    assert nightly.wait_s(DOWN, BOB, PULL, 0.0) == 4.0
    assert not nightly.tell_time(LocalTime(0, 12 * 60 + 1), 0.5), "a minute later nothing is different"
    assert nightly.tell_time(MONDAY_NIGHT, 1.0)
    assert nightly.wait_s(DOWN, BOB, PULL, 1.0) == 0.0
    assert nightly.wait_s(DOWN, ANN, PULL, 1.0) > 0, "each peer's own limit holds day and night"
    assert not nightly.unlimited(DOWN)
    assert (nightly.rates()["down"].bytes_per_s, nightly.rates()["down"].period) == (None, "night")
    assert nightly.tell_time(MONDAY_NOON, 2.0)
    nightly.took(DOWN, BOB, PULL, MEGABYTE, 2.0)
    assert nightly.wait_s(DOWN, ANN, PULL, 2.0) == 1.0


def test_limits_change_while_a_debt_is_open() -> None:
    changing = limiter(peer_up="1MB/s")
    changing.took(UP, ANN, PULL, 4 * MEGABYTE + 250_000, 0.0)
    assert changing.wait_s(UP, ANN, PULL, 0.0) == 4.0
    assert changing.change(LimitsConfig(peer_up="2MB/s"), 2.0)
    assert changing.wait_s(UP, ANN, PULL, 2.0) == 1.0
    assert changing.config == LimitsConfig(peer_up="2MB/s")
    assert changing.change(LimitsConfig(), 2.0)
    assert changing.unlimited(UP)
    assert changing.statistics().peers == {"up": 0, "down": 0}
    assert not changing.change(LimitsConfig(up="unlimited, night=1MB/s"), 2.0), "by day nothing is different"


def test_peers_are_forgotten_when_they_are_gone_or_too_many() -> None:
    many = limiter(peer_up="1MB/s")
    many.took(UP, ANN, PULL, 4 * MEGABYTE, 0.0)
    many.forget(ANN)
    assert many.wait_s(UP, ANN, PULL, 0.0) == 0.0
    for number in range(2 * PEERS_MAX):
        many.took(UP, PeerId(f"peer{number}"), PULL, MEGABYTE, 0.0)
        many.took(UP, BOB, PULL, 1, 0.0)
    assert many.statistics().peers["up"] == PEERS_MAX
    assert many.wait_s(UP, PeerId(f"peer{2 * PEERS_MAX - 1}"), PULL, 0.0) > 0
    assert many.wait_s(UP, PeerId("peer0"), PULL, 0.0) == 0.0, "the one that moved nothing for longest"


def test_what_was_held_back_is_counted_in_bytes_and_seconds() -> None:
    slow = limiter(up="1MB/s")
    slow.took(UP, ANN, PULL, 2 * MEGABYTE, 0.0)
    assert slow.wait_s(UP, BOB, PULL, 0.0) == 2.0
    assert slow.wait_s(UP, BOB, PULL, 0.5) == 1.5, "asking again is the same wait"
    assert slow.wait_s(UP, BOB, PULL, 2.0) == 0.0
    slow.took(UP, BOB, PULL, 3 * MEGABYTE, 5.0)
    told = slow.statistics()
    assert told.counted_bytes == {"up": 5 * MEGABYTE, "down": 0}
    assert told.delayed_bytes == {"up": 3 * MEGABYTE, "down": 0}
    assert told.delayed_s == {"up": 2.0, "down": 0.0}, "from 2.0 to 5.0 nothing held bob back"


def test_a_wait_that_a_change_cut_short_counts_as_long_as_it_was() -> None:
    delays: Delays[str] = Delays()
    delays.refused("bob", 4000.0, 0.0)
    delays.settle(3.0)
    delays.went("bob", 7, 1000.0)
    assert (delays.delayed_s, delays.delayed_bytes, len(delays)) == (3.0, 7, 0)


def test_who_never_comes_back_is_not_remembered_for_ever() -> None:
    delays: Delays[int] = Delays()
    for number in range(WAITING_MAX + 10):
        delays.refused(number, 1.0, float(number))
    assert (len(delays), delays.delayed_s) == (WAITING_MAX, 10.0)
