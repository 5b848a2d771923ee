"""LangChain on AgentDB: vector stores, retrievers, stores, caches and memory in the directory that holds everything else of the agent."""

from __future__ import annotations

from importlib.util import find_spec

from agentdb import MissingDependencyError

if find_spec("langchain_core") is None:
    raise MissingDependencyError(
        "langchain_agentdb needs LangChain's interfaces: pip install 'agentdb-lance[langchain]'"
    )

from langchain_agentdb.embeddings import AgentDBEmbeddings
from langchain_agentdb.filters import to_filter
from langchain_agentdb.vector_store import AgentDBVectorStore

__all__ = ["AgentDBEmbeddings", "AgentDBVectorStore", "to_filter"]
