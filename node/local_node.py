"""The node as programs see it: `node.facade.HerdNode` over the running services."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import trio

from node.blame import BlameLedger
from node.config import HerdConfig
from node.errors import HerdError
from node.events import EventBus
from node.facade import OnProgress, Priority, Through
from node.ports import Transport, TransportError
from node.services.catalog.service import CatalogService
from node.services.exchange.planes import Planes
from node.services.exchange.service import ExchangeService
from node.services.limits.service import LimitsService
from node.services.membership.service import MembershipService
from node.services.models.service import ModelService, parse_name
from node.store.store import Store
from node.views import FoundModel, LimitsView, MemberView, ModelView, NodeStatus, PullReport, VerifyReport
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId


@attrs.define(kw_only=True)
class LocalNode:
    """One running node. Made by `node.app.open_node`; `api` is the URL of its HTTP API once that is served."""

    config: HerdConfig
    version: str
    peer_id: PeerId
    events: EventBus
    blame: BlameLedger
    store: Store
    transport: Transport
    membership: MembershipService
    catalog: CatalogService
    exchange: ExchangeService
    models: ModelService
    planes: Planes | None
    limiting: LimitsService
    started_s: float = attrs.field(factory=trio.current_time)
    api: str = ""

    def status(self) -> NodeStatus:
        """The node as a whole, now."""
        states = [member.state for member in self.membership.members()]
        figures = self.store.statistics()
        return NodeStatus(
            peer=self.peer_id,
            version=self.version,
            addresses=[f"{address}/p2p/{self.peer_id}" for address in self.transport.addresses()],
            api=self.api,
            home=str(self.config.home),
            models_path=str(self.store.layout.models),
            uptime_s=trio.current_time() - self.started_s,
            members_alive=states.count("alive"),
            members_suspect=states.count("suspect"),
            models=figures.models,
            stored_bytes=figures.stored_bytes,
            free_disk_bytes=figures.free_disk_bytes,
            unverified_bytes=figures.unverified_bytes,
            transfers=self.models.transfers(),
        )

    def members(self) -> Sequence[MemberView]:
        """Every known member, this node first."""
        views, now = [], trio.current_time()
        for member in self.membership.members():
            record, blame = member.record, self.blame.view(member.peer)
            plane = self.planes.plane_of(member.peer) if self.planes is not None else None
            views.append(
                MemberView(
                    peer=member.peer,
                    state=member.state,
                    incarnation=record.incarnation,
                    addresses=[f"{address}/p2p/{member.peer}" for address in record.addresses],
                    labels=dict(record.labels),
                    free_disk_bytes=record.free_disk_bytes,
                    models=self.catalog.holdings_count(member.peer),
                    blame=blame.counts,
                    banned=blame.banned,
                    chunk_plane=plane.name if plane is not None else "",
                    chunk_plane_reason=plane.reason if plane is not None else "",
                    rate_bytes_per_s=self.exchange.known.rate_bytes_per_s(member.peer, now),
                    nearness=self.exchange.known.nearness(member.peer),
                )
            )
        return views

    async def add(self, path: Path, name: str, *, on_progress: OnProgress | None = None) -> ModelView:
        """Make a `.gguf` file a model of this store under `name` and announce it."""
        return await self.models.add(path, name, on_progress)

    async def list(self) -> Sequence[ModelView]:
        """The models of this store, newest first."""
        return await self.models.models()

    async def get(self, name: str) -> ModelView:
        """One model of this store. NotFound when it is not here."""
        return await self.models.get(name)

    async def discover(self, pattern: str = "*", *, through: Through = "auto") -> Sequence[FoundModel]:
        """The network's models whose name matches a glob."""
        try:
            return await self.models.discover(pattern, through)
        except (TransportError, RemoteProtocolError) as error:
            raise HerdError(f"the directory could not be asked for {pattern}: {error}") from error

    async def pull(
        self, name: str, *, priority: Priority = "normal", on_progress: OnProgress | None = None
    ) -> PullReport:
        """Fetch, verify and place a model."""
        try:
            return await self.models.pull(name, on_progress, priority)
        except (TransportError, RemoteProtocolError) as error:
            raise HerdError(f"{name} could not be pulled: {error}") from error

    async def remove(self, name: str) -> None:
        """Remove a model from this store."""
        await self.models.remove(name)

    async def verify(
        self, names: Sequence[str] = (), *, again: bool = False, on_progress: OnProgress | None = None
    ) -> VerifyReport:
        """Check models of this store, or all."""
        return await self.store.verify([parse_name(name) for name in names], again=again, on_progress=on_progress)

    def limits(self) -> LimitsView:
        """What is limited, and what is in force now."""
        return self.limiting.current()

    def set_limits(self, changes: Mapping[str, str]) -> LimitsView:
        """Set limits until the node stops."""
        return self.limiting.change(changes)
