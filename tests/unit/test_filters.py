"""What filters mean, what they refuse, and the encoding of JSON behind them."""

# ruff: noqa: E711, E712, PLW0177 - comparisons here build filters

from __future__ import annotations

import json
import math
import pickle
from datetime import UTC, date, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from agentdb.errors import IntegrityError, InvalidInputError
from agentdb.filters import (
    And,
    Compare,
    Filter,
    In,
    Not,
    Or,
    columns_of,
    decode_json,
    derive_terms,
    encode_json,
    exists_term,
    field,
    item_term,
    matches,
    null_term,
    parse_json,
    validate,
    value_term,
)
from agentdb.testing.strategies import json_values, texts

ROW: dict[str, Any] = {
    "author": "Ann",
    "n": 3,
    "ok": True,
    "empty": None,
    "raw": b"ab",
    "at": datetime(2024, 1, 1, tzinfo=UTC),
    "day": date(2024, 1, 1),
    "tags": ["x", None, 1.0],
    "vec": np.zeros(2, np.float32),
    "metadata": {"user": {"age": 3, "none": None}, "tags": ["a", 1, True, {"b": 1}, ["c"]], "": 0, "big": 2**60},
}

TRUE = [
    field("author") == "Ann",
    field("author") != "ann",
    field("author") < "B",
    field("author").matches("nn"),
    field("author").matches("NN", case_sensitive=False),
    field("author").startswith("An"),
    field("author").startswith("aN", case_sensitive=False),
    field("author").in_(["Ann", 3]),
    field("author").not_in(["ann"]),
    field("author").not_in([]),
    field("author") != 3,
    field("n") == 3.0,
    field("n") != True,
    field("n") == np.int64(3),
    field("n") >= 3,
    field("ok") == True,
    field("ok") != 1,
    field("raw") == b"ab",
    field("raw") > b"aa",
    field("at") == datetime(2024, 1, 1, 5, tzinfo=timezone(timedelta(hours=5))),
    field("day") < date(2024, 1, 2),
    field("day") != datetime(2024, 1, 1, tzinfo=UTC),
    field("tags").contains("x"),
    field("tags").contains(1),
    field("tags").contains_any(["y", "x"]),
    field("tags").contains_all(["x", 1]),
    field("tags") != "x",
    field("vec") != 0,
    field("empty").is_null(),
    field("absent").is_null(),
    field("absent").exists(),
    ~(field("absent") == 1),
    ~(field("empty") != 1),
    field("metadata", "user", "age") >= 3,
    field("metadata")["user"]["age"] == 3,
    field("metadata", "user", "none").is_null(),
    field("metadata", "user", "none").exists(),
    field("metadata", "user").exists(),
    field("metadata", "user") != 1,
    ~field("metadata", "absent").exists(),
    ~field("metadata", "absent").is_null(),
    ~field("metadata", "tags", "b").exists(),
    field("metadata", "tags").contains(True),
    field("metadata", "") == 0,
    field("metadata", "big") == 2**60 + 1,
    And(),
    (field("n") == 3) & (field("ok") == True) | Or(),
]
FALSE = [
    field("author") == "ann",
    field("author") == 3,
    field("author") > 3,
    field("author").matches("A%"),
    field("author").in_([]),
    field("n") == "3",
    field("n") == True,
    field("ok") == 1,
    field("ok") > 0,
    field("empty") == 0,
    field("empty") != 0,
    field("absent") != 0,
    field("absent").not_in([0]),
    field("day") == datetime(2024, 1, 1, tzinfo=UTC),
    field("raw").matches("a"),
    field("tags").contains("y"),
    field("tags") == "x",
    field("author").contains("A"),
    field("metadata", "user", "none") != 1,
    field("metadata", "absent") != 1,
    field("metadata", "tags").contains("c"),
    field("metadata", "tags").contains(2),
    field("metadata", "user", "age", "deeper").exists(),
    Or(),
]


@pytest.mark.parametrize("condition", TRUE, ids=repr)
def test_true(condition: Filter) -> None:
    assert matches(condition, ROW)
    assert not matches(Not(condition), ROW)


@pytest.mark.parametrize("condition", FALSE, ids=repr)
def test_false(condition: Filter) -> None:
    assert not matches(condition, ROW)
    assert matches(~condition, ROW)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: field("a", "b") == None, "a.b.*is_null"),
        (lambda: field("a", "b") == math.nan, "a.b.*finite"),
        (lambda: field("a") < math.inf, "finite"),
        (lambda: field("a") == 10**400, "range of float64"),
        (lambda: field("a") == "\ud800", "surrogate"),
        (lambda: field("a") == datetime(2024, 1, 1), "aware"),  # noqa: DTZ001
        (lambda: field("a") == [1], "not list"),
        (lambda: field("a") == field("b"), "not another field"),
        (lambda: field("a") > True, "no order"),
        (lambda: field("a").in_("abc"), "list of values"),
        (lambda: field("a").in_([None]), "is_null"),
        (lambda: field("a").matches(3), "must be a str"),  # type: ignore[arg-type]
        (lambda: field("a", 0), "all str"),  # type: ignore[arg-type]
        (lambda: field(""[:0] or "a", "\ud800") == 1, "surrogate"),
        (lambda: bool(field("a") == 1), "truth value"),
        (lambda: (field("a") == 1) and (field("b") == 1), "truth value"),
        (lambda: 1 < field("a") < 3, "truth value"),
        (lambda: bool(field("a")), "truth value"),
        (lambda: "x" in field("a"), "contains"),
        (lambda: (field("a") == 1) & True, "filters only"),  # type: ignore[operator]
        (lambda: Compare((), "eq", 1), "column name"),
        (lambda: Compare(("a",), "like", 1), "unknown comparison"),  # type: ignore[arg-type]
        (lambda: Or(*(field("a") == i for i in range(10_001))), "at most 10000"),
    ],
    ids=map(str, range(23)),
)
def test_refused(make: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        make()


def test_nesting_is_bounded() -> None:
    condition: Filter = field("a") == 1
    for i in range(63):
        condition = And(condition, field("a") == i) if i % 2 else Or(condition, field("a") == i)
    assert condition.depth == 64
    with pytest.raises(InvalidInputError, match="64 deep"):
        Not(condition)
    chain = And(*(field("a") == i for i in range(1000)))
    assert (chain & (field("b") == 1)).depth == 2


def test_many_values_are_fast_to_ask() -> None:
    condition = field("n").in_(range(100_000))
    assert all(matches(condition, ROW) for _ in range(1000))


def test_filters_are_values() -> None:
    one = (field("a") == 1) & ~field("b").in_([1, 2])
    assert one == (field("a") == 1.0) & ~field("b").in_([2, 1])
    assert hash(one) == hash((field("a") == 1.0) & ~field("b").in_([2, 1]))
    assert (field("a") == 1) != (field("a") == True)
    assert ~~one is one
    assert pickle.loads(pickle.dumps(one)) == one
    assert columns_of(one) == {"a", "b"}
    with pytest.raises(TypeError):
        hash(field("a"))
    with pytest.raises(AttributeError):
        one.filters = ()  # type: ignore[attr-defined]


def test_validate() -> None:
    kinds = {"a": "int", "m": "json"}
    validate((field("a") == 1) & (field("m", "x") == 1), kinds)
    with pytest.raises(InvalidInputError, match="no column 'b'"):
        validate(~(field("b") == 1), kinds)
    with pytest.raises(InvalidInputError, match="holds no JSON"):
        validate(field("a", "x") == 1, kinds)
    with pytest.raises(InvalidInputError, match="not given as dict"):
        validate({"a": 1}, kinds)  # type: ignore[arg-type]


# --- JSON ---


@given(json_values())
def test_json_comes_back_exactly(value: Any) -> None:
    text = encode_json(value)
    again = decode_json(text)
    assert again == value
    assert encode_json(again) == text
    assert repr(parse_json(text)) == repr(again)
    assert json.loads(text) == value


def test_equal_objects_have_one_text() -> None:
    assert encode_json({"b": 1, "a": 2}) == encode_json({"a": 2, "b": 1}) == '{"a":2,"b":1}'
    assert repr(decode_json(encode_json([1, 1.0, True, -0.0, 2**70]))) == "[1, 1.0, True, -0.0, 1180591620717411303424]"
    assert encode_json(("a", ())) == '["a",[]]'

    class Colour(StrEnum):
        RED = "red"

    assert encode_json({Colour.RED: Colour.RED, "x": np.float64(0.5)}) == '{"red":"red","x":0.5}'


class Loop(list[Any]):
    pass


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"tags": [1, 2, 3, math.nan]}, r"metadata\.tags\[3\].*finite, not nan"),
        ({"a": {"b": -math.inf}}, r"metadata\.a\.b.*finite"),
        ({"a": "\ud800"}, r"metadata\.a.*surrogate"),
        ({"\udfff": 1}, r"metadata: a key.*surrogate"),
        ({"a": [{1: 2}]}, r"metadata\.a\[0\]: a key must be a str, not int"),
        ({"a": 1, None: 2}, "a key must be a str, not NoneType"),
        ({True: 1}, "not bool"),
        ([10**309], r"metadata\[0\].*float64"),
        ([2**1024 - 2**970], "float64"),
        ({"a": {1, 2}}, r"metadata\.a: JSON holds no set"),
        (b"x", "metadata: JSON holds no bytes"),
        (datetime(2024, 1, 1, tzinfo=UTC), "no datetime"),
        (np.zeros(2), "no ndarray"),
        (deep(200), "nested deeper"),
        (deep(100_000), "nested deeper"),
    ],
    ids=map(str, range(15)),
)
def test_json_refuses(value: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        encode_json(value, path="metadata")


def test_json_refuses_loops() -> None:
    loop = Loop()
    loop.append(loop)
    with pytest.raises(InvalidInputError, match="nested deeper"):
        encode_json({"a": loop})


def test_greatest_number_is_accepted() -> None:
    greatest = 2**1024 - 2**970 - 1
    assert decode_json(encode_json(greatest)) == greatest
    assert derive_terms({"m": greatest})[1] == 'm"n1.7976931348623157e+308'


@pytest.mark.parametrize(
    "text", ["", "{", '{"a":1,"a":2}', "NaN", "[1e999]", '"\\ud800"', "9" * 5000, "[" * 100_000], ids=map(str, range(8))
)
def test_foreign_json_is_checked(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_json(text, path="metadata")


def test_broken_stored_json() -> None:
    with pytest.raises(IntegrityError):
        decode_json('{"a":')


def test_terms() -> None:
    value = {"s": "it's", "n": 1, "f": 1.0, "t": True, "z": None, "o": {}, "l": ["a", 1, False, None, {"x": 1}, ["y"]]}
    assert derive_terms({"m": value, "none": None}) == [
        'm"e',
        'm/s"e',
        'm/s""it\'s"',
        'm/n"e',
        'm/n"n1.0',
        'm/f"e',
        'm/f"n1.0',
        'm/t"e',
        'm/t"t',
        'm/z"0',
        'm/o"e',
        'm/l"e',
        'm/l"["a"',
        'm/l"[n1.0',
        'm/l"[f',
    ]
    assert derive_terms({"m": ["a", "a"]}) == ['m"e', 'm"["a"']


@given(json_values(), texts(), texts())
def test_terms_answer_for_their_value(value: Any, key: str, other: str) -> None:
    terms = derive_terms({"m": {key: value}})
    path = ("m", key)
    assert not any(ord(one) < 0x20 for term in terms for one in term)
    assert (exists_term(path) in terms) is (value is not None)
    assert (null_term(path) in terms) is (value is None)
    for operand in (other, value):
        if not isinstance(operand, str | int | float):
            continue
        condition = field(*path) == operand
        assert isinstance(condition, Compare)
        assert (value_term(path, condition.operand) in terms) is matches(condition, {"m": {key: value}})
        assert (item_term(path, condition.operand) in terms) is matches(
            field(*path).contains(operand), {"m": {key: value}}
        )
    if other != key:
        assert exists_term(("m", other)) not in terms


def test_no_two_paths_share_a_term() -> None:
    names = ["a", "b", "a/b", "", "/", "\\", '"', '"e', "a\\/b", "#", "\\/", "x" * 201, "x" * 202]
    paths = [("m",), *(("m", one) for one in names), *(("m", one, two) for one in names for two in names)]
    paths += [("m/a",), ('m"e',)]
    assert len({exists_term(path) for path in paths}) == len(paths)


def test_operands_of_times_and_binary_have_no_terms() -> None:
    condition = field("m").in_([b"x", date(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC)])
    assert isinstance(condition, In)
    assert [value_term(("m",), one) for one in condition.operands] == [None, None, None]
