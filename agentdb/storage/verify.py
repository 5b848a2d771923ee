"""``verify``: does everything that is stored agree with everything else? Reports, changes nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import lance
import pyarrow as pa
import pyarrow.compute as pc

from agentdb.errors import AgentDBError
from agentdb.storage.cold import cold_errors
from agentdb.storage.core import Core, View
from agentdb.storage.files import digest
from agentdb.storage.hot import TOMBSTONE, TableEntry, storage_errors
from agentdb.storage.indices import definitions, index_name
from agentdb.storage.predicates import lance_has, lance_in
from agentdb.types import OnProgress, Problem, Progress, VerifyReport

__all__ = ["verify"]

_SAMPLE = 200
_BATCH = 8_192


def verify(core: Core, on_progress: OnProgress | None = None) -> VerifyReport:
    """Check one snapshot of a database."""
    check = _Check(core)
    with core.snapshot() as view:
        entries = list(view.catalogue.by_name.values())
        for done, entry in enumerate([None, *entries]):
            if on_progress is not None:
                name = "database" if entry is None else entry.name
                on_progress(Progress(f"verify {name}", done, len(entries) + 1))
            try:
                with storage_errors():
                    if entry is None:
                        check.database(view)
                    else:
                        check.table(view, entry)
            except AgentDBError as error:
                check.note(None if entry is None else entry.name, str(error))
    return VerifyReport(not check.problems, tuple(check.problems), len(entries), check.rows, check.files)


class _Check:
    def __init__(self, core: Core) -> None:
        self._core = core
        self.problems: list[Problem] = []
        self.rows = 0
        self.files = 0

    def note(self, table: str | None, what: str) -> None:
        self.problems.append(Problem(table, what))

    def database(self, view: View) -> None:
        for row in view.connection.execute("PRAGMA integrity_check(20)").fetchall():
            if row[0] != "ok":
                self.note(None, "SQLite's integrity check found damage in the hot tier")
                return

    def table(self, view: View, entry: TableEntry) -> None:
        self._hot(view, entry)
        version = view.version(entry)
        if version and self._digests(view, entry, version):
            with cold_errors(f"verifying {entry.name}"):
                self._cold(entry, version)
                self._indices(entry, version)

    def _hot(self, view: View, entry: TableEntry) -> None:
        schema = entry.schema
        expected_terms: set[tuple[str, int]] = set()
        for row_id, key, op, row, *indexed in entry.hot.raw_rows(view.connection):
            self.rows += 1
            if op == TOMBSTONE:
                continue
            try:
                values = entry.hot.decode(op, row) or []
            except AgentDBError as error:
                self.note(entry.name, str(error))
                continue
            if schema.key_of(values) != key:
                self.note(entry.name, "a hot row's key does not belong to its columns")
            here = [values[p] if p < len(values) else None for p in schema.sql_positions]
            if here != indexed:
                self.note(entry.name, "a hot row's indexed columns do not agree with its content")
            expected_terms.update((term, row_id) for term in schema.terms_of(values))
        if entry.hot.has_terms and entry.hot.raw_terms(view.connection) != expected_terms:
            self.note(entry.name, "the hot tier's terms do not agree with its rows")

    def _digests(self, view: View, entry: TableEntry, version: int) -> bool:
        known = self._core.hot.known_files(view.connection, entry.id)
        root = self._core.cold.path(entry.dataset)
        sound = True
        for path in self._core.cold.referenced_files(entry.dataset, version):
            self.files += 1
            expected = known.get(path)
            if expected is None:
                self.note(entry.name, f"file {path} is not in the catalogue")
            else:
                try:
                    file = root / path
                    if file.stat().st_size == expected[0] and digest(file) == expected[1]:
                        continue
                    self.note(entry.name, f"file {path} is corrupt: its size or digest does not match")
                except OSError as error:
                    self.note(entry.name, f"file {path} cannot be read: {error.strerror}")
            sound = False
        return sound

    def _cold(self, entry: TableEntry, version: int) -> None:
        schema = entry.schema
        seen: list[pa.Array] = []
        names = schema.cold_arrow.names
        for batch in self._core.cold.scan(entry.dataset, version, names, batch_size=_BATCH):
            table = pa.Table.from_batches([batch])
            self.rows += table.num_rows
            seen.append(batch.column("_key"))
            if not schema.encode_keys(table).equals(batch.column("_key")):
                self.note(entry.name, "a cold row's key does not belong to its columns")
            if schema.json_columns and "_terms" in table.column_names:
                rebuilt = schema.from_user_arrow(table.select([c.name for c in schema.columns]))
                if rebuilt.column("_terms").to_pylist() != table.column("_terms").to_pylist():
                    self.note(entry.name, "a cold row's terms do not agree with its content")
        if seen:
            keys = pa.chunked_array(seen)
            if pc.count_distinct(keys).as_py() != len(keys):
                self.note(entry.name, "a key stands in the cold tier more than once")

    def _indices(self, entry: TableEntry, version: int) -> None:
        """Compare what the indices find with what a scan finds, for a sample."""
        handle = self._core.cold.open(entry.dataset, version)
        keys = handle.scanner(columns=["_key"]).to_table().column("_key")
        total = handle.count_rows()
        for one in handle.describe_indices():
            if one.num_rows_indexed > total + sum(f.num_deletions for f in handle.get_fragments()):
                self.note(entry.name, f"index {one.name} covers more rows than there are")
        self._segments(entry, handle)
        chooser = random.Random(version)
        places = [chooser.randrange(total) for _ in range(min(_SAMPLE, total))]
        sample = [keys[i].as_py() for i in places]
        if sample:
            found = handle.scanner(columns=["_key"], filter=lance_in("_key", sorted(set(sample)))).to_table()
            if sorted(found.column("_key").to_pylist()) != sorted(set(sample)):
                self.note(entry.name, "the key index does not find rows that exist")
        for name, where in self._probes(entry, version, sample):
            by_index, by_scan = (
                sorted(
                    handle.scanner(columns=["_key"], filter=where, use_scalar_index=use).to_table()["_key"].to_pylist()
                )
                for use in (True, False)
            )
            if by_index != by_scan:
                self.note(entry.name, f"the index on {name} does not agree with the rows")

    def _segments(self, entry: TableEntry, handle: lance.LanceDataset) -> None:
        """Compare vector and text indices with their records: which there are, of what kind, and what they cover."""
        present = {one.fragment_id for one in handle.get_fragments()}
        indices = {one.name: one for one in handle.describe_indices()}
        recorded = definitions(handle)
        for column, definition in recorded.items():
            index = indices.get(index_name(column))
            if index is None:
                continue  # removed by an erasure, and not built again yet
            details = str(index.details.get("metric_type", "")).lower()
            if index.index_type.upper() != definition.kind or details != (definition.metric or details):
                self.note(entry.name, f"index {index.name} is not of the kind on record")
            covered = [fragment for one in index.segments for fragment in one.fragment_ids if fragment in present]
            if len(set(covered)) != len(covered):
                self.note(entry.name, f"index {index.name} covers a row more than once")
        for name, index in indices.items():
            if index.index_type.upper() not in ("BTREE", "LABELLIST") and name not in map(index_name, recorded):
                self.note(entry.name, f"index {name} is not on record")

    def _probes(self, entry: TableEntry, version: int, sample: Sequence[str]) -> list[tuple[str, str]]:
        """Return predicates on indexed columns and terms of sampled rows."""
        schema = entry.schema
        names = [*schema.indexed, *(["_terms"] if schema.json_columns else [])]
        if not names or not sample:
            return []
        rows = self._core.cold.lookup(entry.dataset, version, sample[:8], ["_key", *names])
        found: list[tuple[str, str]] = []
        for name in names:
            if name not in rows.column_names:
                continue
            values = rows.column(name).to_pylist()
            if name == "_terms":
                terms = [one[0] for one in values if one][:4]
                found.extend((name, lance_has("_terms", term)) for term in terms)
            elif schema.column(name).kind == "string":
                texts = sorted({one for one in values if one is not None})[:4]
                found.extend((name, lance_in(name, [text])) for text in texts)
        return found
