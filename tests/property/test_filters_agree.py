"""Python, SQLite and Lance give one answer to every filter."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import lance
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentdb.errors import InvalidInputError
from agentdb.filters import And, Compare, Contains, Filter, In, Not, Or, TextMatch, field, matches
from agentdb.storage.predicates import compile_lance, compile_sqlite, key_bounds
from agentdb.storage.schema import TableSchema
from agentdb.testing.strategies import every_type, filters, pool, rows

SCHEMA = every_type()
BTREE = ("s", "ls", "i8", "i64", "u64", "f32", "f64", "raw", "at", "day", "tenant", "n")


class Tiers:
    """The same rows in all three forms; a row's answer is its position."""

    def __init__(self, schema: TableSchema, given_rows: list[dict[str, Any]], uri: str, *, indexed: bool) -> None:
        by_key = {schema.encode_key((row["tenant"], row["n"])): schema.to_physical(row) for row in given_rows}
        self.schema = schema
        self.keys = list(by_key)
        physical = list(by_key.values())
        self.rows = [schema.to_python(one) for one in physical]
        self.sqlite = self._fill_sqlite(physical)
        table = schema.rows_to_arrow(self.keys, range(len(self.keys)), physical)
        if indexed:
            # The last row is in no index: Lance has to combine both ways of looking.
            self.lance = lance.write_dataset(table.slice(0, len(self.keys) - 1), uri)
            for name in BTREE:
                self.lance.create_scalar_index(name, "BTREE")
            self.lance.create_scalar_index("ok", "BITMAP")
            self.lance.create_scalar_index("_terms", "LABEL_LIST")
            self.lance.insert(table.slice(len(self.keys) - 1))
        else:
            self.lance = lance.write_dataset(table, uri)

    def _fill_sqlite(self, physical: list[list[Any]]) -> apsw.Connection:
        connection = apsw.Connection(":memory:")
        columns = "".join(f', "c_{name}"' for name in self.schema.sql_columns)
        connection.execute(
            f"CREATE TABLE t1_rows(id INTEGER PRIMARY KEY, _key TEXT UNIQUE, _seq INTEGER, _op INTEGER, row BLOB{columns})"
        )
        connection.execute("CREATE TABLE t1_terms(term TEXT, id INTEGER, PRIMARY KEY(term, id)) WITHOUT ROWID")
        for name in self.schema.sql_columns:
            connection.execute(f'CREATE INDEX "i_{name}" ON t1_rows("c_{name}")')
        marks = ", ?" * len(self.schema.sql_columns)
        for i, (key, row) in enumerate(zip(self.keys, physical, strict=True)):
            values = [row[position] for position in self.schema.sql_positions]
            connection.execute(f"INSERT INTO t1_rows VALUES(?, ?, ?, 0, NULL{marks})", (i, key, i, *values))
            for term in self.schema.terms_of(row):
                connection.execute("INSERT INTO t1_terms VALUES(?, ?)", (term, i))
        return connection

    def by_python(self, condition: Filter) -> set[int]:
        return {i for i, row in enumerate(self.rows) if matches(condition, row)}

    def by_sqlite(self, condition: Filter) -> tuple[set[int], bool]:
        found = compile_sqlite(condition, self.schema, "r", "t1_terms")
        rows_found = self.sqlite.execute(f"SELECT r._seq FROM t1_rows AS r WHERE {found.sql}", found.params)
        return {one for (one,) in rows_found}, found.exact

    def by_lance(self, condition: Filter) -> tuple[set[int], bool]:
        found = compile_lance(condition, self.schema)
        table = self.lance.to_table(columns=["_seq"], filter=found.sql)
        return set(table["_seq"].to_pylist()), found.exact

    def check(self, condition: Filter) -> None:
        wanted = self.by_python(condition)
        for tier in (self.by_sqlite, self.by_lance):
            got, exact = tier(condition)
            if exact:
                assert got == wanted, f"{tier.__name__}: {condition}"
            else:
                assert got >= wanted, f"{tier.__name__} lost rows: {condition}"
        bounds = key_bounds(condition, self.schema)
        if bounds is not None:
            for i in wanted:
                key = self.keys[i]
                assert (bounds.low or "") <= key, condition
                assert bounds.high is None or key < bounds.high, condition
                assert bounds.key is None or bounds.key == key, condition


@pytest.fixture
def uri(tmp_path: Path) -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: str(tmp_path / f"{next(numbers)}.lance")


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    given_rows=st.lists(rows(SCHEMA), min_size=1, max_size=10),
    conditions=st.lists(filters(SCHEMA), min_size=10, max_size=30),
)
def test_all_tiers_agree(uri: Callable[[], str], given_rows: list[dict[str, Any]], conditions: list[Filter]) -> None:
    tiers = Tiers(SCHEMA, given_rows, uri(), indexed=False)
    for condition in conditions:
        tiers.check(condition)


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(
    given_rows=st.lists(rows(SCHEMA), min_size=2, max_size=20, unique_by=lambda row: (row["tenant"], row["n"])),
    conditions=st.lists(filters(SCHEMA), min_size=20, max_size=60),
)
def test_all_tiers_agree_with_indices(
    uri: Callable[[], str], given_rows: list[dict[str, Any]], conditions: list[Filter]
) -> None:
    tiers = Tiers(SCHEMA, given_rows, uri(), indexed=True)
    for condition in conditions:
        tiers.check(condition)


def pool_rows() -> list[dict[str, Any]]:
    """A row for every value of the longest pool; each column runs through its own, and one row has nothing."""

    def accepted(name: str, values: tuple[Any, ...]) -> list[Any]:
        column, found = SCHEMA.column(name), []
        for value in values:
            try:
                column.to_physical(value)
            except InvalidInputError:
                continue
            found.append(value)
        return found

    pools: dict[str, list[Any]] = {}
    for column in SCHEMA.columns:
        if column.kind == "list":
            pools[column.name] = accepted(column.name, tuple([one] for one in pool(column.item_kind or "")))
        elif column.kind == "json":
            values = [*pool("string"), *pool("int"), True, False, None, [], {}, [None]]
            nested = (
                [{"a": one} for one in values] + [{"a": [one, None]} for one in values] + [{"a": {"b": 1}}, {"b": 1}]
            )
            pools[column.name] = accepted(column.name, (*values, *nested))
        elif column.kind != "vector":
            pools[column.name] = accepted(column.name, pool(column.kind))
    keys = {"tenant", "n"}
    assert len(pools["tenant"]) % len(pools["n"]), "the pair of keys would repeat too soon"
    longest = max(map(len, pools.values()))
    found = [
        {name: values[i % len(values)] for name, values in pools.items() if i < len(values) or name in keys}
        for i in range(longest)
    ]
    return [*found, {"tenant": "none", "n": 0}]


@pytest.mark.parametrize("indexed", [False, True])
def test_every_value_meets_every_operand(uri: Callable[[], str], indexed: bool) -> None:  # noqa: FBT001
    tiers = Tiers(SCHEMA, pool_rows(), uri(), indexed=indexed)
    for column in SCHEMA.columns:
        if indexed and column.name not in (*BTREE, "ok", "Meta"):
            continue
        kind = column.item_kind or column.kind
        path = (column.name, "a") if kind == "json" else (column.name,)
        operands = (*pool("string"), *pool("int"), True) if kind == "json" else pool(kind)
        for operand in operands:
            if column.kind in ("list", "json"):
                tiers.check(Contains(path, (operand,)))
            if column.kind in ("list", "vector"):
                continue
            tiers.check(Compare(path, "eq", operand))
            tiers.check(Compare(path, "ne", operand))
            if not isinstance(operand, bool) and column.kind != "json":
                tiers.check(Compare(path, "lt", operand))
                tiers.check(Compare(path, "gte", operand))
                tiers.check(~Compare(path, "lte", operand))
                tiers.check(~Compare(path, "gt", operand))
            if isinstance(operand, str) and column.kind == "string":
                for sensitive in (True, False):
                    tiers.check(TextMatch(path, operand, "substring", sensitive))
                    tiers.check(~TextMatch(path, operand, "prefix", sensitive))
        tiers.check(In(path, operands))
        tiers.check(In(path, operands, negated=True))
        tiers.check(Contains(path, operands))
        tiers.check(~Contains(path, operands))


def small() -> list[dict[str, Any]]:
    return [{"tenant": "a", "n": i, "i64": i, "f64": float(i), "s": f"s{i}", "Meta": {"n": i}} for i in range(20)]


def test_injection_finds_nothing_but_itself(uri: Callable[[], str]) -> None:
    evil = "zzz' OR 1=1 --"
    tiers = Tiers(SCHEMA, [*small(), {"tenant": evil, "n": 1, "s": evil, "Meta": {evil: evil}}], uri(), indexed=False)
    for condition in (
        field("s") == evil,
        field("s").matches(evil),
        field("tenant").startswith(evil),
        field("Meta", evil) == evil,
        field("Meta", evil).in_([evil, "'"]),
    ):
        assert tiers.by_python(condition) == {20}
        assert tiers.by_sqlite(condition) == ({20}, True)
        assert tiers.by_lance(condition) == ({20}, True)


def test_many_values_and_parts_are_no_obstacle(uri: Callable[[], str]) -> None:
    tiers = Tiers(SCHEMA, small(), uri(), indexed=True)
    many = range(5, 50_000)
    for condition in (
        field("i64").in_(many),
        field("s").in_([f"s{i}" for i in many]),
        field("f64").in_([float(i) for i in many]),
        field("Meta", "n").in_(many),
        field("raw").in_([str(i).encode() for i in many]),
        field("i64").not_in([2**60 + 1000 * i for i in range(1000)]),
        Or(*(field("i64") == i for i in range(3, 2_000))),
        And(*(field("s") != f"s{i}" for i in range(3, 1_000))),
        And(*(field("Meta", "n") != i for i in range(3, 200))),
    ):
        tiers.check(condition)


@pytest.mark.parametrize("name", ["i64", "plain"])
def test_deep_filters(uri: Callable[[], str], name: str) -> None:
    tiers = Tiers(SCHEMA, small(), uri(), indexed=False)
    condition: Filter = field("n") == 3
    for i in range(60):
        other = field(name).is_null() | (field("n") == i)
        condition = And(condition, other) if i % 2 else Or(condition, Not(other))
    assert condition.depth > 60
    tiers.check(condition)
    tiers.check(~condition)


def test_key_bounds() -> None:
    def bounds(condition: Filter) -> tuple[str | None, str | None, str | None] | None:
        found = key_bounds(condition, SCHEMA)
        return None if found is None else (found.low, found.high, found.key)

    key = SCHEMA.encode_key(("ann", 7))
    prefix = SCHEMA.encode_key_prefix(["ann"])
    tenant, n = field("tenant"), field("n")
    assert bounds((tenant == "ann") & (n == 7)) == (key, key[:-1] + "\x02", key)
    assert bounds(tenant == "ann") == (prefix, prefix[:-1] + "\x02", None)
    assert bounds((n == 7) & (field("s") == "x")) is None
    assert bounds((tenant == "ann") | (n == 7)) is None
    low, high, _ = bounds((tenant == "ann") & (n > 7) & (n < 9)) or (None, None, None)
    assert low == key[:-1] + "\x02" or low == SCHEMA.encode_key(("ann", 8))[:-1]
    assert low is not None
    assert high is not None
    inside = [i for i in range(20) if low <= SCHEMA.encode_key(("ann", i)) < high]
    assert inside == [8]
    assert (bounds(tenant.startswith("an")) or [None])[0] == "an"


@pytest.mark.parametrize(
    ("condition", "index"),
    [
        (field("Meta", "n") == 3, "_terms_idx"),
        (field("Meta", "n").in_([3, 4]), "_terms_idx"),
        (field("i64") == 3, "i64_idx"),
        ((field("s") == "s1") & field("Meta", "n").is_null(), "s_idx"),
        (field("s").startswith("s1"), "s_idx"),
    ],
)
def test_indices_are_used(uri: Callable[[], str], condition: Filter, index: str) -> None:
    tiers = Tiers(SCHEMA, small(), uri(), indexed=True)
    plan = tiers.lance.scanner(filter=compile_lance(condition, SCHEMA).sql).explain_plan(verbose=True)
    assert "ScalarIndexQuery" in plan
    assert index in plan
    found = compile_sqlite(condition, SCHEMA, "r", "t1_terms")
    explained = tiers.sqlite.execute(f"EXPLAIN QUERY PLAN SELECT 1 FROM t1_rows AS r WHERE {found.sql}", found.params)
    assert not any(row[3].startswith("SCAN r") for row in explained)
