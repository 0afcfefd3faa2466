"""What a running process has cost so far, as the kernel counts it (proc(5)). Linux only."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_SIZE_BYTES = os.sysconf("SC_PAGE_SIZE")


@attrs.frozen
class Cost:
    """User and system time of all threads, the memory that is resident now, and the most that ever was."""

    cpu_s: float
    resident_bytes: int
    resident_bytes_peak: int

    def since(self, before: "Cost") -> "Cost":
        """The CPU time since an earlier look; memory as it is in this one."""
        return Cost(self.cpu_s - before.cpu_s, self.resident_bytes, self.resident_bytes_peak)


def cost_of(pid: int) -> Cost:
    """The cost of one process, without its children. FileNotFoundError when there is no such process."""
    return _cost(pid, with_reaped=False)


def cost_of_tree(pid: int) -> Cost:
    """The cost of a process and all it started: what ended and was waited for counts with its CPU time.

    Memory is the sum over who lives, so pages that they share count for each. FileNotFoundError when `pid` is gone.
    """
    costs = [_cost(pid, with_reaped=True)]
    for descendant in descendants(pid):
        # Who ends between two looks is counted by its parent, if that waits for it.
        with suppress(OSError):
            costs.append(_cost(descendant, with_reaped=True))
    return Cost(
        sum(cost.cpu_s for cost in costs),
        sum(cost.resident_bytes for cost in costs),
        sum(cost.resident_bytes_peak for cost in costs),
    )


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process and its children started and that still live."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for task in tasks:
        with suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)


def reset_peak(pid: int) -> None:
    """Let the peak of a process and of all it started begin anew at what is resident now. OSError when not allowed."""
    for one in (pid, *descendants(pid)):
        Path(f"/proc/{one}/clear_refs").write_text("5")


def _cost(pid: int, *, with_reaped: bool) -> Cost:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11 : 15 if with_reaped else 13]))
    return Cost(ticks / TICKS_PER_S, int(fields[21]) * PAGE_SIZE_BYTES, _peak_bytes(pid))


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # a process that has ended and is not yet waited for has no memory
