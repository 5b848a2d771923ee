"""Ports to a language model and to a reranker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError

__all__ = ["LanguageModel", "Reranker", "as_language_model"]


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


@dataclass(frozen=True, slots=True)
class _Called:
    """A language model behind one callable."""

    call: Callable[[str], Any]

    def complete(self, prompt: str) -> str:
        return _text_of(self.call(prompt))


def as_language_model(model: object) -> LanguageModel:
    """Return a port to whatever completes a prompt: a `LanguageModel`, a LangChain Runnable, a LlamaIndex LLM, a callable.

    What they answer may be a string, or an object that holds one as ``text`` (LlamaIndex) or ``content`` (LangChain).

    Args:
        model: has a method ``complete`` or ``invoke`` that takes the prompt, or is a callable that does.

    Raises:
        InvalidInputError: it is none of these.
    """
    for name in ("complete", "invoke"):
        method = getattr(model, name, None)
        if callable(method):
            return _Called(method)
    if callable(model):
        return _Called(model)
    raise InvalidInputError(
        f"a language model must have complete() or invoke(), or be callable with a prompt, not {type(model).__name__}"
    )


def _text_of(answer: object) -> str:
    if isinstance(answer, str):
        return answer
    for name in ("text", "content"):
        held = getattr(answer, name, None)
        if isinstance(held, str):
            return str(held)
    raise InvalidInputError(f"a language model must answer with a text, not {type(answer).__name__}")
