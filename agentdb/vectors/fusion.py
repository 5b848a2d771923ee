"""One ranking from several signals, and diversity among the best: pure functions of scores and vectors.

The measurements behind the defaults are in docs/decisions/011.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError
from agentdb.kernels import reference

__all__ = ["Fusion", "Signal", "fuse", "mmr"]

Fusion = Literal["normalized", "rrf"]

Floats = npt.NDArray[np.float64]

RRF_K = 60
"""How slowly the worth of a rank falls, as in the paper."""


@dataclass(frozen=True, slots=True, eq=False)
class Signal:
    """What one way of searching says about the candidates of a query.

    Attributes:
        name: what weights call it.
        scores: `[N]` one for each candidate, higher is better; nan where it has nothing to say.
        floor: the score that says "nothing in common" (BM25: 0), if the signal has one; a candidate at the floor counts as one
            that the signal did not find.
    """

    name: str
    scores: npt.NDArray[Any]
    floor: float | None = None


def fuse(
    signals: Sequence[Signal], weights: Mapping[str, float] | None = None, method: Fusion = "normalized"
) -> Floats:
    """Return one score for every candidate, higher is better; what a signal did not find it adds nothing to.

    - ``"normalized"``: each signal's scores are brought to 0..1 for this query, from its floor (without one: its lowest score
      among the candidates) to its highest; the result is their weighted mean, 0 to 1.
    - ``"rrf"``: the weighted sum of ``1 / (60 + rank)``; equal scores share the better rank.

    The scores of a normalized fusion compare the candidates of one query; they say nothing about another's.

    Args:
        signals: about the same N candidates.
        weights: 0 or more, by the signal's name; a signal that is not named counts 1.
        method: how.

    Returns:
        `[N]` float64.

    Raises:
        InvalidInputError: an argument cannot be accepted.

    Source: Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023; Cormack, Clarke and
    Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR 2009.
    """
    if method not in get_args(Fusion):
        raise InvalidInputError(f"fusion must be one of {', '.join(get_args(Fusion))}, not {method!r}")
    if len({len(signal.scores) for signal in signals}) != 1:
        raise InvalidInputError("signals must be one or more, about the same candidates")
    given = dict(weights or {})
    unknown = given.keys() - {signal.name for signal in signals}
    if unknown:
        raise InvalidInputError(f"there is no signal named {', '.join(map(repr, sorted(unknown)))}")
    used = [float(given.get(signal.name, 1.0)) for signal in signals]
    if not (all(0 <= weight < np.inf for weight in used) and sum(used) > 0):
        raise InvalidInputError("weights must be finite, 0 or more, and not all 0")
    fused = np.zeros(len(signals[0].scores))
    for signal, weight in zip(signals, used, strict=True):
        scores = np.asarray(signal.scores, np.float64)
        found = ~np.isnan(scores) if signal.floor is None else scores > signal.floor
        if not found.any():
            continue
        if method == "rrf":
            fused[found] += weight * _reciprocal_ranks(scores[found])
        else:
            fused[found] += weight / sum(used) * _normalized(scores[found], signal.floor)
    return fused


def _normalized(scores: Floats, floor: float | None) -> Floats:
    low, high = scores.min() if floor is None else floor, scores.max()
    # Alone, or all alike: found, and none better than another.
    return (scores - low) / (high - low) if high > low else np.ones_like(scores)


def _reciprocal_ranks(scores: Floats) -> Floats:
    better = len(scores) - np.searchsorted(np.sort(scores), scores, side="right")
    return 1.0 / (RRF_K + 1 + better)


def mmr(
    vectors: npt.NDArray[Any], scores: npt.NDArray[Any], k: int, *, lambda_mult: float = 0.5
) -> npt.NDArray[np.int64]:
    """Return the positions of K candidates, chosen one by one for their score and for difference from those before.

    Each choice takes the largest ``lambda_mult * score - (1 - lambda_mult) * (largest cosine to a chosen one)``, ties by lower
    position.

    Args:
        vectors: `[N, D]`.
        scores: `[N]`, on the scale of a cosine.
        k: at least 1; no more than N are returned.
        lambda_mult: 1: the score alone; 0: difference alone.

    Raises:
        InvalidInputError: an argument cannot be accepted.

    Source: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
    """
    if k < 1 or not 0 <= lambda_mult <= 1:
        raise InvalidInputError(f"k must be at least 1 and lambda_mult from 0 to 1, not {k} and {lambda_mult}")
    if vectors.ndim != 2 or len(vectors) != len(scores):
        raise InvalidInputError(f"vectors {vectors.shape} and scores {scores.shape} must be [N, D] and [N]")
    chosen = reference.mmr(vectors, scores, min(k, len(vectors)), weight=lambda_mult)
    return chosen[chosen >= 0]
