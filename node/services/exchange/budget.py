"""What limits leave to the exchange: an asker asks no more than may come in, a giver sends no more than may go out."""

import trio

from node.services.limits.service import LimitsService
from protocols.ids import PeerId
from protocols.limits.config import Direction, Purpose


def purpose_of(text: str) -> Purpose:
    """The purpose a peer named. One that this release does not know counts as a pull, the commonest."""
    try:
        return Purpose(text)
    except ValueError:
        return Purpose.PULL


class AskBudget:
    """`protocols.exchange.paces.Budget` over a node's limits; remembers when something may be asked again."""

    def __init__(self, limits: LimitsService) -> None:
        self._limits = limits
        self._due_s = float("inf")
        self._refused = trio.Event()

    @property
    def holds_back(self) -> bool:
        """Whether something is not asked now because of a limit."""
        return self._due_s < float("inf")

    def allows(self, peer: PeerId, purpose: str) -> bool:
        """Whether a chunk may be asked of the peer now."""
        if self._limits.unlimited(Direction.DOWN):
            return True
        wait_s = self._limits.wait_s(Direction.DOWN, peer, purpose_of(purpose))
        if wait_s <= 0:
            return True
        self._due_s = min(self._due_s, trio.current_time() + wait_s)
        self._refused.set()
        return False

    def asked(self, peer: PeerId, purpose: str, size_bytes: int) -> None:
        """A chunk was asked: its bytes count, whether they come or not."""
        if not self._limits.unlimited(Direction.DOWN):
            self._limits.took(Direction.DOWN, peer, purpose_of(purpose), size_bytes)

    async def wait_due(self) -> None:
        """Return when what was refused may be asked: its time has come, or the limits have changed."""
        while not self.holds_back:
            self._refused = trio.Event()
            await self._refused.wait()
        with trio.move_on_at(self._due_s):
            await self._limits.wait_changed()
        self._due_s = float("inf")
