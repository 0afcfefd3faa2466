"""A nursery for the tasks behind a resource: they end with the block, and the block's own failure stays itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


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
