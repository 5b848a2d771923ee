"""``Config``: every knob of a database, typed, validated, frozen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Literal

from agentdb.errors import InvalidInputError

__all__ = ["Config", "new_id", "utc_now"]


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return a UUID version 7 as 32 hex digits: unique, and sorted by creation time (RFC 9562)."""
    value = int.from_bytes(os.urandom(16)) | (0x7 << 76) | (0b10 << 62)
    value &= ~(0x8 << 76) & ~(0b01 << 62)
    millis = time.time_ns() // 1_000_000
    return f"{(millis & 0xFFFFFFFFFFFF) << 80 | value & ((1 << 80) - 1):032x}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """How a database behaves. Sizes are in bytes, times in seconds.

    Processes that have the same directory open may use different values; none of them is stored.

    Attributes:
        durability: ``"full"``: an acknowledged write survives power loss. ``"normal"``: it survives a killed process;
            power loss may undo the last commits, never corrupt.
        device: where torch computes: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        clock: returns the current UTC time; inject one to make a database deterministic.
        id_source: returns a new unique identifier.
        maintenance: run flush, compaction and clean-up in a background thread. Without it ``db.optimize()`` does them.
        tick_s: how often that thread looks for work; a quarter as often while nothing is written.
        flush_rows, flush_bytes, flush_age_s: a table is flushed when one of them is reached.
        close_flush_rows, close_timeout_s: ``close()`` flushes tables with at least that many rows, for at most that long.
        bulk_rows, bulk_bytes: a ``put_many`` that reaches *both* goes straight to the cold tier.
        hot_limit_bytes: writers wait for a flush above this size of the hot tier, then fail as retryable.
        wal_limit_bytes: the write-ahead log is checkpointed above this size.
        compact_fragments: a table with more small fragments than this is compacted.
        write_timeout_s: how long a write waits for its turn before it fails as retryable.
        transaction_idle_timeout_s: an explicit transaction without a call for this long is rolled back.
        cache_bytes: budget for Lance's metadata and index caches, shared by all tables.
        resident_bytes: budget for vectors and texts of collections that are held in memory to be searched there; 1 GiB. Memories have
            a budget of their own, of the same size.
    """

    durability: Literal["full", "normal"] = "full"
    device: str = "auto"
    clock: Callable[[], datetime] = utc_now
    id_source: Callable[[], str] = new_id
    maintenance: bool = True
    tick_s: float = 0.25
    flush_rows: int = 20_000
    flush_bytes: int = 32 << 20
    flush_age_s: float = 60.0
    close_flush_rows: int = 1_000
    close_timeout_s: float = 5.0
    bulk_rows: int = 4_096
    bulk_bytes: int = 4 << 20
    hot_limit_bytes: int = 1 << 30
    wal_limit_bytes: int = 4 << 20
    compact_fragments: int = 8
    write_timeout_s: float = 30.0
    transaction_idle_timeout_s: float = 60.0
    cache_bytes: int = 256 << 20
    resident_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.durability not in ("full", "normal"):
            raise InvalidInputError(f"Config.durability must be 'full' or 'normal', not {self.durability!r}")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("clock", "id_source"):
                if not callable(value):
                    raise InvalidInputError(f"Config.{item.name} must be callable, not {type(value).__name__}")
            elif isinstance(item.default, bool):
                if not isinstance(value, bool):
                    raise InvalidInputError(f"Config.{item.name} must be a bool, not {type(value).__name__}")
            elif isinstance(item.default, int | float):
                allowed = (int,) if isinstance(item.default, int) else (int, float)
                if isinstance(value, bool) or not isinstance(value, allowed):
                    raise InvalidInputError(
                        f"Config.{item.name} must be {'an int' if allowed == (int,) else 'a number'}, "
                        f"not {type(value).__name__}"
                    )
                if not value > 0:
                    raise InvalidInputError(f"Config.{item.name} must be positive")
            elif not isinstance(value, str) or not value:
                raise InvalidInputError(f"Config.{item.name} must be a non-empty string, not {type(value).__name__}")
