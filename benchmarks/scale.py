"""Reads, upkeep and start-up of databases with many agents."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import agentdb
from benchmarks.harness import Figure, disk_bytes, each, gate, median, seconds, spread
from benchmarks.saves import _state


def _fill(db: agentdb.Database, agents: int, chunk: int = 50_000) -> None:
    for start in range(0, agents, chunk):
        db.states.save_many(
            [(f"agent-{i:07d}", "session", "task", _state(i)) for i in range(start, min(start + chunk, agents))]
        )


def reads(folder: Path, *, quick: bool) -> Iterator[Figure]:
    agents, calls = (2_000, 100) if quick else (100_000, 1_000)
    rng = random.Random(2)
    with agentdb.open(folder / "db") as db:
        _fill(db, agents)
        db.optimize()
        cold = rng.sample(range(agents // 2), calls)
        with gate("cold reads return what was saved"):
            assert db.states.load(f"agent-{cold[0]:07d}", "session", "task").data == _state(cold[0])
        taken = each(lambda i: db.states.load(f"agent-{cold[i]:07d}", "session", "task"), calls)
        yield Figure("read the latest state, cold", median(taken) * 1e3, "ms", 5,
                     detail={"agents": agents, **{k: v * 1e3 for k, v in spread(taken).items()}})  # fmt: skip
        hot = rng.sample(range(agents // 2, agents), calls)
        for i in hot:
            db.states.save(f"agent-{i:07d}", "session", "task", _state(i + 1))
        with gate("hot reads return what was saved"):
            assert db.states.load(f"agent-{hot[0]:07d}", "session", "task").data == _state(hot[0] + 1)
        taken = each(lambda i: db.states.load(f"agent-{hot[i]:07d}", "session", "task"), calls)
        yield Figure("read the latest state, hot", median(taken) * 1e6, "us", 100,
                     detail={"agents": agents, **{k: v * 1e6 for k, v in spread(taken).items()}})  # fmt: skip


def upkeep(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """What 50,000 saves of one row leave behind, against the same rows loaded at once."""
    rows, calls = (1_000, 50) if quick else (50_000, 300)
    rng = random.Random(3)
    with agentdb.open(folder / "single") as single, agentdb.open(folder / "loaded") as loaded:
        for i in range(rows):
            single.states.save(f"agent-{i:07d}", "session", "task", _state(i))
        _fill(loaded, rows, rows)
        single.optimize()
        loaded.optimize()
        picked = rng.sample(range(rows), calls)

        def read(db: agentdb.Database) -> float:
            return median(each(lambda i: db.states.load(f"agent-{picked[i]:07d}", "session", "task"), calls))

        def scan(db: agentdb.Database) -> float:
            return seconds(lambda: db.table("_states").scan_arrow().read_all())

        with gate("both hold the same"):
            assert single.table("_states").count() == loaded.table("_states").count() == rows
        for name, measure in (("cold read", read), ("scan", scan)):
            ours, peer = [], []
            for _ in range(5):
                ours.append(measure(single))
                peer.append(measure(loaded))
            yield Figure(f"after {rows:,} one-row saves, against a bulk load: {name}", median(ours) / median(peer), "times",
                         1.5, detail={"ms": median(ours) * 1e3, "bulk ms": median(peer) * 1e3})  # fmt: skip
    ours, peer = disk_bytes(folder / "single"), disk_bytes(folder / "loaded")
    yield Figure(f"after {rows:,} one-row saves, against a bulk load: disk", ours / peer, "times", 1.5,
                 detail={"MB": ours / 1e6, "bulk MB": peer / 1e6})  # fmt: skip


_READER = """
import sys, time, json
import agentdb
from benchmarks.harness import resident_bytes
start = time.perf_counter()
db = agentdb.open(sys.argv[1])
opened = time.perf_counter()
state = db.states.load(sys.argv[2], "session", "task")
assert state.data["step"] == int(sys.argv[3]), state.data
read = time.perf_counter()
for i in range(200):
    db.states.load(f"agent-{i * 4999 % int(sys.argv[4]):07d}", "session", "task")
print(json.dumps({"open": opened - start, "read": read - opened, "resident": resident_bytes()}))
db.close()
"""


def million(folder: Path, *, quick: bool) -> Iterator[Figure]:
    agents = 20_000 if quick else 1_000_000
    path = folder / "db"
    with agentdb.open(path) as db:
        loading = seconds(lambda: _fill(db, agents))
        db.optimize()
    chosen = agents * 2 // 3
    command = [sys.executable, "-c", _READER, str(path), f"agent-{chosen:07d}", str(chosen), str(agents)]
    reports = [json.loads(subprocess.check_output(command, text=True)) for _ in range(1 if quick else 5)]
    detail = {"agents": agents, "load s": loading, "disk MB": disk_bytes(path) / 1e6}
    yield Figure("a million agents: open", median([one["open"] for one in reports]), "s", 1, detail=detail)
    yield Figure("a million agents: first read", median([one["read"] for one in reports]) * 1e3, "ms", 50)
    yield Figure("a million agents: resident memory", median([one["resident"] for one in reports]) / 1e6, "MB", 500)
