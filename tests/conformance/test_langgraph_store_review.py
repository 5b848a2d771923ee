"""What users may do to AgentDBStore, AgentDBSaver and AgentDBCache that their suites do not: odd input, odd moments, odd databases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import GetOp, ListNamespacesOp, PutOp, SearchOp
from support.store_suite import DIMS, embed

import agentdb
from agentdb import AccessDeniedError, Config
from langgraph_agentdb import AgentDBCache, AgentDBSaver, AgentDBStore, store_items

QUIET = Config(maintenance=False)
INDEX = {"dims": DIMS, "embed": embed, "fields": ["text"]}


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=QUIET) as opened:
        yield opened


@pytest.fixture(params=["resident", "tables"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tables":
        monkeypatch.setattr(store_items, "_RESIDENT_ITEMS", -1)
    return request.param


def names(found: Any) -> list[str]:
    return [one.key for one in found]


# ---------------------------------------------------------------------------------------------------- read-only databases


def test_a_read_only_database_without_tables_is_empty_to_readers_and_closed_to_writers(db_path):
    agentdb.open(db_path).close()
    thread: Any = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
    with agentdb.open(db_path, read_only=True) as db:
        saver, cache = AgentDBSaver(db), AgentDBCache(db)
        assert saver.get_tuple(thread) is None
        assert list(saver.list(None)) == list(saver.list(thread)) == []
        assert saver.get_delta_channel_history(config=thread, channels=["a", "b"]) == {
            "a": {"writes": []},
            "b": {"writes": []},
        }
        assert cache.get([(("n",), "k")]) == {}
        for store in (AgentDBStore(db), AgentDBStore(db, index=INDEX)):
            read = [GetOp(("a",), "k"), SearchOp(("a",)), SearchOp(("a",), query="x"), ListNamespacesOp()]
            assert store.batch(read) == [None, [], [], []]
            with pytest.raises(AccessDeniedError):
                store.batch([*read, PutOp(("a",), "k", {"text": "x"})])
        with pytest.raises(AccessDeniedError):
            saver.put_writes({"configurable": {**thread["configurable"], "checkpoint_id": "1"}}, [("a", 1)], "task")
        with pytest.raises(AccessDeniedError):
            cache.set({(("n",), "k"): (1, None)})


def test_a_read_only_database_without_vectors_finds_nothing_by_meaning(db_path, where):
    with AgentDBStore(db_path) as store:
        store.put(("a",), "k", {"text": "red apple"}, ttl=5)
    with agentdb.open(db_path, read_only=True) as db:
        for index in (INDEX, {**INDEX, "mode": "hybrid"}):
            store = AgentDBStore(db, index=index)
            assert store.search(("a",), query="red apple") == []
            assert names(store.search(("a",))) == ["k"]
            assert store.get(("a",), "k").value == {"text": "red apple"}
    with AgentDBStore(db_path, index=INDEX) as store:
        store.put(("a",), "k", {"text": "red apple"})
    with agentdb.open(db_path, read_only=True) as db:
        assert names(AgentDBStore(db, index=INDEX).search(("a",), query="red apple")) == ["k"]


# --------------------------------------------------------------------------------------------------------------- filters


class _Asked(Mapping[str, Any]):
    """A mapping that looks like every other of its class."""

    def __init__(self, **wanted: Any) -> None:
        self._wanted = wanted

    def __getitem__(self, key: str) -> Any:
        return self._wanted[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)

    def __repr__(self) -> str:
        return "_Asked(...)"


def test_filters_that_look_alike_are_not_taken_for_each_other(db, where):
    store = AgentDBStore(db, index=INDEX)
    for n in range(4):
        store.put(("a",), str(n), {"n": n, "text": "same"})
    for query in (None, "same"):
        for n in range(4):
            # A generator's text is its address, which the next one may have too.
            assert names(store.search(("a",), query=query, filter={"n": {"$in": (one for one in [n])}})) == [str(n)]
            assert names(store.search(("a",), query=query, filter={"n": {"$in": map(int, [n])}})) == [str(n)]
            assert names(store.search(("a",), query=query, filter=_Asked(n=n))) == [str(n)]
            assert names(store.search(("a",), query=query, filter={"$or": [_Asked(n=n)]})) == [str(n)]
        assert len(store.search(("a",), query=query, filter=_Asked())) == 4


def test_pages_beyond_all_items(db, where):
    store = AgentDBStore(db, index=INDEX)
    store.put(("a",), "k", {"text": "word"})
    for query in (None, "word"):
        assert names(store.search(("a",), query=query, limit=10**30)) == ["k"]
        assert store.search(("a",), query=query, offset=10**30) == []
    assert store.list_namespaces(limit=10**30) == [("a",)]
    assert store.list_namespaces(offset=10**30) == []
