"""``AgentDBEmbeddings``: an AgentDB embedder as LangChain sees embedding models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from agentdb import Connection, Embedder, EmbedKind, InvalidInputError, embed_texts, load_embedder

__all__ = ["AgentDBEmbeddings", "as_embeddings", "embedder_of"]


class AgentDBEmbeddings(Embeddings):
    """The vectors of an AgentDB embedder: texts are checked, made in batches, and the same as ``db.collection`` makes.

    May be called from any thread; async methods run on threads and never block the event loop.

    Args:
        embedder: an embedder, or the name of an installed one; None: the installed default, a small model that runs on this
            machine. A name is loaded when text is first embedded.

    Raises:
        InvalidInputError: it is neither.
    """

    def __init__(self, embedder: Embedder | str | None = None) -> None:
        given: object = embedder
        if not (given is None or isinstance(given, str) or callable(getattr(given, "embed", None))):
            raise InvalidInputError(
                f"embedder must be an agentdb.Embedder or the name of one, not {type(embedder).__name__}"
            )
        self._given = embedder
        self._made = None if embedder is None or isinstance(embedder, str) else embedder
        self._make: Callable[[], Embedder] | None = None
        self._mutex = threading.Lock()

    @classmethod
    def of(cls, make: Callable[[], Embedder]) -> AgentDBEmbeddings:
        """Return embeddings by an embedder that is asked for when text is first embedded."""
        made = cls()
        made._make = make
        return made

    def __copy__(self) -> Self:
        """Return itself: a model is there once."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself, as a shallow copy is."""
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[Embedder | str | None]]:
        """Be pickled as what it was made of: the name of an embedder, or one that can be pickled.

        Raises:
            TypeError: it is the embedder of an open database.
        """
        if self._make is not None:
            raise TypeError("the embeddings of an open database cannot be pickled: name the embedder instead")
        return type(self), (self._given,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self._made is None else repr(self._made)})"

    @property
    def embedder(self) -> Embedder:
        """The embedder, loaded if it was not yet.

        Raises:
            MissingDependencyError: it is not installed; the message names the extra.
        """
        with self._mutex:
            if self._made is None:
                name = self._given if isinstance(self._given, str) else None
                self._made = load_embedder(name) if self._make is None else self._make()
            return self._made

    def matrix(self, texts: Sequence[str], kind: EmbedKind = "document") -> npt.NDArray[np.float32]:
        """Return `[N, D]` float32, one finite vector for each text.

        Raises:
            InvalidInputError: a text is no string, or cannot be encoded.
        """
        return embed_texts(self.embedder, texts, kind)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vector of each text that is searched for.

        Raises:
            InvalidInputError: a text is no string, or cannot be encoded.
        """
        return _listed(self.matrix(texts))

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text that is searched with.

        Raises:
            InvalidInputError: it is no string, or cannot be encoded.
        """
        return _listed(self.matrix([text], "query"))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Do what `embed_documents` does, without blocking the event loop."""
        return await Connection.on_thread(lambda: self.embed_documents(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """Do what `embed_query` does, without blocking the event loop."""
        return await Connection.on_thread(lambda: self.embed_query(text))


def _listed(matrix: npt.NDArray[np.float32]) -> list[list[float]]:
    found: list[list[float]] = matrix.tolist()
    return found


def as_embeddings(given: Any) -> Embeddings | None:
    """Return what turns texts into vectors: LangChain's embeddings as they are, an AgentDB embedder as such; None stays None.

    Raises:
        InvalidInputError: it is neither.
    """
    if given is None or isinstance(given, Embeddings):
        return given
    try:
        return AgentDBEmbeddings(given)
    except InvalidInputError:
        raise InvalidInputError(
            f"embedding must be LangChain Embeddings, an agentdb.Embedder or None, not {type(given).__name__}"
        ) from None


def embedder_of(embeddings: Embeddings) -> Callable[[], Embedder | None]:
    """Return what tells a ``NamedCollection`` who makes its vectors: LangChain's embeddings have no name, they give vectors."""
    return lambda: embeddings.embedder if isinstance(embeddings, AgentDBEmbeddings) else None
