"""Values of LlamaIndex as bytes, exactly."""

from __future__ import annotations

import json
from typing import Any

from agentdb import IntegrityError, InvalidInputError

__all__ = ["decode", "encode"]

_MAX_DEPTH = 128
_SCALARS = frozenset({str, int, float, bool, type(None)})
_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))


def encode(value: object, where: str) -> bytes:
    """Return a JSON value as bytes of which `decode` makes an equal one, its keys in the same order.

    The order counts: the hash of a node is one of its metadata in their order. NaN, infinities and lone surrogates, which come out
    of parsed files, are kept as Python's own JSON keeps them; nothing here is ever queried. Tuples become lists.

    Args:
        value: dicts with str keys, lists, tuples, str, int, float, bool, None.
        where: how errors name the value.

    Raises:
        InvalidInputError: another type, a key that is no str, or nesting deeper than 128; the message names the place.
    """
    _check(value, where, 0)
    try:
        return _ENCODER.encode(value).encode("utf-8", "surrogatepass")
    except ValueError:  # an int of more digits than Python writes
        raise InvalidInputError(f"{where} holds an int of too many digits") from None


def decode(data: bytes) -> Any:
    """Return the value that `encode` was given.

    Raises:
        IntegrityError: the bytes are nothing that it made.
    """
    try:
        return json.loads(data.decode("utf-8", "surrogatepass"))
    except ValueError:
        raise IntegrityError("a stored value of LlamaIndex is no JSON") from None


def _check(value: object, where: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidInputError(f"{where}: nested deeper than {_MAX_DEPTH}")
    if isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise InvalidInputError(f"{where}: a key must be a str, not {type(key).__name__}")
            if type(one) not in _SCALARS:
                _check(one, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        if not set(map(type, value)) <= _SCALARS:  # a vector of a thousand numbers is looked over at once
            for i, one in enumerate(value):
                _check(one, f"{where}[{i}]", depth + 1)
    elif value is not None and not isinstance(value, str | int | float):
        raise InvalidInputError(f"{where}: JSON holds no {type(value).__name__}")
