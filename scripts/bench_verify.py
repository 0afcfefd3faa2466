"""Measure the verify pass, which adopting a store costs: GB/s against raw BLAKE3 and SHA-256 over the same file.

Raw means both hashes one after the other over each buffer of one read loop, nothing else. The two are run in turn
so that whatever else the machine does hits both; the file is read once before, so that the disk is not measured.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from node.store.verify import hash_file
from protocols.recipe.rules import DEFAULT_TARGET_SIZE_BYTES
from scripts.make_gguf import DEFAULT_SIZE_BYTES, write_llama_gguf

RAW_BUFFER_SIZE_BYTES = 4 * 1024 * 1024
RATIO_MIN = 0.8


def raw_pass(path: Path) -> str:
    """Both hashes over the whole file; the SHA-256 in hex."""
    whole, chunks = hashlib.sha256(), blake3()
    buffer = memoryview(bytearray(RAW_BUFFER_SIZE_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            whole.update(buffer[:count])
            chunks.update(buffer[:count])
    return whole.hexdigest()


def timed_s(work: Callable[[], object]) -> float:
    """How long one run takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(path: Path, target_size_bytes: int, rounds: int) -> dict[str, float | int | str]:
    """Medians over `rounds` of each pass, in GB/s (10^9 bytes)."""
    digest, recipe = hash_file(path, target_size_bytes)
    if digest != "sha256:" + raw_pass(path):
        raise SystemExit(f"{path}: the two passes disagree about the digest")
    raw_s, verify_s = [], []
    for _ in range(rounds):
        raw_s.append(timed_s(lambda: raw_pass(path)))
        verify_s.append(timed_s(lambda: hash_file(path, target_size_bytes)))
    raw = recipe.size_bytes / statistics.median(raw_s) / 1e9
    verify = recipe.size_bytes / statistics.median(verify_s) / 1e9
    return {
        "size_bytes": recipe.size_bytes,
        "rule": recipe.rule,
        "chunks": len(recipe),
        "recipe_bytes": len(recipe.to_bytes()),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "rounds": rounds,
        "raw_gb_per_s": round(raw, 3),
        "verify_gb_per_s": round(verify, 3),
        "ratio": round(verify / raw, 3),
    }


def main() -> int:
    """The command line; exit 1 when the ratio is under 0.8."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", help="the file to hash (default: a llama written for it)")
    parser.add_argument("--size-mb", type=float, default=DEFAULT_SIZE_BYTES / 1e6, help="size of the llama, 10^6 bytes")
    parser.add_argument("--chunk-size", type=int, default=DEFAULT_TARGET_SIZE_BYTES, help="target in bytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as directory:
        path = arguments.path
        if path is None:
            path = Path(directory) / "llama.gguf"
            write_llama_gguf(path, int(arguments.size_mb * 1e6))
        result = measure(path, arguments.chunk_size, arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"{result['size_bytes']} bytes, rule {result['rule']}, {result['chunks']} chunks")
        print(f"raw BLAKE3 + SHA-256  {result['raw_gb_per_s']:.2f} GB/s")
        print(f"verify pass           {result['verify_gb_per_s']:.2f} GB/s")
        print(f"ratio                 {result['ratio']:.2f} (at least {RATIO_MIN})")
    return 0 if float(result["ratio"]) >= RATIO_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
