"""A holder whose bulk port cannot be reached: its chunks come over control streams, `herd peers` says so and why."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from node.views import MemberView
from tests.e2e.support import HerdProcess, add_llama, herd_process, mesh_key_of, stored_alike, wait_member

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SIZE_MB = 20
QUICK = {"HERD_BULK_CONNECT_TIMEOUT_S": "0.5", "HERD_BULK_RETRY_S": "1", "HERD_EXCHANGE_IDLE_TIMEOUT_S": "1"}
"""An idle session ends soon, so that the next pull chooses its plane anew."""


def _ip(namespace: str, *arguments: str) -> None:
    subprocess.run(["ip", "-n", namespace, *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network of its own with nothing but a loopback, whose rules are ours to make."""
    name = f"herdbulk{os.getpid()}"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs the program ip (iproute2) to make network namespaces")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"may not make network namespaces: {error.stderr.strip()}")
    try:
        _ip(name, "link", "set", "lo", "up")
        # The kernel delivers to itself by its first rule; ours is to stand before it.
        _ip(name, "rule", "add", "pref", "100", "lookup", "local")
        _ip(name, "rule", "del", "pref", "0")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True, capture_output=True)


async def _pull(asker: HerdProcess, giver: HerdProcess, name: str, size_mb: float = SIZE_MB) -> MemberView:
    """Let the giver have a new model and the asker pull it; how the asker then sees the giver."""
    await add_llama(giver, name, size_mb, seed=len(name) + ord(name[-1]))
    await asker.wait_found(f"{name}:latest")
    report = await asker.pull(f"{name}:latest")
    assert report.verified
    assert report.sources.keys() == {giver.peer}
    await stored_alike([giver, asker], f"{name}:latest")
    seen = await wait_member(asker, giver.peer, ["alive"])
    assert seen.blame == {}
    return seen


async def test_a_node_without_the_plane_gives_and_takes_over_streams(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with (
            herd_process(tmp_path / "giver", settings={"HERD_BULK_ENABLED": "false"}) as giver,
            herd_process(
                tmp_path / "asker", bootstrap=[giver.multiaddr], mesh_key=await mesh_key_of(giver), settings=QUICK
            ) as asker,
        ):
            await asker.wait_members(2)
            seen = await _pull(asker, giver, "plain")
            assert (seen.chunk_plane, "does not serve" in seen.chunk_plane_reason) == ("streams", True)
            shown = (await asker.cli("peers")).must()
            assert "chunks come over control streams: " in shown
            assert "VIA" in shown


async def test_a_firewall_before_the_bulk_port_is_gone_round_and_noticed_when_it_is_gone(
    tmp_path: Path, namespace: str
) -> None:
    inside = ["ip", "netns", "exec", namespace]
    port = "47021"
    with trio.fail_after(120):
        async with (
            herd_process(tmp_path / "giver", settings={**QUICK, "HERD_BULK_PORT": port}, inside=inside) as giver,
            herd_process(
                tmp_path / "asker",
                bootstrap=[giver.multiaddr],
                mesh_key=await mesh_key_of(giver),
                settings=QUICK,
                inside=inside,
            ) as asker,
        ):
            await asker.wait_members(2)
            # What the port would answer vanishes, as behind most firewalls.
            _ip(namespace, "rule", "add", "pref", "1", "ipproto", "tcp", "sport", port, "blackhole")
            seen = await _pull(asker, giver, "walled")
            assert seen.chunk_plane == "streams"
            assert f"bulk port {port} does not answer" in seen.chunk_plane_reason
            assert f"chunks come over control streams: {seen.chunk_plane_reason}" in (await asker.cli("peers")).must()

            _ip(namespace, "rule", "del", "pref", "1")
            await trio.sleep(2.5)  # real time: the idle session of the first pull ends, and `retry_s` passes
            seen = await _pull(asker, giver, "open")
            assert (seen.chunk_plane, seen.chunk_plane_reason) == ("bulk", "")
            assert "control streams" not in (await asker.cli("peers")).must()
