"""Which bytes of a blob a partial file holds, and what that is under another recipe."""

from pathlib import Path

from blake3 import blake3

from node.store.files import read_at
from node.store.index import StoredPartial
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
