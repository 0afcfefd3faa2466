"""The decoders that face peers, each with valid inputs to begin from; only the two errors of a peer may come out.

`scripts/fuzz` feeds them by the million, `tests/property/test_bulk_bytes.py` a few thousand in every run of the tests.
"""

import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import attrs

from node.buffers import BufferPool
from node.ports import TransportError
from node.transport.bulk_lane import AskerLane, GiverLane
from node.transport.bulk_socket import BulkSocket
from protocols.bulk.frames import (
    CHACHA20_POLY1305,
    HEADER_SIZE_BYTES,
    OPENING_SIZE_BYTES,
    TAG_SIZE_BYTES,
    FrameKind,
    FrameOpener,
    FrameSealer,
    asker_ends,
    giver_ends,
    opening,
    parse_opening,
)
from protocols.bulk.tickets import CODEC as BULK_CODEC
from protocols.bulk.tickets import GetTicket, NoTicket, Ticket
from protocols.errors import RemoteProtocolError
from protocols.exchange import messages as exchange
from protocols.framing import frame_header, payload_size
from protocols.ids import digest_of
from protocols.recipe.recipe import Recipe

T = TypeVar("T")

REFUSALS = (RemoteProtocolError, TransportError)
"""How a decoder may end: it understood, the peer broke a rule, or the bytes ended too early."""

KEY, CONNECTION = bytes(range(32)), bytes(16)
DIGEST = digest_of(b"a blob")
RECIPE = Recipe(DIGEST, 3_000_001, "fixed-1048576", (1_000_000, 2_000_000, 1), bytes(range(96)))


@attrs.frozen
class Target:
    """One decoder: `feed` decodes one input and may raise REFUSALS; `examples` are valid."""

    feed: Callable[[bytes], object]
    examples: tuple[bytes, ...]
    size_bytes_max: int = 4096


class _Bytes:
    """Stands in for a socket on which all that a peer will ever say has arrived."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    async def receive_exactly(self, buffer: memoryview) -> bool:
        """What `BulkSocket.receive_exactly` does."""
        end = self._at + len(buffer)
        if self._at == len(self._data) and len(buffer):
            return False
        if end > len(self._data):
            raise TransportError("the bulk connection ended in the middle of a frame")
        buffer[:] = self._data[self._at : end]
        self._at = end
        return True


def _finish(work: Coroutine[Any, Any, T]) -> T:
    # Nothing here ever waits, so the whole runs in one step and without an event loop.
    try:
        work.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    raise AssertionError("it waits for something")


def _seal(sealer: FrameSealer, kind: FrameKind, data: bytes) -> bytes:
    buffer = memoryview(bytearray(HEADER_SIZE_BYTES + len(data) + TAG_SIZE_BYTES))
    return bytes(buffer[: sealer.seal_into(kind, data, buffer)])


def _feed_stream(data: bytes) -> int:
    """An asker's bytes as a giver reads them: the opening, then frames for as long as they open."""
    parse_opening(data[:OPENING_SIZE_BYTES])
    opener, at, frames = giver_ends(CHACHA20_POLY1305, KEY, CONNECTION)[1], OPENING_SIZE_BYTES, 0
    while len(header := data[at : at + HEADER_SIZE_BYTES]) == HEADER_SIZE_BYTES:
        _, size_bytes = FrameOpener.announced(header)
        sealed = memoryview(data)[at + HEADER_SIZE_BYTES : at + HEADER_SIZE_BYTES + size_bytes + TAG_SIZE_BYTES]
        if len(sealed) < size_bytes + TAG_SIZE_BYTES:
            raise TransportError("it ended in the middle of a frame")
        opener.open_into(header, sealed, memoryview(bytearray(size_bytes)))
        at += HEADER_SIZE_BYTES + size_bytes + TAG_SIZE_BYTES
        frames += 1
    return frames


_POOL = BufferPool()


def _feed_sealed(data: bytes) -> int:
    """What a hostile giver seals, as an asker reads it: the input says which frames, and what is in them."""
    sealer, frames, at = giver_ends(CHACHA20_POLY1305, KEY, CONNECTION)[0], bytearray(), 0
    while at + 3 <= len(data):
        kind, size_bytes = FrameKind(data[at] % 3 + 1), int.from_bytes(data[at + 1 : at + 3], "big")
        text = data[at + 3 : at + 3 + size_bytes]
        frames += _seal(sealer, kind, text)
        at += 3 + size_bytes
    ends = asker_ends(CHACHA20_POLY1305, KEY, CONNECTION)
    lane = AskerLane(cast("BulkSocket", _Bytes(bytes(frames))), *ends, _POOL, 1 << 20)
    chunks = 0
    while (chunk := _finish(lane.receive_chunk())) is not None:
        chunks += 1
        chunk.release()
    return chunks


def _feed_wire(data: bytes) -> None:
    """Bytes in place of a connection's frames, as either end hears them before anything was proved."""
    giver = GiverLane(cast("BulkSocket", _Bytes(data)), *giver_ends(CHACHA20_POLY1305, KEY, CONNECTION), 1024)
    with contextlib.suppress(*REFUSALS):
        _finish(giver.hear_greeting())
    ends = asker_ends(CHACHA20_POLY1305, KEY, CONNECTION)
    asker = AskerLane(cast("BulkSocket", _Bytes(data)), *ends, _POOL, 1 << 20)
    _finish(asker.hear_greeting())


def _plain(*frames: tuple[FrameKind, bytes]) -> bytes:
    return b"".join(bytes([kind - 1]) + len(data).to_bytes(2, "big") + data for kind, data in frames)


def _asker_says(*texts: bytes) -> bytes:
    sealer = asker_ends(CHACHA20_POLY1305, KEY, CONNECTION)[0]
    return opening(CONNECTION) + b"".join(_seal(sealer, FrameKind.MESSAGE, text) for text in texts)


def _targets() -> dict[str, Target]:
    chunk_header = exchange.CHUNKS_CODEC.encode(exchange.ChunkHeader(DIGEST, 1, 600))
    whole = [(FrameKind.MESSAGE, chunk_header), (FrameKind.BODY, b"x" * 400), (FrameKind.BODY, b"y" * 200)]
    end = (FrameKind.END, b"")
    greeting = _seal(giver_ends(CHACHA20_POLY1305, KEY, CONNECTION)[0], FrameKind.MESSAGE, b"")
    bits = bytes([0b11000000])
    session_words: list[object] = [
        exchange.Hello(bytes(16)),
        exchange.Welcome(),
        exchange.Open(DIGEST),
        exchange.Bitfield(DIGEST, 2, bits, bytes(32), RECIPE.to_bytes()),
        exchange.Missing(DIGEST),
        exchange.GetRecipe(DIGEST, bytes(32), 0),
        exchange.RecipePage(DIGEST, 5, 0, b"12345"),
        exchange.Have(DIGEST, (1, 2, 300)),
        exchange.Want(DIGEST, bytes(32), ((0, 3), (7, 1))),
        exchange.DontHave(DIGEST, (4,)),
        exchange.Cancel(DIGEST, ((0, 3),)),
        exchange.Cancelled(DIGEST, (4, 5)),
        exchange.Close(DIGEST),
    ]
    tickets: list[object] = [
        GetTicket(bytes(16), ("aes-256-gcm", CHACHA20_POLY1305)),
        Ticket(bytes(16), bytes(32), CHACHA20_POLY1305, 4702, 10.0, 1 << 40),
        NoTicket("not now"),
    ]
    return {
        "bulk-stream": Target(_feed_stream, (_asker_says(b""), _asker_says(b"", b"abc", b""), opening(CONNECTION))),
        "bulk-wire": Target(_feed_wire, (greeting, greeting + greeting)),
        "bulk-sealed": Target(_feed_sealed, (_plain(*whole, end), _plain(*whole, *whole, end), _plain(end))),
        "bulk-messages": Target(BULK_CODEC.decode, tuple(map(BULK_CODEC.encode, tickets))),
        "exchange-messages": Target(exchange.CODEC.decode, tuple(map(exchange.CODEC.encode, session_words))),
        "chunk-headers": Target(
            exchange.CHUNKS_CODEC.decode, (chunk_header, exchange.CHUNKS_CODEC.encode(exchange.Attach(bytes(16)))), 300
        ),
        "stream-frames": Target(
            lambda data: payload_size(data[:4].ljust(4, b"\0"), 1 << 20), (frame_header(5), frame_header(1 << 20)), 4
        ),
        "recipes": Target(Recipe.from_bytes, (RECIPE.to_bytes(),)),
    }


TARGETS = _targets()

_INTERESTING = (0, 1, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xC4, 0xC6, 0xC7, 0xCA, 0xCF, 0xD3, 0xDB, 0xDD, 0xDF, 0xFF)
"""Edges of integers, and the bytes that MessagePack begins its kinds with."""


def mutated(data: bytes, other: bytes, rng: random.Random, size_bytes_max: int) -> bytes:
    """An input made from a valid one by a few small changes, sometimes with a part of another."""
    made = bytearray(data)
    for _ in range(1 << rng.randrange(4)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(7):
            case 0 if made:
                made[at % len(made)] ^= 1 << rng.randrange(8)
            case 1 if made:
                made[at % len(made)] = rng.choice(_INTERESTING)
            case 2:
                made[at:at] = bytes([rng.choice(_INTERESTING)]) * rng.randrange(1, 9)
            case 3:
                del made[at : at + rng.randrange(1, 9)]
            case 4:
                made[at : at + 8] = rng.randbytes(rng.randrange(9))
            case 5:
                made[at:at] = made[at : at + rng.randrange(64)]
            case _:
                made[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(made[:size_bytes_max])
