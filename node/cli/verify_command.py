"""`herd verify`: whether the models of this host are still what their digests say."""

import sys
from pathlib import Path
from typing import Any

import click

from node.cli.options import node_client, node_options
from node.cli.output import as_view, complain, line, seconds_text, size_text
from node.errors import HerdError, VerificationFailed

INTERRUPTED = 130


@click.command("verify")
@node_options
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--again", is_flag=True, help="Read every byte, also of files that nobody touched since they were read.")
def verify(home: Path | None, models: str | None, as_json: bool, names: tuple[str, ...], again: bool) -> None:
    """Check the models in this node's store: those named, or all.

    A file that is as it was when it was read last is answered from the record; one that changed is read. What is
    wrong is no longer offered to others, and the exit code is 5.
    """
    from node.cli.progress import follow

    arguments: dict[str, Any] = {**({"names": list(names)} if names else {}), **({"again": True} if again else {})}
    try:
        with node_client(home) as client:
            report = follow(client.operate("/api/mesh/verify", **arguments), json_lines=as_json)
    except KeyboardInterrupt:
        complain("interrupted; what was checked until then stays recorded")
        sys.exit(INTERRUPTED)
    failure = _shown(report, as_json)
    if failure is not None:
        raise failure


def _shown(told: dict[str, Any], as_json: bool) -> HerdError | None:
    """Print a report for people; what the command fails with, if it does."""
    from node.views import VerifyReport

    report = as_view(told, VerifyReport)
    wrong = [model for model in report.models if model.state != "verified"]
    if not as_json:
        for model in report.models:
            line(f"{model.state} {model.name} ({size_text(model.size_bytes)})")
            if model.detail:
                line(f"  {model.detail}")
        speed = report.read_bytes / report.seconds if report.seconds > 0 else 0
        seconds = f"{report.seconds:.2f} s" if report.seconds < 60 else seconds_text(report.seconds)
        read = f"{size_text(report.read_bytes)} read in {seconds} ({size_text(speed)}/s)"
        line(f"{size_text(report.recorded_bytes)} from the record, {read if report.read_bytes else 'nothing read'}")
    if not wrong:
        return None
    listed = ", ".join(model.name for model in wrong)
    if all(model.state == "verifying" for model in wrong):
        return HerdError(f"not verified: {listed} changed while being read; run `herd verify` again")
    name = wrong[0].name if len(wrong) == 1 else "NAME"
    return VerificationFailed(f"not right: {listed}; `herd pull {name}` fetches what is damaged or missing again")
