"""What an asker's session and its driver say to each other: commands and news in, what became of them out."""

import attrs

from protocols.bits import Bits
from protocols.effects import Effect, Event
from protocols.exchange.messages import DEFAULT_PURPOSE
from protocols.ids import Digest, RecipeId


@attrs.frozen
class SessionStarted(Event):
    """The control stream stands."""


@attrs.frozen
class OpenBlob(Event):
    """Find out what the giver holds of a blob of this size."""

    digest: Digest
    size_bytes: int
    purpose: str = DEFAULT_PURPOSE


@attrs.frozen
class CloseBlob(Event):
    """No more of this blob; what is wanted of it is cancelled."""

    digest: Digest


@attrs.frozen
class FetchRecipe(Event):
    """Get the recipe of a blob the giver holds."""

    digest: Digest


@attrs.frozen
class WantChunks(Event):
    """Ask for chunks: index and size in bytes of each."""

    digest: Digest
    chunks: tuple[tuple[int, int], ...]


@attrs.frozen
class CancelChunks(Event):
    """Take wants back."""

    digest: Digest
    indices: tuple[int, ...]


@attrs.frozen
class ChunkCame(Event):
    """A chunk came over the link."""

    digest: Digest
    index: int
    size_bytes: int


@attrs.frozen
class Welcomed(Effect):
    """The giver knows the ticket: attach the chunk link."""


@attrs.frozen
class BlobHeld(Effect):
    """The giver holds these chunks of an open blob; `recipe` is empty when large; `turn` and `load` are its hints."""

    digest: Digest
    bits: Bits
    recipe_id: RecipeId
    recipe: bytes
    turn: int = 0
    load: int = 0


@attrs.frozen
class BlobAbsent(Effect):
    """The giver has nothing of an open blob yet."""

    digest: Digest


@attrs.frozen
class BlobGained(Effect):
    """The giver holds these chunks of an open blob too."""

    digest: Digest
    indices: tuple[int, ...]
    load: int = 0


@attrs.frozen
class RecipeCame(Effect):
    """The whole recipe of an open blob, unchecked; `pages_left` are still to come when `data` is None."""

    digest: Digest
    data: bytes | None


@attrs.frozen
class WantsOver(Effect):
    """Wants ended without a chunk. `open` tells whether anybody still cares; `size_bytes` holds one size each."""

    digest: Digest
    indices: tuple[int, ...]
    sizes_bytes: tuple[int, ...]
    gone: bool
    open: bool


@attrs.frozen
class ChunkTaken(Effect):
    """The chunk that came answers a want. `open` tells whether anybody still cares for its bytes."""

    digest: Digest
    index: int
    size_bytes: int
    open: bool


@attrs.frozen
class BlobHeldBack(Effect):
    """The giver says that what is wanted of an open blob waits for a limit of its own."""

    digest: Digest
