"""node/api/routes: nothing a client sends is a 500, and every refusal is a document with an exit code."""

import json
from pathlib import Path
from urllib.parse import quote

import httpx
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from node.api.config import ApiConfig
from node.api.routes import Api, default_model_name
from node.metrics import Metrics
from protocols.names import ModelName
from tests.support_node import FakeNode

ROUTES = [
    "/api/health",
    "/api/mesh/status",
    "/api/mesh/peers",
    "/api/mesh/models",
    "/api/mesh/models/",
    "/api/mesh/find",
    "/api/mesh/add",
    "/api/mesh/pull",
    "/api/mesh/verify",
    "/api/mesh/limits",
    "/api/mesh/events",
    "/metrics",
    "/",
]
paths = st.one_of(
    st.sampled_from(ROUTES), st.builds(lambda route, rest: f"{route}/{quote(rest)}", st.sampled_from(ROUTES), st.text())
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters(categories=["Cs"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
bodies = st.one_of(
    st.binary(max_size=2000),
    values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({}, optional={"path": values, "name": values, "other": values}).map(
        lambda value: json.dumps(value).encode()
    ),
    st.fixed_dictionaries({}, optional={"names": st.lists(values, max_size=2) | values, "again": values}).map(
        lambda value: json.dumps(value).encode()
    ),
    st.dictionaries(st.sampled_from(["up", "peer_down", "periods", "night", "x"]), values, max_size=3).map(
        lambda value: json.dumps(value).encode()
    ),
    st.builds(
        lambda path, name: json.dumps({"path": "/" + path, "name": name}).encode(),
        st.text() | st.characters(categories=["Cs"]),
        st.text() | st.sampled_from(["x", "a/b:c"]),
    ),
)
parameters = st.dictionaries(st.sampled_from(["name", "pattern", "through", "x"]), st.text(max_size=600), max_size=3)
headers = st.dictionaries(
    st.sampled_from(["origin", "host", "content-type", "accept", "herd-peer", "content-length", "range"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
    max_size=2,
)


@settings(max_examples=100, deadline=None)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "X"]),
    path=paths,
    query=parameters,
    body=bodies,
    sent_headers=headers,
)
async def test_no_request_is_a_500(
    method: str, path: str, query: dict[str, str], body: bytes, sent_headers: dict[str, str]
) -> None:
    async with trio.open_nursery() as nursery:
        api = Api(FakeNode(nursery), ApiConfig(), Metrics("0.1.0"))
        transport = httpx.ASGITransport(api.application())  # an exception that gets out of it fails the test
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:4700") as http:
            answer = await http.request(method, path, params=query, content=body, headers=sent_headers)
    assert answer.status_code in (200, 400, 403, 404, 405, 413, 421)
    if method == "HEAD":
        return
    if path == "/metrics" and answer.status_code == 200:
        assert list(text_string_to_metric_families(answer.text))
        return
    told = [json.loads(line) for line in answer.text.splitlines()]
    assert told
    if answer.status_code != 200:
        assert isinstance(told[-1]["error"], str)
        assert isinstance(told[-1]["exit_code"], int)
        assert "\n" not in told[-1]["error"]


@given(st.text(min_size=1).map(lambda text: text.replace("/", "").replace("\0", "")))
def test_every_file_name_makes_a_model_name(text: str) -> None:
    name = default_model_name(Path("/models") / (text or "x"))
    assert ModelName.parse(name).display() == f"{name}:latest"
