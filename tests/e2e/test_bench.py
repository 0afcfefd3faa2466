"""`scripts/bench --quick`: rows with real nodes and real peers, end to end, with sizes that say nothing about speed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.slow]

CHECKOUT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> Any:
    """The rows of a quick run by name, from its JSON; it must end well."""
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "scripts.benchmark", "--quick", "--json", *arguments],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(CHECKOUT), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["machine"]["cores"] >= 1
    return {row["row"]: row for row in document["rows"]}


def figure(row: Any, name: str) -> float:
    [found] = [one["value"] for one in row["figures"] if one["name"] == name]
    return float(found)


def test_the_rows_that_need_nothing_but_herd_are_measured() -> None:
    rows = bench("--only", "dedup,resume,verify")
    assert list(rows) == ["verify", "dedup", "resume"]
    assert all(not row["why_not"] for row in rows.values())
    assert 9 < figure(rows["dedup"], "changed") <= 10
    assert 0 < figure(rows["dedup"], "fetched, of the model") <= 100
    assert figure(rows["resume"], "fetched again") < 50
    assert figure(rows["resume"], "sent again") >= 0
    assert figure(rows["verify"], "of BLAKE3 with all threads") > 0
    assert figure(rows["verify"], "unchanged, second time") > 0


@pytest.mark.interop
def test_herd_and_rsync_move_the_same_file_in_turn() -> None:
    if shutil.which("rsync") is None:
        pytest.skip("needs the program rsync")
    rows = bench("--only", "pair-rsync", "--rounds", "2")
    assert rows["pair-rsync"]["rounds"] == 2
    assert len(rows["pair-rsync"]["samples"]["herd_s"]) == len(rows["pair-rsync"]["samples"]["rsync_s"]) == 2
    assert figure(rows["pair-rsync"], "herd against rsync") > 0


@pytest.mark.interop
def test_a_swarm_over_capped_links_is_judged_by_its_last_and_its_median() -> None:
    row = bench("--only", "swarm-200")["swarm-200"]
    if row["why_not"]:
        pytest.skip(row["why_not"])
    for measured in ("last, of T*", "median, of S/B"):
        # No swarm beats what its links can carry.
        assert 0 < figure(row, f"herd, {measured}") < 100
    assert figure(row, "herd, came twice") >= 0
    assert len(row["samples"]["herd_last_s"]) == 1
