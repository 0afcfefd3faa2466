"""What a checker is, and what it sees of a run."""

from typing import Protocol

import attrs

from protocols.ids import Digest
from simnet.observing import TrafficMeter, Views
from simnet.stage import Stage
from simnet.workload import Workload
from simnet.world import Host, World


class Violated(Exception):
    """An invariant did not hold; the text says where and how, in a sentence."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


@attrs.frozen
class Seen:
    """All that a checker may look at."""

    world: World
    stage: Stage
    views: Views
    traffic: TrafficMeter
    workload: Workload
    settle_s: float
    control_bytes_per_s_max: float


class Checker(Protocol):
    """One invariant of a run. Each verb raises `Violated`; a checker that did so is not asked again."""

    name: str

    def begin(self, seen: Seen) -> None:
        """The world exists, nothing runs in it yet."""
        ...

    def served(self, host: Host, digest: Digest, index: int, chunk: bytes) -> None:
        """A host's node read a chunk to serve it."""
        ...

    async def step(self) -> None:
        """Another virtual second went by."""
        ...

    async def end(self) -> None:
        """The run is over: the faults stopped long ago, nodes still run."""
        ...


class Quiet:
    """The verbs that a checker has no use for."""

    def served(self, host: Host, digest: Digest, index: int, chunk: bytes) -> None:
        """Nothing to see in a chunk."""

    async def step(self) -> None:
        """Nothing to see in between."""
