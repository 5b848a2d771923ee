"""LangChain's own tests of its integrations, every class of them that applies to us."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import BaseCache
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import DocumentIndex
from langchain_core.retrievers import BaseRetriever
from langchain_core.stores import BaseStore
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    AsyncCacheTestSuite,
    BaseStoreAsyncTests,
    BaseStoreSyncTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    SyncCacheTestSuite,
    VectorStoreIntegrationTests,
)
from langchain_tests.integration_tests.indexer import AsyncDocumentIndexTestSuite, DocumentIndexerTestSuite

import agentdb
from agentdb_embedders import HashingEmbedder
from langchain_agentdb import (
    AgentDBByteStore,
    AgentDBDocumentIndex,
    AgentDBEmbeddings,
    AgentDBLLMCache,
    AgentDBMemoryRetriever,
    AgentDBRetriever,
    AgentDBSemanticCache,
    AgentDBVectorStore,
)


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        with AgentDBVectorStore(self.get_embeddings(), tmp_path / "db") as store:
            yield store


class TestVectorStoreInAnOpenDatabase(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        with agentdb.open(tmp_path / "db") as db:
            db.collection("documents", dimension=6, metric="euclidean")
            with AgentDBVectorStore(self.get_embeddings(), db, collection="documents") as store:
                yield store


@pytest.fixture
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """A database that has something to find, for tests that make retrievers by themselves."""
    said = ["Ann lives in Lisbon", "Bob lives in Porto", "Carol lives in Lisbon, too", "Dave lives nowhere"]
    with agentdb.open(tmp_path / "db", embedder=HashingEmbedder(64)) as db:
        with AgentDBVectorStore(None, db, collection="people") as store:
            store.add_texts(said)
        for one in said:
            db.memories.remember(one, agent_id="ann")
            db.documents.ingest(agentdb.Document(one), collection="people")
        request.cls.db = db
        yield


@pytest.mark.usefixtures("filled")
class TestRetrieverOfACollection(RetrieversIntegrationTests):
    db: agentdb.Database

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return AgentDBRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"db_or_path": self.db, "collection": "people"}

    @property
    def retriever_query_example(self) -> str:
        return "Who lives in Lisbon?"


@pytest.mark.usefixtures("filled")
class TestRetrieverOfDocuments(RetrieversIntegrationTests):
    db: agentdb.Database

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return AgentDBRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"db_or_path": self.db, "documents": True, "collection": "people"}

    @property
    def retriever_query_example(self) -> str:
        return "Who lives in Lisbon?"


@pytest.mark.usefixtures("filled")
class TestMemoryRetriever(RetrieversIntegrationTests):
    db: agentdb.Database

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return AgentDBMemoryRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"db_or_path": self.db, "agent_id": "ann"}

    @property
    def retriever_query_example(self) -> str:
        return "Who lives in Lisbon?"


class TestByteStore(BaseStoreSyncTests[bytes]):
    @pytest.fixture
    def kv_store(self, tmp_path: Path) -> Iterator[BaseStore[str, bytes]]:
        with AgentDBByteStore(tmp_path / "db") as store:
            yield store

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return b"", b"\0\xff", b"foo" * 1000


class TestByteStoreAsync(BaseStoreAsyncTests[bytes]):
    @pytest.fixture
    async def kv_store(self, tmp_path: Path) -> AsyncIterator[BaseStore[str, bytes]]:
        async with AgentDBByteStore(tmp_path / "db") as store:
            yield store

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return b"", b"\0\xff", b"foo" * 1000


class TestLLMCache(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Iterator[BaseCache]:
        with AgentDBLLMCache(tmp_path / "db") as cache:
            yield cache


class TestLLMCacheAsync(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, tmp_path: Path) -> AsyncIterator[BaseCache]:
        async with AgentDBLLMCache(tmp_path / "db") as cache:
            yield cache


class TestSemanticCache(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Iterator[BaseCache]:
        with AgentDBSemanticCache(DeterministicFakeEmbedding(size=64), tmp_path / "db") as cache:
            yield cache


class TestSemanticCacheAsync(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, tmp_path: Path) -> AsyncIterator[BaseCache]:
        async with AgentDBSemanticCache(HashingEmbedder(64), tmp_path / "db") as cache:
            yield cache


class TestDocumentIndex(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[DocumentIndex]:
        with AgentDBDocumentIndex(DeterministicFakeEmbedding(size=6), tmp_path / "db") as index:
            yield index


class TestDocumentIndexAsync(AsyncDocumentIndexTestSuite):
    @pytest.fixture
    async def index(self, tmp_path: Path) -> AsyncIterator[DocumentIndex]:
        async with AgentDBDocumentIndex(DeterministicFakeEmbedding(size=6), tmp_path / "db") as index:
            yield index


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return AgentDBEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embedder": HashingEmbedder(32)}


class TestEmbeddingsOfTheInstalledModel(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return AgentDBEmbeddings
