"""``AgentDBVectorStore``: a collection of a database as LangChain's vector store."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from agentdb import (
    And,
    AsyncDatabase,
    Closing,
    Collection,
    CollectionMetric,
    Connection,
    Database,
    Hit,
    InvalidInputError,
    NamedCollection,
    Query,
    check_vectors,
)
from langchain_agentdb.embeddings import AgentDBEmbeddings, as_embeddings, embedder_of
from langchain_agentdb.filters import to_filter

__all__ = ["AgentDBVectorStore", "possible_ids", "strings", "to_document"]

Mode = Literal["vector", "text", "hybrid"]
Vectors = Sequence[Sequence[float]] | npt.NDArray[Any]
Scored = list[tuple[Document, float]]
_MODES = get_args(Mode)
_SEARCH_OPTIONS = frozenset(
    {"filter", "mode", "fusion", "weights", "rerank", "group_by", "offset", "vector_name", "exact"}
)
_MMR_OPTIONS = frozenset({"filter", "vector_name", "exact"})
_MAX_ID_CHARS = 1_024
"""Of a collection's rows."""


class _Rows(NamedTuple):
    """What is to be stored: ids, each once, texts and metadata."""

    ids: list[str]
    texts: list[str]
    metadata: list[dict[str, Any]]


class _Search(NamedTuple):
    """A search by text: what is asked, and how."""

    query: str
    k: int
    mode: Mode
    options: dict[str, Any]

    def of(self, vector: Any) -> Query:
        return Query(text=self.query, vector=vector)


class AgentDBVectorStore(Closing, VectorStore):
    """Documents of one collection: what was added is found by the very next search, in every thread and process.

    All methods may be called from any thread and event loop. Async methods await the embeddings' own async methods and run
    the rest on threads: they never block the event loop. Inside ``db.transaction()`` the sync methods join it.

    Searches take these options besides those of LangChain, also as ``search_kwargs`` of a retriever:

    - ``filter``: a dictionary about metadata (see `langchain_agentdb.filters`) or a tree from ``agentdb.field``.
    - ``mode``: ``"vector"``, ``"text"`` (BM25) or ``"hybrid"``; with ``fusion`` and ``weights`` as ``Collection.search`` has.
    - ``rerank``: an ``agentdb.Reranker``, a ``CrossEncoder``, or a function of the query and the texts found.
    - ``group_by``, ``offset``, ``vector_name``, ``exact``: as ``Collection.search`` has them.

    Args:
        embedding: LangChain embeddings; or an AgentDB embedder, whose name is then stored with the collection; None: that of
            the database.
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        collection: its name; it is made when the first documents are added.
        metric: of a new collection ``"cosine"`` (the default), ``"dot"`` or ``"euclidean"``; an existing one must have it.
        mode: of searches by text that name none.
        rerank: of searches by text that name none.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    _connection: Connection[NamedCollection]

    def __init__(
        self,
        embedding: Embeddings | Any | None,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        collection: str = "langchain",
        metric: CollectionMetric | None = None,
        mode: Mode = "vector",
        rerank: Any = None,
    ) -> None:
        given = as_embeddings(embedding)
        self._embeddings = AgentDBEmbeddings.of(lambda: self._connection().db.embedder) if given is None else given
        named = NamedCollection.prepare(collection, metric=metric, embedder=embedder_of(self._embeddings))
        self._connection = Connection(db_or_path, named)
        self._mode: Mode = _checked_mode(mode)
        self._rerank = rerank

    @property
    def embeddings(self) -> Embeddings:
        """What turns texts into vectors."""
        return self._embeddings

    @property
    def collection(self) -> Collection | None:
        """The collection, for what LangChain has no word for: indices, promoted keys, scans. None: nothing was added yet.

        Raises:
            InvalidInputError: it was made with another metric, or by another embedder.
        """
        return self._connection().found()

    # --- adding -------------------------------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Store texts in the place of those with the same ids, durable when this returns; return their ids in order.

        Args:
            texts: any number.
            metadatas: a JSON object for each text: nested, with lists and nulls, of any shape.
            ids: strings of 1 to 1,024 characters; None for those that are to be made. Of equal ids the last one counts.
            batch_size: embed and store so many at a time, all or none of each batch; None: all or none of the whole.
            kwargs: none; an option that does not exist is refused.

        Raises:
            InvalidInputError: an argument cannot be stored; the message says which.
        """
        _refuse(kwargs)
        found, rows = self._rows(*_checked(texts, metadatas, ids))
        for batch in _batches(rows, batch_size):
            self._store(batch, self._vectors(batch.texts))
        return found

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Do what `add_texts` does, without blocking the event loop."""
        _refuse(kwargs)
        checked = _checked(texts, metadatas, ids)
        found, rows = await self._connection.run("read", lambda: self._rows(*checked))
        for batch in _batches(rows, batch_size):
            vectors = await self._avectors(batch.texts)
            await self._connection.run("write", partial(self._store, batch, vectors))
        return found

    def add_embeddings(
        self,
        texts: Iterable[str],
        embeddings: Vectors,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Store texts with vectors that are there already, `[N, D]`; otherwise as `add_texts`."""
        checked = _checked(texts, metadatas, ids)
        vectors = check_vectors(embeddings, rows=len(checked[0]), source="embeddings") if checked[0] else None
        found, rows = self._rows(*checked)
        if vectors is not None:
            if len(rows.ids) < len(found):
                last = {one: i for i, one in enumerate(found)}
                vectors = vectors[[last[one] for one in rows.ids]]
            self._store(rows, vectors)
        return found

    async def aadd_embeddings(
        self,
        texts: Iterable[str],
        embeddings: Vectors,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Do what `add_embeddings` does, without blocking the event loop."""
        given = texts if isinstance(texts, str) else list(texts)
        return await self._connection.run("write", lambda: self.add_embeddings(given, embeddings, metadatas, ids=ids))

    def _rows(
        self, texts: list[str], metadata: list[dict[str, Any]], ids: Sequence[str | None] | None
    ) -> tuple[list[str], _Rows]:
        """Return the id of each text, and the rows to store: of equal ids the last one."""
        given = [None] * len(texts) if ids is None else ids
        if any(one is None for one in given):
            new_id = self._connection().db.config.id_source
            found = [new_id() if one is None else one for one in given]
        else:
            found = [one for one in given if one is not None]
        last = {one: i for i, one in enumerate(found)}
        if len(last) == len(found):
            return found, _Rows(found, texts, metadata)
        kept = list(last.values())
        return found, _Rows(list(last), [texts[i] for i in kept], [metadata[i] for i in kept])

    def _vectors(self, texts: list[str]) -> npt.NDArray[np.float32]:
        if isinstance(self._embeddings, AgentDBEmbeddings):
            return self._embeddings.matrix(texts)
        return check_vectors(self._embeddings.embed_documents(texts), rows=len(texts), source="embedding")

    async def _avectors(self, texts: list[str]) -> npt.NDArray[np.float32]:
        if isinstance(self._embeddings, AgentDBEmbeddings):
            return await self._connection.on_thread(lambda: self._vectors(texts))
        made = await self._embeddings.aembed_documents(texts)
        return await self._connection.run("read", partial(check_vectors, made, rows=len(texts), source="embedding"))

    def _store(self, rows: _Rows, vectors: npt.NDArray[np.float32]) -> None:
        self._connection().write(
            vectors.shape[1], lambda found: found.upsert(rows.ids, vectors, texts=rows.texts, metadata=rows.metadata)
        )

    # --- by id --------------------------------------------------------------------------------------------------------

    def delete(self, ids: Sequence[str] | None = None, *, filter: Any = None, **kwargs: Any) -> bool:
        """Delete documents by their ids, or all that match a filter, or, with neither, all; return True.

        Ids that do not exist are no error.

        Raises:
            InvalidInputError: both are given, one cannot be accepted, or the filter is an empty dictionary, which would delete
                all that is there because a condition was forgotten.
        """
        _refuse(kwargs)
        condition = to_filter(filter)
        if ids is not None and condition is not None:
            raise InvalidInputError("delete takes either ids or a filter")
        if filter is not None and condition is None:
            raise InvalidInputError("filter must not be empty; delete() deletes all documents")
        if ids is not None:
            listed = possible_ids(ids)
            self._connection().read(lambda found: found.delete(listed))
        else:
            self._connection().read(lambda found: found.delete(filter=And() if condition is None else condition))
        return True

    async def adelete(self, ids: Sequence[str] | None = None, *, filter: Any = None, **kwargs: Any) -> bool:
        """Do what `delete` does, without blocking the event loop."""
        return await self._connection.run("write", lambda: self.delete(ids, filter=filter, **kwargs))

    def delete_collection(self) -> bool:
        """Drop the whole collection; whether there was one. The next document that is added makes it anew."""
        return self._connection().drop()

    async def adelete_collection(self) -> bool:
        """Do what `delete_collection` does, without blocking the event loop."""
        return await self._connection.run("write", self.delete_collection)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of these ids in their order, each once; ids that do not exist are left out.

        Raises:
            InvalidInputError: the ids are no sequence of strings.
        """
        listed = possible_ids(ids)
        found = self._connection().read(lambda one: one.get_many(listed, include=("text", "metadata")))
        return [
            Document(id=one.id, page_content=one.text or "", metadata=dict(one.metadata))
            for one in found or ()
            if one is not None
        ]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Do what `get_by_ids` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.get_by_ids(ids))

    # --- searching ----------------------------------------------------------------------------------------------------

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the K best documents, best first; fewer where fewer match.

        Args:
            query: a text.
            k: at least 1.
            kwargs: options, as the class describes them.

        Raises:
            InvalidInputError: an argument cannot be accepted; the message names it.
        """
        return [one for one, _ in self.similarity_search_with_score(query, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Do what `similarity_search` does, without blocking the event loop."""
        return [one for one, _ in await self.asimilarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        """Return what `similarity_search` returns, and the score of each: higher is better.

        The score is the cosine, the dot product, or 1 / (1 + distance) with a Euclidean metric; BM25 or the fused score in the
        other modes; what the reranker said.
        """
        search = self._search(query, k, kwargs)
        vector = None if search.mode == "text" else self._embeddings.embed_query(query)
        return self._found(search, vector)

    async def asimilarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        """Do what `similarity_search_with_score` does, without blocking the event loop."""
        search = self._search(query, k, kwargs)
        vector = None if search.mode == "text" else await self._embeddings.aembed_query(query)
        return await self._connection.run("read", lambda: self._found(search, vector))

    def _search(self, query: Any, k: int, options: dict[str, Any]) -> _Search:
        if not isinstance(query, str):
            raise InvalidInputError(
                f"query must be a str, not {type(query).__name__}; search vectors with ..._by_vector"
            )
        given = _options(options, _SEARCH_OPTIONS)
        mode = given["mode"] = _checked_mode(given.get("mode", self._mode))
        if given.get("rerank", self._rerank) is not None:
            given.setdefault("rerank", self._rerank)
        return _Search(query, _count("k", k), mode, given)

    def _found(self, search: _Search, vector: Any) -> Scored:
        hits = self._connection().read(lambda one: one.search(search.of(vector), search.k, **search.options))
        return [(to_document(hit), hit.score) for hit in hits or ()]

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the K documents nearest to a vector `[D]`, best first.

        Args:
            embedding: as many numbers as the vectors have.
            k: at least 1.
            kwargs: options, as the class describes them; what needs a text (other modes, a reranker) is refused.
        """
        return [one for one, _ in self.similarity_search_with_score_by_vector(embedding, k, **kwargs)]

    async def asimilarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """Do what `similarity_search_by_vector` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.similarity_search_by_vector(embedding, k, **kwargs))

    def similarity_search_with_score_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> Scored:
        """Return what `similarity_search_by_vector` returns, and the score of each: higher is better."""
        given = _options(kwargs, _SEARCH_OPTIONS)
        count = _count("k", k)
        hits = self._connection().read(lambda one: one.search(Query(vector=embedding), count, **given))
        return [(to_document(hit), hit.score) for hit in hits or ()]

    async def asimilarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> Scored:
        """Do what `similarity_search_with_score_by_vector` does, without blocking the event loop."""
        return await self._connection.run(
            "read", lambda: self.similarity_search_with_score_by_vector(embedding, k, **kwargs)
        )

    # --- relevance ----------------------------------------------------------------------------------------------------

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return partial(_relevance, self._metric())

    def _metric(self, vector_name: str | None = None) -> str:
        named = self._connection()

        def metric(found: Collection) -> str:
            vectors = found.vectors
            first = "vector" if "vector" in vectors else next(iter(vectors))
            return vectors[vector_name or first].metric

        return named.read(metric) or named.metric or "cosine"

    def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        """Return documents and how relevant each is, from 0 to 1, whatever the metric and the mode.

        By cosine: the cosine, 0 where it is negative. Euclidean: 1 / (1 + distance). Dot product: its logistic function. By
        words (BM25): score / (1 + score). Hybrid: the fused score, which compares the documents of one query. Reranked: what
        the reranker said, which must lie between 0 and 1.

        Raises:
            InvalidInputError: the reranker said something else.
        """
        search = self._search(query, k, kwargs)
        vector = None if search.mode == "text" else self._embeddings.embed_query(query)
        return self._relevant(search, vector)

    async def _asimilarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        search = self._search(query, k, kwargs)
        vector = None if search.mode == "text" else await self._embeddings.aembed_query(query)
        return await self._connection.run("read", lambda: self._relevant(search, vector))

    def _relevant(self, search: _Search, vector: Any) -> Scored:
        scale: str = "reranked" if search.options.get("rerank") is not None else search.mode
        if scale == "vector":
            scale = self._metric(search.options.get("vector_name"))
        elif scale == "hybrid" and search.options.get("fusion") == "rrf":
            raise InvalidInputError("fusion 'rrf' yields ranks, not relevance: use 'normalized'")
        return [(one, _relevance(scale, score)) for one, score in self._found(search, vector)]

    # --- diversity ----------------------------------------------------------------------------------------------------

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Return K of the ``fetch_k`` nearest documents, chosen one by one for nearness and for difference from those before.

        Args:
            query: a text.
            k: at least 1.
            fetch_k: how many to choose from; at least k are.
            lambda_mult: 1: nearness alone; 0: difference alone.
            kwargs: ``filter``, ``vector_name`` and ``exact``.
        """
        _options(kwargs, _MMR_OPTIONS)
        vector = self._embeddings.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Do what `max_marginal_relevance_search` does, without blocking the event loop."""
        _options(kwargs, _MMR_OPTIONS)
        vector = await self._embeddings.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Do what `max_marginal_relevance_search` does for a vector `[D]`."""
        given = _options(kwargs, _MMR_OPTIONS)
        count, pool = _count("k", k), _count("fetch_k", fetch_k)
        hits = self._connection().read(
            lambda one: one.max_marginal_relevance(embedding, count, max(count, pool), lambda_mult, **given)
        )
        return [to_document(hit) for hit in hits or ()]

    async def amax_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Do what `max_marginal_relevance_search_by_vector` does, without blocking the event loop."""
        return await self._connection.run(
            "read",
            lambda: self.max_marginal_relevance_search_by_vector(embedding, k, fetch_k, lambda_mult, **kwargs),
        )

    # --- making -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_texts(  # type: ignore[override]
        cls,
        texts: list[str],
        embedding: Embeddings | Any | None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        ids: Sequence[str | None] | None = None,
        **options: Any,
    ) -> Self:
        """Return a store to which these texts were added; the caller closes it.

        Args:
            texts: as in `add_texts`.
            embedding: as the class takes it.
            metadatas: as in `add_texts`.
            db_or_path: as the class takes it.
            ids: as in `add_texts`.
            options: the others that the class takes.
        """
        store = cls(embedding, db_or_path, **options)
        try:
            store.add_texts(texts, metadatas, ids=ids)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    async def afrom_texts(  # type: ignore[override]
        cls,
        texts: list[str],
        embedding: Embeddings | Any | None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        ids: Sequence[str | None] | None = None,
        **options: Any,
    ) -> Self:
        """Do what `from_texts` does, without blocking the event loop."""
        store = cls(embedding, db_or_path, **options)
        try:
            await store.aadd_texts(texts, metadatas, ids=ids)
        except BaseException:
            await store.aclose()
            raise
        return store


def to_document(hit: Hit) -> Document:
    """Return a hit as LangChain's document; one without a text has an empty one."""
    return Document(id=hit.id, page_content=hit.text or "", metadata=dict(hit.metadata))


def _checked(
    texts: Iterable[str], metadatas: Iterable[dict[str, Any] | None] | None, ids: Iterable[str | None] | None
) -> tuple[list[str], list[dict[str, Any]], list[str | None] | None]:
    """Return what is to be added, as many of each."""
    listed: list[str] = _in_order("texts", texts, "strings")
    given_ids: list[str | None] | None = None if ids is None else _in_order("ids", ids, "strings")
    metadata = [{} for _ in listed] if metadatas is None else _in_order("metadatas", metadatas, "dictionaries")
    for name, values in (("metadatas", metadata), ("ids", given_ids)):
        if values is not None and len(values) != len(listed):
            raise InvalidInputError(f"{name} must be as many as the texts: {len(listed)}, not {len(values)}")
    for i, one in enumerate(listed):
        if not isinstance(one, str):
            raise InvalidInputError(f"texts[{i}] must be a str, not {type(one).__name__}")
    for i, one_id in enumerate(given_ids or ()):
        if not (one_id is None or isinstance(one_id, str)):
            raise InvalidInputError(f"ids[{i}] must be a str or None, not {type(one_id).__name__}")
    return listed, [{} if one is None else one for one in metadata], given_ids


def _in_order(name: str, values: Any, what: str) -> list[Any]:
    """Return values that belong together by their places: a set has none."""
    if isinstance(values, str | bytes | Mapping | AbstractSet) or not isinstance(values, Iterable):
        shown = "one string" if isinstance(values, str) else type(values).__name__
        raise InvalidInputError(f"{name} must be a list of {what}, not {shown}")
    return list(values)


def strings(name: str, values: Any) -> list[str]:
    """Return what an argument lists.

    Raises:
        InvalidInputError: it is no list of strings.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        shown = "one string" if isinstance(values, str) else type(values).__name__
        raise InvalidInputError(f"{name} must be a list of strings, not {shown}")
    listed = list(values)
    for i, one in enumerate(listed):
        if not isinstance(one, str):
            raise InvalidInputError(f"{name}[{i}] must be a str, not {type(one).__name__}")
    return listed


def possible_ids(ids: Any) -> list[str]:
    """Return, each once, those ids that a document can have: the others are of none, which is no error."""
    return [one for one in dict.fromkeys(strings("ids", ids)) if 0 < len(one) <= _MAX_ID_CHARS and _is_utf8(one)]


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= one <= "\udfff" for one in text)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{name} must be an int of 1 or more, not {value!r:.40}")
    return int(value)


def _batches(rows: _Rows, size: int | None) -> Iterator[_Rows]:
    step = len(rows.ids) if size is None else _count("batch_size", size)
    for start in range(0, len(rows.ids), step or 1):
        stop = start + step
        yield _Rows(rows.ids[start:stop], rows.texts[start:stop], rows.metadata[start:stop])


def _refuse(options: dict[str, Any]) -> None:
    if options:
        raise InvalidInputError(f"there is no option {', '.join(sorted(options))}")


def _options(given: dict[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    """Return the options of a search, with the filter as a tree."""
    unknown = given.keys() - allowed
    if unknown:
        raise InvalidInputError(
            f"a search has no option {', '.join(sorted(unknown))}; there are {', '.join(sorted(allowed))}"
        )
    condition = to_filter(given.get("filter"))
    return {**given, "filter": condition}


def _checked_mode(mode: Any) -> Mode:
    if not isinstance(mode, str) or mode not in _MODES:
        shown = repr(mode[:40]) if isinstance(mode, str) else type(mode).__name__
        raise InvalidInputError(f"mode must be one of {', '.join(map(repr, _MODES))}, not {shown}")
    found: Mode = mode  # type: ignore[assignment]
    return found


def _relevance(scale: str, score: float) -> float:
    """Return how relevant a score is, from 0 to 1; the order of scores stays."""
    match scale:
        case "cosine" | "euclidean" | "hybrid":
            return min(max(score, 0.0), 1.0)
        case "dot":
            return 1.0 / (1.0 + math.exp(-score)) if score > -700 else 0.0
        case "text":
            return score / (1.0 + score)
        case _:
            if not 0.0 <= score <= 1.0:
                raise InvalidInputError(
                    f"rerank: relevance needs scores from 0 to 1, the reranker said {score:g}; bring its scores there, for "
                    "example by a logistic function"
                )
            return score
