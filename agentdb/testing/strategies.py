"""Hypothesis strategies: rows of every column type, JSON of any shape, and filters that find some of them.

Values come mostly from small pools, so that a random filter meets a random row often enough to tell a wrong answer.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, Literal

import pyarrow as pa
from hypothesis import strategies as st

from agentdb.filters import And, Compare, CompareOp, Contains, Exists, Filter, In, IsNull, Not, Or, Path, TextMatch
from agentdb.storage.schema import Column, TableSchema

__all__ = ["every_type", "filters", "json_values", "pool", "rows", "texts"]

_TEXTS = (
    "",
    "a",
    "ab",
    "A",
    "b",
    "a\0b",
    "\0",
    "it's",
    "zzz' OR 1=1 --",
    '"; DROP TABLE rows; --',
    "100%",
    "100",
    "_",
    "*",
    "a\\b",
    "\\",
    "{}",
    "?",
    "Ünï",
    "ünï",
    "ΟΔΟΣ",
    "οδος",
    "\u212a",
    "k",
    "\u0130",
    "ß",
    "\u1e9e",
    "\n",
    "\x7f",
    "\ue000",
    "\ufffd",
    "\U0001f600",
    "\U0010ffff",
    "x" * 201,
    "x" * 202,
    "ü" * 200,
    "1",
    "true",
    "null",
)
_KEYS = ("a", "b", "a.b", "a/b", "[0]", "", "x y", 'q"', "it's", "ü", "\0", "\\", "#", "k" * 150)
_INTEGERS = (0, 1, -1, 2, 3, 127, 128, -128, 255, 2**31, -(2**31), 2**53, 2**53 + 1, -(2**53) - 1, 2**60 + 1)
_BIG = (2**63 - 1, -(2**63), 2**63, 2**63 + 1025, 2**64 - 1, 2**64, 10**30, -(10**300))
_FLOATS = (
    0.0,
    -0.0,
    0.5,
    0.1,
    1.0,
    -1.5,
    1e-45,
    5e-324,
    3.4e38,
    1e39,
    1.7976931348623157e308,
    -1e300,
    9007199254740992.0,
)
_TIMES = (
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(2024, 2, 29, 6, 30, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
)
_DATES = (date(1970, 1, 1), date(1969, 12, 31), date(2024, 2, 29), date(1, 1, 1), date(9999, 12, 31))
_BINARY = (b"", b"\0", b"a", b"ab", b"a\0", b"\xff", b"'")


def texts() -> st.SearchStrategy[str]:
    """Return texts that UTF-8 can store."""
    return st.one_of(st.sampled_from(_TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=4))


def _keys() -> st.SearchStrategy[str]:
    return st.sampled_from(_KEYS)


def _numbers() -> st.SearchStrategy[int | float]:
    return st.sampled_from((*_INTEGERS, *_FLOATS, *_BIG))


def json_values() -> st.SearchStrategy[Any]:
    """Return JSON values of any shape that ``encode_json`` accepts."""
    scalars = st.one_of(st.none(), st.booleans(), _numbers(), st.sampled_from(_TEXTS))
    return st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_keys(), inner, max_size=4)),
        max_leaves=8,
    )


def _metadata() -> st.SearchStrategy[Any]:
    objects = st.dictionaries(_keys(), json_values(), max_size=4)
    return st.one_of(objects, objects, json_values())


def every_type() -> TableSchema:
    """Return a table with a column of every type that filters treat in a way of its own."""
    us = pa.timestamp("us", tz="UTC")
    return TableSchema(
        "every_type",
        [
            pa.field("tenant", pa.string(), nullable=False),
            pa.field("n", pa.int64(), nullable=False),
            pa.field("s", pa.string()),
            pa.field("ls", pa.large_string()),
            pa.field("plain", pa.string()),
            pa.field("ok", pa.bool_()),
            pa.field("i8", pa.int8()),
            pa.field("i64", pa.int64()),
            pa.field("u64", pa.uint64()),
            pa.field("f32", pa.float32()),
            pa.field("f64", pa.float64()),
            pa.field("raw", pa.binary()),
            pa.field("at", us),
            pa.field("day", pa.date32()),
            pa.field("l_s", pa.list_(pa.string())),
            pa.field("l_i", pa.list_(pa.int64())),
            pa.field("l_u", pa.list_(pa.uint64())),
            pa.field("l_i8", pa.list_(pa.int8())),
            pa.field("l_u32", pa.list_(pa.uint32())),
            pa.field("l_ls", pa.list_(pa.large_string())),
            pa.field("l_lraw", pa.list_(pa.large_binary())),
            pa.field("l_f64", pa.list_(pa.float64())),
            pa.field("l_f", pa.list_(pa.float32())),
            pa.field("l_ok", pa.list_(pa.bool_())),
            pa.field("l_raw", pa.list_(pa.binary())),
            pa.field("l_at", pa.list_(us)),
            pa.field("l_day", pa.list_(pa.date32())),
            pa.field("u8", pa.uint8()),
            pa.field("i32", pa.int32()),
            pa.field("lraw", pa.large_binary()),
            pa.field("vec", pa.list_(pa.float32(), 2)),
            pa.field("Meta", pa.json_()),
            pa.field("extra", pa.json_()),
        ],
        key=("tenant", "n"),
        indexed=("s", "ls", "ok", "i8", "i64", "u64", "f32", "f64", "raw", "at", "day", "lraw"),
    )


def pool(kind: str) -> tuple[Any, ...]:
    """Return the values of a kind of column that are most likely to go wrong."""
    match kind:
        case "string":
            return _TEXTS
        case "bool":
            return (False, True)
        case "binary":
            return _BINARY
        case "timestamp":
            return _TIMES
        case "date":
            return _DATES
        case _:
            return (*_INTEGERS, *_FLOATS, *_BIG, 126.5, -128.5, 0.10000000149011612, 2.0**63, 2.0**64)


def _float32s(numbers: tuple[float, ...]) -> list[float]:
    return [one for one in numbers if abs(one) <= 3.4e38]


def _scalars(kind: str, type_name: str) -> st.SearchStrategy[Any]:
    match kind:
        case "string":
            return texts()
        case "bool":
            return st.booleans()
        case "int" | "uint64":
            bits = int("".join(filter(str.isdigit, type_name)))
            low, high = (0, 2**bits - 1) if type_name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            return st.sampled_from([one for one in (*_INTEGERS, *_BIG) if low <= one <= high])
        case "float":
            finite = list(_FLOATS) if type_name == "float64" else _float32s(_FLOATS)
            return st.sampled_from([*finite, math.inf, -math.inf, 0.10000000149011612])
        case "binary":
            return st.sampled_from(_BINARY)
        case "timestamp":
            return st.sampled_from(_TIMES)
        case _:
            return st.sampled_from(_DATES)


def _column_values(column: Column) -> st.SearchStrategy[Any]:
    match column.kind:
        case "json":
            values = _metadata()
        case "vector":
            components = st.sampled_from((0.0, 1.0, -1.0, 0.5, 2.0))
            values = st.lists(components, min_size=column.dimension, max_size=column.dimension)
        case "list":
            item = _scalars(column.item_kind or "", column.type_name[5:-1])
            values = st.lists(st.one_of(item, item, st.none()), max_size=3)
        case _:
            values = _scalars(column.kind, column.type_name)
    return st.one_of(values, values, values, st.none()) if column.nullable else values


def rows(schema: TableSchema) -> st.SearchStrategy[dict[str, Any]]:
    """Return rows that a table accepts; some leave nullable columns out."""
    required = {c.name: _column_values(c) for c in schema.columns if not c.nullable}
    optional = {c.name: _column_values(c) for c in schema.columns if c.nullable}
    return st.fixed_dictionaries(required, optional=optional)


def _operands(kind: str) -> st.SearchStrategy[Any]:
    anything = st.one_of(texts(), _numbers(), st.booleans(), st.sampled_from((*_TIMES, *_DATES, *_BINARY)))
    fitting: st.SearchStrategy[Any]
    match kind:
        case "int" | "uint64" | "float":
            fitting = st.one_of(
                _numbers(), st.sampled_from((0.10000000149011612, 126.5, -128.5, -1e-50, 2.0**63, 2.0**64))
            )
        case "json":
            fitting = st.one_of(_numbers(), st.sampled_from(_TEXTS), st.booleans())
        case "":
            fitting = anything
        case _:
            fitting = _scalars(kind, "")
    return st.one_of(fitting, fitting, fitting, fitting, anything)


def _ordered(value: Any) -> bool:
    return not isinstance(value, bool)


@st.composite
def _leaf(draw: st.DrawFn, schema: TableSchema) -> Filter:
    column = draw(st.sampled_from(schema.columns))
    path: Path = (column.name,)
    if column.kind == "json":
        path += tuple(draw(st.lists(_keys(), max_size=2)))
    kind = (column.item_kind or "") if column.kind == "list" else "" if column.kind == "vector" else column.kind
    values = _operands(kind)
    shapes = ["compare", "compare", "order", "in", "text", "null", "exists", "contains"]
    if column.kind == "list":
        shapes += ["contains"] * 8
    match draw(st.sampled_from(shapes)):
        case "compare":
            same: CompareOp = draw(st.sampled_from(("eq", "ne")))
            return Compare(path, same, draw(values))
        case "order":
            op: CompareOp = draw(st.sampled_from(("lt", "lte", "gt", "gte")))
            return Compare(path, op, draw(values.filter(_ordered)))
        case "in":
            return In(path, tuple(draw(st.lists(values, max_size=4))), draw(st.booleans()))
        case "text":
            mode: Literal["substring", "prefix"] = draw(st.sampled_from(("substring", "prefix")))
            return TextMatch(path, draw(texts()), mode, draw(st.booleans()))
        case "null":
            return IsNull(path)
        case "exists":
            return Exists(path)
        case _:
            return Contains(path, tuple(draw(st.lists(values, max_size=3))))


def filters(schema: TableSchema) -> st.SearchStrategy[Filter]:
    """Return filters of any shape on the columns of a table."""
    return st.recursive(
        _leaf(schema),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda some: And(*some)),
            st.lists(inner, max_size=3).map(lambda some: Or(*some)),
            inner.map(Not),
        ),
        max_leaves=5,
    )
