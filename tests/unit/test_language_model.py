"""Whatever completes a prompt can be passed where a language model is wanted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda
from llama_index.core.llms import MockLLM

from agentdb import InvalidInputError, LanguageModel, as_language_model


class Echo:
    def complete(self, prompt: str) -> str:
        return f"echo {prompt}"


@pytest.mark.parametrize(
    ("model", "answer"),
    [
        (Echo(), "echo hi"),
        (lambda prompt: f"called {prompt}", "called hi"),
        (RunnableLambda(lambda prompt: f"ran {prompt}"), "ran hi"),
        (FakeListChatModel(responses=["a message"]), "a message"),
        (MockLLM(max_tokens=1), "text"),
    ],
)
def test_each_kind_completes(model: object, answer: str) -> None:
    port = as_language_model(model)
    assert isinstance(port, LanguageModel)
    assert port.complete("hi") == answer


def test_what_is_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="not int"):
        as_language_model(3)


def test_an_answer_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="answer with a text, not SimpleNamespace"):
        as_language_model(lambda _: SimpleNamespace(parts=[])).complete("hi")
