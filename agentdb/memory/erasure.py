"""How memories are erased: no text, vector, occurrence, event, old version or log holds them afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

from agentdb.filters import And, Compare, In
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
            found = [row["id"] for row in rows]
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
            receipt = tables.memories.erase_many(found)
        core.engine.settle_erasures()
        settled = core.engine.erasure(receipt.id)
        return receipt if settled is None else settled

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
