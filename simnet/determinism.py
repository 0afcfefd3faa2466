"""The same world twice: Trio's scheduling from a seed, its clock virtual, no threads.

Trio shuffles its ready tasks so that nobody relies on an order. Its own tests and Hypothesis make the shuffle
repeatable through two private names; they stand in this file only, and a test fails loudly when Trio changes them.
"""

import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import trio
import trio._core._run as trio_run
from trio.testing import MockClock

from protocols.errors import LocalProtocolError

T = TypeVar("T")

PRIVATE_NAMES = {"_ALLOW_DETERMINISTIC_SCHEDULING": bool, "_r": random.Random}


def run_world(main: Callable[[], Coroutine[Any, Any, T]], seed: int) -> T:
    """Run `main` to its end as `trio.run` does, on a virtual clock that jumps to whatever comes next.

    Equal seeds give equal schedules in every process, as long as the code orders its data.
    """
    with _deterministic_scheduling(seed), _no_threads():
        return trio.run(main, clock=MockClock(autojump_threshold=0))


@contextmanager
def _deterministic_scheduling(seed: int) -> Iterator[None]:
    for name, kind in PRIVATE_NAMES.items():
        if not isinstance(getattr(trio_run, name, None), kind):
            raise LocalProtocolError(f"Trio {trio.__version__} has no {name} of {kind}: mend simnet/determinism.py")
    allowed = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    state = trio_run._r.getstate()
    setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010  # it is declared final
    trio_run._r.seed(seed)
    try:
        yield
    finally:
        setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", allowed)  # noqa: B010
        trio_run._r.setstate(state)


@contextmanager
def _no_threads() -> Iterator[None]:
    """A thread ends when it likes: whoever starts one in a world is told so."""
    real = trio.to_thread.run_sync

    async def refuse(*_arguments: Any, **_options: Any) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise LocalProtocolError("a simulated world has no threads: give this part a twin in simnet/")

    setattr(trio.to_thread, "run_sync", refuse)  # noqa: B010  # it never returns what the real one would
    try:
        yield
    finally:
        trio.to_thread.run_sync = real


def part_rng(seed: int, *part: object) -> random.Random:
    """Randomness of one part of a world: its own, so that a change of one part leaves the draws of others alone."""
    return random.Random(f"{seed}/{'/'.join(str(one) for one in part)}")
