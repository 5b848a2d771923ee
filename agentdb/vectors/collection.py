"""``Collection``: rows with vectors, a text and metadata; written, read and searched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, Unpack

import pyarrow as pa

from agentdb.embedding import Embedder, EmbedderIdentity, is_embedder
from agentdb.errors import InvalidInputError, NotFoundError, StorageError
from agentdb.filters import Field, Filter
from agentdb.llm import Reranker
from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table
from agentdb.types import ErasureReceipt, Hit, OnProgress, Row
from agentdb.vectors.definition import Definition, PromotedType, VectorSpec, promoted_keys, promoted_type
from agentdb.vectors.evolution import promote, reembed
from agentdb.vectors.indexes import IndexSpec
from agentdb.vectors.query import Fusion, Mode, SearchOptions
from agentdb.vectors.resident import ResidentCache
from agentdb.vectors.rows import (
    Batch,
    Include,
    Record,
    Rows,
    check_ids,
    check_include,
    check_metadata,
    check_texts,
    check_vector_columns,
    to_record,
    wanted_columns,
)
from agentdb.vectors.search import Explanation, Searcher
from agentdb.vectors.store import DefinitionStore
from agentdb.vectors.upkeep import IndexStatus, index_in_use

__all__ = ["Collection"]

T = TypeVar("T")

_ATTEMPTS = 16


@dataclass(frozen=True, slots=True)
class _State:
    """What rows are prepared for: they are stored only while this is still so."""

    definition: Definition
    schema: TableSchema


class _ChangedError(Exception):
    """The collection changed while rows were prepared; they are prepared again."""


class Collection:
    """Rows of one collection: an id, named vectors, a text and metadata of any shape. Made by ``db.collection(...)``.

    Every method may be called from any thread, and from any process that has the database open. Inside ``db.transaction()``
    or ``db.snapshot()`` every call joins that one. What a call has written, the very next call reads and finds.

    Filters are built from ``agentdb.field``. A path that begins with ``id``, ``text`` or ``metadata`` means that part of a
    row; any other is a key of the metadata: ``field("year") >= 2020`` is ``field("metadata", "year") >= 2020``.
    """

    def __init__(
        self,
        store: DefinitionStore,
        table: Table,
        embedder: Embedder | None,
        default_embedder: Callable[[], Embedder],
        cache: ResidentCache,
    ) -> None:
        self._store = store
        self._engine = store.engine
        self._table = table
        self._given = [] if embedder is None else [embedder]
        self._default_embedder = default_embedder
        self._searcher = Searcher(
            self._engine,
            table,
            store,
            cache,
            self._required_embedder,
            lambda vector_name: index_in_use(store.read(), vector_name),
        )

    def __repr__(self) -> str:
        return f"Collection({self.name!r})"

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The collection's name."""
        return self._store.name

    @property
    def vectors(self) -> Mapping[str, VectorSpec]:
        """Its vectors by name, as they stand.

        Raises:
            NotFoundError: it was dropped.
        """
        return {name: one.spec for name, one in self._store.read().vectors.items()}

    @property
    def promoted(self) -> Mapping[tuple[str, ...], PromotedType]:
        """The metadata keys, as paths, that have typed, indexed columns of their own.

        Raises:
            NotFoundError: it was dropped.
        """
        return {one.keys: one.type for one in self._store.read().promoted if one.is_ready}

    @property
    def embedder(self) -> Embedder | None:
        """The embedder that makes its vectors from texts; None if they are given.

        Raises:
            InvalidInputError: neither the one given to ``db.collection`` nor the database's is the one that made them.
            MissingDependencyError: none was given, and none is installed.
        """
        definition = self._store.read()
        return None if definition.embedder is None else self._embedder_of(definition.embedder)

    def _embedder_of(self, identity: EmbedderIdentity) -> Embedder:
        for one in self._given:
            if _is(one, identity):
                return one
        found = self._default_embedder()
        if not _is(found, identity):
            raise InvalidInputError(
                f"the vectors of collection {self.name} are made by embedder {identity.name!r} ({identity.dimension} "
                f"dimensions), not by {found.name!r}: pass that one as db.collection(..., embedder=...), or change it "
                "with reembed()"
            )
        return found

    def _required_embedder(self) -> Embedder:
        identity = self._store.read().embedder
        if identity is None:
            raise InvalidInputError(
                f"collection {self.name} has no embedder: its vectors are given, and so are queries"
            )
        return self._embedder_of(identity)

    # --- writing ------------------------------------------------------------------------------------------------------

    def upsert(
        self,
        ids: Any,
        vectors: Any = None,
        texts: Sequence[str | None] | pa.Array | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | pa.Array | None = None,
    ) -> int:
        """Store rows in the place of those with the same ids, all or none, durable when this returns; return how many.

        Vectors that are not given are made from the texts if the collection has an embedder, before the write lock is taken.
        A row without a vector, or without a text, is stored and not found by searches for what it lacks.

        Args:
            ids: strings of 1 to 1,024 characters, each once. Or a whole `Batch`, ``pyarrow.Table`` or ``RecordBatch`` with
                the columns ``id``, ``text``, ``metadata`` and vectors by name, and nothing else.
            vectors: `[N, D]` of the default vector (``"vector"``, or the first), as numpy, Arrow fixed-size lists or lists,
                None for a row without one; matrices `[T, D]` if it is ``multi``. A mapping gives several vectors by name.
            texts: what is embedded and searched by words.
            metadata: JSON objects; Arrow structs, maps or JSON.

        Raises:
            InvalidInputError: an argument cannot be stored; the message names which and where. Nothing is written.
        """
        if isinstance(ids, Batch):
            ids = ids.arrow
        if isinstance(ids, pa.Table | pa.RecordBatch):
            if vectors is not None or texts is not None or metadata is not None:
                raise InvalidInputError("give either a whole table, or ids with vectors, texts and metadata")
            ids, vectors, texts, metadata = self._split(ids)
        return self._upsert(check_ids(ids), vectors, texts, metadata)

    def add(
        self,
        vectors: Any = None,
        texts: Sequence[str | None] | pa.Array | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | pa.Array | None = None,
    ) -> list[str]:
        """Store new rows under ids made by ``Config.id_source``, as `upsert` does; return the ids in the order of the rows.

        Raises:
            InvalidInputError: as `upsert`.
        """
        definition = self._store.read()
        if texts is not None:
            texts = check_texts(texts, len(texts) if hasattr(texts, "__len__") else -1)
            count = len(texts)
        elif vectors is not None:
            count = len(next(iter(check_vector_columns(vectors, definition, None).values()), ()))
        elif metadata is not None and hasattr(metadata, "__len__"):
            count = len(metadata)
        else:
            count = 0
        ids = [self._engine.config.id_source() for _ in range(count)]
        self._upsert(check_ids(ids), vectors, texts, metadata)
        return ids

    def _split(self, rows: pa.Table | pa.RecordBatch) -> tuple[Any, Any, Any, Any]:
        names = rows.schema.names
        parts = {one: rows.column(one) for one in ("id", "text", "metadata") if one in names}
        if "id" not in parts:
            raise InvalidInputError("the rows have no column 'id'")
        vectors = {one: rows.column(one) for one in names if one not in parts}
        return parts["id"], vectors or None, parts.get("text"), parts.get("metadata")

    def _upsert(self, ids: pa.Array, vectors: Any, texts: Any, metadata: Any) -> int:
        if vectors is None and texts is None and metadata is None:
            raise InvalidInputError("give vectors, texts or metadata")
        count = len(ids)
        rows = Rows(
            ids,
            None if texts is None else check_texts(texts, count),
            None if metadata is None else check_metadata(metadata, count),
            {},
        )
        if count:
            self._prepared(lambda state: self._put(state, rows, vectors))
        elif vectors is not None:
            check_vector_columns(vectors, self._store.read(), 0)
        return count

    def _put(self, state: _State, rows: Rows, vectors: Any) -> None:
        definition = state.definition
        given = {} if vectors is None else check_vector_columns(vectors, definition, len(rows.ids))
        rows.vectors = {**rows.embedded(definition, given, self._embedder_of), **given}
        entry = self._table._writable_entry()
        if not _same(entry.schema, state.schema):
            raise _ChangedError
        if rows.are_few:
            self._table._put_rows(entry, rows.to_physical(definition, state.schema), lambda: self._check_state(state))
        else:
            self._table._put_table(entry, rows.to_table(definition, state.schema), lambda: self._check_state(state))

    def _state(self) -> _State:
        with self._engine.snapshot():
            return _State(self._store.read(), self._table.schema)

    def _last_state(self) -> _State:
        """Return the state that rows are prepared for first: whether it still stands is seen when they are stored."""
        try:
            return _State(self._store.last(), self._table._writable_entry().schema)
        except NotFoundError:
            return self._state()  # it was dropped, and says so as a collection

    def _check_state(self, state: _State) -> None:
        now = self._store.read()
        is_same = now is state.definition or now.layout == state.definition.layout
        if not is_same or not _same(self._table.schema, state.schema):
            raise _ChangedError

    def _prepared(self, work: Callable[[_State], T]) -> T:
        """Run work that prepares rows for a state of the collection, anew if that changes before they are stored."""
        for attempt in range(_ATTEMPTS):
            state = self._state() if attempt else self._last_state()
            try:
                return work(state)
            except _ChangedError:
                continue
            except NotFoundError:
                if self._state() == state:
                    raise
        raise StorageError(f"collection {self.name} kept changing while rows were prepared", retryable=True)

    def update(
        self,
        ids: Any,
        vectors: Any = None,
        texts: Sequence[str | None] | pa.Array | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | pa.Array | None = None,
        *,
        merge: bool = False,
    ) -> None:
        """Change parts of rows that exist, all or none; what is None, as a whole or for one row, stays as it is.

        A new text brings new vectors from the embedder, unless vectors are given with it.

        Args:
            ids: each once.
            vectors: as in `upsert`.
            texts: as in `upsert`.
            metadata: takes the place of the old.
            merge: the keys given are put into the old metadata instead; a value of None is stored as null.

        Raises:
            NotFoundError: one of the ids does not exist; nothing is changed.
            InvalidInputError: as `upsert`.
        """
        array = check_ids(ids)
        if vectors is None and texts is None and metadata is None:
            raise InvalidInputError("give vectors, texts or metadata")
        if not isinstance(merge, bool):
            raise InvalidInputError(f"merge must be a bool, not {type(merge).__name__}")
        count = len(array)
        rows = Rows(
            array,
            None if texts is None else check_texts(texts, count),
            None if metadata is None else check_metadata(metadata, count),
            {},
        )
        self._prepared(lambda state: self._update(state, rows, vectors, merge=merge))

    def _update(self, state: _State, rows: Rows, vectors: Any, *, merge: bool) -> None:
        definition = state.definition
        given = {} if vectors is None else check_vector_columns(vectors, definition, len(rows.ids))
        rows.vectors = {**rows.embedded(definition, given, self._embedder_of), **given}
        changed = rows.columns(definition)
        ids = rows.ids.to_pylist()
        growing = (
            [] if definition.reembedding is None else [one.column for one in definition.reembedding.vectors.values()]
        )
        columns: dict[str, list[Any]] = {}
        named = [definition.vector(name).column for name in rows.vectors]
        for name in named + ([] if rows.texts is None else ["text", "terms"]):
            column = state.schema.column(name)
            columns[name] = [column.to_python(one) for one in column.from_arrow(changed[name])]

        def work() -> None:
            self._check_state(state)
            found = self._table.get_many(ids)
            missing = sum(row is None for row in found)
            if missing:
                raise NotFoundError(f"collection {self.name} has no row with {missing} of the {len(ids)} ids")
            for i, row in enumerate(found):
                assert row is not None
                row.update((name, values[i]) for name, values in columns.items() if values[i] is not None)
                if rows.metadata is not None and rows.metadata[i] is not None:
                    _set_metadata(row, rows.metadata[i] or {}, definition, merge=merge)
                if "text" in columns and columns["text"][i] is not None:
                    row.update(dict.fromkeys(growing))  # those are of the old text
            self._table.put_many(row for row in found if row is not None)

        self._engine.transact(work)

    def delete(self, ids: Any = None, *, filter: Filter | None = None) -> int:
        """Delete the rows of some ids, or all that match a filter; return how many there were.

        Raises:
            InvalidInputError: both or neither are given.
        """
        keys, condition = self._doomed(ids, filter)
        return self._table.delete_many(keys, filter=condition)

    def erase(self, ids: Any = None, *, filter: Filter | None = None) -> ErasureReceipt:
        """Delete rows so that no file of the database holds them: no vector, text, term, index, old version or log.

        See `Table.erase_many` for what the receipt says.

        Raises:
            InvalidInputError: both or neither are given.
        """
        keys, condition = self._doomed(ids, filter)
        return self._table.erase_many(keys, filter=condition)

    def _doomed(self, ids: Any, condition: Filter | None) -> tuple[list[str] | None, Filter | None]:
        if (ids is None) == (condition is None):
            raise InvalidInputError("give either ids or a filter")
        keys = None if ids is None else check_ids(ids, distinct=False).to_pylist()
        return keys, self._store.read().table_filter(condition)

    # --- changing all rows --------------------------------------------------------------------------------------------

    def promote(
        self, key: str | Sequence[str], kind: type | PromotedType, *, on_progress: OnProgress | None = None
    ) -> None:
        """Give a metadata key a typed, indexed column of its own; filters use it when this returns, and mean the same as before.

        Rows whose value has another type keep it in the metadata, and are found there. The rows that exist are brought along in
        small transactions, others reading and writing meanwhile. If the process is killed, or ``on_progress`` raises, the
        maintenance does the rest; calling it again does, too.

        Args:
            key: a metadata key, or the keys that lead to it.
            kind: str, float (every number) or bool.
            on_progress: called from time to time.

        Raises:
            InvalidInputError: it is promoted as another type.
            UnavailableError: inside a transaction or snapshot.
        """
        promote(self._store, self._table, promoted_keys(key), promoted_type(kind), on_progress)

    def reembed(self, embedder: Embedder, *, on_progress: OnProgress | None = None) -> None:
        """Make every vector that comes from a text anew by another embedder, in place, and use that one from then on.

        Searches are served from the old vectors until all are made, then from the new ones, from one commit to the next. Rows
        may be written meanwhile, in every process, by the old embedder. If the process is killed, or ``on_progress`` raises,
        nothing is lost: call it again with the same embedder to go on, with another or the old one to think better of it.
        Handles in other processes must be given the new embedder afterwards. A collection whose vectors were given gets its
        first vector that is not ``multi`` from the texts.

        Args:
            embedder: of any dimension.
            on_progress: called before every few hundred texts.

        Raises:
            InvalidInputError: rows have a vector and no text to make it from, or the embedder cannot make token vectors.
            UnavailableError: inside a transaction or snapshot, or somebody else exchanges the embedder for a third one.
        """
        if not is_embedder(embedder):
            raise InvalidInputError(
                f"embedder must have name, dimension, max_tokens and embed(), not {type(embedder).__name__}"
            )
        if embedder not in self._given:
            self._given.append(embedder)
        reembed(self._store, self._table, embedder, on_progress)

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, row_id: str, *, include: Iterable[Include] = ("text", "metadata", "vectors")) -> Record | None:
        """Return the row of an id, or None."""
        return self.get_many([row_id], include=include)[0]

    def get_many(
        self, ids: Any, *, include: Iterable[Include] = ("text", "metadata", "vectors")
    ) -> list[Record | None]:
        """Return the rows of many ids, in their order; None where there is none. One consistent snapshot."""
        parts = check_include(include)
        keys = check_ids(ids, distinct=False).to_pylist()
        with self._engine.snapshot():
            definition = self._store.read()
            return [None if row is None else to_record(row, definition, parts) for row in self._table.get_many(keys)]

    def count(self, filter: Filter | None = None) -> int:
        """Return the number of rows that match."""
        with self._engine.snapshot():
            return self._table.count(self._store.read().table_filter(filter))

    def scan(
        self,
        filter: Filter | None = None,
        *,
        limit: int | None = None,
        include: Iterable[Include] = ("text", "metadata"),
    ) -> Iterator[Record]:
        """Yield the rows that match, in no particular order, from one snapshot that writes meanwhile do not change."""
        return _Records(_Batches(*self._scanned(filter, limit, include)))

    def iterate(
        self,
        filter: Filter | None = None,
        *,
        batch_rows: int = 1_000,
        limit: int | None = None,
        include: Iterable[Include] = ("text", "metadata", "vectors"),
    ) -> Iterator[Batch]:
        """Yield the rows that `scan` yields in batches of Arrow and numpy data, without a look at every row.

        Args:
            filter: only rows that match.
            batch_rows: at most so many rows in a batch; all but the last of a run have so many.
            limit: at most so many rows in all.
            include: which parts the batches hold.
        """
        if not isinstance(batch_rows, int) or isinstance(batch_rows, bool) or batch_rows < 1:
            raise InvalidInputError("batch_rows must be an int of 1 or more")
        reader, definition = self._scanned(filter, limit, include)
        return _Sliced(reader, definition, batch_rows)

    def _scanned(
        self, condition: Filter | None, limit: int | None, include: Iterable[Include]
    ) -> tuple[pa.RecordBatchReader, Definition]:
        parts = check_include(include)
        with self._engine.snapshot():
            definition = self._store.read()
            columns = wanted_columns(definition, parts)
            reader = self._table.scan_arrow(definition.table_filter(condition), limit=limit, columns=columns)
        return reader, definition

    # --- searching ----------------------------------------------------------------------------------------------------

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        filter: Filter | None = None,
        mode: Mode = "vector",
        vector_name: str | None = None,
        fusion: Fusion = "normalized",
        weights: Mapping[str, float] | None = None,
        rerank: Reranker | Callable[[str, list[str]], Any] | Any = None,
        min_score: float | None = None,
        group_by: str | Field | None = None,
        offset: int = 0,
        include: Iterable[Literal["text", "metadata"]] = ("text", "metadata"),
        exact: bool = False,
        explain: bool = False,
    ) -> list[Hit]:
        """Return the K best rows, best first; fewer where fewer match. What was written before is found.

        Small collections, small scopes of a filter and everything that fits in memory are searched exactly; large ones by an
        approximate index, once there is one. `explain_search` tells which it was, and why.

        Args:
            query: a text, a vector `[D]`, tokens `[T, D]` for a ``multi`` vector, or a `Query` that has several of these. A
                vector is rounded to the dtype of those that are stored.
            k: at least 1.
            filter: only rows that match. An equality in it that all rows must meet, such as an agent's id, is searched in
                that agent's rows alone.
            mode: ``"vector"``: nearest in meaning; ``"text"``: best matching words (BM25); ``"hybrid"``: both, fused.
            vector_name: which vector; None: ``"vector"``, or the first. Rows without it are not found by it. A ``multi`` one
                ranks the candidates that the other signals find, by MaxSim.
            fusion: of ``"hybrid"``: scores ``"normalized"`` for each query, or ranks (``"rrf"``).
            weights: of the signals ``"vector"`` and ``"text"``.
            rerank: a `Reranker`, a sentence-transformers ``CrossEncoder``, or a function of the query's text and the texts
                found, that returns a score for each. It sees at least the best 50.
            min_score: only hits that reach it.
            group_by: a metadata key or field: only the best row of each of its values.
            offset: leave out so many of the best first. Pages follow each other without a gap or a repetition as long as nothing
                is written, whatever their sizes: of an exact search, and of a hybrid one also where an index is asked; with
                ``rerank`` up to the 50th hit. Where there are several signals the best 100 rows of each are ranked together,
                or 300 where tokens rank them; what the best 400 add stands behind these, and so on, and no score is better
                than one before it.
            include: what hits hold besides id and score.
            exact: compare every row, whatever index there is.
            explain: let ``Hit.signals`` hold the score of each signal.

        Returns:
            ``score``: the cosine, the dot product, or 1 / (1 + distance) with a Euclidean metric; BM25 or the fused score in
            the other modes; what the reranker said. ``distance``: ``1 - score``, or the Euclidean distance. Ties by id.

        Raises:
            InvalidInputError: an argument cannot be accepted; the message names it.
        """
        return self._searcher.search(
            query,
            k,
            filter=filter,
            mode=mode,
            vector_name=vector_name,
            fusion=fusion,
            weights=weights,
            rerank=rerank,
            min_score=min_score,
            group_by=group_by,
            offset=offset,
            include=tuple(include) if isinstance(include, list | tuple | Iterator) else include,
            exact=exact,
            explain=explain,
        )

    def search_many(self, queries: Any, k: int = 10, **options: Unpack[SearchOptions]) -> list[list[Hit]]:
        """Return what `search` returns for each of many queries, all in one state of the database, faster than one by one.

        Args:
            queries: a list of what `search` takes, or a matrix `[Q, D]`.
            k: hits for each.
            options: as in `search`.
        """
        return self._searcher.search_many(queries, k, **options)

    def max_marginal_relevance(
        self, query: Any, k: int = 10, fetch_k: int = 50, lambda_mult: float = 0.5, **options: Unpack[SearchOptions]
    ) -> list[Hit]:
        """Return K of the ``fetch_k`` nearest rows, chosen one by one for nearness and for difference from those before.

        Args:
            query: as in `search`.
            k: how many.
            fetch_k: how many to choose from, at least k.
            lambda_mult: 1: nearness alone, which is the cosine's, whatever the metric; 0: difference alone.
            options: as in `search`; the mode is "vector", and neither grouping, reranking nor an offset applies.

        Source: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
        """
        return self._searcher.max_marginal_relevance(query, k, fetch_k, lambda_mult, **options)

    def explain_search(self, query: Any, k: int = 10, **options: Unpack[SearchOptions]) -> Explanation:
        """Search, and return what was done and why instead of the hits. Takes what `search` takes."""
        return self._searcher.explain_search(query, k, **options)

    def set_index(self, choice: IndexSpec | Literal["auto", "none"], *, vector_name: str | None = None) -> None:
        """Choose the approximate index of a vector; the maintenance builds it in the background.

        Args:
            choice: ``"auto"`` (the default of every vector): one is built when it pays, and kept good. ``"none"``: never one.
                Or an index with its parameters, such as ``IvfHnswSq(nprobes=8)``.
            vector_name: None: ``"vector"``, or the first.

        Raises:
            InvalidInputError: no such choice, no such vector, or one that cannot have that index.
        """
        if not isinstance(choice, IndexSpec) and choice not in ("auto", "none"):
            raise InvalidInputError("choice must be an index such as IvfRq(), 'auto' or 'none'")

        def change(definition: Definition) -> Definition:
            name = definition.default_vector if vector_name is None else vector_name
            spec = definition.vector(name).spec
            if isinstance(choice, IndexSpec):
                if spec.multi:
                    raise InvalidInputError(f"vector {name!r} is multi and has no index: it ranks what others find")
                choice.build_parameters(1 << 20, spec.dimension)  # raises where the two do not fit
            plan = replace(definition.index_plan(name), choice=choice)
            return definition.next(indexes={**definition.indexes, name: plan})

        self._store.change(change)

    def index_status(self, vector_name: str | None = None) -> IndexStatus:
        """Return how the approximate index of a vector stands; None means ``"vector"``, or the first.

        Raises:
            InvalidInputError: there is no such vector.
        """
        with self._engine.snapshot():
            definition = self._store.read()
            name = definition.default_vector if vector_name is None else vector_name
            column = definition.vector(name).column
            return IndexStatus.of(definition, name, self._table.index_info(column))


def _is(embedder: Embedder, identity: EmbedderIdentity) -> bool:
    # The name first: it costs nothing, the dimension may load a model.
    return embedder.name == identity.name and embedder.dimension == identity.dimension


def _same(one: TableSchema, other: TableSchema) -> bool:
    return one is other or one == other


def _set_metadata(row: Row, given: Mapping[str, Any], definition: Definition, *, merge: bool) -> None:
    """Put metadata into a row of the table, and what is promoted of it."""
    made = {**(row["metadata"] or {}), **given} if merge else dict(given)
    row["metadata"] = made
    for one in definition.promoted:
        if one.column in row:
            row[one.column] = one.value_of(made)


class _Batches(Iterator[Batch]):
    """The batches of a scan as they come."""

    def __init__(self, reader: pa.RecordBatchReader, definition: Definition) -> None:
        self._reader = reader
        self._definition = definition

    def __next__(self) -> Batch:
        return Batch(self._reader.read_next_batch(), self._definition)

    def close(self) -> None:
        """End the iteration and let go of its snapshot."""
        self._reader.close()


class _Records(Iterator[Record]):
    """The rows of batches."""

    def __init__(self, batches: _Batches) -> None:
        self._batches = batches
        self._ready: Iterator[Record] = iter(())

    def __next__(self) -> Record:
        while True:
            for one in self._ready:
                return one
            self._ready = iter(next(self._batches))

    def close(self) -> None:
        """End the iteration and let go of its snapshot."""
        self._ready = iter(())
        self._batches.close()


class _Sliced(Iterator[Batch]):
    """Batches cut, and joined where they are small, to a number of rows."""

    def __init__(self, reader: pa.RecordBatchReader, definition: Definition, rows: int) -> None:
        self._reader = reader
        self._definition = definition
        self._rows = rows
        self._waiting: list[pa.RecordBatch] = []

    def __next__(self) -> Batch:
        while sum(one.num_rows for one in self._waiting) < self._rows:
            try:
                self._waiting.append(self._reader.read_next_batch())
            except StopIteration:
                break
        if not self._waiting:
            raise StopIteration
        joined = self._waiting[0] if len(self._waiting) == 1 else pa.concat_batches(self._waiting)
        rest = joined.slice(self._rows)
        self._waiting = [rest] if rest.num_rows else []
        return Batch(joined.slice(0, self._rows), self._definition)

    def close(self) -> None:
        """End the iteration and let go of its snapshot."""
        self._waiting = []
        self._reader.close()
