"""``AgentDBEmbedding``: the embedders of AgentDB as LlamaIndex's embedding model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from agentdb import Connection, Embedder, EmbedKind, InvalidInputError, embed_texts, load_embedder

__all__ = ["AgentDBEmbedding"]

_DEFAULT = "local"
_NOT_PICKLED = ("model_name", "embedder_name", "callback_manager")


class AgentDBEmbedding(BaseEmbedding):
    """Texts embedded by an embedder of AgentDB, in whole batches; queries as queries, texts as documents.

    ``Settings.embed_model = AgentDBEmbedding()`` needs no key and no network: it runs the small model that comes with
    ``agentdb-lance[local]``. Async methods run on a thread and never block the event loop.

    Args:
        embedder: any `Embedder`, such as ``db.embedder``, which stays the caller's to close; or the name of an installed one
            (``"local"``, ``"hashing"``), loaded when it is first used. None: ``"local"``.
        embed_batch_size: texts that the embedder gets at once, up to 2048.
        kwargs: what LlamaIndex's embedding models have besides, such as ``callback_manager`` and ``embeddings_cache``.

    A pickle, such as an ``IngestionPipeline`` sends to its workers, holds the embedder or its name, and no ``callback_manager``. A
    dictionary, of ``to_dict``, holds no embedder: pass one that has no name to ``from_dict(data, embedder=...)``.

    Raises:
        InvalidInputError: ``embedder`` is none, or is missing for what was made of an embedder without a name.
    """

    embedder_name: str | None = None

    _given: Embedder | str | None = PrivateAttr(default=None)
    _embedder: Embedder | None = PrivateAttr(default=None)
    _loading: Any = PrivateAttr()

    def __init__(self, embedder: Embedder | str | None = None, *, embed_batch_size: int = 256, **kwargs: Any) -> None:
        # What `to_dict` returns comes back by the names of the fields.
        name = kwargs.pop("embedder_name", None)
        model_name = kwargs.pop("model_name", None)
        given = name if embedder is None else embedder
        if given is None and model_name not in (None, _DEFAULT):
            # Another model in its place would find nothing among what this one embedded, and nobody would know why.
            raise InvalidInputError(f"embedder must be given: it was {str(model_name)!r:.100}, and is in no dictionary")
        if given is not None and not isinstance(given, str) and not callable(getattr(given, "embed", None)):
            raise InvalidInputError(f"embedder must be an Embedder, a name or None, not {type(given).__name__}")
        loaded = None if given is None or isinstance(given, str) else given
        fields: dict[str, Any] = {
            "model_name": (given or _DEFAULT) if loaded is None else loaded.name,
            "embedder_name": given if loaded is None else None,
        }
        super().__init__(embed_batch_size=embed_batch_size, **fields, **kwargs)
        self._given = given
        self._embedder = loaded
        self._loading = threading.Lock()

    def __reduce__(self) -> tuple[partial[Self], tuple[()]]:
        own = {one: getattr(self, one) for one in type(self).model_fields if one not in _NOT_PICKLED}
        return partial(type(self), self._given, **own), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    @classmethod
    def class_name(cls) -> str:
        """Return what serialised components call this class."""
        return "AgentDBEmbedding"

    @property
    def embedder(self) -> Embedder:
        """The embedder, loaded.

        Raises:
            MissingDependencyError: it is not installed; the message names the extra.
        """
        with self._loading:
            if self._embedder is None:
                self._embedder = load_embedder(self.embedder_name)
            return self._embedder

    def _embed(self, texts: Sequence[str], kind: EmbedKind) -> list[list[float]]:
        vectors: list[list[float]] = embed_texts(self.embedder, list(texts), kind).tolist()
        return vectors

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed([query], "query")[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([text], "document")[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed(texts, "document")

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await Connection.on_thread(lambda: self._get_query_embedding(query))

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await Connection.on_thread(lambda: self._get_text_embedding(text))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await Connection.on_thread(lambda: self._get_text_embeddings(texts))
