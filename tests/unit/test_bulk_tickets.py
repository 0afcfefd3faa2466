"""The giver's book of tickets: one connection each, in time, for whom it was given."""

import random

import pytest

from protocols.bulk.config import BulkConfig
from protocols.bulk.frames import AES_256_GCM, CHACHA20_POLY1305
from protocols.bulk.tickets import (
    CODEC,
    TICKETS_MAX,
    TICKETS_PER_PEER_MAX,
    GetTicket,
    Ticket,
    TicketBook,
    choose_cipher,
)
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId

ANN, BOB = PeerId("ann"), PeerId("bob")
SESSION = b"s" * 16
ASK = GetTicket(SESSION, (AES_256_GCM, CHACHA20_POLY1305))
OURS = (AES_256_GCM, CHACHA20_POLY1305)


def book() -> TicketBook:
    return TicketBook(10.0, 1 << 30, random.Random(1))


def issue(of: TicketBook, peer: PeerId = ANN, now: float = 0.0) -> Ticket:
    ticket = of.issue(peer, ASK, OURS, 4702, now)
    assert ticket is not None
    return ticket


def test_a_ticket_is_found_until_it_is_used_and_only_then() -> None:
    tickets = book()
    ticket = issue(tickets)
    grant = tickets.find(ticket.connection_id, 9.9)
    assert grant is not None
    assert (grant.peer, grant.session, grant.ticket) == (ANN, SESSION, ticket)
    assert tickets.find(ticket.connection_id, 9.9) == grant, "showing it does not use it up"
    assert tickets.use(ticket.connection_id, 9.9)
    assert not tickets.use(ticket.connection_id, 9.9)
    assert tickets.find(ticket.connection_id, 9.9) is None


def test_a_ticket_runs_out() -> None:
    tickets = book()
    ticket = issue(tickets)
    assert tickets.find(ticket.connection_id, 9.9) is not None
    assert not tickets.use(ticket.connection_id, 10.0), "shown in time, proved too late"
    assert tickets.find(ticket.connection_id, 10.0) is None
    assert len(tickets) == 0


def test_every_ticket_is_another() -> None:
    tickets = book()
    made = [issue(tickets, now=n / 100) for n in range(10)]
    assert len({ticket.connection_id for ticket in made}) == len({ticket.key for ticket in made}) == 10
    assert made[0].key.hex() not in repr(made[0]), "a key is not logged by accident"


def test_one_peer_cannot_push_out_the_tickets_of_another() -> None:
    tickets = book()
    kept = issue(tickets, BOB)
    first = issue(tickets)
    for _ in range(TICKETS_PER_PEER_MAX):
        issue(tickets)
    assert tickets.find(first.connection_id, 1) is None, "the oldest of its own went"
    assert tickets.find(kept.connection_id, 1) is not None
    for number in range(TICKETS_MAX + 5):
        issue(tickets, PeerId(f"peer{number}"))
    assert len(tickets) == TICKETS_MAX


@pytest.mark.parametrize(
    ("theirs", "ours", "chosen"),
    [
        ((AES_256_GCM, CHACHA20_POLY1305), OURS, AES_256_GCM),
        ((CHACHA20_POLY1305, AES_256_GCM), OURS, CHACHA20_POLY1305),
        ((AES_256_GCM, CHACHA20_POLY1305), (CHACHA20_POLY1305, AES_256_GCM), CHACHA20_POLY1305),
        ((AES_256_GCM,), (CHACHA20_POLY1305, AES_256_GCM), AES_256_GCM),
        (("rot13", AES_256_GCM), OURS, AES_256_GCM),
        (("rot13",), OURS, None),
    ],
)
def test_the_cipher_is_the_one_that_hurts_neither(
    theirs: tuple[str, ...], ours: tuple[str, ...], chosen: str | None
) -> None:
    assert choose_cipher(theirs, ours) == chosen
    assert (book().issue(ANN, GetTicket(SESSION, theirs), ours, 1, 0.0) is None) == (chosen is None)


def test_the_words_come_through_and_nothing_else_does() -> None:
    ticket = issue(book())
    assert CODEC.decode(CODEC.encode(ticket)) == ticket
    for wrong in (
        GetTicket(SESSION, ("x",) * 8),
        Ticket(b"c" * 16, b"k" * 32, AES_256_GCM, 1, 1.0, 1 << 20),
    ):
        data = CODEC.encode(wrong)
        with pytest.raises(RemoteProtocolError):
            CODEC.decode(data[:-1])
    assert BulkConfig().connections_per_peer_max >= 1
