"""What a node measures, for Prometheus: the services' own counters read at scrape time, transfers from its events.

Names and units follow Prometheus' conventions (`_bytes`, `_seconds`, `_total`); labels are bounded in number.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from node.events import EventsLost, StoreChanged, TransferEnded, TransferProgressed
from node.facade import HerdNode
from node.views import NodeStatus

log = logging.getLogger("herd.metrics")

PEER_LABELS_MAX = 64
"""So many peers get a series of their own; the bytes of all later ones are counted under `other`."""
OPERATIONS_MAX = 1024
"""So many running transfers are told apart; the one that was silent longest is forgotten first."""

MEMBER_STATES = ("alive", "suspect", "dead", "left")
TRANSFER_SECONDS = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14_400)
REQUEST_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300, 3600)

Statistics = Callable[[], Any]

# The series `.._created` beside every counter tell when it began, which no reader of ours asks.
disable_created_metrics()  # type: ignore[no-untyped-call]


@attrs.frozen
class _Source:
    """One service's statistics. `label` makes a whole mapping one counter; else each field has its own metric."""

    read: Statistics
    label: str
    gauges: frozenset[str]


class Metrics:
    """The registry of one node. Services never see it: what they count they tell by `statistics()`."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._sources: dict[str, _Source] = {}
        self._node: HerdNode | None = None
        ProcessCollector(registry=self.registry)
        Gauge("herd_build_info", "The program that answers.", ["version"], registry=self.registry).labels(version).set(
            1
        )
        self._received_bytes = Counter(
            "herd_transfer_received_bytes", "Checked chunk bytes of pulls.", ["peer"], registry=self.registry
        )
        self._transfers = Counter("herd_transfers", "Pulls that ended.", ["outcome"], registry=self.registry)
        self._transfer_seconds = Histogram(
            "herd_transfer_seconds",
            "How long pulls took.",
            ["outcome"],
            buckets=TRANSFER_SECONDS,
            registry=self.registry,
        )
        self._store_changes = Counter("herd_model_changes", "Changes of the store.", ["change"], registry=self.registry)
        self._events_lost = Counter("herd_metrics_events_lost", "Events not counted here.", registry=self.registry)
        self._scrape_errors = Counter(
            "herd_scrape_errors", "Statistics that could not be read.", ["service"], registry=self.registry
        )
        self._requests = Counter(
            "herd_http_requests", "Requests answered by the API.", ["route", "method", "status"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "herd_http_request_seconds",
            "How long answers took.",
            ["route"],
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        self._peers: dict[str, None] = {}
        # What was already counted of each running operation, by source.
        self._counted: dict[str, dict[str, int]] = {}
        self.registry.register(_ScrapeCollector(self))

    def register_statistics(
        self, service: str, statistics: Statistics, *, label: str = "", gauges: tuple[str, ...] = ()
    ) -> None:
        """Read a service's numbers at every scrape: an attrs object or a mapping of numbers (one level may nest).

        Each becomes `herd_<service>_<field>`: a counter, or a gauge when named in `gauges`. With `label` the whole
        mapping becomes the one counter `herd_<service>_total{label=key}`.
        """
        self._sources[service] = _Source(statistics, label, frozenset(gauges))

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request; the route is an endpoint's name, so the number of series is bounded."""
        known = method if method in ("GET", "HEAD", "POST", "DELETE") else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    async def follow(self, node: HerdNode) -> None:
        """Count what the node's events tell, and read its members and store at every scrape, until cancelled."""
        self._node = node
        try:
            with node.events.subscribe() as events:
                async for event in events:
                    self._count(event)
        finally:
            self._node = None

    def _count(self, event: object) -> None:
        match event:
            case TransferProgressed(operation_id=operation_id, sources=sources):
                self._count_received(operation_id, sources)
            case TransferEnded(operation_id=operation_id, outcome=outcome, seconds=seconds, sources=sources):
                self._count_received(operation_id, sources)
                del self._counted[operation_id]
                self._transfers.labels(outcome).inc()
                self._transfer_seconds.labels(outcome).observe(seconds)
            case StoreChanged(change=change):
                self._store_changes.labels(change).inc()
            case EventsLost(count=count):
                self._events_lost.inc(count)

    def _count_received(self, operation_id: str, sources: Mapping[str, int]) -> None:
        """Events tell the sums of a whole operation; what grew since the last one is new."""
        counted = self._counted.pop(operation_id, {})
        for peer, total in sources.items():
            new = total - counted.get(peer, 0)
            if new > 0:
                self._received_bytes.labels(self._peer_label(peer)).inc(new)
                counted[peer] = total
        self._counted[operation_id] = counted
        if len(self._counted) > OPERATIONS_MAX:
            del self._counted[next(iter(self._counted))]

    def _peer_label(self, peer: str) -> str:
        if peer not in self._peers:
            if len(self._peers) >= PEER_LABELS_MAX:
                return "other"
            self._peers[peer] = None
        return peer

    def scraped(self) -> Iterator[Metric]:
        """Everything that is read rather than counted."""
        if self._node is not None:
            yield from _node_metrics(self._node)
        for service, source in list(self._sources.items()):
            try:
                yield from _service_metrics(service, source)
            except Exception:  # boundary: a statistics hook that fails must not hide everybody else's numbers
                log.exception("the statistics of %s cannot be read", service)
                self._scrape_errors.labels(service).inc()


class _ScrapeCollector(Collector):
    """Calls back into Metrics at every scrape; describes nothing ahead, since services come and go."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        return self._metrics.scraped()


def _node_metrics(node: HerdNode) -> Iterator[Metric]:
    states = dict.fromkeys(MEMBER_STATES, 0)
    for member in node.members():
        if member.state != "self":
            states[member.state] = states.get(member.state, 0) + 1
    members = GaugeMetricFamily("herd_members", "Other members by state, as this node sees them.", labels=["state"])
    for state, count in states.items():
        members.add_metric([state], count)
    yield members
    yield from _status_metrics(node.status())


def _status_metrics(status: NodeStatus) -> Iterator[Metric]:
    # What the store's own statistics tell (models, bytes, free disk) is not told twice.
    rows: list[tuple[str, str, float]] = [
        ("herd_uptime_seconds", "Time since the node started.", status.uptime_s),
        ("herd_transfers_running", "Pulls going on.", len(status.transfers)),
    ]
    for name, text, value in rows:
        yield GaugeMetricFamily(name, text, value=value)


def _service_metrics(service: str, source: _Source) -> list[Metric]:
    read = source.read()
    numbers: Mapping[str, Any] = read if isinstance(read, Mapping) else attrs.asdict(read)
    prefix = f"herd_{service}"
    if source.label:
        family = CounterMetricFamily(prefix, f"Counted by {service}.", labels=[source.label])
        for key, value in numbers.items():
            family.add_metric([str(key)], value)
        return [family]
    return [
        _family(f"{prefix}_{_with_standard_unit(name)}", service, value, name in source.gauges)
        for name, value in numbers.items()
        if isinstance(value, Mapping) or _is_number(value)
    ]


def _family(name: str, service: str, value: Any, is_gauge: bool) -> Metric:
    kinds = {str(key): number for key, number in value.items()} if isinstance(value, Mapping) else None
    labels = None if kinds is None else ["kind"]
    text = f"Told by {service}."
    if name.endswith("_total") or not is_gauge:
        family: Any = CounterMetricFamily(name, text, labels=labels or [])
    else:
        family = GaugeMetricFamily(name, text, labels=labels or [])
    if kinds is None:
        family.add_metric([], value)
    else:
        for kind, number in kinds.items():
            if _is_number(number):
                family.add_metric([kind], number)
    return family  # type: ignore[no-any-return]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not (isinstance(value, float) and math.isnan(value))


def _with_standard_unit(name: str) -> str:
    """Our units in Prometheus' words: `_s` is seconds, and a rate stays a rate."""
    return name.removesuffix("_s") + "_seconds" if name.endswith("_s") and not name.endswith("_per_s") else name
