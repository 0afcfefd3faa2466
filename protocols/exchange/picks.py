"""What the picker hears and what it wants done: the vocabulary of `picker.py`."""

import attrs

from protocols.bits import Bits
from protocols.effects import Effect, Event
from protocols.ids import PeerId


@attrs.frozen
class PeerReady(Event):
    """A peer holds these chunks; a second time it replaces the first, and what was asked stays asked.

    `turn` is the place it gives this node among its askers, `load` how many it has.
    """

    peer: PeerId
    bits: Bits
    turn: int = 0
    load: int = 0


@attrs.frozen
class PeerGained(Event):
    """A ready peer holds these chunks too."""

    peer: PeerId
    indices: tuple[int, ...]
    load: int = 0


@attrs.frozen
class PeerLost(Event):
    """A peer is gone, banned or not a source any more: nothing asked of it will come."""

    peer: PeerId


@attrs.frozen
class WantsEnded(Event):
    """Wants were answered without a chunk: cancelled as asked, or `gone` from the peer."""

    peer: PeerId
    indices: tuple[int, ...]
    gone: bool


@attrs.frozen
class ChunkArrived(Event):
    """A chunk's bytes are here, not yet checked; `ChunkWritten` or `ChunkDropped` follows."""

    peer: PeerId
    index: int


@attrs.frozen
class ChunkWritten(Event):
    """An arrived chunk was checked and stored."""

    peer: PeerId
    index: int


@attrs.frozen
class ChunkDropped(Event):
    """An arrived chunk was thrown away: its bytes were wrong, or another copy had come first."""

    peer: PeerId
    index: int


@attrs.frozen
class RoomFreed(Event):
    """More may be asked of a peer than before; of any peer when None."""

    peer: PeerId | None


@attrs.frozen
class Ask(Effect):
    """Want these chunks of a peer. `Paces.asked` has been told already."""

    peer: PeerId
    indices: tuple[int, ...]


@attrs.frozen
class Withdraw(Effect):
    """Cancel these wants at a peer; `WantsEnded` or `ChunkArrived` follows for each."""

    peer: PeerId
    indices: tuple[int, ...]
