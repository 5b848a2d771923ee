"""``Documents``: from a folder of files to a cited context. Made by the database as ``db.documents``."""

from __future__ import annotations

import builtins
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from agentdb.embedding import Embedder, TokenCounter
from agentdb.errors import AccessDeniedError, InvalidInputError, NotFoundError, UnavailableError
from agentdb.filters import Filter
from agentdb.llm import LanguageModel, as_language_model
from agentdb.rag.chunking import Chunker, StructureChunker, as_chunker
from agentdb.rag.context import ContextOrder, Packing, answer_from, pack
from agentdb.rag.images import IMAGE_VECTOR, ImageOptions, StoredImage, image_vector
from agentdb.rag.ingestion import LEAD_TOKENS, Ingestion, Setup, default_workers, remove_documents
from agentdb.rag.parsing import ParseLimits, Parser
from agentdb.rag.records import (
    Answer,
    Context,
    ContextFormat,
    Document,
    FoundImage,
    IngestReport,
    Passage,
    StoredDocument,
    check_document_metadata,
)
from agentdb.rag.search import Expand, PassageFinder, PassageOptions, PassageRequest
from agentdb.rag.sources import Candidate, Folder, FolderRules, candidates, path_of
from agentdb.rag.tables import COLLECTION_PREFIX, DocumentTables, part_keys, row_ids, to_document
from agentdb.types import ErasureReceipt, OnProgress, Row
from agentdb.vectors.collection import Collection
from agentdb.vectors.definition import VectorSpec
from agentdb.vectors.evolution import add_vector
from agentdb.vectors.query import Fusion, Mode
from agentdb.vectors.registry import Collections

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = ["Documents"]

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,36}\Z")
_CHUNK_TOKENS = 512
"""The most that a chunk and what stands before it have, however much the embedder reads."""
_OVERLAP = 8
"""A chunk repeats at most one part in so many of the one before it."""
_SCHEMA: Mapping[str | Sequence[str], Any] = {"document_id": str}
_FIRST_PASSAGES, _MOST_PASSAGES = 16, 256
"""A context is chosen from the first so many passages, and from four times as many while they leave room."""
_CONTEXT_TOKENS = 2_000
"""Of an answer's context."""


class ContextOptions(PassageOptions, total=False):
    """What an answer's context may be told; the defaults are those of `Documents.context`."""

    tokenizer: Any
    order: ContextOrder
    k: int | None
    collection: str


class Documents:
    """The documents of one database, in named collections.

    Every method may be called from any thread. Inside ``db.transaction()`` or ``db.snapshot()`` the calls join that one.

    A filter may test the keys of a document's metadata, and of its place: ``source``, ``title``, ``media_type``, ``page``,
    ``headings`` (a list) and ``document_id``: ``field("page") == 3``, ``field("headings").contains("Installation")``.
    """

    def __init__(self, engine: Engine, collections: Collections, embedder: Callable[[], Embedder]) -> None:
        self._engine = engine
        self._collections = collections
        self._find_embedder = embedder
        self._opened: DocumentTables | None = None
        self._handles: dict[str, Collection] = {}
        self._image_embedders: dict[str, Any] = {}

    def __repr__(self) -> str:
        return "Documents()"

    # --- ingesting ----------------------------------------------------------------------------------------------------

    def ingest(
        self,
        source: Any,
        *,
        collection: str = "documents",
        metadata: Mapping[str, Any] | None = None,
        chunker: Chunker | Any = None,
        images: ImageOptions | None = None,
        parsers: Sequence[Parser] = (),
        limits: ParseLimits | None = None,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] = (),
        follow_links: bool = False,
        workers: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> IngestReport:
        """Store documents, each with its text and its chunks in one transaction, durable when this returns; report what was done.

        What is stored already with the same content is left alone: files are not even read if size, time and inode are those
        of the last ingest. A changed document takes the place of its older version from one commit to the next. When a folder
        is ingested again, documents of files that are gone from it are removed; a folder that cannot be read removes nothing. One
        that was renamed is another: ``delete(filter=field("root") == OLD_PATH)`` removes the documents of the old one.
        If the process is killed, the same call goes on where it was. A file that cannot be read or parsed is reported, and
        what was stored of it before stays.

        Args:
            source: a path of a file or folder; a text; bytes; a `Document`; or an iterable of these and of pairs
                ``(name, text or bytes)``. A ``str`` of one line that names an existing file or folder is its path: give a text
                that is not yours as a `Document`.
            collection: 1 to 37 letters, digits, ``_``, ``-`` and ``.``; made where there is none. It is an ordinary collection
                called ``_documents.NAME``.
            metadata: a JSON object for all of them; what passages can be filtered by, beside what a file says of itself.
            chunker: a `Chunker`, a LangChain text splitter, a LlamaIndex node parser or a function from a text to its parts; None:
                by structure, in chunks of at most 480 tokens, which an embedder that reads less reads in parts. Documents that were
                chunked otherwise are chunked anew.
            images: what is done with the pictures of documents, and with those that are documents: describe, embed, keep them.
                None: they are left out. The first ingest with an embedder of pictures decides how long their vectors are, and
                cannot be inside a transaction if the collection is there already.
            parsers: asked before the ones for known formats.
            limits: how far parsing goes.
            include: patterns such as ``"*.md"`` or ``"docs/*"``: only files of a folder that match one, by their name or their
                path below it.
            exclude: patterns of files and folders of a folder to leave out. Always left out are hidden ones (``.git``),
                ``__pycache__``, ``node_modules``, ``*.pyc``, ``*~`` and the like, and databases. ``.gitignore`` is not read.
            follow_links: follow symbolic links in a folder; a folder is walked once, also where links lead in circles.
            workers: threads that read and parse; None: as many as there are processors, up to 8.
            on_progress: told from time to time how many documents are done. What it raises ends the ingest; what was stored
                until then stays.

        Raises:
            NotFoundError: there is no such file or folder.
            AccessDeniedError: the folder cannot be listed, or the database is read-only.
            InvalidInputError: an argument cannot be accepted.
            MissingDependencyError: there is no embedder.
            UnavailableError: inside a snapshot, or inside a transaction if the collection needs vectors of pictures first.
        """
        name = self._checked(collection)
        self._engine._core.writable()
        if self._engine._core.current() is not None and not self._engine.in_transaction:
            raise UnavailableError("documents cannot be ingested inside a snapshot")
        rules = FolderRules.of(include, exclude, follow_links)
        given = check_document_metadata(metadata, "metadata")
        if on_progress is not None and not callable(on_progress):
            raise InvalidInputError(f"on_progress must be a function, not {type(on_progress).__name__}")
        folders: builtins.list[Folder] = []
        found = candidates(source, rules, folders)
        first = next(found, None)  # says what is wrong with the source before anything is made for it
        if images is not None and not isinstance(images, ImageOptions):
            raise InvalidInputError(f"images must be ImageOptions or None, not {type(images).__name__}")
        chunks = self._made(name, images)
        setup = self._setup(chunks, chunker, images, parsers, limits, given, workers)
        total = _total(source, rules) if on_progress is not None else None
        ingestion = Ingestion(self._engine, self._tables, chunks, name, setup, on_progress, total)
        everything = found if first is None else _chained(first, found)
        return ingestion.run(everything, folders)

    def _setup(
        self,
        chunks: Collection,
        chunker: Any,
        images: ImageOptions | None,
        parsers: Any,
        limits: Any,
        metadata: Mapping[str, Any],
        workers: Any,
    ) -> Setup:
        embedder = chunks.embedder
        if embedder is None:
            raise InvalidInputError(f"collection {chunks.name} has no embedder, so no documents can be put into it")
        count = embedder.count_tokens if isinstance(embedder, TokenCounter) else _words
        if not isinstance(parsers, Iterable) or isinstance(parsers, str):
            raise InvalidInputError(f"parsers must be a list of parsers, not {type(parsers).__name__}")
        own = tuple(parsers)
        for position, one in enumerate(own):
            if not (hasattr(one, "media_types") and callable(getattr(one, "parse", None))):
                raise InvalidInputError(
                    f"parsers[{position}] must have media_types and parse(), not be {type(one).__name__}"
                )
        if limits is not None and not isinstance(limits, ParseLimits):
            raise InvalidInputError(f"limits must be ParseLimits or None, not {type(limits).__name__}")
        if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
            raise InvalidInputError("workers must be an int of 1 or more, or None")
        if chunker is None:
            size = _CHUNK_TOKENS - LEAD_TOKENS
            chunker = StructureChunker(chunk_tokens=size, overlap_tokens=size // _OVERLAP, count_tokens=count)
        return Setup(
            embedder=embedder,
            count_tokens=lambda texts: [int(one) for one in count(texts)],
            chunker=as_chunker(chunker),
            chunked_by=chunker,
            parsers=own,
            limits=ParseLimits() if limits is None else limits,
            metadata=metadata,
            images=images,
            workers=default_workers() if workers is None else workers,
        )

    # --- what there is ------------------------------------------------------------------------------------------------

    def collections(self) -> builtins.list[str]:
        """Return the names of all collections of documents, sorted."""
        return [name.removeprefix(COLLECTION_PREFIX) for name in self._collections.names(COLLECTION_PREFIX)]

    def list(
        self, *, collection: str = "documents", filter: Filter | None = None, limit: int | None = None
    ) -> builtins.list[StoredDocument]:
        """Return what is known of the documents of a collection, in the order of their sources; none if there is no such one.

        Args:
            collection: which.
            filter: only documents that match; its paths are the attributes of `StoredDocument` and keys of their metadata, as in
                ``field("media_type") == "application/pdf"`` or ``field("metadata", "year") >= 2020``.
            limit: at most so many.

        Raises:
            InvalidInputError: an argument cannot be accepted.
        """
        name = self._checked(collection)
        tables = self._existing
        if tables is None:
            return []
        return [to_document(row) for row in tables.scan(name, filter, order_by=["source", "id"], limit=limit)]

    def get(self, document_id: str, *, collection: str = "documents") -> StoredDocument | None:
        """Return what is known of a document, or None."""
        row = self._row(document_id, collection)
        return None if row is None else to_document(row)

    def text(self, document_id: str, start: int = 0, end: int | None = None, *, collection: str = "documents") -> str:
        """Return the text of a document, or a stretch of it: what passages and citations are spans of.

        Args:
            document_id: which.
            start: from which character on.
            end: up to which; None: to its end.
            collection: where it is.

        Raises:
            NotFoundError: there is no such document.
            InvalidInputError: the stretch does not lie in the text.
        """
        for name, value in (("start", start), ("end", end)):
            if (value is not None or name == "start") and (type(value) is not int or value < 0):
                raise InvalidInputError(f"{name} must be an int of 0 or more, not {type(value).__name__}")
        with self._engine.snapshot():
            row = self._row(document_id, collection)
            if row is None:
                raise NotFoundError(f"collection {collection} has no document of that id")
            last = row["chars"] if end is None else end
            if not start <= last <= row["chars"]:
                raise InvalidInputError(f"start and end must lie in the text of {row['chars']:,} characters, in order")
            found = self._tables.spans(collection, [(document_id, row["revision"], start, last)])[0]
        assert found is not None
        return found

    def _row(self, document_id: object, collection: object) -> Row | None:
        if not isinstance(document_id, str):
            raise InvalidInputError(f"document_id must be a str, not {type(document_id).__name__}")
        name = self._checked(collection)
        tables = self._existing
        return None if tables is None else tables.rows(name, [document_id])[0]

    # --- deleting -----------------------------------------------------------------------------------------------------

    def delete(
        self,
        document_ids: str | Iterable[str] | None = None,
        *,
        filter: Filter | None = None,
        collection: str = "documents",
    ) -> int:
        """Delete documents with their texts and chunks, in one transaction; return how many there were.

        Args:
            document_ids: one id or several; those that do not exist are passed over.
            filter: in the place of ids: as in `list`.
            collection: where they are.

        Raises:
            InvalidInputError: both or neither are given.
        """
        name = self._checked(collection)
        ids = _ids(document_ids, filter)
        tables = self._existing
        if tables is None:
            return 0

        def work() -> int:
            rows = self._doomed(tables, name, ids, filter)
            if rows:
                remove_documents(tables, self._require(name), name, rows)
            return len(rows)

        return self._engine.transact(work)

    def erase(
        self,
        document_ids: str | Iterable[str] | None = None,
        *,
        filter: Filter | None = None,
        collection: str = "documents",
    ) -> ErasureReceipt:
        """Delete documents so that no file of the database holds them: no text, chunk, vector, term, index, old version or log.

        Takes what `delete` takes. Nothing stays either of what was deleted or replaced before.

        Returns:
            The receipt of the documents themselves. Outside a transaction it is ``complete``, unless a reader still has an older
            state of the database pinned; ``db.erasure(receipt.id)`` tells how it stands.

        Raises:
            InvalidInputError: both or neither are given.
            NotFoundError: nothing was ever ingested.
        """
        name = self._checked(collection)
        ids = _ids(document_ids, filter)
        tables = self._existing
        if tables is None:
            raise NotFoundError("this database holds no documents")
        with self._engine.transaction():
            rows = self._doomed(tables, name, ids, filter)
            # All tables, whatever is left in them now: they may hold more of older versions, or of what was only deleted.
            chunks = self._handle(name)
            if chunks is not None:
                chunks.erase(builtins.list(row_ids(rows)))
            if tables.has_images:
                pictures = [(name, row["id"], number) for row in rows for number in range(row["images"])]
                tables.images.table.erase_many(pictures)
            tables.texts.erase_many([key for row in rows for key in part_keys(name, row["id"], row["chars"])])
            receipt = tables.documents.erase_many([(name, row["id"]) for row in rows])
        self._engine.settle_erasures()
        return self._engine.erasure(receipt.id) or receipt

    def drop(self, collection: str) -> bool:
        """Delete a collection with all its documents; whether there was one. Open snapshots keep what they see."""
        name = self._checked(collection)

        def work() -> bool:
            tables = self._existing
            if tables is not None:
                tables.remove(name, builtins.list(tables.scan(name, columns=["id", "chars", "images"])))
            return self._collections.drop(COLLECTION_PREFIX + name)

        self._handles.pop(name, None)
        return self._engine.transact(work)

    def _doomed(
        self, tables: DocumentTables, name: str, ids: Sequence[str] | None, condition: Filter | None
    ) -> builtins.list[Row]:
        columns = ["id", "chars", "chunks", "images"]
        if ids is None:
            return builtins.list(tables.scan(name, condition, columns=columns))
        return [row for row in tables.rows(name, ids) if row is not None]

    # --- searching ----------------------------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        collection: str = "documents",
        filter: Filter | None = None,
        mode: Mode = "hybrid",
        fusion: Fusion = "normalized",
        weights: Mapping[str, float] | None = None,
        late_interaction: bool = False,
        rerank: Any = None,
        expand: Expand | None = None,
        deduplicate: bool = True,
        per_source: int | None = None,
        expand_neighbors: int = 0,
        parents: bool = True,
        min_score: float | None = None,
        explain: bool = False,
    ) -> builtins.list[Passage]:
        """Return the K best passages, best first; fewer where fewer match. What was ingested before is found.

        Args:
            query: in words.
            k: at least 1.
            collection: where to look; one that does not exist has no passages.
            filter: only passages that match; see the class.
            mode: ``"vector"``: nearest in meaning; ``"text"``: best matching words (BM25); ``"hybrid"``: both, fused.
            fusion: of ``"hybrid"``: scores ``"normalized"`` for each query, or ranks (``"rrf"``).
            weights: of the signals ``"vector"`` and ``"text"``.
            late_interaction: let the tokens of the query and of the best 50 passages be compared as well. The embedder reads
                these then: it takes as long as ingesting them.
            rerank: a `Reranker`, a sentence-transformers ``CrossEncoder``, or a function of the query and texts that returns a
                score for each. It sees the best 50, or K and some more, each behind its title and headings; the rest is left out.
            expand: a function from the query to other ways to ask it; what these find counts half.
            deduplicate: leave out passages that say nearly the same as a better one, in the same words.
            per_source: at most so many passages of one document.
            expand_neighbors: return each passage with so many chunks before and after it.
            parents: return the larger stretch that a chunk was cut from, where the chunker names one, once.
            min_score: only passages that reach it.
            explain: let ``Passage.signals`` hold more of what each step said.

        Raises:
            InvalidInputError: an argument cannot be accepted; the message names it.
        """
        options: PassageOptions = {
            "filter": filter,
            "mode": mode,
            "fusion": fusion,
            "weights": weights,
            "late_interaction": late_interaction,
            "rerank": rerank,
            "expand": expand,
            "deduplicate": deduplicate,
            "per_source": per_source,
            "expand_neighbors": expand_neighbors,
            "parents": parents,
            "min_score": min_score,
            "explain": explain,
        }
        request = PassageRequest.of(query, k, options)
        return self._looked_up(self._checked(collection), lambda finder: finder.search(request), builtins.list)

    def search_images(
        self,
        query: str | bytes | os.PathLike[str],
        k: int = 10,
        *,
        collection: str = "documents",
        filter: Filter | None = None,
        embedder: Any = None,
    ) -> builtins.list[FoundImage]:
        """Return the K pictures that are nearest to a text or to a picture, best first; fewer where there are fewer.

        Args:
            query: a text; or an encoded picture or the path of one.
            k: at least 1.
            collection: where to look; one that does not exist has no pictures.
            filter: only pictures of documents, or pages, that match; see the class.
            embedder: of texts and pictures: the one whose vectors are stored. None: the one of the last ingest of this handle.

        Raises:
            InvalidInputError: an argument cannot be accepted, or there is no embedder.
        """
        name = self._checked(collection)
        handle, tables = self._handle(name), self._existing
        if not isinstance(query, str | bytes | os.PathLike):
            raise InvalidInputError(
                f"query must be a text, or the bytes or path of a picture, not {type(query).__name__}"
            )
        if handle is None or tables is None or IMAGE_VECTOR not in handle.vectors:
            return []
        own = self._image_embedders.get(name) if embedder is None else embedder
        if own is None:
            raise InvalidInputError("give the embedder of texts and pictures that made the vectors: embedder=...")
        self._require_image_embedder(name, own)
        vector = own.embed([query], "query")[0] if isinstance(query, str) else own.embed_images([query])[0]
        return PassageFinder(self._engine, tables, handle, name).images(vector, k, filter)

    def image(self, document_id: str, number: int = 0, *, collection: str = "documents") -> bytes:
        """Return an encoded picture of a document.

        Raises:
            NotFoundError: there is no such picture, or the file in which it stayed is gone or has changed.
        """
        row = self._row(document_id, collection)
        if row is None or not isinstance(number, int) or not 0 <= number < row["images"]:
            raise NotFoundError(f"document {document_id} has no image {number}")
        return self._tables.images.data(collection, document_id, number)

    def images(self, document_id: str, *, collection: str = "documents") -> builtins.list[StoredImage]:
        """Return what is known of the pictures of a document, in their order; none if there is no such document."""
        row = self._row(document_id, collection)
        return [] if row is None or not row["images"] else self._tables.images.of_document(collection, document_id)

    def context(
        self,
        query: str,
        *,
        token_budget: int,
        format: ContextFormat = "markdown",  # noqa: A002 - the field's word
        tokenizer: Any = None,
        order: ContextOrder = "relevance",
        k: int | None = None,
        collection: str = "documents",
        **options: Unpack[PassageOptions],
    ) -> Context:
        """Return the best passages as text for a prompt: numbered, within a budget of tokens, with what was left out and why.

        Passages of one document that touch are put together. Where not even the best one fits, it is shortened.

        Args:
            query: in words.
            token_budget: how many tokens the text has at most, or the contents of all messages.
            format: ``"markdown"``; ``"xml"``, in which the content of documents cannot pretend to be anything else; or
                ``"messages"``: a system message with the sources and a user message with the query.
            tokenizer: counts the tokens: a function of a text, something with ``count_tokens(texts)``, or a tokenizer with
                ``encode(text)`` (transformers, tokenizers, tiktoken). None: the embedder's.
            order: ``"relevance"``: the best first; ``"document"``: all of a document together, from its beginning.
            k: how many passages to choose from; None: as many as might fit.
            collection: where to look.
            options: as in `search`.

        Raises:
            InvalidInputError: an argument cannot be accepted, or the budget has no room for the query and its instructions.
        """
        name = self._checked(collection)
        packing = Packing.of(query, token_budget, format, order, tokenizer, lambda: self._embedder_of(name))
        request = PassageRequest.of(query, _FIRST_PASSAGES if k is None else k, options)

        def work(finder: PassageFinder) -> Context:
            found, asked = finder.find(request), request
            # Short passages may leave room: most budgets are filled by a few, and more candidates cost more.
            while k is None and len(found.chunks) == asked.k < _MOST_PASSAGES and found.tokens < token_budget:
                asked = replace(asked, k=4 * asked.k)
                found = finder.find(asked)
            wide = finder.widened(found, asked)
            return pack(wide, found.omitted, packing, finder.texts)

        return self._looked_up(
            name, lambda finder: finder.consistently(lambda: work(finder)), lambda: pack([], [], packing, lambda _: [])
        )

    def answer(
        self,
        query: str,
        llm: LanguageModel | Callable[[str], str] | Any,
        *,
        token_budget: int = _CONTEXT_TOKENS,
        instructions: str | None = None,
        format: ContextFormat = "xml",  # noqa: A002 - the field's word
        **options: Unpack[ContextOptions],
    ) -> Answer:
        """Return what a language model answers from the context of a query, and which of its citations it named.

        Args:
            query: the question.
            llm: a `LanguageModel`, a LangChain Runnable, a LlamaIndex LLM, or a function from a prompt to a text.
            token_budget: of the context; instructions and question come on top.
            instructions: in the place of ours, which ask for answers from the sources alone, with their numbers in brackets.
            format: of the context.
            options: as in `context`.

        Raises:
            InvalidInputError: an argument cannot be accepted, or the model does not answer with a text.
            whatever the model raises.
        """
        model = as_language_model(llm)
        if instructions is not None and not isinstance(instructions, str):
            raise InvalidInputError(f"instructions must be a str or None, not {type(instructions).__name__}")
        if format == "messages":
            raise InvalidInputError(
                "format must be 'markdown' or 'xml' for an answer: a LanguageModel takes one prompt"
            )
        context = self.context(query, token_budget=token_budget, format=format, **options)
        return answer_from(context, query, model, instructions)

    # --- where it is --------------------------------------------------------------------------------------------------

    def _checked(self, name: object) -> str:
        self._engine._check()
        if not isinstance(name, str) or not _NAME.match(name):
            raise InvalidInputError(
                "a collection of documents must have a name of 1 to 37 letters, digits, '_', '-' and '.', beginning with a letter"
            )
        return name

    @property
    def _tables(self) -> DocumentTables:
        if self._opened is not None:
            return self._opened
        tables = DocumentTables.of(self._engine)
        if not self._engine.in_transaction:
            self._opened = tables  # otherwise they may go with the transaction
        return tables

    @property
    def _existing(self) -> DocumentTables | None:
        """The tables; None if nothing was ever ingested: looking for something creates nothing."""
        if self._opened is not None or DocumentTables.exist(self._engine):
            return self._tables
        return None

    def _made(self, name: str, images: ImageOptions | None) -> Collection:
        """Return the collection of chunks, made if there is none, with a place for the vectors of pictures if they get any.

        Raises:
            InvalidInputError: its vectors of pictures are of another length.
            UnavailableError: it has none, and cannot get them inside a transaction.
        """
        full = COLLECTION_PREFIX + name
        wanted = image_vector(images)
        if not self._collections.has(full):
            embedder = self._find_embedder()
            vectors = {"vector": VectorSpec(embedder.dimension), **wanted}
            made = self._collections.open(
                full, dimension=None, metric=None, embedder=embedder, vectors=vectors, schema=_SCHEMA
            )
        else:
            made = self._require(name)
        for vector, spec in wanted.items():
            found = made.vectors.get(vector)
            if found is None:
                if self._engine.in_transaction:
                    raise UnavailableError(
                        f"the documents of collection {name} have no vectors of pictures yet: ingest the first pictures outside "
                        "of transactions"
                    )
                found = add_vector(made._store, made._table, vector, spec)
            if found != spec:
                raise InvalidInputError(
                    f"the documents of collection {name} have vectors of pictures of {found.dimension} dimensions, as the first "
                    "ingest with pictures said: use another collection"
                )
        if images is not None and images.embedder is not None:
            self._require_image_embedder(name, images.embedder)
            self._image_embedders[name] = images.embedder
        return made

    def _require_image_embedder(self, name: str, embedder: Any) -> None:
        """Return only if the pictures of a collection are compared with vectors of the model that made theirs.

        Raises:
            InvalidInputError: another one made them.
        """
        stored = self._tables.images.embedder_of(name) if self._tables.has_images else None
        if stored is not None and stored != embedder.name:
            raise InvalidInputError(
                f"the pictures of collection {name} were embedded by {stored!r}, not by {embedder.name!r}: give that one, or "
                "use another collection"
            )

    def _require(self, name: str) -> Collection:
        """Return the collection of chunks.

        Raises:
            NotFoundError: there is none.
        """
        found = self._handle(name)
        if found is None:
            raise NotFoundError(f"there is no collection of documents {name!r}")
        return found

    def _handle(self, name: str) -> Collection | None:
        handle = self._handles.get(name)
        if handle is not None:
            try:
                handle._store.read()
                return handle
            except NotFoundError:  # dropped; perhaps there is a new one
                self._handles.pop(name, None)
        full = COLLECTION_PREFIX + name
        if not self._collections.has(full):
            return None
        handle = self._collections.open(full, dimension=None, metric=None, embedder=None, vectors=None, schema=None)
        if not self._engine.in_transaction:
            self._handles[name] = handle
        return handle

    def _finder(self, name: str) -> PassageFinder | None:
        tables, handle = self._existing, self._handle(name)
        if tables is None or handle is None:
            return None
        return PassageFinder(self._engine, tables, handle, name)

    def _looked_up(self, name: str, look: Callable[[PassageFinder], T], nothing: Callable[[], T]) -> T:
        """Return what is looked up in a collection; one that is dropped meanwhile is one that does not exist."""
        for is_again in (False, True):
            finder = self._finder(name)
            if finder is None:
                break
            try:
                return look(finder)
            except NotFoundError:
                if is_again:
                    raise
        return nothing()

    def _embedder_of(self, name: str) -> Embedder:
        handle = self._handle(name)
        embedder = None if handle is None else handle.embedder
        return self._find_embedder() if embedder is None else embedder


def _ids(given: object, condition: Filter | None) -> builtins.list[str] | None:
    if (given is None) == (condition is None):
        raise InvalidInputError("give either ids of documents or a filter")
    if given is None:
        return None
    found = [given] if isinstance(given, str) else builtins.list(given) if isinstance(given, Iterable) else None
    if found is None or not all(isinstance(one, str) for one in found):
        raise InvalidInputError("document_ids must be an id (str) or several")
    return builtins.list(dict.fromkeys(found))


def _words(texts: Sequence[str]) -> builtins.list[int]:
    """Return about how many tokens texts have, where the embedder does not tell."""
    return [len(re.findall(r"\w{1,6}|[^\w\s]", text)) for text in texts]


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _total(source: Any, rules: FolderRules) -> int | None:
    """Return how many documents a source has, if that can be told without using it up."""
    if isinstance(source, builtins.list | tuple):
        counts = [1 if isinstance(one, tuple) else _total(one, rules) for one in source]
        return None if None in counts else sum(one or 0 for one in counts)
    if isinstance(source, Document | bytes | bytearray | memoryview):
        return 1
    try:
        path = path_of(source) if isinstance(source, str) else source
        if path is None:
            return 1
        if hasattr(path, "__fspath__"):
            return sum(isinstance(one, Candidate) for one in candidates(path, rules, []))
    except (NotFoundError, AccessDeniedError):
        return 1
    return None
