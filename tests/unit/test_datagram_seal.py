"""The sealed datagram, byte by byte: what opens, what does not, and under which name it is dropped."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from protocols.datagram import (
    DATAGRAM_SIZE_BYTES_MAX,
    OVERHEAD_SIZE_BYTES,
    PAYLOAD_SIZE_BYTES_MAX,
    WINDOW,
    DatagramRefused,
    Sealer,
)
from protocols.errors import LocalProtocolError
from protocols.ids import PeerId, peer_id_from_public_key
from protocols.trust.admission import sealing_key

MESH_KEY = b"m" * 32


def _key(number: int) -> SigningKey:
    return SigningKey(number.to_bytes(32, "big"))


def _peer(number: int) -> PeerId:
    return peer_id_from_public_key(bytes(_key(number).verify_key))


def _sealer(
    number: int, *, mesh_key: bytes = MESH_KEY, first_sequence: int = 1000, life: bytes = b"lifelife"
) -> Sealer:
    key = _key(number)
    return Sealer(bytes(key), bytes(key.verify_key), lambda secret: sealing_key(mesh_key, secret), first_sequence, life)


def _reason(sealer: Sealer, datagram: bytes) -> str:
    with pytest.raises(DatagramRefused) as refused:
        sealer.open(datagram)
    return refused.value.reason


@given(st.binary(max_size=PAYLOAD_SIZE_BYTES_MAX))
def test_what_is_sealed_opens_at_the_receiver_and_names_its_sender(payload: bytes) -> None:
    datagram = _sealer(1).seal(_peer(2), payload)
    assert len(datagram) == len(payload) + OVERHEAD_SIZE_BYTES <= DATAGRAM_SIZE_BYTES_MAX
    assert _sealer(2).open(datagram) == (_peer(1), payload)


def test_payload_does_not_show_on_the_wire() -> None:
    assert b"secret weights" not in _sealer(1).seal(_peer(2), b"secret weights")


def test_payload_over_the_limit_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="over 1126"):
        _sealer(1).seal(_peer(2), bytes(PAYLOAD_SIZE_BYTES_MAX + 1))


def test_no_datagram_is_sealed_for_a_name_that_is_no_peer() -> None:
    with pytest.raises(LocalProtocolError, match="cannot seal for nobody"):
        _sealer(1).seal(PeerId("nobody"), b"")


def test_same_datagram_a_second_time_is_replayed() -> None:
    alice, bob = _sealer(1), _sealer(2)
    datagram = alice.seal(_peer(2), b"ping")
    bob.open(datagram)
    assert _reason(bob, datagram) == "replayed"


def test_datagrams_may_overtake_each_other_within_the_window() -> None:
    alice, bob = _sealer(1), _sealer(2)
    datagrams = [alice.seal(_peer(2), bytes([number % 256])) for number in range(WINDOW)]
    random.Random(1).shuffle(datagrams)
    for datagram in datagrams:
        bob.open(datagram)
    assert {_reason(bob, datagram) for datagram in datagrams} == {"replayed"}


def test_datagram_older_than_the_window_is_replayed_even_if_never_seen() -> None:
    alice, bob = _sealer(1), _sealer(2)
    old = alice.seal(_peer(2), b"old")
    for _ in range(WINDOW):
        newest = alice.seal(_peer(2), b"new")
    bob.open(newest)
    assert _reason(bob, old) == "replayed"


def test_restarted_sender_goes_on_above_its_earlier_life() -> None:
    bob = _sealer(2)
    earlier = _sealer(1, first_sequence=1_000_000).seal(_peer(2), b"earlier")
    bob.open(earlier)
    later = _sealer(1, first_sequence=2_000_000, life=b"anewlife").seal(_peer(2), b"later")
    assert bob.open(later) == (_peer(1), b"later")
    assert _reason(bob, earlier) == "replayed"


def test_restarted_receiver_takes_a_recording_only_until_the_sender_speaks() -> None:
    alice, bob = _sealer(1), _sealer(2)
    recorded = [alice.seal(_peer(2), b"old") for _ in range(2)]
    for _ in range(WINDOW):
        alice.seal(_peer(2), b"lost")
    for datagram in recorded:
        bob.open(datagram)
    bob = _sealer(2)
    bob.open(recorded[0])
    bob.open(alice.seal(_peer(2), b"new"))
    assert _reason(bob, recorded[1]) == "replayed"


def test_datagram_of_another_mesh_is_foreign() -> None:
    assert _reason(_sealer(2), _sealer(1, mesh_key=b"x" * 32).seal(_peer(2), b"ping")) == "foreign"


@pytest.mark.parametrize("junk", [b"", b"x", b"GET / HTTP/1.1\r\n", bytes(300), b"hrd\x02" + bytes(100)])
def test_what_is_no_datagram_of_ours_is_foreign(junk: bytes) -> None:
    assert _reason(_sealer(2), junk) in ("foreign", "truncated")
    assert _reason(_sealer(2), junk) == "foreign" or b"hrd\x01".startswith(junk)


def test_every_cut_of_a_datagram_is_truncated() -> None:
    datagram = _sealer(1).seal(_peer(2), b"a payload")
    for length in range(1, len(datagram)):
        assert _reason(_sealer(2), datagram[:length]) == "truncated"


def test_every_flipped_byte_is_noticed() -> None:
    datagram = _sealer(1).seal(_peer(2), b"a payload")
    for place in range(len(datagram)):
        flipped = bytes(byte ^ (place == index) for index, byte in enumerate(datagram))
        assert _reason(_sealer(2), flipped) in ("foreign", "truncated", "forged")


def test_datagram_for_somebody_else_does_not_open() -> None:
    assert _reason(_sealer(3), _sealer(1).seal(_peer(2), b"ping")) == "forged"


def test_own_datagram_thrown_back_does_not_open() -> None:
    alice = _sealer(1)
    assert _reason(alice, alice.seal(_peer(2), b"ping")) == "forged"


def test_datagram_over_the_limit_is_oversize() -> None:
    assert _reason(_sealer(2), bytes(DATAGRAM_SIZE_BYTES_MAX + 1)) == "oversize"


def test_key_that_is_no_curve_point_is_forged() -> None:
    datagram = bytearray(_sealer(1).seal(_peer(2), b"ping"))
    for weak in (bytes(32), b"\x01" + bytes(31), b"\xff" * 32):
        datagram[10:42] = weak
        assert _reason(_sealer(2), bytes(datagram)) == "forged"


def test_nonces_never_repeat_between_sender_lives_and_directions() -> None:
    sealers = [_sealer(1), _sealer(1, life=b"another."), _sealer(2)]
    headers = [sealer.seal(_peer(3), b"")[10:58] for sealer in sealers for _ in range(100)]
    # Sender key, sequence and life are the nonce's ingredients; the first two lives use the same sequences.
    nonces = {header[32:] + header[:8] for header in headers}
    assert len(nonces) == 300


def test_sequences_only_grow() -> None:
    sealer = _sealer(1)
    sequences = [int.from_bytes(sealer.seal(_peer(2 + number % 3), b"")[42:50], "big") for number in range(50)]
    assert all(later == earlier + 1 for earlier, later in pairwise(sequences))
