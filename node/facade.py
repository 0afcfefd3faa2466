"""The node as a program sees it: what `open_node` gives, what the HTTP API serves, what the CLI asks for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from node.events import EventBus
from node.views import (
    FoundModel,
    LimitsView,
    MemberView,
    ModelView,
    NodeStatus,
    Progress,
    PullReport,
    VerifyReport,
)

OnProgress = Callable[[Progress], None]
Through = Literal["auto", "catalog", "dht"]
Priority = Literal["low", "normal", "high"]


class HerdNode(Protocol):
    """A running node. Names are what people type (`llama3.2`, `bob/x:1b`); every failure is a `HerdError`."""

    events: EventBus

    def status(self) -> NodeStatus:
        """The node as a whole, now."""
        ...

    def members(self) -> Sequence[MemberView]:
        """Every known member, this node first."""
        ...

    async def add(self, path: Path, name: str, *, on_progress: OnProgress | None = None) -> ModelView:
        """Make a `.gguf` file a model of this store under `name` and announce it.

        NotFound when there is no such file, UsageError when it is none.
        """
        ...

    async def list(self) -> Sequence[ModelView]:
        """The models of this store, newest first."""
        ...

    async def get(self, name: str) -> ModelView:
        """One model of this store. NotFound when it is not here."""
        ...

    async def discover(self, pattern: str = "*", *, through: Through = "auto") -> Sequence[FoundModel]:
        """The network's models whose name matches a glob. `auto` asks the catalog, then the DHT for a plain name."""
        ...

    async def pull(
        self, name: str, *, priority: Priority = "normal", on_progress: OnProgress | None = None
    ) -> PullReport:
        """Fetch, verify and place a model. Resumes what an earlier pull left; NotFound when nobody holds it.

        What a peer can give goes to the pulls of the highest `priority` first; equals share it.
        """
        ...

    async def remove(self, name: str) -> None:
        """Remove a model from this store: manifest first, then blobs nothing else references."""
        ...

    async def verify(
        self, names: Sequence[str] = (), *, again: bool = False, on_progress: OnProgress | None = None
    ) -> VerifyReport:
        """Check models of this store, or all: what is as it was when it was last read is answered from the record.

        With `again` every byte is read and compared. What is wrong is in the report, and no longer announced.
        NotFound for a name that is not here.
        """
        ...

    def limits(self) -> LimitsView:
        """How many bytes a second may go out and come in: what is set, and what is in force now."""
        ...

    def set_limits(self, changes: Mapping[str, str]) -> LimitsView:
        """Set limits by key (`up`, `peer_down`, `pull_up`, .., `periods`) until the node stops; all of them or none.

        UsageError for an unknown key or a text that is no rate.
        """
        ...
