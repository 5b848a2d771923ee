"""Documents: from a folder of files to a cited context.

=============  =========================================================================
``documents``  ``Documents``: ingest, list, search, context, answer, delete, erase
``records``    what callers give and get: ``Document``, ``Passage``, ``Context``, ...
``sources``    which documents a path, a folder, a text or an iterable stands for
``ingestion``  read, parse, chunk, embed, store; what is unchanged is left alone
``search``     the steps of a search
``context``    passages packed into a budget of tokens; answers that cite them
``tables``     how documents lie in tables
``parsing``    from the bytes of a file to its text with structure
``chunking``   from a text with structure to stretches that fit an embedder
``images``     pictures of documents: described, embedded, kept
=============  =========================================================================
"""

from agentdb.rag.chunking import Chunk, Chunker, ParentChildChunker, SemanticChunker, StructureChunker
from agentdb.rag.documents import Documents
from agentdb.rag.images import Captioner, ImageOptions, ImageTextReader, StoredImage
from agentdb.rag.parsing import Block, DocumentError, EmbeddedImage, ParsedDocument, ParseLimits, Parser
from agentdb.rag.records import (
    Answer,
    Citation,
    Context,
    Document,
    FoundImage,
    IngestFailure,
    IngestReport,
    IngestWarning,
    Omitted,
    Passage,
    StoredDocument,
)

__all__ = [
    "Answer",
    "Block",
    "Captioner",
    "Chunk",
    "Chunker",
    "Citation",
    "Context",
    "Document",
    "DocumentError",
    "Documents",
    "EmbeddedImage",
    "FoundImage",
    "ImageOptions",
    "ImageTextReader",
    "IngestFailure",
    "IngestReport",
    "IngestWarning",
    "Omitted",
    "ParentChildChunker",
    "ParseLimits",
    "ParsedDocument",
    "Parser",
    "Passage",
    "SemanticChunker",
    "StoredDocument",
    "StoredImage",
    "StructureChunker",
]
