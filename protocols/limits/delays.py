"""How long chunks had to wait for a limit, as askers were told and then went or gave up."""

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

import attrs

K = TypeVar("K", bound=Hashable)

WAITING_MAX = 4096
"""So many are waited for at once; past it the one that was refused longest ago is no longer counted."""


@attrs.frozen
class _Told:
    """When somebody was told to wait, and until when."""

    since_s: float
    until_s: float


class Delays(Generic[K]):
    """Sums over all who were told to wait. Who never comes back counts as having waited as long as it was told."""

    def __init__(self) -> None:
        self.delayed_s = 0.0
        self.delayed_bytes = 0
        self._waiting: dict[K, _Told] = {}

    def __len__(self) -> int:
        """How many were told to wait and have not gone since."""
        return len(self._waiting)

    def refused(self, key: K, wait_s: float, now: float) -> None:
        """Somebody was told to wait, for the first time or once more; infinite when it waits until it goes."""
        self._count(self._waiting.pop(key, None), now)
        self._waiting[key] = _Told(now, now + wait_s)
        if len(self._waiting) > WAITING_MAX:
            self._count(self._waiting.pop(next(iter(self._waiting))), now)

    def went(self, key: K, size_bytes: int, now: float) -> None:
        """Somebody took so much; counted when it was told to wait before."""
        told = self._waiting.pop(key, None)
        self._count(told, now)
        if told is not None:
            self.delayed_bytes += size_bytes

    def gave_up(self, key: K, now: float) -> None:
        """Somebody waits no longer, and nothing went."""
        self._count(self._waiting.pop(key, None), now)

    def settle(self, now: float) -> None:
        """The limits changed: what was told before holds no longer."""
        for key, told in self._waiting.items():
            self._count(told, now)
            self._waiting[key] = _Told(now, told.until_s if math.isinf(told.until_s) else now)

    def clear(self) -> None:
        """Nobody waits any longer."""
        self._waiting.clear()

    def _count(self, told: _Told | None, now: float) -> None:
        if told is not None:
            self.delayed_s += max(0.0, min(now, told.until_s) - told.since_s)
