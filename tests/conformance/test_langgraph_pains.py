"""What users of LangGraph's backends suffer from: each pain shown on the peer, where the installed release still has it, and not here.

====  ================================================  =================================================================
pain                                                    shown, and passed, by
====  ================================================  =================================================================
1     threads grow with the square of their length;     `test_pain_1_growth`; unit/test_langgraph_saver.py (deltas, prune)
      no pruning
2     filter injection                                  `test_pain_2_injection`; hostile values in support/store_suite.py;
                                                        unit/test_langgraph_saver.py (ids, filters)
3     unsafe deserialisation                            `test_pain_3_deserialisation`; unit/test_langgraph_serializer.py
4     namespaces leak by prefix or wildcard             `test_pain_4_leaks` (mended in the releases that are installed);
                                                        support/store_suite.py; unit/test_langgraph_cache.py
5     LlamaIndex on LanceDB: operators, keys            test_llama_index_vector_store.py
6     fake async                                        `test_pain_6_async`; unit tests of saver and store measure the loop
7     several processes: database is locked             `test_pain_7_locked`; fault/test_langgraph_store.py (four
                                                        processes), fault/test_langgraph_processes.py
8     filters that disagree between backends            `test_pain_8_filters`; support/store_suite.py
9     LanceDB's upkeep is left to the user              `test_pain_9_upkeep`
10    one session sees another's                        `test_pain_10_sessions`; test_llama_index_memory.py
11    two workers fork a thread                         `test_pain_11_fencing`; fault/test_langgraph_processes.py
====  ================================================  =================================================================
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde import jsonplus
from langgraph.config import get_store
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore

import agentdb
from agentdb import Config, ConflictError, InvalidInputError
from langgraph_agentdb import AgentDBSaver, AgentDBStore

peer = pytest.importorskip(
    "langgraph.checkpoint.sqlite", reason="the peer langgraph-checkpoint-sqlite is not installed"
)
peer_store = pytest.importorskip(
    "langgraph.store.sqlite", reason="the peer langgraph-checkpoint-sqlite is not installed"
)
peer_aio = pytest.importorskip("langgraph.checkpoint.sqlite.aio", reason="the peer's aiosqlite is not installed")

QUIET = Config(maintenance=False)


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=QUIET) as opened:
        yield opened


def sqlite_saver(path: Path, timeout_s: float = 5.0) -> Any:
    return peer.SqliteSaver(sqlite3.connect(path, timeout=timeout_s, check_same_thread=False))


def sqlite_store(path: Path) -> Any:
    store = peer_store.SqliteStore(sqlite3.connect(path, check_same_thread=False, isolation_level=None))
    store.setup()
    return store


def place(thread: str, checkpoint_id: str | None = None) -> Any:
    more = {} if checkpoint_id is None else {"checkpoint_id": checkpoint_id}
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **more}}


def grow(saver: Any, thread: str, steps: int) -> None:
    """A conversation of so many steps, one message a step."""
    config, messages, version = place(thread), [], None
    for step in range(steps):
        messages.append(HumanMessage(f"message {step} says {uuid6().hex * 8}", id=str(step)))
        version = saver.get_next_version(version, None)
        checkpoint = {
            **empty_checkpoint(),
            "id": str(uuid6(clock_seq=step)),
            "channel_values": {"messages": list(messages)},
            "channel_versions": {"messages": version},
        }
        config = saver.put(config, checkpoint, {"source": "loop", "step": step}, {"messages": version})


def size(folder: Path) -> int:
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


def test_pain_1_growth(tmp_path):
    theirs, ours = {}, {}
    for steps in (60, 240):
        saver = sqlite_saver(tmp_path / f"{steps}.sqlite")
        grow(saver, "thread", steps)
        saver.conn.close()
        theirs[steps] = (tmp_path / f"{steps}.sqlite").stat().st_size
        with agentdb.open(tmp_path / str(steps), config=QUIET) as db:
            grow(AgentDBSaver(db), "thread", steps)
            db.optimize()
        ours[steps] = size(tmp_path / str(steps) / "lance")
    assert theirs[240] > 10 * theirs[60]  # four times the steps, sixteen times the data
    assert ours[240] < 6 * ours[60]
    theirs_again = sqlite_saver(tmp_path / "60.sqlite")
    with pytest.raises(NotImplementedError):
        theirs_again.prune(["thread"])
    theirs_again.conn.close()
    with agentdb.open(tmp_path / "240", config=QUIET) as db:
        saver = AgentDBSaver(db)
        saver.prune(["thread"])
        assert len(list(saver.list(place("thread")))) == 1
        assert len(saver.get_tuple(place("thread")).checkpoint["channel_values"]["messages"]) == 240


HOSTILE = ["zzz' OR 1=1 --", "x') OR ('1'='1", '") OR 1 --', "%", "_", "*", "a' UNION SELECT 1 --", "\\", "$[0]"]


def test_pain_2_injection(tmp_path, db):
    ours, theirs = AgentDBStore(db), sqlite_store(tmp_path / "peer.sqlite")
    for store in (ours, theirs):
        store.put(("a",), "k", {"it's": 1, "name": "x"})
    with pytest.raises(ValueError):
        # It was injectable (CVE-2025-8709); since then a key that is no identifier cannot be asked for at all.
        theirs.search(("a",), filter={"it's": 1})
    theirs.conn.close()
    assert [one.key for one in ours.search(("a",), filter={"it's": 1})] == ["k"]
    saver = AgentDBSaver(db)
    grow(saver, "thread", 1)
    for text in HOSTILE:
        assert ours.search(("a",), filter={"name": text}) == []
        assert ours.search((text,), limit=5) == []
        assert ours.get(("a",), text) is None
        assert list(saver.list(None, filter={"source": text})) == []
        assert list(saver.list(None, filter={text: "loop"})) == []
        assert list(saver.list(place(text))) == []
        assert saver.get_tuple(place("thread", text)) is None
        saver.delete_thread(text)
        ours.delete((text,), text)
    assert len(list(saver.list(place("thread")))) == len(ours.search(())) == 1


def test_pain_3_deserialisation(tmp_path, db):
    proof = tmp_path / "proof"
    parts = ("pathlib", "Path", str(proof), "touch")
    attack = "msgpack", ormsgpack.packb(ormsgpack.Ext(jsonplus.EXT_METHOD_SINGLE_ARG, ormsgpack.packb(parts)))
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
        permissive = peer.SqliteSaver(connection, serde=jsonplus.JsonPlusSerializer(allowed_msgpack_modules=True))
        try:
            permissive.serde.loads_typed(attack)
        except Exception:  # what it makes of the result is no matter
            assert proof.exists()
    constructor = ormsgpack.packb(("subprocess", "call", ["touch", str(proof)]))
    worse = "msgpack", ormsgpack.packb(ormsgpack.Ext(jsonplus.EXT_CONSTRUCTOR_SINGLE_ARG, constructor))
    permissive.serde.loads_typed(worse)
    assert proof.exists()
    proof.unlink()
    for one in (attack, worse):
        with pytest.raises(InvalidInputError):
            AgentDBSaver(db).serde.loads_typed(one)
    assert not proof.exists()


def test_pain_4_leaks(tmp_path, db):
    for store in (AgentDBStore(db), sqlite_store(tmp_path / "peer.sqlite")):
        for namespace in (
            ("tenant",),
            ("tenant1",),
            ("tenant%",),
            ("TENANT",),
            ("tenant_",),
            ("tenant", "x"),
            ("x", "tenant"),
        ):
            store.put(namespace, "secret", {"of": list(namespace)})
        assert {one.namespace for one in store.search(("tenant",))} == {("tenant",), ("tenant", "x")}
        assert {one.namespace for one in store.search(("tenant%",))} == {("tenant%",)}
        assert {one.namespace for one in store.search(("tenant_",))} == {("tenant_",)}
        assert store.list_namespaces(prefix=("tenant",)) == [("tenant",), ("tenant", "x")]
        store.delete(("tenant%",), "secret")
        assert len(store.search(())) == 6
    store.conn.close()


def test_pain_6_async(tmp_path, db):
    async def fake() -> None:
        saver = sqlite_saver(tmp_path / "saver.sqlite")
        with pytest.raises(NotImplementedError):
            await saver.aget_tuple(place("thread"))
        saver.conn.close()
        theirs = sqlite_store(tmp_path / "peer.sqlite")
        with pytest.raises(NotImplementedError):
            await theirs.aget(("a",), "k")
        theirs.conn.close()
        async with peer_aio.AsyncSqliteSaver.from_conn_string(str(tmp_path / "aio.sqlite")) as asynchronous:
            await asynchronous.setup()
            with pytest.raises(asyncio.InvalidStateError):  # its put is not even refused: it waits for its own loop
                asynchronous.get_tuple(place("thread"))

    async def real() -> None:
        saver, store = AgentDBSaver(db), AgentDBStore(db)
        assert await store.aget(("a",), "k") is await saver.aget_tuple(place("thread")) is None
        held, free = threading.Event(), threading.Event()

        def hold() -> None:
            with db.transaction():
                held.set()
                free.wait(60)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(60)
        writing = asyncio.create_task(store.aput(("a",), "k", {"v": 1}))
        ticks = 0
        while ticks < 50:  # the loop goes on while a writer waits for its turn
            await asyncio.sleep(0.001)
            ticks += 1
        assert not writing.done()
        assert await saver.aget_tuple(place("thread")) is None
        free.set()
        await writing
        holder.join()
        # Sync calls inside the loop work.
        grow(saver, "thread", 1)
        assert store.get(("a",), "k").value == {"v": 1}
        assert (await saver.aget_tuple(place("thread"))) is not None

    asyncio.run(fake())
    asyncio.run(real())


def test_pain_7_locked(tmp_path, db):
    path = tmp_path / "peer.sqlite"
    first = sqlite_saver(path)
    first.setup()
    first.conn.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        theirs = sqlite_saver(path, timeout_s=0.2)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            grow(theirs, "thread", 1)
        theirs.conn.close()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with db.transaction():
            db.collection("other", dimension=2)
            held.set()
            done.wait(0.4)  # twice as long as the peer was ready to wait

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    AgentDBStore(db).put(("a",), "k", {"v": 1})
    grow(AgentDBSaver(db), "thread", 1)
    holder.join()
    assert len(list(AgentDBSaver(db).list(place("thread")))) == 1


def test_pain_8_filters(tmp_path, db):
    ours, memory, theirs = AgentDBStore(db), InMemoryStore(), sqlite_store(tmp_path / "peer.sqlite")
    rows: dict[str, Any] = {"a": {"n": 9, "meta": {"lang": "en"}}, "b": {"n": 10}, "c": {"m": 1}, "d": {"n": "10"}}
    for store in (ours, memory, theirs):
        for key, value in rows.items():
            store.put(("r",), key, value)

    def found(store: Any, condition: Any) -> set[str]:
        return {one.key for one in store.search(("r",), filter=condition)}

    with pytest.raises(TypeError):
        found(memory, {"n": {"$gt": 9}})  # a key that is missing somewhere
    with pytest.raises(ValueError):
        found(theirs, {"meta": {"lang": "en"}})  # a nested value is taken for operators
    either = {"$or": [{"n": 9}, {"m": 1}]}
    assert found(memory, either) == set()
    with pytest.raises(ValueError):
        found(theirs, either)
    assert found(memory, {"n": {"$ne": 9}}) != found(theirs, {"n": {"$ne": 9}})
    theirs.conn.close()
    assert found(ours, {"n": {"$gt": 9}}) == {"b"}
    assert found(ours, {"meta": {"lang": "en"}}) == {"a"}
    assert found(ours, either) == {"a", "c"}
    assert found(ours, {"n": {"$ne": 9}}) == {"b", "c", "d"}


def test_pain_9_upkeep(tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="the peer lancedb is not installed")
    table = lancedb.connect(tmp_path / "peer").create_table("t", [{"id": "0", "text": "x"}])
    for number in range(40):
        table.add([{"id": str(number), "text": "x"}])
    assert len(table.list_versions()) > 40
    with agentdb.open(tmp_path / "db", config=QUIET) as db:
        store = AgentDBStore(db)
        for number in range(40):
            store.put(("a",), str(number), {"text": "x"})
            if number % 5 == 4:
                db.flush()
        db.optimize()
        stats = db.stats().tables["_langgraph_items"]
        assert stats.cold_rows == 40
        assert stats.fragments <= 2
        assert len(list((tmp_path / "db").rglob("*.manifest"))) < 40


def test_pain_10_sessions(db):
    saver, store = AgentDBSaver(db), AgentDBStore(db)

    async def model(state: MessagesState) -> Any:
        store = get_store()
        user = state["messages"][0].content
        await asyncio.sleep(0)
        await store.aput(("user", user), "said", {"messages": [one.content for one in state["messages"]]})
        mine = await store.asearch(("user", user))
        assert [one.value["messages"][0] for one in mine] == [user]
        return {"messages": [("ai", f"hello {user}")]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", model)
    builder.add_edge(START, "model")
    graph = builder.compile(checkpointer=saver, store=store)

    async def main() -> list[Any]:
        runs = [graph.ainvoke({"messages": [("human", f"user {n}")]}, place(f"thread {n}")) for n in range(24)]
        return await asyncio.gather(*runs)

    for n, state in enumerate(asyncio.run(main())):
        assert [one.content for one in state["messages"]] == [f"user {n}", f"hello user {n}"]
        kept = saver.get_tuple(place(f"thread {n}")).checkpoint["channel_values"]["messages"]
        assert [one.content for one in kept] == [f"user {n}", f"hello user {n}"]


def test_pain_11_fencing(tmp_path, db):
    def two_workers(saver: Any) -> int:
        """Go on from the same checkpoint twice; return how many children it has then."""
        grow(saver, "thread", 1)
        parent = saver.get_tuple(place("thread")).config
        for worker in range(2):
            checkpoint = {**empty_checkpoint(), "id": str(uuid6()), "channel_values": {}, "channel_versions": {}}
            saver.put(parent, checkpoint, {"source": "loop", "step": 1, "worker": worker}, {})
        parents = [one.parent_config for one in saver.list(place("thread"))]
        return sum(one == parent for one in parents)

    theirs = sqlite_saver(tmp_path / "peer.sqlite")
    for saver in (InMemorySaver(), theirs):
        assert two_workers(saver) == 2  # the thread has forked, and nobody was told
    theirs.conn.close()
    with pytest.raises(ConflictError):
        two_workers(AgentDBSaver(db, fence=True))
    assert len(list(AgentDBSaver(db).list(place("thread")))) == 2
