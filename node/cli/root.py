"""The commands of `herd`, and the one place where a failure becomes a line on standard error and an exit code."""

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn, get_args

import click

from node.cli.config_commands import config_group
from node.cli.limits_commands import limits_group
from node.cli.options import EXIT_CODES, node_options, pairs
from node.cli.options import node_client as _client
from node.cli.output import (
    age_text,
    as_view,
    as_views,
    complain,
    document,
    line,
    seconds_text,
    short_id,
    short_peer_text,
    size_text,
    table,
)
from node.cli.plugins import PluggedGroup
from node.cli.verify_command import verify
from node.errors import HerdError, NotFound, UsageError
from node.facade import Priority

INTERRUPTED = 130
HOLDERS_SHOWN = 8
"""Of a thousand holders of a model, `--json` lists all."""


@click.group(cls=PluggedGroup, epilog=EXIT_CODES)
@click.version_option(package_name="llamaherd", prog_name="herd", message="%(prog)s %(version)s")
def herd() -> None:
    """A peer-to-peer network for model files, beside Ollama on every host.

    `herd up` runs a node; the other commands ask the node of the same home.
    """


herd.add_command(config_group)
herd.add_command(limits_group)
herd.add_command(verify)


@herd.command()
@node_options
@click.option("--host", metavar="IP", help="Address to listen on.")
@click.option("--port", metavar="N", help="TCP and UDP port; 0 takes a free one.")
@click.option("--api", metavar="HOST:PORT", help="Where the HTTP API listens; port 0 takes a free one.")
@click.option("--bootstrap", metavar="MULTIADDR", multiple=True, help="A member to join through (repeatable).")
@click.option("--mesh-key-file", metavar="FILE", help="File with the mesh key in hex (else $HERD_MESH_KEY).")
@click.option("--mdns", is_flag=True, default=None, help="Find members on the local network.")
@click.option("--label", metavar="KEY=VALUE", multiple=True, help="What this host is, e.g. zone=eu-1 (repeatable).")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Any key of herd.toml (repeatable).")
def up(home: Path | None, models: str | None, as_json: bool, **given: Any) -> None:
    """Run a node in the foreground.

    Prints `ready MULTIADDR` once it serves; Ctrl-C or SIGTERM lets it leave the mesh well.
    """
    from node.cli.up import run_node
    from node.config import load_config

    flags: dict[str, object] = {
        **pairs("--set", given["settings"]),
        "store.models_path": models,
        "network.host": given["host"],
        "network.port": given["port"],
        "network.bootstrap": given["bootstrap"],
        "network.mdns": given["mdns"],
        "api.listen": given["api"],
        "log.level": given["log_level"],
        "log.format": "json" if as_json else None,
        "labels": pairs("--label", given["label"]),
        "mesh_key_file": given["mesh_key_file"],
    }
    run_node(load_config(home, os.environ, {key: value for key, value in flags.items() if value is not None}))


@herd.command()
@node_options
@click.option("--watch", is_flag=True, help="Stay and follow what happens, across restarts of the node.")
def status(home: Path | None, models: str | None, as_json: bool, watch: bool) -> None:
    """The node as a whole; --watch follows it live."""
    if watch:
        import trio

        from node.cli.watch import watch as watch_node
        from node.config import home_directory

        async def follow() -> None:
            await watch_node(home_directory(home, os.environ), json_lines=as_json)

        trio.run(follow)
        return
    with _client(home) as client:
        told = client.ask("GET", "/api/mesh/status")
    if as_json:
        document(told)
        return
    from node.cli.status_view import NUMBER_COLUMNS, TRANSFER_COLUMNS, status_lines, transfer_row
    from node.views import NodeStatus

    node = as_view(told, NodeStatus)
    for text in status_lines(node):
        line(text)
    if node.transfers:
        line()
        table(TRANSFER_COLUMNS, [transfer_row(transfer) for transfer in node.transfers], right=NUMBER_COLUMNS)


@herd.command()
@node_options
def peers(home: Path | None, models: str | None, as_json: bool) -> None:
    """The members of the mesh, with blame and bans."""
    with _client(home) as client:
        told = client.ask("GET", "/api/mesh/peers")
    if as_json:
        document(told)
        return
    from node.cli.status_view import NUMBER_COLUMNS, member_table
    from node.views import MemberView

    members = as_views(told, "members", MemberView)
    columns, rows = member_table(members)
    table(columns, rows, right=NUMBER_COLUMNS)
    for member in members:
        if member.chunk_plane_reason:
            line(f"{short_peer_text(member.peer)}: chunks come over control streams: {member.chunk_plane_reason}")


@herd.command("ls")
@node_options
def list_models(home: Path | None, models: str | None, as_json: bool) -> None:
    """The models in this node's store."""
    with _client(home) as client:
        told = client.ask("GET", "/api/mesh/models")
    if as_json:
        document(told)
        return
    from node.views import ModelView

    views = as_views(told, "models", ModelView)
    rows = [
        (one.name, short_id(one.digest), size_text(one.size_bytes), one.state, age_text(one.modified_at))
        for one in views
    ]
    table(("NAME", "ID", "SIZE", "STATE", "MODIFIED"), rows, right=("SIZE",))
    for one in views:
        if one.detail:
            line(f"{one.name}: {one.detail}")


@herd.command()
@node_options
@click.argument("pattern", default="*")
@click.option(
    "--through",
    type=click.Choice(["auto", "catalog", "dht"]),
    default="auto",
    help="Where to look: this node's catalog, the DHT (a plain name), or the one and then the other.",
)
def find(home: Path | None, models: str | None, as_json: bool, pattern: str, through: str) -> None:
    """The models of the whole mesh.

    PATTERN is a name or a glob such as 'llama*'; exit 3 when nothing matches.
    """
    with _client(home) as client:
        told = client.ask("GET", "/api/mesh/find", pattern=pattern, through=through)
    if as_json:
        document(told)
    if not told.get("models"):
        raise (_Printed if as_json else NotFound)(f"nothing in the mesh matches {pattern!r}")
    if as_json:
        return
    from node.views import FoundModel

    rows = []
    for one in as_views(told, "models", FoundModel):
        holders = ", ".join(
            short_peer_text(holder.peer) + ("" if holder.state == "complete" else f" ({holder.state})")
            for holder in one.providers[:HOLDERS_SHOWN]
        )
        if len(one.providers) > HOLDERS_SHOWN:
            holders += f" and {len(one.providers) - HOLDERS_SHOWN} more"
        here = "yes" if one.local else ""
        rows.append((one.name, short_id(one.digest), size_text(one.size_bytes), here, one.source, holders))
    table(("NAME", "ID", "SIZE", "HERE", "SOURCE", "HELD BY"), rows, right=("SIZE",))


@herd.command()
@node_options
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="The model's name; default: made of the file's name.")
def add(home: Path | None, models: str | None, as_json: bool, file: Path, name: str | None) -> None:
    """Add a .gguf FILE as a model, and announce it.

    The model stands in this node's store as Ollama lays it out; where it can, the file is linked, not copied.
    """
    arguments = {"path": str(file.absolute()), **({"name": name} if name else {})}
    report = _operate(home, "/api/mesh/add", arguments, as_json, "nothing was added; repeat the command")
    if not as_json:
        line(f"added {report['name']} ({size_text(report['size_bytes'])}, {short_id(report['digest'])})")


@herd.command()
@node_options
@click.argument("name")
@click.option(
    "--priority",
    type=click.Choice(get_args(Priority)),
    default="normal",
    show_default=True,
    help="Which of several pulls gets what a peer can give first; equals share it.",
)
def pull(home: Path | None, models: str | None, as_json: bool, name: str, priority: str) -> None:
    """Fetch a model from the mesh, verified.

    It goes on where an earlier pull ended; what was checked once does not travel again. A model that is being pulled
    already is not pulled twice: the one pull gets the highest priority that anybody asked for.
    """
    resume = f"what was checked is kept, `herd pull {name}` goes on from there"
    report = _operate(home, "/api/mesh/pull", {"name": name, "priority": priority}, as_json, resume)
    if as_json:
        return
    fetched, seconds = report["fetched_bytes"], report["seconds"]
    speed = f" ({size_text(fetched / seconds)}/s)" if fetched and seconds > 0 else ""
    line(f"pulled {report['name']} ({size_text(report['size_bytes'])}, {short_id(report['digest'])}), verified")
    copied = report.get("copied_bytes", 0)
    line(
        f"{size_text(fetched)} fetched in {seconds_text(seconds)}{speed},"
        f" {size_text(report['resumed_bytes'])} resumed, {size_text(report['local_bytes'])} were here"
        + (f", {size_text(copied)} copied from other models here" if copied else "")
    )
    for peer, size_bytes in sorted(report["sources"].items()):
        line(f"  {size_text(size_bytes)} from {peer}")


def _operate(home: Path | None, path: str, arguments: dict[str, str], as_json: bool, left: str) -> dict[str, Any]:
    """Run an operation and show it; `left` says after Ctrl-C what is left of it and how to go on."""
    from node.cli.progress import follow

    try:
        with _client(home) as client:
            return follow(client.operate(path, **arguments), json_lines=as_json)
    except KeyboardInterrupt:
        complain(f"interrupted; {left}")
        sys.exit(INTERRUPTED)


@herd.command("rm")
@node_options
@click.argument("name")
def remove(home: Path | None, models: str | None, as_json: bool, name: str) -> None:
    """Remove a model from this node's store.

    Other nodes keep theirs; bytes that another model uses stay.
    """
    with _client(home) as client:
        told = client.ask("DELETE", "/api/mesh/models", name=name)
    if as_json:
        document(told)
    else:
        line(f"removed {told['removed']}")


def main() -> NoReturn:
    """Run the command line given to this process, and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal's encoding does not have is escaped: no name of a model or peer may end a command.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; the exit code. Every failure is one line on standard error, and a document with `--json`."""
    try:
        # What click's own exits (`--help`) give back is their code; our commands give nothing.
        return int(herd.main(arguments, prog_name="herd", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "herd"
        return _failed(UsageError(f"{error.format_message().rstrip('.')}; see `{command} --help`"), arguments)
    except click.ClickException as error:
        return _failed(UsageError(error.format_message()), arguments)
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return INTERRUPTED
    except HerdError as error:
        return _failed(error, arguments)
    except Exception as error:  # boundary: the command line; what is nobody's fault but ours is shown whole
        return _told(error, arguments)
    except BaseExceptionGroup as group:
        # Ctrl-C in a Trio program may come out among what it cancelled.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        complain("interrupted")
        return INTERRUPTED


def _told(error: Exception, arguments: list[str]) -> int:
    from node.api.failures import herd_error_in

    expected = herd_error_in(error)
    if expected is not None:
        return _failed(expected, arguments)
    traceback.print_exception(error)
    return _failed(HerdError(f"internal error: {type(error).__name__}: {error}"), arguments)


def _failed(error: HerdError, arguments: list[str]) -> int:
    # `up` has no documents: its standard output is for the one line that says it is ready.
    if "--json" in arguments and arguments[0] != "up" and not isinstance(error, _Printed):
        document({"error": str(error), "exit_code": error.exit_code}, lines=True)
    complain(str(error))
    return error.exit_code


class _Printed(NotFound):
    """A failure whose document was printed before."""
