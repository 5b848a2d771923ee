"""What a search returns in every mode, what it refuses, and that it says how it searched."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.search_oracle import assert_nearest

import agentdb
from agentdb import Config, InvalidInputError, MissingDependencyError, field
from agentdb.kernels import reference
from agentdb.vectors.collection import Collection
from agentdb.vectors.definition import VectorSpec
from agentdb.vectors.resident import ResidentCache
from agentdb.vectors.search import Query, Searcher
from agentdb_embedders import HashingEmbedder

CONFIG = Config(maintenance=False, durability="normal", bulk_rows=100, bulk_bytes=1)
METRICS = ("cosine", "dot", "euclidean")
TEXTS = (
    "the cat sat on the mat",
    "quarterly revenue rose by four percent",
    "cats and dogs are animals",
    "the dog barked at the cat in the garden",
    "revenue of the garden centre fell",
    "a recipe for soup",
)
EMBEDDER = HashingEmbedder(64)


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=CONFIG) as opened:
        yield opened


def opened(db: agentdb.Database, name: str = "c", **arguments: Any) -> Collection:
    return db.collection(name, **arguments)


def searcher(db: agentdb.Database, collection: Collection, **parts: Any) -> Searcher:
    given: dict[str, Any] = {
        "cache": ResidentCache(1 << 30),
        "embedder": lambda: EMBEDDER,
        "index": lambda _: None,
        **parts,
    }
    return Searcher(db, collection._table, collection._store, **given)


@pytest.fixture
def notes(db: agentdb.Database) -> Collection:
    collection = opened(db, embedder=EMBEDDER, schema={"agent": str})
    collection.upsert(
        [f"n{i}" for i in range(len(TEXTS))],
        texts=list(TEXTS),
        metadata=[{"agent": "ab"[i % 2], "year": 2000 + i, "doc": i // 2} for i in range(len(TEXTS))],
    )
    return collection


@pytest.fixture
def search(db: agentdb.Database, notes: Collection) -> Searcher:
    return searcher(db, notes)


def ids(hits: Sequence[agentdb.Hit]) -> list[str]:
    return [hit.id for hit in hits]


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_by_every_metric(db: agentdb.Database, metric: str, dtype: Any) -> None:
    collection = opened(db, vectors={"v": VectorSpec(8, metric, dtype=dtype)})  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 8)).astype(dtype)
    collection.upsert([f"r{i}" for i in range(50)], vectors=vectors.astype(np.float32))
    rows = {f"r{i}": {"vector": vectors[i], "text": None, "metadata": {}} for i in range(50)}
    query = rng.standard_normal(8).astype(dtype)
    find = searcher(db, collection)
    for k in (1, 7, 50, 99):
        assert_nearest(find.search(query, k), rows, query, k, metric)
    hit = find.search(vectors[3], 50)[7]
    expected = 1.0 / (1.0 + hit.distance) if metric == "euclidean" else 1.0 - hit.distance
    assert hit.score == pytest.approx(expected)
    assert hit.signals == {"vector": hit.score}


def test_a_text_is_embedded_for_a_vector_search(search: Searcher) -> None:
    by_text = search.search("the cat sat", 3)
    by_vector = search.search(EMBEDDER.embed(["the cat sat"], "query")[0], 3)
    assert ids(by_text) == ids(by_vector)
    assert by_text[0].id == "n0"
    assert by_text[0].text == TEXTS[0]
    assert by_text[0].metadata == {"agent": "a", "year": 2000, "doc": 0}


def test_text_search_ranks_by_bm25_and_skips_what_shares_no_term(search: Searcher) -> None:
    hits = search.search("cat", 10, mode="text")
    assert set(ids(hits)) == {"n0", "n2", "n3"}
    assert ids(hits)[0] in ("n0", "n2"), "the longest text comes last"
    assert ids(hits)[-1] == "n3"
    assert all(hit.signals == {"text": hit.score} for hit in hits)
    assert all(hit.distance == pytest.approx(1 - hit.score) for hit in hits)
    assert search.search("the of and", 10, mode="text") == []
    assert search.search("", 10, mode="text") == []


def test_hybrid_completes_what_a_signal_did_not_find(search: Searcher) -> None:
    hits = search.search("cat garden", 6, mode="hybrid", explain=True)
    assert len(hits) == 6
    assert hits[0].id == "n3"
    words = {hit.id: hit.score for hit in search.search("cat garden", 6, mode="text")}
    near = {hit.id: hit.score for hit in search.search("cat garden", 6)}
    for hit in hits:
        assert hit.signals["vector"] == pytest.approx(near[hit.id], abs=1e-6)
        assert hit.signals["text"] == pytest.approx(words.get(hit.id, 0.0), abs=1e-6)
        parts = (hit.signals["vector.normalized"], hit.signals["text.normalized"])
        assert hit.score == pytest.approx(sum(parts) / 2)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_weights_choose_between_signals(search: Searcher) -> None:
    only_text = search.search("revenue", 6, mode="hybrid", weights={"vector": 0, "text": 1})
    assert ids(only_text)[:2] == ids(search.search("revenue", 2, mode="text"))
    only_vector = search.search("revenue", 6, mode="hybrid", weights={"vector": 1, "text": 0})
    assert ids(only_vector)[:2] == ids(search.search("revenue", 2))


def test_reciprocal_ranks(search: Searcher) -> None:
    hits = search.search("cat garden", 2, mode="hybrid", fusion="rrf")
    assert hits[0].id == "n3"
    assert hits[0].score == pytest.approx(2 / 61)


def test_a_vector_and_a_text_together(db: agentdb.Database) -> None:
    collection = opened(db, dimension=2)
    collection.upsert(["a", "b"], vectors=np.array([[1, 0], [0, 1]]), texts=["red", "blue"])
    find = searcher(db, collection)
    hits = find.search(Query(text="blue", vector=[1, 0.1]), 2, mode="hybrid", weights={"vector": 1, "text": 3})
    assert ids(hits) == ["b", "a"]


# --- filters, pages, groups -------------------------------------------------------------------------------------------


def test_filters_on_metadata_and_promoted_columns(search: Searcher) -> None:
    a = field("agent") == "a"
    assert set(ids(search.search("cat", 10, filter=a))) == {"n0", "n2", "n4"}
    assert set(ids(search.search("cat", 10, filter=a & (field("year") > 2001)))) == {"n2", "n4"}
    assert set(ids(search.search("cat", 10, filter=field("year") > 2003))) == {"n4", "n5"}
    assert set(ids(search.search("cat", 10, filter=a & (field("doc") == 1), mode="hybrid"))) == {"n2"}
    assert ids(search.search("garden", 10, filter=a, mode="text")) == ["n4"]
    assert search.search("cat", 10, filter=field("agent") == "nobody") == []
    assert search.search("cat", 10, filter=field("agent") == "nobody", mode="hybrid") == []


def test_statistics_of_texts_are_those_of_the_scope(db: agentdb.Database, search: Searcher) -> None:
    alone = opened(db, "alone", embedder=EMBEDDER)
    alone.upsert([f"n{i}" for i in (0, 2, 4)], texts=[TEXTS[i] for i in (0, 2, 4)])
    scoped = search.search("cat garden", 10, mode="text", filter=field("agent") == "a")
    expected = searcher(db, alone).search("cat garden", 10, mode="text")
    assert [(hit.id, hit.score) for hit in scoped] == [(hit.id, hit.score) for hit in expected]
    everywhere = search.search("cat garden", 10, mode="text", filter=field("id").in_(["n0", "n2", "n4"]))
    assert [hit.score for hit in everywhere] != [hit.score for hit in scoped]


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_pages_follow_each_other(search: Searcher, mode: Any) -> None:
    every = search.search("cat garden revenue", 6, mode=mode)
    paged = [hit for start in range(0, 8, 2) for hit in search.search("cat garden revenue", 2, mode=mode, offset=start)]
    assert ids(paged) == ids(every)


def test_hits_of_many_queries_share_no_metadata(search: Searcher) -> None:
    first, second = search.search_many(["the cat sat", "the cat sat"], 1)
    assert first == second
    first[0].metadata["agent"] = "changed"  # type: ignore[index]
    assert second[0].metadata["agent"] == "a"
    assert search.search("the cat sat", 1) == second


def test_hybrid_pages_are_cut_from_one_ranking(db: agentdb.Database) -> None:
    made = opened(db, dimension=8, metric="dot")
    chooser = np.random.default_rng(4)
    words = ["red", "green", "blue", "fish", "bird", "tree", "rock"]
    made.upsert(
        [f"d{i}" for i in range(600)],
        chooser.standard_normal((600, 8)),
        [" ".join(chooser.choice(words, 3)) for _ in range(600)],
    )
    query = Query(text="red fish", vector=chooser.standard_normal(8))
    find = searcher(db, made)
    every = find.search(query, 700, mode="hybrid")
    assert len(every) == len(set(ids(every))) == 600
    paged = [hit for offset in range(0, 600, 50) for hit in find.search(query, 50, mode="hybrid", offset=offset)]
    assert paged == every
    # What a first page shows is ranked among the best hundred of each signal, as if there were no more.
    near = {hit.id for hit in find.search(query, 100)} | {hit.id for hit in find.search(query, 100, mode="text")}
    assert {hit.id for hit in every[: len(near)]} == near


def test_min_score_cuts(search: Searcher) -> None:
    hits = search.search("the cat sat", 6)
    kept = search.search("the cat sat", 6, min_score=hits[1].score)
    assert ids(kept) == ids(hits[:2])
    assert search.search("the cat sat", 6, min_score=hits[1].score, offset=1) == kept[1:]


@pytest.mark.parametrize("mode", ["vector", "hybrid"])
def test_groups_give_their_best_row(search: Searcher, mode: Any) -> None:
    every = search.search("cat garden revenue", 6, mode=mode)
    best: dict[int, str] = {}
    for hit in every:
        best.setdefault(hit.metadata["doc"], hit.id)
    assert ids(search.search("cat garden revenue", 3, mode=mode, group_by="doc")) == list(best.values())
    assert ids(search.search("cat garden revenue", 2, mode=mode, group_by="doc")) == list(best.values())[:2]
    assert ids(search.search("cat", 2, mode=mode, group_by="doc", offset=2)) == ids(
        search.search("cat", 9, mode=mode, group_by=field("metadata", "doc"))[2:]
    )


def test_groups_are_found_behind_many_rows_of_one(db: agentdb.Database) -> None:
    collection = opened(db, dimension=2)
    count = 600
    angles = np.linspace(0, 1.5, count)
    values: list[Any] = [1, 1.0, True, None, "1", [1], {"a": 1}]
    metadata = [
        {"g": "same"} if i < count - 8 else {"g": values[i - count + 8]} if i < count - 1 else {} for i in range(count)
    ]
    collection.upsert(
        [f"{i:04d}" for i in range(count)], vectors=np.stack([np.cos(angles), np.sin(angles)], 1), metadata=metadata
    )
    found = ids(searcher(db, collection).search([1, 0], 20, group_by="g"))
    # 1 and 1.0 are one group, True is another; null and missing are groups of their own.
    assert found == ["0000", "0592", "0594", "0595", "0596", "0597", "0598", "0599"]


# --- several queries, diversity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_many_queries_are_what_one_by_one_finds(search: Searcher, mode: Any) -> None:
    queries = ["cat", "revenue garden", "nothing of it", "soup"]
    many = search.search_many(queries, 3, mode=mode)
    for query, hits in zip(queries, many, strict=True):
        alone = search.search(query, 3, mode=mode)
        assert ids(hits) == ids(alone)
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in alone], atol=1e-6)
    assert search.search_many([], 3, mode=mode) == []


def test_a_matrix_is_many_queries(search: Searcher) -> None:
    matrix = EMBEDDER.embed(["cat", "soup"], "query")
    assert [ids(hits) for hits in search.search_many(matrix, 2)] == [ids(search.search(one, 2)) for one in matrix]


def test_maximal_marginal_relevance(search: Searcher) -> None:
    query = EMBEDDER.embed(["the cat"], "query")[0]
    pool = search.search(query, 5)
    vectors = EMBEDDER.embed([hit.text or "" for hit in pool])
    for weight in (0.0, 0.3, 1.0):
        chosen = reference.mmr(vectors, np.array([hit.score for hit in pool]), 4, weight=weight)
        found = search.max_marginal_relevance(query, 4, 5, weight)
        assert ids(found) == [pool[i].id for i in chosen]
    assert ids(search.max_marginal_relevance("the cat", 2, 5, 1.0)) == ids(pool[:2])
    floor = pool[1].score
    good = [hit.id for hit in search.max_marginal_relevance("the cat", 5, 5, 0.0) if hit.score >= floor]
    assert ids(search.max_marginal_relevance("the cat", 5, 5, 0.0, min_score=floor)) == good


# --- rerankers --------------------------------------------------------------------------------------------------------


class _Longest:
    def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        assert query == "cat"
        return np.array([len(text) for text in texts], np.float32)


def _half_tensor(query: str, texts: Sequence[str]) -> Any:
    """Rate as a model does that still tracks gradients, in numbers that numpy does not know."""
    torch = pytest.importorskip("torch")
    return torch.tensor([float(len(text)) for text in texts], dtype=torch.bfloat16, requires_grad=True)


@pytest.mark.parametrize(
    "rerank",
    [_Longest(), lambda query, texts: [len(text) for text in texts], _half_tensor],
    ids=["port", "function", "tensor"],
)
def test_a_reranker_decides(search: Searcher, rerank: Any) -> None:
    hits = search.search("cat", 2, rerank=rerank)
    by_length = sorted(range(len(TEXTS)), key=lambda i: -len(TEXTS[i]))
    assert ids(hits) == [f"n{i}" for i in by_length[:2]]
    assert hits[0].score == hits[0].signals["rerank"] == len(TEXTS[by_length[0]])
    assert "vector" in hits[0].signals
    second = search.search("cat", 1, rerank=rerank, offset=1, include=(), mode="hybrid")
    assert ids(second) == [f"n{by_length[1]}"]
    assert second[0].text is None
    floor = float(len(TEXTS[by_length[1]]))
    assert len(search.search("cat", 6, rerank=rerank, min_score=floor)) == 2


def test_a_reranker_sees_at_least_fifty(db: agentdb.Database) -> None:
    collection = opened(db, embedder=EMBEDDER)
    collection.upsert([f"{i:03d}" for i in range(80)], texts=[f"cat number {i}" for i in range(80)])
    seen: list[int] = []

    def rate(query: str, texts: Sequence[str]) -> list[float]:
        seen.append(len(texts))
        return [0.0] * len(texts)

    find = searcher(db, collection)
    find.search("cat", 3, rerank=rate)
    find.search("cat", 10, offset=50, rerank=rate)
    assert seen == [50, 60]


def test_a_cross_encoder(search: Searcher, tmp_path: Path) -> None:
    cross_encoder = _tiny_cross_encoder(tmp_path)
    hits = search.search("the cat", 6, rerank=cross_encoder)
    pairs = [("the cat", text) for text in TEXTS]
    scores = cross_encoder.predict(pairs, show_progress_bar=False)
    assert ids(hits) == [f"n{i}" for i in np.argsort(-scores)]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1], atol=1e-6)


def _tiny_cross_encoder(path: Path) -> Any:
    """Return the real class around a model with random weights: none can be had offline."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    BertTokenizerFast(vocab_file=str(path / "vocab.txt")).save_pretrained(path)
    return CrossEncoder(str(path), device="cpu", local_files_only=True)


BROKEN = {
    "too few": lambda query, texts: [0.0],
    "nan": lambda query, texts: [float("nan")] * len(texts),
    "two each": lambda query, texts: [[1.0, 2.0]] * len(texts),
    "text": lambda query, texts: "no numbers",
    "nothing": lambda query, texts: None,
    "no function": 7,
}


@pytest.mark.parametrize("rerank", BROKEN.values(), ids=BROKEN)
def test_a_reranker_that_breaks_its_word_is_named(search: Searcher, rerank: Any) -> None:
    with pytest.raises(InvalidInputError, match="rerank"):
        search.search("cat", 2, rerank=rerank)


def test_what_a_reranker_raises_reaches_the_caller(search: Searcher) -> None:
    def fails(query: str, texts: Sequence[str]) -> list[float]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        search.search("cat", 2, rerank=fails)


# --- late interaction -------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(db: agentdb.Database) -> Collection:
    return opened(db, "late", vectors={"vector": VectorSpec(8), "tokens": VectorSpec(8, "cosine", multi=True)})


def _fill_tokens(collection: Collection, rows: int) -> list[npt.NDArray[np.float32]]:
    rng = np.random.default_rng(5)
    matrices = [rng.standard_normal((rng.integers(1, 6), 8)).astype(np.float16).astype(np.float32) for _ in range(rows)]
    means = np.stack([one.mean(axis=0) for one in matrices])
    collection.upsert(
        [f"r{i:03d}" for i in range(rows)],
        vectors={"vector": means, "tokens": matrices},
        texts=[f"row {i}" for i in range(rows)],
    )
    return matrices


def _maxsim(query: Any, matrices: Sequence[Any], weights: Any = None) -> list[str]:
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (query, *matrices)]
    offsets = np.cumsum([0, *(len(one) for one in matrices)])
    given = None if weights is None else np.asarray(weights)[None]
    scores = reference.maxsim(unit[0][None], np.concatenate(unit[1:]), offsets, query_weights=given)[0]
    return [f"r{i:03d}" for i in np.argsort(-scores)]


def test_tokens_rank_the_candidates(db: agentdb.Database, tokens: Collection) -> None:
    matrices = _fill_tokens(tokens, 40)
    find = searcher(db, tokens)
    query = np.random.default_rng(6).standard_normal((3, 8)).astype(np.float32)
    assert ids(find.search(query, 10, vector_name="tokens")) == _maxsim(query, matrices)[:10]
    assert ids(find.search(query, 10, vector_name="tokens", exact=True)) == _maxsim(query, matrices)[:10]
    weights = [0.0, 2.0, 0.5]
    weighted = Query(tokens=query, token_weights=weights)
    assert ids(find.search(weighted, 5, vector_name="tokens")) == _maxsim(query, matrices, weights)[:5]


def test_tokens_and_text_together(db: agentdb.Database, tokens: Collection) -> None:
    _fill_tokens(tokens, 40)
    query = np.random.default_rng(6).standard_normal((3, 8)).astype(np.float32)
    find = searcher(db, tokens)
    hits = find.search(
        Query(text="7", tokens=query), 3, vector_name="tokens", mode="hybrid", weights={"vector": 0.01, "text": 1}
    )
    assert hits[0].id == "r007"
    assert set(hits[0].signals) == {"vector", "text"}


def test_a_row_without_tokens_is_no_hit(db: agentdb.Database, tokens: Collection) -> None:
    _fill_tokens(tokens, 3)
    tokens.upsert(["bare"], vectors={"vector": np.ones((1, 8))})
    query = np.ones((1, 8), np.float32)
    for exact in (False, True):
        hits = searcher(db, tokens).search(query, 10, vector_name="tokens", exact=exact)
        assert sorted(ids(hits)) == ["r000", "r001", "r002"]


def test_tokens_alone_are_compared_with_every_row(db: agentdb.Database) -> None:
    collection = opened(db, "alone", vectors={"tokens": VectorSpec(8, "dot", multi=True)})
    rng = np.random.default_rng(8)
    matrices = [rng.standard_normal((2, 8)).astype(np.float16).astype(np.float32) for _ in range(700)]
    collection.upsert([f"r{i:03d}" for i in range(700)], vectors={"tokens": matrices})
    query = rng.standard_normal((2, 8)).astype(np.float32)
    scores = reference.maxsim(query[None], np.concatenate(matrices), np.arange(0, 1402, 2))[0]
    hits = searcher(db, collection).search(query, 5)
    assert ids(hits) == [f"r{i:03d}" for i in np.argsort(-scores)[:5]]
    assert hits[0].score == pytest.approx(scores.max(), rel=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------------

V = [1.0] * 64


@pytest.mark.parametrize(
    ("query", "arguments", "message"),
    [
        (V, {"k": 0}, "k must be an int of 1 or more, not 0"),
        (V, {"k": -3}, "k must be"),
        (V, {"k": 1.5}, "k must be"),
        (V, {"k": True}, "k must be"),
        (V, {"k": "3"}, "k must be"),
        (V, {"offset": -1}, "offset must be"),
        (V, {"mode": "dense"}, "mode must be one of 'vector', 'text', 'hybrid', not 'dense'"),
        (V, {"mode": None}, "mode must be"),
        (V, {"vector_name": "other"}, "no vector 'other'"),
        (V, {"fusion": "sum"}, "fusion must be"),
        (V, {"weights": {"vector": 1}}, "weights belong to mode 'hybrid'"),
        ("x", {"mode": "hybrid", "weights": {"word": 1}}, "keys 'vector' and 'text'"),
        ("x", {"mode": "hybrid", "weights": {"vector": -1}}, "weights"),
        ("x", {"mode": "hybrid", "weights": {"vector": float("nan")}}, "weights"),
        ("x", {"mode": "hybrid", "weights": {"vector": 0, "text": 0}}, "not all be 0"),
        ("x", {"mode": "hybrid", "weights": [1, 2]}, "weights must be"),
        (V, {"min_score": "0.5"}, "min_score must be"),
        (V, {"min_score": float("inf")}, "min_score must be"),
        (V, {"group_by": 3}, "group_by must be"),
        (V, {"include": "text"}, "include must be"),
        (V, {"include": ["vector"]}, "include must be one of"),
        (V, {"include": None}, "include must be a list"),
        (V, {"filter": {"agent": "a"}}, "filter must be"),
        (V, {"exact": 1}, "exact must be a bool"),
        (V, {"explain": "yes"}, "explain must be a bool"),
        ([1.0] * 63, {}, "query must have 64 dimensions, not 63"),
        ([], {}, "query must have 64 dimensions, not 0"),
        ([float("nan"), *V[1:]], {}, "query holds NaN"),
        ([float("inf"), *V[1:]], {}, "query holds NaN, infinity"),
        ([1e300, *V[1:]], {}, "query holds"),
        ([0.0] * 64, {}, "zero vector"),
        ([[1.0] * 64], {}, "query must be a vector"),
        ([V, V[:3]], {}, "query must be a vector"),
        (["a"] * 64, {}, "query must be a vector"),
        ([True] * 64, {}, "query must be a vector"),
        (None, {}, "query must be a text .str., a vector of numbers or a Query, not NoneType"),
        (b"bytes", {}, "query must be a text"),
        ({"text": "x"}, {}, "query must be a text"),
        (7, {}, "query must be a text"),
        ("\ud800", {}, "lone surrogate"),
        (Query(text=3), {}, "must be a str"),  # type: ignore[arg-type]
        (Query(), {}, "query must have a text or a vector"),
        (Query(tokens=[V]), {}, "tokens are for a multi vector"),
        (Query(vector=V, token_weights=[1]), {}, "token_weights need tokens"),
        (V, {"mode": "text"}, "must have a text for mode 'text'"),
        (V, {"mode": "hybrid"}, "must have a text for mode 'hybrid'"),
        (V, {"rerank": _Longest()}, "must have a text for reranking"),
    ],
)
def test_bad_arguments_are_named(search: Searcher, query: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        search.search(query, **arguments)


def test_an_unknown_argument_is_a_type_error(search: Searcher) -> None:
    with pytest.raises(TypeError, match="colour"):
        search.search("x", colour="red")  # type: ignore[call-arg]


@pytest.mark.parametrize("queries", ["a text", b"x", {"a": 1}, None, 3, Query(text="x"), np.array(1.0)])
def test_queries_must_be_a_list(search: Searcher, queries: Any) -> None:
    with pytest.raises(InvalidInputError, match="queries must be"):
        search.search_many(queries)


def test_the_query_that_is_wrong_is_named(search: Searcher) -> None:
    with pytest.raises(InvalidInputError, match=r"queries\[1\] must have 64"):
        search.search_many([V, V[:2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 5, "fetch_k": 4}, "fetch_k must be at least k"),
        ({"fetch_k": 0}, "fetch_k must be"),
        ({"lambda_mult": 1.5}, "lambda_mult must be from 0 to 1"),
        ({"mode": "text"}, "takes no mode"),
    ],
)
def test_bad_arguments_of_diversity(search: Searcher, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        search.max_marginal_relevance("x", **arguments)


def test_tokens_that_cannot_be(db: agentdb.Database, tokens: Collection) -> None:
    find = searcher(db, tokens)
    bad: list[tuple[Any, str]] = [
        (np.ones((2, 7)), "matrix"),
        (np.ones((0, 8)), "at least one token"),
        (np.full((1, 8), np.nan), "NaN"),
        ([[1.0] * 8, [1.0] * 7], "matrix"),
        (Query(tokens=np.ones((2, 8)), token_weights=[1.0]), "token_weights must be 2"),
        (Query(tokens=np.ones((2, 8)), token_weights=[1.0, -1.0]), "token_weights must be 2"),
        (Query(vector=np.ones(8)), "text or a matrix of tokens"),
        ("a text", "not made from text"),
    ]
    for query, message in bad:
        with pytest.raises(InvalidInputError, match=message):
            find.search(query, vector_name="tokens")
    with pytest.raises(InvalidInputError, match="not multi"):
        find.max_marginal_relevance(np.ones((1, 8)), vector_name="tokens")


def test_a_text_for_vectors_that_were_given(db: agentdb.Database) -> None:
    collection = opened(db, dimension=4)
    with pytest.raises(InvalidInputError, match="not made from text"):
        searcher(db, collection).search("a text")
    assert searcher(db, collection).search([1, 2, 3, 4]) == []


def test_an_embedder_of_another_dimension(db: agentdb.Database, notes: Collection) -> None:
    with pytest.raises(InvalidInputError, match="64 dimensions, but embedder 'hashing-2-v1' makes 8"):
        searcher(db, notes, embedder=lambda: HashingEmbedder(8)).search("x")


def test_the_embedder_is_asked_only_for_what_is_missing(db: agentdb.Database, notes: Collection) -> None:
    def none() -> Any:
        raise MissingDependencyError("there is none")

    find = searcher(db, notes, embedder=none)
    assert find.search(V, 1)
    assert find.search("cat", 1, mode="text")
    assert find.search(Query(text="cat", vector=V), 1, mode="hybrid")
    with pytest.raises(MissingDependencyError):
        find.search("cat", 1)


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
@pytest.mark.parametrize("scope", [None, field("agent") == "a"])
def test_a_write_is_found_at_once_and_a_deleted_row_never(
    db: agentdb.Database, notes: Collection, search: Searcher, mode: Any, scope: Any
) -> None:
    def found() -> set[str]:
        return set(ids(search.search("zebra cat", 20, mode=mode, filter=scope)))

    for settle in (lambda: None, db.flush, db.optimize):
        found()
        notes.upsert(["new"], texts=["zebra"], metadata=[{"agent": "a"}])
        settle()
        assert "new" in found()
        notes.upsert(["new"], texts=["zebra moved"], metadata=[{"agent": "b"}])
        settle()
        assert ("new" in found()) is (scope is None)
        notes.delete(["new", "n0"])
        assert not {"new", "n0"} & found()
        settle()
        assert not {"new", "n0"} & found()
        notes.upsert(["n0"], texts=[TEXTS[0]], metadata=[{"agent": "a", "year": 2000, "doc": 0}])
        assert "n0" in found()


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_a_transaction_sees_its_own_rows_and_a_snapshot_its_state(
    db: agentdb.Database, notes: Collection, search: Searcher, mode: Any
) -> None:
    before = ids(search.search("zebra cat", 20, mode=mode))
    with contextlib.suppress(ZeroDivisionError), db.transaction():
        notes.upsert(["new"], texts=["zebra"], metadata=[{"agent": "a"}])
        notes.delete(["n0"])
        found = ids(search.search("zebra cat", 20, mode=mode))
        assert "new" in found
        assert "n0" not in found
        raise ZeroDivisionError
    assert ids(search.search("zebra cat", 20, mode=mode)) == before
    with db.snapshot():
        assert ids(search.search("zebra cat", 20, mode=mode)) == before
        _in_thread(lambda: notes.upsert(["new"], texts=["zebra"], metadata=[{"agent": "a"}]))
        _in_thread(lambda: notes.delete(["n0"]))
        now = _in_thread(lambda: ids(search.search("zebra cat", 20, mode=mode)))
        assert "new" in now
        assert "n0" not in now
        assert ids(search.search("zebra cat", 20, mode=mode)) == before, "the snapshot stays as it was"


def _in_thread(work: Callable[[], Any]) -> Any:
    """Run work outside of this thread's snapshot."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.Context().run, work).result()


def test_scores_are_the_same_inside_a_transaction(db: agentdb.Database, search: Searcher) -> None:
    for options in ({}, {"mode": "text"}, {"mode": "hybrid"}, {"mode": "hybrid", "filter": field("agent") == "b"}):
        outside = search.search("cat garden", 6, **options)
        with db.transaction():
            inside = search.search("cat garden", 6, **options)
        assert ids(inside) == ids(outside)
        np.testing.assert_allclose([hit.score for hit in inside], [hit.score for hit in outside], atol=1e-6)


def test_an_empty_collection_has_no_hits(db: agentdb.Database) -> None:
    collection = opened(db, embedder=EMBEDDER)
    find = searcher(db, collection)
    for mode in ("vector", "text", "hybrid"):
        assert find.search("x", 5, mode=mode) == []  # type: ignore[arg-type]
        assert find.search("x", 5, mode=mode, group_by="g", rerank=_Longest(), offset=3) == []  # type: ignore[arg-type]
    assert find.max_marginal_relevance("x") == []
    with db.transaction():
        assert find.max_marginal_relevance("x") == []
        assert find.search("x", mode="hybrid", group_by="g") == []


# --- explanations -----------------------------------------------------------------------------------------------------


def test_an_explanation_says_what_was_done(db: agentdb.Database, search: Searcher) -> None:
    found = search.explain_search("cat", 2, mode="hybrid", filter=(field("agent") == "a") & (field("year") > 2001))
    assert [(one.signal, one.path, one.is_exact) for one in found.signals] == [
        ("vector", "resident", True),
        ("text", "resident", True),
    ]
    assert found.hits == 2
    assert found.scope == (field("p_agent") == "a")
    assert set(found.elapsed_ms) >= {"resolve", "plan", "rank", "fetch"}
    shown = str(found)
    assert "resident" in shown
    assert "p_agent" in shown
    with db.transaction():
        inside = search.explain_search("cat", 2)
    assert [one.path for one in inside.signals] == ["table"]
    assert "transaction" in str(inside)
