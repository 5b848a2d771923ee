"""The items of a store: how they lie in the database, and how they are read, searched and written.

=============================  ===========================================================================================
``_langgraph_items``           the items: value, times
``_langgraph_item_heads``      in SQLite for good, a few bytes an item: whether it exists, since when, until when, how many
                               vectors it has. A put reads nothing else, and a read that prolongs a life writes nothing else
``_langgraph_namespaces``      in SQLite for good: how many items each has, and a number that rises with every change
``_langgraph_store``           a collection: a row for each text of an item that was embedded
=============================  ===========================================================================================

A namespace is one text, its labels each followed by a point, which no label may hold: ``users.ann.``. So whatever lies below a
namespace begins with its text, and what merely begins alike does not.

Namespaces that are searched are held in memory, as long as they are small, with the number that their last change had: who
finds the number unchanged need not look at the items. Large scopes are searched where they lie, by filter a second time in columns in
memory: see ``store_columns``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from dataclasses import field as attribute
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, Literal, NamedTuple
from weakref import ref

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agentdb import (
    AccessDeniedError,
    And,
    Collection,
    Database,
    Filter,
    InvalidInputError,
    Query,
    StorageError,
    Table,
    TableSchema,
    UnavailableError,
    field,
)
from langgraph_agentdb.store_columns import COLUMNS, Columns, ColumnSets, HeldColumns, paths_of
from langgraph_agentdb.store_filters import StoreFilter, filterable
from langgraph_agentdb.store_index import StoreIndex

__all__ = ["ItemKey", "Items", "NewItem", "Scored", "SearchRequest", "StoredItem", "copied", "namespace_of", "text_of"]

Vectors = npt.NDArray[np.float32]

_LOGGER = logging.getLogger(__name__)
_KEY_FIELDS = [pa.field("namespace", pa.string(), nullable=False), pa.field("key", pa.string(), nullable=False)]
_MOMENT = pa.timestamp("us", tz="UTC")
ITEMS = TableSchema(
    "_langgraph_items",
    [
        *_KEY_FIELDS,
        pa.field("value", pa.json_(), nullable=False),
        pa.field("created_at", _MOMENT, nullable=False),
        pa.field("updated_at", _MOMENT, nullable=False),
        pa.field("ttl", pa.float64()),  # minutes
        pa.field("vectors", pa.int32(), nullable=False),
        # Of the change that wrote it: see the table of namespaces.
        pa.field("revision", pa.int64(), nullable=False),
    ],
    key=("namespace", "key"),
    indexed="revision",
)
HEADS = TableSchema(
    "_langgraph_item_heads",
    [
        *_KEY_FIELDS,
        pa.field("created_at", _MOMENT, nullable=False),
        pa.field("ttl", pa.float64()),
        pa.field("expires_at", _MOMENT),
        pa.field("vectors", pa.int32(), nullable=False),
    ],
    key=("namespace", "key"),
    indexed="expires_at",
    hot_only=True,
)
NAMESPACES = TableSchema(
    "_langgraph_namespaces",
    [
        # "" is the whole store: as its items stands how often a namespace came or went.
        pa.field("namespace", pa.string(), nullable=False),
        pa.field("items", pa.int64(), nullable=False),
        pa.field("revision", pa.int64(), nullable=False),
    ],
    key="namespace",
    hot_only=True,
)
VECTORS = "_langgraph_store"
_STORE = ""
_NEWEST_FIRST: Any = [("updated_at", "desc"), "namespace", "key"]

_RESIDENT_ITEMS = 2_048
"""A scope with more items is searched in the tables: comparing them one by one in Python would take longer."""
_RESIDENT_NAMESPACES = 64
_RESIDENT_SHARE = 8
"""Namespaces in memory take one part in so many of ``Config.resident_bytes`` at most, and columns as much again."""
_EXACT_SHARE = 2
"""Vectors that take at most one part in so many of ``Config.resident_bytes`` are never searched by an approximate index."""
_SIZED_S = 60.0
_SCOPES = 4_096
_REMEMBERED = 8
"""Filters whose answers are remembered for a namespace until it changes."""
_ROW_BYTES = 1_000
"""What an item takes in memory besides its vectors, about."""
_REFRESH_STEP = timedelta(seconds=1)
"""A life is not prolonged by less: a read must not cost a commit each time."""
_SWEPT_AT_ONCE = 1_000
_CANNOT_BE_MADE = (AccessDeniedError, UnavailableError)
"""In a database that is read-only, in a snapshot of the caller's."""
_PLAIN: Any = ((str, str.__str__), (int, int.__int__), (float, float.__float__))
_SCALARS = frozenset({str, int, float, bool, type(None)})


class ItemKey(NamedTuple):
    """What identifies an item."""

    namespace: str
    key: str


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as it lies there. ``value`` may be shared: whoever hands it out copies it."""

    at: ItemKey
    value: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    ttl: float | None
    count: int
    """How many vectors it has."""
    vectors: Vectors | None = attribute(default=None, compare=False)
    """`[count, D]`, of length 1; None: not loaded."""
    containers: tuple[str, ...] = attribute(init=False, compare=False)
    """The keys of what can change in the value."""

    def __post_init__(self) -> None:
        keys = tuple([key for key, one in self.value.items() if type(one) not in _SCALARS])
        object.__setattr__(self, "containers", keys)

    def copied_value(self) -> dict[str, Any]:
        """Return a copy of the value that shares nothing which can change."""
        copy = self.value.copy()
        for key in self.containers:
            copy[key] = copied(copy[key])
        return copy


@dataclass(frozen=True, slots=True, kw_only=True)
class NewItem:
    """What is put; ``value`` None: the item is deleted."""

    value: dict[str, Any] | None
    ttl: float | None = None
    texts: Sequence[str] = ()
    vectors: Vectors | None = None
    """`[N, D]`, one for each text."""


class Scored(NamedTuple):
    """An item that a search found."""

    item: StoredItem
    score: float | None


class SearchRequest(NamedTuple):
    """A search, checked."""

    prefix: str
    filter: Mapping[str, Any] | None
    limit: int
    offset: int
    query: str | None = None
    vector: Vectors | None = None
    """`[D]` of the query; None: the newest items are asked for."""
    is_hybrid: bool = False

    @property
    def wanted(self) -> int:
        """How many items a page ends behind."""
        return self.offset + self.limit


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


def text_of(namespace: Iterable[str]) -> str:
    """Return the text of a namespace."""
    return "".join(f"{label}." for label in namespace)


@lru_cache(maxsize=1 << 14)
def namespace_of(text: str) -> tuple[str, ...]:
    """Return the namespace of a text."""
    return tuple(text.split(".")[:-1])


# --- namespaces in memory ---------------------------------------------------------------------------------------------


class _Namespace:
    """The items of a namespace as of a revision, newest first. Never changed, but that vectors are loaded."""

    __slots__ = ("__weakref__", "_matching", "_matrix", "by_key", "is_embedded", "revision", "rows")

    def __init__(self, revision: int, rows: Iterable[StoredItem], *, is_sorted: bool = False) -> None:
        self.revision = revision
        self.rows = list(rows) if is_sorted else sorted(rows, key=_newest_first)
        self.by_key = {one.at.key: one for one in self.rows}
        self.is_embedded = all(one.vectors is not None or not one.count for one in self.rows)
        """Whether all vectors are loaded."""
        self._matching: dict[str, _Matching] = {}
        self._matrix: tuple[Vectors, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def bytes(self) -> int:
        """Return about what it takes."""
        return sum(_ROW_BYTES + (0 if one.vectors is None else 2 * one.vectors.nbytes) for one in self.rows)

    def changed(self, revision: int, rows: Iterable[StoredItem], gone: Iterable[str] = ()) -> _Namespace:
        """Return the namespace after a change."""
        new = sorted(rows, key=_newest_first)
        touched = {*gone, *(one.at.key for one in new)}
        kept = [one for one in self.rows if one.at.key not in touched]
        is_sorted = not new or not kept or _newest_first(new[-1]) < _newest_first(kept[0])
        return _Namespace(revision, [*new, *kept], is_sorted=is_sorted)

    def matching(self, chosen: _Chosen) -> _Matching:
        """Return the rows that a filter lets through; what was asked before is remembered."""
        found = self._matching.get(chosen.name) if chosen.name is not None else None
        if found is None:
            holds = chosen.check()
            mask = np.fromiter((holds(one.value) for one in self.rows), np.bool_, len(self.rows))
            found = _Matching([self.rows[i] for i in np.flatnonzero(mask).tolist()], mask)
            if chosen.name is not None:
                if len(self._matching) >= _REMEMBERED:
                    self._matching = {}
                self._matching[chosen.name] = found
        return found

    def scores(self, vector: Vectors) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the positions of the rows that have vectors, and how near the best of each is to a vector of length 1."""
        if self._matrix is None:
            owners = [i for i, one in enumerate(self.rows) if one.vectors is not None and len(one.vectors)]
            parts = [vectors for i in owners if (vectors := self.rows[i].vectors) is not None]
            starts = np.cumsum([0, *map(len, parts)])[:-1]
            matrix = np.concatenate(parts) if parts else np.empty((0, len(vector)), np.float32)
            self._matrix = matrix, starts, np.array(owners, np.int64)
        matrix, starts, positions = self._matrix
        if not len(positions):
            return positions, np.empty(0, np.float32)
        best = matrix @ vector
        return positions, best if len(best) == len(positions) else np.maximum.reduceat(best, starts)


class _Matching(NamedTuple):
    """The rows of a namespace that a filter lets through."""

    rows: list[StoredItem]
    mask: npt.NDArray[np.bool_]


class _Chosen:
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
            self._compiled = StoreFilter(self._given, "value")
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


class _Scope(NamedTuple):
    """The namespaces below a prefix, as of a revision of the store."""

    revision: int
    structure: int
    names: tuple[str, ...]
    is_large: bool
    """Whether there is too much to hold."""
    references: tuple[ref[_Namespace], ...]

    def held(self) -> list[_Namespace] | None:
        """Return the namespaces; None if one of them had to make room."""
        found = [namespace for one in self.references if (namespace := one()) is not None]
        return found if len(found) == len(self.references) else None


class _Resident:
    """Namespaces and scopes held in memory; what was used longest ago makes room. Safe for threads."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._bytes = 0
        self._mutex = threading.Lock()
        self._namespaces: OrderedDict[str, tuple[_Namespace, int]] = OrderedDict()
        self._scopes: OrderedDict[str, _Scope] = OrderedDict()

    def namespace(self, name: str) -> _Namespace | None:
        with self._mutex:
            found = self._namespaces.get(name)
            if found is None:
                return None
            self._namespaces.move_to_end(name)
            return found[0]

    def keep(self, name: str, namespace: _Namespace) -> None:
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

    def scope(self, prefix: str) -> _Scope | None:
        with self._mutex:
            return self._scopes.get(prefix)

    def keep_scope(self, prefix: str, scope: _Scope) -> None:
        with self._mutex:
            self._scopes[prefix] = scope
            self._scopes.move_to_end(prefix)
            if len(self._scopes) > _SCOPES:
                self._scopes.popitem(last=False)


# --- items ------------------------------------------------------------------------------------------------------------


class Items:
    """The items of a database's store. All methods may be called from any thread.

    Args:
        db: the database.
        index: what is embedded and by what; None: nothing is.
        omits_expired: reads leave out items whose time is up.
    """

    def __init__(self, db: Database, index: StoreIndex | None, *, omits_expired: bool) -> None:
        self.db = db
        self._omits_expired = omits_expired
        self._items: Table = db.table(ITEMS)
        self._heads: Table = db.table(HEADS)
        self._namespaces: Table = db.table(NAMESPACES)
        self._collection: Collection | None = None
        self._resident = _Resident(db.config.resident_bytes // _RESIDENT_SHARE)
        self._columns = ColumnSets(db.config.resident_bytes // _RESIDENT_SHARE)
        self._index = index
        if index is not None:
            with suppress(*_CANNOT_BE_MADE):  # nothing was embedded yet
                self._collection = self._opened()
        self._sized = (0.0, 0)
        """Until when the number of vectors counts as known, and what it is."""

    def now(self) -> datetime:
        """Return the database's time."""
        moment: datetime = self.db.config.clock()
        return moment.astimezone(UTC)

    @property
    def _vectors(self) -> Collection:
        """The collection; asked for only where there is one."""
        if self._collection is None:
            self._collection = self._opened()
        return self._collection

    def _opened(self) -> Collection:
        if self._index is None:
            return self.db.collection(VECTORS)
        made_by = self._index.embedder  # one that has a name: the collection refuses another
        opened = self.db.collection(VECTORS, dimension=None if made_by else self._index.dims, embedder=made_by)
        if made_by is None and any(one.embedded for one in opened.vectors.values()):
            raise InvalidInputError(
                "index: the vectors of this store are made by an embedder of AgentDB, and those of another model do not "
                "compare: give that embedder as embed, not a function or LangChain's embeddings"
            )
        return opened

    @contextmanager
    def view(self) -> Iterator[None]:
        """Make all reads in a block see one state."""
        with self.db.snapshot():
            yield

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, at: ItemKey) -> StoredItem | None:
        """Return an item, expired or not as the store is told; None: there is none."""
        found = self._find(at)
        if found is not None and self._omits_expired and found.ttl is not None and self.expired([at]):
            return None
        return found

    def _find(self, at: ItemKey) -> StoredItem | None:
        if not self.db.in_transaction:
            held = self._resident.namespace(at.namespace)
            if held is not None:
                row = self._namespaces.get(at.namespace)
                if row is not None and row["revision"] == held.revision:
                    return held.by_key.get(at.key)
        row = self._items.get(at)
        return None if row is None else _item(row)

    def expired(self, keys: Sequence[ItemKey]) -> set[ItemKey]:
        """Return those of some items whose time is up."""
        now = self.now()
        heads = self._heads.get_many(keys)
        return {at for at, head in zip(keys, heads, strict=True) if head is not None and _is_over(head, now)}

    def _expired_below(self, prefix: str) -> set[ItemKey]:
        if not self._omits_expired:
            return set()
        over = self._heads.scan(And(field("expires_at") <= self.now(), *_below(prefix)), columns=["namespace", "key"])
        return {ItemKey(row["namespace"], row["key"]) for row in over}

    def list_namespaces(self) -> list[str]:
        """Return the texts of all namespaces that have items which are to be seen, in no order."""
        with self._one_state():
            counts = {row["namespace"]: row["items"] for row in self._namespaces.scan() if row["namespace"] != _STORE}
            for at in self._expired_below(""):
                counts[at.namespace] -= 1
        return [name for name, count in counts.items() if count > 0]

    def search(self, request: SearchRequest) -> list[Scored]:
        """Return what a search finds, best or newest first."""
        is_aimless = request.vector is not None and not request.vector.any()
        if request.limit == 0 or (is_aimless and not request.is_hybrid):
            return []
        if request.vector is not None and not self._has_vectors():
            return []
        if not request.is_hybrid or request.vector is None:
            namespaces = self._scope(request.prefix, embedded=request.vector is not None)
            if namespaces is not None:
                return self._search_resident(request, namespaces)
        if request.vector is not None:
            with self._one_state():
                return self._search_nearest(request)
        condition = StoreFilter(request.filter, "value")
        columns = self._columns_of(request.prefix, condition)
        if columns is not None:
            return self._search_columns(request, condition, columns)
        with self._one_state():
            return self._search_newest(request, condition)

    def _has_vectors(self) -> bool:
        """Whether there is the collection, which a database may lack that is only read here."""
        try:
            return self._vectors is not None
        except _CANNOT_BE_MADE:
            return False

    def _one_state(self) -> Any:
        return nullcontext() if self.db.in_transaction else self.view()

    # --- small scopes, in memory --------------------------------------------------------------------------------------

    def _scope(self, prefix: str, *, embedded: bool) -> Sequence[_Namespace] | None:
        """Return the namespaces below a prefix as they are now; None if they cannot or should not be held in memory."""
        if self.db.in_transaction:
            return None  # what is not committed is seen by nobody else
        store = self._namespaces.get(_STORE)
        if store is None:
            return ()
        scope = self._resident.scope(prefix)
        if scope is not None and scope.revision == store["revision"]:
            if scope.is_large:
                return None
            held = scope.held()
            if held is not None and (not embedded or all(one.is_embedded for one in held)):
                return held
        with self.view():
            scope, namespaces = self._brought_up(prefix, scope, embedded=embedded)
        self._resident.keep_scope(prefix, scope)
        return namespaces

    def _brought_up(
        self, prefix: str, scope: _Scope | None, *, embedded: bool
    ) -> tuple[_Scope, Sequence[_Namespace] | None]:
        store = self._namespaces.require(_STORE)
        if scope is not None and scope.structure == store["items"]:
            if scope.is_large:
                return scope._replace(revision=store["revision"]), None
            rows = [row for row in self._namespaces.get_many(scope.names) if row is not None]
        else:
            rows = [row for row in self._namespaces.scan(And(*_below(prefix))) if row["namespace"] != _STORE]
        names = tuple(row["namespace"] for row in rows)
        if len(rows) > _RESIDENT_NAMESPACES or sum(row["items"] for row in rows) > _RESIDENT_ITEMS:
            return _Scope(store["revision"], store["items"], names, is_large=True, references=()), None
        namespaces = [self._loaded(row, embedded=embedded) for row in rows]
        references = tuple(map(ref, namespaces))
        return _Scope(store["revision"], store["items"], names, is_large=False, references=references), namespaces

    def _loaded(self, row: Mapping[str, Any], *, embedded: bool) -> _Namespace:
        name, revision = row["namespace"], row["revision"]
        held = self._resident.namespace(name)
        if held is None or held.revision != revision:
            held = self._changed_since(held, row) or _Namespace(revision, self._read(field("namespace") == name))
        elif not embedded or held.is_embedded:
            return held
        if embedded and not held.is_embedded:
            held = _Namespace(revision, self._with_vectors(held.rows))
        self._resident.keep(name, held)
        return held

    def _changed_since(self, held: _Namespace | None, row: Mapping[str, Any]) -> _Namespace | None:
        """Return a namespace brought up to its present revision; None where it has to be read as a whole."""
        if held is None or held.revision > row["revision"]:
            return None
        changes = self._read((field("namespace") == row["namespace"]) & (field("revision") > held.revision))
        made = held.changed(row["revision"], changes)
        # Of what is deleted there is no trace but the number.
        return made if len(made.rows) == row["items"] else None

    def _read(self, condition: Filter) -> list[StoredItem]:
        return [_item(row) for row in self._items.scan(condition)]

    def _with_vectors(self, rows: Sequence[StoredItem]) -> list[StoredItem]:
        """Return items with their vectors."""
        missing = [one for one in rows if one.count and one.vectors is None]
        ids = [vector_id for one in missing for vector_id in _vector_ids(one.at, one.count)]
        records = iter(self._vectors.get_many(ids, include=("vectors",)) if ids else ())
        loaded = {}
        for one in missing:
            found = [record for _, record in zip(range(one.count), records, strict=False) if record is not None]
            vectors = [vector for record in found for vector in record.vectors.values() if vector is not None]
            loaded[one.at] = replace(one, vectors=_unit(np.array(vectors, np.float32)) if vectors else _NONE)
        return [loaded.get(one.at, one) for one in rows]

    def _search_resident(self, request: SearchRequest, namespaces: Sequence[_Namespace]) -> list[Scored]:
        chosen = _Chosen(request.filter)
        if not namespaces:
            chosen.check()
        expired = self._expired_below(request.prefix) if self._omits_expired and _any_ttl(namespaces) else set()
        if request.vector is None:
            found = [namespace.rows if chosen.is_all else namespace.matching(chosen).rows for namespace in namespaces]
            rows = found[0] if len(found) == 1 else sorted(chain.from_iterable(found), key=_newest_first)
            if expired:
                rows = [one for one in rows if one.at not in expired]
            return [Scored(one, None) for one in rows[request.offset : request.wanted]]
        rows = []
        unit = _unit(request.vector)
        parts = []
        for namespace in namespaces:
            positions, best = namespace.scores(unit)
            if not chosen.is_all:
                kept = namespace.matching(chosen).mask[positions]
                positions, best = positions[kept], best[kept]
            rows += [namespace.rows[i] for i in positions.tolist()]
            parts.append(best)
        scores = np.concatenate(parts) if parts else np.empty(0)
        order = np.argsort(-scores, kind="stable").tolist()
        if expired:
            order = [i for i in order if rows[i].at not in expired]
        return [Scored(rows[i], float(scores[i])) for i in order[request.offset : request.wanted]]

    # --- large scopes, in columns -------------------------------------------------------------------------------------

    def _columns_of(self, prefix: str, condition: StoreFilter) -> Columns | None:
        """Return the columns that hold what is below a prefix as it is now; None if the tables are to be searched."""
        if self.db.in_transaction:
            return None
        paths = paths_of(condition.tree)
        held = self._columns.find(prefix, paths)
        if held is None:
            return None
        store = self._namespaces.require(_STORE)
        columns = held.columns
        if columns.revision == store["revision"] and columns.leaves.keys() >= paths:
            return columns
        with held.lock:
            if held.is_dropped:
                return None
            try:
                is_current = self._catch_up(held)
                columns = held.columns
                if is_current and not columns.leaves.keys() >= paths:
                    held.add_leaves(paths - columns.leaves.keys())
                    columns = held.columns
            except BaseException:
                self._columns.drop(held)  # it may be half changed
                raise
            self._columns.trim(held)
        return columns if is_current else None

    def _catch_up(self, held: HeldColumns) -> bool:
        """Bring columns up to what the items are now, or as a snapshot of the caller sees them; whether that succeeded."""
        with self.view():
            revision, known = self._namespaces.require(_STORE)["revision"], held.columns.revision
            if revision <= known:
                return bool(revision == known)  # a snapshot may be older
            if held.is_worn:
                self._columns.drop(held)
                return False
            below = And(*_below(held.prefix))
            counts = {
                row["namespace"]: row["items"] for row in self._namespaces.scan(below) if row["namespace"] != _STORE
            }
            if held.estimated_bytes(sum(counts.values())) > self._columns.budget_bytes:
                self._columns.drop(held, is_too_large=True)
                return False
            # The number alone selects few rows; with the prefix, Lance takes several times as long.
            changes = self._items.scan_arrow(field("revision") > known if known else below, columns=COLUMNS).read_all()
            held.append(revision, changes)
            deleted_from = held.differing(counts)
            if deleted_from:
                is_few = len(deleted_from) <= _RESIDENT_NAMESPACES
                there = field("namespace").in_(deleted_from) if is_few else below
                rows = self._items.scan(there, columns=["namespace", "key"])
                held.retain(deleted_from, {(row["namespace"], row["key"]) for row in rows})
            return True

    def _search_columns(self, request: SearchRequest, condition: StoreFilter, columns: Columns) -> list[Scored]:
        expired = self._expired_below(request.prefix) if self._omits_expired and columns.any_ttl else set()
        rows: Iterable[Any] = columns.rows(request.prefix, condition.tree)
        if expired:
            rows = (row for row in rows if columns.at(row) not in expired)
        if condition.is_exact:
            page = islice(rows, request.offset, request.wanted)
            return [Scored(_item(columns.item(row)), None) for row in page]
        items = (_item(columns.item(row)) for row in rows)
        passed = (one for one in items if condition.holds(one.value))
        return [Scored(one, None) for one in islice(passed, request.offset, request.wanted)]

    # --- large scopes, where they lie ---------------------------------------------------------------------------------

    def _search_newest(self, request: SearchRequest, condition: StoreFilter) -> list[Scored]:
        expired = self._expired_below(request.prefix)
        where = [*_below(request.prefix), *([] if condition.tree is None else [condition.tree])]
        limit = request.wanted + len(expired) if condition.is_exact else None
        rows = self._items.scan(And(*where) if where else None, order_by=_NEWEST_FIRST, limit=limit)
        found = (one for one in map(_item, rows) if one.at not in expired)
        if not condition.is_exact:
            found = (one for one in found if condition.holds(one.value))
        return [Scored(one, None) for one in islice(found, request.offset, request.wanted)]

    def _search_nearest(self, request: SearchRequest) -> list[Scored]:
        assert request.vector is not None
        condition = StoreFilter(request.filter, "metadata", "value")
        expired = self._expired_below(request.prefix)
        where = [] if condition.tree is None else [condition.tree]
        mode: Literal["vector", "text", "hybrid"] = "hybrid" if request.is_hybrid else "vector"
        if not request.vector.any():
            mode = "text"
        if request.prefix:
            where.insert(0, field("metadata", _level(request.prefix.count("."))) == request.prefix)
        wanted = request.wanted + len(expired)
        depth, is_exact = 2 * wanted, self._fits_memory()
        while True:
            hits = self._vectors.search(
                Query(text=request.query, vector=None if mode == "text" else request.vector),
                depth,
                filter=And(*where) if where else None,
                mode=mode,
                include=("metadata",),
                exact=is_exact,
            )
            best: dict[ItemKey, float] = {}
            for hit in hits:
                best.setdefault(ItemKey(*hit.metadata["item"][0]), hit.score)
            keys = [at for at in best if at not in expired]
            if not condition.is_exact or len(keys) >= request.wanted or len(hits) < depth:
                if condition.is_exact:
                    keys = keys[request.offset : request.wanted]
                found = [_item(row) for row in self._items.get_many(keys) if row is not None]
                passed = [one for one in found if condition.is_exact or condition.holds(one.value)]
                if condition.is_exact or len(passed) >= request.wanted or len(hits) < depth:
                    chosen = passed if condition.is_exact else passed[request.offset : request.wanted]
                    return [Scored(one, best[one.at]) for one in chosen]
            depth *= 4

    def _fits_memory(self) -> bool:
        """Whether all vectors do: then they are compared exactly, which takes no longer than a good index."""
        until, count = self._sized
        if time.monotonic() >= until:
            count = self._vectors.count()
            self._sized = time.monotonic() + _SIZED_S, count
        dims = 0 if self._index is None else self._index.dims
        return count * 4 * dims <= self.db.config.resident_bytes // _EXACT_SHARE

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, puts: Mapping[ItemKey, NewItem]) -> None:
        """Store and delete items, all or none, durable when it returns.

        Raises:
            InvalidInputError: a value is no JSON, or a namespace and key are too long; nothing is written.
        """
        if not puts:
            return
        made = self.db.transact(lambda: self._write(puts))
        if not self.db.in_transaction:
            for name, (before, after, rows, gone) in made.items():
                held = self._resident.namespace(name)
                if held is not None and held.revision == before:
                    self._resident.keep(name, held.changed(after, rows, gone))

    def _write(self, puts: Mapping[ItemKey, NewItem]) -> dict[str, tuple[int, int, list[StoredItem], list[str]]]:
        """Return of each namespace what it changed from and to, which items it has now and which no more."""
        now = self.now()
        keys = list(puts)
        heads = dict(zip(keys, self._heads.get_many(keys), strict=True))
        changes = self._count(keys, heads, puts)
        revision = {name: after for name, (_, after, _, _) in changes.items()}
        gone = [at for at, new in puts.items() if new.value is None and heads[at] is not None]
        stored: list[StoredItem] = []
        for at, new in puts.items():
            if new.value is None:
                continue
            head = heads[at]
            is_new = head is None or _is_over(head, now)
            stored.append(
                StoredItem(
                    at,
                    new.value,
                    now if head is None or is_new else head["created_at"],
                    now,
                    new.ttl,
                    0 if new.vectors is None else len(new.vectors),
                    None if new.vectors is None else _unit(new.vectors),
                )
            )
        if stored:
            self._items.put_many(_item_row(one, revision[one.at.namespace]) for one in stored)
            self._heads.put_many(_head_row(one, now) for one in stored)
        if gone:
            self._items.delete_many(gone)
            self._heads.delete_many(gone)
        self._write_vectors(puts, stored, heads)
        for one in stored:
            changes[one.at.namespace][2].append(one)
        for at in gone:
            changes[at.namespace][3].append(at.key)
        return changes

    def _count(
        self, keys: Sequence[ItemKey], heads: Mapping[ItemKey, Any], puts: Mapping[ItemKey, NewItem]
    ) -> dict[str, tuple[int, int, list[StoredItem], list[str]]]:
        """Bring the table of namespaces up to what is about to be written."""
        changed = [at for at in keys if puts[at].value is not None or heads[at] is not None]
        names = list(dict.fromkeys(at.namespace for at in changed))
        if not names:
            return {}
        store, *rows = self._namespaces.get_many([_STORE, *names])
        counts = {name: 0 if row is None else row["items"] for name, row in zip(names, rows, strict=True)}
        before = {name: 0 if row is None else row["revision"] for name, row in zip(names, rows, strict=True)}
        for at in changed:
            counts[at.namespace] += (puts[at].value is not None) - (heads[at] is not None)
        revision = 1 if store is None else store["revision"] + 1
        structure = 0 if store is None else store["items"]
        structure += any((row is None) is (counts[name] > 0) for name, row in zip(names, rows, strict=True))
        kept = [{"namespace": name, "items": counts[name], "revision": revision} for name in names if counts[name]]
        self._namespaces.put_many([{"namespace": _STORE, "items": structure, "revision": revision}, *kept])
        empty = [name for name in names if not counts[name]]
        if empty:
            self._namespaces.delete_many(empty)
        return {name: (before[name], revision, [], []) for name in names}

    def _write_vectors(
        self, puts: Mapping[ItemKey, NewItem], stored: Sequence[StoredItem], heads: Mapping[ItemKey, Any]
    ) -> None:
        counts = {one.at: one.count for one in stored}
        stale = [
            vector_id
            for at, head in heads.items()
            if head is not None
            for vector_id in _vector_ids(at, head["vectors"])[counts.get(at, 0) :]
        ]
        if stale:
            self._vectors.delete(stale)
        embedded = [one for one in stored if one.count]
        if not embedded:
            return
        self._vectors.upsert(
            [vector_id for one in embedded for vector_id in _vector_ids(one.at, one.count)],
            np.concatenate([vectors for one in embedded if (vectors := puts[one.at].vectors) is not None]),
            [text for one in embedded for text in puts[one.at].texts],
            [metadata for one in embedded for metadata in [_metadata(one)] * one.count],
        )

    def due(self, keys: Iterable[ItemKey]) -> list[ItemKey]:
        """Return those of some items whose life a read prolongs by enough to be written."""
        if self.db.read_only:
            return []
        now = self.now()
        heads = self._heads.get_many(list(dict.fromkeys(keys)))
        return [ItemKey(head["namespace"], head["key"]) for head in heads if head is not None and _is_due(head, now)]

    def refresh(self, keys: Sequence[ItemKey]) -> None:
        """Let the time of items that were read, and have one, begin anew.

        What was read counts, though another writer did not let this one have its turn in time: the lives then stay as they are.
        """
        now = self.now()

        def work() -> None:
            heads = [head for head in self._heads.get_many(keys) if head is not None and _is_due(head, now)]
            self._heads.put_many({**head, "expires_at": _expiry(head["ttl"], now)} for head in heads)

        try:
            self.db.transact(work)
        except UnavailableError:
            return  # within a snapshot of the caller's, which reads and does not write
        except StorageError as error:
            if not error.retryable:
                raise
            _LOGGER.warning("the lives of %d items that were read could not be prolonged: %s", len(keys), error)

    def sweep(self) -> int:
        """Delete the items whose time is up; return how many there were."""
        swept = 0
        while True:
            now = self.now()
            over = list(
                self._heads.scan(field("expires_at") <= now, columns=["namespace", "key"], limit=_SWEPT_AT_ONCE)
            )
            if not over:
                return swept
            swept += self._sweep([ItemKey(row["namespace"], row["key"]) for row in over], now)

    def _sweep(self, keys: Sequence[ItemKey], now: datetime) -> int:
        found = 0

        def work() -> None:
            nonlocal found
            # They may have been read, and live longer, or be gone.
            heads = self._heads.get_many(keys)
            over = [at for at, head in zip(keys, heads, strict=True) if head is not None and _is_over(head, now)]
            self._write(dict.fromkeys(over, NewItem(value=None)))
            found = len(over)

        self.db.transact(work)
        return found


_NONE: Vectors = np.empty((0, 0), np.float32)


def _any_ttl(namespaces: Iterable[_Namespace]) -> bool:
    """Whether an item may ever expire."""
    return any(one.ttl is not None for namespace in namespaces for one in namespace.rows)


def _newest_first(one: StoredItem) -> Any:
    return -one.updated_at.timestamp(), one.at


def _below(prefix: str) -> list[Filter]:
    return [field("namespace").startswith(prefix)] if prefix else []


def _level(depth: int) -> str:
    return f"level{depth}"


def _metadata(one: StoredItem) -> dict[str, Any]:
    """Return what vectors of an item are found by: every prefix of its namespace, its value, and which item it is."""
    labels = namespace_of(one.at.namespace)
    levels = {_level(depth): text_of(labels[:depth]) for depth in range(1, len(labels) + 1)}
    # Two lists, because nothing is ever looked up by it: what lies so deep has no terms.
    return {**levels, "item": [list(one.at)], "value": filterable(one.value)}


def _vector_ids(at: ItemKey, count: int) -> list[str]:
    digest = blake2b("\0".join(at).encode(), digest_size=16).hexdigest()
    return [f"{digest}-{number}" for number in range(count)]


def _unit(vectors: Vectors) -> Vectors:
    """Return `[N, D]` vectors of length 1; a zero one stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return unit


def _item(row: Mapping[str, Any]) -> StoredItem:
    at = ItemKey(row["namespace"], row["key"])
    return StoredItem(at, row["value"], row["created_at"], row["updated_at"], row["ttl"], row["vectors"])


def _item_row(one: StoredItem, revision: int) -> dict[str, Any]:
    return {
        "namespace": one.at.namespace,
        "key": one.at.key,
        "value": one.value,
        "created_at": one.created_at,
        "updated_at": one.updated_at,
        "ttl": one.ttl,
        "vectors": one.count,
        "revision": revision,
    }


def _head_row(one: StoredItem, now: datetime) -> dict[str, Any]:
    return {
        "namespace": one.at.namespace,
        "key": one.at.key,
        "created_at": one.created_at,
        "ttl": one.ttl,
        "expires_at": _expiry(one.ttl, now),
        "vectors": one.count,
    }


def _expiry(ttl: float | None, now: datetime) -> datetime | None:
    if ttl is None:
        return None
    try:
        return now + timedelta(minutes=ttl)
    except OverflowError:
        raise InvalidInputError("ttl: the item would outlive the calendar; use None for no expiry") from None


def _is_over(head: Mapping[str, Any], now: datetime) -> bool:
    return head["expires_at"] is not None and head["expires_at"] <= now


def _is_due(head: Mapping[str, Any], now: datetime) -> bool:
    """Whether a read prolongs its life by enough to be written."""
    if head["ttl"] is None:
        return False
    expires_at = _expiry(head["ttl"], now)
    assert expires_at is not None, "what has a time to live expires"
    before: datetime = head["expires_at"]
    return expires_at - before >= _REFRESH_STEP
