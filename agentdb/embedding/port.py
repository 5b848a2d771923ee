"""What an embedder is, what it may be able to do besides, and what counts as a vector.

An embedder that holds resources (a model, a connection) may have a ``close()`` method; whoever made the embedder
calls it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError

__all__ = [
    "EmbedKind",
    "Embedder",
    "EmbedderIdentity",
    "ImageEmbedder",
    "TokenCounter",
    "TokenEmbedder",
    "check_texts",
    "check_vectors",
    "embed_texts",
    "is_embedder",
]

EmbedKind = Literal["query", "document"]
"""What a text is for. Many models are trained with a different prompt for each."""


class Embedder(Protocol):
    """Turns texts into vectors of one fixed dimension. Every method may be called from any thread."""

    @property
    def name(self) -> str:
        """Identify the vector space: equal names and dimensions mean that vectors are comparable."""

    @property
    def dimension(self) -> int:
        """Numbers in a vector, at least 1. May load the model or ask the server on first use."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that reach the model, at least 1; what is beyond does not change the vector."""

    def embed(self, texts: Sequence[str], kind: EmbedKind = "document") -> npt.NDArray[np.float32]:
        """Return one finite, non-zero vector for each text, in the order given.

        Args:
            texts: any number of strings, empty ones included.
            kind: whether the texts are searched for or searched with.

        Returns:
            `[N, D]` float32. The vector of a text depends on the other texts by rounding at most.
        """


def is_embedder(value: object) -> bool:
    """Return whether the value has the members of an `Embedder`, without loading anything.

    `isinstance` would read the properties on Python 3.11, and `dimension` may load a model.
    """
    missing = object()
    return all(
        inspect.getattr_static(value, member, missing) is not missing
        for member in ("name", "dimension", "max_tokens", "embed")
    )


@runtime_checkable
class TokenEmbedder(Protocol):
    """Optional: one vector per token, for late interaction and late chunking."""

    def embed_tokens(
        self, texts: Sequence[str], kind: EmbedKind = "document"
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Return token ids `[T]` and finite vectors `[T, D]` for each text, special tokens included, no padding."""


@runtime_checkable
class TokenCounter(Protocol):
    """Optional: exact token counts, for chunking and context budgets."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each whole text has, before any truncation, special tokens included."""


@runtime_checkable
class ImageEmbedder(Protocol):
    """Optional: images in the same vector space as texts."""

    def embed_images(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return `[N, D]` float32, one finite vector for each image (a path, or encoded image bytes)."""


@dataclass(frozen=True, slots=True)
class EmbedderIdentity:
    """Which vector space stored vectors belong to; kept beside them."""

    name: str
    dimension: int

    @classmethod
    def of(cls, embedder: Embedder) -> EmbedderIdentity:
        """Return the identity of an embedder; may load its model."""
        return cls(embedder.name, embedder.dimension)

    def require_match(self, embedder: Embedder) -> None:
        """Return only if the embedder's vectors are comparable with the stored ones.

        Raises:
            InvalidInputError: name or dimension differ.
        """
        # The name first: it costs nothing, the dimension may load a model.
        if embedder.name != self.name or embedder.dimension != self.dimension:
            raise InvalidInputError(
                f"the stored vectors were made by embedder {self.name!r} ({self.dimension} dimensions), but this "
                f"database was opened with {embedder.name!r}: open it with the embedder that made them, or store "
                "the texts again in a new collection"
                if embedder.name != self.name
                else f"embedder {self.name!r} made stored vectors of {self.dimension} dimensions, but now makes "
                f"{embedder.dimension}"
            )


def check_vectors(
    vectors: object,
    *,
    rows: int | None = None,
    dimension: int | None = None,
    source: str = "vectors",
    positions: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """Return `[N, D]` C-contiguous finite float32, copied only if a conversion is needed.

    Args:
        vectors: anything numpy reads as a matrix of numbers.
        rows: N, where the caller knows it.
        dimension: D, where the caller knows it.
        source: names the vectors in an error.
        positions: what an error calls the rows; None: 0, 1, ...

    Raises:
        InvalidInputError: not a matrix of real numbers, another shape, or a value that is not finite in float32.
    """
    try:
        array = np.asarray(vectors)
    except ValueError:
        raise InvalidInputError(f"{source} must all have the same dimension") from None
    if array.dtype.kind not in "fiu":
        raise InvalidInputError(f"{source} must be real numbers, not {array.dtype.name}")
    if array.ndim != 2:
        raise InvalidInputError(f"{source} must be a matrix [N, D], not of shape {list(array.shape)}")
    if rows is not None and array.shape[0] != rows:
        raise InvalidInputError(f"{source}: expected {rows} rows, got {array.shape[0]}")
    if dimension is not None and array.shape[1] != dimension:
        raise InvalidInputError(f"{source}: expected {dimension} dimensions, got {array.shape[1]}")
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite and is refused below
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        row = row if positions is None else int(positions[row])
        raise InvalidInputError(f"{source}: row {row} holds a value that is not a finite float32")
    return array


def check_texts(texts: Sequence[str]) -> None:
    """Return only if these are strings that can be encoded.

    Raises:
        InvalidInputError: one is not, or they are one string themselves.
    """
    if isinstance(texts, str):
        raise InvalidInputError("texts must be a sequence of strings, not one string")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"texts[{position}] must be a string, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInputError(f"texts[{position}] holds a lone surrogate") from None


def embed_texts(embedder: Embedder, texts: Sequence[str], kind: EmbedKind = "document") -> npt.NDArray[np.float32]:
    """Return what the embedder makes of the texts, `[N, D]` float32, after checking both sides.

    Raises:
        InvalidInputError: a text is no string or cannot be encoded, or the embedder broke its contract.
    """
    check_texts(texts)
    if kind not in ("query", "document"):
        raise InvalidInputError(f"kind must be 'query' or 'document', not {kind!r}")
    if not texts:
        return np.empty((0, embedder.dimension), np.float32)
    return check_vectors(
        embedder.embed(texts, kind),
        rows=len(texts),
        dimension=embedder.dimension,
        source=f"vectors of embedder {embedder.name!r}",
    )
