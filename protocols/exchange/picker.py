"""Which chunk of one blob is asked of whom next.

The rules, in their order:
1. A chunk that nobody was asked for goes to a holder with room: the rarest first, this node's own place among equals.
2. Each chunk is asked once, until every chunk that is missing has been asked. Only then (the endgame) an idle holder
   is asked for a second copy of what another would give later; the copy that is not needed is cancelled.
3. A holder that is late is passed over, and what it was asked for goes to another holder that has room.
4. What a lost peer was asked for is asked of others at once.
How much may be outstanding at a peer, and when it is late, `Paces` knows.
"""

from collections.abc import Callable
from random import Random

import attrs
from blake3 import blake3

from protocols.bits import Bits
from protocols.effects import CancelTimer, Effect, Event, SetTimer, TimerFired
from protocols.errors import LocalProtocolError
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.paces import Paces
from protocols.exchange.rarity import Rarity
from protocols.ids import Digest, PeerId

COPIES_MAX = 2
"""How many holders may be asked for one chunk at a time in the endgame."""
LATE_TIMER = "late"


@attrs.frozen
class PeerReady(Event):
    """A peer holds these chunks; a second time it replaces the first, and what was asked stays asked."""

    peer: PeerId
    bits: Bits


@attrs.frozen
class PeerGained(Event):
    """A ready peer holds these chunks too."""

    peer: PeerId
    indices: tuple[int, ...]


@attrs.frozen
class PeerLost(Event):
    """A peer is gone, banned or not a source any more: nothing asked of it will come."""

    peer: PeerId


@attrs.frozen
class WantsEnded(Event):
    """Wants were answered without a chunk: cancelled as asked, or `gone` from the peer."""

    peer: PeerId
    indices: tuple[int, ...]
    gone: bool


@attrs.frozen
class ChunkArrived(Event):
    """A chunk's bytes are here, not yet checked; `ChunkWritten` or `ChunkDropped` follows."""

    peer: PeerId
    index: int


@attrs.frozen
class ChunkWritten(Event):
    """An arrived chunk was checked and stored."""

    peer: PeerId
    index: int


@attrs.frozen
class ChunkDropped(Event):
    """An arrived chunk was thrown away: its bytes were wrong, or another copy had come first."""

    peer: PeerId
    index: int


@attrs.frozen
class RoomFreed(Event):
    """More may be asked of a peer than before; of any peer when None."""

    peer: PeerId | None


@attrs.frozen
class Ask(Effect):
    """Want these chunks of a peer. `Paces.asked` has been told already."""

    peer: PeerId
    indices: tuple[int, ...]


@attrs.frozen
class Withdraw(Effect):
    """Cancel these wants at a peer; `WantsEnded` or `ChunkArrived` follows for each."""

    peer: PeerId
    indices: tuple[int, ...]


@attrs.define
class _Holder:
    mask: int
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


def own_place(me: PeerId, digest: Digest, chunk_count: int) -> int:
    """Where in the blob this node begins: anywhere, but always the same."""
    seed = blake3(f"{me} {digest}".encode()).digest(8)
    return int.from_bytes(seed, "big") % chunk_count if chunk_count else 0


class Picker:
    """One blob's transfer: `held` is what is here at the start, `sizes_bytes` the size of each chunk."""

    def __init__(
        self, sizes_bytes: tuple[int, ...], held: Bits, start: int, paces: Paces, config: ExchangeConfig, rng: Random
    ) -> None:
        self._sizes_bytes = sizes_bytes
        self._paces = paces
        self._config = config
        self._rarity = Rarity(len(sizes_bytes), start, rng)
        self._held = self._rarity.mask_of_bits(held)
        self._free = self._rarity.all ^ self._held
        self._holders: dict[PeerId, _Holder] = {}
        self._askers: dict[int, dict[PeerId, None]] = {}
        self._arrived: dict[int, int] = {}
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
        self._rarity.gained(holder.mask)
        self._fill(now, plan)

    def _peer_gained(self, event: PeerGained, now: float, plan: _Plan) -> None:
        holder = self._holders.get(event.peer)
        if holder is not None:
            more = self._rarity.mask(event.indices) & ~holder.mask
            holder.mask |= more
            self._rarity.gained(more)
            self._fill(now, plan)

    def _peer_lost(self, event: PeerLost, now: float, plan: _Plan) -> None:
        self._forget(event.peer)
        self._fill(now, plan)

    def _wants_ended(self, event: WantsEnded, now: float, plan: _Plan) -> None:
        holder = self._holders.get(event.peer)
        if holder is None:
            return
        mask = self._rarity.mask(event.indices)
        holder.cancelling &= ~mask
        if event.gone:
            self._rarity.lost(mask & holder.mask)
            holder.mask &= ~mask
        for index in event.indices:
            self._unask(event.peer, holder, index)
        self._fill(now, plan)

    def _chunk_arrived(self, event: ChunkArrived, now: float, plan: _Plan) -> None:
        self._arrived[event.index] = self._arrived.get(event.index, 0) + 1
        mask = self._rarity.bit(event.index)
        self._free &= ~mask
        holder = self._holders.get(event.peer)
        if holder is not None:
            # Cancelled wants whose chunk was on its way already end here too.
            holder.cancelling &= ~mask
            self._unask(event.peer, holder, event.index)

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

    def _fill(self, now: float, plan: _Plan, only: PeerId | None = None) -> None:
        """Ask one chunk of each peer in turn until nobody has room or nothing is left to ask."""
        if self.complete():
            return
        punctual = 0
        for peer, holder in self._holders.items():
            if not self._paces.is_late(peer, now):
                punctual |= holder.mask
        turn = [peer for peer in self._holders if only is None or peer == only]
        turn.sort(key=self._paces.outstanding_of)  # stable: ties keep the order in which the peers came
        while turn:
            turn = [peer for peer in turn if self._ask_next(peer, punctual, now, plan)]

    def _ask_next(self, peer: PeerId, punctual: int, now: float, plan: _Plan) -> bool:
        holder = self._holders[peer]
        late = self._paces.is_late(peer, now)
        candidates = self._free & holder.mask & ~holder.cancelling
        if late:
            candidates &= ~punctual
        index = self._rarity.rarest(candidates)
        if index is None and not self._free and not holder.asked and not late:
            index = self._worth_a_copy(peer, holder, now)
        if index is None or not self._paces.allows(peer, self._sizes_bytes[index], now):
            return False
        self._ask(peer, index, now, plan)
        return True

    def _worth_a_copy(self, idle: PeerId, holder: _Holder, now: float) -> int | None:
        """The endgame: of what others were asked for, the chunk that would come last; None when none is worth it."""
        best: int | None = None
        best_wait_s = 0.0
        for peer, other in self._holders.items():
            if peer == idle:
                continue
            ahead_bytes = 0
            for index in other.asked:
                ahead_bytes += self._sizes_bytes[index]
                mask = self._rarity.bit(index)
                # A copy that has come already is only waiting for the disk.
                if len(self._askers[index]) >= COPIES_MAX or index in self._arrived:
                    continue
                if not mask & holder.mask or mask & holder.cancelling or idle in self._askers[index]:
                    continue
                wait_s = self._wait_s(peer, ahead_bytes, now)
                own_s = self._paces.wait_s(idle, self._sizes_bytes[index], now) or 0.0
                if wait_s > max(own_s, best_wait_s):
                    best, best_wait_s = index, wait_s
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
                if self._paces.allows(peer, self._sizes_bytes[index], now):
                    self._withdraw(late, index, plan)
                    self._ask(peer, index, now, plan)
                    break

    def _ask(self, peer: PeerId, index: int, now: float, plan: _Plan) -> None:
        self._holders[peer].asked[index] = None
        self._askers.setdefault(index, {})[peer] = None
        self._free &= ~self._rarity.bit(index)
        self._paces.asked(peer, self._sizes_bytes[index], now)
        plan.asks.setdefault(peer, []).append(index)

    def _withdraw(self, peer: PeerId, index: int, plan: _Plan) -> None:
        holder = self._holders[peer]
        self._unask(peer, holder, index)
        holder.cancelling |= self._rarity.bit(index)
        plan.withdrawals.setdefault(peer, []).append(index)

    def _unask(self, peer: PeerId, holder: _Holder, index: int) -> None:
        if index in holder.asked:
            del holder.asked[index]
            del self._askers[index][peer]
            self._release(index)

    def _arrival_over(self, index: int) -> None:
        self._arrived[index] -= 1
        if not self._arrived[index]:
            del self._arrived[index]

    def _release(self, index: int) -> None:
        """A chunk that is neither held nor on its way may be asked again."""
        if not self._askers.get(index):
            self._askers.pop(index, None)
            if index not in self._arrived:
                self._free |= self._rarity.bit(index) & ~self._held

    def _forget(self, peer: PeerId) -> None:
        holder = self._holders.pop(peer, None)
        if holder is not None:
            for index in list(holder.asked):
                self._unask(peer, holder, index)
            self._rarity.lost(holder.mask)

    def _largest(self, holder: _Holder) -> int:
        return max(self._sizes_bytes[index] for index in holder.asked)
