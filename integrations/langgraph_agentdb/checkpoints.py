"""``Checkpoints``: threads of checkpoints in the tables of a database. Everything here is bytes: the saver serialises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import msgpack
import zstandard

from agentdb import (
    And,
    ClosedError,
    ConflictError,
    Database,
    DeltaTable,
    Filter,
    FrameInfo,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    Row,
    UnavailableError,
    field,
)
from langgraph_agentdb.batch import ATTEMPTS
from langgraph_agentdb.tables import COUNTERS, HEADS, ID, PENDING, ROWS, SCOPE, VALUES, WRITES

__all__ = ["Checkpoints", "NewCheckpoint", "Place", "Prepare", "StoredCheckpoint", "Work", "Write"]

_BODY = "body"
_CHANNEL = "="
"""Before the name of a channel: no channel can be called like the series of bodies."""
_PAGES = (4, 8, 16, 32)
_SWEEP_ROWS = 500
_COPY_ROWS = 256
_STEPS_BY_KEY = 16
"""So many ancestors are read one by one; who goes back further reads the whole thread's at once."""
_INLINE_BYTES = 128
"""Contents up to here lie beside the checkpoint: most channels are flags of LangGraph's own that come and go."""
_INLINE_BODY_BYTES = 4096
"""So do bodies up to here, compressed; what graphs of many channels need more is worth a series of deltas."""
_SHARED_BYTES = 16 << 10
_RAW, _ZSTD = b"\x00", b"\x01"
_ZSTD_LEVEL = 1
_MIN_ZSTD_BYTES = 1024
_MAX_BYTES = 1 << 31

Version = str | int | float | None


class _Ref(NamedTuple):
    """Where a content is: under a number of its series, or here."""

    number: int
    version: Version
    inline: bytes | None = None


class Place(NamedTuple):
    """A namespace of a thread."""

    thread_id: str
    checkpoint_ns: str


class Write(NamedTuple):
    """One write of a task; sorted as LangGraph applies them."""

    task_path: str
    task_id: str
    idx: int
    channel: str
    content: bytes


class NewCheckpoint(NamedTuple):
    """A checkpoint to store.

    Attributes:
        fresh: channel -> (version, content): what is new in this checkpoint.
        known: channel -> version: what its parent has, if it has that version.
        valued: the channels of ``known`` that have a value.
        content: returns the content of one of them, for where the parent does not have it.
        needs: channels whose value is rebuilt from the writes of ancestors.
        is_branch: it is meant to branch off.
    """

    checkpoint_id: str
    parent: str | None
    run_id: str | None
    body: bytes
    fresh: Mapping[str, tuple[Version, bytes]]
    known: Mapping[str, Version]
    valued: AbstractSet[str]
    content: Callable[[str], bytes]
    needs: Sequence[str]
    is_branch: bool


class StoredCheckpoint(NamedTuple):
    """A checkpoint as it is stored, its writes in order."""

    place: Place
    checkpoint_id: str
    parent: str | None
    body: bytes
    values: dict[str, bytes]
    writes: list[Write]


class _Entry(NamedTuple):
    """What the row of a checkpoint tells."""

    parent: str | None
    run_id: str | None
    contents: dict[str, _Ref]
    needs: list[str]


class Work(NamedTuple):
    """A write that is prepared.

    Attributes:
        place: whose head it reads.
        pending: which row of pending writes it reads.
        run: notes in a unit what to write; False: what was prepared is out of date, prepare it anew. It raises before it has
            noted anything, or not at all.
    """

    place: Place | None
    pending: tuple[str, ...] | None
    run: Callable[[_Unit], bool]


Prepare = Callable[[], Work]
"""Runs outside a transaction: reads and encodes what the work needs."""


class _Unit:
    """What the works of one transaction read and write: together, because a call for each row costs more than the row."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._tables = checkpoints
        self._heads: dict[Place, Row | None] = {}
        self._pending: dict[tuple[str, ...], Row | None] = {}
        self._new_heads: dict[Place, Row] = {}
        self._new_pending: dict[tuple[str, ...], Row] = {}
        self.values: list[Row] = []
        self.rows: list[Row] = []

    def look_up(self, works: Sequence[Work]) -> None:
        """Read what the works are going to ask for."""
        places = list(dict.fromkeys(work.place for work in works if work.place is not None))
        if places:
            self._heads.update(zip(places, self._tables._heads.get_many(places), strict=True))
        keys = list(dict.fromkeys(work.pending for work in works if work.pending is not None))
        if keys:
            self._pending.update(zip(keys, self._tables._pending.get_many(keys), strict=True))

    def head(self, place: Place) -> Row | None:
        """Return a head as it is by now; the caller may change it."""
        found = self._heads[place]
        return None if found is None else dict(found)

    def put_head(self, place: Place, row: Row) -> None:
        """Note a head."""
        self._heads[place] = self._new_heads[place] = row

    def pending(self, key: tuple[str, ...]) -> Row | None:
        """Return a row of pending writes as it is by now."""
        if key not in self._pending:
            self._pending[key] = self._tables._pending.get(key)
        return self._pending[key]

    def put_pending(self, key: tuple[str, ...], row: Row) -> None:
        """Note a row of pending writes."""
        self._pending[key] = self._new_pending[key] = row

    def write(self) -> None:
        """Write what was noted."""
        tables = self._tables
        for table, rows in (
            (tables._values.table, self.values),
            (tables._rows, self.rows),
            (tables._heads, list(self._new_heads.values())),
            (tables._pending, list(self._new_pending.values())),
        ):
            if len(rows) == 1:
                table.put(rows[0])
            elif rows:
                table.put_many(rows)


class Checkpoints:
    """The checkpoints of one database. Every method may be called from any thread, and is one transaction or snapshot."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._heads = db.table(HEADS)
        self._rows = db.table(ROWS)
        self._values = DeltaTable(db, VALUES, self._barriers)
        self._pending = db.table(PENDING)
        self._writes = db.table(WRITES)
        self._counters = db.table(COUNTERS)
        self._sweep_after: tuple[str, str, str] | None = None
        if not db.read_only:
            db.add_maintenance("langgraph-writes", self._sweep)

    def _barriers(self, series: list[tuple[Any, ...]]) -> list[int | None]:
        heads = self._heads.get_many([one[:2] for one in series])
        return [
            None if head is None else int(_unpack(head["series"]).get(one[2], (0, 0))[1])
            for one, head in zip(series, heads, strict=True)
        ]

    def _next_count(self) -> int:
        """Return a number that was never returned before; inside a transaction."""
        row = self._counters.get("counter")
        value = 1 if row is None else int(row["value"]) + 1
        self._counters.put({"name": "counter", "value": value})
        return value

    # --- put ----------------------------------------------------------------------------------------------------------

    def commit(self, prepare: Prepare) -> None:
        """Do what `putting` or `writing` has begun; durable when this returns.

        Raises:
            StorageError: a turn to write did not come in time (retryable), or storing failed.
        """
        for _ in range(ATTEMPTS):
            work = prepare()
            (outcome,) = self._db.transact(lambda: self._run([work]))  # noqa: B023
            if isinstance(outcome, Exception):
                raise outcome
            if outcome:
                return
        raise ConflictError("checkpoints of this thread are removed faster than a new one can be stored")

    def check(self) -> None:
        """Raise where a write of the caller, done by another thread, would wait for a transaction of the caller.

        Raises:
            UnavailableError: the caller has one open.
        """
        # Where the caller's is another thread's, the question itself raises.
        if self._db.in_transaction:
            raise UnavailableError("a transaction is open here; leave its block before you write from a task")

    def commit_all(self, works: Sequence[Work]) -> list[bool | Exception]:
        """Do several in one transaction, all or none, but those that are refused; return what each returned or raised."""
        return self._db.transact(lambda: self._run(works))

    def _run(self, works: Sequence[Work]) -> list[bool | Exception]:
        unit = _Unit(self)
        unit.look_up(works)
        outcomes: list[bool | Exception] = []
        for work in works:
            try:
                outcomes.append(work.run(unit))
            except (ConflictError, IntegrityError) as error:  # of this thread alone: those of others go on
                outcomes.append(error)
        unit.write()
        return outcomes

    def putting(self, place: Place, new: NewCheckpoint, *, is_fenced: bool) -> Prepare:
        """Return how to store a checkpoint; of one that is stored already, the last counts.

        Args:
            place: where.
            new: what.
            is_fenced: raise `ConflictError` where it is no child of the newest checkpoint and not meant to branch off.
        """
        versions = (*new.known.values(), *(version for version, _ in new.fresh.values()))
        _check_texts(*place, new.checkpoint_id, new.parent, new.run_id, *new.fresh, *new.known, *versions)
        ROWS.encode_key((*place, new.checkpoint_id))
        fresh: dict[str, tuple[Version, Row]] = {}
        inline: dict[str, _Ref] = {}
        if len(new.body) <= _INLINE_BODY_BYTES:
            inline[_BODY] = _Ref(0, None, _compressed(new.body))
        else:
            fresh[_BODY] = (None, DeltaTable.cells(new.body))

        def add(name: str, version: Version, content: bytes) -> None:
            series = f"{_CHANNEL}{name}"
            if len(content) <= _INLINE_BYTES:
                inline[series] = _Ref(0, version, content)
            else:
                VALUES.encode_key((*place, series, 0))
                fresh[series] = (version, DeltaTable.cells(content))

        for name, (version, content) in new.fresh.items():
            add(name, version, content)

        is_first = True

        def prepare() -> Work:
            nonlocal is_first
            if is_first and new.parent is not None:
                is_first = False
                return Work(place, None, lambda unit: self._put(unit, place, new, fresh, inline, is_fenced=is_fenced))
            generation, parents = self._contents_of(place, new.parent)
            shared = _shared(new.known, parents)
            for name, version in new.known.items():
                series = f"{_CHANNEL}{name}"
                if name in new.valued and not {series} & (shared.keys() | fresh.keys() | inline.keys()):
                    add(name, version, new.content(name))
            cells = {name: one for name, one in fresh.items() if name not in shared}
            refs = {**inline, **shared}
            age = generation if shared else None
            return Work(place, None, lambda unit: self._store(unit, place, new, cells, refs, age, is_fenced=is_fenced))

        return prepare

    def _put(
        self,
        unit: _Unit,
        place: Place,
        new: NewCheckpoint,
        cells: Mapping[str, tuple[Version, Row]],
        inline: Mapping[str, _Ref],
        *,
        is_fenced: bool,
    ) -> bool:
        """Store a child of the newest checkpoint, which needs no more to be read than the head; False if it is no such."""
        head = unit.head(place)
        if head is None or head["newest"] != new.parent:
            return False
        shared = _shared(new.known, _newest_contents(head))
        if any(f"{_CHANNEL}{name}" not in shared for name in new.known if name in new.valued):
            return False
        return self._store(unit, place, new, cells, {**inline, **shared}, None, is_fenced=is_fenced)

    def _contents_of(self, place: Place, checkpoint_id: str | None) -> tuple[int | None, dict[str, _Ref]]:
        """Return where the values of a checkpoint are, and the generation of the thread in which they are there."""
        with self._db.snapshot():
            if checkpoint_id is None:
                return None, {}
            head = self._heads.get(place)
            if head is None:
                return None, {}
            if head["newest"] == checkpoint_id:
                return head["generation"], _newest_contents(head)
            row = self._rows.get((*place, checkpoint_id))
        return head["generation"], {} if row is None else _entry(row).contents

    def _store(
        self,
        unit: _Unit,
        place: Place,
        new: NewCheckpoint,
        cells: Mapping[str, tuple[Version, Row]],
        refs: Mapping[str, _Ref],
        generation: int | None,
        *,
        is_fenced: bool,
    ) -> bool:
        """Write everything; False if what is shared may be gone."""
        head = unit.head(place)
        if generation is not None and (head is None or head["generation"] != generation):
            return False
        newest = head["newest"] if head is not None else ""
        if is_fenced and newest and not new.is_branch and newest not in (new.parent, new.checkpoint_id):
            raise ConflictError("another worker has stored a newer checkpoint of this thread; load it before going on")
        if head is None:
            counter = self._next_count()
            head = {**place._asdict(), "counter": counter, "generation": counter, "newest": "", "moved": ""}
            series: dict[str, list[Any]] = {}
        else:
            series = _unpack(head["series"])
        contents = dict(refs)
        for name, (version, row) in cells.items():
            known = series.setdefault(name, [head["counter"] << 32, 0, None])
            known[0] += 1
            contents[name] = _Ref(known[0], version)
            unit.values.append({**place._asdict(), "series": name, "number": known[0], **row})
        unit.rows.append(
            {
                **place._asdict(),
                "checkpoint_id": new.checkpoint_id,
                "parent": new.parent,
                "run_id": new.run_id,
                "contents": _pack([contents, list(new.needs)]),
            }
        )
        if new.checkpoint_id >= newest:
            _set_newest(head, series, new.checkpoint_id, new.parent, contents)
        unit.put_head(place, {**head, "series": _pack(series)})
        return True

    # --- writes of tasks ----------------------------------------------------------------------------------------------

    def writing(self, place: Place, checkpoint_id: str, task_id: str, writes: Sequence[Write]) -> Prepare:
        """Return how to store writes of a task: of equal indices the first stays, of negative ones the last."""
        for write in writes:
            _check_texts(write.channel, write.task_path)
        PENDING.encode_key((*place, checkpoint_id, task_id))
        scope = {**place._asdict(), "checkpoint_id": checkpoint_id}

        first = (*place, checkpoint_id, "")

        def work(unit: _Unit) -> bool:
            shared = unit.pending(first)
            known = _decode_writes(shared["writes"]) if shared is not None else []
            if shared is None or len(shared["writes"]) < _SHARED_BYTES or any(one.task_id == task_id for one in known):
                merged = _encode_writes(_merged(known, writes))
                has_more = shared is not None and shared["has_more"]
                unit.put_pending(first, {**scope, "task_id": "", "has_more": has_more, "writes": merged})
                return True
            key = (*place, checkpoint_id, task_id)
            own = unit.pending(key)
            merged = _encode_writes(_merged(_decode_writes(own["writes"]) if own is not None else [], writes))
            unit.put_pending(key, {**scope, "task_id": task_id, "has_more": False, "writes": merged})
            if not shared["has_more"]:
                unit.put_pending(first, {**shared, "has_more": True})
            return True

        return lambda: Work(None, first, work)

    def _writes_of(self, place: Place, ids: Sequence[str], head: Row | None) -> dict[str, list[Write]]:
        """Return the writes of checkpoints, sorted; inside a snapshot."""
        moved = head["moved"] if head is not None else ""
        keys = [(*place, one) for one in ids if one <= moved]
        found: dict[str, list[Write]] = {one: [] for one in ids}
        for row in self._writes.get_many(keys) if keys else []:
            if row is not None:
                found[row["checkpoint_id"]] = _decode_writes(row["writes"])
        for row in self._pending.get_many([(*place, one, "") for one in ids]):
            if row is not None:
                rows = self._pending_of(place, row["checkpoint_id"]) if row["has_more"] else [row]
                for one in rows:
                    known = found[row["checkpoint_id"]]
                    found[row["checkpoint_id"]] = _merged(known, _decode_writes(one["writes"]))
        return {one: sorted(writes, key=lambda write: write[:3]) for one, writes in found.items()}

    def _pending_of(self, place: Place, checkpoint_id: str) -> list[Row]:
        return list(self._pending.scan(_scope(*place, checkpoint_id)))

    def _sweep(self, _: float) -> bool:
        """Move writes of checkpoints that have been superseded out of SQLite; True while there are more in this round."""
        try:
            return self._sweep_page()
        except (ClosedError, NotFoundError):
            # The next process that opens the database goes on; or what made the tables was rolled back, and nothing is there.
            return False

    def _sweep_page(self) -> bool:
        condition: Filter | None = None
        if self._sweep_after is not None:
            thread_id, checkpoint_ns, checkpoint_id = self._sweep_after
            same_thread = field("thread_id") == thread_id
            same_ns = same_thread & (field("checkpoint_ns") == checkpoint_ns)
            condition = (
                (field("thread_id") > thread_id)
                | (same_thread & (field("checkpoint_ns") > checkpoint_ns))
                | (same_ns & (field("checkpoint_id") > checkpoint_id))
            )
        order = list(ID)
        found = list(self._pending.scan(condition, order_by=order, limit=_SWEEP_ROWS, columns=order))
        places: dict[Place, set[str]] = {}
        for row in found:
            places.setdefault(Place(row["thread_id"], row["checkpoint_ns"]), set()).add(row["checkpoint_id"])
        for place, ids in places.items():
            self._db.transact(lambda place=place, ids=ids: self._move_writes(place, ids))  # type: ignore[misc]
        last = found[-1] if len(found) == _SWEEP_ROWS else None
        self._sweep_after = None if last is None else (last["thread_id"], last["checkpoint_ns"], last["checkpoint_id"])
        return last is not None

    def _move_writes(self, place: Place, ids: Iterable[str]) -> None:
        head = self._heads.get(place)
        superseded = sorted(one for one in ids if head is not None and one < head["newest"])
        if head is None or not superseded:
            return
        known = self._writes.get_many([(*place, one) for one in superseded])
        moved = []
        for checkpoint_id, row in zip(superseded, known, strict=True):
            writes = _decode_writes(row["writes"]) if row is not None else []
            rows = self._pending_of(place, checkpoint_id)
            for pending in rows:
                writes = _merged(writes, _decode_writes(pending["writes"]))
            moved.append({**place._asdict(), "checkpoint_id": checkpoint_id, "writes": _encode_writes(writes)})
            self._pending.delete_many([(*place, checkpoint_id, pending["task_id"]) for pending in rows])
        self._writes.put_many(moved)
        self._heads.put({**head, "moved": max(head["moved"], superseded[-1])})

    # --- get ----------------------------------------------------------------------------------------------------------

    def get(self, place: Place, checkpoint_id: str | None) -> StoredCheckpoint | None:
        """Return a checkpoint, or the newest; None where there is none. An id is met exactly or not at all."""
        with self._db.snapshot():
            head = self._heads.get(place)
            if head is None:
                return None
            if checkpoint_id is None or checkpoint_id == head["newest"]:
                checkpoint_id, parent, contents = head["newest"], head["parent"], _newest_contents(head)
            else:
                row = self._rows.get((*place, checkpoint_id))
                if row is None:
                    return None
                parent, contents = row["parent"], _entry(row).contents
            (found,) = self._read(place, [contents])
            writes = self._writes_of(place, [checkpoint_id], head)[checkpoint_id]
        body = _body(found, contents)
        values = {name[len(_CHANNEL) :]: content for name, content in found.items() if name != _BODY}
        return StoredCheckpoint(place, checkpoint_id, parent, body, values, writes)

    def _read(self, place: Place, contents: Sequence[Mapping[str, _Ref]]) -> list[dict[str, bytes]]:
        """Return the contents of several checkpoints of one place, each read once; inside a snapshot."""
        refs = {(*place, name, ref.number) for one in contents for name, ref in one.items() if ref.inline is None}
        keys = sorted(refs)
        rows = self._values.table.get_many(keys) if keys else []
        if None in rows:
            raise IntegrityError("a value that a checkpoint refers to is missing")
        by_key = dict(zip(keys, self._values.contents(rows), strict=True))
        return [
            {
                name: ref.inline if ref.inline is not None else by_key[*place, name, ref.number]
                for name, ref in one.items()
            }
            for one in contents
        ]

    def find(
        self,
        place: tuple[str, ...],
        *,
        checkpoint_id: str | None,
        before: str | None,
        limit: int | None,
        accepts: Callable[[bytes], bool] | None,
    ) -> Iterator[StoredCheckpoint]:
        """Yield the checkpoints of a thread, of a namespace or of all threads, newest first, in pages.

        Each page is read as of one moment; what is removed before its page is read does not appear.

        Args:
            place: (), (thread,) or (thread, namespace).
            checkpoint_id: only the one with this id.
            before: only those with a lower id.
            limit: at most so many.
            accepts: says of a body whether the checkpoint is wanted; values of others are not read.
        """
        conditions: list[Filter] = [*_scope(*place).filters] if place else []
        if checkpoint_id is not None:
            conditions.append(field("checkpoint_id") == checkpoint_id)
        if before is not None:
            conditions.append(field("checkpoint_id") < before)
        found = self._rows.scan(
            And(*conditions) if conditions else None,
            order_by=("checkpoint_id", "desc"),
            limit=limit if accepts is None else None,
            columns=list(ID),
        )
        keys = [(Place(row["thread_id"], row["checkpoint_ns"]), row["checkpoint_id"]) for row in found]
        left = len(keys) if limit is None else limit
        pages = iter(_PAGES)
        start, size = 0, 0
        while start < len(keys) and left > 0:
            size = min(next(pages, _PAGES[-1]), left) if accepts is None else next(pages, _PAGES[-1])
            for one in self._page(keys[start : start + size], accepts):
                if left > 0:
                    left -= 1
                    yield one
            start += size

    def _page(
        self, keys: Sequence[tuple[Place, str]], accepts: Callable[[bytes], bool] | None
    ) -> list[StoredCheckpoint]:
        by_place: dict[Place, list[str]] = {}
        for place, checkpoint_id in keys:
            by_place.setdefault(place, []).append(checkpoint_id)
        found: dict[tuple[Place, str], StoredCheckpoint] = {}
        with self._db.snapshot():
            for place, ids in by_place.items():
                rows = self._rows.get_many([(*place, one) for one in ids])
                entries = {row["checkpoint_id"]: _entry(row) for row in rows if row is not None}
                bodies = self._read(place, [{_BODY: one.contents[_BODY]} for one in entries.values()])
                body_of = {one: _body(body, entries[one].contents) for one, body in zip(entries, bodies, strict=True)}
                wanted = [one for one in entries if accepts is None or accepts(body_of[one])]
                if not wanted:
                    continue
                read = self._read(place, [_values_only(entries[one].contents) for one in wanted])
                writes = self._writes_of(place, wanted, self._heads.get(place))
                for one, contents in zip(wanted, read, strict=True):
                    values = {name[len(_CHANNEL) :]: content for name, content in contents.items()}
                    found[place, one] = StoredCheckpoint(
                        place, one, entries[one].parent, body_of[one], values, writes[one]
                    )
        return [found[key] for key in keys if key in found]

    # --- ancestors ----------------------------------------------------------------------------------------------------

    def history(
        self, place: Place, checkpoint_id: str | None, channels: Sequence[str]
    ) -> dict[str, tuple[list[Write], bytes | None]]:
        """Return, per channel, the writes of a checkpoint's ancestors, oldest first, and the value that they begin from.

        The walk ends, for each channel, at the nearest ancestor that has a value stored: that value is without the writes of
        that same ancestor, which count. None: there is no such ancestor.
        """
        writes: dict[str, list[Write]] = {name: [] for name in channels}
        seeds: dict[str, bytes] = {}
        with self._db.snapshot():
            head = self._heads.get(place)
            if head is None:
                return {name: ([], None) for name in channels}
            parent = head["parent"]
            if checkpoint_id is not None and checkpoint_id != head["newest"]:
                row = self._rows.get((*place, checkpoint_id))
                parent = row["parent"] if row is not None else None
            chain: list[tuple[str, _Entry, frozenset[str]]] = []
            left = frozenset(channels)
            for one, entry in self._ancestors(place, parent):
                chain.append((one, entry, left))
                left = frozenset(name for name in left if f"{_CHANNEL}{name}" not in entry.contents)
                if not left:
                    break
            found = self._writes_of(place, [one for one, _, _ in chain], head) if chain else {}
            ends = {
                f"{_CHANNEL}{name}": entry.contents[f"{_CHANNEL}{name}"]
                for _, entry, wanted in chain
                for name in wanted
                if f"{_CHANNEL}{name}" in entry.contents
            }
            if ends:
                seeds = {name[len(_CHANNEL) :]: content for name, content in self._read(place, [ends])[0].items()}
        for one, _, wanted in reversed(chain):
            for write in found[one]:
                if write.channel in wanted:
                    writes[write.channel].append(write)
        return {name: (writes[name], seeds.get(name)) for name in channels}

    def _ancestors(self, place: Place, parent: str | None) -> Iterator[tuple[str, _Entry]]:
        """Yield a checkpoint, its parent and so on; inside a snapshot."""
        seen: set[str] = set()
        known: dict[str, _Entry] | None = None
        while parent is not None and parent not in seen:
            seen.add(parent)
            if len(seen) > _STEPS_BY_KEY and known is None:
                known = self._entries(place)
            if known is not None:
                entry = known.get(parent)
            else:
                row = self._rows.get((*place, parent))
                entry = None if row is None else _entry(row)
            if entry is None:
                return
            yield parent, entry
            parent = entry.parent

    def _entries(self, place: Place) -> dict[str, _Entry]:
        rows = self._rows.scan(_scope(*place), columns=["checkpoint_id", "parent", "run_id", "contents"])
        return {row["checkpoint_id"]: _entry(row) for row in rows}

    # --- removal ------------------------------------------------------------------------------------------------------

    def delete_thread(self, thread_id: str) -> None:
        """Remove everything of a thread, in all its namespaces."""
        self._db.transact(lambda: self._delete_all(_scope(thread_id)))

    def _delete_all(self, scope: And) -> None:
        for table in (self._heads, self._rows, self._values.table, self._pending, self._writes):
            table.delete_many(filter=scope)

    def prune(self, thread_ids: Iterable[str]) -> None:
        """Keep of every namespace the newest checkpoint and the ancestors that its values are rebuilt from."""
        for thread_id in dict.fromkeys(thread_ids):
            self._db.transact(lambda thread_id=thread_id: self._prune(thread_id))  # type: ignore[misc]

    def _prune(self, thread_id: str) -> None:
        for head in list(self._heads.scan(_scope(thread_id))):
            place = Place(thread_id, head["checkpoint_ns"])
            entries = self._entries(place)
            self._remove(place, head, entries, set(entries) - {head["newest"]} - _needed(entries, [head["newest"]]))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints of runs, but not those that the values of checkpoints that stay are rebuilt from."""
        if not run_ids:
            return

        def work() -> None:
            rows = self._rows.scan(field("run_id").in_(list(run_ids)), columns=list(SCOPE))
            for place in sorted({Place(row["thread_id"], row["checkpoint_ns"]) for row in rows}):
                head = self._heads.get(place)
                if head is None:
                    raise IntegrityError("a thread has checkpoints and no head")
                entries = self._entries(place)
                gone = {one for one, entry in entries.items() if entry.run_id in run_ids}
                self._remove(place, head, entries, gone - _needed(entries, entries.keys() - gone))

        self._db.transact(work)

    def _remove(self, place: Place, head: Row, entries: Mapping[str, _Entry], gone: set[str]) -> None:
        """Remove checkpoints with their writes, and the values that no other checkpoint has; inside a transaction."""
        left = entries.keys() - gone
        if not left:
            self._delete_all(_scope(*place))
            return
        if not gone:
            return
        series = _unpack(head["series"])
        used = {(name, ref.number) for one in left for name, ref in entries[one].contents.items()}
        infos: dict[str, list[FrameInfo]] = {}
        for row in self._values.table.scan(_scope(*place), columns=["series", "number", "size_bytes", "base"]):
            infos.setdefault(row["series"], []).append(FrameInfo(row["number"], row["size_bytes"], row["base"]))
        lost: list[tuple[str, str, str, int]] = []
        for name, rows in infos.items():
            unused = [one for one in rows if (name, one.number) not in used]
            keys = [one.number for one in unused if one.may_be_key]
            staying = [one for one in rows if (name, one.number) in used]
            self._values.detach((*place, name), keys, staying)
            lost.extend((*place, name, one.number) for one in unused)
            series[name][1] = max(series[name][1], *keys) if keys else series[name][1]
        self._values.table.delete_many(lost)
        ids = [(*place, one) for one in gone]
        self._rows.delete_many(ids)
        self._writes.delete_many(ids)
        pending = self._pending.scan(_scope(*place), columns=["checkpoint_id", "task_id"])
        self._pending.delete_many(
            [(*place, row["checkpoint_id"], row["task_id"]) for row in pending if row["checkpoint_id"] in gone]
        )
        newest = max(left)
        _set_newest(head, series, newest, entries[newest].parent, entries[newest].contents)
        self._heads.put({**head, "generation": self._next_count(), "series": _pack(series)})

    # --- copies -------------------------------------------------------------------------------------------------------

    def copy_thread(self, source: str, target: str) -> None:
        """Copy everything of a thread to another one; nothing where there is nothing.

        Raises:
            ConflictError: the target has checkpoints.
            InvalidInputError: both are the same.
        """
        if source == target:
            raise InvalidInputError("a thread cannot be copied to itself")
        with self._db.transaction():
            if next(iter(self._heads.scan(_scope(target), limit=1)), None) is not None:
                raise ConflictError("the thread to copy to has checkpoints already")
            shifts = {}
            for head in list(self._heads.scan(_scope(source))):
                counter = self._next_count()
                shift = shifts[head["checkpoint_ns"]] = (counter - head["counter"]) << 32
                series = {
                    name: [
                        last + shift,
                        barrier + shift if barrier else 0,
                        None if ref is None else _moved(_Ref(*ref), shift),
                    ]
                    for name, (last, barrier, ref) in _unpack(head["series"]).items()
                }
                self._heads.put(
                    {**head, "thread_id": target, "counter": counter, "generation": counter, "series": _pack(series)}
                )
            for page in _pages(self._values.table.scan(_scope(source))):
                self._values.table.put_many(
                    [self._values.moved(row, {"thread_id": target}, shifts[row["checkpoint_ns"]]) for row in page]
                )
            for page in _pages(self._rows.scan(_scope(source))):
                self._rows.put_many([_shifted(row, target, shifts[row["checkpoint_ns"]]) for row in page])
            for table in (self._pending, self._writes):
                for page in _pages(table.scan(_scope(source))):
                    table.put_many([{**row, "thread_id": target} for row in page])


def _scope(*values: str) -> And:
    return And(*(field(name) == value for name, value in zip(ID, values, strict=False)))


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _unpack(blob: bytes) -> Any:
    return msgpack.unpackb(blob, strict_map_key=False)


def _entry(row: Row) -> _Entry:
    contents, needs = _unpack(row["contents"])
    return _Entry(row["parent"], row["run_id"], {name: _Ref(*one) for name, one in contents.items()}, needs)


def _shared(known: Mapping[str, Version], parents: Mapping[str, _Ref]) -> dict[str, _Ref]:
    """Return what a checkpoint has in common with its parent: the channels of the same version."""
    shared = {}
    for name, version in known.items():
        found = parents.get(f"{_CHANNEL}{name}")
        if found is not None and found.version == version and type(found.version) is type(version):
            shared[f"{_CHANNEL}{name}"] = found
    return shared


def _check_texts(*given: Version) -> None:
    """Refuse what cannot be stored before anything is written.

    Raises:
        InvalidInputError: it holds a lone surrogate.
    """
    text = "".join([one for one in given if isinstance(one, str)])
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInputError("an id, or the name or version of a channel, holds a lone surrogate") from None


def _body(contents: Mapping[str, bytes], refs: Mapping[str, _Ref]) -> bytes:
    return contents[_BODY] if refs[_BODY].inline is None else _decompressed(contents[_BODY])


def _values_only(contents: Mapping[str, _Ref]) -> dict[str, _Ref]:
    return {name: one for name, one in contents.items() if name != _BODY}


def _newest_contents(head: Row) -> dict[str, _Ref]:
    series = _unpack(head["series"])
    return {name: _Ref(*ref) for name, (_, _, ref) in series.items() if ref is not None}


def _set_newest(
    head: Row,
    series: dict[str, Any],
    checkpoint_id: str,
    parent: str | None,
    contents: Mapping[str, _Ref],
) -> None:
    head["newest"], head["parent"] = checkpoint_id, parent
    for name in contents.keys() - series.keys():
        series[name] = [head["counter"] << 32, 0, None]
    for name, known in series.items():
        known[2] = contents.get(name)


def _needed(entries: Mapping[str, _Entry], staying: Iterable[str]) -> set[str]:
    """Return the ancestors whose writes and values the checkpoints that stay are rebuilt from."""
    needed: set[str] = set()
    for one in staying:
        left = {f"{_CHANNEL}{name}" for name in entries[one].needs}
        seen = {one}
        parent = entries[one].parent
        while left and parent is not None and parent in entries and parent not in seen:
            seen.add(parent)
            needed.add(parent)
            left -= entries[parent].contents.keys()
            parent = entries[parent].parent
    return needed


def _shifted(row: Row, thread_id: str, shift: int) -> Row:
    entry = _entry(row)
    contents = {name: _moved(ref, shift) for name, ref in entry.contents.items()}
    return {**row, "thread_id": thread_id, "contents": _pack([contents, entry.needs])}


def _moved(ref: _Ref, shift: int) -> _Ref:
    return ref if ref.inline is not None else ref._replace(number=ref.number + shift)


def _pages(rows: Iterator[Row]) -> Iterator[list[Row]]:
    page: list[Row] = []
    for row in rows:
        page.append(row)
        if len(page) == _COPY_ROWS:
            yield page
            page = []
    if page:
        yield page


def _merged(old: Sequence[Write], new: Sequence[Write]) -> list[Write]:
    """Return both: of equal task and index the old one, but the new one where the index is negative."""
    found = {(one.task_id, one.idx): one for one in old}
    for one in new:
        if one.idx < 0 or (one.task_id, one.idx) not in found:
            found[one.task_id, one.idx] = one
    return list(found.values())


def _encode_writes(writes: Sequence[Write]) -> bytes:
    return _compressed(_pack([list(one) for one in writes]))


def _decode_writes(blob: bytes) -> list[Write]:
    try:
        return [Write(*one) for one in _unpack(_decompressed(blob))]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise IntegrityError("stored writes cannot be decoded") from error


def _compressed(raw: bytes) -> bytes:
    return _RAW + raw if len(raw) < _MIN_ZSTD_BYTES else _ZSTD + zstandard.compress(raw, _ZSTD_LEVEL)


def _decompressed(blob: bytes) -> bytes:
    if blob[:1] != _ZSTD:
        return blob[1:]
    try:
        if zstandard.get_frame_parameters(blob[1:]).content_size > _MAX_BYTES:
            raise IntegrityError("a stored value claims an impossible size")
        return zstandard.decompress(blob[1:])
    except zstandard.ZstdError as error:
        raise IntegrityError("a stored value cannot be decompressed") from error
