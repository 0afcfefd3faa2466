"""The member table: who is known, in which state, and in which order they are probed."""

import random
from collections.abc import Callable

import attrs

from protocols.ids import PeerId
from protocols.membership.record import MemberRecord, SignedRecord

ALIVE, SUSPECT, DEAD, LEFT, SELF = "alive", "suspect", "dead", "left", "self"


@attrs.frozen
class Member:
    """One member as this node sees it: `state` is `self`, `alive`, `suspect`, `dead` or `left`, since `since`."""

    record: MemberRecord
    signed: SignedRecord
    state: str
    since: float

    @property
    def peer(self) -> PeerId:
        """The member's name."""
        return self.record.peer

    @property
    def reachable(self) -> bool:
        """Whether it takes part: SWIM treats a suspected member as a non-faulty one until the suspicion ran out."""
        return self.state in (ALIVE, SUSPECT)


class MemberTable:
    """All members but this node itself, at most `members_max` of them.

    The probe order is SWIM's: round-robin over a random permutation, newcomers at random places, shuffled anew
    after each round, so that every member is probed within 2n - 1 periods.
    """

    def __init__(self, members_max: int, rng: random.Random) -> None:
        self._members_max = members_max
        self._rng = rng
        self._members: dict[PeerId, Member] = {}
        self._of_signature: dict[bytes, PeerId] = {}
        self._order: list[PeerId] = []
        self._next = 0
        self._reachable: list[PeerId] | None = None

    def get(self, peer: PeerId) -> Member | None:
        """What is known of a peer."""
        return self._members.get(peer)

    def holder_of(self, signed: SignedRecord) -> Member | None:
        """The member whose current record is exactly this one: it need not be verified again."""
        peer = self._of_signature.get(signed.signature)
        member = self._members.get(peer) if peer is not None else None
        return member if member is not None and member.signed == signed else None

    def put(self, member: Member) -> bool:
        """Set what is known of a peer; False (and nothing done) when the table is full of living members."""
        before = self._members.get(member.peer)
        if before is None and len(self._members) >= self._members_max and not self._evict():
            return False
        if before is not None:
            self._of_signature.pop(before.signed.signature, None)
        self._members[member.peer] = member
        self._of_signature[member.signed.signature] = member.peer
        was_reachable = before is not None and before.reachable
        if member.reachable != was_reachable:
            self._reachable = None
            if member.reachable and member.peer not in self._order[self._next :]:
                self._order.insert(self._rng.randint(min(self._next, len(self._order)), len(self._order)), member.peer)
        return True

    def remove(self, peer: PeerId) -> None:
        """Forget a peer altogether."""
        member = self._members.pop(peer)
        self._of_signature.pop(member.signed.signature, None)
        self._reachable = None

    def _evict(self) -> bool:
        gone = [member for member in self._members.values() if not member.reachable]
        if not gone:
            return False
        self.remove(min(gone, key=lambda member: (member.since, member.peer)).peer)
        return True

    def reachable(self) -> list[PeerId]:
        """Alive and suspected members, sorted. The caller must not change the list."""
        if self._reachable is None:
            self._reachable = sorted(peer for peer, member in self._members.items() if member.reachable)
        return self._reachable

    def members(self) -> list[Member]:
        """Everyone, sorted by peer id."""
        return [self._members[peer] for peer in sorted(self._members)]

    def in_state(self, state: str) -> list[Member]:
        """The members in one state, oldest knowledge first."""
        return [member for member in self._members.values() if member.state == state]

    def sample(self, count: int, but: PeerId | None = None) -> list[PeerId]:
        """At most `count` distinct reachable members, at random."""
        candidates = [peer for peer in self.reachable() if peer != but] if but is not None else self.reachable()
        return self._rng.sample(candidates, min(count, len(candidates)))

    def next_probe(self) -> Member | None:
        """Whom to probe now; None when there is nobody."""
        if not self.reachable():
            self._order.clear()
            return None
        while True:
            while self._next < len(self._order):
                member = self._members.get(self._order[self._next])
                self._next += 1
                if member is not None and member.reachable:
                    return member
            self._order = list(self.reachable())
            self._rng.shuffle(self._order)
            self._next = 0

    def forget(self, due: Callable[[Member], bool]) -> None:
        """Forget the unreachable members for which `due` holds."""
        for member in [member for member in self._members.values() if not member.reachable and due(member)]:
            self.remove(member.peer)
