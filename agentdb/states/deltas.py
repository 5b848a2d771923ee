"""Near-duplicate versions as deltas.

Full copies are written first. When rows move to the cold tier, ``DeltaEncoder`` turns near-duplicates into deltas against
a *key frame*, an earlier version stored in full that each delta names directly: loading a version takes at most two reads.
What keeps this sound:

- The content of a version never changes, and numbers are never used again, so a key frame's number is its content.
- Whoever removes a version that may be a key frame first writes its dependents in full, in the same transaction. It also
  writes the later rows that are still undecided: a flush that has just encoded them will find them changed and keep ours.
- Key frames up to a head's ``barrier`` may be gone though the cold tier still shows them; no new delta refers to them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from agentdb.states.versions import StateKey
from agentdb.storage.payload import ZSTD_DELTA, compress, content_of, pack, unpack
from agentdb.types import Row

__all__ = ["MAX_SPAN", "MIN_DELTA_BYTES", "TOUCHED", "DeltaEncoder", "KeyFrameCache", "VersionInfo"]

MIN_DELTA_BYTES = 1024
"""Smaller contents stay full: a delta saves little there, and the cold tier compresses columns."""
MAX_SPAN = 256
"""A delta's key frame is less than this many versions older: bounds what removing a key frame rewrites."""
TOUCHED = 0
"""In ``base`` of a hot row: the cold tier may hold this version as a key frame that others need; look before encoding."""
_KEY_LEVEL = 6
_DELTA_LEVEL = 3
_WINDOW_BYTES = 32 << 20
_WINDOW_STATES = 1024

_VersionKey = tuple[str, str, str, int]
_Read = Callable[[list[Any]], list[Row | None]]


class VersionInfo(NamedTuple):
    """What deciding about versions needs to know of one."""

    version: int
    created_at: datetime
    size_bytes: int
    base: int | None

    @property
    def is_undecided(self) -> bool:
        """Whether a flush has yet to say, or is about to say, how it is stored."""
        return self.size_bytes >= MIN_DELTA_BYTES and (self.base is None or self.base == TOUCHED)

    @property
    def may_be_key(self) -> bool:
        """Whether other versions may refer to it, now or when a running flush is done."""
        return self.is_undecided or self.base == self.version


class KeyFrameCache:
    """Contents of key frames by version, those used last, within a budget: most loads then take one read."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._contents: OrderedDict[_VersionKey, bytes] = OrderedDict()
        self._mutex = threading.Lock()

    def get(self, key: _VersionKey) -> bytes | None:
        """Return a content, or None."""
        with self._mutex:
            content = self._contents.get(key)
            if content is not None:
                self._contents.move_to_end(key)
            return content

    def put(self, key: _VersionKey, content: bytes) -> None:
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

    __slots__ = ("_compressor", "content", "spent_bytes", "version")

    def __init__(self, version: int, content: bytes, spent_bytes: int) -> None:
        self.version = version
        self.content = content
        self.spent_bytes = spent_bytes  # what it and the deltas against it take so far
        self._compressor: zstandard.ZstdCompressor | None = None

    def delta(self, version: int, content: bytes, full_bytes: int) -> bytes | None:
        """Return a delta's frame; None where a new key frame is the better choice."""
        distance = version - self.version
        if not 0 < distance < MAX_SPAN:
            return None
        if self._compressor is None:
            prefix = zstandard.ZstdCompressionDict(self.content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            prefix.precompute_compress(level=_DELTA_LEVEL)
            self._compressor = zstandard.ZstdCompressor(level=_DELTA_LEVEL, dict_data=prefix)
        body = self._compressor.compress(content)
        # Deltas grow with the distance. A key frame has served its time when the next delta takes more than a version took
        # on average since: from there on the average would rise.
        if 2 * len(body) > full_bytes or len(body) * distance > self.spent_bytes:
            return None
        self.spent_bytes += len(body)
        return pack(body, codec=ZSTD_DELTA, base=self.version)


class DeltaEncoder:
    """Turns rows into deltas and key frames on their way to the cold tier; called under that table's cold lock.

    Args:
        heads: reads heads by state, as the caller's transaction sees them.
    """

    def __init__(self, heads: _Read) -> None:
        self._heads = heads

    def __call__(self, rows: pa.Table, read: _Read) -> pa.Table:
        """Return the same rows, in the same order, with ``data`` and ``base`` as the cold tier is to hold them.

        Args:
            rows: of the table ``_states``, sorted by ``_key``.
            read: returns the cold tier's rows by key, or None.
        """
        large = pc.greater_equal(rows["size_bytes"], MIN_DELTA_BYTES)
        if not pc.any(large).as_py():
            return rows
        positions = pc.indices_nonzero(large).to_numpy()
        chosen = rows.select(["agent_id", "session_id", "state_type", "version", "size_bytes", "base", "data"]).take(
            positions
        )
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
        state: StateKey | None = None
        for row in rows:
            name = (row["agent_id"], row["session_id"], row["state_type"])
            if name != state:
                state, current = name, keys.get(name)
            version, blob = row["version"], row["data"]
            frame = unpack(blob)
            if frame.codec is ZSTD_DELTA:
                encoded.append((frame.base, blob))
                continue
            content = content_of(frame)
            if row["base"] == version:
                current = _KeyFrame(version, content, len(blob))
                encoded.append((version, blob))
                continue
            if current is not None and (*name, version) not in held:
                delta = current.delta(version, content, len(frame.body))
                if delta is not None:
                    encoded.append((current.version, delta))
                    continue
            blob = compress(content, level=_KEY_LEVEL)
            current = _KeyFrame(version, content, len(blob))
            encoded.append((version, blob))
        return encoded

    def _available(self, rows: list[Row], read: _Read) -> dict[StateKey, _KeyFrame]:
        """Return the key frame in the cold tier that each state's first row may refer to."""
        firsts: dict[StateKey, int] = {}
        for row in rows:
            firsts.setdefault((row["agent_id"], row["session_id"], row["state_type"]), row["version"])
        # The version before names its key frame, or is one.
        before: list[_VersionKey] = [(*name, version - 1) for name, version in firsts.items() if version > 1]
        candidates: dict[StateKey, Row] = {}
        named: dict[StateKey, int] = {}
        deltas: dict[StateKey, int] = {}
        for key, found in zip(before, read(before) if before else [], strict=True):
            if found is not None and found["base"]:
                named[key[:3]] = found["base"]
                candidates[key[:3]] = found
                deltas[key[:3]] = len(found["data"]) if found["base"] != key[3] else 0
        if not named:
            return {}
        for name, head in zip(list(named), self._heads(list(named)), strict=True):
            if head is None or named[name] <= head["barrier"]:
                del named[name]
        missing: list[_VersionKey] = [
            (*name, version) for name, version in named.items() if candidates[name]["version"] != version
        ]
        for key, found in zip(missing, read(missing) if missing else [], strict=True):
            if found is None:
                del named[key[:3]]
            else:
                candidates[key[:3]] = found
        available: dict[StateKey, _KeyFrame] = {}
        for name, version in named.items():
            frame = unpack(candidates[name]["data"])
            if candidates[name]["base"] == version and frame.codec is not ZSTD_DELTA:
                # The deltas in between are not read: taken to have grown evenly up to the last one.
                between = deltas[name] * (firsts[name] - version) // 2
                available[name] = _KeyFrame(version, content_of(frame), len(frame.body) + between)
        return available

    @staticmethod
    def _held(rows: list[Row], read: _Read) -> set[_VersionKey]:
        """Return which touched rows the cold tier holds as key frames: they must stay what others refer to."""
        touched = [
            (row["agent_id"], row["session_id"], row["state_type"], row["version"])
            for row in rows
            if row["base"] == TOUCHED
        ]
        return {
            key
            for key, row in zip(touched, read(touched) if touched else [], strict=True)
            if row is not None and row["base"] == row["version"]
        }


def _windows(rows: pa.Table) -> Iterator[list[Row]]:
    """Yield the rows in lists of bounded size that never split a state's rows without need."""
    sizes = rows["size_bytes"].to_pylist()
    start = 0
    while start < len(sizes):
        end, total = start, 0
        while end < len(sizes) and (end == start or (total < _WINDOW_BYTES and end - start < _WINDOW_STATES)):
            total += sizes[end]
            end += 1
        yield rows.slice(start, end - start).to_pylist()
        start = end
