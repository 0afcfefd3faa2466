"""node/cli/output, progress and status_view: what people read."""

import io
from collections import deque

import attrs
import pytest
from rich.console import Console

from node.cli.output import as_view, as_views, seconds_text, short_id, size_text, visible
from node.cli.progress import progress_text
from node.cli.status_view import Watched, event_text, member_row, member_table, watched_view
from node.errors import HerdError
from node.events import (
    AdvertSeen,
    EventsLost,
    MemberChanged,
    PeerBlamed,
    StoreChanged,
    TransferEnded,
    TransferProgressed,
    event_to_json,
)
from node.views import MemberView, NodeStatus, Progress

PEER = "12D3KooWAkWn8nVcbzu2tBcozFMq3sb6vdXkJ6jLCpqXASxYGray"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.9, "1.0 KB"),
        (1000, "1.0 KB"),
        (99_940, "99.9 KB"),
        (99_960, "100 KB"),
        (999_600, "1.0 MB"),
        (4_661_224_676, "4.7 GB"),
        (404_000_000_000, "404 GB"),
        (8_000_000_000_000, "8.0 TB"),
    ],
)
def test_sizes_are_decimal_as_ollama_shows_them(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.9, "59 s"), (187, "3:07"), (7500, "2 h 05 m"), (353_000, "4 d 2 h")]
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_what_others_chose_cannot_drive_the_terminal() -> None:
    assert visible("mödel\x1b[2J\r\n\x9b") == "mödel\\x1b[2J\\r\\n\\x9b"
    assert short_id("sha256:" + "ab" * 32) == "abababababab"


def test_progress_in_words() -> None:
    fetching = Progress("1", "llama3.2:latest", "fetching", 1_200_000_000, 2_000_000_000, 0, {"a": 1, "b": 2})
    assert progress_text(fetching, 110e6) == (
        "fetching llama3.2:latest: 1.2 GB of 2.0 GB (60 %) from 2 peers, 110 MB/s, 7 s left"
    )
    assert progress_text(fetching, 0).endswith("(60 %) from 2 peers")
    assert progress_text(Progress("", "llama3.2:latest", "resolving", 0, 0), 0) == "resolving llama3.2:latest"


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (MemberChanged(PEER, "suspect", 3), "member …ASxYGray is suspect"),
        (AdvertSeen("version", PEER, "llama3.2:latest", ""), "…ASxYGray advertises version llama3.2:latest"),
        (TransferProgressed("1", "m:x", "sha256:0", 5_000, 10_000, {}), "fetching m:x: 5.0 KB of 10.0 KB"),
        (TransferEnded("1", "m:x", "failed", "no holder", 5, {}), "pull of m:x failed after 5 s no holder"),
        (PeerBlamed(PEER, "chunk", "wrong bytes", 2), "blamed …ASxYGray for chunk (2): wrong bytes"),
        (StoreChanged("m:x", "damaged", "blob y"), "model m:x damaged blob y"),
        (EventsLost(7), "7 events were lost: this listener is too slow"),
    ],
)
def test_every_event_has_its_words(event: object, text: str) -> None:
    assert event_text(event_to_json(event)) == text


def test_an_event_of_a_newer_node_is_shown_by_its_fields() -> None:
    assert event_text({"event": "Replicated", "model": "m", "copies": 3}) == "Replicated: model=m, copies=3"
    assert event_text({"event": "PeerBlamed", "who": "x"}) == "PeerBlamed: who=x"


def test_a_member_in_a_row() -> None:
    labels = {"zone": "b", "a": "1"}
    member = MemberView(PEER, "alive", 1, ["/ip4/10.0.0.2/tcp/4701"], labels, 10**9, 2, {"x": 1}, True)
    row = ["…ASxYGray", "alive (banned)", "10.0.0.2:4701", "2", "1.0 GB"]
    assert member_row(member) == [*row, "", "", "", "x 1", "a=1 zone=b"]
    fast = attrs.evolve(member, chunk_plane="bulk", rate_bytes_per_s=2.5e8, nearness=1)
    assert member_row(fast) == [*row, "bulk", "250 MB/s", "1", "x 1", "a=1 zone=b"]
    assert {"VIA", "RATE"} < set(member_table([member, fast])[0])
    assert not {"VIA", "RATE"} & set(member_table([member, member])[0]), "they would say nothing"


@pytest.mark.parametrize("answer", [{}, [], {"peer": 7}, {"members": 5}, {"members": [{"peer": "x"}]}])
def test_a_node_of_another_version_is_told_from_a_bug(answer: object) -> None:
    with pytest.raises(HerdError, match="another version of herd"):
        as_view(answer, NodeStatus)
    with pytest.raises(HerdError, match="another version of herd"):
        as_views(answer, "members", MemberView)


def test_the_newest_events_stay_on_a_screen_that_is_too_low() -> None:
    screen = Console(width=80, height=24, file=io.StringIO())
    member = MemberView(PEER, "alive", 1, ["/ip4/192.0.2.1/tcp/4701"], {}, 10**12, 1, {"chunk": 2}, True)
    address = f"/ip4/192.0.2.1/tcp/4701/p2p/{PEER}"
    status = NodeStatus(
        PEER, "1", [address, address], "http://127.0.0.1:4700", "/h", "/m", 9.0, 39, 0, 1, 5, 10**9, 0, []
    )
    events = deque(f"event {number} {'x' * 100}" for number in range(8))
    screen.print(watched_view(Watched(events, connected=False, status=status, members=[member] * 40), screen))
    shown = str(screen.file.getvalue()).splitlines()  # type: ignore[attr-defined]
    assert len(shown) == 24
    assert shown[0] == f"peer       {PEER}"
    assert shown[1].startswith("addresses  /ip4/192.0.2.1")
    assert shown[1].endswith("…")
    assert [line[:7] for line in shown[-9:-1]] == [f"event {number}" for number in range(8)]
    assert shown[-1] == "waiting for the node to come back; Ctrl-C ends"
    assert sum("192.0.2.1:4701" in line for line in shown) == 5
