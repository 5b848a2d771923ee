"""The hot tier: SQLite as catalogue, write-ahead buffer and commit point.

This module knows SQL and nothing of policy: what a statement means is here, when it runs is decided in ``engine`` and
``flush``. SQLite is apsw's own, never Python's, and no other code of a process may open its files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import apsw
import msgpack

from agentdb.errors import (
    AgentDBError,
    ClosedError,
    FormatError,
    IntegrityError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from agentdb.storage.locks import fork_generation
from agentdb.storage.payload import pack, unpack
from agentdb.storage.schema import TableSchema

__all__ = [
    "FORMAT_VERSION",
    "Catalogue",
    "HotStore",
    "HotTable",
    "KeyOrder",
    "Pending",
    "Statistics",
    "Written",
    "storage_errors",
]

FORMAT_VERSION = 1
APPLICATION_ID = 0x41674442  # "AgDB"
DATABASE_FILE = "agentdb.sqlite"
PUT, TOMBSTONE = 0, 1
PAGE_BYTES = 4096
_BUSY_MS = 10_000
_IDLE_READERS = 16
_MAX_PARAMETERS = 30_000

_CATALOGUE = """
CREATE TABLE meta(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    database_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    commit_no INTEGER NOT NULL,
    row_no INTEGER NOT NULL,
    catalogue_no INTEGER NOT NULL,
    table_no INTEGER NOT NULL);
CREATE TABLE tables(
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    dataset TEXT NOT NULL UNIQUE,
    definition TEXT NOT NULL,
    version INTEGER NOT NULL);
CREATE TABLE datasets(
    name TEXT PRIMARY KEY,
    table_id INTEGER NOT NULL,
    dropped_commit INTEGER) WITHOUT ROWID;
CREATE TABLE versions(
    table_id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    commit_no INTEGER NOT NULL,
    PRIMARY KEY (table_id, version)) WITHOUT ROWID;
CREATE TABLE files(
    table_id INTEGER NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (table_id, path)) WITHOUT ROWID;
CREATE TABLE batches(
    table_id INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    commit_no INTEGER NOT NULL,
    PRIMARY KEY (table_id, batch)) WITHOUT ROWID;
CREATE TABLE erasures(
    id TEXT PRIMARY KEY,
    table_id INTEGER NOT NULL,
    table_name TEXT NOT NULL,
    row_count INTEGER NOT NULL,
    version INTEGER NOT NULL,
    commit_no INTEGER NOT NULL,
    requested_at INTEGER NOT NULL,
    completed_at INTEGER) WITHOUT ROWID;
"""


class _StorageErrors:
    """A context manager that is a class: every call passes here, and generators are slow."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, apsw.Error):
            raise _translated(error) from error


def _translated(error: apsw.Error) -> AgentDBError:
    match error:
        case apsw.CorruptError() | apsw.NotADBError():
            return IntegrityError("the SQLite file of this database is corrupt; see verify and backup")
        case apsw.FullError():
            return StorageError("the disk is full", retryable=True)
        case apsw.BusyError() | apsw.LockedError():
            return StorageError("SQLite stayed locked by another process", retryable=True)
        case apsw.ReadOnlyError():
            return StorageError("the database cannot be written: its files or directory are read-only")
        case apsw.ConnectionClosedError():
            return ClosedError("the database was closed meanwhile")
        case apsw.CantOpenError():
            return StorageError("the SQLite file of this database cannot be opened")
        case _:
            return StorageError(f"SQLite failed ({type(error).__name__})")


_STORAGE_ERRORS = _StorageErrors()


class UnfinishedError(FormatError):
    """A database whose creation was interrupted: nothing is in it."""


def storage_errors() -> _StorageErrors:
    """Turn the backends' errors into ours, once, without their text: it may hold SQL, paths or content."""
    return _STORAGE_ERRORS


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One table as the catalogue knows it, without what changes at every flush."""

    id: int
    name: str
    dataset: str
    schema: TableSchema
    hot: HotTable


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The tables at one catalogue number."""

    no: int
    by_name: dict[str, TableEntry]
    by_id: dict[int, TableEntry]


@dataclass(frozen=True, slots=True)
class Pending:
    """Rows that wait for a flush, in write order; `values` is None for a tombstone."""

    ids: list[int]
    keys: list[str]
    seqs: list[int]
    values: list[list[Any] | None]


class Written(NamedTuple):
    """One hot row or tombstone, without its content."""

    id: int
    key: str
    seq: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """The hot part of a table: rows and tombstones, and the bytes of their payloads."""

    rows: int
    bytes: int


def _encode_row(values: Sequence[Any]) -> bytes:
    return pack(msgpack.packb(values, use_bin_type=True))


def _decode_row(blob: bytes) -> list[Any]:
    try:
        return list(msgpack.unpackb(unpack(blob).body, raw=False, strict_map_key=False))
    except AgentDBError:
        raise
    except (ValueError, msgpack.UnpackException) as error:
        raise IntegrityError("a row of the hot tier is corrupt") from error


class HotTable:
    """The SQL of one table's hot rows.

    ``id`` numbers every write of the database once and for ever, so a replaced row moves to the end and stale entries of
    the terms table can never match again; they go with the next flush.
    """

    def __init__(self, table_id: int, schema: TableSchema) -> None:
        self.schema = schema
        self.rows = f"t{table_id}_rows"
        self.terms = f"t{table_id}_terms"
        self.has_terms = bool(schema.json_columns)
        columns = "".join(f", c_{name}" for name in schema.sql_columns)
        marks = ", ?" * len(schema.sql_columns)
        insert = f"INTO {self.rows}(id, _key, _seq, _op, row{columns}) VALUES (?, ?, ?, 0, ?{marks})"
        updates = "".join(f", c_{name}=excluded.c_{name}" for name in schema.sql_columns)
        updates = f"_seq=excluded._seq, row=excluded.row{updates}"
        if not schema.hot_only or self.has_terms:
            updates = f"id=excluded.id, _op=excluded._op, {updates}"
        # Without a new id in place: a head that changes at every save keeps its page. Never INSERT OR REPLACE: it opens a
        # statement journal, and inside a savepoint each row then costs a walk over all pages that were changed before it.
        replace = f" ON CONFLICT(_key) DO UPDATE SET {updates}"
        self._put = f"INSERT {insert}{replace}"
        self._tombstone = f"INSERT INTO {self.rows}(id, _key, _seq, _op) VALUES (?, ?, ?, 1){replace}"
        self._get = f"SELECT _op, row FROM {self.rows} WHERE _key = ?"
        self.get_with_catalogue = (
            "SELECT m.catalogue_no, m.commit_no, t.version, r._op, r.row FROM meta m "
            f"LEFT JOIN tables t ON t.id = {table_id} LEFT JOIN {self.rows} r ON r._key = ?"
        )
        self.get_seq = f"SELECT _op, _seq FROM {self.rows} WHERE _key = ?"
        self._insert_term = f"INSERT OR IGNORE INTO {self.terms}(term, id) VALUES (?, ?)"

    def create(self, connection: apsw.Connection) -> None:
        """Create the tables of rows and terms, and their indices."""
        columns = "".join(f", c_{name}" for name in self.schema.sql_columns)
        connection.execute(
            f"CREATE TABLE {self.rows}(id INTEGER PRIMARY KEY, _key TEXT NOT NULL UNIQUE, _seq INTEGER NOT NULL, "
            f"_op INTEGER NOT NULL, row BLOB{columns})"
        )
        for name in self.schema.indexed:
            connection.execute(f"CREATE INDEX {self.rows}_{name} ON {self.rows}(c_{name})")
        if self.has_terms:
            connection.execute(
                f"CREATE TABLE {self.terms}(term TEXT, id INTEGER, PRIMARY KEY (term, id)) WITHOUT ROWID"
            )

    def drop(self, connection: apsw.Connection) -> None:
        """Drop them."""
        connection.execute(f"DROP TABLE {self.rows}")
        connection.execute(f"DROP TABLE IF EXISTS {self.terms}")

    def add_terms_table(self, connection: apsw.Connection) -> None:
        """Create the table of terms if a JSON column was added."""
        if self.has_terms:
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {self.terms}(term TEXT, id INTEGER, PRIMARY KEY (term, id)) WITHOUT ROWID"
            )

    # --- writes -------------------------------------------------------------------------------------------------------

    def put(
        self, connection: apsw.Connection, first_id: int, seq: int, rows: Sequence[tuple[str, Sequence[Any]]]
    ) -> int:
        """Store physical rows, the i-th under the write number ``first_id + i``; return the bytes of their payloads."""
        positions = self.schema.sql_positions
        size = 0

        def bound(i: int, key: str, values: Sequence[Any]) -> tuple[Any, ...]:
            nonlocal size
            row = _encode_row(values)
            size += len(row)
            return (first_id + i, key, seq, row, *[values[p] for p in positions])

        if len(rows) == 1:
            connection.execute(self._put, bound(0, *rows[0]))
        else:
            connection.executemany(self._put, (bound(i, key, values) for i, (key, values) in enumerate(rows)))
        if self.has_terms:
            terms = [(term, first_id + i) for i, (_, v) in enumerate(rows) for term in self.schema.terms_of(v)]
            if terms:
                connection.executemany(self._insert_term, terms)
        return size

    def tombstone(self, connection: apsw.Connection, first_id: int, seq: int, keys: Sequence[str]) -> None:
        """Mark keys as deleted until a flush has deleted them in the cold tier."""
        connection.executemany(self._tombstone, ((first_id + i, key, seq) for i, key in enumerate(keys)))

    def remove(self, connection: apsw.Connection, keys: Iterable[str]) -> None:
        """Remove rows without a trace; for tables that never leave SQLite."""
        connection.executemany(f"DELETE FROM {self.rows} WHERE _key = ?", ((key,) for key in keys))
        self.forget_terms(connection)

    def forget(self, connection: apsw.Connection, last_id: int, last_seq: int) -> None:
        """Remove the rows that a flush has moved; rows written since have higher numbers."""
        connection.execute(f"DELETE FROM {self.rows} WHERE id <= ? AND _seq <= ?", (last_id, last_seq))
        self.forget_terms(connection)

    def forget_keys(self, connection: apsw.Connection, keys: Iterable[str], last_id: int) -> None:
        """Remove rows that a bulk write or an erasure supersedes."""
        connection.executemany(f"DELETE FROM {self.rows} WHERE _key = ? AND id <= ?", ((key, last_id) for key in keys))
        self.forget_terms(connection)

    def forget_terms(self, connection: apsw.Connection) -> None:
        """Remove the terms of rows that are gone."""
        if self.has_terms:
            connection.execute(f"DELETE FROM {self.terms} WHERE id NOT IN (SELECT id FROM {self.rows} WHERE _op = 0)")

    # --- reads --------------------------------------------------------------------------------------------------------

    def get(self, connection: apsw.Connection, key: str) -> tuple[bool, list[Any] | None]:
        """Return (known here, physical row or None for a tombstone)."""
        found = connection.execute(self._get, (key,)).fetchone()
        if found is None:
            return False, None
        return True, None if found[0] == TOMBSTONE else _decode_row(found[1])

    def decode(self, op: int, row: bytes) -> list[Any] | None:
        """Return the physical row of a stored one; None for a tombstone."""
        return None if op == TOMBSTONE else _decode_row(row)

    def get_many(self, connection: apsw.Connection, keys: Sequence[str]) -> dict[str, list[Any] | None]:
        """Return the rows and tombstones known here, by key."""
        found: dict[str, list[Any] | None] = {}
        if len(keys) <= 64:
            for key in keys:
                known, values = self.get(connection, key)
                if known:
                    found[key] = values
            return found
        for start in range(0, len(keys), _MAX_PARAMETERS):
            part = keys[start : start + _MAX_PARAMETERS]
            marks = ",".join("?" * len(part))
            for key, op, row in connection.execute(
                f"SELECT _key, _op, row FROM {self.rows} WHERE _key IN ({marks})", part
            ):
                found[key] = None if op == TOMBSTONE else _decode_row(row)
        return found

    def match(
        self,
        connection: apsw.Connection,
        where: str | None = None,
        parameters: Sequence[Any] = (),
        low: str | None = None,
        high: str | None = None,
        limit: int | None = None,
        order: KeyOrder | None = None,
    ) -> list[tuple[str, list[Any]]]:
        """Return the rows within key bounds for which a compiled predicate holds, in the order of their keys.

        With a limit they are the first so many in that order if it is given, else any.
        """
        sql = f"SELECT _key, row FROM {self.rows} AS r WHERE _op = 0"
        bounds, bound = _key_bounds(low, high)
        if where is not None:
            bounds += f" AND ({where})"
            bound = [*bound, *parameters]
        bound.append(-1 if limit is None else limit)
        # Asked for an order, SQLite walks the index of keys and looks at every row, however few an index finds.
        ordered = order is not None and limit is not None
        by = f" ORDER BY _key {order}" if ordered else ""
        rows: list[Any] = connection.execute(f"{sql}{bounds}{by} LIMIT ?", bound).fetchall()
        if not ordered:
            rows.sort(key=itemgetter(0), reverse=order == "DESC")
        return [(key, _decode_row(row)) for key, row in rows]

    def match_keys(
        self, connection: apsw.Connection, where: str, parameters: Sequence[Any], low: str | None, high: str | None
    ) -> list[str]:
        """Return only the keys of `match`."""
        bounds, bound = _key_bounds(low, high)
        rows = connection.execute(
            f"SELECT _key FROM {self.rows} AS r WHERE _op = 0{bounds} AND ({where})", [*bound, *parameters]
        )
        return [row[0] for row in rows]

    def keys(self, connection: apsw.Connection, low: str | None = None, high: str | None = None) -> list[str]:
        """Return every key known here within bounds, tombstones included: those that shadow the cold tier."""
        bounds, bound = _key_bounds(low, high)
        return [row[0] for row in connection.execute(f"SELECT _key FROM {self.rows} WHERE 1{bounds}", bound)]

    def keys_since(self, connection: apsw.Connection, seq: int) -> list[str]:
        """Return the keys written after a commit."""
        keys = []
        # Write numbers rise with commits, so the newest rows are at the end.
        for key, row_seq in connection.execute(f"SELECT _key, _seq FROM {self.rows} ORDER BY id DESC"):
            if row_seq <= seq:
                break
            keys.append(key)
        return keys

    def written(self, connection: apsw.Connection, after_id: int) -> list[Written]:
        """Return the rows and tombstones above a write number, in their order."""
        rows = connection.execute(f"SELECT id, _key, _seq FROM {self.rows} WHERE id > ? ORDER BY id", (after_id,))
        return [Written(*row) for row in rows]

    def rows_since(
        self, connection: apsw.Connection, after_id: int, where: str | None = None, parameters: Sequence[Any] = ()
    ) -> dict[int, list[Any]]:
        """Return write number -> row of those above a write number for which a compiled predicate holds."""
        sql = f"SELECT id, row FROM {self.rows} AS r WHERE id > ? AND _op = 0"
        if where is not None:
            sql += f" AND ({where})"
        return {no: _decode_row(row) for no, row in connection.execute(sql, (after_id, *parameters))}

    def by_number(self, connection: apsw.Connection, numbers: Sequence[int]) -> dict[int, list[Any]]:
        """Return write number -> row."""
        found: dict[int, list[Any]] = {}
        for start in range(0, len(numbers), _MAX_PARAMETERS):
            part = numbers[start : start + _MAX_PARAMETERS]
            marks = ",".join("?" * len(part))
            sql = f"SELECT id, row FROM {self.rows} WHERE id IN ({marks}) AND _op = 0"
            found.update((no, _decode_row(row)) for no, row in connection.execute(sql, part))
        return found

    def match_numbers(self, connection: apsw.Connection, where: str, parameters: Sequence[Any]) -> list[int]:
        """Return the write numbers of the rows for which a compiled predicate holds."""
        rows = connection.execute(f"SELECT id FROM {self.rows} AS r WHERE _op = 0 AND ({where})", parameters)
        return [row[0] for row in rows]

    def pending(self, connection: apsw.Connection, max_rows: int, max_bytes: int) -> Pending:
        """Return the oldest rows and tombstones, up to the limits but always whole commits."""
        found = Pending([], [], [], [])
        size = 0
        for row_id, key, seq, op, row in connection.execute(
            f"SELECT id, _key, _seq, _op, row FROM {self.rows} ORDER BY id"
        ):
            if (len(found.ids) >= max_rows or size >= max_bytes) and seq != found.seqs[-1]:
                break
            size += len(row or b"")
            found.ids.append(row_id)
            found.keys.append(key)
            found.seqs.append(seq)
            found.values.append(None if op == TOMBSTONE else _decode_row(row))
        return found

    def oldest_seq(self, connection: apsw.Connection) -> int | None:
        """Return the commit of the oldest write that waits here."""
        found = connection.execute(f"SELECT _seq FROM {self.rows} ORDER BY id LIMIT 1").fetchone()
        return None if found is None else int(found[0])

    def oldest_number(self, connection: apsw.Connection) -> int | None:
        """Return the lowest write number that waits here."""
        found = connection.execute(f"SELECT min(id) FROM {self.rows}").fetchone()
        return None if found is None else found[0]

    def statistics(self, connection: apsw.Connection) -> Statistics:
        """Return how much waits here."""
        rows, size = connection.execute(f"SELECT count(*), coalesce(sum(length(row)), 0) FROM {self.rows}").fetchone()  # type: ignore[misc]
        return Statistics(rows, size)

    def raw_rows(self, connection: apsw.Connection) -> Iterator[tuple[Any, ...]]:
        """Yield (id, key, op, row, indexed values...) for verification."""
        columns = "".join(f", c_{name}" for name in self.schema.sql_columns)
        yield from connection.execute(f"SELECT id, _key, _op, row{columns} FROM {self.rows}")

    def raw_terms(self, connection: apsw.Connection) -> set[tuple[str, int]]:
        """Return every (term, id) of rows that live, for verification."""
        if not self.has_terms:
            return set()
        return set(
            connection.execute(
                f"SELECT term, id FROM {self.terms} WHERE id IN (SELECT id FROM {self.rows} WHERE _op = 0)"
            )
        )


def _key_bounds(low: str | None, high: str | None) -> tuple[str, list[Any]]:
    sql, bound = "", []
    if low is not None:
        sql += " AND _key >= ?"
        bound.append(low)
    if high is not None:
        sql += " AND _key < ?"
        bound.append(high)
    return sql, bound


KeyOrder = Literal["ASC", "DESC"]
ReadMode = Literal["write", "read", "immutable"]


class HotStore:
    """The SQLite file of one database: its connections and its catalogue."""

    def __init__(self, path: Path, *, durability: str, read_only: bool) -> None:
        self.path = path / DATABASE_FILE
        self._durability = durability
        self._read_only = read_only
        self._readers: deque[apsw.Connection] = deque()
        self._pooled: ReadMode = "write"
        self._writer: apsw.Connection | None = None
        self._generation = fork_generation()
        self._leaked: list[apsw.Connection] = []
        self.log_pages = 0
        """The length of the write-ahead log after the last commit of this process."""

    # --- opening ------------------------------------------------------------------------------------------------------

    def _mode(self) -> ReadMode:
        if not self._read_only:
            return "write"
        wal, shared = (self.path.with_name(self.path.name + suffix).exists() for suffix in ("-wal", "-shm"))
        if not wal:
            return "immutable"
        if not shared:
            raise UnavailableError(
                "this database has a -wal file without its -shm file and cannot be opened read-only; "
                "open it once for writing, which recovers it"
            )
        return "read"

    def connect(self) -> apsw.Connection:
        """Return a new connection with every setting that must never be forgotten."""
        return self._connect(self._mode())

    def _connect(self, mode: ReadMode) -> apsw.Connection:
        if mode == "write":
            connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        else:
            uri = self.path.absolute().as_uri() + ("?immutable=1" if mode == "immutable" else "?mode=ro")
            connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        _configure(connection, self._durability, read_only=self._read_only)
        return connection

    def check_format(self) -> None:
        """Check that the file is a database of ours of a format we read.

        Raises:
            FormatError: it is neither, or a newer one.
        """
        with storage_errors():
            try:
                self._check_format(self.connect())
            except apsw.NotADBError:
                raise FormatError(f"{self.path.name} is not a SQLite database") from None

    def _check_format(self, connection: apsw.Connection) -> None:
        try:
            application, version = _identity(connection)
            # Only the header is read of a database of ours: a probe takes no locks, and other pages may just be written.
            empty = application == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
        finally:
            connection.close()
        if application != APPLICATION_ID:
            if empty:
                raise UnfinishedError(
                    "the database was never completely created; open it for writing, with create=True"
                )
            raise FormatError(f"{self.path.name} belongs to another application")
        if version > FORMAT_VERSION:
            raise FormatError(f"the database has format {version}; this release reads up to {FORMAT_VERSION}")

    @classmethod
    def probe(cls, path: Path) -> None:
        """Check an existing file before anything is written, not even a -shm file.

        What is still in a log is not seen: the header reaches the file itself when the database is created.

        Raises:
            FormatError: not a database of ours, or a newer format.
            UnfinishedError: its creation was interrupted, or is under way.
        """
        probe = cls(path, durability="full", read_only=True)
        try:
            probe._check_format(probe._connect("immutable"))
        except apsw.Error as error:
            if probe.path.with_name(probe.path.name + "-wal").exists():
                return  # With a log the file alone need not be whole: opening both, under locks, tells.
            if isinstance(error, apsw.NotADBError):
                raise FormatError(f"{probe.path.name} is not a SQLite database") from None
            raise _translated(error) from error

    def create(self, database_id: str, now: int) -> None:
        """Create the catalogue in an empty file; does nothing where it exists. The caller holds the write lock."""
        with storage_errors():
            connection = apsw.Connection(str(self.path))
            try:
                application, _ = _identity(connection)
                if application == APPLICATION_ID:
                    return
                if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() != (0,):
                    raise FormatError(f"{self.path.name} belongs to another application")
                # Both must be set before the first table exists.
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL").fetchall()
                connection.execute("PRAGMA journal_mode=WAL").fetchall()
                _configure(connection, self._durability, read_only=False)
                with connection:
                    connection.execute(_CATALOGUE)
                    connection.execute("INSERT INTO meta VALUES (1, ?, ?, 0, 0, 1, 0)", (database_id, now))
                    connection.execute(f"PRAGMA application_id={APPLICATION_ID}").fetchall()
                    connection.execute(f"PRAGMA user_version={FORMAT_VERSION}").fetchall()
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.close()

    # --- connections --------------------------------------------------------------------------------------------------

    @property
    def writer(self) -> apsw.Connection:
        """The one connection that writes; only the holder of the write lock touches it."""
        if self._writer is None:
            self._writer = self.connect()
            self._writer.set_wal_hook(self._note_log)
        return self._writer

    def _note_log(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self.log_pages = pages
        return apsw.SQLITE_OK

    def take_reader(self) -> apsw.Connection:
        """Return an idle reading connection, to be given back with `give_reader`."""
        if self._read_only and (mode := self._mode()) != self._pooled:
            # A writer came: what was immutable when it was opened is so no more.
            self.close()
            self._pooled = mode
        try:
            return self._readers.pop()
        except IndexError:
            return self.connect()

    def give_reader(self, connection: apsw.Connection) -> None:
        """Take back a connection, whatever state its caller left it in."""
        if self._generation != fork_generation():
            self._leaked.append(connection)  # In a forked child: it is the parent's.
            return
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if len(self._readers) < _IDLE_READERS:
            self._readers.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close every connection that is idle."""
        while self._readers:
            self._readers.pop().close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def leak(self) -> list[Any]:
        """Return what a forked child must keep alive: closing an inherited SQLite connection is not allowed."""
        kept: list[Any] = [*self._readers, self._writer]
        self._readers.clear()
        self._writer = None
        return kept

    def wal_bytes(self) -> int:
        """Return the size of the write-ahead log, without opening it."""
        try:
            return self.path.with_name(self.path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def checkpoint(self, *, truncate: bool) -> bool:
        """Copy the log into the database; True when all of it was. The caller holds the write lock.

        Unless truncated, the file keeps its length and is written anew from its start: an fsync of a file that does not grow
        costs half as much.
        """
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_RESTART
        writer = self.writer
        if writer.in_transaction:
            writer.execute("ROLLBACK")  # Left by a writer that was interrupted at the wrong moment.
        # A reader that still needs the log must not hold up the writers behind us.
        writer.set_busy_timeout(100)
        try:
            logged, moved = writer.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return False
        finally:
            writer.set_busy_timeout(_BUSY_MS)
        self.log_pages = 0
        return logged == moved

    # --- catalogue ----------------------------------------------------------------------------------------------------

    def load(self, connection: apsw.Connection) -> Catalogue:
        """Return the catalogue as this connection's snapshot sees it."""
        no = connection.execute("SELECT catalogue_no FROM meta").fetchone()[0]  # type: ignore[index]
        by_name = {}
        for table_id, name, dataset, definition in connection.execute(
            "SELECT id, name, dataset, definition FROM tables ORDER BY name"
        ):
            schema = TableSchema.from_json(definition)
            by_name[name] = TableEntry(table_id, name, dataset, schema, HotTable(table_id, schema))
        return Catalogue(no, by_name, {entry.id: entry for entry in by_name.values()})

    def create_table(self, connection: apsw.Connection, schema: TableSchema) -> None:
        """Enter a table into the catalogue."""
        connection.execute("UPDATE meta SET table_no = table_no + 1")
        table_id = connection.execute("SELECT table_no FROM meta").fetchone()[0]  # type: ignore[index]
        # A dataset's name is never used twice: a reader of an older snapshot may still have the first one open.
        used = connection.execute("SELECT 1 FROM datasets WHERE name = ?", (schema.name,)).fetchone()
        dataset = f"{schema.name}-{table_id}" if used else schema.name
        connection.execute("INSERT INTO datasets VALUES (?, ?, NULL)", (dataset, table_id))
        connection.execute(
            "INSERT INTO tables VALUES (?, ?, ?, ?, 0)", (table_id, schema.name, dataset, schema.to_json())
        )
        HotTable(table_id, schema).create(connection)
        _next_catalogue(connection)

    def drop_table(self, connection: apsw.Connection, entry: TableEntry, commit_no: int) -> None:
        """Take a table out of the catalogue; its dataset is removed when no reader can need it."""
        entry.hot.drop(connection)
        connection.execute("UPDATE datasets SET dropped_commit = ? WHERE name = ?", (commit_no, entry.dataset))
        for table in ("versions", "files", "batches"):
            connection.execute(f"DELETE FROM {table} WHERE table_id = ?", (entry.id,))
        connection.execute("DELETE FROM tables WHERE id = ?", (entry.id,))
        _next_catalogue(connection)

    def replace_definition(self, connection: apsw.Connection, entry: TableEntry, schema: TableSchema) -> None:
        """Store a table's new definition."""
        connection.execute("UPDATE tables SET definition = ? WHERE id = ?", (schema.to_json(), entry.id))
        hot = HotTable(entry.id, schema)
        hot.add_terms_table(connection)
        for name in set(schema.sql_columns) - set(entry.schema.sql_columns):
            connection.execute(f"ALTER TABLE {hot.rows} ADD COLUMN c_{name}")
        for name in schema.indexed:
            connection.execute(f"CREATE INDEX IF NOT EXISTS {hot.rows}_{name} ON {hot.rows}(c_{name})")
        _next_catalogue(connection)

    def version(self, connection: apsw.Connection, table_id: int) -> int:
        """Return the Lance version that a table's catalogue row points at; 0: nothing was flushed yet."""
        found = connection.execute("SELECT version FROM tables WHERE id = ?", (table_id,)).fetchone()
        if found is None:
            raise NotFoundError("the table was dropped")
        return int(found[0])

    def publish(
        self,
        connection: apsw.Connection,
        table_id: int,
        version: int,
        commit_no: int,
        new_files: dict[str, tuple[int, str]],
    ) -> None:
        """Point the catalogue at a version whose files are on the disk."""
        connection.execute("UPDATE tables SET version = ? WHERE id = ?", (version, table_id))
        connection.execute("INSERT INTO versions VALUES (?, ?, ?)", (table_id, version, commit_no))
        connection.executemany(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
            ((table_id, path, size, digest) for path, (size, digest) in new_files.items()),
        )

    def known_files(self, connection: apsw.Connection, table_id: int) -> dict[str, tuple[int, str]]:
        """Return path -> (size, digest) of every published file of a table."""
        rows = connection.execute("SELECT path, size, digest FROM files WHERE table_id = ?", (table_id,))
        return {path: (size, digest) for path, size, digest in rows}

    def versions(self, connection: apsw.Connection, table_id: int) -> list[tuple[int, int]]:
        """Return (version, commit that published it), oldest first."""
        rows = connection.execute(
            "SELECT version, commit_no FROM versions WHERE table_id = ? ORDER BY version", (table_id,)
        )
        return [(version, commit) for version, commit in rows]

    def forget_versions(
        self, connection: apsw.Connection, table_id: int, versions: Iterable[int], files: Iterable[str]
    ) -> None:
        """Strike versions and files off the catalogue after they were removed."""
        connection.executemany(
            "DELETE FROM versions WHERE table_id = ? AND version = ?", ((table_id, one) for one in versions)
        )
        connection.executemany("DELETE FROM files WHERE table_id = ? AND path = ?", ((table_id, one) for one in files))

    def vacuum(self, connection: apsw.Connection, pages: int) -> int:
        """Give free pages back to the file system, so many at most; return how many are left."""
        connection.execute(f"PRAGMA incremental_vacuum({int(pages)})").fetchall()
        return int(connection.execute("PRAGMA freelist_count").fetchone()[0])  # type: ignore[index]

    def free_pages(self, connection: apsw.Connection) -> int:
        """Return the number of free pages in the file."""
        return int(connection.execute("PRAGMA freelist_count").fetchone()[0])  # type: ignore[index]

    def add_batch(self, connection: apsw.Connection, table_id: int, batch: int, commit_no: int) -> None:
        """Record which commit the rows of a bulk write, whose ``_seq`` is ``-batch``, belong to."""
        connection.execute("INSERT INTO batches VALUES (?, ?, ?)", (table_id, batch, commit_no))

    def batch_commit(self, connection: apsw.Connection, table_id: int, batch: int) -> int:
        """Return the commit that the rows of a bulk write belong to."""
        found = connection.execute(
            "SELECT commit_no FROM batches WHERE table_id = ? AND batch = ?", (table_id, batch)
        ).fetchone()
        if found is None:
            raise IntegrityError("a row of the cold tier belongs to a bulk write that the catalogue does not know")
        return int(found[0])

    def dropped_datasets(self, connection: apsw.Connection, before_commit: int) -> list[str]:
        """Return datasets of tables dropped at or before a commit, whose files may still exist."""
        rows = connection.execute("SELECT name FROM datasets WHERE dropped_commit <= ?", (before_commit,))
        return [row[0] for row in rows]

    def dataset_of(self, connection: apsw.Connection, table_id: int) -> str | None:
        """Return the dataset of a table, dropped or not."""
        found = connection.execute("SELECT name FROM datasets WHERE table_id = ?", (table_id,)).fetchone()
        return None if found is None else str(found[0])

    # --- erasures -----------------------------------------------------------------------------------------------------

    def add_erasure(
        self, connection: apsw.Connection, erasure_id: str, entry: TableEntry, rows: int, commit_no: int, now: int
    ) -> None:
        """Record an erasure whose proof is still open."""
        connection.execute(
            "INSERT INTO erasures VALUES (?, ?, ?, ?, 0, ?, ?, NULL)",
            (erasure_id, entry.id, entry.name, rows, commit_no, now),
        )

    def purged(self, connection: apsw.Connection, table_id: int, version: int, commit_no: int) -> None:
        """Record that ``version`` is the first without the rows erased up to a commit."""
        connection.execute(
            "UPDATE erasures SET version = ? WHERE table_id = ? AND commit_no <= ? AND version = 0 "
            "AND completed_at IS NULL",
            (version, table_id, commit_no),
        )

    def open_erasures(self, connection: apsw.Connection) -> list[tuple[str, int, int, int]]:
        """Return (id, table id, first clean version or 0, commit) of erasures without proof."""
        rows = connection.execute(
            "SELECT id, table_id, version, commit_no FROM erasures WHERE completed_at IS NULL ORDER BY commit_no"
        )
        return list(rows)

    def complete_erasure(self, connection: apsw.Connection, erasure_id: str, now: int) -> None:
        """Record that nothing is left of an erasure's rows."""
        connection.execute("UPDATE erasures SET completed_at = ? WHERE id = ?", (now, erasure_id))

    def erasure(self, connection: apsw.Connection, erasure_id: str) -> tuple[Any, ...] | None:
        """Return (table name, rows, requested at, completed at)."""
        return connection.execute(
            "SELECT table_name, row_count, requested_at, completed_at FROM erasures WHERE id = ?", (erasure_id,)
        ).fetchone()


def _configure(connection: apsw.Connection, durability: str, *, read_only: bool) -> None:
    connection.set_busy_timeout(_BUSY_MS)
    # Checkpoints are ours: SQLite's own may run at any commit, or at close, outside the write lock.
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.wal_autocheckpoint(0)
    # A plan never depends on what is bound to it: SQLite would prepare most statements again for every new key.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    connection.execute("PRAGMA temp_store=MEMORY")
    if not read_only:
        connection.execute(f"PRAGMA synchronous={'FULL' if durability == 'full' else 'NORMAL'}")
        connection.execute("PRAGMA secure_delete=ON").fetchall()


def _identity(connection: apsw.Connection) -> tuple[int, int]:
    application = connection.execute("PRAGMA application_id").fetchone()
    version = connection.execute("PRAGMA user_version").fetchone()
    return int(application[0]), int(version[0])  # type: ignore[index]


def _next_catalogue(connection: apsw.Connection) -> None:
    connection.execute("UPDATE meta SET catalogue_no = catalogue_no + 1")


def microseconds(moment: datetime) -> int:
    """Return a time as the catalogue stores it."""
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond
