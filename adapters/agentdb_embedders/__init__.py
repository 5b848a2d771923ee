"""Embedders for AgentDB: models on this machine, an HTTP endpoint, and a deterministic one for tests."""

from __future__ import annotations

from agentdb_embedders.hashing import HashingEmbedder
from agentdb_embedders.image_text import ImageTextEmbedder
from agentdb_embedders.openai import OpenAIEmbedder
from agentdb_embedders.sentence_transformer import SentenceTransformerEmbedder

__all__ = ["HashingEmbedder", "ImageTextEmbedder", "OpenAIEmbedder", "SentenceTransformerEmbedder"]
