"""Saving agent states: one thread, many threads, many processes, long histories."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import lancedb
import msgpack
import pyarrow as pa

import agentdb
from agentdb import Config
from benchmarks.harness import Figure, alternate, disk_bytes, each, gate, median, seconds, spread

_PAGE = 4096
STATE = {"goal": "book a table", "step": 3, "slots": {"day": "friday", "people": 4, "place": None}, "notes": "x" * 180}


def _state(i: int) -> dict:
    return {**STATE, "step": i}


class _Sqlite:
    """The bare peer: the same library, the same durability, one row per transaction."""

    def __init__(self, path: Path) -> None:
        self.connection = apsw.Connection(str(path))
        self.connection.execute("PRAGMA journal_mode=WAL").fetchall()
        self.connection.execute("PRAGMA synchronous=FULL")
        self.connection.execute(
            "CREATE TABLE states(agent TEXT, session TEXT, type TEXT, version INTEGER, data BLOB, at REAL, "
            "PRIMARY KEY (agent, session, type, version))"
        )

    def save(self, i: int) -> None:
        self.connection.execute(
            "INSERT INTO states VALUES (?, ?, ?, ?, ?, ?)",
            (f"agent-{i % 50}", "session", "task", i, msgpack.packb(_state(i)), time.time()),
        )


class _LanceDB:
    def __init__(self, path: Path) -> None:
        self.table = lancedb.connect(path).create_table("states", self._row(0))

    @staticmethod
    def _row(i: int) -> pa.Table:
        row = {"agent": f"agent-{i % 50}", "session": "session", "type": "task", "version": i,
               "data": msgpack.packb(_state(i)), "at": time.time()}  # fmt: skip
        return pa.Table.from_pylist([row])

    def save(self, i: int) -> None:
        self.table.add(self._row(i))


class _Disk:
    """The floor: one page overwritten and forced to the disk, which no durable write can undercut."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_PAGE * 100))
        self.descriptor = os.open(path, os.O_RDWR)
        os.fsync(self.descriptor)

    def save(self, i: int) -> None:
        os.pwrite(self.descriptor, os.urandom(_PAGE), i % 100 * _PAGE)
        os.fdatasync(self.descriptor)


def one_save(folder: Path, *, quick: bool) -> Iterator[Figure]:
    rounds, calls = (3, 20) if quick else (15, 70)
    with agentdb.open(folder / "db") as db:
        sqlite, lance, disk = _Sqlite(folder / "peer.sqlite"), _LanceDB(folder / "peer"), _Disk(folder / "page")
        count = {"agentdb": 0, "sqlite": 0, "lancedb": 0, "disk": 0}

        def run(name: str, save) -> float:
            start = count[name]
            count[name] += calls
            return median(each(lambda i: save(start + i + 1), calls))

        def ours(i: int) -> None:
            db.states.save(f"agent-{i % 50}", "session", "task", _state(i))

        taken = alternate(
            rounds,
            agentdb=lambda: run("agentdb", ours),
            sqlite=lambda: run("sqlite", sqlite.save),
            lancedb=lambda: run("lancedb", lance.save),
            disk=lambda: run("disk", disk.save),
        )
        with gate("every save is there"):
            found = db.states.load("agent-1", "session", "task")
            assert found is not None
            assert sum(1 for _ in db.table("_states").scan(columns=["version"])) == count["agentdb"]
    us = {name: median(values) * 1e6 for name, values in taken.items()}
    us["most that one fsync allows"] = us["lancedb"] / us["disk"]
    yield Figure(
        "states.save against a bare LanceDB add", us["lancedb"] / us["agentdb"], "times", 20, higher=True, detail=us
    )
    yield Figure(
        "states.save against a bare SQLite insert, both fsync", us["agentdb"] / us["sqlite"], "times", 3, detail=us
    )


class _SlowSync(apsw.VFS):
    """A disk whose fsync takes 2 ms longer."""

    def __init__(self) -> None:
        super().__init__("slow-sync", "", makedefault=True)

    def xOpen(self, name, flags):  # noqa: N802 - apsw's name
        return _SlowFile(name, flags)


class _SlowFile(apsw.VFSFile):
    def __init__(self, name, flags) -> None:
        super().__init__("unix", name, flags)

    def xSync(self, flags) -> None:  # noqa: N802 - apsw's name
        super().xSync(flags)
        time.sleep(0.002)


def _saves_per_second(db: agentdb.Database, threads: int, total: int, label: str) -> float:
    each_does = total // threads
    start = threading.Barrier(threads + 1)

    def work(t: int) -> None:
        start.wait()
        for i in range(each_does):
            db.states.save(f"{label}-{t}", "session", "task", _state(i))

    workers = [threading.Thread(target=work, args=(t,)) for t in range(threads)]
    for one in workers:
        one.start()
    start.wait()
    taken = seconds(lambda: [one.join() for one in workers])
    return each_does * threads / taken


def _threads_against_one(folder: Path, rounds: int, total: int) -> tuple[float, dict]:
    rates: dict[int, list[float]] = {1: [], 16: []}
    with agentdb.open(folder) as db:
        for i in range(rounds):
            for threads in (1, 16):
                rates[threads].append(_saves_per_second(db, threads, total, f"{i}-{threads}"))
        with gate("every thread's saves are there"):
            for i in range(rounds):
                for t in range(16):
                    assert db.states.load(f"{i}-16-{t}", "session", "task").version == total // 16
    one, many = median(rates[1]), median(rates[16])
    return many / one, {"one/s": one, "sixteen/s": many, **spread(rates[16])}


def threads(folder: Path, *, quick: bool) -> Iterator[Figure]:
    rounds, total = (1, 160) if quick else (7, 1600)
    ratio, detail = _threads_against_one(folder / "native", rounds, total)
    yield Figure("16 threads against one, native fsync", ratio, "times", 1, higher=True, detail=detail)
    slow = _SlowSync()
    try:
        ratio, detail = _threads_against_one(folder / "slow", rounds, total // 4)
    finally:
        slow.unregister()
    yield Figure("16 threads against one, fsync + 2 ms", ratio, "times", 2, higher=True, detail=detail)


_WRITER = """
import sys, time, json, agentdb
from agentdb import Config
db = agentdb.open(sys.argv[1], config=Config(maintenance=False))
me, until = sys.argv[2], time.time() + float(sys.argv[3])
worst, count, took = 0.0, 0, []
while time.time() < until:
    start = time.perf_counter()
    db.states.save(f"agent-{me}-{count % 20}", "session", "task", {"step": count, "notes": "x" * 250})
    taken = time.perf_counter() - start
    took.append(taken); count += 1
took.sort()
db.close()
print(json.dumps({"count": count, "worst": took[-1], "p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100]}))
"""


def processes(folder: Path, *, quick: bool) -> Iterator[Figure]:
    rounds, lasting = (1, 2) if quick else (3, 10)
    results = []
    for i in range(rounds):
        path = folder / f"db{i}"
        # This process is the flusher, with thresholds so low that it is always at it.
        with agentdb.open(path, config=Config(flush_rows=500, tick_s=0.02)) as db:
            command = [sys.executable, "-c", _WRITER, str(path)]
            running = [
                subprocess.Popen([*command, str(n), str(lasting)], stdout=subprocess.PIPE, text=True) for n in range(4)
            ]
            reports = [json.loads(one.communicate()[0]) for one in running]
            with gate("every process's saves are there"):
                assert db.table("_states").count() == sum(one["count"] for one in reports)
                assert db.stats().tables["_states"].cold_rows > 0
        results.append({
            "worst": max(one["worst"] for one in reports), "p50": median([one["p50"] for one in reports]),
            "p99": max(one["p99"] for one in reports), "rows/s": sum(one["count"] for one in reports) / lasting,
            "slowest writer's share": min(one["count"] for one in reports) / max(one["count"] for one in reports),
        })  # fmt: skip
    worst = max(one["worst"] for one in results)
    detail = {key: median([one[key] for one in results]) for key in results[0] if key != "worst"}
    yield Figure("4 processes beside a flusher: slowest commit", worst, "s", 1, detail=detail)


def message_list(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """A conversation that grows by one message a version: 1,000 versions, as most agents store it."""
    versions = 100 if quick else 1000
    rng = random.Random(1)
    words = [f"{rng.choice('bcdfglmnprst')}{rng.choice('aeiou')}{rng.choice('bdlmnrst')}{rng.choice(['', 'en', 'er', 'ing'])}"
             for _ in range(4000)]  # fmt: skip
    messages: list[dict] = []
    full, copies = 0, []
    with agentdb.open(folder / "db") as db:
        took = []
        for i in range(versions):
            messages.append({"role": ("user", "assistant")[i % 2], "content": " ".join(rng.choices(words, k=16))})
            full += len(msgpack.packb(messages))
            copies.append(len(messages))
            took.append(seconds(lambda: db.states.save("agent", "session", "working_memory", messages)))
        db.optimize()
        order = rng.sample(range(1, versions + 1), min(versions, 200))
        loads = []
        with gate("every version loads as it was saved"):
            for v in order:
                found = []
                loads.append(seconds(lambda v=v, found=found: found.append(
                    (one := db.states.load("agent", "session", "working_memory", version=v), one.data))))  # fmt: skip
                assert found[0][1] == messages[:v]
    size = disk_bytes(folder / "db")
    yield Figure("1,000-version message list: full copies / disk", full / size, "times", 20, higher=True,
                 detail={"full MB": full / 1e6, "disk MB": size / 1e6, "save ms": median(took) * 1e3})  # fmt: skip
    yield Figure("1,000-version message list: load a random version", median(loads) * 1e3, "ms", 5,
                 detail={k: v * 1e3 for k, v in spread(loads).items()})  # fmt: skip
