"""The specification of every similarity kernel: numpy, no tricks."""

from __future__ import annotations

from typing import Any

import numpy as np

from agentdb.errors import InvalidInputError
from agentdb.types import Metric

__all__ = ["distances", "score_of_distance"]


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
