"""Who does not hold the mesh key gets a handshake, a clear error, and nothing else."""

from pathlib import Path

import pytest
import trio

from tests.e2e.support import HerdProcessFailed, herd_process

pytestmark = [pytest.mark.processes, pytest.mark.slow]

WRONG_KEY = "ab" * 32


async def test_a_wrong_mesh_key_is_a_clear_error_at_join(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with herd_process(tmp_path / "one") as one:
            with pytest.raises(HerdProcessFailed) as refused:
                async with herd_process(tmp_path / "two", bootstrap=[one.multiaddr], mesh_key=WRONG_KEY):
                    pass
            assert refused.value.exit_code == 6
            said = refused.value.stderr.splitlines()[-1]
            assert said.startswith("herd: ")
            assert "mesh key" in said
            # The stranger has left no trace but in the log: it never was a member.
            assert [member.state for member in await one.members()] == ["self"]


async def test_a_missing_mesh_key_is_said_before_anything_is_dialled(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with herd_process(tmp_path / "one") as one:
            with pytest.raises(HerdProcessFailed) as refused:
                async with herd_process(tmp_path / "two", bootstrap=[one.multiaddr]):
                    pass
            assert refused.value.exit_code == 2
            assert "HERD_MESH_KEY" in refused.value.stderr


async def test_the_mesh_key_is_never_shown_but_when_asked_for(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with herd_process(tmp_path / "one", options=["--log-level", "debug"]) as one:
            key = (await one.cli("config", "mesh-key")).must().strip()
            assert len(bytes.fromhex(key)) == 32
            assert (one.home / "mesh.key").stat().st_mode & 0o777 == 0o600
            shown = (await one.cli("config", "show", "--json")).stdout + (await one.cli("status", "--json")).stdout
            assert key not in shown
        assert key not in one.log.read_text()
