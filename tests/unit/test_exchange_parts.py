"""The small parts of the exchange by themselves: rarity, paces, turns, places."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bits import Bits
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.paces import LATE_S, Paces
from protocols.exchange.rarity import Rarity
from protocols.exchange.slots import SLOTS_MIN, SendSlots
from protocols.exchange.spread import PLACES_MAX, Spread, own_place, place_of
from protocols.exchange.turns import PASSED_MAX, ServeTurns
from protocols.ids import PeerId, digest_of

MIB = 1 << 20
PEER, OTHER = PeerId("peer"), PeerId("other")


def rarity(count: int, start: int = 0) -> Rarity:
    return Rarity(count, start, random.Random(1))


def test_the_rarest_comes_first_and_own_place_among_equals() -> None:
    counted = rarity(6, start=4)
    counted.gained(counted.all)
    assert counted.rarest(counted.all) == 4
    assert counted.rarest(counted.mask([0, 3])) == 0
    counted.gained(counted.mask([0, 1, 2, 4, 5]))
    assert counted.rarest(counted.all) == 3
    counted.lost(counted.mask([2]))
    assert counted.rarest(counted.mask([0, 1, 2])) == 2
    assert counted.rarest(0) is None


def test_where_others_were_first_it_goes_by_chance() -> None:
    places = set()
    for seed in range(50):
        counted = Rarity(100, 0, random.Random(seed))
        counted.gained(counted.all)
        counted.gained(counted.mask([0]))
        places.add(counted.rarest(counted.all))
    assert 0 not in places
    assert len(places) > 20


@given(st.integers(1, 80), st.data())
def test_rarity_agrees_with_plain_counting(count: int, data: st.DataObject) -> None:
    chunks = st.lists(st.integers(0, count - 1), unique=True)
    counted, holders = rarity(count, data.draw(st.integers(0, count - 1))), [0] * count
    held: list[list[int]] = data.draw(st.lists(chunks, max_size=5))
    for indices in held:
        counted.gained(counted.mask_of_bits(Bits(count, indices)))
        for index in indices:
            holders[index] += 1
    for indices in held[: len(held) // 2]:
        counted.lost(counted.mask(indices))
        for index in indices:
            holders[index] -= 1
    among = data.draw(chunks)
    found = counted.rarest(counted.mask(among))
    if not among:
        assert found is None
    else:
        assert found in among
        assert holders[found] == min(holders[index] for index in among)


def test_a_peer_is_asked_more_as_it_gives() -> None:
    paces = Paces(ExchangeConfig(outstanding_start_bytes=2 * MIB, outstanding_bytes_max=3 * MIB))
    asked = 0
    while paces.allows(PEER, MIB, 0.0):
        paces.asked(PEER, MIB, 0.0)
        asked += 1
    assert asked == 2
    paces.came(PEER, MIB, 0.1)
    assert paces.allows(PEER, MIB, 0.1), "the window grew by what came"
    paces.asked(PEER, MIB, 0.1)
    assert not paces.allows(PEER, MIB, 0.1), "what came is outstanding until it is stored"
    paces.ended(PEER, MIB, came=True)
    assert paces.allows(PEER, MIB, 0.1)
    assert paces.outstanding_bytes == 2 * MIB


@pytest.mark.parametrize(
    ("rate_bytes_per_s", "delay_s", "chunks"), [(1 * MIB, 0.01, 3), (8 * MIB, 0.1, 4), (100 * MIB, 0.1, 13)]
)
def test_a_peer_is_kept_busy_and_not_much_more(rate_bytes_per_s: int, delay_s: float, chunks: int) -> None:
    """A link in series with a delay: what is asked fills it, and two or three chunks wait."""
    paces = Paces(ExchangeConfig(outstanding_start_bytes=2 * MIB, outstanding_bytes_max=64 * MIB))
    now, came, asked = 0.0, 0, 0
    free_s = 0.0
    coming: list[float] = []
    while came < 400:
        while paces.allows(PEER, MIB, now):
            paces.asked(PEER, MIB, now)
            free_s = max(free_s, now + delay_s / 2) + MIB / rate_bytes_per_s
            coming.append(free_s + delay_s / 2)
        now = coming.pop(0)
        paces.came(PEER, MIB, now)
        paces.ended(PEER, MIB, came=True)
        came += 1
        asked = max(asked, len(coming)) if came > 300 else 0
    assert came * MIB / now > 0.9 * rate_bytes_per_s, "it never runs dry"
    assert chunks - 1 <= asked <= 1.6 * chunks


def test_many_small_chunks_are_asked_at_a_time() -> None:
    paces = Paces(ExchangeConfig())
    for _ in range(10):
        paces.asked(PEER, 300, 0.0)
        paces.came(PEER, 300, 0.1)
        paces.ended(PEER, 300, came=True)
    asked = 0
    while paces.allows(PEER, 300, 1.0):
        paces.asked(PEER, 300, 1.0)
        asked += 1
    assert asked == ExchangeConfig().outstanding_chunks_max


def test_a_lower_priority_gets_nothing_while_a_higher_one_is_hungry() -> None:
    paces = Paces(ExchangeConfig())
    paces.hunger(PEER, "urgent", 1)
    assert not paces.allows(PEER, MIB, 0.0, priority=0)
    assert paces.allows(OTHER, MIB, 0.0, priority=0)
    assert paces.allows(PEER, MIB, 0.0, priority=1)
    paces.sated(PEER, "urgent")
    assert paces.allows(PEER, MIB, 0.0, priority=0)


def test_one_chunk_may_always_be_asked_but_not_beyond_the_buffer_of_all() -> None:
    paces = Paces(ExchangeConfig(outstanding_start_bytes=MIB, receive_buffer_bytes=16 * MIB))
    assert paces.allows(PEER, 12 * MIB, 0.0)
    paces.asked(PEER, 12 * MIB, 0.0)
    assert not paces.allows(PEER, 1, 0.0)
    assert not paces.allows(OTHER, 12 * MIB, 0.0)
    assert paces.allows(OTHER, 4 * MIB, 0.0)


def test_a_peer_is_late_by_its_own_rate() -> None:
    config = ExchangeConfig(straggler_first_s=10, straggler_min_s=2, straggler_factor=8)
    paces = Paces(config)
    for _ in range(4):
        paces.asked(PEER, MIB, 0.0)
    assert not paces.notice_late(PEER, MIB, 9.9)
    assert paces.notice_late(PEER, MIB, 10.0)
    paces.came(PEER, MIB, 11.0)
    assert not paces.is_late(PEER, 11.0), "whoever gives is late no more"
    assert paces.patience_s(PEER, MIB) == 8 * 11.0
    paces.came(PEER, MIB, 11.1)
    assert paces.patience_s(PEER, MIB) < 8 * 11.0
    assert paces.notice_late(PEER, MIB, 90.0)
    assert paces.is_late(PEER, 90.0 + LATE_S - 1)
    assert not paces.is_late(PEER, 90.0 + LATE_S)


def test_a_peer_that_waits_for_our_disk_is_not_late() -> None:
    paces = Paces(ExchangeConfig())
    paces.asked(PEER, MIB, 0.0)
    paces.came(PEER, MIB, 1.0)
    assert not paces.notice_late(PEER, MIB, 1000.0)


def test_askers_take_turns() -> None:
    turns: ServeTurns[str] = ServeTurns(100)
    wants = {"many": [10] * 20, "one": [10], "none": []}
    for name in wants:
        turns.add(name)
    order: list[str] = []
    while (asker := turns.next(lambda who: (wants[who][0], 0) if wants[who] else None)) is not None:
        turns.start(asker, wants[asker].pop(0))
        order.append(asker)
    assert order == ["one", "many", "many"], "two chunks of one asker at a time, and nobody waits behind twenty"
    assert turns.buffered_bytes == 30
    turns.end("many", 10)
    assert turns.next(lambda who: (wants[who][0], 0) if wants[who] else None) == "many"


def test_a_large_chunk_is_not_passed_over_for_ever() -> None:
    turns: ServeTurns[str] = ServeTurns(100)
    turns.add("small")
    turns.add("large")
    sizes = {"large": (80, 0), "small": (30, 0)}
    turns.start("small", 30)
    assert turns.next(sizes.get) is None, "the large one's turn waits for room, and the small one behind it"
    turns.end("small", 30)
    assert turns.next(sizes.get) == "large"
    turns.start("large", 80)
    turns.remove("large")
    assert turns.next(sizes.get) is None
    turns.end("large", 80)
    assert turns.next(sizes.get) == "small"
    assert turns.buffered_bytes == 0


def test_first_copies_go_first_but_nobody_waits_for_ever() -> None:
    turns: ServeTurns[str] = ServeTurns(1000)
    turns.add("late")
    turns.add("early")
    order = []
    for _ in range(2 * PASSED_MAX):
        asker = turns.next({"early": (1, 0), "late": (1, 1)}.get)
        assert asker is not None
        turns.start(asker, 1)
        turns.end(asker, 1)
        order.append(asker)
    assert order[:5] == ["early"] * 5
    assert order.count("late") == 1


def test_askers_begin_apart_and_a_place_that_is_left_is_given_again() -> None:
    spread, blob = Spread(), digest_of(b"blob")
    turns = [spread.join(blob, name) for name in "abcdefgh"]
    assert sorted(place_of(turn, 128) for turn in turns) == [0, 16, 32, 48, 64, 80, 96, 112]
    assert [place_of(turn, 128) for turn in turns[:4]] == [0, 64, 32, 96]
    spread.part(blob, "c")
    assert spread.join(blob, "i") == 2
    assert spread.load == 8
    assert place_of(PLACES_MAX, 100_000) < 100_000
    spread.gives(blob, 3)
    assert (spread.copies(blob, 3), spread.copies(blob, 4)) == (1, 0)
    spread.gave_not(blob, 3)
    assert spread.copies(blob, 3) == 0
    for name in "abdefghi":
        spread.part(blob, name)
    assert spread.load == 0


def _sent_with(slots: SendSlots, rate_of: Callable[[int], float], chunks: int, now: float) -> float:
    for _ in range(chunks):
        seconds = MIB / rate_of(slots.count)
        now += seconds
        slots.sent(MIB, seconds * slots.count, now, waiting=True)
    return now


def test_slots_stay_few_on_one_link_and_grow_where_each_asker_is_slow() -> None:
    full = SendSlots(64)
    assert full.count == 1
    _sent_with(full, lambda _: 12 * MIB, 1000, 0.0)
    assert SLOTS_MIN <= full.count <= SLOTS_MIN + SLOTS_MIN // 2
    slow = SendSlots(64)
    _sent_with(slow, lambda count: min(20, count) * MIB, 1000, 0.0)
    assert 15 <= slow.count <= 45


def test_slots_that_are_all_stuck_get_company() -> None:
    slots, now = SendSlots(8), 0.0
    for _ in range(100):
        slots.look(now)
        now += 0.25
    assert slots.count == 8


def test_own_places_differ_and_stay() -> None:
    blob = digest_of(b"blob")
    places = [own_place(PeerId(f"peer{number}"), blob, 1000) for number in range(20)]
    assert places == [own_place(PeerId(f"peer{number}"), blob, 1000) for number in range(20)]
    assert len(set(places)) > 15
    assert all(0 <= place < 1000 for place in places)
    assert own_place(PEER, blob, 0) == 0


def test_an_asker_has_as_many_chunks_under_way_as_it_has_lanes_and_one_more() -> None:
    turns: ServeTurns[str] = ServeTurns(1000)
    lanes = {"one": 1, "four": 4, "none yet": 0}
    for asker in lanes:
        turns.add(asker)
    given: Counter[str] = Counter()
    while (served := turns.next(lambda _asker: (10, 1), lanes.__getitem__)) is not None:
        turns.start(served, 10)
        given[served] += 1
    assert given == {"one": 2, "four": 5, "none yet": 1}
