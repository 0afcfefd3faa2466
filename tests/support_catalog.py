"""What the catalog's tests share: identities, manifests, and a world of pure cores under a clock of its own."""

import heapq
import itertools
import json
import random
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import attrs
from nacl.signing import SigningKey

from protocols.catalog.catalog import Catalog
from protocols.catalog.clock import Clock
from protocols.catalog.config import CatalogConfig
from protocols.catalog.events import Dropped, Heard, Kept, PeerJoined, Publish, SetHoldings, Started
from protocols.catalog.messages import CODEC
from protocols.catalog.records import BlobEntry, Holding, Inventory, VersionRecord
from protocols.effects import Blame, CancelTimer, Effect, Event, Send, SetTimer, TimerFired
from protocols.ids import Digest, PeerId, digest_of, peer_id_from_public_key
from protocols.signing import Signer

WALL_MS = 1_700_000_000_000


@attrs.frozen
class Person:
    """An identity that can sign."""

    peer_id: PeerId
    sign: Signer


@lru_cache(maxsize=4096)
def person(number: int) -> Person:
    key = SigningKey(number.to_bytes(32, "big"))
    return Person(peer_id_from_public_key(bytes(key.verify_key)), lambda data: key.sign(data).signature)


def blob(number: int) -> BlobEntry:
    return BlobEntry(digest_of(b"blob %d" % number), 1000 + number, bytes(31) + bytes([number % 256]))


def manifest_of(*blobs: BlobEntry) -> bytes:
    """A manifest whose layers are these blobs."""
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": entry.digest, "size": entry.size_bytes}
        for entry in blobs
    ]
    fields = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "layers": layers,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def full(name: str) -> str:
    return f"registry.ollama.ai/library/{name}"


def version(
    author: Person, name: str, content: int, *, at_ms: int = WALL_MS, parents: Sequence[VersionRecord] = ()
) -> VersionRecord:
    """A signed version of `name` whose one blob is `content`."""
    entry = blob(content)
    ids = tuple(sorted(parent.id() for parent in parents))
    record = VersionRecord(full(name), manifest_of(entry), (entry,), ids, author.peer_id, Clock(at_ms), "")
    return record.sign(author.sign)


def inventory(owner: Person, sequence: int, *contents: int, state: str = "complete") -> Inventory:
    """A signed inventory of the models whose one blob is each of `contents`."""
    digests = sorted(digest_of(manifest_of(blob(content))) for content in contents)
    holdings = tuple(Holding(digest, state) for digest in digests)  # type: ignore[arg-type]  # tests pass bad ones too
    return Inventory(owner.peer_id, sequence, holdings).sign(owner.sign)


def manifest_digest(content: int) -> Digest:
    return digest_of(manifest_of(blob(content)))


def publish(name: str, content: int, *, wall_ms: int = WALL_MS, deliberate: bool = False) -> Publish:
    entry = blob(content)
    return Publish(full(name), manifest_of(entry), (entry,), "", wall_ms, deliberate)


def holds(*contents: int, wall_ms: int = WALL_MS) -> SetHoldings:
    return SetHoldings([Holding(manifest_digest(content), "complete") for content in contents], wall_ms)


class World:
    """Pure cores, a virtual clock and links between them; every message travels as bytes.

    `lost(sender, receiver)` decides whether a message is lost; `copies` how often it arrives.
    """

    def __init__(self, seed: int = 0, latency_s: float = 0.01) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.latency_s = latency_s
        self.cores: dict[PeerId, Catalog] = {}
        self.cut_off: dict[PeerId, None] = {}
        self.lost: Callable[[PeerId, PeerId], bool] = lambda sender, receiver: False
        self.copies: Callable[[], int] = lambda: 1
        self.messages: list[tuple[PeerId, PeerId, object]] = []
        self.blamed: list[tuple[PeerId, Blame]] = []
        self.kept: dict[PeerId, list[Kept]] = {}
        self.dropped: dict[PeerId, list[Dropped]] = {}
        self.sent_bytes = 0
        self._queue: list[tuple[float, int, PeerId, Event, tuple[Hashable, int] | None]] = []
        self._order = itertools.count()
        self._timers: dict[tuple[PeerId, Hashable], int] = {}

    def add(self, who: Person, config: CatalogConfig | None = None) -> Catalog:
        """A node that begins now and that everybody not cut off knows as alive."""
        peer = who.peer_id
        rng = random.Random(self.rng.random())
        core = Catalog(config or CatalogConfig(), peer, who.sign, rng, lambda: self.alive_for(peer))
        self.cores[peer] = core
        self.feed(peer, Started())
        return core

    def alive_for(self, peer: PeerId) -> list[PeerId]:
        if peer in self.cut_off:
            return []
        return sorted(other for other in self.cores if other != peer and other not in self.cut_off)

    def wall_ms(self) -> int:
        return WALL_MS + round(self.now * 1000)

    def feed(self, peer: PeerId, event: Event) -> list[Effect]:
        effects = self.cores[peer].handle(event, self.now)
        for effect in effects:
            self._perform(peer, effect)
        return effects

    def joined(self, one: PeerId, other: PeerId) -> None:
        """Membership tells one node that another is alive."""
        self.feed(one, PeerJoined(other))

    def _perform(self, peer: PeerId, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self._send(peer, to, message)
            case SetTimer(name, delay_s):
                number = self._timers[peer, name] = next(self._order)
                heapq.heappush(self._queue, (self.now + delay_s, number, peer, TimerFired(name), (name, number)))
            case CancelTimer(name):
                self._timers.pop((peer, name), None)
            case Blame():
                self.blamed.append((peer, effect))
            case Kept():
                self.kept.setdefault(peer, []).append(effect)
            case Dropped():
                self.dropped.setdefault(peer, []).append(effect)

    def _send(self, sender: PeerId, receiver: PeerId, message: object) -> None:
        data = CODEC.encode(message)
        self.sent_bytes += len(data)
        self.messages.append((sender, receiver, message))
        if receiver not in self.cores or {sender, receiver} & self.cut_off.keys() or self.lost(sender, receiver):
            return
        for _ in range(self.copies()):
            arrives = self.now + self.latency_s * self.rng.uniform(0.5, 1.5)
            heard = Heard(sender, CODEC.decode(data), 0)
            heapq.heappush(self._queue, (arrives, next(self._order), receiver, heard, None))

    def run(self, seconds: float) -> None:
        """Let this much virtual time pass."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, peer, event, timer = heapq.heappop(self._queue)
            if timer is not None and self._timers.get((peer, timer[0])) != timer[1]:
                continue
            if isinstance(event, Heard):
                event = attrs.evolve(event, wall_ms=self.wall_ms())
            self.feed(peer, event)
        self.now = end

    def quiet(self) -> bool:
        """Whether no message is under way."""
        return not any(isinstance(entry[3], Heard) for entry in self._queue)

    def head_ids(self, name: str) -> dict[PeerId, tuple[bytes, ...]]:
        """Each node's heads of a name."""
        return {peer: tuple(r.id() for r in core.heads(full(name))) for peer, core in self.cores.items()}
