"""node/config: where each value comes from, and what every wrong one is told."""

import re
from pathlib import Path
from typing import Any

import pytest

from node.config import SECTIONS, all_fields, load_config
from node.config_text import default_document, shown_json, shown_values
from node.errors import UsageError
from protocols.membership.config import MembershipConfig


def home_with(folder: Path, text: str | bytes) -> Path:
    (folder / "herd.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def complaint(home: Path, environ: dict[str, str] | None = None, flags: dict[str, object] | None = None) -> str:
    with pytest.raises(UsageError) as refused:
        load_config(home, environ or {}, flags or {})
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    home = home_with(tmp_path, "[network]\nport = 1\nhost = '127.0.0.1'\nmdns = true\n")
    loaded = load_config(home, {"HERD_NETWORK_PORT": "2", "HERD_NETWORK_HOST": "127.0.0.2"}, {"network.port": "3"})
    told = {key: (value, origin) for key, value, origin in shown_values(loaded)}
    assert told["network.port"] == (3, "flag --port")
    assert told["network.host"] == ("127.0.0.2", "environment HERD_NETWORK_HOST")
    assert told["network.mdns"] == (True, f"file {home}/herd.toml")
    assert told["network.dial_timeout_s"] == (5.0, "default")
    assert loaded.config.membership == MembershipConfig()


def test_flags_that_were_not_given_count_for_nothing(tmp_path: Path) -> None:
    flags: dict[str, object] = {"network.port": None, "network.bootstrap": (), "network.mdns": None, "labels": {}}
    loaded = load_config(tmp_path, {}, flags)
    assert {str(origin) for origin in loaded.origins.values()} == {"default"}


def test_the_home_and_the_store_are_chosen_by_the_contract_of_scripts(tmp_path: Path) -> None:
    config = load_config(None, {"HERD_HOME": str(tmp_path), "OLLAMA_MODELS": "/m", "HOME": "/h"}, {}).config
    assert (config.home, config.store.models_path) == (tmp_path, "/m")
    assert load_config(tmp_path / "a", {"HERD_HOME": "/x", "HOME": "/h"}, {}).config.home == tmp_path / "a"
    assert load_config(tmp_path, {"HOME": "/h"}, {}).config.store.models_path == "/h/.ollama/models"
    both = load_config(tmp_path, {"OLLAMA_MODELS": "/m"}, {"store.models_path": "/flag"})
    assert both.config.store.models_path == "/flag"
    assert str(load_config(tmp_path, {"OLLAMA_MODELS": "/m"}, {}).origins["store.models_path"]) == (
        "environment OLLAMA_MODELS"
    )


def test_labels_come_from_everywhere_and_are_joined(tmp_path: Path) -> None:
    home = home_with(tmp_path, '[labels]\nregion = "eu"\nzone = "a"\nrack = "7"\n')
    loaded = load_config(home, {"HERD_LABELS_ZONE": "b"}, {"labels": {"rack": "8", "team.name": "vision"}})
    assert loaded.config.labels == {"rack": "8", "region": "eu", "team.name": "vision", "zone": "b"}
    assert str(loaded.origins["labels.zone"]) == "environment HERD_LABELS_ZONE"
    assert shown_json(loaded)["values"]["labels.team.name"] == {"value": "vision", "origin": "flag --label"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[network]\nport = 99999\n", "network.port = 99999 is not allowed: a whole number, 0 to 65535"),
        ("[network]\nport = '80'\n", "network.port = '80' is not allowed: a whole number, 0 to 65535"),
        ("[network]\nport = true\n", "network.port = True is not allowed: a whole number, 0 to 65535"),
        ("[network]\nport = 1.5\n", "network.port = 1.5 is not allowed: a whole number, 0 to 65535"),
        ("[network]\nmdns = 1\n", "network.mdns = 1 is not allowed: true or false"),
        ("[network]\nbootstrap = 'x'\n", "network.bootstrap = 'x' is not allowed: a list of texts"),
        ("[network]\nbootstrap = [7]\n", "network.bootstrap = [7] is not allowed: a list of texts"),
        ("[network]\ndial_timeout_s = nan\n", "network.dial_timeout_s = nan is not allowed: a number, 0.1 to 120 s"),
        ("[network]\ndial_timeout_s = inf\n", "network.dial_timeout_s = inf is not allowed: a number, 0.1 to 120 s"),
        ("[network]\ndial_timeout_s = 1" + "0" * 400, "is not allowed: a number, 0.1 to 120 s"),
        ("[catalog]\nfollow = 'some'\n", "catalog.follow = 'some' is not allowed: one of all, none"),
        ("[log]\nlevel = 'loud'\n", "log.level = 'loud' is not allowed: one of debug, info, warning, error"),
        ("[api]\nlisten = 'nowhere'\n", "api.listen: 'nowhere' is not allowed: HOST:PORT such as 127.0.0.1:4700"),
        ("[api]\nallowed_origins = ['x/y']\n", "api.allowed_origins: 'x/y' is not allowed: SCHEME://HOST[:PORT]"),
        ("[store]\nchunk_size_bytes = 1\n", "a whole number, 1048576 to 16777216 bytes"),
        ("[netwrok]\nport = 1\n", "unknown section [netwrok]; did you mean network?"),
        ("[network]\nprot = 1\n", "unknown key network.prot; did you mean port?"),
        ("port = 1\n", "unknown section [port]; known are api, bulk, catalog, discovery,"),
        ("network = 1\n", "network = 1 is not allowed: a table; write [network] above its keys"),
        ("[labels]\nzone = 7\n", "labels.zone = 7 is not allowed: KEY=VALUE texts;"),
        ("[labels]\n'a b' = 'x'\n", "labels.a b = 'x' is not allowed: KEY=VALUE texts;"),
        ("[network]\nport = \n", "not TOML: Invalid value (at line 2, column 8)"),
        ("[network", "not TOML: Expected ']' at the end of a table declaration (at line 1, end of document)"),
        (b"[network]\n# \xff\n", "not UTF-8 text (at line 2)"),
        ("[limits]\nup = 'fast'\n", "limits.up: 'fast' is not allowed: a rate such as 50MB/s, 50MiB/s, 400Mbit/s, 1.5"),
        ("[limits]\nup = 5\n", "limits.up = 5 is not allowed: a text"),
        (
            "[limits]\npeer_up = '1MB/s, evening=2MB/s'\n",
            "limits.peer_up: no period is named 'evening'; known are nigh",
        ),
        ("[limits]\nperiods = ['night=22-6']\n", "limits.periods: 'night=22-6' is not allowed: NAME=[DAYS] [HH:MM-HH"),
        ("[limits]\nperiods = ['n=sat', 'n=sun']\n", "limits.periods: n stands there twice"),
        ("[membership]\nprobe_interval_s = 0.3\n", "membership.probe_timeout_s: 0.5 is not allowed: under probe_int"),
    ],
)
def test_a_wrong_file_names_itself_the_key_the_value_and_what_is_allowed(
    tmp_path: Path, text: str | bytes, error: str
) -> None:
    told = complaint(home_with(tmp_path, text))
    assert told.startswith(f"{tmp_path}/herd.toml: ")
    assert error in told


def test_the_first_fault_on_a_line_that_is_not_there_is_still_a_line(tmp_path: Path) -> None:
    told = complaint(home_with(tmp_path, '[network]\nhost = "a\nport = 1\n'))
    assert re.search(r"at line \d", told)


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("HERD_NETWORK_PORT", "abc", "HERD_NETWORK_PORT: network.port = 'abc' is not allowed: a whole number, 0 to"),
        ("HERD_NETWORK_MDNS", "maybe", "HERD_NETWORK_MDNS: network.mdns = 'maybe' is not allowed: true or false"),
        ("HERD_NETWORK_BOOTSTRAP", "/x", "HERD_NETWORK_BOOTSTRAP: network.bootstrap: '/x' is not allowed: wanted /ip4"),
        ("HERD_MESH_KEY", "secret-ish", "HERD_MESH_KEY: 64 hex digits wanted (32 bytes), found 10 characters"),
    ],
)
def test_a_wrong_variable_names_itself(tmp_path: Path, variable: str, value: str, error: str) -> None:
    told = complaint(tmp_path, {variable: value})
    assert told.startswith(error)


def test_variables_that_others_set_are_told_and_stop_nothing(tmp_path: Path) -> None:
    of_kubernetes = {
        "HERD_API_PORT": "tcp://10.96.0.7:4700",
        "HERD_API_PORT_4700_TCP_ADDR": "10.96.0.7",
        "HERD_API_SERVICE_HOST": "10.96.0.7",
        "HERD_NETWORK_PORT": "tcp://10.96.0.8:4701",
    }
    loaded = load_config(tmp_path, {**of_kubernetes, "HERD_HOME": "/x", "HERD_MESH_KEY": "ab" * 32}, {})
    assert loaded.ignored_variables == tuple(of_kubernetes)
    assert loaded.config.network.port == 4701
    assert load_config(tmp_path, {"HERD_NETWORK_PORT": "1"}, {}).warning() == ""
    assert load_config(tmp_path, {"HERD_NETWROK_PORT": "1", "HERD_ME": "2"}, {}).warning() == (
        "environment: ignored, since no setting is named so: HERD_ME,"
        " HERD_NETWROK_PORT (did you mean HERD_NETWORK_PORT?)"
    )


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("network.port", "70000", "--port: network.port = '70000' is not allowed: a whole number, 0 to 65535"),
        ("exchange.nothing", "1", "--set: unknown key exchange.nothing; "),
        ("x", "1", "--set: unknown key x; `herd config default` lists all"),
        ("membership.probe_interval_s", "0", "--set: membership.probe_interval_s = '0' is not allowed: a number, 0.05"),
        ("labels", {"bad key": "x"}, "--label: labels.bad key = 'x' is not allowed: KEY=VALUE texts;"),
        ("mesh_key_file", "/nowhere/key", "--mesh-key-file /nowhere/key: cannot read the mesh key: No such file"),
    ],
)
def test_a_wrong_flag_names_itself(tmp_path: Path, key: str, value: object, error: str) -> None:
    assert complaint(tmp_path, flags={key: value}).startswith(error)


def test_texts_are_read_as_the_type_of_their_field(tmp_path: Path) -> None:
    environ = {
        "HERD_NETWORK_ADVERTISE": "a.example, b.example,",
        "HERD_NETWORK_MDNS": "Yes",
        "HERD_NETWORK_DIAL_TIMEOUT_S": "2",
        "HERD_API_CONNECTIONS_MAX": " 10 ",
        "UNRELATED_NETWORK_PORT": "x",
        "HERD_SOMETHING": "else",
    }
    config = load_config(tmp_path, environ, {}).config
    assert config.network.advertise == ("a.example", "b.example")
    assert (config.network.mdns, config.network.dial_timeout_s, config.api.connections_max) == (True, 2.0, 10)


def test_the_mesh_key_is_taken_from_flag_then_environment_and_never_shown(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("ab" * 32 + "\n")
    loaded = load_config(tmp_path, {"HERD_MESH_KEY": "cd" * 32}, {"mesh_key_file": str(key)})
    assert loaded.config.mesh_key == b"\xab" * 32
    assert load_config(tmp_path, {"HERD_MESH_KEY": "cd" * 32}, {}).config.mesh_key == b"\xcd" * 32
    shown = repr(loaded) + str(shown_json(loaded)) + str(shown_values(loaded))
    assert "ab" * 32 not in shown
    assert repr(b"\xab" * 32) not in shown


def test_the_default_document_holds_every_field_and_means_the_defaults(tmp_path: Path) -> None:
    document = default_document()
    uncommented = re.sub(r"^# ([a-z0-9_]+ = )", r"\1", document, flags=re.MULTILINE)
    for field in all_fields():
        assert f"\n{field.name} = " in uncommented
        assert field.variable in document
        assert field.option.help, f"{field.key} has no help"
    bare = load_config(home_with(tmp_path, document), {"HOME": "/h"}, {})
    assert {str(origin) for origin in bare.origins.values()} == {"default"}
    whole = load_config(home_with(tmp_path, uncommented), {"HOME": "/h"}, {})
    for section in SECTIONS:
        assert getattr(whole.config, section) == getattr(bare.config, section)
    assert whole.config.labels["storage_class"] == "nvme"


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "herd.toml").mkdir()
    assert complaint(tmp_path) == f"{tmp_path}/herd.toml: cannot read the configuration: Is a directory"


def test_every_default_is_allowed() -> None:
    for field in all_fields():
        values: Any = field.default if isinstance(field.default, tuple) else (field.default,)
        assert [field.option.problem(value) for value in values if field.option.problem(value)] == []
