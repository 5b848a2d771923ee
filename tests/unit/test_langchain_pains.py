"""What users of LangChain's backends suffer from: each pain shown on Chroma, where it is installed and still has it, and not here.

====  ================================================  =================================================================
pain                                                    shown, and passed, by
====  ================================================  =================================================================
2     filter injection                                  test_langchain_filters.py (every hostile value in every operator and
                                                        id); test_langchain_stores.py, test_langchain_indexing.py (keys,
                                                        sessions, namespaces)
3     unsafe deserialisation                            test_langchain_stores.py: forged answers and messages
4     namespaces leak by prefix or wildcard             test_langchain_stores.py, test_langchain_indexing.py
6     fake async                                        `test_pain_6_async`; test_langchain_vector_store.py: the event loop
                                                        goes on while a writer waits, a reranker thinks
7     several processes                                 `test_pain_7_processes`; test_langchain_processes.py
8     filters that disagree                             test_langchain_filters.py: held equal to a brute-force reading
10    one session sees another's                        test_langchain_stores.py, test_langchain_agents.py
      metadata of few shapes, merged with the old       `test_metadata_is_what_was_given`
      ids given twice, calls with nothing               `test_lists_of_any_length`
      relevance below 0                                 `test_relevance_lies_between_0_and_1`
====  ================================================  =================================================================

Pains 1, 9 and 11 are of checkpoints and stores: conformance/test_langgraph_pains.py. Pain 5 is LlamaIndex's.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_agentdb import AgentDBVectorStore

Make = Callable[[str], VectorStore]


class Numbered(Embeddings):
    """A vector for each text, by its number, and no need of a thread to make it."""

    def embed_query(self, text: str) -> list[float]:
        return (3 * np.random.default_rng(crc32(text.encode())).normal(size=8)).tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(one) for one in texts]

    async def aembed_query(self, text: str) -> list[float]:
        return self.embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents(texts)


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Make]:
    opened: list[AgentDBVectorStore] = []

    def make(name: str) -> VectorStore:
        opened.append(AgentDBVectorStore(Numbered(), tmp_path / "agentdb", collection=name))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Chroma's store in a directory of its own."""
    if find_spec("langchain_chroma") is None:
        pytest.skip("the peer langchain-chroma is not installed")
    monkeypatch.setenv("ANONYMIZED_TELEMETRY", "False")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from langchain_chroma import Chroma

    return lambda name: Chroma(name, Numbered(), str(tmp_path / "chroma"))


def ids_of(found: list[Any]) -> set[str]:
    return {one.id for one in found}


# --- pain 6: async that is a thread of somebody else's --------------------------------------------------------------------


async def done_beside_a_busy_executor(store: VectorStore) -> bool:
    """Whether calls are answered while what else the program runs on the event loop's threads takes its time."""
    executor, free = ThreadPoolExecutor(1), threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(executor)
    executor.submit(free.wait, 120)
    calls = asyncio.create_task(use(store))
    try:
        # The peer's stand in the line, however long one waits.
        await asyncio.wait({calls}, timeout=60 if isinstance(store, AgentDBVectorStore) else 0.5)
        return calls.done()
    finally:
        free.set()
        assert await calls == {"b"}


async def use(store: VectorStore) -> set[str]:
    await store.aadd_texts(["a", "b"], [{"n": 1}, {"n": 2}], ids=["a", "b"])
    await store.adelete(["a"])
    await store.amax_marginal_relevance_search("b", k=2)
    assert ids_of(await store.aget_by_ids(["b"])) == {"b"}
    return ids_of(await store.asimilarity_search("b", k=9))


def test_pain_6_async(ours: Make) -> None:
    assert asyncio.run(done_beside_a_busy_executor(ours("pain")))


def test_pain_6_async_of_the_peer(theirs: Make) -> None:
    assert not asyncio.run(done_beside_a_busy_executor(theirs("pain")))


# --- pain 7: several processes on one directory ---------------------------------------------------------------------------

OTHER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_langchain_pains import Numbered
path, kind = sys.argv[2], sys.argv[3]
if kind == "ours":
    from langchain_agentdb import AgentDBVectorStore
    store = AgentDBVectorStore(Numbered(), path, collection="pain")
else:
    from langchain_chroma import Chroma
    store = Chroma("pain", Numbered(), path)
store.add_texts(["new"], [{"by": "other"}], ids=["new"])
store.delete(["old"])
"""


def found_after_another_process_wrote(store: VectorStore, path: Path, kind: str) -> set[str]:
    store.add_texts(["old", "kept"], [{"by": "us"}] * 2, ids=["old", "kept"])
    assert ids_of(store.similarity_search("new", k=9)) == {"old", "kept"}
    command = [sys.executable, "-c", OTHER, str(Path(__file__).parent), str(path), kind]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    return ids_of(store.similarity_search("new", k=9))


def test_pain_7_processes(ours: Make, tmp_path: Path) -> None:
    assert found_after_another_process_wrote(ours("pain"), tmp_path / "agentdb", "ours") == {"new", "kept"}


@pytest.mark.slow
def test_pain_7_processes_of_the_peer(theirs: Make, tmp_path: Path) -> None:
    assert "new" not in found_after_another_process_wrote(theirs("pain"), tmp_path / "chroma", "theirs")


# --- what vector stores of LangChain differ in ----------------------------------------------------------------------------

SHAPES: list[dict[str, Any]] = [
    {"nested": {"by": {"name": "ann"}}},
    {"none": None},
    {"empty": []},
    {"mixed": [1, "a", None]},
    {"large": 2**70},
]


def kept_as_it_was(store: VectorStore, metadata: dict[str, Any]) -> bool:
    try:
        store.add_texts(["x"], [metadata], ids=["x"])
    except ValueError:
        return False
    (found,) = store.get_by_ids(["x"])
    return repr(found.metadata) == repr(metadata)


def test_metadata_is_what_was_given(ours: Make) -> None:
    store = ours("metadata")
    store.add_texts(["x"], [{"old": True}], ids=["x"])
    assert [kept_as_it_was(store, one) for one in SHAPES] == [True] * len(SHAPES)


def test_metadata_is_what_was_given_not_by_the_peer(theirs: Make) -> None:
    store = theirs("metadata")
    store.add_texts(["x"], [{"old": True}], ids=["x"])
    assert [kept_as_it_was(store, one) for one in SHAPES] == [False] * len(SHAPES)
    assert not kept_as_it_was(store, {"new": True}), "what is stored in the place of an old one has its keys, too"


def refused(store: VectorStore) -> list[bool]:
    found = []
    for call in (
        lambda: store.add_texts([]),
        lambda: store.get_by_ids([]),
        lambda: store.add_texts(["a", "b"], [{"n": 1}] * 2, ids=["x", "x"]),
        lambda: store.similarity_search("x", filter={"n": {"$in": []}}),
        lambda: store.similarity_search("x", filter={}),
    ):
        try:
            call()
        except Exception:  # the peer's own classes among them
            found.append(True)
        else:
            found.append(False)
    return found


def test_lists_of_any_length(ours: Make) -> None:
    assert not any(refused(ours("lists")))


def test_lists_of_any_length_not_by_the_peer(theirs: Make) -> None:
    assert all(refused(theirs("lists")))


@pytest.mark.filterwarnings("ignore:Relevance scores must be between 0 and 1")
def test_relevance_lies_between_0_and_1(ours: Make) -> None:
    store = ours("relevance")
    store.add_texts([f"text {i}" for i in range(20)])
    assert all(0 <= score <= 1 for _, score in store.similarity_search_with_relevance_scores("query", k=20))


@pytest.mark.filterwarnings("ignore:Relevance scores must be between 0 and 1")
def test_relevance_lies_between_0_and_1_not_by_the_peer(theirs: Make) -> None:
    store = theirs("relevance")
    store.add_texts([f"text {i}" for i in range(20)])
    assert any(score < 0 for _, score in store.similarity_search_with_relevance_scores("query", k=20))
