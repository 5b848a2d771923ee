"""A folder of documents: ingested, kept up to date, searched, cited to the letter, asked; and a document that is really gone."""

import tempfile
from pathlib import Path

import agentdb
from agentdb import Document, field

HANDBOOK = """# Harbour handbook

Rules of the harbour of Elm, in force since May.

## Berths

Visitors berth at the north pier. A berth costs 12 euros a night, for boats of up to ten metres.

## Radio

Call the harbour master on channel 12 before you enter. Keep watch on channel 16.

| channel | used for |
|---|---|
| 12 | harbour master |
| 16 | distress and calling |
"""
LOG = "2026-05-08 Calm. The Albatross left for Porto.\n2026-05-09 Fog. The lighthouse was repaired by Ann.\n"

# Deterministic and offline, so that this program always says the same. Without embedder=... a small model is loaded.
embedder = agentdb.load_embedder("hashing")

with tempfile.TemporaryDirectory() as folder, agentdb.open(Path(folder) / "db", embedder=embedder) as db:
    root = Path(folder) / "harbour"
    root.mkdir()
    (root / "handbook.md").write_text(HANDBOOK)
    (root / "log.txt").write_text(LOG)
    (root / "tide.py").write_text(
        'def tide(hour):\n    """Return the height of the water in metres."""\n    return 2.4\n'
    )
    (root / "scan.bin").write_bytes(bytes(range(256)) * 20)

    # A folder, and what is no file. What cannot be read is reported, and stops nothing.
    report = db.documents.ingest(root, metadata={"harbour": "Elm"})
    print(report.added, "added;", *(f"{Path(one.source).name}: {one.reason}" for one in report.failed))
    db.documents.ingest(
        [Document("The ferry to Oak leaves at 9 and at 17.", source="notice/ferry", metadata={"year": 2026})]
    )

    # Once more: what is unchanged is not even read; what is gone from the folder is removed.
    (root / "tide.py").unlink()
    (root / "log.txt").write_text(LOG + "2026-05-10 Sun. The ferry was late.\n")
    report = db.documents.ingest(root, metadata={"harbour": "Elm"})
    print(report.updated, "updated,", report.unchanged, "unchanged,", report.removed, "removed")
    print([(one.title, one.chunks) for one in db.documents.list(filter=field("media_type") == "text/markdown")])

    # Words and meaning, the best passage of each document, its place, and the same stretch of the file.
    for one in db.documents.search("Which radio channel before entering?", k=2, per_source=1):
        print(f"{one.score:.2f} {one.label}: {one.text.splitlines()[-1]!r}")
        assert db.documents.text(one.document_id)[one.start : one.end] == one.text
    print([one.source for one in db.documents.search("ferry", filter=field("year") >= 2026)])

    # For a prompt: numbered, within a budget, and with what was left out.
    context = db.documents.context("What does a berth cost?", token_budget=100)
    print(context.text)
    print(context.tokens, "tokens;", [(one.number, one.start, one.end) for one in context.citations])
    print("left out:", [one.reason for one in context.omitted])

    # Any model that completes a prompt: a LangChain Runnable, a LlamaIndex LLM, or, as here, a function.
    def model(prompt: str) -> str:
        return "A berth costs 12 euros a night [1]." if "12 euros" in prompt else "The sources do not say."

    answer = db.documents.answer("What does a berth cost?", model)
    print(answer, [Path(one.source).name for one in answer.citations])

    # Erased is more than deleted: no file of the database holds it any more.
    ferry = db.documents.list(filter=field("source") == "notice/ferry")[0]
    print(
        db.documents.erase(ferry.id).status,
        [one.source for one in db.documents.search("ferry to Oak", 1)] != [ferry.source],
    )
