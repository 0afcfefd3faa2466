"""The exchange: fetches blobs from whoever holds them, and serves what is here, whole or still coming in."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import attrs
import trio

from node.blame import BlameLedger
from node.errors import HerdError
from node.events import EventBus
from node.ports import Blobs, ChunkCarrier, Transport
from node.services.exchange.asking import AskingSide
from node.services.exchange.budget import AskBudget
from node.services.exchange.giving import GivingSide
from node.services.exchange.reports import FetchProgress, FetchReport
from node.services.exchange.rooms import Rooms
from node.services.exchange.transfer import Transfer
from node.services.limits.service import LimitsService
from protocols.errors import LocalProtocolError
from protocols.exchange.acquaintances import Acquaintances, alike
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import EXCHANGE_PROTOCOL
from protocols.ids import Digest, PeerId, RecipeId
from protocols.limits.config import Purpose

__all__ = ["ExchangeService", "ExchangeStatistics", "FetchProgress", "FetchReport"]

log = logging.getLogger("herd.exchange")


@attrs.frozen
class ExchangeStatistics:
    """Counters since the start, and what stands now.

    `received_bytes` is all that came over chunk links: what was stored, unneeded (duplicate) or refused, and what
    still waits for the disk.
    """

    transfers: int
    transfers_verified_total: int
    transfers_failed_total: int
    givers: int
    askers: int
    received_bytes: int
    stored_bytes: int
    duplicate_bytes: int
    refused_bytes: int
    refused_chunks_total: int
    served_bytes: int
    served_chunks_total: int
    outstanding_bytes: int
    serve_buffered_bytes: int


class ExchangeService:
    """One a node. `run` is started once, `fetch` works while it runs. `carrier` is how chunks travel.

    `nearness` ranks the peers, 0 for the nearest; `known` is what was learned of them.
    """

    def __init__(
        self,
        transport: Transport,
        blobs: Blobs,
        blame: BlameLedger,
        bus: EventBus,
        config: ExchangeConfig,
        peer_id: PeerId,
        rng: Random,
        *,
        carrier: ChunkCarrier,
        nearness: Callable[[PeerId], int] = alike,
        limits: LimitsService | None = None,
    ) -> None:
        self._transport = transport
        self._carrier = carrier
        self._budget = AskBudget(limits) if limits is not None else None
        self._giving = GivingSide(blobs, bus, config, limits)
        self._asking = AskingSide(transport, self._carrier, blame, config, rng, self._budget)
        self.known = Acquaintances(self._asking.paces, nearness)
        self._rooms = Rooms(self._asking, self._giving, blobs, blame, self.known, config, peer_id, rng)
        self._transfers: dict[Digest, Transfer] = {}
        self._nursery: trio.Nursery | None = None
        self._verified_total = 0
        self._failed_total = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and let transfers run, until cancelled; then what is on its way in stays for a resume."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._asking.start(nursery)
            if self._budget is not None:
                nursery.start_soon(self._ask_when_due, self._budget)
            self._transport.serve(EXCHANGE_PROTOCOL, self._giving.serve_control)
            self._carrier.serve(self._giving.serve_link)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None  # Nobody starts a transfer in a nursery that is closing.

    async def _ask_when_due(self, budget: AskBudget) -> None:
        while True:
            await budget.wait_due()
            self._asking.look_again()

    async def fetch(
        self,
        digest: Digest,
        size_bytes: int,
        *,
        recipe_id: RecipeId | None = None,
        sources: Callable[[], Sequence[PeerId]],
        on_progress: Callable[[FetchProgress], None] | None = None,
        priority: int | Callable[[], int] = 0,
        purpose: Purpose = Purpose.PULL,
    ) -> FetchReport:
        """Make a blob of `size_bytes` whole and verified in the store, from the peers that `sources` names.

        `sources` is asked again every `sources_interval_s` and when a peer is lost, preferred first. Fetches of one
        digest at a time share one transfer, and its report. Cancelling keeps what is here for a later fetch.
        While a transfer of higher `priority` can use what a peer gives, lower ones get none of it; equals take turns.
        One that changes meanwhile is given as a function.
        `purpose` chooses the limits, here and at the givers; who joins a running transfer has that one's.
        Raises TransferFailed, VerificationFailed when all that was offered was wrong, or the StoreError that
        kept the blob from being stored.
        """
        transfer = await self._join(digest, size_bytes, recipe_id, purpose)
        key = object()
        transfer.join(key, sources, priority if callable(priority) else partial(int, priority))
        try:
            await _follow(transfer, on_progress)
        finally:
            transfer.part(key)
            if transfer.leaving:
                # The last one sees to it that what is here is durable before it goes.
                with trio.CancelScope(shield=True):
                    await transfer.ended.wait()
        if transfer.report is not None:
            return transfer.report
        raise transfer.failure or HerdError(f"{digest} did not come in: the node is stopping")

    def statistics(self) -> ExchangeStatistics:
        """How much travelled, and what goes on now."""
        giving, asking, counters = self._giving, self._asking, self._rooms.counters
        return ExchangeStatistics(
            transfers=len(self._transfers),
            transfers_verified_total=self._verified_total,
            transfers_failed_total=self._failed_total,
            givers=asking.givers,
            askers=giving.askers,
            received_bytes=asking.counters.received_bytes,
            stored_bytes=counters.stored_bytes,
            duplicate_bytes=counters.duplicate_bytes + asking.counters.unneeded_bytes,
            refused_bytes=counters.refused_bytes,
            refused_chunks_total=counters.refused_chunks,
            served_bytes=giving.counters.served_bytes,
            served_chunks_total=giving.counters.served_chunks,
            outstanding_bytes=asking.paces.outstanding_bytes,
            serve_buffered_bytes=giving.buffered_bytes,
        )

    async def _join(self, digest: Digest, size_bytes: int, recipe_id: RecipeId | None, purpose: Purpose) -> Transfer:
        while (transfer := self._transfers.get(digest)) is not None:
            if not transfer.leaving:
                if transfer.size_bytes != size_bytes:
                    raise HerdError(f"{digest} comes in with {transfer.size_bytes} bytes, not {size_bytes}")
                return transfer
            await transfer.ended.wait()
        if self._nursery is None:
            raise LocalProtocolError("nothing is fetched before the exchange runs or after it has ended")
        transfer = self._transfers[digest] = Transfer(digest, size_bytes, recipe_id, self._rooms, purpose.value)
        self._nursery.start_soon(self._run_transfer, transfer)
        return transfer

    async def _run_transfer(self, transfer: Transfer) -> None:
        try:
            await transfer.run()
        finally:
            if self._transfers.get(transfer.digest) is transfer:
                del self._transfers[transfer.digest]
            self._verified_total += transfer.report is not None
            self._failed_total += transfer.failure is not None


async def _follow(transfer: Transfer, on_progress: Callable[[FetchProgress], None] | None) -> None:
    told: FetchProgress | None = None
    while True:
        progressed = transfer.progressed
        if on_progress is not None and transfer.progress is not told:
            told = transfer.progress
            on_progress(told)
        if transfer.ended.is_set():
            return
        await progressed.wait()
