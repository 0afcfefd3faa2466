"""protocols/manifest: which blobs a manifest names, and what is refused before it can name any."""

import json
from typing import Any

import pytest

from protocols.errors import RemoteProtocolError
from protocols.ids import digest_of
from protocols.manifest import LAYER_COUNT_MAX, MANIFEST_SIZE_BYTES_MAX, BlobReference, parse_manifest

A, B, C = (digest_of(text) for text in (b"weights", b"template", b"config"))

LLAMA = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": C, "size": 561},
    "layers": [
        {"mediaType": "application/vnd.ollama.image.model", "digest": A, "size": 2019377376, "from": "/x.gguf"},
        {"mediaType": "application/vnd.ollama.image.template", "digest": B, "size": 1429, "later": {"field": 1}},
    ],
}


def as_bytes(**changes: Any) -> bytes:
    return json.dumps({**LLAMA, **changes}).encode()


def layer(**changes: Any) -> dict[str, Any]:
    return {"mediaType": "application/vnd.ollama.image.model", "digest": A, "size": 7, **changes}


def test_a_manifest_names_its_layers_blobs_and_then_its_config() -> None:
    raw = as_bytes()
    manifest = parse_manifest(raw)
    assert manifest.blobs() == (BlobReference(A, 2019377376), BlobReference(B, 1429), BlobReference(C, 561))
    assert manifest.size_bytes == 2019377376 + 1429 + 561
    assert manifest.raw == raw
    assert manifest.digest == digest_of(raw)


def test_one_blob_named_twice_is_one_blob() -> None:
    manifest = parse_manifest(as_bytes(layers=[layer(), layer(name="again")], config=layer()))
    assert manifest.blobs() == (BlobReference(A, 7),)
    assert manifest.size_bytes == 7


def test_one_digest_with_two_sizes_is_a_lie() -> None:
    with pytest.raises(RemoteProtocolError, match="two sizes: 7 and 8"):
        parse_manifest(as_bytes(layers=[layer(), layer(size=8)]))


@pytest.mark.parametrize("layers", [[], None], ids=["empty", "null as Go writes it"])
@pytest.mark.parametrize("config", [None, {}, {"digest": "", "size": 0}], ids=["null", "empty", "no digest"])
def test_a_cloud_stub_names_nothing(layers: Any, config: Any) -> None:
    manifest = parse_manifest(as_bytes(layers=layers, config=config))
    assert manifest.blobs() == ()
    assert manifest.size_bytes == 0


def test_an_old_digest_form_means_the_same_blob() -> None:
    old = layer(digest=A.replace(":", "-"))
    assert parse_manifest(as_bytes(layers=[old], config=None)).blobs() == (BlobReference(A, 7),)


def test_a_digest_in_upper_case_names_a_file_that_no_store_has() -> None:
    shouting = A.upper().replace("SHA256", "sha256")
    with pytest.raises(RemoteProtocolError, match=f"layer 0 spells its digest in upper case: {shouting}"):
        parse_manifest(as_bytes(layers=[layer(digest=shouting)], config=None))


def test_keys_are_read_in_any_case_as_ollama_reads_them() -> None:
    shouting = {"MediaType": "m", "DIGEST": A, "ſize": 7}  # Go folds the long s too.
    assert parse_manifest(as_bytes(layers=[shouting], config=None)).blobs() == (BlobReference(A, 7),)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "no JSON"),
        (as_bytes()[:-1], "no JSON"),
        (as_bytes() + b"x", "no JSON"),
        (as_bytes().decode().encode("utf-16"), "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no JSON object"),
        (b"{}", "no layers"),
        (b'{"manifests":[]}', "list of manifests"),
        (b'{"layers":{}}', "no list"),
        (b'{"layers":[1]}', "layer 0 is no object"),
        (b'{"layers":[],"layers":[]}', "twice"),
        (b'{"layers":[],"Layers":[]}', "twice"),
        (b'{"layers":[],"x":NaN}', "NaN is not allowed"),
        (b'{"layers":[],"x":' + b"9" * 5000 + b"}", "no JSON"),
        (as_bytes(layers=[layer(size=-1)]), "no sane size: -1"),
        (as_bytes(layers=[layer(size=2**50)]), "no sane size"),
        (as_bytes(layers=[layer(size=1.0)]), "no sane size"),
        (as_bytes(layers=[layer(size=True)]), "no sane size"),
        (as_bytes(layers=[layer(size=None)]), "no sane size"),
        (as_bytes(layers=[layer(digest=None)]), "not a sha256 digest"),
        (as_bytes(layers=[layer(digest=["a"])]), "no text"),
        (as_bytes(layers=[layer(digest="sha256:../../../../etc/passwd")]), "not a sha256 digest"),
        (as_bytes(layers=[layer(digest=A + "\n")]), "not a sha256 digest"),
        (as_bytes(config="sha256"), "config is no object"),
        (as_bytes(layers=[layer()] * (LAYER_COUNT_MAX + 1)), "is over 20000"),
        (b" " * (MANIFEST_SIZE_BYTES_MAX + 1), "is over 4194304"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:24].decode("utf-8", "replace"),
)
def test_what_is_no_manifest_is_the_senders_fault(raw: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        parse_manifest(raw)
