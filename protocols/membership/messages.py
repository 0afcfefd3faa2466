"""What members say to each other, on datagrams and on control streams, and the updates piggybacked on it.

SWIM's Alive, Suspect and Confirm are here `AliveUpdate` (the subject's signed record; a leave is such a record
too), `SuspectUpdate` and `DeadUpdate`. Updates travel as bytes encoded once, however often they are sent.
"""

import attrs

from protocols.codec import Codec
from protocols.ids import PeerId
from protocols.membership.record import SignedRecord

PROTOCOL = "/herd/membership/1"
"""The stream protocol: one question frame, one answer frame, end."""

TABLE_SIZE_BYTES_MAX = 12 * 1024 * 1024
"""The longest frame on a membership stream: the largest table `members_max` allows."""


@attrs.frozen
class Ping:
    """Are you there? Answered with an Ack of the same sequence number."""

    sequence: int
    updates: tuple[bytes, ...] = ()


@attrs.frozen
class Ack:
    """Yes, or: yes, the member you asked me to ping is."""

    sequence: int
    updates: tuple[bytes, ...] = ()


@attrs.frozen
class PingRequest:
    """SWIM's ping-req: ping `target` for me and pass its Ack on, or a Nack when none came in time."""

    sequence: int
    target: PeerId


@attrs.frozen
class Nack:
    """Lifeguard's nack: the target did not answer me either, but you and I hear each other."""

    sequence: int


@attrs.frozen
class Gossip:
    """Updates by themselves."""

    updates: tuple[bytes, ...]


@attrs.frozen
class TableEntry:
    """One row of a member table: `state` is `alive`, `suspect`, `dead` or `left` as the teller sees it.

    `age_s` says for how many seconds it has been so: without it members would forget the dead only to be
    told of them anew, for ever.
    """

    record: SignedRecord
    state: str
    age_s: float


@attrs.frozen
class Table:
    """The whole member table of the teller, itself included: both halves of push/pull."""

    entries: tuple[TableEntry, ...]


@attrs.frozen
class Fingerprint:
    """Who takes part as the teller sees it, in 16 bytes: asked with one, an equal one answers, else a Table.

    Two members that believe the same, which is nearly always, so spare each other two whole tables.
    """

    digest: bytes


@attrs.frozen
class AliveUpdate:
    """A member's own word: its newest record (also its labels, addresses, or that it left)."""

    record: SignedRecord


@attrs.frozen
class SuspectUpdate:
    """`accuser` got no answer from this incarnation of `peer`."""

    peer: PeerId
    incarnation: int
    accuser: PeerId


@attrs.frozen
class DeadUpdate:
    """`accuser` saw the suspicion of this incarnation of `peer` run out."""

    peer: PeerId
    incarnation: int
    accuser: PeerId


MESSAGES = Codec({1: Ping, 2: Ack, 3: PingRequest, 4: Nack, 5: Gossip, 6: Table, 7: Fingerprint})
UPDATES = Codec({1: AliveUpdate, 2: SuspectUpdate, 3: DeadUpdate})

UPDATE_OVERHEAD_BYTES = 3
"""The msgpack header of one update inside a message, at most."""

MESSAGE_OVERHEAD_BYTES = 16
"""A ping, ack or gossip around its updates, at most: array header, tag, sequence number, list header."""
