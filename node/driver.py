"""Drives one pure core: feeds it events with the time, performs its effects in order, keeps its timers."""

import heapq
import itertools
from collections.abc import Callable, Hashable

import trio

from protocols.effects import CancelTimer, Core, Effect, Event, SetTimer, TimerFired


class Driver:
    """`feed` may be called from any task of the Trio thread; `run` keeps the timers and is started once.

    `perform` gets every effect but the timers and must not wait: what takes time it starts in a nursery.
    Effects that feed the core again are queued, so that a core never sees an event inside an event.
    """

    def __init__(self, core: Core, perform: Callable[[Effect], None]) -> None:
        self._core = core
        self._perform = perform
        self._pending: list[Event] = []
        self._feeding = False
        self._deadlines: dict[Hashable, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._sequence = itertools.count()
        self._earlier = trio.Event()

    def feed(self, event: Event) -> None:
        """Let the core handle an event now."""
        self._pending.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._pending:
                for effect in self._core.handle(self._pending.pop(0), trio.current_time()):
                    self._apply(effect)
        finally:
            self._feeding = False

    def _apply(self, effect: Effect) -> None:
        match effect:
            case SetTimer(name, delay_s):
                deadline = trio.current_time() + delay_s
                entry = (deadline, next(self._sequence))
                self._deadlines[name] = entry
                heapq.heappush(self._heap, (*entry, name))
                if self._heap[0][2] == name:
                    self._earlier.set()
            case CancelTimer(name):
                self._deadlines.pop(name, None)
            case _:
                self._perform(effect)

    async def run(self) -> None:
        """Fire timers until cancelled."""
        while True:
            self._drop_stale()
            self._earlier = trio.Event()
            deadline = self._heap[0][0] if self._heap else float("inf")
            with trio.move_on_at(deadline):
                await self._earlier.wait()
            self._fire_due()

    def _drop_stale(self) -> None:
        while self._heap and self._deadlines.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)

    def _fire_due(self) -> None:
        now = trio.current_time()
        while True:
            self._drop_stale()
            if not self._heap or self._heap[0][0] > now:
                return
            _, _, name = heapq.heappop(self._heap)
            del self._deadlines[name]
            self.feed(TimerFired(name))
