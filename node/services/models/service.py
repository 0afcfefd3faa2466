"""The life of a model in this node: add, announce, find, pull, remove.

Nothing here is ordered by anybody else: what the store holds is announced, what the network announces can be
found, and a pull takes chunks from whoever holds them. The store's events say when to announce again.
"""

import logging
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import trio

from node.errors import HerdError, NotFound, UsageError
from node.events import EventBus, EventsLost, StoreChanged
from node.facade import OnProgress, Priority, Through
from node.ports import BlobMissing, Blobs, Models, StoreError
from node.services.catalog.service import CatalogService
from node.services.discovery.service import DiscoveryService
from node.services.exchange.service import ExchangeService
from node.services.models.operations import Operations
from node.services.models.pull import Pull, Waiter, tell
from node.views import FoundModel, ModelView, Progress, ProviderView, PullReport, TransferView
from protocols.catalog.records import BlobEntry, Holding, VersionRecord
from protocols.ids import Digest, PeerId, digest_of
from protocols.manifest import parse_manifest
from protocols.names import InvalidName, ModelName

log = logging.getLogger("herd.models")

ANNOUNCE_PAUSE_S = 0.2
"""A store that changes in bursts (a first scan, many verified blobs) is announced once for each pause."""

WITHDRAW_TIMEOUT_S = 5.0
"""How long an add or a pull that ends, perhaps cancelled, may take to announce what it left; a disk may hang."""

GLOB_SIGNS = frozenset("*?[")


def parse_name(text: str) -> ModelName:
    """The name a person typed; UsageError with the grammar's own sentence."""
    try:
        return ModelName.parse(text)
    except InvalidName as error:
        raise UsageError(str(error)) from error


class ModelService:
    """Ties store, catalog, discovery and exchange together for whole models. One a node; `run` is started once."""

    def __init__(
        self,
        *,
        models: Models,
        blobs: Blobs,
        catalog: CatalogService,
        discovery: DiscoveryService,
        exchange: ExchangeService,
        bus: EventBus,
        peer_id: PeerId,
        rng: random.Random,
    ) -> None:
        self._models = models
        self._rng = rng
        self._blobs = blobs
        self._catalog = catalog
        self._discovery = discovery
        self._exchange = exchange
        self._bus = bus
        self._peer_id = peer_id
        self._pulls: dict[str, Pull] = {}
        self._waiters: dict[str, list[Waiter]] = {}
        self._operations: Operations[PullReport] | None = None
        self._announcing = trio.Lock()
        self._unstated: dict[ModelName, str] = {}
        # Names in the middle of an add, lower case, and how many adds each: what a person states is not merely found.
        self._adding: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce what the store holds whenever it changes, and be the home of the pulls, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._operations = Operations(nursery)
            with self._bus.subscribe() as events:
                task_status.started()
                await self.announce()
                async for event in events:
                    if isinstance(event, StoreChanged | EventsLost):
                        await trio.sleep(ANNOUNCE_PAUSE_S)
                        events.discard()
                        await self.announce()

    async def announce(self) -> None:
        """Tell catalog and directory what this store holds now: verified models, and those being pulled."""
        async with self._announcing:
            complete = await self._models.complete_manifests()
            modified_at = {view.name: view.modified_at for view in await self._models.models()}
            held: dict[Digest, Holding] = {}
            for pull in self._pulls.values():
                digest = pull.version.manifest_digest
                held[digest] = Holding(digest, "partial")
            for name in sorted(complete):
                manifest = complete[name]
                if self._adding[name.full().lower()] and not self._catalog.knows(name.full(), digest_of(manifest)):
                    continue
                if await self._publish_found(name, manifest, modified_at.get(name.display())):
                    digest = digest_of(manifest)
                    held[digest] = Holding(digest, "complete")
            self._unstated = {name: why for name, why in self._unstated.items() if name in complete}
            self._catalog.set_holdings([held[digest] for digest in sorted(held)])
            self._discovery.changed()

    async def _publish(
        self, name: ModelName, manifest: bytes, *, modified_at: float | None = None, deliberate: bool = False
    ) -> bool:
        """State a local model in the catalog, which knows whether that is news; False when it went away meanwhile."""
        digest = digest_of(manifest)
        if any(head.manifest_digest == digest for head in self._catalog.heads(name.full())):
            # It is stated already; the recipes, which may be large, need not be read for that.
            return True
        try:
            entries = [
                BlobEntry(blob.digest, blob.size_bytes, (await self._blobs.recipe(blob.digest)).id())
                for blob in parse_manifest(manifest).blobs()
            ]
        except BlobMissing:
            return False
        self._catalog.publish_version(
            name.full(),
            manifest,
            entries,
            created_at_ms=int(modified_at * 1000) if modified_at is not None else None,
            deliberate=deliberate,
        )
        return True

    async def _publish_found(self, name: ModelName, manifest: bytes, modified_at: float | None) -> bool:
        """As `_publish`; whether the model is held here, though the catalog may have no room for its record."""
        try:
            return await self._publish(name, manifest, modified_at=modified_at)
        except StoreError as error:
            problem, held = str(error), False
        except HerdError as error:
            # Others may know it by a record of theirs, and can then take it from here.
            problem, held = str(error), True
        if self._unstated.get(name) != problem:
            log.warning("%s is not announced: %s", name.display(), problem)
        self._unstated[name] = problem
        return held

    async def add(self, path: Path, name: str, on_progress: OnProgress | None = None) -> ModelView:
        """Make a GGUF file a model of this store and announce it. UsageError and StoreError as the store says."""
        model_name = parse_name(name)
        operation_id = uuid.UUID(int=self._rng.getrandbits(128), version=4).hex

        def hashed(done_bytes: int, size_bytes: int) -> None:
            if on_progress is not None:
                on_progress(Progress(operation_id, model_name.display(), "hashing", done_bytes, size_bytes))

        adding = model_name.full().lower()
        self._adding[adding] += 1
        try:
            view = await self._models.add_gguf(path, model_name, hashed)
            for placed, manifest in (await self._models.complete_manifests()).items():
                if placed.display() == view.name:
                    await self._publish(placed, manifest, deliberate=True)
        finally:
            self._adding[adding] -= 1
            self._adding = +self._adding
            with trio.move_on_after(WITHDRAW_TIMEOUT_S, shield=True):
                await self.announce()
        if on_progress is not None:
            on_progress(Progress(operation_id, view.name, "done", view.size_bytes, view.size_bytes))
        return view

    async def models(self) -> Sequence[ModelView]:
        """The models of this store, newest first."""
        return await self._models.models()

    async def get(self, name: str) -> ModelView:
        """One model of this store; NotFound when it is not here."""
        shown = parse_name(name).display()
        for view in await self._models.models():
            if view.name.lower() == shown.lower():
                return view
        raise NotFound(f"{shown} is not in this store; `herd find {shown}` shows who holds it")

    async def remove(self, name: str) -> None:
        """Remove a model from this store and withdraw it. UsageError while it is being pulled."""
        model_name = parse_name(name)
        if model_name.full() in self._pulls:
            raise UsageError(f"{model_name.display()} is being pulled; stop the pull first")
        await self._models.remove(model_name)
        await self.announce()

    async def discover(self, pattern: str = "*", through: Through = "auto") -> Sequence[FoundModel]:
        """The network's models whose name matches; see `node.facade.HerdNode.discover`."""
        plain = not GLOB_SIGNS & set(pattern)
        if through == "dht" and not plain:
            raise UsageError(f"{pattern!r} is a pattern; the DHT answers whole names only")
        found: list[FoundModel] = []
        if through != "dht":
            wanted = parse_name(pattern).display() if plain else pattern
            for name in self._catalog.find(wanted):
                head = self._catalog.head(name)
                if head is not None:
                    found.append(self._found(head, self._catalog_providers(head), "catalog"))
        # A version whose holders are not known here (yet) is not found: somebody else may know them.
        found = [model for model in found if model.providers]
        if through == "dht" or (through == "auto" and plain and not found):
            found = [
                self._found(answer.version, list(answer.providers), "dht")
                for answer in await self._discovery.lookup(parse_name(pattern))
            ]
        return found

    def _catalog_providers(self, version: VersionRecord) -> list[ProviderView]:
        return [ProviderView(peer, state, False) for peer, state in self._catalog.providers(version.manifest_digest)]

    def _found(self, version: VersionRecord, providers: list[ProviderView], source: str) -> FoundModel:
        local = any(provider.peer == self._peer_id and provider.state == "complete" for provider in providers)
        return FoundModel(
            name=ModelName.parse(version.name).display(),
            digest=version.manifest_digest,
            size_bytes=version.size_bytes,
            version=version.id().hex(),
            author=version.author,
            created_at=version.clock.physical_ms / 1000,
            message=version.message,
            local=local,
            source=source,
            providers=providers,
        )

    def transfers(self) -> list[TransferView]:
        """The pulls going on now."""
        return [self._pulls[name].view() for name in sorted(self._pulls)]

    async def pull(self, name: str, on_progress: OnProgress | None = None, priority: Priority = "normal") -> PullReport:
        """Fetch, verify and place a model; callers who ask for one name at once share one transfer.

        The highest priority of those who wait for it is its own.

        NotFound when nobody alive holds it, TransferFailed or VerificationFailed when the holders did not deliver.
        """
        model_name = parse_name(name)
        if self._operations is None:
            raise HerdError("the node is not running yet")
        waiters = self._waiters.setdefault(model_name.full(), [])
        waiter = Waiter.of(priority, on_progress)
        waiters.append(waiter)
        try:
            return await self._operations.share(model_name.full(), lambda: self._pull(model_name, waiters))
        finally:
            waiters.remove(waiter)
            if not waiters and not self._operations.running(model_name.full()):
                self._waiters.pop(model_name.full(), None)

    async def _pull(self, name: ModelName, waiters: Sequence[Waiter]) -> PullReport:
        operation_id = uuid.UUID(int=self._rng.getrandbits(128), version=4).hex
        tell(waiters, Progress(operation_id, name.display(), "resolving", 0, 0))
        version, answered = await self._resolve(name)
        # A node that follows no names keeps the record of what it pulls: it holds that version, it did not make one.
        self._catalog.keep_version(version)

        def sources(digest: Digest) -> list[PeerId]:
            # Whoever has the blob, in whatever model: fine-tunes share most of theirs.
            # Complete ones come first; among equals each node begins elsewhere, or all would ask the same one first.
            held = self._catalog.blob_providers(digest)
            held.sort(key=lambda holder: (holder[1], holder[0] < self._peer_id))
            return [peer for peer in dict.fromkeys([*(peer for peer, _ in held), *answered]) if peer != self._peer_id]

        pull = Pull(
            operation_id,
            version,
            sources=sources,
            exchange=self._exchange,
            blobs=self._blobs,
            models=self._models,
            bus=self._bus,
            waiters=waiters,
        )
        self._pulls[name.full()] = pull
        try:
            # Whoever pulls the same now may take from us what we already have of it.
            await self.announce()
            return await pull.run()
        finally:
            del self._pulls[name.full()]
            with trio.move_on_after(WITHDRAW_TIMEOUT_S, shield=True):
                await self.announce()

    async def _resolve(self, name: ModelName) -> tuple[VersionRecord, list[PeerId]]:
        """The version to pull and, where the DHT had to be asked, who said there that they hold it."""
        head = self._catalog.head(name.full())
        if head is not None and any(provider.peer != self._peer_id for provider in self._catalog_providers(head)):
            return head, []
        answers = await self._discovery.lookup(name)
        if answers:
            return answers[0].version, [PeerId(provider.peer) for provider in answers[0].providers]
        if head is not None and await self._held_whole(head):
            return head, []
        if head is None:
            raise NotFound(f"no member of this mesh has {name.display()}; `herd find '*'` lists what there is")
        raise NotFound(f"{name.display()} is known, but no member that holds it is alive; `herd peers` shows who is")

    async def _held_whole(self, version: VersionRecord) -> bool:
        return version.manifest in (await self._models.complete_manifests()).values()
