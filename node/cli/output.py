"""How the command line shows things: sizes, times, names, tables, JSON, and the one line of an error."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from node.errors import HerdError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")

SHORT_ID_LENGTH = 12
WIDTH_MAX = 100_000
"""Wider than any row: what a program reads is one row a line."""


def size_text(size_bytes: float) -> str:
    """`4.7 GB`: decimal units, as Ollama shows sizes."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size_bytes >= factor * 0.9995:
            return (
                f"{size_bytes / factor:.1f} {unit}"
                if size_bytes < factor * 99.95
                else f"{size_bytes / factor:.0f} {unit}"
            )
    return f"{size_bytes:.0f} B"


def seconds_text(seconds: float) -> str:
    """`9 s`, `3:07`, `2 h 05 m`, `4 d 2 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def age_text(instant_s: float) -> str:
    """How long ago an instant (seconds since 1970) was, of this computer's clock."""
    return f"{seconds_text(max(0.0, time.time() - instant_s))} ago"


def visible(text: str) -> str:
    """The text with control characters escaped: others choose some of what is shown, a terminal obeys what it gets."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def short_id(digest: str) -> str:
    """The first digits of a digest, as Ollama shows a model's id."""
    return digest.removeprefix("sha256:")[:SHORT_ID_LENGTH]


def short_peer_text(peer: str) -> str:
    """The end of a peer id: all of them begin alike."""
    return f"…{peer[-8:]}"


def as_view(data: Any, kind: type[T]) -> T:
    """A node's answer as the record it should be. HerdError when the node is of another version."""
    import cattrs

    from node.views import from_json

    try:
        return from_json(data, kind)
    except (cattrs.BaseValidationError, TypeError, ValueError) as error:
        raise HerdError("the node answers as another version of herd does; restart it with `herd up`") from error


def as_views(document: Any, key: str, kind: type[T]) -> list[T]:
    """The list of records under a key of a node's answer."""
    data = document.get(key) if isinstance(document, dict) else None
    if not isinstance(data, list):
        raise HerdError("the node answers as another version of herd does; restart it with `herd up`")
    return [as_view(one, kind) for one in data]


def line(text: str = "") -> None:
    """One line on standard output."""
    click.echo(visible(text))


def complain(text: str) -> None:
    """The one line of an error, on standard error."""
    click.echo(f"herd: {visible(' '.join(text.split()))}", err=True)


def document(value: Any, *, lines: bool = False) -> None:
    """A JSON document on standard output; on one line where several follow each other."""
    click.echo(json.dumps(value, indent=None if lines else 2))


def console(*, stderr: bool = False) -> "Console":
    """A console that takes texts as they are: no markup, no emoji codes, no colours for numbers."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table on standard output: within a terminal's width cells fold rather than lose characters, in a pipe none do.

    The columns in `right` are numbers.
    """
    made, screen = table_of(columns, rows, right=right), console()
    if not stdout_is_terminal():
        screen.width = max(screen.width, screen.measure(made, options=screen.options.update(width=WIDTH_MAX)).maximum)
    with screen.capture() as captured:
        screen.print(made)
    for text in captured.get().splitlines():
        click.echo(text.rstrip())


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> "Table":
    """The same as an object to be shown within something else."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", no_wrap=column in right, overflow="fold"
        )
    for row in rows:
        made.add_row(*map(visible, row))
    return made


def stdout_is_terminal() -> bool:
    """Whether a person is likely to be looking."""
    return sys.stdout.isatty()
