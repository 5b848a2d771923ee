"""The demonstration from end to end; only the embedder is a small one."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import agentdb
from agentdb import InvalidInputError, demo
from agentdb.cli import app


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = agentdb.load_embedder("hashing", dimension=64)
    monkeypatch.setattr(demo, "open", functools.partial(agentdb.open, embedder=hashing))
    monkeypatch.setattr(demo, "_ACKNOWLEDGED", 200)


@pytest.mark.usefixtures("quick")
def test_everything_it_shows_is_real(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=100)
    demo.run(db_path, console)
    told = console.file.getvalue()
    for said in (
        "Indexed ",
        demo.QUESTIONS[0],
        "was refused",
        "+ 'exceptions'",
        "killed (status -9)",
        "nothing acknowledged is missing",
        "What next",
    ):
        assert said in told
    with agentdb.open(db_path) as db:
        assert db.table("reference").schema.embedders == {"vector": agentdb.load_embedder("hashing", dimension=64).name}
        assert db.table("reference").count() > 800
        assert db.table("ledger").count() >= 200
        assert len(db.states.history("librarian", "reading-python", "task")) == 3

    # The second run finds the index; another embedder's vectors would mean nothing in it.
    demo.run(db_path, console)
    assert "indexed already" in console.file.getvalue()
    other = functools.partial(agentdb.open, embedder=agentdb.load_embedder("hashing", dimension=32))
    monkeypatch.setattr(demo, "open", other)
    with pytest.raises(InvalidInputError, match="embedder"):
        demo.run(db_path, console)


@pytest.mark.usefixtures("quick")
def test_the_command_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0, result.output
    assert "nothing acknowledged is missing" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_an_embedder_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentdb.embedding.registry.entry_points", lambda **_: ())
    result = CliRunner().invoke(app, ["demo", "--path", str(tmp_path / "db")])
    assert result.exit_code == 1
    assert "agentdb-lance[local]" in result.stderr
    assert result.stderr.count("\n") == 1
