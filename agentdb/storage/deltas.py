"""Contents in numbered series, near-duplicates as deltas.

A *series* is what the rows of a table have in common that differ only in the last part of their key, a number. Full copies
are written first. When rows move to the cold tier, ``DeltaEncoder`` turns near-duplicates into deltas against a *key
frame*, an earlier row of the series stored in full that each delta names directly: reading a content takes at most two
reads. What keeps this sound:

- The content of a number never changes, and numbers are never used again, so a key frame's number is its content.
- Whoever removes a row that may be a key frame first writes its dependents in full, in the same transaction
  (``DeltaTable.detach``). That also writes the later rows that are still undecided: a flush that has just encoded them will
  find them changed and keep ours.
- Key frames up to a series' *barrier* may be gone though the cold tier still shows them; no new delta refers to them.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from agentdb.errors import IntegrityError, InvalidInputError
from agentdb.storage.payload import ZSTD_DELTA, Payload, compress, content_of, pack, unpack
from agentdb.storage.schema import TableSchema
from agentdb.types import Row

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = [
    "MAX_SPAN",
    "MIN_DELTA_BYTES",
    "TOUCHED",
    "Barriers",
    "DeltaEncoder",
    "DeltaTable",
    "FrameInfo",
    "KeyFrameCache",
]

MIN_DELTA_BYTES = 1024
"""Smaller contents stay full: a delta saves little there, and the cold tier compresses columns."""
MAX_SPAN = 256
"""A delta's key frame is less than this many numbers older: bounds what removing a key frame rewrites."""
TOUCHED = 0
"""In ``base`` of a hot row: the cold tier may hold this row as a key frame that others need; look before encoding."""
_KEY_LEVEL = 6
_DELTA_LEVEL = 3
_WINDOW_BYTES = 32 << 20
_WINDOW_ROWS = 1024
_CACHE_BYTES = 16 << 20
_DETACH_AT_ONCE = 32
_COLUMNS = (
    pa.field("size_bytes", pa.int64(), nullable=False),
    pa.field("checksum", pa.binary(), nullable=False),
    # Null: undecided or small. Its own number: a key frame. Another number: its key frame. 0: see TOUCHED.
    pa.field("base", pa.int64()),
    pa.field("data", pa.large_binary(), nullable=False),
)

Series = tuple[Any, ...]
"""The key of a row without its number."""
Barriers = Callable[[list[Series]], Sequence[int | None]]
"""Returns the barrier of each series as the caller's transaction sees it; None: the series is gone."""
_Key = tuple[Any, ...]
_Read = Callable[[list[Any]], list[Row | None]]


class FrameInfo(NamedTuple):
    """What deciding about rows needs to know of one."""

    number: int
    size_bytes: int
    base: int | None

    @property
    def is_undecided(self) -> bool:
        """Whether a flush has yet to say, or is about to say, how it is stored."""
        return self.size_bytes >= MIN_DELTA_BYTES and (self.base is None or self.base == TOUCHED)

    @property
    def may_be_key(self) -> bool:
        """Whether other rows may refer to it, now or when a running flush is done."""
        return self.is_undecided or self.base == self.number


class KeyFrameCache:
    """Contents of key frames by key, those used last, within a budget: most reads then are one."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._contents: OrderedDict[_Key, bytes] = OrderedDict()
        self._mutex = threading.Lock()

    def get(self, key: _Key) -> bytes | None:
        """Return a content, or None."""
        with self._mutex:
            content = self._contents.get(key)
            if content is not None:
                self._contents.move_to_end(key)
            return content

    def put(self, key: _Key, content: bytes) -> None:
        """Keep a content in the place of those not used for longest; a large one is not kept."""
        if len(content) > self._max_bytes // 4:
            return
        with self._mutex:
            self._bytes += len(content) - len(self._contents.pop(key, b""))
            self._contents[key] = content
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._contents.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget everything: what was erased must not stay in memory."""
        with self._mutex:
            self._contents.clear()
            self._bytes = 0


class _KeyFrame:
    """A key frame that deltas may be made against."""

    __slots__ = ("_compressor", "content", "number", "spent_bytes")

    def __init__(self, number: int, content: bytes, spent_bytes: int) -> None:
        self.number = number
        self.content = content
        self.spent_bytes = spent_bytes  # what it and the deltas against it take so far
        self._compressor: zstandard.ZstdCompressor | None = None

    def delta(self, number: int, content: bytes, full_bytes: int) -> bytes | None:
        """Return a delta's frame; None where a new key frame is the better choice."""
        distance = number - self.number
        if not 0 < distance < MAX_SPAN:
            return None
        if self._compressor is None:
            prefix = zstandard.ZstdCompressionDict(self.content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            prefix.precompute_compress(level=_DELTA_LEVEL)
            self._compressor = zstandard.ZstdCompressor(level=_DELTA_LEVEL, dict_data=prefix)
        body = self._compressor.compress(content)
        # Deltas grow with the distance. A key frame has served its time when the next delta takes more than a row took on
        # average since: from there on the average would rise.
        if 2 * len(body) > full_bytes or len(body) * distance > self.spent_bytes:
            return None
        self.spent_bytes += len(body)
        return pack(body, codec=ZSTD_DELTA, base=self.number)


class DeltaEncoder:
    """Turns rows into deltas and key frames on their way to the cold tier; called under that table's cold lock.

    Args:
        schema: of the table; see `DeltaTable`.
        barriers: see `DeltaTable`.
    """

    def __init__(self, schema: TableSchema, barriers: Barriers) -> None:
        *series, self._number = schema.key
        self._series = tuple(series)
        self._barriers = barriers

    def _key(self, row: Row) -> Series:
        return tuple(row[name] for name in self._series)

    def __call__(self, rows: pa.Table, read: _Read) -> pa.Table:
        """Return the same rows, in the same order, with ``data`` and ``base`` as the cold tier is to hold them.

        Args:
            rows: of the table, sorted by ``_key``.
            read: returns the cold tier's rows by key, or None.
        """
        large = pc.greater_equal(rows["size_bytes"], MIN_DELTA_BYTES)
        if not pc.any(large).as_py():
            return rows
        positions = pc.indices_nonzero(large).to_numpy()
        chosen = rows.select([*self._series, self._number, "size_bytes", "base", "data"]).take(positions)
        bases: list[int | None] = []
        frames: list[bytes] = []
        for window in _windows(chosen):
            encoded = self._encode(window, read)
            bases.extend(base for base, _ in encoded)
            frames.extend(frame for _, frame in encoded)
        mask = large.combine_chunks() if isinstance(large, pa.ChunkedArray) else large
        for name, values in (("base", pa.array(bases, pa.int64())), ("data", pa.array(frames, pa.large_binary()))):
            at = rows.schema.get_field_index(name)
            column = rows.column(at).combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                column = pa.concat_arrays(column.chunks)
            replaced = pc.replace_with_mask(column, mask, values.cast(column.type))
            rows = rows.set_column(at, rows.schema.field(at), replaced)
        return rows

    def _encode(self, rows: list[Row], read: _Read) -> list[tuple[int | None, bytes]]:
        keys = self._available(rows, read)
        held = self._held(rows, read)
        encoded: list[tuple[int | None, bytes]] = []
        current: _KeyFrame | None = None
        series: Series | None = None
        for row in rows:
            name = self._key(row)
            if name != series:
                series, current = name, keys.get(name)
            number, blob = row[self._number], row["data"]
            frame = unpack(blob)
            if frame.codec is ZSTD_DELTA:
                encoded.append((frame.base, blob))
                continue
            content = content_of(frame)
            if row["base"] == number:
                current = _KeyFrame(number, content, len(blob))
                encoded.append((number, blob))
                continue
            if current is not None and (*name, number) not in held:
                delta = current.delta(number, content, len(frame.body))
                if delta is not None:
                    encoded.append((current.number, delta))
                    continue
            blob = compress(content, level=_KEY_LEVEL)
            current = _KeyFrame(number, content, len(blob))
            encoded.append((number, blob))
        return encoded

    def _available(self, rows: list[Row], read: _Read) -> dict[Series, _KeyFrame]:
        """Return the key frame in the cold tier that each series' first row may refer to."""
        firsts: dict[Series, int] = {}
        for row in rows:
            firsts.setdefault(self._key(row), row[self._number])
        # The row before names its key frame, or is one.
        before: list[_Key] = [(*name, number - 1) for name, number in firsts.items() if number > 1]
        candidates: dict[Series, Row] = {}
        named: dict[Series, int] = {}
        deltas: dict[Series, int] = {}
        for key, found in zip(before, read(before) if before else [], strict=True):
            if found is not None and found["base"]:
                named[key[:-1]] = found["base"]
                candidates[key[:-1]] = found
                deltas[key[:-1]] = len(found["data"]) if found["base"] != key[-1] else 0
        if not named:
            return {}
        for name, barrier in zip(list(named), self._barriers(list(named)), strict=True):
            if barrier is None or named[name] <= barrier:
                del named[name]
        missing: list[_Key] = [
            (*name, number) for name, number in named.items() if candidates[name][self._number] != number
        ]
        for key, found in zip(missing, read(missing) if missing else [], strict=True):
            if found is None:
                del named[key[:-1]]
            else:
                candidates[key[:-1]] = found
        available: dict[Series, _KeyFrame] = {}
        for name, number in named.items():
            frame = unpack(candidates[name]["data"])
            if candidates[name]["base"] == number and frame.codec is not ZSTD_DELTA:
                # The deltas in between are not read: taken to have grown evenly up to the last one.
                between = deltas[name] * (firsts[name] - number) // 2
                available[name] = _KeyFrame(number, content_of(frame), len(frame.body) + between)
        return available

    def _held(self, rows: list[Row], read: _Read) -> set[_Key]:
        """Return which touched rows the cold tier holds as key frames: they must stay what others refer to."""
        touched = [(*self._key(row), row[self._number]) for row in rows if row["base"] == TOUCHED]
        return {
            key
            for key, row in zip(touched, read(touched) if touched else [], strict=True)
            if row is not None and row["base"] == row[self._number]
        }


def _windows(rows: pa.Table) -> Iterator[list[Row]]:
    """Yield the rows in lists of bounded size that never split a series' rows without need."""
    sizes = rows["size_bytes"].to_pylist()
    start = 0
    while start < len(sizes):
        end, total = start, 0
        while end < len(sizes) and (end == start or (total < _WINDOW_BYTES and end - start < _WINDOW_ROWS)):
            total += sizes[end]
            end += 1
        yield rows.slice(start, end - start).to_pylist()
        start = end


class DeltaTable:
    """A table whose rows carry a content each, verified when it is read and stored as a delta once near-duplicates are cold.

    For whatever grows by little from number to number: versions of a state, values of a channel. Rows are written and removed
    through ``table`` like any other, inside transactions of the caller.

    Args:
        db: the database.
        schema: its key ends in an integer column, the number within the series that the other key columns name; it has the
            columns of `columns`. Numbers begin at 1 and rise, but need not be dense; none is ever used twice, not even after
            its row, or the whole series, was removed.
        barriers: returns, for each series, the highest number that was removed though it ``may_be_key`` (see `FrameInfo`), 0
            where there is none; None for a series that is gone.

    Attributes:
        table: the table itself.
        encoder: what the database runs when rows move to the cold tier. A process that opens the database without making this
            object moves them uncompressed against each other, which costs space and nothing else.

    Raises:
        InvalidInputError: the schema does not fit, or the table exists with another one.
    """

    def __init__(self, db: Engine, schema: TableSchema, barriers: Barriers) -> None:
        _check_schema(schema)
        *self._series, self._number = schema.key
        self.table = db.table(schema)
        self.encoder = DeltaEncoder(schema, barriers)
        self._key_frames = KeyFrameCache(_CACHE_BYTES)
        db.set_cold_encoder(schema.name, self.encoder)

    def __repr__(self) -> str:
        return f"DeltaTable({self.table.name!r})"

    @staticmethod
    def columns() -> list[pa.Field]:
        """Return the columns that every such table has: ``size_bytes``, ``checksum``, ``base`` and ``data``."""
        return list(_COLUMNS)

    @staticmethod
    def cells(content: bytes) -> Row:
        """Return the values of these columns for a content; it can be made outside a transaction."""
        return {
            "size_bytes": len(content),
            "checksum": blake2b(content, digest_size=16).digest(),
            "base": None,
            "data": compress(content),
        }

    def _frame_key(self, row: Row, number: int) -> _Key:
        return (*(row[name] for name in self._series), number)

    def content(self, row: Row) -> bytes | None:
        """Return the content of a row; None when its key frame has gone since the row was read.

        Raises:
            IntegrityError: it does not match its checksum.
        """
        frame = unpack(row["data"])
        if frame.codec is not ZSTD_DELTA:
            return self._verified(row, frame, None)
        key = self._frame_key(row, frame.base)
        base = self._key_frames.get(key)
        if base is not None:
            # A number that was rolled back may have been given again: then the cache knows another content by it.
            with contextlib.suppress(IntegrityError):
                return self._verified(row, frame, base)
        key_row = self.table.get(key)
        if key_row is None:
            return None
        base = self._key_content(key_row)
        content = self._verified(row, frame, base)
        self._key_frames.put(key, base)
        return content

    def contents(self, rows: Sequence[Row | None]) -> list[bytes]:
        """Return the contents of rows, with one read for all their key frames; b"" for None. Call it inside a snapshot.

        Raises:
            IntegrityError: one does not match its checksum, or its key frame is missing.
        """
        frames = [None if row is None else unpack(row["data"]) for row in rows]
        pairs = list(zip(rows, frames, strict=True))
        known: dict[_Key, bytes] = {}
        for row, frame in pairs:
            if row is not None and frame is not None and frame.codec is ZSTD_DELTA:
                name = self._frame_key(row, frame.base)
                content = self._key_frames.get(name)
                if content is not None:
                    known[name] = content
        if known:
            # A number that was rolled back may have been given again: then the cache knows another content by it.
            with contextlib.suppress(IntegrityError):
                return self._decoded(pairs, known)
        return self._decoded(pairs, {})

    def _decoded(self, pairs: Sequence[tuple[Row | None, Payload | None]], bases: dict[_Key, bytes]) -> list[bytes]:
        """Return the contents, given some of the key frames' contents; the others are read."""
        names = [
            self._frame_key(row, frame.base)
            for row, frame in pairs
            if row is not None and frame is not None and frame.codec is ZSTD_DELTA
        ]
        names = [name for name in dict.fromkeys(names) if name not in bases]
        for name, key_row in zip(names, self.table.get_many(names) if names else [], strict=True):
            if key_row is None:
                raise IntegrityError(f"{self._where(name[-1])} is missing, and others refer to it")
            bases[name] = self._key_content(key_row)
            self._key_frames.put(name, bases[name])
        return [
            b""
            if row is None or frame is None
            else self._verified(row, frame, bases.get(self._frame_key(row, frame.base)))
            for row, frame in pairs
        ]

    def _where(self, number: object) -> str:
        return f"number {number} of a series in table {self.table.name}"

    def _verified(self, row: Row, frame: Payload, base: bytes | None) -> bytes:
        content = content_of(frame, base)
        if blake2b(content, digest_size=16).digest() != row["checksum"]:
            raise IntegrityError(f"the content of {self._where(row[self._number])} does not match its checksum")
        return content

    def _key_content(self, row: Row) -> bytes:
        frame = unpack(row["data"])
        if frame.codec is ZSTD_DELTA:
            raise IntegrityError(f"{self._where(row[self._number])} is a delta, but others refer to it")
        return content_of(frame)

    def detach(self, series: Series, lost: Iterable[int], left: Sequence[FrameInfo]) -> None:
        """Write in full every row that refers, or is about to refer, to a row that goes; inside a transaction.

        Args:
            series: which.
            lost: the numbers that go; those that cannot be a key frame may be left out.
            left: all rows of the series that stay.
        """
        lost = set(lost)
        if not lost:
            return
        dependents = [
            one.number
            for one in left
            if one.base in lost
            or (one.is_undecided and any(one.number - MAX_SPAN < gone < one.number for gone in lost))
        ]
        for start in range(0, len(dependents), _DETACH_AT_ONCE):
            rows = self.table.get_many([(*series, number) for number in dependents[start : start + _DETACH_AT_ONCE]])
            for row, content in zip(rows, self.contents(rows), strict=True):
                if row is not None:
                    self.table.put({**row, "data": compress(content), "base": TOUCHED})

    def moved(self, row: Row, series: Mapping[str, Any], shift: int) -> Row:
        """Return a row for another series with the same content, its number and its key frame's shifted alike.

        The whole series, or at least the key frames of what is taken over, must be moved by the same distance.
        """
        frame = unpack(row["data"])
        base, data = row["base"], row["data"]
        if frame.codec is ZSTD_DELTA:
            data = pack(frame.body, codec=ZSTD_DELTA, key_id=frame.key_id, base=frame.base + shift)
        if base is not None and base != TOUCHED:
            base += shift
        return {**row, **series, self._number: row[self._number] + shift, "base": base, "data": data}

    def forget(self) -> None:
        """Drop cached contents: what was erased must not stay in memory."""
        self._key_frames.clear()


def _check_schema(schema: TableSchema) -> None:
    number = schema.column(schema.key[-1])
    if len(schema.key) < 2 or number.type_name != "int64":
        raise InvalidInputError(f"table {schema.name}: the key of a DeltaTable ends in an int64 column")
    for field in _COLUMNS:
        if schema.column(field.name).type != field.type:
            raise InvalidInputError(f"table {schema.name}: column {field.name} of a DeltaTable must be {field.type}")
