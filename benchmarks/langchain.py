"""LangChain's vector stores side by side: ours, langchain-chroma's, and the one in memory, in one run."""

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from benchmarks.harness import Figure, gate, median, seconds, spread
from langchain_agentdb import AgentDBVectorStore

os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")

_D = 384
_K = 4
_WORDS = [f"word{i}" for i in range(2_000)]


class Given(Embeddings):
    """Vectors that are there already: a text begins with its row's number."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._rows = vectors.tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self._rows[int(one.partition(" ")[0])] for one in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def _rows(count: int, queries: int) -> tuple[np.ndarray, list[str], list[dict]]:
    source, words = np.random.default_rng(1), random.Random(1)
    # Clusters, as embeddings of real texts have them.
    centres = source.normal(size=(64, _D))
    vectors = centres[source.integers(0, 64, count + queries)] + source.normal(size=(count + queries, _D))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [f"{i} {' '.join(words.choices(_WORDS, k=40))}" for i in range(count)]
    metadata = [
        {"author": f"author {i % 10}", "year": 2000 + i % 25, "source": f"file {i // 20}.md"} for i in range(count)
    ]
    return vectors.astype(np.float32), texts, metadata


def _search(store: VectorStore, query: str, author: str) -> list[Document]:
    if isinstance(store, InMemoryVectorStore):
        return store.similarity_search(query, _K, filter=lambda one: one.metadata["author"] == author)
    return store.similarity_search(query, _K, filter={"author": author})


def vector_store(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """``add_texts`` with given embeddings, then ``similarity_search`` of the 4 nearest of one author."""
    count, queries, rounds = (300, 10, 2) if quick else (10_000, 100, 4)
    vectors, texts, metadata = _rows(count, queries)
    embeddings = Given(vectors)
    ids = [f"row {i}" for i in range(count)]
    adding: dict[str, list[float]] = {"agentdb": [], "chroma": [], "memory": []}
    stores: dict[str, VectorStore] = {}
    for number in range(rounds):
        stores = {
            "agentdb": AgentDBVectorStore(embeddings, folder / f"agentdb {number}"),
            "chroma": Chroma(
                "rows",
                embeddings,
                str(folder / f"chroma {number}"),
                collection_metadata={"hnsw:space": "cosine"},
            ),
            "memory": InMemoryVectorStore(embeddings),
        }
        for name, store in stores.items():
            assert store.get_by_ids(["nobody"]) == []  # opens what opens late
            gc.collect()
            step = 5_000 if name == "chroma" else count  # it refuses more at a time
            adding[name].append(
                seconds(
                    lambda store=store, step=step: [
                        store.add_texts(texts[i : i + step], metadata[i : i + step], ids=ids[i : i + step])
                        for i in range(0, count, step)
                    ]
                )
            )
        if number < rounds - 1:
            stores["agentdb"].close()
    asked = [(f"{count + i} query", f"author {i % 10}") for i in range(queries)]
    searching: dict[str, list[float]] = {name: [] for name in stores}
    found: dict[str, list[list[Document]]] = {}
    few = 20  # for the one in memory, which compares every row in Python
    for name, store in stores.items():
        # A first pass, in which each loads what it keeps in memory.
        found[name] = [_search(store, *one) for one in asked[: few if name == "memory" else None]]
    for at, one in enumerate(asked * (1 if quick else 3)):
        for name, store in stores.items():
            if name != "memory" or at < few:
                searching[name].append(seconds(lambda store=store, one=one: _search(store, *one)))
    owner = np.array([i % 10 for i in range(count)])
    with gate("the nearest rows of the author, by brute force"):
        right = 0
        for i in range(queries):
            mine = np.flatnonzero(owner == i % 10)
            nearest = {f"row {mine[at]}" for at in np.argsort(-(vectors[mine] @ vectors[count + i]))[:_K]}
            assert {one.id for one in found["agentdb"][i]} == nearest
            assert all(one.metadata["author"] == f"author {i % 10}" for one in found["chroma"][i])
            right += len(nearest & {one.id for one in found["chroma"][i]})
    recall = right / queries / _K
    stores["agentdb"].close()
    for what, taken in (("add_texts", adding), ("similarity_search k=4 with a filter", searching)):
        detail = {f"{name} ms": median(one) * 1e3 for name, one in taken.items()}
        detail |= {f"agentdb {key} ms": value * 1e3 for key, value in spread(taken["agentdb"]).items()}
        if taken is searching:
            detail["chroma recall"] = recall
        ratio = median(taken["chroma"]) / median(taken["agentdb"])
        yield Figure(
            f"LangChain, {count:,} x {_D}, {what}: langchain-chroma / AgentDB", ratio, "times", 1, True, detail
        )
