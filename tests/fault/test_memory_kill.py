"""Upkeep that is killed at any write of any step ends, when it is run again, as one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agentdb

PROGRAM = """
import os, signal, sys
from datetime import UTC, datetime, timedelta
import agentdb
from agentdb import CompressionRule, Config, MemoryPolicies, MemoryWrite
from agentdb.memory import RetentionRule
from agentdb_embedders import HashingEmbedder

START, DAY = datetime(2026, 1, 1, tzinfo=UTC), timedelta(days=1)
now = START

def facts(prompt):
    return "Bob has a cat called Tom." if "Tom" in prompt else "NONE"

POLICIES = MemoryPolicies(
    extractor=facts,
    compression=CompressionRule(cosine=-1.0, least=3, most=6, importance_below=0.6),
    retention=RetentionRule(purge_after_s=30 * 86_400.0),
)
# Each phase: when, and what upkeep has to do then.
PHASES = [("consolidate", 2), ("settle facts", 4), ("compress", 60), ("archive", 400), ("purge", 500)]

def opened(path):
    db = agentdb.open(path, config=Config(clock=lambda: now, maintenance=False), embedder=HashingEmbedder(48))
    db.memories.policies = POLICIES
    return db

def fill(path):
    said = [f"I went to the market {i} times" for i in range(7)] + ["My cat Tom is ill", "I live in Lisbon near the harbour"]
    with opened(path) as db:
        for one in said:
            db.memories.remember(one, agent_id="a", session_id="s", speaker="Bob", importance=0.3)
        db.memories.remember("Bob said hello", agent_id="a", session_id="s", tier="working", importance=0.3)
        db.memories.remember("I do not live in Lisbon near the harbour", agent_id="a", session_id="t", speaker="Bob", importance=0.9)
        db.memories.remember("I went to the market 3 times!", agent_id="a", session_id="t", speaker="Bob", importance=0.3)

def keep_up(path, since, kill_at=0):
    global now
    count = 0
    def counted(method):
        def call(table, *args, **kwargs):
            nonlocal count
            count += 1
            print("write", count, flush=True)
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(table, *args, **kwargs)
        return call
    for name in ("put_many", "put", "erase_many"):
        setattr(agentdb.Table, name, counted(getattr(agentdb.Table, name)))
    with opened(path) as db:
        for name, day in PHASES[since:]:
            print("phase", name, flush=True)
            now = START + day * DAY
            db.memories._background._next_look = -1.0
            db.memories.recall("nothing", agent_id="other", reinforce=False)  # this process uses memories
            db.optimize()
            assert db.memories.maintain().changes == ()

def state(path):
    global now
    now = START + 500 * DAY
    with opened(path) as db:
        memories = db.memories
        all_of = memories.list(agent_id="a", is_archived=None, limit=1_000)
        texts = {one.id: one.text for one in all_of}
        found = sorted(
            (one.text, one.tier, one.status, one.origin, one.uses, str(one.valid_to),
             sorted(texts.get(its, "purged") for its in one.sources),
             [its.action for its in memories.history(one.id)])
            for one in all_of
        )
        assert db.verify().ok
        return found

if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(sys.argv[2])
    else:
        keep_up(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        print("state", state(sys.argv[2]))
"""


class Killable:
    """Runs the program above in processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "program.py").write_text(PROGRAM)

    def run(self, *arguments: object, killed: bool = False) -> list[str]:
        command = [sys.executable, str(self.folder / "program.py"), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(Path(agentdb.__file__).parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
        assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def killable(tmp_path_factory: pytest.TempPathFactory) -> Killable:
    return Killable(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def whole(killable: Killable) -> tuple[list[str], str]:
    """What upkeep prints, and how it ends, when nobody kills it."""
    killable.run("fill", killable.folder / "start")
    shutil.copytree(killable.folder / "start", killable.folder / "whole")
    printed = killable.run("keep", killable.folder / "whole", 0, 0)
    return printed[:-1], printed[-1]


def phases(printed: list[str]) -> list[str]:
    return [line.removeprefix("phase ") for line in printed if line.startswith("phase ")]


def kill(killable: Killable, at: int) -> str:
    """Kill upkeep at its n-th write, let another process end it, and return how it ends."""
    path = killable.folder / f"killed-{at}"
    shutil.copytree(killable.folder / "start", path)
    printed = killable.run("keep", path, 0, at, killed=True)
    assert printed[-1] == f"write {at}"
    ended = killable.run("keep", path, len(phases(printed)) - 1, 0)[-1]
    shutil.rmtree(path)
    return ended


def test_upkeep_does_everything_there_is(whole: tuple[list[str], str]) -> None:
    printed, state = whole
    assert phases(printed) == ["consolidate", "settle facts", "compress", "archive", "purge"]
    found: list[Any] = eval(state.removeprefix("state "))
    assert {one[3] for one in found} == {None, "summary", "fact"}
    assert any("purged" in one[6] for one in found), "a summary outlives its sources"
    assert any(one[5] != "None" for one in found), "a contradiction closed an interval"


def writes_of(printed: list[str]) -> dict[str, list[int]]:
    """Return the numbers of the writes of each phase."""
    found: dict[str, list[int]] = {}
    for line in printed:
        word, _, rest = line.partition(" ")
        if word == "phase":
            current = found.setdefault(rest, [])
        elif word == "write":
            current.append(int(rest))
    return found


def test_a_kill_in_the_middle_changes_nothing(killable: Killable, whole: tuple[list[str], str]) -> None:
    """In the two kinds of steps that write the most tables; the slow test below is killed everywhere."""
    printed, expected = whole
    for phase, writes in writes_of(printed).items():
        if phase in ("compress", "purge"):
            assert kill(killable, writes[len(writes) // 2]) == expected, phase


@pytest.mark.slow
def test_a_kill_at_any_write_changes_nothing(killable: Killable, whole: tuple[list[str], str]) -> None:
    printed, expected = whole
    for at in (one for writes in writes_of(printed).values() for one in writes):
        assert kill(killable, at) == expected, at
