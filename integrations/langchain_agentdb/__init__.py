"""LangChain on AgentDB: vector stores, retrievers, stores, caches and memory in the directory that holds everything else of the agent.

===============================  =====================================================================================
``AgentDBVectorStore``           documents of one collection: exact filters, hybrid search, reranking
``AgentDBRetriever``             a collection, or what ``db.documents`` has ingested, as a retriever
``AgentDBMemoryRetriever``       the memories of an agent as a retriever
``AgentDBMemoryMiddleware``      lets an agent of ``create_agent`` recall and remember (needs ``langchain``)
``AgentDBMemoryToolkit``         the same as tools that the model calls
``AgentDBChatMessageHistory``    the messages of a chat
``AgentDBLLMCache``              answers of models, by prompt
``AgentDBSemanticCache``         answers of models, by what the prompt means
``AgentDBByteStore``             bytes by key, for document stores and embedding caches
``AgentDBRecordManager``         what the indexing API keeps track by
``AgentDBDocumentIndex``         what the indexing API writes into
``AgentDBEmbeddings``            AgentDB's embedders as embeddings
``AgentDBChatMemory``            memory of classic chains (extra ``langchain-classic``)
``AgentDBVectorMemory``          the same, by nearness
``to_filter``                    a dictionary as AgentDB's filter tree
===============================  =====================================================================================
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

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
from langchain_agentdb.retrievers import AgentDBMemoryRetriever, AgentDBRetriever
from langchain_agentdb.tools import AgentDBMemoryToolkit
from langchain_agentdb.vector_store import AgentDBVectorStore

if TYPE_CHECKING:
    from langchain_agentdb.classic import AgentDBChatMemory, AgentDBVectorMemory
    from langchain_agentdb.middleware import AgentDBMemoryMiddleware

__all__ = [
    "AgentDBByteStore",
    "AgentDBChatMemory",
    "AgentDBChatMessageHistory",
    "AgentDBDocumentIndex",
    "AgentDBEmbeddings",
    "AgentDBLLMCache",
    "AgentDBMemoryMiddleware",
    "AgentDBMemoryRetriever",
    "AgentDBMemoryToolkit",
    "AgentDBRecordManager",
    "AgentDBRetriever",
    "AgentDBSemanticCache",
    "AgentDBVectorMemory",
    "AgentDBVectorStore",
    "to_filter",
]

# They need more than LangChain's interfaces, and are imported when they are first used.
_ON_DEMAND = {
    "AgentDBChatMemory": "langchain_agentdb.classic",
    "AgentDBMemoryMiddleware": "langchain_agentdb.middleware",
    "AgentDBVectorMemory": "langchain_agentdb.classic",
}


def __getattr__(name: str) -> object:
    home = _ON_DEMAND.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
