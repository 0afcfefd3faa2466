"""Nothing leaks: when all is quiet again, tasks, streams, sessions and buffers are what they were before."""

from collections import Counter
from collections.abc import Iterable

import attrs
import trio

from simnet.checkers.checker import Quiet, Seen, Violated
from simnet.stage import BOOTSTRAP_HOSTS

IDLE_MARGIN_S = 15.0
LOOKS, LOOK_INTERVAL_S = 10, 0.7
"""A conversation that happens to go on is no leak: the least of some looks counts."""

SERVING, WRITING = "serve_stream", "Links._write"
KNOCKING = "Joiner._knock_until_done"
"""As long as a life lasts, one for each of its bootstrap peers, however often it started."""


@attrs.frozen
class _Counts:
    nodes: int
    tasks: Counter[str]
    stray_streams: int
    sessions: int
    buffered_bytes: int


class NothingLeaks(Quiet):
    """Counts when the mesh stands and nothing else goes on, and again at the end, when idle sessions have ended."""

    name = "nothing leaks"

    def __init__(self) -> None:
        self._before: _Counts | None = None

    def begin(self, seen: Seen) -> None:
        """Remember where to look."""
        self._seen = seen

    async def step(self) -> None:
        """Remember the last look before the first wish and the first fault."""
        await trio.lowlevel.checkpoint()
        disturbed = self._seen.workload.pulls or self._seen.stage.shown
        if not disturbed and self._seen.world.running() and self._seen.views.agreement() == 1.0:
            self._before = self._count()

    async def end(self) -> None:
        """Wait until the last session may be gone, and count."""
        wishes = self._seen.workload.pulls
        if self._before is None or not self._seen.world.running() or any(wish.done_s is None for wish in wishes):
            return
        last_s = max([self._seen.stage.last_disturbed_s, *(wish.done_s for wish in wishes if wish.done_s)])
        await trio.sleep_until(last_s + self._seen.world.options.config.exchange.idle_timeout_s + IDLE_MARGIN_S)
        looks = []
        for _ in range(LOOKS):
            looks.append(self._count())
            await trio.sleep(LOOK_INTERVAL_S)
        self._compare(self._before, looks)

    def _compare(self, before: _Counts, looks: list[_Counts]) -> None:
        for what in ("stray_streams", "sessions", "buffered_bytes"):
            if (least := min(getattr(look, what) for look in looks)) > 0:
                raise Violated(self.name, f"{least} {what.replace('_', ' ')} are left at rest")
        nodes = looks[-1].nodes
        for task in sorted(looks[-1].tasks):
            count = min(look.tasks[task] for look in looks)
            usual = len(BOOTSTRAP_HOSTS) if task == KNOCKING else before.tasks[task] / before.nodes
            if count > usual * nodes:
                raise Violated(self.name, f"at rest {nodes} nodes have {count} tasks {task}, usual are {usual:g} each")

    def _count(self) -> _Counts:
        running = self._seen.world.running()
        streams = self._seen.world.network.stream_count()
        spoken = sum(node.services.catalog.statistics().streams for node in running.values())
        exchanges = [node.services.exchange.statistics() for node in running.values()]
        tasks = Counter(_names(self._seen.world.lives()))
        # The catalog keeps streams as long as it likes, and for a while a writer whose stream its reader has ended;
        # streams that nobody keeps are counted by themselves.
        tasks[SERVING] -= streams
        tasks[WRITING] -= max(streams, spoken)
        return _Counts(
            len(running),
            tasks,
            streams - spoken,
            sum(each.transfers + each.givers + each.askers for each in exchanges),
            sum(each.outstanding_bytes + each.serve_buffered_bytes for each in exchanges),
        )


def _names(tasks: Iterable[trio.lowlevel.Task]) -> Iterable[str]:
    for task in tasks:
        *_, last_but_one, last = ("", *task.name.split("."))
        yield f"{last_but_one}.{last}" if last_but_one[:1].isupper() else last
        for nursery in task.child_nurseries:
            yield from _names(nursery.child_tasks)
