"""What a review of the LlamaIndex integration broke: copies that became another model, filters over rows of others, and the like."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import Document, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from support.llama_index_suite import node, only

import agentdb
from agentdb import Database, InvalidInputError
from agentdb_embedders import HashingEmbedder
from llama_index_agentdb import (
    AgentDBChatStore,
    AgentDBDocumentStore,
    AgentDBEmbedding,
    AgentDBKVStore,
    AgentDBMemoryRetriever,
    AgentDBRerank,
    AgentDBRetriever,
    AgentDBVectorStore,
)


@pytest.fixture
def db(db_path: Path) -> Iterator[Database]:
    with agentdb.open(db_path, embedder=HashingEmbedder(16)) as opened:
        yield opened


# --- copies of components -------------------------------------------------------------------------------------------------


def test_a_copy_of_an_embedding_model_has_the_same_embedder() -> None:
    hashing = HashingEmbedder(16)
    embed = AgentDBEmbedding(hashing, embed_batch_size=7)
    expected = embed.get_text_embedding("cello")
    for made in (copy.copy(embed), copy.deepcopy(embed)):
        assert made.embedder is hashing
    pickled = pickle.loads(pickle.dumps(embed))
    assert (pickled.get_text_embedding("cello"), pickled.embed_batch_size) == (expected, 7)
    assert pickled.model_name == embed.model_name
    by_name = pickle.loads(pickle.dumps(AgentDBEmbedding("hashing")))
    assert (by_name.embedder_name, by_name.model_name) == ("hashing", "hashing")


def test_an_embedding_model_is_never_made_anew_of_another_embedder() -> None:
    embed = AgentDBEmbedding(HashingEmbedder(16))
    with pytest.raises(InvalidInputError, match="embedder"):
        AgentDBEmbedding.from_dict(embed.to_dict())
    again = AgentDBEmbedding.from_dict(embed.to_dict(), embedder=embed.embedder)
    assert again.model_name == embed.model_name
    assert AgentDBEmbedding.from_dict(AgentDBEmbedding().to_dict()).model_name == "local"


@pytest.mark.slow
def test_workers_of_a_pipeline_embed_with_the_same_embedder() -> None:
    embed = AgentDBEmbedding(HashingEmbedder(16))
    documents = [Document(text=f"text {i}", id_=f"d{i}") for i in range(2)]
    made = IngestionPipeline(transformations=[embed]).run(documents=documents, num_workers=2)
    assert {one.get_content(): one.embedding for one in made} == {
        one.text: embed.get_text_embedding(one.get_content("embed")) for one in documents
    }


class _WithLock:
    """A reranker that holds what cannot be copied, as models do."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in texts]


def _by_length(query: str, texts: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def test_a_copy_of_a_reranking_step_has_the_same_reranker() -> None:
    nodes = [NodeWithScore(node=TextNode(id_=str(n), text="x" * n)) for n in (1, 3, 2)]
    for reranker in (_WithLock(), _by_length):
        step = AgentDBRerank(reranker, top_n=2)
        for made in (copy.copy(step), copy.deepcopy(step)):
            assert [one.node.node_id for one in made.postprocess_nodes(nodes, query_str="q")] == ["3", "2"]
    again = pickle.loads(pickle.dumps(AgentDBRerank(_by_length, top_n=2)))
    assert [one.node.node_id for one in again.postprocess_nodes(nodes, query_str="q")] == ["3", "2"]
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(AgentDBRerank(_WithLock()))


def test_a_pickle_leads_to_the_same_database_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with (
        AgentDBVectorStore("agent.db") as store,
        AgentDBKVStore("agent.db") as pairs,
        AgentDBChatStore("agent.db") as chats,
    ):
        store.add([node("a")])
        assert store.path == chats.db_or_path == os.fspath(tmp_path / "agent.db")
        pickles = pickle.dumps(store), pickle.dumps(pairs)
        pairs.put("k", {"v": 1})
        monkeypatch.chdir(tmp_path / "elsewhere")
        again, again_pairs = map(pickle.loads, pickles)
        with again, again_pairs:
            assert [one.node_id for one in again.get_nodes()] == ["a"]
            assert again_pairs.get("k") == {"v": 1}
    assert not list((tmp_path / "elsewhere").iterdir())


# --- stores ---------------------------------------------------------------------------------------------------------------


def test_of_nodes_with_one_id_the_last_one_counts_in_its_place(db: Database) -> None:
    def part(node_id: str, said: str) -> TextNode:
        return node(node_id, document="d", metadata={"said": said})

    ours, reference = AgentDBDocumentStore(db), SimpleDocumentStore()
    for store in (ours, reference):
        store.add_documents([part("a", "first"), part("b", "then"), part("a", "last")])
    known, expected = ours.get_ref_doc_info("d"), reference.get_ref_doc_info("d")
    assert known is not None
    assert expected is not None
    assert known.metadata == expected.metadata == {"said": "last"}
    assert sorted(known.node_ids) == sorted(expected.node_ids)


# --- filters --------------------------------------------------------------------------------------------------------------

IDS = {"small": 7, "great": 2**60, "greater": 2**60 + 4096, "many": [7, 2**60], "text": "1152921504606846976"}
"""What a chat service gives as ids; in an ordinary collection numbers are float64, which tells these apart."""


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        (FilterOperator.EQ, 2**60, {"great"}),
        (FilterOperator.NE, 2**60, {"small", "greater", "many", "text"}),
        (FilterOperator.IN, [2**60, 7], {"small", "great"}),
        (FilterOperator.NIN, [2**60, 7], {"greater", "many", "text"}),
        (FilterOperator.GT, 2**60, {"greater"}),
        (FilterOperator.GTE, 2**60, {"great", "greater"}),
        (FilterOperator.LT, 2**60 + 4096, {"small", "great"}),
        (FilterOperator.LTE, 2**60, {"small", "great"}),
        (FilterOperator.CONTAINS, 2**60, {"many"}),
        (FilterOperator.ANY, [2**60], {"many"}),
        (FilterOperator.ALL, [2**60, 7], {"many"}),
    ],
)
def test_great_numbers_in_rows_of_others_are_found(
    db: Database, operator: FilterOperator, value: int | list[int], expected: set[str]
) -> None:
    db.collection("messages").upsert(
        list(IDS), texts=["a message"] * len(IDS), metadata=[{"id": one} for one in IDS.values()]
    )
    filters = only("id", value, operator)
    with AgentDBRetriever(db, collection="messages", mode="text", filters=filters) as retriever:
        assert {one.node.node_id for one in retriever.retrieve("message")} == expected
    with AgentDBVectorStore(db, collection="messages") as store:
        assert {one.node_id for one in store.get_nodes(filters=filters)} == expected
        store.add([node(key, [1.0] * 16, metadata={"id": one}) for key, one in IDS.items()])
        assert {one.node_id for one in store.get_nodes(filters=filters)} == expected


def test_filters_that_exclude_nothing_delete_nothing(db: Database) -> None:
    empty, some = MetadataFilters(filters=[]), MetadataFilter(key="k", value=1)
    with AgentDBVectorStore(db) as store:
        store.add([node("a"), node("b", metadata={"k": 1})])
        for filters in (
            empty,
            MetadataFilters(filters=[empty, empty]),
            MetadataFilters(filters=[MetadataFilters(filters=[empty])], condition=FilterCondition.OR),
            MetadataFilters(filters=[some, empty], condition=FilterCondition.OR),
        ):
            with pytest.raises(InvalidInputError, match="clear"):
                store.delete_nodes(filters=filters)
        with pytest.raises(InvalidInputError, match="filters must be MetadataFilters"):
            store.delete_nodes(filters=[some])  # type: ignore[arg-type]
        assert len(store.get_nodes()) == 2
        store.delete_nodes(filters=MetadataFilters(filters=[some, empty]))
        assert [one.node_id for one in store.get_nodes()] == ["a"]


def test_an_unknown_mode_is_named(db: Database) -> None:
    with AgentDBVectorStore(db) as store, pytest.raises(InvalidInputError, match="mode must be"):
        store.query(VectorStoreQuery(query_embedding=[1.0], mode="nearest"))  # type: ignore[arg-type]


def test_an_empty_question_finds_nothing(db: Database) -> None:
    db.memories.remember("Ann likes cats", agent_id="a")
    for retriever in (AgentDBMemoryRetriever(db, agent_id="a"), AgentDBRetriever(db, documents=True)):
        with retriever:
            assert retriever.retrieve("") == []
            assert asyncio.run(retriever.aretrieve("")) == []


# --- rows of others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["no json", "5", "[]", "null", '{"metadata": "no dict"}', '{"text_resource": 5}', '{"class_name": []}']
)
def test_a_row_that_holds_no_node_is_a_text_node_and_spoils_no_query(db: Database, content: str) -> None:
    with AgentDBVectorStore(db) as store:
        store.add([node("a"), node("b")])
        db.collection("llama_index").update(["b"], metadata=[{"_node_content": content, "k": 1}])
        found = store.query(VectorStoreQuery(query_embedding=[1.0, 0.0, 0.0, 0.0], similarity_top_k=5))
        assert found.nodes is not None
        assert {(one.node_id, one.get_content()) for one in found.nodes} == {("a", "text of a"), ("b", "text of b")}
        (other,) = store.get_nodes(["b"])
        assert type(other) is TextNode


def test_a_node_has_the_id_of_its_row(db: Database) -> None:
    with AgentDBVectorStore(db) as store:
        store.add([node("a", metadata={"k": 1})])
        rows = db.collection("llama_index")
        (row,) = rows.scan(include=("text", "metadata", "vectors"))
        rows.upsert(["copy"], [row.vector], texts=["changed"], metadata=[row.metadata])
        assert {(one.node_id, one.get_content()) for one in store.get_nodes()} == {
            ("a", "text of a"),
            ("copy", "changed"),
        }


def test_any_number_of_messages_may_be_asked_for(db: Database) -> None:
    async def life() -> None:
        async with AgentDBChatStore(db) as chats:
            await chats.add_messages("chat", [ChatMessage(str(i)) for i in range(3)])
            found = await chats.get_messages("chat", limit=sys.maxsize, offset=1)
            assert [one.content for one in found] == ["1", "2"]
            assert await chats.get_messages("chat", limit=1, offset=2**64) == []
            assert len(await chats.archive_oldest_messages("chat", 2**64)) == 3

    asyncio.run(life())
