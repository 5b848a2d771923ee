"""Upkeep of memories: which move to long-term memory, are merged, closed or archived, and why.

One step looks at a bounded number of memories of one agent and commits all its changes at once, so it can be killed between any two
lines and begun again: a memory that was dealt with is not looked at again. Pure: what is to be written is a `Plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

from agentdb.memory.policies import MemoryPolicies, Use
from agentdb.memory.ports import Statement
from agentdb.memory.resident import AgentRows
from agentdb.memory.rows import statement_of
from agentdb.memory.similarity import nearest_before
from agentdb.types import Row

__all__ = [
    "STEP_ROWS",
    "Compared",
    "MaintenanceReport",
    "MemoryChange",
    "Plan",
    "activations",
    "compare_settled",
    "idle_working",
    "plan_consolidation",
    "plan_forgetting",
]

STEP_ROWS = 128
"""Memories that one step consolidates."""
NEIGHBOURS = 16
"""Memories of its scope that each of them is compared with: the nearest in meaning."""

Action = Literal["moved", "merged", "closed", "derived", "compressed", "archived", "purged"]


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """What upkeep did to one memory.

    Attributes:
        memory_id: which.
        action: ``"moved"`` to long-term memory, ``"merged"`` into another (and archived), ``"closed"``: its validity ended,
            ``"derived"``: new, a summary or a fact, ``"compressed"`` into a summary (and archived), ``"archived"`` or
            ``"purged"``.
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
        notes: what did not go as it should, such as a plug-in that failed and whose place a rule took.
    """

    changes: tuple[MemoryChange, ...] = ()
    is_complete: bool = True
    notes: tuple[str, ...] = ()


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

    derived: list[Row] = field(default_factory=list)
    """New memories."""
    uses: dict[str, Row | None] = field(default_factory=dict)
    """How memories had been used that are to go for lack of use: if one was used since, the plan is void."""

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


def idle_working(rows: AgentRows, policies: MemoryPolicies, now: datetime, limit: int) -> tuple[list[str], bool]:
    """Return working memories of sessions that have ended, oldest first, and whether those are all."""
    latest = (now.timestamp() - policies.working_idle_s) * 1e6
    working = rows.live & (rows.number("tier") == rows.code("tier", "working"))
    slots = np.flatnonzero(working & (rows.number("recorded_at") <= latest))
    slots = slots[np.lexsort((rows.number("ordinal")[slots], rows.number("recorded_at")[slots]))]
    return [rows.ids[slot] for slot in slots[:limit].tolist()], len(slots) <= limit


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
    uses = uses_of([rows.ids[i] for i in slots.tolist()])
    activation = activations(rows, slots, uses, policies, now)
    importance = rows.importance[slots]
    doomed = np.flatnonzero(policies.retention.archives(activation, importance))
    left = policies.retention.retention(activation, importance)
    for i in doomed[np.argsort(left[doomed], kind="stable")][:limit].tolist():
        reason = f"retention {left[i]:.2f} is below {policies.retention.archive_below:.2f}"
        plan.change(rows.ids[slots[i]], "archived", reason, status="archived")
        plan.uses[rows.ids[slots[i]]] = uses[i]
    return plan, len(doomed) <= limit


@dataclass(frozen=True, slots=True)
class Compared:
    """A settled memory, and the older ones of its walls that are near it in meaning, nearest first."""

    row: Row
    older: Sequence[tuple[Row, float]]


def compare_settled(
    rows: AgentRows,
    read: Callable[[list[str]], Sequence[Row | None]],
    policies: MemoryPolicies,
    now: datetime,
    limit: int,
) -> tuple[list[Compared], bool]:
    """Return short-term memories that have settled, oldest first, beside what they are to be compared with; whether that is all.

    Only memories of the same user and namespace are compared.
    """
    settled = (now.timestamp() - policies.consolidate_after_s) * 1e6
    active = rows.live & (rows.number("status") == rows.code("status", "active"))
    # What could not be embedded yet cannot be compared: it waits.
    chosen = active & rows.embedded & (rows.number("tier") == rows.code("tier", "short_term"))
    chosen &= rows.number("recorded_at") <= settled
    chosen &= rows.number("retracted_at") == np.iinfo(np.int64).max
    slots = np.flatnonzero(chosen)
    if not len(slots):
        return [], True
    order = np.lexsort((rows.number("ordinal"), rows.number("recorded_at")))
    age = np.empty(rows.size, np.int64)
    age[order] = np.arange(rows.size)
    mine = slots[np.argsort(age[slots])][:limit]
    stands = active & rows.embedded & (rows.number("retracted_at") == np.iinfo(np.int64).max)
    others = np.flatnonzero(stands & (rows.number("tier") != rows.code("tier", "working")))
    least = min(policies.duplicate.cosine, policies.contradiction.cosine)
    near: dict[int, list[tuple[int, float]]] = {}
    for scope in np.unique(rows.number("scope")[mine]).tolist():
        own, its = (some[rows.number("scope")[some] == scope] for some in (mine, others))
        before = age[its] < age[own][:, None]
        found = nearest_before(
            rows.vectors(own), rows.vectors(its), before, NEIGHBOURS, least, device=rows.device
        )  # fmt: skip
        for slot, best in zip(own.tolist(), found, strict=True):
            near[slot] = [(int(its[at]), cosine) for at, cosine in best]
    needed = list(dict.fromkeys(slot for slot in mine.tolist() for slot in (slot, *(one for one, _ in near[slot]))))
    known = dict(zip(needed, read([rows.ids[slot] for slot in needed]), strict=True))
    compared = []
    for slot in mine.tolist():
        row = known[slot]
        if row is not None:
            older = [(it, cosine) for one, cosine in near[slot] if (it := known[one]) is not None]
            compared.append(Compared(row, older))
    return compared, len(slots) <= limit


def plan_consolidation(
    compared: Sequence[Compared],
    policies: MemoryPolicies,
    supersedes: Callable[[Statement, Statement, float], str | None],
) -> Plan:
    """Return what settled memories become.

    Each moves to long-term memory, unless it says the same as an older one there: then that one gets it as a source, and it is
    archived. What it overtakes ends when it begins.

    Args:
        compared: oldest first.
        policies: the rules.
        supersedes: the judge of contradictions.
    """
    plan = Plan()
    merged: set[str] = set()
    for one in compared:
        older = [(row, cosine) for row, cosine in one.older if row["id"] not in merged]
        plan.seen.update((row["id"], row) for row in (one.row, *(row for row, _ in older)))
        if _consolidate(plan, one.row, older, policies, supersedes):
            merged.add(one.row["id"])
        else:
            memory_type = one.row["memory_type"] or "episodic"
            plan.change(
                one.row["id"], "moved", "settled in short-term memory", tier="long_term", memory_type=memory_type
            )
    return plan


def _consolidate(
    plan: Plan,
    row: Row,
    older: Sequence[tuple[Row, float]],
    policies: MemoryPolicies,
    supersedes: Callable[[Statement, Statement, float], str | None],
) -> bool:
    """Compare a memory with older ones; whether it is merged into one of them."""
    mine = statement_of(row)
    for other, cosine in older:
        pending = plan.rows.get(other["id"], {})
        begins = row["valid_from"] or row["occurred_at"] or row["recorded_at"]
        ends = pending.get("valid_to", other["valid_to"])
        # What was true once and is said again after it had ended is true anew: it must not end up in the ended one.
        is_one_truth = (ends is None or ends > begins) and row["valid_to"] in (None, ends)
        reason = supersedes(mine, statement_of(other), cosine)
        if reason is None and is_one_truth and policies.duplicate.is_duplicate(mine, statement_of(other), cosine):
            sources = list(pending.get("sources") or other["sources"] or [])
            if row["id"] in sources:
                continue  # it was merged before, and somebody wanted it back
            plan.change(row["id"], "merged", f"says the same as {other['id']}", status="archived")
            plan.rows.setdefault(other["id"], {})["sources"] = [*sources, row["id"]]
            plan.repeated.append((other["id"], row["recorded_at"]))
            return True
        is_over = row["valid_to"] is not None and row["valid_to"] <= begins
        if reason is not None and not is_over and (ends is None or ends > begins) and _was_before(other, begins):
            plan.change(other["id"], "closed", f"{reason}: {row['id']}", valid_to=begins)
            if row["valid_from"] is None:
                plan.rows.setdefault(row["id"], {})["valid_from"] = begins  # one interval ends where the other begins
    return False


def _was_before(row: Row, begins: datetime) -> bool:
    """Whether a memory was true before a moment: what was recorded earlier may tell of a later time."""
    if row["valid_from"] is not None:
        return bool(row["valid_from"] < begins)
    return bool((row["occurred_at"] or row["recorded_at"]) <= begins)
