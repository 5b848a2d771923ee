import json
import os
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from agentdb.errors import InvalidInputError
from agentdb.vectors.analysis import encode_terms, query_terms
from agentdb.vectors.bm25 import Bm25Block, TermStatistics

DATA = Path(os.environ.get("AGENTDB_BENCH_DATA", "nowhere"))


def block_of(*texts, **parameters):
    block = Bm25Block(**parameters)
    block.append(0, encode_terms(texts))
    return block


def scores(block, query, **given):
    slots, found = block.freeze().scores(query_terms(query), **given)
    return dict(zip(slots.tolist(), found.tolist(), strict=True))


def test_the_formula():
    block = block_of("red fox", "red red dog", "blue")
    # Three rows of mean length 2; "dog" is in one, "red" in two.
    dog = np.log(1 + 2.5 / 1.5) * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / 2))
    red_once = np.log(1 + 1.5 / 2.5) * 2.2 / (1 + 1.2)
    red_twice = np.log(1 + 1.5 / 2.5) * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 3 / 2))
    assert scores(block, "dog") == pytest.approx({1: dog})
    assert scores(block, "red dog") == pytest.approx({0: red_once, 1: red_twice + dog})
    assert scores(block, "red red") == pytest.approx({0: 2 * red_once, 1: 2 * red_twice})


def test_scores_are_those_of_lance(tmp_path):
    texts = ["red fox", "red red dog", "the of", "blue", "cat cat fox dog bird", "red tree"] * 3
    dataset = lance.write_dataset(pa.table({"slot": range(len(texts)), "text": texts}), tmp_path / "texts")
    dataset.create_scalar_index("text", "INVERTED", with_position=False)
    for query in ("red", "red dog", "fox bird"):
        found = dataset.scanner(columns=["slot", "_score"], full_text_query=query, limit=100).to_table()
        expected = dict(zip(found["slot"].to_pylist(), found["_score"].to_pylist(), strict=True))
        assert scores(block_of(*texts), query) == pytest.approx(expected, rel=1e-5)


def test_parameters():
    assert scores(block_of("fox", "fox fox fox dog", k1=0), "fox")[0] == scores(block_of("fox", "fox", k1=0), "fox")[1]
    flat = scores(block_of("fox", "fox dog cat", b=0), "fox")
    assert flat[0] == flat[1]
    for wrong in ({"k1": -1}, {"b": 1.1}, {"b": float("nan")}):
        with pytest.raises(InvalidInputError, match="k1"):
            Bm25Block(**wrong)


def test_nothing_to_find():
    assert scores(Bm25Block(), "fox") == {}
    block = block_of(None, "", "the", "fox")
    assert scores(block, "") == scores(block, "the") == scores(block, "dog") == {}
    # As in Lance, rows without a term do not make the others' terms any rarer.
    assert block.freeze().statistics(query_terms("fox dog")).rows == 1
    assert list(scores(block, "fox")) == [3]


def test_a_view_stays_as_it_was():
    block = block_of(*[f"fox number{i}" for i in range(5)])
    query = query_terms("fox")
    before = block.freeze()
    slots, found = before.scores(query)
    block.remove([0, 3])
    middle = block.freeze()
    block.append(5, encode_terms(["fox"] * 20_000))
    block.remove(range(4))
    assert before.size == 5
    for view, expected in ((before, slots), (middle, [1, 2, 4])):
        assert view.scores(query)[0].tolist() == list(expected)
    assert before.scores(query)[1].tolist() == found.tolist()
    assert block.freeze().scores(query)[0].tolist() == list(range(4, 20_005))


def test_removing_twice_counts_once():
    block = block_of("fox", "fox dog", None)
    block.remove([1, 1, 2])
    block.remove([1])
    assert block.freeze().statistics(query_terms("fox")) == TermStatistics(1, 1, {int(query_terms("fox")[0]): 1})
    for wrong in ([3], [-1]):
        with pytest.raises(InvalidInputError, match="slots"):
            block.remove(wrong)


def test_slots_are_given_once_but_may_be_left_out():
    block = block_of("fox")
    block.append(7, encode_terms(["fox"]))
    assert (block.size, list(scores(block, "fox"))) == (8, [0, 7])
    with pytest.raises(InvalidInputError, match="taken"):
        block.append(7, encode_terms(["fox"]))


def test_two_blocks_score_as_one_by_their_common_statistics():
    texts = ["red fox", "red", "blue dog", None, "dog red dog", "cat"]
    whole, query = scores(block_of(*texts), "red dog bird"), query_terms("red dog bird")
    parts = [block_of(*texts[:2]), block_of(*texts[2:])]
    both = parts[0].freeze().statistics(query) + parts[1].freeze().statistics(query)
    found = [scores(part, "red dog bird", statistics=both) for part in parts]
    assert found[0] | {slot + 2: score for slot, score in found[1].items()} == whole


def test_dead_rows_leave_the_memory():
    block, texts = Bm25Block(), encode_terms([" ".join(f"w{i * 37 % 500}x{i % 50}" for i in range(100))] * 100)
    for start in range(0, 20_000, 100):
        block.append(start, texts)
        if start:
            block.remove(range(start - 100, start))
    assert block.nbytes < 4_000_000  # 20,000 rows of 100 terms would take 12 MB
    assert len(scores(block, "w0x0")) == 100


@pytest.mark.skipif(not (DATA / "scifact").is_dir(), reason="AGENTDB_BENCH_DATA names no directory with SciFact")
def test_scifact_is_ranked_as_well_as_bm25_can():
    documents, queries, judgements = (
        (DATA / "scifact" / name).read_text().splitlines()
        for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
    )
    documents = list(map(json.loads, documents))
    texts = {one["_id"]: one["text"] for one in map(json.loads, queries)}
    wanted: dict[str, set[str]] = {}
    for query, document, relevance in map(str.split, judgements[1:]):
        if int(relevance) > 0:
            wanted.setdefault(query, set()).add(document)
    view = block_of(*[f"{one['title']} {one['text']}" for one in documents]).freeze()
    discount = 1 / np.log2(np.arange(2, 12))
    gains = []
    for query, relevant in wanted.items():
        slots, found = view.scores(query_terms(texts[query]))
        best = [documents[slot]["_id"] in relevant for slot in slots[np.argsort(-found, kind="stable")[:10]]]
        gains.append(discount[: len(best)][best].sum() / discount[: len(relevant)].sum())
    assert np.mean(gains) >= 0.679
