"""The asker's side of one session: what was asked of one giver, and whether its answers fit.

    opened -> (Bitfield | Missing, then Bitfield)* -> closed
    wanted -> chunk | DontHave | Cancelled          wanted -> cancelling -> chunk | Cancelled | DontHave

A blob that was closed stays here until its last want has ended; opening it again waits for that, so a want
is never asked twice at a time. Answers to what was closed meanwhile are old news, not an offence.
"""

from collections import deque
from collections.abc import Callable

import attrs

from protocols.effects import Effect, Event, Received, Send
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.exchange.asking_words import (
    BlobAbsent,
    BlobGained,
    BlobHeld,
    BlobHeldBack,
    CancelChunks,
    ChunkCame,
    ChunkTaken,
    CloseBlob,
    FetchRecipe,
    OpenBlob,
    RecipeCame,
    SessionStarted,
    WantChunks,
    WantsOver,
    Welcomed,
)
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import (
    WANTS_MAX,
    Bitfield,
    Cancel,
    Cancelled,
    Close,
    DontHave,
    GetRecipe,
    Have,
    HeldBack,
    Hello,
    Missing,
    Open,
    RecipePage,
    Want,
    Welcome,
    recipe_size_bytes_max,
    to_ranges,
)
from protocols.ids import Digest, PeerId, RecipeId


@attrs.define
class _Want:
    size_bytes: int
    cancelling: bool = False


@attrs.define
class _Blob:
    size_bytes: int
    purpose: str
    open: bool = True
    sent: bool = False
    absent: bool = False
    chunk_count: int | None = None
    recipe_id: RecipeId | None = None
    wants: dict[int, _Want] = attrs.field(factory=dict)
    recipe: bytearray | None = None


class AskingSession:
    """One giver, one session. Raises RemoteProtocolError when the giver breaks a rule."""

    def __init__(self, peer: PeerId, ticket: bytes, config: ExchangeConfig) -> None:
        self._peer = peer
        self._ticket = ticket
        self._config = config
        self._welcomed = False
        self._blobs: dict[Digest, _Blob] = {}
        self._waiting: deque[Digest] = deque()
        self._wants = 0
        self._handlers: dict[type, Callable[..., list[Effect]]] = {
            OpenBlob: self._open_blob,
            CloseBlob: self._close_blob,
            FetchRecipe: self._fetch_recipe,
            WantChunks: self._want_chunks,
            CancelChunks: self._cancel_chunks,
            ChunkCame: self._chunk_came,
            Welcome: self._welcome,
            Bitfield: self._bitfield,
            Missing: self._missing,
            Have: self._have,
            RecipePage: self._recipe_page,
            DontHave: self._dont_have,
            Cancelled: self._cancelled,
            HeldBack: self._held_back,
        }

    def wants(self) -> list[tuple[Digest, int, int]]:
        """Every want without an end: digest, index, size in bytes."""
        return [(d, index, want.size_bytes) for d, blob in self._blobs.items() for index, want in blob.wants.items()]

    def wanted(self, digest: Digest) -> int:
        """How many wants of a blob are without an end."""
        return len(self._blobs[digest].wants) if digest in self._blobs else 0

    def owed(self) -> bool:
        """Whether an answer is due that takes the giver no time: what it holds, a page, the end of a cancelled want."""
        return not self._welcomed or any(
            (blob.sent and blob.chunk_count is None and not blob.absent)
            or blob.recipe is not None
            or any(want.cancelling for want in blob.wants.values())
            for blob in self._blobs.values()
        )

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take a message of the giver's or a command of ours; give messages to send and news to tell."""
        if isinstance(event, SessionStarted):
            return [self._send(Hello(self._ticket))]
        subject: object = event.message if isinstance(event, Received) else event
        handler = self._handlers.get(type(subject))
        if handler is None:
            blame = RemoteProtocolError if isinstance(event, Received) else LocalProtocolError
            raise blame(f"{type(subject).__name__} has no place on the asker's side of a session")
        return handler(subject)

    # Commands

    def _open_blob(self, command: OpenBlob) -> list[Effect]:
        blob = self._blobs.get(command.digest)
        if blob is not None and blob.open:
            raise LocalProtocolError(f"{command.digest} is open already")
        if blob is None:
            blob = self._blobs[command.digest] = _Blob(command.size_bytes, command.purpose)
        else:
            blob.open, blob.absent, blob.size_bytes = True, False, command.size_bytes
            blob.purpose = command.purpose
        self._waiting.append(command.digest)
        return self._open_waiting()

    def _open_waiting(self) -> list[Effect]:
        effects: list[Effect] = []
        if not self._waiting:
            return effects
        opened = sum(1 for blob in self._blobs.values() if blob.open and blob.sent)
        for digest in list(self._waiting):
            if opened >= self._config.open_blobs_max:
                break
            if not self._blobs[digest].wants:
                self._waiting.remove(digest)
                self._blobs[digest].sent = True
                opened += 1
                effects.append(self._send(Open(digest, self._blobs[digest].purpose)))
        return effects

    def _close_blob(self, command: CloseBlob) -> list[Effect]:
        blob = self._opened(command.digest)
        blob.open, blob.recipe, blob.recipe_id, blob.chunk_count = False, None, None, None
        effects: list[Effect] = []
        if blob.sent:
            blob.sent = False
            effects.append(self._send(Close(command.digest)))
        else:
            self._waiting.remove(command.digest)
        for want in blob.wants.values():
            want.cancelling = True
        self._forget_ended(command.digest)
        return effects + self._open_waiting()

    def _fetch_recipe(self, command: FetchRecipe) -> list[Effect]:
        blob = self._opened(command.digest)
        if blob.recipe_id is None:
            raise LocalProtocolError(f"nobody offered a recipe of {command.digest}")
        blob.recipe = bytearray()
        return [self._send(GetRecipe(command.digest, blob.recipe_id, 0))]

    def _want_chunks(self, command: WantChunks) -> list[Effect]:
        blob = self._opened(command.digest)
        if blob.chunk_count is None or blob.recipe_id is None:
            raise LocalProtocolError(f"nobody holds {command.digest} yet")
        for index, size_bytes in command.chunks:
            if index >= blob.chunk_count or index in blob.wants:
                raise LocalProtocolError(f"chunk {index} of {command.digest} cannot be wanted now")
            blob.wants[index] = _Want(size_bytes)
        self._wants += len(command.chunks)
        if self._wants > WANTS_MAX:
            raise LocalProtocolError(f"{self._wants} wants are over the session's {WANTS_MAX}")
        ranges = to_ranges(index for index, _ in command.chunks)
        return [self._send(Want(command.digest, blob.recipe_id, ranges))]

    def _cancel_chunks(self, command: CancelChunks) -> list[Effect]:
        blob = self._opened(command.digest)
        wants = {i: blob.wants[i] for i in command.indices if i in blob.wants and not blob.wants[i].cancelling}
        for want in wants.values():
            want.cancelling = True
        return [self._send(Cancel(command.digest, to_ranges(wants)))] if wants else []

    def _chunk_came(self, event: ChunkCame) -> list[Effect]:
        blob = self._blobs.get(event.digest)
        want = blob.wants.pop(event.index, None) if blob is not None else None
        if blob is None or want is None:
            raise RemoteProtocolError(f"sent chunk {event.index} of {event.digest}, which nobody wanted")
        if want.size_bytes != event.size_bytes:
            blob.wants[event.index] = want
            raise RemoteProtocolError(
                f"chunk {event.index} of {event.digest} has {want.size_bytes} bytes, not {event.size_bytes}"
            )
        self._wants -= 1
        # A blob that was closed and opened again has a transfer that knows nothing of this want.
        cared_for = blob.open and blob.sent
        taken = ChunkTaken(event.digest, event.index, event.size_bytes, cared_for)
        self._forget_ended(event.digest)
        return [taken, *self._open_waiting()]

    # Answers

    def _welcome(self, _message: Welcome) -> list[Effect]:
        if self._welcomed:
            raise RemoteProtocolError("a session is welcomed once")
        self._welcomed = True
        return [Welcomed()]

    def _bitfield(self, message: Bitfield) -> list[Effect]:
        blob = self._current(message.digest)
        if blob is None:
            return []
        blob.chunk_count, blob.recipe_id, blob.recipe = message.chunk_count, RecipeId(message.recipe_id), None
        recipe_id = RecipeId(message.recipe_id)
        return [BlobHeld(message.digest, message.held(), recipe_id, message.recipe, message.turn, message.load)]

    def _missing(self, message: Missing) -> list[Effect]:
        blob = self._current(message.digest)
        if blob is None:
            return []
        blob.chunk_count, blob.recipe_id, blob.recipe, blob.absent = None, None, None, True
        return [BlobAbsent(message.digest)]

    def _have(self, message: Have) -> list[Effect]:
        blob = self._current(message.digest)
        if blob is None or blob.chunk_count is None:
            return []
        if max(message.indices) >= blob.chunk_count:
            raise RemoteProtocolError(f"{message.digest} has {blob.chunk_count} chunks, not {max(message.indices)}")
        return [BlobGained(message.digest, message.indices, message.load)]

    def _recipe_page(self, message: RecipePage) -> list[Effect]:
        blob = self._current(message.digest)
        if blob is None or blob.recipe is None or blob.recipe_id is None or message.offset_bytes != len(blob.recipe):
            return []
        limit = recipe_size_bytes_max(blob.size_bytes)
        if message.size_bytes > limit:
            raise RemoteProtocolError(f"a recipe of {message.size_bytes} bytes for {message.digest} is over {limit}")
        blob.recipe += message.data
        if len(blob.recipe) < message.size_bytes:
            return [
                self._send(GetRecipe(message.digest, blob.recipe_id, len(blob.recipe))),
                RecipeCame(message.digest, None),
            ]
        data, blob.recipe = bytes(blob.recipe), None
        return [RecipeCame(message.digest, data)]

    def _dont_have(self, message: DontHave) -> list[Effect]:
        return self._over(message.digest, message.indices, gone=True)

    def _cancelled(self, message: Cancelled) -> list[Effect]:
        return self._over(message.digest, message.indices, gone=False)

    def _held_back(self, message: HeldBack) -> list[Effect]:
        return [BlobHeldBack(message.digest)] if self._current(message.digest) is not None else []

    def _over(self, digest: Digest, indices: tuple[int, ...], *, gone: bool) -> list[Effect]:
        blob = self._blobs.get(digest)
        wants = [blob.wants.get(index) if blob is not None else None for index in indices]
        # All is checked before anything is ended: what a broken session leaves is counted off as a whole.
        if blob is None or None in wants or len(set(indices)) != len(indices):
            raise RemoteProtocolError(f"answered for a chunk of {digest} that nobody wanted")
        if not gone and not all(want.cancelling for want in wants if want is not None):
            raise RemoteProtocolError(f"cancelled a chunk of {digest} unasked")
        sizes_bytes = [blob.wants.pop(index).size_bytes for index in indices]
        self._wants -= len(indices)
        over = WantsOver(digest, indices, tuple(sizes_bytes), gone, blob.open and blob.sent)
        self._forget_ended(digest)
        return [over, *self._open_waiting()]

    # Bookkeeping

    def _opened(self, digest: Digest) -> _Blob:
        blob = self._blobs.get(digest)
        if blob is None or not blob.open:
            raise LocalProtocolError(f"{digest} is not open")
        return blob

    def _current(self, digest: Digest) -> _Blob | None:
        blob = self._blobs.get(digest)
        return blob if blob is not None and blob.open and blob.sent else None

    def _forget_ended(self, digest: Digest) -> None:
        blob = self._blobs[digest]
        if not blob.open and not blob.wants:
            del self._blobs[digest]

    def _send(self, message: object) -> Send:
        return Send(self._peer, message)
