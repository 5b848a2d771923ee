"""``NamedCollection``: a collection that is made when the first vectors come, because only they tell how long vectors are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from langchain_core.embeddings import Embeddings

from agentdb import Collection, Database, InvalidInputError, NotFoundError
from langchain_agentdb.embeddings import AgentDBEmbeddings

__all__ = ["CollectionMetric", "NamedCollection"]

CollectionMetric = Literal["cosine", "dot", "euclidean"]
R = TypeVar("R")


class NamedCollection:
    """A collection of a database by its name, held as long as it is there; it may be dropped and made anew by anybody.

    Args:
        db: the database.
        name: the collection's name. Those that begin with ``_`` are the managers' own.
        metric: of a new one, and what an existing one must have; None: cosine, or any.
        embeddings: what makes its vectors: an AgentDB embedder, whose name is stored; others give vectors. None: an existing
            one is taken as it is.

    Raises:
        InvalidInputError: the name is no string, or begins with ``_``.
    """

    def __init__(self, db: Database, name: str, metric: CollectionMetric | None, embeddings: Embeddings | None) -> None:
        given: object = name
        if not isinstance(given, str) or given.startswith("_"):
            shown = "a name that begins with '_'" if isinstance(given, str) else type(given).__name__
            raise InvalidInputError(f"collection must be the name of one (str), not {shown}")
        self.db = db
        self.name = name
        self.metric = metric
        self._embeddings = embeddings
        self._opened: Collection | None = None

    def found(self) -> Collection | None:
        """Return the collection, None if there is none.

        Raises:
            InvalidInputError: it was made with another metric, or by another embedder.
        """
        if self._opened is not None:
            return self._opened
        # One state for both questions: opening by name what was dropped in between would make it.
        with self.db.snapshot():
            return self._open(None) if self.name in self.db.collections() else None

    def made(self, dimension: int) -> Collection:
        """Return the collection, made for vectors of that many numbers if there is none.

        Raises:
            InvalidInputError: it was made with another metric or dimension, or by another embedder.
        """
        return self._opened or self._open(dimension)

    def _open(self, dimension: int | None) -> Collection:
        # Without a mutex: whoever held it while another thread's transaction is open might wait for that one, and it for him.
        if isinstance(self._embeddings, AgentDBEmbeddings):
            opened = self.db.collection(self.name, metric=self.metric, embedder=self._embeddings.embedder)
        else:
            opened = self.db.collection(self.name, dimension=dimension, metric=self.metric)
            if self._embeddings is not None:
                self._require_given(opened)
        if not self.db.in_transaction:
            # One that was made inside a transaction of the caller may yet be rolled back.
            self._opened = opened
        return opened

    def _require_given(self, opened: Collection) -> None:
        """Return only if no embedder makes the vectors of a collection: others' vectors would be compared with its own."""
        try:
            embedder = opened.embedder
        except InvalidInputError as error:
            raise InvalidInputError(f"embedding: {error}") from None
        if embedder is not None:
            raise InvalidInputError(
                f"the vectors of collection {self.name} are made by embedder {embedder.name!r}: pass that one, or None, as "
                "embedding"
            )

    def read(self, work: Callable[[Collection], R]) -> R | None:
        """Return what ``work`` makes of the collection, None if there is none."""
        try:
            found = self.found()
            return None if found is None else work(found)
        except NotFoundError:
            self._opened = None  # somebody dropped it
        found = self.found()
        return None if found is None else work(found)

    def write(self, dimension: int, work: Callable[[Collection], R]) -> R:
        """Return what ``work`` makes of the collection, which is made if there is none."""
        try:
            return work(self.made(dimension))
        except NotFoundError:
            self._opened = None  # somebody dropped it
        return work(self.made(dimension))

    def drop(self) -> bool:
        """Drop the collection with all its rows; whether there was one."""
        self._opened = None
        return self.db.drop_collection(self.name)
