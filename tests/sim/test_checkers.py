"""Bugs planted in the node or its store, one for each checker: each is seen, by the checker that is there for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from node.errors import TransferFailed
from node.ports import Stream
from node.services.catalog.service import CatalogService
from node.services.exchange.service import ExchangeService
from node.services.membership.service import MembershipService
from node.services.models.service import ModelService
from node.views import PullReport
from protocols.ids import Digest
from protocols.manifest import Manifest
from protocols.membership.table import Member
from simnet.blobs import MemoryBlobs
from simnet.models import MemoryModels
from simnet.partials import MemoryPartial
from simnet.report import Report
from simnet.running import run_scenario
from simnet.scenario import read_scenario

MODEL = {"name": "llama", "size_bytes": 300_000, "hosts": "1-2", "at_s": 2}
PULL = {"model": "llama", "hosts": "last", "at_s": 6}
CRASH = {"kind": "kill", "hosts": "last", "at_s": 12, "for_s": 5}

Patch = Callable[[type[Any], str, Any], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Patch:
    """Replace a method by one with a bug."""
    return lambda owner, name, bug: monkeypatch.setattr(owner, name, bug)


def seen(seed: int = 1, **document: Any) -> dict[str, str]:
    """What the checkers say of a small world: the violated invariants alone."""
    report = told(seed, **document)
    assert not report.failure, report.failure
    return {check.name: check.violation for check in report.checks if not check.held}


def told(seed: int, **document: Any) -> Report:
    """The report of a small world."""
    usual = {"nodes": 4, "for_s": 25, "settle_s": 25, "models": [MODEL]}
    return run_scenario(read_scenario("planted", {**usual, **document}, "planted.toml"), seed)


def test_a_world_without_bugs_violates_nothing() -> None:
    second = {"name": "tuned", "base": "llama", "base_size_bytes": 100_000, "size_bytes": 1000, "hosts": "2"}
    third = {**second, "name": "other"}
    removal = {"model": "tuned", "hosts": "2", "at_s": 8}
    assert seen(pulls=[PULL], faults=[CRASH], models=[MODEL, second, third], removals=[removal]) == {}


def test_a_store_that_links_before_it_checks(plant: Patch) -> None:
    plant(MemoryPartial, "check", lambda self, index, data: None)
    plant(MemoryBlobs, "is_the_blob", lambda self, partial: True)
    lie = {"kind": "lying_peer", "hosts": "1-2", "at_s": 1}
    violated = seen(pulls=[PULL], faults=[lie])
    assert "h4 has sha256:" in violated["no wrong byte"]


def test_a_peer_that_serves_what_it_has_not(plant: Patch) -> None:
    read = MemoryBlobs.read

    async def lying(self: MemoryBlobs, digest: Digest, index: int, buffer: memoryview) -> int:
        size_bytes = await read(self, digest, index, buffer)
        buffer[0] ^= 1
        return size_bytes

    plant(MemoryBlobs, "read", lying)
    assert "served chunk" in seen(pulls=[PULL], for_s=15)["no wrong byte"]


def test_a_collection_that_ignores_references(plant: Patch) -> None:
    def remove_all(self: MemoryModels, manifest: Manifest) -> None:
        for blob in manifest.blobs():
            self._blobs.remove(blob.digest)

    plant(MemoryModels, "_remove_unreferenced", remove_all)
    tuned = {"name": "tuned", "base": "llama", "base_size_bytes": 100_000, "size_bytes": 1000, "hosts": "2"}
    other = {**tuned, "name": "other"}
    violated = seen(models=[tuned, other], removals=[{"model": "tuned", "hosts": "2", "at_s": 6}])
    assert "h2 lists other:latest, and a blob of it is gone" in violated["nothing referenced is removed"]


def test_a_node_that_forgets_an_acknowledged_model(plant: Patch) -> None:
    def forgetful(self: MemoryModels, path: Path) -> None:
        """As if the manifest had never been durable."""

    plant(MemoryModels, "_take_manifest", forgetful)
    violated = seen(pulls=[PULL], faults=[CRASH])
    assert "h4 said that it has llama, and now finds nothing" in violated["acknowledged state survives"]


def test_a_node_that_never_buries_its_dead(plant: Patch) -> None:
    changed = MembershipService._member_changed

    def faithful(self: MembershipService, member: Member, before: Member | None) -> None:
        if member.state != "dead":
            changed(self, member, before)

    plant(MembershipService, "_member_changed", faithful)
    violated = seen(faults=[{**CRASH, "for_s": 0}])
    assert "believes in h4" in violated["members agree"]


def test_a_node_that_is_deaf_to_the_catalog_of_others(plant: Patch) -> None:
    async def deaf(self: CatalogService, stream: Stream) -> None:
        while await stream.receive(1 << 20) is not None:
            pass

    plant(CatalogService, "_serve", deaf)
    assert "knows nothing" in seen(models=[{**MODEL, "hosts": "first"}])["catalogs converge"]


def test_a_node_that_gives_up_every_transfer(plant: Patch) -> None:
    async def resigned(self: ExchangeService, *_arguments: object, **_options: object) -> None:
        await trio.lowlevel.checkpoint()
        raise TransferFailed("it is no use")

    plant(ExchangeService, "fetch", resigned)
    violated = seen(pulls=[PULL])
    assert "h4 waits for llama" in violated["every wanted chunk arrives"]
    assert "it is no use" in violated["every wanted chunk arrives"]


def test_a_policy_that_makes_nodes_chatter() -> None:
    settings = {"membership": {"probe_interval_s": 0.05, "probe_timeout_s": 0.04}}
    assert seen(control_bytes_per_s_max=1500, for_s=15) == {}
    violated = seen(control_bytes_per_s_max=1500, for_s=15, settings=settings)
    assert "control bytes/s" in violated["control traffic is bounded"]


def test_a_pull_that_leaves_a_task_behind(plant: Patch) -> None:
    pull = ModelService.pull

    async def littering(self: ModelService, name: str) -> PullReport:
        nursery = self._exchange._nursery
        assert nursery is not None
        nursery.start_soon(trio.sleep_forever)
        return await pull(self, name)

    plant(ModelService, "pull", littering)
    assert "have 1 tasks sleep_forever" in seen(pulls=[PULL])["nothing leaks"]


def test_a_node_that_fails_is_reported_with_its_error_and_its_replay(plant: Patch) -> None:
    async def broken(self: CatalogService) -> None:
        await trio.sleep(3)  # real time: none, the world has a virtual clock
        raise RuntimeError("a bug of the catalog")

    plant(CatalogService, "_keep_file", broken)
    report = told(3)
    assert not report.passed
    assert "a bug of the catalog" in report.failure
    assert report.replay == "herd sim run planted --seed 3"
