"""``open`` and ``Database``: the one place where the parts are put together."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from agentdb.config import Config
from agentdb.embedding import Embedder, EmbedderIdentity, is_embedder, load_embedder
from agentdb.errors import InvalidInputError
from agentdb.memory import AgentMemories
from agentdb.rag import Documents
from agentdb.states import AgentStates
from agentdb.storage.backup import restore_backup
from agentdb.storage.engine import Engine
from agentdb.types import OnProgress
from agentdb.vectors.collection import Collection
from agentdb.vectors.definition import CollectionMetric, PromotedType, VectorSpec
from agentdb.vectors.registry import Collections

__all__ = ["Database", "open", "restore"]


class Database(Engine):
    """A database: its tables and its managers. Made by `agentdb.open`.

    Attributes:
        states: the Agent State Manager.
        memories: the Memory Manager.
        documents: the RAG Engine.
    """

    states: AgentStates
    memories: AgentMemories
    documents: Documents

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool,
        create: bool,
        config: Config | None,
        embedder: Embedder | None,
    ) -> None:
        if embedder is not None and not is_embedder(embedder):
            raise InvalidInputError(
                f"embedder must have name, dimension, max_tokens and embed(), not {type(embedder).__name__}"
            )
        super().__init__(self.open_path(path, read_only=read_only, create=create, config=config))
        try:
            self._embedder = embedder
            self._embedder_mutex = threading.Lock()
            self._own_embedder = False
            self.states = AgentStates(self)
            self.memories = AgentMemories(self, lambda: self.embedder)
            self._collections = Collections(self, lambda: self.embedder)
            self.documents = Documents(self, self._collections, lambda: self.embedder)
        except BaseException:
            super().close()
            raise

    def __enter__(self) -> Self:
        return self

    @property
    def embedder(self) -> Embedder:
        """The embedder given to `open`, or the installed default, loaded at the first use.

        Raises:
            MissingDependencyError: none is installed; the message names the extra ``local``.
        """
        with self._embedder_mutex:
            if self._embedder is None:
                self._embedder = load_embedder()
                self._own_embedder = True
            return self._embedder

    def embedder_for(self, table: str, column: str) -> Embedder:
        """Return the database's embedder, if it is the one that made the vectors of a column.

        Raises:
            InvalidInputError: another embedder made them; the message names both. Or the schema names none.
            NotFoundError: there is no such table.
            MissingDependencyError: no embedder is installed.
        """
        schema = self.table(table).schema
        vector = schema.column(column)
        name = schema.embedders.get(column)
        if name is None:
            raise InvalidInputError(f"the schema of table {table} names no embedder for column {column}")
        EmbedderIdentity(name, vector.dimension).require_match(self.embedder)
        return self.embedder

    def collection(
        self,
        name: str,
        *,
        dimension: int | None = None,
        metric: CollectionMetric | None = None,
        embedder: Embedder | None = None,
        vectors: Mapping[str, VectorSpec] | None = None,
        schema: Mapping[str | Sequence[str], type | PromotedType] | None = None,
    ) -> Collection:
        """Return a collection of vectors and texts; it is created where there is none of that name.

        The name alone opens it with everything it was created with. A new one needs no more either: the database's embedder
        then makes its vectors from texts.

        Args:
            name: 1 to 48 letters, digits, ``_``, ``-`` and ``.``. One that begins with ``_`` is not listed.
            dimension: of vectors that are given; without an embedder, texts are not embedded.
            metric: ``"cosine"`` (default), ``"dot"`` or ``"euclidean"``.
            embedder: makes vectors from texts; what it is called is stored, and no other takes its place unnoticed.
            vectors: several vectors by name, or one that is not float32 or not one per row; in the place of ``dimension``
                and ``metric``.
            schema: metadata keys that get typed, indexed columns of their own from the beginning, and their types: str,
                float (every number) or bool. All other keys can be filtered by as well, and promoted later.

        Raises:
            InvalidInputError: it exists and was created otherwise, or an argument cannot be accepted.
            MissingDependencyError: a new one needs the default embedder, which is not installed.
        """
        self._check()
        return self._collections.open(
            name, dimension=dimension, metric=metric, embedder=embedder, vectors=vectors, schema=schema
        )

    def collections(self) -> list[str]:
        """Return the names of all collections but the managers' own (which begin with an underscore), sorted."""
        self._check()
        return self._collections.names()

    def drop_collection(self, name: str) -> bool:
        """Drop a collection with all its rows; whether there was one. Open snapshots keep what they see."""
        self._check()
        return self._collections.drop(name)

    def close(self) -> None:
        """Close this handle; see `Engine.close`. An embedder that was passed to `open` stays open."""
        self._collections.rest()
        self.memories._rest()
        super().close()
        self._collections.let_go()
        with self._embedder_mutex:
            if self._own_embedder:
                closing = getattr(self._embedder, "close", None)
                self._embedder, self._own_embedder = None, False
                if closing is not None:
                    closing()


def open(
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    create: bool = True,
    config: Config | None = None,
    embedder: Embedder | None = None,
) -> Database:
    """Open the database in a directory; it is created where there is none. Use it in a ``with`` block, or close it.

    Any number of handles, threads and processes may have one path open at once; start processes with the
    ``spawn`` or ``forkserver`` method.

    Args:
        path: a directory on a local disk.
        read_only: refuse writes, and write nothing, not even a lock file.
        create: False: raise where there is no database.
        config: how it behaves in this process; None: the defaults, or those of the handle that is open already.
        embedder: turns text into vectors; None: the installed default, loaded when text is first embedded.

    Raises:
        NotFoundError: there is no database, and none may be created.
        FormatError: the path holds something else, or a newer format; nothing was written.
        AccessDeniedError: the directory cannot be written; ``read_only=True`` may help.
        UnavailableError: a network file system.
    """
    return Database(path, read_only=read_only, create=create, config=config, embedder=embedder)


def restore(
    backup: str | os.PathLike[str], path: str | os.PathLike[str], on_progress: OnProgress | None = None
) -> None:
    """Make a database at ``path`` out of what ``db.backup`` wrote. The path appears complete or not at all.

    Raises:
        FormatError: the backup is no database of a format we read.
        InvalidInputError: the path exists and is not an empty directory.
        StorageError: a file is missing, corrupt or cannot be written.
    """
    restore_backup(Path(backup), Path(path), on_progress)
