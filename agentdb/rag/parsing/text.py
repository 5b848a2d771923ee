"""Plain text, source code, delimited tables and JSON: the text is the decoded file, and blocks are laid over it."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from typing import Any

from agentdb.errors import MissingDependencyError
from agentdb.rag.parsing.model import Block, DocumentError, ParsedDocument, ParseLimits, clean, too_much_text

__all__ = [
    "decode",
    "parse_code",
    "parse_json",
    "parse_json_lines",
    "parse_table",
    "parse_text",
    "require_bytes",
    "wide_encoding",
]

_BOMS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_DECLARED = re.compile(
    rb"""(?:coding[:=][ \t]*|<\?xml[^>]{0,100}encoding=["']|<meta[^>]{0,200}charset=["']?)([-\w.:]{2,40})""",
    re.IGNORECASE,
)
_GUESSED_FROM = 1 << 18
_BLANK = re.compile(r"(?:\r\n?|\n|\f)[^\S\r\n\f]*+(?:(?:\r\n?|\n|\f)[^\S\r\n\f]*+)++")
# Others among Python's codecs are not encodings of files, and some take time that grows with the square of the length.
_ENCODINGS = re.compile(
    r"(?:utf-(?:7|8|8-sig|16|16-le|16-be|32|32-le|32-be)|ascii|iso8859-\d+|cp\d+|koi8-\w|mac-\w+|gb\w+|hz|big5\w*"
    r"|euc_\w+|shift_ji\w+|iso2022_\w+|johab|tis-620|kz1048|ptcp154|hp-roman8)"
)


def require_bytes(data: bytes, limits: ParseLimits) -> None:
    """Return if a file is not larger than allowed.

    Raises:
        DocumentError: it is.
    """
    if len(data) > limits.max_bytes:
        raise DocumentError(
            f"the file has {len(data)} bytes, more than {limits.max_bytes} (ParseLimits.max_bytes)", reason="too_large"
        )


def decode(data: bytes, limits: ParseLimits) -> tuple[str, str, list[str]]:
    """Return the text of a file, its encoding, and warnings.

    A byte order mark decides, then UTF-8, then what the file declares of itself, then a guess. What cannot be decoded,
    and NUL, becomes U+FFFD, with a warning.

    Raises:
        DocumentError: the text is longer than allowed.
        MissingDependencyError: the encoding must be guessed and ``charset-normalizer`` is not installed.
    """
    text, encoding, warnings = _decoded(data)
    if len(text) > limits.max_text_chars:
        raise too_much_text(limits)
    if "\0" in text:
        warnings.append("NUL characters were replaced")
    return clean(text), encoding, warnings


def _decoded(data: bytes) -> tuple[str, str, list[str]]:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _replacing(data[len(mark) :], encoding)
    try:
        text = data.decode()
        if "\0" not in text[:_GUESSED_FROM]:
            return text, "utf-8", []
    except UnicodeDecodeError:
        text = None
    declared = _DECLARED.search(data[:1_024])
    if declared:
        try:
            encoding = codecs.lookup(declared[1].decode("ascii")).name
            if _ENCODINGS.fullmatch(encoding):
                return str(data.decode(encoding)), encoding, []
        except (LookupError, UnicodeError):
            pass
    wide = wide_encoding(data)
    if wide:
        return _replacing(data, wide)
    if text is not None:
        return text, "utf-8", []
    found = data[:_GUESSED_FROM].decode("utf-8", "replace")
    damaged = found.count("\ufffd")
    if sum(char > "\x7f" for char in found) >= 3 * damaged:
        # Damaged UTF-8 rather than something else: most of what is not ASCII is well formed.
        return _replacing(data, "utf-8")
    return _replacing(data, _guess(data[:_GUESSED_FROM]))


def _replacing(data: bytes, encoding: str) -> tuple[str, str, list[str]]:
    try:
        return data.decode(encoding), encoding, []
    except UnicodeDecodeError:
        return data.decode(encoding, "replace"), encoding, [f"bytes that are not {encoding} were replaced"]


def wide_encoding(data: bytes) -> str | None:
    """Return UTF-16 or UTF-32 where the places of the NULs tell it, else None."""
    sample = data[:4_096]
    sample = sample[: len(sample) // 4 * 4]
    if len(sample) < 4 or b"\0" not in sample:
        return None
    quarter = len(sample) // 4
    zeros = [sample[place::4].count(0) for place in range(4)]
    if zeros[3] > 0.9 * quarter and zeros[2] > 0.9 * quarter and zeros[0] < 0.3 * quarter:
        return "utf-32-le"
    if zeros[0] > 0.9 * quarter and zeros[1] > 0.9 * quarter and zeros[3] < 0.3 * quarter:
        return "utf-32-be"
    odd, even = zeros[1] + zeros[3], zeros[0] + zeros[2]
    if odd > 0.6 * quarter and even < 0.1 * quarter:
        return "utf-16-le"
    if even > 0.6 * quarter and odd < 0.1 * quarter:
        return "utf-16-be"
    return None


def _guess(sample: bytes) -> str:
    try:
        from charset_normalizer import from_bytes
    except ImportError as error:
        raise MissingDependencyError(
            "text that is not UTF-8 needs charset-normalizer: install 'agentdb-lance[documents]'"
        ) from error
    found = list(from_bytes(sample))
    for one in found:
        # Among encodings that fit equally well the commonest one is taken.
        if (one.chaos, one.coherence) == (found[0].chaos, found[0].coherence) and "cp1252" in one.could_be_from_charset:
            return "cp1252"
    # It reads whatever bytes there are.
    return found[0].encoding if found else "cp1252"


def paragraphs(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield the spans between blank lines, without the white space round them."""
    end = len(text) if end is None else end
    at = start
    while at < end:
        gap = _BLANK.search(text, at, end)
        stop = gap.start() if gap else end
        piece = text[at:stop]
        bare = piece.strip()
        if bare:
            first = at + len(piece) - len(piece.lstrip())
            yield first, first + len(bare)
        at = gap.end() if gap else end


def _whole(text: str) -> tuple[int, int] | None:
    """Return the span of the text from its first line with something on it, indentation included."""
    bare = text.strip()
    if not bare:
        return None
    first = len(text) - len(text.lstrip())
    return first, first + len(bare)


def _document(
    text: str,
    media_type: str,
    blocks: list[Block],
    encoding: str,
    warnings: list[str],
    title: str | None = None,
    **metadata: Any,
) -> ParsedDocument:
    if not blocks:
        warnings = [*warnings, "no text was found"]
    return ParsedDocument(
        text, media_type, title, tuple(blocks), metadata={"encoding": encoding, **metadata}, warnings=tuple(warnings)
    )


def parse_text(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return plain text as paragraphs."""
    text, encoding, warnings = decode(data, limits)
    blocks = [Block("paragraph", start, end) for start, end in paragraphs(text)]
    return _document(text, "text/plain", blocks, encoding, warnings)


def parse_code(data: bytes, limits: ParseLimits, media_type: str, language: str | None) -> ParsedDocument:
    """Return source code as one block."""
    text, encoding, warnings = decode(data, limits)
    span = _whole(text)
    blocks = [Block("code", *span, language=language)] if span else []
    return _document(text, media_type, blocks, encoding, warnings, language=language)


def parse_table(data: bytes, limits: ParseLimits, media_type: str) -> ParsedDocument:
    """Return delimited lines as one table, exactly as they stand in the file."""
    text, encoding, warnings = decode(data, limits)
    span = _whole(text)
    known: dict[str, Any] = {}
    if span:
        delimiter = "\t" if media_type == "text/tab-separated-values" else _delimiter(text)
        header = _first_row(text[span[0] :], delimiter)
        known = {"delimiter": delimiter, "columns": header} if header else {}
    blocks = [Block("table", *span)] if span else []
    return _document(text, media_type, blocks, encoding, warnings, **known)


def _delimiter(text: str) -> str:
    sample = text[:8_192]
    try:
        return csv.Sniffer().sniff(sample, ",;\t|").delimiter
    except csv.Error:
        return ","


def _first_row(text: str, delimiter: str) -> list[str] | None:
    lines = text[:65_536].splitlines()
    try:
        row = next(csv.reader(lines, delimiter=delimiter), None)
    except csv.Error:
        return None
    return row if row and len(row) <= 1_000 else None


def parse_json(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return JSON as one block of code, exactly as it stands in the file; broken JSON is kept, with a warning."""
    text, encoding, warnings = decode(data, limits)
    title = None
    try:
        value = json.loads(text) if text.strip() else None
        found = value.get("title") if isinstance(value, dict) else None
        title = found if isinstance(found, str) else None
    except (ValueError, RecursionError):
        warnings.append("the file is not well-formed JSON")
    span = _whole(text)
    blocks = [Block("code", *span, language="json")] if span else []
    return _document(text, "application/json", blocks, encoding, warnings, title)


def parse_json_lines(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return JSON lines as one table of lines, exactly as they stand in the file."""
    text, encoding, warnings = decode(data, limits)
    span = _whole(text)
    blocks = [Block("table", *span)] if span else []
    return _document(text, "application/x-ndjson", blocks, encoding, warnings)
