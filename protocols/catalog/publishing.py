"""Making this node's own records: when a version is news, what it follows, how it is dated."""

from collections.abc import Iterable

from protocols.catalog.clock import Clock, after, too_far_ahead
from protocols.catalog.config import CatalogConfig
from protocols.catalog.contents import Contents
from protocols.catalog.events import Publish
from protocols.catalog.records import HOLDINGS_MAX, SEQUENCE_MAX, Holding, Inventory, VersionRecord
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import Digest, PeerId, digest_of
from protocols.manifest import parse_manifest
from protocols.signing import Signer


class Publisher:
    """Signs for one node. `latest` follows the clocks of all records seen."""

    def __init__(self, config: CatalogConfig, peer_id: PeerId, signer: Signer, contents: Contents) -> None:
        self._config = config
        self._peer_id = peer_id
        self._signer = signer
        self._contents = contents
        self.latest = Clock(0)

    def version(self, event: Publish) -> VersionRecord | None:
        """The record to publish, or None when the catalog already says so.

        A host whose store went from a current version to another manifest has changed the model, and the new
        version follows the old one. A host that merely turns up with an old copy has not, and says nothing.
        Raises LocalProtocolError when name, manifest and blobs do not fit each other.
        """
        versions = self._contents.versions
        digest = digest_of(event.manifest)
        heads = versions.heads(event.name)
        if any(head.manifest_digest == digest for head in heads):
            return None
        if event.deliberate:
            return self._signed(event, versions.parents_for(event.name, [head.manifest_digest for head in heads]))
        held = [head.manifest_digest for head in heads if self._holds(head.manifest_digest)]
        if not held and any(record.name == event.name for record in versions.of_manifest(digest)):
            return None
        return self._signed(event, versions.parents_for(event.name, held))

    def _holds(self, manifest_digest: Digest) -> bool:
        return self._contents.inventories.state(self._peer_id, manifest_digest) == "complete"

    def _signed(self, event: Publish, parents: tuple[bytes, ...]) -> VersionRecord:
        entries = {blob.digest: blob for blob in event.blobs}
        try:
            blobs = tuple(entries[blob.digest] for blob in parse_manifest(event.manifest).blobs())
            clock = self._date(event, parents)
            record = VersionRecord(event.name, event.manifest, blobs, parents, self._peer_id, clock, event.message)
            record = record.sign(self._signer)
            record.verify()
        except (KeyError, ValueError, RemoteProtocolError) as error:
            raise LocalProtocolError(f"{event.name} cannot be published: {error!r}") from error
        return record

    def _date(self, event: Publish, parents: tuple[bytes, ...]) -> Clock:
        """After everything seen; but what was found without history is as old as it is, and follows nothing."""
        if event.created_at_ms is not None and not parents and 0 <= event.created_at_ms <= event.wall_ms:
            return Clock(event.created_at_ms)
        if too_far_ahead(self.latest, event.wall_ms, self._config.clock_drift_max_s):
            # This host's own clock was wrong once. Dated after that, everybody would refuse whatever we say.
            return Clock(event.wall_ms)
        return after(self.latest, event.wall_ms)

    def inventory(self, holdings: Iterable[Holding], wall_ms: int) -> Inventory | None:
        """The inventory to publish, or None when the last one says the same.

        A manifest held twice counts as complete if one copy is; past `HOLDINGS_MAX` partial holdings go first.
        """
        states = {holding.manifest_digest: holding for holding in holdings if holding.state == "partial"}
        states.update({holding.manifest_digest: holding for holding in holdings if holding.state == "complete"})
        chosen = sorted(states.values(), key=lambda holding: (holding.state, holding.manifest_digest))[:HOLDINGS_MAX]
        stated = tuple(sorted(chosen, key=lambda holding: holding.manifest_digest))
        last = self._contents.inventories.get(self._peer_id)
        if stated == (last.holdings if last is not None else ()):
            return None
        return self._next(stated, last.sequence if last is not None else 0, wall_ms)

    def refuted(self, foreign: Inventory, wall_ms: int) -> Inventory | None:
        """What to say when an inventory signed by ourselves comes back that we do not know: a life we forgot.

        None when it is older than what we say now.
        """
        last = self._contents.inventories.get(self._peer_id)
        if last is not None and foreign.sequence < last.sequence:
            return None
        return self._next(last.holdings if last is not None else (), foreign.sequence, wall_ms)

    def _next(self, holdings: tuple[Holding, ...], sequence: int, wall_ms: int) -> Inventory:
        return Inventory(self._peer_id, min(max(sequence + 1, wall_ms), SEQUENCE_MAX), holdings).sign(self._signer)
