"""LangGraph's checkpoints beside InMemorySaver, SqliteSaver and AsyncSqliteSaver, in one run."""

import asyncio
import gc
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

import agentdb
from benchmarks.harness import Figure, disk_bytes, gate, median, seconds, spread
from langgraph_agentdb import AgentDBSaver

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
    rounds, calls, length = (2, 3, 30) if quick else (15, 20, 300)
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
