"""LlamaIndex on AgentDB: vector, document, index and chat stores and a memory block in the directory of the agent."""

from __future__ import annotations

from importlib.util import find_spec

from agentdb import MissingDependencyError

if find_spec("llama_index") is None or find_spec("llama_index.core") is None:
    raise MissingDependencyError(
        "llama_index_agentdb needs LlamaIndex's interfaces: pip install 'agentdb-lance[llama-index]'"
    )

__all__: list[str] = []
