"""LangChain on AgentDB: vector stores, retrievers, stores, caches and memory in the directory that holds everything else of the agent."""

from __future__ import annotations

from importlib.util import find_spec

from agentdb import MissingDependencyError

if find_spec("langchain_core") is None:
    raise MissingDependencyError(
        "langchain_agentdb needs LangChain's interfaces: pip install 'agentdb-lance[langchain]'"
    )

__all__: list[str] = []
