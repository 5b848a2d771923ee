"""The one compiler of filters for each tier; ``agentdb.filters.matches`` says what they must mean.

Every compiled predicate selects at least the rows that match. ``exact`` says that it selects no others; where it is not, the
caller evaluates the rest in Python before it counts, limits or ranks.

Negations are pushed down to the leaves first. Above them only AND and OR remain, so a leaf needs just one thing, a superset of
its own rows (or of all others, where it is negated), and SQL's NULL counts as false everywhere. For the same reason a
predicate may stand in a WHERE clause only, never under a NOT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, cast

import numpy as np

from agentdb.errors import InvalidInputError
from agentdb.filters import (
    And,
    Compare,
    CompareOp,
    Contains,
    Exists,
    Filter,
    In,
    IsNull,
    Not,
    Operand,
    Or,
    TextMatch,
    exists_term,
    item_term,
    null_term,
    validate,
    value_term,
)
from agentdb.storage.schema import Column, TableSchema, after_prefix, encode_key_part

__all__ = [
    "KeyBounds",
    "LancePredicate",
    "SqlPredicate",
    "compile_lance",
    "compile_sqlite",
    "key_bounds",
    "lance_has",
    "lance_in",
    "lance_key_range",
]

_U64_OFFSET = 1 << 63
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_GROUP = 8
"""Chains are balanced in groups: SQLite counts every link of ``a OR b OR c`` as one level of nesting."""
_MAX_SQLITE_DEPTH = 800
_MAX_SQLITE_PARAMS = 32_000
_MAX_LANCE_DEPTH = 36
"""Its SQL parser refuses 50 parentheses within each other."""
_MAX_BOUND_FLOATS = 500
_ARROW_NAMES = {f"{sign}int{bits}": f"{sign.upper()}Int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_ARROW_NAMES |= {"large_string": "LargeUtf8", "large_binary": "LargeBinary"}
_MAX_INTERVALS = 200


@dataclass(frozen=True, slots=True)
class SqlPredicate:
    """A condition for the WHERE clause of a query on a hot table, which selects every matching row.

    Attributes:
        sql: with ``?`` for each parameter; ``"1"`` selects all, ``"0"`` nothing.
        params: str, int, float or bytes, in order.
        exact: no other row is selected.
    """

    sql: str
    params: tuple[Any, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class LancePredicate:
    """A filter for Lance's scanner, which selects every matching row.

    Attributes:
        sql: None selects all, ``"false"`` nothing.
        exact: no other row is selected.
    """

    sql: str | None
    exact: bool


@dataclass(frozen=True, slots=True)
class KeyBounds:
    """A range of ``_key`` in which every matching row lies; the filter itself still applies.

    Attributes:
        low: inclusive; None: from the first.
        high: exclusive; None: to the last.
        key: the only ``_key`` that can match, where every key column is given.
        fixed: how many leading key columns have one value each in it.
    """

    low: str | None
    high: str | None
    key: str | None = None
    fixed: int = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a predicate: a superset of what it stands for, exact or not. ``sql`` True and False are the constants."""

    sql: str | bool
    exact: bool = True
    params: tuple[Any, ...] = ()
    depth: int = 1


_ALL = _Piece(sql=True)
_NONE = _Piece(sql=False)
_UNKNOWN = _Piece(sql=True, exact=False)


# --- what an operand means for a column -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Range:
    """The values of a column between two bounds, both inclusive; None: no bound. Text and binary may have open ends."""

    low: Any = None
    high: Any = None
    low_open: bool = False
    high_open: bool = False

    @property
    def single(self) -> bool:
        return self.low is not None and self.low == self.high and not self.low_open and not self.high_open

    @property
    def whole(self) -> bool:
        return self.low is None and self.high is None


def _integer_limits(type_name: str) -> tuple[int, int]:
    bits = int("".join(filter(str.isdigit, type_name)))
    return (0, (1 << bits) - 1) if type_name.startswith("u") else (-(1 << bits - 1), (1 << bits - 1) - 1)


def _integers_equal_to(number: float) -> tuple[int, int]:
    """Return the first and last integer whose nearest float64 is ``number``, which is integral."""
    exact = int(number)
    if abs(exact) < 1 << 53:
        return exact, exact
    below = (int(math.nextafter(number, -math.inf)) + exact + 1) // 2
    after = math.nextafter(number, math.inf)
    above = (exact + (int(after) if math.isfinite(after) else 2**1024)) // 2

    def rounds_here(integer: int) -> bool:
        try:
            return float(integer) == number
        except OverflowError:
            return False

    return (below if rounds_here(below) else below + 1), (above if rounds_here(above) else above - 1)


def _integer_range(type_name: str, op: CompareOp, number: float) -> _Range | None:
    if number.is_integer():
        first, last = _integers_equal_to(number)
    else:
        first, last = math.ceil(number), math.floor(number)
        if op == "eq":
            return None
    least, most = _integer_limits(type_name)
    low = first if op in ("eq", "gte") else last + 1 if op == "gt" else least
    high = last if op in ("eq", "lte") else first - 1 if op == "lt" else most
    if low > most or high < least or low > high:
        return None
    if op == "eq":
        return _Range(max(low, least), min(high, most))
    return _Range(low if low > least else None, high if high < most else None)


def _float_range(type_name: str, op: CompareOp, number: float) -> _Range | None:
    if type_name == "float64":
        least = most = number
        after: Callable[[float, float], float] = math.nextafter
    else:
        with np.errstate(over="ignore", under="ignore"):
            near = np.float32(number)

        def after(one: float, towards: float) -> float:
            with np.errstate(over="ignore", under="ignore"):
                return float(np.nextafter(np.float32(one), np.float32(towards)))

        # The least float32 that is no smaller, and the greatest that is no larger.
        least = float(near) if float(near) >= number else after(float(near), math.inf)
        most = float(near) if float(near) <= number else after(float(near), -math.inf)
    match op:
        case "eq":
            return _Range(least, most) if least == most else None
        case "lt":
            return _Range(high=after(least, -math.inf))
        case "lte":
            return _Range(high=most)
        case "gt":
            return _Range(low=after(most, math.inf))
        case _:
            return _Range(low=least)


def _ordered_range(op: CompareOp, value: Any) -> _Range:
    match op:
        case "eq":
            return _Range(value, value)
        case "lt":
            return _Range(high=value, high_open=True)
        case "lte":
            return _Range(high=value)
        case "gt":
            return _Range(low=value, low_open=True)
        case _:
            return _Range(low=value)


def _range(kind: str, type_name: str, op: CompareOp, operand: Operand) -> _Range | None:
    """Return which values of a column's type stand in relation ``op`` (not ``ne``) to an operand; None: not one."""
    if isinstance(operand, tuple):
        tag, number = operand
        if tag == {"bool": "b", "timestamp": "t", "date": "d"}.get(kind):
            return _ordered_range(op, number)
        return None
    if isinstance(operand, float):
        if kind in ("int", "uint64"):
            return _integer_range(type_name, op, operand)
        return _float_range(type_name, op, operand) if kind == "float" else None
    if isinstance(operand, bytes):
        return _ordered_range(op, operand) if kind == "binary" else None
    return _ordered_range(op, operand) if kind == "string" else None


def _successor(prefix: str) -> str | None:
    """Return the least text greater than every text that begins with ``prefix``; None: there is none."""
    text = prefix
    while text:
        code = ord(text[-1]) + 1
        if code == 0xD800:
            code = 0xE000
        if code <= 0x10FFFF:
            return text[:-1] + chr(code)
        text = text[:-1]
    return None


def _prefix_range(prefix: str) -> _Range:
    return _Range(prefix or None, _successor(prefix), high_open=True)


# --- the tree, alike for both tiers -----------------------------------------------------------------------------------


class _Tier(Protocol):
    """What a tier must be able to say. Each leaf is a superset of its rows, or, negated, of all the others."""

    max_depth: int

    def null(self, column: Column, *, negated: bool) -> _Piece: ...
    def ranges(self, column: Column, ranges: Sequence[_Range], *, negated: bool) -> _Piece: ...
    def substring(self, column: Column, text: str, *, case_sensitive: bool, negated: bool) -> _Piece: ...
    def items(self, column: Column, operands: Iterable[Operand], *, negated: bool) -> _Piece: ...
    def terms(self, terms: Sequence[str], *, negated: bool) -> _Piece: ...


def _join(word: str, pieces: Sequence[_Piece]) -> _Piece:
    """Return pieces combined by AND or OR, none of them a constant."""
    while len(pieces) > 1:
        groups = [pieces[start : start + _GROUP] for start in range(0, len(pieces), _GROUP)]
        pieces = [
            group[0]
            if len(group) == 1
            else _Piece(
                "(" + f" {word} ".join(cast(str, one.sql) for one in group) + ")",
                all(one.exact for one in group),
                tuple(param for one in group for param in one.params),
                max(one.depth for one in group) + 1,
            )
            for group in groups
        ]
    return pieces[0]


def _combine(tier: _Tier, pieces: Iterable[_Piece], *, conjunction: bool) -> _Piece:
    kept: list[_Piece] = []
    exact = True
    for one in pieces:
        piece = one if one.depth < tier.max_depth else _UNKNOWN
        if piece.sql is not conjunction and isinstance(piece.sql, bool):
            # A superset that is empty is exact; one that is everything makes the whole as vague as it is itself.
            return _NONE if conjunction else (_ALL if piece.exact else _UNKNOWN)
        exact = exact and piece.exact
        if not isinstance(piece.sql, bool):
            kept.append(piece)
    if not kept:
        return _Piece(sql=conjunction, exact=exact)
    joined = _join("AND" if conjunction else "OR", kept)
    return _Piece(joined.sql, exact, joined.params, joined.depth)


def _compile(tier: _Tier, schema: TableSchema, node: Filter, *, negated: bool) -> _Piece:
    match node:
        case Not(condition=inner):
            return _compile(tier, schema, inner, negated=not negated)
        case And(filters=filters) | Or(filters=filters):
            pieces = (_compile(tier, schema, one, negated=negated) for one in filters)
            return _combine(tier, pieces, conjunction=isinstance(node, And) is not negated)
        case _:
            column = schema.column(cast(Any, node).path[0])
            if column.kind == "json":
                return _json_leaf(tier, node, negated=negated)
            return _column_leaf(tier, column, node, negated=negated)


def _column_leaf(tier: _Tier, column: Column, node: Filter, *, negated: bool) -> _Piece:
    match node:
        case Exists():
            return _NONE if negated else _ALL
        case IsNull():
            return tier.null(column, negated=negated)
        case Compare(op="ne", operand=operand):
            return _different(tier, column, [operand], negated=negated)
        case Compare(op=op, operand=operand):
            found = _range(column.kind, column.type_name, op, operand)
            return _ranges(tier, column, [found], negated=negated)
        case In(operands=operands, negated=True):
            return _different(tier, column, operands, negated=negated)
        case In(operands=operands):
            return _ranges(tier, column, _equal(column, operands), negated=negated)
        case TextMatch(text=text, mode=mode, case_sensitive=sensitive):
            if column.kind != "string":
                return _ALL if negated else _NONE
            if mode == "substring":
                return tier.substring(column, text, case_sensitive=sensitive, negated=negated)
            if sensitive:
                return _ranges(tier, column, [_prefix_range(text)], negated=negated)
            if negated:
                return _UNKNOWN
            return _inexact(tier.substring(column, text, case_sensitive=False, negated=False))
        case Contains(operands=operands):
            if column.kind != "list" or not operands:
                return _ALL if negated else _NONE
            return tier.items(column, operands, negated=negated)
        case _:
            raise InvalidInputError(f"unknown filter {type(node).__name__}")


def _inexact(piece: _Piece) -> _Piece:
    return _Piece(piece.sql, False, piece.params, piece.depth)


def _equal(column: Column, operands: Iterable[Operand]) -> list[_Range | None]:
    return [_range(column.kind, column.type_name, "eq", one) for one in operands]


def _ranges(tier: _Tier, column: Column, found: Iterable[_Range | None], *, negated: bool) -> _Piece:
    ranges = [one for one in found if one is not None]
    if not ranges:
        return _ALL if negated else _NONE
    if any(one.whole for one in ranges):
        return tier.null(column, negated=not negated)
    return tier.ranges(column, ranges, negated=negated)


def _different(tier: _Tier, column: Column, operands: Iterable[Operand], *, negated: bool) -> _Piece:
    """``!=`` and ``not_in``: not null and equal to none; negated: null or equal to one."""
    parts = (
        tier.null(column, negated=not negated),
        _ranges(tier, column, _equal(column, operands), negated=not negated),
    )
    return _combine(tier, parts, conjunction=not negated)


def _json_leaf(tier: _Tier, node: Filter, *, negated: bool) -> _Piece:
    path = cast(Any, node).path
    present = exists_term(path)
    match node:
        case Exists():
            if len(path) == 1:
                return _NONE if negated else _ALL
            return tier.terms([present, null_term(path)], negated=negated)
        case IsNull():
            if len(path) == 1:
                return tier.terms([present], negated=not negated)
            return tier.terms([null_term(path)], negated=negated)
        case Compare(op="eq" | "ne", operand=operand):
            codes = [value_term(path, operand)]
        case In(operands=operands):
            codes = [value_term(path, one) for one in operands]
        case Contains(operands=operands):
            codes = [item_term(path, one) for one in operands]
        case Compare(operand=tuple() | bytes()):
            # JSON holds no time, date or binary to be in any order with.
            return _ALL if negated else _NONE
        case _:
            return _UNKNOWN if negated else _inexact(tier.terms([present], negated=False))
    terms = sorted(one for one in codes if one is not None)
    if (isinstance(node, Compare) and node.op == "ne") or (isinstance(node, In) and node.negated):
        parts = [tier.terms([present], negated=negated)]
        if terms:
            parts.append(tier.terms(terms, negated=not negated))
        elif negated:
            parts.append(_NONE)
        return _combine(tier, parts, conjunction=not negated)
    if not terms:
        return _ALL if negated else _NONE
    return tier.terms(terms, negated=negated)


# --- SQLite -----------------------------------------------------------------------------------------------------------


class _Sqlite:
    max_depth = _MAX_SQLITE_DEPTH // (_GROUP + 2)

    def __init__(self, schema: TableSchema, rows_table: str, terms_table: str) -> None:
        self._here = frozenset(schema.sql_columns)
        self._rows = rows_table
        self._terms = terms_table

    def _name(self, column: Column) -> str:
        return f'{self._rows}."c_{column.name}"'

    def null(self, column: Column, *, negated: bool) -> _Piece:
        if column.name not in self._here:
            return _UNKNOWN
        return _Piece(f"{self._name(column)} IS {'NOT ' if negated else ''}NULL")

    def ranges(self, column: Column, ranges: Sequence[_Range], *, negated: bool) -> _Piece:
        if column.name not in self._here:
            return _UNKNOWN
        name = self._name(column)
        offset = _U64_OFFSET if column.kind == "uint64" else 0
        singles = [one.low - offset if offset else one.low for one in ranges if one.single]
        wide = [one for one in ranges if not one.single]
        # One parameter for a list of any length. Floats are bound one by one: SQLite would have to parse their decimals.
        if len(wide) > _MAX_INTERVALS or (column.kind == "float" and len(singles) > _MAX_BOUND_FLOATS):
            return _UNKNOWN
        params: list[Any] = []
        parts: list[str] = []
        if len(singles) == 1 or (singles and column.kind == "float"):
            parts.append(f"{name} = ?" if len(singles) == 1 else f"{name} IN ({', '.join('?' * len(singles))})")
            params += singles
        elif singles and column.kind == "binary":
            parts.append(f"{name} IN (SELECT unhex(value) FROM json_each(?))")  # noqa: S608 - a column name of the schema
            params.append(json.dumps([one.hex() for one in singles]))
        elif singles:
            parts.append(f"{name} IN (SELECT value FROM json_each(?))")  # noqa: S608 - a column name of the schema
            params.append(json.dumps(singles))
        for one in wide:
            ends = []
            if one.low is not None:
                ends.append(f"{name} >{'' if one.low_open else '='} ?")
                params.append(one.low - offset if offset else one.low)
            if one.high is not None:
                ends.append(f"{name} <{'' if one.high_open else '='} ?")
                params.append(one.high - offset if offset else one.high)
            parts.append(f"({' AND '.join(ends)})" if len(ends) > 1 else ends[0])
        joined = _join("OR", [_Piece(one) for one in parts])
        sql = f"({name} IS NULL OR NOT ({joined.sql}))" if negated else cast(str, joined.sql)
        return _Piece(sql, True, tuple(params), joined.depth + 3)

    def substring(self, column: Column, text: str, *, case_sensitive: bool, negated: bool) -> _Piece:
        if column.name not in self._here:
            return _UNKNOWN
        name = self._name(column)
        if not case_sensitive:
            # SQLite's lower() knows ASCII only, and "K" may be the lower case of the Kelvin sign.
            return _UNKNOWN if negated else _Piece(f"{name} IS NOT NULL", exact=False)
        if negated:
            return _Piece(f"({name} IS NULL OR instr({name}, ?) = 0)", params=(text,))
        return _Piece(f"instr({name}, ?) > 0", params=(text,))

    def items(self, column: Column, operands: Iterable[Operand], *, negated: bool) -> _Piece:  # noqa: ARG002
        return _UNKNOWN

    def terms(self, terms: Sequence[str], *, negated: bool) -> _Piece:
        if len(terms) == 1:
            inner, param = "term = ?", terms[0]
        else:
            inner, param = "term IN (SELECT value FROM json_each(?))", json.dumps(terms, ensure_ascii=False)
        word = "NOT IN" if negated else "IN"
        sql = f"{self._rows}.id {word} (SELECT id FROM {self._terms} WHERE {inner})"  # noqa: S608 - the engine's names
        return _Piece(sql, params=(param,))


def compile_sqlite(condition: Filter, schema: TableSchema, rows_table: str, terms_table: str) -> SqlPredicate:
    """Return a condition on the hot tier that selects every row that matches, for a WHERE clause.

    Args:
        condition: any filter.
        schema: of the table.
        rows_table: how the query names the table of rows: its name or an alias, quoted where it needs to be.
        terms_table: the name of the table of terms.

    Raises:
        InvalidInputError: the filter names a column that the table does not have.
    """
    validate(condition, schema.kinds)
    piece = _compile(_Sqlite(schema, rows_table, terms_table), schema, condition, negated=False)
    if isinstance(piece.sql, bool):
        return SqlPredicate("1" if piece.sql else "0", (), piece.exact)
    if len(piece.params) > _MAX_SQLITE_PARAMS:
        return SqlPredicate("1", (), exact=False)
    return SqlPredicate(piece.sql, piece.params, piece.exact)


# --- Lance ------------------------------------------------------------------------------------------------------------


def _literal(kind: str, value: Any) -> str:
    """Return a value of a column's physical domain as a literal: the only place where text enters Lance's SQL."""
    match kind:
        case "string":
            return "'" + cast(str, value).replace("'", "''") + "'"
        case "binary":
            return f"X'{cast(bytes, value).hex()}'"
        case "bool":
            return "true" if value else "false"
        case "timestamp":
            return f"to_timestamp_micros({int(value)})"
        case "date":
            return f"date '{(_EPOCH + timedelta(days=value)).date().isoformat()}'"
        case "float":
            # Rust reads 1e400 as infinity; there is no literal of that name.
            return repr(float(value)) if math.isfinite(value) else ("1e400" if value > 0 else "-1e400")
        case _:
            # The digits of the least int64 are parsed before their sign, and do not fit.
            return str(int(value)) if value != -(1 << 63) else "CAST('-9223372036854775808' AS BIGINT)"


class _Lance:
    max_depth = _MAX_LANCE_DEPTH

    def null(self, column: Column, *, negated: bool) -> _Piece:
        return _Piece(f"`{column.name}` IS {'NOT ' if negated else ''}NULL")

    def ranges(self, column: Column, ranges: Sequence[_Range], *, negated: bool) -> _Piece:
        name, kind = f"`{column.name}`", column.kind
        singles = [_literal(kind, one.low) for one in ranges if one.single]
        wide = [one for one in ranges if not one.single]
        if len(wide) > _MAX_INTERVALS:
            return _UNKNOWN
        parts = []
        if singles:
            parts.append(f"{name} = {singles[0]}" if len(singles) == 1 else f"{name} IN ({', '.join(singles)})")
        for one in wide:
            ends = []
            if one.low is not None:
                ends.append(f"{name} >{'' if one.low_open else '='} {_literal(kind, one.low)}")
            if one.high is not None:
                ends.append(f"{name} <{'' if one.high_open else '='} {_literal(kind, one.high)}")
            parts.append(f"({' AND '.join(ends)})" if len(ends) > 1 else ends[0])
        joined = _join("OR", [_Piece(one) for one in parts])
        if negated:
            return _Piece(f"({name} IS NULL OR NOT ({joined.sql}))", depth=joined.depth + 3)
        return _Piece(joined.sql, depth=joined.depth + 2)

    def substring(self, column: Column, text: str, *, case_sensitive: bool, negated: bool) -> _Piece:
        name = f"`{column.name}`"
        lowered = text if case_sensitive else text.lower()
        if not case_sensitive and not lowered.isascii():
            # Python and Rust may follow different versions of Unicode; which letters have ASCII lower cases never changes.
            return _UNKNOWN if negated else _Piece(f"{name} IS NOT NULL", exact=False)
        test = f"contains({name if case_sensitive else f'lower({name})'}, {_literal('string', lowered)})"
        return _Piece(f"({name} IS NULL OR NOT {test})" if negated else test, depth=4)

    def items(self, column: Column, operands: Iterable[Operand], *, negated: bool) -> _Piece:
        name, kind = f"`{column.name}`", column.item_kind or ""
        ranges = [_range(kind, column.type_name[5:-1], "eq", one) for one in operands]
        literals: list[str] = []
        for one in ranges:
            if one is None:
                continue
            if not one.single:
                # Several integers share one float64, and array_has knows no ranges.
                return _UNKNOWN if negated else _Piece(f"{name} IS NOT NULL", exact=False)
            literal = _literal(kind, one.low)
            if arrow := _ARROW_NAMES.get(column.type_name[5:-1]):
                # array_has, unlike a comparison, does not look for a common type.
                literal = f"arrow_cast({literal}, '{arrow}')"
            literals.append(literal)
            if kind == "float" and one.low == 0:
                # Within lists 0.0 and -0.0 differ (in comparisons they do not).
                literals.append("-0.0")
        if not literals:
            return _ALL if negated else _NONE
        return self._has(name, literals, negated=negated)

    def terms(self, terms: Sequence[str], *, negated: bool) -> _Piece:
        return self._has("_terms", [_literal("string", one) for one in terms], negated=negated)

    @staticmethod
    def _has(name: str, literals: Sequence[str], *, negated: bool) -> _Piece:
        if len(literals) == 1:
            test = f"array_has({name}, {literals[0]})"
        else:
            test = f"array_has_any({name}, [{', '.join(literals)}])"
        return _Piece(f"({name} IS NULL OR NOT {test})" if negated else test, depth=4)


def compile_lance(condition: Filter, schema: TableSchema) -> LancePredicate:
    """Return a filter for Lance's scanner that selects every row that matches.

    Raises:
        InvalidInputError: the filter names a column that the table does not have.
    """
    validate(condition, schema.kinds)
    piece = _compile(_Lance(), schema, condition, negated=False)
    if isinstance(piece.sql, bool):
        return LancePredicate(None if piece.sql else "false", piece.exact)
    return LancePredicate(piece.sql, piece.exact)


def lance_in(column: str, values: Sequence[str]) -> str:
    """Return the predicate that a text column holds one of some values."""
    literals = [_literal("string", one) for one in values]
    return f"`{column}` = {literals[0]}" if len(literals) == 1 else f"`{column}` IN ({', '.join(literals)})"


def lance_has(column: str, text: str) -> str:
    """Return the predicate that a list of texts holds one."""
    return f"array_has(`{column}`, {_literal('string', text)})"


def lance_key_range(low: str | None, high: str | None, where: str | None) -> str | None:
    """Return a compiled predicate confined to a range of ``_key``; None selects all."""
    parts = []
    if low is not None:
        parts.append(f"_key >= {_literal('string', low)}")
    if high is not None:
        parts.append(f"_key < {_literal('string', high)}")
    if where is not None:
        parts.append(f"({where})")
    return " AND ".join(parts) or None


# --- the key ----------------------------------------------------------------------------------------------------------


def _conjuncts(condition: Filter) -> list[Filter]:
    return list(condition.filters) if isinstance(condition, And) else [condition]


def key_bounds(condition: Filter, schema: TableSchema) -> KeyBounds | None:
    """Return the range of ``_key`` that equalities on the leading key columns, and ranges on the next, confine a filter to.

    None where the filter says nothing about the first key column. Only the outermost AND is looked at.
    """
    by_column: dict[str, list[_Range]] = {}
    for one in _conjuncts(condition):
        if not isinstance(one, Compare | In | TextMatch) or len(one.path) != 1 or one.path[0] not in schema.key:
            continue
        column = schema.column(one.path[0])
        found = _confined(column, one)
        if found is not None:
            by_column.setdefault(column.name, []).append(found)
    prefix = ""
    for fixed, name in enumerate(schema.key):
        ranges = by_column.get(name, ())
        column = schema.column(name)
        single = next((one for one in ranges if one.single), None)
        if single is not None:
            prefix += encode_key_part(column, _physical(column, single.low)) + "\x01"
            continue
        low, high = (prefix, after_prefix(prefix)) if prefix else (None, None)
        for confined in ranges:
            first, last = _encoded(column, prefix, confined)
            low = max(filter(None, (low, first)), default=None)
            high = min(filter(None, (high, last)), default=None)
        return None if low is None and high is None else KeyBounds(low, high, fixed=fixed)
    return KeyBounds(prefix, after_prefix(prefix), prefix, len(schema.key))


def _physical(column: Column, value: Any) -> Any:
    return value - _U64_OFFSET if column.kind == "uint64" else value


def _confined(column: Column, node: Filter) -> _Range | None:
    """Return a range that holds every value of a key column that satisfies a leaf; None: not known to be confined."""
    if isinstance(node, Compare) and node.op != "ne":
        return _range(column.kind, column.type_name, node.op, node.operand)
    if isinstance(node, In) and not node.negated and len(node.operands) == 1:
        return _range(column.kind, column.type_name, "eq", next(iter(node.operands)))
    if isinstance(node, TextMatch) and node.mode == "prefix" and node.case_sensitive and column.kind == "string":
        return _prefix_range(node.text)
    return None


def _encoded(column: Column, prefix: str, found: _Range) -> tuple[str | None, str | None]:
    low = high = None
    if found.low is not None:
        part = prefix + encode_key_part(column, _physical(column, found.low))
        low = after_prefix(part + "\x01") if found.low_open else part
    if found.high is not None:
        part = prefix + encode_key_part(column, _physical(column, found.high)) + "\x01"
        high = part if found.high_open else after_prefix(part)
    return low, high
