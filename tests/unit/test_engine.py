"""Opening, handles, tables, transactions and snapshots of a real database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest

import agentdb
from agentdb import Config, TableSchema
from agentdb.errors import (
    AccessDeniedError,
    AgentDBError,
    ClosedError,
    ConflictError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from agentdb.filters import field

QUIET = Config(maintenance=False, durability="normal", bulk_rows=50, bulk_bytes=1, write_timeout_s=5.0)
NUMBERS = TableSchema("numbers", [pa.field("k", pa.string()), pa.field("n", pa.int64())], key="k", indexed=["n"])
OTHERS = TableSchema("others", [pa.field("id", pa.int64()), pa.field("meta", pa.json_())], key="id")


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=QUIET) as opened:
        opened.table(NUMBERS)
        opened.table(OTHERS)
        yield opened


def fill(db: agentdb.Database, *numbers: int) -> None:
    db.table("numbers").put_many([{"k": f"{n:05d}", "n": n} for n in numbers])


def numbers(db: agentdb.Database) -> list[int]:
    return [row["n"] for row in db.table("numbers").scan(order_by="n")]


def elsewhere(work: Any) -> Any:
    """Run something on another thread and return what it returns or raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert found, "it hangs"
    return found[0]


def everything_in(path: Path) -> dict[str, tuple[int, int]]:
    return {str(one.relative_to(path)): (one.stat().st_size, one.stat().st_mtime_ns) for one in sorted(path.rglob("*"))}


# --- open -------------------------------------------------------------------------------------------------------------


def test_a_new_database(db_path: Path) -> None:
    with agentdb.open(db_path) as db:
        assert db.path == db_path
        assert not db.read_only
        assert db.tables() == []
        assert db.stats().format == 1
        assert db.verify().ok
        first = db.stats().database_id
    with agentdb.open(str(db_path), create=False) as db:
        assert db.stats().database_id == first


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(FormatError, match="is a file"):
        agentdb.open(file)
    assert file.read_text() == "mine"


def test_a_directory_with_other_content(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    before = everything_in(tmp_path)
    with pytest.raises(FormatError, match="other content"):
        agentdb.open(tmp_path)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("content", [b"no database at all, but long enough to look like a page" * 40, b"short"])
def test_a_file_of_our_name_that_is_no_database(db_path: Path, content: bytes) -> None:
    db_path.mkdir()
    (db_path / "agentdb.sqlite").write_bytes(content)
    before = everything_in(db_path)
    with pytest.raises(FormatError):
        agentdb.open(db_path)
    assert everything_in(db_path) == before


def test_what_does_not_exist_is_not_created_unasked(db_path: Path) -> None:
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(NotFoundError, match="no database at"):
            agentdb.open(db_path, **options)  # type: ignore[arg-type]
        assert not db_path.exists()
    db_path.mkdir()
    with pytest.raises(NotFoundError):
        agentdb.open(db_path, create=False)
    assert not list(db_path.iterdir())
    agentdb.open(db_path).close()


def test_a_newer_format_is_refused_and_left_alone(db_path: Path) -> None:
    agentdb.open(db_path).close()
    # In a process of its own: this one must never open the file with another library.
    script = "import apsw, sys; apsw.Connection(sys.argv[1]).execute('PRAGMA user_version=2; PRAGMA wal_checkpoint(TRUNCATE)')"
    subprocess.run([sys.executable, "-c", script, str(db_path / "agentdb.sqlite")], check=True)
    for leftover in ("agentdb.sqlite-wal", "agentdb.sqlite-shm"):
        (db_path / leftover).unlink(missing_ok=True)
    before = everything_in(db_path)
    for options in ({}, {"read_only": True}, {"create": False}):
        with pytest.raises(FormatError, match="format 2; this release reads up to 1"):
            agentdb.open(db_path, **options)  # type: ignore[arg-type]
        assert everything_in(db_path) == before


def test_a_foreign_sqlite_file_is_left_alone(db_path: Path) -> None:
    db_path.mkdir()
    script = "import apsw, sys; apsw.Connection(sys.argv[1]).execute('CREATE TABLE mine(x)')"
    subprocess.run([sys.executable, "-c", script, str(db_path / "agentdb.sqlite")], check=True)
    before = everything_in(db_path)
    with pytest.raises(FormatError, match="another application"):
        agentdb.open(db_path)
    assert everything_in(db_path) == before


def test_a_creation_that_was_cut_short_is_finished(db_path: Path) -> None:
    (db_path / "locks").mkdir(parents=True)
    (db_path / "pins").mkdir()
    (db_path / "agentdb.sqlite").touch()
    with agentdb.open(db_path) as db:
        assert db.tables() == []


@pytest.mark.parametrize("path", ["", 5, None])
def test_a_path_must_be_a_path(path: Any) -> None:
    with pytest.raises(InvalidInputError, match="path"):
        agentdb.open(path)


def test_bad_options(db_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="config must be a Config"):
        agentdb.open(db_path, config={"durability": "full"})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="embedder"):
        agentdb.open(db_path, embedder=object())  # type: ignore[arg-type]
    assert not db_path.exists()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError):
            agentdb.open(tmp_path / "db")
    finally:
        tmp_path.chmod(0o700)


def test_read_only_writes_nothing(db: agentdb.Database, db_path: Path) -> None:
    fill(db, *range(60))
    fill(db, 60)
    db.close()
    before = everything_in(db_path)
    with agentdb.open(db_path, read_only=True) as reader:
        assert reader.read_only
        assert numbers(reader) == list(range(61))
        assert reader.table("numbers").get("00060") == {"k": "00060", "n": 60}
        assert reader.verify().ok
        with pytest.raises(NotFoundError):
            reader.table("missing")
        for write in (
            lambda: fill(reader, 1),
            lambda: fill(reader, *range(100)),
            lambda: reader.table("numbers").delete("00000"),
            lambda: reader.table("numbers").erase_many(["00000"]),
            lambda: reader.table("numbers").add_columns([pa.field("x", pa.string())]),
            lambda: reader.drop_table("numbers"),
            lambda: reader.table(TableSchema("new", NUMBERS.arrow, key="k")),
            lambda: reader.transact(lambda: None),
            lambda: reader.transaction().__enter__(),
            reader.flush,
            reader.optimize,
        ):
            with pytest.raises(AccessDeniedError, match="read_only"):
                write()
    after = everything_in(db_path)
    assert {name for name in after if not name.endswith("-shm")} == {
        name for name in before if not name.endswith("-shm")
    }
    assert {k: v for k, v in after.items() if "." in k and "-shm" not in k} == {
        k: v for k, v in before.items() if "." in k and "-shm" not in k
    }


def test_read_only_beside_a_writer_of_the_same_process(db: agentdb.Database, db_path: Path) -> None:
    with pytest.raises(UnavailableError, match="open for writing"):
        agentdb.open(db_path, read_only=True)


# --- handles ----------------------------------------------------------------------------------------------------------


def test_two_handles_are_one_engine(db: agentdb.Database, db_path: Path) -> None:
    with agentdb.open(db_path) as other, agentdb.open(db_path, config=QUIET):
        fill(other, 1)
        assert numbers(db) == [1]
        with pytest.raises(InvalidInputError, match="another config"):
            agentdb.open(db_path, config=Config(durability="normal"))
        linked = db_path.parent / "link"
        linked.symlink_to(db_path)
        with agentdb.open(linked) as third:
            assert numbers(third) == [1]
    fill(db, 2)
    assert numbers(db) == [1, 2]


def test_a_closed_handle(db: agentdb.Database, db_path: Path) -> None:
    other = agentdb.open(db_path)
    table = other.table("numbers")
    other.close()
    other.close()
    assert "closed" in repr(other)
    for call in (
        lambda: other.table("numbers"),
        other.tables,
        other.flush,
        other.optimize,
        other.stats,
        other.verify,
        lambda: other.drop_table("numbers"),
        lambda: other.transact(lambda: None),
        lambda: other.transaction().__enter__(),
        lambda: other.snapshot().__enter__(),
        lambda: other.backup(db_path.parent / "copy"),
        lambda: other.erasure("x"),
    ):
        with pytest.raises(ClosedError, match="closed"):
            call()
    fill(db, 1)
    db.close()
    for read in (lambda: table.get("00001"), table.count, lambda: list(table.scan()), lambda: table.put({"k": "a"})):
        with pytest.raises(ClosedError):
            read()


def test_closing_inside_a_block_of_ones_own_is_refused(db: agentdb.Database) -> None:
    for block in (db.transaction, db.snapshot):
        with block():
            with pytest.raises(UnavailableError, match="inside a transaction or snapshot"):
                db.close()
            assert numbers(db) == []


def test_closing_while_another_thread_is_in_a_transaction(db_path: Path) -> None:
    db = agentdb.open(db_path, config=Config(maintenance=False, durability="normal", close_timeout_s=0.3))
    db.table(NUMBERS)
    inside, closed = threading.Event(), threading.Event()
    found: list[Any] = []

    def hold() -> None:
        try:
            with db.transaction():
                fill(db, 1)
                inside.set()
                closed.wait(20)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(5)
    started = time.monotonic()
    db.close()
    assert time.monotonic() - started < 5
    closed.set()
    thread.join(20)
    assert len(found) == 1
    assert isinstance(found[0], AgentDBError), repr(found[0])
    with agentdb.open(db_path) as again:
        assert numbers(again) == []
        assert again.verify().ok


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_by_name_and_by_schema(db: agentdb.Database) -> None:
    assert db.table("numbers").schema == NUMBERS
    assert db.table(NUMBERS).name == "numbers"
    assert db.tables() == ["numbers", "others"]
    with pytest.raises(NotFoundError, match="no table 'z'"):
        db.table("z")
    with pytest.raises(InvalidInputError, match="another definition"):
        db.table(TableSchema("numbers", NUMBERS.arrow, key="k"))
    with pytest.raises(InvalidInputError, match="TableSchema or a name"):
        db.table(5)  # type: ignore[arg-type]


def test_drop_and_recreate_with_another_schema(db: agentdb.Database, db_path: Path) -> None:
    fill(db, *range(100))
    old = db.table("numbers")
    assert db.drop_table("numbers")
    assert not db.drop_table("numbers")
    for call in (
        old.count,
        lambda: old.get("00001"),
        lambda: list(old.scan()),
        lambda: old.put({"k": "a", "n": 1}),
        lambda: old.schema,
    ):
        with pytest.raises(NotFoundError, match="numbers"):
            call()
    new = db.table(TableSchema("numbers", [pa.field("id", pa.int64())], key="id"))
    assert new.count() == 0
    new.put({"id": 1})
    db.optimize()
    assert list(new.scan()) == [{"id": 1}]
    assert [one.name for one in (db_path / "lance").iterdir() if "numbers" in one.name] == [
        "numbers-" + str(new._id) + ".lance"
    ]
    assert db.verify().ok


def test_a_dropped_table_lives_on_in_older_readers(db: agentdb.Database) -> None:
    fill(db, *range(60))
    iterator = db.table("numbers").scan()
    next(iterator)
    with db.snapshot():
        table = db.table("numbers")
        elsewhere(lambda: db.drop_table("numbers"))
        elsewhere(db.optimize)
        assert table.count() == 60
        assert len(list(table.scan(order_by="n"))) == 60
    assert len(list(iterator)) == 59
    db.optimize()
    assert not (db.path / "lance" / "numbers.lance").exists()


def test_a_rolled_back_creation_leaves_nothing(db: agentdb.Database) -> None:
    schema = TableSchema("brief", NUMBERS.arrow, key="k")
    with contextlib.suppress(ConflictError), db.transaction():
        table = db.table(schema)
        assert table.put_many([{"k": str(i), "n": i} for i in range(60)]) == 60
        assert table.count() == 60
        assert "brief" in db.tables()
        raise ConflictError("on purpose")
    assert "brief" not in db.tables()
    db.optimize()
    assert not (db.path / "lance" / "brief.lance").exists(), "what LanceDB shows must be what is there"
    assert db.table(schema).count() == 0


def test_rolled_back_drop(db: agentdb.Database) -> None:
    fill(db, *range(60))
    with contextlib.suppress(ConflictError), db.transaction():
        db.drop_table("numbers")
        db.table(TableSchema("numbers", [pa.field("id", pa.int64())], key="id")).put({"id": 1})
        raise ConflictError("on purpose")
    assert numbers(db) == list(range(60))
    assert db.verify().ok


def test_the_layout_opens_as_a_lancedb_database(db: agentdb.Database) -> None:
    fill(db, *range(100))
    db.table("others").put_many([{"id": i, "meta": {"tags": ["a"], "n": i}} for i in range(3)])
    fill(db, 100)
    connection = lancedb.connect(db.path / "lance")
    assert "numbers" in connection.list_tables().tables
    assert connection.open_table("numbers").count_rows() == 100, "not flushed yet"
    db.flush()
    assert sorted(connection.open_table("numbers").to_arrow()["n"].to_pylist()) == list(range(101))
    others = connection.open_table("others").to_arrow().to_pylist()
    assert sorted((row["id"], row["meta"]) for row in others) == [(i, f'{{"n":{i},"tags":["a"]}}') for i in range(3)]


def test_stats(db: agentdb.Database) -> None:
    fill(db, 1, 2)
    db.table("numbers").delete("00001")
    before = db.stats()
    assert before.path == str(db.path)
    assert before.tables["numbers"].hot_rows == 2, "a tombstone counts"
    assert (before.tables["numbers"].cold_rows, before.tables["numbers"].cold_version) == (0, 0)
    assert before.wal_bytes > 0
    assert before.maintenance_error is None
    assert db.flush("numbers") == 2
    after = db.stats()
    assert (after.tables["numbers"].hot_rows, after.tables["numbers"].cold_rows, after.tables["numbers"].fragments) == (
        0,
        1,
        1,
    )
    assert after.cold_bytes == after.tables["numbers"].cold_bytes > 0
    assert after.commits > before.commits


def test_an_unknown_table_cannot_be_flushed(db: agentdb.Database) -> None:
    with pytest.raises(NotFoundError, match="'z'"):
        db.flush("z")


# --- transactions -----------------------------------------------------------------------------------------------------


def test_a_transaction_is_all_or_nothing_over_all_tables(db: agentdb.Database) -> None:
    with db.transaction():
        fill(db, 1)
        db.table("others").put({"id": 1, "meta": {"a": 1}})
        assert numbers(db) == [1]
        assert db.table("others").count(field("meta", "a") == 1) == 1
        assert elsewhere(lambda: numbers(db)) == []
        assert elsewhere(lambda: db.table("others").count()) == 0
    assert elsewhere(lambda: numbers(db)) == [1]
    with pytest.raises(ConflictError), db.transaction():  # noqa: PT012 - the block is what raises
        fill(db, 2, *range(100, 200))
        db.table("others").delete(1)
        db.table("numbers").delete("00001")
        assert len(numbers(db)) == 101
        raise ConflictError("on purpose")
    assert numbers(db) == [1]
    assert db.table("others").count() == 1
    assert db.verify().ok


def test_nested_blocks_undo_only_themselves(db: agentdb.Database) -> None:
    with db.transaction():
        fill(db, 1)
        with contextlib.suppress(ConflictError), db.transaction():
            fill(db, 2, *range(100, 160))
            with db.transaction():
                fill(db, 3)
            assert len(numbers(db)) == 63
            raise ConflictError("on purpose")
        assert numbers(db) == [1]
        with db.transaction():
            fill(db, 4, *range(200, 260))
        assert len(numbers(db)) == 62
    assert numbers(db) == [1, 4, *range(200, 260)]
    assert db.verify().ok


def test_an_error_in_work_undoes_that_work_only(db: agentdb.Database) -> None:
    def work() -> None:
        fill(db, 2)
        raise ConflictError("on purpose")

    with db.transaction():
        fill(db, 1)
        with pytest.raises(ConflictError):
            db.transact(work)
        with pytest.raises(InvalidInputError):
            db.table("numbers").put_many([{"k": "a", "n": 1}, {"k": "b", "n": "x"}])
        assert numbers(db) == [1]
    assert numbers(db) == [1]


def test_writes_are_refused_in_a_snapshot(db: agentdb.Database) -> None:
    fill(db, 1)
    with db.snapshot():
        for write in (
            lambda: fill(db, 2),
            lambda: fill(db, *range(100)),
            lambda: db.table("numbers").delete("00001"),
            lambda: db.table("numbers").delete_many(filter=field("n") == 1),
            lambda: db.table("numbers").erase_many(["00001"]),
            lambda: db.transact(lambda: None),
            lambda: db.transaction().__enter__(),
            lambda: db.drop_table("numbers"),
            db.flush,
            db.optimize,
            lambda: db.backup(db.path.parent / "copy"),
        ):
            with pytest.raises(UnavailableError, match="snapshot"):
                write()
        with pytest.raises((UnavailableError, InvalidInputError), match="snapshot"):
            db.table("numbers").add_columns([pa.field("x", pa.string())])
    assert numbers(db) == [1]


def test_upkeep_is_refused_in_a_transaction(db: agentdb.Database) -> None:
    with db.transaction():
        for call in (db.flush, db.optimize, lambda: db.backup(db.path.parent / "copy")):
            with pytest.raises(UnavailableError, match="inside a transaction"):
                call()


def test_a_snapshot_keeps_its_state_over_all_tables(db: agentdb.Database) -> None:
    fill(db, *range(80))
    fill(db, 80)
    db.table("others").put({"id": 1, "meta": {"v": 1}})
    with db.snapshot():
        assert numbers(db) == list(range(81))

        def change() -> None:
            with db.transaction():
                fill(db, 500)
                db.table("others").put({"id": 1, "meta": {"v": 2}})
                db.table("numbers").delete_many(filter=field("n") < 40)
            db.flush()
            fill(db, *range(600, 700))
            db.optimize()
            db.table("others").delete(1)
            db.optimize()

        elsewhere(change)
        assert numbers(db) == list(range(81))
        assert db.table("others").get(1) == {"id": 1, "meta": {"v": 1}}
        assert db.table("numbers").count(field("n") < 40) == 40
        with db.snapshot():
            assert db.table("numbers").count() == 81
    assert numbers(db) == [*range(40, 81), 500, *range(600, 700)]
    assert db.table("others").get(1) is None


@pytest.mark.parametrize("block", ["snapshot", "transaction"])
@pytest.mark.parametrize("order_by", [None, "n"])
def test_an_iterator_outlives_the_block_it_was_begun_in(db: agentdb.Database, block: str, order_by: str | None) -> None:
    fill(db, *range(60))
    fill(db, 60)
    with getattr(db, block)():
        iterator = db.table("numbers").scan(order_by=order_by)
    db.table("numbers").delete_many(filter=field("n") < 50)
    db.optimize()
    fill(db, 7)
    db.optimize()
    assert sorted(row["n"] for row in iterator) == list(range(61))
    db.optimize()
    assert len(db._core.hot.versions(db._core.hot.writer, db.table("numbers")._id)) == 1, "the pin is gone"


def test_an_iterator_that_is_dropped_lets_go(db: agentdb.Database) -> None:
    fill(db, *range(60))
    iterator = db.table("numbers").scan()
    next(iterator)
    assert db._core.pins.active()
    del iterator
    assert not db._core.pins.active()
    other = db.table("numbers").scan()
    other.close()  # type: ignore[attr-defined]
    assert not db._core.pins.active()
    assert list(other) == []
    reader = db.table("numbers").scan_arrow()
    reader.read_next_batch()
    reader.close()
    del reader
    assert not db._core.pins.active()


def test_a_transaction_belongs_to_its_task(db: agentdb.Database) -> None:
    async def main() -> None:
        with db.transaction():
            fill(db, 1)

            async def child() -> None:
                with pytest.raises(UnavailableError, match="another thread or task"):
                    numbers(db)

            await asyncio.create_task(child())
            with pytest.raises(UnavailableError, match="another thread or task"):
                await asyncio.to_thread(numbers, db)
            assert numbers(db) == [1]

    asyncio.run(main())
    assert numbers(db) == [1]


def test_an_idle_transaction_is_rolled_back(db_path: Path) -> None:
    config = Config(maintenance=False, durability="normal", transaction_idle_timeout_s=0.15, bulk_rows=50, bulk_bytes=1)
    with agentdb.open(db_path, config=config) as db:
        db.table(NUMBERS)
        with pytest.raises(StorageError, match="idle") as raised, db.transaction():  # noqa: PT012 - the block is what raises
            fill(db, 1, *range(100, 200))
            time.sleep(0.5)
        assert raised.value.retryable
        with pytest.raises(StorageError, match="idle"), db.transaction():  # noqa: PT012 - the block is what raises
            with db.transaction():
                fill(db, 1)
            time.sleep(0.5)
            fill(db, 2)
        with db.transaction():
            for i in range(6):
                fill(db, i)
                time.sleep(0.05)
        assert numbers(db) == list(range(6))
        db.flush()
        assert db.verify().ok


def test_two_databases_in_one_thread(db: agentdb.Database, tmp_path: Path) -> None:
    with agentdb.open(tmp_path / "second", config=QUIET) as second:
        second.table(NUMBERS)
        with db.transaction():
            fill(db, 1)
            fill(second, 2)
            with second.snapshot():
                assert numbers(second) == [2]
                assert numbers(db) == [1]
        assert numbers(db) == [1]


# --- processes --------------------------------------------------------------------------------------------------------

CHILD = """
import sys, agentdb
from agentdb import Config
db = agentdb.open(sys.argv[1], config=Config(maintenance=False, durability="normal"))
table = db.table("numbers")
print("ready", flush=True)
for line in sys.stdin:
    command, _, rest = line.strip().partition(" ")
    if command == "put":
        table.put({"k": f"{int(rest):05d}", "n": int(rest)})
    elif command == "delete":
        table.delete(f"{int(rest):05d}")
    elif command == "optimize":
        db.optimize()
    elif command == "drop":
        db.drop_table("numbers")
    elif command == "hold":
        iterator = table.scan(order_by="n")
    print(*sorted(row["n"] for row in table.scan()) if command not in ("drop", "rest") else
          [row["n"] for row in iterator] if command == "rest" else [], flush=True)
db.close()
"""


def test_two_processes_see_each_others_writes_at_once(db: agentdb.Database) -> None:
    fill(db, 1)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(db.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"

        def ask(command: str) -> list[int]:
            child.stdin.write(command + "\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            return [int(one) for one in child.stdout.readline().split()]  # type: ignore[union-attr]

        assert ask("look") == [1]
        fill(db, 2)
        assert ask("look") == [1, 2]
        assert ask("put 3") == [1, 2, 3] == numbers(db)
        db.flush()
        assert ask("delete 1") == [2, 3] == numbers(db)
        assert ask("optimize") == [2, 3] == numbers(db)
        db.table("numbers").put({"k": "00002", "n": 20})
        db.optimize()
        assert ask("look") == [3, 20] == numbers(db)
        assert ask("hold") == [3, 20]
        db.table("numbers").delete_many(filter=field("n") > 0)
        db.optimize()
        fill(db, 9)
        db.optimize()
        assert ask("look") == [9]
        assert ask("rest") == [3, 20], "another process's reader is pinned, too"
        db.table("numbers").add_columns([pa.field("x", pa.string())])
        assert ask("put 10") == [9, 10] == numbers(db)
        assert db.table("numbers").get("00010") == {"k": "00010", "n": 10, "x": None}
        ask("drop")
        assert "numbers" not in db.tables()
        child.stdin.close()
        assert child.wait(20) == 0
    assert db.verify().ok


def test_a_column_knows_the_embedder_of_its_vectors(db_path):
    small, large = agentdb.load_embedder("hashing", dimension=32), agentdb.load_embedder("hashing", dimension=64)
    schema = TableSchema(
        "texts",
        [pa.field("id", pa.string()), pa.field("vector", pa.list_(pa.float32(), 32))],
        key="id",
        embedders={"vector": small.name},
    )
    with agentdb.open(db_path, embedder=small) as db:
        db.table(schema)
        assert db.embedder_for("texts", "vector") is small
        with pytest.raises(InvalidInputError, match="names no embedder"):
            db.embedder_for("texts", "id")
    with agentdb.open(db_path, embedder=large) as db:
        assert db.table("texts").schema == schema
        with pytest.raises(InvalidInputError, match="made"):
            db.embedder_for("texts", "vector")
    for embedders in ({"id": "x"}, {"nothing": "x"}, {"vector": ""}, {"vector": 3}):
        with pytest.raises(InvalidInputError, match="embedders"):
            TableSchema("t", schema.arrow, key="id", embedders=embedders)
