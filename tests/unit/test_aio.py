from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pytest

import agentdb
from agentdb import (
    ClosedError,
    Config,
    ConflictError,
    Connection,
    InvalidInputError,
    NotFoundError,
    TableSchema,
    UnavailableError,
)
from agentdb import field as col
from agentdb.aio import AsyncDatabase, AsyncTable

NOTES = TableSchema(
    "notes",
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), 4)),
        pa.field("meta", pa.json_()),
    ],
    key="id",
)
QUIET = Config(maintenance=False, close_timeout_s=2.0, write_timeout_s=10.0)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await main

    return asyncio.run(bounded())


@asynccontextmanager
async def opened(path: Path, config: Config = QUIET) -> AsyncIterator[tuple[AsyncDatabase, AsyncTable]]:
    async with agentdb.open_async(path, config=config) as db:
        yield db, await db.table(NOTES)


def note(number: int) -> dict[str, Any]:
    return {"id": number, "text": f"note {number}", "vector": [number, 1, 0, 0], "meta": {"even": number % 2 == 0}}


class Pulse:
    """Measures the longest pause of the event loop."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0.05)
        self.worst_s = 0.0
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()

    async def _beat(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            self.worst_s = max(self.worst_s, time.perf_counter() - before - 0.005)


# --- the twins do what the synchronous methods do -----------------------------------------------------------------------


def test_a_table_from_end_to_end(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            await notes.put(note(1))
            assert await notes.put_many([note(n) for n in range(2, 1001)]) == 999
            assert (await notes.require(7))["text"] == "note 7"
            assert await notes.get(5000) is None
            with pytest.raises(NotFoundError):
                await notes.require(5000)
            with pytest.raises(InvalidInputError):
                await notes.put({"id": "seven"})
            assert [row["id"] if row else None for row in await notes.get_many([3, 5000])] == [3, None]
            assert await notes.count(col("meta", "even") == True) == 500  # noqa: E712 - builds a filter
            hits = await notes.search("vector", [1, 0, 0, 0], k=3)
            assert [hit.id for hit in hits] == [1000, 999, 998]
            assert (await notes.schema) == NOTES
            assert notes.name == "notes"
            assert await notes.delete(1)
            assert await notes.delete_many(filter=col("id") > 900) == 100
            assert (await notes.erase_many([2])).status == "complete"
            await notes.put(note(3))
            assert await db.flush() > 0
            await notes.add_columns([pa.field("seen", pa.bool_())])
            assert await notes.count() == 898
            assert await db.tables() == ["notes"]
            assert (await db.verify()).ok
            assert (await db.stats()).tables["notes"].cold_rows > 0
            assert (await db.table("notes")).sync.name == "notes"
            assert await db.transact(lambda: db.sync.table("notes").count()) == 898
            with pytest.raises(NotFoundError):
                await db.table("none")
            assert await db.drop_table("notes")

    run(main())


def test_iterators(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            await notes.put_many([note(n) for n in range(1500)])
            await db.flush()
            await notes.put_many([note(n) for n in range(1500, 2000)])
            seen = [row["id"] async for row in notes.scan(order_by=("id", "desc"), columns=["id"])]
            assert seen == list(range(1999, -1, -1))
            assert [row async for row in notes.scan(col("id") < 0)] == []
            assert len([row async for row in notes.scan(limit=300)]) == 300
            batches = [batch async for batch in notes.scan_arrow(columns=["id"])]
            assert sorted(pa.Table.from_batches(batches)["id"].to_pylist()) == list(range(2000))
            with pytest.raises(InvalidInputError):
                await anext(notes.scan(order_by="vector"))

            # One snapshot: what is written meanwhile does not show.
            rows = notes.scan(columns=["id"])
            await anext(rows)
            await notes.put_many([note(n) for n in range(5000, 6000)])
            assert len([row async for row in rows]) == 1999
            assert db.sync._core.pins.active() == 0

            rows = notes.scan()
            await anext(rows)
            await rows.aclose()
            assert [row async for row in rows] == []
            assert db.sync._core.pins.active() == 0

    run(main())


def test_an_iterator_loses_nothing_when_its_wait_is_cancelled(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (_, notes):
            await notes.put_many([note(n) for n in range(1000)])
            rows = notes.scan(order_by="id", columns=["id"])
            for _ in range(3):
                task = asyncio.create_task(anext(rows))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert [row["id"] async for row in rows] == list(range(1000))

    run(main())


def test_states(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, _):
            states = db.states
            first = await states.save("ann", "s1", "task", {"step": 1})
            await states.save("ann", "s1", "task", {"step": 2}, expected_version=first.version)
            with pytest.raises(ConflictError):
                await states.save("ann", "s1", "task", {"step": 3}, expected_version=first.version)
            loaded = await states.load("ann", "s1", "task")
            assert loaded is not None
            assert loaded.data == {"step": 2}
            assert [version.data["step"] for version in await states.history("ann", "s1", "task")] == [2, 1]
            assert len(await states.diff("ann", "s1", "task", 1, 2)) == 1
            assert (await states.restore("ann", "s1", "task", 1)).data == {"step": 1}
            assert len(await states.branch("ann", "s1", "s2")) == 1
            assert [agent async for agent in states.agents()] == ["ann"]
            assert await states.sessions("ann") == ["s1", "s2"]
            assert await states.delete("ann") == 4

    run(main())


def test_history_reads_its_data_off_the_loop(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, _):
            for size in (10, 20, 30):
                await db.states.save("a", "s", "t", "x" * size)
            monkeypatch.setattr("agentdb.aio._HISTORY_BYTES", 60)
            newest, middle, oldest = await db.states.history("a", "s", "t")
            assert newest._lazy._made
            assert middle._lazy._made
            assert not oldest._lazy._made
            assert len(oldest.data) == 10

    run(main())


def test_opening_waits_or_is_a_block(db_path: Path) -> None:
    async def main() -> None:
        db = await agentdb.open_async(db_path, config=QUIET)
        assert db.path == db_path
        assert not db.read_only
        assert db.config is QUIET
        assert repr(db).startswith("AsyncDatabase(")
        await db.close()
        await db.close()
        with pytest.raises(ClosedError):
            await db.tables()
        with pytest.raises(ClosedError):
            async with db.transaction():
                pass
        async with await agentdb.open_async(db_path) as again:
            assert await again.tables() == []
        with pytest.raises(NotFoundError):
            async with agentdb.open_async(db_path / "none", create=False):
                pass

    run(main())


def test_one_handle_serves_one_loop_after_another(db_path: Path) -> None:
    async def put(db: AsyncDatabase, number: int) -> int:
        notes = await db.table(NOTES)
        await notes.put(note(number))
        return await notes.count()

    db = run(agentdb.open_async(db_path, config=QUIET)._open())
    assert [run(put(db, number)) for number in range(3)] == [1, 2, 3]
    run(db.close())


def test_the_embedder_is_awaited(db_path: Path) -> None:
    embedder = agentdb.load_embedder("hashing")

    async def main() -> None:
        async with agentdb.open_async(db_path, embedder=embedder) as db:
            assert await db.embedder is embedder

    run(main())


def test_a_stop_iteration_reaches_the_task(db_path: Path) -> None:
    """No future takes one: before Python 3.12 the task would wait for ever."""

    async def main() -> None:
        async with agentdb.open_async(db_path) as db:
            connection = Connection(db, lambda _: None)
            for call in (
                connection.run("read", lambda: next(iter(()))),
                connection.on_thread(lambda: next(iter(()))),
            ):
                with pytest.raises(RuntimeError, match="StopIteration"):
                    await asyncio.wait_for(call, 10)
            assert await connection.on_thread(lambda: 7) == 7

    run(main())


# --- the loop is never blocked ------------------------------------------------------------------------------------------


def test_a_long_write_does_not_stop_the_loop(db_path: Path) -> None:
    rows = [note(n) for n in range(60_000)]
    vectors = pa.table(
        {
            "id": np.arange(100_000, 400_000),
            "vector": pa.FixedSizeListArray.from_arrays(np.zeros(1_200_000, np.float32), 4),
        }
    )

    async def main() -> None:
        async with opened(db_path) as (_, notes):
            async with Pulse() as pulse:
                began = time.perf_counter()
                await asyncio.gather(notes.put_many(rows), notes.put_many(vectors))
                took_s = time.perf_counter() - began
            # Python code on another thread gives the interpreter up every 5 ms; a blocked loop would show the whole write.
            assert pulse.worst_s < took_s / 2, f"paused {pulse.worst_s:.3f} s during a write of {took_s:.1f} s"

    run(main())


def test_a_reader_waits_for_no_number_of_writers(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            await notes.put(note(0))
            release = threading.Event()

            def hold() -> None:
                with db.sync.transaction():
                    held.set()
                    release.wait(30)

            held = threading.Event()
            holder = threading.Thread(target=hold)
            holder.start()
            await asyncio.to_thread(held.wait)
            writers = [asyncio.create_task(notes.put(note(n))) for n in range(1, 101)]
            await asyncio.sleep(0.1)
            began = time.perf_counter()
            assert await notes.count() == 1
            assert await notes.get(0) is not None
            assert time.perf_counter() - began < 3.0  # the writers would keep it waiting for 10
            assert not any(writer.done() for writer in writers)
            release.set()
            await asyncio.gather(*writers)
            holder.join()
            assert await notes.count() == 101

    run(main())


def test_many_tasks_at_once(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):

            async def work(agent: int) -> None:
                for step in range(10):
                    await notes.put(note(agent * 100 + step))
                    await db.states.save(agent, "s", "task", {"step": step})
                    assert (await notes.require(agent * 100 + step))["id"] == agent * 100 + step

            await asyncio.gather(*(work(agent) for agent in range(40)))
            assert await notes.count() == 400
            newest = await db.states.load_many([(agent, "s", "task") for agent in range(40)])
            assert {state.version for state in newest if state} == {10}

    run(main())


def test_a_synchronous_call_inside_a_running_loop(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            with agentdb.open(db_path) as other:
                other.table("notes").put(note(1))
                with other.transaction():
                    other.table("notes").put(note(2))
                    # This task's transaction belongs to this thread.
                    with pytest.raises(UnavailableError, match="another thread or task"):
                        await notes.put(note(3))
            assert notes.sync.count() == 2
            assert db.sync.tables() == ["notes"]

    run(main())


# --- transactions and snapshots -----------------------------------------------------------------------------------------


def test_a_transaction_is_joined_by_the_calls_of_its_task(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            async with db.transaction():
                await notes.put(note(1))
                await notes.put_many([note(2), note(3)])
                await db.states.save("a", "s", "t", 1)
                assert await notes.count() == 3
                assert len([row async for row in notes.scan()]) == 3
                async with agentdb.open_async(db_path) as again:  # another handle, the same task
                    assert await (await again.table("notes")).count() == 3
                # A synchronous call of this task would wait for the task's own lock: an error instead.
                with pytest.raises(UnavailableError, match="another thread or task"):
                    notes.sync.put(note(4))
                seen = await asyncio.to_thread(count_elsewhere, db_path)
                assert seen == 0
            assert await notes.count() == 3
            assert (await db.states.load("a", "s", "t")) is not None

    def count_elsewhere(path: Path) -> int:
        found: list[int] = []
        # A thread of its own does not inherit the task's context.
        thread = threading.Thread(target=lambda: found.append(count(path)))
        thread.start()
        thread.join()
        return found[0]

    def count(path: Path) -> int:
        with agentdb.open(path) as db:
            return db.table("notes").count()

    run(main())


def test_a_transaction_that_raises_is_undone(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block raises as a whole
                async with db.transaction():
                    await notes.put(note(1))
                    raise ZeroDivisionError
            assert await notes.count() == 0
            async with db.transaction():
                await notes.put(note(1))
                with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block raises as a whole
                    async with db.transaction():
                        await notes.put(note(2))
                        raise ZeroDivisionError
                async with db.snapshot():
                    assert await notes.count() == 1
                await notes.put(note(3))
            assert sorted([row["id"] async for row in notes.scan()]) == [1, 3]
            assert not threads("agentdb-transaction")

    run(main())


def threads(prefix: str) -> list[threading.Thread]:
    for _ in range(200):
        gc.collect()
        found = [one for one in threading.enumerate() if one.name.startswith(prefix)]
        if not found:
            return []
        time.sleep(0.01)
    return found


def test_another_task_cannot_use_a_transaction(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            async with db.transaction():
                await notes.put(note(1))
                # Tasks made inside inherit the context.
                for call in (notes.count(), notes.put(note(2)), anext(notes.scan()), enter(db)):
                    with pytest.raises(UnavailableError, match="another thread or task"):
                        await asyncio.create_task(as_coroutine(call))
                with pytest.raises(UnavailableError, match="another thread or task"):
                    await asyncio.gather(notes.put(note(2)), notes.put(note(3)))
            assert await notes.count() == 1

    async def enter(db: AsyncDatabase) -> None:
        async with db.transaction():
            pass

    run(main())


async def as_coroutine(call: Awaitable[Any]) -> Any:
    return await call


def test_a_child_that_outlives_the_block_is_free_again(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            go = asyncio.Event()

            async def child() -> int:
                await go.wait()
                await notes.put(note(2))
                notes.sync.put(note(3))
                return await notes.count()

            async with db.transaction():
                await notes.put(note(1))
                task = asyncio.create_task(child())
                await asyncio.sleep(0)
            async with db.snapshot():
                other = asyncio.create_task(child())
                await asyncio.sleep(0)
            go.set()
            assert await task == 3
            assert await other == 3

    run(main())


def test_a_child_of_a_synchronous_transaction_is_free_after_it(db_path: Path) -> None:
    async def main() -> None:
        with agentdb.open(db_path, config=QUIET) as db:
            notes = db.table(NOTES)
            with db.transaction():
                notes.put(note(1))
                inside = contextvars.copy_context()
                with pytest.raises(UnavailableError, match="another thread or task"):
                    await asyncio.to_thread(notes.put, note(2))
            assert await asyncio.to_thread(inside.run, notes.count) == 1
            await asyncio.to_thread(inside.run, notes.put, note(2))
            assert notes.count() == 2

    run(main())


def test_a_snapshot_does_not_change(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            await notes.put(note(1))
            wrote = asyncio.Event()
            ready = asyncio.Event()

            async def writer() -> None:
                await ready.wait()
                await notes.put(note(2))
                wrote.set()

            task = asyncio.create_task(writer())
            async with db.snapshot():
                ready.set()
                await wrote.wait()
                assert await notes.count() == 1
                with pytest.raises(UnavailableError, match="snapshot is open"):
                    await notes.put(note(3))
            await task
            assert await notes.count() == 2

    run(main())


def test_transactions_of_several_tasks_take_turns(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            await notes.put({"id": 0, "meta": {"n": 0}})

            async def add() -> None:
                for _ in range(5):
                    async with db.transaction():
                        row = await notes.require(0)
                        await asyncio.sleep(0)
                        await notes.put({"id": 0, "meta": {"n": row["meta"]["n"] + 1}})

            await asyncio.gather(*(add() for _ in range(10)))
            assert (await notes.require(0))["meta"] == {"n": 50}

    run(main())


def test_an_idle_transaction_times_out(db_path: Path) -> None:
    config = Config(maintenance=False, transaction_idle_timeout_s=0.2)

    async def main() -> None:
        async with opened(db_path, config) as (db, notes):
            with pytest.raises(agentdb.StorageError, match="idle"):  # noqa: PT012 - the block raises as a whole
                async with db.transaction():
                    await notes.put(note(1))
                    await asyncio.sleep(0.6)
                    await notes.put(note(2))
            await notes.put(note(3))
            assert await notes.count() == 1

    run(main())


# --- cancelling -----------------------------------------------------------------------------------------------------------


def test_cancelling_the_body_rolls_back(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            wrote = asyncio.Event()

            async def body() -> None:
                async with db.transaction():
                    await notes.put_many([note(n) for n in range(100)])
                    wrote.set()
                    await asyncio.sleep(60)

            task = asyncio.create_task(body())
            await wrote.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await notes.count() == 0
            await notes.put(note(1))  # the lock is free again
            with pytest.raises(TimeoutError):  # noqa: PT012 - the block raises as a whole
                async with asyncio.timeout(0.2), db.transaction():
                    await notes.put(note(2))
                    await asyncio.sleep(60)
            assert await notes.count() == 1
            assert not threads("agentdb-transaction")

    run(main())


def test_cancelling_a_call_inside_a_transaction_rolls_all_of_it_back(db_path: Path) -> None:
    rows = [note(n) for n in range(20_000)]

    async def main() -> None:
        async with opened(db_path) as (db, notes):

            async def body() -> None:
                async with db.transaction():
                    await notes.put(note(-1))
                    await notes.put_many(rows)

            for wait_s in (0.005, 0.05, 0.2):
                task = asyncio.create_task(body())
                await asyncio.sleep(wait_s)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await notes.count() == 0
            await body()
            assert await notes.count() == 20_001

    run(main())


def test_cancelling_at_any_moment_leaves_all_or_nothing(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            outcomes = set()

            async def body(base: int) -> None:
                async with db.transaction():
                    await notes.put_many([note(base + n) for n in range(50)])
                    await db.states.save("agent", "s", "t", base)
                    await notes.put(note(base + 50))

            for turn in range(60):
                base = turn * 1000
                task = asyncio.create_task(body(base))
                await asyncio.sleep(0.0002 * turn)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                async with db.transaction():  # behind a commit that goes on without its task
                    stored = await notes.count((col("id") >= base) & (col("id") < base + 1000))
                    state = await db.states.load("agent", "s", "t")
                assert stored in (0, 51)
                assert (state is not None and state.data == base) == (stored == 51)
                outcomes.add(stored)
            assert outcomes == {0, 51}

    run(main())


def test_cancelling_while_a_transaction_waits_for_its_turn(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            entered = asyncio.Event()

            async def second() -> None:
                async with db.transaction():
                    entered.set()

            async with db.transaction():
                await notes.put(note(1))
                waiting = free(second)
                await asyncio.sleep(0.1)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            await notes.put(note(2))  # the abandoned one got its turn at most for a moment
            assert not entered.is_set()
            assert await notes.count() == 2
            assert not threads("agentdb-transaction")

    run(main())


def free(call: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
    """Start a task that does not inherit this one's transaction."""
    return asyncio.get_running_loop().create_task(call(), context=contextvars.Context())


def test_cancelling_single_calls_leaves_each_done_or_not_done(db_path: Path) -> None:
    async def main() -> None:
        async with opened(db_path) as (db, notes):
            for round_no in range(30):
                base = round_no * 1000
                task = asyncio.create_task(notes.put_many([note(base + n) for n in range(50)]))
                await asyncio.sleep(0.0005 * (round_no % 6))
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):  # some are quicker
                    await task
        async with opened(db_path) as (db, notes):
            for round_no in range(30):
                base = round_no * 1000
                assert await notes.count((col("id") >= base) & (col("id") < base + 1000)) in (0, 50)
            assert (await db.verify()).ok

    run(main())


def test_cancelling_an_opening_leaves_nothing_open(db_path: Path) -> None:
    from agentdb.storage import engine

    async def main() -> None:
        task = asyncio.create_task(agentdb.open_async(db_path, config=QUIET)._open())
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(500):
            if not engine._registry:
                break
            await asyncio.sleep(0.01)
        assert not engine._registry
        async with opened(db_path) as (_, notes):
            await notes.put(note(1))

    run(main())


# --- closing ------------------------------------------------------------------------------------------------------------


def test_closing_while_tasks_run(db_path: Path) -> None:
    async def main() -> None:
        db = await agentdb.open_async(db_path, config=QUIET)
        notes = await db.table(NOTES)
        done: list[int] = []

        async def work(first: int) -> None:
            for number in range(first, first + 10_000):
                await notes.put(note(number))
                done.append(number)

        tasks = [asyncio.create_task(work(n * 100_000)) for n in range(20)]
        await asyncio.sleep(0.3)
        async with Pulse() as pulse:
            await db.close()
        assert pulse.worst_s < 5.0
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in ended} == {ClosedError}
        assert not threads("agentdb-")
        async with opened(db_path) as (again, stored):
            assert set(done) <= {row["id"] async for row in stored.scan(columns=["id"])}
            assert (await again.verify()).ok

    run(main())


def test_closing_while_a_transaction_is_open(db_path: Path) -> None:
    config = Config(maintenance=False, close_timeout_s=0.3)

    async def main() -> None:
        db = await agentdb.open_async(db_path, config=config)
        notes = await db.table(NOTES)
        wrote, closed = asyncio.Event(), asyncio.Event()

        async def body() -> None:
            async with db.transaction():
                await notes.put(note(1))
                wrote.set()
                await closed.wait()
                await notes.put(note(2))

        task = asyncio.create_task(body())
        await wrote.wait()
        await db.close()
        closed.set()
        with pytest.raises(ClosedError):
            await task
        async with opened(db_path, config) as (_, stored):
            assert await stored.count() == 0
            await stored.put(note(3))

    run(main())
