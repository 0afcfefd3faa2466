"""The routes of the API: what each takes, what it asks of the node, what it answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import trio
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from node.api.answers import Document
from node.api.config import ApiConfig
from node.api.guards import Boundary, Guard, WholeBody, unknown_route
from node.api.progress import ProgressStream
from node.errors import UsageError
from node.events import event_to_json
from node.facade import HerdNode, OnProgress, Priority, Through
from node.metrics import Metrics
from node.views import to_json
from protocols.names import InvalidName, ModelName

PATTERN_LENGTH_MAX = 512
GOING_AWAY = 1001
"""The WebSocket close code of RFC 6455 for a server that stops."""


class Api:
    """The endpoints, over one node. `stopping` is set when the node begins to leave."""

    def __init__(self, node: HerdNode, config: ApiConfig, metrics: Metrics) -> None:
        self._node = node
        self._config = config
        self._metrics = metrics
        self.stopping = trio.Event()

    def application(self) -> Starlette:
        """The ASGI application with its guards around the routes."""
        app = Starlette(
            routes=[
                Route("/api/health", self.health),
                Route("/api/mesh/status", self.status),
                Route("/api/mesh/peers", self.peers),
                Route("/api/mesh/models", self.models, methods=["GET", "DELETE"]),
                Route("/api/mesh/models/{name:path}", self.model),
                Route("/api/mesh/find", self.find),
                Route("/api/mesh/add", self.add, methods=["POST"]),
                Route("/api/mesh/pull", self.pull, methods=["POST"]),
                Route("/api/mesh/verify", self.verify, methods=["POST"]),
                Route("/api/mesh/limits", self.limits, methods=["GET", "POST"]),
                Route("/metrics", self.metrics),
                WebSocketRoute("/api/mesh/events", self.events),
            ],
            middleware=[
                Middleware(Boundary, observe=self._metrics.observe_request),
                Middleware(Guard, config=self._config, peer=lambda: self._node.status().peer),
                Middleware(WholeBody, config=self._config),
            ],
            exception_handlers={HTTPException: _http_exception},
        )
        app.router.redirect_slashes = False
        return app

    async def health(self, request: Request) -> Response:
        """200 `{"healthy": true}`, or 503 with the reasons: the node stops, or its disk takes nothing more."""
        reasons = []
        if self.stopping.is_set():
            reasons.append("the node is stopping")
        if self._node.status().free_disk_bytes <= 0:
            reasons.append("the disk of the store is full; remove models with `herd rm` or make room")
        return Document({"healthy": not reasons, "reasons": reasons}, status_code=503 if reasons else 200)

    async def status(self, request: Request) -> Response:
        """The node's NodeStatus."""
        return Document(to_json(self._node.status()))

    async def peers(self, request: Request) -> Response:
        """`{"members": [MemberView, ...]}`, this node first."""
        return Document({"members": [to_json(member) for member in self._node.members()]})

    async def models(self, request: Request) -> Response:
        """GET: `{"models": [ModelView, ...]}`. DELETE with `?name=`: `{"removed": name}`."""
        if request.method == "DELETE":
            name = _model_name(request.query_params.get("name"))
            await self._node.remove(name)
            return Document({"removed": name})
        return Document({"models": [to_json(model) for model in await self._node.list()]})

    async def model(self, request: Request) -> Response:
        """One ModelView of this store."""
        return Document(to_json(await self._node.get(_model_name(request.path_params["name"]))))

    async def find(self, request: Request) -> Response:
        """`{"models": [FoundModel, ...]}` of the whole network for `?pattern=` and `?through=`."""
        pattern = request.query_params.get("pattern") or "*"
        through = request.query_params.get("through") or "auto"
        if through not in get_args(Through):
            raise UsageError(f"through = {through[:80]!r} is not allowed: one of {', '.join(get_args(Through))}")
        if len(pattern) > PATTERN_LENGTH_MAX:
            raise UsageError(f"pattern is over {PATTERN_LENGTH_MAX} characters")
        found = await self._node.discover(pattern, through=cast("Through", through))
        return Document({"models": [to_json(model) for model in found]})

    async def add(self, request: Request) -> Any:
        """POST `{"path", "name"?}`: NDJSON of Progress, then `{"report": ModelView}` or the error."""
        document = await _json_body(request, required=("path",), optional=("name",))
        path = Path(document["path"])
        if "\0" in document["path"] or not path.is_absolute():
            raise UsageError(f"path = {document['path'][:200]!r} is not allowed: the absolute path of a .gguf file")
        name = _model_name(document.get("name") or default_model_name(path))

        async def work(on_progress: OnProgress) -> Any:
            return await self._node.add(path, name, on_progress=on_progress)

        return ProgressStream(work, name, self._config, self.stopping)

    async def pull(self, request: Request) -> Any:
        """POST `{"name", "priority"?}`: NDJSON of Progress, then `{"report": PullReport}` or the error."""
        document = await _json_body(request, required=("name",), optional=("priority",))
        name = _model_name(document["name"])
        priority = document.get("priority", "normal")
        if priority not in get_args(Priority):
            raise UsageError(f"priority = {priority[:80]!r} is not allowed: one of {', '.join(get_args(Priority))}")

        async def work(on_progress: OnProgress) -> Any:
            return await self._node.pull(name, priority=cast("Priority", priority), on_progress=on_progress)

        return ProgressStream(work, name, self._config, self.stopping)

    async def verify(self, request: Request) -> Any:
        """POST `{"names"?: [..], "again"?: bool}`: NDJSON of Progress, then `{"report": VerifyReport}` or the error."""
        document = await _json_object(request, ("names", "again"))
        given, again = document.get("names", []), document.get("again", False)
        if not isinstance(given, list):
            raise UsageError("names must be a list of model names; leave it out for all models")
        if not isinstance(again, bool):
            raise UsageError("again must be true or false")
        names = [_model_name(name) for name in given]

        async def work(on_progress: OnProgress) -> Any:
            return await self._node.verify(names, again=again, on_progress=on_progress)

        return ProgressStream(work, names[0] if len(names) == 1 else "", self._config, self.stopping)

    async def limits(self, request: Request) -> Response:
        """The node's LimitsView. POST `{KEY: RATE, ...}` sets limits before, until the node stops."""
        if request.method == "POST":
            return Document(to_json(self._node.set_limits(await _json_body(request, required=(), optional=None))))
        return Document(to_json(self._node.limits()))

    async def metrics(self, request: Request) -> Response:
        """The registry in the Prometheus text format."""
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def events(self, websocket: WebSocket) -> None:
        """Every event of the node as one JSON text each; a listener that is too slow is told how many it missed."""
        with self._node.events.subscribe() as events:
            await websocket.accept()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_when_client_goes, websocket, nursery.cancel_scope)
                nursery.start_soon(self._say_going_away, websocket, nursery.cancel_scope)
                async for event in events:
                    await websocket.send_text(json.dumps(event_to_json(event), separators=(",", ":")))

    async def _say_going_away(self, websocket: WebSocket, listening: trio.CancelScope) -> None:
        await self.stopping.wait()
        await websocket.close(GOING_AWAY)
        listening.cancel()


async def _end_when_client_goes(websocket: WebSocket, listening: trio.CancelScope) -> None:
    try:
        while True:
            await websocket.receive_text()  # clients have nothing to say; reading shows when they are gone
    except (WebSocketDisconnect, KeyError, RuntimeError):
        # KeyError: a binary message. RuntimeError: the socket was closed from here meanwhile.
        listening.cancel()


def _http_exception(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    answer = unknown_route(status)
    if isinstance(error, HTTPException):
        answer.headers.update(error.headers or {})
    return answer


def _model_name(text: object) -> str:
    """The name as it is shown, once it is known to be one."""
    if not isinstance(text, str) or not text:
        raise UsageError("a model name is wanted, such as llama3.2 or bob/x:1b")
    try:
        return ModelName.parse(text).display()
    except InvalidName as error:
        raise UsageError(str(error)) from error


def default_model_name(path: Path) -> str:
    """A model name made of a file's name: what a name may not hold becomes `-`."""
    kept = "".join(one if one.isascii() and (one.isalnum() or one in "_.-") else "-" for one in path.stem.lower())
    return kept.strip("-.")[:80] or "model"


async def _json_body(
    request: Request, *, required: Sequence[str], optional: Sequence[str] | None = ()
) -> dict[str, str]:
    """The request's JSON object of texts. UsageError for anything else, naming the key.

    With `optional` None every key is taken, for whoever knows the keys to judge.
    """
    document = await _json_object(request, (*required, *optional) if optional is not None else None)
    for key in required:
        if key not in document:
            raise UsageError(f"the key {key!r} is missing")
    for key, value in document.items():
        if not isinstance(value, str) and not (value is None and key in (optional or ())):
            raise UsageError(f"{key[:80]} = {json.dumps(value)[:80]} is not allowed: a text")
    return {key: value for key, value in document.items() if value is not None}


async def _json_object(request: Request, known: Sequence[str] | None) -> dict[str, Any]:
    """The request's JSON object, with no other keys than these (None: any); UsageError naming what is wrong."""
    try:
        document = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise UsageError("the request body must be a JSON object") from error
    if not isinstance(document, dict):
        raise UsageError("the request body must be a JSON object")
    for key in document:
        if known is not None and key not in known:
            raise UsageError(f"unknown key {key[:80]!r}; known are {', '.join(known)}")
    return document
