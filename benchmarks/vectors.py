"""Vector, agent-scoped, batch and hybrid search, beside other stores in the same run.

A million rows, and peers that build graphs, take long on two cores: run one at a time (``python -m benchmarks global``).
"""

import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import agentdb
from agentdb import Config, IndexSpec, IvfFlat, IvfHnswFlat, IvfHnswSq, IvfPq, IvfRq, IvfSq, field
from benchmarks.harness import Figure, alternate, each, gate, median, seconds, spread
from benchmarks.peers import Chroma, Faiss, LanceDB, Peer, Qdrant, Usearch

D = 384
DATA = "AGENTDB_BENCH_DATA"
"""Environment variable: a directory with ``glove50_100k`` (``base.npy``, ``query.npy``, ``gt_cosine100.npy``)."""


def clustered(rows: int, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and queries around 1,000 common centres, as the embeddings of texts about 1,000 subjects are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((1_000, D), dtype=np.float32)

    def some(count: int) -> np.ndarray:
        noise = rng.standard_normal((count, D), dtype=np.float32)
        return centres[rng.integers(0, len(centres), count)] + np.float32(0.8) * noise

    return some(rows), some(queries)


def nearest(rows: np.ndarray, queries: np.ndarray, k: int) -> list[set[int]]:
    """Return the exact neighbours by cosine."""
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1)
    best = []
    for begin in range(0, len(queries), 64):
        scores = (unit[begin : begin + 64] @ rows.T) / norms
        best += [set(one.tolist()) for one in np.argpartition(-scores, k, axis=1)[:, :k]]
    return best


def _recall(search: Callable[[np.ndarray], Sequence[int]], queries: np.ndarray, truth: list[set[int]]) -> float:
    found = [len(set(search(query)) & gold) / len(gold) for query, gold in zip(queries, truth, strict=True)]
    return float(np.mean(found))


class _Ours(Peer):
    """A collection with a promoted ``owner``."""

    name = "agentdb"

    def __init__(self, db: agentdb.Database, name: str, dimension: int, **options: object) -> None:
        self.db = db
        self.rows = db.collection(name, dimension=dimension, schema={"owner": int}, **options)

    def batch_rows(self, rows: int) -> int:
        return 100_000

    def add(self, first: int, vectors: np.ndarray, owners: np.ndarray | None) -> None:
        ids = [str(i) for i in range(first, first + len(vectors))]
        metadata = None if owners is None else [{"owner": one} for one in owners.tolist()]
        self.rows.upsert(ids, vectors=vectors, metadata=metadata)

    def search(self, query: np.ndarray, k: int, owner: int | None = None) -> list[int]:
        condition = None if owner is None else field("owner") == owner
        return [int(hit.id) for hit in self.rows.search(query, k, filter=condition, include=())]


def _at_recall(peer: Peer, queries: np.ndarray, truth: list[set[int]], bar: float = 0.95) -> tuple[str, float]:
    """Leave the peer at its first setting that reaches the recall; return setting and recall."""
    found = ("", 0.0)
    for setting in peer.settings():
        found = setting, _recall(lambda q: peer.search(q, len(truth[0])), queries, truth)
        if found[1] >= bar:
            break
    return found


def _race(peers: list[Peer], queries: np.ndarray, rounds: int, k: int = 10) -> dict[str, list[float]]:
    def run(peer: Peer) -> Callable[[], float]:
        return lambda: median(each(lambda i: peer.search(queries[i], k), len(queries)))

    return alternate(rounds, **{peer.name: run(peer) for peer in peers})


def everywhere(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Global search, its index build in the background, and what searches take meanwhile."""
    rows, queries = clustered(20_000 if quick else 300_000, 100)
    yield from _global(folder / "clustered", rows, queries, "300k x 384", quick=quick)


def glove(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Global search over embeddings of words, if they are there; few enough to be compared one by one."""
    data = Path(os.environ.get(DATA, "")) / "glove50_100k"
    if data.is_dir():
        base, queries = np.load(data / "base.npy"), np.load(data / "query.npy")[:100]
        yield from _global(folder / "glove", base, queries, "GloVe 100k x 50", quick=quick)


def _global(folder: Path, rows: np.ndarray, queries: np.ndarray, what: str, *, quick: bool) -> Iterator[Figure]:
    folder.mkdir()
    truth = nearest(rows, queries, 10)
    with agentdb.open(folder / "db") as db:
        ours = _Ours(db, "rows", rows.shape[1])
        ours.load(rows)
        build = _Build(ours, queries)
        build.wait()
        peers: list[Peer] = [
            # RQ takes dimensions in eights only.
            LanceDB(folder / "quantised", "IVF_HNSW_SQ" if rows.shape[1] % 8 else "IVF_RQ"),
            LanceDB(folder / "pq", "IVF_PQ"),
            Faiss(rows.shape[1], "HNSW"),
            Usearch(rows.shape[1]),
            Chroma(folder / "chroma"),
            Qdrant(folder / "qdrant", rows.shape[1]),
        ]
        details: dict = {}
        ours_recall = _recall(lambda q: ours.search(q, 10), queries, truth)
        with gate("recall of the library's default"):
            assert ours_recall >= 0.95, ours_recall
        for peer in peers:
            peer.load(rows)
            setting, recall = _at_recall(peer, queries, truth)
            details[f"{peer.name} setup"] = f"{setting}, recall {recall:.3f}, {peer.loaded} rows in {peer.load_s:.0f} s"
        taken = _race([ours, *peers], queries, 2 if quick else 7)
        ms = {name: median(values) * 1e3 for name, values in taken.items()}
        lance = min(ms[name] for name in ms if name.startswith("lancedb"))
        detail = {**ms, "recall": ours_recall, **details}
        yield Figure(f"global search, {what}, recall@10 >= 0.95: p50", ms["agentdb"], "ms", 8, detail=detail)
        yield Figure(f"global search, {what}: bare LanceDB against it", lance / ms["agentdb"], "times", 1, higher=True)
        if build.taken_s is not None and ours.rows.index_status().index is not None:
            yield Figure(f"index build, {what}, in the background", build.taken_s, "s", 40, detail=build.meanwhile())


class _Build:
    """Waits for the automatic index while another thread searches and a third writes."""

    def __init__(self, ours: _Ours, queries: np.ndarray) -> None:
        self._ours = ours
        self._queries = queries
        self.taken_s: float | None = None
        self._searches: list[float] = []
        self._writes: list[float] = []

    def wait(self) -> None:
        over = threading.Event()

        def search(query: np.ndarray) -> None:
            self._searches.append(seconds(lambda: self._ours.search(query, 10)))

        def write(row: np.ndarray) -> None:
            self._writes.append(seconds(lambda: self._ours.rows.upsert(["-1"], vectors=row[None])))

        def again(work: Callable[[np.ndarray], None]) -> None:
            for i in itertools.count():
                if over.wait(0.02):
                    return
                work(self._queries[i % len(self._queries)])

        threads = [threading.Thread(target=again, args=(work,)) for work in (search, write)]
        for one in threads:
            one.start()
        taken = seconds(self._ours.db.optimize)
        over.set()
        for one in threads:
            one.join()
        self._ours.rows.delete(["-1"])
        self.taken_s = taken

    def meanwhile(self) -> dict[str, float]:
        ms = {"searches": self._searches, "writes": self._writes}
        found: dict[str, float] = {}
        for name, values in ms.items():
            found[f"{name} p50 ms"] = median(values) * 1e3
            found[f"{name} slowest ms"] = max(values) * 1e3
        return found


def indices(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Every kind of index, by build time, recall and latency: which one is the default, and why."""
    rows, queries = clustered(20_000 if quick else 300_000, 100)
    small: tuple[IndexSpec, ...] = (IvfSq(), IvfFlat(), IvfPq(sub_vectors=25), IvfHnswSq(), IvfHnswFlat())
    yield from _kinds(folder / "clustered", rows, queries, "300k x 384", (IvfRq(), IvfSq(), IvfFlat(), IvfPq()))
    data = Path(os.environ.get(DATA, "")) / "glove50_100k"
    if not quick and data.is_dir():
        base, queries = np.load(data / "base.npy"), np.load(data / "query.npy")[:100]
        yield from _kinds(folder / "glove", base, queries, "GloVe 100k x 50", small)


def _kinds(
    folder: Path, rows: np.ndarray, queries: np.ndarray, what: str, kinds: Sequence[IndexSpec]
) -> Iterator[Figure]:
    truth = nearest(rows, queries, 10)
    config = Config(resident_bytes=1 << 20, maintenance=False)  # so that nothing is answered from memory
    with agentdb.open(folder, config=config) as db:
        ours = _Ours(db, "rows", rows.shape[1])
        ours.load(rows)
        db.flush()
        for kind in kinds:
            ours.rows.set_index(kind)
            build_s = seconds(db.optimize)
            for nprobes in (4, 16) if isinstance(kind, IvfHnswSq | IvfHnswFlat) else (8, 32):
                ours.rows.set_index(replace(kind, nprobes=nprobes))
                db.optimize()
                recall = _recall(lambda q: ours.search(q, 10), queries, truth)
                ms = median([seconds(lambda q=q: ours.search(q, 10)) for _ in range(3) for q in queries]) * 1e3
                detail = {"recall": recall, "build s": build_s, "nprobes": nprobes, "refine": kind.refine_factor}
                yield Figure(f"{type(kind).__name__}, {what}, nprobes {nprobes}: p50", ms, "ms", detail=detail)


def agents(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Search within one of 1,000 agents: warm, and an agent that nobody asked before."""
    n_rows, n_agents = (20_000, 100) if quick else (1_000_000, 1_000)
    rows, queries = clustered(n_rows, 100)
    owners = np.random.default_rng(1).permutation(np.arange(n_rows) % n_agents)
    warm, cold = list(range(20)), list(range(20, 70))
    truth = {}
    for owner in (*warm, *cold):
        own = np.flatnonzero(owners == owner)
        truth[owner] = [{int(own[i]) for i in one} for one in nearest(rows[own], queries[:5], 10)]
    with agentdb.open(folder / "db") as db:
        ours = _Ours(db, "rows", D)
        ours.load(rows, owners)
        db.optimize()
        cold_s = [seconds(lambda o=owner: ours.search(queries[0], 10, o)) for owner in cold]
        peers: list[Peer] = [LanceDB(folder / "lancedb"), Chroma(folder / "chroma")]
        for peer in peers:
            peer.load(rows, owners)
        with gate("the agent's exact neighbours"):
            for owner in (*warm, *cold):
                for query, gold in zip(queries[:5], truth[owner], strict=True):
                    assert set(ours.search(query, 10, owner)) == gold

        def run(peer: Peer) -> Callable[[], float]:
            return lambda: median(each(lambda i: peer.search(queries[i % 100], 10, warm[i % len(warm)]), 60))

        taken = alternate(2 if quick else 7, **{peer.name: run(peer) for peer in (ours, *peers)})
        ms = {name: median(values) * 1e3 for name, values in taken.items()}
        loaded = {f"{peer.name} rows": peer.loaded for peer in peers}
        what = f"agent-scoped search, {n_rows:,} rows, {n_agents:,} agents"
        status = ours.rows.index_status()
        loaded["agentdb index"] = str(status.index)
        yield Figure(f"{what}: warm p50", ms["agentdb"], "ms", 2, detail={**ms, **loaded})
        yield Figure(
            f"{what}: cold agent p50",
            median(cold_s) * 1e3,
            "ms",
            20,
            detail={f"{k} s": v for k, v in spread(cold_s).items()},
        )
        for peer in peers:
            yield Figure(f"{what}: {peer.name} against warm", ms[peer.name] / ms["agentdb"], "times", 5, higher=True)


def batch(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """An exact batch of 256 queries."""
    rows, queries = clustered(20_000 if quick else 300_000, 256)
    truth = nearest(rows, queries, 10)
    with agentdb.open(folder / "db") as db:
        ours = _Ours(db, "rows", D)
        ours.load(rows)
        faiss = Faiss(D, "Flat")
        faiss.load(rows)

        def mine() -> list[list[agentdb.Hit]]:
            return ours.rows.search_many(queries, 10, exact=True, include=())

        with gate("exact neighbours"):
            assert all({int(hit.id) for hit in hits} == gold for hits, gold in zip(mine(), truth, strict=True))
        taken = alternate(
            2 if quick else 7,
            agentdb=lambda: seconds(mine),
            faiss=lambda: seconds(lambda: faiss.search_many(queries, 10)),
        )
        s = {name: median(values) for name, values in taken.items()}
        yield Figure(
            "exact batch, 256 queries, 300k x 384: FAISS Flat against it", s["faiss"] / s["agentdb"], "times", 1,
            higher=True, detail=s,
        )  # fmt: skip


def pairs(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """One row written, then searched for, again and again, with maintenance running."""
    for n_rows in (2_000,) if quick else (10_000, 300_000):
        rows, new = clustered(n_rows, 200 if quick else 1_000)
        taken = _pairs(folder / f"db{n_rows}", rows, new)
        detail = {name: value * 1e3 for name, value in spread(taken).items()}
        what = f"upsert then search, {n_rows:,} rows: p50 of the pair"
        yield Figure(what, median(taken) * 1e3, "ms", 2, detail=detail)


def _pairs(folder: Path, rows: np.ndarray, new: np.ndarray) -> list[float]:
    with agentdb.open(folder, config=Config(flush_age_s=2.0)) as db:
        ours = _Ours(db, "rows", D)
        ours.load(rows)
        db.optimize()
        ours.search(new[0], 10)

        def pair(i: int) -> None:
            ours.rows.upsert([f"{10**9 + i}"], vectors=new[i : i + 1])
            with gate("the row just written is the nearest"):
                assert ours.search(new[i], 10)[0] == 10**9 + i

        return each(pair, len(new))


class _Prepared:
    """An embedder whose vectors are at hand: what is measured is the search."""

    name = "prepared"
    dimension = D
    max_tokens = 512

    def __init__(self) -> None:
        self._vectors: dict[str, np.ndarray] = {}

    def know(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        self._vectors.update(zip(texts, vectors, strict=True))

    def embed(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        return np.stack([self._vectors[one] for one in texts])


def texts(count: int, words: int, seed: int) -> list[str]:
    """Return texts of words that are as unequally common as words are (Zipf)."""
    rng = np.random.default_rng(seed)
    letters = random.Random(0)
    vocabulary = ["".join(letters.choices("abcdefghijklmnoprstuvw", k=3 + i % 7)) for i in range(50_000)]
    drawn = np.minimum(rng.zipf(1.3, (count, words)) - 1, len(vocabulary) - 1)
    return [f"{' '.join(vocabulary[w] for w in row)} number{i}" for i, row in enumerate(drawn.tolist())]


def hybrid(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Vector and text together over 100k texts: nothing pending, and with a write before each search."""
    n_rows, calls = (3_000, 100) if quick else (100_000, 1_000)
    rows, vectors = clustered(n_rows, calls)
    written, asked = texts(n_rows, 60, 1), texts(calls, 8, 2)
    embedder = _Prepared()
    embedder.know(asked, vectors)
    with agentdb.open(folder / "db", config=Config(flush_age_s=2.0), embedder=embedder) as db:
        docs = db.collection("texts", embedder=embedder)
        for begin in range(0, n_rows, 20_000):
            part = slice(begin, min(begin + 20_000, n_rows))
            docs.upsert([str(i) for i in range(part.start, part.stop)], vectors=rows[part], texts=written[part])
        db.optimize()
        docs.search(asked[0], mode="hybrid")
        quiet = each(lambda i: docs.search(asked[i], 10, mode="hybrid"), calls)

        def pair(i: int) -> None:
            docs.upsert([f"new{i}"], vectors=vectors[i : i + 1], texts=[f"{asked[i]} unheard{i}"])
            with gate("the text just written is found"):
                assert docs.search(asked[i], 10, mode="hybrid")[0].id == f"new{i}"

        busy = each(pair, calls)
    for name, taken, bar in (("nothing pending", quiet, 20), ("a write before each", busy, 60)):
        detail = {key: value * 1e3 for key, value in spread(taken).items()}
        yield Figure(f"hybrid search, {n_rows:,} texts, {name}: p50", median(taken) * 1e3, "ms", bar, detail=detail)
