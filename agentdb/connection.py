"""``Connection``: one database as the parts of a framework use it, opened at its first call, with threads for async callers.

For those who write an integration: a vector store, saver or retriever holds one ``Connection`` and derives from ``Closing``.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

from agentdb.aio import AsyncDatabase
from agentdb.database import Database, open
from agentdb.errors import ClosedError, InvalidInputError

__all__ = ["Closing", "Connection"]

R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)
Pool = Literal["read", "write"]

_THREADS: dict[Pool, int] = {"read": 16, "write": 32}
"""Waiting for a commit costs no processor, and writers that wait together share one; reads never queue behind them."""


class Connection(Generic[T_co]):
    """A database and what ``prepare`` makes of it; both at the first call, so that making a connection does no I/O.

    Args:
        db_or_path: a database, which stays the caller's to close, or the path of one. However many connections have one path,
            a process opens it once.
        prepare: opens tables, a collection or a manager in the database; called once.
    """

    def __init__(
        self, db_or_path: Database | AsyncDatabase | str | os.PathLike[str], prepare: Callable[[Database], T_co]
    ) -> None:
        given: object = db_or_path
        if isinstance(given, AsyncDatabase):
            given = given.sync
        if not isinstance(given, Database | str | os.PathLike) or (isinstance(given, str) and not given):
            raise InvalidInputError(
                f"db_or_path must be a database or the path of one, not {type(db_or_path).__name__}"
                if given != ""
                else "db_or_path must not be empty"
            )
        self._given = given
        self._prepare = prepare
        self._mutex = threading.Lock()
        self._preparing = threading.Lock()
        self._opened: Database | None = None
        self._prepared: T_co | None = None
        self._is_closed = False
        self._pools: dict[Pool, ThreadPoolExecutor] = {
            name: ThreadPoolExecutor(threads, f"agentdb-connection-{name}") for name, threads in _THREADS.items()
        }
        self._closing: Future[None] | None = None
        self.on_close: Callable[[], None] | None = None
        """Called when no more calls come, and before the database is closed."""

    def __repr__(self) -> str:
        return repr(self._given if isinstance(self._given, Database) else os.fspath(self._given))

    def __call__(self) -> T_co:
        """Return what was prepared.

        Raises:
            ClosedError: the connection was closed.
            FormatError, AccessDeniedError, UnavailableError: see ``agentdb.open``.
        """
        prepared = self._prepared
        if prepared is None or self._is_closed:
            with self._mutex:
                self.check()
                database = self._database()
            if database.in_transaction:
                # Tables that are made inside a transaction of the caller may yet be rolled back. And no lock is taken: whoever
                # holds it may wait for this very transaction to end.
                return self._prepare(database) if prepared is None else prepared
            with self._preparing:
                prepared = self._prepared = self._prepare(database) if self._prepared is None else self._prepared
        return prepared

    def check(self) -> None:
        """Raise if it was closed.

        Raises:
            ClosedError: it was.
        """
        if self._is_closed:
            raise ClosedError(f"{self!r} is closed")

    def _database(self) -> Database:
        if isinstance(self._given, Database):
            return self._given
        if self._opened is None:
            self._opened = open(self._given)
        return self._opened

    async def run(self, pool: Pool, work: Callable[[], R]) -> R:
        """Return what ``work`` returns, called on a thread: the event loop goes on meanwhile.

        Cancelling abandons the wait: the work is then done or not done, never half of it.
        """
        self.check()
        try:
            # In the caller's context: a transaction that the task has open must be seen there, and refused.
            started = self._pools[pool].submit(copy_context().run, work)
        except RuntimeError:
            raise ClosedError(f"{self!r} is closed") from None
        return await asyncio.wrap_future(started)

    def close(self) -> None:
        """Let calls that have begun end, then close the database if it was opened here. Closing twice is allowed."""
        with self._mutex:
            self._is_closed = True
            opened, self._opened = self._opened, None
        for pool in self._pools.values():
            pool.shutdown(wait=True)
        if self.on_close is not None:
            self.on_close()
        if opened is not None:
            opened.close()

    async def aclose(self) -> None:
        """Do the same without blocking the event loop."""
        if self._closing is None:
            closer = ThreadPoolExecutor(1, "agentdb-connection-close")
            self._closing = closer.submit(self.close)
            closer.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(self._closing))


class Closing:
    """What all that stand on a connection share: ``close``, ``aclose`` and both kinds of ``with``."""

    _connection: Connection[Any]

    def close(self) -> None:
        """Let calls that have begun end, then close the database, unless it was given open. Closing twice is allowed."""
        self._connection.close()

    async def aclose(self) -> None:
        """Do the same without blocking the event loop."""
        await self._connection.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection!r})"
