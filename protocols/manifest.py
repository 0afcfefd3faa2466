"""Ollama's manifests: what a model is made of, read strictly and kept as the bytes they came in.

A model's id is the SHA-256 of its manifest bytes, so the bytes are never written anew; what is parsed here only
says which blobs they name. Format: Docker image manifest v2 schema 2 with Ollama's media types.
"""

import json
import re
from typing import Any

import attrs

from protocols.errors import RemoteProtocolError
from protocols.ids import Digest, digest_of, parse_digest
from protocols.recipe.gguf import GgufError, GgufHeader
from protocols.recipe.gguf_types import TENSOR_TYPES, TENSOR_TYPES_OLLAMA_REFUSES

MANIFEST_SIZE_BYTES_MAX = 4 * 1024 * 1024
LAYER_COUNT_MAX = 20_000
BLOB_SIZE_BYTES_MAX = 2**50 - 1

MANIFEST_MEDIA_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_MEDIA_TYPE = "application/vnd.docker.container.image.v1+json"
MODEL_MEDIA_TYPE = "application/vnd.ollama.image.model"

_ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,79}")


@attrs.frozen
class BlobReference:
    """One blob a manifest names, and how many bytes it says the blob has."""

    digest: Digest
    size_bytes: int


@attrs.frozen
class Layer:
    """One entry of a manifest: `name` is set for tensors and files inside a model, empty otherwise."""

    media_type: str
    digest: Digest
    size_bytes: int
    name: str = ""


@attrs.frozen
class Manifest:
    """A parsed manifest; `raw` is what it was parsed from, fields this reader does not know included."""

    raw: bytes = attrs.field(repr=False)
    media_type: str
    layers: tuple[Layer, ...]
    config: Layer | None
    _blobs: tuple[BlobReference, ...] = attrs.field(repr=False)

    @property
    def digest(self) -> Digest:
        """The model's id: the SHA-256 of the manifest bytes."""
        return digest_of(self.raw)

    @property
    def size_bytes(self) -> int:
        """The bytes of all distinct blobs: what a store must hold."""
        return sum(blob.size_bytes for blob in self._blobs)

    def blobs(self) -> tuple[BlobReference, ...]:
        """The distinct blobs, the layers' in order and the config's last, as Ollama pulls them."""
        return self._blobs


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in the bytes of a manifest file.

    Unknown fields are allowed, a missing config and an empty list of layers too, and one digest may stand more
    than once if its sizes agree. Raises RemoteProtocolError for anything that is no such manifest.
    """
    if len(data) > MANIFEST_SIZE_BYTES_MAX:
        raise RemoteProtocolError(f"a manifest of {len(data)} bytes is over {MANIFEST_SIZE_BYTES_MAX}")
    fields = _parse_object(data)
    if "layers" not in fields:
        if "manifests" in fields:
            raise RemoteProtocolError("the manifest is a list of manifests, which this release does not carry")
        raise RemoteProtocolError("the manifest has no layers field")
    # Go writes an empty list as null.
    entries = fields["layers"] if fields["layers"] is not None else []
    if not isinstance(entries, list):
        raise RemoteProtocolError("the manifest's layers are no list")
    if len(entries) > LAYER_COUNT_MAX:
        raise RemoteProtocolError(f"a manifest of {len(entries)} layers is over {LAYER_COUNT_MAX}")
    layers = tuple(_parse_layer(entry, f"layer {index}") for index, entry in enumerate(entries))
    config = _parse_config(fields.get("config"))
    listed = (*layers, config) if config is not None else layers
    return Manifest(bytes(data), _text(fields, "mediaType", "manifest"), layers, config, _distinct(listed))


@attrs.frozen
class GgufModel:
    """A bare GGUF file made into a model: the two small texts that Ollama wants beside it.

    The config is a blob of its own, the manifest names it and the file. The same file gives the same bytes on
    every host, hence the same model id.
    """

    config_bytes: bytes
    manifest_bytes: bytes

    @property
    def config_digest(self) -> Digest:
        """Under which the config stands among the blobs."""
        return digest_of(self.config_bytes)

    @property
    def manifest_digest(self) -> Digest:
        """The model's id."""
        return digest_of(self.manifest_bytes)


def model_from_gguf(header: GgufHeader, digest: Digest, size_bytes: int) -> GgufModel:
    """Config and manifest for the GGUF blob of this digest and size.

    A file with a vocabulary and no weights counts as a model. Raises GgufError, with the reason, for a file that
    Ollama cannot load as a model by itself: one part of several, an adapter, a projector, an unknown tensor type.
    """
    _check_is_model(header)
    config = {
        "model_format": "gguf",
        "model_family": header.architecture,
        "model_families": [header.architecture],
        "model_type": header.model_type,
        "file_type": header.file_type,
        "architecture": "amd64",
        "os": "linux",
    }
    config_bytes = _compact_json(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {
            "mediaType": CONFIG_MEDIA_TYPE,
            "digest": digest_of(config_bytes),
            "size": len(config_bytes),
        },
        "layers": [{"mediaType": MODEL_MEDIA_TYPE, "digest": digest, "size": size_bytes}],
    }
    return GgufModel(config_bytes, _compact_json(manifest))


def _compact_json(value: Any) -> bytes:
    # No newline at the end: Ollama computes the id over what its JSON reader consumed, which may leave one out.
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _check_is_model(header: GgufHeader) -> None:
    if header.split_count > 1:
        raise GgufError(
            f"it is one of {header.split_count} parts of a model: merge them into one file first"
            " (llama-gguf-split --merge)"
        )
    if header.is_projector:
        raise GgufError("it is a projector (the vision or audio half of a model), not a model by itself")
    if header.general_type not in ("model", "vocab"):
        raise GgufError(f"its general.type is {header.general_type[:40]!a}, and only a model can be added")
    if _ARCHITECTURE.fullmatch(header.architecture) is None:
        shown = f"{header.architecture[:40]!a}" if header.architecture else "missing"
        raise GgufError(f"its general.architecture is {shown}, so Ollama could not load it")
    for tensor in header.tensors:
        if tensor.type in TENSOR_TYPES_OLLAMA_REFUSES:
            raise GgufError(f"tensor {tensor.name[:80]!a} is {TENSOR_TYPES[tensor.type].name}, which Ollama refuses")


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        # Decoding here keeps out UTF-16 and UTF-32, which json.loads would take and Ollama would not.
        fields = json.loads(data.decode("utf-8"), object_pairs_hook=_fold_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"the manifest is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RemoteProtocolError("the manifest is no JSON object")
    return fields


def _fold_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Ollama's JSON reader ignores the case of keys and lets the last one win. Two readers of one manifest must
    # never see different blobs, so the keys are folded as it does and a repeated key is refused.
    folded = {key.casefold(): value for key, value in pairs}
    if len(folded) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return folded


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not allowed")


def _parse_config(entry: Any) -> Layer | None:
    if entry is None:
        return None
    if isinstance(entry, dict) and not entry.get("digest"):
        return None
    return _parse_layer(entry, "config")


def _parse_layer(entry: Any, which: str) -> Layer:
    if not isinstance(entry, dict):
        raise RemoteProtocolError(f"the manifest's {which} is no object")
    size_bytes = entry.get("size")
    if type(size_bytes) is not int or not 0 <= size_bytes <= BLOB_SIZE_BYTES_MAX:
        raise RemoteProtocolError(f"the manifest's {which} has no sane size: {str(size_bytes)[:40]}")
    spelled = _text(entry, "digest", which)
    digest = parse_digest(spelled)
    if spelled.lower() != spelled:
        # Ollama looks for the blob under this very spelling; no store that keeps blobs in lower case has it there.
        raise RemoteProtocolError(f"the manifest's {which} spells its digest in upper case: {spelled}")
    return Layer(_text(entry, "mediaType", which), digest, size_bytes, _text(entry, "name", which))


def _text(fields: dict[str, Any], key: str, which: str) -> str:
    value = fields.get(key.casefold())
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RemoteProtocolError(f"the manifest's {which} has a {key} that is no text")
    return value


def _distinct(listed: tuple[Layer, ...]) -> tuple[BlobReference, ...]:
    size_of: dict[Digest, int] = {}
    for layer in listed:
        known = size_of.setdefault(layer.digest, layer.size_bytes)
        if known != layer.size_bytes:
            raise RemoteProtocolError(f"the manifest gives {layer.digest} two sizes: {known} and {layer.size_bytes}")
    return tuple(BlobReference(digest, size_bytes) for digest, size_bytes in size_of.items())
