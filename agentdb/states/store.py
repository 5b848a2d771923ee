"""``AgentStates``: saving, loading and removing versions.

Versions are rows of the table ``_states``; what changes at every save is one row of ``_state_heads``, which stays in SQLite,
so a save never reads the cold tier. How near-duplicates are stored is in ``agentdb.storage.deltas``.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from agentdb.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from agentdb.filters import And, Compare, Filter, encode_json
from agentdb.states.diff import Change, diff_values
from agentdb.states.retention import RetentionPolicy, VersionInfo
from agentdb.states.versions import (
    LazyContent,
    StateKey,
    StateVersion,
    StateWrite,
    check_identifier,
    check_key,
    check_metadata,
    check_moment,
    check_type,
    check_version,
)
from agentdb.storage.deltas import DeltaTable, FrameInfo
from agentdb.storage.payload import compress
from agentdb.storage.schema import TableSchema
from agentdb.storage.values import encode_value
from agentdb.types import ErasureReceipt, Row

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = ["AgentStates"]

MAX_TAGS = 256
_MICROSECOND = timedelta(microseconds=1)
_REMOVE_AT_ONCE = 256
_PAGE = 1000
_ARROW_ROWS = 500
_SLICE = 50_000
_RETENTION_INTERVAL_S = 60.0

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_STATE_KEY = ("agent_id", "session_id", "state_type")
_KEY_FIELDS = [pa.field(name, pa.string(), nullable=False) for name in _STATE_KEY]
_DELTA_FIELDS = DeltaTable.columns()

STATES = TableSchema(
    "_states",
    [
        *_KEY_FIELDS,
        pa.field("version", pa.int64(), nullable=False),
        pa.field("created_at", _TIMESTAMP, nullable=False),
        pa.field("parent", pa.int64()),
        *_DELTA_FIELDS[:2],
        pa.field("metadata", pa.json_()),
        *_DELTA_FIELDS[2:],
    ],
    key=(*_STATE_KEY, "version"),
)
HEADS = TableSchema(
    "_state_heads",
    [
        *_KEY_FIELDS,
        pa.field("last_version", pa.int64(), nullable=False),
        pa.field("live_version", pa.int64(), nullable=False),
        pa.field("live_count", pa.int64(), nullable=False),
        pa.field("first_created_at", _TIMESTAMP, nullable=False),
        pa.field("last_created_at", _TIMESTAMP, nullable=False),
        pa.field("barrier", pa.int64(), nullable=False),
        # JSON text, tag -> version. Not a JSON column: nobody queries it, and terms would cost every save.
        pa.field("tags", pa.string()),
        # Of a state that began as a branch: its first version, and where that came from.
        pa.field("origin_at", pa.int64()),
        pa.field("origin_session", pa.string()),
    ],
    key=_STATE_KEY,
    hot_only=True,
)
NUMBERS = TableSchema(
    "_state_numbers",
    # States that are gone: a keyed digest of their name, so that numbers are not used again though the name is erased.
    [pa.field("name", pa.string(), nullable=False), pa.field("last_version", pa.int64(), nullable=False)],
    key="name",
    hot_only=True,
)
SETTINGS = TableSchema(
    "_state_settings",
    [pa.field("name", pa.string(), nullable=False), pa.field("value", pa.string(), nullable=False)],
    key="name",
    hot_only=True,
)
_LIST_COLUMNS = [column.name for column in STATES.columns if column.name != "data"]
_NUMBER_COLUMNS = ["version", "created_at", "size_bytes", "base"]


class _Write(NamedTuple):
    """A checked save, encoded outside the lock."""

    key: StateKey
    content: bytes
    size_bytes: int
    checksum: bytes
    frame: bytes
    expected: int | None
    metadata: dict[str, Any] | None


def _prepare(
    agent_id: object, session_id: object, state_type: object, data: object, expected: object, metadata: object
) -> _Write:
    key = check_key(agent_id, session_id, state_type)
    if expected is not None:
        expected = check_version("expected_version", expected, least=0)
    checked = check_metadata(metadata)
    content = encode_value(data)
    checksum = blake2b(content, digest_size=16).digest()
    return _Write(key, content, len(content), checksum, compress(content), expected, checked)


def _in_bulk(schema: TableSchema, rows: list[Row]) -> list[Row] | pa.Table:
    """Return many rows as an Arrow table, which is checked by column instead of by value."""
    if len(rows) < _ARROW_ROWS:
        return rows
    arrays = []
    for column in schema.columns:
        values = [row[column.name] for row in rows]
        if column.kind == "json":
            values = [None if value is None else encode_json(value) for value in values]
        arrays.append(pa.array(values, column.cold_type))
    return pa.table(arrays, names=[column.name for column in schema.columns])


def _eq(name: str, value: object) -> Filter:
    return Compare((name,), "eq", value)


def _scope(*values: str) -> And:
    return And(*(_eq(name, value) for name, value in zip(_STATE_KEY, values, strict=False)))


def _tags_of(head: Row) -> dict[str, int]:
    text = head["tags"]
    return json.loads(text) if text else {}


class AgentStates:
    """The states of all agents of one database.

    Made by the database; every method may be called from any thread. Inside ``db.transaction()`` the calls are part of the
    transaction. Identifiers are strings of 1 to 1,024 characters without NUL; unsigned 64-bit integers are accepted and
    stored as their decimal string.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._clock = engine.config.clock
        self._heads = engine.table(HEADS)
        self._contents = DeltaTable(engine, STATES, self._barriers)
        self._states = self._contents.table
        self._numbers = engine.table(NUMBERS)
        self._settings = engine.table(SETTINGS)
        engine.add_maintenance("state-retention", self._maintain)
        self._retention_due = 0.0
        self._retention_after: str | None = None

    def _barriers(self, keys: list[tuple[Any, ...]]) -> list[int | None]:
        return [None if head is None else head["barrier"] for head in self._heads.get_many(keys)]

    def _now(self) -> datetime:
        moment: datetime = self._clock()
        return moment.astimezone(UTC)

    # --- save ---------------------------------------------------------------------------------------------------------

    def save(
        self,
        agent_id: str | int,
        session_id: str | int,
        state_type: str,
        data: Any,
        *,
        expected_version: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> StateVersion:
        """Store a new version, durable when this returns, and return it.

        Args:
            agent_id: whose state.
            session_id: in which session.
            state_type: which one; see ``StateType``.
            data: JSON-like values, bytes, dates and times, numpy arrays, Arrow tables, nested; see
                ``agentdb.storage.values``.
            expected_version: fail unless this is the newest version; 0: unless there is none.
            metadata: a JSON object that is stored beside the data.
        Raises:
            ConflictError: the newest version is another one; ``actual`` tells which.
            InvalidInputError: an argument cannot be stored; the message names where.
        """
        write = _prepare(agent_id, session_id, state_type, data, expected_version, metadata)
        return self._engine.transact(lambda: self._append(write))

    def _append(self, write: _Write) -> StateVersion:
        head = self._heads.get(write.key)
        self._expect(head, write)
        return self._add_version(write, head, parent=head["live_version"] if head else None)

    @staticmethod
    def _expect(head: Row | None, write: _Write, where: str = "") -> None:
        actual = head["live_version"] if head else 0
        if write.expected is not None and write.expected != actual:
            raise ConflictError(
                f"{where}the newest version is {actual or 'none'}, not the expected {write.expected or 'none'}",
                expected=write.expected,
                actual=actual,
            )

    def _add_version(
        self, write: _Write, head: Row | None, *, parent: int | None, origin_session: str | None = None
    ) -> StateVersion:
        """Write the next version and the head; inside a transaction."""
        row, new_head = self._next(write, head, parent, self._last_number(write.key) if head is None else 0)
        if origin_session is not None:
            new_head["origin_at"] = row["version"]
            new_head["origin_session"] = origin_session
        self._states.put(row)
        self._heads.put(new_head)
        return _to_version(row, write.content, new_head)

    def _next(self, write: _Write, head: Row | None, parent: int | None, last: int) -> tuple[Row, Row]:
        """Return the rows of the next version and of the head that follows."""
        now = self._now()
        agent_id, session_id, state_type = write.key
        if head is None:
            version = last + 1
            new_head: Row = {
                "agent_id": agent_id,
                "session_id": session_id,
                "state_type": state_type,
                "live_count": 1,
                "first_created_at": now,
                "barrier": last,
                "tags": None,
                "origin_at": None,
                "origin_session": None,
            }
        else:
            version = head["last_version"] + 1
            if now <= head["last_created_at"]:
                # The clock stood still or was set back; as_of needs times that rise with the versions.
                now = head["last_created_at"] + _MICROSECOND
            new_head = dict(head)
            new_head["live_count"] += 1
        new_head["last_version"] = new_head["live_version"] = version
        new_head["last_created_at"] = now
        row: Row = {
            "agent_id": agent_id,
            "session_id": session_id,
            "state_type": state_type,
            "version": version,
            "created_at": now,
            "parent": parent,
            "size_bytes": write.size_bytes,
            "checksum": write.checksum,
            "metadata": write.metadata,
            "base": None,
            "data": write.frame,
        }
        return row, new_head

    def save_many(self, writes: Iterable[StateWrite | tuple[str | int, str | int, str, Any]]) -> list[int]:
        """Store all versions or none, and return their numbers in the order given.

        Several writes of one state become consecutive versions. For large numbers this is far faster than ``save``.

        Args:
            writes: ``StateWrite``, or tuples (agent_id, session_id, state_type, data).
        Raises:
            ConflictError, InvalidInputError: as ``save``; the message begins with the position.
        """
        prepared: list[_Write] = []
        items: Iterable[object] = writes
        for index, one in enumerate(items):
            try:
                if isinstance(one, StateWrite):
                    write = _prepare(
                        one.agent_id, one.session_id, one.state_type, one.data, one.expected_version, one.metadata
                    )
                elif isinstance(one, tuple) and len(one) == 4:
                    write = _prepare(*one, None, None)
                else:
                    raise InvalidInputError("a write must be a StateWrite or a tuple of four")
            except InvalidInputError as error:
                raise InvalidInputError(f"writes[{index}]: {error}") from None
            # The frame is enough from here on: a million contents need not wait in memory twice.
            prepared.append(write._replace(content=b""))
        if not prepared:
            return []
        if len(prepared) < self._engine.config.bulk_rows:
            return self._engine.transact(lambda: self._append_many(prepared, 0))
        # A transaction of its own: others' small writes need not wait to be committed together with so much.
        with self._engine.transaction():
            return [
                number
                for start in range(0, len(prepared), _SLICE)
                for number in self._append_many(prepared[start : start + _SLICE], start)
            ]

    def _append_many(self, writes: list[_Write], start: int) -> list[int]:
        keys = list(dict.fromkeys(write.key for write in writes))
        heads: dict[StateKey, Row | None] = dict(zip(keys, self._heads.get_many(keys), strict=True))
        last = self._last_numbers([key for key in keys if heads[key] is None])
        rows = []
        for index, write in enumerate(writes, start):
            head = heads[write.key]
            self._expect(head, write, f"writes[{index}]: ")
            row, heads[write.key] = self._next(
                write, head, head["live_version"] if head else None, last.get(write.key, 0)
            )
            rows.append(row)
        self._states.put_many(_in_bulk(STATES, rows))
        self._heads.put_many(_in_bulk(HEADS, [head for head in heads.values() if head is not None]))
        return [row["version"] for row in rows]

    # --- load ---------------------------------------------------------------------------------------------------------

    def load(
        self,
        agent_id: str | int,
        session_id: str | int,
        state_type: str,
        *,
        version: int | None = None,
        as_of: datetime | None = None,
        tag: str | None = None,
    ) -> StateVersion | None:
        """Return the newest version, or the one asked for; None where there is none.

        Args:
            agent_id: whose state.
            session_id: in which session.
            state_type: which one; see ``StateType``.
            version: this one.
            as_of: the newest of those made until then that still exist.
            tag: the one that carries it.
        Raises:
            IntegrityError: the stored content does not match its checksum.
            InvalidInputError: more than one of the three is given.
        """
        key = check_key(agent_id, session_id, state_type)
        if version is not None:
            version = check_version("version", version)
        if as_of is not None:
            check_moment("as_of", as_of)
        if tag is not None:
            check_identifier("tag", tag)
        if (version is not None) + (as_of is not None) + (tag is not None) > 1:
            raise InvalidInputError("give at most one of version, as_of and tag")
        # Head and row are two reads: without a snapshot a delete may come between, which shows as a missing row.
        for _ in range(3):
            found, is_settled = self._load(key, version, as_of, tag)
            if is_settled:
                return found
        with self._engine.snapshot():
            found, is_settled = self._load(key, version, as_of, tag)
        if not is_settled:
            raise IntegrityError("a version of a state, or the key frame that it refers to, is missing")
        return found

    def _load(
        self, key: StateKey, version: int | None, as_of: datetime | None, tag: str | None
    ) -> tuple[StateVersion | None, bool]:
        """Return the version and whether that is certain without a snapshot."""
        head = self._heads.get(key)
        if head is None:
            return None, True
        number = version
        if tag is not None:
            number = _tags_of(head).get(tag)
        elif as_of is not None:
            number = self._number_as_of(key, head, as_of)
        elif version is None:
            number = head["live_version"]
        if number is None or number > head["last_version"]:
            return None, True
        row = self._states.get((*key, number))
        if row is None:
            return None, version is not None
        content = self._contents.content(row)
        if content is None:
            return None, False
        return _to_version(row, content, head), True

    def _number_as_of(self, key: StateKey, head: Row, as_of: datetime) -> int | None:
        if as_of >= head["last_created_at"]:
            return int(head["live_version"])
        if as_of < head["first_created_at"]:
            return None
        newest = self._states.scan(
            And(*_scope(*key).filters, Compare(("created_at",), "lte", as_of)),
            order_by=("version", "desc"),
            limit=1,
            columns=["version"],
        )
        return next((int(row["version"]) for row in newest), None)

    def _require_content(self, row: Row) -> bytes:
        content = self._contents.content(row)
        if content is None:
            raise IntegrityError(f"version {row['version']} of a state refers to a key frame that is missing")
        return content

    def load_many(self, keys: Iterable[tuple[str | int, str | int, str]]) -> list[StateVersion | None]:
        """Return the newest versions of many states as of one moment, in the order given."""
        checked = []
        items: Iterable[object] = keys
        for index, one in enumerate(items):
            try:
                if not isinstance(one, tuple) or len(one) != 3:
                    raise InvalidInputError("a key must be a tuple (agent_id, session_id, state_type)")
                checked.append(check_key(*one))
            except InvalidInputError as error:
                raise InvalidInputError(f"keys[{index}]: {error}") from None
        if not checked:
            return []
        with self._engine.snapshot():
            heads = self._heads.get_many(checked)
            wanted = {key: head for key, head in zip(checked, heads, strict=True) if head is not None}
            rows = self._states.get_many([(*key, head["live_version"]) for key, head in wanted.items()])
            found = dict(zip(wanted, self._contents.contents(rows), strict=True))
        versions = {}
        for (key, head), row in zip(wanted.items(), rows, strict=True):
            if row is None:
                raise IntegrityError(f"version {head['live_version']} of a state is missing")
            versions[key] = _to_version(row, found[key], head)
        return [versions.get(key) for key in checked]

    def history(
        self,
        agent_id: str | int,
        session_id: str | int,
        state_type: str,
        *,
        limit: int | None = None,
        before: int | None = None,
    ) -> list[StateVersion]:
        """Return the versions that exist, newest first; each reads its data at the first access.

        Args:
            agent_id: whose state.
            session_id: in which session.
            state_type: which one; see ``StateType``.
            limit: at most so many.
            before: only versions lower than this: the last one of the previous page.
        """
        key = check_key(agent_id, session_id, state_type)
        condition: list[Filter] = [*_scope(*key).filters]
        if limit is not None:
            limit = check_version("limit", limit)
        if before is not None:
            condition.append(Compare(("version",), "lt", check_version("before", before)))
        with self._engine.snapshot():
            head = self._heads.get(key)
            if head is None:
                return []
            rows = self._states.scan(And(*condition), order_by=("version", "desc"), limit=limit, columns=_LIST_COLUMNS)
            tags = _tags_by_version(head)
            return [_to_version(row, None, head, load=self._loader(row), tags=tags) for row in rows]

    def _loader(self, row: Row) -> Callable[[], bytes]:
        key = (row["agent_id"], row["session_id"], row["state_type"])
        version = row["version"]

        def load() -> bytes:
            found = self.load(*key, version=version)
            if found is None:
                raise NotFoundError(f"version {version} of the state was deleted since it was listed")
            return found._lazy.content()

        return load

    def diff(self, agent_id: str | int, session_id: str | int, state_type: str, a: int, b: int) -> list[Change]:
        """Return the changes that turn version ``a`` into version ``b``; empty where they are equal.

        Dicts are compared by key, lists by position after their common beginning and end. Values of different types differ
        (``1`` and ``1.0``, ``1`` and ``True``); NaN equals itself.

        Raises:
            NotFoundError: one of the versions does not exist.
        """
        old = self._require(agent_id, session_id, state_type, a)
        new = self._require(agent_id, session_id, state_type, b)
        changes: list[Change] = []
        if old.checksum != new.checksum:
            diff_values(old.data, new.data, (), changes)
        return changes

    def _require(self, agent_id: object, session_id: object, state_type: object, version: object) -> StateVersion:
        key = check_key(agent_id, session_id, state_type)
        number = check_version("version", version)
        found = self.load(*key, version=number)
        if found is None:
            raise NotFoundError(f"the state has no version {number}")
        return found

    # --- restore and branch ---------------------------------------------------------------------------------------------

    def restore(
        self,
        agent_id: str | int,
        session_id: str | int,
        state_type: str,
        version: int,
        *,
        expected_version: int | None = None,
    ) -> StateVersion:
        """Store a new version equal to an old one in data and metadata, and return it.

        Raises:
            NotFoundError: the old version does not exist.
            ConflictError: as ``save``.
        """
        key = check_key(agent_id, session_id, state_type)
        number = check_version("version", version)
        if expected_version is not None:
            expected_version = check_version("expected_version", expected_version, least=0)

        def write() -> StateVersion:
            head = self._heads.get(key)
            row = self._states.get((*key, number)) if head else None
            if row is None:
                raise NotFoundError(f"the state has no version {number}")
            copy = self._copy_of(row, key)._replace(expected=expected_version)
            self._expect(head, copy)
            return self._add_version(copy, head, parent=number)

        return self._engine.transact(write)

    def _copy_of(self, row: Row, key: StateKey) -> _Write:
        content = self._require_content(row)
        return _Write(key, content, len(content), row["checksum"], compress(content), None, row["metadata"])

    def branch(
        self,
        agent_id: str | int,
        session_id: str | int,
        to_session: str | int,
        *,
        as_of: datetime | None = None,
    ) -> list[StateVersion]:
        """Copy the newest version of every state of a session into a new session, at one moment, and return the copies.

        Each becomes the first version there; ``parent`` and ``parent_session`` say where it came from. Tags stay behind.

        Args:
            agent_id: whose session.
            session_id: the session to copy.
            to_session: must have no states.
            as_of: copy what was the newest then; states that began later are left out.
        Returns:
            The new versions, by state type.
        Raises:
            NotFoundError: the session has no states (that early).
            ConflictError: ``to_session`` has states.
        """
        agent, source = check_identifier("agent_id", agent_id), check_identifier("session_id", session_id)
        target = check_identifier("to_session", to_session)
        if as_of is not None:
            check_moment("as_of", as_of)

        def write() -> list[StateVersion]:
            if next(iter(self._heads.scan(_scope(agent, target), limit=1)), None) is not None:
                raise ConflictError("the session to branch to has states already", expected=0)
            copies = []
            for head in list(self._heads.scan(_scope(agent, source), order_by="state_type")):
                key = (agent, source, head["state_type"])
                number = head["live_version"] if as_of is None else self._number_as_of(key, head, as_of)
                if number is None:
                    continue
                row = self._states.get((*key, number))
                if row is None:
                    raise IntegrityError(f"version {number} of a state is missing")
                copy = self._copy_of(row, (agent, target, head["state_type"]))
                copies.append(self._add_version(copy, None, parent=number, origin_session=source))
            if not copies:
                raise NotFoundError("the session has no states to branch from")
            return copies

        return self._engine.transact(write)

    # --- tags -----------------------------------------------------------------------------------------------------------

    def tag(self, agent_id: str | int, session_id: str | int, state_type: str, version: int, tag: str) -> None:
        """Name a version; a tag that the state has already moves to it.

        Raises:
            NotFoundError: the version does not exist.
            InvalidInputError: the state has 256 tags.
        """
        key = check_key(agent_id, session_id, state_type)
        number = check_version("version", version)
        name = check_identifier("tag", tag)

        def write() -> None:
            head = self._heads.get(key)
            if head is None or (number != head["live_version"] and self._states.get((*key, number)) is None):
                raise NotFoundError(f"the state has no version {number}")
            tags = _tags_of(head)
            tags[name] = number
            if len(tags) > MAX_TAGS:
                raise InvalidInputError(f"a state has at most {MAX_TAGS} tags")
            self._heads.put({**head, "tags": json.dumps(tags, ensure_ascii=False)})

        self._engine.transact(write)

    def untag(self, agent_id: str | int, session_id: str | int, state_type: str, tag: str) -> bool:
        """Remove a tag from a state; False where it has none of that name."""
        key = check_key(agent_id, session_id, state_type)
        name = check_identifier("tag", tag)

        def write() -> bool:
            head = self._heads.get(key)
            tags = _tags_of(head) if head else {}
            if head is None or tags.pop(name, None) is None:
                return False
            self._heads.put({**head, "tags": json.dumps(tags, ensure_ascii=False) if tags else None})
            return True

        return self._engine.transact(write)

    def tags(self, agent_id: str | int, session_id: str | int, state_type: str) -> dict[str, int]:
        """Return the tags of a state and the versions they name, sorted by tag."""
        head = self._heads.get(check_key(agent_id, session_id, state_type))
        return dict(sorted(_tags_of(head).items())) if head else {}

    # --- delete and erase -------------------------------------------------------------------------------------------------

    def delete(
        self,
        agent_id: str | int,
        session_id: str | int | None = None,
        state_type: str | None = None,
        *,
        version: int | None = None,
    ) -> int:
        """Delete an agent, a session, a state or one version, whatever is named, and return how many versions went.

        Their numbers are not used again. The bytes stay in old files until maintenance removes them: see ``erase``.
        """
        names, number = self._target(agent_id, session_id, state_type, version)

        def write() -> int:
            if number is not None:
                return self._remove((names[0], names[1], names[2]), [number])
            self._forget_heads(names)
            return self._states.delete_many(filter=_scope(*names))

        return self._engine.transact(write)

    def erase(
        self,
        agent_id: str | int,
        session_id: str | int | None = None,
        state_type: str | None = None,
        *,
        version: int | None = None,
    ) -> ErasureReceipt:
        """Delete like ``delete``, and see to it that no stored byte can give the data back.

        Copies elsewhere stay: the same content in other versions, in sessions branched from here, and in backups.

        Returns:
            A receipt, ``pending`` while snapshots or files still hold the data.
        """
        names, number = self._target(agent_id, session_id, state_type, version)

        def write() -> ErasureReceipt:
            if number is None:
                self._forget_heads(names, erased=True)
                return self._states.erase_many(filter=_scope(*names))
            key = (names[0], names[1], names[2])
            receipts: list[ErasureReceipt] = []
            self._remove(key, [number], lambda gone: receipts.append(self._states.erase_many(gone)))
            return receipts[0] if receipts else self._states.erase_many([(*key, number)])

        receipt = self._engine.transact(write)
        self._contents.forget()
        self._engine.settle_erasures()
        return self._engine.erasure(receipt.id) or receipt

    @staticmethod
    def _target(
        agent_id: object, session_id: object, state_type: object, version: object
    ) -> tuple[tuple[str, ...], int | None]:
        names = [check_identifier("agent_id", agent_id)]
        if session_id is not None:
            names.append(check_identifier("session_id", session_id))
        if state_type is not None:
            if session_id is None:
                raise InvalidInputError("state_type needs a session_id")
            names.append(check_type(state_type))
        if version is None:
            return tuple(names), None
        if state_type is None:
            raise InvalidInputError("version needs a session_id and a state_type")
        return tuple(names), check_version("version", version)

    def _remove(
        self,
        key: StateKey,
        versions: Sequence[int],
        remove: Callable[[list[tuple[str, str, str, int]]], object] | None = None,
    ) -> int:
        """Remove versions of one state, writing in full first whatever refers to them; inside a transaction."""
        head = self._heads.get(key)
        if head is None:
            return 0
        rows = self._number_rows(key)
        wanted = set(versions)
        gone = [row for row in rows if row.version in wanted]
        if not gone:
            return 0
        left = [row for row in rows if row.version not in wanted]
        lost = {row.version for row in gone if row.frame.may_be_key}
        self._contents.detach(key, lost, [row.frame for row in left])
        (remove or self._states.delete_many)([(*key, row.version) for row in gone])
        if not left:
            self._forget(head)
            return len(gone)
        tags = {name: version for name, version in _tags_of(head).items() if version not in wanted}
        self._heads.put(
            {
                **head,
                "live_version": left[0].version,
                "live_count": len(left),
                "first_created_at": left[-1].created_at,
                "barrier": max(head["barrier"], *lost) if lost else head["barrier"],
                "tags": json.dumps(tags, ensure_ascii=False) if tags else None,
            }
        )
        return len(gone)

    def _number_rows(self, key: StateKey) -> list[VersionInfo]:
        """Return what there is of a state, newest first."""
        rows = self._states.scan(_scope(*key), order_by=("version", "desc"), columns=_NUMBER_COLUMNS)
        return [
            VersionInfo(row["created_at"], FrameInfo(row["version"], row["size_bytes"], row["base"])) for row in rows
        ]

    def _forget_heads(self, names: tuple[str, ...], *, erased: bool = False) -> None:
        """Remove the heads of an agent, a session or a state; inside a transaction."""
        for head in list(self._heads.scan(_scope(*names))):
            self._forget(head)
        if erased and len(names) == 2:
            # A branch names the session that it came from.
            for head in list(self._heads.scan(And(_eq("agent_id", names[0]), _eq("origin_session", names[1])))):
                self._heads.put({**head, "origin_session": None})

    def _forget(self, head: Row) -> None:
        """Replace a head by its number alone."""
        key = (head["agent_id"], head["session_id"], head["state_type"])
        self._heads.delete(key)
        self._numbers.put({"name": _digest(self._salt(create=True), key), "last_version": head["last_version"]})

    def _salt(self, *, create: bool = False) -> str:
        """Return the database's salt, or "" where none was made yet; inside a transaction."""
        # Never cached: the transaction that made it may still be rolled back.
        found = self._settings.get("salt")
        if found is not None:
            return str(found["value"])
        if not create:
            return ""
        salt = secrets.token_hex(32)
        self._settings.put({"name": "salt", "value": salt})
        return salt

    def _last_number(self, key: StateKey) -> int:
        """Return the last number that a state without a head has had; 0 where it is new."""
        salt = self._salt()
        found = self._numbers.get(_digest(salt, key)) if salt else None
        return int(found["last_version"]) if found else 0

    def _last_numbers(self, keys: list[StateKey]) -> dict[StateKey, int]:
        salt = self._salt() if keys else ""
        if not salt:
            return {}
        found = self._numbers.get_many([_digest(salt, key) for key in keys])
        return {key: row["last_version"] for key, row in zip(keys, found, strict=True) if row is not None}

    # --- listing ----------------------------------------------------------------------------------------------------------

    def agents(self, *, after: str | int | None = None) -> Iterator[str]:
        """Yield every agent with a state, sorted, in pages: agents that come or go meanwhile may or may not appear.

        Args:
            after: begin behind this one.
        """
        last = None if after is None else check_identifier("after", after)
        return self._agents(last)

    def _agents(self, last: str | None) -> Iterator[str]:
        while True:
            condition = None if last is None else Compare(("agent_id",), "gt", last)
            page = list(self._heads.scan(condition, order_by=list(_STATE_KEY), limit=_PAGE, columns=["agent_id"]))
            for row in page:
                if row["agent_id"] != last:
                    last = row["agent_id"]
                    yield last
            if len(page) < _PAGE:
                return

    def sessions(self, agent_id: str | int) -> list[str]:
        """Return the sessions in which an agent has states, sorted."""
        scope = _scope(check_identifier("agent_id", agent_id))
        return sorted({row["session_id"] for row in self._heads.scan(scope, columns=["session_id"])})

    def types(self, agent_id: str | int, session_id: str | int) -> list[str]:
        """Return the state types of a session, sorted."""
        scope = _scope(check_identifier("agent_id", agent_id), check_identifier("session_id", session_id))
        return sorted(row["state_type"] for row in self._heads.scan(scope, columns=["state_type"]))

    # --- retention --------------------------------------------------------------------------------------------------------

    def set_retention(self, policy: RetentionPolicy | None, *, state_type: str | None = None) -> None:
        """Set which versions stay, in the database, for one state type or for all that have no policy of their own.

        Maintenance applies it from then on. None removes the policy: every version stays.
        """
        name = "retention" if state_type is None else f"retention/{check_type(state_type)}"
        if policy is not None and not isinstance(policy, RetentionPolicy):
            raise InvalidInputError(f"policy must be a RetentionPolicy or None, not {type(policy).__name__}")

        def write() -> None:
            if policy is None:
                self._settings.delete(name)
            else:
                self._settings.put({"name": name, "value": json.dumps(asdict(policy))})

        self._engine.transact(write)
        self._retention_due = 0.0

    def retention(self, *, state_type: str | None = None) -> RetentionPolicy | None:
        """Return the policy that applies to a state type, or the default one; None: every version stays."""
        names = ["retention"] if state_type is None else [f"retention/{check_type(state_type)}", "retention"]
        for found in self._settings.get_many(names):
            if found is not None:
                return RetentionPolicy(**json.loads(found["value"]))
        return None

    def apply_retention(self) -> int:
        """Remove the versions that no rule keeps, now, and return how many."""
        removed = 0
        policies = self._policies()
        if policies:
            for agent in self.agents():
                removed += self._retain(agent, policies)
        return removed

    def _policies(self) -> dict[str, RetentionPolicy]:
        """Return the policies by setting name, without those that keep everything."""
        policies = {
            row["name"]: RetentionPolicy(**json.loads(row["value"]))
            for row in self._settings.scan()
            if row["name"].startswith("retention")
        }
        return policies if any(not policy.keeps_all for policy in policies.values()) else {}

    def _retain(self, agent: str, policies: Mapping[str, RetentionPolicy]) -> int:
        """Apply the policies to one agent, in bounded transactions."""
        removed = 0
        for head in list(self._heads.scan(_scope(agent))):
            policy = policies.get(f"retention/{head['state_type']}") or policies.get("retention")
            if policy is None or not policy.may_remove(head["live_count"], head["first_created_at"], self._now()):
                continue
            key = (agent, head["session_id"], head["state_type"])
            while True:
                count = self._engine.transact(partial(self._retain_state, key, policy))
                removed += count
                if count < _REMOVE_AT_ONCE:
                    break
        return removed

    def _retain_state(self, key: StateKey, policy: RetentionPolicy) -> int:
        head = self._heads.get(key)
        if head is None:
            return 0
        rows = self._number_rows(key)
        tagged = frozenset(_tags_of(head).values())
        # Oldest first: whole groups of deltas go before the key frame of those that stay must be replaced.
        gone = policy.removes(rows, tagged, self._now())[::-1][:_REMOVE_AT_ONCE]
        return self._remove(key, gone) if gone else 0

    def _maintain(self, deadline: float) -> bool:
        """Apply retention to some agents; True while there are more in this round."""
        if self._retention_after is None and time.monotonic() < self._retention_due:
            return False
        policies = self._policies()
        if policies:
            for agent in self._agents(self._retention_after):
                self._retain(agent, policies)
                self._retention_after = agent
                if time.monotonic() >= deadline:
                    return True
        self._retention_after = None
        self._retention_due = time.monotonic() + _RETENTION_INTERVAL_S
        return False


def _tags_by_version(head: Row) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for name, version in sorted(_tags_of(head).items()):
        found[version] = (*found.get(version, ()), name)
    return found


def _to_version(
    row: Row,
    content: bytes | None,
    head: Row,
    *,
    load: Callable[[], bytes] | None = None,
    tags: dict[int, tuple[str, ...]] | None = None,
) -> StateVersion:
    version = row["version"]
    if tags is None:
        tags = _tags_by_version(head) if head["tags"] else {}
    return StateVersion(
        agent_id=row["agent_id"],
        session_id=row["session_id"],
        state_type=row["state_type"],
        version=version,
        metadata=row["metadata"] or {},
        checksum=row["checksum"].hex(),
        created_at=row["created_at"],
        size_bytes=row["size_bytes"],
        parent=row["parent"],
        parent_session=head["origin_session"] if head["origin_at"] == version else None,
        tags=tags.get(version, ()),
        _lazy=LazyContent(content, load),
    )


def _digest(salt: str, key: StateKey) -> str:
    # Lengths first: ("a", "bc") and ("ab", "c") must differ.
    parts = [part.encode() for part in key]
    message = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return blake2b(message, key=bytes.fromhex(salt), digest_size=16).hexdigest()
