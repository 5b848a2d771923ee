"""Every format version that was ever released can be read: databases that were stored when it was current."""

import shutil
import sys
from pathlib import Path

import apsw
import numpy as np
import pytest

import agentdb
from agentdb import Config, FormatError, field

sys.path.insert(0, str(Path(__file__).parent))
try:
    import make
finally:
    sys.path.pop(0)

QUIET = Config(maintenance=False)
STORED = sorted(one for one in Path(__file__).parent.glob("v*") if one.is_dir())


def plain(rows):
    return [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows]


def check(db: agentdb.Database) -> None:
    assert db.tables() == ["empty", "every", "hot"]
    for name, rows in make.expected().items():
        table = db.table(name)
        assert plain(table.scan(order_by=list(table.schema.key))) == plain(rows)
        assert table.count() == len(rows)
    every = db.table("every")
    for row in make.expected()["every"]:
        assert plain([every.get((row["name"], row["number"]))]) == plain([row])
    assert every.count(field("meta")["tags"].contains("t3")) == sum(
        "t3" in row["meta"]["tags"] for row in make.expected()["every"] if row["meta"]
    )
    assert [hit.id for hit in every.search("vector", [44.0, 1.0, 0.5, -1.0], 1, metric="l2")] == [("name-1", 33)]
    assert [one.data for one in reversed(db.states.history("agent", "session", "context"))] == make.STATES
    assert [one.metadata["n"] for one in db.states.history("agent", "session", "context")] == [*range(12, 0, -1)]
    assert db.states.load("agent", "other", "task").data == {"done": True}
    assert db.verify().problems == ()


def writable_copy(stored: Path, target: Path) -> Path:
    shutil.copytree(stored, target)
    return target


def test_the_current_format_is_stored():
    assert [one.name for one in STORED] == [f"v{n}" for n in range(1, make.FORMAT_VERSION + 1)]
    for one in STORED:
        assert sum(file.stat().st_size for file in one.rglob("*") if file.is_file()) < 200_000


@pytest.mark.parametrize("stored", STORED, ids=lambda path: path.name)
def test_a_stored_database_is_read_and_written(stored, tmp_path):
    path = writable_copy(stored, tmp_path / "db")
    with agentdb.open(path, read_only=True) as db:
        check(db)
    with agentdb.open(path, config=QUIET) as db:
        check(db)
        assert {name: one.hot_rows for name, one in db.stats().tables.items()}["every"] == 5
        db.flush()
        check(db)
        db.optimize()
        check(db)
        db.table("every").put(make.later(make.every(99), "new"))
        assert db.table("every").get((make.every(99)["name"], 89))["added"] == "new"
        saved = db.states.save("agent", "session", "context", {"step": 13})
        assert saved.version == 13
        assert db.verify().problems == ()


def test_what_make_makes_is_what_is_expected(tmp_path):
    make.make(tmp_path / "db")
    with agentdb.open(tmp_path / "db", config=QUIET) as db:
        check(db)


@pytest.mark.parametrize("logged", [False, True], ids=["no log", "with a log"])
def test_a_newer_format_is_refused_and_nothing_is_written(tmp_path, logged):
    path = tmp_path / "db"
    with agentdb.open(path, config=QUIET) as db:
        db.table(make.HOT).put({"k": b"1", "v": "1"})
    connection = apsw.Connection(str(path / "agentdb.sqlite"))
    connection.execute(f"PRAGMA user_version={make.FORMAT_VERSION + 1}").fetchall()
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    if logged:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("UPDATE meta SET commit_no = commit_no + 1")
    connection.close()
    assert (path / "agentdb.sqlite-wal").exists() == logged
    before = {str(one): (one.stat().st_mtime_ns, one.read_bytes() if one.is_file() else b"") for one in path.rglob("*")}
    for read_only in (False, True):
        with pytest.raises(FormatError, match=f"format {make.FORMAT_VERSION + 1}"):
            agentdb.open(path, read_only=read_only)
    after = {str(one): (one.stat().st_mtime_ns, one.read_bytes() if one.is_file() else b"") for one in path.rglob("*")}
    assert after == before
