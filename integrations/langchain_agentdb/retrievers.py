"""``AgentDBRetriever`` and ``AgentDBMemoryRetriever``: documents, collections and memories, found for LangChain."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr

from agentdb import (
    AsyncDatabase,
    Closing,
    Connection,
    Database,
    InvalidInputError,
    NamedCollection,
    Passage,
    Query,
    Recalled,
)
from langchain_agentdb.embeddings import as_embeddings, embedder_of
from langchain_agentdb.filters import to_filter
from langchain_agentdb.vector_store import to_document

__all__ = ["AgentDBMemoryRetriever", "AgentDBRetriever"]

Mode = Literal["vector", "text", "hybrid"]
_MODES = ("vector", "text", "hybrid")
_OPTIONS = frozenset({"k", "filter", "mode", "rerank"})
_MEMORY_OPTIONS = frozenset({"k", "filter", "user_id", "session_id"})


class AgentDBRetriever(Closing, BaseRetriever):
    """What a collection, or the documents that were ingested, say about a query; what was written before is found.

    ``retriever.invoke(query, k=3, filter={...})`` overrides what the retriever was made with. May be called from any thread and
    event loop; async methods run on threads. Copies, those of ``configurable_fields`` among them, share the connection.

    A document's metadata is the row's. That of a passage of an ingested document is the document's, and under these names
    ``document_id``, ``source``, ``title``, ``page``, ``headings``, ``start``, ``end`` and ``score``, so that it can be cited.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; or a connection to share.
        collection: the collection to search; with ``documents`` the name that the documents were ingested under.
        documents: search what ``db.documents`` has ingested, and not ``db.collection``.
        embedding: LangChain embeddings, for a collection whose vectors they made; None: the collection's own embedder.
        k: how many documents.
        mode: ``"hybrid"``: nearest in meaning and best matching words, fused; ``"vector"`` or ``"text"`` alone.
        rerank: an ``agentdb.Reranker``, a ``CrossEncoder``, or a function of the query and the texts found.
        filter: a dictionary about metadata (see `langchain_agentdb.filters`), or a tree from ``agentdb.field``.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    collection: str | None = None
    documents: bool = Field(default=False, frozen=True)
    k: int = 4
    mode: Mode = "hybrid"
    rerank: Any = None
    filter: Any = None
    # What LangChain makes a retriever of with other options: it reads them here and passes them to the constructor.
    db_or_path: Any = Field(exclude=True, repr=False, frozen=True)
    embedding: Any = Field(default=None, exclude=True, repr=False, frozen=True)
    _embeddings: Embeddings | None = PrivateAttr(default=None)
    _connection: Connection[Database] = PrivateAttr()
    _prepared: NamedCollection | None = PrivateAttr(default=None)

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str] | Connection[Database],
        *,
        embedding: Embeddings | Any | None = None,
        **fields: Any,
    ) -> None:
        connection = _connected(db_or_path)
        shared: dict[str, Any] = {"db_or_path": connection, "embedding": embedding}
        super().__init__(**fields, **shared)
        if self.documents and embedding is not None:
            raise InvalidInputError("embedding: documents are embedded by the embedder that they were ingested with")
        self._embeddings = as_embeddings(embedding)
        self._connection = connection
        self._named()

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        del run_manager
        options = self._options(kwargs)
        vector = self._embeddings.embed_query(query) if self._needs_vector(options) else None  # type: ignore[union-attr]
        return self._found(query, vector, options)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        del run_manager
        options = self._options(kwargs)
        vector = await self._embeddings.aembed_query(query) if self._needs_vector(options) else None  # type: ignore[union-attr]
        return await self._connection.run("read", lambda: self._found(query, vector, options))

    @property
    def _name(self) -> str:
        if self.collection is None and not self.documents:
            raise InvalidInputError("name the collection, or ask for documents=True")
        return "documents" if self.collection is None else self.collection

    def _named(self) -> Callable[[Database], NamedCollection]:
        made_by = None if self._embeddings is None else embedder_of(self._embeddings)
        return NamedCollection.prepare(self._name, embedder=made_by)

    def _needs_vector(self, options: Mapping[str, Any]) -> bool:
        return self._embeddings is not None and options["mode"] != "text"

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        _check_options(given, _OPTIONS)
        options = {"k": self.k, "mode": self.mode, "rerank": self.rerank, "filter": self.filter, **given}
        options["filter"] = to_filter(options["filter"])
        return options

    def _found(self, query: str, vector: Any, options: dict[str, Any]) -> list[Document]:
        db, source = self._connection(), self._prepared
        if source is None or source.name != self._name:
            source = self._prepared = self._named()(db)
        if self.documents:
            passages = db.documents.search(query, collection=source.name, **options)
            return [_passage_document(one) for one in passages]
        asked = Query(text=query, vector=vector)
        return [to_document(hit) for hit in source.read(lambda found: found.search(asked, **options)) or ()]


def _connected(given: Any) -> Connection[Database]:
    return given if isinstance(given, Connection) else Connection(given, lambda db: db)


def _passage_document(passage: Passage) -> Document:
    place = {
        "document_id": passage.document_id,
        "source": passage.source,
        "title": passage.title,
        "page": passage.page,
        "headings": list(passage.heading_path),
        "start": passage.start,
        "end": passage.end,
        "score": passage.score,
    }
    return Document(id=passage.id, page_content=passage.text, metadata={**passage.metadata, **place})


def _check_options(given: Mapping[str, Any], allowed: frozenset[str]) -> None:
    unknown = given.keys() - allowed
    if unknown:
        raise InvalidInputError(
            f"a search has no option {', '.join(sorted(unknown))}; there are {', '.join(sorted(allowed))}"
        )


class AgentDBMemoryRetriever(Closing, BaseRetriever):
    """The memories of an agent that matter most to a query, best first; what was remembered before is found.

    Whose memories is fixed here: agent, user and namespace are walls, and nothing is found across them. Where one retriever
    serves many users, give ``user_id`` with the call: ``retriever.invoke(query, user_id="bob")``; so with ``session_id``, ``k`` and
    ``filter``. May be called from any thread and event loop; async methods run on threads. Copies, those of
    ``configurable_fields`` among them, share the connection.

    A document's text is the memory's; its metadata is the memory's, and under these names ``agent_id``, ``user_id``,
    ``session_id``, ``memory_type``, ``tier``, ``speaker``, ``role``, ``occurred_at``, ``recorded_at`` (ISO 8601) and ``score``.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; or a connection to share.
        agent_id: whose memories.
        user_id: of this user; None: only memories without a user.
        session_id: of this session; None: of every session.
        namespace: of this namespace; None: only memories without one.
        k: how many memories.
        filter: a tree from ``agentdb.field`` on the attributes of ``agentdb.Memory``, or a dictionary about metadata.
        token_budget: return no more than fit into so many tokens; None: no limit.
        reinforce: count being recalled as a use, which makes a memory fade later.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    agent_id: str
    user_id: str | None = None
    session_id: str | None = None
    namespace: str | None = None
    k: int = 4
    filter: Any = None
    token_budget: int | None = None
    reinforce: bool = True
    # As above.
    db_or_path: Any = Field(exclude=True, repr=False, frozen=True)
    _connection: Connection[Database] = PrivateAttr()

    def __init__(
        self, db_or_path: Database | AsyncDatabase | str | os.PathLike[str] | Connection[Database], **fields: Any
    ) -> None:
        connection = _connected(db_or_path)
        shared: dict[str, Any] = {"db_or_path": connection}
        super().__init__(**fields, **shared)
        self._connection = connection

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        del run_manager
        return self._recalled(query, kwargs)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        del run_manager
        pool: Literal["read", "write"] = "write" if self.reinforce else "read"
        return await self._connection.run(pool, lambda: self._recalled(query, kwargs))

    def _recalled(self, query: str, given: Mapping[str, Any]) -> list[Document]:
        _check_options(given, _MEMORY_OPTIONS)
        options = {
            "k": self.k,
            "filter": self.filter,
            "user_id": self.user_id,
            "session_id": self.session_id,
            **given,
        }
        options["filter"] = to_filter(options["filter"])
        found = self._connection().memories.recall(
            query,
            agent_id=self.agent_id,
            namespace=self.namespace,
            token_budget=self.token_budget,
            reinforce=self.reinforce,
            **options,
        )
        return [_memory_document(one) for one in found]


def _memory_document(recalled: Recalled) -> Document:
    memory = recalled.memory
    about = {
        "agent_id": memory.agent_id,
        "user_id": memory.user_id,
        "session_id": memory.session_id,
        "memory_type": memory.memory_type,
        "tier": memory.tier,
        "speaker": memory.speaker,
        "role": memory.role,
        "occurred_at": _iso(memory.occurred_at),
        "recorded_at": _iso(memory.recorded_at),
        "score": recalled.score,
    }
    return Document(id=memory.id, page_content=memory.text, metadata={**memory.metadata, **about})


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
