"""Vector and text indices of the cold tier: built, extended, dropped, searched."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import agentdb
from agentdb import Config, TableSchema, field
from agentdb.errors import InvalidInputError
from agentdb.kernels.reference import distances
from agentdb.storage.indices import IndexDefinition
from agentdb.storage.locks import LockedError

CONFIG = Config(maintenance=False, bulk_rows=64, bulk_bytes=1, durability="normal")
D = 8
DOCS = TableSchema(
    "docs",
    [
        pa.field("id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("meta", pa.json_()),
        pa.field("vector", pa.list_(pa.float32(), D)),
    ],
    key="id",
    indexed=["kind"],
)
FLAT = IndexDefinition("IVF_FLAT", "l2", {"num_partitions": 4})
ALL = {"nprobes": 4}
KINDS = {
    "IVF_FLAT": {},
    "IVF_SQ": {},
    "IVF_PQ": {"num_sub_vectors": 4, "num_bits": 8},
    "IVF_RQ": {"num_bits": 1},
    "IVF_HNSW_FLAT": {},
    "IVF_HNSW_SQ": {},
    "IVF_HNSW_PQ": {"num_sub_vectors": 4},
}
WORDS = ["apple", "river", "stone", "cloud", "violin", "running"]


def rows(start: int, stop: int, seed: int = 0) -> list[dict[str, Any]]:
    chooser = np.random.default_rng(seed + start)
    return [
        {
            "id": f"d{i:05d}",
            "text": f"{WORDS[i % 6]} {WORDS[i // 6 % 6]} the {i}",
            "kind": "ab"[i % 2],
            "meta": {"i": i},
            "vector": chooser.standard_normal(D).astype(np.float32),
        }
        for i in range(start, stop)
    ]


@pytest.fixture
def db(db_path):
    with agentdb.open(db_path, config=CONFIG) as db:
        yield db


@pytest.fixture
def table(db):
    table = db.table(DOCS)
    table.put_many(rows(0, 600))
    return table


def nearest(table, query, k, metric="l2", condition=None) -> list[str]:
    return [hit.id for hit in table.search("vector", query, k, metric=metric, filter=condition)]


def ids(table, found) -> list[str]:
    return [table.schema.decode_key(one) for one in found.column("_key").to_pylist()]


QUERY = np.random.default_rng(99).standard_normal(D).astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_built_and_finds_what_a_scan_finds(db, table, kind, metric):
    assert table.index_info("vector") is None
    assert table.build_index("vector", IndexDefinition(kind, metric, {"num_partitions": 4, **KINDS[kind]}))
    info = table.index_info("vector")
    assert (info.kind, info.metric, info.parameters["num_partitions"]) == (kind, metric, 4)
    assert (info.rows_indexed, info.rows_unindexed, info.segments) == (600, 0, 1)
    found = table.nearest_cold("vector", QUERY, 10, metric=metric, probe={"nprobes": 4, "refine_factor": 20})
    expected = nearest(table, QUERY, 10, metric)
    assert len(set(ids(table, found)) & set(expected)) >= 9
    assert found.column("_distance").to_pylist() == sorted(found.column("_distance").to_pylist())
    rows_found = table.get_many(ids(table, found))
    stored = np.stack([row["vector"] for row in rows_found])
    np.testing.assert_allclose(
        found.column("_distance").to_numpy(), distances(QUERY[None], stored, metric)[0], rtol=1e-4, atol=1e-5
    )
    assert db.verify().problems == ()


def test_rows_written_later_are_found_and_join_the_index_in_upkeep(db, table):
    table.build_index("vector", FLAT)
    table.put_many([{**row, "vector": QUERY + 0.001 * i} for i, row in enumerate(rows(600, 640))])
    db.flush()
    info = table.index_info("vector")
    assert (info.rows_indexed, info.rows_unindexed, info.segments) == (600, 40, 1)
    expected = [f"d{i:05d}" for i in range(600, 605)]
    assert ids(table, table.nearest_cold("vector", QUERY, 5, metric="l2", probe=ALL)) == expected
    db.optimize()
    info = table.index_info("vector")
    assert (info.rows_indexed, info.rows_unindexed, info.segments) == (640, 0, 2)
    assert ids(table, table.nearest_cold("vector", QUERY, 5, metric="l2", probe=ALL)) == expected
    # Deleted and replaced rows are found no more, in whichever segment they were.
    table.delete_many(["d00600", "d00001"])
    table.put({**rows(601, 602)[0], "vector": -100 * QUERY})
    db.flush()
    assert ids(table, table.nearest_cold("vector", QUERY, 3, metric="l2", probe=ALL)) == expected[2:]
    assert table.index_info("vector").rows_unindexed == 1
    for i in range(6):
        table.put_many(rows(700 + 10 * i, 710 + 10 * i))
        db.optimize()
    info = table.index_info("vector")
    assert info.rows_unindexed == 0
    assert info.segments <= 4
    assert nearest(table, QUERY, 20) == ids(table, table.nearest_cold("vector", QUERY, 20, metric="l2", probe=ALL))
    assert db.verify().problems == ()


def test_building_again_replaces_the_index_and_dropping_removes_it(db, table):
    table.build_index("vector", FLAT)
    table.put_many(rows(600, 650))
    db.optimize()
    assert table.build_index("vector", IndexDefinition("IVF_SQ", "cosine", {"num_partitions": 2}))
    info = table.index_info("vector")
    assert (info.kind, info.metric, info.segments, info.rows_unindexed) == ("IVF_SQ", "cosine", 1, 0)
    assert table.drop_index("vector")
    assert not table.drop_index("vector")
    assert table.index_info("vector") is None
    db.optimize()
    assert len(list((db.path / "lance" / "docs.lance" / "_indices").iterdir())) == 3
    assert ids(table, table.nearest_cold("vector", QUERY, 7, metric="l2")) == nearest(table, QUERY, 7)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_hidden_keys_filters_and_columns(table, indexed, exact):
    if indexed:
        table.build_index("vector", FLAT)
    everything = nearest(table, QUERY, 600)
    hidden = {table.schema.encode_key(one) for one in everything[:50]}
    found = table.nearest_cold(
        "vector", QUERY, 20, metric="l2", hidden=hidden, probe=ALL, exact=exact, columns=["kind"]
    )
    assert ids(table, found) == everything[50:70]
    assert found.column_names == ["_key", "_distance", "kind"]
    assert found.column("kind").to_pylist() == [table.get(one)["kind"] for one in everything[50:70]]
    for condition in (field("kind") == "a", (field("kind") == "a") & (field("meta", "i") > 580)):
        matching = nearest(table, QUERY, 600, condition=condition)
        found = table.nearest_cold(
            "vector", QUERY, 30, metric="l2", filter=condition, hidden=hidden, probe={"nprobes": 1}, exact=exact
        )
        assert ids(table, found) == [one for one in matching if one not in everything[:50]][:30]
    found = table.nearest_cold("vector", QUERY, 5_000, metric="l2", hidden=hidden, probe=ALL, exact=exact)
    assert ids(table, found) == everything[50:]


@pytest.mark.parametrize("k", [1 << 17, 1 << 63, 10**30])
def test_more_may_be_asked_for_than_lance_has_room_for(table, k):
    query = np.ones(D)
    table.build_index("vector", FLAT)
    table.build_text_index("text")
    assert len(table.search("vector", query, k, metric="l2")) == 600
    for exact in (True, False):
        assert table.nearest_cold("vector", query, k, metric="l2", probe=ALL, exact=exact).num_rows == 600
    assert table.match_cold("text", "apple", k).num_rows == sum("apple" in row["text"] for row in rows(0, 600))


@pytest.mark.parametrize("condition", [None, field("kind") == "a", field("meta", "i") >= 5])
def test_equal_scores_are_cut_in_the_order_of_keys(db, table, condition):
    table.put_many({**row, "text": "apple river"} for row in rows(0, 300))
    db.flush()
    table.build_text_index("text")
    hidden = frozenset({"d00000", "d00004", "d00040"})
    found = table.match_cold("text", "apple", 600, filter=condition, hidden=hidden).column("_key").to_pylist()
    for k in (1, 7, 14, 50, 200):
        page = table.match_cold("text", "apple", k, filter=condition, hidden=hidden)
        assert page.column("_key").to_pylist() == found[:k]


def test_zero_vectors_are_at_distance_one_in_an_exact_search(db):
    table = db.table(DOCS)
    table.put_many([{"id": "zero", "vector": np.zeros(D, np.float32)}, {"id": "none"}, *rows(0, 3)])
    db.flush()
    found = table.nearest_cold("vector", QUERY, 10, metric="cosine", exact=True)
    assert ids(table, found) == nearest(table, QUERY, 10, "cosine")
    assert "zero" in ids(table, found)


def test_an_empty_cold_tier_is_searched_and_not_indexed(db):
    table = db.table(DOCS)
    table.put({"id": "hot", "vector": QUERY})
    for exact in (False, True):
        found = table.nearest_cold("vector", QUERY, 3, metric="l2", columns=["meta"], exact=exact)
        assert (found.num_rows, found.column_names) == (0, ["_key", "_distance", "meta"])
    assert not table.build_index("vector", FLAT)
    assert table.index_info("vector") is None
    assert table.text_frequencies("text", ["apple"]) == (0, {"apple": 0})
    assert table.match_cold("text", "apple", 3).num_rows == 0


def test_text_is_matched_by_stem_and_every_flush_is_indexed(db, table):
    with pytest.raises(InvalidInputError, match="no text index"):
        table.match_cold("text", "apple", 3)
    assert table.build_text_index("text")
    assert table.index_info("text").kind == "INVERTED"
    table.put_many(rows(600, 630))
    table.put({"id": "new", "text": "the violin ran"})
    db.flush()
    assert table.index_info("text").rows_unindexed == 0
    found = table.match_cold("text", "apples run", 1000, columns=["text"])
    expected = {row["id"] for row in table.scan() if {"apple", "running"} & set(row["text"].split())}
    assert set(ids(table, found)) == expected
    scores = found.column("_score").to_pylist()
    assert scores == sorted(scores, reverse=True)
    assert all("apple" in text or "running" in text for text in found.column("text").to_pylist())
    hidden = set(found.column("_key").to_pylist()[:200])
    rest = table.match_cold("text", "apples run", 10, hidden=hidden, filter=field("kind") == "a")
    assert rest.num_rows == 10
    assert not hidden & set(rest.column("_key").to_pylist())
    assert all(table.get(one)["kind"] == "a" for one in ids(table, rest))
    total = sum(1 for row in table.scan() if "violin" in row["text"])
    assert table.text_frequencies("text", ["violin", "the", "nowhere"]) == (
        631,
        {"violin": total, "the": 0, "nowhere": 0},
    )
    db.optimize()
    assert table.index_info("text").segments == 1
    assert set(ids(table, table.match_cold("text", "apples run", 1000))) == expected
    assert db.verify().problems == ()


def test_an_erasure_removes_indices_and_keeps_what_was_wanted(db, table):
    secret = "zanzibar"
    vector = np.full(D, 7.25, np.float32)
    table.put({"id": "secret", "text": secret, "vector": vector})
    db.flush()
    # With one partition for each row, a centroid is a row's vector.
    table.build_index("vector", IndexDefinition("IVF_FLAT", "l2", {"num_partitions": 256}))
    table.build_text_index("text")
    assert holds(db, secret.encode())
    assert holds(db, vector.tobytes())
    assert table.erase_many(["secret"]).status == "complete"
    assert not holds(db, secret.encode())
    assert not holds(db, vector.tobytes())
    info = table.index_info("vector")
    assert (info.kind, info.segments, info.rows_indexed, info.rows_unindexed) == ("IVF_FLAT", 0, 0, 600)
    with pytest.raises(InvalidInputError, match="no text index"):
        table.match_cold("text", "apple", 3)
    assert ids(table, table.nearest_cold("vector", QUERY, 7, metric="l2")) == nearest(table, QUERY, 7)
    assert table.build_index("vector", IndexDefinition(info.kind, info.metric, info.parameters))
    assert table.build_text_index("text")
    assert table.index_info("vector").rows_unindexed == 0
    assert not holds(db, vector.tobytes())
    assert db.verify().problems == ()


def holds(db, content: bytes) -> bool:
    return any(content in path.read_bytes() for path in (db.path / "lance").rglob("*") if path.is_file())


def test_a_build_can_be_stopped_and_cancelled_at_each_stage(db, table):
    stop = threading.Event()
    stop.set()
    assert not table.build_index("vector", FLAT, stop=stop)
    for stage in ("build", "write", "publish"):

        def cancel(progress, stage=stage) -> None:
            if progress.stage == f"index vector: {stage}":
                raise RuntimeError(stage)

        def halt(progress, stage=stage) -> None:
            if progress.stage == f"index vector: {stage}":
                stop.set()

        with pytest.raises(RuntimeError, match=stage):
            table.build_index("vector", FLAT, on_progress=cancel)
        stop.clear()
        assert not table.build_index("vector", FLAT, stop=stop, on_progress=halt)
    assert table.index_info("vector") is None
    assert len(list((db.path / "lance" / "docs.lance" / "_indices").iterdir())) == 3
    seen = []
    assert table.build_index("vector", FLAT, on_progress=lambda one: seen.append((one.done, one.total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_more_partitions_than_the_vectors_fill(db):
    table = db.table(DOCS)
    equal = np.ones(D, np.float32)
    table.put_many([{"id": str(i), "vector": equal * (i % 3)} for i in range(5_000)])
    assert table.build_index("vector", IndexDefinition("IVF_FLAT", "l2", {"num_partitions": 300}))
    assert table.nearest_cold("vector", equal, 5_000, metric="l2", probe={"nprobes": 300}).num_rows == 5_000
    table.put_many(rows(0, 600))
    table.delete_many(filter=field("text").is_null())
    db.optimize()
    assert table.build_index("vector", IndexDefinition("IVF_FLAT", "l2", {"num_partitions": 500}))
    assert ids(table, table.nearest_cold("vector", QUERY, 9, metric="l2", probe={"nprobes": 500})) == nearest(
        table, QUERY, 9
    )


def test_what_cannot_be_indexed_is_refused(db, table):
    for column, definition in [
        ("kind", FLAT),
        ("meta", FLAT),
        ("nothing", FLAT),
        ("text", FLAT),
        ("vector", IndexDefinition("INVERTED", None, {})),
        ("vector", IndexDefinition("IVF_FLAT", None, {})),
        ("vector", IndexDefinition("BTREE", "l2", {})),
        ("kind", IndexDefinition("INVERTED", None, {})),
        ("id", IndexDefinition("INVERTED", None, {})),
    ]:
        with pytest.raises(InvalidInputError):
            table.build_index(column, definition)
    with db.transaction(), pytest.raises(InvalidInputError, match="inside a transaction"):
        table.build_index("vector", FLAT)
    with db.snapshot(), pytest.raises(InvalidInputError, match="inside a transaction"):
        table.drop_index("vector")


def test_one_build_at_a_time_while_upkeep_keeps_away(db, table):
    refused: list[str] = []

    def meanwhile(progress) -> None:
        if refused:
            return
        for what in (
            lambda: table.build_index("vector", FLAT),
            lambda: table._writer.compact(table._id, "docs"),
            lambda: table._writer.clean(table._id, "docs"),
        ):
            try:
                what()
            except LockedError:
                refused.append("locked")

    assert table.build_index("vector", FLAT, on_progress=meanwhile)
    assert refused == ["locked"] * 3


def test_a_snapshot_keeps_the_index_it_sees(db, table):
    table.build_index("vector", FLAT)
    with db.snapshot():
        before = table.index_info("vector")
        worker = threading.Thread(target=lambda: (table.put_many(rows(600, 700)), table.drop_index("vector")))
        worker.start()
        worker.join()
        assert table.index_info("vector") == before
        assert len(ids(table, table.nearest_cold("vector", QUERY, 1000, metric="l2", probe=ALL))) == 600
    assert table.index_info("vector") is None


def test_backup_and_restore_carry_indices(db, table, tmp_path):
    table.build_index("vector", FLAT)
    table.build_text_index("text")
    db.backup(tmp_path / "copy")
    with agentdb.open(tmp_path / "copy", config=CONFIG) as copy:
        assert copy.verify().problems == ()
        other = copy.table("docs")
        assert other.index_info("vector") == table.index_info("vector")
        assert other.index_info("text").segments == 1
        assert ids(other, other.nearest_cold("vector", QUERY, 9, metric="l2", probe=ALL)) == nearest(table, QUERY, 9)


def test_try_flush(db, table):
    assert table.try_flush()
    table.put(rows(600, 601)[0])
    with db.transaction():
        assert not table.try_flush()
    with db.snapshot():
        assert not table.try_flush()
    with db._core.cold_lock(table._id).held(1, "test"):
        assert not table.try_flush()
    assert table.try_flush()
    assert db.stats().tables["docs"].hot_rows == 0


def test_rows_are_read_by_encoded_key(db, table):
    table.put({**rows(600, 601)[0], "kind": "hot"})
    table.delete("d00001")
    keys = [table.schema.encode_key(one) for one in ("d00600", "d00000", "d00001", "nowhere")]
    assert table.read(keys, ["kind"]) == {keys[0]: {"kind": "hot"}, keys[1]: {"kind": "a"}}


def test_verify_compares_indices_with_their_records(db, table):
    table.build_index("vector", FLAT)
    table.build_text_index("text")
    assert db.verify().problems == ()
    with table._writer._changing(table._id, "docs", 1.0) as change:
        change.revision._handle.update_config({"agentdb.index.vector": IndexDefinition("IVF_PQ", "l2", {}).to_json()})
        change.revision._handle.delete_config_keys(["agentdb.index.text"])
        change.publish(lambda *_: None)
    assert {one.what for one in db.verify().problems} == {
        "index vector_idx is not of the kind on record",
        "index text_idx is not on record",
    }


def test_a_cleared_column_loses_its_index(db, table):
    table.build_index("vector", FLAT)
    table._clear_column("vector", lambda: None)
    assert table.index_info("vector") is None
    assert table.nearest_cold("vector", QUERY, 3, metric="l2").num_rows == 0
    assert db.verify().problems == ()
