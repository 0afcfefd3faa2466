"""The benchmark's arithmetic: goals, the optimum of a swarm, medians, and what survives being written down."""

import pytest

from scripts.benchmark.bench import FULL, Bench
from scripts.benchmark.figures import (
    MIB,
    Figure,
    RowResult,
    at_least,
    at_most,
    bytes_per_s,
    in_turn,
    optimal_last_s,
    percent,
    row_document,
    row_of,
    times_faster,
)
from scripts.benchmark.rows.registry import ROWS, groups
from scripts.benchmark.rows.swarm import Swarmed, swarm_figures


def test_a_goal_knows_its_side_and_how_near_a_value_is() -> None:
    assert at_least(1.5).reached(1.5)
    assert not at_least(1.5).reached(1.49)
    assert at_most(300).reached(300)
    assert not at_most(300).reached(301)
    assert at_least(4).share(2) == pytest.approx(0.5)
    assert at_most(4).share(8) == pytest.approx(0.5)
    assert at_most(1).share(0) == float("inf")


@pytest.mark.parametrize(
    ("receivers", "pieces", "expected_s"),
    [(1, 10, 10.0), (2, 10, 11.0), (3, 10, 11.0), (8, 10, 13.0), (8, 128, 10 * (1 + 3 / 128))],
)
def test_the_last_of_a_swarm_waits_a_piece_for_each_doubling(receivers: int, pieces: int, expected_s: float) -> None:
    assert optimal_last_s(1000, 100.0, receivers, pieces) == pytest.approx(expected_s)


@pytest.mark.parametrize("wrong", [(0, 1.0, 1, 1), (1, 0.0, 1, 1), (1, 1.0, 0, 1), (1, 1.0, 1, 0)])
def test_a_swarm_of_nothing_has_no_optimum(wrong: tuple[int, float, int, int]) -> None:
    with pytest.raises(ValueError, match="a swarm has"):
        optimal_last_s(*wrong)


def test_a_ratio_is_that_of_the_medians() -> None:
    assert times_faster([1.0, 1.0, 9.0], [3.0, 2.0, 2.0]) == pytest.approx(2.0)
    assert percent(1, 0) == 0
    assert bytes_per_s(100) == 12_500_000


def test_each_round_another_peer_begins() -> None:
    assert [in_turn(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
    assert in_turn([], 3) == []


def test_a_row_reaches_its_goals_only_when_it_was_measured() -> None:
    fast, slow = Figure("fast", 2, "x", at_least(1.5)), Figure("slow", 1, "x", at_least(1.5))
    beside = Figure("beside", 0.1, "GB/s")
    assert RowResult("row", (fast, beside)).reached
    assert not RowResult("row", (fast, slow)).reached
    assert not RowResult("row", why_not="needs root").reached


def test_a_row_written_down_is_the_same_row() -> None:
    row = RowResult(
        "pair", (Figure("a", 1.25, "x", at_most(3)), Figure("b", 2, "s")), 5, 1.5, {"herd_s": [1.0, 2.0]}, "a note"
    )
    assert row_of(row_document(row)) == row


def test_a_swarm_is_judged_by_its_last_and_its_median() -> None:
    size_bytes = 10 * MIB
    rate = size_bytes / 10.0
    series = {
        "herd": [Swarmed([10.0, 12.0, 20.0], 0.5), Swarmed([10.0, 12.0, 26.0], 3.0), Swarmed([10.0, 11.0, 13.0], 0.0)],
        "libtorrent": [Swarmed([40.0, 40.0, 52.0], 0.0, seed_copies=2.0)],
    }
    figures, samples = swarm_figures(series, size_bytes, rate, 3)
    # T* is 10 s and one piece of ten more: 11 s.
    last, median, twice, seed, *others = figures
    assert last.value == pytest.approx(100 * 11 / 20)
    assert median.value == pytest.approx(100 * 10 / 12)
    assert twice.value == pytest.approx(0.5)
    assert [figure.reached for figure in (last, median, twice)] == [False, False, True]
    assert all(figure.goal is None for figure in (seed, *others))
    assert others[-1] == Figure("libtorrent, sent by the seed", 2.0, "copies")
    assert samples["herd_last_s"] == [20.0, 26.0, 13.0]
    assert samples["libtorrent_median_s"] == [40.0]


def test_rows_of_one_series_are_measured_together_and_every_row_is_in_one() -> None:
    chosen = [names for _, names in groups({"cpu", "verify", "pair-rsync"})]
    assert chosen == [["pair-rsync", "cpu"], ["verify"]]
    assert sorted(name for _, names in groups([row.name for row in ROWS]) for name in names) == sorted(
        row.name for row in ROWS
    )


def test_a_row_whose_time_is_over_ends_with_three_rounds(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    bench = Bench(tmp_path_factory.mktemp("bench"), FULL, 5, time_s=100)
    ran = []
    for number in bench.rounds(0.5):
        ran.append(number)
        now += 100
    assert ran == [0, 1, 2]
    assert list(bench.rounds(0.5)) == [0, 1, 2, 3, 4]
    ran = []
    for number in bench.rounds(0.5):
        ran.append(number)
        now += 12
    # Four rounds took 48 s; the fifth would end after the row's 50 s.
    assert ran == [0, 1, 2, 3]
