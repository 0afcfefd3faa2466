"""Proofs and sealing keys: good for exactly what they were made for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError
from protocols.ids import PeerId
from protocols.trust.admission import admission_proof, proof_is_good, sealing_key

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")
NONCES = bytes(range(64))


def test_a_proof_is_good_for_its_role_its_ends_its_nonces_and_its_key_only() -> None:
    proof = admission_proof(KEY, "dialer", ANN, BOB, NONCES)
    assert len(proof) == 32
    assert proof_is_good(KEY, "dialer", ANN, BOB, NONCES, proof)
    assert not proof_is_good(OTHER_KEY, "dialer", ANN, BOB, NONCES, proof)
    assert not proof_is_good(KEY, "listener", ANN, BOB, NONCES, proof)
    assert not proof_is_good(KEY, "dialer", BOB, ANN, NONCES, proof)
    assert not proof_is_good(KEY, "dialer", EVE, BOB, NONCES, proof)
    assert not proof_is_good(KEY, "dialer", ANN, EVE, NONCES, proof)
    assert not proof_is_good(KEY, "dialer", ANN, BOB, NONCES[::-1], proof)
    assert not proof_is_good(KEY, "dialer", ANN, BOB, NONCES, proof[:-1])
    assert not proof_is_good(KEY, "dialer", ANN, BOB, NONCES, b"")


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_no_two_pairs_of_names_share_a_proof(one: str, two: str, three: str, four: str) -> None:
    first = admission_proof(KEY, "dialer", PeerId(one), PeerId(two), NONCES)
    second = admission_proof(KEY, "dialer", PeerId(three), PeerId(four), NONCES)
    assert (first == second) == ((one, two) == (three, four))


def test_a_sealing_key_needs_both_secrets_and_is_no_proof() -> None:
    key = sealing_key(KEY, bytes(32))
    assert len(key) == 32
    assert key != sealing_key(OTHER_KEY, bytes(32))
    assert key != sealing_key(KEY, b"\x01" * 32)
    assert key == sealing_key(KEY, bytes(32))


@pytest.mark.parametrize(
    ("key", "role", "nonces"),
    [(b"short", "dialer", NONCES), (KEY, "server", NONCES), (KEY, "dialer", NONCES[:-1])],
)
def test_misuse_is_our_own_bug(key: bytes, role: str, nonces: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        admission_proof(key, role, ANN, BOB, nonces)
