"""Every mode of ``AgentDBVectorStore.query`` beside a plain evaluation with numpy and Python."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from support.llama_index_suite import ALL, DIMENSION, assert_best, cosines, holds, node, only, random_nodes

import agentdb
from agentdb import InvalidInputError
from llama_index_agentdb import AgentDBVectorStore

Mode = VectorStoreQueryMode
NODES = random_nodes(60)
QUERY = np.random.default_rng(7).standard_normal(DIMENSION).tolist()
WORDS = "w3 w17 w29 w3"
EVEN = only("even", "yes")
# No equality that all must meet, so that texts are ranked by the statistics of all.
RECENT = only("year", 2003, FilterOperator.GTE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentDBVectorStore]:
    def reranker(query: str, texts: Sequence[str]) -> list[float]:
        return [len(text) + (query == WORDS) for text in texts]

    with AgentDBVectorStore(tmp_path_factory.mktemp("search") / "db", reranker=reranker) as opened:
        opened.add(NODES[:40])
        opened.client.optimize()  # some nodes in Lance, others not yet
        opened.add(NODES[30:])
        yield opened


def ask(store: AgentDBVectorStore, mode: Mode | str, k: int = ALL, **more: Any) -> VectorStoreQueryResult:
    kwargs = {key: more.pop(key) for key in list(more) if key.startswith("mmr_prefetch")}
    query = VectorStoreQuery(
        **{"query_embedding": QUERY, "query_str": WORDS, "similarity_top_k": k, "mode": mode, **more}  # type: ignore[arg-type]
    )
    return store.query(query, **kwargs)


def bm25(nodes: Sequence[BaseNode], query: str, k1: float = 1.2, b: float = 0.75) -> dict[str, float]:
    """Return the scores of the nodes that share a word with a query."""
    texts = {one.node_id: Counter(one.get_content().split()) for one in nodes}
    mean = sum(map(Counter.total, texts.values())) / len(texts)
    scores: dict[str, float] = {}
    for word in query.split():
        frequency = sum(word in one for one in texts.values())
        idf = math.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
        for key, words in texts.items():
            if words[word]:
                norm = k1 * (1 - b + b * words.total() / mean)
                scores[key] = scores.get(key, 0.0) + idf * words[word] * (k1 + 1) / (words[word] + norm)
    return scores


def fused(near: Mapping[str, float], worded: Mapping[str, float], keys: set[str], alpha: float) -> dict[str, float]:
    """Return the weighted mean of both signals, each brought to 0 to 1 among the candidates."""
    low, high = min(near[key] for key in keys), max(near[key] for key in keys)
    top = max((worded.get(key, 0.0) for key in keys), default=0.0) or 1.0
    return {key: alpha * (near[key] - low) / (high - low) + (1 - alpha) * worded.get(key, 0.0) / top for key in keys}


def allowed(filters: MetadataFilters | None) -> set[str]:
    return {one.node_id for one in NODES if filters is None or holds(one.metadata, filters)}


def best(scores: Mapping[str, float], k: int) -> set[str]:
    return set(sorted(scores, key=lambda key: -scores[key])[:k])


@pytest.mark.parametrize("mode", [Mode.TEXT_SEARCH, Mode.SPARSE])
@pytest.mark.parametrize("filters", [None, RECENT], ids=["all", "filtered"])
@pytest.mark.parametrize("k", [3, ALL])
def test_words_are_ranked_by_bm25(
    store: AgentDBVectorStore, mode: Mode, filters: MetadataFilters | None, k: int
) -> None:
    truth = {key: one for key, one in bm25(NODES, WORDS).items() if key in allowed(filters)}
    found = ask(store, mode, k, filters=filters, query_embedding=None)
    assert_best(found.ids or [], found.similarities or [], truth, k)
    limited = ask(store, mode, k, filters=filters, sparse_top_k=2)
    assert_best(limited.ids or [], limited.similarities or [], truth, 2)


def test_in_the_scope_of_an_equality_words_are_ranked_by_its_own_statistics(store: AgentDBVectorStore) -> None:
    truth = bm25([one for one in NODES if one.metadata["even"] == "yes"], WORDS)
    found = ask(store, Mode.TEXT_SEARCH, filters=EVEN)
    assert_best(found.ids or [], found.similarities or [], truth, ALL)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("filters", [None, RECENT], ids=["all", "filtered"])
def test_hybrid_is_the_weighted_mean_of_both(
    store: AgentDBVectorStore, alpha: float | None, filters: MetadataFilters | None
) -> None:
    near, worded, keys = cosines(QUERY, NODES), bm25(NODES, WORDS), allowed(filters)
    truth = fused(near, worded, keys, 0.5 if alpha is None else alpha)
    found = ask(store, Mode.HYBRID, 10, alpha=alpha, filters=filters)
    assert_best(found.ids or [], found.similarities or [], truth, 10)


@pytest.mark.parametrize(
    ("k", "sparse", "hybrid", "wanted"), [(5, 3, None, 5), (5, None, 4, 4), (4, 6, 20, 20), (2, 2, 3, 3)]
)
@pytest.mark.parametrize("filters", [None, RECENT], ids=["all", "filtered"])
def test_hybrid_of_as_many_candidates_as_are_asked_for(
    store: AgentDBVectorStore,
    k: int,
    sparse: int | None,
    hybrid: int | None,
    wanted: int,
    filters: MetadataFilters | None,
) -> None:
    near = {key: one for key, one in cosines(QUERY, NODES).items() if key in allowed(filters)}
    worded = {key: one for key, one in bm25(NODES, WORDS).items() if key in allowed(filters)}
    truth = fused(near, worded, best(near, k) | best(worded, sparse or k), 0.4)
    found = ask(store, Mode.HYBRID, k, sparse_top_k=sparse, hybrid_top_k=hybrid, alpha=0.4, filters=filters)
    assert_best(found.ids or [], found.similarities or [], truth, wanted)


def test_semantic_hybrid_orders_by_the_reranker(store: AgentDBVectorStore) -> None:
    truth = {one.node_id: len(one.get_content()) + 1.0 for one in NODES}
    found = ask(store, Mode.SEMANTIC_HYBRID)
    assert_best(found.ids or [], found.similarities or [], truth, ALL)
    # The reranker sees the best 50 of the hybrid search, whatever k is.
    seen = best(fused(cosines(QUERY, NODES), bm25(NODES, WORDS), allowed(None), 0.5), 50)
    few = ask(store, Mode.SEMANTIC_HYBRID, 3)
    assert_best(few.ids or [], few.similarities or [], {key: truth[key] for key in seen}, 3)


def mmr(nodes: Sequence[BaseNode], k: int, pool: int, threshold: float) -> list[str]:
    """Return what is chosen of the nearest, one by one."""
    near = cosines(QUERY, nodes)
    by_id = {one.node_id: one for one in nodes}
    left, chosen = sorted(near, key=lambda key: -near[key])[:pool], []
    while left and len(chosen) < k:
        alike = {key: [cosines(by_id[key].embedding or [], [by_id[one]])[one] for one in chosen] for key in left}
        worth = {key: threshold * near[key] - (1 - threshold) * max(alike[key], default=0.0) for key in left}
        chosen.append(max(left, key=lambda key: worth[key]))
        left.remove(chosen[-1])
    return chosen


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2, 0.8, 1.0])
@pytest.mark.parametrize("filters", [None, RECENT], ids=["all", "filtered"])
def test_mmr_chooses_for_nearness_and_difference(
    store: AgentDBVectorStore, threshold: float | None, filters: MetadataFilters | None
) -> None:
    nodes = [one for one in NODES if one.node_id in allowed(filters)]
    weight = 0.5 if threshold is None else threshold
    for options, pool in (
        ({}, 50),
        ({"mmr_prefetch_k": 20}, 20),
        ({"mmr_prefetch_factor": 2.5}, 12),
        ({"mmr_prefetch_k": 1}, 5),
    ):
        found = ask(store, Mode.MMR, 5, mmr_threshold=threshold, filters=filters, **options)
        assert found.ids == mmr(nodes, 5, pool, weight)
        near = cosines(QUERY, nodes)
        np.testing.assert_allclose(found.similarities or [], [near[one] for one in found.ids or []], atol=1e-5)
    given = store.query(
        VectorStoreQuery(query_embedding=QUERY, similarity_top_k=5, mode=Mode.MMR, mmr_threshold=1.0),
        mmr_threshold=weight,
    )
    assert given.ids == mmr(NODES, 5, 50, weight)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_metrics(db_path: Path, metric: Any) -> None:
    with AgentDBVectorStore(db_path, metric=metric) as store:
        store.add(NODES)
        matrix, query = np.array([one.embedding for one in NODES]), np.array(QUERY)
        truth = {
            "cosine": (matrix @ query) / np.linalg.norm(matrix, axis=1) / np.linalg.norm(query),
            "dot": matrix @ query,
            "euclidean": 1 / (1 + np.linalg.norm(matrix - query, axis=1)),
        }[metric]
        found = ask(store, Mode.DEFAULT, 10)
        scores = {one.node_id: float(score) for one, score in zip(NODES, truth, strict=True)}
        assert_best(found.ids or [], found.similarities or [], scores, 10)
    with (
        pytest.raises(InvalidInputError, match="metric"),
        AgentDBVectorStore(db_path, metric="dot" if metric == "cosine" else "cosine") as store,
    ):
        store.get_nodes()


def test_a_collection_with_an_embedder_needs_no_query_embedding(db_path: Path) -> None:
    hashing = agentdb.load_embedder("hashing", dimension=64)
    with agentdb.open(db_path, embedder=hashing) as db:
        db.collection("facts").upsert(
            ["f1", "f2"],
            texts=["Ann lives in Lisbon", "Bob plays the cello"],
            metadata=[{"who": "ann"}, {"who": "bob"}],
        )
        store = AgentDBVectorStore(db, collection="facts")
        found = store.query(VectorStoreQuery(query_str="who plays the cello", similarity_top_k=1))
        assert found.ids == ["f2"]
        (only_one,) = found.nodes or []
        assert (only_one.get_content(), only_one.metadata) == ("Bob plays the cello", {"who": "bob"})
        # Rows of any collection are nodes with their texts and metadata, and are filtered like them.
        assert [one.node_id for one in store.get_nodes(filters=only("who", "ann"))] == ["f1"]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"mode": Mode.SVM}, "svm"),
        ({"mode": Mode.LINEAR_REGRESSION}, "linear_regression"),
        ({"mode": Mode.LOGISTIC_REGRESSION}, "logistic_regression"),
        ({"mode": Mode.TEXT_SEARCH, "query_str": None}, "query_str"),
        ({"mode": Mode.HYBRID, "query_str": None}, "query_str"),
        ({"mode": Mode.DEFAULT, "query_str": None, "query_embedding": None}, "query_embedding"),
        ({"mode": Mode.DEFAULT, "query_embedding": None}, "not made from text"),
        ({"similarity_top_k": 0}, "similarity_top_k"),
        ({"similarity_top_k": True}, "similarity_top_k"),
        ({"mode": Mode.SPARSE, "sparse_top_k": 0}, "sparse_top_k"),
        ({"mode": Mode.HYBRID, "hybrid_top_k": -1}, "hybrid_top_k"),
        ({"mode": Mode.HYBRID, "alpha": 1.5}, "alpha"),
        ({"mode": Mode.HYBRID, "alpha": float("nan")}, "alpha"),
        ({"mode": Mode.MMR, "mmr_threshold": -0.1}, "mmr_threshold"),
        ({"mode": Mode.MMR, "mmr_prefetch_k": 0}, "mmr_prefetch_k"),
        ({"mode": Mode.MMR, "mmr_prefetch_factor": 0.5}, "mmr_prefetch_factor"),
        ({"mode": Mode.MMR, "mmr_prefetch_factor": 2.0, "mmr_prefetch_k": 4}, "either"),
        ({"mode": Mode.DEFAULT, "mmr_prefetch_k": 4}, "mmr_prefetch_k"),
        ({"query_embedding": [1.0, 0.0]}, "dimensions"),
        ({"query_embedding": [float("nan")] * DIMENSION}, "NaN"),
        ({"node_ids": "n001"}, "node_ids"),
        ({"doc_ids": [1]}, "doc_ids"),
        ({"embedding_field": "other"}, "no vector 'other'"),
    ],
)
def test_what_cannot_be_asked_is_a_clear_error(store: AgentDBVectorStore, given: dict[str, Any], what: str) -> None:
    asked = {"mode": Mode.DEFAULT, "k": 3, **given}
    asked["k"] = asked.pop("similarity_top_k", 3)
    with pytest.raises(InvalidInputError, match=what):
        ask(store, **asked)


def test_semantic_hybrid_needs_a_reranker(db_path: Path) -> None:
    with AgentDBVectorStore(db_path) as store, pytest.raises(InvalidInputError, match="reranker"):
        ask(store, Mode.SEMANTIC_HYBRID)


@pytest.mark.parametrize(
    ("operator", "value"),
    [("in", 5), ("nin", None), ("any", 1.5), ("all", 3), (">", None), ("<=", ["a"]), ("text_match", 5)],
)
def test_a_value_that_nothing_compares_with_names_key_and_operator(
    store: AgentDBVectorStore, operator: str, value: Any
) -> None:
    bad = MetadataFilters(filters=[MetadataFilter(key="year", value=value, operator=FilterOperator(operator))])
    with pytest.raises(InvalidInputError, match=f"'year'.*'{operator}'"):
        ask(store, Mode.DEFAULT, filters=bad)
    with pytest.raises(InvalidInputError, match="'year'"):
        store.delete_nodes(filters=bad)
    assert len(store.get_nodes()) == len(NODES)


def test_filters_nested_without_end_are_refused(store: AgentDBVectorStore) -> None:
    deep = only("year", 2003)
    for _ in range(500):
        deep = MetadataFilters(filters=[deep, only("even", "yes")])
    with pytest.raises(InvalidInputError, match="nested"):
        ask(store, Mode.DEFAULT, filters=deep)


def test_node_returned_by_a_query_is_whole(store: AgentDBVectorStore) -> None:
    found = ask(store, Mode.DEFAULT, 1, node_ids=["n005"]).nodes or []
    assert [one.to_dict() for one in found] == [NODES[5].to_dict() | {"embedding": None}]
    assert node("x").to_dict() != found[0].to_dict()
