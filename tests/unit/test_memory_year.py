"""A year of an agent's life under a simulated clock: what is used stays, what is not fades, facts end, and everything leaves a trace."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

import agentdb
from agentdb import Config, ContradictionRule, Memory, MemoryPolicies
from agentdb.memory import RetentionRule
from agentdb_embedders import HashingEmbedder

START = datetime(2026, 1, 1, 8, tzinfo=UTC)
DAY = timedelta(days=1)
SCOPE = {"agent_id": "assistant", "user_id": "bob"}
CITIES = ("Lisbon", "Porto", "Oslo", "Rome", "Vienna", "Madrid")
SUBJECTS = ("the garden", "the office", "the old car", "the choir", "the harbour", "the neighbours")
REMARKS = (
    "was quiet today",
    "took longer than planned",
    "was full of people",
    "looked better than before",
    "cost me {} euros",
)
SMALL_TALK = ("Hi!", "Thanks a lot!", "Okay, see you.", "How are you?", "Sounds good!")
PURGE_DAYS = 60
MOVES_EVERY = 25
"""Days after which Bob lives somewhere else."""


@dataclass
class Life:
    """What happened, as the simulation knows it."""

    remembered: dict[str, str] = field(default_factory=dict)
    """By id, what was said."""
    purged: set[str] = field(default_factory=set)
    active: list[int] = field(default_factory=list)
    """Memories at hand, every fifth night."""
    known: list[int] = field(default_factory=list)
    """All that are there, archived ones included."""
    actions: Counter[str] = field(default_factory=Counter)
    homes: list[tuple[datetime, str]] = field(default_factory=list)
    used: str = ""
    unused: str = ""
    ended: list[tuple[object, ...]] = field(default_factory=list)
    """Every memory at the end, as plain values, in order."""


def live(path: Path, days: int) -> Life:
    """Let an agent live: some remarks a day, a question now and then, upkeep every night."""
    rng, numbers, life = random.Random(1), count(), Life()
    now = START
    config = Config(clock=lambda: now, id_source=lambda: f"{next(numbers):08d}", maintenance=False, durability="normal")
    with agentdb.open(path, config=config, embedder=HashingEmbedder(96)) as db:
        memories = db.memories
        memories.policies = MemoryPolicies(
            working_items=4,
            retention=RetentionRule(purge_after_s=PURGE_DAYS * 86_400.0),
            contradiction=ContradictionRule(cosine=0.3),  # vectors of words alone are further apart
        )

        def remember(text: str, **options: object) -> Memory:
            made = memories.remember(
                text, agent_id="assistant", user_id="bob", session_id=f"day {day}", speaker="Bob", role="user",
                occurred_at=now, **options,
            )  # type: ignore[arg-type]  # fmt: skip
            life.remembered[made.id] = text
            return made

        for day in range(days):
            if day % MOVES_EVERY == 0:
                city = CITIES[day // MOVES_EVERY % len(CITIES)]
                life.homes.append((now, city))
                remember(f"I moved, I live in {city} now." if day else f"I live in {city}.")
            if day == 3:
                life.used = remember("The spare key lies under the blue pot.", importance=0.2).id
                life.unused = remember("A parcel lay behind the green door.", importance=0.2).id
            for _ in range(5):
                now += timedelta(minutes=rng.randrange(5, 60))
                subject = rng.choice(SUBJECTS)
                remark = rng.choice(REMARKS).format(rng.randrange(10, 900))
                text = rng.choice(SMALL_TALK) if rng.random() < 0.2 else f"{subject.capitalize()} {remark}."
                remember(text, tier=rng.choice(("working", "short_term")))
            if day % 7 == 5:
                assert memories.recall("Where is the spare key?", k=1, **SCOPE)[0].memory.id == life.used
            now = START + day * DAY + timedelta(hours=18)
            report = memories.maintain()
            assert report.is_complete
            life.actions.update(one.action for one in report.changes)
            life.purged |= {one.memory_id for one in report.changes if one.action == "purged"}
            if day % 5 == 0:
                everything = memories.list(is_archived=None, limit=100_000, **SCOPE)
                life.known.append(len(everything))
                life.active.append(sum(one.status == "active" for one in everything))
            now = START + (day + 1) * DAY
        check_traces(memories, life)
        check_time(memories, life)
        for one in sorted(memories.list(is_archived=None, limit=100_000, **SCOPE), key=lambda one: one.id):
            events = tuple((event.at, event.action, event.reason) for event in memories.history(one.id))
            life.ended.append((one.id, one.text, one.tier, one.status, one.uses, one.valid_to, one.sources, events))
    return life


def check_traces(memories: agentdb.AgentMemories, life: Life) -> None:
    """Every memory that was ever given is at hand, archived with a reason, or purged with a report of it."""
    for memory_id in life.remembered:
        memory = memories.get(memory_id)
        if memory is None:
            assert memory_id in life.purged, life.remembered[memory_id]
            continue
        history = memories.history(memory_id)
        if memory.status == "archived":
            last = history[-1]
            assert last.action == "archived"
            assert any(why in last.reason for why in ("retention", "says the same as", "summarised in")), last.reason
        elif memory.recorded_at < memories._core.now() - 3 * DAY:
            assert memory.tier == "long_term"
            assert "moved" in [event.action for event in history]
    assert memories.require(life.used).status == "active", "what is used stays"
    if memories._core.now() > START + 55 * DAY:
        unused = memories.get(life.unused)
        assert unused is None or unused.status == "archived", "what is not used fades"


def check_time(memories: agentdb.AgentMemories, life: Life) -> None:
    """Of where Bob lives, one memory is true at any time: the one of that time."""
    for since, city in life.homes[-2:]:
        at = since + MOVES_EVERY / 2 * DAY
        found = memories.recall("Where do I live?", k=3, valid_at=at, reinforce=False, **SCOPE)
        homes = [one.memory.text for one in found if "I live in" in one.memory.text]
        assert len(homes) == 1, homes
        assert city in homes[0]


def check_sizes(life: Life, *, settled: int) -> None:
    """From some day on, what is at hand grows no more, though every day brings the same."""
    before, after = (
        life.active[settled : (settled + len(life.active)) // 2],
        life.active[(settled + len(life.active)) // 2 :],
    )
    assert max(after) <= 1.25 * max(before), (max(before), max(after))
    assert max(life.active) < len(life.remembered) / 2


def test_a_season_of_a_life(tmp_path: Path) -> None:
    life = live(tmp_path / "one", 60)
    assert {"moved", "merged", "closed", "compressed", "derived"} <= set(life.actions)
    assert len(life.remembered) > 250


@pytest.mark.slow
def test_a_year_of_a_life(tmp_path: Path) -> None:
    life = live(tmp_path / "one", 365)
    assert set(life.actions) == {"moved", "merged", "closed", "compressed", "derived", "archived", "purged"}
    check_sizes(life, settled=30)
    assert max(life.known[50:]) <= 1.25 * max(life.known[30:50]), "what is archived is purged in time"
    again = live(tmp_path / "two", 365)
    assert again.ended == life.ended
    assert again.known == life.known


def test_the_same_life_ends_the_same(tmp_path: Path) -> None:
    assert live(tmp_path / "one", 12).ended == live(tmp_path / "two", 12).ended
