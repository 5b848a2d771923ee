"""``AgentDBVectorStore`` through the suite for vector stores, and LlamaIndex's own store, to show that the suite is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import MetadataFilters
from support.llama_index_suite import FilterSuite, OperatorSuite, VectorStoreSuite

from llama_index_agentdb import AgentDBVectorStore


class TestSimpleVectorStore(VectorStoreSuite):
    """The reference itself."""

    raises_on_other_types = True
    nests = False
    stores_nodes = False
    honours_doc_ids = False
    empty_ids_mean_any = False
    deletes_all_by_no_argument = True

    @pytest.fixture
    def store(self) -> SimpleVectorStore:
        return SimpleVectorStore()


class TestAgentDBVectorStore(VectorStoreSuite):
    @pytest.fixture
    def store(self, db_path: Path) -> Iterator[AgentDBVectorStore]:
        with AgentDBVectorStore(db_path) as opened:
            yield opened

    def check_further(self, store: Any, filters: MetadataFilters, expected: set[str]) -> None:
        # In memory, where queries filter, and in the tables, where everything else does.
        assert {one.node_id for one in store.get_nodes(filters=filters)} == expected


class TestOperatorsAtRest(OperatorSuite):
    """On nodes that lie in Lance."""

    store = TestAgentDBVectorStore.store
    check_further = TestAgentDBVectorStore.check_further

    def settle(self, store: Any) -> None:
        store.client.optimize()


@pytest.mark.slow
class TestOperatorsOnPromotedKeys(TestOperatorsAtRest):
    """On a key that has a column of its own, for the numbers under it."""

    def settle(self, store: Any) -> None:
        store.client.collection("llama_index").promote("k", float)
        super().settle(store)


@pytest.mark.slow
class TestFiltersAtRest(TestOperatorsAtRest, FilterSuite):
    """All filters, on nodes that lie in Lance."""
