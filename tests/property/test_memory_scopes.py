"""Scopes of memories are walls: nothing is found, counted or compared across them, whatever is written in whichever order."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentdb
from agentdb import Config, MemoryWrite
from agentdb_embedders import HashingEmbedder

AGENTS = st.sampled_from(["a", "A", "a%", "a\x01b"])
OPTIONAL = st.none() | st.sampled_from(["u", "None", "u*"])
SESSIONS = st.none() | st.sampled_from(["s", "t"])
TEXTS = st.lists(st.sampled_from(["cat", "dog", "sun", "moon", "tea"]), min_size=1, max_size=4).map(" ".join)
WRITES = st.lists(
    st.builds(
        MemoryWrite,
        content=TEXTS,
        agent_id=AGENTS,
        user_id=OPTIONAL,
        namespace=OPTIONAL,
        session_id=SESSIONS,
        tier=st.sampled_from(["working", "short_term", "long_term"]),
        speaker=st.none() | st.sampled_from(["Bob", "Ann"]),
    ),
    max_size=25,
)

WALLS = ["agent_id", "user_id", "namespace"]
Scope = tuple[object, object, object]


def scope_of(one: MemoryWrite | agentdb.Memory) -> Scope:
    return one.agent_id, one.user_id, one.namespace


@given(writes=WRITES, flushed=st.integers(0, 25), query=TEXTS, session=SESSIONS)
def test_a_scope_sees_its_own_memories_and_no_others(
    writes: list[MemoryWrite], flushed: int, query: str, session: str | None
) -> None:
    config = Config(maintenance=False, durability="normal")
    with (
        tempfile.TemporaryDirectory() as directory,
        agentdb.open(Path(directory) / "db", config=config, embedder=HashingEmbedder(32)) as db,
    ):
        made = []
        for position, one in enumerate(writes):
            if position == flushed:
                db.flush()
            made += db.memories.remember_many([one])
        scopes = {scope_of(one) for one in writes} | {("a", None, None), ("a", "u", None)}
        for agent_id, user_id, namespace in scopes:
            options = {"agent_id": agent_id, "user_id": user_id, "namespace": namespace, "session_id": session}
            mine = {
                one.id
                for one in made
                if scope_of(one) == (agent_id, user_id, namespace) and session in (None, one.session_id)
            }
            assert {one.id for one in db.memories.list(**options)} == mine  # type: ignore[arg-type]
            found = db.memories.recall(query, k=100, reinforce=False, explain=True, **options)  # type: ignore[arg-type]
            assert {one.memory.id for one in found} == mine, "every memory has a vector, so each is found"
            for repeat in (one for one in made if one.id in mine):
                assert all(scope_of(one) == scope_of(repeat) for one in made if one.id == repeat.id)


@given(wall=st.sampled_from(WALLS), mine=WRITES, others=WRITES, query=TEXTS)
def test_what_others_remember_changes_no_score(
    wall: str, mine: list[MemoryWrite], others: list[MemoryWrite], query: str
) -> None:
    check_wall(wall, mine, others, query)


@pytest.mark.slow
@given(mine=WRITES, others=WRITES, query=TEXTS)
@pytest.mark.parametrize("wall", WALLS)
def test_what_others_remember_changes_no_score_whichever_the_wall(
    wall: str, mine: list[MemoryWrite], others: list[MemoryWrite], query: str
) -> None:
    check_wall(wall, mine, others, query)


def check_wall(wall: str, mine: list[MemoryWrite], others: list[MemoryWrite], query: str) -> None:
    here = {"agent_id": "a", "user_id": None, "namespace": None}
    beyond = {**here, wall: "beyond"}
    config = Config(maintenance=False, durability="normal")
    scores = []
    for crowded in (False, True):
        with (
            tempfile.TemporaryDirectory() as directory,
            agentdb.open(Path(directory) / "db", config=config, embedder=HashingEmbedder(32)) as db,
        ):
            if crowded:
                db.memories.remember_many(replace(one, **beyond) for one in others)  # type: ignore[arg-type]
            db.memories.remember_many(replace(one, **here) for one in mine)  # type: ignore[arg-type]
            if crowded:
                db.memories.remember_many(replace(one, **beyond) for one in others)  # type: ignore[arg-type]
            found = db.memories.recall(query, agent_id="a", k=100, reinforce=False, explain=True)
            weights = {one: value for hit in found for one, value in hit.signals.items() if one == "activation"}
            assert all(value > 0.999 for value in weights.values())
            scores.append(
                sorted(
                    (
                        hit.memory.text,
                        hit.memory.session_id or "",
                        hit.memory.speaker or "",
                        round(hit.score, 3),
                        round(hit.signals["words"], 4),
                    )
                    for hit in found
                )
            )
    assert scores[0] == scores[1]
