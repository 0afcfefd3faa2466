"""A long operation as NDJSON: progress lines, then one last line with the report or the error."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from starlette.types import Receive, Scope, Send

from node.api.answers import error_answer, error_document, told
from node.api.config import ApiConfig
from node.errors import HerdError, NodeUnreachable
from node.facade import OnProgress
from node.views import Progress, to_json

Work = Callable[[OnProgress], Awaitable[Any]]


class ProgressStream:
    """The response of one asker. Ends the work's asking when the client goes away or the node stops.

    Progress is coalesced: a slow client, or a fast operation, sees the newest state and never a queue. A line is
    repeated every `heartbeat_s`, so that a client can tell a slow operation from a node that hangs.
    An operation that fails before its first line answers with the status of the failure.
    """

    def __init__(self, work: Work, model: str, config: ApiConfig, stopping: trio.Event) -> None:
        self._work = work
        self._config = config
        self._stopping = stopping
        self._latest = Progress("", model, "resolving", 0, 0)
        self._news = trio.Event()
        self._ended = trio.Event()
        self._last_line: dict[str, Any] = {}
        self._failure: HerdError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_when_client_goes, receive, nursery.cancel_scope)
            nursery.start_soon(self._run)
            await self._write(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _end_when_client_goes(self, receive: Receive, asking: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        asking.cancel()

    async def _run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_stopping, nursery.cancel_scope)
                view = await self._work(self._progressed)
                self._last_line = {"report": to_json(view)}
                nursery.cancel_scope.cancel()
        except Exception as error:  # boundary: the operation's failure is its last line
            self._failure = told(error)
        if not self._last_line:
            self._failure = self._failure or NodeUnreachable("the node is stopping; ask again once it runs to resume")
            self._last_line = error_document(self._failure)
        self._ended.set()
        self._news.set()

    async def _cancel_when_stopping(self, operation: trio.CancelScope) -> None:
        await self._stopping.wait()
        operation.cancel()

    def _progressed(self, progress: Progress) -> None:
        self._latest = progress
        self._news.set()

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        written: Progress | None = None
        while True:
            with trio.move_on_after(self._config.heartbeat_s) as quiet:
                await self._news.wait()
            self._news = trio.Event()
            if self._failure is not None and not begun:
                await error_answer(self._failure)(scope, receive, send)
                return
            if not begun:
                await self._begin(send)
                begun = True
            if self._latest is not written or quiet.cancelled_caught:
                written = self._latest
                await self._line(send, to_json(written))
            if self._ended.is_set():
                await self._line(send, self._last_line)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            with trio.move_on_after(self._config.progress_interval_s):
                await self._ended.wait()
            if self._ended.is_set():
                self._news.set()

    async def _begin(self, send: Send) -> None:
        headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _line(self, send: Send, document: dict[str, Any]) -> None:
        body = json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
