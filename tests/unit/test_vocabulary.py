"""protocols/{bits,framing,ids,names,options,signing}: the small words every room uses."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from protocols import framing, ids, signing
from protocols.bits import Bits
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.names import InvalidName, ModelName
from protocols.options import OPTION, option


@given(count=st.integers(1, 200), data=st.data())
def test_bits_survive_the_wire(count: int, data: st.DataObject) -> None:
    held = data.draw(st.sets(st.integers(0, count - 1)))
    bits = Bits(count, held)
    again = Bits.from_bytes(count, bits.to_bytes())
    assert list(again) == sorted(held)
    assert len(again) == len(held)
    assert list(again.missing()) == sorted(set(range(count)) - held)
    assert again.complete() == (len(held) == count)
    assert again == bits.copy()


def test_bits_count_a_chunk_once_and_refuse_what_is_outside() -> None:
    bits = Bits(9)
    assert bits.add(8)
    assert not bits.add(8)
    assert len(bits) == 1
    assert 9 not in bits
    with pytest.raises(IndexError):
        bits.add(9)
    assert Bits.full(9).complete()
    assert Bits(0).complete()


@pytest.mark.parametrize(("count", "data"), [(9, b"\xff"), (9, b"\xff\x40"), (8, b"\xff\x00"), (0, b"\x00")])
def test_a_bitfield_that_does_not_fit_is_the_peers_fault(count: int, data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Bits.from_bytes(count, data)


def test_frames_are_limited_on_both_sides() -> None:
    assert framing.payload_size(framing.frame_header(70_000)) == 70_000
    with pytest.raises(RemoteProtocolError, match="over the limit of 100"):
        framing.payload_size(framing.frame_header(101), 100)
    with pytest.raises(LocalProtocolError):
        framing.frame_header(framing.FRAME_SIZE_BYTES_MAX + 1)


def test_a_peer_id_holds_its_key_and_signs() -> None:
    key = SigningKey(b"\x07" * 32)
    peer = ids.peer_id_from_public_key(bytes(key.verify_key))
    assert peer.startswith("12D3KooW")
    assert ids.public_key_of(peer) == bytes(key.verify_key)
    signature = key.sign(b"words").signature
    assert signing.verify(peer, b"words", signature)
    assert not signing.verify(peer, b"other words", signature)
    assert not signing.verify(peer, b"words", signature[:-1])


def test_the_libp2p_library_agrees_on_the_text_form_of_a_peer_id() -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    pair = create_new_key_pair(b"\x07" * 32)
    assert ids.peer_id_from_public_key(pair.public_key.to_bytes()) == ID.from_pubkey(pair.public_key).to_string()


@pytest.mark.parametrize("text", ["", "12D3KooW", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "0OIl", "é"])
def test_what_is_no_peer_id_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        ids.public_key_of(ids.PeerId(text))


def test_both_ends_derive_the_same_x25519_secret() -> None:
    from nacl.bindings import crypto_scalarmult

    seeds = [b"\x01" * 32, b"\x02" * 32]
    public = [bytes(SigningKey(seed).verify_key) for seed in seeds]
    secrets = [
        crypto_scalarmult(ids.x25519_private_key(seeds[i], public[i]), ids.x25519_public_key(public[1 - i]))
        for i in (0, 1)
    ]
    assert secrets[0] == secrets[1]


def test_digests_have_one_form() -> None:
    digest = ids.parse_digest("sha256-" + "AB" * 32)
    assert digest == "sha256:" + "ab" * 32
    assert ids.blob_file_name(digest) == "sha256-" + "ab" * 32
    for bad in ("sha256:../../etc/passwd", "sha256:" + "a" * 63, "sha512:" + "a" * 64, "sha256:" + "a" * 64 + "\n"):
        with pytest.raises(RemoteProtocolError):
            ids.parse_digest(bad)


@pytest.mark.parametrize(
    ("typed", "full", "shown"),
    [
        ("llama3.2", "registry.ollama.ai/library/llama3.2:latest", "llama3.2:latest"),
        ("bob/x:1b", "registry.ollama.ai/bob/x:1b", "bob/x:1b"),
        ("hf.co/u/r:Q4_K_M", "hf.co/u/r:Q4_K_M", "hf.co/u/r:Q4_K_M"),
        ("10.0.0.5:11435/library/m", "10.0.0.5:11435/library/m:latest", "10.0.0.5:11435/library/m:latest"),
        ("https://registry.ollama.ai/library/m", "registry.ollama.ai/library/m:latest", "m:latest"),
    ],
)
def test_names_read_as_ollama_reads_them(typed: str, full: str, shown: str) -> None:
    name = ModelName.parse(typed)
    assert name.full() == full
    assert name.display() == shown
    assert ModelName.parse(name.full()) == name


@pytest.mark.parametrize(
    "typed", ["", ":", "m:", "/m", "a/b/c/d", "..", "../m", "h:1/m", "n.s/m", "m\n", "é", "a" * 81]
)
def test_bad_names_say_so_in_one_line(typed: str) -> None:
    with pytest.raises(InvalidName, match="invalid model name") as caught:
        ModelName.parse(typed)
    assert "\n" not in str(caught.value)


def test_an_option_checks_its_limits_and_can_be_asked_for_them() -> None:
    @attrs.frozen
    class Config:
        timeout_s: float = option(5.0, unit="s", minimum=0.1, maximum=60, help="How long to wait.")
        mode: str = option("a", choices=("a", "b"), help="Which.")

    assert Config().timeout_s == 5.0
    with pytest.raises(ValueError, match=r"timeout_s: 61 is not allowed: 0.1 to 60"):
        Config(timeout_s=61)
    with pytest.raises(ValueError, match="nan"):
        Config(timeout_s=float("nan"))
    with pytest.raises(ValueError, match="one of a, b"):
        Config(mode="c")
    assert attrs.fields(Config).timeout_s.metadata[OPTION].unit == "s"


def test_a_name_that_is_too_long_is_told_how_long_it_may_be() -> None:
    with pytest.raises(InvalidName, match=r"model 'x+' must begin .* and nothing else, at most 80 characters$"):
        ModelName.parse("x" * 81)
    with pytest.raises(InvalidName, match=r"host .* at most 350 characters$"):
        ModelName.parse("-/a/b")
