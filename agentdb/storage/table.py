"""A table: one set of rows over both tiers. Reads are hot and cold together, hot wins by key; writes commit in SQLite."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import apsw
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from agentdb.errors import InvalidInputError, NotFoundError
from agentdb.filters import Filter, field
from agentdb.kernels.reference import distances, score_of_distance
from agentdb.storage.cold import ColumnFill
from agentdb.storage.core import Core, View, WriteView
from agentdb.storage.flush import ColdWriter, Guard
from agentdb.storage.follower import Follower, Part
from agentdb.storage.hot import TOMBSTONE, KeyOrder, TableEntry, storage_errors
from agentdb.storage.indices import TEXT_INDEX, IndexDefinition, IndexInfo
from agentdb.storage.locks import LockedError
from agentdb.storage.plan import Plan, complete, hot_table
from agentdb.storage.schema import Column, TableSchema
from agentdb.types import ErasureReceipt, Hit, Key, Metric, OnProgress, OrderBy, Row

__all__ = ["Table"]

_FETCH_ROWS = 4_096
_SORTABLE = frozenset({"string", "bool", "int", "uint64", "float", "binary", "timestamp", "date"})
_DELETE_ATTEMPTS = 3
_TIES = 1 << 14
"""Among so many equal scores of an index it is left to chance which are cut off."""
_METRICS = ("cosine", "l2", "dot")
_NO_KEYS = pa.array([], pa.string())

_Part: TypeAlias = list[tuple[str, list[Any]]] | pa.Table
"""Some of the rows of a scan: hot ones by key, or a table in the cold layout."""


class Table:
    """Rows of one schema, identified by their key. All methods may be called from any thread.

    Made by ``db.table(...)``. Inside ``db.transaction()`` or ``db.snapshot()`` every call joins that one; outside, each call
    is a transaction or snapshot of its own.
    """

    def __init__(self, core: Core, writer: ColdWriter, entry: TableEntry, erase: Any) -> None:
        self._core = core
        self._writer = writer
        self._id = entry.id
        self._name = entry.name
        self._erase = erase

    def __repr__(self) -> str:
        return f"Table({self._name!r})"

    @property
    def name(self) -> str:
        """The table's name."""
        return self._name

    @property
    def schema(self) -> TableSchema:
        """The table's current definition."""
        with self._core.reading() as view:
            return self._entry(view).schema

    def _entry(self, view: View) -> TableEntry:
        return view.entry(self._id, self._name)

    # --- reading by key -----------------------------------------------------------------------------------------------

    def get(self, key: Key) -> Row | None:
        """Return the row of a key, or None.

        Args:
            key: one value, or a tuple for a key of several columns.

        Raises:
            InvalidInputError: the key does not fit the table's key columns.
        """
        core = self._core
        core.check()
        entry = core.catalogue.by_id.get(self._id)
        if entry is None or core.current() is not None:
            return self._get_here(key)
        text = entry.schema.encode_key(key)
        pin = core.pins.register()
        try:
            found = self._get_at_once(entry, text)
            if found is None:
                return self._get_here(key)
            version, op, row = found
            if op is not None:
                values = entry.hot.decode(op, row)
                return None if values is None else entry.schema.to_python(values)
            if version == 0:
                return None
            cold = self._cold_rows(entry, version, [text], None)
            return cold[0][1] if cold else None
        finally:
            core.pins.release(pin)

    def _get_here(self, key: Key) -> Row | None:
        """Return what `get` returns, in the current view or a snapshot of its own."""
        with self._core.reading() as view:
            entry = self._entry(view)
            text = entry.schema.encode_key(key)
            known, values = entry.hot.get(view.connection, text)
            if known:
                return None if values is None else entry.schema.to_python(values)
            version = view.version(entry)
            cold = self._cold_rows(entry, version, [text], None) if version else []
        return cold[0][1] if cold else None

    def _get_at_once(self, entry: TableEntry, key: str) -> tuple[int, int | None, bytes] | None:
        """Read catalogue and hot row by one statement; None if the catalogue changed."""
        core = self._core
        rows = self._at_once(entry.hot.get_with_catalogue, key)
        if rows is None:
            return None
        no, commit_no, version, op, row = rows[0]
        core.pins.learn(commit_no)
        return None if no != core.catalogue.no or version is None else (version, op, row)

    def _at_once(self, statement: str, key: str) -> list[tuple[Any, ...]] | None:
        """Return what a statement finds of a key, a snapshot by itself; None if the table was dropped.

        Then the ordinary way says so.
        """
        with storage_errors():
            connection = self._core.hot.take_reader()
            try:
                return connection.execute(statement, (key,)).fetchall()
            except apsw.SQLError:
                return None
            finally:
                self._core.hot.give_reader(connection)

    def require(self, key: Key) -> Row:
        """Return the row of a key.

        Raises:
            NotFoundError: there is none.
        """
        row = self.get(key)
        if row is None:
            raise NotFoundError(f"table {self._name} has no row with that key")
        return row

    def last_commit(self, key: Key) -> int | None:
        """Return the number of the commit that last wrote the row of a key; None if there is no such row.

        Numbers rise with every commit of the database. Who keeps something that was made of a row, and the number that the row
        had before it was read, need not read it again while it has that number: in a table that is ``hot_only`` that is known in
        less than half the time of a `get`. `add_columns` writes no rows. What an open transaction wrote has numbers that others get
        if it is rolled back.

        Args:
            key: one value, or a tuple for a key of several columns.

        Raises:
            InvalidInputError: the key does not fit the table's key columns.
        """
        core = self._core
        core.check()
        entry = core.catalogue.by_id.get(self._id)
        if entry is None or not entry.schema.hot_only or core.current() is not None:
            return self._last_commit_here(key)
        rows = self._at_once(entry.hot.get_seq, entry.schema.encode_key(key))
        if rows is None:
            return self._last_commit_here(key)
        return rows[0][1] if rows else None

    def _last_commit_here(self, key: Key) -> int | None:
        """Return what `last_commit` returns, in the current view or a snapshot of its own."""
        with self._core.reading() as view:
            entry = self._entry(view)
            text = entry.schema.encode_key(key)
            hot: tuple[Any, ...] | None = view.connection.execute(entry.hot.get_seq, (text,)).fetchone()
            if hot is not None:
                return None if hot[0] == TOMBSTONE else hot[1]
            version = view.version(entry)
            if not version:
                return None
            cold = self._core.cold.lookup(entry.dataset, version, [text], ["_seq"]).column("_seq").to_pylist()
            if not cold or cold[0] > 0:
                return cold[0] if cold else None
            return self._core.hot.batch_commit(view.connection, entry.id, -cold[0])

    def get_many(self, keys: Iterable[Key]) -> list[Row | None]:
        """Return the rows of many keys, in their order; None where there is none. One consistent snapshot."""
        with self._core.reading() as view:
            entry = self._entry(view)
            encoded = [entry.schema.encode_key(key) for key in keys]
            found: dict[str, Row | None] = {
                key: None if values is None else entry.schema.to_python(values)
                for key, values in entry.hot.get_many(view.connection, encoded).items()
            }
            missing = [key for key in dict.fromkeys(encoded) if key not in found]
            version = view.version(entry) if missing else 0
            if version:
                found.update(self._cold_rows(entry, version, missing, None))
        return [found.get(key) for key in encoded]

    def read(self, keys: Sequence[str], columns: Sequence[str]) -> dict[str, Row]:
        """Return columns of the rows of encoded keys, by key; those that do not exist are not in it."""
        with self._core.reading() as view:
            entry = self._entry(view)
            names = _chosen(entry.schema, columns)
            known = entry.hot.get_many(view.connection, keys)
            rows = {key: entry.schema.to_python(values, names) for key, values in known.items() if values is not None}
            version = view.version(entry)
            rest = [key for key in dict.fromkeys(keys) if key not in known] if version else []
            if rest:
                rows.update(self._cold_rows(entry, version, rest, names))
        return rows

    def _cold_rows(
        self, entry: TableEntry, version: int, keys: Sequence[str], columns: Sequence[str] | None
    ) -> list[tuple[str, Row]]:
        names = [c.name for c in entry.schema.columns] if columns is None else list(columns)
        table = self._core.cold.lookup(entry.dataset, version, keys, ["_key", *names])
        table = complete(table, entry.schema, names)
        return list(zip(table.column("_key").to_pylist(), entry.schema.arrow_to_rows(table, names), strict=True))

    # --- scans --------------------------------------------------------------------------------------------------------

    def scan(
        self,
        filter: Filter | None = None,
        *,
        order_by: OrderBy | Sequence[OrderBy] | None = None,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[Row]:
        """Yield the rows that match, from one snapshot that writes during the iteration do not change.

        Args:
            filter: built from ``agentdb.field``; None: every row. Equality on leading key columns is a range look-up.
            order_by: a column name, ``(column, "desc")``, or several; nulls last. None: no particular order.
            limit: at most so many rows.
            columns: the columns wanted; None: all.

        Raises:
            InvalidInputError: an unknown column, a column that cannot be sorted, or a negative limit.
        """
        entry, parts = self._scan(filter, order_by, limit, columns)
        schema, names = entry.schema, None if columns is None else list(columns)

        def rows(part: _Part) -> Iterable[Row]:
            if isinstance(part, list):
                return [schema.to_python(values, names) for _, values in part]
            return schema.arrow_to_rows(part, names)

        return _Rows(parts, rows)

    def scan_arrow(
        self,
        filter: Filter | None = None,
        *,
        order_by: OrderBy | Sequence[OrderBy] | None = None,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.RecordBatchReader:
        """Return what `scan` yields as a stream of Arrow record batches, read as it is consumed."""
        entry, parts = self._scan(filter, order_by, limit, columns)
        schema, names = entry.schema, None if columns is None else list(columns)
        wanted = [column.name for column in schema.columns] if names is None else names

        def batches(part: _Part) -> Iterable[pa.RecordBatch]:
            table = hot_table(schema, part, wanted) if isinstance(part, list) else part
            return list(schema.to_user_arrow(table, names).to_batches())

        return pa.RecordBatchReader.from_batches(schema.user_arrow(names), _Rows(parts, batches))

    def count(self, filter: Filter | None = None) -> int:
        """Return the number of rows that match."""
        with self._core.reading() as view:
            entry = self._entry(view)
            plan = Plan.of(filter, entry)
            version = view.version(entry)
            hot = self._hot_keys(view, entry, plan)
            if not version:
                return len(hot)
            shadow = entry.hot.keys(view.connection, plan.low, plan.high)
            if not shadow and plan.cold_exact:
                return len(hot) + self._core.cold.count(entry.dataset, version, plan.cold_where)
            tables = self._cold_tables(entry, version, plan, [], _text(shadow))
            return len(hot) + sum(int(table.num_rows) for table in tables)

    def _hot_keys(self, view: View, entry: TableEntry, plan: Plan) -> list[str]:
        if plan.hot_exact:
            where = plan.hot_where or "1"
            return entry.hot.match_keys(view.connection, where, plan.hot_parameters, plan.low, plan.high)
        return [key for key, _ in self._hot_rows(view, entry, plan)]

    def _hot_rows(
        self, view: View, entry: TableEntry, plan: Plan, limit: int | None = None, order: KeyOrder | None = None
    ) -> list[tuple[str, list[Any]]]:
        """Return the hot rows that match, as `HotTable.match` does, but maybe more than the limit."""
        limit = limit if plan.hot_exact else None
        rows = entry.hot.match(view.connection, plan.hot_where, plan.hot_parameters, plan.low, plan.high, limit, order)
        return rows if plan.hot_exact else [one for one in rows if plan.holds(one[1])]

    def _scan(
        self,
        condition: Filter | None,
        order_by: OrderBy | Sequence[OrderBy] | None,
        limit: int | None,
        columns: Sequence[str] | None,
    ) -> tuple[TableEntry, _Source]:
        """Read the hot part now and return the source of all."""
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise InvalidInputError("limit must be an int of 0 or more, or None")
        with self._core.reading() as view:
            entry = self._entry(view)
            names = [c.name for c in entry.schema.columns] if columns is None else _chosen(entry.schema, columns)
            order = _order(entry.schema, order_by)
            plan = Plan.of(condition, entry)
            version = view.version(entry)
            by_key = _key_order(entry.schema, order, plan.fixed)
            hot = self._hot_rows(view, entry, plan, limit if by_key or not order else None, by_key)
            shadow = _text(entry.hot.keys(view.connection, plan.low, plan.high)) if version else _NO_KEYS
            # From here on only Lance is needed: no reader holds SQLite's log open while it iterates.
            pin = view.pin()
        if order and version:
            parts = self._ordered(entry, version, plan, names, order, hot, shadow, limit)
        else:
            hot = hot if by_key else _sorted(entry.schema, hot, order)
            parts = self._unordered(entry, version, plan, names, hot, shadow, limit)
        return entry, _Source(self._core, parts, pin)

    def _cold_tables(
        self,
        entry: TableEntry,
        version: int,
        plan: Plan,
        names: Sequence[str],
        shadow: pa.Array,
        *,
        row_ids: bool = False,
    ) -> Iterator[pa.Table]:
        """Yield the cold rows that match and that no hot row shadows."""
        wanted = list(dict.fromkeys((*names, *plan.evaluated)))
        for batch in self._core.cold.scan(entry.dataset, version, ["_key", *wanted], plan.cold_where, row_ids=row_ids):
            table = pa.Table.from_batches([batch])
            if len(shadow):
                table = table.filter(pc.invert(pc.is_in(table.column("_key"), shadow)))
            if not table.num_rows:
                continue
            table = complete(table, entry.schema, wanted)
            if plan.evaluated:
                table = table.filter(plan.chosen(table))
            if table.num_rows:
                yield table.select(["_key", *names, *(["_rowid"] if row_ids else [])])

    def _unordered(
        self,
        entry: TableEntry,
        version: int,
        plan: Plan,
        names: Sequence[str],
        hot: list[tuple[str, list[Any]]],
        shadow: pa.Array,
        limit: int | None,
    ) -> Iterator[_Part]:
        left = limit
        parts = (hot[i : i + _FETCH_ROWS] for i in range(0, len(hot), _FETCH_ROWS))
        cold = self._cold_tables(entry, version, plan, names, shadow) if version else ()
        for part in itertools.chain[_Part](parts, cold):
            if left is not None:
                part = part[:left]  # noqa: PLW2901 - the rest is cut off
                left -= len(part)
            if len(part):
                yield part
            if left == 0:
                return

    def _ordered(
        self,
        entry: TableEntry,
        version: int,
        plan: Plan,
        names: Sequence[str],
        order: list[tuple[str, str]],
        hot: list[tuple[str, list[Any]]],
        shadow: pa.Array,
        limit: int | None,
    ) -> Iterator[pa.Table]:
        """Sort by the order columns alone, then fetch the rows wanted: memory grows with those columns only."""
        sort_names = list(dict.fromkeys(name for name, _ in order))
        first = hot_table(entry.schema, hot, sort_names)
        first = first.append_column("_at", pa.array(np.arange(len(hot)), pa.int64()))
        first = first.append_column("_rowid", pa.nulls(len(hot), pa.uint64()))
        parts = [first]
        if version:
            for table in self._cold_tables(entry, version, plan, sort_names, shadow, row_ids=True):
                at = table.schema.get_field_index("_rowid")
                parts.append(table.add_column(at, "_at", pa.nulls(table.num_rows, pa.int64())))
        found = pa.concat_tables(parts)
        # The key makes the order total, so that pages never overlap.
        keys = [(name, direction, "at_end") for name, direction in [*order, ("_key", "ascending")]]
        index = pc.sort_indices(found, sort_keys=keys)
        found = found.take(index[:limit] if limit is not None else index)
        for start in range(0, found.num_rows, _FETCH_ROWS):
            part = found.slice(start, _FETCH_ROWS)
            yield self._fetched(entry, version, names, part, hot)

    def _fetched(
        self,
        entry: TableEntry,
        version: int,
        names: Sequence[str],
        part: pa.Table,
        hot: list[tuple[str, list[Any]]],
    ) -> pa.Table:
        at = part.column("_at").to_pylist()
        here = [hot[i] for i in at if i is not None]
        cold_ids = part.column("_rowid").combine_chunks().drop_null()
        tables = [hot_table(entry.schema, here, names)]
        if len(cold_ids):
            fetched = self._core.cold.rows(entry.dataset, version, cold_ids, ["_key", *names])
            tables.append(complete(fetched, entry.schema, names).select(["_key", *names]))
        rows = pa.concat_tables(tables)
        hot_at, cold_at = itertools.count(), itertools.count(len(here))
        return rows.take(pa.array([next(cold_at) if i is None else next(hot_at) for i in at], pa.int64()))

    # --- vectors ------------------------------------------------------------------------------------------------------

    def search(
        self,
        column: str,
        query: Any,
        k: int = 10,
        *,
        metric: Metric = "cosine",
        filter: Filter | None = None,
        columns: Sequence[str] | None = None,
    ) -> list[Hit]:
        """Return the exact K nearest rows, best first; ties by key. Rows without a vector are never hits.

        Args:
            column: a vector column of dimension D.
            query: `[D]` numbers, finite; not zero with cosine.
            k: how many, at least 1; fewer come back if fewer match.
            metric: ``"cosine"`` (distance ``1 - cos``), ``"l2"`` (squared Euclidean) or ``"dot"`` (distance ``1 - dot``). With
                cosine, a stored zero vector is at distance 1 from everything.
            filter: only rows that match.
            columns: what ``Hit.metadata`` holds; None: every column but vectors.

        Raises:
            InvalidInputError: not a vector column, a wrong dimension or metric, or k below 1.
        """
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise InvalidInputError("k must be an int of 1 or more")
        if metric not in _METRICS:
            raise InvalidInputError(f"metric must be one of {', '.join(_METRICS)}")
        with self._core.reading() as view:
            entry = self._entry(view)
            vector = entry.schema.column(column)
            if vector.kind != "vector":
                raise InvalidInputError(f"column {column} holds no vectors")
            if query is None:
                raise InvalidInputError(f"the query for column {column} must not be None")
            target = np.frombuffer(vector.to_physical(query), vector.dtype).astype(np.float32)
            if metric == "cosine" and not target.any():
                raise InvalidInputError("the query must not be the zero vector with cosine")
            plan = Plan.of(filter, entry)
            plain = [c.name for c in entry.schema.columns if c.kind != "vector"]
            names = plain if columns is None else _chosen(entry.schema, columns)
            found = self._nearest(view, entry, plan, vector, target, k, metric)
            found.sort(key=lambda one: (one[0], one[1]))
            found = found[:k]
            rows = self._rows_by_key(view, entry, [key for _, key in found], names)
        return [
            Hit(
                id=entry.schema.key_values(rows[key][0]),
                score=score_of_distance(distance, metric),
                distance=distance,
                metadata=rows[key][1],
            )
            for distance, key in found
        ]

    def _nearest(
        self,
        view: View,
        entry: TableEntry,
        plan: Plan,
        vector: Column,
        query: np.ndarray[Any, Any],
        k: int,
        metric: Metric,
    ) -> list[tuple[float, str]]:
        hot = hot_table(entry.schema, self._hot_rows(view, entry, plan), [vector.name])
        found = _ranked(hot, vector, query, metric)
        version = view.version(entry)
        if not version:
            return found
        shadow = entry.hot.keys(view.connection, plan.low, plan.high)
        return found + self._nearest_among(entry, version, plan, vector, query, k, metric, shadow)

    def _nearest_among(
        self,
        entry: TableEntry,
        version: int,
        plan: Plan,
        vector: Column,
        query: np.ndarray[Any, Any],
        k: int,
        metric: Metric,
        shadow: Collection[str],
    ) -> list[tuple[float, str]]:
        """Return cold rows that no key shadows, the K nearest among them, in no order."""
        hidden = self._core.cold.find(entry.dataset, version, list(shadow)).num_rows if shadow else 0
        if plan.cold_exact:
            keys = self._candidates(entry, version, plan, vector, query, k + hidden, metric)
            if keys is not None:
                keys = keys.filter(pc.invert(pc.is_in(keys, _text(list(shadow))))).to_pylist()
                table = self._core.cold.lookup(entry.dataset, version, keys, ["_key", vector.name]) if keys else None
                return _ranked(table, vector, query, metric) if table is not None else []
        found: list[tuple[float, str]] = []
        for table in self._cold_tables(entry, version, plan, [vector.name], _text(list(shadow))):
            found.extend(_ranked(table, vector, query, metric))
            found = sorted(found)[:k]
        return found

    def _candidates(
        self,
        entry: TableEntry,
        version: int,
        plan: Plan,
        vector: Column,
        query: np.ndarray[Any, Any],
        k: int,
        metric: Metric,
    ) -> pa.ChunkedArray | None:
        """Return the keys of cold rows among which the K nearest are; None: only a look at every row can tell.

        Lance chooses the candidates and our own distances rank them, so that both tiers agree to the last bit. Lance's are
        less exact, its ties are cut by chance, and with cosine it leaves zero vectors out, which are at distance 1.
        """
        slack = 4e-6 if vector.dtype == np.float32 else 1e-3
        for wanted in (k + 8, 2 * k + 64, 8 * k + 512):
            nearest = self._core.cold.nearest(
                entry.dataset, version, vector.name, query, wanted, metric, plan.cold_where
            )
            far = np.sort(nearest.column("_distance").to_numpy())
            if len(far) < wanted:
                return nearest.column("_key") if metric != "cosine" else None
            edge = far[k - 1] + slack * (1.0 + abs(far[k - 1]))
            if metric == "cosine" and edge >= 1.0:
                return None
            if far[-1] > edge:
                return nearest.column("_key")
        return None

    def nearest_cold(
        self,
        column: str,
        query: Any,
        k: int,
        *,
        metric: Metric,
        filter: Filter | None = None,
        columns: Sequence[str] = (),
        probe: Mapping[str, int] | None = None,
        hidden: Collection[str] = (),
        exact: bool = False,
    ) -> pa.Table:
        """Return the K nearest rows of the cold tier alone, best first: ``_key``, ``_distance`` and columns in the cold layout.

        Args:
            column: a vector column of dimension D.
            query: `[D]` numbers, as for `search`.
            k: at least 1; fewer come back only if fewer match (or the index misses them).
            metric: as for `search`; with an index the one that it was built for.
            filter: only rows that match.
            columns: what else to return.
            probe: how to search the index: ``nprobes``, ``refine_factor``, ``ef``.
            hidden: encoded keys of rows that do not count.
            exact: compare every row, with the distances of `search`.
        """
        with self._core.reading() as view:
            entry = self._entry(view)
            vector = entry.schema.column(column)
            target = np.frombuffer(vector.to_physical(query), vector.dtype).astype(np.float32)
            names = _chosen(entry.schema, columns)
            plan, version = Plan.of(filter, entry), view.version(entry)
            if not version:
                return _nothing(entry.schema, names, "_distance")
            if exact:
                found = self._nearest_among(entry, version, plan, vector, target, k, metric, hidden)
                return self._with_columns(entry, version, sorted(found)[:k], names)

            def nearest(wanted: int) -> pa.Table:
                needed = list(dict.fromkeys(("_key", *names, *plan.evaluated)))
                return self._core.cold.probe(
                    entry.dataset, version, column, target, wanted, metric, plan.cold_where, needed, probe or {}
                )

            found_table = _enough(entry.schema, plan, nearest, k, hidden, names, "_distance")
            found_table = found_table.sort_by([("_distance", "ascending"), ("_key", "ascending")])
            return found_table.slice(0, min(k, found_table.num_rows))

    def match_cold(
        self,
        column: str,
        text: str,
        k: int,
        *,
        filter: Filter | None = None,
        columns: Sequence[str] = (),
        hidden: Collection[str] = (),
    ) -> pa.Table:
        """Return the K rows of the cold tier that a text matches best: ``_key``, ``_score`` (BM25) and columns, best first.

        Args:
            column: a text column with a text index.
            text: a row matches if it holds any of its terms.
            k: as for `nearest_cold`, like the rest. Equal scores are in the order of keys, and cut so, if they are not those of
                more than thousands of rows.
            filter: only rows that match.
            columns: what else to return.
            hidden: encoded keys of rows that do not count.

        Raises:
            InvalidInputError: the column has no text index.
        """
        with self._core.reading() as view:
            entry = self._entry(view)
            names = _chosen(entry.schema, columns)
            plan, version = Plan.of(filter, entry), view.version(entry)
            self._require_text_index(entry, version, column)
            if not version:
                return _nothing(entry.schema, names, "_score")

            def match(wanted: int) -> pa.Table:
                needed = list(dict.fromkeys(("_key", *names, *plan.evaluated)))
                return self._core.cold.match(entry.dataset, version, column, text, wanted, plan.cold_where, needed)

            found = _enough(entry.schema, plan, match, k, hidden, names, "_score")
            found = found.sort_by([("_score", "descending"), ("_key", "ascending")])
            return found.slice(0, min(k, found.num_rows))

    def text_frequencies(self, column: str, terms: Sequence[str]) -> tuple[int, dict[str, int]]:
        """Return how many cold rows have a text, and in how many each term occurs, as the text index sees terms.

        Raises:
            InvalidInputError: the column has no text index.
        """
        with self._core.reading() as view:
            entry = self._entry(view)
            version = view.version(entry)
            self._require_text_index(entry, version, column)
            if not version:
                return 0, dict.fromkeys(terms, 0)
            cold = self._core.cold
            rows = cold.count(entry.dataset, version, Plan.of(~field(column).is_null(), entry).cold_where)
            return rows, {one: cold.count_matches(entry.dataset, version, column, one) for one in terms}

    def _require_text_index(self, entry: TableEntry, version: int, column: str) -> None:
        entry.schema.column(column)
        info = self._core.cold.index_info(entry.dataset, version, column) if version else None
        if version and (info is None or info.metric is not None or not info.segments):
            raise InvalidInputError(f"column {column} has no text index; see build_text_index")

    def _with_columns(
        self, entry: TableEntry, version: int, found: list[tuple[float, str]], names: Sequence[str]
    ) -> pa.Table:
        """Return ranked keys as a table, with columns of their rows."""
        result = pa.table(
            {"_key": _text([key for _, key in found]), "_distance": pa.array([one for one, _ in found], pa.float64())}
        )
        if names and found:
            keys = result.column("_key").to_pylist()
            rows = complete(self._core.cold.lookup(entry.dataset, version, keys, ["_key", *names]), entry.schema, names)
            rows = rows.take(pc.index_in(result.column("_key"), rows.column("_key")))
            for name in names:
                result = result.append_column(name, rows.column(name))
        return result if found else _nothing(entry.schema, names, "_distance")

    def _rows_by_key(
        self, view: View, entry: TableEntry, keys: Sequence[str], names: Sequence[str]
    ) -> dict[str, tuple[Row, Row]]:
        """Return key -> (row with the key columns, row with the columns wanted)."""
        both = list(dict.fromkeys((*entry.schema.key, *names)))
        rows = {
            key: entry.schema.to_python(values, both)
            for key, values in entry.hot.get_many(view.connection, keys).items()
            if values is not None
        }
        rest = [key for key in keys if key not in rows]
        if rest:
            rows.update(self._cold_rows(entry, view.version(entry), rest, both))
        return {key: (row, {name: row[name] for name in names}) for key, row in rows.items()}

    # --- following ----------------------------------------------------------------------------------------------------

    def follow(self, columns: Sequence[str], *, filter: Filter | None = None, part: Part = "all") -> Follower:
        """Return a follower of this table's rows, or of those that match; it has read nothing yet.

        Args:
            columns: those whose values `Follower.advance` delivers.
            filter: only rows that match.
            part: ``"hot"``: only rows that wait for a flush.

        Raises:
            InvalidInputError: an unknown column.
        """
        with self._core.reading() as view:
            entry = self._entry(view)
            names = _chosen(entry.schema, columns)
            Plan.of(filter, entry)
        return Follower(self._core, self._id, self._name, names, filter, part)

    def is_plain_view(self) -> bool:
        """Whether reads of the caller see a committed state: no transaction of its thread or task is open."""
        view = self._core.current()
        return view is None or not view.writable

    # --- writes -------------------------------------------------------------------------------------------------------

    def put(self, row: Mapping[str, Any]) -> None:
        """Store one row in the place of the one with its key; durable when it returns, visible at once everywhere.

        Raises:
            InvalidInputError: a value its column does not accept; nothing is written.
        """
        schema = self._writable_entry().schema
        values = schema.to_physical(row)
        self._put([(schema.key_of(values), values)], schema)

    def put_many(self, rows: Iterable[Mapping[str, Any]] | pa.Table | pa.RecordBatch | pa.RecordBatchReader) -> int:
        """Store many rows, all or none; return how many there were. Of rows with equal keys the last one counts.

        Large batches go straight to the cold tier (``Config.bulk_rows`` and ``bulk_bytes``). Arrow data is not looped over.
        """
        entry = self._writable_entry()
        schema = entry.schema
        if isinstance(rows, pa.RecordBatchReader):
            rows = rows.read_all()
        elif isinstance(rows, pa.RecordBatch):
            rows = pa.Table.from_batches([rows])
        if isinstance(rows, pa.Table):
            self._put_table(entry, schema.from_user_arrow(rows, with_terms=False))
            return int(rows.num_rows)
        if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
            raise InvalidInputError(f"rows must be an iterable of mappings or Arrow data, not {type(rows).__name__}")
        physical = [schema.to_physical(row) for row in rows]
        self._put_rows(entry, list({schema.key_of(values): values for values in physical}.items()))
        return len(physical)

    def _writable_entry(self) -> TableEntry:
        core = self._core
        core.writable()
        view = core.current()
        if view is None:
            entry = core.catalogue.by_id.get(self._id)
            if entry is not None:
                return entry
        with core.reading() as now:
            return self._entry(now)

    def _put_rows(
        self, entry: TableEntry, rows: Sequence[tuple[str, Sequence[Any]]], guard: Guard | None = None
    ) -> None:
        """Store (key, physical row) with distinct keys."""
        schema, enough = entry.schema, self._core.config.bulk_bytes
        if self._is_bulk(entry, len(rows), lambda: _size((values for _, values in rows), enough)):
            keys, values = [key for key, _ in rows], [one for _, one in rows]
            table = schema.rows_to_arrow(keys, [0] * len(keys), values).drop_columns(["_seq"])
            if self._bulk(entry, table, guard):
                return
        self._put(rows, schema, guard)

    def _put_table(self, entry: TableEntry, table: pa.Table, guard: Guard | None = None) -> None:
        """Store rows in the cold layout, without ``_seq`` and ``_terms`` and with distinct keys."""
        schema = entry.schema
        is_bulk = self._is_bulk(entry, table.num_rows, lambda: table.nbytes)
        if is_bulk and self._bulk(entry, schema.with_terms(table), guard):
            return
        columns = [c.from_arrow(table.column(c.name)) for c in schema.columns]
        keyed = zip(table.column("_key").to_pylist(), zip(*columns, strict=True), strict=True)
        self._put(list(keyed), schema, guard)

    def _is_bulk(self, entry: TableEntry, rows: int, size: Callable[[], int]) -> bool:
        config = self._core.config
        return not entry.schema.hot_only and rows >= config.bulk_rows and size() >= config.bulk_bytes

    def _bulk(self, entry: TableEntry, table: pa.Table, guard: Guard | None = None) -> bool:
        view = self._core.current()
        if view is None:
            self._writer.bulk(self._id, self._name, table, guard)
            return True
        if not isinstance(view, WriteView):
            return False  # refused with a clear error by the ordinary way
        if guard is not None:
            guard()
        with view.use(), storage_errors():
            return self._writer.bulk_inside(view, entry, table)

    def _put(self, rows: Sequence[tuple[str, Sequence[Any]]], schema: TableSchema, guard: Guard | None = None) -> None:
        if not rows:
            return

        def work() -> None:
            if guard is not None:
                guard()
            view, entry = self._writing()
            if entry.schema is not schema and entry.schema.columns[: len(schema.columns)] != schema.columns:
                raise NotFoundError(f"table {self._name} was changed while the rows were prepared")
            first = view.reserve(len(rows))
            size = entry.hot.put(view.connection, first, view.next_seq(), rows)
            view.touched[entry.id] = view.touched.get(entry.id, 0) + size

        self._core.transact(work, single=len(rows) == 1 and schema.without_terms(rows[0][1]))

    def _writing(self) -> tuple[WriteView, TableEntry]:
        view = self._core.writing()
        return view, self._entry(view)

    def delete(self, key: Key) -> bool:
        """Delete a row; whether there was one."""
        return self.delete_many([key]) == 1

    def delete_many(self, keys: Iterable[Key] | None = None, *, filter: Filter | None = None) -> int:
        """Delete the rows of some keys, or all that match a filter; return how many there were.

        Raises:
            InvalidInputError: both or neither are given.
        """
        if keys is not None:
            keys = list(keys)
        return self._delete(keys, filter)[0]

    def erase_many(self, keys: Iterable[Key] | None = None, *, filter: Filter | None = None) -> ErasureReceipt:
        """Delete rows so that no file of the database holds them: no payload, term, index, old version or log.

        Outside a transaction the work is done before this returns, and the receipt is ``pending`` only where a reader, of this
        or another process, still has an older version pinned. ``db.erasure(receipt.id)`` tells how it stands.
        """
        if keys is not None:
            keys = list(keys)
        receipt: ErasureReceipt = self._erase(self, keys, filter)
        return receipt

    def _delete(self, keys: Sequence[Key] | None, condition: Filter | None, also: Any = None) -> tuple[int, list[str]]:
        if (keys is None) == (condition is None):
            raise InvalidInputError("give either keys or a filter")
        resolved: tuple[int, int, list[str]] | None = None
        schema = self._writable_entry().schema
        encoded = None if keys is None else list(dict.fromkeys(schema.encode_key(key) for key in keys))
        for attempt in range(_DELETE_ATTEMPTS):
            if condition is not None and self._core.current() is None:
                # Looked up before the write lock is taken; what changed in between is looked at again under it.
                with self._core.reading() as view:
                    entry = self._entry(view)
                    resolved = (view.commit_no, view.version(entry), self._matching(view, entry, condition))
            last = attempt == _DELETE_ATTEMPTS - 1
            done = self._core.transact(lambda: self._delete_now(encoded, condition, resolved, also, last=last))  # noqa: B023
            if done is not None:
                return len(done), done
        raise AssertionError  # the last attempt always ends

    def _delete_now(
        self,
        encoded: list[str] | None,
        condition: Filter | None,
        resolved: tuple[int, int, list[str]] | None,
        also: Any,
        *,
        last: bool,
    ) -> list[str] | None:
        view, entry = self._writing()
        if condition is None:
            keys = self._existing(view, entry, encoded or [])
        elif resolved is None or entry.schema.hot_only or (last and resolved[1] != view.version(entry)):
            # A hot-only table keeps no trace of what changed since: its rows are replaced and removed in place.
            keys = self._matching(view, entry, condition)
        elif resolved[1] != view.version(entry):
            return None
        else:
            changed = set(entry.hot.keys_since(view.connection, resolved[0]))
            keys = [key for key in resolved[2] if key not in changed]
            if changed:
                plan = Plan.of(condition, entry)
                keys += [key for key in self._hot_keys(view, entry, plan) if key in changed]
        seq = view.next_seq()
        if keys:
            if entry.schema.hot_only:
                entry.hot.remove(view.connection, keys)
            else:
                entry.hot.tombstone(view.connection, view.reserve(len(keys)), seq, keys)
            view.touched[entry.id] = view.touched.get(entry.id, 0) + 64 * len(keys)
        if also is not None:
            also(view, entry, keys, seq)
        return keys

    def _existing(self, view: View, entry: TableEntry, keys: list[str]) -> list[str]:
        known = entry.hot.get_many(view.connection, keys)
        rest = [key for key in keys if key not in known]
        version = view.version(entry) if rest else 0
        cold = set(self._core.cold.find(entry.dataset, version, rest).column("_key").to_pylist()) if version else set()
        return [key for key in keys if known.get(key) is not None or key in cold]

    def _matching(self, view: View, entry: TableEntry, condition: Filter) -> list[str]:
        plan = Plan.of(condition, entry)
        keys = self._hot_keys(view, entry, plan)
        version = view.version(entry)
        if version:
            shadow = _text(entry.hot.keys(view.connection, plan.low, plan.high))
            for table in self._cold_tables(entry, version, plan, [], shadow):
                keys.extend(table.column("_key").to_pylist())
        return keys

    # --- indices and upkeep -------------------------------------------------------------------------------------------

    def build_index(
        self,
        column: str,
        definition: IndexDefinition,
        *,
        stop: threading.Event | None = None,
        on_progress: OnProgress | None = None,
    ) -> bool:
        """Index the vectors, or texts, of the cold rows anew; return whether the index is in use now.

        Nobody waits for the build, and whatever is written meanwhile is found, too. Rows that come later join the index in
        the background; when they are many, building it anew makes searches better.

        Args:
            column: a vector column, or a text column that is neither a key nor indexed.
            definition: which index.
            stop: when it is set, the build ends after its current stage; the first takes nearly all the time.
            on_progress: called before each stage; what it raises ends the build and is raised here.

        Returns:
            False if there is no cold row, ``stop`` was set, the table was dropped, or an erasure overtook the build.

        Raises:
            InvalidInputError: the column cannot have that index; or called inside a transaction or snapshot.
            LockedError: an index of this table is being built already (retryable).
            StorageError: Lance or the disk failed; the database is as it was.
        """
        self._core.writable()
        if self._core.current() is not None:
            raise InvalidInputError("an index cannot be built inside a transaction or snapshot")
        return self._writer.build_index(self._id, self._name, column, definition, stop, on_progress)

    def build_text_index(
        self, column: str, *, stop: threading.Event | None = None, on_progress: OnProgress | None = None
    ) -> bool:
        """Index the words of a text column: English stems without stop words. As `build_index`."""
        return self.build_index(column, TEXT_INDEX, stop=stop, on_progress=on_progress)

    def drop_index(self, column: str) -> bool:
        """Remove the vector or text index of a column; whether there was one."""
        self._core.writable()
        if self._core.current() is not None:
            raise InvalidInputError("an index cannot be removed inside a transaction or snapshot")
        return self._writer.drop_index(self._id, self._name, column)

    def index_info(self, column: str) -> IndexInfo | None:
        """Return how the vector or text index of a column stands in the current state; None: there is none.

        After an erasure it has no segments, until it is built again.
        """
        with self._core.reading() as view:
            entry = self._entry(view)
            entry.schema.column(column)
            version = view.version(entry)
            return self._core.cold.index_info(entry.dataset, version, column) if version else None

    def cold_rows(self) -> int:
        """Return the number of rows in the cold tier, those that hot rows replace included."""
        with self._core.reading() as view:
            entry = self._entry(view)
            version = view.version(entry)
            return self._core.cold.count(entry.dataset, version) if version else 0

    def cold_vectors(self, column: str) -> Iterator[tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]]:
        """Yield the encoded keys and `[n, D]` vectors of all cold rows that have one, in batches, from one state."""
        with self._core.reading() as view:
            entry = self._entry(view)
            vector, version, pin = entry.schema.column(column), view.version(entry), view.pin()
        try:
            for batch in self._core.cold.scan(entry.dataset, version, ["_key", column]) if version else ():
                if column in batch.schema.names:
                    present = batch.filter(batch.column(column).is_valid())
                    matrix = vector.vector_matrix(present.column(column)).astype(np.float32, copy=False)
                    yield present.column("_key").to_pylist(), matrix
        finally:
            self._core.pins.release(pin)

    def sample_vectors(self, column: str, rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return `[N, D]` vectors of cold rows drawn at random: at most so many, fewer where rows have none."""
        with self._core.reading() as view:
            entry = self._entry(view)
            vector = entry.schema.column(column)
            version = view.version(entry)
            found = self._core.cold.sample(entry.dataset, version, column, rows) if version else None
        if found is None or not found.num_columns:
            return np.empty((0, vector.dimension), np.float32)
        present = found.column(column).combine_chunks().drop_null()
        return vector.vector_matrix(present).astype(np.float32)

    def try_flush(self, timeout_s: float = 0.005) -> bool:
        """Move what waits in the hot tier, if nobody is at it; whether nothing that was written before the call waits now.

        False without an attempt inside a transaction or snapshot, and where the database is read-only.
        """
        core = self._core
        core.check()
        if core.read_only or core.current() is not None:
            return False
        with core.reading() as view:
            last = view.commit_no
        while True:
            with core.reading() as view:
                oldest = self._entry(view).hot.oldest_seq(view.connection)
            if oldest is None or oldest > last:
                return True
            try:
                self._writer.flush(self._id, self._name, timeout_s=timeout_s)
            except LockedError:
                return False

    # --- definition ---------------------------------------------------------------------------------------------------

    def add_columns(self, fields: pa.Schema | Iterable[pa.Field], *, indexed: str | Sequence[str] = ()) -> None:
        """Add nullable columns, some of them ``indexed``; they are None in the rows that exist.

        Raises:
            InvalidInputError: a column exists already, is not nullable, or its type is not supported.
        """
        self._add_columns(list(fields), [indexed] if isinstance(indexed, str) else list(indexed))

    def _add_columns(
        self, fields: Sequence[pa.Field], indexed: Sequence[str] = (), fill: ColumnFill | None = None
    ) -> None:
        """Add columns; in the rows of the cold tier they hold what ``fill`` makes, in hot rows null."""
        self._writable_entry().schema.with_columns(fields, indexed)  # says what is wrong before a lock is waited for
        if self._core.current() is not None:
            raise InvalidInputError("columns cannot be added inside a transaction or snapshot")
        self._writer.add_columns(self._id, self._name, fields, indexed, fill)

    def _clear_column(self, column: str, guard: Guard) -> None:
        """Make a column null in every row of the cold tier, at once and without a rewrite; hot rows keep it."""
        self._core.writable()
        self._writer.clear_column(self._id, self._name, column, guard)


class _Source:
    """The parts of one snapshot, which stays pinned until the last was taken, `close`, or the garbage collector."""

    def __init__(self, core: Core, parts: Iterator[_Part], pin: int) -> None:
        self._core = core
        self._parts = parts
        self._pin: int | None = pin

    def __iter__(self) -> Iterator[_Part]:
        return self

    def __next__(self) -> _Part:
        try:
            self._core.check()
            with storage_errors():
                return next(self._parts)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._parts = iter(())
        pin, self._pin = self._pin, None
        if pin is not None:
            self._core.pins.release(pin)

    def __del__(self) -> None:
        self.close()


class _Rows(Iterator[Any]):
    """The items of every part of a source, in order."""

    def __init__(self, source: _Source, items: Callable[[_Part], Iterable[Any]]) -> None:
        self._source = source
        self._items = items
        self._ready: Iterator[Any] = iter(())

    def __next__(self) -> Any:
        while True:
            for one in self._ready:
                return one
            self._ready = iter(self._items(next(self._source)))

    def close(self) -> None:
        """End the iteration and let go of its snapshot."""
        self._ready = iter(())
        self._source.close()


def _nothing(schema: TableSchema, names: Sequence[str], value: str) -> pa.Table:
    """Return no search results."""
    fields = [pa.field("_key", pa.string()), pa.field(value, pa.float32())]
    return pa.schema([*fields, *(pa.field(one, schema.column(one).cold_type) for one in names)]).empty_table()


def _enough(
    schema: TableSchema,
    plan: Plan,
    search: Callable[[int], pa.Table],
    k: int,
    hidden: Collection[str],
    names: Sequence[str],
    value: str,
) -> pa.Table:
    """Search for more and more rows, until K of them count or there are no more; and of BM25 all that equal the K-th."""
    # Most hidden keys are new or far away: to search again where they are not is dearer than to look a little further.
    wanted = k + min(len(hidden), 4)
    if value == "_score":
        wanted += 8
    while True:
        found = search(wanted)
        exhausted = found.num_rows < wanted
        if hidden:
            found = found.filter(pa.array([key not in hidden for key in found.column("_key").to_pylist()], pa.bool_()))
        found = complete(found, schema, list(dict.fromkeys((*names, *plan.evaluated))))
        if plan.evaluated:
            found = found.filter(plan.chosen(found))
        if exhausted or (found.num_rows >= k and (wanted >= _TIES or _is_cut(found, k, value))):
            return found.select(["_key", value, *names])
        wanted *= 4


def _is_cut(found: pa.Table, k: int, value: str) -> bool:
    """Whether no row that was left out can be as good as the K-th: Lance cuts equal ones by chance, which a page must not."""
    if value != "_score":
        return True  # an index of vectors is inexact anyway
    scores = np.sort(found.column(value).to_numpy())
    return bool(scores[0] < scores[len(scores) - k])


def _text(keys: Sequence[str]) -> pa.Array:
    return pa.array(keys, pa.string())


def _sorted(
    schema: TableSchema, rows: list[tuple[str, list[Any]]], order: list[tuple[str, str]]
) -> list[tuple[str, list[Any]]]:
    """Return hot rows, given in the order of their keys, as `_ordered` would sort them; nulls last."""
    for name, direction in reversed(order):
        at = schema.positions[name]
        known = [row for row in rows if at < len(row[1]) and row[1][at] is not None]
        known.sort(key=lambda row: row[1][at], reverse=direction == "descending")
        rows = known + [row for row in rows if at >= len(row[1]) or row[1][at] is None]
    return rows


def _key_order(schema: TableSchema, order: list[tuple[str, str]], fixed: int) -> KeyOrder | None:
    """Return the order of keys that is this order too, for rows whose first so many key columns are all the same."""
    if not order:
        return None
    left, key = [one for one in order if one[0] not in schema.key[:fixed]], schema.key[fixed:]
    if left == [(name, "ascending") for name in key[: len(left)]]:
        return "ASC"
    # Equal rows are in the ascending order of their keys, so here none may be equal.
    return "DESC" if left == [(name, "descending") for name in key] else None


def _chosen(schema: TableSchema, columns: Sequence[str]) -> list[str]:
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise InvalidInputError("columns must be a list of column names, or None")
    return [schema.column(name).name for name in columns]


def _order(schema: TableSchema, order_by: OrderBy | Sequence[OrderBy] | None) -> list[tuple[str, str]]:
    if order_by is None:
        return []
    single = isinstance(order_by, str) or (
        isinstance(order_by, tuple) and len(order_by) == 2 and order_by[1] in ("asc", "desc")
    )
    if not isinstance(order_by, str | Sequence):
        raise InvalidInputError("order_by must be a column, (column, 'asc' or 'desc'), or a list of these")
    found = []
    for one in [order_by] if single else order_by:
        if not isinstance(one, str) and not (isinstance(one, tuple) and len(one) == 2):
            raise InvalidInputError("order_by must be a column, (column, 'asc' or 'desc'), or a list of these")
        name, direction = (one, "asc") if isinstance(one, str) else one
        if direction not in ("asc", "desc"):
            raise InvalidInputError(f"order_by direction must be 'asc' or 'desc', not {direction!r}")
        if schema.column(name).kind not in _SORTABLE:  # type: ignore[arg-type]
            raise InvalidInputError(f"order_by column {name} cannot be sorted")
        found.append((str(name), "ascending" if direction == "asc" else "descending"))
    return found


def _ranked(table: pa.Table, vector: Column, query: np.ndarray[Any, Any], metric: Metric) -> list[tuple[float, str]]:
    array = table.column(vector.name).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], vector.type)
    if not len(array):
        return []
    found = distances(query[None, :], vector.vector_matrix(array), metric)[0]
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    keys = table.column("_key").to_pylist()
    return [(float(found[i]), keys[i]) for i in np.flatnonzero(valid)]


def _size(rows: Iterable[Sequence[Any]], enough: int) -> int:
    """Return about how many bytes rows hold, or at least ``enough``."""
    size = 0
    for row in rows:
        size += 16 + sum(len(one) if isinstance(one, str | bytes | list) else 8 for one in row)
        if size >= enough:
            break
    return size
