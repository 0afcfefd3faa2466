"""`herd up`: run a node in the foreground until a signal asks it to leave."""

import contextlib
import logging
import os
import resource
import signal
import sys

import trio

from node.cli.node_file import NodeFile, announced
from node.config import HerdConfig, LoadedConfig
from node.facade import HerdNode
from node.logs import logging_to

log = logging.getLogger("herd")

LEAVE_TIMEOUT_S = 15.0
"""A node that cannot leave well within this time ends all the same; its peers then see a crash."""

OPEN_FILES_WANTED = 65536


def run_node(loaded: LoadedConfig) -> None:
    """Run until SIGINT or SIGTERM. HerdError (or a group holding one) when the node cannot start or go on."""
    raise_open_files_limit()
    with logging_to(loaded.config.log):
        if loaded.ignored_variables:
            log.warning("%s", loaded.warning())
        trio.run(_run, loaded.config)
        log.info("herd has left")


def raise_open_files_limit() -> None:
    """Use what the hard limit allows: 1,000 connected members need more than the 1,024 files most systems give."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_WANTED)
    if wanted > soft:
        # A system may refuse even this; then the node makes do with what it has.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(config: HerdConfig) -> None:
    async with trio.open_nursery() as nursery:
        ending = _Ending()
        await nursery.start(ending.watch, nursery.cancel_scope)
        log.info("herd starts in %s", config.home)
        # Here, not above: the engine takes a second to import, and no other command needs it.
        from node.app import open_node

        with ending.start:
            async with open_node(config) as node:
                ending.started = True
                await _serve(config, node, ending.asked)
        nursery.cancel_scope.cancel()


class _Ending:
    """How signals end the node: while it starts, at once; later the first lets it leave well, the second does not."""

    def __init__(self) -> None:
        self.start = trio.CancelScope()
        self.started = False
        self.asked = trio.Event()

    async def watch(
        self, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Wait for signals until cancelled."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            await anext(signals)
            log.info("leaving; a second signal ends at once")
            self.asked.set()
            if not self.started:
                self.start.cancel()
            with trio.move_on_after(LEAVE_TIMEOUT_S):
                await anext(signals)
            everything.cancel()


async def _serve(config: HerdConfig, node: HerdNode, stopping: trio.Event) -> None:
    status = node.status()
    addresses = [_with_peer(address, status.peer) for address in status.addresses]
    with announced(config.home, NodeFile(os.getpid(), status.api, status.peer, addresses)):
        _print_ready(addresses[0] if addresses else f"/p2p/{status.peer}")
        await stopping.wait()


def _with_peer(address: str, peer: str) -> str:
    return address if "/p2p/" in address else f"{address}/p2p/{peer}"


def _print_ready(address: str) -> None:
    # Whoever started the node may have closed the pipe meanwhile; the node serves all the same.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"ready {address}\n")
        sys.stdout.flush()
