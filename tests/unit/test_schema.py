"""Schemas: what a table accepts, and the three forms of every value."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentdb import TableSchema
from agentdb.errors import FormatError, InvalidInputError
from agentdb.storage.schema import Column, after_prefix, encode_key_part
from agentdb.testing.models import frozen
from agentdb.testing.strategies import every_type, rows

US = pa.timestamp("us", tz="UTC")
EVERY = every_type()

KEY_TYPES = {
    "string": (pa.string(), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
    "control": (pa.string(), st.text(st.sampled_from("\0\1\2\3\x10\x11\x12\x13a"), max_size=5)),
    "large_string": (pa.large_string(), st.text(st.sampled_from("\0\1\2aé\U0001f600"), max_size=4)),
    "int8": (pa.int8(), st.integers(-128, 127)),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "uint8": (pa.uint8(), st.integers(0, 255)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "bool": (pa.bool_(), st.booleans()),
    "timestamp": (US, st.datetimes(timezones=st.just(UTC))),
    "date": (pa.date32(), st.dates()),
    "binary": (pa.binary(), st.binary(max_size=4)),
    "large_binary": (pa.large_binary(), st.binary(max_size=4)),
}


def keyed(*types: str) -> TableSchema:
    fields = [pa.field(f"k{i}", KEY_TYPES[one][0]) for i, one in enumerate(types)]
    return TableSchema("t", fields, key=[one.name for one in fields])


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_key_encoding_keeps_the_order(kind: str) -> None:
    schema = keyed(kind)

    @given(one=KEY_TYPES[kind][1], other=KEY_TYPES[kind][1])
    def check(one: Any, other: Any) -> None:
        left, right = schema.encode_key(one), schema.encode_key(other)
        assert (left < right) is (one < other)
        assert (left == right) is (one == other)
        assert (left.encode() < right.encode()) is (one < other), "SQLite and Lance compare bytes"

    check()


@pytest.mark.parametrize(
    "kinds", [("string", "int64"), ("control", "control"), ("binary", "string"), ("bool", "uint64", "date")]
)
def test_compound_keys_keep_the_order_of_tuples(kinds: tuple[str, ...]) -> None:
    schema = keyed(*kinds)
    values = st.tuples(*(KEY_TYPES[one][1] for one in kinds))

    @given(one=values, other=values)
    def check(one: Any, other: Any) -> None:
        left, right = schema.encode_key(one), schema.encode_key(other)
        assert (left < right) is (one < other)
        assert (left == right) is (one == other)
        prefix = schema.encode_key_prefix(one[:1])
        assert left.startswith(prefix)
        assert (prefix <= right < after_prefix(prefix)) is (other[0] == one[0])

    check()


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_vectorised_key_encoding_equals_the_scalar_one(kind: str) -> None:
    schema = TableSchema("t", [pa.field("a", KEY_TYPES[kind][0]), pa.field("b", pa.string())], key=["a", "b"])

    @given(st.lists(st.tuples(KEY_TYPES[kind][1], st.sampled_from(["", "x", "\1", "é"])), max_size=6))
    def check(keys: list[Any]) -> None:
        table = pa.table(
            {
                "a": pa.array([one for one, _ in keys], KEY_TYPES[kind][0]),
                "b": pa.array([one for _, one in keys], pa.string()),
            }
        )
        assert schema.encode_keys(table).to_pylist() == [schema.encode_key(one) for one in keys]
        chunked = pa.concat_tables([table, table.slice(1)])
        again = [*keys, *keys[1:]]
        assert schema.encode_keys(chunked).to_pylist() == [schema.encode_key(one) for one in again]

    check()


def test_a_key_may_be_4096_characters_and_no_more() -> None:
    schema = keyed("string")
    assert len(schema.encode_key("x" * 4095)) == 4096
    for text in ("x" * 4096, "\0" * 2048):
        with pytest.raises(InvalidInputError, match=r"k0.*4096"):
            schema.encode_key(text)
        with pytest.raises(InvalidInputError, match=r"k0.*4096"):
            schema.from_user_arrow(pa.table({"k0": [text]}))


@pytest.mark.parametrize("key", [("a",), ("a", 1, 2), "a", ()])
def test_a_key_has_as_many_parts_as_columns(key: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"2 parts \(k0, k1\)"):
        keyed("string", "int64").encode_key(key)


@pytest.mark.parametrize(
    ("kinds", "key"), [(("string",), None), (("string",), 1), (("int64",), "1"), (("int64",), True), (("int8",), 128)]
)
def test_a_key_part_of_a_wrong_type_names_its_column(kinds: tuple[str, ...], key: Any) -> None:
    with pytest.raises(InvalidInputError, match="k0"):
        keyed(*kinds).encode_key(key)


# --- values: Python -> physical -> Arrow -> Python ---------------------------------------------------------------------


@given(st.lists(rows(EVERY), max_size=4))
def test_every_value_survives_every_form(given_rows: list[dict[str, Any]]) -> None:
    physical = [EVERY.to_physical(row) for row in given_rows]
    direct = [EVERY.to_python(one) for one in physical]
    keys = [EVERY.key_of(one) for one in physical]
    table = EVERY.rows_to_arrow(keys, range(len(keys)), physical)
    assert table.schema == EVERY.cold_arrow
    through_arrow = EVERY.arrow_to_rows(table)
    assert [frozen(one) for one in through_arrow] == [frozen(one) for one in direct]
    for column in EVERY.columns:
        assert column.from_arrow(table.column(column.name)) == [
            one[EVERY.arrow.names.index(column.name)] for one in physical
        ]
    # What callers get as Arrow, they may give back as Arrow.
    user = EVERY.to_user_arrow(table)
    assert user.schema == EVERY.arrow
    back = EVERY.from_user_arrow(user)
    last = dict(zip(keys, direct, strict=True))
    found = dict(zip(back.column("_key").to_pylist(), EVERY.arrow_to_rows(back), strict=True))
    assert {key: frozen(row) for key, row in found.items()} == {key: frozen(row) for key, row in last.items()}
    assert back.column("_terms").to_pylist() == [
        EVERY.terms_of(physical[len(keys) - 1 - keys[::-1].index(key)]) or None
        for key in back.column("_key").to_pylist()
    ]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_round_trip_with_nulls_in_any_place(dtype: str) -> None:
    schema = TableSchema(
        "t", [pa.field("k", pa.int64()), pa.field("v", pa.list_(pa.from_numpy_dtype(dtype), 3))], key="k"
    )
    values = [None, [1, 2, 3], None, np.arange(3, dtype=dtype), [0.1, -0.0, 65504.0], None]
    physical = [schema.to_physical({"k": i, "v": one}) for i, one in enumerate(values)]
    table = schema.rows_to_arrow([schema.key_of(one) for one in physical], [0] * 6, physical)
    for part in (table, table.slice(1), table.slice(2, 2), pa.concat_tables([table.slice(0, 3), table.slice(3)])):
        offset = 6 - part.num_rows if part.num_rows != 2 else 2
        for i, row in enumerate(schema.arrow_to_rows(part)):
            expected = values[i + offset]
            if expected is None:
                assert row["v"] is None
            else:
                assert row["v"].dtype == dtype
                np.testing.assert_array_equal(row["v"], np.asarray(expected, dtype))
    again = schema.from_user_arrow(schema.to_user_arrow(table.slice(1, 4)))
    assert [one is None for one in again.column("v").to_pylist()] == [False, True, False, False]


def test_times_come_back_in_utc() -> None:
    schema = TableSchema("t", [pa.field("k", US), pa.field("d", pa.date32())], key="k")
    given_at = datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    row = schema.to_python(schema.to_physical({"k": given_at, "d": date(2024, 2, 29)}))
    assert row == {"k": given_at, "d": date(2024, 2, 29)}
    assert row["k"].tzinfo is UTC


def test_numpy_scalars_are_numbers() -> None:
    fields = [
        pa.field("k", pa.uint64()),
        pa.field("f", pa.float64()),
        pa.field("b", pa.bool_()),
        pa.field("l", pa.list_(pa.int8())),
    ]
    schema = TableSchema("t", fields, key="k")
    row = schema.to_python(
        schema.to_physical({"k": np.uint64(2**64 - 1), "f": np.float32(0.5), "b": np.True_, "l": np.array([1, -1])})
    )
    assert frozen(row) == frozen({"k": 2**64 - 1, "f": 0.5, "b": True, "l": [1, -1]})


# --- what is refused --------------------------------------------------------------------------------------------------

BAD = [
    ("string", pa.string(), 1, "a str, not int"),
    ("surrogate", pa.string(), "\ud800", "lone surrogate"),
    ("bytes as text", pa.string(), b"x", "a str, not bytes"),
    ("bool", pa.bool_(), 1, "a bool, not int"),
    ("int", pa.int64(), 1.0, "an int, not float"),
    ("bool as int", pa.int64(), True, "an int, not bool"),
    ("too large", pa.int8(), 128, "between -128 and 127"),
    ("negative", pa.uint64(), -1, f"between 0 and {2**64 - 1}"),
    ("text as float", pa.float64(), "1", "a number, not str"),
    ("bool as float", pa.float64(), True, "a number, not bool"),
    ("NaN", pa.float64(), math.nan, "NaN"),
    ("too large float", pa.float32(), 1e300, "out of range"),
    ("huge int as float", pa.float64(), 10**400, "out of range"),
    ("binary", pa.binary(), "x", "bytes, not str"),
    ("timestamp", US, "2024-01-01", "a datetime, not str"),
    ("naive", US, datetime(2024, 1, 1), "aware"),  # noqa: DTZ001
    ("date", pa.date32(), datetime(2024, 1, 1, tzinfo=UTC), "a date, not datetime"),
    ("list", pa.list_(pa.int64()), 5, "a list, not int"),
    ("text as list", pa.list_(pa.string()), "ab", "a list, not str"),
    ("item", pa.list_(pa.int64()), [1, "x"], r"x\[1\] must be an int, not str"),
    ("dimension", pa.list_(pa.float32(), 2), [1.0], r"\(2,\), not \(1,\)"),
    ("matrix", pa.list_(pa.float32(), 2), [[1.0, 2.0]], r"\(2,\), not \(1, 2\)"),
    ("vector of text", pa.list_(pa.float32(), 2), ["a", "b"], "2 numbers"),
    ("vector of None", pa.list_(pa.float32(), 2), [None, 1.0], "NaN|2 numbers"),
    ("vector NaN", pa.list_(pa.float32(), 2), [math.nan, 0.0], "NaN or infinity"),
    ("vector infinity", pa.list_(pa.float32(), 2), [math.inf, 0.0], "NaN or infinity"),
    ("beyond float16", pa.list_(pa.float16(), 2), [70000.0, 0.0], "NaN or infinity"),
    ("beyond float32", pa.list_(pa.float32(), 2), [1e39, 0.0], "NaN or infinity"),
    ("JSON NaN", pa.json_(), {"a": [1, math.nan]}, r"x\.a\[1\].*finite"),
    ("JSON key", pa.json_(), {1: 2}, "key must be a str"),
    ("JSON set", pa.json_(), {"a": {1}}, r"x\.a.*set"),
    ("JSON bytes", pa.json_(), b"x", "bytes"),
    ("JSON surrogate", pa.json_(), {"a": "\ud800"}, "lone surrogate"),
    ("JSON huge", pa.json_(), 10**400, "float64"),
]


@pytest.mark.parametrize(("arrow", "value", "message"), [one[1:] for one in BAD], ids=[one[0] for one in BAD])
def test_a_value_that_does_not_fit_is_named(arrow: pa.DataType, value: Any, message: str) -> None:
    schema = TableSchema("t", [pa.field("k", pa.string()), pa.field("x", arrow)], key="k")
    with pytest.raises(InvalidInputError, match=message) as raised:
        schema.to_physical({"k": "a", "x": value})
    assert "x" in str(raised.value)


def arrow_bad() -> list[tuple[str, pa.DataType, pa.Array, str]]:
    vec = pa.list_(pa.float32(), 2)
    return [
        ("text as int", pa.int64(), pa.array(["a"]), "castable to int64"),
        ("too large", pa.int8(), pa.array([300]), "castable to int8"),
        ("fraction", pa.int64(), pa.array([1.5]), "castable to int64"),
        ("NaN", pa.float64(), pa.array([math.nan]), "NaN"),
        ("NaN in a list", pa.list_(pa.float64()), pa.array([[0.5, math.nan]]), "NaN"),
        ("naive", US, pa.array([datetime(2024, 1, 1)], pa.timestamp("us")), "time zone"),  # noqa: DTZ001
        ("nanoseconds", US, pa.array([1], pa.timestamp("ns", tz="UTC")), "castable"),
        ("year 10000", US, pa.array([2**60], US), "between|year"),
        ("date 10000", pa.date32(), pa.array([2**30], pa.int32()).cast(pa.date32()), "between|year"),
        ("time in a list", pa.list_(US), pa.array([[2**60]], pa.list_(US)), "between|year"),
        ("wrong dimension", vec, pa.array([[1.0]]), "castable"),
        ("null component", vec, pa.array([[1.0, None]], vec), "null component"),
        ("vector NaN", vec, pa.array([[1.0, math.nan]], vec), "NaN or infinity"),
        ("vector infinity", vec, pa.array([[1.0, math.inf], [1.0, -math.inf]], vec), "NaN or infinity"),
        (
            "double to float16",
            pa.list_(pa.float16(), 2),
            pa.array([[1e9, 0.0]], pa.list_(pa.float64(), 2)),
            "NaN or infinity|castable",
        ),
        ("no JSON", pa.json_(), pa.array(["{a"]), "JSON"),
        ("JSON twice", pa.json_(), pa.array(['{"a":1,"a":2}']), "twice"),
        ("JSON NaN", pa.json_(), pa.array(['{"a":NaN}']), "finite"),
    ]


@pytest.mark.parametrize(
    ("arrow", "array", "message"), [one[1:] for one in arrow_bad()], ids=[one[0] for one in arrow_bad()]
)
def test_arrow_data_that_does_not_fit_is_named(arrow: pa.DataType, array: pa.Array, message: str) -> None:
    schema = TableSchema("t", [pa.field("k", pa.int64()), pa.field("x", arrow)], key="k")
    with pytest.raises(InvalidInputError, match=message) as raised:
        schema.from_user_arrow(pa.table({"k": range(len(array)), "x": array}))
    assert "x" in str(raised.value)


def test_arrow_data_is_cast_where_nothing_is_lost() -> None:
    fields = [
        pa.field("k", pa.int64()),
        pa.field("s", pa.string()),
        pa.field("f", pa.float32()),
        pa.field("at", US),
        pa.field("v", pa.list_(pa.float32(), 2)),
        pa.field("m", pa.json_()),
    ]
    schema = TableSchema("t", fields, key="k")
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    table = pa.table(
        {
            "k": pa.array([1, 2], pa.int8()),
            "s": pa.array(["a", None]).dictionary_encode(),
            "f": pa.array([0.5, None], pa.float64()),
            "at": pa.array([moment, None], pa.timestamp("s", tz="Europe/Berlin")),
            "v": pa.array([[1.0, 2.0], None], pa.list_(pa.float64())),
            "m": pa.array([{"a": 1}, None]),
        }
    )
    found = schema.arrow_to_rows(schema.from_user_arrow(table))
    assert [frozen(one) for one in found] == [
        frozen({"k": 1, "s": "a", "f": 0.5, "at": moment, "v": np.float32([1, 2]), "m": {"a": 1}}),
        frozen({"k": 2, "s": None, "f": None, "at": None, "v": None, "m": None}),
    ]


def test_of_equal_keys_the_last_stays() -> None:
    schema = TableSchema("t", [pa.field("k", pa.string()), pa.field("n", pa.int64())], key="k")
    table = schema.from_user_arrow(pa.table({"k": ["a", "b", "a", "c", "b"], "n": [1, 2, 3, 4, 5]}))
    assert dict(zip(table["k"].to_pylist(), table["n"].to_pylist(), strict=True)) == {"a": 3, "b": 5, "c": 4}


def test_unknown_missing_and_null_columns() -> None:
    schema = TableSchema("t", [pa.field("k", pa.string()), pa.field("n", pa.int64(), nullable=False)], key="k")
    for bad, message in (
        ({"k": "a", "n": 1, "z": 1}, "no column 'z'"),
        ({"k": "a", "n": 1, 5: 1}, "no column '5'"),
        ({"k": "a"}, "column n must not be null"),
        ({"n": 1}, "column k must not be null"),
        ({"k": "a", "n": None}, "column n must not be null"),
        (["a", 1], "mapping"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            schema.to_physical(bad)  # type: ignore[arg-type]
    for table, message in (
        (pa.table({"k": ["a"], "n": [1], "z": [1]}), "no column 'z'"),
        (pa.table({"k": ["a"]}), "column n must not be null"),
        (pa.table({"k": [None], "n": [1]}), "column k must not be null"),
        (pa.table([pa.array(["a"]), pa.array(["b"]), pa.array([1])], names=["k", "k", "n"]), "twice"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            schema.from_user_arrow(table)


# --- definitions ------------------------------------------------------------------------------------------------------

K, N, V = pa.field("k", pa.string()), pa.field("n", pa.int64()), pa.field("v", pa.list_(pa.float32(), 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "", "schema": [K], "key": "k"}, "name"),
        ({"name": "1a", "schema": [K], "key": "k"}, "name"),
        ({"name": "a/b", "schema": [K], "key": "k"}, "name"),
        ({"name": "a" * 64, "schema": [K], "key": "k"}, "name"),
        ({"name": "a\n", "schema": [K], "key": "k"}, "name"),
        ({"name": 5, "schema": [K], "key": "k"}, "name"),
        ({"name": "t", "schema": [K, pa.field("_key", pa.string())], "key": "k"}, "_key"),
        ({"name": "t", "schema": [K, pa.field("a b", pa.string())], "key": "k"}, "a b"),
        ({"name": "t", "schema": [K, pa.field("K", pa.string())], "key": "k"}, "case"),
        ({"name": "t", "schema": [K], "key": []}, "key"),
        ({"name": "t", "schema": [K], "key": "z"}, "'z'"),
        ({"name": "t", "schema": [K], "key": ["k", "k"]}, "twice"),
        ({"name": "t", "schema": [K, V], "key": "v"}, "v cannot be of type vector"),
        ({"name": "t", "schema": [pa.field("f", pa.float64())], "key": "f"}, "f cannot be of type float64"),
        ({"name": "t", "schema": [K, pa.field("j", pa.json_())], "key": "k", "indexed": ["j"]}, "always indexed"),
        ({"name": "t", "schema": [K], "key": "k", "indexed": ["z"]}, "'z'"),
        ({"name": "t", "schema": [K, N], "key": "k", "indexed": ["n", "n"]}, "twice"),
        (
            {"name": "t", "schema": [K, pa.field("x", pa.timestamp("ns", tz="UTC"))], "key": "k"},
            "column x: type timestamp",
        ),
        ({"name": "t", "schema": [K, pa.field("x", pa.timestamp("us"))], "key": "k"}, "column x"),
        ({"name": "t", "schema": [K, pa.field("x", pa.struct([N]))], "key": "k"}, "column x"),
        ({"name": "t", "schema": [K, pa.field("x", pa.list_(pa.float64(), 2))], "key": "k"}, "column x"),
        ({"name": "t", "schema": [K, pa.field("x", pa.list_(pa.float32(), 0))], "key": "k"}, "column x"),
        ({"name": "t", "schema": [K, pa.field("x", pa.decimal128(5))], "key": "k"}, "column x"),
        ({"name": "t", "schema": [K, pa.field("x", pa.list_(pa.list_(pa.int8())))], "key": "k"}, "column x"),
        ({"name": "t", "schema": "k", "key": "k"}, "schema"),
        ({"name": "t", "schema": [("k", pa.string())], "key": "k"}, "schema"),
        ({"name": "t", "schema": [K], "key": 5}, "key"),
    ],
    ids=repr,
)
def test_definitions_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        TableSchema(**arguments)


def test_a_definition_survives_the_catalogue() -> None:
    assert TableSchema.from_json(EVERY.to_json()) == EVERY
    assert hash(TableSchema.from_json(EVERY.to_json())) == hash(EVERY)
    assert keyed("string") != EVERY
    hot = TableSchema("h", [K], key="k", hot_only=True)
    assert TableSchema.from_json(hot.to_json()).hot_only
    for text in ("", "{}", EVERY.to_json().replace("int8", "int9"), '{"name": 1}'):
        with pytest.raises(FormatError):
            TableSchema.from_json(text)


def test_added_columns_are_null_in_old_rows() -> None:
    old = TableSchema("t", [K, N], key="k", indexed=["n"])
    new = old.with_columns([V, pa.field("j", pa.json_())])
    assert [column.name for column in new.columns] == ["k", "n", "v", "j"]
    assert new.key == old.key
    assert new.indexed == old.indexed
    assert keyed("string").with_columns([K]).columns[-1].name == "k"
    assert new.to_python(old.to_physical({"k": "a", "n": 1})) == {"k": "a", "n": 1, "v": None, "j": None}
    for bad, message in (
        ([pa.field("N", pa.string())], "already"),
        ([pa.field("z", pa.string(), nullable=False)], "nullable"),
        ([pa.field("z", pa.string()), pa.field("Z", pa.string())], "case"),
        ([pa.field("k", pa.string())], "already|case"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            old.with_columns(bad)


def test_int_key_parts_are_sixteen_hex_digits() -> None:
    column = Column("n", "int64", nullable=False)
    assert encode_key_part(column, 0) == "8000000000000000"
    assert encode_key_part(column, -(2**63)) == "0" * 16
