"""Two hosts start before the bootstrap peer they were given: they come up, say so once, and join when it appears."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.e2e.support import HerdProcess, herd_process, mesh_key_of

pytestmark = [pytest.mark.processes, pytest.mark.slow]


async def test_hosts_started_before_their_bootstrap_peer_join_when_it_appears(tmp_path: Path) -> None:
    with trio.fail_after(180):
        async with herd_process(tmp_path / "one") as one:
            address, mesh_key = one.multiaddr, await mesh_key_of(one)
        port = address.split("/")[4]

        async with AsyncExitStack() as stack:
            nodes: list[HerdProcess] = []

            async def start(name: str, *options: str, bootstrap: tuple[str, ...] = ()) -> None:
                starting = herd_process(tmp_path / name, bootstrap=bootstrap, mesh_key=mesh_key, options=options)
                nodes.append(await stack.enter_async_context(starting))

            await start("two", bootstrap=(address,))
            await start("three", bootstrap=(address,))
            for node in nodes:
                assert [member.state for member in await node.members()] == ["self"]
                [warning] = [line for line in node.log.read_text().splitlines() if " warning " in line]
                assert "no member answers yet, trying on in the background" in warning
                assert address.rpartition("/p2p/")[0] in warning
                assert "Connection refused" in warning

            await start("one", "--port", port)
            assert nodes[-1].multiaddr == address
            for node in nodes:
                await node.wait_members(3, timeout_s=60)
