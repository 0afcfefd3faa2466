"""The holders of one blob that are known now, which of them are partners, and how each did, for a person to read."""

from collections.abc import Callable, Sequence
from random import Random

import attrs

from node.blame import BlameLedger
from protocols.exchange.acquaintances import Acquaintances
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.partners import Changes, Partners, Standing
from protocols.ids import PeerId, short_peer

Holders = Callable[[], Sequence[PeerId]]
"""The peers that presumably hold a blob, as known now, the preferred ones first."""

NOTES_SHOWN_MAX = 8
NOT_ASKED = "was not asked"
SILENT = "did not answer"


@attrs.define
class _Source:
    note: str = NOT_ASKED
    sent_wrong_bytes: bool = False


class Sources:
    """The sources of one transfer, over all that ask for it."""

    def __init__(
        self, me: PeerId, blame: BlameLedger, known: Acquaintances, config: ExchangeConfig, rng: Random
    ) -> None:
        self._me = me
        self._blame = blame
        self._partners = Partners(known, config, rng)
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
        return self._partners.attached()

    def waiting_for(self) -> list[PeerId]:
        """Who is asked now and has not said what it holds."""
        return [peer for peer in self.attached() if self._sources[peer].note == SILENT]

    def usable(self) -> list[PeerId]:
        """The known holders that are not banned."""
        return [peer for peer in self._known if not self._blame.banned(peer)]

    def refresh(self, now: float, standing: Callable[[], Standing]) -> Changes:
        """Look again: whom to detach and whom to attach, both taken as done. `standing` tells who has what."""
        known = {peer: None for holders in list(self._holders.values()) for peer in holders() if peer != self._me}
        self._known = list(known)
        for peer in known:
            self._sources.setdefault(peer, _Source())
        changes = self._partners.refresh(self.usable(), now, standing)
        for peer in changes.dropped:
            if peer not in known:
                self._sources[peer].note += ", then was no holder any more"
        for peer in changes.attached:
            self._sources[peer].note = SILENT
        return changes

    def answered(self, peer: PeerId, note: str) -> None:
        """What a source said it holds, in words that follow its name."""
        self._sources[peer].note = note
        self._partners.answered(peer)

    def gave(self, peer: PeerId, now: float) -> None:
        """A source gave a good chunk."""
        self._partners.gave(peer, now)

    def lost(self, peer: PeerId, reason: str, now: float) -> None:
        """The session with a source ended; it is tried again after a while that doubles."""
        if self._partners.is_attached(peer):
            self._partners.lost(peer, now)
            source = self._sources[peer]
            if not source.sent_wrong_bytes:
                source.note = f"was lost ({reason})"

    def release_all(self) -> list[PeerId]:
        """Who was attached; nobody is any more, and all may be attached again."""
        return self._partners.release_all()

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
