"""Retrievers, and memory for agents: a real ``create_agent`` with our middleware and tools and a scripted chat model."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import ConfigurableField, RunnableConfig
from langgraph.types import Command, interrupt
from pydantic import Field, ValidationError

import agentdb
from agentdb import AccessDeniedError, ClosedError, Config, InvalidInputError, field
from agentdb_embedders import HashingEmbedder
from langchain_agentdb import (
    AgentDBByteStore,
    AgentDBChatMemory,
    AgentDBChatMessageHistory,
    AgentDBDocumentIndex,
    AgentDBLLMCache,
    AgentDBMemoryMiddleware,
    AgentDBMemoryRetriever,
    AgentDBMemoryToolkit,
    AgentDBRecordManager,
    AgentDBRetriever,
    AgentDBSemanticCache,
    AgentDBVectorMemory,
    AgentDBVectorStore,
)
from langgraph_agentdb import AgentDBSaver


class Scripted(BaseChatModel):
    """Answers with what a function makes of the messages, and keeps what it was shown."""

    script: Callable[[list[BaseMessage]], AIMessage]
    shown: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.shown.append(messages)
        return ChatResult(generations=[ChatGeneration(message=self.script(messages))])

    @property
    def system(self) -> str:
        """What the last call had as its system prompt."""
        first = self.shown[-1][0]
        return str(first.text) if isinstance(first, SystemMessage) else ""


def heard(_: list[BaseMessage]) -> AIMessage:
    return AIMessage("I see.")


def run(user: str | None, thread: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, **({} if user is None else {"user_id": user})}}


def say(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


@pytest.fixture
def db(db_path: Path):
    with agentdb.open(db_path, embedder=HashingEmbedder(128), config=Config(maintenance=False)) as opened:
        yield opened


# --- middleware -----------------------------------------------------------------------------------------------------------


def test_an_agent_remembers_across_threads_and_users_are_walls(db: agentdb.Database) -> None:
    model = Scripted(script=heard)
    with AgentDBMemoryMiddleware(db, agent_id="helper") as memory, AgentDBSaver(db) as saver:
        agent = create_agent(model, system_prompt="Be kind.", middleware=[memory], checkpointer=saver)
        agent.invoke(say("My dog is called Bello."), run("ann", "t1"))
        assert model.system == "Be kind."
        result = agent.invoke(say("What is my dog called?"), run("ann", "t2"))
        assert model.system.startswith("Be kind.\n\nWhat you remember from earlier conversations")
        assert "My dog is called Bello." in model.system
        assert [one.type for one in result["messages"]] == ["human", "ai"], "what was recalled is no message"
        assert "agentdb_recalled" not in result
        for user in ("bob", None, "ann ", "%", "' OR 1=1 --"):
            agent.invoke(say("What is my dog called?"), run(user, f"of {user}"))
            assert "Bello" not in model.system, user
    kept = db.memories.list(agent_id="helper", user_id="ann")
    assert {(one.session_id, one.role, one.text) for one in kept} == {
        ("t1", "user", "My dog is called Bello."),
        ("t1", "assistant", "I see."),
        ("t2", "user", "What is my dog called?"),
        ("t2", "assistant", "I see."),
    }
    assert db.memories.list(agent_id="helper", session_id="t1") == [], "another user's"


def test_what_the_model_sees_anyway_is_not_shown_twice(db: agentdb.Database) -> None:
    model = Scripted(script=heard)
    with AgentDBMemoryMiddleware(db, agent_id="helper") as memory, AgentDBSaver(db) as saver:
        agent = create_agent(model, middleware=[memory], checkpointer=saver)
        for text in ("My dog is called Bello.", "What is my dog called?"):
            agent.invoke(say(text), run("ann", "t1"))
        assert model.system == ""
        assert len(model.shown[-1]) == 3
        agent.invoke(say("What is my dog called?"), run("ann", "t2"))
        assert "Bello" in model.system
        create_agent(model, middleware=[memory]).invoke(say("Bye."), {"configurable": {"thread_id": 3}})
        assert {one.session_id for one in db.memories.list(agent_id="helper", user_id=None)} == {"3"}


def test_each_turn_is_remembered_once_and_in_words(db: agentdb.Database) -> None:
    def script(messages: list[BaseMessage]) -> AIMessage:
        if isinstance(messages[-1], ToolMessage):
            return AIMessage("It rains.")
        return AIMessage("", tool_calls=[{"name": "weather", "args": {}, "id": "1"}])

    def weather() -> str:
        """Tell the weather."""
        return "rain"

    with AgentDBMemoryMiddleware(db, agent_id="helper") as memory, AgentDBSaver(db) as saver:
        agent = create_agent(Scripted(script=script), tools=[weather], middleware=[memory], checkpointer=saver)
        for i in range(3):
            agent.invoke({"messages": [HumanMessage(f"Weather {i}?"), HumanMessage("  ")]}, run("ann", "t1"))
    kept = db.memories.list(agent_id="helper", user_id="ann")
    assert sorted(one.text for one in kept) == ["It rains.", "Weather 0?", "Weather 1?", "Weather 2?"]
    assert {one.text: len(one.occurrences) for one in kept}["It rains."] == 3


def test_the_same_when_awaited_for_many_users_at_once(db: agentdb.Database) -> None:
    model = Scripted(script=heard)

    async def talk(agent: Any, user: str) -> None:
        await agent.ainvoke(say(f"My dog is called {user}-dog."), run(user, f"{user} 1"))
        await agent.ainvoke(say("What is my dog called?"), run(user, f"{user} 2"))

    async def talk_all() -> None:
        async with AgentDBMemoryMiddleware(db, agent_id="helper") as memory:
            agent = create_agent(model, middleware=[memory])
            await asyncio.gather(*(talk(agent, f"u{i}") for i in range(8)))

    asyncio.run(talk_all())
    recalled = [str(one[0].text) for one in model.shown if isinstance(one[0], SystemMessage)]
    assert len(recalled) == 8
    assert sorted(word for one in recalled for word in one.replace(".", " ").split() if word.endswith("-dog")) == [
        f"u{i}-dog" for i in range(8)
    ]


def test_what_was_recalled_is_in_no_checkpoint_and_can_be_erased(db: agentdb.Database, db_path: Path) -> None:
    db.memories.remember("The dog of Ann is called Bello.", agent_id="helper", user_id="ann")
    model = Scripted(script=heard)
    with AgentDBMemoryMiddleware(db, agent_id="helper") as memory, AgentDBSaver(db) as saver:
        agent = create_agent(model, middleware=[memory], checkpointer=saver)
        agent.invoke(say("What is my dog called?"), run("ann", "t1"))
        asyncio.run(agent.ainvoke(say("The dog?"), run("ann", "t2")))
        assert "Bello" in model.system
        assert set(agent.get_state(run("ann", "t1")).values) == {"messages"}
        doomed = [one.id for one in db.memories.list(agent_id="helper", user_id="ann") if "Bello" in one.text]
        assert db.memories.erase(doomed).status == "complete"
        assert b"Bello" not in b"".join(one.read_bytes() for one in db_path.rglob("*") if one.is_file())
        agent.invoke(say("What is my dog called?"), run("ann", "t1"))
        assert "Bello" not in model.system


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_run_that_goes_on_recalls_what_is_remembered_by_then(db: agentdb.Database, way: str) -> None:
    def script(messages: list[BaseMessage]) -> AIMessage:
        if isinstance(messages[-1], ToolMessage):
            return AIMessage("Done.")
        return AIMessage("", tool_calls=[{"name": "walk", "args": {}, "id": "1"}])

    def walk() -> str:
        """Walk the dog."""
        return str(interrupt("May I?"))

    old = db.memories.remember("The dog of Ann is called Bello.", agent_id="helper", user_id="ann")
    model = Scripted(script=script)
    with AgentDBMemoryMiddleware(db, agent_id="helper") as memory, AgentDBSaver(db) as saver:
        agent = create_agent(model, tools=[walk], middleware=[memory], checkpointer=saver)

        def go(asked: Any) -> Any:
            config = run("ann", "t1")
            return asyncio.run(agent.ainvoke(asked, config)) if way == "ainvoke" else agent.invoke(asked, config)

        go(say("Walk the dog"))
        assert "Bello" in model.system
        db.memories.erase(old.id)
        db.memories.remember("The dog of Ann is called Rex.", agent_id="helper", user_id="ann")
        assert go(Command(resume="yes"))["messages"][-1].text == "Done."
        assert "Rex" in model.system
        assert "Bello" not in model.system


def test_recall_only_and_a_user_by_function(db: agentdb.Database) -> None:
    db.memories.remember("Ann likes tea.", agent_id="helper", user_id="tenant/ann", namespace="n")
    model = Scripted(script=heard)
    memory = AgentDBMemoryMiddleware(
        db,
        agent_id="helper",
        user_id=lambda config: f"tenant/{config['configurable']['who']}",
        namespace="n",
        remembers=False,
        token_budget=60,
        k=1,
    )
    agent = create_agent(model, middleware=[memory])
    agent.invoke(say("What does Ann like?"), {"configurable": {"who": "ann"}})
    assert "Ann likes tea." in model.system
    agent.invoke(say("What does Ann like?"), {"configurable": {"who": "bob"}})
    assert model.system == ""
    agent.invoke({"messages": [AIMessage("nobody asked")]}, {"configurable": {"who": "ann"}})
    assert model.system == ""
    assert len(db.memories.list(agent_id="helper", user_id="tenant/ann", namespace="n")) == 1
    blocks = SystemMessage([{"type": "text", "text": "Be kind."}])
    create_agent(model, system_prompt=blocks, middleware=[memory]).invoke(
        say("Ann likes?"), {"configurable": {"who": "ann"}}
    )
    assert [one["text"][:8] for one in model.shown[-1][0].content] == ["Be kind.", "What you"]
    with pytest.raises(InvalidInputError, match="the user of a run must be a str or None, not int"):
        create_agent(model, middleware=[AgentDBMemoryMiddleware(db, agent_id="helper", user_id=lambda _: 3)]).invoke(
            say("x")
        )


def test_no_more_is_recalled_than_was_asked_for(db: agentdb.Database) -> None:
    for kind in ("green", "black", "white", "mint", "iced"):
        db.memories.remember(f"Ann likes {kind} tea.", agent_id="helper")
    for options, count in (({}, 5), ({"k": 2}, 2), ({"token_budget": 30}, 3)):
        model = Scripted(script=heard)
        memory = AgentDBMemoryMiddleware(db, agent_id="helper", remembers=False, **options)
        create_agent(model, middleware=[memory]).invoke(say("Which tea does Ann like?"))
        assert model.system.count("Ann likes") == count, options
    _, recall = AgentDBMemoryToolkit(db, agent_id="helper", k=2).get_tools()
    assert recall.invoke({"query": "Which tea does Ann like?"}).count("Ann likes") == 2


def test_the_model_calls_the_tools_and_cannot_choose_whose_memory(db: agentdb.Database) -> None:
    def script(messages: list[BaseMessage]) -> AIMessage:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            return AIMessage(f"{last.name}: {last.text}")
        text = str(last.text)
        call = (
            {"name": "remember", "args": {"content": text, "user_id": "bob", "agent_id": "other"}, "id": "1"}
            if text.endswith(".")
            else {"name": "recall", "args": {"query": text, "user_id": "bob"}, "id": "2"}
        )
        return AIMessage("", tool_calls=[call])

    with AgentDBMemoryMiddleware(db, agent_id="helper", has_tools=True, remembers=False) as memory:
        assert [one.name for one in memory.tools] == ["remember", "recall"]
        agent = create_agent(Scripted(script=script), middleware=[memory])
        said = agent.invoke(say("Ann likes tea."), run("ann", "t1"))["messages"][-1].text
        assert said == "remember: Remembered."
        (kept,) = db.memories.list(agent_id="helper", user_id="ann")
        assert (kept.text, kept.session_id, kept.memory_type) == ("Ann likes tea.", "t1", "semantic")
        assert db.memories.list(agent_id="other", user_id="bob") == []
        assert "Ann likes tea." in agent.invoke(say("What does Ann like?"), run("ann", "t2"))["messages"][-1].text
        asked = asyncio.run(agent.ainvoke(say("What does Ann like?"), run("bob", "t3")))
        assert asked["messages"][-1].text == "recall: Nothing is remembered about that."


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_what_the_model_gets_wrong_is_told_to_the_model(db: agentdb.Database, way: str) -> None:
    wrong = [
        {"name": name, "args": {key: value}, "id": f"{name} {i}"}
        for name, key in (("remember", "content"), ("recall", "query"))
        for i, value in enumerate(["", " \n", "\ud83d", "x" * 100_001, 3, None])
    ]
    wrong.append({"name": "remember", "args": {"content": "x", "memory_type": "eternal"}, "id": "type"})

    def script(messages: list[BaseMessage]) -> AIMessage:
        return AIMessage("Sorry.") if isinstance(messages[-1], ToolMessage) else AIMessage("", tool_calls=wrong)

    with AgentDBMemoryMiddleware(db, agent_id="helper", has_tools=True, remembers=False) as memory:
        agent = create_agent(Scripted(script=script), middleware=[memory])
        result = asyncio.run(agent.ainvoke(say("Go on"))) if way == "ainvoke" else agent.invoke(say("Go on"))
    told = [one for one in result["messages"] if isinstance(one, ToolMessage)]
    assert [one.status for one in told] == ["error"] * len(wrong)
    assert all("content" in one.text or "query" in one.text or "memory_type" in one.text for one in told)
    assert result["messages"][-1].text == "Sorry."
    assert db.memories.list(agent_id="helper") == []


def test_no_message_ends_a_run_because_it_cannot_be_remembered(db: agentdb.Database) -> None:
    with AgentDBMemoryMiddleware(db, agent_id="helper") as memory:
        for said, answered in (("half \ud83d", "\ud83d"), ("\0", "a"), ("x" * 1_000_001, "y" * 1_000_001), ("!", "b")):
            agent = create_agent(Scripted(script=lambda _, answered=answered: AIMessage(answered)), middleware=[memory])
            assert agent.invoke(say(said), run("ann", "t1"))["messages"][-1].text == answered
            assert asyncio.run(agent.ainvoke(say(said), run("ann", "t2")))["messages"][-1].text == answered
    kept = db.memories.list(agent_id="helper", user_id="ann", session_id="t1")
    assert sorted(one.text for one in kept) == sorted(["half ?", "?", "\0", "a", "!", "b"])


def test_tools_by_themselves(db_path: Path) -> None:
    with (
        agentdb.open(db_path, embedder=HashingEmbedder(64)) as db,
        AgentDBMemoryToolkit(db, agent_id="helper", user_id="ann", k=1) as kit,
    ):
        remember, recall = kit.get_tools()
        assert set(remember.args) == {"content", "memory_type"}
        assert set(recall.args) == {"query"}
        assert asyncio.run(remember.ainvoke({"content": "Ann likes tea.", "memory_type": "episodic"})) == "Remembered."
        assert "tea" in recall.invoke({"query": "tea"})
        assert [one.memory_type for one in db.memories.list(agent_id="helper", user_id="ann")] == ["episodic"]
    for wrong, said in (
        ({"agent_id": ""}, "agent_id must be a str"),
        ({"agent_id": 3}, "agent_id must be a str"),
        ({"agent_id": "a", "user_id": 3}, "user_id must be a str, a function"),
        ({"agent_id": "a", "namespace": 3}, "namespace must be a str or None"),
        ({"agent_id": "a", "k": 0}, "k must be an int of 1 or more"),
    ):
        for cls in (AgentDBMemoryToolkit, AgentDBMemoryMiddleware):
            with pytest.raises(InvalidInputError, match=said):
                cls(db_path, **wrong)


def test_checkpoints_memory_vectors_and_cache_in_one_directory(db_path: Path) -> None:
    def script(messages: list[BaseMessage]) -> AIMessage:
        if isinstance(messages[-1], ToolMessage):
            return AIMessage(f"The handbook says: {messages[-1].text}")
        return AIMessage("", tool_calls=[{"name": "handbook", "args": {"query": str(messages[-1].text)}, "id": "1"}])

    with (
        agentdb.open(db_path, embedder=HashingEmbedder(128)) as db,
        AgentDBVectorStore(None, db, collection="handbook") as store,
        AgentDBMemoryMiddleware(db, agent_id="helper") as memory,
        AgentDBSaver(db) as saver,
        AgentDBLLMCache(db) as cache,
    ):
        store.add_texts(["Holidays: thirty days a year.", "Lunch is at noon."])

        def handbook(query: str) -> str:
            """Look something up in the handbook."""
            return store.similarity_search(query, k=1)[0].page_content

        model = Scripted(script=script, cache=cache)
        agent = create_agent(model, tools=[handbook], middleware=[memory], checkpointer=saver)
        answers = [
            agent.invoke(say("Holidays a year?"), run(f"user {i}", f"t{i}"))["messages"][-1].text for i in range(2)
        ]
        assert answers == ["The handbook says: Holidays: thirty days a year."] * 2
        assert db.verify().ok
        history = list(agent.get_state_history(run("user 1", "t1")))
        assert len(history[0].values["messages"]) == 4


# --- retrievers -----------------------------------------------------------------------------------------------------------


def test_a_retriever_of_a_collection(db: agentdb.Database) -> None:
    facts = db.collection("facts")
    facts.upsert(
        ["a", "b", "c"], texts=["Ann likes tea", "Bob likes coffee", "Carol"], metadata=[{"n": i} for i in range(3)]
    )
    with AgentDBRetriever(db, collection="facts", k=2) as retriever:
        assert [one.id for one in retriever.invoke("likes coffee")] == ["b", "a"]
        assert retriever.invoke("likes coffee", k=1)[0].metadata == {"n": 1}
        assert [one.id for one in retriever.invoke("likes coffee", filter={"n": {"$lt": 1}})] == ["a"]
        assert [one.id for one in retriever.invoke("likes", filter=field("n") == 0)] == ["a"]
        assert [one.id for one in retriever.invoke("coffee", mode="text")] == ["b"]
        assert retriever.invoke("likes", rerank=lambda _, texts: [len(one) for one in texts])[0].id == "b"
        assert asyncio.run(retriever.ainvoke("likes coffee")) == retriever.invoke("likes coffee")
        assert repr(retriever) == f"AgentDBRetriever({db!r})"
        with pytest.raises(
            InvalidInputError, match="a search has no option fetch_k; there are filter, k, mode, rerank"
        ):
            retriever.invoke("x", fetch_k=3)
    assert AgentDBRetriever(db, collection="nothing").invoke("x") == []
    assert db.collections() == ["facts"]
    for wrong, said in (
        ({}, "name the collection, or ask for documents=True"),
        ({"documents": True, "embedding": DeterministicFakeEmbedding(size=8)}, "are embedded by the embedder"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            AgentDBRetriever(db, **wrong)


def test_a_retriever_of_vectors_that_langchain_made(db: agentdb.Database) -> None:
    embedding = DeterministicFakeEmbedding(size=8)
    AgentDBVectorStore(embedding, db, collection="given").add_texts(["Ann likes tea", "Bob"], ids=["a", "b"])
    for mode in ("vector", "hybrid", "text"):
        retriever = AgentDBRetriever(db, collection="given", embedding=embedding, mode=mode)
        assert retriever.invoke("Ann likes tea")[0].id == "a"
        assert asyncio.run(retriever.ainvoke("Ann likes tea"))[0].id == "a"
    assert AgentDBRetriever(db, collection="given", mode="text").invoke("tea")[0].id == "a"
    with pytest.raises(InvalidInputError, match="is not made from text"):
        AgentDBRetriever(db, collection="given").invoke("tea")


def test_a_retriever_of_documents_cites(db: agentdb.Database, tmp_path: Path) -> None:
    folder = tmp_path / "handbook"
    folder.mkdir()
    (folder / "work.md").write_text("# Work\n\n## Holidays\n\nThirty days a year.\n\n## Lunch\n\nAt noon.\n")
    (folder / "play.md").write_text("# Play\n\nTable tennis is in the cellar.\n")
    db.documents.ingest(folder)
    with AgentDBRetriever(db, documents=True, k=1) as retriever:
        (found,) = retriever.invoke("How many days of holidays?")
        assert "Thirty days a year." in found.page_content
        about = found.metadata
        text = db.documents.text(about["document_id"])
        assert text[about["start"] : about["end"]] == found.page_content
        assert about["source"].endswith("work.md")
        assert about["headings"][0] == "Work"
        assert asyncio.run(retriever.ainvoke("Where is table tennis?"))[0].metadata["source"].endswith("play.md")
        assert len(retriever.invoke("holidays", k=3)) > 1
    assert AgentDBRetriever(db, documents=True, collection="nothing").invoke("x") == []


def test_a_retriever_of_memories(db: agentdb.Database) -> None:
    for user, text in (("ann", "Ann likes tea."), ("bob", "Bob likes coffee."), (None, "Somebody likes water.")):
        db.memories.remember(
            text, agent_id="helper", user_id=user, session_id=f"of {user}", metadata={"topic": "drinks"}
        )
    retriever = AgentDBMemoryRetriever(db, agent_id="helper", user_id="ann")
    (found,) = retriever.invoke("What does Ann like?")
    assert found.page_content == "Ann likes tea."
    assert {name: found.metadata[name] for name in ("agent_id", "user_id", "session_id", "topic")} == {
        "agent_id": "helper",
        "user_id": "ann",
        "session_id": "of ann",
        "topic": "drinks",
    }
    assert found.id == db.memories.list(agent_id="helper", user_id="ann")[0].id
    assert [one.page_content for one in retriever.invoke("likes", user_id="bob")] == ["Bob likes coffee."]
    assert [one.page_content for one in retriever.invoke("likes", user_id=None)] == ["Somebody likes water."]
    assert retriever.invoke("likes", session_id="of bob") == []
    assert retriever.invoke("likes", filter={"topic": "dogs"}) == []
    assert asyncio.run(retriever.ainvoke("What does Ann like?"))[0].page_content == "Ann likes tea."
    with pytest.raises(InvalidInputError, match="a search has no option agent_id"):
        retriever.invoke("likes", agent_id="other")


def test_copies_and_configured_retrievers_share_the_database(db_path: Path) -> None:
    embedding = DeterministicFakeEmbedding(size=8)
    with (
        AgentDBVectorStore(embedding, db_path) as store,
        AgentDBVectorStore(embedding, db_path, collection="b") as other,
    ):
        store.add_texts(["Ann likes tea", "Bob likes tea"], [{"n": 1}, {"n": 2}], ids=["a", "b"])
        other.add_texts(["Carol likes tea"], ids=["c"])
        copied = copy.deepcopy(store.as_retriever(search_kwargs={"k": 1}))
        assert [one.id for one in copied.invoke("Ann likes tea")] == ["a"]
        assert copied.vectorstore._connection is store._connection
    with AgentDBRetriever(db_path, collection="langchain", embedding=embedding, mode="vector") as retriever:
        choices = {"k": ConfigurableField("k"), "filter": ConfigurableField("f"), "collection": ConfigurableField("c")}
        configured = retriever.configurable_fields(**choices)
        assert len(configured.invoke("tea")) == 2
        for chosen, ids in (({"k": 1}, {"a"}), ({"f": {"n": 2}}, {"b"}), ({"c": "b"}, {"c"})):
            chain = configured.with_config(configurable=chosen)
            assert {one.id for one in chain.invoke("Ann likes tea")} == ids
            assert {one.id for one in asyncio.run(chain.ainvoke("Ann likes tea"))} == ids
        for again in (copy.deepcopy(retriever), copy.copy(retriever), retriever.model_copy(deep=True)):
            assert again.invoke("tea") == retriever.invoke("tea")
            assert again._connection is retriever._connection
        assert set(retriever.model_dump()) & {"db_or_path", "embedding"} == set()
        assert repr(retriever) == f"AgentDBRetriever({str(db_path)!r})"
    with pytest.raises(ClosedError):
        configured.with_config(configurable={"k": 1}).invoke("tea")


def test_a_retriever_searches_what_it_says_it_does(db: agentdb.Database) -> None:
    for name in ("one", "two"):
        db.collection(name).upsert([name], texts=["tea"])
    retriever = AgentDBRetriever(db, collection="one")
    assert [one.id for one in retriever.invoke("tea")] == ["one"]
    assert [one.id for one in retriever.model_copy(update={"collection": "two"}).invoke("tea")] == ["two"]
    retriever.collection = "two"
    assert [one.id for one in retriever.invoke("tea")] == ["two"]
    retriever.collection = None
    with pytest.raises(InvalidInputError, match="name the collection"):
        retriever.invoke("tea")
    for name, value in (("documents", True), ("db_or_path", db.path), ("embedding", HashingEmbedder(8))):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(retriever, name, value)


def test_whatever_is_copied_goes_on_in_its_database_and_says_why_it_cannot_be_pickled(db: agentdb.Database) -> None:
    store = AgentDBVectorStore(None, db)
    store.add_texts(["tea"], ids=["a"])
    kit = AgentDBMemoryToolkit(db, agent_id="a")
    for one in (
        store,
        store.as_retriever(),
        AgentDBRetriever(db, collection="langchain"),
        AgentDBMemoryRetriever(db, agent_id="a"),
        AgentDBMemoryMiddleware(db, agent_id="a", has_tools=True),
        kit,
        kit.get_tools()[0],
        AgentDBChatMessageHistory(db, session_id="s"),
        AgentDBLLMCache(db),
        AgentDBSemanticCache(None, db),
        AgentDBByteStore(db),
        AgentDBRecordManager(db, namespace="n"),
        AgentDBDocumentIndex(None, db),
        AgentDBChatMemory(db, session_id="s"),
        AgentDBVectorMemory(None, db, session_id="s"),
    ):
        assert type(copy.copy(one)) is type(copy.deepcopy(one)) is type(one)
        with pytest.raises(TypeError, match=r"cannot be pickled: (give the other process the path|name the embedder)"):
            pickle.dumps(one)
    records = AgentDBRecordManager(db, namespace="n")
    copy.deepcopy(records).update(["a"])
    assert records.exists(["a"]) == [True]
    assert [one.id for one in copy.deepcopy(store).similarity_search("tea")] == ["a"]


def test_whose_memories_a_retriever_finds_is_what_it_was_made_with(db: agentdb.Database) -> None:
    for session, namespace in (("one", None), ("two", None), ("one", "n")):
        text = f"Tea in session {session} of namespace {namespace}."
        about = {"score": "theirs", "kept": True}
        db.memories.remember(text, agent_id="helper", session_id=session, namespace=namespace, metadata=about)
    whole = AgentDBMemoryRetriever(db, agent_id="helper", k=9)
    assert {one.metadata["session_id"] for one in whole.invoke("Tea")} == {"one", "two"}
    (found,) = AgentDBMemoryRetriever(db, agent_id="helper", session_id="two").invoke("Tea")
    assert found.page_content == "Tea in session two of namespace None."
    assert found.metadata["kept"] is True
    assert isinstance(found.metadata["score"], float), "what the retriever says counts more than metadata of that name"
    (found,) = AgentDBMemoryRetriever(db, agent_id="helper", namespace="n").invoke("Tea")
    assert found.page_content == "Tea in session one of namespace n."
    assert len(AgentDBMemoryRetriever(db, agent_id="helper", token_budget=10).invoke("Tea")) == 1


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_recall_counts_as_a_use_unless_it_shall_not(db: agentdb.Database, way: str) -> None:
    db.memories.remember("Tea", agent_id="helper")
    for reinforces in (False, True):
        retriever = AgentDBMemoryRetriever(db, agent_id="helper", reinforce=reinforces)
        assert len(asyncio.run(retriever.ainvoke("Tea")) if way == "ainvoke" else retriever.invoke("Tea")) == 1
        assert [one.uses for one in db.memories.list(agent_id="helper")] == [1 + reinforces], (
            "being remembered is one use"
        )


def test_a_passage_is_cited_by_its_place_whatever_its_metadata_says(db: agentdb.Database) -> None:
    db.documents.ingest(agentdb.Document("Tea is at five.", metadata={"score": "theirs", "kept": True}))
    (found,) = AgentDBRetriever(db, documents=True).invoke("Tea")
    assert found.metadata["kept"] is True
    assert isinstance(found.metadata["score"], float)


def test_a_configured_user_is_a_wall(db: agentdb.Database) -> None:
    for user in ("ann", "bob"):
        db.memories.remember(f"{user} likes tea.", agent_id="helper", user_id=user)
    retriever = AgentDBMemoryRetriever(db, agent_id="helper").configurable_fields(user_id=ConfigurableField("user"))
    assert retriever.invoke("tea") == []
    for user in ("ann", "bob"):
        found = retriever.with_config(configurable={"user": user}).invoke("tea")
        assert [one.page_content for one in found] == [f"{user} likes tea."]


def test_a_misspelt_option_is_refused(db: agentdb.Database) -> None:
    embedding = DeterministicFakeEmbedding(size=8)
    for make in (
        lambda: AgentDBRetriever(db, collection="c", top_k=3),
        lambda: AgentDBRetriever(db, collection="c", mode="words"),
        lambda: AgentDBMemoryRetriever(db, agent_id="a", user="b"),
        lambda: AgentDBMemoryRetriever(db),
        lambda: AgentDBDocumentIndex(embedding, db, top_k=3),
        lambda: AgentDBChatMemory(db, session_id="s", size=3),
        lambda: AgentDBVectorMemory(embedding, db, session_id="s", size=3),
    ):
        with pytest.raises(ValueError, match=r"top_k|mode|user|agent_id|size"):
            make()


def test_a_database_that_is_only_read(db_path: Path) -> None:
    embedding = DeterministicFakeEmbedding(size=8)
    with AgentDBVectorStore(embedding, db_path) as store, AgentDBLLMCache(db_path) as cache:
        store.add_texts(["a"], ids=["a"])
        assert cache.lookup("p", "m") is None
    with agentdb.open(db_path, read_only=True) as db, AgentDBVectorStore(embedding, db) as store:
        assert [one.id for one in store.similarity_search("a")] == ["a"]
        assert AgentDBLLMCache(db).lookup("p", "m") is None
        with pytest.raises(AccessDeniedError):
            store.add_texts(["b"])


# --- classic --------------------------------------------------------------------------------------------------------------


def test_memory_of_classic_chains(db: agentdb.Database) -> None:
    with (
        AgentDBChatMemory(db, session_id="s", k=2) as memory,
        AgentDBChatMemory(db, session_id="t", return_messages=True) as other,
    ):
        for i in range(3):
            memory.save_context({"input": f"question {i}"}, {"output": f"answer {i}"})
        asyncio.run(other.asave_context({"input": "hello"}, {"output": "hi"}))
        assert memory.memory_variables == ["history"]
        shown = "Human: question 1\nAI: answer 1\nHuman: question 2\nAI: answer 2"
        assert memory.load_memory_variables({}) == {"history": shown}
        assert asyncio.run(memory.aload_memory_variables({})) == {"history": shown}
        assert other.load_memory_variables({}) == {"history": [HumanMessage("hello"), AIMessage("hi")]}
        memory.clear()
        assert memory.load_memory_variables({}) == {"history": ""}
        assert len(other.load_memory_variables({})["history"]) == 2
    with pytest.raises(InvalidInputError, match="k must be an int of 1 or more"):
        AgentDBChatMemory(db, session_id="s", k=0)


def test_memory_by_nearness_of_classic_chains(db: agentdb.Database) -> None:
    with (
        AgentDBVectorMemory(None, db, session_id="s", k=1, exclude_input_keys=["date"]) as memory,
        AgentDBVectorMemory(None, db, session_id="t", input_key="question", memory_key="past") as other,
    ):
        memory.save_context({"input": "My dog is called Bello", "date": "today"}, {"output": "Nice"})
        memory.save_context({"input": "I play the cello", "history": "old"}, {"output": "Lovely"})
        assert memory.load_memory_variables({"input": "dog"}) == {
            "history": "input: My dog is called Bello\noutput: Nice"
        }
        assert asyncio.run(memory.aload_memory_variables({"input": "cello"})) == {
            "history": "input: I play the cello\noutput: Lovely"
        }
        assert other.load_memory_variables({"question": "dog", "more": "x"}) == {"past": ""}
        asyncio.run(other.asave_context({"question": "dog?"}, {"output": "cat"}))
        other.clear()
        asyncio.run(other.aclear())
        assert memory.load_memory_variables({"input": "dog"})["history"]


@pytest.mark.parametrize(
    ("missing", "name", "said"),
    [
        ("langchain_classic", "AgentDBChatMemory", "pip install 'agentdb-lance[langchain-classic]'"),
        ("langchain", "AgentDBMemoryMiddleware", "pip install langchain"),
        ("langchain_core", "AgentDBVectorStore", "pip install 'agentdb-lance[langchain]'"),
    ],
)
def test_what_is_not_installed_is_named_when_it_is_asked_for(missing: str, name: str, said: str) -> None:
    program = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(name)
from importlib import util
found = util.find_spec
util.find_spec = lambda name, package=None: None if name == {missing!r} else found(name, package)
sys.meta_path.insert(0, Hidden())
import agentdb
try:
    import langchain_agentdb
    if {missing!r} != "langchain_core":
        langchain_agentdb.AgentDBVectorStore
    getattr(langchain_agentdb, {name!r})
except agentdb.MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert said in done.stdout
