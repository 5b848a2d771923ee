"""Word, PowerPoint and Excel as Office has written them since 2007: zip archives of XML."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from typing import Any

from agentdb.errors import MissingDependencyError
from agentdb.rag.parsing.archives import Archive
from agentdb.rag.parsing.detect import DOCX, PPTX, XLSX
from agentdb.rag.parsing.html import markdown_table
from agentdb.rag.parsing.model import DocumentError, ParsedDocument, ParseLimits, TextBuilder

__all__ = ["parse_docx", "parse_pptx", "parse_xlsx"]

_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_PLACED = "{http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_BREAKS = {f"{_WORD}tab": "\t", f"{_WORD}br": "\n", f"{_WORD}cr": "\n", f"{_WORD}noBreakHyphen": "-"}
# What openpyxl tells of parts that it leaves out goes to a list that all threads share.
_WARNINGS_LOCK = threading.Lock()


def _missing(library: str, error: ImportError) -> MissingDependencyError:
    missing = MissingDependencyError(f"this format needs {library}: install 'agentdb-lance[documents]'")
    missing.__cause__ = error
    return missing


def _properties(core: Any) -> dict[str, Any]:
    """Return what a document's core properties tell; broken ones are left out."""
    found: dict[str, Any] = {}
    names = {
        "title": "title",
        "author": "author",
        "creator": "author",
        "subject": "description",
        "keywords": "keywords",
    }
    for name, ours in {**names, "language": "language", "created": "created", "modified": "modified"}.items():
        try:
            value = getattr(core, name, None)
        except (ValueError, TypeError):
            continue
        if isinstance(value, datetime):
            found[ours] = value.isoformat()
        elif isinstance(value, str) and value.strip():
            found.setdefault(ours, value.strip()[:2_000])
    return found


# --- Word


def parse_docx(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return the body of a Word document: headings by style or outline level, lists, tables, pictures.

    Headers, footers, notes and comments are left out, and so is text that a tracked change has deleted.

    Raises:
        DocumentError: it is broken, unsafe or too large.
        MissingDependencyError: ``python-docx`` is not installed.
    """
    try:
        import docx
    except ImportError as error:
        raise _missing("python-docx", error) from error
    Archive(data, limits).check()
    document = docx.Document(io.BytesIO(data))
    builder = TextBuilder(limits)
    _Word(document, builder).read()
    metadata = _properties(document.core_properties)
    title = metadata.pop("title", None) or _first_heading(builder)
    return builder.build(DOCX, title, metadata)


def _first_heading(builder: TextBuilder) -> str | None:
    first = next((block for block in builder.blocks if block.kind == "heading"), None)
    return builder.text_of(first) if first is not None and first.level == 1 else None


class _Word:
    """Walks the body of one document."""

    def __init__(self, document: Any, builder: TextBuilder) -> None:
        self._document = document
        self._builder = builder
        self._styles = {style.style_id: style for style in document.styles}
        self._levels: dict[str, int] = {}
        self._items: list[str] = []

    def read(self) -> None:
        for element in self._inner(self._document.element.body):
            if element.tag == f"{_WORD}tbl":
                self._end_list()
                self._table(element)
            else:
                self._paragraph(element)
        self._end_list()

    def _inner(self, parent: Any) -> Iterator[Any]:
        """Yield paragraphs and tables in order, those inside of content controls too."""
        waiting = [iter(parent)]
        while waiting:
            for element in waiting[-1]:
                if element.tag in (f"{_WORD}p", f"{_WORD}tbl"):
                    yield element
                elif element.tag in (f"{_WORD}sdt", f"{_WORD}sdtContent", f"{_WORD}customXml", f"{_WORD}ins"):
                    waiting.append(iter(element))
                    break
            else:
                waiting.pop()

    def _paragraph(self, element: Any) -> None:
        text = _words(element).strip()
        level = self._level(element)
        depth = None if level else self._depth(element)
        if depth is not None:
            if text:
                self._items.append("  " * depth + "- " + text.replace("\n", "\n" + "  " * (depth + 1)))
        elif text:
            self._end_list()
            self._builder.add(
                "heading" if level else "paragraph", " ".join(text.split()) if level else text, level=level
            )
        self._pictures(element)

    def _end_list(self) -> None:
        if self._items:
            self._builder.add("list", "\n".join(self._items))
            self._items = []

    def _level(self, element: Any) -> int:
        """Return the level of a heading, or 0: the paragraph's own, or that of its style."""
        own = element.find(f"{_WORD}pPr/{_WORD}outlineLvl")
        if own is not None:
            return _outline(own)
        name = element.style
        if name is None:
            return 0
        if name not in self._levels:
            self._levels[name] = self._level_of_style(name)
        return self._levels[name]

    def _level_of_style(self, style_id: str) -> int:
        style = self._styles.get(style_id)
        for _ in range(20):
            if style is None:
                return 0
            name = (style.name or "").lower()
            if name == "title":
                return 1
            if name.startswith("heading ") and name[8:].isdigit():
                return min(6, max(1, int(name[8:])))
            own = style.element.find(f"{_WORD}pPr/{_WORD}outlineLvl")
            if own is not None:
                return _outline(own)
            style = getattr(style, "base_style", None)
        return 0

    def _depth(self, element: Any) -> int | None:
        """Return how deep the item of a list lies, or None for a paragraph that is none."""
        numbered = element.find(f"{_WORD}pPr/{_WORD}numPr")
        if numbered is not None:
            level = numbered.find(f"{_WORD}ilvl")
            value = level.get(f"{_WORD}val", "0") if level is not None else "0"
            return min(8, int(value)) if value.isdigit() else 0
        style = self._styles.get(element.style)
        name = (style.name or "").lower() if style is not None else ""
        if name.startswith(("list bullet", "list number")):
            return int(name[-1]) - 1 if name[-1].isdigit() else 0
        return None

    def _table(self, element: Any) -> None:
        rows = [
            [" ".join(_words(cell).split()) for cell in row.iterchildren(f"{_WORD}tc")]
            for row in element.iterchildren(f"{_WORD}tr")
        ]
        _add_rows(self._builder, rows)
        self._pictures(element)

    def _pictures(self, element: Any) -> None:
        for drawing in element.iter(f"{_WORD}drawing"):
            blip = next(drawing.iter(f"{_DRAWING}blip"), None)
            part = self._document.part.related_parts.get(blip.get(f"{_RELATION}embed")) if blip is not None else None
            if part is None or not str(part.content_type).startswith("image/"):
                continue
            self._end_list()
            told = next(drawing.iter(f"{_PLACED}docPr"), None)
            caption = (told.get("descr") or told.get("title")) if told is not None else None
            self._builder.add_image(part.blob, str(part.content_type), caption)


def _outline(element: Any) -> int:
    value = element.get(f"{_WORD}val", "")
    return int(value) + 1 if value.isdigit() and int(value) < 6 else 0


def _words(element: Any) -> str:
    """Return the text inside of an element; paragraphs within it are lines."""
    parts: list[str] = []
    skipped = None
    for each in element.iter():
        tag = each.tag
        if skipped is not None and skipped in each.iterancestors(_FALLBACK):
            continue
        skipped = None
        if tag == _FALLBACK:
            # The same text once more, for readers that cannot show it as it is meant.
            skipped = each
        elif tag == f"{_WORD}t":
            parts.append(each.text or "")
        elif tag in _BREAKS:
            # A tab stop in the properties has the same name as a tab in the text.
            if each.getparent().tag != f"{_WORD}tabs":
                parts.append(_BREAKS[tag])
        elif tag == f"{_WORD}p" and parts:
            parts.append("\n")
    return "".join(parts)


def _add_rows(builder: TextBuilder, rows: list[list[str]], page: int | None = None) -> None:
    """Add rows as a table, or as paragraphs where there is one column only."""
    if max((sum(map(bool, row)) for row in rows), default=0) < 2:
        for row in rows:
            for cell in row:
                builder.add("paragraph", cell, page=page)
    else:
        builder.add("table", markdown_table(rows), page=page)


# --- PowerPoint


def parse_pptx(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return the slides of a presentation: titles as headings, texts, tables, charts as tables, notes, pictures.

    Raises:
        DocumentError: it is broken, unsafe or too large.
        MissingDependencyError: ``python-pptx`` is not installed.
    """
    try:
        import pptx
    except ImportError as error:
        raise _missing("python-pptx", error) from error
    Archive(data, limits).check()
    presentation = pptx.Presentation(io.BytesIO(data))
    builder = TextBuilder(limits)
    slides = presentation.slides
    if len(slides) > limits.max_pages:
        raise DocumentError(f"the presentation has {len(slides)} slides (ParseLimits.max_pages)", reason="too_large")
    for number, slide in enumerate(slides, 1):
        builder.watch.check()
        try:
            _slide(slide, number, builder)
        except DocumentError:
            raise
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            builder.warn(f"a part of slide {number} could not be read ({type(error).__name__})")
    metadata = _properties(presentation.core_properties)
    metadata["slides"] = len(slides)
    title = metadata.pop("title", None)
    if title in (None, "PowerPoint Presentation"):
        title = _first_heading(builder)
    return builder.build(PPTX, title, metadata)


def _slide(slide: Any, number: int, builder: TextBuilder) -> None:
    title = slide.shapes.title
    if title is not None and title.has_text_frame:
        builder.add("heading", " ".join(title.text_frame.text.split()), level=1, page=number)
    waiting = [iter(slide.shapes)]
    while waiting:
        for shape in waiting[-1]:
            if title is not None and shape.shape_id == title.shape_id:
                continue
            if hasattr(shape, "shapes"):
                waiting.append(iter(shape.shapes))
                break
            _shape(shape, number, builder)
        else:
            waiting.pop()
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        notes = slide.notes_slide.notes_text_frame.text.strip()
        if notes:
            builder.add("paragraph", f"Notes: {notes}", page=number)


def _shape(shape: Any, number: int, builder: TextBuilder) -> None:
    if shape.has_text_frame:
        lines = [("  " * one.level, one.text.strip().replace("\v", "\n")) for one in shape.text_frame.paragraphs]
        lines = [(indent, text) for indent, text in lines if text]
        if len(lines) > 1 and shape.is_placeholder:
            builder.add("list", "\n".join(f"{indent}- {' '.join(text.split())}" for indent, text in lines), page=number)
        else:
            for _, text in lines:
                builder.add("paragraph", text, page=number)
    elif getattr(shape, "has_table", False):
        rows = [[" ".join(cell.text.split()) for cell in row.cells] for row in shape.table.rows]
        _add_rows(builder, rows, number)
    elif getattr(shape, "has_chart", False):
        _chart(shape.chart, number, builder)
    elif hasattr(shape, "image"):
        told = shape._element._nvXxPr.cNvPr
        builder.add_image(shape.image.blob, shape.image.content_type, told.get("descr") or None, number)


def _chart(chart: Any, number: int, builder: TextBuilder) -> None:
    if chart.has_title and chart.chart_title.has_text_frame:
        builder.add("paragraph", chart.chart_title.text_frame.text, page=number)
    for plot in chart.plots:
        names = [str(name) for name in plot.categories]
        rows = [["", *(str(series.name) for series in plot.series)]]
        columns = [list(series.values) for series in plot.series]
        for place, name in enumerate(names):
            rows.append([name, *(_shown(column[place]) if place < len(column) else "" for column in columns)])
        _add_rows(builder, rows, number)


# --- Excel


def parse_xlsx(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return the sheets of a workbook: names as headings, rows as tables, a blank row between two tables.

    Formulas stand with the values that were last computed for them. A page is a sheet.

    Raises:
        DocumentError: it is broken, unsafe or too large.
        MissingDependencyError: ``openpyxl`` is not installed.
    """
    try:
        import openpyxl  # type: ignore[import-untyped]
    except ImportError as error:
        raise _missing("openpyxl", error) from error
    # Sheets are streamed; what all of them share is not.
    Archive(data, limits).check(streamed="xl/worksheets/")
    builder = TextBuilder(limits)
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
        try:
            sheets = workbook.worksheets
            if len(sheets) > limits.max_pages:
                raise DocumentError(f"the workbook has {len(sheets)} sheets", reason="too_large")
            for number, sheet in enumerate(sheets, 1):
                builder.add("heading", sheet.title, level=1, page=number)
                sheet.reset_dimensions()
                _sheet(sheet.iter_rows(values_only=True), number, builder)
            metadata = _properties(workbook.properties)
            metadata["sheets"] = [sheet.title for sheet in sheets][:100]
        finally:
            workbook.close()
    return builder.build(XLSX, metadata.pop("title", None), metadata)


def _sheet(rows: Iterable[tuple[Any, ...]], number: int, builder: TextBuilder) -> None:
    table: list[list[str]] = []
    size = 0
    for place, row in enumerate(rows):
        if not place % 1_000:
            builder.watch.check()
        cells = [_shown(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            table.append(cells)
            size += sum(map(len, cells)) + 3 * len(cells)
            builder.require_room(size)
        elif table:
            _add_rows(builder, table, number)
            table, size = [], 0
    _add_rows(builder, table, number)


def _shown(value: Any) -> str:
    """Return a cell as a reader would write it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(sep=" ")
    if isinstance(value, date | time):
        return value.isoformat()
    return " ".join(str(value).split())
