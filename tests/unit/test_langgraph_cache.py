from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import agentdb
from agentdb import ClosedError, Config, InvalidInputError
from langgraph_agentdb import AgentDBCache


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(db_path: Path, clock: Clock) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=Config(maintenance=False, clock=clock)) as opened:
        yield opened


@pytest.fixture
def cache(db: agentdb.Database) -> AgentDBCache[Any]:
    return AgentDBCache(db)


def test_values_until_their_time_is_up(db, cache, clock):
    a, b, c = ((("ns",), name) for name in "abc")
    cache.set({a: ({"x": [1, None]}, 10), b: ("kept", None), c: ("gone", 0)})
    assert cache.get([a, b, c]) == {a: {"x": [1, None]}, b: "kept"}
    clock.forward(9.999)
    assert cache.get([a]) == {a: {"x": [1, None]}}
    clock.forward(0.001)
    assert cache.get([a, b]) == {b: "kept"}
    cache.set({a: ("again", 5)})
    assert cache.get([a]) == {a: "again"}
    clock.forward(5)
    assert db.table("_langgraph_cache").count() == 3
    db.optimize()
    assert db.table("_langgraph_cache").count() == 1
    assert cache.get([a, b, c]) == {b: "kept"}


def test_namespaces_never_leak(cache):
    namespaces = [(), ("a",), ("a", "b"), ("a,b",), ("ab",), ("a", ""), ("", "a"), ("%",), ("_",), ("a%",), ('["a"]',),
                  ("x' OR 1=1 --",), ("\x00",), ("ä",)]  # fmt: skip
    keys = [(one, key) for one in namespaces for key in ("k", "", "%", "k\x00")]
    cache.set({key: (repr(key), None) for key in keys})
    assert cache.get(keys) == {key: repr(key) for key in keys}
    cache.clear([("a",), ("%",), ("x' OR 1=1 --",)])
    gone = {("a",), ("%",), ("x' OR 1=1 --",)}
    assert set(cache.get(keys)) == {key for key in keys if key[0] not in gone}
    cache.clear([])
    assert len(cache.get(keys)) == len(keys) - 12
    cache.clear([("a", "b"), ("none",)])
    assert len(cache.get(keys)) == len(keys) - 16
    cache.clear()
    assert cache.get(keys) == {}


def test_cold_values(db, cache):
    keys = [(("ns", str(i % 3)), f"key {i}") for i in range(300)]
    cache.set({key: (f"value {key}" * 20, None) for key in keys})
    db.optimize()
    assert db.stats().tables["_langgraph_cache"].cold_rows == 300
    assert cache.get(keys) == {key: f"value {key}" * 20 for key in keys}
    cache.set({keys[0]: ("new", None)})
    assert cache.get(keys[:1]) == {keys[0]: "new"}
    cache.clear([("ns", "1")])
    assert len(cache.get(keys)) == 200


def test_nothing_asked_nothing_given(cache):
    assert cache.get([]) == {}
    cache.set({})
    assert cache.get([(("a",), "missing")]) == {}


@pytest.mark.parametrize(
    "key", ["k", ("ns",), ("ns", "k"), (("ns",), 5), ((1,), "k"), (("a",), "b", "c"), (("\ud800",), "k")]
)
def test_keys_that_cannot_be(cache, key):
    with pytest.raises(InvalidInputError):
        cache.get([key])
    with pytest.raises(InvalidInputError):
        cache.set({key: (1, None)})


def test_all_or_none(cache):
    key = (("a",), "k")
    with pytest.raises(TypeError):
        cache.set({key: (1, None), (("a",), "l"): (object(), None)})
    assert cache.get([key]) == {}


def test_the_event_loop_goes_on_while_somebody_else_writes(db, cache):
    key = (("ns",), "k")

    async def main() -> None:
        await cache.aset({key: (1, None)})
        holding, free = threading.Event(), threading.Event()

        def hold() -> None:
            with db.transaction():
                holding.set()
                assert free.wait(30), "the loop waits for the lock"

        holder = threading.Thread(target=hold)
        holder.start()
        assert holding.wait(30)
        writing = [asyncio.create_task(cache.aset({key: (2, None)})), asyncio.create_task(cache.aclear([("other",)]))]
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert not any(one.done() for one in writing)
        assert await cache.aget([key]) == {key: 1}
        free.set()
        await asyncio.gather(*writing)
        holder.join()
        assert await cache.aget([key]) == {key: 2}

    asyncio.run(main())


def test_tasks_and_threads(db_path):
    async def main() -> None:
        async with AgentDBCache[int](db_path) as cache:
            keys = [(("ns",), str(i)) for i in range(50)]
            await asyncio.gather(*(cache.aset({key: (i, 60)}) for i, key in enumerate(keys)))
            assert await cache.aget(keys) == {key: i for i, key in enumerate(keys)}
            await cache.aclear([("ns",)])
            assert await cache.aget(keys) == {}
        with pytest.raises(ClosedError):
            await cache.aget(keys)

    asyncio.run(main())
    with AgentDBCache[int](db_path) as cache:
        threads = [
            threading.Thread(target=lambda i=i: [cache.set({((), f"{i}-{n}"): (n, None)}) for n in range(10)])
            for i in range(8)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert len(cache.get([((), f"{i}-{n}") for i in range(8) for n in range(10)])) == 80
