"""Runs a scenario: its world, its people, its faults and its checkers, until all is over; and makes the report."""

import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import product

import attrs
import trio

from node.background import open_background
from node.errors import UsageError, only_error
from protocols.ids import Digest, PeerId
from simnet.checkers import all_checkers
from simnet.checkers.checker import Checker, Seen, Violated
from simnet.determinism import part_rng, run_world
from simnet.expectations import Facts, judge
from simnet.faults import ends_s, play
from simnet.finishing import finishes_of
from simnet.observing import TrafficMeter, Views
from simnet.plans import draw
from simnet.replaying import replay_command
from simnet.report import Check, Report, Traffic
from simnet.scenario import NODES_MAX, Scenario
from simnet.selecting import region_of, select
from simnet.served import ServedBlobs
from simnet.stage import Fault, Plan, Stage
from simnet.trace import Trace
from simnet.workload import Workload
from simnet.world import Host, Node, World, WorldOptions

OnProgress = Callable[[float, str], object]
"""Hears the virtual second and what happens, in a few words."""


def run_scenario(
    scenario: Scenario,
    seed: int,
    *,
    nodes: int | None = None,
    only: Sequence[int] | None = None,
    on_progress: OnProgress | None = None,
    trace: Trace | None = None,
    checkers: Callable[[], Sequence[Checker]] = all_checkers,
) -> Report:
    """Run it to its end in a world of its own. Equal arguments give equal reports but for `wall_s`.

    `only` keeps, of the faults of its plan, those of these numbers, from 1; 0 is none of them. `trace` is told what
    happens.
    UsageError when the scenario cannot have so many nodes; whatever else goes wrong is the report's `failure`.
    """
    count = scenario.nodes if nodes is None else nodes
    if not 1 <= count <= NODES_MAX:
        raise UsageError(f"--nodes {count} is not allowed: 1 to {NODES_MAX}")
    plan = plan_of(scenario, seed, count, only)
    run = _Run(scenario, seed, count, plan, trace if trace is not None else Trace(), list(checkers()), on_progress)
    began_s = time.perf_counter()
    try:
        run_world(run.main, seed)
    except Exception as error:  # boundary: a node that fails is what a run is there to find
        found = only_error(error)
        if run.seen is None:
            # Nothing ran yet: the scenario does not fit the number of nodes.
            raise found from None
        run.failure = "".join(traceback.format_exception(found)).strip()
    return run.report(time.perf_counter() - began_s, replay_command(scenario.given or scenario.name, seed, nodes, only))


def plan_of(scenario: Scenario, seed: int, nodes: int, only: Sequence[int] | None = None) -> Plan:
    """The faults of a run, those that are written and those that are drawn, in the order of their beginning."""
    faults: list[Fault] = []
    regions = scenario.surface.regions
    for number, meant in enumerate(scenario.faults):
        rng = part_rng(seed, "faults", number)
        hosts = select(meant.hosts, nodes, regions, rng) if meant.hosts else ()
        groups = [(host,) for host in hosts] if meant.spread_s else [hosts]
        for time_no, (place, group) in product(range(meant.times), enumerate(groups)):
            at_s = meant.at_s + time_no * meant.every_s + meant.spread_s * place / len(groups)
            faults.append(Fault(round(at_s, 3), meant.kind, group, meant.for_s, meant.value))
    if (drawn := scenario.drawn) is not None:
        numbers = range(1, nodes + 1)
        faults += draw(seed, numbers, drawn.from_s, drawn.until_s, drawn.kinds, drawn.per_minute)
    faults.sort(key=lambda fault: (fault.at_s, fault.kind, fault.hosts))
    if only is None:
        return tuple(faults)
    for number in only:
        if not 0 <= number <= len(faults):
            raise UsageError(
                f"--only {number} is not allowed: the plan has faults 1 to {len(faults)}; 0 is none of them"
            )
    return tuple(fault for number, fault in enumerate(faults, 1) if number in only)


def world_options(scenario: Scenario, seed: int) -> WorldOptions:
    """The world a scenario is set in."""
    surface, scale = scenario.surface, scenario.surface.bytes_scale
    return WorldOptions(
        seed=seed,
        latency_s=surface.latency_s,
        jitter_s=surface.jitter_s,
        loss=surface.loss,
        rate_bytes_per_s=surface.rate_mbit_per_s * 1e6 / 8 or None,
        chunk_size_bytes=max(1, surface.chunk_size_bytes // scale),
        bytes_scale=scale,
        sealed=surface.sealed,
        disk_size_bytes=surface.disk_size_bytes // scale or None,
        config=scenario.config,
    )


@attrs.define(eq=False)
class _Run:
    """One run, from its first moment to its report."""

    scenario: Scenario
    seed: int
    nodes: int
    plan: Plan
    trace: Trace
    checkers: list[Checker]
    on_progress: OnProgress | None
    failure: str = ""
    ended_s: float = 0.0
    digest: str = ""
    traffic: dict[str, Traffic] = attrs.field(factory=dict)
    seen: Seen | None = None
    violations: dict[str, str] = attrs.field(factory=dict)
    agreement: list[tuple[float, float]] = attrs.field(factory=list)
    liars: dict[PeerId, None] = attrs.field(factory=dict)
    blamers: dict[int, None] = attrs.field(factory=dict)

    async def main(self) -> None:
        """The whole run, in virtual time."""
        async with open_background() as nursery:
            world = World(nursery, world_options(self.scenario, self.seed), self.trace)
            seen = self.seen = self._watch(world)
            for number in range(1, self.nodes + 1):
                region = region_of(number, self.scenario.surface.regions)
                world.add_host(labels={"region": f"r{region}"})
            for checker in self.checkers:
                checker.begin(seen)
            nursery.start_soon(self._start_hosts)
            nursery.start_soon(seen.workload.run)
            nursery.start_soon(play, seen.stage, self.plan)
            await self._go_on(max(self.scenario.for_s, ends_s(self.plan) + self.scenario.settle_s))
            for checker in list(self.checkers):
                await self._ask(checker, checker.end)
            for host in world.hosts.values():
                self._note_blame(host)
            # The nodes end now, and what they tell of that is no part of the run.
            world.on_life = None
            seen.views.close()
            self._close(seen)

    def _close(self, seen: Seen) -> None:
        self.ended_s, self.digest = trio.current_time(), self.trace.digest()
        self.traffic = {host.name: seen.traffic.of(host) for host in seen.world.hosts.values()}

    def _watch(self, world: World) -> Seen:
        stage = Stage(world, part_rng(self.seed, "stage"))
        views, traffic = Views(world, stage), TrafficMeter(world)
        workload = Workload(world, self.scenario, self.seed, self.nodes)
        world.on_life = self._life
        world.watch_blobs = lambda host: ServedBlobs(host.blobs, partial(self._served, host))
        stage.on_end = lambda fault: views.expect_agreement(f"{fault.kind} over")
        scenario = self.scenario
        return Seen(world, stage, views, traffic, workload, scenario.settle_s, scenario.control_bytes_per_s_max)

    async def _start_hosts(self) -> None:
        assert self.seen is not None
        rng, stage = part_rng(self.seed, "starts"), self.seen.stage
        spread_s = self.scenario.surface.start_spread_s
        await stage.start(1)

        async def start(number: int, delay_s: float) -> None:
            await trio.sleep(delay_s)
            await stage.start(number)

        async with trio.open_nursery() as nursery:
            for number in range(2, self.nodes + 1):
                nursery.start_soon(start, number, rng.random() * spread_s)

    async def _go_on(self, until_s: float) -> None:
        assert self.seen is not None
        while trio.current_time() < until_s:
            await trio.sleep_until(min(until_s, float(int(trio.current_time()) + 1)))
            self.agreement.append((trio.current_time(), self.seen.views.agreement()))
            for checker in list(self.checkers):
                await self._ask(checker, checker.step)
            if self.on_progress is not None:
                self.on_progress(trio.current_time(), self._what_happens())

    def _what_happens(self) -> str:
        assert self.seen is not None
        wishes = self.seen.workload.pulls
        done = sum(wish.done_s is not None for wish in wishes)
        pulls = f", {done} of {len(wishes)} pulls done" if wishes else ""
        wrong = f", violated: {', '.join(self.violations)}" if self.violations else ""
        return f"{len(self.seen.world.running())} nodes, {self.seen.views.agreement():.0%} agree{pulls}{wrong}"

    async def _ask(self, checker: Checker, verb: Callable[[], Awaitable[None]]) -> None:
        try:
            await verb()
        except Violated as violated:
            self._violated(checker, violated)

    def _violated(self, checker: Checker, violated: Violated) -> None:
        self.trace.tell("", f"violated: {violated}")
        at = f"at {trio.current_time():.3f} s: {violated.text}"
        self.violations.setdefault(violated.name, at)
        if checker in self.checkers:
            self.checkers.remove(checker)

    def _life(self, host: Host, node: Node, began: bool) -> None:
        assert self.seen is not None
        if began:
            self.seen.views.began(host, node)
            return
        self._note_blame(host)
        own = node.services.membership.members()[0].record
        self.seen.views.ended(host, crashed=not own.left)

    def _served(self, host: Host, digest: Digest, index: int, chunk: memoryview) -> None:
        assert self.seen is not None
        share = self.seen.stage.lying.get(host.number, 0.0)
        if share and self.seen.stage.rng.random() < share:
            self.liars[host.peer] = None
            chunk[0] ^= 1
            return
        for checker in list(self.checkers):
            try:
                checker.served(host, digest, index, bytes(chunk))
            except Violated as violated:
                self._violated(checker, violated)

    def _note_blame(self, host: Host) -> None:
        if host.node is not None and any(host.node.blame.banned(liar) for liar in self.liars):
            self.blamers[host.number] = None

    def report(self, wall_s: float, replay: str) -> Report:
        """Everything that was seen."""
        assert self.seen is not None
        seen, workload = self.seen, self.seen.workload
        finishes = finishes_of(workload, self.scenario.surface)
        origins = {
            model.name: (f"h{model.holders[0]}", model.size_bytes)
            for model in workload.models.values()
            if len(model.holders) == 1
        }
        facts = Facts(
            false_positives=seen.views.false_positives,
            convergences=tuple(seen.views.convergences),
            finishes=finishes,
            unfinished=len(workload.pulls) - len(finishes),
            traffic=self.traffic,
            origins=origins,
            blamers=len(self.blamers),
        )
        checks = [Check(name, text) for name, text in self.violations.items()]
        checks += [Check(checker.name) for checker in self.checkers]
        return Report(
            scenario=self.scenario.name,
            seed=self.seed,
            nodes=self.nodes,
            options=options_shown(self.scenario),
            digest=self.digest or self.trace.digest(),
            virtual_s=self.ended_s,
            wall_s=wall_s,
            convergences=facts.convergences,
            finishes=finishes,
            traffic=self.traffic,
            false_positives=facts.false_positives,
            faults=tuple(seen.stage.shown),
            checks=tuple(sorted(checks, key=lambda check: check.name)),
            expectations=() if self.failure else judge(self.scenario.expected, facts),
            agreement=tuple(self.agreement),
            failure=self.failure,
            replay=replay,
        )


def options_shown(scenario: Scenario) -> dict[str, str]:
    """All options of a run in words, as they are printed first."""
    shown = {"for_s": f"{scenario.for_s:g}", "settle_s": f"{scenario.settle_s:g}"}
    for name, value in attrs.asdict(scenario.surface).items():
        shown[name] = f"{value:g}" if isinstance(value, float) else str(value)
    for part in attrs.fields(type(scenario.config)):
        section = getattr(scenario.config, part.name)
        if attrs.has(type(section)):
            usual = type(section)()
            for field in attrs.fields(type(section)):
                value = getattr(section, field.name)
                if value != getattr(usual, field.name):
                    shown[f"{part.name}.{field.name}"] = str(value)
    return shown
