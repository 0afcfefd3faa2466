"""What all commands share: the options that choose a node, and how their failures end the process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from node.errors import UsageError

if TYPE_CHECKING:
    from node.cli.client import NodeClient

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
  0    done
  1    failed
  2    wrong usage or configuration
  3    no such model or file
  4    no node of this home answers
  5    bytes did not match their digest; nothing wrong was kept
  6    the mesh and this node do not admit each other
  130  interrupted
"""


class HerdGroup(click.Group):
    """A group whose unknown commands suggest the nearest known one."""

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        import difflib

        if args and self.get_command(context, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(context), n=1)
            context.fail(f"no such command {args[0]!r}" + (f", did you mean {near[0]}?" if near else ""))
        return super().resolve_command(context, args)


def node_options(command: F) -> F:
    """`--home`, `--models` and `--json`, on every command."""
    command = click.option(
        "--json", "as_json", is_flag=True, help="Print JSON documents (one a line while something goes on)."
    )(command)
    command = click.option(
        "--models", metavar="DIR", help="The Ollama store (default $OLLAMA_MODELS, else ~/.ollama/models)."
    )(command)
    return click.option(
        "--home",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The node's own folder, which chooses the node (default $HERD_HOME, else ~/.herd).",
    )(command)


def node_client(home: Path | None) -> "NodeClient":
    """The way to the running node of a home."""
    from node.cli.client import NodeClient
    from node.config import home_directory

    return NodeClient(home_directory(home, os.environ))


def pairs(place: str, texts: tuple[str, ...], *, wanted: str = "KEY=VALUE") -> dict[str, str]:
    """`KEY=VALUE` texts by key. UsageError naming the place and the text that is none."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{place}: {text!r} is not allowed: {wanted}")
        found[key] = value
    return found
