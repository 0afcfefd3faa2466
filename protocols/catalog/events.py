"""What happens to a catalog, and what it wants done beyond sending and timers."""

from collections.abc import Sequence

import attrs

from protocols.catalog.records import BlobEntry, Holding, Inventory, VersionRecord
from protocols.effects import Effect, Event, Received
from protocols.ids import PeerId, VersionId


@attrs.frozen
class Started(Event):
    """The node runs: begin the periodic repair."""


@attrs.frozen
class Restored(Event):
    """What an earlier run of this node kept, in any order."""

    versions: Sequence[VersionRecord] = attrs.field(repr=False)
    inventories: Sequence[Inventory] = attrs.field(repr=False)


@attrs.frozen
class PeerJoined(Event):
    """A member became alive: compare catalogs with it."""

    peer: PeerId


@attrs.frozen
class Heard(Received):
    """A message came; `wall_ms` is this host's wall clock, against which records' dates are judged."""

    wall_ms: int


@attrs.frozen
class Publish(Event):
    """This node's store holds `manifest` under `name` (its full form).

    `deliberate` when a person said so here (an add, a rollback): then it follows all heads known. Otherwise it is
    what was found in the store, and an old copy of something the catalog knows says nothing new. `created_at_ms` is
    the wall-clock date of what was found; without it, or in the future, the record is dated now.
    """

    name: str
    manifest: bytes = attrs.field(repr=False)
    blobs: tuple[BlobEntry, ...] = attrs.field(repr=False)
    message: str
    wall_ms: int
    deliberate: bool = False
    created_at_ms: int | None = None


@attrs.frozen
class Keep(Event):
    """This node takes on a version it found elsewhere (it pulls it): keep the record, whomever this node follows."""

    record: VersionRecord
    wall_ms: int


@attrs.frozen
class SetHoldings(Event):
    """What this node holds, whole; only a change is told to others."""

    holdings: Sequence[Holding] = attrs.field(repr=False)
    wall_ms: int


@attrs.frozen
class Kept(Effect):
    """A record came into the catalog; `news` when another host's."""

    record: VersionRecord | Inventory
    news: bool


@attrs.frozen
class Dropped(Effect):
    """A record left the catalog, for lack of room."""

    key: VersionId | PeerId
