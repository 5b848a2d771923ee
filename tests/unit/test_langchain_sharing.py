"""What every class of the package keeps to: one database for a path, closed cleanly, used by any thread and event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation

import agentdb
from agentdb import ClosedError, InvalidInputError
from agentdb_embedders import HashingEmbedder
from langchain_agentdb import (
    AgentDBByteStore,
    AgentDBChatMemory,
    AgentDBChatMessageHistory,
    AgentDBDocumentIndex,
    AgentDBLLMCache,
    AgentDBMemoryMiddleware,
    AgentDBMemoryRetriever,
    AgentDBMemoryToolkit,
    AgentDBRecordManager,
    AgentDBRetriever,
    AgentDBSemanticCache,
    AgentDBVectorMemory,
    AgentDBVectorStore,
)

EMBEDDER = HashingEmbedder(16)


class Kind(NamedTuple):
    """A class, what a thread writes with it, and what is found of that, each also when awaited."""

    make: Callable[[Any], Any]
    write: Callable[[Any, str], Any]
    awrite: Callable[[Any, str], Any]
    count: Callable[[Any], int]
    acount: Callable[[Any], Any]


async def counted(found: Any) -> int:
    return len(await found)


def answered(cache: Any, name: str) -> tuple[str, str, list[Generation]]:
    return name, "m", [Generation(text=name)]


async def keys_of(store: AgentDBByteStore) -> int:
    return len([one async for one in store.ayield_keys()])


WRITERS = {
    "vector store": Kind(
        lambda at: AgentDBVectorStore(EMBEDDER, at),
        lambda one, name: one.add_texts([name], ids=[name]),
        lambda one, name: one.aadd_texts([name], ids=[name]),
        lambda one: len(one.similarity_search("x", k=999)),
        lambda one: counted(one.asimilarity_search("x", k=999)),
    ),
    "document index": Kind(
        lambda at: AgentDBDocumentIndex(EMBEDDER, at, collection="indexed", k=999),
        lambda one, name: one.upsert([Document(name, id=name)]),
        lambda one, name: one.aupsert([Document(name, id=name)]),
        lambda one: len(one.invoke("x")),
        lambda one: counted(one.ainvoke("x")),
    ),
    "byte store": Kind(
        AgentDBByteStore,
        lambda one, name: one.mset([(name, b"x")]),
        lambda one, name: one.amset([(name, b"x")]),
        lambda one: len(list(one.yield_keys())),
        keys_of,
    ),
    "history": Kind(
        lambda at: AgentDBChatMessageHistory(at, session_id="s"),
        lambda one, name: one.add_messages([HumanMessage(name)]),
        lambda one, name: one.aadd_messages([HumanMessage(name)]),
        lambda one: len(one.messages),
        lambda one: counted(one.aget_messages()),
    ),
    "record manager": Kind(
        lambda at: AgentDBRecordManager(at, namespace="n"),
        lambda one, name: one.update([name]),
        lambda one, name: one.aupdate([name]),
        lambda one: len(one.list_keys()),
        lambda one: counted(one.alist_keys()),
    ),
    "chat memory": Kind(
        lambda at: AgentDBChatMemory(at, session_id="t", return_messages=True),
        lambda one, name: one.chat_memory.add_user_message(name),
        lambda one, name: one.chat_memory.aadd_messages([HumanMessage(name)]),
        lambda one: len(one.load_memory_variables({})["history"]),
        lambda one: counted(one.chat_memory.aget_messages()),
    ),
    "vector memory": Kind(
        lambda at: AgentDBVectorMemory(EMBEDDER, at, session_id="t", k=999),
        lambda one, name: one.save_context({"i": name}, {"o": name}),
        lambda one, name: one.asave_context({"i": name}, {"o": name}),
        lambda one: one.load_memory_variables({"i": "x"})["history"].count("i: "),
        lambda one: asyncio.to_thread(lambda: one.load_memory_variables({"i": "x"})["history"].count("i: ")),
    ),
    "cache": Kind(
        AgentDBLLMCache,
        lambda one, name: one.update(*answered(one, name)),
        lambda one, name: one.aupdate(*answered(one, name)),
        lambda one: one._connection().table.count(),
        lambda one: asyncio.to_thread(lambda: one._connection().table.count()),
    ),
}
OTHERS: dict[str, Callable[[Any], Any]] = {
    "semantic cache": lambda at: AgentDBSemanticCache(EMBEDDER, at),
    "retriever": lambda at: AgentDBRetriever(at, collection="langchain", embedding=EMBEDDER),
    "memory retriever": lambda at: AgentDBMemoryRetriever(at, agent_id="a"),
    "toolkit": lambda at: AgentDBMemoryToolkit(at, agent_id="a"),
    "middleware": lambda at: AgentDBMemoryMiddleware(at, agent_id="a", has_tools=True),
}
MAKERS = {**{name: one.make for name, one in WRITERS.items()}, **OTHERS}


def opened_below(path: Path) -> list[str]:
    """The files of a directory that this process has open."""
    found = []
    for one in Path("/proc/self/fd").iterdir():
        try:
            target = str(one.readlink())
        except OSError:  # closed meanwhile, by whatever else runs here
            continue
        if target.startswith(str(path)):
            found.append(target)
    return found


def test_all_of_one_path_share_one_database_and_leave_nothing_open(db_path: Path) -> None:
    before = set(threading.enumerate())
    parts = {name: make(str(db_path) if i % 2 else db_path) for i, (name, make) in enumerate(MAKERS.items())}
    assert not db_path.exists(), "making one opens nothing"
    engines = {id(one._connection._database()._core) for one in parts.values()}
    assert len(engines) == 1
    for name, kind in WRITERS.items():
        kind.write(parts[name], "a")
    parts["semantic cache"].update(*answered(None, "a"))
    assert parts["memory retriever"].invoke("a") == []
    assert "Nothing is remembered" in parts["middleware"].tools[1].invoke({"query": "a"})
    assert len(parts["retriever"].invoke("a")) == 1
    for name in list(parts)[::2]:
        parts[name].close()
        with pytest.raises(ClosedError):
            parts[name]._connection()
    for name, kind in WRITERS.items():
        if not parts[name]._connection._is_closed:
            kind.write(parts[name], "b")
            assert kind.count(parts[name]) == 2, name
    assert opened_below(db_path)

    async def close() -> None:
        await asyncio.gather(*(one.aclose() for one in parts.values()))

    asyncio.run(close())
    assert opened_below(db_path) == []
    ours = [one for one in set(threading.enumerate()) - before if one.name.startswith("agentdb")]
    for one in ours:
        one.join(60)  # what has given its answer may yet be on its way out
    assert [one.name for one in ours if one.is_alive()] == []
    with agentdb.open(db_path) as db:
        assert db.verify().ok
        for name, kind in WRITERS.items():
            with kind.make(db) as again:
                assert kind.count(again) == (1 if name in list(parts)[::2] else 2), name
        db.table("_langchain_bytes").count()  # given open, it stays open


class Failing(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise RuntimeError("the embedder is down")

    def embed_query(self, text: str) -> list[float]:
        return [1.0]


def test_a_store_that_could_not_be_filled_leaves_nothing_open(db_path: Path) -> None:
    with AgentDBVectorStore(EMBEDDER, db_path) as other:
        assert other.get_by_ids(["a"]) == []
    for make in (
        lambda: AgentDBVectorStore.from_texts(["a"], Failing(), db_or_path=db_path),
        lambda: AgentDBVectorStore.from_texts(["a"], EMBEDDER, [{"a": object()}], db_or_path=db_path),
        lambda: asyncio.run(AgentDBVectorStore.afrom_texts(["a"], Failing(), db_or_path=db_path)),
        lambda: asyncio.run(AgentDBVectorStore.afrom_texts(["a"], EMBEDDER, [{"a": object()}], db_or_path=db_path)),
    ):
        with pytest.raises((RuntimeError, InvalidInputError)):
            make()
        assert opened_below(db_path) == []


@pytest.mark.parametrize("name", WRITERS)
def test_one_of_each_serves_threads_and_event_loops_at_once(db_path: Path, name: str) -> None:
    kind, failures = WRITERS[name], []
    with agentdb.open(db_path) as db, kind.make(db) as shared:

        async def awaited(i: int) -> None:
            for j in range(3):
                await asyncio.gather(*(kind.awrite(shared, f"loop {i} {j} {k}") for k in range(4)))
                assert await kind.acount(shared) >= 4 * (j + 1)

        def work(i: int) -> None:
            try:
                if i % 2:
                    asyncio.run(awaited(i))
                else:
                    for j in range(12):
                        kind.write(shared, f"thread {i} {j}")
                        assert kind.count(shared) > j
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert failures == []
        assert kind.count(shared) == 48


@pytest.mark.parametrize("given", ["a path", "a database", "a database that is closed"])
def test_whoever_calls_while_it_is_closed_is_told_so_and_loses_nothing(db_path: Path, given: str) -> None:
    with ExitStack() as stack:
        other = stack.enter_context(AgentDBVectorStore(EMBEDDER, db_path))
        db = None if given == "a path" else stack.enter_context(agentdb.open(db_path))
        store = stack.enter_context(AgentDBVectorStore(EMBEDDER, db_path if db is None else db))
        store.add_texts(["first"], ids=["first"])
        acknowledged, ends, busy = ["first"], [], threading.Semaphore(0)

        def work(i: int) -> None:
            try:
                for j in range(1_000_000):
                    name = f"{i} {j}"
                    if i % 2:
                        store.add_texts([name], ids=[name])
                        assert store.similarity_search(name, k=1)
                    else:
                        asyncio.run(store.aadd_texts([name], ids=[name]))
                        assert asyncio.run(store.asimilarity_search(name, k=1))
                    acknowledged.append(name)
                    busy.release()
            except BaseException as error:
                ends.append(type(error))
                busy.release()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for one in threads:
            one.start()
        for _ in range(12):
            assert busy.acquire(timeout=120)
        (db if db is not None and given == "a database that is closed" else store).close()
        for one in threads:
            one.join()
        assert ends == [ClosedError] * 4
        assert {one.id for one in other.get_by_ids(acknowledged)} == set(acknowledged)
