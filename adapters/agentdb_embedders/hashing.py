"""An embedder without a model, for tests and for comparing words rather than meaning."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from agentdb import EmbedKind, InvalidInputError

__all__ = ["HashingEmbedder"]

_WORD = re.compile(r"\w+")


@lru_cache(maxsize=1 << 16)
def _hash(feature: str) -> int:
    """Return 64 bits that are the same in every process and on every platform, unlike `hash()`."""
    return int.from_bytes(blake2b(feature.encode(), digest_size=8).digest(), "little")


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class HashingEmbedder:
    """Return equal vectors for equal texts in every process and on every platform; texts that share words are near.

    A signed feature hash of word n-grams, normalised to length 1. It knows no synonyms.

    Args:
        dimension: D, at least 8. Small dimensions collide more.
        ngrams: longest run of words that counts as a feature, at least 1.

    Source:
        Weinberger et al., Feature Hashing for Large Scale Multitask Learning, 2009, https://arxiv.org/abs/0902.2206
    """

    def __init__(self, dimension: int = 256, *, ngrams: int = 2) -> None:
        if dimension < 8:
            raise InvalidInputError(f"dimension must be at least 8, not {dimension}")
        if ngrams < 1:
            raise InvalidInputError(f"ngrams must be at least 1, not {ngrams}")
        self._dimension = dimension
        self._ngrams = ngrams

    def __repr__(self) -> str:
        return f"HashingEmbedder(dimension={self._dimension}, ngrams={self._ngrams})"

    @property
    def name(self) -> str:
        """The scheme and its n-grams."""
        return f"hashing-{self._ngrams}-v1"

    @property
    def dimension(self) -> int:
        """D."""
        return self._dimension

    @property
    def max_tokens(self) -> int:
        """No text is truncated."""
        return 2**31 - 1

    def embed(self, texts: Sequence[str], kind: EmbedKind = "document") -> npt.NDArray[np.float32]:
        """Return `[N, D]` float32 of length 1; queries and documents are treated alike."""
        del kind
        vectors = np.zeros((len(texts), self._dimension), np.float32)
        for row, text in enumerate(texts):
            words = _words(text)
            vectors[row] = self._vector(self._features(words)) if words else self._vector([f"\0{text}"])
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of words of each text."""
        return [len(_words(text)) for text in texts]

    def embed_tokens(
        self, texts: Sequence[str], kind: EmbedKind = "document"
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Return an id and a vector for each word, whatever its neighbours."""
        del kind
        found = []
        for text in texts:
            words = _words(text)
            ids = np.array([_hash(word) >> 1 for word in words], np.int64)
            vectors = np.zeros((len(words), self._dimension), np.float32)
            for row, word in enumerate(words):
                vectors[row] = self._vector([word])
            found.append((ids, vectors))
        return found

    def _features(self, words: Sequence[str]) -> Iterator[str]:
        yield from words
        for length in range(2, self._ngrams + 1):
            for start in range(len(words) - length + 1):
                yield "\1".join(words[start : start + length])

    def _vector(self, features: Sequence[str] | Iterator[str]) -> npt.NDArray[np.float32]:
        # Integer counts and one correctly rounded square root: the same bits on every platform.
        counts: dict[int, int] = {}
        last = 0
        for feature in features:
            last = _hash(feature)
            slot = (last >> 1) % self._dimension
            counts[slot] = counts.get(slot, 0) + (1 if last & 1 else -1)
        squares = sum(count * count for count in counts.values())
        if not squares:  # every feature met its negative: any fixed non-zero vector will do
            counts, squares = {(last >> 1) % self._dimension: 1}, 1
        vector = np.zeros(self._dimension, np.float32)
        length = math.sqrt(squares)
        for slot, count in counts.items():
            vector[slot] = count / length
        return vector
