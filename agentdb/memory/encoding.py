"""How memories are turned into what recall compares: a vector, and for short ones the vectors of their tokens in context.

A short memory is read by the embedder once, behind the last words of the two before it in its session. Only its own tokens are
kept, but they have seen what came before: "Yes, in May!" knows what it answers. Their mean is the memory's vector. A long memory
speaks for itself: it is read alone, in windows if it is longer than the model reads, and has no token vectors.

Source: Khattab and Zaharia, "ColBERT", SIGIR 2020 (late interaction); Günther et al., "Late Chunking", 2024 (arXiv 2409.04701:
pooling after the model has seen the surroundings). The projection is orthogonal and random, which keeps angles in expectation:
Johnson and Lindenstrauss, 1984.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from agentdb.embedding import Embedder, TokenCounter, TokenEmbedder, check_vectors, embed_texts
from agentdb.embedding.windows import windows_of
from agentdb.errors import IntegrityError

__all__ = [
    "CONTEXT_WORDS",
    "SHORT_WORDS",
    "Encoded",
    "Encoder",
    "QueryVectors",
    "Reading",
    "decode_tokens",
    "decode_vectors",
]

SHORT_WORDS = 100
"""Up to so many words a memory is short: it fits a small model's window together with its context."""
CONTEXT_WORDS = 40
"""The last words of each memory before it that are read along: most of what an answer refers to."""
CONTEXT_MEMORIES = 2
MOST_WINDOWS = 8
"""Of a long memory, evenly spread: one vector says no more, and a file that was pasted must not hold up a write for seconds."""
TOKEN_DIMENSION = 128
"""Token vectors are projected to so many numbers of one byte; see docs/decisions/016 for what that costs."""

_PROBE = "The cat sat on the mat, and nobody minded."
_SAME = 0.999

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reading:
    """A memory to be encoded: its own words, and those that came before."""

    own: str
    before: str = ""

    @property
    def is_short(self) -> bool:
        """Whether it is read in context."""
        return len(self.own.split()) <= SHORT_WORDS

    @classmethod
    def of(cls, own: str, before: Sequence[str]) -> Reading:
        """Return a memory behind the last of those before it, oldest first."""
        tails = [" ".join(one.split()[-CONTEXT_WORDS:]) for one in before[-CONTEXT_MEMORIES:]]
        return cls(own, "\n".join(tails))


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is stored of one memory: little-endian bytes that `decode_vectors` and `decode_tokens` read.

    Attributes:
        vector: `[D]` float16, of length 1.
        tokens: None where there are none: the memory is long, or the embedder makes no token vectors.
    """

    vector: bytes
    tokens: bytes | None


@dataclass(frozen=True, slots=True)
class QueryVectors:
    """A query as recall compares it.

    Attributes:
        vector: `[D]` float32, of length 1.
        ids: `[T]` int32 token ids; None without token vectors.
        tokens: `[T, 128]` float32 unit vectors, projected.
    """

    vector: Matrix
    ids: npt.NDArray[np.int32] | None
    tokens: Matrix | None


def _unit(vectors: npt.NDArray[Any]) -> Matrix:
    given = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(given, axis=-1, keepdims=True)
    found: Matrix = given / np.maximum(lengths, 1e-12)
    return found


@lru_cache(maxsize=4)
def _projection(dimension: int) -> Matrix | None:
    """Return `[D, 128]` orthonormal columns, the same ones for ever; None where there is nothing to save."""
    if dimension <= TOKEN_DIMENSION:
        return None
    # From a generator whose stream numpy promises to keep, and by a decomposition made unique by its signs.
    numbers = np.random.Generator(np.random.PCG64(20_240_904)).standard_normal((dimension, TOKEN_DIMENSION))
    q, r = np.linalg.qr(numbers)
    found: Matrix = (q * np.sign(np.diag(r))).astype(np.float32)
    return found


def _projected(vectors: Matrix, *, is_alone: bool = False) -> Matrix:
    projection, units = _projection(vectors.shape[1]), _unit(vectors)
    if projection is None:
        return _unit(units)
    # Of one query this takes 0.2 ms. BLAS takes less, but divides it among threads and waits for them: 25 ms where cores are busy.
    return _unit(np.einsum("td,dp->tp", units, projection) if is_alone else units @ projection)


def _encode_tokens(ids: npt.NDArray[Any], vectors: Matrix) -> bytes:
    packed = np.rint(_projected(vectors) * 127).astype(np.int8)
    return ids.astype("<i4").tobytes() + packed.tobytes()


def decode_tokens(data: bytes, dimension: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Return token ids `[T]` and vectors `[T, min(D, 128)]` in 1/127 of what `Encoder` stored.

    Raises:
        IntegrityError: the bytes are no tokens of that dimension.
    """
    width = min(dimension, TOKEN_DIMENSION)
    count, rest = divmod(len(data), width + 4)
    if rest:
        raise IntegrityError("stored token vectors of a memory are damaged: their length is no multiple of a token's")
    ids = np.frombuffer(data, "<i4", count)
    return ids, np.frombuffer(data, np.int8, count * width, 4 * count).reshape(count, width)


def decode_vectors(data: Sequence[bytes], dimension: int) -> Matrix:
    """Return `[n, D]` float32 of what `Encoder` stored.

    Raises:
        IntegrityError: one of them is no vector of that dimension.
    """
    if any(len(one) != 2 * dimension for one in data):
        raise IntegrityError("the stored vector of a memory is damaged: it has another length")
    return np.frombuffer(b"".join(data), "<f2").reshape(len(data), dimension).astype(np.float32)


class Encoder:
    """Encodes memories and queries by an embedder. May be used from any thread, as the embedder may.

    Args:
        embedder: makes vectors; token vectors too, if it can make and count tokens.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._probed: tuple[int, int, bool] | None = None

    @property
    def has_tokens(self) -> bool:
        """Whether short memories get token vectors."""
        return isinstance(self.embedder, TokenEmbedder) and isinstance(self.embedder, TokenCounter)

    def encode(self, readings: Sequence[Reading]) -> list[Encoded]:
        """Return what is to be stored of memories, in their order."""
        found: list[Encoded | None] = [None] * len(readings)
        in_context = [i for i, one in enumerate(readings) if one.is_short]
        long = [i for i, one in enumerate(readings) if not one.is_short]
        if self.has_tokens:
            in_context = self._encode_short(readings, in_context, found)
        rest = sorted(in_context + long)
        vectors = _unit(self._embed_whole([readings[i].own for i in rest])).astype("<f2")
        for i, vector in zip(rest, vectors, strict=True):
            found[i] = Encoded(vector.tobytes(), None)
        return [one for one in found if one is not None]

    def _encode_short(
        self, readings: Sequence[Reading], chosen: Sequence[int], found: list[Encoded | None]
    ) -> list[int]:
        """Encode memories in context with their tokens; return those whose own tokens the model did not see whole."""
        embedder: Any = self.embedder
        if not chosen:
            return []
        front, back, is_mean = self._probe()
        tokens: dict[int, bytes] = {}
        means: dict[int, Matrix] = {}
        texts = [f"{readings[i].before}\n{readings[i].own}" if readings[i].before else readings[i].own for i in chosen]
        sizes = embedder.count_tokens([readings[i].own for i in chosen])
        wholes = embedder.count_tokens(texts)
        fitting = [at for at, whole in enumerate(wholes) if whole <= embedder.max_tokens]
        read = embedder.embed_tokens([texts[at] for at in fitting], kind="document")
        for at, (ids, vectors) in zip(fitting, read, strict=True):
            own = sizes[at] - front - back
            if len(ids) != wholes[at] or not 0 < own <= len(ids):
                continue  # counted otherwise than read: its tokens cannot be told from its context's
            part = slice(len(ids) - back - own, len(ids) - back)
            tokens[at] = _encode_tokens(ids[part], vectors[part])
            if is_mean:
                means[at] = _unit(check_vectors(vectors[part], dimension=embedder.dimension).mean(axis=0))
        if not is_mean and tokens:
            pooled = _unit(embed_texts(self.embedder, [readings[chosen[at]].own for at in tokens], "document"))
            means = dict(zip(tokens, pooled, strict=True))
        for at, its in tokens.items():
            found[chosen[at]] = Encoded(means[at].astype("<f2").tobytes(), its)
        return [i for i in chosen if found[i] is None]

    def _embed_whole(self, texts: Sequence[str]) -> Matrix:
        """Return `[n, D]`, of a text that is longer than the embedder reads the mean of its windows."""
        if not isinstance(self.embedder, TokenCounter):
            return embed_texts(self.embedder, texts, "document")
        windows = windows_of(
            texts, [0] * len(texts), self.embedder.max_tokens, self.embedder.count_tokens, most=MOST_WINDOWS
        )
        return windows.pooled(embed_texts(self.embedder, windows.texts, "document"))

    def encode_queries(self, queries: Sequence[str]) -> list[QueryVectors]:
        """Return queries as they are compared, read in one batch."""
        if not queries:
            return []
        if not self.has_tokens:
            return [QueryVectors(one, None, None) for one in _unit(embed_texts(self.embedder, queries, "query"))]
        embedder: Any = self.embedder
        front, back, is_mean = self._probe()
        read = embedder.embed_tokens(queries, kind="query")
        if is_mean:
            means = [check_vectors(tokens, dimension=embedder.dimension).mean(axis=0) for _, tokens in read]
            vectors = [_unit(one) for one in means]
        else:
            vectors = list(_unit(embed_texts(self.embedder, queries, "query")))
        found = []
        for vector, (ids, tokens) in zip(vectors, read, strict=True):
            inner = slice(front, len(ids) - back) if len(ids) > front + back else slice(None)
            found.append(
                QueryVectors(vector, ids[inner].astype(np.int32), _projected(tokens[inner], is_alone=len(queries) == 1))
            )
        return found

    def _probe(self) -> tuple[int, int, bool]:
        """Return how many tokens the embedder puts before and behind every text, and whether it averages token vectors.

        Where it does, one pass gives the vector of a text as well as those of its tokens.
        """
        if self._probed is None:
            embedder: Any = self.embedder
            (empty, _), (word, vectors) = embedder.embed_tokens(["", _PROBE], kind="document")
            back = 0
            while back < min(len(empty), len(word)) and empty[-1 - back] == word[-1 - back]:
                back += 1
            pooled = _unit(embed_texts(self.embedder, [_PROBE], "document"))[0]
            self._probed = len(empty) - back, back, bool(pooled @ _unit(vectors.mean(axis=0)) > _SAME)
        return self._probed
