"""A directory in memory: the twin of the Kad-DHT, with its caps and its staleness.

One shared table stands for the nodes of a DHT. What is announced stays until it expires, whoever dies or drops the
model meanwhile; a key has at most 20 providers; a node announces at most 9 keys in 10.5 seconds.
"""

from collections import deque
from collections.abc import Sequence

import trio

from node.ports import FoundProvider, TransportError
from protocols.catalog.keys import name_key, newest_head, read_head
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId

PROVIDERS_PER_KEY_MAX = 20
PROVIDED_FOR_S = 48 * 3600.0
ANNOUNCEMENTS_PER_WINDOW = 9
WINDOW_S = 10.5


class SimDirectories:
    """The table all nodes of a simulated world share. `latency_s` is what one question takes."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.values: dict[bytes, bytes] = {}
        self.providers: dict[bytes, dict[PeerId, tuple[float, tuple[str, ...]]]] = {}

    def directory(self, peer: PeerId, addresses: Sequence[str]) -> "SimDirectory":
        """One node's view of it."""
        return SimDirectory(self, peer, addresses)


class SimDirectory:
    """One node's `node.ports.Directory`. A node that nobody was introduced to reaches nobody."""

    def __init__(self, shared: SimDirectories, peer: PeerId, addresses: Sequence[str]) -> None:
        self._shared = shared
        self._peer = peer
        self._addresses = tuple(addresses)
        self._known: dict[PeerId, None] = {}
        self._announced_at_s: deque[float] = deque()
        self._announcing = trio.Lock()

    async def introduce(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Tell the directory of a peer that takes part in it."""
        await trio.lowlevel.checkpoint()
        if peer != self._peer:
            self._known[peer] = None

    async def put(self, key: bytes, value: bytes) -> None:
        """Store a signed head; TransportError when there is no peer, RemoteProtocolError when it is none of the key."""
        head = read_head(value)
        if name_key(head.name) != key:
            raise RemoteProtocolError(f"the head of {head.name} stands under another name's key")
        await self._travel()
        if not self._known:
            raise TransportError("no peer of the directory took the head")
        kept = self._shared.values.get(key)
        if kept is None or newest_head([kept, value]) == 1:
            self._shared.values[key] = value

    async def get(self, key: bytes) -> bytes | None:
        """The newest head stored under a key, or None."""
        await self._travel()
        return self._shared.values.get(key) if self._known else None

    async def provide(self, key: bytes) -> None:
        """Announce this node under a key, as fast as is allowed; TransportError when there is no peer."""
        async with self._announcing:
            if len(self._announced_at_s) >= ANNOUNCEMENTS_PER_WINDOW:
                await trio.sleep_until(self._announced_at_s[0] + WINDOW_S)
                self._announced_at_s.popleft()
            self._announced_at_s.append(trio.current_time())
        await self._travel()
        if not self._known:
            raise TransportError("no peer of the directory took the announcement")
        known = self._shared.providers.setdefault(key, {})
        known.pop(self._peer, None)
        while len(known) >= PROVIDERS_PER_KEY_MAX:
            del known[next(iter(known))]
        known[self._peer] = trio.current_time() + PROVIDED_FOR_S, self._addresses

    async def providers(self, key: bytes) -> list[FoundProvider]:
        """Who announced a key, sorted, without this node."""
        await self._travel()
        if not self._known:
            return []
        known = self._shared.providers.get(key, {})
        now = trio.current_time()
        found = [FoundProvider(peer, known[peer][1]) for peer in sorted(known) if known[peer][0] > now]
        return [provider for provider in found if provider.peer != self._peer]

    async def _travel(self) -> None:
        await trio.sleep(self._shared.latency_s)
