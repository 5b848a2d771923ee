"""Summaries without a language model: the sentences that say most of what the others say, word for word and in their order."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError
from agentdb.memory.plugins import said
from agentdb.memory.ports import Statement
from agentdb.vectors.analysis import analyze

__all__ = ["ExtractiveSummariser"]

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\w\"'(\[])|\n+")
_MOST_SENTENCES, _MOST_CHARS = 20, 600
"""Of a memory so many sentences are looked at, and of a sentence so many characters are kept: a document is no episode."""
_DAMPING = 0.85
_ROUNDS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractiveSummariser:
    """Chooses the most central sentences: those that share rare words with many others. Nothing is rewritten.

    Every sentence keeps its speaker and its date. One that says nearly what a chosen one says is passed over. Deterministic.

    Attributes:
        share: of the sentences, at most this share is kept, one at least.
        most: at most so many sentences.
        redundancy: from this cosine of words on, a sentence says what a chosen one says.

    Source: Erkan and Radev, "LexRank: Graph-based Lexical Centrality as Salience in Text Summarization", JAIR 2004, with
    continuous weights; redundancy as in maximal marginal relevance (Carbonell and Goldstein, 1998).
    """

    share: float = 0.4
    most: int = 8
    redundancy: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 < self.redundancy <= 1:
            raise InvalidInputError("ExtractiveSummariser.share and redundancy must be above 0 and at most 1")
        if type(self.most) is not int or self.most < 1:
            raise InvalidInputError("ExtractiveSummariser.most must be an int of 1 or more")

    def summarise(self, statements: Sequence[Statement]) -> str:
        """Return the most central sentences, one a line, in the order of the statements."""
        sentences = [(one, part) for one in statements for part in sentences_of(one.text)]
        similar = _similarities([analyze([part])[0] for _, part in sentences])
        order = np.argsort(-_centrality(similar), kind="stable").tolist()
        most = min(self.most, max(1, math.ceil(self.share * len(sentences))))
        chosen: list[int] = []
        for at in order:
            if len(chosen) == most:
                break
            if not chosen or similar[at, chosen].max() < self.redundancy:
                chosen.append(at)
        return "\n".join(
            said(Statement(part, one.role, one.speaker, one.occurred_at))
            for one, part in (sentences[at] for at in sorted(chosen))
        )


def sentences_of(text: str) -> list[str]:
    """Return the first sentences of a text, at least one of a text that is not blank."""
    parts = [part for one in _SENTENCE.split(text) if (part := one.strip())][:_MOST_SENTENCES]
    return [part if len(part) <= _MOST_CHARS else part[: _MOST_CHARS - 1] + "…" for part in parts]


def _similarities(terms: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """Return `[n, n]` cosines of words, each weighted by how few sentences have it; 1 to itself."""
    counts = [Counter(one) for one in terms]
    having = Counter(word for one in counts for word in one)
    words = {word: i for i, word in enumerate(sorted(having))}
    rows = np.zeros((len(terms), max(len(words), 1)))
    for i, one in enumerate(counts):
        for word, count in one.items():
            rows[i, words[word]] = count * math.log1p(len(terms) / having[word])
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    found: npt.NDArray[np.float64] = rows @ rows.T
    np.fill_diagonal(found, 1.0)
    return found


def _centrality(similar: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return `[n]` how much of a random walk from sentence to similar sentence is spent in each."""
    links = similar - np.diag(similar.diagonal())  # what is like nothing else must not hold the walk
    total = links.sum(axis=1, keepdims=True)
    walk = np.where(total > 0, links / np.where(total > 0, total, 1.0), 1 / max(len(links), 1))
    at = np.full(len(walk), 1 / max(len(walk), 1))
    for _ in range(_ROUNDS):
        at = (1 - _DAMPING) / len(walk) + _DAMPING * (at @ walk)
    return at
