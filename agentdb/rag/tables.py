"""How documents lie in tables.

A document is one row of ``_documents``, its extracted text some rows of ``_document_texts``, so that a stretch of a long text is
read without the rest. Its chunks are rows of the collection ``_documents.NAME``. All of them change in one transaction, and all
name the revision of the document that they belong to: who reads them one after the other sees whether they belong together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import zstandard

from agentdb.filters import And, Compare, Filter
from agentdb.rag.images import IMAGES, ImageTable, image_id
from agentdb.rag.records import StoredDocument
from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table
from agentdb.types import OrderBy, Row

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = ["COLLECTION_PREFIX", "DOCUMENTS", "TEXTS", "DocumentTables", "chunk_id", "row_ids", "text_rows"]

COLLECTION_PREFIX = "_documents."
PART_CHARS = 1 << 16
"""Of a text in one row."""

DOCUMENTS = TableSchema(
    "_documents",
    [
        pa.field("collection", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        # Of files; null for what was given as data.
        pa.field("root", pa.string()),
        pa.field("title", pa.string()),
        pa.field("media_type", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        # A digest of all else that decides what is stored: chunker, embedder, what was given with the content.
        pa.field("setup", pa.string(), nullable=False),
        pa.field("revision", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        # What the file system said of a file before it was read, and when that was.
        pa.field("mtime_ns", pa.int64()),
        pa.field("inode", pa.uint64()),
        pa.field("read_at_ns", pa.int64()),
        pa.field("chars", pa.int64(), nullable=False),
        pa.field("chunks", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("metadata", pa.json_()),
        pa.field("warnings", pa.list_(pa.string())),
        pa.field("ingested_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ],
    key=("collection", "id"),
)
TEXTS = TableSchema(
    "_document_texts",
    [
        pa.field("collection", pa.string(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("part", pa.int64(), nullable=False),
        pa.field("revision", pa.string(), nullable=False),
        # UTF-8, compressed by zstd.
        pa.field("text", pa.binary(), nullable=False),
    ],
    key=("collection", "document_id", "part"),
)


def chunk_id(document_id: str, number: int) -> str:
    """Return the id of a chunk: chunks of a document are in the order of their ids."""
    return f"{document_id}:{number:06}"


def row_ids(documents: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the ids of all that documents have in their collection: chunks, then images."""
    for row in documents:
        for number in range(row["chunks"]):
            yield chunk_id(row["id"], number)
        for number in range(row["images"]):
            yield image_id(row["id"], number)


def text_rows(collection: str, document_id: str, revision: str, text: str) -> list[Row]:
    """Return a document's text as rows of ``_document_texts``."""
    compressor = zstandard.ZstdCompressor(level=3)
    return [
        {
            "collection": collection,
            "document_id": document_id,
            "part": number,
            "revision": revision,
            "text": compressor.compress(text[begin : begin + PART_CHARS].encode()),
        }
        for number, begin in enumerate(range(0, len(text), PART_CHARS))
    ]


def part_keys(collection: str, document_id: str, chars: int) -> list[tuple[str, str, int]]:
    """Return the keys of the rows of a text of so many characters."""
    return [(collection, document_id, number) for number in range(-(-chars // PART_CHARS))]


@dataclass(frozen=True, slots=True)
class DocumentTables:
    """The tables of documents, of all collections."""

    engine: Engine
    documents: Table
    texts: Table

    @classmethod
    def of(cls, engine: Engine) -> DocumentTables:
        """Return the tables; both are created where they do not exist."""
        if not cls.exist(engine):

            def create() -> None:
                engine.table(TEXTS)
                engine.table(DOCUMENTS)

            engine.transact(create)
        return cls(engine, engine.table(DOCUMENTS), engine.table(TEXTS))

    @classmethod
    def exist(cls, engine: Engine) -> bool:
        """Whether any document was ever stored: the table that is created last is there."""
        return engine._entry(DOCUMENTS.name) is not None

    @property
    def has_images(self) -> bool:
        """Whether any picture was ever stored."""
        return self.engine._entry(IMAGES.name) is not None

    @property
    def images(self) -> ImageTable:
        """The pictures of documents; their table is created where it does not exist."""
        return ImageTable.of(self.engine)

    # --- documents ----------------------------------------------------------------------------------------------------

    def rows(self, collection: str, ids: Sequence[str]) -> list[Row | None]:
        """Return the rows of documents, in order; None where there is none."""
        return self.documents.get_many([(collection, one) for one in ids]) if ids else []

    def scan(
        self,
        collection: str,
        condition: Filter | None = None,
        *,
        order_by: Sequence[OrderBy] | None = None,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[Row]:
        """Yield the rows of a collection's documents."""
        own: Filter = Compare(("collection",), "eq", collection)
        chosen = own if condition is None else And(own, condition)
        return self.documents.scan(chosen, order_by=order_by, limit=limit, columns=columns)

    def remove(self, collection: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Delete documents, their texts and pictures, in the caller's transaction."""
        rows = list(rows)
        pictured = [row["id"] for row in rows if row["images"]]
        if pictured:
            self.images.remove(collection, pictured)
        self.texts.delete_many(key for row in rows for key in part_keys(collection, row["id"], row["chars"]))
        self.documents.delete_many((collection, row["id"]) for row in rows)

    # --- texts --------------------------------------------------------------------------------------------------------

    def spans(self, collection: str, wanted: Sequence[tuple[str, str, int, int]]) -> list[str | None]:
        """Return stretches of texts; None where the document is not there in that revision.

        Args:
            collection: of the documents.
            wanted: document, revision, start and end of each.
        """
        keys = {(collection, document, part) for document, _, start, end in wanted for part in _parts(start, end)}
        ordered = sorted(keys)
        rows = self.texts.get_many(ordered)
        decompressor = zstandard.ZstdDecompressor()
        parts = {
            key: (row["revision"], decompressor.decompress(row["text"]).decode())
            for key, row in zip(ordered, rows, strict=True)
            if row is not None
        }
        found: list[str | None] = []
        for document, revision, start, end in wanted:
            its = [parts.get((collection, document, part)) for part in _parts(start, end)]
            texts = [one[1] for one in its if one is not None and one[0] == revision]
            begin = start % PART_CHARS
            found.append("".join(texts)[begin : begin + end - start] if len(texts) == len(its) else None)
        return found


def _parts(start: int, end: int) -> range:
    """Return which rows of a text hold a stretch of it."""
    return range(start // PART_CHARS, -(-end // PART_CHARS)) if end > start else range(0)


def to_document(row: Mapping[str, Any]) -> StoredDocument:
    """Return what callers see of a row of ``_documents``."""
    return StoredDocument(
        id=row["id"],
        collection=row["collection"],
        source=row["source"],
        root=row["root"],
        title=row["title"],
        media_type=row["media_type"],
        content_hash=row["content_hash"],
        size_bytes=row["size_bytes"],
        chars=row["chars"],
        chunks=row["chunks"],
        images=row["images"],
        tokens=row["tokens"],
        metadata=row["metadata"] or {},
        warnings=tuple(row["warnings"] or ()),
        revision=row["revision"],
        ingested_at=row["ingested_at"],
    )
