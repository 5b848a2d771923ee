"""A chat agent that remembers its users from one session to the next: checkpoints, long-term memory and cache in one directory."""

import tempfile
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.config import get_config, get_store

import agentdb
from langgraph_agentdb import AgentDBCache, AgentDBSaver, AgentDBStore


class ScriptedModel(BaseChatModel):
    """Stands in for a language model, so that this runs without a key: it saves what it is told and looks up what it is asked."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, *_, **__):
        return self

    def _generate(self, messages, *_, **__):
        last = messages[-1]
        if isinstance(last, ToolMessage):
            answer = AIMessage(last.content)
        elif last.content.endswith("?"):
            calls = [{"name": "search_memory", "args": {"query": last.content}, "id": f"call {len(messages)}"}]
            answer = AIMessage("", tool_calls=calls)
        else:
            calls = [{"name": "save_memory", "args": {"text": last.content}, "id": f"call {len(messages)}"}]
            answer = AIMessage("", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=answer)])


def memories() -> tuple[str, str]:
    """The namespace of the user who is talking: nobody else's memories are below it."""
    return "memories", get_config()["configurable"]["user_id"]


@tool
def save_memory(text: str) -> str:
    """Remember something that the user said."""
    namespace = memories()
    count = len(get_store().search(namespace, limit=1_000))
    get_store().put(namespace, f"memory {count}", {"text": text, "words": len(text.split())})
    return "I shall remember that."


@tool
def search_memory(query: str) -> str:
    """Look for what the user once said."""
    found = get_store().search(memories(), query=query, filter={"words": {"$gte": 3}}, limit=1)
    return f"You told me: {found[0].value['text']}" if found and found[0].score > 0.2 else "I do not know that."


def session(path: Path, user: str, thread: str, *said: str) -> None:
    """One conversation in a process of its own, as it were: everything is opened and closed."""
    # "hashing" goes by words and needs no model. With the extra `local`, "local" goes by meaning.
    index = {"embed": "hashing", "fields": ["text"]}
    with agentdb.open(path) as db:
        agent = create_agent(
            ScriptedModel(),
            [save_memory, search_memory],
            checkpointer=AgentDBSaver(db),
            store=AgentDBStore(db, index=index),
            cache=AgentDBCache(db),
        )
        config = {"configurable": {"thread_id": thread, "user_id": user}}
        for text in said:
            answer = agent.invoke({"messages": [HumanMessage(text)]}, config)["messages"][-1]
            print(f"{user}: {text}\n  agent: {answer.content}")


with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "agent.db"
    session(path, "ann", "monday", "My dog is called Rufus.", "I am allergic to peanuts.")
    session(path, "bob", "monday", "My cat is called Minka.")
    # A new thread knows nothing of the old one's messages; what was remembered is the user's, whatever the thread.
    session(path, "ann", "friday", "What is my dog called?", "What am I allergic to?")
    session(path, "bob", "friday", "What am I allergic to?")

    with AgentDBStore(path) as store:
        print("namespaces:", store.list_namespaces(prefix=("memories",)))
        print("newest first:", [one.value["text"] for one in store.search(("memories", "ann"))])
        # Something that is true for a while only: forgotten an hour after it was last looked at.
        store.put(("memories", "ann"), "today", {"text": "I am in a hurry today.", "words": 6}, ttl=60)
        store.delete(("memories", "ann"), "memory 1")
        print("left:", sorted(one.key for one in store.search(("memories", "ann"))))
    with agentdb.open(path) as db:
        print("sound:", db.verify().ok)
