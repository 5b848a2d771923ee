"""Upkeep of memories: which move to long-term memory, are merged, closed or archived, and why.

One step looks at a bounded number of memories of one agent and commits all its changes at once, so it can be killed between any two
lines and begun again: a memory that was dealt with is not looked at again. Without a language model; nothing is rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

from agentdb.memory.policies import MemoryPolicies, Statement, Use
from agentdb.memory.resident import AgentRows
from agentdb.types import Row

__all__ = ["MaintenanceReport", "MemoryChange", "Plan", "activations", "plan_consolidation", "plan_forgetting"]

STEP_ROWS = 128
"""Memories that one step consolidates."""
NEIGHBOURS = 16
"""Memories of its scope that each of them is compared with: the nearest in meaning."""

Action = Literal["moved", "merged", "closed", "archived", "purged"]


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """What upkeep did to one memory.

    Attributes:
        memory_id: which.
        action: ``"moved"`` to long-term memory, ``"merged"`` into another (and archived), ``"closed"``: its validity ended,
            ``"archived"`` or ``"purged"``.
        reason: why, in words; names the other memory where there is one.
    """

    memory_id: str
    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """What a run of upkeep did, in the order in which it happened; empty when there was nothing to do.

    Attributes:
        changes: every memory that was touched, and why.
        is_complete: whether all is done; False: the limit was reached, and another run goes on from there.
    """

    changes: tuple[MemoryChange, ...] = ()
    is_complete: bool = True


@dataclass(slots=True)
class Plan:
    """What one step is going to write."""

    changes: list[MemoryChange] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    """By id, the columns that change."""
    repeated: list[tuple[str, datetime]] = field(default_factory=list)
    """Memories that were said again, and when: a merge is a use of what it is merged into."""

    seen: dict[str, Row] = field(default_factory=dict)
    """The memories that were compared, as they stood: if one of them has changed since, the plan is void."""

    def change(self, memory_id: str, action: Action, reason: str, **columns: object) -> None:
        """Add a change, and the columns that it is made of."""
        self.changes.append(MemoryChange(memory_id, action, reason))
        self.rows.setdefault(memory_id, {}).update(columns)


def activations(
    rows: AgentRows,
    slots: npt.NDArray[np.int64],
    uses: Sequence[Row | None],
    policies: MemoryPolicies,
    now: datetime,
) -> npt.NDArray[np.float64]:
    """Return `[n]` how much is left of memories at a time."""
    recorded = rows.number("recorded_at")[slots] / 1e6
    last, count = recorded.copy(), np.ones(len(slots))
    for i, row in enumerate(uses):
        if row is not None:
            last[i], count[i] = row["last_used_at"].timestamp(), row["uses"]
    long_term = rows.number("tier")[slots] == rows.code("tier", "long_term")
    half_life_s = np.full(len(slots), policies.short_term_half_life_s)
    types = rows.number("memory_type")[slots]
    half_life_s[long_term] = policies.half_life_s["episodic"]
    for one, its in policies.half_life_s.items():
        half_life_s[long_term & (types == rows.code("memory_type", one))] = its
    moment = now.timestamp()
    return policies.decay.activation(Use.of(moment - last, moment - recorded, count), half_life_s)


def plan_forgetting(
    rows: AgentRows,
    uses_of: Callable[[list[str]], Sequence[Row | None]],
    policies: MemoryPolicies,
    now: datetime,
    limit: int,
) -> tuple[Plan, bool]:
    """Return what is to be archived, least retained first, and whether that is all. Working memory is not looked at."""
    active = rows.live & (rows.number("status") == rows.code("status", "active"))
    slots = np.flatnonzero(active & (rows.number("tier") != rows.code("tier", "working")))
    plan = Plan()
    if not len(slots):
        return plan, True
    activation = activations(rows, slots, uses_of([rows.ids[i] for i in slots.tolist()]), policies, now)
    importance = rows.importance[slots]
    doomed = np.flatnonzero(policies.retention.archives(activation, importance))
    left = policies.retention.retention(activation, importance)
    for i in doomed[np.argsort(left[doomed], kind="stable")][:limit].tolist():
        reason = f"retention {left[i]:.2f} is below {policies.retention.archive_below:.2f}"
        plan.change(rows.ids[slots[i]], "archived", reason, status="archived")
    return plan, len(doomed) <= limit


def plan_consolidation(
    rows: AgentRows,
    read: Callable[[list[str]], Sequence[Row | None]],
    policies: MemoryPolicies,
    now: datetime,
    limit: int,
) -> tuple[Plan, bool]:
    """Return what settled short-term memories become, oldest first, and whether that is all of them.

    Each moves to long-term memory, unless it says the same as an older one there: then that one gets it as a source, and it is
    archived. What it overtakes ends when it begins. Only memories of the same user and namespace are compared.
    """
    settled = (now.timestamp() - policies.consolidate_after_s) * 1e6
    active = rows.live & (rows.number("status") == rows.code("status", "active"))
    # What could not be embedded yet cannot be compared: it waits.
    chosen = active & rows.embedded & (rows.number("tier") == rows.code("tier", "short_term"))
    chosen &= rows.number("recorded_at") <= settled
    chosen &= rows.number("retracted_at") == np.iinfo(np.int64).max
    slots = np.flatnonzero(chosen)
    slots = slots[np.lexsort((rows.number("ordinal")[slots], rows.number("recorded_at")[slots]))]
    plan, mine = Plan(), slots[:limit]
    least = min(policies.duplicate.cosine, policies.contradiction.cosine)
    merged: set[int] = set()
    for slot in mine.tolist():
        memory_id = rows.ids[slot]
        older = _older_neighbours(rows, active, slot, merged, least)
        found = read([memory_id, *(rows.ids[one] for one, _ in older)])
        row = found[0]
        if row is None:
            continue
        plan.seen.update((it["id"], it) for it in found if it is not None)
        others = [(it, cosine) for it, (_, cosine) in zip(found[1:], older, strict=True) if it is not None]
        if _consolidate(plan, row, others, policies):
            merged.add(slot)
        else:
            memory_type = row["memory_type"] or "episodic"
            plan.change(memory_id, "moved", "settled in short-term memory", tier="long_term", memory_type=memory_type)
    return plan, len(slots) <= limit


def _older_neighbours(
    rows: AgentRows, active: npt.NDArray[np.bool_], slot: int, merged: set[int], least: float
) -> list[tuple[int, float]]:
    """Return the nearest memories of the same walls that were recorded before, with their cosines, nearest first: those that a rule may say something about."""
    recorded, ordinal = rows.number("recorded_at"), rows.number("ordinal")
    before = (recorded < recorded[slot]) | ((recorded == recorded[slot]) & (ordinal < ordinal[slot]))
    same = active & rows.embedded & before & (rows.number("scope") == rows.number("scope")[slot])
    same &= rows.number("tier") != rows.code("tier", "working")
    others = np.setdiff1d(np.flatnonzero(same), list(merged))
    cosines = rows.vectors(others) @ rows.vectors(np.array([slot]))[0]
    best = np.argsort(-cosines, kind="stable")[:NEIGHBOURS]
    return [(int(others[i]), float(cosines[i])) for i in best.tolist() if cosines[i] >= least]


def _consolidate(plan: Plan, row: Row, older: Sequence[tuple[Row, float]], policies: MemoryPolicies) -> bool:
    """Compare a memory with older ones; whether it is merged into one of them."""
    mine = _statement(row)
    for other, cosine in older:
        pending = plan.rows.get(other["id"], {})
        reason = policies.contradiction.supersedes(mine, _statement(other), cosine)
        if reason is None and policies.duplicate.is_duplicate(mine, _statement(other), cosine):
            sources = list(pending.get("sources") or other["sources"] or [])
            plan.change(row["id"], "merged", f"says the same as {other['id']}", status="archived")
            plan.rows.setdefault(other["id"], {})["sources"] = [*sources, row["id"]]
            plan.repeated.append((other["id"], row["recorded_at"]))
            return True
        begins = row["valid_from"] or row["occurred_at"] or row["recorded_at"]
        starts, ends = other["valid_from"], pending.get("valid_to", other["valid_to"])
        if reason is not None and (ends is None or ends > begins) and (starts is None or starts < begins):
            plan.change(other["id"], "closed", f"{reason}: {row['id']}", valid_to=begins)
            if row["valid_from"] is None:
                plan.rows.setdefault(row["id"], {})["valid_from"] = begins  # one interval ends where the other begins
    return False


def _statement(row: Row) -> Statement:
    return Statement(row["text"], row["role"], row["speaker"])
