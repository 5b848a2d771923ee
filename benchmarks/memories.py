"""Memories at the sizes that are normal: many agents, one agent with many; remembered and recalled beside Chroma in the same run.

Vectors are given (made beforehand: what an embedder takes is the same for all), so short memories have no token vectors here: those are
measured by ``python -m benchmarks.recall speed``. mem0 takes part where it is installed (``pip install mem0ai``).
"""

import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import agentdb
from agentdb import Config, MemoryWrite
from benchmarks.harness import Figure, alternate, disk_bytes, gate, median, resident_bytes, seconds, spread
from benchmarks.vectors import D, clustered

BATCH = 5_000
MEM0_MEMORIES = 1_000
"""It takes some tens of milliseconds to store one."""
SUBJECTS = [
    "garden",
    "office",
    "harbour",
    "neighbour",
    "choir",
    "flight",
    "recipe",
    "budget",
    "doctor",
    "engine",
    "letter",
    "island",
    "market",
    "bridge",
    "window",
]


class Given:
    """An embedder that knows its texts' vectors: a memory's text begins with its number."""

    name, dimension, max_tokens = "given", D, 256

    def __init__(self, rows: np.ndarray, queries: np.ndarray) -> None:
        self._rows, self._queries = rows, queries

    def embed(self, texts, kind="document"):
        table = self._queries if kind == "query" else self._rows
        return table[[int(one.split(" ", 1)[0]) for one in texts]]


def text(number: int) -> str:
    about = SUBJECTS[number % len(SUBJECTS)], SUBJECTS[number // 7 % len(SUBJECTS)]
    return f"{number} said of the {about[0]} that the {about[1]} would take {number % 97} days, as ever"


class Chroma:
    """One collection, the agent in the metadata, as its documentation says."""

    name = "chroma"

    def __init__(self, path: Path) -> None:
        import chromadb

        settings = chromadb.Settings(anonymized_telemetry=False)
        self._client = chromadb.PersistentClient(path=str(path), settings=settings)
        self._rows = self._client.create_collection(
            "memories", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    def add(self, first: int, vectors: np.ndarray, agents: list[str]) -> None:
        numbers = range(first, first + len(vectors))
        self._rows.add(
            ids=[str(i) for i in numbers],
            embeddings=vectors,
            documents=[text(i) for i in numbers],
            metadatas=[{"agent": one} for one in agents],
        )

    def search(self, vectors: np.ndarray, agent: str, k: int) -> list[list[str]]:
        return self._rows.query(query_embeddings=vectors, n_results=k, where={"agent": agent})["ids"]


class Mem0:
    """Memories kept as they are (``infer=False``) in its default store, on disk, with its telemetry off; it takes one at a time."""

    name = "mem0"

    def __init__(self, path: Path, embedder: Given) -> None:
        os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": str(path)}
        from langchain_core.embeddings import Embeddings
        from mem0 import Memory

        class Same(Embeddings):
            def embed_query(self, text):
                return embedder.embed([text], "query" if " what of " in text else "document")[0].tolist()

            def embed_documents(self, texts):
                return [self.embed_query(one) for one in texts]

        store = {"path": str(path / "store"), "collection_name": "memories", "embedding_model_dims": D, "on_disk": True}
        self._memories = Memory.from_config(
            {
                "vector_store": {"provider": "qdrant", "config": store},
                "embedder": {"provider": "langchain", "config": {"model": Same()}},
                "llm": {"provider": "openai", "config": {"api_key": "never asked"}},
                "history_db_path": str(path / "history.db"),
            }
        )

    def add(self, text: str, agent: str) -> None:
        self._memories.add(text, agent_id=agent, infer=False)

    def search(self, question: str, agent: str, k: int) -> list[str]:
        found = self._memories.search(question, filters={"agent_id": agent}, top_k=k, threshold=0.0)
        return [one["memory"] for one in found["results"]]


def _remember(db: agentdb.Database, agents: list[str]) -> float:
    start = time.perf_counter()
    for first in range(0, len(agents), BATCH):
        part = agents[first : first + BATCH]
        db.memories.remember_many(
            MemoryWrite(content=text(i), agent_id=agent, session_id=str(i // (25 * len(agents) // 1_000 or 1)))
            for i, agent in enumerate(part, first)
        )
    return time.perf_counter() - start


def _measured(folder: Path, what: str, count: int, agents: int, beside: int) -> Iterator[Figure]:
    """Yield the figures of so many memories of so many agents; the first ``beside`` of them also for Chroma."""
    folder.mkdir()
    rows, queries = clustered(count, 64)
    owners = [f"agent-{i % agents}" for i in range(count)]
    path, before = folder / "db", resident_bytes()
    config = Config(device="cpu")
    with agentdb.open(path, config=config, embedder=Given(rows, queries)) as db:
        taken = _remember(db, owners)
        yield Figure(f"{what}: remember_many, vectors given", count / taken, "1/s", higher=True)
        db.flush()
    with agentdb.open(path, config=config, embedder=Given(rows, queries)) as db:
        few = [f"agent-{i}" for i in range(min(agents, 20))]
        asked = [f"{i} what of the {SUBJECTS[i % len(SUBJECTS)]}" for i in range(len(queries))]

        def recall(agent: str, question: str) -> list[agentdb.Recalled]:
            return db.memories.recall(question, agent_id=agent, reinforce=False)

        with gate("every memory is there, and recall keeps to its agent"):
            assert db.stats().tables["_memories"].hot_rows + db.stats().tables["_memories"].cold_rows == count
        first = [seconds(lambda one=one: recall(one, asked[0])) for one in few]
        with gate("recall keeps to its agent"):
            assert {one.memory.agent_id for one in recall(few[0], asked[1])} == {few[0]}
        yield Figure(f"{what}: first recall of an agent, p50", 1e3 * median(first), "ms", detail=spread(first))
        warm = [seconds(lambda i=i: recall(few[i % len(few)], asked[i % len(asked)])) for i in range(100)]
        yield Figure(f"{what}: warm recall, p50", 1e3 * median(warm), "ms", detail=spread(warm))

        def batch() -> None:
            db.memories.recall_many(asked, agent_id=few[0], reinforce=False)

        batch()
        many = median([seconds(batch) for _ in range(3)])
        yield Figure(f"{what}: recall_many, 64 queries", 64 / many, "1/s", higher=True)
        kept = seconds(lambda: db.memories.maintain(few[0]))
        yield Figure(f"{what}: upkeep of one agent with nothing due", 1e3 * kept, "ms")
        yield Figure(f"{what}: disk for each memory", disk_bytes(path) / count, "B")
        yield Figure(f"{what}: memory of the process", (resident_bytes() - before) / 2**20, "MiB")
        yield from _beside(folder, what, rows[:beside], queries, owners[:beside], asked)
        if importlib.util.find_spec("mem0"):
            yield from _beside_mem0(folder, what, Given(rows, queries), owners[: min(beside, MEM0_MEMORIES)], asked)


def _beside(
    folder: Path,
    what: str,
    rows: np.ndarray,
    queries: np.ndarray,
    owners: list[str],
    asked: list[str],
) -> Iterator[Figure]:
    """Yield how long both take to store the same memories, and to be asked the same."""
    chroma = Chroma(folder / "chroma")

    def theirs() -> float:
        start = time.perf_counter()
        for first in range(0, len(rows), BATCH):
            chroma.add(first, rows[first : first + BATCH], owners[first : first + BATCH])
        return time.perf_counter() - start

    stored = {"chroma": theirs()}
    with agentdb.open(folder / "same", config=Config(device="cpu"), embedder=Given(rows, queries)) as same:
        stored["agentdb"] = _remember(same, owners)
        ratio = stored["chroma"] / stored["agentdb"]
        yield Figure(f"{what}: storing {len(rows):,}, chroma against ours", ratio, "times", higher=True, detail=stored)
        agent = owners[0]
        same.memories.recall(asked[0], agent_id=agent, reinforce=False)

        def one_ours() -> float:
            return seconds(lambda: same.memories.recall(asked[3], agent_id=agent, reinforce=False)) * 1e3

        def all_ours() -> float:
            return seconds(lambda: same.memories.recall_many(asked, agent_id=agent, reinforce=False)) * 1e3

        taken = alternate(
            7,
            agentdb=one_ours,
            chroma=lambda: seconds(lambda: chroma.search(queries[3:4], agent, 10)) * 1e3,
            agentdb_64=all_ours,
            chroma_64=lambda: seconds(lambda: chroma.search(queries, agent, 10)) * 1e3,
        )
    ms = {name: median(values) for name, values in taken.items()}
    yield Figure(
        f"{what}: one recall among {len(rows):,} (chroma: vectors alone)", ms["agentdb"], "ms", detail={"chroma": ms["chroma"]}
    )  # fmt: skip
    yield Figure(
        f"{what}: 64 in one call (chroma: vectors alone)", ms["agentdb_64"], "ms", detail={"chroma": ms["chroma_64"]}
    )


def _beside_mem0(folder: Path, what: str, embedder: Given, owners: list[str], asked: list[str]) -> Iterator[Figure]:
    """Yield how long both take to store the same memories, one at a time and (ours) together, and to be asked the same."""
    mem0, agent, count = Mem0(folder / "mem0", embedder), owners[0], len(owners)
    stored = {"mem0": seconds(lambda: [mem0.add(text(i), one) for i, one in enumerate(owners)])}
    config = Config(device="cpu")
    with agentdb.open(folder / "together", config=config, embedder=embedder) as db:
        stored["agentdb, remember_many"] = _remember(db, owners)
    with agentdb.open(folder / "single", config=config, embedder=embedder) as db:
        stored["agentdb"] = seconds(
            lambda: [db.memories.remember(text(i), agent_id=one) for i, one in enumerate(owners)]
        )
        with gate("both find memories of the agent"):
            own = {text(i) for i, one in enumerate(owners) if one == agent}
            assert {*mem0.search(asked[0], agent, 10)} <= own
            assert {one.memory.content for one in db.memories.recall(asked[0], agent_id=agent, reinforce=False)} <= own
        taken = alternate(
            20,
            agentdb=lambda: seconds(lambda: db.memories.recall(asked[3], agent_id=agent, reinforce=False)),
            mem0=lambda: seconds(lambda: mem0.search(asked[3], agent, 10)),
        )
    ratio = stored["mem0"] / stored["agentdb"]
    yield Figure(f"{what}: storing {count:,} one by one, mem0 against ours", ratio, "times", higher=True, detail=stored)
    ms = {name: 1e3 * median(values) for name, values in taken.items()}
    ratio = ms["mem0"] / ms["agentdb"]
    yield Figure(f"{what}: one recall among {count:,}, mem0 against ours", ratio, "times", higher=True, detail=ms)


def many_agents(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """A million memories over 1,000 agents; ``AGENTDB_BENCH_MEMORIES`` takes another number of them."""
    count = int(os.environ.get("AGENTDB_BENCH_MEMORIES", "1000000"))
    count, agents = (4_000, 20) if quick else (count, 1_000)
    yield from _measured(folder / "many", f"{count:,} memories, {agents:,} agents", count, agents, min(count, 50_000))


def one_agent(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """One agent with 100,000 memories."""
    count = 3_000 if quick else 100_000
    yield from _measured(folder / "one", f"one agent, {count:,} memories", count, 1, min(count, 50_000))
