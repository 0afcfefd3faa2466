"""One blob received under one recipe: the picker at work, and chunks checked and written as they arrive."""

from collections import deque
from random import Random
from typing import Protocol

import trio

from node.driver import Driver
from node.ports import CarriedChunk, PartialBlob
from node.services.exchange.asking import AskingSide
from node.services.exchange.recipes import ChosenRecipe
from protocols.effects import Effect, Event
from protocols.errors import RemoteProtocolError
from protocols.exchange.asking_words import (
    CancelChunks,
    WantChunks,
)
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.picker import Picker
from protocols.exchange.picks import (
    Ask,
    ChunkArrived,
    ChunkDropped,
    ChunkWritten,
    Withdraw,
)
from protocols.exchange.spread import own_place
from protocols.ids import Digest, PeerId


class ChunkCounter(Protocol):
    """Who is told what became of each chunk: the transfer."""

    digest: Digest
    purpose: str

    @property
    def priority(self) -> int:
        """How the transfer stands to others now."""
        ...

    def chunk_stored(self, peer: PeerId, index: int, size_bytes: int) -> None:
        """Checked and stored."""
        ...

    def chunk_refused(self, peer: PeerId, index: int, size_bytes: int, error: RemoteProtocolError) -> None:
        """Its bytes were wrong."""
        ...

    def chunk_unneeded(self, size_bytes: int) -> None:
        """Another copy was first."""
        ...


class Attempt:
    """Counts every byte that arrives exactly once: stored, refused, or unneeded."""

    def __init__(
        self,
        chosen: ChosenRecipe,
        partial: PartialBlob,
        asking: AskingSide,
        config: ExchangeConfig,
        me: PeerId,
        rng: Random,
        counter: ChunkCounter,
    ) -> None:
        recipe = chosen.recipe
        self.chosen = chosen
        self.partial = partial
        self.copied_bytes = partial.copied_bytes
        self.resumed_bytes = sum(recipe.sizes_bytes[index] for index in partial.held()) - self.copied_bytes
        self.fetched_bytes = 0
        self.sources: dict[PeerId, int] = {}
        self._sizes_bytes = recipe.sizes_bytes
        self._asking = asking
        self._config = config
        self._counter = counter
        start = own_place(me, recipe.digest, len(recipe))
        self._picker = Picker(
            recipe.sizes_bytes, partial.held(), start, asking.paces, config, rng, purpose=counter.purpose
        )
        self._driver = Driver(self._picker, self._perform)
        self._queue: deque[tuple[PeerId, CarriedChunk]] = deque()
        self._queued = trio.Semaphore(0)
        self._writing: dict[int, None] = {}
        self._complete = trio.Event()
        self._ended = False

    @property
    def held_bytes(self) -> int:
        """What is stored now."""
        return self.resumed_bytes + self.copied_bytes + self.fetched_bytes

    def complete(self) -> bool:
        """Whether every chunk is stored."""
        return self._picker.complete()

    def asks(self, peer: PeerId) -> bool:
        """Whether anything is asked of this giver."""
        return bool(self._picker.asked_of(peer))

    def writes(self) -> bool:
        """Whether chunks wait for the disk."""
        return bool(self._queue or self._writing)

    def feed(self, event: Event) -> None:
        """Let the picker handle news of a giver's; nothing once the attempt has ended."""
        if not self._ended:
            self._picker.priority = self._counter.priority
            self._driver.feed(event)

    def arrived(self, peer: PeerId, chunk: CarriedChunk) -> None:
        """Queue a chunk for checking and writing. The queue is bounded by what was wanted."""
        if self._ended:
            self._unneeded(peer, chunk)
            return
        self.feed(ChunkArrived(peer, chunk.index))
        self._queue.append((peer, chunk))
        self._queued.release()

    async def run(self) -> None:
        """Until every chunk is stored. Raises the StoreError that ended it."""
        if self.complete():
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._driver.run)
            for _ in range(self._config.writes_max):
                nursery.start_soon(self._write)
            await self._complete.wait()
            nursery.cancel_scope.cancel()

    def end(self) -> None:
        """Let go of what has arrived and was not written."""
        self._ended = True
        self._picker.end()
        while self._queue:
            peer, chunk = self._queue.popleft()
            self._unneeded(peer, chunk)

    async def _write(self) -> None:
        while True:
            await self._queued.acquire()
            peer, chunk = self._queue.popleft()
            try:
                await self._write_one(peer, chunk)
            finally:
                self._asking.stored(peer, chunk)
            if self._picker.complete():
                self._complete.set()

    async def _write_one(self, peer: PeerId, chunk: CarriedChunk) -> None:
        index, size_bytes = chunk.index, len(chunk.data)
        held = self.partial.held()
        if index in held or index in self._writing:
            # When the copy that is being written turns out wrong, the chunk is asked for again.
            self._counter.chunk_unneeded(size_bytes)
            self.feed(ChunkDropped(peer, index))
            return
        self._writing[index] = None
        try:
            await self.partial.write(index, chunk.data)
        except RemoteProtocolError as error:
            del self._writing[index]
            self._counter.chunk_refused(peer, index, size_bytes, error)
            self.feed(ChunkDropped(peer, index))
        except BaseException:
            # Cancelled, or a disk that fails: whether these bytes were kept, a later attempt finds out.
            del self._writing[index]
            self._counter.chunk_unneeded(size_bytes)
            raise
        else:
            del self._writing[index]
            self.fetched_bytes += size_bytes
            self.sources[peer] = self.sources.get(peer, 0) + size_bytes
            self.feed(ChunkWritten(peer, index))
            self._counter.chunk_stored(peer, index, size_bytes)

    def _unneeded(self, peer: PeerId, chunk: CarriedChunk) -> None:
        self._counter.chunk_unneeded(len(chunk.data))
        self._asking.stored(peer, chunk)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Ask(peer, indices):
                chunks = tuple((index, self._sizes_bytes[index]) for index in indices)
                self._asking.want(peer, WantChunks(self._counter.digest, chunks))
            case Withdraw(peer, indices):
                self._asking.command(peer, CancelChunks(self._counter.digest, indices))
