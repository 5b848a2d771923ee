"""Whatever happened to a collection, every way to search it returns what numpy finds in a plain copy of its rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.search_oracle import assert_nearest

import agentdb
from agentdb import Config, field
from agentdb.storage.indices import IndexDefinition
from agentdb.vectors import search as search_module
from agentdb.vectors.collection import Collection
from agentdb.vectors.definition import VectorSpec
from agentdb.vectors.indexes import IvfFlat
from agentdb.vectors.resident import ResidentCache
from agentdb.vectors.search import Searcher

D = 4
WORDS = ("red", "green", "blue", "fish", "bird")
FILTERS = (
    None,
    field("tag") == "a",
    field("kind") == "x",
    (field("tag") == "a") & (field("n") > 3),
    (field("kind") == "x") & (field("tag") == "b") & ~(field("n") == 5),
    field("n") <= 6,
    field("tag") != "a",
)
PATHS = ("resident", "table", "scan", "index")
INDEX = IvfFlat(partitions=1, nprobes=1)
"""Looks into every partition there is, so it must find what an exact search finds."""

ids = st.integers(0, 15).map(lambda i: f"r{i:02d}")
# Few values: equal distances, zero vectors and equal rows are what a ranking can get wrong.
vectors = st.none() | st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0]), min_size=D, max_size=D)
rows = st.fixed_dictionaries(
    {
        "vector": vectors,
        "text": st.none() | st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join),
        "metadata": st.fixed_dictionaries(
            {"n": st.integers(0, 9)}, optional={"tag": st.sampled_from("ab"), "kind": st.sampled_from("xy")}
        ),
    }
)
steps = st.one_of(
    st.tuples(st.just("upsert"), st.dictionaries(ids, rows, min_size=1, max_size=8)),
    st.tuples(st.just("delete"), st.lists(ids, min_size=1, max_size=4, unique=True)),
    st.tuples(st.just("delete where"), st.sampled_from("ab")),
    st.tuples(st.just("update"), st.tuples(ids, st.sampled_from("abc"))),
    st.tuples(st.sampled_from(["flush", "optimize", "bulk", "index"]), st.none()),
)
queries = st.lists(st.sampled_from([-1.0, 0.25, 1.0, 2.0]), min_size=D, max_size=D)


class _Held:
    """A collection, and a plain copy of its rows."""

    def __init__(self, db: agentdb.Database, metric: str, dtype: str) -> None:
        self.db = db
        self.metric = metric
        spec = VectorSpec(D, metric, dtype=dtype)  # type: ignore[arg-type]
        self.collection: Collection = db.collection("c", vectors={"v": spec}, schema={"tag": str})
        self.rows: dict[str, Any] = {}
        self._searchers = {path: self._searcher(path) for path in PATHS}

    def _searcher(self, path: str) -> Searcher:
        collection = self.collection
        cache = ResidentCache(1 if path == "scan" else 1 << 28)
        index = self._index if path == "index" else lambda _: None
        return Searcher(self.db, collection._table, collection._store, cache, lambda: None, index)  # type: ignore[arg-type, return-value]

    def _index(self, _: str) -> IvfFlat | None:
        info = self.collection._table.index_info("v")
        return INDEX if info is not None and info.segments else None

    def apply(self, kind: str, what: Any) -> None:
        match kind:
            case "upsert":
                self._upsert(what)
            case "delete":
                self.collection.delete(what)
                for key in what:
                    self.rows.pop(key, None)
            case "delete where":
                self.collection.delete(filter=field("tag") == what)
                self.rows = {key: row for key, row in self.rows.items() if row["metadata"].get("tag") != what}
            case "update":
                key, tag = what
                if key in self.rows:
                    self.collection.update([key], metadata=[{"tag": tag}], merge=True)
                    row = self.rows[key]
                    self.rows[key] = {**row, "metadata": {**row["metadata"], "tag": tag}}
            case "index":
                self.db.flush()
                if any(row["vector"] is not None for row in self.rows.values()):
                    kernel: Any = "l2" if self.metric == "euclidean" else self.metric
                    definition = IndexDefinition(INDEX.kind, kernel, INDEX.build_parameters(len(self.rows), D))
                    self.collection._table.build_index("v", definition)
            case "flush":
                self.db.flush()
            case "optimize":
                self.db.optimize()
            case "bulk":
                bulk = {
                    "vector": [1.0, 0.5, 0.0, 3.0],
                    "text": "red bulk",
                    "metadata": {"n": 7, "tag": "a", "kind": "x"},
                }
                self._upsert({f"s{i:03d}": bulk for i in range(30)})

    def _upsert(self, given: dict[str, Any]) -> None:
        if self.metric == "cosine":  # for which a zero vector is refused
            given = {
                key: {**row, "vector": row["vector"] if any(row["vector"] or ()) else None}
                for key, row in given.items()
            }
        # A batch has one shape: with vectors, or without.
        for has_vector in (False, True):
            part = {key: row for key, row in given.items() if (row["vector"] is not None) is has_vector}
            if part:
                self.collection.upsert(
                    list(part),
                    vectors=np.array([row["vector"] for row in part.values()]) if has_vector else None,
                    texts=[row["text"] for row in part.values()],
                    metadata=[row["metadata"] for row in part.values()],
                )
        self.rows.update(given)

    @contextmanager
    def by(self, path: str) -> Iterator[Searcher]:
        """Force a search to take one of the ways."""
        limit = search_module.SCAN_BYTES if path == "resident" else 0
        with (
            mock.patch.object(search_module, "SCAN_BYTES", limit),
            self.db.transaction() if path == "table" else nullcontext(),
        ):
            yield self._searchers[path]


@contextmanager
def _held(metric: str, dtype: str) -> Iterator[_Held]:
    config = Config(maintenance=False, durability="normal", bulk_rows=20, bulk_bytes=1)
    with tempfile.TemporaryDirectory() as folder, agentdb.open(Path(folder) / "db", config=config) as db:
        yield _Held(db, metric, dtype)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@settings(max_examples=15)
@given(
    dtype=st.sampled_from(["float32", "float16"]),
    plan=st.lists(steps, min_size=1, max_size=6),
    query=queries,
    k=st.integers(1, 20),
)
def test_vectors(metric: str, dtype: str, plan: list[Any], query: list[float], k: int) -> None:
    with _held(metric, dtype) as held:
        for kind, what in plan:
            held.apply(kind, what)
            for path in PATHS:
                with held.by(path) as searcher:
                    for condition in FILTERS:
                        hits = searcher.search(query, k, filter=condition, exact=path == "scan")
                        _check(hits, held, query, k, condition)
                    taken = [one.path for one in searcher.explain_search(query, k, exact=path == "scan").signals]
                    assert taken == [path] or not held.rows or path == "index"


def _check(hits: list[agentdb.Hit], held: _Held, query: list[float], k: int, condition: Any) -> None:
    mapped = None if condition is None else held.collection._store.read().table_filter(condition)
    shown = {
        key: {**row, "p_tag": row["metadata"].get("tag")}
        for key, row in held.rows.items()
    }  # fmt: skip
    assert_nearest(hits, shown, query, k, held.metric, mapped)


@settings(max_examples=15)
@given(plan=st.lists(steps, min_size=1, max_size=6), text=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
def test_texts_are_ranked_alike_in_memory_and_by_the_table(plan: list[Any], text: list[str]) -> None:
    words = " ".join(text)
    with _held("cosine", "float32") as held:
        for kind, what in plan:
            held.apply(kind, what)
            for condition in FILTERS:
                query = search_module.Query(text=words, vector=[1.0, 0.5, 0.25, 0.0])
                for mode in ("text", "hybrid"):
                    found = []
                    for path in ("resident", "table"):
                        with held.by(path) as searcher:
                            found.append(searcher.search(query, 12, mode=mode, filter=condition))  # type: ignore[arg-type]
                    one, other = ([(hit.score, hit.id) for hit in hits] for hits in found)
                    assert [key for _, key in one] == [key for _, key in other]
                    np.testing.assert_allclose([score for score, _ in one], [score for score, _ in other], atol=1e-5)
                    if mode == "text":
                        expected = {
                            key
                            for key, row in held.rows.items()
                            if set(text) & set((row["text"] or "").split()) and _matches(held, key, condition)
                        }
                        assert len(one) == min(12, len(expected))
                        assert {key for _, key in one} <= expected


def _matches(held: _Held, key: str, condition: Any) -> bool:
    from agentdb.filters import matches

    row = held.rows[key]
    mapped = held.collection._store.read().table_filter(condition)
    return mapped is None or matches(mapped, {"id": key, **row, "p_tag": row["metadata"].get("tag")})
