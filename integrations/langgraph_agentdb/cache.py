"""``AgentDBCache``: results of nodes, kept by namespace and key until their time is up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from langgraph.cache.base import BaseCache, FullKey, Namespace, ValueT
from langgraph.checkpoint.serde.base import SerializerProtocol

from agentdb import (
    AsyncDatabase,
    Closing,
    Connection,
    Database,
    InvalidInputError,
    NotFoundError,
    Table,
    TableSchema,
    field,
)
from langgraph_agentdb.serializer import StrictSerializer, load_typed

__all__ = ["AgentDBCache"]

CACHE = TableSchema(
    "_langgraph_cache",
    [
        pa.field("namespace", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("expires_at", pa.timestamp("us", tz="UTC")),
        pa.field("type", pa.string(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
    ],
    key=("namespace", "key"),
    indexed="expires_at",
)
_SWEEP_EVERY_S = 30.0


class _Entries:
    """The table of a database, and the job that empties it of what has expired."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.table: Table = db.table(CACHE)
        self._sweep_due = 0.0
        if not db.read_only:
            db.add_maintenance("langgraph-cache", self._sweep)

    def now(self) -> datetime:
        moment: datetime = self.db.config.clock()
        return moment.astimezone(UTC)

    def _sweep(self, _: float) -> bool:
        if time.monotonic() >= self._sweep_due:
            self._sweep_due = time.monotonic() + _SWEEP_EVERY_S
            with suppress(NotFoundError):  # what made the table was rolled back
                self.table.delete_many(filter=field("expires_at") <= self.now())
        return False


class AgentDBCache(Closing, BaseCache[ValueT]):
    """A cache of node results in a database: durable, shared by every thread, event loop and process that opens it.

    ``graph.compile(cache=AgentDBCache(path))``. Async methods run on threads of their own and never block the event loop.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        serde: turns values into bytes and back; None: a `StrictSerializer`.
    """

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        serde: SerializerProtocol | None = None,
    ) -> None:
        # First, because pickling takes attributes in their order, and the connection says why it cannot be.
        self._connection = Connection(db_or_path, _Entries)
        super().__init__(serde=serde or StrictSerializer())

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """Return the values that are there and have not expired, by key.

        Raises:
            InvalidInputError: a key is no ``(namespace, key)``, or a value holds a type that the serializer refuses.
        """
        names = [_name(key) for key in keys]
        if not names:
            return {}
        entries = self._connection.found()
        if entries is None:
            return {}
        rows = entries.table.get_many(names)
        now = entries.now()
        found: dict[FullKey, ValueT] = {}
        for (namespace, key), row in zip(keys, rows, strict=True):
            if row is not None and (row["expires_at"] is None or now < row["expires_at"]):
                found[tuple(namespace), key] = load_typed(self.serde, (row["type"], row["data"]))
        return found

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """Do what `get` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.get(keys))

    def set(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Store values in the place of those with their keys, all or none; durable when it returns.

        Args:
            pairs: key -> (value, time to live in seconds or None: until it is cleared).

        Raises:
            InvalidInputError: a key is no ``(namespace, key)``, or a time to live no number of seconds; nothing is stored.
            TypeError: the serializer cannot encode a value; nothing is stored.
        """
        entries = self._connection()
        now = entries.now()
        rows: list[dict[str, Any]] = []
        for key, (value, ttl) in pairs.items():
            namespace, name = _name(key)
            kind, data = self.serde.dumps_typed(value)
            expires_at = None if ttl is None else _expiry(ttl, now)
            rows.append({"namespace": namespace, "key": name, "expires_at": expires_at, "type": kind, "data": data})
        if rows:
            entries.table.put_many(rows)

    async def aset(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Do what `set` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.set(pairs))

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Remove everything in these namespaces, and in no other that begins alike; None: everything."""
        entries = self._connection()
        if namespaces is None:
            entries.table.delete_many(filter=~field("namespace").is_null())
            return
        names = list(dict.fromkeys(_namespace(one) for one in namespaces))
        if names:
            entries.table.delete_many(filter=field("namespace").in_(names))

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Do what `clear` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.clear(namespaces))


def _expiry(ttl: Any, now: datetime) -> datetime:
    if not isinstance(ttl, int | float) or isinstance(ttl, bool):
        raise InvalidInputError(f"ttl must be a number of seconds or None, not {type(ttl).__name__}")
    try:
        return now + timedelta(seconds=ttl)
    except (OverflowError, ValueError):
        raise InvalidInputError(
            "ttl must be a number of seconds within the calendar; None is for what never expires"
        ) from None


def _name(key: FullKey) -> tuple[str, str]:
    parts: object = key
    if not isinstance(parts, tuple) or len(parts) != 2 or not isinstance(parts[1], str):
        raise InvalidInputError("a key of the cache must be a tuple (namespace, str)")
    return _namespace(parts[0]), parts[1]


def _namespace(namespace: Namespace) -> str:
    parts: object = namespace
    if not isinstance(parts, tuple | list) or not all(isinstance(one, str) for one in parts):
        raise InvalidInputError("a namespace of the cache must be a tuple of str")
    # JSON, because any separator may occur in a part.
    return json.dumps(list(parts), ensure_ascii=False)
