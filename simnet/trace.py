"""What happened in a world, as one digest and, where wanted, as lines a person can read."""

import struct
from typing import Any

import attrs
import trio
from blake3 import blake3

from node.events import EventBus, event_to_json

KEPT_LINES_MAX = 200_000
_OWN_IDS = ("operation_id",)
"""Fields that name something by chance and say nothing about what happened."""


@attrs.frozen
class Line:
    """One thing that happened: when in virtual seconds, at which host, in a few words."""

    at_s: float
    host: str
    text: str


class Trace:
    """Everything that is told to it goes into the digest, in its order; the last `KEPT_LINES_MAX` lines are kept."""

    def __init__(self) -> None:
        self._digest = blake3()
        self.lines: list[Line] = []
        self.told = 0
        self.lines_dropped = 0

    def tell(self, host: str, text: str) -> None:
        """Something happened at a host, or, with an empty host, to the world."""
        now = trio.current_time()
        self._digest.update(f"{now!r} {host} {text}\n".encode())
        self.told += 1
        self.lines.append(Line(now, host, text))
        if len(self.lines) > KEPT_LINES_MAX:
            self.lines_dropped += KEPT_LINES_MAX // 2
            del self.lines[: KEPT_LINES_MAX // 2]

    def frame(self, sender: str, receiver: str, size_bytes: int) -> None:
        """A frame or datagram left a host: in the digest, for nothing differs later that did not differ there."""
        self._digest.update(struct.pack(">dI", trio.current_time(), size_bytes) + f"{sender} {receiver}".encode())
        self.told += 1

    def digest(self) -> str:
        """The digest of all that happened so far."""
        return self._digest.hexdigest()[:32]


class TracedBus(EventBus):
    """A node's event bus that also tells the trace. Progress is left out: it says what the frames say, and often."""

    def __init__(self, trace: Trace, host: str) -> None:
        super().__init__()
        self._trace = trace
        self._host = host

    def publish(self, event: Any) -> None:
        """Tell the trace and every listener."""
        if type(event).__name__ != "TransferProgressed":
            fields = {key: value for key, value in event_to_json(event).items() if key not in _OWN_IDS}
            kind = fields.pop("event")
            self._trace.tell(self._host, f"{kind} " + " ".join(f"{key}={value}" for key, value in fields.items()))
        super().publish(event)
