"""How much of this node's time one member may take with its gossip."""

import trio

from protocols.ids import PeerId

REST = 3.0
"""Seconds of rest for each second that a peer's messages kept the node busy: a quarter of one core at most.

A message of 20,000 keys costs 50 ms. Without rest, a member that sends nothing else kept the node from answering
anybody for seconds; an honest exchange of 1,000 records costs 0.1 s.
"""

PEERS_MAX = 1024
"""Peers counted before those whose rest is over are forgotten."""


class Pace:
    """Counts by peer, over however many streams it sends."""

    def __init__(self) -> None:
        self._free_at_s: dict[PeerId, float] = {}

    def __len__(self) -> int:
        """How many peers are counted now."""
        return len(self._free_at_s)

    async def turn(self, peer: PeerId) -> None:
        """Wait until a message of this peer may be handled; handle it before the next await, then say `took`."""
        # Of several streams that wait, the first to wake takes the turn and the others find a later one.
        while trio.current_time() < self._free_at_s.get(peer, 0.0):  # noqa: ASYNC110  # time alone ends it
            await trio.sleep_until(self._free_at_s[peer])

    def took(self, peer: PeerId, busy_s: float) -> None:
        """A message of this peer kept the node busy for so long."""
        now = trio.current_time()
        if len(self._free_at_s) >= PEERS_MAX:
            self._free_at_s = {each: free_at_s for each, free_at_s in self._free_at_s.items() if free_at_s > now}
        self._free_at_s[peer] = now + REST * busy_s
