"""A LangGraph agent whose every step is in the database: interrupted, resumed, rewound, copied and pruned."""

import operator
import tempfile
from pathlib import Path
from typing import Annotated, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import CachePolicy, Command, interrupt

import agentdb
from langgraph_agentdb import AgentDBCache, AgentDBSaver


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    booked: Annotated[list[str], operator.add]


def look_up(_: State) -> State:
    return {"messages": [AIMessage("There is a table at eight.")]}


def book(_: State) -> State:
    answer = interrupt("Shall I book it?")
    return {"messages": [AIMessage(f"You said {answer}.")], "booked": ["table at eight"] if answer == "yes" else []}


builder = StateGraph(State)
builder.add_node("look_up", look_up, cache_policy=CachePolicy(ttl=60))
builder.add_node("book", book)
builder.add_edge(START, "look_up")
builder.add_edge("look_up", "book")

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "agent.db"
    thread = {"configurable": {"thread_id": "dinner"}}

    # One directory serves the checkpointer, the cache of nodes and everything else of the agent. A path will do, too.
    with agentdb.open(path) as db:
        saver, cache = AgentDBSaver(db, fence=True), AgentDBCache(db)
        graph = builder.compile(checkpointer=saver, cache=cache)
        graph.invoke({"messages": [HumanMessage("A table for two, please.")], "booked": []}, thread)
        print("asks:", graph.get_state(thread).tasks[0].interrupts[0].value)

    # Another process, another day.
    with AgentDBSaver(path, fence=True) as saver:
        graph = builder.compile(checkpointer=saver)
        print("booked:", graph.invoke(Command(resume="yes"), thread)["booked"])

        # Every step is there. Running on from an old one is a branch; the other one stays.
        before = next(one for one in graph.get_state_history(thread) if one.next == ("book",))
        graph.invoke(None, before.config)
        print("on the branch:", graph.invoke(Command(resume="no"), thread)["booked"])
        print("checkpoints:", len(list(saver.list(thread))))

        # A second worker that runs on from where it read is stopped: the fence is there for that.
        stale = saver.get_tuple(before.config)
        try:
            saver.put(before.config, {**stale.checkpoint, "id": "0"}, {"source": "loop", "step": 9}, {})
        except agentdb.ConflictError as error:
            print("stopped:", error)

        saver.copy_thread("dinner", "dinner, what if")
        saver.prune(["dinner"])
        print("after pruning:", len(list(saver.list(thread))))
        print("of the copy:", len(list(saver.list({"configurable": {"thread_id": "dinner, what if"}}))))
