"""A list of things to say again and again: each as soon as it is new, then every interval, a failed one sooner.

A thing that nobody heard is tried again after twice as long each time, up to the interval: a node that is alone must
not work for ever at telling nobody.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

import trio

from node.ports import TransportError
from protocols.errors import RemoteProtocolError

log = logging.getLogger("herd.discovery")

T = TypeVar("T")


class Announcements(Generic[T]):
    """`say` says one thing; TransportError when nobody heard it, RemoteProtocolError when nobody may.

    One at a time: first what nobody heard yet, in the order in which it is wanted, then what is due for longest. So
    news does not wait behind the repetition of everything else.
    """

    def __init__(
        self, say: Callable[[str, T], Awaitable[None]], *, interval_s: float, retry_s: float, timeout_s: float
    ) -> None:
        self._say = say
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._timeout_s = timeout_s
        self._wanted: dict[str, T] = {}
        self._due_at_s: dict[str, float] = {}
        self._heard: dict[str, None] = {}
        self._retry_after_s: dict[str, float] = {}
        self._wakeup = trio.Event()
        self.said = 0
        self.failed = 0

    def want(self, wanted: Mapping[str, T]) -> None:
        """From now on say exactly this, most important first; what is new or says something else is due at once."""
        now = trio.current_time()
        due = {
            key: self._due_at_s[key] if key in self._due_at_s and self._wanted[key] == wanted[key] else now
            for key in wanted
        }
        self._wanted = dict(wanted)
        self._due_at_s = due
        self._heard = {key: None for key in self._heard if key in due and due[key] > now}
        self._retry_after_s = {key: wait_s for key, wait_s in self._retry_after_s.items() if due.get(key, now) > now}
        self._wakeup.set()

    def retry_unheard(self) -> None:
        """Somebody new is there: what nobody heard so far is due at once."""
        now = trio.current_time()
        for key in self._due_at_s:
            if key not in self._heard:
                self._due_at_s[key] = now
        self._retry_after_s.clear()
        self._wakeup.set()

    def pending(self) -> int:
        """How many things nobody heard yet."""
        return len(self._wanted) - len(self._heard)

    async def run(self) -> None:
        """Say what is due, until cancelled."""
        while True:
            key = self._next()
            if key is not None:
                await self._say_one(key, self._wanted[key])
                continue
            self._wakeup = trio.Event()
            with trio.move_on_at(min(self._due_at_s.values(), default=float("inf"))):
                await self._wakeup.wait()

    def _next(self) -> str | None:
        now = trio.current_time()
        due = [key for key in self._wanted if self._due_at_s[key] <= now]
        unheard = (key for key in due if key not in self._heard)
        return next(unheard, None) or min(due, key=lambda key: self._due_at_s[key], default=None)

    async def _say_one(self, key: str, thing: T) -> None:
        # Put off first: what is wanted anew while this is being said stands in its own right.
        wait_s = self._retry_after_s.get(key, self._retry_s)
        self._due_at_s[key] = trio.current_time() + wait_s
        self._retry_after_s[key] = min(2 * wait_s, self._interval_s)
        heard = False
        with trio.move_on_after(self._timeout_s):
            try:
                await self._say(key, thing)
                heard = True
            except TransportError as error:
                log.debug("%s was not announced: %s", key, error)
            except RemoteProtocolError as error:
                # A record that this host's own clock forbids, say, after it was set back: it may be good later.
                log.info("%s cannot be announced: %s", key, error)
        if not heard:
            self.failed += 1
            self._heard.pop(key, None)
            return
        self.said += 1
        self._retry_after_s.pop(key, None)
        if key in self._wanted and self._wanted[key] == thing:
            self._heard[key] = None
            self._due_at_s[key] = trio.current_time() + self._interval_s
