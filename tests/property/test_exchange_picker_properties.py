"""The picker against any order of answers, losses and lies: every chunk comes, once where that is promised."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.bits import Bits
from protocols.effects import CancelTimer, SetTimer, TimerFired
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.paces import Paces
from protocols.exchange.picker import Picker
from protocols.exchange.picks import (
    Ask,
    ChunkArrived,
    ChunkDropped,
    ChunkWritten,
    PeerGained,
    PeerLost,
    PeerReady,
    RoomFreed,
    WantsEnded,
    Withdraw,
)
from protocols.ids import PeerId

CHUNK = 1 << 20
SEED = PeerId("seed")


class World:
    """Plays every peer: keeps their queues, and checks each ask against the rules as it is made."""

    def __init__(self, chunk_count: int, held: list[int], holders: dict[PeerId, list[int]], seed: int) -> None:
        self.count = chunk_count
        self.sizes = (CHUNK,) * chunk_count
        self.config = ExchangeConfig(outstanding_start_bytes=2 * CHUNK, outstanding_bytes_max=4 * CHUNK)
        self.paces = Paces(self.config)
        self.rng = random.Random(seed)
        self.picker = Picker(self.sizes, Bits(chunk_count, held), 0, self.paces, self.config, self.rng)
        self.now = 0.0
        self.stored = set(held)
        self.checking: set[int] = set()  # arrived, and neither stored nor thrown away
        self.lost: set[PeerId] = set()
        self.timer_at: float | None = None
        self.has = {peer: set(chunks) for peer, chunks in holders.items()}
        self.queue: dict[PeerId, list[int]] = {peer: [] for peer in holders}
        self.withdrawn: dict[PeerId, set[int]] = {peer: set() for peer in holders}
        self.endgame = False
        for peer, chunks in holders.items():
            self.feed(PeerReady(peer, Bits(chunk_count, sorted(chunks))))

    def feed(self, event: object) -> None:
        asked: list[int] = []
        for effect in self.picker.handle(event, self.now):  # type: ignore[arg-type]
            match effect:
                case Ask(peer, indices):
                    self.check_asks(peer, indices)
                    asked += indices
                case Withdraw(peer, indices):
                    for index in indices:
                        assert index in self.queue[peer], "only what was asked is taken back"
                        self.withdrawn[peer].add(index)
                case SetTimer(_, delay_s):
                    self.timer_at = self.now + delay_s
                case CancelTimer():
                    self.timer_at = None

        self.check_copies(asked)

    def check_copies(self, asked: list[int]) -> None:
        for index in asked:
            askers = [p for p in self.queue if index in self.queue[p] and index not in self.withdrawn[p]]
            assert len(askers) <= 2
            if len(askers) == 2:
                self.endgame = True
                assert self.everything_is_asked(), "a second copy is asked only when nothing unrequested remains"

    def check_asks(self, peer: PeerId, indices: tuple[int, ...]) -> None:
        assert peer not in self.lost, "a lost peer is never asked"
        for index in indices:
            assert index in self.has[peer], "only what a peer holds is asked of it"
            assert index not in self.stored, "nothing is asked that is here"
            assert index not in self.queue[peer], "a want is asked once until it has ended"
            self.queue[peer].append(index)
        assert sum(len(queue) for queue in self.queue.values()) * CHUNK <= self.config.receive_buffer_bytes
        assert len(self.queue[peer]) * CHUNK <= self.config.outstanding_bytes_max

    def everything_is_asked(self) -> bool:
        wanted = {i for p, queue in self.queue.items() for i in queue if i not in self.withdrawn[p]}
        return set(range(self.count)) == self.stored | wanted | self.checking

    def deliver(self, peer: PeerId, *, wrong: bool = False) -> None:
        index = self.queue[peer].pop(0)
        self.withdrawn[peer].discard(index)
        self.paces.came(peer, CHUNK, self.now)
        self.checking.add(index)
        self.feed(ChunkArrived(peer, index))
        if wrong:
            self.lose(peer)
        self.checking.discard(index)
        if wrong or index in self.stored:
            self.paces.ended(peer, CHUNK, came=True)
            self.feed(ChunkDropped(peer, index))
        else:
            self.stored.add(index)
            self.paces.ended(peer, CHUNK, came=True)
            self.feed(ChunkWritten(peer, index))
        self.feed(RoomFreed(peer))

    def end(self, peer: PeerId, *, gone: bool) -> None:
        index = self.queue[peer].pop()
        self.withdrawn[peer].discard(index)
        if gone:
            self.has[peer].discard(index)
        self.paces.ended(peer, CHUNK, came=False)
        self.feed(WantsEnded(peer, (index,), gone))

    def end_withdrawn(self, peer: PeerId) -> None:
        index = min(self.withdrawn[peer])
        self.queue[peer].remove(index)
        self.queue[peer].append(index)
        self.end(peer, gone=False)

    def lose(self, peer: PeerId) -> None:
        self.lost.add(peer)
        for _ in self.queue[peer]:
            self.paces.ended(peer, CHUNK, came=False)
        self.queue[peer].clear()
        self.withdrawn[peer].clear()
        self.feed(PeerLost(peer))

    def gain(self, peer: PeerId, index: int) -> None:
        self.has[peer].add(index)
        self.feed(PeerGained(peer, (index,)))

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.timer_at is not None and self.timer_at <= until:
            self.now, self.timer_at = self.timer_at, None
            self.feed(TimerFired("late"))
        self.now = until

    def step(self, choice: int, argument: int) -> None:
        """Something a peer may do, or time, chosen by two numbers."""
        alive = [peer for peer in self.queue if peer not in self.lost]
        peer = alive[argument % len(alive)]
        match choice:
            case 0 | 1 | 2 if self.queue[peer]:
                self.deliver(peer)
            case 3 if self.queue[peer] and peer != SEED:
                self.end(peer, gone=True)
            case 4 if self.withdrawn[peer]:
                self.end_withdrawn(peer)
            case 5 if peer != SEED:
                self.lose(peer)
            case 6:
                self.pass_time(argument / 10)
            case 7 if self.queue[peer] and peer != SEED:
                self.deliver(peer, wrong=True)
            case 8:
                self.gain(peer, argument % self.count)

    def settle(self) -> int:
        """From here on everybody alive answers in turn; how many rounds until all is here."""
        for rounds in range(10 * self.count + 100):
            if self.picker.complete():
                return rounds
            self.pass_time(0.5)
            for peer in list(self.queue):
                if self.queue[peer]:
                    self.deliver(peer)
        raise AssertionError(f"{sorted(set(range(self.count)) - self.stored)} never came")


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(1, 24))
    chunks = st.lists(st.integers(0, count - 1), unique=True)
    holders = {SEED: list(range(count))}
    for number in range(draw(st.integers(0, 3))):
        holders[PeerId(f"peer{number}")] = draw(chunks)
    return World(count, draw(chunks), holders, draw(st.integers(0, 99)))


steps = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 300)), max_size=60)


@settings(max_examples=400, deadline=None)
@given(worlds(), steps)
def test_every_chunk_comes_whatever_peers_do(world: World, doings: list[tuple[int, int]]) -> None:
    for choice, argument in doings:
        world.step(choice, argument)
    world.settle()
    assert world.stored == set(range(world.count))
    for peer, queue in world.queue.items():
        assert world.paces.outstanding_of(peer) == CHUNK * len(queue), "what is outstanding is counted exactly"


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 99))
def test_punctual_peers_are_asked_for_each_chunk_once(count: int, peers: int, seed: int) -> None:
    holders = {PeerId(f"peer{number}"): list(range(count)) for number in range(peers)}
    world = World(count, [], holders, seed)
    delivered = 0
    while not world.picker.complete() and not world.endgame:
        world.pass_time(0.1)
        busy = [peer for peer in world.queue if world.queue[peer]]
        before = len(world.stored)
        peer = world.rng.choice(busy)
        if world.withdrawn[peer] and world.rng.random() < 0.5:
            world.end_withdrawn(peer)
            continue
        world.deliver(peer)
        delivered += 1
        assert len(world.stored) == before + 1, "no chunk came twice before the endgame"
    assert delivered <= count


def test_a_late_peer_is_passed_over_and_what_it_owes_is_asked_elsewhere() -> None:
    slow, quick = PeerId("slow"), PeerId("quick")
    world = World(6, [], {slow: list(range(6)), quick: list(range(6))}, 1)
    while len(world.stored) < 4:
        world.pass_time(0.1)
        if world.queue[quick]:
            world.deliver(quick)
    assert world.queue[slow], "nothing has come from the slow one"

    while not world.picker.complete():
        world.pass_time(1.0)
        if world.queue[quick]:
            world.deliver(quick)
        assert world.now < 15, "its patience is 10 s"

    assert world.withdrawn[slow] == set(world.queue[slow]), "what it still owes was taken back"


def test_what_two_late_peers_owe_is_asked_of_one_other_and_taken_back_from_both() -> None:
    sound, slow, slower = PeerId("sound"), PeerId("slow"), PeerId("slower")
    world = World(2, [], {slow: [0], sound: [0, 1], slower: []}, 1)
    assert (world.queue[sound], world.queue[slow]) == ([1], [0])
    world.gain(slower, 0)
    assert world.queue[slower] == [0], "an endgame: everything is asked, and it was idle"
    world.end(sound, gone=True)
    assert not world.everything_is_asked(), "nobody holds chunk 1 any more"

    world.pass_time(12)

    assert world.queue[sound] == [0]
    assert (world.withdrawn[slow], world.withdrawn[slower]) == ({0}, {0})
