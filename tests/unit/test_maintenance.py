"""Upkeep: when rows move, what is merged, removed and bounded, and what an erasure leaves behind."""

from __future__ import annotations

import logging
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from lance.file import LanceFileReader

import agentdb
from agentdb import Config, TableSchema
from agentdb.errors import InvalidInputError, StorageError
from agentdb.filters import field
from agentdb.storage.flush import ColdWriter
from agentdb.types import Progress

SCHEMA = TableSchema(
    "t",
    [
        pa.field("k", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("text", pa.string()),
        pa.field("meta", pa.json_()),
    ],
    key="k",
    indexed=["text"],
)
QUIET: dict[str, Any] = {"maintenance": False, "durability": "normal"}
BUSY: dict[str, Any] = {"durability": "normal", "tick_s": 0.01}


def row(i: int, text: str = "text") -> dict[str, Any]:
    return {"k": f"k{i:05d}", "n": i, "text": text, "meta": {"i": i}}


def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=Config(**QUIET)) as opened:
        opened.table(SCHEMA)
        yield opened


def stats(db: agentdb.Database, name: str = "t") -> Any:
    return db.stats().tables[name]


def versions_on_disk(db: agentdb.Database, name: str = "t") -> list[int]:
    return sorted(one["version"] for one in lance.dataset(str(db.path / "lance" / f"{name}.lance")).versions())


def versions_published(db: agentdb.Database) -> list[int]:
    core = db._core
    with core.reading() as view:
        return [version for version, _ in core.hot.versions(view.connection, core.catalogue.by_name["t"].id)]


# --- when rows move ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit", [{"flush_rows": 50}, {"flush_bytes": 2_000}, {"flush_age_s": 0.05}, {"hot_limit_bytes": 2_000}]
)
def test_a_table_is_flushed_by_rows_bytes_and_age(db_path: Path, limit: dict[str, Any]) -> None:
    with agentdb.open(db_path, config=Config(**BUSY, **limit)) as db:
        table = db.table(SCHEMA)
        for i in range(60):
            table.put(row(i))
        eventually(lambda: stats(db).cold_rows >= 20)
        assert table.count() == 60


def test_nothing_is_flushed_before_it_is_due(db_path: Path) -> None:
    with agentdb.open(db_path, config=Config(**BUSY)) as db:
        table = db.table(SCHEMA)
        table.put_many([row(i) for i in range(100)])
        time.sleep(0.2)
        assert stats(db).cold_rows == 0


def test_who_finds_nothing_to_do_rests_until_something_is_written(db: agentdb.Database) -> None:
    upkeep = db._maintenance
    upkeep._step()
    upkeep._step()
    assert upkeep._is_idle
    db.table("t").put(row(1))
    for _ in range(2):  # the second time because a row waits for its flush
        upkeep._step()
        assert not upkeep._is_idle
    db.flush()
    upkeep._step()
    upkeep._step()
    assert upkeep._is_idle


def test_a_write_wakes_who_rests(db_path: Path) -> None:
    with agentdb.open(db_path, config=Config(durability="normal", tick_s=3_600.0, flush_rows=1)) as db:
        table = db.table(SCHEMA)
        db._maintenance._is_idle = True
        table.put(row(1))
        eventually(lambda: stats(db).cold_rows == 1)


def test_close_flushes_what_is_worth_it(db_path: Path) -> None:
    for count, cold in ((20, 0), (50, 50)):
        with agentdb.open(db_path, config=Config(**QUIET, close_flush_rows=50)) as db:
            db.table(SCHEMA).put_many([row(i) for i in range(count)])
        with agentdb.open(db_path) as db:
            assert stats(db).cold_rows == cold
            assert db.table("t").count() == count


@pytest.mark.parametrize("maintenance", [True, False])
def test_writers_wait_when_the_hot_tier_is_full(db_path: Path, maintenance: bool) -> None:  # noqa: FBT001
    config = Config(
        maintenance=maintenance, durability="normal", tick_s=0.01, hot_limit_bytes=20_000, write_timeout_s=5.0
    )
    with agentdb.open(db_path, config=config) as db:
        table = db.table(SCHEMA)
        for i in range(300):
            table.put(row(i, text="x" * 500))
            assert stats(db).hot_bytes < 60_000
        assert table.count() == 300
        assert stats(db).cold_rows > 200


@pytest.mark.parametrize("maintenance", [True, False])
def test_a_full_hot_tier_that_cannot_be_flushed_is_an_error(
    db_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    maintenance: bool,  # noqa: FBT001
) -> None:
    logging.getLogger("agentdb").setLevel(logging.CRITICAL)
    config = Config(
        maintenance=maintenance, durability="normal", tick_s=0.01, hot_limit_bytes=20_000, write_timeout_s=0.3
    )
    with agentdb.open(db_path, config=config) as db:
        table = db.table(SCHEMA)

        def broken(*_: Any, **__: Any) -> int:
            raise StorageError("the disk is full while writing t", retryable=True)

        with monkeypatch.context() as patch:
            patch.setattr(ColdWriter, "flush", broken)
            written = 0
            with pytest.raises(StorageError, match="the disk is full") as raised:  # noqa: PT012 - the block is what raises
                for written in range(300):
                    table.put(row(written, text="x" * 500))
            assert raised.value.retryable
            assert 20 < written < 200
            assert table.count() == written
            if maintenance:
                assert "the disk is full" in (db.stats().maintenance_error or "")
        eventually(lambda: _wrote(table))
        assert table.count() == written + 1
    logging.getLogger("agentdb").setLevel(logging.NOTSET)


def _wrote(table: Any) -> bool:
    try:
        table.put(row(9_999))
    except StorageError:
        return False
    return True


def test_a_failing_flush_is_reported_and_forgotten_when_it_works_again(
    db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agentdb.open(db_path, config=Config(**BUSY, flush_rows=10)) as db:
        table = db.table(SCHEMA)
        flush, calls = ColdWriter.flush, []

        def sometimes(self: ColdWriter, *arguments: Any, **options: Any) -> int:
            calls.append(arguments)
            if len(calls) == 1:
                raise StorageError("once")
            return flush(self, *arguments, **options)

        monkeypatch.setattr(ColdWriter, "flush", sometimes)
        table.put_many([row(i) for i in range(20)])
        eventually(lambda: db.stats().maintenance_error == "flush of table t: once")
        eventually(lambda: db.stats().maintenance_error is None)
        assert stats(db).cold_rows == 20


# --- compaction and clean-up ------------------------------------------------------------------------------------------


def test_optimize_leaves_one_fragment_one_index_segment_and_one_version(db: agentdb.Database) -> None:
    table = db.table("t")
    for i in range(12):
        table.put_many([row(100 * i + j) for j in range(20)])
        table.delete(f"k{100 * i:05d}")
        db.flush()
    assert stats(db).fragments == 12
    assert len(versions_on_disk(db)) > 12
    db.optimize()
    assert stats(db).fragments == 1
    assert versions_on_disk(db) == versions_published(db) == [stats(db).cold_version]
    handle = lance.dataset(str(db.path / "lance" / "t.lance"))
    assert {one.name: len(one.segments) for one in handle.describe_indices()} == {
        "_key_idx": 1,
        "_terms_idx": 1,
        "text_idx": 1,
    }
    assert all(one.num_rows_indexed == 228 for one in handle.describe_indices())
    assert table.count() == 228
    assert db.verify().ok
    before = stats(db)
    db.optimize()
    assert stats(db) == before, "there is nothing left to do"


def test_background_compaction_bounds_fragments_and_versions(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentdb.storage.maintenance._CLEAN_EVERY_S", 0.02)
    with agentdb.open(db_path, config=Config(**BUSY, flush_rows=10, compact_fragments=4)) as db:
        table = db.table(SCHEMA)
        for i in range(40):
            table.put_many([row(10 * i + j) for j in range(10)])
            eventually(lambda: stats(db).hot_rows < 10)
        eventually(lambda: stats(db).fragments <= 5)
        eventually(lambda: len(versions_on_disk(db)) <= 3)
        assert table.count() == 400
        assert db.verify().ok


def test_deleted_rows_are_compacted_away(db: agentdb.Database) -> None:
    table = db.table("t")
    table.put_many([row(i, text=random.Random(i).randbytes(500).hex()) for i in range(500)])
    db.optimize()
    before = stats(db).cold_bytes
    table.delete_many(filter=field("n") >= 100)
    db.optimize()
    assert stats(db).cold_rows == 100
    assert stats(db).cold_bytes < before / 2
    files = [one for one in (db.path / "lance" / "t.lance").rglob("*") if one.is_file()]
    assert sum(one.stat().st_size for one in files) < before


def test_exactly_the_versions_that_readers_need_are_kept(db: agentdb.Database) -> None:
    table = db.table("t")
    table.put_many([row(i) for i in range(50)])
    db.flush()
    first = stats(db).cold_version
    iterator = table.scan()
    next(iterator)
    for i in range(50, 53):
        table.put(row(i))
        db.flush()
    db.optimize()
    kept = versions_published(db)
    assert first in kept
    assert versions_on_disk(db) == kept
    assert len(list(iterator)) == 49
    db.optimize()
    assert versions_published(db) == versions_on_disk(db) == [stats(db).cold_version]
    assert db.verify().ok


def test_files_of_an_unfinished_writer_are_removed(db: agentdb.Database) -> None:
    table = db.table("t")
    table.put_many([row(i) for i in range(50)])
    db.flush()
    # A writer that died before it published: its version is newer than the catalogue's.
    handle = lance.dataset(str(db.path / "lance" / "t.lance"), version=stats(db).cold_version)
    handle.insert(handle.to_table())
    assert lance.dataset(str(db.path / "lance" / "t.lance")).count_rows() == 100
    assert table.count() == 50
    table.put(row(50))
    db.optimize()
    assert table.count() == 51
    assert lance.dataset(str(db.path / "lance" / "t.lance")).count_rows() == 51
    assert versions_on_disk(db) == versions_published(db)
    assert db.verify().ok


def test_dropped_datasets_are_removed(db: agentdb.Database) -> None:
    db.table("t").put_many([row(i) for i in range(50)])
    db.flush()
    iterator = db.table("t").scan()
    next(iterator)
    db.drop_table("t")
    db.optimize()
    assert (db.path / "lance" / "t.lance").exists(), "somebody reads it"
    assert len(list(iterator)) == 49
    db.optimize()
    assert not (db.path / "lance" / "t.lance").exists()


def test_the_log_is_bounded(db_path: Path) -> None:
    limit = 100_000
    with agentdb.open(db_path, config=Config(**BUSY, wal_limit_bytes=limit)) as db:
        table = db.table(SCHEMA)
        largest = 0
        for i in range(1_000):
            table.put(row(i % 50, text="x" * 2_000))
            largest = max(largest, db._core.hot.wal_bytes())
        assert largest < 6 * limit, "writers checkpoint it themselves where the background is too slow"
        eventually(lambda: db._core.hot.log_pages * 4096 <= limit)
        assert db.stats().sqlite_bytes < 10 * limit


def test_free_pages_are_given_back(db: agentdb.Database) -> None:
    table = db.table("t")
    table.put_many([row(i, text=f"{i}" * 500) for i in range(2_000)])
    db._maintenance.checkpoint(truncate=True)
    before = db.stats().sqlite_bytes
    db.optimize()
    assert db.stats().sqlite_bytes < before / 4


def test_jobs(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def job(deadline: float) -> bool:
        calls.append(deadline - time.monotonic())
        return len(calls) < 3

    with agentdb.open(db_path, config=Config(**QUIET)) as db:
        db.add_maintenance("count", job)
        db.optimize()
    assert len(calls) == 3
    assert all(0 < one <= 0.2 for one in calls)
    monkeypatch.setattr("agentdb.storage.maintenance._JOB_EVERY_S", 0.02)
    ran = threading.Event()

    def failing(_: float) -> bool:
        ran.set()
        raise InvalidInputError("on purpose")

    with agentdb.open(db_path, config=Config(**BUSY)) as db:
        db.add_maintenance("failing", failing)
        db.table(SCHEMA).put(row(1))
        eventually(ran.is_set)
        eventually(lambda: db.stats().maintenance_error == "failing: on purpose")


def test_progress_may_cancel(db: agentdb.Database) -> None:
    seen: list[Progress] = []
    db.table("t").put_many([row(i) for i in range(10)])
    db.optimize(seen.append)
    assert seen[-1].done == seen[-1].total
    assert any("t" in one.stage for one in seen)

    def cancel(_: Progress) -> None:
        raise KeyboardInterrupt

    for call in (db.optimize, db.verify):
        with pytest.raises(KeyboardInterrupt):
            call(cancel)
    with pytest.raises(KeyboardInterrupt):
        db.backup(db.path.parent / "copy", cancel)
    assert not (db.path.parent / "copy").exists()
    assert [one.name for one in db.path.parent.iterdir()] == ["db"]
    assert db.verify().ok


def test_a_cold_encoder_rewrites_rows_on_their_way(db: agentdb.Database) -> None:
    table = db.table("t")
    table.put(row(1, text="old"))
    db.flush()

    def upper(rows: pa.Table, read: Callable[[list[Any]], list[Any]]) -> pa.Table:
        assert rows["_key"].to_pylist() == sorted(rows["_key"].to_pylist())
        before = [None if one is None else one["text"] for one in read(rows["k"].to_pylist())]
        texts = [f"{old}>{new}" for old, new in zip(before, rows["text"].to_pylist(), strict=True)]
        return rows.set_column(rows.schema.get_field_index("text"), "text", pa.array(texts, pa.string()))

    db.set_cold_encoder("t", upper)
    table.put_many([row(2, text="b"), row(1, text="a")])
    assert table.get("k00001")["text"] == "a"
    db.flush()
    assert [one["text"] for one in table.scan(order_by="k")] == ["old>a", "None>b"]
    assert db.verify().ok


# --- erasure ----------------------------------------------------------------------------------------------------------

MARK = "ERASED-CONTENT"
MARKED = re.compile(MARK.encode())


def traces(db: agentdb.Database) -> list[str]:
    """Every place below the database's directory that holds the mark, raw or decoded."""
    found = []
    for path in sorted(one for one in db.path.rglob("*") if one.is_file()):
        name = str(path.relative_to(db.path))
        # By another process: closing a SQLite file that this one has open would drop its locks.
        if MARKED.search(subprocess.run(["cat", str(path)], check=True, capture_output=True).stdout):
            found.append(f"{name} (raw)")
        if path.suffix == ".lance":
            decoded = LanceFileReader(str(path)).read_all().to_table().to_pydict()
            if MARK in str(decoded):
                found.append(f"{name} (decoded)")
    for dataset in (db.path / "lance").glob("*.lance"):
        for version in lance.dataset(str(dataset)).versions():
            rows = lance.dataset(str(dataset), version=version["version"]).to_table().to_pydict()
            if MARK in str(rows):
                found.append(f"{dataset.name} version {version['version']}")
    return found


def secret(i: int) -> dict[str, Any]:
    return {"k": f"{MARK}-key-{i}", "n": i, "text": f"{MARK}-text-{i}", "meta": {f"{MARK}-name": [f"{MARK}-value-{i}"]}}


@pytest.mark.parametrize("where", ["hot", "cold", "both", "compacted", "everything"])
def test_what_was_erased_is_found_in_no_file(db: agentdb.Database, where: str) -> None:
    table = db.table("t")
    if where != "everything":
        table.put_many([row(i) for i in range(100)])
    table.put_many([secret(i) for i in range(5)])
    if where != "hot":
        db.flush()
    if where in ("both", "compacted", "everything"):
        table.put_many([secret(i) | {"n": -i} for i in range(3)])
        db.flush()
        table.put(secret(1))
        if where != "everything":
            table.put(row(1, text="other"))
    if where == "compacted":
        db.optimize()
    assert traces(db)
    receipt = table.erase_many(filter=field("text").startswith(MARK))
    assert (receipt.table, receipt.rows, receipt.status) == ("t", 5, "complete")
    assert receipt.completed_at is not None
    assert receipt.requested_at <= receipt.completed_at
    assert traces(db) == []
    assert table.count() == (0 if where == "everything" else 100)
    assert db.erasure(receipt.id) == receipt
    assert db.verify().ok


def test_erasing_by_key_what_was_already_deleted(db: agentdb.Database) -> None:
    table = db.table("t")
    table.put_many([row(1), secret(1), secret(2)])
    db.flush()
    table.delete(secret(1)["k"])
    receipt = table.erase_many([secret(1)["k"], secret(2)["k"], "absent"])
    assert (receipt.rows, receipt.status) == (1, "complete")
    assert traces(db) == []
    assert db.erasure("no such id") is None


def test_a_receipt_is_pending_while_a_reader_needs_the_rows(db: agentdb.Database) -> None:
    table = db.table("t")
    table.put_many([row(i) for i in range(10)])
    table.put(secret(1))
    db.flush()
    iterator = table.scan()
    seen = [next(iterator)]
    receipt = table.erase_many([secret(1)["k"]])
    assert receipt.status == "pending"
    assert receipt.completed_at is None
    assert table.count() == 10
    db.optimize()
    assert db.erasure(receipt.id) == receipt
    seen.extend(iterator)
    assert len(seen) == 11
    assert secret(1) in seen
    db.optimize()
    done = db.erasure(receipt.id)
    assert done is not None
    assert done.status == "complete"
    assert traces(db) == []


def test_a_snapshot_of_hot_rows_holds_an_erasure_up(db: agentdb.Database) -> None:
    table = db.table("t")
    table.put(secret(1))
    inside, leave = threading.Event(), threading.Event()
    seen: list[Any] = []

    def reader() -> None:
        with db.snapshot():
            table.count()
            inside.set()
            leave.wait(20)
            seen.append(table.get(secret(1)["k"]))

    thread = threading.Thread(target=reader)
    thread.start()
    inside.wait(5)
    receipt = table.erase_many([secret(1)["k"]])
    assert receipt.status == "pending"
    leave.set()
    thread.join(20)
    assert seen == [secret(1)]
    db.optimize()
    found = db.erasure(receipt.id)
    assert found is not None
    assert found.status == "complete"
    assert traces(db) == []


def test_the_background_completes_an_erasure(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentdb.storage.maintenance._JOB_EVERY_S", 0.02)
    with agentdb.open(db_path, config=Config(**BUSY)) as db:
        table = db.table(SCHEMA)
        table.put_many([row(1), secret(1)])
        db.flush()
        with db.transaction():
            receipt = table.erase_many([secret(1)["k"]])
            assert receipt.status == "pending"
        eventually(lambda: db.erasure(receipt.id).status == "complete")  # type: ignore[union-attr]
        assert traces(db) == []


def test_an_erasure_that_is_rolled_back(db: agentdb.Database) -> None:
    table = db.table("t")
    table.put(secret(1))
    with pytest.raises(ZeroDivisionError), db.transaction():  # noqa: PT012 - the block is what raises
        receipt = table.erase_many([secret(1)["k"]])
        raise ZeroDivisionError
    assert db.erasure(receipt.id) is None
    db.optimize()
    assert table.get(secret(1)["k"]) == secret(1)


def test_erasing_in_a_table_that_is_dropped_afterwards(db: agentdb.Database) -> None:
    table = db.table("t")
    table.put_many([row(1), secret(1)])
    db.flush()
    iterator = table.scan()
    next(iterator)
    receipt = table.erase_many([secret(1)["k"]])
    db.drop_table("t")
    db.optimize()
    assert db.erasure(receipt.id).status == "pending"  # type: ignore[union-attr]
    iterator.close()  # type: ignore[attr-defined]
    db.optimize()
    assert db.erasure(receipt.id).status == "complete"  # type: ignore[union-attr]
    assert traces(db) == []


def test_hot_only_rows_are_erased_at_once(db: agentdb.Database) -> None:
    schema = TableSchema("heads", SCHEMA.arrow, key="k", indexed=["text"], hot_only=True)
    heads = db.table(schema)
    heads.put_many([secret(i) for i in range(50)])
    db.optimize()
    receipt = heads.erase_many(secret(i)["k"] for i in range(50))
    assert (receipt.rows, receipt.status) == (50, "complete")
    assert traces(db) == []


def test_receipts_use_the_clock_and_the_id_source(tmp_path: Path) -> None:
    moment = datetime(2024, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
    numbers = iter(range(1_000))
    config = Config(**QUIET, clock=lambda: moment, id_source=lambda: f"id-{next(numbers)}")
    with agentdb.open(tmp_path / "second", config=config) as db:
        receipt = db.table(SCHEMA).erase_many(["a"])
        assert receipt.id.startswith("id-")
        assert receipt.requested_at == receipt.completed_at == moment


def test_jobs_of_a_handle_end_with_it(db_path: Path) -> None:
    ran = []
    with agentdb.open(db_path, config=Config(maintenance=False)) as db:
        db.add_maintenance("job", lambda _: bool(ran.append("first")))
        with agentdb.open(db_path) as other:
            other.add_maintenance("job", lambda _: bool(ran.append("second")))
            db.optimize()
        db.optimize()
    assert ran == ["second", "first"]


def test_optimize_waits_for_an_index_that_is_being_built(tmp_path):
    with agentdb.open(tmp_path / "db", config=Config(maintenance=False, write_timeout_s=0.2)) as db:
        table = db.table(TableSchema("rows", [pa.field("id", pa.string())], key="id"))
        table.put({"id": "a"})
        builder, waits = object(), []
        lock = db._core.index_lock(table._id)
        assert lock.acquire(1.0, builder)

        def report(progress):
            waits.append(progress)
            if len(waits) == 3:  # it has waited for longer than any lock is waited for
                lock.withdraw(builder)

        db.optimize(report)
        assert db.stats().tables["rows"].cold_rows == 1
        assert len(waits) >= 3


@pytest.mark.parametrize("step", ["purge", "clean", "flush"])
def test_a_table_that_another_process_drops_during_an_erasure_holds_nothing_up(
    db: agentdb.Database, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    other = TableSchema("u", [pa.field("k", pa.string())], key="k")
    for table in (db.table("t"), db.table(other)):
        table.put_many([{"k": "kept"}, {"k": "erased"}])
    db.flush()
    with db.transaction():
        receipts = [db.table(name).erase_many(["erased"]) for name in ("t", "u")]
    db.table("t").put({"k": "waits for a flush"})
    original = getattr(ColdWriter, step)
    dropped = []

    def dropping(self: ColdWriter, table_id: int, name: str, **options: Any) -> Any:
        """Let the table go after it was looked up and before the step takes its lock."""
        if name == "t" and not dropped:
            dropped.append(db.drop_table("t"))
        return original(self, table_id, name, **options)

    monkeypatch.setattr(ColdWriter, step, dropping)
    if step == "flush":
        db.flush()
    db.settle_erasures()
    assert dropped == [True]
    assert [db.erasure(one.id).status for one in receipts] == ["complete", "complete"]  # type: ignore[union-attr]
    assert list(db.table("u").scan()) == [{"k": "kept"}]
