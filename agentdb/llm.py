"""Ports to a language model and to a reranker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = ["LanguageModel", "Reranker"]


@runtime_checkable
class LanguageModel(Protocol):
    """Completes a prompt. May be called from any thread."""

    def complete(self, prompt: str) -> str:
        """Return the model's answer, without the prompt."""


@runtime_checkable
class Reranker(Protocol):
    """Scores texts against a query more exactly than their vectors do. May be called from any thread."""

    def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return `[N]` finite float32 scores in the order of the texts; higher is better."""
