"""From what a person wrote (TOML, an environment variable, a flag) to one checked value of a config field."""

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

import attrs

from node.errors import UsageError
from protocols.options import OPTION, Option

TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off")
LISTED_MAX = 24
"""So many names fit into an error message."""


@attrs.frozen
class Origin:
    """Where a value came from: `kind` is `default`, `file`, `environment` or `flag`; `name` the path or variable."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


DEFAULT = Origin("default")


@attrs.frozen
class Field:
    """One field of a section class, with its resolved type."""

    section: str
    name: str
    kind: Any
    default: Any
    option: Option

    @property
    def key(self) -> str:
        """`section.name`, the form messages and flags use."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that sets this field."""
        return f"HERD_{self.section}_{self.name}".upper()

    def wanted(self) -> str:
        """Type and limits in words, for messages and for the commented default file."""
        limited = self.option.choices or self.option.minimum is not None or self.option.maximum is not None
        words = _kind_words(self.kind)
        if self.option.choices:
            return self.option.allowed()
        unit = f" {self.option.unit}" if self.option.unit else ""
        return f"{words}, {self.option.allowed()}{unit}" if limited else words


def fields_of(section: str, config_class: type[Any]) -> tuple[Field, ...]:
    """The described fields of a section class, in the order they stand in the class."""
    kinds = typing.get_type_hints(config_class)
    found = []
    for attribute in attrs.fields(config_class):
        default = attribute.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # attrs types Factory as a function
            default = default.factory()
        described = attribute.metadata.get(OPTION, Option(unit="", help=""))
        found.append(Field(section, attribute.name, kinds[attribute.name], default, described))
    return tuple(found)


def _kind_words(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "a list of texts" if typing.get_args(kind)[0] is str else "a list of numbers"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return words.get(_without_none(kind), "a value")


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def refuse(origin: Origin, key: str, value: object, allowed: str) -> UsageError:
    """The one form of every complaint about a value: where it stands, its key, the value, what is allowed."""
    shown = repr(value) if len(repr(value)) <= 120 else repr(value)[:117] + "..."
    return UsageError(f"{origin.name}: {key} = {shown} is not allowed: {allowed}")


def near(name: str, known: Iterable[str], *, likeness: float = 0.5) -> str:
    """The known name that was likely meant, empty when none is alike."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)), "")


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean X?`; when nothing is near the whole list, or where a long one is found."""
    names = sorted(known)
    meant = near(name, names)
    if meant:
        return f"did you mean {meant}?"
    return "known are " + ", ".join(names) if len(names) <= LISTED_MAX else "`herd config default` lists all"


def checked(field: Field, value: object, origin: Origin) -> Any:
    """The value as the field's type, within its limits. UsageError naming origin, key, value and what is allowed.

    Text from the environment or a flag is read as the field's type (lists are comma separated); TOML must
    already have it, only a whole number may stand where a number is wanted.
    """
    converted = _converted(field, value, from_text=origin.kind != "file")
    if converted is _WRONG:
        raise refuse(origin, field.key, value, field.wanted())
    for one in converted if isinstance(converted, tuple) else (converted,):
        if field.option.problem(one) is not None:
            raise refuse(origin, field.key, value, field.wanted())
    return converted


_WRONG = object()


def _converted(field: Field, value: object, *, from_text: bool) -> Any:
    kind = _without_none(field.kind)
    if typing.get_origin(kind) is tuple:
        return _list(typing.get_args(kind)[0], value, from_text=from_text)
    if from_text and isinstance(value, str):
        return _scalar_from_text(kind, value)
    return _scalar(kind, value)


def _list(kind: Any, value: object, *, from_text: bool) -> Any:
    if from_text and isinstance(value, str):
        items: list[object] = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, list | tuple):
        items = list(value)
    else:
        return _WRONG
    found = [
        _scalar_from_text(kind, item) if from_text and isinstance(item, str) else _scalar(kind, item) for item in items
    ]
    return _WRONG if any(item is _WRONG for item in found) else tuple(found)


def _scalar_from_text(kind: Any, text: str) -> Any:
    if kind is str:
        return text
    if kind is bool:
        word = text.strip().lower()
        return word in TRUE_WORDS if word in TRUE_WORDS + FALSE_WORDS else _WRONG
    try:
        return kind(text.strip())
    except ValueError:
        return _WRONG


def _scalar(kind: Any, value: object) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return _WRONG
    return value if type(value) is kind else _WRONG
