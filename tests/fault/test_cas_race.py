"""Eight processes save with the same expectation: exactly one wins, the others are told what is there."""

import multiprocessing

import pytest
from support.state_writers import count_up, race

import agentdb

PROCESSES = 8
spawn = multiprocessing.get_context("spawn")


def run(target, *args) -> list:
    barrier, results = spawn.Barrier(PROCESSES), spawn.Queue()
    processes = [
        spawn.Process(target=target, args=(*args, *((n,) if target is race else ()), barrier, results))
        for n in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    return found


def test_of_eight_processes_one_wins_every_round(db_path):
    rounds = 25
    with agentdb.open(db_path):
        pass
    outcomes = dict(run(race, str(db_path), rounds))
    with agentdb.open(db_path) as db:
        history = db.states.history("agent", "session", "task")[::-1]
        assert [v.version for v in history] == list(range(1, rounds + 1))
        for number, version in enumerate(history):
            winners = [name for name, results in outcomes.items() if results[number][0]]
            assert len(winners) == 1
            assert outcomes[winners[0]][number] == (number + 1, None, None)
            assert version.data == [winners[0], number]
            assert all(
                results[number] == (0, number, number + 1) for name, results in outcomes.items() if name != winners[0]
            )
        assert db.verify().ok


@pytest.mark.parametrize("times", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_no_increment_is_lost(db_path, times):
    with agentdb.open(db_path):
        pass
    run(count_up, str(db_path), times)
    with agentdb.open(db_path) as db:
        found = db.states.load("agent", "session", "context")
        assert (found.version, found.data["n"]) == (PROCESSES * times, PROCESSES * times)
        db.optimize()
        assert [v.data["n"] for v in db.states.history("agent", "session", "context")] == [
            *range(PROCESSES * times, 0, -1)
        ]
        assert db.verify().ok
