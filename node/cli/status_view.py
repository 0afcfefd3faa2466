"""What `herd status` and its live view show: the node, its transfers, its members, what happened last."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from node.cli.output import seconds_text, short_peer_text, size_text, table_of, visible
from node.views import MemberView, NodeStatus, TransferView

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MEMBERS_SHOWN = 20


@attrs.define
class Watched:
    """Everything the live view knows."""

    events: deque[str]
    connected: bool = False
    status: NodeStatus | None = None
    members: list[MemberView] = attrs.field(factory=list)

    def happened(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        if event.get("event") == "Connected":
            self.connected = True
        elif event.get("event") == "Disconnected":
            self.connected = False
        if event.get("event") != "TransferProgressed":  # these stand in the table of transfers
            self.events.append(event_text(event))


_EVENT_TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "Connected": lambda event: f"connected to {event['peer']} at {event['api']}",
    "Disconnected": lambda event: f"disconnected: {event['reason']}",
    "MemberChanged": lambda event: f"member {short_peer_text(event['peer'])} is {event['state']}",
    "AdvertSeen": lambda event: (
        f"{short_peer_text(event['owner'])} advertises {event['kind']} {event['name']} {event['detail']}"
    ),
    "TransferProgressed": lambda event: (
        f"fetching {event['model']}: {size_text(event['held_bytes'])} of {size_text(event['size_bytes'])}"
    ),
    "TransferEnded": lambda event: (
        f"pull of {event['model']} {event['outcome']} after {seconds_text(event['seconds'])} {event['detail']}"
    ),
    "PeerBlamed": lambda event: (
        f"blamed {short_peer_text(event['peer'])} for {event['reason']} ({event['count']}): {event['detail']}"
    ),
    "StoreChanged": lambda event: f"model {event['model']} {event['change']} {event['detail']}",
    "EventsLost": lambda event: f"{event['count']} events were lost: this listener is too slow",
}


def event_text(event: dict[str, Any]) -> str:
    """One event as a line for people; one that only a newer node knows as its fields."""
    text_of = _EVENT_TEXTS.get(str(event.get("event")))
    if text_of is not None:
        try:
            return text_of(event).rstrip()
        except (KeyError, TypeError):
            pass  # a newer node's event of this name may have other fields
    fields = ", ".join(f"{name}={value}" for name, value in event.items() if name != "event")
    return f"{event.get('event')}: {fields}"


def status_lines(status: NodeStatus) -> list[str]:
    """The node as a few lines."""
    suspects = f", {status.members_suspect} suspect" if status.members_suspect else ""
    unverified = f", {size_text(status.unverified_bytes)} still to verify" if status.unverified_bytes else ""
    models, members = _count(status.models, "model"), _count(status.members_alive, "other member")
    return [
        f"peer       {status.peer}",
        f"addresses  {', '.join(status.addresses) or 'none'}",
        f"api        {status.api}",
        f"home       {status.home}",
        f"store      {status.models_path}: {models}, {size_text(status.stored_bytes)}{unverified},"
        f" {size_text(status.free_disk_bytes)} free",
        f"mesh       {members} alive{suspects}",
        f"running    herd {status.version} for {seconds_text(status.uptime_s)}",
    ]


def _count(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def transfer_row(transfer: TransferView) -> list[str]:
    """A running pull in a table's row: model, phase, held, size, sources."""
    return [
        transfer.model,
        transfer.phase,
        size_text(transfer.held_bytes),
        size_text(transfer.size_bytes),
        ", ".join(f"{short_peer_text(peer)} {size_text(size)}" for peer, size in sorted(transfer.sources.items())),
    ]


def member_row(member: MemberView) -> list[str]:
    """A member in a table's row, as MEMBER_COLUMNS names its cells."""
    blame = ", ".join(f"{reason} {count}" for reason, count in sorted(member.blame.items()))
    return [
        short_peer_text(member.peer),
        member.state + (" (banned)" if member.banned else ""),
        _address(member.addresses),
        str(member.models),
        size_text(member.free_disk_bytes),
        member.chunk_plane,
        "" if member.rate_bytes_per_s is None else f"{size_text(member.rate_bytes_per_s)}/s",
        "" if member.nearness is None else str(member.nearness),
        blame,
        " ".join(f"{key}={value}" for key, value in sorted(member.labels.items())),
    ]


def member_table(members: Sequence[MemberView]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of all members, without the columns that would say nothing."""
    rows = [dict(zip(MEMBER_COLUMNS, member_row(member), strict=True)) for member in members]
    columns = [
        column for column in MEMBER_COLUMNS if column not in TELLING_COLUMNS or len({row[column] for row in rows}) > 1
    ]
    return columns, [[row[column] for column in columns] for row in rows]


def _address(addresses: list[str]) -> str:
    """The first address as HOST:PORT."""
    if not addresses:
        return ""
    parts = addresses[0].split("/")
    return f"{parts[2]}:{parts[4]}" if len(parts) >= 5 else addresses[0]


TRANSFER_COLUMNS = ("MODEL", "PHASE", "HELD", "SIZE", "FROM")
MEMBER_COLUMNS = ("PEER", "STATE", "ADDRESS", "MODELS", "FREE", "VIA", "RATE", "NEAR", "BLAME", "LABELS")
TELLING_COLUMNS = ("VIA", "RATE", "NEAR")
"""Shown only where members differ in them: in a mesh of one place without transfers they would say nothing."""
LIVE_COLUMNS = ("PEER", "STATE", "ADDRESS", "MODELS", "FREE", "BLAME", "LABELS")
"""What of a member fits a screen of 80 columns."""
NUMBER_COLUMNS = ("HELD", "SIZE", "MODELS", "FREE", "RATE", "NEAR")


def watched_view(watched: Watched, screen: "Console") -> "RenderableType":
    """The live view: state of the node, transfers, members, the last events.

    What is last matters most, so where the screen is too low it is members, then transfers, that are left out.
    """
    from rich.segment import SegmentLines
    from rich.text import Text

    def lines(*parts: Any) -> list[Any]:
        return [row for part in parts for row in screen.render_lines(part, pad=False)]

    head, transfers, members = [], [], []
    if watched.status is not None:
        head = lines(*(Text(visible(text), no_wrap=True, overflow="ellipsis") for text in status_lines(watched.status)))
        if watched.status.transfers:
            rows = [transfer_row(transfer) for transfer in watched.status.transfers]
            transfers = lines(Text(), table_of(TRANSFER_COLUMNS, rows, right=NUMBER_COLUMNS))
    if watched.members:
        full = [
            dict(zip(MEMBER_COLUMNS, member_row(member), strict=True)) for member in watched.members[:MEMBERS_SHOWN]
        ]
        rows = [[row[column] for column in LIVE_COLUMNS] for row in full]
        members = lines(Text(), table_of(LIVE_COLUMNS, rows, right=NUMBER_COLUMNS))
        if len(watched.members) > MEMBERS_SHOWN:
            members += lines(Text(f"and {len(watched.members) - MEMBERS_SHOWN} more members (`herd peers` lists them)"))
    happened = lines(Text(), *(Text(visible(text), no_wrap=True, overflow="ellipsis") for text in watched.events))
    if not watched.connected:
        happened += lines(Text("waiting for the node to come back; Ctrl-C ends"))
    room = max(0, screen.height - len(head) - len(happened))
    transfers = transfers[:room]
    return SegmentLines([*head, *transfers, *members[: room - len(transfers)], *happened], new_lines=True)
