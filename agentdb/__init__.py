"""AgentDB: the embedded database of an AI agent.

Everything public is here and is loaded when it is first used: importing this package imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentdb.aio import AsyncAgentMemories, AsyncAgentStates, AsyncCollection, AsyncDatabase, AsyncTable, open_async
    from agentdb.config import Config
    from agentdb.database import Database, open, restore
    from agentdb.embedding import (
        Embedder,
        EmbedderIdentity,
        EmbedKind,
        ImageEmbedder,
        TokenCounter,
        TokenEmbedder,
        check_vectors,
        embed_texts,
        load_embedder,
    )
    from agentdb.errors import (
        AccessDeniedError,
        AgentDBError,
        ClosedError,
        ConflictError,
        ErrorKind,
        FormatError,
        IntegrityError,
        InvalidInputError,
        MissingDependencyError,
        NotFoundError,
        StorageError,
        UnavailableError,
    )
    from agentdb.filters import (
        And,
        Compare,
        Contains,
        Exists,
        Field,
        Filter,
        In,
        IsNull,
        Not,
        Or,
        TextMatch,
        field,
    )
    from agentdb.llm import LanguageModel, Reranker
    from agentdb.memory import (
        ActrDecay,
        AgentMemories,
        Decay,
        ExponentialDecay,
        HeuristicImportance,
        ImportanceScorer,
        Memory,
        MemoryContext,
        MemoryEvent,
        MemoryPolicies,
        MemoryWrite,
        Occurrence,
        Recalled,
        RecallWeights,
        Statement,
        Use,
        WeibullDecay,
    )
    from agentdb.states import AgentStates, Change, RetentionPolicy, StateType, StateVersion, StateWrite
    from agentdb.storage.deltas import DeltaTable, FrameInfo
    from agentdb.storage.schema import TableSchema
    from agentdb.storage.table import Table
    from agentdb.types import (
        ErasureReceipt,
        Hit,
        Key,
        Metric,
        OnProgress,
        OrderBy,
        Problem,
        Progress,
        Row,
        Statistics,
        TableStatistics,
        VerifyReport,
    )
    from agentdb.vectors.collection import Collection
    from agentdb.vectors.definition import VectorSpec
    from agentdb.vectors.indexes import (
        IndexSpec,
        IvfFlat,
        IvfHnswFlat,
        IvfHnswPq,
        IvfHnswSq,
        IvfPq,
        IvfRq,
        IvfSq,
    )
    from agentdb.vectors.query import Query
    from agentdb.vectors.rows import Batch, Record
    from agentdb.vectors.search import Explanation, SignalPlan
    from agentdb.vectors.upkeep import IndexStatus

__all__ = [
    "AccessDeniedError",
    "ActrDecay",
    "AgentDBError",
    "AgentMemories",
    "AgentStates",
    "And",
    "AsyncAgentMemories",
    "AsyncAgentStates",
    "AsyncCollection",
    "AsyncDatabase",
    "AsyncTable",
    "Batch",
    "Change",
    "ClosedError",
    "Collection",
    "Compare",
    "Config",
    "ConflictError",
    "Contains",
    "Database",
    "Decay",
    "DeltaTable",
    "EmbedKind",
    "Embedder",
    "EmbedderIdentity",
    "ErasureReceipt",
    "ErrorKind",
    "Exists",
    "Explanation",
    "ExponentialDecay",
    "Field",
    "Filter",
    "FormatError",
    "FrameInfo",
    "HeuristicImportance",
    "Hit",
    "ImageEmbedder",
    "ImportanceScorer",
    "In",
    "IndexSpec",
    "IndexStatus",
    "IntegrityError",
    "InvalidInputError",
    "IsNull",
    "IvfFlat",
    "IvfHnswFlat",
    "IvfHnswPq",
    "IvfHnswSq",
    "IvfPq",
    "IvfRq",
    "IvfSq",
    "Key",
    "LanguageModel",
    "Memory",
    "MemoryContext",
    "MemoryEvent",
    "MemoryPolicies",
    "MemoryWrite",
    "Metric",
    "MissingDependencyError",
    "Not",
    "NotFoundError",
    "Occurrence",
    "OnProgress",
    "Or",
    "OrderBy",
    "Problem",
    "Progress",
    "Query",
    "RecallWeights",
    "Recalled",
    "Record",
    "Reranker",
    "RetentionPolicy",
    "Row",
    "SignalPlan",
    "StateType",
    "StateVersion",
    "StateWrite",
    "Statement",
    "Statistics",
    "StorageError",
    "Table",
    "TableSchema",
    "TableStatistics",
    "TextMatch",
    "TokenCounter",
    "TokenEmbedder",
    "UnavailableError",
    "Use",
    "VectorSpec",
    "VerifyReport",
    "WeibullDecay",
    "check_vectors",
    "embed_texts",
    "field",
    "load_embedder",
    "open",
    "open_async",
    "restore",
]

__version__ = "0.1.0"

_EXPORTS = {
    "agentdb.aio": (
        "AsyncAgentMemories",
        "AsyncAgentStates",
        "AsyncCollection",
        "AsyncDatabase",
        "AsyncTable",
        "open_async",
    ),
    "agentdb.config": ("Config",),
    "agentdb.database": ("Database", "open", "restore"),
    "agentdb.embedding": (
        "EmbedKind",
        "Embedder",
        "EmbedderIdentity",
        "ImageEmbedder",
        "TokenCounter",
        "TokenEmbedder",
        "check_vectors",
        "embed_texts",
        "load_embedder",
    ),
    "agentdb.errors": (
        "AccessDeniedError",
        "AgentDBError",
        "ClosedError",
        "ConflictError",
        "ErrorKind",
        "FormatError",
        "IntegrityError",
        "InvalidInputError",
        "MissingDependencyError",
        "NotFoundError",
        "StorageError",
        "UnavailableError",
    ),
    "agentdb.filters": (
        "And",
        "Compare",
        "Contains",
        "Exists",
        "Field",
        "Filter",
        "In",
        "IsNull",
        "Not",
        "Or",
        "TextMatch",
        "field",
    ),
    "agentdb.llm": ("LanguageModel", "Reranker"),
    "agentdb.memory": (
        "ActrDecay",
        "AgentMemories",
        "Decay",
        "ExponentialDecay",
        "HeuristicImportance",
        "ImportanceScorer",
        "Memory",
        "MemoryContext",
        "MemoryEvent",
        "MemoryPolicies",
        "MemoryWrite",
        "Occurrence",
        "RecallWeights",
        "Recalled",
        "Statement",
        "Use",
        "WeibullDecay",
    ),
    "agentdb.states": ("AgentStates", "Change", "RetentionPolicy", "StateType", "StateVersion", "StateWrite"),
    "agentdb.storage.deltas": ("DeltaTable", "FrameInfo"),
    "agentdb.storage.schema": ("TableSchema",),
    "agentdb.storage.table": ("Table",),
    "agentdb.types": (
        "ErasureReceipt",
        "Hit",
        "Key",
        "Metric",
        "OnProgress",
        "OrderBy",
        "Problem",
        "Progress",
        "Row",
        "Statistics",
        "TableStatistics",
        "VerifyReport",
    ),
    "agentdb.vectors.collection": ("Collection",),
    "agentdb.vectors.definition": ("VectorSpec",),
    "agentdb.vectors.indexes": (
        "IndexSpec",
        "IvfFlat",
        "IvfHnswFlat",
        "IvfHnswPq",
        "IvfHnswSq",
        "IvfPq",
        "IvfRq",
        "IvfSq",
    ),
    "agentdb.vectors.query": ("Query",),
    "agentdb.vectors.rows": ("Batch", "Record"),
    "agentdb.vectors.search": ("Explanation", "SignalPlan"),
    "agentdb.vectors.upkeep": ("IndexStatus",),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
