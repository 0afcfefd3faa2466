"""SWIM's failure detector: a direct ping, then k others and a control stream, once a protocol period.

With Lifeguard's additions: nacks tell a deaf prober from a dead target, and the local health multiplier
stretches period and timeout of a member that is itself slow.
"""

import attrs

from protocols.effects import Send, SetTimer
from protocols.ids import PeerId
from protocols.membership.beliefs import Beliefs
from protocols.membership.config import MembershipConfig
from protocols.membership.events import ProbeOverStream
from protocols.membership.messages import Ack, Nack, Ping, PingRequest

RELAYED_MAX = 512
"""Pings for others on the way at once; further requests get no answer."""

NACK_SHARE = 0.8
"""Lifeguard: a nack goes out when 80 % of the probe timeout passed without an ack."""


@attrs.define
class Probe:
    """One member being probed in one of its incarnations."""

    target: PeerId
    incarnation: int
    relays: tuple[PeerId, ...] = ()
    nacked: dict[PeerId, None] = attrs.field(factory=dict)
    stream_open: bool = False
    period_over: bool = False


@attrs.define
class Relayed:
    """One ping on behalf of another member."""

    origin: PeerId
    sequence: int
    target: PeerId
    nacked: bool = False


@attrs.define
class ProbeCounts:
    """How probes went, since the start."""

    begun: int = 0
    answered: int = 0
    answered_indirectly: int = 0
    answered_over_stream: int = 0
    failed: int = 0
    overslept: int = 0


class Prober:
    """Probes one member a period and judges by the answers; relays pings for others."""

    def __init__(self, config: MembershipConfig, beliefs: Beliefs, first_sequence: int) -> None:
        self._config = config
        self._beliefs = beliefs
        self._sequence = first_sequence
        self._probes: dict[int, Probe] = {}
        self._current: int | None = None
        self._relayed: dict[int, Relayed] = {}
        self._due: float | None = None
        self._introduced: dict[PeerId, int] = {}
        self.counts = ProbeCounts()

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def met(self, peer: PeerId) -> None:
        """A message from a peer shows that this incarnation of it knows us."""
        member = self._beliefs.table.get(peer)
        if member is not None:
            self._introduced[peer] = member.record.incarnation

    def _ping(self, peer: PeerId, incarnation: int, sequence: int) -> Ping:
        """A ping whose receiver can answer: it carries our own record until we know that the receiver has it."""
        first = self._beliefs.accusation(peer)
        if self._introduced.get(peer) != incarnation:
            first = (*first, self._beliefs.own_update())
        return Ping(sequence, self._beliefs.piggyback(first))

    def period(self, now: float) -> None:
        """A protocol period ends and the next begins."""
        self._end_period(now)
        period_s = self._beliefs.health.stretch(self._config.probe_interval_s)
        self._due = now + period_s
        self._beliefs.out.append(SetTimer("probe", period_s))
        member = self._beliefs.table.next_probe()
        if member is None:
            return
        sequence = self._next_sequence()
        self._probes[sequence] = Probe(member.peer, member.record.incarnation)
        self._current = sequence
        self.counts.begun += 1
        if not member.record.datagram_address or not self._beliefs.own.datagram_address:
            self._probe_over_stream(sequence)
            return
        self._beliefs.out.append(Send(member.peer, self._ping(member.peer, member.record.incarnation, sequence)))
        timeout_s = self._beliefs.health.stretch(self._config.probe_timeout_s)
        self._beliefs.out.append(SetTimer("probe_timeout", timeout_s))

    def _end_period(self, now: float) -> None:
        sequence, self._current = self._current, None
        overslept = self._due is not None and now - self._due > self._config.probe_interval_s
        if overslept:
            # This process stood still: the answer may wait unread, so the silence says nothing of the target.
            self.counts.overslept += 1
            self._beliefs.health.add(1)
        if sequence is None or sequence not in self._probes:
            return
        if overslept:
            del self._probes[sequence]
            return
        probe = self._probes[sequence]
        probe.period_over = True
        if not probe.stream_open:
            self._failed(sequence, now)

    def timeout(self) -> None:
        """The direct ping got no answer in time: ask k others, and try a control stream at the same time."""
        sequence = self._current
        if sequence is None or sequence not in self._probes:
            return
        probe = self._probes[sequence]
        probe.relays = tuple(self._beliefs.table.sample(self._config.indirect_probe_count, but=probe.target))
        for relay in probe.relays:
            self._beliefs.out.append(Send(relay, PingRequest(sequence, probe.target)))
        self._probe_over_stream(sequence)

    def _probe_over_stream(self, sequence: int) -> None:
        probe = self._probes[sequence]
        probe.stream_open = True
        ping = self._ping(probe.target, probe.incarnation, sequence)
        timeout_s = self._beliefs.health.stretch(self._config.probe_interval_s)
        self._beliefs.out.append(ProbeOverStream(probe.target, sequence, ping, timeout_s))

    def acked(self, sender: PeerId, sequence: int) -> None:
        """An ack came by datagram: for our own probe, or for one we made on another's behalf."""
        relayed = self._relayed.get(sequence)
        if relayed is not None and relayed.target == sender:
            del self._relayed[sequence]
            self._beliefs.out.append(Send(relayed.origin, Ack(relayed.sequence, self._beliefs.piggyback())))
            return
        probe = self._probes.get(sequence)
        if probe is None or (sender != probe.target and sender not in probe.relays):
            return
        del self._probes[sequence]
        self._beliefs.health.add(-1)
        self.counts.answered += 1
        if sender != probe.target:
            self.counts.answered_indirectly += 1

    def nacked(self, sender: PeerId, sequence: int) -> None:
        """A relay heard nothing from the target either, but we hear the relay."""
        probe = self._probes.get(sequence)
        if probe is not None and sender in probe.relays:
            probe.nacked[sender] = None

    def stream_ended(self, peer: PeerId, sequence: int, *, answered: bool, now: float) -> None:
        """A probe over a control stream came to its end."""
        probe = self._probes.get(sequence)
        if probe is None or probe.target != peer:
            return
        probe.stream_open = False
        if answered:
            del self._probes[sequence]
            self.counts.answered += 1
            self.counts.answered_over_stream += 1
        elif probe.period_over:
            self._failed(sequence, now)

    def _failed(self, sequence: int, now: float) -> None:
        probe = self._probes.pop(sequence)
        self.counts.failed += 1
        self._beliefs.health.add(len(probe.relays) - len(probe.nacked) if probe.relays else 1)
        self._beliefs.suspect(probe.target, probe.incarnation, self._beliefs.own.peer, now)

    def relay(self, origin: PeerId, request: PingRequest) -> None:
        """Ping a member for another one."""
        member = self._beliefs.table.get(request.target)
        if member is None or not member.record.datagram_address or len(self._relayed) >= RELAYED_MAX:
            self._beliefs.out.append(Send(origin, Nack(request.sequence)))
            return
        sequence = self._next_sequence()
        self._relayed[sequence] = Relayed(origin, request.sequence, request.target)
        self._beliefs.out.append(Send(request.target, self._ping(request.target, member.record.incarnation, sequence)))
        self._beliefs.out.append(SetTimer(("relay", sequence), NACK_SHARE * self._config.probe_timeout_s))

    def relay_timeout(self, sequence: int) -> None:
        """No ack yet for a relayed ping: say so once, and forget it a period later."""
        relayed = self._relayed.get(sequence)
        if relayed is None:
            return
        if relayed.nacked:
            del self._relayed[sequence]
            return
        relayed.nacked = True
        self._beliefs.out.append(Send(relayed.origin, Nack(relayed.sequence)))
        self._beliefs.out.append(SetTimer(("relay", sequence), self._config.probe_interval_s))

    def forget(self) -> None:
        """Drop notes on peers that are no longer in the table."""
        for peer in [peer for peer in self._introduced if self._beliefs.table.get(peer) is None]:
            del self._introduced[peer]
