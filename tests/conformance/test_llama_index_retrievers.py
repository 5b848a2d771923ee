"""Retrievers, the reranking step and the embedding model, on real databases and inside real query engines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import Document, MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import FilterOperator
from support.llama_index_suite import node, only

import agentdb
from agentdb import Database, InvalidInputError, field
from agentdb_embedders import HashingEmbedder
from llama_index_agentdb import (
    AgentDBEmbedding,
    AgentDBMemoryRetriever,
    AgentDBRerank,
    AgentDBRetriever,
    AgentDBVectorStore,
)

FACTS = {
    "f1": ("Ann lives in Lisbon with her sister", {"who": "ann", "year": 2020}),
    "f2": ("Ann is allergic to peanuts", {"who": "ann", "year": 2022, "tags": ["health"]}),
    "f3": ("Bob plays the cello in an orchestra", {"who": "bob", "year": 2021}),
}


@pytest.fixture
def db(db_path: Path) -> Iterator[Database]:
    with agentdb.open(db_path, embedder=HashingEmbedder(256)) as opened:
        yield opened


@pytest.fixture
def facts(db: Database) -> Database:
    db.collection("facts").upsert(
        list(FACTS), texts=[text for text, _ in FACTS.values()], metadata=[metadata for _, metadata in FACTS.values()]
    )
    return db


def ids(found: Sequence[NodeWithScore]) -> list[str]:
    return [one.node.node_id for one in found]


# --- over a collection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
def test_a_collection_is_searched_as_it_searches_itself(facts: Database, mode: Any) -> None:
    query = "who plays the cello with her sister"
    retriever = AgentDBRetriever(facts, collection="facts", mode=mode, similarity_top_k=3)
    hits = facts.collection("facts").search(query, 3, mode=mode)
    found = retriever.retrieve(query)
    assert [(one.node.node_id, one.score) for one in found] == [(hit.id, hit.score) for hit in hits]
    assert [(one.text, one.metadata) for one in found] == [FACTS[hit.id] for hit in hits]
    assert asyncio.run(retriever.aretrieve(query)) == found


def test_filters_of_both_kinds(facts: Database) -> None:
    for filters in (only("year", 2021, FilterOperator.GTE), field("year") >= 2021):
        found = AgentDBRetriever(facts, collection="facts", filters=filters).retrieve("Ann")
        assert sorted(ids(found)) == ["f2", "f3"]


def test_options_of_the_search(facts: Database) -> None:
    retriever = AgentDBRetriever(
        facts,
        collection="facts",
        similarity_top_k=2,
        search_options={"rerank": lambda query, texts: [len(text) for text in texts]},
    )
    assert [(one.node.node_id, one.score) for one in retriever.retrieve("Ann")] == [("f1", 35.0), ("f3", 35.0)]


def test_an_embedding_model_of_llama_index(db_path: Path) -> None:
    embed = AgentDBEmbedding(HashingEmbedder(64))
    with AgentDBVectorStore(db_path) as store:
        documents = [Document(text=text, metadata=metadata, doc_id=key) for key, (text, metadata) in FACTS.items()]
        IngestionPipeline(transformations=[SentenceSplitter(), embed], vector_store=store).run(documents=documents)
        with AgentDBRetriever(db_path, mode="vector", embed_model=embed, similarity_top_k=1) as retriever:
            for found in (retriever.retrieve("the cello"), asyncio.run(retriever.aretrieve("the cello"))):
                assert [one.node.ref_doc_id for one in found] == ["f3"]
                assert found[0].metadata == FACTS["f3"][1]
            vector = embed.get_query_embedding("peanuts allergic")
            given = retriever.retrieve(QueryBundle("anything", embedding=vector))
            assert [one.node.ref_doc_id for one in given] == ["f2"]


def test_what_is_not_there_yet_holds_nothing(db_path: Path) -> None:
    with AgentDBRetriever(db_path, embed_model=MockEmbedding(embed_dim=4)) as retriever:
        assert retriever.retrieve("anything") == []
        with AgentDBVectorStore(db_path) as store:
            store.add([node("a")])
        assert ids(retriever.retrieve("anything")) == ["a"]


def test_in_a_query_engine_with_citations(facts: Database) -> None:
    engine = RetrieverQueryEngine.from_args(
        AgentDBRetriever(facts, collection="facts", similarity_top_k=3),
        llm=MockLLM(),
        node_postprocessors=[AgentDBRerank(lambda query, texts: ["peanuts" in text for text in texts], top_n=1)],
    )
    answer = engine.query("What may Ann not eat?")
    assert "allergic to peanuts" in str(answer)
    assert ids(answer.source_nodes) == ["f2"]
    assert "allergic to peanuts" in str(asyncio.run(engine.aquery("What may Ann not eat?")))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"collection": "_memories"}, "collection"),
        ({"mode": "both"}, "mode"),
        ({"similarity_top_k": 0}, "similarity_top_k"),
        ({"filters": {"year": 2020}}, "filters"),
        ({"embed_model": "local"}, "embed_model"),
        ({"documents": True, "embed_model": MockEmbedding(embed_dim=4)}, "embed_model"),
        ({"search_options": {"filter": None}}, "search_options"),
    ],
)
def test_arguments_are_checked(db_path: Path, given: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidInputError, match=what):
        AgentDBRetriever(db_path, **given)
    assert not db_path.exists()


# --- over ingested documents --------------------------------------------------------------------------------------------

MANUAL = """# Manual

## Installation

Put the battery into the compartment and close the lid with the small screw.

## Cleaning

Never hold the device under running water; wipe it with a dry cloth.
"""


def test_documents_with_their_places(db: Database) -> None:
    db.documents.ingest(agentdb.Document(MANUAL, source="manual.md", metadata={"product": "lamp"}))
    db.documents.ingest(agentdb.Document("A story about water and a cloth.", source="story.txt"))
    retriever = AgentDBRetriever(db, documents=True, filters=only("product", "lamp"), similarity_top_k=5)
    found = retriever.retrieve("running water and a dry cloth")
    assert found
    assert asyncio.run(retriever.aretrieve("running water and a dry cloth")) == found
    for one in found:
        assert isinstance(one.node, TextNode)
        text = db.documents.text(one.node.ref_doc_id)
        assert text[one.node.start_char_idx : one.node.end_char_idx] == one.node.text
        assert one.metadata["product"] == "lamp"
        assert one.metadata["source"] == "manual.md"
        assert one.metadata["document_id"] == one.node.ref_doc_id
        shown = one.node.get_content(metadata_mode=MetadataMode.LLM)
        assert one.metadata["label"] in shown
        assert one.node.ref_doc_id not in shown
    assert any("dry cloth" in one.text for one in found)
    assert AgentDBRetriever(db, documents=True, collection="others").retrieve("water") == []


# --- over memories ------------------------------------------------------------------------------------------------------


def test_memories_of_one_scope(db: Database) -> None:
    when = datetime(2026, 5, 8, tzinfo=UTC)
    kept = db.memories.remember(
        "I am allergic to nuts.",
        agent_id="ann",
        session_id="s1",
        speaker="Bob",
        occurred_at=when,
        memory_type="semantic",
        metadata={"topic": "food"},
    )
    db.memories.remember("I am allergic to cats.", agent_id="eve", speaker="Bob")
    db.memories.remember("Nuts are cheap today.", agent_id="ann", user_id="bob")
    retriever = AgentDBMemoryRetriever(db, agent_id="ann")
    (found,) = retriever.retrieve("What is Bob allergic to?")
    assert isinstance(found.node, TextNode)
    assert (found.node.node_id, found.text) == (kept.id, "I am allergic to nuts.")
    assert found.metadata["topic"] == "food"
    assert found.metadata["occurred_at"] == when.isoformat()
    assert (found.metadata["agent_id"], found.metadata["session_id"]) == ("ann", "s1")
    shown = found.node.get_content(metadata_mode=MetadataMode.LLM)
    assert "speaker: Bob" in shown
    assert "importance" not in shown
    assert ids(AgentDBMemoryRetriever(db, agent_id="ann", session_id="s2").retrieve("nuts")) == []
    assert ids(AgentDBMemoryRetriever(db, agent_id="ann", types=["episodic"]).retrieve("nuts")) == []
    assert len(AgentDBMemoryRetriever(db, agent_id="ann", user_id="bob").retrieve("nuts")) == 1
    assert (
        ids(AgentDBMemoryRetriever(db, agent_id="ann", filter=field("metadata", "topic") == "x").retrieve("nuts")) == []
    )


def test_what_is_recalled_is_used_unless_told_otherwise(db: Database) -> None:
    kept = db.memories.remember("The key is under the mat.", agent_id="ann")
    (found,) = asyncio.run(AgentDBMemoryRetriever(db, agent_id="ann", reinforce=False).aretrieve("key"))
    memory = db.memories.get(kept.id)
    assert found.node.node_id == kept.id
    assert memory is not None
    before = memory.uses
    asyncio.run(AgentDBMemoryRetriever(db, agent_id="ann").aretrieve("key"))
    memory = db.memories.get(kept.id)
    assert memory is not None
    assert memory.uses == before + 1


# --- the reranking step -------------------------------------------------------------------------------------------------


class Length:
    """A `Reranker`: longer texts are better."""

    def rerank(self, query: str, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.array([len(text) for text in texts], np.float32)


class Cross:
    """What a sentence-transformers ``CrossEncoder`` looks like."""

    def predict(self, pairs: list[tuple[str, str]], *, show_progress_bar: bool) -> list[float]:
        assert not show_progress_bar
        return [float(len(text)) for _, text in pairs]


NODES = [NodeWithScore(node=TextNode(id_=f"n{n}", text="x" * n), score=0.1) for n in (3, 9, 1, 9, 5)]


@pytest.mark.parametrize("reranker", [Length(), Cross(), lambda query, texts: [len(text) for text in texts]])
def test_nodes_are_ordered_by_the_reranker(reranker: Any) -> None:
    step = AgentDBRerank(reranker, top_n=3)
    found = step.postprocess_nodes(NODES, query_str="x")
    assert [(one.node.node_id, one.score) for one in found] == [("n9", 9.0), ("n9", 9.0), ("n5", 5.0)]
    assert found[0].node is NODES[1].node
    assert [one.score for one in NODES] == [0.1] * 5
    assert asyncio.run(step.apostprocess_nodes(NODES, query_str="x")) == found
    assert len(AgentDBRerank(reranker).postprocess_nodes(NODES, query_str="x")) == 5
    assert step.postprocess_nodes([], query_str="x") == []


def test_the_reranker_sees_what_embeddings_see() -> None:
    seen: list[str] = []

    def reranker(query: str, texts: list[str]) -> list[float]:
        seen.extend(texts)
        return [0.0] * len(texts)

    one = TextNode(text="text", metadata={"title": "T", "secret": "S"}, excluded_embed_metadata_keys=["secret"])
    AgentDBRerank(reranker).postprocess_nodes([NodeWithScore(node=one)], query_str="x")
    AgentDBRerank(reranker, metadata_mode=MetadataMode.NONE).postprocess_nodes([NodeWithScore(node=one)], query_str="x")
    assert seen == ["title: T\n\ntext", "text"]


def test_an_async_step_does_not_block_the_loop() -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(query: str, texts: list[str]) -> list[float]:
        begun.set()
        assert release.wait(30)
        return [0.0] * len(texts)

    async def life() -> None:
        waiting = asyncio.create_task(AgentDBRerank(slow).apostprocess_nodes(NODES, query_str="x"))
        await asyncio.to_thread(begun.wait)
        release.set()  # only a loop that goes on gets here
        assert len(await waiting) == 5

    asyncio.run(life())


def test_what_a_reranking_step_refuses() -> None:
    with pytest.raises(InvalidInputError, match="reranker"):
        AgentDBRerank(3)
    with pytest.raises(InvalidInputError, match="top_n"):
        AgentDBRerank(Length(), top_n=0)
    with pytest.raises(InvalidInputError, match="query"):
        AgentDBRerank(Length()).postprocess_nodes(NODES)
    for bad in ([1.0], [float("nan")] * 5, "many"):
        with pytest.raises(InvalidInputError, match="the reranker must return"):
            AgentDBRerank(lambda query, texts, bad=bad: bad).postprocess_nodes(NODES, query_str="x")


# --- the embedding model ------------------------------------------------------------------------------------------------


def test_an_embedder_as_embedding_model() -> None:
    hashing = HashingEmbedder(64)
    embed = AgentDBEmbedding(hashing)
    texts = ["one text", "another text", "cello"]
    np.testing.assert_array_equal(embed.get_text_embedding_batch(texts), hashing.embed(texts))
    np.testing.assert_array_equal(embed.get_text_embedding("cello"), hashing.embed(["cello"])[0])
    np.testing.assert_array_equal(embed.get_query_embedding("cello"), hashing.embed(["cello"], "query")[0])

    async def life() -> None:
        np.testing.assert_array_equal(await embed.aget_text_embedding_batch(texts), hashing.embed(texts))
        np.testing.assert_array_equal(await embed.aget_query_embedding("cello"), hashing.embed(["cello"], "query")[0])
        np.testing.assert_array_equal(await embed.aget_text_embedding("cello"), hashing.embed(["cello"])[0])

    asyncio.run(life())
    assert embed.model_name == hashing.name
    assert embed.embedder is hashing


def test_queries_are_embedded_as_queries_and_texts_in_batches() -> None:
    class Recorder:
        name, dimension, max_tokens = "recorder", 2, 100

        def __init__(self) -> None:
            self.calls: list[tuple[int, str]] = []

        def embed(self, texts: Sequence[str], kind: str = "document") -> Any:
            self.calls.append((len(texts), kind))
            return np.ones((len(texts), 2), np.float32)

    recorder = Recorder()
    embed = AgentDBEmbedding(recorder, embed_batch_size=4)  # type: ignore[arg-type]
    embed.get_text_embedding_batch([f"t{i}" for i in range(10)])
    embed.get_query_embedding("q")
    assert recorder.calls == [(4, "document"), (4, "document"), (2, "document"), (1, "query")]


def test_an_embedding_model_by_name_is_loaded_when_it_is_used() -> None:
    embed = AgentDBEmbedding("hashing")
    again = AgentDBEmbedding.from_dict(embed.to_dict())
    assert embed.get_text_embedding("x") == again.get_text_embedding("x")
    assert embed.to_payload()["model_name"] == "hashing"
    assert AgentDBEmbedding().model_name == "local"
    with pytest.raises(InvalidInputError, match="embedder"):
        AgentDBEmbedding(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="installed"):
        AgentDBEmbedding("nowhere").get_text_embedding("x")
    with pytest.raises(InvalidInputError, match="surrogate"):
        embed.get_text_embedding("\ud800")


def test_an_index_with_the_bundled_model(db_path: Path) -> None:
    local = agentdb.load_embedder("local")
    embed: BaseEmbedding = AgentDBEmbedding(local)
    with AgentDBVectorStore(db_path) as store:
        index = VectorStoreIndex.from_vector_store(store, embed_model=embed)
        for key, (text, metadata) in FACTS.items():
            index.insert(Document(text=text, metadata=metadata, doc_id=key))
        (best,) = index.as_retriever(similarity_top_k=1).retrieve("Which city is her home?")
        assert best.node.ref_doc_id == "f1"
        hybrid = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=1, alpha=0.5)
        assert hybrid.retrieve("musical instrument cello")[0].node.ref_doc_id == "f3"
