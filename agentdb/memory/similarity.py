"""Which memories are near which, in batches: on the host in numpy; on a device, where one is, by the kernels made for it.

Everywhere a device of None is the host, without torch. What the kernels compute is specified by `agentdb.kernels.reference`, and
both ways are held equal to it by tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agentdb.kernels import reference

__all__ = ["diverse", "late_interaction", "leaders", "nearest_before"]

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_ROWS = 16_384
"""Rows compared at a time, so that what is in memory stays bounded."""


def nearest_before(
    rows: Floats, others: Floats, allowed: Mask, k: int, least: float, *, device: str | None = None
) -> list[list[tuple[int, float]]]:
    """Return for each row its K nearest others with their cosines, nearest first, ties by position.

    Args:
        rows: `[n, D]` unit vectors.
        others: `[N, D]` unit vectors.
        allowed: `[n, N]`: which others count for which row.
        k: at most so many.
        least: only cosines that reach it.
        device: a torch device.
    """
    if device is not None:
        from agentdb.kernels.primitives import nearest

        places, cosines = nearest(rows, others, k, allowed=allowed, least=least, device=device)
        return [
            [(at, cosine) for at, cosine in zip(*one, strict=True) if at >= 0]
            for one in zip(places.tolist(), cosines.tolist(), strict=True)
        ]
    kept: list[list[tuple[int, float]]] = [[] for _ in rows]
    for start in range(0, len(others), _ROWS):
        part = slice(start, start + _ROWS)
        cosines = np.where(allowed[:, part], rows @ others[part].T, -np.inf)
        for one, its in enumerate(cosines):
            near = np.flatnonzero(its >= least)
            best = near[np.argsort(-its[near], kind="stable")[:k]]
            kept[one] += [(start + int(at), float(its[at])) for at in best]
    return [sorted(one, key=lambda found: (-found[1], found[0]))[:k] for one in kept]


def late_interaction(
    query: Floats, weights: Floats, tokens: Sequence[npt.NDArray[np.int8]], device: str | None = None
) -> Floats:
    """Return `[n]` the weighted sum, over the query's tokens, of the largest dot product with a token of each memory.

    Args:
        query: `[T, D]` unit vectors.
        weights: `[T]`.
        tokens: `[t, D]` in 1/127 of each memory; t at least 1.
        device: a torch device.
    """
    sizes = [len(one) for one in tokens]
    if device is not None:
        from agentdb.kernels.primitives import maxsim

        flat = np.concatenate(tokens).astype(np.float32) / np.float32(127)
        ends = np.cumsum([0, *sizes])
        on_device: Floats = maxsim(query[None], flat, ends, query_weights=weights[None], device=device)[0]
        return on_device
    scores = np.concatenate(tokens).astype(np.float32) @ (query.T / np.float32(127))
    best: Floats = np.maximum.reduceat(scores, np.cumsum([0, *sizes[:-1]]), axis=0)
    found: Floats = best @ weights
    return found


def diverse(
    vectors: Floats, relevance: npt.NDArray[Any], k: int, *, diversity: float, device: str | None = None
) -> list[int]:
    """Return the positions of K memories chosen one by one for relevance and for difference from those before.

    Args:
        vectors: `[C, D]`, C at most 1,024.
        relevance: `[C]`.
        k: how many.
        diversity: 0: relevance alone; 1: difference alone.
        device: a torch device.

    Source: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
    """
    wanted, weight = min(k, len(vectors)), 1 - diversity
    if not wanted:
        return []
    if device is None:
        chosen = reference.mmr(vectors, relevance, wanted, weight=weight)
    else:
        from agentdb.kernels.primitives import mmr

        chosen = mmr(vectors[None], relevance[None], wanted, weight=weight, device=device)[0]
    return [int(one) for one in chosen if one >= 0]


def _similar(vectors: Floats, cosine: float, device: str | None) -> Floats:
    """Return `[N, N]` cosines, -inf where they do not reach the bound on a device."""
    if device is None or cosine <= 0:
        found: Floats = vectors @ vectors.T
        return found
    from agentdb.kernels.primitives import near_duplicates

    pairs, _ = near_duplicates(vectors, cosine, device=device)
    found = np.full((len(vectors), len(vectors)), -np.inf, np.float32)
    np.fill_diagonal(found, 1.0)
    left, right = pairs[:, 0], pairs[:, 1]
    found[left, right] = found[right, left] = np.einsum("nd,nd->n", vectors[left], vectors[right])
    return found


def leaders(vectors: Floats, cosine: float, *, least: int, most: int, device: str | None = None) -> list[list[int]]:
    """Return clusters of rows: each is a row with those nearest to it that no cluster before it has.

    Args:
        vectors: `[N, D]` unit vectors; the first rows lead first.
        cosine: how near the others of a cluster are to its leader.
        least: a smaller cluster is none.
        most: a larger one is cut; what is left may lead or join another.
        device: a torch device.

    Returns:
        Positions, ascending within each cluster; a row is in one cluster at most.
    """
    similar = _similar(vectors, cosine, device)
    free = np.ones(len(vectors), np.bool_)
    found = []
    for leader in range(len(vectors)):
        if not free[leader]:
            continue
        near = np.flatnonzero(free & (similar[leader] >= cosine))
        near = near[near != leader]
        if len(near) + 1 < least:
            continue
        nearest = near[np.argsort(-similar[leader][near], kind="stable")[: most - 1]]
        members = np.sort(np.append(nearest, leader))
        free[members] = False
        found.append(members.tolist())
    return found
