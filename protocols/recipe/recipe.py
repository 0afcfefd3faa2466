"""A recipe: the ordered chunks (BLAKE3, size) of one blob under one named rule.

One granularity serves dedup, transfer, verification and resume. Same bytes and same rule give the same
recipe, so a recipe has an id any node can recompute; a recipe from a peer is still a claim until the whole
blob's SHA-256 has been seen.
"""

from itertools import accumulate
from typing import Any

import attrs
from blake3 import blake3

from protocols.codec import pack, unpack
from protocols.errors import RemoteProtocolError
from protocols.ids import ChunkHash, Digest, RecipeId, parse_digest

CHUNK_SIZE_BYTES_MAX = 16 * 1024 * 1024
CHUNK_COUNT_MAX = 4_000_000
"""400 GB in the smallest chunks anyone may configure (1 MiB), ten times over."""


@attrs.frozen
class Recipe:
    """The chunks of one blob: `hashes` holds 32 bytes for each entry of `sizes_bytes`, in order of offset.

    Raises ValueError when the parts contradict each other.
    """

    digest: Digest
    size_bytes: int
    rule: str
    sizes_bytes: tuple[int, ...] = attrs.field(repr=False)
    hashes: bytes = attrs.field(repr=False)
    _offsets: tuple[int, ...] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if len(self.sizes_bytes) > CHUNK_COUNT_MAX:
            raise ValueError(f"a recipe of {len(self.sizes_bytes)} chunks is over {CHUNK_COUNT_MAX}")
        if len(self.hashes) != 32 * len(self.sizes_bytes):
            raise ValueError("a recipe holds one 32-byte hash for each chunk")
        if any(not 0 < size <= CHUNK_SIZE_BYTES_MAX for size in self.sizes_bytes):
            raise ValueError(f"a chunk holds 1 to {CHUNK_SIZE_BYTES_MAX} bytes")
        if sum(self.sizes_bytes) != self.size_bytes:
            raise ValueError("the chunks do not add up to the blob")
        offsets = (0, *accumulate(self.sizes_bytes))[:-1] if self.sizes_bytes else ()
        object.__setattr__(self, "_offsets", offsets)

    def __len__(self) -> int:
        """How many chunks."""
        return len(self.sizes_bytes)

    def offset_bytes(self, index: int) -> int:
        """Where chunk `index` begins in the blob."""
        return self._offsets[index]

    def chunk_hash(self, index: int) -> ChunkHash:
        """The BLAKE3 of chunk `index`."""
        return ChunkHash(self.hashes[32 * index : 32 * index + 32])

    def id(self) -> RecipeId:
        """The BLAKE3 of the canonical form."""
        return RecipeId(blake3(self.to_bytes()).digest())

    def to_bytes(self) -> bytes:
        """The canonical form, as it is stored and sent."""
        return pack([self.digest, self.size_bytes, self.rule, list(self.sizes_bytes), self.hashes])

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "Recipe":
        """The recipe in its canonical form; RemoteProtocolError when it is none."""
        fields: list[Any] = unpack(data, list[Any])
        try:
            digest, size_bytes, rule, sizes_bytes, hashes = fields
            if not isinstance(rule, str) or not isinstance(hashes, bytes) or type(size_bytes) is not int:
                raise ValueError("a field has the wrong type")
            if not all(type(size) is int for size in sizes_bytes):
                raise ValueError("a chunk size is no integer")
            return cls(parse_digest(digest), size_bytes, rule, tuple(sizes_bytes), hashes)
        except (ValueError, TypeError) as error:
            raise RemoteProtocolError(f"malformed recipe: {error}") from error
