"""Scenarios: what a simulated world is made of, what people do in it, what goes wrong, and what is expected of it.

A scenario is a TOML file: one of those beside this module, or an operator's own. Times are virtual seconds from the
beginning of the run; sizes and rates are declared ones (see `bytes_scale`); `hosts` is a text as `simnet.selecting`
reads it.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from node.config import SECTIONS, HerdConfig
from node.config_values import Field, Origin, checked, fields_of, nearest, refuse
from node.errors import UsageError
from protocols.names import InvalidName, ModelName
from protocols.options import option
from simnet.faults import KINDS, check_fault
from simnet.plans import SWIZZLE
from simnet.selecting import check_selector

FILE_SIZE_BYTES_MAX = 1 << 20
SCENARIOS = Path(__file__).parent / "scenarios"
NODES_MAX = 5000
HOURS_MAX_S = 7 * 24 * 3600.0

P = TypeVar("P")


@attrs.frozen
class Surface:
    """`[world]`: links, disks and how the nodes start."""

    latency_s: float = option(0.002, unit="s", minimum=0, maximum=10, help="one way, between any two hosts")
    jitter_s: float = option(0.001, unit="s", minimum=0, maximum=10, help="added to the latency, by chance")
    loss: float = option(0.0, minimum=0, maximum=1, help="share of datagrams that never arrives")
    rate_mbit_per_s: float = option(0.0, unit="Mbit/s", minimum=0, help="of each host's link each way; 0 for no limit")
    chunk_size_bytes: int = option(64 * 1024, unit="bytes", minimum=1, help="how large chunks are declared to be")
    disk_size_bytes: int = option(0, unit="bytes", minimum=0, help="what each host has room for; 0 for no limit")
    bytes_scale: int = option(1, minimum=1, maximum=1 << 20, help="how many declared bytes one real byte stands for")
    sealed: bool = option(True, help="whether datagrams are really sealed; large worlds are faster without")
    regions: int = option(1, minimum=1, maximum=64, help="host n stands in region 1 + (n - 1) mod regions")
    start_spread_s: float = option(
        1.0, unit="s", minimum=0, maximum=HOURS_MAX_S, help="the hosts after the first start within this time"
    )


@attrs.frozen
class ModelMade:
    """`[[models]]`: a model that some hosts have from `at_s` on. Models that name the same `base` share its bytes."""

    name: str = option("", help="the model's name")
    size_bytes: int = option(0, unit="bytes", minimum=0, maximum=1 << 50, help="of the layer of its own")
    base: str = option("", help="name of a layer shared with other models of this base")
    base_size_bytes: int = option(0, unit="bytes", minimum=0, maximum=1 << 50, help="how large the shared layer is")
    hosts: str = option("first", help="who has it")
    at_s: float = option(2.0, unit="s", minimum=0, maximum=HOURS_MAX_S, help="when it is put there")


@attrs.frozen
class Wish:
    """`[[pulls]]` and `[[removals]]`: what people do with a model, each host at a moment within `spread_s`."""

    model: str = option("", help="the model's name")
    hosts: str = option("others", help="who does it")
    at_s: float = option(10.0, unit="s", minimum=0, maximum=HOURS_MAX_S, help="when the first does")
    spread_s: float = option(0.0, unit="s", minimum=0, maximum=HOURS_MAX_S, help="within which time all do")


@attrs.frozen
class FaultMeant:
    """`[[faults]]`: one fault, its hosts not chosen yet; `simnet.faults.KINDS` says what each kind does."""

    kind: str = option("", help="what happens", choices=tuple(KINDS))
    hosts: str = option("", help="to whom")
    at_s: float = option(0.0, unit="s", minimum=0, maximum=HOURS_MAX_S, help="when")
    for_s: float = option(0.0, unit="s", minimum=0, maximum=HOURS_MAX_S, help="how long; 0 for good")
    value: float = option(0.0, help="how much, where the kind has a measure")
    spread_s: float = option(
        0.0, unit="s", minimum=0, maximum=HOURS_MAX_S, help="one host after the other, over this time"
    )
    times: int = option(1, minimum=1, maximum=1000, help="how often")
    every_s: float = option(0.0, unit="s", minimum=0, maximum=HOURS_MAX_S, help="how long from one time to the next")


@attrs.frozen
class Drawn:
    """`[drawn]`: faults drawn from the seed."""

    kinds: tuple[str, ...] = option((), help="which kinds; also swizzle")
    per_minute: float = option(2.0, minimum=0, maximum=600, help="how many faults begin a minute")
    from_s: float = option(10.0, unit="s", minimum=0, maximum=HOURS_MAX_S, help="when the first may begin")
    until_s: float = option(60.0, unit="s", minimum=0, maximum=HOURS_MAX_S, help="when the last has ended")


@attrs.frozen
class Expected:
    """`[expect]`: what is checked at the end; a limit below 0 is not checked."""

    false_positives_max: int = option(-1, help="live, connected nodes that anybody declared dead")
    join_within_s: float = option(-1.0, unit="s", help="until all live nodes know a node that started")
    detect_within_s: float = option(-1.0, unit="s", help="until all live nodes know that a node crashed")
    heal_within_s: float = option(-1.0, unit="s", help="from the end of a fault until all agree on who is alive")
    pulled_within_s: float = option(-1.0, unit="s", help="until each host that wants a model has it")
    of_ideal_min: float = option(-1.0, help="T* divided by what the last finisher of a model took")
    origin_copies_max: float = option(-1.0, help="how many times its model left the first holder")
    blamed_min: int = option(-1, help="how many hosts blamed a lying peer")


@attrs.frozen(kw_only=True)
class Scenario:
    """One scenario, checked. `nodes` is the usual number; `settle_s` how soon after the last fault all must agree."""

    name: str
    description: str
    nodes: int
    for_s: float
    settle_s: float
    control_bytes_per_s_max: float
    surface: Surface
    config: HerdConfig
    models: tuple[ModelMade, ...] = ()
    pulls: tuple[Wish, ...] = ()
    removals: tuple[Wish, ...] = ()
    faults: tuple[FaultMeant, ...] = ()
    drawn: Drawn | None = None
    expected: Expected = attrs.field(factory=Expected)
    given: str = ""
    """What to type to run it: its name, or the path of its file."""


@attrs.frozen
class _Head:
    """What stands above the sections."""

    description: str = option("", help="what it shows")
    nodes: int = option(5, minimum=1, maximum=NODES_MAX, help="how many hosts, unless --nodes says otherwise")
    for_s: float = option(60.0, unit="s", minimum=1, maximum=HOURS_MAX_S, help="how long the run lasts at least")
    settle_s: float = option(
        60.0, unit="s", minimum=1, maximum=HOURS_MAX_S, help="how soon after the last fault all must agree"
    )
    control_bytes_per_s_max: float = option(
        100_000.0, unit="bytes/s", minimum=1, help="what a host sends besides chunks, over any ten seconds"
    )


class _TopField(Field):
    """A key that stands in no section."""

    @property
    def key(self) -> str:
        """Its name alone."""
        return self.name


_TABLES: dict[str, type[Any]] = {"world": Surface, "drawn": Drawn, "expect": Expected}
_LISTS: dict[str, type[Any]] = {"models": ModelMade, "pulls": Wish, "removals": Wish, "faults": FaultMeant}
_SETTINGS = "settings"


def scenario_names() -> list[str]:
    """The scenarios that come with herd, sorted."""
    return sorted(path.stem for path in SCENARIOS.glob("*.toml"))


def load_scenario(name_or_path: str) -> Scenario:
    """A scenario by its name or its file. UsageError naming the file and the key."""
    looks_like_path = name_or_path.endswith(".toml") or "/" in name_or_path
    if not looks_like_path and name_or_path not in scenario_names():
        raise UsageError(f"there is no scenario {name_or_path}; {nearest(name_or_path, scenario_names())}")
    path = Path(name_or_path).expanduser() if looks_like_path else SCENARIOS / f"{name_or_path}.toml"
    try:
        with path.open("rb") as opened:
            data = opened.read(FILE_SIZE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the scenario: {error.strerror}") from error
    if len(data) > FILE_SIZE_BYTES_MAX:
        raise UsageError(f"{path}: a scenario of over {FILE_SIZE_BYTES_MAX} bytes is not allowed")
    try:
        document = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    made = read_scenario(path.stem if looks_like_path else name_or_path, document, str(path))
    return attrs.evolve(made, given=name_or_path)


def read_scenario(name: str, document: Mapping[str, Any], file: str) -> Scenario:
    """A scenario from its TOML document. UsageError naming the file and the key."""
    origin = Origin("file", file)
    plain = {key: value for key, value in document.items() if key not in {*_TABLES, *_LISTS, _SETTINGS}}
    head = _part("", _Head, plain, origin, known=[*_TABLES, *_LISTS, _SETTINGS])
    tables = {key: _table(key, kind, document.get(key, {}), origin) for key, kind in _TABLES.items()}
    lists: dict[str, Any] = {key: _list(key, kind, document.get(key, []), origin) for key, kind in _LISTS.items()}
    scenario = Scenario(
        name=name,
        **attrs.asdict(head),
        surface=tables["world"],
        config=_config(document.get(_SETTINGS, {}), origin),
        drawn=tables["drawn"] if "drawn" in document else None,
        expected=tables["expect"],
        **lists,
    )
    _check(scenario, origin)
    return scenario


def _part(section: str, kind: type[P], values: Mapping[str, Any], origin: Origin, known: list[str] | None = None) -> P:
    fields = {
        field.name: field if section else _TopField(**attrs.asdict(field, recurse=False))
        for field in fields_of(section, kind)
    }
    dotted = f"{section}." if section else ""
    for key in values:
        if key not in fields:
            names = [*fields, *(known or ())]
            raise UsageError(f"{origin.name}: unknown key {dotted}{key}; {nearest(key, names)}")
    return kind(**{key: checked(fields[key], value, origin) for key, value in values.items()})


def _table(key: str, kind: type[P], value: object, origin: Origin) -> P:
    if not isinstance(value, dict):
        raise refuse(origin, key, value, f"a table; write [{key}] above its keys")
    return _part(key, kind, value, origin)


def _list(key: str, kind: type[P], value: object, origin: Origin) -> tuple[P, ...]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise refuse(origin, key, value, f"tables; write [[{key}]] above the keys of each")
    return tuple(_part(f"{key}[{number}]", kind, each, origin) for number, each in enumerate(value, 1))


def _config(value: object, origin: Origin) -> HerdConfig:
    """The nodes' own settings: `[settings.membership]` and so on, in the words of herd.toml."""
    if not isinstance(value, dict):
        raise refuse(origin, _SETTINGS, value, f"tables; write [{_SETTINGS}.membership] above its keys")
    sections: dict[str, Any] = {}
    for section, table in value.items():
        if section not in SECTIONS:
            raise UsageError(f"{origin.name}: unknown section [{_SETTINGS}.{section}]; {nearest(section, SECTIONS)}")
        try:
            sections[section] = _table(section, SECTIONS[section], table, origin)
        except ValueError as error:
            raise UsageError(f"{origin.name}: {_SETTINGS}.{section}.{error}") from error
    return HerdConfig(home=Path("/simulated"), **sections)


def _check(scenario: Scenario, origin: Origin) -> None:
    """What no single field can say."""
    for number, model in enumerate(scenario.models, 1):
        try:
            ModelName.parse(model.name)
        except InvalidName as error:
            raise refuse(origin, f"models[{number}].name", model.name, str(error)) from error
        check_selector(origin, f"models[{number}].hosts", model.hosts)
        if not (model.size_bytes or model.base_size_bytes):
            raise refuse(origin, f"models[{number}].size_bytes", model.size_bytes, "a model has bytes")
    made = [model.name for model in scenario.models]
    for key, wishes in (("pulls", scenario.pulls), ("removals", scenario.removals)):
        for number, wish in enumerate(wishes, 1):
            check_selector(origin, f"{key}[{number}].hosts", wish.hosts)
            if wish.model not in made:
                raise refuse(origin, f"{key}[{number}].model", wish.model, f"one of {', '.join(made) or 'no model'}")
    _check_faults(scenario, origin)


def _check_faults(scenario: Scenario, origin: Origin) -> None:
    disk_size_bytes = scenario.surface.disk_size_bytes
    for number, fault in enumerate(scenario.faults, 1):
        if fault.times > 1 and not 0 < fault.for_s < fault.every_s:
            raise refuse(origin, f"faults[{number}].every_s", fault.every_s, "longer than for_s, where times is over 1")
        check_fault(origin, f"faults[{number}]", fault.kind, fault.hosts, fault.value, disk_size_bytes)
    if (drawn := scenario.drawn) is None:
        return
    for kind in drawn.kinds:
        if kind != SWIZZLE:
            check_fault(origin, "drawn.kinds", kind, "all", 0.0, disk_size_bytes)
    if not drawn.kinds:
        raise refuse(origin, "drawn.kinds", [], "at least one kind of fault")
    if drawn.until_s <= drawn.from_s:
        raise refuse(origin, "drawn.until_s", drawn.until_s, "after drawn.from_s")
