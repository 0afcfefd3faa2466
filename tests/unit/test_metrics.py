"""node/metrics: what a scrape tells of services, members, transfers and requests."""

from typing import Any

import attrs
import httpx
import pytest
import trio
import trio.testing
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from node.events import EventsLost, StoreChanged, TransferEnded, TransferProgressed
from node.metrics import PEER_LABELS_MAX, Metrics
from tests.support_node import BOB, FakeNode, served_node


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by name and label values (labels in order of their names), as Prometheus reads them."""
    return read(generate_latest(metrics.registry).decode())


def read(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.values()))
            assert key not in found, f"{key} is told twice"
            found[key] = sample.value
    return found


@attrs.frozen
class DatagramStatistics:
    """What some service tells."""

    sent: int = 7
    dropped: dict[str, int] = attrs.field(factory=lambda: {"forged": 2, "foreign": 1})
    round_trip_s: float = 0.25
    name: str = "texts are not numbers"


async def follow(metrics: Metrics, *events: Any) -> FakeNode:
    """Publish events to a following Metrics and wait until they are counted."""
    async with trio.open_nursery() as nursery:
        node = FakeNode(nursery)
        nursery.start_soon(metrics.follow, node)
        await trio.testing.wait_all_tasks_blocked()
        for event in events:
            node.events.publish(event)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return node


def test_statistics_of_services_are_read_at_every_scrape() -> None:
    metrics = Metrics("0.1.0")
    numbers = {"chunk": 1}
    metrics.register_statistics("datagrams", DatagramStatistics, gauges=("round_trip_s",))
    metrics.register_statistics("blame", lambda: numbers, label="reason")
    numbers["chunk"] = 5
    told = samples(metrics)
    assert told[("herd_datagrams_sent_total", ())] == 7
    assert told[("herd_datagrams_dropped_total", ("forged",))] == 2
    assert told[("herd_datagrams_round_trip_seconds", ())] == 0.25
    assert told[("herd_blame_total", ("chunk",))] == 5
    assert told[("herd_build_info", ("0.1.0",))] == 1
    assert told[("process_cpu_seconds_total", ())] > 0


def test_one_broken_service_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics("0.1.0")

    def broken() -> dict[str, int]:
        raise RuntimeError("no numbers today")

    metrics.register_statistics("broken", broken)
    metrics.register_statistics("sound", lambda: {"things": 3})
    assert samples(metrics)[("herd_sound_things_total", ())] == 3
    assert samples(metrics)[("herd_scrape_errors_total", ("broken",))] >= 1
    assert "no numbers today" in caplog.text


async def test_every_received_byte_is_counted_once() -> None:
    metrics = Metrics("0.1.0")

    def progressed(digest: str, **sources: int) -> TransferProgressed:
        return TransferProgressed("pull-1", "m", digest, sum(sources.values()), 100, sources)

    await follow(
        metrics,
        progressed("sha256:a", bob=10),
        progressed("sha256:a", bob=30, eve=5),
        progressed("sha256:b", bob=50, eve=5),  # sums of the whole pull, whichever blob is coming in
        progressed("sha256:b", bob=50, eve=5),  # told again
        TransferEnded("pull-1", "m", "verified", "", 2.0, {"bob": 60, "eve": 5}),  # 10 more than was told before
        TransferEnded("pull-2", "m", "failed", "no holder", 1.0, {}),
        StoreChanged("m", "verified", ""),
        EventsLost(3),
    )
    told = samples(metrics)
    assert told[("herd_transfer_received_bytes_total", ("bob",))] == 60
    assert told[("herd_transfer_received_bytes_total", ("eve",))] == 5
    assert told[("herd_transfers_total", ("verified",))] == 1
    assert told[("herd_transfer_seconds_sum", ("failed",))] == 1
    assert told[("herd_model_changes_total", ("verified",))] == 1
    assert told[("herd_metrics_events_lost_total", ())] == 3


async def test_many_peers_share_one_series() -> None:
    metrics = Metrics("0.1.0")
    sources = {f"peer-{number:03d}": 1 for number in range(PEER_LABELS_MAX + 10)}
    await follow(metrics, TransferEnded("pull-1", "m", "verified", "", 1.0, sources))
    received = [key for key in samples(metrics) if key[0] == "herd_transfer_received_bytes_total"]
    assert len(received) == PEER_LABELS_MAX + 1
    assert samples(metrics)[("herd_transfer_received_bytes_total", ("other",))] == 10


async def test_a_scrape_of_a_served_node() -> None:
    async with served_node() as (node, url), httpx.AsyncClient(base_url=url, trust_env=False) as http:
        await node.pull("llama3.2:latest")
        await http.get("/api/mesh/status")
        await http.get("/made/up/1")
        await http.request("BREW", "/made/up/2")
        answer = await http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        told = read(answer.text)
        assert told[("herd_members", ("alive",))] == 1
        assert told[("herd_members", ("dead",))] == 0
        assert told[("herd_transfers_running", ())] == 0
        assert told[("herd_uptime_seconds", ())] >= 0
        assert ("herd_stored_bytes", ()) not in told  # the store tells it as herd_store_stored_bytes
        assert told[("herd_transfer_received_bytes_total", (BOB,))] == 3_000_000
        assert told[("herd_http_requests_total", ("GET", "status", "200"))] == 1
        assert told[("herd_http_requests_total", ("GET", "unknown", "404"))] == 1
        assert told[("herd_http_requests_total", ("other", "unknown", "404"))] == 1
