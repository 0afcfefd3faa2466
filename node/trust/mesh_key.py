"""The mesh key: 32 secret bytes that all hosts of one mesh share, and the door that opens to those who hold them."""

import secrets
from pathlib import Path

from node.errors import UsageError
from node.trust.key_file import create_key, load_key, parse_key
from protocols.errors import LocalProtocolError
from protocols.ids import PeerId
from protocols.trust.admission import (
    MESH_KEY_SIZE_BYTES,
    NONCE_SIZE_BYTES,
    admission_proof,
    proof_is_good,
    sealing_key,
)

FILE_NAME = "mesh.key"


class MeshKeyDoor:
    """The `node.ports.Door` of a mesh with one shared key: whoever proves the key is let in."""

    def __init__(self, key: bytes) -> None:
        if len(key) != MESH_KEY_SIZE_BYTES:
            raise LocalProtocolError(f"a mesh key has {MESH_KEY_SIZE_BYTES} bytes, not {len(key)}")
        self._key = key

    def challenge(self) -> bytes:
        """32 fresh random bytes."""
        return secrets.token_bytes(NONCE_SIZE_BYTES)

    def proof(self, role: str, prover: PeerId, verifier: PeerId, nonces: bytes) -> bytes:
        """The 32-byte proof that `prover` holds the key; `nonces` is the dialer's, then the listener's."""
        return admission_proof(self._key, role, prover, verifier, nonces)

    def admits(self, role: str, prover: PeerId, verifier: PeerId, nonces: bytes, proof: bytes) -> bool:
        """Whether the proof shows the key."""
        return proof_is_good(self._key, role, prover, verifier, nonces, proof)

    def datagram_key(self, shared_secret: bytes) -> bytes:
        """The 32-byte sealing key of a pair of members."""
        return sealing_key(self._key, shared_secret)


def load_mesh_key(home: Path) -> bytes | None:
    """The mesh key of a home, None when it has none yet. UsageError when the file is open to others or holds no key."""
    return load_key(home / FILE_NAME)


def create_mesh_key(home: Path) -> bytes:
    """Make the mesh key of a home (`mesh.key`, mode 0600); one that is already there stays and is given back."""
    return create_key(home / FILE_NAME, secrets.token_bytes(MESH_KEY_SIZE_BYTES))


def settle_mesh_key(home: Path, given: bytes | None, joining: bool) -> bytes:
    """The key this node starts with: the one given, else the home's, else a new one for a new mesh.

    A given key is kept in the home for later starts. UsageError when the home belongs to another mesh already, or
    when a node that is to join others has no key.
    """
    standing = load_mesh_key(home)
    if given is None and standing is None and joining:
        raise UsageError(
            "no mesh key: a node that joins others needs the key of their mesh (`herd config mesh-key` shows it on a"
            " member); give it with --mesh-key-file FILE or HERD_MESH_KEY"
        )
    if given is None:
        return standing if standing is not None else create_mesh_key(home)
    settled = create_key(home / FILE_NAME, given)
    if settled != given:
        raise UsageError(
            f"{home / FILE_NAME}: this home belongs to a mesh with another key than the one given; to move it to the"
            " other mesh, remove that file"
        )
    return settled


def parse_mesh_key(text: str, source: str) -> bytes:
    """The key in a person's 64 hex digits. UsageError naming `source` when they are something else."""
    return parse_key(text, source)
