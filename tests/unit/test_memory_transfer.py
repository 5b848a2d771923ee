"""Memories go out as lines of JSON and come back as they were."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import agentdb
from agentdb import Config, MemoryPolicies
from agentdb.errors import InvalidInputError, NotFoundError, StorageError
from agentdb_embedders import HashingEmbedder

START = datetime(2026, 1, 1, tzinfo=UTC)


def opened(path: Path) -> agentdb.Database:
    return agentdb.open(path, config=Config(maintenance=False), embedder=HashingEmbedder(32))


def fill(db: agentdb.Database) -> None:
    made = db.memories.remember("Grüße aus Köln\n(two lines)", agent_id="a", session_id="s", metadata={"n": [1, None]})
    db.memories.remember(
        "Grüße aus Köln\n(two lines)", agent_id="a", session_id="s", metadata={"n": 2}, occurred_at=START
    )
    db.memories.remember(
        {"image": "x.png", "caption": "a cat"},
        agent_id="a",
        user_id="u",
        namespace="n",
        memory_type="semantic",
        valid_from=START,
        valid_to=START + timedelta(days=1),
        speaker="Bob",
        role="user",
    )
    db.memories.remember("at hand", agent_id="a", session_id="s", tier="working")
    db.memories.remember("other", agent_id="b")
    db.memories.update(made.id, importance=0.9, reason="why not")
    db.memories.recall("Köln", agent_id="a")
    db.memories.forget([one.id for one in db.memories.list(agent_id="b")])


def everything(db: agentdb.Database) -> list[Any]:
    scopes: list[dict[str, Any]] = [
        {"agent_id": "a"},
        {"agent_id": "a", "user_id": "u", "namespace": "n"},
        {"agent_id": "b"},
    ]
    found = [one for scope in scopes for one in db.memories.list(**scope, is_archived=None)]
    return [(one, db.memories.history(one.id)) for one in sorted(found, key=lambda one: one.id)]


def test_what_goes_out_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    with opened(tmp_path / "one") as db:
        fill(db)
        db.flush()
        before = everything(db)
        assert db.memories.export_jsonl(file) == 4
        with pytest.raises(InvalidInputError, match="exists"):
            db.memories.export_jsonl(file)
        assert db.memories.export_jsonl(tmp_path / "b.jsonl", agent_id="b") == 1
    with opened(tmp_path / "two") as db:
        for _ in range(2):
            assert db.memories.import_jsonl(file) == 4
            assert everything(db) == before
        found = db.memories.recall("cat", agent_id="a", user_id="u", namespace="n", valid_at=START)
        assert [one.memory.content for one in found] == [{"image": "x.png", "caption": "a cat"}]
        # It goes on where it stopped: repeats are known, working memory is bounded, places in the session are not taken twice.
        again = db.memories.remember("Grüße aus Köln\n(two lines)", agent_id="a", session_id="s")
        assert len(again.occurrences) == 3
        db.memories.policies = MemoryPolicies(working_items=1)
        db.memories.remember("newer", agent_id="a", session_id="s", tier="working")
        assert [one.text for one in db.memories.list(agent_id="a", tiers=["working"])] == ["newer"]


def test_an_empty_database_exports_an_empty_file(tmp_path: Path) -> None:
    with opened(tmp_path / "db") as db:
        assert db.memories.export_jsonl(tmp_path / "out") == 0
        assert db.memories.import_jsonl(tmp_path / "out") == 0
        with pytest.raises(NotFoundError):
            db.memories.import_jsonl(tmp_path / "nothing")
        with pytest.raises(StorageError):
            db.memories.export_jsonl(tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    "change",
    [
        "not json",
        "[]",
        '"x"',
        {"id": 5.0},
        {"tier": "medium"},
        {"status": "gone"},
        {"origin": "dream"},
        {"memory_type": "other"},
        {"importance": "high"},
        {"agent_id": None},
        {"recorded_at": "yesterday"},
        {"uses": "many"},
        {"events": [{"number": 1}]},
        {"occurrences": 5},
        {"text": "  "},
        {"text": ["x"]},
        {"data": "no json"},
        {"data": '"no object"'},
        {"metadata": [1]},
        {"importance": 7},
        {"importance": float("nan")},
        {"ordinal": 1 << 62},
        {"ordinal": 0},
        {"uses": 0},
        {"role": ""},
        {"valid_from": "2026-01-02T00:00:00+00:00", "valid_to": "2026-01-02T00:00:00+00:00"},
        {"valid_from": "2026-01-02T00:00:00"},
        {"occurrences": [{"number": 1, "id": "y", "recorded_at": "2026-01-02T00:00:00+00:00", "metadata": "{"}]},
        {"events": 2 * [{"number": 1, "at": "2026-01-02T00:00:00+00:00", "action": "moved", "reason": "r"}]},
        {"id": "first"},
    ],
    ids=str,
)
def test_a_line_that_is_no_memory_is_refused_and_nothing_is_stored(tmp_path: Path, change: Any) -> None:
    file = tmp_path / "out.jsonl"
    with opened(tmp_path / "one") as db:
        db.memories.remember("x", agent_id="a")
        db.memories.export_jsonl(file)
    good = json.loads(file.read_text("utf-8"))
    bad = change if isinstance(change, str) else json.dumps({**good, "id": "second", **change})
    file.write_text(json.dumps({**good, "id": "first"}) + "\n" + bad + "\n", "utf-8")
    with opened(tmp_path / "two") as db:
        with pytest.raises(InvalidInputError, match="line 2"):
            db.memories.import_jsonl(file)
        assert db.memories.list(agent_id="a") == []


def test_what_is_here_already_is_replaced_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    with opened(tmp_path / "db") as db:
        db.memories.remember("I like tea.", agent_id="a", session_id="s")
        kept = db.memories.remember("I like tea.", agent_id="a", session_id="s")
        file = tmp_path / "out.jsonl"
        db.memories.export_jsonl(file)
        db.memories.erase(kept.occurrences[1].id)
        for _ in range(2):
            db.memories.remember("I like tea.", agent_id="a", session_id="s")
        db.memories.update(kept.id, content="I like coffee.")
        assert db.memories.import_jsonl(file) == 1
        assert db.memories.require(kept.id) == kept
        assert [one.action for one in db.memories.history(kept.id)] == ["remembered"]
        assert db.memories.remember("I like tea.", agent_id="a", session_id="s").id == kept.id
        assert db.memories.remember("I like coffee.", agent_id="a", session_id="s").id != kept.id


def test_the_gap_of_an_erased_occurrence_moves_with_the_rest(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as db:
        made = [db.memories.remember("x", agent_id="a", metadata={"n": n}) for n in range(4)][-1]
        db.memories.erase(made.occurrences[2].id)
        db.memories.export_jsonl(tmp_path / "out.jsonl")
    with opened(tmp_path / "two") as db:
        db.memories.import_jsonl(tmp_path / "out.jsonl")
        again = db.memories.remember("x", agent_id="a", metadata={"n": 4})
        assert [one.metadata["n"] for one in again.occurrences] == [0, 1, 3, 4]


def test_an_import_stays_within_the_walls(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    with opened(tmp_path / "db") as db:
        mine = db.memories.remember("mine", agent_id="a", user_id="u")
        db.memories.export_jsonl(file)
        line = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps({**line, "user_id": "v", "text": "theirs"}), "utf-8")
        with pytest.raises(InvalidInputError, match=r"line 1: .* another agent, user"):
            db.memories.import_jsonl(file)
        assert db.memories.require(mine.id) == mine
        file.write_text(json.dumps({**line, "id": "new", "user_id": "v", "sources": [mine.id]}), "utf-8")
        db.memories.import_jsonl(file)
        assert db.memories.why("new").sources == ()
        assert db.memories.why(mine.id).derived == ()
