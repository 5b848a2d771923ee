"""``AgentDBVectorStore``: nodes with their embeddings, in a collection of the agent's own database."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from agentdb import (
    And,
    AsyncDatabase,
    Closing,
    Collection,
    CollectionMetric,
    Connection,
    Database,
    Filter,
    Hit,
    InvalidInputError,
    NamedCollection,
    Query,
    Record,
    field,
)
from llama_index_agentdb.filters import to_filter
from llama_index_agentdb.kv_store import path_of
from llama_index_agentdb.nodes import rows_of, to_node

__all__ = ["AgentDBVectorStore", "check_count"]

_MMR_POOL = 50
"""From how many of the nearest MMR chooses at least."""
_LEARNERS = (
    VectorStoreQueryMode.SVM,
    VectorStoreQueryMode.LINEAR_REGRESSION,
    VectorStoreQueryMode.LOGISTIC_REGRESSION,
)


class AgentDBVectorStore(Closing, BasePydanticVectorStore):
    """A vector store in a database: durable, exact, filtered and searched by words as well, shared by threads and processes.

    ``VectorStoreIndex.from_vector_store(AgentDBVectorStore(path))``, or ``StorageContext.from_defaults(vector_store=...)``.
    What was added before is found by the next query of every process. Adding a node in the place of one with the same id
    replaces it. Async methods run on threads of the store and never block the event loop. Inside ``db.transaction()`` and
    ``db.snapshot()``, sync calls join that one.

    The rows are an ordinary collection, ``db.collection(name)``, with the nodes' metadata as its own; another collection of the
    database can be read through a store as well. The collection is made by the first nodes, and has their dimension.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        collection: its name.
        metric: ``"cosine"`` (the default), ``"dot"`` or ``"euclidean"``; a collection keeps the one it was made with.
        reranker: a `Reranker`, a sentence-transformers ``CrossEncoder``, or a function of a query and texts that returns their
            scores: what ``SEMANTIC_HYBRID`` orders the best nodes by.
    """

    stores_text: bool = True
    path: str
    collection: str
    metric: CollectionMetric | None = None

    _connection: Connection[NamedCollection] = PrivateAttr()
    _reranker: Any = PrivateAttr()

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        collection: str = "llama_index",
        metric: CollectionMetric | None = None,
        reranker: Any = None,
    ) -> None:
        connection = Connection(db_or_path, NamedCollection.prepare(collection, metric=metric))
        fields: dict[str, Any] = {"path": path_of(db_or_path), "collection": collection, "metric": metric}
        super().__init__(stores_text=True, **fields)
        self._connection = connection
        self._reranker = reranker

    @classmethod
    def class_name(cls) -> str:
        """Return what serialised components call this class."""
        return "AgentDBVectorStore"

    @property
    def client(self) -> Database:
        """The database, opened."""
        return self._connection().db

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied to another process as what `to_dict` returns: it opens the same path."""
        return type(self).from_dict, (self.to_dict(),)

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what `from_dict` makes this store of: path, collection and metric, and nothing that is stored in it.

        The reranker, an object, is not in it: pass it to ``from_dict(data, reranker=...)``.
        """
        return {**self.model_dump(include={"path", "collection", "metric"}, **kwargs), "class_name": self.class_name()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **kwargs: Any) -> Self:
        """Return the store that `to_dict` described.

        Args:
            data: what it returned.
            kwargs: arguments of the constructor that take the place of those.
        """
        given = {key: value for key, value in data.items() if key in ("collection", "metric")} | kwargs
        return cls(given.pop("db_or_path", data.get("path", "")), **given)

    # --- writing ------------------------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Store nodes in the place of those with the same ids, all or none, durable when this returns; return their ids.

        Args:
            nodes: each with an embedding. Of several with one id the last is kept.
            add_kwargs: none are known.

        Raises:
            InvalidInputError: a node has no embedding, one of another dimension, or metadata that JSON cannot hold (NaN,
                for example); the message names which. Nothing is written.
        """
        _no_more("add", add_kwargs)
        nodes = list(nodes)
        if not nodes:
            return []
        rows = rows_of(nodes)
        self._connection().write(
            rows.vectors.shape[1], lambda found: found.upsert(rows.ids, rows.vectors, rows.texts, rows.metadata)
        )
        return [node.node_id for node in nodes]

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Do what `add` does, without blocking the event loop."""
        return await self._connection.run("write", lambda: self.add(nodes, **kwargs))

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete all nodes of a document; none is no error.

        Args:
            ref_doc_id: its id. ``"None"`` means the nodes without a document, as in LlamaIndex's own store.
            delete_kwargs: none are known.
        """
        _no_more("delete", delete_kwargs)
        if not isinstance(ref_doc_id, str):
            raise InvalidInputError(f"ref_doc_id must be a str, not {type(ref_doc_id).__name__}")
        self._delete(field("metadata", "ref_doc_id") == ref_doc_id)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Do what `delete` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.delete(ref_doc_id, **delete_kwargs))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete the nodes that have one of the ids and match the filters; ids that are not there are no error.

        Args:
            node_ids: None: nodes with any id.
            filters: None: whatever their metadata.
            delete_kwargs: none are known.

        Raises:
            InvalidInputError: neither is given, or filters that hold always: to delete everything there is `clear`.
        """
        _no_more("delete_nodes", delete_kwargs)
        ids, condition = None if node_ids is None else _ids("node_ids", node_ids), to_filter(filters)
        if ids is None and condition in (None, And()):
            raise InvalidInputError("give node_ids or filters; clear() deletes everything")
        if ids is None or condition is not None:
            self._delete(condition if ids is None else _joined(condition, field("id").in_(ids)))
        else:
            self._connection().read(lambda found: found.delete(ids))

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Do what `delete_nodes` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.delete_nodes(node_ids, filters, **delete_kwargs))

    def clear(self) -> None:
        """Delete all nodes. The collection keeps its dimension and metric; ``client.drop_collection(name)`` ends it."""
        self._delete(And())

    async def aclear(self) -> None:
        """Do what `clear` does, without blocking the event loop."""
        await self._connection.run("write", self.clear)

    def _delete(self, condition: Filter | None) -> None:
        self._connection().read(lambda found: found.delete(filter=condition))

    # --- reading ------------------------------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return the nodes that have one of the ids and match the filters, whole, with their embeddings as stored (float32).

        Args:
            node_ids: in this order; those that are not there are left out. None: all, in the order of their ids.
            filters: None: whatever their metadata.
        """
        ids, condition = None if node_ids is None else _ids("node_ids", node_ids), to_filter(filters)

        def work(found: Collection) -> list[Record]:
            if ids is not None and condition is None:
                return [one for one in found.get_many(ids) if one is not None]
            within = condition if ids is None else _joined(condition, field("id").in_(ids))
            records = found.scan(within, include=("text", "metadata", "vectors"))
            if ids is None:
                return sorted(records, key=lambda one: one.id)
            by_id = {one.id: one for one in records}
            return [by_id[one] for one in ids if one in by_id]

        records = self._connection().read(work) or []
        return [to_node(one.id, one.text, one.metadata, one.vector) for one in records]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Do what `get_nodes` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.get_nodes(node_ids, filters))

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the best nodes, best first, with their ids and similarities; fewer where fewer match.

        ==========================  =====================================================================================
        mode                        similarities, and what decides
        ==========================  =====================================================================================
        ``DEFAULT``                 of the vectors: cosine, dot product, or 1 / (1 + distance)
        ``TEXT_SEARCH``, ``SPARSE`` BM25 of the texts; ``sparse_top_k`` nodes if given
        ``HYBRID``                  0 to 1: ``alpha`` (None: 0.5) parts vector and ``1 - alpha`` parts words, each brought to
                                    0 to 1 for this query. With ``sparse_top_k`` or ``hybrid_top_k``: of the
                                    ``similarity_top_k`` nearest and the ``sparse_top_k`` (or as many) best by words,
                                    ``hybrid_top_k`` nodes
        ``SEMANTIC_HYBRID``         what the reranker says of the best of ``HYBRID``
        ``MMR``                     of the vectors; chosen among the nearest, one by one, for nearness
                                    (``mmr_threshold`` parts; None: 0.5) and for difference from all chosen before, both
                                    by cosine, whatever the metric
        ==========================  =====================================================================================

        Args:
            query: ``query_embedding`` may be left out where the collection has an embedder and ``query_str`` is given.
                ``node_ids`` and ``doc_ids``: only these; empty means any, as indices over stores that keep texts pass it.
                ``embedding_field``: the name of the vector, of a collection that has several. ``output_fields`` is not used:
                nodes come back whole, but for their embeddings, which `get_nodes` returns.
            kwargs: of ``MMR``: ``mmr_threshold``, in the place of the query's; ``mmr_prefetch_k`` or
                ``mmr_prefetch_factor`` (of ``similarity_top_k``): from how many of the nearest to choose; by default 4 times
                as many as wanted, and at least 50.

        Raises:
            InvalidInputError: a mode that is not offered (the learners, which fit a classifier to all that is stored), or an
                argument that cannot be accepted; the message names it.
        """
        search = _Search(query, kwargs, self._reranker)
        opened = self._connection()
        hits = opened.read(lambda found: search.run(opened.db, found)) or []
        return VectorStoreQueryResult(
            nodes=[to_node(hit.id, hit.text, hit.metadata) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Do what `query` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.query(query, **kwargs))


class _Search:
    """One query, checked before the database is asked."""

    def __init__(self, query: VectorStoreQuery, kwargs: Mapping[str, Any], reranker: Any) -> None:
        if query.mode not in list(VectorStoreQueryMode):
            raise InvalidInputError(f"mode must be a VectorStoreQueryMode, not {query.mode!r:.40}")
        mode = VectorStoreQueryMode(query.mode)
        if mode in _LEARNERS:
            raise InvalidInputError(
                f"mode {mode.value!r} is not offered: it fits a classifier to all stored vectors at each query; "
                "'default' and 'mmr' rank by the same vectors"
            )
        if mode is VectorStoreQueryMode.SEMANTIC_HYBRID and reranker is None:
            raise InvalidInputError("mode 'semantic_hybrid' needs AgentDBVectorStore(..., reranker=...)")
        self.mode = mode
        self.filter = _restricted(query)
        self.vector_name = query.embedding_field
        self.k = check_count("similarity_top_k", query.similarity_top_k)
        self.sparse_k = _optional_count("sparse_top_k", query.sparse_top_k)
        self.hybrid_k = _optional_count("hybrid_top_k", query.hybrid_top_k)
        self.alpha = _share("alpha", query.alpha)
        self.threshold = _share("mmr_threshold", kwargs.get("mmr_threshold", query.mmr_threshold))
        self.pool = self._mmr_pool(kwargs) if mode is VectorStoreQueryMode.MMR else 0
        if mode is not VectorStoreQueryMode.MMR:
            _no_more(f"a query with mode {mode.value!r}", kwargs)
        self.reranker = reranker
        self.query = self._asked(query)

    def _asked(self, query: VectorStoreQuery) -> Query:
        if self.mode in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
            if query.query_embedding is None and query.query_str is None:
                raise InvalidInputError(f"query_embedding must be given for mode {self.mode.value!r}")
        elif query.query_str is None:
            raise InvalidInputError(f"query_str must be given for mode {self.mode.value!r}")
        return Query(text=query.query_str, vector=query.query_embedding)

    def _mmr_pool(self, kwargs: Mapping[str, Any]) -> int:
        given = dict(kwargs)
        given.pop("mmr_threshold", None)
        pool, factor = given.pop("mmr_prefetch_k", None), given.pop("mmr_prefetch_factor", None)
        _no_more("a query with mode 'mmr'", given)
        if pool is not None and factor is not None:
            raise InvalidInputError("give either mmr_prefetch_k or mmr_prefetch_factor")
        if pool is not None:
            return max(self.k, check_count("mmr_prefetch_k", pool))
        if factor is None:
            return max(_MMR_POOL, 4 * self.k)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < float("inf"):
            raise InvalidInputError("mmr_prefetch_factor must be a number of 1 or more")
        return int(self.k * factor)

    def run(self, db: Database, found: Collection) -> list[Hit]:
        """Return the hits, best first."""
        match self.mode:
            case VectorStoreQueryMode.DEFAULT:
                return found.search(self.query, self.k, filter=self.filter, vector_name=self.vector_name)
            case VectorStoreQueryMode.MMR:
                return found.max_marginal_relevance(
                    self.query,
                    self.k,
                    self.pool,
                    0.5 if self.threshold is None else self.threshold,
                    filter=self.filter,
                    vector_name=self.vector_name,
                )
            case VectorStoreQueryMode.TEXT_SEARCH | VectorStoreQueryMode.SPARSE:
                return found.search(self.query, self.sparse_k or self.k, filter=self.filter, mode="text")
        if self.sparse_k is None and self.hybrid_k is None:
            return self._hybrid(found, self.k, self.filter)
        with db.snapshot():  # the candidates and their ranking are of one state
            candidates = {one.id for signal in self._signals(found) for one in signal}
            return self._hybrid(found, self.hybrid_k or self.k, _joined(self.filter, field("id").in_(candidates)))

    def _signals(self, found: Collection) -> tuple[list[Hit], list[Hit]]:
        """Return the candidates by vector and those by words, as many of each as were asked for."""
        near = found.search(self.query, self.k, filter=self.filter, vector_name=self.vector_name, include=())
        worded = found.search(self.query, self.sparse_k or self.k, filter=self.filter, mode="text", include=())
        return near, worded

    def _hybrid(self, found: Collection, k: int, condition: Filter | None) -> list[Hit]:
        return found.search(
            self.query,
            k,
            filter=condition,
            mode="hybrid",
            vector_name=self.vector_name,
            weights=None if self.alpha is None else {"vector": self.alpha, "text": 1.0 - self.alpha},
            rerank=self.reranker if self.mode is VectorStoreQueryMode.SEMANTIC_HYBRID else None,
        )


# --- arguments ----------------------------------------------------------------------------------------------------------


def _no_more(what: str, kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise InvalidInputError(f"{what} takes no {', '.join(sorted(kwargs))}")


def _joined(one: Filter | None, other: Filter | None) -> Filter | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _ids(name: str, values: object) -> list[str]:
    if not isinstance(values, list | tuple) or not all(isinstance(one, str) for one in values):
        raise InvalidInputError(f"{name} must be a list of str, not {type(values).__name__}")
    return list(values)


def _restricted(query: VectorStoreQuery) -> Filter | None:
    """Return what a query's filters, documents and nodes allow."""
    condition = to_filter(query.filters)
    if query.doc_ids:
        condition = _joined(condition, field("metadata", "ref_doc_id").in_(_ids("doc_ids", query.doc_ids)))
    if query.node_ids:
        condition = _joined(condition, field("id").in_(_ids("node_ids", query.node_ids)))
    return condition


def check_count(name: str, value: object) -> int:
    """Return an int of 1 or more.

    Raises:
        InvalidInputError: it is none; the message names it.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        shown = value if isinstance(value, int | float) else type(value).__name__
        raise InvalidInputError(f"{name} must be an int of 1 or more, not {shown}")
    return value


def _optional_count(name: str, value: object) -> int | None:
    return None if value is None else check_count(name, value)


def _share(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        shown = value if isinstance(value, int | float) else type(value).__name__
        raise InvalidInputError(f"{name} must be a number from 0 to 1, not {shown}")
    return float(value)
