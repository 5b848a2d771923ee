"""The specification of every similarity kernel: numpy in float64, no tricks.

A *score* is ``alpha[row] * similarity(query, row) + beta[row]``, where the similarity is the cosine (0 where either
vector is zero), the dot product, or the negative squared Euclidean distance. Rows that are not live do not exist.
Rankings go by score, highest first, and among equal scores by position, lowest first.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from agentdb.errors import InvalidInputError
from agentdb.types import Metric

__all__ = [
    "distances",
    "maxsim",
    "mmr",
    "near_duplicates",
    "score_of_distance",
    "segmented_topk",
    "similarities",
    "topk",
]

Floats = np.ndarray[Any, np.dtype[np.float64]]
Rows = np.ndarray[Any, np.dtype[np.int64]]


def distances(queries: np.ndarray[Any, Any], corpus: np.ndarray[Any, Any], metric: Metric) -> np.ndarray[Any, Any]:
    """Return the distance of every query to every row; lower is nearer.

    Args:
        queries: `[Q, D]` float32 or float16, finite.
        corpus: `[N, D]` float32 or float16, finite.
        metric: ``"cosine"``: ``1 - cos``, 1 where either is zero; ``"l2"``: squared Euclidean; ``"dot"``: ``1 - dot``.

    Returns:
        `[Q, N]` float32, computed in float64.

    Raises:
        InvalidInputError: dimensions differ, or the metric is unknown.
    """
    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise InvalidInputError(f"queries {queries.shape} and corpus {corpus.shape} must be [Q, D] and [N, D]")
    left, right = queries.astype(np.float64), corpus.astype(np.float64)
    if metric == "l2":
        # Row by row: the expanded square would cancel for near neighbours.
        result = (
            np.stack([((right - one) ** 2).sum(axis=1) for one in left]) if len(left) else np.empty((0, len(right)))
        )
    elif metric == "dot":
        result = 1.0 - left @ right.T
    elif metric == "cosine":
        norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None, :]
        cosine = np.divide(left @ right.T, norms, out=np.zeros_like(norms), where=norms > 0)
        result = 1.0 - cosine
    else:
        raise InvalidInputError(f"metric must be 'cosine', 'l2' or 'dot', not {metric!r}")
    return np.asarray(result.astype(np.float32))


def score_of_distance(distance: float, metric: Metric) -> float:
    """Return the score of a distance, higher is better: the cosine, the dot product, or ``1 / (1 + distance)`` for L2."""
    return 1.0 / (1.0 + distance) if metric == "l2" else 1.0 - distance


def similarities(queries: np.ndarray[Any, Any], corpus: np.ndarray[Any, Any], metric: Metric) -> Floats:
    """Return `[Q, N]` float64 similarities, higher is nearer: cosine, dot product, or negative squared distance.

    Raises:
        InvalidInputError: dimensions differ, or the metric is unknown.
    """
    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise InvalidInputError(f"queries {queries.shape} and corpus {corpus.shape} must be [Q, D] and [N, D]")
    left, right = queries.astype(np.float64), corpus.astype(np.float64)
    if metric == "l2":
        # Row by row: the expanded square would cancel for near neighbours.
        rows = [-((right - one) ** 2).sum(axis=1) for one in left]
        return np.stack(rows) if rows else np.empty((0, len(right)))
    if metric == "dot":
        return np.asarray(left @ right.T)
    if metric == "cosine":
        norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None, :]
        return np.asarray(np.divide(left @ right.T, norms, out=np.zeros_like(norms), where=norms > 0))
    raise InvalidInputError(f"metric must be 'cosine', 'l2' or 'dot', not {metric!r}")


def topk(
    queries: np.ndarray[Any, Any],
    corpus: np.ndarray[Any, Any],
    k: int,
    metric: Metric,
    *,
    alpha: np.ndarray[Any, Any] | None = None,
    beta: np.ndarray[Any, Any] | None = None,
    live: np.ndarray[Any, Any] | None = None,
) -> tuple[Floats, Rows]:
    """Return the K best live rows for each query, best first, ties by lower row.

    Args:
        queries: `[Q, D]`, finite.
        corpus: `[N, D]`, finite.
        k: at least 1.
        metric: what similarity means.
        alpha: `[N]` factors, 1 if None.
        beta: `[N]` summands, 0 if None.
        live: `[N]` bool, all True if None.

    Returns:
        scores `[Q, K]` float64 and rows `[Q, K]` int64; where fewer than k rows live, -inf and -1.
    """
    if k < 1:
        raise InvalidInputError(f"k must be at least 1, not {k}")
    scores = similarities(queries, corpus, metric)
    if alpha is not None:
        scores = scores * alpha.astype(np.float64)
    if beta is not None:
        scores = scores + beta.astype(np.float64)
    if live is not None:
        scores = np.where(live, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64)
    best = np.take_along_axis(scores, order, axis=1)
    order[best == -np.inf] = -1
    short = k - order.shape[1]
    if short > 0:
        best = np.pad(best, ((0, 0), (0, short)), constant_values=-np.inf)
        order = np.pad(order, ((0, 0), (0, short)), constant_values=-1)
    return best, order


def segmented_topk(
    queries: np.ndarray[Any, Any],
    query_owners: np.ndarray[Any, Any],
    corpus: np.ndarray[Any, Any],
    owners: np.ndarray[Any, Any],
    k: int,
    metric: Metric,
    *,
    alpha: np.ndarray[Any, Any] | None = None,
    beta: np.ndarray[Any, Any] | None = None,
    live: np.ndarray[Any, Any] | None = None,
) -> tuple[Floats, Rows]:
    """Return for each query the K best live rows among those of its own owner, as `topk` does.

    Args:
        queries: `[Q, D]`, finite.
        query_owners: `[Q]` integers; an owner without rows finds nothing.
        corpus: `[N, D]`, finite.
        owners: `[N]` integers, the owner of every row.
        k: at least 1.
        metric: what similarity means.
        alpha: `[N]` factors, 1 if None.
        beta: `[N]` summands, 0 if None.
        live: `[N]` bool, all True if None.
    """
    alive = np.ones(len(corpus), bool) if live is None else live
    parts = [
        topk(one[None], corpus, k, metric, alpha=alpha, beta=beta, live=alive & (owners == owner))
        for one, owner in zip(queries, query_owners, strict=True)
    ]
    if not parts:
        return np.empty((0, k)), np.empty((0, k), np.int64)
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([rows for _, rows in parts])


def maxsim(
    queries: np.ndarray[Any, Any],
    tokens: np.ndarray[Any, Any],
    offsets: np.ndarray[Any, Any],
    *,
    query_weights: np.ndarray[Any, Any] | None = None,
) -> Floats:
    """Return the late-interaction score of every query and document; a document without tokens scores -inf.

    The score sums over query tokens the token's weight times its largest dot product with a token of the document.

    Args:
        queries: `[Q, Tq, D]`; pad with tokens of weight 0.
        tokens: `[T, D]`, the tokens of all documents one after another.
        offsets: `[N + 1]`: document n owns tokens ``offsets[n]`` to ``offsets[n + 1]``.
        query_weights: `[Q, Tq]`, 1 if None.

    Returns:
        `[Q, N]` float64.

    Source: Khattab and Zaharia, "ColBERT", SIGIR 2020.
    """
    weights = np.ones(queries.shape[:2]) if query_weights is None else query_weights.astype(np.float64)
    result = np.full((len(queries), len(offsets) - 1), -np.inf)
    for document, (begin, end) in enumerate(pairwise(offsets)):
        if begin < end:
            products = queries.astype(np.float64) @ tokens[begin:end].astype(np.float64).T
            result[:, document] = (products.max(axis=2) * weights).sum(axis=1)
    return result


def mmr(candidates: np.ndarray[Any, Any], relevance: np.ndarray[Any, Any], k: int, *, weight: float) -> Rows:
    """Return the positions of K candidates chosen greedily for relevance and for difference from those chosen before.

    Each step takes the largest ``weight * relevance - (1 - weight) * (largest cosine to a chosen one)``, ties by lower
    position; for the first step the second term is 0. A candidate of relevance -inf does not exist.

    Args:
        candidates: `[C, D]`.
        relevance: `[C]`.
        k: results.
        weight: 0 (difference only) to 1 (relevance only).

    Returns:
        `[K]` int64; -1 where no candidate was left.

    Source: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
    """
    gram = similarities(candidates, candidates, "cosine")
    free = relevance.astype(np.float64) > -np.inf
    value = np.where(free, relevance.astype(np.float64), 0.0)
    nearest = np.full(len(candidates), -np.inf)
    chosen = np.full(k, -1, np.int64)
    for step in range(min(k, int(free.sum()))):
        penalty = np.where(np.isfinite(nearest), nearest, 0.0)
        score = np.where(free, weight * value - (1 - weight) * penalty, -np.inf)
        pick = int(np.argmax(score))
        chosen[step] = pick
        free[pick] = False
        nearest = np.maximum(nearest, gram[pick])
    return chosen


def near_duplicates(vectors: np.ndarray[Any, Any], threshold: float) -> tuple[Rows, Rows]:
    """Return all pairs of rows whose cosine reaches the threshold, and the group that each row falls in.

    Returns:
        pairs `[P, 2]` int64, lower row first, in ascending order; labels `[N]` int64: the lowest row that can be
        reached from a row through pairs, itself if it is in none.
    """
    near = np.triu(similarities(vectors, vectors, "cosine") >= threshold, 1)
    pairs = np.argwhere(near).astype(np.int64).reshape(-1, 2)
    labels = np.arange(len(vectors), dtype=np.int64)
    changed = True
    while changed:
        before = labels.copy()
        for left, right in pairs:
            labels[left] = labels[right] = min(labels[left], labels[right])
        changed = bool((labels != before).any())
    return pairs, labels
