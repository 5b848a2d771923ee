"""Byte store, caches and chat history: what comes back, what never does, and who sees whose."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import create_kv_docstore
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListLLM, GenericFakeChatModel
from langchain_core.load import dumps
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory
from pydantic import BaseModel

import agentdb
from agentdb import AccessDeniedError, Config, IntegrityError, InvalidInputError, UnavailableError
from agentdb_embedders import HashingEmbedder
from langchain_agentdb import (
    AgentDBByteStore,
    AgentDBChatMessageHistory,
    AgentDBDocumentIndex,
    AgentDBLLMCache,
    AgentDBRecordManager,
    AgentDBSemanticCache,
    AgentDBVectorStore,
)


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = dt.datetime(2026, 5, 8, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


class Parsed(BaseModel):
    answer: int


class Mine(HumanMessage):
    """A class of the user's own."""


MESSAGES: list[BaseMessage] = [
    HumanMessage("hello", id="h1", name="ann"),
    HumanMessage([{"type": "text", "text": "look"}, {"type": "image", "base64": "AAAA", "mime_type": "image/png"}]),
    SystemMessage("be brief 🙂\0"),
    AIMessage(
        "",
        # All that a model can say in JSON: whole numbers of any length, and half of an emoji.
        tool_calls=[
            {
                "name": "add",
                "args": {"a": [1, 2**70, -(2**64)], "b": [2.5, None, "\ud83d"]},
                "id": "1",
                "type": "tool_call",
            }
        ],
        usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        response_metadata={
            "logprobs": [-0.5, float("-inf")],
            "raw": b"\xff\0",
            "deep": {"lc": 1, "type": "constructor"},
        },
    ),
    AIMessage("no", additional_kwargs={"refusal": None}, invalid_tool_calls=[]),
    ToolMessage("3", tool_call_id="call 1", artifact={"rows": [1, 2]}, status="error"),
    ChatMessage("ahem", role="moderator"),
    FunctionMessage("3", name="add"),
    RemoveMessage(id="h1"),
    HumanMessageChunk("hel"),
    AIMessageChunk(
        "", tool_call_chunks=[{"name": "add", "args": '{"a": ', "id": "call 2", "index": 0, "type": "tool_call_chunk"}]
    ),
]
HOSTILE = ["' OR 1=1 --", "%", "_", "a", "ab", "a%", "a_", "*", "\\", "\0", "🙂", "session", "session2", " session"]


# --- byte store -----------------------------------------------------------------------------------------------------------


def test_keys_are_met_to_the_letter_and_namespaces_do_not_leak(db_path: Path) -> None:
    with agentdb.open(db_path) as db, AgentDBByteStore(db) as store:
        others = [AgentDBByteStore(db, namespace=one) for one in HOSTILE]
        for number, one in enumerate(others):
            one.mset([(key, f"{number} {key}".encode()) for key in HOSTILE])
        assert list(store.yield_keys()) == []
        for doomed in others[::2]:
            doomed.mdelete(HOSTILE[1:])
        for number, one in enumerate(others):
            kept = HOSTILE[:1] if number % 2 == 0 else HOSTILE
            assert one.mget(HOSTILE) == [f"{number} {key}".encode() if key in kept else None for key in HOSTILE]
            for prefix in ["", *HOSTILE]:
                assert list(one.yield_keys(prefix=prefix)) == sorted(key for key in kept if key.startswith(prefix))
        store.mset([("b", b"1"), ("b", b"2")])
        assert store.mget(["b"]) == [b"2"]
        db.flush()
        store.mset([("c", b"3"), ("a", b"4")])
        assert list(store.yield_keys()) == ["a", "b", "c"], "in order, wherever they are stored"


def test_bytes_only_and_all_or_none(db_path: Path) -> None:
    with AgentDBByteStore(db_path) as store:
        for wrong, said in (
            ([("a", b"1"), ("b", "text")], "value must be bytes, not str"),
            ([("a", b"1"), (3, b"2")], "key must be a str, not int"),
            ([("a", b"1"), ("k" * 5_000, b"2")], "longer than 4096"),
        ):
            with pytest.raises(InvalidInputError, match=said):
                store.mset(wrong)
        assert list(store.yield_keys()) == []
        with pytest.raises(InvalidInputError, match="keys must be a list"):
            store.mget("abc")
    with pytest.raises(InvalidInputError, match="namespace must be a str, not int"):
        AgentDBByteStore(db_path, namespace=3)


def test_it_serves_document_stores_and_embedding_caches(db_path: Path) -> None:
    class Counting(Embeddings):
        asked = 0

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            self.asked += len(texts)
            return [[float(len(one)), 0.5] for one in texts]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    model = Counting()
    with AgentDBByteStore(db_path) as store:
        documents = create_kv_docstore(store)
        documents.mset([("d", Document("text", metadata={"n": [1]}))])
        assert documents.mget(["d", "e"]) == [Document("text", metadata={"n": [1]}), None]
        cached = CacheBackedEmbeddings.from_bytes_store(model, store, namespace="model", key_encoder="sha256")
        for _ in range(3):
            assert cached.embed_documents(["a", "bb"]) == [[1.0, 0.5], [2.0, 0.5]]
        assert model.asked == 2
    with AgentDBByteStore(db_path) as store:
        assert create_kv_docstore(store).mget(["d"]) == [Document("text", metadata={"n": [1]})]


def test_a_first_call_inside_a_transaction_waits_for_no_first_call_outside(db_path: Path) -> None:
    with agentdb.open(db_path, config=Config(write_timeout_s=5)) as db, AgentDBByteStore(db) as store:
        began = threading.Event()

        def outside() -> None:
            began.set()
            store.mset([("outside", b"1")])

        other = threading.Thread(target=outside)
        with db.transaction():
            other.start()
            began.wait(60)
            time.sleep(0.05)  # let it wait for its turn
            store.mset([("inside", b"2")])
        other.join(60)
        assert store.mget(["inside", "outside"]) == [b"2", b"1"]


def test_async_keys_come_in_steps(db_path: Path) -> None:
    async def run() -> None:
        async with AgentDBByteStore(db_path) as store:
            await store.amset([(f"{i:04}", b"") for i in range(600)])
            assert [one async for one in store.ayield_keys()] == [f"{i:04}" for i in range(600)]
            assert [one async for one in store.ayield_keys(prefix="059")] == [f"059{i}" for i in range(10)]
            await store.amdelete([f"{i:04}" for i in range(599)])
            assert [one async for one in store.ayield_keys()] == ["0599"]
            assert await store.amget(["0599", "x"]) == [b"", None]

    asyncio.run(run())


# --- caches ---------------------------------------------------------------------------------------------------------------


def answers() -> list[list[Any]]:
    chats = [
        ChatGeneration(message=one, generation_info={"finish": "stop"})
        for one in MESSAGES
        if not isinstance(one, RemoveMessage)
    ]
    return [
        [Generation(text="a", generation_info={"n": [1, {"x": None}]}), Generation(text="")],
        [GenerationChunk(text="b")],
        chats,
        [ChatGenerationChunk(message=AIMessageChunk("c"))],
        [],
    ]


def test_a_cache_whose_table_was_rolled_back_is_no_matter_for_maintenance(db_path: Path) -> None:
    with agentdb.open(db_path, config=Config(maintenance=False)) as db:
        cache = AgentDBLLMCache(db)

        def fail() -> None:
            with db.transaction():
                cache.update("prompt", "model", [Generation(text="answer")])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        db.optimize()
        assert cache.lookup("prompt", "model") is None


def test_an_answer_comes_back_as_it_was(db_path: Path) -> None:
    with AgentDBLLMCache(db_path) as cache:
        for i, one in enumerate(answers()):
            cache.update(f"prompt {i}", "model", one)
    with AgentDBLLMCache(db_path) as cache:
        for i, one in enumerate(answers()):
            assert cache.lookup(f"prompt {i}", "model") == one
            assert [type(x) for x in cache.lookup(f"prompt {i}", "model")] == [type(x) for x in one]


def test_what_a_model_parsed_comes_back_as_data(db_path: Path) -> None:
    with AgentDBLLMCache(db_path) as cache:
        message = AIMessage("42", additional_kwargs={"parsed": Parsed(answer=42)})
        cache.update("p", "m", [ChatGeneration(message=message)])
        assert cache.lookup("p", "m")[0].message.additional_kwargs == {"parsed": {"answer": 42}}


def test_prompt_and_model_are_met_to_the_letter(db_path: Path) -> None:
    long = "x" * 100_000
    with AgentDBLLMCache(db_path) as cache:
        pairs = [(a, b) for a in [*HOSTILE, long, long + "y", "", "\ud800"] for b in ("m", "m2", "")]
        for a, b in pairs:
            cache.update(a, b, [Generation(text=f"{len(a)} {b}")])
        for a, b in pairs:
            assert cache.lookup(a, b)[0].text == f"{len(a)} {b}"
        assert cache.lookup("am", "") is None
        cache.clear(llm_string="m")
        assert [cache.lookup(a, b) is None for a, b in pairs] == [b == "m" for _, b in pairs]
        cache.clear()
        assert all(cache.lookup(a, b) is None for a, b in pairs)
        with pytest.raises(InvalidInputError, match="clear has no option model"):
            cache.clear(model="m")


def test_the_file_holds_no_prompt(db_path: Path) -> None:
    with AgentDBLLMCache(db_path) as cache:
        cache.update("a very secret prompt", "a very secret model", [Generation(text="a public answer")])
    found = b"".join(one.read_bytes() for one in db_path.rglob("*") if one.is_file())
    assert b"public answer" in found
    assert b"very secret" not in found


@pytest.mark.parametrize("kind", ["exact", "semantic"])
def test_answers_expire_and_are_swept(db_path: Path, kind: str) -> None:
    clock = Clock()
    with agentdb.open(db_path, config=Config(clock=clock), embedder=HashingEmbedder(64)) as db:
        make: Any = (
            (lambda **options: AgentDBSemanticCache(None, db, **options))
            if kind == "semantic"
            else (lambda **o: AgentDBLLMCache(db, **o))
        )
        with make(ttl_s=10) as brief, make() as lasting:
            brief.update("one question", "m", [Generation(text="1")])
            lasting.update("another thing", "m", [Generation(text="2")])
            clock.pass_s(9.9)
            assert brief.lookup("one question", "m") is not None
            clock.pass_s(0.1)
            assert brief.lookup("one question", "m") is None
            assert lasting.lookup("another thing", "m") is not None
            db.optimize()
            assert db.table("_langchain_cache").count() == 1
            if kind == "semantic":
                assert db.collection("semantic_cache").count() == 1
        for wrong in (0, -1, float("inf"), float("nan"), True, "x"):
            with pytest.raises(InvalidInputError, match="ttl_s must be a number of seconds above 0"):
                make(ttl_s=wrong)
        for endless in (1e12, 1e300):
            with pytest.raises(InvalidInputError, match="ttl_s must be at most"):
                make(ttl_s=endless)


class Attack:
    """Would leave a trace if it was ever revived."""

    made = 0

    def __reduce__(self) -> Any:
        Attack.made += 1
        return (Attack, ())


FORGED = [
    b"\x80\x04\x95N.",  # a pickle
    b"",
    msgpack.packb(["Generation", [None, "x"]]),
    msgpack.packb([["os.system", [None, "true"]]]),
    msgpack.packb([["ChatGeneration", [None, ["subprocess.Popen", {"args": "true"}]]]]),
    msgpack.packb([["ChatGeneration", [None, ["AIMessage", ["content"]]]]]),
    msgpack.packb([["ChatGeneration", [None, ["ToolMessage", {"content": "no id"}]]]]),
    msgpack.packb([["Generation", ["info", "x"]]]),
    msgpack.packb([{"lc": 1, "type": "constructor", "id": ["langchain", "llms", "OpenAI"], "kwargs": {}}]),
    msgpack.packb([["Generation", [None, "x"], "more"]]),
    msgpack.packb([["Generation", [{1: "x"}, "x"]]]),
    msgpack.packb([["Generation", [{"a": msgpack.ExtType(2, b"os.system")}, "x"]]]),
]


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
def test_a_forged_answer_makes_no_object(db_path: Path, forged: bytes) -> None:
    with agentdb.open(db_path, embedder=HashingEmbedder(64)) as db:
        with AgentDBLLMCache(db) as cache:
            cache.update("p", "m", [Generation(text="x")])
            row = db.table("_langchain_cache").scan().__next__()
            db.table("_langchain_cache").put({**row, "answer": forged})
            with pytest.raises(IntegrityError, match="stored"):
                cache.lookup("p", "m")
            cache.clear()
        with AgentDBSemanticCache(None, db) as cache:
            cache.update("what is it", "m", [Generation(text="x")])
            db.table("_langchain_cache").delete_many(filter=~agentdb.field("model").is_null())
            rows = db.collection("semantic_cache")
            (one,) = rows.scan()
            rows.update([one.id], metadata=[{**one.metadata, "answer": base64.b64encode(forged).decode()}])
            with pytest.raises(IntegrityError, match="stored"):
                cache.lookup("what is it", "m")
            rows.update([one.id], metadata=[{**one.metadata, "answer": "no base64!"}])
            with pytest.raises(IntegrityError, match="stored"):
                cache.lookup("what is it", "m")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda: Generation(text="x", generation_info={"o": Attack()}), "what cannot be stored"),
        (
            lambda: ChatGeneration(message=ToolMessage("x", tool_call_id="1", artifact=Attack())),
            "what cannot be stored",
        ),
        (lambda: ChatGeneration(message=Mine("x")), r"a Mine cannot be stored unless it is named: allow=\[Mine\]"),
        (lambda: "text", "not str"),
    ],
    ids=["information", "artifact", "class", "text"],
)
def test_what_is_no_data_is_refused_and_not_stored(db_path: Path, value: Any, said: str) -> None:
    with AgentDBLLMCache(db_path) as cache:
        with pytest.raises(InvalidInputError, match=said):
            cache.update("p", "m", [value()])
        assert cache.lookup("p", "m") is None
    assert Attack.made == 0


def test_models_use_the_caches(db_path: Path) -> None:
    with AgentDBLLMCache(db_path) as cache:
        llm = FakeListLLM(responses=["one", "two", "three"], cache=cache)
        assert [llm.invoke("p"), llm.invoke("p"), llm.invoke("q")] == ["one", "one", "two"]
        chat = GenericFakeChatModel(messages=iter([AIMessage("first"), AIMessage("second")]), cache=cache)
        assert [chat.invoke("p").content, chat.invoke("p").content, chat.invoke("q").content] == [
            "first",
            "first",
            "second",
        ]
        assert asyncio.run(chat.ainvoke("p")).content == "first"


# --- the semantic cache ---------------------------------------------------------------------------------------------------


class Topics(Embeddings):
    """Texts about one topic are near each other; counts what it is asked."""

    topics = ("capital", "weather")

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed_query(self, text: str) -> list[float]:
        self.asked.append(text)
        return [float(one in text.lower()) + 0.01 * len(text) * (one == "capital") for one in self.topics]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(one) for one in texts]


def test_a_question_in_other_words_gets_the_same_answer(db_path: Path) -> None:
    with AgentDBSemanticCache(Topics(), db_path, min_score=0.9) as cache:
        cache.update("What is the capital?", "m", [Generation(text="Lisbon")])
        assert cache.lookup("Name the capital", "m") == [Generation(text="Lisbon")]
        assert cache.lookup("Name the capital", "another model") is None
        assert cache.lookup("How is the weather?", "m") is None
        cache.clear(llm_string="another model")
        assert cache.lookup("Name the capital", "m") is not None
        cache.clear(llm_string="m")
        assert cache.lookup("Name the capital", "m") is None
        assert cache.lookup("What is the capital?", "m") is None
        cache.update("What is the capital?", "m", [Generation(text="Lisbon")])
        cache.clear()
        assert cache.lookup("Name the capital", "m") is None


def test_a_prompt_without_a_direction_is_met_to_the_letter_only(db_path: Path) -> None:
    class Words(Embeddings):
        def embed_query(self, text: str) -> list[float]:
            return [float(one in text) for one in ("capital", "weather")]

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [self.embed_query(one) for one in texts]

    with AgentDBSemanticCache(Words(), db_path) as cache:
        for prompt in ("capital", "hello", "goodbye"):
            assert cache.lookup(prompt, "m") is None
            cache.update(prompt, "m", [Generation(text=prompt)])
        for prompt in ("capital", "hello", "goodbye"):
            assert cache.lookup(prompt, "m") == [Generation(text=prompt)]
        assert cache.lookup("a capital", "m") == [Generation(text="capital")]


def test_long_prompts_are_met_to_the_letter_only(db_path: Path) -> None:
    embeddings = Topics()
    with AgentDBSemanticCache(embeddings, db_path, min_score=0.5, max_prompt_chars=50) as cache:
        long = "What is the capital of " + "x" * 50
        cache.update(long, "m", [Generation(text="x")])
        assert cache.lookup(long, "m") is not None
        assert cache.lookup(long + "y", "m") is None
        assert embeddings.asked == []


def test_a_chat_is_read_as_its_words(db_path: Path) -> None:
    embeddings = Topics()
    with AgentDBSemanticCache(embeddings, db_path, min_score=0.9) as cache:
        chat = GenericFakeChatModel(messages=iter([AIMessage(str(i)) for i in range(9)]), cache=cache)
        assert chat.invoke("What is the capital?").content == "0"
        assert set(embeddings.asked) == {"What is the capital?"}
        assert chat.invoke([HumanMessage([{"type": "text", "text": "Name the capital"}])]).content == "0"
        assert chat.invoke([SystemMessage("Be brief"), HumanMessage("weather?")]).content == "1"
        assert embeddings.asked[-1] == "weather?"
        asked = len(embeddings.asked)
        picture = HumanMessage(
            [{"type": "text", "text": "the capital"}, {"type": "image", "base64": "AA", "mime_type": "image/png"}]
        )
        assert chat.invoke([picture]).content == "2"
        for more in (
            ToolMessage("the capital", tool_call_id="1"),
            AIMessage("the capital", additional_kwargs={"function_call": {"name": "capital"}}),
        ):
            assert cache.lookup(dumps([more]), "m") is None
        assert len(embeddings.asked) == asked
        call = AIMessage("", tool_calls=[{"name": "capital", "args": {}, "id": "1"}])
        assert chat.invoke([HumanMessage("capital"), call, ToolMessage("x", tool_call_id="1")]).content == "3"
        assert len(embeddings.asked) == asked, "what is more than words has no vector"
        assert chat.invoke([picture]).content == "2"


def test_the_cache_deletes_nothing_but_its_own(db_path: Path) -> None:
    clock = Clock()
    with agentdb.open(db_path, config=Config(clock=clock)) as db:
        documents = AgentDBVectorStore(Topics(), db, collection="semantic_cache")
        documents.add_texts(["the weather"], [{"model": "m", "expires_at": 1.0}], ids=["d"])
        with AgentDBSemanticCache(Topics(), db, ttl_s=10) as cache:
            for clear in (cache.clear, lambda: cache.clear(llm_string="m"), lambda: clock.pass_s(11) or db.optimize()):
                cache.update("What is the capital?", "m", [Generation(text="Lisbon")])
                assert cache.lookup("Name the capital", "m") == [Generation(text="Lisbon")]
                clear()
                assert cache.lookup("What is the capital?", "m") is None
                assert [one.id for one in documents.similarity_search("weather", k=9)] == ["d"]


CAPITAL = HumanMessage("What is the capital?")
OTHERS: list[list[BaseMessage]] = [
    [SystemMessage("Answer in German"), CAPITAL],
    [SystemMessage("Answer in French "), CAPITAL],
    [CAPITAL],
    [SystemMessage("Answer in French"), HumanMessage("Tell me about Peru"), AIMessage("Gladly"), CAPITAL],
    [SystemMessage("Answer in French"), HumanMessage("What is the capital?", name="bob")],
    [SystemMessage("Answer in French"), ChatMessage("What is the capital?", role="human")],
    [SystemMessage("Answer in French"), AIMessage("What is the capital?")],
    [SystemMessage("Answer in French"), SystemMessage("What is the capital?")],
    [HumanMessage("Answer in French"), CAPITAL],
    [HumanMessage("system: Answer in French\nhuman: What is the capital?")],
]


@pytest.mark.parametrize("other", OTHERS, ids=range(len(OTHERS)))
def test_an_answer_given_under_other_circumstances_is_no_answer(db_path: Path, other: list[BaseMessage]) -> None:
    class Same(Embeddings):
        def embed_query(self, text: str) -> list[float]:
            return [1.0, 0.0]

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [self.embed_query(one) for one in texts]

    with AgentDBSemanticCache(Same(), db_path) as cache:
        cache.update(dumps([SystemMessage("Answer in French"), CAPITAL]), "m", [Generation(text="Paris")])
        again = [SystemMessage("Answer in French"), HumanMessage("And the capital is?", id="1")]
        assert cache.lookup(dumps(again), "m") == [Generation(text="Paris")]
        assert cache.lookup(dumps(again), "m2") is None
        assert cache.lookup(dumps(other), "m") is None
        assert cache.lookup("What is the capital?", "m") is None
        for broken in ("\ud800", dumps([CAPITAL, HumanMessage("\ud800")])):
            assert cache.lookup(broken, "m") is None
            cache.update(broken, "m", [Generation(text="x")])
            assert cache.lookup(broken, "m") == [Generation(text="x")]


def test_prompts_that_only_look_like_a_chat(db_path: Path) -> None:
    embeddings = Topics()
    with AgentDBSemanticCache(embeddings, db_path, min_score=0.99) as cache:
        for prompt in (
            "[1, 2] capital",
            "[" * 900,
            '["capital"]',
            '[{"lc": 1}]',
            "[]",
            '[{"type": "constructor", "kwargs": 3}]',
        ):
            cache.update(prompt, "m", [Generation(text=prompt)])
            assert cache.lookup(prompt, "m") == [Generation(text=prompt)]


def test_semantic_cache_is_the_same_when_awaited(db_path: Path) -> None:
    async def run() -> None:
        async with AgentDBSemanticCache(Topics(), db_path, min_score=0.9) as cache:
            await cache.aupdate("What is the capital?", "m", [Generation(text="Lisbon")])
            assert await cache.alookup("Name the capital", "m") == [Generation(text="Lisbon")]
            assert await cache.alookup("What is the capital?", "m") == [Generation(text="Lisbon")]
            await cache.aclear(llm_string="m")
            assert await cache.alookup("Name the capital", "m") is None

    asyncio.run(run())
    for wrong in ({"min_score": 0}, {"min_score": 1.1}, {"min_score": True}, {"max_prompt_chars": -1}):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            AgentDBSemanticCache(Topics(), db_path, **wrong)


# --- chat history ---------------------------------------------------------------------------------------------------------


def test_messages_of_every_kind_come_back_as_they_were(db_path: Path) -> None:
    with AgentDBChatMessageHistory(db_path, session_id="s") as history:
        history.add_messages(MESSAGES[:5])
        for one in MESSAGES[5:]:
            history.add_message(one)
    with agentdb.open(db_path) as db, AgentDBChatMessageHistory(db, session_id="s") as history:
        assert history.messages == MESSAGES
        db.optimize()
        history.add_user_message("more")
        history.add_ai_message("yes")
        assert history.messages == [*MESSAGES, HumanMessage("more"), AIMessage("yes")]
        assert [type(one) for one in history.messages[:-2]] == [type(one) for one in MESSAGES]


def test_sessions_do_not_bleed(db_path: Path) -> None:
    with agentdb.open(db_path) as db:
        sessions = {one: AgentDBChatMessageHistory(db, session_id=one) for one in HOSTILE}
        for one, history in sessions.items():
            history.add_user_message(f"I am {one!r}")
        for doomed in HOSTILE[::3]:
            sessions[doomed].clear()
        for one, history in sessions.items():
            assert [m.content for m in history.messages] == ([] if one in HOSTILE[::3] else [f"I am {one!r}"])
        assert db.table("_langchain_sessions").count() == len(HOSTILE) - len(HOSTILE[::3])
        sessions[HOSTILE[0]].add_user_message("again")
        assert [m.content for m in sessions[HOSTILE[0]].messages] == ["again"]
    for wrong in ("", 3, None):
        with pytest.raises(InvalidInputError, match="session_id must"):
            AgentDBChatMessageHistory(db_path, session_id=wrong)


def test_messages_of_classes_of_one_s_own_are_named(db_path: Path) -> None:
    with AgentDBChatMessageHistory(db_path, session_id="s") as history:
        with pytest.raises(InvalidInputError, match=r"allow=\[Mine\]"):
            history.add_messages([HumanMessage("a"), Mine("b")])
        with pytest.raises(InvalidInputError, match="a message must be a BaseMessage, not str"):
            history.add_messages(["a"])
        assert history.messages == []
    with AgentDBChatMessageHistory(db_path, session_id="s", allow=[Mine]) as history:
        history.add_messages([Mine("b")])
        assert history.messages == [Mine("b")]
        assert type(history.messages[0]) is Mine
    with (
        AgentDBChatMessageHistory(db_path, session_id="s") as history,
        pytest.raises(IntegrityError, match="not known"),
    ):
        assert history.messages
    for wrong in ([str], [type("HumanMessage", (HumanMessage,), {})]):
        with pytest.raises(InvalidInputError, match="allow"):
            AgentDBChatMessageHistory(db_path, session_id="s", allow=wrong)


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
def test_chains_with_a_history(db_path: Path) -> None:
    with agentdb.open(db_path) as db:
        model = GenericFakeChatModel(messages=iter([AIMessage(f"answer {i}") for i in range(9)]))
        prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{input}")])
        chain = RunnableWithMessageHistory(
            prompt | model,
            lambda session_id: AgentDBChatMessageHistory(db, session_id=session_id),
            input_messages_key="input",
            history_messages_key="history",
        )
        for who in ("ann", "bob", "ann"):
            chain.invoke({"input": f"I am {who}"}, {"configurable": {"session_id": who}})
        asyncio.run(chain.ainvoke({"input": "I am bob"}, {"configurable": {"session_id": "bob"}}))
        for who, numbers in (("ann", (0, 2)), ("bob", (1, 3))):
            said = [one.content for one in AgentDBChatMessageHistory(db, session_id=who).messages]
            assert said == [x for i in numbers for x in (f"I am {who}", f"answer {i}")]


def test_history_is_the_same_when_awaited_and_blocks_no_loop(db_path: Path) -> None:
    async def run(db: agentdb.Database) -> None:
        history = AgentDBChatMessageHistory(db, session_id="s")
        await history.aadd_messages([HumanMessage("a")])
        holds, done = threading.Event(), threading.Event()

        def hold() -> None:
            with db.transaction():
                holds.set()
                assert done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        await asyncio.to_thread(holds.wait)
        adding = asyncio.create_task(history.aadd_messages([AIMessage("b")]))
        for _ in range(20):
            await asyncio.sleep(0.001)
            assert await history.aget_messages() == [HumanMessage("a")]
        assert not adding.done()
        done.set()
        await adding
        thread.join()
        assert await history.aget_messages() == [HumanMessage("a"), AIMessage("b")]
        await history.aclear()
        assert await history.aget_messages() == []
        await history.aclose()

    with agentdb.open(db_path) as db:
        asyncio.run(run(db))


# ---------------------------------------------------------------------------------------------------- read-only databases


def test_a_read_only_database_without_tables_is_empty_to_readers_and_closed_to_writers(db_path: Path) -> None:
    agentdb.open(db_path).close()
    with agentdb.open(db_path, read_only=True) as db:
        store, history = AgentDBByteStore(db), AgentDBChatMessageHistory(db, session_id="1")
        exact, alike = AgentDBLLMCache(db), AgentDBSemanticCache(HashingEmbedder(), db)
        records, index = AgentDBRecordManager(db, namespace="n"), AgentDBDocumentIndex(HashingEmbedder(), db)
        assert store.mget(["a", "b"]) == [None, None]
        assert list(store.yield_keys()) == list(store.yield_keys(prefix="a")) == []
        assert history.messages == []
        assert exact.lookup("p", "m") is alike.lookup("p", "m") is None
        assert records.exists(["a", "b"]) == [False, False]
        assert records.list_keys() == []
        assert index.get(["a"]) == index.invoke("a") == []
        for write in (
            lambda: store.mset([("a", b"")]),
            lambda: store.mdelete(["a"]),
            lambda: history.add_messages([HumanMessage("x")]),
            history.clear,
            lambda: exact.update("p", "m", [Generation(text="x")]),
            lambda: alike.update("p", "m", [Generation(text="x")]),
            exact.clear,
            lambda: records.update(["a"]),
            records.create_schema,
            lambda: index.upsert([Document("x")]),
        ):
            with pytest.raises(AccessDeniedError):
                write()


def test_a_snapshot_of_before_the_first_write_is_empty_to_readers(db_path: Path) -> None:
    with agentdb.open(db_path) as db:
        store, history, cache = AgentDBByteStore(db), AgentDBChatMessageHistory(db, session_id="1"), AgentDBLLMCache(db)
        alike, records = AgentDBSemanticCache(HashingEmbedder(), db), AgentDBRecordManager(db, namespace="n")
        vectors = AgentDBVectorStore(HashingEmbedder(), db)

        def fill() -> None:
            store.mset([("a", b"1")])
            history.add_messages([HumanMessage("x")])
            for one in (cache, alike):
                one.update("p", "m", [Generation(text="x")])
            records.update(["a"])
            vectors.add_texts(["x"], ids=["a"])

        def found() -> list[bool]:
            return [
                store.mget(["a"]) == [b"1"],
                list(store.yield_keys()) == ["a"],
                history.messages != [],
                cache.lookup("p", "m") is not None,
                alike.lookup("p", "m") is not None,
                records.exists(["a"]) == [True],
                records.list_keys() == ["a"],
                vectors.get_by_ids(["a"]) != [],
                vectors.similarity_search("x") != [],
            ]

        with db.snapshot():
            assert not any(found())
            with pytest.raises(UnavailableError, match="leave its block before you write"):
                fill()
            other = threading.Thread(target=fill)
            other.start()
            other.join()
            assert not any(found()), "it sees one state, whatever others write meanwhile"
        assert all(found())
        with db.snapshot():
            assert all(found())
