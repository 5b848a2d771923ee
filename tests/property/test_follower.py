"""Followers against scans: whatever was written, flushed or compacted in between, a follower reaches what a scan sees."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentdb
from agentdb import Config, TableSchema, field
from agentdb.errors import NotFoundError, UnavailableError
from agentdb.filters import And, Filter
from agentdb.storage.engine import Engine, _Shared
from agentdb.storage.follower import Follower, SlotRows
from agentdb.storage.table import Table

CONFIG = Config(maintenance=False, bulk_rows=5, bulk_bytes=1, durability="normal")
FIELDS = [
    pa.field("tenant", pa.string()),
    pa.field("no", pa.int64()),
    pa.field("agent", pa.string()),
    pa.field("n", pa.int64()),
    pa.field("meta", pa.json_()),
    pa.field("vec", pa.list_(pa.float32(), 2)),
]
ROWS = TableSchema("rows", FIELDS, key=("tenant", "no"), indexed=["agent"])
HEADS = TableSchema("heads", FIELDS[:4], key=("tenant", "no"), indexed=["agent"], hot_only=True)
EXTRA = pa.field("extra", pa.string())
CONDITIONS: list[Filter | None] = [
    None,
    field("agent") == "a",
    field("meta", "kind") == "x",
    field("n") >= 2,  # a range on a column without an index: Python decides in the hot tier
    (field("tenant") == "\x01t") & (field("meta", "n") > 1),  # a range in JSON: Python decides in both
]


def row(tenant: str, no: int, n: int) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "no": no,
        "agent": "ab"[n % 2],
        "n": n,
        "meta": {"kind": "xy"[n // 2 % 2], "n": n},
        "vec": None if n == 3 else np.array([n, no], np.float32),
    }


def frozen(one: dict[str, Any]) -> tuple[Any, ...]:
    return tuple((k, tuple(v.tolist()) if isinstance(v, np.ndarray) else repr(v)) for k, v in sorted(one.items()))


class Followed:
    """A follower, and what its changes add up to."""

    def __init__(self, table: Table, condition: Filter | None) -> None:
        self.table = table
        self.condition = condition
        names = [c.name for c in table.schema.columns]
        self.follower: Follower = table.follow(names, filter=condition)
        self.slots: dict[int, dict[str, Any]] = {}

    def advance(self) -> None:
        change = self.follower.advance()
        if change is not None:
            assert len(change.removed) or change.added.num_rows
            for slot in change.removed.tolist():
                del self.slots[slot]
            assert change.first + change.added.num_rows == self.follower.size
            rows = self.table.schema.arrow_to_rows(change.added, self.follower.columns)
            keys = change.added.column("_key").to_pylist()
            assert self.follower.encoded_keys(range(change.first, self.follower.size)) == keys
            self.slots.update((change.first + i, one) for i, one in enumerate(rows))

    def check(self, other: Filter) -> None:
        names = list(self.follower.columns)
        expected = {frozen(one) for one in self.table.scan(self.condition, columns=names)}
        assert {frozen(one) for one in self.slots.values()} == expected
        assert len(self.slots) == len(expected) == self.follower.live
        live = sorted(self.slots)
        rows = self.follower.rows_of()
        assert np.flatnonzero(rows.live).tolist() == live
        assert [frozen(one) for one in self.follower.fetch(rows, live, names)] == [
            frozen(self.slots[slot]) for slot in live
        ]
        keys = self.follower.encoded_keys(live)
        assert self.follower.slots_of(keys).tolist() == live
        assert self.follower.key_values(live) == [(one["tenant"], one["no"]) for one in map(self.slots.get, live)]
        mask = self.follower.mask(other)
        both = other if self.condition is None else And(self.condition, other)
        assert {frozen(self.slots[i]) for i in live if mask[i]} == {
            frozen(one) for one in self.table.scan(both, columns=names)
        }


class Hot:
    """A follower of the hot part only."""

    def __init__(self, table: Table, condition: Filter | None) -> None:
        self.table = table
        self.condition = condition
        self.follower = table.follow(["n"], filter=condition, part="hot")
        self.keys: dict[int, str] = {}

    def advance(self) -> None:
        change = self.follower.advance()
        if change is not None:
            for slot in change.removed.tolist():
                del self.keys[slot]
            self.keys.update((change.first + i, key) for i, key in enumerate(change.added.column("_key").to_pylist()))

    def check(self, other: Filter) -> None:
        core = self.table._core
        with core.reading() as view:
            hot = self.table._entry(view).hot
            known = hot.keys(view.connection)
            live = {one.key for one in hot.written(view.connection, 0)} - {
                key for key, values in hot.get_many(view.connection, known).items() if values is None
            }
        shadow = self.follower.shadowing()
        # Tombstones of rows that never were cold go without a new version: they may be named still, and hide nothing.
        assert set(known) <= set(shadow)
        assert all(key in shadow for key in shadow)
        assert len(list(shadow)) == len(shadow)
        matching = {self.table.schema.encode_key((one["tenant"], one["no"])) for one in self.table.scan(self.condition)}
        assert sorted(self.keys.values()) == sorted(live & matching)
        mask = self.follower.mask(other)
        chosen = {self.table.schema.encode_key((one["tenant"], one["no"])) for one in self.table.scan(other)}
        assert {key for slot, key in self.keys.items() if mask[slot]} == live & matching & chosen


keys = st.tuples(st.sampled_from(["", "a", "\x01t"]), st.integers(-1, 4))
some = st.lists(st.tuples(keys, st.integers(0, 5)), min_size=1, max_size=4)
many = st.lists(st.tuples(keys, st.integers(0, 5)), min_size=8, max_size=14)
conditions = st.sampled_from([one for one in CONDITIONS if one is not None])
put = st.tuples(st.just("put"), some)
bulk = st.tuples(st.just("put"), many)
delete = st.tuples(st.just("delete"), st.lists(keys, min_size=1, max_size=3))
delete_where = st.tuples(st.just("delete where"), conditions)
transaction = st.tuples(
    st.just("transaction"), st.lists(st.one_of(put, bulk, delete, delete_where), min_size=1, max_size=4), st.booleans()
)
flush = st.just(("flush",))
operations = st.one_of(
    *(put, put, bulk, bulk, delete, delete_where, transaction, flush, flush),
    st.just(("optimize",)),
    st.tuples(st.just("erase"), st.lists(keys, min_size=1, max_size=3)),
    st.just(("add column",)),
)


def perform(db: Engine, name: str, operation: tuple[Any, ...]) -> None:
    table = db.table(name)
    match operation:
        case ("put", rows):
            wanted = {c.name for c in table.schema.columns}
            table.put_many([{k: v for k, v in row(*key, n).items() if k in wanted} for key, n in rows])
        case ("delete", keys):
            table.delete_many(keys)
        case ("delete where", condition):
            if "meta" in {c.name for c in table.schema.columns}:
                table.delete_many(filter=condition)
        case ("transaction", inner, commits):
            try:
                with db.transaction():
                    for one in inner:
                        perform(db, name, one)
                    if not commits:
                        raise KeyError
            except KeyError:
                pass
        case ("flush",):
            db.flush(name)
        case ("optimize",):
            db.optimize()
        case ("erase", keys):
            table.erase_many(keys)
        case ("add column",):
            if "extra" not in {c.name for c in table.schema.columns} and name == "rows":
                table.add_columns([EXTRA])


@given(data=st.data())
@pytest.mark.parametrize("name", ["rows", "heads"])
def test_a_follower_reaches_what_a_scan_sees(name, data):
    root = Path(tempfile.mkdtemp())
    # Two engines on one directory share nothing but the files, as two processes do.
    shared: list[_Shared] = []
    try:
        agentdb.open(root / "db", config=CONFIG).close()
        shared = [_Shared(root / "db", CONFIG, read_only=False) for _ in range(2)]
        for one in shared:
            one.start()
        engines = [Engine(one) for one in shared]
        engines[0].table(ROWS if name == "rows" else HEADS)
        usable = CONDITIONS if name == "rows" else CONDITIONS[:2] + CONDITIONS[3:4]
        table = engines[0].table(name)
        followed: list[Followed | Hot] = [Followed(table, one) for one in usable]
        if name == "rows":
            followed += [Hot(table, usable[0]), Hot(table, usable[3])]
        for operation in data.draw(st.lists(operations, min_size=4, max_size=24)):
            perform(engines[data.draw(st.sampled_from([0, 0, 1]))], name, operation)
            # Some fall behind and catch up over several commits.
            behind = data.draw(st.sets(st.integers(0, len(followed) - 1)))
            other = data.draw(st.sampled_from([one for one in usable if one is not None]))
            with engines[0].snapshot():
                for i, one in enumerate(followed):
                    if i not in behind:
                        one.advance()
                        assert one.follower.advance() is None
                        one.check(other)
        with engines[0].snapshot():
            for one in followed:
                one.advance()
                one.check(usable[1])
    finally:
        for one in shared:
            one.core.close_stores()
        shutil.rmtree(root)


@pytest.fixture
def db(db_path):
    with agentdb.open(db_path, config=CONFIG) as db:
        yield db


def in_another_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_an_older_state_stays_readable_while_the_follower_goes_on(db):
    table = db.table(ROWS)
    table.put_many([row("a", no, 1) for no in range(4)])
    db.flush()
    table.put_many([row("a", no, 2) for no in range(4, 8)])
    follower = table.follow(["n"])
    with db.snapshot():
        follower.advance()
        before: SlotRows = follower.rows_of()
        slots = np.flatnonzero(before.live)
        expected = follower.fetch(before, slots, ["no", "n"])
        even = follower.mask(field("n") == 2, before).copy()

        def change() -> None:
            table.put_many([row("a", no, 0) for no in range(2, 6)])
            table.delete(("a", 0))
            db.flush()
            with db.snapshot():
                follower.advance()
                assert follower.live == 7

        in_another_thread(change)
        assert np.flatnonzero(before.live).tolist() == slots.tolist()
        assert follower.fetch(before, slots, ["no", "n"]) == expected
        assert follower.mask(field("n") == 2, before).tolist() == even.tolist()
        assert follower.mask(field("n") == 1, before).tolist() == (~even).tolist()
        assert not follower.can_follow()
        with pytest.raises(UnavailableError, match="older snapshot"):
            follower.advance()
        with pytest.raises(UnavailableError, match="another state"):
            follower.fetch(follower.rows_of(), [0], ["n"])
    assert follower.can_follow()


def test_a_transaction_is_not_followed(db):
    table = db.table(ROWS)
    follower = table.follow(["n"])
    with db.transaction():
        assert not table.is_plain_view()
        assert not follower.can_follow()
        with pytest.raises(UnavailableError, match="transaction"):
            follower.advance()
    assert table.is_plain_view()
    with db.snapshot():
        assert table.is_plain_view()


def test_a_flush_moves_rows_without_reading_them(db, monkeypatch):
    table = db.table(ROWS)
    table.put_many([row("a", 0, 1)])
    db.flush()
    table.put_many([row("a", no, 1) for no in range(1, 4)])
    follower = table.follow(["vec"])
    follower.advance()
    columns = []
    rows = db._core.cold.rows
    monkeypatch.setattr(db._core.cold, "rows", lambda *args: columns.append(args[3]) or rows(*args))
    db.flush()
    assert follower.advance() is None
    assert columns == [["_key", "_seq"]]
    with db.snapshot():
        assert [one["no"] for one in follower.fetch(follower.rows_of(), range(4), ["no"])] == [0, 1, 2, 3]


def test_a_follower_of_a_dropped_table_says_so(db):
    table = db.table(ROWS)
    follower = table.follow(["n"])
    db.drop_table("rows")
    db.table(ROWS)
    with pytest.raises(NotFoundError):
        follower.advance()


def test_many_rows_are_masked_by_one_scan(db):
    table = db.table(ROWS)
    table.put_many(pa.table({"tenant": ["t"] * 1500, "no": range(1500), "n": [i % 5 for i in range(1500)]}))
    with db.transaction():
        for no in range(1500, 2100):
            table.put({**row("t", no, 0), "n": no % 5})
    follower = table.follow([], filter=field("no") >= 100)
    follower.advance()
    with db.snapshot():
        numbers = [no for _, no in follower.key_values(range(follower.size))]
        assert follower.mask(field("n") == 3).tolist() == [no % 5 == 3 for no in numbers]
        assert follower.mask(field("meta", "n") > 3).tolist() == [False] * 2000


def test_a_tombstone_that_is_flushed_without_a_new_version_is_noticed(db):
    table = db.table(ROWS)
    followers = [table.follow(["n"]), table.follow(["n"], part="hot")]
    table.put_many([row("a", 0, 1), row("a", 1, 1)])
    for one in followers:
        one.advance()
    table.delete_many([("a", 0), ("a", 1)])
    assert db.flush() == 2
    table.put(row("a", 2, 1))
    for one in followers:
        change = one.advance()
        assert (change.removed.tolist(), change.added.num_rows, one.live) == ([0, 1], 1, 1)
