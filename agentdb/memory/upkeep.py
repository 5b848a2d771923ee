"""How upkeep runs: step by step, each planned in a snapshot and written in one transaction, and void if others were quicker."""

from __future__ import annotations

from agentdb.errors import MissingDependencyError
from agentdb.filters import And, In
from agentdb.memory.core import MemoryCore
from agentdb.memory.embedding import AT_RECALL, MemoryEmbedding
from agentdb.memory.erasure import Eraser
from agentdb.memory.maintenance import (
    STEP_ROWS,
    MaintenanceReport,
    MemoryChange,
    Plan,
    plan_consolidation,
    plan_forgetting,
)
from agentdb.memory.rows import equals, plain

__all__ = ["Upkeep"]

_VAIN_STEPS = 32
"""Steps in a row that others may undo by changing what they rest on, before upkeep lets them have their way."""
_AS_EVENTS = {"merged": "archived", "closed": "updated"}
"""How a change by upkeep is called in a memory's history, where it is one that callers make as well."""

_Done = tuple[list[MemoryChange], bool]
"""What a step did, and whether nothing of its kind is left to do."""


class Upkeep:
    """Keeps up the memories of a database."""

    def __init__(self, core: MemoryCore, embedding: MemoryEmbedding, eraser: Eraser) -> None:
        self._core = core
        self._embedding = embedding
        self._eraser = eraser

    def run(self, agent_id: str | None, limit: int) -> MaintenanceReport:
        """See `AgentMemories.maintain`."""
        if self._core.is_empty:
            return MaintenanceReport()
        agents = [agent_id] if agent_id is not None else self._agents()
        changes: list[MemoryChange] = []
        for agent in agents:
            for step in (self._consolidate, self._archive, self._purge):
                is_done, vain = False, 0
                while not is_done:
                    if len(changes) >= limit or vain == _VAIN_STEPS:
                        return MaintenanceReport(tuple(changes), is_complete=False)
                    done, is_done = step(agent, min(STEP_ROWS, limit - len(changes)))
                    vain = 0 if done else vain + 1
                    changes += done
        return MaintenanceReport(tuple(changes))

    def _agents(self) -> list[str]:
        return sorted({row["agent_id"] for row in self._core.tables.heads.scan(columns=["agent_id"])})

    def _consolidate(self, agent_id: str, limit: int) -> _Done:
        try:
            self._embedding.embed_waiting(agent_id, AT_RECALL)
        except MissingDependencyError:
            return [], True  # nothing can be compared: short-term memory waits
        now = self._core.now()
        rows = self._core.resident.agent(agent_id, *self._embedding.space())
        with self._core.engine.snapshot(), rows.lock:
            if not rows.advance():
                return [], False
            memories = self._core.tables.memories
            plan, is_all = plan_consolidation(rows, memories.get_many, self._core.policies, now, limit)
        return self._written(plan, is_all=is_all)

    def _archive(self, agent_id: str, limit: int) -> _Done:
        now = self._core.now()
        rows = self._core.resident.agent(agent_id, *self._embedding.space_or_none())  # fading needs no vectors
        with self._core.engine.snapshot(), rows.lock:
            if not rows.advance():
                return [], False
            plan, is_all = plan_forgetting(rows, self._core.tables.uses.get_many, self._core.policies, now, limit)
        return self._written(plan, is_all=is_all)

    def _written(self, plan: Plan, *, is_all: bool) -> _Done:
        done = self._apply(plan)
        return ([], False) if done is None else (done, is_all or not done)

    def _apply(self, plan: Plan) -> list[MemoryChange] | None:
        """Write a plan and return what was done; None if somebody else has changed what it rests on: nothing is written then."""
        tables = self._core.tables

        def work() -> list[MemoryChange] | None:
            if tables.memories.get_many(list(plan.seen)) != list(plan.seen.values()):
                return None
            found = tables.memories.get_many(list(plan.rows))
            current = {row["id"]: row for row in found if row is not None and row["status"] == "active"}
            done = [one for one in plan.changes if one.memory_id in current]
            events = []
            for change in done:
                row, columns = current[change.memory_id], plan.rows[change.memory_id]
                before = {name: plain(row[name]) for name in columns if name != "sources"}
                events.append((change.memory_id, _AS_EVENTS.get(change.action, change.action), change.reason, before))
            tables.memories.put_many({**row, **plan.rows[one]} for one, row in current.items())
            repeated = [(one, at) for one, at in plan.repeated if one in current]
            uses = {row["id"]: dict(row) for row in self._core.uses_of(list(dict.fromkeys(one for one, _ in repeated)))}
            for one, at in repeated:
                uses[one]["uses"] += 1
                uses[one]["last_used_at"] = max(uses[one]["last_used_at"], at)
            tables.uses.put_many(uses.values())
            self._core.note(events, self._core.now())
            return done

        return self._core.engine.transact(work) if plan.rows else []

    def _purge(self, agent_id: str, limit: int) -> _Done:
        after_s = self._core.policies.retention.purge_after_s
        if after_s is None:
            return [], True
        now, tables = self._core.now(), self._core.tables
        archived = And(equals("agent_id", agent_id), equals("status", "archived"))
        since = {row["id"]: row["recorded_at"] for row in tables.memories.scan(archived, columns=["id", "recorded_at"])}
        ids = list(since)
        for start in range(0, len(ids), STEP_ROWS):
            some = In(("memory_id",), tuple(ids[start : start + STEP_ROWS]))
            for event in tables.events.scan(some, columns=["memory_id", "at", "action"]):
                if event["action"] == "archived":
                    since[event["memory_id"]] = max(since[event["memory_id"]], event["at"])
        old = sorted(one for one, at in since.items() if (now - at).total_seconds() >= after_s)
        doomed = old[:limit]
        if doomed:
            self._eraser.erase(doomed)
        reason = f"archived for more than {after_s:g} s"
        return [MemoryChange(one, "purged", reason) for one in doomed], len(old) <= limit
