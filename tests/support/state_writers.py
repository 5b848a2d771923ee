"""What the processes of the compare-and-set race run; in a module of its own, so that ``spawn`` can import it."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from typing import Any

import agentdb
from agentdb.errors import ConflictError


def race(path: str, rounds: int, name: int, barrier: Barrier, results: Any) -> None:
    """Save with the same expectation as everybody else, round after round, and report what came of it."""
    outcomes: list[tuple[int, int | None, int | None]] = []
    with agentdb.open(path) as db:
        for number in range(rounds):
            barrier.wait(60)
            try:
                saved = db.states.save("agent", "session", "task", [name, number], expected_version=number)
                outcomes.append((saved.version, None, None))
            except ConflictError as error:
                outcomes.append((0, error.expected, error.actual))
    results.put((name, outcomes))


def count_up(path: str, times: int, barrier: Barrier, results: Any) -> None:
    """Add 1 to a shared counter, reading again after every conflict."""
    conflicts = 0
    with agentdb.open(path) as db:
        barrier.wait(60)
        for _ in range(times):
            while True:
                found = db.states.load("agent", "session", "context")
                value, version = (found.data["n"], found.version) if found else (0, 0)
                data = {"n": value + 1, "padding": "x" * 1200}
                try:
                    db.states.save("agent", "session", "context", data, expected_version=version)
                    break
                except ConflictError as error:
                    if error.actual is None or error.actual <= version:
                        raise
                    conflicts += 1
    results.put(conflicts)
