"""The blocks of a Markdown text, found in one pass over its lines.

Source: CommonMark 0.31 (https://spec.commonmark.org/0.31.2/) and the tables of GitHub Flavored Markdown, as far as
blocks go. Quotations and raw HTML count as paragraphs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from agentdb.rag.parsing.detect import NOTEBOOK
from agentdb.rag.parsing.model import (
    Block,
    BlockKind,
    DocumentError,
    ParsedDocument,
    ParseLimits,
    TextBuilder,
    heading_text,
)
from agentdb.rag.parsing.text import decode

__all__ = ["markdown_blocks", "parse_markdown", "parse_notebook"]

_LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r"( *)(`{3,}(?=[^`]*$)|~{3,})[ \t]*([^\s`{,]*)")
_ITEM = re.compile(r"( *)(?:[-+*]|\d{1,9}[.)])(?:[ \t]+|$)")
_RULE = re.compile(r" {0,3}(?:(?:-[ \t]*){3,}|(?:_[ \t]*){3,}|(?:\*[ \t]*){3,})$")
_DELIMITERS = re.compile(r" {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)


def parse_markdown(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return Markdown with its headings, lists, tables and code; the text is the decoded file."""
    text, encoding, warnings = decode(data, limits)
    blocks = list(markdown_blocks(text))
    title = None
    if blocks and blocks[0].language == "yaml" and text.startswith("---"):
        found = _TITLE.search(text, blocks[0].start, blocks[0].end)
        title = found[1].strip("'\"") if found else None
    if not title:
        first = next((block for block in blocks if block.kind == "heading" and block.level == 1), None)
        title = heading_text(text[first.start : first.end]) if first else None
    if not blocks:
        warnings.append("no text was found")
    return ParsedDocument(
        text,
        "text/markdown",
        title or None,
        tuple(blocks),
        metadata={"encoding": encoding},
        warnings=tuple(warnings),
    )


def parse_notebook(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return the cells of a Jupyter notebook: Markdown by its blocks, code as code; outputs are left out.

    Raises:
        DocumentError: it is not a notebook of format 4.
    """
    written, encoding, warnings = decode(data, limits)
    try:
        notebook = json.loads(written)
        language = notebook.get("metadata", {}).get("kernelspec", {}).get("language", "python")
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise DocumentError("the file is not a notebook of format 4", reason="broken") from None
    builder = TextBuilder(limits)
    builder.warnings += warnings
    for kind, source in cells:
        if kind == "code":
            builder.add("code", source, language=str(language).lower())
        elif kind == "markdown":
            for block in markdown_blocks(source):
                part = source[block.start : block.end]
                builder.add(block.kind, part, level=block.level, language=block.language)
    first = next((block for block in builder.blocks if block.kind == "heading" and block.level == 1), None)
    title = heading_text(builder.text_of(first)) if first else None
    return builder.build(NOTEBOOK, title, {"encoding": encoding, "language": str(language).lower()})


def markdown_blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of the text in order; between them is white space only."""
    scan = _Scan(text)
    while scan.at < len(scan.lines):
        yield from scan.block()


class _Scan:
    """One pass over the lines: each step takes the lines of one block."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [found.start() for found in _LINE.finditer(text)]
        self.lines = [line.rstrip("\r\n") for line in _LINE.findall(text)]
        self.at = 0

    def block(self) -> Iterator[Block]:
        line = self.lines[self.at]
        if not line.strip():
            self.at += 1
            return
        first = self.at
        if first == 0 and line.rstrip() == "---" and (end := self._front_matter()) is not None:
            self.at = end
            yield self._made("code", first, language="yaml")
        elif fence := _FENCE.match(line):
            if len(fence[1]) <= 3:
                self._skip_fence(fence)
                yield self._made("code", first, language=fence[3].lower() or None)
            else:
                yield self._indented()
        elif atx := _ATX.match(line):
            self.at += 1
            yield self._made("heading", first, level=len(atx[1]))
        elif line.startswith(("    ", "\t")):
            yield self._indented()
        elif _RULE.match(line):
            self.at += 1
            yield self._made("paragraph", first)
        elif _ITEM.match(line):
            self._skip_list()
            yield self._made("list", first)
        elif self._is_table(first):
            self.at += 2
            while self.at < len(self.lines) and self._goes_on(self.at) and "|" in self.lines[self.at]:
                self.at += 1
            yield self._made("table", first)
        else:
            yield self._paragraph()

    def _front_matter(self) -> int | None:
        for place in range(1, min(len(self.lines), 500)):
            if self.lines[place].rstrip() in ("---", "..."):
                return place + 1
        return None

    def _skip_fence(self, fence: re.Match[str]) -> None:
        """Go past the closing fence, or to the end of the text where there is none."""
        mark = fence[2]
        closing = re.compile(rf" *{re.escape(mark[0])}{{{len(mark)},}}[ \t]*$")
        self.at += 1
        while self.at < len(self.lines):
            self.at += 1
            if closing.match(self.lines[self.at - 1]):
                return

    def _indented(self) -> Block:
        first = last = self.at
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line.startswith(("    ", "\t")) and line.strip():
                last = self.at
            elif line.strip():
                break
            self.at += 1
        self.at = last + 1
        return self._made("code", first)

    def _skip_list(self) -> None:
        """Go to the first line that belongs to no item: after a blank line, one that is neither indented nor an item."""
        was_blank = False
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not line.strip():
                was_blank = True
                self.at += 1
                continue
            is_inside = line.startswith((" ", "\t")) or bool(_ITEM.match(line))
            if (was_blank and not is_inside) or _RULE.match(line):
                return
            if not is_inside and (_ATX.match(line) or _FENCE.match(line) or self._is_table(self.at)):
                return
            was_blank = False
            fence = _FENCE.match(_after_mark(line))
            if fence:
                self._skip_fence(fence)
            else:
                self.at += 1

    def _is_table(self, place: int) -> bool:
        lines = self.lines
        if place + 1 >= len(lines) or "|" not in lines[place]:
            return False
        below = lines[place + 1]
        if "-" not in below or len(below) > 10_000 or not _DELIMITERS.match(below):
            return False
        return _cells(lines[place]) == _cells(below)

    def _goes_on(self, place: int) -> bool:
        """Return whether a line can continue a paragraph or a table."""
        line = self.lines[place]
        if not line.strip():
            return False
        fence = _FENCE.match(line)
        return not (_ATX.match(line) or (fence and len(fence[1]) <= 3) or _RULE.match(line))

    def _paragraph(self) -> Block:
        first = self.at
        self.at += 1
        while self.at < len(self.lines):
            line = self.lines[self.at]
            underline = _SETEXT.match(line)
            if underline and not self.lines[first].lstrip().startswith(">"):
                self.at += 1
                return self._made("heading", first, level=1 if underline[1][0] == "=" else 2)
            if not self._goes_on(self.at) or self._is_table(self.at):
                break
            item = _ITEM.match(line)
            # A list may interrupt a paragraph if it begins with a bullet or with 1, and its item is not empty.
            if item and line[item.end() :].strip() and not re.match(r" *(?!1[.)])\d", line):
                break
            self.at += 1
        return self._made("paragraph", first)

    def _made(self, kind: BlockKind, first: int, *, level: int = 0, language: str | None = None) -> Block:
        """Return the block from a line to the one before the next, without the white space round it."""
        start = self.starts[first]
        end = self.starts[self.at] if self.at < len(self.starts) else len(self.text)
        written = self.text[start:end]
        if kind != "code":
            start += len(written) - len(written.lstrip())
        return Block(kind, start, self.starts[first] + len(written.rstrip()), level=level, language=language)


def _after_mark(line: str) -> str:
    """Return a line without the marks of the list items that begin on it."""
    while True:
        item = _ITEM.match(line)
        if not item or item.end() == 0:
            return line
        line = line[item.end() :]


def _cells(line: str) -> int:
    bare = line.strip().replace("\\|", "")
    return bare.strip("|").count("|") + 1 if bare else 0
