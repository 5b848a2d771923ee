"""LangGraph on AgentDB: checkpointer, store and node cache in the directory that holds everything else of the agent.

=================  ===================================================================
``AgentDBSaver``   the checkpointer: every step of every thread, sync and async
``AgentDBStore``   the store: items in namespaces, found by key, filter and meaning; with time to live
``AgentDBCache``   the cache of node results, with time to live
``StrictSerializer``  what saver and cache use unless told otherwise: makes no object of an unknown type
=================  ===================================================================
"""

from __future__ import annotations

from importlib.util import find_spec

from agentdb import MissingDependencyError

if find_spec("langgraph") is None or find_spec("langgraph.checkpoint") is None:
    raise MissingDependencyError(
        "langgraph_agentdb needs LangGraph's interfaces: pip install 'agentdb-lance[langgraph]'"
    )

from langgraph_agentdb.cache import AgentDBCache
from langgraph_agentdb.saver import AgentDBSaver
from langgraph_agentdb.serializer import StrictSerializer
from langgraph_agentdb.store import AgentDBStore
from langgraph_agentdb.store_index import StoreIndexConfig

__all__ = ["AgentDBCache", "AgentDBSaver", "AgentDBStore", "StoreIndexConfig", "StrictSerializer"]
