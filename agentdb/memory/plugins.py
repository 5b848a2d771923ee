"""Language models as plug-ins of memory, and the guard that keeps one that fails or hangs from losing or blocking a memory.

Whatever `agentdb.as_language_model` takes will do: a callable, a LangChain Runnable, a LlamaIndex LLM. The prompts are below, and
small: each asks for one thing, in a form that a model of a hundred million parameters can keep to; an answer that has another form
counts as a failure.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from agentdb.errors import InvalidInputError
from agentdb.llm import LanguageModel, as_language_model
from agentdb.memory.ports import ContradictionJudge, FactExtractor, ImportanceScorer, Statement, Summariser

__all__ = [
    "Guard",
    "ModelExtractor",
    "ModelJudge",
    "ModelScorer",
    "ModelSummariser",
    "as_extractor",
    "as_judge",
    "as_scorer",
    "as_summariser",
]

log = logging.getLogger("agentdb.memory")
T = TypeVar("T")

SUMMARISE = """Summarise these notes in at most three sentences. Keep names, numbers and dates. Add nothing.

{notes}

Summary:"""
FACTS = """List the lasting facts in this statement, one short sentence a line. Name the subject in each. If there is none, answer NONE.

{statement}

Facts:"""
RATE = """How important is it to remember this for a long time? Answer with one number from 1 (trivial) to 10 (vital).

{statement}

Rating:"""
JUDGE = """Older: {older}
Newer: {newer}

Does the newer statement make the older one no longer true? Answer YES or NO.

Answer:"""

MAX_FACTS = 8
MAX_FACT_CHARS = 300
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s*")
_RATING = re.compile(r"\b(10|[1-9])\b")
_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def said(statement: Statement) -> str:
    """Return a statement as a line of a prompt."""
    day = "" if statement.occurred_at is None else f"{statement.occurred_at:%Y-%m-%d} "
    # In one line: nobody may look like somebody else by a name or a text of several.
    who, text = (" ".join((one or "").split()) for one in (statement.speaker or statement.role, statement.text))
    return f"{day}{who}: {text}" if who else f"{day}{text}"


@dataclass(frozen=True, slots=True)
class ModelSummariser:
    """Summarises by a language model."""

    model: LanguageModel

    def summarise(self, statements: Sequence[Statement]) -> str:
        """Return what the model makes of the statements."""
        notes = "\n".join(f"- {said(one)}" for one in statements)
        return self.model.complete(SUMMARISE.format(notes=notes)).strip()


@dataclass(frozen=True, slots=True)
class ModelExtractor:
    """Extracts facts by a language model."""

    model: LanguageModel

    def facts(self, statement: Statement) -> Sequence[str]:
        """Return the model's lines; none if it says NONE."""
        answer = self.model.complete(FACTS.format(statement=said(statement)))
        lines = [_BULLET.sub("", line).strip() for line in answer.splitlines()]
        found = [line for line in lines if line and line.rstrip(".").casefold() != "none"]
        return [line for line in dict.fromkeys(found) if len(line) <= MAX_FACT_CHARS][:MAX_FACTS]


@dataclass(frozen=True, slots=True)
class ModelScorer:
    """Rates importance by a language model, from 1 to 10, as Generative Agents do.

    Source: Park et al., "Generative Agents", UIST 2023, section 4.1.
    """

    model: LanguageModel

    def importance(self, statement: Statement) -> float:
        """Return the rating, 0 to 1."""
        found = _RATING.search(self.model.complete(RATE.format(statement=said(statement))))
        if found is None:
            raise ValueError("no number from 1 to 10")
        return (int(found.group()) - 1) / 9


@dataclass(frozen=True, slots=True)
class ModelJudge:
    """Judges contradictions by a language model, among statements of one speaker that are near in meaning."""

    model: LanguageModel
    cosine: float = 0.6

    def supersedes(self, newer: Statement, older: Statement, cosine: float) -> str | None:
        """Return that the model says so, or None."""
        if cosine < self.cosine or (newer.speaker, newer.role) != (older.speaker, older.role):
            return None
        found = _VERDICT.search(self.model.complete(JUDGE.format(older=said(older), newer=said(newer))))
        if found is None:
            raise ValueError("neither yes nor no")
        return "judged to be overtaken" if found.group().casefold() == "yes" else None


def _plugged(what: str, value: object, port: type, adapter: Callable[[LanguageModel], Any]) -> Any:
    if isinstance(value, port):
        return value
    try:
        return adapter(as_language_model(value))
    except InvalidInputError as error:
        raise InvalidInputError(f"MemoryPolicies.{what} is no plug-in: {error}") from None


def as_scorer(value: object) -> ImportanceScorer:
    """Return a scorer: one as it is, or a language model that rates."""
    found: ImportanceScorer = _plugged("importance", value, ImportanceScorer, ModelScorer)
    return found


def as_summariser(value: object) -> Summariser:
    """Return a summariser: one as it is, or a language model that summarises."""
    found: Summariser = _plugged("summariser", value, Summariser, ModelSummariser)
    return found


def as_extractor(value: object) -> FactExtractor:
    """Return an extractor: one as it is, or a language model that lists facts."""
    found: FactExtractor = _plugged("extractor", value, FactExtractor, ModelExtractor)
    return found


def as_judge(value: object) -> ContradictionJudge:
    """Return a judge: one as it is, or a language model that says yes or no."""
    found: ContradictionJudge = _plugged("contradiction", value, ContradictionJudge, ModelJudge)
    return found


class Guard:
    """Calls plug-ins in a thread of their own, waits for a while, and answers by a rule where they fail. Safe for threads.

    A call that hangs is left alone; until it ends, its plug-in is not called again, so that one that hangs for ever costs one thread
    and one wait.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._hanging: dict[str, threading.Thread] = {}

    def call(
        self,
        what: str,
        work: Callable[[], T],
        instead: Callable[[], T],
        *,
        timeout_s: float,
        notes: list[str] | None = None,
    ) -> T:
        """Return what a plug-in says, or, after a note, what the rule says that stands behind it.

        Args:
            what: which plug-in, for the note.
            work: calls it, and checks what it says.
            instead: the rule.
            timeout_s: how long to wait.
            notes: where it is noted, besides the log.
        """
        noted = [] if notes is None else notes
        with self._mutex:
            hanging = self._hanging.get(what)
            if hanging is not None and hanging.is_alive():
                noted.append(f"the {what} has not come back yet; the library's own rule was used")
                return instead()
            self._hanging.pop(what, None)
        done: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                done.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, name=f"agentdb-{what.replace(' ', '-')}", daemon=True)
        thread.start()
        thread.join(min(timeout_s, threading.TIMEOUT_MAX))
        if done:
            return done[0]
        if failed:
            # No text of an error: it may quote the memory, or a key of the model's service.
            why = f"failed ({type(failed[0]).__name__})"
        else:
            with self._mutex:
                self._hanging[what] = thread
            why = f"took longer than {timeout_s:g} s"
        log.warning("the %s %s; the library's own rule was used", what, why)
        noted.append(f"the {what} {why}; the library's own rule was used")
        return instead()
