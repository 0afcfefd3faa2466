"""The pure core of the catalog: what to keep, whom to tell, what to ask for.

New records spread by rumor mongering; comparing catalogs with one random member now and then (and with members that
join) repairs whatever rumors missed, so a node that was cut off for a week catches up in one exchange.
"""

import random
from collections.abc import Callable, Container, Sequence

import attrs

from protocols.catalog.clock import too_far_ahead
from protocols.catalog.config import CatalogConfig
from protocols.catalog.contents import Contents
from protocols.catalog.events import (
    Dropped,
    Heard,
    Keep,
    Kept,
    PeerJoined,
    Publish,
    Restored,
    SetHoldings,
    Started,
)
from protocols.catalog.gossip import GOSSIP, PUSH_PULL, Gossip, Key
from protocols.catalog.messages import Advert, Buckets, Keys, Records, Summary, Want
from protocols.catalog.publishing import Publisher
from protocols.catalog.records import HoldingState, Inventory, VersionRecord
from protocols.effects import Blame, Effect, Event, TimerFired
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import Digest, PeerId
from protocols.signing import Signer

CLOCK_BLAME_INTERVAL_MS = 60_000
CLOCK_BLAMES_MAX = 4096


@attrs.frozen
class CatalogCounts:
    """How large a catalog is, and what went through it since the start."""

    versions: int
    names: int
    owners: int
    holdings: int
    size_bytes: int
    learned: int
    refused: int
    let_go: int


class Catalog:
    """One node's catalog. `alive` gives the other live members; every choice is drawn from `rng`."""

    def __init__(
        self,
        config: CatalogConfig,
        peer_id: PeerId,
        signer: Signer,
        rng: random.Random,
        alive: Callable[[], Sequence[PeerId]],
    ) -> None:
        self._config = config
        self._peer_id = peer_id
        self._alive = alive
        self._contents = Contents(config, peer_id)
        self._gossip = Gossip(config, peer_id, rng, alive, self._contents)
        self._publisher = Publisher(config, peer_id, signer, self._contents)
        self._clock_blamed_at_ms: dict[PeerId, int] = {}
        self._learned = self._refused = self._let_go = 0

    def _restore(self, restored: Restored) -> list[Effect]:
        follows = self._config.follow == "all"
        for inventory in restored.inventories:
            if (follows or inventory.owner == self._peer_id) and self._contents.inventories.newer(
                inventory.owner, inventory.sequence
            ):
                self._contents.add_inventory(inventory, tuple)
        # Oldest first, so that room runs out for the same records as it did before.
        for record in sorted(restored.versions, key=lambda record: (record.clock, record.id())):
            own = record.author == self._peer_id or self.state(self._peer_id, record.manifest_digest) is not None
            if follows or own:
                self._contents.add_version(record)
                self._publisher.latest = max(self._publisher.latest, record.clock)
        return []

    # What a node asks of its catalog.

    def heads(self, name: str) -> tuple[VersionRecord, ...]:
        """The heads of a name in its full form, latest first; more than one is a conflict."""
        return self._contents.versions.heads(name)

    def head(self, name: str) -> VersionRecord | None:
        """The latest head, by clock and then by id."""
        return next(iter(self.heads(name)), None)

    def version(self, version_id: bytes) -> VersionRecord | None:
        """The record of an id."""
        return self._contents.versions.get(version_id)

    def knows(self, name: str, manifest_digest: Digest) -> bool:
        """Whether there is a version with this manifest under a name, in its full form, be it head or history."""
        return any(record.name == name for record in self._contents.versions.of_manifest(manifest_digest))

    def of_manifest(self, name: str, manifest_digest: Digest) -> VersionRecord | None:
        """The record that stands for a manifest under a name: the head with it if any, else the earliest version."""
        heads = [record for record in self.heads(name) if record.manifest_digest == manifest_digest]
        known = [record for record in self._contents.versions.of_manifest(manifest_digest) if record.name == name]
        return next(iter(heads + known), None)

    def names_of(self, manifest_digest: Digest) -> list[str]:
        """The names that have, or had, this manifest, sorted."""
        return sorted({record.name for record in self._contents.versions.of_manifest(manifest_digest)})

    def names(self) -> list[str]:
        """All names with a version, sorted, in their full form."""
        return self._contents.versions.names()

    def find(self, pattern: str) -> list[str]:
        """The names a glob matches, in display or full form, whatever the case."""
        return self._contents.versions.find(pattern)

    def providers(self, manifest_digest: Digest, alive: Callable[[PeerId], bool]) -> list[tuple[PeerId, HoldingState]]:
        """The living holders of a manifest's model, complete ones first, then by peer id."""
        return self._contents.inventories.providers(manifest_digest, alive)

    def blob_providers(self, digest: Digest, alive: Callable[[PeerId], bool]) -> list[tuple[PeerId, HoldingState]]:
        """The living holders of any model that has a blob, each with its best state, complete ones first."""
        best: dict[PeerId, HoldingState] = {}
        for manifest_digest in self._contents.versions.manifests_with_blob(digest):
            for peer, state in self.providers(manifest_digest, alive):
                if best.get(peer) != "complete":
                    best[peer] = state
        return sorted(best.items(), key=lambda item: (item[1], item[0]))

    def inventory(self, owner: PeerId) -> Inventory | None:
        """What a member says it holds."""
        return self._contents.inventories.get(owner)

    def state(self, owner: PeerId, manifest_digest: Digest) -> HoldingState | None:
        """What a member says it has of one manifest's model."""
        return self._contents.inventories.state(owner, manifest_digest)

    def counts(self) -> CatalogCounts:
        """Sizes and counters."""
        versions, inventories = self._contents.versions, self._contents.inventories
        return CatalogCounts(
            versions=len(versions),
            names=versions.name_count(),
            owners=len(inventories),
            holdings=inventories.holdings,
            size_bytes=versions.size_bytes,
            learned=self._learned,
            refused=self._refused,
            let_go=self._let_go,
        )

    # The one verb.

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at `now` (seconds, monotonic); give the effects in order.

        Raises LocalProtocolError for a version of our own that contradicts itself, RemoteProtocolError for a bad
        record to keep.
        """
        match event:
            case Heard():
                return self._hear(event, now)
            case TimerFired(name=name) if name == GOSSIP:
                return self._gossip.round()
            case TimerFired(name=name) if name == PUSH_PULL:
                return self._gossip.push_pull(now)
            case Started():
                return [self._gossip.push_pull_timer()]
            case PeerJoined(peer=peer):
                return self._gossip.joined(peer)
            case Restored():
                return self._restore(event)
            case Publish():
                published = self._publisher.version(event)
                return [] if published is None else self._keep(published, news=False)
            case Keep(record=record, wall_ms=wall_ms):
                return self._take_on(record, wall_ms)
            case SetHoldings():
                inventory = self._publisher.inventory(event.holdings, event.wall_ms)
                return [] if inventory is None else self._keep(inventory, news=False)
        raise LocalProtocolError(f"a catalog knows no event {type(event).__name__}")

    def _keep(self, record: VersionRecord | Inventory, *, news: bool) -> list[Effect]:
        let_go: Sequence[Key]
        key: Key
        if isinstance(record, VersionRecord):
            key, let_go = record.id(), self._contents.add_version(record)
            self._publisher.latest = max(self._publisher.latest, record.clock)
        else:
            key, let_go = record.owner, self._contents.add_inventory(record, self._living)
        for gone in let_go:
            self._gossip.forget(gone)
        self._let_go += len(let_go)
        dropped = [Dropped(gone) for gone in let_go if gone != key or isinstance(record, Inventory)]
        if key in let_go:
            return list(dropped)
        return [Kept(record, news), *dropped, *self._gossip.tell(key)]

    def _living(self) -> Container[PeerId]:
        return dict.fromkeys(self._alive())

    def _hear(self, event: Heard, now: float) -> list[Effect]:
        sender = event.sender
        match event.message:
            case Advert() as advert:
                return self._gossip.hear_advert(sender, advert, now)
            case Want() as want:
                return self._gossip.hear_want(sender, want)
            case Records() as records:
                return self._hear_records(sender, records, event.wall_ms)
            case Summary() as summary:
                return self._gossip.hear_summary(sender, summary)
            case Buckets() as buckets:
                return self._gossip.hear_buckets(sender, buckets)
            case Keys() as keys:
                return self._gossip.hear_keys(sender, keys, now)
        detail = f"{type(event.message).__name__} is no message of catalog gossip"
        return [Blame(sender, "catalog", detail)]

    def _hear_records(self, sender: PeerId, records: Records, wall_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        try:
            for version in records.versions:
                effects.extend(self._hear_version(version, wall_ms))
            for inventory in records.inventories:
                effects.extend(self._hear_inventory(inventory, wall_ms))
        except RemoteProtocolError as error:
            # Every member checks a record before it passes it on, so the sender itself is at fault.
            self._refused += 1
            effects.append(Blame(sender, "catalog", str(error)))
        return effects

    def _hear_version(self, record: VersionRecord, wall_ms: int) -> list[Effect]:
        follows = self._config.follow == "all" or record.author == self._peer_id
        return self._take_on(record, wall_ms) if follows else []

    def _take_on(self, record: VersionRecord, wall_ms: int) -> list[Effect]:
        if self.version(record.id()) is not None:
            return []
        record.verify()
        if too_far_ahead(record.clock, wall_ms, self._config.clock_drift_max_s):
            return self._refuse_future(record, wall_ms)
        self._learned += 1
        return self._keep(record, news=True)

    def _refuse_future(self, record: VersionRecord, wall_ms: int) -> list[Effect]:
        # Not the sender's fault: near the bound two honest clocks disagree on which side a record is.
        self._refused += 1
        blamed_at_ms = self._clock_blamed_at_ms.get(record.author)
        if blamed_at_ms is not None and abs(wall_ms - blamed_at_ms) < CLOCK_BLAME_INTERVAL_MS:
            return []
        # One blame a minute: who signs such records as fast as it can shall not fill the log.
        self._clock_blamed_at_ms.pop(record.author, None)
        self._clock_blamed_at_ms[record.author] = wall_ms
        if len(self._clock_blamed_at_ms) > CLOCK_BLAMES_MAX:
            del self._clock_blamed_at_ms[next(iter(self._clock_blamed_at_ms))]
        ahead_s = (record.clock.physical_ms - wall_ms) / 1000
        detail = f"its version of {record.name} is dated {ahead_s:.0f} s ahead of this host's clock"
        return [Blame(record.author, "clock", detail)]

    def _hear_inventory(self, inventory: Inventory, wall_ms: int) -> list[Effect]:
        if inventory.owner == self._peer_id:
            return self._hear_own_inventory(inventory, wall_ms)
        news = self._contents.inventories.newer(inventory.owner, inventory.sequence)
        if self._config.follow != "all" or not news:
            return []
        inventory.verify()
        self._learned += 1
        return self._keep(inventory, news=True)

    def _hear_own_inventory(self, inventory: Inventory, wall_ms: int) -> list[Effect]:
        if inventory == self._contents.inventories.get(self._peer_id):
            return []
        inventory.verify()
        corrected = self._publisher.refuted(inventory, wall_ms)
        return [] if corrected is None else self._keep(corrected, news=False)
