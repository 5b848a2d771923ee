"""Move the checkpoints of LangGraph's SqliteSaver into AgentDB: ``python 13_migrate_from_sqlite_saver.py OLD.sqlite NEW.db``.

Without arguments it makes a small database of its own, moves that, and shows that nothing was lost.
"""

import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt

import agentdb
from langgraph_agentdb import AgentDBSaver


@contextmanager
def opened(path: Path) -> Iterator[SqliteSaver]:
    with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        saver = SqliteSaver(connection)
        saver.setup()
        yield saver


def checkpoint_id(config) -> str | None:
    return None if config is None else config["configurable"]["checkpoint_id"]


def migrate(source: SqliteSaver, target: AgentDBSaver) -> int:
    """Copy every checkpoint of every thread, with its writes; return how many. Doing it twice changes nothing.

    States of your own classes: ``AgentDBSaver(path, serde=StrictSerializer(allow=[MyClass]))``.
    """
    places = source.conn.execute("SELECT DISTINCT thread_id, checkpoint_ns FROM checkpoints").fetchall()
    count = 0
    for thread_id, namespace in places:
        place = {"thread_id": thread_id, "checkpoint_ns": namespace}
        # Ids rise with time: parents come before their children, and values are stored once for both.
        ids = source.conn.execute(
            "SELECT checkpoint_id FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ? ORDER BY checkpoint_id",
            (thread_id, namespace),
        ).fetchall()
        versions: dict[str | None, dict] = {}
        for (this_id,) in ids:
            found = source.get_tuple({"configurable": {**place, "checkpoint_id": this_id}})
            copy(found, target, source, versions)
            count += 1
    return count


def copy(found: CheckpointTuple, target: AgentDBSaver, source: SqliteSaver, versions: dict[str | None, dict]) -> None:
    this_id, parent = checkpoint_id(found.config), checkpoint_id(found.parent_config)
    now = versions[this_id] = found.checkpoint["channel_versions"]
    before = versions.get(parent, {})
    place = {name: found.config["configurable"][name] for name in ("thread_id", "checkpoint_ns")}
    under = {"configurable": {**place, "checkpoint_id": parent} if parent else place}
    changed = {name: version for name, version in now.items() if before.get(name) != version}
    stored = target.put(under, found.checkpoint, found.metadata, changed)
    # Writes of one task go together; their paths tell the order in which LangGraph applies them.
    paths = dict(
        source.conn.execute(
            "SELECT task_id, task_path FROM writes WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
            (*place.values(), this_id),
        )
    )
    for task, path in paths.items():
        writes = [(channel, value) for owner, channel, value in found.pending_writes or [] if owner == task]
        target.put_writes(stored, writes, task, path)


def same(ours: CheckpointTuple, theirs: CheckpointTuple) -> bool:
    """Whether a checkpoint and its writes are what they were."""
    here, there = dict(ours.checkpoint), dict(theirs.checkpoint)
    values, expected = here.pop("channel_values"), there.pop("channel_values")
    writes, wanted = ours.pending_writes or [], theirs.pending_writes or []
    return (
        ours.config == theirs.config
        and here == there
        # There may be more: the last whole value of a DeltaChannel, with every checkpoint that has the version of it.
        and {name: value for name, value in values.items() if name in expected} == expected
        and values.keys() <= expected.keys() | here["channel_versions"].keys()
        and ours.metadata == theirs.metadata
        and checkpoint_id(ours.parent_config) == checkpoint_id(theirs.parent_config)
        # AgentDBSaver's are in the order in which LangGraph applies them.
        and len(writes) == len(wanted)
        and all(one in writes for one in wanted)
    )


def check(source: SqliteSaver, target: AgentDBSaver) -> int:
    """Compare all checkpoints; return how many there are."""
    theirs, ours = list(source.list(None)), list(target.list(None))
    assert len(theirs) == len(ours)
    for one in theirs:
        found = target.get_tuple(one.config)
        assert found is not None
        assert same(found, one), f"{one.config} differs"
    return len(theirs)


# --- a database to try it with ----------------------------------------------------------------------------------------


def joined(said: list[str], writes: list[list[str]]) -> list[str]:
    return [*said, *(one for write in writes for one in write)]


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    said: Annotated[list[str], DeltaChannel(joined, list, snapshot_frequency=4)]


def greet(state: State) -> State:
    said = state["messages"][-1].content
    return {"messages": [AIMessage(f"hello, you said {said}")], "said": [said]}


def ask(_: State) -> State:
    return {"messages": [AIMessage(f"thank you for {interrupt('what do you want?')}")]}


builder = StateGraph(State)
builder.add_node("greet", greet)
builder.add_node("ask", ask)
builder.add_edge(START, "greet")
builder.add_edge("greet", "ask")


def try_it(directory: Path) -> None:
    old, new = directory / "old.sqlite", directory / "new.db"
    finished = {"configurable": {"thread_id": "finished"}}
    waiting = {"configurable": {"thread_id": "waiting"}}
    with opened(old) as source:
        graph = builder.compile(checkpointer=source)
        for n in range(20):
            graph.invoke({"messages": [HumanMessage(f"message {n}, {'and so on ' * 40}")]}, finished)
            graph.invoke(Command(resume=f"tea {n}"), finished)
        graph.invoke({"messages": [HumanMessage("anybody there?")]}, waiting)
        branch = list(graph.get_state_history(finished))[3]
        graph.invoke(Command(resume="coffee"), branch.config)
        history = [one.values for one in graph.get_state_history(finished)]
    with opened(old) as source, AgentDBSaver(new) as target:
        print("copied:", migrate(source, target))
        print("again:", migrate(source, target))
        print("compared:", check(source, target))
        # A thread that waits for an answer goes on where it was.
        graph = builder.compile(checkpointer=target)
        print("waits for:", graph.get_state(waiting).tasks[0].interrupts[0].value)
        print("goes on:", graph.invoke(Command(resume="soup"), waiting)["messages"][-1].content)
        # Every step of the past is what it was, also of a channel that is stored as its changes.
        print("steps:", len(history), "said:", len(history[0]["said"]))
        assert [one.values for one in graph.get_state_history(finished)] == history
    with agentdb.open(new) as db:
        db.optimize()
    size = sum(one.stat().st_size for one in new.rglob("*") if one.is_file())
    print("smaller:", size < old.stat().st_size)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        with opened(Path(sys.argv[1])) as source, AgentDBSaver(sys.argv[2]) as target:
            print("copied:", migrate(source, target))
            print("compared:", check(source, target))
    elif len(sys.argv) == 1:
        with tempfile.TemporaryDirectory() as directory:
            try_it(Path(directory))
    else:
        sys.exit(__doc__)
