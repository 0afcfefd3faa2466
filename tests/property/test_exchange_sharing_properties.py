"""Several transfers that share `Paces`: all end, each chunk once, and nothing goes to a lower priority out of turn."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.bits import Bits
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.paces import Paces
from protocols.exchange.picker import Picker
from protocols.exchange.picks import Ask, ChunkArrived, ChunkWritten, PeerReady, RoomFreed, WantsEnded, Withdraw
from protocols.ids import PeerId

CHUNK = 1 << 20


class Shared:
    """Peers that hold all of several blobs, each with one queue for all transfers."""

    def __init__(self, priorities: list[int], peers: int, chunks: int, seed: int) -> None:
        config = ExchangeConfig(outstanding_start_bytes=2 * CHUNK, outstanding_bytes_max=4 * CHUNK)
        self.rng = random.Random(seed)
        self.paces = Paces(config)
        self.chunks = chunks
        self.now = 0.0
        self.peers = [PeerId(f"peer{number}") for number in range(peers)]
        self.queue: dict[PeerId, list[tuple[int, int]]] = {peer: [] for peer in self.peers}
        self.withdrawn: set[tuple[PeerId, int, int]] = set()
        self.stored: list[set[int]] = [set() for _ in priorities]
        self.pickers = [
            Picker((CHUNK,) * chunks, Bits(chunks), 0, self.paces, config, random.Random(seed), priority)
            for priority in priorities
        ]
        for peer in self.peers:
            for number in self.by_priority():
                self.feed(number, PeerReady(peer, Bits.full(chunks)))

    def by_priority(self) -> list[int]:
        return sorted(range(len(self.pickers)), key=lambda number: -self.pickers[number].priority)

    def feed(self, number: int, event: object) -> None:
        for effect in self.pickers[number].handle(event, self.now):  # type: ignore[arg-type]
            match effect:
                case Ask(peer, indices):
                    for other in self.pickers:
                        if other.priority > self.pickers[number].priority:
                            free = self.chunks - len(self.stored[self.pickers.index(other)]) - len(self.asked(other))
                            assert free <= 0, "a higher priority had more to ask and this peer had room"
                    self.queue[peer] += [(number, index) for index in indices]
                case Withdraw(peer, indices):
                    self.withdrawn |= {(peer, number, index) for index in indices}

    def asked(self, picker: Picker) -> set[int]:
        return {index for peer in self.peers for index in picker.asked_of(peer)}

    def answer(self, peer: PeerId) -> None:
        number, index = self.queue[peer].pop(0)
        self.now += 0.1
        if (peer, number, index) in self.withdrawn:
            self.withdrawn.discard((peer, number, index))
            self.paces.ended(peer, CHUNK, came=False)
            self.feed(number, WantsEnded(peer, (index,), False))
        else:
            self.paces.came(peer, CHUNK, self.now)
            self.feed(number, ChunkArrived(peer, index))
            assert index not in self.stored[number], "withdrawn copies end; nothing comes twice"
            self.stored[number].add(index)
            self.paces.ended(peer, CHUNK, came=True)
            self.feed(number, ChunkWritten(peer, index))
        for other in self.by_priority():
            self.feed(other, RoomFreed(peer))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 20), st.integers(0, 99))
def test_all_transfers_end_and_a_higher_priority_is_asked_first(
    priorities: list[int], peers: int, chunks: int, seed: int
) -> None:
    shared = Shared(priorities, peers, chunks, seed)
    for _ in range(50 * chunks * len(priorities) + 100):
        busy = [peer for peer in shared.peers if shared.queue[peer]]
        if not busy:
            break
        shared.answer(shared.rng.choice(busy))
    assert all(picker.complete() for picker in shared.pickers), "nobody starved"
    assert shared.paces.outstanding_bytes == 0
