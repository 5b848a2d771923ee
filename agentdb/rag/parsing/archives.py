"""Zip archives that are read without trusting what they say of themselves, and XML without entities."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from agentdb.errors import MissingDependencyError
from agentdb.rag.parsing.model import DocumentError, ParseLimits, Watch

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["BROKEN", "Archive", "declared_bytes", "read_xml"]

_MOST_MEMBERS = 50_000
_PIECE = 1 << 16
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)
"""What reading a damaged, encrypted or oddly compressed archive raises."""


def declared_bytes(data: bytes) -> int:
    """Return what the members of an archive say they expand to, 0 where that cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(member.file_size for member in archive.infolist())
    except BROKEN:
        return 0


class Archive:
    """The members of a zip archive, each read in pieces and never beyond the limits, whatever its directory claims."""

    def __init__(self, data: bytes, limits: ParseLimits) -> None:
        self._limits = limits
        self._watch = Watch(limits)
        self._expanded = 0
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except BROKEN as error:
            raise DocumentError(f"the archive is broken ({type(error).__name__})", reason="broken") from None
        members = self._zip.infolist()
        if len(members) > _MOST_MEMBERS:
            raise DocumentError(f"the archive has {len(members)} members", reason="too_large")
        for member in members:
            if member.flag_bits & 1:
                raise DocumentError("the archive is encrypted", reason="encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DocumentError("a member of the archive is compressed in an unusual way", reason="unsafe")
        if sum(member.file_size for member in members) > limits.max_expanded_bytes:
            raise self._too_much()
        self._members = {member.filename: member for member in members}

    @property
    def names(self) -> list[str]:
        """The members, in the order of the directory."""
        return list(self._members)

    def read(self, name: str) -> bytes | None:
        """Return a member, or None if there is none of that name.

        Raises:
            DocumentError: it is broken, or larger than a part or all parts may be.
        """
        member = self._members.get(name)
        if member is None:
            return None
        if member.file_size > self._limits.max_part_bytes:
            raise self._part_too_large()
        whole = bytearray()
        for piece in self._pieces(member):
            whole += piece
            if len(whole) > self._limits.max_part_bytes:
                raise self._part_too_large()
        return bytes(whole)

    def check(self, *, streamed: str | None = None) -> None:
        """Read all members once, for a library that will read them on its own.

        Args:
            streamed: what the names of parts begin with that the library reads piece by piece: they may be larger.

        Raises:
            DocumentError: a member is broken or too large, or an XML part declares a document type, which no part of an
                Office document does, and which entities that expand for ever need.
        """
        limit = self._limits.max_part_bytes
        for member in self._members.values():
            is_xml = member.filename.lower().endswith((".xml", ".rels", ".vml"))
            is_streamed = streamed is not None and member.filename.startswith(streamed)
            size = 0
            tail = b""
            for piece in self._pieces(member):
                size += len(piece)
                if is_xml:
                    seen = tail + piece
                    if b"<!DOCTYPE" in seen or b"<!ENTITY" in seen or "<!DOCTYPE".encode("utf-16-le")[1:-1] in seen:
                        raise DocumentError("an XML part declares a document type", reason="unsafe")
                    tail = seen[-32:]
                    if size > limit and not is_streamed:
                        raise self._part_too_large()

    def _pieces(self, member: zipfile.ZipInfo) -> Any:
        try:
            with self._zip.open(member) as stream:
                while piece := stream.read(_PIECE):
                    self._watch.check()
                    self._expanded += len(piece)
                    # Read at most twice: once to check, once to use.
                    if self._expanded > 2 * self._limits.max_expanded_bytes:
                        raise self._too_much()
                    yield piece
        except DocumentError:
            raise
        except BROKEN as error:
            raise DocumentError(
                f"a member of the archive is broken ({type(error).__name__})", reason="broken"
            ) from None

    def _too_much(self) -> DocumentError:
        limit = self._limits.max_expanded_bytes
        return DocumentError(
            f"the archive expands to more than {limit} bytes (ParseLimits.max_expanded_bytes)", reason="too_large"
        )

    def _part_too_large(self) -> DocumentError:
        limit = self._limits.max_part_bytes
        return DocumentError(
            f"a part of the archive expands to more than {limit} bytes (ParseLimits.max_part_bytes)", reason="too_large"
        )


def read_xml(data: bytes) -> Element:
    """Return the root of an XML text whose entities and external references are refused.

    Raises:
        DocumentError: it is not well-formed, or holds what it must not.
        MissingDependencyError: ``defusedxml`` is not installed.
    """
    try:
        from defusedxml import DefusedXmlException  # type: ignore[import-untyped]
        from defusedxml.ElementTree import ParseError, fromstring  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("this format needs defusedxml: install 'agentdb-lance[documents]'") from error
    try:
        root: Element = fromstring(data)
    except DefusedXmlException:
        raise DocumentError("an XML part declares entities", reason="unsafe") from None
    except (ParseError, ValueError, LookupError):
        raise DocumentError("an XML part is not well-formed", reason="broken") from None
    return root
