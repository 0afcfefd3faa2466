"""node/services/operations: one operation, many askers."""

import pytest
import trio
from trio.testing import MockClock

from node.services.models.operations import Operations


async def test_two_askers_share_one_operation(autojump_clock: MockClock) -> None:
    started: list[str] = []

    async def work() -> str:
        started.append("work")
        await trio.sleep(5)
        return "result"

    answers: list[str] = []
    async with trio.open_nursery() as nursery:
        operations: Operations[str] = Operations(nursery)

        async def ask() -> None:
            answers.append(await operations.share("llama", work))

        async with trio.open_nursery() as askers:
            askers.start_soon(ask)
            askers.start_soon(ask)
            await trio.sleep(1)
            assert operations.running("llama")
        assert not operations.running("llama")
    assert (started, answers) == (["work"], ["result", "result"])


async def test_the_work_ends_with_its_last_asker_and_not_before(autojump_clock: MockClock) -> None:
    told: list[str] = []

    async def work() -> None:
        try:
            await trio.sleep(100)
        except trio.Cancelled:
            told.append(f"cancelled at {trio.current_time() - start:g}")
            raise

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        operations: Operations[None] = Operations(nursery)

        async def ask_for(seconds: float) -> None:
            with trio.move_on_after(seconds):
                await operations.share("llama", work)

        nursery.start_soon(ask_for, 3)
        nursery.start_soon(ask_for, 7)
    assert told == ["cancelled at 7"]


async def test_a_failure_reaches_every_asker_and_not_the_nursery(autojump_clock: MockClock) -> None:
    async def work() -> None:
        await trio.sleep(1)
        raise ValueError("nobody holds it")

    async with trio.open_nursery() as nursery:
        operations: Operations[None] = Operations(nursery)

        async def ask() -> None:
            with pytest.raises(ValueError, match="nobody holds it"):
                await operations.share("llama", work)

        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.sleep(2)
        await ask()


async def test_who_asks_while_a_cancelled_operation_winds_down_gets_a_new_one(autojump_clock: MockClock) -> None:
    runs: list[int] = []
    over: list[int] = []

    async def work() -> int:
        assert len(over) == len(runs), "the one before has wound down"
        runs.append(len(runs))
        try:
            await trio.sleep(10)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
            over.append(runs[-1])
        return runs[-1]

    async with trio.open_nursery() as nursery:
        operations: Operations[int] = Operations(nursery)
        with trio.move_on_after(1):
            await operations.share("llama", work)
        assert not operations.running("llama")
        assert await operations.share("llama", work) == 1
