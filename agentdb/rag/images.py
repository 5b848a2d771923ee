"""The pictures of documents: described in words, put into a vector space with texts, kept, found by text or by picture.

A picture takes part in three ways. What a captioner and a reader of writing say of it becomes a block of the document's text, at
the place where it stands, so that words find it and a citation of it can be opened like any other (`describe`). Its vector lies in
the collection of the document's chunks under a name of its own, ``image`` (`prepare`). And the picture itself is a row of
``_document_images``, or stays in the file that it is (`ImageTable`).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agentdb.embedding import Embedder, ImageEmbedder, check_vectors, is_embedder
from agentdb.errors import InvalidInputError, MissingDependencyError, NotFoundError
from agentdb.filters import And, Compare, IsNull, Not
from agentdb.rag.parsing.model import Block, EmbeddedImage, ParsedDocument, clean
from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table
from agentdb.vectors.definition import VectorSpec

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = [
    "IMAGES",
    "IMAGE_VECTOR",
    "Captioner",
    "ImageOptions",
    "ImageTable",
    "ImageTextReader",
    "PreparedImage",
    "StoredImage",
    "describe",
    "image_id",
    "image_vector",
    "prepare",
]

IMAGE_VECTOR = "image"
"""What the vector of pictures is called in a collection."""

IMAGES = TableSchema(
    "_document_images",
    [
        pa.field("collection", pa.string(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("revision", pa.string(), nullable=False),
        pa.field("media_type", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        # Which one made the vector in the collection; null where none did.
        pa.field("embedder", pa.string()),
        pa.field("width", pa.int64(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("page", pa.int64()),
        # The stretch of the document's text that says what is to be seen; empty where nothing does.
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        # One of the two: the encoded picture, or the path of the file that it is.
        pa.field("data", pa.large_binary()),
        pa.field("reference", pa.string()),
    ],
    key=("collection", "document_id", "number"),
)


# --- ports ------------------------------------------------------------------------------------------------------------


@runtime_checkable
class Captioner(Protocol):
    """Says in words what is to be seen. May be called from any thread."""

    def caption(self, images: Sequence[bytes]) -> Sequence[str]:
        """Return a sentence or two for each encoded image; an empty one where there is nothing to say."""


@runtime_checkable
class ImageTextReader(Protocol):
    """Reads what is written in a picture (OCR). May be called from any thread."""

    def read_text(self, images: Sequence[bytes]) -> Sequence[str]:
        """Return the text of each encoded image; an empty one where there is none."""


class _ImageTextEmbedder(Embedder, ImageEmbedder, Protocol):
    """Puts texts and pictures into one space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What is done with the pictures of documents.

    Attributes:
        embedder: of texts and images in one space, such as ``agentdb_embedders.ImageTextEmbedder``; None: they get no vectors,
            and are found by words alone.
        captioner: says what is to be seen where the document does not: a `Captioner`, or a function of one image's bytes.
        text_reader: reads what is written in them: an `ImageTextReader`, or a function of one image's bytes.
        keep: ``"blob"``: pictures are stored. ``"reference"``: one that is a file of its own stays there and is read from there,
            as long as it does not change; those inside of documents are stored.
        min_side: pictures with fewer pixels on a side are left out: bullets, rules, counters.
        max_bytes: larger pictures are left out.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    embedder: _ImageTextEmbedder | None = None
    captioner: Captioner | Callable[[bytes], str] | None = None
    text_reader: ImageTextReader | Callable[[bytes], str] | None = None
    keep: Literal["blob", "reference"] = "blob"
    min_side: int = 32
    max_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        embedder: Any = self.embedder
        if embedder is not None and not (is_embedder(embedder) and callable(getattr(embedder, "embed_images", None))):
            raise InvalidInputError(
                "ImageOptions.embedder must have name, dimension, max_tokens, embed() and embed_images(), "
                f"not be {type(embedder).__name__}"
            )
        ports: dict[str, tuple[Any, str]] = {
            "captioner": (self.captioner, "caption"),
            "text_reader": (self.text_reader, "read_text"),
        }
        for name, (value, method) in ports.items():
            if value is not None and not callable(getattr(value, method, value)):
                raise InvalidInputError(
                    f"ImageOptions.{name} must have {method}(images), be a function of an image's bytes or None, "
                    f"not {type(value).__name__}"
                )
        if self.keep not in get_args(Literal["blob", "reference"]):
            raise InvalidInputError(f"ImageOptions.keep must be 'blob' or 'reference', not {self.keep!r}")
        for name in ("min_side", "max_bytes"):
            number: object = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise InvalidInputError(f"ImageOptions.{name} must be an int of 1 or more, not {type(number).__name__}")

    @property
    def setup(self) -> str:
        """What of these options decides what is stored: a document that was ingested by others is ingested anew."""
        parts = [
            "" if self.embedder is None else f"{self.embedder.name}/{self.embedder.dimension}",
            *(_port_name(one) for one in (self.captioner, self.text_reader)),
            self.keep,
            str(self.min_side),
            str(self.max_bytes),
        ]
        return "\n".join(parts)


def _port_name(port: object) -> str:
    """Return what tells ports apart: the name that one gives itself, or that of its type or function."""
    if port is None:
        return ""
    named = getattr(port, "name", None)
    return named if isinstance(named, str) else getattr(port, "__qualname__", type(port).__qualname__)


# --- in words ---------------------------------------------------------------------------------------------------------


def describe(document: ParsedDocument, options: ImageOptions, caption: str | None = None) -> ParsedDocument:
    """Return a document whose text says of its pictures what a captioner and a reader of writing found.

    Each description is a block of the kind ``image`` behind the block in which its picture stands. All else stays as it is,
    further along. The same picture is described once, where it stands first.

    Args:
        document: as it was parsed.
        options: who describes.
        caption: what the caller says of a document that is a picture.

    Raises:
        InvalidInputError: a captioner or reader does not answer with one text for each picture.
    """
    said: dict[str, list[str]] = {}
    if caption and document.media_type.startswith("image/"):
        said = {_digest(one.data): [caption] for one in document.images if not one.caption}
    distinct = _distinct(document.images) if options.captioner or options.text_reader else {}
    bare = {digest: one for digest, one in distinct.items() if not one.caption and digest not in said}
    for port, method, asked in ((options.captioner, "caption", bare), (options.text_reader, "read_text", distinct)):
        for digest, answer in zip(asked, _answers(port, method, list(asked.values())), strict=True):
            said.setdefault(digest, []).append(answer)
    described = ["\n\n".join(filter(None, said.pop(_digest(one.data), ()))) if said else "" for one in document.images]
    return _with_blocks(document, described) if any(described) else document


def _distinct(images: Sequence[EmbeddedImage]) -> dict[str, EmbeddedImage]:
    """Return the first image of each content, by its digest."""
    found: dict[str, EmbeddedImage] = {}
    for image in images:
        found.setdefault(_digest(image.data), image)
    return found


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _answers(port: Any, method: str, images: Sequence[EmbeddedImage]) -> list[str]:
    if port is None or not images:
        return [""] * len(images)
    asked = getattr(port, method, None)
    data = [one.data for one in images]
    answers = list(asked(data)) if asked is not None else [port(one) for one in data]
    if len(answers) != len(images) or not all(isinstance(one, str) for one in answers):
        raise InvalidInputError(f"{method}() must return one str for each of {len(images)} images")
    # As parsers clean what they read: stored text is UTF-8, and a paragraph of a description is one of the text.
    return [clean(one).strip() for one in answers]


def _with_blocks(document: ParsedDocument, described: Sequence[str]) -> ParsedDocument:
    """Return the document with what is said of each image as a block: behind its caption, or where it stands.

    An image that had no caption has one then: that block.
    """
    starts = [block.start for block in document.blocks]
    ends = [block.end for block in document.blocks]
    # Behind which block an image stands; -1: in front of everything. A caption's block begins where its image is.
    places = [bisect_right(starts if one.caption else ends, one.at) - 1 for one in document.images]
    builder: list[str] = []
    blocks: list[Block] = []
    images: dict[int, EmbeddedImage] = {}
    length = copied = moved = 0
    for place in range(-1, len(document.blocks)):
        if place >= 0:
            block = document.blocks[place]
            moved = length - copied
            builder.append(document.text[copied : block.end])
            length += block.end - copied
            copied = block.end
            blocks.append(replace(block, start=block.start + moved, end=block.end + moved))
        for number in (one for one, its in enumerate(places) if its == place):
            image, text = document.images[number], described[number]
            at = image.at + moved if image.caption else length
            if text:
                gap = "\n\n" if length else ""
                start = length + len(gap)
                length = start + len(text)
                builder += [gap, text]
                blocks.append(Block("image", start, length, page=image.page))
                at = at if image.caption else start
            images[number] = replace(image, at=at, caption=image.caption or text or None)
        if place < 0 and length and document.blocks:
            builder.append("\n\n")
            length += 2
    builder.append(document.text[copied:])
    return replace(
        document,
        text="".join(builder),
        blocks=tuple(blocks),
        images=tuple(images[number] for number in range(len(places))),
    )


# --- as vectors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class PreparedImage:
    """A picture as it is stored.

    Attributes:
        number: 0, 1, ... in the document.
        start, end: the stretch of the document's text that says what is to be seen; empty where nothing does.
        data: the encoded picture; None: it stays in the file ``reference``.
        vector: `[D]` float32; None without an embedder.
        embedder: what made it.
    """

    number: int
    media_type: str
    digest: str
    width: int
    height: int
    page: int | None
    start: int
    end: int
    data: bytes | None
    reference: str | None
    vector: npt.NDArray[np.float32] | None = None
    embedder: str | None = None


def image_vector(options: ImageOptions | None) -> dict[str, VectorSpec]:
    """Return what a new collection needs for pictures besides the vector of its texts."""
    if options is None or options.embedder is None:
        return {}
    return {IMAGE_VECTOR: VectorSpec(options.embedder.dimension, embedded=False)}


def prepare(
    document: ParsedDocument, options: ImageOptions, path: str | os.PathLike[str] | None = None
) -> tuple[list[PreparedImage], list[str]]:
    """Return the pictures of a document as they are stored, each once, and what is wrong with others.

    Args:
        document: as `describe` returned it.
        options: what is done with pictures.
        path: of the file that the document is.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    warnings: list[str] = []
    made: list[PreparedImage] = []
    is_file = options.keep == "reference" and path is not None and document.media_type.startswith("image/")
    for digest, image in _distinct(document.images).items():
        problem, size = _measured(image, options)
        if problem:
            warnings.append(problem)
        if size is None:
            continue
        start, end = _described_span(document, image)
        made.append(
            PreparedImage(
                number=len(made),
                media_type=image.media_type,
                digest=digest,
                width=size[0],
                height=size[1],
                page=image.page,
                start=start,
                end=end,
                data=image.data,
                reference=os.fspath(path) if is_file and path is not None else None,
            )
        )
    if options.embedder is not None:
        made = _with_vectors(made, options.embedder, warnings)
    return [replace(one, data=None) if one.reference is not None else one for one in made], warnings


def _measured(image: EmbeddedImage, options: ImageOptions) -> tuple[str | None, tuple[int, int] | None]:
    """Return what is wrong with a picture, and its width and height; neither for one that is meant to be left out."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("Pillow is not installed: install 'agentdb-lance[documents]'") from error
    where = "an image" if image.page is None else f"an image of page {image.page}"
    if len(image.data) > options.max_bytes:
        return f"{where} has {len(image.data):,} bytes, more than ImageOptions.max_bytes, and was left out", None
    try:
        # Only the header is read here, in the formats that embedders read.
        with Image.open(BytesIO(image.data), formats=("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")) as opened:
            size = opened.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"{where} has too many pixels and was left out", None
    except (OSError, ValueError, SyntaxError, EOFError):
        return f"{where} is damaged, or of a format that is not read, and was left out", None
    return None, size if min(size) >= options.min_side else None


def _described_span(document: ParsedDocument, image: EmbeddedImage) -> tuple[int, int]:
    """Return the stretch of the text that says what is to be seen: the caption, and what was read in the image."""
    if not image.caption:
        return image.at, image.at
    first = bisect_right(document.blocks, image.at, key=lambda block: block.start) - 1
    others = {one.at for one in document.images}
    last = first + 1
    while last < len(document.blocks) and document.blocks[last].kind == "image":
        if document.blocks[last].start in others:
            break  # the next image's own words
        last += 1
    if first < 0 or document.blocks[first].kind != "image":
        return image.at, image.at  # its words stand nowhere in the text
    return document.blocks[first].start, document.blocks[last - 1].end


def _with_vectors(
    images: list[PreparedImage], embedder: _ImageTextEmbedder, warnings: list[str]
) -> list[PreparedImage]:
    """Return the pictures with their vectors; those that the embedder refuses are left out, with a warning."""
    try:
        return _embedded(embedder, images)
    except InvalidInputError:
        kept = []
        for image in images:
            # One is damaged where its header does not tell.
            try:
                kept.append(_embedded(embedder, [image])[0])
            except InvalidInputError:
                warnings.append("an image cannot be decoded and was left out")
        return [replace(one, number=number) for number, one in enumerate(kept)]


def _embedded(embedder: _ImageTextEmbedder, images: Sequence[PreparedImage]) -> list[PreparedImage]:
    if not images:
        return []
    vectors = check_vectors(
        embedder.embed_images([one.data for one in images]),
        rows=len(images),
        dimension=embedder.dimension,
        source=f"vectors of embedder {embedder.name!r}",
    )
    return [replace(one, vector=vector, embedder=embedder.name) for one, vector in zip(images, vectors, strict=True)]


# --- as rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture of a document, without its pixels.

    Attributes:
        id: of its row in the collection.
        number: 0, 1, ... in the document.
        digest: SHA-256 of the encoded picture.
        page: as of passages.
        start, end: the stretch of the document's text that says what is to be seen; empty where nothing does.
        reference: the file that it is; None: it is stored in the database.
    """

    id: str
    document_id: str
    number: int
    media_type: str
    digest: str
    width: int
    height: int
    page: int | None
    start: int
    end: int
    reference: str | None


def image_id(document_id: str, number: int) -> str:
    """Return the id of a picture in the collection of its document's chunks."""
    return f"{document_id}:i{number:05}"


@dataclass(frozen=True, slots=True)
class ImageTable:
    """The pictures of documents, of all collections."""

    table: Table

    @classmethod
    def of(cls, engine: Engine) -> ImageTable:
        """Return the table; it is created where it does not exist."""
        return cls(engine.table(IMAGES))

    def put(self, collection: str, document_id: str, revision: str, images: Iterable[PreparedImage]) -> None:
        """Store the pictures of a document that has none, in the caller's transaction."""
        self.table.put_many(
            {
                "collection": collection,
                "document_id": document_id,
                "revision": revision,
                **{name: getattr(image, name) for name in _OF_IMAGE},
            }
            for image in images
        )

    def remove(self, collection: str, document_ids: Sequence[str]) -> None:
        """Delete the pictures of documents, in the caller's transaction."""
        for document_id in document_ids:
            self.table.delete_many(filter=_own(collection, document_id))

    def of_document(self, collection: str, document_id: str) -> list[StoredImage]:
        """Return the pictures of a document in their order."""
        rows = self.table.scan(_own(collection, document_id), columns=list(_STORED))
        return [_stored(row) for row in sorted(rows, key=lambda row: row["number"])]

    def embedder_of(self, collection: str) -> str | None:
        """Return the name of the embedder that made the vectors of a collection's pictures; None: there are none."""
        condition = And(Compare(("collection",), "eq", collection), Not(IsNull(("embedder",))))
        row = next(iter(self.table.scan(condition, limit=1, columns=["embedder"])), None)
        return None if row is None else str(row["embedder"])

    def data(self, collection: str, document_id: str, number: int) -> bytes:
        """Return an encoded picture.

        Raises:
            NotFoundError: there is no such picture, or it stayed in a file that is gone or has changed.
        """
        row = self.table.get((collection, document_id, number))
        if row is None:
            raise NotFoundError(f"document {document_id} has no image {number}")
        if row["data"] is not None:
            stored: bytes = row["data"]
            return stored
        try:
            data = Path(row["reference"]).read_bytes()
        except OSError as error:
            raise NotFoundError(
                f"image {number} of document {document_id} stayed in a file that cannot be read"
            ) from error
        if _digest(data) != row["digest"]:
            raise NotFoundError(
                f"image {number} of document {document_id} stayed in a file that has changed: ingest it again"
            )
        return data


_STORED = ("document_id", "number", "media_type", "digest", "width", "height", "page", "start", "end", "reference")
_OF_IMAGE = (*_STORED[1:], "data", "embedder")


def _own(collection: str, document_id: str) -> And:
    return And(Compare(("collection",), "eq", collection), Compare(("document_id",), "eq", document_id))


def _stored(row: Mapping[str, Any]) -> StoredImage:
    return StoredImage(id=image_id(row["document_id"], row["number"]), **{name: row[name] for name in _STORED})
