"""The Kad-DHT between real hosts on loopback: found through it, abused, held up, and asked by a stock client."""

import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator
from multiaddr import Multiaddr

from node.ports import Transport, TransportError
from node.transport import dht, kad_client
from node.transport.dht import KadDirectory, open_kad_directory
from node.transport.kad_store import (
    ADDRESSES_MAX,
    NAMESPACE,
    BoundedProviderStore,
    BoundedValueStore,
    HeadValidator,
    value_key,
)
from node.transport.libp2p import Libp2pTransport
from protocols.catalog.config import CatalogConfig
from protocols.catalog.keys import manifest_key, name_key, pack_head
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId
from protocols.names import ModelName
from tests.support_catalog import WALL_MS, full, manifest_digest, person, version
from tests.support_discovery import Host, Hosts
from tests.support_transport import MESH_KEY, libp2p, loopback_nodes, until

NAME = ModelName.parse("m:1")
KEY = manifest_key(manifest_digest(1))


@asynccontextmanager
async def kad(transport: Transport) -> AsyncIterator[KadDirectory]:
    assert isinstance(transport, Libp2pTransport)
    async with open_kad_directory(transport) as directory:
        yield directory


@asynccontextmanager
async def directories(count: int) -> AsyncIterator[list[tuple[Libp2pTransport, KadDirectory]]]:
    """So many hosts, of which each knows the first."""
    open_node = loopback_nodes()
    async with AsyncExitStack() as stack:
        members = []
        for number in range(count):
            transport = libp2p(await stack.enter_async_context(open_node(f"member{number}", MESH_KEY)))
            members.append((transport, await stack.enter_async_context(open_kad_directory(transport))))
        first = members[0][0]
        for transport, directory in members[1:]:
            transport.learn(first.peer_id, first.addresses())
            await directory.introduce(first.peer_id, first.addresses())
        yield members


async def found_by(host: Host) -> list[tuple[PeerId, str]]:
    assert host.discovery is not None
    return [(PeerId(p.peer), p.state) for f in await host.discovery.lookup(NAME) for p in f.providers]


async def announced_all(host: Host) -> None:
    """Wait until the directory took everything a host has to say."""
    discovery = host.discovery
    assert discovery is not None
    await until(lambda: discovery.statistics().pending == 0)


async def test_a_node_that_knows_one_bootstrap_peer_finds_name_head_and_checked_providers() -> None:
    hosts = Hosts(loopback_nodes(), kad)
    async with AsyncExitStack() as stack:
        first, ann, bob = [await stack.enter_async_context(hosts.open(name)) for name in ("first", "ann", "bob")]
        eve = await stack.enter_async_context(hosts.open("eve", CatalogConfig(follow="none")))
        for host in (ann, bob, eve):
            host.meet(first)
        record = ann.add_model("m:1", 1)
        await announced_all(ann)
        assert eve.catalog.names() == []
        assert eve.alive == [first.peer]
        assert await found_by(eve) == [(ann.peer, "complete")]
        assert eve.discovery is not None
        (found,) = await eve.discovery.lookup(NAME)
        assert found.version == record
        bob.add_model("m:1", 1, "partial")
        await announced_all(bob)
        assert await found_by(eve) == [(ann.peer, "complete"), (bob.peer, "partial")], "a later provider is seen"
        assert eve.blame.statistics() == {}


async def test_malformed_input_harms_nobody() -> None:
    rng = random.Random(5)
    good = Message()
    good.type = Message.MessageType.PUT_VALUE
    good.key = b"\xff\xfe not utf-8"
    good.record.key, good.record.value = good.key, b"value"
    claim = Message()
    claim.type = Message.MessageType.ADD_PROVIDER
    claim.key = KEY
    provider = claim.providerPeers.add()
    provider.id, provider.signedRecord = b"\x00\x01", b"garbage"
    provider.addrs.append(b"\xff\xff")
    unknown = Message()
    unknown.type = Message.MessageType.GET_PROVIDERS
    payloads = [_framed(message.SerializeToString()) for message in (good, claim, unknown)]
    payloads += [b"\xff" * 20, b"\xff\xff\xff\xff\x07", b"", b"\x05abc", rng.randbytes(300), b"\x00"]
    payloads += [_framed(rng.randbytes(rng.randrange(200))) for _ in range(20)]
    async with directories(3) as [(first, _), (other, directory), (third, asking)]:
        for payload in payloads:
            stream = await kad_client.DhtHost(other.host).new_stream(ID.from_base58(first.peer_id), [PROTOCOL_ID])
            await stream.write(payload)
            await stream.close()
        await directory.provide(KEY)
        (found,) = await asking.providers(KEY)
        assert found.peer == other.peer_id
        assert third.statistics().connections >= 1


def _framed(payload: bytes) -> bytes:
    return kad_client._varint(len(payload)) + payload


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x00", b"\xff" * 12, _framed(b"\xff\xff"), _framed(b"\x08\x05"), b"\x7fabc"],
    ids=["nothing", "empty message", "no varint", "no protobuf", "another question", "cut short"],
)
async def test_a_malformed_answer_is_an_answer_less(answer: bytes) -> None:
    async with directories(3) as [(first, _), (_, directory), (_, asking)]:
        await directory.provide(KEY)
        assert len(await asking.providers(KEY)) == 1

        async def liar(stream: object) -> None:
            await kad_client._read_message(stream)  # type: ignore[arg-type]  # py-libp2p's stream, as ours
            await stream.write(answer)  # type: ignore[attr-defined]  # the same

        first.host.set_stream_handler(PROTOCOL_ID, liar)
        assert len(await asking.providers(KEY)) == 1, "the others still answer"


@pytest.mark.slow
async def test_idle_streams_do_not_hold_the_server_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dht, "SERVE_TIMEOUT_S", 2.0)
    async with directories(3) as [(first, _), (other, directory), (_, asking)]:
        await directory.provide(KEY)
        host = kad_client.DhtHost(other.host)
        for _ in range(dht.HANDLERS_AT_ONCE):
            await host.new_stream(ID.from_base58(first.peer_id), [PROTOCOL_ID])
        question = directory._question(Message.MessageType.GET_PROVIDERS, KEY)
        with pytest.raises(TransportError):
            await kad_client.ask(host, ID.from_base58(first.peer_id), question)
        await trio.sleep(2.2)  # real time: the server's own deadline
        assert (await kad_client.ask(host, ID.from_base58(first.peer_id), question)).providerPeers
        (found,) = await asking.providers(KEY)
        assert found.peer == other.peer_id


@pytest.mark.slow
async def test_a_dead_peer_slows_one_question_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kad_client, "OPEN_TIMEOUT_S", 1.5)
    async with directories(3) as [(first, _), (_, directory), (_, asking)]:
        await directory.provide(KEY)
        ghost = person(99).peer_id
        # Nobody answers there, not even to refuse.
        with trio.socket.socket() as silent:
            await silent.bind(("127.0.0.1", 0))
            silent.listen(1)
            address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
            first.learn(ghost, [address])
            await asking.introduce(ghost, [address])
            asking._transport.learn(ghost, [address])
            assert len(await asking.providers(KEY)) == 1
            began = time.perf_counter()
            assert len(await asking.providers(KEY)) == 1
            assert time.perf_counter() - began < 1.2


async def test_a_stock_client_of_the_library_reads_what_we_store() -> None:
    value = pack_head(version(person(1), "m:1", 1).head())
    open_node = loopback_nodes()
    async with directories(3) as [(first, _), (other, directory), _], open_node("stock", MESH_KEY) as node:
        await directory.put(name_key(NAME.full()), value)
        await directory.provide(KEY)
        transport = libp2p(node)
        transport.learn(first.peer_id, first.addresses())
        stock = KadDHT(
            transport.host,
            DHTMode.CLIENT,
            validator=NamespacedValidator({NAMESPACE: HeadValidator()}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
        )
        with trio.fail_after(10):
            await stock.add_peer(ID.from_base58(first.peer_id))
            assert await stock.get_value(value_key(name_key(NAME.full()))) == value
            providers = await stock.find_providers(KEY.hex())
        assert {provider.peer_id.to_base58() for provider in providers} == {other.peer_id}


async def test_a_peer_out_of_reach_is_a_transport_error() -> None:
    async with directories(1) as [(transport, _)]:
        host = kad_client.DhtHost(transport.host)
        ghost = ID.from_base58(person(99).peer_id)
        with pytest.raises(TransportError, match="is not reached for the DHT"):
            await host.new_stream(ghost, [TProtocol("/ipfs/kad/1.0.0")])
        with pytest.raises(TransportError, match="could not be reached just now"):
            await host.new_stream(ghost, [TProtocol("/ipfs/kad/1.0.0")])
        host.seen(ghost.to_base58())
        with pytest.raises(TransportError, match="is not reached for the DHT"):
            await host.new_stream(ghost, [TProtocol("/ipfs/kad/1.0.0")])


async def test_the_directory_leaves_nothing_running_behind() -> None:
    async with loopback_nodes()("ann", MESH_KEY) as node:
        transport = libp2p(node)
        async with open_kad_directory(transport):
            assert PROTOCOL_ID in transport.host.multiselect.handlers
        assert PROTOCOL_ID not in transport.host.multiselect.handlers


def _provider(number: int, addresses: int = 1) -> PeerInfo:
    listed = [Multiaddr(f"/ip4/10.0.0.1/tcp/{port}") for port in range(1, addresses + 1)]
    return PeerInfo(ID.from_base58(person(number).peer_id), listed)


async def test_a_full_key_makes_room_for_whoever_announced_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async with directories(1) as [(transport, _)]:
        store = BoundedProviderStore(transport.host)
        for number in range(1, 26):
            store.add_provider(KEY, _provider(number, addresses=40))
        kept = [provider.peer_id.to_base58() for provider in store.get_providers(KEY)]
        assert kept == [person(number).peer_id for number in range(6, 26)]
        assert all(len(provider.addrs) == ADDRESSES_MAX for provider in store.get_providers(KEY))
        store.add_provider(KEY, _provider(6))
        store.add_provider(KEY, _provider(99))
        again = [provider.peer_id.to_base58() for provider in store.get_providers(KEY)]
        assert person(6).peer_id in again, "it announced itself anew"
        assert person(7).peer_id not in again
        monkeypatch.setattr("node.transport.kad_store.PROVIDED_KEYS_MAX", 3)
        for number in range(5):
            store.add_provider(manifest_key(manifest_digest(number)), _provider(1))
        assert len(store.providers) == 3
        store.add_provider(b"a key of another length", _provider(1))
        assert len(store.providers) == 3


async def test_values_kept_for_others_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.transport.kad_store.VALUES_MAX", 3)
    async with directories(1) as [(transport, _)]:
        store = BoundedValueStore(transport.host, transport.host.get_id())
        for number in range(5):
            store.put(b"key %d" % number, b"value")
        assert list(store.store) == [b"key 2", b"key 3", b"key 4"]


async def test_what_a_peer_puts_around_a_head_is_not_kept() -> None:
    async with directories(2) as [(transport, directory), (liar, other)]:
        head = version(person(1), "m:1", 1, at_ms=int(time.time() * 1000)).head()
        key = value_key(name_key(head.name)).encode()
        message = Message(type=Message.MessageType.PUT_VALUE, key=key)
        message.record.key, message.record.value = key, pack_head(head)
        message.record.author = bytes(900_000)
        host = kad_client.DhtHost(liar.host)
        await kad_client.ask(host, ID.from_base58(transport.peer_id), message)
        kept = directory._dht.value_store.get(key)
        assert kept.value == pack_head(head)
        assert len(kept.SerializeToString()) < 1500
        assert await other.get(name_key(head.name)) == pack_head(head)


async def test_a_value_put_again_is_the_newest_and_makes_no_other_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.transport.kad_store.VALUES_MAX", 3)
    async with directories(1) as [(transport, _)]:
        store = BoundedValueStore(transport.host, transport.host.get_id())
        for key in (b"a", b"b", b"c", b"a"):
            store.put_record(key, Record(key=key, value=b"value"))
        assert list(store.store) == [b"b", b"c", b"a"]


def test_the_validator_keeps_names_apart_and_the_future_out() -> None:
    validator = HeadValidator()
    now_ms = int(time.time() * 1000)
    head = pack_head(version(person(1), "m:1", 1, at_ms=now_ms).head())
    key = value_key(name_key(full("m:1")))
    validator.validate(key, head)
    assert len(key) <= 50, "longer keys are refused by py-libp2p's routing"
    with pytest.raises(RemoteProtocolError, match="another name's key"):
        validator.validate(value_key(name_key(full("n:1"))), head)
    with pytest.raises(RemoteProtocolError, match="in the future"):
        validator.validate(key, pack_head(version(person(1), "m:1", 1, at_ms=now_ms + 3_700_000).head()))
    old = pack_head(version(person(1), "m:1", 1, at_ms=WALL_MS).head())
    assert validator.select(key, [head, old]) == 0
    assert validator.select(key, [old, head]) == 1
    assert validator.select(key, [head, head]) == 1, "the same again renews the record's age"
