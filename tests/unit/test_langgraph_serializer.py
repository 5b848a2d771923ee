from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import pickle
import random
import subprocess
import sys
from collections import deque
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import ormsgpack
import pytest
from langchain_core import messages
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Command, Interrupt, Send
from pydantic import BaseModel, SecretStr

import agentdb
from agentdb import Config, IntegrityError, InvalidInputError
from langgraph_agentdb import AgentDBCache, AgentDBSaver, StrictSerializer, serializer

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


class Colour(enum.Enum):
    RED = "red"


class Model(BaseModel):
    name: str
    inner: Model | None = None
    said: HumanMessage | None = None


@dataclasses.dataclass
class Data:
    n: int
    said: list[AIMessage]


class Named(NamedTuple):
    a: int


MESSAGES = [
    HumanMessage("hello"),
    HumanMessage([{"type": "text", "text": "x"}, "y"], id="1", name="ada", additional_kwargs={"a": {"b": [1, None]}}),
    AIMessage("", id="2", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "c", "type": "tool_call"}]),
    AIMessage(
        "x", usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}, response_metadata={"m": 1}
    ),
    AIMessage(
        "x", invalid_tool_calls=[{"name": "f", "args": "{", "id": None, "error": "e", "type": "invalid_tool_call"}]
    ),
    ToolMessage("done", tool_call_id="c", artifact={"rows": [1, 2]}, status="error"),
    ToolMessage([{"type": "text", "text": "x"}], tool_call_id="c"),
    SystemMessage("be kind \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")),
    AIMessage("odd \ud800 surrogate"),
]
OTHERS = [
    AIMessageChunk("part", id="3"),
    messages.RemoveMessage(id="4"),
    messages.ChatMessage("x", role="judge"),
    messages.FunctionMessage("x", name="f"),
    Send("node", {"said": HumanMessage("x")}),
    Interrupt(value={"q": 1}, id="i"),
    Command(resume=1),
    dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    dt.timedelta(1, 2, 3),
    UUID(int=5),
    Decimal("1.50"),
    {1, 2},
    deque([1]),
    Path("a/b"),
    None,
    b"bytes",
    {"a": [HumanMessage("nested")], 5: "five"},
    [],
    [1, HumanMessage("x")],
    [HumanMessage("x"), Decimal(1), AIMessage("y")],
    [HumanMessage("x", additional_kwargs={"at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "d": Decimal(1)})],
]


def test_the_bytes_are_those_of_langgraph():
    theirs, ours = JsonPlusSerializer(allowed_msgpack_modules=None), StrictSerializer()
    for value in [*MESSAGES, *OTHERS, MESSAGES, [MESSAGES], {"messages": MESSAGES}]:
        dumped = ours.dumps_typed(value)
        assert dumped == theirs.dumps_typed(value)
        expected = theirs.loads_typed(dumped)
        found = ours.loads_typed(dumped)
        assert found == expected
        assert type(found) is type(expected)
        assert repr(found) == repr(expected)
    shuffled = random.Random(1).sample(MESSAGES[:-1] * 20, 100)
    found = ours.loads_typed(ours.dumps_typed(shuffled))
    assert found == shuffled
    for one, original in zip(found, shuffled, strict=True):
        assert type(one) is type(original)
        assert one.model_fields_set == theirs.loads_typed(theirs.dumps_typed(original)).model_fields_set
        assert one is not original


def test_messages_take_the_short_way_and_only_while_it_leads_there(monkeypatch):
    ours = StrictSerializer()
    dumped = ours.dumps_typed(MESSAGES)
    ours.loads_typed(dumped)
    assert {serializer._trusted[type(one)] for one in MESSAGES} == {True}
    made = []
    monkeypatch.setattr(HumanMessage, "__init__", lambda *args, **kwargs: made.append(1))
    assert [one.type for one in ours.loads_typed(dumped)] == [one.type for one in MESSAGES]
    assert made == []
    monkeypatch.undo()

    real = HumanMessage.__init__

    def louder(self: HumanMessage, content: Any, **kwargs: Any) -> None:
        real(self, content=f"{content}!", **kwargs)

    monkeypatch.setattr(serializer, "_trusted", {})
    monkeypatch.setattr(HumanMessage, "__init__", louder)
    assert ours.loads_typed(ours.dumps_typed([HumanMessage.model_construct(content="hi")]))[0].content == "hi!"
    assert serializer._trusted == {HumanMessage: False}


def test_broken_messages_are_left_to_the_long_way():
    theirs, ours = JsonPlusSerializer(allowed_msgpack_modules=None), StrictSerializer()
    for values in ({"content": 5}, {"type": "human"}, {"content_blocks": [{"type": "text", "text": "x"}]}, 7):
        for cls in (HumanMessage, ToolMessage):
            packed = ormsgpack.packb((cls.__module__, cls.__name__, values, "model_validate_json"))
            blob = ormsgpack.packb([ormsgpack.Ext(jsonplus.EXT_PYDANTIC_V2, packed)])
            assert repr(ours.loads_typed(("msgpack", blob))) == repr(theirs.loads_typed(("msgpack", blob)))


# -------------------------------------------------------------------------------------------------------------- refusal


def gadget(code: int, *parts: Any) -> tuple[str, bytes]:
    return "msgpack", ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(parts)))


class Boom:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return (Path.touch, (self.proof,))


def attacks(proof: Path) -> list[tuple[str, bytes]]:
    command = f"touch {proof}"
    program = f"import pathlib; pathlib.Path({str(proof)!r}).touch()"
    return [
        gadget(jsonplus.EXT_CONSTRUCTOR_SINGLE_ARG, "os", "system", command),
        gadget(jsonplus.EXT_CONSTRUCTOR_POS_ARGS, "subprocess", "call", [["touch", str(proof)]]),
        gadget(jsonplus.EXT_CONSTRUCTOR_KW_ARGS, "subprocess", "Popen", {"args": ["touch", str(proof)]}),
        gadget(jsonplus.EXT_METHOD_SINGLE_ARG, "pathlib", "Path", str(proof), "touch"),
        gadget(jsonplus.EXT_CONSTRUCTOR_SINGLE_ARG, "builtins", "exec", program),
        gadget(jsonplus.EXT_PYDANTIC_V1, "subprocess", "Popen", {"args": ["touch", str(proof)]}),
        gadget(jsonplus.EXT_PYDANTIC_V2, "subprocess", "Popen", {"args": ["touch", str(proof)]}, "x"),
        gadget(
            jsonplus.EXT_PYDANTIC_V2, "langchain_core.messages.human", "HumanMessage/../../x", {"content": "x"}, "x"
        ),
        ("pickle", pickle.dumps(Boom(proof))),
        ("json", b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["' + command.encode() + b'"]}'),
        ("json", b'{"lc": 1, "type": "constructor", "id": ["langchain", "llms", "openai", "OpenAI"], "kwargs": {}}'),
        ("yaml", b"x"),
    ]


def test_unsafe_payloads_are_refused(tmp_path):
    proof = tmp_path / "proof"
    for attack in attacks(proof):
        with pytest.raises((InvalidInputError, IntegrityError)):
            StrictSerializer().loads_typed(attack)
    nested = ormsgpack.packb({"a": [ormsgpack.Ext(jsonplus.EXT_DELTA_SNAPSHOT, attacks(proof)[0][1])]})
    with pytest.raises(InvalidInputError, match=r"os\.system"):
        StrictSerializer().loads_typed(("msgpack", nested))
    assert not proof.exists()
    # What the same payloads do with a permissive serializer: otherwise the test would prove nothing.
    JsonPlusSerializer(allowed_msgpack_modules=True).loads_typed(attacks(proof)[1])
    assert proof.exists()


def test_unsafe_rows_are_refused_by_the_saver_and_the_cache(db_path, tmp_path):
    proof = tmp_path / "proof"
    with agentdb.open(db_path, config=Config(maintenance=False)) as db:
        for attack in attacks(proof):
            evil = Evil(attack)
            checkpoint = {**empty_checkpoint(), "channel_values": {"x": 1}, "channel_versions": {"x": "1"}}
            stored = AgentDBSaver(db, serde=evil).put(THREAD, checkpoint, {}, {"x": "1"})
            AgentDBSaver(db).put_writes(stored, [("y", 1)], "task")
            AgentDBCache(db, serde=evil).set({(("ns",), "key"): (1, None)})
            with pytest.raises((InvalidInputError, IntegrityError)):
                AgentDBSaver(db).get_tuple(stored)
            with pytest.raises((InvalidInputError, IntegrityError)):
                list(AgentDBSaver(db).list(None))
            with pytest.raises((InvalidInputError, IntegrityError)):
                AgentDBCache(db).get([(("ns",), "key")])
    assert not proof.exists()


class Evil(JsonPlusSerializer):
    """Writes a payload in the place of every 1."""

    def __init__(self, payload: tuple[str, bytes]) -> None:
        super().__init__()
        self.payload = payload

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return self.payload if obj == 1 and type(obj) is int else super().dumps_typed(obj)


def test_nothing_is_pickled():
    with pytest.raises(TypeError):
        StrictSerializer().dumps_typed(object())


@pytest.mark.parametrize("value", [Colour.RED, Model(name="x", inner=Model(name="y"), said=HumanMessage("z")),
                                   Data(1, [AIMessage("x")]), Named(1), SecretStr("x")])  # fmt: skip
def test_types_of_the_caller_are_allowed_by_name(value):
    dumped = StrictSerializer().dumps_typed([value])
    with pytest.raises(InvalidInputError, match=type(value).__name__):
        StrictSerializer().loads_typed(dumped)
    (found,) = StrictSerializer([type(value)]).loads_typed(dumped)
    assert found == value
    assert type(found) is type(value)
    name = (type(value).__module__, type(value).__name__)
    assert StrictSerializer().with_msgpack_allowlist([name]).loads_typed(dumped) == [value]


class Loading(BaseModel):
    """Made of what it loads itself."""

    raw: str

    def model_post_init(self, _: Any) -> None:
        StrictSerializer().loads_typed(StrictSerializer().dumps_typed(self.raw))


def test_a_type_that_loads_something_itself_hides_no_refusal():
    dumped = StrictSerializer().dumps_typed([Data(1, []), Loading(raw="x"), Colour.RED])
    with pytest.raises(InvalidInputError, match=r"Colour.*Data"):
        StrictSerializer([Loading]).loads_typed(dumped)
    assert StrictSerializer([Loading, Data, Colour]).loads_typed(dumped)[1] == Loading(raw="x")


def test_allow_lists_of_langgraph():
    saver = AgentDBSaver("nowhere")
    assert saver.with_allowlist(set()) is saver
    wider = saver.with_allowlist({(Data.__module__, "Data")})
    assert wider is not saver
    assert wider.serde.loads_typed(saver.serde.dumps_typed(Data(1, []))) == Data(1, [])
    with pytest.raises(InvalidInputError):
        saver.serde.loads_typed(saver.serde.dumps_typed(Data(1, [])))


def test_a_graph_with_types_of_its_own_under_strict_mode(tmp_path):
    """With LANGGRAPH_STRICT_MSGPACK, LangGraph tells the checkpointer the types of the state."""
    program = """
import dataclasses, sys
from langgraph.graph import START, StateGraph
from langgraph_agentdb import AgentDBSaver

@dataclasses.dataclass
class State:
    n: int = 0

def add(state: State) -> State:
    assert type(state) is State
    return State(state.n + 1)

with AgentDBSaver(sys.argv[1]) as saver:
    graph = StateGraph(State).add_node("add", add).add_edge(START, "add").compile(checkpointer=saver)
    for _ in range(3):
        done = graph.invoke({}, {"configurable": {"thread_id": "t"}})
    print(done)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "db")],
        env={"LANGGRAPH_STRICT_MSGPACK": "true", "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "{'n': 3}", done.stderr


# ----------------------------------------------------------------------------------------------------------- encryption


class Rot:
    """A cipher that would fool nobody."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "rot", bytes((one + 13) % 256 for one in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "rot"
        return bytes((one - 13) % 256 for one in ciphertext)


def test_encrypted_values(db_path):
    secret = "the eagle lands at noon"
    with agentdb.open(db_path, config=Config(maintenance=False)) as db:
        saver = AgentDBSaver(db, serde=EncryptedSerializer(Rot(), StrictSerializer()))
        checkpoint = {**empty_checkpoint(), "channel_values": {"x": [secret] * 50}, "channel_versions": {"x": "1"}}
        stored = saver.put(THREAD, checkpoint, {"note": secret}, {"x": "1"})
        saver.put_writes(stored, [("x", secret)], "task")
        AgentDBCache(db, serde=saver.serde).set({((), "k"): (secret, None)})
        assert saver.get_tuple(stored).checkpoint["channel_values"]["x"][0] == secret
        assert [one.metadata["note"] for one in saver.list(THREAD, filter={"note": secret})] == [secret]
        assert AgentDBCache(db, serde=saver.serde).get([((), "k")]) == {((), "k"): secret}
        with pytest.raises(IntegrityError):
            AgentDBSaver(db).get_tuple(stored)
        db.optimize()
        assert saver.get_tuple(stored).pending_writes == [("task", "x", secret)]
    for path in db_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_an_encrypted_store_takes_no_plain_text(db_path):
    encrypted = EncryptedSerializer(Rot(), StrictSerializer())
    with agentdb.open(db_path, config=Config(maintenance=False)) as db:
        plain = AgentDBSaver(db)
        checkpoint = {**empty_checkpoint(), "channel_values": {"x": 1}, "channel_versions": {"x": "1"}}
        stored = plain.put(THREAD, checkpoint, {}, {"x": "1"})
        with pytest.raises(IntegrityError, match="not encrypted"):
            AgentDBSaver(db, serde=encrypted).get_tuple(stored)
        later = AgentDBSaver(db, serde=encrypted).put(
            stored,
            {**checkpoint, "id": "2", "channel_values": {"x": 2}, "channel_versions": {"x": "2"}},
            {},
            {"x": "2"},
        )
        plain.put_writes(later, [("x", "smuggled")], "task")
        with pytest.raises(IntegrityError, match="not encrypted"):
            AgentDBSaver(db, serde=encrypted).get_tuple(later)
        AgentDBCache(db).set({((), "k"): (1, None)})
        with pytest.raises(IntegrityError, match="not encrypted"):
            AgentDBCache(db, serde=encrypted).get([((), "k")])
