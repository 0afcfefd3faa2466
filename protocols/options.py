"""One way to write a configuration field: its default, unit, limits and meaning stand in one place.

Every subsystem keeps its frozen config class beside its code and builds the fields with `option`;
`node.config` reads the metadata back for `herd config default`, for checks and for error messages.
"""

from typing import Any

import attrs


@attrs.frozen
class Option:
    """What is known of one field beyond its default."""

    unit: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def allowed(self) -> str:
        """The allowed values in words, as an error message names them."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            return f"{_figure(self.minimum)} to {_figure(self.maximum)}"
        if self.minimum is not None:
            return f"at least {_figure(self.minimum)}"
        if self.maximum is not None:
            return f"at most {_figure(self.maximum)}"
        return "any value of its type"

    def problem(self, value: object) -> str | None:
        """Why the value is not allowed, or None when it is."""
        if self.choices and value not in self.choices:
            return f"{value!r} is not {self.allowed()}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            too_small = self.minimum is not None and value < self.minimum
            too_large = self.maximum is not None and value > self.maximum
            if too_small or too_large or value != value:
                return f"{value!r} is not allowed: {self.allowed()}"
        return None


def _figure(number: float) -> str:
    # Every digit of a whole number: a limit that was rounded would be refused.
    return str(int(number)) if number == int(number) else f"{number:g}"


OPTION = "option"
"""The attrs metadata key under which a field's `Option` stands."""


def option(
    default: Any,
    *,
    help: str,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """An attrs field with default, unit, inclusive limits and a help sentence; construction checks the limits.

    A mutable default is given as a callable. Raises ValueError naming field, value and what is allowed.
    """
    described = Option(unit=unit, help=help, minimum=minimum, maximum=maximum, choices=choices)

    def check(_instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        problem = described.problem(value)
        if problem is not None:
            raise ValueError(f"{attribute.name}: {problem}")

    settled: Any = attrs.Factory(default) if callable(default) else default
    return attrs.field(default=settled, validator=check, metadata={OPTION: described})
