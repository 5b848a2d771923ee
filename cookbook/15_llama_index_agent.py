"""A LlamaIndex agent that remembers: its conversation, what has left the conversation, and users' other sessions, across restarts."""

import asyncio
import re
import tempfile
import warnings
from pathlib import Path

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import Memory
from llama_index.core.storage.chat_store.base_db import MessageStatus

import agentdb
from llama_index_agentdb import AgentDBChatStore, AgentDBMemoryBlock


def book_table(people: int) -> str:
    """Book a table."""
    return f"a table for {people} at eight"


def script(messages, **_):
    """In the place of a language model, so that this program runs offline: it uses what it is shown and nothing else."""
    prompt, last = "\n".join(one.content or "" for one in messages), messages[-1]
    if last.role == "tool":
        return ChatMessage(role="assistant", content=f"Booked: {last.content}.")
    if people := re.search(r"table for (\d+)", last.content):
        call = ToolCallBlock(tool_call_id="1", tool_name="book_table", tool_kwargs={"people": int(people[1])})
        return ChatMessage(role="assistant", blocks=[call])
    if "allergic?" in last.content:
        known = re.search(r"allergic to (\w+)", prompt)
        return ChatMessage(role="assistant", content=f"To {known[1]}." if known else "You never told me.")
    return ChatMessage(role="assistant", content="Noted.")


# LlamaIndex looks at every attribute of an agent, deprecated ones too.
warnings.filterwarnings("ignore", category=DeprecationWarning, module="inspect")
agent = FunctionAgent(tools=[book_table], llm=MockFunctionCallingLLM(response_generator=script, is_chat_model=True))


async def session(path, user, name, said):
    # Deterministic and offline. Without embedder=... a small model is loaded. The stores take a path as well.
    with agentdb.open(path, embedder=agentdb.load_embedder("hashing")) as db:
        block = AgentDBMemoryBlock(db, agent_id="concierge", user_id=user, across_sessions=True)
        async with AgentDBChatStore(db) as chats, block:
            # So small that most of what is said soon leaves the conversation.
            limits = {"token_limit": 120, "token_flush_size": 20}
            memory = Memory.from_defaults(session_id=name, chat_store=chats, memory_blocks=[block], **limits)
            for one in said:
                print(f"{user}, {name}: {one} -> {await agent.run(one, memory=memory)}")
            active, archived = [await chats.count_messages(name, status) for status in MessageStatus]
            print(f"  {active} messages in the conversation, {archived} archived and remembered")


with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "agent.db"
    small_talk = [f"It rained on day {i}, and I read the newspaper from the first page to the last." for i in range(4)]
    asyncio.run(session(path, "bob", "monday", ["I am allergic to nuts.", *small_talk, "To what am I allergic?"]))

    # Everything was closed. The conversation goes on; what had left it is there too.
    asyncio.run(session(path, "bob", "monday", ["Book a table for 2, please.", "To what am I allergic?"]))

    # Another session of the user finds it, because the block was told to look across sessions; another user never does.
    asyncio.run(session(path, "bob", "tuesday", ["To what am I allergic?"]))
    asyncio.run(session(path, "eve", "tuesday too", ["To what is Bob allergic?"]))

    # It is an ordinary memory of the database: whatever `db.memories` can do, it can do with it.
    with agentdb.open(path) as db:
        [found] = [one for one in db.memories.list(agent_id="concierge", user_id="bob") if "allergic to" in one.text]
        print(f"{found.text!r}, said by the {found.role} in session {found.session_id!r}, used {found.uses} times")
