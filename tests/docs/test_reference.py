"""The API reference is built from the docstrings, without a warning, and shows everything public."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import agentdb

pytest.importorskip("pdoc", reason="the reference is built by `make docs`, which installs the group 'docs'")


def test_reference_builds_without_warnings(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "pdoc", "--docformat", "google"),
            *("--output-directory", str(tmp_path), "agentdb", "agentdb_embedders"),
            *("langchain_agentdb", "langgraph_agentdb", "llama_index_agentdb"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shown = (tmp_path / "agentdb.html").read_text("utf-8")
    missing = [name for name in agentdb.__all__ if f'id="{name}"' not in shown]
    assert not missing
    # The twins are made by a mechanism that must not hide from readers that they are awaited.
    assert 'id="AsyncTable.put"' in shown
    assert shown.count('<span class="def">async def</span>') > 40
