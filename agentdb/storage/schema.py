"""What a table holds: typed Arrow columns, a key, indexed columns, vectors and JSON of any shape.

Every value has three forms. *Python*: what callers pass and get. *Physical*: a plain ``str``, ``int``, ``float``, ``bool``,
``bytes`` or list, which msgpack and SQLite hold exactly (a timestamp is its microseconds, a vector its bytes, JSON its
canonical text). *Arrow*: what the cold tier holds. Conversions live here and nowhere else.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from agentdb.errors import FormatError, InvalidInputError
from agentdb.filters import decode_json, derive_terms, encode_json, parse_json
from agentdb.types import Key, Row

__all__ = ["Column", "ColumnKind", "TableSchema", "after_prefix", "encode_key_part"]

ColumnKind = Literal[
    "string", "bool", "int", "uint64", "float", "binary", "timestamp", "date", "list", "vector", "json"
]

SEPARATOR = "\x01"
ESCAPE = "\x02"
MAX_KEY_CHARS = 4096
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_ZERO = date(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_U64_OFFSET = 1 << 63
_DAYS = ((date.min - _DAY_ZERO).days, (date.max - _DAY_ZERO).days)
_MOMENTS = (_DAYS[0] * 86_400_000_000, (_DAYS[1] + 1) * 86_400_000_000 - 1)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}\Z")
_COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}\Z")
_KEY_KINDS = frozenset({"string", "bool", "int", "uint64", "timestamp", "date", "binary"})
_SCALARS: dict[str, pa.DataType] = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
}
_SCALAR_NAMES = {str(value): name for name, value in _SCALARS.items()}


def _type_name(arrow: pa.DataType, where: str) -> str:
    if str(arrow) in _SCALAR_NAMES:
        return _SCALAR_NAMES[str(arrow)]
    if isinstance(arrow, pa.JsonType):
        return "json"
    if pa.types.is_fixed_size_list(arrow) and arrow.list_size > 0 and str(arrow.value_type) in ("float", "halffloat"):
        return f"vector<{'float32' if pa.types.is_float32(arrow.value_type) else 'float16'},{arrow.list_size}>"
    if pa.types.is_list(arrow) and str(arrow.value_type) in _SCALAR_NAMES:
        return f"list<{_SCALAR_NAMES[str(arrow.value_type)]}>"
    raise InvalidInputError(
        f"{where}: type {arrow} is not supported; allowed are {', '.join(_SCALARS)} (timestamp in microseconds, UTC), "
        "lists of these, fixed-size lists of float16 or float32, and pyarrow.json_()"
    )


def _type_from_name(name: str) -> pa.DataType:
    if name in _SCALARS:
        return _SCALARS[name]
    if name == "json":
        return pa.json_(pa.string())
    if found := re.fullmatch(r"vector<(float16|float32),(\d+)>", name):
        return pa.list_(pa.float16() if found[1] == "float16" else pa.float32(), int(found[2]))
    if found := re.fullmatch(r"list<(\w+)>", name):
        return pa.list_(_SCALARS[found[1]])
    raise FormatError(f"unknown column type {name!r}")


def _kind_of(type_name: str) -> ColumnKind:
    base = type_name.partition("<")[0]
    simple: dict[str, ColumnKind] = {
        "string": "string",
        "large_string": "string",
        "bool": "bool",
        "uint64": "uint64",
        "float32": "float",
        "float64": "float",
        "binary": "binary",
        "large_binary": "binary",
        "timestamp": "timestamp",
        "date": "date",
        "list": "list",
        "vector": "vector",
        "json": "json",
    }
    return simple.get(base, "int")


def _reject(where: str, value: object, wanted: str) -> InvalidInputError:
    return InvalidInputError(f"{where} must be {wanted}, not {type(value).__name__}")


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _reject(where, value, "a str")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInputError(f"{where} holds a lone surrogate, which UTF-8 cannot store") from None
    return value


def _integer(low: int, high: int, offset: int = 0) -> Callable[[str, Any], int]:
    def convert(where: str, value: Any) -> int:
        if isinstance(value, np.integer):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _reject(where, value, "an int")
        if not low <= value <= high:
            raise InvalidInputError(f"{where} must lie between {low} and {high}")
        return int(value) - offset

    return convert


def _floating(*, single: bool) -> Callable[[str, Any], float]:
    def convert(where: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
            raise _reject(where, value, "a number")
        try:
            number = float(value)
            if single:
                # What the cold tier will hold: both tiers must compare alike.
                number = struct.unpack("<f", struct.pack("<f", number))[0]
        except OverflowError:
            raise InvalidInputError(f"{where} is out of range") from None
        if math.isnan(number):
            raise InvalidInputError(f"{where} is NaN; use null for a missing number")
        return number

    return convert


def _boolean(where: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _reject(where, value, "a bool")
    return bool(value)


def _binary(where: str, value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise _reject(where, value, "bytes")
    return bytes(value)


def _timestamp(where: str, value: Any) -> int:
    if not isinstance(value, datetime):
        raise _reject(where, value, "a datetime")
    if value.tzinfo is None:
        raise InvalidInputError(f"{where} must be an aware datetime (with a time zone)")
    return (value - _EPOCH) // _MICROSECOND


def _date(where: str, value: Any) -> int:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise _reject(where, value, "a date")
    return (value - _DAY_ZERO).days


def _vector(dimension: int, dtype: np.dtype[Any]) -> Callable[[str, Any], bytes]:
    def convert(where: str, value: Any) -> bytes:
        try:
            # A value beyond float16 becomes infinite and is refused below.
            with np.errstate(over="ignore"):
                array = np.asarray(value, dtype=dtype)
        except (TypeError, ValueError):
            raise _reject(where, value, f"{dimension} numbers") from None
        if array.shape != (dimension,):
            raise InvalidInputError(f"{where} must have shape ({dimension},), not {array.shape}")
        if not np.isfinite(array).all():
            raise InvalidInputError(f"{where} holds NaN or infinity")
        return array.tobytes()

    return convert


def _list_of(item: Callable[[str, Any], Any]) -> Callable[[str, Any], list[Any]]:
    def convert(where: str, value: Any) -> list[Any]:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise _reject(where, value, "a list")
        return [None if one is None else item(f"{where}[{i}]", one) for i, one in enumerate(value)]

    return convert


def _converter(type_name: str) -> Callable[[str, Any], Any]:
    if found := re.fullmatch(r"(u?)int(8|16|32|64)", type_name):
        bits = int(found[2])
        if found[1]:
            return _integer(0, (1 << bits) - 1, _U64_OFFSET if bits == 64 else 0)
        return _integer(-(1 << bits - 1), (1 << bits - 1) - 1)
    if found := re.fullmatch(r"vector<(float16|float32),(\d+)>", type_name):
        return _vector(int(found[2]), np.dtype(found[1]))
    if found := re.fullmatch(r"list<(\w+)>", type_name):
        return _list_of(_converter(found[1]))
    simple: dict[str, Callable[[str, Any], Any]] = {
        "string": _string,
        "large_string": _string,
        "bool": _boolean,
        "float32": _floating(single=True),
        "float64": _floating(single=False),
        "binary": _binary,
        "large_binary": _binary,
        "timestamp": _timestamp,
        "date": _date,
    }
    return simple[type_name]


def _to_python(kind: ColumnKind, value: Any) -> Any:
    match kind:
        case "timestamp":
            return _EPOCH + timedelta(microseconds=value)
        case "date":
            return _DAY_ZERO + timedelta(days=value)
        case "uint64":
            return value + _U64_OFFSET
        case "json":
            return decode_json(value)
        case _:
            return value


@dataclass(frozen=True)
class Column:
    """One column of a table, with its conversions."""

    name: str
    type_name: str
    nullable: bool = True

    @cached_property
    def type(self) -> pa.DataType:
        """The Arrow type that callers see."""
        return _type_from_name(self.type_name)

    @cached_property
    def kind(self) -> ColumnKind:
        """What the column holds, without its width."""
        return _kind_of(self.type_name)

    @cached_property
    def is_plain(self) -> bool:
        """Whether the Python form of a value is its physical form."""
        return self.kind in ("string", "int", "float", "bool", "binary")

    @cached_property
    def item_kind(self) -> ColumnKind | None:
        """The kind of a list's items."""
        return _kind_of(self.type_name[5:-1]) if self.kind == "list" else None

    @cached_property
    def cold_type(self) -> pa.DataType:
        """The Arrow type in the cold tier: JSON is plain text there."""
        return pa.string() if self.kind == "json" else self.type

    @cached_property
    def dimension(self) -> int:
        """The number of components of a vector column."""
        return int(self.type.list_size)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The component type of a vector column."""
        return np.dtype(self.type_name[7:].partition(",")[0])

    @cached_property
    def _convert(self) -> Callable[[str, Any], Any]:
        return _converter(self.type_name) if self.kind != "json" else self._json

    @staticmethod
    def _json(where: str, value: Any) -> str | None:
        text = encode_json(value, path=where)
        return None if text == "null" else text

    def to_physical(self, value: Any) -> Any:
        """Return the physical form of a Python value.

        Raises:
            InvalidInputError: wrong type, out of range, or null in a column that is not nullable.
        """
        if value is None:
            if not self.nullable:
                raise InvalidInputError(f"column {self.name} must not be null")
            return None
        return self._convert(self.name, value)

    def to_python(self, value: Any) -> Any:
        """Return the Python form of a physical value."""
        if value is None or self.is_plain:
            return value
        if self.kind == "vector":
            return np.frombuffer(value, dtype=self.dtype)
        if self.kind == "list":
            return [None if one is None else _to_python(self.item_kind, one) for one in value]  # type: ignore[arg-type]
        return _to_python(self.kind, value)

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:
        """Return physical values as an array of the cold type."""
        if self.kind == "vector":
            return self._vectors_to_arrow(values)
        if self.kind == "uint64":
            values = [None if one is None else one + _U64_OFFSET for one in values]
        elif self.item_kind == "uint64":
            values = [None if one is None else [None if x is None else x + _U64_OFFSET for x in one] for one in values]
        return pa.array(values, self.cold_type)

    def _vectors_to_arrow(self, values: Sequence[bytes | None]) -> pa.Array:
        mask = pa.array([one is None for one in values]) if None in values else None
        zero = bytes(self.dimension * self.dtype.itemsize) if mask is not None else b""
        flat = np.frombuffer(b"".join(zero if one is None else one for one in values), self.dtype)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, self.type.value_type), type=self.type, mask=mask)

    def from_arrow(self, array: pa.Array | pa.ChunkedArray) -> list[Any]:
        """Return an array of the cold type as physical values."""
        if isinstance(array, pa.ChunkedArray):
            array = _whole(array)
        if self.kind == "vector":
            missing = array.is_null().to_pylist() if array.null_count else None
            flat = self.vector_matrix(array)
            return [None if missing and missing[i] else flat[i].tobytes() for i in range(len(array))]
        if self.kind == "timestamp":
            return list(array.cast(pa.int64()).to_pylist())
        if self.kind == "date":
            return list(array.cast(pa.int32()).to_pylist())
        values = list(array.to_pylist())
        if self.kind == "uint64":
            return [None if one is None else one - _U64_OFFSET for one in values]
        if self.item_kind in ("uint64", "timestamp", "date"):
            return [None if one is None else self._convert(self.name, one) for one in values]
        return values

    def vector_matrix(self, array: pa.Array) -> np.ndarray[Any, Any]:
        """Return a vector column as `[N, D]` without a copy; a null row holds arbitrary values."""
        start = array.offset * self.dimension
        flat = array.values.slice(start, len(array) * self.dimension).to_numpy(zero_copy_only=False)
        return np.asarray(flat).reshape(len(array), self.dimension)

    def from_user_arrow(self, array: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Return a caller's array cast and checked to the cold type.

        Raises:
            InvalidInputError: it cannot be cast without loss, holds nulls, NaN or invalid JSON where not allowed.
        """
        if isinstance(array, pa.ChunkedArray):
            array = _whole(array)
        if not self.nullable and array.null_count:
            raise InvalidInputError(f"column {self.name} must not be null")
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        if self.kind == "timestamp" and pa.types.is_timestamp(array.type) and array.type.tz is None:
            raise InvalidInputError(f"column {self.name} must have a time zone")
        if self.kind == "json" and not pa.types.is_string(array.type) and not pa.types.is_large_string(array.type):
            return pa.array([self.to_physical(one) for one in array.to_pylist()], pa.string())
        if array.type != self.cold_type:
            try:
                array = array.cast(self.cold_type)
            except pa.ArrowException:
                raise InvalidInputError(
                    f"column {self.name} must be castable to {self.type} without loss, not {array.type}"
                ) from None
        if self.kind == "json" and array.null_count < len(array):
            texts = [
                None if one is None else self.to_physical(parse_json(one, path=self.name)) for one in array.to_pylist()
            ]
            return pa.array(texts, pa.string())
        if self.kind == "vector":
            self._check_finite(array.flatten())  # of this slice, and without null rows
        else:
            self._check_scalars(array)
        return array

    def _check_scalars(self, array: pa.Array) -> None:
        """Refuse what Arrow can hold and a row cannot: NaN, and times that Python has no name for."""
        kind = self.item_kind or self.kind
        if kind not in ("float", "timestamp", "date"):
            return
        values = array.flatten() if self.kind == "list" else array
        if kind == "float":
            if pc.any(pc.is_nan(values)).as_py():
                raise InvalidInputError(f"column {self.name} holds NaN; use null for a missing number")
            return
        low, high = _MOMENTS if kind == "timestamp" else _DAYS
        ends = pc.min_max(values.cast(pa.int64()) if kind == "timestamp" else values.cast(pa.int32())).as_py()
        if ends["min"] is not None and not (low <= ends["min"] and ends["max"] <= high):
            raise InvalidInputError(f"column {self.name} must lie between the years 1 and 9999")

    def _check_finite(self, flat: pa.Array) -> None:
        if flat.null_count:
            raise InvalidInputError(f"column {self.name} holds a vector with a null component")
        values = flat.to_numpy(zero_copy_only=False)
        # NaN and infinity survive a sum, so one cheap pass clears nearly every batch; a sum may overflow by itself.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(values.sum(dtype=np.float32))
        if suspicious and not np.isfinite(values).all():
            raise InvalidInputError(f"column {self.name} holds NaN or infinity")


def encode_key_part(column: Column, physical: Any) -> str:
    """Return the order-preserving text of one key value."""
    match column.kind:
        case "string":
            return _escape(physical)
        case "binary":
            return str(physical.hex())
        case "bool":
            return "1" if physical else "0"
        case _:
            return f"{physical + _U64_OFFSET:016x}"


_ESCAPES = str.maketrans({chr(i): ESCAPE + chr(i + 0x10) for i in range(3)})
_NEEDS_ESCAPE = re.compile("[\x00-\x02]")
_ESCAPED = re.compile(ESCAPE + "(.)")


def _escape(text: str) -> str:
    return text if text.isprintable() or not _NEEDS_ESCAPE.search(text) else text.translate(_ESCAPES)


def _decode_key_part(column: Column, text: str) -> Any:
    match column.kind:
        case "string":
            return _ESCAPED.sub(lambda found: chr(ord(found[1]) - 0x10), text) if ESCAPE in text else text
        case "binary":
            return bytes.fromhex(text)
        case "bool":
            return text == "1"
        case _:
            return int(text, 16) - _U64_OFFSET


def after_prefix(prefix: str) -> str:
    """Return the least key text above every key that continues ``prefix`` (which ends in a separator)."""
    return prefix[:-1] + ESCAPE


_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def _hex_array(values: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    """Return `[N]` int64 as 16 hex digits each, in numeric order."""
    raw = (values.view(np.uint64) ^ np.uint64(_U64_OFFSET)).astype(">u8").view(np.uint8).reshape(-1, 8)
    digits = np.empty((len(values), 16), np.uint8)
    digits[:, 0::2] = _HEX[raw >> 4]
    digits[:, 1::2] = _HEX[raw & 15]
    offsets = np.arange(0, 16 * len(values) + 1, 16, dtype=np.int64)
    text = pa.LargeStringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(digits))
    return text.cast(pa.string()) if 16 * len(values) < 1 << 31 else text


def _fields(schema: Any) -> list[pa.Field]:
    fields = list(schema) if isinstance(schema, Iterable) else []
    if not fields or not all(isinstance(one, pa.Field) for one in fields):
        raise InvalidInputError(
            "schema must be a pyarrow.Schema or a list of pyarrow.field(...), with at least one column"
        )
    return fields


def _names(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


class TableSchema:
    """The definition of a table; two schemas are equal when everything in them is.

    Args:
        name: letters, digits, ``_``, ``-`` and ``.``, at most 63, beginning with a letter.
        schema: Arrow fields. Scalars, lists of scalars, ``pyarrow.json_()`` for JSON of any shape, and fixed-size lists of
            float16 or float32 for vectors.
        key: the column or columns that identify a row; string, integer, bool, timestamp, date or binary, never null.
        indexed: scalar columns that filters can look up without a scan.
        hot_only: rows stay in SQLite for good; for small, often changed tables.
        embedders: vector column -> name of the embedder that makes its vectors. It is stored with the table, and
            ``db.embedder_for`` refuses any other.

    Raises:
        InvalidInputError: a name, type, key or index cannot be accepted.
    """

    def __init__(
        self,
        name: str,
        schema: pa.Schema | Iterable[pa.Field],
        *,
        key: str | Sequence[str],
        indexed: str | Sequence[str] = (),
        hot_only: bool = False,
        embedders: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(name, str) or not _NAME.match(name):
            raise InvalidInputError(
                "TableSchema.name must be a str of 1 to 63 letters, digits, '_', '-' and '.', beginning with a letter"
            )
        if not isinstance(key, str | Sequence) or not isinstance(indexed, str | Sequence):
            raise InvalidInputError(f"table {name}: key and indexed must be column names")
        columns = []
        for field in _fields(schema):
            if not _COLUMN_NAME.match(field.name):
                raise InvalidInputError(
                    f"column name {field.name!r} must be 1 to 63 letters, digits and '_', beginning with a letter"
                )
            columns.append(Column(field.name, _type_name(field.type, f"column {field.name}"), field.nullable))
        self._set(name, columns, _names(key), _names(indexed), hot_only=hot_only, embedders=embedders or {})

    def _set(
        self,
        name: str,
        columns: list[Column],
        key: list[str],
        indexed: list[str],
        *,
        hot_only: bool,
        embedders: Mapping[str, str],
    ) -> None:
        self.name = name
        by_name = {column.name: column for column in columns}
        lowered = {column.name.lower() for column in columns}
        if len(lowered) != len(columns):
            raise InvalidInputError(f"table {name}: column names must differ by more than case")
        if not key:
            raise InvalidInputError(f"table {name}: key must name at least one column")
        for what, names in (("key", key), ("indexed", indexed)):
            for one in names:
                if one not in by_name:
                    raise InvalidInputError(f"table {name}: {what} names no column {one!r}")
            if len(set(names)) != len(names):
                raise InvalidInputError(f"table {name}: {what} names a column twice")
        for one in key:
            column = by_name[one]
            if column.kind not in _KEY_KINDS:
                raise InvalidInputError(f"table {name}: key column {one} cannot be of type {column.type_name}")
            by_name[one] = Column(one, column.type_name, nullable=False)
        for one in indexed:
            if by_name[one].kind in ("list", "vector", "json"):
                raise InvalidInputError(
                    f"table {name}: indexed column {one} cannot be of type {by_name[one].type_name} "
                    "(JSON is always indexed)"
                )
        for one, embedder in dict(embedders).items():
            if one not in by_name or by_name[one].kind != "vector":
                raise InvalidInputError(f"table {name}: embedders names no vector column {one!r}")
            if not isinstance(embedder, str) or not embedder:
                raise InvalidInputError(f"table {name}: embedders must give column {one} the name of an embedder")
        self.columns: tuple[Column, ...] = tuple(by_name[column.name] for column in columns)
        self.key: tuple[str, ...] = tuple(key)
        self.indexed: tuple[str, ...] = tuple(indexed)
        self.hot_only = hot_only
        self.embedders: Mapping[str, str] = MappingProxyType(dict(embedders))

    def column(self, name: str) -> Column:
        """Return a column.

        Raises:
            InvalidInputError: there is none of that name.
        """
        try:
            return self._by_name[name]
        except (KeyError, TypeError):
            raise InvalidInputError(f"table {self.name} has no column {name!r}") from None

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    @cached_property
    def arrow(self) -> pa.Schema:
        """The Arrow schema that callers see."""
        return pa.schema([pa.field(c.name, c.type, c.nullable) for c in self.columns])

    @cached_property
    def json_columns(self) -> tuple[str, ...]:
        """The columns that hold JSON."""
        return tuple(c.name for c in self.columns if c.kind == "json")

    @cached_property
    def sql_columns(self) -> tuple[str, ...]:
        """The columns that SQLite holds as columns of their own: key and indexed ones."""
        return tuple(dict.fromkeys((*self.key, *self.indexed)))

    @cached_property
    def cold_arrow(self) -> pa.Schema:
        """The schema of the Lance dataset: the columns and the system columns ``_key``, ``_seq`` and ``_terms``."""
        # Every column is nullable in the cold tier: columns are added later, and nullability is checked at write.
        system = [pa.field("_key", pa.string()), pa.field("_seq", pa.int64())]
        if self.json_columns:
            system.append(pa.field("_terms", pa.list_(pa.string())))
        return pa.schema([*system, *(pa.field(c.name, c.cold_type) for c in self.columns)])

    @cached_property
    def positions(self) -> dict[str, int]:
        """Where each column stands in a physical row."""
        return {column.name: i for i, column in enumerate(self.columns)}

    @cached_property
    def kinds(self) -> dict[str, ColumnKind]:
        """What each column holds."""
        return {column.name: column.kind for column in self.columns}

    @cached_property
    def _key_columns(self) -> tuple[tuple[int, Column], ...]:
        return tuple((self.positions[name], self._by_name[name]) for name in self.key)

    @cached_property
    def _is_text_key(self) -> bool:
        return len(self.key) == 1 and self._by_name[self.key[0]].kind == "string"

    @cached_property
    def sql_positions(self) -> tuple[int, ...]:
        """Where `sql_columns` stand in a physical row."""
        return tuple(self.positions[name] for name in self.sql_columns)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def to_physical(self, row: Mapping[str, Any]) -> list[Any]:
        """Return a row's physical values in column order.

        Raises:
            InvalidInputError: an unknown column, or a value its column does not accept.
        """
        if not isinstance(row, Mapping):
            raise InvalidInputError(f"a row of table {self.name} must be a mapping, not {type(row).__name__}")
        values = [column.to_physical(row.get(column.name)) for column in self.columns]
        if len(row) > len(values) or not row.keys() <= self._by_name.keys():
            unknown = sorted(str(one) for one in row.keys() - self._by_name.keys())
            raise InvalidInputError(f"table {self.name} has no column {', '.join(map(repr, unknown[:5]))}")
        return values

    def to_python(self, values: Sequence[Any], columns: Sequence[str] | None = None) -> Row:
        """Return physical values in column order as a row; columns added after it was written are None."""
        at, known = self.positions, len(values)
        if columns is None and known == len(at):
            row = dict(zip(at, values, strict=True))
        else:
            names = at if columns is None else columns
            row = {name: values[at[name]] if at[name] < known else None for name in names}
        for column in self._converted:
            value = row.get(column.name)
            if value is not None:
                row[column.name] = column.to_python(value)
        return row

    @cached_property
    def _converted(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if not column.is_plain)

    def without_terms(self, values: Sequence[Any]) -> bool:
        """Whether a physical row has no JSON content."""
        return all(values[at] is None for at in self._json_positions)

    @cached_property
    def _json_positions(self) -> tuple[int, ...]:
        return tuple(i for i, column in enumerate(self.columns) if column.kind == "json")

    def terms_of(self, values: Sequence[Any]) -> list[str]:
        """Return the terms of a physical row's JSON columns."""
        found = {
            c.name: decode_json(v)
            for c, v in zip(self.columns, values, strict=False)
            if c.kind == "json" and v is not None
        }
        return derive_terms(found) if found else []

    # --- keys ---------------------------------------------------------------------------------------------------------

    def encode_key(self, key: Key) -> str:
        """Return the ``_key`` of a key value (or tuple of values).

        Raises:
            InvalidInputError: wrong number of parts, or a part its column does not accept.
        """
        if type(key) is str and self._is_text_key and len(key) < MAX_KEY_CHARS and key.isascii() and key.isprintable():
            return key + SEPARATOR  # nothing to escape, as nearly always
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) != len(self.key):
            raise InvalidInputError(
                f"a key of table {self.name} has {len(self.key)} parts ({', '.join(self.key)}), not {len(parts)}"
            )
        return self._join(
            [column.to_physical(part) for (_, column), part in zip(self._key_columns, parts, strict=True)]
        )

    def encode_key_prefix(self, values: Sequence[Any]) -> str:
        """Return the text with which every key begins whose leading parts are ``values``."""
        return "".join(
            encode_key_part(column, column.to_physical(value)) + SEPARATOR
            for (_, column), value in zip(self._key_columns, values, strict=False)
        )

    def key_of(self, values: Sequence[Any]) -> str:
        """Return the ``_key`` of a physical row."""
        return self._join([values[position] for position, _ in self._key_columns])

    def _join(self, parts: Sequence[Any]) -> str:
        texts = [encode_key_part(column, part) for (_, column), part in zip(self._key_columns, parts, strict=True)]
        text = SEPARATOR.join(texts) + SEPARATOR
        if len(text) > MAX_KEY_CHARS:
            raise InvalidInputError(f"the key ({', '.join(self.key)}) is longer than {MAX_KEY_CHARS} characters")
        return text

    def key_values(self, row: Mapping[str, Any]) -> Key:
        """Return a row's key as callers write it."""
        return row[self.key[0]] if len(self.key) == 1 else tuple(row[name] for name in self.key)

    def decode_key(self, text: str) -> Key:
        """Return the key that `encode_key` made a ``_key`` of."""
        if self._is_text_key and ESCAPE not in text:
            return text[:-1]
        parts = text[:-1].split(SEPARATOR)
        values = [
            column.to_python(_decode_key_part(column, part))
            for (_, column), part in zip(self._key_columns, parts, strict=True)
        ]
        return values[0] if len(values) == 1 else tuple(values)

    def encode_keys(self, table: pa.Table) -> pa.Array:
        """Return the ``_key`` of every row of a table in the cold layout, vectorised."""
        parts: list[Any] = []
        for _, column in self._key_columns:
            array = _whole(table.column(column.name))
            if column.kind == "string":
                text = array.cast(pa.string())
                if pc.any(pc.match_substring_regex(text, "[\x01-\x02]|\\x00")).as_py():
                    text = pa.array([_escape(one) for one in text.to_pylist()], pa.string())
            elif column.kind == "binary":
                text = pa.array([one.hex() for one in array.to_pylist()], pa.string())
            elif column.kind == "bool":
                text = pc.if_else(array, "1", "0")
            elif column.kind == "uint64":
                text = _hex_array((array.to_numpy() ^ np.uint64(_U64_OFFSET)).view(np.int64))
            else:
                integers = array.cast(pa.int32()) if column.kind == "date" else array
                text = _hex_array(integers.cast(pa.int64()).to_numpy(zero_copy_only=False))
            parts.append(text)
        closed = [*parts, pa.scalar("", parts[0].type)]
        keys = pc.binary_join_element_wise(*closed, SEPARATOR)
        if len(keys) and pc.max(pc.utf8_length(keys)).as_py() > MAX_KEY_CHARS:
            raise InvalidInputError(f"a key ({', '.join(self.key)}) is longer than {MAX_KEY_CHARS} characters")
        return keys

    # --- Arrow --------------------------------------------------------------------------------------------------------

    def from_user_arrow(self, table: pa.Table, *, with_terms: bool = True) -> pa.Table:
        """Return a caller's table in the cold layout, without ``_seq``; of equal keys the last row stays.

        Args:
            table: some or all of the columns.
            with_terms: whether to derive ``_terms``; `with_terms` does it later.

        Raises:
            InvalidInputError: unknown columns, a missing key column, or values that do not fit.
        """
        unknown = [name for name in table.column_names if name not in self._by_name]
        if unknown:
            raise InvalidInputError(f"table {self.name} has no column {', '.join(map(repr, unknown[:5]))}")
        if len(set(table.column_names)) != len(table.column_names):
            raise InvalidInputError(f"table {self.name}: a column is given twice")
        arrays: dict[str, Any] = {}
        for column in self.columns:
            if column.name in table.column_names:
                arrays[column.name] = column.from_user_arrow(table.column(column.name))
            elif column.nullable:
                arrays[column.name] = pa.nulls(table.num_rows, column.cold_type)
            else:
                raise InvalidInputError(f"column {column.name} must not be null")
        result = pa.table(arrays)
        result = result.add_column(0, "_key", self.encode_keys(result))
        return _keep_last(self.with_terms(result) if with_terms else result)

    def with_terms(self, table: pa.Table) -> pa.Table:
        """Return a table of the cold layout with ``_terms``, by which its JSON is found, if it holds any."""
        if not self.json_columns:
            return table
        return table.append_column(pa.field("_terms", pa.list_(pa.string())), self._terms_array(table))

    def _terms_array(self, table: pa.Table) -> pa.Array:
        columns = {name: table.column(name) for name in self.json_columns}
        if all(array.null_count == len(array) for array in columns.values()):
            return pa.nulls(table.num_rows, pa.list_(pa.string()))
        lists = {name: array.to_pylist() for name, array in columns.items()}
        terms = [
            derive_terms({name: decode_json(texts[i]) for name, texts in lists.items() if texts[i] is not None})
            for i in range(table.num_rows)
        ]
        return pa.array([one or None for one in terms], pa.list_(pa.string()))

    def rows_to_arrow(self, keys: Sequence[str], seqs: Sequence[int], rows: Sequence[Sequence[Any]]) -> pa.Table:
        """Return hot rows in the cold layout."""
        arrays: dict[str, pa.Array] = {"_key": pa.array(keys, pa.string()), "_seq": pa.array(seqs, pa.int64())}
        if self.json_columns:
            arrays["_terms"] = pa.array([self.terms_of(row) or None for row in rows], pa.list_(pa.string()))
        for i, column in enumerate(self.columns):
            arrays[column.name] = column.to_arrow([row[i] if i < len(row) else None for row in rows])
        return pa.table(arrays, schema=self.cold_arrow)

    def arrow_to_rows(self, table: pa.Table, columns: Sequence[str] | None = None) -> list[Row]:
        """Return rows of the cold layout as Python rows."""
        wanted = [self.column(name) for name in columns] if columns is not None else list(self.columns)
        decoded = [[c.to_python(v) for v in c.from_arrow(table.column(c.name))] for c in wanted]
        names = [c.name for c in wanted]
        return (
            [dict(zip(names, values, strict=True)) for values in zip(*decoded, strict=True)]
            if decoded
            else [{} for _ in range(table.num_rows)]
        )

    def to_user_arrow(self, table: pa.Table, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table of the cold layout as callers see it: JSON typed as JSON, no system columns."""
        wanted = [self.column(name) for name in columns] if columns is not None else list(self.columns)
        arrays = []
        for column in wanted:
            array = table.column(column.name)
            if column.kind == "json":
                array = pa.chunked_array(
                    [pa.ExtensionArray.from_storage(column.type, chunk) for chunk in array.chunks], column.type
                )
            arrays.append(array)
        return pa.table(arrays, schema=self.user_arrow(columns))

    def user_arrow(self, columns: Sequence[str] | None = None) -> pa.Schema:
        """Return the schema of `to_user_arrow`."""
        if columns is None:
            return self.arrow
        return pa.schema([self.arrow.field(self.column(name).name) for name in columns])

    # --- definition ---------------------------------------------------------------------------------------------------

    def with_columns(self, fields: pa.Schema | Iterable[pa.Field], indexed: str | Sequence[str] = ()) -> TableSchema:
        """Return this schema with more columns, which are null in the rows that exist; ``indexed`` names some of them.

        Raises:
            InvalidInputError: a column exists, is not nullable, or cannot be indexed.
        """
        # A key of a name that nobody gives a column.
        added = TableSchema(self.name, [pa.field("k" * 63, pa.string()), *_fields(fields)], key="k" * 63).columns[1:]
        for column in added:
            if not column.nullable:
                raise InvalidInputError(f"column {column.name} is added to existing rows and must be nullable")
            if column.name.lower() in {c.name.lower() for c in self.columns}:
                raise InvalidInputError(f"table {self.name} has a column {column.name!r} already")
        names = _names(indexed)
        if not set(names) <= {column.name for column in added}:
            raise InvalidInputError(f"table {self.name}: only a column that is added can be indexed with it")
        return self._with([*self.columns, *added], [*self.indexed, *names])

    def _with(self, columns: list[Column], indexed: list[str]) -> TableSchema:
        made = TableSchema.__new__(TableSchema)
        made._set(
            self.name,
            columns,
            list(self.key),
            indexed,
            hot_only=self.hot_only,
            embedders=self.embedders,
        )
        return made

    def to_json(self) -> str:
        """Return the definition as the catalogue stores it."""
        return json.dumps(
            {
                "name": self.name,
                "columns": [[c.name, c.type_name, c.nullable] for c in self.columns],
                "key": self.key,
                "indexed": self.indexed,
                "hot_only": self.hot_only,
                "embedders": dict(sorted(self.embedders.items())),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> TableSchema:
        """Return the schema that `to_json` wrote.

        Raises:
            FormatError: it cannot be read.
        """
        try:
            data = json.loads(text)
            made = cls.__new__(cls)
            columns = [Column(name, type_name, nullable) for name, type_name, nullable in data["columns"]]
            for column in columns:
                column.type  # noqa: B018 - raises if the name of the type is unknown
            made._set(
                data["name"],
                columns,
                data["key"],
                data["indexed"],
                hot_only=data["hot_only"],
                embedders=data["embedders"],
            )
        except (ValueError, KeyError, TypeError, InvalidInputError) as error:
            raise FormatError("the catalogue holds a table definition that cannot be read") from error
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableSchema) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        columns = ", ".join(f"{c.name}: {c.type_name}" for c in self.columns)
        return f"TableSchema({self.name!r}, [{columns}], key={self.key}, indexed={self.indexed})"


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; `combine_chunks` would copy even a single chunk, be it of 300 MB."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _keep_last(table: pa.Table) -> pa.Table:
    keys = table.column("_key")
    if pc.count_distinct(keys).as_py() == table.num_rows:
        return table
    last = pa.table({"k": keys, "i": np.arange(table.num_rows)}).group_by("k").aggregate([("i", "max")])
    return table.take(np.sort(last["i_max"].to_numpy()))
