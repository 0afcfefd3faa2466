"""The signed records of the catalog: versions of models, heads of names, inventories of members.

Each is checked whole before it is kept or passed on, so whoever hands over a bad one is at fault. The author
signs the head statement (name, version id, manifest digest, author, clock) and the version id covers all the
rest: one signature serves both the version record and the small head record that anybody may derive from it.
"""

from functools import cached_property
from typing import Literal, Self

import attrs
from blake3 import blake3

from protocols.catalog.clock import Clock
from protocols.codec import pack
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest, PeerId, VersionId, digest_of, parse_digest
from protocols.manifest import LAYER_COUNT_MAX, MANIFEST_SIZE_BYTES_MAX, parse_manifest
from protocols.names import InvalidName, ModelName
from protocols.signing import Signer, verify

BLOBS_MAX = LAYER_COUNT_MAX + 1
"""A manifest's layers and its config."""
BLOB_SIZE_BYTES_MAX = 2**50
MESSAGE_SIZE_BYTES_MAX = 4096
PARENTS_MAX = 16
HOLDINGS_MAX = 100_000
SEQUENCE_MAX = 2**53
NAME_LENGTH_MAX = 600
PEER_LENGTH_MAX = 80

HoldingState = Literal["complete", "partial"]
STATES: tuple[HoldingState, ...] = ("complete", "partial")

_HEAD_DOMAIN = b"herd head 1\x00"
_VERSION_DOMAIN = b"herd version 1\x00"
_INVENTORY_DOMAIN = b"herd inventory 1\x00"


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _require_digest(text: str) -> None:
    try:
        canonical = parse_digest(text)
    except RemoteProtocolError as error:
        raise ValueError(str(error)) from error
    _require(canonical == text, f"{text!r} is not the canonical form of a digest")


def _require_name(text: str) -> None:
    _require(len(text) <= NAME_LENGTH_MAX, f"a name of {len(text)} characters is over {NAME_LENGTH_MAX}")
    try:
        full = ModelName.parse(text).full()
    except InvalidName as error:
        raise ValueError(str(error)) from error
    _require(full == text, f"{text!r} is not the full form of a model name")


@attrs.frozen
class BlobEntry:
    """One blob of a version: digest, size, and the id of the recipe its author cut it by (empty when not known)."""

    digest: Digest
    size_bytes: int
    recipe_id: bytes = b""

    def __attrs_post_init__(self) -> None:
        _require_digest(self.digest)
        _require(0 <= self.size_bytes < BLOB_SIZE_BYTES_MAX, f"a blob of {self.size_bytes} bytes")
        _require(len(self.recipe_id) in (0, 32), "a recipe id has 32 bytes")


@attrs.frozen
class HeadRecord:
    """What an author said of a name: its newest version. Small enough for the DHT (under 1 KiB)."""

    name: str
    version_id: bytes
    manifest_digest: Digest
    author: PeerId
    clock: Clock
    signature: bytes = b""

    def __attrs_post_init__(self) -> None:
        _require_name(self.name)
        _require(len(self.version_id) == 32, "a version id has 32 bytes")
        _require_digest(self.manifest_digest)
        _require(len(self.author) <= PEER_LENGTH_MAX, "a peer id is shorter than that")
        _require(len(self.signature) in (0, 64), "a signature has 64 bytes")

    def signed_form(self) -> bytes:
        """The bytes under the signature."""
        return _HEAD_DOMAIN + pack([self.name, self.version_id, self.manifest_digest, self.author, self.clock])

    def verify(self) -> None:
        """RemoteProtocolError when the signature is not the author's."""
        if not verify(self.author, self.signed_form(), self.signature):
            raise RemoteProtocolError(f"the head of {self.name} is not signed by {self.author}")


@attrs.frozen
class VersionRecord:
    """One version of a model: what was published under a name, by whom, when, and after which versions.

    `manifest` holds Ollama's manifest bytes as they stand on disk, `blobs` one entry for each blob it names, in
    the manifest's order. `parents` are ids, ascending. Raises ValueError when a limit is broken; `verify` does
    the costly checks.
    """

    name: str
    manifest: bytes = attrs.field(repr=False)
    blobs: tuple[BlobEntry, ...] = attrs.field(repr=False)
    parents: tuple[bytes, ...] = attrs.field(repr=False)
    author: PeerId
    clock: Clock
    message: str
    signature: bytes = attrs.field(default=b"", repr=False)

    def __attrs_post_init__(self) -> None:
        _require_name(self.name)
        size_bytes = len(self.manifest)
        _require(size_bytes <= MANIFEST_SIZE_BYTES_MAX, f"a manifest of {size_bytes} bytes")
        _require(len(self.blobs) <= BLOBS_MAX, f"a version of {len(self.blobs)} blobs")
        _require(len(self.parents) <= PARENTS_MAX, f"a version of {len(self.parents)} parents")
        _require(all(len(parent) == 32 for parent in self.parents), "a version id has 32 bytes")
        _require(list(self.parents) == sorted(set(self.parents)), "parents are distinct and ascending")
        _require(len(self.author) <= PEER_LENGTH_MAX, "a peer id is shorter than that")
        _require(len(self.message.encode()) <= MESSAGE_SIZE_BYTES_MAX, "a message is at most 4096 bytes")
        _require(len(self.signature) in (0, 64), "a signature has 64 bytes")

    @cached_property
    def _identity(self) -> VersionId:
        fields = [self.name, self.manifest, self.blobs, self.parents, self.author, self.clock, self.message]
        return VersionId(blake3(_VERSION_DOMAIN + pack(fields)).digest())

    def id(self) -> VersionId:
        """The BLAKE3 of the canonical form without the signature."""
        return self._identity

    @cached_property
    def manifest_digest(self) -> Digest:
        """The SHA-256 of the manifest bytes: Ollama's own id of the model."""
        return digest_of(self.manifest)

    @cached_property
    def size_bytes(self) -> int:
        """All blobs together."""
        return sum(blob.size_bytes for blob in self.blobs)

    @cached_property
    def memory_bytes(self) -> int:
        """About what keeping this record costs; what the catalog's limit counts."""
        return len(self.manifest) + 300 * len(self.blobs) + len(self.message) + 1000

    def head(self) -> HeadRecord:
        """The head record of this version; it carries the author's own signature, whoever derives it."""
        return HeadRecord(self.name, self.id(), self.manifest_digest, self.author, self.clock, self.signature)

    def sign(self, signer: Signer) -> Self:
        """The same record with the author's signature."""
        return attrs.evolve(self, signature=signer(self.head().signed_form()))

    def verify(self) -> None:
        """RemoteProtocolError when the signature is not the author's, or manifest and blobs contradict each other."""
        self.head().verify()
        named = [(blob.digest, blob.size_bytes) for blob in parse_manifest(self.manifest).blobs()]
        if named != [(blob.digest, blob.size_bytes) for blob in self.blobs]:
            raise RemoteProtocolError(f"a version of {self.name} lists other blobs than its manifest")


@attrs.frozen
class Holding:
    """That a member holds the model of one manifest, wholly or in part."""

    manifest_digest: Digest
    state: HoldingState

    def __attrs_post_init__(self) -> None:
        _require_digest(self.manifest_digest)
        _require(self.state in STATES, f"{self.state!r} is neither complete nor partial")


@attrs.frozen
class Inventory:
    """Everything one member holds; of two from one owner the higher sequence counts.

    A sequence is the owner's wall clock in milliseconds or one more than its last, so a restart moves forward.
    Holdings stand in ascending order of digest, each once.
    """

    owner: PeerId
    sequence: int
    holdings: tuple[Holding, ...] = attrs.field(repr=False)
    signature: bytes = attrs.field(default=b"", repr=False)

    def __attrs_post_init__(self) -> None:
        _require(len(self.owner) <= PEER_LENGTH_MAX, "a peer id is shorter than that")
        _require(0 <= self.sequence <= SEQUENCE_MAX, f"a sequence of {self.sequence}")
        _require(len(self.holdings) <= HOLDINGS_MAX, f"an inventory of {len(self.holdings)} holdings")
        _require(len(self.signature) in (0, 64), "a signature has 64 bytes")
        digests = [holding.manifest_digest for holding in self.holdings]
        _require(digests == sorted(set(digests)), "holdings are distinct and ascending")

    def signed_form(self) -> bytes:
        """The bytes under the signature: a hash, so that a large inventory is walked once."""
        return _INVENTORY_DOMAIN + blake3(pack([self.owner, self.sequence, self.holdings])).digest()

    def sign(self, signer: Signer) -> Self:
        """The same inventory with the owner's signature."""
        return attrs.evolve(self, signature=signer(self.signed_form()))

    def verify(self) -> None:
        """RemoteProtocolError when the signature is not the owner's."""
        if not verify(self.owner, self.signed_form(), self.signature):
            raise RemoteProtocolError(f"an inventory is not signed by its owner {self.owner}")
