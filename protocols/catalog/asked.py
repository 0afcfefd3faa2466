"""What was asked of whom and has not come yet, so that one record is not fetched from everybody who has it.

An advert is a promise anybody can make: who was asked and did not give is not asked for the same again until the next
repair begins, so that a member that advertises and never gives holds a record up once, not for ever.
"""

from typing import Generic, TypeVar

import attrs

from protocols.ids import PeerId

K = TypeVar("K")

ASKED_FOR_S = 5.0
"""A record asked of one peer is not asked of another for this long."""

ASKED_MAX = 200_000


@attrs.frozen
class _Question:
    peer: PeerId
    until_s: float
    repair: bool


class Asked(Generic[K]):
    """The open questions, oldest first. Past `ASKED_MAX` the oldest are forgotten: their records may come twice."""

    def __init__(self) -> None:
        self._questions: dict[K, _Question] = {}

    def __len__(self) -> int:
        return len(self._questions)

    def ask(self, key: K, peer: PeerId, repair: bool, now: float) -> bool:
        """Whether to ask this peer for the record now; noted if so."""
        earlier = self._questions.get(key)
        if earlier is not None and (earlier.until_s > now or earlier.peer == peer):
            return False
        self._questions.pop(key, None)
        self._questions[key] = _Question(peer, now + ASKED_FOR_S, repair)
        if len(self._questions) > ASKED_MAX:
            del self._questions[next(iter(self._questions))]
        return True

    def came(self, key: K) -> bool:
        """The record is here; whether it was asked for in a repair."""
        question = self._questions.pop(key, None)
        return question is not None and question.repair

    def forget_late(self, now: float) -> None:
        """What did not come in time may be asked of anybody again."""
        self._questions = {key: question for key, question in self._questions.items() if question.until_s > now}

    def forget_peer(self, peer: PeerId) -> None:
        """A peer came anew: what it was asked before went to an earlier life of it."""
        self._questions = {key: question for key, question in self._questions.items() if question.peer != peer}
