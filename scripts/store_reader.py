"""Reads a model out of an Ollama store with nothing but the standard library, trusting no word of herd's.

The layout: `manifests/HOST/NAMESPACE/MODEL/TAG` names blobs by digest, `blobs/sha256-HEX` hold their bytes.
"""

import hashlib
import json
from pathlib import Path

import attrs


class StoreProblem(Exception):
    """The store does not hold what the manifest promises; the message names the file."""


@attrs.frozen
class StoredModel:
    """One model as it stands on disk, every byte of it read: the manifest's bytes and the size of its blobs."""

    manifest: bytes
    size_bytes: int

    @property
    def digest(self) -> str:
        """The model's id: the SHA-256 of its manifest."""
        return "sha256:" + hashlib.sha256(self.manifest).hexdigest()


def read_stored_model(models: Path, name: str) -> StoredModel:
    """Read and re-hash one model, `[namespace/]model:tag` of the default host. StoreProblem when anything is off."""
    path, _, tag = name.partition(":")
    namespace, _, model = path.rpartition("/")
    file = models / "manifests" / "registry.ollama.ai" / (namespace or "library") / model / tag
    try:
        manifest = file.read_bytes()
        parsed = json.loads(manifest)
        promised = {layer["digest"]: layer["size"] for layer in [*parsed["layers"], parsed["config"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreProblem(f"{file}: no manifest can be read: {error!r}") from error
    for digest, size_bytes in promised.items():
        check_blob(models / "blobs" / digest.replace(":", "-"), digest, size_bytes)
    return StoredModel(manifest, sum(promised.values()))


def check_blob(file: Path, digest: str, size_bytes: int) -> None:
    """Read a blob from its first to its last byte. StoreProblem when size or SHA-256 are not what was promised."""
    try:
        with file.open("rb") as opened:
            found = "sha256:" + hashlib.file_digest(opened, "sha256").hexdigest()
            found_bytes = opened.tell()
    except OSError as error:
        raise StoreProblem(f"{file}: {error.strerror}") from error
    if found_bytes != size_bytes:
        raise StoreProblem(f"{file}: has {found_bytes} bytes, its manifest says {size_bytes}")
    if found != digest:
        raise StoreProblem(f"{file}: holds {found}")
