"""What is found in documents, how it is put together, and what a prompt gets of it: to the letter, and never too much."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentdb
from agentdb import Chunk, Config, Document, InvalidInputError, ParsedDocument, Passage, field
from agentdb.rag.context import counter_of
from agentdb.rag.search import Repetitions, shingles
from agentdb_embedders import HashingEmbedder

SEAS = ["Baltic", "North", "Irish", "Black", "Red", "Dead", "Coral", "Tasman"]


@dataclass(frozen=True)
class Lines:
    """Every line is a chunk; with parents, every so many lines are the stretch that it was cut from."""

    parents: int = 0

    def chunk(self, document: ParsedDocument) -> list[Chunk]:
        found, at = [], 0
        for line in document.text.splitlines(keepends=True):
            found.append((at, at + len(line.rstrip())))
            at += len(line)
        chunks = []
        for number, (start, end) in enumerate(found):
            group = found[number - number % self.parents :][: self.parents] if self.parents else []
            parent = (group[0][0], group[-1][1]) if group else None
            if end > start:
                chunks.append(Chunk(start, end, None, document.heading_path(start), parent))
        return chunks


def sea(name: str) -> str:
    return "\n".join(f"Fact {i} of the {name} sea tells of {name.lower()}fish{i} and waves." for i in range(12))


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[agentdb.Database]:
    path = tmp_path_factory.mktemp("documents") / "db"
    with agentdb.open(path, config=Config(maintenance=False), embedder=HashingEmbedder()) as opened:
        opened.documents.ingest(
            [
                Document(sea(name), source=name, title=f"{name} sea", metadata={"size": i})
                for i, name in enumerate(SEAS)
            ],
            chunker=Lines(),
        )
        opened.documents.ingest(
            [
                Document(
                    "# Boats\n\nSail <slowly> & safely.\n\n## Ropes\n\nTie a bowline knot.\n\n## Anchors\n\n"
                    "Drop the anchor upwind.\n\x0b odd",
                    source='he said "boats" & <left>',
                    media_type="text/markdown",
                )
            ],
            collection="boats",
        )
        opened.documents.ingest(
            [Document(sea(name), source=name) for name in SEAS[:3]], collection="parents", chunker=Lines(parents=4)
        )
        yield opened


def exact(db: agentdb.Database, passages: Sequence[Passage], collection: str = "documents") -> None:
    for one in passages:
        whole = db.documents.text(one.document_id, collection=collection)
        assert whole[one.start : one.end] == one.text
        assert one.start <= one.matched[0] < one.matched[1] <= one.end


# --- search -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
@pytest.mark.parametrize("fusion", ["normalized", "rrf"])
def test_the_best_passage(db: agentdb.Database, mode: Any, fusion: Any) -> None:
    found = db.documents.search("What of irishfish7?", 5, mode=mode, fusion=fusion)
    assert found[0].text == "Fact 7 of the Irish sea tells of irishfish7 and waves."
    assert found[0].title == "Irish sea"
    assert found[0].metadata["size"] == 2
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    exact(db, found)


def test_filters_reach_metadata_and_place(db: agentdb.Database) -> None:
    chosen = db.documents.search("fact of the sea", 50, filter=field("size") >= 6)
    assert {one.source for one in chosen} == {"Coral", "Tasman"}
    assert {one.source for one in db.documents.search("sea", 9, filter=field("source") == "Red")} == {"Red"}
    ropes = db.documents.search("knot", collection="boats", filter=field("headings").contains("Ropes"))
    assert all("Ropes" in one.heading_path for one in ropes)
    identity = chosen[0].document_id
    assert {one.document_id for one in db.documents.search("sea", filter=field("document_id") == identity)} == {
        identity
    }


def test_signals_explain(db: agentdb.Database) -> None:
    best = db.documents.search("irishfish7", 1, explain=True)[0]
    assert {"vector", "text", "vector.normalized", "text.normalized"} <= set(best.signals)
    assert best.signals["text"] > 0


def test_a_reranker_decides(db: agentdb.Database) -> None:
    seen: list[str] = []

    def shortest_title(query: str, texts: Sequence[str]) -> list[float]:
        seen.extend(texts)
        return [-float(len(one)) for one in texts]

    found = db.documents.search("fact of the sea", 3, rerank=shortest_title)
    assert len(seen) == 50
    assert all(re.match(r"\w+ sea\n\nFact", one) for one in seen), "they see the title too"
    assert [one.score for one in found] == sorted((-len(one) for one in seen), reverse=True)[:3]
    assert found[0].signals["rerank"] == found[0].score
    exact(db, found)


def test_late_interaction_compares_tokens(db: agentdb.Database) -> None:
    found = db.documents.search("coralfish3 waves", 3, late_interaction=True)
    assert "coralfish3" in found[0].text
    assert found[0].signals["tokens"] == max(one.signals["tokens"] for one in found)
    assert found[0].score == pytest.approx(1)


def test_expanding_a_query(db: agentdb.Database) -> None:
    assert "tasmanfish9" not in db.documents.search("zzz", 1)[0].text
    found = db.documents.search("deadfish5", 2, expand=lambda query: ["tasmanfish9", query])
    assert ["deadfish5" in found[0].text, "tasmanfish9" in found[1].text] == [True, True]
    assert found[0].score == found[1].score == 0.5
    for wrong, message in ((lambda _: "text", "not str"), (lambda _: [7], "not int"), (lambda _: 7, "not int")):
        with pytest.raises(InvalidInputError, match=f"expand must return .*{message}"):
            db.documents.search("x", expand=wrong)  # type: ignore[arg-type]


def test_repetitions_are_left_out(db_path: Path) -> None:
    with agentdb.open(db_path, config=Config(maintenance=False), embedder=HashingEmbedder()) as db:
        licence = "Permission is hereby granted free of charge to any person obtaining a copy of this software " * 4
        db.documents.ingest([(f"file{i}", f"{licence} {i}") for i in range(30)] + [("other", "Permission to sail.")])
        found = db.documents.search("permission", 5)
        assert len(found) == 2
        assert len(db.documents.search("permission", 5, deduplicate=False)) == 5
        context = db.documents.context("permission", token_budget=500)
        assert len(context.citations) == 2
        assert {one.reason for one in context.omitted} == {"duplicate"}


def test_what_a_repetition_is() -> None:
    words = [f"w{i}" for i in range(100)]
    text = " ".join(words)

    def repeats(one: str, other: str) -> bool:
        known = Repetitions()
        assert known.is_new(one)
        return not known.is_new(other)

    assert repeats(text, text.upper().replace(" ", "\n"))
    assert repeats(text, " ".join([*words[:50], "x", *words[51:]]))
    assert not repeats(text, " ".join(words[:50]))
    assert not repeats(" ".join(words[:50]), text)
    assert not repeats(text, " ".join(reversed(words)))
    assert repeats("a b", "A  b")
    assert not repeats("a b", "b a")
    assert repeats(" ", "")
    assert not repeats("", text)
    known = Repetitions()
    assert [known.is_new(one) for one in ("a", text, "b", text, "a", "c d e f", text)] == [
        *(True, True, True),
        *(False, False, True, False),
    ]


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=30).map(" ".join), max_size=12))
def test_repetitions_are_those_that_comparing_all_finds(texts: list[str]) -> None:
    known, new = Repetitions(), []
    for text in texts:
        its = shingles(text)
        is_new = all(len(its & one) < 0.8 * len(its | one) for one in new)
        assert known.is_new(text) == is_new
        if is_new:
            new.append(its)


def test_nothing_is_searched_twice_for_what_is_not_there(db: agentdb.Database) -> None:
    asked: list[int] = []

    def rerank(_: str, texts: Sequence[str]) -> list[float]:
        asked.append(len(texts))
        return [float("waves" in one) for one in texts]

    assert len(db.documents.search("fact", 40, rerank=rerank, per_source=1)) == len(SEAS)
    assert len(db.documents.search("fact", 4, rerank=rerank, min_score=2)) == 0
    assert asked == [80, 50]


def test_a_collection_that_is_dropped_meanwhile_has_nothing(db: agentdb.Database) -> None:
    def drop(query: str) -> list[str]:
        db.documents.drop("short")
        return [query]

    for _ in range(2):
        db.documents.ingest("A short life.", collection="short")
        assert len(db.documents.search("life", collection="short")) == 1
        assert db.documents.search("life", collection="short", expand=drop) == []
    db.documents.ingest("A short life.", collection="short")
    assert db.documents.context("life", token_budget=50, collection="short", expand=drop).citations == ()

    def anew(query: str) -> list[str]:
        if db.documents.list(collection="short")[0].source == "old":
            db.documents.drop("short")
            db.documents.ingest([("new", "A second life.")], collection="short")
        return [query]

    db.documents.ingest([("old", "A short life.")], collection="short")
    assert [one.source for one in db.documents.search("life", collection="short", expand=anew)] == ["new"]
    db.documents.drop("short")


@pytest.mark.parametrize("how", ["delete", "erase", "replace", "drop"])
def test_what_goes_between_two_steps_of_a_search_is_not_half_returned(db_path: Path, how: str) -> None:
    with agentdb.open(db_path, embedder=HashingEmbedder()) as db:
        long = "The lighthouse turns. " * 400
        db.documents.ingest([(name, f"# {name}\n\n{long}") for name in ("a.md", "b.md")])
        doomed = next(one for one in db.documents.list() if one.source == "a.md")
        goes = {
            "delete": lambda: db.documents.delete(doomed.id),
            "erase": lambda: db.documents.erase(doomed.id),
            "replace": lambda: db.documents.ingest([("a.md", "It is dark.")]),
            "drop": lambda: db.documents.drop("documents"),
        }
        goes_on = {"delete": {"b.md"}, "erase": {"b.md"}, "replace": {"a.md", "b.md"}, "drop": set()}
        asked: list[int] = []

        def rerank(_: str, texts: Sequence[str]) -> np.ndarray:
            if not asked:
                goes[how]()
            asked.append(len(texts))
            return np.arange(len(texts), dtype=float)

        for look in (
            lambda: db.documents.search("lighthouse", rerank=rerank, expand_neighbors=1),
            lambda: db.documents.context("lighthouse", token_budget=9_000, rerank=rerank, expand_neighbors=1).citations,
        ):
            asked.clear()
            found = look()
            assert {one.source for one in found} == goes_on[how]
            for one in found:
                assert db.documents.text(one.document_id)[one.start : one.end] == one.text
            db.documents.ingest([(name, f"# {name}\n\n{long}") for name in ("a.md", "b.md")])


def test_diversity_of_sources(db: agentdb.Database) -> None:
    found = db.documents.search("Baltic sea fact waves", 8, per_source=1)
    assert len({one.source for one in found}) == len(found) == 8
    assert len({one.source for one in db.documents.search("Baltic sea fact waves", 8)}) < 8
    twice = db.documents.search("Baltic sea fact waves", 16, per_source=2)
    assert len(twice) == 16
    assert max(sum(one.source == name for one in twice) for name in SEAS) == 2


def test_neighbours(db: agentdb.Database) -> None:
    found = db.documents.search("irishfish7", 1, expand_neighbors=2)
    assert [int(one) for one in re.findall(r"Fact (\d+)", found[0].text)] == [5, 6, 7, 8, 9]
    exact(db, found)
    edge = db.documents.search("irishfish0", 1, expand_neighbors=2)
    assert [int(one) for one in re.findall(r"Fact (\d+)", edge[0].text)] == [0, 1, 2]
    # What the better one has around it already is not returned again.
    several = db.documents.search("irishfish7 irishfish8", 2, mode="text", expand_neighbors=1)
    assert len(several) == 1
    assert [int(one) for one in re.findall(r"Fact (\d+)", several[0].text)] == [6, 7, 8, 9]
    exact(db, several)
    # Nor is what lies between two that are apart, and connects them.
    order = {"irishfish2 ": 3.0, "irishfish5 ": 2.0, "irishfish4 ": 1.0}

    def rerank(_: str, texts: Sequence[str]) -> list[float]:
        return [next((score for name, score in order.items() if name in one), 0.0) for one in texts]

    connected = db.documents.search("irishfish2 irishfish5 irishfish4", 3, rerank=rerank, expand_neighbors=1)
    assert [int(one) for one in re.findall(r"Fact (\d+)", connected[0].text)] == [1, 2, 3, 4, 5, 6]
    assert len(connected) == 1
    exact(db, connected)


def test_parents(db: agentdb.Database) -> None:
    found = db.documents.search("northfish5 northfish6 northfish9", 3, collection="parents", mode="text")
    assert [[int(one) for one in re.findall(r"Fact (\d+)", each.text)] for each in found] == [
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    exact(db, found, "parents")
    small = db.documents.search("northfish5", 1, collection="parents", parents=False)[0]
    assert small.text == "Fact 5 of the North sea tells of northfish5 and waves."
    assert small.matched == (small.start, small.end)


def test_min_score_and_k(db: agentdb.Database) -> None:
    every = db.documents.search("irishfish7", 96)
    assert len(every) == 96
    middle = every[3].score
    assert [one.id for one in db.documents.search("irishfish7", 96, min_score=middle)] == [
        one.id for one in every if one.score >= middle
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": 7}, "query must be a str, not int"),
        ({"k": 0}, "k must be an int of 1 or more"),
        ({"mode": "magic"}, "mode must be one of"),
        ({"mode": "text", "weights": {"text": 1}}, "weights belong to mode 'hybrid'"),
        ({"per_source": 0}, "per_source must be"),
        ({"expand_neighbors": -1}, "expand_neighbors must be"),
        ({"deduplicate": 1}, "deduplicate must be a bool"),
        ({"rerank": 7}, "rerank must"),
        ({"expand": 7}, "expand must be a function"),
        ({"filter": "x = 1"}, "filter must be built from field"),
        ({"collection": ""}, "collection of documents"),
        ({"min_score": float("nan")}, "min_score must be"),
    ],
)
def test_bad_input_is_named(db: agentdb.Database, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        db.documents.search(**{"query": "x", **options})


def test_a_collection_that_does_not_exist_has_nothing(db: agentdb.Database) -> None:
    assert db.documents.search("x", collection="nothing") == []
    context = db.documents.context("x", token_budget=10, collection="nothing")
    assert (context.text, context.citations, context.omitted, context.tokens) == ("", (), (), 0)
    assert "nothing" not in db.documents.collections()


# --- context --------------------------------------------------------------------------------------------------------------


def letters(text: str) -> int:
    return len(text)


def words_and_marks(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


class Encoder:
    def encode(self, text: str) -> list[int]:
        return [0, *range(len(text.split())), 1]


TOKENIZERS: list[Callable[[str], int] | Any] = [None, letters, words_and_marks, Encoder()]


def count_of(tokenizer: Any, text: str) -> int:
    return counter_of(tokenizer, HashingEmbedder)([text])[0]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["embedder", "letters", "words", "encoder"])
@pytest.mark.parametrize("form", ["markdown", "xml", "messages"])
def test_a_budget_is_never_exceeded(db: agentdb.Database, tokenizer: Any, form: Any) -> None:
    filled = []
    for budget in (120, 137, 150, 200, 333, 500, 1_000, 4_000):
        tokens_of_a_letter = 6 if tokenizer is letters else 1
        wanted = budget * tokens_of_a_letter
        for query in ("irishfish7 and waves", "fact of the sea"):
            context = db.documents.context(query, token_budget=wanted, format=form, tokenizer=tokenizer)
            contents = [one["content"] for one in context.messages] if form == "messages" else [context.text]
            assert context.tokens == sum(count_of(tokenizer, one) for one in contents) <= wanted
            assert [one.number for one in context.citations] == list(range(1, len(context.citations) + 1))
            for one in context.citations:
                assert db.documents.text(one.document_id, one.start, one.end) == one.text
                assert one.text in context.text
            cited = [passage for one in context.citations for passage in one.passages]
            left = [one.passage_id for one in context.omitted]
            assert len(set(cited)) == len(cited)
            assert not set(cited) & set(left) or {one.reason for one in context.omitted} >= {"shortened"}
            if any(one.reason == "budget" for one in context.omitted) and budget >= 500:
                filled.append(context.tokens / wanted)
    assert not filled or np.mean(filled) > 0.8, "the room is used"


def test_passages_that_touch_are_put_together(db: agentdb.Database) -> None:
    context = db.documents.context("Irish sea irishfish", token_budget=400, filter=field("source") == "Irish", k=12)
    (cited,) = context.citations
    assert len(cited.passages) == 12
    assert cited.text == sea("Irish")
    assert context.text == f"[1] Irish sea\n\n{sea('Irish')}"
    assert context.omitted == ()


def test_many_short_passages_fill_a_budget(db: agentdb.Database) -> None:
    context = db.documents.context("fact of the sea", token_budget=1_000)
    assert sum(len(one.passages) for one in context.citations) > 60
    assert context.tokens > 900
    assert sum(len(one.passages) for one in db.documents.context("fact", token_budget=1_000, k=5).citations) == 5


def test_what_is_left_out_is_said(db: agentdb.Database) -> None:
    context = db.documents.context("Irish sea irishfish", token_budget=60, k=12, per_source=3)
    assert {one.reason for one in context.omitted} == {"budget", "per_source"}
    assert all(one.tokens > 0 for one in context.omitted)
    known = {one.id for one in db.documents.search("Irish sea irishfish", 96)}
    assert {one.passage_id for one in context.omitted} <= known


def test_the_best_is_shortened_where_nothing_fits(db: agentdb.Database) -> None:
    context = db.documents.context("irishfish7", token_budget=9)
    (cited,) = context.citations
    assert 0 < context.tokens <= 9
    assert "Fact 7 of the Irish sea tells of irishfish7 and waves.".startswith(cited.text)
    assert db.documents.text(cited.document_id, cited.start, cited.end) == cited.text
    assert context.omitted[0].reason == "shortened"
    assert db.documents.context("irishfish7", token_budget=1).text == ""


def test_a_part_of_the_best_goes_before_the_whole_of_lesser_ones(db_path: Path) -> None:
    with agentdb.open(db_path, config=Config(maintenance=False), embedder=HashingEmbedder()) as db:
        long = "The lighthouse of Elm turns its lamp once in twelve seconds. " * 20
        db.documents.ingest([("long", long), ("short", "A lamp is no lighthouse.")])
        context = db.documents.context("lighthouse lamp turns seconds Elm", token_budget=50)
        (cited,) = context.citations
        assert cited.source == "long"
        assert long.startswith(cited.text)
        assert 40 < context.tokens <= 50
        assert [one.reason for one in context.omitted] == ["shortened", "budget"]


def test_order(db: agentdb.Database) -> None:
    options: dict[str, Any] = {"token_budget": 300, "k": 9, "per_source": 3}
    by_document = db.documents.context("fact 3 or 9 of the sea", order="document", **options)
    places = [(one.source, one.start) for one in by_document.citations]
    assert len(places) > 3
    groups = [source for i, (source, _) in enumerate(places) if i == 0 or places[i - 1][0] != source]
    assert len(groups) == len(set(groups)), "each document once"
    assert all(a[1] < b[1] for a, b in pairwise(places) if a[0] == b[0])
    by_relevance = db.documents.context("fact 3 or 9 of the sea", **options)
    scores = [one.score for one in by_relevance.citations]
    assert scores == sorted(scores, reverse=True)


def test_xml_cannot_be_broken_out_of(db: agentdb.Database) -> None:
    context = db.documents.context("sail slowly", token_budget=500, format="xml", collection="boats")
    root = ET.fromstring(context.text)
    assert [one.tag for one in root] == ["source"] * len(context.citations)
    assert root[0].attrib["source"] == 'he said "boats" & <left>'
    assert root[0].attrib["number"] == "1"
    text = "".join(one.text or "" for one in root)
    assert "Sail <slowly> & safely." in text
    assert "\x0b" not in text
    assert any("\x0b" in one.text for one in context.citations), "what is stored stays as it is"


def test_messages(db: agentdb.Database) -> None:
    context = db.documents.context("irishfish7", token_budget=400, format="messages")
    assert [one["role"] for one in context.messages] == ["system", "user"]
    assert context.messages[0]["content"].endswith(context.text)
    assert context.messages[1]["content"] == "irishfish7"
    with pytest.raises(InvalidInputError, match="no room for"):
        db.documents.context("irishfish7", token_budget=5, format="messages")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_budget": 0}, "token_budget must be an int of 1 or more, not 0"),
        ({"token_budget": "many"}, "token_budget must be .*not str"),
        ({"format": "html"}, "format must be one of"),
        ({"order": "random"}, "order must be one of"),
        ({"tokenizer": 7}, "tokenizer must be"),
        ({"tokenizer": lambda _: None}, "must return a number or tokens"),
        ({"k": 0}, "k must be"),
    ],
)
def test_bad_arguments_of_a_context_are_named(db: agentdb.Database, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        db.documents.context("irishfish7", **{"token_budget": 100, **options})
    with pytest.raises(TypeError, match="colour"):
        db.documents.context("irishfish7", token_budget=100, colour="red")  # type: ignore[call-arg]


def test_tokenizers_of_all_kinds(db: agentdb.Database) -> None:
    class Ordinary:
        def encode_ordinary(self, text: str) -> list[int]:
            return list(range(len(text) // 4))

        def encode(self, text: str) -> list[int]:
            raise AssertionError("it refuses what looks like a special token")

    class Encoding:
        ids = (1, 2, 3)

        def __len__(self) -> int:
            return 3

    class Fast:
        def encode(self, text: str) -> Encoding:
            return Encoding()

    assert counter_of(Ordinary(), HashingEmbedder)(["12345678"]) == [2]
    assert counter_of(Fast(), HashingEmbedder)(["a", "b"]) == [3, 3]
    assert counter_of(HashingEmbedder(), HashingEmbedder)(["a b c"]) == [3]
    assert counter_of(None, HashingEmbedder)(["a b c"]) == [3]
    assert counter_of(lambda text: np.int64(len(text)), HashingEmbedder)(["abcd"]) == [4]


@pytest.mark.parametrize(
    "counts",
    [[], [1], [1, 2, 3], [-1, 2], [1.5, 2], [True, 2], ["1", 2], [None, 2], [float("nan"), 2]],
    ids=str,
)
def test_a_tokenizer_that_does_not_count_is_named(counts: list[Any]) -> None:
    class Wrong:
        def count_tokens(self, texts: Any) -> list[Any]:
            return counts

    with pytest.raises(InvalidInputError, match="the tokenizer must"):
        counter_of(Wrong(), HashingEmbedder)(["a", "b"])
    if len(counts) == 2:
        with pytest.raises(InvalidInputError, match="the tokenizer must"):
            counter_of(lambda _: counts[0], HashingEmbedder)(["a"])


def test_a_tokenizer_without_rhyme_or_reason_keeps_the_budget(db: agentdb.Database) -> None:
    for count in (lambda text: 1_000 - len(text), lambda text: zlib.crc32(text.encode()) % 90, lambda _: 10**30):
        made = db.documents.context("lighthouse", token_budget=50, tokenizer=count)
        assert made.tokens == (count(made.text) if made.text else 0) <= 50


# --- answers --------------------------------------------------------------------------------------------------------------


def test_an_answer_has_the_citations_that_it_named(db: agentdb.Database) -> None:
    prompts = []

    class Model:
        def complete(self, prompt: str) -> str:
            prompts.append(prompt)
            return "Waves [2], and fish [1; 2]. Not [77] or [x]."

    answer = db.documents.answer("What of irishfish7?", Model(), per_source=1)
    assert [one.number for one in answer.citations] == [2, 1]
    assert answer.unknown == (77,)
    assert str(answer).startswith("Waves")
    assert answer.citations[1].source == "Irish"
    assert answer.context.text in prompts[0]
    assert prompts[0].endswith("Question: What of irishfish7?")
    db.documents.answer(
        "x", prompts.append and (lambda prompt: prompts.append(prompt) or "no"), instructions="Be brief."
    )
    assert prompts[1].startswith("Be brief.\n\n<sources>")
    empty = db.documents.answer("x", lambda prompt: prompt, collection="nothing")
    assert "There are no sources." in empty.text
    assert empty.citations == ()
    for wrong in ({"llm": 7}, {"llm": str, "instructions": 7}, {"llm": str, "format": "messages"}):
        with pytest.raises(InvalidInputError):
            db.documents.answer("x", **wrong)
