"""Two processes remember and keep up one agent at once, and one that is killed loses nothing that it was told is stored."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import agentdb
from agentdb import Config, MemoryPolicies
from agentdb_embedders import HashingEmbedder

WORKER = """
import sys
from pathlib import Path
import agentdb
from agentdb import CompressionRule, Config, MemoryPolicies
from agentdb_embedders import HashingEmbedder

path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with agentdb.open(path, config=Config(tick_s=0.01), embedder=HashingEmbedder(32)) as db:
    compression = CompressionRule(after_s=0, most_uses=1, importance_below=2, cosine=-1.0, least=4, most=6)
    db.memories.policies = MemoryPolicies(consolidate_after_s=0, compression=compression, upkeep_every_s=0.001)
    for i in range(count):
        made = db.memories.remember(f"{name} says word{i} of {i % 7}", agent_id="a", session_id="s", speaker=name)
        print(made.id, flush=True)
        if i % 5 == 4:
            db.memories.maintain("a")
            db.memories.recall(f"word{i}", agent_id="a", k=2)
        if i % 10 == 9:
            db.optimize()  # upkeep in the background, to its end
"""


def start(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check(path: Path, acknowledged: list[str]) -> agentdb.VerifyReport:
    with agentdb.open(path, config=Config(maintenance=False), embedder=HashingEmbedder(32)) as db:
        db.memories.policies = MemoryPolicies(consolidate_after_s=0)
        assert all(db.memories.get(one) is not None for one in acknowledged)
        rows = list(db.table("_memories").scan(columns=["id", "ordinal", "session_id"]))
        assert len({row["ordinal"] for row in rows}) == len(rows), "every memory has a place of its own"
        assert db.memories.maintain("a").is_complete
        settled = db.memories.list(agent_id="a", is_archived=None, limit=10_000)
        assert {one.tier for one in settled if one.status == "active"} == {"long_term"}
        moves = [[one.action for one in db.memories.history(memory.id)] for memory in settled]
        assert all(actions.count("moved") <= 1 for actions in moves), "nothing is settled twice"
        summaries = [one for one in settled if one.origin == "summary"]
        summed = [source for one in summaries for source in one.sources]
        assert len(set(summed)) == len(summed), "nothing is in two summaries"
        assert summed, "there are summaries at all"
        statuses = {one.id: one.status for one in settled}
        assert {statuses[one] for one in summed} == {"archived"}
        assert set(acknowledged) - set(summed) == {one for one in acknowledged if statuses[one] == "active"} | {
            one.id for one in settled if any(one.id in its.sources for its in settled if its.origin is None)
        }, "what is archived is in a summary, or says the same as another memory"
        return db.verify()


def test_two_processes_remember_and_maintain_at_once(tmp_path: Path) -> None:
    path = tmp_path / "db"
    both = [start(path, name, 25) for name in ("Ann", "Bob")]
    results = [one.communicate(timeout=200) for one in both]
    assert [one.returncode for one in both] == [0, 0], results
    acknowledged = [line for out, _ in results for line in out.split()]
    assert len(set(acknowledged)) == 50
    assert check(path, acknowledged).ok


def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "db"
    acknowledged: list[str] = []
    for round_ in range(3):
        worker = start(path, f"Ann{round_}", 1_000)
        assert worker.stdout is not None
        # After a different number of lines each time, so that it dies in another step.
        acknowledged += [worker.stdout.readline().strip() for _ in range(5 + 3 * round_)]
        worker.send_signal(signal.SIGKILL)
        rest, _ = worker.communicate(timeout=60)
        acknowledged += [line for line in rest.split("\n")[:-1] if line]
    assert check(path, acknowledged).ok
