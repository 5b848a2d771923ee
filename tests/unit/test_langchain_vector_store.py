"""The vector store beyond LangChain's own tests: ids, metadata, metrics, modes, threads, failures."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import ValidationError

import agentdb
from agentdb import ClosedError, InvalidInputError, VectorSpec, field
from agentdb_embedders import HashingEmbedder
from langchain_agentdb import (
    AgentDBDocumentIndex,
    AgentDBEmbeddings,
    AgentDBRetriever,
    AgentDBSemanticCache,
    AgentDBVectorMemory,
    AgentDBVectorStore,
)

D = 8


class Numbered(Embeddings):
    """A vector for each text, by its number; counts what it is asked."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.documents: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.documents += texts
        return [self.embed_query(one) for one in texts]

    def embed_query(self, text: str) -> list[float]:
        return (self.scale * np.random.default_rng(crc32(text.encode())).normal(size=D)).tolist()


@pytest.fixture
def store(db_path: Path):
    with AgentDBVectorStore(Numbered(), db_path) as made:
        yield made


def names(found: list[Document]) -> list[str]:
    return [one.id for one in found]


# --- adding ---------------------------------------------------------------------------------------------------------------


def test_making_one_touches_nothing(db_path: Path) -> None:
    store = AgentDBVectorStore(Numbered(), db_path)
    assert not db_path.exists()
    assert repr(store) == f"AgentDBVectorStore({str(db_path)!r})"
    store.close()
    assert not db_path.exists()


def test_what_was_never_filled_is_empty_and_stays_unmade(store: AgentDBVectorStore) -> None:
    assert store.similarity_search("x") == []
    assert store.similarity_search_by_vector([1.0] * D) == []
    assert store.max_marginal_relevance_search("x") == []
    assert store.similarity_search_with_relevance_scores("x") == []
    assert store.get_by_ids(["a"]) == []
    assert store.delete(["a"])
    assert store.delete()
    assert store.add_texts([]) == []
    assert store.collection is None
    assert not store.delete_collection()


METADATA: list[dict[str, Any]] = [
    {},
    {"a": None, "b": True, "c": -0.5, "d": "text", "e": 2**70, "f": []},
    {"nested": {"list": [1, "two", None, {"three": [3.0]}], "": "no name"}},
    {"a": [1, "two"]},
    {"a": {"a": {"a": 1}}},
    {"a.b": 1, "it's": '"', "🙂": "\0 \\ '"},
]


def test_metadata_of_any_shape_comes_back_as_it_went_in(store: AgentDBVectorStore, db_path: Path) -> None:
    ids = store.add_texts([str(i) for i in range(len(METADATA))], METADATA)
    assert [one.metadata for one in store.get_by_ids(ids)] == METADATA
    for i, one in enumerate(METADATA):
        assert store.similarity_search(str(i), k=1)[0].metadata == one
    with agentdb.open(db_path) as db:
        db.optimize()
    assert [one.metadata for one in store.get_by_ids(ids)] == METADATA


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"a": object()}, r"metadata\[1\].a: JSON holds no object"),
        ({"a": [1, float("nan")]}, r"metadata\[1\].a\[1\]: a number must be finite"),
        ({3: "x"}, r"metadata\[1\]: a key must be a str"),
        ({"a": "\ud800"}, "surrogate"),
    ],
)
def test_metadata_that_cannot_be_stored_is_named_and_nothing_is_written(store, metadata, said) -> None:
    with pytest.raises(InvalidInputError, match=said):
        store.add_texts(["good", "bad"], [{}, metadata])
    assert store.similarity_search("good") == []


def test_ids_are_kept_made_and_replaced(store: AgentDBVectorStore) -> None:
    documents = [Document("one", id="1"), Document("two"), Document("three", id="3", metadata={"n": 3})]
    ids = store.add_documents(documents)
    assert (ids[0], ids[2]) == ("1", "3")
    assert store.get_by_ids(ids) == [documents[0], Document("two", id=ids[1]), documents[2]]
    assert store.add_documents([Document("neu", id="1", metadata={"new": True})], ids=["3"]) == ["3"]
    assert store.get_by_ids(["3", "1", "nobody", "3"]) == [
        Document("neu", id="3", metadata={"new": True}),
        Document("one", id="1"),
    ]


ODD_IDS = ["a b", "'; DROP TABLE", "\0", "🙂", "\n", "%", "../x", "a" * 1024, " ", "None"]


def test_ids_of_any_characters_and_generators(store: AgentDBVectorStore) -> None:
    texts = [f"text {i}" for i in range(len(ODD_IDS))]
    assert store.add_texts(iter(texts), ({"i": i} for i in range(len(texts))), ids=iter(ODD_IDS)) == ODD_IDS
    assert names(store.get_by_ids(ODD_IDS)) == ODD_IDS
    assert [one.metadata["i"] for one in store.get_by_ids(iter(ODD_IDS))] == list(range(len(ODD_IDS)))
    for one, text in zip(ODD_IDS, texts, strict=True):
        assert names(store.similarity_search(text, k=1)) == [one]
    made = store.add_texts(["x", "y", "z"], ids=[" ", None, " "])
    assert (made[0], made[2]) == (" ", " ")
    assert made[1] not in ODD_IDS
    assert [one.page_content for one in store.get_by_ids([" ", made[1]])] == ["z", "y"]
    store.delete(ODD_IDS)
    assert names(store.similarity_search("x", k=99)) == [made[1]]


def test_metadata_may_be_called_like_parts_of_a_row(store: AgentDBVectorStore) -> None:
    reserved = {"id": "other", "text": "T", "metadata": {"id": 1}, "vector": [1], "score": 3, "_id": 1}
    store.add_texts(["a", "b"], [reserved, {}], ids=["a", "b"])
    assert store.get_by_ids(["a"])[0].metadata == reserved
    for condition in ({"id": "other"}, {"text": "T"}, {"metadata": {"id": 1}}, {"score": {"$gt": 2}}, {"_id": 1}):
        assert names(store.similarity_search("b", filter=condition)) == ["a"], condition
    assert store.similarity_search("b", filter={"id": "a"}) == []


def test_of_equal_ids_in_one_call_the_last_counts(store: AgentDBVectorStore) -> None:
    assert store.add_texts(["a", "b", "c"], [{"n": 1}, {"n": 2}, {"n": 3}], ids=["x", "y", "x"]) == ["x", "y", "x"]
    assert store.embeddings.documents == ["c", "b"]
    assert store.get_by_ids(["x", "y"]) == [
        Document("c", id="x", metadata={"n": 3}),
        Document("b", id="y", metadata={"n": 2}),
    ]
    vectors = [store.embeddings.embed_query(one) for one in ("p", "q", "r")]
    store.add_embeddings(["p", "q", "r"], vectors, ids=["x", "z", "x"])
    assert names(store.similarity_search_by_vector(vectors[2], k=1)) == ["x"]
    assert store.get_by_ids(["x"])[0].page_content == "r"


def test_batches_are_stored_one_by_one(db_path: Path) -> None:
    class Failing(Numbered):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            if "bad" in texts:
                raise RuntimeError("the embedder is down")
            return super().embed_documents(texts)

    with AgentDBVectorStore(Failing(), db_path) as store:
        with pytest.raises(RuntimeError, match="down"):
            store.add_texts(["a", "b", "c", "bad"], ids=["a", "b", "c", "bad"], batch_size=2)
        assert names(store.get_by_ids(["a", "b", "c", "bad"])) == ["a", "b"]
        with pytest.raises(RuntimeError, match="down"):
            store.add_texts(["d", "bad"], ids=["d", "bad"])
        assert store.get_by_ids(["d"]) == []
        with pytest.raises(RuntimeError, match="down"):
            asyncio.run(store.aadd_texts(["e", "f", "g", "bad"], ids=["e", "f", "g", "bad"], batch_size=2))
        assert names(store.get_by_ids(["e", "f", "g", "bad"])) == ["e", "f"]


def test_wrong_arguments_are_named(store: AgentDBVectorStore, tmp_path: Path) -> None:
    store.add_texts(["a"])
    for wrong, said in (
        (lambda: store.add_texts("abc"), "texts must be a list of strings, not one string"),
        (lambda: store.add_texts(["a", 3]), r"texts\[1\] must be a str, not int"),
        (lambda: store.add_texts(["a"], [{}, {}]), "metadatas must be as many as the texts: 1, not 2"),
        (lambda: store.add_texts(["a"], ids=["a", "b"]), "ids must be as many as the texts: 1, not 2"),
        (lambda: store.add_texts(["a"], ids=[3]), r"ids\[0\] must be a str or None, not int"),
        (lambda: store.add_texts(["a"], ids=[""]), "ids must have 1 to 1,024 characters"),
        (lambda: store.add_texts(["a"], batch_size=0), "batch_size must be an int of 1 or more"),
        (lambda: store.add_texts(["a"], bulk=True), "there is no option bulk"),
        (lambda: store.add_embeddings(["a"], [[1.0] * (D + 1)]), "dimension"),
        (lambda: store.add_embeddings(["a", "b"], [[1.0] * D]), "expected 2 rows, got 1"),
        (lambda: store.similarity_search(["x"]), "query must be a str, not list"),
        (lambda: store.similarity_search("x", k=0), "k must be an int of 1 or more"),
        (lambda: store.similarity_search("x", fetch_k=3), "a search has no option fetch_k; there are exact"),
        (lambda: store.similarity_search("x", mode="words"), "mode must be one of 'vector', 'text', 'hybrid'"),
        (lambda: store.max_marginal_relevance_search("x", mode="text"), "a search has no option mode"),
        (lambda: store.similarity_search_by_vector([1.0]), "dimension"),
        (lambda: store.similarity_search_by_vector([1.0] * D, mode="hybrid"), "must have a text for mode 'hybrid'"),
        (lambda: store.get_by_ids("abc"), "ids must be a list of strings, not one string"),
        (lambda: store.delete(["a"], filter={"a": 1}), "either ids or a filter"),
        (lambda: store.delete(filter={}), "filter must not be empty"),
        (lambda: store.delete(["a"], filter={}), "filter must not be empty"),
        (lambda: store.add_texts(["a"], ids={"a"}), "ids must be a list of strings, not set"),
        (lambda: store.add_texts({"a"}), "texts must be a list of strings, not set"),
        (lambda: store.add_texts(["a"], {"n": 1}), "metadatas must be a list of dictionaries, not dict"),
        (lambda: store.add_texts(["a"], [[]]), r"metadata\[0\] must be a mapping or None, not list"),
        (lambda: store.add_texts(["a"], ids=3), "ids must be a list of strings, not int"),
        (
            lambda: store.max_marginal_relevance_search("x", fetch_k=None),
            "fetch_k must be an int of 1 or more, not None",
        ),
        (lambda: store.max_marginal_relevance_search("x", fetch_k=-1), "fetch_k must be an int of 1 or more, not -1"),
        (lambda: store.max_marginal_relevance_search("x", k="2"), "k must be an int of 1 or more, not '2'"),
        (lambda: AgentDBVectorStore(Numbered(), 3), "db_or_path must be a database or the path of one, not int"),
        (
            lambda: AgentDBVectorStore(3, tmp_path / "db"),
            "embedding must be LangChain Embeddings, an agentdb.Embedder or",
        ),
        (lambda: AgentDBVectorStore(Numbered(), tmp_path / "db", mode="x"), "mode must be one of"),
        (lambda: AgentDBVectorStore(Numbered(), tmp_path / "db", metric="l1"), "metric must be 'cosine', 'dot'"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            wrong()


@pytest.mark.parametrize("name", ["_documents.x", "_memories", "", "a b", "a/b", "x" * 49, 3, None])
def test_a_collection_that_cannot_be_is_refused_before_a_database_is_made(db_path: Path, name: Any) -> None:
    for make in (
        lambda: AgentDBVectorStore(Numbered(), db_path, collection=name),
        lambda: AgentDBDocumentIndex(Numbered(), db_path, collection=name),
        lambda: AgentDBSemanticCache(Numbered(), db_path, collection=name),
        lambda: AgentDBVectorMemory(Numbered(), db_path, collection=name, session_id="s"),
        lambda: AgentDBRetriever(db_path, collection=name),
    ):
        with pytest.raises((InvalidInputError, ValidationError), match="collection"):
            make()
    assert not db_path.exists()


def test_wrong_arguments_are_refused_whether_or_not_anything_is_there(store: AgentDBVectorStore) -> None:
    for _ in range(2):
        for wrong, said in (
            (lambda: store.similarity_search("x", k=0), "k must be an int of 1 or more, not 0"),
            (lambda: store.similarity_search_by_vector([1.0] * D, k=True), "k must be an int of 1 or more, not True"),
            (lambda: store.max_marginal_relevance_search("x", k=2.0), "k must be an int of 1 or more, not 2.0"),
            (lambda: store.get_by_ids(["a", 3]), r"ids\[1\] must be a str, not int"),
            (lambda: store.get_by_ids([["a"]]), r"ids\[0\] must be a str, not list"),
            (lambda: store.delete([None]), r"ids\[0\] must be a str, not NoneType"),
            (lambda: store.delete({"a": 1}), "ids must be a list of strings, not dict"),
            (lambda: store.delete(b"a"), "ids must be a list of strings, not bytes"),
        ):
            with pytest.raises(InvalidInputError, match=said):
                wrong()
        store.add_texts(["a", "b"], ids=["a", "b"])
    for k in (np.int64(1), np.int32(1)):
        assert len(store.similarity_search("x", k=k)) == len(store.max_marginal_relevance_search("x", k=k)) == 1
    assert len(store.similarity_search("x", k=2**70)) == 2


def test_ids_that_no_document_can_have_are_of_none(store: AgentDBVectorStore) -> None:
    store.add_texts(["a", "b"], ids=["a", "b"])
    impossible = ["", "x" * 1_025, "\ud800"]
    with AgentDBDocumentIndex(store.embeddings, store) as index:
        assert names(store.get_by_ids([*impossible, "b", "nobody"])) == names(index.get([*impossible, "b"])) == ["b"]
        assert store.delete(impossible)
        assert index.delete(impossible)["num_deleted"] == 0
        assert names(store.get_by_ids(["a", "b"])) == ["a", "b"], "nothing else is deleted in their place"
        assert index.delete([*impossible, "a", "a"])["succeeded"] == ["a"]
        assert store.delete([*impossible, "b"])
        assert store.delete([*impossible, "b"])
        assert store.get_by_ids(["a", "b"]) == []
    for one in impossible:
        with pytest.raises(InvalidInputError, match="ids"):
            store.add_texts(["x"], ids=[one])


# --- searching ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_scores_order_and_relevance_of_every_metric(db_path: Path, metric: Any) -> None:
    texts = [f"text {i}" for i in range(60)]
    embeddings = Numbered(scale=3.0)
    with AgentDBVectorStore(embeddings, db_path, metric=metric) as store:
        store.add_texts(texts, ids=texts)
        matrix, query = np.array(embeddings.embed_documents(texts)), np.array(embeddings.embed_query("query"))
        expected = {
            "cosine": matrix @ query / np.linalg.norm(matrix, axis=1) / np.linalg.norm(query),
            "dot": matrix @ query,
            "euclidean": 1 / (1 + np.linalg.norm(matrix - query, axis=1)),
        }[metric]
        found = store.similarity_search_with_score("query", k=60)
        assert [one.id for one, _ in found] == [texts[i] for i in np.argsort(-expected)]
        assert [score for _, score in found] == pytest.approx(sorted(expected, reverse=True), rel=1e-4, abs=1e-5)
        relevant = store.similarity_search_with_relevance_scores("query", k=60)
        scores = [score for _, score in relevant]
        assert [one for one, _ in relevant] == [one for one, _ in found]
        assert all(0 <= one <= 1 for one in scores)
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > 0.5 * (metric != "euclidean")
        by_function = store._select_relevance_score_fn()
        assert scores == [by_function(score) for _, score in found]
        itself = store.similarity_search_with_relevance_scores("text 7", k=1)[0]
        assert itself[0].id == "text 7" or metric == "dot"
        assert itself[1] == pytest.approx(1, abs=1e-2)


def test_a_threshold_is_of_relevance(store: AgentDBVectorStore) -> None:
    store.add_texts([f"text {i}" for i in range(40)])
    all_of_them = store.similarity_search_with_relevance_scores("query", k=40)
    bound = all_of_them[10][1]
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"k": 40, "score_threshold": bound}
    )
    assert retriever.invoke("query") == [one for one, _ in all_of_them[:11]]


def test_the_three_search_types_of_a_retriever(store: AgentDBVectorStore) -> None:
    store.add_texts([f"text {i}" for i in range(40)], [{"even": i % 2 == 0} for i in range(40)])
    even = {"even": True}
    plain = store.as_retriever(search_kwargs={"k": 5, "filter": even})
    assert plain.invoke("query") == store.similarity_search("query", 5, filter=even)
    assert len(plain.invoke("query", k=2)) == 2
    diverse = store.as_retriever(search_type="mmr", search_kwargs={"k": 5, "fetch_k": 15, "filter": even})
    assert diverse.invoke("query") == store.max_marginal_relevance_search("query", 5, 15, filter=even)
    close = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.0})
    assert close.invoke("query") == store.similarity_search("query")
    assert plain.tags == ["AgentDBVectorStore", "Numbered"]


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_relevance_of_the_farthest_and_of_nothing(db_path: Path, metric: Any) -> None:
    vectors = {"far": [-1.0, 0.0], "near": [1.0, 0.0], "zero": [0.0, 0.0], "huge": [1e15, 0.0]}

    class Given(Embeddings):
        def embed_query(self, text: str) -> list[float]:
            return vectors[text]

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [self.embed_query(one) for one in texts]

    with AgentDBVectorStore(Given(), db_path, metric=metric) as store:
        texts = ["far", "near", "huge"]
        if metric == "cosine":
            with pytest.raises(InvalidInputError, match="zero vector"):
                store.add_texts([*texts, "zero"])
        else:
            texts.append("zero")
        store.add_texts(texts, ids=texts)
        for query in texts:
            found = store.similarity_search_with_relevance_scores(query, k=9)
            assert len(found) == len(texts)
            assert all(0.0 <= score <= 1.0 for _, score in found)
            by_id = {one.id: score for one, score in found}
            assert by_id[query] == 1.0 or metric == "dot"
            assert by_id["far"] < by_id["near"] or query in ("far", "zero", "huge")
        assert len(store.max_marginal_relevance_search("near", k=9, fetch_k=1)) == len(texts)


@pytest.mark.parametrize("lambda_mult", [0.0, 0.3, 0.5, 1.0])
def test_diversity_is_that_of_langchain(store: AgentDBVectorStore, lambda_mult: float) -> None:
    texts = [f"text {i}" for i in range(50)]
    store.add_texts(texts, ids=texts)
    query = store.embeddings.embed_query("query")
    nearest = names(store.similarity_search_by_vector(query, k=20))
    vectors = [store.embeddings.embed_query(one) for one in nearest]
    chosen = maximal_marginal_relevance(np.array(query), vectors, lambda_mult=lambda_mult, k=6)
    assert names(store.max_marginal_relevance_search("query", 6, lambda_mult=lambda_mult)) == [
        nearest[i] for i in chosen
    ]
    assert len(store.max_marginal_relevance_search("query", 30)) == 30, "fetch_k is at least k"


PEOPLE = ["Ann lives in Lisbon", "Bob plays the cello in Porto", "Carol wrote error code E-4711 down", "Dave sleeps"]


def test_words_and_meaning_and_a_reranker(db_path: Path) -> None:
    with agentdb.open(db_path, embedder=HashingEmbedder(128)) as db, AgentDBVectorStore(None, db) as store:
        store.add_texts(PEOPLE, [{"i": i} for i in range(4)], ids=list("abcd"))
        assert names(store.similarity_search("E-4711", mode="text")) == ["c"]
        assert names(store.similarity_search("cello Porto", k=1, mode="hybrid")) == ["b"]
        for mode in ("text", "hybrid", "vector"):
            found = store.similarity_search_with_relevance_scores("cello Porto", mode=mode)
            assert found[0][0].id == "b"
            assert all(0 <= score <= 1 for _, score in found)

        def by_length(query: str, texts: list[str]) -> list[float]:
            assert query == "lives"
            return [1 / len(one) for one in texts]

        ranked = sorted("abcd", key=lambda one: len(PEOPLE["abcd".index(one)]))
        assert names(store.similarity_search("lives", rerank=by_length)) == ranked
        assert [one.id for one, _ in store.similarity_search_with_relevance_scores("lives", rerank=by_length)] == ranked
        with pytest.raises(InvalidInputError, match="relevance needs scores from 0 to 1, the reranker said"):
            store.similarity_search_with_relevance_scores("lives", rerank=lambda _, texts: [7.5] * len(texts))
        with pytest.raises(InvalidInputError, match="yields ranks, not relevance"):
            store.similarity_search_with_relevance_scores("lives", mode="hybrid", fusion="rrf")
        assert store.similarity_search("lives", mode="hybrid", weights={"vector": 0.0, "text": 1.0})[0].id == "a"
        with AgentDBVectorStore(None, db, mode="text", rerank=by_length) as words:
            assert names(words.similarity_search("lives")) == ["a"]
            assert len(words.similarity_search("lives", mode="vector", rerank=None)) == 4
            assert len(words.similarity_search_by_vector(words.embeddings.embed_query("lives"))) == 4


def test_a_reranker_of_the_store_has_the_last_word_unless_a_search_says_otherwise(db_path: Path) -> None:
    def backwards(_: str, texts: list[str]) -> list[float]:
        return [ord(one[0]) / 1_000 for one in texts]

    with AgentDBVectorStore(Numbered(), db_path, rerank=backwards) as store:
        store.add_texts(PEOPLE, ids=list("abcd"))
        assert names(store.similarity_search("x")) == list("dcba")
        assert [one.id for one, _ in store.similarity_search_with_relevance_scores("x")] == list("dcba")
        with AgentDBVectorStore(Numbered(), db_path) as plain:
            assert store.similarity_search("x", rerank=None) == plain.similarity_search("x")
            assert names(plain.similarity_search("x")) != list("dcba")


def test_relevance_is_by_the_metric_that_the_vectors_have(db_path: Path) -> None:
    query = np.array(Numbered().embed_query("query"))
    with agentdb.open(db_path) as db:
        two = {"vector": VectorSpec(D, "cosine"), "other": VectorSpec(D, "dot")}
        rows = np.array(Numbered(scale=0.1).embed_documents(["a", "b"]), np.float32)
        db.collection("two", vectors=two).upsert(["a", "b"], vectors={"vector": rows, "other": rows}, texts=["a", "b"])
        db.collection("dot", dimension=D, metric="dot").upsert(["a", "b"], rows, texts=["a", "b"])
        logistic = {one: 1 / (1 + np.exp(-row @ query)) for one, row in zip("ab", rows, strict=True)}
        for name, options in (("dot", {}), ("two", {"vector_name": "other"})):
            with AgentDBVectorStore(Numbered(), db, collection=name) as store:
                found = store.similarity_search_with_relevance_scores("query", **options)
                assert {one.id: score for one, score in found} == pytest.approx(logistic, rel=1e-4)
                assert asyncio.run(store.asimilarity_search_with_relevance_scores("query", **options)) == found


def test_rows_without_a_text_have_an_empty_one(db_path: Path) -> None:
    with agentdb.open(db_path) as db, AgentDBVectorStore(Numbered(), db, collection="bare") as store:
        db.collection("bare", dimension=D).upsert(["a"], np.ones((1, D), np.float32))
        assert store.get_by_ids(["a"]) == store.similarity_search("x") == [Document("", id="a")]
        assert store.max_marginal_relevance_search("x") == [Document("", id="a")]


def test_words_are_searched_without_an_embedding(db_path: Path) -> None:
    class Silent(Numbered):
        def embed_query(self, text: str) -> list[float]:
            raise AssertionError("nobody asked for a vector")

    with AgentDBVectorStore(Numbered(), db_path) as store:
        store.add_texts(PEOPLE)
    with AgentDBVectorStore(Silent(), db_path, mode="text") as store:
        for found in (
            store.similarity_search("Lisbon"),
            asyncio.run(store.asimilarity_search("Lisbon")),
            [one for one, _ in store.similarity_search_with_relevance_scores("Lisbon")],
            [one for one, _ in asyncio.run(store.asimilarity_search_with_relevance_scores("Lisbon"))],
        ):
            assert [one.page_content for one in found] == PEOPLE[:1]


# --- whose vectors --------------------------------------------------------------------------------------------------------


def test_the_database_s_own_embedder_and_langchain_s_are_one_collection(db_path: Path) -> None:
    embedder = HashingEmbedder(64)
    with agentdb.open(db_path, embedder=embedder) as db:
        db.collection("facts").upsert(["f1"], texts=["Ann lives in Lisbon"])
        for embedding in (None, embedder, AgentDBEmbeddings(embedder)):
            with AgentDBVectorStore(embedding, db, collection="facts") as store:
                store.add_texts(["Bob lives in Porto"], ids=["f2"])
                assert names(store.similarity_search("Lisbon", k=1)) == ["f1"]
        assert db.collection("facts").search("Porto", k=1)[0].id == "f2"


def test_queries_and_documents_are_embedded_as_such(db_path: Path) -> None:
    class Noting(HashingEmbedder):
        def embed(self, texts: Any, kind: Any = "document") -> Any:
            kinds.append(kind)
            return super().embed(texts, kind)

    kinds: list[str] = []
    made = AgentDBEmbeddings(Noting(D))
    with AgentDBVectorStore(made, db_path) as store:
        for call, kind in (
            (lambda: made.embed_query("x"), "query"),
            (lambda: made.embed_documents(["x"]), "document"),
            (lambda: asyncio.run(made.aembed_query("x")), "query"),
            (lambda: asyncio.run(made.aembed_documents(["x"])), "document"),
            (lambda: store.add_texts(["x"]), "document"),
            (lambda: asyncio.run(store.aadd_texts(["x"])), "document"),
            (lambda: store.similarity_search("x"), "query"),
            (lambda: asyncio.run(store.asimilarity_search("x")), "query"),
            (lambda: store.max_marginal_relevance_search("x"), "query"),
            (lambda: asyncio.run(store.amax_marginal_relevance_search("x")), "query"),
        ):
            kinds.clear()
            call()
            assert set(kinds) == {kind}


def test_embeddings_are_copied_as_they_are_and_pickled_by_what_they_are_made_of(db_path: Path) -> None:
    made = AgentDBEmbeddings(HashingEmbedder(16))
    assert copy.copy(made) is copy.deepcopy(made) is made
    for one in (made, AgentDBEmbeddings("hashing")):
        assert pickle.loads(pickle.dumps(one)).embed_query("Ann") == one.embed_query("Ann")
    with (
        agentdb.open(db_path, embedder=HashingEmbedder(16)) as db,
        AgentDBVectorStore(None, db) as store,
        pytest.raises(TypeError, match="embeddings of an open database cannot be pickled: name the embedder"),
    ):
        pickle.dumps(store.embeddings)


def test_vectors_of_two_embedders_never_meet(db_path: Path) -> None:
    with agentdb.open(db_path, embedder=HashingEmbedder(64)) as db:
        db.collection("own").upsert(["f1"], texts=["Ann"])
        with (
            AgentDBVectorStore(Numbered(), db, collection="own") as foreign,
            pytest.raises(InvalidInputError, match="are made by embedder 'hashing-2-v1': pass that one, or None"),
        ):
            foreign.similarity_search("Ann")
        with AgentDBVectorStore(Numbered(), db, collection="given") as given:
            given.add_texts(["Ann"])
        with (
            AgentDBVectorStore(None, db, collection="given") as ours,
            pytest.raises(InvalidInputError, match="the vectors of collection given are given"),
        ):
            ours.similarity_search("Ann")
        with (
            AgentDBVectorStore(Numbered(), db, collection="given", metric="dot") as other,
            pytest.raises(InvalidInputError, match="was created with metric 'cosine', not 'dot'"),
        ):
            other.similarity_search("Ann")


# --- transactions and handles ---------------------------------------------------------------------------------------------


def test_it_joins_a_transaction_and_survives_its_end(db_path: Path) -> None:
    with agentdb.open(db_path) as db, AgentDBVectorStore(Numbered(), db) as store:

        def fail() -> None:
            with db.transaction():
                store.add_texts(["a"], ids=["a"])
                assert names(store.similarity_search("a")) == ["a"]
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert store.similarity_search("a") == []
        assert db.collections() == []
        with db.transaction():
            store.add_texts(["a"], ids=["a"])
        assert names(store.similarity_search("a")) == ["a"]
        with db.snapshot():
            assert names(store.similarity_search("a")) == ["a"]


def test_a_first_document_inside_and_outside_a_transaction_at_once(db_path: Path) -> None:
    with agentdb.open(db_path) as db, AgentDBVectorStore(Numbered(), db) as store:
        begun = threading.Event()

        def outside() -> None:
            begun.set()
            store.add_texts(["outside"], ids=["outside"])

        other = threading.Thread(target=outside)
        with db.transaction():
            other.start()
            begun.wait(60)
            time.sleep(0.05)  # let it wait for its turn
            store.add_texts(["inside"], ids=["inside"])
        other.join(60)
        assert names(store.get_by_ids(["inside", "outside"])) == ["inside", "outside"]


def test_it_goes_on_after_somebody_dropped_the_collection(db_path: Path) -> None:
    with agentdb.open(db_path) as db, AgentDBVectorStore(Numbered(), db) as store:
        store.add_texts(["a"], ids=["a"])
        assert db.drop_collection("langchain")
        assert store.similarity_search("a") == []
        store.add_texts(["b"], ids=["b"])
        assert names(store.similarity_search("a")) == ["b"]
        assert db.drop_collection("langchain")
        store.add_texts(["c"], ids=["c"])
        assert names(store.similarity_search("a")) == ["c"]
        assert store.delete_collection()
        assert store.collection is None


def test_it_is_closed_for_good_and_leaves_a_given_database_open(db_path: Path) -> None:
    with agentdb.open(db_path) as db:
        store = AgentDBVectorStore.from_texts(
            ["a"], Numbered(), [{"n": 1}], ids=["a"], db_or_path=db, collection="mine"
        )
        assert store.collection is not None
        store.close()
        store.close()
        assert db.collections() == ["mine"]
        with pytest.raises(ClosedError):
            store.similarity_search("a")
        with pytest.raises(ClosedError):
            asyncio.run(store.asimilarity_search("a"))
    with AgentDBVectorStore.from_documents(
        [Document("b", id="b")], Numbered(), db_or_path=db_path, collection="mine"
    ) as two:
        assert names(two.get_by_ids(["a", "b"])) == ["a", "b"]
    with pytest.raises(TypeError, match="db_or_path"):
        AgentDBVectorStore.from_texts(["a"], Numbered())


# --- async ----------------------------------------------------------------------------------------------------------------


def test_async_twins_give_what_sync_gives(db_path: Path) -> None:
    texts = [f"text {i}" for i in range(30)]
    metadata = [{"even": i % 2 == 0} for i in range(30)]
    with AgentDBVectorStore(Numbered(), db_path / "sync") as store:
        store.add_texts(texts, metadata, ids=texts)
        store.delete(["text 3"])
        store.delete(filter={"even": True})
        vector = store.embeddings.embed_query("query")

        async def run() -> None:
            async with AgentDBVectorStore(Numbered(), db_path / "async") as other:
                assert await other.aadd_texts(texts, metadata, ids=texts) == texts
                assert await other.adelete(["text 3"])
                assert await other.adelete(filter={"even": True})
                options = {"k": 5, "filter": {"even": False}}
                for name, arguments, given in (
                    ("similarity_search", ("query",), options),
                    ("similarity_search", ("text",), {"mode": "text"}),
                    ("similarity_search_with_score", ("text 5",), {"mode": "hybrid"}),
                    ("similarity_search_with_relevance_scores", ("query",), options),
                    ("similarity_search_by_vector", (vector,), options),
                    ("similarity_search_with_score_by_vector", (vector,), options),
                    ("max_marginal_relevance_search", ("query",), options),
                    ("max_marginal_relevance_search_by_vector", (vector,), options),
                    ("search", ("query", "mmr"), options),
                    ("get_by_ids", (["text 5", "text 3", "text 1"],), {}),
                ):
                    expected = getattr(store, name)(*arguments, **given)
                    assert await getattr(other, f"a{name}")(*arguments, **given) == expected, name
                    assert expected
                retriever = other.as_retriever(search_kwargs=options)
                assert await retriever.ainvoke("query") == retriever.invoke("query")
                ids = await other.aadd_documents([Document("new", id="new"), Document("newer")], batch_size=1)
                assert ids[0] == "new"
                assert names(await other.aget_by_ids(ids)) == ids
                assert await other.aadd_embeddings(["given"], [vector], [{"given": True}], ids=["given"]) == ["given"]
                assert (await other.asimilarity_search_by_vector(vector, 1))[0].metadata == {"given": True}
                assert await other.adelete_collection()
                made = await AgentDBVectorStore.afrom_documents(
                    [Document("x", id="x")], Numbered(), db_or_path=db_path / "async"
                )
                async with made:
                    assert names(await made.asimilarity_search("x")) == ["x"]

        asyncio.run(run())


def test_every_method_of_langchain_s_has_a_twin_of_ours() -> None:
    """The default twins only hop to the executor of the event loop, and embed there."""
    for name, method in inspect.getmembers(VectorStore, inspect.iscoroutinefunction):
        delegates = {"aadd_documents", "asearch", "afrom_documents", "asimilarity_search_with_relevance_scores"}
        if name not in delegates:
            assert getattr(AgentDBVectorStore, name) is not method, name


def test_the_event_loop_goes_on_while_a_writer_waits(db_path: Path) -> None:
    with agentdb.open(db_path) as db, AgentDBVectorStore(Numbered(), db) as store:
        store.add_texts(["a"])
        holds, done = threading.Event(), threading.Event()

        def hold() -> None:
            with db.transaction():
                holds.set()
                assert done.wait(60)

        async def run() -> None:
            thread = threading.Thread(target=hold)
            thread.start()
            await asyncio.to_thread(holds.wait)
            adding = [asyncio.create_task(store.aadd_texts([f"b {i}"])) for i in range(5)]
            for _ in range(50):
                await asyncio.sleep(0.001)
                assert len(await store.asimilarity_search("a", k=9)) == 1  # reads do not queue behind writers
            assert not any(one.done() for one in adding)
            done.set()
            await asyncio.gather(*adding)
            thread.join()

        asyncio.run(run())
        assert len(store.similarity_search("a", k=9)) == 6


def test_the_event_loop_goes_on_while_a_reranker_thinks(store: AgentDBVectorStore) -> None:
    store.add_texts(PEOPLE)
    asked, may_answer = threading.Event(), threading.Event()

    def thinking(_: str, texts: list[str]) -> list[float]:
        asked.set()
        assert may_answer.wait(60), "the event loop was blocked"
        return [1.0] * len(texts)

    async def run() -> None:
        searching = asyncio.create_task(store.asimilarity_search("Lisbon", rerank=thinking))
        await asyncio.to_thread(asked.wait)
        assert not searching.done()
        may_answer.set()
        assert len(await searching) == 4

    asyncio.run(run())


def test_one_store_serves_many_event_loops(store: AgentDBVectorStore) -> None:
    async def add(names: list[str]) -> list[str]:
        return [one for (one,) in await asyncio.gather(*(store.aadd_texts([one], ids=[one]) for one in names))]

    for i in range(3):
        assert asyncio.run(add([f"{i} {j}" for j in range(5)])) == [f"{i} {j}" for j in range(5)]
    threads = [
        threading.Thread(target=lambda i=i: asyncio.run(add([f"t{i} {j}" for j in range(20)]))) for i in range(3)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(store.similarity_search("x", k=999)) == 15 + 60


def test_what_is_cancelled_is_done_or_not(store: AgentDBVectorStore, db_path: Path) -> None:
    ids = [[f"{i} {j}" for j in range(40)] for i in range(20)]

    async def run() -> None:
        adding = [asyncio.create_task(store.aadd_texts(one, ids=one)) for one in ids]
        for i, one in enumerate(adding):
            await asyncio.sleep(0.001 * (i % 3))
            one.cancel()
        await asyncio.gather(*adding, return_exceptions=True)
        assert await store.aadd_texts(["last"], ids=["last"]) == ["last"]
        await store.aclose()  # waits for what has begun

    with agentdb.open(db_path) as db:
        asyncio.run(run())
        with AgentDBVectorStore(Numbered(), db) as after:
            assert {len(after.get_by_ids(one)) for one in ids} <= {0, 40}
            assert names(after.get_by_ids(["last"])) == ["last"]


def test_an_async_database_is_taken_too(db_path: Path) -> None:
    async def run() -> None:
        async with agentdb.open_async(db_path) as db:
            store = AgentDBVectorStore(Numbered(), db)
            await store.aadd_texts(["a"], ids=["a"])
            assert names(await store.asimilarity_search("a")) == ["a"]
            await store.aclose()
            assert await (await db.collection("langchain")).count() == 1

    asyncio.run(run())


def test_many_threads_at_once(store: AgentDBVectorStore) -> None:
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for i in range(10):
                text = f"{name} {i}"
                store.add_texts([text], [{"by": name}], ids=[text])
                assert names(store.similarity_search(text, k=1, filter=field("by") == name)) == [text]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []
    assert len(store.similarity_search("x", k=100)) == 80


def test_a_slow_embedder_holds_up_no_other_writer(db_path: Path) -> None:
    class Held(HashingEmbedder):
        free = threading.Event()

        def embed(self, texts: Any, kind: Any = "document") -> Any:
            self.free.wait(60)
            return super().embed(texts, kind)

    async def main() -> None:
        embedder = Held(D)
        async with AgentDBVectorStore(embedder, db_path) as store:
            embedding = [asyncio.create_task(store.aadd_texts([str(n)])) for n in range(50)]
            await asyncio.sleep(0)
            await asyncio.wait_for(store.adelete(["nothing"]), 30)
            assert not any(one.done() for one in embedding)
            embedder.free.set()
            await asyncio.gather(*embedding)
            assert len(await store.asimilarity_search("1", 100)) == 50

    asyncio.run(main())
