"""Every write, fsync, Lance step and commit fails once, for all n, and again with the device gone for good.

What an operation that raised may leave: nothing of it. One exception, where the fault strikes *after* SQLite's commit was
forced to the disk (or the device stays broken, so that the commit's outcome cannot be settled): then all of it or nothing.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.workload import CONFIG, Model, after, contents, steps

import agentdb
from agentdb.errors import AgentDBError
from agentdb.testing.faults import Faults, inject_faults

STEPS = steps()
# (flavour, sticky): what the failing place does, and whether the device stays broken.
MODES = [("error", False), ("torn", False), ("full", True)]


class Prepared:
    """For every step, a database in the state before it, and how many places the step passes."""

    def __init__(self, root: Path, faults: Faults) -> None:
        self.faults = faults
        self.root = root
        self.models: list[Model] = []
        self.places: list[int] = []
        model: Model = {"columns": {}}
        path = root / "prepared"
        for i, step in enumerate(STEPS):
            with agentdb.open(path, config=CONFIG):
                pass
            shutil.copytree(path, self.base(i))
            self.models.append(model)
            model = after(model, step)
            with agentdb.open(path, config=CONFIG) as db:
                faults.reset()
                step.run(db)
                self.places.append(faults.count)
                faults.reset()
                assert contents(db) == model, step.name
        with agentdb.open(path, config=CONFIG) as db:
            assert db.verify().problems == ()

    def base(self, i: int) -> Path:
        return self.root / f"base-{i}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with inject_faults(sync=False) as faults:
        yield Prepared(tmp_path_factory.mktemp("faults"), faults)


def check(prepared: Prepared, index: int, at: int, flavour: str, *, sticky: bool) -> None:
    step, faults = STEPS[index], prepared.faults
    before = prepared.models[index]
    done = after(before, step)
    with tempfile.TemporaryDirectory(dir=prepared.root) as root:
        work = Path(root) / "db"
        shutil.copytree(prepared.base(index), work)
        with agentdb.open(work, config=CONFIG) as db:
            faults.arm(at, flavour=flavour, sticky=sticky)
            try:
                step.run(db)
                raised = None
            except AgentDBError as error:
                raised = error
            finally:
                fired = faults.fired
                if not sticky:
                    faults.disarm()
            assert raised is None or fired is not None, f"raised without a fault: {raised!r}"
            undecided = raised is not None and (
                sticky or (fired is not None and fired.kind == "commit" and fired.after)
            )
            allowed = [done] if raised is None else [before, done] if undecided else [before]
            # The same handle goes on reading while the device is broken, and closes.
            assert contents(db) in allowed, "this handle"
            # What the next process would find if this one were killed now. (Never read by us: closing SQLite's files drops
            # SQLite's locks.)
            crashed = Path(root) / "crashed"
            subprocess.run(["cp", "-r", work, crashed], check=True)
        faults.disarm()
        (crashed / "agentdb.sqlite-shm").unlink()
        with agentdb.open(crashed, config=CONFIG) as db:
            assert contents(db) in allowed, "killed right after"
            assert db.verify().problems == ()
        with agentdb.open(work, config=CONFIG) as db:
            found = contents(db)
            assert found in allowed, "after opening again"
            assert db.verify().problems == ()
            if found != done:
                step.run(db)
                assert contents(db) == done, "repeated"
        with agentdb.open(work, config=CONFIG) as db:
            db.optimize()
            assert contents(db) == done, "optimized"
            assert db.verify().problems == ()


def sweep(prepared: Prepared, index: int, flavour: str, *, sticky: bool, stride: int, first: int) -> None:
    for at in range(1 + first % stride, prepared.places[index] + 1, stride):
        try:
            check(prepared, index, at, flavour, sticky=sticky)
        except BaseException as error:
            error.add_note(
                f"step {STEPS[index].name!r}, place {at} of {prepared.places[index]} ({prepared.faults.fired}), "
                f"{flavour}{', sticky' if sticky else ''}"
            )
            raise
        finally:
            prepared.faults.reset()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode[0]}{'-for-good' if mode[1] else ''}")
@pytest.mark.parametrize("index", range(len(STEPS)), ids=[step.name for step in STEPS])
def test_a_sample_of_all_places(prepared, index, mode):
    stride = int(os.environ.get("AGENTDB_FAULT_STRIDE", "40"))
    # Another share of the places for every step and mode.
    sweep(prepared, index, mode[0], sticky=mode[1], stride=stride, first=index * 7 + MODES.index(mode) * 13)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode[0]}{'-for-good' if mode[1] else ''}")
@pytest.mark.parametrize("index", range(len(STEPS)), ids=[step.name for step in STEPS])
def test_every_place(prepared, index, mode):
    sweep(prepared, index, mode[0], sticky=mode[1], stride=1, first=0)
