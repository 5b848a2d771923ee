"""A collection against a plain dict: any sequence of writes, upkeep and reopenings gives the same answers.

Searches that must be exact are compared with numpy in float64, for every metric and under every filter.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import agentdb
from agentdb import And, Config, Hit, IvfFlat, NotFoundError, VectorSpec
from agentdb.filters import Filter, matches
from agentdb.storage.schema import TableSchema
from agentdb.testing.models import frozen
from agentdb.testing.strategies import filters

DIMENSION = 3
SPECS = {
    "cos": VectorSpec(DIMENSION, "cosine"),
    "dot": VectorSpec(DIMENSION, "dot", dtype="float16"),
    "euclid": VectorSpec(DIMENSION, "euclidean"),
    "tokens": VectorSpec(2, multi=True),
}
# Few values, so that there are ties, and filters find something.
numbers = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 3.25])
vectors = st.lists(numbers, min_size=DIMENSION, max_size=DIMENSION)
directions = vectors.filter(any)
ids = st.sampled_from([f"id{i}" for i in range(30)])
texts = st.sampled_from(["red fox", "a red car", "blue sky above", "the sky", "fox fox fox", "", "ünïcode \0 text"])
scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from([0, 1, 2, 2.5, -1, 2**60]), st.sampled_from(["", "a", "b"])
)
metadata = st.dictionaries(
    st.sampled_from(["agent", "n", "k"]),
    st.one_of(scalars, st.lists(scalars, max_size=2), st.dictionaries(st.just("x"), scalars)),
)
SHAPE = TableSchema(
    "shape", [pa.field("id", pa.string()), pa.field("text", pa.string()), pa.field("metadata", pa.json_())], key="id"
)
agent_is = st.sampled_from(["a", "b", 1]).map(lambda value: agentdb.field("agent") == value)
n_from = st.sampled_from([0, 1, 2]).map(lambda value: agentdb.field("n") >= value)
conditions = st.one_of(
    st.none(),
    agent_is,
    n_from,
    st.tuples(agent_is, n_from).map(lambda both: And(*both)),
    filters(SHAPE),
)

ALWAYS = [
    agentdb.field("agent") == "a",
    agentdb.field("n") >= 2,
    agentdb.field("n") == 1,
    agentdb.field("k") == True,  # noqa: E712 - a filter
    agentdb.field("k").startswith("a"),
    ~(agentdb.field("n") < 2),
]
"""Asked after every step: what may be promoted."""


def some_metadata(random: Random) -> dict[str, Any]:
    choices = {"agent": ["a", "b", 1, None], "n": [0, 1, 2, 2.5, "2", True, None], "k": ["a", "ab", True, 1, ["a"]]}
    return {key: random.choice(of) for key, of in choices.items() if random.random() < 0.8}


class Model:
    """One row as it must come back."""

    def __init__(self, text: str | None, meta: dict[str, Any] | None, found: dict[str, Any]) -> None:
        self.text = text
        self.metadata = meta
        self.vectors = {name: np.asarray(one, SPECS[name].dtype) for name, one in found.items() if one is not None}

    def row(self, row_id: str) -> dict[str, Any]:
        return {"id": row_id, "text": self.text, "metadata": self.metadata}

    def frozen(self) -> Any:
        return frozen({"text": self.text, "metadata": self.metadata or {}, "vectors": self.vectors})


def holds(condition: Filter | None, row: dict[str, Any]) -> bool:
    """The specification: a path leads into the row, or into its metadata."""
    # Every other column is a key of the metadata.
    flat = {**(row["metadata"] or {}), **row}
    return condition is None or matches(condition, flat)


def distance(metric: str, query: np.ndarray, row: np.ndarray) -> float:
    left, right = query.astype(row.dtype).astype(np.float64), row.astype(np.float64)
    if metric == "euclidean":
        return float(np.sqrt(((left - right) ** 2).sum()))
    if metric == "dot":
        return float(1 - left @ right)
    norm = np.linalg.norm(left) * np.linalg.norm(right)
    return float(1 - (left @ right) / norm) if norm else 1.0


def check_hits(hits: Sequence[Hit], expected: dict[str, float], k: int) -> None:
    """The K best, in order; among equals any may be left out."""
    assert len(hits) == min(k, len(expected))
    assert len({hit.id for hit in hits}) == len(hits)
    best = sorted(expected.values())[: len(hits)]
    np.testing.assert_allclose([hit.distance for hit in hits], best, rtol=1e-5, atol=1e-5)
    for hit in hits:
        assert abs(hit.distance - expected[hit.id]) <= 1e-5 * max(1.0, abs(hit.distance))


class CollectionMachine(RuleBasedStateMachine):
    @initialize(promoted=st.booleans())
    def start(self, promoted: bool) -> None:  # noqa: FBT001
        self.directory = Path(tempfile.mkdtemp())
        self.config = Config(maintenance=False, durability="normal", bulk_rows=6, bulk_bytes=1)
        self.rows: dict[str, Model] = {}
        self.open()
        schema = {"agent": str, "n": float} if promoted else None
        self.notes = self.db.collection("notes", vectors=SPECS, schema=schema)

    def open(self) -> None:
        self.db = agentdb.open(self.directory / "db", config=self.config)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            try:
                self.db.optimize()
                assert self.db.verify().ok
                self.everything_is_there()
            finally:
                self.db.close()
                shutil.rmtree(self.directory)

    # --- writes

    @rule(random=st.randoms(use_true_random=False), count=st.integers(1, 20))
    def upsert_much(self, random: Random, count: int) -> None:
        """Rows of the kinds that searches tell apart, without Hypothesis looking at every value."""
        some = random.sample([f"id{i}" for i in range(30)], count)
        values = [0.0, 1.0, -1.0, 0.5, 2.0, 3.25]
        found = {name: [random.choices(values, k=DIMENSION) for _ in some] for name in ("dot", "euclid")}
        found["cos"] = [
            None if random.random() < 0.2 else [1.0, *random.choices(values, k=DIMENSION - 1)] for _ in some
        ]
        meta = [some_metadata(random) for _ in some]
        its_texts = random.choices(["red fox", "a red car", "blue sky above", None], k=count)
        self.notes.upsert(some, found, its_texts, meta)
        for i, key in enumerate(some):
            self.rows[key] = Model(its_texts[i], meta[i], {name: one[i] for name, one in found.items()})

    @rule(data=st.data(), some=st.lists(ids, max_size=12, unique=True), arrow=st.booleans())
    def upsert(self, data: st.DataObject, some: list[str], arrow: bool) -> None:  # noqa: FBT001
        def column(values: st.SearchStrategy[Any]) -> list[Any] | None:
            listed = st.lists(values, min_size=len(some), max_size=len(some))
            found: list[Any] | None = data.draw(st.one_of(listed, listed, st.none()))
            return found

        given = {
            "cos": column(st.one_of(directions, st.none())),
            "dot": column(vectors),
            "euclid": column(vectors),
            "tokens": column(
                st.one_of(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=1, max_size=3), st.none())
            ),
        }
        its_texts = column(st.one_of(texts, st.none()))
        its_metadata = column(st.one_of(metadata, st.none()))
        passed: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
        if arrow:
            passed = {
                name: pa.array(one, pa.list_(pa.float32(), DIMENSION)) if name != "tokens" else one
                for name, one in passed.items()
            }
        self.notes.upsert(some, passed, its_texts, its_metadata)
        for i, key in enumerate(some):
            self.rows[key] = Model(
                None if its_texts is None else its_texts[i],
                None if its_metadata is None else its_metadata[i],
                {name: one[i] for name, one in given.items() if one is not None},
            )

    @rule(
        key=ids,
        text=st.one_of(texts, st.none()),
        meta=st.one_of(metadata, st.none()),
        merge=st.booleans(),
        vector=directions,
    )
    def update(self, key: str, text: str | None, meta: dict[str, Any] | None, merge: bool, vector: list[float]) -> None:  # noqa: FBT001
        def work() -> None:
            self.notes.update([key], {"cos": [vector]}, [text], [meta], merge=merge)

        found = self.rows.get(key)
        if found is None:
            with pytest.raises(NotFoundError):
                work()
            return
        work()
        new_metadata = found.metadata
        if meta is not None:
            new_metadata = {**(found.metadata or {}), **meta} if merge else meta
        self.rows[key] = Model(text if text is not None else found.text, new_metadata, {**found.vectors, "cos": vector})

    @precondition(lambda self: self.rows)
    @rule(random=st.randoms(use_true_random=False), merge=st.booleans())
    def update_much(self, random: Random, merge: bool) -> None:  # noqa: FBT001
        some = random.sample(sorted(self.rows), random.randint(1, len(self.rows)))
        meta = [some_metadata(random) for _ in some]
        self.notes.update(some, metadata=meta, merge=merge)
        for key, one in zip(some, meta, strict=True):
            found = self.rows[key]
            self.rows[key] = Model(found.text, {**(found.metadata or {}), **one} if merge else one, found.vectors)

    @rule(some=st.lists(ids, max_size=5), erase=st.booleans())
    def delete(self, some: list[str], erase: bool) -> None:  # noqa: FBT001
        expected = len({one for one in some if one in self.rows})
        assert (self.notes.erase(some).rows if erase else self.notes.delete(some)) == expected
        for one in some:
            self.rows.pop(one, None)

    @rule(condition=conditions.filter(lambda one: one is not None))
    def delete_by_filter(self, condition: Filter) -> None:
        doomed = [key for key, one in self.rows.items() if holds(condition, one.row(key))]
        assert self.notes.delete(filter=condition) == len(doomed)
        for key in doomed:
            del self.rows[key]

    @rule(vector=directions)
    def roll_back(self, vector: list[float]) -> None:
        def fail() -> None:
            with self.db.transaction():
                self.notes.delete(filter=agentdb.field("id") >= "id2")
                self.notes.upsert([f"id{i}" for i in range(8)], {"cos": [vector] * 8})
                hits = self.notes.search(vector, 3, vector_name="cos")
                assert len(hits) == 3
                assert hits[0].distance < 1e-6
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()

    # --- upkeep

    @rule()
    def flush(self) -> None:
        self.db.flush()

    @rule()
    def optimize(self) -> None:
        self.db.optimize()

    @rule()
    def reopen(self) -> None:
        self.db.close()
        self.open()
        self.notes = self.db.collection("notes")

    @rule(key=st.sampled_from([("agent", str), ("n", float), ("k", bool), ("k", str)]))
    def promote(self, key: tuple[str, type]) -> None:
        if (key[0],) not in self.notes.promoted:
            self.notes.promote(*key)

    # --- reads

    @rule(condition=conditions, some=st.lists(ids, max_size=4))
    def read(self, condition: Filter | None, some: list[str]) -> None:
        expected = {key: one for key, one in self.rows.items() if holds(condition, one.row(key))}
        assert self.notes.count(condition) == len(expected)
        found = {one.id: one for one in self.notes.scan(condition, include=["text", "metadata", "vectors"])}
        assert found.keys() == expected.keys()
        batched = [one for batch in self.notes.iterate(condition, batch_rows=4) for one in batch]
        assert len(batched) == len(expected)
        for one in [*found.values(), *batched, *filter(None, self.notes.get_many(some))]:
            assert (
                frozen({"text": one.text, "metadata": one.metadata, "vectors": dict(one.vectors)})
                == self.rows[one.id].frozen()
            )
        assert [one is not None for one in self.notes.get_many(some)] == [one in self.rows for one in some]

    @rule(condition=conditions, name=st.sampled_from(["cos", "dot", "euclid"]), query=directions, k=st.integers(1, 40))
    def search(self, condition: Filter | None, name: str, query: list[float], k: int) -> None:
        expected = self.distances(condition, name, query)
        check_hits(self.notes.search(query, k, vector_name=name, filter=condition, exact=True), expected, k)
        check_hits(self.notes.search_many([query, query], k, vector_name=name, filter=condition)[1], expected, k)

    def distances(self, condition: Filter | None, name: str, query: list[float]) -> dict[str, float]:
        metric, target = SPECS[name].metric, np.array(query, np.float32)
        return {
            key: distance(metric, target, one.vectors[name])
            for key, one in self.rows.items()
            if name in one.vectors and holds(condition, one.row(key))
        }

    @rule(word=st.sampled_from(["red", "sky", "fox", "nothing"]), condition=conditions)
    def search_text(self, word: str, condition: Filter | None) -> None:
        expected = {
            key
            for key, one in self.rows.items()
            if one.text is not None and word in one.text.split() and holds(condition, one.row(key))
        }
        assert {hit.id for hit in self.notes.search(word, 100, mode="text", filter=condition)} == expected

    @precondition(lambda self: hasattr(self, "db"))
    @invariant()
    def everything_is_there(self) -> None:
        assert self.notes.count() == len(self.rows)
        found = {one.id: one for one in self.notes.scan()}
        assert {key: (one.text, one.metadata) for key, one in found.items()} == {
            key: (one.text, one.metadata or {}) for key, one in self.rows.items()
        }
        for condition in ALWAYS:
            assert self.notes.count(condition) == sum(holds(condition, one.row(key)) for key, one in self.rows.items())


TestCollections = CollectionMachine.TestCase
_long = settings.default is not None and settings.default.max_examples > 1_000
TestCollections.settings = settings(
    max_examples=400 if _long else 30,
    stateful_step_count=40 if _long else 25,
    suppress_health_check=list(HealthCheck),
)

SEARCHER = """
import json, sys
import agentdb
with agentdb.open(sys.argv[1]) as db:
    notes = db.collection("notes")
    for line in sys.stdin:
        query, name, agent = json.loads(line)
        condition = None if agent is None else agentdb.field("agent") == agent
        hits = notes.search(query, 10, vector_name=name, filter=condition)
        print(json.dumps([[hit.id, hit.distance] for hit in hits]), flush=True)
"""


def test_another_process_finds_what_this_one_has_just_written(db_path: Path) -> None:
    random = np.random.default_rng(3)
    specs = {"cos": VectorSpec(8), "dot": VectorSpec(8, "dot"), "euclid": VectorSpec(8, "euclidean")}
    rows: dict[str, tuple[np.ndarray, str]] = {}
    with agentdb.open(db_path, config=Config(bulk_rows=64, bulk_bytes=1, flush_rows=50, tick_s=0.05)) as db:
        notes = db.collection("notes", vectors=specs)
        notes.upsert(["first"], dict.fromkeys(specs, np.ones((1, 8))))
        rows["first"] = np.ones(8, np.float32), ""
        other = subprocess.Popen(
            [sys.executable, "-c", SEARCHER, str(db_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            for step in range(60):
                some = [f"r{random.integers(400)}" for _ in range(1 if step % 10 else 100)]
                some = list(dict.fromkeys(some))
                made = random.standard_normal((len(some), 8), dtype=np.float32)
                agents = [f"a{random.integers(3)}" for _ in some]
                notes.upsert(some, dict.fromkeys(specs, made), metadata=[{"agent": one} for one in agents])
                rows.update(zip(some, zip(made, agents, strict=True), strict=True))
                if step % 7 == 3:
                    gone = [one for one in rows if random.random() < 0.05]
                    notes.delete(gone)
                    for one in gone:
                        del rows[one]
                query = random.standard_normal(8).astype(np.float32)
                name = list(specs)[step % 3]
                agent = None if step % 2 else "a1"
                other.stdin.write(f"{json.dumps([query.tolist(), name, agent])}\n")
                other.stdin.flush()
                found = [Hit(one, 0.0, far) for one, far in json.loads(other.stdout.readline())]
                expected = {
                    key: distance(specs[name].metric, query, one)
                    for key, (one, its) in rows.items()
                    if agent in (None, its)
                }
                check_hits(found, expected, 10)
        finally:
            other.stdin.close()
            other.stdout.close()
            assert other.wait(60) == 0


def test_index_builds_change_no_exact_answer(db_path: Path) -> None:
    """Above the size from which indices are built, and with too little memory to hold the vectors."""
    random = np.random.default_rng(0)
    specs = {
        "cos": VectorSpec(16),
        "dot": VectorSpec(16, "dot", dtype="float16"),
        "euclid": VectorSpec(16, "euclidean"),
    }
    rows: dict[str, np.ndarray] = {}
    agents: dict[str, str] = {}
    with agentdb.open(db_path, config=Config(maintenance=False, resident_bytes=64 << 10)) as db:
        notes = db.collection("notes", vectors=specs)

        def write(some: list[str]) -> None:
            some = list(dict.fromkeys(some))
            made = random.standard_normal((len(some), 16), dtype=np.float32)
            rows.update(zip(some, made, strict=True))
            agents.update((one, f"a{random.integers(40)}") for one in some)
            notes.upsert(some, dict.fromkeys(specs, made), metadata=[{"agent": agents[one]} for one in some])

        def check(*, is_indexed: bool) -> None:
            for name, spec in specs.items():
                query = random.standard_normal(16).astype(np.float32)
                assert (notes._table.index_info(spec_column(name)) is not None) == is_indexed
                for agent in (None, "a1"):
                    condition = None if agent is None else agentdb.field("agent") == agent
                    expected = {
                        key: distance(spec.metric, query, one.astype(spec.dtype))
                        for key, one in rows.items()
                        if agent in (None, agents[key])
                    }
                    check_hits(notes.search(query, 10, vector_name=name, filter=condition, exact=True), expected, 10)

        def spec_column(name: str) -> str:
            return notes._store.read().vector(name).column

        write([f"r{i}" for i in range(2_500)])
        check(is_indexed=False)
        for name in specs:
            notes.set_index(IvfFlat(partitions=4, nprobes=1), vector_name=name)
        for _ in range(2):
            db.optimize()
            check(is_indexed=True)
            write([f"r{random.integers(3_000)}" for _ in range(200)])
            notes.delete(gone := [one for one in rows if random.random() < 0.05])
            for one in gone:
                del rows[one]
            check(is_indexed=True)
            db.flush()
            check(is_indexed=True)
        assert db.verify().ok
