"""Writers of one process share commits, and none of them pays for another's failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import agentdb
from agentdb import Config, TableSchema
from agentdb.errors import ClosedError, ConflictError, InvalidInputError, StorageError
from agentdb.storage.core import Core, WriteView, _Unit

SCHEMA = TableSchema("t", [pa.field("k", pa.string()), pa.field("n", pa.int64())], key="k")


@pytest.fixture
def db(db_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=Config(maintenance=False, durability="normal", write_timeout_s=10.0)) as opened:
        opened.table(SCHEMA)
        yield opened


@pytest.fixture
def core(db: agentdb.Database) -> Core:
    return db._core


def commits(core: Core, monkeypatch: pytest.MonkeyPatch) -> list[WriteView]:
    """Every COMMIT from now on."""
    seen: list[WriteView] = []
    commit = core._commit

    def counted(view: WriteView) -> None:
        commit(view)
        seen.append(view)

    monkeypatch.setattr(core, "_commit", counted)
    return seen


class Crowd:
    """Writers that wait in the queue while the test holds the write lock."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.results: dict[Any, Any] = {}
        self.threads: list[threading.Thread] = []

    def add(self, name: Any, work: Callable[[], Any]) -> None:
        before = len(self.core._queue)

        def run() -> None:
            try:
                self.results[name] = self.core.transact(work)
            except BaseException as error:
                self.results[name] = error

        thread = threading.Thread(target=run)
        thread.start()
        self.threads.append(thread)
        deadline = time.monotonic() + 5
        while len(self.core._queue) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def join(self) -> dict[Any, Any]:
        for one in self.threads:
            one.join(20)
            assert not one.is_alive()
        return self.results


def test_waiting_writers_share_one_commit(db: agentdb.Database, core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    table, crowd, seen = db.table("t"), Crowd(core), commits(core, monkeypatch)
    with core.write_lock.held(1, "the test"):
        for i in range(20):
            crowd.add(i, lambda i=i: (table.put({"k": str(i), "n": i}), table.get(str(i)))[1])
    results = crowd.join()
    assert results == {i: {"k": str(i), "n": i} for i in range(20)}
    assert len(seen) == 1
    assert table.count() == 20
    assert seen[0].commit_no == db.stats().commits


def test_many_threads_need_fewer_commits_than_writes(
    db: agentdb.Database, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, seen = db.table("t"), commits(core, monkeypatch)
    begin = core._begin

    def slow() -> WriteView:
        time.sleep(0.002)
        return begin()

    monkeypatch.setattr(core, "_begin", slow)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: table.put({"k": str(i), "n": i}), range(160)))
    assert table.count() == 160
    assert len(seen) < 120


def test_one_that_fails_hurts_nobody_else(db: agentdb.Database, core: Core) -> None:
    table, crowd = db.table("t"), Crowd(core)

    def fail() -> None:
        table.put({"k": "bad", "n": 1})
        raise ConflictError("on purpose")

    with core.write_lock.held(1, "the test"):
        for i in range(3):
            crowd.add(i, lambda i=i: table.put({"k": str(i), "n": i}))
            crowd.add(f"bad{i}", fail)
    results = crowd.join()
    assert [type(results[f"bad{i}"]) for i in range(3)] == [ConflictError] * 3
    assert [results[i] for i in range(3)] == [None] * 3
    assert sorted(row["k"] for row in table.scan()) == ["0", "1", "2"]


def test_a_failing_commit_reaches_everyone(db: agentdb.Database, core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    table, crowd = db.table("t"), Crowd(core)

    def broken(view: WriteView) -> None:
        raise StorageError("the disk is full", retryable=True)

    with monkeypatch.context() as patch:
        patch.setattr(core, "_commit", broken)
        with core.write_lock.held(1, "the test"):
            for i in range(3):
                crowd.add(i, lambda i=i: table.put({"k": str(i), "n": i}))
        results = crowd.join()
    assert [str(results[i]) for i in range(3)] == ["the disk is full"] * 3
    assert table.count() == 0
    table.put({"k": "after", "n": 1})
    assert table.count() == 1


def test_who_times_out_is_withdrawn(db_path: Path) -> None:
    config = Config(maintenance=False, durability="normal", write_timeout_s=0.2)
    with agentdb.open(db_path, config=config) as db:
        table, core = db.table(SCHEMA), db._core
        crowd = Crowd(core)
        with core.write_lock.held(1, "the test"):
            for i in range(4):
                crowd.add(i, lambda i=i: table.put({"k": str(i), "n": i}))
            results = crowd.join()
        for error in results.values():
            assert isinstance(error, StorageError)
            assert error.retryable
        assert not core._queue
        table.put({"k": "after", "n": 1})
        assert [row["k"] for row in table.scan()] == ["after"], "what timed out must never be written"


def test_an_explicit_transaction_keeps_others_waiting(db: agentdb.Database, core: Core) -> None:
    table, crowd = db.table("t"), Crowd(core)
    with db.transaction():
        table.put({"k": "a", "n": 1})
        crowd.add("other", lambda: table.get("a"))
        assert not crowd.results
    assert crowd.join() == {"other": {"k": "a", "n": 1}}


class Interrupting:
    """A lock whose first `acquire` is interrupted, after something else has happened."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        self._lock = threading.Lock()
        self._lock.acquire()

    def acquire(self, *, timeout: float = -1) -> bool:
        before, self._before = self._before, lambda: None
        before()
        raise KeyboardInterrupt

    def release(self) -> None:
        self._lock.release()


def test_an_interrupted_waiter_is_withdrawn(db: agentdb.Database, core: Core) -> None:
    table, crowd = db.table("t"), Crowd(core)
    unit = _Unit(lambda: table.put({"k": "interrupted", "n": 0}))
    unit.signal = Interrupting(lambda: None)  # type: ignore[assignment]
    with core.write_lock.held(1, "the test"):
        crowd.add("first", lambda: table.put({"k": "first", "n": 1}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agentdb.storage.core._Unit", lambda work: unit)
            with pytest.raises(KeyboardInterrupt):
                core._submit(unit.work)
        crowd.add("last", lambda: table.put({"k": "last", "n": 2}))
    assert crowd.join() == {"first": None, "last": None}
    assert sorted(row["k"] for row in table.scan()) == ["first", "last"]


def test_a_waiter_interrupted_when_it_was_chosen_to_lead_passes_that_on(db: agentdb.Database, core: Core) -> None:
    table, crowd = db.table("t"), Crowd(core)
    released = threading.Event()

    def chosen() -> None:
        # The leader is let go, times out or commits, and picks the next: this unit.
        deadline = time.monotonic() + 5
        while not unit.lead and time.monotonic() < deadline:
            time.sleep(0.001)
        released.set()

    unit = _Unit(lambda: table.put({"k": "interrupted", "n": 0}))
    unit.signal = Interrupting(chosen)  # type: ignore[assignment]
    owner = object()
    assert core.write_lock.acquire(1, owner)
    crowd.add("first", lambda: table.put({"k": "first", "n": 1}))
    leader = core._queue[0]
    # The first one's wait for the lock fails, so the second must lead.
    results: list[BaseException] = []

    def submit() -> None:
        try:
            core._submit(unit.work)
        except BaseException as error:
            results.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentdb.storage.core._Unit", lambda work: unit)
        thread = threading.Thread(target=submit)
        thread.start()
        while len(core._queue) < 2:
            time.sleep(0.001)
    crowd.add("last", lambda: table.put({"k": "last", "n": 2}))
    # As if the leader had given up: it hands the lead to the interrupted unit, which must hand it on.
    with core._mutex:
        leader.lead = False
        core._queue.remove(leader)
        core._queue.append(leader)
        unit.lead = True
    assert released.wait(5)
    thread.join(5)
    assert [type(one) for one in results] == [KeyboardInterrupt]
    with core._mutex:
        assert core._leading
        assert core._queue[0].lead
    core.write_lock.withdraw(owner)
    crowd.join()
    assert "interrupted" not in [row["k"] for row in table.scan()]
    table.put({"k": "after", "n": 1})


def test_an_interrupt_in_the_leaders_own_work(db: agentdb.Database, core: Core) -> None:
    table, crowd = db.table("t"), Crowd(core)

    def interrupted() -> None:
        table.put({"k": "bad", "n": 1})
        raise KeyboardInterrupt

    with core.write_lock.held(1, "the test"):
        crowd.add("leader", interrupted)
        crowd.add("other", lambda: table.put({"k": "other", "n": 1}))
    results = crowd.join()
    assert isinstance(results["leader"], KeyboardInterrupt)
    other = results["other"]
    if other is not None:
        assert isinstance(other, StorageError)
        assert other.retryable
    assert [row["k"] for row in table.scan()] == ([] if other is not None else ["other"])
    table.put({"k": "after", "n": 1})


def test_an_interrupt_right_after_the_commit_tells_nobody_else_that_it_failed(
    db: agentdb.Database, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, crowd = db.table("t"), Crowd(core)
    learn, times = core.pins.learn, iter([True])

    def interrupted(commit: int) -> None:
        learn(commit)
        if next(times, False):
            raise KeyboardInterrupt

    with core.write_lock.held(1, "the test"):
        crowd.add("leader", lambda: table.put({"k": "leader", "n": 1}))
        crowd.add("other", lambda: table.put({"k": "other", "n": 1}))
        monkeypatch.setattr(core.pins, "learn", interrupted)
    results = crowd.join()
    assert isinstance(results["leader"], KeyboardInterrupt)
    assert results["other"] is None, "its work is committed"
    assert table.count() == 2


def test_a_bulk_write_inside_shared_work_lets_go_of_the_cold_lock(db_path: Path) -> None:
    config = Config(maintenance=False, durability="normal", bulk_rows=2, bulk_bytes=1)
    with agentdb.open(db_path, config=config) as db:
        table = db.table(SCHEMA)
        db.transact(lambda: table.put_many([{"k": str(i), "n": i} for i in range(5)]))
        assert db.stats().tables["t"].cold_rows == 5
        with pytest.raises(ConflictError):
            db.transact(lambda: (table.put_many([{"k": f"x{i}", "n": i} for i in range(5)]), _raise()))
        assert table.count() == 5
        table.put({"k": "y", "n": 1})
        assert db.flush("t") == 1
        assert table.count() == 6
        assert db.verify().ok


def _raise() -> None:
    raise ConflictError("on purpose")


def test_transact_joins_the_open_transaction(db: agentdb.Database) -> None:
    table = db.table("t")
    with pytest.raises(ConflictError), db.transaction():  # noqa: PT012 - the block is what raises
        assert db.transact(lambda: (table.put({"k": "a", "n": 1}), "done")[1]) == "done"
        assert table.count() == 1
        raise ConflictError("on purpose")
    assert table.count() == 0


def test_work_that_writes_nothing(db: agentdb.Database) -> None:
    assert db.transact(lambda: 42) == 42
    with pytest.raises(InvalidInputError, match="n must be an int"):
        db.transact(lambda: db.table("t").put({"k": "a", "n": "x"}))


def test_close_while_others_write(db_path: Path) -> None:
    db = agentdb.open(db_path, config=Config(durability="normal"))
    table = db.table(SCHEMA)
    acknowledged: list[str] = []
    errors: list[BaseException] = []

    def write(i: int) -> None:
        for j in range(10_000):
            try:
                table.put({"k": f"{i}-{j}", "n": j})
            except ClosedError:
                return
            except BaseException as error:
                errors.append(error)
                return
            acknowledged.append(f"{i}-{j}")

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for one in threads:
        one.start()
    time.sleep(0.1)
    db.close()
    for one in threads:
        one.join(20)
        assert not one.is_alive()
    assert not errors
    with agentdb.open(db_path) as again:
        assert sorted(row["k"] for row in again.table("t").scan()) == sorted(acknowledged)
