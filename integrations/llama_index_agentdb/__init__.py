"""LlamaIndex on AgentDB: vector, document, index and chat stores and a memory block in the directory of the agent.

==========================  =========================================================================================
``AgentDBVectorStore``      nodes with embeddings: all filters, by vector, words or both; sync and async
``AgentDBRetriever``        nodes of any collection, or passages of ingested documents, by meaning, words or both
``AgentDBMemoryRetriever``  what an agent remembers, as nodes
``AgentDBRerank``           orders what a retriever found by a reranker
``AgentDBEmbedding``        the embedders of AgentDB as an embedding model
``AgentDBDocumentStore``    documents and nodes; every call is one transaction
``AgentDBIndexStore``       the structures of indexes
``AgentDBIngestionCache``   what an ``IngestionPipeline`` has made already
``AgentDBKVStore``          values by key and collection, on which these three stand
``AgentDBChatStore``        messages, active and archived: ``Memory.from_defaults(chat_store=...)``
``AgentDBMemoryBlock``      long-term memory for ``Memory``, on the database's Memory Manager
``AgentDBLegacyChatStore``  messages for ``ChatMemoryBuffer`` and others that came before ``Memory``
==========================  =========================================================================================
"""

from __future__ import annotations

from importlib.util import find_spec

from agentdb import MissingDependencyError

if find_spec("llama_index") is None or find_spec("llama_index.core") is None:
    raise MissingDependencyError(
        "llama_index_agentdb needs LlamaIndex's interfaces: pip install 'agentdb-lance[llama-index]'"
    )

from llama_index_agentdb.chat_store import AgentDBChatStore, AgentDBLegacyChatStore
from llama_index_agentdb.document_store import AgentDBDocumentStore, AgentDBIndexStore, AgentDBIngestionCache
from llama_index_agentdb.embedding import AgentDBEmbedding
from llama_index_agentdb.filters import to_filter
from llama_index_agentdb.kv_store import AgentDBKVStore
from llama_index_agentdb.memory import AgentDBMemoryBlock
from llama_index_agentdb.postprocessor import AgentDBRerank
from llama_index_agentdb.retrievers import AgentDBMemoryRetriever, AgentDBRetriever
from llama_index_agentdb.vector_store import AgentDBVectorStore

__all__ = [
    "AgentDBChatStore",
    "AgentDBDocumentStore",
    "AgentDBEmbedding",
    "AgentDBIndexStore",
    "AgentDBIngestionCache",
    "AgentDBKVStore",
    "AgentDBLegacyChatStore",
    "AgentDBMemoryBlock",
    "AgentDBMemoryRetriever",
    "AgentDBRerank",
    "AgentDBRetriever",
    "AgentDBVectorStore",
    "to_filter",
]
