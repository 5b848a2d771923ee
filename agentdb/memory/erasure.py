"""How memories are erased: no text, vector, occurrence, event, old version or log holds them afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

from agentdb.filters import And, Compare, Contains, Filter, In
from agentdb.memory.compression import compressed_into
from agentdb.memory.core import MemoryCore
from agentdb.memory.encoding import CONTEXT_MEMORIES
from agentdb.memory.rows import check_ids, scope_filters, scope_of
from agentdb.memory.sessions import heads_of
from agentdb.types import ErasureReceipt, Row

__all__ = ["Eraser"]


class Eraser:
    """Erases memories of a database."""

    def __init__(self, core: MemoryCore) -> None:
        self._core = core

    def erase(self, memory_ids: str | Iterable[str]) -> ErasureReceipt:
        """See `AgentMemories.erase`."""
        core, tables = self._core, self._core.tables
        ids = check_ids(memory_ids)
        with nullcontext() if core.is_inside else core.engine.transaction():
            rows = [row for row in tables.memories.get_many(ids) if row is not None]
            others = In(("id",), tuple(set(ids) - {row["id"] for row in rows}))
            of_occurrences = tables.occurrences.erase_many(filter=others) if others.values else None
            derived = self._derived(ids, rows)
            self._bring_back(derived, {*ids, *(row["id"] for row in derived)})
            receipt = self._erase([*rows, *derived])
            if of_occurrences is not None and of_occurrences.rows and not receipt.rows:
                receipt = of_occurrences
        core.engine.settle_erasures()
        settled = core.engine.erasure(receipt.id)
        return receipt if settled is None else settled

    def purge(self, ids: Sequence[str]) -> list[str]:
        """Erase those that are still archived, but nothing that was derived from them; return which."""
        core = self._core
        with core.engine.transaction():
            found = core.tables.memories.get_many(ids)
            rows = [row for row in found if row is not None and row["status"] == "archived"]
            self._erase(rows)
        core.engine.settle_erasures()
        return [row["id"] for row in rows]

    def _erase(self, rows: Sequence[Row]) -> ErasureReceipt:
        """Erase memories and all that belongs to them; inside a transaction."""
        tables, found = self._core.tables, [row["id"] for row in rows]
        heads = heads_of(tables.heads, [scope_of(row) for row in rows])
        for head in heads.values():
            head.newest = [one for one in head.newest if one not in found]
            head.release(found)
        tables.heads.put_many(head.row() for head in heads.values())
        # Their vectors have seen the words that are erased; the old versions of these rows are erased below.
        tables.memories.put_many(
            {**row, "embedder": None, "vector": None, "tokens": None}
            for row in tables.memories.get_many(self._followers(rows))
            if row is not None
        )
        # Old versions of rows stay in the files until all rows of a table that were erased are settled; so these go first.
        by_memory = In(("memory_id",), tuple(found))
        if found:
            tables.events.erase_many(filter=by_memory)
            tables.occurrences.erase_many(filter=by_memory)
            tables.repeats.erase_many(filter=by_memory)
            tables.uses.erase_many(found)
        return tables.memories.erase_many(found)

    def _derived(self, ids: Sequence[str], rows: Sequence[Row]) -> list[Row]:
        """Return summaries and facts that hold what is erased, and what was derived from those."""
        known, wanted = {row["id"]: row for row in rows}, set(ids)
        found: list[Row] = []
        while wanted:
            owners = {known[one]["agent_id"] for one in wanted if one in known}
            parts: list[Filter] = [In(("origin",), ("summary", "fact"))]
            if all(one in known for one in wanted):
                parts.append(In(("agent_id",), tuple(owners)))  # one that was purged may have been anybody's
            parts.append(Contains(("sources",), tuple(sorted(wanted))))
            new = [row for row in self._core.tables.memories.scan(And(*parts)) if row["id"] not in known]
            known.update((row["id"], row) for row in new)
            found += new
            wanted = {row["id"] for row in new}
        return found

    def _bring_back(self, derived: Sequence[Row], erased: set[str]) -> None:
        """Take what a summary stood for out of the archive: the summary goes for the sake of another of its sources."""
        # What was restored may have been summed up twice.
        stands = {
            (one, compressed_into(row["id"])) for row in derived if row["origin"] == "summary" for one in row["sources"]
        }
        rest = tuple(sorted({one for one, _ in stands} - erased))
        last: dict[str, Row] = {}
        for event in self._core.tables.events.scan(In(("memory_id",), rest)) if rest else ():
            if event["number"] > last.get(event["memory_id"], {"number": 0})["number"]:
                last[event["memory_id"]] = event
        there = {row["id"] for row in self._core.tables.memories.get_many(rest) if row is not None}
        back = [one for one, its in last.items() if one in there and (one, its["reason"]) in stands]
        self._core.change(back, {"status": "active"}, "restored", "the summary that stood for it is erased")

    def _followers(self, rows: Sequence[Row]) -> Sequence[str]:
        """Return the memories whose vectors have seen one of these as their context."""
        found = []
        for row in rows:
            if row["session_id"] is None:
                continue
            behind = And(*scope_filters(scope_of(row)), Compare(("ordinal",), "gt", row["ordinal"]))
            found += [
                one["id"]
                for one in self._core.tables.memories.scan(
                    behind, order_by="ordinal", limit=CONTEXT_MEMORIES, columns=["id", "ordinal"]
                )
            ]
        erased = {row["id"] for row in rows}
        return [one for one in dict.fromkeys(found) if one not in erased]
