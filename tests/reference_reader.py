"""A reader of Ollama stores that knows only Ollama's documented layout: the judge of what herd writes.

It imports nothing of herd, so that a mistake of ours cannot hide in a shared helper. It is used by
the store's tests and by the tests with real processes.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BLOB_FILE = re.compile(r"sha256-[0-9a-f]{64}")


class BrokenStore(AssertionError):
    """The store is not as Ollama would have it; the message names the file."""


@dataclass(frozen=True)
class StoredBlob:
    """One blob a manifest names, and the file it must be."""

    digest: str
    size_bytes: int
    media_type: str
    path: Path

    def verify(self) -> None:
        """Size and SHA-256 must be what the manifest says; BrokenStore otherwise."""
        if not self.path.is_file():
            raise BrokenStore(f"{self.path} is missing")
        found_bytes = self.path.stat().st_size
        if found_bytes != self.size_bytes:
            raise BrokenStore(f"{self.path} has {found_bytes} bytes, the manifest says {self.size_bytes}")
        with self.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if "sha256:" + found != self.digest:
            raise BrokenStore(f"{self.path} holds the bytes of sha256:{found}")


@dataclass(frozen=True)
class StoredModel:
    """One model: the manifest as it stands on disk and the blobs it names, layers first, then the config."""

    name: str
    manifest_path: Path
    manifest: bytes
    blobs: tuple[StoredBlob, ...]

    @property
    def model_id(self) -> str:
        """What `ollama list` shows the first twelve characters of."""
        return hashlib.sha256(self.manifest).hexdigest()

    def verify(self) -> None:
        """Every blob must be whole; BrokenStore otherwise."""
        for blob in self.blobs:
            blob.verify()

    def blob_of(self, kind: str) -> StoredBlob:
        """The first blob of a media type ending in `kind` (`model`, `template`, `params`, ...)."""
        for blob in self.blobs:
            if blob.media_type.endswith("." + kind):
                return blob
        raise BrokenStore(f"{self.manifest_path} names no {kind}")


def manifest_path(models_dir: Path, name: str) -> Path:
    """Where the manifest of `[host/][namespace/]model[:tag]` stands."""
    rest, tag = name, "latest"
    if name.rfind(":") > name.rfind("/"):
        rest, tag = name.rsplit(":", 1)
    parts = rest.split("/")
    defaults = ["registry.ollama.ai", "library"]
    host, namespace, model = defaults[: 3 - len(parts)] + parts
    return models_dir / "manifests" / host / namespace / model / tag


def read_model(models_dir: Path, name: str) -> StoredModel:
    """The model of this name; BrokenStore when the manifest is missing or is not what Ollama reads."""
    path = manifest_path(models_dir, name)
    if not path.is_file():
        raise BrokenStore(f"{path} is missing")
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise BrokenStore(f"{path} is not JSON: {error}") from error
    if manifest.get("schemaVersion") != 2:
        raise BrokenStore(f"{path} has schemaVersion {manifest.get('schemaVersion')!r}")
    entries = list(manifest.get("layers") or [])
    if (manifest.get("config") or {}).get("digest"):
        entries.append(manifest["config"])
    return StoredModel(name, path, data, tuple(_blob(models_dir, path, entry) for entry in entries))


def _blob(models_dir: Path, manifest: Path, entry: dict[str, object]) -> StoredBlob:
    digest, size_bytes, media_type = entry.get("digest"), entry.get("size"), entry.get("mediaType")
    if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
        raise BrokenStore(f"{manifest} names a digest {digest!r}")
    if not isinstance(size_bytes, int) or size_bytes < 0:
        raise BrokenStore(f"{manifest} gives {digest} the size {size_bytes!r}")
    path = models_dir / "blobs" / digest.replace(":", "-")
    return StoredBlob(digest, size_bytes, str(media_type), path)


def model_names(models_dir: Path) -> list[str]:
    """Every `host/namespace/model:tag` with a manifest at Ollama's depth, sorted."""
    found = (models_dir / "manifests").glob("*/*/*/*")
    return sorted("/".join(p.parts[-4:-1]) + ":" + p.name for p in found if p.is_file())


def stray_files(models_dir: Path) -> list[Path]:
    """What Ollama would stumble over or prune: manifests of another depth, non-blobs and unreferenced blobs."""
    manifests = models_dir / "manifests"
    strays = [p for p in manifests.rglob("*") if not p.is_dir() and len(p.relative_to(manifests).parts) != 4]
    strays += [p for p in manifests.rglob("*") if p.is_dir() and len(p.relative_to(manifests).parts) >= 4]
    referenced = {blob.path for name in model_names(models_dir) for blob in read_model(models_dir, name).blobs}
    for path in sorted((models_dir / "blobs").iterdir()) if (models_dir / "blobs").is_dir() else []:
        if path not in referenced or _BLOB_FILE.fullmatch(path.name) is None:
            strays.append(path)
    return strays
