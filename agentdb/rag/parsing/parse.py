"""`parse`: finds out what a file is and hands it to the parser that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentdb.errors import AgentDBError, InvalidInputError
from agentdb.rag.parsing import detect, text
from agentdb.rag.parsing.epub import parse_epub
from agentdb.rag.parsing.html import parse_html
from agentdb.rag.parsing.isolated import can_isolate, needs_isolation, parse_isolated
from agentdb.rag.parsing.markdown import parse_markdown, parse_notebook
from agentdb.rag.parsing.model import DocumentError, EmbeddedImage, ParsedDocument, ParseLimits, Parser
from agentdb.rag.parsing.office import parse_docx, parse_pptx, parse_xlsx
from agentdb.rag.parsing.pdf import parse_pdf

__all__ = ["parse", "read_here"]

_DEFAULT = ParseLimits()


def parse(
    data: bytes,
    *,
    name: str | None = None,
    media_type: str | None = None,
    limits: ParseLimits = _DEFAULT,
    parsers: Sequence[Parser] = (),
) -> ParsedDocument:
    """Return the text and the structure of a file, or raise a `DocumentError`, whatever its bytes are.

    Args:
        data: the whole file.
        name: its name or path; what it ends in helps to tell what it is. The file itself is not opened.
        media_type: what it is; None: found out from the first bytes, the name and the text.
        limits: how far to go.
        parsers: asked first, in order, for the media types that they name.

    Raises:
        DocumentError: it is of an unknown type, broken, encrypted, too large, or made to do harm.
        MissingDependencyError: its format needs the extra ``documents``.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidInputError(f"data must be bytes, not {type(data).__name__}")
    data = bytes(data)
    text.require_bytes(data, limits)
    found = media_type or detect.detect_media_type(name, data)
    named = detect.media_type_of_name(name)
    for parser in parsers:
        wanted = found or named
        if wanted in parser.media_types:
            return parser.parse(data, name, limits)
    if found is None:
        what = f"a {named} file" if named and not named.startswith("text/") else "a text or a known format"
        raise DocumentError(f"the content is not that of {what}", reason="broken" if named else "unknown_type")
    if can_isolate() and needs_isolation(found, data):
        document = parse_isolated(data, found, limits)
    else:
        document = read_here(data, found, limits)
    is_other = media_type is None and named is not None and named != found
    if is_other and named is not None and not (named.startswith("text/") and found.startswith("text/")):
        told = f"the name says {named}, but the content is {found}"
        document = replace(document, warnings=(*document.warnings, told))
    return document


def read_here(data: bytes, media_type: str, limits: ParseLimits) -> ParsedDocument:
    """Return a file of a known kind, read in this process.

    Raises:
        DocumentError: it cannot be read.
    """
    try:
        return _read(data, media_type, limits)
    except AgentDBError:
        raise
    except RecursionError:
        raise DocumentError("the document is nested too deeply", reason="unsafe") from None
    except MemoryError:
        raise DocumentError("the document needs more memory than there is", reason="too_large") from None
    except Exception as error:
        # Libraries raise all kinds of errors on files that break their format; the message may quote the content.
        raise DocumentError(f"the {media_type} file is broken ({type(error).__name__})", reason="broken") from error


def _read(data: bytes, media_type: str, limits: ParseLimits) -> ParsedDocument:
    language = detect.language_of(media_type)
    if language is not None:
        return text.parse_code(data, limits, media_type, language)
    if detect.is_image(media_type):
        return ParsedDocument("", media_type, None, (), (EmbeddedImage(data, media_type, None, None, 0),))
    if media_type == "text/markdown":
        return parse_markdown(data, limits)
    if media_type in ("text/csv", "text/tab-separated-values"):
        return text.parse_table(data, limits, media_type)
    if media_type == detect.NOTEBOOK:
        return parse_notebook(data, limits)
    if media_type == "application/json":
        return text.parse_json(data, limits)
    if media_type == "application/x-ndjson":
        return text.parse_json_lines(data, limits)
    if media_type == "text/html":
        return parse_html(data, limits)
    if media_type == detect.EPUB:
        return parse_epub(data, limits)
    if media_type == "application/pdf":
        return parse_pdf(data, limits)
    if media_type == detect.DOCX:
        return parse_docx(data, limits)
    if media_type == detect.PPTX:
        return parse_pptx(data, limits)
    if media_type == detect.XLSX:
        return parse_xlsx(data, limits)
    if media_type == "text/plain":
        return text.parse_text(data, limits)
    if media_type == detect.OLE:
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise DocumentError("the document is encrypted", reason="encrypted")
        raise DocumentError(
            "the formats of Office before 2007 cannot be read: save it as DOCX, XLSX or PPTX", reason="unknown_type"
        )
    raise DocumentError(f"no parser reads {media_type}", reason="unknown_type")
