"""A boundary around one asker's work: its failure is told alone, a cancellation goes on."""

import pytest
import trio
import trio.testing

from node.background import isolating


async def test_a_failure_is_told_alone_and_the_block_is_left() -> None:
    told: list[BaseException] = []
    with isolating(told.append):
        async with trio.open_nursery():
            raise ValueError("a full disk")
    assert [repr(error) for error in told] == ["ValueError('a full disk')"]


async def test_a_failure_while_being_cancelled_is_told_and_the_cancellation_goes_on() -> None:
    told: list[BaseException] = []

    async def fails_when_stopped() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("a full disk")

    with trio.CancelScope() as scope:
        with isolating(told.append):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails_when_stopped)
                nursery.start_soon(trio.sleep_forever)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        pytest.fail("the cancellation was swallowed")
    assert scope.cancelled_caught
    assert [repr(error) for error in told] == ["ValueError('a full disk')"]


async def test_what_is_no_exception_is_not_isolated() -> None:
    told: list[BaseException] = []
    with pytest.raises(BaseExceptionGroup), isolating(told.append):
        raise BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError()])
    assert told == []
