"""Filters of a store: LangGraph's dialect, as a test of one value and as a filter tree that the database looks up.

The test is the specification, and follows ``InMemoryStore`` where that has an answer:

- a plain value must be equal; None also means that the key is missing; a list must have as many elements, equal one by one;
- a dictionary without operators asks the same of the object below a key, which may have more keys than are asked for;
- ``$eq $ne $gt $gte $lt $lte $in $nin`` compare, ``$not`` turns round, ``$and`` and ``$or`` combine, at any depth.

Numbers compare as numbers and texts as texts, by code points; what has another type is not in any order. A boolean is no number.
``$ne``, ``$nin`` and ``$not`` also hold where the key is missing. A key is a key: dots in it lead nowhere.
"""

from __future__ import annotations

import math
import operator as _operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentdb import And, Filter, InvalidInputError, Not, Or, field

__all__ = ["StoreFilter", "filterable"]

Test = Callable[[Any], bool]

_MISSING: Any = object()
_MAX_DEPTH = 32
_OPERATORS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$and", "$or", "$not")
_COMPARE = {"$gt": _operator.gt, "$gte": _operator.ge, "$lt": _operator.lt, "$lte": _operator.le}
_ALWAYS: Filter = And()
_NEVER: Filter = Or()


@dataclass(frozen=True, slots=True)
class _Part:
    """A condition in both forms. ``tree`` lets through whatever ``test`` does, and nothing else if it is exact."""

    test: Test
    tree: Filter
    is_exact: bool = True


class StoreFilter:
    """What a search asks of the values of items.

    Args:
        condition: the filter of a ``SearchOp``.
        base: the column, and keys in it, below which the values lie that the tree is for.

    Raises:
        InvalidInputError: an unknown operator, an operand that cannot be compared, or a key that is no text.
    """

    def __init__(self, condition: Mapping[str, Any] | None, *base: str) -> None:
        found: object = condition
        if found is not None and not isinstance(found, Mapping):
            raise InvalidInputError(f"filter must be a dict or None, not {type(found).__name__}")
        part = _object(base, condition, 0) if condition else None
        self.holds: Test = _anything if part is None else part.test
        """Whether the filter lets an item with this value through."""
        self.tree: Filter | None = None if part is None or part.tree == _ALWAYS else part.tree
        """Selects at least the rows that the filter lets through; None: every row."""
        self.is_exact = part is None or part.is_exact
        """Whether the tree selects no other rows."""


def _anything(_: Any) -> bool:
    return True


def filterable(value: Any) -> Any:
    """Return what of a value trees look at: all but the elements of lists."""
    if isinstance(value, Mapping):
        return {key: filterable(one) for key, one in value.items()}
    return [] if isinstance(value, list | tuple) else value


# --- both forms at once -----------------------------------------------------------------------------------------------


def _object(path: tuple[str, ...], condition: Mapping[str, Any], depth: int) -> _Part:
    """Return what is asked of the keys of an object, which is known to be one."""
    _check_depth(depth)
    parts = []
    for key, wanted in condition.items():
        if not isinstance(key, str):
            raise InvalidInputError(f"filter: a key must be a str, not {type(key).__name__}")
        if key in ("$and", "$or"):
            parts.append(_combined(key, [_of_object(path, one, key, depth) for one in _several(key, wanted)]))
        elif key == "$not":
            parts.append(_negated(_of_object(path, wanted, key, depth)))
        elif key.startswith("$"):
            raise _unknown(key)
        else:
            parts.append(_below(key, _value((*path, key), wanted, depth + 1)))
    return _all(parts)


def _of_object(path: tuple[str, ...], condition: Any, operator: str, depth: int) -> _Part:
    if not isinstance(condition, Mapping):
        raise InvalidInputError(f"filter: {operator} takes conditions (dict), not {type(condition).__name__}")
    return _object(path, condition, depth + 1)


def _below(key: str, part: _Part) -> _Part:
    test = part.test
    return _Part(lambda found: test(found.get(key, _MISSING)), part.tree, part.is_exact)


def _value(path: tuple[str, ...], wanted: Any, depth: int) -> _Part:
    """Return what is asked of the value at a path, which may be missing."""
    _check_depth(depth)
    if not isinstance(wanted, Mapping):
        return _listed(path, wanted, depth) if isinstance(wanted, list | tuple) else _equal(path, wanted)
    if any(isinstance(key, str) and key.startswith("$") for key in wanted):
        return _all([_operation(path, operator, operand, depth) for operator, operand in wanted.items()])
    inner = _object(path, wanted, depth)
    test = inner.test
    # Where the path leads to no object, the tree finds keys missing, and some conditions are content with that.
    is_exact = inner.is_exact and bool(wanted) and not test({})
    return _Part(
        lambda found: isinstance(found, Mapping) and test(found), And(field(*path).exists(), inner.tree), is_exact
    )


def _listed(path: tuple[str, ...], wanted: Iterable[Any], depth: int) -> _Part:
    tests = [_value((*path, "[]"), one, depth + 1).test for one in wanted]

    def test(found: Any) -> bool:
        is_list = isinstance(found, list | tuple) and len(found) == len(tests)
        return is_list and all(one(element) for one, element in zip(tests, found, strict=True))

    return _Part(test, field(*path).exists(), is_exact=False)


def _operation(path: tuple[str, ...], operator: str, operand: Any, depth: int) -> _Part:
    match operator:
        case "$eq":
            return _equal(path, operand)
        case "$ne":
            return _negated(_equal(path, operand))
        case "$gt" | "$gte" | "$lt" | "$lte":
            return _ordered(path, operator, operand)
        case "$in":
            return _one_of(path, _several(operator, operand))
        case "$nin":
            return _negated(_one_of(path, _several(operator, operand)))
        case "$and" | "$or":
            parts = [_value(path, one, depth + 1) for one in _several(operator, operand)]
            return _combined(operator, parts)
        case "$not":
            return _negated(_value(path, operand, depth + 1))
        case _:
            raise _unknown(operator)


def _equal(path: tuple[str, ...], wanted: Any) -> _Part:
    """Return: equal all the way down."""
    if wanted is None:
        missing = Or(Not(field(*path).exists()), field(*path).is_null())
        return _Part(lambda found: found is None or found is _MISSING, missing)
    if isinstance(wanted, Mapping | list | tuple):
        return _Part(lambda found: _same(found, wanted), field(*path).exists(), is_exact=False)
    tree = field(*path) == wanted  # refuses what JSON does not hold
    if isinstance(wanted, bool):
        return _Part(lambda found: found is wanted, tree)
    if isinstance(wanted, int | float):
        number = float(wanted)
        return _Part(lambda found: _is_number(found) and float(found) == number, tree)
    if not isinstance(wanted, str):
        raise InvalidInputError(f"filter: JSON holds no {type(wanted).__name__}")
    return _Part(lambda found: found == wanted, tree)


def _one_of(path: tuple[str, ...], wanted: list[Any]) -> _Part:
    """Return: equal to one of them. Texts, numbers and booleans are looked up together, however many they are."""
    plain = [one for one in wanted if isinstance(one, str | int | float)]
    parts = [_equal(path, one) for one in wanted if not isinstance(one, str | int | float)]
    if plain:
        tree = field(*path).in_(plain)  # refuses what JSON does not hold
        known = frozenset(map(_comparable, plain))
        parts.append(_Part(lambda found: isinstance(found, str | int | float) and _comparable(found) in known, tree))
    return _combined("$or", parts)


def _comparable(value: str | float) -> Any:
    """Return what is equal for equal values, and for no others: a boolean is no number."""
    if isinstance(value, str):
        return value
    return (value,) if isinstance(value, bool) else float(value)


def _ordered(path: tuple[str, ...], operator: str, operand: Any) -> _Part:
    if isinstance(operand, bool) or not isinstance(operand, str | int | float):
        raise InvalidInputError(f"filter: {operator} compares with a number or a str, not {type(operand).__name__}")
    at = field(*path)
    tree = {"$gt": at.__gt__, "$gte": at.__ge__, "$lt": at.__lt__, "$lte": at.__le__}[operator](operand)
    compare = _COMPARE[operator]
    if isinstance(operand, str):
        return _Part(lambda found: isinstance(found, str) and bool(compare(found, operand)), tree)
    number = float(operand)
    return _Part(lambda found: _is_number(found) and bool(compare(float(found), number)), tree)


def _combined(operator: str, parts: list[_Part]) -> _Part:
    if operator == "$and":
        return _all(parts)
    tests = [one.test for one in parts]
    is_exact = all(one.is_exact for one in parts)
    return _Part(lambda found: any(test(found) for test in tests), Or(*(one.tree for one in parts)), is_exact)


def _all(parts: list[_Part]) -> _Part:
    if len(parts) == 1:
        return parts[0]
    tests = [one.test for one in parts]
    is_exact = all(one.is_exact for one in parts)
    return _Part(lambda found: all(test(found) for test in tests), And(*(one.tree for one in parts)), is_exact)


def _negated(part: _Part) -> _Part:
    test = part.test
    # What is not selected by too wide a condition says nothing of what it is meant to select.
    return _Part(lambda found: not test(found), Not(part.tree) if part.is_exact else _ALWAYS, part.is_exact)


def _several(operator: str, operand: Any) -> list[Any]:
    if isinstance(operand, str | bytes | Mapping) or not isinstance(operand, Iterable):
        raise InvalidInputError(f"filter: {operator} takes a list, not {type(operand).__name__}")
    return list(operand)


def _unknown(operator: Any) -> InvalidInputError:
    if not isinstance(operator, str):
        return InvalidInputError(f"filter: an operator must be a str, not {type(operator).__name__}")
    return InvalidInputError(f"filter: unknown operator {operator!r}; the operators are {', '.join(_OPERATORS)}")


def _check_depth(depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidInputError(f"filter: nested deeper than {_MAX_DEPTH}")


def _is_number(value: Any) -> bool:
    kind = type(value)
    return kind is int or kind is float or (isinstance(value, int | float) and kind is not bool)


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        is_object = isinstance(found, Mapping) and found.keys() == wanted.keys()
        return is_object and all(_same(found[key], one) for key, one in wanted.items())
    if isinstance(wanted, list | tuple):
        is_list = isinstance(found, list | tuple) and len(found) == len(wanted)
        return is_list and all(map(_same, found, wanted))
    if _is_number(wanted):
        return _is_number(found) and math.isfinite(wanted) and float(found) == float(wanted)
    return type(found) is type(wanted) and bool(found == wanted)
