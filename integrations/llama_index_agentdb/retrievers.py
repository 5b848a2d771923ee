"""Retrievers straight from a database: over a collection, over ingested documents, and over what an agent remembers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.schema import (
    NodeRelationship,
    NodeWithScore,
    ObjectType,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import MetadataFilters

from agentdb import (
    AsyncDatabase,
    Closing,
    Connection,
    Database,
    Filter,
    InvalidInputError,
    Memory,
    NamedCollection,
    Passage,
    Query,
    Recalled,
    RecallWeights,
)
from llama_index_agentdb.filters import to_filter
from llama_index_agentdb.nodes import to_node
from llama_index_agentdb.vector_store import check_count

__all__ = ["AgentDBMemoryRetriever", "AgentDBRetriever"]

Mode = Literal["hybrid", "vector", "text"]


class AgentDBRetriever(Closing, BaseRetriever):
    """Find nodes in a collection, or in ingested documents, by meaning, words or both; what was written before is found.

    Any collection will do: one that an `AgentDBVectorStore` filled gives its nodes back whole, another gives a ``TextNode`` for
    each row. With ``documents=True`` it finds passages of what ``db.documents`` has ingested, each with its place: where it
    lies in its document (``start_char_idx``, ``end_char_idx``, the source's id), and in the metadata ``label`` (title, headings and
    page in one line, which models see), ``document_id``, ``source``, ``title``, ``page`` and ``headings`` (which they do not).

    ``aretrieve`` runs on threads of its own and never blocks the event loop.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one.
        collection: its name; None: ``"llama_index"``, or ``"documents"``. One that does not exist yet holds nothing.
        documents: search ``db.documents``, and not ``db.collection``.
        similarity_top_k: at most so many nodes.
        mode: ``"hybrid"``: by meaning and words; ``"vector"``; ``"text"``: by words.
        filters: LlamaIndex's filters, or a filter made of ``agentdb.field``. Of rows that no `AgentDBVectorStore` wrote, the former
            see no whole lists: see ``filters``.
        embed_model: makes the query's vector, and must be what made those that are stored; None: the collection's own embedder.
            Documents are always searched by the embedder that they were ingested with.
        search_options: more arguments of ``Collection.search`` or ``Documents.search``, such as ``weights``, ``rerank`` and
            ``min_score``.
        callback_manager: as in every retriever.
        verbose: as in every retriever.
    """

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        collection: str | None = None,
        documents: bool = False,
        similarity_top_k: int = 10,
        mode: Mode = "hybrid",
        filters: MetadataFilters | Filter | None = None,
        embed_model: BaseEmbedding | None = None,
        search_options: Mapping[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        default = "documents" if documents else "llama_index"
        prepare = NamedCollection.prepare(default if collection is None else collection)
        if mode not in ("hybrid", "vector", "text"):
            raise InvalidInputError("mode must be 'hybrid', 'vector' or 'text'")
        if embed_model is not None and not isinstance(embed_model, BaseEmbedding):
            raise InvalidInputError(f"embed_model must be an embedding model, not {type(embed_model).__name__}")
        if embed_model is not None and documents:
            raise InvalidInputError("embed_model: documents are searched by the embedder that they were ingested with")
        taken = {"query", "k", "filter", "mode", "include", "explain", "collection"} & set(search_options or {})
        if taken:
            raise InvalidInputError(f"search_options cannot hold {', '.join(sorted(taken))}")
        self._is_documents = documents
        self._embed_model = embed_model
        self._options: dict[str, Any] = {
            **(search_options or {}),
            "k": check_count("similarity_top_k", similarity_top_k),
            "mode": mode,
            "filter": filters if isinstance(filters, Filter) else to_filter(filters),
        }
        self._connection = Connection(db_or_path, prepare)
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = query_bundle.embedding
        if vector is None and self._embed_model is not None and self._options["mode"] != "text":
            vector = self._embed_model.get_agg_embedding_from_queries(query_bundle.embedding_strs)
        return self._found(query_bundle.query_str, vector)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = query_bundle.embedding
        if vector is None and self._embed_model is not None and self._options["mode"] != "text":
            vector = await self._embed_model.aget_agg_embedding_from_queries(query_bundle.embedding_strs)
        return await self._connection.run("read", lambda: self._found(query_bundle.query_str, vector))

    def _found(self, text: str, vector: list[float] | None) -> list[NodeWithScore]:
        opened = self._connection()
        if self._is_documents:
            passages = opened.db.documents.search(text, collection=opened.name, **self._options)
            return [_of_passage(one) for one in passages]
        query = Query(text=text, vector=None if self._options["mode"] == "text" else vector)
        hits = opened.read(lambda found: found.search(query, **self._options)) or []
        return [NodeWithScore(node=to_node(hit.id, hit.text, hit.metadata), score=hit.score) for hit in hits]


def _of_passage(passage: Passage) -> NodeWithScore:
    place = {
        "document_id": passage.document_id,
        "source": passage.source,
        "title": passage.title,
        "page": passage.page,
        "headings": list(passage.heading_path),
    }
    known = {key: value for key, value in place.items() if value not in (None, [])}
    node = TextNode(
        id_=passage.id,
        text=passage.text,
        metadata={**passage.metadata, **known, "label": passage.label},
        start_char_idx=passage.start,
        end_char_idx=passage.end,
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id=passage.document_id, node_type=ObjectType.DOCUMENT)
        },
        excluded_llm_metadata_keys=list(known),
        excluded_embed_metadata_keys=list(known),
    )
    return NodeWithScore(node=node, score=passage.score)


class AgentDBMemoryRetriever(Closing, BaseRetriever):
    """Find what an agent remembers, in its scope alone: of its own agent, user and namespace, and of no other.

    A node's text is the memory's, its id the memory's id, its score that of the recall. Its metadata are the memory's own, and
    who said it and when; what only a program needs (tier, importance, ...) is kept from language and embedding models.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one.
        agent_id: whose memories.
        user_id: of this user; None: only memories without a user.
        session_id: of this session; None: of every session.
        namespace: of this namespace; None: only memories without one.
        similarity_top_k: at most so many.
        types: only these: ``"episodic"``, ``"semantic"``, ``"procedural"``; None: all.
        filter: only memories that match, built from ``agentdb.field`` as for ``db.memories.list``.
        token_budget: only what fits.
        weights: of the signals.
        reinforce: count what is found as used, so that it fades more slowly.
        callback_manager: as in every retriever.
        verbose: as in every retriever.
    """

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        agent_id: str | int,
        user_id: str | int | None = None,
        session_id: str | int | None = None,
        namespace: str | int | None = None,
        similarity_top_k: int = 10,
        types: Iterable[Literal["episodic", "semantic", "procedural"]] | None = None,
        filter: Filter | None = None,
        token_budget: int | None = None,
        weights: RecallWeights | None = None,
        reinforce: bool = True,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        self._wanted: dict[str, Any] = {
            "agent_id": agent_id,
            "user_id": user_id,
            "session_id": session_id,
            "namespace": namespace,
            "k": check_count("similarity_top_k", similarity_top_k),
            "types": None if types is None else tuple(types),
            "filter": filter,
            "token_budget": token_budget,
            "weights": weights,
            "reinforce": reinforce,
        }
        self._connection = Connection(db_or_path, lambda db: db)
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if not query_bundle.query_str:  # the question is an image, perhaps
            return []
        recalled = self._connection().memories.recall(query_bundle.query_str, **self._wanted)
        return [_of_memory(one) for one in recalled]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        pool: Literal["read", "write"] = "write" if self._wanted["reinforce"] else "read"
        return await self._connection.run(pool, lambda: self._retrieve(query_bundle))


_SHOWN = ("speaker", "role", "occurred_at")


def _of_memory(recalled: Recalled) -> NodeWithScore:
    facts = {key: value for key, value in _facts(recalled.memory).items() if value is not None}
    hidden = [key for key in facts if key not in _SHOWN]
    node = TextNode(
        id_=recalled.memory.id,
        text=recalled.memory.text,
        metadata={**recalled.memory.metadata, **facts},
        excluded_llm_metadata_keys=hidden,
        excluded_embed_metadata_keys=hidden,
    )
    return NodeWithScore(node=node, score=recalled.score)


def _facts(memory: Memory) -> dict[str, Any]:
    """Return what is known of a memory besides its text and metadata; times as ISO 8601."""
    happened = memory.occurred_at
    return {
        "speaker": memory.speaker,
        "role": memory.role,
        "occurred_at": None if happened is None else happened.isoformat(),
        "recorded_at": memory.recorded_at.isoformat(),
        "agent_id": memory.agent_id,
        "user_id": memory.user_id,
        "session_id": memory.session_id,
        "namespace": memory.namespace,
        "tier": memory.tier,
        "memory_type": memory.memory_type,
        "importance": memory.importance,
    }
