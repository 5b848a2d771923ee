"""``AgentDBKVStore``: values by key and collection, on which the stores of documents, of indexes and of ingestion stand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa
from llama_index.core.storage.kvstore.types import DEFAULT_BATCH_SIZE, DEFAULT_COLLECTION, BaseKVStore

from agentdb import AsyncDatabase, Closing, Connection, Database, InvalidInputError, Table, TableSchema, field
from llama_index_agentdb.encoding import decode, encode

__all__ = ["AgentDBKVStore", "Name", "encoded", "path_of"]

R = TypeVar("R")

PAIRS = TableSchema(
    "_llama_index_pairs",
    [
        pa.field("collection", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("value", pa.large_binary(), nullable=False),
    ],
    key=("collection", "key"),
)

Name = tuple[str, str]
"""A collection and a key in it."""


def path_of(db_or_path: Database | AsyncDatabase | str | os.PathLike[str]) -> str:
    """Return where a database is, by which a process in another directory opens it too."""
    return os.fspath(
        Path(db_or_path.path if isinstance(db_or_path, Database | AsyncDatabase) else db_or_path).absolute()
    )


class _Pairs:
    """The table of a database, with values as they are stored."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.table: Table = db.table(PAIRS)


class AgentDBKVStore(Closing, BaseKVStore):
    """A key-value store in a database: durable when a call returns, the same for every thread, event loop and process.

    Values are JSON objects and come back equal, their keys in the same order. Keys and names of collections are any text of up to
    4,096 characters together; no collection sees another's keys. Async methods run on threads of their own and never block the
    event loop. Inside ``db.transaction()`` the synchronous ones join it. There is nothing to persist.

    A pickle of it, such as an ``IngestionPipeline`` sends to its workers, holds the path and opens the database there.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
    """

    def __init__(self, db_or_path: Database | AsyncDatabase | str | os.PathLike[str]) -> None:
        self._connection: Connection[_Pairs] = Connection(db_or_path, _Pairs)
        self._path = path_of(db_or_path)

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self._path,)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Store a value in the place of the one with its key.

        Raises:
            InvalidInputError: the value is no JSON object, or the key or collection no text; nothing is written.
        """
        self.write({(collection, key): encoded(val, "val")})

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Do what `put` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.put(key, val, collection))

    def put_all(
        self,
        kv_pairs: Sequence[tuple[str, dict[str, Any]]],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        """Store many values, all or none, of equal keys the last.

        Args:
            kv_pairs: keys and values.
            collection: where.
            batch_size: 1 or more; one transaction holds all, however many.

        Raises:
            InvalidInputError: as `put`.
        """
        if type(batch_size) is not int or batch_size < 1:
            raise InvalidInputError("batch_size must be an int of 1 or more")
        self.write({(collection, key): encoded(val, f"kv_pairs[{i}]") for i, (key, val) in enumerate(kv_pairs)})

    async def aput_all(
        self,
        kv_pairs: Sequence[tuple[str, dict[str, Any]]],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        """Do what `put_all` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.put_all(kv_pairs, collection, batch_size))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Return the value of a key, or None."""
        pairs = self._connection.found()
        row = None if pairs is None else pairs.table.get((collection, key))
        return None if row is None else decode(row["value"])

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Do what `get` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.get(key, collection))

    def get_many(self, keys: Iterable[str], collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Return the values of those keys that have one, in the order given; of one state, and far faster than one by one."""
        wanted = list(dict.fromkeys(keys))
        pairs = self._connection.found() if wanted else None
        rows = [None] * len(wanted) if pairs is None else pairs.table.get_many([(collection, key) for key in wanted])
        return {key: decode(row["value"]) for key, row in zip(wanted, rows, strict=True) if row is not None}

    async def aget_many(self, keys: Iterable[str], collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Do what `get_many` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.get_many(keys, collection))

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Return all values of a collection by key, in the order of keys; of one state."""
        pairs = self._connection.found()
        if pairs is None:
            return {}
        rows = pairs.table.scan(
            field("collection") == collection, order_by=["collection", "key"], columns=["key", "value"]
        )
        return {row["key"]: decode(row["value"]) for row in rows}

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Do what `get_all` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.get_all(collection))

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Delete the value of a key; whether there was one."""
        return self._connection().table.delete((collection, key))

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Do what `delete` does, without blocking the event loop."""
        return await self._connection.run("write", lambda: self.delete(key, collection))

    def clear(self, collection: str = DEFAULT_COLLECTION) -> int:
        """Delete all values of a collection, at once; return how many there were."""
        return self._connection().table.delete_many(filter=field("collection") == collection)

    async def aclear(self, collection: str = DEFAULT_COLLECTION) -> int:
        """Do what `clear` does, without blocking the event loop."""
        return await self._connection.run("write", lambda: self.clear(collection))

    # --- for stores made of several collections -----------------------------------------------------------------------

    def transact(self, work: Callable[[], R]) -> R:
        """Run reads and writes of this store as one transaction, in which nobody else writes, and return the result."""
        return self._connection().db.transact(work)

    def write(self, values: Mapping[Name, bytes]) -> None:
        """Store what `encoded` made, by collection and key, all or none."""
        if values:
            self._connection().table.put_many(
                {"collection": collection, "key": key, "value": value} for (collection, key), value in values.items()
            )

    def remove(self, names: Iterable[Name]) -> int:
        """Delete values by collection and key, all or none; return how many there were."""
        return self._connection().table.delete_many(names)


def encoded(value: object, where: str) -> bytes:
    """Return a value as it is stored."""
    if not isinstance(value, dict):
        raise InvalidInputError(f"{where} must be a dict, not {type(value).__name__}")
    return encode(value, where)
