"""Which memories are near which, in batches: on the host in numpy; on a device where one is, by the kernels made for it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["leaders", "nearest_before"]

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_ROWS = 16_384
"""Rows compared at a time, so that what is in memory stays bounded."""


def nearest_before(rows: Floats, others: Floats, allowed: Mask, k: int, least: float) -> list[list[tuple[int, float]]]:
    """Return for each row its K nearest others with their cosines, nearest first, ties by position.

    Args:
        rows: `[n, D]` unit vectors.
        others: `[N, D]` unit vectors.
        allowed: `[n, N]`: which others count for which row.
        k: at most so many.
        least: only cosines that reach it.
    """
    kept: list[list[tuple[int, float]]] = [[] for _ in rows]
    for start in range(0, len(others), _ROWS):
        part = slice(start, start + _ROWS)
        cosines = np.where(allowed[:, part], rows @ others[part].T, -np.inf)
        for one, its in enumerate(cosines):
            near = np.flatnonzero(its >= least)
            best = near[np.argsort(-its[near], kind="stable")[:k]]
            kept[one] += [(start + int(at), float(its[at])) for at in best]
    return [sorted(one, key=lambda found: (-found[1], found[0]))[:k] for one in kept]


def leaders(vectors: Floats, cosine: float, *, least: int, most: int) -> list[list[int]]:
    """Return clusters of rows: each is a row with those nearest to it that no cluster before it has.

    Args:
        vectors: `[N, D]` unit vectors; the first rows lead first.
        cosine: how near the others of a cluster are to its leader.
        least: a smaller cluster is none.
        most: a larger one is cut; what is left may lead or join another.

    Returns:
        Positions, ascending within each cluster; a row is in one cluster at most.
    """
    similar = vectors @ vectors.T
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
