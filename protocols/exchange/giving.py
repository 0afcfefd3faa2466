"""The giver's side of one session: what one asker has open, and which of its wants come next.

queued -> reading -> sending -> over (the chunk went)
queued or reading -> over by Cancelled or DontHave; what is being sent goes through
"""

from collections.abc import Callable
from enum import Enum

import attrs

from protocols.bits import Bits
from protocols.effects import Effect, Event, Received, Send, SetTimer, TimerFired
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import (
    INDICES_MAX,
    OPEN_BLOBS_MAX,
    RECIPE_INLINE_SIZE_BYTES_MAX,
    RECIPE_PAGE_SIZE_BYTES_MAX,
    WANTS_MAX,
    Bitfield,
    Cancel,
    Cancelled,
    Close,
    DontHave,
    GetRecipe,
    Have,
    Hello,
    Missing,
    Open,
    RecipePage,
    Want,
    Welcome,
    from_ranges,
)
from protocols.exchange.spread import Spread
from protocols.ids import Digest, PeerId, RecipeId

LOOKAHEAD_CHUNKS = 32
"""How far down its queue an asker's next chunk is looked for."""
HAVE_TIMER = "have"


@attrs.frozen
class BlobFound(Event):
    """Answers LookUp: what is held now, cut by which recipe (its canonical form, and the size of each chunk)."""

    digest: Digest
    bits: Bits
    recipe_id: RecipeId
    recipe: bytes = attrs.field(repr=False)
    sizes_bytes: tuple[int, ...] = attrs.field(repr=False)


@attrs.frozen
class BlobNotFound(Event):
    """Answers LookUp: nothing of the blob is here."""

    digest: Digest


@attrs.frozen
class BlobGrew(Event):
    """A chunk of a blob can be served now."""

    digest: Digest
    index: int


@attrs.frozen
class BlobChanged(Event):
    """A blob came, went, or is received anew under another recipe."""

    digest: Digest


@attrs.frozen
class Greeted(Effect):
    """The asker's chunk link will show this ticket."""

    ticket: bytes


@attrs.frozen
class LookUp(Effect):
    """Feed BlobFound or BlobNotFound."""

    digest: Digest


@attrs.frozen
class WantsQueued(Effect):
    """There is something to take."""


@attrs.frozen
class BlobReleased(Effect):
    """The asker has closed this blob."""

    digest: Digest


class _State(Enum):
    QUEUED = "queued"
    READING = "reading"
    SENDING = "sending"


@attrs.define(eq=False)
class WantedChunk:
    """One want, from the queue to its end."""

    digest: Digest
    index: int
    size_bytes: int
    purpose: str
    state: _State = _State.QUEUED


@attrs.define
class _Opened:
    turn: int
    purpose: str
    found: BlobFound | None = None
    gained: dict[int, None] = attrs.field(factory=dict)
    answered: bool = False


class GivingSession:
    """One asker, one session. Raises RemoteProtocolError when the asker breaks a rule.

    `spread` is shared by all sessions of a node; `end` lets go of what this one has of it.
    """

    def __init__(self, peer: PeerId, config: ExchangeConfig, spread: Spread | None = None) -> None:
        self._peer = peer
        self._config = config
        self._spread = spread if spread is not None else Spread()
        self._greeted = False
        self._timer_set = False
        self._opened: dict[Digest, _Opened] = {}
        self._wants: dict[tuple[Digest, int], WantedChunk] = {}
        self._handlers: dict[type, Callable[..., list[Effect]]] = {
            BlobFound: self._blob_found,
            BlobNotFound: self._blob_not_found,
            BlobGrew: self._blob_grew,
            BlobChanged: self._blob_changed,
            TimerFired: self._announce,
            Open: self._open,
            GetRecipe: self._get_recipe,
            Want: self._want,
            Cancel: self._cancel,
            Close: self._close,
        }

    def opened(self) -> int:
        """How many blobs are open."""
        return len(self._opened)

    def absent(self) -> list[Digest]:
        """The open blobs of which nothing was here."""
        return [digest for digest, opened in self._opened.items() if opened.answered and opened.found is None]

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take a message of the asker's or news of the store; give answers and things to look up."""
        if isinstance(event, Received) and isinstance(event.message, Hello):
            return self._hello(event.message)
        if isinstance(event, Received) and not self._greeted:
            raise RemoteProtocolError("a session begins with Hello")
        subject: object = event.message if isinstance(event, Received) else event
        handler = self._handlers.get(type(subject))
        if handler is None:
            blame = RemoteProtocolError if isinstance(event, Received) else LocalProtocolError
            raise blame(f"{type(subject).__name__} has no place on the giver's side of a session")
        return handler(subject)

    # The queue

    def peek(self) -> WantedChunk | None:
        """The want that comes next; None when all are under way.

        Of the first in the queue it is the one that was given least often, in the order they were asked.
        """
        best, copies_min, seen = None, 0, 0
        for want in self._wants.values():
            if want.state is not _State.QUEUED:
                continue
            copies = self._spread.copies(want.digest, want.index)
            if best is None or copies < copies_min:
                best, copies_min = want, copies
            seen += 1
            if not copies_min or seen >= LOOKAHEAD_CHUNKS:
                break
        return best

    def copies(self, want: WantedChunk) -> int:
        """How often the chunk of a want was given already, to any asker."""
        return self._spread.copies(want.digest, want.index)

    def take(self, want: WantedChunk) -> None:
        """Its chunk is being read now."""
        want.state = _State.READING
        self._spread.gives(want.digest, want.index)

    def begin_sending(self, want: WantedChunk) -> bool:
        """Whether the chunk that was read is still wanted; from here on it goes."""
        if self._wants.get((want.digest, want.index)) is not want:
            return False
        want.state = _State.SENDING
        return True

    def sent(self, want: WantedChunk) -> None:
        """Its chunk went out whole."""
        del self._wants[want.digest, want.index]

    def unreadable(self, want: WantedChunk) -> list[Effect]:
        """Its chunk could not be read."""
        if self._wants.get((want.digest, want.index)) is not want:
            return []
        self._drop(want)
        return [self._send(DontHave(want.digest, (want.index,)))]

    def end(self) -> None:
        """The session is over."""
        for want in list(self._wants.values()):
            self._drop(want)
        for digest in self._opened:
            self._spread.part(digest, self)

    # What the asker says

    def _hello(self, message: Hello) -> list[Effect]:
        if self._greeted:
            raise RemoteProtocolError("a session has one Hello")
        self._greeted = True
        return [Greeted(message.ticket), self._send(Welcome())]

    def _open(self, message: Open) -> list[Effect]:
        if message.digest in self._opened:
            raise RemoteProtocolError(f"{message.digest} is open already")
        if len(self._opened) >= OPEN_BLOBS_MAX:
            raise RemoteProtocolError(f"a session has at most {OPEN_BLOBS_MAX} blobs open")
        self._opened[message.digest] = _Opened(self._spread.join(message.digest, self), message.purpose)
        return [LookUp(message.digest)]

    def _get_recipe(self, message: GetRecipe) -> list[Effect]:
        found = self._known(message.digest).found
        if found is None or found.recipe_id != message.recipe_id:
            return []  # It went while the asker asked; what says so is on its way.
        page = found.recipe[message.offset_bytes : message.offset_bytes + RECIPE_PAGE_SIZE_BYTES_MAX]
        if not page:
            raise RemoteProtocolError(f"the recipe of {message.digest} ends before {message.offset_bytes}")
        return [self._send(RecipePage(message.digest, len(found.recipe), message.offset_bytes, page))]

    def _want(self, message: Want) -> list[Effect]:
        opened = self._known(message.digest)
        found = opened.found
        indices = from_ranges(message.ranges)
        if len(self._wants) + len(indices) > WANTS_MAX:
            raise RemoteProtocolError(f"a session has at most {WANTS_MAX} wants")
        if len(set(indices)) != len(indices) or any((message.digest, index) in self._wants for index in indices):
            raise RemoteProtocolError(f"a chunk of {message.digest} is wanted twice at a time")
        if found is None or found.recipe_id != message.recipe_id:
            return [self._send(DontHave(message.digest, tuple(indices)))]
        if max(indices) >= len(found.sizes_bytes):
            raise RemoteProtocolError(f"{message.digest} has {len(found.sizes_bytes)} chunks, not {max(indices)}")
        for index in indices:
            size_bytes = found.sizes_bytes[index]
            self._wants[message.digest, index] = WantedChunk(message.digest, index, size_bytes, opened.purpose)
        return [WantsQueued()]

    def _cancel(self, message: Cancel) -> list[Effect]:
        self._known(message.digest)
        return self._end_unsent(message.digest, from_ranges(message.ranges), Cancelled)

    def _close(self, message: Close) -> list[Effect]:
        self._known(message.digest)
        del self._opened[message.digest]
        indices = [index for digest, index in self._wants if digest == message.digest]
        ended = self._end_unsent(message.digest, indices, Cancelled)
        self._spread.part(message.digest, self)
        return [*ended, BlobReleased(message.digest)]

    # What the store says

    def _blob_found(self, event: BlobFound) -> list[Effect]:
        opened = self._opened.get(event.digest)
        if opened is None:
            return []
        effects = self._end_all(event.digest) if opened.found is not None else []
        opened.found, opened.answered = event, True
        opened.gained.clear()
        inline = event.recipe if len(event.recipe) <= RECIPE_INLINE_SIZE_BYTES_MAX else b""
        count, bits, load = event.bits.count, event.bits.to_bytes(), self._spread.load
        return [
            *effects,
            self._send(Bitfield(event.digest, count, bits, event.recipe_id, inline, opened.turn, load)),
        ]

    def _blob_not_found(self, event: BlobNotFound) -> list[Effect]:
        opened = self._opened.get(event.digest)
        if opened is None or (opened.answered and opened.found is None):
            return []
        effects = self._end_all(event.digest)
        opened.found, opened.answered = None, True
        opened.gained.clear()
        return [*effects, self._send(Missing(event.digest))]

    def _blob_grew(self, event: BlobGrew) -> list[Effect]:
        opened = self._opened.get(event.digest)
        if opened is None or opened.found is None:
            return []
        opened.gained[event.index] = None
        # The first is told at once, that it is soon asked for; those that follow soon are told together.
        return [] if self._timer_set else self._announce()

    def _blob_changed(self, event: BlobChanged) -> list[Effect]:
        return [LookUp(event.digest)] if event.digest in self._opened else []

    def _announce(self, _event: TimerFired | None = None) -> list[Effect]:
        effects: list[Effect] = []
        for digest, opened in self._opened.items():
            gained = tuple(opened.gained)
            opened.gained.clear()
            for first in range(0, len(gained), INDICES_MAX):
                effects.append(self._send(Have(digest, gained[first : first + INDICES_MAX], self._spread.load)))
        self._timer_set = bool(effects)
        return [*effects, SetTimer(HAVE_TIMER, self._config.have_interval_s)] if effects else []

    # Bookkeeping

    def _known(self, digest: Digest) -> _Opened:
        opened = self._opened.get(digest)
        if opened is None:
            raise RemoteProtocolError(f"{digest} is not open")
        return opened

    def _end_all(self, digest: Digest) -> list[Effect]:
        return self._end_unsent(digest, [index for known, index in self._wants if known == digest], DontHave)

    def _end_unsent(self, digest: Digest, indices: list[int], answer: type[Cancelled | DontHave]) -> list[Effect]:
        ended = []
        for index in indices:
            want = self._wants.get((digest, index))
            if want is not None and want.state is not _State.SENDING:
                self._drop(want)
                ended.append(index)
        return [self._send(answer(digest, tuple(ended)))] if ended else []

    def _drop(self, want: WantedChunk) -> None:
        del self._wants[want.digest, want.index]
        if want.state is not _State.QUEUED:
            self._spread.gave_not(want.digest, want.index)

    def _send(self, message: object) -> Send:
        return Send(self._peer, message)
