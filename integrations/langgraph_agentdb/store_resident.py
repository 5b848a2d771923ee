"""Small namespaces in memory: their items, what filters let through, their vectors as one matrix.

A namespace is held with the number that its last change had, and what lies below a prefix with the commit that last changed the
store: who finds them unchanged need not look at the items.
"""

from __future__ import annotations

import marshal
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as attribute
from datetime import datetime
from itertools import compress
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
import numpy.typing as npt

from langgraph_agentdb.store_filters import StoreFilter
from langgraph_agentdb.store_index import Vectors

__all__ = [
    "Chosen",
    "ItemKey",
    "Namespace",
    "Positions",
    "Resident",
    "Scope",
    "StoredItem",
    "copied",
    "nearest",
    "newest_first",
    "normalised",
]

Positions = npt.NDArray[np.int64]

_SCOPES = 4_096
_REMEMBERED = 8
"""Filters whose answers are remembered for a namespace, and follow its changes."""
_ROW_BYTES = 450
"""What an item takes in memory besides its value and its vectors, about."""
_PLAIN: Any = ((str, str.__str__), (int, int.__int__), (float, float.__float__))
_SCALARS = frozenset({str, int, float, bool, type(None)})


class ItemKey(NamedTuple):
    """What identifies an item."""

    namespace: str
    key: str

    @staticmethod
    def of(row: Mapping[str, Any]) -> ItemKey:
        """Return what identifies a row of an item."""
        return ItemKey(row["namespace"], row["key"])


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as it lies there."""

    at: ItemKey
    packed: bytes
    """Its value, as one piece of memory. Objects would lie scattered among a hundred thousand others, and to fetch them from
    there, for a copy, takes longer than to make them anew. It never leaves the process."""
    created_at: datetime
    updated_at: datetime
    ttl: float | None
    count: int
    """How many vectors it has."""
    vectors: Vectors | None = attribute(default=None, compare=False)
    """`[count, D]`, of length 1; None: not loaded."""

    @staticmethod
    def of(row: Mapping[str, Any], vectors: Vectors | None = None) -> StoredItem:
        """Return the item of a row.

        Args:
            row: of the table of items.
            vectors: `[count, D]`, if they are at hand.
        """
        # Nearly always it is the same moment: then let it be the same object.
        created_at, updated_at = row["created_at"], row["updated_at"]
        return StoredItem(
            ItemKey.of(row),
            marshal.dumps(row["value"]),
            updated_at if created_at == updated_at else created_at,
            updated_at,
            row["ttl"],
            row["vectors"],
            None if vectors is None else normalised(vectors),
        )

    def value(self) -> dict[str, Any]:
        """Return the value, made anew: it is the caller's."""
        value: dict[str, Any] = marshal.loads(self.packed)  # noqa: S302 - bytes that this process made
        return value


def copied(value: Any) -> Any:
    """Return a copy of a JSON value that shares nothing which can change, and is what the tables will give back."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict or isinstance(value, Mapping):
        return {key: one if type(one) in _SCALARS else copied(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [copied(one) for one in value]
    # Of enumerations and numpy's numbers, what JSON keeps.
    for base, plain in _PLAIN:
        if isinstance(value, base):
            return plain(value)
    return value


def newest_first(one: StoredItem) -> Any:
    """Return what items are sorted by; of one moment, by where they are."""
    return -one.updated_at.timestamp(), one.at


# --- namespaces -------------------------------------------------------------------------------------------------------


class Namespace:
    """The items of a namespace as of a revision, newest first. Never changed, but that vectors are loaded."""

    __slots__ = ("__weakref__", "_matching", "_matrix", "by_key", "is_embedded", "revision", "rows")

    def __init__(self, revision: int, rows: Iterable[StoredItem], *, is_sorted: bool = False) -> None:
        self.revision = revision
        self.rows = list(rows) if is_sorted else sorted(rows, key=newest_first)
        self.by_key = {one.at.key: one for one in self.rows}
        self.is_embedded = all(one.vectors is not None or not one.count for one in self.rows)
        """Whether all vectors are loaded."""
        self._matching: dict[str, _Matching] = {}
        self._matrix: _Matrix | None = None

    @property
    def any_ttl(self) -> bool:
        """Whether an item may ever expire."""
        return any(one.ttl is not None for one in self.rows)

    def bytes(self) -> int:
        """Return about what it takes."""
        vectors = (one.vectors for one in self.rows)
        taken = sum(2 * one.nbytes for one in vectors if one is not None)
        return taken + sum(_ROW_BYTES + len(one.packed) for one in self.rows)

    def changed(self, revision: int, rows: Iterable[StoredItem], gone: Iterable[str] = ()) -> Namespace:
        """Return the namespace after a change."""
        new = sorted(rows, key=newest_first)
        touched = {*gone, *(one.at.key for one in new)}
        is_kept = [one.at.key not in touched for one in self.rows]
        kept = list(compress(self.rows, is_kept))
        is_sorted = not new or not kept or newest_first(new[-1]) < newest_first(kept[0])
        made = Namespace(revision, [*new, *kept], is_sorted=is_sorted)
        remembered = list(self._matching.items())
        if is_sorted and remembered:
            # What is put again and again, and searched in between, is not compared with every filter as a whole.
            moved = np.where(is_kept, np.cumsum(is_kept) - 1 + len(new), -1)
            made._matching = {name: one.changed(made.rows, len(new), moved) for name, one in remembered}
        return made

    def matching(self, chosen: Chosen) -> _Matching:
        """Return the rows that a filter lets through; what was asked before is remembered."""
        found = self._matching.get(chosen.name) if chosen.name is not None else None
        if found is None:
            holds = chosen.check()
            positions = [i for i, one in enumerate(self.rows) if holds(one.value())]
            found = _Matching(holds, [self.rows[i] for i in positions], np.array(positions, np.int64))
            if chosen.name is not None:
                if len(self._matching) >= _REMEMBERED:
                    self._matching = {}
                self._matching[chosen.name] = found
        return found

    def nearest(self, vector: Vectors, chosen: Chosen) -> tuple[Positions, npt.NDArray[np.float32]]:
        """Return where the rows are that have vectors and that a filter lets through, and how near the best of each is.

        Args:
            vector: `[D]`, of length 1.
            chosen: the filter.
        """
        matrix = self._matrix
        if matrix is None:
            matrix = self._matrix = _Matrix.of(self.rows, len(vector))
        if chosen.is_all:
            return matrix.owners, matrix.scores(vector)
        positions = self.matching(chosen).positions
        if matrix.is_complete:
            return positions, matrix.scores(vector, positions)
        positions = positions[np.isin(positions, matrix.owners)]
        return positions, matrix.scores(vector, np.searchsorted(matrix.owners, positions))


class _Matching(NamedTuple):
    """The rows of a namespace that a filter lets through, and where they are among all, rising."""

    holds: Callable[[Any], bool]
    rows: list[StoredItem]
    positions: Positions

    def changed(self, rows: Sequence[StoredItem], new: int, moved: Positions) -> _Matching:
        """Return what the filter lets through after a change.

        Args:
            rows: all of the namespace.
            new: how many of them, the first, are new.
            moved: where each of the rows before has gone; -1: it is gone.
        """
        first = [i for i in range(new) if self.holds(rows[i].value())]
        rest = moved[self.positions]
        positions = np.concatenate([np.array(first, np.int64), rest[rest >= 0]])
        return _Matching(self.holds, [rows[i] for i in positions.tolist()], positions)


class _Matrix(NamedTuple):
    """The vectors of a namespace, one below the other."""

    vectors: Vectors
    """`[N, D]`"""
    starts: Positions
    """`[O]`: where those of an owner begin."""
    owners: Positions
    """`[O]`: where the rows are that have vectors, rising."""
    is_complete: bool
    """Whether every row has a single one."""

    @staticmethod
    def of(rows: Sequence[StoredItem], dims: int) -> _Matrix:
        """Return the vectors of rows."""
        parts = {i: one.vectors for i, one in enumerate(rows) if one.vectors is not None and len(one.vectors)}
        vectors = np.concatenate([*parts.values()]) if parts else np.empty((0, dims), np.float32)
        starts = np.cumsum([0, *map(len, parts.values())])[:-1]
        return _Matrix(vectors, starts, np.array([*parts], np.int64), len(rows) == len(parts) == len(vectors))

    def scores(self, vector: Vectors, chosen: Positions | None = None) -> npt.NDArray[np.float32]:
        """Return how near the best vector of each owner, or of those chosen among them, is to one of length 1."""
        if not len(self.owners):
            return np.empty(0, np.float32)
        is_single = len(self.owners) == len(self.vectors)
        if chosen is not None and is_single and 2 * len(chosen) < len(self.owners):
            # To fetch all the others from memory takes longer than to compare them.
            return self.vectors.take(chosen, axis=0) @ vector
        best = self.vectors @ vector
        if not is_single:
            best = np.maximum.reduceat(best, self.starts)
        return best if chosen is None else best[chosen]


class Chosen:
    """A filter on rows in memory, compiled when it is first needed."""

    __slots__ = ("_compiled", "_given", "is_all", "name")

    def __init__(self, given: Mapping[str, Any] | None) -> None:
        self._given = given
        self._compiled: StoreFilter | None = None
        self.is_all = given is None or (isinstance(given, dict) and not given)
        self.name: str | None = None
        """What tells it from others; None: it must not be remembered."""
        if not self.is_all:
            with suppress(RecursionError):
                self.name = repr(given) if _is_plain(given) else None

    def check(self) -> Callable[[Any], bool]:
        """Return the test of a value."""
        if self._compiled is None:
            # What is remembered stays what was asked, whatever the caller does with it.
            given = self._given if self.name is None else copied(self._given)
            self._compiled = StoreFilter(given, "value")
        return self._compiled.holds


def _is_plain(given: Any) -> bool:
    """Whether the text of a filter says all of it: an iterator, or a mapping of one's own, may have the text of another."""
    kind = type(given)
    if kind is dict:
        for key, one in given.items():
            if type(key) is not str or not (type(one) in _SCALARS or _is_plain(one)):
                return False
        return True
    return all(map(_is_plain, given)) if kind in (list, tuple) else kind in _SCALARS


class Scope(NamedTuple):
    """The namespaces below a prefix, as of a commit."""

    commit: int | None
    """The one that last changed the store."""
    structure: int
    names: tuple[str, ...]
    is_large: bool
    """Whether there is too much to hold."""
    references: tuple[ref[Namespace], ...]

    def held(self) -> list[Namespace] | None:
        """Return the namespaces; None if one of them had to make room."""
        found = [namespace for one in self.references if (namespace := one()) is not None]
        return found if len(found) == len(self.references) else None


class Resident:
    """Namespaces and scopes held in memory; what was used longest ago makes room. Safe for threads."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._bytes = 0
        self._mutex = threading.Lock()
        self._namespaces: OrderedDict[str, tuple[Namespace, int]] = OrderedDict()
        self._scopes: OrderedDict[str, Scope] = OrderedDict()

    def namespace(self, name: str) -> Namespace | None:
        """Return what is held of a namespace."""
        with self._mutex:
            found = self._namespaces.get(name)
            if found is None:
                return None
            self._namespaces.move_to_end(name)
            return found[0]

    def keep(self, name: str, namespace: Namespace) -> None:
        """Hold a namespace, unless a later state of it is held."""
        size = namespace.bytes()
        with self._mutex:
            before = self._namespaces.pop(name, None)
            if before is not None:
                self._bytes -= before[1]
                if before[0].revision > namespace.revision:
                    namespace, size = before  # another thread was ahead
            self._namespaces[name] = namespace, size
            self._bytes += size
            while self._bytes > self._budget_bytes and len(self._namespaces) > 1:
                _, (_, gone) = self._namespaces.popitem(last=False)
                self._bytes -= gone

    def scope(self, prefix: str) -> Scope | None:
        """Return what is known of the namespaces below a prefix."""
        with self._mutex:
            return self._scopes.get(prefix)

    def keep_scope(self, prefix: str, scope: Scope) -> None:
        """Remember which namespaces are below a prefix."""
        with self._mutex:
            self._scopes[prefix] = scope
            self._scopes.move_to_end(prefix)
            if len(self._scopes) > _SCOPES:
                self._scopes.popitem(last=False)


# --- nearness ---------------------------------------------------------------------------------------------------------


def normalised(vectors: Vectors) -> Vectors:
    """Return `[D]` or `[N, D]` vectors of length 1; a zero one stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return unit


def nearest(
    namespaces: Sequence[Namespace], vector: Vectors, chosen: Chosen
) -> tuple[Sequence[StoredItem], Positions, npt.NDArray[np.float32]]:
    """Return the rows of namespaces, where among them those are that a search finds, and how near these are to its vector."""
    direction = normalised(vector)
    found = [namespace.nearest(direction, chosen) for namespace in namespaces]
    if len(namespaces) == 1:
        return namespaces[0].rows, *found[0]
    rows = [one for namespace in namespaces for one in namespace.rows]
    firsts = np.cumsum([0, *(len(namespace.rows) for namespace in namespaces)])[:-1]
    positions = np.concatenate([first + own for first, (own, _) in zip(firsts, found, strict=True)])
    return rows, positions, np.concatenate([scores for _, scores in found])
