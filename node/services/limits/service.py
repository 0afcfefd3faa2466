"""The limits of a running node: who moves chunks waits here; the API and the command line look at them and set them."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from node.config_values import nearest
from node.errors import UsageError
from node.services.limits.lines import Lines
from node.views import LimitsView, LimitView
from protocols.ids import PeerId
from protocols.limits.config import LIMIT_KEYS, Direction, LimitsConfig, Purpose
from protocols.limits.limiter import Limiter, LimiterStatistics, Waits
from protocols.limits.periods import LocalTime
from protocols.limits.rates import rate_text

log = logging.getLogger("herd.limits")

PERIODS_KEY = "periods"
SETTABLE = (*LIMIT_KEYS, PERIODS_KEY)
MINUTE_S = 60


class LimitsService:
    """One node's limits. `wall_clock` gives the host's local time, as `time.localtime` does; `file` is its herd.toml.

    Everything is driven by Trio's clock; the wall clock only decides which periods hold, and is read every minute.
    """

    def __init__(self, config: LimitsConfig, wall_clock: Callable[[], time.struct_time], file: Path) -> None:
        self._configured = config
        self._wall_clock = wall_clock
        self._file = file
        self._changed = trio.Event()
        self._lines = {direction: Lines() for direction in Direction}
        self.limiter = Limiter(config, self._local_time(), trio.current_time())

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let the rates follow the periods, until cancelled."""
        task_status.started()
        while True:
            # Until the minute is over, since a period begins with a minute.
            await trio.sleep(MINUTE_S - min(self._wall_clock().tm_sec, MINUTE_S - 1))
            local_time = self._local_time()
            if self.limiter.tell_time(local_time, trio.current_time()):
                log.info("it is %s: other limits hold from now on: %s", local_time, self._told())
                self._wake()

    def unlimited(self, direction: Direction) -> bool:
        """Whether nothing is limited this way now: then `wait_s` is 0 for everybody and `took` counts nothing."""
        return self.limiter.unlimited(direction)

    def wait_s(self, direction: Direction, peer: PeerId, purpose: Purpose) -> float:
        """How long the next chunk has to wait, if no other goes before; 0.0 when it may go now."""
        return self.limiter.wait_s(direction, peer, purpose, trio.current_time())

    def took(self, direction: Direction, peer: PeerId, purpose: Purpose, size_bytes: int) -> None:
        """A chunk goes now; its bytes count."""
        self.limiter.took(direction, peer, purpose, size_bytes, trio.current_time())

    async def wait(self, direction: Direction, peer: PeerId, purpose: Purpose) -> None:
        """Wait until a chunk may go. Say `took` before the next await: others wait for the same.

        Who waits for one peer goes in the order of coming; at the purpose's limit peers take turns, and at the
        node's limit purposes do. Returns without a checkpoint when the chunk may go at once.
        """
        lines = self._lines[direction]
        while not self.unlimited(direction):
            if not any(key in lines for key in (peer, purpose, direction)) and self._may_go(direction, peer, purpose):
                return
            async with lines.first_of(peer):
                with self._counted_as_waiting(direction, peer, purpose):
                    await self._stand_in_lines(direction, peer, purpose)
                # Somebody who does not stand in line may have gone meanwhile.
                if self._may_go(direction, peer, purpose):
                    return

    async def _stand_in_lines(self, direction: Direction, peer: PeerId, purpose: Purpose) -> None:
        def waits() -> Waits:
            return self.limiter.waits(direction, peer, purpose, trio.current_time())

        # From the narrowest limit to the widest: who waits for its own peer holds nobody else up.
        await self._while_above_zero(lambda: waits().peer_s)
        async with self._lines[direction].first_of(purpose):
            await self._while_above_zero(lambda: waits().purpose_s)
            async with self._lines[direction].first_of(direction):
                await self._while_above_zero(lambda: waits().node_s)

    async def _while_above_zero(self, wait_s: Callable[[], float]) -> None:
        while (left_s := wait_s()) > 0:
            with trio.move_on_after(left_s):
                await self.wait_changed()

    @contextmanager
    def _counted_as_waiting(self, direction: Direction, peer: PeerId, purpose: Purpose) -> Iterator[None]:
        self.limiter.waiting(direction, peer, purpose, trio.current_time())
        try:
            yield
        except trio.Cancelled:
            self.limiter.gave_up(direction, peer, purpose, trio.current_time())
            raise

    def _may_go(self, direction: Direction, peer: PeerId, purpose: Purpose) -> bool:
        return self.limiter.waits(direction, peer, purpose, trio.current_time()).longest_s == 0

    async def take(self, direction: Direction, peer: PeerId, purpose: Purpose, size_bytes: int) -> None:
        """Wait until a chunk may go, and count it; let it go next. A cancelled call has counted nothing."""
        await self.wait(direction, peer, purpose)
        self.took(direction, peer, purpose, size_bytes)

    async def wait_changed(self) -> None:
        """Wait until other limits hold, set by a person or by the time: any `wait_s` told before is out of date."""
        await self._changed.wait()

    def forget(self, peer: PeerId) -> None:
        """A member left the mesh or is dead."""
        self.limiter.forget(peer)

    def current(self) -> LimitsView:
        """What is set and what is in force now."""
        local_time = self._local_time()
        # A clock that was put on or back since the last minute is no reason to show what does not hold.
        if self.limiter.tell_time(local_time, trio.current_time()):
            self._wake()
        config, rates = self.limiter.config, self.limiter.rates()
        return LimitsView(
            limits=[
                LimitView(key, getattr(config, key), rates[key].bytes_per_s, rates[key].period) for key in LIMIT_KEYS
            ],
            periods=list(config.periods),
            local_time=str(local_time),
            changed=[key for key in SETTABLE if getattr(config, key) != getattr(self._configured, key)],
            note=f"changes hold until this node stops; to keep them, write them under [limits] in {self._file}",
        )

    def change(self, changes: Mapping[str, str]) -> LimitsView:
        """Set limits by key until the node stops: rates, or `periods` separated by commas. All are set, or none.

        UsageError for an unknown key, a text that is no rate, or a period that does not exist.
        """
        if not changes:
            raise UsageError("nothing to set: give KEY=RATE, such as up=50MB/s")
        config = self.limiter.config
        periods = [text.strip() for text in changes.get(PERIODS_KEY, "").split(",") if text.strip()]
        for key in changes:
            if key not in SETTABLE:
                raise UsageError(self._unknown(key, config))
        settings: dict[str, Any] = {
            **changes,
            PERIODS_KEY: tuple(periods) if PERIODS_KEY in changes else config.periods,
        }
        try:
            config = attrs.evolve(config, **settings)
        except ValueError as error:
            raise UsageError(f"limits.{error}") from error
        self.limiter.change(config, trio.current_time())
        log.info("limits set: %s", ", ".join(f"{key} = {text!r}" for key, text in changes.items()))
        self._wake()
        return self.current()

    def statistics(self) -> LimiterStatistics:
        """What the limits did, for the metrics."""
        return self.limiter.statistics()

    def _unknown(self, key: str, config: LimitsConfig) -> str:
        if key in [period.name for period in config.parsed_periods()]:
            return f"{key} is a period, not a limit: quote it together with its limit, as in 'up=50MB/s, {key}=..'"
        return f"unknown limit {key[:80]!r}; {nearest(key[:80], SETTABLE)}"

    def _told(self) -> str:
        return ", ".join(
            f"{key} {rate_text(rate.bytes_per_s)}" + (f" ({rate.period})" if rate.period else "")
            for key, rate in self.limiter.rates().items()
        )

    def _local_time(self) -> LocalTime:
        shown = self._wall_clock()
        return LocalTime(shown.tm_wday, shown.tm_hour * MINUTE_S + shown.tm_min)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
