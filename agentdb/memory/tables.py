"""How memories lie in tables.

A memory is one row of ``_memories``. What use changes often (how many times, when last) is a row of ``_memory_uses``, which stays in
SQLite. ``_memory_heads`` knows of every session what came last and what is working memory, so that remembering reads no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = ["MEMORIES", "MemoryTables"]

_TIMESTAMP = pa.timestamp("us", tz="UTC")

MEMORIES = TableSchema(
    "_memories",
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("agent_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string()),
        pa.field("namespace", pa.string()),
        pa.field("session_id", pa.string()),
        # Its place in its session, from 1; gaps where memories were erased.
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("tier", pa.string(), nullable=False),
        pa.field("memory_type", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("importance", pa.float64(), nullable=False),
        pa.field("role", pa.string()),
        pa.field("speaker", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        # Canonical JSON of a content that is no plain text.
        pa.field("data", pa.string()),
        pa.field("metadata", pa.json_()),
        pa.field("occurred_at", _TIMESTAMP),
        pa.field("valid_from", _TIMESTAMP),
        pa.field("valid_to", _TIMESTAMP),
        pa.field("recorded_at", _TIMESTAMP, nullable=False),
        pa.field("retracted_at", _TIMESTAMP),
        pa.field("origin", pa.string()),
        pa.field("sources", pa.list_(pa.string())),
        # The words of what is found by: see `agentdb.vectors.analysis`.
        pa.field("terms", pa.binary()),
        # Bytes, because they have no dimension before there is an embedder; which one made them, by name.
        pa.field("embedder", pa.string()),
        pa.field("vector", pa.binary()),
        pa.field("tokens", pa.binary()),
    ],
    key="id",
    indexed=("agent_id", "session_id"),
)
HEADS = TableSchema(
    "_memory_heads",
    [
        pa.field("agent_id", pa.string(), nullable=False),
        pa.field("scope", pa.string(), nullable=False),
        pa.field("last_ordinal", pa.int64(), nullable=False),
        # JSON text: ids of the newest memories, oldest first.
        pa.field("newest", pa.string(), nullable=False),
        # JSON text: [id, tokens] of working memories, oldest first.
        pa.field("working", pa.string(), nullable=False),
    ],
    key=("agent_id", "scope"),
    hot_only=True,
)
USES = TableSchema(
    "_memory_uses",
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uses", pa.int64(), nullable=False),
        pa.field("last_used_at", _TIMESTAMP, nullable=False),
        pa.field("repeats", pa.int64(), nullable=False),
    ],
    key="id",
    hot_only=True,
)
REPEATS = TableSchema(
    "_memory_repeats",
    # What was said in a session, by a digest: where an exact repeat belongs.
    [
        pa.field("agent_id", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("memory_id", pa.string(), nullable=False),
    ],
    key=("agent_id", "digest"),
    indexed="memory_id",
)
OCCURRENCES = TableSchema(
    "_memory_occurrences",
    # Every time after the first.
    [
        pa.field("memory_id", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("recorded_at", _TIMESTAMP, nullable=False),
        pa.field("occurred_at", _TIMESTAMP),
        pa.field("metadata", pa.string()),
    ],
    key=("memory_id", "number"),
)
EVENTS = TableSchema(
    "_memory_events",
    [
        pa.field("memory_id", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("at", _TIMESTAMP, nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("before", pa.string()),
    ],
    key=("memory_id", "number"),
)


UPKEEP = TableSchema(
    "_memory_upkeep",
    # When an agent's memories were kept up for the last time, by whichever process.
    [
        pa.field("agent_id", pa.string(), nullable=False),
        pa.field("kept_at", _TIMESTAMP, nullable=False),
    ],
    key="agent_id",
    hot_only=True,
)
_DEPENDENT = (HEADS, USES, REPEATS, OCCURRENCES, EVENTS, UPKEEP)


@dataclass(frozen=True, slots=True)
class MemoryTables:
    """The tables of the Memory Manager."""

    memories: Table
    heads: Table
    uses: Table
    repeats: Table
    occurrences: Table
    events: Table
    upkeep: Table

    @classmethod
    def exist(cls, engine: Engine) -> bool:
        """Whether anything was ever remembered here: the table that is created last is there."""
        return engine._entry(MEMORIES.name) is not None

    @classmethod
    def of(cls, engine: Engine) -> MemoryTables:
        """Return the tables; all are created where they do not exist."""
        if not cls.exist(engine):

            def create() -> None:
                for schema in (*_DEPENDENT, MEMORIES):
                    engine.table(schema)

            engine.transact(create)
        return cls(engine.table(MEMORIES), *(engine.table(schema) for schema in _DEPENDENT))
