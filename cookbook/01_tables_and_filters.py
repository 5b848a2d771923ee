"""Tables of any schema, and filters on columns and on JSON of any shape."""

import tempfile
from pathlib import Path

import pyarrow as pa

import agentdb
from agentdb import TableSchema, field

with tempfile.TemporaryDirectory() as directory, agentdb.open(Path(directory) / "db") as db:
    # A schema is a list of Arrow fields and a key. Opening a table that does not exist makes it.
    notes = db.table(
        TableSchema(
            "notes",
            [
                pa.field("author", pa.string()),
                pa.field("number", pa.int64()),
                pa.field("text", pa.string()),
                pa.field("vector", pa.list_(pa.float32(), 3)),  # a fixed-size list of floats is a vector
                pa.field("meta", pa.json_()),  # JSON needs no schema, and every path in it can be filtered on
            ],
            key=["author", "number"],
        )
    )

    # One row: durable when put() returns, and visible at once to every thread and process.
    notes.put({"author": "ann", "number": 1, "text": "tea is ready", "vector": [1, 0, 0], "meta": {"tags": ["tea"]}})

    # Many rows: all of them or none. Dicts and Arrow tables are both fine; large batches go straight to columnar files.
    notes.put_many(
        {"author": "bob", "number": n, "text": f"note {n}", "vector": [0, n, 1], "meta": {"rank": n, "tags": ["x"]}}
        for n in range(1, 10)
    )
    print("rows:", notes.count())
    print("by key:", notes.require(("ann", 1))["text"])

    # Filters are built from fields with Python's operators. & | ~ combine them.
    high = (field("meta", "rank") > 5) & ~(field("text") == "note 7")
    print("high:", [row["number"] for row in notes.scan(high, order_by="number")])
    print("tagged tea:", [row["author"] for row in notes.scan(field("meta", "tags").contains("tea"))])

    # Missing is not null, and types are never confused: Ann's note has no rank, so it is in neither answer.
    print("rank below 3:", notes.count(field("meta", "rank") < 3), "others:", notes.count(field("meta", "rank") >= 3))

    # Equality on the first key columns is a range look-up, not a scan: the way to list "all of one author".
    newest = notes.scan(field("author") == "bob", order_by=("number", "desc"), limit=3, columns=["number"])
    print("Bob's newest:", [row["number"] for row in newest])

    # Exact vector search; the filter applies before the best are chosen.
    for hit in notes.search("vector", [0, 1, 0], k=2, filter=field("author") == "bob"):
        print(f"near: {hit.id} score {hit.score:.3f}")

    print("deleted:", notes.delete_many(filter=field("meta", "rank") <= 5))
