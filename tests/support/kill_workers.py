"""Processes that work on one database until they are killed, and the ledger of what they were told is done.

Run as a script it is a zygote: it has imported everything and opened nothing, and forks the processes of each cycle, so that
a cycle costs no imports. A ledger line is written before an operation (``B``) and after its acknowledgement (``A``), straight
to the kernel: it survives SIGKILL, as the acknowledged operation must.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

import agentdb
from agentdb import Config
from agentdb.errors import NotFoundError, StorageError

WRITERS = 4
KEYS = 60
NAMES = [*(f"w{i}" for i in range(WRITERS)), "bulk"]

BUSY = Config(
    flush_rows=40,
    flush_bytes=1 << 20,
    flush_age_s=0.05,
    tick_s=0.02,
    bulk_rows=32,
    bulk_bytes=1,
    compact_fragments=2,
    wal_limit_bytes=64 << 10,
    close_flush_rows=1,
    write_timeout_s=60.0,
)


def schema(name: str) -> agentdb.TableSchema:
    return agentdb.TableSchema(
        name,
        pa.schema(
            [
                pa.field("owner", pa.string(), nullable=False),
                pa.field("i", pa.int64(), nullable=False),
                pa.field("n", pa.int64()),
                pa.field("text", pa.string()),
                pa.field("meta", pa.json_()),
            ]
        ),
        key=["owner", "i"],
        indexed=["n"],
    )


def row(owner: str, i: int, n: int) -> dict[str, Any]:
    return {"owner": owner, "i": i, "n": n, "text": f"{owner} {i} {n} " * (n % 7), "meta": {"n": n, "odd": bool(n % 2)}}


# An operation is [n, kind, keys...]; it is a pure function of its ledger line, so that the checker can replay it.


def choose(name: str, n: int, chooser: random.Random) -> list[Any]:
    if name == "bulk":
        start = chooser.randrange(KEYS)
        return [n, chooser.choice(["bulk", "bulk", "bulk-both"]), *range(start, start + 40)]
    kind = chooser.choices(["put", "many", "delete", "both", "erase"], [10, 4, 3, 4, 0.2])[0]
    keys = [chooser.randrange(KEYS) for _ in range({"put": 1, "many": 5, "both": 2}.get(kind, 2))]
    return [n, kind, *keys]


def apply(model: dict[tuple[str, str, int], int], name: str, operation: list[Any]) -> None:
    """Do to a model what `perform` does to the database; an entry is (table, owner, i) -> n."""
    n, kind, *keys = operation
    if kind in ("delete", "erase"):
        for i in keys:
            model.pop(("a", name, i), None)
        return
    for i in keys:
        model["a", name, i] = n
        if kind in ("both", "bulk-both"):
            model["b", name, i] = n
    if kind in ("both", "bulk-both"):
        model["a", name, -1] = model["b", name, -1] = n


def perform(db: agentdb.Database, name: str, operation: list[Any]) -> None:
    n, kind, *keys = operation
    a, b = db.table("a"), db.table("b")
    rows = [row(name, i, n) for i in keys]
    if kind == "put":
        a.put(rows[0])
    elif kind in ("many", "bulk"):
        a.put_many(rows)
    elif kind == "delete":
        a.delete_many([(name, i) for i in keys])
    elif kind == "erase":
        a.erase_many([(name, i) for i in keys])
    else:
        with db.transaction():
            a.put_many(rows)
            a.put(row(name, -1, n))
            b.put(row(name, -1, n))
            b.put_many(rows)


def write(path: str, ledger: str, name: str, seed: int) -> None:
    chooser = random.Random(seed)
    lines = Path(ledger).read_text().splitlines() if Path(ledger).exists() else []
    n = sum(line.startswith("B") for line in lines)
    out = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    db = agentdb.open(path, config=BUSY)
    while True:
        n += 1
        operation = choose(name, n, chooser)
        os.write(out, f"B{json.dumps(operation)}\n".encode())
        perform(db, name, operation)
        os.write(out, b"A\n")
        if name == "bulk":
            time.sleep(0.02)


def maintain(path: str, ledger: str, name: str, seed: int) -> None:
    db = agentdb.open(path, config=BUSY)
    while True:
        # An interrupted round may have left it.
        db.drop_table("scratch")
        scratch = db.table(schema("scratch"))
        scratch.put(row("s", 0, 0))
        scratch.put_many([row("s", i, 1) for i in range(50)])
        with contextlib.suppress(NotFoundError):
            db.optimize()


def read(path: str, ledger: str, name: str, seed: int) -> None:
    db = agentdb.open(path, config=BUSY)
    a, b = db.table("a"), db.table("b")
    while True:
        with db.snapshot():
            rows = list(a.scan())
            keys = [(one["owner"], one["i"]) for one in rows]
            assert len(set(keys)) == len(keys) == a.count(), "a key twice in one snapshot"
            assert all(one == row(one["owner"], one["i"], one["n"]) for one in rows), "a row with another's content"
            for owner in NAMES:
                left, right = a.get((owner, -1)), b.get((owner, -1))
                assert left == right, f"half a transaction of {owner}"


def child(role: str, path: str, ledger: str, name: str, seed: int, errors: str) -> None:
    run: Callable[[str, str, str, int], None] = {"write": write, "maintain": maintain, "read": read}[role]
    while True:
        try:
            run(path, ledger, name, seed)
        except StorageError as error:
            if error.retryable and role != "write":
                continue
            what = traceback.format_exc()
        except BaseException:
            what = traceback.format_exc()
        break
    with Path(errors).open("a") as out:
        out.write(f"--- {name}\n{what}\n")


def start(role: str, path: str, ledgers: str, name: str, seed: int, errors: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    with contextlib.suppress(BaseException):
        try:
            child(role, path, f"{ledgers}/{name}", name, seed, errors)
        except BaseException:
            Path(errors).write_text(traceback.format_exc())
    os._exit(1)


def cycle(path: str, ledgers: str, errors: str, seed: int, seconds: float) -> list[int]:
    """Let everybody work for a while, kill them all in a random order, and return how each ended."""
    chooser = random.Random(seed)
    roles = [*(("write", name) for name in NAMES), ("maintain", "maintenance"), ("read", "reader")]
    pids = [start(role, path, ledgers, name, chooser.randrange(1 << 30), errors) for role, name in roles]
    time.sleep(chooser.uniform(0.3, 1.0) * seconds)
    chooser.shuffle(pids)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        if chooser.random() < 0.5:
            # The survivors go on beside the dead for a moment.
            time.sleep(chooser.uniform(0, 0.05) * seconds)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    import lance  # noqa: F401 - the children are to have it

    agentdb.open  # noqa: B018 - loads the engine
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(cycle(*json.loads(line))), flush=True)
