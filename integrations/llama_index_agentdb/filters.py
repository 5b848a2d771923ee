"""LlamaIndex's metadata filters as filters of AgentDB, with the meaning that ``build_metadata_filter_fn`` gives them.

What that meaning is where one might guess otherwise (``m`` is what a node has under the key, ``v`` the filter's value):

- Missing and null are the same: ``!=``, ``nin`` and ``is_empty`` hold, everything else does not.
- Values compare as in Python: ``1 == 1.0 == True``, ``"1" != 1``, text by code points, lists element by element. ``==`` with
  a list asks for the whole list, ``in`` with a list for a single value: a node whose ``m`` is a list is in none.
- ``contains``, ``any`` and ``all`` are Python's ``v in m``: an element of a list, a part of a text, or a key of an object. A
  text given to ``any`` or ``all`` stands for its characters, and one given to ``in`` or ``nin`` for all of its parts.
- ``text_match`` is a part of a text, with case; ``text_match_insensitive`` compares ``lower()`` of both.
- ``is_empty``: missing, null, ``""`` or ``[]``; not ``0``, ``False`` or ``{}``.
- ``NOT`` means that none of its filters holds. An empty list of filters holds always, whatever the condition. Nested filters are
  one condition among the others.

Where the reference fails with a TypeError because one node's ``m`` cannot be compared with ``v`` (a text with a number), here
that node does not match, and nothing fails. Values that no ``m`` can be compared with are an error: ``in`` with a number,
``text_match`` with one, an order with a list.

A key is one key of the metadata, whatever characters it has. Integers are exact at every size.

All this is so of nodes that an ``AgentDBVectorStore`` wrote. Of rows that others wrote, integers from 2**53 on compare as float64, no
list is equal to another, and ``is_empty`` does not see ``[]``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Literal

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from agentdb import And, Compare, Field, Filter, InvalidInputError, Not, Or, field

__all__ = ["CONTENT_KEY", "EXACT_KEY", "exact_form", "to_filter"]

CONTENT_KEY = "_node_content"
"""Where a row keeps the node itself; no filter sees it."""
EXACT_KEY = "_exact"
"""Where a row keeps `exact_form`; no filter of a caller sees it."""

_Order = Literal["lt", "lte", "gt", "gte"]
_ALWAYS, _NEVER = And(), Or()
_EXACT_INT = 2**53
"""AgentDB compares numbers as float64, which holds every smaller integer."""
_FLOAT_MAX = 1.7976931348623157e308
_INT_MAX = 2**1024 - 2**970 - 1
"""No greater number can be stored: it would round to infinity."""
_SHORT = 64
_PARTS_OF = 256
"""A text of n characters has up to n * (n + 1) / 2 parts."""
_MAX_DEPTH = 60


# --- what is stored beside the metadata --------------------------------------------------------------------------------


def exact_form(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what AgentDB's filters need besides metadata to tell every two values apart; empty for most metadata.

    Returns:
        ``lists``: of each list, its text. ``items``: of a list with elements that are no plain values, those elements' texts.
        ``numbers``: of numbers from 2**53 on, texts that are ordered as they are.
    """
    lists: dict[str, str] = {}
    items: dict[str, list[str]] = {}
    numbers: dict[str, str] = {}
    for key, value in metadata.items():
        if isinstance(value, list):
            lists[key] = _canonical(value)
            special = [_canonical(one) for one in value if _is_special(one)]
            if special:
                items[key] = special
        elif _is_big(value):
            numbers[key] = _ordered(int(value))
    return {name: one for name, one in (("lists", lists), ("items", items), ("numbers", numbers)) if one}


def _is_big(value: object) -> bool:
    return isinstance(value, int | float) and _EXACT_INT <= abs(value) <= _INT_MAX


def _is_special(item: object) -> bool:
    return item is None or isinstance(item, list | dict) or _is_big(item)


def _canonical(value: Any) -> str:
    """Return a text that two values share if and only if they are equal in Python."""
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    # "#" begins no JSON.
    return text if len(text) <= _SHORT else "#" + blake2b(text.encode(), digest_size=20).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _ordered(number: int) -> str:
    """Return a text; of two numbers, the greater has the greater."""
    digits = str(abs(number))
    text = f"{len(digits):03}{digits}"
    return "1" + text if number >= 0 else "0" + "".join(str(9 - int(one)) for one in text)


# --- the translation ---------------------------------------------------------------------------------------------------


def to_filter(filters: MetadataFilters | None) -> Filter | None:
    """Return the filter of a collection that means what LlamaIndex's filters mean; None if there is none.

    Raises:
        InvalidInputError: it is no ``MetadataFilters``, is nested too deep, or compares with a value that an operator cannot
            be given; the message names the key.
    """
    if filters is None:
        return None
    if not isinstance(filters, MetadataFilters):
        raise InvalidInputError(f"filters must be MetadataFilters, not {type(filters).__name__}")
    return _group(filters, 1)


def _group(filters: MetadataFilters, depth: int) -> Filter:
    if depth > _MAX_DEPTH:
        raise InvalidInputError(f"filters may be nested at most {_MAX_DEPTH} deep")
    if not filters.filters:
        return _ALWAYS
    parts = [_group(one, depth + 1) if isinstance(one, MetadataFilters) else _condition(one) for one in filters.filters]
    match filters.condition:
        case None | FilterCondition.AND:
            return _all(parts)
        case FilterCondition.OR:
            return _any(parts)
        case FilterCondition.NOT:
            return Not(_any(parts))
        case _:
            raise InvalidInputError(f"filters: unknown condition {filters.condition!r}")


def _all(parts: list[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else And(*parts)


def _any(parts: list[Filter]) -> Filter:
    if _ALWAYS in parts:
        return _ALWAYS
    parts = [one for one in parts if one != _NEVER]
    return parts[0] if len(parts) == 1 else Or(*parts)


def _condition(one: MetadataFilter) -> Filter:
    operator = FilterOperator(one.operator)
    if one.key in (CONTENT_KEY, EXACT_KEY):
        holds = operator in (FilterOperator.NE, FilterOperator.NIN, FilterOperator.IS_EMPTY)
        return _ALWAYS if holds else _NEVER
    return _TRANSLATIONS[operator](one.key, one.value)


def _path(key: str) -> Field:
    return field("metadata", key)


def _exact(kind: str, key: str) -> Field:
    return field("metadata", EXACT_KEY, kind, key)


def _refused(key: str, operator: str, allowed: str, value: object) -> InvalidInputError:
    return InvalidInputError(f"filter on {key!r}: {operator!r} takes {allowed}, not {type(value).__name__}")


def _is_present(key: str) -> Filter:
    return _path(key).exists() & ~_path(key).is_null()


def _equal(key: str, value: Any) -> Filter:
    if isinstance(value, list | tuple):
        return _exact("lists", key) == _canonical(list(value))
    return _among(key, [value])


def _among(key: str, values: Iterable[Any]) -> Filter:
    """Return: a value that is none of a list's, and equal to one of these."""
    plain, big = _operands(values)
    parts: list[Filter] = []
    if len(plain) == 1:
        # An equality that all rows must meet is what a search is planned by.
        parts.append(_path(key) == plain[0])
    elif plain:
        parts.append(_path(key).in_(plain))
    if big:
        exact = _exact("numbers", key)
        parts.append(exact.in_([_ordered(one) for one in big]))
        parts.append(~exact.exists() & _path(key).in_([float(one) for one in big]))  # of a row of others
    return _any(parts)


def _operands(values: Iterable[Any]) -> tuple[list[Any], list[int]]:
    """Return what values are equal to: in AgentDB's own terms, where booleans are no numbers, and integers from 2**53 on."""
    plain: list[Any] = []
    big: list[int] = []
    for value in values:
        if isinstance(value, str):
            plain.append(value)
        elif _is_big(value):
            big.append(int(value))
        elif isinstance(value, int | float) and abs(value) < _EXACT_INT:
            plain.append(float(value))
            if value in (0, 1):
                plain.append(bool(value))
    return plain, big


def _is_in(key: str, value: Any) -> Filter:
    if isinstance(value, str):
        return _path(key).in_(_parts(key, value))
    return _among(key, _listed(key, "in", value))


def _is_not_in(key: str, value: Any) -> Filter:
    if isinstance(value, str):
        # A number is no part of a text, and not none either: the reference fails.
        is_text = _path(key).matches("")
        return ~_is_present(key) | (is_text & ~_path(key).in_(_parts(key, value)))
    return ~_among(key, _listed(key, "nin", value))


def _parts(key: str, text: str) -> list[str]:
    if len(text) > _PARTS_OF:
        raise InvalidInputError(
            f"filter on {key!r}: 'in' asks for the parts of a text of at most {_PARTS_OF} characters; it has {len(text)}"
        )
    return sorted({text[i:j] for i in range(len(text) + 1) for j in range(i, len(text) + 1)})


def _listed(key: str, operator: str, value: Any) -> list[Any]:
    if isinstance(value, list | tuple | str):
        return list(value)
    raise _refused(key, operator, "a list", value)


def _holds_one(key: str, values: list[Any]) -> Filter:
    """Return: at least one value is in what the node has."""
    texts = [one for one in values if isinstance(one, str)]
    plain, big = _operands(values)
    special = [_canonical(one) for one in (*big, *(one for one in values if one is None or isinstance(one, list)))]
    parts: list[Filter] = []
    if plain:
        parts.append(_path(key).contains_any(plain))
    if special:
        exact = _exact("items", key)
        parts.append(exact.contains_any(special))
        if big:
            parts.append(~exact.exists() & _path(key).contains_any([float(one) for one in big]))  # of a row of others
    if texts:
        parts += [_path(key)[text].exists() for text in texts]
        # A list is no text: with an index that says so, no row's tags need be read for parts of texts.
        is_list = _exact("lists", key).exists()
        parts.append(_path(key).exists() & ~is_list & _any([_path(key).matches(text) for text in texts]))
    return _any(parts)


def _holds_any(key: str, value: Any) -> Filter:
    return _holds_one(key, _listed(key, "any", value))


def _holds_all(key: str, value: Any) -> Filter:
    wanted = _listed(key, "all", value)
    return _all([_holds_one(key, [one]) for one in wanted]) if wanted else _is_present(key)


def _ordering(op: _Order) -> Callable[[str, Any], Filter]:
    sign = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}[op]

    def ordered(key: str, value: Any) -> Filter:
        if isinstance(value, str):
            return Compare(_path(key).path, op, value)
        if not isinstance(value, int | float):
            raise _refused(key, sign, "a number or a text", value)
        return _number_ordered(key, op, value)

    return ordered


def _number_ordered(key: str, op: _Order, value: float) -> Filter:
    """Return: a number, or a boolean as 0 or 1, in relation ``op`` to a number."""
    if isinstance(value, float) and math.isnan(value):
        return _NEVER
    path = _path(key)
    parts: list[Filter] = [path == one for one in (False, True) if _RELATIONS[op](one, value)]
    if abs(value) > _INT_MAX:
        # Every stored number is less, or greater.
        if _RELATIONS[op](0, value):
            parts.append(path >= -_FLOAT_MAX)
    elif _is_big(value):
        # Whatever rounds to another float64 is in the relation that the float64 are in.
        near = float(value)
        parts.append(path < near if op in ("lt", "lte") else path > near)
        exact = _exact("numbers", key)
        exactly = Compare(exact.path, op, _ordered(int(value)))
        parts.append((path == near) & (exactly | ~exact.exists() if op in ("lte", "gte") else exactly))
    else:
        parts.append(Compare(path.path, op, value))
    return _any(parts)


_RELATIONS: dict[_Order, Callable[[float, float], bool]] = {
    "lt": lambda one, other: one < other,
    "lte": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "gte": lambda one, other: one >= other,
}


def _text_match(key: str, value: Any, *, case_sensitive: bool = True) -> Filter:
    if not isinstance(value, str):
        name = "text_match" if case_sensitive else "text_match_insensitive"
        raise _refused(key, name, "a text", value)
    return _path(key).matches(value, case_sensitive=case_sensitive)


def _is_empty(key: str, _: Any) -> Filter:
    path = _path(key)
    return ~path.exists() | path.is_null() | (path == "") | (_exact("lists", key) == _canonical([]))


_TRANSLATIONS: dict[FilterOperator, Callable[[str, Any], Filter]] = {
    FilterOperator.EQ: _equal,
    FilterOperator.NE: lambda key, value: ~_equal(key, value),
    FilterOperator.LT: _ordering("lt"),
    FilterOperator.LTE: _ordering("lte"),
    FilterOperator.GT: _ordering("gt"),
    FilterOperator.GTE: _ordering("gte"),
    FilterOperator.IN: _is_in,
    FilterOperator.NIN: _is_not_in,
    FilterOperator.ANY: _holds_any,
    FilterOperator.ALL: _holds_all,
    FilterOperator.CONTAINS: lambda key, value: _holds_one(key, [value]),
    FilterOperator.TEXT_MATCH: _text_match,
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda key, value: _text_match(key, value, case_sensitive=False),
    FilterOperator.IS_EMPTY: _is_empty,
}
