"""What people do in a world: models appear, are pulled until they are there, and are removed. And the true bytes."""

import random

import attrs
import trio

from node.errors import HerdError
from protocols.ids import Digest, digest_of
from protocols.names import ModelName
from simnet.determinism import part_rng
from simnet.manifests import manifest_of
from simnet.scenario import ModelMade, Scenario, Wish
from simnet.selecting import select
from simnet.world import World

RETRY_S = 2.0
"""Somebody whose pull failed asks again after this."""


@attrs.frozen
class MadeModel:
    """A model as it truly is: `size_bytes` is declared, the layers are what really travels."""

    name: str
    layers: tuple[bytes, ...] = attrs.field(repr=False)
    manifest: bytes = attrs.field(repr=False)
    size_bytes: int
    holders: tuple[int, ...]
    at_s: float

    @property
    def digest(self) -> Digest:
        """Of its manifest."""
        return digest_of(self.manifest)


@attrs.define
class Pulled:
    """One host's wish for a model, from when it was first asked for until it was there."""

    host: int
    model: str
    asked_s: float
    done_s: float | None = None
    failures: list[str] = attrs.field(factory=list)


class Workload:
    """A scenario's models and wishes in one world. `acknowledged` is what a node said it has, until it is removed."""

    def __init__(self, world: World, scenario: Scenario, seed: int, nodes: int) -> None:
        self.models: dict[str, MadeModel] = {}
        self.truth: dict[Digest, bytes] = {}
        self.pulls: list[Pulled] = []
        self.acknowledged: dict[tuple[int, str], Digest] = {}
        self._world = world
        self._scenario = scenario
        self._nodes = nodes
        self._seed = seed
        for number, made in enumerate(scenario.models):
            self._make(made, part_rng(seed, "holders", number))
        self._pulling = self._drawn("pulls", scenario.pulls)
        self._removing = self._drawn("removals", scenario.removals)

    def _make(self, made: ModelMade, rng: random.Random) -> None:
        surface = self._scenario.surface
        sizes = {f"own/{made.name}": made.size_bytes, f"base/{made.base}": made.base_size_bytes}
        layers = tuple(
            part_rng(self._seed, "bytes", name).randbytes(max(1, size_bytes // surface.bytes_scale))
            for name, size_bytes in sizes.items()
            if size_bytes
        )
        holders = select(made.hosts, self._nodes, surface.regions, rng)
        size_bytes = sum(len(layer) for layer in layers) * surface.bytes_scale
        self.models[made.name] = MadeModel(made.name, layers, manifest_of(*layers), size_bytes, holders, made.at_s)
        self.truth.update({digest_of(layer): layer for layer in layers})

    def _drawn(self, key: str, wishes: tuple[Wish, ...]) -> list[tuple[float, int, str]]:
        drawn = []
        for number, wish in enumerate(wishes):
            rng = part_rng(self._seed, key, number)
            for host in select(wish.hosts, self._nodes, self._scenario.surface.regions, rng):
                drawn.append((wish.at_s + rng.random() * wish.spread_s, host, wish.model))
        return drawn

    async def run(self) -> None:
        """Do all of it; returns when every wish is fulfilled, so whoever runs it sets an end."""
        async with trio.open_nursery() as nursery:
            for model in self.models.values():
                for host in model.holders:
                    nursery.start_soon(self._hold, model, host)
            for at_s, host, name in self._pulling:
                nursery.start_soon(self._pull, at_s, host, name)
            for at_s, host, name in self._removing:
                nursery.start_soon(self._remove, at_s, host, name)

    async def _hold(self, model: MadeModel, number: int) -> None:
        await trio.sleep_until(model.at_s)
        while (number, model.name) not in self.acknowledged:
            if self._world.hosts[number].models is not None:
                await self._world.hold(number, model.name, *model.layers)
                self.acknowledged[number, model.name] = model.digest
                return
            await trio.sleep(RETRY_S)

    async def _pull(self, at_s: float, number: int, name: str) -> None:
        await trio.sleep_until(at_s)
        wish = Pulled(number, name, trio.current_time())
        self.pulls.append(wish)
        host = self._world.hosts[number]
        while wish.done_s is None:
            if (node := host.node) is not None:
                try:
                    report = await node.services.models.pull(name)
                except HerdError as error:
                    wish.failures.append(str(error))
                    self._world.trace.tell(host.name, f"pull of {name} failed: {error}")
                else:
                    # Nobody reads an answer of a node that died while it was given.
                    if host.node is node and report.verified:
                        wish.done_s = trio.current_time()
                        self.acknowledged[number, name] = Digest(report.digest)
                        return
            await trio.sleep(RETRY_S)

    async def _remove(self, at_s: float, number: int, name: str) -> None:
        await trio.sleep_until(at_s)
        host = self._world.hosts[number]
        removed = False
        while not removed:
            if host.node is not None:
                # From now on it may be gone, whatever becomes of the command.
                acknowledged = self.acknowledged.pop((number, name), None)
                try:
                    await host.node.services.models.remove(name)
                    removed = True
                except HerdError as error:
                    self._world.trace.tell(host.name, f"removal of {name} failed: {error}")
                    if acknowledged is not None and host.node is not None and await self._has(number, name):
                        self.acknowledged[number, name] = acknowledged
            if not removed:
                await trio.sleep(RETRY_S)

    async def _has(self, number: int, name: str) -> bool:
        models = self._world.hosts[number].models
        shown = ModelName.parse(name).display()
        return models is not None and any(view.name == shown for view in await models.models())
