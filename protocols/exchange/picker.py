"""Which chunk of one blob is asked of whom next.

The rules, in their order:
1. A chunk that nobody was asked for goes to a holder with room: the rarest first, this node's own place among equals.
2. Each chunk is asked once, until every chunk that is missing has been asked. Only then (the endgame) an idle holder
   is asked for a second copy of what another would give later; the copy that is not needed is cancelled.
   Before that, what an idle holder could give much sooner is taken back from another, and asked when that has ended.
3. A holder that is late is passed over, and what it was asked for goes to another holder that has room.
4. What a lost peer was asked for is asked of others at once.
How much may be outstanding at a peer, and when it is late, `Paces` knows.
"""

from collections.abc import Callable
from random import Random

import attrs

from protocols.bits import Bits
from protocols.effects import CancelTimer, Effect, Event, SetTimer, TimerFired
from protocols.errors import LocalProtocolError
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import DEFAULT_PURPOSE
from protocols.exchange.paces import Paces
from protocols.exchange.picks import (
    Ask,
    ChunkArrived,
    ChunkDropped,
    ChunkWritten,
    PeerGained,
    PeerLost,
    PeerReady,
    RoomFreed,
    WantsEnded,
    Withdraw,
)
from protocols.exchange.rarity import Rarity
from protocols.exchange.spread import place_of
from protocols.ids import PeerId

COPIES_MAX = 2
"""How many holders may be asked for one chunk at a time in the endgame."""
SOONER_FACTOR, SOONER_S = 2.0, 0.1
"""A chunk is moved to an idle holder that takes less than half as long and a tenth of a second less than the other."""
LATE_TIMER = "late"


@attrs.define
class _Holder:
    mask: int
    load: int = 0
    asked: dict[int, None] = attrs.field(factory=dict)  # an ordered set: the peer answers in this order
    cancelling: int = 0


class _Plan:
    """Asks and withdrawals of one event, gathered to one effect a peer."""

    def __init__(self) -> None:
        self.asks: dict[PeerId, list[int]] = {}
        self.withdrawals: dict[PeerId, list[int]] = {}

    def effects(self) -> list[Effect]:
        withdrawn: list[Effect] = [Withdraw(peer, tuple(indices)) for peer, indices in self.withdrawals.items()]
        return withdrawn + [Ask(peer, tuple(indices)) for peer, indices in self.asks.items()]


class Picker:
    """One blob's transfer: `held` is what is here at the start, `sizes_bytes` the size of each chunk."""

    def __init__(
        self,
        sizes_bytes: tuple[int, ...],
        held: Bits,
        start: int,
        paces: Paces,
        config: ExchangeConfig,
        rng: Random,
        priority: int = 0,
        purpose: str = DEFAULT_PURPOSE,
    ) -> None:
        self.priority, self._purpose = priority, purpose
        self._sizes_bytes = sizes_bytes
        self._paces = paces
        self._config = config
        self._rarity = Rarity(len(sizes_bytes), start, rng)
        self._held = self._rarity.mask_of_bits(held)
        self._free = self._rarity.all ^ self._held
        self._holders: dict[PeerId, _Holder] = {}
        self._askers: dict[int, dict[PeerId, None]] = {}
        self._arrived: dict[int, int] = {}
        self._asked = 0
        self._returning = 0
        self._promised: dict[PeerId, int] = {}
        self._placed_by: PeerId | None = None
        self._begun = False
        self._timer_set = False
        self._handlers: dict[type[Event], Callable[..., None]] = {
            PeerReady: self._peer_ready,
            PeerGained: self._peer_gained,
            PeerLost: self._peer_lost,
            WantsEnded: self._wants_ended,
            ChunkArrived: self._chunk_arrived,
            ChunkWritten: self._chunk_written,
            ChunkDropped: self._chunk_dropped,
            RoomFreed: self._room_freed,
            TimerFired: self._timer_fired,
        }

    def complete(self) -> bool:
        """Whether every chunk is stored."""
        return self._held == self._rarity.all

    def asked_of(self, peer: PeerId) -> tuple[int, ...]:
        """What a peer was asked for and has not answered."""
        holder = self._holders.get(peer)
        return () if holder is None else tuple(holder.asked)

    def end(self) -> None:
        """Nothing more will be asked: transfers of lower priority may."""
        for peer in self._holders:
            self._paces.sated(peer, self)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at `now` in seconds; give Ask, Withdraw and timer effects."""
        handler = self._handlers.get(type(event))
        if handler is None:
            raise LocalProtocolError(f"the picker does not know {type(event).__name__}")
        plan = _Plan()
        handler(event, now, plan)
        effects = plan.effects()
        waiting = any(holder.asked for holder in self._holders.values())
        if waiting and not self._timer_set:
            effects.append(SetTimer(LATE_TIMER, self._config.straggler_min_s / 2))
        elif self._timer_set and not waiting:
            effects.append(CancelTimer(LATE_TIMER))
        self._timer_set = waiting
        return effects

    # What happened

    def _peer_ready(self, event: PeerReady, now: float, plan: _Plan) -> None:
        holder = self._holders.setdefault(event.peer, _Holder(0))
        self._rarity.lost(holder.mask)
        holder.mask = self._rarity.mask_of_bits(event.bits)
        holder.load = event.load
        self._rarity.gained(holder.mask)
        self._take_place(event)
        self._fill(now, plan)

    def _peer_gained(self, event: PeerGained, now: float, plan: _Plan) -> None:
        holder = self._holders.get(event.peer)
        if holder is not None:
            more = self._rarity.mask(event.indices) & ~holder.mask
            holder.mask |= more
            holder.load = event.load
            self._rarity.gained(more)
            self._unburden(event.peer, event.indices, now, plan)
            # Others can give no more than before, and news like this come oftenest of all.
            self._fill(now, plan, event.peer)

    def _peer_lost(self, event: PeerLost, now: float, plan: _Plan) -> None:
        self._forget(event.peer)
        self._fill(now, plan)

    def _wants_ended(self, event: WantsEnded, now: float, plan: _Plan) -> None:
        holder = self._holders.get(event.peer)
        if holder is None:
            return
        mask = self._rarity.mask(event.indices)
        if event.gone:
            self._rarity.lost(mask & holder.mask)
            holder.mask &= ~mask
        for index in event.indices:
            self._unask(event.peer, holder, index)
        holder.cancelling &= ~mask
        self._fill(now, plan)

    def _chunk_arrived(self, event: ChunkArrived, now: float, plan: _Plan) -> None:
        self._begun = True
        self._arrived[event.index] = self._arrived.get(event.index, 0) + 1
        mask = self._rarity.bit(event.index)
        self._free &= ~mask
        holder = self._holders.get(event.peer)
        if holder is not None:
            # Cancelled wants whose chunk was on its way already end here too.
            self._unask(event.peer, holder, event.index)
            holder.cancelling &= ~mask

    def _chunk_written(self, event: ChunkWritten, now: float, plan: _Plan) -> None:
        self._arrival_over(event.index)
        mask = self._rarity.bit(event.index)
        self._held |= mask
        self._free &= ~mask
        for peer in list(self._askers.get(event.index, ())):
            self._withdraw(peer, event.index, plan)
        self._fill(now, plan)

    def _chunk_dropped(self, event: ChunkDropped, now: float, plan: _Plan) -> None:
        self._arrival_over(event.index)
        self._release(event.index)
        self._fill(now, plan)

    def _room_freed(self, event: RoomFreed, now: float, plan: _Plan) -> None:
        self._fill(now, plan, event.peer)

    def _timer_fired(self, event: TimerFired, now: float, plan: _Plan) -> None:
        self._timer_set = False
        # All are looked at before anything moves: nothing may be asked of one that turns out late, and be taken back.
        late = [
            peer
            for peer, holder in self._holders.items()
            if holder.asked and self._paces.notice_late(peer, self._largest(holder), now)
        ]
        for peer in late:
            self._ask_others_instead(peer, self._holders[peer], now, plan)
        self._fill(now, plan)

    # What to do about it

    def _take_place(self, event: PeerReady) -> None:
        """Begin where a holder of the whole says, all askers by the same holder's word, before anything has come."""
        if not event.bits.complete() or self._begun or (self._placed_by or event.peer) < event.peer:
            return
        self._placed_by = event.peer
        self._rarity.begin_at(place_of(event.turn, len(self._sizes_bytes)))

    def _fill(self, now: float, plan: _Plan, only: PeerId | None = None) -> None:
        """Ask one chunk of each peer in turn until nobody has room or nothing is left to ask."""
        if self.complete():
            return self.end()
        punctual = 0
        for peer, holder in self._holders.items():
            if not self._paces.is_late(peer, now):
                punctual |= holder.mask
        turn = [peer for peer in self._holders if only is None or peer == only]
        # Stable: ties keep the order in which the peers came.
        turn.sort(key=lambda peer: (self._paces.outstanding_of(peer), self._holders[peer].load))
        # What is moved from one peer to another comes before any copy: a copy is for when nothing else is left to ask.
        for copies in (False, True):
            left = turn
            while left:
                left = [peer for peer in left if self._ask_next(peer, punctual, now, plan, copies=copies)]

    def _ask_next(self, peer: PeerId, punctual: int, now: float, plan: _Plan, *, copies: bool) -> bool:
        holder = self._holders[peer]
        late = self._paces.is_late(peer, now)
        candidates = self._free & holder.mask & ~holder.cancelling
        if late:
            candidates &= ~punctual
        index = self._rarity.rarest(candidates, self._free)
        if index is None and not holder.asked and not late:
            index = self._relief(peer, holder, now, plan, copies=copies)
        if index is None:
            self._paces.sated(peer, self)
            return False
        if not self._paces.allows(peer, self._sizes_bytes[index], now, self.priority, self._purpose):
            self._paces.hunger(peer, self, self.priority)
            return False
        self._ask(peer, index, now, plan)
        return True

    def _unburden(self, peer: PeerId, indices: tuple[int, ...], now: float, plan: _Plan) -> None:
        """Take back, from whoever has other chunks to give that are free, what this peer can give from now on too.

        It is asked again only when the want has ended: nothing comes twice.
        """
        if self._paces.is_late(peer, now):
            return
        for index in indices:
            if index in self._arrived:
                continue
            for giver in list(self._askers.get(index, ())):
                other = self._holders[giver]
                if giver != peer and self._free & other.mask & ~other.cancelling:
                    self._take_back(giver, index, plan)

    def _take_back(self, peer: PeerId, index: int, plan: _Plan) -> None:
        holder, mask = self._holders[peer], self._rarity.bit(index)
        if not holder.cancelling & mask:
            holder.cancelling |= mask
            self._returning |= mask
            plan.withdrawals.setdefault(peer, []).append(index)

    def _relief(self, idle: PeerId, holder: _Holder, now: float, plan: _Plan, *, copies: bool) -> int | None:
        """What others were asked for and an idle holder would give much sooner: take it back, or in the endgame give
        the chunk to ask a copy of.
        """
        if not holder.mask & self._asked:
            return None
        if self._promised.get(idle, -1) in self._askers:
            return None  # What was taken back for it has not ended yet.
        self._promised.pop(idle, None)
        worth = self._worth_moving(idle, holder, now)
        if worth is None:
            return None
        giver, index = worth
        other = self._holders[giver]
        if index in plan.asks.get(giver, ()):
            return None  # It is on its way to the other; there will be another look.
        if index != next(iter(other.asked)) and not self._paces.is_late(giver, now):
            if not copies:
                self._promised[idle] = index
                self._take_back(giver, index, plan)
            return None
        return index if copies and not self._free and not self._returning else None

    def _worth_moving(self, idle: PeerId, holder: _Holder, now: float) -> tuple[PeerId, int] | None:
        """Of what others were asked for, the chunk that would come last, and from whom; None when none is worth it."""
        best: tuple[PeerId, int] | None = None
        best_wait_s = 0.0
        for peer, other in self._holders.items():
            if peer == idle:
                continue
            ahead_bytes = 0
            for index in other.asked:
                ahead_bytes += self._sizes_bytes[index]
                mask = self._rarity.bit(index)
                # A copy that has come already is only waiting for the disk.
                if len(self._askers[index]) >= COPIES_MAX or index in self._arrived or mask & self._returning:
                    continue
                if not mask & holder.mask or mask & holder.cancelling or idle in self._askers[index]:
                    continue
                wait_s = self._wait_s(peer, ahead_bytes, now)
                own_s = self._paces.wait_s(idle, self._sizes_bytes[index], now) or 0.0
                if wait_s > max(SOONER_FACTOR * own_s + SOONER_S, best_wait_s):
                    best, best_wait_s = (peer, index), wait_s
        return best

    def _wait_s(self, peer: PeerId, ahead_bytes: int, now: float) -> float:
        wait_s = self._paces.wait_s(peer, ahead_bytes, now)
        # Nothing is known of a peer that gave nothing yet, and nothing good of a late one.
        return float("inf") if wait_s is None or self._paces.is_late(peer, now) else wait_s

    def _ask_others_instead(self, late: PeerId, holder: _Holder, now: float, plan: _Plan) -> None:
        for index in list(holder.asked):
            if any(not self._paces.is_late(peer, now) for peer in self._askers[index]):
                # The endgame has asked another already; a third would be one too many.
                self._withdraw(late, index, plan)
                continue
            mask = self._rarity.bit(index)
            for peer, other in self._holders.items():
                able = other.mask & mask and not other.cancelling & mask and index not in other.asked
                if not able or self._paces.is_late(peer, now):
                    continue
                if self._paces.allows(peer, self._sizes_bytes[index], now, self.priority, self._purpose):
                    self._withdraw(late, index, plan)
                    self._ask(peer, index, now, plan)
                    break

    def _ask(self, peer: PeerId, index: int, now: float, plan: _Plan) -> None:
        self._holders[peer].asked[index] = None
        self._askers.setdefault(index, {})[peer] = None
        self._free &= ~self._rarity.bit(index)
        self._asked |= self._rarity.bit(index)
        self._paces.asked(peer, self._sizes_bytes[index], now, self._purpose)
        plan.asks.setdefault(peer, []).append(index)

    def _withdraw(self, peer: PeerId, index: int, plan: _Plan) -> None:
        self._take_back(peer, index, plan)
        self._unask(peer, self._holders[peer], index)

    def _unask(self, peer: PeerId, holder: _Holder, index: int) -> None:
        if index in holder.asked:
            del holder.asked[index]
            del self._askers[index][peer]
            if holder.cancelling & self._rarity.bit(index):
                self._returning &= ~self._rarity.bit(index)
            self._release(index)

    def _arrival_over(self, index: int) -> None:
        self._arrived[index] -= 1
        if not self._arrived[index]:
            del self._arrived[index]

    def _release(self, index: int) -> None:
        """A chunk that is neither held nor on its way may be asked again."""
        if not self._askers.get(index):
            self._askers.pop(index, None)
            self._asked &= ~self._rarity.bit(index)
            if index not in self._arrived:
                self._free |= self._rarity.bit(index) & ~self._held

    def _forget(self, peer: PeerId) -> None:
        holder = self._holders.pop(peer, None)
        if holder is not None:
            for index in list(holder.asked):
                self._unask(peer, holder, index)
            self._rarity.lost(holder.mask)
        self._paces.sated(peer, self)

    def _largest(self, holder: _Holder) -> int:
        return max(self._sizes_bytes[index] for index in holder.asked)
