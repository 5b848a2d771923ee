"""What callers give to documents and get back: a document, a report of an ingest, a passage, a context, an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from agentdb.errors import InvalidInputError
from agentdb.filters import encode_json

__all__ = [
    "RESERVED",
    "Answer",
    "Citation",
    "Context",
    "ContextFormat",
    "Document",
    "FoundImage",
    "IngestFailure",
    "IngestReport",
    "IngestWarning",
    "Omitted",
    "OmittedReason",
    "Passage",
    "StoredDocument",
    "check_document_metadata",
    "is_storable",
]

ContextFormat = Literal["markdown", "xml", "messages"]
OmittedReason = Literal["budget", "duplicate", "per_source", "shortened"]

RESERVED = ("document_id", "headings", "image", "media_type", "page", "place", "revision", "source", "title")
"""Keys of a chunk's metadata that say where it comes from; a document's own metadata stands beside them."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document that is given as data, not as a file.

    Args:
        content: its text, or the bytes of a file of any format that can be read.
        source: what it is called: its identity. Another document of the same source takes the place of this one. None: its
            content is its identity.
        title: stands before every one of its chunks when they are embedded and searched; None: the one that its content gives.
        media_type: such as ``"text/markdown"``; None: found out from the source's suffix and the content.
        metadata: a JSON object; what its passages can be filtered by.
    """

    content: str | bytes
    source: str | None = field(default=None, kw_only=True)
    title: str | None = field(default=None, kw_only=True)
    media_type: str | None = field(default=None, kw_only=True)
    metadata: Mapping[str, Any] | None = field(default=None, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        content: object = self.content
        if not isinstance(content, str | bytes):
            raise InvalidInputError(f"Document.content must be a str or bytes, not {type(content).__name__}")
        for name in ("source", "title", "media_type"):
            value: object = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, str) or not value:
                raise InvalidInputError(f"Document.{name} must be a non-empty str or None, not {type(value).__name__}")
            if not is_storable(value):
                raise InvalidInputError(f"Document.{name} holds a lone surrogate, which UTF-8 cannot store")
        check_document_metadata(self.metadata, "Document.metadata")


def check_document_metadata(given: object, what: str) -> dict[str, Any]:
    """Return a caller's metadata as a dictionary.

    Raises:
        InvalidInputError: it is no JSON object, or has a key that a chunk's place needs.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"{what} must be a mapping or None, not {type(given).__name__}")
    made = dict(given)
    taken = sorted(key for key in made if key in RESERVED)
    if taken:
        raise InvalidInputError(
            f"{what} must not have the keys {', '.join(taken)}: they say where a passage comes from"
        )
    encode_json(made, path=what)
    return made


def is_storable(text: str) -> bool:
    """Return whether a text can be UTF-8: whether it holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """What is known of a stored document; its text is read by ``db.documents.text(id)``.

    Attributes:
        id: the same for every version of the same source.
        source: the path of a file, or what it was called.
        root: the folder that a file was ingested from, the outermost if there were several; None: it is no file.
        title: its own, or the path of the file below the root; None: it has neither.
        content_hash: SHA-256 of its bytes, or of the UTF-8 of its text.
        size_bytes: of the file or data.
        chars: length of the extracted text in characters.
        chunks: how many there are.
        images: pictures that are stored of it.
        tokens: of all chunks, as the embedder counts; 0 where it does not.
        metadata: what was found in it, such as its author, and what was given.
        warnings: what could not be read of it.
        revision: changes whenever its stored text or its chunks may have changed.
        ingested_at: when this content was stored.
    """

    id: str
    collection: str
    source: str
    root: str | None
    title: str | None
    media_type: str
    content_hash: str
    size_bytes: int
    chars: int
    chunks: int
    images: int
    tokens: int
    metadata: Mapping[str, Any] = field(hash=False)
    warnings: tuple[str, ...]
    revision: str
    ingested_at: datetime


@dataclass(frozen=True, slots=True)
class IngestFailure:
    """A source that was not stored; what was stored of it before stays.

    Attributes:
        source: which.
        reason: one stable word, such as ``"unknown"``, ``"encrypted"``, ``"too_large"``, ``"unreadable"``, ``"changing"``.
        message: the same in a sentence, without content of the source.
    """

    source: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class IngestWarning:
    """Something of a source that could not be read; the rest of it is stored."""

    source: str
    message: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        added: documents that are new.
        updated: documents whose content, metadata or way of chunking changed.
        unchanged: documents that were left alone.
        removed: documents of files that are gone from the folder.
        failed: what could not be stored, and why.
        warnings: what could not be read of documents that were.
        chunks: of the documents that were added or updated.
        bytes: that these had.
        seconds: how long it took.
        document_ids: of what was added, updated or unchanged, in the order in which it was done.
    """

    added: int
    updated: int
    unchanged: int
    removed: int
    failed: tuple[IngestFailure, ...]
    warnings: tuple[IngestWarning, ...]
    chunks: int
    bytes: int
    seconds: float
    document_ids: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document that was found. ``db.documents.text(document_id)[start:end] == text``.

    Attributes:
        id: of the chunk that was found.
        document_id: of its document.
        source: the path of the file, or what the document was called.
        title: of the document, if it has one.
        text: the chunk's; with its neighbours, or its parent, where these were asked for or belong to it.
        score: higher is better; it compares the passages of one search.
        signals: what each way of searching said.
        page: 1-based: of a PDF, a slide, a sheet; None: it has no pages.
        heading_path: the headings above it, outermost first.
        start: where it begins in the document's text.
        end: where it ends there.
        tokens: how many its chunk has, as the embedder counts; 0 where it does not.
        metadata: the document's.
        matched: start and end of the chunk that was found.
        revision: of the document, when this was read.
    """

    id: str
    document_id: str
    source: str
    title: str | None
    text: str
    score: float
    signals: Mapping[str, float] = field(hash=False)
    page: int | None
    heading_path: tuple[str, ...]
    start: int
    end: int
    tokens: int
    metadata: Mapping[str, Any] = field(hash=False)
    matched: tuple[int, int]
    revision: str

    @property
    def label(self) -> str:
        """How a reader would name the place: title, headings, page."""
        return place_label(self.title or self.source, self.heading_path, self.page)


def place_label(name: str, heading_path: tuple[str, ...], page: int | None) -> str:
    """Return how a reader would name a place, in one line."""
    parts = [name, *(one for one in heading_path if one != name)]
    shown = " > ".join(" ".join(one.split()) for one in parts)
    return shown if page is None else f"{shown}, p. {page}"


@dataclass(frozen=True, slots=True)
class FoundImage:
    """A picture that was found; ``db.documents.image(document_id, number)`` returns it.

    Attributes:
        document_id: of the document that it stands in, or is.
        number: 0, 1, ... in that document.
        source: of the document.
        title: of the document, if it has one.
        score: the cosine of its vector and the query's.
        page: 1-based, of the document; None: it has no pages.
        start, end: the stretch of the document's text that says what is to be seen; empty where nothing does.
        text: that stretch.
        metadata: the document's.
    """

    document_id: str
    number: int
    source: str
    title: str | None
    score: float
    page: int | None
    start: int
    end: int
    text: str
    metadata: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Citation:
    """A numbered source of a context. ``db.documents.text(document_id)[start:end] == text``.

    Attributes:
        number: as the context's text names it, from 1.
        passages: ids of the chunks that it holds, in the order of the document.
        score: of the best of them.
    """

    number: int
    document_id: str
    source: str
    title: str | None
    page: int | None
    heading_path: tuple[str, ...]
    start: int
    end: int
    text: str
    passages: tuple[str, ...]
    score: float
    metadata: Mapping[str, Any] = field(hash=False)

    @property
    def label(self) -> str:
        """How a reader would name the place: title, headings, page."""
        return place_label(self.title or self.source, self.heading_path, self.page)


@dataclass(frozen=True, slots=True)
class Omitted:
    """A passage that was found and is not in the context, or not as a whole.

    Attributes:
        reason: ``"budget"``: no room; ``"duplicate"``: nearly the same as a better one; ``"per_source"``: enough of its document;
            ``"shortened"``: cut to the room there is.
        tokens: of the passage, as far as they were counted.
    """

    passage_id: str
    document_id: str
    source: str
    reason: OmittedReason
    tokens: int


@dataclass(frozen=True, slots=True)
class Context:
    """Passages as text for a prompt.

    Attributes:
        text: what a model is to read: exactly what ``tokens`` counts, but for ``"messages"``.
        messages: with the format ``"messages"``: role and content of each; their contents are what ``tokens`` counts.
        citations: what the numbers in the text stand for.
        omitted: what was found and left out, best first.
        tokens: as the tokenizer counts; never more than the budget.
    """

    text: str
    citations: tuple[Citation, ...]
    omitted: tuple[Omitted, ...]
    tokens: int
    messages: tuple[Mapping[str, str], ...] = field(default=(), hash=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Answer:
    """What a language model answered from a context.

    Attributes:
        text: as the model wrote it.
        citations: those of the context that it named, in the order in which it named them.
        unknown: numbers that it named and the context does not have.
        context: what it was given.
    """

    text: str
    citations: tuple[Citation, ...]
    unknown: tuple[int, ...]
    context: Context

    def __str__(self) -> str:
        return self.text
