"""LangChain on AgentDB: vector stores, retrievers, stores, caches and memory in the directory that holds everything else of the agent."""

from __future__ import annotations

from importlib.util import find_spec

from agentdb import MissingDependencyError

if find_spec("langchain_core") is None:
    raise MissingDependencyError(
        "langchain_agentdb needs LangChain's interfaces: pip install 'agentdb-lance[langchain]'"
    )

from langchain_agentdb.byte_store import AgentDBByteStore
from langchain_agentdb.caches import AgentDBLLMCache, AgentDBSemanticCache
from langchain_agentdb.chat_history import AgentDBChatMessageHistory
from langchain_agentdb.embeddings import AgentDBEmbeddings
from langchain_agentdb.filters import to_filter
from langchain_agentdb.indexing import AgentDBDocumentIndex, AgentDBRecordManager
from langchain_agentdb.vector_store import AgentDBVectorStore

__all__ = [
    "AgentDBByteStore",
    "AgentDBChatMessageHistory",
    "AgentDBDocumentIndex",
    "AgentDBEmbeddings",
    "AgentDBLLMCache",
    "AgentDBRecordManager",
    "AgentDBSemanticCache",
    "AgentDBVectorStore",
    "to_filter",
]
