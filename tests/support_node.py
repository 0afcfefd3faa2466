"""A node without a network: the facade's promises kept in memory, for tests of what is built upon them."""

import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import trio

from node.api.config import ApiConfig
from node.api.server import serve_api
from node.errors import NotFound, UsageError
from node.events import EventBus, TransferEnded
from node.facade import OnProgress, Priority, Through
from node.metrics import Metrics
from node.services.limits.service import LimitsService
from node.services.models.operations import Operations
from node.views import (
    DamagedBlob,
    FoundModel,
    LimitsView,
    MemberView,
    ModelView,
    NodeStatus,
    Progress,
    ProviderView,
    PullReport,
    VerifyReport,
)
from protocols.limits.config import LimitsConfig

PEER = "12D3KooWFakeNodeItself1111111111111111111111111111111"
BOB = "12D3KooWBob11111111111111111111111111111111111111111"
MEGABYTE = 1_000_000
FRIDAY_NIGHT = time.struct_time((2026, 1, 2, 23, 5, 0, 4, 2, 0))


class FakeNode:
    """Holds models by name; `remote` names can be pulled from Bob, in `steps` of a megabyte each `step_s`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.events = EventBus()
        self.api = ""
        self.models: dict[str, ModelView] = {}
        self.remote: dict[str, int] = {"llama3.2:latest": 3 * MEGABYTE}
        self.failure: BaseException | None = None
        self.free_disk_bytes = 10**12
        self.steps = 3
        self.step_s = 0.0
        self.copied_bytes = 0
        self.damaged: dict[str, DamagedBlob] = {}
        self.pulls_started = 0
        self.pulls_cancelled = 0
        self.pull_cancelled = trio.Event()
        self._limits = LimitsService(LimitsConfig(), lambda: FRIDAY_NIGHT, Path("/fake/herd.toml"))
        self._held: dict[str, int] = {}
        self._operations: Operations[Any] = Operations(nursery)
        self._listeners: dict[str, list[OnProgress]] = {}

    def status(self) -> NodeStatus:
        self._fail()
        return NodeStatus(
            peer=PEER,
            version="0.1.0",
            addresses=["/ip4/127.0.0.1/tcp/4701"],
            api=self.api,
            home="/fake/home",
            models_path="/models",
            uptime_s=61.5,
            members_alive=1,
            members_suspect=0,
            models=len(self.models),
            stored_bytes=sum(model.size_bytes for model in self.models.values()),
            free_disk_bytes=self.free_disk_bytes,
            unverified_bytes=0,
            transfers=[],
        )

    def members(self) -> Sequence[MemberView]:
        self._fail()
        return [
            MemberView(
                PEER, "self", 1, ["/ip4/127.0.0.1/tcp/4701"], {"zone": "a"}, 10**12, len(self.models), {}, False
            ),
            MemberView(BOB, "alive", 3, ["/ip4/10.0.0.2/tcp/4701"], {}, 5 * 10**11, 1, {"chunk": 2}, True),
        ]

    async def add(self, path: Path, name: str, *, on_progress: OnProgress | None = None) -> ModelView:
        self._fail()
        if not await trio.Path(path).is_file():
            raise NotFound(f"{path}: no such file")
        data = await trio.Path(path).read_bytes()
        if not data.startswith(b"GGUF"):
            raise UsageError(f"{path}: not a GGUF file")
        if on_progress is not None:
            on_progress(Progress("add-1", name, "hashing", len(data), len(data)))
        await trio.lowlevel.checkpoint()
        return self._place(name, len(data))

    def _place(self, name: str, size_bytes: int) -> ModelView:
        digest = "sha256:" + hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()
        self.models[name] = ModelView(name, digest, size_bytes, "verified", 1_700_000_000.0)
        return self.models[name]

    async def list(self) -> Sequence[ModelView]:
        self._fail()
        await trio.lowlevel.checkpoint()
        return list(self.models.values())

    async def get(self, name: str) -> ModelView:
        self._fail()
        await trio.lowlevel.checkpoint()
        if name not in self.models:
            raise NotFound(f"{name}: no such model in this store; `herd pull {name}` fetches it")
        return self.models[name]

    async def discover(self, pattern: str = "*", *, through: Through = "auto") -> Sequence[FoundModel]:
        self._fail()
        await trio.lowlevel.checkpoint()
        source = "dht" if through == "dht" else "catalog"
        return [
            FoundModel(
                name,
                "sha256:" + "0" * 64,
                size,
                "v1",
                BOB,
                1.0,
                "",
                False,
                source,
                [ProviderView(BOB, "complete", True)],
            )
            for name, size in self.remote.items()
            if fnmatchcase(name, pattern) or fnmatchcase(name.partition(":")[0], pattern)
        ]

    async def pull(
        self, name: str, *, priority: Priority = "normal", on_progress: OnProgress | None = None
    ) -> PullReport:
        self._fail()
        if name not in self.remote:
            raise NotFound(f"{name}: nobody in the mesh holds it")
        listeners = self._listeners.setdefault(name, [])
        if on_progress is not None:
            listeners.append(on_progress)
        try:
            report = await self._operations.share(name, lambda: self._fetch(name))
        finally:
            if on_progress is not None:
                listeners.remove(on_progress)
        assert isinstance(report, PullReport)
        return report

    async def _fetch(self, name: str) -> PullReport:
        self.pulls_started += 1
        size, resumed = self.remote[name], self._held.get(name, 0)
        held = resumed
        try:
            while held < size:
                await trio.sleep(self.step_s)  # real time: a served node's sockets know no clock that jumps
                self._fail()
                held = self._held[name] = min(size, held + size // self.steps)
                progress = Progress("pull-1", name, "fetching", held, size, resumed, {BOB: held - resumed})
                for tell in self._listeners[name]:
                    tell(progress)
        except trio.Cancelled:
            self.pulls_cancelled += 1
            self.pull_cancelled.set()
            raise
        model = self._place(name, size)
        sources = {BOB: held - resumed - self.copied_bytes}
        self.events.publish(TransferEnded("pull-1", name, "verified", "", 0.5, sources))
        fetched, copied = held - resumed - self.copied_bytes, self.copied_bytes
        return PullReport("pull-1", name, model.digest, size, fetched, resumed, 0, 0.5, sources, True, copied)

    async def remove(self, name: str) -> None:
        self._fail()
        await self.get(name)
        del self.models[name]

    async def verify(
        self, names: Sequence[str] = (), *, again: bool = False, on_progress: OnProgress | None = None
    ) -> VerifyReport:
        self._fail()
        models = [await self.get(name) for name in names] or list(self.models.values())
        size = sum(model.size_bytes for model in models)
        if again and on_progress is not None:
            on_progress(Progress("verify-1", f"{len(models)} models", "verifying", size // 2, size))
            await trio.sleep(self.step_s)  # real time: a served node's sockets know no clock that jumps
        damaged = [self.damaged[model.name] for model in models if model.name in self.damaged]
        read, recorded = (size, 0) if again else (0, size)
        return VerifyReport("verify-1", models, damaged, read, recorded, 0.5, not damaged)

    def limits(self) -> LimitsView:
        self._fail()
        return self._limits.current()

    def set_limits(self, changes: Mapping[str, str]) -> LimitsView:
        self._fail()
        return self._limits.change(changes)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def served_node(config: ApiConfig | None = None) -> AsyncIterator[tuple[FakeNode, str]]:
    """A fake node behind the real API on a free loopback port: (node, URL)."""
    async with trio.open_nursery() as nursery:
        node = FakeNode(nursery)
        node.api = await nursery.start(serve_api, node, config or ApiConfig(listen="127.0.0.1:0"), Metrics("0.1.0"))
        yield node, node.api
        nursery.cancel_scope.cancel()
