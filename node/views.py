"""What a node tells about itself: frozen records of JSON's own types, shared by the Python API, HTTP and the CLI.

Sizes are bytes, times are seconds (instants: seconds since 1970 in UTC), peers and digests are their text forms.
"""

from typing import Any, TypeVar

import attrs
import cattrs

T = TypeVar("T")


@attrs.frozen
class TransferView:
    """A pull that is going on."""

    operation_id: str
    model: str
    phase: str
    held_bytes: int
    size_bytes: int
    resumed_bytes: int
    sources: dict[str, int]
    seconds: float
    copied_bytes: int = 0


@attrs.frozen
class NodeStatus:
    """One node as a whole. `unverified_bytes` is what the background verification has still to read."""

    peer: str
    version: str
    addresses: list[str]
    api: str
    home: str
    models_path: str
    uptime_s: float
    members_alive: int
    members_suspect: int
    models: int
    stored_bytes: int
    free_disk_bytes: int
    unverified_bytes: int
    transfers: list[TransferView]


@attrs.frozen
class MemberView:
    """One member as this node sees it; `state` is `self`, `alive`, `suspect`, `dead` or `left`.

    `chunk_plane` is how its chunks came last: `bulk`, or `streams` with the reason; empty when none came.
    `rate_bytes_per_s` is what it gave this node lately, None when nothing; `nearness` is 0 for the same zone, by
    `exchange.near_labels`.
    """

    peer: str
    state: str
    incarnation: int
    addresses: list[str]
    labels: dict[str, str]
    free_disk_bytes: int
    models: int
    blame: dict[str, int]
    banned: bool
    chunk_plane: str = ""
    chunk_plane_reason: str = ""
    rate_bytes_per_s: float | None = None
    nearness: int | None = None


@attrs.frozen
class ModelView:
    """One model in this node's store.

    `digest` is Ollama's model id in full (`sha256:` of the manifest bytes); `state` is `verified`, `verifying`,
    `incomplete` (a blob is missing) or `damaged` (a blob's bytes are wrong), with the file and reason in `detail`.
    """

    name: str
    digest: str
    size_bytes: int
    state: str
    modified_at: float
    detail: str = ""


@attrs.frozen
class ProviderView:
    """A peer that holds a model, `complete` or `partial`; `checked` when the peer itself confirmed it."""

    peer: str
    state: str
    checked: bool


@attrs.frozen
class FoundModel:
    """One model of the network: its head version and who holds it. `source` is `catalog` or `dht`."""

    name: str
    digest: str
    size_bytes: int
    version: str
    author: str
    created_at: float
    message: str
    local: bool
    source: str
    providers: list[ProviderView]


@attrs.frozen
class Progress:
    """How far an add, a pull or a check is.

    `phase` is `resolving`, `hashing`, `fetching`, `verifying`, `writing` or `done`; bytes count the whole model,
    `sources` maps peer to bytes that came from it, `resumed_bytes` were here before this operation, `copied_bytes` were
    copied from other models here. While `verifying`, `held_bytes` says how far the check of what is all here has come.
    """

    operation_id: str
    model: str
    phase: str
    held_bytes: int
    size_bytes: int
    resumed_bytes: int = 0
    sources: dict[str, int] = attrs.field(factory=dict)
    digest: str = ""
    copied_bytes: int = 0


@attrs.frozen
class PullReport:
    """A finished pull. `fetched_bytes` travelled now, `resumed_bytes` earlier; `local_bytes` were here as whole blobs.

    `copied_bytes` were copied from other models here, chunk by chunk. The four add up to `size_bytes`.
    """

    operation_id: str
    name: str
    digest: str
    size_bytes: int
    fetched_bytes: int
    resumed_bytes: int
    local_bytes: int
    seconds: float
    sources: dict[str, int]
    verified: bool
    copied_bytes: int = 0


@attrs.frozen
class DamagedBlob:
    """A blob whose file has not the bytes of its name.

    `wrong_ranges` are begin and end (exclusive) of the wrong bytes; empty when it is not known which they are.
    """

    digest: str
    path: str
    size_bytes: int
    wrong_ranges: list[tuple[int, int]]
    detail: str


@attrs.frozen
class VerifyReport:
    """Checked models, each with its state now, and the blobs that are wrong.

    `read_bytes` were read now; `recorded_bytes` stand as they did when they were read last, and were not.
    """

    operation_id: str
    models: list[ModelView]
    damaged: list[DamagedBlob]
    read_bytes: int
    recorded_bytes: int
    seconds: float
    verified: bool


@attrs.frozen
class LimitView:
    """One limit: the setting as it was given, the rate in force now (null is unlimited), the period that decides it.

    `period` is empty when the rate of all other times is in force.
    """

    key: str
    setting: str
    bytes_per_s: int | None
    period: str


@attrs.frozen
class LimitsView:
    """All limits of a node, by its own clock's `local_time` (`fri 23:05`).

    `changed` are the keys that were set since the node started; `note` says how long they hold and how to keep them.
    """

    limits: list[LimitView]
    periods: list[str]
    local_time: str
    changed: list[str]
    note: str


def to_json(view: Any) -> dict[str, Any]:
    """A view as plain JSON data."""
    return attrs.asdict(view)


def from_json(data: Any, kind: type[T]) -> T:
    """A view from JSON data (the API's clients); raises cattrs' errors when it does not fit."""
    return cattrs.structure(data, kind)
