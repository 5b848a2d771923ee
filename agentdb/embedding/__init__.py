"""The port to whatever turns text into vectors, and the one checked way through it.

Nothing here imports Lance, torch or a model: implementations live outside and are found through the entry-point
group ``agentdb.embedders``.
"""

from __future__ import annotations

from agentdb.embedding.port import (
    Embedder,
    EmbedderIdentity,
    EmbedKind,
    ImageEmbedder,
    TokenCounter,
    TokenEmbedder,
    check_vectors,
    embed_texts,
    is_embedder,
)
from agentdb.embedding.registry import load_embedder

__all__ = [
    "EmbedKind",
    "Embedder",
    "EmbedderIdentity",
    "ImageEmbedder",
    "TokenCounter",
    "TokenEmbedder",
    "check_vectors",
    "embed_texts",
    "is_embedder",
    "load_embedder",
]
