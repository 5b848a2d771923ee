"""What a search must return, worked out with numpy in float64 and plain Python from the rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentdb.filters import Filter, matches
from agentdb.types import Hit

Rows = Mapping[str, Mapping[str, Any]]
"""id -> ``vector`` (or None), ``text``, ``metadata``."""


def distance(query: Any, vector: Any, metric: str) -> float:
    left, right = np.asarray(query, np.float64), np.asarray(vector, np.float64)
    if metric == "euclidean":
        return float(np.linalg.norm(left - right))
    if metric == "dot":
        return float(1.0 - left @ right)
    norms = np.linalg.norm(left) * np.linalg.norm(right)
    return float(1.0 - (left @ right / norms if norms > 0 else 0.0))


def nearest(rows: Rows, query: Any, metric: str, condition: Filter | None = None) -> list[tuple[float, str]]:
    """Return (distance, id) of every row that has a vector and matches, nearest first."""
    found = [
        (distance(query, row["vector"], metric), key)
        for key, row in rows.items()
        if row["vector"] is not None and (condition is None or matches(condition, {"id": key, **row}))
    ]
    return sorted(found)


def assert_nearest(
    hits: Sequence[Hit], rows: Rows, query: Any, k: int, metric: str, condition: Filter | None = None
) -> None:
    """Check hits against the truth; rows whose distances are equal to rounding may change places, also at the edge."""
    truth = nearest(rows, query, metric, condition)
    allowed = {key: one for one, key in truth}
    assert len(hits) == min(k, len(truth)), f"{len(hits)} hits of {len(truth)} rows, k={k}"
    assert len({hit.id for hit in hits}) == len(hits)
    # float32 distances of vectors of this size
    rounding = 3e-6 * (1.0 + max((abs(one) for one, _ in truth), default=0.0))
    if metric == "euclidean":
        rounding = max(rounding, 1e-3 * rounding**0.5)
    for hit, (expected, _) in zip(hits, truth, strict=False):
        assert abs(hit.distance - expected) <= rounding, (hit, expected)
        assert abs(hit.distance - allowed[hit.id]) <= rounding, (hit, allowed[hit.id])
        assert hit.text == rows[hit.id]["text"]
        assert hit.metadata == rows[hit.id]["metadata"]
