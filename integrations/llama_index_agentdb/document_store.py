"""``AgentDBDocumentStore``, ``AgentDBIndexStore`` and ``AgentDBIngestionCache``: LlamaIndex's own stores on `AgentDBKVStore`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from llama_index.core.ingestion.cache import DEFAULT_CACHE_NAME, IngestionCache
from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc
from llama_index.core.storage.index_store.keyval_index_store import KVIndexStore
from typing_extensions import override

from agentdb import AsyncDatabase, Closing, Connection, Database, InvalidInputError
from llama_index_agentdb.kv_store import AgentDBKVStore, Name, encoded

__all__ = ["AgentDBDocumentStore", "AgentDBIndexStore", "AgentDBIngestionCache"]


@dataclass(slots=True)
class _Node:
    """A node on its way into the store."""

    id: str
    hash: str
    document: str | None
    metadata: Mapping[str, Any]
    text: bytes | None

    @classmethod
    def of(cls, node: object, where: str, *, store_text: bool) -> Self:
        if not isinstance(node, BaseNode):
            raise InvalidInputError(f"{where} must be a node or document, not {type(node).__name__}")
        text = encoded(doc_to_json(node), where) if store_text else None
        return cls(node.node_id, node.hash, node.ref_doc_id or None, node.metadata or {}, text)


class AgentDBDocumentStore(Closing, KVDocumentStore):
    """A document store in a database: every call is one transaction, and many processes may add to one document.

    Nodes come back as they were given, their metadata in the same order, so that hashes are the same after a restart. What a
    document consists of is kept in step with its nodes, whoever adds and deletes them; a node belongs to the document that it was
    last added with. Async methods run on threads of their own. There is nothing to persist.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        namespace: stores of different namespaces share nothing; None: ``"docstore"``.
    """

    def __init__(
        self, db_or_path: Database | AsyncDatabase | str | os.PathLike[str], namespace: str | None = None
    ) -> None:
        self._pairs = AgentDBKVStore(db_or_path)
        self._connection = self._pairs._connection
        super().__init__(self._pairs, namespace)

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (self._pairs._path, self._namespace)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    # --- reading ------------------------------------------------------------------------------------------------------

    @override
    def get_nodes(self, node_ids: list[str], raise_error: bool = True) -> list[BaseNode]:
        """Return many nodes in the order given, of one state.

        Args:
            node_ids: which.
            raise_error: False: those that are not there are passed over.

        Raises:
            InvalidInputError: one is not there.
        """
        found = self._pairs.get_many(node_ids, self._node_collection)
        if raise_error and (missing := next((one for one in node_ids if one not in found), None)) is not None:
            raise _absent("node", missing)
        return [json_to_doc(found[one]) for one in node_ids if one in found]

    @override
    async def aget_nodes(self, node_ids: list[str], raise_error: bool = True) -> list[BaseNode]:
        """Do what `get_nodes` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.get_nodes(node_ids, raise_error))

    # --- adding -------------------------------------------------------------------------------------------------------

    @override
    def add_documents(
        self,
        docs: Sequence[BaseNode],
        allow_update: bool = True,
        batch_size: int | None = None,
        store_text: bool = True,
    ) -> None:
        """Store nodes and what documents consist of, all or none.

        Args:
            docs: nodes or documents; of several with one id the last counts.
            allow_update: False: refuse if one is there already.
            batch_size: without effect; one transaction holds all.
            store_text: False: only hashes, and what belongs to which document.

        Raises:
            InvalidInputError: one holds what is no JSON, or is there already and must not be; nothing is written.
        """
        nodes = [_Node.of(one, f"docs[{i}]", store_text=store_text) for i, one in enumerate(docs)]
        last: dict[str, _Node] = {}
        for one in nodes:
            last.pop(one.id, None)  # its place too is that of the last: of a document's metadata the later count
            last[one.id] = one
        if last:
            self._pairs.transact(lambda: self._add(list(last.values()), allow_update=allow_update))

    @override
    async def async_add_documents(
        self,
        docs: Sequence[BaseNode],
        allow_update: bool = True,
        batch_size: int | None = None,
        store_text: bool = True,
    ) -> None:
        """Do what `add_documents` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.add_documents(docs, allow_update, batch_size, store_text))

    def _add(self, nodes: Sequence[_Node], *, allow_update: bool) -> None:
        ids = [one.id for one in nodes]
        if not allow_update and (present := next(iter(self._pairs.get_many(ids, self._node_collection)), None)):
            raise InvalidInputError(f"node_id {present} already exists. Set allow_update to True to overwrite.")
        document_of = {one.id: one.document for one in nodes}
        left = defaultdict[str, set[str]](set)
        for node_id, known in self._pairs.get_many(ids, self._metadata_collection).items():
            before = known.get("ref_doc_id")
            if before is not None and before != document_of[node_id]:
                left[before].add(node_id)
        self._leave(left)
        values: dict[Name, bytes] = {}
        for one in nodes:
            if one.text is not None:
                values[self._node_collection, one.id] = one.text
            metadata = {"doc_hash": one.hash}
            if one.document is not None:
                metadata["ref_doc_id"] = one.document
            values[self._metadata_collection, one.id] = encoded(metadata, "metadata")
        self._pairs.write(values)
        self._join(nodes)

    def _join(self, nodes: Sequence[_Node]) -> None:
        """Count nodes among those of their documents."""
        joining = defaultdict[str, list[_Node]](list)
        for one in nodes:
            if one.document is not None:
                joining[one.document].append(one)
        known = self._pairs.get_many(joining, self._ref_doc_collection)
        values: dict[Name, bytes] = {}
        for document, its in joining.items():
            info = known.get(document, {"node_ids": [], "metadata": {}})
            info["node_ids"] = list(dict.fromkeys((*info["node_ids"], *(one.id for one in its))))
            if not info["metadata"]:
                for one in its:
                    info["metadata"].update(one.metadata)
            values[self._ref_doc_collection, document] = encoded(info, "metadata")
        self._pairs.write(values)

    def _leave(self, leaving: Mapping[str, Iterable[str]]) -> None:
        """Take nodes from those of their documents; a document without nodes is gone."""
        values: dict[Name, bytes] = {}
        for document, info in self._pairs.get_many(leaving, self._ref_doc_collection).items():
            gone = set(leaving[document])
            info["node_ids"] = [one for one in info["node_ids"] if one not in gone]
            if info["node_ids"]:
                values[self._ref_doc_collection, document] = encoded(info, "metadata")
            else:
                self._pairs.remove(self._places(document))
        self._pairs.write(values)

    def set_document_hash(self, doc_id: str, doc_hash: str) -> None:
        """Store the hash of a document or node; what else is known of it stays."""
        self.set_document_hashes({doc_id: doc_hash})

    async def aset_document_hash(self, doc_id: str, doc_hash: str) -> None:
        """Do what `set_document_hash` does, without blocking the event loop."""
        await self.aset_document_hashes({doc_id: doc_hash})

    def set_document_hashes(self, doc_hashes: dict[str, str]) -> None:
        """Store the hashes of many documents or nodes, all or none; what else is known of them stays."""

        def work() -> None:
            known = self._pairs.get_many(doc_hashes, self._metadata_collection)
            self._pairs.write(
                {
                    (self._metadata_collection, one): encoded({**known.get(one, {}), "doc_hash": doc_hash}, "doc_hash")
                    for one, doc_hash in doc_hashes.items()
                }
            )

        if doc_hashes:
            self._pairs.transact(work)

    async def aset_document_hashes(self, doc_hashes: dict[str, str]) -> None:
        """Do what `set_document_hashes` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.set_document_hashes(doc_hashes))

    # --- deleting -----------------------------------------------------------------------------------------------------

    @override
    def delete_document(self, doc_id: str, raise_error: bool = True) -> None:
        """Delete a node, or a document that was added as one, and with the last node of a document what is known of it.

        Raises:
            InvalidInputError: there is none, not even a hash, and ``raise_error`` is True.
        """

        def work() -> int:
            known = self._pairs.get_many([doc_id], self._metadata_collection).get(doc_id, {})
            gone = self._pairs.remove([(self._node_collection, doc_id), (self._metadata_collection, doc_id)])
            if "ref_doc_id" in known:
                self._leave({known["ref_doc_id"]: [doc_id]})
            return gone

        if not self._pairs.transact(work) and raise_error:
            raise _absent("doc", doc_id)

    @override
    async def adelete_document(self, doc_id: str, raise_error: bool = True) -> None:
        """Do what `delete_document` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.delete_document(doc_id, raise_error))

    @override
    def delete_ref_doc(self, ref_doc_id: str, raise_error: bool = True) -> None:
        """Delete a document with all its nodes, at once.

        Raises:
            InvalidInputError: no node belongs to it, and ``raise_error`` is True.
        """

        def work() -> bool:
            info = self._pairs.get_many([ref_doc_id], self._ref_doc_collection).get(ref_doc_id)
            if info is None:
                return False
            nodes = [
                (collection, one)
                for one in info["node_ids"]
                for collection in (self._node_collection, self._metadata_collection)
            ]
            self._pairs.remove([*nodes, *self._places(ref_doc_id)])
            return True

        if not self._pairs.transact(work) and raise_error:
            raise _absent("ref_doc", ref_doc_id)

    @override
    async def adelete_ref_doc(self, ref_doc_id: str, raise_error: bool = True) -> None:
        """Do what `delete_ref_doc` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.delete_ref_doc(ref_doc_id, raise_error))

    def _places(self, document: str) -> list[Name]:
        """Return all that is stored of a document itself."""
        return [
            (collection, document)
            for collection in (self._node_collection, self._metadata_collection, self._ref_doc_collection)
        ]


def _absent(what: str, name: str) -> InvalidInputError:
    # LlamaIndex raises ValueError where its documentation says so little; this is one.
    return InvalidInputError(f"{what}_id {name} not found.")


class AgentDBIndexStore(Closing, KVIndexStore):
    """A store of index structures in a database. There is nothing to persist.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        namespace: stores of different namespaces share nothing; None: ``"index_store"``.
    """

    def __init__(
        self, db_or_path: Database | AsyncDatabase | str | os.PathLike[str], namespace: str | None = None
    ) -> None:
        self._pairs = AgentDBKVStore(db_or_path)
        self._connection = self._pairs._connection
        super().__init__(self._pairs, namespace)

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (self._pairs._path, self._namespace)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


class AgentDBIngestionCache(Closing, IngestionCache):
    """A cache of what transformations made of nodes, in a database: an ``IngestionPipeline`` that was killed goes on where it was.

    Processes share it, the workers of ``IngestionPipeline.run(num_workers=...)`` too.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        collection: caches of different collections share nothing.
    """

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        collection: str = DEFAULT_CACHE_NAME,
    ) -> None:
        super().__init__(cache=AgentDBKVStore(db_or_path), collection=collection)

    @property
    def _pairs(self) -> AgentDBKVStore:
        assert isinstance(self.cache, AgentDBKVStore)
        return self.cache

    @property
    def _connection(self) -> Connection[Any]:  # type: ignore[override]
        return self._pairs._connection

    def clear(self, collection: str | None = None) -> None:
        """Remove everything, at once."""
        self._pairs.clear(collection or self.collection)

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Do nothing: all of it is durable already."""
