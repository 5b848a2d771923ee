"""Changes of a whole collection that take their time: columns for metadata keys, vectors of another embedder.

Both work the same way. The definition says that the change has begun, so that every writer of every process takes part; the
rows that were there before follow in small transactions, between which everybody reads and writes; the definition is switched
when no row is left. Whoever is killed in between loses one small transaction: the rows themselves say what is left to do.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from agentdb.embedding import Embedder, EmbedderIdentity, TokenEmbedder
from agentdb.errors import InvalidInputError, NotFoundError, UnavailableError
from agentdb.filters import And, Compare, Exists, Filter, IsNull, Not, Or, Path, decode_json
from agentdb.storage.cold import ColumnFill
from agentdb.storage.table import Table
from agentdb.types import OnProgress, Progress, Row
from agentdb.vectors.analysis import ANALYSIS, encode_terms
from agentdb.vectors.definition import (
    Definition,
    PromotedColumn,
    PromotedType,
    Reembedding,
    StoredVector,
    VectorSpec,
)
from agentdb.vectors.rows import embed_columns
from agentdb.vectors.store import DefinitionStore

__all__ = ["Asked", "Upkeep", "add_vector", "promote", "reembed"]

log = logging.getLogger("agentdb")

_PAGE = 8_192
"""Rows that are looked for at once."""
_CHUNK = 256
"""Rows that are rewritten in one transaction, others waiting."""
_EMBED = 256
_LAST_FEW = 32
"""So many rows that others wrote meanwhile are embedded in the transaction that switches: it would never end otherwise."""
_OFTEN = 64
_WORTH_ROWS = 10_000
_SAMPLE = 1_000


def _is_null(column: str) -> Filter:
    return IsNull((column,))


def _pages(table: Table, condition: Filter, columns: Sequence[str] = ()) -> Iterator[list[Row]]:
    """Yield the rows that match, by id, each page from a snapshot of its own."""
    last: str | None = None
    while True:
        wanted = condition if last is None else And(Compare(("id",), "gt", last), condition)
        page = list(table.scan(wanted, order_by="id", limit=_PAGE, columns=["id", *columns]))
        if not page:
            return
        yield page
        last = page[-1]["id"]


def _rewrite_all(
    store: DefinitionStore, table: Table, condition: Filter, change: Callable[[Definition, Row], bool]
) -> Generator[int, None, None]:
    """Store every row that matches again as ``change`` makes it, if it does; yields how many, after each transaction.

    ``change`` gets the definition and the row as they are by then.
    """

    def rewrite(ids: Sequence[str]) -> None:
        definition = store.read()
        table.put_many([row for row in table.get_many(ids) if row is not None and change(definition, row)])

    for page in _pages(table, condition):
        for start in range(0, len(page), _CHUNK):
            ids = [row["id"] for row in page[start : start + _CHUNK]]
            store.engine.transact(lambda: rewrite(ids))  # noqa: B023 - it has run when this returns
            yield len(ids)


def _add_missing(table: Table, field: pa.Field, promoted: PromotedColumn | None = None) -> None:
    """Add a column if the table does not have it; another process may be adding it, too."""
    if field.name in table.schema.arrow.names:
        return
    try:
        if promoted is None:
            table._add_columns([field])
        else:
            table._add_columns(
                [field], [field.name], ColumnFill(("metadata",), lambda rows: _column_of(promoted, rows))
            )
    except InvalidInputError:
        if field.name not in table.schema.arrow.names:
            raise


def _column_of(promoted: PromotedColumn, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return a promoted column of rows of the cold tier."""
    texts = rows.column("metadata").to_pylist()
    values = [None if one is None else promoted.value_of(decode_json(one)) for one in texts]
    return pa.record_batch([pa.array(values, promoted.field.type)], [promoted.column])


# --- promoted columns ---------------------------------------------------------------------------------------------------


def promote(
    store: DefinitionStore, table: Table, keys: Path, kind: PromotedType, on_progress: OnProgress | None = None
) -> None:
    """Give a metadata key a column, and return when every row has it; see `Collection.promote`."""
    store.engine._outside("promote")
    _begin_promotion(store, keys, kind)
    column = next(one for one in store.read().promoted if one.keys == keys)
    total = table.count(Exists(("metadata", *keys)))
    done = 0
    stage = f"promote {'.'.join(keys)}"
    for rows in fill(store, table, column):
        done += rows
        if on_progress is not None:
            on_progress(Progress(stage, min(done, total), total))
    if on_progress is not None:
        on_progress(Progress(stage, total, total))


def _begin_promotion(store: DefinitionStore, keys: Path, kind: PromotedType) -> None:
    def begin(definition: Definition) -> Definition:
        found = next((one for one in definition.promoted if one.keys == keys), None)
        if found is None:
            return definition.with_promoted(keys, kind, is_ready=False)
        if found.type != kind:
            raise InvalidInputError(
                f"collection {definition.name}: {'.'.join(keys)} is promoted as {found.type}, not as {kind}"
            )
        return definition

    store.change(begin)


def fill(store: DefinitionStore, table: Table, column: PromotedColumn) -> Generator[int, None, None]:
    """Bring a promoted column into every row, and let filters use it from then on; yields rows looked at.

    Its definition was stored before the column is added, so whoever writes with the column present fills it. The cold tier
    gets it as a whole; what is left are rows that were hot then.
    """
    _add_missing(table, column.field, column)

    def change(_: Definition, row: Row) -> bool:
        value = column.value_of(row["metadata"])
        if value is None or row[column.column] is not None:
            return False
        row[column.column] = value
        return True

    left = And(_is_null(column.column), Exists(("metadata", *column.keys)))
    yield from _rewrite_all(store, table, left, change)

    def finish(definition: Definition) -> Definition:
        if not any(one.keys == column.keys and not one.is_ready for one in definition.promoted):
            return definition
        ready = tuple(replace(one, is_ready=True) if one.keys == column.keys else one for one in definition.promoted)
        return definition.next(promoted=ready)

    store.change(finish)


# --- another vector -----------------------------------------------------------------------------------------------------


def add_vector(store: DefinitionStore, table: Table, name: str, spec: VectorSpec) -> VectorSpec:
    """Return what the collection's vector of that name is: the one it has, or the one given, null in every row it has.

    The column is there before the definition names it. Whoever is killed in between leaves an empty column, which the next
    call takes, or one of another type, which it passes by.

    Raises:
        UnavailableError: inside a transaction or snapshot.
    """
    store.engine._outside("add_vector")

    def room(definition: Definition) -> str:
        schema = table.schema
        others = {one for one in schema.arrow.names if schema.column(one).type != spec.arrow_type}
        return _column_for(definition, table, name, spec.arrow_type, others)

    while name not in (definition := store.read()).vectors:
        column = room(definition)
        _add_missing(table, pa.field(column, spec.arrow_type))

        def add(now: Definition, column: str = column) -> Definition:
            if name in now.vectors or room(now) != column:
                return now  # somebody was quicker
            rest = tuple(one for one in now.retired if one != column)
            return now.next(vectors={**now.vectors, name: StoredVector(spec, column)}, retired=rest)

        store.change(add)
    return definition.vectors[name].spec


# --- another embedder ---------------------------------------------------------------------------------------------------


def reembed(store: DefinitionStore, table: Table, embedder: Embedder, on_progress: OnProgress | None = None) -> None:
    """Make all vectors that come from texts anew; see `Collection.reembed`."""
    store.engine._outside("reembed")
    identity = EmbedderIdentity.of(embedder)
    definition = store.read()
    if definition.reembedding is None and definition.embedder == identity:
        return
    for _ in shed(store, table):
        pass  # so that columns that once held vectors can be used again
    growing = _begin_exchange(store, table, embedder, identity)
    for one in growing.vectors.values():
        _add_missing(table, pa.field(one.column, one.spec.arrow_type))
    total = table.count(Not(_is_null("text")))
    while True:
        _embed_pending(store, table, growing, embedder, total, on_progress)
        if _switch(store, table, growing, embedder):
            break
    for _ in shed(store, table):
        pass


def _without_vectors(growing: Reembedding) -> Filter:
    missing = [_is_null(one.column) for one in growing.vectors.values()]
    return And(Not(_is_null("text")), Or(*missing))


def _begin_exchange(
    store: DefinitionStore, table: Table, embedder: Embedder, identity: EmbedderIdentity
) -> Reembedding:
    """Return the exchange that is under way, begun or taken up."""

    def begin(definition: Definition) -> Definition:
        under_way = definition.reembedding
        if under_way is not None and under_way.embedder == identity:
            return definition
        _require_texts(table, definition)
        # What an abandoned exchange has made goes the way of the old vectors.
        abandoned = () if under_way is None else tuple(one.column for one in under_way.vectors.values())
        rest = replace(definition, reembedding=None, retired=(*definition.retired, *abandoned))
        if identity == definition.embedder:
            return rest.next()
        growing = Reembedding(identity, _new_vectors(rest, table, embedder))
        retired = tuple(one for one in rest.retired if one not in _columns(growing))
        return rest.next(reembedding=growing, retired=retired)

    found = store.change(begin).reembedding
    return found if found is not None else Reembedding(identity, {})


def _require_texts(table: Table, definition: Definition) -> None:
    for name, one in _exchanged(definition).items():
        orphans = table.count(And(_is_null("text"), Not(_is_null(one.column))))
        if orphans:
            raise InvalidInputError(
                f"collection {definition.name}: {orphans:,} rows have a vector {name!r} and no text to make it anew from"
            )


def _exchanged(definition: Definition) -> Mapping[str, StoredVector]:
    """Return the vectors that an embedder makes, or would make of a collection whose vectors were given so far."""
    if definition.embedder is not None:
        return definition.embedded
    name = next((name for name, one in definition.vectors.items() if not one.spec.multi), None)
    if name is None:
        raise InvalidInputError(f"collection {definition.name} has no vector that an embedder could make")
    return {name: definition.vectors[name]}


def _new_vectors(definition: Definition, table: Table, embedder: Embedder) -> dict[str, StoredVector]:
    made: dict[str, StoredVector] = {}
    for name, one in _exchanged(definition).items():
        if not one.spec.multi:
            dimension = embedder.dimension
        elif isinstance(embedder, TokenEmbedder):
            dimension = int(embedder.embed_tokens([""])[0][1].shape[1])
        else:
            raise InvalidInputError(f"embedder {embedder.name!r} makes no token vectors for vector {name!r}")
        spec = replace(one.spec, dimension=dimension, embedded=True)
        taken = {other.column for other in made.values()}
        made[name] = StoredVector(spec, _column_for(definition, table, name, spec.arrow_type, taken))
    return made


def _column_for(definition: Definition, table: Table, name: str, wanted: pa.DataType, taken: set[str]) -> str:
    """Return a column of the type wanted that once held vectors and is empty again, or a new name."""
    schema = table.schema
    for column in definition.retired:
        fits = column in schema.arrow.names and schema.column(column).type == wanted
        if fits and column not in taken and not table.count(Not(_is_null(column))):
            return column
    return definition.free_column(name, taken)


def _embed_pending(
    store: DefinitionStore,
    table: Table,
    growing: Reembedding,
    embedder: Embedder,
    total: int,
    on_progress: OnProgress | None,
) -> None:
    pending = _without_vectors(growing)
    for page in _pages(table, pending, ["text"]):
        for start in range(0, len(page), _EMBED):
            if on_progress is not None:
                on_progress(Progress(f"reembed {store.name}", total - min(table.count(pending), total), total))
            _store_embedded(store, table, growing, embedder, page[start : start + _EMBED])
    if on_progress is not None:
        on_progress(Progress(f"reembed {store.name}", total, total))


def _store_embedded(
    store: DefinitionStore, table: Table, growing: Reembedding, embedder: Embedder, rows: Sequence[Row]
) -> None:
    """Embed the texts of rows, then give the vectors to those whose text is still the same."""
    specs = {name: one.spec for name, one in growing.vectors.items()}
    made = embed_columns(specs, embedder, [row["text"] for row in rows])
    schema = table.schema
    found: dict[str, tuple[str, dict[str, Any]]] = {row["id"]: (row["text"], {}) for row in rows}
    for name, array in made.items():
        column = schema.column(growing.vectors[name].column)
        for row, value in zip(rows, column.from_arrow(array), strict=True):
            found[row["id"]][1][column.name] = column.to_python(value)

    def change(row: Row) -> bool:
        text, vectors = found[row["id"]]
        if row["text"] != text:
            return False
        row.update(vectors)
        return True

    def work() -> None:
        if store.read().reembedding != growing:
            raise UnavailableError(f"collection {store.name} is given vectors of another embedder by somebody else")
        table.put_many([row for row in table.get_many(list(found)) if row is not None and change(row)])

    store.engine.transact(work)


def _switch(store: DefinitionStore, table: Table, growing: Reembedding, embedder: Embedder) -> bool:
    """Let searches and writers use the new vectors if no row is left, or so few that they can wait for them."""
    is_done = False

    def switch(definition: Definition) -> Definition:
        nonlocal is_done
        is_done = False
        if definition.reembedding != growing:
            if definition.embedder == growing.embedder:  # somebody else was quicker
                is_done = True
                return definition
            raise UnavailableError(f"collection {store.name} is given vectors of another embedder by somebody else")
        left = list(table.scan(_without_vectors(growing), limit=_LAST_FEW + 1, columns=["id", "text"]))
        if len(left) > _LAST_FEW:
            return definition
        _require_texts(table, definition)
        if left:
            _store_embedded(store, table, growing, embedder, left)
        is_done = True
        old = tuple(definition.vectors[name].column for name in growing.vectors)
        return definition.next(
            vectors={**definition.vectors, **growing.vectors},
            embedder=growing.embedder,
            reembedding=None,
            retired=(*definition.retired, *old),
            indexes={name: one for name, one in definition.indexes.items() if name not in growing.vectors},
        )

    store.change(switch)
    return is_done


def _columns(growing: Reembedding) -> set[str]:
    return {one.column for one in growing.vectors.values()}


class _InUseError(Exception):
    """A column that was to be emptied is used again."""


def shed(store: DefinitionStore, table: Table) -> Generator[int, None, None]:
    """Empty the columns of vectors that nobody reads any more; yields rows."""
    for column in store.read().retired:

        def require_retired(column: str = column) -> None:
            if column not in store.read().retired:
                raise _InUseError  # by another exchange of embedders

        def change(definition: Definition, row: Row, column: str = column) -> bool:
            held = column in definition.retired and row[column] is not None
            row[column] = None
            return held

        held = Not(_is_null(column))
        if column in table.schema.arrow.names and table.count(held):
            with contextlib.suppress(_InUseError):
                table._clear_column(column, require_retired)
            yield from _rewrite_all(store, table, held, change)


# --- another analysis of texts ------------------------------------------------------------------------------------------


def analyse_anew(store: DefinitionStore, table: Table) -> Generator[int, None, None]:
    """Make the terms of all texts by this release's analysis, if they were made by another; yields rows."""

    def change(_: Definition, row: Row) -> bool:
        terms = encode_terms([row["text"]])[0].as_py()
        is_other = terms != row["terms"]
        row["terms"] = terms
        return bool(is_other)

    yield from _rewrite_all(store, table, Not(_is_null("text")), change)
    store.change(lambda definition: definition.next(analysis=ANALYSIS))


# --- in the background --------------------------------------------------------------------------------------------------


Asked = tuple[str, Path, PromotedType]
"""A collection, a metadata key, and the type of what it is compared with."""


class Upkeep:
    """Ends what was begun and interrupted, promotes metadata keys that are asked for often, and follows our text analysis.

    A key is promoted when this process has asked for ranges of it, or for parts of its text, `_OFTEN` times with operands of
    one type, the collection has at least `_WORTH_ROWS` rows, and all values of a sample of `_SAMPLE` rows that have the key
    are of that type. Equality and membership are looked up without a column.
    """

    def __init__(self, asked: Counter[Asked], opened: Callable[[], Iterable[tuple[DefinitionStore, Table]]]) -> None:
        self._asked = asked
        self._opened = opened
        self._work: dict[tuple[int, str], Generator[int, None, None]] = {}
        self._settled: dict[int, int] = {}
        self._mutex = threading.Lock()

    def note(self, name: str, keys: Path, kind: PromotedType) -> None:
        """Count a test that a column would speed up; cheap, and no matter if two threads make it one."""
        self._asked[name, keys, kind] += 1

    def run(self, deadline: float) -> bool:
        """Work until the deadline; whether there is more to do."""
        with self._mutex:
            for store, table in self._opened():
                if time.monotonic() >= deadline:
                    return True
                try:
                    self._consider(store, table)
                    if self._advance(store, table, deadline):
                        return True
                except NotFoundError:
                    continue  # dropped meanwhile
        return False

    def _consider(self, store: DefinitionStore, table: Table) -> None:
        for name, keys, kind in [one for one, count in list(self._asked.items()) if count >= _OFTEN]:
            if name != store.name:
                continue
            del self._asked[name, keys, kind]
            if pays(store.read(), table, keys, kind):
                log.info("collection %s: a metadata key that is often filtered by gets a column", name)
                _begin_promotion(store, keys, kind)

    def _advance(self, store: DefinitionStore, table: Table, deadline: float) -> bool:
        """Go on with what is left to do for a collection; whether some is left at the deadline."""
        definition = store.read()
        if self._settled.get(table._id) == definition.revision:
            return False
        work = {one.column: fill(store, table, one) for one in definition.promoted if not one.is_ready}
        if definition.retired:
            work["retired"] = shed(store, table)
        if definition.analysis != ANALYSIS:
            work["terms"] = analyse_anew(store, table)
        for what, begun in work.items():
            steps = self._work.pop((table._id, what), begun)  # not there if it fails: it begins anew then
            for _ in steps:
                if time.monotonic() >= deadline:
                    self._work[table._id, what] = steps
                    return True
        self._settled[table._id] = store.read().revision
        return False


def pays(definition: Definition, table: Table, keys: Path, kind: PromotedType) -> bool:
    """Whether a metadata key should get a column; see `Upkeep`."""
    if any(one.keys == keys for one in definition.promoted) or kind == "bool" or table.count() < _WORTH_ROWS:
        return False
    column = PromotedColumn(keys, kind, "", is_ready=False)
    sample = table.scan(Exists(("metadata", *keys)), limit=_SAMPLE, columns=["metadata"])
    values = [column.value_of(row["metadata"]) for row in sample]
    return bool(values) and None not in values
