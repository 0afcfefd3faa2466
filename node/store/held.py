"""Which bytes of a blob a partial file holds, and what that is under another recipe."""

from pathlib import Path

from blake3 import blake3

from node.store.files import read_at, write_at
from node.store.index import StoredPartial
from node.store.space import written_spans
from protocols.bits import Bits
from protocols.recipe.recipe import Recipe


def held_bytes(recipe: Recipe, bits: Bits) -> int:
    """How many bytes the set chunks have."""
    if bits.complete():
        return recipe.size_bytes
    return sum(recipe.sizes_bytes[index] for index in bits)


def chunks_here(path: Path, stored: StoredPartial, recipe: Recipe) -> Bits:
    """Which chunks of another recipe of the same blob stand whole in what its partial file holds, by their hashes."""
    bits = Bits(len(recipe))
    if stored.recipe.size_bytes != recipe.size_bytes:
        return bits
    spans = _held_spans(stored)
    span = 0
    with path.open("rb", buffering=0) as file:
        for index, size in enumerate(recipe.sizes_bytes):
            offset = recipe.offset_bytes(index)
            while span < len(spans) and spans[span][1] < offset + size:
                span += 1
            if span == len(spans):
                break
            inside = spans[span][0] <= offset
            if inside and blake3(read_at(file.fileno(), size, offset)).digest() == recipe.chunk_hash(index):
                bits.add(index)
    return bits


def rewrite_unclaimed(descriptor: int, recipe: Recipe, bits: Bits, limit_bytes: int) -> list[int]:
    """The chunks that stand whole in a partial file although no bit says so. Blocking; raises OSError.

    They were written before a process was killed. They are written once more: what failed to reach the disk then may
    stand in the page cache as if it had. At most `limit_bytes` are read; a file system that cannot tell what was
    written calls everything written.
    """
    found: list[int] = []
    missing = bits.missing()
    index = next(missing, None)
    for begin, end in written_spans(descriptor):
        while index is not None and recipe.offset_bytes(index) < begin:
            index = next(missing, None)
        while index is not None and recipe.offset_bytes(index) + recipe.sizes_bytes[index] <= end:
            offset, size_bytes = recipe.offset_bytes(index), recipe.sizes_bytes[index]
            limit_bytes -= size_bytes
            if limit_bytes < 0:
                return found
            data = read_at(descriptor, size_bytes, offset)
            if blake3(data).digest() == recipe.chunk_hash(index):
                write_at(descriptor, data, offset)
                found.append(index)
            index = next(missing, None)
    return found


def _held_spans(stored: StoredPartial) -> list[tuple[int, int]]:
    """Begin and end of what is held, neighbours joined, ascending."""
    spans: list[tuple[int, int]] = []
    for index in stored.bits:
        begin = stored.recipe.offset_bytes(index)
        end = begin + stored.recipe.sizes_bytes[index]
        if spans and spans[-1][1] == begin:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    return spans
