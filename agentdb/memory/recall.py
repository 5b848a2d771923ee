"""How memories are recalled: the arguments checked, the signals of one agent's memories asked, the best read and counted as used."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, cast

import numpy as np

from agentdb.errors import InvalidInputError, StorageError
from agentdb.filters import Filter
from agentdb.memory.core import MemoryCore
from agentdb.memory.embedding import AT_RECALL, MemoryEmbedding
from agentdb.memory.encoding import QueryVectors
from agentdb.memory.maintenance import activations
from agentdb.memory.policies import MemoryType
from agentdb.memory.records import Memory, Scope, Tier, check_optional_moment, check_tier, check_type
from agentdb.memory.resident import AgentRows
from agentdb.memory.rows import several
from agentdb.memory.signals import (
    MemoryContext,
    Recalled,
    RecallWeights,
    Wanted,
    candidates,
    combine,
    within_budget,
)
from agentdb.memory.similarity import diverse

__all__ = ["ContextOptions", "RecallOptions", "Recaller"]


log = logging.getLogger("agentdb.memory")

_MOST_DIVERSE = 1_024


class ContextOptions(TypedDict, total=False):
    """What `AgentMemories.context` may be told besides the query, the agent and the budget; see `AgentMemories.recall`."""

    user_id: str | int | None
    session_id: str | int | None
    namespace: str | int | None
    k: int
    types: Iterable[MemoryType] | None
    tiers: Iterable[Tier] | None
    filter: Filter | None
    since: datetime | None
    until: datetime | None
    valid_at: datetime | None
    known_at: datetime | None
    weights: RecallWeights | None
    diversity: float
    reinforce: bool


class RecallOptions(ContextOptions, total=False):
    """What a recall may be told besides the query and the agent; what each means, and its default, is in `AgentMemories.recall`."""

    token_budget: int | None
    explain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The arguments of a recall, checked."""

    wanted: Wanted
    k: int
    token_budget: int | None
    weights: RecallWeights
    diversity: float
    reinforce: bool
    explain: bool


def _request(
    now: datetime,
    agent_id: str | int,
    *,
    user_id: Any = None,
    session_id: Any = None,
    namespace: Any = None,
    k: Any = 10,
    types: Any = None,
    tiers: Any = None,
    filter: Any = None,
    since: Any = None,
    until: Any = None,
    valid_at: Any = None,
    known_at: Any = None,
    token_budget: Any = None,
    weights: Any = None,
    diversity: Any = 0.0,
    reinforce: Any = True,
    explain: Any = False,
) -> _Request:
    """Return the arguments of a recall as they were meant.

    Raises:
        InvalidInputError: one of them cannot be accepted; the message names it.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InvalidInputError("k must be an int of 1 or more")
    if token_budget is not None and (type(token_budget) is not int or token_budget < 0):
        raise InvalidInputError("token_budget must be an int of 0 or more, or None")
    if filter is not None and not isinstance(filter, Filter):
        raise InvalidInputError(f"filter must be built from field(...), not {type(filter).__name__}")
    if weights is not None and not isinstance(weights, RecallWeights):
        raise InvalidInputError(f"weights must be RecallWeights, not {type(weights).__name__}")
    if isinstance(diversity, bool) or not isinstance(diversity, int | float) or not 0 <= diversity <= 1:
        raise InvalidInputError("diversity must be a number from 0 to 1")
    for name, flag in (("reinforce", reinforce), ("explain", explain)):
        if not isinstance(flag, bool):
            raise InvalidInputError(f"{name} must be a bool, not {type(flag).__name__}")
    wanted = Wanted(
        scope=Scope.of(agent_id, user_id, namespace, session_id),
        tiers=None if tiers is None else tuple(check_tier(one) for one in several("tiers", tiers)),
        types=None if types is None else tuple(check_type(one) for one in several("types", types)),
        filter=filter,
        since=check_optional_moment("since", since),
        until=check_optional_moment("until", until),
        valid_at=check_optional_moment("valid_at", valid_at) or now,
        known_at=check_optional_moment("known_at", known_at),
        now=now,
    )
    return _Request(
        wanted=wanted,
        k=k,
        token_budget=token_budget,
        weights=RecallWeights() if weights is None else weights,
        diversity=float(diversity),
        reinforce=reinforce,
        explain=explain,
    )


class Recaller:
    """Recalls the memories of a database. Any number of threads may ask at once; those of one agent wait for each other."""

    def __init__(self, core: MemoryCore, embedding: MemoryEmbedding) -> None:
        self._core = core
        self._embedding = embedding

    def many(self, queries: Sequence[str], agent_id: str | int, options: RecallOptions) -> list[list[Recalled]]:
        """See `AgentMemories.recall_many`."""
        if isinstance(queries, str) or not isinstance(queries, Sequence):
            raise InvalidInputError(f"queries must be a list of strings, not {type(queries).__name__}")
        for one in queries:
            if not isinstance(one, str) or not one.strip():
                raise InvalidInputError("a query must be a str that is not empty")
        now = self._core.now()
        request = _request(now, agent_id, **options)
        if self._core.is_empty:
            return [[] for _ in queries]
        vectors = self._embedding.queries(list(queries))
        if vectors is not None and not self._core.is_inside and self._core.can_write:
            rows = self._core.resident.agent(request.wanted.scope.agent_id, *self._embedding.space())
            try:
                self._embedding.embed_waiting(rows, AT_RECALL)
            except StorageError as error:
                log.warning("memories are found by their words until they can be embedded: %s", error)
        with self._core.view():
            found = self._best(queries, vectors, request, now)
        if request.token_budget is not None:
            for best in found:
                sizes = self._embedding.count_tokens([one.memory.text for one in best])
                best[:] = within_budget(best, sizes, request.token_budget)
        if request.reinforce:
            self._reinforce([one.memory.id for best in found for one in best])
        return found

    def _best(
        self, queries: Sequence[str], vectors: Sequence[QueryVectors] | None, request: _Request, now: datetime
    ) -> list[list[Recalled]]:
        """Return the best memories for each query; what they hold is read once for all of them."""
        name, dimension = self._embedding.space() if vectors is not None else (None, 0)
        agent_id, cache = request.wanted.scope.agent_id, self._core.resident
        rows = cache.agent(agent_id, name, dimension)
        with rows.lock:
            if rows.advance():
                ranked = self._ranked(queries, vectors, request, rows, now)
                cache.note(agent_id, name, rows.nbytes)
            else:
                alone = cache.one_off(agent_id, name, dimension)
                ranked = self._ranked(queries, vectors, request, alone, now)
        ids = list(dict.fromkeys(memory_id for best in ranked for memory_id, _, _ in best))
        memories = {one.id: one for one in self._core.read(ids)} if ids else {}
        return [[Recalled(memories[one], score, signals) for one, score, signals in best] for best in ranked]

    def _ranked(
        self,
        queries: Sequence[str],
        vectors: Sequence[QueryVectors] | None,
        request: _Request,
        rows: AgentRows,
        now: datetime,
    ) -> list[list[tuple[str, float, dict[str, float]]]]:
        """Return id, score and, if wanted, the signals of the best for each query, best first."""
        found = candidates(queries, vectors, rows, request.wanted, request.k)
        ids = [[rows.ids[slot] for slot in one.slots.tolist()] for one in found]
        needed = list(dict.fromkeys(memory_id for some in ids for memory_id in some))
        uses = dict(zip(needed, self._core.tables.uses.get_many(needed), strict=True)) if needed else {}
        ranked = []
        for one, its in zip(found, ids, strict=True):
            activation = activations(rows, one.slots, [uses[memory_id] for memory_id in its], self._core.policies, now)
            signals = {**one.signals, "activation": activation}
            scores = combine(signals, request.weights).tolist()
            best = sorted(zip(scores, its, range(len(its)), strict=True), key=lambda at: (-at[0], at[1]))
            if request.diversity:
                best = best[:_MOST_DIVERSE]
                # Those without a vector are like no other.
                vectors_of = rows.vectors(one.slots[[i for _, _, i in best]])
                relevance = np.array([score for score, _, _ in best])
                chosen = diverse(vectors_of, relevance, request.k, diversity=request.diversity, device=rows.device)
                best = [best[at] for at in chosen]
            best = best[: request.k]
            shown = signals if request.explain else {}
            ranked.append(
                [(memory_id, score, {name: float(of[i]) for name, of in shown.items()}) for score, memory_id, i in best]
            )
        return ranked

    def _reinforce(self, ids: Sequence[str]) -> None:
        """Count a recall as a use of what it returned, where anything can be written: the answer is there, whatever comes of it."""
        if not ids or not self._core.can_write:
            return
        try:
            self._core.engine.transact(lambda: self._core.count_use(ids))
        except StorageError as error:
            if self._core.is_inside:
                raise  # the caller's transaction is not what it should be
            log.warning("a recall was not counted as a use: %s", error)

    def context(self, query: str, agent_id: str | int, token_budget: int, options: ContextOptions) -> MemoryContext:
        """See `AgentMemories.context`."""
        if type(token_budget) is not int or token_budget < 0:
            raise InvalidInputError("token_budget must be an int of 0 or more")
        reinforce = options.get("reinforce", True)
        if not isinstance(reinforce, bool):
            raise InvalidInputError(f"reinforce must be a bool, not {type(reinforce).__name__}")
        asked = cast(RecallOptions, {"k": 20, **options, "reinforce": False})
        found = self.many([query], agent_id, asked)[0]
        last = max(len(found), 10)  # no number is longer
        sizes = self._embedding.count_tokens([_line(last, one.memory) + "\n" for one in found]) if found else []
        kept = within_budget(found, sizes, token_budget)
        kept.sort(key=lambda one: (one.memory.occurred_at or one.memory.recorded_at, one.memory.id))
        text = "\n".join(_line(number, one.memory) for number, one in enumerate(kept, 1))
        if reinforce:
            self._reinforce([one.memory.id for one in kept])
        return MemoryContext(text, tuple(kept), self._embedding.count_tokens([text])[0] if text else 0)


def _line(number: int, memory: Memory) -> str:
    at = memory.occurred_at or memory.recorded_at
    # In one line each: nobody may look like somebody else by a name or a text of several.
    who, text = (" ".join((one or "").split()) for one in (memory.speaker or memory.role, memory.text))
    return f"[{number}] {at:%Y-%m-%d} {who}: {text}" if who else f"[{number}] {at:%Y-%m-%d} {text}"
