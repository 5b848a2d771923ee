from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentdb
from agentdb.embedding.windows import windows_of
from agentdb_embedders import HashingEmbedder


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) + 2 for text in texts]


class Narrow(HashingEmbedder):
    """Reads no more than twelve tokens of a text, as a small model would."""

    @property
    def max_tokens(self) -> int:
        return 12

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return words(texts)

    def embed(self, texts, kind="document"):
        return super().embed([" ".join(text.split()[:10]) for text in texts], kind)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), max_size=6),
    st.integers(8, 20),
    st.sampled_from([" ", ". ", "\n"]),
)
def test_every_word_is_read_behind_the_lead_and_fits(sizes, limit, between) -> None:
    leads = ["".join(f"t{i} " for i in range(lead)) for lead, _ in sizes]
    bodies = [between.join(f"w{i}" for i in range(body)) for _, body in sizes]
    texts = [lead + body for lead, body in zip(leads, bodies, strict=True)]
    windows = windows_of(texts, [len(one) for one in leads], limit, words)
    assert windows.tokens.tolist() == words(windows.texts)
    assert (windows.tokens <= limit).all()
    assert sorted(set(windows.owners.tolist())) == list(range(len(texts)))
    assert (np.diff(windows.owners) >= 0).all()
    for owner, (lead, body) in enumerate(zip(leads, bodies, strict=True)):
        its = [text for text, one in zip(windows.texts, windows.owners, strict=True) if one == owner]
        if len(its) == 1:
            assert its == [lead + body]
            continue
        head = lead if words([lead])[0] <= limit // 2 else ""
        assert all(one.startswith(head) for one in its)
        assert "".join(one[len(head) :] for one in its) == body


def test_a_passage_without_spaces_is_divided_too() -> None:
    windows = windows_of(["x" * 1_000], [0], 64, lambda texts: [len(one) for one in texts])
    assert "".join(windows.texts) == "x" * 1_000
    assert max(windows.tokens) <= 64
    assert windows_of([], [], 64, words).pooled(np.empty((0, 3), np.float32)).shape == (0, 3)


def test_windows_that_are_too_few_are_spread_over_the_text() -> None:
    text = " ".join(f"w{i}" for i in range(1_000))
    windows = windows_of([text, "short"], [0, 0], 20, words, most=4)
    assert windows.owners.tolist() == [0, 0, 0, 0, 1]
    assert "".join(windows.texts[:4]) == text
    assert windows.tokens[:4].max() <= 1.2 * windows.tokens[:4].min()


def test_windows_are_pooled_by_direction_and_length() -> None:
    texts = ["a b c", " ".join("abcdefghijkl"), "d"]
    windows = windows_of(texts, [0, 0, 0], 9, words)
    assert windows.owners.tolist() == [0, 1, 1, 2]
    vectors = np.array([[3, 0], [0, 5], [2, 0], [0, 7]], np.float32)
    first, second = windows.tokens[1:3]
    mean = np.array([second, first]) / np.hypot(first, second)
    np.testing.assert_allclose(windows.pooled(vectors), [[3, 0], mean, [0, 7]], atol=1e-6)


@pytest.mark.parametrize("place", ["first", "last"])
def test_what_lies_beyond_the_reach_of_the_embedder_is_found_by_its_vector(tmp_path, place: str) -> None:
    filler = " ".join(f"filler{i}" for i in range(30))
    text = f"needle haystack {filler}" if place == "first" else f"{filler} needle haystack"
    with agentdb.open(tmp_path, embedder=Narrow()) as db:
        db.documents.ingest([("about", text), ("other", " ".join(f"other{i}" for i in range(40)))])
        found = db.documents.search("needle haystack", 1, mode="vector")
        assert [one.source for one in found] == ["about"]
        assert found[0].text == text, "a chunk may be longer than what the embedder reads at once"
