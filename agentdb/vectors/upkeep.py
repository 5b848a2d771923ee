"""The life of approximate indices: built when they pay, measured against exact search, trained anew when they find too little.

A build takes seconds to minutes and a maintenance job must not, so the work runs in a thread of its own, one piece at a time.
The definition of a collection says which index is in use and how it is probed, so every process searches by what one of them
has found out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from agentdb.errors import AgentDBError, NotFoundError
from agentdb.storage.indices import IndexDefinition, IndexInfo, most_extended
from agentdb.storage.locks import LockedError
from agentdb.storage.table import Table
from agentdb.types import Metric, OnProgress
from agentdb.vectors.definition import Definition, IndexPlan, StoredVector
from agentdb.vectors.indexes import IndexSpec, default_index, index_from_json
from agentdb.vectors.resident import TEXT_BYTES
from agentdb.vectors.search import SCAN_BYTES
from agentdb.vectors.store import DefinitionStore

__all__ = ["GOOD_RECALL", "IndexStatus", "IndexUpkeep", "index_in_use", "tend"]

log = logging.getLogger("agentdb")

GOOD_RECALL = 0.98
"""What the upkeep aims at when it chooses how many partitions a search looks into."""
POOR_RECALL = 0.95
"""Below this, an index is probed more deeply, or trained anew."""
_MIN_ROWS = 1_024
"""Fewer rows do not train an index; they are compared one by one."""
_GROWTH = 1.25
"""An index is measured again when the rows have become so many times as many."""
_STALE = 2.0
"""An index whose partitions were trained on fewer than one in so many of the rows is trained anew before it is probed more."""
_FAST = 1.05
_SHALLOW = 8
_DEPTHS = ((_SHALLOW, 3), (16, 3), (16, 8), (32, 8), (64, 16), (128, 32), (256, 64))
"""How many partitions a trial looks into, and how many times K candidates it ranks by their vectors, from fast to thorough."""
_SAMPLE = 64
_PASS_ROWS = 4_096
_TINY = np.finfo(np.float32).tiny
_K = 10
_PATIENCE_S = 60.0
"""After a failure, or where another process is at it, an index is left alone for so long."""
_TEXT = "the texts"


@dataclass(frozen=True, slots=True)
class _State:
    """What the upkeep remembers of one vector's index; plain values in the definition.

    Attributes:
        index: the index as it is built and probed.
        trained_rows: rows it was trained on.
        measured_rows: rows there were when its recall was measured.
        recall: the share of the 10 nearest that it found, of a sample of stored vectors.
    """

    index: IndexSpec
    trained_rows: int
    measured_rows: int
    recall: float

    @classmethod
    def of(cls, plan: IndexPlan) -> _State | None:
        found = plan.state
        if not found:
            return None
        return cls(index_from_json(found["index"]), found["trained_rows"], found["measured_rows"], found["recall"])

    def to_plain(self) -> Mapping[str, Any]:
        return {
            "index": self.index.to_json(),
            "trained_rows": self.trained_rows,
            "measured_rows": self.measured_rows,
            "recall": self.recall,
        }


def index_in_use(definition: Definition, vector_name: str) -> IndexSpec | None:
    """Return the index of a vector as it is to be probed; None: there is none."""
    state = _State.of(definition.index_plan(vector_name))
    return None if state is None else state.index


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """How a vector's approximate index stands.

    Attributes:
        choice: what was asked for: ``"auto"``, ``"none"``, or an index.
        index: the one that searches use, as it is probed; None: there is none, and searches are exact.
        recall: the share of the 10 nearest that it found when it was last measured, of a sample of stored vectors.
        rows_indexed: rows that it finds.
        rows_unindexed: rows that are compared one by one beside it, until the upkeep adds them; without hot rows.
    """

    choice: IndexSpec | Literal["auto", "none"]
    index: IndexSpec | None
    recall: float | None
    rows_indexed: int
    rows_unindexed: int

    @classmethod
    def of(cls, definition: Definition, vector_name: str, info: IndexInfo | None) -> IndexStatus:
        """Return it from what is recorded and what is there."""
        plan = definition.index_plan(vector_name)
        state = _State.of(plan)
        if state is None or info is None or not info.segments:
            return cls(plan.choice, None, None, 0, 0)
        return cls(plan.choice, state.index, state.recall, info.rows_indexed, info.rows_unindexed)


Step = Literal["drop", "build", "measure"]


def due(definition: Definition, vector_name: str, info: IndexInfo | None, rows: int) -> Step | None:
    """Return what a vector's index needs, if anything.

    Args:
        definition: of the collection.
        vector_name: one that is not ``multi``.
        info: the index as it stands.
        rows: in the cold tier, indexed or not.
    """
    plan = definition.index_plan(vector_name)
    state = _State.of(plan)
    wanted = _wanted(plan, definition.vectors[vector_name], rows)
    if wanted is None:
        return "drop" if info is not None or state is not None else None
    if rows < _MIN_ROWS:
        return None
    if info is None or not info.segments or state is None or not _built_alike(state.index, wanted):
        return "build"
    if info.rows_unindexed > most_extended(wanted.kind):
        return "build"
    is_probed_otherwise = plan.choice != "auto" and state.index != wanted
    return "measure" if is_probed_otherwise or rows >= state.measured_rows * _GROWTH else None


def _built_alike(one: IndexSpec, other: IndexSpec) -> bool:
    """Whether two indices differ in how they are searched, at most."""
    probes = {name: getattr(other, name) for name in ("nprobes", "refine_factor", "ef") if hasattr(other, name)}
    return type(one) is type(other) and replace(one, **probes) == other


def _wanted(plan: IndexPlan, vector: StoredVector, rows: int) -> IndexSpec | None:
    match plan.choice:
        case "none":
            return None
        case "auto":
            pays = rows * vector.spec.dimension * 4 > SCAN_BYTES or bool(plan.state)
            return default_index(vector.spec.dimension) if pays else None
        case chosen:
            return chosen


def tend(
    store: DefinitionStore,
    table: Table,
    vector_name: str,
    *,
    stop: threading.Event | None = None,
    on_progress: OnProgress | None = None,
) -> bool:
    """Do what a vector's index needs now; whether anything was done.

    Neither readers nor writers wait. It reads the vectors once to build, and some of them to measure.
    """
    definition = store.read()
    column = definition.vector(vector_name).column
    info = table.index_info(column)
    rows = _cold_rows(table, info)
    step = due(definition, vector_name, info, rows)
    if step is None:
        return False
    if step == "drop":
        _record(store, vector_name, None)
        table.drop_index(column)
        return True
    vector = definition.vectors[vector_name]
    state = _State.of(definition.index_plan(vector_name))
    wanted = _wanted(definition.index_plan(vector_name), vector, rows)
    if step == "measure" and state is not None and wanted is not None:
        measured = _measured(
            table, vector, _depths(definition, vector_name, wanted, state.trained_rows), state.trained_rows
        )
        if measured.recall >= POOR_RECALL or rows < state.trained_rows * _STALE:
            _record(store, vector_name, measured)
            return True
        log.info(
            "collection %s: the index of %s finds %.2f, and is trained anew", store.name, vector_name, measured.recall
        )
    return _build(store, table, vector_name, rows, stop, on_progress)


def _build(
    store: DefinitionStore,
    table: Table,
    vector_name: str,
    rows: int,
    stop: threading.Event | None,
    on_progress: OnProgress | None,
) -> bool:
    definition = store.read()
    vector = definition.vectors[vector_name]
    spec = _wanted(definition.index_plan(vector_name), vector, rows)
    if spec is None:
        return False
    parameters = spec.build_parameters(rows, vector.spec.dimension)
    built = table.build_index(
        vector.column,
        IndexDefinition(spec.kind, _metric(vector), parameters),
        stop=stop,
        on_progress=on_progress,
    )
    if built:
        _record(store, vector_name, _measured(table, vector, _depths(definition, vector_name, spec, rows), rows))
    return built


def _record(store: DefinitionStore, vector_name: str, state: _State | None) -> None:
    """Let searches use an index, or none, from now on."""
    plain: Mapping[str, Any] = {} if state is None else state.to_plain()

    def step(definition: Definition) -> Definition:
        plan = replace(definition.index_plan(vector_name), state=plain)
        return definition.next(indexes={**definition.indexes, vector_name: plan})

    store.change(step)


def _measured(table: Table, vector: StoredVector, depths: Sequence[IndexSpec], trained_rows: int) -> _State:
    """Return how much an index finds, probed as deeply as it must be to find enough.

    A search for a stored vector asks for one neighbour more, and that the vector finds itself does not count.
    """
    queries = table.sample_vectors(vector.column, _SAMPLE)
    if vector.spec.metric == "cosine":
        queries = queries[queries.any(axis=1)]
    truth = _truth(table, vector, queries)
    recall, spec = 0.0, depths[0]
    for spec in depths:
        found = [_found(table, vector, query, spec) for query in queries]
        shares = [len(one & gold) / len(gold) for one, gold in zip(found, truth, strict=True) if gold]
        recall = float(np.mean(shares)) if shares else 1.0
        if recall >= GOOD_RECALL:
            break
    return _State(spec, trained_rows, _cold_rows(table, table.index_info(vector.column)), recall)


def _depths(definition: Definition, vector_name: str, spec: IndexSpec, rows: int) -> list[IndexSpec]:
    """Return an index probed ever more deeply, up to half of its partitions; one that was chosen, as it was chosen.

    Both what is looked at and what is ranked by the vectors themselves grow: where vectors lie evenly, codes are too coarse to
    tell neighbours apart, however many partitions are searched.
    """
    if definition.index_plan(vector_name).choice != "auto":
        return [spec]
    partitions = spec.build_parameters(rows, definition.vectors[vector_name].spec.dimension)["num_partitions"]
    most = max(partitions // 2, _SHALLOW)
    return [
        replace(spec, nprobes=min(nprobes, most), refine_factor=refine)
        for nprobes, refine in _DEPTHS
        if nprobes // 2 < most
    ]


def _truth(table: Table, vector: StoredVector, queries: npt.NDArray[np.float32]) -> list[set[str]]:
    """Return the keys of the rows that are nearest to each query, the query's own left out, in one pass over all of them."""
    best = np.full((len(queries), _K + 1), np.inf, np.float32)
    keys = np.full(best.shape, "", object)
    for names, matrix in table.cold_vectors(vector.column):
        for begin in range(0, len(names), _PASS_ROWS):
            part = _distances(queries, matrix[begin : begin + _PASS_ROWS], vector)
            both = np.concatenate([best, part], axis=1)
            nearest = np.argpartition(both, _K, axis=1)[:, : _K + 1]
            named = np.broadcast_to(np.array(names[begin : begin + _PASS_ROWS], object), part.shape)
            best = np.take_along_axis(both, nearest, axis=1)
            keys = np.take_along_axis(np.concatenate([keys, named], axis=1), nearest, axis=1)
    order = np.argsort(best, axis=1)[:, 1:]
    rows = np.take_along_axis(keys, order, axis=1)
    return [{key for key in row if key} for row in rows]


def _distances(
    queries: npt.NDArray[np.float32], rows: npt.NDArray[np.float32], vector: StoredVector
) -> npt.NDArray[np.float32]:
    """Return `[Q, n]` what orders rows as their distances do, to float32."""
    products: npt.NDArray[np.float32] = queries @ rows.T
    squares: npt.NDArray[np.float32] = np.einsum("nd,nd->n", rows, rows)
    if vector.spec.metric == "dot":
        np.negative(products, out=products)
    elif vector.spec.metric == "cosine":
        np.divide(products, -np.sqrt(np.maximum(squares, _TINY)), out=products)
    else:
        np.subtract(squares, 2 * products, out=products)
    return products


def _found(table: Table, vector: StoredVector, query: npt.NDArray[np.float32], spec: IndexSpec) -> set[str]:
    found = table.nearest_cold(vector.column, query, _K + 1, metric=_metric(vector), probe=spec.probe_parameters())
    return set(found.column("_key").to_pylist()[1:])


def _metric(vector: StoredVector) -> Metric:
    return "l2" if vector.spec.metric == "euclidean" else vector.spec.metric


def _cold_rows(table: Table, info: IndexInfo | None) -> int:
    return table.cold_rows() if info is None else info.rows_indexed + info.rows_unindexed


class IndexUpkeep:
    """Tends the indices of all collections of a database: of every vector, and of texts too many for the memory.

    Args:
        opened: yields the collections.
        text_bytes: what the terms of a collection may take in memory before its texts get an index.
    """

    def __init__(self, opened: Callable[[], Iterable[tuple[DefinitionStore, Table]]], text_bytes: int) -> None:
        self._opened = opened
        self._text_rows = text_bytes // TEXT_BYTES
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None
        self._left_alone: dict[tuple[str, str], float] = {}
        self._rows: dict[tuple[str, str], int] = {}
        """Rows there were when they were last looked at."""

    def run(self, deadline: float) -> bool:
        """Begin what is due, and wait for it until the deadline; whether there may be more to do. A maintenance job."""
        with self._mutex:
            if self._worker is None or not self._worker.is_alive():
                tasks = list(self._due())
                ready = [task for task in tasks if not task.is_growing]
                if not ready:
                    return bool(tasks)
                tasks = ready
                self._stop = threading.Event()
                self._worker = threading.Thread(
                    target=self._work, args=(tasks, self._stop), name="agentdb-indices", daemon=True
                )
                self._worker.start()
            worker = self._worker
        worker.join(max(deadline - time.monotonic(), 0.0))
        return True

    def stop(self, timeout_s: float) -> None:
        """End what is being built, and wait so long for that."""
        with self._mutex:
            self._stop.set()
            worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join(timeout_s)

    def _due(self) -> Iterator[_Task]:
        now = time.monotonic()
        for store, table in self._opened():
            try:
                definition = store.read()
                for name, vector in definition.vectors.items():
                    if vector.spec.multi or now < self._left_alone.get((store.name, name), 0.0):
                        continue
                    info = table.index_info(vector.column)
                    rows = _cold_rows(table, info)
                    if due(definition, name, info, rows) is not None:
                        yield _Task(store, table, name, is_growing=self._is_growing(store.name, name, rows))
                if now >= self._left_alone.get((store.name, _TEXT), 0.0) and self._wants_text_index(table):
                    yield _Task(store, table, _TEXT)
            except NotFoundError:
                continue  # dropped meanwhile

    def _is_growing(self, name: str, what: str, rows: int) -> bool:
        """Whether rows come so fast that an index built now would soon be built again."""
        before, self._rows[name, what] = self._rows.get((name, what), 0), rows
        return rows > before * _FAST

    def _wants_text_index(self, table: Table) -> bool:
        info = table.index_info("text")
        return table.cold_rows() > self._text_rows if info is None else not info.segments

    def _work(self, tasks: Sequence[_Task], stop: threading.Event) -> None:
        for task in tasks:
            try:
                if not stop.is_set() and not task.run(stop):
                    self._leave_alone(task)  # somebody else is at it
            except LockedError:
                self._leave_alone(task)
            except AgentDBError as error:
                if not stop.is_set():
                    self._leave_alone(task)
                    log.warning(
                        "the index of %s of collection %s was not tended: %s", task.what, task.store.name, error
                    )

    def _leave_alone(self, task: _Task) -> None:
        self._left_alone[task.store.name, task.what] = time.monotonic() + _PATIENCE_S


@dataclass(frozen=True, slots=True)
class _Task:
    """One index that needs something."""

    store: DefinitionStore
    table: Table
    what: str
    """The name of a vector, or `_TEXT`, which cannot be one."""
    is_growing: bool = False

    def run(self, stop: threading.Event) -> bool:
        if self.what == _TEXT:
            return self.table.build_text_index("text", stop=stop)
        return tend(self.store, self.table, self.what, stop=stop)
