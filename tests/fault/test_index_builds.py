"""Index builds that fail, are killed, are overtaken, or have company: the database stays whole and searches stay right."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import agentdb
from agentdb import Config
from agentdb.errors import AgentDBError
from agentdb.storage.indices import TEXT_INDEX, IndexDefinition, Segment
from agentdb.storage.locks import LockedError
from agentdb.testing.faults import inject_faults

CONFIG = Config(maintenance=False, bulk_rows=50, bulk_bytes=1, close_flush_rows=1_000_000)
BUSY = Config(flush_rows=20, flush_age_s=0.05, tick_s=0.02, bulk_rows=50, bulk_bytes=1, compact_fragments=2)
SCHEMA = agentdb.TableSchema(
    "a",
    [pa.field("k", pa.string()), pa.field("text", pa.string()), pa.field("vector", pa.list_(pa.float32(), 4))],
    key="k",
)
FLAT = IndexDefinition("IVF_FLAT", "l2", {"num_partitions": 4})
QUERY = np.array([1, 2, 3, 4], np.float32)


def rows(start: int, stop: int) -> list[dict[str, Any]]:
    return [
        {"k": f"k{i}", "text": f"word{i % 7} text", "vector": np.array([i % 13, i % 7, i % 5, i], np.float32)}
        for i in range(start, stop)
    ]


def fill(path: Path) -> None:
    with agentdb.open(path, config=CONFIG) as db:
        table = db.table(SCHEMA)
        table.put_many(rows(0, 100))
        assert table.build_index("vector", FLAT)
        table.put_many(rows(100, 140))
        table.delete("k3")
        db.flush()


def build_both(db: agentdb.Database) -> None:
    table = db.table("a")
    assert table.build_index("vector", IndexDefinition("IVF_SQ", "l2", {"num_partitions": 2}))
    assert table.build_text_index("text")
    assert table.drop_index("text")


def check(db: agentdb.Database, count: int = 139) -> None:
    assert db.verify().problems == ()
    table = db.table("a")
    db.flush()
    assert table.count() == count
    expected = [hit.id for hit in table.search("vector", QUERY, 10, metric="l2")]
    found = table.nearest_cold("vector", QUERY, 10, metric="l2", probe={"nprobes": 4, "refine_factor": 30})
    # Rows at the same distance may come in any order where the index cuts them off.
    scale = [hit.distance for hit in table.search("vector", QUERY, 10, metric="l2")]
    np.testing.assert_allclose(found.column("_distance").to_numpy(), scale, rtol=1e-5)
    assert len(expected) == found.num_rows


def leftovers(db: agentdb.Database) -> set[str]:
    """Optimize, and return the index directories that nothing names."""
    db.optimize()
    root = db.path / "lance" / "a.lance"
    with db._core.reading() as view:
        entry = view.catalogue.by_name["a"]
        named = db._core.cold.referenced_files(entry.dataset, view.version(entry))
    used = {path.split("/")[1] for path in named if path.startswith("_indices/")}
    return {one.name for one in (root / "_indices").iterdir()} - used


def test_every_place_of_a_build_fails_once(tmp_path):
    with inject_faults(sync=False) as faults:
        fill(tmp_path / "base")
        shutil.copytree(tmp_path / "base", tmp_path / "all")
        with agentdb.open(tmp_path / "all", config=CONFIG) as db:
            faults.reset()
            build_both(db)
            places = faults.count
        assert places > 30
        for at in range(1, places + 1, 2):
            path = tmp_path / f"work-{at}"
            shutil.copytree(tmp_path / "base", path)
            with agentdb.open(path, config=CONFIG) as db:
                faults.arm(at)
                with pytest.raises(AgentDBError):
                    build_both(db)
                faults.disarm()
                check(db)
                build_both(db)
                check(db)
                assert leftovers(db) == set(), f"place {at}: {faults.fired}"
            shutil.rmtree(path)


KILLED = """
import os, signal, sys
import agentdb
from agentdb.testing.faults import Faults, inject_faults
from fault_index_builds import CONFIG, build_both

with inject_faults(sync=False) as faults:
    db = agentdb.open(sys.argv[1], config=CONFIG)
    at, real = int(sys.argv[2]), faults.passes
    faults.reset()

    def passes(*args, **named):
        result = real(*args, **named)
        if faults.count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    faults.passes = passes
    build_both(db)
"""


@pytest.mark.parametrize("at", [1, 2, 4, 7, 10, 13, 16, 19, 24, 30])
def test_a_builder_is_killed(tmp_path, at):
    path = tmp_path / "db"
    fill(path)
    shutil.copy(__file__, tmp_path / "fault_index_builds.py")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(at)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    with agentdb.open(path, config=CONFIG) as db:
        check(db)
        build_both(db)
        check(db)
        assert leftovers(db) == set()


WRITER = textwrap.dedent("""
    import sys
    import agentdb
    from fault_index_builds import BUSY, rows

    with agentdb.open(sys.argv[1], config=BUSY) as db:
        table = db.table("a")
        print("ready", flush=True)
        for i in range(40):
            for one in rows(2000 + 10 * i, 2010 + 10 * i):
                table.put(one)
            if i % 10 == 0:
                table.put_many(rows(3000 + 60 * i, 3060 + 60 * i))
""")


def test_builds_beside_writers_upkeep_and_another_process(tmp_path):
    path = tmp_path / "db"
    fill(path)
    shutil.copy(__file__, tmp_path / "fault_index_builds.py")
    other = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    with agentdb.open(path, config=BUSY) as db:
        table = db.table("a")
        assert other.stdout.readline() == "ready\n"
        stop, failures = threading.Event(), []

        def work(step) -> None:
            n = 0
            while not stop.is_set():
                try:
                    step(n)
                except Exception as error:
                    failures.append(error)
                    return
                n += 1

        def write(n: int) -> None:
            table.put(rows(1000 + n % 100, 1001 + n % 100)[0])

        def search(n: int) -> None:
            with db.snapshot():
                info = table.index_info("vector")
                found = table.nearest_cold("vector", QUERY, 5, metric="l2", probe={"nprobes": 4})
                assert info is None or info.rows_indexed + info.rows_unindexed >= 139
                assert found.num_rows == 5

        threads = [threading.Thread(target=work, args=(step,)) for step in (write, search)]
        for one in threads:
            one.start()
        built = 0
        while other.poll() is None or built < 6:
            definition = FLAT if built % 2 else IndexDefinition("IVF_SQ", "l2", {"num_partitions": 4})
            try:
                built += table.build_index("vector", definition)
            except LockedError:
                continue  # upkeep, of either process, is at it for a moment
            if built % 4 == 3:
                table.build_text_index("text")
        stop.set()
        for one in threads:
            one.join()
        assert failures == []
        assert other.wait() == 0
        db.flush()
        check(db, count=table.count())
        assert table.count() >= 139 + 400 + 240
        assert leftovers(db) == set()
    other.stdout.close()


@pytest.mark.parametrize("definition", [FLAT, TEXT_INDEX], ids=["vector", "text"])
def test_an_erasure_overtakes_a_build(tmp_path, monkeypatch, definition):
    path = tmp_path / "db"
    secret = np.array([9.5, 8.25, 7.125, 6.0625], np.float32)
    with agentdb.open(path, config=CONFIG) as db:
        table = db.table(SCHEMA)
        table.put_many([*rows(0, 100), {"k": "secret", "text": "zanzibar", "vector": secret}])
        column = "vector" if definition is FLAT else "text"
        assert table.build_index(column, definition)
        real, receipts = Segment.build, []

        def build(self, *args) -> None:
            real(self, *args)
            receipts.append(table.erase_many(["secret"]))

        monkeypatch.setattr(Segment, "build", build)
        assert not table.build_index(column, definition)
        assert [one.status for one in receipts] == ["complete"]
        monkeypatch.undo()
        for file in (path / "lance").rglob("*"):
            if file.is_file():
                content = file.read_bytes()
                assert b"zanzibar" not in content
                assert secret.tobytes() not in content
        assert table.index_info(column).segments == 0
        assert table.build_index(column, definition)
        assert table.index_info(column).rows_unindexed == 0
        assert db.verify().problems == ()
