"""Upkeep, in bounded steps: flush, compaction, clean-up, checkpoints, erasures, and jobs that managers register.

One background thread per process does it; a step that finds a table's cold lock taken leaves the table to whoever has it.
Nothing here runs on a caller's write, except that a full hot tier makes writers wait.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from agentdb.errors import AgentDBError, ClosedError, NotFoundError, StorageError
from agentdb.storage.core import Core
from agentdb.storage.flush import ColdWriter
from agentdb.storage.hot import PAGE_BYTES, TableEntry, microseconds, storage_errors
from agentdb.storage.locks import LockedError
from agentdb.types import OnProgress, Progress

__all__ = ["Maintenance", "MaintenanceJob"]

log = logging.getLogger("agentdb")

MaintenanceJob = Callable[[float], bool]
"""``job(deadline) -> more``: works until ``time.monotonic()`` reaches the deadline; whether there is more to do."""

_JOB_S = 0.2
_JOB_EVERY_S = 5.0
_CLEAN_EVERY_S = 2.0
_VACUUM_PAGES = 2_000
_MANY_FREE_PAGES = 4_096
_MAX_BACKOFF_S = 30.0
_IDLE_TICKS = 4
"""So many times less often a thread looks for work that found none. A thread that wakes up costs those who are at it: each of
their calls of SQLite hands the interpreter over, and back."""
_PRESSED = 4
"""A log so many times over its limit is checkpointed by writers themselves."""


class Maintenance:
    """The upkeep of one database in one process."""

    def __init__(self, core: Core, writer: ColdWriter) -> None:
        self._core = core
        self._writer = writer
        self._jobs: dict[str, dict[object, MaintenanceJob]] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._counts = threading.Lock()
        self._fresh_bytes: dict[int, int] = {}
        self._hot_bytes = 0
        self._seen_commit = -1
        self._is_idle = False
        """The last step found nothing to do."""
        self._waiting_since: dict[int, float] = {}
        self._retry_at: dict[int, tuple[float, float]] = {}
        self._last_clean = 0.0
        self._last_jobs = 0.0
        self._last_pressed = 0.0
        self.last_error: str | None = None
        core.on_commit = self._committed
        core.before_write = self._make_room

    def add(self, name: str, job: MaintenanceJob, handle: object) -> None:
        """Run a job every few seconds, in steps of at most 200 ms; of several handles' jobs of one name, one."""
        self._jobs[name] = {**self._jobs.get(name, {}), handle: job}

    def remove(self, handle: object) -> None:
        """Forget the jobs of a handle that is closed."""
        for name, jobs in list(self._jobs.items()):
            self._jobs[name] = {one: job for one, job in jobs.items() if one is not handle}

    def _current_jobs(self) -> list[tuple[str, MaintenanceJob]]:
        return [(name, next(reversed(jobs.values()))) for name, jobs in list(self._jobs.items()) if jobs]

    def start(self) -> None:
        """Start the background thread."""
        self._thread = threading.Thread(target=self._loop, name="agentdb-maintenance", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stop the background thread after the step it is in."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    # --- called by writers --------------------------------------------------------------------------------------------

    def _committed(self, touched: dict[int, int]) -> None:
        if self._is_idle:
            self._is_idle = False
            self._wake.set()
        with self._counts:
            for table_id, size in touched.items():
                total = self._fresh_bytes[table_id] = self._fresh_bytes.get(table_id, 0) + size
                self._hot_bytes += size
                if total >= self._core.config.flush_bytes:
                    self._wake.set()

    def _make_room(self) -> None:
        """Hold a writer up while the hot tier or the log is over its limit."""
        limit = self._core.config.wal_limit_bytes * _PRESSED
        now = time.monotonic()
        if self._log_bytes() > limit and now - self._last_pressed > 1.0 and not self.checkpoint():
            self._last_pressed = now  # a reader is in the way: not every writer should try
        if self._hot_bytes <= self._core.config.hot_limit_bytes:
            return
        deadline = now + self._core.config.write_timeout_s
        while self._hot_bytes > self._core.config.hot_limit_bytes:
            if self._thread is None:
                self.flush_all()
            if self._hot_bytes > self._core.config.hot_limit_bytes and time.monotonic() >= deadline:
                raise StorageError(
                    f"the hot tier is over Config.hot_limit_bytes and cannot be flushed: {self.last_error or 'busy'}",
                    retryable=True,
                )
            self._wake.set()
            time.sleep(0.02)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._core.config.tick_s * (_IDLE_TICKS if self._is_idle else 1))
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self._step()
            except AgentDBError as error:
                self.failed("maintenance", error)
            except Exception as error:
                self.last_error = type(error).__name__
                log.exception("maintenance failed")

    def failed(self, what: str, error: AgentDBError) -> None:
        """Note that something went wrong that nobody waits for, unless it is that the database was closed meanwhile."""
        if self._stop.is_set() and isinstance(error, ClosedError):
            return
        self.last_error = f"{what}: {error}"
        log.warning("%s failed: %s", what, error)

    def _step(self) -> None:
        self._core.pins.publish()
        now = time.monotonic()
        with self._core.reading() as view:
            commit_no = view.commit_no
            entries = list(view.catalogue.by_name.values())
        changed = commit_no != self._seen_commit
        self._is_idle = not changed and not self._waiting_since
        if not self._is_idle:
            self._seen_commit = commit_no
            self._flush_due(entries, now)
        if self._log_bytes() > self._core.config.wal_limit_bytes:
            # One that an interrupted checkpoint let grow is cut back to its ordinary length.
            self.checkpoint(truncate=self._core.hot.wal_bytes() > self._core.config.wal_limit_bytes * _PRESSED)
        if now - self._last_clean >= _CLEAN_EVERY_S and changed:
            self._last_clean = now
            self._tidy(entries)
        if now - self._last_jobs >= _JOB_EVERY_S:
            self._last_jobs = now
            self._run_jobs()
            self.settle_erasures()

    def _flush_due(self, entries: list[TableEntry], now: float) -> None:
        config = self._core.config
        with self._core.reading() as view:
            sizes = {
                entry.id: entry.hot.statistics(view.connection)
                for entry in entries
                if not entry.schema.hot_only and entry.id in view.catalogue.by_id
            }
        with self._counts:
            self._hot_bytes = sum(one.bytes for one in sizes.values())
            self._fresh_bytes.clear()
        for entry in entries:
            size = sizes.get(entry.id)
            if size is None or not size.rows:
                self._waiting_since.pop(entry.id, None)
                continue
            since = self._waiting_since.setdefault(entry.id, now)
            # Many tables below their own limits can be over the common one.
            due = self._hot_bytes > config.hot_limit_bytes or (
                size.rows >= config.flush_rows or size.bytes >= config.flush_bytes or now - since >= config.flush_age_s
            )
            if due and now >= self._retry_at.get(entry.id, (0.0, 0.0))[0]:
                self._flush_table(entry)

    def _flush_table(self, entry: TableEntry) -> None:
        try:
            self._writer.flush(entry.id, entry.name, timeout_s=0.0)
        except (NotFoundError, LockedError):
            return  # dropped meanwhile, or somebody else is at it
        except AgentDBError as error:
            wait = min(max(self._retry_at.get(entry.id, (0.0, 0.0))[1] * 2, 0.5), _MAX_BACKOFF_S)
            self._retry_at[entry.id] = (time.monotonic() + wait, wait)
            self.failed(f"flush of table {entry.name}", error)
            return
        self._retry_at.pop(entry.id, None)
        self._waiting_since.pop(entry.id, None)
        self.last_error = None
        # More may wait than one flush takes.
        self._seen_commit = -1

    def _tidy(self, entries: list[TableEntry]) -> None:
        for entry in entries:
            if entry.schema.hot_only or self._stop.is_set():
                continue
            try:
                self._writer.compact(entry.id, entry.name)
                self._writer.clean(entry.id, entry.name)
            except (NotFoundError, LockedError):
                continue
            except AgentDBError as error:
                self.failed(f"compaction of table {entry.name}", error)
        self._writer.remove_dropped()
        self._vacuum(_VACUUM_PAGES, only_above=_MANY_FREE_PAGES)

    def _run_jobs(self) -> None:
        for name, job in self._current_jobs():
            try:
                job(time.monotonic() + _JOB_S)
            except AgentDBError as error:
                self.failed(name, error)

    # --- steps on demand ----------------------------------------------------------------------------------------------

    def _log_bytes(self) -> int:
        return self._core.hot.log_pages * PAGE_BYTES

    def checkpoint(self, *, truncate: bool = False) -> bool:
        """Copy the log into the database, and empty its file if asked; False if a reader or writer is in the way."""
        owner = object()
        try:
            if not self._core.write_lock.acquire(1.0, owner):
                return False
            with storage_errors():
                return self._core.hot.checkpoint(truncate=truncate)
        finally:
            self._core.write_lock.withdraw(owner)

    def _vacuum(self, pages: int, *, only_above: int = 0) -> bool:
        """Give free pages back; whether some are left."""
        with self._core.reading() as view:
            free = self._core.hot.free_pages(view.connection)
        if free <= only_above:
            return False

        def work() -> int:
            view = self._core.writing()
            return self._core.hot.vacuum(view.connection, pages)

        return self._core.transact(work, upkeep=True) > only_above

    def flush_all(self, name: str | None = None, *, timeout_s: float | None = None) -> int:
        """Flush one table or all, completely; return the number of rows moved.

        Raises:
            StorageError: a cold lock was not free in time, or writing failed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._core.reading() as view:
            entries = [one for one in view.catalogue.by_name.values() if name is None or one.name == name]
            last = view.commit_no
        moved = 0
        for entry in entries:
            while not entry.schema.hot_only and (deadline is None or time.monotonic() < deadline):
                with self._core.reading() as view:
                    if entry.id not in view.catalogue.by_id or not self._waits(view.connection, entry, last):
                        break
                try:
                    moved += self._writer.flush(entry.id, entry.name, timeout_s=self._core.config.write_timeout_s)
                except NotFoundError:
                    break  # dropped meanwhile
        self._seen_commit = -1
        with self._core.reading() as view:
            total = sum(
                one.hot.statistics(view.connection).bytes
                for one in view.catalogue.by_name.values()
                if not one.schema.hot_only
            )
        with self._counts:
            self._hot_bytes = total
        return moved

    @staticmethod
    def _waits(connection: object, entry: TableEntry, last: int) -> bool:
        """Whether rows written up to a commit still wait: a flush need not run after busy writers for ever."""
        oldest = entry.hot.oldest_seq(connection)  # type: ignore[arg-type]
        return oldest is not None and oldest <= last

    def optimize(self, on_progress: OnProgress | None = None) -> None:
        """Bring every table to its best form: flush, compact, merge indices, clean up, run jobs, shrink the files."""
        with self._core.reading() as view:
            entries = [one for one in view.catalogue.by_name.values() if not one.schema.hot_only]
        total = len(entries) + 1
        for done, entry in enumerate(entries):

            def report(done: int = done, name: str = entry.name) -> None:
                if on_progress is not None:
                    on_progress(Progress(f"optimize {name}", done, total))

            report()
            self._optimize_table(entry, report)
        if on_progress is not None:
            on_progress(Progress("optimize database", total - 1, total))
        for _, job in self._current_jobs():
            while job(time.monotonic() + _JOB_S):
                pass
        self._writer.remove_dropped()
        while self._vacuum(1_000_000):
            pass
        self.settle_erasures()
        self.checkpoint(truncate=True)
        if on_progress is not None:
            on_progress(Progress("optimize database", total, total))

    def _optimize_table(self, entry: TableEntry, waits: Callable[[], None]) -> None:
        timeout_s = self._core.config.write_timeout_s
        try:
            self.flush_all(entry.name)
            self._compact_fully(entry, waits)
            self._core.pins.publish()
            self._writer.clean(entry.id, entry.name, timeout_s=timeout_s)
        except NotFoundError:
            return  # dropped meanwhile

    def _compact_fully(self, entry: TableEntry, waits: Callable[[], None]) -> None:
        """Compact a table once none of its indices is being built, however long that takes."""
        while True:
            while self._is_being_indexed(entry):
                waits()
            try:
                self._writer.compact(entry.id, entry.name, everything=True, timeout_s=self._core.config.write_timeout_s)
                return
            except LockedError:
                if not self._is_being_indexed(entry):
                    raise

    def _is_being_indexed(self, entry: TableEntry) -> bool:
        """Whether an index of a table is being built, here or in another process, after a moment's patience."""
        lock, owner = self._core.index_lock(entry.id), object()
        try:
            return not lock.acquire(1.0, owner)
        finally:
            lock.withdraw(owner)

    def settle_erasures(self) -> None:
        """Take every open erasure as far as pins allow, and complete those of which nothing is left."""
        with self._core.reading() as view:
            open_erasures = self._core.hot.open_erasures(view.connection)
            names = {entry.id: entry for entry in view.catalogue.by_name.values()}
        if not open_erasures:
            return
        unpurged = {table_id for _, table_id, version, _ in open_erasures if version == 0}
        affected = [
            entry
            for entry in map(names.get, dict.fromkeys(table_id for _, table_id, _, _ in open_erasures))
            if entry is not None and not entry.schema.hot_only
        ]
        timeout_s = self._core.config.write_timeout_s
        # A table that is dropped meanwhile, perhaps by another process, is left: with its dataset goes everything.
        for entry in affected:
            if entry.id in unpurged:
                with contextlib.suppress(NotFoundError):
                    self._writer.purge(entry.id, entry.name, timeout_s=timeout_s)
        self._core.pins.publish()
        for entry in affected:
            with contextlib.suppress(NotFoundError):
                self._writer.clean(entry.id, entry.name, timeout_s=timeout_s, erasing=True)
        self._writer.remove_dropped()
        clean = self._clean_erasures()
        if not clean or not self.checkpoint(truncate=True):
            return
        now = microseconds(self._core.config.clock())

        def complete() -> None:
            view = self._core.writing()
            for erasure_id in clean:
                self._core.hot.complete_erasure(view.connection, erasure_id, now)

        self._core.transact(complete, upkeep=True)

    def _clean_erasures(self) -> list[str]:
        """Return the open erasures whose rows no file of the cold tier holds any more."""
        floor = self._writer.floor()
        with self._core.reading() as view:
            present = set(self._core.cold.datasets())
            found = []
            for erasure_id, table_id, version, commit_no in self._core.hot.open_erasures(view.connection):
                entry = view.catalogue.by_id.get(table_id)
                if entry is None:
                    # The table was dropped: with the dataset goes everything.
                    gone = self._core.hot.dataset_of(view.connection, table_id) not in present
                elif entry.schema.hot_only:
                    gone = True
                else:
                    versions = self._core.hot.versions(view.connection, table_id)
                    gone = version > 0 and all(one >= version for one, _ in versions)
                if gone and floor is not None and floor >= commit_no:
                    found.append(erasure_id)
        return found
