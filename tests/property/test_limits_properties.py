"""No order of chunks, sizes, pauses and changes of the rate lets more through a bucket than it promises."""

from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.ids import PeerId
from protocols.limits.bucket import Bucket, burst_bytes
from protocols.limits.config import Direction, LimitsConfig, Purpose
from protocols.limits.limiter import Limiter
from protocols.limits.periods import DAYS, MINUTES_A_DAY, LocalTime, parse_period
from protocols.limits.rates import parse_rate, rate_text

CHUNK_BYTES_MAX = 16 << 20

rates = st.integers(1000, 10**10)
sizes = st.integers(1, CHUNK_BYTES_MAX)
pauses = st.one_of(st.just(0.0), st.floats(0, 0.01), st.floats(0, 10))
starts = st.floats(0, 1e6)
peers = st.sampled_from(["ann", "bob", "cem"])


@settings(deadline=None)
@given(rates, starts, st.lists(st.tuples(pauses, sizes), max_size=60))
def test_over_any_window_at_most_rate_and_burst_and_one_chunk_go(
    bytes_per_s: int, now: float, asks: list[tuple[float, int]]
) -> None:
    bucket = Bucket(bytes_per_s, now)
    went: list[tuple[float, int]] = []
    for pause_s, size_bytes in asks:
        now += pause_s
        now += bucket.wait_s(now)
        if bucket.wait_s(now) == 0.0:
            bucket.take(size_bytes, now)
            went.append((now, size_bytes))
    sums = [0, *accumulate(size_bytes for _, size_bytes in went)]
    for first in range(len(went)):
        for last in range(first, len(went)):
            window_s = went[last][0] - went[first][0]
            # A clock of doubles does not show times of 1e6 s to the last byte of 10 GB/s.
            slack_bytes = 1 + 1e-9 * bytes_per_s * len(went)
            allowed_bytes = bytes_per_s * window_s + burst_bytes(bytes_per_s) + went[last][1] + slack_bytes
            assert sums[last + 1] - sums[first] <= allowed_bytes


@settings(deadline=None)
@given(rates, starts, st.lists(sizes, min_size=20, max_size=60))
def test_who_always_wants_more_gets_the_whole_rate(bytes_per_s: int, began_s: float, chunks: list[int]) -> None:
    bucket, now = Bucket(bytes_per_s, began_s), began_s
    for size_bytes in chunks:
        while (wait_s := bucket.wait_s(now)) > 0:
            now += wait_s
        bucket.take(size_bytes, now)
    # The shortest wait is rounded up, and what is waited for too long is gathered: only the last one counts.
    at_most_s = sum(chunks[:-1]) / bytes_per_s + 0.002
    assert now - began_s <= at_most_s + 1e-6


slow_rates = st.integers(1000, 10**7)
short_pauses = st.sampled_from([0.0, 0.001, 0.1])


@settings(deadline=None)
@given(starts, st.lists(st.tuples(short_pauses, sizes, st.none() | slow_rates), max_size=40))
def test_changing_the_rate_gives_nothing_away(now: float, steps: list[tuple[float, int, int | None]]) -> None:
    bytes_per_s: int | None = 1_000_000
    bucket, went_bytes = Bucket(bytes_per_s, now), 0
    allowed_bytes = burst_bytes(bytes_per_s) + CHUNK_BYTES_MAX
    for pause_s, size_bytes, other in steps:
        now += pause_s
        allowed_bytes += pause_s * (bytes_per_s or 0)
        if bytes_per_s is not None and bucket.wait_s(now) == 0.0:
            bucket.take(size_bytes, now)
            went_bytes += size_bytes
        # The slack is for the times of 1e6 s, which doubles do not show to the last byte of 10 GB/s.
        assert went_bytes <= allowed_bytes + 1 + 20 * len(steps)
        bytes_per_s = other
        bucket.change(bytes_per_s, now)
        if bytes_per_s is None:
            allowed_bytes += CHUNK_BYTES_MAX  # what was owed is paid while nothing is limited


@settings(deadline=None)
@given(st.lists(st.tuples(pauses, sizes, peers, st.sampled_from(Purpose)), max_size=60))
def test_the_limiter_keeps_every_limit_at_once(asks: list[tuple[float, int, str, Purpose]]) -> None:
    config = LimitsConfig(up="9MB/s", peer_up="4MB/s", pull_up="5MB/s", repair_up="1MB/s")
    limiter, now, went = Limiter(config, LocalTime(0, 0), 0.0), 0.0, list[tuple[int, str, Purpose]]()
    for pause_s, size_bytes, peer, purpose in asks:
        now += pause_s
        if limiter.wait_s(Direction.UP, PeerId(peer), purpose, now) == 0.0:
            limiter.took(Direction.UP, PeerId(peer), purpose, size_bytes, now)
            went.append((size_bytes, peer, purpose))

    def within(bytes_per_s: int, whose: list[int]) -> bool:
        return sum(whose) <= bytes_per_s * now + burst_bytes(bytes_per_s) + CHUNK_BYTES_MAX + 1

    assert within(9_000_000, [size for size, _, _ in went])
    assert within(5_000_000, [size for size, _, purpose in went if purpose is Purpose.PULL])
    assert within(1_000_000, [size for size, _, purpose in went if purpose is Purpose.REPAIR])
    for name in ("ann", "bob", "cem"):
        assert within(4_000_000, [size for size, peer, _ in went if peer == name])
    assert limiter.statistics().counted_bytes["up"] == sum(size for size, _, _ in went)


@settings(deadline=None)
@given(st.integers(1000, 10**15))
def test_every_rate_that_is_printed_is_read_back(bytes_per_s: int) -> None:
    assert parse_rate(rate_text(bytes_per_s)) == bytes_per_s


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 6), st.integers(0, MINUTES_A_DAY - 1), st.integers(1, MINUTES_A_DAY - 1))
def test_a_period_of_a_day_holds_as_many_minutes_of_the_week_as_it_is_long(day: int, begin: int, length: int) -> None:
    end = (begin + length) % MINUTES_A_DAY
    text = f"x={DAYS[day]} {begin // 60:02d}:{begin % 60:02d}-{end // 60:02d}:{end % 60:02d}"
    period = parse_period(text)
    held = [
        weekday * MINUTES_A_DAY + minute
        for weekday in range(7)
        for minute in range(MINUTES_A_DAY)
        if period.holds(LocalTime(weekday, minute))
    ]
    week = 7 * MINUTES_A_DAY
    assert sorted((day * MINUTES_A_DAY + begin + ahead) % week for ahead in range(length)) == held
