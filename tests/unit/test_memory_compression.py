"""Old episodes about one thing become one summary: what is chosen, what it says, what history tells, and how it is undone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agentdb
from agentdb import CompressionRule, Config, ExtractiveSummariser, MemoryPolicies, MemoryWrite
from agentdb.errors import InvalidInputError
from agentdb.kernels import primitives
from agentdb.memory import AgentMemories, RetentionRule, Statement
from agentdb.memory.encoding import Encoder
from agentdb.memory.similarity import diverse, late_interaction, leaders, nearest_before
from agentdb_embedders import HashingEmbedder

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
NEVER_ARCHIVED = RetentionRule(archive_below=0.0)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


class Topics(HashingEmbedder):
    """Texts of one topic are near each other, and no duplicates; texts of two are far apart."""

    topics = ("garden", "cat", "flight")

    def embed(self, texts: Sequence[str], kind: Any = "document") -> Any:
        found = 0.6 * super().embed(texts, kind)
        for i, text in enumerate(texts):
            for j, topic in enumerate(self.topics):
                found[i, j] += float(topic in text.casefold())
        return found

    embed_tokens = None  # type: ignore[assignment]  # vectors only


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(db_path: Path, clock: Clock) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=Config(clock=clock, maintenance=False), embedder=Topics(64)) as opened:
        opened.memories.policies = MemoryPolicies(retention=NEVER_ARCHIVED)
        yield opened


@pytest.fixture
def memories(db: agentdb.Database) -> AgentMemories:
    return db.memories


def remember(memories: AgentMemories, topic: str, count: int, **options: Any) -> list[str]:
    options = {"agent_id": "a", "importance": 0.3, **options}
    writes = [MemoryWrite(content=f"The {topic} was seen {i} times", **options) for i in range(1, count + 1)]
    return [one.id for one in memories.remember_many(writes)]


def grow_old(memories: AgentMemories, clock: Clock) -> agentdb.MaintenanceReport:
    clock.now += DAY
    memories.maintain()
    clock.now += 60 * DAY
    return memories.maintain()


def test_old_episodes_about_one_thing_become_a_summary(memories: AgentMemories, clock: Clock) -> None:
    garden, cat = remember(memories, "garden", 5, speaker="Ann"), remember(memories, "cat", 2)
    report = grow_old(memories, clock)
    assert [one.action for one in report.changes] == ["compressed"] * 5 + ["derived"]
    summary = memories.require(report.changes[-1].memory_id)
    assert (summary.origin, summary.tier, summary.memory_type) == ("summary", "long_term", "semantic")
    assert summary.sources == tuple(garden)
    assert summary.metadata["memories"] == 5
    lines = summary.text.split("\n")
    said = [f"Ann: {memories.require(one).text}" for one in garden]
    assert 1 <= len(lines) < 5
    assert lines == [one for one in said if one in lines], "word for word, in their order"
    assert {memories.require(one).status for one in garden} == {"archived"}
    assert {memories.require(one).status for one in cat} == {"active"}, "two are no cluster"
    assert memories.maintain().changes == (), "a summary is not summed up"


def test_history_and_why_show_it(memories: AgentMemories, clock: Clock) -> None:
    garden = remember(memories, "garden", 4)
    summary = grow_old(memories, clock).changes[-1].memory_id
    trace = memories.why(summary)
    assert [one.id for one in trace.sources] == garden
    assert [(one.action, one.reason) for one in trace.events] == [
        ("remembered", "the summary of 4 memories, its sources")
    ]
    event = memories.history(garden[0])[-1]
    assert (event.action, event.reason, event.before) == (
        "archived",
        f"summarised in {summary}",
        {"status": "active"},
    )
    assert [one.id for one in memories.why(garden[0]).derived] == [summary]
    assert [one.memory.id for one in memories.recall("garden", agent_id="a", k=1)] == [summary]
    assert memories.restore(garden[0]) == 1


def test_what_is_used_important_or_a_fact_is_left_alone(memories: AgentMemories, clock: Clock) -> None:
    garden = remember(memories, "garden", 8)
    memories.update(garden[0], importance=0.8)
    memories.update(garden[1], valid_from=START)
    memories.update(garden[2], memory_type="procedural")
    clock.now += DAY
    memories.maintain()
    for _ in range(2):
        memories.recall("garden seen 4 times", agent_id="a", k=1)
    clock.now += 60 * DAY
    memories.maintain()
    kept = [one for one in garden if memories.require(one).status == "active"]
    assert kept == garden[:4]


def test_walls_stand(memories: AgentMemories, clock: Clock) -> None:
    remember(memories, "garden", 3)
    remember(memories, "garden", 3, user_id="u")
    remember(memories, "garden", 3, namespace="n")
    assert grow_old(memories, clock).changes == ()


def test_a_policy_turns_it_off(memories: AgentMemories, clock: Clock) -> None:
    memories.policies = MemoryPolicies(retention=NEVER_ARCHIVED, compression=None)
    remember(memories, "garden", 6)
    assert grow_old(memories, clock).changes == ()


def test_a_limit_cuts_between_summaries(memories: AgentMemories, clock: Clock) -> None:
    remember(memories, "garden", 6)
    remember(memories, "flight", 6)
    clock.now += DAY
    memories.maintain()
    clock.now += 60 * DAY
    first = memories.maintain(limit=8)
    assert ([one.action for one in first.changes].count("derived"), first.is_complete) == (1, False)
    second = memories.maintain(limit=8)
    assert ([one.action for one in second.changes].count("derived"), second.is_complete) == (1, True)
    assert memories.maintain("a", limit=1).is_complete


def test_a_use_meanwhile_voids_the_plan(memories: AgentMemories, clock: Clock) -> None:
    memories.policies = MemoryPolicies(retention=NEVER_ARCHIVED, compression=CompressionRule(most_uses=99))
    garden = remember(memories, "garden", 4)
    clock.now += DAY
    memories.maintain()
    clock.now += 60 * DAY
    upkeep: Any = memories._upkeep
    for step in ("_apply", "_compress_cluster", "_summary"):
        real = getattr(upkeep, step)

        def late(*arguments: Any, real: Any = real) -> Any:
            memories.recall("garden", agent_id="a")
            return real(*arguments)

        setattr(upkeep, step, late)
        assert memories.maintain().changes == (), step
        delattr(upkeep, step)
        assert {memories.require(one).status for one in garden} == {"active"}
        clock.now += 60 * DAY


def test_erasing_a_source_erases_the_summary_and_brings_the_others_back(
    memories: AgentMemories, clock: Clock, db_path: Path
) -> None:
    garden = remember(memories, "garden", 4)
    secret = memories.remember("The garden has a quuxgnome", agent_id="a", importance=0.3).id
    grow_old(memories, clock)
    summary = memories.why(secret).derived[0].id
    memories.restore(garden[3])
    memories.forget(garden[3], reason="Ann asked")
    assert memories.erase(secret).status == "complete"
    assert memories.get(summary) is None
    assert [memories.require(one).status for one in garden] == ["active"] * 3 + ["archived"]
    assert memories.history(garden[0])[-1].reason == "the summary that stood for it is erased"
    files = b"".join(one.read_bytes() for one in db_path.rglob("*") if one.is_file())
    assert b"quuxgnome" not in files


def test_what_was_summed_up_twice_comes_back_all_the_same(memories: AgentMemories, clock: Clock) -> None:
    garden = remember(memories, "garden", 5)
    grow_old(memories, clock)
    memories.restore(garden)
    grow_old(memories, clock)
    assert len(memories.why(garden[0]).derived) == 2
    memories.erase(garden[0])
    assert {memories.require(one).status for one in garden[1:]} == {"active"}
    assert memories.list(agent_id="a", types=["semantic"], is_archived=None) == []


def test_a_summary_outlives_sources_that_are_purged(memories: AgentMemories, clock: Clock) -> None:
    garden = remember(memories, "garden", 4)
    summary = grow_old(memories, clock).changes[-1].memory_id
    memories.policies = MemoryPolicies(retention=RetentionRule(archive_below=0.0, purge_after_s=86_400.0))
    clock.now += 2 * DAY
    assert [one.action for one in memories.maintain().changes] == ["purged"] * 4
    assert memories.require(summary).sources == tuple(garden)
    assert memories.why(summary).sources == ()
    # Whoever asks for one of them to be erased still finds what is left of it.
    memories.erase(garden[0])
    assert memories.get(summary) is None


def test_summaries_move_with_the_rest(memories: AgentMemories, clock: Clock, tmp_path: Path) -> None:
    remember(memories, "garden", 4)
    summary = memories.require(grow_old(memories, clock).changes[-1].memory_id)
    memories.export_jsonl(tmp_path / "out")
    with agentdb.open(tmp_path / "other", config=Config(maintenance=False), embedder=Topics(64)) as other:
        other.memories.import_jsonl(tmp_path / "out")
        assert other.memories.require(summary.id) == summary
        assert len(other.memories.why(summary.id).sources) == 4


# --- the parts --------------------------------------------------------------------------------------------------------


def test_the_most_central_sentences_are_chosen_in_their_order() -> None:
    said = [
        Statement("We met at the harbour. The boat trip to the island was cancelled.", speaker="Ann"),
        Statement("The boat trip to the island was cancelled because of the storm!", speaker="Bob"),
        Statement("My sister likes tea.", speaker="Ann"),
        Statement("After the storm the boat went to the island.", speaker="Bob", occurred_at=START),
    ]
    summary = ExtractiveSummariser(share=0.4).summarise(said)
    lines = summary.split("\n")
    assert lines == ["Bob: The boat trip to the island was cancelled because of the storm!", lines[-1]]
    assert lines[-1] == "2026-01-01 Bob: After the storm the boat went to the island."
    assert "sister" not in summary
    assert ExtractiveSummariser(share=0.4).summarise(said) == summary


@pytest.mark.parametrize("texts", [["x"], ["!!!"], ["a", "a", "a"], ["...", "one. two. three"], ["\n\nline\nline\n"]])
def test_any_text_has_a_summary(texts: list[str]) -> None:
    summary = ExtractiveSummariser().summarise([Statement(one) for one in texts])
    assert summary.strip()
    assert len(summary) <= sum(len(one) for one in texts)


def test_a_summary_of_documents_stays_small() -> None:
    documents = [Statement("word " * 100_000), Statement("One is here. Two are there.\n" * 20_000)]
    assert len(ExtractiveSummariser().summarise(documents)) < 8 * 700


def test_neighbours_are_those_of_a_loop_over_all_pairs() -> None:
    rng = np.random.default_rng(1)
    rows, others = (rng.standard_normal((n, 8)).astype(np.float32) for n in (9, 70))
    others[40] = others[3]
    allowed = rng.random((9, 70)) < 0.7
    found = nearest_before(rows, others, allowed, 5, -0.5)
    for i, row in enumerate(rows):
        its = [(j, float(row @ others[j])) for j in range(70) if allowed[i, j] and row @ others[j] >= -0.5]
        wanted = sorted(its, key=lambda one: (-one[1], one[0]))[:5]
        assert [one for one, _ in found[i]] == [one for one, _ in wanted]
        np.testing.assert_allclose([one for _, one in found[i]], [one for _, one in wanted], rtol=1e-5)
    assert nearest_before(rows[:0], others, allowed[:0], 5, 0.0) == []
    assert nearest_before(rows[:0], others, allowed[:0], 5, 0.0, device="cpu") == []


def test_clusters_are_disjoint_and_near_their_leader() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((60, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = leaders(vectors, 0.6, least=3, most=7)
    members = [one for cluster in found for one in cluster]
    assert len(set(members)) == len(members) > 10
    for cluster in found:
        assert 3 <= len(cluster) <= 7
        assert any((vectors[cluster] @ vectors[one]).min() >= 0.6 - 1e-6 for one in cluster)


def test_a_device_says_what_the_host_says() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((50, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    host = leaders(vectors, 0.3, least=3, most=6)
    assert leaders(vectors, 0.3, least=3, most=6, device="cpu") == host
    before = np.tri(50, 70, -1, dtype=np.bool_)
    others = np.concatenate([vectors, vectors[:20]])
    near = nearest_before(vectors, others, before, 4, 0.2)
    on_device = nearest_before(vectors, others, before, 4, 0.2, device="cpu")
    assert [[at for at, _ in one] for one in on_device] == [[at for at, _ in one] for one in near]
    for mine, theirs in zip(on_device, near, strict=True):
        np.testing.assert_allclose([one for _, one in mine], [one for _, one in theirs], rtol=1e-5)
    relevance = rng.random(50)
    for diversity in (0.0, 0.3, 1.0):
        chosen = diverse(vectors, relevance, 8, diversity=diversity)
        assert diverse(vectors, relevance, 8, diversity=diversity, device="cpu") == chosen
        assert len(set(chosen)) == 8
    assert diverse(vectors, relevance, 8, diversity=0.0) == np.argsort(-relevance)[:8].tolist()
    tokens = [rng.integers(-127, 128, (size, 16)).astype(np.int8) for size in (1, 5, 2, 9)]
    query, weights = vectors[:4], rng.random(4).astype(np.float32)
    wanted = [float(((query @ one.T / 127).max(axis=1) * weights).sum()) for one in tokens]
    for device in (None, "cpu"):
        np.testing.assert_allclose(late_interaction(query, weights, tokens, device), wanted, rtol=1e-4)


def test_recall_can_be_diverse(memories: AgentMemories) -> None:
    remember(memories, "garden", 6)
    remember(memories, "cat", 1)
    query = "garden seen 1 times, cat"
    alike = [one.memory.text for one in memories.recall(query, agent_id="a", k=3, reinforce=False)]
    mixed = [one.memory.text for one in memories.recall(query, agent_id="a", k=3, diversity=0.7, reinforce=False)]
    assert alike[0] == mixed[0], "the first is the best"
    assert any("cat" in one for one in mixed)
    assert len(set(mixed)) == 3
    with pytest.raises(InvalidInputError, match="diversity"):
        memories.recall(query, agent_id="a", diversity=1.5)


@pytest.mark.parametrize(
    "options", [{"after_s": -1}, {"most_uses": 0}, {"cosine": 2}, {"least": 1}, {"least": 9, "most": 8}, {"most": 101}]
)
def test_a_rule_must_be_usable(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="CompressionRule"):
        CompressionRule(**options)


def test_the_device_of_the_configuration_is_what_memories_are_compared_on(
    memories: AgentMemories, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole recall and a whole compression, by torch on the processor where a GPU would be."""
    asked: list[str] = []
    for name in ("maxsim", "mmr", "near_duplicates", "nearest"):
        kernel = getattr(primitives, name)

        def counted(*given: Any, kernel: Any = kernel, name: str = name, **options: Any) -> Any:
            asked.append(name)
            assert options["device"] == "cpu"
            return kernel(*given, **options)

        monkeypatch.setattr(primitives, name, counted)
    memories._embedding._encoder = Encoder(HashingEmbedder(64))  # one that makes token vectors
    garden = remember(memories, "garden", 6)

    def recalled() -> list[tuple[str, float]]:
        found = memories.recall("garden 3 times", agent_id="a", k=4, diversity=0.3, reinforce=False)
        return [(one.memory.id, pytest.approx(one.score, abs=1e-4)) for one in found]

    on_the_host = recalled()
    assert asked == []
    memories._core.device = "cpu"  # what `Config.device` means is found once
    memories._core._cache = None
    assert recalled() == on_the_host
    assert set(asked) == {"maxsim", "mmr"}
    report = grow_old(memories, clock)
    assert [one.memory_id for one in report.changes if one.action == "compressed"] == garden
    assert {"near_duplicates", "nearest"} <= set(asked)


def test_without_a_device_torch_is_not_imported(tmp_path: Path) -> None:
    program = """
import sys
from datetime import UTC, datetime, timedelta

import agentdb
from agentdb import Config, MemoryWrite
from agentdb_embedders import HashingEmbedder

now = datetime(2026, 1, 1, tzinfo=UTC)
config = Config(clock=lambda: now, maintenance=False, device="cpu")
with agentdb.open(sys.argv[1], config=config, embedder=HashingEmbedder(64)) as db:
    db.memories.remember_many(
        MemoryWrite(content=f"The garden was seen {i} times", agent_id="a", importance=0.3) for i in range(6)
    )
    assert db.memories.recall("garden", agent_id="a", diversity=0.3)
    for days in (2, 90):
        now += timedelta(days=days)
        report = db.memories.maintain()
    assert "compressed" in {one.action for one in report.changes}
    assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "db")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
