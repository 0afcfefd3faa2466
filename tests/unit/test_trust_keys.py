"""Identity and mesh key on disk: made once, whole, for their owner's eyes, and never overwritten."""

import os
import stat
from pathlib import Path

import pytest

from node.errors import UsageError
from node.identity import Identity, load_or_create_identity
from node.trust.key_file import create_key
from node.trust.mesh_key import MeshKeyDoor, create_mesh_key, load_mesh_key, parse_mesh_key
from protocols.errors import LocalProtocolError
from protocols.ids import public_key_of
from protocols.signing import verify


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    made = load_or_create_identity(home)
    file = home / "identity.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [each.name for each in home.iterdir()] == ["identity.key"]
    assert load_or_create_identity(home) == made
    assert public_key_of(made.peer_id) == made.public_key
    assert verify(made.peer_id, b"said", made.sign(b"said"))
    assert made.seed.hex() in file.read_text()
    assert made.seed.hex() not in repr(made)
    assert repr(made.seed) not in repr(made)


def test_the_libp2p_peer_id_is_the_same(tmp_path: Path) -> None:
    from libp2p.peer.id import ID

    from node.transport.upgrade import make_credentials

    identity = load_or_create_identity(tmp_path)
    credentials = make_credentials(identity, MeshKeyDoor(bytes(32)))
    assert ID.from_pubkey(credentials.key_pair.public_key).to_base58() == identity.peer_id


def test_a_seed_of_another_length_is_no_identity() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        Identity(bytes(31))


@pytest.mark.parametrize("name", ["identity.key", "mesh.key"])
def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    load_or_create_identity(tmp_path)
    create_mesh_key(tmp_path)
    file = tmp_path / name
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(UsageError, match=f"{file}: others may read this key .* chmod 600 {file}"):
            load_or_create_identity(tmp_path) if name == "identity.key" else load_mesh_key(tmp_path)
    file.chmod(0o400)
    load_or_create_identity(tmp_path)
    assert load_mesh_key(tmp_path) is not None


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, "\ufffd" * 64, "00" * 5000])
def test_a_file_that_holds_no_key_is_named_and_its_text_is_not_repeated(tmp_path: Path, text: str) -> None:
    for name, load in (("identity.key", load_or_create_identity), ("mesh.key", load_mesh_key)):
        file = tmp_path / name
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(UsageError, match=f"{file}: 64 hex digits wanted") as caught:
            load(tmp_path)
        assert not text or text not in str(caught.value)


def test_a_damaged_key_file_is_told_with_what_to_do(tmp_path: Path) -> None:
    create_mesh_key(tmp_path)
    (tmp_path / "mesh.key").write_text("")
    with pytest.raises(UsageError, match=r"found 0 characters .*; bring it back from a copy, or remove it: a key that"):
        load_mesh_key(tmp_path)


def test_a_folder_or_a_pipe_is_no_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mesh.key")
    with pytest.raises(UsageError, match="a key is a regular file"):
        load_mesh_key(tmp_path)
    (tmp_path / "identity.key").mkdir()
    with pytest.raises(UsageError, match=r"identity\.key"):
        load_or_create_identity(tmp_path)


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match=r"identity\.key"):
        load_or_create_identity(tmp_path / "file")


def test_who_makes_a_key_second_gets_the_first(tmp_path: Path) -> None:
    first = create_mesh_key(tmp_path)
    assert create_mesh_key(tmp_path) == first == load_mesh_key(tmp_path)
    assert create_key(tmp_path / "mesh.key", bytes(32)) == first
    assert [each.name for each in tmp_path.iterdir()] == ["mesh.key"]
    assert (tmp_path / "mesh.key").read_text() == first.hex() + "\n"


def test_no_mesh_key_is_none(tmp_path: Path) -> None:
    assert load_mesh_key(tmp_path) is None


def test_a_typed_key_is_read_with_its_white_space_and_refused_by_its_source() -> None:
    assert parse_mesh_key("  " + "aB" * 32 + "\r\n", "HERD_MESH_KEY") == b"\xab" * 32
    with pytest.raises(UsageError, match="HERD_MESH_KEY: 64 hex digits wanted"):
        parse_mesh_key("secret!", "HERD_MESH_KEY")
    with pytest.raises(LocalProtocolError):
        MeshKeyDoor(b"short")
