"""LangGraph's own conformance suite: every case of every capability is detected, run and passed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability

import agentdb
from agentdb import Config
from langgraph_agentdb import AgentDBSaver

CASES = 81


def run(tmp_path: Path, config: Config) -> None:
    made = iter(range(100))

    @checkpointer_test(name=f"AgentDBSaver-{tmp_path.name}")
    async def saver() -> AsyncIterator[AgentDBSaver]:
        # A reopened path keeps the config of the handle that is open.
        with agentdb.open(tmp_path / str(next(made)), config=config) as db:
            async with AgentDBSaver(db) as made_saver:
                yield made_saver

    report = asyncio.run(validate(saver))
    failures = [failure for result in report.results.values() for failure in result.failures]
    assert failures == []
    assert {name for name, result in report.results.items() if result.detected and result.passed} == {
        capability.value for capability in Capability
    }
    assert len(report.results) == 8
    assert sum(result.tests_passed for result in report.results.values()) == CASES
    assert sum(result.tests_failed + result.tests_skipped for result in report.results.values()) == 0


def test_every_case_passes(tmp_path: Path) -> None:
    run(tmp_path, Config(maintenance=False))


@pytest.mark.timeout(300)
def test_every_case_passes_while_rows_go_cold(tmp_path: Path) -> None:
    run(tmp_path, Config(flush_rows=1, flush_age_s=0.01, tick_s=0.01))
