"""Which versions of a state stay: pure functions of what there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from agentdb.errors import InvalidInputError
from agentdb.storage.deltas import FrameInfo

__all__ = ["RetentionPolicy", "VersionInfo"]


class VersionInfo(NamedTuple):
    """What deciding about versions needs to know of one."""

    created_at: datetime
    frame: FrameInfo

    @property
    def version(self) -> int:
        """Its number."""
        return self.frame.number


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """Which versions stay: those that any rule keeps. The newest version of a state always stays.

    Attributes:
        keep_last: the newest n versions. None: no such rule.
        keep_for_s: versions not older than this many seconds. None: no such rule.
        keep_tagged: versions with a tag. Where this is the only rule, every version stays.
    """

    keep_last: int | None = None
    keep_for_s: float | None = None
    keep_tagged: bool = True

    def __post_init__(self) -> None:
        keep_last: object = self.keep_last
        keep_for_s: object = self.keep_for_s
        keep_tagged: object = self.keep_tagged
        if keep_last is not None and (type(keep_last) is not int or keep_last < 1):
            raise InvalidInputError("RetentionPolicy.keep_last must be a positive int or None")
        if keep_for_s is not None and (
            isinstance(keep_for_s, bool) or not isinstance(keep_for_s, int | float) or not keep_for_s >= 0
        ):
            raise InvalidInputError("RetentionPolicy.keep_for_s must be a number of seconds, at least 0, or None")
        if not isinstance(keep_tagged, bool):
            raise InvalidInputError("RetentionPolicy.keep_tagged must be a bool")

    @property
    def keeps_all(self) -> bool:
        """Whether no version ever goes."""
        return self.keep_last is None and self.keep_for_s is None

    def _since(self, now: datetime) -> datetime | None:
        """Return the time from which on versions stay for their age; None: none does."""
        if self.keep_for_s is None:
            return None
        try:
            return now - timedelta(seconds=self.keep_for_s)
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)

    def may_remove(self, count: int, oldest_at: datetime, now: datetime) -> bool:
        """Return False where no version of a state would go, given how many there are and the oldest one's time."""
        if self.keeps_all or count <= (self.keep_last or 1):
            return False
        since = self._since(now)
        return since is None or oldest_at < since

    def removes(self, newest_first: Sequence[VersionInfo], tagged: frozenset[int], now: datetime) -> list[int]:
        """Return the versions to remove, of all live ones given newest first."""
        if self.keeps_all:
            return []
        since = self._since(now)
        return [
            row.version
            for rank, row in enumerate(newest_first)
            if rank
            and not (self.keep_last is not None and rank < self.keep_last)
            and not (since is not None and row.created_at >= since)
            and not (self.keep_tagged and row.version in tagged)
        ]
