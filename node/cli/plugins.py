"""Commands that other packages bring: entry points of the group `herd.commands`, loaded when they are looked at.

This is how `herd sim` comes from simnet without the node knowing it.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from node.cli.options import HerdGroup
from node.errors import HerdError

GROUP = "herd.commands"


class PluggedGroup(HerdGroup):
    """A group with its own commands and those of entry points; of two with one name its own wins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*super().list_commands(ctx), *_brought()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name. One that cannot be loaded says so when it is run, and stops no other."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or (point := _brought().get(cmd_name)) is None:
            return own
        try:
            command = point.load()
            if not isinstance(command, click.Command):
                raise TypeError(f"{point.value} is a {type(command).__name__}, no command")
        except Exception as error:  # boundary: a plugin's own import, whose failure is the failure of that command only
            return _broken(point, error)
        return command


def _brought() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _broken(point: EntryPoint, error: Exception) -> click.Command:
    package = point.dist.name if point.dist is not None else point.module
    text = f"`herd {point.name}` of {package} cannot be loaded: {type(error).__name__}: {error}"

    def refuse(**_: Any) -> None:
        raise HerdError(f"{text}; install {package} again")

    return click.Command(
        point.name,
        callback=refuse,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True, "help_option_names": []},
        short_help=f"Cannot be loaded ({type(error).__name__}).",
    )
