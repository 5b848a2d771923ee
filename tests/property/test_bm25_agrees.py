"""A block that rows come to and leave is always what a plain BM25 over the living rows says."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentdb.vectors import bm25
from agentdb.vectors.analysis import analyze, encode_terms, query_terms

WORDS = [f"w{i}" for i in range(12)]
TEXT = st.none() | st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
STEP = st.lists(TEXT, min_size=1, max_size=30) | st.lists(st.integers(0, 99), min_size=1, max_size=20).map(tuple)


def plain_bm25(texts, query, k1, b):
    documents = {slot: Counter(analyze([text])[0]) for slot, text in texts.items() if text}
    mean = sum(map(Counter.total, documents.values())) / len(documents) if documents else 0
    scores = {}
    for slot, words in documents.items():
        for word in analyze([query])[0]:
            if words[word]:
                frequency = sum(word in other for other in documents.values())
                idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
                norm = k1 * (1 - b + b * words.total() / mean)
                scores[slot] = scores.get(slot, 0) + idf * words[word] * (k1 + 1) / (words[word] + norm)
    return scores


@pytest.mark.parametrize("tail", [1, 16, bm25._TAIL])
@given(st.lists(STEP, max_size=12), st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), st.sampled_from([0, 1]))
def test_a_block_agrees_with_plain_bm25(tail, steps, query, gap):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25, "_TAIL", tail)  # small, so that runs are made and merged
        block, texts, views = bm25.Bm25Block(k1=1.5, b=0.6), {}, []
        for step in steps:
            if isinstance(step, list):
                first = block.size + gap
                block.append(first, encode_terms(step))
                texts |= dict(enumerate(step, first))
            else:
                gone = [slot for slot in step if slot < block.size]
                block.remove(gone)
                texts = {slot: text for slot, text in texts.items() if slot not in gone}
            views.append((block.freeze(), plain_bm25(texts, query, 1.5, 0.6)))
        for view, expected in views:
            slots, scores = view.scores(query_terms(query))
            assert slots.tolist() == sorted(expected)
            np.testing.assert_allclose(scores, [expected[slot] for slot in slots.tolist()], rtol=1e-5)
