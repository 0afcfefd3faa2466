"""Discovery over the simulated network and directory, under a virtual clock."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from node.ports import Directory, Stream, Transport, TransportError
from node.services.catalog.links import PROTOCOL
from node.services.discovery.announcements import Announcements
from node.views import ProviderView
from protocols.catalog.config import CatalogConfig, DiscoveryConfig
from protocols.catalog.keys import manifest_key, name_key, pack_head, read_head
from protocols.catalog.messages import CODEC, AskHolding, AskVersion, HoldingAnswer, VersionAnswer
from protocols.errors import RemoteProtocolError
from protocols.names import ModelName
from simnet.directory import SimDirectories
from tests.support_catalog import blob, full, manifest_digest, manifest_of, person, version
from tests.support_discovery import Host, Hosts
from tests.support_transport import simulated_nodes

NAME = ModelName.parse("m:1")
ALONE = CatalogConfig(follow="none")


@pytest.fixture
def table() -> SimDirectories:
    return SimDirectories(latency_s=0.05)


@pytest.fixture
def hosts(table: SimDirectories) -> Hosts:
    @asynccontextmanager
    async def directory(transport: Transport) -> AsyncIterator[Directory]:
        yield table.directory(transport.peer_id, transport.addresses())  # type: ignore[attr-defined]  # both have it

    return Hosts(simulated_nodes(), directory)


async def lookup(host: Host, name: ModelName = NAME) -> list[tuple[str, ...]]:
    """What a host finds: the version's manifest digest, then `peer state` of each provider."""
    assert host.discovery is not None
    found = await host.discovery.lookup(name)
    return [
        (each.version.manifest_digest, *(f"{provider.peer} {provider.state}" for provider in each.providers))
        for each in found
    ]


async def test_a_host_without_a_catalog_finds_a_name_and_providers_that_confirm_it(
    hosts: Hosts, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob, hosts.open("eve", ALONE) as eve:
        for host in (ann, bob):
            host.meet(eve)
        eve.meet(ann)
        record = ann.add_model("m:1", 1)
        await trio.sleep(1)
        assert eve.catalog.names() == []
        assert await lookup(eve) == [(record.manifest_digest, f"{ann.peer} complete")]
        assert eve.discovery is not None
        (found,) = await eve.discovery.lookup(NAME)
        assert found.version == record
        assert found.providers == (ProviderView(ann.peer, "complete", True),)
        bob.add_model("m:1", 1, "partial")
        await trio.sleep(1)
        assert await lookup(eve) == [(record.manifest_digest, f"{ann.peer} complete", f"{bob.peer} partial")]
        assert await lookup(eve, ModelName.parse("other")) == []


async def test_a_provider_that_dropped_the_model_is_left_out_and_not_blamed(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob, hosts.open("eve", ALONE) as eve:
        for host in (ann, bob, eve):
            host.meet(*(other for other in (ann, bob, eve) if other is not host))
        record = ann.add_model("m:1", 1)
        bob.add_model("m:1", 1)
        await trio.sleep(1)
        bob.drop_models()
        await trio.sleep(1)
        assert len(table.providers[manifest_key(record.manifest_digest)]) == 2, "the directory remembers"
        assert await lookup(eve) == [(record.manifest_digest, f"{ann.peer} complete")]
        assert eve.blame.statistics() == {}


async def test_a_provider_that_is_gone_is_left_out_in_bounded_time(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann, hosts.open("eve", ALONE) as eve:
        async with hosts.open("bob") as bob:
            for host in (ann, bob):
                host.meet(eve)
                host.add_model("m:1", 1)
            eve.meet(ann)
            await trio.sleep(1)
        began = trio.current_time()
        assert await lookup(eve) == [(manifest_digest(1), f"{ann.peer} complete")]
        assert trio.current_time() - began < 6


Say = Callable[[AskHolding | AskVersion], object]


def _lie_about_holding(question: AskHolding | AskVersion) -> object:
    return HoldingAnswer(manifest_digest(77), "complete")


def _forge(question: AskHolding | AskVersion) -> object:
    if isinstance(question, AskHolding):
        return HoldingAnswer(question.manifest_digest, "complete")
    return VersionAnswer(attrs.evolve(version(person(9), "m:1", 1), signature=bytes(64)))


def _exchange(question: AskHolding | AskVersion) -> object:
    if isinstance(question, AskHolding):
        return HoldingAnswer(question.manifest_digest, "complete")
    return VersionAnswer(version(person(9), "m:1", 2))


@pytest.mark.parametrize("lie", [_lie_about_holding, _forge, _exchange], ids=["holding", "forged", "exchanged"])
async def test_a_provider_that_lies_is_blamed_and_left_out(hosts: Hosts, autojump_clock: MockClock, lie: Say) -> None:
    async with hosts.open("ann") as ann, hosts.open("liar") as liar, hosts.open("eve", ALONE) as eve:
        for host in (ann, liar):
            host.meet(eve)
            host.add_model("m:1", 1)
        eve.meet(ann, liar)
        await trio.sleep(1)

        async def answer(stream: Stream) -> None:
            question = CODEC.decode(await stream.receive(1000) or b"")
            if isinstance(question, AskHolding | AskVersion):
                await stream.send(CODEC.encode(lie(question)))

        liar.transport.serve(PROTOCOL, answer)
        assert await lookup(eve) == [(manifest_digest(1), f"{ann.peer} complete")]
        assert eve.blame.view(liar.peer).counts == {"discovery": 1}
        assert eve.blame.view(ann.peer).counts == {}


async def test_the_directory_does_not_say_where_a_live_member_listens(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("eve", ALONE) as eve:
        ann.meet(eve)
        eve.meet(ann)
        ann.add_model("m:1", 1)
        await trio.sleep(1)
        table.providers[manifest_key(manifest_digest(1))][ann.peer] = (1e9, ("/ip4/10.9.9.9/tcp/1",))
        assert await lookup(eve) == [(manifest_digest(1), f"{ann.peer} complete")]
        await eve.transport.drop(ann.peer)
        assert await lookup(eve) == [(manifest_digest(1), f"{ann.peer} complete")]


async def test_a_banned_provider_is_not_asked(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob, hosts.open("eve", ALONE) as eve:
        for host in (ann, bob):
            host.meet(eve)
            host.add_model("m:1", 1)
        eve.meet(ann, bob)
        await trio.sleep(1)
        eve.blame.blame(bob.peer, "chunk", "it sent wrong bytes", ban=True)
        answered = bob.catalog.statistics().questions_answered
        assert await lookup(eve) == [(manifest_digest(1), f"{ann.peer} complete")]
        assert bob.catalog.statistics().questions_answered == answered
        assert eve.discovery is not None
        assert eve.discovery.statistics().providers_refused == 1


async def test_a_head_whose_version_is_of_another_manifest_finds_nothing(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    """An author who signs both: a head that promises one manifest, under the id of a version with another."""
    async with hosts.open("ann") as ann, hosts.open("eve", ALONE) as eve:
        ann.meet(eve)
        eve.meet(ann)
        honest = ann.add_model("m:1", 1)
        other = ann.add_model("n:1", 2)
        await trio.sleep(1)
        lie = attrs.evolve(honest.head(), version_id=other.id(), signature=b"")
        table.values[name_key(full("m:1"))] = pack_head(
            attrs.evolve(lie, signature=ann.identity.sign(lie.signed_form()))
        )
        assert await lookup(eve) == []
        assert eve.blame.view(ann.peer).counts == {"discovery": 1}


async def test_a_head_is_said_again_as_it_is_now(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    """A newer version came by gossip since, and the directory has forgotten it."""
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        ann.meet(bob)
        bob.meet(ann)
        ann.add_model("m:1", 1)
        await trio.sleep(10)
        bob.drop_models()
        newer = bob.catalog.publish_version(full("m:1"), manifest_of(blob(2)), [blob(2)], deliberate=True)
        await trio.sleep(10)
        assert ann.catalog.head(full("m:1")) == newer
        table.values.clear()
        await trio.sleep(1000)
        assert read_head(table.values[name_key(full("m:1"))]).version_id == newer.id()


@pytest.mark.parametrize(
    "value", [b"garbage", pack_head(version(person(1), "other:1", 1).head())], ids=["none", "other"]
)
async def test_a_directory_that_gives_a_wrong_head_finds_nothing(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock, value: bytes
) -> None:
    async with hosts.open("ann") as ann, hosts.open("eve", ALONE) as eve:
        ann.meet(eve)
        eve.meet(ann)
        # A model of that other name is really there: its holders must not be given for the name asked for.
        ann.add_model("other:1", 1)
        await trio.sleep(1)
        table.values[name_key(NAME.full())] = value
        assert await lookup(eve) == []


async def test_a_directory_that_hangs_costs_its_deadline(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    table.latency_s = 1000.0
    config = DiscoveryConfig(call_timeout_s=2)
    async with hosts.open("eve", ALONE, config) as eve:
        began = trio.current_time()
        assert await lookup(eve) == []
        assert trio.current_time() - began <= 2.1


async def test_what_nobody_took_is_said_when_somebody_comes(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    config = DiscoveryConfig(retry_interval_s=3600)
    async with hosts.open("ann", None, config) as ann, hosts.open("bob") as bob:
        assert ann.discovery is not None
        ann.add_model("m:1", 1)
        await trio.sleep(10)
        assert ann.discovery.statistics().pending == 2
        assert table.providers == {}
        ann.meet(bob)
        await trio.sleep(1)
        assert ann.discovery.statistics().pending == 0
        assert list(table.providers) == [manifest_key(manifest_digest(1))]
        assert list(table.values) == [name_key(NAME.full())]


async def test_everything_is_said_again_every_quarter_of_an_hour_until_it_is_gone(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        ann.meet(bob)
        ann.add_model("m:1", 1)
        await trio.sleep(10)
        table.providers.clear()
        table.values.clear()
        await trio.sleep(880)
        assert table.providers == {}
        await trio.sleep(20)
        assert len(table.providers) == len(table.values) == 1
        ann.drop_models()
        table.providers.clear()
        table.values.clear()
        await trio.sleep(3600)
        assert table.providers == {}
        assert table.values == {}


async def test_many_models_are_announced_as_fast_as_servers_take_them_heads_first(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        ann.meet(bob)
        for number in range(30):
            ann.add_model(f"m{number}:1", number)
        await trio.sleep(5)
        assert len(table.values) == 30, "heads wait for no window"
        assert len(table.providers) == 9
        await trio.sleep(35)
        assert len(table.providers) == 30


async def test_what_is_new_is_announced_before_all_that_waits_and_the_newest_first(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        ann.meet(bob)
        for number in range(60):
            ann.add_model(f"m{number}:1", number)
        await trio.sleep(15)
        assert len(table.providers) == 18
        ann.add_model("late:1", 99)
        await trio.sleep(11)
        assert manifest_key(manifest_digest(99)) in table.providers
        assert {manifest_key(manifest_digest(number)) for number in range(40, 60)} <= table.providers.keys()
        assert manifest_key(manifest_digest(5)) not in table.providers


async def test_the_author_of_a_head_is_asked_before_its_turn_to_announce_came(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("eve", ALONE) as eve:
        ann.meet(eve)
        eve.meet(ann)
        for number in range(60):
            ann.add_model(f"m{number}:1", number)
        await trio.sleep(5)
        assert manifest_key(manifest_digest(5)) not in table.providers
        assert await lookup(eve, ModelName.parse("m5:1")) == [(manifest_digest(5), f"{ann.peer} complete")]


async def test_a_head_that_our_clock_forbids_is_no_reason_to_end(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        assert ann.directory is not None
        assert ann.discovery is not None

        tried_at_s: list[int] = []

        async def refuse(key: bytes, value: bytes) -> None:
            tried_at_s.append(round(trio.current_time() - began_at_s))
            raise RemoteProtocolError("the head of m:1 is dated in the future")

        ann.directory.put = refuse  # type: ignore[method-assign]  # what a directory does after our clock was set back
        ann.meet(bob)
        await trio.sleep(1)
        began_at_s = trio.current_time()
        ann.add_model("m:1", 1)
        await trio.sleep(15)
        assert tried_at_s == [0, 10]
        assert ann.discovery.statistics().pending == 1, "the head alone; the provider is announced"


async def test_a_newer_head_replaces_the_older_one(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("eve", ALONE) as eve:
        ann.meet(eve)
        eve.meet(ann)
        ann.add_model("m:1", 1)
        await trio.sleep(1)
        ann.drop_models()
        second = ann.catalog.publish_version(
            full("m:1"), version(person(1), "m:1", 2).manifest, version(person(1), "m:1", 2).blobs, deliberate=True
        )
        ann.add_model("m:1", 2)
        await trio.sleep(1)
        assert read_head(table.values[name_key(NAME.full())]) == second.head()
        assert await lookup(eve) == [(manifest_digest(2), f"{ann.peer} complete")]


async def test_a_node_out_of_the_dht_announces_and_finds_nothing(
    hosts: Hosts, table: SimDirectories, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob", None, DiscoveryConfig(enabled=False)) as bob:
        ann.meet(bob)
        bob.meet(ann)
        ann.add_model("m:1", 1)
        bob.add_model("n:1", 2)
        await trio.sleep(60)
        assert list(table.values) == [name_key(NAME.full())]
        assert await lookup(bob) == []


def announcements(
    say: Callable[[str, int], Awaitable[None]],
) -> Announcements[int]:
    return Announcements(say, interval_s=100, retry_s=10, timeout_s=5)


async def test_announcements_are_said_at_once_then_every_interval_failed_ones_sooner(autojump_clock: MockClock) -> None:
    said: list[tuple[float, str, int]] = []
    start = trio.current_time()

    async def say(key: str, thing: int) -> None:
        said.append((round(trio.current_time() - start), key, thing))
        if key == "slow":
            await trio.sleep(1000)
        if key == "deaf" and len([entry for entry in said if entry[1] == "deaf"]) < 3:
            raise TransportError("nobody heard")

    async with trio.open_nursery() as nursery:
        things = announcements(say)
        nursery.start_soon(things.run)
        things.want({"a": 1, "deaf": 2})
        await trio.sleep(150)
        assert said == [(0, "a", 1), (0, "deaf", 2), (10, "deaf", 2), (30, "deaf", 2), (100, "a", 1), (130, "deaf", 2)]
        assert (things.said, things.failed, things.pending()) == (4, 2, 0)
        said.clear()
        things.want({"a": 7, "slow": 3})
        await trio.sleep(1)
        assert said == [(150, "a", 7), (150, "slow", 3)]
        await trio.sleep(30)
        assert said[2:] == [(160, "slow", 3), (180, "slow", 3)]
        assert things.pending() == 1
        things.want({})
        said.clear()
        await trio.sleep(1000)
        assert said == []
        nursery.cancel_scope.cancel()


async def test_what_is_wanted_otherwise_while_it_is_said_stands_in_its_own_right(autojump_clock: MockClock) -> None:
    said: list[tuple[float, str, int]] = []
    start = trio.current_time()

    async def say(key: str, thing: int) -> None:
        said.append((round(trio.current_time() - start), key, thing))
        await trio.sleep(2)

    async with trio.open_nursery() as nursery:
        things = announcements(say)
        nursery.start_soon(things.run)
        things.want({"a": 1, "b": 1})
        await trio.sleep(1)
        things.want({"a": 2, "b": 1})
        await trio.sleep(4)
        assert said == [(0, "a", 1), (2, "b", 1), (4, "a", 2)] or said == [(0, "a", 1), (2, "a", 2), (4, "b", 1)]
        things.want({"b": 1})
        said.clear()
        await trio.sleep(50)
        assert (said, things.pending()) == ([], 0), "what nobody wants any more is forgotten, even while it is said"
        nursery.cancel_scope.cancel()


async def test_a_node_that_is_alone_tries_less_and_less_often(autojump_clock: MockClock) -> None:
    said: list[float] = []
    start = trio.current_time()

    async def say(key: str, thing: int) -> None:
        said.append(round(trio.current_time() - start))
        raise TransportError("nobody is there")

    async with trio.open_nursery() as nursery:
        things = announcements(say)
        nursery.start_soon(things.run)
        things.want({"a": 1})
        await trio.sleep(355)
        assert said == [0, 10, 30, 70, 150, 250, 350]
        things.retry_unheard()
        await trio.sleep(15)
        assert said[7:] == [355, 365]
        nursery.cancel_scope.cancel()


async def test_somebody_new_is_told_only_what_nobody_heard(autojump_clock: MockClock) -> None:
    said: list[str] = []

    async def say(key: str, thing: int) -> None:
        said.append(key)
        if key == "unheard":
            raise TransportError("nobody is there")

    async with trio.open_nursery() as nursery:
        things = announcements(say)
        nursery.start_soon(things.run)
        things.want({"heard": 1, "unheard": 2})
        await trio.sleep(1)
        assert said == ["heard", "unheard"]
        things.retry_unheard()
        await trio.sleep(1)
        assert said == ["heard", "unheard", "unheard"]
        nursery.cancel_scope.cancel()
