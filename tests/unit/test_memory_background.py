"""Upkeep in the background: by the engine's maintenance, once in a while for each agent, shared by processes, off by a policy."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import agentdb
from agentdb import Config, MemoryPolicies, MemoryWrite
from agentdb_embedders import HashingEmbedder

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(db_path: Path, clock: Clock) -> Iterator[agentdb.Database]:
    """A database whose upkeep runs when the test says so: ``optimize`` runs jobs to their end."""
    with agentdb.open(db_path, config=Config(clock=clock, maintenance=False), embedder=HashingEmbedder(32)) as opened:
        yield opened


def job(db: agentdb.Database) -> Callable[[float], bool]:
    return db.memories._background.run


def run(db: agentdb.Database, steps: int = 1_000) -> int:
    """Run the job as the engine does, a moment at a time, until nothing is left; return how often."""
    db.memories._background._next_look = -1.0
    return next(i for i in range(1, steps) if not job(db)(time.monotonic() + 0.05))


def tiers(db: agentdb.Database, agent_id: str) -> set[str]:
    return {one.tier for one in db.memories.list(agent_id=agent_id, limit=10_000)}


def test_every_agent_is_kept_up_in_the_background(db: agentdb.Database, clock: Clock) -> None:
    writes = [MemoryWrite(content=f"number {i} is {i * i}", agent_id=f"a{i % 3}") for i in range(200)]
    db.memories.remember_many(writes)
    run(db)
    assert db.memories.upkeep_report() == agentdb.MaintenanceReport(), "nothing has settled yet"
    clock.now += DAY
    run(db)
    report = db.memories.upkeep_report()
    assert report.is_complete
    assert [one.action for one in report.changes] == ["moved"] * 200
    assert all(tiers(db, f"a{i}") == {"long_term"} for i in range(3))


def test_the_maintenance_thread_does_it(db_path: Path) -> None:
    policies = MemoryPolicies(consolidate_after_s=0)
    with agentdb.open(db_path, config=Config(tick_s=0.01), embedder=HashingEmbedder(32)) as db:
        db.memories.policies = policies
        made = db.memories.remember("I have a cat.", agent_id="a")
        deadline = time.monotonic() + 60
        while db.memories.require(made.id).tier != "long_term" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert db.memories.require(made.id).tier == "long_term"


def test_a_look_before_the_first_memory_is_repeated_at_once(
    db: agentdb.Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.memories.remember("I have a cat.", agent_id="a")
    clock.now += DAY
    with monkeypatch.context() as early:
        early.setattr(db.memories._upkeep, "agents", list)
        assert not job(db)(time.monotonic() + 60)
    while job(db)(time.monotonic() + 60):
        pass
    assert tiers(db, "a") == {"long_term"}


def test_optimize_brings_it_to_its_end(db: agentdb.Database, clock: Clock) -> None:
    db.memories.remember_many(MemoryWrite(content=f"number {i} is {i * i}", agent_id="a") for i in range(100))
    clock.now += DAY
    db.optimize()
    assert tiers(db, "a") == {"long_term"}


def test_it_is_due_by_the_databases_clock_and_for_all_processes(db: agentdb.Database, clock: Clock) -> None:
    db.memories.policies = MemoryPolicies(consolidate_after_s=0, upkeep_every_s=3_600)
    db.memories.remember("one", agent_id="a")
    run(db)
    db.memories.remember("two", agent_id="a")
    clock.now += timedelta(minutes=59)
    run(db)
    assert len(db.memories.upkeep_report().changes) == 1, "an hour is not over"
    with agentdb.open(db.path, embedder=HashingEmbedder(32)) as other:
        other.memories.policies = db.memories.policies
        other.memories.recall("one", agent_id="a", reinforce=False)
        clock.now += timedelta(minutes=1)
        run(other)
        assert len(other.memories.upkeep_report().changes) == 1
    run(db)
    assert len(db.memories.upkeep_report().changes) == 1, "the other handle was quicker"
    assert tiers(db, "a") == {"long_term"}


def test_a_policy_turns_it_off(db: agentdb.Database, clock: Clock) -> None:
    db.memories.policies = MemoryPolicies(consolidate_after_s=0, upkeep_every_s=None)
    db.memories.remember("one", agent_id="a")
    clock.now += DAY
    db.optimize()
    assert tiers(db, "a") == {"short_term"}
    assert [one.action for one in db.memories.maintain("a").changes] == ["moved"]


def test_no_embedder_is_loaded_for_it(db_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with agentdb.open(db_path, config=Config(clock=clock, maintenance=False), embedder=HashingEmbedder(32)) as db:
        db.memories.remember("one", agent_id="a")
    clock.now += DAY

    def loaded(*_: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr("agentdb.database.load_embedder", loaded)
    with agentdb.open(db_path, config=Config(clock=clock, maintenance=False)) as db:
        db.optimize()
        assert tiers(db, "a") == {"short_term"}


def test_a_process_without_an_embedder_leaves_the_rest_to_others(
    db_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> Any:
        raise agentdb.MissingDependencyError("none")

    config = Config(clock=clock, maintenance=False)
    monkeypatch.setattr("agentdb.database.load_embedder", none)
    with agentdb.open(db_path, config=config) as db:
        faded = db.memories.remember("one", agent_id="a", importance=0.1)
        kept = db.memories.remember("two", agent_id="a", importance=0.9)
        clock.now += 60 * DAY
        run(db)
        assert db.memories.require(faded.id).status == "archived"
        assert db.memories.require(kept.id).tier == "short_term"
    with agentdb.open(db_path, config=config, embedder=HashingEmbedder(32)) as db:
        db.memories.recall("two", agent_id="a", reinforce=False)
        run(db)
        assert db.memories.require(kept.id).tier == "long_term"


def test_a_step_ends_at_the_deadline_and_the_next_goes_on(db: agentdb.Database, clock: Clock) -> None:
    db.memories.remember_many(MemoryWrite(content=f"number {i} is {i * i}", agent_id="a") for i in range(300))
    clock.now += DAY
    db.memories._background._next_look = -1.0
    seen = [0]
    more = True
    while more:
        more = job(db)(time.monotonic())
        worker = db.memories._background._worker
        assert worker is not None
        worker.join(60)
        more = more or not db.memories.upkeep_report().is_complete
        seen.append(len(db.memories.upkeep_report().changes))
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert max(steps) <= 32, "one step, and no more, behind the deadline"
    assert seen[-1] == 300


def test_a_failure_is_noted_and_the_other_agents_are_kept_up(
    db: agentdb.Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for agent in ("a", "b"):
        db.memories.remember("one", agent_id=agent)
    clock.now += DAY
    begin = db.memories._upkeep.begin

    def failing(agent_id: str, **options: Any) -> Any:
        if agent_id == "a":
            raise agentdb.StorageError("no turn", retryable=True)
        return begin(agent_id, **options)

    monkeypatch.setattr(db.memories._upkeep, "begin", failing)
    run(db)
    assert db.memories.upkeep_report().notes == ("upkeep failed: no turn",)
    assert (tiers(db, "a"), tiers(db, "b")) == ({"short_term"}, {"long_term"})
    monkeypatch.undo()
    run(db)
    assert tiers(db, "a") == {"long_term"}, "the next look finds it due"


def test_a_slow_plugin_does_not_hold_up_the_engine(db: agentdb.Database, clock: Clock) -> None:
    asked, answer = threading.Event(), threading.Event()

    class Slow:
        cosine = -1.0

        def supersedes(self, newer: Any, older: Any, cosine: float) -> str | None:
            asked.set()
            answer.wait(60)
            return None

    db.memories.policies = MemoryPolicies(contradiction=Slow())
    db.memories.remember("I have a cat.", agent_id="a")
    db.memories.remember("I have a dog.", agent_id="a")
    clock.now += DAY
    db.memories._background._next_look = -1.0
    while not asked.is_set():  # on a busy machine a step before it may have passed the deadline
        assert job(db)(time.monotonic() + 0.01), "the job comes back; the work goes on"
    assert tiers(db, "a") == {"short_term"}
    db.memories.remember("nobody waits for it", agent_id="a")
    answer.set()
    clock.now += DAY
    run(db)
    run(db)
    assert tiers(db, "a") == {"long_term"}


def test_tasks_remember_recall_and_keep_up(db_path: Path, clock: Clock) -> None:
    async def live() -> None:
        config = Config(clock=clock, maintenance=False)
        async with agentdb.open_async(db_path, config=config, embedder=HashingEmbedder(32)) as db:
            memories = db.memories
            memories.policies = MemoryPolicies(consolidate_after_s=0)
            made = await asyncio.gather(*(memories.remember(f"number {i}", agent_id="a") for i in range(8)))
            found = await memories.recall("number 3", agent_id="a", k=1, explain=True)
            assert found[0].memory.text == "number 3"
            assert len(await memories.recall_many(["number 1", "number 2"], agent_id="a", k=2)) == 2
            assert "number 4" in (await memories.context("number 4", agent_id="a", token_budget=100)).text
            report = await memories.maintain("a")
            assert {one.memory_id for one in report.changes} == {one.id for one in made}
            assert (await memories.upkeep_report()).is_complete

    asyncio.run(live())
