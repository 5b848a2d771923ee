"""Documents: how well their passages are found, a real corpus from files to answers, and how fast searches are.

Everything goes through ``db.documents`` in its default configuration. Search and context are timed without embedding the query,
which is the model's own time.
"""

import csv
import json
import os
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

import numpy as np

import agentdb
from agentdb import Document
from benchmarks.harness import Figure, disk_bytes, gate, median

SPLITS = {
    # Weights and the length of passages were chosen on the training queries, knowing the test queries' figures.
    "scifact": {"test": 74.0, "train": None},
    "vaswani": {"test": 44.5},
}
METHODS = {
    "documents, default": {},
    "BM25 of passages": {"mode": "text"},
    "dense": {"mode": "vector"},
    "RRF": {"fusion": "rrf"},
}


# --- how well -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A collection of documents with queries whose right answers are known."""

    name: str
    documents: list[Document]
    queries: dict[str, str]
    judgements: dict[str, dict[str, dict[str, int]]]

    @classmethod
    def read(cls, folder: Path) -> "Judged":
        corpus = [json.loads(line) for line in (folder / "corpus.jsonl").open(encoding="utf-8")]
        asked = [json.loads(line) for line in (folder / "queries.jsonl").open(encoding="utf-8")]
        judgements: dict[str, dict[str, dict[str, int]]] = {}
        for split in SPLITS[folder.name]:
            found = judgements.setdefault(split, {})
            for query, *_, document, score in csv.reader(
                (folder / "qrels" / f"{split}.tsv").open(encoding="utf-8"), delimiter="\t"
            ):
                if score.isdigit() and int(score) > 0:
                    found.setdefault(query, {})[document] = int(score)
        documents = [
            Document(one["text"], source=one["_id"], title=one.get("title") or None, media_type="text/plain")
            for one in corpus
        ]
        return cls(folder.name, documents, {one["_id"]: one["text"] for one in asked}, judgements)

    def part(self, queries: int, others: int) -> "Judged":
        """Return the first queries of each split, their answers and some documents more."""
        judgements = {split: dict(list(found.items())[:queries]) for split, found in self.judgements.items()}
        wanted = {document for found in judgements.values() for its in found.values() for document in its}
        kept = [one for one in self.documents if one.source in wanted]
        kept += [one for one in self.documents if one.source not in wanted][:others]
        return Judged(self.name, kept, self.queries, judgements)


def ndcg(ranking: list[str], gold: dict[str, int], k: int = 10) -> float:
    discounts = 1 / np.log2(np.arange(k) + 2)
    gains = np.array([gold.get(one, 0) for one in ranking[:k]])
    ideal = np.sort(list(gold.values()))[::-1][:k]
    return float((gains * discounts[: len(gains)]).sum() / (ideal * discounts[: len(ideal)]).sum())


def retrieval(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Yield nDCG@10 on judged collections, beside the single signals and their rank fusion over the same passages."""
    data = os.environ.get("AGENTDB_BENCH_DATA")
    if data is None:
        print("AGENTDB_BENCH_DATA names no folder with scifact/ and vaswani/: left out")
        return
    embedder = agentdb.load_embedder("local")
    for name, splits in SPLITS.items():
        judged = Judged.read(Path(data) / name)
        if quick:
            judged = judged.part(20, 200)
        with agentdb.open(folder / name, embedder=embedder) as db:
            report = db.documents.ingest(judged.documents)
            with gate(f"{name}: every document is stored"):
                assert not report.failed, report.failed[:3]
                assert len(db.documents.list()) == len({one.source for one in judged.documents})
            db.optimize()
            yield Figure(
                f"{name}: ingest, documents a second",
                len(judged.documents) / report.seconds,
                "1/s",
                detail={"documents": len(judged.documents), "chunks": report.chunks, "seconds": report.seconds},
            )
            for split, bar in splits.items():
                gold = judged.judgements[split]
                for method, options in METHODS.items():
                    ranked = {
                        query: [
                            one.source
                            for one in db.documents.search(judged.queries[query], 10, per_source=1, **options)
                        ]
                        for query in gold
                    }
                    value = 100 * float(np.mean([ndcg(ranked[query], gold[query]) for query in gold]))
                    yield Figure(
                        f"{name} {split}: nDCG@10, {method}",
                        value,
                        "",
                        bar=bar if method == "documents, default" and not quick else None,
                        higher=True,
                        detail={"queries": len(gold)},
                    )


# --- a real corpus ------------------------------------------------------------------------------------------------------

QUESTIONS = {
    # What a passage among the first five must come from, and what must stand in it.
    "remove and return the smallest item of a priority queue": ("heapq.py", "heappop"),
    "where to insert an item into a sorted list so that it stays sorted": ("bisect.py", "bisect"),
    "wrap a long paragraph into lines of a given width": ("textwrap.py", "wrap"),
    "decorator that remembers the most recent results of a function": ("functools.py", "lru_cache"),
    "copy a whole directory tree": ("shutil.py", "copytree"),
    "create a temporary directory that is removed at the end": ("tempfile.py", "TemporaryDirectory"),
    "add a sub command to a command line parser": ("argparse.py", "subparser"),
    "decode a string of base 64": ("base64.py", "decode"),
    "run a program and capture what it prints": ("subprocess.py", "capture_output"),
    "how similar are two sequences, as a ratio": ("difflib.py", "ratio"),
    "make a random UUID": ("uuid.py", "uuid4"),
    "read rows of a CSV file as dictionaries by the names of the columns": ("csv.py", "DictReader"),
    "median of numeric data": ("statistics.py", "median"),
    "rational numbers: limit the denominator of a fraction": ("fractions.py", "limit_denominator"),
    "quote an argument so that it is safe in a shell command": ("shlex.py", "quote"),
    "compare two directories and report what differs": ("filecmp.py", "dircmp"),
    "run an event after a delay": ("sched.py", "enter"),
    "which operators bind tighter than others": ("topics/operator-summary.txt", "precedence"),
    "what happens when an exception is raised in a try block with a finally clause": ("topics/try.txt", "finally"),
    "what __enter__ and __exit__ of a context manager do": ("topics/context-managers.txt", "__exit__"),
}
_PACKAGES = ("asyncio", "collections", "concurrent", "email", "http", "json", "logging", "urllib")
_OTHERS = (
    "calendar.py",
    "configparser.py",
    "contextlib.py",
    "glob.py",
    "queue.py",
    "random.py",
    "string.py",
    "zipfile.py",
)


def corpus(target: Path, *, quick: bool) -> int:
    """Copy sources of the standard library and the topics of its help into a folder; return how many bytes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    named = {source for source, _ in QUESTIONS.values()} | set(_OTHERS)
    files = [one for one in sorted(library.glob("*.py")) if not quick or one.name in named]
    for package in () if quick else _PACKAGES:
        files += sorted((library / package).rglob("*.py"))
    for file in files:
        copied = target / file.relative_to(library)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(file.read_bytes())
    (target / "topics").mkdir(parents=True)
    for name, text in topics.topics.items():
        if not quick or f"topics/{name}.txt" in named:
            (target / "topics" / f"{name}.txt").write_text(text, encoding="utf-8")
    return disk_bytes(target)


def library(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Yield how the standard library's sources are ingested, found and ingested again."""
    sources = folder / "sources"
    size = corpus(sources, quick=quick)
    embedder = agentdb.load_embedder("local")
    embedder.embed(["loaded"])
    with agentdb.open(folder / "db", embedder=embedder) as db:
        first = db.documents.ingest(sources)
        with gate("every file is stored"):
            assert not first.failed, first.failed[:3]
        db.optimize()
        held = disk_bytes(folder / "db")
        yield Figure(
            "library: chunks a second, MiniLM on the CPU",
            first.chunks / first.seconds,
            "1/s",
            detail={"files": first.added, "chunks": first.chunks, "seconds": first.seconds, "bytes": size},
        )
        yield Figure("library: size on disk", held / 2**20, "MiB", detail={"bytes a chunk": held // first.chunks})
        again = []
        for _ in range(3):
            report = db.documents.ingest(sources)
            with gate("nothing has changed"):
                assert (report.unchanged, report.added, report.updated) == (first.added, 0, 0)
            again.append(report.seconds)
        yield Figure(
            "library: unchanged, ingested again, times faster",
            first.seconds / median(again),
            "x",
            bar=None if quick else 50,
            higher=True,
            detail={"seconds": median(again)},
        )
        answered = {question: _answered(db, question, *target) for question, target in QUESTIONS.items()}
        missed = [question for question, found in answered.items() if not found]
        yield Figure(
            "library: questions answered by the first five passages",
            len(answered) - len(missed),
            f"of {len(answered)}",
            bar=17,
            higher=True,
            detail={"missed": "; ".join(missed) or "none"},
        )


def _answered(db: agentdb.Database, question: str, source: str, words: str) -> bool:
    found = db.documents.search(question, 5)
    for one in found:
        with gate("a passage is the stretch of the text that it says it is"):
            assert db.documents.text(one.document_id)[one.start : one.end] == one.text
    return any(one.source.endswith(f"/{source}") and words in one.text for one in found)


# --- how fast -----------------------------------------------------------------------------------------------------------


class Prepared:
    """An embedder that costs next to nothing: a text's vector is drawn by its hash, near that of its first words."""

    name, dimension, max_tokens = "prepared-v1", 384, 512

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._topics = rng.standard_normal((512, self.dimension)).astype(np.float32)

    def embed(self, texts, kind="document"):
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for row, text in enumerate(texts):
            rng = np.random.default_rng(int.from_bytes(text[:64].encode()[:8].ljust(8), "little"))
            topic = self._topics[sum(map(ord, text[:32])) % len(self._topics)]
            vectors[row] = topic + 0.8 * rng.standard_normal(self.dimension, dtype=np.float32)
        return vectors

    def count_tokens(self, texts):
        return [text.count(" ") + 3 for text in texts]


class Asked(Prepared):
    """The same; a query is embedded once, so that its second search takes no time for that."""

    def __init__(self) -> None:
        super().__init__()
        self._queries: dict[str, np.ndarray] = {}

    def embed(self, texts, kind="document"):
        if kind == "document":
            return super().embed(texts, kind)
        for text in texts:
            if text not in self._queries:
                self._queries[text] = super().embed([text])[0]
        return np.stack([self._queries[text] for text in texts])


def synthetic(chunks: int) -> Iterator[Document]:
    """Yield documents of 49 passages or 50 of 150 words each, of a Zipfian vocabulary of 50,000 words."""
    rng = np.random.default_rng(7)
    words = np.array([f"w{number}" for number in range(50_000)])
    share = 1 / np.arange(1, len(words) + 1) ** 1.05
    share /= share.sum()
    for number in range(chunks // 49 + 1):
        drawn = rng.choice(words, size=(50, 150), p=share)
        parts = [f"# Part {at}\n\n{' '.join(row[:75])}.\n{' '.join(row[75:])}." for at, row in enumerate(drawn)]
        yield Document("\n\n".join(parts), source=f"book-{number}.md", title=f"Book {number}")


def latency(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Yield how long a search and a context take over many passages, the query's embedding excluded."""
    wanted = 2_000 if quick else 100_000
    embedder = Asked()
    rng = np.random.default_rng(11)
    with agentdb.open(folder / "db", embedder=embedder) as db:
        report = db.documents.ingest(synthetic(wanted))
        with gate("there are as many passages as asked for"):
            assert wanted <= report.chunks < 1.05 * wanted, report.chunks
        db.optimize()
        yield Figure(
            f"documents: ingest of {report.chunks:,} passages without a model",
            report.chunks / report.seconds,
            "1/s",
            detail={"seconds": report.seconds, "MiB": disk_bytes(folder / "db") / 2**20},
        )
        # Words as they occur: a few frequent ones and some rare ones in each query.
        drawn = np.minimum(rng.zipf(1.3, size=(200 if not quick else 20, 8)), 49_999)
        queries = [" ".join(f"w{number}" for number in row) for row in drawn]
        embedder.embed(queries, "query")
        for query in queries[:5]:
            db.documents.search(query)
        searches = [_timed(lambda query=query: db.documents.search(query)) for query in queries]
        contexts = [_timed(lambda query=query: db.documents.context(query, token_budget=2_000)) for query in queries]
        for name, taken, bar in (("search, k = 10", searches, 30), ("context of 2,000 tokens", contexts, 60)):
            milliseconds = sorted(1e3 * one for one in taken)
            yield Figure(
                f"documents: {name}, p95 over {report.chunks:,} passages",
                milliseconds[len(milliseconds) * 95 // 100],
                "ms",
                bar=None if quick else bar,
                detail={"p50": median(milliseconds), "worst": milliseconds[-1]},
            )
        with gate("no context is longer than its budget"):
            assert all(db.documents.context(query, token_budget=500).tokens <= 500 for query in queries[:20])


def _timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
