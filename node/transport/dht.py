"""The directory of a real node: libp2p's Kad-DHT over the node's own connections.

Serving and routing are py-libp2p's, asking is ours (`kad_client`). What py-libp2p's DHT gets wrong is mended here:
connections do not fill the routing table (`introduce` does), providers are answered from a cache of 48 hours, a
server takes ten announcements a peer in ten seconds and drops the rest unsaid, a handler may be held for ever.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import trio
from libp2p.kad_dht.common import BUCKET_SIZE, PROTOCOL_ID, format_time_rfc3339
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record
from libp2p.network.stream.net_stream import INetStream
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.records.record import make_signed_put_record
from libp2p.records.validator import NamespacedValidator
from multiaddr import Multiaddr
from multiaddr.exceptions import MultiaddrError

from node.background import open_background
from node.ports import FoundProvider, TransportError
from node.transport.kad_client import DhtHost, ask
from node.transport.kad_serving import ServedStream
from node.transport.kad_store import (
    ADDRESSES_MAX,
    NAMESPACE,
    BoundedProviderStore,
    BoundedValueStore,
    HeadValidator,
    value_key,
)
from node.transport.libp2p import Libp2pTransport
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId, public_key_of

log = logging.getLogger("herd.dht")

COPIES = 8
"""At how many of the closest nodes a record is stored. Kademlia's 20 is for networks whose members come and go by
the hour; ours announce anew every quarter of an hour."""

ASKED_AT_ONCE = 10
PROVIDERS_MAX = 64

ANNOUNCEMENTS_PER_WINDOW = 9
WINDOW_S = 10.5
"""A py-libp2p server takes 10 announcements of a peer in 10 s; we stay below, whatever the clocks say."""

HANDLERS_AT_ONCE = 64
SERVE_TIMEOUT_S = 15.0
REFRESH_INTERVAL_S = 600.0
REFRESH_TIMEOUT_S = 30.0
LOOKUP_INTERVAL_S = 30.0
"""While the routing table is smaller than one answer, all of it is the answer; it is looked after this often."""


@attrs.define
class _Counts:
    stored: int = 0
    announced: int = 0
    refused: int = 0
    lookups: int = 0
    malformed: int = 0


@attrs.frozen
class DhtStatistics:
    """The routing table, what is kept for others, and totals since the start."""

    peers: int
    values: int
    provided_keys: int
    stored: int
    announced: int
    refused: int
    lookups: int
    malformed: int


class KadDirectory:
    """`node.ports.Directory`. Made by `open_kad_directory`."""

    def __init__(self, transport: Libp2pTransport) -> None:
        self._transport = transport
        self._host = DhtHost(transport.host)
        self._own = transport.host.get_id()
        self._validator = HeadValidator()
        self._dht = KadDHT(
            self._host,
            DHTMode.SERVER,
            validator=NamespacedValidator({NAMESPACE: self._validator}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
            # Hosts of one rack share a subnet; strangers never get as far as this table.
            max_peers_per_subnet=0,
        )
        self._dht.value_store = BoundedValueStore(self._host, self._own)
        self._dht.provider_store = BoundedProviderStore(self._host, self._dht.peer_routing)
        self._dht._inbound_limiter = trio.CapacityLimiter(HANDLERS_AT_ONCE)
        transport.host.set_stream_handler(PROTOCOL_ID, self._serve)
        self._announced_at_s: deque[float] = deque()
        self._announcing = trio.Lock()
        self._looked_up_at_s = float("-inf")
        self._counts = _Counts()

    async def introduce(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Put a member into the routing table."""
        peer_id = ID.from_base58(peer)
        if peer_id == self._own:
            return
        self._host.seen(peer)
        known = _multiaddrs(addresses)
        if not self._dht.routing_table.peer_in_table(peer_id):
            # What this peer knows of the network is not known here yet.
            self._looked_up_at_s = float("-inf")
        with trio.move_on_after(SERVE_TIMEOUT_S):
            await self._dht.routing_table.add_peer(PeerInfo(peer_id, known), skip_server_mode_check=True)

    async def put(self, key: bytes, value: bytes) -> None:
        """Store a signed head under a name's key, at the nodes closest to it.

        TransportError when no peer took it; RemoteProtocolError when it is no head of that name. A directory that
        already has a newer head is fine.
        """
        text = value_key(key)
        self._validator.validate(text, value)
        record = make_signed_put_record(text.encode(), value, self._transport.host.get_private_key())
        self._keep(text, record)
        question = self._question(Message.MessageType.PUT_VALUE, text.encode())
        question.record.CopyFrom(record)
        taken = [answer for answer in await self._ask_closest(question, COPIES) if answer.key == question.key]
        self._counts.stored += len(taken)
        if taken:
            return
        found = await self.get(key)
        if found is None or found == value:
            self._counts.refused += 1
            raise TransportError("no peer of the DHT took the head")

    async def get(self, key: bytes) -> bytes | None:
        """The newest good head that the nodes closest to a name's key have, or None."""
        text = value_key(key)
        question = self._question(Message.MessageType.GET_VALUE, text.encode())
        answers = await self._ask_closest(question, BUCKET_SIZE)
        kept = self._dht.value_store.get(text.encode())
        values = [kept.value] if kept is not None else []
        values.extend(answer.record.value for answer in answers if answer.HasField("record"))
        good = [value for value in dict.fromkeys(values) if self._good(text, value)]
        return good[self._validator.select(text, good)] if good else None

    async def provide(self, key: bytes) -> None:
        """Announce this node under a key, as fast as servers take announcements.

        TransportError when no peer confirmed it.
        """
        await self._await_turn()
        addresses = _multiaddrs(self._transport.addresses())
        self._dht.provider_store.add_provider(key, PeerInfo(self._own, addresses))
        question = self._question(Message.MessageType.ADD_PROVIDER, key)
        provider = question.providerPeers.add()
        provider.id = self._own.to_bytes()
        provider.addrs.extend(address.to_bytes() for address in addresses)
        provider.signedRecord = question.senderRecord
        taken = await self._ask_closest(question, COPIES)
        self._counts.announced += len(taken)
        if not taken:
            self._counts.refused += 1
            raise TransportError("no peer of the DHT took the announcement")

    async def providers(self, key: bytes) -> list[FoundProvider]:
        """Who announced a key at the nodes closest to it: at most 64, sorted, without this node."""
        question = self._question(Message.MessageType.GET_PROVIDERS, key)
        found: dict[PeerId, dict[str, None]] = {}
        for answer in await self._ask_closest(question, BUCKET_SIZE):
            for claim in list(answer.providerPeers)[:PROVIDERS_MAX]:
                self._note_provider(found, claim.id, [bytes(address) for address in claim.addrs])
        for known in self._dht.provider_store.get_providers(key):
            self._note_provider(found, known.peer_id.to_bytes(), [address.to_bytes() for address in known.addrs])
        found.pop(self._transport.peer_id, None)
        return [FoundProvider(peer, tuple(found[peer])) for peer in sorted(found)[:PROVIDERS_MAX]]

    def statistics(self) -> DhtStatistics:
        """Sizes and counters."""
        return DhtStatistics(
            peers=self._dht.routing_table.size(),
            values=len(self._dht.value_store.store),
            provided_keys=len(self._dht.provider_store.providers),
            **attrs.asdict(self._counts),
        )

    async def run(self) -> None:
        """Look after the routing table and forget what expired, until cancelled."""
        while True:
            await trio.sleep(REFRESH_INTERVAL_S)
            with trio.move_on_after(REFRESH_TIMEOUT_S):
                await self._guarded(self._dht.peer_routing.refresh_routing_table)
            self._dht.value_store.cleanup_expired()
            self._dht.provider_store.cleanup_expired()

    # Inside.

    async def _serve(self, stream: INetStream) -> None:
        # What the handler raises ends its stream: that boundary is the transport's.
        with trio.move_on_after(SERVE_TIMEOUT_S):
            await self._dht.handle_stream(ServedStream(stream))

    def _question(self, kind: Message.MessageType, key: bytes) -> Message:
        question = Message()
        question.type = kind
        question.key = key
        question.senderRecord, _ = env_to_send_in_RPC(self._host)
        return question

    def _keep(self, key: str, record: Record) -> None:
        kept = self._dht.value_store.get(key.encode())
        if kept is None or self._validator.select(key, [kept.value, record.value]) == 1:
            copy = Record()
            copy.CopyFrom(record)
            copy.timeReceived = format_time_rfc3339()
            self._dht.value_store.put_record(key.encode(), copy)

    def _good(self, key: str, value: bytes) -> bool:
        try:
            self._validator.validate(key, value)
        except RemoteProtocolError as error:
            self._counts.malformed += 1
            log.info("the DHT gave a bad head: %s", error)
            return False
        return True

    def _note_provider(self, found: dict[PeerId, dict[str, None]], raw_id: bytes, raw: Sequence[bytes]) -> None:
        try:
            peer = PeerId(ID(raw_id).to_base58())
            public_key_of(peer)
            addresses = [str(Multiaddr(address)).split("/p2p/")[0] for address in raw[:ADDRESSES_MAX]]
        except Exception as error:  # boundary: one malformed claim of a peer is dropped, whatever its parser raises.
            self._counts.malformed += 1
            log.info("the DHT gave a malformed provider: %s: %s", type(error).__name__, error)
            return
        known = found.setdefault(peer, {})
        for address in addresses:
            if len(known) < ADDRESSES_MAX:
                known[address] = None

    async def _ask_closest(self, question: Message, count: int) -> list[Message]:
        """Ask the nodes closest to the question's key, all at once; the answers that came, in no order."""
        closest = [peer for peer in await self._closest(question.key) if peer != self._own][:count]
        answers: list[Message] = []
        limit = trio.CapacityLimiter(ASKED_AT_ONCE)

        async def ask_one(peer: ID) -> None:
            async with limit:
                try:
                    answers.append(await ask(self._host, peer, question))
                    self._host.seen(peer.to_base58())
                except TransportError as error:
                    log.debug("the DHT's %s failed: %s", peer, error)
                except RemoteProtocolError as error:
                    self._counts.malformed += 1
                    log.info("%s", error)

        async with trio.open_nursery() as nursery:
            for peer in closest:
                nursery.start_soon(ask_one, peer)
        return answers

    async def _closest(self, key: bytes) -> list[ID]:
        table = self._dht.routing_table
        small = table.size() < BUCKET_SIZE
        if small and trio.current_time() < self._looked_up_at_s + LOOKUP_INTERVAL_S:
            return list(table.find_local_closest_peers(key, BUCKET_SIZE))
        self._counts.lookups += 1
        self._looked_up_at_s = trio.current_time()
        found: list[ID] = []

        async def look_up() -> None:
            found.extend(await self._dht.peer_routing.find_closest_peers_network(key, BUCKET_SIZE))

        with trio.move_on_after(REFRESH_TIMEOUT_S):
            await self._guarded(look_up)
        return found or list(table.find_local_closest_peers(key, BUCKET_SIZE))

    async def _guarded(self, operation: Callable[[], Awaitable[object]]) -> None:
        try:
            await operation()
        except Exception as error:  # boundary: py-libp2p's routing over peers' answers.
            self._counts.malformed += 1
            log.warning("a lookup in the DHT failed: %s: %s", type(error).__name__, error)

    async def _await_turn(self) -> None:
        async with self._announcing:
            if len(self._announced_at_s) >= ANNOUNCEMENTS_PER_WINDOW:
                await trio.sleep_until(self._announced_at_s[0] + WINDOW_S)
                self._announced_at_s.popleft()
            self._announced_at_s.append(trio.current_time())


def _multiaddrs(texts: Sequence[str]) -> list[Multiaddr]:
    known = []
    for text in texts:
        try:
            known.append(Multiaddr(text))
        except (MultiaddrError, ValueError):
            # A form that this release of the library does not know: the peer is reachable by its others.
            log.info("the address %r is not understood", text)
    return known


@asynccontextmanager
async def open_kad_directory(transport: Libp2pTransport) -> AsyncIterator[KadDirectory]:
    """Take part in the DHT until the block ends."""
    # It warns of every peer that went away; what matters of that is told under `herd.dht`.
    logging.getLogger("libp2p.kad_dht").setLevel(logging.ERROR)
    directory = KadDirectory(transport)
    try:
        async with open_background() as nursery:
            nursery.start_soon(directory.run)
            yield directory
    finally:
        transport.host.remove_stream_handler(PROTOCOL_ID)
