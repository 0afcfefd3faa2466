"""node/services/{models,pull}: whole models between simulated nodes, on virtual time."""

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from node.blame import BlameLedger
from node.errors import NotFound, UsageError, VerificationFailed
from node.events import QUEUE_LENGTH_MAX, EventBus, TransferEnded, TransferProgressed
from node.facade import Priority
from node.identity import Identity
from node.ports import BlobMissing, StoreError
from node.services.catalog.service import CatalogService
from node.services.discovery.service import DiscoveryService
from node.services.exchange.carrier import StreamCarrier
from node.services.exchange.service import ExchangeService
from node.services.models.service import ModelService, parse_name
from node.trust.mesh_key import MeshKeyDoor
from node.views import ModelView, Progress, PullReport
from protocols.catalog.config import CatalogConfig, DiscoveryConfig
from protocols.exchange.config import ExchangeConfig
from protocols.ids import PeerId, digest_of
from scripts.make_gguf import write_llama_gguf
from simnet.blobs import MemoryBlobs
from simnet.directory import SimDirectories
from simnet.models import MemoryModels
from simnet.network import SimNetwork, SimTransport

CHUNK = 64 * 1024
WEIGHTS = random.Random(5).randbytes(40 * CHUNK)
CONFIG = b'{"model_format":"gguf"}'
# Windows as small beside the model as the real ones are beside a real model.
WINDOWS = ExchangeConfig(outstanding_start_bytes=2 * CHUNK, outstanding_bytes_max=4 * CHUNK)


@attrs.frozen
class Host:
    id: PeerId
    blobs: MemoryBlobs
    shelf: MemoryModels
    catalog: CatalogService
    discovery: DiscoveryService
    models: ModelService
    bus: EventBus
    blame: BlameLedger

    async def hold(self, name: str, *blobs: bytes) -> bytes:
        """Have a model in the store, as if it had always been there; gives its manifest."""
        for blob in blobs:
            self.blobs.add(blob)
        manifest = manifest_of(*blobs)
        await self.shelf.place_model(parse_name(name), manifest)
        return manifest


def manifest_of(*blobs: bytes) -> bytes:
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest_of(blob), "size": len(blob)}
        for blob in blobs
    ]
    return json.dumps({"schemaVersion": 2, "layers": layers}).encode()


class Mesh:
    """Hosts that are all members of each other."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._rng = random.Random(1)
        self._network = SimNetwork(random.Random(2), latency_s=0.001)
        self._directories = SimDirectories()
        self._transports: dict[PeerId, SimTransport] = {}
        self.hosts: list[Host] = []

    async def _connect(self, me: PeerId, blame: BlameLedger, *, task_status: trio.TaskStatus[SimTransport]) -> None:
        async with self._network.transport(me, MeshKeyDoor(bytes(32)), blame) as transport:
            task_status.started(transport)
            await trio.sleep_forever()

    async def host(
        self,
        *,
        follow: str = "all",
        capacity_bytes: int | None = None,
        write_delay_s: float = 0.0,
        read_delay_s: float = 0.0,
        reads_at_once: float = 8,
    ) -> Host:
        identity = Identity(self._rng.randbytes(32))
        me = identity.peer_id
        bus = EventBus()
        blame = BlameLedger(bus)
        transport: SimTransport = await self._nursery.start(self._connect, me, blame)

        def alive() -> list[PeerId]:
            return [host.id for host in self.hosts if host.id != me]

        blobs = MemoryBlobs(
            chunk_size_bytes=CHUNK,
            capacity_bytes=capacity_bytes,
            write_delay_s=write_delay_s,
            read_delay_s=read_delay_s,
            reads_at_once=reads_at_once,
        )
        catalog = CatalogService(
            transport,
            CatalogConfig(follow=follow),
            me,
            identity.sign,
            random.Random(3),
            bus,
            blame,
            alive,
            None,
            lambda: 1_700_000_000 + trio.current_time(),
        )
        directory = self._directories.directory(me, transport.addresses())
        discovery = DiscoveryService(directory, catalog, transport, me, DiscoveryConfig(), blame, alive)
        exchange = ExchangeService(
            transport, blobs, blame, bus, WINDOWS, me, random.Random(4), carrier=StreamCarrier(transport)
        )
        shelf = MemoryModels(blobs, bus)
        models = ModelService(
            models=shelf,
            blobs=blobs,
            catalog=catalog,
            discovery=discovery,
            exchange=exchange,
            bus=bus,
            peer_id=me,
            rng=random.Random(5),
        )
        host = Host(me, blobs, shelf, catalog, discovery, models, bus, blame)
        for service in (catalog, exchange, discovery, models):
            await self._nursery.start(service.run)
        for other in self.hosts:
            transport.learn(other.id, self._transports[other.id].addresses())
            self._transports[other.id].learn(me, transport.addresses())
            other.catalog.peer_joined(me)
            catalog.peer_joined(other.id)
            other.discovery.peer_joined(me, transport.addresses())
            discovery.peer_joined(other.id, self._transports[other.id].addresses())
        self._transports[me] = transport
        self.hosts.append(host)
        return host


@asynccontextmanager
async def open_mesh() -> AsyncIterator[Mesh]:
    async with trio.open_nursery() as nursery:
        yield Mesh(nursery)
        nursery.cancel_scope.cancel()


async def test_what_a_store_holds_can_be_found_and_pulled_elsewhere(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host()
        manifest = await first.hold("llama", WEIGHTS, CONFIG)
        await trio.sleep(5)
        found = await second.models.discover("LLA*")
        assert [(model.name, model.local, model.source) for model in found] == [("llama:latest", False, "catalog")]
        assert [(held.peer, held.state) for held in found[0].providers] == [(first.id, "complete")]

        steps: list[Progress] = []
        with second.bus.subscribe() as events:
            report = await second.models.pull("llama", steps.append)
            ended = [event async for event in take(events) if isinstance(event, TransferEnded)]
        assert second.blobs.whole(digest_of(WEIGHTS)) == WEIGHTS
        assert (await second.shelf.complete_manifests())[parse_name("llama")] == manifest
        size_bytes = len(WEIGHTS) + len(CONFIG)
        assert (report.fetched_bytes, report.local_bytes, report.resumed_bytes) == (size_bytes, 0, 0)
        assert report.sources == {first.id: size_bytes}
        assert steps[0].phase == "resolving"
        assert (steps[-1].phase, steps[-1].held_bytes) == ("done", size_bytes)
        assert [event.outcome for event in ended] == ["verified"]

        await trio.sleep(5)
        again = await first.models.discover("llama")
        assert {held.peer for held in again[0].providers} == {first.id, second.id}
        assert again[0].local


async def take(events: object) -> AsyncIterator[object]:
    """The events that are waiting now."""
    with trio.move_on_after(0.01):
        async for event in events:  # type: ignore[attr-defined]
            yield event


async def test_a_second_pull_moves_nothing(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host()
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        await second.models.pull("llama")
        report = await second.models.pull("llama")
        assert (report.fetched_bytes, report.sources, report.verified) == (0, {}, True)


async def test_askers_of_one_name_share_one_transfer_and_a_cancelled_pull_resumes(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host(write_delay_s=0.5)
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        reports = []

        async def ask() -> None:
            reports.append(await second.models.pull("llama"))

        with trio.move_on_after(3):
            async with trio.open_nursery() as askers:
                askers.start_soon(ask)
                askers.start_soon(ask)
                await trio.sleep(2)
                transfers = second.models.transfers()
                assert len(transfers) == 1
                assert 0 < transfers[0].held_bytes < len(WEIGHTS)
        assert reports == []
        await trio.sleep(5)
        assert second.models.transfers() == []
        resumed = await second.models.pull("llama")
        assert resumed.resumed_bytes > 0
        assert resumed.resumed_bytes + resumed.fetched_bytes == len(WEIGHTS)


async def test_who_is_still_receiving_is_already_a_source(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        # The first host's disk gives one chunk in 100 ms, so that sending everything twice would take 8 s.
        first = await mesh.host(read_delay_s=0.1, reads_at_once=1)
        second, third = await mesh.host(), await mesh.host()
        reports: dict[PeerId, PullReport] = {}

        async def pull(host: Host) -> None:
            reports[host.id] = await host.models.pull("llama")

        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        async with trio.open_nursery() as pulls:
            for host in (second, third):
                pulls.start_soon(pull, host)
        assert reports[second.id].sources[third.id] > 0
        assert reports[third.id].sources[second.id] > 0
        served = len(first.blobs.reads) * CHUNK
        assert second.blobs.whole(digest_of(WEIGHTS)) == third.blobs.whole(digest_of(WEIGHTS)) == WEIGHTS
        assert sum(report.sources[first.id] for report in reports.values()) <= served < 1.75 * len(WEIGHTS)


async def test_a_flipped_byte_at_the_only_holder_ends_clearly_and_keeps_nothing_wrong(
    autojump_clock: MockClock,
) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host()
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        first.blobs.corrupt(digest_of(WEIGHTS), 3 * CHUNK + 17)
        with pytest.raises(VerificationFailed) as failed:
            await second.models.pull("llama")
        assert "\n" not in str(failed.value)
        assert second.blame.view(first.id).counts.get("chunk", 0) >= 1
        assert second.blobs.whole(digest_of(WEIGHTS)) is None
        assert await second.shelf.complete_manifests() == {}
        await trio.sleep(5)
        assert second.catalog.holdings() == ()


async def test_a_model_that_does_not_fit_is_refused_before_its_first_byte(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, small = await mesh.host(), await mesh.host(capacity_bytes=len(WEIGHTS) + 10)
        await first.hold("llama", WEIGHTS, bytes(100))  # either blob alone would fit
        await trio.sleep(5)
        with pytest.raises(StoreError, match=r"no room .* 90 bytes are missing"):
            await small.models.pull("llama")
        assert first.blobs.reads == []
        await first.hold("small", WEIGHTS)
        await trio.sleep(5)
        assert (await small.models.pull("small")).verified


async def test_a_node_without_a_catalog_asks_the_directory(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, newcomer = await mesh.host(), await mesh.host(follow="none")
        await mesh.host()
        await first.hold("llama", WEIGHTS)
        await trio.sleep(120)
        assert newcomer.catalog.names() == []
        found = await newcomer.models.discover("llama")
        assert [(model.source, [held.checked for held in model.providers]) for model in found] == [("dht", [True])]
        report = await newcomer.models.pull("llama")
        assert report.sources == {first.id: len(WEIGHTS)}
        await trio.sleep(5)
        head = newcomer.catalog.head(parse_name("llama").full())
        assert head is not None
        assert head.author == first.id


async def test_errors_name_the_model_and_the_remedy(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host()
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        with pytest.raises(NotFound, match="no member of this mesh has nothing:latest"):
            await second.models.pull("nothing")
        with pytest.raises(UsageError, match="invalid model name"):
            await second.models.pull("../etc/passwd")
        with pytest.raises(NotFound, match="llama:latest is not in this store"):
            await second.models.get("llama")
        with pytest.raises(UsageError, match="whole names only"):
            await second.models.discover("lla*", "dht")
        await first.models.remove("llama")
        await trio.sleep(5)
        with pytest.raises(NotFound, match="no member that holds it is alive"):
            await second.models.pull("llama")
        assert await second.models.discover("*") == []


async def test_an_add_is_stated_as_the_newest_though_the_store_is_looked_at_meanwhile(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host()
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        file = tmp_path / "llama.gguf"
        write_llama_gguf(file, 300 * 1024, seed=9)
        place = second.shelf.add_gguf

        async def place_and_be_seen(*arguments: Any) -> ModelView:
            view = await place(*arguments)
            await second.models.announce()
            return view

        monkeypatch.setattr(second.shelf, "add_gguf", place_and_be_seen)
        view = await second.models.add(file, "llama")
        await trio.sleep(5)
        heads = first.catalog.heads(parse_name("llama").full())
        assert [(head.manifest_digest, len(head.parents)) for head in heads] == [(view.digest, 1)]
        assert second.catalog.holdings_count(second.id) == 1


async def test_an_added_file_is_announced_as_the_newest(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host()
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        file = tmp_path / "llama.gguf"
        write_llama_gguf(file, 300 * 1024, seed=9)
        view = await second.models.add(file, "llama")
        assert (await second.models.get("LLAMA")).digest == view.digest
        await trio.sleep(5)
        head = first.catalog.head(parse_name("llama").full())
        assert head is not None
        assert (head.manifest_digest, head.author) == (view.digest, second.id)
        assert len(head.parents) == 1


async def test_a_pull_asked_for_again_while_the_cancelled_one_winds_down_resumes_it(autojump_clock: MockClock) -> None:
    """Ctrl-C, and at once the same command again: the first pull is still writing its last chunk then."""
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host(write_delay_s=0.5)
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        with trio.move_on_after(2):
            await second.models.pull("llama")
        report = await second.models.pull("llama")
        assert report.resumed_bytes > 0
        assert report.resumed_bytes + report.fetched_bytes == len(WEIGHTS)
        assert second.models.transfers() == []


async def test_a_fine_tune_fetches_what_its_base_lacks_and_counts_the_rest_apart(autojump_clock: MockClock) -> None:
    tuned = WEIGHTS[: 36 * CHUNK] + random.Random(6).randbytes(4 * CHUNK)
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host()
        await first.hold("tuned", tuned, CONFIG)
        await second.hold("base", WEIGHTS, CONFIG)
        await trio.sleep(5)
        steps: list[Progress] = []
        report = await second.models.pull("tuned", steps.append)
        assert second.blobs.whole(digest_of(tuned)) == tuned
        assert (report.fetched_bytes, report.copied_bytes) == (4 * CHUNK, 36 * CHUNK)
        assert (report.resumed_bytes, report.local_bytes) == (0, len(CONFIG))
        assert report.sources == {first.id: 4 * CHUNK}
        assert (steps[-1].phase, steps[-1].copied_bytes) == ("done", 36 * CHUNK)


async def test_checking_the_whole_is_a_phase_of_its_own_where_it_takes_time(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host(write_delay_s=1)
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        steps: list[Progress] = []
        await second.models.pull("llama", steps.append)
        phases = list(dict.fromkeys(step.phase for step in steps))
        assert phases == ["resolving", "fetching", "verifying", "writing", "done"]
        assert {step.held_bytes for step in steps if step.phase == "verifying"} == {len(WEIGHTS)}


async def test_what_is_here_whole_is_announced_whole_while_it_is_pulled_again(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host()
        await first.hold("llama", WEIGHTS)
        await second.hold("llama", WEIGHTS)
        await trio.sleep(5)
        announced = []

        def look(progress: Progress) -> None:
            announced.append([holding.state for holding in second.catalog.holdings()])

        report = await second.models.pull("llama", look)
        assert announced
        assert all(states == ["complete"] for states in announced)
        assert (report.fetched_bytes, report.local_bytes) == (0, len(WEIGHTS))


async def test_the_only_holder_pulls_from_itself_what_it_has(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        only = await mesh.host()
        await only.hold("llama", WEIGHTS)
        await trio.sleep(5)
        report = await only.models.pull("llama")
        assert (report.fetched_bytes, report.local_bytes, report.sources) == (0, len(WEIGHTS), {})


async def test_a_model_on_its_way_in_is_neither_removed_nor_called_local(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host(write_delay_s=0.5)
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.models.pull, "llama")
            await trio.sleep(3)
            with pytest.raises(UsageError, match="llama:latest is being pulled; stop the pull first"):
                await second.models.remove("llama")
            (found,) = await second.models.discover("llama")
            assert (second.id, "partial") in [(held.peer, held.state) for held in found.providers]
            assert not found.local
        (found,) = await second.models.discover("llama")
        assert found.local


async def test_a_cancelled_pull_withdraws_what_it_announced(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host(write_delay_s=0.5)
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        with trio.move_on_after(3):
            await second.models.pull("llama")
        await trio.sleep(5)
        assert second.catalog.holdings() == ()
        (found,) = await first.models.discover("llama")
        assert [held.peer for held in found.providers] == [first.id]
        resumed = await second.models.pull("llama")
        assert resumed.local_bytes == 0, "what came in before is resumed, not found here"


async def test_who_asked_once_is_told_of_no_later_pull(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host()
        await first.hold("llama", WEIGHTS)
        await trio.sleep(5)
        steps: list[Progress] = []
        await second.models.pull("llama", steps.append)
        told = len(steps)
        assert told > 0
        await second.models.pull("llama")
        assert len(steps) == told


async def test_the_first_wrong_blob_ends_a_pull_and_leaves_the_others_where_they_are(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        # The disk of the second host takes 20 s for each chunk: whoever waits for the weights waits for long.
        first, second = await mesh.host(), await mesh.host(write_delay_s=20)
        await first.hold("llama", WEIGHTS, CONFIG)
        await trio.sleep(5)
        first.blobs.corrupt(digest_of(CONFIG), 3)
        began_s = trio.current_time()
        with second.bus.subscribe() as events:
            with pytest.raises(VerificationFailed, match=digest_of(CONFIG)):
                await second.models.pull("llama")
            ended = [event async for event in take(events) if isinstance(event, TransferEnded)]
        assert trio.current_time() - began_s < 100
        assert [event.outcome for event in ended] == ["failed"]
        assert digest_of(CONFIG) in ended[0].detail


async def test_many_small_layers_do_not_wait_for_each_other(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(read_delay_s=1), await mesh.host()
        await first.hold("llama", *(b"layer %d" % number for number in range(12)))
        await trio.sleep(5)
        report = await second.models.pull("llama")
        assert report.verified
        assert report.seconds < 9, "four at a time; one after another they would take 12 s"


async def test_removing_another_model_takes_no_blob_from_a_running_pull(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host(write_delay_s=0.5)
        manifest = await first.hold("llama", WEIGHTS, CONFIG)
        await second.hold("other", CONFIG)
        await trio.sleep(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.models.pull, "llama")
            await trio.sleep(3)
            await second.models.remove("other")
        assert (await second.shelf.complete_manifests()) == {parse_name("llama"): manifest}
        await second.models.remove("llama")
        assert second.blobs.whole(digest_of(CONFIG)) is None, "kept while the pull ran, and no longer"


async def test_a_model_that_was_found_is_dated_by_its_file(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        host = await mesh.host()
        await trio.sleep(1000)
        await host.hold("llama", WEIGHTS)
        (placed,) = await host.models.models()
        await trio.sleep(5)
        (found,) = await host.models.discover("llama")
        assert found.created_at == pytest.approx(placed.modified_at, abs=0.001)


async def test_a_blob_that_goes_while_it_is_announced_is_not_announced(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_mesh() as mesh:
        host = await mesh.host()
        await host.hold("llama", WEIGHTS)

        async def gone(digest: str) -> None:
            raise BlobMissing(f"{digest} is not here")

        # After the look at what is complete, and before its recipe is read.
        monkeypatch.setattr(host.blobs, "recipe", gone)
        await host.models.announce()
        assert host.catalog.holdings() == ()
        monkeypatch.undo()
        await host.models.announce()
        assert [holding.state for holding in host.catalog.holdings()] == ["complete"]


async def test_a_change_of_the_store_that_was_lost_among_other_events_is_announced(autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        first, second = await mesh.host(), await mesh.host()
        await trio.sleep(5)
        await first.hold("llama", WEIGHTS)
        # No checkpoint has passed since: the store's event is still in the queue, and drops out of it here.
        for held_bytes in range(QUEUE_LENGTH_MAX):
            first.bus.publish(TransferProgressed("id", "other:latest", "", held_bytes, QUEUE_LENGTH_MAX, {}))
        await trio.sleep(5)
        assert [model.name for model in await second.models.discover("*")] == ["llama:latest"]


@pytest.mark.parametrize(("joined", "last"), [("low", "mistral"), ("high", "llama")])
async def test_a_pull_has_the_highest_priority_of_those_who_wait_for_it(
    joined: Priority, last: str, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        # The holder's disk gives one chunk in 100 ms, and equals take turns: what began first is through first.
        first, second = await mesh.host(read_delay_s=0.1, reads_at_once=1), await mesh.host()
        await first.hold("llama", WEIGHTS)
        await first.hold("mistral", random.Random(6).randbytes(len(WEIGHTS)))
        await trio.sleep(5)
        ended: list[str] = []

        async def pull(name: str, priority: Priority) -> None:
            await second.models.pull(name, priority=priority)
            ended.append(name)

        async with trio.open_nursery() as pulls:
            asked: list[tuple[str, Priority]] = [("llama", "low"), ("mistral", "low"), ("mistral", joined)]
            for name, priority in asked:
                pulls.start_soon(pull, name, priority)
                await trio.sleep(0.5)
        assert ended[-1] == last
