"""What the README promises exists: its commands, its files, its Python."""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from node.cli.root import herd

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def commands_of(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """The commands of a group and of the groups in it, those that entry points bring included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from commands_of(command)


def test_the_table_of_commands_is_the_command_line() -> None:
    rows = re.findall(r"^\| `herd (\w+)` \|", README, flags=re.MULTILINE)
    assert sorted(rows) == herd.list_commands(click.Context(herd))


def test_every_option_and_subcommand_that_is_named_exists() -> None:
    known = {option for _, command in commands_of(herd) for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named <= known | {"--help"}


def test_every_file_that_is_linked_or_run_exists() -> None:
    linked = re.findall(r"\]\(([^):]+)\)", README)
    run = re.findall(r"(?<![\w/])scripts/\w+(?:\.py)?", README)
    assert linked
    assert run
    missing = [path for path in {*linked, *run} if not (CHECKOUT / path).exists() and not path.endswith("bench_")]
    assert missing == []


def test_every_script_that_is_run_may_be_run() -> None:
    scripts = [path for path in (CHECKOUT / "scripts").iterdir() if path.is_file() and not path.suffix]
    scripts.append(CHECKOUT / ".ci" / "run")
    assert len(scripts) > 4
    assert [path.name for path in scripts if not path.stat().st_mode & 0o100] == []
