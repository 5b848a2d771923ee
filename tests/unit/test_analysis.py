import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from agentdb.errors import IntegrityError
from agentdb.vectors.analysis import TERM, analyze, decode_terms, encode_terms, query_terms

TEXTS = st.text(st.sampled_from("ab Ré'ß.-_7ﬁ猫日ไท한हि\u0301\u00ad") | st.characters(codec="utf-8"), max_size=60)


def hashes(terms):
    return [xxhash.xxh32_intdigest(term.encode()) for term in terms]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The running dogs ran", ["run", "dog", "ran"]),
        ("Flies, flying; generalizations!", ["fli", "fli", "general"]),
        ("john's café isn\u2019t O'Brien's, it's 'quoted'", ["john", "cafe", "o'brien", "quot"]),
        ("CAFÉ cafe\u0301 ﬁne Straße STRASSE", ["cafe", "cafe", "fine", "strass", "strass"]),
        ("snake_case covid-19 3.5 km", ["snake", "case", "covid", "19", "3", "5", "km"]),
        ("co\u00adoperate ٣٤", ["cooper", "٣٤"]),
        ("日本語text猫", ["日本", "本語", "text", "猫"]),
        ("한국어 ไทย", ["한국", "국어", "ไท", "ทย"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Привет МИР й", ["привет", "мир", "и"]),
        ("🙂 -- ''", []),
        ("the of and", []),
        ("", []),
    ],
)
def test_what_counts_as_a_term(text, terms):
    assert analyze([text]) == [terms]
    assert query_terms(text).tolist() == hashes(terms)


def test_a_very_long_word_counts_as_its_beginning():
    assert analyze(["x" * 1000]) == analyze(["x" * 100]) != analyze(["x" * 10])


@given(TEXTS)
def test_how_a_text_is_composed_makes_no_difference(text):
    assert analyze([unicodedata.normalize("NFC", text)]) == analyze([unicodedata.normalize("NFD", text)])


@given(st.text(st.characters(codec="ascii")))
def test_letter_case_makes_no_difference_and_other_scripts_change_no_word(text):
    terms = analyze([text])[0]
    assert analyze([text.upper()])[0] == terms
    # One foreign character sends the whole text the long way.
    assert analyze([text + " \u4e00"])[0] == [*terms, "\u4e00"]


@given(st.lists(st.none() | TEXTS, max_size=8), st.integers(0, 3))
def test_stored_terms_are_the_analysis(texts, skipped):
    stored = encode_terms(texts)
    assert stored.type == pa.binary()
    assert stored.is_null().to_pylist() == [text is None for text in texts]
    # A column read back is a slice of something larger, or several chunks.
    for column in (stored[skipped:], pa.chunked_array([stored[skipped:], stored[:0]])):
        records, sizes = decode_terms(column)
        expected = texts[skipped:]
        ends = np.cumsum(sizes)
        for text, begin, end in zip(expected, ends - sizes, ends, strict=True):
            part = records[begin:end]
            assert part["hash"].tolist() == sorted(set(part["hash"].tolist()))
            assert dict(part.tolist()) == Counter(hashes(analyze([text])[0] if text else []))


def test_many_texts_are_encoded_as_each_alone():
    texts = [f"word{i} and word{i % 7} again word{i}" for i in range(10_000)]
    assert encode_terms(texts)[9_000:9_050].to_pylist() == encode_terms(texts[9_000:9_050]).to_pylist()


def test_a_count_stops_at_what_two_bytes_hold():
    records, _ = decode_terms(encode_terms(["word " * 70_000]))
    assert records["count"].tolist() == [65_535]


def test_damaged_terms_are_told_from_terms():
    with pytest.raises(IntegrityError, match="damaged"):
        decode_terms(pa.array([b"x" * TERM.itemsize, b"x"]))
