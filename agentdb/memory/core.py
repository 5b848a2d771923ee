"""What every part of the Memory Manager stands on: its tables, its clock and rules, and reading and changing memories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agentdb.errors import NotFoundError
from agentdb.filters import In
from agentdb.memory.plugins import Guard
from agentdb.memory.policies import MemoryPolicies
from agentdb.memory.records import Memory, Occurrence, check_interval
from agentdb.memory.resident import AgentCache
from agentdb.memory.rows import HIDDEN, memory_of, plain, scope_of
from agentdb.memory.sessions import Head, head_key
from agentdb.memory.tables import MemoryTables
from agentdb.types import Row
from agentdb.vectors.blocks import cuda_device

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = ["Event", "MemoryCore"]

Event = tuple[str, str, str, Mapping[str, Any]]
"""Of a memory's history: its id, what happened, why, and what was there before."""


class MemoryCore:
    """The memories of one database, as the parts of the Memory Manager share them. Safe for threads.

    Attributes:
        engine: the database.
        policies: the rules in use.
        guard: calls plug-ins.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.policies = MemoryPolicies()
        self.guard = Guard()
        self._opened: MemoryTables | None = None
        self._cache: AgentCache | None = None

    # --- the database -------------------------------------------------------------------------------------------------

    @property
    def tables(self) -> MemoryTables:
        """The tables, created at the first need: a database without memories has none, and opening one writes nothing.

        Raises:
            NotFoundError: there are none, and none can be created here.
        """
        if self._opened is not None:
            return self._opened
        if self.is_empty and not self.can_write:
            raise NotFoundError("this database holds no memories")
        tables = MemoryTables.of(self.engine)
        view = self.engine._core.current()
        if view is None or not view.writable:
            self._opened = tables  # otherwise they may go with the transaction
        return tables

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever remembered here, as far as the caller sees: a snapshot may be older than the first memory."""
        view = self.engine._core.current()
        is_known = self._opened is not None and (view is None or view.writable)
        return not is_known and not MemoryTables.exist(self.engine)

    @property
    def is_inside(self) -> bool:
        """Whether the caller has a transaction or a snapshot open."""
        return self.engine._core.current() is not None

    @property
    def can_write(self) -> bool:
        """Whether the caller may write: the database is not read-only, and no snapshot is open."""
        view = self.engine._core.current()
        return not self.engine.read_only and (view is None or view.writable)

    @property
    def resident(self) -> AgentCache:
        """The agents whose memories are held in memory."""
        if self._cache is None:
            self._cache = AgentCache(self.tables.memories, self.engine.config.resident_bytes, device=self.device)
        return self._cache

    @cached_property
    def device(self) -> str | None:
        """The torch device that ``Config.device`` means; None: the host, without torch."""
        return cuda_device(self.engine.config.device)

    def now(self) -> datetime:
        """Return the time of the database's clock."""
        moment: datetime = self.engine.config.clock()
        return moment.astimezone(UTC)

    def view(self) -> AbstractContextManager[None]:
        """Return a block in which all reads see one state: the open transaction or snapshot, or a snapshot of its own."""
        return nullcontext() if self.is_inside else self.engine.snapshot()

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, ids: Sequence[str], *, is_required: bool = True) -> list[Memory]:
        """Return memories in the order of their ids; those that do not exist are left out unless they are required.

        Raises:
            NotFoundError: one that is required does not exist.
        """
        with self.view():
            rows = self.tables.memories.get_many(ids)
            if is_required and any(row is None for row in rows):
                raise NotFoundError("there is no memory of that id")
            return self.made([row for row in rows if row is not None])

    def made(self, rows: Sequence[Row]) -> list[Memory]:
        """Return rows as memories, with their uses and occurrences. Inside a view."""
        uses = {row["id"]: row for row in self.tables.uses.get_many([row["id"] for row in rows]) if row is not None}
        repeated = [row["id"] for row in uses.values() if row["repeats"]]
        more: dict[str, list[Occurrence]] = {memory_id: [] for memory_id in repeated}
        if repeated:
            found = self.tables.occurrences.scan(In(("memory_id",), tuple(repeated)), order_by=["memory_id", "number"])
            for one in found:
                metadata = {} if one["metadata"] is None else json.loads(one["metadata"])
                more[one["memory_id"]].append(Occurrence(one["id"], one["recorded_at"], one["occurred_at"], metadata))
        return [memory_of(row, uses.get(row["id"]), more.get(row["id"], [])) for row in rows]

    def count_use(self, ids: Sequence[str]) -> None:
        """Count a use of memories, now; inside a transaction."""
        now, rows = self.now(), self.uses_of(list(dict.fromkeys(ids)))
        self.tables.uses.put_many(
            {**row, "uses": row["uses"] + 1, "last_used_at": max(now, row["last_used_at"])} for row in rows
        )

    def uses_of(self, ids: Sequence[str]) -> list[Row]:
        """Return how memories were used; one that was only written has no row yet, and gets a new one."""
        found = self.tables.uses.get_many(ids)
        missing = [memory_id for memory_id, row in zip(ids, found, strict=True) if row is None]
        written = self.tables.memories.get_many(missing) if missing else []
        recorded = {row["id"]: row["recorded_at"] for row in written if row is not None}
        return [
            row if row is not None else {"id": memory_id, "uses": 1, "last_used_at": recorded[memory_id], "repeats": 0}
            for memory_id, row in zip(ids, found, strict=True)
            if row is not None or memory_id in recorded
        ]

    # --- changing, inside a transaction -------------------------------------------------------------------------------

    def change(self, ids: Sequence[str], changes: Row, action: str, reason: str) -> int:
        """Change rows and note it; return how many were not so already.

        Raises:
            NotFoundError: one of them does not exist.
            InvalidInputError: a memory would be valid at no time.
        """
        rows = self.tables.memories.get_many(ids)
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
            if "text" in before and row["tier"] == "working":
                self._resize_in_head(row)
            check_interval(row["valid_from"], row["valid_to"])
            changed.append(row)
            shown = {name: plain(value) for name, value in before.items() if name not in HIDDEN}
            events.append((row["id"], action, reason, shown))
        self.tables.memories.put_many(changed)
        self.note(events, self.now())
        return len(changed)

    def _move_in_head(self, row: Row, *, is_working: bool) -> None:
        key = head_key(scope_of(row))
        head = Head.of(key, self.tables.heads.get(key))
        if is_working:
            head.hold(row["id"], row["text"])
        else:
            head.release([row["id"]])
        self.tables.heads.put(head.row())

    def _resize_in_head(self, row: Row) -> None:
        key = head_key(scope_of(row))
        head = Head.of(key, self.tables.heads.get(key))
        head.resize(row["id"], row["text"])
        self.tables.heads.put(head.row())

    def note(self, events: Sequence[Event], now: datetime) -> None:
        """Add what happened to the histories of memories."""
        if not events:
            return
        ids = tuple(dict.fromkeys(one[0] for one in events))
        last: dict[str, int] = dict.fromkeys(ids, 0)
        for row in self.tables.events.scan(In(("memory_id",), ids), columns=["memory_id", "number"]):
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
        self.tables.events.put_many(rows)
