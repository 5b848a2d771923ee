"""The value codec: Python values to bytes and back, exactly and without pickle.

The content is two bytes (format, flags) and one msgpack value. What msgpack has no type for is an extension:

=====  ==================================  =====================================================================
code   value                               body
=====  ==================================  =====================================================================
96     ``tuple``, ``set``, ``frozenset``   one byte; the *mark* that stands first in the array of the items
97     ``int`` beyond 64 bits              two's complement, little-endian
98     aware ``datetime``                  int64 microseconds since 1970 UTC, int64 microseconds of UTC offset
99     naive ``datetime``                  int64 microseconds since 1970, no zone
100    ``date``                            int32 proleptic ordinal
101    ``time``                            ISO 8601 text
102    ``timedelta``                       int32 days, int32 seconds, int32 microseconds
103    ``Decimal``                         its text
104    ``UUID``                            16 bytes
105    ``complex``                         two float64
106    numpy array                         length of dtype, dtype, number of dimensions, int64 each, C-order bytes
107    numpy scalar                        the same, no dimensions
108    ``pyarrow.Table``                   Arrow IPC stream
109    ``pyarrow.RecordBatch``             Arrow IPC stream
=====  ==================================  =====================================================================

Codes 96 to 127 are reserved. What comes back equals what went in and has its type, except that

- a subclass of a built-in type (``StrEnum``, ``OrderedDict``, a named tuple) comes back as the built-in;
- ``bytearray`` and ``memoryview`` come back as ``bytes``;
- a time zone comes back as its offset, without its name;
- numpy arrays come back in C order and writable.

NaN and infinities are kept. A ``dict`` keeps its order, and its keys may be of any type listed here.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgpack

from agentdb.errors import FormatError, IntegrityError, InvalidInputError, MissingDependencyError

__all__ = ["MAX_CONTENT_BYTES", "decode_value", "encode_value"]

MAX_CONTENT_BYTES: Final = 1 << 28

_FORMAT = 1
_MARKED = 1  # flag: the content holds marks, so every list must be looked at when it is decoded
_PLAIN_PREFIX = bytes((_FORMAT, 0))
_MARKED_PREFIX = bytes((_FORMAT, _MARKED))

_RESERVED = range(96, 128)
_MARK, _BIGINT, _AWARE, _NAIVE, _DATE, _TIME, _DELTA, _DECIMAL, _UUID, _COMPLEX, _ARRAY, _SCALAR, _TABLE, _BATCH = (
    range(96, 110)
)
_TUPLE_MARK = msgpack.ExtType(_MARK, b"t")
_SET_MARK = msgpack.ExtType(_MARK, b"s")
_FROZENSET_MARK = msgpack.ExtType(_MARK, b"f")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - naive values are counted from a naive origin
_MICROSECOND = timedelta(microseconds=1)
_Q = struct.Struct("<q")
_QQ = struct.Struct("<qq")
_I = struct.Struct("<i")
_III = struct.Struct("<iii")
_DD = struct.Struct("<dd")
_DTYPE_KINDS = frozenset("biufcSUMm")
_DROP_BUFFER_BYTES = 1 << 20

_REASONS: Final = (TypeError, ValueError, OverflowError)


class _Mark:
    """What a mark decodes to, inside the decoder only."""

    __slots__ = ("make",)

    def __init__(self, make: type) -> None:
        self.make = make


_MARKS = {b"t": _Mark(tuple), b"s": _Mark(set), b"f": _Mark(frozenset)}


# ------------------------------------------------------------------------------------------------------------ encode


class _Encoder:
    """One thread's packer; ``marked`` tells whether the last value used marks."""

    __slots__ = ("busy", "marked", "packer")

    def __init__(self) -> None:
        self.marked = False
        self.busy = False
        self.packer = msgpack.Packer(default=self.default, strict_types=True, autoreset=True)

    def pack(self, value: Any) -> bytes:
        self.marked = False
        self.busy = True
        try:
            packed: bytes = self.packer.pack(value)
        except BaseException:
            self.packer.reset()
            raise
        finally:
            self.busy = False
        return packed

    def default(self, value: Any) -> Any:
        """Return what msgpack can pack in place of ``value``."""
        # msgpack does not ask again about what is returned here: it must be of a type that it packs itself.
        if isinstance(value, tuple):
            self.marked = True
            return [_TUPLE_MARK, *value]
        if isinstance(value, set | frozenset):
            self.marked = True
            return [_SET_MARK if isinstance(value, set) else _FROZENSET_MARK, *_ordered(value)]
        if type(value) is int:
            return _pack_int(value)
        if isinstance(value, datetime):
            return _pack_datetime(value)
        if isinstance(value, date):
            return _ext(_DATE, _I.pack(value.toordinal()))
        if isinstance(value, time):
            return _ext(_TIME, value.isoformat().encode())
        if isinstance(value, timedelta):
            if getattr(value, "nanoseconds", 0):
                raise TypeError("it has nanoseconds; use a numpy.timedelta64")
            return _ext(_DELTA, _III.pack(value.days, value.seconds, value.microseconds))
        if isinstance(value, Decimal):
            return _ext(_DECIMAL, str(value).encode())
        if isinstance(value, UUID):
            return _ext(_UUID, value.bytes)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
            return _pack_numpy(numpy, value)
        if isinstance(value, complex):
            return _ext(_COMPLEX, _DD.pack(value.real, value.imag))
        pyarrow = sys.modules.get("pyarrow")
        if pyarrow is not None and isinstance(value, pyarrow.Table | pyarrow.RecordBatch):
            return _pack_arrow(pyarrow, value)
        return _as_builtin(value)


def _ext(code: int, body: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(code, body)


def _pack_int(value: int) -> msgpack.ExtType:
    return _ext(_BIGINT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _ordered(items: set[Any] | frozenset[Any]) -> list[Any]:
    """Return the items sorted where that is cheap, so that equal sets have equal content."""
    kinds = {type(item) for item in items}
    return sorted(items) if len(kinds) == 1 and kinds <= {str, int, bytes} else list(items)


def _pack_datetime(value: datetime) -> msgpack.ExtType:
    if getattr(value, "nanosecond", 0):
        raise TypeError("it has nanoseconds; use a numpy.datetime64")
    offset = value.utcoffset()
    if offset is None:
        return _ext(_NAIVE, _Q.pack((value.replace(tzinfo=None) - _NAIVE_EPOCH) // _MICROSECOND))
    return _ext(_AWARE, _QQ.pack((value - _EPOCH) // _MICROSECOND, offset // _MICROSECOND))


def _pack_numpy(numpy: Any, value: Any) -> Any:
    if isinstance(value, numpy.str_):
        return str.__str__(value)
    if isinstance(value, numpy.bytes_):
        return b"".join((value,))
    if isinstance(value, numpy.ma.MaskedArray):
        raise TypeError("masked arrays are not supported; store the data and the mask")
    dtype = value.dtype
    if dtype.kind not in _DTYPE_KINDS or dtype.char in "gG":
        raise TypeError(f"numpy arrays of dtype {dtype} are not supported")
    name = dtype.str.encode()
    shape = value.shape
    is_array = isinstance(value, numpy.ndarray)
    head = b"".join((bytes((len(name),)), name, bytes((len(shape),)), *(_Q.pack(side) for side in shape)))
    return _ext(_ARRAY if is_array else _SCALAR, head + value.tobytes())


def _pack_arrow(pyarrow: Any, value: Any) -> msgpack.ExtType:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, value.schema) as writer:
        writer.write(value)
    return _ext(_TABLE if isinstance(value, pyarrow.Table) else _BATCH, sink.getvalue().to_pybytes())


def _as_builtin(value: Any) -> Any:
    """Return a subclass's value as the built-in type that it extends."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -(1 << 63) <= number < 1 << 64 else _pack_int(number)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bytes):
        return b"".join((value,))
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, list):
        return list.copy(value)
    if isinstance(value, dict):
        return dict.copy(value)
    name = type(value).__qualname__
    if hasattr(type(value), "__dataclass_fields__"):
        raise TypeError(f"{name} is a dataclass; store dataclasses.asdict(...)")
    if hasattr(value, "model_dump"):
        raise TypeError(f"{name} is a model; store its model_dump()")
    if hasattr(type(value), "__members__"):
        raise TypeError(f"{name} is an enumeration; store its .value")
    raise TypeError(f"values of type {name} are not supported")


_local = threading.local()


def encode_value(value: Any, *, path: str = "data") -> bytes:
    """Return the content of a value; equal for equal values, apart from the order of dicts and of mixed sets.

    Args:
        value: of the types that the module names, nested up to 1,000 levels, not cyclic.
        path: what error messages call the value.
    Raises:
        InvalidInputError: it holds something that cannot be stored; the message names where.
    """
    encoder: _Encoder | None = getattr(_local, "encoder", None)
    if encoder is None or encoder.busy:
        encoder = _local.encoder = _Encoder()
    try:
        packed = encoder.pack(value)
    except (*_REASONS, MemoryError, RecursionError) as error:
        raise _explain(value, path, error) from None
    if len(packed) > _DROP_BUFFER_BYTES:
        _local.encoder = None  # its buffer never shrinks
        if len(packed) > MAX_CONTENT_BYTES:
            raise InvalidInputError(f"{path} takes {len(packed)} bytes; at most {MAX_CONTENT_BYTES} are supported")
    return (_MARKED_PREFIX if encoder.marked else _PLAIN_PREFIX) + packed


def _explain(value: Any, path: str, error: BaseException) -> InvalidInputError:
    """Return the error that names the first place in ``value`` that cannot be encoded."""
    probe = _Encoder()
    open_containers: set[int] = set()
    stack: list[tuple[str, Iterator[tuple[str, Any]], int]] = [(path, iter([(path, value)]), 0)]
    while stack:
        found = next(stack[-1][1], None)
        if found is None:
            open_containers.discard(stack.pop()[2])
            continue
        where, item = found
        if isinstance(item, dict | list | tuple | set | frozenset):
            if id(item) in open_containers:
                return InvalidInputError(f"{where} refers to a container that holds it: cyclic values cannot be stored")
            if len(stack) > 1000:
                return InvalidInputError(f"{path} is nested more than 1,000 levels deep")
            open_containers.add(id(item))
            stack.append((where, _children(where, item), id(item)))
            continue
        try:
            probe.pack(item)
        except UnicodeEncodeError:
            return InvalidInputError(f"{where} holds a lone surrogate, which UTF-8 cannot store")
        except _REASONS as reason:
            return InvalidInputError(f"{where} cannot be stored: {reason}")
    return InvalidInputError(f"{path} cannot be stored: {error}")


def _children(where: str, item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, dict):
        for key, child in item.items():
            name = f"{where}.{key}" if isinstance(key, str) and key.isidentifier() else f"{where}[{_shown(key)}]"
            yield f"the key {_shown(key)} of {where}", key
            yield name, child
    elif isinstance(item, list | tuple):
        for index, child in enumerate(item):
            yield f"{where}[{index}]", child
    else:
        for child in item:
            yield f"{where}{{...}}", child


def _shown(key: Any) -> str:
    text = repr(key) if isinstance(key, str | int | float | bytes | None) else f"<{type(key).__qualname__}>"
    return text if len(text) <= 40 else f"{text[:37]}..."


# ------------------------------------------------------------------------------------------------------------ decode


def decode_value(content: bytes | memoryview, *, path: str = "data") -> Any:
    """Return the value of a content; every call returns a new one.

    Raises:
        FormatError: written by a newer release.
        IntegrityError: not the content of any value.
    """
    if len(content) < 3:
        raise IntegrityError(f"{path}: the stored content is cut short")
    version, flags = content[0], content[1]
    if version != _FORMAT or flags & ~_MARKED:
        raise FormatError(f"{path}: the stored content has format {version}.{flags}; this release reads {_FORMAT}")
    try:
        return msgpack.unpackb(
            memoryview(content)[2:],
            ext_hook=_unpack_ext,
            list_hook=_unmark if flags & _MARKED else None,
            strict_map_key=False,
        )
    except (FormatError, MissingDependencyError):
        raise
    except Exception as error:
        # Whatever a decoder trips over, its input is not what the encoder wrote; the text could hold content.
        raise IntegrityError(f"{path}: the stored content cannot be decoded ({type(error).__name__})") from None


def _unmark(items: list[Any]) -> Any:
    if items and type(items[0]) is _Mark:
        return items[0].make(items[1:])
    return items


def _unpack_ext(code: int, body: bytes) -> Any:
    match code:
        case 96:
            return _MARKS[body]
        case 97:
            return int.from_bytes(body, "little", signed=True)
        case 98:
            micros, offset = _QQ.unpack(body)
            local = _NAIVE_EPOCH + timedelta(microseconds=micros + offset)
            return local.replace(tzinfo=timezone(timedelta(microseconds=offset)) if offset else UTC)
        case 99:
            return _NAIVE_EPOCH + timedelta(microseconds=_Q.unpack(body)[0])
        case 100:
            return date.fromordinal(_I.unpack(body)[0])
        case 101:
            return time.fromisoformat(body.decode())
        case 102:
            days, seconds, micros = _III.unpack(body)
            return timedelta(days, seconds, micros)
        case 103:
            return Decimal(body.decode())
        case 104:
            return UUID(bytes=body)
        case 105:
            return complex(*_DD.unpack(body))
        case 106 | 107:
            return _unpack_numpy(body, is_array=code == _ARRAY)
        case 108 | 109:
            return _unpack_arrow(body, is_table=code == _TABLE)
    if code in _RESERVED:
        raise FormatError(f"the stored content has a value of type {code}, unknown to this release")
    return msgpack.ExtType(code, body)


def _unpack_numpy(body: bytes, *, is_array: bool) -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise MissingDependencyError("the stored content holds a numpy array; install numpy") from error
    at = 1 + body[0]
    dtype = np.dtype(body[1:at].decode("ascii"))
    if dtype.kind not in _DTYPE_KINDS:
        raise ValueError("dtype")
    dimensions = body[at]
    at += 1
    shape = struct.unpack_from(f"<{dimensions}q", body, at)
    at += 8 * dimensions
    size = 1
    for side in shape:
        size *= side
    if len(body) - at != size * dtype.itemsize:
        raise ValueError("size")
    # A copy: the array must own its memory and be writable. ``frombuffer`` refuses items of no size.
    array = np.empty(shape, dtype)
    if array.nbytes:
        array[...] = np.frombuffer(body, dtype, offset=at).reshape(shape)
    return array if is_array else array[()]


def _unpack_arrow(body: bytes, *, is_table: bool) -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingDependencyError("the stored content holds an Arrow table; install pyarrow") from error
    with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
        table = reader.read_all()
    table.validate()
    if is_table:
        return table
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
