"""From candidates to stored documents: read, parse, chunk, embed, store; what is unchanged is left alone.

The caller's thread looks up what is known, and writes; it alone touches the database, so that a transaction of the caller is
joined. Threads read, parse and chunk; one more embeds the chunks of several documents at once. What waits between them is
bounded, in number and in bytes. A document is stored in one transaction with its text and its chunks, so a killed ingest has
stored some documents and nothing of the others: the next one goes on there.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from operator import index
from pathlib import PurePath
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from agentdb.embedding import Embedder, embed_texts, is_embedder
from agentdb.embedding.windows import windows_of
from agentdb.errors import AgentDBError, InvalidInputError, MissingDependencyError
from agentdb.filters import encode_json
from agentdb.rag.chunking import Chunk, Chunker
from agentdb.rag.images import IMAGE_VECTOR, ImageOptions, PreparedImage, describe, image_id
from agentdb.rag.images import prepare as prepare_images
from agentdb.rag.parsing import DocumentError, ParseLimits, Parser, parse
from agentdb.rag.records import (
    RESERVED,
    IngestFailure,
    IngestReport,
    IngestWarning,
    check_document_metadata,
    is_storable,
)
from agentdb.rag.sources import Candidate, Content, Folder, Stamp, UnreadableError, is_gone, read
from agentdb.rag.tables import DocumentTables, chunk_id, row_ids, text_rows
from agentdb.types import OnProgress, Progress, Row
from agentdb.vectors.collection import Collection

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = ["LEAD_TOKENS", "Ingestion", "Setup", "lead_of"]

T = TypeVar("T")

_LOOK_UP = 256
"""Candidates whose rows are read at once."""
_WINDOW_CHUNKS = 512
"""Chunks that are embedded and stored together, at least."""
_EMBED_TEXTS = 256
"""Texts that the embedder gets at once; between them an ingest can be cancelled."""
_IN_FLIGHT_BYTES = 64 << 20
"""Of files that are being read, parsed and chunked at once; a larger one is alone."""
_TICK_S = 0.2
_LEAD_CHARS = 160
LEAD_TOKENS = 32
"""Room that chunks leave for what stands before them."""
_NAME_CHARS = 2_000
"""Of a title or heading, at most: every chunk repeats it, so that a file of one long line is not stored a thousand times."""
_FORMAT = 1
"""Of what is stored of a document; another one is another setup."""


def lead_of(title: str | None, heading_path: Sequence[str], text: str) -> str:
    """Return what stands before a chunk when it is embedded and searched: where it comes from. Empty, or ends with a blank line."""
    above = [" ".join(one.split()) for one in heading_path]
    if above and above[-1] in " ".join(text[: len(above[-1]) + 16].split()):
        above.pop()  # the chunk begins with its own heading
    name = " ".join((title or "").split())
    parts = [name, *(one for one in above if one != name)] if name else above
    if name and text.lstrip("# \t").startswith(name):
        parts = parts[1:]
    lead = " > ".join(parts)
    if len(lead) > _LEAD_CHARS:
        lead = lead[: _LEAD_CHARS - 1].rstrip() + "…"
    return f"{lead}\n\n" if lead else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How documents are made into chunks; what decides it is stored with them in a digest.

    Attributes:
        chunked_by: what the caller gave as the chunker.
        metadata: of all documents of the ingest.
        images: what is done with pictures; None: they are left out.
        workers: threads that read, parse and chunk.
    """

    embedder: Embedder
    count_tokens: Callable[[Sequence[str]], list[int]]
    chunker: Chunker
    chunked_by: object
    parsers: tuple[Parser, ...]
    limits: ParseLimits
    metadata: Mapping[str, Any]
    images: ImageOptions | None
    workers: int
    _of_all: list[Any] = field(init=False, repr=False)
    """The part of the digest that all documents share."""

    def __post_init__(self) -> None:
        parsers = [_described(one) for one in self.parsers]
        of_all = [_FORMAT, _described(self.chunked_by), parsers, [self.embedder.name, self.embedder.dimension]]
        object.__setattr__(self, "_of_all", of_all)

    def metadata_of(self, candidate: Candidate) -> dict[str, Any]:
        """Return what was given as the metadata of a document."""
        own = candidate.content.metadata if candidate.content is not None else None
        return {**self.metadata, **(own or {})}

    def digest(self, candidate: Candidate) -> str:
        """Return what tells ways apart in which the same content is stored differently."""
        content = candidate.content
        known = [
            *self._of_all,
            self.metadata_of(candidate),
            candidate.name,
            None if self.images is None else self.images.setup,
            None if content is None else [content.title, content.media_type],
        ]
        return blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=12).hexdigest()


def _described(part: object) -> list[Any]:
    """Return which class, or function, a part is, its plain settings, and the names of its embedders."""
    if isinstance(part, partial):
        return [*_described(part.func), *filter(_is_plain, part.args), _plain(part.keywords)]
    kind: Any = part if hasattr(part, "__qualname__") else type(part)
    names = [one.name for one in fields(part)] if is_dataclass(part) and not isinstance(part, type) else []
    values = {**getattr(part, "__dict__", {}), **{name: getattr(part, name) for name in names}}
    embedders = {name: [one.name, one.dimension] for name, one in values.items() if is_embedder(one)}
    return [
        f"{getattr(kind, '__module__', None)}.{kind.__qualname__}",
        _plain(values),
        *([embedders] if embedders else []),
    ]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in values.items() if _is_plain(one)}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A document that is ready but for the vectors of its chunks."""

    candidate: Candidate
    row: Row
    parts: list[Row]
    ids: list[str]
    texts: list[str]
    leads: list[int]
    metadata: list[dict[str, Any]]
    images: list[PreparedImage]
    image_metadata: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Same:
    """A document whose content is stored already; ``stamp`` and ``read_at_ns`` are what is new about it."""

    candidate: Candidate
    revision: str
    stamp: Stamp | None
    read_at_ns: int


_Outcome = _Prepared | _Same | IngestFailure


class Ingestion:
    """One ingest into one collection. Used once, by one thread.

    Args:
        engine: the database.
        tables: where documents are.
        collection: where their chunks are.
        name: of the documents' collection.
        setup: how.
        on_progress: told how many of the candidates are done; what it raises ends the ingest.
        total: how many there are, if that is known.
    """

    def __init__(
        self,
        engine: Engine,
        tables: DocumentTables,
        collection: Collection,
        name: str,
        setup: Setup,
        on_progress: OnProgress | None,
        total: int | None,
    ) -> None:
        self._engine = engine
        self._tables = tables
        self._collection = collection
        self._name = name
        self._setup = setup
        self._on_progress = on_progress
        self._total = total
        self._found = 0
        self._done = 0
        self._is_cancelled = Event()
        self._reading: deque[tuple[Future[_Outcome], int]] = deque()
        self._reading_bytes = 0
        self._window: list[_Prepared] = []
        self._window_chunks = self._window_bytes = 0
        self._embedding: tuple[list[_Prepared], Future[npt.NDArray[np.float32]]] | None = None
        self._touched: list[_Same] = []
        self._under_way: set[str] = set()
        self._counts = dict.fromkeys(("added", "updated", "unchanged", "removed", "chunks", "bytes"), 0)
        self._failed: list[IngestFailure] = []
        self._warnings: list[IngestWarning] = []
        self._ids: list[str] = []

    def run(self, found: Iterable[Candidate | IngestFailure], folders: Sequence[Folder]) -> IngestReport:
        """Store what is found, remove what is gone from the folders that were walked, and say what was done.

        Raises:
            whatever ``on_progress``, the embedder or the database raises; what was stored until then stays.
        """
        began = time.monotonic()
        self._readers = ThreadPoolExecutor(self._setup.workers, "agentdb-ingest")
        self._encoder = ThreadPoolExecutor(1, "agentdb-ingest-embed")
        try:
            self._tell()
            for batch in _batches(found):
                self._found += len(batch)
                self._take(batch)
            self._settle()
            for folder in folders:
                self._remove_gone(folder)
        finally:
            self._is_cancelled.set()
            self._readers.shutdown(wait=True, cancel_futures=True)
            self._encoder.shutdown(wait=True, cancel_futures=True)
        return IngestReport(
            **self._counts,
            failed=tuple(self._failed),
            warnings=tuple(self._warnings),
            seconds=time.monotonic() - began,
            document_ids=tuple(dict.fromkeys(self._ids)),
        )

    def _tell(self) -> None:
        if self._on_progress is not None:
            total = max(self._found, self._done) if self._total is None else max(self._total, self._found)
            self._on_progress(Progress("ingest", self._done, total))

    # --- what is new --------------------------------------------------------------------------------------------------

    def _take(self, batch: Sequence[Candidate | IngestFailure]) -> None:
        wanted = [one.id for one in batch if isinstance(one, Candidate)]
        known = dict(zip(wanted, self._tables.rows(self._name, wanted), strict=True))
        seen: set[str] = set()
        for found in batch:
            if isinstance(found, IngestFailure):
                self._finish(found)
                continue
            row = known[found.id]
            if found.id in seen or found.id in self._under_way:  # given twice: the second is compared with the first
                self._settle()
                row = self._tables.rows(self._name, [found.id])[0]
            seen.add(found.id)
            one = found.seen_from(None if row is None else row["root"])
            is_same = row is not None and one.stamp is not None and one.stamp.is_that_of(row)
            if row is not None and is_same and row["setup"] == self._setup.digest(one):
                self._finish(_Same(one, row["revision"], None, 0))
            else:
                self._start(one, row)

    def _start(self, candidate: Candidate, row: Row | None) -> None:
        size = min(candidate.size, self._setup.limits.max_bytes)
        while self._reading and (
            len(self._reading) >= 2 * self._setup.workers or self._reading_bytes + size > _IN_FLIGHT_BYTES
        ):
            self._collect()
        known = None if row is None else (row["content_hash"], row["setup"], row["revision"])
        self._under_way.add(candidate.id)
        self._reading.append((self._readers.submit(prepare, candidate, known, self._name, self._setup), size))
        self._reading_bytes += size

    def _collect(self) -> None:
        """Wait for the document that has been read for the longest time."""
        future, size = self._reading.popleft()
        outcome = self._await(future)
        self._reading_bytes -= size
        if not isinstance(outcome, _Prepared):
            self._finish(outcome)
            return
        self._window.append(outcome)
        self._window_chunks += len(outcome.ids)
        self._window_bytes += outcome.row["size_bytes"]
        if self._window_chunks >= _WINDOW_CHUNKS or self._window_bytes >= _IN_FLIGHT_BYTES:
            self._embed_window()

    def _await(self, future: Future[T]) -> T:
        """Return what a thread has made; meanwhile an ingest can be cancelled, and a transaction is not idle."""
        while not wait([future], _TICK_S).done:
            self._tell()
            if self._engine.in_transaction:
                self._tables.rows(self._name, [""])
        return future.result()

    def _settle(self) -> None:
        """Store all that is under way."""
        while self._reading:
            self._collect()
        self._embed_window()
        self._store_embedded()
        self._touch()

    # --- embedding and storing ----------------------------------------------------------------------------------------

    def _embed_window(self) -> None:
        """Begin to embed what was collected; what was embedded meanwhile is stored."""
        window, self._window = self._window, []
        self._window_chunks = self._window_bytes = 0
        if window:
            self._store_embedded()
            self._embedding = window, self._encoder.submit(self._embed, window)

    def _embed(self, window: Sequence[_Prepared]) -> npt.NDArray[np.float32]:
        embedder = self._setup.embedder
        whole = [text for one in window for text in one.texts]
        leads = [lead for one in window for lead in one.leads]
        windows = windows_of(whole, leads, embedder.max_tokens, self._setup.count_tokens)
        texts = windows.texts
        made = [np.empty((0, embedder.dimension), np.float32)]
        for begin in range(0, len(texts), _EMBED_TEXTS):
            if self._is_cancelled.is_set():
                break
            made.append(embed_texts(embedder, texts[begin : begin + _EMBED_TEXTS]))
        vectors = np.concatenate(made)
        return vectors if self._is_cancelled.is_set() else windows.pooled(vectors)

    def _store_embedded(self) -> None:
        if self._embedding is None:
            return
        window, future = self._embedding
        vectors = self._await(future)
        self._embedding = None
        are_new = self._engine.transact(lambda: self._put(window, vectors))
        for one, is_new in zip(window, are_new, strict=True):
            self._counts["added" if is_new else "updated"] += 1
            self._counts["chunks"] += len(one.ids)
            self._counts["bytes"] += one.row["size_bytes"]
            self._warnings += [IngestWarning(one.candidate.source, message) for message in one.row["warnings"]]
            self._ids.append(one.candidate.id)
            self._end(one.candidate)

    def _put(self, window: Sequence[_Prepared], vectors: npt.NDArray[np.float32]) -> list[bool]:
        """Store documents in the place of their older versions; return which had none. Inside a transaction."""
        before = self._tables.rows(self._name, [one.candidate.id for one in window])
        there = [row for row in before if row is not None]
        self._tables.remove(self._name, there)
        ids = [one for its in window for one in its.ids]
        kept = set(ids)
        surplus = [one for one in row_ids(there) if one not in kept]
        if surplus:
            self._collection.delete(surplus)
        if ids:
            texts = [text for one in window for text in one.texts]
            metadata = [its for one in window for its in one.metadata]
            self._collection.upsert(ids, vectors, texts, metadata)
        self._put_images([one for one in window if one.images])
        self._tables.texts.put_many(row for one in window for row in one.parts)
        now = self._engine.config.clock()
        self._tables.documents.put_many({**one.row, "ingested_at": now} for one in window)
        return [row is None for row in before]

    def _put_images(self, window: Sequence[_Prepared]) -> None:
        for one in window:
            document = one.candidate.id
            self._tables.images.put(self._name, document, one.row["revision"], one.images)
            ids = [image_id(document, image.number) for image in one.images]
            vectors = [image.vector for image in one.images]
            given = None if any(vector is None for vector in vectors) else {IMAGE_VECTOR: vectors}
            self._collection.upsert(ids, given, None, one.image_metadata)

    # --- what is not stored -------------------------------------------------------------------------------------------

    def _finish(self, outcome: _Same | IngestFailure) -> None:
        if isinstance(outcome, IngestFailure):
            self._failed.append(outcome)
            self._done += 1
            self._tell()
            return
        self._counts["unchanged"] += 1
        self._ids.append(outcome.candidate.id)
        if outcome.stamp is not None:
            self._touched.append(outcome)
            if len(self._touched) >= _LOOK_UP:
                self._touch()
        self._end(outcome.candidate)

    def _end(self, candidate: Candidate) -> None:
        self._under_way.discard(candidate.id)
        self._done += 1
        self._tell()

    def _touch(self) -> None:
        """Remember how files with unchanged content look now, so that the next ingest need not read them."""
        touched, self._touched = self._touched, []
        if not touched:
            return

        def work() -> None:
            rows = self._tables.rows(self._name, [one.candidate.id for one in touched])
            changed = []
            for row, one in zip(rows, touched, strict=True):
                if row is not None and row["revision"] == one.revision and one.stamp is not None:
                    stamp = {"mtime_ns": one.stamp.mtime_ns, "inode": one.stamp.inode, "read_at_ns": one.read_at_ns}
                    changed.append({**row, **stamp})
            self._tables.documents.put_many(changed)

        self._engine.transact(work)

    def _remove_gone(self, folder: Folder) -> None:
        """Delete the documents of files that are no longer in a folder."""
        rows = self._tables.scan(self._name, columns=["id", "source", "inode", "chars", "chunks", "images"])
        gone = (
            row for row in rows if row["inode"] is not None and folder.holds(row["source"]) and is_gone(row["source"])
        )
        while batch := list(islice(gone, _LOOK_UP)):
            self._counts["removed"] += self._engine.transact(lambda: self._remove(batch))
            self._tell()

    def _remove(self, batch: Sequence[Row]) -> int:
        # As they are now: somebody may have put a file back meanwhile.
        rows = [
            row
            for row in self._tables.rows(self._name, [one["id"] for one in batch])
            if row is not None and is_gone(row["source"])
        ]
        remove_documents(self._tables, self._collection, self._name, rows)
        return len(rows)


def _batches(found: Iterable[Candidate | IngestFailure]) -> Iterator[list[Candidate | IngestFailure]]:
    """Yield candidates whose rows are read at once: few where they hold much data."""
    batch: list[Candidate | IngestFailure] = []
    held = 0
    for one in found:
        batch.append(one)
        held += one.size if isinstance(one, Candidate) and one.content is not None else 0
        if len(batch) >= _LOOK_UP or held >= _IN_FLIGHT_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def remove_documents(
    tables: DocumentTables, collection: Collection, name: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Delete documents with all that belongs to them, in the caller's transaction."""
    ids = list(row_ids(rows))
    if ids:
        collection.delete(ids)
    tables.remove(name, rows)


# --- one document -----------------------------------------------------------------------------------------------------


def prepare(candidate: Candidate, known: tuple[str, str, str] | None, collection: str, setup: Setup) -> _Outcome:
    """Read, parse and chunk a document, unless it is as it was. Touches no database.

    Args:
        candidate: which.
        known: its content hash, setup and revision, if it is stored.
        collection: where it belongs.
        setup: how.
    """
    try:
        content = read(candidate, setup.limits.max_bytes)
        digest = setup.digest(candidate)
        if known is not None and (content.hash, digest) == known[:2]:
            return _Same(candidate, known[2], content.stamp, content.read_at_ns)
        return _prepare(candidate, content, digest, collection, setup)
    except UnreadableError as error:
        return error.failure
    except DocumentError as error:
        return IngestFailure(candidate.source, error.reason, str(error))
    except MissingDependencyError as error:
        return IngestFailure(candidate.source, "missing_dependency", str(error))
    except AgentDBError as error:
        return IngestFailure(candidate.source, "broken", str(error))
    except MemoryError:
        return IngestFailure(candidate.source, "too_large", "there is not enough memory to read it")
    except Exception as error:  # of a parser or a chunker of the caller's
        return IngestFailure(candidate.source, "broken", f"{type(error).__name__} while it was parsed and chunked")


def _prepare(candidate: Candidate, content: Content, digest: str, collection: str, setup: Setup) -> _Prepared:
    given = candidate.content
    media_type = None if given is None else given.media_type
    if media_type is None and given is not None and isinstance(given.content, str) and candidate.name is None:
        media_type = "text/plain"
    parsed = parse(content.data, name=candidate.name, media_type=media_type, limits=setup.limits, parsers=setup.parsers)
    if setup.images is not None:
        parsed = describe(parsed, setup.images, None if given is None else given.title)
    elif parsed.media_type.startswith("image/"):
        message = "it is a picture, which is left out without images=ImageOptions(...)"
        raise UnreadableError(IngestFailure(candidate.source, "image", message))
    text = parsed.text
    for name, one in (("text", text), ("title", parsed.title or ""), ("media type", parsed.media_type)):
        if not is_storable(one):
            raise InvalidInputError(f"its {name} holds a lone surrogate, which UTF-8 cannot store")
    title = (given.title if given is not None else None) or (parsed.title or "")[:_NAME_CHARS] or _file_name(candidate)
    # What a file says of itself gives way to what the caller says of it.
    found = {name: value for name, value in parsed.metadata.items() if name not in RESERVED and value is not None}
    metadata = check_document_metadata({**found, **setup.metadata_of(candidate)}, "metadata")
    chunks = _checked(setup.chunker.chunk(parsed), text)
    tokens = setup.count_tokens([text[one.start : one.end] for one in chunks]) if chunks else []
    revision = blake2b(f"{content.hash}{digest}".encode(), digest_size=8).hexdigest()
    shared = {
        **metadata,
        "document_id": candidate.id,
        "source": candidate.source,
        "media_type": parsed.media_type,
        "revision": revision,
        **({} if title is None else {"title": title}),
    }
    texts, leads, places = [], [], []
    for number, (chunk, count) in enumerate(zip(chunks, tokens, strict=True)):
        lead = lead_of(title, chunk.heading_path, text[chunk.start : chunk.end])
        texts.append(lead + text[chunk.start : chunk.end])
        leads.append(len(lead))
        places.append({**shared, **_place(chunk, number, len(lead), count)})
    images, problems = ([], []) if setup.images is None else prepare_images(parsed, setup.images, candidate.path)
    row = {
        "collection": collection,
        "id": candidate.id,
        "source": candidate.source,
        "root": candidate.root,
        "title": title,
        "media_type": parsed.media_type,
        "content_hash": content.hash,
        "setup": digest,
        "revision": revision,
        "size_bytes": len(content.data),
        "mtime_ns": None if content.stamp is None else content.stamp.mtime_ns,
        "inode": None if content.stamp is None else content.stamp.inode,
        "read_at_ns": None if content.stamp is None else content.read_at_ns,
        "chars": len(text),
        "chunks": len(chunks),
        "images": len(images),
        "tokens": sum(tokens),
        "metadata": metadata,
        "warnings": [*parsed.warnings, *problems],
    }
    encode_json(metadata, path="metadata")
    parts = text_rows(collection, candidate.id, revision, text)
    ids = [chunk_id(candidate.id, i) for i in range(len(chunks))]
    pictures = [
        {
            **shared,
            "image": one.number,
            "place": f"{one.number} {one.start} {one.end} 0 0",
            **({} if one.page is None else {"page": one.page}),
        }
        for one in images
    ]
    return _Prepared(candidate, row, parts, ids, texts, leads, places, images, pictures)


def _file_name(candidate: Candidate) -> str | None:
    """Return the name of a file; a name without a suffix that was given with data says nothing about the content."""
    name = candidate.name
    return name if name is not None and (candidate.path is not None or PurePath(name).suffix) else None


def _checked(chunks: Iterable[Chunk], text: str) -> list[Chunk]:
    """Return the chunks of a chunker that may be the caller's own, as what can be stored."""
    found = []
    for number, one in enumerate(chunks):
        start, end = index(one.start), index(one.end)
        parent = None if one.parent is None else (index(one.parent[0]), index(one.parent[1]))
        if not 0 <= start < end <= len(text):
            raise InvalidInputError(f"chunk {number} does not lie in the text of {len(text)} characters")
        if parent is not None and not 0 <= parent[0] <= start < end <= parent[1] <= len(text):
            raise InvalidInputError(f"chunk {number} does not lie in its parent, or that one not in the text")
        if not all(isinstance(name, str) for name in one.heading_path):
            raise InvalidInputError(f"chunk {number} has a heading that is no str")
        headings = tuple(name[:_NAME_CHARS] for name in one.heading_path)
        if not all(map(is_storable, headings)):
            raise InvalidInputError(f"chunk {number} has a heading that is no text that UTF-8 can store")
        page = None if one.page is None else index(one.page)
        found.append(Chunk(start, end, page, headings, parent))
    return found


def _place(chunk: Chunk, number: int, lead: int, tokens: int) -> dict[str, Any]:
    """Return what a chunk's metadata says of where it stands.

    Its numbers are one string, because every value of the metadata costs a term of its own to be filtered by.
    """
    numbers = [number, chunk.start, chunk.end, lead, tokens, *(chunk.parent or ())]
    place: dict[str, Any] = {"place": " ".join(map(str, numbers))}
    if chunk.page is not None:
        place["page"] = chunk.page
    if chunk.heading_path:
        place["headings"] = list(chunk.heading_path)
    return place


def default_workers() -> int:
    """Return how many threads read and parse."""
    return max(1, min(8, os.cpu_count() or 1))
