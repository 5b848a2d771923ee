"""``to_filter``: what LangChain's users write as dictionaries, as AgentDB's filter tree.

===================================================  ================================================================
``{"author": "ann"}``                                equal; several keys must all hold
``{"user": {"city": "Porto"}}``                      the key ``city`` below the key ``user``
``{"year": {"$gte": 2020, "$lt": 2024}}``            operators, which must all hold
``{"$and": [...]}``, ``{"$or": [...]}``              all, at least one
``{"$not": {...}}``, ``{"year": {"$not": {...}}}``   it does not hold
===================================================  ================================================================

Operators: ``$eq $ne $gt $gte $lt $lte $in $nin $contains $exists $not``. A comparison with a key that is missing, or null, is
false, that of ``$ne`` and ``$nin`` too; ``$not`` also holds where the key is missing. ``None`` as a value means: present and
null. ``$contains`` means what Python's ``in`` means: an element of a list, or a part of a text. Values of different types are
never equal; numbers compare as numbers. A key is one key, whatever characters are in it: a dot in it leads nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentdb import And, Field, Filter, InvalidInputError, Or, field

__all__ = ["to_filter"]

_MAX_DEPTH = 64


def _equal(at: Field, value: Any) -> Filter:
    return at.is_null() if value is None else at == _single(at, value)


def _unequal(at: Field, value: Any) -> Filter:
    return at.exists() & ~at.is_null() if value is None else at != _single(at, value)


def _one_of(at: Field, values: Any) -> Filter:
    given = _listed(at, "$in", values)
    known = at.in_([one for one in given if one is not None])
    return known | at.is_null() if any(one is None for one in given) else known


def _none_of(at: Field, values: Any) -> Filter:
    return at.not_in([one for one in _listed(at, "$nin", values) if one is not None])


def _contains(at: Field, value: Any) -> Filter:
    element = at.contains(value)
    return element | at.matches(value) if isinstance(value, str) else element


def _exists(at: Field, value: Any) -> Filter:
    if not isinstance(value, bool):
        raise InvalidInputError(f"filter on {_name(at)}: $exists takes true or false, not {type(value).__name__}")
    return at.exists() if value else ~at.exists()


_OPERATORS: dict[str, Callable[[Field, Any], Filter]] = {
    "$eq": _equal,
    "$ne": _unequal,
    "$gt": lambda at, value: at > value,
    "$gte": lambda at, value: at >= value,
    "$lt": lambda at, value: at < value,
    "$lte": lambda at, value: at <= value,
    "$in": _one_of,
    "$nin": _none_of,
    "$contains": _contains,
    "$exists": _exists,
}
_COMBINATIONS = ("$and", "$or", "$not")
_ROOT = field("metadata")


def to_filter(given: object) -> Filter | None:
    """Return the filter that a caller means: a tree from ``agentdb.field`` as it is, a dictionary translated; None: all rows.

    Args:
        given: None, a ``Filter``, or a dictionary about metadata as described above. An empty one means all rows.

    Raises:
        InvalidInputError: it is something else, holds an operator that does not exist, or a value that nothing compares with.
    """
    if given is None or isinstance(given, Filter):
        return given
    if not isinstance(given, Mapping):
        raise InvalidInputError(
            f"filter must be a dict, a filter built from agentdb.field(...), or None, not {type(given).__name__}"
        )
    return _all_of(given, _ROOT, 0) if given else None


def _all_of(given: Mapping[Any, Any], here: Field, depth: int) -> Filter:
    """Return the condition that a dictionary puts on a field, or on the keys below it."""
    if depth > _MAX_DEPTH:
        raise InvalidInputError(f"filter: nested deeper than {_MAX_DEPTH}")
    for key in given:
        if not isinstance(key, str):
            raise InvalidInputError(f"filter: a key must be a str, not {type(key).__name__}")
    if any(key in _OPERATORS for key in given) and not all(key.startswith("$") for key in given):
        raise InvalidInputError(f"filter on {_name(here)}: operators and keys must not stand side by side")
    parts = [_part(key, value, here, depth + 1) for key, value in given.items()]
    return parts[0] if len(parts) == 1 else And(*parts)


def _part(key: str, value: Any, here: Field, depth: int) -> Filter:
    if key in {"$and", "$or"}:
        parts = [_all_of(_conditions(key, one), here, depth) for one in _combined(key, value)]
        return And(*parts) if key == "$and" else Or(*parts)
    if key == "$not":
        return ~_all_of(_conditions(key, value), here, depth)
    if not key.startswith("$"):
        below = here[key]
        return _all_of(_conditions(key, value), below, depth) if isinstance(value, Mapping) else _equal(below, value)
    translate = _OPERATORS.get(key)
    if translate is None:
        raise InvalidInputError(
            f"filter: there is no operator {key[:40]!r}; there are {', '.join((*_OPERATORS, *_COMBINATIONS))}"
        )
    if here.path == _ROOT.path:
        raise InvalidInputError(f"filter: {key} must stand below a key, as in {{'year': {{{key!r}: ...}}}}")
    return translate(here, value)


def _conditions(key: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping) or not value:
        shown = "an empty one" if isinstance(value, Mapping) else type(value).__name__
        raise InvalidInputError(f"filter: {key[:40]} takes a dict of conditions, not {shown}")
    return value


def _combined(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        shown = "an empty one" if isinstance(value, list | tuple) else type(value).__name__
        raise InvalidInputError(f"filter: {key} takes a list of dicts, not {shown}")
    return list(value)


def _single(at: Field, value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        raise InvalidInputError(
            f"filter on {_name(at)}: nothing is equal to a list; use $in for one of several values, $contains for an element"
        )
    return value


def _listed(at: Field, operator: str, values: Any) -> list[Any]:
    if not isinstance(values, list | tuple | set | frozenset):
        raise InvalidInputError(
            f"filter on {_name(at)}: {operator} takes a list of values, not {type(values).__name__}"
        )
    return list(values)


def _name(at: Field) -> str:
    return ".".join(at.path[1:])[:80]
