"""Who this node is: one Ed25519 key, made on the first start and kept in the node's home."""

import secrets
from functools import cached_property
from pathlib import Path

import attrs
from nacl.signing import SigningKey

from node.trust.key_file import KEY_SIZE_BYTES, create_key, load_key
from protocols.ids import PeerId, peer_id_from_public_key

FILE_NAME = "identity.key"


def _check_seed(_instance: object, _attribute: object, value: bytes) -> None:
    if len(value) != KEY_SIZE_BYTES:
        raise ValueError(f"an Ed25519 seed has {KEY_SIZE_BYTES} bytes, not {len(value)}")


@attrs.frozen
class Identity:
    """A node's key pair, made from its 32-byte seed. The seed shows in no repr and no log."""

    seed: bytes = attrs.field(repr=False, validator=_check_seed)

    @cached_property
    def _signing_key(self) -> SigningKey:
        return SigningKey(self.seed)

    @cached_property
    def public_key(self) -> bytes:
        """The 32 bytes of the Ed25519 public key."""
        return bytes(self._signing_key.verify_key)

    @cached_property
    def peer_id(self) -> PeerId:
        """This node's name in the mesh."""
        return peer_id_from_public_key(self.public_key)

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature over `data`."""
        return bytes(self._signing_key.sign(data).signature)


def load_or_create_identity(home: Path) -> Identity:
    """The identity of a home; a home without one gets one (`identity.key`, mode 0600).

    UsageError naming the file and the remedy when the file is open to others or holds no key.
    """
    path = home / FILE_NAME
    seed = load_key(path)
    return Identity(seed if seed is not None else create_key(path, secrets.token_bytes(KEY_SIZE_BYTES)))
