"""Who ingests a folder is killed, again and again: every document is there as a whole or not at all, and the next one goes on."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from support import ingester
from support.ingester import QUIET, Slow

import agentdb
from agentdb import field

FILES = 50


def write(root: Path, number: int, version: int) -> None:
    lines = [
        f"File {number} version {version} line {line} has words of its own, {line * number}." for line in range(60)
    ]
    (root / f"f{number:02}.txt").write_text("\n".join(lines[: 20 + number % 40]))


def check(db: agentdb.Database, root: Path) -> dict[str, str]:
    """Every document has one version's text and exactly the chunks of that; return the texts by source."""
    stored = {one.id: one for one in db.documents.list()}
    texts = {key: db.documents.text(key) for key in stored}
    counts = dict.fromkeys(stored, 0)
    for row in db.collection("_documents.documents").scan() if stored else ():
        number, start, end, lead, *_ = map(int, row.metadata["place"].split())
        document = row.metadata["document_id"]
        assert texts[document][start:end] == row.text[lead:]
        assert number < stored[document].chunks
        counts[document] += 1
    assert counts == {key: one.chunks for key, one in stored.items()}
    for key, one in stored.items():
        first = texts[key].splitlines()
        version = first[0].split()[3]
        assert all(line.split()[3] == version for line in first), "a mixture of versions"
        assert Path(one.source).parent == root
    return {one.source: texts[key] for key, one in stored.items()}


def test_an_ingest_survives_kills(db_path: Path, tmp_path: Path) -> None:
    rng = random.Random(11)
    root = tmp_path / "files"
    root.mkdir()
    kills = goes_on = 0
    for version in range(2):
        for number in range(FILES):
            write(root, number, version)
        if version:
            (root / "f07.txt").unlink()
        for attempt in range(60):
            with agentdb.open(db_path, config=QUIET, embedder=Slow()) as db:
                before = sum(f"version {version} " in one for one in check(db, root).values())
            worker = subprocess.Popen(
                [sys.executable, ingester.__file__, str(db_path), str(root)], stdout=subprocess.PIPE, text=True
            )
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            time.sleep(rng.random() * 0.1 * (1 + attempt))
            worker.kill()
            said = worker.stdout.read()
            worker.stdout.close()
            worker.wait()
            with agentdb.open(db_path, config=QUIET, embedder=Slow()) as db:
                texts = check(db, root)
            after = sum(f"version {version} " in one for one in texts.values())
            assert after >= before
            goes_on += before > 0
            if said.startswith("done"):
                _, added, updated, unchanged, removed, failed = said.split()
                assert int(unchanged) == before
                assert int(added) + int(updated) + int(unchanged) == FILES - version
                assert (int(removed), int(failed)) in ((version, 0), (0, 0))
                break
            kills += 1
        assert texts == {str(one): one.read_text() for one in root.iterdir()}
    assert kills >= 3
    assert goes_on >= 2, "no ingest had anything to go on with"
    with agentdb.open(db_path, config=QUIET, embedder=Slow()) as db:
        db.optimize()
        assert db.verify().ok
        check(db, root)
        best = db.documents.search("File 21 version 1 line 3", 1, filter=field("source") == str(root / "f21.txt"))[0]
        assert best.text in (root / "f21.txt").read_text()
