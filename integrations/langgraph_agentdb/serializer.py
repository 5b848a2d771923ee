"""``StrictSerializer``: LangGraph's serializer, which makes nothing that it was not told to make, and says so aloud."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from agentdb import IntegrityError, InvalidInputError

__all__ = ["StrictSerializer", "load_typed"]

_TYPES = frozenset({"null", "bytes", "bytearray", "msgpack"})
_REFUSALS = frozenset({"msgpack_blocked", "msgpack_method_blocked"})
_refused = threading.local()


def _note(event: SerdeEvent) -> None:
    found: list[str] | None = getattr(_refused, "types", None)
    if found is not None and event["kind"] in _REFUSALS:
        found.append(f"{event['module']}.{event['name']}")


register_serde_event_listener(_note)


class StrictSerializer(JsonPlusSerializer):
    """Stores what LangGraph stores, and on the way back makes only plain values, messages and the types that are allowed.

    LangGraph's own serializer imports and calls whatever a stored value names unless told otherwise; told so, it hands out
    the bare data of a type it refuses. This one raises, so that no value changes its type unnoticed: the data stays as it is
    and loads once the type is allowed.

    Args:
        allow: classes of yours that occur in the state: pydantic models, dataclasses, enumerations.
    """

    def __init__(self, allow: Iterable[type | tuple[str, str]] = ()) -> None:
        super().__init__(pickle_fallback=False, allowed_json_modules=None, allowed_msgpack_modules=tuple(allow) or None)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return the value.

        Raises:
            InvalidInputError: it holds a type that is not allowed; the message names it.
            IntegrityError: it is encoded in a way that this serializer never writes, a pickle for example.
        """
        if data[0] not in _TYPES:
            raise IntegrityError(f"a stored value is encoded as {data[0]!r}, which is not decoded here")
        outer: list[str] | None = getattr(_refused, "types", None)
        refused = _refused.types = []
        try:
            value = super().loads_typed(data)
        finally:
            _refused.types = outer
        if refused:
            raise InvalidInputError(
                f"a stored value holds {', '.join(sorted(set(refused)))}, which is not allowed; "
                "pass serde=StrictSerializer(allow=[...]) with the classes of your state"
            )
        return value


def load_typed(serde: SerializerProtocol, data: tuple[str, bytes]) -> Any:
    """Return a stored value; with an encrypting serializer only if it was encrypted.

    Raises:
        IntegrityError: it is plain text: somebody put it there who does not have the key.
    """
    if isinstance(serde, EncryptedSerializer) and "+" not in data[0]:
        raise IntegrityError("a stored value is not encrypted, but the serializer encrypts")
    return serde.loads_typed(data)
