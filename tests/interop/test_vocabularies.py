"""Real input: nineteen vocabularies of models people run, written by llama.cpp, through three stores."""

import hashlib
from pathlib import Path

import pytest
import trio

from tests.e2e.support import blob_of, mesh, pull_at_once, stored_alike
from tests.interop.vocabularies import real_vocabularies

pytestmark = [pytest.mark.vocabularies, pytest.mark.processes, pytest.mark.slow]

COUNT_MIN = 15
"""How many the package holds at least; fewer would mean that they moved."""


async def test_real_vocabularies_travel_through_three_stores(tmp_path: Path) -> None:
    files = await trio.to_thread.run_sync(real_vocabularies)
    assert len(files) >= COUNT_MIN
    with trio.fail_after(300):
        async with mesh(tmp_path, ["one", "two", "three"]) as (one, two, three):
            sums = {}
            for file in files:
                added = await one.add(file)
                assert added.state == "verified"
                sums[added.name] = hashlib.sha256(file.read_bytes()).hexdigest()
            assert len(sums) == len(files)

            for name, sha256 in sums.items():
                reports = await pull_at_once([two, three], name)
                assert all(report.verified for report in reports.values())
                # One and the same file in all three stores: the very bytes that llama.cpp ships.
                await stored_alike([one, two, three], name)
                assert {blob_of(node, name).name for node in (one, two, three)} == {f"sha256-{sha256}"}

            for node in (two, three):
                assert {(model.name, model.state) for model in await node.model_list()} == {
                    (name, "verified") for name in sums
                }
