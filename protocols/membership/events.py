"""What happens to the membership core, and what it wants done, beyond the words every core knows."""

from collections.abc import Hashable

import attrs

from protocols.effects import Effect, Event
from protocols.ids import PeerId
from protocols.membership.messages import Fingerprint, Ping, Table
from protocols.membership.table import Member


@attrs.frozen
class Started(Event):
    """The node receives from now on: begin probing."""


@attrs.frozen
class ReceivedOverStream(Event):
    """A member asked on a control stream (a Ping, a Fingerprint or a Table); the answer is wanted under `token`."""

    sender: PeerId
    message: object
    token: Hashable


@attrs.frozen
class StreamProbeAnswered(Event):
    """A ProbeOverStream ended: with the peer's Ack, or with None when none came in time."""

    peer: PeerId
    sequence: int
    answer: object | None


@attrs.frozen
class PushPullAnswered(Event):
    """A peer answered what we `asked` with: our Table, or a Fingerprint. A failed push/pull needs no event."""

    peer: PeerId
    answer: object
    asked: object = None


@attrs.frozen
class LocalChanged(Event):
    """This member has something new to say of itself; None means unchanged."""

    addresses: tuple[str, ...] | None = None
    datagram_address: str | None = None
    labels: dict[str, str] | None = None
    free_disk_bytes: int | None = None


@attrs.frozen
class Leave(Event):
    """This member goes away on purpose."""


@attrs.frozen
class ProbeOverStream(Effect):
    """Send the ping on a control stream to a peer that did not answer datagrams; feed StreamProbeAnswered."""

    peer: PeerId
    sequence: int
    message: Ping
    timeout_s: float


@attrs.frozen
class PushPull(Effect):
    """Ask a peer with this on a control stream; feed PushPullAnswered when it answers."""

    peer: PeerId
    message: Table | Fingerprint


@attrs.frozen
class AnswerOverStream(Effect):
    """The answer to the ReceivedOverStream of this token."""

    token: Hashable
    message: object


@attrs.frozen
class MemberChangedEffect(Effect):
    """A member is new, or its record or state changed; `before` is what was known, None when nothing was."""

    member: Member
    before: Member | None
