"""What every request passes before a route sees it: the boundary, who may ask, and how much they may send."""

import ipaddress
import logging
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.api.answers import Document, error_answer, told
from node.api.config import PEER_HEADER, ApiConfig
from node.errors import HerdError, NodeUnreachable, UsageError

log = logging.getLogger("herd.api")

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


class Boundary:
    """The named boundary between clients and the node: no exception of a route passes it.

    A failure for a person becomes its status and document; an unexpected one is logged and becomes a 500.
    """

    def __init__(self, app: ASGIApp, observe: Callable[[str, str, int, float], None]) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = time.monotonic()
        statuses: list[int] = []

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception as error:  # boundary: one client's request must not end the node
            answer = error_answer(told(error))
            if scope["type"] == "http" and not statuses:
                await answer(scope, receive, noting_send)
        if scope["type"] == "http" and statuses:
            route = getattr(scope.get("endpoint"), "__name__", "unknown")
            self._observe(route, scope["method"], statuses[0], time.monotonic() - started_at)


class Guard:
    """Refuses requests that a web page makes a browser send: foreign host names (DNS rebinding) and foreign origins.

    The rule for hosts is that of Ollama's server; browsers always send Origin with a WebSocket and with a POST
    across origins, and programs never do.
    """

    def __init__(self, app: ASGIApp, config: ApiConfig, peer: Callable[[], str]) -> None:
        self._app = app
        self._hosts = {name.lower() for name in (socket.gethostname(), "localhost", *config.allowed_hosts)}
        self._origins = {origin.lower() for origin in config.allowed_origins}
        self._peer = peer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Document | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "").strip().lower()
        if not self._host_allowed(host, scope):
            return error_answer(
                UsageError(f"host {host[:200]!r} may not call this API; add its name to api.allowed_hosts"), status=403
            )
        origin = headers.get("origin")
        if origin is not None and not self._origin_allowed(origin.strip().lower(), host):
            return error_answer(
                UsageError(f"origin {origin[:200]!r} may not call this API; add it to api.allowed_origins"), status=403
            )
        meant = headers.get(PEER_HEADER)
        if meant is not None and meant != self._peer():
            return error_answer(NodeUnreachable(f"this is the node {self._peer()}, another one was meant"), status=421)
        return None

    def _host_allowed(self, host: str, scope: Scope) -> bool:
        name = _host_name(host)
        if name is None:
            return False
        if not name or name in self._hosts or name.endswith(_LOCAL_SUFFIXES):
            return True
        try:
            address = ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return False
        own = (scope.get("server") or ("",))[0]
        return address.is_loopback or address.is_private or address.is_unspecified or str(address) == own

    def _origin_allowed(self, origin: str, host: str) -> bool:
        return origin in self._origins or origin in (f"http://{host}", f"https://{host}")


def _host_name(host: str) -> str | None:
    """The name in a Host header without port and brackets, None when it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # a port that is no number raises here
    except ValueError:
        return None
    if parts.path or parts.query or parts.fragment or "@" in host:
        return None
    return parts.hostname or ""


class _Refused(Exception):
    """The body is not taken; carries the answer."""

    def __init__(self, answer: Document) -> None:
        super().__init__()
        self.answer = answer


class WholeBody:
    """Reads the request body before the route runs: at most so many bytes, within a deadline.

    Reading it always, even where no route wants one, keeps the server's bounded queue of body pieces from filling
    up, behind which a client's going away would never be noticed.
    """

    def __init__(self, app: ASGIApp, config: ApiConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except _Refused as refused:
            await refused.answer(scope, receive, send)
            return
        if body is None:
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body, or None when the client went away."""
        limit = self._config.request_size_bytes_max
        body = bytearray()
        with trio.move_on_after(self._config.request_timeout_s):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                body += message.get("body", b"")
                if len(body) > limit:
                    refusal = UsageError(f"the request body is over {limit} bytes")
                    raise _Refused(error_answer(refusal, status=413, headers={"connection": "close"}))
                if not message.get("more_body", False):
                    return bytes(body)
        refusal = UsageError(f"the request body did not arrive within {self._config.request_timeout_s:g} s")
        raise _Refused(error_answer(refusal, status=408, headers={"connection": "close"}))


def unknown_route(status: int) -> Document:
    """The document of a 404 or 405."""
    text = {404: "no such route", 405: "this route does not take this method"}.get(status, f"refused ({status})")
    error = HerdError(text) if status != 404 else HerdError(f"{text}; see `herd --help` for what a node can be asked")
    return error_answer(error, status=status)
