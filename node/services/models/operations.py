"""Long operations shared by everyone who asks for the same: one pull, many listeners, cancelled with the last asker."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from node.background import isolating
from node.errors import HerdError

T = TypeVar("T")


class SharedOperation(Generic[T]):
    """One running operation. `join` waits for its result; when the last joiner is cancelled, the work is too.

    The work runs in the nursery given, never in a joiner, so that no joiner's end decides over the others.
    """

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._result: list[T] = []
        self._failure: BaseException | None = None
        self._joined = 0

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Do the work and keep what it returns or raises for the joiners; started once, in a nursery."""
        try:
            # A failure belongs to the askers; in the nursery it would end the node.
            with isolating(self._fail), self._scope:
                self._result.append(await work())
        finally:
            self._ended.set()

    def _fail(self, error: BaseException) -> None:
        self._failure = error

    @property
    def ended(self) -> bool:
        """Whether nobody can join any more."""
        return self._ended.is_set() or self._scope.cancel_called

    async def wait_over(self) -> None:
        """Return once the work has wound down, cancelled or not."""
        await self._ended.wait()

    async def join(self) -> T:
        """The work's result or its exception. Cancelling one joiner leaves the work to the others."""
        self._joined += 1
        try:
            await self._ended.wait()
        finally:
            self._joined -= 1
            if self._joined == 0:
                self._scope.cancel()
        if self._failure is not None:
            raise self._failure
        if not self._result:
            raise HerdError("the node is shutting down")
        return self._result[0]


class Operations(Generic[T]):
    """The shared operations of one kind that are running now, by key."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._running: dict[str, SharedOperation[T]] = {}

    def running(self, key: str) -> bool:
        """Whether an operation under this key can be joined."""
        operation = self._running.get(key)
        return operation is not None and not operation.ended

    async def share(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """Join the operation under `key`, starting `work` when there is none; two of one key never overlap."""
        while (operation := self._running.get(key)) is not None and operation.ended:
            await operation.wait_over()
        if operation is None:
            operation = SharedOperation()
            self._running[key] = operation
            self._nursery.start_soon(self._run, key, operation, work)
        return await operation.join()

    async def _run(self, key: str, operation: SharedOperation[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            await operation.run(work)
        finally:
            if self._running.get(key) is operation:
                del self._running[key]
