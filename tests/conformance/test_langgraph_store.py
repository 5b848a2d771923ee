"""The suite of stores, on LangGraph's own and on ours: in memory, in the tables, hot and cold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.memory import InMemoryStore
from support.store_suite import StoreTests

import agentdb
from agentdb import Config
from langgraph_agentdb import AgentDBStore, store_items

HOT = Config(maintenance=False)
COLD = Config(flush_rows=1, flush_age_s=0.01, tick_s=0.005)


class TestInMemoryStore(StoreTests):
    """The suite asks for nothing that LangGraph's own store does not do."""

    @pytest.fixture
    def make_store(self) -> Any:
        return InMemoryStore


class TestAgentDBStore(StoreTests):
    """Small scopes, which are held in memory."""

    config = HOT

    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Iterator[Any]:
        made: list[AgentDBStore] = []
        with agentdb.open(tmp_path / "db", config=self.config) as db:

            def make(**options: Any) -> AgentDBStore:
                made.append(AgentDBStore(db, **options))
                return made[-1]

            yield make
            for one in made:
                one.close()


@pytest.mark.slow
class TestAgentDBStoreCold(TestAgentDBStore):
    """The same while rows go cold."""

    config = COLD


class LargeScopes(TestAgentDBStore):
    """Scopes that are too large to be held in memory."""

    __test__ = False

    @pytest.fixture(autouse=True)
    def nothing_is_small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_items, "_RESIDENT_ITEMS", -1)


@pytest.mark.slow
class TestAgentDBStoreLarge(LargeScopes):
    """In SQLite."""

    __test__ = True


class TestAgentDBStoreLargeCold(LargeScopes):
    """In Lance, or on the way there."""

    __test__ = True
    config = COLD
