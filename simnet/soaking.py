"""Many seeds over many scenarios, each run in one of a few worker processes that a run may take down with it."""

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import attrs

from simnet.replaying import replay_command
from simnet.running import run_scenario
from simnet.scenario import load_scenario
from simnet.showing.progress import keep_nodes_quiet
from simnet.showing.summaries import problems

LOOK_AGAIN_S = 0.5
END_WITHIN_S = 5.0


@attrs.frozen
class Job:
    """One run that is to be made; `scenario` is a name or a file."""

    scenario: str
    seed: int
    nodes: int | None = None

    @property
    def replay(self) -> str:
        """The one command that makes the same run."""
        return replay_command(self.scenario, self.seed, self.nodes)


@attrs.frozen
class Outcome:
    """What came of a job; `problems` is empty when it passed."""

    job: Job
    problems: tuple[str, ...]
    virtual_s: float = 0.0
    wall_s: float = 0.0
    faults: int = 0
    digest: str = ""


def perform(job: Job) -> Outcome:
    """Make one run in this process. What breaks the run itself is a problem of that run."""
    began_s = time.monotonic()
    try:
        report = run_scenario(load_scenario(job.scenario), job.seed, nodes=job.nodes)
    except Exception as error:  # boundary: one run of a soak; the others go on, and this one is told as failed
        return Outcome(job, (f"{type(error).__name__}: {error}",), wall_s=time.monotonic() - began_s)
    return Outcome(job, tuple(problems(report)), report.virtual_s, report.wall_s, len(report.faults), report.digest)


@attrs.define(eq=False)
class _Worker:
    """A process, the way to it, and what it works at since when."""

    process: BaseProcess
    connection: Connection
    job: Job | None = None
    since_s: float = 0.0


class Soak:
    """Works through jobs in worker processes; a context, at whose end no worker is left."""

    def __init__(self, jobs: Sequence[Job], *, workers: int, patience_s: float, until_s: float | None = None) -> None:
        """`patience_s` is what one run may take; `until_s` is when, by `time.monotonic`, no more are begun."""
        self._waiting = list(reversed(jobs))
        self._patience_s = patience_s
        self._until_s = until_s
        self._count = min(workers, len(jobs))
        # Spawned, not forked: a worker has nothing of this process but what it is given.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Soak":
        self._workers = [self._started() for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            _end(worker)

    @property
    def left(self) -> int:
        """How many jobs no worker has begun."""
        return len(self._waiting)

    def outcomes(self) -> Iterator[Outcome | None]:
        """Each outcome as it comes, until all jobs are done or the time is over; None now and then meanwhile."""
        for worker in self._workers:
            self._give(worker)
        while busy := [worker for worker in self._workers if worker.job is not None]:
            ready = wait([worker.connection for worker in busy], timeout=LOOK_AGAIN_S)
            for worker in busy:
                outcome = self._heard(worker) if worker.connection in ready else self._overdue(worker)
                if outcome is not None:
                    self._give(worker)
                    yield outcome
            yield None

    def _started(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _give(self, worker: _Worker) -> None:
        worker.job = None
        if self._waiting and (self._until_s is None or time.monotonic() < self._until_s):
            worker.job, worker.since_s = self._waiting.pop(), time.monotonic()
            worker.connection.send(worker.job)

    def _heard(self, worker: _Worker) -> Outcome:
        try:
            outcome: Outcome = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(END_WITHIN_S)
            return self._lost(worker, f"the process of the run ended with exit code {worker.process.exitcode}")
        return outcome

    def _overdue(self, worker: _Worker) -> Outcome | None:
        if time.monotonic() - worker.since_s < self._patience_s:
            return None
        return self._lost(worker, f"the run was not over after {self._patience_s:.0f} s and was ended")

    def _lost(self, worker: _Worker, problem: str) -> Outcome:
        assert worker.job is not None
        outcome = Outcome(worker.job, (problem,), wall_s=time.monotonic() - worker.since_s)
        worker.process.terminate()
        _end(worker)
        fresh = self._started()
        worker.process, worker.connection = fresh.process, fresh.connection
        return outcome


def _end(worker: _Worker) -> None:
    worker.process.join(END_WITHIN_S)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.connection.close()


def _work(connection: Connection) -> None:
    # Ctrl-C reaches the whole group of processes; the one that started the workers ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_nodes_quiet()
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        connection.send(perform(job))


@attrs.frozen
class Tally:
    """What a soak came to, as a whole or of one scenario."""

    scenario: str
    runs: int
    failures: int
    virtual_s: float
    wall_s: float
    faults: int


def tally(scenario: str, outcomes: Sequence[Outcome]) -> Tally:
    """The sums of some outcomes."""
    return Tally(
        scenario,
        len(outcomes),
        sum(bool(outcome.problems) for outcome in outcomes),
        sum(outcome.virtual_s for outcome in outcomes),
        sum(outcome.wall_s for outcome in outcomes),
        sum(outcome.faults for outcome in outcomes),
    )


def tallies(outcomes: Sequence[Outcome]) -> list[Tally]:
    """One a scenario, by name."""
    names = sorted({outcome.job.scenario for outcome in outcomes})
    return [tally(name, [outcome for outcome in outcomes if outcome.job.scenario == name]) for name in names]


def jobs_of(scenarios: Sequence[str], seeds: range, nodes: int | None = None) -> list[Job]:
    """Each seed over all scenarios before the next, so that whatever time there is goes to all of them alike."""
    return [Job(scenario, seed, nodes) for seed in seeds for scenario in scenarios]


def check_scenarios(names: Sequence[str]) -> None:
    """Load each once. UsageError for one that cannot be: better before the soak than in each run of it."""
    for name in names:
        load_scenario(name)
