"""Followers: the rows of a table by number, brought from commit to commit without being read again.

Blocks that live in memory (vectors, postings) number their rows by *slot*. A follower says which rows came since it was last
asked, and which slots died. A slot holds one version of one row for ever: an update is a dead slot and a new one.

A cold row is known by its Lance row id, which compaction and index builds keep; a hot row by its write number, which no other
row ever gets. A flush moves rows unchanged, so their slots only learn where the rows are now.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from agentdb.errors import UnavailableError
from agentdb.filters import Filter
from agentdb.storage.core import Core, View
from agentdb.storage.hot import TableEntry, Written
from agentdb.storage.plan import Plan, complete, hot_table
from agentdb.storage.schema import TableSchema
from agentdb.types import Key, Row

__all__ = ["Change", "Follower", "Part", "Shadow", "SlotRows"]

Part = Literal["all", "hot"]
Slots = npt.NDArray[np.int64] | Sequence[int]

_MASKS = 16
"""Filters whose masks are kept: a slot's answer never changes, so a mask only ever grows."""
_PICKED = 20_000
_FEW = 512
"""Up to so many rows are read and evaluated one by one; more are asked for by one scan."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a step of a follower did."""

    first: int
    """The added rows have the slots ``first``, ``first + 1``, ..."""
    added: pa.Table
    """``_key`` and the wanted columns, in the cold layout, of live rows only."""
    removed: npt.NDArray[np.int64]
    """The slots that died: replaced, deleted, or no longer matching."""


@dataclass(frozen=True, slots=True)
class SlotRows:
    """Where the rows of one state are; later steps of the follower do not change it."""

    ids: npt.NDArray[np.int64]
    """`[size]` Lance row ids, or the complement (below zero) of hot write numbers."""
    live: npt.NDArray[np.bool_]
    size: int
    commit_no: int


class Shadow(Collection[str]):
    """Encoded keys that the hot tier knows, deleted ones included: cold rows of these keys do not count.

    A view of a record that only grows until it is replaced, so that making one costs nothing.
    """

    __slots__ = ("_known", "_size")

    def __init__(self, known: dict[str, int], size: int) -> None:
        self._known = known
        self._size = size

    def __contains__(self, key: object) -> bool:
        return self._known.get(key, self._size) < self._size  # type: ignore[call-overload,no-any-return]

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        # The record keeps its order, so what was added since stands behind.
        return iter(list(self._known)[: self._size])


@dataclass
class _Mask:
    """For which slots a filter holds, as far as they were asked for."""

    holds: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]


@dataclass
class _Step:
    """A change in the making; nothing of the follower is touched before it is complete."""

    dead: set[int] = field(default_factory=set)
    moved: dict[int, int] = field(default_factory=dict)
    """slot -> Lance row id of a row that was flushed."""
    tables: list[pa.Table] = field(default_factory=list)
    ids: list[npt.NDArray[np.int64]] = field(default_factory=list)
    hot: list[Written] = field(default_factory=list)
    """Those of the added rows that are hot, in their order."""
    seen: npt.NDArray[np.int64] | None = None

    def add(self, table: pa.Table, ids: npt.NDArray[np.int64]) -> None:
        if table.num_rows:
            self.tables.append(table)
            self.ids.append(ids)


class Follower:
    """The rows of a table, or those that a filter lets through, numbered by slot and followed from commit to commit.

    Made by ``Table.follow``. One caller at a time. If `advance` raises, the follower is to be thrown away.
    """

    def __init__(
        self, core: Core, table_id: int, name: str, columns: Sequence[str], condition: Filter | None, part: Part
    ) -> None:
        self.columns: tuple[str, ...] = tuple(columns)
        self.size = 0
        """The slots given out so far, dead ones included."""
        self.live = 0
        """How many of them are live."""
        self._core = core
        self._table_id = table_id
        self._name = name
        self._condition = condition
        self._part = part
        self._compiled: tuple[TableSchema, Plan] | None = None
        self._commit_no = -1
        self._version = 0
        self._last_id = 0
        self._ids = np.empty(64, np.int64)
        self._live = np.empty(64, np.bool_)
        self._keys: list[str] = []
        self._slot: dict[str, int] = {}
        self._hot: dict[int, tuple[int, int]] = {}  # write number -> slot, commit
        self._seen = np.empty(0, np.int64)  # row ids of the last cold version, those that did not count included
        self._shadow: dict[str, int] = {}
        self._rows: SlotRows | None = None
        self._masks: OrderedDict[Filter, _Mask] = OrderedDict()

    # --- following ----------------------------------------------------------------------------------------------------

    def can_follow(self) -> bool:
        """Whether the current view is a committed state, and not older than the one reached."""
        view = self._core.current()
        return view is None or (not view.writable and view.commit_no >= self._commit_no)

    def advance(self) -> Change | None:
        """Go to the state of the current snapshot, or of one of its own; return what changed, None if nothing did.

        Raises:
            UnavailableError: `can_follow` is false.
            NotFoundError: the table was dropped.
        """
        if not self.can_follow():
            raise UnavailableError("a follower cannot go back to an older snapshot, nor into a transaction")
        with self._core.reading() as view:
            if view.commit_no == self._commit_no:
                return None
            entry = view.entry(self._table_id, self._name)
            version = view.version(entry)
            plan = self._plan(entry)
            step = _Step()
            # What a new cold version took over, and what a hot-only table deleted, left the hot tier without a trace.
            everything = version != self._version or entry.schema.hot_only
            written = entry.hot.written(view.connection, -1 if everything else self._last_id)
            if not everything and self._is_missing_rows(view, entry, written):
                everything = True
                written = entry.hot.written(view.connection, -1)
            lost = self._lost(written) if everything else {}
            if self._part == "all" and version != self._version:
                self._follow_cold(entry, plan, version, {one.key for one in written}, lost, step)
            step.dead.update(slot for slot in lost.values() if slot not in step.moved)
            self._follow_hot(view, entry, plan, written, step)
            self._note_shadow(written, anew=everything)
            self._commit_no, self._version = view.commit_no, version
            self._last_id = max((one.id for one in written), default=self._last_id)
        return self._apply(step, entry.schema)

    def _plan(self, entry: TableEntry) -> Plan:
        if self._compiled is None or self._compiled[0] is not entry.schema:
            for name in self.columns:
                entry.schema.column(name)
            self._compiled = entry.schema, Plan.of(self._condition, entry)
        return self._compiled[1]

    def _is_missing_rows(self, view: View, entry: TableEntry, written: Sequence[Written]) -> bool:
        """Whether hot rows left without a trace although the cold version is the same: deleted, and their tombstones flushed."""
        oldest = entry.hot.oldest_number(view.connection)
        rewritten = {one.key for one in written}
        for number, (slot, _) in self._hot.items():  # in the order of the numbers
            if oldest is not None and number >= oldest:
                return False
            if self._keys[slot] not in rewritten:
                return True
        return False

    def _lost(self, written: Sequence[Written]) -> dict[int, int]:
        """Return write number -> slot of hot rows that are no longer there, or are there with other content."""
        present = {one.id: one.seq for one in written}
        return {no: slot for no, (slot, seq) in self._hot.items() if present.get(no) != seq}

    def _follow_cold(
        self, entry: TableEntry, plan: Plan, version: int, shadow: set[str], lost: dict[int, int], step: _Step
    ) -> None:
        """Compare the row ids of a new version with those of the last; read only rows that are new."""
        if not version:
            return
        cold = self._core.cold
        where = plan.cold_where
        wanted = list(dict.fromkeys((*self.columns, *plan.evaluated)))
        if not self.live and not len(self._seen):
            step.seen = self._read_all(entry, plan, version, wanted, shadow, step)
            return
        current = self._ids_of(entry, where, version)
        step.seen = current
        mine = np.flatnonzero(self._live[: self.size] & (self._ids[: self.size] >= 0))
        step.dead.update(mine[~np.isin(self._ids[mine], current)].tolist())
        new = np.sort(current[~np.isin(current, self._seen)])
        if not len(new):
            return
        heads = cold.rows(entry.dataset, version, pa.array(new, pa.uint64()), ["_key", "_seq"])
        by_no = {slot: no for no, slot in lost.items()}
        fresh = []
        for at, (key, seq) in enumerate(zip(*(heads.column(i).to_pylist() for i in (0, 1)), strict=True)):
            slot = self._slot.get(key, -1)
            if slot in by_no and self._hot[by_no[slot]][1] == seq:
                step.moved[slot] = int(new[at])
            elif key not in shadow:
                fresh.append(at)
        if fresh:
            ids = new[fresh]
            table = cold.rows(entry.dataset, version, pa.array(ids, pa.uint64()), ["_key", *wanted])
            self._take(complete(table, entry.schema, wanted), ids, plan, step)

    def _ids_of(self, entry: TableEntry, where: str | None, version: int) -> npt.NDArray[np.int64]:
        batches = self._core.cold.scan(entry.dataset, version, [], where, row_ids=True)
        return np.concatenate([np.empty(0, np.int64), *(_row_ids(one) for one in batches)])

    def _read_all(
        self, entry: TableEntry, plan: Plan, version: int, wanted: list[str], shadow: set[str], step: _Step
    ) -> npt.NDArray[np.int64]:
        """Add all cold rows that count; return the row ids of all that the predicate selects."""
        cold = self._core.cold
        names = ["_key", *wanted]
        ids = None if plan.cold_where is None else self._ids_of(entry, plan.cold_where, version)
        tables: Iterable[pa.Table]
        if ids is not None and len(ids) <= _PICKED:
            # Scattered rows are picked faster than scanned for.
            table = cold.rows(entry.dataset, version, pa.array(ids, pa.uint64()), names)
            tables = [table.append_column("_rowid", pa.array(ids, pa.uint64()))] if len(ids) else []
        else:
            batches = cold.scan(entry.dataset, version, names, plan.cold_where, row_ids=True)
            tables = (pa.Table.from_batches([one]) for one in batches)
        seen = [np.empty(0, np.int64)]
        for read in tables:
            table, here = complete(read, entry.schema, wanted), _row_ids(read)
            seen.append(here)
            if shadow:
                hidden = pc.is_in(table.column("_key"), pa.array(list(shadow), pa.string()))
                table, here = _filtered(table, here, pc.invert(hidden))
            self._take(table, here, plan, step)
        return np.concatenate(seen)

    def _take(self, table: pa.Table, ids: npt.NDArray[np.int64], plan: Plan, step: _Step) -> None:
        """Add those of some cold rows for which the filter holds."""
        if plan.evaluated and table.num_rows:
            table, ids = _filtered(table, ids, plan.chosen(table))
        step.add(table.select(["_key", *self.columns]), ids)

    def _follow_hot(self, view: View, entry: TableEntry, plan: Plan, written: Sequence[Written], step: _Step) -> None:
        """Take over the hot rows that are new: each ends the slot its key has had, whether or not it matches itself."""
        fresh = [one for one in written if self._hot.get(one.id, (0, None))[1] != one.seq]
        if not entry.schema.hot_only:
            fresh = [one for one in fresh if one.id > self._last_id]
        if not fresh:
            return
        step.dead.update(slot for one in fresh if (slot := self._slot.get(one.key)) is not None)
        after = fresh[0].id - 1
        rows = entry.hot.rows_since(view.connection, after, plan.hot_where, plan.hot_parameters)
        chosen, matching = [], []
        for one in fresh:
            values = rows.get(one.id)
            if values is not None and (plan.hot_exact or plan.holds(values)):
                chosen.append(one)
                matching.append((one.key, values))
        if chosen:
            step.hot = chosen
            table = hot_table(entry.schema, matching, self.columns)
            step.add(table, np.array([~one.id for one in chosen], np.int64))

    def _note_shadow(self, written: Sequence[Written], *, anew: bool) -> None:
        if anew:
            self._shadow = {}
        for one in written:
            self._shadow.setdefault(one.key, len(self._shadow))

    def _apply(self, step: _Step, schema: TableSchema) -> Change | None:
        if step.seen is not None:
            self._seen = step.seen
        self._rows = None
        if step.moved:
            # A copy: searches that began before still look for these rows in the hot tier of their snapshot.
            self._ids = self._ids.copy()
            for slot, row_id in step.moved.items():
                del self._hot[~int(self._ids[slot])]
                self._ids[slot] = row_id
        if not step.dead and not step.tables:
            return None
        if step.dead:
            self._live = self._live.copy()
            for slot in step.dead:
                self._live[slot] = False
                if self._slot.get(self._keys[slot]) == slot:
                    del self._slot[self._keys[slot]]
                if self._ids[slot] < 0:
                    del self._hot[~int(self._ids[slot])]
        first = self.size
        wanted = ["_key", *self.columns]
        added = pa.concat_tables(step.tables) if step.tables else hot_table(schema, [], self.columns)
        if added.num_rows:
            self._grow(np.concatenate(step.ids), added.column("_key").to_pylist())
        for one in step.hot:
            self._hot[one.id] = (self._slot[one.key], one.seq)
        self.live += added.num_rows - len(step.dead)
        return Change(first, added.select(wanted), np.array(sorted(step.dead), np.int64))

    def _grow(self, ids: npt.NDArray[np.int64], keys: list[str]) -> None:
        first, size = self.size, self.size + len(keys)
        if size > len(self._ids):
            room = max(size, len(self._ids) * 3 // 2)
            self._ids, self._live = (_longer(one, first, room) for one in (self._ids, self._live))
        self._ids[first:size] = ids
        self._live[first:size] = True
        self._keys.extend(keys)
        self._slot.update(zip(keys, range(first, size), strict=True))
        self.size = size

    # --- the state reached --------------------------------------------------------------------------------------------

    def rows_of(self) -> SlotRows:
        """Return where the rows of the state reached are, for `mask` and `fetch` within the snapshot of that state."""
        if self._rows is None or self._rows.commit_no != self._commit_no:
            self._rows = SlotRows(self._ids[: self.size], self._live[: self.size], self.size, self._commit_no)
        return self._rows

    def shadowing(self) -> Shadow:
        """Return the encoded keys of all hot rows and tombstones, matching or not: they shadow the cold tier."""
        return Shadow(self._shadow, len(self._shadow))

    def slots_of(self, keys: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the slots of encoded keys; -1 where there is none, or it died."""
        return np.fromiter((self._slot.get(key, -1) for key in keys), np.int64, len(keys))

    def encoded_keys(self, slots: Slots) -> list[str]:
        """Return the encoded keys of slots, live or dead."""
        return [self._keys[slot] for slot in slots]

    def key_values(self, slots: Slots) -> list[Key]:
        """Return the keys of slots, live or dead, as callers write them."""
        schema = self._compiled[0] if self._compiled is not None else None
        assert schema is not None or not len(slots), "only an advanced follower has slots"
        return [schema.decode_key(self._keys[slot]) for slot in slots] if schema is not None else []

    def mask(self, filter: Filter, rows: SlotRows | None = None) -> npt.NDArray[np.bool_]:
        """Return `[size]` for which live rows a filter holds; what it says of dead ones means nothing. Not to be modified.

        Args:
            filter: any filter on the table's columns.
            rows: a state as `rows_of` gave it; None: the one reached. The current snapshot must be of that state.

        Raises:
            UnavailableError: the current snapshot is of another state.
        """
        rows = rows or self.rows_of()
        mask = self._masks.get(filter)
        if mask is None:
            mask = _Mask(np.zeros(rows.size, np.bool_), np.zeros(rows.size, np.bool_))
        elif len(mask.known) < rows.size:
            mask = _Mask(*(_longer(one, len(one), rows.size, fill=True) for one in (mask.holds, mask.known)))
        unknown = np.flatnonzero(rows.live & ~mask.known[: rows.size])
        if len(unknown):
            with self._core.reading() as view:
                self._require(view, rows)
                holds = mask.holds.copy()  # an earlier caller may have the old one
                holds[unknown] = self._holds(view, filter, rows.ids[unknown])
            mask.known[unknown] = True
            mask = _Mask(holds, mask.known)
        self._masks[filter] = mask
        self._masks.move_to_end(filter)
        while len(self._masks) > _MASKS:
            self._masks.popitem(last=False)
        return mask.holds[: rows.size]

    def _require(self, view: View, rows: SlotRows) -> None:
        if view.commit_no != rows.commit_no or view.writable:
            raise UnavailableError("these rows belong to another state of the database than the current snapshot")

    def _holds(self, view: View, condition: Filter, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return for which of some rows a filter holds."""
        entry = view.entry(self._table_id, self._name)
        plan = Plan.of(condition, entry)
        found = np.zeros(len(ids), np.bool_)
        hot = np.flatnonzero(ids < 0)
        cold = np.flatnonzero(ids >= 0)
        if len(hot):
            numbers = ~ids[hot]
            chosen = np.ones(len(hot), np.bool_)
            if len(hot) > _FEW:
                matching = entry.hot.match_numbers(view.connection, plan.hot_where or "1", plan.hot_parameters)
                chosen = np.isin(numbers, np.array(matching, np.int64))
            if len(hot) <= _FEW or not plan.hot_exact:
                # The predicate, if it was asked, lets too many through.
                wanted = numbers[chosen].tolist()
                rows = entry.hot.by_number(view.connection, wanted)
                chosen[chosen] = [plan.holds(rows[no]) for no in wanted]
            found[hot] = chosen
        if len(cold):
            version = view.version(entry)
            needs = list(plan.needs)
            if len(cold) <= _FEW:
                table = self._core.cold.rows(entry.dataset, version, pa.array(ids[cold], pa.uint64()), ["_key", *needs])
                holds = plan.chosen(complete(table, entry.schema, needs))
                found[cold] = holds.to_numpy(zero_copy_only=False)
            else:
                found[cold] = np.isin(ids[cold], self._matching_ids(entry, version, condition))
        return found

    def _matching_ids(self, entry: TableEntry, version: int, condition: Filter) -> npt.NDArray[np.int64]:
        both = condition if self._condition is None else self._condition & condition
        plan = Plan.of(both, entry)
        names = ["_key", *plan.evaluated] if plan.evaluated else []
        found = [np.empty(0, np.int64)]
        for batch in self._core.cold.scan(entry.dataset, version, names, plan.cold_where, row_ids=True):
            table = pa.Table.from_batches([batch])
            ids = _row_ids(table)
            if plan.evaluated:
                chosen = plan.chosen(complete(table, entry.schema, plan.evaluated))
                ids = ids[chosen.to_numpy(zero_copy_only=False)]
            found.append(ids)
        return np.concatenate(found)

    def fetch(self, rows: SlotRows, slots: Slots, columns: Sequence[str]) -> list[Row]:
        """Return columns of rows that live in a state, in the given order; the current snapshot must be of that state.

        Raises:
            UnavailableError: the current snapshot is of another state.
            InvalidInputError: an unknown column.
        """
        names = list(columns)
        with self._core.reading() as view:
            self._require(view, rows)
            entry = view.entry(self._table_id, self._name)
            ids = rows.ids[np.asarray(slots, np.int64)]
            hot = (~ids[ids < 0]).tolist()
            cold = ids[ids >= 0]
            found: dict[int, Row] = {}
            if hot:
                values = entry.hot.by_number(view.connection, hot)
                found = {~no: entry.schema.to_python(values[no], names) for no in hot}
            if len(cold):
                version = view.version(entry)
                table = self._core.cold.rows(entry.dataset, version, pa.array(cold, pa.uint64()), names or ["_key"])
                taken = entry.schema.arrow_to_rows(complete(table, entry.schema, names), names)
                found.update(zip(cold.tolist(), taken, strict=True))
        return [found[no] for no in ids.tolist()]


def _row_ids(rows: pa.Table | pa.RecordBatch) -> npt.NDArray[np.int64]:
    ids: npt.NDArray[np.uint64] = rows.column("_rowid").to_numpy(zero_copy_only=False)
    return ids.astype(np.int64)


def _filtered(
    table: pa.Table, ids: npt.NDArray[np.int64], chosen: pa.Array | pa.ChunkedArray
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    return table.filter(chosen), ids[chosen.to_numpy(zero_copy_only=False)]


def _longer(array: npt.NDArray[Any], size: int, room: int, *, fill: bool = False) -> npt.NDArray[Any]:
    """Return an array with room for more behind its first ``size`` items; what follows is false if it is to be filled."""
    made = np.zeros(room, array.dtype) if fill else np.empty(room, array.dtype)
    made[:size] = array[:size]
    return made
