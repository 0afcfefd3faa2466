"""A world and what is wrong in it now: faults as plans name them, and the stage on which they are played."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

import attrs
import trio

from protocols.ids import Digest, PeerId
from simnet.report import FaultShown
from simnet.world import World

GRACE_S = 30.0
"""So long after a fault, news of it still travel: a death that is told late is no false one."""

BOOTSTRAP_HOSTS = (1, 2, 3)


@attrs.frozen
class Fault:
    """At a virtual second something happens to some hosts and lasts `for_s`; `value` as its kind says."""

    at_s: float
    kind: str
    hosts: tuple[int, ...] = ()
    for_s: float = 0.0
    value: float = 0.0

    @property
    def ends_s(self) -> float:
        """When it is over, or, when it stays, when it began."""
        return self.at_s + self.for_s

    def __str__(self) -> str:
        names = ", ".join(f"h{number}" for number in self.hosts)
        lasting = f" for {self.for_s:g} s" if self.for_s else ""
        return f"{self.kind}{f' of {names}' if names else ''}{f' ({self.value:g})' if self.value else ''}{lasting}"


Plan = tuple[Fault, ...]


class Stage:
    """A world and what is wrong in it now. `on_end` hears when a fault is over.

    `parted` is how many faults there are now that keep live hosts from each other.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.shown: list[FaultShown] = []
        self.lying: dict[int, float] = {}
        self.rotten: dict[tuple[int, Digest], None] = {}
        self.full: dict[int, None] = {}
        self.impaired_until: dict[int, float] = {}
        self.last_disturbed_s = 0.0
        self.parted = 0
        self.on_end: Callable[[Fault], object] | None = None
        self._starting: dict[int, None] = {}
        self._cuts: Counter[tuple[PeerId, PeerId]] = Counter()

    def impair(self, hosts: Sequence[int], until_s: float) -> None:
        """Until then, and a grace longer, nobody need hold these for live and connected."""
        for number in hosts:
            self.impaired_until[number] = max(self.impaired_until.get(number, 0.0), until_s + GRACE_S)

    def impaired(self, number: int) -> bool:
        """Whether a host may be taken for dead without blame, or takes others so."""
        return self.impaired_until.get(number, 0.0) > trio.current_time()

    async def start(self, number: int) -> None:
        """Start a host's node unless it runs or starts already."""
        if self.world.hosts[number].node is None and number not in self._starting:
            self._starting[number] = None
            try:
                through = [each for each in BOOTSTRAP_HOSTS if each in self.world.hosts]
                await self.world.start(number, bootstrap=through)
            finally:
                del self._starting[number]

    async def start_all(self, hosts: Sequence[int]) -> None:
        """Start several at once."""
        async with trio.open_nursery() as nursery:
            for number in hosts:
                nursery.start_soon(self.start, number)

    def separate(self, some: Sequence[int], others: Sequence[int], *, oneway: bool = False) -> None:
        """Nothing passes between two groups, or from one to the other; each separation is undone by its `rejoin`."""
        verb = self.world.conditions.partition_oneway if oneway else self.world.conditions.partition
        verb(self.peers(some), self.peers(others))
        self._cuts.update(self._pairs(some, others, oneway))

    def rejoin(self, some: Sequence[int], others: Sequence[int], *, oneway: bool = False) -> None:
        """Undo a `separate`; what others of these still cut stays so."""
        self._cuts.subtract(self._pairs(some, others, oneway))
        self._cuts = +self._cuts
        self.world.conditions.repair(self.peers(some), self.peers(others))
        for sender, receiver in [*self._pairs(some, others), *self._pairs(others, some)] if self._cuts else ():
            if (sender, receiver) in self._cuts:
                self.world.conditions.partition_oneway([sender], [receiver])

    def peers(self, hosts: Sequence[int]) -> list[PeerId]:
        """Their names."""
        return [self.world.hosts[number].peer for number in hosts]

    def others(self, hosts: Sequence[int]) -> list[int]:
        """All hosts but these."""
        return [number for number in self.world.hosts if number not in hosts]

    def _pairs(self, some: Sequence[int], others: Sequence[int], oneway: bool = True) -> list[tuple[PeerId, PeerId]]:
        pairs = list(product(self.peers(some), self.peers(others)))
        return pairs if oneway else pairs + [(other, one) for one, other in pairs]
