"""The ledger of broken rules: who, what, how often, and until when a peer is kept at a distance."""

import logging
from collections import Counter

import attrs
import trio

from node.events import EventBus, PeerBlamed
from protocols.ids import PeerId

log = logging.getLogger("herd.blame")

PEERS_MAX = 4096
"""Strangers at the door choose their own ids, so the table forgets who was blamed longest ago."""

TOLD_PER_PEER_MAX = 20
TOLD_PERIOD_S = 60.0
"""So much blame of one peer is logged and told in such a time; all of it is counted. A member breaks a thousand rules a
second if it wants to, and must not fill the disk with our log."""

BAN_S = 300.0
"""How long a peer that sent wrong bytes is not asked for chunks again."""


@attrs.frozen
class BlameView:
    """What `herd peers` shows of one peer's record: counts per reason, and whether it is banned now."""

    counts: dict[str, int]
    banned: bool


class BlameLedger:
    """Counts blame per peer and reason, for the PEERS_MAX peers blamed last; bans run out by themselves."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._counts: dict[PeerId, Counter[str]] = {}
        self._total: Counter[str] = Counter()
        self._banned_until_s: dict[PeerId, float] = {}
        self._told: dict[PeerId, tuple[float, int]] = {}

    def blame(self, peer: PeerId, reason: str, detail: str, *, ban: bool = False) -> None:
        """Count one broken rule; `reason` is a short fixed word, `detail` a sentence; `ban` keeps it away."""
        counts = self._counts.pop(peer, Counter())
        self._counts[peer] = counts
        counts[reason] += 1
        self._total[reason] += 1
        if len(self._counts) > PEERS_MAX:
            forgotten = next(iter(self._counts))
            del self._counts[forgotten]
            self._banned_until_s.pop(forgotten, None)
            self._told.pop(forgotten, None)
        banned_anew = ban and not self.banned(peer)
        if ban:
            self._banned_until_s[peer] = trio.current_time() + BAN_S
        if not self._may_tell(peer) and not banned_anew:
            return
        log.warning("blamed %s for %s (%d times): %s", peer, reason, counts[reason], detail)
        self._bus.publish(PeerBlamed(peer, reason, detail, counts[reason]))

    def _may_tell(self, peer: PeerId) -> bool:
        since_s, told = self._told.get(peer, (-TOLD_PERIOD_S, 0))
        if trio.current_time() - since_s >= TOLD_PERIOD_S:
            since_s, told = trio.current_time(), 0
        self._told[peer] = since_s, told + 1
        return told < TOLD_PER_PEER_MAX

    def banned(self, peer: PeerId) -> bool:
        """Whether chunks may not be asked of this peer now."""
        return trio.current_time() < self._banned_until_s.get(peer, 0.0)

    def view(self, peer: PeerId) -> BlameView:
        """The peer's record; an unknown peer has an empty one."""
        return BlameView(dict(self._counts.get(peer, {})), self.banned(peer))

    def statistics(self) -> dict[str, int]:
        """Total counts per reason over all peers, since the node started."""
        return dict(self._total)
