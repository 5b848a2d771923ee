"""The conformance suite of the `Embedder` port: inherit it, say how an embedder is made, run it with pytest."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from agentdb.embedding import Embedder, EmbedderIdentity, TokenCounter, TokenEmbedder, embed_texts, is_embedder
from agentdb.errors import ClosedError, InvalidInputError

__all__ = ["EmbedderSuite"]

TEXTS = (
    "the cat sat on the mat",
    "quarterly revenue rose by four percent",
    "",
    " \n\t",
    "Grüße, 世界! \N{WAVING HAND SIGN}",
    "NUL \0 and a quote ' and a \" and a backslash \\",
    "the cat sat on the mat",
)


class EmbedderSuite:
    """Every embedder passes this unchanged.

    A subclass named ``Test...`` overrides `make_embedder`, and `similar` where its vectors know no meaning.
    """

    similar: tuple[str, str, str] = ("the cat sat", "a feline rested", "quarterly revenue")
    """A text, one that must be nearer to it, one that must be farther."""

    def make_embedder(self) -> Embedder:
        """Return an open embedder; the same one each time if it is dear to make."""
        raise NotImplementedError

    def make_closable(self) -> Embedder | None:
        """Return an embedder that a test may close, or None where there is nothing to close."""
        return None

    def test_has_the_members_of_the_port(self) -> None:
        embedder = self.make_embedder()
        assert is_embedder(embedder)
        assert isinstance(embedder.name, str)
        assert embedder.name
        assert type(embedder.dimension) is int
        assert embedder.dimension >= 1
        assert type(embedder.max_tokens) is int
        assert embedder.max_tokens >= 1

    def test_identity_is_stable(self) -> None:
        assert EmbedderIdentity.of(self.make_embedder()) == EmbedderIdentity.of(self.make_embedder())

    @pytest.mark.parametrize("kind", ["query", "document"])
    def test_vectors_are_a_float32_matrix(self, kind: str) -> None:
        embedder = self.make_embedder()
        vectors = embedder.embed(TEXTS, kind=kind)  # type: ignore[arg-type]
        assert isinstance(vectors, np.ndarray)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(TEXTS), embedder.dimension)
        assert vectors.flags.c_contiguous
        assert np.isfinite(vectors).all()
        assert (np.linalg.norm(vectors, axis=1) > 0).all(), "a zero vector has no cosine"

    def test_default_kind_is_document(self) -> None:
        embedder = self.make_embedder()
        np.testing.assert_array_equal(embedder.embed(["a cat"]), embedder.embed(["a cat"], "document"))

    def test_no_texts_give_no_vectors(self) -> None:
        embedder = self.make_embedder()
        vectors = embedder.embed([])
        assert vectors.shape == (0, embedder.dimension)
        assert vectors.dtype == np.float32

    def test_vectors_come_in_the_order_of_the_texts(self) -> None:
        embedder = self.make_embedder()
        texts = [f"{'word ' * (number % 7)}{number}" for number in range(70)]
        together = embedder.embed(texts)
        for row in (0, 6, 33, 69):
            np.testing.assert_allclose(together[row], embedder.embed([texts[row]])[0], atol=1e-4)

    def test_equal_texts_give_equal_vectors(self) -> None:
        vectors = self.make_embedder().embed(TEXTS)
        np.testing.assert_allclose(vectors[0], vectors[-1], atol=1e-5)

    def test_input_is_not_modified(self) -> None:
        texts = list(TEXTS)
        self.make_embedder().embed(texts)
        assert texts == list(TEXTS)

    def test_accepts_tuples_and_lists(self) -> None:
        embedder = self.make_embedder()
        np.testing.assert_allclose(embedder.embed(("a", "b")), embedder.embed(["a", "b"]), atol=1e-5)

    def test_a_text_longer_than_the_model_reads_is_accepted(self) -> None:
        embedder = self.make_embedder()
        words = min(embedder.max_tokens, 4_000) + 10
        assert np.isfinite(embedder.embed(["word " * words])).all()

    def test_near_in_meaning_is_near_in_space(self) -> None:
        embedder = self.make_embedder()
        vectors = embedder.embed(self.similar).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]

    def test_calls_from_several_threads_agree(self) -> None:
        embedder = self.make_embedder()
        expected = embedder.embed(TEXTS)
        with ThreadPoolExecutor(4) as pool:
            for vectors in pool.map(embedder.embed, [TEXTS] * 12):
                np.testing.assert_allclose(vectors, expected, atol=1e-4)

    def test_checked_call_accepts_it(self) -> None:
        embedder = self.make_embedder()
        assert embed_texts(embedder, list(TEXTS), "query").shape == (len(TEXTS), embedder.dimension)
        with pytest.raises(InvalidInputError):
            embed_texts(embedder, ["\ud800"])

    def test_repr_is_short(self) -> None:
        assert len(repr(self.make_embedder())) < 300

    def test_counts_tokens_if_it_says_so(self) -> None:
        embedder = self.make_embedder()
        if not isinstance(embedder, TokenCounter):
            pytest.skip("counts no tokens")
        counts = embedder.count_tokens(TEXTS)
        assert len(counts) == len(TEXTS)
        assert all(type(count) is int and count >= 0 for count in counts)
        assert embedder.count_tokens([]) == []
        long, longer = embedder.count_tokens(["word " * 5_000, "word " * 5_001])
        assert 5_000 <= long < longer, "what is beyond the model's limit counts too"

    def test_embeds_tokens_if_it_says_so(self) -> None:
        embedder = self.make_embedder()
        if not isinstance(embedder, TokenEmbedder):
            pytest.skip("embeds no tokens")
        self._check_token_vectors(embedder, TEXTS)
        assert embedder.embed_tokens([]) == []

    def test_closing_ends_it(self) -> None:
        embedder = self.make_closable()
        if embedder is None:
            pytest.skip("nothing to close")
        close = embedder.close  # type: ignore[attr-defined]
        embedder.embed(["a cat"])
        close()
        close()
        with pytest.raises(ClosedError):
            embedder.embed(["a cat"])

    @staticmethod
    def _check_token_vectors(embedder: TokenEmbedder, texts: Sequence[str]) -> None:
        alone = [embedder.embed_tokens([text])[0] for text in texts]
        together = embedder.embed_tokens(texts)
        assert len(together) == len(texts)
        for (ids, vectors), (alone_ids, alone_vectors) in zip(together, alone, strict=True):
            assert ids.dtype == np.int64
            assert vectors.dtype == np.float32
            assert ids.ndim == 1
            assert vectors.ndim == 2
            assert len(ids) == len(vectors)
            assert np.isfinite(vectors).all()
            np.testing.assert_array_equal(ids, alone_ids)
            np.testing.assert_allclose(vectors, alone_vectors, atol=1e-3)
