"""``Batch``: writes of many tasks, committed together by one thread.

Each write on a thread of its own would make the event loop wait for the interpreter's lock dozens of times per commit. Here
the loop hands a write over and is woken once for all that one commit has finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any, TypeVar

from agentdb import ClosedError, ConflictError

__all__ = ["ATTEMPTS", "Batch"]

R = TypeVar("R")

ATTEMPTS = 100
_AT_ONCE = 128


class _Item:
    """One write, and the task that waits for it."""

    __slots__ = ("begin", "context", "error", "future", "is_done", "loop", "prepare", "result")

    def __init__(self, begin: Callable[[], tuple[Any, Callable[[], Any]]]) -> None:
        self.begin = begin
        # The task's: a transaction that it has open must be seen, and refused.
        self.context: Context = copy_context()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.prepare: Callable[[], Any] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done = False
        """It is durable."""

    def settle(self) -> None:
        """Wake the task; in its loop."""
        if self.future.done():
            return  # the wait was abandoned
        if isinstance(self.error, StopIteration):  # which no future takes
            self.future.set_exception(RuntimeError(f"a serializer raised {self.error!r}"))
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Batch:
    """Commits the writes that tasks hand over, as many at once as are waiting.

    Args:
        commit: runs works in one transaction and returns, for each, what it returned or raised.
        check: raises if the task whose context it is called in must not write now.
    """

    def __init__(self, commit: Callable[[Sequence[Any]], list[bool | Exception]], check: Callable[[], None]) -> None:
        self._commit = commit
        self._check = check
        self._waiting: deque[_Item] = deque()
        self._mutex = threading.Lock()
        self._is_draining = False
        self._thread = ThreadPoolExecutor(1, "agentdb-langgraph-batch")

    async def run(self, begin: Callable[[], tuple[R, Callable[[], Any]]]) -> R:
        """Return the result that ``begin`` gives, once the work that what it gives beside prepares is durable.

        Cancelling abandons the wait: the write is then done or not done, never half of it.

        Raises:
            ClosedError: the batch was closed.
        """
        item = _Item(begin)
        with self._mutex:
            self._waiting.append(item)
            starts, self._is_draining = not self._is_draining, True
        if starts:
            try:
                self._thread.submit(self._drain)
            except RuntimeError:
                self._refuse()
        result: R = await item.future
        return result

    def close(self) -> None:
        """Let what is being written be done; who still waits for that gets a `ClosedError`, and has written nothing."""
        self._thread.shutdown(wait=True)

    def _refuse(self) -> None:
        """Tell everyone who waits that nobody writes any more: other loops may have handed over behind this one."""
        with self._mutex:
            items, self._is_draining = list(self._waiting), False
            self._waiting.clear()
        for item in items:
            item.error = ClosedError("this saver is closed")
        _wake(items)

    def _drain(self) -> None:
        while True:
            with self._mutex:
                items = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
                if not items:
                    self._is_draining = False
                    return
            try:
                self._write(items)
            except BaseException as error:
                for item in items:
                    if not item.is_done:
                        item.error = item.error or error
            _wake(items)

    def _write(self, items: Sequence[_Item]) -> None:
        for item in items:
            try:
                item.context.run(self._check)
                item.result, item.prepare = item.context.run(item.begin)
            except BaseException as error:  # whatever it is, it belongs to the caller of that write, and to no other
                item.error = error
        for _ in range(ATTEMPTS):
            works: list[tuple[_Item, Any]] = []
            for item in items:
                if item.error is None and item.prepare is not None and not item.is_done:
                    try:
                        works.append((item, item.context.run(item.prepare)))
                    except BaseException as error:
                        item.error = error
            if not works:
                return
            outcomes = self._commit([work for _, work in works])
            for (item, _), outcome in zip(works, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    item.error = outcome
                else:
                    item.is_done = outcome
        for item in items:
            if not item.is_done and item.error is None:
                item.error = ConflictError("checkpoints of this thread are removed faster than a new one can be stored")


def _wake(items: Sequence[_Item]) -> None:
    """Wake the tasks of all items, each loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[_Item]] = {}
    for item in items:
        loops.setdefault(item.loop, []).append(item)
    for loop, done in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(_settle, done)


def _settle(items: Sequence[_Item]) -> None:
    for item in items:
        item.settle()
