"""The catalog service: drives the pure catalog over streams, keeps it on disk, answers who has what."""

import logging
import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs
import trio

from node.blame import BlameLedger
from node.driver import Driver
from node.errors import HerdError, NotFound
from node.events import AdvertSeen, EventBus
from node.ports import Stream, Transport, TransportError
from node.services.catalog.file import Key, Record, key_of
from node.services.catalog.keeper import CatalogKeeper
from node.services.catalog.links import PROTOCOL, Links, end
from node.services.catalog.pace import Pace
from protocols.catalog.catalog import Catalog, CatalogCounts
from protocols.catalog.config import CatalogConfig
from protocols.catalog.events import Dropped, Heard, Keep, Kept, PeerJoined, Publish, SetHoldings, Started
from protocols.catalog.messages import (
    CODEC,
    MESSAGE_SIZE_BYTES_MAX,
    AskHolding,
    AskVersion,
    HoldingAnswer,
    VersionAnswer,
)
from protocols.catalog.records import BlobEntry, Holding, HoldingState, VersionRecord
from protocols.effects import Blame, Effect, Event, Send
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import Digest, PeerId, digest_of
from protocols.names import ModelName
from protocols.signing import Signer

log = logging.getLogger("herd.catalog")

FINAL_WRITE_TIMEOUT_S = 5.0

A = TypeVar("A")


@attrs.frozen
class CatalogStatistics(CatalogCounts):
    """The catalog's sizes and counters, and those of its streams."""

    messages_sent: int
    messages_received: int
    messages_dropped: int
    questions_answered: int
    streams: int


class CatalogService:
    """One node's catalog. `alive` gives the other live members, `wall_time` seconds since 1970.

    With a `keeper` the records outlive the process. Names are given in their full form.
    """

    def __init__(
        self,
        transport: Transport,
        config: CatalogConfig,
        peer_id: PeerId,
        signer: Signer,
        rng: random.Random,
        bus: EventBus,
        blame: BlameLedger,
        alive: Callable[[], Sequence[PeerId]],
        keeper: CatalogKeeper | None,
        wall_time: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._config = config
        self._peer_id = peer_id
        self._bus = bus
        self._blame = blame
        self._alive = alive
        self._wall_time = wall_time
        self._core = Catalog(config, peer_id, signer, rng, alive)
        self._driver = Driver(self._core, self._perform)
        self._keeper = keeper
        self._changes: dict[Key, Record | None] = {}
        self._changed = trio.Event()
        self._links: Links | None = None
        self._pace = Pace()
        self._received = 0
        self._answered = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve, gossip, repair and keep the file until cancelled; started once records of earlier are loaded.

        HerdError when the file cannot be used.
        """
        try:
            if self._keeper is not None:
                self._driver.feed(await self._keeper.load())
            async with trio.open_nursery() as nursery:
                idle_s, open_timeout_s = self._config.stream_idle_s, self._config.ask_timeout_s
                self._links = Links(self._transport, nursery, self._blame, open_timeout_s=open_timeout_s, idle_s=idle_s)
                self._transport.serve(PROTOCOL, self._serve)
                nursery.start_soon(self._driver.run)
                if self._keeper is not None:
                    nursery.start_soon(self._keep_file)
                self._feed(Started())
                task_status.started()
        finally:
            self._links = None
            await self._close_file()

    # What the node tells the catalog.

    def peer_joined(self, peer: PeerId) -> None:
        """A member became alive: compare catalogs with it."""
        self._feed(PeerJoined(peer))

    def publish_version(
        self,
        name: str,
        manifest: bytes,
        blobs: Sequence[BlobEntry],
        message: str = "",
        *,
        created_at_ms: int | None = None,
        deliberate: bool = False,
    ) -> VersionRecord:
        """State that this node has a model under a full name; gives the record that says so.

        No new record is made when a head of the name has this manifest, nor when it is an old version that merely
        turned up here; `deliberate` says that a person wants it to be the newest. `created_at_ms` (wall clock)
        dates a model found without history. HerdError when name, manifest and blobs do not fit each other.
        """
        event = Publish(name, manifest, tuple(blobs), message, self._wall_ms(), deliberate, created_at_ms)
        try:
            self._feed(event)
        except LocalProtocolError as error:
            raise HerdError(str(error)) from error
        record = self._core.of_manifest(name, digest_of(manifest))
        if record is None:
            raise HerdError(
                f"the catalog has no room for {name}: it is older than the history that was let go;"
                " raise versions_max or versions_size_bytes_max"
            )
        return record

    def keep_version(self, record: VersionRecord) -> None:
        """This node pulls a version it found elsewhere: keep its record, even where this node follows nobody.

        Without it such a node would later announce what it pulled as a version of its own. RemoteProtocolError when
        the record is forged.
        """
        self._feed(Keep(record, self._wall_ms()))

    def set_holdings(self, holdings: Sequence[Holding]) -> None:
        """What this node holds now, whole; members are told when it changed."""
        self._feed(SetHoldings(tuple(holdings), self._wall_ms()))

    # What the node asks of the catalog.

    def names(self) -> list[str]:
        """All names with a version, sorted, in full form."""
        return self._core.names()

    def names_of(self, manifest_digest: Digest) -> list[str]:
        """The names that have, or had, this manifest, sorted, in full form."""
        return self._core.names_of(manifest_digest)

    def find(self, pattern: str) -> list[str]:
        """The names (full form, sorted) that a glob matches in display or full form, whatever the case.

        A pattern without `*`, `?` or `[` is a name; it gets Ollama's defaults.
        """
        return self._core.find(pattern)

    def head(self, name: str) -> VersionRecord | None:
        """The newest version of a name."""
        return self._core.head(name)

    def heads(self, name: str) -> tuple[VersionRecord, ...]:
        """The newest versions, latest first; more than one is a conflict."""
        return self._core.heads(name)

    def version(self, version_id: bytes) -> VersionRecord | None:
        """The record of an id."""
        return self._core.version(version_id)

    def knows(self, name: str, manifest_digest: Digest) -> bool:
        """Whether a manifest is a version of a name, newest or old."""
        return self._core.knows(name, manifest_digest)

    def of_manifest(self, name: str, manifest_digest: Digest) -> VersionRecord | None:
        """The record that stands for a manifest under a name."""
        return self._core.of_manifest(name, manifest_digest)

    def providers(self, manifest_digest: Digest) -> list[tuple[PeerId, HoldingState]]:
        """Who among the live members (this node too) holds a model: complete ones first, then by peer id."""
        return self._core.providers(manifest_digest, self._living())

    def blob_providers(self, digest: Digest) -> list[tuple[PeerId, HoldingState]]:
        """Who among the live members (this node too) holds any model with this blob; complete ones first."""
        return self._core.blob_providers(digest, self._living())

    def holdings(self) -> tuple[Holding, ...]:
        """What this node said last that it holds."""
        own = self._core.inventory(self._peer_id)
        return own.holdings if own is not None else ()

    def holdings_count(self, peer: PeerId) -> int:
        """How many models a member says it holds, in whole or in part."""
        inventory = self._core.inventory(peer)
        return len(inventory.holdings) if inventory is not None else 0

    def statistics(self) -> CatalogStatistics:
        """Sizes and counters."""
        links = self._links
        return CatalogStatistics(
            **attrs.asdict(self._core.counts()),
            messages_sent=links.sent if links is not None else 0,
            messages_received=self._received,
            messages_dropped=links.dropped if links is not None else 0,
            questions_answered=self._answered,
            streams=len(links) if links is not None else 0,
        )

    # Questions to a peer itself.

    async def ask_holding(
        self, peer: PeerId, manifest_digest: Digest, *, timeout_s: float | None = None
    ) -> HoldingState | None:
        """Ask a peer what it holds of a model; None when nothing.

        TransportError when it does not answer, RemoteProtocolError when it answers something else.
        """
        answer = await self._ask(peer, AskHolding(manifest_digest), HoldingAnswer, timeout_s)
        if answer.manifest_digest != manifest_digest:
            raise RemoteProtocolError(f"asked for {manifest_digest}, it answered for {answer.manifest_digest}")
        return answer.state

    async def fetch_version(
        self,
        peer: PeerId,
        version_id: bytes,
        *,
        name: str = "",
        manifest_digest: Digest | None = None,
        timeout_s: float | None = None,
    ) -> VersionRecord:
        """A version record from a peer, checked: the one of this id or, with `name` and `manifest_digest`, any
        version of that name and manifest.

        NotFound when the peer has none, TransportError when it does not answer, RemoteProtocolError when it
        answers a record that is forged or another than asked for.
        """
        question = AskVersion(version_id, name, manifest_digest or Digest(""))
        record = (await self._ask(peer, question, VersionAnswer, timeout_s)).record
        if record is None:
            raise NotFound(f"peer {peer} does not know version {version_id.hex()[:12]}")
        if record.id() != version_id and (record.name, record.manifest_digest) != (name, manifest_digest):
            raise RemoteProtocolError(f"asked for version {version_id.hex()[:12]}, it gave {record.id().hex()[:12]}")
        record.verify()
        return record

    async def _ask(self, peer: PeerId, question: object, kind: type[A], timeout_s: float | None) -> A:
        seconds = timeout_s if timeout_s is not None else self._config.ask_timeout_s
        data: bytes | None = None
        with trio.move_on_after(seconds) as scope:
            stream = await self._transport.open(peer, PROTOCOL, timeout_s=seconds)
            try:
                await stream.send(CODEC.encode(question))
                data = await stream.receive(MESSAGE_SIZE_BYTES_MAX)
                await end(stream)
            finally:
                await stream.abort()
        if data is None:
            why = f"did not answer within {seconds:g} s" if scope.cancelled_caught else "ended without an answer"
            raise TransportError(f"peer {peer} {why}")
        answer = CODEC.decode(data)
        if not isinstance(answer, kind):
            raise RemoteProtocolError(f"it answered {type(question).__name__} with {type(answer).__name__}")
        return answer

    # Inside.

    def _wall_ms(self) -> int:
        return max(0, math.floor(self._wall_time() * 1000))

    def _living(self) -> Callable[[PeerId], bool]:
        living = {self._peer_id, *self._alive()}
        return living.__contains__

    def _feed(self, event: Event) -> None:
        self._driver.feed(event)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                if self._links is not None:
                    self._links.send(to, message)
            case Blame(peer, reason, detail):
                # A forged record is never an accident; a wrong clock is.
                self._blame.blame(peer, reason, detail, ban=reason == "catalog")
            case Kept(record, news):
                self._note(key_of(record), record)
                if news:
                    self._bus.publish(_seen(record))
            case Dropped(key):
                self._note(key, None)

    def _note(self, key: Key, record: Record | None) -> None:
        if self._keeper is not None:
            self._changes[key] = record
            self._changed.set()

    async def _serve(self, stream: Stream) -> None:
        while True:
            data: bytes | None = None
            # The writer closes an idle stream by itself; twice as long is a peer that hangs.
            with trio.move_on_after(2 * self._config.stream_idle_s):
                data = await stream.receive(MESSAGE_SIZE_BYTES_MAX)
            if data is None or self._blame.banned(stream.peer):
                return
            self._received += 1
            await self._pace.turn(stream.peer)
            began_at_s = trio.current_time()
            message = CODEC.decode(data)
            match message:
                case AskHolding(manifest_digest):
                    state = self._core.state(self._peer_id, manifest_digest)
                    await self._answer(stream, HoldingAnswer(manifest_digest, state))
                case AskVersion(version_id, name, manifest_digest):
                    record = self._core.version(version_id) or self._core.of_manifest(name, manifest_digest)
                    await self._answer(stream, VersionAnswer(record))
                case HoldingAnswer() | VersionAnswer():
                    raise RemoteProtocolError(f"{type(message).__name__} to no question")
                case _:
                    self._feed(Heard(stream.peer, message, self._wall_ms()))
                    self._pace.took(stream.peer, trio.current_time() - began_at_s)

    async def _answer(self, stream: Stream, answer: object) -> None:
        self._answered += 1
        with trio.move_on_after(self._config.ask_timeout_s) as scope:
            await stream.send(CODEC.encode(answer))
        if scope.cancelled_caught:
            raise TransportError(f"peer {stream.peer} does not take its answer")

    async def _keep_file(self) -> None:
        while True:
            await self._changed.wait()
            await self._write_changes()
            await trio.sleep(self._config.snapshot_interval_s)

    async def _write_changes(self) -> None:
        if self._keeper is None or not self._changes:
            return
        changes, self._changes = self._changes, {}
        self._changed = trio.Event()
        written = False
        try:
            await self._keeper.write(changes)
            written = True
        except HerdError as error:
            # Members still have the records; what could not be written now is written with the next change.
            log.warning("%s", error)
        finally:
            # A cancellation may come before the writing began; then the last write takes them too.
            if not written:
                self._changes = {**changes, **self._changes}

    async def _close_file(self) -> None:
        if self._keeper is None:
            return
        with trio.move_on_after(FINAL_WRITE_TIMEOUT_S, shield=True):
            await self._write_changes()
            await self._keeper.close()


def _seen(record: Record) -> AdvertSeen:
    if isinstance(record, VersionRecord):
        return AdvertSeen("version", record.author, ModelName.parse(record.name).display(), record.id().hex())
    count = len(record.holdings)
    return AdvertSeen("inventory", record.owner, "", f"{count} model{'' if count == 1 else 's'}")
