"""Proofs that a peer holds the mesh key, and the datagram keys that only holders can derive.

The key itself never travels. A proof is keyed BLAKE3 over everything that makes it good for one purpose only: role,
both peer ids, both nonces. Sub-keys come from BLAKE3's key derivation mode (BLAKE3 paper, section 2.3), one context
string a purpose, so that a proof can never serve as a datagram key or the other way round.
"""

import hmac
import struct

from blake3 import blake3

from protocols.errors import LocalProtocolError
from protocols.ids import PeerId

MESH_KEY_SIZE_BYTES = 32
NONCE_SIZE_BYTES = 32
PROOF_SIZE_BYTES = 32
ROLES = ("dialer", "listener")

_PROOF_CONTEXT = "herd 2026-11 admission proof 1"
_DATAGRAM_CONTEXT = "herd 2026-11 datagram key 1"


def admission_proof(mesh_key: bytes, role: str, prover: PeerId, verifier: PeerId, nonces: bytes) -> bytes:
    """The 32-byte proof that `prover`, who is the `dialer` or the `listener`, holds the 32-byte mesh key.

    `nonces` is the dialer's nonce followed by the listener's, 32 bytes each.
    """
    if role not in ROLES:
        raise LocalProtocolError(f"{role!r} is no role of an admission")
    if len(nonces) != 2 * NONCE_SIZE_BYTES:
        raise LocalProtocolError(f"both nonces have {2 * NONCE_SIZE_BYTES} bytes together, not {len(nonces)}")
    fields = [role.encode(), prover.encode(), verifier.encode(), nonces]
    # Lengths stand before the fields so that no two different sets of fields give the same bytes.
    transcript = b"".join(struct.pack(">I", len(field)) + field for field in fields)
    return blake3(transcript, key=_subkey(mesh_key, _PROOF_CONTEXT)).digest()


def proof_is_good(mesh_key: bytes, role: str, prover: PeerId, verifier: PeerId, nonces: bytes, proof: bytes) -> bool:
    """Whether `proof` is the one a holder of the mesh key makes; compared in constant time."""
    return hmac.compare_digest(admission_proof(mesh_key, role, prover, verifier, nonces), proof)


def sealing_key(mesh_key: bytes, shared_secret: bytes) -> bytes:
    """The 32-byte key that seals datagrams between two members, from their X25519 shared secret (32 bytes).

    Without the mesh key nobody can derive it, so strangers can neither make nor open a datagram.
    """
    return blake3(shared_secret, key=_subkey(mesh_key, _DATAGRAM_CONTEXT)).digest()


def _subkey(mesh_key: bytes, context: str) -> bytes:
    if len(mesh_key) != MESH_KEY_SIZE_BYTES:
        raise LocalProtocolError(f"a mesh key has {MESH_KEY_SIZE_BYTES} bytes, not {len(mesh_key)}")
    return blake3(mesh_key, derive_key_context=context).digest()
