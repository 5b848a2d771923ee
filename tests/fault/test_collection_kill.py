"""Whoever changes a whole collection is killed, again and again: the collection is right all along, and the change ends."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from support import collection_changer
from support.collection_changer import QUIET, Letters, small_steps

import agentdb
from agentdb import field

ROWS = 400


def text_of(number: int) -> str:
    return "ab" * (number % 9) + "f" * (number % 5)


def check(db: agentdb.Database) -> Letters:
    """Every row is there with the vector of the embedder that the collection has now; return that embedder."""
    notes = db.collection("notes")
    embedder = Letters(notes.vectors["vector"].dimension)
    found = {one.id: one for one in notes.scan(include=["text", "metadata", "vectors"])}
    assert len(found) == ROWS
    for key, one in found.items():
        assert one.text == text_of(int(key))
        np.testing.assert_array_equal(one.vector, embedder.embed([one.text])[0])
    assert notes.count(field("n") >= 300) == sum(one.metadata["n"] >= 300 for one in found.values()) == 100
    target = embedder.embed([text_of(17)])[0]
    nearest = notes.search(target, 1, exact=True)[0]
    assert nearest.distance < 1e-6
    assert np.allclose(
        found[nearest.id].vector / np.linalg.norm(found[nearest.id].vector), target / np.linalg.norm(target)
    )
    return embedder


def test_changes_survive_kills(db_path: Path) -> None:
    rng = random.Random(5)
    with agentdb.open(db_path, config=QUIET) as db:
        notes = db.collection("notes", embedder=Letters(4))
        for start in range(0, ROWS, 40):  # few at once stay hot: their columns are filled row by row
            some = range(start, start + 40)
            notes.upsert([f"{i:05}" for i in some], texts=[text_of(i) for i in some], metadata=[{"n": i} for i in some])
            if start == ROWS // 2:
                db.flush()
    kills, survived = 0, 0
    for dimension in (6, 4, 5):
        for attempt in range(40):
            worker = subprocess.Popen(
                [sys.executable, collection_changer.__file__, str(db_path), str(dimension)],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            time.sleep(rng.random() * 0.05 * (1 + attempt))
            worker.kill()
            is_done = "done" in worker.stdout.read()
            worker.stdout.close()
            worker.wait()
            with agentdb.open(db_path, config=QUIET) as db:
                check(db)
            if is_done:
                survived += 1
                break
            kills += 1
        with agentdb.open(db_path, config=QUIET) as db:
            assert check(db).dimension == dimension
    assert survived == 3
    assert kills >= 3
    small_steps()
    with agentdb.open(db_path, config=QUIET) as db:
        db.optimize()
        assert db.collection("notes").promoted == {("n",): "number"}
        check(db)
        assert db.verify().ok
