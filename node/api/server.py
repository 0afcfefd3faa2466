"""The HTTP server: hypercorn's Trio connections behind a listener whose every wait has an end.

`hypercorn.trio.serve` shields its sends without a deadline and lets an error of one connection end them all;
here each connection is bounded and isolated, so that no client can hold up the node, not even while it leaves.
"""

import logging
import socket
from socket import IPPROTO_TCP, SO_KEEPALIVE, SOL_SOCKET
from types import TracebackType
from typing import Self

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from node.api.config import ApiConfig, split_listen
from node.api.routes import Api
from node.errors import UsageError
from node.facade import HerdNode
from node.metrics import Metrics

log = logging.getLogger("herd.api")

SEND_PIECE_SIZE_BYTES = 65_536
KEEPALIVE_IDLE_S = 60
"""After so long a silence the kernel asks whether a client's host still lives; its WebSocket would never say so."""


class _ClientStream(trio.abc.HalfCloseableStream):
    """A client's connection: a send that makes no progress for `write_timeout_s` breaks it."""

    def __init__(self, inner: trio.SocketStream, places: trio.Semaphore, write_timeout_s: float) -> None:
        self._inner = inner
        self._places = places
        self._write_timeout_s = write_timeout_s
        self._released = False
        self.socket = inner.socket  # hypercorn asks it for both addresses

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), SEND_PIECE_SIZE_BYTES):
            with trio.move_on_after(self._write_timeout_s) as patience:
                await self._inner.send_all(view[start : start + SEND_PIECE_SIZE_BYTES])
            if patience.cancelled_caught:
                self.hang_up()
                raise trio.BrokenResourceError(f"the client took nothing for {self._write_timeout_s:g} s")

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._inner.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    def hang_up(self) -> None:
        """Close at once; whoever waits on this stream gets an error."""
        self.socket.close()
        if not self._released:
            self._released = True
            self._places.release()

    async def aclose(self) -> None:
        self.hang_up()
        await trio.lowlevel.checkpoint()


class _Listener(trio.abc.Listener[_ClientStream]):
    """Accepts no more clients than there are places; the others wait in the kernel's queue."""

    def __init__(self, inner: trio.SocketListener, config: ApiConfig) -> None:
        self._inner = inner
        self._config = config
        self._places = trio.Semaphore(config.connections_max)

    async def accept(self) -> _ClientStream:
        await self._places.acquire()
        try:
            stream = await self._inner.accept()
        except BaseException:
            self._places.release()
            raise
        stream.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            stream.setsockopt(IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        return _ClientStream(stream, self._places, self._config.write_timeout_s)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Conversation(TCPServer):
    """One client's connection, as hypercorn speaks on it."""

    async def _read_data(self) -> None:
        await super()._read_data()
        # The client has left: hypercorn would hold its place until the time for a next request is over.
        await self.idle_task.stop()


class _Connections:
    """Serves connections in a shielded nursery until told to stop, then gives them a short grace."""

    def __init__(self, api: Api, config: ApiConfig) -> None:
        self._api = api
        self._config = config
        self._open: dict[_ClientStream, None] = {}
        self._quiet = trio.Event()
        self._context = WorkerContext(None)
        self._hypercorn = _hypercorn_config(config)
        self._app = wrap_app(api.application(), config.request_size_bytes_max, "asgi")  # type: ignore[arg-type]
        self._finished = trio.Event()
        self.nursery: trio.Nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        # Shielded: when the node is cancelled its clients are still told how their requests ended.
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as self.nursery:
                task_status.started()
                await self._finished.wait()
                await self._context.terminated.set()
                with trio.move_on_after(self._config.stop_grace_s):
                    while self._open:
                        self._quiet = trio.Event()
                        await self._quiet.wait()
                self.nursery.cancel_scope.cancel()
                for stream in list(self._open):
                    stream.hang_up()

    def finish(self) -> None:
        """Begin the end: operations are cancelled, listeners told, idle connections closed."""
        self._api.stopping.set()
        self._finished.set()

    async def serve(self, stream: _ClientStream) -> None:
        """Serve one client to its end."""
        self._open[stream] = None
        try:
            await _Conversation(
                self._app,
                self._hypercorn,
                self._context,
                ConnectionState({}),
                stream,  # type: ignore[arg-type]
            ).run()
        except Exception as error:  # boundary: what one client sends must not end the others' connections
            log.warning("a client's connection failed: %r", error)
            log.debug("the failed connection", exc_info=error)
        finally:
            stream.hang_up()
            del self._open[stream]
            self._quiet.set()


class _BoundSocket:
    """The listening socket and the URL by which programs on this machine reach it."""

    def __init__(self, listener: trio.SocketListener, url: str) -> None:
        self.listener = listener
        self.url = url

    @classmethod
    async def open(cls, listen: str) -> Self:
        """Listen on `HOST:PORT`. UsageError naming the address and the remedy."""
        host, port = split_listen(listen)
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                f"api.listen = {listen!r}: cannot listen there: {reason}; choose another with --api HOST:PORT"
            ) from error
        for further in listeners[1:]:
            await further.aclose()  # a name of several addresses: the first one is where clients look
        name = listeners[0].socket.getsockname()
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name[0], name[0])
        shown = f"[{reachable}]" if ":" in reachable else reachable
        return cls(listeners[0], f"http://{shown}:{name[1]}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.listener.aclose()


def _hypercorn_config(config: ApiConfig) -> Config:
    settings = Config()
    # A logger object, not a name: given a name hypercorn would install its own handler.
    settings.errorlog = logging.getLogger("hypercorn.error")
    settings.accesslog = None
    settings.include_server_header = False
    settings.websocket_max_message_size = config.request_size_bytes_max
    # hypercorn's own pings would hold the place of a listener that left until the next ping is due.
    settings.websocket_ping_interval = None
    return settings


async def serve_api(
    node: HerdNode,
    config: ApiConfig,
    metrics: Metrics,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the node's API until cancelled; `task_status.started` tells its URL, `http://HOST:PORT`.

    UsageError when `config.listen` cannot be listened on. When cancelled, running requests are ended with an error
    line within `config.stop_grace_s`.
    """
    connections = _Connections(Api(node, config, metrics), config)
    async with await _BoundSocket.open(config.listen) as bound, trio.open_nursery() as nursery:
        await nursery.start(connections.run)
        nursery.start_soon(metrics.follow, node)
        try:
            task_status.started(bound.url)
            log.info("the API listens on %s", bound.url)
            await trio.serve_listeners(
                connections.serve, [_Listener(bound.listener, config)], handler_nursery=connections.nursery
            )
        finally:
            connections.finish()
