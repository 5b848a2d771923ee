"""Upkeep of memories on a real database: what moves, is merged, closed, archived, purged, and what it says about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agentdb
from agentdb import Config, MemoryPolicies, MemoryWrite
from agentdb.errors import InvalidInputError, UnavailableError
from agentdb.memory import AgentMemories
from agentdb.memory.encoding import Encoder
from agentdb.memory.policies import RetentionRule
from agentdb_embedders import HashingEmbedder

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


class Topics(HashingEmbedder):
    """Texts that share a topic word have nearly the same vector, so that tests say what is near in meaning."""

    def embed(self, texts: Sequence[str], kind: Any = "document") -> Any:
        found = np.full((len(texts), self.dimension), 0.001, np.float32)
        for i, text in enumerate(texts):
            for j, topic in enumerate(("live", "cat", "flight", "eat", "weather")):
                found[i, j] = float(topic in text.casefold())
        return found

    embed_tokens = None  # type: ignore[assignment]  # vectors only


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memories(db_path: Path, clock: Clock) -> Iterator[AgentMemories]:
    with agentdb.open(db_path, config=Config(clock=clock, maintenance=False), embedder=Topics(16)) as db:
        yield db.memories


def test_short_term_memory_settles_after_a_day(memories: AgentMemories, clock: Clock) -> None:
    made = memories.remember("I have a cat.", agent_id="a")
    skill = memories.remember("How to eat soup", agent_id="a", memory_type="procedural")
    assert memories.maintain("a").changes == ()
    clock.now += DAY
    report = memories.maintain("a")
    assert report.is_complete
    assert {one.memory_id: one.action for one in report.changes} == {made.id: "moved", skill.id: "moved"}
    settled = memories.require(made.id)
    assert (settled.tier, settled.memory_type) == ("long_term", "episodic")
    assert memories.require(skill.id).memory_type == "procedural"
    event = memories.history(made.id)[-1]
    assert (event.action, event.before) == ("moved", {"tier": "short_term", "memory_type": None})
    assert memories.maintain("a").changes == ()


def test_working_memory_of_an_ended_session_moves_on(memories: AgentMemories, clock: Clock) -> None:
    old = memories.remember("My cat at hand", agent_id="a", session_id="s", tier="working")
    clock.now += DAY / 2
    new = memories.remember("My flight at hand", agent_id="a", session_id="s", tier="working")
    assert memories.maintain("a").changes == ()
    clock.now += DAY / 2
    report = memories.maintain("a")
    assert [one.memory_id for one in report.changes] == [old.id, old.id], "it is old enough for long-term memory, too"
    assert [one.before.get("tier") for one in memories.history(old.id)] == [None, "working", "short_term"]
    assert memories.require(new.id).tier == "working"
    memories.policies = MemoryPolicies(working_items=1)
    memories.remember("newest", agent_id="a", session_id="s", tier="working")
    assert memories.require(new.id).tier == "short_term", "the session counts what is left of it"


def test_what_says_the_same_is_merged_and_counted(memories: AgentMemories, clock: Clock) -> None:
    first = memories.remember("I have a cat.", agent_id="a", session_id="s")
    clock.now += timedelta(hours=1)
    again = memories.remember("I do have a cat!", agent_id="a", session_id="t")
    elsewhere = memories.remember("I have a cat!", agent_id="a", user_id="u")
    other = memories.remember("I have a cat, too.", agent_id="a", speaker="Bob")
    clock.now += DAY
    report = memories.maintain()
    actions = {one.memory_id: one.action for one in report.changes}
    assert actions == {first.id: "moved", again.id: "merged", elsewhere.id: "moved", other.id: "moved"}
    kept = memories.require(first.id)
    assert (kept.sources, kept.uses, kept.last_used_at) == ((again.id,), 2, START + timedelta(hours=1))
    assert memories.require(again.id).status == "archived"
    assert memories.history(again.id)[-1].reason == f"says the same as {first.id}"
    clock.now += DAY
    third = memories.remember("I have a cat, yes.", agent_id="a")
    clock.now += DAY
    memories.maintain()
    assert memories.require(first.id).sources == (again.id, third.id)


def test_a_memory_says_why_it_is_as_it_is(memories: AgentMemories, clock: Clock) -> None:
    first = memories.remember("I have a cat.", agent_id="a", importance=0.4)
    clock.now += timedelta(hours=1)
    again = memories.remember("I do have a cat!", agent_id="a")
    clock.now += DAY
    memories.maintain("a")
    trace = memories.why(first.id)
    assert trace.memory == memories.require(first.id)
    assert [one.action for one in trace.events] == ["remembered", "moved"]
    assert [one.id for one in trace.sources] == [again.id]
    assert trace.derived == ()
    assert [one.id for one in memories.why(again.id).derived] == [first.id]
    # Two uses double the strength of a half-life of thirty days; a day has passed since the last.
    assert trace.activation == pytest.approx(0.5 ** (1 / 60))
    assert trace.retention == pytest.approx(0.5 * trace.activation + 0.5 * 0.4)
    memories.erase(again.id)
    assert memories.why(first.id).sources == ()


def test_upkeep_that_is_interrupted_anywhere_ends_as_one_that_is_not(tmp_path: Path) -> None:
    said = [f"{'I live in' if i % 3 else 'My cat'} {i % 7}" for i in range(20)]
    said += [f"I moved, I live in place {i} now" for i in range(5)] + ["My weather!", "My weather"]

    class StopError(Exception):
        pass

    def run(name: str, failing: int | None) -> tuple[int, Any]:
        clock, count = Clock(), 0
        numbers = iter(range(10_000))
        config = Config(clock=clock, maintenance=False, id_source=lambda: f"{next(numbers):08d}")
        with agentdb.open(tmp_path / name, config=config, embedder=Topics(16)) as db:
            memories = db.memories
            memories.policies = MemoryPolicies(compression=None)
            memories.remember_many(MemoryWrite(content=one, agent_id="a", importance=0.2) for one in said)
            clock.now += 2 * DAY
            put_many = agentdb.Table.put_many

            def counted(table: agentdb.Table, rows: Any) -> int:
                nonlocal count
                count += 1
                if count == failing:
                    raise StopError
                return put_many(table, rows)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(agentdb.Table, "put_many", counted)
                for wait in (0, 400):
                    clock.now += wait * DAY
                    try:
                        while not memories.maintain("a", limit=6).is_complete:
                            pass
                    except StopError:
                        while not memories.maintain("a", limit=6).is_complete:
                            pass
            rows = memories.list(agent_id="a", is_archived=None, limit=1_000)
            state = {
                one.text: (
                    one.tier,
                    one.status,
                    one.valid_to,
                    one.uses,
                    len(one.sources),
                    len(memories.history(one.id)),
                )
                for one in rows
            }
            return count, state

    total, expected = run("whole", None)
    assert total > 10
    assert {one[1] for one in expected.values()} == {"archived"}
    for failing in range(1, total + 1, 3):
        assert run(f"stopped-{failing}", failing)[1] == expected


def test_a_contradiction_closes_the_old_interval_and_deletes_nothing(memories: AgentMemories, clock: Clock) -> None:
    old = memories.remember("I live in Lisbon.", agent_id="a")
    clock.now += 10 * DAY
    moved_at = clock.now - DAY
    new = memories.remember("I moved, I live in Porto now.", agent_id="a", occurred_at=moved_at)
    clock.now += 2 * DAY
    report = memories.maintain("a")
    closed = [one for one in report.changes if one.action == "closed"]
    assert [(one.memory_id, one.reason) for one in closed] == [(old.id, f"said to have changed: {new.id}")]
    assert memories.require(old.id).valid_to == memories.require(new.id).valid_from == moved_at
    assert memories.require(old.id).status == "active"
    closing = [one for one in memories.history(old.id) if new.id in one.reason]
    assert [(one.action, one.before["valid_to"]) for one in closing] == [("updated", None)]

    def recalled(**options: Any) -> list[str]:
        return [one.memory.id for one in memories.recall("live", agent_id="a", reinforce=False, **options)]

    assert recalled() == [new.id]
    assert recalled(valid_at=moved_at - DAY) == [old.id]
    assert memories.maintain("a").changes == ()


def test_what_becomes_true_again_is_a_memory_of_its_own(memories: AgentMemories, clock: Clock) -> None:
    said = ["I live in Lisbon now.", "I moved, I live in Porto now.", "I live in Lisbon now."]
    homes = []
    for i, text in enumerate(said):
        homes.append(memories.remember(text, agent_id="a", session_id=str(i)))
        clock.now += 10 * DAY
        memories.maintain("a")
    assert [memories.require(one.id).status for one in homes] == ["active"] * 3
    for one, text in zip(homes, said, strict=True):
        at = one.recorded_at + 5 * DAY
        found = memories.recall("Where do I live?", agent_id="a", valid_at=at, reinforce=False)
        assert [(its.memory.id, its.memory.text) for its in found] == [(one.id, text)]


def test_what_is_said_again_after_it_ended_is_no_repeat(memories: AgentMemories, clock: Clock) -> None:
    said = ["I live in Lisbon now.", "I moved, I live in Porto now.", "I live in Lisbon now."]
    homes = []
    for text in said:
        homes.append(memories.remember(text, agent_id="a", session_id="s"))
        clock.now += 10 * DAY
        memories.maintain("a")
    assert len({one.id for one in homes}) == 3
    found = memories.recall("Where do I live?", agent_id="a", reinforce=False)
    assert [one.memory.id for one in found] == [homes[2].id]


def test_an_old_chat_told_later_overtakes_nothing(memories: AgentMemories, clock: Clock) -> None:
    today = memories.remember("I live in Lisbon.", agent_id="a", occurred_at=START - DAY)
    old = memories.remember("I moved, I live in Porto now.", agent_id="a", occurred_at=START - 1_000 * DAY)
    until = START - 500 * DAY
    memories.remember("I changed, I live in Faro now.", agent_id="a", valid_to=until, occurred_at=START)
    clock.now += 2 * DAY
    memories.maintain("a")
    assert memories.require(today.id).valid_to is None
    assert [one.memory.id for one in memories.recall("live", agent_id="a", reinforce=False)][:1] == [today.id]
    assert all(one.valid_from is None for one in memories.list(agent_id="a") if one.valid_to is not None)
    assert memories.require(old.id).status == "active"


def test_what_was_merged_and_brought_back_is_not_merged_again(memories: AgentMemories, clock: Clock) -> None:
    first = memories.remember("I have a cat.", agent_id="a", session_id="s")
    again = memories.remember("I do have a cat!", agent_id="a", session_id="t")
    for _ in range(2):
        clock.now += 2 * DAY
        memories.maintain("a")
        memories.restore(again.id)
    assert memories.maintain("a").changes == ()
    assert memories.require(first.id).sources == (again.id,)
    assert (memories.require(again.id).status, memories.require(again.id).tier) == ("active", "long_term")


def test_nothing_is_merged_into_what_is_retracted(memories: AgentMemories, clock: Clock) -> None:
    wrong = memories.remember("I have a cat.", agent_id="a", session_id="s")
    clock.now += DAY
    memories.update(wrong.id, retracted_at=clock.now)
    again = memories.remember("I do have a cat!", agent_id="a", session_id="t")
    clock.now += 2 * DAY
    memories.maintain("a")
    assert memories.require(again.id).status == "active"


def test_the_faded_is_archived_the_used_and_the_important_stay(memories: AgentMemories, clock: Clock) -> None:
    faded = memories.remember("The weather was fine.", agent_id="a", importance=0.2)
    used = memories.remember("I have a cat.", agent_id="a", importance=0.2)
    important = memories.remember("My flight is at 9.", agent_id="a", importance=0.95)
    for _ in range(30):
        clock.now += 10 * DAY
        memories.recall("cat", agent_id="a", k=1)
        memories.maintain("a")
    assert memories.require(faded.id).status == "archived"
    assert "retention" in memories.history(faded.id)[-1].reason
    assert memories.require(used.id).status == "active"
    assert memories.require(important.id).status == "active"
    assert memories.restore(faded.id) == 1


def test_what_was_archived_long_ago_is_purged_if_asked_to(memories: AgentMemories, clock: Clock, db_path: Path) -> None:
    memories.policies = MemoryPolicies(retention=RetentionRule(purge_after_s=10 * 86_400.0))
    gone = memories.remember("The weather was quuxfine.", agent_id="a", importance=0.9)
    stays = memories.remember("I have a cat.", agent_id="a", importance=0.9)
    memories.forget([gone.id, stays.id])
    memories.restore(stays.id)
    clock.now += 9 * DAY
    memories.maintain("a")
    assert memories.get(gone.id) is not None
    clock.now += DAY
    report = memories.maintain("a")
    assert [(one.memory_id, one.action) for one in report.changes if one.action == "purged"] == [(gone.id, "purged")]
    assert memories.get(gone.id) is None
    assert memories.get(stays.id) is not None
    assert b"quuxfine" not in b"".join(one.read_bytes() for one in db_path.rglob("*") if one.is_file())


def test_what_is_restored_stays_and_a_purge_sees_it(memories: AgentMemories, clock: Clock) -> None:
    memories.policies = MemoryPolicies(retention=RetentionRule(purge_after_s=30 * 86_400))
    made = memories.remember("The weather was fine.", agent_id="a", importance=0.1)
    clock.now += 400 * DAY
    assert memories.maintain("a").changes[-1].action == "archived"
    memories.restore(made.id)
    assert memories.maintain("a").changes == ()
    memories.forget(made.id)
    clock.now += 29 * DAY
    assert memories.maintain("a").changes == (), "the days of grace begin anew"
    purge = memories._eraser.purge
    clock.now += DAY

    def too_late(ids: Sequence[str]) -> list[str]:
        memories.restore(ids)  # between plan and write
        return purge(ids)

    memories._eraser.purge = too_late  # type: ignore[method-assign]
    assert memories.maintain("a").changes == ()
    assert memories.require(made.id).status == "active"


def test_working_memory_that_is_archived_has_its_days_of_grace(memories: AgentMemories, clock: Clock) -> None:
    memories.policies = MemoryPolicies(
        working_items=1, archive_importance_below=0.2, retention=RetentionRule(purge_after_s=30 * 86_400)
    )
    made = memories.remember("Hi! Thanks.", agent_id="a", session_id="s", tier="working")
    clock.now += 31 * DAY
    memories.remember("I have a cat.", agent_id="a", session_id="s", tier="working")
    memories.maintain("a")
    assert memories.require(made.id).status == "archived"
    clock.now += 30 * DAY
    memories.maintain("a")
    assert memories.get(made.id) is None


def test_upkeep_is_not_complete_before_all_is_embedded(memories: AgentMemories, clock: Clock) -> None:
    writes = [MemoryWrite(content=f"flight {i}", agent_id="a", tier="long_term") for i in range(600)]
    memories.remember_many(
        [*writes, *(replace(one, content=f"cat {i}", tier=None) for i, one in enumerate(writes[:5]))]
    )
    memories._embedding._encoder = Encoder(Topics(24))  # another one: all are to be embedded anew, the oldest first
    clock.now += 2 * DAY
    memories.maintain("a")
    assert memories.list(agent_id="a", tiers=["short_term"]) == []


def test_a_limited_run_is_taken_up_by_the_next(memories: AgentMemories, clock: Clock) -> None:
    memories.remember_many(MemoryWrite(content=f"number {i} is {i * i}", agent_id="a") for i in range(300))
    memories.remember_many(MemoryWrite(content=f"number {i} is {i * i}", agent_id="b") for i in range(5))
    clock.now += DAY
    first = memories.maintain(limit=150)
    assert (len(first.changes), first.is_complete) == (150, False)
    second = memories.maintain(limit=1_000)
    assert (len(second.changes), second.is_complete) == (155, True)
    assert not {one.memory_id for one in first.changes} & {one.memory_id for one in second.changes}


def test_without_an_embedder_short_term_memory_waits_and_the_faded_goes(
    db_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> Any:
        raise agentdb.MissingDependencyError("none")

    monkeypatch.setattr("agentdb.database.load_embedder", none)
    with agentdb.open(db_path, config=Config(clock=clock, maintenance=False)) as db:
        made = db.memories.remember("The weather was fine.", agent_id="a", importance=0.1)
        clock.now += DAY
        assert db.memories.maintain("a").changes == ()
        clock.now += 365 * DAY
        assert [one.action for one in db.memories.maintain("a").changes] == ["archived"]
        assert db.memories.require(made.id).tier == "short_term"


def test_a_memory_that_changed_meanwhile_is_left_alone(memories: AgentMemories, clock: Clock) -> None:
    first = memories.remember("I have a cat.", agent_id="a", session_id="s")
    clock.now += timedelta(hours=1)
    again = memories.remember("I do have a cat!", agent_id="a", session_id="t")
    clock.now += DAY
    upkeep = memories._upkeep
    apply = upkeep._apply

    def late(plan: Any) -> Any:
        if plan.repeated:
            memories.forget(first.id)
        return apply(plan)

    upkeep._apply = late  # type: ignore[method-assign]
    memories.maintain("a")
    del upkeep._apply
    assert memories.require(again.id).status == "active", "what it was to be merged into is forgotten"


def test_where_upkeep_cannot_run(db_path: Path) -> None:
    with agentdb.open(db_path, embedder=Topics(16)) as db:
        assert db.memories.maintain() == agentdb.MaintenanceReport()
        with db.transaction(), pytest.raises(UnavailableError):
            db.memories.maintain()
        with pytest.raises(InvalidInputError):
            db.memories.maintain("a", limit=0)
