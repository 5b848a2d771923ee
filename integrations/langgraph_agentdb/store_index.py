"""What a store embeds and by what: the ``index`` of ``AgentDBStore``, checked, and embedders of every kind called alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings
from langgraph.store.base import ensure_embeddings, get_text_at_path, tokenize_path

from agentdb import Embedder, InvalidInputError, embed_texts, load_embedder

__all__ = ["StoreIndex", "StoreIndexConfig", "Vectors"]

Vectors = npt.NDArray[np.float32]
Paths = Sequence[tuple[str, str | list[str]]]


class StoreIndexConfig(TypedDict, total=False):
    """LangGraph's ``IndexConfig``, and how a search with a query ranks.

    Attributes:
        dims: the dimension of vectors; may be left out with an embedder of AgentDB, which knows it.
        embed: makes them: a LangChain ``Embeddings``, a function of texts, sync or async, an embedder of AgentDB, the name of
            one such as ``"local"``, or LangChain's ``"provider:model"``.
        fields: paths of the texts that are embedded, such as ``"text"``, ``"a.b"``, ``"a[0]"`` and ``"a[*].b"``, which gives a
            vector for each element; ``["$"]``, the whole value as one text, unless given. What is no text is embedded as JSON,
            and a path that leads nowhere gives none.
        mode: ``"vector"`` (default): by the cosine of query and text. ``"hybrid"``: by meaning and by words (BM25), fused.
    """

    dims: int
    embed: Any
    fields: list[str] | None
    mode: Literal["vector", "hybrid"]


class StoreIndex:
    """Which texts of an item are embedded, and their vectors.

    Args:
        config: see `StoreIndexConfig`.

    Raises:
        InvalidInputError: a key is unknown, missing or of a wrong type.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping):
            raise InvalidInputError(f"index must be a dict or None, not {type(config).__name__}")
        unknown = set(config) - {"dims", "embed", "fields", "mode"}
        if unknown:
            raise InvalidInputError(
                f"index: unknown key {', '.join(map(repr, sorted(unknown, key=str)))}; allowed are dims, embed, fields, mode"
            )
        self.mode: Literal["vector", "hybrid"] = config.get("mode", "vector")
        if self.mode not in ("vector", "hybrid"):
            raise InvalidInputError(f"index: mode must be 'vector' or 'hybrid', not {self.mode!r}")
        self._fields = _paths(["$"] if config.get("fields") is None else config["fields"], "index: fields")
        given = config.get("embed")
        if given is None:
            raise InvalidInputError("index: embed is missing: give an Embeddings, a function or an embedder")
        if isinstance(given, str) and ":" not in given:
            given = load_embedder(given)
        self.embedder: Embedder | None = given if _is_embedder(given) else None
        """Who makes the vectors, if it is an embedder of AgentDB."""
        self._embeddings: Embeddings | None = None
        if self.embedder is None:
            if not isinstance(given, Embeddings | str) and not callable(given):
                raise InvalidInputError(
                    "index: embed must be an Embeddings, a function of texts, an embedder of AgentDB or the name of one, "
                    f"not {type(given).__name__}"
                )
            self._embeddings = ensure_embeddings(given)
        dims = config.get("dims")
        if dims is None and self.embedder is None:
            raise InvalidInputError("index: dims is missing: the dimension of the vectors that embed makes")
        if dims is not None and (not isinstance(dims, int) or isinstance(dims, bool) or dims < 1):
            raise InvalidInputError(f"index: dims must be an int of 1 or more, not {dims!r:.40}")
        self._dims: int | None = dims

    @property
    def dims(self) -> int:
        """The dimension of vectors."""
        if self._dims is None:
            assert self.embedder is not None, "the dimension is given otherwise"
            self._dims = self.embedder.dimension
        return self._dims

    def texts(self, value: Mapping[str, Any], index: Any) -> list[str]:
        """Return what is embedded of an item: a text for each place that a path leads to.

        Args:
            value: the item's.
            index: of its ``PutOp``: False: nothing; None: the store's fields; or paths.
        """
        if index is False:
            return []
        paths = self._fields if index is None else _paths(index, "index")
        return [text for _, path in paths for text in get_text_at_path(value, path)]

    # --- embedding ----------------------------------------------------------------------------------------------------

    def documents(self, texts: Sequence[str]) -> Vectors:
        """Return `[N, D]` the vectors of texts."""
        if not texts:
            return np.empty((0, self.dims), np.float32)
        if self.embedder is not None:
            return self._checked(embed_texts(self.embedder, texts, "document"), len(texts))
        assert self._embeddings is not None
        return self._checked(self._embeddings.embed_documents(list(texts)), len(texts))

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Return `[N, D]` the vectors of what is asked."""
        if not texts:
            return np.empty((0, self.dims), np.float32)
        if self.embedder is not None:
            return self._checked(embed_texts(self.embedder, texts, "query"), len(texts))
        assert self._embeddings is not None
        return self._checked([self._embeddings.embed_query(one) for one in texts], len(texts))

    async def adocuments(
        self, texts: Sequence[str], run: Callable[[Callable[[], Vectors]], Awaitable[Vectors]]
    ) -> Vectors:
        """Do what `documents` does; what would block is left to ``run``, which calls it on a thread."""
        if self._embeddings is None or not texts:
            return await run(lambda: self.documents(texts)) if texts else self.documents(texts)
        return self._checked(await self._embeddings.aembed_documents(list(texts)), len(texts))

    async def aqueries(
        self, texts: Sequence[str], run: Callable[[Callable[[], Vectors]], Awaitable[Vectors]]
    ) -> Vectors:
        """Do what `queries` does; what would block is left to ``run``, which calls it on a thread."""
        if self._embeddings is None or not texts:
            return await run(lambda: self.queries(texts)) if texts else self.queries(texts)
        return self._checked(await asyncio.gather(*map(self._embeddings.aembed_query, texts)), len(texts))

    def _checked(self, given: Any, count: int) -> Vectors:
        try:
            vectors = np.asarray(given, np.float32)
        except (TypeError, ValueError):
            raise InvalidInputError(
                "index: embed must return a vector of numbers for each text, all of one length"
            ) from None
        if vectors.shape != (count, self.dims):
            raise InvalidInputError(
                f"index: embed must return {count} vectors of {self.dims} numbers, not an array of shape {list(vectors.shape)}"
            )
        if not np.isfinite(vectors).all():
            raise InvalidInputError("index: embed returned NaN or infinity")
        return vectors


def _is_embedder(value: object) -> bool:
    is_ours = all(hasattr(value, name) for name in ("name", "dimension", "max_tokens", "embed"))
    return is_ours and not isinstance(value, Embeddings)


def _paths(given: Any, where: str) -> Paths:
    if isinstance(given, str) or not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise InvalidInputError(f"{where} must be a list of paths (str), not {type(given).__name__}")
    return [(one, one if one == "$" else tokenize_path(one)) for one in given]
