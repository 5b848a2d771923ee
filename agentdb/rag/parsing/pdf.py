"""PDF through PDFium: lines of text with their place and size, from which paragraphs and headings follow.

PDFs are read by a process of their own (`agentdb.rag.parsing.isolated`). Where that is not possible they are read here, and
then PDFium may be called by one thread at a time: one lock is held from opening a document to closing it. Code outside of
AgentDB that uses PDFium in such a process must hold `PDFIUM_LOCK` too.
"""

from __future__ import annotations

import ctypes
import io
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from agentdb.errors import MissingDependencyError
from agentdb.rag.parsing.model import (
    BlockKind,
    DocumentError,
    ParsedDocument,
    ParseLimits,
    TextBuilder,
    clean,
    too_much_text,
)

__all__ = ["PDFIUM_LOCK", "parse_pdf"]

PDFIUM_LOCK = threading.RLock()

_BULLET = re.compile(r"[•‣▪●◦○■□–-]\s|\(?\d{1,3}[.)]\s")  # noqa: RUF001
_SPACES = re.compile(r"[ \t\xa0]+")
_DIGITS = re.compile(r"\d+")
_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?")
_SMALLEST_PIXELS = 32
_MOST_PIXELS = 64_000_000
_MOST_OUTLINE = 10_000
_PIECE = 4_096


@dataclass(slots=True)
class _Line:
    text: str
    size: float
    left: float
    baseline: float
    is_bold: bool


@dataclass(slots=True)
class _Paragraph:
    page: int
    size: float
    is_bold: bool
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def parse_pdf(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return the text of a PDF with its pages; headings come from the outline, or else from the sizes of letters.

    Lines stay lines; a word that is divided at the end of one is joined. What stands at the top or the bottom of most
    pages is left out. A page without text, such as a scan, is a warning, and its picture is among the images.

    Raises:
        DocumentError: it is broken, needs a password, or is too large.
        MissingDependencyError: ``pypdfium2`` is not installed.
    """
    try:
        import pypdfium2 as pdfium  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("PDF needs pypdfium2: install 'agentdb-lance[documents]'") from error
    with PDFIUM_LOCK:
        # Time begins when it is this document's turn.
        builder = TextBuilder(limits)
        try:
            document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError as error:
            if "password" in str(error).lower():
                raise DocumentError("the PDF needs a password", reason="encrypted") from None
            raise DocumentError("the PDF is broken: it cannot be opened", reason="broken") from None
        with closing(document):
            return _Reader(document, limits, builder).read()


class _Reader:
    """Reads one open document."""

    def __init__(self, document: Any, limits: ParseLimits, builder: TextBuilder) -> None:
        from pypdfium2 import PdfiumError, raw

        self._raw = raw
        self._error: type[Exception] = PdfiumError
        self._document = document
        self._limits = limits
        self._builder = builder
        self._chars = 0
        self._images: dict[int, list[tuple[bytes, str]]] = {}
        self._seen: set[bytes] = set()

    def read(self) -> ParsedDocument:
        count = len(self._document)
        if count > self._limits.max_pages:
            raise DocumentError(
                f"the PDF has {count} pages, more than {self._limits.max_pages} (ParseLimits.max_pages)",
                reason="too_large",
            )
        pages: list[list[_Line]] = []
        for number in range(count):
            self._builder.watch.check()
            try:
                pages.append(self._page(number))
            except DocumentError:
                raise
            except (self._error, ValueError, OverflowError):
                pages.append([])
                self._builder.warn(f"page {number + 1} could not be read")
        empty = [str(number) for number, lines in enumerate(pages, 1) if not lines]
        if empty:
            told = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
            self._builder.warn(f"{len(empty)} of {count} pages hold no text, they may be scans: {told}")
        _drop_running(pages)
        paragraphs = [one for number, lines in enumerate(pages, 1) for one in _paragraphs(number, lines)]
        self._write(paragraphs, count)
        metadata = self._metadata()
        metadata["pages"] = count
        return self._builder.build("application/pdf", metadata.pop("title", None), metadata)

    # --- pages

    def _page(self, number: int) -> list[_Line]:
        with closing(self._document[number]) as page:
            with closing(page.get_textpage()) as text:
                lines = list(self._lines(text))
            self._take_images(page, number + 1)
        return lines

    def _lines(self, page: Any) -> Iterator[_Line]:
        count = page.count_chars()
        self._chars += count
        if self._chars > self._limits.max_text_chars:
            raise too_much_text(self._limits)
        get = self._raw.FPDFText_GetUnicode
        pointer = page.raw
        parts = []
        for first in range(0, count, _PIECE):
            self._builder.watch.check()
            parts += [get(pointer, place) for place in range(first, min(count, first + _PIECE))]
        text = "".join(map(chr, parts))
        start = 0
        for written in text.split("\n"):
            line = self._line(page, start, written)
            if line is not None:
                yield line
            start += len(written) + 1

    def _line(self, page: Any, start: int, written: str) -> _Line | None:
        bare = written.strip()
        if not bare:
            return None
        place = start + len(written) - len(written.lstrip())
        x, y = ctypes.c_double(), ctypes.c_double()
        self._raw.FPDFText_GetCharOrigin(page.raw, place, x, y)
        size = round(self._height(page, place), 1)
        weight = self._raw.FPDFText_GetFontWeight(page.raw, place)
        # PDFium writes this for the hyphen that divides a word at the end of a line, and goes on with the next one.
        text = _SPACES.sub(" ", bare).replace("\x02", "")
        return _Line(clean(text), size, x.value, y.value, weight >= 600)

    def _height(self, page: Any, place: int) -> float:
        """Return the size of a character as it is shown: that of the font may be 1 and the page scaled."""
        size = float(self._raw.FPDFText_GetFontSize(page.raw, place))
        matrix = self._raw.FS_MATRIX()
        if self._raw.FPDFText_GetMatrix(page.raw, place, matrix):
            size *= float((matrix.b**2 + matrix.d**2) ** 0.5 or 1)
        return size

    def _take_images(self, page: Any, number: int) -> None:
        """Keep the pictures of a page, each once."""
        if self._limits.max_images <= len(self._seen):
            return
        for found in page.get_objects(filter=[self._raw.FPDF_PAGEOBJ_IMAGE], max_depth=3):
            self._builder.watch.check()
            if len(self._seen) >= self._limits.max_images:
                self._builder.warn(f"images beyond the first {self._limits.max_images} were left out")
                return
            try:
                width, height = found.get_px_size()
                if min(width, height) < _SMALLEST_PIXELS or width * height > _MOST_PIXELS:
                    continue
                image = self._encoded(found)
            except (self._error, ValueError, OSError, RuntimeError, MemoryError):
                self._builder.warn(f"an image on page {number} could not be read")
                continue
            digest = blake2b(image[0], digest_size=16).digest()
            if digest not in self._seen:
                self._seen.add(digest)
                self._images.setdefault(number, []).append(image)

    def _encoded(self, found: Any) -> tuple[bytes, str]:
        if found.get_filters() == ["DCTDecode"]:
            return bytes(found.get_data(decode_simple=False)), "image/jpeg"
        # The bitmap frees itself when this returns, still under the lock.
        picture = found.get_bitmap().to_pil()
        if picture.mode not in ("1", "L", "RGB", "RGBA"):
            picture = picture.convert("RGB")
        target = io.BytesIO()
        picture.save(target, "PNG", compress_level=1)
        return target.getvalue(), "image/png"

    # --- what the lines mean

    def _write(self, paragraphs: list[_Paragraph], count: int) -> None:
        levels = self._from_outline(paragraphs)
        if len(levels) < 2:
            levels = _from_sizes(paragraphs) | levels
        at = 0
        for page in range(1, count + 1):
            while at < len(paragraphs) and paragraphs[at].page == page:
                one = paragraphs[at]
                if at in levels:
                    self._builder.add("heading", " ".join(one.lines), level=levels[at], page=page)
                else:
                    kind: BlockKind = "list" if all(map(_BULLET.match, one.lines[:2])) else "paragraph"
                    self._builder.add(kind, one.text, page=page)
                at += 1
            for data, media_type in self._images.get(page, ()):
                self._builder.add_image(data, media_type, None, page)

    def _from_outline(self, paragraphs: list[_Paragraph]) -> dict[int, int]:
        """Return which paragraphs the outline names, and their levels."""
        wanted: dict[tuple[int, str], int] = {}
        try:
            for number, entry in enumerate(self._document.get_toc(max_depth=6)):
                if number >= _MOST_OUTLINE:
                    break
                target = entry.get_dest()
                page = target.get_index() if target is not None else None
                if page is not None:
                    wanted.setdefault((page + 1, _bare(entry.get_title())), min(6, entry.level + 1))
        except (self._error, ValueError, RecursionError):
            self._builder.warn("the outline could not be read")
        found: dict[int, int] = {}
        for place, one in enumerate(paragraphs):
            level = wanted.get((one.page, _bare(one.text))) if len(one.lines) <= 4 else None
            if level is not None:
                found[place] = level
        return found

    def _metadata(self) -> dict[str, Any]:
        try:
            known = self._document.get_metadata_dict(skip_empty=True)
        except (self._error, ValueError):
            return {}
        names = {"Title": "title", "Author": "author", "Subject": "description", "Keywords": "keywords"}
        found: dict[str, Any] = {ours: known[name][:2_000] for name, ours in names.items() if known.get(name)}
        created = _DATE.match(known.get("CreationDate") or "")
        if created:
            found["created"] = "-".join(part for part in created.groups() if part)
        return found


def _bare(title: str) -> str:
    """Return a title without its number, for comparing."""
    return "".join(char for char in title.casefold() if char.isalpha()) or "".join(title.split())


def _drop_running(pages: list[list[_Line]]) -> None:
    """Take away first and last lines that most pages share but for their digits."""
    filled = [lines for lines in pages if len(lines) > 2]
    if len(filled) < 4:
        return
    for place in (0, -1):
        for _ in range(2):
            counts = Counter(_DIGITS.sub("#", lines[place].text) for lines in filled if lines)
            running = {text for text, count in counts.items() if count >= max(3, 0.6 * len(filled))}
            if not running:
                break
            for lines in filled:
                if lines and _DIGITS.sub("#", lines[place].text) in running:
                    lines.pop(place)


def _paragraphs(page: int, lines: list[_Line]) -> Iterator[_Paragraph]:
    """Yield runs of lines: a gap, a jump to another column, or other letters begin a new one."""
    run: _Paragraph | None = None
    last: _Line | None = None
    for line in lines:
        if run is not None and last is not None:
            step = last.baseline - line.baseline
            size = max(line.size, 1.0)
            is_same = abs(line.size - run.size) <= 0.08 * size and line.is_bold == run.is_bold
            if is_same and -0.3 * size <= step <= 1.7 * size:
                run.lines.append(line.text)
                last = line
                continue
            yield run
        run, last = _Paragraph(page, line.size, line.is_bold, [line.text]), line
    if run is not None:
        yield run


def _from_sizes(paragraphs: list[_Paragraph]) -> dict[int, int]:
    """Return which paragraphs are headings because their letters are larger than most, the largest of level 1."""
    chars: Counter[float] = Counter()
    for one in paragraphs:
        chars[one.size] += len(one.text)
    if not chars:
        return {}
    body = chars.most_common(1)[0][0]
    found = {
        place: one.size
        for place, one in enumerate(paragraphs)
        if one.size >= 1.12 * body and len(one.lines) <= 3 and len(one.text) <= 200 and any(map(str.isalpha, one.text))
    }
    sizes = sorted({round(size) for size in found.values()}, reverse=True)
    return {place: min(6, sizes.index(round(size)) + 1) for place, size in found.items()}
