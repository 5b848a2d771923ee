"""The engine against a plain dict: any sequence of operations, in any state of the two tiers, gives the same answers."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

import agentdb
from agentdb import Config, TableSchema
from agentdb.errors import ConflictError, InvalidInputError, NotFoundError, UnavailableError
from agentdb.filters import And, field
from agentdb.testing.models import ModelDatabase, ModelTable, frozen
from agentdb.testing.strategies import filters, rows

NOTES = TableSchema(
    "notes",
    [
        pa.field("id", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("score", pa.float64()),
        pa.field("text", pa.string()),
    ],
    key="id",
    indexed=["n"],
)
EVENTS = TableSchema(
    "events",
    [
        pa.field("tenant", pa.string()),
        pa.field("no", pa.int64()),
        pa.field("kind", pa.string()),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("u64", pa.uint64()),
        pa.field("f32", pa.float32()),
        pa.field("ok", pa.bool_()),
        pa.field("raw", pa.binary()),
        pa.field("day", pa.date32()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("big", pa.list_(pa.uint64())),
        pa.field("meta", pa.json_()),
        pa.field("vec", pa.list_(pa.float32(), 3)),
        pa.field("half", pa.list_(pa.float16(), 2)),
    ],
    key=("tenant", "no"),
    indexed=("kind", "at", "u64", "f32", "ok", "raw"),
)
SCHEMAS = {one.name: one for one in (NOTES, EVENTS)}
KEYS = {
    "notes": ["", "a", "a\0", "a\1b", "b", "B", "é", "\U0001f600", "x" * 300],
    "events": list(itertools.product(["", "a", "a\1", "b"], [0, 1, -1, 2**63 - 1, -(2**63)])),
}
SORTABLE = {
    "notes": ["id", "n", "score", "text"],
    "events": ["tenant", "no", "kind", "at", "u64", "f32", "ok", "raw", "day"],
}
MORE = [pa.field("extra", pa.string()), pa.field("more_meta", pa.json_()), pa.field("count", pa.uint64())]


def some_rows(name: str) -> st.SearchStrategy[dict[str, Any]]:
    schema = SCHEMAS[name]

    def with_key(row: dict[str, Any], key: Any) -> dict[str, Any]:
        return {**row, **dict(zip(schema.key, key if isinstance(key, tuple) else (key,), strict=True))}

    return st.builds(with_key, rows(schema), st.sampled_from(KEYS[name]))


def on_table(values: Callable[[str], st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """A table's name with something that fits it."""
    return st.sampled_from(["events", "notes"]).flatmap(lambda name: st.tuples(st.just(name), values(name)))


def orders(name: str) -> st.SearchStrategy[list[tuple[str, str]]]:
    return st.lists(st.tuples(st.sampled_from(SORTABLE[name]), st.sampled_from(["asc", "desc"])), max_size=2)


def conditions(name: str) -> st.SearchStrategy[Any]:
    """A filter of any shape, on its own or within a key's first column, or none."""
    free = filters(SCHEMAS[name])
    first = SCHEMAS[name].key[0]
    parts = sorted({key[0] if isinstance(key, tuple) else key for key in KEYS[name]})
    within = st.builds(lambda one, part: And(field(first) == part, one), free, st.sampled_from(parts))
    return st.one_of(st.none(), free, free, within)


def probes(name: str) -> st.SearchStrategy[dict[str, Any]]:
    components = st.sampled_from([1.0, -1.0, 0.5, 2.0])
    return st.fixed_dictionaries(
        {
            "keys": st.lists(st.sampled_from(KEYS[name]), max_size=4),
            "condition": conditions(name),
            "order": orders(name),
            "limit": st.one_of(st.none(), st.integers(0, 6)),
            "k": st.integers(1, 6),
            "metric": st.sampled_from(["cosine", "l2", "dot"]),
            "vec": st.lists(components, min_size=3, max_size=3),
            "half": st.lists(components, min_size=2, max_size=2),
        }
    )


PROBES = on_table(probes)


def same(found: Any, expected: Any, what: str) -> None:
    left, right = [frozen(one) for one in found], [frozen(one) for one in expected]
    assert left == right, f"{what}: {left} instead of {right}"


def same_set(found: Any, expected: Any, what: str) -> None:
    left, right = Counter(map(frozen, found)), Counter(map(frozen, expected))
    assert left == right, f"{what}: too much {left - right}, missing {right - left}"


class Snapshot:
    """A snapshot held open by a thread of its own."""

    def __init__(self, db: agentdb.Database, expected: dict[str, ModelTable]) -> None:
        self.db = db
        self.expected = expected
        self._thread = ThreadPoolExecutor(1)
        self._block = contextlib.ExitStack()
        self.run(lambda: self._block.enter_context(db.snapshot()))

    def run(self, work: Callable[[], Any]) -> Any:
        return self._thread.submit(work).result()

    def close(self) -> None:
        self.run(self._block.close)
        self._thread.shutdown()


class EngineMachine(RuleBasedStateMachine):
    snapshots = Bundle("snapshots")
    iterators = Bundle("iterators")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="agentdb-machine-"))
        self.moment = datetime(2024, 1, 1, tzinfo=UTC)
        numbers = itertools.count()
        self.config = Config(
            clock=self.tick,
            id_source=lambda: f"{next(numbers):032x}",
            maintenance=False,
            durability="normal",
            bulk_rows=6,
            bulk_bytes=1,
            close_flush_rows=8,
            compact_fragments=2,
            close_timeout_s=0.5,
            write_timeout_s=5.0,
        )
        self.model = ModelDatabase()
        self.blocks: list[contextlib.ExitStack] = []
        self.open_snapshots: list[Snapshot] = []
        self.open_iterators: list[Iterator[Any]] = []
        self.receipts: list[str] = []
        self.commits: dict[tuple[str, Any, int], Any] = {}
        """What was seen of a row that a commit wrote last."""
        self.turn = itertools.count()
        self.handles: list[agentdb.Database] = []
        self.open()

    def tick(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment

    def open(self) -> None:
        self.handles = [agentdb.open(self.directory / "db", config=self.config) for _ in range(2)]

    @property
    def db(self) -> agentdb.Database:
        """One handle of two, in turn."""
        return self.handles[next(self.turn) % 2]

    def table(self, name: str) -> Any:
        return self.db.table(name)

    @initialize()
    def create(self) -> None:
        for schema in SCHEMAS.values():
            self.db.table(schema)
            self.model.create(schema)

    # --- writes -------------------------------------------------------------------------------------------------------

    @rule(given=on_table(some_rows), probe=PROBES)
    def put(self, given: tuple[str, dict[str, Any]], probe: Any) -> None:
        name, row = given
        self.table(name).put(row)
        self.model.tables[name].put_many([row])
        self.look(probe)

    @rule(
        given=on_table(lambda name: st.lists(some_rows(name), max_size=5)),
        as_=st.sampled_from(["dict", "arrow"]),
        probe=PROBES,
    )
    def put_few(self, given: tuple[str, list[dict[str, Any]]], as_: str, probe: Any) -> None:
        self.put_many(*given, as_, probe)

    @rule(
        given=on_table(lambda name: st.lists(some_rows(name), min_size=6, max_size=14)),
        as_=st.sampled_from(["dict", "arrow", "batch", "reader"]),
        probe=PROBES,
    )
    def put_bulk(self, given: tuple[str, list[dict[str, Any]]], as_: str, probe: Any) -> None:
        self.put_many(*given, as_, probe)

    def put_many(self, name: str, given: list[dict[str, Any]], as_: str, probe: Any) -> None:
        data: Any = given
        if as_ != "dict":
            data = self.arrow(name, given)
        if as_ == "batch":
            data = data.combine_chunks().to_batches()
            data = data[0] if data else self.arrow(name, given).schema.empty_table()
        elif as_ == "reader":
            data = data.to_reader(max_chunksize=3)
        assert self.table(name).put_many(data) == len(given)
        self.model.tables[name].put_many(given)
        self.look(probe)

    def arrow(self, name: str, given: list[dict[str, Any]]) -> pa.Table:
        schema = self.model.tables[name].schema
        arrays = [
            column.to_arrow([column.to_physical(row.get(column.name)) for row in given]) for column in schema.columns
        ]
        plain = pa.table(arrays, names=[column.name for column in schema.columns])
        return schema.to_user_arrow(plain)

    @rule(given=on_table(lambda name: st.lists(st.sampled_from(KEYS[name]), min_size=1, max_size=4)), probe=PROBES)
    def delete_keys(self, given: tuple[str, list[Any]], probe: Any) -> None:
        name, keys = given
        if len(keys) == 1:
            assert self.table(name).delete(keys[0]) is (self.model.tables[name].delete_many(keys) == 1)
        else:
            assert self.table(name).delete_many(keys) == self.model.tables[name].delete_many(keys)
        self.look(probe)

    @rule(given=on_table(lambda name: filters(SCHEMAS[name])), probe=PROBES)
    def delete_by_filter(self, given: tuple[str, Any], probe: Any) -> None:
        name, condition = given
        deleted = self.table(name).delete_many(filter=condition)
        assert deleted == self.model.tables[name].delete_many(filter=condition)
        self.look(probe)

    @rule(given=on_table(lambda name: st.lists(st.sampled_from(KEYS[name]), min_size=1, max_size=3)), probe=PROBES)
    def erase(self, given: tuple[str, list[Any]], probe: Any) -> None:
        name, keys = given
        receipt = self.table(name).erase_many(keys)
        assert receipt.rows == self.model.tables[name].delete_many(keys)
        assert receipt.table == name
        if self.blocks:
            assert receipt.status == "pending"
        else:
            if not self.open_snapshots and not self.open_iterators:
                assert receipt.status == "complete"
            self.receipts.append(receipt.id)
        self.look(probe)

    # --- transactions -------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.blocks) < 3)
    @rule(probe=PROBES)
    def begin(self, probe: Any) -> None:
        block = contextlib.ExitStack()
        block.enter_context(self.db.transaction())
        self.blocks.append(block)
        self.model.begin()
        self.look(probe)

    @precondition(lambda self: self.blocks)
    @rule(probe=PROBES)
    def commit(self, probe: Any) -> None:
        self.blocks.pop().close()
        self.model.commit()
        self.look(probe)

    @precondition(lambda self: self.blocks)
    @rule(probe=PROBES)
    def roll_back(self, probe: Any) -> None:
        with pytest.raises(ConflictError, match="on purpose"), self.blocks.pop():
            raise ConflictError("on purpose")
        self.model.roll_back()
        self.look(probe)

    @rule(given=on_table(some_rows), fails=st.booleans(), probe=PROBES)
    def transact(self, given: tuple[str, dict[str, Any]], fails: bool, probe: Any) -> None:  # noqa: FBT001
        name, row = given
        table = self.table(name)

        def work() -> int:
            table.put(row)
            if fails:
                raise ConflictError("on purpose")
            return int(table.count())

        if fails:
            with pytest.raises(ConflictError, match="on purpose"):
                self.db.transact(work)
        else:
            found = self.db.transact(work)
            self.model.tables[name].put_many([row])
            assert found == len(self.model.tables[name].rows)
        self.look(probe)

    # --- upkeep -------------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from([None, "notes", "events"]), probe=PROBES)
    def flush(self, name: str | None, probe: Any) -> None:
        if self.blocks:
            with pytest.raises(UnavailableError):
                self.db.flush(name)
            return
        self.db.flush(name)
        for one, stats in self.db.stats().tables.items():
            if name in (None, one) and not one.startswith("_"):
                assert stats.hot_rows == 0
        self.look(probe)

    @precondition(lambda self: not self.blocks)
    @rule(probe=PROBES)
    def optimize(self, probe: Any) -> None:
        self.db.optimize()
        for name, stats in self.db.stats().tables.items():
            assert name.startswith("_") or stats.hot_rows == 0
            assert stats.fragments <= 1
        self.look(probe)

    @precondition(lambda self: not self.blocks)
    @rule(given=st.tuples(st.sampled_from(["notes", "events"]), st.sampled_from(MORE)), probe=PROBES)
    def add_column(self, given: tuple[str, pa.Field], probe: Any) -> None:
        name, added = given
        model = self.model.tables[name]
        if added.name in [column.name for column in model.schema.columns]:
            with pytest.raises(InvalidInputError, match="already"):
                self.table(name).add_columns([added])
            return
        self.table(name).add_columns([added])
        model.add_columns([added])
        self.commits.clear()  # rows have another column, and nobody wrote them
        self.look(probe)

    @rule(name=st.sampled_from(["notes", "events"]), probe=PROBES)
    def drop_and_create(self, name: str, probe: Any) -> None:
        stale = self.table(name)
        assert self.db.drop_table(name)
        assert not self.db.drop_table(name)
        with pytest.raises(NotFoundError):
            self.db.table(name)
        self.db.table(SCHEMAS[name])
        with pytest.raises(NotFoundError):
            stale.count()
        self.model.drop(name)
        self.model.create(SCHEMAS[name])
        self.look(probe)

    @precondition(lambda self: not self.blocks)
    @rule(probe=PROBES, read_only=st.booleans())
    def reopen(self, probe: Any, read_only: bool) -> None:  # noqa: FBT001
        self.let_go()
        if read_only:
            with agentdb.open(self.directory / "db", read_only=True, config=self.config) as db:
                for name, model in self.model.tables.items():
                    same_set(db.table(name).scan(), model.scan(), "read-only")
        self.open()
        self.look(probe)

    def let_go(self) -> None:
        for one in self.open_snapshots:
            one.close()
        self.open_snapshots.clear()
        for iterator in self.open_iterators:
            iterator.close()  # type: ignore[attr-defined]
        self.open_iterators.clear()
        for handle in self.handles:
            handle.close()

    # --- long-lived readers -------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.open_snapshots) < 2)
    @rule(target=snapshots)
    def take_snapshot(self) -> Any:
        state = {name: table.copy() for name, table in self.model.committed.items()}
        one = Snapshot(self.db, state)
        self.open_snapshots.append(one)
        return one

    @rule(one=snapshots, probe=PROBES)
    def look_at_snapshot(self, one: Snapshot, probe: Any) -> None:
        if one not in self.open_snapshots:
            return
        name, given = probe

        def work() -> None:
            try:
                table = one.db.table(name)
            except NotFoundError as error:
                raise AssertionError("a snapshot lost a table") from error
            self.compare(table, one.expected[name], given)

        one.run(work)

    @rule(one=consumes(snapshots))
    def close_snapshot(self, one: Snapshot) -> None:
        if one in self.open_snapshots:
            self.open_snapshots.remove(one)
            one.close()

    @rule(target=iterators, given=on_table(lambda name: st.tuples(conditions(name), orders(name), st.integers(0, 3))))
    def start_scan(self, given: tuple[str, tuple[Any, Any, int]]) -> Any:
        if len(self.open_iterators) > 3:
            return multiple()
        name, (condition, order, taken) = given
        iterator = self.table(name).scan(condition, order_by=order)
        self.open_iterators.append(iterator)
        return iterator, list(itertools.islice(iterator, taken)), self.model.tables[name].scan(condition)

    @rule(one=consumes(iterators))
    def finish_scan(self, one: tuple[Iterator[Any], list[Any], list[Any]]) -> None:
        iterator, taken, expected = one
        if any(iterator is other for other in self.open_iterators):
            self.open_iterators = [other for other in self.open_iterators if other is not iterator]
            same_set([*taken, *iterator], expected, "an iterator must keep its state")

    # --- reads --------------------------------------------------------------------------------------------------------

    def look(self, probe: tuple[str, dict[str, Any]]) -> None:
        name, given = probe
        table, model = self.table(name), self.model.tables[name]
        self.compare(table, model, given)
        if self.blocks:
            return  # what is rolled back leaves its numbers to others
        for key in given["keys"]:
            number, row = table.last_commit(key), model.rows.get(key)
            if number is not None:
                same([self.commits.setdefault((name, key, number), row)], [row], "the same commit, another row")

    @rule(probe=PROBES)
    def read(self, probe: tuple[str, dict[str, Any]]) -> None:
        self.look(probe)

    @staticmethod
    def compare(table: Any, model: ModelTable, given: dict[str, Any]) -> None:
        keys, condition, order, limit = given["keys"], given["condition"], given["order"], given["limit"]
        same(table.get_many(keys), [model.rows.get(key) for key in keys], "get_many")
        for key in keys[:1]:
            same([table.get(key)], [model.rows.get(key)], "get")
            assert (table.last_commit(key) is None) is (key not in model.rows), "last_commit"
        assert table.count(condition) == len(model.matching(condition)), "count"
        same_set(table.scan(condition), model.scan(condition), "scan")
        if limit is not None:
            assert len(list(table.scan(condition, limit=limit))) == min(limit, len(model.matching(condition)))
        if order:
            same(
                table.scan(condition, order_by=order, limit=limit),
                model.scan(condition, order_by=order, limit=limit),
                "order",
            )
            names = [name for name, _ in order]
            names = list(dict.fromkeys(names))
            found = table.scan_arrow(condition, order_by=order, limit=limit, columns=names).read_all().to_pylist()
            same(found, model.scan(condition, order_by=order, limit=limit, columns=names), "scan_arrow")
        for column in ("vec", "half"):
            if column in [one.name for one in model.schema.columns]:
                hits = table.search(column, given[column], given["k"], metric=given["metric"], filter=condition)
                expected = model.search(column, given[column], given["k"], metric=given["metric"], filter=condition)
                same(
                    [(hit.id, hit.distance) for hit in hits], [(key, one) for one, key in expected], f"search {column}"
                )

    @precondition(lambda self: not self.blocks)
    @rule()
    def verify(self) -> None:
        report = self.db.verify()
        assert report.ok, report.problems

    @precondition(lambda self: self.blocks)
    @rule()
    def others_see_what_is_committed(self) -> None:
        found: dict[str, Any] = {}

        def work() -> None:
            found.update((name, list(self.db.table(name).scan())) for name in self.db.tables())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert sorted(found) == sorted(self.model.committed)
        for name, model in self.model.committed.items():
            same_set(found[name], model.scan(), "another thread")

    @invariant()
    def everything_is_there(self) -> None:
        if self.model.tables:
            assert self.db.tables() == sorted(self.model.tables)
        for name, model in self.model.tables.items():
            same_set(self.table(name).scan(), model.scan(), f"all of {name}")

    def teardown(self) -> None:
        try:
            while self.blocks:
                self.blocks.pop().close()
            self.let_go()
            with agentdb.open(self.directory / "db", config=self.config) as db:
                db.optimize()
                for receipt in self.receipts:
                    found = db.erasure(receipt)
                    assert found is not None
                    assert found.status == "complete"
                report = db.verify()
                assert report.ok, report.problems
        finally:
            for handle in self.handles:
                handle.close()
            shutil.rmtree(self.directory, ignore_errors=True)


TestEngine = EngineMachine.TestCase
_long = settings.default is not None and settings.default.max_examples > 1_000
TestEngine.settings = settings(
    max_examples=400 if _long else 40,
    stateful_step_count=50 if _long else 30,
    suppress_health_check=list(HealthCheck),
)
