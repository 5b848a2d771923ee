"""``StrictSerializer``: LangGraph's serializer, which makes nothing that it was not told to make, and says so aloud."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterable
from typing import Any

import ormsgpack
from langchain_core import messages
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import EXT_PYDANTIC_V2, JsonPlusSerializer
from pydantic import BaseModel

from agentdb import IntegrityError, InvalidInputError

__all__ = ["StrictSerializer", "load_typed"]

_TYPES = frozenset({"null", "bytes", "bytearray", "msgpack"})
_REFUSALS = frozenset({"msgpack_blocked", "msgpack_method_blocked"})
_refused = threading.local()

_MESSAGES: tuple[type[messages.BaseMessage], ...] = (
    messages.HumanMessage,
    messages.AIMessage,
    messages.ToolMessage,
    messages.SystemMessage,
)
_PREFIXES = tuple((b"\x94" + b"".join(map(ormsgpack.packb, (one.__module__, one.__name__))), one) for one in _MESSAGES)
"""What the encoding of a message begins with: a list of four, the first two of which name the class."""
_NAMES: dict[type, tuple[str, str]] = {
    one: (one.__module__, one.__name__) for one in _MESSAGES if one.model_dump is BaseModel.model_dump
}
_trusted: dict[type, bool] = {}
"""Whether the short way to a message was seen to lead to the same message."""
_OPTIONS = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)
"""Those of LangGraph's serializer: what it writes and what this one writes are the same bytes."""
_LOAD_OPTIONS = ormsgpack.OPT_NON_STR_KEYS


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

    def __init__(self, allow: Iterable[type | tuple[str, ...]] = ()) -> None:
        self._allow = {one if isinstance(one, tuple) else (one.__module__, one.__name__) for one in allow}
        strict: dict[str, Any] = {
            "pickle_fallback": False,
            "allowed_json_modules": None,
            "allowed_msgpack_modules": tuple(self._allow) or None,
        }
        super().__init__(**strict, __unpack_ext_hook__=self._make)
        self._plain = JsonPlusSerializer(**strict)

    def with_msgpack_allowlist(self, extra_allowlist: Collection[tuple[str, ...] | type]) -> StrictSerializer:  # type: ignore[override]
        """Return a serializer that allows these classes too."""
        wider = StrictSerializer([*self._allow, *extra_allowlist])
        return self if wider._allow == self._allow else wider

    def _make(self, code: int, data: bytes) -> Any:
        """Return the object of a msgpack extension."""
        if code == EXT_PYDANTIC_V2:
            for prefix, cls in _PREFIXES:
                if data.startswith(prefix):
                    message = _message(cls, ormsgpack.unpackb(data, ext_hook=self._make, option=_LOAD_OPTIONS)[2])
                    if message is not None:
                        return message
                    break
        return self._plain.loads_typed(("msgpack", ormsgpack.packb(ormsgpack.Ext(code, data))))

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return how the value is encoded, and the bytes: what LangGraph's serializer writes.

        Raises:
            TypeError: it holds something that LangGraph's serializer does not know either.
        """
        if type(obj) is list and obj and type(obj[-1]) in _NAMES:
            # A list of messages, most likely; whatever else is among them is left to the long way.
            with contextlib.suppress(TypeError):
                return "msgpack", ormsgpack.packb(obj, default=_packed, option=_OPTIONS)
        return super().dumps_typed(obj)

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


def _packed(message: Any) -> ormsgpack.Ext:
    """Return what LangGraph's serializer writes for a message, with half of the calls.

    Raises:
        TypeError: it is no message, or it holds what only the long way can write.
    """
    name = _NAMES.get(type(message))
    if name is None:
        raise TypeError
    values = message.__pydantic_serializer__.to_python(message)
    return ormsgpack.Ext(EXT_PYDANTIC_V2, ormsgpack.packb((*name, values, "model_validate_json"), option=_OPTIONS))


def _message(cls: type[messages.BaseMessage], values: Any) -> messages.BaseMessage | None:
    """Return the message that ``cls(**values)`` makes; None where only the long way can tell.

    Half of the time that a checkpoint takes to load goes into the constructors of its messages, which only hand on what they
    get. Pydantic's validator is called without them, once it was seen to make the same message of a class.
    """
    if type(values) is not dict or "content" not in values or "content_blocks" in values:
        return None
    try:
        if cls not in _trusted:
            # Validators may change what they are given.
            _trusted[cls] = cls(**values) == _validated(cls, dict(values))
        return _validated(cls, values) if _trusted[cls] else None
    except Exception:
        return None  # the long way says what is wrong, or makes do


def _validated(cls: type[messages.BaseMessage], values: dict[str, Any]) -> messages.BaseMessage:
    return cls.__pydantic_validator__.validate_python(values, self_instance=cls.__new__(cls))  # type: ignore[no-any-return]


def load_typed(serde: SerializerProtocol, data: tuple[str, bytes]) -> Any:
    """Return a stored value; with an encrypting serializer only if it was encrypted.

    Raises:
        IntegrityError: it is plain text: somebody put it there who does not have the key.
    """
    if isinstance(serde, EncryptedSerializer) and "+" not in data[0]:
        raise IntegrityError("a stored value is not encrypted, but the serializer encrypts")
    return serde.loads_typed(data)
