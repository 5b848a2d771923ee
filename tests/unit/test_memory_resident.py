"""One agent's memories in memory: what stays after rows come and go, and the budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import agentdb
from agentdb import Config, MemoryWrite
from agentdb.errors import IntegrityError
from agentdb.memory.encoding import Encoder, Reading, decode_tokens, decode_vectors
from agentdb.memory.records import Scope
from agentdb.memory.resident import AgentCache, AgentRows
from agentdb_embedders import HashingEmbedder

SAID = ["Where did you go in May?", "To Lisbon.", "Was it warm there?", "Very.", "unrelated words here"]


def rows_of(db: agentdb.Database, agent_id: str = "a") -> AgentRows:
    return AgentRows(db.table("_memories"), agent_id, *db.memories._embedding.space())


def test_rows_that_were_followed_are_as_rows_read_anew(db_path: Path) -> None:
    with agentdb.open(db_path, embedder=HashingEmbedder(48), config=Config(maintenance=False)) as db:
        made = db.memories.remember_many(MemoryWrite(content=one, agent_id="a", session_id="s") for one in SAID)
        followed = rows_of(db)
        scope, query = (
            Scope("a", None, None, None),
            Encoder(HashingEmbedder(48)).encode_queries(["warm in Lisbon in May"])[0],
        )
        for step in ("nothing", "update", "forget", "flush", "erase", "more"):
            match step:
                case "update":
                    db.memories.update(made[4].id, content="warm May", importance=0.3)
                case "forget":
                    db.memories.forget(made[1].id)
                case "flush":
                    db.flush()
                case "erase":
                    db.memories.erase(made[0].id)
                    db.memories.embed_pending("a")
                case "more":
                    db.memories.remember("Warm again", agent_id="a", session_id="s")
            assert followed.advance()
            anew = rows_of(db)
            anew.load()
            found = []
            for rows in (followed, anew):
                of = rows.scope(scope)
                late = rows.late(query, of.slots, of)
                words, meaning = rows.words("warm in Lisbon in May", of), rows.meaning([query], of)[0]
                found.append(
                    {
                        rows.ids[slot]: (float(words[i]), float(meaning[i]), float(late[i]))
                        for i, slot in enumerate(of.slots.tolist())
                    }
                )
            assert found[0].keys() == found[1].keys(), step
            for memory_id, values in found[0].items():
                np.testing.assert_allclose(values, found[1][memory_id], atol=1e-5, err_msg=step)
            assert followed._token_bytes == anew._token_bytes


def test_agents_used_longest_ago_make_room(db_path: Path) -> None:
    with agentdb.open(db_path, embedder=HashingEmbedder(48), config=Config(maintenance=False)) as db:
        db.memories.remember("x", agent_id="a")
        cache = AgentCache(db.table("_memories"), 100_000)
        first = cache.agent("a", "e", 48)
        assert cache.agent("a", "e", 48) is first
        cache.note("a", "e", 60_000)
        cache.agent("b", "e", 48)
        cache.note("b", "e", 30_000)
        assert cache.agent("a", "e", 48) is first
        cache.note("a", "e", 90_000)
        assert cache.agent("a", "e", 48) is first
        assert len(cache._agents) == 1
        cache.note("b", "e", 30_000)
        assert cache._total == 90_000, "what had to make room counts no more"


def test_asking_for_what_is_not_there_takes_no_memory(db_path: Path) -> None:
    config = Config(maintenance=False, resident_bytes=200_000)
    with agentdb.open(db_path, embedder=HashingEmbedder(48), config=config) as db:
        db.memories.remember("x", agent_id="a", session_id="s")
        for i in range(100):
            assert db.memories.recall("x", agent_id=f"nobody {i}") == []
        cache = db.memories._core.resident
        assert cache._total == sum(one.nbytes for one in cache._agents.values()) <= 200_000
        rows = cache.agent("a", *db.memories._embedding.space())
        assert len(db.memories.recall("x", agent_id="a")) == 1
        known = len(rows._codes)
        for i in range(5):
            assert db.memories.recall("x", agent_id="a", user_id=f"nobody {i}") == []
            assert db.memories.recall("x", agent_id="a", session_id=f"none {i}") == []
        assert len(rows._codes) == known


def test_a_short_memory_is_read_in_context_and_keeps_its_own_tokens() -> None:
    encoder = Encoder(HashingEmbedder(48))
    alone, behind = encoder.encode(
        [Reading("it was warm"), Reading.of("it was warm", ["first", "Where?", "To Lisbon."])]
    )
    assert alone.tokens is not None
    assert behind.tokens is not None
    np.testing.assert_array_equal(decode_tokens(alone.tokens, 48)[0], decode_tokens(behind.tokens, 48)[0])
    assert np.linalg.norm(decode_vectors([behind.vector], 48)[0]) == pytest.approx(1, abs=1e-3)
    ids, vectors = decode_tokens(alone.tokens, 48)
    assert len(ids) == len(vectors) == len(encoder.embedder.embed_tokens(["it was warm"])[0][0])  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.linalg.norm(vectors / 127, axis=1), 1, atol=0.02)


def test_only_the_last_words_before_are_read_along() -> None:
    reading = Reading.of("own", ["one", "two " * 50, "three"])
    assert reading.before == "two " * 39 + "two\nthree"


def test_a_long_memory_has_a_vector_and_no_tokens() -> None:
    long, short = Encoder(HashingEmbedder(48)).encode([Reading("word " * 200), Reading("word")])
    assert long.tokens is None
    assert short.tokens is not None
    assert len(long.vector) == len(short.vector) == 96


@pytest.mark.parametrize("size", [0, 95, 97])
def test_damaged_vectors_are_noticed(size: int) -> None:
    with pytest.raises(IntegrityError):
        decode_vectors([b"x" * size], 48)


def test_damaged_tokens_are_noticed() -> None:
    with pytest.raises(IntegrityError):
        decode_tokens(b"x" * 53, 48)
