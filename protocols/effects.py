"""The vocabulary between a pure core and whoever drives it.

A core is one verb, `handle(event, now) -> list[Effect]`. Events come in, effects go out; the driver
(`node.driver` in a real node) performs them in order. A protocol adds its own event and effect classes by
subclassing these two; the four effects below are the ones every driver knows.
"""

from collections.abc import Hashable
from typing import Protocol

import attrs

from protocols.ids import PeerId


class Event:
    """Something that happened to a core."""


class Effect:
    """Something a core wants done."""


@attrs.frozen
class Received(Event):
    """A decoded message came from an authenticated peer."""

    sender: PeerId
    message: object


@attrs.frozen
class TimerFired(Event):
    """The timer of this name ran out."""

    name: Hashable


@attrs.frozen
class Send(Effect):
    """Send a message to a peer on the protocol's own plane; delivery is not promised."""

    to: PeerId
    message: object


@attrs.frozen
class SetTimer(Effect):
    """Feed TimerFired(name) after `delay_s` seconds; an earlier timer of that name is replaced."""

    name: Hashable
    delay_s: float


@attrs.frozen
class CancelTimer(Effect):
    """Forget the timer of this name; no such timer is fine."""

    name: Hashable


@attrs.frozen
class Blame(Effect):
    """A peer broke a rule: count it against the peer under `reason` (a short fixed word) with a detail for people."""

    peer: PeerId
    reason: str
    detail: str


class Core(Protocol):
    """What a driver needs of a pure state machine."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at `now` (seconds on the driver's monotonic clock); give the effects in order."""
        ...
