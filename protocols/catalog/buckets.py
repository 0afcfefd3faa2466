"""A set of keys as 256 buckets with a hash each, so that two sets are compared by hashes before keys.

One level of a Merkle tree as in Demers et al. 1987 (checksums before databases) and Dynamo: 256 buckets fit one
message of 8 KiB, and with 100,000 keys a differing bucket lists 400.
"""

from blake3 import blake3

from protocols.catalog.messages import BUCKETS, HASH_SIZE_BYTES


class BucketedKeys:
    """Each key stands under a 32-byte place; the first byte is its bucket. Hashes are made when asked for."""

    def __init__(self) -> None:
        self._keys: list[dict[bytes, bytes]] = [{} for _ in range(BUCKETS)]
        self._hashes: list[bytes | None] = [None] * BUCKETS

    def set(self, place: bytes, key: bytes) -> None:
        """Put a key at a place, replacing what stood there."""
        bucket = place[0]
        self._keys[bucket][place] = key
        self._hashes[bucket] = None

    def remove(self, place: bytes) -> None:
        """Nothing stands at this place any more."""
        if self._keys[place[0]].pop(place, None) is not None:
            self._hashes[place[0]] = None

    def places(self, bucket: int) -> list[bytes]:
        """The places in use in a bucket, ascending."""
        return sorted(self._keys[bucket])

    def count(self, bucket: int) -> int:
        """How many keys a bucket has."""
        return len(self._keys[bucket])

    def hashes(self) -> bytes:
        """The 256 bucket hashes, one after the other."""
        return b"".join(self._hash(bucket) for bucket in range(BUCKETS))

    def root(self) -> bytes:
        """The hash over all."""
        return blake3(self.hashes()).digest()

    def differing(self, hashes: bytes) -> list[int]:
        """The buckets whose hash is another than in `hashes` (256 times 32 bytes)."""
        return [
            bucket
            for bucket in range(BUCKETS)
            if hashes[bucket * HASH_SIZE_BYTES : (bucket + 1) * HASH_SIZE_BYTES] != self._hash(bucket)
        ]

    def _hash(self, bucket: int) -> bytes:
        known = self._hashes[bucket]
        if known is None:
            keys = self._keys[bucket]
            known = blake3(b"".join(keys[place] for place in sorted(keys))).digest()
            self._hashes[bucket] = known
        return known
