"""Resident segments: the rows of a table, or of one scope of it, held in memory and brought from commit to commit.

A segment reads its rows once. From then on every search costs what was written since the last one, not what is there. A scope is
a filter, such as one agent's rows: its segment holds those rows alone, however large the table is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agentdb.errors import InvalidInputError
from agentdb.filters import Filter
from agentdb.storage.follower import Change, Follower, Part, SlotRows
from agentdb.storage.plan import Plan
from agentdb.storage.schema import Column
from agentdb.storage.table import Table
from agentdb.types import Metric, Row
from agentdb.vectors.blocks import DeviceBlock, FrozenBlock, NumpyBlock, VectorBlock, cuda_device
from agentdb.vectors.bm25 import Bm25Block, FrozenBm25

__all__ = ["CacheStatistics", "Frozen", "Part", "ResidentCache", "Segment", "SegmentStatistics", "VectorColumn"]

TEXT_COLUMN = "terms"
_ROW_BYTES = 200
"""What a follower takes for a row: its key, where it is, whether it lives."""
TEXT_BYTES = 600
"""What the postings of a text take, about."""
_COMPACT_ROWS = 1 << 10
_DEVICE_BYTES = 1 << 24
"""Vectors that take less stay on the host: launching kernels would take longer than one pass over them (H100: up to 10k x 384)."""
_RECENT = 4
"""Older states that are kept for those who opened their snapshot before another thread moved the segment on."""


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """A vector column to be held in memory, and what distance means there."""

    name: str
    dimension: int
    metric: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """The rows of a segment in one state of the database; any number of threads may ask. Rows are named by slot.

    Attributes:
        rows: how many slots there are, which of them live, and where their rows are.
        live: how many of them live.
        blocks: the vectors, by the name of their column.
        bm25: the texts, if they were asked for.
        hidden: for a segment of hot rows: the encoded keys of all hot rows and tombstones, whose cold rows do not count.
    """

    rows: SlotRows
    live: int
    blocks: Mapping[str, FrozenBlock]
    bm25: FrozenBm25 | None
    hidden: Collection[str]
    _follower: Follower
    _masking: threading.Lock

    def mask(self, filter: Filter) -> npt.NDArray[np.bool_]:
        """Return `[size]` for which live rows a filter holds; not to be modified. The current snapshot must be of this state.

        Raises:
            UnavailableError: it is of another.
        """
        with self._masking:
            return self._follower.mask(filter, self.rows)

    def fetch(self, slots: npt.ArrayLike, columns: Sequence[str]) -> list[Row]:
        """Return columns of live rows, in order. The current snapshot must be of this state.

        Raises:
            UnavailableError: it is of another.
        """
        return self._follower.fetch(self.rows, np.asarray(slots, np.int64), columns)

    def keys(self, slots: npt.NDArray[np.int64] | Sequence[int]) -> list[str]:
        """Return the encoded keys of rows."""
        return self._follower.encoded_keys(slots)


class Segment:
    """The rows of a table that a filter lets through, in memory. All methods may be called from any thread.

    Args:
        table: where the rows are.
        scope: which of them; None: all.
        vectors: the columns to hold.
        text: whether to hold the analysed texts too, for BM25.
        part: ``"hot"``: only rows that wait for a flush.
        device: a CUDA device for columns of many vectors; None: the host's memory.
    """

    def __init__(
        self,
        table: Table,
        *,
        scope: Filter | None,
        vectors: Sequence[VectorColumn],
        text: bool,
        part: Part = "all",
        device: str | None = None,
    ) -> None:
        self.table, self.scope, self.part, self.text = table, scope, part, text
        self.vectors = frozenset(vectors)
        self._device = device
        self._lock = threading.Lock()
        self._masking = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._is_sound = False
        names = [one.name for one in self.vectors] + [TEXT_COLUMN] * self.text
        self._follower = self.table.follow(names, filter=self.scope, part=self.part)
        self._columns = {one.name: self.table.schema.column(one.name) for one in self.vectors}
        self._blocks: dict[str, VectorBlock] = {one.name: NumpyBlock(one.dimension, one.metric) for one in self.vectors}
        self._bm25 = Bm25Block() if self.text else None
        self._recent: deque[Frozen] = deque(maxlen=_RECENT)
        self._is_sound = True
        """Whether the follower and the blocks agree; not if beginning anew has failed, too."""

    @property
    def live(self) -> int:
        """How many rows it holds as of the last `at_view`; 0 before the first."""
        return self._follower.live

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        blocks = sum(block.nbytes for block in self._blocks.values())
        return blocks + (self._bm25.nbytes if self._bm25 is not None else 0) + self._follower.size * _ROW_BYTES

    def at_view(self) -> Frozen | None:
        """Return the rows as the current snapshot sees them, or, if none is open, as of now.

        Returns:
            None where they cannot be had: inside a transaction, or because the segment is in a newer state already. A newer
            snapshot helps then.

        Raises:
            NotFoundError: the table was dropped.
        """
        view = self.table._core.current()
        with self._lock:
            if view is not None:
                if view.writable:
                    return None
                for frozen in self._recent:
                    if frozen.rows.commit_no == view.commit_no:
                        return frozen
            if not self._is_sound:
                self._start()
            if not self._follower.can_follow():
                return None
            try:
                return self._advanced()
            except BaseException as error:
                # Neither the follower nor the blocks can be trusted; the rows are read anew.
                self._start()
                if self._device is None or not isinstance(error, RuntimeError | InvalidInputError):
                    raise
            # The device is full, or does not take such numbers: the host does.
            self._device = None
            return self._advanced()

    def _advanced(self) -> Frozen:
        change = self._follower.advance()
        size, live = self._follower.size, self._follower.live
        if size > _COMPACT_ROWS and 2 * live < size:
            # Most slots are dead. What lives is read again: less than was written since the last time.
            self._start()
            change = self._follower.advance()
        if change is not None:
            self._apply(change)
        last = self._recent[0] if self._recent else None
        rows = self._follower.rows_of()
        hidden = self._follower.shadowing() if self.part == "hot" else frozenset[str]()
        if change is None and last is not None:
            frozen = replace(last, rows=rows, hidden=hidden)
        else:
            frozen = Frozen(
                rows=rows,
                live=self._follower.live,
                blocks={name: block.freeze() for name, block in self._blocks.items()},
                bm25=None if self._bm25 is None else self._bm25.freeze(),
                hidden=hidden,
                _follower=self._follower,
                _masking=self._masking,
            )
        self._recent.appendleft(frozen)
        return frozen

    def _apply(self, change: Change) -> None:
        for name, block in list(self._blocks.items()):
            _append(block, change.first, change.added.column(name), self._columns[name])
            block.remove(change.removed)
            if self._device is not None and isinstance(block, NumpyBlock) and block.nbytes >= _DEVICE_BYTES:
                self._blocks[name] = _moved(block, self._device)
        if self._bm25 is not None:
            self._bm25.append(change.first, change.added.column(TEXT_COLUMN))
            self._bm25.remove(change.removed)


def _append(block: VectorBlock, first: int, added: pa.ChunkedArray, column: Column) -> None:
    for chunk in added.chunks:
        present = chunk.is_valid().to_numpy(zero_copy_only=False) if chunk.null_count else np.ones(len(chunk), np.bool_)
        block.append(first, column.vector_matrix(chunk), present)
        first += len(chunk)


def _moved(block: NumpyBlock, device: str) -> DeviceBlock:
    rows = block.freeze()
    made = DeviceBlock(block.dimension, block.metric, device=device)
    made.append(0, rows.vectors(np.arange(rows.size)), rows.live.copy())
    return made


# --- the cache --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SegmentStatistics:
    """What one segment holds."""

    table: str
    scope: Filter | None
    part: Part
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What is held in memory, the segment used longest ago first."""

    bytes: int
    budget_bytes: int
    segments: tuple[SegmentStatistics, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    table: str
    table_id: int
    scope: Filter | None
    part: Part


class ResidentCache:
    """The segments of one database in this process, within a budget; those used longest ago make room. Safe for threads.

    A table, scope and part has one segment; it gets the columns that were asked for together so far, as long as they fit.

    Args:
        budget_bytes: what all segments may take.
        device: as ``Config.device``.
    """

    def __init__(self, budget_bytes: int, *, device: str = "cpu") -> None:
        self.budget_bytes = budget_bytes
        self._wanted_device = device
        self._mutex = threading.Lock()
        self._segments: OrderedDict[_Name, list[Segment]] = OrderedDict()
        self._bytes: dict[Segment, int] = {}
        """What each took when it was last asked for: with a thousand scopes held, no search asks them all."""
        self._total_bytes = 0
        self._cold_counts: OrderedDict[tuple[int, Filter | None], tuple[int, int]] = OrderedDict()

    def segment(
        self,
        table: Table,
        *,
        scope: Filter | None,
        vectors: Sequence[VectorColumn],
        text: bool,
        part: Part = "all",
        limit_bytes: int | None = None,
    ) -> Segment | None:
        """Return a segment that holds at least the given columns, made if need be; None if it would take too much.

        Args:
            table: where the rows are.
            scope: which of them; None: all.
            vectors: the vector columns needed.
            text: whether the texts are needed.
            part: ``"hot"``: only rows that wait for a flush; never refused, because flushes keep them few.
            limit_bytes: what these rows and columns may take; None: the whole budget.
        """
        name = _Name(table.name, table._id, scope, part)
        wanted = frozenset(vectors)
        with self._mutex:
            held = self._held(name, wanted, text=text)
        limit = self.budget_bytes if limit_bytes is None else min(limit_bytes, self.budget_bytes)
        if part == "all":
            rows = held.live if held is not None else 0
            rows = rows or self._rows_at_most(table, scope, limit // _row_bytes(wanted, text=text))
            if rows * _row_bytes(wanted, text=text) > limit:
                if held is not None and limit == self.budget_bytes:
                    with self._mutex:
                        self._forget(name)
                return None
        else:
            rows = 0
        with self._mutex:
            held = self._held(name, wanted, text=text) or self._made(table, name, wanted, rows, text=text)
            self._note(held, max(rows * _row_bytes(held.vectors, text=held.text), held.nbytes))
            self._trim(held, name)
            return held

    def _held(self, name: _Name, vectors: frozenset[VectorColumn], *, text: bool) -> Segment | None:
        for one in self._segments.get(name, ()):
            if vectors <= one.vectors and text <= one.text:
                self._segments.move_to_end(name)
                return one
        return None

    def _made(self, table: Table, name: _Name, vectors: frozenset[VectorColumn], rows: int, *, text: bool) -> Segment:
        mine = self._segments.get(name, [])
        both = vectors.union(*(one.vectors for one in mine))
        both_text = text or any(one.text for one in mine)
        if rows * _row_bytes(both, text=both_text) <= self.budget_bytes:
            # One with all columns takes the place of those with some: rows are not held twice.
            self._forget(name)
            vectors, text = both, both_text
        device = cuda_device(self._wanted_device) if vectors else None
        made = Segment(table, scope=name.scope, vectors=tuple(vectors), text=text, part=name.part, device=device)
        self._segments.setdefault(name, []).append(made)
        self._segments.move_to_end(name)
        return made

    def _note(self, segment: Segment, its_bytes: int) -> None:
        self._total_bytes += its_bytes - self._bytes.get(segment, 0)
        self._bytes[segment] = its_bytes

    def _forget(self, name: _Name, kept: Segment | None = None) -> None:
        """Let go of the segments of a name, but for one; searches under way keep theirs to the end."""
        mine = self._segments.pop(name, [])
        for one in mine:
            if one is not kept:
                self._total_bytes -= self._bytes.pop(one, 0)
        if kept is not None and kept in mine:
            self._segments[name] = [kept]

    def _trim(self, kept: Segment, its_name: _Name) -> None:
        """Let go of what was used longest ago."""
        for name in list(self._segments) if self._total_bytes > self.budget_bytes else ():
            if self._total_bytes <= self.budget_bytes:
                return
            self._forget(name, kept if name == its_name else None)

    def estimate_bytes(self, table: Table, *, scope: Filter | None, vectors: Sequence[VectorColumn], text: bool) -> int:
        """Return about how much a segment of these rows and columns would take, or more."""
        return self._rows_at_most(table, scope, None) * _row_bytes(frozenset(vectors), text=text)

    def _rows_at_most(self, table: Table, scope: Filter | None, enough: int | None) -> int:
        """Return how many rows there are, those that hot ones replace counted too; not exact above ``enough``."""
        with table._core.reading() as view:
            entry = table._entry(view)
            plan = Plan.of(scope, entry)
            version = view.version(entry)
            with self._mutex:
                known = self._cold_counts.get((entry.id, scope), (-1, 0))
            if known[0] != version:
                count = table._core.cold.count(entry.dataset, version, plan.cold_where) if version else 0
                known = (version, count)
                with self._mutex:
                    self._cold_counts[entry.id, scope] = known
                    if len(self._cold_counts) > 4096:
                        self._cold_counts.popitem(last=False)
            if enough is not None and known[1] > enough:
                return known[1]
            return known[1] + len(table._hot_keys(view, entry, plan))

    def drop(self, table: Table) -> None:
        """Let go of everything of a table."""
        with self._mutex:
            for name in [name for name in self._segments if name.table_id == table._id]:
                self._forget(name)

    def clear(self) -> None:
        """Let go of everything."""
        with self._mutex:
            for name in list(self._segments):
                self._forget(name)
            self._cold_counts.clear()

    def statistics(self) -> CacheStatistics:
        """Return what is held."""
        with self._mutex:
            segments = tuple(
                SegmentStatistics(name.table, name.scope, name.part, one.live, one.nbytes)
                for name, mine in self._segments.items()
                for one in mine
            )
        return CacheStatistics(sum(one.bytes for one in segments), self.budget_bytes, segments)


def _row_bytes(vectors: frozenset[VectorColumn], *, text: bool) -> int:
    return sum(4 * one.dimension + 16 for one in vectors) + TEXT_BYTES * text + _ROW_BYTES
