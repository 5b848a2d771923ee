"""Several processes at once on one directory: documents, the indexing API, a chat."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation

import agentdb
from langchain_agentdb import (
    AgentDBChatMessageHistory,
    AgentDBLLMCache,
    AgentDBRecordManager,
    AgentDBSemanticCache,
    AgentDBVectorStore,
)

EMBEDDING = DeterministicFakeEmbedding(size=8)
ROUNDS = 15

WORKER = """
import sys
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import index
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation
from langchain_agentdb import AgentDBChatMessageHistory, AgentDBLLMCache, AgentDBRecordManager, AgentDBSemanticCache
from langchain_agentdb import AgentDBVectorStore

path, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
embedding = DeterministicFakeEmbedding(size=8)
with (
    AgentDBVectorStore(embedding, path) as store,
    AgentDBVectorStore(embedding, path, collection="indexed") as indexed,
    AgentDBRecordManager(path, namespace="n") as records,
    AgentDBChatMessageHistory(path, session_id="shared") as history,
    AgentDBLLMCache(path) as cache,
    AgentDBSemanticCache(embedding, path, min_score=1.0) as semantic,
):
    for i in range(rounds):
        cache.update("shared", "model", [Generation(text=f"{name} {i}")])
        cache.update(f"{name} {i}", "model", [Generation(text=f"{name} {i}")])
        if i == 0:
            semantic.update(f"asked by {name}", "semantic", [Generation(text=name)])
        text = f"{name} {i}"
        store.add_texts([text, "shared"], [{"by": name, "i": i}, {"by": name}], ids=[text, "shared"])
        assert store.similarity_search(text, k=1, filter={"by": name})[0].id == text
        history.add_messages([HumanMessage(f"{name} {i} {part}") for part in "ab"])
        if i % 5 == 0:
            found = [Document(f"{i} {part}", metadata={"source": name}) for part in range(4)]
            index(found, records, indexed, cleanup="incremental", source_id_key="source", key_encoder="blake2b")
"""


def test_nothing_is_lost_or_mixed_up(db_path: Path) -> None:
    with agentdb.open(db_path) as db:
        command = [sys.executable, "-W", "error", "-c", WORKER, str(db_path)]
        workers = [
            subprocess.Popen([*command, name, str(ROUNDS)], stderr=subprocess.PIPE, text=True)
            for name in ("one", "two")
        ]

        def talk(name: str) -> None:
            history = AgentDBChatMessageHistory(db, session_id="shared")
            for i in range(ROUNDS):
                history.add_messages([HumanMessage(f"{name} {i} {part}") for part in "ab"])

        threads = [threading.Thread(target=talk, args=(name,)) for name in ("three", "four")]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        for worker in workers:
            _, said = worker.communicate(timeout=240)
            assert worker.returncode == 0, said

        store = AgentDBVectorStore(EMBEDDING, db)
        assert len(store.similarity_search("x", k=100)) == 2 * ROUNDS + 1
        for name in ("one", "two"):
            late = store.similarity_search("x", k=100, filter={"by": name, "i": {"$gte": 10}})
            assert {one.metadata["i"] for one in late} == set(range(10, ROUNDS))

        indexed = AgentDBVectorStore(EMBEDDING, db, collection="indexed").similarity_search("x", k=100)
        kept = {(name, f"{ROUNDS - 5} {part}") for name in ("one", "two") for part in range(4)}
        assert {(one.metadata["source"], one.page_content) for one in indexed} == kept
        assert len(AgentDBRecordManager(db, namespace="n").list_keys()) == len(indexed) == 8

        cache = AgentDBLLMCache(db)
        last = cache.lookup("shared", "model")
        assert last is not None
        assert last[0].text in {f"{name} {ROUNDS - 1}" for name in ("one", "two")}
        semantic = AgentDBSemanticCache(EMBEDDING, db, min_score=1.0)
        for name in ("one", "two"):
            for i in range(ROUNDS):
                assert cache.lookup(f"{name} {i}", "model") == [Generation(text=f"{name} {i}")]
            assert semantic.lookup(f"asked by {name}", "semantic") == [Generation(text=name)]

        spoken = [str(one.content).split() for one in AgentDBChatMessageHistory(db, session_id="shared").messages]
    assert len(spoken) == 4 * 2 * ROUNDS
    assert [one[:2] for one in spoken[::2]] == [one[:2] for one in spoken[1::2]], "those of one call stay together"
    for name in ("one", "two", "three", "four"):
        assert [one[1:] for one in spoken if one[0] == name] == [[str(i), part] for i in range(ROUNDS) for part in "ab"]
