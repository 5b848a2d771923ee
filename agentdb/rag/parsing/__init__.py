"""From the bytes of a file to its text with structure.

Each format has its module; each imports the library that it needs when it is first used. Nothing here touches a file
system, a network or a database. PDFs, and what expands to much more than it has bytes, are read by a process of their own.
"""

from __future__ import annotations

from agentdb.rag.parsing.detect import detect_media_type
from agentdb.rag.parsing.model import (
    Block,
    BlockKind,
    DocumentError,
    DocumentProblem,
    EmbeddedImage,
    ParsedDocument,
    ParseLimits,
    Parser,
)
from agentdb.rag.parsing.parse import parse

__all__ = [
    "Block",
    "BlockKind",
    "DocumentError",
    "DocumentProblem",
    "EmbeddedImage",
    "ParseLimits",
    "ParsedDocument",
    "Parser",
    "detect_media_type",
    "parse",
]
