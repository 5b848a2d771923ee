"""A workload that touches every path that writes, as steps with a plain-dict model of what each must have done."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

import agentdb
from agentdb import Config, field

Model = dict[str, dict[Any, dict[str, Any]]]

CONFIG = Config(maintenance=False, bulk_rows=32, bulk_bytes=1, close_flush_rows=1_000_000, write_timeout_s=5.0)

A = agentdb.TableSchema(
    "a",
    pa.schema(
        [
            pa.field("k", pa.string(), nullable=False),
            pa.field("n", pa.int64()),
            pa.field("meta", pa.json_()),
            pa.field("vector", pa.list_(pa.float32(), 4)),
        ]
    ),
    key=["k"],
    indexed=["n"],
)
B = agentdb.TableSchema(
    "b",
    pa.schema(
        [
            pa.field("x", pa.string(), nullable=False),
            pa.field("y", pa.int64(), nullable=False),
            pa.field("text", pa.string()),
        ]
    ),
    key=["x", "y"],
)
H = agentdb.TableSchema(
    "h",
    pa.schema([pa.field("k", pa.string(), nullable=False), pa.field("n", pa.int64())]),
    key=["k"],
    hot_only=True,
)
EXTRA = pa.field("extra", pa.string())


def row_a(i: int, generation: int = 0) -> dict[str, Any]:
    return {
        "k": f"k{i:04d}",
        "n": i + 1000 * generation,
        "meta": {"i": i, "tags": ["x", str(generation)]},
        "vector": np.array([i, generation, 1, 0], np.float32),
    }


def row_b(i: int, generation: int = 0) -> dict[str, Any]:
    return {"x": f"x{i % 3}", "y": i, "text": f"text {i} {generation}"}


def row_h(i: int, generation: int = 0) -> dict[str, Any]:
    return {"k": f"h{i}", "n": generation}


def key_of(table: str, row: dict[str, Any]) -> Any:
    return (row["x"], row["y"]) if table == "b" else row["k"]


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()}


@dataclass(frozen=True)
class Step:
    name: str
    run: Callable[[agentdb.Database], Any]
    model: Callable[[Model], None]
    partial: Callable[[Model], None] | None = None
    """A state that a failure may leave too, because the step is documented to consist of several commits."""


def put(model: Model, table: str, *rows: dict[str, Any]) -> None:
    known = model[table]
    for row in rows:
        full = plain(row)
        if table == "a" and "extra" in model["columns"]:
            full = {**full, "extra": full.get("extra")}
        known[key_of(table, row)] = full


def forget(model: Model, table: str, *keys: Any) -> None:
    for key in keys:
        model[table].pop(key, None)


def rows_a(start: int, stop: int, generation: int = 0) -> list[dict[str, Any]]:
    return [row_a(i, generation) for i in range(start, stop)]


def rows_b(start: int, stop: int, generation: int = 0) -> list[dict[str, Any]]:
    return [row_b(i, generation) for i in range(start, stop)]


def steps() -> list[Step]:
    nothing: Callable[[Model], None] = lambda model: None  # noqa: E731

    def create(db: agentdb.Database) -> None:
        with db.transaction():
            for schema in (A, B, H):
                db.table(schema)

    def both(db: agentdb.Database) -> None:
        with db.transaction():
            db.table("a").put_many(rows_a(5, 9, 3))
            db.table("b").put(row_b(2, 3))
            db.table("h").put(row_h(1, 3))
            db.table("a").delete("k0002")

    def both_model(m: Model) -> None:
        put(m, "a", *rows_a(5, 9, 3))
        put(m, "b", row_b(2, 3))
        put(m, "h", row_h(1, 3))
        forget(m, "a", "k0002")

    def bulk_inside(db: agentdb.Database) -> None:
        with db.transaction():
            db.table("h").put(row_h(2, 5))
            db.table("a").put_many(rows_a(30, 70, 5))
            db.table("b").put(row_b(11, 5))
            db.table("b").put_many(rows_b(40, 80, 5))

    def bulk_inside_model(m: Model) -> None:
        put(m, "h", row_h(2, 5))
        put(m, "a", *rows_a(30, 70, 5))
        put(m, "b", row_b(11, 5), *rows_b(40, 80, 5))

    def add_columns_model(m: Model) -> None:
        m["columns"]["extra"] = {}
        for row in m["a"].values():
            row["extra"] = None

    def drop_model(m: Model) -> None:
        del m["b"]

    def recreate_model(m: Model) -> None:
        m["b"] = {}

    def large(db: agentdb.Database) -> None:
        # Many pages in one commit.
        with db.transaction():
            db.table("b").put_many([{"x": "large", "y": i, "text": str(i) * 5_000} for i in range(20)])
            db.table("h").put(row_h(9, 9))

    def large_model(m: Model) -> None:
        put(m, "b", *[{"x": "large", "y": i, "text": str(i) * 5_000} for i in range(20)])
        put(m, "h", row_h(9, 9))

    def delete_where(m: Model) -> None:
        for key in [key for key, row in m["a"].items() if row["n"] >= 5000 and row["n"] < 5040]:
            del m["a"][key]

    return [
        Step("create tables", create, lambda m: m.update(a={}, b={}, h={}, columns={})),
        Step("put", lambda db: db.table("a").put(row_a(1)), lambda m: put(m, "a", row_a(1))),
        Step("put_many", lambda db: db.table("a").put_many(rows_a(0, 20)), lambda m: put(m, "a", *rows_a(0, 20))),
        Step("put_many b", lambda db: db.table("b").put_many(rows_b(0, 12)), lambda m: put(m, "b", *rows_b(0, 12))),
        Step(
            "put h", lambda db: db.table("h").put_many([row_h(1), row_h(2)]), lambda m: put(m, "h", row_h(1), row_h(2))
        ),
        Step("flush", lambda db: db.flush(), nothing),
        Step(
            "overwrite", lambda db: db.table("a").put_many(rows_a(10, 15, 2)), lambda m: put(m, "a", *rows_a(10, 15, 2))
        ),
        Step("delete a", lambda db: db.table("a").delete("k0003"), lambda m: forget(m, "a", "k0003")),
        Step("delete b", lambda db: db.table("b").delete(("x1", 1)), lambda m: forget(m, "b", ("x1", 1))),
        Step("transaction", both, both_model),
        Step("bulk", lambda db: db.table("a").put_many(rows_a(8, 50, 4)), lambda m: put(m, "a", *rows_a(8, 50, 4))),
        Step("flush again", lambda db: db.flush(), nothing),
        Step("bulk in a transaction", bulk_inside, bulk_inside_model),
        Step(
            "delete where",
            lambda db: db.table("a").delete_many(filter=(field("n") >= 5000) & (field("n") < 5040)),
            delete_where,
        ),
        Step("optimize", lambda db: db.optimize(), nothing),
        Step("add_columns", lambda db: db.table("a").add_columns([EXTRA]), add_columns_model),
        Step(
            "put new column",
            lambda db: db.table("a").put({**row_a(3, 7), "extra": "e"}),
            lambda m: put(m, "a", {**row_a(3, 7), "extra": "e"}),
        ),
        Step("flush new column", lambda db: db.flush("a"), nothing),
        Step(
            "erase",
            lambda db: db.table("a").erase_many(["k0003", "k0040", "k0011"]),
            lambda m: forget(m, "a", "k0003", "k0040", "k0011"),
        ),
        Step("large transaction", large, large_model),
        Step("drop_table", lambda db: db.drop_table("b"), drop_model),
        Step("recreate", lambda db: db.table(B), recreate_model),
        Step("bulk b", lambda db: db.table("b").put_many(rows_b(0, 40, 8)), lambda m: put(m, "b", *rows_b(0, 40, 8))),
        Step("optimize again", lambda db: db.optimize(), nothing),
    ]


def contents(db: agentdb.Database) -> Model:
    """Read everything in three ways that must agree: scan, count, and by key."""
    found: Model = {"columns": {}}
    with db.snapshot():
        for name in db.tables():
            table = db.table(name)
            rows = [plain(row) for row in table.scan()]
            by_key = {key_of(name, row): row for row in rows}
            assert len(by_key) == len(rows) == table.count(), f"table {name} yields a key twice, or miscounts"
            assert [plain(row) for row in table.get_many(by_key)] == rows
            found[name] = by_key
            if name == "a" and "extra" in [c.name for c in table.schema.columns]:
                found["columns"]["extra"] = {}
    return found


def after(model: Model, step: Step) -> Model:
    changed = copy.deepcopy(model)
    step.model(changed)
    return changed
