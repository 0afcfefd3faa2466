"""Whom one blob is asked of: the holders that are known now, how each did, and who is tried next."""

from collections.abc import Callable, Sequence
from random import Random

import attrs

from node.blame import BlameLedger
from protocols.exchange.config import ExchangeConfig
from protocols.ids import PeerId, short_peer

Holders = Callable[[], Sequence[PeerId]]
"""The peers that presumably hold a blob, as known now, the preferred ones first."""

RETRY_S_MAX = 8.0
EMPTY_ATTACHED_S = 5.0
"""How long a peer that has nothing of the blob keeps a place that another holder waits for."""
NOTES_SHOWN_MAX = 8
NOT_ASKED = "was not asked"


@attrs.define
class _Source:
    note: str = NOT_ASKED
    attached_at_s: float | None = None
    empty: bool = True
    failures: int = 0
    retry_at_s: float = float("-inf")
    sent_wrong_bytes: bool = False


class Sources:
    """The sources of one transfer, over all that ask for it."""

    def __init__(self, me: PeerId, blame: BlameLedger, config: ExchangeConfig, rng: Random) -> None:
        self._me = me
        self._blame = blame
        self._config = config
        self._rng = rng
        self._holders: dict[object, Holders] = {}
        self._sources: dict[PeerId, _Source] = {}
        self._known: list[PeerId] = []

    def add(self, key: object, holders: Holders) -> None:
        """Ask these holders too, until `remove`."""
        self._holders[key] = holders

    def remove(self, key: object) -> None:
        """Whoever asked under this key waits no longer."""
        self._holders.pop(key, None)

    def attached(self) -> list[PeerId]:
        """Who is asked now."""
        return [peer for peer, source in self._sources.items() if source.attached_at_s is not None]

    def waiting_for(self) -> list[PeerId]:
        """Who is asked now and has not said what it holds."""
        return [peer for peer in self.attached() if self._sources[peer].note == "did not answer"]

    def usable(self) -> list[PeerId]:
        """The known holders that are not banned."""
        return [peer for peer in self._known if not self._blame.banned(peer)]

    def refresh(self, now: float) -> tuple[list[PeerId], list[PeerId]]:
        """Look again: whom to detach and whom to attach, both taken as done."""
        known = {peer: None for holders in list(self._holders.values()) for peer in holders() if peer != self._me}
        self._known = list(known)
        for peer in known:
            self._sources.setdefault(peer, _Source())
        usable = self.usable()
        gone = [peer for peer in self.attached() if peer not in usable]
        ready = [p for p in usable if self._sources[p].attached_at_s is None and self._sources[p].retry_at_s <= now]
        places = self._config.peers_per_blob_max - (len(self.attached()) - len(gone))
        if len(ready) > places:
            gone += self._empty_ones(gone, len(ready) - places, now)
            places = self._config.peers_per_blob_max - (len(self.attached()) - len(gone))
            ready = self._some_of(ready, places)
        for peer in gone:
            self._sources[peer].attached_at_s = None
            if peer not in known:
                self._sources[peer].note += ", then was no holder any more"
        for peer in ready:
            self._sources[peer].attached_at_s = now
            self._sources[peer].empty = True
            self._sources[peer].note = "did not answer"
        return gone, ready

    def answered(self, peer: PeerId, note: str, *, empty: bool) -> None:
        """What a source said it holds, in words that follow its name."""
        source = self._sources[peer]
        source.note, source.empty = note, empty

    def gave(self, peer: PeerId) -> None:
        """A source gave a good chunk: its earlier failures are forgiven."""
        self._sources[peer].failures = 0

    def lost(self, peer: PeerId, reason: str, now: float) -> None:
        """The session with a source ended; it is tried again after a while that doubles."""
        source = self._sources[peer]
        if source.attached_at_s is None:
            return
        source.attached_at_s = None
        if not source.sent_wrong_bytes:
            source.note = f"was lost ({reason})"
        pause_s = min(RETRY_S_MAX, self._config.sources_interval_s * 2.0**source.failures)
        source.retry_at_s = now + pause_s * self._rng.uniform(0.8, 1.2)
        source.failures += 1

    def release_all(self) -> list[PeerId]:
        """Who was attached; nobody is any more, and all may be attached again."""
        attached = self.attached()
        for peer in attached:
            self._sources[peer].attached_at_s = None
        return attached

    def wrong(self, peer: PeerId, note: str) -> None:
        """A source sent what does not match its hash."""
        source = self._sources.setdefault(peer, _Source())
        source.note, source.sent_wrong_bytes = note, True

    def all_wrong(self) -> bool:
        """Whether every known source sent wrong bytes."""
        return bool(self._known) and all(self._sources[peer].sent_wrong_bytes for peer in self._known)

    def story(self) -> str:
        """What each source did, for a person."""
        told = []
        for peer, source in self._sources.items():
            before = source.note == NOT_ASKED and self._blame.banned(peer)
            told.append(f"{short_peer(peer)} {'is banned for what it sent before' if before else source.note}")
        if not told:
            return "no holder is known"
        more = len(told) - NOTES_SHOWN_MAX
        return "; ".join(told[:NOTES_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")

    def _empty_ones(self, gone: list[PeerId], count: int, now: float) -> list[PeerId]:
        empty: list[PeerId] = []
        for peer in self.attached():
            source = self._sources[peer]
            attached_at_s = source.attached_at_s
            if peer in gone or not source.empty or attached_at_s is None:
                continue
            if now - attached_at_s >= EMPTY_ATTACHED_S and len(empty) < count:
                source.retry_at_s = now + EMPTY_ATTACHED_S
                empty.append(peer)
        return empty

    def _some_of(self, ready: list[PeerId], count: int) -> list[PeerId]:
        # Half by preference, half by chance: the same preferred few would be everybody's.
        preferred = ready[: (count + 1) // 2]
        return preferred + self._rng.sample(ready[len(preferred) :], count - len(preferred))
