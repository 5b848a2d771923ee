"""Indices are built when they pay, measured, trained anew and removed, without the user and beside everything else."""

import threading
from dataclasses import replace

import numpy as np
import pytest

import agentdb
from agentdb import Config, IvfFlat, IvfSq
from agentdb.storage.indices import IndexInfo
from agentdb.vectors import upkeep
from agentdb.vectors.definition import Definition, IndexPlan, VectorSpec
from agentdb.vectors.upkeep import due, index_in_use, tend

ROWS, D = 3_000, 16
FLAT = IvfFlat(partitions=8, nprobes=2)


def _vectors(rows=ROWS, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, D), dtype=np.float32)


@pytest.fixture
def db(tmp_path):
    with agentdb.open(tmp_path / "db", config=Config(maintenance=False)) as db:
        yield db


@pytest.fixture
def rows(db):
    collection = db.collection("rows", dimension=D)
    collection.upsert([f"r{i}" for i in range(ROWS)], vectors=_vectors())
    db.flush()
    return collection


def _info(rows, segments=1):
    return IndexInfo("IVF_FLAT", "cosine", {}, rows, 0, segments)


def _plan(choice, index=None, rows=0, recall=1.0):
    state = {}
    if index is not None:
        state = {"index": index.to_json(), "trained_rows": rows, "measured_rows": rows, "recall": recall}
    return IndexPlan(choice, state)


@pytest.mark.parametrize(
    ("plan", "info", "rows", "expected"),
    [
        (_plan("auto"), None, 5_000, None),
        (_plan("auto"), None, 2_000_000, "build"),
        (_plan("auto", IvfSq(nprobes=32), 2_000_000), _info(2_000_000), 2_000_000, "build"),
        (_plan("auto", agentdb.IvfRq(nprobes=32), 2_000_000), _info(2_000_000), 2_000_000, None),
        (_plan("auto", agentdb.IvfRq(nprobes=32), 2_000_000), _info(2_600_000), 2_600_000, "measure"),
        (_plan("auto", agentdb.IvfRq(), 2_000_000), _info(0, segments=0), 2_000_000, "build"),
        (_plan(FLAT), None, 100, None),
        (_plan(FLAT), None, ROWS, "build"),
        (_plan(FLAT, FLAT, ROWS), _info(ROWS), ROWS, None),
        (_plan(replace(FLAT, nprobes=4), FLAT, ROWS), _info(ROWS), ROWS, "measure"),
        (_plan(replace(FLAT, partitions=9), FLAT, ROWS), _info(ROWS), ROWS, "build"),
        (_plan("none"), None, 2_000_000, None),
        (_plan("none"), _info(ROWS), ROWS, "drop"),
        (_plan("none", FLAT, ROWS), None, ROWS, "drop"),
    ],
)
def test_what_is_due(plan, info, rows, expected):
    definition = Definition.new("rows", {"vector": VectorSpec(D)}, None, None)
    assert due(replace(definition, indexes={"vector": plan}), "vector", info, rows) == expected


def test_a_chosen_index_is_built_used_and_removed(db, rows):
    assert rows.explain_search(_vectors()[0]).signals[0].path == "resident"
    rows.set_index(FLAT)
    db.optimize()
    assert index_in_use(rows._store.read(), "vector") == FLAT
    status = rows.index_status()
    assert (status.choice, status.index, status.rows_indexed) == (FLAT, FLAT, ROWS)
    assert 0.0 < status.recall <= 1.0
    rows.set_index("none")
    db.optimize()
    assert index_in_use(rows._store.read(), "vector") is None
    assert rows._table.index_info("vector") is None
    assert rows.index_status().index is None


def test_one_that_pays_is_built_and_probed_until_it_finds_enough(db, rows, monkeypatch):
    monkeypatch.setattr(upkeep, "SCAN_BYTES", 1_000)
    monkeypatch.setattr(upkeep, "_DEPTHS", ((1, 1), (4, 2), (32, 8)))
    db.optimize()
    used = index_in_use(rows._store.read(), "vector")
    state = rows._store.read().index_plan("vector").state
    # Random vectors have no clusters: few partitions hold few of the neighbours.
    assert used.nprobes > 1
    assert state["recall"] >= 0.9
    assert state["trained_rows"] == ROWS


def test_it_finds_what_an_exact_search_finds(db, rows, monkeypatch):
    monkeypatch.setattr(upkeep, "SCAN_BYTES", 1_000)
    monkeypatch.setattr("agentdb.vectors.search.SCAN_BYTES", 1_000)
    db.optimize()
    queries = _vectors(20, seed=1)
    assert rows.explain_search(queries[0]).signals[0].path == "index"
    exact = [{hit.id for hit in rows.search(one, exact=True)} for one in queries]
    found = [{hit.id for hit in rows.search(one)} for one in queries]
    assert np.mean([len(a & b) / 10 for a, b in zip(exact, found, strict=True)]) >= 0.9


def test_growth_is_measured_and_a_stale_index_trained_anew(db, rows, monkeypatch):
    monkeypatch.setattr(upkeep, "SCAN_BYTES", 1_000)
    db.optimize()
    rows.upsert([f"s{i}" for i in range(1_000)], vectors=_vectors(1_000, seed=2))
    db.optimize()
    state = rows._store.read().index_plan("vector").state
    assert (state["trained_rows"], state["measured_rows"]) == (ROWS, ROWS + 1_000)
    # All of it elsewhere, in one place that training has never seen; and no index may find enough.
    monkeypatch.setattr(upkeep, "POOR_RECALL", 1.1)
    rows.upsert([f"t{i}" for i in range(4_000)], vectors=_vectors(4_000, seed=3) * 0.01 + 1)
    db.optimize()
    state = rows._store.read().index_plan("vector").state
    assert state["trained_rows"] == ROWS + 5_000


def test_an_index_that_an_erasure_removed_is_built_again(db, rows):
    rows.set_index(FLAT)
    db.optimize()
    rows.erase(["r1"])
    assert rows._table.index_info("vector").segments == 0
    db.optimize()
    assert rows._table.index_info("vector").segments == 1
    assert "r1" not in {hit.id for hit in rows.search(_vectors()[1], 10)}


def test_texts_too_many_for_the_memory_get_an_index(tmp_path):
    with agentdb.open(tmp_path / "db", config=Config(maintenance=False, resident_bytes=100_000)) as db:
        rows = db.collection("rows", dimension=D)
        texts = [f"row number{i} of {'few' if i % 50 else 'many'} words" for i in range(ROWS)]
        rows.upsert([f"r{i}" for i in range(ROWS)], vectors=_vectors(), texts=texts)
        db.optimize()
        assert rows._table.index_info("text").rows_indexed == ROWS
        assert rows.explain_search("number77", mode="text").signals[0].path == "index"
        assert [hit.id for hit in rows.search("number77", 1, mode="text")] == ["r77"]


def test_nobody_waits_for_a_build_and_closing_ends_it(tmp_path, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def endless(self, column, definition, *, stop, on_progress):
        begun.set()
        stop.wait(30)
        ended.set()
        return False

    monkeypatch.setattr(agentdb.Table, "build_index", endless)
    db = agentdb.open(tmp_path / "db", config=Config(tick_s=0.05))
    monkeypatch.setattr("agentdb.storage.maintenance._JOB_EVERY_S", 0.05)
    rows = db.collection("rows", dimension=D)
    rows.upsert([f"r{i}" for i in range(ROWS)], vectors=_vectors())
    db.flush()
    rows.set_index(FLAT)
    assert begun.wait(20)
    rows.upsert(["new"], vectors=_vectors(1, seed=5))
    assert rows.search(_vectors(1, seed=5)[0], 1)[0].id == "new"
    db.flush()
    db.close()
    assert ended.is_set()


def test_one_that_somebody_else_builds_is_left_to_him(db, rows, monkeypatch):
    rows.set_index(FLAT)
    calls = []

    def taken(self, column, definition, *, stop, on_progress):
        calls.append(column)
        raise agentdb.storage.locks.LockedError("somebody is at it", retryable=True)

    monkeypatch.setattr(agentdb.Table, "build_index", taken)
    db.optimize()
    db.optimize()
    assert calls == ["vector"]


def test_progress_is_reported_and_can_end_it(db, rows):
    rows.set_index(FLAT)

    def refuse(_):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        tend(rows._store, rows._table, "vector", on_progress=refuse)
    assert index_in_use(rows._store.read(), "vector") is None
    assert tend(rows._store, rows._table, "vector")
    assert db.verify().ok
