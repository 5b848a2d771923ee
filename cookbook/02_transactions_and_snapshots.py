"""Several tables change together or not at all, and a reader sees one state of all of them."""

import tempfile
import threading
from pathlib import Path

import pyarrow as pa

import agentdb
from agentdb import TableSchema

ACCOUNTS = TableSchema("accounts", [pa.field("name", pa.string()), pa.field("coins", pa.int64())], key="name")
MOVES = TableSchema("moves", [pa.field("id", pa.int64()), pa.field("text", pa.string())], key="id")

with tempfile.TemporaryDirectory() as directory, agentdb.open(Path(directory) / "db") as db:
    accounts, moves = db.table(ACCOUNTS), db.table(MOVES)
    accounts.put_many([{"name": "ann", "coins": 10}, {"name": "bob", "coins": 0}])

    def move(number: int, coins: int) -> None:
        # The write lock is held from here on, so what is read inside cannot change before it is written.
        with db.transaction():
            ann, bob = accounts.require("ann")["coins"], accounts.require("bob")["coins"]
            accounts.put({"name": "bob", "coins": bob + coins})
            moves.put({"id": number, "text": f"{coins} coins"})
            if ann < coins:
                raise ValueError(f"Ann has only {ann}")
            accounts.put({"name": "ann", "coins": ann - coins})
            db.states.save("bank", "s1", "task", {"last_move": number})  # an agent's state takes part, too

    move(1, 4)
    try:
        move(2, 100)
    except ValueError as error:
        print("undone:", error)
    print("coins:", {row["name"]: row["coins"] for row in accounts.scan(order_by="name")}, "moves:", moves.count())

    # A snapshot is one state of everything, however long it lasts; writers go on meanwhile.
    with db.snapshot():
        before = accounts.require("ann")["coins"]
        writer = threading.Thread(target=move, args=(3, 5))
        writer.start()
        writer.join()
        print("in the snapshot: Ann had", before, "and has", accounts.require("ann")["coins"])
    print("after it: Ann has", accounts.require("ann")["coins"])

    # No lost update: eight threads, one coin each way, forty times.
    def juggle() -> None:
        for _ in range(5):
            with db.transaction():
                row = accounts.require("bob")
                accounts.put({**row, "coins": row["coins"] + 1})

    threads = [threading.Thread(target=juggle) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("Bob after 40 increments on 8 threads:", accounts.require("bob")["coins"], "(was 9)")
