"""Two processes write one database, and one of them is killed: nothing that was acknowledged is lost."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa

import agentdb
from agentdb import TableSchema, field

EVENTS = TableSchema(
    "events",
    [pa.field("writer", pa.string()), pa.field("number", pa.int64()), pa.field("payload", pa.string())],
    key=["writer", "number"],
)


def write_for_ever(path: str) -> None:
    with agentdb.open(path) as db:
        events = db.table(EVENTS)
        number = 0
        while True:
            number += 1
            events.put({"writer": "child", "number": number, "payload": "x" * 200})
            print(number, flush=True)  # only now: what the parent reads here is durable


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "db"
        db = agentdb.open(path)
        events = db.table(EVENTS)

        # Start processes anew ('spawn', or a program of their own): a forked child must not use its parent's database.
        child = subprocess.Popen([sys.executable, __file__, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged = 0
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged <= 500:
                # Both write at once; each waits its turn for a moment, and sees the other's rows immediately.
                events.put({"writer": "parent", "number": acknowledged, "payload": "y"})
            if acknowledged == 1000:
                seen = events.count(field("writer") == "child")
                print("the parent sees the child's rows while it writes:", seen >= acknowledged)
                child.kill()  # SIGKILL: no clean-up code runs
        print("exit status of the child:", child.wait(), "- acknowledged:", acknowledged)
        child.stdout.close()
        db.close()

        # Opening recovers by itself. There is nothing to repair and no lock file to remove.
        with agentdb.open(path) as again:
            stored = {row["number"] for row in again.table("events").scan(field("writer") == "child")}
            print("missing:", sorted(set(range(1, acknowledged + 1)) - stored))
            print("stored but never acknowledged (at most the one in flight):", len(stored) - acknowledged)
            print("rows of the parent:", again.table("events").count(field("writer") == "parent"))
            print("verify:", again.verify().ok)


if __name__ == "__main__":
    write_for_ever(sys.argv[1]) if len(sys.argv) > 1 else main()
