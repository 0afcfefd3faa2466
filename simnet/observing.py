"""What is seen of a world from outside, exactly and at little cost: who holds whom for alive, and what travels."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import attrs
import trio

from protocols.ids import PeerId
from simnet.report import Convergence, Traffic
from simnet.stage import Stage
from simnet.world import Host, Node, World


@attrs.define
class _Pending:
    what: str
    since_s: float


class Views:
    """Each live node's list of live others against the truth, kept up to date by what the nodes themselves tell."""

    def __init__(self, world: World, stage: Stage) -> None:
        self.false_positives = 0
        self.convergences: list[Convergence] = []
        self.changed_s = 0.0
        self._world = world
        self._stage = stage
        self._live: dict[PeerId, int] = {}
        self._sees: dict[int, dict[PeerId, None]] = {}
        self._wrong_of: Counter[int] = Counter()
        self._wrong_about: Counter[PeerId] = Counter()
        self._disagreeing: dict[int, None] = {}
        self._changes: dict[PeerId, _Pending] = {}
        self._heals: list[_Pending] = []

    def agreement(self) -> float:
        """Which part of the live nodes sees exactly the live others."""
        return 1.0 - len(self._disagreeing) / len(self._live) if self._live else 1.0

    def disagreements(self) -> list[str]:
        """Who is wrong about whom, in words; a few of them."""
        told = []
        for number in list(self._disagreeing)[:3]:
            missing = [f"h{n}" for peer, n in self._live.items() if n != number and peer not in self._sees[number]]
            numbers = {host.peer: host.number for host in self._world.hosts.values()}
            extra = [f"h{numbers[peer]}" for peer in self._sees[number] if peer not in self._live]
            told.append(
                f"h{number} misses {', '.join(missing) or 'nobody'} and believes in {', '.join(extra) or 'none'}"
            )
        return told

    def began(self, host: Host, node: Node) -> None:
        """A life begins; its services do not run yet."""
        number, peer = host.number, host.peer
        self._stage.impair((number,), trio.current_time())
        for other in self._live.values():
            self._mark(other, peer, right=peer in self._sees[other], was_right=peer not in self._sees[other])
        self._sees[number] = {}
        for other_peer in self._live:
            self._mark(number, other_peer, right=False, was_right=True)
        self._live[peer] = number
        node.services.membership.subscribe_alive(partial(self._changed, node, number))
        self._expect(peer, f"{host.name} started")

    def ended(self, host: Host, crashed: bool) -> None:
        """A life is over."""
        number, peer = host.number, host.peer
        del self._live[peer]
        for other_peer in {**self._live, **self._sees[number]}:
            if (other_peer in self._live) != (other_peer in self._sees[number]):
                self._mark(number, other_peer, right=True, was_right=False)
        del self._sees[number]
        for other in self._live.values():
            self._mark(other, peer, right=peer not in self._sees[other], was_right=peer in self._sees[other])
        self._expect(peer, f"{host.name} {'crashed' if crashed else 'left'}")

    def expect_agreement(self, what: str) -> None:
        """Measure how long it takes from now until all agree."""
        self._heals.append(_Pending(what, trio.current_time()))
        self._settle()

    def close(self) -> None:
        """The run is over: what did not converge never will."""
        for pending in [*self._changes.values(), *self._heals]:
            self.convergences.append(Convergence(pending.what, pending.since_s, None))
        self.convergences.sort(key=lambda convergence: convergence.since_s)

    def _expect(self, peer: PeerId, what: str) -> None:
        # Overtaken by the next change, an older one is no longer waited for.
        self.changed_s = trio.current_time()
        self._changes[peer] = _Pending(what, trio.current_time())
        self._arrived(peer)

    def _changed(self, node: Node, number: int, peer: PeerId, takes_part: bool) -> None:
        host = self._world.hosts[number]
        if host.node is not node or number not in self._sees:
            return
        alive = peer in self._live
        was_right = (peer in self._sees[number]) == alive
        if takes_part:
            self._sees[number][peer] = None
        else:
            self._sees[number].pop(peer, None)
            self._look_for_false_positive(node, number, peer)
        self._mark(number, peer, right=takes_part == alive, was_right=was_right)

    def _look_for_false_positive(self, node: Node, number: int, peer: PeerId) -> None:
        other = self._live.get(peer)
        member = node.services.membership.member(peer)
        if other is None or member is None or member.state != "dead":
            return
        if not self._stage.impaired(number) and not self._stage.impaired(other):
            self.false_positives += 1
            self._world.trace.tell(f"h{number}", f"false positive: h{other} is alive")

    def _mark(self, number: int, peer: PeerId, *, right: bool, was_right: bool) -> None:
        if right == was_right:
            return
        step = -1 if right else 1
        self._wrong_of[number] += step
        self._wrong_about[peer] += step
        if self._wrong_of[number] == 0:
            self._disagreeing.pop(number, None)
        else:
            self._disagreeing[number] = None
        self._arrived(peer)
        self._settle()

    def _arrived(self, peer: PeerId) -> None:
        if self._wrong_about[peer] == 0 and (pending := self._changes.pop(peer, None)) is not None:
            took_s = trio.current_time() - pending.since_s
            self.convergences.append(Convergence(pending.what, pending.since_s, took_s))

    def _settle(self) -> None:
        if self._disagreeing:
            return
        for pending in self._heals:
            took_s = trio.current_time() - pending.since_s
            self.convergences.append(Convergence(pending.what, pending.since_s, took_s))
        self._heals.clear()


class TrafficMeter:
    """What each host sends and receives, over all lives of its node."""

    def __init__(self, world: World) -> None:
        self._sent: Counter[PeerId] = Counter()
        self._received: Counter[PeerId] = Counter()
        self._datagrams: Counter[PeerId] = Counter()
        self._chunks_sent: Counter[PeerId] = Counter()
        self._chunks_received: Counter[PeerId] = Counter()
        world.network.on_frame = self._counting(world.network.on_frame)
        world.network.on_chunk = self._chunk
        world.datagrams.on_datagram = self._counting(world.datagrams.on_datagram, self._datagrams)

    def _counting(
        self, inner: Callable[[PeerId, PeerId, int], object] | None, each: Counter[PeerId] | None = None
    ) -> Callable[[PeerId, PeerId, int], object]:
        sent, received = self._sent, self._received

        def count(sender: PeerId, receiver: PeerId, size_bytes: int) -> None:
            sent[sender] += size_bytes
            received[receiver] += size_bytes
            if each is not None:
                each[sender] += 1
            if inner is not None:
                inner(sender, receiver, size_bytes)

        return count

    def _chunk(self, sender: PeerId, receiver: PeerId, size_bytes: int) -> None:
        self._chunks_sent[sender] += size_bytes
        self._chunks_received[receiver] += size_bytes

    def of(self, host: Host) -> Traffic:
        """What a host sent and received until now; chunks count as they are declared to be."""
        peer = host.peer
        return Traffic(
            self._sent[peer],
            self._received[peer],
            self._datagrams[peer],
            self._chunks_sent[peer],
            self._chunks_received[peer],
        )

    def control_sent_bytes(self, host: Host) -> int:
        """What a host sent besides chunks."""
        return self._sent[host.peer] - self._chunks_sent[host.peer]
