"""What a store finds on a simulated disk when it starts, and the index in which the real one remembers it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from blake3 import blake3

from node.ports import StoreError
from node.store.files import explain
from node.store.ollama import Layout, digest_of_file_name
from protocols.bits import Bits
from protocols.ids import Digest, digest_of
from protocols.recipe.recipe import Recipe
from simnet.disk import SimDisk
from simnet.files import SimFile

LAYOUT = Layout(Path("/simulated/models"))

INDEX = "index"
"""The database of a store: `("file", number)` -> digest, `("recipe", digest)` -> recipe, `("partial", digest)`."""


@attrs.frozen
class StoredPartial:
    """A blob being received, as it was last made durable."""

    recipe: Recipe
    bits: Bits


@contextmanager
def explained(doing: str, path: Path) -> Iterator[None]:
    """What the disk refuses becomes the StoreError that the real store raises."""
    try:
        yield
    except OSError as error:
        raise explain(error, doing, path) from error


async def commit(disk: SimDisk, changes: dict[object, object], *, durable: bool = False) -> None:
    """One transaction of the store's index. StoreError as the real index says it."""
    try:
        await disk.commit(INDEX, changes, durable=durable)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise explain(error, "write", LAYOUT.index) from error
        raise StoreError(
            f"the index {LAYOUT.index} cannot be used: {error.strerror}; check disk space and health"
        ) from error


def chunks_here(file: SimFile, stored: StoredPartial, recipe: Recipe) -> Bits:
    """Which chunks of a recipe stand whole and right in what is held of a partial blob."""
    bits = Bits(len(recipe))
    if stored.recipe.size_bytes != recipe.size_bytes:
        return bits
    held = bytearray(recipe.size_bytes)
    for index in stored.bits:
        offset, size = stored.recipe.offset_bytes(index), stored.recipe.sizes_bytes[index]
        held[offset : offset + size] = b"\1" * size
    for index, size in enumerate(recipe.sizes_bytes):
        offset = recipe.offset_bytes(index)
        if all(held[offset : offset + size]) and is_right(file, recipe, index):
            bits.add(index)
    return bits


def is_right(file: SimFile, recipe: Recipe, index: int) -> bool:
    """Whether a chunk stands in a file as its hash says."""
    data = file.content.read(recipe.offset_bytes(index), recipe.sizes_bytes[index])
    return blake3(data).digest() == recipe.chunk_hash(index)


@attrs.frozen
class Whole:
    """A verified blob: what the real store's census knows."""

    recipe: Recipe
    file: SimFile
    bits: Bits


def cut(data: bytes, chunk_size_bytes: int) -> Recipe:
    """The recipe of bytes cut at a fixed size."""
    chunks = [data[offset : offset + chunk_size_bytes] for offset in range(0, len(data), chunk_size_bytes)]
    hashes = b"".join(blake3(chunk).digest() for chunk in chunks)
    sizes = tuple(len(chunk) for chunk in chunks)
    return Recipe(digest_of(data), len(data), f"fixed-{chunk_size_bytes}", sizes, hashes)


def take_stock(disk: SimDisk, chunk_size_bytes: int) -> tuple[dict[Digest, Whole], dict[Digest, StoredPartial]]:
    """As the real store opens: rows without files and files without rows go, unknown blobs are read through.

    The whole blobs and the partial ones. `chunk_size_bytes` is how blobs are cut that nobody cut before.
    """
    rows = disk.records(INDEX).live
    stored: dict[Digest, StoredPartial] = {}
    for key, row in list(rows.items()):
        if isinstance(row, StoredPartial):
            if disk.file(LAYOUT.partial_blob(row.recipe.digest)) is None:
                del rows[key]
            else:
                stored[row.recipe.digest] = row
    for path in disk.paths(LAYOUT.partial) + disk.paths(LAYOUT.temporary):
        digest = digest_of_file_name(path.name)
        if digest is None or digest not in stored:
            disk.unlink(path)
    whole: dict[Digest, Whole] = {}
    for path in disk.paths(LAYOUT.whole) + disk.paths(LAYOUT.blobs):
        digest, file = digest_of_file_name(path.name), disk.file(path)
        if digest is not None and file is not None:
            recipe = _recipe_of(digest, file, rows, chunk_size_bytes)
            if recipe is not None:
                whole[digest] = Whole(recipe, file, Bits.full(len(recipe)))
    return whole, stored


def _recipe_of(digest: Digest, file: SimFile, rows: dict[object, object], chunk_size_bytes: int) -> Recipe | None:
    """The recipe of a blob's file, None when it holds other bytes.

    It is believed when it was read before, whatever stands in it now; else it is read through.
    """
    known, recipe = rows.get(("file", file.number)), rows.get(("recipe", digest))
    if known is None:
        data = file.content.read(0, file.size_bytes)
        if digest_of(data) != digest:
            return None
        file.synced(file.last_write())
        if not isinstance(recipe, Recipe):
            recipe = cut(data, chunk_size_bytes)
        rows.update({("file", file.number): digest, ("recipe", digest): recipe})
    elif known != digest:
        return None
    return recipe if isinstance(recipe, Recipe) else None
