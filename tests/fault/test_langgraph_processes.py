"""Several processes on one thread, and processes that die in mid-run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from support import langgraph_workers as workers

import agentdb
from langgraph_agentdb import AgentDBSaver

TESTS = Path(__file__).parents[1]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "support.langgraph_workers", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.timeout(300)
def test_killed_in_mid_run_and_resumed_by_another_process(tmp_path, mode):
    expected = workers.graph(InMemorySaver(), None, 0).invoke(
        {"messages": [workers.HumanMessage("count", id="human")], "done": []}, workers.config("thread")
    )
    journal, path = tmp_path / "journal", tmp_path / "db"
    source = random.Random(mode)
    kills = 0
    for _ in range(4):
        worker = start("agent", path, journal, 0.02, mode)
        seen = len(journal.read_text().splitlines()) if journal.exists() else 0
        wanted = seen + source.randint(3, 9)
        deadline = time.monotonic() + 60
        while worker.poll() is None and time.monotonic() < deadline:
            if journal.exists() and len(journal.read_text().splitlines()) >= wanted:
                break
            time.sleep(0.001)
        time.sleep(source.random() * 0.02)
        if worker.poll() is None:
            worker.send_signal(signal.SIGKILL)
            kills += 1
        worker.communicate()
    assert kills == 4
    with AgentDBSaver(path) as saver:
        between = saver.get_tuple(workers.config("thread"))
        assert 0 < len(between.checkpoint["channel_values"]["messages"]) < len(expected["messages"])
    last = start("agent", path, journal, 0, mode)
    assert last.communicate()[1] == ""
    assert last.returncode == 0
    with AgentDBSaver(path) as saver:
        found = saver.get_tuple(workers.config("thread"))
        assert found.checkpoint["channel_values"]["messages"] == expected["messages"]
        assert found.checkpoint["channel_values"]["done"] == expected["done"]
        assert found.pending_writes == []
        steps = [one.metadata["step"] for one in saver.list(workers.config("thread"))]
        assert steps == sorted(set(steps), reverse=True)  # no fork, no gap that runs backwards
    # Every node ran, and again only where a kill came between its end and its record.
    ran = journal.read_text().splitlines()
    assert set(ran) == {f"model {n}" for n in range(workers.STEPS + 1)} | {f"tool {n}" for n in range(workers.STEPS)}
    assert len(ran) - len(set(ran)) <= kills
    with agentdb.open(path) as db:
        assert db.verify().ok


@pytest.mark.parametrize("fence", ["fence", "open"])
@pytest.mark.timeout(300)
def test_two_processes_on_one_thread(tmp_path, fence):
    """Without a fence both end and the thread has a fork, losing nothing; with it one is told that the other was there."""
    path, go = tmp_path / "db", tmp_path / "go"
    with AgentDBSaver(path) as saver:
        workers.graph(saver, None, 0).invoke(
            {"messages": [workers.HumanMessage("first", id="first")], "done": []}, workers.config("thread")
        )
        base = saver.get_tuple(workers.config("thread"))
        before = len(list(saver.list(workers.config("thread"))))
        racing = [start("race", path, f"racer {i}", fence, go) for i in range(2)]
        time.sleep(3)
        go.touch()
        ends = []
        for one in racing:
            out, err = one.communicate(timeout=120)
            assert "locked" not in err
            ends.append(out.strip())
            assert one.returncode == 0, err
        stored = list(saver.list(workers.config("thread")))
        parents = [one.parent_config["configurable"]["checkpoint_id"] for one in stored if one.parent_config]
        if fence == "fence":
            assert len(parents) == len(set(parents)), "the thread has forked"
            assert "done" in ends
        else:
            assert ends == ["done", "done"]
            names = {m.id for one in stored for m in one.checkpoint["channel_values"].get("messages", [])}
            assert {"racer 0", "racer 1"} <= names
            assert len(stored) == before + 2 * 3  # input, model, and what follows it, for each
        assert plainly(saver, base) == base
    with agentdb.open(path) as db:
        assert db.verify().ok


def plainly(saver: AgentDBSaver, one):
    return saver.get_tuple(one.config)
