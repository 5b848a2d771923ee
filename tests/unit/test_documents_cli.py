"""``agentdb ingest`` and ``agentdb ask``, on real databases."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import agentdb
from agentdb import cli, database
from agentdb_embedders import HashingEmbedder


@pytest.fixture(autouse=True)
def without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "load_embedder", HashingEmbedder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    root.mkdir()
    (root / "guide.md").write_text("# Guide\n\nThe lighthouse turns once in twelve seconds.\n")
    (root / "crew.txt").write_text("Ann is the captain, Bob cooks.\n")
    return root


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


def test_ingest_and_ask(db_path: Path, folder: Path) -> None:
    first = call("ingest", db_path, folder)
    assert first.exit_code == 0, first.output
    assert re.fullmatch(
        r"2 added, 0 updated, 0 unchanged, 0 removed, 0 failed: 2 chunks of \d+ B in \d+\.\d s\n", first.stdout
    )
    assert "2 unchanged" in call("ingest", db_path, folder).stdout

    asked = call("ask", db_path, "How often does the lighthouse turn?")
    assert asked.exit_code == 0, asked.output
    assert asked.stdout.startswith("[1] Guide\n\n# Guide\n\nThe lighthouse turns once")
    assert f"[1] {folder / 'guide.md'}, characters 0 to " in asked.stdout

    found = json.loads(call("ask", db_path, "Who cooks?", "--json", "--tokens", "60", "--format", "xml").stdout)
    assert found["tokens"] <= 60
    assert found["text"].startswith("<sources>")
    (cited,) = [one for one in found["citations"] if one["source"].endswith("crew.txt")]
    assert (folder / "crew.txt").read_text()[cited["start"] : cited["end"]] == cited["text"]


def test_options_of_ingest(db_path: Path, folder: Path) -> None:
    told = json.loads(call("ingest", db_path, folder, "--include", "*.md", "--json", "--collection", "guides").stdout)
    assert (told["added"], told["chunks"]) == (1, 1)
    with agentdb.open(db_path, embedder=HashingEmbedder()) as db:
        assert db.documents.collections() == ["guides"]


def test_what_goes_wrong(db_path: Path, folder: Path) -> None:
    (folder / "noise.bin").write_bytes(bytes(range(256)) * 40)
    result = call("ingest", db_path, folder)
    assert result.exit_code == 1
    assert "2 added" in result.stdout
    assert f"{folder / 'noise.bin'}: not stored (unknown_type)" in result.stderr

    missing = call("ingest", db_path, folder / "nothing")
    assert missing.exit_code == 1
    assert missing.stderr.startswith("agentdb: there is no file or folder")

    nothing = call("ask", db_path, "Who?", "--collection", "other")
    assert nothing.exit_code == 1
    assert nothing.stderr == "nothing was found\n"
    assert call("ask", db_path / "none", "Who?").exit_code == 1


def test_names_of_several_lines_and_control_characters_are_printed_as_one_line(db_path: Path, folder: Path) -> None:
    odd = "odd\nname\x1b[2J \u00e9.md"
    (folder / odd).write_text("The harbour pilot is Cleo.\n")
    (folder / "noise\n.bin").write_bytes(bytes(range(256)) * 40)
    told = call("ingest", db_path, folder)
    assert f"{folder}/noise\\n.bin: not stored (unknown_type)" in told.stderr
    assert len(told.stderr.splitlines()) == 1

    asked = call("ask", db_path, "Who is the harbour pilot?", "--tokens", "30")
    cited = [line for line in asked.stdout.splitlines() if ", characters " in line]
    assert f"{folder}/odd\\nname\\x1b[2J \u00e9.md, characters 0 to 26" in {line.partition("] ")[2] for line in cited}
    assert all(line.startswith("[") for line in cited)
