"""`herd status --watch`: a live view of the node, fed by its WebSocket of events, reconnecting when it restarts."""

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, wrap_client_stream

from node.api.config import PEER_HEADER
from node.cli.node_file import NodeFile, find_node, gone
from node.cli.output import as_view, as_views, console, document, line, stdout_is_terminal
from node.cli.status_view import Watched, event_text, watched_view
from node.errors import NodeUnreachable
from node.views import MemberView, NodeStatus

CONNECT_TIMEOUT_S = 5.0
REFRESH_INTERVAL_S = 1.0
RECONNECT_S = 0.5
RECONNECT_MAX_S = 2.0
EVENTS_SHOWN = 8

Tell = Callable[[dict[str, Any]], None]


async def follow_events(home: Path, node: NodeFile, connected: Callable[[], None], tell: Tell) -> None:
    """Tell every event of the node until the connection ends. NodeUnreachable when there was none.

    The stream is opened and closed here: trio-websocket leaves the one it opens to the garbage collector when
    the other side ends the conversation.
    """
    address = urlsplit(node.api)
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            stream = await trio.open_tcp_stream(address.hostname or "", address.port or 80)
    except (OSError, trio.TooSlowError) as error:
        raise gone(home, node, str(error) or "it took too long") from error
    headers = [(PEER_HEADER.encode(), node.peer.encode())]
    async with stream:
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(CONNECT_TIMEOUT_S):
                    connection = await wrap_client_stream(
                        nursery, stream, address.netloc, "/api/mesh/events", extra_headers=headers
                    )
                connected()
                await _tell_messages(connection, tell)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The reader of trio-websocket fails in our nursery, so its refusal comes out in a group.
            if group.split((HandshakeError, ConnectionClosed, trio.TooSlowError))[1] is not None:
                raise
            raise gone(home, node, "it tells its events to nobody now") from group


async def _tell_messages(connection: WebSocketConnection, tell: Tell) -> None:
    while True:
        try:
            message = await connection.get_message()
        except ConnectionClosed:
            return
        told = json.loads(message)
        if isinstance(told, dict):
            tell(told)


async def watch(home: Path, *, json_lines: bool) -> None:
    """Show the node until cancelled. NodeUnreachable when none is running at first; later ones are waited for."""
    if json_lines or not stdout_is_terminal():
        await _Reconnecting(home, _told_as_lines(json_lines)).run()
    else:
        await _watch_live(home)


def _told_as_lines(json_lines: bool) -> Tell:
    def tell(event: dict[str, Any]) -> None:
        if json_lines:
            document(event, lines=True)
        else:
            line(event_text(event))

    return tell


class _Reconnecting:
    """The events of whichever node runs in the home, with `Connected` and `Disconnected` among them."""

    def __init__(self, home: Path, tell: Tell) -> None:
        self._home = home
        self._tell = tell
        self.node = find_node(home)
        self._was_connected = False
        self._reason = ""
        self._wait_s = RECONNECT_S

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                self.node = find_node(self._home)
                await follow_events(self._home, self.node, self._connected, self._tell)
                reason = "the node ended the connection"
            except NodeUnreachable as error:
                if not self._was_connected:
                    raise
                reason = str(error)
            if reason != self._reason:
                # Once, not at every try: what happened before is still worth its place on the screen.
                self._reason = reason
                self._tell({"event": "Disconnected", "reason": reason})
            await trio.sleep(self._wait_s)
            self._wait_s = min(self._wait_s * 2, RECONNECT_MAX_S)

    def _connected(self) -> None:
        self._was_connected = True
        self._reason = ""
        self._wait_s = RECONNECT_S
        self._tell({"event": "Connected", "peer": self.node.peer, "api": self.node.api})


async def _watch_live(home: Path) -> None:
    from rich.live import Live

    watched = Watched(deque(maxlen=EVENTS_SHOWN))
    changed = trio.Event()

    def tell(event: dict[str, Any]) -> None:
        nonlocal changed
        watched.happened(event)
        changed.set()

    following = _Reconnecting(home, tell)
    screen = console()
    with Live(console=screen, auto_refresh=False, screen=True) as live:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(following.run)
            while True:
                if watched.connected:
                    await _refresh(following.node, watched)
                live.update(watched_view(watched, screen), refresh=True)
                # Whatever happens is seen within the interval; a burst of events is one redraw.
                changed = trio.Event()
                with trio.move_on_after(REFRESH_INTERVAL_S):
                    await changed.wait()
                    await trio.sleep(REFRESH_INTERVAL_S / 4)


async def _refresh(node: NodeFile, watched: Watched) -> None:
    try:
        async with httpx.AsyncClient(
            base_url=node.api, trust_env=False, headers={PEER_HEADER: node.peer}, timeout=CONNECT_TIMEOUT_S
        ) as http:
            status, peers = await http.get("/api/mesh/status"), await http.get("/api/mesh/peers")
            if status.is_success and peers.is_success:
                watched.status = as_view(status.json(), NodeStatus)
                watched.members = as_views(peers.json(), "members", MemberView)
    except (httpx.HTTPError, ValueError):
        pass  # the events' own connection notices and says when the node is gone
