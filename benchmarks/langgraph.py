"""LangGraph's checkpoints and stores beside InMemorySaver, SqliteSaver, AsyncSqliteSaver, InMemoryStore and SqliteStore."""

import asyncio
import gc
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.store.base import BaseStore, PutOp, SearchItem
from langgraph.store.memory import InMemoryStore
from langgraph.store.sqlite import SqliteStore

import agentdb
from benchmarks.harness import Figure, disk_bytes, gate, median, seconds, spread
from langgraph_agentdb import AgentDBSaver, AgentDBStore

_random = random.Random(1)
_WORDS = [
    f"{_random.choice('bcdfglmnprst')}{_random.choice('aeiou')}{_random.choice('bdlmnrst')}{_random.choice(['', 'en', 'er', 'ing'])}"
    for _ in range(4000)
]


def _message(i: int) -> AnyMessage:
    text = " ".join(_random.choices(_WORDS, k=16))
    made = HumanMessage if i % 2 == 0 else AIMessage
    return made(content=text, id=f"{_random.getrandbits(128):032x}")


def _sqlite(path: Path) -> SqliteSaver:
    return SqliteSaver(sqlite3.connect(path, check_same_thread=False))


class _Thread:
    """A thread whose messages grow: puts a step as LangGraph's loop does."""

    def __init__(self, saver: BaseCheckpointSaver, name: str) -> None:
        self.saver = saver
        self.config = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
        self.messages: list[AnyMessage] = []
        self.versions: dict[str, str] = {}
        self.steps = 0

    def step(self, new: list[AnyMessage], *, writes: bool = True) -> None:
        """Store one step: what the node wrote, and the checkpoint that follows."""
        if writes and "checkpoint_id" in self.config["configurable"]:
            self.saver.put_writes(self.config, [("messages", new)], f"task-{self.steps}", "~__pregel_pull, node")
        self.messages = [*self.messages, *new]
        before = self.versions
        self.versions = {
            **before,
            "messages": self.saver.get_next_version(before.get("messages"), None),
            "branch:to:node": self.saver.get_next_version(before.get("branch:to:node"), None),
        }
        checkpoint = {
            **empty_checkpoint(),
            "v": 4,
            "id": str(uuid6(clock_seq=self.steps)),
            "channel_values": {"messages": self.messages, "branch:to:node": None},
            "channel_versions": self.versions,
            "versions_seen": {"__input__": {}, "node": dict(before)},
            "updated_channels": ["branch:to:node", "messages"],
        }
        del checkpoint["pending_sends"]
        metadata = {"source": "loop", "step": self.steps, "parents": {}}
        self.config = self.saver.put(self.config, checkpoint, metadata, dict(self.versions))
        self.steps += 1


def step(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """One step of a thread of 300 messages, saved and loaded."""
    rounds, calls, length = (2, 3, 30) if quick else (45, 20, 300)
    memory, sqlite = InMemorySaver(), _sqlite(folder / "peer.sqlite")
    with AgentDBSaver(folder / "db") as ours:
        savers: dict[str, BaseCheckpointSaver] = {"agentdb": ours, "sqlite": sqlite, "memory": memory}
        threads = {name: _Thread(saver, "thread") for name, saver in savers.items()}
        history = [_message(i) for i in range(length)]
        for one in threads.values():
            one.step(history, writes=False)
        parts: dict[str, list[tuple[float, float, float]]] = {name: [] for name in savers}
        for _ in range(rounds):
            for name, thread in threads.items():
                gc.collect()
                for _ in range(calls):
                    parts[name].append(_one_step(thread, length))
        with gate("every saver gives back what it was given"):
            for name, thread in threads.items():
                found = thread.saver.get_tuple({"configurable": {"thread_id": "thread"}})
                assert found is not None, name
                assert found.checkpoint["channel_values"]["messages"] == thread.messages, name
                assert found.config["configurable"]["checkpoint_id"] == thread.config["configurable"]["checkpoint_id"]
    sqlite.conn.close()
    totals = {name: [sum(one) for one in taken] for name, taken in parts.items()}
    detail = {f"{name} ms": median(taken) * 1e3 for name, taken in totals.items()}
    for at, what in enumerate(("put_writes", "put", "get_tuple")):
        detail |= {f"{name} {what}": median([one[at] for one in parts[name]]) * 1e3 for name in ("agentdb", "sqlite")}
    detail |= {f"agentdb {key}": value * 1e3 for key, value in spread(totals["agentdb"]).items()}
    ratio = median(totals["agentdb"]) / median(totals["sqlite"])
    yield Figure("put_writes + put + get_tuple, 300 messages: AgentDB / SqliteSaver", ratio, "times", 1, detail=detail)


def _one_step(thread: _Thread, length: int) -> tuple[float, float, float]:
    new = [_message(thread.steps)]
    # The thread stays as long as it is.
    thread.messages = thread.messages[-(length - 1) :]
    saver, config = thread.saver, thread.config
    writing = seconds(lambda: saver.put_writes(config, [("messages", new)], f"task-{thread.steps}", "~pull, node"))
    putting = seconds(lambda: thread.step(new, writes=False))
    getting = seconds(lambda: saver.get_tuple({"configurable": {"thread_id": "thread"}}))
    return writing, putting, getting


def storage(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """A thread of 1,000 steps, one message a step, as it lies on the disk."""
    steps = 60 if quick else 1000
    sqlite = _sqlite(folder / "peer.sqlite")
    messages = [_message(i) for i in range(steps)]
    took = {"agentdb": 0.0, "sqlite": 0.0}
    with AgentDBSaver(folder / "db") as ours:
        mine, theirs = _Thread(ours, "thread"), _Thread(sqlite, "thread")
        for message in messages:
            took["agentdb"] += seconds(lambda message=message: mine.step([message]))
            took["sqlite"] += seconds(lambda message=message: theirs.step([message]))
        with agentdb.open(folder / "db") as db:
            db.optimize()
        ids = [one.config["configurable"]["checkpoint_id"] for one in ours.list(mine.config | _THREAD)]
        loads = []
        with gate("every checkpoint loads as it was saved"):
            assert len(ids) == steps
            for number in _random.sample(range(steps), min(steps, 100)):
                config = {"configurable": {"thread_id": "thread", "checkpoint_id": ids[steps - 1 - number]}}
                found = []
                loads.append(seconds(lambda config=config, found=found: found.append(ours.get_tuple(config))))
                assert found[0].checkpoint["channel_values"]["messages"] == messages[: number + 1]
    sqlite.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sqlite.conn.close()
    ours_bytes, peer_bytes = disk_bytes(folder / "db"), (folder / "peer.sqlite").stat().st_size
    detail = {
        "agentdb MB": ours_bytes / 1e6,
        "sqlite MB": peer_bytes / 1e6,
        "agentdb s": took["agentdb"],
        "sqlite s": took["sqlite"],
        "load a cold checkpoint ms": median(loads) * 1e3,
    }
    yield Figure(
        "1,000-step thread on disk: SqliteSaver / AgentDB",
        peer_bytes / ours_bytes,
        "times",
        20,
        higher=True,
        detail=detail,
    )


_THREAD = {"configurable": {"thread_id": "thread"}}


class _State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def _graph(saver: BaseCheckpointSaver, turns: int):
    async def model(_: _State) -> _State:
        return {"messages": [_message(1)]}

    async def tool(_: _State) -> _State:
        return {"messages": [_message(0)]}

    def follow(state: _State) -> str:
        return "tool" if len(state["messages"]) % (2 * turns) else END

    builder = StateGraph(_State)
    builder.add_node("model", model)
    builder.add_node("tool", tool)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", follow, ["tool", END])
    builder.add_edge("tool", "model")
    return builder.compile(checkpointer=saver)


async def _runs(saver: BaseCheckpointSaver, label: str, count: int, history: int, turns: int) -> float:
    """Return the seconds of so many runs at once, each on its own thread that has a history."""
    graph = _graph(saver, turns)
    configs = [{"configurable": {"thread_id": f"{label}-{i}"}, "recursion_limit": 100} for i in range(count)]
    for config in configs:
        await graph.aupdate_state(config, {"messages": [_message(i) for i in range(history)]}, as_node="tool")
    gc.collect()
    start = time.perf_counter()
    done = await asyncio.gather(*(graph.ainvoke({"messages": [_message(0)]}, config) for config in configs))
    taken = time.perf_counter() - start
    with gate("every run ends with every message"):
        assert all(len(one["messages"]) % (2 * turns) == 0 for one in done)
    return taken


async def _concurrent(folder: Path, history: int, *, quick: bool) -> dict[str, list[float]]:
    rounds, count = (1, 4) if quick else (7, 64)
    taken: dict[str, list[float]] = {"agentdb": [], "sqlite": [], "memory": []}
    async with AsyncExitStack() as stack:
        savers = {
            "agentdb": await stack.enter_async_context(AgentDBSaver(folder / "db")),
            "sqlite": await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(folder / "peer.sqlite"))),
            "memory": InMemorySaver(),
        }
        for i in range(rounds):
            for name, saver in savers.items():
                taken[name].append(await _runs(saver, str(i), count, history=history, turns=10))
    return taken


def concurrent(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """64 graphs run at once in one event loop: conversations that go on for 19 steps, from 20 messages and from 120."""
    for history, bar in ((20, 2), (120, None)):
        (folder / str(history)).mkdir()
        taken = asyncio.run(_concurrent(folder / str(history), history, quick=quick))
        ratios = [theirs / ours for theirs, ours in zip(taken["sqlite"], taken["agentdb"], strict=True)]
        detail = {f"{name} s": median(values) for name, values in taken.items()}
        detail |= {f"ratio {key}": value for key, value in spread(ratios).items()}
        yield Figure(
            f"64 async runs from {history} messages: throughput / AsyncSqliteSaver's",
            median(ratios), "times", bar, higher=True, detail=detail,
        )  # fmt: skip


# --- stores -----------------------------------------------------------------------------------------------------------

_DIMS = 384


def _sqlite_store(path: Path, index: dict[str, Any]) -> tuple[SqliteStore, bool]:
    """Return the peer, and whether it can search by meaning: it needs an SQLite that loads extensions."""
    module = sqlite3
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        try:
            import pysqlite3 as module
        except ImportError:
            module = None
    made = (module or sqlite3).connect(path, check_same_thread=False, isolation_level=None)
    index = {"dims": index["dims"], "embed": index["embed"], "text_fields": index["fields"]}
    store = SqliteStore(made, index=None if module is None else index)
    store.setup()
    return store, module is not None


def _value(i: int) -> dict[str, Any]:
    # By primes: the items of a namespace, which are a thousand apart, have all kinds of scores.
    return {
        "text": f"memory {i}",
        "score": i * 7919 % 10007 % 1000,
        "kind": f"kind {i * 31 % 20}",
        "source": {"turn": i % 50},
    }


class _Searches:
    """What is asked of every store, and whether the answer is right."""

    def __init__(self, vectors: np.ndarray, namespaces: int) -> None:
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.namespaces = namespaces
        self.values = [_value(i) for i in range(len(vectors))]

    def prefix(self, n: int, *, everywhere: bool) -> tuple[str, ...]:
        return ("users",) if everywhere else ("users", f"user {n * 37 % self.namespaces}")

    def filter(self, n: int, *, everywhere: bool) -> dict[str, Any]:
        # One in ten of a namespace; everywhere one in twenty of one in a hundred.
        if everywhere:
            return {"kind": f"kind {n % 20}", "score": {"$gte": 990}}
        return {"score": {"$lt": 100}}

    def members(self, n: int, *, everywhere: bool, filtered: bool) -> list[int]:
        low = 0 if everywhere else n * 37 % self.namespaces
        own = range(low, len(self.vectors), 1 if everywhere else self.namespaces)
        if not filtered:
            return list(own)
        if everywhere:
            return [i for i in own if self.values[i]["kind"] == f"kind {n % 20}" and self.values[i]["score"] >= 990]
        return [i for i in own if self.values[i]["score"] < 100]

    def check(self, found: list[SearchItem], n: int, *, everywhere: bool, filtered: bool, query: str | None) -> None:
        members = self.members(n, everywhere=everywhere, filtered=filtered)
        numbers = [int(one.key) for one in found]
        assert len(found) == min(10, len(members))
        assert set(numbers) <= set(members)
        assert all(one.value == self.values[i] for one, i in zip(found, numbers, strict=True))
        if query is not None:
            asked = self.vectors[int(query.split()[-1])]
            best = np.sort(self.vectors[members] @ asked)[::-1][: len(found)]
            assert np.allclose([one.score for one in found], best, atol=1e-4)


def store(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """100,000 items in 1,000 namespaces, searched by filter, by meaning and by both; in one namespace and in all."""
    items, namespaces, calls, rounds = (3_000, 30, 3, 2) if quick else (100_000, 1_000, 20, 5)
    generator = np.random.default_rng(1)
    searches = _Searches(generator.standard_normal((items, _DIMS)).astype(np.float32), namespaces)

    def embed(texts: list[str]) -> list[list[float]]:
        return searches.vectors[[int(one.split()[-1]) for one in texts]].tolist()

    index: dict[str, Any] = {"dims": _DIMS, "embed": embed, "fields": ["text"]}
    sqlite, has_vectors = _sqlite_store(folder / "peer.sqlite", index)
    with agentdb.open(folder / "db") as db:
        stores: dict[str, BaseStore] = {
            "agentdb": AgentDBStore(db, index=index),
            "memory": InMemoryStore(index=index),
            "sqlite": sqlite,
        }
        loading = {}
        for name, one in stores.items():
            puts = [
                PutOp(("users", f"user {i % namespaces}", "memories"), str(i), searches.values[i]) for i in range(items)
            ]
            batches = [puts[at : at + 1_000] for at in range(0, items, 1_000)]
            loading[f"{name} load s"] = seconds(
                lambda one=one, batches=batches: [one.batch(batch) for batch in batches]
            )
        db.optimize()
        for everywhere in (False, True):
            for by_filter, by_meaning in ((True, False), (False, True), (True, True)):
                asked = {name: one for name, one in stores.items() if has_vectors or name != "sqlite" or not by_meaning}
                slow = everywhere and by_meaning
                yield _searched(
                    asked,
                    searches,
                    # Enough of them that what the collector left cold before each round is a small part.
                    calls=3 if slow else calls if everywhere else 10 * calls,
                    rounds=3 if slow else rounds,
                    everywhere=everywhere,
                    filtered=by_filter,
                    by_meaning=by_meaning,
                )
        yield _single(stores, searches, loading, calls=5 if quick else 100)
    sqlite.conn.close()


def _searched(
    stores: dict[str, BaseStore],
    searches: _Searches,
    *,
    calls: int,
    rounds: int,
    everywhere: bool,
    filtered: bool,
    by_meaning: bool,
) -> Figure:
    def ask(one: BaseStore, n: int) -> list[SearchItem]:
        condition = searches.filter(n, everywhere=everywhere) if filtered else None
        query = f"query {n}" if by_meaning else None
        return one.search(searches.prefix(n, everywhere=everywhere), filter=condition, query=query)

    first = {name: seconds(lambda one=one: ask(one, 0)) for name, one in stores.items()}
    with gate("every store finds what is there"):
        for one in stores.values():
            for n in range(calls):
                query = f"query {n}" if by_meaning else None
                searches.check(ask(one, n), n, everywhere=everywhere, filtered=filtered, query=query)
    taken: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(rounds):
        for name, one in stores.items():
            gc.collect()
            taken[name] += [seconds(lambda one=one, n=n: ask(one, n)) for n in range(calls)]
    detail = {f"{name} ms": median(values) * 1e3 for name, values in taken.items()}
    detail |= {f"agentdb {key} ms": value * 1e3 for key, value in spread(taken["agentdb"]).items()}
    detail["agentdb first ms"] = first["agentdb"] * 1e3
    fastest = min(median(values) for name, values in taken.items() if name != "agentdb")
    what = " and ".join(["filter"] * filtered + ["meaning"] * by_meaning)
    where = "all namespaces" if everywhere else "one namespace"
    name = f"store search by {what}, {where}: fastest peer / AgentDB"
    return Figure(name, fastest / median(taken["agentdb"]), "times", 5, higher=True, detail=detail)


def _single(stores: dict[str, BaseStore], searches: _Searches, loading: dict[str, float], *, calls: int) -> Figure:
    """One item put and got; what is on the disk is durable with AgentDB and SqliteStore."""
    work: dict[str, Callable[[BaseStore, int], Any]] = {
        "put": lambda one, n: one.put(("users", f"user {n}", "new"), str(n), searches.values[n]),
        "get": lambda one, n: one.get(("users", f"user {n}", "new"), str(n)),
    }
    detail: dict[str, float] = dict(loading)
    times: dict[str, float] = {}
    for what, call in work.items():
        for name, one in stores.items():
            values = [seconds(lambda one=one, n=n, call=call: call(one, n)) for n in range(calls)]
            times[f"{name} {what} ms"] = median(values) * 1e3
    with gate("what was put is got"):
        for one in stores.values():
            assert all(one.get(("users", f"user {n}", "new"), str(n)).value == searches.values[n] for n in range(calls))
    return Figure("store: put of one item, embedded, durable", times["agentdb put ms"], "ms", detail=times | detail)
