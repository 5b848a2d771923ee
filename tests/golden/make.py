"""Makes the stored database of the current format version, and says what it holds.

    python tests/golden/make.py [directory]

Run it once per format version, and never again for an old one: what it made is read for ever.
"""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pyarrow as pa

import agentdb
from agentdb import Config
from agentdb.storage.hot import FORMAT_VERSION

HERE = Path(__file__).parent
START = datetime(2025, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)


def config() -> Config:
    """Everything that the database asks for is determined."""
    ticks, numbers = count(), count(1)
    return Config(
        maintenance=False,
        clock=lambda: START + timedelta(seconds=next(ticks)),
        id_source=lambda: f"{next(numbers):032x}",
        close_flush_rows=1_000_000,
        bulk_rows=25,
        bulk_bytes=1,
    )


EVERY = agentdb.TableSchema(
    "every",
    pa.schema(
        [
            pa.field("name", pa.string(), nullable=False),
            pa.field("number", pa.int64(), nullable=False),
            pa.field("large", pa.large_string()),
            pa.field("flag", pa.bool_()),
            pa.field("i8", pa.int8()),
            pa.field("i16", pa.int16()),
            pa.field("i32", pa.int32()),
            pa.field("u8", pa.uint8()),
            pa.field("u16", pa.uint16()),
            pa.field("u32", pa.uint32()),
            pa.field("u64", pa.uint64()),
            pa.field("f32", pa.float32()),
            pa.field("f64", pa.float64()),
            pa.field("blob", pa.binary()),
            pa.field("at", pa.timestamp("us", tz="UTC")),
            pa.field("day", pa.date32()),
            pa.field("words", pa.list_(pa.string())),
            pa.field("vector", pa.list_(pa.float32(), 4)),
            pa.field("half", pa.list_(pa.float16(), 2)),
            pa.field("meta", pa.json_()),
        ]
    ),
    key=["name", "number"],
    indexed=["i32"],
)
HOT = agentdb.TableSchema(
    "hot", pa.schema([pa.field("k", pa.binary(), nullable=False), pa.field("v", pa.string())]), key=["k"], hot_only=True
)
EMPTY = agentdb.TableSchema("empty", pa.schema([pa.field("k", pa.date32(), nullable=False)]), key=["k"])


def every(i: int, generation: int = 0) -> dict[str, Any]:
    """Return row `i`; every fifth is null wherever it may be."""
    row: dict[str, Any] = dict.fromkeys(NAMES)
    row |= {"name": f"näme-{i % 3}\x00\x01" if i % 7 == 0 else f"name-{i % 3}", "number": i - 10}
    if i % 5 == 0:
        return row
    return row | {
        "large": f"large {i} {generation} \N{SNOWMAN}",
        "flag": i % 2 == 0,
        "i8": i % 100 - 50,
        "i16": -i * 300,
        "i32": i * 70_000 + generation,
        "u8": i % 256,
        "u16": i * 600,
        "u32": i * 40_000_000,
        "u64": (1 << 64) - 1 - i,
        "f32": i / 4,
        "f64": i * 1e100,
        "blob": bytes(range(i % 32)),
        "at": START + timedelta(days=i, microseconds=i),
        "day": date(1970, 1, 1) + timedelta(days=i * 100 - 500),
        "words": [f"w{j}" for j in range(i % 4)],
        "vector": np.array([i, generation, 0.5, -1], np.float32),
        "half": np.array([i / 2, 1], np.float16),
        "meta": {"i": i, "tags": ["a", f"t{i % 4}"], "deep": {"x": [None, True, 1.5, "\N{SNOWMAN}"]}, "g": generation},
    }


NAMES = [
    *("name", "number", "large", "flag", "i8", "i16", "i32", "u8", "u16", "u32", "u64", "f32", "f64", "blob"),
    *("at", "day", "words", "vector", "half", "meta"),
]


def later(row: dict[str, Any], value: Any = None) -> dict[str, Any]:
    """Return a row after columns were added."""
    return row | {"added": value}


def expected() -> dict[str, list[dict[str, Any]]]:
    """Return every row that the database of `make` holds, in key order."""
    rows = {(one["name"], one["number"]): one for one in (every(i) for i in range(20))}
    rows |= {(one["name"], one["number"]): one for one in (every(i, 1) for i in range(15, 45))}
    rows = {key: later(one) for key, one in rows.items()}
    for i in (3, 25, 44):
        del rows[every(i)["name"], every(i)["number"]]
    for i in (1, 45, 46):
        one = later(every(i, 2), f"added {i}")
        rows[one["name"], one["number"]] = one
    return {
        "every": [rows[key] for key in sorted(rows)],
        "hot": [{"k": bytes([i, 0, 255]), "v": f"v{i}"} for i in range(1, 4)],
        "empty": [],
    }


STATES = [{"step": n, "messages": [f"message {m}" for m in range(n)], "raw": b"\x00\xff"} for n in range(1, 13)]


def make(path: Path) -> None:
    """Several Lance versions, pending rows and tombstones, dropped tables, and states with deltas."""
    with agentdb.open(path, config=config()) as db:
        table, hot = db.table(EVERY), db.table(HOT)
        db.table(EMPTY)
        table.put_many([every(i) for i in range(20)])
        db.flush()
        table.put_many([every(i, 1) for i in range(15, 45)])  # in bulk
        hot.put_many([{"k": bytes([i, 0, 255]), "v": f"v{i}"} for i in range(4)])
        hot.delete(bytes([0, 0, 255]))
        gone = db.table(agentdb.TableSchema("gone", pa.schema([pa.field("k", pa.int64(), nullable=False)]), key=["k"]))
        gone.put({"k": 1})
        db.drop_table("gone")
        table.delete((every(3)["name"], every(3)["number"]))
        for state in STATES[:9]:
            db.states.save("agent", "session", "context", state, metadata={"n": state["step"]})
        db.flush()
        table.add_columns([pa.field("added", pa.string())])
        # These wait in the hot tier.
        for i in (25, 44):
            table.delete((every(i)["name"], every(i)["number"]))
        table.put_many([later(every(i, 2), f"added {i}") for i in (1, 45, 46)])
        for state in STATES[9:]:
            db.states.save("agent", "session", "context", state, metadata={"n": state["step"]})
        db.states.save("agent", "other", "task", {"done": True})
    connection = apsw.Connection(str(path / "agentdb.sqlite"))
    connection.execute("PRAGMA incremental_vacuum").fetchall()
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    connection.close()
    for left in ("agentdb.sqlite-wal", "agentdb.sqlite-shm"):
        (path / left).unlink(missing_ok=True)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / f"v{FORMAT_VERSION}"
    if target.exists():
        sys.exit(f"{target} exists: a stored format is never made again")
    make(target)
    print(f"{target}: {sum(one.stat().st_size for one in target.rglob('*') if one.is_file())} bytes")
