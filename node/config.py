"""The whole configuration of a node: herd.toml, then the environment, then flags, into one frozen checked object.

Each section is a frozen class that stands beside the code it configures; this module only reads and joins them.
It imports no engine, so that every command starts fast.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from node.api.config import ApiConfig
from node.config_values import DEFAULT, Field, Origin, checked, fields_of, near, nearest, refuse
from node.errors import UsageError
from node.logs import LogConfig
from node.store.config import StoreConfig
from node.transport.config import NetworkConfig
from protocols.bulk.config import BulkConfig
from protocols.catalog.config import CatalogConfig, DiscoveryConfig
from protocols.exchange.config import ExchangeConfig
from protocols.limits.config import LimitsConfig
from protocols.membership.config import MembershipConfig

FILE_NAME = "herd.toml"
FILE_SIZE_BYTES_MAX = 1 << 20
SECTIONS: dict[str, type[Any]] = {
    "network": NetworkConfig,
    "membership": MembershipConfig,
    "store": StoreConfig,
    "catalog": CatalogConfig,
    "discovery": DiscoveryConfig,
    "exchange": ExchangeConfig,
    "bulk": BulkConfig,
    "limits": LimitsConfig,
    "api": ApiConfig,
    "log": LogConfig,
}
LABELS = "labels"
LABEL_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-/]{0,62}")
LABEL_WANTED = "KEY=VALUE texts; a key has 1 to 63 letters, digits, _ . - /, a value at most 255 characters"

HOME_VARIABLE = "HERD_HOME"
MESH_KEY_VARIABLE = "HERD_MESH_KEY"
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S*")
"""What Kubernetes sets `HERD_NETWORK_PORT` to in every pod beside a service that is named `herd-network`."""

FLAG_NAMES = {
    "network.host": "--host",
    "network.port": "--port",
    "network.bootstrap": "--bootstrap",
    "network.mdns": "--mdns",
    "api.listen": "--api",
    "store.models_path": "--models",
    "log.level": "--log-level",
}
"""How the command line spells a key; any other key is given as `--set KEY=VALUE`."""


@attrs.frozen
class HerdConfig:
    """One node, configured. `home` holds its identity and state; `mesh_key` is the key given from outside, if any."""

    home: Path
    network: NetworkConfig = attrs.field(factory=NetworkConfig)
    membership: MembershipConfig = attrs.field(factory=MembershipConfig)
    store: StoreConfig = attrs.field(factory=StoreConfig)
    catalog: CatalogConfig = attrs.field(factory=CatalogConfig)
    discovery: DiscoveryConfig = attrs.field(factory=DiscoveryConfig)
    exchange: ExchangeConfig = attrs.field(factory=ExchangeConfig)
    bulk: BulkConfig = attrs.field(factory=BulkConfig)
    limits: LimitsConfig = attrs.field(factory=LimitsConfig)
    api: ApiConfig = attrs.field(factory=ApiConfig)
    log: LogConfig = attrs.field(factory=LogConfig)
    labels: dict[str, str] = attrs.field(factory=dict)
    mesh_key: bytes | None = attrs.field(default=None, repr=False)


@attrs.frozen
class LoadedConfig:
    """The configuration; for each `section.key`, where its value came from; what of the environment says nothing."""

    config: HerdConfig
    file: Path
    origins: dict[str, Origin]
    ignored_variables: tuple[str, ...] = ()

    def warning(self) -> str:
        """One line about the variables that look like ours and are none; empty when there are none."""
        if not self.ignored_variables:
            return ""
        variables = [field.variable for field in all_fields()]
        meant = [(variable, near(variable, variables, likeness=0.85)) for variable in self.ignored_variables]
        told = [f"{variable} (did you mean {known}?)" if known else variable for variable, known in meant]
        return f"environment: ignored, since no setting is named so: {', '.join(told)}"

    def value(self, key: str) -> Any:
        """The value under `section.key`."""
        section, _, name = key.partition(".")
        holder = getattr(self.config, section)
        return holder[name] if section == LABELS else getattr(holder, name)


@attrs.frozen
class _Given:
    """One value somebody gave, before it is checked."""

    value: object
    origin: Origin


def load_config(home: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> LoadedConfig:
    """Read the node's configuration; a flag beats the environment, that beats herd.toml, that beats the default.

    `home` is the `--home` flag, else `HERD_HOME`, else `~/.herd`. `flags` maps `section.key` to a value (text is
    read as in the environment; None and an empty tuple count as not given), `labels` to a mapping, and
    `mesh_key_file` to a path. UsageError names the file, variable or flag, the key, the value and what is allowed.
    """
    home = home_directory(home, environ)
    file = home / FILE_NAME
    given = _from_file(file)
    from_environment, ignored = _from_environment(environ)
    given.update(from_environment)
    given.update(_from_flags(flags))
    origins: dict[str, Origin] = {}
    sections: dict[str, Any] = {}
    for section, config_class in SECTIONS.items():
        sections[section] = _section(section, config_class, given, origins)
    if not sections["store"].models_path:
        resolved = StoreConfig().models_directory(environ)
        sections["store"] = attrs.evolve(sections["store"], models_path=str(resolved))
    labels = _labels(given, origins)
    mesh_key = _mesh_key(environ, flags)
    config = HerdConfig(home=home, **sections, labels=labels, mesh_key=mesh_key)
    return LoadedConfig(config, file, origins, ignored)


def home_directory(home: Path | None, environ: Mapping[str, str]) -> Path:
    """The node's home, absolute: the flag, else `HERD_HOME`, else `~/.herd`."""
    chosen = home if home is not None else Path(environ.get(HOME_VARIABLE) or "~/.herd")
    try:
        return chosen.expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"{chosen}: no home directory is known for it; set HERD_HOME or --home") from error


def _from_file(file: Path) -> dict[str, _Given]:
    origin = Origin("file", str(file))
    document = _document(file)
    given: dict[str, _Given] = {}
    for section, table in document.items():
        if section not in SECTIONS and section != LABELS:
            raise UsageError(f"{file}: unknown section [{section}]; {nearest(section, [*SECTIONS, LABELS])}")
        if not isinstance(table, dict):
            raise refuse(origin, section, table, f"a table; write [{section}] above its keys")
        known = [] if section == LABELS else [attribute.name for attribute in attrs.fields(SECTIONS[section])]
        for name, value in table.items():
            if section != LABELS and name not in known:
                raise UsageError(f"{file}: unknown key {section}.{name}; {nearest(name, known)}")
            given[f"{section}.{name}"] = _Given(value, origin)
    return given


def _document(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = opened.read(FILE_SIZE_BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{file}: cannot read the configuration: {error.strerror}") from error
    if len(data) > FILE_SIZE_BYTES_MAX:
        raise UsageError(f"{file}: a configuration of over {FILE_SIZE_BYTES_MAX} bytes is not allowed")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{file}: not UTF-8 text (at line {line})") from error
    except tomllib.TOMLDecodeError as error:
        # "(at end of document)" is the one place tomllib names without a number.
        message = str(error).replace("at end of document", f"at line {data.count(bytes([10])) + 1}, end of document")
        raise UsageError(f"{file}: not TOML: {message}") from error
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{file}: not TOML that can be read: {error}") from error


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, _Given], tuple[str, ...]]:
    """The values given, and the variables that begin as ours do and name no setting: others may have set those."""
    given: dict[str, _Given] = {}
    ignored: list[str] = []
    if environ.get("OLLAMA_MODELS"):
        path = StoreConfig().models_directory(environ)
        given["store.models_path"] = _Given(str(path), Origin("environment", "OLLAMA_MODELS"))
    keys = {field.variable: field.key for field in all_fields()}
    labels = f"HERD_{LABELS}_".upper()
    for variable in sorted(environ):
        if not variable.startswith("HERD_") or variable in (HOME_VARIABLE, MESH_KEY_VARIABLE):
            continue
        key = keys.get(variable)
        if key is None and variable.startswith(labels) and variable != labels:
            key = f"{LABELS}.{variable.removeprefix(labels).lower()}"
        if key is None or SERVICE_LINK.fullmatch(environ[variable]):
            ignored.append(variable)
        else:
            given[key] = _Given(environ[variable], Origin("environment", variable))
    return given, tuple(ignored)


def _from_flags(flags: Mapping[str, object]) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    known = [field.key for field in all_fields()]
    for key, value in flags.items():
        if value is None or value == () or key == "mesh_key_file":
            continue
        if key == LABELS and isinstance(value, Mapping):
            for name, text in value.items():
                given[f"{LABELS}.{name}"] = _Given(text, Origin("flag", "--label"))
        elif key in known:
            given[key] = _Given(value, Origin("flag", FLAG_NAMES.get(key, "--set")))
        else:
            raise UsageError(f"--set: unknown key {key}; {nearest(key, known)}")
    return given


def all_fields() -> list[Field]:
    """Every field of every section, in the order of herd.toml."""
    return [field for section, config_class in SECTIONS.items() for field in fields_of(section, config_class)]


def _section(section: str, config_class: type[Any], given: Mapping[str, _Given], origins: dict[str, Origin]) -> Any:
    values: dict[str, Any] = {}
    for field in fields_of(section, config_class):
        one = given.get(field.key)
        origins[field.key] = DEFAULT if one is None else one.origin
        if one is not None:
            values[field.name] = checked(field, one.value, one.origin)
    try:
        return config_class(**values)
    except ValueError as error:
        # What a section refuses as a whole is told as `field: reason`; the origin of that field is the place to look.
        name = str(error).partition(":")[0]
        origin = origins.get(f"{section}.{name}", DEFAULT)
        if origin is DEFAULT:
            origin = next((origins[f"{section}.{one}"] for one in values), DEFAULT)
        raise UsageError(f"{origin.name}: {section}.{error}") from error


def _labels(given: Mapping[str, _Given], origins: dict[str, Origin]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for key in sorted(key for key in given if key.startswith(f"{LABELS}.")):
        name, one = key.removeprefix(f"{LABELS}."), given[key]
        if not isinstance(one.value, str) or LABEL_KEY.fullmatch(name) is None or len(one.value) > 255:
            raise refuse(one.origin, key, one.value, LABEL_WANTED)
        labels[name] = one.value
        origins[key] = one.origin
    return labels


def _mesh_key(environ: Mapping[str, str], flags: Mapping[str, object]) -> bytes | None:
    # The room of the key knows what one looks like; it is not needed by the commands that only speak HTTP.
    file = flags.get("mesh_key_file")
    if file is None and not environ.get(MESH_KEY_VARIABLE):
        return None
    from node.trust.mesh_key import parse_mesh_key

    if file is None:
        return parse_mesh_key(environ[MESH_KEY_VARIABLE], MESH_KEY_VARIABLE)
    path = Path(str(file)).expanduser()
    try:
        with path.open("rb") as opened:
            text = opened.read(4096).decode("ascii", "replace")
    except OSError as error:
        raise UsageError(f"--mesh-key-file {path}: cannot read the mesh key: {error.strerror}") from error
    return parse_mesh_key(text, f"--mesh-key-file {path}")
