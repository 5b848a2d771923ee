"""Every change of a table's Lance data: flush, bulk write, new columns, compaction, purge and clean-up.

All follow one pattern. Take the table's cold lock; read the catalogue again; remove whatever is newer than it; build the
next version; force it to the disk; then, in one SQLite transaction, point the catalogue at it and remove the hot rows it
holds. A crash before that transaction leaves a version that nobody ever reads and the next holder removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from agentdb.errors import AgentDBError, NotFoundError
from agentdb.storage.cold import ColumnFill, Revision, cold_errors
from agentdb.storage.core import LOCK_DIRECTORY, Core, WriteView
from agentdb.storage.files import make_durable
from agentdb.storage.hot import TableEntry
from agentdb.storage.indices import IndexDefinition, Segment, most_extended
from agentdb.types import Key, OnProgress, Progress, Row

__all__ = ["ColdEncoder", "ColdWriter", "Guard"]

ColdEncoder = Callable[[pa.Table, Callable[[list[Key]], list[Row | None]]], pa.Table]
"""Rewrites rows on their way to the cold tier: ``(rows sorted by key, read) -> the same rows``; ``read`` reads the cold tier."""

Guard = Callable[[], object]
"""Called inside the transaction that makes prepared rows visible; what it raises undoes that."""

_SMALL_ROWS = 100_000
"""A fragment with fewer rows is worth merging with others."""
_SLICE_BYTES = 64 << 20
_MAX_SEGMENTS = 8
_DELETED_SHARE = 0.1
_EXTEND_ROWS = 2_000
"""So many rows, compared one by one, cost a search as much as the index itself."""


class _Change:
    """One change of one table, by the holder of its cold lock."""

    def __init__(self, core: Core, entry: TableEntry, revision: Revision, known: dict[str, tuple[int, str]]) -> None:
        self.core = core
        self.entry = entry
        self.revision = revision
        self._known = known

    def replace(self, rows: pa.Table | None, deleted: Sequence[str] = ()) -> None:
        """Put rows in the place of those with the same keys, and delete others."""
        keys = [] if rows is None else rows.column("_key")
        if self.revision.rows:
            wanted = pa.concat_arrays(
                [pa.array(deleted, pa.string()), *(keys.chunks if isinstance(keys, pa.ChunkedArray) else [])]
            )
            found = self.revision.find(wanted)
            if found.num_rows:
                self.revision.delete(found.column("_rowid"))
        if rows is not None:
            self.revision.append(rows)
        if self.revision.changed:
            self.revision.index()

    def publish(
        self, also: Callable[[WriteView, int], None], durable: Mapping[str, tuple[int, str]] | None = None
    ) -> None:
        """Force the new version to the disk and point the catalogue at it, together with what ``also`` writes.

        ``durable`` names new files that are on the disk already, with their sizes and digests.
        """
        entry, revision = self.entry, self.revision
        files = revision.settle(self._known, durable or {}) if revision.changed else {}

        def commit() -> None:
            view = self.core.writing()
            seq = view.next_seq()
            if revision.changed:
                self.core.hot.version(view.connection, entry.id)  # raises if the table was dropped meanwhile
                self.core.hot.publish(view.connection, entry.id, revision.version, seq, files)
                view.published(entry, revision.version)
            also(view, seq)

        self.core.transact(commit, upkeep=True)


class ColdWriter:
    """The writer of the cold tier. Every method takes the locks it needs; none may be held by the caller."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.encoders: dict[str, ColdEncoder] = {}

    @contextlib.contextmanager
    def _changing(self, table_id: int, name: str, timeout_s: float) -> Iterator[_Change]:
        lock = self._core.cold_lock(table_id)
        with lock.held(timeout_s, f"the cold tier of table {name}"):
            entry, version, known = self._state(table_id, name)
            if self._core.cold.orphans(entry.dataset, version):
                # Whoever left them may have died in the commit that publishes them.
                self._core.settle_log()
                entry, version, known = self._state(table_id, name)
            with self._revised(entry, version, known) as change:
                yield change

    @contextlib.contextmanager
    def _undisturbed(self, table_id: int, name: str, timeout_s: float) -> Iterator[_Change]:
        """Change a table while none of its indices is being built: a build needs its fragments and files to stay."""
        with (
            self._core.index_lock(table_id).held(timeout_s, f"the index of table {name}"),
            self._changing(table_id, name, timeout_s) as change,
        ):
            yield change

    def _state(self, table_id: int, name: str) -> tuple[TableEntry, int, dict[str, tuple[int, str]]]:
        with self._core.reading() as view:
            entry = view.entry(table_id, name)
            return entry, view.version(entry), self._core.hot.known_files(view.connection, table_id)

    @contextlib.contextmanager
    def _revised(self, entry: TableEntry, version: int, known: dict[str, tuple[int, str]]) -> Iterator[_Change]:
        self._core.cold.recover(entry.dataset, version)
        try:
            yield _Change(self._core, entry, Revision(self._core.cold, entry.dataset, entry.schema, version), known)
        except BaseException:
            # The next holder may reuse the version numbers that this one wrote.
            self._core.cold.forget()
            raise

    def _encode(self, change: _Change, rows: pa.Table) -> pa.Table:
        encoder = self.encoders.get(change.entry.name)
        if encoder is None or rows.num_rows == 0:
            return rows
        schema = change.entry.schema

        def read(keys: list[Key]) -> list[Row | None]:
            encoded = [schema.encode_key(key) for key in keys]
            found = change.revision.lookup(encoded)
            by_key = dict(zip(found.column("_key").to_pylist(), schema.arrow_to_rows(found), strict=True))
            return [by_key.get(one) for one in encoded]

        return encoder(rows.sort_by("_key"), read)

    # --- flush --------------------------------------------------------------------------------------------------------

    def flush(
        self, table_id: int, name: str, *, max_rows: int = 50_000, max_bytes: int = 64 << 20, timeout_s: float = 30.0
    ) -> int:
        """Move the oldest hot rows of a table to the cold tier; return how many. Repeating it changes nothing."""
        with self._changing(table_id, name, timeout_s) as change:
            return self._flush(change, max_rows, max_bytes)

    def _flush(self, change: _Change, max_rows: int, max_bytes: int) -> int:
        entry = change.entry
        if entry.schema.hot_only:
            return 0
        with self._core.reading() as view:
            pending = entry.hot.pending(view.connection, max_rows, max_bytes)
        if not pending.ids:
            return 0
        live = [i for i, values in enumerate(pending.values) if values is not None]
        deleted = [key for key, values in zip(pending.keys, pending.values, strict=True) if values is None]
        rows = None
        if live:
            live.sort(key=pending.keys.__getitem__)
            rows = entry.schema.rows_to_arrow(
                [pending.keys[i] for i in live],
                [pending.seqs[i] for i in live],
                [pending.values[i] for i in live],  # type: ignore[misc]
            )
            rows = self._encode(change, rows)
        change.replace(rows, deleted)
        last_id, last_seq = pending.ids[-1], pending.seqs[-1]
        change.publish(lambda view, _: entry.hot.forget(view.connection, last_id, last_seq))
        return len(pending.ids)

    # --- bulk ---------------------------------------------------------------------------------------------------------

    def bulk(self, table_id: int, name: str, rows: pa.Table, guard: Guard | None = None) -> None:
        """Write rows (cold layout without ``_seq``) straight to the cold tier, as one commit."""
        with self._changing(table_id, name, self._core.config.write_timeout_s) as change:
            if set(change.entry.schema.cold_arrow.names) - {*rows.column_names, "_seq"}:
                raise NotFoundError(f"table {name} was changed while the rows were prepared")
            with self._core.reading() as view:
                seen = view.commit_no
                shadowing = set(change.entry.hot.keys(view.connection))
            self._bulk(change, rows, shadowing, seen, guard)

    def bulk_inside(self, view: WriteView, entry: TableEntry, rows: pa.Table) -> bool:
        """Do the same inside a transaction, if the cold lock is free at once; False if it is not.

        The lock is kept until the transaction ends: what it wrote is nobody's before that.
        """
        lock = self._core.cold_lock(entry.id)
        held = any(getattr(end, "table_id", None) == entry.id for end in view.on_end)
        if not held:
            end = _EndOfBulk(view, entry)
            if not lock.acquire(0, end):
                return False
            if self._core.cold.orphans(entry.dataset, view.version(entry)):
                # Removing them takes a commit of its own first; see `_changing`.
                lock.withdraw(end)
                return False
            view.on_end.append(end)
        known = self._core.hot.known_files(view.connection, entry.id)
        with self._revised(entry, view.version(entry), known) as change:
            self._bulk(change, rows, set(entry.hot.keys(view.connection)), view.commit_no)
        return True

    def _bulk(
        self, change: _Change, rows: pa.Table, shadowing: set[str], seen: int, guard: Guard | None = None
    ) -> None:
        entry = change.entry
        # Its commit number is not known yet: the catalogue maps the batch to it.
        batch = change.revision.base + 1
        rows = rows.add_column(1, "_seq", pa.array(np.full(rows.num_rows, -batch, np.int64)))
        change.replace(self._encode(change, rows))
        written = pa.array(rows.column("_key").combine_chunks())

        def finish(view: WriteView, seq: int) -> None:
            if guard is not None:
                guard()
            shadowing.update(entry.hot.keys_since(view.connection, seen))
            if shadowing:
                superseded = pa.array(sorted(shadowing), pa.string())
                superseded = superseded.filter(pc.is_in(superseded, written))
                entry.hot.forget_keys(view.connection, superseded.to_pylist(), view.counters()[1])
            self._core.hot.add_batch(view.connection, entry.id, batch, seq)

        change.publish(finish)

    # --- definition ---------------------------------------------------------------------------------------------------

    def add_columns(
        self, table_id: int, name: str, fields: Sequence[pa.Field], indexed: Sequence[str], fill: ColumnFill | None
    ) -> None:
        """Give a table more columns, which ``fill`` fills in the cold tier."""
        with self._changing(table_id, name, self._core.config.write_timeout_s) as change:
            entry = change.entry
            schema = entry.schema.with_columns(fields, indexed)
            old = {column.name for column in entry.schema.columns}
            system = (
                set(schema.cold_arrow.names) - set(entry.schema.cold_arrow.names) - {c.name for c in schema.columns}
            )
            added = [
                schema.cold_arrow.field(one)
                for one in (*sorted(system), *(c.name for c in schema.columns if c.name not in old))
            ]
            change.revision.add_columns(added, fill)
            change.revision.index(schema)

            def define(view: WriteView, _: int) -> None:
                self._core.hot.replace_definition(view.connection, entry, schema)
                view.reload()

            change.publish(define)

    def clear_column(self, table_id: int, name: str, column: str, guard: Guard) -> None:
        """Make a column null in every row of the cold tier."""
        with self._changing(table_id, name, self._core.config.write_timeout_s) as change:
            change.revision.clear_column(change.entry.schema.cold_arrow.field(column))
            if change.revision.changed:

                def check(*_: object) -> None:
                    guard()

                change.publish(check)

    # --- vector and text indices --------------------------------------------------------------------------------------

    def build_index(
        self,
        table_id: int,
        name: str,
        column: str,
        definition: IndexDefinition,
        stop: threading.Event | None = None,
        on_progress: OnProgress | None = None,
    ) -> bool:
        """Build an index of the cold rows beside everything else; False if nothing came of it.

        That is so where there is no cold row, ``stop`` was set, the table was dropped, or an erasure overtook the build.

        Raises:
            LockedError: an index of this table is being built already, here or in another process.
            StorageError: Lance or the disk failed; nothing is changed.
        """
        core = self._core
        stages = _Stages(column, stop, on_progress)
        with core.index_lock(table_id).held(0.0, f"the index of table {name}"):
            with core.reading() as view:
                entry = view.entry(table_id, name)
                version = view.version(entry)
            definition.check(entry.schema, column)
            if not version:
                return False
            segment = core.cold.new_segment(entry.dataset, version)
            # From the moment on when it is offered, its files may be the published ones, whatever is raised.
            kept = False
            try:
                if not stages.next("build"):
                    return False
                with cold_errors(f"indexing {entry.dataset}"):
                    segment.build(column, definition)
                if not stages.next("write"):
                    return False
                # Most bytes reach the disk, and are read for their digests, before anybody waits for the cold lock.
                facts = make_durable(core.cold.path(entry.dataset), segment.files)
                if not stages.next("publish"):
                    return False
                kept = True
                kept = self._add_segment(entry, segment, column, definition, facts)
            except AgentDBError:
                if self._is_there(entry, segment):
                    raise
                return False
            finally:
                if not kept:
                    segment.discard()
            stages.next("done")
            return kept

    def _add_segment(
        self,
        entry: TableEntry,
        segment: Segment,
        column: str,
        definition: IndexDefinition,
        facts: dict[str, tuple[int, str]],
    ) -> bool:
        with self._changing(entry.id, entry.name, self._core.config.write_timeout_s) as change:
            if not segment.fragments <= self._core.cold.fragments(entry.dataset, change.revision.base):
                return False
            change.revision.put_index(segment, column, definition)
            change.publish(lambda *_: None, facts)
            return True

    def _is_there(self, entry: TableEntry, segment: Segment) -> bool:
        """Whether all that a segment was built of is there still."""
        try:
            with self._core.reading() as view:
                version = view.version(view.entry(entry.id, entry.name))
            return segment.fragments <= self._core.cold.fragments(entry.dataset, version)
        except NotFoundError:
            return False

    def drop_index(self, table_id: int, name: str, column: str) -> bool:
        """Remove the vector or text index of a column; whether there was one."""
        with self._changing(table_id, name, self._core.config.write_timeout_s) as change:
            dropped = change.revision.drop_index(column)
            if dropped:
                change.publish(lambda *_: None)
            return dropped

    # --- maintenance --------------------------------------------------------------------------------------------------

    def compact(self, table_id: int, name: str, *, everything: bool = False, timeout_s: float = 0.0) -> bool:
        """Merge small fragments and index segments, one slice of bounded size; True if anything was done."""
        limit = 1 if everything else self._core.config.compact_fragments
        with self._undisturbed(table_id, name, timeout_s) as change:
            revision = change.revision
            revision.extend_indices(lambda one: (1 if everything else _EXTEND_ROWS, most_extended(one.kind)))
            fragments = revision.fragments()
            worth = [one for one, rows, deleted in fragments if rows < _SMALL_ROWS or deleted > rows * _DELETED_SHARE]
            dirty = any(deleted > rows * _DELETED_SHARE for _, rows, deleted in fragments)
            # Lance merges only fragments that the same index segments cover, so the segments are merged before, in a step of
            # their own where the table is large.
            merges = revision.index_segments() > (1 if len(worth) > limit or everything else _MAX_SEGMENTS)
            if merges:
                revision.merge_indices()
            at_once = everything or not merges or revision.rows < _SMALL_ROWS
            if (len(worth) > limit or (dirty and worth)) and at_once:
                revision.compact(
                    skip=sorted({one for one, _, _ in fragments} - set(worth)),
                    max_rows=None,
                    max_bytes=None if everything else _SLICE_BYTES,
                )
            if not revision.changed:
                return False
            change.publish(lambda *_: None)
            return True

    def purge(self, table_id: int, name: str, *, timeout_s: float = 30.0) -> None:
        """Publish a version whose files and indices hold nothing of deleted rows, and record it for open erasures."""
        with self._changing(table_id, name, timeout_s) as change:
            while self._flush(change, 50_000, 64 << 20):
                change = self._again(change)  # noqa: PLW2901 - the same change, on top of what it published
            if change.revision.rows:
                change.revision.purge()
            change.revision.rebuild_indices()
            entry, revision = change.entry, change.revision
            change.publish(
                lambda view, seq: self._core.hot.purged(view.connection, entry.id, max(revision.version, 1), seq)
            )

    def _again(self, change: _Change) -> _Change:
        """Return a change that builds upon one that was just published, under the same lock."""
        with self._core.reading() as view:
            entry = view.entry(change.entry.id, change.entry.name)
            known = self._core.hot.known_files(view.connection, entry.id)
            version = view.version(entry)
        return _Change(self._core, entry, Revision(self._core.cold, entry.dataset, entry.schema, version), known)

    def clean(self, table_id: int, name: str, *, timeout_s: float = 0.0, erasing: bool = False) -> int:
        """Remove the versions that no reader of any process can need; return how many.

        An erasure cleans up even while an index is built, and so ends the build.
        """
        with (self._changing if erasing else self._undisturbed)(table_id, name, timeout_s) as change:
            # Catalogue first, then pins: whoever pins later reads this state or a newer one.
            with self._core.reading() as view:
                versions = self._core.hot.versions(view.connection, table_id)
            if len(versions) < 2:
                return 0
            floor = self.floor()
            if floor is None:
                return 0
            if self._core.config.durability != "full":
                self._core.settle_log()  # Power loss must not bring back a catalogue that names what is removed here.
            current_at_floor = max((version for version, commit in versions if commit <= floor), default=0)
            published = {version for version, _ in versions}
            gone = change.revision.remove_versions(lambda version: version >= current_at_floor and version in published)
            # Also those that an earlier clean-up removed before it could strike them off.
            struck = {version for version in published if version < current_at_floor}
            if not gone and not struck:
                return 0
            kept: set[str] = set()
            for version in published - struck:
                kept.update(self._core.cold.referenced_files(change.entry.dataset, version))
            stale = [path for path in change._known if path not in kept]
            self._core.transact(lambda: self._strike(table_id, sorted(struck), stale), upkeep=True)
            return len(gone)

    def _strike(self, table_id: int, versions: Sequence[int], files: Sequence[str]) -> None:
        view = self._core.writing()
        self._core.hot.forget_versions(view.connection, table_id, versions, files)

    def floor(self) -> int | None:
        """Return the oldest commit that any reader may need; None while a read-only handle is open somewhere."""
        descriptor = os.open(self._core.path / LOCK_DIRECTORY / "readers.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        finally:
            os.close(descriptor)
        return self._core.pins.floor()

    def remove_dropped(self) -> None:
        """Delete the datasets of dropped tables that no reader can need."""
        present = set(self._core.cold.datasets())
        if not present:
            return
        with self._core.reading() as view:
            known = {entry.dataset for entry in view.catalogue.by_name.values()}
            if present <= known:
                return
            commit_no, connection = view.commit_no, view.connection
            floor = self.floor()
            if floor is None:
                return
            dropped = self._core.hot.dropped_datasets(connection, min(floor, commit_no))
        if self._core.config.durability != "full" and not present.isdisjoint(dropped):
            self._core.settle_log()
        for dataset in present.intersection(dropped):
            self._core.cold.remove(dataset)


class _Stages:
    """Tells how far an index build is, and whether it is to go on.

    Lance reports its progress within a stage too, but a build that does so may never end (seen in 14.0.2).
    """

    _NAMES = ("build", "write", "publish", "done")

    def __init__(self, column: str, stop: threading.Event | None, on_progress: OnProgress | None) -> None:
        self._column = column
        self._stop = stop
        self._on_progress = on_progress

    def next(self, name: str) -> bool:
        """Report that a stage begins; whether it may."""
        if self._on_progress is not None:
            self._on_progress(Progress(f"index {self._column}: {name}", self._NAMES.index(name), 3))
        return self._stop is None or not self._stop.is_set()


class _EndOfBulk:
    """Releases a cold lock when the transaction that took it ends, and removes what a rolled back one has written."""

    def __init__(self, view: WriteView, entry: TableEntry) -> None:
        self._view = view
        self._entry = entry
        self._version = view.version(entry)
        self.table_id = entry.id

    def __call__(self) -> None:
        core = self._view.core
        # After a rollback the version numbers may be reused.
        core.cold.forget()
        try:
            if not self._view.committing:
                # The next holder of the lock would do it, but a table whose creation was rolled back has none.
                with contextlib.suppress(AgentDBError):
                    core.cold.recover(self._entry.dataset, self._version)
        finally:
            core.cold_lock(self.table_id).withdraw(self)
