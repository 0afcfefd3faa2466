"""What happens in a node, told to whoever listens: the API's WebSocket, the log, tests.

Events are facts in the past tense, frozen, and made of plain fields so that they travel as JSON.
A listener that does not keep up loses the oldest events and is told how many; nobody waits for a listener.
"""

from collections import deque
from types import TracebackType
from typing import Any, Self

import attrs
import trio

QUEUE_LENGTH_MAX = 1024


@attrs.frozen
class MemberChanged:
    """A member's state as this node now sees it: `alive`, `suspect`, `dead` or `left`."""

    peer: str
    state: str
    incarnation: int


@attrs.frozen
class AdvertSeen:
    """The catalog learned something: `kind` is `version` or `inventory`."""

    kind: str
    owner: str
    name: str
    detail: str


@attrs.frozen
class TransferProgressed:
    """A blob is coming in. Bytes are counted as they are checked; `sources` maps peer to bytes."""

    operation_id: str
    model: str
    digest: str
    held_bytes: int
    size_bytes: int
    sources: dict[str, int]


@attrs.frozen
class TransferEnded:
    """A pull ended: `outcome` is `verified`, `cancelled` or `failed`, with the reason in `detail`."""

    operation_id: str
    model: str
    outcome: str
    detail: str
    seconds: float
    sources: dict[str, int]


@attrs.frozen
class PeerBlamed:
    """A peer broke a rule; `count` is the total for that peer and reason."""

    peer: str
    reason: str
    detail: str
    count: int


@attrs.frozen
class StoreChanged:
    """The local store changed: `change` is `added`, `verified`, `removed` or `damaged`."""

    model: str
    change: str
    detail: str


@attrs.frozen
class EventsLost:
    """This listener was too slow and missed `count` events."""

    count: int


def event_to_json(event: Any) -> dict[str, Any]:
    """`{"event": "MemberChanged", ...fields}`; every event class above is made of JSON's own types."""
    return {"event": type(event).__name__, **attrs.asdict(event)}


class Listener:
    """One subscription: an async iterator of events; leave the `with` block to unsubscribe."""

    def __init__(self, bus: "EventBus") -> None:
        self._bus = bus
        self._queue: deque[Any] = deque()
        self._lost = 0
        self._wakeup = trio.Event()

    def _offer(self, event: Any) -> None:
        if len(self._queue) >= QUEUE_LENGTH_MAX:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(event)
        self._wakeup.set()

    def discard(self) -> None:
        """Forget the events that are waiting: the listener is about to look at the state itself."""
        self._queue.clear()
        self._lost = 0

    def __enter__(self) -> Self:
        self._bus._listeners.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bus._listeners.remove(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._queue and not self._lost:
            self._wakeup = trio.Event()
            await self._wakeup.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return EventsLost(lost)
        return self._queue.popleft()


class EventBus:
    """One a node. `publish` never waits; `subscribe` is used as a context manager."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def publish(self, event: Any) -> None:
        """Tell every listener."""
        for listener in self._listeners:
            listener._offer(event)

    def subscribe(self) -> Listener:
        """A listener that hears what is published inside its `with` block."""
        return Listener(self)
