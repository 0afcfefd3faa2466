"""Words for transcripts of one membership core: node 1 speaks, the test plays everybody else."""

from typing import Any

from protocols.effects import Blame, Effect, Received, Send, TimerFired
from protocols.membership.config import MembershipConfig
from protocols.membership.events import Started
from protocols.membership.membership import Membership
from protocols.membership.messages import UPDATES, AliveUpdate, DeadUpdate, Gossip, Ping, SuspectUpdate
from tests.support_membership import Person, make_core

ONE, TWO, THREE, FOUR = (Person(number) for number in range(1, 5))


def sends(effects: list[Effect], kind: type) -> list[tuple[Any, Any]]:
    """(to, message) of the datagrams of one kind."""
    return [
        (effect.to, effect.message) for effect in effects if isinstance(effect, Send) and type(effect.message) is kind
    ]


def of(effects: list[Effect], kind: type) -> list[Any]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def blames(effects: list[Effect]) -> list[str]:
    """What was blamed, in words."""
    return [effect.detail for effect in effects if isinstance(effect, Blame)]


def updates_in(message: Any) -> list[object]:
    """The updates a message carries."""
    return [UPDATES.decode(encoded) for encoded in message.updates]


def alive(person: Person, incarnation: int = 1, **changes: Any) -> bytes:
    """A member's own word."""
    return UPDATES.encode(AliveUpdate(person.signed(incarnation, **changes)))


def suspect(person: Person, accuser: Person, incarnation: int = 1) -> bytes:
    """An accusation."""
    return UPDATES.encode(SuspectUpdate(person.peer, incarnation, accuser.peer))


def dead(person: Person, accuser: Person, incarnation: int = 1) -> bytes:
    """A verdict."""
    return UPDATES.encode(DeadUpdate(person.peer, incarnation, accuser.peer))


def core_knowing(*people: Person, config: MembershipConfig | None = None) -> Membership:
    """Node 1, started, having heard of some people and spread it all."""
    core = make_core(ONE, config)
    core.handle(Started(), 0.0)
    for person in people:
        core.handle(Received(person.peer, Gossip((alive(person),))), 0.0)
    for _ in range(20):
        core.handle(TimerFired("gossip"), 0.0)
    return core


def hear(core: Membership, sender: Person, *updates: bytes, now: float = 1.0) -> list[Effect]:
    """Somebody gossips."""
    return core.handle(Received(sender.peer, Gossip(updates)), now)


def state(core: Membership, person: Person) -> str:
    """How node 1 sees somebody."""
    member = core.member(person.peer)
    return member.state if member is not None else "unknown"


def incarnation(core: Membership, person: Person) -> int:
    """Which incarnation of somebody node 1 knows."""
    member = core.member(person.peer)
    assert member is not None
    return member.record.incarnation


def begin_probe(core: Membership, now: float = 1.0) -> tuple[Any, int, list[Effect]]:
    """A period begins: whom is pinged, with which sequence."""
    effects = core.handle(TimerFired("probe"), now)
    [(target, ping)] = sends(effects, Ping)
    return target, ping.sequence, effects
