"""`herd limits`: how many bytes a second may go out and come in, shown and set while the node runs."""

from pathlib import Path
from typing import Any

import click

from node.cli.options import HerdGroup, node_client, node_options, pairs
from node.cli.output import as_view, document, line, table

PATH = "/api/mesh/limits"


class _LimitsGroup(HerdGroup):
    """Says where a limit goes that was given without `set`."""

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        if args and "=" in args[0]:
            context.fail(f"{args[0]!r} is no command; did you mean `herd limits set {args[0]}`?")
        return super().resolve_command(context, args)


@click.group("limits", cls=_LimitsGroup, invoke_without_command=True)
@node_options
@click.pass_context
def limits_group(context: click.Context, home: Path | None, models: str | None, as_json: bool) -> None:
    """The limits of this node, and what is in force now.

    `herd limits set` changes them while the node runs; herd.toml, section [limits], keeps them.
    """
    if context.invoked_subcommand is not None:
        # Options may stand on both sides of `set`.
        context.obj = {"home": home, "as_json": as_json}
        return
    with node_client(home) as client:
        _show(client.ask("GET", PATH), as_json)


@limits_group.command("set")
@node_options
@click.argument("changes", metavar="KEY=RATE...", nargs=-1, required=True)
@click.pass_obj
def set_limits(
    outer: dict[str, Any], home: Path | None, models: str | None, as_json: bool, changes: tuple[str, ...]
) -> None:
    """Set limits until the node stops.

    KEY is up, down, peer_up, pull_down, .. as `herd limits` shows them, or periods. RATE is 50MB/s, 400Mbit/s,
    unlimited, or with rates for periods, quoted: 'up=50MB/s, night=unlimited'.
    """
    wanted = "KEY=RATE, such as up=50MB/s"
    given = pairs("limits set", changes, wanted=wanted)
    with node_client(home or outer["home"]) as client:
        _show(client.tell(PATH, **given), as_json or outer["as_json"])


def _show(told: Any, as_json: bool) -> None:
    if as_json:
        document(told)
        return
    from node.views import LimitsView
    from protocols.limits.rates import rate_text

    view = as_view(told, LimitsView)
    rows = [(one.key, one.setting, rate_text(one.bytes_per_s), one.period) for one in view.limits]
    table(("KEY", "SETTING", "NOW", "PERIOD"), rows, right=("NOW",))
    line(f"periods: {', '.join(view.periods) or 'none'}; it is {view.local_time} on the node's host")
    if view.changed:
        line(f"{', '.join(view.changed)} set while running: {view.note}")
