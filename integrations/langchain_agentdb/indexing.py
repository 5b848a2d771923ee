"""``AgentDBRecordManager`` and ``AgentDBDocumentIndex``: what LangChain's indexing API keeps track by, and writes into."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import pyarrow as pa
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import DeleteResponse, DocumentIndex, RecordManager, UpsertResponse
from pydantic import ConfigDict, Field, PrivateAttr

from agentdb import (
    And,
    AsyncDatabase,
    Closing,
    Collection,
    CollectionMetric,
    Connection,
    Database,
    InvalidInputError,
    NamedCollection,
    Table,
    TableSchema,
    field,
)
from langchain_agentdb.vector_store import AgentDBVectorStore, possible_ids, strings

__all__ = ["AgentDBDocumentIndex", "AgentDBRecordManager"]

RECORDS = TableSchema(
    "_langchain_records",
    [
        pa.field("namespace", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("group_id", pa.string()),
        pa.field("updated_at", pa.float64(), nullable=False),
    ],
    key=("namespace", "key"),
    indexed=("group_id", "updated_at"),
)
TIMES = TableSchema(
    "_langchain_times",
    [
        pa.field("namespace", pa.string(), nullable=False),
        # The latest that any record has: time goes on from there, whatever the system's clock says.
        pa.field("latest", pa.float64(), nullable=False),
    ],
    key="namespace",
    hot_only=True,
)
_TICK_S = 1e-6


class _Records(NamedTuple):
    db: Database
    records: Table
    times: Table

    @classmethod
    def of(cls, db: Database) -> _Records:
        return cls(db, db.table(RECORDS), db.table(TIMES))


class AgentDBRecordManager(Closing, RecordManager):
    """Which documents ``langchain_core.indexing.index`` has written, when, and from which source.

    Time never goes backwards in a namespace, whatever the system's clock does and however many processes there are: a document
    that was written is never taken for an old one. Async methods run on threads and never block the event loop.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        namespace: what is recorded in one namespace is not seen in another: one for each vector store.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    _connection: Connection[_Records]

    def __init__(self, db_or_path: Database | AsyncDatabase | str | os.PathLike[str], *, namespace: str) -> None:
        given: object = namespace
        if not isinstance(given, str):
            raise InvalidInputError(f"namespace must be a str, not {type(namespace).__name__}")
        super().__init__(namespace)
        self._connection = Connection(db_or_path, _Records.of)
        self._latest = 0.0
        self._mutex = threading.Lock()

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself: there is one time in a namespace."""
        return self

    def create_schema(self) -> None:
        """Make the tables, if they are not there yet; every call that writes does it, too."""
        self._connection()

    async def acreate_schema(self) -> None:
        """Do what `create_schema` does, without blocking the event loop."""
        await self._connection.run("write", self.create_schema)

    def get_time(self) -> float:
        """Return the current time in seconds since 1970: later than all that was recorded, and than all returned before."""
        records = self._connection()
        stored = records.times.get(self.namespace)
        now: float = records.db.config.clock().timestamp()
        with self._mutex:
            after = max(self._latest, 0.0 if stored is None else stored["latest"]) + _TICK_S
            self._latest = max(now, after)
            return self._latest

    async def aget_time(self) -> float:
        """Do what `get_time` does, without blocking the event loop."""
        return await self._connection.run("read", self.get_time)

    def update(
        self,
        keys: Sequence[str],
        *,
        group_ids: Sequence[str | None] | None = None,
        time_at_least: float | None = None,
    ) -> None:
        """Record that these keys are up to date as of now, all or none.

        Args:
            keys: any number.
            group_ids: the source of each; None as a whole: it stays what it was.
            time_at_least: it must not be earlier than this.

        Raises:
            InvalidInputError: there are more or fewer group ids than keys, a key is no string, or it is earlier.
        """
        listed = strings("keys", keys)
        groups = None if group_ids is None else list(group_ids)
        if groups is not None and len(groups) != len(listed):
            raise InvalidInputError(f"group_ids must be as many as the keys: {len(listed)}, not {len(groups)}")
        if not listed:
            return
        now = self.get_time()
        if time_at_least is not None and now < time_at_least:
            raise InvalidInputError(f"it is {now}, which is earlier than time_at_least: {time_at_least}")
        records, namespace = self._connection(), self.namespace

        def work() -> None:
            given = groups
            if given is None:
                known = records.records.get_many([(namespace, one) for one in listed])
                given = [None if row is None else row["group_id"] for row in known]
            records.records.put_many(
                {"namespace": namespace, "key": key, "group_id": group, "updated_at": now}
                for key, group in zip(listed, given, strict=True)
            )
            stored = records.times.get(namespace)
            records.times.put({"namespace": namespace, "latest": max(now, 0.0 if stored is None else stored["latest"])})

        records.db.transact(work)

    async def aupdate(
        self,
        keys: Sequence[str],
        *,
        group_ids: Sequence[str | None] | None = None,
        time_at_least: float | None = None,
    ) -> None:
        """Do what `update` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.update(keys, group_ids=group_ids, time_at_least=time_at_least))

    def exists(self, keys: Sequence[str]) -> list[bool]:
        """Return whether each of these keys is recorded."""
        wanted = [(self.namespace, one) for one in strings("keys", keys)]
        records = self._connection.found()
        rows = [None] * len(wanted) if records is None else records.records.get_many(wanted)
        return [row is not None for row in rows]

    async def aexists(self, keys: Sequence[str]) -> list[bool]:
        """Do what `exists` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.exists(keys))

    def list_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """Return the keys that match, in order.

        Args:
            before: only those last updated before this time.
            after: only those last updated after this time.
            group_ids: only those of these sources; of an empty list there are none.
            limit: at most so many.
        """
        mine = [field("namespace") == self.namespace]
        if before is not None:
            mine.append(field("updated_at") < before)
        if after is not None:
            mine.append(field("updated_at") > after)
        if group_ids is not None:
            mine.append(field("group_id").in_(strings("group_ids", group_ids)))
        records = self._connection.found()
        rows = () if records is None else records.records.scan(And(*mine), order_by="key", limit=limit, columns=["key"])
        return [row["key"] for row in rows]

    async def alist_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """Do what `list_keys` does, without blocking the event loop."""
        return await self._connection.run(
            "read", lambda: self.list_keys(before=before, after=after, group_ids=group_ids, limit=limit)
        )

    def delete_keys(self, keys: Sequence[str]) -> None:
        """Remove the records of these keys, all or none; those that do not exist are passed over."""
        doomed = [(self.namespace, one) for one in strings("keys", keys)]
        if doomed:
            self._connection().records.delete_many(doomed)

    async def adelete_keys(self, keys: Sequence[str]) -> None:
        """Do what `delete_keys` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.delete_keys(keys))


class AgentDBDocumentIndex(Closing, DocumentIndex):
    """Documents by id, found by a query: an `AgentDBVectorStore` as LangChain's document index, which is a retriever, too.

    Copies, those of ``configurable_fields`` among them, share the vector store.

    Args:
        embedding: as `AgentDBVectorStore` takes it, like the others.
        db_or_path: an open database, which stays the caller's to close, or the path of one; or a vector store to share, which
            stays the caller's, too, with its collection, its embedding and its metric.
        collection: its name.
        metric: of a new collection.
        mode: how documents are found; None: as the vector store finds them, by their vectors.
        rerank: see `AgentDBVectorStore`; None: as the vector store does.
        k: how many documents a query finds; ``invoke(query, k=...)`` says it for one.
        filter: only documents that match; ``invoke(query, filter=...)`` says it for one.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    k: int = 4
    """How many documents a query finds."""
    filter: Any = None
    """Only documents that match."""
    mode: Literal["vector", "text", "hybrid"] | None = None
    """How they are found."""
    rerank: Any = None
    """Who has the last word on their order."""
    # What LangChain makes an index of with other options: it reads them here and passes them to the constructor.
    db_or_path: AgentDBVectorStore = Field(exclude=True, repr=False, frozen=True)
    embedding: Any = Field(exclude=True, repr=False, frozen=True)
    _connection: Connection[NamedCollection] = PrivateAttr()
    _is_given: bool = PrivateAttr()

    def __init__(
        self,
        embedding: Embeddings | Any | None,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str] | AgentDBVectorStore,
        *,
        collection: str = "langchain",
        metric: CollectionMetric | None = None,
        **fields: Any,
    ) -> None:
        if isinstance(db_or_path, AgentDBVectorStore):
            store = db_or_path
            if (collection, metric) != ("langchain", None) or embedding not in (None, store.embeddings):
                raise InvalidInputError("embedding, collection and metric are those of the vector store")
        else:
            store = AgentDBVectorStore(embedding, db_or_path, collection=collection, metric=metric)
        shared: dict[str, Any] = {"db_or_path": store, "embedding": store.embeddings}
        super().__init__(**fields, **shared)
        self._connection = store._connection
        self._is_given = store is db_or_path

    def close(self) -> None:
        """Let calls that have begun end, then close the vector store, unless it was given. Closing twice is allowed."""
        if not self._is_given:
            super().close()

    async def aclose(self) -> None:
        """Do the same without blocking the event loop."""
        if not self._is_given:
            await super().aclose()

    @property
    def _store(self) -> AgentDBVectorStore:
        return self.db_or_path

    def upsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """Store documents in the place of those with their ids, all or none; return their ids in order.

        Args:
            items: those without an id get one.
            kwargs: ``batch_size``, as `AgentDBVectorStore.add_texts` has it.
        """
        return {"succeeded": self._store.add_documents(list(items), **kwargs), "failed": []}

    async def aupsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """Do what `upsert` does, without blocking the event loop."""
        return {"succeeded": await self._store.aadd_documents(list(items), **kwargs), "failed": []}

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Delete documents, and return which there were.

        Args:
            ids: those that do not exist are passed over.
            kwargs: none; an option that does not exist is refused.

        Raises:
            InvalidInputError: no ids are given.
        """
        if kwargs or ids is None:
            raise InvalidInputError("delete takes ids, and nothing else")
        doomed = possible_ids(ids)
        named = self._connection()

        def work(found: Collection) -> list[str]:
            rows = found.get_many(doomed, include=())
            held = [one for one, row in zip(doomed, rows, strict=True) if row is not None]
            found.delete(held)
            return held

        deleted = named.read(lambda found: named.db.transact(lambda: work(found))) or []
        return {"num_deleted": len(deleted), "succeeded": deleted, "num_failed": 0, "failed": []}

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Do what `delete` does, without blocking the event loop."""
        return await self._connection.run("write", lambda: self.delete(ids, **kwargs))

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """Return the documents of these ids in their order; ids that do not exist are left out."""
        return self._store.get_by_ids(ids, **kwargs)

    async def aget(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """Do what `get` does, without blocking the event loop."""
        return await self._store.aget_by_ids(ids, **kwargs)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        del run_manager
        return self._store.similarity_search(query, **{**self._options, **kwargs})

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        del run_manager
        return await self._store.asimilarity_search(query, **{**self._options, **kwargs})

    @property
    def _options(self) -> dict[str, Any]:
        return {
            name: getattr(self, name) for name in ("k", "filter", "mode", "rerank") if getattr(self, name) is not None
        }
