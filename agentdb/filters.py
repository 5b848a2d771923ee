"""Filters: what rows a caller wants, as a typed tree, and the JSON encoding that makes it answerable by lookups.

``matches(filter, row)`` is the specification; the compilers of the storage tiers are held equal to it by a property test.

The logic is two-valued:

- A comparison with a missing or null value is false, and so is ``!=``: ``field("a") != 1`` means *present, not null, and
  different*. ``~`` is plain negation: ``~(field("a") == 1)`` also holds where ``a`` is missing or null.
- Missing is not null. A path into a JSON column is missing when a key on the way is absent or its parent is no object.
  A column itself is never missing: one that a row does not give is null.
- Values of different types are never equal and never ordered. Numbers compare as float64, so integers from 2**53 on compare
  by their nearest float64. Booleans are no numbers, and have no order. Times compare as instants.
- Text is ordered by code points, binary data by bytes. A path leads through objects only, never into lists;
  ``contains`` asks for a scalar element of a list.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as _attribute
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from json.encoder import encode_basestring
from typing import Any, ClassVar, Literal, NoReturn, cast

from agentdb.errors import IntegrityError, InvalidInputError
from agentdb.types import Row

__all__ = [
    "And",
    "Compare",
    "CompareOp",
    "Contains",
    "Exists",
    "Field",
    "Filter",
    "In",
    "IsNull",
    "Not",
    "Operand",
    "Or",
    "Path",
    "TextMatch",
    "columns_of",
    "decode_json",
    "derive_terms",
    "encode_json",
    "exists_term",
    "field",
    "item_term",
    "matches",
    "null_term",
    "parse_json",
    "validate",
    "value_term",
]

MAX_DEPTH = 64
MAX_NODES = 10_000
MAX_VALUES = 1_000_000
MAX_JSON_DEPTH = 128
MAX_TERM_TEXT = 200
"""Longer strings and paths enter a term as their digest of 160 bits, which is treated as exact."""

Path = tuple[str, ...]
"""A column, then the keys that lead into its JSON value."""
CompareOp = Literal["eq", "ne", "lt", "lte", "gt", "gte"]
Operand = str | float | bytes | tuple[str, int]
"""A comparable value: text, number, binary, or ``("b", 0 or 1)``, ``("t", microseconds)``, ``("d", days)``. Operands of
different types are never equal in Python either, which is the point of the form."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_ZERO = date(1970, 1, 1).toordinal()
_MICROSECOND = timedelta(microseconds=1)
_MISSING: Any = object()
# The first integers that round to infinity are +-(2**1024 - 2**970).
_MAX_INT = 2**1024 - 2**970 - 1


def _dotted(path: Iterable[str]) -> str:
    return ".".join(path)


def _operand(value: Any) -> Operand | None:
    """Return a stored value in comparable form, None if it is nothing that compares (a list, an object, a vector)."""
    kind = type(value)
    if kind is str:
        return cast(str, value)
    if kind is bool:
        return ("b", int(value))
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, datetime):
        return None if value.tzinfo is None else ("t", (value - _EPOCH) // _MICROSECOND)
    if isinstance(value, date):
        return ("d", value.toordinal() - _DAY_ZERO)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return None


def _checked_operand(path: Path, value: Any) -> Operand:
    """Return what a caller compares with in comparable form.

    Raises:
        InvalidInputError: it cannot be compared with.
    """
    where = f"filter on {_dotted(path)}"
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", ()):
        value = value.item()
    if value is None:
        raise InvalidInputError(f"{where}: nothing compares with None; use is_null() or exists()")
    if isinstance(value, Filter | Field):
        raise InvalidInputError(f"{where}: the operand must be a value, not another field or filter")
    if isinstance(value, datetime) and value.tzinfo is None:
        raise InvalidInputError(f"{where}: a datetime must be aware (have a time zone)")
    try:
        operand = _operand(value)
    except OverflowError:
        raise InvalidInputError(f"{where}: the number is out of the range of float64") from None
    if operand is None:
        raise InvalidInputError(
            f"{where}: the operand must be a string, number, bool, bytes, date or aware datetime, "
            f"not {type(value).__name__}"
        )
    if isinstance(operand, float) and not math.isfinite(operand):
        raise InvalidInputError(f"{where}: a number must be finite, not {operand}")
    if isinstance(operand, str):
        _check_text(where, operand)
    # 0.0 and -0.0 are equal but print differently, and terms are made of what is printed.
    return operand + 0.0 if isinstance(operand, float) else operand


def _check_text(where: str, text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInputError(f"{where}: the text holds a lone surrogate, which UTF-8 cannot store") from None


def _resolve(path: Path, row: Mapping[str, Any]) -> Any:
    value = row.get(path[0])
    for key in path[1:]:
        if not isinstance(value, dict) or key not in value:
            return _MISSING
        value = value[key]
    return value


# --- the tree ---------------------------------------------------------------------------------------------------------


class Filter(ABC):
    """A condition on rows: immutable, comparable, hashable; combined with ``&``, ``|`` and ``~``."""

    __slots__ = ()
    depth: int
    size: int

    def __and__(self, other: Filter) -> Filter:
        return And(self, other)

    def __or__(self, other: Filter) -> Filter:
        return Or(self, other)

    def __invert__(self) -> Filter:
        return self.condition if isinstance(self, Not) else Not(self)

    def __bool__(self) -> NoReturn:
        raise InvalidInputError(
            "a filter has no truth value: combine filters with & | ~ (in parentheses), not with and, or, not, "
            "and do not chain comparisons"
        )

    @abstractmethod
    def _holds(self, row: Mapping[str, Any]) -> bool:
        """Return whether ``row`` satisfies this filter."""


class _Leaf(Filter):
    __slots__ = ()
    path: Path
    depth: ClassVar[int] = 1  # type: ignore[misc]
    size: ClassVar[int] = 1  # type: ignore[misc]

    def _check_path(self) -> None:
        path: Any = self.path
        if not isinstance(path, tuple) or not path or not all(isinstance(one, str) for one in path):
            raise InvalidInputError("a field is a column name, then the keys (str) that lead into its JSON value")
        for one in self.path:
            _check_text("a field", one)


def _set(node: Filter, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(node, name, value)


@dataclass(frozen=True, slots=True)
class Compare(_Leaf):
    """The field is present, not null, and stands in relation ``op`` to ``value``."""

    path: Path
    op: CompareOp
    value: Any = _attribute(compare=False)
    operand: Operand = _attribute(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_path()
        if self.op not in ("eq", "ne", "lt", "lte", "gt", "gte"):
            raise InvalidInputError(f"filter on {_dotted(self.path)}: unknown comparison {self.op!r}")
        operand = _checked_operand(self.path, self.value)
        if isinstance(operand, tuple) and operand[0] == "b" and self.op not in ("eq", "ne"):
            raise InvalidInputError(f"filter on {_dotted(self.path)}: booleans have no order")
        _set(self, operand=operand)

    def _holds(self, row: Mapping[str, Any]) -> bool:
        value = _resolve(self.path, row)
        if value is None or value is _MISSING:
            return False
        mine: Any = self.operand
        other: Any = _operand(value)
        if self.op == "eq":
            return bool(other == mine)
        if self.op == "ne":
            return bool(other != mine)
        if type(other) is not type(mine) or (type(mine) is tuple and other[0] != mine[0]):
            return False
        match self.op:
            case "lt":
                return bool(other < mine)
            case "lte":
                return bool(other <= mine)
            case "gt":
                return bool(other > mine)
            case _:
                return bool(other >= mine)


def _operands(path: Path, values: Any, what: str) -> frozenset[Operand]:
    if len(values) > MAX_VALUES:
        raise InvalidInputError(
            f"filter on {_dotted(path)}: {what} takes at most {MAX_VALUES} values, not {len(values)}"
        )
    return frozenset(_checked_operand(path, one) for one in values)


@dataclass(frozen=True, slots=True)
class In(_Leaf):
    """The field is present, not null, and equal to one of ``values`` (``negated``: to none of them)."""

    path: Path
    values: tuple[Any, ...] = _attribute(compare=False)
    negated: bool = False
    operands: frozenset[Operand] = _attribute(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_path()
        _set(self, operands=_operands(self.path, self.values, "a membership test"))

    def _holds(self, row: Mapping[str, Any]) -> bool:
        value = _resolve(self.path, row)
        if value is None or value is _MISSING:
            return False
        return (_operand(value) in self.operands) is not self.negated


@dataclass(frozen=True, slots=True)
class Contains(_Leaf):
    """The field is a list, and at least one of ``values`` is among its elements."""

    path: Path
    values: tuple[Any, ...] = _attribute(compare=False)
    operands: frozenset[Operand] = _attribute(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_path()
        _set(self, operands=_operands(self.path, self.values, "contains"))

    def _holds(self, row: Mapping[str, Any]) -> bool:
        value = _resolve(self.path, row)
        if not isinstance(value, list | tuple):
            return False
        return any(_operand(item) in self.operands for item in value if item is not None)


@dataclass(frozen=True, slots=True)
class TextMatch(_Leaf):
    """The field is a text that contains ``text`` or, as ``mode`` says, begins with it; no character is a wildcard.

    Without ``case_sensitive``, ``str.lower()`` of both is compared.
    """

    path: Path
    text: str
    mode: Literal["substring", "prefix"] = "substring"
    case_sensitive: bool = True

    def __post_init__(self) -> None:
        self._check_path()
        where = f"filter on {_dotted(self.path)}"
        if not isinstance(self.text, str):
            raise InvalidInputError(f"{where}: the text to match must be a str, not {type(self.text).__name__}")
        if self.mode not in ("substring", "prefix"):
            raise InvalidInputError(f"{where}: unknown mode {self.mode!r}")
        _check_text(where, self.text)

    def _holds(self, row: Mapping[str, Any]) -> bool:
        value = _resolve(self.path, row)
        if not isinstance(value, str):
            return False
        text = self.text
        if not self.case_sensitive:
            value, text = value.lower(), text.lower()
        return value.startswith(text) if self.mode == "prefix" else text in value


@dataclass(frozen=True, slots=True)
class IsNull(_Leaf):
    """The field is present and null; a column that a row does not give is null."""

    path: Path

    def __post_init__(self) -> None:
        self._check_path()

    def _holds(self, row: Mapping[str, Any]) -> bool:
        return _resolve(self.path, row) is None


@dataclass(frozen=True, slots=True)
class Exists(_Leaf):
    """The field is present, be it null; always true of a column."""

    path: Path

    def __post_init__(self) -> None:
        self._check_path()

    def _holds(self, row: Mapping[str, Any]) -> bool:
        return _resolve(self.path, row) is not _MISSING


def _bounded(node: Filter, children: tuple[Filter, ...]) -> None:
    for one in children:
        if not isinstance(one, Filter):
            raise InvalidInputError(f"a filter is combined with filters only, not with {type(one).__name__}")
    depth = 1 + max((one.depth for one in children), default=0)
    size = 1 + sum(one.size for one in children)
    if depth > MAX_DEPTH:
        raise InvalidInputError(f"a filter may be nested at most {MAX_DEPTH} deep")
    if size > MAX_NODES:
        raise InvalidInputError(f"a filter may have at most {MAX_NODES} parts; use in_() for many values of one field")
    _set(node, depth=depth, size=size)


def _flat(kind: type[And | Or], filters: tuple[Filter, ...]) -> tuple[Filter, ...]:
    flat: list[Filter] = []
    for one in filters:
        if isinstance(one, kind):
            flat.extend(one.filters)
        else:
            flat.append(one)
    return tuple(flat)


@dataclass(frozen=True, slots=True, init=False)
class And(Filter):
    """All of ``filters`` hold; ``And()`` holds always."""

    filters: tuple[Filter, ...]
    depth: int = _attribute(compare=False, repr=False)
    size: int = _attribute(compare=False, repr=False)

    def __init__(self, *filters: Filter) -> None:
        flat = _flat(And, filters)
        _bounded(self, flat)
        _set(self, filters=flat)

    def _holds(self, row: Mapping[str, Any]) -> bool:
        return all(one._holds(row) for one in self.filters)


@dataclass(frozen=True, slots=True, init=False)
class Or(Filter):
    """At least one of ``filters`` holds; ``Or()`` holds never."""

    filters: tuple[Filter, ...]
    depth: int = _attribute(compare=False, repr=False)
    size: int = _attribute(compare=False, repr=False)

    def __init__(self, *filters: Filter) -> None:
        flat = _flat(Or, filters)
        _bounded(self, flat)
        _set(self, filters=flat)

    def _holds(self, row: Mapping[str, Any]) -> bool:
        return any(one._holds(row) for one in self.filters)


@dataclass(frozen=True, slots=True, init=False)
class Not(Filter):
    """``condition`` does not hold."""

    condition: Filter
    depth: int = _attribute(compare=False, repr=False)
    size: int = _attribute(compare=False, repr=False)

    def __init__(self, condition: Filter) -> None:
        _bounded(self, (condition,))
        _set(self, condition=condition)

    def _holds(self, row: Mapping[str, Any]) -> bool:
        return not self.condition._holds(row)


class Field:
    """A column, or a path into a JSON column; comparing it makes a `Filter`. Made by `field`."""

    __slots__ = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, key: str) -> Field:
        """Return the field below this one: ``field("metadata")["user"]`` is ``field("metadata", "user")``."""
        return field(*self.path, key)

    # Without these, `x in field("a")` and iteration would call __getitem__ with 0, 1, 2, ...
    __iter__ = None

    def __contains__(self, value: Any) -> NoReturn:
        raise InvalidInputError("use field.contains(value), not 'value in field'")

    def __bool__(self) -> NoReturn:
        raise InvalidInputError("a field has no truth value; compare it, or use exists()")

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return Compare(self.path, "eq", value)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return Compare(self.path, "ne", value)

    def __lt__(self, value: Any) -> Filter:
        return Compare(self.path, "lt", value)

    def __le__(self, value: Any) -> Filter:
        return Compare(self.path, "lte", value)

    def __gt__(self, value: Any) -> Filter:
        return Compare(self.path, "gt", value)

    def __ge__(self, value: Any) -> Filter:
        return Compare(self.path, "gte", value)

    # A set or dict would take the filters that == returns for answers.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"field({', '.join(map(repr, self.path))})"

    def in_(self, values: Iterable[Any]) -> Filter:
        """Return: present, not null, and equal to one of ``values``."""
        return In(self.path, _values(self.path, values))

    def not_in(self, values: Iterable[Any]) -> Filter:
        """Return: present, not null, and equal to none of ``values``."""
        return In(self.path, _values(self.path, values), negated=True)

    def contains(self, value: Any) -> Filter:
        """Return: a list with ``value`` among its elements."""
        return Contains(self.path, (value,))

    def contains_any(self, values: Iterable[Any]) -> Filter:
        """Return: a list with at least one of ``values`` among its elements."""
        return Contains(self.path, _values(self.path, values))

    def contains_all(self, values: Iterable[Any]) -> Filter:
        """Return: each of ``values`` is among the elements of the list; true of anything where there are none."""
        return And(*(Contains(self.path, (one,)) for one in _values(self.path, values)))

    def matches(self, text: str, *, case_sensitive: bool = True) -> Filter:
        """Return: a text that contains ``text``, in which no character is a wildcard."""
        return TextMatch(self.path, text, case_sensitive=case_sensitive)

    def startswith(self, text: str, *, case_sensitive: bool = True) -> Filter:
        """Return: a text that begins with ``text``."""
        return TextMatch(self.path, text, "prefix", case_sensitive)

    def is_null(self) -> Filter:
        """Return: present and null. The negation also holds where the field is missing."""
        return IsNull(self.path)

    def exists(self) -> Filter:
        """Return: present, be it null; always true of a column."""
        return Exists(self.path)


def field(column: str, *keys: str) -> Field:
    """Return a column, or the path that ``keys`` describe into its JSON value, to be compared.

    ``field("author") == "ann"``, ``field("metadata", "user", "age") >= 3``, ``field("metadata", "tags").contains("x")``.

    Raises:
        InvalidInputError: a name is no string. List positions cannot be addressed; see `Field.contains`.
    """
    path = (column, *keys)
    for one in path:
        if not isinstance(one, str):
            raise InvalidInputError(f"field() takes a column and keys, all str, not {type(one).__name__}")
    return Field(path)


def _values(path: Path, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidInputError(f"filter on {_dotted(path)}: expected a list of values, not {type(values).__name__}")
    return tuple(values)


def matches(condition: Filter, row: Row | Mapping[str, Any]) -> bool:
    """Return whether ``row`` satisfies ``condition``: the specification of every other evaluation."""
    return condition._holds(row)


def _leaves(condition: Filter) -> Iterable[_Leaf]:
    pending = [condition]
    while pending:
        one = pending.pop()
        if isinstance(one, And | Or):
            pending.extend(one.filters)
        elif isinstance(one, Not):
            pending.append(one.condition)
        else:
            yield cast(_Leaf, one)


def columns_of(condition: Filter) -> frozenset[str]:
    """Return the columns that `matches` reads."""
    return frozenset(one.path[0] for one in _leaves(condition))


def validate(condition: Filter, kinds: Mapping[str, str]) -> None:
    """Accept a filter that asks only for what a table has.

    Args:
        condition: any filter.
        kinds: column names and their kinds; paths lead into the kind ``"json"`` only.

    Raises:
        InvalidInputError: an unknown column, a path into a column that is not JSON, or no filter at all.
    """
    if not isinstance(condition, Filter):
        raise InvalidInputError(f"a filter is built from field(...), not given as {type(condition).__name__}")
    for one in _leaves(condition):
        name = one.path[0]
        kind = kinds.get(name)
        if kind is None:
            raise InvalidInputError(f"filter: there is no column {name!r}; the columns are {', '.join(kinds)}")
        if len(one.path) > 1 and kind != "json":
            raise InvalidInputError(f"filter: {_dotted(one.path)} leads into column {name!r}, which holds no JSON")


# --- JSON -------------------------------------------------------------------------------------------------------------

_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


def _sound(value: Any, depth: int) -> bool:
    """Return whether JSON's own encoder, given a value, would neither coerce a key nor exceed a bound."""
    kind = type(value)
    if kind is str or value is None or kind is float or kind is bool:
        return True
    if kind is dict:
        if depth > MAX_JSON_DEPTH:
            return False
        for key, one in value.items():
            if type(key) is not str:
                return False
            kind = type(one)
            if not (kind is str or kind is float or kind is bool) and not _sound(one, depth + 1):
                return False
        return True
    if kind is list or kind is tuple:
        if depth > MAX_JSON_DEPTH:
            return False
        return all(type(one) is str or _sound(one, depth + 1) for one in value)
    return kind is int and -_MAX_INT <= value <= _MAX_INT


def encode_json(value: Any, *, path: str = "") -> str:
    """Return the canonical text of a JSON value: `decode_json` gives back an equal value, and equal values equal texts.

    Keys are sorted; integers keep all their digits; tuples are lists. (1 and 1.0 stay different texts.)

    Args:
        value: dicts with str keys, lists, tuples, str, int, float, bool, None.
        path: how errors name the value, for example a column.

    Raises:
        InvalidInputError: NaN, infinity, a lone surrogate, a key that is no str, a number beyond float64, another type, or
            nesting deeper than 128; the message names the place, such as ``metadata.tags[3]``.
    """
    if not _sound(value, 0):
        value = _plain(value, path, 0)
    try:
        text = _encode(value)
        if not text.isascii():
            text.encode()
    except (TypeError, ValueError):
        _plain(value, path, 0)
        raise
    return text


def _plain(value: Any, where: str, depth: int) -> Any:
    """Return a JSON value made of exact built-in types, or raise the error that names what is wrong where."""
    here = where or "the value"
    if depth > MAX_JSON_DEPTH:
        raise InvalidInputError(f"{here}: nested deeper than {MAX_JSON_DEPTH}")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _check_text(here, value)
        return str.__str__(value)
    if isinstance(value, int):
        if not -_MAX_INT <= value <= _MAX_INT:
            raise InvalidInputError(f"{here}: the number is out of the range of float64")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInputError(f"{here}: a number must be finite, not {float(value)}")
        return float(value)
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, one in value.items():
            if not isinstance(key, str):
                raise InvalidInputError(f"{here}: a key must be a str, not {type(key).__name__}")
            _check_text(f"{here}: a key", key)
            found[str.__str__(key)] = _plain(one, f"{where}.{key}" if where else key, depth + 1)
        return found
    if isinstance(value, list | tuple):
        return [_plain(one, f"{where}[{i}]", depth + 1) for i, one in enumerate(value)]
    raise InvalidInputError(f"{here}: JSON holds no {type(value).__name__}")


def decode_json(text: str) -> Any:
    """Return the value that `encode_json` wrote.

    Raises:
        IntegrityError: the text is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise IntegrityError("stored JSON cannot be read") from None


def parse_json(text: str, *, path: str = "") -> Any:
    """Return the value of a foreign JSON text, which `encode_json` accepts.

    Raises:
        InvalidInputError: no JSON, a key given twice in one object, or anything that `encode_json` refuses.
    """
    where = path or "the value"

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise InvalidInputError(f"{where}: an object has the same key twice")
        return made

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except InvalidInputError:
        raise
    except (ValueError, TypeError, RecursionError):
        raise InvalidInputError(f"{where} is not valid JSON") from None
    return value if _sound(value, 0) and _finite(value) else _plain(value, path, 0)


def _finite(value: Any) -> bool:
    try:
        return bool(_encode(value).encode())
    except ValueError:
        return False


# --- terms ------------------------------------------------------------------------------------------------------------
# A term is PATH " CODE. In PATH the column and the keys are escaped as in JSON strings and joined by "/" (a "/" inside is
# "\/"), so the first bare quotation mark ends it. CODE: e (present and not null), 0 (null), t, f, n<number>, "<text>",
# h<digest of a longer text>, and [ before the code of a list's element. No term holds a control character.


@lru_cache(maxsize=4096)
def _segment(key: str) -> str:
    return encode_basestring(key)[1:-1].replace("/", "\\/")


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=20).hexdigest()


def _short(path: str) -> str:
    # A digest follows a bare quotation mark and "#", which begins no code: it cannot be taken for a path.
    return path if len(path) <= MAX_TERM_TEXT else f'"#{_digest(path)}'


def _code(value: Any) -> str | None:
    """Return the code of a scalar, None for anything else; the callers put path and quotation mark before it."""
    kind = type(value)
    if kind is str:
        return encode_basestring(value) if len(value) <= MAX_TERM_TEXT else "h" + _digest(value)
    if kind is bool:
        return "t" if value else "f"
    if kind is float or kind is int:
        return f"n{value + 0.0!r}"
    if isinstance(value, str):
        return _code(str.__str__(value))
    if isinstance(value, int | float):
        return f"n{float(value) + 0.0!r}"
    return None


def _walk(value: Any, path: str, terms: list[str]) -> None:
    head = (path if len(path) <= MAX_TERM_TEXT else _short(path)) + '"'
    if value is None:
        terms.append(head + "0")
        return
    terms.append(head + "e")
    kind = type(value)
    if kind is str and len(value) <= MAX_TERM_TEXT:
        terms.append(head + encode_basestring(value))
    elif isinstance(value, dict):
        for key, one in value.items():
            _walk(one, f"{path}/{_segment(key)}", terms)
    elif isinstance(value, list | tuple):
        head += "["
        for one in value:
            code = _code(one)
            if code is not None:
                terms.append(head + code)
    else:
        terms.append(head + (_code(value) or ""))


def derive_terms(columns: Mapping[str, Any]) -> list[str]:
    """Return the distinct terms of JSON columns, by which every equality, membership, contains, null and existence test is a lookup.

    Args:
        columns: JSON columns and their values, which `encode_json` accepts. A column that is None has no terms.
    """
    terms: list[str] = []
    for name, value in columns.items():
        if value is not None:
            _walk(value, _segment(name), terms)
    return list(dict.fromkeys(terms))


def _head(path: Path) -> str:
    return _short("/".join(map(_segment, path))) + '"'


def _operand_code(operand: Operand) -> str | None:
    if isinstance(operand, tuple):
        return ("t" if operand[1] else "f") if operand[0] == "b" else None
    return None if isinstance(operand, bytes) else _code(operand)


def exists_term(path: Path) -> str:
    """Return the term of rows in which ``path`` is present and not null."""
    return _head(path) + "e"


def null_term(path: Path) -> str:
    """Return the term of rows in which ``path``, which leads into a column, is present and null."""
    return _head(path) + "0"


def value_term(path: Path, operand: Operand) -> str | None:
    """Return the term of rows in which ``path`` equals an operand; None: JSON holds no such value."""
    code = _operand_code(operand)
    return None if code is None else _head(path) + code


def item_term(path: Path, operand: Operand) -> str | None:
    """Return the term of rows in which ``path`` is a list with an operand in it; None: JSON holds no such value."""
    code = _operand_code(operand)
    return None if code is None else f"{_head(path)}[{code}"
