"""Filters as dictionaries: held equal to a brute-force reading of them, and closed to injection."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings

from agentdb import InvalidInputError, field
from langchain_agentdb import AgentDBVectorStore, to_filter

# Values that somewhere have ended a string, opened a comment, or matched everything.
HOSTILE = [
    "' OR 1=1 --",
    "zzz' OR 1=1 --",
    '"; DROP TABLE rows; --',
    "%",
    "_",
    "*",
    "a%b_c",
    "\\",
    "\\'",
    "\0",
    "a\0b",
    "$gt",
    "{{1}}",
    "metadata.a",
    "/a",
    "🙂 \u202e é",
    "",
    " ",
    "true",
    "1",
    "null",
]
KEYS = ["a", "b", "c.d", "id", "text", "metadata", "it's", '"', "a/b", "🙂"]
SCALARS = [*HOSTILE[:6], "x", "y", "xy", 0, 1, 1.0, -0.0, 2.5, 2**53 + 1, True, False, None]


class Numbered(Embeddings):
    """A vector for each text, by its number."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(one) for one in texts]

    def embed_query(self, text: str) -> list[float]:
        return np.random.default_rng(crc32(text.encode())).normal(size=4).tolist()


def some_metadata(source: random.Random, depth: int = 0) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key in source.sample(KEYS, source.randint(0, 5)):
        kind = source.random()
        if kind < 0.6:
            made[key] = source.choice(SCALARS)
        elif kind < 0.85 or depth:
            made[key] = source.choices(SCALARS, k=source.randint(0, 3))
        else:
            made[key] = some_metadata(source, depth + 1)
    return made


ROWS = {f"row {i}": some_metadata(random.Random(i)) for i in range(120)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentDBVectorStore]:
    with AgentDBVectorStore(Numbered(), tmp_path_factory.mktemp("filters") / "db") as made:
        made.add_texts(list(ROWS), list(ROWS.values()), ids=list(ROWS))
        yield made


# --- the dialect, read literally ------------------------------------------------------------------------------------------

MISSING = object()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return isinstance(one, bool) and isinstance(other, bool) and one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return float(one) == float(other)
    return isinstance(one, str) and isinstance(other, str) and one == other


def ordered(one: Any, other: Any, holds: Callable[[Any, Any], bool]) -> bool:
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)]
    if all(numbers):
        return holds(float(one), float(other))
    return isinstance(one, str) and isinstance(other, str) and holds(one, other)


def operator_holds(name: str, wanted: Any, value: Any) -> bool:
    is_there = value is not MISSING and value is not None
    match name:
        case "$exists":
            return (value is not MISSING) is wanted
        case "$not":
            return not all(operator_holds(key, one, value) for key, one in wanted.items())
        case "$eq":
            return value is None if wanted is None else is_there and same(value, wanted)
        case "$ne":
            return is_there and (wanted is None or not same(value, wanted))
        case "$in":
            known = is_there and any(one is not None and same(value, one) for one in wanted)
            return known or (value is None and None in wanted)
        case "$nin":
            return is_there and not any(one is not None and same(value, one) for one in wanted)
        case "$contains":
            if isinstance(value, str):
                return isinstance(wanted, str) and wanted in value
            return isinstance(value, list) and any(same(one, wanted) for one in value)
        case "$gt":
            return is_there and ordered(value, wanted, lambda a, b: a > b)
        case "$gte":
            return is_there and ordered(value, wanted, lambda a, b: a >= b)
        case "$lt":
            return is_there and ordered(value, wanted, lambda a, b: a < b)
        case _:
            return is_there and ordered(value, wanted, lambda a, b: a <= b)


def holds(condition: dict[str, Any], row: Any) -> bool:
    return all(part_holds(key, value, row) for key, value in condition.items())


def part_holds(key: str, value: Any, row: Any) -> bool:
    if key == "$and":
        return all(holds(one, row) for one in value)
    if key == "$or":
        return any(holds(one, row) for one in value)
    if key == "$not":
        return not holds(value, row)
    found = row[key] if isinstance(row, dict) and key in row else MISSING
    if not isinstance(value, dict):
        return operator_holds("$eq", value, found)
    if all(one.startswith("$") for one in value):
        return all(operator_holds(one, wanted, found) for one, wanted in value.items())
    return holds(value, found)


# --- filters drawn at random ----------------------------------------------------------------------------------------------

scalars = st.sampled_from(SCALARS)
known = scalars.filter(lambda one: one is not None)
orderable = known.filter(lambda one: not isinstance(one, bool))
lists = st.lists(scalars, max_size=4)
operators = st.one_of(
    st.fixed_dictionaries({}, optional={"$gt": orderable, "$lte": orderable}).filter(bool),
    st.fixed_dictionaries({}, optional={"$gte": orderable, "$lt": orderable}).filter(bool),
    st.fixed_dictionaries({}, optional={"$eq": scalars, "$ne": scalars}).filter(bool),
    st.fixed_dictionaries({}, optional={"$in": lists, "$nin": lists}).filter(bool),
    st.fixed_dictionaries({}, optional={"$contains": known, "$exists": st.booleans()}).filter(bool),
)
tests = operators | operators.map(lambda one: {"$not": one}) | scalars
keyed = st.dictionaries(st.sampled_from(KEYS), tests, min_size=1, max_size=2)
conditions = st.recursive(
    keyed,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda one: {"$and": one}),
        st.lists(inner, min_size=1, max_size=3).map(lambda one: {"$or": one}),
        inner.map(lambda one: {"$not": one}),
        st.dictionaries(st.sampled_from(KEYS), keyed, min_size=1, max_size=1),
    ),
    max_leaves=6,
)


@given(condition=conditions)
def test_a_search_finds_what_brute_force_finds(store: AgentDBVectorStore, condition: dict[str, Any]) -> None:
    found = store.similarity_search_by_vector([1.0, 0.0, 0.0, 0.0], k=len(ROWS), filter=condition)
    assert {one.id for one in found} == {name for name, row in ROWS.items() if holds(condition, row)}


def test_what_null_and_missing_mean(tmp_path) -> None:
    rows = {
        "null": {"a": None},
        "one": {"a": 1},
        "two": {"a": 2},
        "missing": {},
        "text": {"a": "xy"},
        "list": {"a": ["xy"]},
    }
    with AgentDBVectorStore(Numbered(), tmp_path / "db") as store:
        store.add_texts(list(rows), list(rows.values()), ids=list(rows))
        for condition, expected in (
            (None, {"null"}),
            ({"$eq": None}, {"null"}),
            ({"$ne": None}, {"one", "two", "text", "list"}),
            ({"$ne": 1}, {"two", "text", "list"}),
            ({"$in": [None]}, {"null"}),
            ({"$in": [1, None]}, {"null", "one"}),
            ({"$in": [1]}, {"one"}),
            ({"$in": []}, set()),
            ({"$nin": [1]}, {"two", "text", "list"}),
            ({"$nin": [1, None]}, {"two", "text", "list"}),
            ({"$nin": []}, {"one", "two", "text", "list"}),
            ({"$not": {"$in": [1]}}, {"null", "two", "missing", "text", "list"}),
            ({"$exists": True}, {"null", "one", "two", "text", "list"}),
            ({"$exists": False}, {"missing"}),
            ({"$contains": "xy"}, {"text", "list"}),
            ({"$contains": "x"}, {"text"}),
            ({"$gt": 1}, {"two"}),
        ):
            found = store.similarity_search("x", k=9, filter={"a": condition})
            assert {one.id for one in found} == expected, condition


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_a_hostile_value_is_only_a_value(store: AgentDBVectorStore, value: str) -> None:
    for condition in (
        {"a": value},
        {"a": {"$in": [value]}},
        {"a": {"$contains": value}},
        {value: value} if value[:1] != "$" else {},
    ):
        if condition:
            found = store.similarity_search("anything", k=len(ROWS), filter=condition)
            assert {one.id for one in found} == {name for name, row in ROWS.items() if holds(condition, row)}
    assert store.get_by_ids([value or "-"]) == []
    assert store.delete(filter={"no such key": value})
    assert len(store.similarity_search("anything", k=1_000)) == len(ROWS)


def test_hostile_ids_name_one_row_each(tmp_path) -> None:
    ids = [one for one in HOSTILE if one]
    with AgentDBVectorStore(Numbered(), tmp_path / "db") as store:
        assert store.add_texts(ids, ids=ids) == ids
        for doomed in ids[::2]:
            store.delete([doomed])
        assert [one.id for one in store.get_by_ids(ids)] == ids[1::2]
        assert [one.page_content for one in store.get_by_ids(ids)] == ids[1::2]


def test_a_tree_is_taken_as_it_is(store: AgentDBVectorStore) -> None:
    tree = field("id").in_(["row 1", "row 2"])
    assert to_filter(tree) is tree
    assert {one.id for one in store.similarity_search("x", k=9, filter=tree)} == {"row 1", "row 2"}


def test_nothing_means_everything() -> None:
    assert to_filter(None) is None
    assert to_filter({}) is None


def deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {"a": 1}
    for _ in range(levels):
        made = {"$not": made}
    return made


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("a = 1", "filter must be a dict"),
        (lambda one: True, "filter must be a dict"),
        ({"a": {"$like": "x"}}, r"no operator '\$like'; there are \$eq"),
        ({"$nor": [{"a": 1}]}, r"no operator '\$nor'"),
        ({"$gt": 3}, r"\$gt must stand below a key"),
        ({"a": [1, 2]}, "nothing is equal to a list"),
        ({"a": {"$ne": [1]}}, "nothing is equal to a list"),
        ({"a": {"$in": "xyz"}}, r"\$in takes a list of values, not str"),
        ({"a": {"$nin": None}}, r"\$nin takes a list of values, not NoneType"),
        ({"a": {"$exists": 1}}, r"\$exists takes true or false, not int"),
        ({"a": {"$gt": None}}, "nothing compares with None"),
        ({"a": {"$gt": True}}, "booleans have no order"),
        ({"a": {"$gt": object()}}, "not object"),
        ({"a": float("nan")}, "finite"),
        ({"a": "\ud800"}, "surrogate"),
        ({"a": {}}, "an empty one"),
        ({"a": {"$gt": 1, "b": 2}}, "side by side"),
        ({"$and": []}, r"\$and takes a list of dicts, not an empty one"),
        ({"$or": {"a": 1}}, r"\$or takes a list of dicts, not dict"),
        ({"$not": 3}, r"\$not takes a dict of conditions, not int"),
        ({"$and": [1]}, r"\$and takes a dict of conditions, not int"),
        ({3: 1}, "a key must be a str, not int"),
        (deep(100), "nested deeper than 64"),
    ],
)
def test_what_means_nothing_is_refused(condition: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        to_filter(condition)
