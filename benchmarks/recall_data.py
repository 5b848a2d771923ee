"""Conversations and questions with known answers, as `recall` measures them; read from where the caller has them.

None of the data is part of this repository: LoCoMo is CC BY-NC 4.0, BEAM for research use, SciFact CC BY / ODC-By.
"""

import csv
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agentdb import MemoryWrite


@dataclass(frozen=True)
class Question:
    text: str
    gold: frozenset[str]
    category: str


@dataclass(frozen=True)
class Case:
    """One agent's memories, with the ids that answers name, and the questions about them."""

    name: str
    ids: list[str]
    writes: list[MemoryWrite]
    questions: list[Question]


LOOKED_AT = {
    "locomo": frozenset({"conv-26", "conv-30", "conv-41", "conv-42"}),
    "beam": frozenset({"100K-1", "100K-6", "100K-8", "100K-10"}),
}
"""Conversations on which signals and weights were chosen (docs/decisions/016); the others of a set were not looked at."""

LOCOMO_CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}


def locomo(data: Path) -> Iterator[Case]:
    for sample in json.loads((data / "locomo/locomo_dev.json").read_text("utf-8")):
        talk, name = sample["conversation"], str(sample["sample_id"])
        ids, writes = [], []
        sessions = sorted((one for one in talk if re.fullmatch(r"session_\d+", one)), key=lambda one: int(one[8:]))
        for session in sessions:
            day, month, year = re.search(r"(\d+) (\w+),? (\d{4})", talk[f"{session}_date_time"]).groups()
            at = datetime.strptime(f"{day} {month} {year}", "%d %B %Y").replace(tzinfo=UTC)
            for turn in talk[session]:
                caption = turn.get("blip_caption")
                text = turn["text"] + (f" [shares image: {caption}]" if caption else "")
                ids.append(turn["dia_id"])
                writes.append(
                    MemoryWrite(
                        content=text, agent_id=name, session_id=session, speaker=turn["speaker"], occurred_at=at
                    )
                )
        questions = []
        for one in sample["qa"]:
            found = re.findall(r"D:?(\d+):0*(\d+)", " ".join(one.get("evidence", [])))
            gold = frozenset(f"D{a}:{b}" for a, b in found) & set(ids)
            if one["category"] in LOCOMO_CATEGORIES and gold:
                questions.append(Question(one["question"], gold, LOCOMO_CATEGORIES[one["category"]]))
        yield Case(name, ids, writes, questions)


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif value is not None:
        yield str(value)


def beam(data: Path) -> Iterator[Case]:
    with gzip.open(data / "beam/beam_100K_dev.json.gz", "rt", encoding="utf-8") as file:
        chats = json.load(file)
    for chat in chats:
        name = str(chat["chat_id"])
        ids = [str(one["id"]) for one in chat["messages"]]
        writes = []
        for one in chat["messages"]:
            try:
                at = datetime.strptime(one["time_anchor"] or "", "%B-%d-%Y").replace(tzinfo=UTC)
            except ValueError:
                at = None
            text = re.sub(r"\s*->->\s*[\d,\s]+$", "", one["content"])
            writes.append(
                MemoryWrite(content=text, agent_id=name, session_id=str(one["batch"]), role=one["role"], occurred_at=at)
            )
        questions = []
        for ability, asked in chat["probing_questions"].items():
            for one in asked:
                gold = frozenset(_leaves(one.get("source_chat_ids"))) & set(ids)
                if gold:
                    questions.append(Question(one["question"], gold, ability))
        yield Case(name, ids, writes, questions)


def scifact(data: Path) -> Iterator[Case]:
    folder = data / "scifact"
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text("utf-8").splitlines()]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
    gold: dict[str, set[str]] = {}
    with (folder / "qrels/test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file, delimiter="\t"):
            if row[-1].isdigit() and int(row[-1]) > 0:
                gold.setdefault(row[0], set()).add(row[-2])
    writes = [MemoryWrite(content=f"{one['title']} {one['text']}", agent_id="scifact") for one in corpus]
    questions = [Question(one["text"], frozenset(gold[one["_id"]]), "claims") for one in queries if one["_id"] in gold]
    yield Case("scifact", [one["_id"] for one in corpus], writes, questions)


def longmemeval(path: Path) -> Iterator[Case]:
    """Yield every instance of ``longmemeval_s_cleaned.json``, or the single one of a file that holds one; gold: its answers' turns."""
    loaded = json.loads(path.read_text("utf-8"))
    for instance in loaded if isinstance(loaded, list) else [loaded]:
        name = instance["question_id"]
        ids, writes, gold = [], [], set()
        sessions = zip(
            instance["haystack_session_ids"], instance["haystack_dates"], instance["haystack_sessions"], strict=True
        )
        for session, date, turns in sessions:
            at = datetime.strptime(date[:10], "%Y/%m/%d").replace(tzinfo=UTC)
            for number, turn in enumerate(turns):
                if not turn["content"].strip():
                    continue
                ids.append(f"{session}:{number}")
                if turn.get("has_answer"):
                    gold.add(ids[-1])
                writes.append(
                    MemoryWrite(
                        content=turn["content"], agent_id=name, session_id=session, role=turn["role"], occurred_at=at
                    )
                )
        questions = [Question(instance["question"], frozenset(gold), instance["question_type"])] if gold else []
        yield Case(name, ids, writes, questions)
