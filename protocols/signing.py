"""Ed25519 signatures over canonical bytes; a peer id is its own verification key."""

from collections.abc import Callable
from functools import lru_cache

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from protocols.ids import PeerId, public_key_of

Signer = Callable[[bytes], bytes]
"""Signs bytes with this node's identity; gives 64 bytes."""


REMEMBERED_MAX = 2048
REMEMBERED_SIZE_BYTES_MAX = 1024
"""What is small, as the records of members are, comes from many sides and is verified once, among the last so many."""


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) over `data` is the peer's. RemoteProtocolError when `peer` is no peer id."""
    if len(signature) != 64:
        return False
    if len(data) <= REMEMBERED_SIZE_BYTES_MAX:
        return _remembered(peer, data, signature)
    return _verify(peer, data, signature)


def _verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(public_key_of(peer)).verify(data, signature)
    except BadSignatureError:
        return False
    return True


_remembered = lru_cache(REMEMBERED_MAX)(_verify)
