"""Which bytes of a file are wrong: from chunks that do not match their recipe to ranges and to a sentence."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from protocols.errors import RemoteProtocolError
from protocols.recipe.recipe import Recipe
from protocols.recipe.rules import target_of_rule

RANGES_SHOWN = 3


def wrong_ranges(recipe: Recipe, wrong: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Begin and end (exclusive) of each run of wrong chunks, which are ascending indexes."""
    ranges: list[tuple[int, int]] = []
    for index in wrong:
        begin = recipe.offset_bytes(index)
        end = begin + recipe.sizes_bytes[index]
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((begin, end))
    return tuple(ranges)


def differing_chunks(expected: Recipe, found: Recipe) -> list[int]:
    """The chunks that a file, cut anew by the same rule, does not have at their places; none when the rules differ."""
    if expected.rule != found.rule:
        return []
    here = {(found.offset_bytes(index), found.chunk_hash(index)) for index in range(len(found))}
    return [
        index
        for index in range(len(expected))
        if (expected.offset_bytes(index), expected.chunk_hash(index)) not in here
    ]


def damage_text(path: Path, recipe: Recipe, wrong: Sequence[int]) -> str:
    """`FILE is damaged: 2 of 9 chunks are wrong, bytes 0 to 1999`; the last byte of a range is named with it."""
    ranges = wrong_ranges(recipe, wrong)
    shown = ", ".join(f"{begin} to {end - 1}" for begin, end in ranges[:RANGES_SHOWN])
    more = f" and {len(ranges) - RANGES_SHOWN} more ranges" if len(ranges) > RANGES_SHOWN else ""
    verb = "is" if len(wrong) == 1 else "are"
    return f"{path} is damaged: {len(wrong)} of {len(recipe)} chunks {verb} wrong, bytes {shown}{more}"


def target_of(recipe: Recipe) -> int | None:
    """The target size that cuts the same blob the same way again; None when the rule is not known here."""
    with suppress(RemoteProtocolError):
        return target_of_rule(recipe.rule, recipe.size_bytes)
    return None
