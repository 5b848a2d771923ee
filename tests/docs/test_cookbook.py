"""Every program of the cookbook runs, quickly, and says something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COOKBOOK = Path(__file__).parents[2] / "cookbook"
PROGRAMS = sorted(COOKBOOK.glob("*.py"))


def test_the_programs_are_numbered() -> None:
    assert [int(one.name[:2]) for one in PROGRAMS] == list(range(1, len(PROGRAMS) + 1))


@pytest.mark.parametrize("program", PROGRAMS, ids=[one.stem for one in PROGRAMS])
def test_runs(program: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) >= 4
    assert list(tmp_path.iterdir()) == [], "it leaves something behind"
