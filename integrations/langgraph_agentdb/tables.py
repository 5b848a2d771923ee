"""The tables of checkpoints.

=======================  =================================================================================================
``_langgraph_heads``     per thread and namespace, in SQLite for good: the newest checkpoint, and where its values are. A save
                         and the look-up of the newest checkpoint read nothing else of what may be cold
``_langgraph_rows``      the checkpoints: parent, run, and where their values are
``_langgraph_values``    contents in numbered series, one per channel and one for the bodies of checkpoints, as deltas where
                         they grow (``agentdb.DeltaTable``). Checkpoints share what did not change
``_langgraph_pending``   writes of tasks, in SQLite: they are read and changed while their checkpoint is the newest
``_langgraph_writes``    writes of checkpoints that have been superseded, one row each; maintenance moves them there
``_langgraph_counters``  one row; what it counts is never used twice
=======================  =================================================================================================
"""

from __future__ import annotations

import pyarrow as pa

from agentdb import DeltaTable, TableSchema

__all__ = ["COUNTERS", "HEADS", "ID", "PENDING", "ROWS", "SCOPE", "VALUES", "WRITES"]

SCOPE = ("thread_id", "checkpoint_ns")
_SCOPE_FIELDS = [pa.field(name, pa.string(), nullable=False) for name in SCOPE]
_ID_FIELDS = [*_SCOPE_FIELDS, pa.field("checkpoint_id", pa.string(), nullable=False)]
ID = (*SCOPE, "checkpoint_id")

HEADS = TableSchema(
    "_langgraph_heads",
    [
        *_SCOPE_FIELDS,
        # Numbers of its series begin above the counter shifted by 32 bits: a thread that is deleted and begun again has others.
        pa.field("counter", pa.int64(), nullable=False),
        # Changes whenever anything is removed: what was read before may be gone.
        pa.field("generation", pa.int64(), nullable=False),
        pa.field("newest", pa.string(), nullable=False),
        pa.field("parent", pa.string()),
        # The newest checkpoint whose writes were moved to the table of superseded ones.
        pa.field("moved", pa.string(), nullable=False),
        # series -> [last number, barrier, where the newest checkpoint's content is: see _Ref]
        pa.field("series", pa.binary(), nullable=False),
    ],
    key=SCOPE,
    hot_only=True,
)
ROWS = TableSchema(
    "_langgraph_rows",
    [
        *_ID_FIELDS,
        pa.field("parent", pa.string()),
        pa.field("run_id", pa.string()),
        # [series -> _Ref, channels whose value is rebuilt from the writes of ancestors]
        pa.field("contents", pa.binary(), nullable=False),
    ],
    key=ID,
    indexed="run_id",
)
VALUES = TableSchema(
    "_langgraph_values",
    [
        *_SCOPE_FIELDS,
        pa.field("series", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        *DeltaTable.columns(),
    ],
    key=(*SCOPE, "series", "number"),
)
PENDING = TableSchema(
    "_langgraph_pending",
    [
        *_ID_FIELDS,
        # "": of all tasks, until that is much; the others then have rows of their own, and "has_more" says so.
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("has_more", pa.bool_(), nullable=False),
        pa.field("writes", pa.large_binary(), nullable=False),
    ],
    key=(*ID, "task_id"),
    hot_only=True,
)
WRITES = TableSchema("_langgraph_writes", [*_ID_FIELDS, pa.field("writes", pa.large_binary(), nullable=False)], key=ID)
COUNTERS = TableSchema(
    "_langgraph_counters",
    [pa.field("name", pa.string(), nullable=False), pa.field("value", pa.int64(), nullable=False)],
    key="name",
    hot_only=True,
)
