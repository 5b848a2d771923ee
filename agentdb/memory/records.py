"""What callers give and hold: memories, their occurrences and events, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from agentdb.errors import InvalidInputError
from agentdb.filters import decode_json, encode_json
from agentdb.memory.policies import MemoryType
from agentdb.states.versions import check_identifier, check_moment

__all__ = [
    "Memory",
    "MemoryEvent",
    "MemoryTrace",
    "MemoryWrite",
    "Occurrence",
    "Origin",
    "Scope",
    "Tier",
    "check_importance",
    "check_tier",
    "check_type",
    "content_text",
]

Tier = Literal["working", "short_term", "long_term"]
"""Where a memory is on its way: at hand, kept for now, kept for good."""

Status = Literal["active", "archived"]
Origin = Literal["summary", "fact"]
"""What upkeep derived: a summary of compressed episodes, or a fact that an extractor found."""

MAX_CONTENT_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One time that a memory was given.

    Attributes:
        id: its own; that of the first is the memory's.
        recorded_at: when it was given to the database.
        occurred_at: when it was said or happened, as given.
        metadata: what was given with it.
    """

    id: str
    recorded_at: datetime
    occurred_at: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One memory as it stood when it was read.

    Attributes:
        id: its own, in the whole database.
        agent_id, user_id, session_id, namespace: its scope.
        content: what was given: a text, or JSON.
        text: what is searched: the text, or what the JSON says.
        tier, memory_type: where it is in the hierarchy; the type may be open until it is consolidated.
        status: ``"archived"``: forgotten, but there to be restored; recall passes it over.
        importance: 0 to 1, given or estimated.
        role, speaker: who said it.
        metadata: any JSON object.
        occurred_at: when it was said or happened.
        valid_from, valid_to: when it is true in the world, the end excluded; None: open.
        recorded_at, retracted_at: when the database learned it, and that it was wrong; None: it stands.
        origin: what upkeep derived it as: ``"summary"`` of its sources, or ``"fact"`` found in them; None: it was given.
        sources: the ids of what it was derived from, or of what said the same and was merged into it.
        occurrences: every time that it was given, the first included, oldest first.
        uses: how often it was given, recalled and restored.
        last_used_at: when that was for the last time.
    """

    id: str
    agent_id: str
    user_id: str | None
    session_id: str | None
    namespace: str | None
    content: Any = field(hash=False)
    text: str
    tier: Tier
    memory_type: MemoryType | None
    status: Status
    importance: float
    role: str | None
    speaker: str | None
    metadata: Mapping[str, Any] = field(hash=False)
    occurred_at: datetime | None
    valid_from: datetime | None
    valid_to: datetime | None
    recorded_at: datetime
    retracted_at: datetime | None
    origin: Origin | None
    sources: tuple[str, ...]
    occurrences: tuple[Occurrence, ...]
    uses: int
    last_used_at: datetime


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """Something that happened to a memory.

    Attributes:
        at: when.
        action: ``"remembered"``, ``"updated"``, ``"moved"``, ``"archived"`` or ``"restored"``.
        reason: why, in words.
        before: what was changed, as it was before.
    """

    at: datetime
    action: str
    reason: str
    before: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTrace:
    """Why a memory is as it is.

    Attributes:
        memory: as it stands.
        events: what happened to it, oldest first; see `MemoryEvent`.
        sources: the memories that it was derived from, or that say the same; those that were erased are missing.
        derived: the memories that have it among their sources.
        activation: how much is left of it, 0 to 1: fresh and often used is 1.
        retention: what speaks for keeping it at hand, 0 to 1; upkeep archives what falls below the policy's bound.
    """

    memory: Memory
    events: tuple[MemoryEvent, ...]
    sources: tuple[Memory, ...]
    derived: tuple[Memory, ...]
    activation: float
    retention: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryWrite:
    """One memory of ``remember_many``; see ``AgentMemories.remember``."""

    content: Any = field(hash=False)
    agent_id: str | int
    user_id: str | int | None = None
    session_id: str | int | None = None
    namespace: str | int | None = None
    memory_type: MemoryType | None = None
    tier: Tier | None = None
    importance: float | None = None
    metadata: Mapping[str, Any] | None = field(default=None, hash=False)
    role: str | None = None
    speaker: str | None = None
    occurred_at: datetime | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose memories: agent, user and namespace match exactly, None being a value; a session of None means every one.

    These are walls: nothing is found, counted or compared across them.
    """

    agent_id: str
    user_id: str | None
    namespace: str | None
    session_id: str | None

    @classmethod
    def of(cls, agent_id: object, user_id: object, namespace: object, session_id: object) -> Scope:
        """Return a checked scope.

        Raises:
            InvalidInputError: an identifier cannot be accepted.
        """
        return cls(
            check_identifier("agent_id", agent_id),
            *(
                None if value is None else check_identifier(name, value)
                for name, value in (("user_id", user_id), ("namespace", namespace), ("session_id", session_id))
            ),
        )


def content_text(content: object) -> tuple[str, str | None]:
    """Return what is searched of a content, and its canonical JSON if it is no plain text.

    Structured data is read as lines ``key: value``, lists as their items; so an image by reference is found by its caption.

    Raises:
        InvalidInputError: it is empty, too large, or no JSON.
    """
    if isinstance(content, str):
        text, data = content, None
    elif isinstance(content, Mapping | Sequence) and not isinstance(content, bytes | bytearray):
        plain = dict(content) if isinstance(content, Mapping) else list(content)
        data = encode_json(plain, path="content")
        text = "\n".join(_lines(decode_json(data), ""))
    else:
        raise InvalidInputError(f"content must be a str, a mapping or a list, not {type(content).__name__}")
    if not text.strip():
        raise InvalidInputError("content must not be empty")
    if max(len(text), len(data or "")) > MAX_CONTENT_CHARS:
        raise InvalidInputError(f"content must have at most {MAX_CONTENT_CHARS:,} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError("content holds a lone surrogate, which UTF-8 cannot store") from None
    return text, data


def _lines(value: Any, name: str) -> list[str]:
    if isinstance(value, dict):
        return [line for key, one in value.items() for line in _lines(one, f"{name}.{key}" if name else key)]
    if isinstance(value, list):
        return [line for one in value for line in _lines(one, name)]
    if value is None:
        return []
    return [f"{name}: {value}" if name else str(value)]


def check_tier(value: object) -> Tier:
    """Return a tier."""
    if value not in get_args(Tier):
        raise InvalidInputError(f"tier must be one of {', '.join(get_args(Tier))}, not {value!r}")
    return value  # type: ignore[return-value]


def check_type(value: object) -> MemoryType:
    """Return a memory type."""
    if value not in get_args(MemoryType):
        raise InvalidInputError(f"memory_type must be one of {', '.join(get_args(MemoryType))}, not {value!r}")
    return value  # type: ignore[return-value]


def check_importance(value: object) -> float:
    """Return an importance."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidInputError("importance must be a number from 0 to 1")
    return float(value)


def check_optional_moment(name: str, value: object) -> datetime | None:
    """Return an aware datetime, or None."""
    return None if value is None else check_moment(name, value)


def check_optional_name(name: str, value: object) -> str | None:
    """Return a role or the name of a speaker, or None."""
    if value is not None and not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a str, not {type(value).__name__}")
    return None if value is None else check_identifier(name, value)


def check_interval(start: datetime | None, end: datetime | None) -> None:
    """Refuse an interval that holds no moment."""
    if start is not None and end is not None and end <= start:
        raise InvalidInputError("valid_to must be later than valid_from")
