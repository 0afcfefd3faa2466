"""Commands that other packages bring: listed, run, and harmless to all others when they are broken."""

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import click
import pytest

from node.cli import plugins
from node.cli.root import run

HERE = __name__
NOT_A_COMMAND = 7


@click.command()
@click.argument("word")
def echo(word: str) -> None:
    """Say it again."""
    click.echo(word)


@click.command()
def up() -> None:
    """Not what `herd up` is."""


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("echo", f"{HERE}:echo", plugins.GROUP),
        EntryPoint("up", f"{HERE}:up", plugins.GROUP),
        EntryPoint("gone", "no_such_package.commands:gone", plugins.GROUP),
        EntryPoint("number", f"{HERE}:NOT_A_COMMAND", plugins.GROUP),
    ]

    def brought_points(*, group: str) -> list[EntryPoint]:
        assert group == "herd.commands"
        return points

    monkeypatch.setattr(plugins, "entry_points", brought_points)


@pytest.mark.usefixtures("brought")
def test_a_brought_command_is_listed_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    helped = " ".join(capsys.readouterr().out.split())
    assert "echo Say it again." in helped
    assert "Run a node in the foreground." in helped
    assert "Not what `herd up` is." not in helped
    assert run(["echo", "hello"]) == 0
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.usefixtures("brought")
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["gone", "with", "--options"], "of no_such_package.commands cannot be loaded: ModuleNotFoundError"),
        (["gone", "--help"], "ModuleNotFoundError: No module named 'no_such_package'"),
        (["number"], f"cannot be loaded: TypeError: {HERE}:NOT_A_COMMAND is a int, no command"),
    ],
)
def test_a_broken_one_is_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert run(arguments) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"`herd {arguments[0]}`" in told
    assert why in told


@pytest.mark.usefixtures("brought")
def test_a_broken_one_stops_no_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["--help"]) == 0
    assert "gone Cannot be loaded (ModuleNotFoundError)." in " ".join(capsys.readouterr().out.split())
    assert run(["config", "show", "--home", str(tmp_path)]) == 0


def test_simnet_brings_sim() -> None:
    (point,) = entry_points(group=plugins.GROUP)
    assert (point.name, point.value) == ("sim", "simnet.commands:sim")
