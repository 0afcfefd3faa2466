"""Partners in any world: never too many, places filled, a far one among them, nobody starved, the fast ones found."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.exchange.acquaintances import Acquaintances
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.nearness import nearness
from protocols.exchange.paces import Paces
from protocols.exchange.partners import Changes, Partners, Standing
from protocols.ids import PeerId

MIB = 1 << 20
STEP_S = 0.5


class World:
    """Plays the holders: each gives at its own rate, in its place, and some have nothing that is missing."""

    def __init__(self, config: ExchangeConfig, rates: dict[PeerId, float], places: dict[PeerId, int], seed: int):
        self.config = config
        self.rates = rates
        self.places = places
        self.paces = Paces(config)
        self.known = Acquaintances(self.paces, places.__getitem__)
        self.partners = Partners(self.known, config, random.Random(seed))
        self.holders = list(rates)
        self.useful = set(rates)
        self.needed: set[PeerId] = set()
        self.attached: set[PeerId] = set()
        self.met: set[PeerId] = set()
        self.now = 0.0

    def step(self) -> Changes:
        self.now += STEP_S
        before = set(self.attached)
        changes = self.partners.refresh(self.holders, self.now, lambda: Standing(self.useful, self.needed))
        for peer in changes.dropped:
            self.attached.remove(peer)
        for peer in changes.attached:
            assert peer not in self.attached, "nobody gets a place twice"
            self.attached.add(peer)
        assert self.attached == set(self.partners.attached())
        assert len(self.attached) <= self.config.partners_max
        kept = self.needed & before & self.useful & set(self.holders)
        assert kept <= self.attached, "who is needed keeps its place"
        self.met |= self.attached
        for peer in changes.attached:
            self.partners.answered(peer)
        for peer in self.attached & self.useful:
            self.give(peer)
        return changes

    def give(self, peer: PeerId) -> None:
        self.paces.asked(peer, MIB, self.now)
        self.paces.came(peer, MIB, self.now + MIB / self.rates[peer])
        self.paces.ended(peer, MIB, came=True)
        self.partners.gave(peer, self.now)

    def far(self, peers: set[PeerId]) -> set[PeerId]:
        nearest = min(self.places[peer] for peer in self.holders)
        return {peer for peer in peers if self.places[peer] > nearest}


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(1, 40))
    config = ExchangeConfig(
        partners_max=draw(st.integers(1, 10)), far_partners=draw(st.integers(0, 3)), partners_interval_s=2.0
    )
    names = [PeerId(f"peer{number}") for number in range(count)]
    rates = {name: draw(st.sampled_from([0.1, 1.0, 50.0])) * MIB for name in names}
    places = {name: draw(st.integers(0, 2)) for name in names}
    return World(config, rates, places, draw(st.integers(0, 2**32)))


happenings = st.lists(
    st.tuples(st.sampled_from(["nothing", "lost", "has", "lacks", "goes", "needed"]), st.integers(0, 39)),
    min_size=1,
    max_size=60,
)


@settings(max_examples=100)
@given(worlds(), happenings)
def test_never_too_many_and_no_place_empty_that_somebody_new_waits_for(
    world: World, happened: list[tuple[str, int]]
) -> None:
    everybody = list(world.rates)
    for what, number in happened:
        peer = everybody[number % len(everybody)]
        match what:
            case "lost" if peer in world.attached:
                world.partners.lost(peer, world.now)
                world.attached.remove(peer)
            case "has":
                world.useful.add(peer)
            case "lacks":
                world.useful.discard(peer)
            case "goes":
                world.holders = [other for other in everybody if (other in world.holders) != (other == peer)]
            case "needed":
                world.needed = {peer}
        world.needed &= world.useful
        world.step()
        if len(world.attached) < world.config.partners_max:
            assert set(world.holders) <= world.met, "only those that had a place already wait beside an empty one"


@settings(max_examples=60)
@given(worlds())
def test_a_far_one_keeps_a_place_wherever_there_is_one(world: World) -> None:
    for _ in range(60):
        world.step()
        full = min(world.config.partners_max, len(world.rates))
        assert len(world.attached) == full, "nobody is lost here, so all places are taken"
        wanted = min(world.config.far_partners, world.config.partners_max - 1)
        assert len(world.far(world.attached)) >= min(wanted, len(world.far(set(world.rates))))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.booleans())
def test_whoever_alone_has_what_is_missing_is_found(seed: int, others_have_some: bool) -> None:
    names = [PeerId(f"peer{number}") for number in range(100)]
    config = ExchangeConfig()
    world = World(config, dict.fromkeys(names, MIB), dict.fromkeys(names, 0), seed)
    only = random.Random(seed).choice(names)
    for step in range(400):
        # The others have something for a while; in the end only one has what is missing, and nobody knows who.
        world.useful = {only} if step > 100 or not others_have_some else {*names[:50], only}
        world.needed = {only} & world.attached
        world.step()
        if step > 100 and only in world.attached:
            break
    assert only in world.attached, f"not found within {world.now:g} s"


@settings(max_examples=5)
@given(st.integers(0, 2**32))
def test_the_fast_ones_are_found_and_kept(seed: int) -> None:
    names = [PeerId(f"peer{number}") for number in range(200)]
    rng = random.Random(seed)
    fast = set(rng.sample(names, 10))
    rates = {name: (100.0 if name in fast else rng.uniform(1.0, 5.0)) * MIB for name in names}
    world = World(ExchangeConfig(partners_max=8), rates, dict.fromkeys(names, 0), seed)
    while world.now < 3600.0:
        world.step()
    # One place is on trial, and one of the best may have been on its way back; the others are the best there are.
    assert len(world.attached & fast) >= world.config.partners_max - 2


@given(st.dictionaries(st.sampled_from("zrw"), st.sampled_from("ab")), st.permutations("zrw"))
def test_nearness_is_symmetric_and_nearest_to_oneself(labels: dict[str, str], places: list[str]) -> None:
    for other in ({}, {"z": "a"}, {"z": "a", "r": "b"}, {"z": "a", "r": "b", "w": "a"}):
        rank = nearness(labels, other, places)
        assert rank == nearness(other, labels, places)
        assert 0 <= nearness(labels, labels, places) <= rank <= len(places)
