"""What callers give and hold: versions, writes, and the checks that both share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from agentdb.errors import InvalidInputError
from agentdb.filters import decode_json, encode_json
from agentdb.storage.values import decode_value

__all__ = [
    "MAX_IDENTIFIER_CHARS",
    "LazyContent",
    "StateKey",
    "StateType",
    "StateVersion",
    "StateWrite",
    "check_identifier",
    "check_key",
    "check_metadata",
    "check_moment",
    "check_type",
    "check_version",
]

MAX_IDENTIFIER_CHARS = 1024
_U64_MAX = (1 << 64) - 1
_I64_MAX = (1 << 63) - 1

StateKey = tuple[str, str, str]
"""Agent, session, state type."""


class StateType(StrEnum):
    """The standard state types; any other name is a custom one."""

    WORKING_MEMORY = "working_memory"
    LONG_TERM_MEMORY = "long_term_memory"
    CONTEXT = "context"
    TASK = "task"
    RELATIONSHIP = "relationship"
    EMBEDDING = "embedding"


class LazyContent:
    """A version's content and value, each made when first asked for."""

    __slots__ = ("_content", "_load", "_made", "_value")

    def __init__(self, content: bytes | None, load: Callable[[], bytes] | None = None) -> None:
        self._content = content
        self._load = load
        self._made = False
        self._value: Any = None

    def content(self) -> bytes:
        """Return the content, read at the first call."""
        if self._content is None:
            assert self._load is not None
            self._content = self._load()
            self._load = None
        return self._content

    def value(self) -> Any:
        """Return the value, decoded at the first call."""
        if not self._made:
            self._value = decode_value(self.content())
            self._made = True
        return self._value


@dataclass(frozen=True, slots=True, kw_only=True)
class StateVersion:
    """One version of a state; what it says never changes, except its tags.

    Attributes:
        agent_id, session_id, state_type: whose state it is.
        version: 1, 2, 3, ...; never used again, not even after a delete.
        metadata: what was given to ``save``.
        checksum: BLAKE2b-128 of the content, in hex; equal for equal contents.
        created_at: when this version was made; later than every earlier version of the state.
        size_bytes: the content's size, before compression.
        parent: the version it was derived from: the newest one at the time, or the one restored or branched. None: the
            first.
        parent_session: the session that ``parent`` belongs to, where it is another one.
        tags: its names when it was read, sorted.
    """

    agent_id: str
    session_id: str
    state_type: str
    version: int
    metadata: Mapping[str, Any] = field(hash=False)
    checksum: str
    created_at: datetime
    size_bytes: int
    parent: int | None = None
    parent_session: str | None = None
    tags: tuple[str, ...] = ()
    _lazy: LazyContent = field(repr=False, compare=False)

    @property
    def updated_at(self) -> datetime:
        """When the state was last changed as of this version: when this version was made."""
        return self.created_at

    @property
    def data(self) -> Any:
        """The value, decoded at the first access; always the same object, the caller's own to change.

        Raises:
            NotFoundError: a version from ``history`` was deleted meanwhile.
            IntegrityError: the stored content is corrupt.
        """
        return self._lazy.value()


@dataclass(frozen=True, slots=True)
class StateWrite:
    """One save of ``save_many``; see ``AgentStates.save``."""

    agent_id: str | int
    session_id: str | int
    state_type: str
    data: Any
    expected_version: int | None = None
    metadata: Mapping[str, Any] | None = None


def check_identifier(name: str, value: object) -> str:
    """Return an identifier as it is stored."""
    if type(value) is not str:
        if isinstance(value, str):
            value = str.__str__(value)
        elif isinstance(value, bool) or not hasattr(type(value), "__index__"):
            raise InvalidInputError(f"{name} must be a str or an unsigned 64-bit int, not {type(value).__name__}")
        else:
            number = value.__index__()  # type: ignore[attr-defined]
            if not 0 <= number <= _U64_MAX:
                raise InvalidInputError(f"{name} as an int must lie between 0 and 2**64 - 1")
            return str(number)
    if not value:
        raise InvalidInputError(f"{name} must not be empty")
    if len(value) > MAX_IDENTIFIER_CHARS:
        raise InvalidInputError(f"{name} must have at most {MAX_IDENTIFIER_CHARS} characters, not {len(value)}")
    if "\0" in value:
        raise InvalidInputError(f"{name} must not hold a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInputError(f"{name} holds a lone surrogate, which UTF-8 cannot store") from None
    return value


def check_type(value: object) -> str:
    """Return a state type as it is stored."""
    if not isinstance(value, str):
        raise InvalidInputError(f"state_type must be a str, not {type(value).__name__}")
    return check_identifier("state_type", value)


def check_key(agent_id: object, session_id: object, state_type: object) -> StateKey:
    """Return the names of a state as they are stored."""
    return check_identifier("agent_id", agent_id), check_identifier("session_id", session_id), check_type(state_type)


def check_version(name: str, value: object, least: int = 1) -> int:
    """Return a version number, or another positive int."""
    if type(value) is not int:
        if isinstance(value, bool) or not hasattr(type(value), "__index__"):
            raise InvalidInputError(f"{name} must be an int, not {type(value).__name__}")
        value = int(value.__index__())  # type: ignore[attr-defined]
    if not least <= value <= _I64_MAX:
        raise InvalidInputError(f"{name} must be at least {least}")
    return value


def check_moment(name: str, value: object) -> datetime:
    """Return an aware datetime."""
    if not isinstance(value, datetime):
        raise InvalidInputError(f"{name} must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidInputError(f"{name} must be an aware datetime; a naive one does not say which time zone it is in")
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise InvalidInputError(f"{name} lies outside the years 1 to 9999 in UTC") from None
    return value


def check_metadata(value: object) -> dict[str, Any] | None:
    """Return an own copy of metadata; None for none."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"metadata must be a mapping, not {type(value).__name__}")
    copy: dict[str, Any] = decode_json(encode_json(dict(value), path="metadata"))
    return copy or None
