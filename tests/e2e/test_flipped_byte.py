"""A sender's disk rots: the wrong chunk is refused, the sender blamed, and nothing wrong is ever kept."""

from pathlib import Path

import pytest
import trio

from tests.e2e.support import add_llama, blob_of, flip_bytes, held_model, mesh, pull_at_once, wait_member
from tests.reference_reader import model_names

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SIZE_MB = 48


async def test_the_pull_finishes_from_the_holder_whose_bytes_are_right(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with mesh(tmp_path, ["one", "two", "three"]) as (one, two, three):
            await add_llama(one, "llama", SIZE_MB)
            await pull_at_once([two], "llama:latest")
            rotten = blob_of(two, "llama:latest")
            # A bit in every MiB, so that whatever chunk is asked of this node, it is a wrong one.
            flip_bytes(rotten, range(4096, rotten.stat().st_size, 1024 * 1024))

            await three.wait_found("llama:latest")
            report = await three.pull("llama:latest")

            assert report.verified
            # Its other blobs, some hundred bytes, are right; nothing of the weights came from there.
            assert report.sources.get(two.peer, 0) <= report.size_bytes - rotten.stat().st_size
            assert report.sources[one.peer] >= rotten.stat().st_size
            await held_model(three, "llama:latest")
            seen = await wait_member(three, two.peer, ["alive"])
            assert sum(seen.blame.values()) >= 1
            assert seen.banned
            assert f"blamed {two.peer}" in three.log.read_text()


async def test_one_flipped_byte_at_the_only_holder_ends_in_a_clear_error(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with mesh(tmp_path, ["one", "two"]) as (one, two):
            await add_llama(one, "llama", SIZE_MB)
            await two.wait_found("llama:latest")
            blob = blob_of(one, "llama:latest")
            flip_bytes(blob, [blob.stat().st_size // 2])

            failed = await two.cli("pull", "llama:latest", timeout_s=90)

            assert failed.exit_code == 5
            assert failed.stderr.splitlines()[-1].startswith("herd: ")
            assert model_names(two.models) == []
            assert sum((await wait_member(two, one.peer, ["alive"])).blame.values()) >= 1
            assert f"blamed {one.peer}" in two.log.read_text()
