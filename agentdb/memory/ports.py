"""What plugs into memory: small protocols, each with a rule of the library's own behind it, which takes over where one fails or is slow.

Implementations may be called from any thread, outside every lock and transaction. A language model will do for each of them: see
`agentdb.memory.plugins`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

__all__ = ["ContradictionJudge", "FactExtractor", "ImportanceScorer", "Statement", "Summariser"]


@dataclass(frozen=True, slots=True)
class Statement:
    """A memory as rules and plug-ins see it.

    Attributes:
        text: what it says.
        role: who says it in a chat: ``"user"``, ``"assistant"``, ...
        speaker: by name.
        occurred_at: when it was said or happened.
    """

    text: str
    role: str | None = None
    speaker: str | None = None
    occurred_at: datetime | None = None


@runtime_checkable
class ImportanceScorer(Protocol):
    """Estimates what a memory is worth when it is remembered."""

    def importance(self, statement: Statement) -> float:
        """Return a number in [0, 1]; the same one for the same statement."""


@runtime_checkable
class Summariser(Protocol):
    """Writes what becomes of a cluster of old episodes."""

    def summarise(self, statements: Sequence[Statement]) -> str:
        """Return one text, shorter than the statements together. They come in the order in which they happened."""


@runtime_checkable
class FactExtractor(Protocol):
    """Tells what is known for good from a memory that settles."""

    def facts(self, statement: Statement) -> Sequence[str]:
        """Return short statements that hold by themselves, each naming its subject; none where there is nothing of that kind."""


@runtime_checkable
class ContradictionJudge(Protocol):
    """Says when a newer statement ends the validity of an older one."""

    @property
    def cosine(self) -> float:
        """How near in meaning two statements must be at least to be shown to it."""

    def supersedes(self, newer: Statement, older: Statement, cosine: float) -> str | None:
        """Return why the newer statement takes the older one's place, in a word or two; None: it does not."""
