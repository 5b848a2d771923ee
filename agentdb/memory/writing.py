"""How memories are written: checked, given their place in their session, embedded, stored; and changed afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from agentdb.errors import InvalidInputError
from agentdb.memory.core import Event, MemoryCore
from agentdb.memory.embedding import MemoryEmbedding
from agentdb.memory.encoding import Reading
from agentdb.memory.policies import HeuristicImportance
from agentdb.memory.ports import Statement
from agentdb.memory.records import (
    Memory,
    MemoryWrite,
    Origin,
    Scope,
    check_importance,
    check_interval,
    check_optional_moment,
    check_optional_name,
    check_tier,
    check_type,
    content_text,
)
from agentdb.memory.rows import check_ids, digest_of, scope_of, searched, spoken
from agentdb.memory.sessions import Head, head_key, heads_of
from agentdb.states.versions import check_identifier, check_metadata
from agentdb.types import Row
from agentdb.vectors.analysis import encode_terms

__all__ = ["UNCHANGED", "Unchanged", "Writer"]


class Unchanged:
    """The default of what `AgentMemories.update` leaves as it is."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged()


@dataclass(slots=True)
class _Draft:
    """A checked write on its way into the tables."""

    row: Row
    scope: Scope
    digest: str
    metadata: dict[str, Any] | None
    repeats: str | None = None
    """The id of the memory that it repeats."""


class Writer:
    """Writes and changes the memories of a database."""

    def __init__(self, core: MemoryCore, embedding: MemoryEmbedding) -> None:
        self._core = core
        self._embedding = embedding

    # --- remembering --------------------------------------------------------------------------------------------------

    def remember(self, write: MemoryWrite) -> Memory:
        """See `AgentMemories.remember`."""
        return self._remember([self._draft(write)])[0]

    def remember_many(self, writes: Iterable[MemoryWrite]) -> list[Memory]:
        """See `AgentMemories.remember_many`."""
        drafts = []
        items: Iterable[object] = writes
        for position, one in enumerate(items):
            if not isinstance(one, MemoryWrite):
                raise InvalidInputError(f"writes[{position}] must be a MemoryWrite, not {type(one).__name__}")
            try:
                drafts.append(self._draft(one))
            except InvalidInputError as error:
                raise InvalidInputError(f"writes[{position}]: {error}") from None
        return self._remember(drafts) if drafts else []

    def _draft(self, write: MemoryWrite) -> _Draft:
        scope = Scope.of(write.agent_id, write.user_id, write.namespace, write.session_id)
        text, data = content_text(write.content)
        role, speaker = check_optional_name("role", write.role), check_optional_name("speaker", write.speaker)
        valid_from = check_optional_moment("valid_from", write.valid_from)
        valid_to = check_optional_moment("valid_to", write.valid_to)
        check_interval(valid_from, valid_to)
        metadata = check_metadata(write.metadata)
        policies = self._core.policies
        occurred_at = check_optional_moment("occurred_at", write.occurred_at)
        if write.importance is None:
            importance = self._importance(Statement(text, role, speaker, occurred_at))
        else:
            importance = check_importance(write.importance)
        tier = "short_term" if write.tier is None else check_tier(write.tier)
        is_kept = tier == "working" or write.importance is not None or importance >= policies.archive_importance_below
        row: Row = {
            "id": self._core.engine.config.id_source(),
            "agent_id": scope.agent_id,
            "user_id": scope.user_id,
            "namespace": scope.namespace,
            "session_id": scope.session_id,
            "ordinal": 0,
            "tier": tier,
            "memory_type": None if write.memory_type is None else check_type(write.memory_type),
            "status": "active" if is_kept else "archived",
            "importance": importance,
            "role": role,
            "speaker": speaker,
            "text": text,
            "data": data,
            "metadata": metadata,
            "occurred_at": occurred_at,
            "valid_from": valid_from,
            "valid_to": valid_to,
            "recorded_at": None,
            "retracted_at": None,
            "origin": None,
            "sources": None,
            "terms": None,
            "embedder": None,
            "vector": None,
            "tokens": None,
        }
        return _Draft(row, scope, digest_of(row), metadata)

    def _importance(self, statement: Statement) -> float:
        policies = self._core.policies
        scorer = policies.importance
        if isinstance(scorer, HeuristicImportance):
            return scorer.importance(statement)
        return self._core.guard.call(
            "importance scorer",
            lambda: check_importance(scorer.importance(statement)),
            lambda: HeuristicImportance().importance(statement),
            timeout_s=policies.plugin_timeout_s,
        )

    def _remember(self, drafts: Sequence[_Draft]) -> list[Memory]:
        rows = [one.row for one in drafts]
        for row, terms in zip(rows, encode_terms([searched(row) for row in rows]).to_pylist(), strict=True):
            row["terms"] = terms
        # Outside the write lock: an embedder takes its time. Whoever writes in the same session meanwhile is no context.
        read = self._embedding.fill(rows, of=[row for row in rows if row["tier"] != "working"])
        self._core.engine.transact(lambda: self._store(drafts, read))
        return self._core.read([one.repeats or one.row["id"] for one in drafts])

    def _store(self, drafts: Sequence[_Draft], read: Sequence[str]) -> None:
        """Give drafts their places and put them into the tables; inside a transaction, perhaps for the second time."""
        now, tables = self._core.now(), self._core.tables
        if read and None in tables.memories.get_many(read):  # erased meanwhile: no vector may have read it
            for one in drafts:
                one.row.update(dict.fromkeys(("embedder", "vector", "tokens")))
        heads = heads_of(tables.heads, [one.scope for one in drafts])
        known = self._known([(one.scope.agent_id, one.digest) for one in drafts if heads[head_key(one.scope)].last])
        rows: dict[str, Row] = {}
        repeated: list[_Draft] = []
        for one in drafts:
            digest = one.scope.agent_id, one.digest
            said = known.get(digest)
            one.repeats = said["id"] if said is not None and _is_repeat(one.row, said, now) else None
            if one.repeats is not None:
                repeated.append(one)
                continue
            memory_id, head = one.row["id"], heads[head_key(one.scope)]
            rows[memory_id] = {**one.row, "ordinal": head.append(memory_id), "recorded_at": now}
            if one.row["tier"] == "working":
                head.hold(memory_id, one.row["text"])
            known[digest] = rows[memory_id]
        tables.repeats.put_many(
            {"agent_id": agent_id, "digest": digest, "memory_id": row["id"]}
            for (agent_id, digest), row in known.items()
            if row["id"] in rows
        )
        tables.memories.put_many(rows.values())
        for head in heads.values():
            self._leave_working(head, now)
        tables.heads.put_many(head.row() for head in heads.values())
        self._repeat(repeated, now)

    def _known(self, digests: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Row]:
        """Return which memories stand for what was said; archived and retracted ones do not, nor those that say something else by now."""
        tables = self._core.tables
        found = [row for row in tables.repeats.get_many(digests) if row is not None] if digests else []
        rows = tables.memories.get_many([row["memory_id"] for row in found]) if found else []
        return {
            (row["agent_id"], row["digest"]): memory
            for row, memory in zip(found, rows, strict=True)
            if memory is not None
            and memory["status"] == "active"
            and memory["retracted_at"] is None
            and digest_of(memory) == row["digest"]
        }

    def _repeat(self, drafts: Sequence[_Draft], now: datetime) -> None:
        ids = list(dict.fromkeys(one.repeats for one in drafts if one.repeats is not None))
        uses = {row["id"]: dict(row) for row in self._core.uses_of(ids)}
        occurrences = []
        for one in drafts:
            assert one.repeats is not None
            use = uses[one.repeats]
            use["uses"] += 1
            use["repeats"] += 1
            use["last_used_at"] = max(now, use["last_used_at"])
            occurrences.append(
                {
                    "memory_id": one.repeats,
                    "number": use["repeats"],
                    "id": one.row["id"],
                    "recorded_at": now,
                    "occurred_at": one.row["occurred_at"],
                    "metadata": None if one.metadata is None else json.dumps(one.metadata),
                }
            )
        self._core.tables.uses.put_many(uses.values())
        self._core.tables.occurrences.put_many(occurrences)

    def _leave_working(self, head: Head, now: datetime) -> None:
        """Move the oldest working memories of a session on until the rest is within the policy's bounds."""
        policies, memories = self._core.policies, self._core.tables.memories
        leaving = head.overflow(policies.working_items, policies.working_tokens)
        if not leaving:
            return
        changed: list[Row] = []
        events: list[Event] = []
        for row in memories.get_many(leaving):
            if row is None or row["tier"] != "working":
                continue
            row["tier"] = "short_term"
            events.append((row["id"], "moved", "the session's working memory is full", {"tier": "working"}))
            if row["status"] == "active" and row["importance"] < policies.archive_importance_below:
                row["status"] = "archived"
                events.append((row["id"], "archived", "its importance is below the bound", {"status": "active"}))
            changed.append(row)
        memories.put_many(changed)
        self._core.note(events, now)

    # --- what upkeep derives ------------------------------------------------------------------------------------------

    def derive(self, write: MemoryWrite, origin: Origin, sources: Sequence[str]) -> Row:
        """Return a new memory that was derived from others, embedded where that is possible, to be given to `place`."""
        row = {**self._draft(write).row, "origin": origin, "sources": list(sources)}
        row["terms"] = encode_terms([searched(row)]).to_pylist()[0]
        if vectors := self._embedding.attempt([Reading(spoken(row))]):
            row.update(vectors[0])
        return row

    def place(self, rows: Sequence[Row], now: datetime) -> None:
        """Store derived memories at the ends of their sessions; inside a transaction. None of them repeats another."""
        tables = self._core.tables
        heads = heads_of(tables.heads, [scope_of(row) for row in rows])
        tables.memories.put_many(
            {**row, "ordinal": heads[head_key(scope_of(row))].append(row["id"]), "recorded_at": now} for row in rows
        )
        tables.heads.put_many(head.row() for head in heads.values())

    # --- changing -----------------------------------------------------------------------------------------------------

    def update(self, memory_id: str, given: Mapping[str, Any], reason: str) -> Memory:
        """Change what is given of a memory; see `AgentMemories.update`.

        Args:
            memory_id: which.
            given: its parameters by name; those that are `UNCHANGED` stay as they are.
            reason: why, in words.
        """
        memory_id = check_identifier("memory_id", memory_id)
        changes = _changes({name: value for name, value in given.items() if value is not UNCHANGED})
        _check_reason(reason)
        if not changes:
            raise InvalidInputError("give something to change")
        if "text" in changes:
            row = {**self._core.tables.memories.require(memory_id), **changes}
            changes["terms"] = encode_terms([searched(row)]).to_pylist()[0]
            changes.update(dict.fromkeys(("embedder", "vector", "tokens")))
            if row["tier"] != "working" and (vectors := self._embedding.attempt([Reading(spoken(row))])):
                changes.update(vectors[0])
        self._core.engine.transact(lambda: self._core.change([memory_id], changes, "updated", reason))
        return self._core.read([memory_id])[0]

    def set_status(self, memory_ids: str | Iterable[str], status: str, reason: str) -> int:
        """Archive memories or bring them back; return how many were not so already."""
        ids = check_ids(memory_ids)
        _check_reason(reason)
        action = "archived" if status == "archived" else "restored"
        if not ids:
            return 0

        def work() -> int:
            if status == "active":  # or else upkeep would archive them again, for what they were archived for
                rows = self._core.tables.memories.get_many(ids)
                self._core.count_use([row["id"] for row in rows if row is not None and row["status"] != status])
            return self._core.change(ids, {"status": status}, action, reason)

        return self._core.engine.transact(work)


def _is_repeat(row: Row, said: Row, now: datetime) -> bool:
    """Whether a memory that says the same to the letter adds nothing: what has ended and is said again is true anew."""
    ends, begins = said["valid_to"], row["valid_from"] or row["occurred_at"] or now
    return (
        row["valid_from"] in (None, said["valid_from"])
        and row["valid_to"] in (None, ends)
        and (ends is None or row["valid_to"] is not None or ends > begins)
    )


def _changes(given: Mapping[str, Any]) -> Row:
    """Return the columns that a change of a memory is made of."""
    changes: Row = {}
    for name, value in given.items():
        if name == "content":
            changes["text"], changes["data"] = content_text(value)
        elif name == "importance":
            changes[name] = check_importance(value)
        elif name == "metadata":
            changes[name] = check_metadata(value)
        elif name == "memory_type":
            changes[name] = None if value is None else check_type(value)
        elif name == "tier":
            changes[name] = check_tier(value)
        else:
            changes[name] = check_optional_moment(name, value)
    return changes


def _check_reason(reason: object) -> None:
    if not isinstance(reason, str):
        raise InvalidInputError(f"reason must be a str, not {type(reason).__name__}")
