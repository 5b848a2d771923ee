"""LlamaIndex's own indexes, pipelines and agents over one path: closed, killed, opened in a new process, the same answers."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, Document, MetadataMode, TransformComponent
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from support.llama_index_agents import DOCUMENTS, SUBJECTS, answers, build, context, converse, pipeline, talk

import agentdb
from agentdb import Config
from agentdb_embedders import HashingEmbedder
from llama_index_agentdb import (
    AgentDBDocumentStore,
    AgentDBEmbedding,
    AgentDBIndexStore,
    AgentDBIngestionCache,
    AgentDBRetriever,
    AgentDBVectorStore,
)

# LlamaIndex looks at every attribute of an agent, deprecated ones too.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:inspect")

TESTS = Path(__file__).parents[1]


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=Config(maintenance=False), embedder=HashingEmbedder()) as made:
        yield made


def in_a_new_process(name: str, *args: Any) -> Any:
    command = [sys.executable, "-m", "support.llama_index_agents", name, *map(str, args)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- indexes ------------------------------------------------------------------------------------------------------------------


def test_every_index_answers_alike_in_a_new_process(db_path: Path) -> None:
    build(db_path)
    here, there = answers(db_path), in_a_new_process("answers", db_path)
    for question in here:
        if question.startswith("keywords"):  # which are a set: LlamaIndex has equally good nodes in an order of chance
            here[question] = sorted(here[question]["sources"])
            there[question] = sorted(there[question]["sources"])
    assert here == there
    assert {one[1]["subject"] for one in here["keywords: orchard"]} == {"orchard"}
    assert {one[1]["subject"] for one in here["keywords: Who speaks of the glacier?"]} == set(SUBJECTS)
    best = {question: found["sources"][0][1]["subject"] for question, found in here.items() if question[0] == "v"}
    assert best["vectors: When was the violin described?"] == "violin"
    assert best["vectors: Who speaks of the glacier?"] == "glacier"
    everything = {one[1]["subject"] for one in here["summary: orchard"]["sources"]}
    assert everything == set(SUBJECTS)
    assert "described in 1901" in here["vectors: When was the violin described?"]["text"]


@pytest.fixture
def stores(db: agentdb.Database) -> StorageContext:
    return context(db)


def test_an_index_changes_by_document(db: agentdb.Database, stores: StorageContext) -> None:
    embedding = AgentDBEmbedding("hashing")
    index = VectorStoreIndex.from_documents(
        DOCUMENTS, storage_context=stores, embed_model=embedding, store_nodes_override=True
    )

    def found(question: str) -> set[str | None]:
        return {one.node.ref_doc_id for one in index.as_retriever(similarity_top_k=20).retrieve(question)}

    assert found("harbour") == set(SUBJECTS)
    index.delete_ref_doc("harbour", delete_from_docstore=True)
    assert found("harbour") == set(SUBJECTS) - {"harbour"}
    assert not stores.docstore.ref_doc_exists("harbour")
    index.insert(Document(id_="meadow", text="The meadow is green.", metadata={"subject": "meadow"}))
    changed = Document(id_="violin", text="The violin is a viola.", metadata={"subject": "violin"})
    assert index.refresh_ref_docs([changed, DOCUMENTS[2]]) == [True, False]
    assert found("meadow") == {*SUBJECTS, "meadow"} - {"harbour"}
    assert {one.text for one in stores.docstore.docs.values() if one.ref_doc_id == "violin"} == {
        "The violin is a viola."
    }
    again = load_index_from_storage(context(db), embed_model=embedding)
    assert again.index_id == index.index_id
    assert {one.node.ref_doc_id for one in again.as_retriever(similarity_top_k=20).retrieve("meadow")} == found(
        "meadow"
    )


def test_a_query_engine_of_a_retriever_with_filters(db: agentdb.Database, stores: StorageContext) -> None:
    index = VectorStoreIndex.from_documents(DOCUMENTS, storage_context=stores, embed_model=AgentDBEmbedding("hashing"))
    late = MetadataFilters(filters=[MetadataFilter(key="year", operator=FilterOperator.GTE, value=1_904)])
    engine = RetrieverQueryEngine.from_args(index.as_retriever(filters=late, similarity_top_k=20), llm=MockLLM())
    response = engine.query("When was the violin described?")
    assert {one.node.metadata["subject"] for one in response.source_nodes} == set(SUBJECTS[4:])
    assert asyncio.run(engine.aquery("When was the violin described?")).response == response.response

    retriever = AgentDBRetriever(
        db, collection="llama_index", embed_model=AgentDBEmbedding("hashing"), similarity_top_k=2
    )
    response = RetrieverQueryEngine.from_args(retriever, llm=MockLLM()).query("When was the violin described?")
    assert response.source_nodes[0].node.metadata["subject"] == "violin"
    assert "described in 1901" in str(response)


# --- pipelines ----------------------------------------------------------------------------------------------------------------


def stored(db: agentdb.Database) -> dict[str, list[str]]:
    """Document -> the texts of its nodes in the vector store."""
    found: dict[str, list[str]] = {}
    with AgentDBVectorStore(db, collection="ingested") as store:
        for node in store.get_nodes():
            found.setdefault(str(node.ref_doc_id), []).append(node.get_content(MetadataMode.NONE))
    return {one: sorted(its) for one, its in found.items()}


def known(db: agentdb.Database) -> set[str]:
    with AgentDBDocumentStore(db, "ingested") as documents:
        return set(documents.docs)


@pytest.mark.parametrize("half", ["sync", "async"])
def test_a_pipeline_upserts_and_deletes(db: agentdb.Database, half: str) -> None:
    def run(documents: list[Document], strategy: str = "upserts") -> list[BaseNode]:
        made = pipeline(db, strategy)
        return list(made.run(documents=documents) if half == "sync" else asyncio.run(made.arun(documents=documents)))

    first = run(DOCUMENTS[:4])
    before = stored(db)
    assert set(before) == known(db) == set(SUBJECTS[:4])
    assert sum(map(len, before.values())) == len(first) > 4
    assert run(DOCUMENTS[:4]) == []

    changed = Document(id_="violin", text="The violin is a viola.", metadata={"subject": "violin"})
    assert {one.ref_doc_id for one in run([DOCUMENTS[0], changed, DOCUMENTS[5]])} == {"violin", "parliament"}
    after = stored(db)
    assert after["violin"] == ["The violin is a viola."]
    assert {one: its for one, its in after.items() if one in ("harbour", "volcano", "orchard")} == {
        one: its for one, its in before.items() if one != "violin"
    }

    assert run([DOCUMENTS[0], changed], "upserts_and_delete") == []
    assert set(stored(db)) == known(db) == {"harbour", "violin"}
    twin = Document(id_="twin", text="The violin is a viola.", metadata={"subject": "violin"})
    assert run([twin], "duplicates_only") == []
    assert run([DOCUMENTS[3], twin], "duplicates_only") != []
    assert set(stored(db)) == {"harbour", "violin", "orchard"}


class Counting(TransformComponent):
    """Counts how often it is called."""

    calls: list[int] = []  # noqa: RUF012 - a pydantic field

    def __call__(self, nodes: Any, **_: Any) -> Any:
        self.calls.append(len(nodes))
        return nodes

    def to_dict(self, **_: Any) -> dict[str, Any]:
        return {"class_name": "Counting"}


def test_what_was_transformed_once_comes_from_the_cache(db: agentdb.Database) -> None:
    counting = Counting()
    found = []
    for _ in range(2):
        made = pipeline(db)
        made.docstore = made.vector_store = None
        made.transformations = [*made.transformations, counting]
        found.append(made.run(documents=DOCUMENTS))
    assert len(counting.calls) == 1
    assert found[0] == found[1]
    assert all(one.embedding for one in found[1])


@pytest.mark.slow
def test_workers_of_a_pipeline_share_the_cache(db: agentdb.Database) -> None:
    """Without a splitter: the workers of this release of LlamaIndex never come back with one, whatever the stores."""
    with AgentDBIngestionCache(db) as cache:
        made = IngestionPipeline(transformations=[AgentDBEmbedding("hashing")], cache=cache)
        found = made.run(documents=[one.model_copy() for one in DOCUMENTS], num_workers=2)
        assert all(one.embedding for one in found)
        assert len(cache.cache.get_all(cache.collection)) == 2


@pytest.mark.parametrize("kind", ["plain", pytest.param("transaction", marks=pytest.mark.slow)])
def test_a_pipeline_that_was_killed_is_run_again(db_path: Path, kind: str) -> None:
    command = [sys.executable, "-m", "support.llama_index_agents", "ingest", str(db_path), kind]
    killed = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with agentdb.open(db_path) as db:
        assert known(db) == set()
        # Without a transaction the vectors are there and the documents are not.
        assert set(stored(db)) == (set() if kind == "transaction" else set(SUBJECTS))
        # What was made is in the cache, its ids too, so that nothing is there twice.
        nodes = pipeline(db).run(documents=DOCUMENTS)
        found = stored(db)
        assert set(found) == known(db) == set(SUBJECTS)
        assert sum(map(len, found.values())) == len(nodes)
        assert pipeline(db).run(documents=DOCUMENTS) == []


# --- agents -------------------------------------------------------------------------------------------------------------------

SMALL_TALK = [f"On day {i} it rained from the morning to the evening." for i in range(6)]


@pytest.mark.parametrize("kind", ["agent", pytest.param("workflow", marks=pytest.mark.slow)])
def test_an_agent_remembers_across_processes(db_path: Path, kind: str) -> None:
    said = ["Note that the password is swordfish.", "How much is 6 times 7?", *SMALL_TALK, "What is the password?"]
    here = talk(str(db_path), kind, "monday", *said)
    assert here == ["I see.", "It is 42.", *["I see."] * 6, "It is swordfish."]
    there = in_a_new_process("talk", db_path, kind, "monday", "What is the password?", "How much is 3 times 5?")
    assert there == ["It is swordfish.", "It is 15."]
    with agentdb.open(db_path, embedder=HashingEmbedder()) as db:
        kept = {one.content for one in db.memories.list(agent_id="agent", session_id="monday")}
        assert "Note that the password is swordfish." in kept
        # Another session is told nothing of it.
        assert asyncio.run(converse(db, kind, "tuesday", ["What is the password?"])) == ["Nobody told me."]
        assert asyncio.run(converse(db, kind, "monday", ["What is the password?"])) == ["It is swordfish."]


@pytest.mark.parametrize("kind", ["agent", "workflow"])
def test_agents_at_once_are_not_mixed_up(db: agentdb.Database, kind: str) -> None:
    async def session(i: int) -> list[str]:
        said = [f"Note that the password is word{i}.", *SMALL_TALK, "What is the password?"]
        return await converse(db, kind, f"session {i}", said)

    async def run() -> list[list[str]]:
        return await asyncio.gather(*(session(i) for i in range(4)))

    assert [one[-1] for one in asyncio.run(run())] == [f"It is word{i}." for i in range(4)]


# --- the loop -----------------------------------------------------------------------------------------------------------------


def test_all_stores_of_a_path_are_one_database(db_path: Path) -> None:
    """Each opened by the path, all at once, and each closed by itself."""
    vectors, documents, indexes = AgentDBVectorStore(db_path), AgentDBDocumentStore(db_path), AgentDBIndexStore(db_path)
    stores = StorageContext.from_defaults(vector_store=vectors, docstore=documents, index_store=indexes)
    VectorStoreIndex.from_documents(DOCUMENTS, storage_context=stores, embed_model=MockEmbedding(embed_dim=8))
    with agentdb.open(db_path) as db:
        assert db.collections() == ["llama_index"]
        assert db.verify().ok
    vectors.close()
    assert indexes.index_structs() != []
    documents.close()
    assert len(indexes.index_structs()) == 1
    indexes.close()
