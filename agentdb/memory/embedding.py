"""How memories and queries get their vectors, now or later: whatever an embedder fails at is stored all the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from agentdb.embedding import Embedder, TokenCounter
from agentdb.errors import MissingDependencyError
from agentdb.filters import And, Compare
from agentdb.memory.core import MemoryCore
from agentdb.memory.encoding import CONTEXT_MEMORIES, Encoded, Encoder, QueryVectors, Reading
from agentdb.memory.resident import AgentRows
from agentdb.memory.rows import scope_filters, scope_of, spoken, tokens_of
from agentdb.memory.sessions import head_key, heads_of
from agentdb.types import Row

__all__ = ["AT_RECALL", "MemoryEmbedding"]

log = logging.getLogger("agentdb.memory")

AT_RECALL = 512
"""Memories that a recall embeds before it answers; what is beyond waits, and is found by its words."""
_AT_ONCE = 256


class MemoryEmbedding:
    """Vectors of memories and queries, by the database's embedder. Safe for threads, as the embedder is.

    Args:
        core: the memories.
        find_embedder: returns the embedder, loaded at the first call.
    """

    def __init__(self, core: MemoryCore, find_embedder: Callable[[], Embedder]) -> None:
        self._core = core
        self._find_embedder = find_embedder
        self._encoder: Encoder | None = None
        self.was_asked = False
        """Whether an embedder was looked for: upkeep in the background loads none in a process that did not need one."""

    def _require(self) -> Encoder:
        self.was_asked = True
        if self._encoder is None:
            self._encoder = Encoder(self._find_embedder())
        return self._encoder

    def space(self) -> tuple[str, int]:
        """Return what rows call the embedder that made their vectors, and the dimension.

        Raises:
            MissingDependencyError: no embedder is installed.
        """
        embedder = self._require().embedder
        return f"{embedder.name}/{embedder.dimension}", embedder.dimension

    def space_or_none(self) -> tuple[str | None, int]:
        """Return `space`, or no name and no dimension where no embedder is installed."""
        try:
            return self.space()
        except MissingDependencyError:
            return None, 0

    def count_tokens(self, texts: Sequence[str]) -> Sequence[int]:
        """Return how many tokens texts have: what the embedder counts, or else about."""
        try:
            embedder = self._require().embedder
        except MissingDependencyError:
            embedder = None
        return embedder.count_tokens(texts) if isinstance(embedder, TokenCounter) else [tokens_of(one) for one in texts]

    def queries(self, queries: Sequence[str]) -> Sequence[QueryVectors] | None:
        """Return the vectors of queries; None where no embedder is installed, or it fails: then words decide alone."""
        try:
            return self._require().encode_queries(queries)
        except MissingDependencyError:
            return None
        except Exception as error:
            log.warning("memories are recalled by words alone: %s", type(error).__name__)
            return None

    def fill(self, rows: Sequence[Row], *, of: Sequence[Row] | None = None) -> Sequence[str]:
        """Put vectors into new rows, each in the context of those before it; what fails stays to be embedded later.

        Return the ids of stored memories that were read as context: if one is erased before the rows are stored, their vectors
        must not be.

        Args:
            rows: in the order in which they are said.
            of: those of them that are to be embedded; all if None.
        """
        wanted = rows if of is None else of
        if not wanted:
            return []
        before, read = self._before(rows)
        readings = [Reading.of(spoken(row), before[row["id"]]) for row in wanted]
        for row, vectors in zip(wanted, self.attempt(readings) or [], strict=False):
            row.update(vectors)
        return read

    def attempt(self, readings: Sequence[Reading]) -> Sequence[Row] | None:
        """Return the columns that hold the vectors of memories; None where no embedder is installed, or it fails."""
        try:
            return self._columns(readings)
        except MissingDependencyError:
            return None  # nobody installed one: words are what there is
        except Exception as error:
            # What was said must not be lost because a model or a server is down.
            log.warning("memories are stored without vectors, to be embedded later: %s", type(error).__name__)
            return None

    def _columns(self, readings: Sequence[Reading]) -> Sequence[Row]:
        encoder, (name, _) = self._require(), self.space()
        encoded: list[Encoded] = []
        for start in range(0, len(readings), _AT_ONCE):
            encoded += encoder.encode(readings[start : start + _AT_ONCE])
        return [{"embedder": name, "vector": one.vector, "tokens": one.tokens} for one in encoded]

    def _before(self, rows: Sequence[Row]) -> tuple[Mapping[str, list[str]], Sequence[str]]:
        """Return what was said before each new row in its session, oldest first, and which stored memories say it."""
        tables = self._core.tables
        heads = heads_of(tables.heads, [scope_of(row) for row in rows if row["session_id"] is not None])
        ids = [memory_id for head in heads.values() for memory_id in head.newest]
        said = {row["id"]: spoken(row) for row in tables.memories.get_many(ids) if row is not None} if ids else {}
        tails = {key: [said[one] for one in head.newest if one in said] for key, head in heads.items()}
        found = {}
        for row in rows:
            tail = tails.get(head_key(scope_of(row)), [])
            found[row["id"]] = list(tail[-CONTEXT_MEMORIES:])
            if row["session_id"] is not None:
                tail.append(spoken(row))
        return found, list(said)

    def embed_waiting(self, rows: AgentRows, limit: int, *, is_strict: bool = False) -> int:
        """Embed memories of an agent that have no vector of the embedder, oldest first; return how many.

        Args:
            rows: the agent's, of the embedder.
            limit: at most so many.
            is_strict: raise what the embedder raises.

        Raises:
            MissingDependencyError: no embedder is installed.
        """
        memories = self._core.tables.memories
        with self._core.view(), rows.lock:
            if not rows.advance():
                return 0
            waiting = np.flatnonzero(rows.live & ~rows.embedded)
            waiting = waiting[np.argsort(rows.number("recorded_at")[waiting], kind="stable")][:limit]
            found = [row for row in memories.get_many([rows.ids[slot] for slot in waiting]) if row is not None]
            before = {row["id"]: self._before_stored(row) for row in found}
        if not found:
            return 0
        readings = [Reading.of(spoken(row), [spoken(one) for one in before[row["id"]]]) for row in found]
        made = self._columns(readings) if is_strict else self.attempt(readings)
        if made is None:
            return 0
        vectors = {row["id"]: (spoken(row), one) for row, one in zip(found, made, strict=True)}

        def work() -> int:
            current = [row for row in memories.get_many(list(vectors)) if row is not None]
            read = list(dict.fromkeys(one["id"] for its in before.values() for one in its))
            gone = (
                {one for one, row in zip(read, memories.get_many(read), strict=True) if row is None} if read else set()
            )
            changed = [
                {**row, **vectors[row["id"]][1]}
                for row in current
                # Nor may a vector have read what was erased meanwhile.
                if spoken(row) == vectors[row["id"]][0] and not any(one["id"] in gone for one in before[row["id"]])
            ]
            memories.put_many(changed)
            return len(changed)

        return self._core.engine.transact(work)

    def _before_stored(self, row: Row) -> Sequence[Row]:
        """Return the memories before a stored one in its session, oldest first."""
        if row["session_id"] is None:
            return []
        before = And(
            *scope_filters(scope_of(row)),
            Compare(("ordinal",), "gte", row["ordinal"] - CONTEXT_MEMORIES),
            Compare(("ordinal",), "lt", row["ordinal"]),
        )
        columns = ["id", "ordinal", "text", "speaker"]
        return list(self._core.tables.memories.scan(before, order_by="ordinal", columns=columns))
