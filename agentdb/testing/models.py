"""A database as plain dicts: what every operation on tables must mean, without files, tiers or threads.

Rows are kept by key as callers get them; filters are evaluated by `agentdb.filters.matches`. Slow and obviously right.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from agentdb.filters import Filter, matches
from agentdb.kernels.reference import distances
from agentdb.storage.schema import Column, TableSchema
from agentdb.types import Key, Metric, OrderBy, Row

__all__ = ["ModelDatabase", "ModelTable", "frozen"]


def frozen(value: Any) -> Any:
    """Return a hashable form of a value or row that is equal only for the same value of the same type."""
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.tobytes())
    if isinstance(value, Mapping):
        return ("object", tuple(sorted((key, frozen(one)) for key, one in value.items())))
    if isinstance(value, list | tuple):
        return ("list", tuple(frozen(one) for one in value))
    if isinstance(value, datetime):
        return ("time", value.isoformat() if value.tzinfo is None else value.astimezone(UTC).isoformat())
    return (type(value).__name__, repr(value))


def _stored(column: Column, value: Any) -> Any:
    """Return a value as it comes back from a column."""
    if value is None:
        return None
    match column.kind:
        case "json":
            return json.loads(json.dumps(value))
        case "vector":
            return np.asarray(value, column.dtype)
        case "list":
            item = Column("item", column.type_name[5:-1])
            return [_stored(item, one) for one in value]
        case "timestamp":
            return value.astimezone(UTC)
        case "float":
            return float(np.float32(value)) if column.type_name == "float32" else float(value)
        case _:
            return value


class ModelTable:
    """One table: `rows` by key, the key as callers write it."""

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self.rows: dict[Key, Row] = {}

    def copy(self) -> ModelTable:
        """Return a table that later writes to this one do not change."""
        other = ModelTable(self.schema)
        other.rows = dict(self.rows)
        return other

    def put_many(self, rows: Iterable[Mapping[str, Any]]) -> int:
        count = 0
        for count, row in enumerate(rows, 1):  # noqa: B007 - counted on purpose
            stored = {column.name: _stored(column, row.get(column.name)) for column in self.schema.columns}
            self.rows[self.schema.key_values(stored)] = stored
        return count

    def matching(self, condition: Filter | None) -> list[Row]:
        """Return the rows that a filter selects, in the order of their keys."""
        rows = [self.rows[key] for key in sorted(self.rows)]
        return [row for row in rows if condition is None or matches(condition, row)]

    def delete_many(self, keys: Iterable[Key] | None = None, *, filter: Filter | None = None) -> int:
        if keys is None:
            keys = [self.schema.key_values(row) for row in self.matching(filter)]
        return sum(self.rows.pop(key, None) is not None for key in list(keys))

    def scan(
        self,
        filter: Filter | None = None,
        *,
        order_by: Sequence[OrderBy] = (),
        limit: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> list[Row]:
        """Return the rows in the order asked for, ties by key, nulls last."""
        rows = self.matching(filter)
        for one in reversed(order_by):
            name, direction = (one, "asc") if isinstance(one, str) else one
            present = [row for row in rows if row[name] is not None]
            present.sort(key=lambda row: row[name], reverse=direction == "desc")
            rows = present + [row for row in rows if row[name] is None]
        rows = rows[:limit]
        return rows if columns is None else [{name: row[name] for name in columns} for row in rows]

    def search(
        self,
        column: str,
        query: Sequence[float],
        k: int,
        *,
        metric: Metric = "cosine",
        filter: Filter | None = None,
    ) -> list[tuple[float, Key]]:
        """Return (distance, key) of the K nearest rows, best first, ties by key."""
        rows = [row for row in self.matching(filter) if row[column] is not None]
        if not rows:
            return []
        target = np.asarray(query, self.schema.column(column).dtype)[None, :]
        found = distances(target, np.stack([row[column] for row in rows]), metric)[0]
        ranked = [(float(distance), self.schema.key_values(row)) for distance, row in zip(found, rows, strict=True)]
        return sorted(ranked)[:k]

    def add_columns(self, fields: Iterable[pa.Field]) -> None:
        self.schema = self.schema.with_columns(fields)
        missing = {column.name: None for column in self.schema.columns}
        self.rows = {key: {**missing, **row} for key, row in self.rows.items()}


class ModelDatabase:
    """Tables by name, and a stack of states for transactions."""

    def __init__(self) -> None:
        self.tables: dict[str, ModelTable] = {}
        self._saved: list[dict[str, ModelTable]] = []

    @property
    def depth(self) -> int:
        """How many transactions are open within each other."""
        return len(self._saved)

    @property
    def committed(self) -> dict[str, ModelTable]:
        """What everybody outside the open transaction sees."""
        return self._saved[0] if self._saved else self.tables

    def state(self) -> dict[str, ModelTable]:
        """Return the tables as they are now; later writes do not change them."""
        return {name: table.copy() for name, table in self.tables.items()}

    def create(self, schema: TableSchema) -> ModelTable:
        return self.tables.setdefault(schema.name, ModelTable(schema))

    def drop(self, name: str) -> bool:
        return self.tables.pop(name, None) is not None

    def begin(self) -> None:
        self._saved.append(self.state())

    def commit(self) -> None:
        self._saved.pop()

    def roll_back(self) -> None:
        self.tables = self._saved.pop()
