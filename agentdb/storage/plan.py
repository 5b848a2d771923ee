"""A filter made ready for both tiers, and the shape in which rows of both come together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from agentdb.filters import Filter, columns_of, matches
from agentdb.storage.hot import TableEntry
from agentdb.storage.predicates import LancePredicate, compile_lance, compile_sqlite, key_bounds, lance_key_range
from agentdb.storage.schema import TableSchema

__all__ = ["Plan", "complete", "hot_table"]


@dataclass(frozen=True)
class Plan:
    """A filter, compiled for both tiers; for the cold one only when that is asked for, as small tables have none."""

    schema: TableSchema
    condition: Filter | None = None
    hot_where: str | None = None
    hot_parameters: tuple[Any, ...] = ()
    hot_exact: bool = True
    low: str | None = None
    high: str | None = None
    fixed: int = 0
    """How many leading key columns have the same value in all rows that match."""

    @classmethod
    def of(cls, condition: Filter | None, entry: TableEntry) -> Plan:
        """Compile a filter for a table.

        Raises:
            InvalidInputError: it names a column that the table does not have.
        """
        if condition is None:
            return cls(entry.schema)
        hot = compile_sqlite(condition, entry.schema, "r", entry.hot.terms)
        bounds = key_bounds(condition, entry.schema)
        low, high, fixed = (bounds.low, bounds.high, bounds.fixed) if bounds is not None else (None, None, 0)
        return cls(entry.schema, condition, hot.sql, hot.params, hot.exact, low, high, fixed)

    @cached_property
    def _cold(self) -> LancePredicate:
        return LancePredicate(None, True) if self.condition is None else compile_lance(self.condition, self.schema)

    @property
    def cold_where(self) -> str | None:
        """The predicate for the cold tier; None: every row."""
        return lance_key_range(self.low, self.high, self._cold.sql)

    @property
    def cold_exact(self) -> bool:
        """Whether ``cold_where`` selects no other rows than those that match."""
        return self._cold.exact

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """The columns that the Python evaluator reads."""
        return () if self.condition is None else tuple(sorted(columns_of(self.condition)))

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The columns that cold rows must be read with, because the predicate selects too many."""
        return () if self.cold_exact else self.needs

    def holds(self, values: Sequence[Any]) -> bool:
        """Whether the condition holds for a physical row, whatever the compilers made of it."""
        return self.condition is None or matches(self.condition, self.schema.to_python(values, self.needs))

    def chosen(self, table: pa.Table) -> pa.Array:
        """Return for each row of a table with the columns of ``needs``, in the cold layout, whether the condition holds."""
        condition = self.condition
        if condition is None:
            return pa.array([True] * table.num_rows, pa.bool_())
        return pa.array([matches(condition, row) for row in self.schema.arrow_to_rows(table, self.needs)], pa.bool_())


def complete(table: pa.Table, schema: TableSchema, names: Iterable[str]) -> pa.Table:
    """Add columns that an older version of the dataset does not have, as nulls."""
    present = set(table.column_names)
    for name in names:
        if name not in present:
            present.add(name)
            table = table.append_column(name, pa.nulls(table.num_rows, schema.column(name).cold_type))
    return table


def hot_table(schema: TableSchema, rows: Sequence[tuple[str, Sequence[Any]]], names: Sequence[str]) -> pa.Table:
    """Return (key, physical row) of the hot tier in the cold layout: ``_key`` and the columns wanted."""
    arrays: dict[str, pa.Array] = {"_key": pa.array([key for key, _ in rows], pa.string())}
    for name in names:
        at = schema.positions[name]
        values = [row[at] if at < len(row) else None for _, row in rows]
        arrays[name] = schema.columns[at].to_arrow(values)
    return pa.table(arrays)
