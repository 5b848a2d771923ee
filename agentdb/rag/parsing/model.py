"""What parsing returns, what it refuses, and how far it goes."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, runtime_checkable

from agentdb.errors import InvalidInputError

__all__ = [
    "Block",
    "BlockKind",
    "DocumentError",
    "DocumentProblem",
    "EmbeddedImage",
    "ParseLimits",
    "ParsedDocument",
    "Parser",
    "TextBuilder",
    "Watch",
]

BlockKind = Literal["heading", "paragraph", "list", "table", "code", "image"]

DocumentProblem = Literal["unknown_type", "broken", "encrypted", "too_large", "too_slow", "unsafe"]
"""Why a file cannot be read: no parser knows it; it is damaged or not what it claims to be; it needs a password;
it, or what it expands to, passes a limit; it took longer than allowed; it is made to do harm."""


class DocumentError(InvalidInputError):
    """A file cannot be read as a document; ``reason`` says why in one stable word."""

    def __init__(self, message: str, *, reason: DocumentProblem) -> None:
        super().__init__(message)
        self.reason: DocumentProblem = reason


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of the extracted text with one meaning.

    Attributes:
        kind: what it is. A table lies in the text as a Markdown table or as delimited lines, an image as its caption.
        start, end: characters of `ParsedDocument.text`.
        level: of a heading, 1 to 6; else 0.
        page: from 1: the page of a PDF, the slide, the sheet; None where there are none.
        language: of code, in lower case, as a fence names it ("python"); None where it is not known.
    """

    kind: BlockKind
    start: int
    end: int
    level: int = 0
    page: int | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """A picture inside a document, or the picture that the document is.

    Attributes:
        data: the encoded image as it lies in the file.
        media_type: of the data, such as ``image/png``.
        caption: what the document says about it (alternative text); None if nothing.
        page: as in `Block`.
        at: where in `ParsedDocument.text` it stands.
    """

    data: bytes
    media_type: str
    caption: str | None
    page: int | None
    at: int


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """The text of a document with its structure.

    Attributes:
        text: what chunks and citations are spans of. Of plain text, Markdown, CSV, JSON and code it is exactly the
            decoded file; of other formats what a reader sees, in reading order.
        media_type: such as ``text/markdown``.
        title: what the document calls itself; None if it does not.
        blocks: in order, not overlapping; between them is white space only.
        images: pictures in the document.
        metadata: what the file tells of itself, as plain JSON values.
        warnings: what could not be read, or was read differently than the file asks for.

    Raises:
        InvalidInputError: blocks are out of order, overlap, lie outside of the text, or leave text out.
    """

    text: str
    media_type: str
    title: str | None
    blocks: tuple[Block, ...]
    images: tuple[EmbeddedImage, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    # Made when they are first asked for: where headings begin, and the path from each of them on.
    _headings: tuple[list[int], list[tuple[str, ...]]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        at = 0
        for number, block in enumerate(self.blocks):
            if not at <= block.start < block.end <= len(self.text):
                raise InvalidInputError(
                    f"blocks[{number}] spans {block.start} to {block.end}, but must begin at {at} or later, not be "
                    f"empty and end by {len(self.text)}"
                )
            self._require_white(at, block.start, f"before blocks[{number}]")
            at = block.end
        self._require_white(at, len(self.text), "after the last block")

    def _require_white(self, start: int, end: int, where: str) -> None:
        if start < end and not self.text[start:end].isspace():
            raise InvalidInputError(f"there is text {where}, from {start} to {end}, that is in no block")

    def heading_path(self, position: int) -> tuple[str, ...]:
        """Return the headings above a position, outermost first; a heading is above its own text."""
        if self._headings is None:
            object.__setattr__(self, "_headings", self._paths())
        assert self._headings is not None
        starts, paths = self._headings
        found = bisect_right(starts, position)
        return paths[found - 1] if found else ()

    def page_of(self, position: int) -> int | None:
        """Return the page of the block at a position, or of the last block before it."""
        found = bisect_right(self.blocks, position, key=lambda block: block.start)
        return self.blocks[found - 1].page if found else None

    def _paths(self) -> tuple[list[int], list[tuple[str, ...]]]:
        starts: list[int] = []
        paths: list[tuple[str, ...]] = []
        open_: list[tuple[int, str]] = []
        for block in self.blocks:
            if block.kind == "heading":
                while open_ and open_[-1][0] >= block.level:
                    open_.pop()
                open_.append((block.level, heading_text(self.text[block.start : block.end])))
                starts.append(block.start)
                paths.append(tuple(name for _, name in open_ if name))
        return starts, paths


def heading_text(written: str) -> str:
    """Return a heading without the marks that Markdown puts round it, on one line."""
    lines = written.strip().splitlines()
    if len(lines) > 1 and set(lines[-1].strip()) in ({"="}, {"-"}):
        lines.pop()
    text = " ".join(" ".join(lines).split())
    if text.startswith("#"):
        bare = text.lstrip("#")
        if len(text) - len(bare) <= 6 and (not bare or bare.startswith(" ")):
            text = bare.strip()
            closed = text.rstrip("#")
            if closed != text and (not closed or closed.endswith(" ")):
                text = closed.rstrip()
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class ParseLimits:
    """How far parsing goes before it gives a document up with a `DocumentError`.

    Attributes:
        max_bytes: of the file.
        max_text_chars: of the extracted text.
        max_expanded_bytes: of all members of an archive (DOCX, PPTX, XLSX, EPUB) together, uncompressed.
        max_part_bytes: of one such member that is read into memory as a whole.
        max_pages: of a PDF; slides; sheets; chapters.
        max_images: pictures that are taken out of one document, 0 for none; the rest is left out with a warning.
        max_memory_bytes: address space of the process that reads PDFs, large pages and large archives. Other files are
            read where `parse` is called, and take a small multiple of their size.
        timeout_s: looked at between pages, members and parts; that process is killed soon after.
    """

    max_bytes: int = 128 << 20
    max_text_chars: int = 32 << 20
    max_expanded_bytes: int = 512 << 20
    max_part_bytes: int = 64 << 20
    max_pages: int = 20_000
    max_images: int = 1_000
    max_memory_bytes: int = 2 << 30
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            allowed = (int, float) if isinstance(item.default, float) else (int,)
            if isinstance(value, bool) or not isinstance(value, allowed):
                raise InvalidInputError(
                    f"ParseLimits.{item.name} must be {'a number' if float in allowed else 'an int'}, "
                    f"not {type(value).__name__}"
                )
            if value < 0 or (value == 0 and item.name != "max_images"):
                raise InvalidInputError(f"ParseLimits.{item.name} must be positive")


@runtime_checkable
class Parser(Protocol):
    """Reads documents of some media types. May be called from any thread."""

    @property
    def media_types(self) -> Collection[str]:
        """What it reads, such as ``("application/rtf",)``."""

    def parse(self, data: bytes, name: str | None, limits: ParseLimits) -> ParsedDocument:
        """Return the document.

        Raises:
            DocumentError: it cannot be read.
        """


class Watch:
    """Ends a parse that takes too long, at the points where it is asked."""

    def __init__(self, limits: ParseLimits) -> None:
        self._end = time.monotonic() + limits.timeout_s
        self._allowed_s = limits.timeout_s

    def check(self) -> None:
        """Return if there is time left.

        Raises:
            DocumentError: there is none.
        """
        if time.monotonic() > self._end:
            raise DocumentError(f"the document was not read within {self._allowed_s:g} s", reason="too_slow")


class TextBuilder:
    """Collects blocks into the text of a document, a blank line between them, within the limits."""

    def __init__(self, limits: ParseLimits) -> None:
        self._limits = limits
        self._parts: list[str] = []
        self._length = 0
        self._dropped_images = 0
        self.blocks: list[Block] = []
        self.images: list[EmbeddedImage] = []
        self.warnings: list[str] = []
        self.watch = Watch(limits)

    def add(
        self, kind: BlockKind, text: str, *, level: int = 0, page: int | None = None, language: str | None = None
    ) -> None:
        """Append a block; a blank one is left out.

        Raises:
            DocumentError: the text becomes too long, or time has run out.
        """
        self.watch.check()
        text = clean(text)
        text = text.strip("\n").rstrip() if kind == "code" else text.strip()
        if not text or text.isspace():
            return
        start = self._length + (2 if self._length else 0)
        self._length = start + len(text)
        if self._length > self._limits.max_text_chars:
            raise too_much_text(self._limits)
        if self._parts:
            self._parts.append("\n\n")
        self._parts.append(text)
        self.blocks.append(Block(kind, start, self._length, level, page, language))

    def add_image(self, data: bytes, media_type: str, caption: str | None, page: int | None = None) -> None:
        """Keep a picture that stands where the text ends now; its caption becomes a block of the text."""
        caption = " ".join(clean(caption or "").split()) or None
        if caption:
            self.add("image", caption, page=page)
        if len(self.images) >= self._limits.max_images:
            self._dropped_images += 1
            return
        at = self.blocks[-1].start if caption else self._length
        self.images.append(EmbeddedImage(data, media_type, caption, page, at))

    def require_room(self, chars: int) -> None:
        """Return if so many characters can still be added.

        Raises:
            DocumentError: the text would become too long.
        """
        if self._length + chars > self._limits.max_text_chars:
            raise too_much_text(self._limits)

    def text_of(self, block: Block) -> str:
        """Return the text of a block that was added."""
        # Blocks and the blank lines between them take turns.
        return self._parts[2 * self.blocks.index(block)]

    def warn(self, message: str) -> None:
        """Note what could not be read, once, and not more than a hundred things."""
        if message not in self.warnings and len(self.warnings) < 100:
            self.warnings.append(message)

    def build(self, media_type: str, title: str | None, metadata: Mapping[str, Any] | None = None) -> ParsedDocument:
        """Return the document."""
        if self._dropped_images:
            self.warn(f"{self._dropped_images} images beyond the first {self._limits.max_images} were left out")
        if not self.blocks and not self.images:
            self.warn("no text was found")
        title = " ".join(clean(title or "").split()) or None
        known = {
            name: clean(value) if isinstance(value, str) else value
            for name, value in (metadata or {}).items()
            if value not in (None, "", [])
        }
        return ParsedDocument(
            "".join(self._parts),
            media_type,
            title,
            tuple(self.blocks),
            tuple(self.images),
            known,
            tuple(self.warnings),
        )


def too_much_text(limits: ParseLimits) -> DocumentError:
    """Return the error of a document whose text passes the limit."""
    return DocumentError(
        f"the document holds more than {limits.max_text_chars} characters of text (ParseLimits.max_text_chars)",
        reason="too_large",
    )


def clean(text: str) -> str:
    """Return the text as what can be stored: pairs of surrogates joined, lone ones and NULs replaced by U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
