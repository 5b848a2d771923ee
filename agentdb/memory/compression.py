"""Which old episodes are about the same thing, and what the summary that takes their place is like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from agentdb.memory.policies import CompressionRule, MemoryPolicies
from agentdb.memory.records import MemoryWrite
from agentdb.memory.resident import FOREVER, NEVER, AgentRows
from agentdb.memory.similarity import leaders
from agentdb.types import Row

__all__ = ["clusters_of", "compressed_into", "is_still_due", "summary_of"]

_WINDOW = 2_048
"""Episodes that are compared with each other at once, oldest first."""


def clusters_of(
    rows: AgentRows,
    uses_of: Callable[[list[str]], Sequence[Row | None]],
    policies: MemoryPolicies,
    now: datetime,
    limit: int,
) -> tuple[list[list[str]], bool]:
    """Return clusters of episodes that are to become a summary each, oldest first, and whether those are all.

    Episodes of one user and namespace, in long-term memory, whose validity nobody has set: what is known to be true from or until
    some day is a fact, and stays as it is. So does what upkeep derived itself.

    Args:
        rows: the agent's memories.
        uses_of: reads how memories were used.
        policies: the rules.
        now: the time.
        limit: at most so many clusters.

    Returns:
        Ids in the order in which they happened.
    """
    rule = policies.compression
    if rule is None:
        return [], True
    slots = _candidates(rows, rule, now)
    unused = _unused([rows.ids[slot] for slot in slots.tolist()], uses_of, rule, now)
    slots = slots[unused]
    found: list[list[str]] = []
    scopes = rows.number("scope")[slots]
    for scope in np.unique(scopes).tolist():
        own = slots[scopes == scope]
        for start in range(0, len(own), _WINDOW):
            window = own[start : start + _WINDOW]
            near = leaders(rows.vectors(window), rule.cosine, least=rule.least, most=rule.most, device=rows.device)
            for members in near:
                if len(found) == limit:
                    return found, False
                found.append([rows.ids[window[at]] for at in members])
    return found, True


def _candidates(rows: AgentRows, rule: CompressionRule, now: datetime) -> Any:
    chosen = rows.live & rows.embedded & (rows.number("status") == rows.code("status", "active"))
    chosen &= rows.number("tier") == rows.code("tier", "long_term")
    chosen &= rows.number("memory_type") == rows.code("memory_type", "episodic")
    chosen &= (rows.number("valid_from") == NEVER) & (rows.number("valid_to") == FOREVER)
    chosen &= (rows.number("retracted_at") == FOREVER) & (rows.number("origin") < 0)
    chosen &= rows.importance < rule.importance_below
    chosen &= rows.number("recorded_at") <= (now.timestamp() - rule.after_s) * 1e6
    slots = np.flatnonzero(chosen)
    return slots[np.lexsort((rows.number("ordinal")[slots], rows.number("recorded_at")[slots]))]


def _unused(
    ids: list[str], uses_of: Callable[[list[str]], Sequence[Row | None]], rule: CompressionRule, now: datetime
) -> Any:
    """Return `[n]`: which memories were used seldom, and not lately."""
    return np.fromiter((_is_unused(one, rule, now) for one in uses_of(ids)), np.bool_, len(ids))


def _is_unused(use: Row | None, rule: CompressionRule, now: datetime) -> bool:
    if use is None:
        return True  # written, never used
    return bool(use["uses"] <= rule.most_uses and (now - use["last_used_at"]).total_seconds() >= rule.after_s)


def is_still_due(row: Row, use: Row | None, rule: CompressionRule, now: datetime) -> bool:
    """Whether a memory of a cluster, read again, is still one that `clusters_of` chooses."""
    return (
        (row["status"], row["tier"], row["memory_type"]) == ("active", "long_term", "episodic")
        and all(row[name] is None for name in ("valid_from", "valid_to", "retracted_at", "origin"))
        and row["importance"] < rule.importance_below
        and _is_unused(use, rule, now)
    )


def summary_of(sources: Sequence[Row], text: str) -> MemoryWrite:
    """Return the memory that a summary is: as important as its most important source, as late as its latest."""
    first = sources[0]
    moments = [row["occurred_at"] or row["recorded_at"] for row in sources]
    roles, sessions = ({row[name] for row in sources} for name in ("role", "session_id"))
    return MemoryWrite(
        content=text,
        agent_id=first["agent_id"],
        user_id=first["user_id"],
        namespace=first["namespace"],
        session_id=next(iter(sessions)) if len(sessions) == 1 else None,
        memory_type="semantic",
        tier="long_term",
        importance=max(row["importance"] for row in sources),
        metadata={
            "memories": len(sources),
            "first_occurred_at": min(moments).isoformat(),
            "last_occurred_at": max(moments).isoformat(),
        },
        role=next(iter(roles)) if len(roles) == 1 else None,
        occurred_at=max(moments),
    )


def compressed_into(summary_id: str) -> str:
    """Return why a memory is archived that a summary stands for."""
    return f"summarised in {summary_id}"
