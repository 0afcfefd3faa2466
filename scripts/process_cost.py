"""What a running process has cost so far, as the kernel counts it."""

import os
from pathlib import Path

import attrs

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_SIZE_BYTES = os.sysconf("SC_PAGE_SIZE")


@attrs.frozen
class Cost:
    """User and system time of all threads, and the memory that is resident now."""

    cpu_s: float
    resident_bytes: int


def cost_of(pid: int) -> Cost:
    """The cost of a process (proc(5), `stat`). Linux only; FileNotFoundError when there is no such process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Cost((int(fields[11]) + int(fields[12])) / TICKS_PER_S, int(fields[21]) * PAGE_SIZE_BYTES)
