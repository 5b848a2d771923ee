"""What goes into the value codec comes out equal and of the same type; nothing else comes out of anything."""

import math
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from agentdb.errors import AgentDBError, FormatError, IntegrityError, InvalidInputError
from agentdb.storage.values import decode_value, encode_value


def same(a, b) -> bool:
    """Equal in value and type, all the way down; NaN equals itself."""
    if type(a) is not type(b):
        return False
    match a:
        case dict():
            return len(a) == len(b) and all(
                same(x, y) for pair in zip(a.items(), b.items(), strict=True) for x, y in zip(*pair, strict=True)
            )
        case list() | tuple():
            return len(a) == len(b) and all(map(same, a, b))
        case float():
            return a == b and math.copysign(1, a) == math.copysign(1, b) if a == a else b != b  # noqa: PLR0124
        case Decimal():
            return a.as_tuple() == b.as_tuple()
        case datetime() | time():
            return a == b and a.utcoffset() == b.utcoffset()
        case np.ndarray():
            return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        case np.generic():
            return a.dtype == b.dtype and a.tobytes() == b.tobytes()
        case pa.Table() | pa.RecordBatch():
            return a.equals(b, check_metadata=True)
        case complex():
            return same(a.real, b.real) and same(a.imag, b.imag)
        case _:
            return a == b


zones = st.none() | st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)).map(timezone)
text = st.text(st.characters(exclude_categories=["Cs"]))
dtypes = (
    npst.boolean_dtypes()
    | npst.integer_dtypes()
    | npst.unsigned_integer_dtypes()
    | npst.floating_dtypes(sizes=(16, 32, 64))
    | npst.complex_number_dtypes(sizes=(64, 128))
    | npst.datetime64_dtypes()
    | npst.timedelta64_dtypes()
    | npst.byte_string_dtypes(max_len=5)
)
arrays = npst.arrays(dtypes, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
# numpy's own bytes come back as bytes.
scalars = dtypes.filter(lambda d: d.kind != "S").flatmap(lambda d: npst.arrays(d, ())).map(lambda a: a[()])
tables = st.lists(st.fixed_dictionaries({"a": st.none() | st.integers(-9, 9), "b": text}), max_size=4).map(
    lambda rows: pa.Table.from_pylist(rows, schema=pa.schema({"a": pa.int64(), "b": pa.string()}, {"k": "v"}))
)
hashable = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | text
    | st.binary()
    | st.dates()
    | st.datetimes(timezones=zones)
    | st.times()
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers()
)
keys = st.recursive(
    text | st.integers() | st.booleans() | st.none() | st.binary() | st.dates() | st.uuids(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=2),
    max_leaves=4,
)
leaves = hashable | arrays | scalars | tables
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(text, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=2)
        | st.sets(keys, max_size=3)
        | st.frozensets(keys, max_size=3)
    ),
    max_leaves=12,
)


@given(values)
def test_round_trip(value):
    content = encode_value(value)
    result = decode_value(content)
    assert same(value, result)
    assert same(result, decode_value(encode_value(result)))


@given(st.binary(max_size=60))
def test_arbitrary_bytes_never_give_anything_but_our_errors(junk):
    for content in (junk, b"\x01\x00" + junk, b"\x01\x01" + junk):
        with suppress(AgentDBError):
            decode_value(content)


@given(values, st.data())
def test_damaged_content_never_gives_anything_but_our_errors(value, data):
    content = bytearray(encode_value(value))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with suppress(AgentDBError):
        decode_value(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with suppress(AgentDBError):
        decode_value(bytes(content))


@given(st.sets(st.integers()) | st.sets(text) | st.sets(st.binary()))
def test_equal_sets_have_equal_content(items):
    assert encode_value(items) == encode_value(set(sorted(items, reverse=True)))  # noqa: C414 - another insertion order


def test_the_content_is_fixed():
    # Stored for ever: if this fails, the format changed.
    value = {"a": [1, (2,)], "b": datetime(2020, 1, 1, tzinfo=UTC), "c": {3}, "d": 2**64, "e": np.float32(1)}
    assert encode_value(value).hex() == (
        "010185a1619201"
        "92d4607402"
        "a162d8620040fac1089b05000000000000000000"
        "a16392d4607303"
        "a164c70961000000000000000001"
        "a165c7096b033c6634000000803f"
    )
    assert same(decode_value(encode_value(value)), value)


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Huge(IntEnum):
    HUGE = 1 << 70


class Plain(Enum):
    ONE = 1


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Record:
    x: int


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Huge.HUGE, 1 << 70),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (Point(1, 2), (1, 2)),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (np.str_("x"), "x"),
        (np.bytes_(b"y"), b"y"),
        (np.float64("nan"), np.float64("nan")),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T.copy(order="C")),
        (time(12, tzinfo=timezone(timedelta(hours=2))), time(12, tzinfo=timezone(timedelta(hours=2)))),
        (
            datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
            datetime(2024, 7, 1, tzinfo=timezone(timedelta(hours=2))),
        ),
        (
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-9))),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-9))),
        ),
        (msgpack.ExtType(5, b"x"), msgpack.ExtType(5, b"x")),
    ],
)
def test_what_comes_back_as_its_plain_type(given_value, expected):
    assert same(decode_value(encode_value([given_value])), [expected])


def test_arrays_come_back_writable_and_independent():
    content = encode_value(np.zeros(3))
    first = decode_value(content)
    first[0] = 1
    assert decode_value(content)[0] == 0


def deep(levels, wrap):
    value = 1
    for _ in range(levels):
        value = wrap(value)
    return value


def test_depth():
    for wrap in (lambda x: [x], lambda x: {"a": x}, lambda x: (x,), lambda x: frozenset([x])):
        value = deep(400, wrap)
        assert decode_value(encode_value(value)) is not None
        with pytest.raises(InvalidInputError, match="nested more than"):
            encode_value(deep(1500, wrap))


cyclic: dict = {"a": [1]}
cyclic["a"].append(cyclic)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"messages": [0, 1, 2, {"when": object()}]},
            r"data\.messages\[3\]\.when cannot be stored: values of type object",
        ),
        ({"a b": {1: {2: Plain.ONE}}}, r"data\['a b'\]\[1\]\[2\] .*its \.value"),
        ([(1, {"x": "\ud800"})], r"data\[0\]\[1\]\.x holds a lone surrogate"),
        ({"x": {"\udfff": 1}}, r"the key '\\udfff' of data\.x holds a lone surrogate"),
        ({"x": {(1, object): 1}}, "the key <tuple> of data.x"),
        (cyclic, r"data\.a\[1\] refers to a container that holds it"),
        ({"r": Record(1)}, r"data\.r .*dataclasses\.asdict"),
        ({"s": {1, Plain.ONE}}, r"data\.s\{\.\.\.\}"),
        ({"n": np.array([object()])}, r"data\.n .*dtype object"),
        ({"n": np.zeros(1, [("a", "i4")])}, r"data\.n .*dtype"),
        ({"n": np.ma.masked_array([1], [True])}, r"data\.n .*masked"),
        ({"f": lambda: 0}, r"data\.f"),
        (range(3), "data cannot be stored: values of type range"),
        ({"x": pa.array([1])}, r"data\.x"),
    ],
)
def test_what_cannot_be_stored_is_named(value, message):
    with pytest.raises(InvalidInputError, match=message):
        encode_value(value)
    assert decode_value(encode_value({"still": "works"})) == {"still": "works"}


def test_a_value_that_raises_while_it_is_read_does_not_break_the_next():
    class Trap(dict):
        def copy(self):
            raise RuntimeError

    class Loud:
        @property
        def model_dump(self):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        encode_value([Loud()])
    assert decode_value(encode_value([Trap(a=1)])) == [{"a": 1}]


def test_a_value_that_encodes_another_one_meanwhile_is_safe():
    class Nested(str):
        __slots__ = ()

        def __str__(self):
            return decode_value(encode_value([1, (2,)])).__repr__()

    assert decode_value(encode_value({"a": (1,), "b": Nested("x")})) == {"a": (1,), "b": "x"}


def test_newer_contents_are_format_errors():
    for content in (b"\x02\x00\xc0", b"\x01\x02\xc0", b"\x01\x00" + msgpack.packb(msgpack.ExtType(127, b""))):
        with pytest.raises(FormatError):
            decode_value(content)


def test_too_deep_or_too_long_claims_are_integrity_errors():
    for content in (b"\x01\x00" + b"\x91" * 5000 + b"\xc0", b"\x01\x00\xdd\xff\xff\xff\xff", b"\x01\x00", b""):
        with pytest.raises(IntegrityError):
            decode_value(content)


def test_plain_values_need_neither_numpy_nor_arrow():
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['pyarrow'] = None\n"
        "from agentdb.storage.values import decode_value, encode_value\n"
        "assert decode_value(encode_value({'a': (1, {2}), 'b': 2**70})) == {'a': (1, {2}), 'b': 2**70}\n"
        "try: decode_value(encode_value([object()]))\n"
        "except ValueError: print('ok')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "ok\n"


def test_other_values_survive():
    value = [date(1, 1, 1), time(23, 59, 59, 999999), timedelta(-5, 3, 7), Decimal("-0E+5"), UUID(int=5), 1 - 2j]
    assert same(decode_value(encode_value(value)), value)
