"""The membership service: gives the pure core its datagrams, streams and timers, and others the list of members."""

import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

import trio

from node.blame import BlameLedger
from node.driver import Driver
from node.errors import UsageError
from node.events import EventBus, MemberChanged
from node.ports import Datagrams, SmallFile, Stream, Transport, TransportError
from node.services.membership.joining import Joiner, parse_bootstrap
from node.services.membership.memory import MemberMemory
from protocols.effects import Blame, Effect, Received, Send
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId
from protocols.membership.config import MembershipConfig
from protocols.membership.events import (
    AnswerOverStream,
    Leave,
    LocalChanged,
    MemberChangedEffect,
    ProbeOverStream,
    PushPull,
    PushPullAnswered,
    ReceivedOverStream,
    Started,
    StreamProbeAnswered,
)
from protocols.membership.membership import Membership, MembershipStatistics
from protocols.membership.messages import MESSAGES, PROTOCOL, TABLE_SIZE_BYTES_MAX, Table
from protocols.membership.record import MemberRecord, fitting_addresses
from protocols.membership.table import Member
from protocols.signing import Signer

log = logging.getLogger("herd.membership")

LEAVE_TIMEOUT_S = 1.0
SAVE_DELAY_S = 2.0
"""Changes of the member list are written to members.json together, so long after the first of them."""

STREAMS_SERVED_MAX = 32
STREAMS_SERVED_PER_PEER_MAX = 4
"""More than a member that keeps to the protocol asks at once; one that asks and says nothing waits for itself."""

STREAMS_ASKED_MAX = 32
FREE_DISK_CHANGE_MIN = 0.01

AliveCallback = Callable[[PeerId, bool], None]


class MembershipService:
    """One node's membership. `run` is started once and owns everything; the queries may be called at any time.

    `remembered` is the file of members met. `labels` are checked here: UsageError names the limit. `free_disk_bytes` is
    asked rarely and must not wait.
    """

    def __init__(
        self,
        transport: Transport,
        datagrams: Datagrams,
        config: MembershipConfig,
        peer_id: PeerId,
        signer: Signer,
        rng: random.Random,
        bus: EventBus,
        blame: BlameLedger,
        remembered: SmallFile | None,
        labels: dict[str, str],
        free_disk_bytes: Callable[[], int],
        bootstrap: Sequence[str],
        *,
        wall_time: Callable[[], float] = time.time,
    ) -> None:
        self._transport, self._datagrams = transport, datagrams
        self._config, self._bus, self._blame = config, bus, blame
        self._free_disk_bytes = free_disk_bytes
        self._bootstrap = [parse_bootstrap(text) for text in bootstrap]
        self._memory = MemberMemory(remembered, config.remembered_members_max, config.forget_after_s)
        record = MemberRecord(
            peer_id,
            # Milliseconds since 1970: above every incarnation of an earlier life.
            incarnation=int(wall_time() * 1000),
            addresses=fitting_addresses(transport.addresses()),
            datagram_address=datagrams.address(),
            labels=dict(labels),
            free_disk_bytes=max(0, free_disk_bytes()),
        )
        try:
            self._core = Membership(
                config, record, rng, signer, payload_size_bytes_max=datagrams.payload_size_bytes_max()
            )
        except LocalProtocolError as error:
            raise UsageError(str(error)) from error
        self._driver = Driver(self._core, self._perform)
        self._joiner = Joiner(config, peer_id, self._exchange, self._core.member)
        self._callbacks: list[AliveCallback] = []
        self._answers: dict[Hashable, object] = {}
        self._asking: dict[Hashable, None] = {}
        self._asked = trio.Event()
        self._serving = trio.CapacityLimiter(STREAMS_SERVED_MAX)
        self._served: Counter[PeerId] = Counter()
        self._changed = trio.Event()
        self._running = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the mesh until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._transport.serve(PROTOCOL, self._serve)
                self._driver.feed(Started())
                nursery.start_soon(self._driver.run)
                nursery.start_soon(self._receive)
                nursery.start_soon(self._refresh)
                nursery.start_soon(self._remember)
                self._running.set()
                task_status.started()
        finally:
            self._nursery = None
            self._memory.save(self._core.members())

    async def join(self) -> None:
        """Find the mesh through bootstrap peers and remembered members; `run` must be running.

        Returns when one of them answered; also when none is reachable (they are tried on in the background and one
        warning is logged). JoinRefused when no bootstrap peer admits this node.
        """
        await self._running.wait()
        if self._nursery is not None:
            await self._joiner.join(self._nursery, self._bootstrap, self._memory.load())

    def meet(self, multiaddr: str) -> None:
        """A possible member was found (multicast DNS): `/ip4/../tcp/../p2p/ID`. Nonsense is ignored."""
        try:
            peer, address = parse_bootstrap(multiaddr)
        except UsageError as error:
            log.debug("found an unusable address: %s", error)
            return
        if self._nursery is not None:
            self._joiner.meet(self._nursery, peer, (address,))

    async def leave(self) -> None:
        """Tell a few members that this node goes on purpose; takes at most 1 s. Nothing when not running."""
        if self._nursery is None:
            await trio.lowlevel.checkpoint()
            return
        self._driver.feed(Leave())
        with trio.move_on_after(LEAVE_TIMEOUT_S):
            while self._asking:
                self._asked = trio.Event()
                await self._asked.wait()

    def alive(self) -> list[PeerId]:
        """Members taking part, without this node, sorted; as in SWIM a suspected one counts until it is dead."""
        return self._core.alive()

    def member(self, peer: PeerId) -> Member | None:
        """What is known of one peer."""
        return self._core.member(peer)

    def members(self) -> list[Member]:
        """Everyone known, this node first."""
        return self._core.members()

    def statistics(self) -> MembershipStatistics:
        """Counts since the start, and how healthy this node finds itself."""
        return self._core.statistics()

    def subscribe_alive(self, callback: AliveCallback) -> None:
        """Call `callback(peer, True)` when a peer begins to take part and `(peer, False)` when it died or left."""
        self._callbacks.append(callback)

    def update_local(self, *, labels: dict[str, str] | None = None, free_disk_bytes: int | None = None) -> None:
        """Announce new labels or free disk space. UsageError naming the limit when they do not fit."""
        try:
            self._driver.feed(LocalChanged(labels=labels, free_disk_bytes=free_disk_bytes))
        except LocalProtocolError as error:
            raise UsageError(str(error)) from error

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                member = self._core.member(to)
                if member is not None and member.record.datagram_address:
                    self._datagrams.send(to, member.record.datagram_address, MESSAGES.encode(message))
            case MemberChangedEffect(member, before):
                self._member_changed(member, before)
            case ProbeOverStream(peer, sequence):
                if not self._begin(("probe", sequence), self._probe_over_stream, effect):
                    self._driver.feed(StreamProbeAnswered(peer, sequence, None))
            case PushPull(peer):
                self._begin(("push_pull", peer, type(effect.message)), self._push_pull, effect)
            case AnswerOverStream(token, message):
                self._answers[token] = message
            case Blame(peer, reason, detail):
                self._blame.blame(peer, reason, detail)

    def _member_changed(self, member: Member, before: Member | None) -> None:
        if not member.record.left:
            self._learn(member.peer, member.record.addresses)
        if before is None or before.state != member.state:
            log.info("member %s is %s (incarnation %d)", member.peer, member.state, member.record.incarnation)
            self._bus.publish(MemberChanged(member.peer, member.state, member.record.incarnation))
        self._changed.set()
        takes_part = member.reachable
        if takes_part == (before is not None and before.reachable):
            return
        for callback in self._callbacks:
            try:
                callback(member.peer, takes_part)
            except Exception:  # boundary: a listener's bug must not stop the failure detector.
                log.exception("a listener to members failed")

    def _learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        # A bootstrap address was given by a person: it may be the only one that leads there from this host.
        given = [address for bootstrap, address in self._bootstrap if bootstrap == peer]
        self._transport.learn(peer, list(dict.fromkeys([*addresses, *given])))

    def _begin(self, key: Hashable, ask: Callable[[Any], Awaitable[None]], effect: Effect) -> bool:
        """Start one stream conversation; False when it is going on already or too many are."""
        if self._nursery is None or key in self._asking or len(self._asking) >= STREAMS_ASKED_MAX:
            return False
        self._asking[key] = None
        self._nursery.start_soon(self._run_asking, key, ask, effect)
        return True

    async def _run_asking(self, key: Hashable, ask: Callable[[Any], Awaitable[None]], effect: Effect) -> None:
        try:
            await ask(effect)
        finally:
            del self._asking[key]
            self._asked.set()

    async def _probe_over_stream(self, probe: ProbeOverStream) -> None:
        answer = None
        try:
            answer = await self._ask(probe.peer, probe.message, probe.timeout_s)
        except TransportError as error:
            log.debug("stream probe of %s failed: %s", probe.peer, error)
        except RemoteProtocolError as error:
            self._blame.blame(probe.peer, "membership", str(error))
        self._driver.feed(StreamProbeAnswered(probe.peer, probe.sequence, answer))

    async def _push_pull(self, effect: PushPull) -> None:
        try:
            answer = await self._ask(effect.peer, effect.message, self._config.stream_timeout_s)
        except TransportError as error:
            log.debug("push/pull with %s failed: %s", effect.peer, error)
        except RemoteProtocolError as error:
            self._blame.blame(effect.peer, "membership", str(error))
        else:
            self._driver.feed(PushPullAnswered(effect.peer, answer, effect.message))

    async def _exchange(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Push/pull with a peer that is no member yet; what went wrong is raised."""
        member = self._core.member(peer)
        self._learn(peer, [*addresses, *(member.record.addresses if member is not None else ())])
        table = self._core.table_message(trio.current_time())
        answer = await self._ask(peer, table, self._config.stream_timeout_s)
        if not isinstance(answer, Table):
            raise RemoteProtocolError(f"{peer} answered a table with a {type(answer).__name__}")
        self._driver.feed(PushPullAnswered(peer, answer))

    async def _ask(self, peer: PeerId, question: object, timeout_s: float) -> object:
        """One question and its answer on a stream of their own; TransportError or RemoteProtocolError when none."""
        with trio.move_on_after(timeout_s):
            stream = await self._transport.open(peer, PROTOCOL, timeout_s=timeout_s)
            try:
                await stream.send(MESSAGES.encode(question))
                await stream.finish()
                frame = await stream.receive(TABLE_SIZE_BYTES_MAX)
            finally:
                await stream.abort()
            if frame is None:
                raise TransportError(f"peer {peer} ended the stream without an answer")
            return MESSAGES.decode(frame)
        raise TransportError(f"peer {peer} did not answer within {timeout_s:g} s")

    async def _serve(self, stream: Stream) -> None:
        """One inbound question. A malformed one is raised, so that the transport blames it on the peer."""
        if self._served[stream.peer] >= STREAMS_SERVED_PER_PEER_MAX:
            raise TransportError(f"{stream.peer} asks over {STREAMS_SERVED_PER_PEER_MAX} things at once")
        self._served[stream.peer] += 1
        try:
            with trio.move_on_after(self._config.stream_timeout_s):
                async with self._serving:
                    await self._answer(stream)
        finally:
            self._served[stream.peer] -= 1
            if not self._served[stream.peer]:
                del self._served[stream.peer]

    async def _answer(self, stream: Stream) -> None:
        frame = await stream.receive(TABLE_SIZE_BYTES_MAX)
        if frame is None:
            return
        token = object()
        self._driver.feed(ReceivedOverStream(stream.peer, MESSAGES.decode(frame), token))
        answer = self._answers.pop(token, None)
        if answer is not None:
            await stream.send(MESSAGES.encode(answer))

    async def _receive(self) -> None:
        while True:
            sender, payload = await self._datagrams.receive()
            try:
                message = MESSAGES.decode(payload)
            except RemoteProtocolError as error:
                self._blame.blame(sender, "membership", str(error))
                continue
            self._driver.feed(Received(sender, message))

    async def _refresh(self) -> None:
        """Announce what changed about this host: free disk space (by more than 1 %) and addresses."""
        while True:
            await trio.sleep(self._config.refresh_interval_s)
            record = self._core.members()[0].record
            free_bytes = max(0, self._free_disk_bytes())
            changed = abs(free_bytes - record.free_disk_bytes) > FREE_DISK_CHANGE_MIN * record.free_disk_bytes
            addresses, datagram_address = fitting_addresses(self._transport.addresses()), self._datagrams.address()
            change = LocalChanged(
                addresses=addresses if addresses != record.addresses else None,
                datagram_address=datagram_address if datagram_address != record.datagram_address else None,
                free_disk_bytes=free_bytes if changed else None,
            )
            if change != LocalChanged():
                self._driver.feed(change)

    async def _remember(self) -> None:
        while True:
            await self._changed.wait()
            await trio.sleep(SAVE_DELAY_S)
            self._changed = trio.Event()
            self._memory.save(self._core.members())
