"""node/api over a real loopback socket: routes, streams of progress, events, and clients that behave badly."""

import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
import trio_websocket

from node.api.config import ApiConfig
from node.api.server import serve_api
from node.errors import NotFound, UsageError, VerificationFailed
from node.events import QUEUE_LENGTH_MAX, MemberChanged, PeerBlamed
from node.metrics import Metrics
from tests.support_node import BOB, PEER, FakeNode, served_node

FAST = ApiConfig(listen="127.0.0.1:0", progress_interval_s=0.01, heartbeat_s=0.1, stop_grace_s=0.5)


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=20)


async def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) async for line in answer.aiter_lines()]


async def test_the_documents_of_a_node() -> None:
    async with served_node(FAST) as (node, url), client(url) as http:
        status = (await http.get("/api/mesh/status")).json()
        assert (status["peer"], status["api"]) == (PEER, url)
        peers = (await http.get("/api/mesh/peers")).json()["members"]
        assert [(peer["peer"], peer["state"], peer["banned"]) for peer in peers] == [
            (PEER, "self", False),
            (BOB, "alive", True),
        ]
        found = (await http.get("/api/mesh/find", params={"pattern": "llama*", "through": "dht"})).json()["models"]
        assert [(model["name"], model["source"]) for model in found] == [("llama3.2:latest", "dht")]
        assert (await http.get("/api/mesh/models")).json() == {"models": []}
        await node.pull("llama3.2:latest")
        assert (await http.get("/api/mesh/models/llama3.2")).json()["state"] == "verified"
        removed = await http.delete("/api/mesh/models", params={"name": "llama3.2"})
        assert (removed.status_code, removed.json()) == (200, {"removed": "llama3.2:latest"})
        assert node.models == {}


async def test_limits_are_shown_and_set_until_the_node_stops() -> None:
    async with served_node(FAST) as (_, url), client(url) as http:
        before = (await http.get("/api/mesh/limits")).json()
        assert before["limits"][0] == {"key": "up", "setting": "unlimited", "bytes_per_s": None, "period": ""}
        assert (before["periods"], before["local_time"]) == (["night=22:00-06:00"], "fri 23:05")
        assert before["changed"] == []
        answer = await http.post("/api/mesh/limits", json={"up": "50MB/s, night=400MB/s", "pull_down": "80Mbit/s"})
        told = {limit["key"]: limit for limit in answer.json()["limits"]}
        assert (told["up"]["bytes_per_s"], told["up"]["period"]) == (400_000_000, "night")
        assert (told["pull_down"]["bytes_per_s"], told["pull_down"]["setting"]) == (10_000_000, "80Mbit/s")
        assert answer.json()["changed"] == ["up", "pull_down"]
        assert answer.json()["note"].endswith("write them under [limits] in /fake/herd.toml")
        half_wrong = await http.post("/api/mesh/limits", json={"up": "1MB/s", "down": "fast"})
        assert half_wrong.status_code == 400
        assert (await http.get("/api/mesh/limits")).json() == answer.json(), "all are set, or none"


async def test_health_says_why_not() -> None:
    async with served_node(FAST) as (node, url), client(url) as http:
        answer = await http.get("/api/health")
        assert (answer.status_code, answer.json()) == (200, {"healthy": True, "reasons": []})
        node.free_disk_bytes = 0
        answer = await http.get("/api/health")
        assert answer.status_code == 503
        assert answer.json()["reasons"] == ["the disk of the store is full; remove models with `herd rm` or make room"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "exit_code", "error"),
    [
        ("GET", "/api/mesh/models/ghost", None, 404, 3, "ghost:latest: no such model in this store;"),
        ("GET", "/api/mesh/models/..%2F..%2Fetc", None, 400, 2, "invalid model name"),
        ("DELETE", "/api/mesh/models", None, 400, 2, "a model name is wanted"),
        ("GET", "/api/mesh/find?through=magic", None, 400, 2, "through = 'magic' is not allowed: one of auto,"),
        ("POST", "/api/mesh/pull", b"not json", 400, 2, "the request body must be a JSON object"),
        ("POST", "/api/mesh/pull", b"[" * 60_000, 400, 2, "the request body must be a JSON object"),
        ("POST", "/api/mesh/pull", b"{}", 400, 2, "the key 'name' is missing"),
        ("POST", "/api/mesh/pull", b'{"name":7}', 400, 2, "name = 7 is not allowed: a text"),
        ("POST", "/api/mesh/pull", b'{"nam":"x"}', 400, 2, "unknown key 'nam'; known are name, priority"),
        (
            "POST",
            "/api/mesh/pull",
            b'{"name":"x","priority":"asap"}',
            400,
            2,
            "priority = 'asap' is not allowed: one of",
        ),
        ("POST", "/api/mesh/pull", b'{"name":"ghost"}', 404, 3, "ghost:latest: nobody in the mesh holds it"),
        ("POST", "/api/mesh/add", b'{"path":"x.gguf"}', 400, 2, "path = 'x.gguf' is not allowed: the absolute path"),
        ("POST", "/api/mesh/add", b'{"path":"/no/x.gguf"}', 404, 3, "/no/x.gguf: no such file"),
        ("POST", "/api/mesh/add", b'{"path":"/a\\u0000"}', 400, 2, "path = "),
        ("POST", "/api/mesh/limits", b"{}", 400, 2, "nothing to set: give KEY=RATE, such as up=50MB/s"),
        ("POST", "/api/mesh/limits", b'{"upp":"1MB/s"}', 400, 2, "unknown limit 'upp'; did you mean up?"),
        ("POST", "/api/mesh/limits", b'{"night":"1MB/s"}', 400, 2, "night is a period, not a limit: quote it"),
        ("POST", "/api/mesh/limits", b'{"up":5}', 400, 2, "up = 5 is not allowed: a text"),
        ("POST", "/api/mesh/limits", b'{"up":null}', 400, 2, "up = null is not allowed: a text"),
        ("POST", "/api/mesh/limits", b'{"up":"50"}', 400, 2, "limits.up: '50' is not allowed: a rate such as 50MB/s,"),
        ("POST", "/api/mesh/verify", b'{"names":"x"}', 400, 2, "names must be a list of model names"),
        ("POST", "/api/mesh/verify", b'{"names":[7]}', 400, 2, "a model name is wanted"),
        ("POST", "/api/mesh/verify", b'{"again":1}', 400, 2, "again must be true or false"),
        ("POST", "/api/mesh/verify", b'{"name":"x"}', 400, 2, "unknown key 'name'; known are names, again"),
        ("POST", "/api/mesh/verify", b'{"names":["ghost"]}', 404, 3, "ghost:latest: no such model in this store"),
        ("DELETE", "/api/mesh/limits", None, 405, 1, "this route does not take this method"),
        ("GET", "/nowhere", None, 404, 1, "no such route"),
        ("GET", "/api/mesh/models/", None, 400, 2, "a model name is wanted"),
        ("GET", "/api/mesh/pull", None, 405, 1, "this route does not take this method"),
        ("BREW", "/api/mesh/status", None, 405, 1, "this route does not take this method"),
        ("POST", "/api/mesh/pull", b"x" * 70_000, 413, 2, "the request body is over 65536 bytes"),
    ],
)
async def test_a_wrong_request_is_told_why(
    method: str, path: str, body: bytes | None, status: int, exit_code: int, error: str
) -> None:
    async with served_node(FAST) as (_, url), client(url) as http:
        answer = await http.request(method, path, content=body)
        assert (answer.status_code, answer.json()["exit_code"]) == (status, exit_code)
        assert answer.json()["error"].startswith(error)


async def test_every_failure_keeps_its_status_and_a_bug_is_logged_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async with served_node(FAST) as (node, url), client(url) as http:
        node.failure = VerificationFailed("x: every holder sent wrong bytes")
        answer = await http.get("/api/mesh/models")
        assert (answer.status_code, answer.json()["exit_code"]) == (502, 5)
        node.failure = ExceptionGroup("of a nursery", [NotFound("y: gone")])
        assert (await http.get("/api/mesh/models")).status_code == 404
        node.failure = RuntimeError("secret detail")
        answer = await http.get("/api/mesh/models")
        assert answer.status_code == 500
        assert answer.json()["error"] == "internal error: RuntimeError; the node's log has the details"
        assert "secret detail" in caplog.text
        node.failure = None
        assert (await http.get("/api/mesh/models")).status_code == 200


async def test_a_pull_tells_its_progress_and_then_its_report() -> None:
    async with served_node(FAST) as (node, url), client(url) as http:
        node.step_s = 0.03
        async with http.stream("POST", "/api/mesh/pull", json={"name": "llama3.2"}) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            told = await lines(answer)
        assert {line["phase"] for line in told[:-1]} == {"fetching"}
        assert told[-2]["held_bytes"] == 3_000_000
        assert told[-1]["report"]["sources"] == {BOB: 3_000_000}


async def test_a_verify_tells_its_progress_and_then_its_report() -> None:
    async with served_node(FAST) as (node, url), client(url) as http:
        node.step_s = 0.03
        await node.pull("llama3.2:latest")
        body = {"names": ["llama3.2"], "again": True}
        async with http.stream("POST", "/api/mesh/verify", json=body) as answer:
            told = await lines(answer)
        assert told[-2]["phase"] == "verifying"
        report = told[-1]["report"]
        assert (report["verified"], report["read_bytes"], report["recorded_bytes"]) == (True, 3_000_000, 0)
        answer = await http.post("/api/mesh/verify", json={})
        assert json.loads(answer.text.splitlines()[-1])["report"]["recorded_bytes"] == 3_000_000


async def test_a_quiet_pull_repeats_its_line_so_that_the_client_knows_the_node_lives() -> None:
    async with served_node(FAST) as (node, url), client(url) as http:
        node.step_s = 0.35
        node.steps = 1
        async with http.stream("POST", "/api/mesh/pull", json={"name": "llama3.2"}) as answer:
            told = await lines(answer)
        assert [line["phase"] for line in told[:2]] == ["resolving", "resolving"]
        assert "report" in told[-1]


async def test_a_pull_that_fails_later_ends_with_the_error_line() -> None:
    async with served_node(FAST) as (node, url), client(url) as http:
        node.step_s = 0.03
        async with http.stream("POST", "/api/mesh/pull", json={"name": "llama3.2"}) as answer:
            stream = answer.aiter_lines()
            assert json.loads(await anext(stream))["held_bytes"] == 1_000_000
            node.failure = VerificationFailed("llama3.2: chunk 1 was wrong from every holder")
            last = [json.loads(line) async for line in stream][-1]
        assert last == {"error": "llama3.2: chunk 1 was wrong from every holder", "exit_code": 5}


async def pulling(url: str, name: str) -> trio.SocketStream:
    """A client that asked for a pull and saw its first line of progress."""
    host, port = url.removeprefix("http://").split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    body = json.dumps({"name": name}).encode()
    head = f"POST /api/mesh/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    await stream.send_all(head.encode() + body)
    answer = b""
    while b'"phase"' not in answer:
        answer += await stream.receive_some()
    return stream


async def test_a_pull_is_cancelled_when_its_last_asker_leaves_and_resumes_later() -> None:
    async with served_node(FAST) as (node, url), client(url) as http:
        node.step_s = 0.2
        first, second = await pulling(url, "llama3.2"), await pulling(url, "llama3.2")
        await first.aclose()
        await http.get("/api/health")  # a round trip later the node has seen the first one go
        assert (node.pulls_started, node.pulls_cancelled) == (1, 0)
        await second.aclose()
        with trio.fail_after(10):
            await node.pull_cancelled.wait()
        node.step_s = 0
        async with http.stream("POST", "/api/mesh/pull", json={"name": "llama3.2"}) as answer:
            report = (await lines(answer))[-1]["report"]
        assert report["resumed_bytes"] >= 1_000_000
        assert report["fetched_bytes"] + report["resumed_bytes"] == 3_000_000


async def test_a_stopping_node_tells_its_askers() -> None:
    async with trio.open_nursery() as outer:
        node = FakeNode(outer)
        node.step_s = 30
        stop = trio.CancelScope()

        async def serve(*, task_status: Any) -> None:
            with stop:
                await serve_api(node, FAST, Metrics("0.1.0"), task_status=task_status)

        url = await outer.start(serve)
        async with client(url) as http, listening(url) as events:
            async with http.stream("POST", "/api/mesh/pull", json={"name": "llama3.2"}) as answer:
                stop.cancel()
                told = await lines(answer)
            with pytest.raises(trio_websocket.ConnectionClosed) as closed, trio.fail_after(10):
                await events.get_message()
        assert told[-1] == {
            "error": "the node is stopping; ask again once it runs to resume",
            "exit_code": 4,
        }
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1001


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """A listener to the node's events whose connection is surely closed."""
    host, port = url.removeprefix("http://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream, trio.open_nursery() as nursery:
        yield await trio_websocket.wrap_client_stream(nursery, stream, f"{host}:{port}", "/api/mesh/events")
        nursery.cancel_scope.cancel()


async def test_events_reach_every_listener() -> None:
    async with served_node(FAST) as (node, url), listening(url) as listener:
        node.events.publish(MemberChanged(BOB, "suspect", 4))
        with trio.fail_after(10):
            told = json.loads(await listener.get_message())
        assert told == {"event": "MemberChanged", "peer": BOB, "state": "suspect", "incarnation": 4}


async def test_a_listener_that_left_holds_no_place() -> None:
    async with served_node(ApiConfig(listen="127.0.0.1:0", connections_max=2)) as (_, url), client(url) as http:
        with trio.fail_after(5):
            for _ in range(3):  # more than there are places
                async with listening(url):
                    pass
        assert (await http.get("/api/health")).status_code == 200


async def test_a_client_that_left_holds_no_place() -> None:
    async with served_node(ApiConfig(listen="127.0.0.1:0", connections_max=2)) as (_, url):
        with trio.fail_after(30):  # hypercorn would wait 5 s for a next request
            for _ in range(6):  # more than there are places
                async with client(url) as http:
                    assert (await http.get("/api/health")).status_code == 200


async def test_a_slow_listener_loses_the_oldest_events_and_is_told_how_many() -> None:
    async with served_node(FAST) as (node, url), listening(url) as listener:
        for count in range(QUEUE_LENGTH_MAX + 5):  # published in one breath: nobody could keep up
            node.events.publish(PeerBlamed(BOB, "chunk", "wrong bytes", count))
        with trio.fail_after(10):
            told = [json.loads(await listener.get_message()) for _ in range(2)]
        assert told[0] == {"event": "EventsLost", "count": 5}
        assert told[1]["count"] == 5


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:4700"}, 403),
        ({"Host": "8.8.8.8"}, 403),
        ({"Host": "127.0.0.1@evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost:99999"}, 403),
        ({"Host": "localhost:4700"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "printer.local"}, 200),
        ({"Host": "10.1.2.3:4700"}, 200),
        ({"Host": "herd.example:4700"}, 200),
        ({"Host": socket.gethostname()}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:4700", "Origin": "http://localhost:4700"}, 200),
        ({"Host": "localhost:4700", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "localhost:4700", "Origin": "http://localhost:3001"}, 403),
        ({"herd-peer": PEER}, 200),
        ({"herd-peer": BOB}, 421),
    ],
)
async def test_browsers_are_kept_from_being_used_against_the_node(headers: dict[str, str], status: int) -> None:
    config = ApiConfig(
        listen="127.0.0.1:0", allowed_hosts=("herd.example",), allowed_origins=("http://localhost:3000",)
    )
    async with served_node(config) as (_, url), client(url) as http:
        answer = await http.get("/api/mesh/status", headers=headers)
        assert answer.status_code == status
        assert ("error" in answer.json()) == (status != 200)


async def test_a_foreign_page_gets_no_events() -> None:
    request = (
        b"GET /api/mesh/events HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\nConnection: upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Key: c2l4dGVlbiBieXRlcyE=\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    async with served_node(FAST) as (_, url):
        answer = await raw(url, request)
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"api.allowed_origins" in answer


async def raw(url: str, data: bytes) -> bytes:
    """What the server answers to raw bytes: the first piece, however long it takes, and what follows on its heels."""
    host, port = url.removeprefix("http://").split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    answer = b""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(data)
        with contextlib.suppress(trio.BrokenResourceError):
            with trio.fail_after(10):  # it answers or hangs up
                answer = await stream.receive_some()
            with trio.move_on_after(0.1):
                async for piece in stream:
                    answer += piece
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\xfe garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: \xff, upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /api/mesh/events HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: \xff\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: \xff\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\nrubbish",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"POST /api/mesh/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 900_000,
        b"POST /api/mesh/pull HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_no_bytes_end_the_server_or_are_a_500(data: bytes) -> None:
    async with served_node(FAST) as (_, url), client(url) as http:
        assert b" 500 " not in (await raw(url, data)).split(b"\r\n")[0]
        assert (await http.get("/api/health")).status_code == 200


async def test_a_refused_body_leaves_no_connection_behind() -> None:
    config = ApiConfig(listen="127.0.0.1:0", connections_max=2)
    flood = b"POST /api/mesh/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 3_000_000
    async with served_node(config) as (_, url), client(url) as http:
        for _ in range(3):  # more than there are places
            assert b"413" in (await raw(url, flood))[:15]
        assert (await http.get("/api/health")).status_code == 200


async def test_a_body_that_never_comes_is_given_up() -> None:
    config = ApiConfig(listen="127.0.0.1:0", request_timeout_s=0.1)
    async with served_node(config) as (_, url):
        request = b"POST /api/mesh/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{"
        answer = await raw(url, request)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 0.1 s" in answer


async def test_a_client_that_reads_nothing_is_hung_up_on_and_does_not_hold_the_node() -> None:
    config = ApiConfig(listen="127.0.0.1:0", write_timeout_s=0.2, connections_max=2, stop_grace_s=0.1)
    async with served_node(config) as (node, url):
        for number in range(20_000):
            node.remote[f"model-with-a-rather-long-name-{number}:latest"] = 1
        host, port = url.removeprefix("http://").split(":")
        deaf = [await trio.open_tcp_stream(host, int(port)) for _ in range(2)]
        for stream in deaf:
            await stream.send_all(b"GET /api/mesh/find HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with client(url) as http:  # both places are taken until the deaf ones are hung up on
            assert (await http.get("/api/health")).status_code == 200
        for stream in deaf:
            await stream.aclose()


async def test_a_deaf_client_cannot_hold_up_a_stopping_node() -> None:
    config = ApiConfig(listen="127.0.0.1:0", write_timeout_s=3600, stop_grace_s=0.1)
    with trio.move_on_after(30) as patience:
        async with served_node(config) as (node, url):
            for number in range(20_000):
                node.remote[f"model-with-a-rather-long-name-{number}:latest"] = 1
            host, port = url.removeprefix("http://").split(":")
            deaf = await trio.open_tcp_stream(host, int(port))
            await deaf.send_all(b"GET /api/mesh/find HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await trio.sleep(0.2)  # real time: the kernel's buffers have to fill up
        await deaf.aclose()
    assert not patience.cancelled_caught


async def test_an_address_in_use_is_one_clear_error() -> None:
    async with served_node(FAST) as (node, url):
        taken = url.removeprefix("http://")
        with pytest.raises(UsageError) as refused:
            await serve_api(node, ApiConfig(listen=taken), Metrics("0.1.0"))
        assert str(refused.value) == (
            f"api.listen = '{taken}': cannot listen there: Address already in use; choose another with --api HOST:PORT"
        )


async def test_serving_leaves_the_process_logging_as_it_was() -> None:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    async with served_node(FAST) as (_, url), client(url) as http:
        await http.get("/api/health")
        assert logging.getLogger("hypercorn.error").handlers == []
    assert (root.level, root.handlers[:]) == before
