"""The words of `/herd/exchange/1` and the header of a chunk on `/herd/chunks/1`.

The side that asks opens the control stream, says Hello with a ticket and is welcomed; the ticket then names the
session when the asker attaches its chunk link. Every want ends in exactly one way: its chunk comes over the link,
or DontHave or Cancelled names it. So both sides can count what is outstanding, exactly.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from protocols.bits import Bits
from protocols.codec import Codec
from protocols.ids import Digest, parse_digest
from protocols.recipe.recipe import CHUNK_COUNT_MAX, CHUNK_SIZE_BYTES_MAX

EXCHANGE_PROTOCOL = "/herd/exchange/1"
CHUNKS_PROTOCOL = "/herd/chunks/1"

MESSAGE_SIZE_BYTES_MAX = 2 * 1024 * 1024
"""A bitfield of the largest recipe (500 kB) and a page of a recipe (1 MiB) fit."""
CHUNK_HEADER_SIZE_BYTES_MAX = 256
TICKET_SIZE_BYTES = 16
HINT_MAX = 1 << 32
"""The largest turn or load a giver may name; both only order what is asked."""
OPEN_BLOBS_MAX = 1024
"""How many blobs one session may have open."""
DEFAULT_PURPOSE = "pull"
PURPOSE_LENGTH_MAX = 32
WANTS_MAX = 1024
"""How many wants of one session may be without their end."""
INDICES_MAX = 65536
"""How many chunks one Have may name."""
RECIPE_PAGE_SIZE_BYTES_MAX = 1024 * 1024
RECIPE_INLINE_SIZE_BYTES_MAX = 8 * 1024
"""A recipe this small comes with the bitfield and saves a round trip: some 200 chunks."""
RECIPE_SIZE_BYTES_MAX = 48 * CHUNK_COUNT_MAX

Range = tuple[int, int]
"""First chunk and how many."""


def _digest(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    if parse_digest(value) != value:
        raise ValueError("a digest travels in its one form, sha256: and lower case")


def _between(minimum: int, maximum: int) -> Any:
    def check(_instance: object, attribute: "attrs.Attribute[Any]", value: int) -> None:
        if not minimum <= value <= maximum:
            raise ValueError(f"{attribute.name} is {value}, not {minimum} to {maximum}")

    return check


def _length(minimum: int, maximum: int) -> Any:
    def check(_instance: object, attribute: "attrs.Attribute[Any]", value: bytes | tuple[Any, ...]) -> None:
        if not minimum <= len(value) <= maximum:
            raise ValueError(f"{attribute.name} has length {len(value)}, not {minimum} to {maximum}")

    return check


def _indices(_instance: object, attribute: "attrs.Attribute[Any]", value: tuple[int, ...]) -> None:
    if not 0 < len(value) <= INDICES_MAX:
        raise ValueError(f"{attribute.name} names {len(value)} chunks, not 1 to {INDICES_MAX}")
    if min(value) < 0 or max(value) >= CHUNK_COUNT_MAX:
        raise ValueError("a chunk index is out of range")


def _ranges(_instance: object, attribute: "attrs.Attribute[Any]", value: tuple[Range, ...]) -> None:
    total = 0
    for first, count in value:
        if first < 0 or count < 1 or first + count > CHUNK_COUNT_MAX:
            raise ValueError(f"{attribute.name} holds a range of {count} from {first}")
        total += count
    if not 0 < total <= WANTS_MAX:
        raise ValueError(f"{attribute.name} names {total} chunks, not 1 to {WANTS_MAX}")


@attrs.frozen
class Hello:
    """Asker, first of all: the ticket its chunk link will show."""

    ticket: bytes = attrs.field(validator=_length(TICKET_SIZE_BYTES, TICKET_SIZE_BYTES))


@attrs.frozen
class Welcome:
    """Giver: the ticket is known now, the chunk link may come."""


@attrs.frozen
class Open:
    """Asker: tell me what you hold of this blob, now and as it grows, until Close.

    `purpose` is what its chunks move for, in the words of the limits; the giver may have a limit for it.
    """

    digest: Digest = attrs.field(validator=_digest)
    purpose: str = attrs.field(default=DEFAULT_PURPOSE, validator=_length(1, PURPOSE_LENGTH_MAX))


@attrs.frozen
class Bitfield:
    """Giver: what is held of a blob. Comes again when the blob is received anew under another recipe.

    `recipe` is the recipe's canonical form when that is small, else empty. `turn` is the asker's place in the
    blob, the lowest that no other asker of this giver has (see `spread.place_of`), and `load` how many askers it has.
    """

    digest: Digest = attrs.field(validator=_digest)
    chunk_count: int = attrs.field(validator=_between(0, CHUNK_COUNT_MAX))
    bits: bytes
    recipe_id: bytes = attrs.field(validator=_length(32, 32))
    recipe: bytes = attrs.field(default=b"", validator=_length(0, RECIPE_INLINE_SIZE_BYTES_MAX), repr=False)
    turn: int = attrs.field(default=0, validator=_between(0, HINT_MAX))
    load: int = attrs.field(default=0, validator=_between(0, HINT_MAX))

    def __attrs_post_init__(self) -> None:
        Bits.from_bytes(self.chunk_count, self.bits)

    def held(self) -> Bits:
        """The chunks held."""
        return Bits.from_bytes(self.chunk_count, self.bits)


@attrs.frozen
class Missing:
    """Giver: nothing of this blob is here. A Bitfield follows by itself once that changes."""

    digest: Digest = attrs.field(validator=_digest)


@attrs.frozen
class GetRecipe:
    """Asker: one page of an open blob's recipe in its canonical form, from this offset.

    Not answered when the giver has this recipe no longer: the Bitfield or Missing that says so is on its way.
    """

    digest: Digest = attrs.field(validator=_digest)
    recipe_id: bytes = attrs.field(validator=_length(32, 32))
    offset_bytes: int = attrs.field(validator=_between(0, RECIPE_SIZE_BYTES_MAX))


@attrs.frozen
class RecipePage:
    """Giver: one page, full unless it is the last; `size_bytes` is that of the whole recipe."""

    digest: Digest = attrs.field(validator=_digest)
    size_bytes: int = attrs.field(validator=_between(1, RECIPE_SIZE_BYTES_MAX))
    offset_bytes: int = attrs.field(validator=_between(0, RECIPE_SIZE_BYTES_MAX))
    data: bytes = attrs.field(validator=_length(1, RECIPE_PAGE_SIZE_BYTES_MAX), repr=False)

    def __attrs_post_init__(self) -> None:
        # Each page counts as progress, so one that drips in by bytes would keep a transfer waiting for days.
        if len(self.data) != min(RECIPE_PAGE_SIZE_BYTES_MAX, self.size_bytes - self.offset_bytes):
            raise ValueError("a page of a recipe is full, or ends with the recipe")


@attrs.frozen
class Have:
    """Giver: these chunks of an open blob are held too. `load` is how many askers it has by now."""

    digest: Digest = attrs.field(validator=_digest)
    indices: tuple[int, ...] = attrs.field(validator=_indices)
    load: int = attrs.field(default=0, validator=_between(0, HINT_MAX))


@attrs.frozen
class Want:
    """Asker: send these chunks of an open blob, as this recipe cuts it. DontHave when that is the giver's no longer."""

    digest: Digest = attrs.field(validator=_digest)
    recipe_id: bytes = attrs.field(validator=_length(32, 32))
    ranges: tuple[Range, ...] = attrs.field(validator=_ranges)


@attrs.frozen
class DontHave:
    """Giver: these wants end without a chunk, since it is not (or no longer) here."""

    digest: Digest = attrs.field(validator=_digest)
    indices: tuple[int, ...] = attrs.field(validator=_indices)


@attrs.frozen
class Cancel:
    """Asker: these chunks need not be sent; those on their way will come all the same."""

    digest: Digest = attrs.field(validator=_digest)
    ranges: tuple[Range, ...] = attrs.field(validator=_ranges)


@attrs.frozen
class Cancelled:
    """Giver: these wants end without a chunk, as asked."""

    digest: Digest = attrs.field(validator=_digest)
    indices: tuple[int, ...] = attrs.field(validator=_indices)


@attrs.frozen
class Close:
    """Asker: no more of this blob; cancels all its wants."""

    digest: Digest = attrs.field(validator=_digest)


@attrs.frozen
class HeldBack:
    """Giver: what is wanted of this blob waits for a limit here. Said again while that lasts; nothing is lost."""

    digest: Digest = attrs.field(validator=_digest)


CODEC = Codec(
    {
        1: Hello,
        2: Welcome,
        3: Open,
        4: Bitfield,
        5: Missing,
        6: GetRecipe,
        7: RecipePage,
        8: Have,
        9: Want,
        10: DontHave,
        11: Cancel,
        12: Cancelled,
        13: Close,
        14: HeldBack,
    }
)


@attrs.frozen
class Attach:
    """First frame of a chunk link: which session it belongs to."""

    ticket: bytes = attrs.field(validator=_length(TICKET_SIZE_BYTES, TICKET_SIZE_BYTES))


@attrs.frozen
class ChunkHeader:
    """Announces the frame that follows it: one whole chunk."""

    digest: Digest = attrs.field(validator=_digest)
    index: int = attrs.field(validator=_between(0, CHUNK_COUNT_MAX))
    size_bytes: int = attrs.field(validator=_between(1, CHUNK_SIZE_BYTES_MAX))


CHUNKS_CODEC = Codec({1: Attach, 2: ChunkHeader})


def recipe_size_bytes_max(blob_size_bytes: int) -> int:
    """The largest recipe a blob may have: 1 MiB, or 1/64 of the blob for a large one."""
    return min(RECIPE_SIZE_BYTES_MAX, max(1024 * 1024, blob_size_bytes // 64))


def to_ranges(indices: Iterable[int]) -> tuple[Range, ...]:
    """Ascending ranges that hold exactly these indices."""
    ranges: list[Range] = []
    for index in sorted(indices):
        if ranges and index == sum(ranges[-1]):
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
        else:
            ranges.append((index, 1))
    return tuple(ranges)


def from_ranges(ranges: Sequence[Range]) -> list[int]:
    """The indices that ranges hold, in their order."""
    return [index for first, count in ranges for index in range(first, first + count)]
