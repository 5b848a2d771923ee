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
    """The stored definition of one collection: read in the caller's view, replaced in a transaction."""

    def __init__(
        self,
        engine: Engine,
        definitions: Table,
        name: str,
        on_filter: Callable[[Path, PromotedType], None] | None = None,
    ) -> None:
        self.engine = engine
        self.name = name
        self._definitions = definitions
        self._on_filter = on_filter
        self._parsed: tuple[str, Definition] | None = None

    def read(self) -> Definition:
        """Return the definition as it stands.

        Raises:
            NotFoundError: the collection was dropped.
        """
        row = self._definitions.get(self.name)
        if row is None:
            raise NotFoundError(f"there is no collection {self.name!r}; it may have been dropped")
        parsed = self._parsed
        if parsed is None or parsed[0] != row["definition"]:
            made = replace(Definition.from_json(self.name, row["definition"]), on_filter=self._on_filter)
            parsed = self._parsed = row["definition"], made
        return parsed[1]

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
