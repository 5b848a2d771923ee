"""Erased memories are nowhere: not in the raw bytes of any file, and not in any row of any Lance version that is left."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

import agentdb
from agentdb import CompressionRule, Config, MemoryPolicies
from agentdb_embedders import HashingEmbedder

SECRET = "zanzibarquux"
START, DAY = datetime(2026, 1, 1, tzinfo=UTC), timedelta(days=1)


def leaves(value: Any) -> list[bytes]:
    """Return every text and every binary of a row, however deep."""
    if isinstance(value, str):
        return [value.encode()]
    if isinstance(value, bytes):
        return [value]
    if isinstance(value, dict):
        return [one for its in value.values() for one in leaves(its)]
    if isinstance(value, list | tuple):
        return [one for its in value for one in leaves(its)]
    return []


def everything(path: Path) -> tuple[bytes, list[bytes]]:
    """Return the raw bytes of all files, and what every remaining version of every Lance dataset says when it is decoded."""
    raw = b"\n".join(one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file())
    decoded: list[bytes] = []
    for folder in sorted((path / "lance").glob("*.lance")):
        for version in lance.dataset(folder).versions():
            table: pa.Table = lance.dataset(folder, version=version["version"]).to_table()
            decoded += [one for row in table.to_pylist() for one in leaves(row)]
    return raw, decoded


def found(path: Path, what: bytes) -> tuple[bool, bool]:
    raw, decoded = everything(path)
    return what in raw, any(what in one for one in decoded)


def test_nothing_is_left_of_an_erased_memory(tmp_path: Path) -> None:
    path, now = tmp_path / "db", START
    policies = MemoryPolicies(
        extractor=lambda prompt: f"Bob was in {SECRET}." if SECRET in prompt else "NONE",
        compression=CompressionRule(cosine=-1.0, least=3, importance_below=2),
    )
    config = Config(clock=lambda: now, maintenance=False, bulk_rows=64, bulk_bytes=1)
    with agentdb.open(path, config=config, embedder=HashingEmbedder(48)) as db:
        memories = db.memories
        memories.policies = policies

        def say(text: str, **options: Any) -> str:
            options = {"agent_id": "a", "session_id": "s", "speaker": "Bob", "importance": 0.4, **options}
            return memories.remember(text, **options).id

        others = [say(f"I went to the market {i} times") for i in range(4)]
        secret = [say(f"In {SECRET} I met Ann", metadata={"note": SECRET})]
        behind = say("She was well")
        db.optimize()
        # Again in the same session: an occurrence; at hand; changed; in another session; from elsewhere.
        say(f"In {SECRET} I met Ann", metadata={"again": f"{SECRET}-again"})
        secret.append(say(f"{SECRET} at hand", tier="working"))
        secret.append(say(f"{SECRET} in May", session_id="t", agent_id="b"))
        secret.append(say("This says something else now", session_id="t"))
        memories.update(secret[-1], content=f"It was {SECRET}, in truth")
        memories.update(secret[-1], content="It was somewhere", reason="Bob corrected it")
        db.optimize()
        now += 2 * DAY
        assert any(one.action == "derived" for one in memories.maintain().changes), "a fact is extracted"
        db.optimize()
        now += 60 * DAY
        report = memories.maintain()
        summaries = [one for one in report.changes if one.action == "derived"]
        assert any(SECRET in memories.require(one.memory_id).text for one in summaries)
        db.optimize()
        memories.recall(SECRET, agent_id="a")
        vector = db.table("_memories").require(secret[0])["vector"]
        seen = db.table("_memories").require(behind)["tokens"]
        assert found(path, SECRET.encode()) == (True, True), "the proof sees what is there"
        assert found(path, vector)[1]
        assert found(path, seen)[1]

        assert memories.erase(secret).status == "complete"
        assert found(path, SECRET.encode()) == (False, False)
        assert found(path, vector) == (False, False), "no vector of it either"
        assert found(path, seen) == (False, False), "nor of what was read behind it"
        assert all(memories.get(one) is None for one in secret)
        assert {memories.require(one).status for one in others} == {"active"}, "what was summed up with it is back"
        assert memories.recall("market", agent_id="a")
        db.optimize()
        assert db.verify().ok
    assert found(path, SECRET.encode()) == (False, False), "nor after the database was closed"


def test_a_reader_that_still_sees_it_keeps_the_receipt_open(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with agentdb.open(path, config=Config(maintenance=False), embedder=HashingEmbedder(48)) as db:
        made = db.memories.remember(f"I was in {SECRET}", agent_id="a")
        db.optimize()
        with agentdb.open(path, embedder=HashingEmbedder(48)) as other:
            reader = other.table("_memories").scan(columns=["id", "text"])
            assert SECRET in next(reader)["text"]
            receipt = db.memories.erase(made.id)
            assert receipt.status == "pending"
            del reader
        db.settle_erasures()
        settled = db.erasure(receipt.id)
        assert settled is not None
        assert settled.status == "complete"
        assert found(path, SECRET.encode()) == (False, False)
