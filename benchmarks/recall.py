"""``python -m benchmarks.recall [NAME ...]``: how well, how fast and how large memories are recalled, beside simple methods.

Names: locomo, beam, scifact, longmemeval (needs ``--longmemeval``), speed; all that have data by default. Memories are written by
``remember_many`` for one fresh agent per conversation, and asked for by ``recall(..., k=20, reinforce=False)``, in the library's default
configuration, without maintenance in between; an occurrence's id counts as its own.
"""

import argparse
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np

import agentdb
from agentdb import Config, MemoryWrite, RecallWeights
from agentdb.memory.encoding import Encoder
from agentdb.memory.rows import searched, spoken
from agentdb.vectors.analysis import encode_terms, query_terms
from agentdb.vectors.bm25 import Bm25Block
from agentdb.vectors.fusion import Signal, fuse
from benchmarks import recall_data
from benchmarks.harness import Figure, disk_bytes, save
from benchmarks.recall_data import LOOKED_AT, Case, Question

DEPTH = 20
CUTS = (1, 5, 10, 20)
BARS = {"locomo": {"R@10": 82.0, "nDCG@10": 66.0}, "beam": {"R@10": 63.0}, "scifact": {"nDCG@10": 73.0}}

Ranking = list[str]


# --- scores -------------------------------------------------------------------------------------------------------------


def scores(ranking: Ranking, gold: frozenset[str]) -> dict[str, float]:
    """Return the measures of one question, 0 to 1; a gold id that was not retrieved counts as missed."""
    hits = np.array([one in gold for one in ranking[:DEPTH]] + [False] * DEPTH)[:DEPTH]
    found = {f"R@{k}": float(hits[:k].sum()) / len(gold) for k in CUTS}
    found |= {f"any@{k}": float(hits[:k].any()) for k in CUTS}
    found |= {f"all@{k}": float(hits[:k].sum() == len(gold)) for k in CUTS}
    discounts = 1 / np.log2(np.arange(10) + 2)
    found["nDCG@10"] = float((hits[:10] * discounts).sum() / discounts[: min(len(gold), 10)].sum())
    return found


def means(each: Iterable[dict[str, float]]) -> dict[str, float]:
    each = list(each)
    return {name: 100 * float(np.mean([one[name] for one in each])) for name in each[0]}


# --- what is compared -----------------------------------------------------------------------------------------------------


class Remembering:
    """An embedder that embeds a text once: baselines, ablations and the database share the work, not the clock.

    With a folder, runs share it, too: SciFact and BEAM take minutes to embed on two cores. Vectors are kept as they are, so a run says
    the same with the folder as without; the tokens of LoCoMo take half a gigabyte.
    """

    def __init__(self, inner, folder: Path | None = None) -> None:
        self._stored = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._stored = sqlite3.connect(folder / "vectors.sqlite")
            self._stored.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, ids BLOB, vectors BLOB)")
        self._inner = inner
        self.name, self.dimension, self.max_tokens = inner.name, inner.dimension, inner.max_tokens
        self.count_tokens = inner.count_tokens
        self._vectors: dict = {}
        self._tokens: dict = {}

    def embed(self, texts, kind="document"):
        def make(some, kind):
            return [(None, one) for one in self._inner.embed(some, kind)]

        return np.stack([vector for _, vector in self._known(self._vectors, texts, kind, make)])

    def embed_tokens(self, texts, kind="document"):
        # Those of documents are large, and asked for once.
        known = {} if kind == "document" else self._tokens
        return self._known(known, texts, f"{kind} tokens", lambda some, _: self._inner.embed_tokens(some, kind))

    def _known(self, known: dict, texts, what: str, make: Callable) -> list:
        missing = list(dict.fromkeys(one for one in texts if (one, what) not in known))
        for start in range(0, len(missing), 256):
            part = missing[start : start + 256]
            stored = {one: found for one in part if (found := self._load(one, what)) is not None}
            known.update(((one, what), found) for one, found in stored.items())
            part = [one for one in part if one not in stored]
            for one, found in zip(part, make(part, what) if part else (), strict=True):
                known[one, what] = found
                self._save(one, what, found)
        return [known[one, what] for one in texts]

    def _key(self, text: str, what: str) -> bytes:
        return blake2b(f"{self.name}\0{what}\0{text}".encode()).digest()

    def _load(self, text: str, what: str):
        if self._stored is None:
            return None
        row = self._stored.execute(
            "SELECT ids, vectors FROM vectors WHERE key = ?", (self._key(text, what),)
        ).fetchone()
        if row is None:
            return None
        ids, vectors = row
        if ids is None:
            return None, np.frombuffer(vectors, np.float32)
        return np.frombuffer(ids, np.int64), np.frombuffer(vectors, np.float32).reshape(-1, self.dimension)

    def _save(self, text: str, what: str, found) -> None:
        if self._stored is not None:
            ids, vectors = found
            row = (
                self._key(text, what),
                None if ids is None else np.asarray(ids, np.int64).tobytes(),
                np.asarray(vectors, np.float32).tobytes(),
            )
            with self._stored:
                self._stored.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", row)


def _row(write: MemoryWrite) -> dict:
    return {"text": write.content, "speaker": write.speaker, "role": write.role, "occurred_at": write.occurred_at}


def baselines(case: Case, embedder) -> dict[str, list[Ranking]]:
    """Return what BM25, dense vectors and their equal-weight RRF find, over the same texts."""
    block = Bm25Block()
    block.append(0, encode_terms([searched(_row(one)) for one in case.writes]))
    frozen = block.freeze()
    corpus = embedder.embed([spoken(_row(one)) for one in case.writes])
    corpus = corpus / np.linalg.norm(corpus, axis=1, keepdims=True)
    found: dict[str, list[Ranking]] = {"BM25": [], "dense": [], "RRF": []}
    for question in case.questions:
        words = np.zeros(len(case.ids))
        slots, values = frozen.scores(query_terms(question.text))
        words[slots] = values
        meaning = (corpus @ embedder.embed([question.text], "query")[0]).astype(np.float64)
        both = fuse([Signal("words", words, 0.0), Signal("meaning", meaning)], method="rrf")
        for name, score in (("BM25", words), ("dense", meaning), ("RRF", both)):
            found[name].append([case.ids[i] for i in np.argsort(-score, kind="stable")[:DEPTH]])
    return found


def remembered(db: agentdb.Database, case: Case) -> dict[str, Ranking]:
    """Remember a case; return the given ids by the memory that they became, an occurrence's among them."""
    given: dict[str, Ranking] = {}
    for name, memory in zip(case.ids, db.memories.remember_many(case.writes), strict=True):
        given.setdefault(memory.id, []).append(name)
    return given


def asked(
    db: agentdb.Database, case: Case, given: dict[str, Ranking], weights: RecallWeights | None = None
) -> tuple[list[Ranking], list[float]]:
    rankings, taken = [], []
    agent_id = case.writes[0].agent_id
    # Reads the memories, and embeds the questions: neither is timed below.
    db.memories.recall_many([one.text for one in case.questions], agent_id=agent_id, k=1, reinforce=False)
    for question in case.questions:
        start = time.perf_counter()
        found = db.memories.recall(question.text, agent_id=agent_id, k=DEPTH, reinforce=False, weights=weights)
        taken.append(time.perf_counter() - start)
        rankings.append([name for one in found for name in given[one.memory.id]])
    return rankings, taken


def ablations() -> dict[str, RecallWeights]:
    return {f"without {one.name}": replace(RecallWeights(), **{one.name: 0.0}) for one in fields(RecallWeights)}


def quality(
    name: str, cases: Iterable[Case], embedder, folder: Path, *, is_ablated: bool, is_split: bool
) -> Iterable[Figure]:
    """Yield the measures of one data set, ours with their bars, by category, and beside simple methods."""
    found: dict[str, list[tuple[Question, dict[str, float]]]] = {}
    apart: dict[str, list[dict[str, float]]] = {}
    taken: list[float] = []
    rows = size = 0
    for number, case in enumerate(cases):
        if not case.questions:
            continue
        path = folder / f"{name}{number}"
        with agentdb.open(path, embedder=embedder, config=Config(maintenance=False)) as db:
            given = remembered(db, case)
            rankings, its = asked(db, case, given)
            taken += its
            results = {"ours": rankings, **baselines(case, embedder)}
            if is_ablated:
                results |= {label: asked(db, case, given, weights)[0] for label, weights in ablations().items()}
            db.flush()
            db.optimize()
        rows, size = rows + len(given), size + disk_bytes(path)
        for label, its_rankings in results.items():
            measured = [
                (question, scores(ranking, question.gold))
                for question, ranking in zip(case.questions, its_rankings, strict=True)
            ]
            found.setdefault(label, []).extend(measured)
            if is_split and name in LOOKED_AT:
                part = "looked at" if case.name in LOOKED_AT[name] else "held out"
                for which in (part, case.name) if label == "ours" else (part,):
                    apart.setdefault(f"{label}, {which}", []).extend(one for _, one in measured)
        print(f"  {name} {case.name}: {len(case.writes)} memories, {len(case.questions)} questions", flush=True)
    for label, measured in found.items():
        total = means(one for _, one in measured)
        for measure in ("R@1", "R@5", "R@10", "R@20", "nDCG@10"):
            bar = BARS.get(name, {}).get(measure) if label == "ours" else None
            yield Figure(f"{name}: {label}, {measure}", total[measure], "%", bar, higher=True)
        if label == "ours":
            rest = {one: value for one, value in total.items() if one.startswith(("any", "all"))}
            yield Figure(f"{name}: ours, any@10", total["any@10"], "%", detail=rest)
            for category in sorted({question.category for question, _ in measured}):
                its_means = means(one for question, one in measured if question.category == category)
                detail = {one: its_means[one] for one in ("R@1", "R@5", "R@20", "nDCG@10")}
                yield Figure(f"{name}: ours, {category}, R@10", its_means["R@10"], "%", detail=detail)
    for which, measured in apart.items():
        total = means(measured)
        detail = {one: total[one] for one in ("R@1", "R@5", "R@20", "nDCG@10")} | {"questions": len(measured)}
        yield Figure(f"{name}: {which}, R@10", total["R@10"], "%", detail=detail)
    taken.sort()
    yield Figure(
        f"{name}: recall with its embedding cached, p50", 1e3 * taken[len(taken) // 2], "ms",
        detail={"p95": 1e3 * taken[int(len(taken) * 0.95)]},
    )  # fmt: skip
    yield Figure(f"{name}: bytes on disk for each memory", size / rows, "B")


# --- speed ----------------------------------------------------------------------------------------------------------------


class RandomTokens:
    """Random vectors of the usual sizes: what they mean does not matter for how long it takes to compare them."""

    name, dimension, max_tokens = "random", 384, 256

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)

    def count_tokens(self, texts):
        return [len(one.split()) + 2 for one in texts]

    def embed(self, texts, kind="document"):
        return self._rng.standard_normal((len(texts), self.dimension), np.float32)

    def embed_tokens(self, texts, kind="document"):
        return [
            (np.arange(size, dtype=np.int64), self._rng.standard_normal((size, self.dimension), np.float32))
            for size in self.count_tokens(texts)
        ]


class Named:
    """A real embedder under the name of another, to ask what that one has stored: queries cost what they cost."""

    def __init__(self, name: str, inner) -> None:
        self.name, self.dimension, self.max_tokens = name, inner.dimension, inner.max_tokens
        self.embed, self.embed_tokens, self.count_tokens = inner.embed, inner.embed_tokens, inner.count_tokens


def speed(folder: Path, embedder, *, is_quick: bool) -> Iterable[Figure]:
    """Yield how long a recall takes with 10,000 memories of one agent, warm, on the CPU."""
    count, queries = (500, 20) if is_quick else (10_000, 200)
    rng = np.random.default_rng(2)
    words = np.array([f"word{i}" for i in range(20_000)])
    # Frequencies as in language: a few words in most memories, most words in few.
    chance = 1 / np.arange(10, len(words) + 10)
    chance /= chance.sum()

    def text(length: int) -> str:
        return " ".join(rng.choice(words, length, p=chance))

    writes = [
        MemoryWrite(content=text(25), agent_id="a", session_id=str(i // 25), speaker=("Ann", "Bob")[i % 2])
        for i in range(count)
    ]
    with agentdb.open(folder / "speed", embedder=RandomTokens(), config=Config(maintenance=False, device="cpu")) as db:
        start = time.perf_counter()
        db.memories.remember_many(writes)
        yield Figure(
            "speed: remember_many, embedding excluded", count / (time.perf_counter() - start), "1/s", higher=True
        )
        db.optimize()
        questions = [f"What did Ann say of {text(8)}?" for _ in range(queries)]
        taken = recalled(db, questions)
    bar = None if is_quick else 20
    yield Figure(
        f"speed: recall p95, {count:,} memories, embedding excluded", percentile(taken, 95), "ms", bar,
        detail={"p50": percentile(taken, 50)},
    )  # fmt: skip
    real = Named(RandomTokens.name, embedder)
    with agentdb.open(folder / "speed", embedder=real, config=Config(maintenance=False, device="cpu")) as db:
        taken = recalled(db, questions)
    encoder, reading = Encoder(embedder), []
    for one in ["What did Ann say of her trip to Lisbon?", *questions]:
        start = time.perf_counter()
        encoder.encode_queries([one])
        reading.append(time.perf_counter() - start)
    detail = {"p50": percentile(taken, 50)}
    detail |= {f"of it embedding, p{one}": percentile(reading[1:], one) for one in (50, 95)}
    bar = None if is_quick else 45
    yield Figure(
        f"speed: recall p95, {count:,} memories, embedding included", percentile(taken, 95), "ms", bar, detail=detail
    )


def recalled(db: agentdb.Database, questions: list[str]) -> list[float]:
    """Return the seconds of each recall, warm; no question is asked twice."""
    db.memories.recall("What did Ann say of her trip to Lisbon?", agent_id="a", reinforce=False)
    taken = []
    for one in questions:
        start = time.perf_counter()
        db.memories.recall(one, agent_id="a", reinforce=False)
        taken.append(time.perf_counter() - start)
    return taken


def percentile(taken: list[float], which: int) -> float:
    """Return milliseconds."""
    return 1e3 * sorted(taken)[len(taken) * which // 100]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall", description=__doc__)
    parser.add_argument("names", nargs="*", help="locomo, beam, scifact, longmemeval, speed; what there is by default")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder with the data sets")
    parser.add_argument("--longmemeval", type=Path, default=None, help="longmemeval_s_cleaned.json")
    parser.add_argument("--embedder", default=None, help="an installed embedder; the default one by default")
    parser.add_argument(
        "--split", action="store_true", help="also print what was tuned on, and what was held out, apart"
    )
    parser.add_argument("--cache", type=Path, default=None, help="a folder where vectors are kept between runs")
    parser.add_argument("--ablate", action="store_true", help="also leave out each signal in turn")
    parser.add_argument("--quick", action="store_true", help="one case of each, a few questions: shows that it runs")
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    arguments = parser.parse_args()
    sets = {
        "locomo": lambda: recall_data.locomo(arguments.data),
        "beam": lambda: recall_data.beam(arguments.data),
        "scifact": lambda: recall_data.scifact(arguments.data),
        "longmemeval": lambda: recall_data.longmemeval(arguments.longmemeval),
    }
    if unknown := set(arguments.names) - sets.keys() - {"speed"}:
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}")
    if "longmemeval" in arguments.names and arguments.longmemeval is None:
        parser.error("longmemeval needs the path of longmemeval_s_cleaned.json: --longmemeval PATH")
    names = arguments.names or [one for one in sets if one != "longmemeval" or arguments.longmemeval] + ["speed"]
    inner = agentdb.load_embedder(arguments.embedder) if arguments.embedder else agentdb.load_embedder()
    embedder, figures = Remembering(inner, arguments.cache), []
    for name in names:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="agentdb-bench-", dir=Path.cwd() / "build") as folder:
            if name == "speed":
                made = speed(Path(folder), inner, is_quick=arguments.quick)
            else:
                cases = sets[name]()
                if arguments.quick:
                    cases = (replace(one, questions=one.questions[:10]) for one in islice(cases, 1))
                made = quality(
                    name, cases, embedder, Path(folder), is_ablated=arguments.ablate, is_split=arguments.split
                )
            for figure in made:
                if arguments.quick:
                    figure.bar = None
                figures.append(figure)
                print(figure.line(), flush=True)
        print(f"  ({name}: {time.perf_counter() - start:.0f} s)", flush=True)
    out = arguments.out or Path("build/recall.json" if arguments.quick else "benchmarks/results/recall.json")
    save(figures, out, quick=arguments.quick)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    Path("build").mkdir(exist_ok=True)
    sys.exit(main())
