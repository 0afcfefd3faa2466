"""A sealed datagram: small, from one member to one other, readable and forgeable by nobody else.

    magic "hrd" 3 | version 1 | mesh hint 4 | payload size 2 | sender's Ed25519 key 32 | sequence 8 | life 8 | sealed

`sealed` is NaCl's XSalsa20-Poly1305 (`crypto_secretbox`: 16 bytes of authenticator, then the payload) under a key
made from the X25519 secret of both identities and the mesh key: a stranger can neither make nor open one.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable

from nacl.bindings import crypto_scalarmult, crypto_secretbox, crypto_secretbox_open
from nacl.exceptions import CryptoError

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId, peer_id_from_public_key, public_key_of, x25519_private_key, x25519_public_key

DATAGRAM_SIZE_BYTES_MAX = 1200
"""Passes every link unfragmented: below IPv6's minimum MTU with room for tunnels, as QUIC argues (RFC 9000, 14)."""

_HEADER = struct.Struct(">4s4sH32sQ8s")
_MAGIC = b"hrd\x01"
_AUTHENTICATOR_SIZE_BYTES = 16
OVERHEAD_SIZE_BYTES = _HEADER.size + _AUTHENTICATOR_SIZE_BYTES
PAYLOAD_SIZE_BYTES_MAX = DATAGRAM_SIZE_BYTES_MAX - OVERHEAD_SIZE_BYTES

WINDOW = 1024
KEYS_MAX = 4096
SENDERS_MAX = 8192
LIFE_SIZE_BYTES = 8

REASONS = ("oversize", "truncated", "foreign", "forged", "replayed")
"""Why a datagram is dropped, in the order in which it is looked at."""


class DatagramRefused(RemoteProtocolError):
    """The datagram is dropped; `reason` is one of `REASONS`. Its sender is unknown, so nobody is blamed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} datagram")
        self.reason = reason


class _Window:
    """Which of the last `WINDOW` sequences of one sender were seen (as in IPsec, RFC 4303 section 3.4.3)."""

    __slots__ = ("_highest", "_seen")

    def __init__(self, sequence: int) -> None:
        self._highest = sequence
        self._seen = 1

    def admit(self, sequence: int) -> bool:
        if sequence > self._highest:
            ahead = sequence - self._highest
            self._seen = ((self._seen << ahead) | 1) & ((1 << WINDOW) - 1) if ahead < WINDOW else 1
            self._highest = sequence
            return True
        behind = self._highest - sequence
        if behind >= WINDOW or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True


class Sealer:
    """Seals what one node sends and opens what it receives.

    `key_of` turns a 32-byte X25519 secret into the 32-byte key of the pair (`Door.datagram_key`); `first_sequence` is
    the wall clock in microseconds, `life` 8 random bytes.

    The nonce is the sequence, the life and the first 8 bytes of the sender's key, which tell the two directions
    apart. It never repeats: a life is random for each start of a process, and within it the sequence only grows.
    As sequences begin at the wall clock, a restarted sender goes on above its earlier life.

    What replay protection can do: while a receiver runs, nothing passes twice, nor anything older than the last
    `WINDOW` sequences. A restarted receiver (or one that forgot a sender among `SENDERS_MAX`) knows no sequences: what
    was recorded before can be played to it once, until the sender's next datagram moves the window past it. So
    what rides on datagrams must bear being heard again; membership does (incarnations and probe sequences are
    checked). A sender whose clock was set back is dropped as replayed by those who heard its earlier life, until
    its clock catches up or they forget it; meanwhile it stays a member through stream probes.
    """

    def __init__(
        self, seed: bytes, public_key: bytes, key_of: Callable[[bytes], bytes], first_sequence: int, life: bytes
    ):
        if len(life) != LIFE_SIZE_BYTES:
            raise LocalProtocolError(f"a life has {LIFE_SIZE_BYTES} random bytes, not {len(life)}")
        self._public_key = public_key
        self._private_key = x25519_private_key(seed, public_key)
        self._key_of = key_of
        self._hint = key_of(b"herd datagram mesh hint".ljust(32, b"\x00"))[:4]
        self._sequence = first_sequence
        self._life = life
        self._keys: OrderedDict[bytes, tuple[PeerId, bytes]] = OrderedDict()
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()

    def seal(self, to: PeerId, payload: bytes) -> bytes:
        """The datagram for a peer. LocalProtocolError when it would be over 1,200 bytes or the peer id is none."""
        if len(payload) > PAYLOAD_SIZE_BYTES_MAX:
            raise LocalProtocolError(f"a payload of {len(payload)} bytes is over {PAYLOAD_SIZE_BYTES_MAX}")
        try:
            _, key = self._pair(public_key_of(to))
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"cannot seal for {to}: {error}") from error
        self._sequence += 1
        header = _HEADER.pack(_MAGIC, self._hint, len(payload), self._public_key, self._sequence, self._life)
        return header + crypto_secretbox(payload, _nonce(self._sequence, self._life, self._public_key), key)

    def open(self, datagram: bytes) -> tuple[PeerId, bytes]:
        """Sender and payload of a datagram; DatagramRefused when it is not authentic, not ours or not new."""
        if len(datagram) > DATAGRAM_SIZE_BYTES_MAX:
            raise DatagramRefused("oversize")
        if len(datagram) < OVERHEAD_SIZE_BYTES:
            raise DatagramRefused("truncated" if datagram[:4] == _MAGIC[: len(datagram)] else "foreign")
        magic, hint, size_bytes, public_key, sequence, life = _HEADER.unpack_from(datagram)
        if magic != _MAGIC or hint != self._hint:
            raise DatagramRefused("foreign")
        if len(datagram) != OVERHEAD_SIZE_BYTES + size_bytes:
            raise DatagramRefused("truncated" if len(datagram) < OVERHEAD_SIZE_BYTES + size_bytes else "forged")
        if public_key == self._public_key:
            raise DatagramRefused("forged")
        try:
            sender, key = self._pair(public_key, keep=False)
            payload = crypto_secretbox_open(datagram[_HEADER.size :], _nonce(sequence, life, public_key), key)
        except (CryptoError, RemoteProtocolError):
            raise DatagramRefused("forged") from None
        # Only now is the sender known to be one: strangers push nothing out of the caches.
        self._keep(public_key, sender, key)
        if not self._admit(public_key, sequence):
            raise DatagramRefused("replayed")
        return sender, payload

    def _pair(self, public_key: bytes, *, keep: bool = True) -> tuple[PeerId, bytes]:
        known = self._keys.get(public_key)
        if known is not None:
            return known
        try:
            shared_secret = crypto_scalarmult(self._private_key, x25519_public_key(public_key))
        except (CryptoError, RuntimeError) as error:  # libsodium refuses points of small order
            raise RemoteProtocolError("the public key is not a usable point of the curve") from error
        pair = peer_id_from_public_key(public_key), self._key_of(shared_secret)
        if keep:
            self._keep(public_key, *pair)
        return pair

    def _keep(self, public_key: bytes, peer: PeerId, key: bytes) -> None:
        self._keys[public_key] = peer, key
        self._keys.move_to_end(public_key)
        if len(self._keys) > KEYS_MAX:
            self._keys.popitem(last=False)

    def _admit(self, public_key: bytes, sequence: int) -> bool:
        window = self._windows.get(public_key)
        if window is None:
            self._windows[public_key] = _Window(sequence)
            if len(self._windows) > SENDERS_MAX:
                self._windows.popitem(last=False)
            return True
        self._windows.move_to_end(public_key)
        return window.admit(sequence)


def _nonce(sequence: int, life: bytes, sender_public_key: bytes) -> bytes:
    return struct.pack(">Q", sequence) + life + sender_public_key[:8]
