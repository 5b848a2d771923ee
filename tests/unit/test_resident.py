"""Segments and their cache: states, threads, budgets."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

import agentdb
from agentdb import Config, TableSchema, field
from agentdb.errors import InvalidInputError, NotFoundError, UnavailableError
from agentdb.vectors.analysis import encode_terms, query_terms
from agentdb.vectors.blocks import DeviceBlock, NumpyBlock
from agentdb.vectors.resident import ResidentCache, Segment, VectorColumn

CONFIG = Config(maintenance=False, durability="normal")
VECTOR = VectorColumn("vector", 4, "cosine")
OTHER = VectorColumn("other", 2, "dot")
ROWS = TableSchema(
    "rows",
    [
        pa.field("id", pa.int64()),
        pa.field("agent", pa.string()),
        pa.field("terms", pa.binary()),
        pa.field("vector", pa.list_(pa.float32(), 4)),
        pa.field("other", pa.list_(pa.float32(), 2)),
    ],
    key="id",
    indexed=["agent"],
)


def rows(ids, seed=0):
    rng = np.random.default_rng(seed)
    ids = list(ids)
    return pa.table(
        {
            "id": ids,
            "agent": [f"a{i % 3}" for i in ids],
            "terms": encode_terms([f"word{i % 5} common" for i in ids]),
            "vector": pa.FixedSizeListArray.from_arrays(rng.standard_normal(4 * len(ids)).astype(np.float32), 4),
            "other": pa.FixedSizeListArray.from_arrays(rng.standard_normal(2 * len(ids)).astype(np.float32), 2),
        }
    )


@pytest.fixture
def db(db_path):
    with agentdb.open(db_path, config=CONFIG) as db:
        db.table(ROWS).put_many(rows(range(60)))
        yield db


@pytest.fixture
def table(db):
    return db.table("rows")


def segment_of(table, **given):
    return Segment(table, **{"scope": None, "vectors": [VECTOR], "text": False, **given})


def found(frozen, k=5):
    return frozen.keys(frozen.blocks["vector"].search(np.ones((1, 4)), k, tie=frozen.keys)[0][0])


def in_another_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_a_row_is_found_by_the_next_search_and_a_deleted_one_is_not(table):
    segment = segment_of(table)
    assert segment.at_view().live == 60
    for i in range(100, 110):
        table.put({"id": i, "vector": [1, 1, 1, 1]})
        key = table.schema.encode_key(i)
        assert key in found(segment.at_view())
        table.delete(i)
        assert key not in found(segment.at_view(), 100)


def test_an_older_state_stays_right_and_is_found_again_by_its_snapshot(db, table):
    segment = segment_of(table, text=True)
    with db.snapshot():
        before = segment.at_view()
        expected = found(before, 60)

        def change():
            table.put_many(rows(range(30, 90), seed=1))
            table.delete_many(range(10))
            db.flush()
            with db.snapshot():
                assert segment.at_view().live == 80

        in_another_thread(change)
        assert segment.at_view() is before
        assert found(before, 60) == expected
        assert [one["id"] for one in before.fetch([3, 31], ["id"])] == [3, 31]
        assert before.mask(field("id") < 7).sum() == 7
        slots, _ = before.bm25.scores(query_terms("common"))
        assert len(slots) == 60


def test_a_snapshot_older_than_the_segment_is_answered_by_none(db, table):
    segment = segment_of(table)
    with db.snapshot():

        def move_on():
            table.put({"id": 1000})
            return segment.at_view()

        assert in_another_thread(move_on).live == 61
        assert segment.at_view() is None
    assert segment.at_view().live == 61


def test_inside_a_transaction_there_is_no_segment(db, table):
    segment = segment_of(table)
    with db.transaction():
        assert segment.at_view() is None
        table.put({"id": 1000})
        assert segment.at_view() is None
    assert segment.at_view().live == 61


def test_rows_of_another_state_are_not_fetched(db, table):
    segment = segment_of(table)
    before = segment.at_view()
    table.put({"id": 1000})
    with pytest.raises(UnavailableError, match="another state"):
        before.fetch([0], ["id"])


def test_a_segment_without_its_dead_rows_is_made_anew(table, monkeypatch):
    monkeypatch.setattr("agentdb.vectors.resident._COMPACT_ROWS", 100)
    segment = segment_of(table)
    for seed in range(6):
        table.put_many(rows(range(60), seed=seed))
        frozen = segment.at_view()
        assert frozen.live == 60
        assert frozen.rows.size <= 180
        assert len(found(frozen, 100)) == 60


def test_what_failed_halfway_is_read_anew(table, monkeypatch):
    segment = segment_of(table)
    segment.at_view()
    table.put_many(rows(range(60, 90)))
    block = segment._blocks["vector"]
    monkeypatch.setattr(block, "append", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        segment.at_view()
    assert segment.at_view().live == 90
    assert len(found(segment.at_view(), 100)) == 90


def test_what_failed_and_could_not_begin_anew_is_read_anew_later(table, monkeypatch):
    segment = segment_of(table)
    segment.at_view()
    table.put_many(rows(range(60, 90)))

    def fail(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(segment._blocks["vector"], "append", fail)
        patch.setattr(type(table), "follow", fail)
        with pytest.raises(MemoryError):
            segment.at_view()
    assert segment.at_view().live == 90
    assert len(found(segment.at_view(), 100)) == 90


def test_many_vectors_move_to_the_device_and_come_back_where_it_refuses_them(table, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("agentdb.vectors.resident._DEVICE_BYTES", 1 << 11)
    segment = segment_of(table, device="cpu")
    expected = found(segment.at_view(), 60)
    assert isinstance(segment._blocks["vector"], NumpyBlock)
    table.put_many(rows(range(60, 200)))
    segment.at_view()
    assert isinstance(segment._blocks["vector"], DeviceBlock)
    table.delete_many(range(60, 200))
    assert found(segment.at_view(), 100) == expected
    table.put({"id": 1000, "vector": [1e20, 0, 0, 0]})
    assert len(found(segment.at_view(), 100)) == 61
    assert isinstance(segment._blocks["vector"], NumpyBlock)


def test_a_dropped_table_says_so(db, table):
    segment = segment_of(table)
    segment.at_view()
    db.drop_table("rows")
    with pytest.raises(NotFoundError):
        segment.at_view()


def test_many_threads_search_while_others_write(db, table):
    segment = segment_of(table, scope=field("agent") == "a0")
    wrong, is_over = [], threading.Event()

    def look():
        while not is_over.is_set():
            try:
                with db.snapshot():
                    frozen = segment.at_view()
                    if frozen is None:
                        continue  # another thread has moved it on
                    expected = sorted(one["id"] for one in table.scan(field("agent") == "a0", columns=["id"]))
                    slots, _ = frozen.blocks["vector"].search(np.ones((1, 4)), 1000)
                    assert sorted(one["id"] for one in frozen.fetch(slots[0], ["id"])) == expected
                    assert frozen.mask(field("id") >= 30)[slots[0]].sum() == sum(i >= 30 for i in expected)
            except Exception as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=look) for _ in range(4)]
    for one in threads:
        one.start()
    rng = np.random.default_rng(0)
    for step in range(60):
        table.put_many(rows(rng.integers(0, 200, 5).tolist(), seed=step))
        if step % 3 == 0:
            table.delete_many(rng.integers(0, 200, 10).tolist())
        if step % 20 == 0:
            db.flush()
    is_over.set()
    for one in threads:
        one.join()
    assert not wrong


# --- the cache --------------------------------------------------------------------------------------------------------


def test_one_segment_gets_the_columns_that_are_asked_for(table):
    cache = ResidentCache(1 << 30)
    first = cache.segment(table, scope=None, vectors=[VECTOR], text=False)
    assert cache.segment(table, scope=None, vectors=[VECTOR], text=False) is first
    both = cache.segment(table, scope=None, vectors=[OTHER], text=True)
    assert cache.segment(table, scope=None, vectors=[VECTOR], text=False) is both
    assert set(both.at_view().blocks) == {"vector", "other"}
    assert len(cache.statistics().segments) == 1
    scoped = cache.segment(table, scope=field("agent") == "a1", vectors=[VECTOR], text=False)
    assert scoped.at_view().live == 20


def test_columns_that_do_not_fit_together_are_held_apart(table):
    both = ResidentCache(1).estimate_bytes(table, scope=None, vectors=[VECTOR, OTHER], text=True)
    cache = ResidentCache(both - 1)
    vectors = cache.segment(table, scope=None, vectors=[VECTOR], text=False)
    texts = cache.segment(table, scope=None, vectors=[OTHER], text=True)
    assert vectors is not None
    assert set(texts.at_view().blocks) == {"other"}


def test_what_exceeds_the_budget_or_the_limit_is_refused(table):
    size = ResidentCache(1).estimate_bytes(table, scope=None, vectors=[VECTOR], text=False)
    asked = {"scope": None, "vectors": [VECTOR], "text": False}
    assert ResidentCache(size - 1).segment(table, **asked) is None
    cache = ResidentCache(size)
    assert cache.segment(table, **asked, limit_bytes=size - 1) is None
    segment = cache.segment(table, **asked, limit_bytes=size)
    assert segment.at_view().live == 60
    assert cache.segment(table, **asked, limit_bytes=size - 1) is None
    table.put({"id": 1000})
    segment.at_view()
    assert cache.segment(table, **asked) is None
    assert cache.statistics().segments == (), "what has outgrown the budget is let go of"
    assert cache.segment(table, scope=None, vectors=[VECTOR], text=False, part="hot") is not None


def test_the_segment_used_longest_ago_makes_room(db, table):
    db.flush()
    one = ResidentCache(1).estimate_bytes(table, scope=field("agent") == "a0", vectors=[VECTOR], text=False)
    probe = segment_of(table, scope=field("agent") == "a0")
    probe.at_view()
    cache = ResidentCache(2 * max(one, probe.nbytes))
    scopes = [field("agent") == f"a{i}" for i in range(3)]

    def use(i):
        segment = cache.segment(table, scope=scopes[i], vectors=[VECTOR], text=False)
        segment.at_view()
        return segment

    first = use(0)
    use(1)
    assert use(0) is first
    use(2)
    held = cache.statistics()
    assert [segment.scope for segment in held.segments] == [scopes[0], scopes[2]]
    assert held.bytes <= held.budget_bytes
    assert use(0) is first
    assert use(1) is not None


def test_a_dropped_table_takes_its_segments_along(db, table):
    cache = ResidentCache(1 << 30)
    cache.segment(table, scope=None, vectors=[VECTOR], text=False)
    cache.drop(table)
    assert cache.statistics().segments == ()
    db.drop_table("rows")
    again = db.table(ROWS)
    again.put_many(rows(range(3)))
    assert cache.segment(again, scope=None, vectors=[VECTOR], text=False).at_view().live == 3
    cache.clear()
    assert cache.statistics().bytes == 0


def test_the_estimate_is_at_least_what_there_is(db, table):
    db.flush()
    table.put_many(rows(range(50, 70)))
    cache = ResidentCache(1 << 30)
    estimate = cache.estimate_bytes(table, scope=None, vectors=[VECTOR], text=False)
    assert estimate >= 70 * (4 * 4)
    scoped = cache.estimate_bytes(table, scope=field("agent") == "a0", vectors=[VECTOR], text=False)
    assert scoped < estimate / 2


def test_the_budget_is_part_of_the_configuration():
    assert Config().resident_bytes == 1 << 30
    with pytest.raises(InvalidInputError):
        Config(resident_bytes=0)
