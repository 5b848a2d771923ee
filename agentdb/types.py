"""Plain values that several floors share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

__all__ = [
    "ErasureReceipt",
    "Hit",
    "Key",
    "Metric",
    "OnProgress",
    "OrderBy",
    "Problem",
    "Progress",
    "Row",
    "Statistics",
    "TableStatistics",
    "VerifyReport",
]

Metric = Literal["cosine", "l2", "dot"]
Key = Any
"""A row's key: one value for a key of one column, a tuple in column order for more."""
Row = dict[str, Any]
OrderBy = str | tuple[str, Literal["asc", "desc"]]


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result. ``score``: higher is better; ``distance``: lower is better."""

    id: Any
    score: float
    distance: float
    text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErasureReceipt:
    """Evidence of an ``erase``: ``pending`` while a pinned snapshot still holds the data, then ``complete``."""

    id: str
    table: str
    rows: int
    status: Literal["pending", "complete"]
    requested_at: datetime
    completed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long operation is: ``done`` of ``total`` steps of ``stage``."""

    stage: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]
"""Called from time to time by long operations. What it raises cancels the operation without damage."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that `verify` found wrong. ``table`` is None for the database as a whole."""

    table: str | None
    what: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` checked and found; ``ok`` when there is no problem."""

    ok: bool
    problems: tuple[Problem, ...]
    tables: int
    rows: int
    files: int


@dataclass(frozen=True, slots=True)
class TableStatistics:
    """One table's size. ``hot_rows`` counts tombstones too; cold figures are of the current version."""

    hot_rows: int
    hot_bytes: int
    cold_rows: int
    cold_bytes: int
    cold_version: int
    fragments: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a database holds and how its maintenance stands."""

    path: str
    database_id: str
    format: int
    commits: int
    sqlite_bytes: int
    wal_bytes: int
    cold_bytes: int
    tables: Mapping[str, TableStatistics]
    maintenance_error: str | None
