"""What AgentDBStore does beyond what every store of LangGraph does."""

from __future__ import annotations

import asyncio
import enum
import gc
import math
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from support.store_suite import DIMS, embed
from support.store_world import Clock, search_by

import agentdb
from agentdb import ClosedError, Config, InvalidInputError
from agentdb_embedders import HashingEmbedder
from langgraph_agentdb import AgentDBStore
from langgraph_agentdb.store_filters import StoreFilter

INDEX = {"dims": DIMS, "embed": embed, "fields": ["text"]}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(db_path: Path, clock: Clock) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=Config(maintenance=False, clock=clock)) as opened:
        yield opened


@pytest.fixture(params=["resident", "columns", "tables"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small scopes are held in memory, large ones are searched in columns or where they lie."""
    search_by(request.param, monkeypatch)
    return request.param


def names(found: Any) -> list[str]:
    return [one.key for one in found]


def leftovers(db: agentdb.Database) -> tuple[int, int, int]:
    """Return how many items, heads and vectors there are."""
    return (
        db.table("_langgraph_items").count(),
        db.table("_langgraph_item_heads").count(),
        db.collection("_langgraph_store").count(),
    )


# ----------------------------------------------------------------------------------------------------------------- items


def test_the_time_of_creation_survives_an_update(db, clock, where):
    store = AgentDBStore(db)
    store.put(("a",), "k", {"v": 1})
    first = store.get(("a",), "k")
    clock.forward(1)
    store.put(("a",), "k", {"v": 2})
    second = store.get(("a",), "k")
    assert second.created_at == first.created_at
    assert second.updated_at - first.updated_at >= timedelta(minutes=1)
    store.delete(("a",), "k")
    store.put(("a",), "k", {"v": 3})
    third = store.get(("a",), "k")
    assert third.created_at == third.updated_at > second.updated_at


def test_the_newest_come_first(db, where):
    store = AgentDBStore(db)
    for n in (3, 1, 2):
        store.put(("a", str(n)), f"k{n}", {})
    store.put(("a", "3"), "k3", {"again": True})
    assert names(store.search(("a",))) == ["k3", "k2", "k1"]
    store.batch([PutOp(("b",), key, {}) for key in "cab"])
    assert names(store.search(("b",))) == ["a", "b", "c"]


def test_what_is_handed_out_and_taken_in_is_a_copy(db, where):
    store = AgentDBStore(db, index=INDEX)
    value = {"text": "x", "list": [{"n": 1}], "tuple": (1, 2)}
    store.put(("a",), "k", value)
    value["list"][0]["n"] = 2
    wanted = {"text": "x", "list": [{"n": 1}], "tuple": [1, 2]}
    for read in (
        lambda: store.get(("a",), "k"),
        lambda: store.search(("a",))[0],
        lambda: store.search(("a",), query="x")[0],
    ):
        found = read().value
        assert found == wanted
        found["list"][0]["n"] = 3
        found["new"] = 1
        assert read().value == wanted


@pytest.mark.parametrize(
    "value",
    [
        {"x": math.nan}, {"x": math.inf}, {"x": datetime(2026, 1, 1, tzinfo=UTC)}, {"x": {1, 2}}, {"x": b"bytes"}, {1: "x"},
        {"x": "\ud800"}, {"x": object()}, [1], "text", 7,
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_that_is_no_json_is_refused_and_nothing_is_written(db, value):
    for index in (None, {**INDEX, "fields": ["$"]}):
        store = AgentDBStore(db, index=index)
        with pytest.raises(InvalidInputError):
            store.batch([PutOp(("a",), "good", {"text": "x"}), PutOp(("a",), "bad", value)])
        assert store.search(()) == []
        assert store.list_namespaces() == []
    nested: dict[str, Any] = {}
    nested["x"] = nested
    with pytest.raises(InvalidInputError):
        AgentDBStore(db).put(("a",), "k", nested)


@pytest.mark.parametrize(
    "op",
    [
        PutOp(("a.b",), "k", {}), PutOp(("",), "k", {}), PutOp((), "k", {}), PutOp(("a", 1), "k", {}), PutOp("abc", "k", {}),
        PutOp(("a.b",), "k", None), GetOp(("a.b",), "k"), GetOp("abc", "k"), SearchOp(("a.b",)), SearchOp("abc"),
        ListNamespacesOp((MatchCondition("prefix", ("a.b",)),)), ListNamespacesOp((MatchCondition("suffix", ("",)),)),
        ListNamespacesOp((MatchCondition("prefix", "abc"),)),
    ],
    ids=repr,
)  # fmt: skip
def test_batches_check_namespaces_too(db, op):
    store = AgentDBStore(db)
    with pytest.raises(InvalidNamespaceError):
        store.batch([PutOp(("good",), "k", {}), op])
    with pytest.raises(InvalidNamespaceError):
        asyncio.run(store.abatch([PutOp(("good",), "k", {}), op]))
    assert store.search(()) == []


@pytest.mark.parametrize(
    "op",
    [
        SearchOp(("a",), limit=-1), SearchOp(("a",), offset=-1), SearchOp(("a",), limit=True), SearchOp(("a",), query=1),
        SearchOp(("a",), filter=[1]), SearchOp(("a",), filter={1: 2}), SearchOp(("a",), filter={"$where": 1}),
        SearchOp(("a",), filter={"a": {"$in": "text"}}), SearchOp(("a",), filter={"a": {"$gt": [1]}}),
        SearchOp(("a",), filter={"a": {"$gt": True}}), SearchOp(("a",), filter={"$or": {"a": 1}}),
        SearchOp(("a",), filter={"$and": [1]}), SearchOp(("a",), filter={"a": math.nan}),
        SearchOp(("a",), filter={"a": {"$eq": 10**400}}), SearchOp(("a",), filter={"a": {"$gt": 1, "b": 2}}),
        SearchOp(("a",), filter={"a": object()}), SearchOp(("a",), filter={"a": datetime(2026, 1, 1, tzinfo=UTC)}),
        ListNamespacesOp(limit=-1), ListNamespacesOp(max_depth=-1), ListNamespacesOp((MatchCondition("middle", ("a",)),)),
        PutOp(("a",), 1, {}), PutOp(("a",), "k", {}, ttl=-1), PutOp(("a",), "k", {}, ttl=math.nan),
        PutOp(("a",), "k", {}, ttl="1"), PutOp(("a",), "k", {}, ttl=1e300), PutOp(("a",), "k", {}, index="text"),
        PutOp(("a",), "k", {}, index=[1]), PutOp(("a",), "\ud800", {}), PutOp(("\ud800",), "k", {}),
        PutOp(("a",), "k" * 5000, {}), GetOp(("a",), 1), "no operation",
    ],
    ids=lambda one: repr(one)[:80],
)  # fmt: skip
def test_bad_arguments_are_refused_and_nothing_is_written(db, op):
    store = AgentDBStore(db, index=INDEX)
    store.put(("b",), "k", {"a": 1})
    with pytest.raises((InvalidInputError, InvalidNamespaceError)):
        store.batch([PutOp(("good",), "k", {}), op])
    assert names(store.search(())) == ["k"]


def test_filters_nest_without_end_only_in_appearance(db):
    deep: Any = 1
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(InvalidInputError, match="deeper"):
        AgentDBStore(db).search((), filter=deep)
    while isinstance(deep, dict):  # taken apart here: its own end would be too deep a recursion
        deep = deep.popitem()[1]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"$or": [{"n": 1}, {"n": 3}]}, {"a", "c"}),
        ({"$and": [{"n": {"$gt": 1}}, {"kind": "x"}]}, {"c"}),
        ({"$not": {"kind": "x"}}, {"b", "d"}),
        ({"n": {"$in": [1, 2.0]}}, {"a", "b"}),
        ({"n": {"$nin": [1, 2]}}, {"c", "d"}),
        ({"n": {"$in": []}}, set()),
        ({"n": {"$in": [None]}}, {"d"}),
        ({"n": {"$not": {"$gt": 1}}}, {"a", "d"}),
        ({"n": {"$or": [{"$lt": 2}, {"$gt": 2}]}}, {"a", "c"}),
        ({"kind": {"$gt": "w"}}, {"a", "b", "c"}),
        ({"kind": {"$gt": 1}}, set()),
        ({"flag": True}, {"a"}),
        ({"n": True}, set()),
        ({"flag": 1}, set()),
        ({"list": {"$eq": [1, {"x": None}]}}, {"a"}),
        ({"list": {"$ne": [1, {"x": None}]}}, {"b", "c", "d"}),
        ({"list": {"$in": [[2], 5]}}, {"b", "c"}),
        ({"list": [{"$gte": 2}]}, {"b"}),
        ({"meta": {"$eq": {"lang": "en"}}}, {"a"}),
        ({"meta": {"lang": "en"}}, {"a", "b"}),
        ({"meta": {"$or": [{"lang": "de"}, {"more": 1}]}}, {"b", "c"}),
        ({"meta": {"$not": {"lang": "en"}}}, {"c", "d"}),
        ({"meta": {"lang": {"$not": {"$eq": "en"}}}}, {"c"}),
        ({"meta": {}}, {"a", "b", "c"}),
        ({"$or": []}, set()),
        ({"$and": []}, {"a", "b", "c", "d"}),
    ],
    ids=str,
)
def test_filters(db, where, condition, expected):
    store = AgentDBStore(db, index=INDEX)
    rows: dict[str, Any] = {
        "a": {"n": 1, "kind": "x", "flag": True, "list": [1, {"x": None}], "meta": {"lang": "en"}},
        "b": {"n": 2, "kind": "y", "flag": False, "list": [2], "meta": {"lang": "en", "more": 1}},
        "c": {"n": 3, "kind": "x", "list": 5, "meta": {"lang": "de"}},
        "d": {"meta": 7},
    }
    for key, value in rows.items():
        store.put(("r",), key, {**value, "text": "same"})
    assert set(names(store.search(("r",), filter=condition))) == expected
    assert set(names(store.search(("r",), filter=condition, query="same"))) == expected
    assert {key for key, value in rows.items() if StoreFilter(condition, "value").holds(value)} == expected


# --------------------------------------------------------------------------------------------------------------- meaning


def test_embedders_of_every_kind(tmp_path, where):
    class Counting(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return embed(texts)

        def embed_query(self, text: str) -> list[float]:
            return embed([text])[0]

    async def aembed(texts: list[str]) -> list[list[float]]:
        return embed(texts)

    embedder = HashingEmbedder()
    kinds: list[Any] = [
        {"dims": DIMS, "embed": Counting()},
        {"dims": DIMS, "embed": embed},
        {"embed": embedder},
        {"dims": embedder.dimension, "embed": "hashing"},
        {"dims": DIMS, "embed": aembed},
    ]

    async def main(store: AgentDBStore) -> list[str]:
        await store.aput(("a",), "one", {"text": "red apple"})
        await store.aput(("a",), "two", {"text": "blue whale"})
        return names(await store.asearch(("a",), query="a blue whale"))

    for number, index in enumerate(kinds):
        with AgentDBStore(tmp_path / str(number), index=index) as store:
            assert asyncio.run(main(store))[0] == "two"
            if index["embed"] is not aembed:
                store.put(("a",), "three", {"text": "green bicycle"})
                assert names(store.search(("a",), query="green bicycle"))[0] == "three"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"dims": 4}, "embed"),
        ({"embed": embed}, "dims"),
        ({"embed": embed, "dims": 0}, "dims"),
        ({"embed": embed, "dims": "4"}, "dims"),
        ({"embed": 7, "dims": 4}, "embed"),
        ({"embed": embed, "dims": 4, "fields": "text"}, "fields"),
        ({"embed": embed, "dims": 4, "fields": [1]}, "fields"),
        ({"embed": embed, "dims": 4, "mode": "fuzzy"}, "mode"),
        ({"embed": embed, "dims": 4, "text_fields": ["a"]}, "text_fields"),
        ([], "index"),
    ],
    ids=str,
)
def test_a_bad_index_is_refused(db_path, index, message):
    with pytest.raises(InvalidInputError, match=message):
        AgentDBStore(db_path, index=index)
    assert not db_path.exists()


@pytest.mark.parametrize(
    "given", [[[1.0, 2.0]], [[1.0] * DIMS] * 3, [["x"] * DIMS], [[math.nan] * DIMS], None, [[1.0], [2.0, 3.0]]], ids=lambda one: str(one)[:20]
)  # fmt: skip
def test_what_embedders_return_is_checked(db, given):
    store = AgentDBStore(db, index={"dims": DIMS, "embed": lambda texts: given})
    with pytest.raises(InvalidInputError, match="embed"):
        store.put(("a",), "k", {"text": "x"})
    assert store.search(()) == []


def test_another_dimension_is_refused(db):
    AgentDBStore(db, index=INDEX).put(("a",), "k", {"text": "x"})
    other = AgentDBStore(db, index={"dims": 8, "embed": lambda texts: [[1.0] * 8] * len(texts)})
    with pytest.raises(InvalidInputError, match="dimension"):
        other.put(("a",), "k", {"text": "x"})


def test_a_text_without_direction_is_not_found_by_meaning(db, where):
    store = AgentDBStore(db, index=INDEX)
    store.put(("a",), "empty", {"text": "..."})
    store.put(("a",), "full", {"text": "word"})
    assert names(store.search(("a",), query="word")) == ["full"]
    assert store.search(("a",), query="...") == []
    assert set(names(store.search(("a",)))) == {"empty", "full"}


def test_no_vector_is_left_behind(db, where):
    store = AgentDBStore(db, index={**INDEX, "fields": ["text", "parts[*]"]})
    store.put(("a",), "k", {"text": "one", "parts": ["two", "three", "four"]})
    assert leftovers(db) == (1, 1, 4)
    store.put(("a",), "k", {"text": "one", "parts": ["two"]})
    assert leftovers(db) == (1, 1, 2)
    assert store.search(("a",), query="four")[0].score < 0.5
    store.put(("a",), "k", {"text": "one"}, index=False)
    assert leftovers(db) == (1, 1, 0)
    store.put(("a",), "k", {"text": "one"})
    # A store without an index does not embed, and does not leave the vector of another value either.
    AgentDBStore(db).put(("a",), "k", {"text": "other"})
    assert leftovers(db) == (1, 1, 0)
    assert store.search(("a",), query="one") == []
    store.put(("a",), "k", {"text": "one"})
    AgentDBStore(db).delete(("a",), "k")
    assert leftovers(db) == (0, 0, 0)


def test_an_item_has_as_many_vectors_as_it_likes(db, where):
    store = AgentDBStore(db, index={**INDEX, "fields": ["parts[*].text"]})
    store.put(("a",), "many", {"parts": [{"text": f"common word {n}"} for n in range(300)]})
    for n in range(5):
        store.put(("a",), f"few {n}", {"parts": [{"text": f"common thing {n}"}]})
    found = store.search(("a",), query="common word 7", limit=4)
    assert names(found)[0] == "many"
    assert found[0].score == pytest.approx(1.0, abs=1e-4)
    assert len(set(names(found))) == 4
    assert len(store.search(("a",), query="common", limit=50)) == 6


def test_hybrid_search_finds_words_and_meaning(db):
    vectors = {"query": [1.0, 0.0], "near": [0.9, 0.1], "far": [0.0, 1.0], "middle": [0.5, 0.5]}

    def pick(texts: list[str]) -> list[list[float]]:
        return [next(vector for name, vector in vectors.items() if name in text) for text in texts]

    index: dict[str, Any] = {"dims": 2, "embed": pick, "fields": ["text"]}
    store = AgentDBStore(db, index=index)
    store.put(("a",), "near", {"text": "near", "n": 1})
    store.put(("a",), "middle", {"text": "middle", "n": 2})
    store.put(("a",), "far", {"text": "far xylophone", "n": 3})
    assert names(store.search(("a",), query="query xylophone")) == ["near", "middle", "far"]
    hybrid = AgentDBStore(db, index={**index, "mode": "hybrid"})
    found = hybrid.search(("a",), query="query xylophone")
    assert set(names(found)) == {"near", "middle", "far"}
    assert names(found).index("far") < 2
    assert names(hybrid.search(("a",), query="query xylophone", filter={"n": {"$gt": 2}})) == ["far"]
    assert names(hybrid.search(("a",))) == ["far", "middle", "near"]


# ---------------------------------------------------------------------------------------------------------- time to live


def test_items_expire_and_reading_prolongs_their_lives(db, clock, where):
    store = AgentDBStore(db, index=INDEX, ttl={"default_ttl": 10, "omit_expired": True})
    store.put(("a",), "default", {"text": "x"})
    store.put(("a",), "short", {"text": "x"}, ttl=1)
    store.put(("a",), "long", {"text": "x"}, ttl=None)
    store.put(("short",), "only", {"text": "x"}, ttl=1)
    assert len(store.search((), query="x")) == 4
    clock.forward(0.99)
    assert store.get(("a",), "short") is not None  # and lives another minute
    clock.forward(0.5)
    assert set(names(store.search(("a",), refresh_ttl=False))) == {"default", "short", "long"}
    assert store.get(("short",), "only") is None
    assert store.list_namespaces() == [("a",)]
    clock.forward(0.6)
    assert store.get(("a",), "short") is None
    assert set(names(store.search((), refresh_ttl=False))) == {"default", "long"}
    assert set(names(store.search((), query="x", refresh_ttl=False))) == {"default", "long"}
    clock.forward(6)
    assert set(names(store.search(("a",), query="x"))) == {"default", "long"}  # prolongs
    clock.forward(9.9)
    assert store.get(("a",), "default", refresh_ttl=False) is not None
    clock.forward(0.2)
    assert store.get(("a",), "default") is None
    assert names(store.search(())) == ["long"]
    assert leftovers(db) == (4, 4, 4)
    assert store.sweep_ttl() == 3
    assert store.sweep_ttl() == 0
    assert leftovers(db) == (1, 1, 1)
    assert store.list_namespaces() == [("a",)]


def test_expired_items_are_seen_until_they_are_swept_unless_they_are_omitted(db, clock, where):
    store = AgentDBStore(db, index=INDEX, ttl={"refresh_on_read": False})
    store.put(("a",), "k", {"text": "x"}, ttl=1)
    clock.forward(2)
    assert store.get(("a",), "k") is not None
    assert names(store.search(("a",), query="x")) == ["k"]
    assert store.list_namespaces() == [("a",)]
    assert store.sweep_ttl() == 1
    assert store.get(("a",), "k") is None
    assert store.search(("a",)) == []
    assert store.list_namespaces() == []


def test_what_is_read_or_put_anew_is_not_swept(db, clock):
    store = AgentDBStore(db, ttl={"refresh_on_read": False})
    for key in ("read", "put", "forever", "left"):
        store.put(("a",), key, {}, ttl=1)
    clock.forward(0.9)
    store.get(("a",), "read", refresh_ttl=True)
    store.put(("a",), "put", {}, ttl=1)
    store.put(("a",), "forever", {})
    clock.forward(0.9)
    assert store.sweep_ttl() == 1
    assert set(names(store.search(("a",)))) == {"read", "put", "forever"}
    clock.forward(60)
    assert store.sweep_ttl() == 2
    assert names(store.search(("a",))) == ["forever"]


def test_what_lives_again_by_the_time_it_is_swept_stays(db, clock):
    """A read or a put may come between looking for what has expired and deleting it."""
    store = AgentDBStore(db)
    items = store._connection()
    scan = items._heads.scan

    def disturbed(*args: Any, **options: Any) -> Any:
        found = list(scan(*args, **options))
        if len(found) == 3:
            store.get(("a",), "read")
            store.put(("a",), "put", {"v": 2}, ttl=1)
        return iter(found)

    for key in ("read", "put", "left"):
        store.put(("a",), key, {"v": 1}, ttl=1)
    clock.forward(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items._heads, "scan", disturbed)
        assert store.sweep_ttl() == 1
    assert {one.key: one.value for one in store.search(("a",))} == {"read": {"v": 1}, "put": {"v": 2}}


def test_an_item_put_after_its_end_is_a_new_one(db, clock):
    store = AgentDBStore(db, ttl={"omit_expired": True})
    store.put(("a",), "k", {"v": 1}, ttl=1)
    clock.forward(2)
    store.put(("a",), "k", {"v": 2}, ttl=1)
    found = store.get(("a",), "k")
    assert found.created_at == found.updated_at


def test_many_expired_items_do_not_fill_a_page(db, clock, where):
    store = AgentDBStore(db, index=INDEX, ttl={"omit_expired": True})
    store.batch([PutOp(("a",), f"dead {n}", {"text": "x"}, ttl=1) for n in range(50)])
    store.batch([PutOp(("a",), f"alive {n}", {"text": "x y"}) for n in range(5)])
    clock.forward(2)
    assert len(store.search(("a",), limit=5)) == 5
    assert len(store.search(("a",), limit=5, query="x")) == 5


def test_reading_costs_no_commit_each_time(db, clock):
    store = AgentDBStore(db)
    store.put(("a",), "k", {}, ttl=10)
    before = db.stats().commits
    for _ in range(50):
        store.get(("a",), "k")
    assert db.stats().commits == before
    clock.forward(1)
    store.get(("a",), "k")
    assert db.stats().commits == before + 1


def test_the_sweeper_sweeps_until_it_is_stopped(db, clock):
    store = AgentDBStore(db, ttl={"sweep_interval_minutes": 0.0005})
    store.put(("a",), "k", {}, ttl=1)
    clock.forward(2)
    future = store.start_ttl_sweeper()
    assert store.start_ttl_sweeper() is future
    deadline = time.monotonic() + 30
    while leftovers_of_items(db) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert leftovers_of_items(db) == 0
    assert store.stop_ttl_sweeper(timeout=30)
    assert future.done()
    again = store.start_ttl_sweeper(0.0005)
    assert again is not future
    assert again.cancel()
    assert store.stop_ttl_sweeper(30)
    store.start_ttl_sweeper(1000)
    store.close()
    assert not [one for one in threading.enumerate() if one.name == "agentdb-store-sweeper"]
    assert AgentDBStore(db).start_ttl_sweeper().done()
    assert AgentDBStore(db).stop_ttl_sweeper()


def test_the_sweeper_of_a_store_that_nobody_has_any_more_ends(db, clock):
    store = AgentDBStore(db, ttl={"sweep_interval_minutes": 0.0005})
    store.put(("a",), "k", {}, ttl=1)
    clock.forward(2)
    ended = store.start_ttl_sweeper()
    deadline = time.monotonic() + 30
    while leftovers_of_items(db) and time.monotonic() < deadline:
        time.sleep(0.005)
    del store  # it has swept once
    while not ended.done() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.005)
    assert ended.done()


def leftovers_of_items(db: agentdb.Database) -> int:
    return db.table("_langgraph_items").count()


class Colour(enum.StrEnum):
    RED = "red"


class Rank(enum.IntEnum):
    FIRST = 1


def test_values_of_subclasses_are_plain_before_they_are_read_back(db, where):
    """What a process has just put, and holds in memory, is what any other one reads."""
    ours, theirs = AgentDBStore(db, index=INDEX), AgentDBStore(db, index=INDEX)
    ours.put(("a",), "other", {"text": "red"})
    assert len(ours.search(("a",), query="red")) == 1  # the namespace is in memory
    put = {"text": "red", "e": Colour.RED, "n": Rank.FIRST, "f": np.float64(1.5), "list": [Colour.RED, (Rank.FIRST,)]}
    ours.put(("a",), "k", {**put, "deep": {"e": Colour.RED}})
    expected = {"text": "red", "e": "red", "n": 1, "f": 1.5, "list": ["red", [1]], "deep": {"e": "red"}}

    def exactly(value: Any) -> str:
        return repr(sorted(value.items()))

    filters = [{"list": {"$eq": ["red", [1]]}}, {"deep": {"$eq": {"e": "red"}}}, {"e": "red", "n": {"$in": [1]}}]
    for store in (ours, theirs):
        assert exactly(store.get(("a",), "k").value) == exactly(expected)
        for condition in filters:
            for query in (None, "red"):
                (found,) = store.search(("a",), query=query, filter=condition)
                assert exactly(found.value) == exactly(expected)


@pytest.mark.parametrize(
    "ttl",
    [{"default": 1}, {"default_ttl": "1"}, {"default_ttl": -1}, {"omit_expired": 1}, {"refresh_on_read": None}, [], {"sweep_interval_minutes": math.inf}],
    ids=str,
)  # fmt: skip
def test_a_bad_ttl_is_refused(db_path, ttl):
    with pytest.raises(InvalidInputError, match="ttl"):
        AgentDBStore(db_path, ttl=ttl)


# --------------------------------------------------------------------------------- transactions, snapshots, other handles


def test_a_batch_joins_the_transaction_of_its_caller(db, where):
    store = AgentDBStore(db, index=INDEX)
    notes = db.collection("notes", dimension=2)
    store.put(("a",), "before", {"text": "before"})
    store.search(("a",), query="before")

    def undone() -> None:
        with db.transaction():
            store.put(("a",), "k", {"text": "inside"})
            notes.upsert(["n"], [[1.0, 0.0]])
            assert store.search(("a",), query="inside")[0].key == "k"
            assert set(names(store.search(("a",)))) == {"before", "k"}
            assert store.get(("a",), "k").value == {"text": "inside"}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        undone()
    assert names(store.search(("a",), query="inside")) == ["before"]
    assert store.get(("a",), "k") is None
    assert notes.count() == 0
    store.put(("a",), "other", {"text": "other"})  # takes the number of the change that was undone
    assert set(names(store.search(("a",)))) == {"before", "other"}
    with db.transaction():
        store.put(("a",), "k", {"text": "inside"})
        notes.upsert(["n"], [[1.0, 0.0]])
    assert set(names(store.search(("a",)))) == {"before", "other", "k"}


def test_a_snapshot_of_the_caller_stays_what_it_is(db, where):
    store = AgentDBStore(db, index=INDEX)
    store.put(("a",), "k", {"text": "old"}, ttl=10)
    assert store.search(("a",), query="old")
    with db.snapshot():
        assert store.get(("a",), "k").value == {"text": "old"}
        writer = threading.Thread(target=lambda: (store.put(("a",), "k", {"text": "new"}), store.put(("a",), "l", {})))
        writer.start()
        writer.join()
        assert store.get(("a",), "k").value == {"text": "old"}
        assert [one.value for one in store.search(("a",))] == [{"text": "old"}]
        assert store.search(("a",), query="old")[0].score == pytest.approx(1, abs=1e-5)
    assert store.get(("a",), "k").value == {"text": "new"}
    assert len(store.search(("a",))) == 2
    assert store.search(("a",), query="new")[0].score == pytest.approx(1, abs=1e-5)


def test_handles_see_each_others_writes(db, where):
    one, other = AgentDBStore(db, index=INDEX), AgentDBStore(db, index=INDEX)
    for n in range(5):
        one.put(("a",), f"k{n}", {"text": f"thing {n}"})
        assert names(other.search(("a",)))[0] == f"k{n}"
        assert other.search(("a",), query=f"thing {n}")[0].key == f"k{n}"
    other.delete(("a",), "k1")
    assert set(names(one.search(("a",)))) == {"k0", "k2", "k3", "k4"}
    other.put(("a",), "k1", {"text": "back"})
    assert one.search(("a",), query="back")[0].key == "k1"
    other.batch([PutOp(("a",), f"k{n}", None) for n in range(5)])
    assert one.search(("a",)) == []
    other.put(("a",), "k0", {"text": "born again"})
    assert [hit.value for hit in one.search(("a",))] == [{"text": "born again"}]


def test_the_reads_of_a_batch_see_one_state(db, where):
    store, other = AgentDBStore(db), AgentDBStore(db)
    pair = [PutOp(("a",), key, {"v": 1}) for key in ("k", "l")]
    store.batch(pair)
    items = store._connection()
    get = items.get

    def disturbed(at: Any) -> Any:
        found = get(at)
        if at.key == "k":
            writer = threading.Thread(target=lambda: other.batch([one._replace(value={"v": 2}) for one in pair]))
            writer.start()
            writer.join()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "get", disturbed)
        first, second, found = store.batch([GetOp(("a",), "k"), GetOp(("a",), "l"), SearchOp(("a",))])
    assert first.value == second.value == {"v": 1}
    assert [one.value for one in found] == [{"v": 1}] * 2
    assert [one.value for one in store.search(("a",))] == [{"v": 2}] * 2


def test_a_write_behind_anothers_does_not_hide_it(db, where):
    """What a handle has in memory is from before the other's write when its own one comes."""
    ours, theirs = AgentDBStore(db, index=INDEX), AgentDBStore(db, index=INDEX)
    ours.put(("a",), "first", {"text": "x"})
    assert names(ours.search(("a",), query="x")) == ["first"]
    theirs.put(("a",), "theirs", {"text": "x"})
    theirs.delete(("a",), "first")
    ours.put(("a",), "ours", {"text": "x"})
    assert names(ours.search(("a",))) == ["ours", "theirs"]
    assert set(names(ours.search(("a",), query="x"))) == {"ours", "theirs"}
    assert ours.get(("a",), "first") is None
    assert ours.get(("a",), "theirs").value == {"text": "x"}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("vectors", ["one each", "none, one or several"])
def test_what_is_remembered_of_filters_follows_every_change(db, vectors, seed):
    """Put, deleted and searched by turns, through a handle that writes and one that reads: the answers are those of a list."""
    generator = np.random.default_rng(seed)
    index = {"dims": DIMS, "embed": embed, "fields": ["text", "more[*]"]}
    writer, reader = AgentDBStore(db, index=index), AgentDBStore(db, index=index)
    filters = [
        {"n": {"$lt": 4}},
        {"n": {"$gte": 2}},
        {"kind": "odd"},
        {"more": {"$ne": None}},
        {"n": {"$in": [1, 7]}},
        None,
    ]
    items: dict[str, dict[str, Any]] = {}
    written: list[str] = []  # newest first
    for _ in range(60):
        keys = [f"k{n}" for n in generator.choice(30, generator.integers(1, 5), replace=False)]
        puts = []
        for key in keys:
            n = int(generator.integers(8))
            texts = [{"text": key}, {}, {"text": f"t{n}", "more": ["x", key]}]
            value = {"n": n, "kind": "odd" if n % 2 else "even", **texts[0 if vectors == "one each" else n % 3]}
            puts.append(PutOp(("a",), key, value if generator.random() < 0.8 else None))
        writer.batch(puts)
        for put in puts:
            items.pop(put.key, None)
            if put.value is not None:
                items[put.key] = put.value
        new = sorted(put.key for put in puts if put.value is not None)
        written = [*new, *(key for key in written if key not in {put.key for put in puts})]
        condition = filters[generator.integers(len(filters))]
        holds = StoreFilter(condition, "value").holds
        expected = [key for key in written if holds(items[key])]
        query = f"k{generator.integers(30)}"
        best = {key: max(near) for key in expected if (near := [_cosine(query, text) for text in _texts(items[key])])}
        for store in (writer, reader):
            assert names(store.search(("a",), filter=condition, limit=99)) == expected
            assert names(store.search(("a",), filter=condition, limit=3, offset=2)) == expected[2:5]
            found = store.search(("a",), filter=condition, query=query, limit=99)
            assert set(names(found)) == set(best)
            assert [one.score for one in found] == pytest.approx([best[one.key] for one in found], abs=1e-5)
            assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
            assert all(one.value == items[one.key] for one in found)


def test_a_filter_is_the_callers_after_the_search(db):
    store = AgentDBStore(db)
    for key in ("k", "l", "m"):
        store.put(("a",), key, {"tags": ["a"]})
        wanted = ["a"]
        assert names(store.search(("a",), filter={"tags": {"$eq": wanted}}))[0] == key
        wanted.append("b")
    assert names(store.search(("a",), filter={"tags": {"$eq": ["a"]}})) == ["m", "l", "k"]


def _texts(value: dict[str, Any]) -> list[str]:
    return [*([value["text"]] if "text" in value else []), *value.get("more", [])]


def _cosine(query: str, text: str) -> float:
    one, other = np.array(embed([query, text]), np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_values_found_are_the_callers(db, where):
    """Whoever changes what a search or a get returned changes nothing else."""
    store = AgentDBStore(db)
    value = {"a": [1, {"b": 2}], "big": 10**30, "odd": "\U0001f600 \x00", "none": None, "n": -0.5}
    store.put(("a",), "k", value)
    for _ in range(3):
        for found in (store.get(("a",), "k"), *store.search(("a",)), *store.search(("a",), filter={"n": -0.5})):
            assert found.value == value
            found.value["a"][1]["b"] = 3
            found.value.clear()


def test_namespaces_in_memory_stay_within_their_budget(db_path):
    config = Config(maintenance=False, resident_bytes=400_000)
    with agentdb.open(db_path, config=config) as db:
        store = AgentDBStore(db, index=INDEX)
        for user in range(60):
            store.batch([PutOp(("u", str(user)), f"k{n}", {"text": f"{user} {n}"}) for n in range(10)])
        for _ in range(2):
            for user in range(60):
                assert len(store.search(("u", str(user)), query=str(user))) == 10
        resident = store._connection()._resident
        assert resident._bytes <= 100_000
        assert resident._bytes == sum(size for _, size in resident._namespaces.values())
        assert len(resident._namespaces) < 60
        assert len(store.search(("u",), limit=1000)) == 600


def test_a_large_batch(db, where):
    store = AgentDBStore(db, index=INDEX)
    matrix = np.random.default_rng(1).standard_normal((6_000, DIMS)).astype(np.float32)
    fast = AgentDBStore(db, index={**INDEX, "embed": lambda texts: matrix[[int(one) for one in texts]]})
    fast.batch([PutOp(("bulk", str(n % 7)), f"k{n}", {"text": str(n), "n": n, "pad": "x" * 900}) for n in range(6_000)])
    assert len(store.list_namespaces(prefix=("bulk",))) == 7
    assert leftovers(db) == (6_000, 6_000, 6_000)
    assert names(fast.search(("bulk",), query="4321", limit=1)) == ["k4321"]
    assert set(names(fast.search((), filter={"n": {"$lt": 3}}))) == {"k0", "k1", "k2"}
    fast.batch([PutOp(("bulk", str(n % 7)), f"k{n}", None) for n in range(0, 6_000, 2)])
    assert leftovers(db) == (3_000, 3_000, 3_000)


# ----------------------------------------------------------------------------------------------------- async, and its end


def test_the_event_loop_is_never_blocked(db):
    """The embedder, and whoever holds the lock, wait until the loop has turned: a loop that waited for them never would."""
    turned = threading.Event()

    def slow(texts: list[str]) -> list[list[float]]:
        assert turned.wait(30), "the loop waits for the embedder"
        return embed(texts)

    async def main() -> None:
        store = AgentDBStore(db, index={**INDEX, "embed": slow})

        async def turn_while(work: Coroutine[Any, Any, Any]) -> Any:
            turned.clear()
            doing = asyncio.create_task(work)
            for _ in range(50):
                await asyncio.sleep(0.001)
            turned.set()
            return await doing

        await turn_while(store.aput(("a",), "k", {"text": "x"}))
        assert [hit.key for hit in await turn_while(store.asearch(("a",), query="x"))] == ["k"]
        holding, free = threading.Event(), threading.Event()

        def hold() -> None:
            with db.transaction():
                holding.set()
                assert free.wait(30), "the loop waits for the lock"

        with ThreadPoolExecutor(1) as pool:
            holder = pool.submit(hold)
            assert holding.wait(30)
            writing = asyncio.create_task(store.aput(("a",), "l", {"text": "y"}))
            for _ in range(50):
                await asyncio.sleep(0.001)
            # It waits for the lock; the loop goes on, and reads.
            assert not writing.done()
            assert [hit.key for hit in await store.asearch(("a",), query="x")] == ["k"]
            assert not writing.done()
            free.set()
            await writing
            holder.result()

    asyncio.run(main())


def test_sync_calls_work_inside_a_running_loop(db):
    async def main() -> list[str]:
        store = AgentDBStore(db, index=INDEX)
        store.put(("a",), "k", {"text": "x"})
        return names(store.search(("a",), query="x"))

    assert asyncio.run(main()) == ["k"]


def test_cancelling_abandons_the_wait(db):
    async def main() -> None:
        store = AgentDBStore(db)
        task = asyncio.create_task(store.aput(("a",), "k", {"v": 1}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await store.aput(("a",), "after", {"v": 2})
        assert {hit.key for hit in await store.asearch(("a",))} <= {"k", "after"}

    asyncio.run(main())


def test_a_closed_store_says_so(db_path):
    store = AgentDBStore(db_path, index=INDEX)
    store.put(("a",), "k", {"text": "x"})
    store.close()
    store.close()
    with pytest.raises(ClosedError):
        store.get(("a",), "k")
    with pytest.raises(ClosedError):
        asyncio.run(store.aget(("a",), "k"))
    with pytest.raises(ClosedError):
        store.sweep_ttl()
    with AgentDBStore(db_path, index=INDEX) as again:
        assert again.search(("a",), query="x")[0].key == "k"


def test_one_database_serves_saver_store_and_cache(db_path):
    from langgraph_agentdb import AgentDBCache, AgentDBSaver

    async def main() -> None:
        async with AgentDBSaver(db_path) as saver, AgentDBStore(db_path) as store, AgentDBCache(db_path) as cache:
            await store.aput(("a",), "k", {"v": 1})
            await cache.aset({(("n",), "k"): (1, None)})
            assert [one async for one in saver.alist(None)] == []
            assert repr(store) == f"AgentDBStore({str(db_path)!r})"

    asyncio.run(main())
    with agentdb.open(db_path) as db:
        assert db.tables() == []
        assert db.collections() == []
        assert db.verify().ok


def test_a_read_only_database_is_read(db_path):
    with AgentDBStore(db_path, index=INDEX) as store:
        store.put(("a",), "k", {"text": "x"}, ttl=1)
    with agentdb.open(db_path, read_only=True) as db:
        store = AgentDBStore(db, index=INDEX, ttl={})
        assert store.get(("a",), "k").value == {"text": "x"}
        assert store.search(("a",), query="x")[0].key == "k"
        with pytest.raises(agentdb.AccessDeniedError):
            store.put(("a",), "k", {})
