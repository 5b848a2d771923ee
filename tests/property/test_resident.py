"""Segments against scans: whatever was written, flushed or compacted in between, they find what brute force finds."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentdb
from agentdb import Config, TableSchema, field
from agentdb.filters import And, Filter
from agentdb.kernels import reference
from agentdb.storage.engine import Engine, _Shared
from agentdb.storage.table import Table
from agentdb.vectors import resident
from agentdb.vectors.analysis import encode_terms, query_terms
from agentdb.vectors.bm25 import Bm25Block
from agentdb.vectors.resident import Frozen, Part, ResidentCache, Segment, VectorColumn

CONFIG = Config(maintenance=False, bulk_rows=6, bulk_bytes=1, durability="normal")
ROWS = TableSchema(
    "rows",
    [
        pa.field("id", pa.string()),
        pa.field("agent", pa.string()),
        pa.field("metadata", pa.json_()),
        pa.field("terms", pa.binary()),
        pa.field("cos", pa.list_(pa.float32(), 4)),
        pa.field("near", pa.list_(pa.float16(), 3)),
    ],
    key="id",
    indexed=["agent"],
)
VECTORS = (VectorColumn("cos", 4, "cosine"), VectorColumn("near", 3, "l2"))
SCOPES: list[Filter | None] = [None, field("agent") == "a", field("metadata", "kind") == 1, field("metadata", "n") > 2]
WORDS = ["apple pie", "pie chart", "apple apple tree", None]
NAMES = [f"r{no}" for no in range(12)]


def row(name: str, n: int) -> dict[str, Any]:
    # Few different vectors, so that equal distances are common, and some of them missing.
    return {
        "id": name,
        "agent": "ab"[n % 2],
        "metadata": {"kind": n % 3, "n": n},
        "terms": encode_terms([WORDS[n % 4]])[0].as_py(),
        "cos": None if n == 5 else np.array([n % 3, 1, n % 2, 0], np.float32),
        "near": None if n == 4 else np.array([n, n % 2, 1], np.float16),
    }


some = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 6)), min_size=1, max_size=9)
put = st.tuples(st.just("put"), some)
delete = st.tuples(st.just("delete"), st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
delete_where = st.tuples(st.just("delete where"), st.sampled_from(SCOPES[1:]))
transaction = st.tuples(
    st.just("transaction"), st.lists(st.one_of(put, delete, delete_where), min_size=1, max_size=3), st.booleans()
)
operations = st.one_of(
    put, put, put, delete, delete_where, transaction, st.just(("flush",)), st.just(("flush",)), st.just(("optimize",))
)


def perform(db: Engine, operation: tuple[Any, ...]) -> None:
    table = db.table("rows")
    match operation:
        case ("put", rows):
            table.put_many([row(*one) for one in rows])
        case ("delete", names):
            table.delete_many(names)
        case ("delete where", condition):
            table.delete_many(filter=condition)
        case ("transaction", inner, commits):
            try:
                with db.transaction():
                    for one in inner:
                        perform(db, one)
                    if not commits:
                        raise KeyError
            except KeyError:
                pass
        case ("flush",):
            db.flush("rows")
        case ("optimize",):
            db.optimize()


def check(table: Table, segment: Segment, other: Filter, k: int, seed: int) -> None:
    """In the current snapshot a segment finds what sorting a scan finds."""
    frozen = segment.at_view()
    assert frozen is not None
    assert segment.at_view() is frozen
    rows = {one["id"]: one for one in table.scan(segment.scope)}
    if segment.part == "hot":
        hot = hot_keys(table)
        rows = {name: one for name, one in rows.items() if table.schema.encode_key(name) in hot}
        assert hot <= set(frozen.hidden)
    live = np.flatnonzero(frozen.rows.live)
    by_key = {table.schema.encode_key(name): one for name, one in rows.items()}
    keys = dict(zip(live.tolist(), frozen.keys(live), strict=True))
    assert sorted(keys.values()) == sorted(by_key)
    assert frozen.live == len(by_key)
    got = frozen.fetch(live, ["id", "metadata"])
    assert got == [{name: by_key[key][name] for name in ("id", "metadata")} for key in keys.values()]
    chosen = {one["id"] for one in table.scan(other if segment.scope is None else And(segment.scope, other))}
    mask = frozen.mask(other)
    assert {by_key[keys[i]]["id"] for i in live.tolist() if mask[i]} == chosen & set(rows)
    check_vectors(frozen, keys, by_key, mask, k, seed)
    check_texts(frozen, keys, by_key)


def hot_keys(table: Table) -> set[str]:
    with table._core.reading() as view:
        hot = table._entry(view).hot
        return {key for key in hot.keys(view.connection) if hot.get_many(view.connection, [key])[key] is not None}


def check_vectors(
    frozen: Frozen, keys: dict[int, str], by_key: dict[str, Any], mask: np.ndarray, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    for vector in VECTORS:
        block = frozen.blocks[vector.name]
        present = [i for i in keys if by_key[keys[i]][vector.name] is not None]
        assert np.flatnonzero(block.live).tolist() == present
        queries = rng.integers(-2, 3, (3, vector.dimension)).astype(np.float32)
        for allowed in (None, mask):
            slots = [i for i in present if allowed is None or allowed[i]]
            found, distances = block.search(queries, k, mask=allowed, tie=frozen.keys)
            assert found.shape == (3, min(k, len(slots)))
            if not slots:
                continue
            stored = np.stack([by_key[keys[i]][vector.name] for i in slots])
            wanted = reference.distances(queries, stored, vector.metric)
            for its, far, truth in zip(found, distances, wanted, strict=True):
                best = sorted(zip(truth.tolist(), [keys[i] for i in slots], strict=True))[:k]
                # A float64 sum in another order can end in another float32: two distances this close may change places.
                np.testing.assert_allclose(far, [one for one, _ in best], rtol=3e-7, atol=1e-7)
                by = dict(zip(slots, truth.tolist(), strict=True))
                np.testing.assert_allclose([by[i] for i in its.tolist()], far, rtol=3e-7, atol=1e-7)
                named = list(zip(far.tolist(), frozen.keys(its), strict=True))
                assert named == sorted(named)
                if len({round(one, 5) for one in by.values()}) == len(set(by.values())):
                    assert [name for _, name in named] == [name for _, name in best]


def check_texts(frozen: Frozen, keys: dict[int, str], by_key: dict[str, Any]) -> None:
    assert frozen.bm25 is not None
    block = Bm25Block()
    block.append(0, pa.array([by_key[key]["terms"] for key in keys.values()], pa.binary()))
    for text in ("apple", "pie tree"):
        slots, scores = frozen.bm25.scores(query_terms(text))
        at, wanted = block.freeze().scores(query_terms(text))
        assert slots.tolist() == [list(keys)[i] for i in at]
        np.testing.assert_allclose(scores, wanted, rtol=1e-6)


@settings(max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("device", [None, "cpu"], ids=["numpy", "device"])
def test_segments_find_what_brute_force_finds(device, data):
    if device is not None:
        pytest.importorskip("torch")
    root = Path(tempfile.mkdtemp())
    shared: list[_Shared] = []
    patch = pytest.MonkeyPatch()
    patch.setattr(resident, "_COMPACT_ROWS", 8)
    patch.setattr(resident, "_DEVICE_BYTES", 0)
    try:
        agentdb.open(root / "db", config=CONFIG).close()
        # Two engines on one directory share nothing but the files, as two processes do.
        shared = [_Shared(root / "db", CONFIG, read_only=False) for _ in range(2)]
        for one in shared:
            one.start()
        engines = [Engine(one) for one in shared]
        table = engines[0].table(ROWS)
        parts: list[tuple[Filter | None, Part]] = [(scope, "all") for scope in SCOPES]
        parts += [(None, "hot"), (SCOPES[1], "hot")]
        segments = [
            Segment(table, scope=scope, vectors=VECTORS, text=True, part=part, device=device) for scope, part in parts
        ]
        for operation in data.draw(st.lists(operations, min_size=3, max_size=16)):
            perform(engines[data.draw(st.sampled_from([0, 0, 1]))], operation)
            behind = data.draw(st.sets(st.integers(0, len(segments) - 1)))
            other = data.draw(st.sampled_from(SCOPES[1:]))
            k, seed = data.draw(st.integers(1, 14)), data.draw(st.integers(0, 99))
            with engines[0].snapshot():
                for i, segment in enumerate(segments):
                    if i not in behind:
                        check(table, segment, other, k, seed)
        with engines[0].snapshot():
            for segment in segments:
                check(table, segment, SCOPES[1], 5, 1)
    finally:
        patch.undo()
        for one in shared:
            one.core.close_stores()
        shutil.rmtree(root)


def test_a_cache_of_one_table_serves_every_process_and_scope(db_path):
    with agentdb.open(db_path, config=CONFIG) as db:
        table = db.table(ROWS)
        table.put_many([row(name, n) for n, name in enumerate(NAMES)])
        cache = ResidentCache(1 << 20)
        for scope in SCOPES:
            with db.snapshot():
                segment = cache.segment(table, scope=scope, vectors=VECTORS, text=True)
                assert segment is not None
                check(table, segment, SCOPES[1], 3, 0)
            assert cache.segment(table, scope=scope, vectors=VECTORS[:1], text=False) is segment
