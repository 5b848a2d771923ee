"""``AgentDBByteStore``: bytes by key, for LangChain's document stores and embedding caches."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice

import pyarrow as pa
from langchain_core.stores import BaseStore

from agentdb import AsyncDatabase, Closing, Connection, Database, InvalidInputError, Table, TableSchema, field

__all__ = ["AgentDBByteStore"]

BYTES = TableSchema(
    "_langchain_bytes",
    [
        pa.field("namespace", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("value", pa.large_binary(), nullable=False),
    ],
    key=("namespace", "key"),
)
_KEYS_AT_ONCE = 256


class AgentDBByteStore(Closing, BaseStore[str, bytes]):
    """Values by key, durable when a call returns, shared by every thread, event loop and process.

    Async methods run on threads and never block the event loop.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        namespace: keys of one namespace are not seen in another.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    _connection: Connection[Table]

    def __init__(
        self, db_or_path: Database | AsyncDatabase | str | os.PathLike[str], *, namespace: str = "default"
    ) -> None:
        given: object = namespace
        if not isinstance(given, str):
            raise InvalidInputError(f"namespace must be a str, not {type(namespace).__name__}")
        self._namespace = namespace
        self._connection = Connection(db_or_path, lambda db: db.table(BYTES))

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of these keys, in their order; None where there is none. One consistent state."""
        wanted = [(self._namespace, one) for one in _keys(keys)]
        table = self._connection.found()
        rows = [None] * len(wanted) if table is None else table.get_many(wanted)
        return [None if row is None else row["value"] for row in rows]

    async def amget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Do what `mget` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.mget(keys))

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store values in the place of those with the same keys, all or none; of equal keys the last one counts.

        Raises:
            InvalidInputError: a key is no string, or too long (some 4,000 characters), or a value is not bytes. Nothing is stored.
        """
        rows = [{"namespace": self._namespace, "key": key, "value": value} for key, value in key_value_pairs]
        if rows:
            self._connection().put_many(rows)

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Do what `mset` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.mset(key_value_pairs))

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete these keys, all or none; those that do not exist are passed over."""
        doomed = [(self._namespace, one) for one in _keys(keys)]
        if doomed:
            self._connection().delete_many(doomed)

    async def amdelete(self, keys: Sequence[str]) -> None:
        """Do what `mdelete` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.mdelete(keys))

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Yield the keys that begin with a prefix, in order, from one state that writes meanwhile do not change.

        Args:
            prefix: no character of it is a wildcard; None: all keys.
        """
        mine = field("namespace") == self._namespace
        if prefix is not None:
            mine &= field("key").startswith(prefix)
        table = self._connection.found()
        for row in () if table is None else table.scan(mine, order_by="key", columns=["key"]):
            yield row["key"]

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        """Do what `yield_keys` does, without blocking the event loop."""
        keys = self.yield_keys(prefix=prefix)
        while found := await self._connection.run("read", lambda: list(islice(keys, _KEYS_AT_ONCE))):
            for one in found:
                yield one


def _keys(keys: Sequence[str]) -> Sequence[str]:
    if isinstance(keys, str):
        raise InvalidInputError("keys must be a list of strings, not one string")
    return keys
