"""A second reader and writer of the bulk plane, after the description at the head of `protocols/bulk/frames.py` alone.

It imports nothing of herd and seals with another library (libsodium, where herd uses OpenSSL), so that a mistake of
ours cannot hide in a shared helper. It moves no bytes itself: whoever plays an end with it owns the socket.
"""

from dataclasses import dataclass, field

import msgpack
from blake3 import blake3
from nacl import bindings as sodium
from nacl.exceptions import CryptoError

MESSAGE, BODY, END = 1, 2, 3
ASKER, GIVER = "herd 2026-11 bulk asker to giver 1", "herd 2026-11 bulk giver to asker 1"
TAG_SIZE_BYTES = 16

_SODIUM = {
    "aes-256-gcm": (sodium.crypto_aead_aes256gcm_encrypt, sodium.crypto_aead_aes256gcm_decrypt),
    "chacha20-poly1305": (
        sodium.crypto_aead_chacha20poly1305_ietf_encrypt,
        sodium.crypto_aead_chacha20poly1305_ietf_decrypt,
    ),
}


class NotAFrame(AssertionError):
    """The bytes are not the next frame of this direction; the message says what they are instead."""


def works_here(cipher: str) -> bool:
    """Whether libsodium has this cipher on this machine: its AES wants the processor's instructions."""
    try:
        _SODIUM[cipher][0](b"", b"", bytes(12), bytes(32))
    except (CryptoError, RuntimeError):
        return False
    return True


def opening(connection_id: bytes) -> bytes:
    """The asker's first bytes."""
    return b"herdbulk" + connection_id


@dataclass
class Direction:
    """One direction of one connection: its key, its salt, and how many frames went by."""

    cipher: str
    key: bytes
    salt: bytes
    frames: int = 0
    waiting: bytearray = field(default_factory=bytearray)

    def _nonce(self) -> bytes:
        self.frames += 1
        return self.salt + (self.frames - 1).to_bytes(8, "big")

    def seal(self, kind: int, data: bytes) -> bytes:
        """The next frame, as it travels."""
        header = bytes([kind]) + len(data).to_bytes(3, "big")
        return header + _SODIUM[self.cipher][0](data, header, self._nonce(), self.key)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames that are whole with these bytes: kind and plaintext. NotAFrame when one does not open."""
        self.waiting += data
        opened = []
        while len(self.waiting) >= 4:
            header = bytes(self.waiting[:4])
            end = 4 + int.from_bytes(header[1:], "big") + TAG_SIZE_BYTES
            if len(self.waiting) < end:
                break
            try:
                text = _SODIUM[self.cipher][1](bytes(self.waiting[4:end]), header, self._nonce(), self.key)
            except CryptoError:
                raise NotAFrame(f"frame {self.frames - 1} does not open") from None
            del self.waiting[:end]
            opened.append((header[0], text))
        return opened

    def greeting(self) -> bytes:
        """The first frame of a direction."""
        return self.seal(MESSAGE, b"")

    def chunk(self, digest: str, index: int, data: bytes, *, piece_size_bytes: int = 300_000) -> bytes:
        """One chunk: the message that announces it, and its bytes in pieces."""
        message = msgpack.packb([2, digest, index, len(data)])
        pieces = [data[offset : offset + piece_size_bytes] for offset in range(0, len(data), piece_size_bytes)]
        return self.seal(MESSAGE, message) + b"".join(self.seal(BODY, piece) for piece in pieces)


def direction(context: str, cipher: str, key: bytes, connection_id: bytes) -> Direction:
    """The frames that end `context` (ASKER or GIVER) sends on the connection of a ticket."""
    material = blake3(key + connection_id, derive_key_context=context).digest(length=36)
    return Direction(cipher, material[:32], material[32:])


@dataclass
class ChunkReader:
    """Puts chunks together again from a giver's frames, after its greeting."""

    frames: Direction
    chunks: list[tuple[str, int, bytes]] = field(default_factory=list)
    greeted: bool = False
    ended: bool = False
    _announced: tuple[str, int, int] | None = None
    _data: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        """Take in what came. NotAFrame where it is not what the description says."""
        for kind, text in self.frames.feed(data):
            if self.ended:
                raise NotAFrame("a frame after the end")
            if not self.greeted:
                if (kind, text) != (MESSAGE, b""):
                    raise NotAFrame("the first frame is no greeting")
                self.greeted = True
            elif kind == MESSAGE and self._announced is None:
                tag, digest, index, size_bytes = msgpack.unpackb(text)
                if tag != 2:
                    raise NotAFrame(f"a message of tag {tag}")
                self._announced = (digest, index, size_bytes)
            elif kind == BODY and self._announced is not None and text:
                self._take(text)
            elif (kind, text, self._announced) == (END, b"", None):
                self.ended = True
            else:
                raise NotAFrame(f"a frame of kind {kind} with {len(text)} bytes, announced: {self._announced}")

    def _take(self, piece: bytes) -> None:
        assert self._announced is not None
        digest, index, size_bytes = self._announced
        self._data += piece
        if len(self._data) > size_bytes:
            raise NotAFrame(f"chunk {index} has over {size_bytes} bytes")
        if len(self._data) == size_bytes:
            self.chunks.append((digest, index, bytes(self._data)))
            self._announced, self._data = None, bytearray()
