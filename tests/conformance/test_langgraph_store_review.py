"""What users may do to AgentDBStore, AgentDBSaver and AgentDBCache that their suites do not: odd input, odd moments, odd databases."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.store.base import GetOp, ListNamespacesOp, PutOp, SearchOp
from support.store_suite import DIMS, embed
from support.store_world import Clock, search_by

import agentdb
from agentdb import AccessDeniedError, ClosedError, Config, InvalidInputError, UnavailableError
from agentdb_embedders import HashingEmbedder
from langchain_agentdb import AgentDBEmbeddings
from langgraph_agentdb import AgentDBCache, AgentDBSaver, AgentDBStore, StrictSerializer
from langgraph_agentdb.batch import Batch

QUIET = Config(maintenance=False)
INDEX = {"dims": DIMS, "embed": embed, "fields": ["text"]}


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=QUIET) as opened:
        yield opened


@pytest.fixture(params=["resident", "columns", "tables"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small scopes are held in memory, large ones are searched in columns or where they lie."""
    search_by(request.param, monkeypatch)
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


# ------------------------------------------------------------------------------------- databases in which nothing is yet

THREAD: Any = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}


def everything_read(saver: AgentDBSaver, stores: Sequence[AgentDBStore], cache: AgentDBCache) -> list[Any]:
    read = [GetOp(("a",), "k"), SearchOp(("a",)), SearchOp(("a",), query="x"), ListNamespacesOp()]
    return [
        saver.get_tuple(THREAD),
        list(saver.list(None)),
        saver.get_delta_channel_history(config=THREAD, channels=["a"]),
        cache.get([(("n",), "k")]),
        *(result for store in stores for op in read for result in store.batch([op])),
        *(result for store in stores for result in store.batch(read)),
    ]


NOTHING = [None, [], {"a": {"writes": []}}, {}, *[None, [], [], []] * 4]


def test_a_snapshot_of_a_database_without_tables_is_empty_to_readers(db):
    """Also of one that gets them meanwhile: a snapshot stays what it is."""
    saver, cache = AgentDBSaver(db), AgentDBCache(db)
    stores = [AgentDBStore(db), AgentDBStore(db, index=INDEX)]
    new: Any = {**empty_checkpoint(), "channel_values": {"x": 1}, "channel_versions": {"x": "1"}}

    def write() -> None:
        saver.put(THREAD, new, {"source": "loop"}, {"x": "1"})
        for store in stores:
            store.put(("a",), "k", {"text": "x"})
        cache.set({(("n",), "k"): (1, None)})

    with db.snapshot():
        assert everything_read(saver, stores, cache) == NOTHING
        for attempt in (write, lambda: stores[0].put(("a",), "k", {}), lambda: cache.set({(("n",), "k"): (1, None)})):
            with pytest.raises(UnavailableError):
                attempt()
        writer = threading.Thread(target=write)
        writer.start()
        writer.join()
        assert everything_read(saver, stores, cache) == NOTHING
    assert saver.get_tuple(THREAD).checkpoint["channel_values"] == {"x": 1}
    assert cache.get([(("n",), "k")]) == {(("n",), "k"): 1}
    for store in stores:
        assert names(store.search(("a",))) == ["k"]
    assert names(stores[1].search(("a",), query="x")) == ["k"]


def test_a_snapshot_without_vectors_has_items_all_the_same(db, where):
    AgentDBStore(db).put(("a",), "k", {"text": "x"})
    for mode in ("vector", "hybrid"):
        store = AgentDBStore(db, index={**INDEX, "mode": mode})
        with db.snapshot():
            assert store.get(("a",), "k").value == {"text": "x"}
            assert names(store.search(("a",))) == ["k"]
            assert store.search(("a",), query="x") == []
    store.put(("a",), "k", {"text": "x"})
    with db.snapshot():
        assert names(store.search(("a",), query="x")) == ["k"]


def test_tables_that_were_rolled_back_are_nobodys_business(db):
    """The jobs that tidy them up must not fail for it."""
    saver, store, cache = AgentDBSaver(db), AgentDBStore(db, index=INDEX), AgentDBCache(db)

    def fail() -> None:
        with db.transaction():
            saver.put(THREAD, empty_checkpoint(), {"source": "loop"}, {})
            store.put(("a",), "k", {"text": "x"})
            cache.set({(("n",), "k"): (1, 5)})
            assert names(store.search(("a",), query="x")) == ["k"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    db.optimize()
    assert everything_read(saver, [store, store], cache) == NOTHING
    store.put(("a",), "k", {"text": "x"})
    db.optimize()
    assert names(store.search(("a",), query="x")) == ["k"]


# ---------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize(
    "make",
    [
        lambda path: AgentDBSaver(path),
        lambda path: AgentDBStore(path, index={**INDEX, "embed": lambda texts: embed(texts)}),
        lambda path: AgentDBCache(path),
    ],
    ids=["saver", "store", "cache"],
)
def test_a_copy_goes_on_in_the_same_database_and_a_pickle_is_refused(db_path, make):
    with make(db_path) as one:
        copies = [copy.copy(one), copy.deepcopy(one), copy.deepcopy({"agent": [one]})["agent"][0]]
        for number, other in enumerate([one, *copies]):
            match other:
                case AgentDBSaver():
                    asyncio.run(other.aput(THREAD, {**empty_checkpoint(), "id": str(number)}, {"source": "loop"}, {}))
                    assert len(list(one.list(THREAD))) == number + 1
                case AgentDBStore():
                    other.put(("a",), str(number), {"text": "x"})
                    assert len(one.search(("a",), query="x")) == number + 1
                case _:
                    other.set({(("n",), "k"): (number, None)})
                    assert one.get([(("n",), "k")]) == {(("n",), "k"): number}
        with pytest.raises(TypeError, match="cannot be pickled: give the other process the path"):
            pickle.dumps(one)
    for other in copies:
        with pytest.raises(ClosedError):
            other.get_tuple(THREAD) if isinstance(other, AgentDBSaver) else other.get(*_GET[type(other)])


_GET: dict[type, Any] = {AgentDBStore: (("a",), "k"), AgentDBCache: ([(("n",), "k")],)}


# ------------------------------------------------------------------------------------------------------------ the sweeper


@pytest.mark.parametrize("minutes", [0, 0.0, -1, math.nan, math.inf, "1", True])
def test_an_interval_of_the_sweeper_that_is_none_is_refused(db_path, minutes):
    for ttl in (None, {"sweep_interval_minutes": 1}):
        with (
            AgentDBStore(db_path, ttl=ttl) as store,
            pytest.raises(InvalidInputError, match="sweep_interval_minutes"),
        ):
            store.start_ttl_sweeper(minutes)
    with pytest.raises(InvalidInputError, match="ttl: sweep_interval_minutes"):
        AgentDBStore(db_path, ttl={"sweep_interval_minutes": minutes})


def test_the_sweeper_of_a_read_only_database_ends(db_path, caplog):
    clock = Clock()
    config = Config(maintenance=False, clock=clock)
    with agentdb.open(db_path, config=config) as db:
        AgentDBStore(db).put(("a",), "k", {}, ttl=1)
    clock.now += timedelta(minutes=2)
    with agentdb.open(db_path, config=config, read_only=True) as db:
        store = AgentDBStore(db, ttl={"sweep_interval_minutes": 0.0005})
        assert store.start_ttl_sweeper().result(60) is None
        assert not caplog.records
        assert store.get(("a",), "k").value == {}


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


# ---------------------------------------------------------------------------------------- reads that prolong lives, beside writers


@contextmanager
def somebody_writes(db: agentdb.Database) -> Iterator[None]:
    """Another thread has the turn to write."""
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with db.transaction():
            held.set()
            free.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    try:
        yield
    finally:
        free.set()
        holder.join()


def test_a_read_is_answered_though_no_life_can_be_prolonged(db_path, caplog):
    clock = Clock()
    with agentdb.open(db_path, config=Config(maintenance=False, clock=clock, write_timeout_s=0.01)) as db:
        store = AgentDBStore(db)
        store.put(("a",), "k", {"v": 1}, ttl=10)
        clock.now += timedelta(minutes=6)
        with somebody_writes(db):
            assert store.get(("a",), "k").value == {"v": 1}
            assert names(store.search(("a",))) == ["k"]
            assert asyncio.run(store.aget(("a",), "k")).value == {"v": 1}
        assert len(caplog.records) == 3
        clock.now += timedelta(minutes=3)
        assert store.get(("a",), "k").value == {"v": 1}  # now there is a turn
        clock.now += timedelta(minutes=6)
        assert store.sweep_ttl() == 0


def test_reads_that_wait_for_a_turn_to_write_hold_up_no_others(db_path):
    clock = Clock()

    async def main(db: agentdb.Database) -> None:
        store = AgentDBStore(db)
        await store.abatch([PutOp(("a",), str(n), {"n": n}, ttl=10) for n in range(40)])
        await store.aput(("a",), "plain", {"n": -1})
        clock.now += timedelta(minutes=1)
        with somebody_writes(db):
            waiting = [asyncio.create_task(store.aget(("a",), str(n))) for n in range(40)]
            for _ in range(5):  # none of these is answered before the writer is done, if they all wait in one queue
                assert (await asyncio.wait_for(store.aget(("a",), "plain"), 30)).value == {"n": -1}
            assert not any(one.done() for one in waiting)
        assert [one.value["n"] for one in await asyncio.gather(*waiting)] == list(range(40))

    with agentdb.open(db_path, config=Config(maintenance=False, clock=clock)) as db:
        asyncio.run(main(db))


# ------------------------------------------------------------------------------------------------------- closing meanwhile


def test_a_task_of_another_loop_does_not_wait_for_a_writer_that_was_closed():
    batch = Batch(lambda works: [True for _ in works], lambda: None)
    outcomes: list[BaseException | None] = []

    async def wait() -> None:
        (outcome,) = await asyncio.gather(batch.run(lambda: (None, lambda: None)), return_exceptions=True)
        outcomes.append(outcome)

    second = threading.Thread(target=lambda: asyncio.run(wait()), daemon=True)

    class Closed:
        def submit(self, work: Any) -> None:
            second.start()
            while len(batch._waiting) < 2:
                time.sleep(0.001)
            raise RuntimeError("cannot schedule new futures after shutdown")

    batch.close()
    batch._thread = Closed()
    asyncio.run(wait())
    second.join(30)
    assert [type(one) for one in outcomes] == [ClosedError, ClosedError]


# ------------------------------------------------------------------------------------------------- writes that share a commit


class Panic(BaseException):
    """What an extension written in another language may raise."""


class Fussy(StrictSerializer):
    """Raises, for some values, what hardly anybody catches."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if isinstance(obj, str) and obj in _RAISED:
            raise _RAISED[obj]
        return super().dumps_typed(obj)


_RAISED: dict[str, BaseException] = {"stop": StopIteration("nothing more"), "panic": Panic("out of bounds")}


def test_whatever_a_serializer_raises_reaches_its_caller_and_nobody_else(db_path):
    at: Any = {"configurable": {**THREAD["configurable"], "checkpoint_id": "1"}}

    async def main() -> None:
        async with AgentDBSaver(db_path, serde=Fussy()) as saver:
            for _ in range(2):
                writes = [
                    saver.aput_writes(at, [("x", value)], value) for value in ("a", "stop", "b", "panic", "c", "stop")
                ]
                found = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), 60)
                assert [type(one) for one in found] == [
                    type(None), RuntimeError, type(None), Panic, type(None), RuntimeError
                ]  # fmt: skip

    asyncio.run(main())


def test_what_is_durable_is_not_said_to_have_failed():
    """A commit that comes later, for those whose preparation was out of date, fails only them."""
    rounds: list[int] = []

    def commit(works: Sequence[Any]) -> list[bool | Exception]:
        rounds.append(len(works))
        if len(rounds) > 1:
            raise agentdb.StorageError("the disk is full")
        return [work == "now" for work in works]

    batch = Batch(commit, lambda: None)
    batch._is_draining = True  # all are handed over before the first is written

    async def main() -> list[Any]:
        waiting = [
            asyncio.create_task(batch.run(lambda work=work: (work, lambda: work))) for work in ("now", "later", "now")
        ]
        await asyncio.sleep(0)
        batch._thread.submit(batch._drain)
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)

    first, second, third = asyncio.run(main())
    assert first == third == "now"
    assert isinstance(second, agentdb.StorageError)
    assert rounds == [3, 1]
    batch.close()


# --------------------------------------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize(
    "ttl", [math.nan, math.inf, 1e300, 10**400, 10**12, "1", True], ids=lambda one: f"{one!r:.6}{len(repr(one))}"
)
def test_a_time_to_live_that_is_none_is_refused_and_nothing_is_stored(db, ttl):
    cache = AgentDBCache(db)
    with pytest.raises(InvalidInputError, match="ttl"):
        cache.set({(("n",), "good"): (1, 5), (("n",), "bad"): (2, ttl)})
    assert cache.get([(("n",), "good"), (("n",), "bad")]) == {}


# ---------------------------------------------------------------------------------------------------------------- embedders


class Held:
    """An embedder of AgentDB that is busy until it is let go."""

    name, dimension, max_tokens = "held", DIMS, 100

    def __init__(self) -> None:
        self.free = threading.Event()

    def embed(self, texts: Any, kind: str = "document") -> Any:
        del kind
        self.free.wait(60)
        return np.array(embed(list(texts)), np.float32)


def test_a_slow_embedder_holds_up_no_other_writer(db_path):
    async def main() -> None:
        held = Held()
        async with AgentDBStore(db_path, index={"embed": held, "fields": ["text"]}) as store:
            embedding = [asyncio.create_task(store.aput(("a",), str(n), {"text": str(n)})) for n in range(50)]
            await asyncio.sleep(0)
            await asyncio.wait_for(store.aput(("b",), "k", {"n": 1}), 30)
            assert (await asyncio.wait_for(store.aget(("b",), "k"), 30)).value == {"n": 1}
            assert not any(one.done() for one in embedding)
            held.free.set()
            await asyncio.gather(*embedding)
            assert len(await store.asearch(("a",), limit=100)) == 50

    asyncio.run(main())


def test_an_embedder_that_fails_leaves_nothing_of_its_batch(db, where):
    def fail(texts: list[str]) -> list[list[float]]:
        raise ConnectionError("no network")

    store = AgentDBStore(db, index={**INDEX, "embed": fail})
    batch = [PutOp(("a",), "plain", {"n": 1}), PutOp(("a",), "k", {"text": "x"})]
    for attempt in (lambda: store.batch(batch), lambda: asyncio.run(store.abatch(batch))):
        with pytest.raises(ConnectionError):
            attempt()
    assert store.search(()) == store.list_namespaces() == []
    store.batch(batch[:1])
    assert names(store.search(())) == ["plain"]


def test_one_of_very_many(db, where):
    """More values than a filter may have parts; each kind is equal to its own only."""
    store = AgentDBStore(db, index=INDEX)
    values = {
        "no": 0,
        "number": 7.0,
        "big": 2**53 + 1,
        "true": True,
        "text": "7",
        "null": None,
        "list": [7],
        "object": {"n": 7},
    }
    store.batch([PutOp(("a",), key, {"v": value, "text": "same"}) for key, value in values.items()])
    many = range(1, 12_000)
    for query in (None, "same"):
        found = {
            name: set(names(store.search(("a",), query=query, filter={"v": {"$in": wanted}})))
            for name, wanted in {
                "numbers": many,
                "texts": [str(one) for one in many],
                "booleans": [True],
                "mixed": [*many, False, "true", None, [7], {"n": 7}, 2**53],
            }.items()
        }
        assert found == {
            "numbers": {"number"},
            "texts": {"text"},
            "booleans": {"true"},
            "mixed": {"number", "null", "list", "object", "big"},
        }
        none = store.search(("a",), query=query, filter={"v": {"$nin": [*many, None, True]}})
        assert set(names(none)) == {"no", "big", "text", "list", "object"}
    for wrong in (math.nan, 10**400, "\ud800", object(), datetime(2026, 1, 1, tzinfo=UTC)):
        with pytest.raises(InvalidInputError):
            store.search(("a",), filter={"v": {"$in": [1, wrong]}})


# ------------------------------------------------------------------------------------------------------------ checkpointer


def test_a_cursor_that_names_no_checkpoint_leaves_out_none(db):
    saver = AgentDBSaver(db)
    thread: Any = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
    stored = saver.put(thread, empty_checkpoint(), {"source": "loop", "step": 1}, {})
    for before in ({}, {"configurable": {}}, {"configurable": {"thread_id": "1"}}):
        assert [one.config for one in saver.list(thread, before=before)] == [stored]
    assert list(saver.list(thread, before=stored)) == []


def test_another_embedder_than_the_one_that_filled_the_store_is_refused_by_name(db_path):
    class Other(HashingEmbedder):
        name = "other"

    with AgentDBStore(db_path, index={"embed": HashingEmbedder(DIMS)}) as store:
        store.put(("a",), "k", {"text": "x"})
    for embedder in (Other(DIMS), HashingEmbedder(DIMS + 1)):
        with (
            AgentDBStore(db_path, index={"embed": embedder}) as store,
            pytest.raises(InvalidInputError, match="hashing"),
        ):
            store.search(("a",), query="x")
    for unnamed in (embed, AgentDBEmbeddings(Other(DIMS))):
        with (
            AgentDBStore(db_path, index={"dims": DIMS, "embed": unnamed}) as store,
            pytest.raises(InvalidInputError, match="made by an embedder of AgentDB"),
        ):
            store.put(("a",), "other", {"text": "x"})
    with AgentDBStore(db_path, index={"embed": HashingEmbedder(DIMS)}) as store:
        assert names(store.search(("a",), query="x")) == ["k"]
    with AgentDBStore(db_path) as store:
        assert names(store.search(("a",))) == ["k"], "who does not embed needs no model"


def test_an_embedder_with_a_name_is_not_taken_for_one_without(db_path):
    with AgentDBStore(db_path, index=INDEX) as store:
        store.put(("a",), "k", {"text": "x"})
    with (
        AgentDBStore(db_path, index={"embed": HashingEmbedder(DIMS)}) as store,
        pytest.raises(InvalidInputError, match="hashing"),
    ):
        store.search(("a",), query="x")
    with AgentDBStore(db_path, index=INDEX) as store:
        assert names(store.search(("a",), query="x")) == ["k"]
