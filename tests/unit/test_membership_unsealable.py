"""A lying member makes up an identity that can sign but for which nobody can seal: no node may stumble over it."""

import hashlib

import attrs
import pytest
from nacl.bindings import crypto_core_ed25519_add, crypto_scalarmult_ed25519_base_noclamp

from protocols.errors import RemoteProtocolError
from protocols.ids import peer_id_from_public_key
from protocols.membership.messages import UPDATES, AliveUpdate
from protocols.membership.record import read_record, sign_record
from protocols.signing import verify
from tests.support_membership import Person
from tests.support_membership_transcript import blames, core_knowing, hear

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
POINT_OF_ORDER_8 = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
TWO = Person(2)


def _point(scalar: int) -> bytes:
    return crypto_scalarmult_ed25519_base_noclamp((scalar % GROUP_ORDER).to_bytes(32, "little"))


class MixedOrder:
    """An Ed25519 key with a part of order 8: a signature holds whenever its hash is divisible by 8."""

    def __init__(self, secret: int) -> None:
        self._secret = secret
        self._public_key = crypto_core_ed25519_add(_point(secret), POINT_OF_ORDER_8)
        self.peer = peer_id_from_public_key(self._public_key)

    def sign(self, data: bytes) -> bytes:
        """64 bytes that verify."""
        nonce = 1
        while True:
            nonce += 1
            commitment = _point(nonce)
            digest = hashlib.sha512(commitment + self._public_key + data).digest()
            challenge = int.from_bytes(digest, "little") % GROUP_ORDER
            if challenge % 8 == 0:
                return commitment + ((nonce + challenge * self._secret) % GROUP_ORDER).to_bytes(32, "little")


def test_a_record_of_an_identity_nobody_can_seal_for_is_refused_and_its_teller_blamed() -> None:
    liar = MixedOrder(12345)
    signed = sign_record(attrs.evolve(TWO.record(), peer=liar.peer), liar.sign)
    assert verify(liar.peer, b"anything", liar.sign(b"anything"))
    with pytest.raises(RemoteProtocolError, match="not a point of the curve"):
        read_record(signed)

    core = core_knowing(TWO)
    [blame] = blames(hear(core, TWO, UPDATES.encode(AliveUpdate(signed))))
    assert "sent an update that is not true" in blame
    assert core.alive() == [TWO.peer]
