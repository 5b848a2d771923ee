"""``AgentDBVectorStore`` from its making to the next process: what comes back, who sees it, and what other stores get wrong."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from support.llama_index_suite import ALL, node, only, random_nodes

import agentdb
from agentdb import ClosedError, InvalidInputError, UnavailableError
from llama_index_agentdb import AgentDBVectorStore

Operator = FilterOperator
VECTOR = [1.0, 0.0, 0.0, 0.0]


@pytest.fixture
def store(db_path: Path) -> Iterator[AgentDBVectorStore]:
    with AgentDBVectorStore(db_path) as opened:
        yield opened


def ids(store: AgentDBVectorStore, filters: MetadataFilters | None = None) -> set[str]:
    found = store.query(VectorStoreQuery(query_embedding=VECTOR, similarity_top_k=ALL, filters=filters))
    return set(found.ids or [])


# --- what comes back --------------------------------------------------------------------------------------------------

RELATIONS = {
    NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d1", metadata={"z": 1, "a": [1]}, hash="h"),
    NodeRelationship.NEXT: RelatedNodeInfo(node_id="n2"),
    NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
}
# The order of keys is part of a node: its hash, and what a model reads, are made in this order.
METADATA = {
    "z": 1,
    "a": {"z": [1, {"b": None}], "a": "ü"},
    "doc_id": "mine",
    "_node_type": "mine",
    "big": 2**70,
    "m": 1.5,
}
KINDS: list[BaseNode] = [
    TextNode(
        text="a text",
        metadata=METADATA,
        relationships=RELATIONS,  # type: ignore[arg-type]
        start_char_idx=3,
        end_char_idx=9,
        excluded_llm_metadata_keys=["z"],
        excluded_embed_metadata_keys=["a"],
        metadata_template="{key}={value}",
        metadata_separator="; ",
        text_template="{content} {metadata_str}",
        mimetype="text/markdown",
    ),
    TextNode(text=""),
    Node(
        text_resource=MediaResource(text="of a resource", mimetype="text/x-rst", path=Path("/a/b.rst")),
        image_resource=MediaResource(url="https://example.com/i.png", mimetype="image/png"),  # type: ignore[arg-type]
        metadata=METADATA,
    ),
    Node(text_resource=MediaResource(text="")),
    Node(audio_resource=MediaResource(path=Path("/a/b.mp3"))),
    Document(text="a document", metadata={"k": 1}, doc_id="d7"),
    ImageDocument(text="with an image", image_resource=MediaResource(path=Path("/a/b.png")), metadata={"k": 1}),
    ImageNode(
        text="caption", image="aGFsbG8=", image_path="/a/b.png", image_url="https://example.com/i", text_embedding=[1.0]
    ),
    IndexNode(text="see there", index_id="index 1", obj=TextNode(text="behind it", id_="x")),
    IndexNode.from_text_node(TextNode(text="see there", metadata={"k": 1}), "index 2"),
]


@pytest.mark.parametrize("one", KINDS, ids=lambda one: f"{one.class_name()}-{KINDS.index(one)}")
def test_every_kind_of_node_comes_back_whole(db_path: Path, one: BaseNode) -> None:
    given = one.model_copy(update={"embedding": [0.5, -0.25, 0.0, 1.0]})
    for _ in range(2):  # and again, by another handle
        with AgentDBVectorStore(db_path) as store:
            if not store.get_nodes():
                store.add([given])
            (whole,) = store.get_nodes()
            assert type(whole) is type(one)
            assert whole.to_dict() == given.to_dict()
            assert whole.hash == given.hash
            assert list(whole.metadata) == list(given.metadata)
            (found,) = store.query(VectorStoreQuery(query_embedding=VECTOR)).nodes or []
            assert found.to_dict() == given.to_dict() | {"embedding": None}


def test_a_node_of_an_own_class_comes_back_as_a_text_node(store: AgentDBVectorStore) -> None:
    class Special(TextNode):
        rank: int = 0

        @classmethod
        def class_name(cls) -> str:
            return "Special"

    store.add([Special(id_="s", text="special", rank=3, embedding=VECTOR, metadata={"k": 1})])
    (found,) = store.get_nodes()
    assert type(found) is TextNode
    assert (found.node_id, found.text, found.metadata) == ("s", "special", {"k": 1})


def test_the_rows_are_a_collection_like_any_other(store: AgentDBVectorStore) -> None:
    store.add(
        [node("a", text="peanuts", metadata={"tags": ["x"], "year": 2020}), node("b", [0, 1, 0, 0], text="cello")]
    )
    rows = store.client.collection("llama_index")
    assert [hit.id for hit in rows.search("cello", mode="text")] == ["b"]
    assert [hit.id for hit in rows.search(VECTOR, filter=agentdb.field("year") >= 2020)] == ["a"]
    rows.update(["a"], texts=["almonds"])
    assert store.get_nodes(["a"])[0].get_content() == "almonds"


def test_a_text_changed_to_none_by_others_is_an_empty_text(store: AgentDBVectorStore) -> None:
    store.client.collection("llama_index", dimension=4).upsert(["r"], [VECTOR])
    (found,) = store.get_nodes()
    assert (found.node_id, found.get_content(), found.metadata) == ("r", "", {})


# --- who sees it ------------------------------------------------------------------------------------------------------


def test_reopened_in_this_process_and_in_another(db_path: Path) -> None:
    nodes = random_nodes(30)
    with AgentDBVectorStore(db_path) as store:
        store.add(nodes)
        before = store.query(VectorStoreQuery(query_embedding=VECTOR, similarity_top_k=5))
    with AgentDBVectorStore(db_path) as store:
        after = store.query(VectorStoreQuery(query_embedding=VECTOR, similarity_top_k=5))
        assert (after.ids, after.similarities) == (before.ids, before.similarities)
        assert after.nodes == before.nodes
    code = (
        "import sys\nfrom llama_index.core.vector_stores.types import VectorStoreQuery\n"
        "from llama_index_agentdb import AgentDBVectorStore\n"
        "with AgentDBVectorStore(sys.argv[1]) as store:\n"
        "    found = store.query(VectorStoreQuery(query_embedding=[1, 0, 0, 0], similarity_top_k=5))\n"
        "    print([found.ids, found.similarities])"
    )
    ran = subprocess.run([sys.executable, "-c", code, db_path], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout.strip() == str([before.ids, before.similarities])


def test_several_processes_write_one_store(db_path: Path) -> None:
    count = 8
    with AgentDBVectorStore(db_path) as store:
        store.add([node("first", metadata={"writer": "parent"})])
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "support.vector_store_worker", str(db_path), name, str(count)],
                cwd=Path(__file__).parents[1],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in ("one", "two")
        ]
        for i in range(count):
            store.add([node(f"parent-{i}", metadata={"writer": "parent"})])
            assert len(ids(store, only("writer", "parent"))) == i + 2
        for name, worker in zip(("one", "two"), workers, strict=True):
            out, err = worker.communicate(timeout=120)
            assert worker.returncode == 0, err
            expected = {f"{name}-{i}" for i in range(0, count, 2)}
            assert set(out.split()) == expected
            assert ids(store, only("writer", name)) == expected
            assert ids(store, only("i", "again")) >= {f"{name}-0"}


def test_one_path_many_stores(db_path: Path) -> None:
    with (
        AgentDBVectorStore(db_path) as one,
        AgentDBVectorStore(db_path) as other,
        AgentDBVectorStore(db_path, collection="apart") as apart,
    ):
        assert ids(other) == set()
        one.add([node("a")])
        assert ids(other) == {"a"}
        assert ids(apart) == set()
        apart.add([TextNode(id_="a", embedding=[1.0, 0.0])])  # another dimension
        other.clear()
        assert ids(one) == set()
        assert [len(found.embedding or []) for found in apart.get_nodes()] == [2]


def test_dropped_and_made_anew_by_somebody_else(store: AgentDBVectorStore) -> None:
    store.add([node("a")])
    assert store.client.drop_collection("llama_index")
    assert ids(store) == set()
    assert store.get_nodes() == []
    store.delete("d")
    store.add([TextNode(id_="b", embedding=[1.0, 0.0])])
    assert [one.node_id for one in store.get_nodes()] == ["b"]


def test_transactions_and_snapshots_of_the_database(db_path: Path) -> None:
    with agentdb.open(db_path) as db:
        store = AgentDBVectorStore(db)

        def undone() -> None:
            with db.transaction():
                store.add([node("a")])
                db.states.save("ann", "chat", "task", {"n": 1})
                assert ids(store) == {"a"}
                raise RuntimeError("undo")

        with pytest.raises(RuntimeError, match="undo"):
            undone()
        assert ids(store) == set()
        assert db.collections() == []
        store.add([node("a")])
        with db.snapshot():
            other = threading.Thread(target=lambda: AgentDBVectorStore(db).add([node("b")]))
            other.start()
            other.join()
            assert ids(store) == {"a"}
            hybrid = VectorStoreQuery(query_embedding=VECTOR, query_str="text", mode="hybrid", sparse_top_k=3)  # type: ignore[arg-type]
            assert store.query(hybrid).ids == ["a"]
            with pytest.raises(UnavailableError):
                store.add([node("c")])
        assert ids(store) == {"a", "b"}
        store.close()
        assert db.collections() == ["llama_index"]  # what was given open stays open


def test_threads(store: AgentDBVectorStore) -> None:
    def work(name: str) -> None:
        for i in range(10):
            store.add([node(f"{name}-{i}", metadata={"by": name})])
            assert len(ids(store, only("by", name))) == i + 1

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(ids(store)) == 60


def test_async_calls_never_block_the_loop(db_path: Path) -> None:
    """Every call is made while another thread holds the write lock: the loop goes on, and writes wait on threads."""

    async def life() -> None:
        async with AgentDBVectorStore(db_path) as store:
            await store.async_add(random_nodes(10))
            held, release = threading.Event(), threading.Event()

            def hold() -> None:
                with store.client.transaction():
                    held.set()
                    release.wait(30)

            holder = threading.Thread(target=hold)
            holder.start()
            await asyncio.to_thread(held.wait)
            beats = 0
            waiting = [
                asyncio.create_task(one)
                for one in (
                    store.async_add([node("late")]),
                    store.adelete("d0"),
                    store.adelete_nodes(["n001"]),
                )
            ]
            found = await store.aquery(VectorStoreQuery(query_embedding=VECTOR, similarity_top_k=ALL))
            assert len(found.ids or []) == len(await store.aget_nodes()) == 10
            for _ in range(20):
                await asyncio.sleep(0.001)
                beats += 1
            assert beats == 20
            assert not any(one.done() for one in waiting)
            release.set()
            await asyncio.gather(*waiting)
            holder.join()
            left = {one.node_id for one in await store.aget_nodes()}
            assert left == {"n002", "n003", "n004", "n006", "n007", "n008", "n009", "late"}
            with store.client.transaction(), pytest.raises(UnavailableError):
                await store.async_add([node("never")])  # the transaction is this task's, and no thread may join it
            await store.aclear()
            assert await store.aget_nodes() == []

    asyncio.run(life())


def test_closed(db_path: Path) -> None:
    store = AgentDBVectorStore(db_path)
    store.add([node("a")])
    store.close()
    store.close()
    with pytest.raises(ClosedError):
        store.get_nodes()
    with pytest.raises(ClosedError):
        asyncio.run(store.aget_nodes())


# --- as a component ---------------------------------------------------------------------------------------------------


def test_making_one_does_no_io(db_path: Path) -> None:
    store = AgentDBVectorStore(db_path)
    assert not db_path.exists()
    assert store.stores_text
    assert repr(store) == f"AgentDBVectorStore({str(db_path)!r})"
    store.close()
    assert not db_path.exists()


def test_as_a_dictionary_and_back(db_path: Path) -> None:
    with AgentDBVectorStore(
        db_path, collection="c", metric="dot", reranker=lambda query, texts: [0.0] * len(texts)
    ) as store:
        store.add([node("a", metadata={"secret": "s3cret"})])
        data = store.to_dict()
        assert data == {
            "path": str(db_path),
            "collection": "c",
            "metric": "dot",
            "class_name": "AgentDBVectorStore",
        }
        assert json.loads(store.to_json()) == data
        for again in (
            AgentDBVectorStore.from_dict(data),
            AgentDBVectorStore.from_json(store.to_json()),
            pickle.loads(pickle.dumps(store)),
        ):
            with again:
                assert [one.node_id for one in again.get_nodes()] == ["a"]
                assert again.to_dict() == data
        with AgentDBVectorStore.from_dict(data, collection="other") as other:
            assert other.get_nodes() == []


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"db_or_path": 3}, "db_or_path"),
        ({"db_or_path": ""}, "db_or_path"),
        ({"collection": ""}, "collection"),
        ({"collection": "_documents.x"}, "collection"),
        ({"collection": None}, "collection"),
        ({"metric": "manhattan"}, "metric"),
    ],
)
def test_arguments_are_checked(db_path: Path, given: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidInputError, match=what):
        AgentDBVectorStore(**{"db_or_path": db_path, **given})


def test_an_index_over_it(db_path: Path) -> None:
    embed = MockEmbedding(embed_dim=8)
    with AgentDBVectorStore(db_path) as store:
        index = VectorStoreIndex.from_documents(
            [Document(text="one", doc_id="d1"), Document(text="two", doc_id="d2", metadata={"k": 1})],
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=embed,
        )
        assert len(index.as_retriever(similarity_top_k=5).retrieve("one")) == 2
        index.insert(Document(text="three", doc_id="d3"))
        index.delete_ref_doc("d1")
    with AgentDBVectorStore(db_path) as store:
        index = VectorStoreIndex.from_vector_store(store, embed_model=embed)
        retriever = index.as_retriever(similarity_top_k=5)
        assert sorted(one.get_content() for one in retriever.retrieve("x")) == ["three", "two"]
        assert sorted(one.get_content() for one in asyncio.run(retriever.aretrieve("x"))) == ["three", "two"]
        filtered = index.as_retriever(filters=only("k", 1), doc_ids=["d2"])
        assert [one.get_content() for one in filtered.retrieve("x")] == ["two"]
        index.update_ref_doc(Document(text="two anew", doc_id="d2"))
        assert {one.get_content() for one in retriever.retrieve("x")} == {"two anew", "three"}


# --- all or nothing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (TextNode(id_="x"), r"nodes\[1\].*embedding"),
        (TextNode(id_="x", embedding=[1.0]), r"nodes\[1\].*4 numbers"),
        (TextNode(id_="x", embedding=[]), r"nodes\[1\].*embedding"),
        (node("x", [1.0, float("nan"), 0.0, 0.0]), "finite"),
        (node("x", [0.0] * 4), "zero"),
        (node("x", [1e300, 0, 0, 0]), "finite"),
        (node("x", metadata={"k": float("nan")}), r"nodes\[1\].*'k'"),
        (node("x", metadata={"k": {"deep": [float("inf")]}}), r"nodes\[1\]"),
        (node("x", metadata={"k": object()}), r"nodes\[1\]"),
        (node("x", metadata={"k": 2**1024}), "float64"),
        (node("x", metadata={"_exact": 1}), "reserved"),
        (node("x", text="\ud800"), "surrogate"),
        (node("", metadata={}), "ids"),
        ("x", r"nodes\[1\]"),
    ],
)
def test_of_nodes_with_a_bad_one_none_is_stored(store: AgentDBVectorStore, bad: Any, what: str) -> None:
    store.add([node("kept")])
    with pytest.raises(InvalidInputError, match=what):
        store.add([node("a"), bad, node("b")])
    assert ids(store) == {"kept"}
    with pytest.raises(InvalidInputError, match="dimensions"):
        store.add([TextNode(id_="x", embedding=[1.0, 0.0])])
    for call in (store.add, store.delete, store.delete_nodes):
        with pytest.raises(InvalidInputError, match="surprise"):
            call([] if call == store.add else "kept", surprise=1)  # type: ignore[operator]
    assert ids(store) == {"kept"}


def test_secrets_do_not_appear_in_errors(store: AgentDBVectorStore) -> None:
    with pytest.raises(InvalidInputError) as raised:
        store.add([node("x", text="s3cret", metadata={"password": "s3cret", "bad": {"s3cret"}, "worse": object()})])
    assert "s3cret" not in str(raised.value)


# --- what LlamaIndex's LanceDB store gets wrong -------------------------------------------------------------------------


@pytest.fixture
def agents(store: AgentDBVectorStore) -> AgentDBVectorStore:
    store.add(
        [
            node("a", metadata={"agent": "ann", "n": 1}),
            node("b", metadata={"agent": "annabel", "n": 2}),
            node("c", metadata={"agent": "bob", "n": 3, "tags": ["x"]}),
        ]
    )
    return store


@pytest.mark.parametrize(
    "value", ["zzz' OR 1=1 --", "' OR '1'='1", 'zzz" OR 1=1 --', "%", "ann%", "_nn", "", "\\", "ann'"]
)
@pytest.mark.parametrize("operator", [Operator.EQ, Operator.IN, Operator.TEXT_MATCH, Operator.CONTAINS, Operator.ANY])
def test_a_value_is_never_an_expression(agents: AgentDBVectorStore, operator: Operator, value: str) -> None:
    asked = [value] if operator in (Operator.IN, Operator.ANY) else value
    expected = {"a", "b", "c"} if value == "" and operator not in (Operator.EQ, Operator.IN) else set()
    assert ids(agents, only("agent", asked, operator)) == expected
    agents.delete_nodes(filters=only("agent", [value], Operator.IN))
    agents.delete(value)
    assert ids(agents) == {"a", "b", "c"}


def test_a_key_is_never_an_expression(agents: AgentDBVectorStore) -> None:
    for key in ("agent = 'ann' OR 1=1 --", "agent'", 'agent"', "a.b", "metadata.agent"):
        assert ids(agents, only(key, "ann")) == set()
        agents.add([node("odd", metadata={key: "ann"})])
        assert ids(agents, only(key, "ann")) == {"odd"}
        agents.delete_nodes(["odd"])


def test_not_equal_is_no_substring_test(agents: AgentDBVectorStore) -> None:
    assert ids(agents, only("agent", "ann", Operator.NE)) == {"b", "c"}


def test_no_operator_fails(agents: AgentDBVectorStore) -> None:
    for operator, value, expected in (
        (Operator.NIN, ["ann", "bob"], {"b"}),
        (Operator.ANY, ["x", "y"], {"c"}),
        (Operator.ALL, ["x"], {"c"}),
        (Operator.TEXT_MATCH_INSENSITIVE, "ANN", {"a", "b"}),
        (Operator.CONTAINS, "x", {"c"}),
        (Operator.IS_EMPTY, None, {"a", "b"}),
        (Operator.GTE, 2, {"b", "c"}),
        (Operator.TEXT_MATCH, "nab", {"b"}),
    ):
        key = {"c": "tags"}.get("".join(expected), "agent")
        if operator is Operator.IS_EMPTY:
            key = "tags"
        if operator is Operator.GTE:
            key = "n"
        assert ids(agents, only(key, value, operator)) == expected, operator


def test_not_is_not_and(agents: AgentDBVectorStore) -> None:
    several = [MetadataFilter(key="agent", value="ann"), MetadataFilter(key="n", value=3)]
    assert ids(agents, MetadataFilters(filters=several, condition=FilterCondition.NOT)) == {"b"}
    assert ids(agents, MetadataFilters(filters=several, condition=FilterCondition.AND)) == set()
    assert ids(agents, MetadataFilters(filters=several, condition=FilterCondition.OR)) == {"a", "c"}


def test_metadata_may_have_keys_that_no_node_had_before(agents: AgentDBVectorStore) -> None:
    agents.add([node("d", metadata={"brand new": {"deep": [1]}, "n": "a text now"})])
    assert ids(agents, only("n", "a text now")) == {"d"}


def test_adding_again_makes_no_second_node(agents: AgentDBVectorStore) -> None:
    agents.add([node("a", metadata={"agent": "ann"}), node("b", metadata={"agent": "annabel"})])
    assert [one.node_id for one in agents.get_nodes()] == ["a", "b", "c"]


def test_get_nodes_works(agents: AgentDBVectorStore) -> None:
    assert [one.node_id for one in agents.get_nodes(["b"])] == ["b"]
    assert [one.node_id for one in agents.get_nodes(filters=only("n", 1, Operator.GT))] == ["b", "c"]


def test_a_query_without_results_is_no_exception(agents: AgentDBVectorStore) -> None:
    assert ids(agents, only("agent", "nobody")) == set()


def test_writes_do_not_pile_up_files(store: AgentDBVectorStore, db_path: Path) -> None:
    for i in range(50):
        store.add([node(f"n{i}")])
    store.client.optimize()
    assert sum(one.is_file() for one in db_path.rglob("*")) < 60
    assert len(ids(store)) == 50


def test_a_query_sees_what_was_added_just_before_wherever_it_lies(store: AgentDBVectorStore) -> None:
    for i in range(20):
        store.add([node(f"n{i}")])
        assert len(ids(store)) == i + 1
        if i % 7 == 6:
            store.client.optimize()
