"""What travels on a bulk connection, exactly; a reader can be written from this page.

The asker connects and sends `OPENING`: the eight bytes `herdbulk` and the ticket's 16-byte connection id. From there on
both directions carry frames only:

    kind (1 byte) | size (3 bytes, big-endian) | ciphertext (size bytes) | tag (16 bytes)

`size` counts the plaintext, at most 1 MiB. The cipher is the ticket's, AES-256-GCM (NIST SP 800-38D) or
ChaCha20-Poly1305 (RFC 8439); the four bytes before the ciphertext are its associated data. Each direction has a key and
a salt of its own: BLAKE3 in key derivation mode, with the context string `herd 2026-11 bulk asker to giver 1` for what
the asker sends and `herd 2026-11 bulk giver to asker 1` for what the giver sends, over the ticket's key followed by the
connection id, gives 36 bytes, the key (32) and the salt (4). The nonce of a direction's n-th frame, counted from
zero, is the salt and n in eight bytes, big-endian. So a frame that is repeated, left out, moved or changed does not
open.

Kinds: MESSAGE (1) holds a message of at most 256 bytes, BODY (2) a piece of what the last message announced, never
empty, END (3, empty) says that this direction ends in order; a connection that ends without it was cut off. The first
frame of each direction is an empty MESSAGE: the asker proves with it that it holds the ticket, the giver that it knows
it. After its own the asker says nothing more. The giver sends chunks, each a message (MessagePack, an array of the
number 2, the blob's digest as `sha256:` and 64 lower-case hexadecimal digits, the chunk's index, and its size in bytes)
and then exactly its bytes in pieces.
"""

import struct
from enum import IntEnum

import attrs
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from protocols.errors import LocalProtocolError, RemoteProtocolError

MAGIC = b"herdbulk"
CONNECTION_ID_SIZE_BYTES = 16
OPENING_SIZE_BYTES = len(MAGIC) + CONNECTION_ID_SIZE_BYTES
KEY_SIZE_BYTES = 32
SALT_SIZE_BYTES = 4
HEADER_SIZE_BYTES = 4
TAG_SIZE_BYTES = 16
FRAME_SIZE_BYTES_MAX = 1024 * 1024
FRAMES_MAX = 1 << 32
"""Far below what one key may seal; a connection that gets here ends, whatever its bytes."""

ASKER_CONTEXT = "herd 2026-11 bulk asker to giver 1"
GIVER_CONTEXT = "herd 2026-11 bulk giver to asker 1"

AES_256_GCM = "aes-256-gcm"
CHACHA20_POLY1305 = "chacha20-poly1305"
CIPHERS: dict[str, type[AESGCM] | type[ChaCha20Poly1305]] = {
    AES_256_GCM: AESGCM,
    CHACHA20_POLY1305: ChaCha20Poly1305,
}


class FrameKind(IntEnum):
    """The first byte of a frame."""

    MESSAGE = 1
    BODY = 2
    END = 3


class BrokenFrame(RemoteProtocolError):
    """Bytes that are no frame of this connection: damaged, repeated, moved, or sealed by somebody else."""


def opening(connection_id: bytes) -> bytes:
    """The asker's first bytes."""
    return MAGIC + connection_id


def parse_opening(data: bytes) -> bytes:
    """The connection id in an asker's first OPENING_SIZE_BYTES. BrokenFrame when they are something else."""
    if len(data) != OPENING_SIZE_BYTES or not data.startswith(MAGIC):
        raise BrokenFrame("not the opening of a bulk connection")
    return data[len(MAGIC) :]


@attrs.define
class _Direction:
    """The cipher of one direction, and which frame comes next."""

    cipher: AESGCM | ChaCha20Poly1305
    salt: bytes
    frames: int = 0
    body_bytes: int = 0

    @classmethod
    def derive(cls, cipher: str, key: bytes, connection_id: bytes, context: str) -> "_Direction":
        if cipher not in CIPHERS:
            raise LocalProtocolError(f"{cipher!r} is no cipher of the bulk plane")
        if len(key) != KEY_SIZE_BYTES or len(connection_id) != CONNECTION_ID_SIZE_BYTES:
            raise LocalProtocolError("a ticket has a key of 32 bytes and a connection id of 16")
        material = blake3(key + connection_id, derive_key_context=context).digest(KEY_SIZE_BYTES + SALT_SIZE_BYTES)
        return cls(CIPHERS[cipher](material[:KEY_SIZE_BYTES]), material[KEY_SIZE_BYTES:])

    def next_nonce(self, size_bytes: int) -> bytes:
        if self.frames >= FRAMES_MAX:
            raise LocalProtocolError(f"a connection has at most {FRAMES_MAX} frames a direction")
        nonce = self.salt + struct.pack(">Q", self.frames)
        self.frames += 1
        self.body_bytes += size_bytes
        return nonce


class FrameSealer:
    """Seals the frames of one direction, in order."""

    def __init__(self, cipher: str, key: bytes, connection_id: bytes, context: str) -> None:
        self._direction = _Direction.derive(cipher, key, connection_id, context)

    @property
    def sealed_bytes(self) -> int:
        """The plaintext bytes sealed so far."""
        return self._direction.body_bytes

    def seal_into(self, kind: FrameKind, data: bytes | memoryview, buffer: memoryview) -> int:
        """Write the next frame to the beginning of the buffer; how many bytes it takes.

        LocalProtocolError when `data` is over FRAME_SIZE_BYTES_MAX or the buffer has no room for it.
        """
        size_bytes = len(data)
        total_bytes = HEADER_SIZE_BYTES + size_bytes + TAG_SIZE_BYTES
        if size_bytes > FRAME_SIZE_BYTES_MAX or total_bytes > len(buffer):
            raise LocalProtocolError(f"a frame of {size_bytes} bytes does not fit")
        header = struct.pack(">I", kind << 24 | size_bytes)
        buffer[:HEADER_SIZE_BYTES] = header
        nonce = self._direction.next_nonce(size_bytes)
        self._direction.cipher.encrypt_into(nonce, data, header, buffer[HEADER_SIZE_BYTES:total_bytes])
        return total_bytes


class FrameOpener:
    """Opens the frames of one direction, in order."""

    def __init__(self, cipher: str, key: bytes, connection_id: bytes, context: str) -> None:
        self._direction = _Direction.derive(cipher, key, connection_id, context)

    @property
    def opened_bytes(self) -> int:
        """The plaintext bytes opened so far."""
        return self._direction.body_bytes

    @staticmethod
    def announced(header: bytes | bytearray | memoryview) -> tuple[FrameKind, int]:
        """Kind and plaintext size that the four bytes of a header announce; BrokenFrame before a byte of it is read."""
        (word,) = struct.unpack(">I", header)
        size_bytes = word & 0xFFFFFF
        try:
            kind = FrameKind(word >> 24)
        except ValueError:
            raise BrokenFrame(f"a frame of unknown kind {word >> 24}") from None
        if size_bytes > FRAME_SIZE_BYTES_MAX:
            raise BrokenFrame(f"a frame of {size_bytes} bytes is over {FRAME_SIZE_BYTES_MAX}")
        return kind, size_bytes

    def open_into(self, header: bytes, sealed: memoryview, buffer: memoryview) -> None:
        """Open ciphertext and tag into a buffer of exactly the plaintext's size. BrokenFrame when they do not open."""
        if self._direction.frames >= FRAMES_MAX:
            raise BrokenFrame(f"a frame after the {FRAMES_MAX} that a connection may have")
        nonce = self._direction.next_nonce(len(buffer))
        try:
            self._direction.cipher.decrypt_into(nonce, sealed, header, buffer)
        except InvalidTag:
            raise BrokenFrame(f"frame {self._direction.frames - 1} does not open") from None


def asker_ends(cipher: str, key: bytes, connection_id: bytes) -> tuple[FrameSealer, FrameOpener]:
    """What the asker seals and opens with."""
    return (
        FrameSealer(cipher, key, connection_id, ASKER_CONTEXT),
        FrameOpener(cipher, key, connection_id, GIVER_CONTEXT),
    )


def giver_ends(cipher: str, key: bytes, connection_id: bytes) -> tuple[FrameSealer, FrameOpener]:
    """What the giver seals and opens with."""
    return (
        FrameSealer(cipher, key, connection_id, GIVER_CONTEXT),
        FrameOpener(cipher, key, connection_id, ASKER_CONTEXT),
    )
