"""``AgentDBRerank``: a step behind any retriever that orders its nodes by a reranker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from agentdb import InvalidInputError, Reranker

__all__ = ["AgentDBRerank"]


class AgentDBRerank(BaseNodePostprocessor):
    """Return the ``top_n`` nodes that a reranker scores highest for the query, best first, with its scores; ties stay in order.

    Asynchronously it runs on a thread, so that a slow model never blocks the event loop. The nodes that come in are not changed.
    Copies share the reranker; a pickle holds it, and no ``callback_manager``.

    Args:
        reranker: a `Reranker`, a sentence-transformers ``CrossEncoder``, or a function of a query and a list of texts that
            returns a score for each.
        top_n: how many nodes are kept; None: all.
        metadata_mode: which part of the metadata the reranker sees in front of the text; by default what embeddings see.
    """

    top_n: int | None = Field(default=None, ge=1)
    metadata_mode: MetadataMode = MetadataMode.EMBED

    _reranker: Any = PrivateAttr()
    _score: Callable[[str, Sequence[str]], Any] = PrivateAttr()

    def __init__(
        self,
        reranker: Reranker | Callable[[str, list[str]], Any] | Any,
        *,
        top_n: int | None = None,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        **kwargs: Any,
    ) -> None:
        score = _scorer(reranker)
        if top_n is not None and (not isinstance(top_n, int) or isinstance(top_n, bool) or top_n < 1):
            raise InvalidInputError(f"top_n must be an int of 1 or more, or None, not {type(top_n).__name__}")
        fields: dict[str, Any] = {"top_n": top_n, "metadata_mode": metadata_mode}
        super().__init__(**fields, **kwargs)
        self._reranker = reranker
        self._score = score

    def __reduce__(self) -> tuple[partial[Self], tuple[()]]:
        return partial(type(self), self._reranker, top_n=self.top_n, metadata_mode=self.metadata_mode), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    @classmethod
    def class_name(cls) -> str:
        """Return what serialised components call this class."""
        return "AgentDBRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InvalidInputError("query_bundle or query_str must be given: nodes are scored for a query")
        if not nodes:
            return []
        texts = [one.node.get_content(metadata_mode=self.metadata_mode) for one in nodes]
        scores = _checked(self._score(query_bundle.query_str, texts), len(texts))
        best = np.argsort(-scores, kind="stable")[: self.top_n]
        return [NodeWithScore(node=nodes[i].node, score=float(scores[i])) for i in best]


def _scorer(reranker: Any) -> Callable[[str, Sequence[str]], Any]:
    if isinstance(reranker, Reranker):
        return reranker.rerank
    if callable(getattr(reranker, "predict", None)):
        return lambda query, texts: reranker.predict([(query, text) for text in texts], show_progress_bar=False)
    if callable(reranker):
        return lambda query, texts: reranker(query, list(texts))
    raise InvalidInputError(
        "reranker must have rerank(query, texts), be a sentence-transformers CrossEncoder, or be a function of query and "
        f"texts, not {type(reranker).__name__}"
    )


def _checked(given: Any, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    try:
        scores = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise InvalidInputError(f"the reranker must return numbers, not {type(given).__name__}") from None
    if scores.shape != (count,) or not np.isfinite(scores).all():
        raise InvalidInputError(
            f"the reranker must return {count} finite numbers, one for each node, not an array of shape {list(scores.shape)}"
        )
    return scores
