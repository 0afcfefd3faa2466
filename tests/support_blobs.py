"""What tests of blobs share: reading a chunk as bytes."""

from node.ports import Blobs
from protocols.ids import Digest

LARGEST_CHUNK_SIZE_BYTES = 16 * 1024 * 1024


async def read_chunk(blobs: Blobs, digest: Digest, index: int) -> bytes:
    """One chunk as the store serves it."""
    buffer = memoryview(bytearray(LARGEST_CHUNK_SIZE_BYTES))
    return bytes(buffer[: await blobs.read(digest, index, buffer)])
