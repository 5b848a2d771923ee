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

Small scopes are searched in memory: see ``store_resident``. Large ones are searched where they lie, by filter a second time in
columns in memory: see ``store_columns``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, Literal, NamedTuple, TypeAlias
from weakref import ref

import numpy as np
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
from langgraph_agentdb.store_index import StoreIndex, Vectors
from langgraph_agentdb.store_resident import (
    Chosen,
    ItemKey,
    Namespace,
    Resident,
    Scope,
    StoredItem,
    nearest,
    newest_first,
    normalised,
)

__all__ = ["Items", "NewItem", "Scored", "SearchRequest", "namespace_of", "text_of"]

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
_REFRESH_STEP = timedelta(seconds=1)
"""A life is not prolonged by less: a read must not cost a commit each time."""
_SWEPT_AT_ONCE = 1_000
_CANNOT_BE_MADE = (AccessDeniedError, UnavailableError)
"""In a database that is read-only, in a snapshot of the caller's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewItem:
    """What is put; ``value`` None: the item is deleted."""

    value: dict[str, Any] | None
    ttl: float | None = None
    texts: Sequence[str] = ()
    vectors: Vectors | None = None
    """`[N, D]`, one for each text."""


Scored: TypeAlias = tuple[StoredItem, float | None]
"""An item that a search found, and how near it is to the query, if there is one."""


class _Change(NamedTuple):
    """What a write changed in a namespace: its revision, the rows that it put, the keys that it deleted."""

    before: int
    after: int
    rows: list[dict[str, Any]]
    gone: list[str]


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


def text_of(namespace: Iterable[str]) -> str:
    """Return the text of a namespace."""
    text = ".".join(namespace)
    return f"{text}." if text else ""


@lru_cache(maxsize=1 << 14)
def namespace_of(text: str) -> tuple[str, ...]:
    """Return the namespace of a text."""
    return tuple(text.split(".")[:-1])


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
        self._resident = Resident(db.config.resident_bytes // _RESIDENT_SHARE)
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
        return None if row is None else StoredItem.of(row)

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

    def _scope(self, prefix: str, *, embedded: bool) -> Sequence[Namespace] | None:
        """Return the namespaces below a prefix as they are now; None if they cannot or should not be held in memory."""
        if self.db.in_transaction:
            return None  # what is not committed is seen by nobody else
        commit = self._namespaces.last_commit(_STORE)
        if commit is None:
            return ()
        scope = self._resident.scope(prefix)
        if scope is not None and scope.commit == commit:
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
        self, prefix: str, scope: Scope | None, *, embedded: bool
    ) -> tuple[Scope, Sequence[Namespace] | None]:
        commit, store = self._namespaces.last_commit(_STORE), self._namespaces.require(_STORE)
        if scope is not None and scope.structure == store["items"]:
            if scope.is_large:
                return scope._replace(commit=commit), None
            rows = [row for row in self._namespaces.get_many(scope.names) if row is not None]
        else:
            rows = [row for row in self._namespaces.scan(And(*_below(prefix))) if row["namespace"] != _STORE]
        names = tuple(row["namespace"] for row in rows)
        if len(rows) > _RESIDENT_NAMESPACES or sum(row["items"] for row in rows) > _RESIDENT_ITEMS:
            return Scope(commit, store["items"], names, is_large=True, references=()), None
        namespaces = [self._loaded(row, embedded=embedded) for row in rows]
        references = tuple(map(ref, namespaces))
        return Scope(commit, store["items"], names, is_large=False, references=references), namespaces

    def _loaded(self, row: Mapping[str, Any], *, embedded: bool) -> Namespace:
        name, revision = row["namespace"], row["revision"]
        held = self._resident.namespace(name)
        if held is None or held.revision != revision:
            held = self._changed_since(held, row) or Namespace(revision, self._read(field("namespace") == name))
        elif not embedded or held.is_embedded:
            return held
        if embedded and not held.is_embedded:
            held = Namespace(revision, self._with_vectors(held.rows))
        self._resident.keep(name, held)
        return held

    def _changed_since(self, held: Namespace | None, row: Mapping[str, Any]) -> Namespace | None:
        """Return a namespace brought up to its present revision; None where it has to be read as a whole."""
        if held is None or held.revision > row["revision"]:
            return None
        changes = self._read((field("namespace") == row["namespace"]) & (field("revision") > held.revision))
        made = held.changed(row["revision"], changes)
        # Of what is deleted there is no trace but the number.
        return made if len(made.rows) == row["items"] else None

    def _read(self, condition: Filter) -> list[StoredItem]:
        return [StoredItem.of(row) for row in self._items.scan(condition)]

    def _with_vectors(self, rows: Sequence[StoredItem]) -> list[StoredItem]:
        """Return items with their vectors."""
        missing = [one for one in rows if one.count and one.vectors is None]
        ids = [vector_id for one in missing for vector_id in _vector_ids(one.at, one.count)]
        records = iter(self._vectors.get_many(ids, include=("vectors",)) if ids else ())
        loaded = {}
        for one in missing:
            found = [record for _, record in zip(range(one.count), records, strict=False) if record is not None]
            vectors = [vector for record in found for vector in record.vectors.values() if vector is not None]
            loaded[one.at] = replace(one, vectors=normalised(np.array(vectors, np.float32)) if vectors else _NONE)
        return [loaded.get(one.at, one) for one in rows]

    def _search_resident(self, request: SearchRequest, namespaces: Sequence[Namespace]) -> list[Scored]:
        chosen = Chosen(request.filter)
        if not namespaces:
            chosen.check()
            return []
        any_ttl = self._omits_expired and any(namespace.any_ttl for namespace in namespaces)
        expired = self._expired_below(request.prefix) if any_ttl else set()
        if request.vector is None:
            found = [namespace.rows if chosen.is_all else namespace.matching(chosen).rows for namespace in namespaces]
            rows = found[0] if len(found) == 1 else sorted(chain.from_iterable(found), key=newest_first)
            if expired:
                rows = [one for one in rows if one.at not in expired]
            return [(one, None) for one in rows[request.offset : request.wanted]]
        among, positions, scores = nearest(namespaces, request.vector, chosen)
        order = np.argsort(-scores, kind="stable")
        if expired:
            order = np.array([i for i in order.tolist() if among[positions[i]].at not in expired], np.int64)
        page = order[request.offset : request.wanted]
        return [(among[i], score) for i, score in zip(positions[page].tolist(), scores[page].tolist(), strict=True)]

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
            return [(StoredItem.of(columns.item(row)), None) for row in page]
        items = (columns.item(row) for row in rows)
        passed = (one for one in items if condition.holds(one["value"]))
        return [(StoredItem.of(one), None) for one in islice(passed, request.offset, request.wanted)]

    # --- large scopes, where they lie ---------------------------------------------------------------------------------

    def _search_newest(self, request: SearchRequest, condition: StoreFilter) -> list[Scored]:
        expired = self._expired_below(request.prefix)
        where = [*_below(request.prefix), *([] if condition.tree is None else [condition.tree])]
        limit = request.wanted + len(expired) if condition.is_exact else None
        rows = self._items.scan(And(*where) if where else None, order_by=_NEWEST_FIRST, limit=limit)
        found = (row for row in rows if (row["namespace"], row["key"]) not in expired)
        if not condition.is_exact:
            found = (row for row in found if condition.holds(row["value"]))
        return [(StoredItem.of(row), None) for row in islice(found, request.offset, request.wanted)]

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
                found = [row for row in self._items.get_many(keys) if row is not None]
                passed = [row for row in found if condition.is_exact or condition.holds(row["value"])]
                if condition.is_exact or len(passed) >= request.wanted or len(hits) < depth:
                    chosen = passed if condition.is_exact else passed[request.offset : request.wanted]
                    return [(one, best[one.at]) for one in map(StoredItem.of, chosen)]
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
        if self.db.in_transaction:
            return
        for name, change in made.items():
            held = self._resident.namespace(name)
            if held is not None and held.revision == change.before:
                rows = [StoredItem.of(row, puts[ItemKey.of(row)].vectors) for row in change.rows]
                self._resident.keep(name, held.changed(change.after, rows, change.gone))

    def _write(self, puts: Mapping[ItemKey, NewItem]) -> dict[str, _Change]:
        """Return what changed, by namespace."""
        now = self.now()
        keys = list(puts)
        heads = dict(zip(keys, self._heads.get_many(keys), strict=True))
        changes = self._count(keys, heads, puts)
        gone = [at for at, new in puts.items() if new.value is None and heads[at] is not None]
        rows = []
        for at, new in puts.items():
            if new.value is not None:
                head = heads[at]
                created_at = now if head is None or _is_over(head, now) else head["created_at"]
                rows.append(_item_row(at, new, created_at, now, changes[at.namespace].after))
        if rows:
            self._items.put_many(rows)
            self._heads.put_many(_head_row(row, now) for row in rows)
        if gone:
            self._items.delete_many(gone)
            self._heads.delete_many(gone)
        self._write_vectors(puts, rows, heads)
        for row in rows:
            changes[row["namespace"]].rows.append(row)
        for at in gone:
            changes[at.namespace].gone.append(at.key)
        return changes

    def _count(
        self, keys: Sequence[ItemKey], heads: Mapping[ItemKey, Any], puts: Mapping[ItemKey, NewItem]
    ) -> dict[str, _Change]:
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
        return {name: _Change(before[name], revision, [], []) for name in names}

    def _write_vectors(
        self, puts: Mapping[ItemKey, NewItem], rows: Sequence[Mapping[str, Any]], heads: Mapping[ItemKey, Any]
    ) -> None:
        counts = {ItemKey.of(row): row["vectors"] for row in rows}
        stale = [
            vector_id
            for at, head in heads.items()
            if head is not None
            for vector_id in _vector_ids(at, head["vectors"])[counts.get(at, 0) :]
        ]
        if stale:
            self._vectors.delete(stale)
        embedded = [at for at, count in counts.items() if count]
        if not embedded:
            return
        self._vectors.upsert(
            [vector_id for at in embedded for vector_id in _vector_ids(at, counts[at])],
            np.concatenate([vectors for at in embedded if (vectors := puts[at].vectors) is not None]),
            [text for at in embedded for text in puts[at].texts],
            [metadata for at in embedded for metadata in [_metadata(at, puts[at].value)] * counts[at]],
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


def _below(prefix: str) -> list[Filter]:
    return [field("namespace").startswith(prefix)] if prefix else []


def _level(depth: int) -> str:
    return f"level{depth}"


def _metadata(at: ItemKey, value: Any) -> dict[str, Any]:
    """Return what vectors of an item are found by: every prefix of its namespace, its value, and which item it is."""
    labels = namespace_of(at.namespace)
    levels = {_level(depth): text_of(labels[:depth]) for depth in range(1, len(labels) + 1)}
    # Two lists, because nothing is ever looked up by it: what lies so deep has no terms.
    return {**levels, "item": [list(at)], "value": filterable(value)}


def _vector_ids(at: ItemKey, count: int) -> list[str]:
    digest = blake2b("\0".join(at).encode(), digest_size=16).hexdigest()
    return [f"{digest}-{number}" for number in range(count)]


def _item_row(at: ItemKey, new: NewItem, created_at: datetime, now: datetime, revision: int) -> dict[str, Any]:
    return {
        "namespace": at.namespace,
        "key": at.key,
        "value": new.value,
        "created_at": created_at,
        "updated_at": now,
        "ttl": new.ttl,
        "vectors": 0 if new.vectors is None else len(new.vectors),
        "revision": revision,
    }


def _head_row(row: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    return {
        "namespace": row["namespace"],
        "key": row["key"],
        "created_at": row["created_at"],
        "ttl": row["ttl"],
        "expires_at": _expiry(row["ttl"], now),
        "vectors": row["vectors"],
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
