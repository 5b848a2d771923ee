"""Snapshots, transactions and group commit: the part of the engine that all handles of one path in a process share.

A *view* is what an operation sees: a snapshot (``ReadView``) or an open transaction (``WriteView``). Operations ask for
the current view of their thread or task and join it; without one they get a snapshot of their own, or hand their work to
the commit queue, where concurrent writers share one SQLite commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import apsw

from agentdb.config import Config
from agentdb.errors import (
    AccessDeniedError,
    AgentDBError,
    ClosedError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from agentdb.storage.cold import ColdStore
from agentdb.storage.hot import Catalogue, HotStore, TableEntry, storage_errors
from agentdb.storage.locks import FileLock, Pins, close_after_fork, fork_generation

__all__ = ["Core", "ReadView", "View", "WriteView"]

T = TypeVar("T")

LOCK_DIRECTORY = "locks"
PIN_DIRECTORY = "pins"
_MAX_GROUP = 256
"""Writers that share one commit: bounds how long the first of them waits."""


def _owner() -> tuple[int, int]:
    """Identify the running thread and task: a view belongs to one of each."""
    task = None
    if asyncio._get_running_loop() is not None:
        task = asyncio.current_task()
    return threading.get_ident(), id(task) if task is not None else 0


class View:
    """One consistent state of the whole database."""

    writable = False

    def __init__(self, core: Core, connection: apsw.Connection, commit_no: int, catalogue: Catalogue) -> None:
        self.core = core
        self.connection = connection
        self.commit_no = commit_no
        self.catalogue = catalogue
        self.owner = _owner()
        self.is_over = False
        """Its block was left. Tasks and threads that were started inside still name it in their context."""
        self._versions: dict[int, int] = {}

    def entry(self, table_id: int, name: str) -> TableEntry:
        """Return a table's definition in this state.

        Raises:
            NotFoundError: it was dropped, or is not created yet in this state.
        """
        found = self.catalogue.by_id.get(table_id)
        if found is None:
            raise NotFoundError(f"table {name} does not exist in this state of the database; it may have been dropped")
        return found

    def version(self, entry: TableEntry) -> int:
        """Return the Lance version that belongs to this state; 0: nothing is in the cold tier."""
        found = self._versions.get(entry.id)
        if found is None:
            found = self.core.hot.version(self.connection, entry.id)
            self._versions[entry.id] = found
        return found

    def check(self) -> None:
        """Raise unless the calling thread and task are those that opened the view."""
        if self.owner != _owner():
            kind = "transaction" if self.writable else "snapshot"
            raise UnavailableError(
                f"the current {kind} belongs to another thread or task; open one of your own, or leave its block first"
            )

    def use(self) -> contextlib.AbstractContextManager[None]:
        """Guard one operation on the view."""
        return _UNGUARDED

    def pin(self) -> int:
        """Pin the cold tier of this state for an iterator that may outlive the view; return a token for `Pins.release`."""
        # Nobody else commits during a transaction: what is newest now is at least as old as what it sees.
        return self.core.pins.again(None)


_UNGUARDED = contextlib.nullcontext()


class ReadView(View):
    """A snapshot: hot rows and Lance versions as of one commit."""

    def __init__(self, core: Core, connection: apsw.Connection, commit_no: int, catalogue: Catalogue, pin: int) -> None:
        super().__init__(core, connection, commit_no, catalogue)
        self._pin = pin

    def pin(self) -> int:
        """Pin the cold tier of this state again; return a token of its own."""
        return self.core.pins.again(self._pin)

    def close(self) -> None:
        """Give the connection and the pin back."""
        self.core.hot.give_reader(self.connection)
        self.core.pins.release(self._pin)


class WriteView(View):
    """An open write transaction: sees its own writes, and nobody else's appear while it lasts."""

    writable = True

    def __init__(self, core: Core, connection: apsw.Connection, meta: tuple[int, int], catalogue: Catalogue) -> None:
        super().__init__(core, connection, meta[0], catalogue)
        self._row_no = meta[1]
        self._mutex = threading.RLock()
        self._guard = _Guard(self)
        self.last_used = time.monotonic()
        self.expired = False
        self.committing = False
        self.touched: dict[int, int] = {}
        """Bytes written by table, for the maintenance thread."""
        self.on_end: list[Callable[[], None]] = []

    def next_seq(self) -> int:
        """Return the commit number of the next unit of work."""
        self.commit_no += 1
        return self.commit_no

    def reserve(self, rows: int) -> int:
        """Return the first of so many write numbers."""
        first = self._row_no + 1
        self._row_no += rows
        return first

    def counters(self) -> tuple[int, int]:
        """Return the commit number and the write number reached so far."""
        return self.commit_no, self._row_no

    def published(self, entry: TableEntry, version: int) -> None:
        """Note that this transaction points the catalogue at another version."""
        self._versions[entry.id] = version

    def alive(self) -> None:
        """Raise if SQLite has rolled the transaction back by itself, as it does when a write fails in its midst.

        What followed would run, and be kept, statement by statement.

        Raises:
            StorageError: it has; retryable.
        """
        if not self.connection.in_transaction:
            raise StorageError("the transaction was rolled back because a write in it failed", retryable=True)

    def committed(self, error: BaseException) -> bool:
        """Whether the commit succeeded although ``error`` was raised: an interrupt that came right after it."""
        return self.committing and not isinstance(error, apsw.Error) and not self.connection.in_transaction

    def let_go(self) -> None:
        """Release what the transaction held, now that it is over."""
        while self.on_end:
            self.on_end.pop()()

    def reload(self) -> None:
        """Read the catalogue again after this transaction changed it."""
        self.catalogue = self.core.hot.load(self.connection)
        self._versions.clear()

    def use(self) -> contextlib.AbstractContextManager[None]:
        """Guard one operation: not after a time-out, and not while one rolls back."""
        return self._guard

    def savepoint(self) -> contextlib.AbstractContextManager[None]:
        """Undo what the block wrote if it raises, and nothing else."""
        return _Savepoint(self)


class _Savepoint:
    """Undoes what a block wrote if it raises.

    A class for one more reason: a generator that an interrupt leaves behind goes on when it is collected, and would roll back
    to a savepoint of whoever has the connection then.
    """

    def __init__(self, view: WriteView) -> None:
        self._view = view

    def __enter__(self) -> None:
        view = self._view
        self._before = view.catalogue, dict(view._versions)
        view.connection.execute("SAVEPOINT unit")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        view = self._view
        if kind is None:
            view.connection.execute("RELEASE unit")
            return
        if view.connection.in_transaction and not view.expired:
            view.connection.execute("ROLLBACK TO unit")
            view.connection.execute("RELEASE unit")
        view.catalogue, view._versions = self._before


class _Nested(_Savepoint):
    """A transaction inside a transaction, which may have ended by the time the block does."""

    def __enter__(self) -> None:
        with self._view.use(), storage_errors():
            super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and (self._view.expired or self._view.is_over):
            return  # nothing is left to undo
        with self._view.use(), storage_errors():
            super().__exit__(kind, error, trace)


class _Guard:
    """One operation on a transaction. A class, because generators are slow and every call passes here."""

    def __init__(self, view: WriteView) -> None:
        self._view = view

    def __enter__(self) -> None:
        view = self._view
        view._mutex.acquire()
        if view.expired:
            view._mutex.release()
            raise StorageError(
                "the transaction was rolled back because it was idle for longer than Config.transaction_idle_timeout_s",
                retryable=True,
            )
        try:
            view.alive()
        except BaseException:
            view._mutex.release()
            raise

    def __exit__(self, *exc: object) -> None:
        self._view.last_used = time.monotonic()
        self._view._mutex.release()


class _Reading:
    """Gives a block the current view, or a snapshot of its own; a class for the same reason."""

    __slots__ = ("_core", "_guard", "_own")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._own: ReadView | None = None
        self._guard: contextlib.AbstractContextManager[None] | None = None

    def __enter__(self) -> View:
        core = self._core
        core.check()
        view = core.current()
        if view is None:
            self._own = core.open_view()
            return self._own
        self._guard = view.use()
        self._guard.__enter__()
        return view

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._own is not None:
            self._own.close()
        elif self._guard is not None:
            self._guard.__exit__(None, None, None)
        if error is not None:
            storage_errors().__exit__(kind, error, trace)


class _Entered:
    """Makes a view the current one for a block."""

    __slots__ = ("_token", "_view")

    def __init__(self, view: View) -> None:
        self._view = view

    def __enter__(self) -> None:
        self._token = _scopes.set((*_scopes.get(), self._view))

    def __exit__(self, *exc: object) -> None:
        _scopes.reset(self._token)


class _Snapshot:
    """Makes a snapshot the current view for a block that is in none."""

    __slots__ = ("_core", "_entered", "_own")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._own: ReadView | None = None

    def __enter__(self) -> View:
        core = self._core
        core.check()
        view = core.current()
        if view is None:
            view = self._own = core.open_view()
            try:
                self._entered = _Entered(view)
                self._entered.__enter__()
            except BaseException:
                view.close()
                raise
        return view

    def __exit__(self, *exc: object) -> None:
        view = self._own
        if view is None:
            return
        try:
            self._entered.__exit__()
        finally:
            view.is_over = True
            with storage_errors():
                view.close()


class _Batch:
    """The units that share one commit. One flag for all: an interrupt cannot tell them different things."""

    __slots__ = ("committed", "leader", "units")

    def __init__(self, leader: _Unit) -> None:
        self.leader = leader
        self.units: list[_Unit] = []
        self.committed = False

    def tell(self) -> None:
        """Wake whoever waits for the outcome; once more does no harm."""
        for unit in self.units:
            with contextlib.suppress(RuntimeError):
                unit.signal.release()


class _Unit:
    """One caller's work in the commit queue."""

    __slots__ = ("batch", "error", "lead", "result", "signal", "state", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.state = "waiting"  # -> running, or -> withdrawn
        self.batch = _Batch(self)
        self.lead = False
        self.signal = threading.Lock()
        self.signal.acquire()


_scopes: ContextVar[tuple[View, ...]] = ContextVar("agentdb_views", default=())


class Core:
    """What one process needs once per database, however many handles it has open."""

    def __init__(self, path: Path, config: Config, *, read_only: bool) -> None:
        self.path = path
        self.config = config
        self.read_only = read_only
        self.closed = False
        self.closer: int | None = None
        """The thread that may still work while the engine closes."""
        self.generation = fork_generation()
        self.hot = HotStore(path, durability=config.durability, read_only=read_only)
        self.cold = ColdStore(path, cache_bytes=config.cache_bytes)
        self.write_lock = FileLock(path / LOCK_DIRECTORY / "write.lock")
        self._locks: dict[str, FileLock] = {}
        self._mutex = threading.Lock()
        self._queue: deque[_Unit] = deque()
        self._leading = False
        self.watched: _Watch | None = None
        self.watchdog: threading.Thread | None = None
        self._over = threading.Event()
        self.catalogue = Catalogue(-1, {}, {})
        self.pins = Pins(path / PIN_DIRECTORY, config.id_source()) if not read_only else _ReadOnlyPins(path)
        self.on_commit: Callable[[dict[int, int]], None] = lambda _: None
        self.before_write: Callable[[], None] = lambda: None

    # --- views --------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise unless this process may use the engine.

        Raises:
            ClosedError: it was closed.
            UnavailableError: this is a forked child.
        """
        if self.generation != fork_generation():
            raise UnavailableError(
                "this database was opened before a fork and cannot be used in the child; "
                "start processes with the 'spawn' or 'forkserver' method"
            )
        if self.closed and self.closer != threading.get_ident():
            raise ClosedError("the database is closed")

    def innermost(self) -> View | None:
        """Return the view that the caller's context names, whoever opened it."""
        for view in reversed(_scopes.get()):
            if view.core is self and not view.is_over:
                return view
        return None

    def current(self) -> View | None:
        """Return the view that the calling thread or task is in."""
        view = self.innermost()
        if view is not None:
            view.check()
        return view

    def writing(self) -> WriteView:
        """Return the transaction that `transact` runs its work in."""
        view = self.current()
        assert isinstance(view, WriteView), "only called by work that transact runs"
        return view

    def entered(self, view: View) -> contextlib.AbstractContextManager[None]:
        """Make a view the current one for a block."""
        return _Entered(view)

    def open_view(self) -> ReadView:
        """Return a new snapshot, to be closed by the caller."""
        pin = self.pins.register()
        try:
            with storage_errors():
                connection = self.hot.take_reader()
                try:
                    connection.execute("BEGIN")
                    # A bare BEGIN takes no snapshot: the first read does.
                    no, commit_no = connection.execute("SELECT catalogue_no, commit_no FROM meta").fetchone()  # type: ignore[misc]
                    catalogue = self._catalogue(connection, no)
                except BaseException:
                    self.hot.give_reader(connection)
                    raise
        except BaseException:
            self.pins.release(pin)
            raise
        self.pins.learn(commit_no)
        return ReadView(self, connection, commit_no, catalogue, pin)

    def _catalogue(self, connection: apsw.Connection, no: int) -> Catalogue:
        known = self.catalogue
        if known.no != no:
            known = self.hot.load(connection)
            if known.no > self.catalogue.no:
                self.catalogue = known
        return known

    def reading(self) -> contextlib.AbstractContextManager[View]:
        """Give a block the current view, or a snapshot of its own."""
        return _Reading(self)

    # --- locks --------------------------------------------------------------------------------------------------------

    def cold_lock(self, table_id: int) -> FileLock:
        """Return the lock of a table's Lance data; taken before the write lock, several in the order of their names."""
        return self._lock(f"cold-{table_id}.lock")

    def index_lock(self, table_id: int) -> FileLock:
        """Return the lock that an index build of a table holds, before the cold lock if it takes both."""
        return self._lock(f"index-{table_id}.lock")

    def _lock(self, name: str) -> FileLock:
        with self._mutex:
            lock = self._locks.get(name)
            if lock is None:
                lock = self._locks[name] = FileLock(self.path / LOCK_DIRECTORY / name)
            return lock

    # --- writes -------------------------------------------------------------------------------------------------------

    def writable(self) -> None:
        """Raise unless writes are possible here.

        Raises:
            AccessDeniedError: the database was opened read-only.
        """
        self.check()
        if self.read_only:
            raise AccessDeniedError("the database was opened with read_only=True")

    def transact(self, work: Callable[[], T], *, single: bool = False, upkeep: bool = False) -> T:
        """Run ``work`` once inside a write transaction and return its result after the commit.

        In a transaction of the calling thread or task it joins that one; otherwise concurrent callers share one commit, and
        ``work`` may run on another caller's thread. What it wrote is undone if it raises.

        Args:
            work: reads and writes through tables; must not wait for another writer.
            single: the work is one SQL statement, which undoes itself; saves a savepoint when it joins.
            upkeep: it makes room itself, so it must not wait for room.

        Raises:
            StorageError: the turn did not come within ``Config.write_timeout_s`` (retryable), or the commit failed.
        """
        self.writable()
        view = self.current()
        if view is not None:
            if not isinstance(view, WriteView):
                raise UnavailableError("a snapshot is open in this thread or task; leave its block before you write")
            with view.use(), storage_errors(), contextlib.nullcontext() if single else view.savepoint():
                return work()
        if not upkeep:
            self.before_write()
        return self._submit(work)

    def _submit(self, work: Callable[[], T]) -> T:
        unit = _Unit(work)
        deadline = time.monotonic() + self.config.write_timeout_s
        try:
            with self._mutex:
                self._queue.append(unit)
                unit.lead = not self._leading
                self._leading = True
            if not unit.lead:
                self._wait(unit, deadline)
            if unit.lead:
                self._lead(unit, deadline)
        except BaseException:
            # Interrupted: the work must not be done later behind the caller's back, and somebody must lead.
            self.write_lock.withdraw(unit)
            self._withdraw(unit, lead=True)
            if unit.batch.leader is unit:
                unit.batch.tell()
            raise
        if unit.error is not None:
            raise unit.error
        if not unit.batch.committed:
            raise StorageError("the commit was interrupted by another thread's exception", retryable=True)
        return unit.result  # type: ignore[no-any-return]

    def _wait(self, unit: _Unit, deadline: float) -> None:
        if unit.signal.acquire(timeout=max(deadline - time.monotonic(), 0)):
            return
        if not self._withdraw(unit):
            unit.signal.acquire()  # It runs already, or it was just chosen to lead.

    def _withdraw(self, unit: _Unit, *, lead: bool = False) -> bool:
        """Take a waiting unit out of the queue; False if it is too late for that, or it leads and may not pass that on."""
        with self._mutex:
            if unit.lead and not lead:
                return False
            waiting = unit.state == "waiting" and unit in self._queue
            if waiting:
                unit.state = "withdrawn"
                self._queue.remove(unit)
                unit.error = self._timed_out()
            if unit.lead:
                self._pass_on(unit)
        return waiting

    def _pass_on(self, unit: _Unit) -> None:
        """Let the next in the queue lead. The caller holds the mutex and is the leader."""
        unit.lead = False
        following = self._queue[0] if self._queue else None
        self._leading = following is not None
        if following is not None:
            following.lead = True
            following.signal.release()

    def _timed_out(self) -> StorageError:
        return StorageError(
            f"no turn to write within {self.config.write_timeout_s:g} s; another writer holds the lock", retryable=True
        )

    def _lead(self, own: _Unit, deadline: float) -> None:
        """Take the write lock, commit everything that waits in one transaction, and pass the lead on."""
        batch = own.batch
        try:
            if not self.write_lock.acquire(max(deadline - time.monotonic(), 0), own):
                with self._mutex:
                    own.state = "withdrawn"
                    self._queue.remove(own)
                own.error = self._timed_out()
                return
            with self._mutex:
                while self._queue and len(batch.units) < _MAX_GROUP:
                    unit = self._queue[0]
                    batch.units.append(unit)
                    unit.state, unit.batch = "running", batch
                    self._queue.popleft()
            self._commit_batch(batch, batch.units)
        except AgentDBError as error:
            for unit in batch.units:
                unit.error = unit.error or error
            own.error = error
        except BaseException as error:
            own.error = error  # Its own only: the others' work is what the batch says.
        finally:
            self.write_lock.withdraw(own)
            with self._mutex:
                for unit in (own, *batch.units):
                    if unit in self._queue:
                        self._queue.remove(unit)
                self._pass_on(own)
            batch.tell()

    def _commit_batch(self, shared: _Batch, batch: list[_Unit]) -> None:
        with storage_errors():
            view = self._begin()
            try:
                with self.entered(view):
                    if len(batch) == 1:
                        # Alone, it needs no savepoint: what undoes it is the transaction.
                        batch[0].result = batch[0].work()
                    else:
                        for unit in batch:
                            self._run_unit(view, unit)
                self._commit(view)
                shared.committed = True
            except BaseException as error:
                if view.committed(error):
                    shared.committed = True
                else:
                    self._rollback(view)
                raise
            finally:
                view.is_over = True  # Even where an interrupt kept it the current one.
                view.let_go()
        self.on_commit(view.touched)

    def _run_unit(self, view: WriteView, unit: _Unit) -> None:
        try:
            with storage_errors(), view.savepoint():
                unit.result = unit.work()
        except Exception as error:  # it belongs to the caller of that unit
            unit.error = error
            view.alive()

    def _begin(self) -> WriteView:
        connection = self.hot.writer
        if connection.in_transaction:
            connection.execute("ROLLBACK")  # Left by a writer that was interrupted at the wrong moment.
        try:
            connection.execute("BEGIN IMMEDIATE")
            no, commit_no, row_no = connection.execute("SELECT catalogue_no, commit_no, row_no FROM meta").fetchone()  # type: ignore[misc]
            return WriteView(self, connection, (commit_no, row_no), self._catalogue(connection, no))
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _commit(self, view: WriteView) -> None:
        connection = view.connection
        view.alive()
        connection.execute("UPDATE meta SET commit_no = ?, row_no = ?", view.counters())
        view.committing = True
        connection.execute("COMMIT")
        if view.catalogue.no > self.catalogue.no:
            self.catalogue = view.catalogue
        self.pins.learn(view.commit_no)

    def settle_log(self) -> None:
        """Make sure that what this process reads in the catalogue is what every later process will read there.

        A writer that is killed in its commit may leave it complete in the log and not in the log's index: nobody sees it,
        until all processes have gone and the next one recovers the log. A commit in its place settles that. It is forced to
        the disk whatever ``Config.durability`` says, and with it every commit before it.

        Raises:
            StorageError: the write lock was not free in time (retryable), or the commit failed.
        """
        with self.write_lock.held(self.config.write_timeout_s, "the database"), storage_errors():
            relaxed = self.config.durability != "full"
            if relaxed:
                self.hot.writer.execute("PRAGMA synchronous=FULL").fetchall()
            try:
                view = self._begin()
                try:
                    view.next_seq()
                    self._commit(view)
                except BaseException:
                    self._rollback(view)
                    raise
            finally:
                if relaxed:
                    self.hot.writer.execute("PRAGMA synchronous=NORMAL").fetchall()

    def _rollback(self, view: WriteView) -> None:
        connection = view.connection
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if view.committing:
                # A commit that failed while it was forced to the disk may lie in the log, complete: the next process to
                # recover the log would find it. Another commit in its place takes it away; one that changes a value, because
                # SQLite does not write a page that stays as it is.
                connection.execute("UPDATE meta SET commit_no = commit_no + 1")
        except apsw.Error:
            # The disk is gone for now. The next writer starts on a fresh connection, which reads the log anew.
            with contextlib.suppress(apsw.Error):
                connection.close()
            self.hot._writer = None

    # --- explicit transactions and snapshots --------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[WriteView]:
        """Hold a write transaction for a block: committed at its end, rolled back if it raises."""
        self.writable()
        view = self.current()
        if view is not None:
            if not isinstance(view, WriteView):
                raise UnavailableError("a snapshot is open in this thread or task; leave its block before you write")
            # Inside, each operation guards itself; here only the outcome of the block counts.
            with _Nested(view):
                yield view
            return
        self.before_write()
        owner, watch = object(), None
        try:
            if not self.write_lock.acquire(self.config.write_timeout_s, owner):
                raise self._timed_out()
            with storage_errors():
                began = self._begin()
            watch = _Watch(self, began, owner)
            with self.entered(began):
                yield began
            began.is_over = True
            watch.end(commit=True)
        except BaseException:
            if watch is not None:
                began.is_over = True
                watch.end(commit=False)
            self.write_lock.withdraw(owner)
            raise
        self.on_commit(began.touched)

    def expire_idle(self) -> None:
        """Look after explicit transactions until the engine is closed; the watchdog's thread."""
        while not self._over.wait(min(self.config.transaction_idle_timeout_s / 8, 1.0)) and not self.closed:
            watch = self.watched
            if watch is not None:
                watch.check()

    def snapshot(self) -> contextlib.AbstractContextManager[View]:
        """Hold one consistent state for a block; in a transaction, the transaction's."""
        return _Snapshot(self)

    # --- end ----------------------------------------------------------------------------------------------------------

    def busy(self) -> bool:
        """Whether a write is on its way."""
        with self._mutex:
            return self._leading

    def close_stores(self) -> None:
        """Close connections, pins and lock files, and end the watchdog."""
        self._over.set()
        self.hot.close()
        self.cold.forget()
        self.pins.close()
        self.write_lock.close()
        for lock in self._locks.values():
            lock.close()


class _Watch:
    """Ends an explicit transaction: at the end of its block, or when it stays idle too long.

    One thread looks after all of a database, started with the first: there is never more than one transaction at a time, and
    a timer for each would cost a thread each.
    """

    def __init__(self, core: Core, view: WriteView, owner: object) -> None:
        self._core = core
        self._view = view
        self._owner = owner
        self._timeout_s = core.config.transaction_idle_timeout_s
        core.watched = self
        if core.watchdog is None or not core.watchdog.is_alive():
            core.watchdog = threading.Thread(target=core.expire_idle, name="agentdb-idle-timeout", daemon=True)
            core.watchdog.start()

    def check(self) -> None:
        """Roll the transaction back if it was idle for too long."""
        view = self._view
        with view._mutex:
            if view.expired or not self._core.write_lock.owned_by(self._owner):
                return
            if view.last_used + self._timeout_s > time.monotonic():
                return
            view.expired = True
            self._finish(lambda: self._core._rollback(view))

    def end(self, *, commit: bool) -> None:
        """Commit or roll back, and give the write lock back.

        Raises:
            StorageError: the transaction timed out before, or the commit failed.
        """
        view = self._view
        if self._core.generation != fork_generation():
            self._core.check()  # A forked child: the transaction, and its lock, are the parent's.
        with view._mutex:
            if view.expired:
                if commit:
                    with view.use():
                        pass
                return
            view.expired = True
            self._finish((lambda: self._commit(view)) if commit else (lambda: self._core._rollback(view)))

    def _commit(self, view: WriteView) -> None:
        with storage_errors():
            try:
                self._core._commit(view)
            except BaseException:
                self._core._rollback(view)
                raise

    def _finish(self, outcome: Callable[[], None]) -> None:
        try:
            outcome()
        finally:
            self._core.write_lock.withdraw(self._owner)
            if self._core.watched is self:
                self._core.watched = None
            self._view.let_go()


class _ReadOnlyPins:
    """Pins of a read-only handle, which writes nothing: a shared lock that no cleaner passes."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        with contextlib.suppress(OSError):
            self._descriptor = os.open(path / LOCK_DIRECTORY / "readers.lock", os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        close_after_fork(self)

    def register(self) -> int:
        return 0

    def again(self, token: int | None) -> int:
        return token or 0

    def release(self, token: int) -> None: ...

    def active(self) -> bool:
        return False

    def busy(self) -> bool:
        return False

    def learn(self, commit: int) -> None: ...

    def publish(self) -> None: ...

    def floor(self) -> int:
        raise InvalidInputError("a read-only database is never cleaned")

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    abandon = close
