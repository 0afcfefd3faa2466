"""Which plane carries a peer's chunks: its bulk port where it can be reached, else control streams."""

import logging

import attrs
import trio

from node.ports import ChunkCarrier, ChunkLink, ChunkLinkHandler, TransportError
from protocols.bulk.config import BulkConfig
from protocols.ids import PeerId

log = logging.getLogger("herd.exchange")

PEERS_KEPT_MAX = 4096


@attrs.frozen
class Plane:
    """How chunks of a peer came last: `bulk` or `streams`, and why not otherwise."""

    name: str
    reason: str = ""
    until_s: float = float("-inf")


class Planes:
    """Implements `node.ports.ChunkCarrier` over two others. A bulk port that failed is tried again after `retry_s`."""

    def __init__(self, bulk: ChunkCarrier, streams: ChunkCarrier, config: BulkConfig) -> None:
        self._bulk = bulk
        self._streams = streams
        self._config = config
        self._planes: dict[PeerId, Plane] = {}

    def plane_of(self, peer: PeerId) -> Plane | None:
        """How chunks of this peer came last, None when none did."""
        return self._planes.get(peer)

    async def connect(self, peer: PeerId, ticket: bytes, *, timeout_s: float) -> ChunkLink:
        """Attach a link over the better plane that works. TransportError when none does."""
        before = self._planes.get(peer)
        if before is not None and trio.current_time() < before.until_s:
            return await self._streams.connect(peer, ticket, timeout_s=timeout_s)
        try:
            link = await self._bulk.connect(peer, ticket, timeout_s=2 * self._config.connect_timeout_s)
        except TransportError as error:
            stream_link = await self._streams.connect(peer, ticket, timeout_s=timeout_s)
            # Only now it is known that the peer is there and its bulk port is what fails.
            self._remember(peer, Plane("streams", str(error), trio.current_time() + self._config.retry_s))
            if before is None or before.reason != str(error):
                log.info("chunks of %s come over control streams: %s", peer, error)
            return stream_link
        self._remember(peer, Plane("bulk"))
        return link

    def serve(self, handler: ChunkLinkHandler) -> None:
        """Take links of both planes."""
        self._bulk.serve(handler)
        self._streams.serve(handler)

    def _remember(self, peer: PeerId, plane: Plane) -> None:
        self._planes.pop(peer, None)
        self._planes[peer] = plane
        if len(self._planes) > PEERS_KEPT_MAX:
            del self._planes[next(iter(self._planes))]
