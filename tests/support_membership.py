"""A small world of pure membership cores under virtual time: lossy datagrams, control streams, crashes, partitions."""

import heapq
import itertools
import random
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from nacl.signing import SigningKey

from protocols.effects import Blame, CancelTimer, Effect, Event, Received, Send, SetTimer, TimerFired
from protocols.ids import PeerId, peer_id_from_public_key
from protocols.membership.config import MembershipConfig
from protocols.membership.events import (
    AnswerOverStream,
    MemberChangedEffect,
    ProbeOverStream,
    PushPull,
    PushPullAnswered,
    ReceivedOverStream,
    Started,
    StreamProbeAnswered,
)
from protocols.membership.membership import Membership
from protocols.membership.messages import MESSAGES
from protocols.membership.record import MemberRecord, SignedRecord, sign_record
from protocols.signing import Signer

PAYLOAD_SIZE_BYTES_MAX = 1100


class Person:
    """An identity by number: the same number is always the same peer."""

    def __init__(self, number: int) -> None:
        self._key = SigningKey(number.to_bytes(32, "big"))
        self.number = number
        self.peer: PeerId = peer_id_from_public_key(bytes(self._key.verify_key))

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return bytes(self._key.sign(data).signature)

    def record(self, incarnation: int = 1, **changes: Any) -> MemberRecord:
        """A plausible record."""
        fields: dict[str, Any] = {
            "addresses": (f"/ip4/10.0.0.{self.number}/tcp/4701",),
            "datagram_address": f"/ip4/10.0.0.{self.number}/udp/4701",
            "labels": {"region": "north"},
            "free_disk_bytes": 10**12,
        }
        return MemberRecord(self.peer, incarnation, **{**fields, **changes})

    def signed(self, incarnation: int = 1, **changes: Any) -> SignedRecord:
        """That record, signed."""
        return sign_record(self.record(incarnation, **changes), self.sign)


def make_core(
    person: Person, config: MembershipConfig | None = None, incarnation: int = 1, seed: int = 0
) -> Membership:
    """A core of its own."""
    signer: Signer = person.sign
    return Membership(
        config or MembershipConfig(),
        person.record(incarnation),
        random.Random(seed),
        signer,
        payload_size_bytes_max=PAYLOAD_SIZE_BYTES_MAX,
    )


class World:
    """Nodes are numbers. Everything happens on one heap of (time, serial, action); `run` moves the clock."""

    def __init__(self, *, seed: int = 1, loss: float = 0.0, config: MembershipConfig | None = None) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.loss = loss
        self.config = config or MembershipConfig()
        self.cores: dict[int, Membership] = {}
        self.people: dict[int, Person] = {}
        self.number_of: dict[PeerId, int] = {}
        self.changes: list[tuple[float, int, int, str]] = []
        self.blames: list[tuple[int, Blame]] = []
        self.datagrams = 0
        self.largest_datagram_bytes = 0
        self.udp_blocked: set[int] = set()
        self._side: dict[int, int] = {}
        self._life: dict[int, int] = {}
        self._timers: dict[tuple[int, Hashable], int] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    def start(self, number: int, *, incarnation: int | None = None) -> None:
        """Start (or restart, with an empty table) a node."""
        person = Person(number)
        self.people[number] = person
        self.number_of[person.peer] = number
        self._life[number] = self._life.get(number, 0) + 1
        incarnation = int(self.now * 1000) + 1 if incarnation is None else incarnation
        self.cores[number] = make_core(person, self.config, incarnation, seed=self.rng.getrandbits(32))
        self.feed(number, Started())

    def join(self, number: int, through: int) -> None:
        """One push/pull with a bootstrap peer."""
        self._perform(number, PushPull(self.people[through].peer, self.cores[number].table_message(self.now)))

    def crash(self, number: int) -> None:
        """Gone without a word."""
        del self.cores[number]

    def partition(self, *sides: Iterable[int]) -> None:
        """Only nodes of one side reach each other."""
        self._side = {number: index for index, side in enumerate(sides) for number in side}

    def heal(self) -> None:
        """No partition any more."""
        self._side = {}

    def connected(self, one: int, other: int) -> bool:
        """Whether a message could arrive now."""
        up = one in self.cores and other in self.cores
        return up and self._side.get(one, 0) == self._side.get(other, 0)

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._serial), action))

    def run(self, seconds: float) -> None:
        """Let that much virtual time pass."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = end

    def feed(self, number: int, event: Event) -> None:
        """Let a node handle an event, if it runs."""
        if number in self.cores:
            for effect in self.cores[number].handle(event, self.now):
                self._perform(number, effect)

    def state(self, of: int, seen_by: int) -> str:
        """The state in which one node sees another; `unknown` when it does not know it."""
        member = self.cores[seen_by].member(self.people[of].peer)
        return member.state if member is not None else "unknown"

    def alive(self, seen_by: int) -> list[int]:
        """Which nodes one node takes for members."""
        return sorted(self.number_of[peer] for peer in self.cores[seen_by].alive())

    def everybody_sees_everybody(self) -> bool:
        """Whether all running nodes agree that exactly they are there."""
        running = sorted(self.cores)
        return all(self.alive(one) == [other for other in running if other != one] for one in running)

    def _perform(self, number: int, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self._send(number, self.number_of[to], message)
            case SetTimer(name, delay_s):
                serial = next(self._serial)
                self._timers[number, name] = serial
                life = self._life[number]
                self.at(delay_s, lambda: self._fire(number, life, name, serial))
            case CancelTimer(name):
                self._timers.pop((number, name), None)
            case PushPull(peer, message):
                self._ask(number, self.number_of[peer], message, lambda answer: _pulled(peer, answer, message), 5.0)
            case ProbeOverStream(peer, sequence, ping, timeout_s):
                answered: Callable[[object], Event] = lambda answer: StreamProbeAnswered(peer, sequence, answer)  # noqa: E731
                self._ask(number, self.number_of[peer], ping, answered, timeout_s)
            case MemberChangedEffect(member, before):
                if before is None or before.state != member.state:
                    self.changes.append((self.now, number, self.number_of[member.peer], member.state))
            case Blame():
                self.blames.append((number, effect))

    def _fire(self, number: int, life: int, name: Hashable, serial: int) -> None:
        if self._life[number] == life and self._timers.get((number, name)) == serial:
            del self._timers[number, name]
            self.feed(number, TimerFired(name))

    def _send(self, sender: int, to: int, message: object) -> None:
        encoded = MESSAGES.encode(message)
        self.datagrams += 1
        self.largest_datagram_bytes = max(self.largest_datagram_bytes, len(encoded))
        assert len(encoded) <= PAYLOAD_SIZE_BYTES_MAX
        if self.rng.random() < self.loss or sender in self.udp_blocked or to in self.udp_blocked:
            return
        event = Received(self.people[sender].peer, MESSAGES.decode(encoded))
        self.at(self.rng.uniform(0.001, 0.02), lambda: self._arrive(sender, to, event))

    def _arrive(self, sender: int, to: int, event: Event) -> None:
        if self.connected(sender, to):
            self.feed(to, event)

    def _ask(
        self, asker: int, asked: int, message: object, answered: Callable[[object], Event | None], timeout_s: float
    ) -> None:
        def arrive() -> None:
            if not self.connected(asker, asked):
                self.at(timeout_s, lambda: deliver(None))
                return
            question = MESSAGES.decode(MESSAGES.encode(message))
            event = ReceivedOverStream(self.people[asker].peer, question, token="t")
            answer = None
            for effect in self.cores[asked].handle(event, self.now):
                if isinstance(effect, AnswerOverStream):
                    answer = MESSAGES.decode(MESSAGES.encode(effect.message))
                else:
                    self._perform(asked, effect)
            self.at(0.01, lambda: deliver(answer))

        def deliver(answer: object) -> None:
            event = answered(answer)
            if event is not None:
                self.feed(asker, event)

        self.at(0.01, arrive)


def _pulled(peer: PeerId, answer: object, asked: object) -> Event | None:
    return PushPullAnswered(peer, answer, asked) if answer is not None else None
