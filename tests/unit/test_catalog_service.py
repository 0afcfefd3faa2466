"""The catalog service over the simulated network, under a virtual clock."""

from contextlib import AsyncExitStack

import attrs
import pytest
import trio
from trio.testing import MockClock

from node.errors import HerdError, NotFound
from node.events import AdvertSeen
from node.ports import Stream, TransportError
from node.services.catalog.links import KEYS_WAITING_MAX, OUTBOX_LENGTH_MAX, PROTOCOL, Links
from node.services.catalog.pace import Pace
from protocols.catalog.config import CatalogConfig
from protocols.catalog.messages import CODEC, KEYS_MAX, Advert, AskVersion, HoldingAnswer, Records, VersionAnswer
from protocols.catalog.records import Holding
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest, PeerId
from tests.support_catalog import blob, full, inventory, manifest_digest, manifest_of, person, version
from tests.support_discovery import Hosts, acquaint
from tests.support_transport import simulated_nodes

NAME = full("m:1")

took = Pace.took


@pytest.fixture
def hosts() -> Hosts:
    return Hosts(simulated_nodes())


async def test_a_model_of_one_host_is_known_to_ten_within_a_second(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with AsyncExitStack() as stack:
        ring = [await stack.enter_async_context(hosts.open(f"host{number}")) for number in range(10)]
        acquaint(*ring)
        await trio.sleep(1)
        with ring[9].bus.subscribe() as events:
            record = ring[0].add_model("m:1", 1)
            await trio.sleep(1)
            seen = [await anext(events), await anext(events)]
        for host in ring:
            assert host.catalog.head(NAME) == record
            assert host.catalog.find("m*") == [NAME]
            assert host.catalog.providers(record.manifest_digest) == [(ring[0].peer, "complete")]
            assert host.catalog.blob_providers(record.blobs[0].digest) == [(ring[0].peer, "complete")]
            assert host.catalog.holdings_count(ring[0].peer) == 1
        assert sorted(seen, key=lambda event: event.kind) == [
            AdvertSeen("inventory", ring[0].peer, "", "1 model"),
            AdvertSeen("version", ring[0].peer, "m:1", record.id().hex()),
        ]


async def test_who_is_not_alive_provides_nothing(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        acquaint(ann, bob)
        bob.add_model("m:1", 1)
        await trio.sleep(1)
        assert ann.catalog.providers(manifest_digest(1)) == [(bob.peer, "complete")]
        ann.alive = []
        assert ann.catalog.providers(manifest_digest(1)) == []


async def test_a_newcomer_gets_everything_in_one_exchange(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        for number in range(300):
            ann.add_model(f"m{number}:1", number)
        await trio.sleep(2)
        acquaint(ann, bob)
        await trio.sleep(1)
        assert bob.catalog.names() == ann.catalog.names()
        assert bob.catalog.holdings_count(ann.peer) == 300
        received = bob.catalog.statistics().messages_received
        assert received < 20, "ids and records in bulk, not one by one"


async def test_streams_close_when_nothing_is_said(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        acquaint(ann, bob)
        ann.add_model("m:1", 1)
        await trio.sleep(1)
        assert ann.catalog.statistics().streams == 1
        ann.alive = bob.alive = []
        await trio.sleep(100)
        assert ann.catalog.statistics().streams == 0
        assert bob.catalog.statistics().streams == 0
        assert ann.catalog.statistics().messages_sent > 0, "a total does not go back when the streams close"


async def test_a_provider_is_asked_itself(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob", CatalogConfig(follow="none")) as bob:
        record = bob.add_model("m:1", 1, "partial")
        ann.transport.learn(bob.peer, bob.transport.addresses())
        assert await ann.catalog.ask_holding(bob.peer, record.manifest_digest) == "partial"
        assert await ann.catalog.ask_holding(bob.peer, manifest_digest(2)) is None
        assert await ann.catalog.fetch_version(bob.peer, record.id()) == record
        same = await ann.catalog.fetch_version(bob.peer, bytes(32), name=NAME, manifest_digest=record.manifest_digest)
        assert same == record
        with pytest.raises(NotFound, match="does not know version"):
            await ann.catalog.fetch_version(bob.peer, bytes(32))
        with pytest.raises(TransportError, match="no address"):
            await ann.catalog.ask_holding(PeerId(person(77).peer_id), manifest_digest(1))
        assert bob.catalog.statistics().questions_answered == 5


async def test_a_silent_peer_holds_a_question_no_longer_than_its_deadline(
    hosts: Hosts, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        ann.transport.learn(bob.peer, bob.transport.addresses())

        async def silent(stream: Stream) -> None:
            await trio.sleep_forever()

        bob.transport.serve(PROTOCOL, silent)
        began = trio.current_time()
        with pytest.raises(TransportError, match=r"did not answer within 2 s"):
            await ann.catalog.ask_holding(bob.peer, manifest_digest(1), timeout_s=2)
        assert trio.current_time() - began < 2.5


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (HoldingAnswer(manifest_digest(9), "complete"), "it answered for"),
        (VersionAnswer(None), "answered AskHolding with VersionAnswer"),
        (b"\xff", "not msgpack|headed by its tag"),
    ],
    ids=["another manifest", "another question", "no message"],
)
async def test_a_false_answer_is_a_remote_error(
    hosts: Hosts, autojump_clock: MockClock, answer: object, complaint: str
) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        ann.transport.learn(bob.peer, bob.transport.addresses())

        async def liar(stream: Stream) -> None:
            await stream.receive(1000)
            await stream.send(answer if isinstance(answer, bytes) else CODEC.encode(answer))

        bob.transport.serve(PROTOCOL, liar)
        with pytest.raises(RemoteProtocolError, match=complaint):
            await ann.catalog.ask_holding(bob.peer, manifest_digest(1))


async def test_a_forged_or_exchanged_version_is_a_remote_error(hosts: Hosts, autojump_clock: MockClock) -> None:
    good = version(person(5), "m:1", 1)
    forged = attrs.evolve(good, signature=bytes(64))
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        ann.transport.learn(bob.peer, bob.transport.addresses())
        answers = [forged, version(person(5), "m:1", 2)]

        async def liar(stream: Stream) -> None:
            question = CODEC.decode(await stream.receive(1000) or b"")
            assert isinstance(question, AskVersion)
            await stream.send(CODEC.encode(VersionAnswer(answers.pop(0))))

        bob.transport.serve(PROTOCOL, liar)
        with pytest.raises(RemoteProtocolError, match="is not signed by"):
            await ann.catalog.fetch_version(bob.peer, good.id())
        with pytest.raises(RemoteProtocolError, match="asked for version"):
            await ann.catalog.fetch_version(bob.peer, good.id())


async def test_forged_gossip_is_blamed_and_the_forger_not_heard_for_a_while(
    hosts: Hosts, autojump_clock: MockClock
) -> None:
    forged = attrs.evolve(version(person(5), "m:1", 1), signature=bytes(64))
    honest = version(person(5), "n:1", 1)
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        bob.transport.learn(ann.peer, ann.transport.addresses())

        async def say(record: object) -> None:
            stream = await bob.transport.open(ann.peer, PROTOCOL, timeout_s=5)
            await stream.send(CODEC.encode(Records((record,), ())))  # type: ignore[arg-type]  # a version either way
            await stream.finish()
            await trio.sleep(1)
            await stream.abort()

        await say(forged)
        assert ann.blame.view(bob.peer).counts == {"catalog": 1}
        assert ann.blame.banned(bob.peer)
        await say(honest)
        assert ann.catalog.names() == []
        await trio.sleep(301)
        await say(honest)
        assert ann.catalog.names() == [full("n:1")]


async def test_garbage_on_the_stream_ends_it_and_is_blamed(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:
        bob.transport.learn(ann.peer, ann.transport.addresses())
        for payload in (b"garbage", CODEC.encode(HoldingAnswer(Digest("x"), None))):
            stream = await bob.transport.open(ann.peer, PROTOCOL, timeout_s=5)
            await stream.send(payload)
            with pytest.raises(TransportError):
                await stream.receive(1000)
        assert ann.blame.view(bob.peer).counts == {"protocol": 2}
        ann.add_model("m:1", 1)
        assert await bob.catalog.ask_holding(ann.peer, manifest_digest(1)) == "complete", "ann goes on"


async def test_a_version_that_contradicts_itself_is_not_published(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann:
        with pytest.raises(HerdError, match="cannot be published"):
            ann.catalog.publish_version(NAME, manifest_of(blob(1)), [blob(2)])
        with pytest.raises(HerdError, match="cannot be published"):
            ann.catalog.publish_version(NAME, b"{}", [])
        with pytest.raises(HerdError, match="cannot be published"):
            ann.catalog.publish_version("m", manifest_of(blob(1)), [blob(1)])
        assert ann.catalog.names() == []
        first = ann.catalog.publish_version(NAME, manifest_of(blob(1)), [blob(1)])
        assert ann.catalog.publish_version(NAME, manifest_of(blob(1)), [blob(1)]) == first
        assert ann.catalog.knows(NAME, first.manifest_digest)
        assert ann.catalog.names_of(first.manifest_digest) == [NAME]


async def test_holdings_are_what_was_said_last(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann:
        assert ann.catalog.holdings() == ()
        ann.catalog.set_holdings([Holding(manifest_digest(1), "partial"), Holding(manifest_digest(1), "complete")])
        assert ann.catalog.holdings() == (Holding(manifest_digest(1), "complete"),)


async def test_a_peer_that_does_not_read_costs_bounded_memory(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob, trio.open_nursery() as nursery:
        ann.transport.learn(bob.peer, bob.transport.addresses())

        async def deaf(stream: Stream) -> None:
            await trio.sleep_forever()

        bob.transport.serve(PROTOCOL, deaf)
        links = Links(ann.transport, nursery, ann.blame, open_timeout_s=5, idle_s=60)
        large = Records((), (inventory(person(5), 1, *range(300)),))
        for _ in range(OUTBOX_LENGTH_MAX + 100):
            links.send(bob.peer, large)
        assert links.dropped == 100
        await trio.sleep(200)
        assert links.sent < 100
        assert links.sent + links.dropped == OUTBOX_LENGTH_MAX + 100, "nothing waits for ever"
        assert len(links) == 0


async def test_lists_of_keys_for_a_peer_that_does_not_read_are_counted_by_their_length(
    hosts: Hosts, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, trio.open_nursery() as nursery:
        links = Links(ann.transport, nursery, ann.blame, open_timeout_s=5, idle_s=60)
        advert = Advert(tuple(bytes(32) for _ in range(KEYS_MAX)), ())
        for _ in range(100):
            links.send(person(77).peer_id, advert)
        assert 100 - links.dropped == KEYS_WAITING_MAX // KEYS_MAX
        nursery.cancel_scope.cancel()


async def test_a_peer_that_talks_into_our_stream_is_blamed_and_ends_nothing_else(
    hosts: Hosts, autojump_clock: MockClock
) -> None:
    async with hosts.open("ann") as ann, hosts.open("bob") as bob:

        async def chatter(stream: Stream) -> None:
            await stream.send(bytes(100_000))
            await trio.sleep_forever()

        bob.transport.serve(PROTOCOL, chatter)
        ann.meet(bob)
        ann.add_model("m:1", 1)
        ann.alive = []
        await trio.sleep(100)
        assert ann.blame.view(bob.peer).counts == {"protocol": 1}
        assert ann.catalog.names() == [NAME], "ann goes on"


async def test_a_flood_from_many_streams_of_one_peer_is_handled_in_turns(
    hosts: Hosts, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "took", lambda pace, peer, busy_s: took(pace, peer, 0.05))
    async with hosts.open("ann") as ann, hosts.open("bob") as bob, trio.open_nursery() as nursery:
        bob.transport.learn(ann.peer, ann.transport.addresses())

        async def flood() -> None:
            stream = await bob.transport.open(ann.peer, PROTOCOL, timeout_s=5)
            for _ in range(20):
                await stream.send(CODEC.encode(Advert((), ())))

        for _ in range(8):
            nursery.start_soon(flood)
        await trio.sleep(15)
        handled = ann.catalog.statistics().messages_received
        assert 95 <= handled <= 115, (
            "15 s hold 100 turns of 0.05 s with their rests, and each stream has one that waits"
        )
        nursery.cancel_scope.cancel()
