"""Cut off in the middle: Ctrl-C, kill -9 of the receiver, kill -9 of a sender; no checked byte travels twice."""

import signal
from pathlib import Path

import pytest
import trio

from node.views import PullReport, from_json
from tests.e2e.support import (
    Following,
    HerdProcess,
    add_llama,
    held_model,
    herd_process,
    mesh,
    pull_at_once,
    served_bytes,
    stored_alike,
)
from tests.reference_reader import model_names

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SIZE_MB = 256
"""Large enough that a transfer over loopback is still going on when its first progress has been read."""


async def held_bytes_past(pulling: Following, share: float) -> int:
    """Read along until more than a share of the model is held: how much that is. Fails when it is all of it."""
    async for document in pulling:
        assert "report" not in document, "the pull ended before it could be cut off"
        assert "error" not in document, document
        if document["size_bytes"] and document["held_bytes"] > share * document["size_bytes"]:
            assert document["held_bytes"] < document["size_bytes"]
            return int(document["held_bytes"])
    raise AssertionError(f"the pull ended early: {(await pulling.finished()).stderr}")


async def test_kill_9_of_the_receiver_loses_no_checked_chunk(tmp_path: Path) -> None:
    with trio.fail_after(240):
        async with mesh(tmp_path, ["one", "two"]) as (one, two):
            added = await add_llama(one, "llama", SIZE_MB)
            await two.wait_found("llama:latest")
            async with two.following("pull", "llama:latest", "--json") as pulling:
                held = await held_bytes_past(pulling, 0.3)
                await two.kill9()
                assert (await pulling.finished()).exit_code == 4
            assert model_names(two.models) == []

            async with herd_process(tmp_path / "two", bootstrap=[one.multiaddr]) as two_again:
                await two_again.wait_found("llama:latest")
                served_before = await served_bytes(one)
                report = await two_again.pull("llama:latest")
                assert report.verified
                # Only what was missing travelled, by the sender's own count.
                assert await served_bytes(one) - served_before == report.fetched_bytes
                # What was checked and written is here, safe on disk or not when the process was killed.
                assert report.resumed_bytes + report.local_bytes >= held
                assert report.fetched_bytes + report.resumed_bytes + report.local_bytes == report.size_bytes
                assert sum(report.sources.values()) == report.fetched_bytes
                assert (await stored_alike([one, two_again], "llama:latest")).manifest == added.manifest


async def test_ctrl_c_keeps_what_came_and_the_next_pull_goes_on(tmp_path: Path) -> None:
    with trio.fail_after(240):
        async with mesh(tmp_path, ["one", "two"]) as (one, two):
            await add_llama(one, "llama", SIZE_MB)
            await two.wait_found("llama:latest")
            async with two.following("pull", "llama:latest", "--json") as pulling:
                held = await held_bytes_past(pulling, 0.3)
                # Else a busy machine may bring the rest before the command has noticed Ctrl-C.
                one.process.send_signal(signal.SIGSTOP)
                assert await pulling.interrupt() == 130
                one.process.send_signal(signal.SIGCONT)
            assert model_names(two.models) == []

            served_before = await served_bytes(one)
            report = await two.pull("llama:latest")
            assert report.verified
            assert await served_bytes(one) - served_before == report.fetched_bytes
            # The node lived on, so every chunk that was checked counts; a blob that was whole by then is a local one.
            assert report.resumed_bytes + report.local_bytes >= held
            assert report.fetched_bytes + report.resumed_bytes + report.local_bytes == report.size_bytes
            await stored_alike([one, two], "llama:latest")


async def test_kill_9_of_one_of_two_senders_leaves_the_other_to_finish(tmp_path: Path) -> None:
    with trio.fail_after(240):
        async with mesh(tmp_path, ["one", "two", "three"]) as (one, two, three):
            await add_llama(one, "llama", SIZE_MB)
            await pull_at_once([two], "llama:latest")
            await three.wait_found("llama:latest")
            served_before = {node.peer: await served_bytes(node) for node in (one, two)}

            report, dead = await pull_while_a_sender_dies(three, [one, two])

            survivor = two if dead is one else one
            assert report.verified
            assert report.sources[dead.peer] > 0
            assert report.sources[survivor.peer] > 0
            assert await served_bytes(survivor) - served_before[survivor.peer] >= report.sources[survivor.peer]
            assert sum(report.sources.values()) == report.fetched_bytes == report.size_bytes
            await held_model(three, "llama:latest")


async def pull_while_a_sender_dies(receiver: HerdProcess, senders: list[HerdProcess]) -> tuple[PullReport, HerdProcess]:
    """Pull; as soon as both senders gave something, kill the second: the report, and who died."""
    dead: HerdProcess | None = None
    report: PullReport | None = None
    async with receiver.following("pull", "llama:latest", "--json") as pulling:
        async for document in pulling:
            if "report" in document:
                report = from_json(document["report"], PullReport)
            elif dead is None and all(document.get("sources", {}).get(sender.peer) for sender in senders):
                assert document["held_bytes"] < document["size_bytes"]
                dead = senders[1]
                await dead.kill9()
        (await pulling.finished()).must()
    assert report is not None
    assert dead is not None, "the pull was over before both senders were seen to give"
    return report, dead
