"""What this node believes of each member, and what makes it believe otherwise.

    news                        about what is known        makes it
    -------------------------   ------------------------   -------------------------------------------
    record i                    nothing, or record j < i   alive with record i (state left if it says so)
    record i, says "left"       record i, not left         left
    suspect i, accuser a        alive, record i            suspect; the timeout begins (unless a is held for dead)
    suspect i, accuser b        suspect, record i          suspect; an independent accuser shortens the timeout
    timeout                     suspect                    dead
    dead i                      alive or suspect, rec. i   dead
    suspect or dead i           this node, at i            this node refutes: record i + 1
    dead i                      this node, at i            its own suspicions of others end: it was cut off itself
    record i signed by us       this node, below i         this node goes on from i + 1 (it was restarted)

Only the subject can sign a record, so nobody can move or resurrect another; accusations are anybody's word and
count only for the incarnation known here. A table that calls a member dead only makes it suspect (as in Serf and
memberlist), so that a live one can still refute; a stranger that is dead already is remembered as dead.
"""

import random
from functools import lru_cache

import attrs

from protocols.effects import Blame, CancelTimer, Effect, Send, SetTimer
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId
from protocols.membership.config import MembershipConfig
from protocols.membership.dissemination import UpdateQueue, transmissions_max
from protocols.membership.events import MemberChangedEffect
from protocols.membership.messages import (
    MESSAGE_OVERHEAD_BYTES,
    UPDATES,
    AliveUpdate,
    DeadUpdate,
    Gossip,
    SuspectUpdate,
    Table,
    TableEntry,
)
from protocols.membership.record import (
    MemberRecord,
    SignedRecord,
    check_signature,
    fingerprint,
    read_record,
    sign_record,
)
from protocols.membership.suspicion import LocalHealth, Suspicion, confirmations_wanted, suspicion_bounds_s
from protocols.membership.table import ALIVE, DEAD, LEFT, SELF, SUSPECT, Member, MemberTable
from protocols.signing import Signer

IDENTITY_CONFLICTS_TOLD = (3, 30, 300)
"""After so many records of our own that we did not write now: one is a restart, more is a second process."""


class Beliefs:
    """The table above as code. Effects are collected in `out`, in order, until the core takes them."""

    def __init__(
        self,
        config: MembershipConfig,
        record: MemberRecord,
        rng: random.Random,
        signer: Signer,
        payload_size_bytes_max: int,
    ) -> None:
        self._config = config
        self._signer = signer
        self._payload_size_bytes_max = payload_size_bytes_max
        self._suspicions: dict[PeerId, Suspicion] = {}
        self._gossiping = False
        self._own_since = 0.0
        self.table = MemberTable(config.members_max, rng)
        self.updates = UpdateQueue()
        self.health = LocalHealth(config.local_health_max - 1)
        self.own = record
        self.own_signed = sign_record(record, signer)
        self.out: list[Effect] = []
        self.accused = False
        self.refutations = 0
        self.identity_conflicts = 0

    def own_member(self) -> Member:
        """This node as a member."""
        return Member(self.own, self.own_signed, LEFT if self.own.left else SELF, self._own_since)

    def began(self, now: float) -> None:
        """Remember since when this node takes part."""
        self._own_since = now

    def member_count(self) -> int:
        """n of the papers: everyone taking part, this node included."""
        return len(self.table.reachable()) + 1

    def piggyback(self, first: tuple[bytes, ...] = ()) -> tuple[bytes, ...]:
        """The updates that ride on the next message: this node's own news first when it was just accused."""
        if self.accused:
            self.accused = False
            first = (self.own_update(), *first)
        sent_max = transmissions_max(self._config.retransmit_multiplier, self.member_count())
        return self.updates.take(self._payload_size_bytes_max - MESSAGE_OVERHEAD_BYTES, sent_max, first)

    def own_update(self) -> bytes:
        """This node's own record as an update."""
        return UPDATES.encode(AliveUpdate(self.own_signed))

    def accusation(self, peer: PeerId) -> tuple[bytes, ...]:
        """What a member that lives should hear first to refute it (Lifeguard's buddy system); mostly nothing."""
        member = self.table.get(peer)
        if member is None or member.state == ALIVE:
            return ()
        if member.state == LEFT:
            return (UPDATES.encode(AliveUpdate(member.signed)),)
        if member.state == DEAD:
            return (UPDATES.encode(DeadUpdate(peer, member.record.incarnation, self.own.peer)),)
        return (UPDATES.encode(SuspectUpdate(peer, member.record.incarnation, self._suspicions[peer].accuser)),)

    def announce(self, record: MemberRecord) -> None:
        """Sign and spread a new incarnation of this node. LocalProtocolError when it is over a limit."""
        self.own_signed = sign_record(record, self._signer)
        self.own = record
        self._spread(record.peer, self.own_update())

    def _spread(self, subject: PeerId, encoded: bytes) -> None:
        self.updates.put(subject, encoded)
        if not self._gossiping and self._config.gossip_fanout > 0:
            self._gossiping = True
            self.out.append(SetTimer("gossip", self._config.gossip_interval_s))

    def gossip(self, now: float) -> None:
        """The gossip timer ran out: send waiting updates to some members and to the freshly dead."""
        self._gossiping = False
        to = self.table.sample(self._config.gossip_fanout)
        if self._config.gossip_to_dead_s > 0:
            newest = max(self.table.in_state(DEAD), key=lambda member: member.since, default=None)
            if newest is not None and now - newest.since <= self._config.gossip_to_dead_s:
                to.append(newest.peer)
        for peer in to:
            updates = self.piggyback(self.accusation(peer))
            if not updates:
                break
            self.out.append(Send(peer, Gossip(updates)))
        if len(self.updates) and to:
            self._gossiping = True
            self.out.append(SetTimer("gossip", self._config.gossip_interval_s))

    def hear_updates(self, sender: PeerId, updates: tuple[bytes, ...], now: float) -> None:
        """Take piggybacked updates in; the first malformed or forged one is blamed on the sender."""
        try:
            for encoded in updates:
                self._hear_update(sender, _decoded(encoded), now)
        except RemoteProtocolError as error:
            self.out.append(Blame(sender, "membership", f"sent an update that is not true: {error}"))

    def _hear_update(self, sender: PeerId, update: object, now: float) -> None:
        match update:
            case AliveUpdate(record):
                self.hear_record(record, now)
            case SuspectUpdate(peer, incarnation, accuser):
                known = accuser == self.own.peer or self.table.get(accuser) is not None
                if self._may_judge(accuser):
                    self.suspect(peer, incarnation, accuser if known else sender, now)
            case DeadUpdate(peer, incarnation, accuser):
                if peer == self.own.peer or self._may_judge(accuser):
                    self._hear_dead(peer, incarnation, now)

    def _may_judge(self, accuser: PeerId) -> bool:
        """Whether an accuser's word counts: one that is itself held for dead heard nobody because it was cut off."""
        member = self.table.get(accuser)
        return member is None or member.state != DEAD

    def hear_table(self, sender: PeerId, table: Table, now: float) -> None:
        """Merge a peer's whole table. What a node learns when it joins it does not spread: the others know it."""
        if len(table.entries) > 2 * self._config.members_max:
            self.out.append(Blame(sender, "membership", f"sent a table of {len(table.entries)} members"))
            return
        joining = not self.table.reachable()
        for entry in table.entries:
            try:
                self._hear_entry(sender, entry, now, spread=not joining)
            except RemoteProtocolError as error:
                self.out.append(Blame(sender, "membership", f"sent a table that is not true: {error}"))
                return

    def _hear_entry(self, sender: PeerId, entry: TableEntry, now: float, *, spread: bool) -> None:
        if entry.state not in (ALIVE, SUSPECT, DEAD, LEFT):
            raise RemoteProtocolError(f"a member's state is not {entry.state[:20]!r}")
        gone = entry.state in (DEAD, LEFT)
        age_s = entry.age_s if 0 <= entry.age_s <= self._config.forget_after_s else self._config.forget_after_s
        record = self.hear_record(entry.record, now, spread=spread, gone_for_s=age_s if gone else None)
        if entry.state == DEAD and record.peer == self.own.peer:
            self._was_given_up(record.incarnation, now)
        elif entry.state in (SUSPECT, DEAD):
            self.suspect(record.peer, record.incarnation, sender, now)

    def hear_record(
        self, signed: SignedRecord, now: float, *, spread: bool = True, gone_for_s: float | None = None
    ) -> MemberRecord:
        """Take a member's own word in and give it.

        `gone_for_s` says that the teller has it for dead or left so long: then a stranger begins as that.
        """
        same = self.table.holder_of(signed)
        if same is not None:
            return same.record
        record = read_record(signed)
        if record.peer == self.own.peer:
            self._hear_own(record, signed)
            return record
        before = self.table.get(record.peer)
        if before is not None and _rank(record, signed) <= _rank(before.record, before.signed):
            return record
        check_signature(record, signed)
        if before is None and gone_for_s is not None:
            # Remembered so that stale news cannot bring it back, but not spread: it is no news.
            self._set(Member(record, signed, LEFT if record.left else DEAD, now - gone_for_s), None)
            return record
        if record.left:
            state = LEFT
        else:
            state = before.state if before and record.incarnation == before.record.incarnation else ALIVE
        since = before.since if before is not None and state == before.state else now
        if self._set(Member(record, signed, state, since), before) and spread:
            self._spread(record.peer, UPDATES.encode(AliveUpdate(signed)))
        return record

    def _hear_own(self, record: MemberRecord, signed: SignedRecord) -> None:
        if self.own.left or _rank(record, signed) <= _rank(self.own, self.own_signed):
            return
        check_signature(record, signed)
        self.identity_conflicts += 1
        if self.identity_conflicts in IDENTITY_CONFLICTS_TOLD:
            detail = (
                "another process seems to run with this node's identity: each host needs an identity.key of its own"
            )
            self.out.append(Blame(self.own.peer, "identity", detail))
        self.accused = True
        self.announce(attrs.evolve(self.own, incarnation=record.incarnation + 1))

    def suspect(self, peer: PeerId, incarnation: int, accuser: PeerId, now: float) -> None:
        """An accusation against one incarnation of a member, ours or another's."""
        if peer == self.own.peer:
            self._refute(incarnation)
            return
        member = self.table.get(peer)
        if member is None or not member.reachable or member.record.incarnation != incarnation:
            return
        suspicion = self._suspicions.get(peer)
        if suspicion is None:
            suspicion = self._begin_suspicion(member, accuser, now)
        elif not suspicion.confirm(accuser):
            return
        self.out.append(SetTimer(("suspect", peer), max(0.0, suspicion.runs_out_at() - now)))
        self._spread(peer, UPDATES.encode(SuspectUpdate(peer, incarnation, accuser)))

    def _begin_suspicion(self, member: Member, accuser: PeerId, now: float) -> Suspicion:
        config, count = self._config, self.member_count()
        shortest_s, longest_s = suspicion_bounds_s(
            config.suspicion_multiplier, config.suspicion_max_multiplier, config.probe_interval_s, count
        )
        wanted = confirmations_wanted(config.suspicion_multiplier, count)
        suspicion = Suspicion(accuser, now, shortest_s=shortest_s, longest_s=longest_s, wanted=wanted)
        self._set(attrs.evolve(member, state=SUSPECT, since=now), member)
        self._suspicions[member.peer] = suspicion
        if accuser == self.own.peer:
            self.out.append(Send(member.peer, Gossip(self.accusation(member.peer))))
        return suspicion

    def suspicion_ran_out(self, peer: PeerId, now: float) -> None:
        """Declare a suspected member dead, unless this node itself slept through the suspicion."""
        suspicion, member = self._suspicions.get(peer), self.table.get(peer)
        if suspicion is None or member is None:
            return
        overslept_s = now - suspicion.runs_out_at()
        if overslept_s > self._config.probe_interval_s and not suspicion.extended:
            # A refutation may wait in the socket: hear what came in before judging.
            suspicion.extended = True
            self.health.add(1)
            self.out.append(SetTimer(("suspect", peer), 2 * self._config.probe_interval_s))
            return
        self._declare_dead(member, now)

    def _hear_dead(self, peer: PeerId, incarnation: int, now: float) -> None:
        if peer == self.own.peer:
            self._was_given_up(incarnation, now)
            return
        member = self.table.get(peer)
        if member is not None and member.reachable and member.record.incarnation == incarnation:
            self._declare_dead(member, now)

    def _was_given_up(self, incarnation: int, now: float) -> None:
        """This node is held for dead: so it was cut off, and that it heard nobody says nothing of the others."""
        if incarnation == self.own.incarnation and not self.own.left:
            for member in self.table.members():
                if member.state in (SUSPECT, DEAD):
                    self.updates.drop(member.peer)
                if member.state == SUSPECT:
                    self._set(attrs.evolve(member, state=ALIVE, since=now), member)
        self._refute(incarnation)

    def _declare_dead(self, member: Member, now: float) -> None:
        self._set(attrs.evolve(member, state=DEAD, since=now), member)
        update = DeadUpdate(member.peer, member.record.incarnation, self.own.peer)
        self._spread(member.peer, UPDATES.encode(update))

    def _refute(self, incarnation: int) -> None:
        if self.own.left or incarnation > self.own.incarnation:
            return
        self.accused = True
        if incarnation == self.own.incarnation:
            self.refutations += 1
            self.health.add(1)
            self.announce(attrs.evolve(self.own, incarnation=incarnation + 1))

    def _set(self, member: Member, before: Member | None) -> bool:
        if not self.table.put(member):
            return False
        if before is not None and before.state == SUSPECT and member.state != SUSPECT:
            del self._suspicions[member.peer]
            self.out.append(CancelTimer(("suspect", member.peer)))
        self.out.append(MemberChangedEffect(member, before))
        return True

    def fingerprint(self) -> bytes:
        """Of who takes part, this node included: equal at all who have heard the same of them."""
        others = (member.signed for member in self.table.members() if member.reachable)
        return fingerprint((self.own_signed, *others))

    def whole_table(self, now: float) -> Table:
        """Everything this node believes, itself first."""
        own = TableEntry(self.own_signed, LEFT if self.own.left else ALIVE, 0.0)
        others = (TableEntry(member.signed, member.state, now - member.since) for member in self.table.members())
        return Table((own, *others))


def fingerprint_of_table(table: Table) -> bytes:
    """The fingerprint of who told this table."""
    return fingerprint(entry.record for entry in table.entries if entry.state in (ALIVE, SUSPECT))


def _rank(record: MemberRecord, signed: SignedRecord) -> tuple[int, bool, bytes]:
    # One incarnation has one record unless its subject signed two; then everybody settles for the same one.
    return record.incarnation, record.left, signed.body


UPDATES_READ_KEPT = 2048
_decoded = lru_cache(UPDATES_READ_KEPT)(UPDATES.decode)
"""An update comes from many members in the same bytes; of the last so many what they say is remembered."""
