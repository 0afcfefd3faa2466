"""Ten processes join through one bootstrap peer; it dies, and an eleventh joins through another."""

from pathlib import Path

import pytest
import trio

from tests.e2e.support import herd_process, mesh, mesh_key_of, wait_member

pytestmark = [pytest.mark.processes, pytest.mark.slow]


async def test_a_mesh_outlives_its_bootstrap_peer(tmp_path: Path) -> None:
    names = [f"node-{number:02}" for number in range(10)]
    with trio.fail_after(300):
        async with mesh(tmp_path, names) as nodes:
            bootstrap, *others = nodes
            mesh_key = await mesh_key_of(bootstrap)
            await bootstrap.kill9()

            eleventh_joins = herd_process(tmp_path / "node-10", bootstrap=[others[-1].multiaddr], mesh_key=mesh_key)
            async with eleventh_joins as eleventh:
                # A crash is told apart from a leave: suspected first, then dead.
                for node in [*others, eleventh]:
                    await node.wait_members(10, timeout_s=60)
                assert (await wait_member(others[0], bootstrap.peer, ["dead"])).state == "dead"

                # One that says good-bye is known to have left, and not suspected of having died.
                assert await others[0].stop() == 0
                assert (await wait_member(eleventh, others[0].peer, ["left"])).state == "left"
