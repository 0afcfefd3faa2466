"""Three nodes on this machine find each other and carry one model from the first store into the other two.

Every node is a `herd up` process of its own on 127.0.0.1. What they say is not believed: in the end every
blob in every store is read and hashed again here, and the manifests are compared byte for byte.
"""

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import trio
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from node.views import PullReport, from_json
from scripts.herd_process import HerdProcess, HerdProcessFailed, herd_process, mesh_key_of, tail
from scripts.store_reader import StoredModel, StoreProblem, read_stored_model

NAMES = ("one", "two", "three")
WATCH_INTERVAL_S = 0.5
SPARE_BYTES = 64 * 1024 * 1024

console = Console(highlight=False)


class DemoFailed(Exception):
    """The demo cannot go on; the message is for the person, the exit code for scripts."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@attrs.frozen
class Options:
    """What the command line asked for."""

    model: Path | None
    once: bool
    keep: bool
    size_bytes: int


def parse_options(arguments: list[str]) -> Options:
    """The command line; argparse ends the program with code 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("model", metavar="MODEL.gguf", nargs="?", type=Path, help="the file to share (default: write one)")
    add("--once", action="store_true", help="end when all three hold the model, instead of at Ctrl-C")
    add("--size-mb", type=float, default=200.0, help="size of the model that is written (default 200)")
    add("--keep", action="store_true", help="leave homes, stores and logs where they are")
    parsed = parser.parse_args(arguments)
    if not 1 <= parsed.size_mb <= 100_000:
        parser.error("--size-mb must be 1 to 100000")
    return Options(parsed.model, parsed.once, parsed.keep, int(parsed.size_mb * 1_000_000))


def provide_model(options: Options, folder: Path) -> Path:
    """The file to share: the one given, or a valid llama written into the folder. DemoFailed when room is short."""
    size_bytes = options.size_bytes
    if options.model is not None:
        size_bytes = options.model.stat().st_size if options.model.is_file() else 0
    # The first store may have to copy the file as well, when it lies on another file system.
    needed, free = (len(NAMES) + 1) * size_bytes + SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise DemoFailed(
            f"{folder} has {free / 1e6:.0f} MB free, the demo needs {needed / 1e6:.0f} MB:"
            " make room, set TMPDIR to a folder elsewhere, or choose a smaller --size-mb"
        )
    if options.model is not None:
        return options.model.absolute()
    # Imported here because numpy takes its time, and a file that was given does not need it.
    from scripts.make_gguf import write_llama_gguf

    path = folder / "demo-llama.gguf"
    console.print(f"writing a llama of {size_bytes / 1e6:.0f} MB")
    write_llama_gguf(path, size_bytes, seed=1)
    return path


@asynccontextmanager
async def three_nodes(folder: Path) -> AsyncIterator[list[HerdProcess]]:
    """One node that makes a mesh and two that join it, each seeing all three."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(herd_process(folder / NAMES[0]))
        console.print(f"node one     {first.multiaddr}", soft_wrap=True)
        mesh_key = await mesh_key_of(first)
        nodes = [first]
        for name in NAMES[1:]:
            joining = herd_process(folder / name, bootstrap=[first.multiaddr], mesh_key=mesh_key)
            nodes.append(await stack.enter_async_context(joining))
            console.print(f"node {name:6}  {nodes[-1].multiaddr}", soft_wrap=True)
        for node in nodes:
            await node.wait_members(len(nodes))
        console.print("each node sees all three")
        yield nodes


async def pull_showing(node: HerdProcess, name: str, bars: Progress, reports: dict[str, PullReport]) -> None:
    """Pull on one node, moving its bar; the report goes into `reports` under the node's name."""
    bar = bars.add_task(node.home.name, total=None)
    report: PullReport | None = None
    async with node.following("pull", name, "--json") as pulling:
        async for document in pulling:
            if "report" in document:
                report = from_json(document["report"], PullReport)
                bars.update(bar, completed=report.size_bytes, total=report.size_bytes)
            elif "held_bytes" in document:
                bars.update(bar, completed=document["held_bytes"], total=document["size_bytes"] or None)
        (await pulling.finished()).must()
    if report is None or not report.verified:
        raise DemoFailed(f"`herd pull {name}` on node {node.home.name} ended without a verified model")
    reports[node.home.name] = report


async def share(nodes: list[HerdProcess], model: Path) -> tuple[str, dict[str, PullReport]]:
    """Add the file to the first node and pull it to the others at the same time: its name, and their reports."""
    added = await nodes[0].add(model)
    console.print(f"node one holds {added.name}, {added.size_bytes / 1e6:.1f} MB; two and three pull it")
    reports: dict[str, PullReport] = {}
    columns = (TextColumn("{task.description:6}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        for node in nodes[1:]:
            await node.wait_found(added.name)
        async with trio.open_nursery() as nursery:
            for node in nodes[1:]:
                nursery.start_soon(pull_showing, node, added.name, bars, reports)
    return added.name, reports


async def verify(nodes: list[HerdProcess], name: str) -> list[StoredModel]:
    """Read and hash every store. DemoFailed when one does not hold the model, or holds another one."""
    stored = []
    for node in nodes:
        try:
            stored.append(await trio.to_thread.run_sync(read_stored_model, node.models, name))
        except StoreProblem as error:
            raise DemoFailed(f"node {node.home.name} does not hold {name}: {error}", 5) from error
    if len({model.manifest for model in stored}) != 1:
        raise DemoFailed(f"the manifests of {name} differ between the stores", 5)
    return stored


def show(nodes: list[HerdProcess], name: str, stored: list[StoredModel], reports: dict[str, PullReport]) -> None:
    """The table: who holds what, how fast it came, and from whom."""
    names = {node.peer: node.home.name for node in nodes}
    table = Table("node", "model", "MB", "verified", "seconds", "MB from whom", box=box.SIMPLE)
    for node, model in zip(nodes, stored, strict=True):
        report = reports.get(node.home.name)
        seconds, sources = "-", "the file"
        if report is not None:
            seconds = f"{report.seconds:.1f}"
            shares = sorted(report.sources.items(), key=lambda item: -item[1])
            sources = ", ".join(f"{names.get(peer, peer[-8:])} {size / 1e6:.1f}" for peer, size in shares) or "-"
        # Whatever did not verify has ended the demo before it came to this.
        table.add_row(node.home.name, name, f"{model.size_bytes / 1e6:.1f}", "yes", seconds, sources)
    console.print(table)
    console.print(f"each store read and hashed again: the same model, id {stored[0].digest[7:19]}")


async def stay(nodes: list[HerdProcess]) -> None:
    """Keep the nodes running until Ctrl-C. DemoFailed when one ends by itself."""
    console.print("the nodes run until Ctrl-C; look at them from another terminal:")
    herd = Path(sys.executable).with_name("herd")
    for node in nodes:
        console.print(f"  {herd} status --watch --home {node.home}", soft_wrap=True)
    while True:
        for node in nodes:
            if node.process.poll() is not None:
                raise DemoFailed(f"node {node.home.name} ended by itself with exit code {node.process.returncode}")
        await trio.sleep(WATCH_INTERVAL_S)


async def demonstrate(options: Options, folder: Path, shown: trio.Event) -> None:
    """The whole demo, in the folder; sets `shown` when the model stands in all three stores."""
    model = await trio.to_thread.run_sync(provide_model, options, folder)
    async with three_nodes(folder) as nodes:
        name, reports = await share(nodes, model)
        stored = await verify(nodes, name)
        show(nodes, name, stored, reports)
        shown.set()
        if not options.once:
            await stay(nodes)


def explain(failures: BaseExceptionGroup[BaseException], folder: Path) -> int:
    """Say what went wrong and show the nodes' logs; the exit code."""
    first: BaseException = failures
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    code = first.exit_code if isinstance(first, DemoFailed | HerdProcessFailed) else None
    # A wrong argument says all in its one line; the logs are for what the nodes themselves did.
    for name in NAMES if code not in (2, 3) else ():
        last = tail(folder / f"{name}.log")
        if last and last not in str(first):
            print(f"--- log of node {name}\n{last}", file=sys.stderr)
    print(f"demo: {first}", file=sys.stderr)
    return code or 1


async def until_signal(options: Options, folder: Path) -> int:
    """Run the demo; the exit code. A signal ends it in order: 0 once everything was shown, else 128 + its number."""
    outcome = 0
    shown = trio.Event()
    # The receiver stands outside: impatient second signals must not stop the nodes from being ended.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal outcome
                async for number in signals:
                    outcome = 0 if shown.is_set() else 128 + number
                    console.print("ending the three nodes")
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await demonstrate(options, folder, shown)
            nursery.cancel_scope.cancel()
    return outcome


def main() -> int:
    """Run the demo in a folder of its own; the exit code."""
    options = parse_options(sys.argv[1:])
    folder = Path(tempfile.mkdtemp(prefix="herd-demo-"))
    console.print(f"homes, stores and logs are in {folder}", soft_wrap=True)
    try:
        return trio.run(until_signal, options, folder)
    except* (DemoFailed, HerdProcessFailed, OSError) as failures:
        code = explain(failures, folder)
    finally:
        if options.keep:
            console.print(f"kept {folder}", soft_wrap=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
