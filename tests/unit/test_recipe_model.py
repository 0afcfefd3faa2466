"""protocols/manifest: a bare GGUF becomes a model that every host names alike."""

import json
from typing import Any

import pytest

from protocols.ids import digest_of
from protocols.manifest import BlobReference, model_from_gguf, parse_manifest
from protocols.recipe.gguf import GgufError
from tests.support_recipe import LLAMA_METADATA, STRING, UINT32, Tensor, f16_tensor, gguf_bytes, header_of

DIGEST = digest_of(b"the file")


def test_config_and_manifest_stand_byte_for_byte() -> None:
    header = header_of(gguf_bytes([f16_tensor("token_embd.weight", bytes(2_000_000))]))
    model = model_from_gguf(header, DIGEST, 2019377376)
    assert model.config_bytes == (
        b'{"model_format":"gguf","model_family":"llama","model_families":["llama"],"model_type":"1M",'
        b'"file_type":"Q4_K_M","architecture":"amd64","os":"linux"}'
    )
    assert model.manifest_bytes == (
        b'{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",'
        b'"config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"'
        + digest_of(model.config_bytes).encode()
        + b'","size":148},"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"'
        + DIGEST.encode()
        + b'","size":2019377376}]}'
    )


def test_our_own_reader_finds_both_blobs_in_the_manifest() -> None:
    model = model_from_gguf(header_of(gguf_bytes()), DIGEST, 7)
    manifest = parse_manifest(model.manifest_bytes)
    assert manifest.blobs() == (
        BlobReference(DIGEST, 7),
        BlobReference(model.config_digest, len(model.config_bytes)),
    )
    assert manifest.digest == model.manifest_digest


def test_a_vocabulary_is_a_model_of_no_parameters() -> None:
    config = json.loads(model_from_gguf(header_of(gguf_bytes()), DIGEST, 7).config_bytes)
    assert (config["model_type"], config["model_family"]) == ("0", "llama")


@pytest.mark.parametrize(
    ("metadata", "tensors", "reason"),
    [
        ([*LLAMA_METADATA, ("split.count", 2, 3)], [], "one of 3 parts of a model: merge"),
        ([*LLAMA_METADATA, ("general.type", STRING, "adapter")], [], "general.type is 'adapter'"),
        ([*LLAMA_METADATA, ("general.type", STRING, "imatrix")], [], "general.type is 'imatrix'"),
        ([*LLAMA_METADATA, ("general.type", STRING, "mmproj")], [], "it is a projector"),
        ([("general.name", STRING, "x")], [], "general.architecture is missing"),
        ([("general.architecture", UINT32, 3)], [], "general.architecture is missing"),
        ([("general.architecture", STRING, 'a","os":"x')], [], "general.architecture is 'a"),
        (LLAMA_METADATA, [Tensor("t", (256,), 34, bytes(54))], "tensor 't' is TQ1_0, which Ollama refuses"),
    ],
    ids=["split", "adapter", "imatrix", "projector", "none", "not text", "not a name", "ternary"],
)
def test_what_ollama_could_not_load_is_refused(
    metadata: list[tuple[str, int, Any]], tensors: list[Tensor], reason: str
) -> None:
    with pytest.raises(GgufError, match=reason):
        model_from_gguf(header_of(gguf_bytes(tensors, metadata)), DIGEST, 7)
