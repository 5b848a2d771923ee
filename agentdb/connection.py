"""``Connection``: one database as the parts of a framework use it, opened at its first call, with threads for async callers.

For those who write an integration: a vector store, saver or retriever holds one ``Connection`` and derives from ``Closing``;
what stands on a collection prepares a ``NamedCollection``.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Never, Self, TypeVar

from agentdb.aio import AsyncDatabase, called
from agentdb.database import Database, open
from agentdb.embedding import Embedder
from agentdb.errors import AccessDeniedError, ClosedError, InvalidInputError, NotFoundError, UnavailableError
from agentdb.vectors.collection import Collection
from agentdb.vectors.definition import CollectionMetric, check_collection_name

__all__ = ["Closing", "Connection", "NamedCollection"]

R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)
Pool = Literal["read", "write"]

_THREADS: dict[Pool, int] = {"read": 16, "write": 32}
"""Waiting for a commit costs no processor, and writers that wait together share one; reads never queue behind them."""
_ATTEMPTS = 5
"""How often a collection may be dropped between being found and being used, until that is an error."""


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
        # Opened at the first call: from wherever the process has gone meanwhile, it is the database that was meant.
        self._given: Database | Path = given if isinstance(given, Database) else Path(given).absolute()
        self._prepare = prepare
        self._mutex = threading.Lock()
        self._preparing = threading.Lock()
        self._opened: Database | None = None
        self._prepared: T_co | None = None
        self._prepared_at = 0
        """The commit as of which all that was prepared is there."""
        self._is_closed = False
        self._pools: dict[Pool, ThreadPoolExecutor] = {
            name: ThreadPoolExecutor(threads, f"agentdb-connection-{name}") for name, threads in _THREADS.items()
        }
        self._closing: Future[None] | None = None
        self.on_close: Callable[[], None] | None = None
        """Called when no more calls come, and before the database is closed."""

    def __repr__(self) -> str:
        return repr(self._given if isinstance(self._given, Database) else str(self._given))

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself: what is copied together with its parts goes on in the same database, as a shallow copy does."""
        return self

    def __reduce__(self) -> Never:
        """Refuse to be pickled.

        Raises:
            TypeError: always; the other process opens the path itself.
        """
        raise TypeError(f"a connection to {self!r} cannot be pickled: give the other process the path, to make its own")

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
                prepared = self._prepared
                if prepared is None:
                    prepared = self._prepare(database)
                    with database._core.reading() as view:
                        self._prepared_at = view.commit_no
                    self._prepared = prepared
        return prepared

    def found(self) -> T_co | None:
        """Return what was prepared; None where it is not there and cannot be made: a database that is read-only, a snapshot.

        For reads: what is not there is empty. The next call looks again, because somebody may have made it meanwhile.

        Raises:
            ClosedError: the connection was closed.
            FormatError, AccessDeniedError, UnavailableError: see ``agentdb.open``.
        """
        try:
            prepared = self()
            if self._is_older(self._prepared_at):
                return self._prepare(self._database())
        except AccessDeniedError:
            database = self._open_database
            if database is not None and database.read_only:
                return None
            raise
        except UnavailableError:
            if self._is_older(None):
                return None
            raise
        return prepared

    def _is_older(self, commit_no: int | None) -> bool:
        """Whether the caller is in a snapshot, and one of before that commit."""
        database = self._open_database
        view = None if database is None else database._core.current()
        return view is not None and not view.writable and (commit_no is None or view.commit_no < commit_no)

    def check(self) -> None:
        """Raise if no call can be made any more.

        Raises:
            ClosedError: it was closed.
            UnavailableError: this is a forked child: on the parent's threads nothing would ever run.
        """
        if self._is_closed:
            raise ClosedError(f"{self!r} is closed")
        database = self._open_database
        if database is not None:
            database._core.check()

    @property
    def _open_database(self) -> Database | None:
        """The database, if it is open by now."""
        return self._given if isinstance(self._given, Database) else self._opened

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
            started = self._pools[pool].submit(copy_context().run, called, work)
        except RuntimeError:
            raise ClosedError(f"{self!r} is closed") from None
        return await asyncio.wrap_future(started)

    @staticmethod
    async def on_thread(work: Callable[[], R]) -> R:
        """Return what ``work`` returns, called on a thread that is none of a connection's.

        For what waits for others, such as an embedder: however slow that is, calls of the database go on meanwhile.
        """
        return await asyncio.to_thread(called, work)

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


class NamedCollection:
    """A collection by its name: never made by a read, made by the first vectors, dropped and made anew by anybody.

    For what stores vectors that tell how long they are only when they come. May be used by any thread. Calls join the caller's
    transaction or snapshot.

    Args:
        db: the database.
        name: of the collection. Those that begin with ``_`` are the managers' own.
        metric: of a new one, and what an existing one must have; None: cosine, or any.
        embedder: asked when the collection is opened: returns what makes its vectors from texts, or None if they are always
            given; a collection whose vectors an embedder makes is then refused, because those of two models do not compare.
            None in place of the function: an existing one is taken as it is; the vectors of a new one are given.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    def __init__(
        self,
        db: Database,
        name: str,
        *,
        metric: CollectionMetric | None = None,
        embedder: Callable[[], Embedder | None] | None = None,
    ) -> None:
        _check_named(name, metric)
        self.db = db
        self.name = name
        self.metric = metric
        self._embedder = embedder
        self._opened: Collection | None = None

    @classmethod
    def prepare(
        cls,
        name: str,
        *,
        metric: CollectionMetric | None = None,
        embedder: Callable[[], Embedder | None] | None = None,
    ) -> Callable[[Database], NamedCollection]:
        """Return what a `Connection` prepares; the arguments are checked now, and no database is opened for that.

        Raises:
            InvalidInputError: an argument cannot be accepted.
        """
        _check_named(name, metric)
        return lambda db: cls(db, name, metric=metric, embedder=embedder)

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself, as a `Connection` does."""
        return self

    def found(self) -> Collection | None:
        """Return the collection, None if there is none.

        Raises:
            InvalidInputError: it has another metric, or its vectors are made otherwise.
        """
        if self._opened is not None:
            return self._opened
        # One state for both questions: opening by name what was dropped in between would make it.
        with self.db.snapshot():
            return self._open(None) if self.name in self.db.collections() else None

    def read(self, work: Callable[[Collection], R]) -> R | None:
        """Return what ``work`` makes of the collection, None if there is none.

        ``work`` may be called again, where the collection is dropped and made anew meanwhile.

        Raises:
            InvalidInputError: it has another metric, or its vectors are made otherwise.
        """

        def use() -> R | None:
            found = self.found()
            return None if found is None else work(found)

        return self._again(use)

    def write(self, dimension: int, work: Callable[[Collection], R]) -> R:
        """Return what ``work`` makes of the collection, which is made for vectors of that many numbers if there is none.

        ``work`` may be called again, where the collection is dropped meanwhile.

        Raises:
            InvalidInputError: it has another dimension or metric, or its vectors are made otherwise.
        """
        return self._again(lambda: work(self._opened or self._open(dimension)))

    def drop(self) -> bool:
        """Drop the collection with all its rows; whether there was one."""
        self._opened = None
        return self.db.drop_collection(self.name)

    def _again(self, use: Callable[[], R]) -> R:
        for _ in range(_ATTEMPTS - 1):
            try:
                return use()
            except NotFoundError:
                self._opened = None  # somebody dropped it; by now there may be another of its name
        return use()

    def _open(self, dimension: int | None) -> Collection:
        # Without a mutex: whoever held it while another thread's transaction is open might wait for that one, and it for him.
        made_by = None if self._embedder is None else self._embedder()
        size = dimension if made_by is None else None
        opened = self.db.collection(self.name, dimension=size, metric=self.metric, embedder=made_by)
        if self._embedder is not None and made_by is None:
            identity = opened._store.read().embedder
            if identity is not None:
                raise InvalidInputError(
                    f"the vectors of collection {self.name} are made by embedder {identity.name!r}: pass that one, or None, as "
                    "embedding"
                )
        if not self.db.in_transaction:
            # One that was made inside a transaction of the caller may yet be rolled back.
            self._opened = opened
        return opened


def _check_named(name: object, metric: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        shown = "a name that begins with '_'" if isinstance(name, str) else type(name).__name__
        raise InvalidInputError(f"collection must be the name of one (str), not {shown}")
    check_collection_name(name)
    if metric not in (None, "cosine", "dot", "euclidean"):
        raise InvalidInputError(f"metric must be 'cosine', 'dot', 'euclidean' or None, not {metric!r:.40}")
