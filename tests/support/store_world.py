"""What the tests of AgentDB's LangGraph store share: a clock that is put forward, and by which way it searches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from langgraph_agentdb import store_columns, store_items


class Clock:
    """A clock that never gives one time twice."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now

    def forward(self, minutes: float) -> None:
        self.now += timedelta(minutes=minutes)


def search_by(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small scopes be searched as ``"resident"`` ones, in ``"columns"``, or in ``"tables"``."""
    if way != "resident":
        monkeypatch.setattr(store_items, "_RESIDENT_ITEMS", -1)
        monkeypatch.setattr(store_columns, "_IN_TABLES", -1 if way == "columns" else 1 << 60)
