"""``Memory`` on our chat store, and the memory block: sessions are never mixed, and nothing is lost between them."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from llama_index.core import MockEmbedding
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.memory import Memory, StaticMemoryBlock, VectorMemoryBlock
from llama_index.core.memory.memory import InsertMethod
from llama_index.core.storage.chat_store.base_db import MessageStatus

import agentdb
from agentdb import Config, InvalidInputError
from agentdb_embedders import HashingEmbedder
from llama_index_agentdb import AgentDBChatStore, AgentDBMemoryBlock, AgentDBVectorStore

ACTIVE, ARCHIVED = MessageStatus.ACTIVE, MessageStatus.ARCHIVED


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=Config(maintenance=False), embedder=HashingEmbedder()) as made:
        yield made


@pytest.fixture
def block(db: agentdb.Database) -> Iterator[AgentDBMemoryBlock]:
    with AgentDBMemoryBlock(db, agent_id="agent") as made:
        yield made


def said(text: str, role: str = "user") -> ChatMessage:
    return ChatMessage(role=role, content=text)


def recalled(text: str) -> list[str]:
    """What a block's lines say, without number and date."""
    return [re.sub(r"^\[\d+\] \d{4}-\d\d-\d\d ", "", line) for line in text.splitlines()]


async def ask(block: Any, question: str, session: str | None) -> list[str]:
    return recalled(await block.aget([said(question)], session_id=session))


# --- the block ----------------------------------------------------------------------------------------------------------------


async def bleeds(block: Any) -> bool:
    """Whether a block that serves two sessions shows the second what was said in the first."""
    await block.aput([said("My secret colour is teal.")], session_id="first")
    await block.aput([said("My secret colour is plum.")], session_id="second")
    first = await block.aget([said("What is my secret colour?")], session_id="first")
    assert "teal" in first
    assert "plum" not in first
    return "teal" in await block.aget([said("What is my secret colour?")], session_id="second")


def test_sessions_are_never_mixed(block: AgentDBMemoryBlock) -> None:
    assert asyncio.run(bleeds(block)) is False


@pytest.mark.xfail(raises=AssertionError, reason="it keeps the first session that it is asked for", strict=True)
def test_sessions_are_never_mixed_by_the_block_of_llama_index(db: agentdb.Database) -> None:
    with AgentDBVectorStore(db, collection="memories") as store:
        embedding = MockEmbedding(embed_dim=8)
        assert asyncio.run(bleeds(VectorMemoryBlock(vector_store=store, embed_model=embedding))) is False


def test_many_sessions_at_once_by_one_block(block: AgentDBMemoryBlock) -> None:
    async def session(i: int) -> None:
        for turn in range(5):
            await block.aput([said(f"session {i} says word{turn}")], session_id=f"s{i}")
            found = await ask(block, "who says word", f"s{i}")
            assert sorted(found) == sorted(f"user: session {i} says word{one}" for one in range(turn + 1))

    async def run() -> None:
        await asyncio.gather(*(session(i) for i in range(8)))

    asyncio.run(run())


def test_what_was_put_without_a_session_is_of_none(block: AgentDBMemoryBlock) -> None:
    async def run() -> None:
        await block.aput([said("the colour is teal")], session_id="s")
        await block.aput([said("the colour is plum")])
        assert await ask(block, "which colour", None) == ["user: the colour is plum"]
        assert await ask(block, "which colour", "s") == ["user: the colour is teal"]
        assert await ask(block, "which colour", "t") == []

    asyncio.run(run())


def test_across_sessions_if_told_to(db: agentdb.Database) -> None:
    async def run() -> None:
        async with (
            AgentDBMemoryBlock(db, agent_id="agent", user_id="bob", across_sessions=True) as across,
            AgentDBMemoryBlock(db, agent_id="agent", user_id="ann", across_sessions=True) as other_user,
            AgentDBMemoryBlock(db, agent_id="other", user_id="bob", across_sessions=True) as other_agent,
            AgentDBMemoryBlock(db, agent_id="agent", user_id="bob", namespace="n", across_sessions=True) as other_space,
        ):
            await across.aput([said("the colour is teal")], session_id="monday")
            await across.aput([said("the colour is plum")])
            both = ["user: the colour is teal", "user: the colour is plum"]
            assert await ask(across, "which colour", "tuesday") == both
            assert await ask(across, "which colour", None) == both
            for block in (other_user, other_agent, other_space):
                assert await ask(block, "which colour", "monday") == []

    asyncio.run(run())


def test_messages_are_not_changed(block: AgentDBMemoryBlock, db: agentdb.Database) -> None:
    messages = [said("the colour is teal"), said("noted", "assistant")]
    before = copy.deepcopy(messages)
    asyncio.run(block.aput(messages, session_id="s"))
    assert messages == before


def test_blocks_do_not_take_the_session_from_each_other(db: agentdb.Database) -> None:
    """One of LlamaIndex's own removes it from the messages that all blocks see at the same time."""

    async def run() -> None:
        async with AgentDBMemoryBlock(db, agent_id="a") as ours, AgentDBVectorStore(db, collection="c") as store:
            theirs = VectorMemoryBlock(vector_store=store, embed_model=MockEmbedding(embed_dim=8))
            async with AgentDBChatStore(db) as chats:
                memory = full_memory(chats, [theirs, ours])
                await converse(memory, 8)
            assert {one.session_id for one in db.memories.list(agent_id="a")} == {"session"}

    asyncio.run(run())


def test_the_session_in_a_message_counts_if_none_is_given(block: AgentDBMemoryBlock) -> None:
    async def run() -> None:
        message = ChatMessage(role="user", content="the colour is teal", additional_kwargs={"session_id": "s"})
        await block.aput([message])
        assert await ask(block, "which colour", "s") == ["user: the colour is teal"]
        assert await ask(block, "which colour", None) == []

    asyncio.run(run())


def test_lines_are_in_the_order_of_events(block: AgentDBMemoryBlock) -> None:
    async def run() -> None:
        wanted = [f"number {i} of the list" for i in range(8)]
        await block.aput([said(one, "user" if i % 2 else "assistant") for i, one in enumerate(wanted)], session_id="s")
        found = await ask(block, "the list", "s")
        assert found == [f"{'user' if i % 2 else 'assistant'}: {one}" for i, one in enumerate(wanted)]

    asyncio.run(run())


def test_what_is_remembered(block: AgentDBMemoryBlock, db: agentdb.Database) -> None:
    long = "word " * 300_000
    messages = [
        said("be kind", "system"),
        said("be brief", "developer"),
        said("  \n"),
        ChatMessage(role="assistant"),
        ChatMessage(role="user", blocks=[TextBlock(text="two"), TextBlock(text="parts")]),
        said("42", "tool"),
        said("half a character \ud83d"),
        said(long),
    ]
    asyncio.run(block.aput(messages, session_id="s"))
    kept = db.memories.list(agent_id="agent", session_id="s")
    assert {one.content for one in kept if len(one.content) < 100} == {"two\nparts", "42", "half a character ?"}
    pieces = sorted((one for one in kept if len(one.content) >= 100), key=lambda one: one.occurred_at)
    assert "".join(one.content for one in pieces) == long
    assert {one.role for one in kept} == {"user", "tool"}


def test_what_leaves_the_short_term_memory_may_be_refused(db: agentdb.Database) -> None:
    with AgentDBMemoryBlock(db, agent_id="a", accept_short_term_memory=False) as block:
        asyncio.run(block.aput([said("ejected")], from_short_term_memory=True, session_id="s"))
        asyncio.run(block.aput([said("given")], session_id="s"))
    assert [one.content for one in db.memories.list(agent_id="a")] == ["given"]


def test_nothing_to_ask_or_to_find(block: AgentDBMemoryBlock) -> None:
    async def run() -> None:
        assert await block.aget([said("anything?")], session_id="s") == ""
        await block.aput([], session_id="s")
        assert await block.aget(None, session_id="s") == ""
        assert await block.aget([], session_id="s") == ""
        assert await block.aget([said(" ")], session_id="s") == ""
        await block.aput([said("teal")], session_id="s")
        assert await ask(block, "teal \ud83d", "s") == ["user: teal"]

    asyncio.run(run())


def test_the_users_newest_message_is_the_question(block: AgentDBMemoryBlock, db: agentdb.Database) -> None:
    async def run() -> None:
        async with AgentDBMemoryBlock(db, agent_id="agent", similarity_top_k=1) as one:
            await one.aput([said("the harbour is in Porto"), said("the violin is by Guarneri")], session_id="s")
            history = [said("tell me of the harbour"), said("the violin, too?"), said("harbour harbour", "tool")]
            assert recalled(await one.aget(history, session_id="s")) == ["user: the violin is by Guarneri"]
            assert recalled(await one.aget(history[2:], session_id="s")) == ["user: the harbour is in Porto"]

    asyncio.run(run())


@pytest.mark.parametrize("budget", [0, 15, 40, 100])
def test_the_budget_is_kept(db: agentdb.Database, budget: int) -> None:
    with AgentDBMemoryBlock(db, agent_id="a", token_budget=budget) as block:
        asyncio.run(block.aput([said(f"colour number {i}") for i in range(9)], session_id="s"))
        text = asyncio.run(block.aget([said("colour")], session_id="s"))
    assert db.embedder.count_tokens([text])[0] <= budget if text else budget < 40
    assert bool(text) is (budget >= 15)


@pytest.mark.parametrize("wrong", [{"similarity_top_k": 0}, {"token_budget": -1}, {"similarity_top_k": 2.5}])
def test_wrong_arguments_are_named(db_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        AgentDBMemoryBlock(db_path, agent_id="a", **wrong)


def test_a_block_is_its_fields(db: agentdb.Database) -> None:
    async def run() -> None:
        async with AgentDBMemoryBlock(
            db, agent_id="a", user_id="u", similarity_top_k=3, name="past", priority=2
        ) as block:
            for made in (
                AgentDBMemoryBlock.model_validate(block.model_dump()),
                AgentDBMemoryBlock.model_validate_json(block.model_dump_json()),
                pickle.loads(pickle.dumps(block)),
                copy.deepcopy(block),
                block.model_copy(update={"token_budget": 7}),
            ):
                budget = made.token_budget
                assert made.model_dump() == {**block.model_dump(), "token_budget": budget}
                assert made._connection().path == db.path
                if made._connection is not block._connection:
                    await made.aclose()
            assert (budget, block.token_budget) == (7, 1_000)
            assert repr(str(db.path)) in repr(block)

    asyncio.run(run())


# --- Memory -------------------------------------------------------------------------------------------------------------------


def full_memory(chats: AgentDBChatStore, blocks: list[Any], session: str = "session") -> Memory:
    """A memory that holds about four messages; the others leave it."""
    return Memory.from_defaults(
        session_id=session, chat_store=chats, memory_blocks=blocks, token_limit=60, token_flush_size=10
    )


async def converse(memory: Memory, turns: int, first: int = 0) -> None:
    for i in range(first, first + turns):
        await memory.aput_messages([said(f"question {i} of {memory.session_id}?"), said(f"answer {i}", "assistant")])


def lines(turns: range, session: str) -> list[str]:
    return [text for i in turns for text in (f"question {i} of {session}?", f"answer {i}")]


class TestMemory:
    config: ClassVar[Config] = Config(maintenance=False)

    @pytest.fixture
    def db(self, db_path: Path) -> Iterator[agentdb.Database]:
        with agentdb.open(db_path, config=self.config, embedder=HashingEmbedder()) as made:
            yield made

    def test_what_leaves_it_is_archived_and_remembered(self, db: agentdb.Database) -> None:
        async def run() -> None:
            async with (
                AgentDBChatStore(db) as chats,
                AgentDBMemoryBlock(db, agent_id="a", similarity_top_k=50) as block,
            ):
                memory = full_memory(chats, [block])
                await converse(memory, 12)
                everything = [one.content for one in await memory.aget_all()]
                assert everything == lines(range(12), "session")
                active = [one.content for one in await memory.aget_all(ACTIVE)]
                archived = [one.content for one in await memory.aget_all(ARCHIVED)]
                assert [*archived, *active] == everything
                assert archived
                assert active[0].startswith("question")
                kept = db.memories.list(agent_id="a", session_id="session")
                assert sorted(one.content for one in kept) == sorted(archived)
                # What is in the prompt: the block's lines in front, then the queue.
                system, *queue = await memory.aget(input="question?")
                assert system.role == MessageRole.SYSTEM
                assert "<long_term_memory>" in system.content
                assert all(one in system.content for one in archived)
                assert [one.content for one in queue] == active

        asyncio.run(run())

    def test_two_sessions_share_stores_and_nothing_else(self, db: agentdb.Database) -> None:
        async def run() -> None:
            async with (
                AgentDBChatStore(db) as chats,
                AgentDBMemoryBlock(db, agent_id="a", similarity_top_k=50) as block,
            ):
                memories = [full_memory(chats, [block], one) for one in ("left", "right")]
                await asyncio.gather(*(converse(one, 10) for one in memories))
                for memory, other in (memories, memories[::-1]):
                    assert [one.content for one in await memory.aget_all()] == lines(range(10), memory.session_id)
                    seen = " ".join(one.content for one in await memory.aget(input=f"question of {other.session_id}?"))
                    assert memory.session_id in seen
                    assert other.session_id not in seen.replace(f"question of {other.session_id}?", "")

        asyncio.run(run())

    def test_set_and_reset(self, db: agentdb.Database) -> None:
        async def run() -> None:
            async with AgentDBChatStore(db) as chats:
                memory = full_memory(chats, [])
                await converse(memory, 10)
                await memory.areset(ARCHIVED)
                assert await memory.aget_all(ARCHIVED) == []
                assert await memory.aget_all(ACTIVE) != []
                await memory.aset([said("new")])
                assert await memory.aget_all() == [said("new")]
                await memory.areset()
                assert await memory.aget_all() == []
                await memory.aput_messages([])
                assert await memory.aget() == []

        asyncio.run(run())

    @pytest.mark.parametrize("method", list(InsertMethod))
    def test_the_synchronous_methods_work_with_and_without_a_loop(
        self, db: agentdb.Database, method: InsertMethod
    ) -> None:
        with AgentDBChatStore(db) as chats, AgentDBMemoryBlock(db, agent_id="a") as block:

            def use(session: str) -> None:
                memory = Memory.from_defaults(
                    session_id=session,
                    chat_store=chats,
                    chat_history=[said("before")],
                    memory_blocks=[block, StaticMemoryBlock(name="fixed", static_content="a fact")],
                    insert_method=method,
                )
                memory.put(said("1"))
                memory.put_messages([said("2", "assistant"), said("3")])
                assert [one.content for one in memory.get_all()] == ["before", "1", "2", "3"]
                assert "a fact" in " ".join(block.text for one in memory.get() for block in one.blocks)
                memory.set([said("4")])
                memory.reset()
                assert memory.get_all() == []

            async def inside() -> None:
                use("inside")

            use("outside")
            asyncio.run(inside())

    def test_it_goes_on_after_a_restart(self, db_path: Path) -> None:
        async def run(first: int) -> list[str | None]:
            with agentdb.open(db_path, config=self.config, embedder=HashingEmbedder()) as db:
                async with (
                    AgentDBChatStore(db) as chats,
                    AgentDBMemoryBlock(db, agent_id="a", similarity_top_k=99) as block,
                ):
                    memory = full_memory(chats, [block])
                    await converse(memory, 5, first)
                    assert [one.content for one in await memory.aget_all()] == lines(range(first + 5), "session")
                    return [one.content for one in await memory.aget(input="question?")]

        before = asyncio.run(run(0))
        after = asyncio.run(run(5))
        assert after[-1] == "answer 9"
        assert "question 0 of session?" in after[0]
        assert before != after


class TestMemoryWhileRowsGoCold(TestMemory):
    config: ClassVar[Config] = Config(flush_rows=1, flush_age_s=0.01, tick_s=0.01)
