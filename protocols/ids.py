"""The names of things on the wire: members by their key, blobs and manifests by SHA-256, chunks by BLAKE3.

A `PeerId` is the libp2p text form of an Ed25519 identity. It embeds the public key (libp2p peer-id
specification: identity multihash of the protobuf-encoded key), so everything that needs a member's key
can derive it from the member's name.
"""

import hashlib
import re
from functools import lru_cache
from typing import NewType

import base58
from nacl.bindings import crypto_sign_ed25519_pk_to_curve25519, crypto_sign_ed25519_sk_to_curve25519

from protocols.errors import RemoteProtocolError

PeerId = NewType("PeerId", str)
"""Text form, `12D3KooW...`."""

Digest = NewType("Digest", str)
"""`sha256:` and 64 lowercase hex digits."""

ChunkHash = NewType("ChunkHash", bytes)
"""The 32 bytes of a BLAKE3 hash."""

VersionId = NewType("VersionId", bytes)
"""The 32 bytes of the BLAKE3 of a version record's canonical form."""

RecipeId = NewType("RecipeId", bytes)
"""The 32 bytes of the BLAKE3 of a recipe's canonical form."""

# Identity multihash (0x00), length 36, then protobuf: field 1 key type Ed25519, field 2 the 32 key bytes.
_ED25519_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


PEERS_KEPT = 4096
"""So many peers' names and keys are remembered, each a pure function of the other: base 58 and the curve are slow."""


@lru_cache(PEERS_KEPT)
def peer_id_from_public_key(public_key: bytes) -> PeerId:
    """The peer id of a 32-byte Ed25519 public key."""
    if len(public_key) != 32:
        raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(public_key)}")
    return PeerId(base58.b58encode(_ED25519_PREFIX + public_key).decode("ascii"))


@lru_cache(PEERS_KEPT)
def public_key_of(peer: PeerId) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id.

    Raises RemoteProtocolError when the text is no Ed25519 peer id.
    """
    try:
        raw = base58.b58decode(peer)
    except ValueError as error:
        raise RemoteProtocolError(f"not a peer id: {peer[:80]!r}") from error
    # Base58 decoding forgives white space at the end; one key with two texts would be two members.
    if len(raw) != 38 or not raw.startswith(_ED25519_PREFIX) or base58.b58encode(raw).decode("ascii") != peer:
        raise RemoteProtocolError(f"not an Ed25519 peer id: {peer[:80]!r}")
    return bytes(raw[6:])


@lru_cache(PEERS_KEPT)
def x25519_public_key(ed25519_public_key: bytes) -> bytes:
    """The X25519 public key (32 bytes) of an Ed25519 one; RemoteProtocolError when it is no curve point."""
    try:
        return crypto_sign_ed25519_pk_to_curve25519(ed25519_public_key)
    except Exception as error:
        raise RemoteProtocolError("the public key is not a point of the curve") from error


def x25519_private_key(ed25519_seed: bytes, ed25519_public_key: bytes) -> bytes:
    """The X25519 private key (32 bytes) of an Ed25519 seed and its public key."""
    return crypto_sign_ed25519_sk_to_curve25519(ed25519_seed + ed25519_public_key)


def parse_digest(text: str) -> Digest:
    """`sha256:<hex>` or `sha256-<hex>` in either case, to the one lower-case form with a colon.

    Raises RemoteProtocolError for anything else; a digest becomes a path, so nothing else may pass.
    """
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise RemoteProtocolError(f"not a sha256 digest: {text[:80]!r}")
    return Digest("sha256:" + match.group(1).lower())


def digest_of(data: bytes) -> Digest:
    """The digest of bytes in memory."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def blob_file_name(digest: Digest) -> str:
    """The file name of a blob in an Ollama store: `sha256-<hex>`."""
    return digest.replace(":", "-", 1)


def short_peer(peer: PeerId) -> str:
    """The last eight characters, which differ between peers; the first eight never do."""
    return peer[-8:]
