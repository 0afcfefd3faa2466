"""The words of `/herd/bulk/1`, and the giver's book of tickets: what lets one bulk connection in, once.

The asker asks for a ticket over an authenticated stream, the giver answers with a fresh key. Who shows the connection
id and can seal under the key within the ticket's time is the asker: nobody else saw it. A ticket is used up when its
first frame has opened, not when its id is shown, so that somebody who saw the id pass cannot burn it.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from random import Random
from typing import Any

import attrs

from protocols.bulk.frames import CHACHA20_POLY1305, CIPHERS, CONNECTION_ID_SIZE_BYTES, KEY_SIZE_BYTES
from protocols.codec import Codec
from protocols.ids import PeerId

BULK_PROTOCOL = "/herd/bulk/1"
MESSAGE_SIZE_BYTES_MAX = 4096
SESSION_SIZE_BYTES = 16
CIPHERS_NAMED_MAX = 8
CONNECTION_BYTES_MIN = 1024 * 1024
"""What every connection may carry, so that a giver cannot keep an asker busy with tickets."""
TICKETS_PER_PEER_MAX = 16
TICKETS_MAX = 4096


def _length(minimum: int, maximum: int) -> Any:
    def check(_instance: object, attribute: "attrs.Attribute[Any]", value: bytes | str | Sequence[Any]) -> None:
        if not minimum <= len(value) <= maximum:
            raise ValueError(f"{attribute.name} has length {len(value)}, not {minimum} to {maximum}")

    return check


def _port(_instance: object, attribute: "attrs.Attribute[Any]", value: int) -> None:
    if not 0 < value < 65536:
        raise ValueError(f"{attribute.name} is {value}, no TCP port")


def _known_cipher(_instance: object, attribute: "attrs.Attribute[Any]", value: str) -> None:
    if value not in CIPHERS:
        raise ValueError(f"{attribute.name} is {value[:40]!r}, which is unknown")


def _bytes_max(_instance: object, attribute: "attrs.Attribute[Any]", value: int) -> None:
    if value < CONNECTION_BYTES_MIN:
        raise ValueError(f"{attribute.name} is {value}, which would have the asker ask again and again")


@attrs.frozen
class GetTicket:
    """Asker: let me connect for this session; the ciphers I can do, the fastest first."""

    session: bytes = attrs.field(validator=_length(SESSION_SIZE_BYTES, SESSION_SIZE_BYTES))
    ciphers: tuple[str, ...] = attrs.field(validator=_length(1, CIPHERS_NAMED_MAX))


@attrs.frozen
class Ticket:
    """Giver: connect to this port within `valid_s`; after `bytes_max` of chunks a new ticket is due."""

    connection_id: bytes = attrs.field(validator=_length(CONNECTION_ID_SIZE_BYTES, CONNECTION_ID_SIZE_BYTES))
    key: bytes = attrs.field(validator=_length(KEY_SIZE_BYTES, KEY_SIZE_BYTES), repr=False)
    cipher: str = attrs.field(validator=_known_cipher)
    port: int = attrs.field(validator=_port)
    valid_s: float
    bytes_max: int = attrs.field(validator=_bytes_max)


@attrs.frozen
class NoTicket:
    """Giver: not now; the reason is for people."""

    reason: str = attrs.field(validator=_length(0, 200))


CODEC = Codec({1: GetTicket, 2: Ticket, 3: NoTicket})


@attrs.frozen
class Grant:
    """What a ticket stands for."""

    peer: PeerId
    session: bytes
    ticket: Ticket
    expires_at_s: float


def choose_cipher(theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    """The cipher for a connection, both lists fastest first: where they differ, the one that hurts nobody.

    A machine without AES instructions lists ChaCha20 first and is ten times slower with AES, while one with them loses
    little by ChaCha20. None when there is no common one.
    """
    common = [cipher for cipher in theirs if cipher in ours]
    if not common:
        return None
    first_of_ours = next(cipher for cipher in ours if cipher in common)
    return first_of_ours if first_of_ours == common[0] or CHACHA20_POLY1305 not in common else CHACHA20_POLY1305


class TicketBook:
    """The tickets a giver gave out and nobody used yet. Bounded: the oldest goes, an asker simply asks again."""

    def __init__(self, valid_s: float, bytes_max: int, rng: Random) -> None:
        self._valid_s = valid_s
        self._bytes_max = bytes_max
        self._rng = rng
        self._grants: OrderedDict[bytes, Grant] = OrderedDict()
        self._per_peer: Counter[PeerId] = Counter()

    def __len__(self) -> int:
        return len(self._grants)

    def issue(self, peer: PeerId, request: GetTicket, ciphers: Sequence[str], port: int, now: float) -> Ticket | None:
        """A fresh ticket for a peer's session at `now`; None when there is no common cipher."""
        cipher = choose_cipher(request.ciphers, ciphers)
        if cipher is None:
            return None
        self._expire(now)
        connection_id = self._rng.randbytes(CONNECTION_ID_SIZE_BYTES)
        key = self._rng.randbytes(KEY_SIZE_BYTES)
        ticket = Ticket(connection_id, key, cipher, port, self._valid_s, self._bytes_max)
        if self._per_peer[peer] >= TICKETS_PER_PEER_MAX:
            self._drop(next(known for known, grant in self._grants.items() if grant.peer == peer))
        elif len(self._grants) >= TICKETS_MAX:
            self._drop(next(iter(self._grants)))
        self._grants[connection_id] = Grant(peer, request.session, ticket, now + self._valid_s)
        self._per_peer[peer] += 1
        return ticket

    def find(self, connection_id: bytes, now: float) -> Grant | None:
        """The grant of an unused ticket whose time is not over."""
        self._expire(now)
        return self._grants.get(connection_id)

    def use(self, connection_id: bytes, now: float) -> bool:
        """The ticket's owner has proved itself: from now on the ticket is void. False when it was void already."""
        self._expire(now)
        if connection_id not in self._grants:
            return False
        self._drop(connection_id)
        return True

    def _expire(self, now: float) -> None:
        # All live equally long, so the oldest stands first.
        while self._grants and next(iter(self._grants.values())).expires_at_s <= now:
            self._drop(next(iter(self._grants)))

    def _drop(self, connection_id: bytes) -> None:
        grant = self._grants.pop(connection_id)
        self._per_peer[grant.peer] -= 1
        if not self._per_peer[grant.peer]:
            del self._per_peer[grant.peer]
