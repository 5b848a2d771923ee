"""Full disks, read-only places and damaged files: a clear error or recovery, and what is intact stays readable."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.workload import CONFIG, A, B, plain, row_a, row_b, rows_a, rows_b

import agentdb
from agentdb import (
    AccessDeniedError,
    FormatError,
    IntegrityError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from agentdb.errors import AgentDBError

ROWS = {f"k{i:04d}" for i in range(30)}


def build(path: Path) -> None:
    """Two tables, each with several cold versions and hot rows."""
    with agentdb.open(path, config=CONFIG) as db:
        a, b = db.table(A), db.table(B)
        a.put_many(rows_a(0, 25))
        b.put_many(rows_b(0, 25))
        db.flush()
        a.put_many(rows_a(20, 28))
        db.flush()
        a.put_many(rows_a(26, 30))
        b.put_many(rows_b(24, 28))
        a.delete("k9999")


def manifests(path: Path, table: str) -> list[Path]:
    """Return the manifests of a table, oldest first."""
    return sorted((path / "lance" / f"{table}.lance" / "_versions").glob("*.manifest"), reverse=True)


def listing(path: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for one in sorted([path, *path.rglob("*")]):
        facts = one.stat()
        found[str(one)] = (facts.st_mtime_ns, facts.st_size if one.is_file() else 0, facts.st_ino)
    return found


@pytest.fixture
def built(db_path):
    build(db_path)
    return db_path


def all_there(db: agentdb.Database) -> None:
    assert {row["k"] for row in db.table("a").scan()} == ROWS
    assert db.table("b").count() == 28


# --- no space ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("bulk", [False, True], ids=["hot", "bulk"])
def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(small_disk, bulk):
    path, ballast = small_disk / "db", small_disk / "ballast"
    acknowledged: dict[tuple[str, int], str] = {}
    errors: list[AgentDBError] = []
    ballast.write_bytes(bytes(600_000))
    with agentdb.open(path, config=CONFIG) as db:
        b = db.table(B)
        for n in range(400):
            # Not compressible.
            rows = [{"x": f"x{n}", "y": i, "text": os.urandom(200).hex()} for i in range(40 if bulk else 10)]
            try:
                if n % 5 == 4:
                    db.flush()
                b.put_many(rows)
            except AgentDBError as error:
                errors.append(error)
                if len(errors) > 5:
                    break
            else:
                acknowledged |= {(row["x"], row["y"]): row["text"] for row in rows}
        assert len(errors) > 5, "the disk was never full"
        assert all(isinstance(one, StorageError) for one in errors), errors
        assert any("full" in str(one) and one.retryable for one in errors), errors
        assert {(row["x"], row["y"]): row["text"] for row in b.scan()} == acknowledged
    with agentdb.open(path, config=CONFIG) as db:
        assert {(row["x"], row["y"]): row["text"] for row in db.table("b").scan()} == acknowledged
        assert db.verify().problems == ()
        ballast.unlink()
        db.table("b").put({"x": "again", "y": 1, "text": "room"})
        assert db.table("b").count() == len(acknowledged) + 1
        assert db.verify().problems == ()


# --- places that cannot be written ------------------------------------------------------------------------------------


def test_a_directory_without_write_permission(built):
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind the superuser")
    for one in [built, *built.rglob("*")]:
        one.chmod(one.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        with pytest.raises(AccessDeniedError, match="read_only"):
            agentdb.open(built)
        with agentdb.open(built, read_only=True) as db:
            all_there(db)
    finally:
        for one in [built, *built.rglob("*")]:
            one.chmod(one.stat().st_mode | stat.S_IWUSR)


def test_a_read_only_file_system(built, tmp_path):
    place = tmp_path / "mounted"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "--bind", built, place], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        with pytest.raises(AccessDeniedError, match="read_only"):
            agentdb.open(place)
        with agentdb.open(place, read_only=True) as db:
            all_there(db)
            assert db.verify().problems == ()
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("wal", ["none", "empty", "full"])
def test_read_only_writes_nothing(built, tmp_path, wal):
    path = tmp_path / "copy"
    if wal == "full":
        # As a killed writer leaves it; copied by another process, because closing SQLite's files drops its locks.
        with agentdb.open(built, config=CONFIG) as db:
            db.table("a").put(row_a(5, 1))
            subprocess.run(["cp", "-r", built, path], check=True)
        assert (path / "agentdb.sqlite-wal").stat().st_size > 0
    else:
        shutil.copytree(built, path)
    if wal == "none":
        (path / "agentdb.sqlite-wal").unlink(missing_ok=True)
        (path / "agentdb.sqlite-shm").unlink(missing_ok=True)
    before = listing(path)
    with agentdb.open(path, read_only=True) as db:
        assert db.read_only
        all_there(db)
        assert db.table("a").get("k0005")["n"] == (1005 if wal == "full" else 5)
        assert db.verify().problems == ()
        for call in (
            lambda: db.table("a").put(row_a(1)),
            lambda: db.table("a").delete("k0001"),
            lambda: db.table("a").put_many(rows_a(0, 100)),
            lambda: db.table("a").erase_many(["k0001"]),
            lambda: db.flush(),
            lambda: db.optimize(),
            lambda: db.drop_table("a"),
            lambda: db.transaction().__enter__(),
        ):
            with pytest.raises(AccessDeniedError):
                call()
    # SQLite maps the -shm file to read a log; it may only touch its pages.
    after = listing(path)
    assert {k: v for k, v in after.items() if not k.endswith("-shm")} == {
        k: v for k, v in before.items() if not k.endswith("-shm")
    }


def test_a_log_without_its_index_cannot_be_read_only(built, tmp_path):
    path = tmp_path / "copy"
    with agentdb.open(built, config=CONFIG) as db:
        db.table("a").put(row_a(5, 1))
        subprocess.run(["cp", "-r", built, path], check=True)
    (path / "agentdb.sqlite-shm").unlink()
    before = listing(path)
    with pytest.raises(UnavailableError, match="-wal"):
        agentdb.open(path, read_only=True)
    assert listing(path) == before
    with agentdb.open(path, config=CONFIG) as db:
        assert db.table("a").get("k0005")["n"] == 1005


def test_a_read_only_handle_sees_what_a_writer_commits(built):
    with agentdb.open(built, config=CONFIG) as db:
        body = (
            "import sys, agentdb\n"
            "with agentdb.open(sys.argv[1], read_only=True) as db:\n"
            "    for line in sys.stdin:\n"
            "        print(db.table('a').count(), flush=True)\n"
        )
        import sys

        with subprocess.Popen(
            [sys.executable, "-c", body, built], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as reader:

            def count() -> int:
                reader.stdin.write("\n")
                reader.stdin.flush()
                return int(reader.stdout.readline())

            assert count() == 30
            db.table("a").put(row_a(30))
            assert count() == 31
            # While it is open nothing that it may read is removed.
            before = manifests(built, "a")
            db.optimize()
            assert set(before) <= set(manifests(built, "a"))
            assert count() == 31
            reader.stdin.close()
        db.optimize()
        assert len(manifests(built, "a")) == 1


# --- what is no database ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "other files", "text", "other sqlite"])
def test_what_is_no_database_is_left_alone(tmp_path, kind):
    path = tmp_path / "thing"
    if kind == "file":
        path.write_text("hello")
    else:
        path.mkdir()
        if kind == "other files":
            (path / "x").write_text("hello")
        elif kind == "text":
            (path / "agentdb.sqlite").write_text("hello, this is no database" * 100)
        else:
            import apsw

            connection = apsw.Connection(str(path / "agentdb.sqlite"))
            connection.execute("CREATE TABLE t(x)")
            connection.close()
    before = listing(path)
    for read_only in (False, True):
        with pytest.raises((FormatError, NotFoundError)):
            agentdb.open(path, read_only=read_only)
    assert listing(path) == before


def test_nothing_is_created_unless_wanted(tmp_path):
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(NotFoundError):
            agentdb.open(tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


# --- damage -----------------------------------------------------------------------------------------------------------


def damage(path: Path, offset: int, size: int = 64) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * size)


def test_a_corrupt_page_is_found_and_never_returned_as_data(built):
    """Every page in turn: an error or right rows, never wrong ones; and `verify` finds what reads do not touch."""
    file = built / "agentdb.sqlite"
    pristine = file.read_bytes()
    for page in range(0, len(pristine) // 4096, 3):
        file.write_bytes(pristine)
        damage(file, page * 4096, 4096)
        problems: list[object] = []
        try:
            with agentdb.open(built, config=CONFIG) as db:
                for name in ("a", "b"):
                    try:
                        for row in db.table(name).scan():
                            expected = row_a(int(row["k"][1:])) if name == "a" else row_b(row["y"])
                            assert plain(row) == plain(expected)
                    except AgentDBError as error:
                        problems.append(error)
                problems.extend(db.verify().problems)
        except AgentDBError as error:
            problems.append(error)
        assert problems, f"page {page}"


def test_a_missing_data_file_spoils_only_its_table(built):
    next((built / "lance" / "a.lance" / "data").iterdir()).unlink()
    with agentdb.open(built, config=CONFIG) as db:
        with pytest.raises(IntegrityError, match="missing"):
            list(db.table("a").scan())
        assert plain(db.table("a").get("k0029")) == plain(row_a(29))
        assert db.table("b").count() == 28
        report = db.verify()
        assert not report.ok
        assert {one.table for one in report.problems} == {"a"}
        db.table("a").put(row_a(40))
        assert db.table("a").get("k0040") is not None


@pytest.mark.parametrize("how", ["missing", "zeroed", "truncated", "empty"])
def test_a_damaged_current_manifest_spoils_only_its_table(built, how):
    file = manifests(built, "a")[-1]
    size = file.stat().st_size
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes({"zeroed": bytes(size), "truncated": file.read_bytes()[: size // 2], "empty": b""}[how])
    with agentdb.open(built, config=CONFIG) as db:
        with pytest.raises((IntegrityError, StorageError)):
            list(db.table("a").scan())
        assert db.table("a").get("k0029") is not None
        assert db.table("b").count() == 28
        assert {one.table for one in db.verify().problems} == {"a"}
        # A flush builds on nothing it cannot read, and keeps what waits.
        with pytest.raises((IntegrityError, StorageError)):
            db.flush("a")
        assert db.table("a").get("k0029") is not None


@pytest.mark.parametrize("how", ["copied", "zeroed", "truncated", "empty"])
def test_orphan_manifests_are_never_read_and_go_with_the_next_change(built, how):
    newest = manifests(built, "a")[-1]
    content = newest.read_bytes()
    orphans = [newest.with_name(f"{int(newest.stem) - n}.manifest") for n in (1, 2, 7)]
    for orphan in orphans:
        orphan.write_bytes(
            {"copied": content, "zeroed": bytes(len(content)), "truncated": content[:99], "empty": b""}[how]
        )
    with agentdb.open(built, config=CONFIG) as db:
        all_there(db)
        # A copy claims to be the version that it was copied from, which no writer leaves behind.
        assert how == "copied" or db.verify().problems == ()
        assert all(one.exists() for one in orphans)
        db.table("a").put(row_a(3, 3))
        db.flush()
        all_there(db)
        assert db.table("a").get("k0003")["n"] == 3003
        assert db.verify().problems == ()
        db.optimize()
        all_there(db)
        assert db.verify().problems == ()
        assert not orphans[-1].exists()


def test_a_changed_byte_in_a_data_file_is_found(built):
    file = max((built / "lance" / "a.lance" / "data").iterdir(), key=lambda one: one.stat().st_size)
    damage(file, 100, 8)
    with agentdb.open(built, config=CONFIG) as db:
        report = db.verify()
        assert any(one.table == "a" and "digest" in one.what for one in report.problems)
        assert db.table("b").count() == 28


# --- creation ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_creation_is_taken_up_again(tmp_path):
    """The creation fails, for good, at every place that it passes."""
    from agentdb.testing.faults import inject_faults

    with inject_faults(sync=False) as faults:
        with agentdb.open(tmp_path / "count", config=CONFIG):
            places = faults.count
        for at in range(1, places + 1):
            path = tmp_path / f"db{at}"
            faults.arm(at, sticky=True)
            with pytest.raises(AgentDBError):
                agentdb.open(path, config=CONFIG).close()
            assert faults.fired is not None
            faults.reset()
            with agentdb.open(path, config=CONFIG) as db:
                db.table(A).put(row_a(1))
                assert db.verify().problems == ()


def test_an_empty_file_is_a_creation_that_was_killed(db_path):
    db_path.mkdir()
    (db_path / "agentdb.sqlite").touch()
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(FormatError, match="never completely created"):
            agentdb.open(db_path, **options)
    with agentdb.open(db_path) as db:
        db.table(A).put(row_a(1))


# --- a transaction that SQLite gives up by itself ---------------------------------------------------------------------


def test_nothing_after_a_write_that_ended_the_transaction_is_kept(db_path):
    """A write that fails while SQLite spills its cache rolls all back; a caller who goes on must not commit the rest."""
    from agentdb.testing.faults import inject_faults

    big = [{"x": "big", "y": i, "text": str(i) * 20_000} for i in range(100)]
    with inject_faults(sync=False) as faults, agentdb.open(db_path, config=CONFIG.__class__(maintenance=False)) as db:
        b = db.table(B)
        b.put(row_b(1))
        faults.arm(1, flavour="full", sticky=True)
        with pytest.raises(StorageError), db.transaction():  # noqa: PT012
            b.put(row_b(2))
            with pytest.raises(StorageError, match="full"):
                b.put_many(big)
            faults.disarm()
            with pytest.raises(StorageError, match="rolled back"):
                b.put(row_b(3))
        assert [row["y"] for row in b.scan()] == [1]
        b.put(row_b(4))
        assert b.count() == 2
        assert db.verify().problems == ()
