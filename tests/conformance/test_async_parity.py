"""The asynchronous twins offer what the synchronous classes offer, under the same names, signatures and documentation."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa
import pytest

import agentdb
from agentdb.aio import (
    AsyncAgentMemories,
    AsyncAgentStates,
    AsyncCollection,
    AsyncDatabase,
    AsyncDocuments,
    AsyncTable,
)
from agentdb.database import Database
from agentdb.memory import AgentMemories
from agentdb.rag import Documents
from agentdb.states import AgentStates
from agentdb.storage.table import Table
from agentdb.types import Row
from agentdb.vectors.collection import Collection
from agentdb.vectors.rows import Batch, Record

PAIRS = [
    (Database, AsyncDatabase),
    (Table, AsyncTable),
    (AgentStates, AsyncAgentStates),
    (AgentMemories, AsyncAgentMemories),
    (Documents, AsyncDocuments),
    (Collection, AsyncCollection),
]

# For managers, which are synchronous: hooks that only store a callable, how the engine of a path is found, and what collections
# are searched and indexed by.
NOT_FOR_TASKS = {
    Database: {"open_path", "set_cold_encoder", "add_maintenance"},
    Table: {
        "build_index",
        "build_text_index",
        "cold_rows",
        "cold_vectors",
        "drop_index",
        "follow",
        "index_info",
        "is_plain_view",
        "match_cold",
        "nearest_cold",
        "read",
        "sample_vectors",
        "text_frequencies",
        "try_flush",
    },
}
# The way from a twin to the synchronous object.
ONLY_FOR_TASKS = {"sync"}
# Read without touching the disk; every other property is awaited.
PLAIN_PROPERTIES = {"config", "in_transaction", "name", "path", "policies", "read_only"}

AT_ONCE = {
    "Iterator[Row]": AsyncIterator[Row],
    "Iterator[str]": AsyncIterator[str],
    "Iterator[Record]": AsyncIterator[Record],
    "Iterator[Batch]": AsyncIterator[Batch],
    "pa.RecordBatchReader": AsyncIterator[pa.RecordBatch],
    "Iterator[None]": "AbstractAsyncContextManager[None]",
}
"""What gives something that is awaited in pieces; everything else is a coroutine."""
AWAITED = {"Table": "AsyncTable", "Collection": "AsyncCollection"}


def members(of: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(of, name) for name in dir(of) if not name.startswith("_")}


CASES = [
    pytest.param(sync, twin, name, id=f"{twin.__name__}.{name}")
    for sync, twin in PAIRS
    for name in sorted(members(sync).keys() - NOT_FOR_TASKS.get(sync, set()))
]


@pytest.mark.parametrize(("sync", "twin"), PAIRS, ids=[twin.__name__ for _, twin in PAIRS])
def test_same_names(sync: type, twin: type) -> None:
    offered = members(sync).keys() - NOT_FOR_TASKS.get(sync, set())
    assert members(twin).keys() - ONLY_FOR_TASKS == offered
    assert set(sync.__annotations__) == set(twin.__annotations__)


@pytest.mark.parametrize(("sync", "twin", "name"), CASES)
def test_same_signature(sync: type, twin: type, name: str) -> None:
    one, other = members(sync)[name], members(twin)[name]
    if isinstance(one, property):
        assert isinstance(other, property)
        kind = inspect.signature(one.fget).return_annotation
        wanted = kind if name in PLAIN_PROPERTIES else f"Awaitable[{kind}]"
        assert inspect.signature(other.fget).return_annotation == wanted
        return
    mine, theirs = inspect.signature(other), inspect.signature(one)
    assert list(mine.parameters.values()) == list(theirs.parameters.values())
    returns = theirs.return_annotation
    if returns in AT_ONCE:
        assert mine.return_annotation == AT_ONCE[returns]
        assert not inspect.iscoroutinefunction(other)
    else:
        assert mine.return_annotation == AWAITED.get(returns, returns)
        assert "Iterator" not in returns
        assert inspect.iscoroutinefunction(other)


@pytest.mark.parametrize(("sync", "twin", "name"), CASES)
def test_same_documentation(sync: type, twin: type, name: str) -> None:
    one, other = members(sync)[name].__doc__, members(twin)[name].__doc__
    assert one
    assert inspect.cleandoc(other) == inspect.cleandoc(one)


@pytest.mark.parametrize("name", ["__enter__", "__exit__"])
def test_same_blocks(name: str) -> None:
    for sync, twin in PAIRS:
        assert hasattr(sync, name) == hasattr(twin, name.replace("__e", "__ae"))


def test_open_async_is_open() -> None:
    mine, theirs = inspect.signature(agentdb.open_async), inspect.signature(agentdb.open)
    assert mine.parameters == theirs.parameters
    first, _, rest = inspect.getdoc(agentdb.open).partition("\n")
    first_async, _, rest_async = inspect.getdoc(agentdb.open_async).partition("\n")
    assert rest_async == rest
    assert first_async.partition(".")[0] == first.partition(".")[0]
