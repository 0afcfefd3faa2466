"""A libtorrent session as a process: plaintext TCP, no discovery, settings for one machine's speed."""

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import libtorrent

from scripts.benchmark.answering import answer_requests, begin_at

PLAINTEXT = 2
PREFER_TCP = 0
POLL_INTERVAL_S = 0.02
RECEIVE_TIMEOUT_S = 900.0
MIB = 1024 * 1024

COMMON_SETTINGS = {
    **dict.fromkeys(("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp"), False),
    **dict.fromkeys(("enable_outgoing_utp", "enable_incoming_utp"), False),
    **dict.fromkeys(("in_enc_policy", "out_enc_policy"), PLAINTEXT),
    "allow_multiple_connections_per_ip": True,
    "mixed_mode_algorithm": PREFER_TCP,
}
PAIR_SETTINGS = {
    "hashing_threads": 2,
    "aio_threads": 2,
    "send_buffer_watermark": 8 * MIB,
    "max_out_request_queue": 2000,
}
SWARM_SETTINGS = {"unchoke_slots_limit": 20, "max_out_request_queue": 500}


class Session:
    """One session that seeds or receives one torrent at a time."""

    def __init__(self, listen: str, kind: str) -> None:
        chosen = PAIR_SETTINGS if kind == "pair" else SWARM_SETTINGS
        # Its type information knows settings only as a class of its own, which is made from such a mapping.
        settings: Any = {"listen_interfaces": listen, **COMMON_SETTINGS, **chosen}
        self._session = libtorrent.session(settings)
        if kind == "pair":
            # The library's own preset for a fast machine comes on top, and raises buffers and queues once more.
            self._session.apply_settings(libtorrent.high_performance_seed())
        self._torrent: Any = None
        self._folder: Path | None = None

    def make(self, file: str, torrent: str, piece_size_bytes: int) -> None:
        """Hash a file into a torrent file."""
        files = libtorrent.file_storage()
        libtorrent.add_files(files, file)
        made = libtorrent.create_torrent(files, piece_size=piece_size_bytes, flags=libtorrent.create_torrent.v1_only)
        libtorrent.set_piece_hashes(made, str(Path(file).parent))
        Path(torrent).write_bytes(libtorrent.bencode(made.generate()))

    def add(self, torrent: str, folder: str, seed: bool) -> int:
        """Offer what a folder holds, or be ready to receive into it; the port listened on."""
        parameters = libtorrent.add_torrent_params()
        parameters.ti = libtorrent.torrent_info(torrent)
        parameters.save_path = folder
        if seed:
            parameters.flags |= libtorrent.torrent_flags.seed_mode
        else:
            self._folder = Path(folder)
            self._folder.mkdir(parents=True, exist_ok=True)
        self._torrent = self._session.add_torrent(parameters)
        # A torrent that is not checked yet takes no peers; an empty folder is checked at once.
        self._wait(lambda status: status.state not in (status.checking_files, status.checking_resume_data), 60.0)
        return int(self._session.listen_port())

    def receive(self, peers: Sequence[Sequence[Any]], at: float | None = None) -> dict[str, float]:
        """Receive everything from these peers: seconds from `at`, else from connecting, and bytes that came twice."""
        began = begin_at(at)
        for address, port in peers:
            self._torrent.connect_peer((address, port))
        self._wait(lambda status: status.is_seeding, RECEIVE_TIMEOUT_S)
        seconds = time.monotonic() - began
        status = self._torrent.status()
        return {"seconds": seconds, "wasted_bytes": status.total_redundant_bytes + status.total_failed_bytes}

    def forget(self) -> None:
        """Let go of the torrent, and remove what was received."""
        if self._torrent is not None:
            self._session.remove_torrent(self._torrent)
            self._torrent = None
        if self._folder is not None:
            # The disk threads may hold on to the file for a moment; what they bring back is removed next time.
            with suppress(OSError):
                shutil.rmtree(self._folder)

    def _wait(self, holds: Any, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds(self._torrent.status()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the torrent stands at {self._torrent.status().progress:.0%}")
            time.sleep(POLL_INTERVAL_S)


def main() -> None:
    """`libtorrent_agent LISTEN pair|swarm`: answer requests until stdin ends."""
    session = Session(sys.argv[1], sys.argv[2])
    commands: Mapping[str, Callable[..., Any]] = {
        "make": session.make,
        "add": session.add,
        "receive": session.receive,
        "forget": session.forget,
    }
    answer_requests(commands)


if __name__ == "__main__":
    main()
