"""Forks, deaths, interrupts, time-outs and several handles: what each of them leaves behind."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.workload import A, B, row_a, row_b, rows_a

import agentdb
from agentdb import ClosedError, Config, StorageError, UnavailableError

QUIET = Config(maintenance=False)

HEAD = """
import os, signal, sys, time, warnings
warnings.simplefilter("ignore")
import agentdb
from agentdb import Config, UnavailableError, StorageError
sys.path.insert(0, sys.argv[2])
from support.workload import A, B, row_a, row_b, rows_a, rows_b
QUIET = Config(maintenance=False)
path = sys.argv[1]
def say(text):
    print(text, flush=True)
"""


def script(path: Path, body: str) -> subprocess.Popen:
    support = str(Path(__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + body, str(path), support],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 60) -> str:
    out, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors
    return out


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def db(db_path):
    with agentdb.open(db_path, config=QUIET) as db:
        db.table(A)
        db.table(B)
        yield db


# --- forks ------------------------------------------------------------------------------------------------------------


def test_a_forked_child_is_told_to_spawn_and_the_parent_goes_on(db_path):
    out = finish(
        script(
            db_path,
            """
db = agentdb.open(path)
table = db.table(A)
table.put_many(rows_a(0, 10))
db.flush()
table.put(row_a(11))
scan = table.scan()
next(scan)
pid = os.fork()
if pid == 0:
    calls = [lambda: table.get("k0001"), lambda: table.put(row_a(1)), lambda: list(table.scan()), lambda: db.flush(),
             lambda: db.transaction().__enter__(), lambda: db.snapshot().__enter__(), lambda: db.verify(), db.tables]
    for call in calls:
        try:
            call()
        except UnavailableError as error:
            assert "spawn" in str(error)
        else:
            os._exit(1)
    db.close()
    try:
        agentdb.open(path)
    except UnavailableError as error:
        assert "spawn" in str(error)
    else:
        os._exit(2)
    with agentdb.open(path + "-other") as own:
        own.table(A).put(row_a(50))
        assert own.table("a").count() == 1
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert len(list(scan)) == 10
table.put(row_a(60))
assert table.get("k0060") is not None and table.count() == 12
assert db.verify().ok
db.close()
say("done")
""",
        )
    )
    assert out == "done\n"


def test_tasks_of_a_forked_child_are_told_to_spawn_and_do_not_wait_for_ever(db_path):
    out = finish(
        script(
            db_path,
            """
import asyncio, signal
part = agentdb.Connection(path, lambda db: db.table(A))
async def ask(db):
    await asyncio.gather(*(part.run("read", lambda: part().count()) for _ in range(20)))
    return [await db.tables(), await part.run("write", lambda: part().put(row_a(1)))]
async def main():
    db = await agentdb.open_async(path)
    assert (await asyncio.gather(*(ask(db) for _ in range(20))))[0][0] == ["a"]
    return db
db = asyncio.run(main())
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    for call in (lambda: db.tables(), lambda: part.run("read", lambda: part().count())):
        async def attempt():
            await call()
        try:
            asyncio.run(attempt())
        except UnavailableError as error:
            assert "spawn" in str(error)
        else:
            os._exit(1)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert asyncio.run(ask(db))[0] == ["a"]
part.close()
asyncio.run(db.close())
say("done")
""",
        )
    )
    assert out == "done\n"


def test_a_block_that_ends_in_a_forked_child_is_the_parents(db_path):
    finish(
        script(
            db_path,
            """
db = agentdb.open(path, config=QUIET)
table = db.table(A)
pid = None
for fails in (False, True):
    try:
        with db.transaction():
            table.put(row_a(1, 5))
            pid = os.fork()
            if pid == 0 and fails:
                raise KeyError
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
                raise KeyError  # The parent undoes it; a child that committed would show.
    except UnavailableError as error:
        assert pid == 0 and "spawn" in str(error)
    except KeyError:
        pass
    if pid == 0:
        os._exit(0)
assert table.count() == 0
with db.snapshot():
    pid = os.fork()
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
table.put(row_a(2))
assert table.count() == 1 and db.verify().ok
db.close()
""",
        )
    )


def test_a_child_that_outlives_its_killed_parent_keeps_no_lock(db_path):
    process = script(
        db_path,
        """
db = agentdb.open(path, config=QUIET)
table = db.table(A)
table.put_many(rows_a(0, 5))
db.flush()
with db.transaction(), db._core.cold_lock(table._id).held(1, "a"):
    table.put(row_a(9))
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    say(pid)
    time.sleep(60)
""",
    )
    child = int(process.stdout.readline())
    end_of_child = lambda: os.kill(child, signal.SIGKILL)  # noqa: E731
    try:
        process.kill()
        process.wait()
        started = time.monotonic()
        with agentdb.open(db_path, config=QUIET) as db:
            db.table("a").put(row_a(7))
            db.flush()
            db.optimize()
            assert time.monotonic() - started < 20
            assert db.table("a").count() == 6
            # Its pin does not count either.
            assert len(list((db_path / "pins").iterdir())) == 1
            assert db.stats().tables["a"].fragments == 1
    finally:
        end_of_child()
        process.communicate()


# --- handles and threads ----------------------------------------------------------------------------------------------


def test_two_handles_of_one_path_share_one_engine(db_path, db):
    (db_path.parent / "link").symlink_to(db_path)
    with agentdb.open(db_path.parent / "link") as other:
        other.table("a").put(row_a(1))
        assert db.table("a").get("k0001") is not None
    with pytest.raises(ClosedError):
        other.tables()
    db.table("a").put(row_a(2))
    assert db.table("a").count() == 2


def test_close_while_other_threads_work(db_path):
    db = agentdb.open(db_path, config=Config(close_timeout_s=3.0, tick_s=0.01, flush_rows=20))
    db.table(A)
    db.table(B)
    acknowledged: list[set[int]] = [set() for _ in range(6)]
    wrong: list[BaseException] = []
    running = threading.Barrier(7)

    def write(me: int) -> None:
        a, b = db.table("a"), db.table("b")
        running.wait()
        try:
            for n in range(me * 10_000, me * 10_000 + 10_000):
                if me % 3 == 0:
                    a.put(row_a(n))
                elif me % 3 == 1:
                    with db.transaction():
                        a.put(row_a(n))
                        b.put(row_b(n))
                else:
                    a.put(row_a(n))
                    list(a.scan(limit=5))
                acknowledged[me].add(n)
        except ClosedError:
            pass
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    running.wait()
    time.sleep(0.5)
    db.close()
    for thread in threads:
        thread.join(30)
    assert not wrong, wrong
    with agentdb.open(db_path, config=QUIET) as db:
        assert db.verify().problems == ()
        stored = {int(row["k"][1:]) for row in db.table("a").scan()}
        for mine in acknowledged:
            assert mine <= stored
            assert (
                len(stored & set(range(min(mine) // 10_000 * 10_000, min(mine) // 10_000 * 10_000 + 10_000)) - mine)
                <= 1
            )


def test_close_ends_a_transaction_that_another_thread_left_open(db_path):
    db = agentdb.open(db_path, config=Config(maintenance=False, close_timeout_s=0.3))
    table = db.table(A)
    inside, closed = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with db.transaction():
                table.put(row_a(1))
                inside.set()
                closed.wait()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    db.close()
    closed.set()
    thread.join(30)
    assert [type(one) for one in raised] == [ClosedError]
    with agentdb.open(db_path, config=QUIET) as db:
        assert db.table("a").count() == 0


def test_a_transaction_belongs_to_its_thread_and_task(db):
    table = db.table("a")

    async def elsewhere() -> None:
        table.put(row_a(1))

    async def main() -> None:
        with db.transaction():
            table.put(row_a(2))
            with pytest.raises(UnavailableError, match="thread or task"):
                await asyncio.create_task(elsewhere())

    asyncio.run(main())
    assert [row["k"] for row in table.scan()] == ["k0002"]


# --- interrupts and time-outs -----------------------------------------------------------------------------------------


def test_an_interrupted_writer_leaves_nothing_half_done(db_path):
    """Exceptions of a signal handler at random moments, in the thread that leads as in one that waits."""
    out = finish(
        script(
            db_path,
            """
import random, threading
db = agentdb.open(path, config=Config(maintenance=False, write_timeout_s=20.0))
a, b = db.table(A), db.table(B)
stop = threading.Event()
wrong, counts = [], [0, 0, 0]
def other(me):
    try:
        while not stop.is_set():
            try:
                b.put({"x": f"thread{me}", "y": counts[me], "text": "t"})
                counts[me] += 1
            except StorageError as error:
                # It shared the commit of the interrupted one, and nothing of it was kept.
                assert error.retryable and "interrupted" in str(error), error
                assert b.get((f"thread{me}", counts[me])) is None
    except BaseException as error:
        wrong.append(repr(error))
threads = [threading.Thread(target=other, args=(i,)) for i in range(3)]
for thread in threads: thread.start()
chooser = random.Random(5)
done, interrupted, n = set(), 0, 0
deadline = time.monotonic() + 4
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
sys.unraisablehook = lambda _: None  # A signal may strike in a finaliser.
maybe = set()
while time.monotonic() < deadline:
    n += 1
    try:
        signal.setitimer(signal.ITIMER_REAL, chooser.uniform(0.00002, 0.003))
        if n % 2:
            a.put_many([row_a(2 * n), row_a(2 * n + 1)])
        else:
            with db.transaction():
                a.put(row_a(2 * n))
                a.put(row_a(2 * n + 1))
        signal.setitimer(signal.ITIMER_REAL, 0)
        done.add(n)
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        interrupted += 1
        maybe.add(n)
stop.set()
for thread in threads:
    thread.join(30)
    assert not thread.is_alive()
assert not wrong, wrong
a.put(row_a(0))
stored = {int(row["k"][1:]) for row in a.scan()} - {0, 1}
whole = {i // 2 for i in stored}
assert stored == {2 * i for i in whole} | {2 * i + 1 for i in whole}, "half an operation"
assert done <= whole <= done | maybe
assert db.table("b").count() == sum(counts)
assert db.verify().ok
db.close()
say(f"{len(done)} {interrupted} {counts}")
""",
        )
    )
    assert int(out.split()[1]) > 20, out


def test_a_waiting_writer_times_out_while_another_process_holds_the_lock(db_path):
    with agentdb.open(db_path, config=Config(maintenance=False, write_timeout_s=0.5)) as db:
        table = db.table(A)
        process = script(
            db_path,
            """
db = agentdb.open(path, config=QUIET)
with db.transaction():
    db.table(A).put(row_a(1))
    say("in")
    sys.stdin.readline()
db.close()
""",
        )
        try:
            assert process.stdout.readline() == "in\n"
            for call in (lambda: table.put(row_a(2)), lambda: db.transaction().__enter__()):
                started = time.monotonic()
                with pytest.raises(StorageError) as caught:
                    call()
                assert caught.value.retryable
                assert 0.4 < time.monotonic() - started < 10
            assert table.get("k0001") is None
            process.stdin.write("\n")
            process.stdin.flush()
            finish(process)
        finally:
            end(process)
        table.put(row_a(3))
        assert {row["k"] for row in table.scan()} == {"k0001", "k0003"}


def test_an_idle_transaction_is_rolled_back_and_lets_others_go_on(db_path):
    with agentdb.open(db_path, config=Config(maintenance=False, transaction_idle_timeout_s=0.3)) as db:
        table = db.table(A)
        with pytest.raises(StorageError, match="idle") as caught, db.transaction():  # noqa: PT012
            table.put(row_a(1))
            time.sleep(0.2)
            table.put(row_a(2))  # not idle: the time starts anew
            time.sleep(0.2)
            table.put(row_a(3))
            waiter = threading.Thread(target=lambda: table.put(row_a(9)))
            waiter.start()
            waiter.join(5)
            assert not waiter.is_alive()
            table.put(row_a(4))
        assert caught.value.retryable
        assert [row["k"] for row in table.scan()] == ["k0009"]
        table.put(row_a(5))
        assert db.verify().ok


# --- snapshots and pins -----------------------------------------------------------------------------------------------


def test_a_snapshot_keeps_its_version_through_optimise_and_lets_go_of_it(db_path, db):
    a = db.table("a")
    a.put_many(rows_a(0, 30))
    db.flush()
    a.put(row_a(3, 1))
    expected = {f"k{i:04d}": i for i in range(30)} | {"k0003": 1003}
    versions = db_path / "lance" / "a.lance" / "_versions"
    entered, leave = threading.Event(), threading.Event()
    seen: list[dict[str, int]] = []

    def read() -> None:
        with db.snapshot():
            seen.append({row["k"]: row["n"] for row in a.scan()})
            entered.set()
            leave.wait()
            seen.append({row["k"]: row["n"] for row in a.scan()})
            seen.append({key: a.get(key)["n"] for key in expected})

    reader = threading.Thread(target=read)
    reader.start()
    entered.wait()
    for round_ in range(2, 5):
        a.put_many(rows_a(0, 20, round_))
        a.delete("k0025")
        db.optimize()
    pinned = len(list(versions.glob("*.manifest")))
    leave.set()
    reader.join()
    assert seen == [expected] * 3
    assert pinned >= 2
    a.put(row_a(1, 9))
    db.optimize()
    assert len(list(versions.glob("*.manifest"))) == 1
    assert a.count() == 29


def test_an_iterator_of_another_process_pins_until_it_dies(db_path, db):
    a = db.table("a")
    a.put_many(rows_a(0, 3000))
    db.flush()
    process = script(
        db_path,
        """
db = agentdb.open(path, config=QUIET)
rows = db.table("a").scan()
first = next(rows)
say("in")
sys.stdin.readline()
assert sorted(row["n"] for row in [first, *rows]) == list(range(3000))
say("complete")
rows = db.table("a").scan()
next(rows)
say("in again")
time.sleep(60)
""",
    )
    versions = db_path / "lance" / "a.lance" / "_versions"
    try:
        assert process.stdout.readline() == "in\n"
        a.put_many(rows_a(0, 3000, 1))
        db.optimize()
        assert len(list(versions.glob("*.manifest"))) >= 2
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "complete\n"
        assert process.stdout.readline() == "in again\n"
    finally:
        end(process)
    a.put_many(rows_a(0, 10, 2))
    db.optimize()
    assert len(list(versions.glob("*.manifest"))) == 1
    assert len(list((db_path / "pins").iterdir())) == 1


def test_the_log_stays_bounded_under_writers_that_never_stop(db_path):
    config = Config(wal_limit_bytes=256 << 10, tick_s=0.05, flush_rows=1_000_000)
    with agentdb.open(db_path, config=config) as db:
        b = db.table(B)
        stop = threading.Event()

        def write(me: int) -> None:
            n = 0
            while not stop.is_set():
                b.put({"x": f"{me}", "y": n % 50, "text": "t" * 2_000})
                n += 1

        def read() -> None:
            while not stop.is_set():
                with db.snapshot():
                    b.count()

        threads = [*(threading.Thread(target=write, args=(i,)) for i in range(3)), threading.Thread(target=read)]
        for thread in threads:
            thread.start()
        largest, deadline = 0, time.monotonic() + 4
        while time.monotonic() < deadline:
            largest = max(largest, db.stats().wal_bytes)
            time.sleep(0.02)
        stop.set()
        for thread in threads:
            thread.join()
        # Many times as much was written. Readers that overlap keep the log from being begun anew for a while.
        assert largest < 64 * config.wal_limit_bytes
        assert db.stats().maintenance_error is None


def test_four_processes_on_one_table_each_with_its_maintenance(db_path):
    body = """
config = Config(flush_rows=30, flush_age_s=0.05, tick_s=0.02, compact_fragments=2, bulk_rows=32, bulk_bytes=1)
me = int(sys.stdin.readline())
db = agentdb.open(path, config=config)
a = db.table(A)
for n in range(60):
    a.put(row_a(1000 * me + n))
    if n % 20 == 5:
        a.put_many(rows_a(1000 * me + 500, 1000 * me + 540, n))
    if n % 20 == 15:
        a.delete(f"k{1000 * me + n - 1:04d}")
    assert a.get(f"k{1000 * me + n:04d}") is not None
time.sleep(0.2)
error = db.stats().maintenance_error
db.close()
say(error)
"""
    with agentdb.open(db_path, config=QUIET) as db:
        db.table(A)
    processes = [script(db_path, body) for _ in range(4)]
    for me, process in enumerate(processes):
        process.stdin.write(f"{me}\n")
        process.stdin.flush()
    assert [finish(process) for process in processes] == ["None\n"] * 4
    expected = {}
    for me in range(4):
        expected |= {1000 * me + n: 1000 * me + n for n in range(60) if n not in (14, 34, 54)}
        expected |= {i: i + 45_000 for i in range(1000 * me + 500, 1000 * me + 540)}
    with agentdb.open(db_path, config=QUIET) as db:
        assert {int(row["k"][1:]): row["n"] for row in db.table("a").scan()} == expected
        assert db.verify().problems == ()
        db.optimize()
        assert db.table("a").count() == len(expected)
