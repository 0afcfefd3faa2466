"""Finding models without a catalog, and being found: the directory's records, and checking what it answers.

The directory (a DHT) is told of every model this node holds: name -> signed head, manifest -> this node. What it
answers is a claim: a head counts by its author's signature, a provider by its own word, asked over an authenticated
stream.
"""

import logging
from collections.abc import Callable, Sequence

import attrs
import trio

from node.blame import BlameLedger
from node.errors import NotFound
from node.ports import Directory, FoundProvider, Transport, TransportError
from node.services.catalog.service import CatalogService
from node.services.discovery.announcements import Announcements
from node.views import ProviderView
from protocols.catalog.clock import Clock
from protocols.catalog.config import DiscoveryConfig
from protocols.catalog.keys import manifest_key, name_key, pack_head, read_head
from protocols.catalog.records import HeadRecord, VersionRecord
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest, PeerId
from protocols.names import ModelName

log = logging.getLogger("herd.discovery")

PACED_TIMEOUT_S = 60.0
"""An announcement may wait for its turn (servers take ten in ten seconds) before it is said."""

INTRODUCTIONS_MAX = 4096


@attrs.frozen
class FoundVersion:
    """What a lookup found: a version, checked, and the providers that confirmed they hold it, complete ones first."""

    version: VersionRecord
    providers: tuple[ProviderView, ...]


@attrs.frozen
class DiscoveryStatistics:
    """Totals since the start; `pending` is what nobody in the directory took yet."""

    announced: int
    failed: int
    pending: int
    lookups: int
    providers_confirmed: int
    providers_refused: int


@attrs.define
class _Counts:
    lookups: int = 0
    confirmed: int = 0
    refused: int = 0


class DiscoveryService:
    """One a node. `alive` gives the live members: their addresses come from membership, never from the directory."""

    def __init__(
        self,
        directory: Directory,
        catalog: CatalogService,
        transport: Transport,
        peer_id: PeerId,
        config: DiscoveryConfig,
        blame: BlameLedger,
        alive: Callable[[], Sequence[PeerId]],
    ) -> None:
        self._directory = directory
        self._catalog = catalog
        self._transport = transport
        self._peer_id = peer_id
        self._config = config
        self._blame = blame
        self._alive = alive
        interval_s, retry_s = config.reprovide_interval_s, config.retry_interval_s
        self._heads: Announcements[HeadRecord] = Announcements(
            self._put, interval_s=interval_s, retry_s=retry_s, timeout_s=config.call_timeout_s
        )
        self._holdings: Announcements[Digest] = Announcements(
            self._provide, interval_s=interval_s, retry_s=retry_s, timeout_s=PACED_TIMEOUT_S + config.call_timeout_s
        )
        self._joined_in, self._joined_out = trio.open_memory_channel[tuple[PeerId, tuple[str, ...]]](INTRODUCTIONS_MAX)
        self._counts = _Counts()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce what this node holds, and introduce members to the directory, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._config.enabled:
                nursery.start_soon(self._heads.run)
                nursery.start_soon(self._holdings.run)
                nursery.start_soon(self._introduce_all)
            task_status.started()
            await trio.sleep_forever()

    def changed(self) -> None:
        """What this node holds, or its heads, may have changed: announce what is new."""
        heads: dict[str, HeadRecord] = {}
        dated: list[tuple[Clock, Digest]] = []
        for holding in self._catalog.holdings():
            digest, date = holding.manifest_digest, Clock(0)
            for name in self._catalog.names_of(digest):
                head, version = self._catalog.head(name), self._catalog.of_manifest(name, digest)
                if head is not None:
                    heads[name] = head.head()
                if version is not None:
                    date = max(date, version.clock)
            dated.append((date, digest))
        # Servers take few announcements at a time; what was made last is what others wait for.
        newest_first = [digest for _, digest in sorted(dated, reverse=True)]
        self._heads.want(dict(sorted(heads.items(), key=lambda item: item[1].clock, reverse=True)))
        self._holdings.want({digest: digest for digest in newest_first})

    def peer_joined(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """A member became alive: it takes part in the directory."""
        try:
            self._joined_in.send_nowait((peer, tuple(addresses)))
        except trio.WouldBlock:
            log.info("%s is not introduced to the DHT: too many members came at once", peer)

    async def lookup(self, name: ModelName) -> list[FoundVersion]:
        """The newest version of a name by the directory's word, with the providers that confirmed it themselves.

        Takes at most `lookup_timeout_s`; what was confirmed until then counts. Empty when nobody confirmed anything.
        Providers that answer falsely are blamed, those out of reach or without the model are left out.
        """
        self._counts.lookups += 1
        confirmed: list[tuple[VersionRecord, ProviderView]] = []
        head: HeadRecord | None = None
        with trio.move_on_after(self._config.lookup_timeout_s):
            head = await self._find_head(name)
            if head is None:
                return []
            providers = await self._find_providers(head)
            if head.author not in (self._peer_id, *(provider.peer for provider in providers)):
                # Who made a version likely holds it, even where its turn to say so in the directory has not come.
                providers.append(FoundProvider(head.author, ()))
            limit = trio.CapacityLimiter(self._config.checks_at_once_max)
            async with trio.open_nursery() as nursery:
                for provider in providers:
                    nursery.start_soon(self._check, head, provider, limit, confirmed)
        if head is None or not confirmed:
            return []
        # All have the head's name and manifest; the head's own record is best, else the earliest that says the same.
        head_id = head.version_id
        version = min(
            (version for version, _ in confirmed),
            key=lambda record: (record.id() != head_id, record.clock, record.id()),
        )
        views = sorted((view for _, view in confirmed), key=lambda view: (view.state, view.peer))
        return [FoundVersion(version, tuple(views))]

    def statistics(self) -> DiscoveryStatistics:
        """What was announced and found."""
        return DiscoveryStatistics(
            announced=self._heads.said + self._holdings.said,
            failed=self._heads.failed + self._holdings.failed,
            pending=self._heads.pending() + self._holdings.pending(),
            lookups=self._counts.lookups,
            providers_confirmed=self._counts.confirmed,
            providers_refused=self._counts.refused,
        )

    async def _put(self, name: str, head: HeadRecord) -> None:
        # A head that came by gossip since is newer than the one noted.
        newest = self._catalog.head(name)
        await self._directory.put(name_key(name), pack_head(newest.head() if newest is not None else head))

    async def _provide(self, _key: str, manifest_digest: Digest) -> None:
        await self._directory.provide(manifest_key(manifest_digest))

    async def _introduce_all(self) -> None:
        async for peer, addresses in self._joined_out:
            with trio.move_on_after(self._config.call_timeout_s):
                await self._directory.introduce(peer, addresses)
            self._heads.retry_unheard()
            self._holdings.retry_unheard()

    async def _find_head(self, name: ModelName) -> HeadRecord | None:
        value: bytes | None = None
        with trio.move_on_after(self._config.call_timeout_s):
            try:
                value = await self._directory.get(name_key(name.full()))
            except TransportError as error:
                log.info("the directory could not be asked for %s: %s", name.display(), error)
        if value is None:
            return None
        try:
            head = read_head(value)
        except RemoteProtocolError as error:
            log.warning("the directory gave a bad head for %s: %s", name.display(), error)
            return None
        if head.name != name.full():
            log.warning("the directory gave the head of %s for %s", head.name, name.full())
            return None
        return head

    async def _find_providers(self, head: HeadRecord) -> list[FoundProvider]:
        with trio.move_on_after(self._config.call_timeout_s):
            try:
                found = await self._directory.providers(manifest_key(head.manifest_digest))
                return [provider for provider in found if provider.peer != self._peer_id]
            except TransportError as error:
                log.info("the directory could not be asked for providers of %s: %s", head.name, error)
        return []

    async def _check(
        self,
        head: HeadRecord,
        provider: FoundProvider,
        limit: trio.CapacityLimiter,
        confirmed: list[tuple[VersionRecord, ProviderView]],
    ) -> None:
        async with limit:
            peer = provider.peer
            if self._blame.banned(peer):
                self._counts.refused += 1
                return
            if peer not in self._alive() and provider.addresses:
                self._transport.learn(peer, provider.addresses)
            try:
                answer = await self._ask(head, peer)
            except RemoteProtocolError as error:
                self._counts.refused += 1
                self._blame.blame(peer, "discovery", f"asked for {head.name}: {error}")
                return
            except (TransportError, NotFound) as error:
                log.info("the directory's provider of %s is none now: %s", head.name, error)
                return
            if answer is not None:
                self._counts.confirmed += 1
                confirmed.append(answer)

    async def _ask(self, head: HeadRecord, peer: PeerId) -> tuple[VersionRecord, ProviderView] | None:
        timeout_s = self._config.check_timeout_s
        state = await self._catalog.ask_holding(peer, head.manifest_digest, timeout_s=timeout_s)
        if state is None:
            # No lie: the directory remembers for days what a node held once.
            log.info("%s does not hold %s any more", peer, head.name)
            return None
        version = await self._catalog.fetch_version(
            peer, head.version_id, name=head.name, manifest_digest=head.manifest_digest, timeout_s=timeout_s
        )
        if (version.name, version.manifest_digest) != (head.name, head.manifest_digest):
            raise RemoteProtocolError("the version record contradicts the signed head")
        return version, ProviderView(peer, state, True)
