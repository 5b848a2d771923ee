"""Everybody is killed with SIGKILL, again and again: what was acknowledged is there, once, and nothing is half there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import kill_workers
from support.kill_workers import NAMES, apply, row, schema

import agentdb
from agentdb import Config

QUIET = Config(maintenance=False)


class Ledger:
    """What each process was told is done, and what it was doing when it died."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model: dict[tuple[str, str, int], int] = {}
        self.read = dict.fromkeys(NAMES, 0)
        self.acknowledged = 0
        self.survived = 0

    def settle(self, found: dict[tuple[str, str, int], int]) -> None:
        """Compare what is stored with what was acknowledged, and take note of in-flight operations that came through."""
        for name in NAMES:
            file = self.directory / name
            lines = file.read_text().splitlines() if file.exists() else []
            fresh, self.read[name] = lines[self.read[name] :], len(lines)
            begun = None
            expected = {key: n for key, n in self.model.items() if key[1] == name}
            for line in fresh:
                if line == "A":
                    apply(expected, name, begun)
                    begun = None
                    self.acknowledged += 1
                else:
                    assert begun is None
                    begun = json.loads(line[1:])
            mine = {key: n for key, n in found.items() if key[1] == name}
            if mine != expected and begun is not None:
                apply(expected, name, begun)
                self.survived += 1
            assert mine == expected, difference(name, begun, mine, expected)
            self.model = {key: n for key, n in self.model.items() if key[1] != name} | mine


def difference(name, begun, mine, expected) -> str:
    missing = {key: n for key, n in expected.items() if mine.get(key) != n}
    surplus = {key: n for key, n in mine.items() if expected.get(key) != n}
    return f"{name}: in flight {begun}, acknowledged but not stored {missing}, stored but not acknowledged {surplus}"


def contents(db: agentdb.Database) -> dict[tuple[str, str, int], int]:
    found = {}
    for name in ("a", "b"):
        rows = list(db.table(name).scan())
        for one in rows:
            key = (name, one["owner"], one["i"])
            assert key not in found, f"{key} is stored twice"
            assert one == row(one["owner"], one["i"], one["n"]), f"{key} has another's content"
            found[key] = one["n"]
        assert db.table(name).count() == len(rows)
    return found


def run(path: Path, cycles: int, seconds: float, seed: int) -> Ledger:
    ledgers, errors = path.parent / "ledgers", path.parent / "errors"
    ledgers.mkdir()
    ledger = Ledger(ledgers)
    with agentdb.open(path, config=QUIET) as db:
        db.table(schema("a"))
        db.table(schema("b"))
    zygote = subprocess.Popen(
        [sys.executable, kill_workers.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        for number in range(cycles):
            job = [str(path), str(ledgers), str(errors), seed * 1_000_003 + number, seconds]
            zygote.stdin.write(json.dumps(job) + "\n")
            zygote.stdin.flush()
            ends = json.loads(zygote.stdout.readline())
            assert not errors.exists(), f"cycle {number}:\n{errors.read_text()}"
            assert set(ends) == {-9}, f"cycle {number}: {ends}"
            with agentdb.open(path, config=QUIET) as db:
                report = db.verify()
                assert report.problems == (), f"cycle {number}"
                ledger.settle(contents(db))
        with agentdb.open(path, config=QUIET) as db:
            db.drop_table("scratch")
            db.optimize()
            ledger.settle(contents(db))
            assert db.verify().problems == ()
            # What the dead left behind is gone: one version of each table, and no pins.
            assert [one.name for one in (path / "pins").iterdir()] == [f"{db._core.pins._path.name}"]
            assert {one.name for one in (path / "lance").iterdir()} <= {"a.lance", "b.lance"}
            for name in ("a", "b"):
                manifests = list((path / "lance" / f"{name}.lance" / "_versions").glob("*.manifest"))
                assert len(manifests) == 1
    finally:
        zygote.stdin.close()
        zygote.stdout.close()
        zygote.wait(60)
    return ledger


def test_kill_everybody_again_and_again(db_path):
    ledger = run(db_path, cycles=30, seconds=1.0, seed=int(os.environ.get("AGENTDB_KILL_SEED", "1")))
    assert ledger.acknowledged > 300


@pytest.mark.slow
def test_kill_everybody_a_thousand_times(db_path):
    cycles = int(os.environ.get("AGENTDB_KILL_CYCLES", "1000"))
    ledger = run(db_path, cycles=cycles, seconds=2.0, seed=int(os.environ.get("AGENTDB_KILL_SEED", "2")))
    assert ledger.acknowledged > 10 * cycles
