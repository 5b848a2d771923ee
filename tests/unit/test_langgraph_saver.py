from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from uuid import UUID, uuid4

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME

import agentdb
from agentdb import (
    AccessDeniedError,
    ClosedError,
    Config,
    ConflictError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    UnavailableError,
)
from langgraph_agentdb import AgentDBSaver
from langgraph_agentdb import checkpoints as checkpoints_module

QUIET = Config(maintenance=False)
NASTY = [
    "zzz' OR 1=1 --",
    '"; DROP TABLE t1_rows; --',
    "%",
    "_",
    "*",
    "a%",
    "a_b",
    "",
    " ",
    "\x00",
    "a\x00b",
    "\x01",
    "a\x01b",
    "\x02",
    "a\x02",
    "a",
    "ab",
    "a:b",
    "a|b",
    "ä",
    "\U0001f600",
    "\uffff",
    "null",
    "{}",
    "1",
    "../..",
    "a" * 900,
]


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=QUIET) as opened:
        yield opened


@pytest.fixture
def saver(db: agentdb.Database) -> AgentDBSaver:
    return AgentDBSaver(db)


def place(thread: Any = "thread", ns: str = "", checkpoint_id: str | None = None) -> Any:
    configurable = {"thread_id": thread, "checkpoint_ns": ns}
    return {"configurable": configurable if checkpoint_id is None else {**configurable, "checkpoint_id": checkpoint_id}}


def checkpoint(values: dict[str, Any] | None = None, versions: dict[str, Any] | None = None, **changes: Any) -> Any:
    return {
        **empty_checkpoint(),
        "id": str(uuid6(clock_seq=-1)),
        "channel_values": values or {},
        "channel_versions": versions or {},
        **changes,
    }


def put(saver: BaseCheckpointSaver, config: Any, values: dict[str, Any] | None = None, **options: Any) -> Any:
    """Put a checkpoint whose channels are all new, and return its config."""
    step = options.pop("step", 0)
    metadata = {"source": "loop", "step": step, "parents": {}, **options.pop("metadata", {})}
    versions = {name: saver.get_next_version(None, None) for name in values or {}}
    return saver.put(config, checkpoint(values, versions, **options), metadata, versions)


def chain(saver: BaseCheckpointSaver, steps: int, thread: str = "thread", ns: str = "") -> list[Any]:
    """Put a thread of checkpoints that each have a list one longer than the one before."""
    configs: list[Any] = []
    log: list[str] = []
    version = None
    for step in range(steps):
        source = random.Random(step)
        log = [*log, source.randbytes(40).hex()]
        version = saver.get_next_version(version, None)
        before = configs[-1] if configs else place(thread, ns)
        one = checkpoint({"log": log, "fixed": "f" * 2000}, {"log": version, "fixed": "1"})
        new = {"log": version} if configs else {"log": version, "fixed": "1"}
        configs.append(saver.put(before, one, {"source": "loop", "step": step, "parents": {}}, new))
        saver.put_writes(configs[-1], [("log", [log[-1]])], f"task {step}", "path")
    return configs


def plain(found: CheckpointTuple | None) -> Any:
    return (
        None
        if found is None
        else (found.config, found.checkpoint, found.metadata, found.parent_config, found.pending_writes)
    )


def id_of(config: Any) -> str:
    return config["configurable"]["checkpoint_id"]


# ------------------------------------------------------------------------------------------------------------- storage


def test_a_value_is_stored_once_per_version(db, saver):
    configs = chain(saver, 10)
    values = list(db.table("_langgraph_values").scan(columns=["series", "number", "size_bytes"]))
    assert sorted(row["series"] for row in values) == ["=fixed"] + ["=log"] * 9  # the first log is small
    assert saver.get_tuple(configs[-1]).checkpoint["channel_values"]["fixed"] == "f" * 2000
    assert sum(len(saver.get_tuple(one).checkpoint["channel_values"]["log"]) for one in configs) == 55


def test_values_that_grow_are_deltas_once_they_are_cold(db, saver):
    configs = chain(saver, 60)
    expected = [plain(saver.get_tuple(one)) for one in configs]
    db.flush()
    rows = [row for row in db.table("_langgraph_values").scan() if row["series"] == "=log"]
    deltas = [row for row in rows if row["base"] not in (None, row["number"])]
    assert len(deltas) > 30
    assert sum(len(row["data"]) for row in deltas) * 4 < sum(row["size_bytes"] for row in deltas)
    assert [plain(saver.get_tuple(one)) for one in configs] == expected
    assert [plain(one) for one in saver.list(place())] == expected[::-1]


def test_bodies_of_wide_graphs_are_deltas_too(db, saver):
    versions = {f"channel {i}": saver.get_next_version(None, None) for i in range(200)}
    config = place()
    for step in range(20):
        versions = {**versions, f"channel {step}": saver.get_next_version(versions[f"channel {step}"], None)}
        one = checkpoint({}, versions, versions_seen={"node": dict(versions)})
        config = saver.put(config, one, {"source": "loop", "step": step, "parents": {}}, {})
    db.flush()
    rows = [row for row in db.table("_langgraph_values").scan() if row["series"] == "body"]
    assert len(rows) == 20
    assert sum(row["base"] not in (None, row["number"]) for row in rows) > 10
    assert saver.get_tuple(place()).checkpoint["channel_versions"] == versions


def test_forks_with_equal_versions_keep_their_own_values(saver):
    root = saver.put(place(), checkpoint({"x": "root"}, {"x": 1}), {"step": 0}, {"x": 1})
    branches = [saver.put(root, checkpoint({"x": f"branch {i}"}, {"x": 2}), {"step": 1}, {"x": 2}) for i in range(3)]
    ends = [saver.put(one, checkpoint({"x": f"branch {i}", "y": i}, {"x": 2, "y": 1}), {"step": 2}, {"y": 1})
            for i, one in enumerate(branches)]  # fmt: skip
    for i, one in enumerate([*branches, *ends]):
        assert saver.get_tuple(one).checkpoint["channel_values"]["x"] == f"branch {i % 3}"
    assert saver.get_tuple(root).checkpoint["channel_values"] == {"x": "root"}


def test_a_value_that_was_never_stored_is_stored_though_it_is_not_new(saver):
    stored = saver.put(place(), checkpoint({"x": 1, "loose": 2}, {"x": 7}), {}, {})
    assert saver.get_tuple(stored).checkpoint["channel_values"] == {"x": 1, "loose": 2}
    orphan = saver.put(place(checkpoint_id="gone"), checkpoint({"x": 3}, {"x": 7}), {}, {})
    assert saver.get_tuple(orphan).checkpoint["channel_values"] == {"x": 3}
    assert id_of(saver.get_tuple(orphan).parent_config) == "gone"


def test_putting_a_checkpoint_again_replaces_it(saver):
    first = put(saver, place(), {"x": 1})
    again = put(saver, place(), {"x": 2}, id=id_of(first))
    assert again == first
    assert saver.get_tuple(first).checkpoint["channel_values"] == {"x": 2}
    assert len(list(saver.list(place()))) == 1


def test_an_older_checkpoint_that_comes_late_is_not_the_newest(db, saver):
    first = put(saver, place(), {"x": 1})
    newest = put(saver, first, {"x": "n" * 500})
    late = put(saver, place(), {"x": "o" * 500}, id="0" + id_of(first)[1:])
    assert id_of(late) < id_of(first) < id_of(newest)
    for flush in (False, True):
        if flush:
            db.optimize()
        assert saver.get_tuple(place()).config == newest
        assert [one.config for one in saver.list(place())] == [newest, first, late]
        assert saver.get_tuple(late).checkpoint["channel_values"] == {"x": "o" * 500}
    saver.prune(["thread"])
    assert [one.config for one in saver.list(place())] == [newest]


def test_everything_comes_back(saver):
    values = {"none": None, "bytes": b"\x00", "list": [1, 2.5, {"a": (1,)}], "long": "x" * 300, "zero": 0}
    one = checkpoint(values, dict.fromkeys(values, "v"), versions_seen={"n": {"a": "1"}}, updated_channels=["a"])
    metadata = {"source": "update", "step": 3, "parents": {"": "p"}, "unknown": {"deep": [1, None]}, "run_id": "run"}
    config = {**place("t", "ns|x:1"), "metadata": {"user": "ada", "thread_id": "hidden"}}
    stored = saver.put(config, one, metadata, dict.fromkeys(values, "v"))
    found = saver.get_tuple(stored)
    assert found.config == stored == place("t", "ns|x:1", one["id"])
    assert found.checkpoint == {**one, "channel_values": {**values, "list": [1, 2.5, {"a": [1]}]}}
    assert found.metadata == {**metadata, "user": "ada"}
    assert found.parent_config is None
    assert found.pending_writes == []


def test_metadata_that_a_caller_invents_is_kept(saver):
    stored = put(saver, place(), metadata={"score": 0.25, "tags": ["a"], "nested": {"x": None}})
    assert saver.get_tuple(stored).metadata["nested"] == {"x": None}
    assert [one.metadata["score"] for one in saver.list(None, filter={"tags": ["a"]})] == [0.25]


def test_versions_rise_and_differ_on_every_branch(saver):
    random.seed(1)
    first = [saver.get_next_version("00000000000000000000000000000009.5", None) for _ in range(500)]
    random.seed(1)
    second = [saver.get_next_version(9, None) for _ in range(500)]
    assert len({*first, *second}) == 1000
    assert all(one > "00000000000000000000000000000009.9" for one in first)
    assert saver.get_next_version(None, None) < min(first)


# ------------------------------------------------------------------------------------------------------------------ ids


def test_versions_of_a_forked_child_are_its_own():
    program = """
import os
from langgraph_agentdb import AgentDBSaver
saver = AgentDBSaver("nowhere")
reading, writing = os.pipe()
child = os.fork()
version = saver.get_next_version(None, None)
if child == 0:
    os.write(writing, version.encode())
    os._exit(0)
os.waitpid(child, 0)
print(version, os.read(reading, 100).decode())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours, theirs = done.stdout.split()
    assert ours.split(".")[0] == theirs.split(".")[0]
    assert ours != theirs


def test_ids_are_never_patterns_nor_code(saver):
    stored = {}
    for thread in NASTY:
        for ns in ("", *NASTY[:8]):
            if thread:
                config = place(thread, ns, None)
                stored[thread, ns] = put(saver, config, {"who": f"{thread}/{ns}"}, id=f"id {thread[:50]}")
    for (thread, ns), config in stored.items():
        assert saver.get_tuple(config).checkpoint["channel_values"]["who"] == f"{thread}/{ns}"
        assert saver.get_tuple(place(thread, ns)).checkpoint["channel_values"]["who"] == f"{thread}/{ns}"
        assert [one.config for one in saver.list(place(thread, ns))] == [config]
        saver.put_writes(config, [("who", thread)], thread, ns)
        assert saver.get_tuple(config).pending_writes == [(thread, "who", thread)]
    for thread in NASTY:
        if thread:
            assert len(list(saver.list({"configurable": {"thread_id": thread}}))) == len({"", *NASTY[:8]})
    assert len(list(saver.list(None))) == len(stored)
    saver.delete_thread("%")
    saver.delete_thread("a_b")
    saver.prune(["zzz' OR 1=1 --", "_"], strategy="delete")
    left = {one.config["configurable"]["thread_id"] for one in saver.list(None)}
    assert left == {*NASTY, ""} - {"", "%", "a_b", "zzz' OR 1=1 --", "_"}


@pytest.mark.parametrize("value", NASTY)
def test_a_look_up_by_id_is_exact(saver, value):
    real = str(uuid6(clock_seq=-1))
    put(saver, place(), {"x": 1}, id=real)
    for wrong in {value, real[:-1], real + "0", real.upper(), real.replace("-", ""), f"%{real[3:]}", f"{real}\x00"}:
        if wrong and wrong != real:
            assert saver.get_tuple(place(checkpoint_id=wrong)) is None
            assert list(saver.list(place(checkpoint_id=wrong))) == []
            assert saver.get_delta_channel_history(config=place(checkpoint_id=wrong), channels=["x"]) == {
                "x": {"writes": []}
            }
    assert saver.get_tuple(place(ns="other", checkpoint_id=real)) is None
    assert saver.get_tuple(place("other", checkpoint_id=real)) is None
    assert saver.get_tuple(place(checkpoint_id=real)).checkpoint["id"] == real


def test_numbers_and_uuids_as_ids(saver):
    put(saver, place(7), {"x": 1})
    assert saver.get_tuple(place("7")).checkpoint["channel_values"] == {"x": 1}
    name = uuid4()
    put(saver, place(name), {"x": 2})
    assert saver.get_tuple(place(UUID(str(name)))).config["configurable"]["thread_id"] == str(name)


@pytest.mark.parametrize(
    "config",
    [{}, {"configurable": {}}, place(None), place(""), place(True), place(b"x"), place(["a"]), place("\ud800"),
     place(ns=None), place(ns=5), place(checkpoint_id=5), place("t" * 5000)],
)  # fmt: skip
def test_ids_that_cannot_be(saver, config):
    for call in (
        lambda: put(saver, config, {"x": 1}),
        lambda: saver.get_tuple(config),
        lambda: saver.put_writes(config | {}, [("x", 1)], "task"),
    ):
        with pytest.raises(InvalidInputError):
            call()
    assert list(saver.list(None)) == []


@pytest.mark.parametrize("where", ["id", "task", "channel", "path", "value", "version", "run"])
def test_lone_surrogates_write_nothing(db, saver, where):
    good = put(saver, place(), {"x": 1})
    bad = "a\ud800"
    calls = {
        "id": lambda: put(saver, place(), {"x": 1}, id=bad),
        "value": lambda: put(saver, place(), {bad: "x" * 500}),
        "version": lambda: saver.put(good, checkpoint({"x": 2}, {"x": bad}), {}, {"x": bad}),
        "run": lambda: put(saver, place(), {"x": 1}, metadata={"run_id": bad}),
        "channel": lambda: saver.put_writes(good, [(bad, 1)], "task", "path"),
        "task": lambda: saver.put_writes(good, [("x", 1)], bad, "path"),
        "path": lambda: saver.put_writes(good, [("x", 1)], "task", bad),
    }
    with pytest.raises((InvalidInputError, TypeError), match="surrogate"):
        calls[where]()
    assert [one.config for one in saver.list(None)] == [good]
    assert db.table("_langgraph_values").count() == 0
    assert db.table("_langgraph_pending").count() == 0


# ----------------------------------------------------------------------------------------------------------------- list


def test_filters_are_exact(saver):
    metadata = [
        {"k": 1}, {"k": True}, {"k": 1.0}, {"k": "1"}, {"k": None}, {}, {"k": {"a": 1}}, {"k": {"a": True}},
        {"k": {"a": 1, "b": 2}}, {"k": [1]}, {"k": [True]}, {"k": "a%"}, {"k": "ab"}, {"k' OR 1=1 --": 1}, {"a.b": 1},
    ]  # fmt: skip
    for one in metadata:
        put(saver, place(), metadata=one)

    def found(filter: dict[str, Any]) -> list[dict[str, Any]]:
        got = [one.metadata for one in saver.list(place(), filter=filter)]
        return [{k: v for k, v in one.items() if k not in {"source", "step", "parents"}} for one in got[::-1]]

    assert found({"k": 1}) == [{"k": 1}, {"k": 1.0}]
    assert found({"k": True}) == [{"k": True}]
    assert found({"k": "1"}) == [{"k": "1"}]
    assert found({"k": {"a": 1}}) == [{"k": {"a": 1}}]
    assert found({"k": {"a": 1, "b": 2}}) == [{"k": {"a": 1, "b": 2}}]
    assert found({"k": [1]}) == [{"k": [1]}]
    assert found({"k": "a%"}) == [{"k": "a%"}]
    assert found({"k' OR 1=1 --": 1}) == [{"k' OR 1=1 --": 1}]
    assert found({"a.b": 1}) == [{"a.b": 1}]
    assert found({"k": None}) == [{"k": None}, {}, {"k' OR 1=1 --": 1}, {"a.b": 1}]
    assert found({"k": "zzz' OR 1=1 --"}) == []
    assert found({"k": 1, "step": 1}) == []
    assert len(found({})) == len(metadata)


def test_list_pages_limits_and_cursors(saver):
    configs = chain(saver, 50)
    chain(saver, 3, thread="other")
    put(saver, place(ns="child"), {"x": 1})
    ids = [id_of(one) for one in configs]
    listed = [one.checkpoint["id"] for one in saver.list(place())]
    assert listed == ids[::-1]
    for limit in (0, 1, 2, 7, 49, 50, 51, 1000):
        assert [one.checkpoint["id"] for one in saver.list(place(), limit=limit)] == ids[::-1][:limit]
        filtered = saver.list(place(), filter={"source": "loop"}, limit=limit)
        assert [one.checkpoint["id"] for one in filtered] == ids[::-1][:limit]
    page = list(saver.list(place(), before=configs[20], limit=5))
    assert [one.checkpoint["id"] for one in page] == ids[15:20][::-1]
    assert list(saver.list(place(), before=configs[0])) == []
    assert [one.checkpoint["id"] for one in saver.list(place(), before=place())] == ids[::-1]
    assert [one.metadata["step"] for one in saver.list(place(), filter={"step": 17})] == [17]
    assert [one.checkpoint["id"] for one in saver.list(configs[4])] == [ids[4]]
    whole_thread = list(saver.list({"configurable": {"thread_id": "thread"}}))
    assert len(whole_thread) == 51
    everything = [one.checkpoint["id"] for one in saver.list(None)]
    assert everything == sorted(everything, reverse=True)
    assert len(everything) == 54
    with pytest.raises(InvalidInputError):
        saver.list(place(), limit=-1)


def test_listing_survives_removal_meanwhile(saver):
    chain(saver, 40)
    listing = saver.list(place())
    seen = [next(listing).checkpoint["id"]]
    saver.prune(["thread"])
    seen += [one.checkpoint["id"] for one in listing]
    assert len(seen) < 40


# --------------------------------------------------------------------------------------------------------------- writes


def test_writes_stay_but_special_ones_are_replaced(saver):
    config = put(saver, place())
    saver.put_writes(config, [("a", 1), ("b", 2), (INTERRUPT, "first"), (ERROR, "e1")], "task", "p")
    saver.put_writes(config, [("a", 9), ("c", 9), (INTERRUPT, "second"), (RESUME, "r")], "task", "p")
    found = {channel: value for _, channel, value in saver.get_tuple(config).pending_writes}
    assert found == {"a": 1, "b": 2, INTERRUPT: "second", ERROR: "e1", RESUME: "r"}


def test_writes_come_in_the_order_of_their_paths(saver):
    config = put(saver, place())
    saver.put_writes(config, [("x", "z")], "task 0", "~b")
    saver.put_writes(config, [("x", "y1"), ("x", "y2")], "task 9", "~a, 2")
    saver.put_writes(config, [("x", "w")], "task 1", "~a, 10")
    saver.put_writes(config, [("x", "v")], "task 5")
    assert [value for _, _, value in saver.get_tuple(config).pending_writes] == ["v", "w", "y1", "y2", "z"]
    other = put(InMemorySaver(), place())
    assert other["configurable"]["thread_id"] == "thread"


@pytest.mark.parametrize("size", [10, 3000])
def test_writes_of_many_tasks(db, saver, size):
    config = put(saver, place())
    for task in range(40):
        saver.put_writes(config, [("x", f"{task:02}" * size), ("y", task)], f"task {task:02}", "p")
    for task in range(0, 40, 7):
        saver.put_writes(config, [("x", "again"), (RESUME, task)], f"task {task:02}", "p")
    expected = [(f"task {task:02}", "x", f"{task:02}" * size) for task in range(40)]

    def check() -> None:
        for found in (saver.get_tuple(config), saver.get_tuple(place()), *saver.list(place(), limit=1)):
            assert [one for one in found.pending_writes if one[1] == "x"] == expected
            assert [one[2] for one in found.pending_writes if one[1] == "y"] == list(range(40))
            assert [one[2] for one in found.pending_writes if one[1] == RESUME] == list(range(0, 40, 7))

    check()
    db.optimize()
    check()


def test_superseded_writes_leave_sqlite_and_late_ones_join_them(db, saver):
    configs = chain(saver, 30)
    expected = [saver.get_tuple(one).pending_writes for one in configs]
    assert db.table("_langgraph_pending").count() == 30
    db.optimize()
    assert db.table("_langgraph_pending").count() == 1  # those of the newest
    assert db.table("_langgraph_writes").count() == 29
    assert [saver.get_tuple(one).pending_writes for one in configs] == expected
    saver.put_writes(configs[3], [("log", "ignored"), ("late", 1)], "task 3", "path")
    saver.put_writes(configs[3], [("late", 2)], "another", "path")
    late = [("another", "late", 2), *expected[3], ("task 3", "late", 1)]
    assert saver.get_tuple(configs[3]).pending_writes == late
    db.optimize()
    assert db.table("_langgraph_pending").count() == 1
    assert saver.get_tuple(configs[3]).pending_writes == late
    kept = [saver.get_tuple(one).pending_writes for one in configs]
    assert [*kept[:3], *kept[4:]] == [*expected[:3], *expected[4:]]  # those that were moved before are found as before
    history = saver.get_delta_channel_history(config=configs[-1], channels=["late"])
    assert [value for _, _, value in history["late"]["writes"]] == [2, 1]


def test_superseded_writes_behind_many_that_stay_are_moved_too(db, saver, monkeypatch):
    """Page by page: of the threads that come first nothing can be moved."""
    monkeypatch.setattr(checkpoints_module, "_SWEEP_ROWS", 3)
    for thread in ("a", "b", "c", "d"):
        saver.put_writes(put(saver, place(thread), {"x": 1}), [("x", 1)], "task")
    for ns in ("", "sub"):
        chain(saver, 4, "e", ns)
    checkpoints = saver._connection()
    rounds = 1
    while checkpoints._sweep(0.0):
        rounds += 1
        assert rounds < 20, "it goes round in circles"
    assert rounds == 5  # of 12 rows, three each, and a page that is empty
    assert db.table("_langgraph_pending").count() == 6
    assert db.table("_langgraph_writes").count() == 6
    assert [one.pending_writes for one in saver.list(place("e"))][:1] == [[("task 3", "log", ANY)]]
    assert not checkpoints._sweep_after


def test_writes_may_come_before_their_checkpoint(saver):
    config = place(checkpoint_id=str(uuid6(clock_seq=-1)))
    saver.put_writes(config, [("x", 1)], "task")
    assert saver.get_tuple(config) is None
    put(saver, place(), {"x": 0}, id=id_of(config))
    assert saver.get_tuple(config).pending_writes == [("task", "x", 1)]
    with pytest.raises(InvalidInputError):
        saver.put_writes(place(), [("x", 1)], "task")


# -------------------------------------------------------------------------------------------------------------- history


def test_history_of_a_long_chain_and_of_its_forks(saver):
    memory = InMemorySaver()
    stored: dict[str, list[Any]] = {"ours": [], "memory": []}
    for name, one in (("ours", saver), ("memory", memory)):
        config = place()
        for step in range(60):
            values = {"delta": [step]} if step % 25 == 3 else {}
            versions = {"delta": f"{step:03}"}
            made = checkpoint(values, versions, id=f"{step:03}")
            parent = stored[name][20] if step == 50 else config
            config = one.put(parent, made, {"step": step}, versions)
            one.put_writes(config, [("delta", step), ("other", step)], f"task {step}", f"{step % 3}")
            one.put_writes(config, [("delta", -step)], f"task {step} b", "0")
            stored[name].append(config)
    for step in (0, 3, 4, 20, 28, 29, 49, 50, 59):
        config = place(checkpoint_id=f"{step:03}")
        for channels in (["delta"], ["delta", "other"], ["other", "nothing"], []):
            ours = saver.get_delta_channel_history(config=config, channels=channels)
            assert ours == memory.get_delta_channel_history(config=config, channels=channels)
    assert saver.get_delta_channel_history(config=place("none"), channels=["x"]) == {"x": {"writes": []}}


# -------------------------------------------------------------------------------------------------------------- removal


def dump(saver: BaseCheckpointSaver, thread: str) -> list[Any]:
    return [
        (one.checkpoint, one.metadata, one.pending_writes, one.parent_config and id_of(one.parent_config))
        for one in saver.list({"configurable": {"thread_id": thread}})
    ]


@pytest.mark.parametrize("flushes", [(), ("before",), ("after",), ("before", "after")], ids=str)
def test_pruning_keeps_what_stays_whole(db, saver, flushes):
    configs = chain(saver, 40)
    chain(saver, 5, ns="child")
    chain(saver, 40, thread="other")
    other = dump(saver, "other")
    newest = plain(saver.get_tuple(place()))
    if "before" in flushes:
        db.optimize()
    saver.prune(["thread", "missing"])
    if "after" in flushes:
        db.optimize()
    assert plain(saver.get_tuple(place())) == newest
    assert [one.config for one in saver.list(place())] == [configs[-1]]
    assert len(list(saver.list({"configurable": {"thread_id": "thread"}}))) == 2
    assert dump(saver, "other") == other
    rows = [
        row
        for row in db.table("_langgraph_values").scan()
        if (row["thread_id"], row["checkpoint_ns"]) == ("thread", "")
    ]
    assert sorted(row["series"] for row in rows) == ["=fixed", "=log"]
    # The thread goes on, and new deltas never refer to what is gone.
    after = chain(saver, 30)
    db.flush()
    assert len(saver.get_tuple(after[-1]).checkpoint["channel_values"]["log"]) == 30
    assert db.verify().ok


def test_pruning_without_mercy_and_mistakes(saver):
    chain(saver, 3)
    with pytest.raises(InvalidInputError):
        saver.prune(["thread"], strategy="keep_all")
    with pytest.raises(InvalidInputError):
        saver.prune("thread")
    saver.prune(["thread"], strategy="delete")
    assert list(saver.list(None)) == []


@pytest.mark.parametrize("flush", [False, True])
def test_a_thread_deleted_and_begun_again(db, saver, flush):
    for _ in range(3):
        configs = chain(saver, 30)
        if flush:
            db.flush()
        assert len(saver.get_tuple(configs[-1]).checkpoint["channel_values"]["log"]) == 30
        saver.delete_thread("thread")
        assert saver.get_tuple(place()) is None
        assert saver.get_tuple(configs[3]) is None
    for name in ("_langgraph_heads", "_langgraph_rows", "_langgraph_values", "_langgraph_pending", "_langgraph_writes"):
        assert db.table(name).count() == 0
    configs = chain(saver, 30)
    db.flush()
    assert [len(saver.get_tuple(one).checkpoint["channel_values"]["log"]) for one in configs] == list(range(1, 31))


@pytest.mark.parametrize("flush", [False, True])
def test_deleting_runs(db, saver, flush):
    config = place()
    kept = []
    for step in range(30):
        config = put(saver, config, {"log": ["x" * 2000, step]}, metadata={"run_id": f"run {step % 3}"}, step=step)
        saver.put_writes(config, [("log", step)], "task")
        if step % 3 != 1:
            kept.append(plain(saver.get_tuple(config)))
    if flush:
        db.optimize()
    saver.delete_for_runs(["run 1", "no such run", "zzz' OR 1=1 --"])
    assert [plain(one) for one in saver.list(place())] == kept[::-1]
    assert db.table("_langgraph_values").count() == 20
    saver.delete_for_runs(["run 2"])
    assert saver.get_tuple(place()).metadata["step"] == 27
    saver.delete_for_runs(["run 0"])
    assert list(saver.list(None)) == []
    assert db.table("_langgraph_heads").count() == 0


@pytest.mark.parametrize("flush", [False, True])
def test_copies_live_on_by_themselves(db, saver, flush):
    chain(saver, 40)
    chain(saver, 4, ns="child")
    if flush:
        db.optimize()
    original = dump(saver, "thread")
    saver.copy_thread("thread", "copy")
    saver.copy_thread("copy", "copy of copy")
    assert dump(saver, "copy") == dump(saver, "copy of copy") == original
    saver.delete_thread("thread")
    db.optimize()
    assert dump(saver, "copy") == original
    saver.prune(["copy"])
    assert dump(saver, "copy of copy") == original
    put(saver, saver.get_tuple(place("copy of copy")).config, {"log": ["new"]})
    saver.delete_thread("copy of copy")
    saver.copy_thread("copy", "copy of copy")
    db.flush()
    assert dump(saver, "copy of copy") == dump(saver, "copy")
    with pytest.raises(ConflictError):
        saver.copy_thread("copy", "copy of copy")
    with pytest.raises(InvalidInputError):
        saver.copy_thread("copy", "copy")
    saver.copy_thread("nothing", "nowhere")
    assert dump(saver, "nowhere") == []
    assert db.verify().ok


def begin_again(saver: AgentDBSaver) -> None:
    saver.delete_thread("thread")
    chain(saver, 2)


@pytest.mark.parametrize(
    "remove",
    [lambda saver: saver.delete_thread("thread"), lambda saver: saver.prune(["thread"]), begin_again],
    ids=["delete", "prune", "begin again"],
)
def test_removal_between_looking_and_storing(db, saver, monkeypatch, remove):
    """A checkpoint that shares its parent's values is never left without them."""
    configs = chain(saver, 5)
    checkpoints = saver._connection()
    look, looks = checkpoints._contents_of, []

    def disturbed(*args: Any) -> Any:
        found = look(*args)
        looks.append(found)
        if len(looks) == 1:
            remove(saver)
        return found

    monkeypatch.setattr(checkpoints, "_contents_of", disturbed)
    # Of the newest one only the head is read; where the values of another are has to be looked up.
    tuple_ = saver.get_tuple(configs[2])
    one = {**tuple_.checkpoint, "id": str(uuid6(clock_seq=-1))}
    stored = saver.put(configs[2], one, {"step": 5}, {})
    assert len(looks) >= 2
    assert saver.get_tuple(stored).checkpoint["channel_values"] == tuple_.checkpoint["channel_values"]


# -------------------------------------------------------------------------------------------------------------- fencing


def test_a_fence_stops_the_second_worker(db):
    fenced, plain_saver = AgentDBSaver(db, fence=True), AgentDBSaver(db)
    first = put(fenced, place(), {"x": 0})
    with pytest.raises(ConflictError):
        put(fenced, place(), {"x": "another beginning"})
    won = put(fenced, first, {"x": 1})
    with pytest.raises(ConflictError):
        put(fenced, first, {"x": 2})
    assert [one.config for one in fenced.list(place())] == [won, first]
    assert put(fenced, first, {"x": 1}, id=id_of(won)) == won  # the same again is no conflict
    for source in ("fork", "update"):
        branch = put(fenced, first, {"x": source}, metadata={"source": source})
        put(fenced, branch, {"x": 3})
    put(plain_saver, first, {"x": "unfenced"})
    put(fenced, place(ns="sub"), {"x": 1})
    put(fenced, place(ns="sub"), {"x": 2})


def test_a_fence_among_tasks(db_path):
    async def race() -> list[Any]:
        async with AgentDBSaver(db_path, fence=True) as saver:
            first = saver.get_next_version(None, None)
            root = await saver.aput(place(), checkpoint({"x": 0}, {"x": first}), {"source": "input"}, {"x": first})
            puts = [
                saver.aput(root, checkpoint({"x": i}, {"x": f"{i}"}), {"source": "loop"}, {"x": f"{i}"})
                for i in range(20)
            ]
            done = await asyncio.gather(*puts, return_exceptions=True)
            stored = [one async for one in saver.alist(place())]
            return [*done, len(stored)]

    *done, stored = asyncio.run(race())
    assert stored == 2
    assert sum(isinstance(one, ConflictError) for one in done) == 19


# ---------------------------------------------------------------------------------------------------- connections, loops


def test_one_database_per_path(db_path):
    with AgentDBSaver(db_path) as first, AgentDBSaver(str(db_path)) as second:
        stored = put(first, place(), {"x": 1})
        assert plain(second.get_tuple(stored)) == plain(first.get_tuple(stored))
        assert first._connection()._db._core is second._connection()._db._core
        first.close()
        assert second.get_tuple(stored) is not None
        with pytest.raises(ClosedError):
            first.get_tuple(stored)
        with pytest.raises(ClosedError):
            asyncio.run(first.aput(place(), checkpoint(), {}, {}))
        with pytest.raises(ClosedError):
            asyncio.run(first.aget_tuple(stored))
    second.close()


def test_a_database_that_is_given_stays_open(db):
    with AgentDBSaver(db) as saver:
        put(saver, place(), {"x": 1})
    assert db.table("_langgraph_heads").count() == 1


def test_an_async_database_will_do(db_path):
    async def main() -> None:
        async with agentdb.open_async(db_path) as db, AgentDBSaver(db) as saver:
            stored = await saver.aput(place(), checkpoint({"x": 1}, {"x": "1"}), {}, {"x": "1"})
            assert (await saver.aget_tuple(stored)).checkpoint["channel_values"] == {"x": 1}

    asyncio.run(main())


def test_making_a_saver_touches_nothing(db_path):
    saver = AgentDBSaver(db_path)
    assert not db_path.exists()
    assert str(db_path) in repr(saver)
    saver.close()
    assert not db_path.exists()


@pytest.mark.parametrize("given", [None, 5, "", b"path", object()])
def test_what_is_no_database(given):
    with pytest.raises(InvalidInputError):
        AgentDBSaver(given)


def test_a_path_that_holds_something_else(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FormatError):
        AgentDBSaver(tmp_path / "file").get_tuple(place())


def test_read_only(db_path):
    with AgentDBSaver(db_path) as saver:
        stored = put(saver, place(), {"x": 1})
    with agentdb.open(db_path, read_only=True) as db:
        saver = AgentDBSaver(db)
        assert saver.get_tuple(stored).checkpoint["channel_values"] == {"x": 1}
        with pytest.raises(AccessDeniedError):
            put(saver, place(), {"x": 2})


def test_sync_calls_work_in_a_running_loop(db_path):
    async def main() -> None:
        with AgentDBSaver(db_path) as saver:
            stored = put(saver, place(), {"x": 1})
            saver.put_writes(stored, [("x", 1)], "task")
            assert (await saver.aget_tuple(stored)).pending_writes == saver.get_tuple(stored).pending_writes
            assert len(list(saver.list(None))) == 1

    asyncio.run(main())


def test_several_loops_share_a_saver(db_path):
    with AgentDBSaver(db_path) as saver:
        failures = []

        async def work(name: str) -> None:
            config = place(name)
            for step in range(10):
                version = {"x": str(step)}
                config = await saver.aput(config, checkpoint({"x": step}, version), {"step": step}, version)
                await saver.aput_writes(config, [("x", step)], "task")
            found = [one async for one in saver.alist(place(name))]
            assert [one.metadata["step"] for one in found] == list(range(10))[::-1]

        def loop(i: int) -> None:
            async def many() -> None:
                await asyncio.gather(*(work(f"{i}-{n}") for n in range(5)))

            try:
                asyncio.run(many())
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=loop, args=(i,)) for i in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert failures == []
        assert len(list(saver.list(None))) == 200


def test_an_open_transaction_is_refused_at_once(db_path):
    async def main() -> None:
        async with agentdb.open_async(db_path) as db, AgentDBSaver(db) as saver:
            stored = await saver.aput(place(), checkpoint({"x": 1}, {"x": "1"}), {}, {"x": "1"})
            start = time.monotonic()
            for block in (db.transaction, db.snapshot):
                async with block():
                    for call in (
                        lambda: saver.aput(stored, checkpoint({"x": 1}, {"x": "1"}), {}, {}),
                        lambda: saver.aput_writes(stored, [("x", 1)], "task"),
                        lambda: saver.adelete_thread("thread"),
                        lambda: saver.aget_tuple(stored),
                    ):
                        with pytest.raises(UnavailableError):
                            await call()
                    begun_inside = asyncio.create_task(saver.aput_writes(stored, [("x", 1)], "task"))
                    with pytest.raises(UnavailableError):
                        await begun_inside
            for block in (db.sync.transaction, db.sync.snapshot):
                with block(), pytest.raises(UnavailableError):
                    await saver.aput_writes(stored, [("x", 1)], "task")
            assert time.monotonic() - start < 10
            assert (await saver.aget_tuple(stored)).pending_writes == []
            async with db.snapshot():
                later = asyncio.create_task(after(left.wait(), saver.aput_writes(stored, [("x", 1)], "task")))
            left.set()
            await later  # the block that it was begun in is over
            assert len((await saver.aget_tuple(stored)).pending_writes) == 1

    left = asyncio.Event()
    asyncio.run(main())


async def after(*steps: Any) -> None:
    for step in steps:
        await step


def test_sync_calls_join_a_transaction(db, saver):
    def fail() -> None:
        with db.transaction():
            stored = put(saver, place(), {"x": 1})
            saver.put_writes(stored, [("x", 1)], "task")
            assert saver.get_tuple(stored).pending_writes == [("task", "x", 1)]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert saver.get_tuple(place()) is None


def test_cancelling_abandons_the_wait(db_path):
    async def main() -> None:
        async with AgentDBSaver(db_path) as saver:
            first = await saver.aput(place(), checkpoint({"x": 0}, {"x": "1"}), {}, {"x": "1"})
            with agentdb.open(db_path) as db:
                task = asyncio.create_task(saver.aput_writes(first, [("x", 1)], "cancelled"))
                with db.transaction():
                    await asyncio.sleep(0.05)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
            await saver.aput_writes(first, [("x", 2)], "after")
            found = [task_id for task_id, _, _ in (await saver.aget_tuple(first)).pending_writes]
            assert found in (["after"], ["after", "cancelled"])

    asyncio.run(main())


def test_one_that_is_cancelled_keeps_nobody_waiting(db_path):
    """Of tasks that one commit serves, those that have gone are passed over, and the others are woken."""

    async def main() -> None:
        async with AgentDBSaver(db_path) as saver:
            first = await saver.aput(place(), checkpoint({"x": 0}, {"x": "1"}), {}, {"x": "1"})
            held, free = threading.Event(), threading.Event()

            def hold() -> None:
                with agentdb.open(db_path) as db, db.transaction():
                    held.set()
                    free.wait(60)

            holder = threading.Thread(target=hold)
            holder.start()
            await asyncio.to_thread(held.wait)
            tasks = [asyncio.create_task(saver.aput_writes(first, [("x", i)], f"task {i}")) for i in range(6)]
            await asyncio.sleep(0.01)
            for one in tasks[::2]:
                one.cancel()
            await asyncio.sleep(0)
            free.set()
            done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
            assert [type(one) for one in done] == [asyncio.CancelledError, type(None)] * 3
            await asyncio.to_thread(holder.join)
            assert {"task 1", "task 3", "task 5"} <= {
                one for one, _, _ in (await saver.aget_tuple(first)).pending_writes
            }

    asyncio.run(main())


def test_a_failed_commit_fails_everyone_who_waits(db_path, monkeypatch):
    async def main() -> None:
        async with AgentDBSaver(db_path) as saver:
            first = await saver.aput(place(), checkpoint({"x": 0}, {"x": "1"}), {}, {"x": "1"})
            checkpoints = saver._connection()
            real = checkpoints._pending.put

            def broken(row: Any) -> None:
                real(row)
                raise agentdb.StorageError("the disk is full", retryable=True)

            monkeypatch.setattr(checkpoints._pending, "put", broken)
            puts = [saver.aput_writes(first, [("x", i)], f"task {i}") for i in range(5)]
            done = await asyncio.gather(*puts, return_exceptions=True)
            assert {type(one) for one in done} == {agentdb.StorageError}
            monkeypatch.undo()
            assert (await saver.aget_tuple(first)).pending_writes == []
            await saver.aput_writes(first, [("x", 1)], "task")
            assert len((await saver.aget_tuple(first)).pending_writes) == 1

    asyncio.run(main())


def test_a_damaged_thread_fails_no_other_of_its_commit(db, saver):
    configs = [put(saver, place(thread), {"x": 0}) for thread in "abc"]
    saver.put_writes(configs[1], [("x", 1)], "before")
    checkpoints = saver._connection()
    (row,) = checkpoints._pending.scan()
    checkpoints._pending.put({**row, "writes": b"\x00no writes"})
    # As tasks hand them over: all in one transaction.
    works = [saver._writing(config, [("x", 1)], "task", "")[1]() for config in configs]
    outcomes = checkpoints.commit_all(works)
    assert [type(one) for one in outcomes] == [bool, IntegrityError, bool]
    for config in (configs[0], configs[2]):
        assert saver.get_tuple(config).pending_writes == [("task", "x", 1)]
    with pytest.raises(IntegrityError):
        saver.put_writes(configs[1], [("x", 1)], "task")


def test_the_event_loop_is_never_blocked(db_path):
    """While another writer holds the lock for a second, and large values are stored and read, a heartbeat goes on."""

    async def main() -> float:
        worst, stop = 0.0, False

        async def heart() -> None:
            nonlocal worst
            while not stop:
                start = time.perf_counter()
                await asyncio.sleep(0.005)
                worst = max(worst, time.perf_counter() - start - 0.005)

        async with AgentDBSaver(db_path) as saver:
            beating = asyncio.create_task(heart())
            first = await saver.aput(place(), checkpoint({"x": 0}, {"x": "1"}), {}, {"x": "1"})
            held, release = threading.Event(), threading.Event()

            def hold() -> None:
                with agentdb.open(db_path) as db, db.transaction():
                    held.set()
                    release.wait(30)

            holder = threading.Thread(target=hold)
            holder.start()
            await asyncio.to_thread(held.wait)
            version = {"x": "2"}
            blocked = [
                asyncio.create_task(saver.aput(first, checkpoint({"x": 1}, version), {}, version)),
                asyncio.create_task(saver.aput_writes(first, [("x", 1)], "task")),
                asyncio.create_task(saver.adelete_thread("other")),
            ]
            await asyncio.sleep(1.0)
            assert not any(one.done() for one in blocked)
            assert await saver.aget_tuple(first) is not None  # reads go on
            release.set()
            await asyncio.gather(*blocked)
            await asyncio.to_thread(holder.join)
            large = {"x": ["y" * 1000] * 20_000}
            stored = await saver.aput(first, checkpoint(large, {"x": "3"}), {}, {"x": "3"})
            assert (await saver.aget_tuple(stored)).checkpoint["channel_values"] == large
            assert len([one async for one in saver.alist(place())]) == 3
            stop = True
            await beating
        return worst

    gc.collect()
    # A second's wait for a lock, or for a commit on a slow disk, would show; what an interpreter's lock costs would not.
    assert asyncio.run(main()) < 0.5


# ------------------------------------------------------------------------------------------------------------ integrity


def test_what_was_changed_on_the_disk_is_found(db, saver):
    stored = put(saver, place(), {"x": "y" * 500})
    table = db.table("_langgraph_values")
    (row,) = table.scan()
    table.put({**row, "checksum": bytes(16)})
    with pytest.raises(IntegrityError):
        saver.get_tuple(stored)
    table.delete((row["thread_id"], row["checkpoint_ns"], row["series"], row["number"]))
    with pytest.raises(IntegrityError):
        saver.get_tuple(stored)


def test_a_size_that_cannot_be_is_not_believed(db, saver):
    """Whoever can write into the directory must not make a reader ask for a terabyte."""
    stored = put(saver, place(), {"x": 1})
    saver.put_writes(stored, [("x", 1)], "task")
    pending = db.table("_langgraph_pending")
    (row,) = pending.scan()
    frame = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little")  # a frame that says so in its head
    pending.put({**row, "writes": b"\x01" + frame})
    with pytest.raises(IntegrityError, match="impossible size"):
        saver.get_tuple(stored)


def test_reopened(db_path):
    with AgentDBSaver(db_path) as saver:
        configs = chain(saver, 20)
        expected = [plain(one) for one in saver.list(None)]
    with AgentDBSaver(db_path) as saver:
        assert [plain(one) for one in saver.list(None)] == expected
        assert plain(saver.get_tuple(place())) == expected[0]
        put(saver, configs[-1], {"log": ["more"]})
        assert saver.get_tuple(place()).checkpoint["channel_values"]["log"] == ["more"]


def test_without_langgraph_the_error_names_the_extra():
    program = (
        "import sys; sys.modules['langgraph'] = None\n"
        "import agentdb\n"
        "try:\n    import langgraph_agentdb\n"
        "except agentdb.MissingDependencyError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "agentdb-lance[langgraph]" in done.stdout
