"""What was measured before: one JSON file, one run a line, oldest first, so that a diff shows what a run added."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benchmark.figures import RowResult, row_document

Run = dict[str, Any]


class HistoryUnreadable(Exception):
    """The file is there but is no history; the message names it and the remedy."""


def run_document(at: str, machine: dict[str, Any], results: Sequence[RowResult]) -> Run:
    """One run as JSON data; `at` is the date and time as text."""
    return {"at": at, "machine": machine, "rows": [row_document(result) for result in results]}


def read_history(path: Path) -> list[Run]:
    """Every run, oldest first; none when there is no file yet. HistoryUnreadable for anything else."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise HistoryUnreadable(f"{path} is no JSON: repair it, or move it away") from error
    if not isinstance(runs, list) or not all(isinstance(run, dict) and "rows" in run for run in runs):
        raise HistoryUnreadable(f"{path} is no list of runs: repair it, or move it away")
    return runs


def add_run(path: Path, run: Run) -> list[Run]:
    """Append a run; the whole history. A reader never sees half a file."""
    runs = [*read_history(path), run]
    lines = ",\n".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    temporary.replace(path)
    return runs


def latest_rows(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Row name -> its document in the newest run that measured it."""
    latest: dict[str, dict[str, Any]] = {}
    for run in runs:
        for row in run["rows"]:
            if row["figures"]:
                latest[row["row"]] = row
    return latest
