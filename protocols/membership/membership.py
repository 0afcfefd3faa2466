"""The membership core of one node: `Membership.handle(event, now) -> effects`, and queries about who is there.

SWIM (Das, Gupta, Motivala: "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership Protocol",
DSN 2002) with Lifeguard (arXiv 1707.00788), push/pull anti-entropy and reconnection as in memberlist and Serf.
"""

import math
import random

import attrs

from protocols.effects import Blame, CancelTimer, Effect, Event, Received, Send, SetTimer, TimerFired
from protocols.ids import PeerId
from protocols.membership.beliefs import Beliefs, fingerprint_of_table
from protocols.membership.config import MembershipConfig
from protocols.membership.events import (
    AnswerOverStream,
    Leave,
    LocalChanged,
    PushPull,
    PushPullAnswered,
    ReceivedOverStream,
    Started,
    StreamProbeAnswered,
)
from protocols.membership.messages import Ack, Fingerprint, Gossip, Nack, Ping, PingRequest, Table
from protocols.membership.probing import Prober
from protocols.membership.record import MemberRecord
from protocols.membership.table import DEAD, Member
from protocols.signing import Signer

FAREWELL_COUNT = 4
"""How many members a leaving node tells by datagram; two of them also over a control stream."""

FIRST_PUSH_PULL_INTERVAL_S = 1.0
"""A newcomer compares tables soon and then ever more rarely: many joining at once would else miss some for long."""


@attrs.frozen
class MembershipStatistics:
    """Counts since the start, and the present local health score (0 is well)."""

    alive: int
    suspect: int
    dead: int
    left: int
    probes: int
    probes_answered: int
    probes_answered_indirectly: int
    probes_answered_over_stream: int
    probes_failed: int
    overslept_periods: int
    refutations: int
    local_health_score: int
    updates_waiting: int


class Membership:
    """One member. `record` is its first record; its incarnation should be past those of earlier lives.

    `payload_size_bytes_max` bounds every datagram message this core sends.
    """

    def __init__(
        self,
        config: MembershipConfig,
        record: MemberRecord,
        rng: random.Random,
        signer: Signer,
        *,
        payload_size_bytes_max: int = 1100,
    ) -> None:
        self._config = config
        self._rng = rng
        self._beliefs = Beliefs(config, record, rng, signer, payload_size_bytes_max)
        self._prober = Prober(config, self._beliefs, rng.getrandbits(48))
        self._table = self._beliefs.table
        self._push_pull_interval_s = min(FIRST_PUSH_PULL_INTERVAL_S, config.push_pull_interval_s)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event in; gives the effects in order. Never raises for what a peer sent: that is blamed."""
        match event:
            case Received(sender, message):
                self._received(sender, message, now)
            case TimerFired(name):
                self._timer(name, now)
            case ReceivedOverStream(sender, message, token):
                self._received_over_stream(sender, message, token, now)
            case StreamProbeAnswered(peer, sequence, answer):
                self._stream_probe_answered(peer, sequence, answer, now)
            case PushPullAnswered(peer, answer, asked):
                self._push_pull_answered(peer, answer, asked, now)
            case LocalChanged():
                self._local_changed(event)
            case Leave():
                self._leave(now)
            case Started():
                self._started(now)
        effects, self._beliefs.out = self._beliefs.out, []
        return effects

    def alive(self) -> list[PeerId]:
        """Members taking part, without this node, sorted. As in SWIM, a suspected one counts until it is dead."""
        return list(self._table.reachable())

    def member(self, peer: PeerId) -> Member | None:
        """What is known of one peer, this node included."""
        return self._beliefs.own_member() if peer == self._beliefs.own.peer else self._table.get(peer)

    def members(self) -> list[Member]:
        """Everyone known, this node first, then sorted by peer id."""
        return [self._beliefs.own_member(), *self._table.members()]

    def table_message(self, now: float) -> Table:
        """This node's whole table, as a joining node sends it to a peer it is not a member with yet."""
        return self._beliefs.whole_table(now)

    def statistics(self) -> MembershipStatistics:
        """How it goes."""
        states = [member.state for member in self._table.members()]
        counts = self._prober.counts
        return MembershipStatistics(
            alive=states.count("alive"),
            suspect=states.count("suspect"),
            dead=states.count("dead"),
            left=states.count("left"),
            probes=counts.begun,
            probes_answered=counts.answered,
            probes_answered_indirectly=counts.answered_indirectly,
            probes_answered_over_stream=counts.answered_over_stream,
            probes_failed=counts.failed,
            overslept_periods=counts.overslept,
            refutations=self._beliefs.refutations,
            local_health_score=self._beliefs.health.score,
            updates_waiting=len(self._beliefs.updates),
        )

    def _started(self, now: float) -> None:
        self._beliefs.began(now)
        self._set_timer("probe", self._rng.uniform(0, self._config.probe_interval_s))
        self._set_timer("push_pull", self._rng.uniform(0.5, 1) * self._push_pull_interval_s)
        self._set_timer("reconnect", self._rng.uniform(0.5, 1) * self._config.reconnect_interval_s)

    def _set_timer(self, name: str, delay_s: float) -> None:
        self._beliefs.out.append(SetTimer(name, delay_s))

    def _timer(self, name: object, now: float) -> None:
        match name:
            case "gossip":
                self._beliefs.gossip(now)
            case ("suspect", str(peer)):
                self._beliefs.suspicion_ran_out(PeerId(peer), now)
            case ("relay", int(sequence)):
                self._prober.relay_timeout(sequence)
            case _ if self._beliefs.own.left:
                return
            case "probe":
                self._prober.period(now)
            case "probe_timeout":
                self._prober.timeout()
            case "push_pull":
                self._push_pull(now)
            case "reconnect":
                self._reconnect(now)

    def _push_pull(self, now: float) -> None:
        for peer in self._table.sample(1):
            self._beliefs.out.append(PushPull(peer, Fingerprint(self._beliefs.fingerprint())))
        # Beyond 32 members each doubling stretches the interval by one more, so that the load grows slowly.
        stretch = max(1.0, math.ceil(math.log2(self._beliefs.member_count())) - 4)
        self._push_pull_interval_s = min(2 * self._push_pull_interval_s, self._config.push_pull_interval_s)
        self._set_timer("push_pull", self._rng.uniform(0.9, 1.1) * stretch * self._push_pull_interval_s)

    def _reconnect(self, now: float) -> None:
        self._table.forget(lambda member: now - member.since > self._config.forget_after_s)
        self._prober.forget()
        dead = self._table.in_state(DEAD)
        # As in Serf: with few dead among many living, only some of the living try in each interval.
        if dead and self._rng.random() * max(1, len(self._table.reachable())) < len(dead):
            self._beliefs.out.append(PushPull(self._rng.choice(dead).peer, self.table_message(now)))
        self._set_timer("reconnect", self._rng.uniform(0.9, 1.1) * self._config.reconnect_interval_s)

    def _received(self, sender: PeerId, message: object, now: float) -> None:
        self._prober.met(sender)
        match message:
            case Ping(sequence, updates):
                self._beliefs.hear_updates(sender, updates, now)
                updates = self._beliefs.piggyback(self._beliefs.accusation(sender))
                self._beliefs.out.append(Send(sender, Ack(sequence, updates)))
            case Ack(sequence, updates):
                self._beliefs.hear_updates(sender, updates, now)
                self._prober.acked(sender, sequence)
            case PingRequest():
                self._prober.relay(sender, message)
            case Nack(sequence):
                self._prober.nacked(sender, sequence)
            case Gossip(updates):
                self._beliefs.hear_updates(sender, updates, now)
                if self._beliefs.accused:
                    self._beliefs.out.append(Send(sender, Gossip(self._beliefs.piggyback())))
            case _:
                self._blame_kind(sender, message, "in a datagram")

    def _received_over_stream(self, sender: PeerId, message: object, token: object, now: float) -> None:
        answer: object
        match message:
            case Ping(sequence, updates):
                self._beliefs.hear_updates(sender, updates, now)
                answer = Ack(sequence, self._beliefs.piggyback(self._beliefs.accusation(sender)))
            case Fingerprint(digest):
                answer = message if digest == self._beliefs.fingerprint() else self.table_message(now)
            case Table():
                self._beliefs.hear_table(sender, message, now)
                answer = self.table_message(now)
            case _:
                self._blame_kind(sender, message, "as a question on a stream")
                return
        self._beliefs.out.append(AnswerOverStream(token, answer))

    def _stream_probe_answered(self, peer: PeerId, sequence: int, answer: object | None, now: float) -> None:
        answered = isinstance(answer, Ack) and answer.sequence == sequence
        if isinstance(answer, Ack):
            self._beliefs.hear_updates(peer, answer.updates, now)
        elif answer is not None:
            self._blame_kind(peer, answer, "as the answer to a ping")
        self._prober.stream_ended(peer, sequence, answered=answered, now=now)

    def _push_pull_answered(self, peer: PeerId, answer: object, asked: object, now: float) -> None:
        if isinstance(answer, Table):
            self._beliefs.hear_table(peer, answer, now)
            if isinstance(asked, Fingerprint) and fingerprint_of_table(answer) != self._beliefs.fingerprint():
                # It knows less than we do, or other things: the push half.
                self._beliefs.out.append(PushPull(peer, self.table_message(now)))
        elif answer != asked or not isinstance(answer, Fingerprint):
            where = "a fingerprint" if isinstance(asked, Fingerprint) else "a table"
            self._blame_kind(peer, answer, f"as the answer to {where}")

    def _blame_kind(self, peer: PeerId, message: object, where: str) -> None:
        self._beliefs.out.append(Blame(peer, "membership", f"sent a {type(message).__name__} {where}"))

    def _local_changed(self, change: LocalChanged) -> None:
        changes = attrs.asdict(change, recurse=False, filter=lambda _attribute, value: value is not None)
        record = attrs.evolve(self._beliefs.own, **changes)
        if record != self._beliefs.own and not self._beliefs.own.left:
            self._beliefs.announce(attrs.evolve(record, incarnation=record.incarnation + 1))

    def _leave(self, now: float) -> None:
        if self._beliefs.own.left:
            return
        self._beliefs.announce(
            attrs.evolve(self._beliefs.own, incarnation=self._beliefs.own.incarnation + 1, left=True)
        )
        for name in ("probe", "probe_timeout", "push_pull", "reconnect"):
            self._beliefs.out.append(CancelTimer(name))
        told = self._table.sample(FAREWELL_COUNT)
        farewell = Gossip((self._beliefs.own_update(),))
        for index, peer in enumerate(told):
            self._beliefs.out.append(Send(peer, farewell))
            if index < 2:
                self._beliefs.out.append(PushPull(peer, self.table_message(now)))
