"""Where the rows of a search come from. Every source answers the same questions about the same rows.

Rows are named by their encoded keys, so that what one source found another can complete. Distances are those of
`agentdb.kernels.reference.distances`, scores of texts are BM25.

- `TableSource` reads the table itself: right in every state, also inside a transaction or an old snapshot, and slow.
- `ResidentSource` asks a segment in memory: exact and fast.
- `IndexedVectors` and `IndexedTexts` ask Lance for the cold rows, and a segment in memory for the hot ones.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agentdb.filters import Filter, decode_json, encode_json, field
from agentdb.kernels.reference import distances
from agentdb.storage.table import Table
from agentdb.types import Metric, Row
from agentdb.vectors.analysis import analyze, query_terms
from agentdb.vectors.bm25 import Bm25Block, FrozenBm25, TermStatistics
from agentdb.vectors.resident import Frozen

__all__ = [
    "Found",
    "IndexedTexts",
    "IndexedVectors",
    "ResidentSource",
    "RowCache",
    "RowSource",
    "TableSource",
    "TextSource",
    "VectorSource",
]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that one signal found, best first: encoded keys, and their distances or scores `[N]` float64."""

    keys: list[str]
    values: Floats


class RowSource(Protocol):
    """Knows the rows that a search found."""

    def rows(self, keys: Sequence[str], columns: Sequence[str]) -> list[Row]:
        """Return columns of rows, in order."""
        ...


class VectorSource(RowSource, Protocol):
    """Answers questions about the vectors of the rows that a search may return: those its filter lets through."""

    def nearest(self, column: str, queries: npt.NDArray[np.float32], k: int, metric: Metric) -> list[Found]:
        """Return the K nearest rows of each query `[Q, D]`, fewer where fewer have a vector."""
        ...

    def distances(self, column: str, query: npt.NDArray[np.float32], keys: Sequence[str], metric: Metric) -> Floats:
        """Return `[N]` the distances of rows that the search found; inf where a row has no vector."""
        ...

    def vectors(self, column: str, keys: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return `[N, D]` the vectors of rows that have one."""
        ...


class TextSource(RowSource, Protocol):
    """Answers questions about the texts of the rows that a search may return."""

    def matching(self, text: str, k: int) -> Found:
        """Return the K rows whose texts match best, fewer where fewer share a term with the query."""
        ...

    def text_scores(self, text: str, keys: Sequence[str]) -> Floats:
        """Return `[N]` the scores of rows that the search found; 0 where a text shares no term with the query."""
        ...


class RowCache:
    """Texts, metadata and token matrices of rows that were looked at, by slot, which never holds another row. Bounded; for threads.

    A take of ten rows from Lance costs more than all else of a search in memory, and agents find the same rows again and again.

    Args:
        limit_bytes: about how much to keep; what was used longest ago goes first.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._mutex = threading.Lock()
        self._numbers: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        """Tells the slots of one segment from those of another."""
        self._next = itertools.count()
        self._values: OrderedDict[tuple[int, int, str], str | bytes | None] = OrderedDict()

    def rows(self, frozen: Frozen, slots: npt.NDArray[np.int64], columns: Sequence[str]) -> list[Row]:
        """Return what `Frozen.fetch` returns."""
        with self._mutex:
            number = self._numbers.get(frozen._follower)
            if number is None:
                number = self._numbers[frozen._follower] = next(self._next)
            rows = [self._known(number, slot, columns) for slot in slots.tolist()]
        missing = [position for position, row in enumerate(rows) if row is None]
        if missing:
            fetched = frozen.fetch(slots[missing], columns)
            with self._mutex:
                for position, row in zip(missing, fetched, strict=True):
                    self._keep(number, int(slots[position]), row)
                    rows[position] = row
        return [row for row in rows if row is not None]

    def _known(self, number: int, slot: int, columns: Sequence[str]) -> Row | None:
        row: Row = {}
        for column in columns:
            name = (number, slot, column)
            if name not in self._values:
                return None
            self._values.move_to_end(name)
            value = self._values[name]
            row[column] = decode_json(value) if column == "metadata" and isinstance(value, str) else value
        return row

    def _keep(self, number: int, slot: int, row: Row) -> None:
        for column, given in row.items():
            # Metadata as its text: whoever gets a row may change it.
            value = encode_json(given) if column == "metadata" and given is not None else given
            name = (number, slot, column)
            if name not in self._values and (value is None or isinstance(value, str | bytes)):
                self._values[name] = value
                self._bytes += _size(value)
        while self._bytes > self._limit_bytes:
            self._bytes -= _size(self._values.popitem(last=False)[1])


def _size(value: str | bytes | None) -> int:
    return 200 + (0 if value is None else len(value))


class TableSource:
    """Reads the table in whatever state its caller sees. Exact.

    Args:
        table: the collection's table.
        scope: whose texts the statistics of BM25 are about; None: those of all rows.
        condition: what rows the search may return.
    """

    def __init__(self, table: Table, scope: Filter | None, condition: Filter | None) -> None:
        self._table = table
        self._scope = scope
        self._filter = condition

    def nearest(self, column: str, queries: npt.NDArray[np.float32], k: int, metric: Metric) -> list[Found]:
        """Return the K nearest rows of each query."""
        encode = self._table.schema.encode_key
        found = []
        for query in queries:
            hits = self._table.search(column, query, k, metric=metric, filter=self._filter, columns=())
            found.append(Found([encode(hit.id) for hit in hits], np.array([hit.distance for hit in hits])))
        return found

    def distances(self, column: str, query: npt.NDArray[np.float32], keys: Sequence[str], metric: Metric) -> Floats:
        """Return the distances of rows."""
        return _distances(self, column, query, keys, metric)

    def vectors(self, column: str, keys: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the vectors of rows."""
        return _vectors(self, column, keys)

    def matching(self, text: str, k: int) -> Found:
        """Return the rows whose texts match best."""
        keys, scores = self._texts(text)
        allowed = self._allowed
        if allowed is not None:
            kept = np.array([key in allowed for key in keys], bool)
            keys, scores = [key for key, keep in zip(keys, kept, strict=True) if keep], scores[kept]
        order = _best(scores, k, lambda at: [keys[i] for i in at])
        return Found([keys[i] for i in order], scores[order])

    def text_scores(self, text: str, keys: Sequence[str]) -> Floats:
        """Return the scores of texts."""
        known = dict(zip(*self._texts(text), strict=True))
        return np.array([known.get(key, 0.0) for key in keys], np.float64)

    def rows(self, keys: Sequence[str], columns: Sequence[str]) -> list[Row]:
        """Return columns of rows."""
        return rows_by_key(self._table, keys, columns)

    def _texts(self, text: str) -> tuple[list[str], Floats]:
        """Return the keys and scores of the rows of the scope that share a term with the query, in the order of keys."""
        keys, block = self._block
        slots, scores = block.freeze().scores(query_terms(text))
        return [keys[slot] for slot in slots], scores.astype(np.float64)

    @cached_property
    def _block(self) -> tuple[list[str], Bm25Block]:
        found = self._table.scan_arrow(self._scope, columns=["id", "terms"]).read_all()
        found = found.sort_by("id")
        block = Bm25Block()
        block.append(0, found.column("terms"))
        encode = self._table.schema.encode_key
        return [encode(one) for one in found.column("id").to_pylist()], block

    @cached_property
    def _allowed(self) -> frozenset[str] | None:
        if self._filter == self._scope:
            return None
        ids = self._table.scan_arrow(self._filter, columns=["id"]).read_all().column("id").to_pylist()
        return frozenset(map(self._table.schema.encode_key, ids))


class ResidentSource:
    """Asks a frozen segment in memory. Exact.

    Args:
        table: the collection's table.
        frozen: the rows of the search's scope, or all.
        condition: what rows of them the search may return; None: all.
        cache: keeps the payload of rows; None: it is read each time.
    """

    def __init__(self, table: Table, frozen: Frozen, condition: Filter | None, cache: RowCache | None = None) -> None:
        self._table = table
        self._frozen = frozen
        self._cache = cache
        self._filter = condition
        self._slots: dict[str, int] = {}
        """Of the rows that were found here: the segment may have moved on to newer versions of them."""
        self._scored: tuple[str, tuple[npt.NDArray[np.int64], Floats]] | None = None
        self.statistics: TermStatistics | None = None
        """What BM25 goes by for the next text; None: the segment's own."""

    @cached_property
    def _mask(self) -> npt.NDArray[np.bool_] | None:
        return None if self._filter is None else self._frozen.mask(self._filter)

    def place(self, column: str) -> str:
        """Return where the vectors of a column are searched, in words."""
        return self._frozen.blocks[column].place

    def nearest(self, column: str, queries: npt.NDArray[np.float32], k: int, metric: Metric) -> list[Found]:  # noqa: ARG002
        """Return the K nearest rows of each query; the block knows its metric."""
        block = self._frozen.blocks[column]
        slots, values = block.search(queries, k, mask=self._mask, tie=self._frozen.keys)
        measured = values.astype(np.float64)
        return [Found(self._named(its_slots), its) for its_slots, its in zip(slots, measured, strict=True)]

    def distances(self, column: str, query: npt.NDArray[np.float32], keys: Sequence[str], metric: Metric) -> Floats:
        """Return the distances of rows."""
        slots = self._known(keys)
        if slots is None or column not in self._frozen.blocks:
            return _distances(self, column, query, keys, metric)
        block = self._frozen.blocks[column]
        result = np.full(len(slots), np.inf)
        present = block.live[slots]
        result[present] = block.distances(query, slots[present])
        return result

    def vectors(self, column: str, keys: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the vectors of rows."""
        slots = self._known(keys)
        if slots is None or column not in self._frozen.blocks:
            return _vectors(self, column, keys)
        return self._frozen.blocks[column].vectors(slots)

    def matching(self, text: str, k: int) -> Found:
        """Return the rows whose texts match best."""
        slots, scores = self._texts(text)
        if self._mask is not None:
            kept = self._mask[slots]
            slots, scores = slots[kept], scores[kept]
        order = _best(scores, k, lambda at: self._frozen.keys(slots[at]))
        return Found(self._named(slots[order]), scores[order])

    def text_scores(self, text: str, keys: Sequence[str]) -> Floats:
        """Return the scores of texts."""
        wanted = self._known(keys)
        if wanted is None:
            return self._scores_of_stored(text, keys)
        slots, scores = self._texts(text)
        if not len(slots):
            return np.zeros(len(keys))
        at = np.minimum(np.searchsorted(slots, wanted), len(slots) - 1)
        return np.where(slots[at] == wanted, scores[at], 0.0)

    def rows(self, keys: Sequence[str], columns: Sequence[str]) -> list[Row]:
        """Return columns of rows."""
        slots = self._known(keys)
        if slots is None:
            return rows_by_key(self._table, keys, columns)
        return (
            self._frozen.fetch(slots, columns)
            if self._cache is None
            else self._cache.rows(self._frozen, slots, columns)
        )

    def _named(self, slots: npt.NDArray[np.int64]) -> list[str]:
        keys = self._frozen.keys(slots)
        self._slots.update(zip(keys, slots.tolist(), strict=True))
        return keys

    def _known(self, keys: Sequence[str]) -> npt.NDArray[np.int64] | None:
        """Return the slots of rows, whoever found them; None if one is outside of the scope, or has a newer version by now."""
        slots = np.array([self._slots.get(key, -1) for key in keys], np.int64)
        others = np.flatnonzero(slots < 0)
        if len(others):
            rows = self._frozen.rows
            looked_up = self._frozen._follower.slots_of([keys[i] for i in others.tolist()])
            if not ((looked_up >= 0) & (looked_up < rows.size)).all() or not rows.live[looked_up].all():
                return None
            slots[others] = looked_up
        return slots

    def _texts(self, text: str) -> tuple[npt.NDArray[np.int64], Floats]:
        """Return slots, rising, and scores; those of the last text are kept, because a hybrid search asks twice."""
        if self._scored is None or self._scored[0] != text:
            slots, scores = self._bm25.scores(query_terms(text), statistics=self.statistics)
            self._scored = text, (slots, scores.astype(np.float64))
        return self._scored[1]

    def _scores_of_stored(self, text: str, keys: Sequence[str]) -> Floats:
        terms = query_terms(text)
        stored = pa.array([row["terms"] for row in self.rows(keys, ["terms"])], pa.binary())
        return _scores(terms, stored, self._bm25.statistics(terms))

    @property
    def _bm25(self) -> FrozenBm25:
        assert self._frozen.bm25 is not None, "a segment with texts was asked for"
        return self._frozen.bm25


class _Indexed:
    """Cold rows from Lance, hot ones from a segment, whose keys the cold tier does not count.

    Args:
        table: the collection's table.
        hot: the hot rows in memory.
        condition: what rows the search may return; None: all.
        carried: columns that come along with what is found, where one query to Lance can bring both.
        stored: reads rows faster than the table does by their keys.
    """

    def __init__(
        self,
        table: Table,
        hot: Frozen,
        condition: Filter | None,
        *,
        carried: Sequence[str] = (),
        stored: RowSource | None = None,
    ) -> None:
        self._table = table
        self._stored = stored or TableSource(table, None, condition)
        self._filter = condition
        self._frozen = hot
        self._hot = ResidentSource(table, hot, condition)
        self._carried = carried
        self._rows: dict[str, Row] = {}

    def _taken(self, found: pa.Table, value: str) -> Found:
        keys = found.column("_key").to_pylist()
        if self._carried:
            rows = self._table.schema.arrow_to_rows(found, self._carried)
            self._rows.update(zip(keys, rows, strict=True))
        return Found(keys, found.column(value).to_numpy().astype(np.float64))

    def rows(self, keys: Sequence[str], columns: Sequence[str]) -> list[Row]:
        """Return columns of rows."""
        if not self._carried or not set(columns) <= set(self._carried):
            return self._stored.rows(keys, columns)
        rest = [key for key in keys if key not in self._rows]
        self._rows.update(zip(rest, self._stored.rows(rest, self._carried), strict=True))
        return [{name: self._rows[key][name] for name in columns} for key in keys]


class IndexedVectors(_Indexed):
    """Vectors of cold rows by Lance's index, or by its flat scan where ``probe`` is None; then it is exact.

    Args:
        table, hot, condition, carried, stored: as above.
        probe: how the index is searched.
        wanted: how many of the nearest matter most, those behind them are not worth as much refinement; None: a tenth of
            what is asked for.
    """

    def __init__(
        self,
        table: Table,
        hot: Frozen,
        condition: Filter | None,
        probe: Mapping[str, int] | None,
        wanted: int | None,
        *,
        carried: Sequence[str] = (),
        stored: RowSource | None = None,
    ) -> None:
        super().__init__(table, hot, condition, carried=carried, stored=stored)
        self._probe = probe
        self._wanted = wanted

    def nearest(self, column: str, queries: npt.NDArray[np.float32], k: int, metric: Metric) -> list[Found]:
        """Return the K nearest rows of each query."""
        hot = self._hot.nearest(column, queries, k, metric)
        probe = dict(self._probe or {})
        if "refine_factor" in probe:
            # Every row that is ranked by its stored vector is read: as many as the wanted ones need, and all that are asked for.
            wanted = k // 10 if self._wanted is None else self._wanted
            probe["refine_factor"] = max(1, -(-probe["refine_factor"] * wanted // k))
        # Lance computes with halves where they are stored, which is too coarse to rank hot and cold rows together.
        stored = self._table.schema.column(column)
        is_coarse = self._probe is not None and stored.dtype == np.float16
        columns = (*self._carried, column) if is_coarse else self._carried
        found = []
        for its_hot, query in zip(hot, queries, strict=True):
            cold = self._table.nearest_cold(
                column,
                query,
                k,
                metric=metric,
                filter=self._filter,
                columns=columns,
                probe=probe,
                hidden=self._frozen.hidden,
                exact=self._probe is None,
            )
            its_cold = self._taken(cold, "_distance")
            if is_coarse and its_cold.keys:
                matrix = stored.vector_matrix(pa.concat_arrays(cold.column(column).chunks))
                its_cold = Found(its_cold.keys, distances(query[None], matrix, metric)[0].astype(np.float64))
            found.append(_merged(its_hot, its_cold, k, 1))
        return found

    def distances(self, column: str, query: npt.NDArray[np.float32], keys: Sequence[str], metric: Metric) -> Floats:
        """Return the distances of rows."""
        return _distances(self, column, query, keys, metric)

    def vectors(self, column: str, keys: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the vectors of rows."""
        return _vectors(self, column, keys)


class IndexedTexts(_Indexed):
    """Texts of cold rows by Lance's inverted index; hot ones, if any, by its statistics in memory."""

    def matching(self, text: str, k: int) -> Found:
        """Return the rows whose texts match best."""
        if not len(query_terms(text)):
            return Found([], np.empty(0))
        cold = self._table.match_cold(
            "text", text, k, filter=self._filter, columns=self._carried, hidden=self._frozen.hidden
        )
        if not self._frozen.live:
            return self._taken(cold, "_score")
        self._hot.statistics = self._statistics(text)
        return _merged(self._hot.matching(text, k), self._taken(cold, "_score"), k, -1)

    def text_scores(self, text: str, keys: Sequence[str]) -> Floats:
        """Return the scores of texts."""
        if not len(query_terms(text)) or not keys:
            return np.zeros(len(keys))
        these = field("id").in_([self._table.schema.decode_key(key) for key in keys])
        cold = self._table.match_cold("text", text, len(keys), filter=these, hidden=self._frozen.hidden)
        known = dict(zip(cold.column("_key").to_pylist(), cold.column("_score").to_pylist(), strict=True))
        hidden = [key for key in keys if key in self._frozen.hidden]
        if hidden:
            stored = pa.array([row["terms"] for row in self.rows(hidden, ["terms"])], pa.binary())
            known.update(zip(hidden, _scores(query_terms(text), stored, self._statistics(text)), strict=True))
        return np.array([known.get(key, 0.0) for key in keys], np.float64)

    def _statistics(self, text: str) -> TermStatistics:
        """Return those of both tiers. Lance does not tell how long its texts are: the hot ones stand for all."""
        terms = query_terms(text)
        assert self._frozen.bm25 is not None, "a segment with texts was asked for"
        hot = self._frozen.bm25.statistics(terms)
        names = analyze([text])[0]
        rows, frequencies = self._table.text_frequencies("text", list(dict.fromkeys(names)))
        known = {int(term): frequencies[name] for term, name in zip(terms, names, strict=True)}
        length = round(rows * hot.length / hot.rows) if hot.rows else rows
        return hot + TermStatistics(rows, length, known)


def rows_by_key(table: Table, keys: Sequence[str], columns: Sequence[str]) -> list[Row]:
    """Return columns of rows of the current state, in order, by their encoded keys."""
    found = table.read(keys, columns) if keys else {}
    return [found[key] for key in keys]


def _distances(
    source: RowSource, column: str, query: npt.NDArray[np.float32], keys: Sequence[str], metric: Metric
) -> Floats:
    """Return the distances of stored vectors."""
    given = [row[column] for row in source.rows(keys, [column])]
    present = np.array([one is not None for one in given], bool)
    result = np.full(len(given), np.inf)
    if present.any():
        result[present] = distances(query[None], np.stack([one for one in given if one is not None]), metric)[0]
    return result


def _vectors(source: RowSource, column: str, keys: Sequence[str]) -> npt.NDArray[np.float32]:
    given = [row[column] for row in source.rows(keys, [column])]
    return np.stack(given).astype(np.float32) if given else np.empty((0, 0), np.float32)


def _scores(terms: npt.NDArray[np.uint32], stored: pa.Array, statistics: TermStatistics) -> Floats:
    """Return `[N]` the BM25 scores of stored texts of a larger corpus."""
    block = Bm25Block()
    block.append(0, stored)
    slots, scores = block.freeze().scores(terms, statistics=statistics)
    result = np.zeros(len(stored))
    result[slots] = scores
    return result


def _merged(left: Found, right: Found, k: int, sign: int) -> Found:
    """Return the K best of both, ties by key; ``sign`` is -1 where higher values are better."""
    both = sorted(zip(sign * np.concatenate([left.values, right.values]), [*left.keys, *right.keys], strict=True))[:k]
    return Found([key for _, key in both], sign * np.array([value for value, _ in both], np.float64))


def _best(scores: Floats, k: int, tie: Callable[[npt.NDArray[np.int64]], Sequence[str]]) -> npt.NDArray[np.int64]:
    """Return the positions of the K highest scores, highest first, equal ones in the order of their keys."""
    kept = np.arange(len(scores))
    if len(scores) > k:
        kept = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    values = scores[kept]
    if len(np.unique(values)) == len(values):
        return kept[np.argsort(-values)]
    keys = tie(kept)
    return kept[sorted(range(len(kept)), key=lambda i: (-values[i], keys[i]))[:k]]
