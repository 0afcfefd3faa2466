"""Whom one blob is asked of: a small set of partners out of all its holders, bettered while it is used.

The rules, in their order:
1. Whoever is no holder any more loses its place. Free places are filled at once.
2. While no partner has anything, one place goes to whom the caller names first. `far_partners` places go by chance to
   peers that are not among the nearest, or a place whose peers ask only each other would be an island. The others go
   by what a peer presumably gives: its measured rate, halved for each step of distance; an unknown rate counts as an
   average one.
3. A partner that has nothing of what is missing gives way to a waiting holder after a while, a short one where no
   partner has anything.
4. Every `partners_interval_s` the least useful partner of a full set gives way, once it had as long to prove itself:
   to a holder known to be better, else to an untried one by chance. So what proves better stays, and in the long run
   one place is on trial while the others are the best that were found.
5. The only partner with a chunk that is missing stays, and so does a far one that no other far one can replace.
6. What gave way may come back after a pause that doubles, and its chances are halved each time.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import nlargest
from random import Random

import attrs

from protocols.bits import Bits
from protocols.exchange.acquaintances import Acquaintances
from protocols.exchange.config import ExchangeConfig
from protocols.ids import PeerId

EMPTY_ATTACHED_S = 5.0
"""How long a partner that has nothing of what is missing keeps a place that another holder waits for."""
STARVED_S = 1.0
"""The same where no partner has anything that is missing, for those that have said so."""
LOST_PAUSE_S_MAX = 8.0
DROPPED_PAUSE_S_MAX = 60.0
TRIED_SHARE = 0.75
"""How much of `partners_interval_s` a partner has to prove itself: less than the shortest time between two trials."""
BETTER_FACTOR = 1.25
"""How much better a holder must be known to be than a partner to take its place: rates are never measured alike."""
STEP_FACTOR = 0.5
"""What a step of distance does to the worth of a peer, and a place that it had to give up to its chances."""
DROPS_COUNTED_MAX = 6


@attrs.frozen
class Standing:
    """Which partners hold anything that is missing here, and which of them are the only ones to hold some of it."""

    useful: Collection[PeerId] = ()
    needed: Collection[PeerId] = ()


@attrs.frozen
class Changes:
    """Who lost a place and who got one. Both are taken as done."""

    dropped: list[PeerId]
    attached: list[PeerId]


@attrs.define
class _Holder:
    attached_at_s: float | None = None
    useful_at_s: float = 0.0
    answered: bool = False
    failures: int = 0
    drops: int = 0
    retry_at_s: float = float("-inf")


class _Look:
    """One look at the holders. How far they are is found out only where something is to be decided."""

    def __init__(self, known: Acquaintances, usable: Mapping[PeerId, None], waiting: dict[PeerId, None], now: float):
        self.now = now
        self.waiting = waiting
        self._known = known
        self._usable = usable
        self._nearest: int | None = None

    def nearness(self, peer: PeerId) -> int:
        return self._known.nearness(peer)

    def is_far(self, peer: PeerId) -> bool:
        if self._nearest is None:
            self._nearest = min(map(self._known.nearness, self._usable))
        return self.nearness(peer) > self._nearest

    def far_count(self, peers: Iterable[PeerId]) -> int:
        return sum(map(self.is_far, peers))

    def is_rated(self, peer: PeerId) -> bool:
        return self._known.rate_bytes_per_s(peer, self.now) is not None

    def worth(self, peer: PeerId, unknown: float = 0.0) -> float:
        """What a peer presumably gives; `unknown` is the rate of one that was never measured."""
        rate = self._known.rate_bytes_per_s(peer, self.now)
        if rate is None:
            rate = unknown
        elif self._known.is_late(peer, self.now):
            return 0.0
        return rate * STEP_FACTOR ** self.nearness(peer)


def standing_of(held: Bits, offers: Mapping[PeerId, Bits]) -> Standing:
    """From what is held here and by each partner, all cut by one recipe. Cheap: a few operations on large integers."""
    full = (1 << (8 * len(held.to_bytes()))) - 1
    missing = full ^ _mask(held)
    if held.complete():
        return Standing(tuple(offers))
    masks = {peer: _mask(bits) & missing for peer, bits in offers.items()}
    once = twice = 0
    for mask in masks.values():
        twice |= once & mask
        once |= mask
    alone = once & ~twice
    return Standing(
        {peer for peer, mask in masks.items() if mask}, {peer for peer, mask in masks.items() if mask & alone}
    )


def _mask(bits: Bits) -> int:
    return int.from_bytes(bits.to_bytes(), "big")


class Partners:
    """The partners of one transfer. `known` is what the node knows of peers over all transfers."""

    def __init__(self, known: Acquaintances, config: ExchangeConfig, rng: Random) -> None:
        self._known = known
        self._config = config
        self._rng = rng
        self._holders: dict[PeerId, _Holder] = {}
        self._attached: dict[PeerId, None] = {}
        self._trial_at_s: float | None = None

    def attached(self) -> list[PeerId]:
        """Who has a place now."""
        return list(self._attached)

    def is_attached(self, peer: PeerId) -> bool:
        """Whether the peer has a place."""
        return peer in self._attached

    def refresh(self, holders: Sequence[PeerId], now: float, standing: Callable[[], Standing]) -> Changes:
        """Look again at all usable holders, the caller's favourites first; `standing` is asked only when it matters."""
        usable = dict.fromkeys(holders)
        changes = Changes([peer for peer in self._attached if peer not in usable], [])
        for peer in changes.dropped:
            self._release(peer)
        waiting = {peer: None for peer in usable if self._may_come(peer, now)}
        if not waiting:
            return changes
        look = _Look(self._known, usable, waiting, now)
        self._fill(look, changes, starved=not self._attached)
        if look.waiting:
            stands = standing()
            self._replace_idle(look, changes, stands)
            self._replace_worst(look, changes, stands)
        return changes

    def answered(self, peer: PeerId) -> None:
        """A partner said what it has."""
        if peer in self._attached:
            self._holders[peer].answered = True

    def gave(self, peer: PeerId, now: float) -> None:
        """A good chunk of the peer's was stored: its earlier failures are forgiven."""
        self._known.gave(peer, now)
        holder = self._holders.get(peer)
        if holder is not None:
            holder.failures, holder.useful_at_s = 0, now

    def lost(self, peer: PeerId, now: float) -> None:
        """The session with a partner ended; it is tried again after a pause that doubles."""
        if peer not in self._attached:
            return
        self._release(peer)
        holder = self._holders[peer]
        pause_s = min(LOST_PAUSE_S_MAX, self._config.sources_interval_s * 2.0**holder.failures)
        holder.retry_at_s = now + pause_s * self._rng.uniform(0.8, 1.2)
        holder.failures += 1

    def release_all(self) -> list[PeerId]:
        """Who was attached; nobody is any more, and all may be attached again."""
        attached = self.attached()
        for peer in attached:
            self._release(peer)
        return attached

    # The rules

    def _fill(self, look: "_Look", changes: Changes, *, starved: bool) -> None:
        count = min(self._config.partners_max - len(self._attached), len(look.waiting))
        if count <= 0:
            return
        chosen: dict[PeerId, None] = {next(iter(look.waiting)): None} if starved else {}
        far = [peer for peer in look.waiting if look.is_far(peer) and peer not in chosen]
        lacking = self._far_wanted() - look.far_count([*self._attached, *chosen])
        chosen |= dict.fromkeys(self._by_chance(far, min(lacking, count - len(chosen)), self._chances))
        if len(chosen) < count:
            rest = [peer for peer in look.waiting if peer not in chosen]
            chosen |= dict.fromkeys(self._most_promising(rest, count - len(chosen), look))
        for peer in chosen:
            self._attach(peer, look, changes)

    def _replace_idle(self, look: "_Look", changes: Changes, stands: Standing) -> None:
        now = look.now
        for peer in self._attached:
            if peer in stands.useful:
                self._holders[peer].useful_at_s = now
        starved = not any(peer in stands.useful for peer in self._attached)
        idle = [peer for peer in self._attached if now - self._holders[peer].useful_at_s >= self._idle_s(peer, starved)]
        for peer in idle[: len(look.waiting)]:
            if look.is_far(peer) and not self._far_may_go(look):
                continue
            self._drop(peer, now, EMPTY_ATTACHED_S, changes)
        # None of those that were dropped is among the waiting, so all the places are taken again.
        self._fill(look, changes, starved=starved)

    def _idle_s(self, peer: PeerId, starved: bool) -> float:
        return STARVED_S if starved and self._holders[peer].answered else EMPTY_ATTACHED_S

    def _replace_worst(self, look: "_Look", changes: Changes, stands: Standing) -> None:
        now = look.now
        if self._trial_at_s is None:
            self._trial_at_s = now + self._interval_s()
        full = len(self._attached) >= self._config.partners_max
        if now < self._trial_at_s or not full or not look.waiting:
            return
        self._trial_at_s = now + self._interval_s()
        worst, worth = self._worst(look, stands)
        if worst is None:
            return
        far = [peer for peer in look.waiting if look.is_far(peer)]
        far_count = look.far_count(self._attached)
        newcomer: PeerId | None
        if far and far_count < self._far_wanted():
            [newcomer] = self._by_chance(far, 1, self._chances)
        else:
            far_for_far = look.is_far(worst) and far_count <= self._far_wanted()
            newcomer = self._newcomer(far if far_for_far else look.waiting, look, worth)
        if newcomer is not None:
            self._drop(worst, now, self._config.partners_interval_s, changes)
            self._attach(newcomer, look, changes)

    def _worst(self, look: "_Look", stands: Standing) -> tuple[PeerId | None, float]:
        far_may_go = self._far_may_go(look)
        tried_s = TRIED_SHARE * self._config.partners_interval_s
        tried = {
            # A partner is worth nothing where nothing that it has is missing.
            peer: (look.worth(peer) if peer in stands.useful else 0.0, self._attached_at_s(peer))
            for peer in self._attached
            if look.now - self._attached_at_s(peer) >= tried_s
            and peer not in stands.needed
            and (far_may_go or not look.is_far(peer))
        }
        worst = min(tried, key=lambda peer: tried[peer], default=None)
        return worst, 0.0 if worst is None else tried[worst][0]

    def _newcomer(self, among: Collection[PeerId], look: "_Look", worth: float) -> PeerId | None:
        rated = {peer: look.worth(peer) for peer in among if look.is_rated(peer)}
        best = max(rated, key=lambda peer: rated[peer], default=None)
        if best is not None and rated[best] > worth * BETTER_FACTOR:
            return best
        untried = [peer for peer in among if peer not in rated]
        chosen = self._by_chance(untried, 1, lambda peer: self._chances(peer) * STEP_FACTOR ** look.nearness(peer))
        return chosen[0] if chosen else None

    def _most_promising(self, peers: Iterable[PeerId], count: int, look: "_Look") -> list[PeerId]:
        rates = {peer: self._known.rate_bytes_per_s(peer, look.now) for peer in [*peers, *self._attached]}
        measured = [rate for rate in rates.values() if rate is not None]
        average = sum(measured) / len(measured) if measured else 1.0

        def promise(peer: PeerId) -> tuple[float, bool, float]:
            worth = look.worth(peer, average) * self._chances(peer)
            # Among equals who is a partner for another blob, over the session there is; then by chance.
            return worth, self._known.is_partner(peer), self._rng.random()

        return nlargest(count, peers, key=promise)

    # Bookkeeping

    def _far_wanted(self) -> int:
        return min(self._config.far_partners, self._config.partners_max - 1)

    def _far_may_go(self, look: "_Look") -> bool:
        return look.far_count(self._attached) > self._far_wanted() or any(map(look.is_far, look.waiting))

    def _interval_s(self) -> float:
        # By chance a little off, or all the swarm would change its partners at once.
        return self._config.partners_interval_s * self._rng.uniform(0.8, 1.2)

    def _attached_at_s(self, peer: PeerId) -> float:
        attached_at_s = self._holders[peer].attached_at_s
        return 0.0 if attached_at_s is None else attached_at_s

    def _may_come(self, peer: PeerId, now: float) -> bool:
        holder = self._holders.get(peer)
        return holder is None or (peer not in self._attached and holder.retry_at_s <= now)

    def _attach(self, peer: PeerId, look: "_Look", changes: Changes) -> None:
        holder = self._holders.setdefault(peer, _Holder())
        holder.attached_at_s = holder.useful_at_s = look.now
        holder.answered = False
        self._attached[peer] = None
        self._known.attached(peer)
        del look.waiting[peer]
        changes.attached.append(peer)

    def _drop(self, peer: PeerId, now: float, pause_s: float, changes: Changes) -> None:
        self._release(peer)
        holder = self._holders[peer]
        pause_s = min(DROPPED_PAUSE_S_MAX, pause_s * 2.0 ** min(holder.drops, DROPS_COUNTED_MAX))
        holder.retry_at_s = now + pause_s * self._rng.uniform(0.8, 1.0)
        holder.drops += 1
        changes.dropped.append(peer)

    def _release(self, peer: PeerId) -> None:
        del self._attached[peer]
        self._holders[peer].attached_at_s = None
        self._known.detached(peer)

    def _chances(self, peer: PeerId) -> float:
        holder = self._holders.get(peer)
        return 1.0 if holder is None else STEP_FACTOR ** min(holder.drops, DROPS_COUNTED_MAX)

    def _by_chance(self, peers: Iterable[PeerId], count: int, weight: Callable[[PeerId], float]) -> list[PeerId]:
        # The `count` highest of random() ** (1 / weight) are a weighted sample (Efraimidis and Spirakis, 2006).
        keys = {peer: self._rng.random() ** (1.0 / weight(peer)) for peer in peers} if count > 0 else {}
        return nlargest(count, keys, key=lambda peer: keys[peer])
