"""Processes that run graphs and are killed: ``python -m support.langgraph_workers NAME ARGUMENT ...``."""

from __future__ import annotations

import asyncio
import operator
import sys
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from agentdb import ConflictError
from langgraph_agentdb import AgentDBSaver

STEPS = 30


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    done: Annotated[list[int], operator.add]


def graph(saver: Any, journal: Path | None, pause_s: float) -> Any:
    """An agent with a scripted model and a tool, which keeps a journal of what it has run."""

    def write(text: str) -> None:
        if journal is not None:
            with journal.open("a") as file:
                file.write(text + "\n")
        time.sleep(pause_s)

    def model(state: State) -> State:
        turn = sum(isinstance(one, AIMessage) for one in state["messages"])
        write(f"model {turn}")
        calls = [{"name": "count", "args": {"n": turn}, "id": f"call {turn}"}] if turn < STEPS else []
        return {"messages": [AIMessage(f"turn {turn}", id=f"ai {turn}", tool_calls=calls)], "done": [turn]}

    def tool(state: State) -> State:
        call = state["messages"][-1].tool_calls[0]
        write(f"tool {call['args']['n']}")
        return {
            "messages": [ToolMessage(str(call["args"]["n"] ** 2), tool_call_id=call["id"], id=f"tool {call['id']}")]
        }

    builder = StateGraph(State)
    builder.add_node("model", model)
    builder.add_node("tool", tool)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", lambda state: "tool" if state["messages"][-1].tool_calls else END)
    builder.add_edge("tool", "model")
    return builder.compile(checkpointer=saver)


def config(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}, "recursion_limit": 200}


def agent(path: str, journal: str, pause_s: str, mode: str) -> None:
    """Begin the thread, or go on with it."""
    with AgentDBSaver(path) as saver:
        built = graph(saver, Path(journal), float(pause_s))
        begun = saver.get_tuple(config("thread")) is not None
        value = None if begun else {"messages": [HumanMessage("count", id="human")], "done": []}
        if mode == "async":
            asyncio.run(built.ainvoke(value, config("thread"), durability="sync"))
        else:
            built.invoke(value, config("thread"), durability="sync")


def race(path: str, name: str, fence: str, go: str) -> None:
    """Run the one thread, together with others; say how it ended."""
    with AgentDBSaver(path, fence=fence == "fence") as saver:
        built = graph(saver, None, 0.002)
        saver.get_tuple(config("thread"))
        while not Path(go).exists():
            time.sleep(0.001)
        try:
            built.invoke({"messages": [HumanMessage(name, id=name)], "done": []}, config("thread"), durability="sync")
            print("done")
        except ConflictError:
            print("conflict")


if __name__ == "__main__":
    {"agent": agent, "race": race}[sys.argv[1]](*sys.argv[2:])
