"""Loading many rows at once, beside Lance itself."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

import agentdb
from agentdb import TableSchema
from benchmarks.harness import Figure, alternate, fsync_tree, gate, median, seconds

DIMENSION = 384
SCHEMA = TableSchema(
    "rows",
    pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("text", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), DIMENSION)),
        ]
    ),
    key="id",
)


def _rows(start: int, count: int, seed: int) -> pa.Table:
    values = np.random.default_rng(seed).standard_normal(count * DIMENSION, dtype=np.float32)
    ids = np.arange(start, start + count)
    texts = pa.array([f"row number {i} says something short" for i in ids])
    return pa.table(
        {"id": ids, "text": texts, "vector": pa.FixedSizeListArray.from_arrays(pa.array(values), DIMENSION)}
    )


def bulk(folder: Path, *, quick: bool) -> Iterator[Figure]:
    count, rounds = (10_000, 2) if quick else (200_000, 7)
    rows = _rows(0, count, 1)
    number = iter(range(10_000))

    def ours() -> float:
        path = folder / f"db{next(number)}"
        with agentdb.open(path) as db:
            table = db.table(SCHEMA)
            taken = seconds(lambda: table.put_many(rows))
            with gate("every row is there"):
                assert table.count() == count
                assert table.get(count // 2)["text"] == rows["text"][count // 2].as_py()
        shutil.rmtree(path)
        return taken

    def peer() -> float:
        path = folder / f"peer{next(number)}.lance"

        def write() -> None:
            lance.write_dataset(rows, str(path))
            fsync_tree(path)

        taken = seconds(write)
        shutil.rmtree(path)
        return taken

    taken = alternate(rounds, agentdb=ours, lance=peer)
    mine, theirs = median(taken["agentdb"]), median(taken["lance"])
    yield Figure(f"put_many of {count:,} x {DIMENSION} against lance.write_dataset, both fsync", theirs / mine, "times", 0.8,
                 higher=True, detail={"s": mine, "lance s": theirs})  # fmt: skip


def overlap(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """200,000 rows of which 100,000 replace a tenth of the million that is there."""
    stored, count, replaced = (20_000, 4_500, 2_000) if quick else (1_000_000, 200_000, 100_000)
    with agentdb.open(folder / "db") as db:
        table = db.table(SCHEMA)
        step = min(stored, 200_000)
        for start in range(0, stored, step):
            table.put_many(_rows(start, step, start))
        rows = _rows(stored - replaced, count, 9)
        taken = seconds(lambda: table.put_many(rows))
        with gate("replaced rows are replaced, new ones are there"):
            assert table.count() == stored - replaced + count
            got = table.get(stored - 1)["vector"]
            assert (got == rows["vector"][replaced - 1].values.to_numpy()).all()

    def append() -> None:
        lance.write_dataset(rows, str(folder / "peer.lance"))
        fsync_tree(folder / "peer.lance")

    peer = seconds(append)
    yield Figure(f"put_many of {count:,}, {replaced:,} of them in place of old rows, into {stored:,}", taken, "s",
                 detail={"lance append s": peer, "times": taken / peer})  # fmt: skip
