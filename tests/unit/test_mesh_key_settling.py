"""node/trust/mesh_key: which key a node starts with."""

import stat
from pathlib import Path

import pytest

from node.errors import UsageError
from node.trust.mesh_key import load_mesh_key, settle_mesh_key

KEY = bytes(range(32))


def test_the_first_node_makes_a_key_and_keeps_it(tmp_path: Path) -> None:
    key = settle_mesh_key(tmp_path, None, joining=False)
    assert len(key) == 32
    assert stat.S_IMODE((tmp_path / "mesh.key").stat().st_mode) == 0o600
    assert settle_mesh_key(tmp_path, None, joining=False) == key
    assert settle_mesh_key(tmp_path, None, joining=True) == key


def test_a_given_key_is_kept_for_the_next_start(tmp_path: Path) -> None:
    assert settle_mesh_key(tmp_path, KEY, joining=True) == KEY
    assert load_mesh_key(tmp_path) == KEY
    assert settle_mesh_key(tmp_path, KEY, joining=True) == KEY
    assert settle_mesh_key(tmp_path, None, joining=True) == KEY


def test_joining_without_a_key_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="herd config mesh-key"):
        settle_mesh_key(tmp_path, None, joining=True)
    assert not (tmp_path / "mesh.key").exists()


def test_a_home_never_changes_its_mesh_by_itself(tmp_path: Path) -> None:
    settle_mesh_key(tmp_path, KEY, joining=False)
    with pytest.raises(UsageError, match="another key"):
        settle_mesh_key(tmp_path, bytes(32), joining=True)
    assert load_mesh_key(tmp_path) == KEY
