"""EPUB: the chapters of a book in reading order, each a page of HTML in a zip archive.

Source: EPUB 3.3, https://www.w3.org/TR/epub-33/
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urldefrag

from agentdb.rag.parsing.archives import Archive, read_xml
from agentdb.rag.parsing.detect import EPUB, is_image, media_type_of_name, sniff
from agentdb.rag.parsing.html import LoadImage, render_html
from agentdb.rag.parsing.model import DocumentError, ParsedDocument, ParseLimits, TextBuilder
from agentdb.rag.parsing.text import decode

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["parse_epub"]

_CHAPTERS = ("application/xhtml+xml", "text/html", "application/html+xml", "text/x-oeb1-document")
_DUBLIN_CORE = {"creator": "author", "language": "language", "date": "created", "publisher": "publisher"}


def parse_epub(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return the chapters of a book in reading order; a page is a chapter.

    Raises:
        DocumentError: the archive or its description is broken, chapters are encrypted, or it is too large.
    """
    archive = Archive(data, limits)
    path = _description_path(archive)
    package = _required(archive, path)
    base = posixpath.dirname(path)
    manifest = {
        item.get("id", ""): (_joined(base, item.get("href", "")), item.get("media-type", ""))
        for item in _all(package, "item")
    }
    spine = [manifest[ref] for item in _all(package, "itemref") if (ref := item.get("idref", "")) in manifest]
    chapters = [member for member, kind in spine if kind in _CHAPTERS]
    if len(chapters) > limits.max_pages:
        raise DocumentError(f"the book has {len(chapters)} chapters (ParseLimits.max_pages)", reason="too_large")
    if _encrypted(archive) & set(chapters):
        raise DocumentError("the chapters of the book are encrypted", reason="encrypted")
    builder = TextBuilder(limits)
    for page, member in enumerate(chapters, 1):
        content = archive.read(member)
        if content is None:
            builder.warn(f"chapter {page} is missing from the archive")
            continue
        try:
            markup, _, warnings = decode(content, limits)
            render_html(markup, builder, page=page, load_image=_loader(archive, posixpath.dirname(member)))
        except DocumentError as error:
            if error.reason in ("too_large", "too_slow"):
                raise
            builder.warn(f"chapter {page} could not be read: {error}")
            continue
        for warning in warnings:
            builder.warn(f"chapter {page}: {warning}")
    metadata = _metadata(package)
    return builder.build(EPUB, metadata.pop("title", None), metadata)


def _description_path(archive: Archive) -> str:
    container = archive.read("META-INF/container.xml")
    if container is not None:
        for item in _all(read_xml(container), "rootfile"):
            if item.get("full-path"):
                return str(item.get("full-path"))
    found = next((name for name in archive.names if name.lower().endswith(".opf")), None)
    if found is None:
        raise DocumentError("the archive holds no description of a book", reason="broken")
    return found


def _required(archive: Archive, name: str) -> Element:
    content = archive.read(name)
    if content is None:
        raise DocumentError("the description of the book is missing from the archive", reason="broken")
    return read_xml(content)


def _all(root: Element, name: str) -> Iterator[Element]:
    """Yield the elements of a name, in whatever namespace."""
    return (element for element in root.iter() if str(element.tag).rpartition("}")[2] == name)


def _joined(base: str, address: str) -> str:
    return posixpath.normpath(posixpath.join(base, unquote(urldefrag(address)[0])))


def _encrypted(archive: Archive) -> set[str]:
    content = archive.read("META-INF/encryption.xml")
    if content is None:
        return set()
    return {posixpath.normpath(unquote(item.get("URI", ""))) for item in _all(read_xml(content), "CipherReference")}


def _loader(archive: Archive, base: str) -> LoadImage:
    def load(address: str) -> tuple[bytes, str] | None:
        if not address or ":" in address:
            return None
        member = _joined(base, address)
        if not is_image(media_type_of_name(member) or ""):
            return None
        content = archive.read(member)
        found = sniff(content) if content else None
        return (content, found) if content and found and is_image(found) else None

    return load


def _metadata(package: Element) -> dict[str, Any]:
    found: dict[str, Any] = {}
    creators = []
    for element in package.iter():
        space, _, name = str(element.tag).rpartition("}")
        text = " ".join((element.text or "").split())[:2_000]
        if not space.endswith("purl.org/dc/elements/1.1/") or not text:
            continue
        if name == "creator":
            creators.append(text)
        elif name == "title":
            found.setdefault("title", text)
        elif name in _DUBLIN_CORE:
            found.setdefault(_DUBLIN_CORE[name], text)
    if creators:
        found["author"] = ", ".join(creators)
    return found
