"""The cold tier: one Lance dataset per table, always opened at exactly the version that the catalogue names.

``ColdStore`` reads. ``Revision`` builds the next version of a dataset; only the holder of the table's cold lock makes one,
and nothing of it counts before the catalogue points at it. This module knows Lance and nothing of policy.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.query import MatchQuery

from agentdb.errors import AgentDBError, IntegrityError, StorageError
from agentdb.storage.files import fsync_directory, make_durable
from agentdb.storage.indices import (
    IndexDefinition,
    IndexInfo,
    Segment,
    covered,
    definitions,
    describe,
    index_name,
    record_of,
)
from agentdb.storage.predicates import lance_in
from agentdb.storage.schema import TableSchema
from agentdb.types import Metric

__all__ = ["ColdStore", "ColumnFill", "Revision", "cold_errors"]

COLD_DIRECTORY = "lance"
_STORAGE_VERSION: Final = "2.2"
_OPEN_DATASETS = 64
_LOOKUP_KEYS = 1_000
"""Keys per index look-up: longer lists cost more in planning than they save."""
_SCAN_SHARE = 20
"""Scanning the key column beats looking up more than one key in so many."""
_DELETE_ROWS = 20_000
_MAX_VECTOR_SEGMENTS = 3
_FEW_HITS = 1 << 16
"""A search looks into every segment, at half a millisecond each."""
_MANIFEST = re.compile(r"(\d+)\.manifest\Z")
_MAX_U64 = (1 << 64) - 1


@contextlib.contextmanager
def cold_errors(what: str) -> Iterator[None]:
    """Turn Lance's errors into ours; its texts hold paths and predicates and stay in the cause."""
    try:
        yield
    except AgentDBError:
        raise
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        text = str(error).lower()
        if "no space left" in text or "os error 28" in text or getattr(error, "errno", None) == errno.ENOSPC:
            raise StorageError(f"the disk is full while {what}", retryable=True) from error
        if "permission denied" in text or "read-only file system" in text:
            raise StorageError(f"the files cannot be written while {what}") from error
        if "not found" in text or "no such file" in text:
            raise IntegrityError(f"a file of the cold tier is missing while {what}") from error
        if any(word in text for word in ("file size is too small", "corrupt", "magic", "decode", "truncat")):
            raise IntegrityError(f"a file of the cold tier is corrupt while {what}") from error
        raise StorageError(f"Lance failed while {what} ({type(error).__name__})") from error


def _manifest_version(name: str) -> int | None:
    """Return the version that a manifest file holds; Lance's current naming counts down from 2**64 - 1."""
    found = _MANIFEST.match(name)
    if found is None:
        return None
    number = int(found[1])
    return _MAX_U64 - number if len(found[1]) == 20 else number


class ColdStore:
    """The Lance datasets below one directory. Handles are cached by version, which never changes once published."""

    def __init__(self, path: Path, *, cache_bytes: int) -> None:
        self.root = path / COLD_DIRECTORY
        self._cache_bytes = cache_bytes
        self._mutex = threading.Lock()
        self._handles: OrderedDict[tuple[str, int], lance.LanceDataset] = OrderedDict()
        self._infos: OrderedDict[tuple[str, int, str], IndexInfo | None] = OrderedDict()
        self._session = self._new_session()

    def _new_session(self) -> Any:
        half = self._cache_bytes // 2
        return lance.Session(index_cache_size_bytes=half, metadata_cache_size_bytes=half)  # type: ignore[attr-defined]

    def path(self, dataset: str) -> Path:
        """Return the directory of a dataset."""
        return self.root / f"{dataset}.lance"

    def open(self, dataset: str, version: int) -> lance.LanceDataset:
        """Return a dataset at exactly this version; not to be modified.

        Raises:
            IntegrityError: a file of it is missing or corrupt.
        """
        with self._mutex:
            handle = self._handles.get((dataset, version))
            if handle is not None:
                self._handles.move_to_end((dataset, version))
                return handle
        handle = self._fresh(dataset, version)
        with self._mutex:
            self._handles[dataset, version] = handle
            while len(self._handles) > _OPEN_DATASETS:
                self._handles.popitem(last=False)
        return handle

    def _fresh(self, dataset: str, version: int) -> lance.LanceDataset:
        with cold_errors(f"opening {dataset}"):
            return lance.dataset(str(self.path(dataset)), version=version, session=self._session)

    def forget(self) -> None:
        """Drop every cached handle and Lance's caches: a version number may have been reused."""
        with self._mutex:
            self._handles.clear()
            self._infos.clear()
            self._session = self._new_session()

    # --- recovery -----------------------------------------------------------------------------------------------------

    def orphans(self, dataset: str, version: int) -> dict[int, str]:
        """Return version -> manifest of every version newer than the catalogue's, left by a writer that did not finish."""
        folder = self.path(dataset) / "_versions"
        try:
            names = [one.name for one in folder.iterdir()]
        except FileNotFoundError:
            return {}
        orphans = {}
        for name in names:
            found = _manifest_version(name)
            if found is not None and found > version:
                orphans[found] = name
        return orphans

    def recover(self, dataset: str, version: int) -> list[int]:
        """Remove the orphans; return their versions.

        The caller holds the table's cold lock, and knows that no commit that publishes one of them can still turn up.
        """
        folder = self.path(dataset) / "_versions"
        orphans = self.orphans(dataset, version)
        if orphans:
            self.forget()
            with cold_errors(f"recovering {dataset}"):
                if version == 0:
                    shutil.rmtree(self.path(dataset))
                else:
                    for name in orphans.values():
                        (folder / name).unlink(missing_ok=True)
                    # Or a power failure could bring back what a later commit then builds upon.
                    fsync_directory(folder)
        return sorted(orphans)

    def datasets(self) -> list[str]:
        """Return the names of the datasets whose directories exist."""
        if not self.root.is_dir():
            return []
        return sorted(one.name.removesuffix(".lance") for one in self.root.iterdir() if one.suffix == ".lance")

    def remove(self, dataset: str) -> None:
        """Delete a dropped table's dataset."""
        self.forget()
        with cold_errors(f"removing {dataset}"):
            shutil.rmtree(self.path(dataset), ignore_errors=True)

    def referenced_files(self, dataset: str, version: int) -> list[str]:
        """Return the paths, below the dataset's directory, of every file of a version."""
        handle = self.open(dataset, version)
        with cold_errors(f"listing files of {dataset}"):
            try:
                return _files_of(handle, version)
            except (OSError, ValueError, RuntimeError, pa.ArrowException):
                # Lance reads the manifests of newer versions too: orphans, which may be torn, or vanish meanwhile.
                return _files_read_by(handle, version, self.path(dataset))

    # --- reads --------------------------------------------------------------------------------------------------------

    def lookup(self, dataset: str, version: int, keys: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Return the rows of up to any number of keys, with ``_key``, in no order; absent keys have none."""
        handle = self.open(dataset, version)
        with cold_errors(f"reading {dataset}"):
            if _by_index(len(keys), handle):
                parts = [
                    _to_table(handle, columns, lance_in("_key", keys[i : i + _LOOKUP_KEYS]))
                    for i in range(0, len(keys), _LOOKUP_KEYS)
                ]
                return pa.concat_tables(parts) if len(parts) != 1 else parts[0]
            ids = _scan_for(handle, pa.array(keys, pa.string())).column("_rowid")
            return self._rows(handle, ids, columns)

    def rows(self, dataset: str, version: int, row_ids: pa.Array, columns: Sequence[str]) -> pa.Table:
        """Return rows by Lance row id, in the given order."""
        with cold_errors(f"reading {dataset}"):
            return self._rows(self.open(dataset, version), row_ids, columns)

    @staticmethod
    def _rows(handle: lance.LanceDataset, row_ids: pa.Array | pa.ChunkedArray, columns: Sequence[str]) -> pa.Table:
        return handle._take_rows(row_ids.to_pylist(), columns=_present(handle, columns))

    def scan(
        self,
        dataset: str,
        version: int,
        columns: Sequence[str],
        where: str | None = None,
        *,
        row_ids: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows for which a compiled predicate holds; columns that this version lacks are left out."""
        handle = self.open(dataset, version)
        with cold_errors(f"scanning {dataset}"):
            scanner = handle.scanner(
                columns=_present(handle, columns),
                filter=where,
                with_row_id=row_ids,
                batch_size=batch_size,
            )
            yield from scanner.to_batches()

    def count(self, dataset: str, version: int, where: str | None = None) -> int:
        """Return the number of rows for which a compiled predicate holds."""
        with cold_errors(f"counting {dataset}"):
            return int(self.open(dataset, version).count_rows(filter=where))

    def nearest(
        self,
        dataset: str,
        version: int,
        column: str,
        query: np.ndarray[Any, Any],
        k: int,
        metric: Metric,
        where: str | None,
    ) -> pa.Table:
        """Return ``_key`` and ``_distance`` of the K nearest rows, by an exact scan of those the predicate lets through."""
        handle = self.open(dataset, version)
        with cold_errors(f"searching {dataset}"):
            if column not in handle.schema.names:
                return pa.table({"_key": pa.array([], pa.string()), "_distance": pa.array([], pa.float32())})
            return handle.scanner(
                columns=["_key", "_distance"],
                nearest={"column": column, "q": query, "k": _room(handle, k), "metric": metric, "use_index": False},
                filter=where,
                prefilter=True,
            ).to_table()

    def find(self, dataset: str, version: int, keys: Sequence[str]) -> pa.Table:
        """Return ``_key`` and ``_rowid`` of those keys that exist."""
        with cold_errors(f"reading {dataset}"):
            return _find(self.open(dataset, version), keys)

    # --- vector and text indices --------------------------------------------------------------------------------------

    def probe(
        self,
        dataset: str,
        version: int,
        column: str,
        query: np.ndarray[Any, Any],
        k: int,
        metric: Metric,
        where: str | None,
        columns: Sequence[str],
        probe: Mapping[str, int],
    ) -> pa.Table:
        """Return the columns and ``_distance`` of about the K nearest rows as the index finds them, best first.

        Rows that the index does not cover are compared one by one. Fewer than K come only if fewer match.
        """
        handle = self.open(dataset, version)
        nearest = {"column": column, "q": query, "k": _room(handle, k), "metric": metric, "use_index": True}
        for name, value in probe.items():
            # Only a lower limit: with a filter the partitions nearest by may not hold K rows that match.
            nearest["minimum_nprobes" if name == "nprobes" else name] = value
        with cold_errors(f"searching {dataset}"):
            names = [*_present(handle, columns), "_distance"]
            return handle.scanner(columns=names, nearest=nearest, filter=where, prefilter=True).to_table()

    def match(
        self, dataset: str, version: int, column: str, text: str, k: int, where: str | None, columns: Sequence[str]
    ) -> pa.Table:
        """Return the columns and ``_score`` (BM25) of the K best rows for any of a text's terms."""
        handle = self.open(dataset, version)
        with cold_errors(f"searching {dataset}"):
            names = _present(handle, columns)
            query = MatchQuery(text, column)
            return handle.scanner(
                columns=[*names, "_score"], full_text_query=query, limit=_room(handle, k), filter=where, prefilter=True
            ).to_table()

    def count_matches(self, dataset: str, version: int, column: str, text: str) -> int:
        """Return the number of rows that hold any of a text's terms."""
        handle = self.open(dataset, version)
        with cold_errors(f"searching {dataset}"):
            return int(handle.scanner(columns=[], full_text_query=MatchQuery(text, column)).count_rows())

    def index_info(self, dataset: str, version: int, column: str) -> IndexInfo | None:
        """Return how the vector or text index of a column stands."""
        with self._mutex:
            if (dataset, version, column) in self._infos:
                return self._infos[dataset, version, column]
        with cold_errors(f"reading indices of {dataset}"):
            info = describe(self.open(dataset, version), column)
        with self._mutex:
            self._infos[dataset, version, column] = info
            while len(self._infos) > _OPEN_DATASETS:
                self._infos.popitem(last=False)
        return info

    def sample(self, dataset: str, version: int, column: str, rows: int) -> pa.Table:
        """Return a column of about so many rows, drawn at random."""
        handle = self.open(dataset, version)
        with cold_errors(f"sampling {dataset}"):
            if column not in handle.schema.names:
                return handle.schema.empty_table().select([])
            return handle.sample(min(rows, handle.count_rows()), columns=[column])

    def new_segment(self, dataset: str, version: int) -> Segment:
        """Return an index segment to be built from one version."""
        with cold_errors(f"reading {dataset}"):
            return Segment(self._fresh(dataset, version), self.path(dataset))

    def fragments(self, dataset: str, version: int) -> set[int]:
        """Return the numbers of a version's fragments."""
        with cold_errors(f"reading {dataset}"):
            return {one.fragment_id for one in self.open(dataset, version).get_fragments()} if version else set()


def _by_index(count: int, handle: lance.LanceDataset) -> bool:
    return count <= _LOOKUP_KEYS or count * _SCAN_SHARE < handle.count_rows()


def _present(handle: lance.LanceDataset, columns: Sequence[str]) -> list[str]:
    """Return those of some columns that a version has."""
    names = frozenset(handle.schema.names)  # Lance makes its schema anew at every look.
    return [one for one in columns if one in names]


def _to_table(handle: lance.LanceDataset, columns: Sequence[str], where: str, *, row_ids: bool = False) -> pa.Table:
    return handle.scanner(columns=_present(handle, columns), filter=where, with_row_id=row_ids).to_table()


def _scan_for(handle: lance.LanceDataset, keys: pa.Array) -> pa.Table:
    scanned = handle.scanner(columns=["_key"], with_row_id=True).to_table()
    return scanned.filter(pc.is_in(scanned.column("_key"), keys))


def _room(handle: lance.LanceDataset, k: int) -> int:
    """Return for how many hits Lance is to make room: it does so at once, and ends the process where it cannot."""
    return k if k <= _FEW_HITS else min(k, max(handle.count_rows(), _FEW_HITS))


def _find(handle: lance.LanceDataset, keys: Sequence[str] | pa.Array) -> pa.Table:
    wanted = keys if isinstance(keys, pa.Array) else pa.array(keys, pa.string())
    if len(wanted) and handle.count_rows():
        if not _by_index(len(wanted), handle):
            return _scan_for(handle, wanted)
        texts = wanted.to_pylist()
        return pa.concat_tables(
            [
                _to_table(handle, ["_key"], lance_in("_key", texts[i : i + _LOOKUP_KEYS]), row_ids=True)
                for i in range(0, len(texts), _LOOKUP_KEYS)
            ]
        )
    return pa.table({"_key": pa.array([], pa.string()), "_rowid": pa.array([], pa.uint64())})


def _files_of(handle: lance.LanceDataset, version: int) -> list[str]:
    tracked = handle.tracked_files(min_version=version).read_all()
    return list(tracked.filter(pc.equal(tracked.column("version"), version)).column("path").to_pylist())


def _files_read_by(handle: lance.LanceDataset, version: int, root: Path) -> list[str]:
    """Return what a reader of a version needs, without the transaction file, which only writers look at."""
    found = [f"_versions/{_MAX_U64 - version}.manifest"]
    for fragment in handle.get_fragments():
        found += [f"data/{one.path}" for one in fragment.data_files()]
        deletions = fragment.deletion_file()
        if deletions is not None:
            found.append(deletions)
    for index in handle.describe_indices():
        for segment in index.segments:
            folder = f"_indices/{segment.uuid}"
            found += [f"{folder}/{one.name}" for one in (root / folder).iterdir() if one.is_file()]
    return found


@dataclass(frozen=True, slots=True)
class ColumnFill:
    """What new columns hold: ``of`` makes a batch of them from a batch of the columns ``reads``, in the cold layout."""

    reads: tuple[str, ...]
    of: Callable[[pa.RecordBatch], pa.RecordBatch]


class Revision:
    """The next version of a dataset in the making, by the one holder of its cold lock.

    Every method that writes makes a Lance version of its own; only the last one is ever published.
    """

    def __init__(self, store: ColdStore, dataset: str, schema: TableSchema, version: int) -> None:
        self._store = store
        self._dataset = dataset
        self._schema = schema
        self.base = version
        # A handle of its own: writing moves it from version to version.
        self._handle = store._fresh(dataset, version) if version else None

    @property
    def version(self) -> int:
        """The version reached so far; equal to ``base`` as long as nothing changed."""
        return int(self._handle.version) if self._handle is not None else 0

    @property
    def changed(self) -> bool:
        """Whether there is anything to publish."""
        return self.version != self.base

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self._handle.count_rows()) if self._handle is not None else 0

    def find(self, keys: Sequence[str] | pa.Array) -> pa.Table:
        """Return ``_key`` and ``_rowid`` of those keys that exist."""
        if self._handle is None:
            return pa.table({"_key": pa.array([], pa.string()), "_rowid": pa.array([], pa.uint64())})
        with cold_errors(f"reading {self._dataset}"):
            return _find(self._handle, keys)

    def lookup(self, keys: Sequence[str]) -> pa.Table:
        """Return whole rows by key."""
        if self._handle is None:
            return self._schema.cold_arrow.empty_table()
        with cold_errors(f"reading {self._dataset}"):
            where = [keys[i : i + _LOOKUP_KEYS] for i in range(0, len(keys), _LOOKUP_KEYS)]
            names = self._schema.cold_arrow.names
            parts = [_to_table(self._handle, names, lance_in("_key", part)) for part in where]
        return pa.concat_tables(parts) if parts else self._schema.cold_arrow.empty_table()

    def delete(self, row_ids: pa.ChunkedArray | pa.Array) -> None:
        """Delete rows by row id."""
        with cold_errors(f"deleting in {self._dataset}"):
            for start in range(0, len(row_ids), _DELETE_ROWS):
                part = row_ids.slice(start, _DELETE_ROWS).to_pylist()
                self._handle.delete(f"_rowid IN ({','.join(map(str, part))})")  # type: ignore[union-attr]

    def append(self, table: pa.Table) -> None:
        """Append rows in the cold layout; makes the dataset at the first."""
        if table.num_rows == 0:
            return
        with cold_errors(f"writing {self._dataset}"):
            if self._handle is None:
                self._store.root.mkdir(parents=True, exist_ok=True)
                self._handle = lance.write_dataset(
                    table,
                    str(self._store.path(self._dataset)),
                    schema=self._schema.cold_arrow,
                    data_storage_version=_STORAGE_VERSION,
                    enable_stable_row_ids=True,
                    session=self._store._session,
                )
            else:
                self._handle.insert(table.select(self._schema.cold_arrow.names))

    def add_columns(self, fields: Sequence[pa.Field], fill: ColumnFill | None = None) -> None:
        """Add columns: null in every row, which writes no data, or what ``fill`` makes of each batch of rows."""
        if self._handle is None:
            return
        with cold_errors(f"adding columns to {self._dataset}"):
            schema = pa.schema(list(fields))
            if fill is None:
                self._handle.add_columns(schema)
            else:
                made = lance.batch_udf(output_schema=schema)(fill.of)
                self._handle.add_columns(made, read_columns=list(fill.reads))

    def clear_column(self, field: pa.Field) -> None:
        """Make a column null in every row; writes no data, and its old values go with the next compaction."""
        if self._handle is not None and field.name in self._handle.schema.names:
            self.drop_index(field.name)
            with cold_errors(f"clearing a column of {self._dataset}"):
                self._handle.drop_columns([field.name])
                self._handle.add_columns(pa.schema([field]))

    def index(self, schema: TableSchema | None = None) -> None:
        """Bring every scalar index up to date: new rows become a small segment of their own, merged in maintenance.

        Args:
            schema: the definition that the table is about to get.
        """
        if self._handle is None:
            return
        with cold_errors(f"indexing {self._dataset}"):
            existing = {name for one in self._handle.describe_indices() for name in one.field_names}
            wanted = _indices(schema or self._schema)
            missing = {column: kind for column, kind in wanted.items() if column not in existing}
            if existing:
                self._handle.optimize.optimize_indices(num_indices_to_merge=0, index_names=self._cheap_indices())
            for column, kind in missing.items():
                self._handle.create_scalar_index(column, kind)

    def _cheap_indices(self) -> list[str]:
        """Return the names of all indices but those of vectors, whose segments cost more than a flush should."""
        vectors = {index_name(column) for column in self._vector_indices()}
        return [one.name for one in self._handle.describe_indices() if one.name not in vectors]  # type: ignore[union-attr]

    def _vector_indices(self) -> dict[str, IndexDefinition]:
        assert self._handle is not None, "only asked of a dataset that exists"
        return {column: one for column, one in definitions(self._handle).items() if one.metric is not None}

    def rebuild_indices(self) -> None:
        """Build every look-up index anew and remove the others, so that none holds values of rows that are gone.

        The definitions of those that are removed stay on record.
        """
        if self._handle is None:
            return
        with cold_errors(f"indexing {self._dataset}"):
            for column in definitions(self._handle):
                if covered(self._handle, column):
                    self._handle.drop_index(index_name(column))
            for column, kind in _indices(self._schema).items():
                self._handle.create_scalar_index(column, kind, replace=True)

    def index_segments(self) -> int:
        """Return the largest number of segments that an index other than a vector's consists of."""
        if self._handle is None:
            return 0
        with cold_errors(f"reading indices of {self._dataset}"):
            cheap = self._cheap_indices()
            return max((len(one.segments) for one in self._handle.describe_indices() if one.name in cheap), default=0)

    def merge_indices(self) -> None:
        """Merge the segments of every index, but those of vectors, into one."""
        with cold_errors(f"indexing {self._dataset}"):
            self._handle.optimize.optimize_indices(  # type: ignore[union-attr]
                num_indices_to_merge=1_000, index_names=self._cheap_indices()
            )

    def extend_indices(self, limits: Callable[[IndexDefinition], tuple[int, int]]) -> None:
        """Add rows that no segment of a vector index covers as one more segment, merged with others of its kind.

        Args:
            limits: the least and the greatest number of rows for which that is worth it.
        """
        if self._handle is None:
            return
        with cold_errors(f"indexing {self._dataset}"):
            for column, definition in self._vector_indices().items():
                info = describe(self._handle, column)
                least, most = limits(definition)
                if info is None or not info.segments or not least <= info.rows_unindexed <= most:
                    continue
                # The oldest segment, by far the largest, stays as it is.
                merged = info.segments - 1 if info.segments > _MAX_VECTOR_SEGMENTS else 0
                self._handle.optimize.optimize_indices(num_indices_to_merge=merged, index_names=[index_name(column)])

    def put_index(self, segment: Segment, column: str, definition: IndexDefinition) -> None:
        """Let a column have a segment as its whole index."""
        assert self._handle is not None, "a segment was built of it"
        with cold_errors(f"indexing {self._dataset}"):
            segment.publish(self._handle, column, definition)

    def drop_index(self, column: str) -> bool:
        """Remove the vector or text index of a column and its record; whether there was one."""
        if self._handle is None or column not in definitions(self._handle):
            return False
        with cold_errors(f"indexing {self._dataset}"):
            if covered(self._handle, column):
                self._handle.drop_index(index_name(column))
            self._handle.delete_config_keys([record_of(column)])
        return True

    def fragments(self) -> list[tuple[int, int, int]]:
        """Return (id, physical rows, deleted rows) of each fragment."""
        if self._handle is None:
            return []
        with cold_errors(f"reading {self._dataset}"):
            return [(one.fragment_id, one.physical_rows, one.num_deletions) for one in self._handle.get_fragments()]

    def compact(self, *, skip: Sequence[int], max_rows: int | None, max_bytes: int | None) -> None:
        """Rewrite small fragments, and fragments with deleted rows, except those to skip, up to a limit."""
        with cold_errors(f"compacting {self._dataset}"):
            self._handle.optimize.compact_files(  # type: ignore[union-attr]
                excluded_fragment_ids=list(skip) or None,
                max_source_rows=max_rows,
                max_source_bytes=max_bytes,
                materialize_deletions_threshold=0.1,
                num_threads=1,
            )

    def purge(self) -> None:
        """Rewrite every fragment with deleted rows, so that no file of the new version holds them."""
        with cold_errors(f"compacting {self._dataset}"):
            self._handle.optimize.compact_files(materialize_deletions_threshold=0.0)  # type: ignore[union-attr]

    def settle(
        self, known: Iterable[str], durable: Mapping[str, tuple[int, str]] = MappingProxyType({})
    ) -> dict[str, tuple[int, str]]:
        """Force the version to the disk; return path -> (size, digest) of files that are not known yet.

        Args:
            known: files of published versions.
            durable: facts of new files that are on the disk already.

        Raises:
            StorageError: an fsync failed; the version must not be published.
        """
        assert self._handle is not None, "only a changed revision is settled"
        with cold_errors(f"listing files of {self._dataset}"):
            files = _files_of(self._handle, self.version)
        seen = {*known, *durable}
        facts = make_durable(self._store.path(self._dataset), [path for path in files if path not in seen])
        facts.update((path, durable[path]) for path in files if path in durable)
        if not self.base:
            # The database's directory names the one that holds all datasets, which the first of them made.
            with cold_errors(f"writing {self._dataset}"):
                fsync_directory(self._store.root.parent)
        return facts

    def remove_versions(self, keep: Callable[[int], bool]) -> list[int]:
        """Remove versions older than the newest, except those to keep, and every file that none of the kept needs."""
        if self._handle is None:
            return []
        with cold_errors(f"cleaning {self._dataset}"):
            current = self.version
            gone = [one["version"] for one in self._handle.versions()]
            gone = [one for one in gone if one != current and not keep(one)]
            if gone:
                # The cold lock is ours, so an unreferenced file belongs to a writer that died.
                self._handle.cleanup_old_versions(
                    versions=gone, delete_unverified=True, error_if_tagged_old_versions=False
                )
        return gone


def _indices(schema: TableSchema) -> dict[str, Literal["BTREE", "LABEL_LIST"]]:
    kinds: dict[str, Literal["BTREE", "LABEL_LIST"]] = {"_key": "BTREE"}
    if schema.json_columns:
        kinds["_terms"] = "LABEL_LIST"
    for name in schema.indexed:
        kinds[name] = "BTREE"
    return kinds
