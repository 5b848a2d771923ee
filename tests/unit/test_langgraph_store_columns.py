"""Large scopes of a store in columns: filters against an oracle, what other handles and processes write, and bounds of memory."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import PutOp
from support.store_world import Clock

import agentdb
from agentdb import Config
from langgraph_agentdb import AgentDBStore, store_columns, store_items


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_db(db_path: Path, clock: Clock) -> Callable[..., agentdb.Database]:
    return lambda **options: agentdb.open(db_path, config=Config(maintenance=False, clock=clock, **options))


@pytest.fixture
def db(open_db: Callable[..., agentdb.Database]) -> Iterator[agentdb.Database]:
    with open_db() as opened:
        yield opened


@pytest.fixture(autouse=True)
def all_in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scope counts as large, and is held in columns from its first search on."""
    monkeypatch.setattr(store_items, "_RESIDENT_ITEMS", -1)
    monkeypatch.setattr(store_columns, "_IN_TABLES", -1)


def held(store: AgentDBStore) -> list[store_columns.HeldColumns]:
    return list(store._connection()._columns._held.values())


def keys(found: Any) -> list[str]:
    return [one.key for one in found]


# ---------------------------------------------------------------------------------------------------------- an oracle

MISSING = object()
SCALARS = [
    None,
    True,
    False,
    -3,
    0,
    1,
    1.0,
    2.5,
    2**53 + 1,
    1e300,
    -0.0,
    "",
    "1",
    "a",
    "b c",
    "ä",
    "Z",
    "\x00",
    "true",
    "é" * 300,
]
NAMES = ["n", "m", "a.b", "", "ü", "é"]


def random_value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if depth and (kind < 0.75 or depth > 2):
        return chance.choice(SCALARS)
    if depth and kind < 0.85:
        return [random_value(chance, depth + 1) for _ in range(chance.randrange(3))]
    return {name: random_value(chance, depth + 1) for name in chance.sample(NAMES, chance.randrange(4))}


def random_filter(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if kind < 0.3 and depth < 3:
        several = [random_filter(chance, depth + 1) for _ in range(chance.randrange(3))]
        return chance.choice([{"$and": several}, {"$or": several}, {"$not": random_filter(chance, depth + 1)}])
    return {name: random_test(chance, depth) for name in chance.sample(NAMES, chance.randrange(1, 3))}


def random_test(chance: random.Random, depth: int) -> Any:
    kind = chance.random()
    if kind < 0.25:
        return chance.choice(SCALARS)
    if kind < 0.5:
        ordered = [one for one in SCALARS if one is not None and not isinstance(one, bool)]
        return {chance.choice(["$gt", "$gte", "$lt", "$lte"]): chance.choice(ordered)}
    if kind < 0.6:
        return {chance.choice(["$in", "$nin"]): chance.sample(SCALARS, chance.randrange(4))}
    if kind < 0.8:
        return {chance.choice(["$eq", "$ne"]): random_value(chance, 1)}
    if kind < 0.85:
        return [chance.choice(SCALARS) for _ in range(chance.randrange(3))]
    if kind < 0.92 and depth < 3:
        return {"$not": random_test(chance, depth + 1)}
    return random_filter(chance, 3) if depth < 3 else chance.choice(SCALARS)


def alike(found: Any, wanted: Any) -> bool:
    """Equal as JSON: numbers by their value, and nothing else is a number."""
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and found.keys() == wanted.keys()
            and all(alike(found[k], wanted[k]) for k in wanted)
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(alike, found, wanted))
    if type(wanted) in (int, float) and type(found) in (int, float):
        return float(found) == float(wanted)
    return type(found) is type(wanted) and found == wanted


def passes(found: Any, wanted: Any) -> bool:
    """What a filter asks of a value that may be missing, told plainly."""
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(passes, found, wanted))
    if not isinstance(wanted, dict):
        return found is MISSING or found is None if wanted is None else alike(found, wanted)
    if not any(key.startswith("$") for key in wanted):
        return isinstance(found, dict) and all(passes(found.get(key, MISSING), one) for key, one in wanted.items())
    for key, one in wanted.items():
        match key:
            case "$and":
                good = all(passes(found, each) for each in one)
            case "$or":
                good = any(passes(found, each) for each in one)
            case "$not":
                good = not passes(found, one)
            case "$eq" | "$ne":
                equal = (found is MISSING or found is None) if one is None else alike(found, one)
                good = equal is (key == "$eq")
            case "$in" | "$nin":
                among = any((found is MISSING or found is None) if each is None else alike(found, each) for each in one)
                good = among is (key == "$in")
            case _:
                numbers = (int, float)
                both = all(type(each) in numbers for each in (found, one)) or type(found) is type(one) is str
                mine, other = (float(found), float(one)) if both and type(one) in numbers else (found, one)
                good = (
                    both
                    and {"$gt": mine > other, "$gte": mine >= other, "$lt": mine < other, "$lte": mine <= other}[key]
                    if both
                    else False
                )
        if not good:
            return False
    return True


@pytest.mark.parametrize("seed", range(3))
def test_filters_choose_what_an_oracle_chooses_whatever_is_written_deleted_and_expires(db, clock, seed):
    chance = random.Random(seed)
    ttl: Any = {"omit_expired": True}
    writer, reader = AgentDBStore(db, ttl=ttl), AgentDBStore(db, ttl=ttl)
    model: dict[tuple[tuple[str, ...], str], tuple[Any, datetime, datetime | None]] = {}
    spaces = [("a",), ("a", "b"), ("aa",), ("b",)]
    checked = 0
    for _ in range(40):
        batch: dict[Any, PutOp] = {}
        for _ in range(chance.randrange(8)):
            at = chance.choice(spaces), f"k{chance.randrange(12)}"
            value = None if chance.random() < 0.25 else random_value(chance)
            minutes = None if value is None else chance.choice([None, None, 1.0, 5.0])
            batch[at] = PutOp(*at, value, ttl=minutes)
        chance.choice([writer, reader]).batch(batch.values())
        for at, op in batch.items():
            model.pop(at, None)
            if op.value is not None:
                until = None if op.ttl is None else clock.now + timedelta(minutes=op.ttl)
                model[at] = op.value, clock.now, until
        if chance.random() < 0.2:
            clock.now += timedelta(minutes=chance.choice([0.5, 3]))
        if chance.random() < 0.1:
            db.flush()
        if chance.random() < 0.1:
            reader.sweep_ttl()
            model = {at: one for at, one in model.items() if one[2] is None or one[2] > clock.now}
        for store in (writer, reader, reader, writer):
            prefix, condition = chance.choice([(), ("a",), ("a", "b"), ("zz",)]), random_filter(chance)
            limit, offset = chance.choice([(3, 0), (100, 0), (2, 2)])
            alive = {
                at: one
                for at, one in model.items()
                if at[0][: len(prefix)] == prefix
                and (one[2] is None or one[2] > clock.now)
                and passes(one[0], condition)
            }
            order = sorted(
                alive, key=lambda at: (-alive[at][1].timestamp(), "".join(f"{label}." for label in at[0]), at[1])
            )
            found = store.search(prefix, filter=condition, limit=limit, offset=offset, refresh_ttl=False)
            assert [(one.namespace, one.key) for one in found] == order[offset : offset + limit], condition
            assert all(one.value == alive[one.namespace, one.key][0] for one in found)
            assert all(one.updated_at == alive[one.namespace, one.key][1] for one in found)
            checked += len(found)
    assert checked > 50
    assert held(reader)


# ------------------------------------------------------------------------------------------------ what keeps them true


def test_what_another_process_writes_and_deletes_is_seen_by_the_next_search(db_path):
    script = f"""
import agentdb
from langgraph_agentdb import AgentDBStore
with agentdb.open({str(db_path)!r}) as db:
    store = AgentDBStore(db)
    store.put(("a", "1"), "new", {{"n": 7}})
    store.put(("a", "0"), "k0", {{"n": 8}})
    store.delete(("a", "1"), "k1")
"""
    with agentdb.open(db_path, config=Config(maintenance=False)) as db:
        store = AgentDBStore(db)
        store.batch([PutOp(("a", str(n % 3)), f"k{n}", {"n": n}) for n in range(6)])
        assert keys(store.search(("a",), filter={"n": {"$lt": 2}})) == ["k0", "k1"]
        subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
        assert keys(store.search(("a",), filter={"n": {"$lt": 2}})) == []
        assert keys(store.search(("a",), filter={"n": {"$gte": 7}})) == ["k0", "new"]
        assert len(held(store)) == 1


def test_deletions_in_very_many_namespaces_are_noticed(db):
    one, other = AgentDBStore(db), AgentDBStore(db)
    one.batch([PutOp(("a", str(n % 100)), f"k{n}", {"n": n}) for n in range(200)])
    assert len(one.search(("a",), filter={"n": {"$gte": 0}}, limit=1000)) == 200
    other.batch([PutOp(("a", str(n % 100)), f"k{n}", None) for n in range(150)])
    assert keys(one.search((), filter={"n": {"$gte": 198}})) == ["k198", "k199"]
    assert len(one.search(("a",), filter={"n": {"$gte": 0}}, limit=1000)) == 50


def test_the_order_holds_when_the_clock_is_put_back(db, clock):
    store = AgentDBStore(db)
    store.put(("a",), "first", {"n": 1})
    assert keys(store.search((), filter={"n": 1})) == ["first"]
    clock.now -= timedelta(hours=1)
    store.put(("a",), "second", {"n": 1})
    store.put(("a",), "third", {"n": 1})
    assert keys(store.search((), filter={"n": 1})) == ["first", "third", "second"]


def test_a_snapshot_of_the_caller_stays_what_it_is(db):
    store = AgentDBStore(db)
    store.put(("a",), "k", {"n": 1})
    assert keys(store.search((), filter={"n": 1})) == ["k"]
    with db.snapshot():
        assert keys(store.search((), filter={"n": 1})) == ["k"]

        def change() -> None:
            store.put(("a",), "k", {"n": 2})
            assert keys(store.search((), filter={"n": 2})) == ["k"]

        changing = threading.Thread(target=change)
        changing.start()
        changing.join()
        assert keys(store.search((), filter={"n": 1})) == ["k"]
    assert store.search((), filter={"n": 1}) == []


def test_a_transaction_sees_its_own_writes_and_leaves_no_trace_of_what_is_undone(db):
    store = AgentDBStore(db)
    store.put(("a",), "k", {"n": 1})
    assert keys(store.search((), filter={"n": 1})) == ["k"]
    try:
        with db.transaction():
            store.put(("a",), "l", {"n": 1})
            assert keys(store.search((), filter={"n": 1})) == ["l", "k"]
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert keys(store.search((), filter={"n": 1})) == ["k"]


def test_columns_that_could_not_be_brought_up_are_given_up(db, monkeypatch):
    store = AgentDBStore(db)
    store.put(("a",), "k", {"n": 1})
    assert keys(store.search((), filter={"n": 1})) == ["k"]
    store.put(("a",), "l", {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(store_columns, "_longer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.search((), filter={"n": 1})
    assert held(store) == []
    assert keys(store.search((), filter={"n": 1})) == ["l", "k"]


def test_threads_share_columns_while_others_write(db):
    store, writer = AgentDBStore(db), AgentDBStore(db)
    writer.batch([PutOp(("a", str(n % 5)), f"k{n}", {"n": n, "even": n % 2 == 0}) for n in range(100)])
    errors: list[BaseException] = []

    def read(number: int) -> None:
        try:
            for n in range(15):
                found = store.search(("a",), filter={"n": {"$gte": 0}, f"new {number} {n}": None}, limit=200)
                assert len({one.key for one in found}) == len(found) == 100
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for n in range(30):
        writer.put(("a", str(n % 5)), f"k{n}", {"n": n, "again": True})
    for one in threads:
        one.join()
    assert errors == []
    assert len(store.search((), filter={"again": True}, limit=200)) == 30


# ----------------------------------------------------------------------------------------------------------- their size


def test_what_is_asked_once_is_answered_by_the_tables(db, monkeypatch):
    monkeypatch.setattr(store_columns, "_IN_TABLES", 1)
    store = AgentDBStore(db)
    store.batch([PutOp(("a", str(n)), "k", {"n": n, "m": -n}) for n in range(5)])
    for n in range(5):
        assert len(store.search(("a", str(n)), filter={"n": n})) == 1
    assert held(store) == []
    for asked in range(1, 4):
        assert len(store.search(("a",), filter={"n": {"$gt": 2}})) == 2
        assert len(held(store)) == (asked > 1)
    (columns,) = held(store)
    assert len(store.search(("a", "3"), filter={"n": {"$gt": 2}})) == 1  # below it
    assert len(store.search(("a",), filter={"m": {"$lt": -2}})) == 2
    assert [path[-1] for path in columns.columns.leaves] == ["n"]
    assert len(store.search(("a",), filter={"m": {"$lt": -2}})) == 2
    assert [path[-1] for path in columns.columns.leaves] == ["n", "m"]
    for _ in range(2):
        assert len(store.search((), filter={"n": {"$gt": 2}})) == 2
    assert [one.prefix for one in held(store)] == [""]  # instead of the narrower one


def test_columns_stay_within_their_budget(open_db):
    with open_db(resident_bytes=8 * 60_000) as db:
        store = AgentDBStore(db)
        store.batch([PutOp((user, "x"), f"k{n}", {"n": n, "text": f"{n}" * 50}) for user in "abc" for n in range(70)])
        budget = store._connection()._columns.budget_bytes
        assert budget == 60_000
        for user in ("a", "b", "a"):
            for _ in range(2):
                assert len(store.search((user,), filter={"n": {"$lt": 20}})) == 10
                assert 0 < sum(one.bytes() for one in held(store)) <= budget
        assert {one.prefix for one in held(store)} == {"a."}  # there is no room for two
        found = store.search(("a",), filter={"text": "7" * 50})  # its texts are too much: they are not held
        assert keys(found) == ["k7"]
        assert sum(one.bytes() for one in held(store)) <= budget
        for _ in range(3):
            assert len(store.search((), filter={"n": {"$lt": 20}}, limit=100)) == 60  # the whole store is too much
        assert sum(one.bytes() for one in held(store)) <= budget


def test_what_is_replaced_again_and_again_is_not_kept(db, monkeypatch):
    monkeypatch.setattr(store_columns, "_WORN_ROWS", 50)
    store = AgentDBStore(db)
    sizes = []
    for n in range(30):
        store.batch([PutOp(("a",), f"k{i}", {"n": n}) for i in range(10)])
        assert len(store.search((), filter={"n": n})) == 10
        assert store.search((), filter={"n": n - 1}) == []
        sizes += [len(one.columns) for one in held(store)]
    assert max(sizes) <= 70
