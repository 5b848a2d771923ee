"""Real graphs: what they do with InMemorySaver they do with AgentDBSaver, rows hot or cold, sync and async."""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.cache.base import BaseCache
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import CachePolicy, Command, Overwrite, Send, interrupt

import agentdb
from agentdb import Config
from langgraph_agentdb import AgentDBCache, AgentDBSaver

CONFIG = {"configurable": {"thread_id": "thread"}}
TEMPERATURES = {
    "hot": Config(maintenance=False),
    "cold": Config(flush_rows=1, flush_age_s=0.01, tick_s=0.01),
}


class Runner:
    """Drives a graph by its sync or its async methods."""

    def __init__(self, saver: BaseCheckpointSaver, *, is_async: bool) -> None:
        self.saver = saver
        self.is_async = is_async
        self.loop = asyncio.new_event_loop() if is_async else None

    def call(self, graph: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.loop is None:
            return getattr(graph, name)(*args, **kwargs)
        return self.loop.run_until_complete(getattr(graph, f"a{name}")(*args, **kwargs))

    def history(self, graph: Any, config: Any = CONFIG, **kwargs: Any) -> list[Any]:
        if self.loop is None:
            return list(graph.get_state_history(config, **kwargs))

        async def collect() -> list[Any]:
            return [one async for one in graph.aget_state_history(config, **kwargs)]

        return self.loop.run_until_complete(collect())

    def close(self) -> None:
        if self.loop is not None:
            self.loop.close()


@pytest.fixture(params=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return request.param == "async"


@pytest.fixture(params=list(TEMPERATURES))
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(tmp_path / "db", config=TEMPERATURES[request.param]) as opened:
        yield opened


@pytest.fixture
def alike(db, is_async):
    """Run a scenario on both savers and hold what it returns equal."""
    runners: list[Runner] = []

    def run(scenario: Callable[[Runner], Any]) -> Any:
        found = []
        for saver in (InMemorySaver(), AgentDBSaver(db)):
            runner = Runner(saver, is_async=is_async)
            runners.append(runner)
            found.append(scenario(runner))
        assert found[1] == found[0]
        return found[1]

    yield run
    for one in runners:
        one.close()


def snapshot(state: Any) -> dict[str, Any]:
    """What of a state does not depend on random ids."""
    return {
        "values": state.values,
        "next": state.next,
        "source": (state.metadata or {}).get("source"),
        "step": (state.metadata or {}).get("step"),
        "has parent": state.parent_config is not None,
        "tasks": [
            (task.name, task.path, [one.value for one in task.interrupts], task.error, task.result)
            for task in state.tasks
        ],
    }


def trail(runner: Runner, graph: Any, config: Any = CONFIG, **kwargs: Any) -> list[dict[str, Any]]:
    return [snapshot(one) for one in runner.history(graph, config, **kwargs)]


class Log(TypedDict):
    log: Annotated[list[str], operator.add]


def note(text: str) -> Callable[[Log], Log]:
    return lambda _: {"log": [text]}


def line(saver: BaseCheckpointSaver, *names: str, **options: Any) -> Any:
    builder = StateGraph(Log)
    for name in names:
        builder.add_node(name, note(name))
    for first, second in zip((START, *names), (*names, END), strict=True):
        builder.add_edge(first, second)
    return builder.compile(checkpointer=saver, **options)


# ------------------------------------------------------------------------------------------------ interrupts and resume


def test_interrupts_and_resume(alike):
    def scenario(runner: Runner) -> Any:
        def ask(state: Log) -> Log:
            first = interrupt({"question": "name?", "so far": len(state["log"])})
            second = interrupt({"question": "age?"})
            return {"log": [f"{first} is {second}"]}

        builder = StateGraph(Log)
        builder.add_node("begin", note("begin"))
        builder.add_node("ask", ask)
        builder.add_node("end", note("end"))
        for a, b in ((START, "begin"), ("begin", "ask"), ("ask", "end"), ("end", END)):
            builder.add_edge(a, b)
        graph = builder.compile(checkpointer=runner.saver)
        seen = [runner.call(graph, "invoke", {"log": ["input"]}, CONFIG)["log"]]
        states = [snapshot(runner.call(graph, "get_state", CONFIG))]
        for answer in ("Ada", 36):
            seen.append(runner.call(graph, "invoke", Command(resume=answer), CONFIG)["log"])
            states.append(snapshot(runner.call(graph, "get_state", CONFIG)))
        return seen, states, trail(runner, graph)

    seen, states, _ = alike(scenario)
    assert seen[-1] == ["input", "begin", "Ada is 36", "end"]
    assert states[0]["tasks"][0][2] == [{"question": "name?", "so far": 2}]
    assert states[1]["tasks"][0][2] == [{"question": "age?"}]


def test_interrupts_of_parallel_tasks(alike):
    def scenario(runner: Runner) -> Any:
        def ask(name: str) -> Callable[[Log], Log]:
            return lambda _: {"log": [f"{name}: {interrupt(name)}"]}

        builder = StateGraph(Log)
        for name in ("a", "b", "c"):
            builder.add_node(name, ask(name) if name != "c" else note("c done"))
            builder.add_edge(START, name)
        graph = builder.compile(checkpointer=runner.saver)
        runner.call(graph, "invoke", {"log": []}, CONFIG)
        state = runner.call(graph, "get_state", CONFIG)
        answers = {one.id: one.value.upper() for task in state.tasks for one in task.interrupts}
        done = runner.call(graph, "invoke", Command(resume=answers), CONFIG)
        return sorted(one.value for task in state.tasks for one in task.interrupts), done["log"], trail(runner, graph)

    asked, log, _ = alike(scenario)
    assert asked == ["a", "b"]
    assert log == ["a: A", "b: B", "c done"]


def test_static_breakpoints(alike):
    def scenario(runner: Runner) -> Any:
        graph = line(runner.saver, "a", "b", "c", interrupt_before=["b"], interrupt_after=["b"])
        found = []
        for value in ({"log": ["in"]}, None, None):
            runner.call(graph, "invoke", value, CONFIG)
            found.append(snapshot(runner.call(graph, "get_state", CONFIG)))
        return found, trail(runner, graph)

    found, _ = alike(scenario)
    assert [one["next"] for one in found] == [("b",), ("c",), ()]


def test_an_error_keeps_what_succeeded(alike):
    def scenario(runner: Runner) -> Any:
        calls = {"a": 0, "b": 0}

        def a(_: Log) -> Log:
            calls["a"] += 1
            return {"log": ["a"]}

        def is_kept() -> bool:
            found = runner.saver.get_tuple(CONFIG)
            return found is not None and any(channel == "log" for _, channel, _ in found.pending_writes or ())

        def b(_: Log) -> Log:
            calls["b"] += 1
            if calls["b"] == 1:
                while not is_kept():  # LangGraph drops what has not succeeded before something fails
                    time.sleep(0.01)
                raise ValueError("first time")
            return {"log": ["b"]}

        builder = StateGraph(Log)
        builder.add_node("a", a)
        builder.add_node("b", b)
        builder.add_edge(START, "a")
        builder.add_edge(START, "b")
        graph = builder.compile(checkpointer=runner.saver)
        with pytest.raises(ValueError, match="first time"):
            runner.call(graph, "invoke", {"log": []}, CONFIG)
        failed = [(task.name, task.error) for task in runner.call(graph, "get_state", CONFIG).tasks]
        return failed, runner.call(graph, "invoke", None, CONFIG), calls, trail(runner, graph)

    failed, done, calls, _ = alike(scenario)
    assert dict(failed)["b"] is not None
    assert done == {"log": ["a", "b"]}
    assert calls == {"a": 1, "b": 2}


# ------------------------------------------------------------------------------------------------------------ subgraphs


@pytest.mark.parametrize("inner_saver", [None, True], ids=["per call", "stateful"])
def test_subgraphs(alike, inner_saver):
    def scenario(runner: Runner) -> Any:
        def ask(_: Log) -> Log:
            return {"log": [f"inner {interrupt('inside?')}"]}

        inner = StateGraph(Log)
        inner.add_node("ask", ask)
        inner.add_node("after", note("inner end"))
        for a, b in ((START, "ask"), ("ask", "after"), ("after", END)):
            inner.add_edge(a, b)
        outer = StateGraph(Log)
        outer.add_node("before", note("before"))
        outer.add_node("sub", inner.compile(checkpointer=inner_saver))
        outer.add_node("after", note("after"))
        for a, b in ((START, "before"), ("before", "sub"), ("sub", "after"), ("after", END)):
            outer.add_edge(a, b)
        graph = outer.compile(checkpointer=runner.saver)
        runner.call(graph, "invoke", {"log": ["in"]}, CONFIG)
        state = runner.call(graph, "get_state", CONFIG, subgraphs=True)
        inside = snapshot(state.tasks[0].state)
        first = runner.call(graph, "invoke", Command(resume="yes"), CONFIG)
        runner.call(graph, "invoke", {"log": ["again"]}, CONFIG)
        second = runner.call(graph, "invoke", Command(resume="no"), CONFIG)
        return inside, first, second, trail(runner, graph)

    inside, first, _, _ = alike(scenario)
    assert inside["next"] == ("ask",)
    assert first["log"][-2:] == ["inner end", "after"]


# ------------------------------------------------------------------------------------------------- time travel and forks


def test_time_travel_and_forks(alike):
    def scenario(runner: Runner) -> Any:
        graph = line(runner.saver, "a", "b", "c")
        runner.call(graph, "invoke", {"log": ["in"]}, CONFIG)
        states = runner.history(graph)
        at_b = next(one for one in states if one.next == ("b",))
        replayed = runner.call(graph, "invoke", None, at_b.config)
        forked = runner.call(graph, "update_state", at_b.config, {"log": ["by hand"]})
        branch = runner.call(graph, "invoke", None, forked)
        rewound = runner.call(graph, "get_state", at_b.config)
        newest = runner.call(graph, "get_state", CONFIG)
        by_source = trail(runner, graph, filter={"source": "update"})
        limited = trail(runner, graph, limit=2)
        before = trail(runner, graph, before=at_b.config)
        return replayed, branch, snapshot(rewound), snapshot(newest), by_source, limited, before, trail(runner, graph)

    replayed, branch, rewound, newest, by_source, limited, before, everything = alike(scenario)
    assert replayed == {"log": ["in", "a", "b", "c"]}
    assert branch["log"][:3] == ["in", "a", "by hand"]
    assert rewound["values"] == {"log": ["in", "a"]}
    assert newest["values"] == branch
    assert len(by_source) == 1
    assert len(limited) == 2
    assert 0 < len(before) < len(everything)


def test_copies_and_updates_in_bulk(alike):
    def scenario(runner: Runner) -> Any:
        graph = line(runner.saver, "a", "b")
        runner.call(graph, "invoke", {"log": ["in"]}, CONFIG)
        at_b = next(one for one in runner.history(graph) if one.next == ("b",))
        copied = runner.call(graph, "update_state", at_b.config, None, as_node="__copy__")
        runner.call(graph, "invoke", None, copied)
        runner.call(graph, "update_state", CONFIG, {"log": ["x"]}, as_node="a")
        runner.call(graph, "update_state", CONFIG, None, as_node=END)
        return trail(runner, graph)

    assert len(alike(scenario)) > 6


# ------------------------------------------------------------------------------------------------------------ durability


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_durability_modes(alike, durability):
    def scenario(runner: Runner) -> Any:
        graph = line(runner.saver, "a", "b", "c", interrupt_before=["c"])
        first = runner.call(graph, "invoke", {"log": ["in"]}, CONFIG, durability=durability)
        between = trail(runner, graph)
        second = runner.call(graph, "invoke", None, CONFIG, durability=durability)
        return first, between, second, trail(runner, graph)

    _, between, second, _ = alike(scenario)
    assert second == {"log": ["in", "a", "b", "c"]}
    assert (len(between) == 1) is (durability == "exit")


# ----------------------------------------------------------------------------------------------------- parallel supersteps


def test_parallel_supersteps(alike):
    def scenario(runner: Runner) -> Any:
        class Plan(TypedDict):
            jobs: list[int]
            log: Annotated[list[int], operator.add]

        builder = StateGraph(Plan)
        builder.add_node("plan", lambda _: {"jobs": list(range(60))})
        builder.add_node("work", lambda state: {"log": [state["job"]]})
        builder.add_edge(START, "plan")
        builder.add_conditional_edges("plan", lambda state: [Send("work", {"job": n}) for n in state["jobs"]], ["work"])
        graph = builder.compile(checkpointer=runner.saver)
        done = runner.call(graph, "invoke", {"jobs": [], "log": []}, CONFIG)
        return done, trail(runner, graph)

    done, _ = alike(scenario)
    assert done["log"] == list(range(60))


# ---------------------------------------------------------------------------------------------------------- delta channels


def joined(state: list[str], writes: list[list[str]]) -> list[str]:
    return [*state, *(one for write in writes for one in write)]


class DeltaLog(TypedDict):
    log: Annotated[list[str], DeltaChannel(joined, list, snapshot_frequency=4)]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_delta_channels(alike, durability):
    def scenario(runner: Runner) -> Any:
        builder = StateGraph(DeltaLog)
        for name in ("a", "b"):
            builder.add_node(name, note(name))
        # Both write the channel in one superstep: their order is that of their paths.
        builder.add_edge(START, "a")
        builder.add_edge(START, "b")
        graph = builder.compile(checkpointer=runner.saver)
        for i in range(7):
            runner.call(graph, "invoke", {"log": [f"input {i}"]}, CONFIG, durability=durability)
        states = runner.history(graph)
        values = [one.values.get("log") for one in states]
        old = next(one for one in states if len(one.values.get("log") or []) == 9)
        runner.call(graph, "update_state", old.config, {"log": ["fork"]}, as_node="a")
        forked = runner.call(graph, "get_state", CONFIG).values
        runner.call(graph, "update_state", CONFIG, {"log": Overwrite(["reset"])}, as_node="a")
        again = runner.call(graph, "invoke", {"log": ["go on"]}, CONFIG, durability=durability)
        return values, forked, again, trail(runner, graph)

    values, forked, again, _ = alike(scenario)
    assert len(values[0]) == 21
    assert forked["log"][-1] == "fork"
    assert again["log"] == ["reset", "go on", "a", "b"]


def test_delta_channels_survive_removal_and_copies(db, is_async):
    runner = Runner(AgentDBSaver(db), is_async=is_async)
    builder = StateGraph(DeltaLog)
    builder.add_node("a", lambda _: {"log": ["a"]})
    builder.add_edge(START, "a")
    graph = builder.compile(checkpointer=runner.saver)
    for i in range(9):
        runner.call(graph, "invoke", {"log": [str(i)]}, {**CONFIG, "metadata": {"run_id": f"run {i}"}})
    expected = runner.call(graph, "get_state", CONFIG).values["log"]
    assert len(expected) == 18
    before = len(runner.history(graph))

    runner.call(runner.saver, "copy_thread", "thread", "copy")
    copy = {"configurable": {"thread_id": "copy"}}
    assert [one.values for one in runner.history(graph, copy)] == [one.values for one in runner.history(graph)]

    runner.call(runner.saver, "delete_for_runs", [f"run {i}" for i in range(8)])
    assert runner.call(graph, "get_state", CONFIG).values["log"] == expected
    assert [one.values["log"] for one in runner.history(graph)[:2]] == [expected, expected[:-1]]
    runner.call(runner.saver, "prune", ["thread"])
    assert 1 <= len(runner.history(graph)) < before
    assert runner.call(graph, "get_state", CONFIG).values["log"] == expected

    for config in (CONFIG, copy):
        done = runner.call(graph, "invoke", {"log": ["on"]}, config)
        assert done["log"] == [*expected, "on", "a"]
    runner.close()


# ------------------------------------------------------------------------------------------------------------ messages


def test_a_conversation(alike):
    class State(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    def scenario(runner: Runner) -> Any:
        def answer(state: State) -> State:
            turn = len(state["messages"])
            return {"messages": [AIMessage(f"answer {turn}", id=f"ai {turn}", tool_calls=[])]}

        builder = StateGraph(State)
        builder.add_node("answer", answer)
        builder.add_edge(START, "answer")
        graph = builder.compile(checkpointer=runner.saver)
        for i in range(12):
            runner.call(graph, "invoke", {"messages": [HumanMessage(f"question {i}", id=f"human {i}")]}, CONFIG)
        runner.call(graph, "update_state", CONFIG, {"messages": [RemoveMessage(id="human 3")]})
        return [(one["values"], one["source"], one["step"]) for one in trail(runner, graph)]

    newest = alike(scenario)[0][0]["messages"]
    assert len(newest) == 23
    assert all(type(one) in {HumanMessage, AIMessage} for one in newest)


# -------------------------------------------------------------------------------------------------------------- cache


def test_cached_nodes(db, is_async):
    calls = []

    def slow(state: Log) -> Log:
        calls.append(1)
        return {"log": [f"slow {len(state['log'])}"]}

    def graph(cache: BaseCache) -> Any:
        builder = StateGraph(Log)
        builder.add_node("slow", slow, cache_policy=CachePolicy(ttl=60))
        builder.add_edge(START, "slow")
        return builder.compile(cache=cache)

    runner = Runner(AgentDBSaver(db), is_async=is_async)
    for _ in range(2):
        with AgentDBCache(db) as cache:
            for _ in range(2):
                assert runner.call(graph(cache), "invoke", {"log": ["x"]}) == {"log": ["x", "slow 1"]}
    assert len(calls) == 1
    with AgentDBCache(db) as cache:
        runner.call(graph(cache), "clear_cache")
        runner.call(graph(cache), "invoke", {"log": ["x"]})
    assert len(calls) == 2
    runner.close()
