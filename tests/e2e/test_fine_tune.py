"""A fine-tune is pulled by a host that has its base: what they share does not travel."""

from pathlib import Path

import pytest
import trio

from tests.e2e.support import add_llama, mesh, served_bytes, stored_alike, write_llama

pytestmark = [pytest.mark.slow, pytest.mark.processes]

SIZE_MB = 120


async def test_a_fine_tune_fetches_only_the_tensors_that_changed(tmp_path: Path) -> None:
    with trio.fail_after(240):
        await _pull_a_fine_tune(tmp_path)


async def _pull_a_fine_tune(folder: Path) -> None:
    async with mesh(folder, ["one", "two"]) as (one, two):
        await add_llama(two, "base", SIZE_MB)
        path = await write_llama(folder / "tuned.gguf", SIZE_MB)
        size_bytes = path.stat().st_size
        with path.open("r+b") as file:  # Other weights in the last tenth, as when the last layers were trained.
            file.seek(size_bytes * 9 // 10)
            file.write(bytes(byte ^ 0x55 for byte in file.read()))
        await one.add(path, "--name", "tuned")
        await two.wait_found("tuned:latest")
        served_before = await served_bytes(one)

        report = await two.pull("tuned")

        assert report.verified
        assert report.fetched_bytes < size_bytes * 0.15  # A changed tensor's chunks of 4 MiB, the first cut into.
        assert report.copied_bytes > size_bytes * 0.85
        assert report.fetched_bytes + report.copied_bytes + report.local_bytes == report.size_bytes
        assert await served_bytes(one) - served_before == report.fetched_bytes
        await stored_alike([one, two], "tuned:latest")
