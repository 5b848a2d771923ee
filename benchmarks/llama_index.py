"""LlamaIndex's vector stores in one run: AgentDB, SimpleVectorStore, LanceDB, Chroma and FAISS.

Those that keep vectors alone (SimpleVectorStore, FAISS) are used as an index uses them: with LlamaIndex's document store in memory
beside them, from which the nodes of an answer are taken. They are durable once ``persist`` has written everything anew. A query
has been answered when there are nodes; how long those two take to find ids alone, and how long a whole retrieval through
``VectorStoreIndex.as_retriever`` takes with each store, stands beside it; and so does how long AgentDB takes to answer the same
question again, when the nodes need not be read from the disk.
"""

import gc
import logging
import math
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.data_structs import IndexDict
from llama_index.core.schema import BaseNode, NodeRelationship, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from benchmarks.harness import Figure, gate, median, seconds, spread
from llama_index_agentdb import AgentDBVectorStore

os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")

K = 10
DIMENSION = 384
BATCH = 2_048
"""What VectorStoreIndex inserts at once."""
BLOCK = 8
"""Queries that a store answers in a row. Whoever comes after `SimpleVectorStore`, which looks at every number as a Python object,
finds the processor's caches cold: with single queries in turn, always the same one."""
PER_DOCUMENT = 50
AUTHORS = 10
YEARS = range(1990, 2020)


def _nodes(count: int, seed: int) -> list[BaseNode]:
    rng, words = np.random.default_rng(seed), random.Random(seed)
    vocabulary = ["".join(words.choices("abcdefghijklmnopqrstuvwxyz", k=words.randint(3, 9))) for _ in range(3_000)]
    # Chunks of one document are nearer to each other than to others, as in life.
    topics = rng.standard_normal((count // PER_DOCUMENT + 1, DIMENSION))
    vectors = topics[np.arange(count) // PER_DOCUMENT] + rng.standard_normal((count, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        TextNode(
            id_=f"node-{i:06}",
            text=" ".join(words.choices(vocabulary, k=120)),
            embedding=vector,
            metadata={
                "author": f"author-{i // PER_DOCUMENT % AUTHORS}",
                "year": words.choice(YEARS),
                "file_name": f"docs/{i // PER_DOCUMENT:04}.md",
            },
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc-{i // PER_DOCUMENT}")},
        )
        for i, vector in enumerate(vectors.astype(np.float32).tolist())
    ]


def _only(key: str, value: object, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


FILTERS: dict[str, tuple[MetadataFilters | None, Callable[[BaseNode], bool]]] = {
    "no filter": (None, lambda _: True),
    "author == (1 in 10)": (_only("author", "author-3"), lambda one: one.metadata["author"] == "author-3"),
    "year >= (2 in 3)": (_only("year", 2000, FilterOperator.GTE), lambda one: one.metadata["year"] >= 2000),
}


class Contestant(ABC):
    """One vector store. ``docstore``: where the nodes are if the store does not keep them."""

    name: str
    needs: tuple[str, ...] = ()
    is_durable = True
    filters = True
    deletes_documents = True
    is_exact = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.folder.mkdir()
        self.docstore: SimpleDocumentStore | None = None
        self.store = self.open()

    @abstractmethod
    def open(self) -> BasePydanticVectorStore: ...

    def add(self, nodes: Sequence[BaseNode]) -> None:
        for begin in range(0, len(nodes), BATCH):
            self.store.add(list(nodes[begin : begin + BATCH]))
            if self.docstore is not None:
                self.docstore.add_documents(nodes[begin : begin + BATCH])

    def search(self, vector: list[float], filters: MetadataFilters | None) -> VectorStoreQueryResult:
        return self.store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=K, filters=filters))

    def nodes_of(self, found: VectorStoreQueryResult) -> list[BaseNode]:
        if found.nodes is not None:
            return list(found.nodes)
        assert self.docstore is not None
        return self.docstore.get_nodes(found.ids or [])

    def retriever(self, filters: MetadataFilters | None, nodes: Sequence[BaseNode]) -> BaseRetriever:
        """Return the retriever of an index that was made of the nodes."""
        known = {} if self.docstore is None else {one.node_id: one.node_id for one in nodes}
        storage = StorageContext.from_defaults(vector_store=self.store, docstore=self.docstore)
        index = VectorStoreIndex(
            index_struct=IndexDict(nodes_dict=known), storage_context=storage, embed_model=MockEmbedding(DIMENSION)
        )
        return index.as_retriever(similarity_top_k=K, filters=filters)

    def delete(self, document: str) -> None:
        self.store.delete(document)

    def close(self) -> None:
        return


class AgentDB(Contestant):
    name = "agentdb"

    def open(self) -> BasePydanticVectorStore:
        return AgentDBVectorStore(self.folder / "db")

    def close(self) -> None:
        self.store.close()


class Simple(Contestant):
    name = "simple"
    is_durable = False

    def open(self) -> BasePydanticVectorStore:
        self.docstore = SimpleDocumentStore()
        return SimpleVectorStore()

    def persist(self) -> None:
        self.store.persist(str(self.folder / "vectors.json"))
        self.docstore.persist(str(self.folder / "docstore.json"))


class LanceDB(Contestant):
    name = "lancedb"
    needs = ("lancedb", "pandas")
    deletes_documents = False  # fails on lancedb 0.40, which reads the quoted id as a column's name

    def open(self) -> BasePydanticVectorStore:
        from llama_index.vector_stores.lancedb import LanceDBVectorStore

        logging.getLogger("llama_index.vector_stores.lancedb.base").setLevel(logging.ERROR)
        return LanceDBVectorStore(uri=str(self.folder / "lance"))


class Chroma(Contestant):
    name = "chroma"
    needs = ("chromadb",)
    is_exact = False

    def open(self) -> BasePydanticVectorStore:
        import chromadb
        from llama_index.vector_stores.chroma import ChromaVectorStore

        self.client = chromadb.PersistentClient(str(self.folder / "chroma"))
        made = self.client.create_collection("bench", metadata={"hnsw:space": "cosine"})
        return ChromaVectorStore(chroma_collection=made)


class Faiss(Contestant):
    name = "faiss"
    needs = ("faiss",)
    is_durable = False
    filters = False
    deletes_documents = False

    def open(self) -> BasePydanticVectorStore:
        import faiss
        from llama_index.vector_stores.faiss import FaissMapVectorStore

        self.docstore = SimpleDocumentStore()
        return FaissMapVectorStore(faiss_index=faiss.IndexIDMap2(faiss.IndexFlatIP(DIMENSION)))


CONTESTANTS = (AgentDB, Simple, LanceDB, Chroma, Faiss)


def _is_installed(contestant: type[Contestant]) -> bool:
    for module in contestant.needs:
        if find_spec(module) is None:
            print(f"{contestant.name} is left out: there is no {module}")
            return False
    return True


def _figure(name: str, taken: dict[str, list[float]], unit: str, factor: float, best_of: set[str]) -> Figure:
    """Return how many times longer than ours the fastest of some peers takes, with all medians beside it."""
    medians = {who: median(values) for who, values in taken.items()}
    fastest = min((who for who in medians if who in best_of), key=lambda who: medians[who])
    detail = {f"{who} {unit}": value * factor for who, value in medians.items()}
    ours = {f"agentdb {key}": value * factor for key, value in spread(taken["agentdb"]).items()}
    return Figure(name, medians[fastest] / medians["agentdb"], "times", 1, True, {**detail, **ours, "best": fastest})


def _asking(
    name: str,
    nodes: Sequence[BaseNode],
    matrix: npt.NDArray[np.float64],
    able: dict[str, Contestant],
    filters: MetadataFilters | None,
    allowed: npt.NDArray[np.bool_],
    queries: int,
) -> Figure:
    """Ask all contestants the same questions, a block at a time in an order that turns; fail if one does not find the nearest."""
    rng = np.random.default_rng(2)
    asked = matrix[rng.integers(0, len(nodes), 2 * queries)] + 0.05 * rng.standard_normal((2 * queries, DIMENSION))
    # The second half goes through retrievers: what was found a moment ago would be found in caches.
    direct, indirect = asked[:queries], asked[queries:]
    taken: dict[str, list[float]] = {who: [] for who in able}
    again: list[float] = []
    ids_alone: dict[str, list[float]] = {who: [] for who, one in able.items() if one.docstore is not None}
    retrieved: dict[str, list[float]] = {who: [] for who in able}
    answers: dict[str, list[list[BaseNode]]] = {who: [] for who in able}
    retrievers = {who: one.retriever(filters, nodes) for who, one in able.items()}
    for begin in range(0, queries, BLOCK):
        block = slice(begin, begin + BLOCK)
        first = begin // BLOCK % len(able)
        for who in [*able, *able][first : first + len(able)]:
            one = able[who]
            for vector in direct[block]:
                query = vector.tolist()
                start = time.perf_counter()
                found = one.search(query, filters)
                searched = time.perf_counter()
                answers[who].append(one.nodes_of(found))
                taken[who].append(time.perf_counter() - start)
                if who in ids_alone:
                    ids_alone[who].append(searched - start)
                if isinstance(one, AgentDB):
                    again.append(seconds(lambda one=one, query=query: one.search(query, filters)))
            for vector in indirect[block]:
                bundle = QueryBundle("", embedding=vector.tolist())
                start = time.perf_counter()
                hits = retrievers[who].retrieve(bundle)
                retrieved[who].append(time.perf_counter() - start)
                assert len(hits) == K
    # Not before all have answered: the threads of a product go on turning for a while, and would be in the way of theirs.
    truths = [np.argsort(-np.where(allowed, matrix @ vector, -np.inf))[:K] for vector in direct]
    nearest = [{nodes[i].node_id for i in truth} for truth in truths]
    found_of = {who: _recall(answers[who], nearest) for who in able}
    for who, one in able.items():
        with gate(f"{who}: {found_of[who]:.3f} of the nearest found"):
            assert found_of[who] > (0.999 if one.is_exact else 0.5)
    figure = _figure(name, taken, "ms", 1e3, able.keys() - {"agentdb"})
    figure.detail["agentdb again ms"] = 1e3 * median(again)
    figure.detail |= {f"{who} ids alone ms": 1e3 * median(values) for who, values in ids_alone.items()}
    figure.detail |= {f"{who} retriever ms": 1e3 * median(values) for who, values in retrieved.items()}
    figure.detail |= {f"{who} recall": found_of[who] for who, one in able.items() if not one.is_exact}
    return figure


def _recall(answers: Sequence[Sequence[BaseNode]], nearest: Sequence[set[str]]) -> float:
    """Return which part of the nearest nodes was found, on average; all nodes must have their texts."""
    assert all(one.get_content() for answer in answers for one in answer)
    found = [len(one & {node.node_id for node in answer}) for answer, one in zip(answers, nearest, strict=True)]
    return sum(found) / (K * len(nearest))


def stores(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Add nodes, query with and without filters, delete documents: each contestant in turn."""
    count, rounds, queries, documents = (1_000, 1, 5, 3) if quick else (10_000, 3, 40, 15)
    nodes = _nodes(count, 1)
    matrix = np.array([one.embedding for one in nodes])
    contestants = [one for one in CONTESTANTS if _is_installed(one)]
    adding: dict[str, list[float]] = {one.name: [] for one in contestants}
    persisting = math.nan
    there: dict[str, Contestant] = {}
    for number in range(rounds):
        place = folder / str(number)
        place.mkdir()
        for kind in contestants:
            if kind.name in there:
                there.pop(kind.name).close()
            gc.collect()
            one = there[kind.name] = kind(place)
            adding[kind.name].append(seconds(lambda one=one: one.add(nodes)))
            if isinstance(one, Simple) and number == rounds - 1:  # what takes longest of all, once
                persisting = seconds(one.persist)
    durable = {one.name for one in contestants if one.is_durable} - {"agentdb"}
    figure = _figure(f"LlamaIndex, add {count:,} nodes: fastest durable store / AgentDB", adding, "s", 1, durable)
    figure.detail["simple persist s"] = persisting
    yield figure

    for what, (filters, holds) in FILTERS.items():
        able = {who: one for who, one in there.items() if filters is None or one.filters}
        name = f"LlamaIndex, top {K} of {count:,}, {what}: fastest / AgentDB"
        yield _asking(name, nodes, matrix, able, filters, np.array([holds(one) for one in nodes]), queries)

    able = {who: one for who, one in there.items() if one.deletes_documents}
    taken = {who: [] for who in able}
    for number in range(documents):
        for who, one in able.items():
            start = time.perf_counter()
            one.delete(f"doc-{number}")
            taken[who].append(time.perf_counter() - start)
    for who, one in able.items():
        with gate(f"{who}: deleted nodes are gone"):
            for number in (0, documents - 1):
                left = one.nodes_of(one.search(matrix[number * PER_DOCUMENT].tolist(), None))
                gone = {f"node-{i:06}" for i in range(number * PER_DOCUMENT, (number + 1) * PER_DOCUMENT)}
                assert not gone & {node.node_id for node in left}
    yield _figure(
        f"LlamaIndex, delete a document ({PER_DOCUMENT} nodes): fastest durable store / AgentDB",
        taken,
        "ms",
        1e3,
        durable,
    )
    for one in there.values():
        one.close()
