"""What LlamaIndex's stores must do, as suites: each runs on ours, on ours while rows go cold, and on LlamaIndex's own.

Where LlamaIndex's own store fails, ``known_failures`` says how and why, and that failure is expected: it shows that the test can
fail.
"""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import StorageContext
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.data_structs import IndexDict, IndexList
from llama_index.core.ingestion import IngestionCache
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.index_store import SimpleIndexStore
from llama_index.core.storage.kvstore import SimpleKVStore
from sqlalchemy.exc import IntegrityError

import agentdb
from agentdb import AccessDeniedError, ClosedError, Config, InvalidInputError
from llama_index_agentdb import (
    AgentDBChatStore,
    AgentDBDocumentStore,
    AgentDBIndexStore,
    AgentDBIngestionCache,
    AgentDBKVStore,
    AgentDBLegacyChatStore,
)

TESTS = Path(__file__).parents[1]
WARM = Config(maintenance=False)
COLD = Config(flush_rows=1, flush_age_s=0.01, tick_s=0.01)
"""Every row leaves SQLite at once: reads find it in both tiers, or on its way."""

ODD = [
    "",
    " ",
    "a",
    "a/",
    "a/b",
    "ab",
    "A",
    "%",
    "_",
    "*",
    "'",
    "x' OR 1=1 --",
    '"',
    "\\",
    "\x00",
    "\x01",
    "\x02\x10",
    "a\x01b",
    "a\nb",
    "é",
    "e\u0301",
    "日本",
    "😀",
    "null",
    "x" * 1_500,
]
ACTIVE, ARCHIVED = MessageStatus.ACTIVE, MessageStatus.ARCHIVED


@pytest.fixture(autouse=True)
def _known_failure(request: pytest.FixtureRequest) -> None:
    known = getattr(request.cls, "known_failures", {})
    if request.node.originalname in known:
        raises, reason = known[request.node.originalname]
        request.node.add_marker(pytest.mark.xfail(raises=raises, reason=reason, strict=True))


@contextmanager
def opened(made: Callable[[agentdb.Database], Any], path: Path, config: Config) -> Iterator[Any]:
    with agentdb.open(path, config=config) as db:
        yield made(db)


# --- keys and values ----------------------------------------------------------------------------------------------------------

VALUES = {
    "empty": {},
    "nested": {"a": {"b": [1, {"c": None}, [], [[True, False]]]}},
    "order of keys": {"z": 1, "a": {"y": 2, "b": 3}},
    "numbers": {
        "max": 2**63,
        "more": 10**40,
        "low": -(2**70),
        "tiny": 5e-324,
        "big": 1.7e308,
        "zero": -0.0,
        "e": 0.1 + 0.2,
    },
    "one is not 1.0": {"int": 1, "float": 1.0, "bool": True},
    "texts": {one: one for one in ODD},
    "lone surrogate": {"half": "\ud83d", "halves": "\ud83d\ude00"},
    "infinite": {"up": math.inf, "down": -math.inf},
    "vector": {"embedding": [math.sin(i) for i in range(1_024)]},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)
NAMES = st.sampled_from(["", "a", "b", "a/", "ab", "\x00", "\x01", "é"])
STEPS = st.lists(
    st.tuples(st.just("put"), NAMES, NAMES, OBJECTS)
    | st.tuples(st.just("put_all"), NAMES, st.lists(st.tuples(NAMES, OBJECTS), max_size=4))
    | st.tuples(st.just("delete"), NAMES, NAMES)
    | st.tuples(st.just("get"), NAMES, NAMES)
    | st.tuples(st.just("get_all"), NAMES),
    max_size=12,
)


def items(value: Any) -> Any:
    """A value of which equality tells the order of keys, and 1 from 1.0 and True."""
    if isinstance(value, dict):
        return [(key, items(one)) for key, one in value.items()]
    if isinstance(value, list):
        return [items(one) for one in value]
    return type(value), repr(value)


class KVStoreSuite:
    """``BaseKVStore``."""

    known_failures: ClassVar[dict[str, tuple[type[Exception], str]]] = {}

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        raise NotImplementedError

    def test_a_missing_key_is_none(self, store: Any) -> None:
        assert store.get("a") is None
        assert store.get_all() == {}
        assert store.delete("a") is False

    def test_put_replaces_and_delete_tells(self, store: Any) -> None:
        store.put("k", {"a": 1})
        store.put("k", {"b": 2})
        assert store.get("k") == {"b": 2}
        assert store.get_all() == {"k": {"b": 2}}
        assert store.delete("k") is True
        assert store.delete("k") is False
        assert store.get("k") is None
        assert store.get_all() == {}

    @pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
    def test_values_come_back_exactly(self, store: Any, value: dict[str, Any]) -> None:
        store.put("k", value)
        assert items(store.get("k")) == items(value)
        assert items(store.get_all()) == items({"k": value})
        assert items(asyncio.run(store.aget("k"))) == items(value)

    def test_nan_comes_back(self, store: Any) -> None:
        store.put("k", {"a": math.nan})
        assert math.isnan(store.get("k")["a"])

    def test_a_value_of_ten_megabytes(self, store: Any) -> None:
        value = {"text": "é" * 3_000_000, "numbers": [i / 7 for i in range(200_000)]}
        store.put("k", value)
        assert store.get("k") == value
        assert store.get_all() == {"k": value}

    def test_what_was_given_may_be_changed_afterwards(self, store: Any) -> None:
        value = {"a": [1]}
        store.put("k", value)
        value["a"].append(2)
        assert store.get("k") == {"a": [1]}

    def test_what_was_returned_may_be_changed(self, store: Any) -> None:
        store.put("k", {"a": [1]})
        store.get("k")["a"].append(2)
        store.get_all()["k"]["a"].append(3)
        assert store.get("k") == {"a": [1]}

    def test_no_collection_sees_another(self, store: Any) -> None:
        for name in ODD:
            store.put("k", {"of": name}, collection=name)
        for name in ODD:
            assert store.get("k", collection=name) == {"of": name}
            assert store.get_all(collection=name) == {"k": {"of": name}}
        assert store.delete("k", collection="a") is True
        assert [name for name in ODD if store.get("k", collection=name) is None] == ["a"]

    def test_any_text_is_a_key(self, store: Any) -> None:
        store.put_all([(key, {"of": key}) for key in ODD])
        assert store.get_all() == {key: {"of": key} for key in ODD}
        for key in ODD:
            assert store.get(key) == {"of": key}
            assert store.delete(key) is True
            assert store.get(key) is None
        assert store.get_all() == {}

    def test_all_values_are_in_the_order_of_keys(self, store: Any) -> None:
        keys = ["b", "a", "é", "", "B", "ab", "\x00"]
        store.put_all([(key, {}) for key in keys])
        assert list(store.get_all()) == sorted(keys)

    def test_of_equal_keys_the_last_counts(self, store: Any) -> None:
        store.put_all([("k", {"n": 1}), ("l", {"n": 2}), ("k", {"n": 3})])
        assert store.get_all() == {"k": {"n": 3}, "l": {"n": 2}}

    @pytest.mark.parametrize("batch_size", [2, 7, 1_000])
    def test_batches(self, store: Any, batch_size: int) -> None:
        pairs = [(f"{i:03}", {"n": i}) for i in range(100)]
        store.put_all(pairs, batch_size=batch_size)
        assert store.get_all() == dict(pairs)

    def test_nothing_may_be_put(self, store: Any) -> None:
        store.put_all([])
        asyncio.run(store.aput_all([]))
        assert store.get_all() == {}

    def test_the_async_half_is_the_same_store(self, store: Any) -> None:
        async def run() -> None:
            await store.aput("a", {"n": 1}, collection="c")
            await store.aput_all([("b", {"n": 2}), ("d", {"n": 3})], collection="c")
            assert await store.aget("a", collection="c") == {"n": 1}
            assert await store.aget("a") is None
            assert await store.aget_all(collection="c") == {"a": {"n": 1}, "b": {"n": 2}, "d": {"n": 3}}
            assert await store.adelete("a", collection="c") is True
            assert await store.adelete("a", collection="c") is False

        asyncio.run(run())
        assert store.get_all(collection="c") == {"b": {"n": 2}, "d": {"n": 3}}

    def test_any_steps_are_those_of_a_dict(self, store: Any) -> None:
        used = iter(range(1 << 30))

        @given(steps=STEPS, is_async=st.booleans())
        def check(*, steps: list[Any], is_async: bool) -> None:
            prefix = f"{next(used)}/"  # an example is not to see what the one before it has left
            model: dict[str, dict[str, Any]] = {}

            async def take(name: str, *args: Any) -> Any:
                found = getattr(store, f"a{name}" if is_async else name)(*args)
                return await found if is_async else found

            async def run() -> None:
                for name, collection, *rest in steps:
                    of = model.setdefault(collection, {})
                    where = prefix + collection
                    if name == "put":
                        await take("put", *rest, where)
                        of[rest[0]] = rest[1]
                    elif name == "put_all":
                        await take("put_all", rest[0], where)
                        of.update(rest[0])
                    elif name == "delete":
                        assert await take("delete", rest[0], where) is (of.pop(rest[0], None) is not None)
                    elif name == "get":
                        assert items(await take("get", rest[0], where)) == items(of.get(rest[0]))
                    else:
                        assert await take("get_all", where) == of
                for collection, of in model.items():
                    assert {key: items(one) for key, one in store.get_all(prefix + collection).items()} == {
                        key: items(one) for key, one in of.items()
                    }

            asyncio.run(run())

        check()


class TestKVStore(KVStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        with opened(AgentDBKVStore, tmp_path / "db", WARM) as made:
            yield made


class TestKVStoreWhileRowsGoCold(KVStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        with opened(AgentDBKVStore, tmp_path / "db", COLD) as made:
            yield made


class TestSimpleKVStore(KVStoreSuite):
    known_failures: ClassVar = {
        "test_what_was_given_may_be_changed_afterwards": (AssertionError, "it copies no deeper than one level"),
        "test_what_was_returned_may_be_changed": (AssertionError, "it copies no deeper than one level"),
        "test_all_values_are_in_the_order_of_keys": (AssertionError, "they are in the order in which they came"),
        "test_batches": (NotImplementedError, "it takes no batches"),
    }

    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        return SimpleKVStore()


# --- documents ----------------------------------------------------------------------------------------------------------------


def chunk(name: str, of: str | None = None, text: str | None = None, **metadata: Any) -> TextNode:
    source = {} if of is None else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=of)}
    return TextNode(id_=name, text=name if text is None else text, relationships=source, metadata=metadata)


NODES = {
    "document": Document(id_="n", text="text", metadata={"z": 1, "a": [1, 2.5, None], "é": {"y": True}}),
    "text": chunk("n", "d", title="title", page=3),
    "embedded": TextNode(id_="n", text="text", embedding=[0.1, -2.5e-8, 3.0]),
    "related": TextNode(
        id_="n",
        text="text",
        relationships={
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="m", metadata={"k": "v"}, hash="h"),
            NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
        },
    ),
    "excluded": TextNode(id_="n", text="text", excluded_embed_metadata_keys=["a"], excluded_llm_metadata_keys=["b"]),
    "image": ImageNode(id_="n", image="aGVsbG8=", metadata={"path": "x.png"}),
    "index": IndexNode(id_="n", text="text", index_id="other"),
    "node": Node(id_="n", text_resource=MediaResource(text="text"), metadata={"a": 1}),
}
DOCUMENTS = {f"node {i}": f"document {i % 2}" if i else None for i in range(6)}
"""A node -> the document that it belongs to, which it never leaves."""
CHANGES = st.lists(
    st.tuples(st.just("add"), st.lists(st.tuples(st.sampled_from(list(DOCUMENTS)), st.text(max_size=3)), max_size=4))
    | st.tuples(st.just("delete_document"), st.sampled_from(list(DOCUMENTS)))
    | st.tuples(st.just("delete_ref_doc"), st.sampled_from([f"document {i}" for i in range(3)])),
    max_size=10,
)


class DocumentStoreSuite:
    """``BaseDocumentStore``."""

    known_failures: ClassVar[dict[str, tuple[type[Exception], str]]] = {}
    halves: ClassVar[st.SearchStrategy[bool]] = st.booleans()
    """Whether any changes are made through the async half."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        raise NotImplementedError

    @pytest.mark.parametrize("node", NODES.values(), ids=NODES)
    def test_nodes_come_back_exactly(self, store: Any, node: Any) -> None:
        store.add_documents([node])
        found = store.get_document("n")
        assert type(found) is type(node)
        assert found == node
        assert found.hash == node.hash == store.get_document_hash("n")
        assert list(found.metadata) == list(node.metadata)
        assert store.docs == {"n": node}
        assert store.document_exists("n")
        assert asyncio.run(store.aget_document("n")) == node

    def test_what_is_not_there(self, store: Any) -> None:
        assert store.get_document("n", raise_error=False) is None
        assert store.get_document_hash("n") is None
        assert store.get_ref_doc_info("d") is None
        assert store.get_all_ref_doc_info() in ({}, None)
        assert store.get_all_document_hashes() == {}
        assert not store.document_exists("n")
        assert not store.ref_doc_exists("d")
        assert store.get_nodes(["n"], raise_error=False) == []
        store.delete_document("n", raise_error=False)
        store.delete_ref_doc("d", raise_error=False)
        for act in (
            store.get_document,
            store.delete_document,
            store.delete_ref_doc,
            lambda one: store.get_nodes([one]),
        ):
            with pytest.raises(ValueError, match="not found"):
                act("n")

    def test_what_is_not_there_async(self, store: Any) -> None:
        async def run() -> None:
            assert await store.aget_document("n", raise_error=False) is None
            assert await store.aget_nodes(["n"], raise_error=False) == []
            await store.adelete_document("n", raise_error=False)
            await store.adelete_ref_doc("d", raise_error=False)
            for act in (store.aget_document, store.adelete_document, store.adelete_ref_doc):
                with pytest.raises(ValueError, match="not found"):
                    await act("n")

        asyncio.run(run())

    def test_many_nodes_are_in_the_order_asked_for(self, store: Any) -> None:
        store.add_documents([chunk(str(i)) for i in range(20)])
        wanted = ["7", "3", "19", "3", "0"]
        assert [one.node_id for one in store.get_nodes(wanted)] == wanted
        assert [one.node_id for one in asyncio.run(store.aget_nodes(wanted))] == wanted
        assert [one.node_id for one in store.get_nodes(["7", "no", "3"], raise_error=False)] == ["7", "3"]
        assert {i: one.node_id for i, one in store.get_node_dict({4: "7", 9: "0"}).items()} == {4: "7", 9: "0"}

    def test_an_update_replaces(self, store: Any) -> None:
        store.add_documents([chunk("n", "d", "old")])
        store.add_documents([chunk("n", "d", "new")])
        assert store.get_document("n").text == "new"
        assert store.get_ref_doc_info("d").node_ids == ["n"]
        with pytest.raises(ValueError, match="already exists"):
            store.add_documents([chunk("m"), chunk("n", "d", "newer")], allow_update=False)
        assert store.get_document("n").text == "new"

    def test_documents_are_known_by_their_nodes(self, store: Any) -> None:
        store.add_documents([chunk("a", "d", page=1), chunk("b", "d", page=2), chunk("c", "e")])
        store.add_documents([chunk("f", "d", page=3), chunk("alone")])
        info = store.get_ref_doc_info("d")
        assert info.node_ids == ["a", "b", "f"]
        assert info.metadata == {"page": 2}
        assert set(store.get_all_ref_doc_info()) == {"d", "e"}
        assert store.ref_doc_exists("d")
        assert not store.ref_doc_exists("alone")

    def test_a_deleted_node_leaves_its_document(self, store: Any) -> None:
        store.add_documents([chunk("a", "d"), chunk("b", "d")])
        store.delete_document("a")
        assert store.get_ref_doc_info("d").node_ids == ["b"]
        assert store.get_document_hash("a") is None
        store.delete_document("b")
        assert store.get_ref_doc_info("d") is None
        assert store.docs == {}

    def test_a_deleted_node_leaves_its_document_async(self, store: Any) -> None:
        async def run() -> None:
            await store.async_add_documents([chunk("a", "d"), chunk("b", "d")])
            await store.adelete_document("a")
            assert (await store.aget_ref_doc_info("d")).node_ids == ["b"]

        asyncio.run(run())

    def test_a_deleted_document_takes_its_nodes(self, store: Any) -> None:
        for act in (store.delete_ref_doc, lambda one: asyncio.run(store.adelete_ref_doc(one))):
            store.add_documents([chunk("a", "d"), chunk("b", "d"), chunk("c", "e"), Document(id_="d", text="whole")])
            act("d")
            assert set(store.docs) == {"c"}
            assert set(store.get_all_ref_doc_info()) == {"e"}
            assert store.get_document_hash("a") is store.get_document_hash("d") is None

    def test_a_node_belongs_to_the_document_that_it_was_last_added_with(self, store: Any) -> None:
        store.add_documents([chunk("a", "d"), chunk("b", "d"), chunk("c", "e")])
        store.add_documents([chunk("b", "e"), chunk("c")])
        assert store.get_ref_doc_info("d").node_ids == ["a"]
        assert store.get_ref_doc_info("e").node_ids == ["b"]
        store.delete_ref_doc("d")
        assert set(store.docs) == {"b", "c"}
        store.add_documents([chunk("f", "g"), chunk("f", "h")])
        assert (store.get_ref_doc_info("g"), store.get_ref_doc_info("h").node_ids) == (None, ["f"])

    def test_hashes(self, store: Any) -> None:
        store.set_document_hash("a", "1")
        store.set_document_hashes({"b": "2", "c": "3"})
        asyncio.run(store.aset_document_hash("d", "4"))
        asyncio.run(store.aset_document_hashes({"e": "5"}))
        assert store.get_all_document_hashes() == {"1": "a", "2": "b", "3": "c", "4": "d", "5": "e"}
        assert asyncio.run(store.aget_all_document_hashes()) == store.get_all_document_hashes()
        assert asyncio.run(store.aget_document_hash("b")) == store.get_document_hash("b") == "2"

    def test_a_hash_does_not_part_a_node_from_its_document(self, store: Any) -> None:
        store.add_documents([chunk("a", "d"), chunk("b", "d")])
        store.set_document_hash("a", "other")
        assert store.get_document_hash("a") == "other"
        store.delete_document("a")
        assert store.get_ref_doc_info("d").node_ids == ["b"]

    def test_without_texts(self, store: Any) -> None:
        node = chunk("a", "d")
        store.add_documents([node], store_text=False)
        assert not store.document_exists("a")
        assert store.get_document_hash("a") == node.hash
        assert store.get_ref_doc_info("d").node_ids == ["a"]

    def test_a_document_without_text_is_deleted_too(self, store: Any) -> None:
        store.add_documents([Document(id_="a", text="text")], store_text=False)
        store.delete_document("a")
        assert store.get_document_hash("a") is None

    def test_any_changes_are_those_of_a_plain_store(self, store: Any) -> None:
        @given(changes=CHANGES, is_async=self.halves)
        def check(*, changes: list[Any], is_async: bool) -> None:
            for name in list(store.get_all_ref_doc_info() or {}):
                store.delete_ref_doc(name)
            for name in list(store.docs):
                store.delete_document(name)
            model = SimpleDocumentStore()

            async def run() -> None:
                for name, given_ in changes:
                    if name == "add":
                        nodes = [chunk(one, DOCUMENTS[one], text, said=text) for one, text in given_]
                        model.add_documents(nodes)
                        await store.async_add_documents(nodes) if is_async else store.add_documents(nodes)
                    else:
                        getattr(model, name)(given_, raise_error=False)
                        if is_async:
                            await getattr(store, f"a{name}")(given_, raise_error=False)
                        else:
                            getattr(store, name)(given_, raise_error=False)

            asyncio.run(run())
            assert store.docs == model.docs
            assert known(store) == known(model)
            assert store.get_all_document_hashes().keys() == model.get_all_document_hashes().keys()

        check()


def known(store: Any) -> dict[str, Any]:
    return {name: (sorted(one.node_ids), one.metadata) for name, one in (store.get_all_ref_doc_info() or {}).items()}


class TestDocumentStore(DocumentStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        with opened(AgentDBDocumentStore, tmp_path / "db", WARM) as made:
            yield made


class TestDocumentStoreWhileRowsGoCold(DocumentStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        with opened(AgentDBDocumentStore, tmp_path / "db", COLD) as made:
            yield made


class TestSimpleDocumentStore(DocumentStoreSuite):
    known_failures: ClassVar = {
        "test_a_deleted_node_leaves_its_document_async": (AssertionError, "it looks the node up where documents are"),
        "test_a_node_belongs_to_the_document_that_it_was_last_added_with": (AssertionError, "it belongs to both"),
        "test_a_hash_does_not_part_a_node_from_its_document": (
            AssertionError,
            "a hash takes the place of all that is known of a node",
        ),
        "test_a_document_without_text_is_deleted_too": (ValueError, "it says that there is none"),
    }

    halves: ClassVar = st.just(False)

    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        return SimpleDocumentStore()


# --- indexes ------------------------------------------------------------------------------------------------------------------


class IndexStoreSuite:
    """``BaseIndexStore``."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        raise NotImplementedError

    def test_structures_come_back(self, store: Any) -> None:
        first, second = (
            IndexDict(index_id="first", nodes_dict={"a": "b"}, summary="é"),
            IndexList(index_id="second", nodes=["n"]),
        )
        store.add_index_struct(first)
        assert store.get_index_struct() == first
        store.add_index_struct(second)
        assert store.get_index_struct("second") == second
        assert {one.index_id: one for one in store.index_structs()} == {"first": first, "second": second}
        second.nodes.append("m")
        store.add_index_struct(second)
        assert store.get_index_struct("second").nodes == ["n", "m"]
        store.delete_index_struct("first")
        assert store.get_index_struct("first") is None
        assert store.index_structs() == [second]

    def test_the_async_half_is_the_same_store(self, store: Any) -> None:
        async def run() -> None:
            await store.async_add_index_struct(IndexList(index_id="i", nodes=["n"]))
            assert (await store.aget_index_struct("i")).nodes == ["n"]
            assert [one.index_id for one in await store.async_index_structs()] == ["i"]

        asyncio.run(run())
        assert store.get_index_struct().nodes == ["n"]
        asyncio.run(store.adelete_index_struct("i"))
        assert store.index_structs() == []


class TestIndexStore(IndexStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        with opened(AgentDBIndexStore, tmp_path / "db", WARM) as made:
            yield made


class TestSimpleIndexStore(IndexStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        return SimpleIndexStore()


# --- chats --------------------------------------------------------------------------------------------------------------------


def said(text: str, role: str = "user", **more: Any) -> ChatMessage:
    return ChatMessage(role=role, content=text, additional_kwargs=more)


def texts(messages: list[ChatMessage]) -> list[str]:
    return [one.content or "" for one in messages]


MESSAGES = {
    **{role.value: ChatMessage(role=role, content="text") for role in MessageRole},
    "odd texts": ChatMessage(role="user", blocks=[TextBlock(text=one) for one in ODD]),
    "nothing": ChatMessage(role="assistant"),
    "arguments": said(
        "text", z={"y": [1, 2.5, None]}, a=True, tool_calls=[{"id": "1", "function": {"arguments": "{}"}}]
    ),
    "tool call": ChatMessage(
        role="assistant", blocks=[ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={"b": 1, "a": 2})]
    ),
    "image": ChatMessage(
        role="user", blocks=[TextBlock(text="see"), ImageBlock(image=b"iVBORw0KGgo=", image_mimetype="image/png")]
    ),
}
CHATS = st.sampled_from(["a", "b"])
STATUS = st.sampled_from([ACTIVE, ARCHIVED])
SAID = st.lists(st.text(alphabet="xyz", max_size=2), max_size=3)
TALK = st.lists(
    st.tuples(st.just("add_message"), CHATS, st.text(alphabet="xyz", max_size=2), STATUS)
    | st.tuples(st.just("add_messages"), CHATS, SAID.filter(len), STATUS)
    | st.tuples(st.just("set_messages"), CHATS, SAID, STATUS)
    | st.tuples(st.just("delete_messages"), CHATS, STATUS | st.none())
    | st.tuples(st.just("delete_oldest_messages"), CHATS, st.integers(0, 3))
    | st.tuples(st.just("archive_oldest_messages"), CHATS, st.integers(0, 3))
    | st.tuples(st.just("count_messages"), CHATS, STATUS | st.none())
    | st.tuples(
        st.just("get_messages"), CHATS, STATUS | st.none(), st.none() | st.integers(0, 3), st.none() | st.integers(0, 3)
    ),
    max_size=14,
)


def talk(chats: dict[str, list[tuple[str, MessageStatus]]], name: str, chat: str, *rest: Any) -> Any:
    """What a step does to lists of messages."""
    there = chats.setdefault(chat, [])
    active = [i for i, (_, status) in enumerate(there) if status == ACTIVE]
    match name:
        case "add_message":
            there.append((rest[0], rest[1]))
        case "add_messages" | "set_messages":
            chats[chat] = [*(there if name == "add_messages" else []), *((one, rest[1]) for one in rest[0])]
        case "delete_messages":
            chats[chat] = [one for one in there if rest[0] is not None and one[1] != rest[0]]
        case "delete_oldest_messages":
            gone = active[: rest[0]]
            chats[chat] = [one for i, one in enumerate(there) if i not in gone]
            return [there[i][0] for i in gone]
        case "archive_oldest_messages":
            for i in active[: rest[0]]:
                there[i] = there[i][0], ARCHIVED
            return [there[i][0] for i in active[: rest[0]]]
        case "count_messages":
            return sum(rest[0] in (None, status) for _, status in there)
        case _:
            wanted, limit, offset = rest
            found = [one for one, status in there if wanted in (None, status)][offset or 0 :]
            return found if limit is None else found[:limit]
    return None


class ChatStoreSuite:
    """``AsyncDBChatStore``."""

    known_failures: ClassVar[dict[str, tuple[type[Exception], str]]] = {}

    @contextmanager
    def made(self, tmp_path: Path) -> Iterator[Any]:
        raise NotImplementedError

    @pytest.fixture
    def use(self, tmp_path: Path) -> Callable[[Callable[[Any], Awaitable[None]]], None]:
        """Runs a test on a store, in one event loop."""

        def run(test: Callable[[Any], Awaitable[None]]) -> None:
            async def main() -> None:
                with self.made(tmp_path) as store:
                    try:
                        await test(store)
                    finally:
                        await self.end(store)

            asyncio.run(main())

        return run

    async def end(self, store: Any) -> None:
        await store.aclose()

    @pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
    def test_messages_come_back_exactly(self, use: Any, message: ChatMessage) -> None:
        async def test(store: Any) -> None:
            await store.add_message("chat", message)
            found = await store.get_messages("chat")
            assert found == [message]
            assert items(found[0].model_dump(mode="json")) == items(message.model_dump(mode="json"))

        use(test)

    def test_a_chat_without_messages(self, use: Any) -> None:
        async def test(store: Any) -> None:
            assert await store.get_messages("chat") == []
            assert await store.count_messages("chat") == 0
            assert await store.get_keys() == []
            await store.delete_messages("chat")
            assert await store.delete_oldest_messages("chat", 3) == []
            assert await store.archive_oldest_messages("chat", 3) == []
            await store.set_messages("chat", [])
            assert await store.get_keys() == []

        use(test)

    def test_no_message_may_be_added(self, use: Any) -> None:
        async def test(store: Any) -> None:
            await store.add_messages("chat", [])
            assert await store.get_messages("chat") == []
            assert await store.get_keys() == []

        use(test)

    def test_the_order_is_that_of_adding(self, use: Any) -> None:
        async def test(store: Any) -> None:
            await store.add_message("chat", said("1"))
            await store.add_messages("chat", [said("2", "assistant"), said("3")])
            await store.add_message("chat", said("4"), ARCHIVED)
            await store.add_message("chat", said("5"))
            assert texts(await store.get_messages("chat")) == ["1", "2", "3", "5"]
            assert texts(await store.get_messages("chat", ARCHIVED)) == ["4"]
            assert texts(await store.get_messages("chat", None)) == ["1", "2", "3", "4", "5"]
            assert [await store.count_messages("chat", one) for one in (ACTIVE, ARCHIVED, None)] == [4, 1, 5]

        use(test)

    def test_the_order_is_no_matter_of_the_clock(self, use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        async def test(store: Any) -> None:
            await store.add_messages("chat", [said("1"), said("2")])
            past = time.time_ns() - 3_600_000_000_000
            with monkeypatch.context() as patched:
                patched.setattr(time, "time_ns", lambda: past)  # it was set right
                await store.add_message("chat", said("3"))
            await store.add_message("chat", said("4"))
            assert texts(await store.get_messages("chat")) == ["1", "2", "3", "4"]

        use(test)

    def test_pages(self, use: Any) -> None:
        async def test(store: Any) -> None:
            await store.add_messages("chat", [said(str(i)) for i in range(10)])
            for limit, offset, found in (
                (3, None, "012"),
                (3, 4, "456"),
                (None, 8, "89"),
                (5, 9, "9"),
                (0, 0, ""),
                (3, 20, ""),
            ):
                assert "".join(texts(await store.get_messages("chat", limit=limit, offset=offset))) == found

        use(test)

    def test_the_oldest_are_archived_and_deleted(self, use: Any) -> None:
        async def test(store: Any) -> None:
            await store.add_messages("chat", [said(str(i)) for i in range(6)])
            assert texts(await store.archive_oldest_messages("chat", 2)) == ["0", "1"]
            assert texts(await store.delete_oldest_messages("chat", 1)) == ["2"]
            await store.add_message("chat", said("6"))
            assert texts(await store.archive_oldest_messages("chat", 1)) == ["3"]
            assert texts(await store.get_messages("chat", ARCHIVED)) == ["0", "1", "3"]
            assert texts(await store.get_messages("chat")) == ["4", "5", "6"]
            assert texts(await store.get_messages("chat", None)) == ["0", "1", "3", "4", "5", "6"]
            assert texts(await store.delete_oldest_messages("chat", 99)) == ["4", "5", "6"]
            assert texts(await store.get_messages("chat", None)) == ["0", "1", "3"]

        use(test)

    def test_setting_replaces_all(self, use: Any) -> None:
        async def test(store: Any) -> None:
            await store.add_messages("chat", [said("1"), said("2")])
            await store.archive_oldest_messages("chat", 1)
            await store.add_message("other", said("other"))
            await store.set_messages("chat", [said("3"), said("4")])
            await store.add_message("chat", said("5"))
            assert texts(await store.get_messages("chat", None)) == ["3", "4", "5"]
            await store.set_messages("chat", [said("6")], ARCHIVED)
            assert texts(await store.get_messages("chat")) == []
            assert texts(await store.get_messages("chat", ARCHIVED)) == ["6"]
            assert texts(await store.get_messages("other")) == ["other"]

        use(test)

    def test_what_cannot_be_set_leaves_all_as_it_was(self, use: Any) -> None:
        async def test(store: Any) -> None:
            await store.add_messages("chat", [said("1"), said("2")])
            with pytest.raises(Exception, match=r"serialize|JSON"):
                await store.set_messages("chat", [said("3"), said("4", what=object())])
            with pytest.raises(Exception, match=r"serialize|JSON"):
                await store.add_messages("chat", [said("5"), said("6", what=object())])
            assert texts(await store.get_messages("chat")) == ["1", "2"]

        use(test)

    def test_a_status_is_deleted_alone(self, use: Any) -> None:
        async def test(store: Any) -> None:
            await store.add_messages("chat", [said("1"), said("2"), said("3")])
            await store.archive_oldest_messages("chat", 2)
            await store.delete_messages("chat", ARCHIVED)
            assert texts(await store.get_messages("chat", None)) == ["3"]
            await store.delete_messages("chat")
            assert await store.get_messages("chat", None) == []
            assert await store.get_keys() == []

        use(test)

    def test_a_message_is_deleted_by_its_place(self, use: Any) -> None:
        async def test(store: Any) -> None:
            await store.add_messages("chat", [said(str(i)) for i in range(6)])
            await store.archive_oldest_messages("chat", 1)
            for place, text, left in ((1, "2", "1345"), (-1, "5", "134"), (0, "1", "34"), (1, "4", "3")):
                assert (await store.delete_message("chat", place)).content == text
                assert "".join(texts(await store.get_messages("chat"))) == left
            for place in (1, -2, 99):
                assert await store.delete_message("chat", place) is None
            assert await store.delete_message("other", 0) is None
            assert texts(await store.get_messages("chat", None)) == ["0", "3"]

        use(test)

    def test_any_text_is_a_key(self, use: Any) -> None:
        async def test(store: Any) -> None:
            for key in ODD:
                await store.add_messages(key, [said(key), said("second")])
            assert sorted(await store.get_keys()) == sorted(ODD)
            for key in ODD:
                assert texts(await store.get_messages(key)) == [key, "second"]
                assert await store.count_messages(key) == 2
            await store.delete_messages("a")
            assert sorted(await store.get_keys()) == sorted(one for one in ODD if one != "a")
            assert await store.count_messages("a/") == 2

        use(test)

    def test_any_steps_are_those_of_lists(self, use: Any) -> None:
        async def test(store: Any) -> None:
            loop, used = asyncio.get_running_loop(), iter(range(1 << 30))

            @given(TALK)
            def check(steps: list[Any]) -> None:
                prefix = f"{next(used)}/"
                chats: dict[str, list[tuple[str, MessageStatus]]] = {}

                async def run() -> None:
                    for name, chat, *rest in steps:
                        wanted = talk(chats, name, chat, *rest)
                        given_ = list(rest)
                        if name == "add_message":
                            given_[0] = said(rest[0])
                        elif name in ("add_messages", "set_messages"):
                            given_[0] = [said(one) for one in rest[0]]
                        found = await getattr(store, name)(prefix + chat, *given_)
                        assert (texts(found) if isinstance(found, list) else found) == wanted
                    for chat, there in chats.items():
                        for status in (ACTIVE, ARCHIVED, None):
                            found = texts(await store.get_messages(prefix + chat, status))
                            assert found == [one for one, its in there if status in (None, its)]
                            assert await store.count_messages(prefix + chat, status) == len(found)
                        assert (prefix + chat in await store.get_keys()) is bool(there)

                asyncio.run_coroutine_threadsafe(run(), loop).result()

            await asyncio.to_thread(check)

        use(test)


def check_order(found: list[str], adders: int, each: int, together: int) -> None:
    """Everybody's messages are there, in order, and those of one call next to each other."""
    assert len(found) == adders * each
    for who in range(adders):
        assert [one for one in found if one.startswith(f"{who}.")] == [f"{who}.{i}" for i in range(each)]
    for i in range(0, len(found), together):
        who, first = found[i].split(".")
        assert found[i : i + together] == [f"{who}.{int(first) + j}" for j in range(together)]


class TestChatStore(ChatStoreSuite):
    config: ClassVar[Config] = WARM

    @contextmanager
    def made(self, tmp_path: Path) -> Iterator[Any]:
        with opened(AgentDBChatStore, tmp_path / "db", self.config) as store:
            yield store

    def test_many_at_once(self, use: Any) -> None:
        async def test(store: Any) -> None:
            async def adder(who: int) -> None:
                for i in range(10):
                    await store.add_messages("chat", [said(f"{who}.{2 * i}"), said(f"{who}.{2 * i + 1}")])

            await asyncio.gather(*(adder(who) for who in range(8)))
            check_order(texts(await store.get_messages("chat")), 8, 20, 2)

        use(test)


class TestChatStoreWhileRowsGoCold(TestChatStore):
    config: ClassVar[Config] = COLD


class TestSQLAlchemyChatStore(ChatStoreSuite):
    known_failures: ClassVar = {
        "test_no_message_may_be_added": (IntegrityError, "it inserts a row of nothing"),
        "test_the_order_is_no_matter_of_the_clock": (AssertionError, "it is one of the clock"),
        "test_what_cannot_be_set_leaves_all_as_it_was": (
            AssertionError,
            "what was there is deleted by a transaction of its own",
        ),
        "test_a_message_is_deleted_by_its_place": (AssertionError, "it is deleted by a number that no method returns"),
    }

    @contextmanager
    def made(self, tmp_path: Path) -> Iterator[Any]:
        yield SQLAlchemyChatStore("messages", f"sqlite+aiosqlite:///{tmp_path / 'chats.sqlite'}")

    async def end(self, store: Any) -> None:
        if store._async_engine is not None:
            await store._async_engine.dispose()


class LegacyChatStoreSuite:
    """``BaseChatStore``."""

    known_failures: ClassVar[dict[str, tuple[type[Exception], str]]] = {}

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        raise NotImplementedError

    def test_messages_come_back_in_order(self, store: Any) -> None:
        store.add_message("chat", said("1", a={"z": 1, "b": 2}))
        store.set_messages("other", [said("x"), said("y", "assistant")])
        store.add_message("chat", said("2", "assistant"))
        assert store.get_messages("chat") == [said("1", a={"z": 1, "b": 2}), said("2", "assistant")]
        assert sorted(store.get_keys()) == ["chat", "other"]
        store.set_messages("other", [said("z")])
        store.add_message("other", said("end"))
        assert texts(store.get_messages("other")) == ["z", "end"]
        assert store.get_messages("nobody") == []

    def test_deleting(self, store: Any) -> None:
        store.set_messages("chat", [said(str(i)) for i in range(6)])
        assert store.delete_message("chat", 2).content == "2"
        assert store.delete_message("chat", 99) is None
        assert store.delete_last_message("chat").content == "5"
        assert texts(store.get_messages("chat")) == ["0", "1", "3", "4"]
        assert texts(store.delete_messages("chat")) == ["0", "1", "3", "4"]
        assert store.get_messages("chat") == []
        for act in (store.delete_messages, store.delete_last_message, lambda one: store.delete_message(one, 0)):
            assert act("nobody") is None

    def test_the_last_of_no_messages_is_none(self, store: Any) -> None:
        store.add_message("chat", said("1"))
        assert store.delete_last_message("chat").content == "1"
        assert store.delete_last_message("chat") is None

    def test_what_was_returned_may_be_changed(self, store: Any) -> None:
        store.set_messages("chat", [said("1")])
        found = store.get_messages("chat")
        found[0].additional_kwargs["a"] = 1
        found.append(said("2"))
        assert store.get_messages("chat") == [said("1")]

    def test_the_async_half_is_the_same_store(self, store: Any) -> None:
        async def run() -> None:
            await store.aset_messages("chat", [said("1"), said("2")])
            await store.async_add_message("chat", said("3"))
            await store.async_add_message("chat", said("4"))
            assert texts(await store.aget_messages("chat")) == ["1", "2", "3", "4"]
            assert (await store.adelete_message("chat", 1)).content == "2"
            assert (await store.adelete_last_message("chat")).content == "4"
            assert await store.aget_keys() == ["chat"]

        asyncio.run(run())
        assert texts(store.get_messages("chat")) == ["1", "3"]
        assert texts(asyncio.run(store.adelete_messages("chat"))) == ["1", "3"]
        assert store.get_keys() == []

    def test_a_buffer_of_chat_memory_accepts_it(self, store: Any) -> None:
        memory = ChatMemoryBuffer.from_defaults(token_limit=40, chat_store=store, chat_store_key="chat")
        for i in range(10):
            memory.put(said(f"this is what the user said at {i}"))
            memory.put(said(f"and this the answer to {i}", "assistant"))
        assert len(memory.get_all()) == 20
        assert 0 < len(memory.get()) < 20
        assert memory.get()[-1].content == "and this the answer to 9"
        memory.reset()
        assert store.get_messages("chat") == []


class TestLegacyChatStore(LegacyChatStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        with opened(AgentDBLegacyChatStore, tmp_path / "db", WARM) as made:
            yield made


class TestLegacyChatStoreWhileRowsGoCold(LegacyChatStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        with opened(AgentDBLegacyChatStore, tmp_path / "db", COLD) as made:
            yield made


class TestSimpleChatStore(LegacyChatStoreSuite):
    known_failures: ClassVar = {
        "test_the_last_of_no_messages_is_none": (IndexError, "it takes one from an empty list"),
        "test_what_was_returned_may_be_changed": (AssertionError, "it returns the list that it keeps"),
    }

    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        return SimpleChatStore()


# --- ours alone ---------------------------------------------------------------------------------------------------------------

STORES = [
    AgentDBKVStore,
    AgentDBDocumentStore,
    AgentDBIndexStore,
    AgentDBIngestionCache,
    AgentDBChatStore,
    AgentDBLegacyChatStore,
]


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=WARM) as made:
        yield made


WRONG: list[tuple[str, Callable[[AgentDBKVStore], Any]]] = [
    ("val must be a dict, not list", lambda kv: kv.put("k", [1])),  # type: ignore[arg-type]
    ("val.a: JSON holds no object", lambda kv: kv.put("k", {"a": object()})),
    (r"val.a.b\[1\]: JSON holds no bytes", lambda kv: kv.put("k", {"a": {"b": [1, b"x"]}})),
    ("a key must be a str, not int", lambda kv: kv.put("k", {"a": {1: 2}})),
    ("nested deeper", lambda kv: kv.put("k", nested(200))),
    ("too many digits", lambda kv: kv.put("k", {"a": 10**5_000})),
    (r"kv_pairs\[1\].a: JSON holds no set", lambda kv: kv.put_all([("k", {}), ("l", {"a": set()})])),
    ("batch_size", lambda kv: kv.put_all([("k", {})], batch_size=0)),
    ("key must be a str, not int", lambda kv: kv.put(1, {})),  # type: ignore[arg-type]
    ("key must not be null", lambda kv: kv.put_all([("k", {}), (None, {})])),  # type: ignore[list-item]
    ("collection must not be null", lambda kv: kv.put("k", {}, collection=None)),  # type: ignore[arg-type]
    ("key holds a lone surrogate", lambda kv: kv.put("\ud83d", {})),
    ("longer than 4096", lambda kv: kv.put("k" * 5_000, {})),
    ("key must be a str, not bytes", lambda kv: kv.get(b"k")),  # type: ignore[arg-type]
]


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(("message", "act"), WRONG, ids=[one for one, _ in WRONG])
def test_what_cannot_be_stored_is_named_and_nothing_is_written(
    db: agentdb.Database, message: str, act: Callable[[AgentDBKVStore], Any]
) -> None:
    with AgentDBKVStore(db) as kv:
        kv.put("there", {"a": 1})
        with pytest.raises(InvalidInputError, match=message):
            act(kv)
        assert kv.get_all() == {"there": {"a": 1}}


def test_wrong_arguments_of_chats_are_named(db: agentdb.Database) -> None:
    async def run() -> None:
        async with AgentDBChatStore(db) as chats:
            await chats.add_message("chat", said("1"))
            for message, call in (
                (r"messages\[1\] must be a ChatMessage, not str", chats.add_messages("chat", [said("2"), "3"])),  # type: ignore[list-item]
                (r"messages\[0\] holds what JSON does not", chats.add_message("chat", said("2", a=object()))),
                ("messages must be a list of ChatMessage, not str", chats.set_messages("chat", "ab")),  # type: ignore[arg-type]
                ("status must be a MessageStatus, not None", chats.add_message("chat", said("2"), None)),  # type: ignore[arg-type]
                ("status must be a MessageStatus or None, not str", chats.get_messages("chat", "gone")),  # type: ignore[arg-type]
                ("limit must be an int of 0 or more", chats.get_messages("chat", limit=-1)),
                ("offset must be an int of 0 or more", chats.get_messages("chat", offset=1.5)),  # type: ignore[arg-type]
                ("n must be an int of 0 or more", chats.archive_oldest_messages("chat", -1)),
                ("idx must be an int, not str", chats.delete_message("chat", "0")),  # type: ignore[arg-type]
                ("chat must be a str, not int", chats.add_message(5, said("2"))),  # type: ignore[arg-type]
            ):
                with pytest.raises(InvalidInputError, match=message):
                    await call
            assert texts(await chats.get_messages("chat", None)) == ["1"]

    asyncio.run(run())


@pytest.mark.parametrize("store", STORES)
def test_making_one_opens_nothing_and_closing_is_final(db_path: Path, store: Any) -> None:
    with pytest.raises(InvalidInputError, match="db_or_path"):
        store(5)
    made = store(db_path)
    assert not db_path.exists()
    assert repr(str(db_path)) in repr(made)
    made.close()
    made.close()
    with pytest.raises(ClosedError):
        made._connection()


@pytest.mark.parametrize("store", STORES)
def test_a_pickle_is_the_path_and_a_copy_the_same_store(db: agentdb.Database, store: Any) -> None:
    with store(db) as made:
        assert copy.deepcopy(made)._connection is made._connection
        with pickle.loads(pickle.dumps(made)) as other:
            assert other._connection is not made._connection
            assert other._connection().db.path == db.path


def test_chats_are_serialised_as_their_path(db: agentdb.Database) -> None:
    with (
        AgentDBChatStore(db) as chats,
        AgentDBChatStore.model_validate_json(chats.model_dump_json()) as other,
        AgentDBLegacyChatStore(db) as legacy,
        AgentDBLegacyChatStore.from_json(legacy.to_json()) as another,
    ):
        assert other.model_dump() == chats.model_dump() == {"db_or_path": str(db.path)}
        assert (
            another.to_dict()
            == legacy.to_dict()
            == {"db_or_path": str(db.path), "class_name": "AgentDBLegacyChatStore"}
        )


def test_both_kinds_of_chats_are_the_same_messages(db: agentdb.Database) -> None:
    with AgentDBChatStore(db) as chats, AgentDBLegacyChatStore(db) as legacy:
        legacy.add_message("chat", said("1"))
        asyncio.run(chats.add_message("chat", said("2")))
        asyncio.run(chats.archive_oldest_messages("chat", 1))
        assert texts(legacy.get_messages("chat")) == ["1", "2"]
        assert legacy.delete_last_message("chat") == said("2")
        assert texts(asyncio.run(chats.get_messages("chat", None))) == ["1"]


def test_namespaces_share_nothing(db: agentdb.Database) -> None:
    with AgentDBDocumentStore(db, "a") as first, AgentDBDocumentStore(db, namespace="a/data") as second:
        first.add_documents([chunk("n", "d")])
        second.set_document_hash("n", "other")
        assert second.docs == {}
        assert second.get_all_ref_doc_info() == {}
        first.delete_ref_doc("d")
        assert second.get_document_hash("n") == "other"
    with AgentDBIndexStore(db, "a") as indexes, AgentDBIndexStore(db) as others:
        indexes.add_index_struct(IndexList(index_id="i"))
        assert others.index_structs() == []


def test_calls_join_a_transaction_and_go_with_it(db: agentdb.Database) -> None:
    with AgentDBDocumentStore(db) as documents, AgentDBKVStore(db) as kv, AgentDBLegacyChatStore(db) as chats:
        documents.add_documents([chunk("before", "d")])

        def change() -> None:
            with db.transaction():
                documents.add_documents([chunk("n", "d")])
                documents.delete_document("before")
                kv.put_all([("a", {}), ("b", {})])
                chats.add_message("chat", said("1"))
                assert documents.get_ref_doc_info("d").node_ids == ["n"]
                raise KeyError

        with pytest.raises(KeyError):
            change()
        assert documents.get_ref_doc_info("d").node_ids == ["before"]
        assert set(documents.docs) == {"before"}
        assert kv.get_all() == {}
        assert chats.get_keys() == []


def test_a_snapshot_shows_one_state(db: agentdb.Database) -> None:
    with AgentDBKVStore(db) as kv:
        kv.put("a", {"n": 1})
        with db.snapshot():
            thread = threading.Thread(target=kv.put, args=("a", {"n": 2}))
            thread.start()
            thread.join()
            assert kv.get("a") == {"n": 1}
        assert kv.get("a") == {"n": 2}


def test_persisting_writes_nothing(db: agentdb.Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = tmp_path / "elsewhere" / "file"
    with AgentDBDocumentStore(db) as documents, AgentDBIndexStore(db) as indexes, AgentDBIngestionCache(db) as cache:
        for store in (documents, indexes, cache):
            store.persist(str(elsewhere))
        StorageContext.from_defaults(docstore=documents, index_store=indexes).persist(tmp_path / "context")
    assert not elsewhere.parent.exists()
    # What LlamaIndex's own stores of graphs and images write is theirs.
    assert not {"docstore.json", "index_store.json"} & {one.name for one in (tmp_path / "context").iterdir()}
    assert capsys.readouterr().out == ""


def test_the_cache_of_ingestion(db: agentdb.Database) -> None:
    with AgentDBIngestionCache(db) as cache, AgentDBIngestionCache(db, "other") as other:
        for one in (cache, other, IngestionCache(cache=AgentDBKVStore(db), collection="third")):
            nodes = [chunk("a", page=1), TextNode(id_="b", text="b", embedding=[0.1, 0.2])]
            assert one.get("hash") is None
            one.put("hash", nodes)
            assert one.get("hash") == nodes
            one.put("hash", nodes[:1], collection="x")
            assert one.get("hash", collection="x") == nodes[:1]
            one.clear("x")
            assert one.get("hash", collection="x") is None
            assert one.get("hash") == nodes
        cache.clear()
        assert cache.get("hash") is None
        assert other.get("hash") is not None


# --- the event loop -----------------------------------------------------------------------------------------------------------

ASYNC_CALLS: dict[Any, Callable[[Any], list[Awaitable[Any]]]] = {
    AgentDBKVStore: lambda kv: [
        kv.aput("k", {}),
        kv.aput_all([("k", {})]),
        kv.aget("k"),
        kv.aget_many(["k"]),
        kv.aget_all(),
        kv.adelete("k"),
        kv.aclear(),
    ],
    AgentDBDocumentStore: lambda documents: [
        documents.async_add_documents([chunk("n", "d")]),
        documents.aget_document("n"),
        documents.aget_nodes(["n"]),
        documents.aget_ref_doc_info("d"),
        documents.aget_all_ref_doc_info(),
        documents.aset_document_hash("n", "h"),
        documents.aset_document_hashes({"n": "h"}),
        documents.aget_all_document_hashes(),
        documents.adelete_document("n"),
        documents.adelete_ref_doc("d", raise_error=False),
    ],
    AgentDBIndexStore: lambda indexes: [
        indexes.async_add_index_struct(IndexList(index_id="i")),
        indexes.aget_index_struct("i"),
        indexes.async_index_structs(),
        indexes.adelete_index_struct("i"),
    ],
    AgentDBChatStore: lambda chats: [
        chats.add_message("chat", said("1")),
        chats.add_messages("chat", [said("2")]),
        chats.set_messages("chat", [said("1"), said("2")]),
        chats.get_messages("chat"),
        chats.count_messages("chat"),
        chats.get_keys(),
        chats.archive_oldest_messages("chat", 1),
        chats.delete_oldest_messages("chat", 1),
        chats.delete_message("chat", 0),
        chats.delete_messages("chat"),
    ],
    AgentDBLegacyChatStore: lambda chats: [
        chats.aset_messages("chat", [said("1")]),
        chats.async_add_message("chat", said("2")),
        chats.aget_messages("chat"),
        chats.aget_keys(),
        chats.adelete_message("chat", 0),
        chats.adelete_last_message("chat"),
        chats.adelete_messages("chat"),
    ],
}


@pytest.mark.parametrize("store", ASYNC_CALLS)
def test_no_async_call_works_on_the_loops_thread(
    db: agentdb.Database, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    opened_by = agentdb.Connection.__call__

    def spy(connection: Any) -> Any:
        used.append(threading.get_ident())
        return opened_by(connection)

    monkeypatch.setattr(agentdb.Connection, "__call__", spy)

    async def run() -> None:
        async with store(db) as made:
            for call in ASYNC_CALLS[store](made):
                before = len(used)
                await call
                assert len(used) > before

    asyncio.run(run())
    assert threading.get_ident() not in used


@pytest.mark.parametrize("store", ASYNC_CALLS)
def test_the_loop_goes_on_while_a_write_waits(db: agentdb.Database, store: Any) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with db.transaction():
            held.set()
            release.wait(20)

    async def run() -> None:
        async with store(db) as made:
            first, *others = ASYNC_CALLS[store](made)
            for call in others:
                call.close()  # type: ignore[attr-defined]
            holder = threading.Thread(target=hold)
            holder.start()
            held.wait()
            write = asyncio.create_task(first)  # type: ignore[arg-type]
            for _ in range(50):  # the ticker: the loop must run for the write ever to end
                await asyncio.sleep(0.002)
                assert not write.done()
            release.set()
            await write
            holder.join()

    asyncio.run(run())


def test_loops_and_threads_share_one_store(db: agentdb.Database) -> None:
    with AgentDBChatStore(db) as chats:
        failures: list[BaseException] = []

        def loop(who: int) -> None:
            async def adder() -> None:
                for i in range(10):
                    await chats.add_message("chat", said(f"{who}.{i}"))

            try:
                asyncio.run(adder())
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=loop, args=(who,)) for who in range(6)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert failures == []
        check_order(texts(asyncio.run(chats.get_messages("chat"))), 6, 10, 1)


# --- several processes --------------------------------------------------------------------------------------------------------


def worker(name: str, *args: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "support.llama_index_workers", name, *map(str, args)]
    return subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True)


def test_processes_add_to_one_chat_and_one_document(db_path: Path) -> None:
    processes = [worker("adder", db_path, who, 20) for who in range(2)]
    for one in processes:
        one.communicate(timeout=120)
        assert one.returncode == 0
    with AgentDBLegacyChatStore(db_path) as chats, AgentDBDocumentStore(db_path) as documents:
        check_order(texts(chats.get_messages("chat")), 2, 40, 2)
        nodes = documents.get_ref_doc_info("document").node_ids
        assert sorted(nodes) == sorted(f"{who}.{i}" for who in range(2) for i in range(20))
        assert [one for one in nodes if one.startswith("1.")] == [f"1.{i}" for i in range(20)]
        assert set(documents.docs) == set(nodes)


@pytest.mark.parametrize("delay_s", [0.03, *(pytest.param(i / 100, marks=pytest.mark.slow) for i in range(0, 30, 2))])
def test_what_a_killed_process_has_stored_is_there_whole(db_path: Path, delay_s: float) -> None:
    process = worker("batches", db_path)
    done = int(process.stdout.readline())  # type: ignore[union-attr]
    time.sleep(delay_s)
    process.kill()
    rest, _ = process.communicate()
    done = max([done, *map(int, rest.split())])
    with agentdb.open(db_path) as db, AgentDBDocumentStore(db) as documents, AgentDBKVStore(db) as kv:
        pairs = kv.get_all("batches")
        batches = {key.split(".")[0] for key in pairs}
        assert len(pairs) == 50 * len(batches)
        assert batches >= {f"{i:06}" for i in range(done + 1)}
        info = documents.get_all_ref_doc_info()
        assert {one for its in info.values() for one in its.node_ids} == set(documents.docs)
        assert {len(its.node_ids) for its in info.values()} == {10}
        with AgentDBLegacyChatStore(db) as chats:
            found = texts(chats.get_messages("chat"))
            assert found == [str(i) for i in range(len(found))]
            assert len(found) % 2 == 0
            assert len(found) >= 2 * (done + 1)


def test_a_read_only_database_without_tables_is_empty_to_readers_and_closed_to_writers(db_path: Path) -> None:
    agentdb.open(db_path).close()

    async def read(chats: AgentDBChatStore) -> list[Any]:
        return [await chats.get_messages("c"), await chats.count_messages("c"), await chats.get_keys()]

    with agentdb.open(db_path, read_only=True) as db:
        pairs, chats, legacy = AgentDBKVStore(db), AgentDBChatStore(db), AgentDBLegacyChatStore(db)
        assert pairs.get("k") is None
        assert pairs.get_many(["k", "l"]) == pairs.get_all() == {}
        assert asyncio.run(read(chats)) == [[], 0, []]
        assert legacy.get_messages("c") == legacy.get_keys() == []
        message = ChatMessage("x")
        for write in (
            lambda: pairs.put("k", {}),
            lambda: pairs.delete("k"),
            lambda: asyncio.run(chats.add_message("c", message)),
            lambda: legacy.set_messages("c", [message]),
        ):
            with pytest.raises(AccessDeniedError):
                write()
