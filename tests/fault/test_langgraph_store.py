"""Several processes on one store, processes that are killed, and an agent that is killed in mid-run and goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.base import PutOp
from langgraph.store.memory import InMemoryStore
from support import store_workers as workers

import agentdb
from agentdb import Config
from langgraph_agentdb import AgentDBSaver, AgentDBStore

TESTS = Path(__file__).parents[1]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "support.store_workers", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check_whole(db: agentdb.Database) -> None:
    """Every item has its head and its vectors, every vector its item, and the namespaces are counted right."""
    with db.snapshot():
        heads = {(one["namespace"], one["key"]): one["vectors"] for one in db.table("_langgraph_item_heads").scan()}
        items = {(one["namespace"], one["key"]): one["vectors"] for one in db.table("_langgraph_items").scan()}
        vectors = [tuple(one.metadata["item"][0]) for one in db.collection("_langgraph_store").scan()]
        counts = {
            one["namespace"]: one["items"] for one in db.table("_langgraph_namespaces").scan() if one["namespace"]
        }
    assert heads == items
    assert sorted(vectors) == sorted(at for at, count in items.items() for _ in range(count))
    found: dict[str, int] = {}
    for namespace, _ in items:
        found[namespace] = found.get(namespace, 0) + 1
    assert counts == found
    assert db.verify().ok


@pytest.mark.timeout(300)
def test_four_processes_on_one_store(tmp_path):
    path, go = tmp_path / "db", tmp_path / "go"
    with AgentDBStore(path, index=workers.INDEX) as store:
        store.put(("last",), "writer", {"text": "nobody"})
        running = {name: start("write", path, name, go, 25) for name in ("ann", "bob", "cy", "dan")}
        time.sleep(1)
        go.touch()
        ends = {name: (*one.communicate(timeout=240), one.returncode) for name, one in running.items()}
        for out, err, code in ends.values():
            assert code == 0, err
            assert len(out.split()) == 25
        for name in running:
            for side in ("left", "right"):
                found = {one.key: one.value for one in store.search(("pairs", name, side))}
                assert found == {str(n % 5): workers.item(name, n) for n in range(20, 25)}
        assert len(store.search(("pairs",), limit=100)) == 40
        assert len(store.search(("pairs",), query="part 1", limit=100)) == 40
    with agentdb.open(path) as db:
        check_whole(db)


@pytest.mark.timeout(300)
def test_killed_while_writing(tmp_path):
    path, go = tmp_path / "db", tmp_path / "go"
    go.touch()
    source = random.Random(7)
    for round_ in range(3):
        writing = start("write", path, f"writer {round_}", go, 100_000)
        assert writing.stdout is not None
        said = [int(writing.stdout.readline()) for _ in range(source.randint(4, 9))]
        time.sleep(source.random() * 0.02)
        writing.send_signal(signal.SIGKILL)
        rest, err = writing.communicate()
        assert err == ""
        said += [int(one) for one in rest.splitlines() if one.strip()]
        with agentdb.open(path, config=Config(maintenance=False)) as db:
            store = AgentDBStore(db, index=workers.INDEX)
            last = max(one.value["n"] for one in store.search(("pairs", f"writer {round_}"), limit=20))
            assert last in (said[-1], said[-1] + 1)  # what was acknowledged is there, and one more may be
            for side in ("left", "right"):
                found = {one.key: one.value for one in store.search(("pairs", f"writer {round_}", side))}
                numbers = range(max(0, last - 4), last + 1)
                assert found == {str(n % 5): workers.item(f"writer {round_}", n) for n in numbers}
            check_whole(db)


def test_a_batch_that_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    """Whatever part of a put fails, no other part of it is stored."""
    with agentdb.open(tmp_path / "db", config=Config(maintenance=False)) as db:
        store = AgentDBStore(db, index=workers.INDEX)
        store.put(("a",), "k", workers.item("old", 2))
        store.search(("a",), query="old")
        items = store._connection()
        for table in ("_items", "_heads", "_namespaces", "_vectors"):
            broken = getattr(items, table)
            name = "upsert" if table == "_vectors" else "put_many"

            def fail(*_: Any, broken: Any = broken, name: str = name, **__: Any) -> None:
                raise agentdb.StorageError("no room on the disk")

            with monkeypatch.context() as patch:
                patch.setattr(broken, name, fail)
                with pytest.raises(agentdb.StorageError):
                    store.batch(
                        [PutOp(("a",), "k", workers.item("new", 1)), PutOp(("b",), "l", workers.item("new", 2))]
                    )
            assert [one.value for one in store.search(())] == [workers.item("old", 2)]
            assert store.search((), query="old says 2")[0].value == workers.item("old", 2)
            assert store.list_namespaces() == [("a",)]
            check_whole(db)
        store.put(("b",), "l", workers.item("new", 2))
        check_whole(db)


@pytest.mark.parametrize("mode", [pytest.param("sync", marks=pytest.mark.slow), "async"])
@pytest.mark.timeout(300)
def test_an_agent_killed_in_mid_run_goes_on_in_another_process(tmp_path, mode):
    expected_store = InMemoryStore(index=workers.INDEX)
    expected = workers.agent(InMemorySaver(), expected_store, InMemoryCache(), None, 0).invoke(
        {"messages": [workers.HumanMessage("go", id="human")]}, workers.CONFIG
    )["messages"]
    assert len(expected) == 2 * workers.TURNS + 2
    journal, path = tmp_path / "journal", tmp_path / "db"
    source = random.Random(mode)
    kills = 0
    for _ in range(3):
        running = start("run", path, journal, 0.02, mode)
        seen = len(journal.read_text().splitlines()) if journal.exists() else 0
        wanted = seen + source.randint(3, 7)
        deadline = time.monotonic() + 60
        while running.poll() is None and time.monotonic() < deadline:
            if journal.exists() and len(journal.read_text().splitlines()) >= wanted:
                break
            time.sleep(0.001)
        time.sleep(source.random() * 0.02)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            kills += 1
        running.communicate()
    assert kills == 3
    with AgentDBSaver(path) as saver:
        between = saver.get_tuple(workers.CONFIG)
        assert 0 < len(between.checkpoint["channel_values"]["messages"]) < len(expected)
    last = start("run", path, journal, 0, mode)
    err = last.communicate()[1]
    assert last.returncode == 0, err
    with AgentDBSaver(path) as saver, AgentDBStore(path, index=workers.INDEX) as store:
        found = saver.get_tuple(workers.CONFIG)
        assert workers.plain(found.checkpoint["channel_values"]["messages"]) == workers.plain(expected)
        assert found.pending_writes == []
        facts = {one.key: one.value for one in store.search(("facts",), limit=50)}
        assert facts == {one.key: one.value for one in expected_store.search(("facts",), limit=50)}
        assert len(facts) == 2
    ran = journal.read_text().splitlines()
    # What was computed and cached before a kill was not computed again: at most the one that was being computed.
    squares = [one for one in ran if one.startswith("squared")]
    assert set(squares) == {"squared 0", "squared 1"}
    assert len(ran) - len(set(ran)) <= kills
    with agentdb.open(path) as db:
        check_whole(db)
