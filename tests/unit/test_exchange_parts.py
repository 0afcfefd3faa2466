"""The small parts of the exchange by themselves: rarity, paces, turns, places."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bits import Bits
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.paces import LATE_S, Paces
from protocols.exchange.picker import own_place
from protocols.exchange.rarity import Rarity
from protocols.exchange.turns import ServeTurns
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


@pytest.mark.parametrize(("rate_bytes_per_s", "window_chunks"), [(1 * MIB, 2), (8 * MIB, 4), (100 * MIB, 16)])
def test_a_peer_is_asked_for_half_a_second_ahead(rate_bytes_per_s: int, window_chunks: int) -> None:
    """What waits long at a busy seed another receiver could have given meanwhile."""
    paces = Paces(ExchangeConfig(outstanding_start_bytes=2 * MIB, outstanding_bytes_max=16 * MIB))
    now, asked = 0.0, 0
    for _ in range(100):
        while paces.allows(PEER, MIB, now):
            paces.asked(PEER, MIB, now)
            asked += 1
        now += MIB / rate_bytes_per_s
        paces.came(PEER, MIB, now)
        paces.ended(PEER, MIB, came=True)
        asked -= 1
    assert asked + 1 == window_chunks


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
    while (asker := turns.next(lambda who: wants[who][0] if wants[who] else None)) is not None:
        turns.start(asker, wants[asker].pop(0))
        order.append(asker)
    assert order == ["many", "one", "many"], "two chunks of one asker at a time, and nobody waits behind twenty"
    assert turns.buffered_bytes == 30
    turns.end("many", 10)
    assert turns.next(lambda who: wants[who][0] if wants[who] else None) == "many"


def test_a_large_chunk_is_not_passed_over_for_ever() -> None:
    turns: ServeTurns[str] = ServeTurns(100)
    turns.add("large")
    turns.add("small")
    sizes = {"large": 80, "small": 30}
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


def test_own_places_differ_and_stay() -> None:
    blob = digest_of(b"blob")
    places = [own_place(PeerId(f"peer{number}"), blob, 1000) for number in range(20)]
    assert places == [own_place(PeerId(f"peer{number}"), blob, 1000) for number in range(20)]
    assert len(set(places)) > 15
    assert all(0 <= place < 1000 for place in places)
    assert own_place(PEER, blob, 0) == 0
