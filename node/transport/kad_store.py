"""What the Kad-DHT keeps for others, bounded: py-libp2p's own stores grow without limit or slow down at theirs."""

import time

import base58
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.provider_store import ProviderRecord, ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import Validator

from protocols.catalog.clock import too_far_ahead
from protocols.catalog.keys import name_key, newest_head, read_head
from protocols.errors import RemoteProtocolError

NAMESPACE = "herd-head"

VALUES_MAX = 20_000
PROVIDED_KEYS_MAX = 50_000
ADDRESSES_MAX = 16

DRIFT_MAX_S = 3600.0
"""A head dated further ahead is refused; otherwise one wrong clock would hold a name for good."""


def value_key(key: bytes) -> str:
    """The DHT's own key for a 32-byte one: `/herd-head/` and the base58 of its first 28 bytes.

    py-libp2p answers lookups of keys up to 50 bytes only; 28 bytes in base58 are the most that fit.
    """
    encoded: bytes = base58.b58encode(key[:28])
    return f"/{NAMESPACE}/{encoded.decode('ascii')}"


class HeadValidator(Validator):  # type: ignore[misc]  # py-libp2p is not typed for us
    """Lets in head records that are signed, stand under their own name's key and are not from the future."""

    def validate(self, key: str, value: bytes) -> None:
        """RemoteProtocolError when the value may not stand under the key."""
        head = read_head(value)
        if key != value_key(name_key(head.name)):
            raise RemoteProtocolError(f"the head of {head.name} stands under another name's key")
        if too_far_ahead(head.clock, int(time.time() * 1000), DRIFT_MAX_S):
            raise RemoteProtocolError(f"the head of {head.name} is dated in the future")

    def select(self, key: str, values: list[bytes]) -> int:
        """The newest head's index; of equal ones the last, so that announcing anew renews the record's age."""
        return newest_head(values) or 0


class BoundedValueStore(ValueStore):  # type: ignore[misc]  # as above
    """Past its limit it forgets what it has had for longest, without walking over everything.

    Of a record it keeps what is checked: a head is signed in itself, and whatever else a peer put around it, up to the
    megabyte that py-libp2p lets in, would be kept 20,000 times.
    """

    def put_record(self, key: bytes, record: Record) -> None:
        """Keep a record whose value was validated."""
        self.store.pop(key, None)
        super().put_record(key, Record(key=record.key, value=record.value, timeReceived=record.timeReceived))

    def _evict_if_full(self) -> None:
        while len(self.store) >= VALUES_MAX:
            del self.store[next(iter(self.store))]


class BoundedProviderStore(ProviderStore):  # type: ignore[misc]  # as above
    """Takes 32-byte keys only, forgets the oldest, and makes room for a new provider where py-libp2p refuses it.

    Members announce every quarter of an hour, so the provider not heard of for longest is the one that is gone.
    """

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Note a provider of a key."""
        if len(key) != 32:
            return
        known = self.providers.pop(key, {})
        name = str(provider.peer_id)
        known.pop(name, None)
        while len(known) >= BUCKET_SIZE:
            del known[next(iter(known))]
        bounded = PeerInfo(provider.peer_id, list(provider.addrs)[:ADDRESSES_MAX])
        known[name] = ProviderRecord(provider_info=bounded, timestamp=time.time())
        self.providers[key] = known
        while len(self.providers) > PROVIDED_KEYS_MAX:
            del self.providers[next(iter(self.providers))]
