"""The machine a figure belongs to: without it, a number from another one says nothing."""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

PROBE_SIZE_BYTES = 256 * 1024 * 1024
PROBE_BUFFER_BYTES = 4 * 1024 * 1024


def describe(root: Path, folder: Path) -> dict[str, Any]:
    """The machine as JSON data: processor, memory, kernel, Python, the disk of `folder`, the checkout's commit."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "disk_write_mb_per_s": round(disk_write_bytes_per_s(folder) / 1e6),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": commit(root),
    }


def commit(root: Path) -> str:
    """The commit of a checkout, with `+` when tracked files differ from it; `unknown` without git."""
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def disk_write_bytes_per_s(folder: Path) -> float:
    """How fast a new file becomes durable in a folder, in bytes a second."""
    path = folder / "disk-probe"
    data = os.urandom(PROBE_BUFFER_BYTES)
    began = time.perf_counter()
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(PROBE_SIZE_BYTES // PROBE_BUFFER_BYTES):
                file.write(data)
            os.fdatasync(file.fileno())
        return PROBE_SIZE_BYTES / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)


def memory_available_bytes() -> int:
    """How much memory a large file's pages may take without anything being pushed out (proc(5), `meminfo`)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
