"""LangChain's own tests of vector stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

import agentdb
from langchain_agentdb import AgentDBVectorStore


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
