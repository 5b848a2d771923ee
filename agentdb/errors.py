"""Every error AgentDB raises: the class says what the caller can do, ``kind`` says what happened.

Messages name fields, types and limits. They never carry stored content, SQL or secrets.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "AccessDeniedError",
    "AgentDBError",
    "ClosedError",
    "ConflictError",
    "ErrorKind",
    "FormatError",
    "IntegrityError",
    "InvalidInputError",
    "MissingDependencyError",
    "NotFoundError",
    "StorageError",
    "UnavailableError",
]


class ErrorKind(StrEnum):
    """What happened, stable across releases: members are appended, never renamed or removed."""

    NOT_FOUND = "not_found"
    INVALID_INPUT = "invalid_input"
    CONFLICT = "conflict"
    ACCESS_DENIED = "access_denied"
    INTEGRITY = "integrity"
    STORAGE = "storage"
    FORMAT = "format"
    UNAVAILABLE = "unavailable"
    MISSING_DEPENDENCY = "missing_dependency"
    CLOSED = "closed"


class AgentDBError(Exception):
    """Base of every error raised on purpose."""

    kind: ErrorKind = ErrorKind.STORAGE

    def __str__(self) -> str:
        # KeyError would print the repr of its argument; a message is a message everywhere.
        return str(self.args[0]) if self.args else self.__class__.__name__


class NotFoundError(AgentDBError, KeyError):
    """What was required does not exist."""

    kind = ErrorKind.NOT_FOUND


class InvalidInputError(AgentDBError, ValueError):
    """An argument cannot be accepted; nothing was written."""

    kind = ErrorKind.INVALID_INPUT


class ConflictError(AgentDBError):
    """The stored version is not the expected one: read again, then decide."""

    kind = ErrorKind.CONFLICT

    def __init__(self, message: str, *, expected: int | None = None, actual: int | None = None) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class AccessDeniedError(AgentDBError, PermissionError):
    """The caller may not do this, for example write to a database opened read-only."""

    kind = ErrorKind.ACCESS_DENIED


class IntegrityError(AgentDBError):
    """Stored data is corrupt or was tampered with. Never retried."""

    kind = ErrorKind.INTEGRITY


class StorageError(AgentDBError):
    """The file system or a storage backend failed; ``retryable`` says whether trying again can help."""

    kind = ErrorKind.STORAGE

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class FormatError(AgentDBError):
    """The path holds no AgentDB database, or one of a format this release cannot read."""

    kind = ErrorKind.FORMAT


class UnavailableError(AgentDBError):
    """The operation is not possible here and now, for example on this file system or in this process."""

    kind = ErrorKind.UNAVAILABLE


class MissingDependencyError(AgentDBError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""

    kind = ErrorKind.MISSING_DEPENDENCY


class ClosedError(AgentDBError):
    """The database, transaction or iterator was closed."""

    kind = ErrorKind.CLOSED
