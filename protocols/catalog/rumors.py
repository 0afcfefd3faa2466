"""Which keys are hot: each is told for a bounded number of rounds, then repair alone carries it.

Rumor mongering after Demers et al. 1987, with counter and feedback: a round spent on a key costs it one, and a
peer that asks for it shows that it was news, which makes it hot again.
"""

import math
from typing import Generic, TypeVar

K = TypeVar("K")

HOT_MAX = 4096
TOLD_AT_ONCE_MAX = 1024
REHEATED_ROUNDS = 2


def rounds_for(members: int, fanout: int) -> int:
    """Rounds after which a rumor told to `fanout` peers a round has very likely reached all: log of n, and two more."""
    return math.ceil(math.log(members + 1) / math.log(fanout + 1)) + 2


class Rumors(Generic[K]):
    """The hot keys, newest last. Past `HOT_MAX` the oldest are left to repair."""

    def __init__(self) -> None:
        self._rounds: dict[K, int] = {}

    def __len__(self) -> int:
        return len(self._rounds)

    def heat(self, key: K, rounds: int) -> None:
        """Tell the key for this many rounds from now."""
        self._rounds.pop(key, None)
        self._rounds[key] = rounds
        if len(self._rounds) > HOT_MAX:
            del self._rounds[next(iter(self._rounds))]

    def reheat(self, key: K) -> None:
        """A peer did not know the key, so others may not either: tell it for `REHEATED_ROUNDS` more at least."""
        if self._rounds.get(key, 0) < REHEATED_ROUNDS:
            self.heat(key, REHEATED_ROUNDS)

    def forget(self, key: K) -> None:
        """There is nothing to tell of this key any more."""
        self._rounds.pop(key, None)

    def clear(self) -> None:
        """Nothing is hot."""
        self._rounds.clear()

    def next_round(self) -> list[K]:
        """The keys to tell now, newest first; each has a round less afterwards."""
        told = list(reversed(self._rounds))[:TOLD_AT_ONCE_MAX]
        for key in told:
            self._rounds[key] -= 1
            if self._rounds[key] <= 0:
                del self._rounds[key]
        return told
