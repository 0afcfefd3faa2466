"""The progress of an add, a pull or a check: a live bar on a terminal, plain lines in a log, NDJSON for a program."""

import time
from collections.abc import Iterator
from typing import Any, Protocol

from node.cli.output import (
    as_view,
    console,
    document,
    line,
    seconds_text,
    size_text,
    stdout_is_terminal,
    visible,
)
from node.views import Progress

PLAIN_INTERVAL_S = 5.0


class Display(Protocol):
    """Shows each state of one operation."""

    def __enter__(self) -> "Display": ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, progress: Progress) -> None:
        """The newest state."""
        ...


def follow(lines: Iterator[dict[str, Any]], *, json_lines: bool) -> dict[str, Any]:
    """Show an operation's lines until its report, and give the report."""
    if json_lines:
        report: dict[str, Any] = {}
        for one in lines:
            document(one, lines=True)
            report = one.get("report", report)
        return report
    display: Display = BarDisplay() if stdout_is_terminal() else PlainDisplay(time.monotonic())
    with display:
        for one in lines:
            if "report" in one:
                return dict(one["report"])
            display.show(as_view(one, Progress))
    return {}


def progress_text(progress: Progress, speed_bytes_per_s: float) -> str:
    """`fetching llama3.2:latest: 1.2 GB of 2.0 GB (60 %) from 2 peers, 110 MB/s, 7 s left`."""
    if not progress.size_bytes:
        return f"{progress.phase} {progress.model}".rstrip()
    amount = f"{size_text(progress.held_bytes)} of {size_text(progress.size_bytes)}"
    parts = [f"{progress.phase} {progress.model}: {amount} ({100 * progress.held_bytes // progress.size_bytes} %)"]
    if progress.sources:
        parts[0] += f" from {sources_text(len(progress.sources))}"
    if speed_bytes_per_s > 0:
        left = (progress.size_bytes - progress.held_bytes) / speed_bytes_per_s
        parts += [f"{size_text(speed_bytes_per_s)}/s", f"{seconds_text(left)} left"]
    return ", ".join(parts)


def sources_text(count: int) -> str:
    """`1 peer`, `3 peers`."""
    return "1 peer" if count == 1 else f"{count} peers"


class PlainDisplay:
    """One line every few seconds and at every new phase."""

    def __init__(self, now: float) -> None:
        self._phase = ""
        self._at, self._held_bytes = now, -1

    def __enter__(self) -> "PlainDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase == self._phase and now - self._at < PLAIN_INTERVAL_S:
            return
        moved = progress.held_bytes - self._held_bytes if self._held_bytes >= 0 and now > self._at else 0
        speed = moved / (now - self._at) if progress.phase == self._phase and now > self._at else 0.0
        self._phase, self._at, self._held_bytes = progress.phase, now, progress.held_bytes
        line(progress_text(progress, speed))


class BarDisplay:
    """A bar with bytes, speed, sources and the time left."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[amount]}", markup=False),
            TransferSpeedColumn(),
            TextColumn("{task.fields[sources]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console(),
            transient=True,
            expand=True,
        )
        self._task = self._bars.add_task("asking", total=None, amount="", sources="")
        self._phase = ""

    def __enter__(self) -> "BarDisplay":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            # A new phase counts from the start: its speed has nothing to do with the last one's.
            self._phase = progress.phase
            self._bars.reset(self._task)
        self._bars.update(
            self._task,
            description=visible(progress.phase),
            completed=progress.held_bytes,
            total=progress.size_bytes or None,
            amount=f"{size_text(progress.held_bytes)} of {size_text(progress.size_bytes)}",
            sources=sources_text(len(progress.sources)) if progress.sources else "",
        )
