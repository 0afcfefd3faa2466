"""Ed25519 signatures over canonical bytes; a peer id is its own verification key."""

from collections.abc import Callable

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from protocols.ids import PeerId, public_key_of

Signer = Callable[[bytes], bytes]
"""Signs bytes with this node's identity; gives 64 bytes."""


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) over `data` is the peer's. RemoteProtocolError when `peer` is no peer id."""
    if len(signature) != 64:
        return False
    try:
        VerifyKey(public_key_of(peer)).verify(data, signature)
    except BadSignatureError:
        return False
    return True
