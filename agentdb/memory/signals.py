"""Recall: every signal's scores brought to 0..1 among the candidates of a query, and added up by weight.

The candidates are the best by words and by meaning; what a signal does not know of another's candidates is computed. What the
weights rest on, and what each signal is worth, is in docs/decisions/016.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError
from agentdb.filters import Filter
from agentdb.memory.encoding import QueryVectors
from agentdb.memory.policies import MemoryType
from agentdb.memory.records import Memory, Scope, Tier
from agentdb.memory.resident import AgentRows, ScopeRows

__all__ = ["Candidates", "MemoryContext", "RecallWeights", "Recalled", "Wanted", "candidates", "combine"]

CANDIDATES = 100
"""Of each of the two signals that find them."""
_QUERIES = 32
"""Queries that are compared at once."""
_WORDS_FOR_TOKENS = 0.33
"""Where a memory has no token vectors, words and meaning stand in for them: a third and two thirds."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallWeights:
    """How much each signal counts, all being between 0 and 1. 0 turns one off.

    Attributes:
        tokens: late interaction of the query's tokens with those of short memories, in context.
        words: BM25, each memory read together with its neighbours in the session.
        meaning: the cosine of vectors.
        speaker: the query names who said it.
        session: the best by ``tokens`` in the same session.
        user: the user said it, not the assistant.
        importance: as it was given or estimated.
        activation: how fresh it is, and how often used.
    """

    tokens: float = 0.45
    words: float = 0.2
    meaning: float = 0.15
    speaker: float = 0.15
    session: float = 0.15
    user: float = 0.3
    importance: float = 0.02
    activation: float = 0.1

    def __post_init__(self) -> None:
        values = [getattr(self, one.name) for one in fields(self)]
        if not (all(0 <= one < np.inf for one in values) and self.words + self.meaning + self.tokens > 0):
            raise InvalidInputError(
                "recall weights must be finite, 0 or more, and those of words, meaning and tokens not all 0"
            )


@dataclass(frozen=True, slots=True)
class Recalled:
    """A memory that was recalled.

    Attributes:
        memory: as it stood, before this recall was counted as a use.
        score: 0 to 1, higher is better; it compares the memories of one query, not of two.
        signals: if an explanation was asked for: what each signal said, 0 to 1, by the names in `RecallWeights`.
    """

    memory: Memory
    score: float
    signals: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class MemoryContext:
    """What was recalled as text for a prompt.

    Attributes:
        text: one line for each memory, numbered from 1 in the order in which they happened.
        sources: the memories, in the order of their numbers.
        tokens: how many the text has, about.
    """

    text: str
    sources: tuple[Recalled, ...]
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which memories may be recalled; see ``AgentMemories.recall``."""

    scope: Scope
    tiers: tuple[Tier, ...] | None
    types: tuple[MemoryType, ...] | None
    filter: Filter | None
    since: datetime | None
    until: datetime | None
    valid_at: datetime
    known_at: datetime | None
    now: datetime

    def among(self, rows: AgentRows, of: ScopeRows) -> npt.NDArray[np.bool_]:
        """Return `[M]`: which rows of the scope may be recalled."""
        slots = of.slots

        def number(name: str) -> npt.NDArray[np.int64]:
            return rows.number(name)[slots]

        chosen = number("status") == rows.code("status", "active")
        valid, known = _microseconds(self.valid_at), _microseconds(self.known_at or self.now)
        chosen &= (number("valid_from") <= valid) & (valid < number("valid_to")) & (known < number("retracted_at"))
        if self.known_at is not None:  # otherwise all that is here is known, even if a clock that was ahead recorded it
            chosen &= number("recorded_at") <= known
        if self.tiers is not None:
            chosen &= np.isin(number("tier"), [rows.code("tier", one) for one in self.tiers])
        if self.types is not None:
            chosen &= np.isin(number("memory_type"), [rows.code("memory_type", one) for one in self.types])
        if self.since is not None or self.until is not None:
            at = number("occurred_at")
            at = np.where(at == np.iinfo(np.int64).min, number("recorded_at"), at)
            if self.since is not None:
                chosen &= at >= _microseconds(self.since)
            if self.until is not None:
                chosen &= at < _microseconds(self.until)
        if self.filter is not None and chosen.any():
            chosen &= rows.holds(self.filter)[slots]
        found: npt.NDArray[np.bool_] = chosen
        return found


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be recalled, and what the signals say of it. `[n]` each.

    Attributes:
        slots: where the rows are.
        signals: 0 to 1, by name.
    """

    slots: npt.NDArray[np.int64]
    signals: dict[str, Floats]


def candidates(
    queries: Sequence[str],
    vectors: Sequence[QueryVectors] | None,
    rows: AgentRows,
    wanted: Wanted,
    least: int,
) -> list[Candidates]:
    """Return for each query the memories that words or meaning find, at least ``least`` if there are so many, and their signals.

    Args:
        queries: in words.
        vectors: the same as vectors; None: there is no embedder, words are what there is.
        rows: the agent's memories.
        wanted: which of them may be recalled.
        least: how many are wanted.
    """
    of = rows.scope(wanted.scope)
    allowed = wanted.among(rows, of)
    found = []
    for start in range(0, len(queries), _QUERIES):
        some, its = queries[start : start + _QUERIES], None if vectors is None else vectors[start : start + _QUERIES]
        meanings = np.full((len(some), len(of.slots)), np.nan, np.float32) if its is None else rows.meaning(its, of)
        for i, query in enumerate(some):
            one = None if its is None else its[i]
            found.append(_candidates(query, one, meanings[i], rows, of, allowed, max(CANDIDATES, least)))
    return found


def _candidates(
    query: str,
    vectors: QueryVectors | None,
    meaning: npt.NDArray[np.float32],
    rows: AgentRows,
    of: ScopeRows,
    allowed: npt.NDArray[np.bool_],
    many: int,
) -> Candidates:
    words = rows.words(query, of)
    found = np.union1d(
        _best(np.where(allowed & (words > 0), words, -np.inf), many),
        _best(np.where(allowed & ~np.isnan(meaning), meaning, -np.inf), many),
    )
    slots = of.slots[found]
    scores = {
        "words": normalized(words[found], floor=0.0),
        "meaning": normalized(meaning[found]),
    }
    # A memory without a vector is found by its words alone: in meaning it counts as the least of the others.
    scores["meaning"] = np.nan_to_num(scores["meaning"], nan=0.0)
    late = normalized(np.full(len(slots), np.nan) if vectors is None else rows.late(vectors, slots, of))
    instead = _WORDS_FOR_TOKENS * scores["words"] + (1 - _WORDS_FOR_TOKENS) * scores["meaning"]
    scores["tokens"] = np.where(np.isnan(late), instead, late)
    scores["speaker"] = rows.named(query, slots).astype(np.float64)
    scores["session"] = _of_groups(scores["tokens"], rows.number("session")[slots])
    scores["user"] = (rows.number("role")[slots] == rows.code("role", "user")).astype(np.float64)
    scores["importance"] = rows.importance[slots]
    return Candidates(slots, scores)


def _best(scores: npt.NDArray[Any], many: int) -> npt.NDArray[np.int64]:
    found = np.flatnonzero(scores > -np.inf)
    if len(found) > many:
        found = found[np.argpartition(-scores[found], many - 1)[:many]]
    return found


def normalized(scores: npt.NDArray[Any], *, floor: float | None = None) -> Floats:
    """Return scores between 0, at the floor or the lowest, and 1, at the highest; nan stays. All alike are 1."""
    values = np.asarray(scores, np.float64)
    known = values[~np.isnan(values)]
    if not len(known):
        return values
    low, high = known.min() if floor is None else floor, known.max()
    if high <= low:
        return np.where(np.isnan(values), np.nan, 1.0 if floor is None or high > floor else 0.0)
    found: Floats = np.clip((values - low) / (high - low), 0.0, 1.0)
    return found


def _of_groups(scores: Floats, groups: npt.NDArray[np.int64]) -> Floats:
    """Return for each the best score of its group; 0 for those of none (below 0)."""
    names, which = np.unique(groups, return_inverse=True)
    best = np.zeros(len(names))
    np.maximum.at(best, which, scores)
    return np.where(groups >= 0, best[which], 0.0)


def combine(signals: Mapping[str, Floats], weights: RecallWeights) -> Floats:
    """Return `[n]` the weighted mean of signals, 0 to 1."""
    by_name = {one.name: float(getattr(weights, one.name)) for one in fields(weights)}
    total = sum(by_name.values())
    length = len(next(iter(signals.values())))
    found: Floats = sum((by_name[name] / total * one for name, one in signals.items()), start=np.zeros(length))
    return found


def within_budget(found: Iterable[Recalled], sizes: Iterable[int], budget: int) -> list[Recalled]:
    """Return the best that fit: one that is too large for what is left is passed over, smaller ones behind it are not."""
    kept = []
    for one, size in zip(found, sizes, strict=True):
        if size <= budget:
            budget -= size
            kept.append(one)
    return kept
