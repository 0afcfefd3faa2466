"""Who waits for news of a blob from givers: what a transfer offers to the asking side."""

from typing import Protocol

from node.ports import CarriedChunk
from protocols.effects import Effect
from protocols.exchange.asking_words import BlobAbsent, BlobGained, BlobHeld, BlobHeldBack, RecipeCame
from protocols.ids import Digest, PeerId


class BlobListener(Protocol):
    """Who has a blob open with givers: a transfer. Nothing here waits."""

    digest: Digest
    size_bytes: int
    purpose: str

    @property
    def priority(self) -> int:
        """How the transfer stands to others now: what a peer gives goes to the highest first."""
        ...

    def blob_held(self, peer: PeerId, news: BlobHeld) -> None:
        """The giver holds these chunks."""
        ...

    def blob_absent(self, peer: PeerId) -> None:
        """The giver has nothing of the blob yet."""
        ...

    def blob_gained(self, peer: PeerId, news: BlobGained) -> None:
        """The giver holds these chunks too."""
        ...

    def recipe_came(self, peer: PeerId, data: bytes | None) -> None:
        """A page of the recipe came; `data` is the whole with the last page."""
        ...

    def wants_over(self, peer: PeerId, indices: tuple[int, ...], gone: bool) -> None:
        """Wants ended without a chunk."""
        ...

    def chunk_came(self, peer: PeerId, chunk: CarriedChunk) -> None:
        """A wanted chunk is here, unchecked. The listener owes a call of `AskingSide.stored` for it."""
        ...

    def held_back(self) -> None:
        """A giver waits for a limit of its own before it sends what is wanted."""
        ...

    def giver_lost(self, peer: PeerId, reason: str) -> None:
        """The session is over and the listener no longer attached; wants without an end will have none."""
        ...

    def room_freed(self, peer: PeerId | None) -> None:
        """More may be asked of this giver; of any when None."""
        ...


def tell(listener: BlobListener, peer: PeerId, news: Effect) -> None:
    """Hand a session's news to the listener's method for it."""
    match news:
        case BlobHeld():
            listener.blob_held(peer, news)
        case BlobAbsent():
            listener.blob_absent(peer)
        case BlobGained():
            listener.blob_gained(peer, news)
        case RecipeCame(_, data):
            listener.recipe_came(peer, data)
        case BlobHeldBack():
            listener.held_back()
