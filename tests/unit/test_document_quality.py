"""What is found by documents in their default configuration, with the bundled model."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

import agentdb
from agentdb import Document, Embedder, load_embedder

TOPICS = [
    "assert",
    "attribute-access",
    "break",
    "class",
    "context-managers",
    "continue",
    "del",
    "formatstrings",
    "function",
    "global",
    "if",
    "import",
    "lambda",
    "nonlocal",
    "operator-summary",
    "raise",
    "return",
    "slicings",
    "try",
    "while",
    "with",
    "yield",
]
QUESTIONS = {
    "which operators bind tighter than others": "operator-summary",
    "an anonymous function in one expression": "lambda",
    "skip the rest of the loop body and go on with the next round": "continue",
    "what happens to the finally clause when an exception is not handled": "try",
    "make a name of the enclosing function's scope assignable": "nonlocal",
    "how is alignment and width written in a replacement field": "formatstrings",
    "methods that are called when a block of code is entered and left": "context-managers",
    "customize what happens when a missing attribute is looked up": "attribute-access",
}


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    made = load_embedder("local")
    yield made
    made.close()  # type: ignore[attr-defined]


def test_the_help_of_python_answers_questions(tmp_path: Path, embedder: Embedder) -> None:
    with agentdb.open(tmp_path, embedder=embedder) as db:
        report = db.documents.ingest([(name, topics[name]) for name in TOPICS])
        assert (report.added, report.failed) == (len(TOPICS), ())
        found = {question: [one.source for one in db.documents.search(question, 5)] for question in QUESTIONS}
        missed = {question: found[question] for question, name in QUESTIONS.items() if name not in found[question]}
        assert len(missed) <= 1, missed
        for question in QUESTIONS:
            for one in db.documents.search(question, 5):
                assert topics[one.source][one.start : one.end] == one.text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bar"), [("scifact", 74.0), ("vaswani", 44.5)])
def test_judged_collections_reach_their_bars(tmp_path: Path, embedder: Embedder, name: str, bar: float) -> None:
    data = os.environ.get("AGENTDB_BENCH_DATA")
    if data is None:
        pytest.skip("AGENTDB_BENCH_DATA names no folder with scifact/ and vaswani/")
    folder = Path(data) / name
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").read_text("utf-8").splitlines()]
    asked = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
    gold: dict[str, set[str]] = {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8") as file:
        for query, *_, document, score in csv.reader(file, delimiter="\t"):
            if score.isdigit() and int(score) > 0:
                gold.setdefault(query, set()).add(document)
    texts = {one["_id"]: one["text"] for one in asked}
    discounts = 1 / np.log2(np.arange(10) + 2)
    with agentdb.open(tmp_path, embedder=embedder) as db:
        db.documents.ingest(
            Document(one["text"], source=one["_id"], title=one.get("title") or None, media_type="text/plain")
            for one in lines
        )

        def ndcg(**options) -> float:
            values = []
            for query, right in gold.items():
                found = db.documents.search(texts[query], 10, per_source=1, **options)
                gains = np.array([one.source in right for one in found])
                values.append((gains * discounts[: len(gains)]).sum() / discounts[: len(right)].sum())
            return 100 * float(np.mean(values))

        default = ndcg()
        assert default >= bar
        assert default > max(ndcg(mode="text"), ndcg(mode="vector"), ndcg(fusion="rrf"))
