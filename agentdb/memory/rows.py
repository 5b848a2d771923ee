"""Rows of the memory tables as callers and rules see them: what is read of them, what they are found by, which ones a scope holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any

from agentdb.errors import InvalidInputError
from agentdb.filters import Compare, Filter, In, IsNull, decode_json
from agentdb.memory.policies import MemoryType
from agentdb.memory.ports import Statement
from agentdb.memory.records import Memory, Occurrence, Scope, Tier, check_tier, check_type
from agentdb.memory.tables import MEMORIES
from agentdb.states.versions import check_identifier
from agentdb.types import Row

__all__ = [
    "HIDDEN",
    "READ",
    "check_ids",
    "digest_of",
    "equals",
    "memory_of",
    "plain",
    "scope_filters",
    "scope_of",
    "searched",
    "several",
    "spoken",
    "statement_of",
    "tokens_of",
]

HIDDEN = frozenset({"terms", "embedder", "vector", "tokens"})
"""Columns that are derived from the others: no caller sees them, no history holds them."""
READ = [c.name for c in MEMORIES.columns if c.name not in HIDDEN | {"ordinal"}]
"""What a `Memory` is made of."""
_CHARS_PER_TOKEN = 4
_MONTHS = (
    "January February March April May June July August September October November December".split()  # noqa: SIM905
)


def spoken(row: Mapping[str, Any]) -> str:
    """Return what an embedder reads of a memory: the text, behind the name of who said it."""
    return f"{row['speaker']}: {row['text']}" if row["speaker"] else str(row["text"])


def searched(row: Mapping[str, Any]) -> str:
    """Return the words by which a memory is found: what was said, by whom, on which date."""
    at: datetime | None = row["occurred_at"]
    said = spoken(row)
    return said if at is None else f"{said} {at.day} {_MONTHS[at.month - 1]} {at.year}"


def tokens_of(text: str) -> int:
    """Return about how many tokens a text has, without a model."""
    return len(text) // _CHARS_PER_TOKEN + 1


def digest_of(row: Mapping[str, Any]) -> str:
    """Return what an exact repeat of a memory has in common with it."""
    said = [row[name] for name in ("user_id", "namespace", "session_id", "role", "speaker", "text", "data")]
    return blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def statement_of(row: Mapping[str, Any]) -> Statement:
    """Return a memory as rules and plug-ins see it."""
    return Statement(row["text"], row["role"], row["speaker"], row["occurred_at"])


def scope_of(row: Mapping[str, Any]) -> Scope:
    """Return whose a memory is, its session included."""
    return Scope(row["agent_id"], row["user_id"], row["namespace"], row["session_id"])


def plain(value: Any) -> Any:
    """Return a value of a row as JSON can hold it."""
    return value.isoformat() if isinstance(value, datetime) else value


def memory_of(row: Row, use: Row | None, more: Sequence[Occurrence]) -> Memory:
    """Return a row as callers hold it, with how it was used and the times it was given after the first."""
    metadata = row["metadata"] or {}
    first = Occurrence(row["id"], row["recorded_at"], row["occurred_at"], metadata)
    values = {name: row[name] for name in READ if name not in ("data", "sources", "metadata")}
    return Memory(
        **values,
        content=row["text"] if row["data"] is None else decode_json(row["data"]),
        metadata=metadata,
        sources=tuple(row["sources"] or ()),
        occurrences=(first, *more),
        uses=1 if use is None else use["uses"],
        last_used_at=row["recorded_at"] if use is None else use["last_used_at"],
    )


# --- conditions -------------------------------------------------------------------------------------------------------


def equals(name: str, value: object) -> Filter:
    """Return the condition that a column has a value, None being one."""
    return IsNull((name,)) if value is None else Compare((name,), "eq", value)


def scope_filters(
    scope: Scope, tiers: Iterable[Tier] | None = None, types: Iterable[MemoryType] | None = None
) -> list[Filter]:
    """Return the conditions that every memory of a scope meets."""
    parts = [
        equals("agent_id", scope.agent_id),
        equals("user_id", scope.user_id),
        equals("namespace", scope.namespace),
    ]
    if scope.session_id is not None:
        parts.append(equals("session_id", scope.session_id))
    if tiers is not None:
        parts.append(In(("tier",), tuple(check_tier(one) for one in several("tiers", tiers))))
    if types is not None:
        parts.append(In(("memory_type",), tuple(check_type(one) for one in several("types", types))))
    return parts


def several(name: str, values: Iterable[Any]) -> list[Any]:
    """Return the items of an argument that must be a list, a text being none."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidInputError(f"{name} must be a list, not {type(values).__name__}")
    return list(values)


def check_ids(memory_ids: str | Iterable[str]) -> list[str]:
    """Return one id or many as a list, each once."""
    given = [memory_ids] if isinstance(memory_ids, str) else several("memory_ids", memory_ids)
    return list(dict.fromkeys(check_identifier("memory_id", one) for one in given))
