"""Blocks whose failure stays itself: a nursery behind a resource, and the boundary around one asker's work."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from node.errors import only_error


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """Cancel the nursery when the block ends. An exception of the block leaves as it is, not inside a group."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:  # boundary: carried past the nursery, which would wrap it, and raised below.
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@contextmanager
def isolating(fail: Callable[[BaseException], object]) -> Iterator[None]:
    """Give to `fail` what the block raises, alone. A cancellation goes on, also where a nursery packed both together.

    So does what is no `Exception`.
    """
    try:
        yield
    except Exception as error:  # boundary: the block's failure belongs to whoever `fail` tells
        fail(only_error(error))
    except BaseExceptionGroup as group:
        cancelled, failures = group.split(trio.Cancelled)
        if not isinstance(failures, ExceptionGroup):
            raise
        fail(only_error(failures))
        if cancelled is not None:
            raise cancelled from None
