"""The interfaces between rooms: five verbs at most, a real and a simulated twin, one conformance test for both.

Services import these, never the rooms that implement them; `node.app` alone brings the two together.
Everything here is driven from one Trio thread; an `async` method may wait, a plain one never does.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import attrs

from node.errors import HerdError
from node.views import ModelView
from protocols.bits import Bits
from protocols.ids import Digest, PeerId
from protocols.names import ModelName
from protocols.recipe.recipe import Recipe


class TransportError(Exception):
    """A peer could not be reached, or a stream ended before it should; the message says which peer and why."""


class AdmissionError(TransportError):
    """The peer answered but one side does not admit the other; the message says what to change."""


class Stream(Protocol):
    """One two-way conversation with an authenticated, admitted peer, in whole frames."""

    peer: PeerId

    async def send(self, payload: bytes | memoryview) -> None:
        """Send one frame (at most `protocols.framing.FRAME_SIZE_BYTES_MAX`). TransportError when the stream is gone.

        Only one task sends at a time. Cancelling a send ends the stream, never the connection.
        """
        ...

    async def receive(self, size_bytes_max: int) -> bytes | None:
        """The next frame, or None when the peer finished its side.

        TransportError when the stream broke off; RemoteProtocolError when the frame is over `size_bytes_max`.
        """
        ...

    async def finish(self) -> None:
        """Nothing more will be sent from here; the peer's `receive` gives None after the last frame."""
        ...

    async def abort(self) -> None:
        """End both sides at once; idempotent, and always safe to call last."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]
"""Serves one inbound stream. The transport ends the stream when the handler returns or raises;
a RemoteProtocolError is blamed on the peer, any other exception is logged, and neither ends the node."""


class Transport(Protocol):
    """Streams between members, authenticated by peer id and let in by the node's `Door`."""

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember where a peer listens (multiaddr texts without `/p2p/`), replacing what was known."""
        ...

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> Stream:
        """A new stream to a learned peer, connecting first where needed, trying every known address.

        TransportError when it did not come about within `timeout_s` (or the peer does not serve the protocol);
        AdmissionError when the peer and we do not admit each other.
        """
        ...

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Hand every inbound stream of this protocol id (`/herd/<name>/<version>`) to the handler."""
        ...

    async def drop(self, peer: PeerId) -> None:
        """Close every connection to a peer, if there is any."""
        ...

    def addresses(self) -> list[str]:
        """Where this node listens: multiaddr texts without `/p2p/`, real ports filled in."""
        ...


class Datagrams(Protocol):
    """Sealed datagrams between members: small, unordered, sometimes lost, never forged."""

    def send(self, to: PeerId, address: str, payload: bytes) -> None:
        """Seal and send to a `/ip4/../udp/..` multiaddr text; silently lost when that cannot be done now.

        LocalProtocolError when the sealed form would be over 1,200 bytes.
        """
        ...

    async def receive(self) -> tuple[PeerId, bytes]:
        """The next authentic payload and its sender; everything else was dropped and counted."""
        ...

    def address(self) -> str:
        """Where this node receives, as a `/ip4/../udp/..` multiaddr text."""
        ...

    def payload_size_bytes_max(self) -> int:
        """How large a payload may be so that its sealed form fits a datagram."""
        ...


class Door(Protocol):
    """Who is let in. Today the mesh key; certificates and roles will stand at the same two doors.

    The stream door is a short exchange inside an already encrypted and authenticated connection, before anything
    else is served. The datagram door is a key mixed into every seal.
    """

    def challenge(self) -> bytes:
        """A fresh nonce for one handshake."""
        ...

    def proof(self, role: str, prover: PeerId, verifier: PeerId, nonces: bytes) -> bytes:
        """The proof that `prover` (in role `dialer` or `listener`) may enter, bound to both ends and both nonces."""
        ...

    def admits(self, role: str, prover: PeerId, verifier: PeerId, nonces: bytes, proof: bytes) -> bool:
        """Whether a peer's proof is good."""
        ...

    def datagram_key(self, shared_secret: bytes) -> bytes:
        """The 32-byte sealing key for a pair of members, from their X25519 shared secret."""
        ...


class BlobMissing(Exception):
    """The store holds no verified blob (or no such chunk) of this digest."""


class StoreError(HerdError):
    """The store could not do what was asked; the message names the file and the remedy."""


class PartialBlob(Protocol):
    """One blob while it is being received. Survives kill -9: `held` after a restart is at least what was durable.

    `copied_bytes` of what is held were copied from other blobs here when it was given out.
    """

    recipe: Recipe
    copied_bytes: int

    def held(self) -> Bits:
        """The chunks written so far (the live object: it grows as chunks are written)."""
        ...

    def hashed_bytes(self) -> int:
        """How far the SHA-256 has come that `finish` waits for; it follows the chunks as they are written."""
        ...

    async def write(self, index: int, data: bytes | memoryview) -> None:
        """Store one chunk, and have no more use for `data` after that, however it ends.

        RemoteProtocolError when its BLAKE3 is not the recipe's; StoreError when it cannot.
        """
        ...

    async def finish(self) -> None:
        """Check the whole blob's SHA-256 and make it servable.

        RemoteProtocolError (and the partial discarded) when it does not match: the recipe was a lie.
        """
        ...

    async def close(self) -> None:
        """Make what is held durable and let go; the partial stays for a later resume."""
        ...


class Blobs(Protocol):
    """The chunks this node holds, whole blobs and partial ones alike."""

    async def recipe(self, digest: Digest) -> Recipe:
        """The recipe of a verified blob, or of one being received. BlobMissing when there is none."""
        ...

    def held(self, digest: Digest) -> Bits | None:
        """Which chunks can be served now (the live object), or None when nothing of the blob is here."""
        ...

    async def read(self, digest: Digest, index: int, buffer: memoryview) -> int:
        """Put one chunk's bytes, as they stand on disk, at the beginning of the buffer; how many they are.

        BlobMissing when it is not held; StoreError when unreadable; LocalProtocolError when the buffer is too small.
        """
        ...

    async def receive(self, recipe: Recipe, on_copied: Callable[[int], None] | None = None) -> PartialBlob:
        """Begin or resume a partial blob. StoreError when the disk has no room for what is missing.

        Chunks that another local blob has are copied, checked as if they had come from a peer, before it is given
        back; `on_copied` gets the bytes copied so far. Cancelling keeps what was copied.
        """
        ...

    def keep(self, sizes_bytes: Mapping[Digest, int]) -> AbstractContextManager[None]:
        """While the block lasts, removing another model leaves these blobs alone: a model to come needs them.

        StoreError at its beginning when the disk has no room for what is missing of them all.
        """
        ...


class SmallFile(Protocol):
    """One small file that is replaced whole; its text form names it to a person."""

    def read(self, size_bytes_max: int) -> bytes | None:
        """Its first bytes; None when there is no file. Raises OSError."""
        ...

    def replace(self, data: bytes) -> None:
        """Make these its bytes: kill -9 leaves the old or the new, a power cut perhaps neither. Raises OSError."""
        ...


class Models(Protocol):
    """The models in this host's store. Changes are told as `node.events.StoreChanged`, whoever made them."""

    async def models(self) -> list[ModelView]:
        """Every model that has a manifest here, newest first, with its state."""
        ...

    async def add_gguf(
        self, path: Path, name: ModelName, on_progress: Callable[[int, int], None] | None = None
    ) -> ModelView:
        """Make a bare GGUF file a model, digest preserved; `on_progress` gets bytes hashed and bytes in all.

        UsageError for a file that is no usable GGUF, StoreError when the store cannot take it; nothing half-written.
        """
        ...

    async def place_model(self, name: ModelName, manifest: bytes) -> ModelView:
        """Give a model its name: every blob must be here verified; blobs first, the manifest last."""
        ...

    async def remove(self, name: ModelName) -> None:
        """Remove a model: manifest first, then the blobs no other manifest references. NotFound when it is not here."""
        ...

    async def complete_manifests(self) -> dict[ModelName, bytes]:
        """The manifests whose every blob is verified now: all that may be announced."""
        ...


def _nothing_to_release() -> None:
    """Bytes objects belong to whoever holds them."""


@attrs.frozen
class CarriedChunk:
    """One chunk as it travels: a claim of the peer's until its hash was seen.

    Whoever received it calls `release` once nobody looks at `data` any more; the memory may then be lent again.
    """

    digest: Digest
    index: int
    data: bytes | memoryview = attrs.field(repr=False)
    release: Callable[[], None] = attrs.field(default=_nothing_to_release, eq=False, repr=False)


class ChunkLink(Protocol):
    """A one-way pipe of chunks from a giver to the asker that attached it; who sends what is settled elsewhere."""

    peer: PeerId
    ticket: bytes

    @property
    def lanes(self) -> int:
        """How many chunks travel side by side now; 0 when the link is gone."""
        ...

    async def send(self, chunk: CarriedChunk, wanted: Callable[[], bool]) -> bool:
        """Giver: send one chunk, unless `wanted`, asked when its turn comes, says no; whether it went.

        Several tasks may send; a link carries as many chunks side by side as it has `lanes`, the others wait for
        their turn. TransportError when the link is gone; cancelling a send that has begun ends the link.
        """
        ...

    async def receive(self) -> CarriedChunk | None:
        """Asker: the next chunk, None when the giver ended the link in order.

        TransportError when it broke off, RemoteProtocolError for anything but whole chunks.
        """
        ...

    async def close(self) -> None:
        """End the link at once; idempotent."""
        ...


ChunkLinkHandler = Callable[[ChunkLink], Awaitable[None]]
"""Keeps one inbound link; the carrier ends the link when the handler returns or raises."""


class ChunkCarrier(Protocol):
    """How chunk bytes travel: over streams of the transport, or a plane of their own."""

    async def connect(self, peer: PeerId, ticket: bytes, *, timeout_s: float) -> ChunkLink:
        """Asker: attach a link to the session this ticket (16 bytes) names. TransportError when that fails."""
        ...

    def serve(self, handler: ChunkLinkHandler) -> None:
        """Giver: hand every attached link to the handler, which knows the ticket or ends the link."""
        ...


@attrs.frozen
class FoundProvider:
    """One answer of the directory: a peer that claims to hold a manifest, and where it listens."""

    peer: PeerId
    addresses: tuple[str, ...]


class Directory(Protocol):
    """Model-level records that outlive membership: a DHT in a real node. Every answer is a claim to be checked."""

    async def introduce(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Tell the directory of a peer that takes part in it."""
        ...

    async def put(self, key: bytes, value: bytes) -> None:
        """Store a signed head under a name's 32-byte key; TransportError when no peer took it."""
        ...

    async def get(self, key: bytes) -> bytes | None:
        """The value under a key, or None."""
        ...

    async def provide(self, key: bytes) -> None:
        """Announce this node as a provider of a 32-byte key."""
        ...

    async def providers(self, key: bytes) -> list[FoundProvider]:
        """Who announced a key, without duplicates and without this node."""
        ...
