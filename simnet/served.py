"""What a host gives its node to serve and to receive into: its blobs, watched, and wrong where the host lies."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from node.ports import PartialBlob
from protocols.bits import Bits
from protocols.ids import Digest
from protocols.recipe.recipe import Recipe
from simnet.blobs import MemoryBlobs

OnRead = Callable[[Digest, int, memoryview], object]


class ServedBlobs:
    """Implements `node.ports.Blobs` over a host's. `on_read` sees each chunk on its way out, and may change it."""

    def __init__(self, blobs: MemoryBlobs, on_read: OnRead) -> None:
        self._blobs = blobs
        self._on_read = on_read

    async def recipe(self, digest: Digest) -> Recipe:
        """As the host's."""
        return await self._blobs.recipe(digest)

    def held(self, digest: Digest) -> Bits | None:
        """As the host's."""
        return self._blobs.held(digest)

    async def read(self, digest: Digest, index: int, buffer: memoryview) -> int:
        """As the host's, shown to `on_read`."""
        size_bytes = await self._blobs.read(digest, index, buffer)
        self._on_read(digest, index, buffer[:size_bytes])
        return size_bytes

    async def receive(self, recipe: Recipe, on_copied: Callable[[int], None] | None = None) -> PartialBlob:
        """As the host's."""
        return await self._blobs.receive(recipe, on_copied)

    def keep(self, sizes_bytes: Mapping[Digest, int]) -> AbstractContextManager[None]:
        """As the host's."""
        return self._blobs.keep(sizes_bytes)
