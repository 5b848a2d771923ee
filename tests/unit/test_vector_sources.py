"""The ways to search large collections: by Lance's indices beside the hot rows, and with others writing meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.search_oracle import assert_nearest, nearest

import agentdb
from agentdb import Config, field
from agentdb.filters import matches
from agentdb.storage.indices import IndexDefinition
from agentdb.vectors import search as search_module
from agentdb.vectors.collection import Collection
from agentdb.vectors.definition import VectorSpec
from agentdb.vectors.indexes import IndexSpec, IvfFlat, IvfRq
from agentdb.vectors.resident import ResidentCache
from agentdb.vectors.search import Query, Searcher

CONFIG = Config(maintenance=False, durability="normal", bulk_rows=500, bulk_bytes=1)
D = 16
ROWS = 1_500
WORDS = ("red", "green", "blue", "fish", "bird", "house", "river", "stone")


class Held:
    """A collection larger than what is compared one by one, and a plain copy of its rows."""

    def __init__(self, db: agentdb.Database, metric: Any, spec: IndexSpec | None, budget: int = 1 << 30) -> None:
        self.db = db
        self.metric = metric
        self.rng = np.random.default_rng(11)
        self.collection: Collection = db.collection("c", vectors={"v": VectorSpec(D, metric)}, schema={"tag": str})
        self.rows: dict[str, Any] = {}
        self.write(range(ROWS))
        db.flush()
        if spec is not None:
            kernel: Any = "l2" if metric == "euclidean" else metric
            definition = IndexDefinition(spec.kind, kernel, spec.build_parameters(ROWS, D))
            assert self.collection._table.build_index("v", definition)
        self.searcher = Searcher(
            db,
            self.collection._table,
            self.collection._store,
            ResidentCache(budget),
            lambda: None,  # type: ignore[arg-type, return-value]
            lambda _: spec,
        )

    def write(self, numbers: Any) -> None:
        keys = [f"r{i:04d}" for i in numbers]
        vectors = self.rng.standard_normal((len(keys), D)).astype(np.float32)
        texts = [" ".join(self.rng.choice(WORDS, 6)) for _ in keys]
        metadata = [{"tag": "abc"[i % 3], "n": i} for i in numbers]
        self.collection.upsert(keys, vectors=vectors, texts=texts, metadata=metadata)
        for key, vector, text, data in zip(keys, vectors, texts, metadata, strict=True):
            self.rows[key] = {"vector": vector, "text": text, "metadata": data}

    def delete(self, numbers: Any) -> None:
        keys = [f"r{i:04d}" for i in numbers]
        self.collection.delete(keys)
        for key in keys:
            self.rows.pop(key, None)

    def query(self) -> Any:
        return self.rng.standard_normal(D).astype(np.float32)

    def disturb(self) -> None:
        """Leave hot rows that replace cold ones, tombstones, and new rows."""
        self.write(range(0, 200, 5))
        self.delete(range(1, 200, 5))
        self.write(range(ROWS, ROWS + 50))
        # The nearest of some query were among those that are hidden.


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=CONFIG) as opened:
        yield opened


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every collection for a large one."""
    monkeypatch.setattr(search_module, "SCAN_BYTES", 0)


FILTERS = (None, field("tag") == "a", (field("tag") == "b") & (field("n") < 300), field("n") >= ROWS - 20)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_an_index_that_is_searched_whole_is_exact(db: agentdb.Database, metric: str) -> None:
    held = Held(db, metric, IvfFlat(partitions=8, nprobes=8))
    condition: Any
    for settle in (lambda: None, held.disturb, db.flush, db.optimize, held.disturb):
        settle()
        for condition in FILTERS:
            mapped = held.collection._store.read().table_filter(condition)
            shown = {key: {**row, "p_tag": row["metadata"]["tag"]} for key, row in held.rows.items()}
            for k in (1, 10, 150):
                query = held.query()
                hits = held.searcher.search(query, k, filter=condition)
                assert_nearest(hits, shown, query, k, metric, mapped)
    assert [one.path for one in held.searcher.explain_search(held.query()).signals] == ["index"]
    with db.transaction():
        assert [one.path for one in held.searcher.explain_search(held.query()).signals] == ["table"]


def test_updates_do_not_degrade_an_approximate_search(db: agentdb.Database) -> None:
    held = Held(db, "cosine", IvfRq(partitions=8, nprobes=4, bits=5))

    def recall() -> float:
        found = 0
        for _ in range(40):
            query = held.query()
            truth = {key for _, key in nearest(held.rows, query, "cosine")[:10]}
            found += len(truth & {hit.id for hit in held.searcher.search(query, 10)})
        return found / 400

    before = recall()
    for _ in range(3):
        held.disturb()
        assert recall() >= before - 0.05
        db.flush()
        assert recall() >= before - 0.05


def test_exact_means_exact_in_spite_of_an_index(db: agentdb.Database) -> None:
    held = Held(db, "cosine", IvfRq(partitions=32, nprobes=1, bits=1, refine_factor=0))
    held.disturb()
    query = held.query()
    assert_nearest(held.searcher.search(query, 20, exact=True), held.rows, query, 20, "cosine")
    assert [one.path for one in held.searcher.explain_search(query, exact=True).signals] == ["resident"]
    small = Searcher(
        db,
        held.collection._table,
        held.collection._store,
        ResidentCache(1),
        lambda: None,  # type: ignore[arg-type, return-value]
        lambda _: IvfRq(),
    )
    assert_nearest(small.search(query, 20, exact=True), held.rows, query, 20, "cosine")
    assert [one.path for one in small.explain_search(query, exact=True).signals] == ["scan"]


@pytest.mark.parametrize("include", [(), ("text",), ("metadata", "text")])
def test_the_payload_comes_along_with_the_index(db: agentdb.Database, include: Any) -> None:
    held = Held(db, "cosine", IvfFlat(partitions=8, nprobes=8))
    held.disturb()
    for hit in held.searcher.search(held.query(), 60, include=include):
        assert hit.text == (held.rows[hit.id]["text"] if "text" in include else None)
        assert hit.metadata == (held.rows[hit.id]["metadata"] if "metadata" in include else {})


@pytest.mark.parametrize("condition", FILTERS)
def test_hybrid_by_index_and_memory(db: agentdb.Database, condition: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(db, "cosine", IvfFlat(partitions=8, nprobes=8))
    held.disturb()
    query = Query(text="red river", vector=held.query())
    found = held.searcher.search(query, 20, mode="hybrid", filter=condition)
    plans = held.searcher.explain_search(query, 20, mode="hybrid", filter=condition).signals
    assert [one.path for one in plans] == ["index", "resident"]
    monkeypatch.setattr(search_module, "SCAN_BYTES", 1 << 30)
    expected = held.searcher.search(query, 20, mode="hybrid", filter=condition)
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-5)
    assert {hit.id for hit in found} == {hit.id for hit in expected}


def test_diversity_and_groups_by_index(db: agentdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(db, "cosine", IvfFlat(partitions=8, nprobes=8))
    held.disturb()
    query = held.query()
    found = (held.searcher.max_marginal_relevance(query, 5, 30), held.searcher.search(query, 3, group_by="tag"))
    monkeypatch.setattr(search_module, "SCAN_BYTES", 1 << 30)
    expected = (held.searcher.max_marginal_relevance(query, 5, 30), held.searcher.search(query, 3, group_by="tag"))
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in expected]


def test_what_a_caller_does_to_a_hit_stays_with_the_caller(db: agentdb.Database, monkeypatch: Any) -> None:
    monkeypatch.setattr(search_module, "SCAN_BYTES", 1 << 30)
    held = Held(db, "cosine", None)
    query = held.query()
    for _ in range(3):
        hits = held.searcher.search(query, 5)
        for hit in hits:
            assert hit.metadata == held.rows[hit.id]["metadata"]
            assert hit.text == held.rows[hit.id]["text"]
            hit.metadata["mine"] = True  # type: ignore[index]
    assert all(hit.text is None for hit in held.searcher.search(query, 5, include=("metadata",)))


def test_payloads_in_memory_stay_within_their_limit(db: agentdb.Database, monkeypatch: Any) -> None:
    monkeypatch.setattr(search_module, "SCAN_BYTES", 1 << 30)
    held = Held(db, "cosine", None, budget=4 << 20)
    rows = held.searcher._rows
    limit = rows._limit_bytes
    for _ in range(30):
        for hit in held.searcher.search(held.query(), 50):
            assert hit.text == held.rows[hit.id]["text"]
        assert rows._bytes <= limit
    assert rows._bytes > limit // 2, "the limit was reached"
    assert rows._bytes == sum(200 + len(value or "") for value in rows._values.values())


# --- texts beyond memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_indexed", [False, True])
def test_texts_beyond_memory(db: agentdb.Database, *, is_indexed: bool) -> None:
    held = Held(db, "cosine", IvfFlat(partitions=8, nprobes=8), budget=1)
    if is_indexed:
        assert held.collection._table.build_text_index("text")
    for settle in (lambda: None, held.disturb, db.flush):
        settle()
        held.write([7])
        held.rows["r0007"]["text"] = "a zebra by the river"
        held.collection.upsert(["r0007"], texts=["a zebra by the river"], vectors=held.query()[None], metadata=[{}])
        held.delete([8])
        assert [hit.id for hit in held.searcher.search("zebra", 5, mode="text")] == ["r0007"]
        found = held.searcher.search("stone", 2_000, mode="text")
        assert {hit.id for hit in found} == {key for key, row in held.rows.items() if "stone" in row["text"].split()}
        scores = [hit.score for hit in found]
        assert scores == sorted(scores, reverse=True)
        hybrid = held.searcher.search(Query(text="zebra", vector=held.query()), 5, mode="hybrid", weights={"vector": 0})
        assert hybrid[0].id == "r0007"
    plans = held.searcher.explain_search("zebra", mode="text").signals
    assert [one.path for one in plans] == ["index" if is_indexed else "table"]


def test_texts_beyond_memory_where_nothing_can_be_flushed(db: agentdb.Database) -> None:
    held = Held(db, "cosine", None, budget=1)
    assert held.collection._table.build_text_index("text")
    held.searcher.search("stone", 5, mode="text")
    held.disturb()
    held.collection.upsert(["new"], texts=["a zebra by the river"], vectors=held.query()[None])
    with db.snapshot():
        assert [hit.id for hit in held.searcher.search("zebra", 5, mode="text")] == ["new"]
        found = held.searcher.search("stone", 2_000, mode="text")
        assert [one.path for one in held.searcher.explain_search("stone", mode="text").signals] == ["index"]
    assert {hit.id for hit in found} == {key for key, row in held.rows.items() if "stone" in row["text"].split()}
    flushed = held.searcher.search("stone", 2_000, mode="text")
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in flushed], rtol=0.02)


# --- others -----------------------------------------------------------------------------------------------------------

WRITER = """
import sys
import numpy as np
import agentdb

with agentdb.open(sys.argv[1]) as db:
    collection = db.collection("c")
    for line in sys.stdin:
        if line == "write\\n":
            vector = np.zeros((1, 16), np.float32)
            vector[0, 0] = 1
            collection.upsert(["other"], vectors=vector, texts=["a zebra"], metadata=[{"tag": "a"}])
        else:
            collection.delete(["other"])
        print("done", flush=True)
"""


@pytest.mark.parametrize("way", ["index", "resident", "scan"])
def test_another_process_is_seen_at_once(db_path: Path, db: agentdb.Database, way: str, monkeypatch: Any) -> None:
    if way == "resident":
        monkeypatch.setattr(search_module, "SCAN_BYTES", 1 << 30)
    spec = IvfFlat(partitions=4, nprobes=4) if way == "index" else None
    held = Held(db, "cosine", spec, budget=1 if way == "scan" else 1 << 30)
    query = Query(text="zebra", vector=np.eye(1, D, dtype=np.float32)[0])
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(db_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    modes: tuple[Any, ...] = ("vector", "text", "hybrid")
    try:
        for _ in range(3):
            for order, is_there in (("write", True), ("delete", False)):
                writer.stdin.write(order + "\n")
                writer.stdin.flush()
                assert writer.stdout.readline() == "done\n"
                for mode in modes:
                    for condition in (None, field("tag") == "a"):
                        hits = held.searcher.search(query, 3, mode=mode, filter=condition)
                        assert ("other" in [hit.id for hit in hits]) is is_there
            db.flush()
    finally:
        writer.stdin.close()
        writer.wait(60)
        writer.stdout.close()


@pytest.mark.parametrize("condition", [None, field("tag") == "z"])
def test_a_row_that_comes_and_goes_between_two_flushes(db: agentdb.Database, condition: Any, monkeypatch: Any) -> None:
    """A flush of nothing but its tombstone makes no new version, and leaves no trace of it in the hot tier."""
    monkeypatch.setattr(search_module, "SCAN_BYTES", 1 << 30)
    held = Held(db, "cosine", None)
    vector = held.query()

    def found() -> list[str]:
        return [hit.id for hit in held.searcher.search(vector, 1, filter=condition)]

    before = found()
    for _ in range(2):
        held.collection.upsert(["guest", "other"], vectors=np.stack([vector, -vector]), metadata=[{"tag": "z"}] * 2)
        assert found() == ["guest"]
        held.collection.delete(["guest", "other"])
        db.flush()
        assert found() == before
    held.collection.upsert(["guest"], vectors=vector[None], metadata=[{"tag": "z"}])
    assert found() == ["guest"]


@pytest.mark.parametrize("way", ["index", "resident"])
def test_searches_while_others_write(db: agentdb.Database, way: str, monkeypatch: Any) -> None:
    """What a thread has written it finds; what it has deleted it never does, whatever other threads move on meanwhile."""
    if way == "resident":
        monkeypatch.setattr(search_module, "SCAN_BYTES", 1 << 30)
    held = Held(db, "cosine", IvfFlat(partitions=4, nprobes=4))
    problems: list[str] = []
    over = threading.Event()

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            for turn in range(25):
                vector = rng.standard_normal((1, D)).astype(np.float32)
                key, text = f"t{number}-{turn}", f"word{number}x{turn}"
                held.collection.upsert([key], vectors=vector, texts=[text], metadata=[{"tag": "z"}])
                query = Query(text=text, vector=vector[0])
                for mode in ("vector", "text", "hybrid"):
                    hits = held.searcher.search(query, 2, mode=mode, filter=field("tag") == "z")  # type: ignore[arg-type]
                    if not hits or hits[0].id != key or hits[0].text != text:
                        problems.append(f"{key} was not found by {mode}")
                held.collection.delete([key])
                for mode in ("vector", "text", "hybrid"):
                    hits = held.searcher.search(query, 5, mode=mode)  # type: ignore[arg-type]
                    if key in [hit.id for hit in hits]:
                        problems.append(f"{key} was found by {mode} after its deletion")
        except Exception as error:
            problems.append(repr(error))

    def flush() -> None:
        while not over.wait(0.05):
            db.flush()

    flusher = threading.Thread(target=flush)
    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in (flusher, *workers):
        one.start()
    for one in workers:
        one.join()
    over.set()
    flusher.join()
    assert problems == []


@pytest.mark.parametrize(
    "condition",
    [
        field("n") < 300,
        (field("n") >= 100) & (field("kind") == "x"),
        ~(field("n") > 50) | (field("t").contains("é")),
        field("n").in_([1, "1"]),
    ],
)
def test_a_new_filter_over_many_rows_that_wait(tmp_path: Path, condition: agentdb.Filter) -> None:
    values: list[Any] = [{"n": 1}, {"n": "1"}, {}, {"n": None, "kind": "x"}, {"t": "aé"}, {"t": ["é"]}]
    metadata = [values[i % 7] if i % 7 < len(values) else {"n": i, "kind": "xy"[i % 2]} for i in range(900)]
    with agentdb.open(tmp_path / "db", config=Config(maintenance=False, durability="normal")) as db:
        made = db.collection("c", dimension=2)
        made.upsert([f"r{i:03d}" for i in range(900)], vectors=np.ones((900, 2)), metadata=metadata)
        made.search([1, 0])  # the rows are in memory before the filter comes
        expected = sorted(row.id for row in made.scan(condition))
        assert 0 < len(expected) < 900
        assert [hit.id for hit in made.search([1, 0], 900, filter=condition)] == expected
        plain = [f"r{i:03d}" for i, one in enumerate(metadata) if matches(condition, one)]
        assert expected == plain
