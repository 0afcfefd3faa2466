"""A node that knows one bootstrap peer and follows no catalog finds a model by name through the DHT."""

from pathlib import Path

import pytest
import trio

from tests.e2e.support import add_llama, held_model, herd_process, mesh, mesh_key_of

pytestmark = [pytest.mark.processes, pytest.mark.slow]


async def test_a_newcomer_without_a_catalog_finds_and_pulls_by_name(tmp_path: Path) -> None:
    with trio.fail_after(180):
        async with mesh(tmp_path, ["one", "two"]) as (one, two):
            added = await add_llama(two, "llama", size_mb=8)
            newcomer = herd_process(
                tmp_path / "three",
                bootstrap=[one.multiaddr],
                mesh_key=await mesh_key_of(one),
                settings={"HERD_CATALOG_FOLLOW": "none"},
            )
            async with newcomer as three:
                assert await three.find("lla*", "--through", "catalog") == []

                found = await three.wait_found("llama:latest", timeout_s=60)

                assert found.source == "dht"
                assert found.digest == f"sha256:{added.model_id}"
                # The record only claims; the provider itself was asked.
                assert [(provider.peer, provider.checked) for provider in found.providers] == [(two.peer, True)]

                report = await three.pull("llama:latest")
                assert set(report.sources) == {two.peer}
                assert (await held_model(three, "llama:latest")).manifest == added.manifest


async def test_a_name_that_nobody_holds_is_not_found(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with mesh(tmp_path, ["one", "two"]) as (_, two):
            for command in (["find", "no-such-model", "--through", "dht"], ["pull", "no-such-model"]):
                finished = await two.cli(*command)
                assert finished.exit_code == 3
                assert "no-such-model" in finished.stderr
