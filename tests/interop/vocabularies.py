"""Real GGUF files for tests: the vocabularies in the source package of llama-cpp-python, taken with pip."""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SOURCE_PACKAGE = "llama-cpp-python==0.3.36"
"""Pinned, so that the tests carry the same bytes everywhere; about 77 MB."""

INSIDE = "/vendor/llama.cpp/models/"
DOWNLOAD_TIMEOUT_S = 300.0


class VocabulariesMissing(Exception):
    """The files could not be had; the message ends with what pip said."""


def cache_folder() -> Path:
    """Where the package stays between runs: inside the virtual environment, which is never committed."""
    return Path(sys.prefix) / "cache" / "vocabularies"


def real_vocabularies() -> list[Path]:
    """The `ggml-vocab-*.gguf` files, sorted by name, downloaded at first use. VocabulariesMissing when that fails."""
    folder = cache_folder() / SOURCE_PACKAGE
    if not folder.is_dir():
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            unpacked = Path(scratch) / "unpacked"
            unpacked.mkdir()
            _unpack(_download(Path(scratch)), unpacked)
            # Renamed last: a folder that is there is complete.
            unpacked.rename(folder)
    return sorted(folder.glob("ggml-vocab-*.gguf"))


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps", "--dest", str(folder)]
    # Only as source: the built package does not hold the vocabularies.
    command += ["--no-binary", SOURCE_PACKAGE.partition("==")[0], SOURCE_PACKAGE]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise VocabulariesMissing(f"pip did not fetch {SOURCE_PACKAGE} within {DOWNLOAD_TIMEOUT_S:g} s") from error
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode != 0 or len(archives) != 1:
        said = "\n".join(result.stderr.splitlines()[-5:])
        raise VocabulariesMissing(f"pip could not fetch the source of {SOURCE_PACKAGE}; is there a network?\n{said}")
    return archives[0]


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as package:
        for member in package:
            name = Path(member.name).name
            if member.isfile() and INSIDE in member.name and name.startswith("ggml-vocab-"):
                data = package.extractfile(member)
                if data is not None:
                    (folder / name).write_bytes(data.read())
