"""Partners by themselves: who gets a place, who gives way, what is remembered over transfers, who is near."""

import random
from collections.abc import Collection

import attrs
import pytest

from protocols.bits import Bits
from protocols.exchange.acquaintances import RATE_TRUSTED_S, Acquaintances
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.nearness import nearness
from protocols.exchange.paces import Paces
from protocols.exchange.partners import EMPTY_ATTACHED_S, STARVED_S, Changes, Partners, Standing, standing_of
from protocols.ids import PeerId

MIB = 1 << 20
NEAR_LABELS = ("zone", "region")


def peers(name: str, count: int) -> list[PeerId]:
    return [PeerId(f"{name}{number}") for number in range(count)]


@attrs.define
class Node:
    """One node's knowledge and the partners of one transfer, with a few words to tell what happens."""

    config: ExchangeConfig
    places: dict[str, int] = attrs.field(factory=dict)
    paces: Paces = attrs.field(init=False)
    known: Acquaintances = attrs.field(init=False)
    partners: Partners = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.paces = Paces(self.config)
        # The first letter of a name says where the peer is.
        self.known = Acquaintances(self.paces, lambda peer: self.places.get(peer[0], 0))
        self.partners = self.another_transfer()

    def another_transfer(self, seed: int = 1) -> Partners:
        return Partners(self.known, self.config, random.Random(seed))

    def look(
        self, holders: list[PeerId], now: float, *, useful: Collection[str] | None = None, needed: str = ""
    ) -> Changes:
        """A refresh in which all partners are of use unless told."""

        def standing() -> Standing:
            of_use = self.partners.attached() if useful is None else [PeerId(peer) for peer in useful]
            return Standing(of_use, {PeerId(needed)})

        return self.partners.refresh(holders, now, standing)

    def gives(self, peer: PeerId, rate_bytes_per_s: float, now: float) -> None:
        """The peer gives one chunk at this rate, which came at `now`."""
        self.paces.asked(peer, MIB, now - MIB / rate_bytes_per_s)
        self.paces.came(peer, MIB, now)
        self.paces.ended(peer, MIB, came=True)
        self.partners.gave(peer, now)


def test_places_are_filled_at_once_and_no_more_than_there_are() -> None:
    node = Node(ExchangeConfig(partners_max=3, far_partners=0))
    assert node.look(peers("a", 2), 0.0) == Changes([], node.partners.attached())
    assert sorted(node.partners.attached()) == ["a0", "a1"]
    changes = node.look(peers("a", 9), 0.25)
    assert len(changes.attached) == 1
    assert len(node.partners.attached()) == 3
    assert node.look(peers("a", 9), 0.5) == Changes([], [])


def test_the_callers_favourite_is_asked_first_and_the_rest_by_chance() -> None:
    chosen = set()
    for seed in range(40):
        partners = Partners(Node(ExchangeConfig()).known, ExchangeConfig(partners_max=4), random.Random(seed))
        attached = partners.refresh(peers("a", 100), 0.0, Standing).attached
        assert "a0" in attached
        chosen.update(attached)
    assert len(chosen) > 60, "everybody's partners must not be the same few"


def test_near_ones_get_the_places_and_some_far_ones_by_chance() -> None:
    node = Node(ExchangeConfig(partners_max=8, far_partners=2), {"z": 0, "r": 1, "e": 2})
    holders = [*peers("e", 40), *peers("r", 40), *peers("z", 40)]
    attached = node.look(holders, 0.0).attached
    assert "e0" in attached, "the favourite, which is far itself"
    far = [peer for peer in attached if peer[0] != "z"]
    assert len(far) == 2


def test_a_far_holder_that_appears_later_gets_a_place_too() -> None:
    node = Node(ExchangeConfig(partners_max=4, far_partners=1, partners_interval_s=10), {"n": 0, "f": 2})
    node.look(peers("n", 9), 0.0)
    for peer in node.partners.attached():
        node.gives(peer, 100 * MIB, 5.0)
    holders = [*peers("n", 9), PeerId("f0")]
    node.look(holders, 5.0)
    changes = node.look(holders, 20.0)
    assert changes.attached == ["f0"]
    for now in range(21, 400):
        node.look(holders, float(now))
        assert "f0" in node.partners.attached(), "no other far one could replace it"


def test_the_slowest_gives_way_and_comes_back_later() -> None:
    node = Node(ExchangeConfig(partners_max=3, far_partners=0, partners_interval_s=10))
    holders = peers("a", 3)
    node.look(holders, 0.0)
    for peer, rate in zip(holders, (50.0, 5.0, 70.0), strict=True):
        node.gives(peer, rate * MIB, 5.0)
    holders.append(PeerId("b0"))
    assert node.look(holders, 5.0) == Changes([], []), "nobody goes before it had time to prove itself"
    assert node.look(holders, 17.1) == Changes([PeerId("a1")], [PeerId("b0")])
    node.gives(PeerId("b0"), 60 * MIB, 20.0)
    assert node.look(holders, 40.0) == Changes([], []), "who waits is known to be worse than all that have a place"
    assert sorted(node.partners.attached()) == ["a0", "a2", "b0"]
    later = 5.0 + RATE_TRUSTED_S + 30
    for name in ("a0", "a2", "b0"):
        node.gives(PeerId(name), 60 * MIB, later)
    assert node.look(holders, later).attached == ["a1"], "after a long time it may have become better"


def test_the_only_holder_of_something_missing_keeps_its_place() -> None:
    node = Node(ExchangeConfig(partners_max=2, far_partners=0, partners_interval_s=10))
    node.look(peers("a", 2), 0.0)
    node.gives(PeerId("a0"), MIB, 5.0)
    node.gives(PeerId("a1"), 50 * MIB, 5.0)
    node.look(peers("a", 9), 5.0, needed="a0")
    assert node.look(peers("a", 9), 20.0, needed="a0").dropped == ["a1"]


def test_a_late_partner_is_worth_nothing() -> None:
    config = ExchangeConfig(partners_max=2, far_partners=0, partners_interval_s=10, straggler_min_s=2)
    node = Node(config)
    node.look(peers("a", 2), 0.0)
    node.gives(PeerId("a0"), 90 * MIB, 5.0)
    node.gives(PeerId("a1"), MIB, 5.0)
    node.look(peers("a", 9), 5.0)
    node.paces.asked(PeerId("a0"), MIB, 6.0)
    assert node.paces.notice_late(PeerId("a0"), MIB, 19.0)
    assert node.look(peers("a", 9), 20.0).dropped == ["a0"]


def test_who_has_nothing_gives_way_to_who_waits_and_pauses_longer_each_time() -> None:
    node = Node(ExchangeConfig(partners_max=2, far_partners=0))
    node.look([PeerId("a0"), PeerId("b0")], 0.0)
    both = [PeerId("a0"), PeerId("b0"), PeerId("c0")]
    node.partners.answered(PeerId("b0"))
    assert node.look(both, EMPTY_ATTACHED_S - 0.1, useful=["a0"]) == Changes([], [])
    assert node.look(both, EMPTY_ATTACHED_S, useful=["a0"]) == Changes([PeerId("b0")], [PeerId("c0")])
    away: list[float] = []
    now, left_at = EMPTY_ATTACHED_S, {PeerId("b0"): EMPTY_ATTACHED_S}
    while len(away) < 6:
        now += 0.25
        changes = node.look(both, now, useful=["a0"])
        for peer in changes.attached:
            away.append(now - left_at[peer])
        for peer in changes.dropped:
            left_at[peer] = now
    assert away[0] <= 6 < away[-1]


def test_where_nobody_has_anything_those_that_said_so_give_way_soon() -> None:
    node = Node(ExchangeConfig(partners_max=3, far_partners=0))
    holders = peers("a", 9)
    first = node.look(holders, 0.0).attached
    node.partners.answered(first[0])
    node.partners.answered(first[1])
    changes = node.look(holders, STARVED_S, useful=[])
    assert sorted(changes.dropped) == sorted(first[:2])
    assert next(peer for peer in holders if peer not in first) in changes.attached, "the favourite among the waiting"
    assert first[2] in node.partners.attached(), "it may answer yet"


def test_a_lost_partner_is_replaced_at_once_and_tried_again_after_a_doubling_pause() -> None:
    node = Node(ExchangeConfig(partners_max=1, far_partners=1, sources_interval_s=0.25))
    pauses, now = [], 0.0
    for _ in range(7):
        assert node.look([PeerId("a0")], now).attached == ["a0"]
        node.partners.lost(PeerId("a0"), now)
        lost_at = now
        while not node.partners.attached() and node.look([PeerId("a0")], now).attached == []:
            now += 0.05
        pauses.append(now - lost_at)
        node.partners.release_all()
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.4
    assert 6 < pauses[-1] < 10
    node.partners.lost(PeerId("b0"), now)  # one that has no place is no loss
    assert node.look([PeerId("b0")], now).attached == ["b0"]


def test_a_peer_that_proved_fast_for_one_blob_is_chosen_for_the_next() -> None:
    node = Node(ExchangeConfig(partners_max=4, far_partners=0))
    holders = peers("a", 500)
    fast = holders[200:203]
    for peer in fast:
        node.gives(peer, 500 * MIB, 1.0)
    node.gives(holders[300], MIB, 1.0)
    attached = node.another_transfer().refresh(holders, 2.0, Standing).attached
    assert set(fast) < set(attached)
    assert holders[300] not in attached, "one that proved slow comes after those that are unknown"


def test_transfers_at_a_time_share_their_partners() -> None:
    node = Node(ExchangeConfig(partners_max=4, far_partners=0))
    first = node.look(peers("a", 200), 0.0).attached
    second = node.another_transfer(seed=2).refresh(peers("a", 200), 0.0, Standing).attached
    assert sorted(first) == sorted(second), "a session each serves both"


def test_what_is_known_of_peers_is_bounded_and_the_oldest_go_first() -> None:
    paces = Paces(ExchangeConfig())
    known = Acquaintances(paces, known_max=10)
    for number in range(50):
        paces.asked(PeerId(f"a{number}"), MIB, 0.0)
        paces.came(PeerId(f"a{number}"), MIB, 1.0)
        paces.ended(PeerId(f"a{number}"), MIB, came=True)
        known.gave(PeerId(f"a{number}"), float(number))
        known.attached(PeerId("mine"))
    assert len(known) == 10
    assert known.is_partner(PeerId("mine"))
    assert known.rate_bytes_per_s(PeerId("a49"), 50.0) == MIB
    assert known.rate_bytes_per_s(PeerId("a0"), 50.0) is None
    assert paces.rate_bytes_per_s_of(PeerId("a0")) is None, "the paces forgot it too"
    assert known.rate_bytes_per_s(PeerId("a49"), 49.5 + RATE_TRUSTED_S) is None, "too long ago to say anything"


def test_who_is_of_use_and_who_is_needed() -> None:
    held = Bits(10, [0, 1])
    offers = {
        PeerId("all"): Bits.full(10),
        PeerId("same"): Bits(10, [0, 1]),
        PeerId("some"): Bits(10, [1, 2, 3, 4, 5, 6, 7, 8]),
    }
    standing = standing_of(held, offers)
    assert set(standing.useful) == {"all", "some"}
    assert set(standing.needed) == {"all"}, "nobody else has chunk 9"
    assert set(standing_of(Bits.full(10), offers).useful) == set(offers), "what is whole is only being finished"


@pytest.mark.parametrize(
    ("mine", "theirs", "rank"),
    [
        ({"zone": "a", "region": "x"}, {"zone": "a", "region": "x"}, 0),
        ({"zone": "a", "region": "x"}, {"zone": "b", "region": "x"}, 1),
        ({"zone": "a", "region": "x"}, {"zone": "a", "region": "y"}, 2),
        ({"zone": "a"}, {"zone": "a", "region": "y"}, 0),
        ({"zone": "a"}, {"zone": "b"}, 2),
        ({"region": "x"}, {"zone": "b", "region": "x"}, 1),
        ({"zone": ""}, {"zone": ""}, 2),
        ({}, {}, 2),
    ],
)
def test_nearness_goes_by_the_smallest_place_both_name(mine: dict[str, str], theirs: dict[str, str], rank: int) -> None:
    assert nearness(mine, theirs, NEAR_LABELS) == nearness(theirs, mine, NEAR_LABELS) == rank


def test_which_labels_are_places_is_the_operators_choice() -> None:
    assert nearness({"rack": "1", "room": "b"}, {"rack": "1", "room": "b"}, ("rack", "row", "room")) == 0
    assert nearness({"rack": "1", "room": "b"}, {"rack": "2", "room": "b"}, ("rack", "row", "room")) == 2
    assert nearness({"zone": "a"}, {"zone": "b"}, ()) == 0
