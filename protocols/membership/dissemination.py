"""SWIM's infection-style dissemination: each update rides on messages a bounded number of times, fresh ones first."""

import math
from operator import attrgetter

import attrs

from protocols.ids import PeerId
from protocols.membership.messages import UPDATE_OVERHEAD_BYTES


def transmissions_max(multiplier: int, member_count: int) -> int:
    """SWIM's lambda * log n: how often one member sends one update in a group of `member_count`."""
    return multiplier * math.ceil(math.log10(member_count + 1))


@attrs.define
class _Waiting:
    subject: PeerId
    encoded: bytes
    newness: int
    """The smaller, the newer."""
    sent: int = 0


_turn = attrgetter("sent", "newness")


class UpdateQueue:
    """The updates still to be spread, one a subject: news of a member replaces what waited about it."""

    def __init__(self) -> None:
        self._waiting: dict[PeerId, _Waiting] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, subject: PeerId, encoded: bytes) -> None:
        """Spread an update, from now on instead of any earlier one about the subject."""
        self._serial += 1
        self._waiting[subject] = _Waiting(subject, encoded, -self._serial)

    def drop(self, subject: PeerId) -> None:
        """Spread nothing of a subject any more."""
        self._waiting.pop(subject, None)

    def take(self, size_bytes_max: int, sent_max: int, first: tuple[bytes, ...] = ()) -> tuple[bytes, ...]:
        """Updates for one message within a size: `first` ones, then those least sent, newest before older.

        Counts them as sent; what was sent `sent_max` times is spread no more.
        """
        chosen: list[bytes] = []
        room_bytes = size_bytes_max
        for encoded in dict.fromkeys(first):
            if len(encoded) + UPDATE_OVERHEAD_BYTES <= room_bytes:
                room_bytes -= len(encoded) + UPDATE_OVERHEAD_BYTES
                chosen.append(encoded)
        if not self._waiting:
            return tuple(chosen)
        for waiting in sorted(self._waiting.values(), key=_turn):
            size_bytes = len(waiting.encoded) + UPDATE_OVERHEAD_BYTES
            if waiting.encoded in chosen or size_bytes > room_bytes:
                continue
            room_bytes -= size_bytes
            chosen.append(waiting.encoded)
            waiting.sent += 1
            if waiting.sent >= sent_max:
                del self._waiting[waiting.subject]
        return tuple(chosen)
