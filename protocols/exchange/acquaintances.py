"""What a node knows of the peers it fetches from, over all its transfers: who is near, who proved fast, who is late.

A peer that gave well for one blob is preferred for the next. The peers that were longest of no use are forgotten.
"""

from collections.abc import Callable

import attrs

from protocols.exchange.paces import Paces
from protocols.ids import PeerId

PEERS_KNOWN_MAX = 4096
RATE_TRUSTED_S = 600.0
"""How long after its last chunk a peer's rate still says something of it."""


def alike(_peer: PeerId) -> int:
    """The nearness of everybody where nothing is known of places."""
    return 0


@attrs.define
class _Acquaintance:
    gave_at_s: float = float("-inf")
    places: int = 0


class Acquaintances:
    """One a node. `paces` measures the rates; `nearness` ranks a peer, 0 for the nearest."""

    def __init__(
        self, paces: Paces, nearness: Callable[[PeerId], int] = alike, *, known_max: int = PEERS_KNOWN_MAX
    ) -> None:
        self._paces = paces
        self._nearness = nearness
        self._known_max = known_max
        self._known: dict[PeerId, _Acquaintance] = {}

    def __len__(self) -> int:
        """How many peers are known."""
        return len(self._known)

    def nearness(self, peer: PeerId) -> int:
        """How near the peer is, 0 for the nearest."""
        return self._nearness(peer)

    def rate_bytes_per_s(self, peer: PeerId, now: float) -> float | None:
        """What the peer gave lately, over all transfers; None when it gave nothing for long."""
        known = self._known.get(peer)
        if known is None or now - known.gave_at_s > RATE_TRUSTED_S:
            return None
        return self._paces.rate_bytes_per_s_of(peer)

    def is_late(self, peer: PeerId, now: float) -> bool:
        """Whether the peer owes what it was asked for too long ago."""
        return self._paces.is_late(peer, now)

    def is_partner(self, peer: PeerId) -> bool:
        """Whether any transfer has the peer attached: a session stands, or will."""
        known = self._known.get(peer)
        return known is not None and known.places > 0

    def attached(self, peer: PeerId) -> None:
        """A transfer gave the peer a place."""
        self._touch(peer).places += 1

    def detached(self, peer: PeerId) -> None:
        """A transfer took the place back."""
        known = self._known.get(peer)
        if known is not None and known.places:
            known.places -= 1

    def gave(self, peer: PeerId, now: float) -> None:
        """A good chunk of the peer's was stored."""
        self._touch(peer).gave_at_s = now

    def _touch(self, peer: PeerId) -> _Acquaintance:
        known = self._known.pop(peer, None) or _Acquaintance()
        self._known[peer] = known  # the latest is last
        if len(self._known) > self._known_max:
            oldest = next((old for old, about in self._known.items() if not about.places and old != peer), None)
            if oldest is not None:
                del self._known[oldest]
                self._paces.forget(oldest)
        return known
