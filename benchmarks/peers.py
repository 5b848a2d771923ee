"""Other vector stores, each used as its own documentation says, behind one small face."""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

load_limit_s = 20 * 60.0
"""A peer that does not load everything within this time is measured at the size it reached, which is printed."""
_BATCH = 5_000


class Peer(ABC):
    """One store with vectors, cosine, and optionally an owner of each row."""

    name: str
    loaded: int = 0
    load_s: float = 0.0

    def load(self, vectors: np.ndarray, owners: np.ndarray | None = None) -> None:
        start = time.perf_counter()
        for begin in range(0, len(vectors), self.batch_rows(len(vectors))):
            end = min(begin + self.batch_rows(len(vectors)), len(vectors))
            self.add(begin, vectors[begin:end], None if owners is None else owners[begin:end])
            self.loaded = end
            if time.perf_counter() - start > load_limit_s:
                break
        self.finish()
        self.load_s = time.perf_counter() - start

    def batch_rows(self, rows: int) -> int:
        return min(rows, _BATCH)

    @abstractmethod
    def add(self, first: int, vectors: np.ndarray, owners: np.ndarray | None) -> None: ...

    def finish(self) -> None:
        """Build what searches need; most stores have done so while they were loaded."""
        return

    @abstractmethod
    def search(self, query: np.ndarray, k: int, owner: int | None = None) -> list[int]: ...

    def settings(self) -> Iterator[str]:
        """Try settings from fast to exact; the caller stops at the first that is good enough."""
        yield "default"


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class LanceDB(Peer):
    """IVF_RQ, or IVF_PQ as the documentation's default, B-tree on the owner, prefilter."""

    name = "lancedb"

    def __init__(self, path: Path, index: str | None = "IVF_RQ") -> None:
        import lancedb

        self.name = f"lancedb {index or 'flat'}"
        self._db = lancedb.connect(path)
        self._index = index
        self._options: dict[str, int] = {}
        self._table = None

    def batch_rows(self, rows: int) -> int:
        return 100_000

    def add(self, first: int, vectors: np.ndarray, owners: np.ndarray | None) -> None:
        columns = {
            "id": pa.array(np.arange(first, first + len(vectors))),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
        }
        if owners is not None:
            columns["owner"] = pa.array(owners)
        table = pa.table(columns)
        if self._table is None:
            self._table = self._db.create_table("rows", table)
        else:
            self._table.add(table)

    def finish(self) -> None:
        if "owner" in self._table.schema.names:
            self._table.create_scalar_index("owner", index_type="BTREE")
        if self._index is not None:
            # Its guide: one partition for about 4,096 rows, sub-vectors of eight dimensions, or as near as divides them.
            partitions = max(self.loaded // 4096, 16)
            dimension = self._table.schema.field("vector").type.list_size
            parts = next(n for n in range(dimension // 8, 0, -1) if dimension % n == 0)
            width = {"num_sub_vectors": parts}
            self._table.create_index(
                metric="cosine",
                index_type=self._index,
                num_partitions=partitions,
                **(width if self._index == "IVF_PQ" else {}),
            )
        self._table.optimize()

    def settings(self) -> Iterator[str]:
        if self._index is None:
            yield "flat"
            return
        for probes, refine in ((10, 2), (20, 2), (20, 5), (40, 10), (80, 20)):
            self._options = {"probes": probes, "refine": refine}
            yield f"nprobes {probes}, refine {refine}"

    def search(self, query: np.ndarray, k: int, owner: int | None = None) -> list[int]:
        found = self._table.search(query).distance_type("cosine").limit(k).select(["id", "_distance"])
        if self._options:
            found = found.nprobes(self._options["probes"]).refine_factor(self._options["refine"])
        if owner is not None:
            found = found.where(f"owner = {owner}", prefilter=True)
        return found.to_arrow().column("id").to_pylist()


class Faiss(Peer):
    """`Flat`: exact; `HNSW`: its graph index."""

    def __init__(self, dimension: int, kind: str) -> None:
        import faiss

        self.name = f"faiss {kind}"
        self._kind = kind
        if kind == "Flat":
            self._index = faiss.IndexFlatIP(dimension)
        else:
            self._index = faiss.IndexHNSWFlat(dimension, 32, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = 128

    def add(self, first: int, vectors: np.ndarray, owners: np.ndarray | None) -> None:
        self._index.add(unit(vectors))

    def settings(self) -> Iterator[str]:
        if self._kind == "Flat":
            yield "exact"
            return
        for ef in (16, 32, 64, 128, 256, 512):
            self._index.hnsw.efSearch = ef
            yield f"efSearch {ef}"

    def search(self, query: np.ndarray, k: int, owner: int | None = None) -> list[int]:
        return self._index.search(unit(query[None]), k)[1][0].tolist()

    def search_many(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self._index.search(unit(queries), k)[1]


class Usearch(Peer):
    name = "usearch"

    def __init__(self, dimension: int) -> None:
        from usearch.index import Index

        self._index = Index(ndim=dimension, metric="cos", dtype="f32")

    def add(self, first: int, vectors: np.ndarray, owners: np.ndarray | None) -> None:
        self._index.add(np.arange(first, first + len(vectors)), vectors)

    def settings(self) -> Iterator[str]:
        for ef in (16, 64, 128, 256, 512):
            self._index.expansion_search = ef
            yield f"expansion {ef}"

    def search(self, query: np.ndarray, k: int, owner: int | None = None) -> list[int]:
        return self._index.search(query, k).keys.tolist()


class Chroma(Peer):
    name = "chroma"

    def __init__(self, path: Path, ef: int = 100) -> None:
        import chromadb

        self.name = f"chroma ef {ef}"
        settings = chromadb.Settings(anonymized_telemetry=False)
        self._client = chromadb.PersistentClient(path=str(path), settings=settings)
        configuration = {"hnsw": {"space": "cosine", "ef_search": ef}}
        self._rows = self._client.create_collection("rows", configuration=configuration, embedding_function=None)

    def add(self, first: int, vectors: np.ndarray, owners: np.ndarray | None) -> None:
        self._rows.add(
            ids=[str(i) for i in range(first, first + len(vectors))],
            embeddings=vectors,
            metadatas=None if owners is None else [{"owner": int(one)} for one in owners],
        )

    def search(self, query: np.ndarray, k: int, owner: int | None = None) -> list[int]:
        where = None if owner is None else {"owner": owner}
        found = self._rows.query(query_embeddings=[query], n_results=k, where=where, include=["distances"])
        return [int(one) for one in found["ids"][0]]


class Qdrant(Peer):
    """Local mode, which its documentation means for small data: an exact scan."""

    name = "qdrant local"

    def __init__(self, path: Path, dimension: int) -> None:
        from qdrant_client import QdrantClient, models

        self._models = models
        self._client = QdrantClient(path=str(path))
        parameters = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
        self._client.create_collection("rows", vectors_config=parameters)

    def add(self, first: int, vectors: np.ndarray, owners: np.ndarray | None) -> None:
        payloads = None if owners is None else [{"owner": int(one)} for one in owners]
        ids = range(first, first + len(vectors))
        batch = self._models.Batch(ids=list(ids), vectors=vectors.tolist(), payloads=payloads)
        self._client.upsert("rows", batch)

    def search(self, query: np.ndarray, k: int, owner: int | None = None) -> list[int]:
        condition = None
        if owner is not None:
            match = self._models.FieldCondition(key="owner", match=self._models.MatchValue(value=owner))
            condition = self._models.Filter(must=[match])
        found = self._client.query_points("rows", query=query, limit=k, query_filter=condition)
        return [point.id for point in found.points]

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.close()
