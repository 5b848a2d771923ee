"""Processes that use a store, and agents that are killed: ``python -m support.store_workers NAME ARGUMENT ...``."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.config import get_store
from langgraph.func import entrypoint, task
from langgraph.store.base import PutOp, SearchOp
from langgraph.types import CachePolicy
from support.store_suite import DIMS, embed

from langgraph_agentdb import AgentDBCache, AgentDBSaver, AgentDBStore

TURNS = 12
PARTS = 3
INDEX: dict[str, Any] = {"dims": DIMS, "embed": embed, "fields": ["text", "parts[*]"]}


def note(journal: Path | None, text: str, pause_s: float) -> None:
    if journal is not None:
        with journal.open("a") as file:
            file.write(text + "\n")
    time.sleep(pause_s)


# --- items ------------------------------------------------------------------------------------------------------------


def item(writer: str, number: int) -> dict[str, Any]:
    """An item of a pair; both say the same number."""
    return {
        "text": f"{writer} says {number}",
        "n": number,
        "parts": [f"part {i} of {number}" for i in range(number % PARTS)],
    }


def write(path: str, writer: str, go: str, count: str) -> None:
    """Put pairs of items, each in one batch, and say when one is there; read those of the others meanwhile."""
    with AgentDBStore(path, index=INDEX) as store:
        while not Path(go).exists():
            time.sleep(0.001)
        for number in range(int(count)):
            pair = {"left": item(writer, number), "right": item(writer, number)}
            puts = [PutOp(("pairs", writer, side), str(number % 5), value) for side, value in pair.items()]
            store.batch([*puts, PutOp(("last",), "writer", {"writer": writer, "text": writer})])
            print(number, flush=True)
            for other in {hit.namespace[1] for hit in store.search(("pairs",), limit=3)}:
                left, right = store.batch([SearchOp(("pairs", other, side), limit=10) for side in ("left", "right")])
                assert {hit.key: hit.value for hit in left} == {hit.key: hit.value for hit in right}, (
                    "half a batch was seen"
                )
            hits = store.search(("pairs", writer), query=f"{writer} says {number}", limit=10)
            exact = [hit.value["n"] for hit in hits if hit.score is not None and hit.score > 0.999]
            assert exact.count(number) == 2, (
                "what was written is not found"
            )  # others may share the hashes of their words


# --- an agent ---------------------------------------------------------------------------------------------------------


class ScriptedModel(BaseChatModel):
    """Remembers a fact, recalls it, and counts, for so many turns; what it says depends on what it was told alone."""

    journal: Any = None
    pause_s: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> ScriptedModel:
        return self

    def _generate(self, messages: list[AnyMessage], *_: Any, **__: Any) -> ChatResult:
        turn = sum(isinstance(one, AIMessage) for one in messages)
        note(self.journal, f"model {turn}", self.pause_s)
        calls = []
        if turn < TURNS:
            name = ("remember", "recall", "square")[turn % 3]
            calls = [{"name": name, "args": {"n": turn}, "id": f"call {turn}"}]
        last = messages[-1].content
        message = AIMessage(f"turn {turn}, after: {last}", id=f"ai {turn}", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])


def agent(saver: Any, store: Any, cache: Any, journal: Path | None, pause_s: float) -> Any:
    """An agent with a scripted model, tools that use the store, and a cached computation."""

    @task(cache_policy=CachePolicy(key_func=lambda n: str(n), ttl=3600))
    def squared(n: int) -> int:
        note(journal, f"squared {n}", pause_s)
        return n * n

    @entrypoint(cache=cache)
    def computing(n: int) -> int:
        return squared(n).result()

    @tool
    def remember(n: int) -> str:
        """Remember a fact."""
        note(journal, f"remember {n}", pause_s)
        get_store().put(("facts", "ann"), f"fact {n % 6}", {"text": f"fact number {n}", "n": n})
        return f"remembered {n}"

    @tool
    def recall(n: int) -> str:
        """Recall what was remembered last."""
        note(journal, f"recall {n}", pause_s)
        found = get_store().search(("facts", "ann"), query=f"fact number {n - 1}", filter={"n": {"$lt": n}})
        return f"recalled {found[0].value['text']} among {len(found)}"

    @tool
    def square(n: int) -> str:
        """Square the half of a number."""
        return f"{n // 6} squared is {computing.invoke(n // 6)}"

    return create_agent(
        ScriptedModel(journal=journal, pause_s=pause_s),
        [remember, recall, square],
        checkpointer=saver,
        store=store,
        cache=cache,
    )


CONFIG: Any = {"configurable": {"thread_id": "thread"}, "recursion_limit": 200}


def plain(messages: list[AnyMessage]) -> list[tuple[Any, ...]]:
    """What of messages does not depend on random ids."""
    return [(type(one).__name__, one.content, getattr(one, "tool_calls", None)) for one in messages]


def run(path: str, journal: str, pause_s: str, mode: str) -> None:
    """Begin the agent's thread, or go on with it."""
    with AgentDBSaver(path) as saver, AgentDBStore(path, index=INDEX) as store, AgentDBCache(path) as cache:
        built = agent(saver, store, cache, Path(journal), float(pause_s))
        begun = saver.get_tuple(CONFIG) is not None
        value = None if begun else {"messages": [HumanMessage("go", id="human")]}
        if mode == "async":
            asyncio.run(built.ainvoke(value, CONFIG, durability="sync"))
        else:
            built.invoke(value, CONFIG, durability="sync")


if __name__ == "__main__":
    {"write": write, "run": run}[sys.argv[1]](*sys.argv[2:])
