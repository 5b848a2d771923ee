"""Where the definition of a collection is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from agentdb.errors import NotFoundError
from agentdb.filters import Path
from agentdb.storage.engine import Engine
from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table
from agentdb.vectors.definition import Definition, PromotedType

__all__ = ["DEFINITIONS", "DefinitionStore"]

DEFINITIONS = TableSchema(
    "_collections",
    [pa.field("name", pa.string(), nullable=False), pa.field("definition", pa.string(), nullable=False)],
    key="name",
    hot_only=True,
)


class DefinitionStore:
    """The stored definition of one collection: read in the caller's view, replaced in a transaction.

    It belongs to the collection whose rows are in ``table``, not to a later one of the same name.
    """

    def __init__(
        self,
        engine: Engine,
        definitions: Table,
        name: str,
        table: Table,
        on_filter: Callable[[Path, PromotedType], None] | None = None,
    ) -> None:
        self.engine = engine
        self.name = name
        self._definitions = definitions
        self._table = table
        self._on_filter = on_filter
        self._parsed: tuple[str, Definition] | None = None

    def read(self) -> Definition:
        """Return the definition as it stands.

        Raises:
            NotFoundError: the collection was dropped.
        """
        row = self._definitions.get(self.name)
        # In this order: a table that is there after its definition was read was there when it was.
        if row is None or not self._is_there():
            since = "" if row is None else "; the one that has its name by now is another"
            raise NotFoundError(f"collection {self.name!r} was dropped{since}")
        parsed = self._parsed
        if parsed is None or parsed[0] != row["definition"]:
            made = replace(Definition.from_json(self.name, row["definition"]), on_filter=self._on_filter)
            parsed = self._parsed = row["definition"], made
        return parsed[1]

    def last(self) -> Definition:
        """Return the definition as it was when last read: what is prepared by it holds only if it still stands.

        Raises:
            NotFoundError: it was never read, and the collection was dropped.
        """
        parsed = self._parsed
        return self.read() if parsed is None else parsed[1]

    def _is_there(self) -> bool:
        """Whether the rows are there: in the current view, or as of the last read."""
        core = self.engine._core
        view = core.current()
        return self._table._id in (core if view is None else view).catalogue.by_id

    def change(self, step: Callable[[Definition], Definition]) -> Definition:
        """Replace the definition by what ``step`` makes of it, in one transaction, and return it.

        ``step`` may read and write rows: it sees the state in which the definition changes.
        """

        def work() -> Definition:
            before = self.read()
            after = step(before)
            if after is not before:
                self._definitions.put({"name": self.name, "definition": after.to_json()})
            return after

        return self.engine.transact(work)
