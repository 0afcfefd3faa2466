"""One sender and one receiver of one file on this machine, by each peer: what a transfer took, and what it cost."""

import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import attrs
import trio

from scripts.benchmark.agents import Agent, agent
from scripts.benchmark.figures import MIB
from scripts.benchmark.peers.herd import Node, mesh
from scripts.benchmark.programs import CannotMeasure, Ended, daemon, free_port, program, run_measured
from scripts.process_cost import Cost, cost_of_tree, reset_peak

MODEL = "bench:latest"
LIBTORRENT_PIECE_SIZE_BYTES = 4 * MIB


@attrs.frozen
class Transfer:
    """One transfer: seconds until the receiver had the whole file durable, and what each end cost meanwhile.

    `sync_s` of those seconds are an fsync that the peer itself leaves out; herd's report comes after its own.
    """

    seconds: float
    sender: Cost
    receiver: Cost
    sync_s: float = 0.0

    @property
    def cpu_s(self) -> float:
        """CPU seconds of both ends."""
        return self.sender.cpu_s + self.receiver.cpu_s


class Pair(Protocol):
    """A sender that runs and a receiver."""

    async def receive(self) -> Transfer:
        """Move the file once."""
        ...

    async def clear(self) -> None:
        """Remove what was received, so that the next transfer is a whole one."""
        ...


OpenPair = Callable[[Path, Path], AbstractAsyncContextManager[Pair]]
"""Takes a folder of its own, which is made, and the file."""


async def costing(sender: int, receiver: int, work: Callable[[], Awaitable[float]]) -> Transfer:
    """What two processes that live on cost during the work, which tells its seconds."""
    for pid in (sender, receiver):
        reset_peak(pid)
    before = [cost_of_tree(pid) for pid in (sender, receiver)]
    seconds = await work()
    after = [cost_of_tree(pid) for pid in (sender, receiver)]
    costs = [late.since(early) for early, late in zip(before, after, strict=True)]
    return Transfer(seconds, costs[0], costs[1])


async def make_durable(folder: Path) -> float:
    """Sync every file that came into a folder, so that all peers end with the same: seconds."""

    def sync() -> float:
        began = time.monotonic()
        for path in (path for path in folder.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return time.monotonic() - began

    return await trio.to_thread.run_sync(sync)


@attrs.frozen
class HerdPair:
    """Two nodes. Timed from the request to the API to the report, by when all is verified and durable."""

    sender: Node
    receiver: Node

    async def receive(self) -> Transfer:
        """Pull the model."""

        async def pull() -> float:
            return (await self.receiver.pull(MODEL)).seconds

        return await costing(self.sender.pid, self.receiver.pid, pull)

    async def clear(self) -> None:
        """Remove the model from the receiver, and wait until the holders are known anew."""
        await self.receiver.remove(MODEL)
        await self.receiver.wait_holders(MODEL, 1)


@asynccontextmanager
async def herd_pair(folder: Path, file: Path) -> AsyncIterator[HerdPair]:
    """Two nodes on 127.0.0.1, the first holding the file as a model."""
    async with mesh(folder, ["sender", "receiver"]) as (sender, receiver):
        await sender.add(file, MODEL)
        await receiver.wait_holders(MODEL, 1)
        yield HerdPair(sender, receiver)


@attrs.frozen
class LibtorrentPair:
    """Two sessions that run. Timed from connecting to `is_seeding` (all pieces checked and written) and synced."""

    sender: Agent
    receiver: Agent
    torrent: Path
    port: int
    into: Path

    async def receive(self) -> Transfer:
        """Receive the torrent."""

        async def receive() -> float:
            peers = [("127.0.0.1", self.port)]
            return float((await self.receiver.ask("receive", peers=peers, timeout_s=1000))["seconds"])

        await self.receiver.ask("add", torrent=str(self.torrent), folder=str(self.into), seed=False)
        transfer = await costing(self.sender.pid, self.receiver.pid, receive)
        sync_s = await make_durable(self.into)
        return attrs.evolve(transfer, seconds=transfer.seconds + sync_s, sync_s=sync_s)

    async def clear(self) -> None:
        """Let go of the torrent and its file."""
        await self.receiver.ask("forget")
        shutil.rmtree(self.into, ignore_errors=True)


def require_libtorrent() -> None:
    """CannotMeasure when the Python that runs has no libtorrent."""
    if find_spec("libtorrent") is None:
        raise CannotMeasure(f"needs the Python package libtorrent in {sys.prefix}: run `scripts/setup bench`")


@asynccontextmanager
async def libtorrent_pair(folder: Path, file: Path) -> AsyncIterator[LibtorrentPair]:
    """Two sessions on 127.0.0.1, plaintext, the first seeding the file."""
    require_libtorrent()
    await trio.Path(folder).mkdir(parents=True)
    torrent = folder / "file.torrent"
    async with AsyncExitStack() as stack:
        sender, receiver = [
            await stack.enter_async_context(
                agent("libtorrent_agent", folder / f"{name}.log", f"127.0.0.1:{free_port()}", "pair", name=name)
            )
            for name in ("libtorrent-sender", "libtorrent-receiver")
        ]
        await sender.ask(
            "make", file=str(file), torrent=str(torrent), piece_size_bytes=LIBTORRENT_PIECE_SIZE_BYTES, timeout_s=300
        )
        port = await sender.ask("add", torrent=str(torrent), folder=str(file.parent), seed=True)
        yield LibtorrentPair(sender, receiver, torrent, port, folder / "received")


@attrs.frozen
class ProgramPair:
    """A daemon that sends, and programs that receive one after the other. Timed from start to end, and synced."""

    daemon_pid: int
    commands: list[list[str]]
    into: Path
    log: Path

    async def receive(self) -> Transfer:
        """Run the receiving programs."""
        self.into.mkdir()
        reset_peak(self.daemon_pid)
        before = cost_of_tree(self.daemon_pid)
        ended = [await run_measured(command, self.log) for command in self.commands]
        sender = cost_of_tree(self.daemon_pid).since(before)
        sync_s = await make_durable(self.into)
        return Transfer(sum(one.seconds for one in ended) + sync_s, sender, _cost_of_ended(ended), sync_s)

    async def clear(self) -> None:
        """Remove what was received."""
        await trio.to_thread.run_sync(lambda: shutil.rmtree(self.into, ignore_errors=True))


def _cost_of_ended(ended: list[Ended]) -> Cost:
    return Cost(sum(one.cpu_s for one in ended), 0, max(one.resident_bytes_peak for one in ended))


NGINX_CONFIG = """
{user}worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {folder}/temporary;
    proxy_temp_path {folder}/temporary;
    fastcgi_temp_path {folder}/temporary;
    uwsgi_temp_path {folder}/temporary;
    scgi_temp_path {folder}/temporary;
    server {{ listen 127.0.0.1:{port}; location / {{ root {root}; }} }}
}}
"""


@asynccontextmanager
async def nginx_pair(folder: Path, file: Path) -> AsyncIterator[ProgramPair]:
    """nginx serving the file with sendfile; curl to disk and then sha256sum receive it."""
    nginx, curl = program("nginx", "nginx-light"), program("curl", "curl")
    sha256sum = program("sha256sum", "coreutils")
    await trio.Path(folder).mkdir(parents=True)
    port = free_port()
    user = "user root;\n" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(user=user, folder=folder, port=port, root=file.parent))
    command = [nginx, "-p", str(folder), "-e", str(folder / "nginx.log"), "-c", str(config), "-g", "daemon off;"]
    target = folder / "received" / file.name
    url = f"http://127.0.0.1:{port}/{file.name}"
    receiving = [[curl, "--silent", "--fail", "--noproxy", "*", "--output", str(target), url], [sha256sum, str(target)]]
    async with daemon(command, port, folder / "nginx-start.log") as pid:
        yield ProgramPair(pid, receiving, target.parent, folder / "curl.log")


RSYNC_CONFIG = """
use chroot = no
uid = {user}
gid = {group}
pid file = {folder}/rsyncd.pid
log file = {folder}/rsyncd.log
[bench]
path = {root}
read only = yes
"""


@asynccontextmanager
async def rsync_pair(folder: Path, file: Path) -> AsyncIterator[ProgramPair]:
    """An rsync daemon serving the file; `rsync -a` receives it."""
    rsync = program("rsync", "rsync")
    await trio.Path(folder).mkdir(parents=True)
    port = free_port()
    config = folder / "rsyncd.conf"
    config.write_text(RSYNC_CONFIG.format(user=os.geteuid(), group=os.getegid(), folder=folder, root=file.parent))
    command = [rsync, "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}", f"--config={config}"]
    into = folder / "received"
    receiving = [[rsync, "-a", f"rsync://127.0.0.1:{port}/bench/{file.name}", f"{into}/"]]
    async with daemon(command, port, folder / "rsync-start.log") as pid:
        yield ProgramPair(pid, receiving, into, folder / "rsync.log")


PAIRS: dict[str, OpenPair] = {
    "herd": herd_pair,
    "libtorrent": libtorrent_pair,
    "nginx": nginx_pair,
    "rsync": rsync_pair,
}
