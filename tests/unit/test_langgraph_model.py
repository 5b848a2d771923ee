"""Random histories of threads, held against a plain dictionary, while rows go cold and values become deltas."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

import agentdb
from agentdb import Config
from langgraph_agentdb import AgentDBSaver

THREADS = ("a", "b", "c")
NAMESPACES = ("", "sub")


class Model:
    """What a saver should hold: (thread, namespace) -> id -> checkpoint."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}

    def place(self, thread: str, ns: str) -> dict[str, dict[str, Any]]:
        return self.places.get((thread, ns), {})

    def keep(self, keeps: Any) -> None:
        for key, stored in list(self.places.items()):
            left = {one: value for one, value in stored.items() if keeps(key, one, value)}
            self.places[key] = left
            if not left:
                del self.places[key]

    def needed(self, key: tuple[str, str], staying: set[str]) -> set[str]:
        """Return the ancestors that the delta channel of those that stay is rebuilt from."""
        stored, needed = self.places[key], set()
        for one in staying:
            at = stored[one]
            if "delta" not in at["needs"]:
                continue
            parent = at["parent"]
            while parent in stored:
                needed.add(parent)
                if "delta" in stored[parent]["values"]:
                    break
                parent = stored[parent]["parent"]
        return needed


class Machine:
    def __init__(self, path: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.path = path
        self.config = Config(maintenance=False, close_flush_rows=10_000)
        self.db = agentdb.open(path, config=self.config)
        self.saver = AgentDBSaver(self.db)
        self.model = Model()
        self.count = 0

    def put(self) -> None:
        thread, ns = self.random.choice(THREADS), self.random.choice(NAMESPACES)
        stored = self.model.place(thread, ns)
        self.count += 1
        name = f"{self.count:06}"
        parent = None
        if stored and self.random.random() < 0.95:
            parent = max(stored) if self.random.random() < 0.7 else self.random.choice(sorted(stored))
        before = stored[parent] if parent else {"values": {}, "versions": {}, "needs": set()}
        values, versions, new = dict(before["values"]), dict(before["versions"]), {}
        for channel in ("log", "small", "note", "delta"):
            if channel == "delta" or self.random.random() < 0.6:
                new[channel] = versions[channel] = versions.get(channel, 0) + 1
        if "log" in new:
            values["log"] = [*values.get("log", []), self.random.randbytes(120).hex()]
        if "small" in new:
            values["small"] = self.random.choice([None, 1, "x"])
        if "note" in new:
            values.pop("note", None)
            if self.random.random() < 0.7:
                values["note"] = "n" * self.random.randint(100, 3000)
        values.pop("delta", None)
        if self.random.random() < 0.3:
            values["delta"] = [name]
        needs = set() if "delta" in values else {"delta"}
        run = f"run {self.random.randrange(4)}"
        metadata = {"run_id": run, "counters_since_delta_snapshot": {one: [1, 1] for one in needs}}
        configurable = {"thread_id": thread, "checkpoint_ns": ns}
        if parent:
            configurable["checkpoint_id"] = parent
        given = {**empty_checkpoint(), "id": name, "channel_values": dict(values), "channel_versions": versions}
        self.saver.put({"configurable": configurable}, given, metadata, new)
        self.model.places.setdefault((thread, ns), {})[name] = {
            "values": values, "versions": versions, "parent": parent, "run": run, "needs": needs, "writes": {},
        }  # fmt: skip

    def write(self) -> None:
        if not self.model.places:
            return
        (thread, ns), stored = self.random.choice(sorted(self.model.places.items()))
        name = max(stored) if self.random.random() < 0.6 else self.random.choice(sorted(stored))
        task = f"task {self.random.randrange(3)}"
        writes = [("delta", f"{name} {self.random.randrange(1000)}") for _ in range(self.random.randint(1, 3))]
        config = {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": name}}
        self.saver.put_writes(config, writes, task)
        for index, (_, value) in enumerate(writes):
            stored[name]["writes"].setdefault((task, index), value)

    def remove(self) -> None:
        thread = self.random.choice(THREADS)
        match self.random.choice(["delete", "prune", "prune", "runs", "copy", "copy"]):
            case "delete":
                self.saver.delete_thread(thread)
                self.model.keep(lambda key, *_: key[0] != thread)
            case "prune":
                self.saver.prune([thread])
                newest = {key: {max(stored)} for key, stored in self.model.places.items()}
                needed = {key: self.model.needed(key, one) for key, one in newest.items()}
                self.model.keep(lambda key, one, _: key[0] != thread or one in newest[key] | needed[key])
            case "runs":
                run = f"run {self.random.randrange(4)}"
                self.saver.delete_for_runs([run])
                needed = {
                    key: self.model.needed(key, {one for one, value in stored.items() if value["run"] != run})
                    for key, stored in self.model.places.items()
                }
                self.model.keep(lambda key, one, value: value["run"] != run or one in needed[key])
            case "copy":
                target = self.random.choice(THREADS)
                self.saver.delete_thread(target)
                self.model.keep(lambda key, *_: key[0] != target)
                if target != thread:
                    self.saver.copy_thread(thread, target)
                    for (source, ns), stored in list(self.model.places.items()):
                        if source == thread:
                            self.model.places[target, ns] = {
                                name: {**one, "writes": dict(one["writes"])} for name, one in stored.items()
                            }

    def upkeep(self) -> None:
        match self.random.choice(["flush", "flush", "flush values", "optimize", "reopen"]):
            case "flush":
                self.db.flush()
            case "flush values":
                self.db.flush("_langgraph_values")
            case "optimize":
                self.db.optimize()
            case "reopen":
                self.db.close()
                self.db = agentdb.open(self.path, config=self.config)
                self.saver = AgentDBSaver(self.db)

    def check(self) -> None:
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for one in self.saver.list(None):
            where = one.config["configurable"]
            found.setdefault((where["thread_id"], where["checkpoint_ns"]), {})[where["checkpoint_id"]] = (
                one.checkpoint["channel_values"],
                one.parent_config and one.parent_config["configurable"]["checkpoint_id"],
                one.pending_writes,
            )
        expected = {
            key: {
                name: (
                    one["values"],
                    one["parent"],
                    [(task, "delta", value) for (task, _), value in sorted(one["writes"].items())],
                )
                for name, one in stored.items()
            }
            for key, stored in self.model.places.items()
        }
        assert found == expected
        for thread in THREADS:
            for ns in NAMESPACES:
                stored = self.model.place(thread, ns)
                newest = self.saver.get_tuple({"configurable": {"thread_id": thread, "checkpoint_ns": ns}})
                assert (newest.checkpoint["id"] if newest else None) == (max(stored) if stored else None)

    def run(self, steps: int) -> None:
        for step in range(steps):
            self.random.choices([self.put, self.write, self.remove, self.upkeep], [60, 30, 5, 8])[0]()
            if step % 25 == 24:
                self.check()
        self.check()
        self.db.optimize()
        self.check()
        assert self.db.verify().ok
        # Nothing is left behind that no checkpoint refers to.
        for thread in THREADS:
            self.saver.delete_thread(thread)
        self.model = Model()
        self.check()
        for name in ("heads", "rows", "values", "pending", "writes"):
            assert self.db.table(f"_langgraph_{name}").count() == 0
        self.db.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_saver_holds_what_a_dictionary_holds(db_path, seed):
    Machine(db_path, seed).run(250)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_for_long(db_path, seed):
    Machine(db_path, seed).run(1500)
