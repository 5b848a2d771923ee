"""What a table's methods mean, and every error they document."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import agentdb
from agentdb import Config, TableSchema
from agentdb.errors import InvalidInputError, NotFoundError
from agentdb.filters import And, field
from agentdb.testing.models import ModelTable, frozen

US = pa.timestamp("us", tz="UTC")
DOCS = TableSchema(
    "docs",
    [
        pa.field("id", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("at", US),
        pa.field("meta", pa.json_()),
        pa.field("vec", pa.list_(pa.float32(), 3)),
        pa.field("raw", pa.binary()),
        pa.field("tags", pa.list_(pa.string())),
    ],
    key="id",
    indexed=["n"],
)
PAIRS = TableSchema(
    "pairs", [pa.field("a", pa.string()), pa.field("b", pa.int64()), pa.field("v", pa.string())], key=["a", "b"]
)
HEADS = TableSchema(
    "heads",
    [pa.field("id", pa.string()), pa.field("n", pa.int64()), pa.field("m", pa.json_())],
    key="id",
    hot_only=True,
)
CONFIG = Config(maintenance=False, durability="normal", bulk_rows=100, bulk_bytes=1)
MOMENT = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=CONFIG) as opened:
        yield opened


@pytest.fixture
def docs(db: agentdb.Database) -> Any:
    return db.table(DOCS)


@pytest.fixture(params=["hot", "cold", "both"])
def settle(request: pytest.FixtureRequest, db: agentdb.Database) -> Any:
    """Move what was written to the cold tier, all of it, none of it, or all but what comes after the first call."""
    calls = iter([True])

    def act() -> None:
        if request.param == "cold" or (request.param == "both" and next(calls, False)):
            db.flush()

    return act


def doc(i: int, **more: Any) -> dict[str, Any]:
    return {"id": f"d{i:03d}", "n": i, "at": MOMENT, "meta": {"i": i}, "vec": [float(i), 1.0, 0.0], **more}


# --- rows -------------------------------------------------------------------------------------------------------------


def test_put_get_replace_delete(docs: Any, settle: Any) -> None:
    assert docs.get("d001") is None
    with pytest.raises(NotFoundError, match="docs has no row"):
        docs.require("d001")
    docs.put(doc(1))
    settle()
    row = docs.require("d001")
    assert row == docs.get("d001") | {"vec": row["vec"]}
    assert (row["n"], row["at"], row["meta"], row["raw"], row["tags"]) == (1, MOMENT, {"i": 1}, None, None)
    assert row["at"].tzinfo is UTC
    assert row["vec"].dtype == np.float32
    docs.put({"id": "d001"})
    settle()
    assert docs.get("d001") == {
        "id": "d001",
        "n": None,
        "at": None,
        "meta": None,
        "vec": None,
        "raw": None,
        "tags": None,
    }
    assert docs.delete("d001") is True
    assert docs.delete("d001") is False
    assert docs.get("d001") is None
    settle()
    assert docs.get("d001") is None
    assert docs.count() == 0
    docs.put(doc(1))
    assert docs.count() == 1


@pytest.mark.parametrize("schema", [DOCS, HEADS], ids=["both tiers", "hot only"])
def test_the_commit_that_wrote_a_row(db: agentdb.Database, schema: TableSchema) -> None:
    rows = db.table(schema)

    def both() -> list[int | None]:
        return [rows.last_commit("d000"), rows.last_commit("d001")]

    assert both() == [None, None]
    rows.put_many({"id": f"d{i:03d}", "n": i} for i in range(2))
    first, other = both()
    assert first is not None
    assert other == first
    rows.put({"id": "d000", "n": 0})  # as it was: written all the same
    second, other = both()
    assert second is not None
    assert second > first
    assert other == first
    db.flush()
    assert both() == [second, first]
    db.optimize()
    assert both() == [second, first]
    rows.put_many({"id": f"d{i:03d}", "n": i} for i in range(1, 201))  # enough to go straight to the cold tier
    third = rows.last_commit("d001")
    assert third is not None
    assert third > second
    assert rows.last_commit("d200") == third
    assert both() == [second, third]
    with db.transaction():
        rows.put({"id": "d000", "n": 5})
        fourth = rows.last_commit("d000")
        assert fourth is not None
        assert fourth > third
    assert rows.last_commit("d000") == fourth
    rows.delete("d000")
    assert rows.last_commit("d000") is None
    db.flush()
    assert rows.last_commit("d000") is None
    with pytest.raises(InvalidInputError, match="str"):
        rows.last_commit(7)
    db.drop_table(schema.name)
    with pytest.raises(NotFoundError):
        rows.last_commit("d001")


def test_a_snapshot_sees_the_commit_of_its_state(db: agentdb.Database) -> None:
    for schema in (DOCS, HEADS):
        rows = db.table(schema)
        rows.put({"id": "d000", "n": 1})
        before = rows.last_commit("d000")
        with db.snapshot():
            with ThreadPoolExecutor(1) as pool:
                pool.submit(rows.put, {"id": "d000", "n": 2}).result()
            assert rows.last_commit("d000") == before
        assert rows.last_commit("d000") != before


def test_get_many_keeps_order_and_repeats(docs: Any, settle: Any) -> None:
    docs.put_many([doc(i) for i in range(5)])
    settle()
    docs.put_many([doc(i) for i in range(5, 8)])
    docs.delete("d003")
    found = docs.get_many(["d007", "d003", "zzz", "d001", "d007"])
    assert [None if one is None else one["n"] for one in found] == [7, None, None, 1, 7]
    assert docs.get_many([]) == []
    many = docs.get_many(f"d{i:03d}" for i in range(3_000))
    assert sum(one is not None for one in many) == 7


def test_put_many_takes_rows_and_arrow(docs: Any) -> None:
    table = pa.table({"id": ["a", "b", "a"], "n": [1, 2, 3], "meta": ['{"x": 1}', None, '{"x":2}']})
    assert docs.put_many([doc(1), doc(2), doc(1, n=9)]) == 3
    assert docs.put_many(table) == 3
    assert docs.put_many(table.to_batches()[0]) == 3
    assert docs.put_many(table.to_reader()) == 3
    assert docs.put_many(iter([])) == 0
    assert docs.put_many(table.slice(0, 0)) == 0
    assert docs.put_many(table.to_reader(max_chunksize=1)) == 3
    assert docs.count() == 4
    assert docs.get("a")["n"] == 3
    assert docs.get("a")["meta"] == {"x": 2}
    assert docs.get("d001")["n"] == 9


@pytest.mark.parametrize("rows", [None, 5, "text", {"id": "a"}, [5], [["a"]]])
def test_put_many_refuses_what_holds_no_rows(docs: Any, rows: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"rows must be an iterable|must be a mapping"):
        docs.put_many(rows)
    assert docs.count() == 0


def test_a_bad_row_writes_nothing(docs: Any, settle: Any) -> None:
    docs.put(doc(0))
    settle()
    before = docs.get_many(["d000"])

    def rows(n: int, bad: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from (doc(i) for i in range(1, n))
        yield bad

    for n in (3, 300):
        for bad in (
            {"id": None},
            {"id": 5},
            doc(1, vec=[1.0]),
            doc(1, vec=[math.nan] * 3),
            doc(1, meta={"a": math.inf}),
            doc(1, n=2**63),
        ):
            with pytest.raises(InvalidInputError):
                docs.put_many(rows(n, bad))
    with pytest.raises(ZeroDivisionError):
        docs.put_many(doc(1 // (3 - i)) for i in range(5))
    for vectors in ([[1.0, math.nan, 0.0]], [[1.0, None, 0.0]], [[math.inf, 1.0, 0.0]], [[1.0]]):
        with pytest.raises(InvalidInputError, match="vec"):
            docs.put_many(pa.table({"id": ["x"], "vec": pa.array(vectors, pa.list_(pa.float32()))}))
    assert docs.count() == 1
    assert [frozen(one) for one in docs.get_many(["d000"])] == [frozen(one) for one in before]


def test_big_batches_go_straight_to_the_cold_tier(db: agentdb.Database, docs: Any) -> None:
    docs.put_many([doc(i, raw=b"old") for i in range(10)])
    docs.delete("d003")
    assert docs.put_many([doc(i, raw=b"new") for i in range(5, 505)]) == 500
    stats = db.stats().tables["docs"]
    assert (stats.hot_rows, stats.cold_rows) == (5, 500)
    assert docs.count() == 504
    assert docs.get("d005")["raw"] == b"new"
    assert docs.get("d004")["raw"] == b"old"
    arrow = pa.table({"id": [f"d{i:03d}" for i in range(400, 900)] * 2, "n": range(1000)})
    assert docs.put_many(arrow) == 1000
    assert docs.count() == 899
    assert docs.get("d400")["n"] == 500
    assert docs.get("d400")["raw"] is None
    db.optimize()
    assert docs.count() == 899
    assert db.verify().ok


def test_a_bulk_write_over_a_tombstone(db: agentdb.Database, docs: Any) -> None:
    docs.put_many([doc(i) for i in range(200)])
    docs.delete_many([f"d{i:03d}" for i in range(100)])
    docs.put_many([doc(i, n=-i) for i in range(50, 250)])
    assert docs.count() == 200
    assert docs.get("d010") is None
    assert docs.get("d060")["n"] == -60
    assert db.verify().ok


# --- deletes ----------------------------------------------------------------------------------------------------------


def test_delete_many(docs: Any, settle: Any) -> None:
    docs.put_many([doc(i) for i in range(10)])
    settle()
    docs.put(doc(9, n=100))
    assert docs.delete_many(["d001", "d001", "zzz", "d002"]) == 2
    assert docs.delete_many([]) == 0
    assert docs.delete_many(filter=field("n") >= 8) == 2
    assert docs.delete_many(filter=field("meta", "i") == 3) == 1
    assert docs.delete_many(filter=field("n") == 12345) == 0
    assert docs.delete_many(key for key in ["d004"]) == 1
    assert sorted(row["n"] for row in docs.scan()) == [0, 5, 6, 7]
    for arguments in ({}, {"keys": ["a"], "filter": field("n") == 1}):
        with pytest.raises(InvalidInputError, match="either keys or a filter"):
            docs.delete_many(**arguments)
        with pytest.raises(InvalidInputError, match="either keys or a filter"):
            docs.erase_many(**arguments)
    with pytest.raises(InvalidInputError, match="filter"):
        docs.delete_many(filter="n = 1")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_odd_keys(docs: Any, settle: Any) -> None:
    keys = [
        "",
        "\0",
        "a\0b",
        "a\1",
        "a\2",
        "a'b",
        '"',
        "%",
        "é",
        "e\u0301",
        "\ue000",
        "\U0001f600",
        "x" * 4000,
        "a",
        "A",
        " a",
    ]
    docs.put_many([{"id": key, "n": i} for i, key in enumerate(keys)])
    settle()
    assert [docs.get(key)["n"] for key in keys] == list(range(len(keys)))
    assert [row["n"] for row in docs.get_many(reversed(keys))] == list(reversed(range(len(keys))))
    assert [row["id"] for row in docs.scan(order_by="id")] == sorted(keys)
    for i, key in enumerate(keys):
        assert [row["n"] for row in docs.scan(field("id") == key)] == [i]
        assert docs.delete(key)
    assert docs.count() == 0


@pytest.mark.parametrize("key", ["\ud800", None, 5, b"a", ("a", "b"), ["a"], (), "x" * 5000])
def test_bad_keys(docs: Any, key: Any) -> None:
    for call in (docs.get, docs.require, docs.delete):
        with pytest.raises(InvalidInputError, match="id"):
            call(key)
    for call in (docs.get_many, docs.delete_many, docs.erase_many):
        with pytest.raises(InvalidInputError, match="id"):
            call([key])


def test_compound_keys(db: agentdb.Database, settle: Any) -> None:
    pairs = db.table(PAIRS)
    keys = [(a, b) for a in ("", "a", "a\1", "b") for b in (-(2**63), -1, 0, 1, 2**63 - 1)]
    pairs.put_many([{"a": a, "b": b, "v": f"{a}{b}"} for a, b in keys])
    settle()
    assert all(pairs.get((a, b))["v"] == f"{a}{b}" for a, b in keys)
    assert [(row["a"], row["b"]) for row in pairs.scan(order_by=["a", "b"])] == sorted(keys)
    assert pairs.count(field("a") == "a") == 5
    assert pairs.count(And(field("a") == "a", field("b") < 0)) == 2
    assert [row["b"] for row in pairs.scan(field("a") == "a", order_by=("b", "desc"), limit=2)] == [2**63 - 1, 1]
    for bad in ("a", ("a",), ("a", 1, 2), ("a", "1")):
        with pytest.raises(InvalidInputError, match=r"a, b|column b|b must"):
            pairs.get(bad)


# --- scans ------------------------------------------------------------------------------------------------------------


def test_both_tiers_sort_alike(db: agentdb.Database) -> None:
    values: dict[str, tuple[pa.DataType, list[Any]]] = {
        "text": (pa.string(), ["", "Z", "a", "é", "\ue000", "\U0001f600", None]),
        "flag": (pa.bool_(), [True, None, False]),
        "whole": (pa.int64(), [-(2**63), -1, 0, 2**63 - 1, None]),
        "unsigned": (pa.uint64(), [0, 1, 2**63, 2**64 - 1, None]),
        "real": (pa.float64(), [0.0, -0.0, math.inf, -math.inf, 5e-324, None]),
        "raw": (pa.binary(), [b"", b"\0", b"\xff", b"a", None]),
        "at": (pa.timestamp("us", tz="UTC"), [datetime(1, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC), None]),
        "day": (pa.date32(), [date(9999, 12, 31), date(1969, 12, 31), None]),
    }
    fields = [
        pa.field("id", pa.string(), nullable=False),
        *(pa.field(name, kind) for name, (kind, _) in values.items()),
    ]
    table = db.table(TableSchema("sorted", fields, key="id"))
    table.put_many(
        {"id": f"{7 * i % 50:02}", **{name: found[i % len(found)] for name, (_, found) in values.items()}}
        for i in range(50)
    )
    orders: list[Any] = [(name, way) for name in values for way in ("asc", "desc")]
    orders += [["flag", ("text", "desc")], [("day", "desc"), "whole", "real"]]

    def ranked() -> list[list[Any]]:
        return [[row["id"] for row in table.scan(order_by=one, limit=limit)] for one in orders for limit in (None, 9)]

    hot = ranked()
    assert sorted(hot[0]) == [f"{i:02}" for i in range(50)]
    db.flush()
    assert ranked() == hot


@pytest.mark.parametrize("cold", [0, 30, 60])
def test_first_rows_by_key_are_the_first_of_all(db: agentdb.Database, cold: int) -> None:
    fields = [pa.field("a", pa.string(), nullable=False), pa.field("b", pa.int64(), nullable=False)]
    fields += [pa.field("c", pa.string(), nullable=False), pa.field("n", pa.int64())]
    table = db.table(TableSchema("series", fields, key=("a", "b", "c"), indexed="n"))
    rows = [{"a": "xy"[i % 2], "b": i // 2 % 5 - 2, "c": f"{7 * i % 60:02}", "n": i} for i in range(60)]
    table.put_many(rows[:cold])
    db.flush()
    table.put_many(rows[cold:])
    table.delete(("x", -2, "00"))
    filters = {
        None: lambda _: True,
        field("a") == "x": lambda row: row["a"] == "x",
        And(field("a") == "y", field("b") == 1): lambda row: row["a"] == "y" and row["b"] == 1,
        And(field("a") == "y", field("b") > 0): lambda row: row["a"] == "y" and row["b"] > 0,
        field("n") <= 40: lambda row: row["n"] <= 40,
    }
    orders = ["a", "b", "c", "n"], ["b", "c"], ["b"], ["c"], ["c", "b"], ["b", "a", "c"]
    ways = [[(name, way) for name in names] for names in orders for way in ("asc", "desc")]
    ways += [[("b", "desc"), ("c", "asc")], [("a", "desc"), ("b", "asc")]]
    for condition, holds in filters.items():
        matching = [row for row in rows[1:] if holds(row)]
        for order in ways:
            expected = sorted(matching, key=lambda row: (row["a"], row["b"], row["c"]))
            for name, way in reversed(order):
                expected.sort(key=lambda row: row[name], reverse=way == "desc")
            for limit in (None, 1, 7):
                assert list(table.scan(condition, order_by=order, limit=limit)) == expected[:limit]
        some = list(table.scan(condition, limit=7))
        assert len(some) == min(7, len(matching))
        assert all(row in matching for row in some)


def test_scan_options(docs: Any, settle: Any) -> None:
    docs.put_many([doc(i) for i in range(6)])
    settle()
    docs.put_many([doc(i, n=None) for i in range(6, 8)])
    docs.delete("d000")
    assert list(docs.scan(limit=0)) == []
    assert list(docs.scan(limit=0, order_by="n")) == []
    assert len(list(docs.scan(limit=3))) == 3
    assert len(list(docs.scan(limit=300))) == 7
    assert [row["n"] for row in docs.scan(order_by="n")] == [1, 2, 3, 4, 5, None, None]
    assert [row["n"] for row in docs.scan(order_by=("n", "desc"))] == [5, 4, 3, 2, 1, None, None]
    assert [row["id"] for row in docs.scan(order_by=["at", ("n", "desc")], limit=2)] == ["d005", "d004"]
    assert [row["id"] for row in docs.scan(order_by="at")] == sorted(row["id"] for row in docs.scan())
    assert list(docs.scan(field("n") == 2, columns=["n"])) == [{"n": 2}]
    assert list(docs.scan(field("n") == 2, columns=["meta", "n"], order_by="id")) == [{"meta": {"i": 2}, "n": 2}]
    assert list(docs.scan(field("n") <= 2, columns=[])) == [{}, {}]
    assert list(docs.scan(field("n") > 100)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": -1}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": 1.0}, "limit"),
        ({"columns": ["z"]}, "'z'"),
        ({"columns": "n"}, "columns"),
        ({"columns": ["_key"]}, "_key"),
        ({"order_by": "z"}, "'z'"),
        ({"order_by": "meta"}, "meta cannot be sorted"),
        ({"order_by": "vec"}, "vec cannot be sorted"),
        ({"order_by": "tags"}, "tags cannot be sorted"),
        ({"order_by": [("n", "up")]}, "direction"),
        ({"order_by": ("n", "up")}, "direction|'up'"),
        ({"order_by": 5}, "order_by"),
        ({"order_by": [5]}, "order_by"),
        ({"order_by": [("n", "asc", "x")]}, "order_by"),
        ({"filter": "n = 1"}, "filter"),
        ({"filter": field("z") == 1}, "'z'"),
        ({"filter": field("n", "x") == 1}, "holds no JSON"),
    ],
    ids=repr,
)
def test_bad_scans(docs: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        docs.scan(**arguments)
    with pytest.raises(InvalidInputError, match=message):
        docs.scan_arrow(**arguments)


def test_a_bad_filter_is_refused_everywhere(docs: Any) -> None:
    for call in (
        docs.count,
        lambda f: docs.delete_many(filter=f),
        lambda f: docs.erase_many(filter=f),
        lambda f: docs.search("vec", [1, 0, 0], filter=f),
    ):
        with pytest.raises(InvalidInputError, match="'z'"):
            call(field("z") == 1)
        with pytest.raises(InvalidInputError, match="filter"):
            call("n = 1")


def test_scan_arrow_has_the_callers_types(db: agentdb.Database, docs: Any, settle: Any) -> None:
    assert docs.scan_arrow().read_all().schema == DOCS.arrow
    docs.put_many([doc(i) for i in range(5)])
    settle()
    docs.put(doc(5, tags=["a", None]))
    reader = docs.scan_arrow(order_by="n")
    assert reader.schema == DOCS.arrow
    found = reader.read_all()
    assert found.schema == DOCS.arrow
    assert isinstance(found.schema.field("meta").type, pa.JsonType)
    assert found["meta"].to_pylist()[2] == '{"i":2}'
    other = db.table(TableSchema("copy", DOCS.arrow, key="id"))
    assert other.put_many(docs.scan_arrow()) == 6
    assert [frozen(row) for row in other.scan(order_by="id")] == [frozen(row) for row in docs.scan(order_by="id")]
    assert docs.scan_arrow(columns=["n"], limit=2).read_all().column_names == ["n"]
    assert docs.scan_arrow(columns=[]).read_all().num_columns == 0


def test_an_empty_table(db: agentdb.Database, docs: Any) -> None:
    for _ in range(2):
        assert docs.count() == 0
        assert list(docs.scan(order_by="n")) == []
        assert docs.get("a") is None
        assert docs.search("vec", [1, 0, 0]) == []
        assert docs.delete_many(filter=field("n") > 0) == 0
        assert docs.scan_arrow().read_all().num_rows == 0
        docs.put(doc(1))
        db.flush()
        docs.delete("d001")
        db.flush()
    db.optimize()
    assert docs.count() == 0
    assert db.verify().ok


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_search(docs: Any, settle: Any) -> None:
    docs.put_many([doc(i, vec=[math.cos(i), math.sin(i), 0.5]) for i in range(20)])
    settle()
    docs.put_many([doc(3, vec=None), doc(4, vec=[1.0, 0.0, 0.0]), doc(21, vec=[0.0, 0.0, 0.0])])
    docs.delete("d005")
    model = ModelTable(DOCS)
    model.put_many(docs.scan())
    for metric in ("cosine", "l2", "dot"):
        for k in (1, 5, 100):
            for condition in (None, field("n") > 10, field("meta", "i") >= 7, field("n") == -1):
                hits = docs.search("vec", [1, 0.5, 0], k, metric=metric, filter=condition)
                expected = model.search("vec", [1, 0.5, 0], k, metric=metric, filter=condition)
                assert [(hit.distance, hit.id) for hit in hits] == expected
                assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    best = docs.search("vec", np.array([1, 0, 0]), 1)[0]
    assert best.id == "d004"
    assert best.score == 1.0
    assert set(best.metadata) == {"id", "n", "at", "meta", "raw", "tags"}
    assert docs.search("vec", [1, 0, 0], 1, columns=["n", "vec"])[0].metadata["n"] == 4
    assert docs.search("vec", [1, 0, 0], 1, columns=[])[0].metadata == {}


def test_ties_are_broken_by_key(docs: Any, settle: Any) -> None:
    docs.put_many([doc(i, vec=[1.0, 0.0, 0.0]) for i in reversed(range(60))])
    settle()
    docs.put_many([doc(i, vec=[2.0, 0.0, 0.0]) for i in range(60, 80)])
    for metric in ("cosine", "dot", "l2"):
        hits = docs.search("vec", [1, 0, 0], 3, metric=metric)
        assert [hit.id for hit in hits] == (["d060", "d061", "d062"] if metric == "dot" else ["d000", "d001", "d002"])


def test_search_by_a_compound_key(db: agentdb.Database) -> None:
    schema = TableSchema(
        "vp",
        [pa.field("a", pa.string()), pa.field("b", pa.int64()), pa.field("v", pa.list_(pa.float16(), 2))],
        key=["a", "b"],
    )
    table = db.table(schema)
    table.put_many([{"a": "x", "b": i, "v": [1.0, i]} for i in range(5)])
    for _ in range(2):
        assert [hit.id for hit in table.search("v", [1, 4], 2, metric="l2")] == [("x", 4), ("x", 3)]
        db.flush()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"column": "n"}, "n holds no vectors"),
        ({"column": "z"}, "'z'"),
        ({"query": [1, 2]}, "vec must have shape"),
        ({"query": [math.nan, 0, 0]}, "NaN"),
        ({"query": [0, 0, 0]}, "zero vector"),
        ({"query": None}, "query|vec"),
        ({"query": "abc"}, "vec"),
        ({"k": 0}, "k must be"),
        ({"k": True}, "k must be"),
        ({"k": 1.5}, "k must be"),
        ({"metric": "hamming"}, "metric must be one of cosine, l2, dot"),
        ({"columns": ["z"]}, "'z'"),
    ],
    ids=repr,
)
def test_bad_searches(docs: Any, arguments: dict[str, Any], message: str) -> None:
    docs.put(doc(1))
    with pytest.raises(InvalidInputError, match=message):
        docs.search(**{"column": "vec", "query": [1, 0, 0], **arguments})


# --- hot-only tables --------------------------------------------------------------------------------------------------


def test_a_hot_only_table_never_leaves_sqlite(db: agentdb.Database) -> None:
    heads = db.table(HEADS)
    heads.put_many([{"id": str(i), "n": i, "m": {"i": i % 3}} for i in range(300)])
    heads.put({"id": "5", "n": 500})
    assert heads.delete("7")
    assert heads.delete_many(filter=field("m", "i") == 0) == 99 + 1
    assert db.flush() == 0
    db.optimize()
    assert db.stats().tables["heads"].cold_version == 0
    assert heads.count() == 300 - 1 - 100
    assert heads.get("5") == {"id": "5", "n": 500, "m": None}
    assert heads.count(field("m", "i") == 1) == 99
    heads.add_columns([pa.field("x", pa.int64())])
    heads.put({"id": "a", "x": 1})
    assert heads.get("a") == {"id": "a", "n": None, "m": None, "x": 1}
    assert heads.erase_many(["a"]).status == "complete"
    assert db.verify().ok


def test_a_hot_only_delete_by_filter_looks_again_under_the_lock(db: agentdb.Database) -> None:
    plain = db.table(
        TableSchema("plain", [pa.field("id", pa.string()), pa.field("n", pa.int64())], key="id", hot_only=True)
    )
    plain.put_many([{"id": "a", "n": 1}, {"id": "b", "n": 1}, {"id": "c", "n": 1}])
    core = db._core
    transact = core.transact

    def late(work: Any, **options: Any) -> Any:
        # Between the look-up and the write, others change what was found.
        core.transact = transact  # type: ignore[method-assign]
        plain.put({"id": "a", "n": 2})
        plain.delete("b")
        plain.put({"id": "d", "n": 1})
        return transact(work, **options)

    core.transact = late  # type: ignore[method-assign]
    assert plain.delete_many(filter=field("n") == 1) == 2
    assert [row["id"] for row in plain.scan()] == ["a"]


def test_a_delete_by_filter_looks_again_under_the_lock(db: agentdb.Database, docs: Any, settle: Any) -> None:
    docs.put_many([doc(i, n=1) for i in range(3)])
    settle()
    core = db._core
    transact = core.transact

    def late(work: Any, **options: Any) -> Any:
        core.transact = transact  # type: ignore[method-assign]
        docs.put(doc(0, n=2))
        docs.delete("d001")
        docs.put(doc(7, n=1))
        db.flush()
        docs.put(doc(8, n=1))
        return transact(work, **options)

    core.transact = late  # type: ignore[method-assign]
    assert docs.delete_many(filter=field("n") == 1) == 3
    assert [row["id"] for row in docs.scan()] == ["d000"]


# --- new columns ------------------------------------------------------------------------------------------------------


def test_add_columns(db: agentdb.Database, docs: Any, settle: Any) -> None:
    docs.put_many([doc(i) for i in range(3)])
    settle()
    docs.add_columns(
        pa.schema(
            [pa.field("title", pa.string()), pa.field("more", pa.json_()), pa.field("v2", pa.list_(pa.float32(), 2))]
        )
    )
    assert docs.get("d001")["title"] is None
    assert docs.count(field("title").is_null()) == 3
    docs.put(doc(3, title="x", more={"a": [1]}, v2=[1, 0]))
    assert docs.count(field("more", "a").contains(1)) == 1
    assert [hit.id for hit in docs.search("v2", [1, 0])] == ["d003"]
    settle()
    assert docs.count(field("more", "a").contains(1)) == 1
    assert [hit.id for hit in docs.search("v2", [1, 0])] == ["d003"]
    docs.put_many([doc(i, title=f"t{i}") for i in range(200)])
    assert docs.get("d100")["title"] == "t100"
    assert [row["title"] for row in docs.scan(order_by=("title", "desc"), limit=1)] == ["t99"]
    assert docs.schema.arrow.names[-3:] == ["title", "more", "v2"]
    for bad in (
        [pa.field("title", pa.string())],
        [pa.field("z", pa.string(), nullable=False)],
        [pa.field("z", pa.null())],
        [],
        "z",
    ):
        with pytest.raises(InvalidInputError):
            docs.add_columns(bad)
    with db.transaction(), pytest.raises(InvalidInputError, match="inside a transaction"):
        docs.add_columns([pa.field("z", pa.string())])
    db.optimize()
    assert db.verify().ok


def test_the_first_json_column_may_come_later(db: agentdb.Database, settle: Any) -> None:
    table = db.table(PAIRS)
    table.put_many([{"a": "x", "b": i, "v": "y"} for i in range(3)])
    settle()
    table.add_columns([pa.field("m", pa.json_())])
    table.put({"a": "x", "b": 9, "m": {"k": True}})
    assert table.count(field("m", "k") == True) == 1  # noqa: E712
    assert table.count(field("m").is_null()) == 3
    db.flush()
    table.put_many([{"a": "x", "b": i, "m": {"k": i}} for i in range(200, 400)])
    assert table.count(field("m", "k") == True) == 1  # noqa: E712
    assert table.count(field("m", "k") == 300) == 1
    db.optimize()
    assert table.count(field("m", "k").exists()) == 201
    assert db.verify().ok


def test_a_reader_of_an_older_state_does_not_see_new_columns(db: agentdb.Database, docs: Any) -> None:
    docs.put_many([doc(i) for i in range(200)])
    before = docs.scan()
    next(before)
    docs.add_columns([pa.field("title", pa.string())])
    docs.put(doc(1, title="x"))
    db.optimize()
    rest = list(before)
    assert len(rest) == 199
    assert all("title" not in row for row in rest)
    with db.snapshot():
        assert docs.get("d001")["title"] == "x"


def test_a_slice_of_arrow_data_is_only_the_slice(db_path):
    values = np.arange(40, dtype=np.float32)
    values[:4] = np.nan
    whole = pa.table(
        {
            "id": [f"r{i}" for i in range(10)],
            "n": list(range(10)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(values), 4),
        }
    )
    fields = [pa.field("id", pa.string()), pa.field("n", pa.int64()), pa.field("vector", pa.list_(pa.float32(), 4))]
    for small in (True, False):
        config = Config(maintenance=False) if small else Config(maintenance=False, bulk_rows=1, bulk_bytes=1)
        with agentdb.open(db_path / str(small), config=config) as db:
            table = db.table(TableSchema("t", fields, key=["id", "n"]))
            assert table.put_many(whole.slice(2, 5)) == 5
            assert [row["n"] for row in table.scan(order_by="n")] == [2, 3, 4, 5, 6]
            assert table.get(("r6", 6))["vector"].tolist() == [24, 25, 26, 27]
            assert db.verify().ok
            with pytest.raises(InvalidInputError, match="NaN"):
                table.put_many(whole)


def test_an_indexed_column_can_be_added_to_a_table_with_rows_in_both_tiers(db_path: Path) -> None:
    with agentdb.open(db_path, config=Config(maintenance=False)) as db:
        table = db.table(TableSchema("t", [pa.field("id", pa.string())], key="id"))
        table.put({"id": "cold"})
        db.flush()
        table.put({"id": "hot"})
        table.add_columns([pa.field("n", pa.int64()), pa.field("other", pa.int64())], indexed=["n"])
        assert table.schema.indexed == ("n",)
        assert table.count(field("n").is_null()) == 2
        table.put({"id": "new", "n": 7})
        for _ in range(2):
            assert [row["id"] for row in table.scan(field("n") >= 7)] == ["new"]
            db.flush()
        assert db.verify().ok
        with pytest.raises(InvalidInputError, match="only a column that is added"):
            table.add_columns([pa.field("third", pa.int64())], indexed=["other"])


@pytest.mark.parametrize("count", [3, 50])
def test_a_guard_refuses_rows_in_the_transaction_that_would_show_them(db_path: Path, count: int) -> None:
    config = Config(maintenance=False, bulk_rows=10, bulk_bytes=1)
    with agentdb.open(db_path, config=config) as db:
        table = db.table(TableSchema("t", [pa.field("id", pa.string())], key="id"))
        entry = table._writable_entry()
        rows = entry.schema.from_user_arrow(pa.table({"id": [str(i) for i in range(count)]}))
        with pytest.raises(ZeroDivisionError):
            table._put_table(entry, rows, lambda: 1 / 0)
        assert table.count() == 0
        table._put_table(entry, rows, table.count)
        assert table.count() == count
        assert db.verify().ok


def test_rows_replaced_and_deleted_in_one_transaction_leave_nothing_of_what_they_were(
    db: agentdb.Database, docs: Any
) -> None:
    ids = [f"d{number}" for number in range(50)]
    with db.transaction():
        docs.put_many({"id": one, "n": number, "meta": {"old": number}} for number, one in enumerate(ids))
        docs.put_many({"id": one, "n": -1, "meta": {"new": 1}} for one in ids[:30])
        assert docs.delete_many(ids[20:40]) == 20
        docs.put({"id": ids[20], "n": 7, "meta": {"new": 2}})
        docs.put_many({"id": ids[21], "n": number, "meta": {"new": number}} for number in (8, 9))
    for _ in range(2):
        assert {row["id"] for row in docs.scan(field("n") == -1)} == set(ids[:20])
        assert [row["n"] for row in docs.scan(field("meta", "old") < 30)] == []
        assert [row["meta"] for row in docs.scan(field("n") == 9)] == [{"new": 9}]
        assert {row["id"] for row in docs.scan(field("meta", "new") >= 2)} == {ids[20], ids[21]}
        assert docs.count() == 32
        db.flush()
