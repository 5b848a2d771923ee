"""How upkeep runs: step by step, each planned in a snapshot and written in one transaction, and void if others were quicker.

What takes long, embedders and plug-ins, is asked between the two, outside every lock.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from agentdb.errors import AgentDBError, ClosedError
from agentdb.filters import And, In
from agentdb.memory.compression import clusters_of, compressed_into, is_still_due, summary_of
from agentdb.memory.core import MemoryCore
from agentdb.memory.embedding import AT_RECALL, MemoryEmbedding
from agentdb.memory.erasure import Eraser
from agentdb.memory.maintenance import (
    STEP_ROWS,
    MaintenanceReport,
    MemoryChange,
    Plan,
    compare_settled,
    idle_working,
    plan_consolidation,
    plan_forgetting,
)
from agentdb.memory.policies import ContradictionRule
from agentdb.memory.ports import FactExtractor, Statement
from agentdb.memory.records import MemoryWrite, content_text
from agentdb.memory.resident import AgentRows
from agentdb.memory.rows import equals, plain, statement_of
from agentdb.memory.summaries import ExtractiveSummariser
from agentdb.memory.writing import Writer
from agentdb.types import Row

__all__ = ["BackgroundUpkeep", "Upkeep"]

log = logging.getLogger("agentdb.memory")

_VAIN_STEPS = 32
"""Steps in a row that others may undo by changing what they rest on, before upkeep lets them have their way."""
_MODEL_ROWS = 8
"""Memories that one step consolidates where each costs calls of plug-ins."""
_CLUSTERS = 16
"""Clusters that are looked for at once; each is written by itself."""
_BACKGROUND_ROWS = 32
"""Memories that one step in the background consolidates or archives."""
_LEFT_WORKING = "working memory of a session that has ended"
_ALL = 1 << 40
_LOOK_EVERY_S = 300.0
"""How often it is looked which agents are due."""
_KEPT_CHANGES, _KEPT_NOTES = 1_000, 100
_REASON_CHARS = 200
_AS_EVENTS = {"merged": "archived", "compressed": "archived", "closed": "updated"}
"""How a change by upkeep is called in a memory's history, where it is one that callers make as well."""


@dataclass(slots=True)
class _Run:
    """One agent's upkeep under way.

    Attributes:
        agent_id: whose.
        rows: the agent's memories, as far as upkeep needs them.
        began_at: when.
        limit: how many changes may be made.
        left: how many of them are left.
        step_rows: memories that one step deals with, at most.
        is_complete: whether all was done; False as soon as it is clear that it will not be.
        notes: see `MaintenanceReport`.
    """

    agent_id: str
    rows: AgentRows
    began_at: datetime
    limit: int
    left: int
    step_rows: int = STEP_ROWS
    is_complete: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many changes the next step may make."""
        return min(self.step_rows, self.left)


_Done = tuple[list[MemoryChange], bool]
"""What a step did, and whether nothing of its kind is left to do."""


class Upkeep:
    """Keeps up the memories of a database."""

    def __init__(self, core: MemoryCore, embedding: MemoryEmbedding, writer: Writer, eraser: Eraser) -> None:
        self._core = core
        self._embedding = embedding
        self._writer = writer
        self._eraser = eraser

    def run(self, agent_id: str | None, limit: int) -> MaintenanceReport:
        """See `AgentMemories.maintain`."""
        changes: list[MemoryChange] = []
        notes: list[str] = []
        for agent in [] if self._core.is_empty else self.agents() if agent_id is None else [agent_id]:
            run = self.begin(agent, limit=limit - len(changes))
            for done in self.steps(run):
                changes += done
            notes += run.notes
            if not run.is_complete:
                return MaintenanceReport(tuple(changes), is_complete=False, notes=_distinct(notes))
        return MaintenanceReport(tuple(changes), notes=_distinct(notes))

    def agents(self) -> list[str]:
        """Return the agents that have memories, sorted."""
        return sorted({row["agent_id"] for row in self._core.tables.heads.scan(columns=["agent_id"])})

    def begin(self, agent_id: str, *, limit: int, step_rows: int = STEP_ROWS) -> _Run:
        """Return an agent's upkeep, to be given to `steps`. It holds rows of its own, so that no recall waits for it."""
        name, dimension = self._embedding.space_or_none()
        table, device = self._core.tables.memories, self._core.device
        rows = AgentRows(table, agent_id, name, dimension, for_upkeep=True, device=device)
        return _Run(agent_id, rows, self._core.now(), limit, limit, step_rows)

    def steps(self, run: _Run) -> Iterator[list[MemoryChange]]:
        """Do an agent's upkeep, and yield after every step what it did; whoever stops here stops between two transactions."""
        for step in (self._leave_working, self._consolidate, self._compress, self._archive, self._purge):
            is_done, vain = False, 0
            while not is_done:
                if run.left <= 0 or vain == _VAIN_STEPS:
                    run.is_complete = False
                    return
                done, is_done = step(run)
                vain = 0 if done else vain + 1
                run.left -= len(done)
                yield done

    # --- the steps ----------------------------------------------------------------------------------------------------

    def _leave_working(self, run: _Run) -> _Done:
        """Move working memory of sessions that have ended: nothing was added to it for a while, and nothing pushes it out."""
        core, now = self._core, self._core.now()
        with core.engine.snapshot(), run.rows.lock:
            if not run.rows.advance():
                return [], False
            ids, is_all = idle_working(run.rows, core.policies, now, run.size)

        def work() -> list[str]:
            rows = [row for row in core.tables.memories.get_many(ids) if row is not None and row["tier"] == "working"]
            low = [row["id"] for row in rows if row["importance"] < core.policies.archive_importance_below]
            core.change([row["id"] for row in rows], {"tier": "short_term"}, "moved", _LEFT_WORKING)
            core.change(low, {"status": "archived"}, "archived", "its importance is below the bound")
            return [row["id"] for row in rows]

        moved = core.engine.transact(work) if ids else []
        return [MemoryChange(one, "moved", _LEFT_WORKING) for one in moved], is_all

    def _consolidate(self, run: _Run) -> _Done:
        if not run.rows.has_embedder:
            return [], True  # nothing can be compared: short-term memory waits
        core, policies, extractor = self._core, self._core.policies, self._core.policies.extractor
        most = min(AT_RECALL, 4 * run.step_rows)
        is_embedded = self._embedding.embed_waiting(run.rows, most) < most
        is_fast = extractor is None and isinstance(policies.contradiction, ContradictionRule)
        now, limit = core.now(), run.size if is_fast else min(run.size, _MODEL_ROWS)
        with core.engine.snapshot(), run.rows.lock:
            if not run.rows.advance():
                return [], False
            compared, is_all = compare_settled(run.rows, core.tables.memories.get_many, policies, now, limit)
        plan = plan_consolidation(compared, policies, self._judged(run))
        if extractor is not None:
            rows = {one.row["id"]: one.row for one in compared}
            for change in [one for one in plan.changes if one.action == "moved"]:
                self._extract(run, plan, rows[change.memory_id], extractor)
        done = self._apply(plan)
        return ([], False) if done is None else (done, is_embedded and (is_all or not done))

    def _judged(self, run: _Run) -> Callable[[Statement, Statement, float], str | None]:
        policies = self._core.policies
        judge, rule = policies.contradiction, ContradictionRule()
        if isinstance(judge, ContradictionRule):
            return judge.supersedes

        def supersedes(newer: Statement, older: Statement, cosine: float) -> str | None:
            if cosine < judge.cosine:
                return None
            return self._core.guard.call(
                "contradiction judge",
                lambda: _checked_reason(judge.supersedes(newer, older, cosine)),
                lambda: rule.supersedes(newer, older, cosine),
                timeout_s=policies.plugin_timeout_s,
                notes=run.notes,
            )

        return supersedes

    def _extract(self, run: _Run, plan: Plan, row: Row, extractor: FactExtractor) -> None:
        """Add to a plan what is known for good from a memory that moves; nothing, where the extractor fails."""
        if row["origin"] is not None:
            return
        facts = self._core.guard.call(
            "fact extractor",
            lambda: _checked_facts(extractor.facts(statement_of(row))),
            list[str],
            timeout_s=self._core.policies.plugin_timeout_s,
            notes=run.notes,
        )
        for fact in facts:
            write = MemoryWrite(
                content=fact,
                agent_id=row["agent_id"],
                user_id=row["user_id"],
                namespace=row["namespace"],
                memory_type="semantic",
                importance=row["importance"],
                role=row["role"],
                speaker=row["speaker"],
                occurred_at=row["occurred_at"] or row["recorded_at"],
            )
            plan.derived.append(self._writer.derive(write, "fact", [row["id"]]))

    def _compress(self, run: _Run) -> _Done:
        core = self._core
        if core.policies.compression is None or not run.rows.has_embedder:
            return [], True
        now = core.now()
        with core.engine.snapshot(), run.rows.lock:
            if not run.rows.advance():
                return [], False
            uses_of = core.tables.uses.get_many
            many = _CLUSTERS if isinstance(core.policies.summariser, ExtractiveSummariser) else 1
            clusters, is_all = clusters_of(run.rows, uses_of, core.policies, now, many)
        done: list[MemoryChange] = []
        for ids in clusters:
            fitting = ids[: run.left - len(done) - 1]  # one change is the summary's own
            if len(fitting) < 2:
                if not done and run.left == run.limit:
                    return [], True  # no run is allowed so many changes: clusters are left alone
                run.left = len(done)  # nothing more: the next run goes on here
                return done, False
            done += self._compress_cluster(run, fitting)
        return done, is_all or not done

    def _compress_cluster(self, run: _Run, ids: Sequence[str]) -> list[MemoryChange]:
        core, rule = self._core, self._core.policies.compression
        now = core.now()
        with core.engine.snapshot():
            rows = [row for row in core.tables.memories.get_many(ids) if row is not None]
            uses = core.tables.uses.get_many(ids)
        if rule is None or len(rows) < len(ids):
            return []
        if not all(is_still_due(row, use, rule, now) for row, use in zip(rows, uses, strict=True)):
            return []  # somebody needed one of them since the cluster was found
        text = self._summary(run, [statement_of(row) for row in rows])
        summary = self._writer.derive(summary_of(rows, text), "summary", ids)
        plan = Plan(seen={row["id"]: row for row in rows}, uses=dict(zip(ids, uses, strict=True)))
        plan.derived.append(summary)
        for one in ids:
            plan.change(one, "compressed", compressed_into(summary["id"]), status="archived")
        return self._apply(plan) or []

    def _summary(self, run: _Run, statements: Sequence[Statement]) -> str:
        policies = self._core.policies
        summariser, rule = policies.summariser, ExtractiveSummariser()
        if isinstance(summariser, ExtractiveSummariser):
            return summariser.summarise(statements)
        size = sum(len(one.text) for one in statements)
        return self._core.guard.call(
            "summariser",
            lambda: _checked_summary(summariser.summarise(statements), size),
            lambda: rule.summarise(statements),
            timeout_s=policies.plugin_timeout_s,
            notes=run.notes,
        )

    def _archive(self, run: _Run) -> _Done:
        core, now = self._core, self._core.now()
        with core.engine.snapshot(), run.rows.lock:
            if not run.rows.advance():
                return [], False
            plan, is_all = plan_forgetting(run.rows, core.tables.uses.get_many, core.policies, now, run.size)
        done = self._apply(plan)
        return ([], False) if done is None else (done, is_all or not done)

    def _purge(self, run: _Run) -> _Done:
        after_s = self._core.policies.retention.purge_after_s
        if after_s is None:
            return [], True
        now, tables = self._core.now(), self._core.tables
        archived = And(equals("agent_id", run.agent_id), equals("status", "archived"))
        since = {row["id"]: row["recorded_at"] for row in tables.memories.scan(archived, columns=["id", "recorded_at"])}
        ids = list(since)
        for start in range(0, len(ids), STEP_ROWS):
            some = In(("memory_id",), tuple(ids[start : start + STEP_ROWS]))
            for event in tables.events.scan(some, columns=["memory_id", "at", "action"]):
                if event["action"] == "archived":
                    since[event["memory_id"]] = max(since[event["memory_id"]], event["at"])
        old = sorted(one for one, at in since.items() if (now - at).total_seconds() >= after_s)
        doomed = old[: run.size]
        purged = self._eraser.purge(doomed) if doomed else []
        reason = f"archived for more than {after_s:g} s"
        return [MemoryChange(one, "purged", reason) for one in purged], len(old) <= run.size

    def _apply(self, plan: Plan) -> list[MemoryChange] | None:
        """Write a plan and return what was done; None if somebody else has changed what it rests on: nothing is written then."""
        core, tables = self._core, self._core.tables

        def work() -> list[MemoryChange] | None:
            now = core.now()
            if tables.memories.get_many(list(plan.seen)) != list(plan.seen.values()):
                return None
            if tables.uses.get_many(list(plan.uses)) != list(plan.uses.values()):
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
            uses = {row["id"]: dict(row) for row in core.uses_of(list(dict.fromkeys(one for one, _ in repeated)))}
            for one, at in repeated:
                uses[one]["uses"] += 1
                uses[one]["last_used_at"] = max(uses[one]["last_used_at"], at)
            tables.uses.put_many(uses.values())
            core.note(events, now)
            self._writer.place(plan.derived, now)
            return done + [
                MemoryChange(row["id"], "derived", f"{row['origin']} of {', '.join(row['sources'])}")
                for row in plan.derived
            ]

        return core.engine.transact(work) if plan.rows else []


class BackgroundUpkeep:
    """Keeps up agent after agent in the background, each once in a while, in steps between which the database rests.

    A thread of its own does it, since a model may take long: the job of the engine's maintenance starts it, and waits for it no
    longer than it was told to. The thread ends with the first step that ends behind the deadline; the next job goes on from there.
    """

    def __init__(self, core: MemoryCore, embedding: MemoryEmbedding, upkeep: Upkeep) -> None:
        self._core = core
        self._embedding = embedding
        self._upkeep = upkeep
        self._mutex = threading.Lock()
        self._worker: threading.Thread | None = None
        self._stop = threading.Event()
        self._due: deque[str] = deque()
        self._current: tuple[_Run, Iterator[list[MemoryChange]]] | None = None
        self._next_look = -math.inf
        self._changes: deque[MemoryChange] = deque(maxlen=_KEPT_CHANGES)
        self._notes: deque[str] = deque(maxlen=_KEPT_NOTES)

    def report(self) -> MaintenanceReport:
        """See `AgentMemories.upkeep_report`."""
        with self._mutex:
            is_idle = self._current is None and not self._due
            return MaintenanceReport(tuple(self._changes), is_idle, _distinct(self._notes))

    def run(self, deadline: float) -> bool:
        """Work until the deadline; whether there is more to do. A maintenance job."""
        if self._core.policies.upkeep_every_s is None or not self._embedding.was_asked or self._core.is_empty:
            return False
        with self._mutex:
            if self._worker is None or not self._worker.is_alive():
                self._stop = threading.Event()
                self._worker = threading.Thread(
                    target=self._work, args=(deadline, self._stop), name="agentdb-memories", daemon=True
                )
                self._worker.start()
            worker = self._worker
        worker.join(max(deadline - time.monotonic(), 0.0))
        return worker.is_alive() or not self.report().is_complete

    def stop(self, timeout_s: float) -> None:
        """End after the step at hand, and wait so long for that."""
        with self._mutex:
            self._stop.set()
            worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join(timeout_s)

    def _work(self, deadline: float, stop: threading.Event) -> None:
        try:
            while not stop.is_set() and self._step() and time.monotonic() < deadline:
                pass
        except ClosedError:
            return  # between two steps; what is left is done when the database is open again
        except AgentDBError as error:
            self._give_up(f"upkeep failed: {error}")
        except Exception as error:
            log.exception("upkeep of memories failed")
            self._give_up(f"upkeep failed: {type(error).__name__}")

    def _give_up(self, note: str) -> None:
        """Leave the agent at hand for the next round: the others are no worse for it."""
        log.warning("%s", note)
        with self._mutex:
            self._notes.append(note)
            self._current = None

    def _step(self) -> bool:
        """Do one step; whether there is another."""
        if self._current is None and not self._begin():
            return False
        assert self._current is not None
        run, steps = self._current
        done = next(steps, None)
        if done is None and run.is_complete and run.rows.has_embedder:  # another process may have one, and more to do
            self._core.tables.upkeep.put({"agent_id": run.agent_id, "kept_at": run.began_at})
        with self._mutex:
            self._changes += done or ()
            self._notes += run.notes
            run.notes.clear()
            if done is None:
                self._current = None
        return True

    def _begin(self) -> bool:
        """Begin with the next agent that is due; False if none is."""
        if not self._due and time.monotonic() >= self._next_look:
            agents = self._upkeep.agents()
            if agents:  # the first memory may be on its way: it must not wait for the second look
                self._next_look = time.monotonic() + _LOOK_EVERY_S
            due = [one for one in agents if self._is_due(one)]
            with self._mutex:
                self._due += due
        while self._due:
            with self._mutex:
                agent_id = self._due.popleft()
            if self._is_due(agent_id):  # another process may have been quicker
                run = self._upkeep.begin(agent_id, limit=_ALL, step_rows=_BACKGROUND_ROWS)
                self._current = run, self._upkeep.steps(run)
                return True
        return False

    def _is_due(self, agent_id: str) -> bool:
        every_s = self._core.policies.upkeep_every_s
        row = self._core.tables.upkeep.get(agent_id)
        return every_s is not None and (row is None or (self._core.now() - row["kept_at"]).total_seconds() >= every_s)


def _distinct(notes: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))


def _checked_reason(reason: object) -> str | None:
    if reason is not None and not isinstance(reason, str):
        raise ValueError("no reason and no None")
    return reason[:_REASON_CHARS] if reason else None


def _checked_facts(facts: object) -> list[str]:
    if isinstance(facts, str) or not isinstance(facts, Iterable):
        raise TypeError("no list of facts")
    found = [one for one in facts if not isinstance(one, str) or one.strip()]
    for one in found:
        if content_text(one)[1] is not None:
            raise ValueError("a fact that is no text")
    return found


def _checked_summary(summary: object, size: int) -> str:
    if not isinstance(summary, str) or not summary.strip() or len(summary) > size:
        raise ValueError("no summary: empty, or longer than what it sums up")
    return content_text(summary.strip())[0]
