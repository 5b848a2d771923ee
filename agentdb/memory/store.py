"""``AgentMemories``: remembering, reading, changing, forgetting and erasing memories.

How they lie in tables is in ``agentdb.memory.tables``, how they are found in ``agentdb.memory.recall``.
"""

from __future__ import annotations

import builtins
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import numpy as np

from agentdb.embedding import Embedder, TokenCounter
from agentdb.errors import InvalidInputError, MissingDependencyError, NotFoundError, StorageError, UnavailableError
from agentdb.filters import And, Compare, Contains, Filter, In, IsNull, decode_json
from agentdb.memory.encoding import CONTEXT_MEMORIES, Encoded, Encoder, QueryVectors, Reading
from agentdb.memory.maintenance import (
    STEP_ROWS,
    MaintenanceReport,
    MemoryChange,
    Plan,
    activations,
    plan_consolidation,
    plan_forgetting,
)
from agentdb.memory.policies import MemoryPolicies, MemoryType, Statement, Use
from agentdb.memory.recall import MemoryContext, Recalled, RecallWeights, Wanted, candidates, combine, within_budget
from agentdb.memory.records import (
    Memory,
    MemoryEvent,
    MemoryTrace,
    MemoryWrite,
    Occurrence,
    Scope,
    Tier,
    check_importance,
    check_interval,
    check_optional_moment,
    check_optional_name,
    check_tier,
    check_type,
    content_text,
)
from agentdb.memory.resident import AgentCache, AgentRows
from agentdb.memory.tables import EVENTS, MEMORIES, OCCURRENCES, USES, MemoryTables
from agentdb.states.versions import check_identifier, check_metadata
from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table
from agentdb.types import ErasureReceipt, Row
from agentdb.vectors.analysis import encode_terms

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = ["UNCHANGED", "AgentMemories"]

_log = logging.getLogger("agentdb.memory")

_READ = [c.name for c in MEMORIES.columns if c.name not in ("terms", "embedder", "vector", "tokens", "ordinal")]
_CHARS_PER_TOKEN = 4
_EMBED_AT_ONCE = 256
_ROWS_AT_ONCE = 512
_VAIN_STEPS = 32
"""Steps in a row that others may undo by changing what they rest on, before upkeep lets them have their way."""
_AS_EVENTS = {"merged": "archived", "closed": "updated"}
"""How a change by upkeep is called in a memory's history, where it is one that callers make as well."""
_PENDING_AT_RECALL = 512
"""Memories that a recall embeds before it answers; what is beyond waits, and is found by its words."""
_MONTHS = (
    "January February March April May June July August September October November December".split()  # noqa: SIM905
)


class _Unchanged:
    """The default of what `AgentMemories.update` leaves as it is."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = _Unchanged()


@dataclass(slots=True)
class _Draft:
    """A checked write on its way into the tables."""

    row: Row
    scope: Scope
    digest: str
    metadata: dict[str, Any] | None
    repeats: str | None = None
    """The id of the memory that it repeats."""


def _eq(name: str, value: object) -> Filter:
    return IsNull((name,)) if value is None else Compare((name,), "eq", value)


def spoken(row: Mapping[str, Any]) -> str:
    """Return what an embedder reads of a memory: the text, behind the name of who said it."""
    who = row["speaker"] or row["role"]
    return f"{who}: {row['text']}" if row["speaker"] else str(row["text"])


def searched(row: Mapping[str, Any]) -> str:
    """Return the words by which a memory is found: what was said, by whom, on which date."""
    at: datetime | None = row["occurred_at"]
    said = spoken(row)
    return said if at is None else f"{said} {at.day} {_MONTHS[at.month - 1]} {at.year}"


class AgentMemories:
    """The memories of all agents of one database.

    Made by the database; every method may be called from any thread. Inside ``db.transaction()`` the calls are part of the
    transaction. Identifiers are strings of 1 to 1,024 characters without NUL; unsigned 64-bit integers are accepted and
    stored as their decimal string.

    A memory's agent, user and namespace are walls: nothing is found, counted or compared across them.

    Attributes:
        policies: the rules of this handle; another `MemoryPolicies` may be put in its place at any time.
    """

    def __init__(
        self,
        engine: Engine,
        embedder: Callable[[], Embedder],
    ) -> None:
        self._engine = engine
        self._config = engine.config
        self._find_embedder = embedder
        self._encoder: Encoder | None = None
        self.policies = MemoryPolicies()
        self._opened: MemoryTables | None = None
        self._cache: AgentCache | None = None

    @property
    def _tables(self) -> MemoryTables:
        """The tables, created at the first need: a database without memories has none, and opening one writes nothing."""
        if self._opened is not None:
            return self._opened
        view = self._engine._core.current()
        if self._is_empty and (self._engine.read_only or (view is not None and not view.writable)):
            raise NotFoundError("this database holds no memories")
        tables = MemoryTables.of(self._engine)
        if view is None or not view.writable:
            self._opened = tables  # otherwise they may go with the transaction
        return tables

    @property
    def _is_empty(self) -> bool:
        """Whether nothing was ever remembered here."""
        return self._opened is None and not MemoryTables.exist(self._engine)

    @property
    def _rows(self) -> AgentCache:
        if self._cache is None:
            self._cache = AgentCache(self._tables.memories, self._config.resident_bytes)
        return self._cache

    def _now(self) -> datetime:
        moment: datetime = self._config.clock()
        return moment.astimezone(UTC)

    # --- remembering --------------------------------------------------------------------------------------------------

    def remember(
        self,
        content: Any,
        *,
        agent_id: str | int,
        user_id: str | int | None = None,
        session_id: str | int | None = None,
        namespace: str | int | None = None,
        memory_type: MemoryType | None = None,
        tier: Tier | None = None,
        importance: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        role: str | None = None,
        speaker: str | None = None,
        occurred_at: datetime | None = None,
        valid_from: datetime | None = None,
        valid_to: datetime | None = None,
    ) -> Memory:
        """Store one memory, word for word, durable when this returns, and return it.

        What was said before in the same session by the same speaker, to the letter, becomes another occurrence of that memory,
        with an id and metadata of its own: the last of ``Memory.occurrences``. Nothing else is merged, and nothing dropped.

        A working memory costs no embedding until it leaves. Any other is embedded now, together with the two before it in its
        session; if no embedder is installed, or it fails, the memory is stored all the same and found by its words, and is
        embedded by a later call of `embed_pending`.

        Args:
            content: a text, or JSON: a mapping or list. An image goes by reference, and is found by its caption.
            agent_id: whose memory.
            user_id: about, or from, which user.
            session_id: in which conversation; memories of one are each other's context, in the order in which they come.
            namespace: a wall within the agent.
            memory_type: ``"episodic"``, ``"semantic"`` or ``"procedural"``; None: open.
            tier: ``"working"``, ``"short_term"`` (default) or ``"long_term"``.
            importance: 0 to 1; None: estimated by the policy.
            metadata: a JSON object.
            role: ``"user"``, ``"assistant"``, ...
            speaker: by name; read and searched with the text.
            occurred_at: when it was said or happened.
            valid_from: since when it is true.
            valid_to: until when, that moment excluded.

        Raises:
            InvalidInputError: an argument cannot be stored; the message names which.
        """
        write = MemoryWrite(
            content=content,
            agent_id=agent_id,
            user_id=user_id,
            session_id=session_id,
            namespace=namespace,
            memory_type=memory_type,
            tier=tier,
            importance=importance,
            metadata=metadata,
            role=role,
            speaker=speaker,
            occurred_at=occurred_at,
            valid_from=valid_from,
            valid_to=valid_to,
        )
        return self._remember([self._draft(write)])[0]

    def remember_many(self, writes: Iterable[MemoryWrite]) -> builtins.list[Memory]:
        """Store many memories, all or none, as `remember` does one after the other, and return them; far faster.

        Raises:
            InvalidInputError: as `remember`; the message begins with the position.
        """
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
        if write.importance is None:
            importance = check_importance(self.policies.importance.importance(Statement(text, role, speaker)))
        else:
            importance = check_importance(write.importance)
        tier = "short_term" if write.tier is None else check_tier(write.tier)
        is_kept = tier == "working" or write.importance is not None or importance >= self._least_importance
        row: Row = {
            "id": self._config.id_source(),
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
            "occurred_at": check_optional_moment("occurred_at", write.occurred_at),
            "valid_from": valid_from,
            "valid_to": valid_to,
            "recorded_at": None,
            "retracted_at": None,
            "sources": None,
            "terms": None,
            "embedder": None,
            "vector": None,
            "tokens": None,
        }
        return _Draft(row, scope, _digest(row), metadata)

    @property
    def _least_importance(self) -> float:
        return self.policies.archive_importance_below

    def _remember(self, drafts: Sequence[_Draft]) -> builtins.list[Memory]:
        terms = encode_terms([searched(one.row) for one in drafts]).to_pylist()
        for one, its in zip(drafts, terms, strict=True):
            one.row["terms"] = its
        # Outside the write lock: an embedder takes its time. Whoever writes in the same session meanwhile is no context.
        self._embed([one for one in drafts if one.row["tier"] != "working"], drafts)
        self._engine.transact(lambda: self._store(drafts))
        return self._read([one.repeats or one.row["id"] for one in drafts])

    def _store(self, drafts: Sequence[_Draft]) -> None:
        """Give drafts their places and put them into the tables; inside a transaction, perhaps for the second time."""
        now = self._now()
        keys = list(dict.fromkeys(_head_key(one.scope) for one in drafts))
        heads = {key: _Head.of(key, row) for key, row in zip(keys, self._tables.heads.get_many(keys), strict=True)}
        known = self._known([(one.scope.agent_id, one.digest) for one in drafts if heads[_head_key(one.scope)].last])
        rows: dict[str, Row] = {}
        repeated: builtins.list[_Draft] = []
        for one in drafts:
            digest = one.scope.agent_id, one.digest
            one.repeats = known.get(digest)
            if one.repeats is not None:
                repeated.append(one)
                continue
            head = heads[_head_key(one.scope)]
            head.last += 1
            head.newest = [*head.newest, one.row["id"]][-CONTEXT_MEMORIES:]
            if one.row["tier"] == "working":
                head.working.append((one.row["id"], _tokens(one.row["text"])))
            known[digest] = one.row["id"]
            rows[one.row["id"]] = {**one.row, "ordinal": head.last, "recorded_at": now}
        self._tables.repeats.put_many(
            {"agent_id": row["agent_id"], "digest": one.digest, "memory_id": row["id"]}
            for one in drafts
            if (row := rows.get(one.row["id"])) is not None
        )
        self._tables.memories.put_many(rows.values())
        for head in heads.values():
            self._leave_working(head, now)
        self._tables.heads.put_many(head.row() for head in heads.values())
        self._repeat(repeated, now)

    def _known(self, digests: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Return which memories stand for what was said; archived and retracted ones do not."""
        found = [row for row in self._tables.repeats.get_many(digests) if row is not None] if digests else []
        rows = self._tables.memories.get_many([row["memory_id"] for row in found]) if found else []
        return {
            (row["agent_id"], row["digest"]): row["memory_id"]
            for row, memory in zip(found, rows, strict=True)
            if memory is not None and memory["status"] == "active" and memory["retracted_at"] is None
        }

    def _repeat(self, drafts: Sequence[_Draft], now: datetime) -> None:
        ids = list(dict.fromkeys(one.repeats for one in drafts if one.repeats is not None))
        uses = {row["id"]: dict(row) for row in self._use_rows(ids)}
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
        self._tables.uses.put_many(uses.values())
        self._tables.occurrences.put_many(occurrences)

    def _use_rows(self, ids: Sequence[str]) -> builtins.list[Row]:
        """Return how memories were used; one that was only written has no row yet, and gets a new one."""
        found = self._tables.uses.get_many(ids)
        missing = [memory_id for memory_id, row in zip(ids, found, strict=True) if row is None]
        written = self._tables.memories.get_many(missing) if missing else []
        recorded = {row["id"]: row["recorded_at"] for row in written if row is not None}
        return [
            row if row is not None else {"id": memory_id, "uses": 1, "last_used_at": recorded[memory_id], "repeats": 0}
            for memory_id, row in zip(ids, found, strict=True)
            if row is not None or memory_id in recorded
        ]

    def _leave_working(self, head: _Head, now: datetime) -> None:
        """Move the oldest working memories of a session on until the rest is within the policy's bounds."""
        leaving = head.overflow(self.policies.working_items, self.policies.working_tokens)
        if not leaving:
            return
        changed, events = [], []
        for row in self._tables.memories.get_many(leaving):
            if row is None or row["tier"] != "working":
                continue
            before = {"tier": "working"}
            row["tier"] = "short_term"
            reason = "the session's working memory is full"
            if row["importance"] < self._least_importance:
                row["status"], before["status"] = "archived", "active"
                reason += ", and its importance is below the bound"
            changed.append(row)
            events.append((row["id"], "moved", reason, before))
        self._tables.memories.put_many(changed)
        self._note(events, now)

    # --- embedding ----------------------------------------------------------------------------------------------------

    def _require_encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = Encoder(self._find_embedder())
        return self._encoder

    def _embed(self, wanted: Sequence[_Draft], drafts: Sequence[_Draft]) -> None:
        """Encode drafts in the context of those before them; what fails stays to be embedded later."""
        if not wanted:
            return
        before = self._before(drafts)
        readings = [Reading.of(spoken(one.row), before[one.row["id"]]) for one in wanted]
        for one, encoded in zip(wanted, self._try_encode(readings) or [], strict=False):
            one.row.update(self._encoded(encoded))

    def _encoded(self, encoded: Encoded) -> Row:
        embedder = self._require_encoder().embedder
        name = f"{embedder.name}/{embedder.dimension}"
        return {"embedder": name, "vector": encoded.vector, "tokens": encoded.tokens}

    def _try_encode(self, readings: Sequence[Reading]) -> Sequence[Encoded] | None:
        try:
            return self._encode(readings)
        except MissingDependencyError:
            return None  # nobody installed one: words are what there is
        except Exception as error:
            # What was said must not be lost because a model or a server is down.
            _log.warning("memories are stored without vectors, to be embedded later: %s", type(error).__name__)
            return None

    def _encode(self, readings: Sequence[Reading]) -> Sequence[Encoded]:
        encoder = self._require_encoder()
        return [
            one
            for start in range(0, len(readings), _EMBED_AT_ONCE)
            for one in encoder.encode(readings[start : start + _EMBED_AT_ONCE])
        ]

    def _before(self, drafts: Sequence[_Draft]) -> dict[str, builtins.list[str]]:
        """Return what was said before each draft in its session, oldest first."""
        keys = list(dict.fromkeys(_head_key(one.scope) for one in drafts if one.scope.session_id is not None))
        heads = {key: _Head.of(key, row) for key, row in zip(keys, self._tables.heads.get_many(keys), strict=True)}
        ids = [memory_id for head in heads.values() for memory_id in head.newest]
        said = {row["id"]: spoken(row) for row in self._tables.memories.get_many(ids) if row is not None} if ids else {}
        tails = {key: [said[one] for one in head.newest if one in said] for key, head in heads.items()}
        found = {}
        for one in drafts:
            tail = tails.get(_head_key(one.scope), [])
            found[one.row["id"]] = list(tail[-CONTEXT_MEMORIES:])
            if one.scope.session_id is not None:
                tail.append(spoken(one.row))
        return found

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, memory_id: str, *, agent_id: str | int | None = None) -> Memory | None:
        """Return a memory, archived or not, or None.

        Args:
            memory_id: its id.
            agent_id: whose it must be; another agent's is None.
        """
        checked = check_identifier("memory_id", memory_id)
        found = [] if self._is_empty else self._read([checked], is_required=False)
        owner = None if agent_id is None else check_identifier("agent_id", agent_id)
        return found[0] if found and owner in (None, found[0].agent_id) else None

    def require(self, memory_id: str) -> Memory:
        """Return a memory.

        Raises:
            NotFoundError: there is none of that id.
        """
        return self._read([check_identifier("memory_id", memory_id)])[0]

    def _read(self, ids: Sequence[str], *, is_required: bool = True) -> builtins.list[Memory]:
        """Return memories in the order of their ids; those that do not exist are left out unless they are required."""
        with self._view():
            rows = self._tables.memories.get_many(ids)
            if is_required and any(row is None for row in rows):
                raise NotFoundError("there is no memory of that id")
            return self._made([row for row in rows if row is not None])

    def _view(self) -> Any:
        """Return a block in which all reads see one state: the open transaction or snapshot, or a snapshot of its own."""
        core = self._engine._core
        return _Nothing() if core.current() is not None else self._engine.snapshot()

    def _made(self, rows: Sequence[Row]) -> builtins.list[Memory]:
        uses = {row["id"]: row for row in self._tables.uses.get_many([row["id"] for row in rows]) if row is not None}
        repeated = [row["id"] for row in uses.values() if row["repeats"]]
        more: dict[str, builtins.list[Occurrence]] = {memory_id: [] for memory_id in repeated}
        if repeated:
            found = self._tables.occurrences.scan(In(("memory_id",), tuple(repeated)), order_by=["memory_id", "number"])
            for one in found:
                more[one["memory_id"]].append(
                    Occurrence(
                        one["id"],
                        one["recorded_at"],
                        one["occurred_at"],
                        {} if one["metadata"] is None else json.loads(one["metadata"]),
                    )
                )
        return [_memory(row, uses.get(row["id"]), more.get(row["id"], [])) for row in rows]

    def list(
        self,
        *,
        agent_id: str | int,
        user_id: str | int | None = None,
        session_id: str | int | None = None,
        namespace: str | int | None = None,
        tiers: Iterable[Tier] | None = None,
        types: Iterable[MemoryType] | None = None,
        filter: Filter | None = None,
        is_archived: bool | None = False,
        limit: int = 100,
    ) -> builtins.list[Memory]:
        """Return the memories of a scope, newest first.

        Args:
            agent_id: whose memories.
            user_id: of this user; None: only memories without a user.
            session_id: of this session; None: of every session.
            namespace: of this namespace; None: only memories without one.
            tiers: only these; None: all.
            types: only these; None: all, open ones included.
            filter: only memories that match; built from ``agentdb.field`` on the attributes of `Memory` that are stored, such as
                ``field("metadata", "topic")`` or ``field("speaker")``.
            is_archived: only archived ones, only others, or (None) both.
            limit: at most so many.

        Raises:
            InvalidInputError: an argument cannot be accepted.
        """
        scope = Scope.of(agent_id, user_id, namespace, session_id)
        parts = scope_filters(scope, tiers, types)
        if is_archived is not None:
            parts.append(Compare(("status",), "eq", "archived" if is_archived else "active"))
        if filter is not None:
            if not isinstance(filter, Filter):
                raise InvalidInputError(f"filter must be built from field(...), not {type(filter).__name__}")
            parts.append(filter)
        if type(limit) is not int or limit < 0:
            raise InvalidInputError("limit must be an int of 0 or more")
        if self._is_empty:
            return []
        with self._view():
            order = [("recorded_at", "desc"), ("ordinal", "desc")]
            rows = list(self._tables.memories.scan(And(*parts), order_by=order, limit=limit, columns=_READ))  # type: ignore[arg-type]
            return self._made(rows)

    def history(self, memory_id: str) -> builtins.list[MemoryEvent]:
        """Return what happened to a memory, oldest first; the first event is that it was remembered.

        Raises:
            NotFoundError: there is none of that id.
        """
        with self._view():
            memory = self.require(memory_id)
            events = self._tables.events.scan(Compare(("memory_id",), "eq", memory.id), order_by="number")
            first = MemoryEvent(memory.recorded_at, "remembered", "given by the caller")
            return [
                first,
                *(
                    MemoryEvent(
                        one["at"],
                        one["action"],
                        one["reason"],
                        {} if one["before"] is None else json.loads(one["before"]),
                    )
                    for one in events
                ),
            ]

    def why(self, memory_id: str) -> MemoryTrace:
        """Return why a memory is as it is: what happened to it, what it stands for, and what speaks for keeping it.

        Raises:
            NotFoundError: there is none of that id.
        """
        with self._view():
            memory, events = self.require(memory_id), self.history(memory_id)
            sources = self._read(memory.sources, is_required=False)
            theirs = And(_eq("agent_id", memory.agent_id), Contains(("sources",), (memory.id,)))
            derived = self._made(list(self._tables.memories.scan(theirs, columns=_READ)))
        now, policies = self._now(), self.policies
        half_life_s = policies.short_term_half_life_s
        if memory.tier == "long_term":
            half_life_s = policies.half_life_s[memory.memory_type or "episodic"]
        last_age_s, first_age_s = ((now - at).total_seconds() for at in (memory.last_used_at, memory.recorded_at))
        activation = policies.decay.activation(Use.of(last_age_s, first_age_s, memory.uses), half_life_s)
        retention = policies.retention.retention(activation, memory.importance)
        return MemoryTrace(
            memory=memory,
            events=tuple(events),
            sources=tuple(sources),
            derived=tuple(derived),
            activation=float(activation[0]),
            retention=float(retention[0]),
        )

    # --- recalling ----------------------------------------------------------------------------------------------------

    def recall(
        self,
        query: str,
        *,
        agent_id: str | int,
        user_id: str | int | None = None,
        session_id: str | int | None = None,
        namespace: str | int | None = None,
        k: int = 10,
        types: Iterable[MemoryType] | None = None,
        tiers: Iterable[Tier] | None = None,
        filter: Filter | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        valid_at: datetime | None = None,
        known_at: datetime | None = None,
        token_budget: int | None = None,
        weights: RecallWeights | None = None,
        reinforce: bool = True,
        explain: bool = False,
    ) -> builtins.list[Recalled]:
        """Return the K memories of a scope that matter most to a query, best first; ties by id.

        What was remembered before is found, in every process. Archived memories are not. Without an embedder, or where it
        fails, words decide alone.

        Args:
            query: a question, or whatever is being talked about.
            agent_id: whose memories.
            user_id: of this user; None: only memories without a user.
            session_id: of this session; None: of every session.
            namespace: of this namespace; None: only memories without one.
            k: at most so many.
            types: only these; None: all, open ones included.
            tiers: only these; None: all.
            filter: as in `list`.
            since: only what occurred then or later; what has no such time occurred when it was recorded.
            until: only what occurred earlier.
            valid_at: what was true at that time; None: now.
            known_at: what was known at that time; None: now.
            token_budget: only what fits; a memory that is too large for what is left makes room for smaller ones.
            weights: of the signals; None: the default.
            reinforce: count this as a use of what is returned, so that it fades more slowly. Not inside ``db.snapshot()``.
            explain: let ``Recalled.signals`` hold what each signal said.

        Raises:
            InvalidInputError: an argument cannot be accepted; the message names it.
        """
        return self.recall_many(
            [query],
            agent_id=agent_id,
            user_id=user_id,
            session_id=session_id,
            namespace=namespace,
            k=k,
            types=types,
            tiers=tiers,
            filter=filter,
            since=since,
            until=until,
            valid_at=valid_at,
            known_at=known_at,
            token_budget=token_budget,
            weights=weights,
            reinforce=reinforce,
            explain=explain,
        )[0]

    def recall_many(
        self,
        queries: Sequence[str],
        *,
        agent_id: str | int,
        user_id: str | int | None = None,
        session_id: str | int | None = None,
        namespace: str | int | None = None,
        k: int = 10,
        types: Iterable[MemoryType] | None = None,
        tiers: Iterable[Tier] | None = None,
        filter: Filter | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        valid_at: datetime | None = None,
        known_at: datetime | None = None,
        token_budget: int | None = None,
        weights: RecallWeights | None = None,
        reinforce: bool = True,
        explain: bool = False,
    ) -> builtins.list[builtins.list[Recalled]]:
        """Return what `recall` returns for each of many queries, all in one state of the database."""
        if isinstance(queries, str) or not isinstance(queries, Sequence):
            raise InvalidInputError(f"queries must be a list of strings, not {type(queries).__name__}")
        for one in queries:
            if not isinstance(one, str) or not one.strip():
                raise InvalidInputError("a query must be a str that is not empty")
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise InvalidInputError("k must be an int of 1 or more")
        if token_budget is not None and (type(token_budget) is not int or token_budget < 0):
            raise InvalidInputError("token_budget must be an int of 0 or more, or None")
        if filter is not None and not isinstance(filter, Filter):
            raise InvalidInputError(f"filter must be built from field(...), not {type(filter).__name__}")
        for name, flag in (("reinforce", reinforce), ("explain", explain)):
            if not isinstance(flag, bool):
                raise InvalidInputError(f"{name} must be a bool, not {type(flag).__name__}")
        now = self._now()
        wanted = Wanted(
            scope=Scope.of(agent_id, user_id, namespace, session_id),
            tiers=None if tiers is None else tuple(check_tier(one) for one in _several("tiers", tiers)),
            types=None if types is None else tuple(check_type(one) for one in _several("types", types)),
            filter=filter,
            since=check_optional_moment("since", since),
            until=check_optional_moment("until", until),
            valid_at=check_optional_moment("valid_at", valid_at) or now,
            known_at=check_optional_moment("known_at", known_at) or now,
        )
        used = RecallWeights() if weights is None else weights
        if self._is_empty:
            return [[] for _ in queries]
        vectors = [self._query_vectors(one) for one in queries]
        if (
            any(one is not None for one in vectors)
            and self._engine._core.current() is None
            and not self._engine.read_only
        ):
            self._embed_waiting(wanted.scope.agent_id, _PENDING_AT_RECALL)
        found = []
        with self._view():
            for query, its in zip(queries, vectors, strict=True):
                best = self._recall(query, its, wanted, used, k, now, explain=explain)
                if token_budget is not None:
                    best = within_budget(best, self._count_tokens([one.memory.text for one in best]), token_budget)
                found.append(best)
        if reinforce:
            self._reinforce([one.memory.id for best in found for one in best])
        return found

    def _query_vectors(self, query: str) -> QueryVectors | None:
        try:
            return self._require_encoder().encode_query(query)
        except MissingDependencyError:
            return None
        except Exception as error:
            _log.warning("memories are recalled by words alone: %s", type(error).__name__)
            return None

    def _recall(
        self,
        query: str,
        vectors: QueryVectors | None,
        wanted: Wanted,
        weights: RecallWeights,
        k: int,
        now: datetime,
        *,
        explain: bool,
    ) -> builtins.list[Recalled]:
        name, dimension = self._space() if vectors is not None else (None, 0)
        agent_id = wanted.scope.agent_id
        rows = self._rows.agent(agent_id, name, dimension)
        with rows.lock:
            if rows.advance():
                ids, signals = self._signals(query, vectors, wanted, rows, k, now)
                self._rows.note(agent_id, name, rows.nbytes)
            else:
                alone = self._rows.one_off(agent_id, name, dimension)
                ids, signals = self._signals(query, vectors, wanted, alone, k, now)
        if not ids:
            return []
        scores = combine(signals, weights)
        order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))[:k]
        memories = self._read([ids[i] for i in order])
        return [
            Recalled(memory, float(scores[i]), {one: float(its[i]) for one, its in signals.items()} if explain else {})
            for i, memory in zip(order, memories, strict=True)
        ]

    def _signals(
        self, query: str, vectors: QueryVectors | None, wanted: Wanted, rows: AgentRows, k: int, now: datetime
    ) -> tuple[builtins.list[str], dict[str, Any]]:
        found = candidates(query, vectors, rows, wanted, k)
        ids = [rows.ids[slot] for slot in found.slots.tolist()]
        if not ids:
            return [], {}
        activation = activations(rows, found.slots, self._tables.uses.get_many(ids), self.policies, now)
        return ids, {**found.signals, "activation": activation}

    def _space(self) -> tuple[str, int]:
        """Return what rows call the embedder that made their vectors, and the dimension."""
        embedder = self._require_encoder().embedder
        return f"{embedder.name}/{embedder.dimension}", embedder.dimension

    def _count_tokens(self, texts: Sequence[str]) -> Sequence[int]:
        """Return how many tokens texts have: what the embedder counts, or else about."""
        try:
            embedder = self._require_encoder().embedder
        except MissingDependencyError:
            embedder = None
        return embedder.count_tokens(texts) if isinstance(embedder, TokenCounter) else [_tokens(one) for one in texts]

    def _reinforce(self, ids: Sequence[str]) -> None:
        view = self._engine._core.current()
        if not ids or self._engine.read_only or (view is not None and not view.writable):
            return

        def work() -> None:
            now = self._now()
            rows = self._use_rows(list(dict.fromkeys(ids)))
            self._tables.uses.put_many(
                {**row, "uses": row["uses"] + 1, "last_used_at": max(now, row["last_used_at"])} for row in rows
            )

        self._engine.transact(work)

    def context(
        self,
        query: str,
        *,
        agent_id: str | int,
        token_budget: int,
        user_id: str | int | None = None,
        session_id: str | int | None = None,
        namespace: str | int | None = None,
        k: int = 20,
        types: Iterable[MemoryType] | None = None,
        tiers: Iterable[Tier] | None = None,
        filter: Filter | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        valid_at: datetime | None = None,
        known_at: datetime | None = None,
        weights: RecallWeights | None = None,
        reinforce: bool = True,
    ) -> MemoryContext:
        """Return what `recall` finds as text for a prompt: a line for each memory, in the order in which they happened.

        Args:
            query: as in `recall`, like all that is not named here.
            agent_id: whose memories.
            token_budget: the text has at most so many tokens, the numbers, dates and names in it included.
            user_id: see `recall`.
            session_id: see `recall`.
            namespace: see `recall`.
            k: at most so many memories.
            types: see `recall`.
            tiers: see `recall`.
            filter: see `recall`.
            since: see `recall`.
            until: see `recall`.
            valid_at: see `recall`.
            known_at: see `recall`.
            weights: see `recall`.
            reinforce: see `recall`; what does not fit is not reinforced.
        """
        if type(token_budget) is not int or token_budget < 0:
            raise InvalidInputError("token_budget must be an int of 0 or more")
        found = self.recall(
            query,
            agent_id=agent_id,
            user_id=user_id,
            session_id=session_id,
            namespace=namespace,
            k=k,
            types=types,
            tiers=tiers,
            filter=filter,
            since=since,
            until=until,
            valid_at=valid_at,
            known_at=known_at,
            weights=weights,
            reinforce=False,
        )
        sizes = self._count_tokens([_line(99, one.memory) + "\n" for one in found]) if found else []
        kept = within_budget(found, sizes, token_budget)
        kept.sort(key=lambda one: (one.memory.occurred_at or one.memory.recorded_at, one.memory.id))
        text = "\n".join(_line(number, one.memory) for number, one in enumerate(kept, 1))
        if reinforce:
            self._reinforce([one.memory.id for one in kept])
        return MemoryContext(text, tuple(kept), self._count_tokens([text])[0] if text else 0)

    def embed_pending(self, agent_id: str | int, *, limit: int = 1_000) -> int:
        """Embed memories that have no vector of the embedder yet, oldest first; return how many.

        They are those that were working memory, those whose embedding failed, and all that another embedder made.

        Args:
            agent_id: whose memories.
            limit: at most so many.

        Raises:
            MissingDependencyError: no embedder is installed.
            UnavailableError: inside a transaction or snapshot.
        """
        if self._engine._core.current() is not None:
            raise UnavailableError("embed_pending is not possible inside a transaction or snapshot")
        if type(limit) is not int or limit < 1:
            raise InvalidInputError("limit must be an int of 1 or more")
        return self._embed_waiting(check_identifier("agent_id", agent_id), limit, is_strict=True)

    def _embed_waiting(self, agent_id: str, limit: int, *, is_strict: bool = False) -> int:
        name, dimension = self._space()
        rows = self._rows.agent(agent_id, name, dimension)
        with self._view(), rows.lock:
            if not rows.advance():
                return 0
            waiting = np.flatnonzero(rows.live & ~rows.embedded)
            ids = [
                rows.ids[slot]
                for slot in waiting[np.argsort(rows.number("recorded_at")[waiting], kind="stable")][:limit]
            ]
            found = [row for row in self._tables.memories.get_many(ids) if row is not None]
            said = {row["id"]: self._said_before(row) for row in found}
        if not found:
            return 0
        readings = [Reading.of(spoken(row), said[row["id"]]) for row in found]
        encoded = self._encode(readings) if is_strict else self._try_encode(readings)
        if encoded is None:
            return 0
        made = {row["id"]: (spoken(row), one) for row, one in zip(found, encoded, strict=True)}

        def work() -> int:
            current = [row for row in self._tables.memories.get_many(list(made)) if row is not None]
            rows = [
                {**row, **self._encoded(made[row["id"]][1])} for row in current if spoken(row) == made[row["id"]][0]
            ]
            self._tables.memories.put_many(rows)
            return len(rows)

        return self._engine.transact(work)

    def _said_before(self, row: Row) -> Sequence[str]:
        """Return what was said before a memory in its session, oldest first."""
        if row["session_id"] is None:
            return []
        scope = Scope(row["agent_id"], row["user_id"], row["namespace"], row["session_id"])
        ordinals = (row["ordinal"] - CONTEXT_MEMORIES, row["ordinal"])
        before = And(
            *scope_filters(scope, None, None),
            Compare(("ordinal",), "gte", ordinals[0]),
            Compare(("ordinal",), "lt", ordinals[1]),
        )
        found = self._tables.memories.scan(before, order_by="ordinal", columns=["ordinal", "text", "speaker", "role"])
        return [spoken(one) for one in found]

    # --- changing -----------------------------------------------------------------------------------------------------

    def update(
        self,
        memory_id: str,
        *,
        content: Any = UNCHANGED,
        importance: float | _Unchanged = UNCHANGED,
        metadata: Mapping[str, Any] | _Unchanged | None = UNCHANGED,
        memory_type: MemoryType | _Unchanged | None = UNCHANGED,
        tier: Tier | _Unchanged = UNCHANGED,
        valid_from: datetime | _Unchanged | None = UNCHANGED,
        valid_to: datetime | _Unchanged | None = UNCHANGED,
        retracted_at: datetime | _Unchanged | None = UNCHANGED,
        reason: str = "changed by the caller",
    ) -> Memory:
        """Change parts of a memory and return it; what is not given stays. `history` tells what was there before, and why.

        Args:
            memory_id: which.
            content: takes the place of the old, and is embedded anew; alone, if the memory is not the last of its session.
            importance: 0 to 1.
            metadata: takes the place of the old.
            memory_type: None: open.
            tier: where to move it.
            valid_from: None: open.
            valid_to: None: open.
            retracted_at: since when it is known to be wrong; None: it stands.
            reason: why, in words.

        Raises:
            NotFoundError: there is none of that id.
            InvalidInputError: an argument cannot be stored.
        """
        memory_id = check_identifier("memory_id", memory_id)
        changes: Row = {}
        if content is not UNCHANGED:
            changes["text"], changes["data"] = content_text(content)
        if not isinstance(importance, _Unchanged):
            changes["importance"] = check_importance(importance)
        if not isinstance(metadata, _Unchanged):
            changes["metadata"] = check_metadata(metadata)
        if not isinstance(memory_type, _Unchanged):
            changes["memory_type"] = None if memory_type is None else check_type(memory_type)
        if not isinstance(tier, _Unchanged):
            changes["tier"] = check_tier(tier)
        for name, moment in (("valid_from", valid_from), ("valid_to", valid_to), ("retracted_at", retracted_at)):
            if not isinstance(moment, _Unchanged):
                changes[name] = check_optional_moment(name, moment)
        if not isinstance(reason, str):
            raise InvalidInputError(f"reason must be a str, not {type(reason).__name__}")
        if not changes:
            raise InvalidInputError("give something to change")
        if "text" in changes:
            current = self._tables.memories.require(memory_id)
            row = {**current, **changes}
            changes["terms"] = encode_terms([searched(row)]).to_pylist()[0]
            changes.update(dict.fromkeys(("embedder", "vector", "tokens")))
            if row["tier"] != "working" and (encoded := self._try_encode([Reading(spoken(row))])):
                changes.update(self._encoded(encoded[0]))
        self._engine.transact(lambda: self._change([memory_id], changes, "updated", reason))
        return self.require(memory_id)

    def _change(self, ids: Sequence[str], changes: Row, action: str, reason: str) -> int:
        """Change rows and note it; return how many were not so already. Inside a transaction."""
        rows = self._tables.memories.get_many(ids)
        if any(row is None for row in rows):
            raise NotFoundError("there is no memory of that id")
        changed, events = [], []
        for row in rows:
            assert row is not None
            before = {name: row[name] for name, value in changes.items() if row[name] != value}
            if not before:
                continue
            if "tier" in before and "working" in (before["tier"], changes["tier"]):
                self._move_in_head(row, is_working=changes["tier"] == "working")
            row.update(changes)
            check_interval(row["valid_from"], row["valid_to"])
            changed.append(row)
            shown = {name: _plain(value) for name, value in before.items() if name not in _HIDDEN}
            events.append((row["id"], action, reason, shown))
        self._tables.memories.put_many(changed)
        self._note(events, self._now())
        return len(changed)

    def _move_in_head(self, row: Row, *, is_working: bool) -> None:
        scope = Scope(row["agent_id"], row["user_id"], row["namespace"], row["session_id"])
        head = _Head.of(_head_key(scope), self._tables.heads.get(_head_key(scope)))
        head.working = [one for one in head.working if one[0] != row["id"]]
        if is_working:
            head.working.append((row["id"], _tokens(row["text"])))
        self._tables.heads.put(head.row())

    def _note(self, events: Sequence[tuple[str, str, str, Mapping[str, Any]]], now: datetime) -> None:
        if not events:
            return
        ids = tuple(dict.fromkeys(one[0] for one in events))
        last: dict[str, int] = dict.fromkeys(ids, 0)
        for row in self._tables.events.scan(In(("memory_id",), ids), columns=["memory_id", "number"]):
            last[row["memory_id"]] = max(last[row["memory_id"]], row["number"])
        rows = []
        for memory_id, action, reason, before in events:
            last[memory_id] += 1
            rows.append(
                {
                    "memory_id": memory_id,
                    "number": last[memory_id],
                    "at": now,
                    "action": action,
                    "reason": reason,
                    "before": json.dumps(before) if before else None,
                }
            )
        self._tables.events.put_many(rows)

    # --- forgetting ---------------------------------------------------------------------------------------------------

    def forget(self, memory_ids: str | Iterable[str], *, reason: str = "forgotten by the caller") -> int:
        """Archive memories: recall passes them over, `restore` brings them back; return how many were not archived before.

        Raises:
            NotFoundError: one of them does not exist; nothing is changed.
        """
        return self._set_status(memory_ids, "archived", reason)

    def restore(self, memory_ids: str | Iterable[str], *, reason: str = "restored by the caller") -> int:
        """Bring archived memories back; return how many were archived.

        Raises:
            NotFoundError: one of them does not exist; nothing is changed.
        """
        return self._set_status(memory_ids, "active", reason)

    def _set_status(self, memory_ids: str | Iterable[str], status: str, reason: str) -> int:
        ids = _ids(memory_ids)
        if not isinstance(reason, str):
            raise InvalidInputError(f"reason must be a str, not {type(reason).__name__}")
        action = "archived" if status == "archived" else "restored"
        return self._engine.transact(lambda: self._change(ids, {"status": status}, action, reason)) if ids else 0

    def erase(self, memory_ids: str | Iterable[str]) -> ErasureReceipt:
        """Delete memories so that no file of the database holds them: no text, vector, occurrence, event, old version or log.

        What other memories of the session have read of them as their context is made anew, from what is left. Ids that do not
        exist are passed over.

        Returns:
            The receipt of the memories themselves. Outside a transaction it is ``complete``, unless a reader still has an older
            state of the database pinned; ``db.erasure(receipt.id)`` tells how it stands.
        """
        ids = _ids(memory_ids)
        rows = [row for row in self._tables.memories.get_many(ids) if row is not None]
        found = [row["id"] for row in rows]
        followers = self._followers(rows)
        with self._engine.transaction() if self._engine._core.current() is None else _Nothing():
            for scope in {Scope(r["agent_id"], r["user_id"], r["namespace"], r["session_id"]) for r in rows}:
                key = _head_key(scope)
                head = _Head.of(key, self._tables.heads.get(key))
                head.newest = [one for one in head.newest if one not in found]
                head.working = [one for one in head.working if one[0] not in found]
                self._tables.heads.put(head.row())
            for row in self._tables.memories.get_many(followers):
                if row is not None:
                    # Their vectors have seen the words that are erased; the old versions of these rows are erased below.
                    self._tables.memories.put({**row, "embedder": None, "vector": None, "tokens": None})
            # Old versions of rows stay in the files until all rows of a table that were erased are settled; so these go first.
            by_memory = In(("memory_id",), tuple(found))
            if found:
                self._tables.events.erase_many(filter=by_memory)
                self._tables.occurrences.erase_many(filter=by_memory)
                self._tables.repeats.erase_many(filter=by_memory)
                self._tables.uses.erase_many(found)
            receipt = self._tables.memories.erase_many(found)
        self._engine.settle_erasures()
        settled = self._engine.erasure(receipt.id)
        return receipt if settled is None else settled

    def _followers(self, rows: Sequence[Row]) -> Sequence[str]:
        """Return the memories whose vectors have seen one of these as their context."""
        found = []
        for row in rows:
            if row["session_id"] is None:
                continue
            scope = Scope(row["agent_id"], row["user_id"], row["namespace"], row["session_id"])
            behind = And(
                *scope_filters(scope, None, None),
                Compare(("ordinal",), "gt", row["ordinal"]),
            )
            found += [
                one["id"]
                for one in self._tables.memories.scan(
                    behind, order_by="ordinal", limit=CONTEXT_MEMORIES, columns=["id", "ordinal"]
                )
            ]
        erased = {row["id"] for row in rows}
        return [one for one in dict.fromkeys(found) if one not in erased]

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def maintain(self, agent_id: str | int | None = None, *, limit: int = 10_000) -> MaintenanceReport:
        """Consolidate, close, archive and purge what the policies say, now; return what was done and why.

        - Short-term memories that have settled move to long-term memory. One that says the same as an older memory of its user
          and namespace is merged into it instead: archived, its id among the other's ``sources``.
        - A memory that a newer one contradicts is not true any more from then on: its ``valid_to`` is closed, where the newer one's
          ``valid_from`` begins; nothing is deleted.
        - What has faded and matters little is archived; what was archived long ago is purged, if the policy says after how long.

        Every step is one transaction over at most 128 memories, so others read and write meanwhile, a killed process loses at most
        the step at hand, and another run goes on from there. `history` of each memory tells of it, too; what is purged is erased.

        Args:
            agent_id: whose memories; None: every agent's.
            limit: at most so many changes.

        Raises:
            UnavailableError: inside a transaction or snapshot.
        """
        if self._engine._core.current() is not None:
            raise UnavailableError("maintain is not possible inside a transaction or snapshot")
        if type(limit) is not int or limit < 1:
            raise InvalidInputError("limit must be an int of 1 or more")
        if agent_id is not None:
            agents = [check_identifier("agent_id", agent_id)]
        elif self._is_empty:
            agents = []
        else:
            agents = sorted({row["agent_id"] for row in self._tables.heads.scan(columns=["agent_id"])})
        changes: builtins.list[MemoryChange] = []
        if self._is_empty:
            return MaintenanceReport()
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

    def _consolidate(self, agent_id: str, limit: int) -> tuple[builtins.list[MemoryChange], bool]:
        try:
            self._embed_waiting(agent_id, _PENDING_AT_RECALL)
        except MissingDependencyError:
            return [], True  # nothing can be compared: short-term memory waits
        now = self._now()
        name, dimension = self._space()
        rows = self._rows.agent(agent_id, name, dimension)
        with self._engine.snapshot(), rows.lock:
            if not rows.advance():
                return [], False
            plan, is_all = plan_consolidation(rows, self._tables.memories.get_many, self.policies, now, limit)
        done = self._apply(plan, now)
        return ([], False) if done is None else (done, is_all or not done)

    def _archive(self, agent_id: str, limit: int) -> tuple[builtins.list[MemoryChange], bool]:
        now = self._now()
        try:
            name, dimension = self._space()
        except MissingDependencyError:
            name, dimension = None, 0  # fading needs no vectors
        rows = self._rows.agent(agent_id, name, dimension)
        with self._engine.snapshot(), rows.lock:
            if not rows.advance():
                return [], False
            plan, is_all = plan_forgetting(rows, self._tables.uses.get_many, self.policies, now, limit)
        done = self._apply(plan, now)
        return ([], False) if done is None else (done, is_all or not done)

    def _apply(self, plan: Plan, now: datetime) -> builtins.list[MemoryChange] | None:
        """Write a plan and return what was done; None if somebody else has changed what it rests on: nothing is written then."""

        def work() -> builtins.list[MemoryChange] | None:
            if self._tables.memories.get_many(list(plan.seen)) != list(plan.seen.values()):
                return None
            found = self._tables.memories.get_many(list(plan.rows))
            current = {row["id"]: row for row in found if row is not None and row["status"] == "active"}
            done = [one for one in plan.changes if one.memory_id in current]
            events = []
            for change in done:
                row, columns = current[change.memory_id], plan.rows[change.memory_id]
                before = {name: _plain(row[name]) for name in columns if name != "sources"}
                events.append((change.memory_id, _AS_EVENTS.get(change.action, change.action), change.reason, before))
            self._tables.memories.put_many({**row, **plan.rows[one]} for one, row in current.items())
            repeated = [(one, at) for one, at in plan.repeated if one in current]
            uses = {row["id"]: dict(row) for row in self._use_rows(list(dict.fromkeys(one for one, _ in repeated)))}
            for one, at in repeated:
                uses[one]["uses"] += 1
                uses[one]["last_used_at"] = max(uses[one]["last_used_at"], at)
            self._tables.uses.put_many(uses.values())
            self._note(events, now)
            return done

        return self._engine.transact(work) if plan.rows else []

    def _purge(self, agent_id: str, limit: int) -> tuple[builtins.list[MemoryChange], bool]:
        after_s = self.policies.retention.purge_after_s
        if after_s is None:
            return [], True
        now = self._now()
        archived = And(_eq("agent_id", agent_id), _eq("status", "archived"))
        found = {
            row["id"]: row["recorded_at"] for row in self._tables.memories.scan(archived, columns=["id", "recorded_at"])
        }
        since = dict(found)
        ids = list(found)
        for start in range(0, len(ids), STEP_ROWS):
            some = In(("memory_id",), tuple(ids[start : start + STEP_ROWS]))
            for event in self._tables.events.scan(some, columns=["memory_id", "at", "action"]):
                if event["action"] == "archived":
                    since[event["memory_id"]] = max(since[event["memory_id"]], event["at"])
        old = sorted(one for one, at in since.items() if (now - at).total_seconds() >= after_s)
        doomed = old[:limit]
        if doomed:
            self.erase(doomed)
        reason = f"archived for more than {after_s:g} s"
        return [MemoryChange(one, "purged", reason) for one in doomed], len(old) <= limit

    # --- moving -------------------------------------------------------------------------------------------------------

    def export_jsonl(self, path: str | os.PathLike[str], *, agent_id: str | int | None = None) -> int:
        """Write memories, archived ones included, to a new file, one JSON object a line; return how many.

        One consistent state, with occurrences, events and uses; vectors are left out, since whoever imports makes them anew.

        Args:
            path: where; there must be no file yet.
            agent_id: whose memories; None: every agent's.

        Raises:
            InvalidInputError: the file exists.
            StorageError: it cannot be written; what was begun is removed.
        """
        condition = None if agent_id is None else _eq("agent_id", check_identifier("agent_id", agent_id))
        target = Path(path)
        try:
            with target.open("x", encoding="utf-8") as file:
                try:
                    return 0 if self._is_empty else self._export(file, condition)
                except BaseException:
                    target.unlink()
                    raise
        except FileExistsError:
            raise InvalidInputError("the file to export to exists already") from None
        except OSError as error:
            raise StorageError(f"memories cannot be exported: {error.strerror}") from error

    def _export(self, file: TextIO, condition: Filter | None) -> int:
        count = 0
        with self._view():
            rows = self._tables.memories.scan(condition, columns=[*_READ, "ordinal"])
            while some := builtins.list(islice(rows, _ROWS_AT_ONCE)):
                ids = [row["id"] for row in some]
                uses = {row["id"]: row for row in self._tables.uses.get_many(ids) if row is not None}
                more = self._grouped(self._tables.occurrences, ids)
                events = self._grouped(self._tables.events, ids)
                for row in some:
                    use = uses.get(row["id"])
                    line = {
                        **{name: _plain(value) for name, value in row.items()},
                        "occurrences": more.get(row["id"], []),
                        "events": events.get(row["id"], []),
                        "uses": 1 if use is None else use["uses"],
                        "last_used_at": _plain(row["recorded_at"] if use is None else use["last_used_at"]),
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += len(some)
        return count

    @staticmethod
    def _grouped(table: Table, ids: Sequence[str]) -> dict[str, builtins.list[Row]]:
        found: dict[str, builtins.list[Row]] = {}
        for row in table.scan(In(("memory_id",), tuple(ids)), order_by=["memory_id", "number"]):
            found.setdefault(row.pop("memory_id"), []).append({name: _plain(value) for name, value in row.items()})
        return found

    def import_jsonl(self, path: str | os.PathLike[str]) -> int:
        """Store the memories that `export_jsonl` wrote, all or none, under their own ids; return how many there were.

        A memory whose id is here already is replaced, so importing twice is as importing once. They are embedded by the next recall
        or `embed_pending`; until then their words find them.

        Raises:
            NotFoundError: there is no such file.
            InvalidInputError: a line is no exported memory; the message says which. Nothing is stored.
        """
        try:
            with Path(path).open(encoding="utf-8") as file:
                parsed = [_imported(number, line) for number, line in enumerate(file, 1) if line.strip()]
        except FileNotFoundError:
            raise NotFoundError("there is no file to import") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"the file cannot be read: {type(error).__name__}") from None
        for one, terms in zip(parsed, encode_terms([searched(one.row) for one in parsed]).to_pylist(), strict=True):
            one.row["terms"] = terms
        if parsed:
            self._engine.transact(lambda: self._import(parsed))
        return len(parsed)

    def _import(self, parsed: Sequence[_Imported]) -> None:
        heads: dict[tuple[str, str], _Head] = {}
        for one in sorted(parsed, key=lambda one: int(one.row["ordinal"])):
            row = one.row
            key = _head_key(Scope(row["agent_id"], row["user_id"], row["namespace"], row["session_id"]))
            if key not in heads:
                heads[key] = _Head.of(key, self._tables.heads.get(key))
            head = heads[key]
            if row["ordinal"] > head.last:
                head.last, head.newest = row["ordinal"], [*head.newest, row["id"]][-CONTEXT_MEMORIES:]
            head.working = [its for its in head.working if its[0] != row["id"]]
            if row["tier"] == "working":
                head.working.append((row["id"], _tokens(row["text"])))
        self._tables.memories.put_many(one.row for one in parsed)
        self._tables.heads.put_many(head.row() for head in heads.values())
        self._tables.uses.put_many(one.use for one in parsed)
        self._tables.repeats.put_many(
            {"agent_id": one.row["agent_id"], "digest": _digest(one.row), "memory_id": one.row["id"]} for one in parsed
        )
        self._tables.occurrences.put_many(its for one in parsed for its in one.occurrences)
        self._tables.events.put_many(its for one in parsed for its in one.events)


# --- sessions ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Head:
    """What is known of a session without a look at its memories."""

    key: tuple[str, str]
    last: int
    newest: list[str]
    working: list[tuple[str, int]]

    @classmethod
    def of(cls, key: tuple[str, str], row: Row | None) -> _Head:
        if row is None:
            return cls(key, 0, [], [])
        working = [(memory_id, tokens) for memory_id, tokens in json.loads(row["working"])]
        return cls(key, row["last_ordinal"], json.loads(row["newest"]), working)

    def row(self) -> Row:
        return {
            "agent_id": self.key[0],
            "scope": self.key[1],
            "last_ordinal": self.last,
            "newest": json.dumps(self.newest),
            "working": json.dumps(self.working),
        }

    def overflow(self, items: int, tokens: int) -> list[str]:
        """Take out, and return, the oldest working memories that are too many; the newest always stays."""
        total = sum(one[1] for one in self.working)
        leaving = []
        while len(self.working) > 1 and (len(self.working) > items or total > tokens):
            memory_id, size = self.working.pop(0)
            total -= size
            leaving.append(memory_id)
        return leaving


def _scope_key(scope: Scope) -> list[str | None]:
    return [scope.user_id, scope.namespace, scope.session_id]


def _head_key(scope: Scope) -> tuple[str, str]:
    # A digest: three identifiers, each of which may be absent, in one key column of bounded length.
    return scope.agent_id, blake2b(json.dumps(_scope_key(scope)).encode(), digest_size=16).hexdigest()


def _digest(row: Row) -> str:
    """Return what an exact repeat of a memory has in common with it."""
    said = [row[name] for name in ("user_id", "namespace", "session_id", "role", "speaker", "text", "data")]
    return blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def _tokens(text: str) -> int:
    return len(text) // _CHARS_PER_TOKEN + 1


# --- rows and memories ------------------------------------------------------------------------------------------------

_HIDDEN = frozenset({"terms", "embedder", "vector", "tokens"})


@dataclass(frozen=True, slots=True)
class _Imported:
    """An exported memory as rows."""

    row: Row
    use: Row
    occurrences: Sequence[Row]
    events: Sequence[Row]


def _imported(number: int, line: str) -> _Imported:
    """Return the rows of one exported memory.

    Raises:
        InvalidInputError: it is none; the message names the line.
    """
    try:
        plain = json.loads(line)
        memory_id = check_identifier("id", plain["id"])
        row: Row = {name: _typed(MEMORIES, name, plain.get(name)) for name in (*_READ, "ordinal")}
        row.update(dict.fromkeys(("terms", "embedder", "vector", "tokens")))
        Scope.of(row["agent_id"], row["user_id"], row["namespace"], row["session_id"])
        check_tier(row["tier"])
        if row["memory_type"] is not None:
            check_type(row["memory_type"])
        if row["status"] not in ("active", "archived"):
            raise InvalidInputError("status must be active or archived")
        MEMORIES.to_physical(row)
        occurrences, events = (
            [
                {name: _typed(schema, name, {**one, "memory_id": memory_id}.get(name)) for name in names}
                for one in plain[key]
            ]
            for key, schema, names in (
                ("occurrences", OCCURRENCES, [c.name for c in OCCURRENCES.columns]),
                ("events", EVENTS, [c.name for c in EVENTS.columns]),
            )
        )
        use: Row = {
            "id": memory_id,
            "uses": plain["uses"],
            "last_used_at": _typed(USES, "last_used_at", plain["last_used_at"]),
            "repeats": len(occurrences),
        }
        for schema, rows in ((USES, [use]), (OCCURRENCES, occurrences), (EVENTS, events)):
            for one in rows:
                schema.to_physical(one)
    except InvalidInputError as error:
        raise InvalidInputError(f"line {number}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InvalidInputError(f"line {number} is no exported memory") from None
    return _Imported(row, use, occurrences, events)


def _typed(schema: TableSchema, name: str, value: Any) -> Any:
    return datetime.fromisoformat(value) if value is not None and schema.column(name).kind == "timestamp" else value


class _Nothing:
    """A block that does nothing: one is open already."""

    def __enter__(self) -> None:
        return

    def __exit__(self, *exc: object) -> None:
        return


def scope_filters(scope: Scope, tiers: Iterable[Tier] | None, types: Iterable[MemoryType] | None) -> list[Filter]:
    """Return the conditions that every memory of a scope meets."""
    parts = [_eq("agent_id", scope.agent_id), _eq("user_id", scope.user_id), _eq("namespace", scope.namespace)]
    if scope.session_id is not None:
        parts.append(_eq("session_id", scope.session_id))
    if tiers is not None:
        parts.append(In(("tier",), tuple(check_tier(one) for one in _several("tiers", tiers))))
    if types is not None:
        parts.append(In(("memory_type",), tuple(check_type(one) for one in _several("types", types))))
    return parts


def _several(name: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidInputError(f"{name} must be a list, not {type(values).__name__}")
    return list(values)


def _ids(memory_ids: str | Iterable[str]) -> list[str]:
    given = [memory_ids] if isinstance(memory_ids, str) else _several("memory_ids", memory_ids)
    return list(dict.fromkeys(check_identifier("memory_id", one) for one in given))


def _line(number: int, memory: Memory) -> str:
    at = memory.occurred_at or memory.recorded_at
    who = memory.speaker or memory.role
    text = " ".join(memory.text.split())
    return f"[{number}] {at:%Y-%m-%d} {who}: {text}" if who else f"[{number}] {at:%Y-%m-%d} {text}"


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _memory(row: Row, use: Row | None, more: Sequence[Occurrence]) -> Memory:
    metadata = row["metadata"] or {}
    first = Occurrence(row["id"], row["recorded_at"], row["occurred_at"], metadata)
    values = {name: row[name] for name in _READ if name not in ("data", "sources", "metadata")}
    return Memory(
        **values,
        content=row["text"] if row["data"] is None else decode_json(row["data"]),
        metadata=metadata,
        sources=tuple(row["sources"] or ()),
        occurrences=(first, *more),
        uses=1 if use is None else use["uses"],
        last_used_at=row["recorded_at"] if use is None else use["last_used_at"],
    )
