"""The engine of one database: opened once per process, however many handles there are."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from agentdb.config import Config
from agentdb.errors import (
    AccessDeniedError,
    ClosedError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from agentdb.filters import Filter
from agentdb.storage.backup import back_up
from agentdb.storage.core import LOCK_DIRECTORY, PIN_DIRECTORY, Core, View, WriteView
from agentdb.storage.files import fsync_directory
from agentdb.storage.flush import ColdEncoder, ColdWriter
from agentdb.storage.hot import DATABASE_FILE, FORMAT_VERSION, HotStore, TableEntry, UnfinishedError, microseconds
from agentdb.storage.locks import FileLock, fork_generation, refuse_network_file_system
from agentdb.storage.maintenance import Maintenance, MaintenanceJob
from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table
from agentdb.storage.verify import verify
from agentdb.types import ErasureReceipt, Key, OnProgress, Statistics, TableStatistics, VerifyReport

__all__ = ["Engine"]

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_registry: dict[tuple[str, bool], _Shared] = {}
_registry_mutex = threading.Lock()
_inherited: list[Any] = []
_inherited_paths: set[str] = set()


def _after_fork_in_child() -> None:
    """Forget the parent's engines, and keep what must not be closed here: SQLite connections it still uses."""
    global _registry_mutex  # noqa: PLW0603 - the parent's mutex may have been held by a thread that does not exist here
    _registry_mutex = threading.Lock()
    for (path, _), shared in _registry.items():
        _inherited_paths.add(path)
        _inherited.append(shared)
        _inherited.extend(shared.core.hot.leak())
    _registry.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Shared:
    """What the handles of one path in one process share."""

    def __init__(self, path: Path, config: Config, *, read_only: bool) -> None:
        self.handles = 0
        self.core = Core(path, config, read_only=read_only)
        self.writer = ColdWriter(self.core)
        self.maintenance = Maintenance(self.core, self.writer)

    def start(self) -> None:
        self.core.hot.check_format()
        with self.core.reading():
            pass  # loads the catalogue
        if self.core.config.maintenance and not self.core.read_only:
            self.maintenance.start()

    def close(self) -> None:
        """Finish what is on its way, flush what is worth it within the time allowed, and let go of everything."""
        core, config = self.core, self.core.config
        deadline = time.monotonic() + config.close_timeout_s
        core.closer = threading.get_ident()
        core.closed = True  # from here on, others' calls fail; those that have begun may end
        self.maintenance.stop(config.close_timeout_s)
        while core.busy() and time.monotonic() < deadline:
            time.sleep(0.001)
        if not core.read_only:
            # What is acknowledged is safe in the log already: whatever fails here costs the next open a little time.
            with contextlib.suppress(StorageError):
                self._flush_large(deadline)
                self.maintenance.checkpoint(truncate=True)
        core.closer = None
        while core.pins.busy() and time.monotonic() < deadline:
            time.sleep(0.001)
        core.close_stores()

    def _flush_large(self, deadline: float) -> None:
        core = self.core
        with core.reading() as view:
            waiting = [
                entry
                for entry in view.catalogue.by_name.values()
                if not entry.schema.hot_only
                and entry.hot.statistics(view.connection).rows >= core.config.close_flush_rows
            ]
        for entry in waiting:
            if time.monotonic() < deadline:
                self.writer.flush(entry.id, entry.name, timeout_s=max(deadline - time.monotonic(), 0))


def _prepare(path: Path, config: Config, *, read_only: bool, create: bool) -> None:
    """Check that a path is a database, or make it one; leave it alone otherwise.

    Raises:
        NotFoundError: there is nothing, and nothing may be created.
        FormatError: there is something else, or a newer format.
    """
    database = path / DATABASE_FILE
    if path.is_dir() and database.exists():
        try:
            HotStore.probe(path)
            return
        except UnfinishedError:
            if read_only or not create:
                raise
    elif path.exists() and not path.is_dir():
        raise FormatError(f"{path} is a file, not a database directory")
    elif path.is_dir() and not {one.name for one in path.iterdir()} <= {LOCK_DIRECTORY, PIN_DIRECTORY}:
        raise FormatError(f"{path} is a directory with other content, not a database")
    if read_only or not create:
        raise NotFoundError(f"there is no database at {path}")
    _create(path, config)


def _create(path: Path, config: Config) -> None:
    refuse_network_file_system(path)
    made = [path, *(one for one in path.parents if not one.exists())]
    try:
        for directory in (path, path / LOCK_DIRECTORY, path / PIN_DIRECTORY):
            directory.mkdir(parents=True, exist_ok=True)
        (path / LOCK_DIRECTORY / "readers.lock").touch()
    except OSError as error:
        raise StorageError(f"cannot create a database at {path}: {error.strerror}") from error
    lock = FileLock(path / LOCK_DIRECTORY / "write.lock")
    try:
        with lock.held(config.write_timeout_s, "the new database"):
            HotStore(path, durability=config.durability, read_only=False).create(
                config.id_source(), microseconds(config.clock())
            )
            try:
                for directory in (*made, made[-1].parent):
                    fsync_directory(directory)
            except OSError as error:
                raise StorageError(f"cannot force the new database to the disk: {error.strerror}") from error
    finally:
        lock.close()


class Engine:
    """One handle of a database: tables, transactions, snapshots, upkeep. Safe for threads; closed by `close` or ``with``."""

    def __init__(self, shared: _Shared) -> None:
        self._shared: _Shared | None = shared
        self._core = shared.core
        self._maintenance = shared.maintenance
        self._writer = shared.writer
        self._close_mutex = threading.Lock()

    @classmethod
    def open_path(
        cls, path: str | os.PathLike[str], *, read_only: bool = False, create: bool = True, config: Config | None = None
    ) -> _Shared:
        """Return the shared engine of a path, opened if this process has not opened it yet."""
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise InvalidInputError(f"path must be a non-empty str or PathLike, not {type(path).__name__}")
        if config is not None and not isinstance(config, Config):
            raise InvalidInputError(f"config must be a Config, not {type(config).__name__}")
        directory = Path(os.path.realpath(os.fspath(path)))
        if str(directory) in _inherited_paths:
            # SQLite's record of its locks came with the fork, the locks did not.
            raise UnavailableError(
                "the parent process had this database open when it forked, so this process cannot open it safely; "
                "start processes with the 'spawn' or 'forkserver' method"
            )
        with _registry_mutex:
            shared = _registry.get((str(directory), read_only))
            if shared is not None:
                if config is not None and config != shared.core.config:
                    raise InvalidInputError(
                        "this process has the database open with another config; pass none, or the same"
                    )
                shared.handles += 1
                return shared
            config = config or Config()
            if (str(directory), not read_only) in _registry:
                raise UnavailableError(
                    f"this process has the database open {'for writing' if read_only else 'read-only'}; use that handle"
                )
            _prepare(directory, config, read_only=read_only, create=create)
            if not read_only:
                refuse_network_file_system(directory)
                _check_writable(directory)
            shared = _Shared(directory, config, read_only=read_only)
            try:
                shared.start()
            except BaseException:
                shared.core.close_stores()
                raise
            shared.handles = 1
            _registry[str(directory), read_only] = shared
            return shared

    # --- handle -------------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The database's directory."""
        return self._core.path

    @property
    def config(self) -> Config:
        """The configuration of this process's engine."""
        return self._core.config

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._core.read_only

    @property
    def in_transaction(self) -> bool:
        """Whether the caller's thread or task has a transaction open, which its calls join."""
        view = self._core.current()
        return view is not None and view.writable

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._shared is None else "read-only" if self.read_only else "open"
        return f"{type(self).__name__}({str(self.path)!r}, {state})"

    def close(self) -> None:
        """Close this handle; the last one of the process flushes within ``Config.close_timeout_s`` and lets go of the files.

        Calls that other threads have begun end; later ones raise ``ClosedError``. Closing twice is allowed.

        Raises:
            UnavailableError: inside a transaction or snapshot of the caller.
        """
        with self._close_mutex:
            shared = self._shared
            if shared is not None and shared.core.generation == fork_generation() and shared.core.current() is not None:
                raise UnavailableError("close is not possible inside a transaction or snapshot; leave its block first")
            self._shared = None
        self._maintenance.remove(self)
        if shared is None or shared.core.generation != fork_generation():
            return
        with _registry_mutex:
            shared.handles -= 1
            if shared.handles:
                return
            # Within the mutex: whoever opens the path again must find everything let go of.
            _registry.pop((str(shared.core.path), shared.core.read_only), None)
            shared.close()

    def _check(self) -> None:
        self._core.check()
        if self._shared is None:
            raise ClosedError("this database handle is closed")

    # --- tables -------------------------------------------------------------------------------------------------------

    def table(self, schema: TableSchema | str) -> Table:
        """Return a table by its name, or by its schema, which creates it where it does not exist.

        Raises:
            NotFoundError: there is no table of that name.
            InvalidInputError: it exists with another definition.
        """
        self._check()
        if not isinstance(schema, TableSchema | str):
            raise InvalidInputError(f"table() takes a TableSchema or a name, not {type(schema).__name__}")
        name = schema if isinstance(schema, str) else schema.name
        entry = self._entry(name)
        if entry is None:
            if isinstance(schema, str):
                raise NotFoundError(f"there is no table {name!r}")
            self._core.transact(lambda: self._create_table(schema))
            entry = self._entry(name)
        if entry is None:
            raise NotFoundError(f"there is no table {name!r}")
        if isinstance(schema, TableSchema) and entry.schema != schema:
            raise InvalidInputError(f"table {name} exists with another definition; open it by its name to see it")
        return Table(self._core, self._writer, entry, self._erase)

    def _entry(self, name: str) -> TableEntry | None:
        with self._core.reading() as view:
            return view.catalogue.by_name.get(name)

    def _create_table(self, schema: TableSchema) -> None:
        view = self._core.writing()
        if schema.name not in view.catalogue.by_name:  # another process may have been quicker
            view.next_seq()
            self._core.hot.create_table(view.connection, schema)
            view.reload()

    def tables(self) -> list[str]:
        """Return the names of all tables but the managers' own (which begin with an underscore), sorted."""
        self._check()
        with self._core.reading() as view:
            return [name for name in view.catalogue.by_name if not name.startswith("_")]

    def drop_table(self, name: str) -> bool:
        """Drop a table with all its rows; whether there was one. Open snapshots keep what they see."""
        self._check()

        def work() -> bool:
            view = self._core.writing()
            entry = view.catalogue.by_name.get(name)
            if entry is None:
                return False
            self._core.hot.drop_table(view.connection, entry, view.next_seq())
            view.reload()
            return True

        return self._core.transact(work)

    # --- transactions -------------------------------------------------------------------------------------------------

    def transact(self, work: Callable[[], T]) -> T:
        """Run ``work`` once in a write transaction and return its result when it is durable.

        Table calls inside join the transaction. Concurrent callers share one commit, so ``work`` may run on another caller's
        thread: it must depend on nothing of its thread and wait for nobody. If it raises, what it wrote is undone.

        Raises:
            StorageError: no turn within ``Config.write_timeout_s`` (retryable), or the commit failed.
        """
        self._check()
        return self._core.transact(work)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make a block one serialisable transaction over all tables: committed at its end, undone if it raises.

        The write lock is held from entry on. Calls of the same thread or task join; a nested block undoes only itself. After
        ``Config.transaction_idle_timeout_s`` without a call it is rolled back.

        Raises:
            StorageError: no turn in time (retryable), timed out, or the commit failed.
            UnavailableError: inside a snapshot, or used from another thread or task.
        """
        self._check()
        with self._core.transaction():
            yield

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Make every read in a block see one state of all tables. Writes inside are refused."""
        self._check()
        with self._core.snapshot():
            yield

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def set_cold_encoder(self, table_name: str, encoder: ColdEncoder) -> None:
        """Let ``encoder`` rewrite a table's rows on their way to the cold tier."""
        self._writer.encoders[table_name] = encoder

    def add_maintenance(self, name: str, job: MaintenanceJob) -> None:
        """Run ``job(deadline) -> more`` every few seconds in the background, and to its end in `optimize`."""
        self._maintenance.add(name, job, self)

    def flush(self, name: str | None = None) -> int:
        """Move what waits in the hot tier to the cold tier, of one table or all; return the number of rows.

        Nothing becomes more durable by it: acknowledged writes are durable before.

        Raises:
            NotFoundError: there is no table of that name.
            StorageError: a cold lock was not free in time (retryable), or writing failed.
        """
        self._outside("flush")
        if name is not None and self._entry(name) is None:
            raise NotFoundError(f"there is no table {name!r}")
        return self._maintenance.flush_all(name)

    def optimize(self, on_progress: OnProgress | None = None) -> None:
        """Flush, compact, merge indices, clean up and shrink everything, now.

        Args:
            on_progress: called before each step; what it raises cancels the rest.
        """
        self._outside("optimize")
        self._maintenance.optimize(on_progress)

    def _outside(self, what: str) -> None:
        self._check()
        self._core.writable()
        if self._core.current() is not None:
            raise UnavailableError(f"{what} is not possible inside a transaction or snapshot")

    def stats(self) -> Statistics:
        """Return sizes and the state of maintenance."""
        self._check()
        core = self._core
        with core.reading() as view:
            database_id = view.connection.execute("SELECT database_id FROM meta").fetchone()[0]  # type: ignore[index]
            tables = {name: self._table_stats(view, entry) for name, entry in view.catalogue.by_name.items()}
            commits = view.commit_no
        return Statistics(
            path=str(core.path),
            database_id=database_id,
            format=FORMAT_VERSION,
            commits=commits,
            sqlite_bytes=(core.path / DATABASE_FILE).stat().st_size,
            wal_bytes=core.hot.wal_bytes(),
            cold_bytes=sum(one.cold_bytes for one in tables.values()),
            tables=tables,
            maintenance_error=self._maintenance.last_error,
        )

    def _table_stats(self, view: View, entry: TableEntry) -> TableStatistics:
        hot = entry.hot.statistics(view.connection)
        version = view.version(entry)
        if not version:
            return TableStatistics(hot.rows, hot.bytes, 0, 0, 0, 0)
        known = self._core.hot.known_files(view.connection, entry.id)
        files = self._core.cold.referenced_files(entry.dataset, version)
        dataset = self._core.cold.open(entry.dataset, version)
        return TableStatistics(
            hot_rows=hot.rows,
            hot_bytes=hot.bytes,
            cold_rows=self._core.cold.count(entry.dataset, version),
            cold_bytes=sum(known[path][0] for path in files if path in known),
            cold_version=version,
            fragments=len(dataset.get_fragments()),
        )

    def verify(self, on_progress: OnProgress | None = None) -> VerifyReport:
        """Check everything that is stored, and change nothing: digests, both tiers' rows, keys, terms and indices."""
        self._check()
        return verify(self._core, on_progress)

    def backup(self, target: str | os.PathLike[str], on_progress: OnProgress | None = None) -> None:
        """Write one consistent state to a new directory while others read and write; it is a database itself.

        Raises:
            InvalidInputError: the target exists and is not an empty directory.
            StorageError: it cannot be written; what was copied is removed.
        """
        self._check()
        if self._core.current() is not None:
            raise UnavailableError("backup is not possible inside a transaction or snapshot")
        back_up(self._core, Path(target), on_progress)

    # --- erasure ------------------------------------------------------------------------------------------------------

    def _erase(self, table: Table, keys: Sequence[Key] | None, condition: Filter | None) -> ErasureReceipt:
        self._check()
        erasure_id = self.config.id_source()
        requested_at = self.config.clock()

        def record(view: WriteView, entry: TableEntry, erased: list[str], seq: int) -> None:
            entry.hot.forget_terms(view.connection)
            self._core.hot.add_erasure(view.connection, erasure_id, entry, len(erased), seq, microseconds(requested_at))

        table._delete(keys, condition, record)
        self.settle_erasures()
        receipt = self.erasure(erasure_id)
        assert receipt is not None
        return receipt

    def settle_erasures(self) -> None:
        """Take every open erasure as far as the pins of readers allow, now rather than in the background.

        Inside a transaction there is nothing to do yet: what it erases is settled after its end.
        """
        self._check()
        if self._core.current() is None:
            try:
                self._maintenance.settle_erasures()
            except StorageError as error:
                # The rows are gone for every reader; the receipts say that the proof is still open.
                self._maintenance.failed("erasure", error)

    def erasure(self, erasure_id: str) -> ErasureReceipt | None:
        """Return the receipt of an erasure as it stands now; None if there is no such erasure."""
        self._check()
        with self._core.reading() as view:
            found = self._core.hot.erasure(view.connection, erasure_id)
        if found is None:
            return None
        table, rows, requested, completed = found
        return ErasureReceipt(
            id=erasure_id,
            table=table,
            rows=rows,
            status="pending" if completed is None else "complete",
            requested_at=_EPOCH + timedelta(microseconds=requested),
            completed_at=None if completed is None else _EPOCH + timedelta(microseconds=completed),
        )


def _check_writable(path: Path) -> None:
    for directory in (path / LOCK_DIRECTORY, path / PIN_DIRECTORY):
        try:
            directory.mkdir(exist_ok=True)
        except OSError as error:
            raise AccessDeniedError(f"the database at {path} cannot be written; open it with read_only=True") from error
    if not os.access(path, os.W_OK):
        raise AccessDeniedError(f"the database at {path} cannot be written; open it with read_only=True")
