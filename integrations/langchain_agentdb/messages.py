"""How messages and generations are stored: as plain data under the name of a class, and never as an object to be revived.

A stored name is looked up in a table of classes that is fixed when the program starts. It is never imported, and nothing in the
data chooses what is called: whoever can write into the database can make a message say something else, and no more than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack
from langchain_core import messages
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk

from agentdb import IntegrityError, InvalidInputError

__all__ = ["Messages", "pack_generations", "pack_message", "unpack_generations", "unpack_message"]

Messages = Mapping[str, type[BaseMessage]]

_OWN: Messages = {
    one.__name__: one
    for one in (
        messages.AIMessage,
        messages.AIMessageChunk,
        messages.ChatMessage,
        messages.ChatMessageChunk,
        messages.FunctionMessage,
        messages.FunctionMessageChunk,
        messages.HumanMessage,
        messages.HumanMessageChunk,
        messages.RemoveMessage,
        messages.SystemMessage,
        messages.SystemMessageChunk,
        messages.ToolMessage,
        messages.ToolMessageChunk,
    )
}
_GENERATIONS: Mapping[str, type[Generation]] = {one.__name__: one for one in (Generation, GenerationChunk)}
_CHAT_GENERATIONS: Mapping[str, type[ChatGeneration]] = {
    one.__name__: one for one in (ChatGeneration, ChatGenerationChunk)
}


def allowed(extra: Iterable[type[BaseMessage]] = ()) -> Messages:
    """Return the classes of messages that may be stored: LangChain's own, and these.

    Raises:
        InvalidInputError: one is no class of messages, or has the name of another.
    """
    found = dict(_OWN)
    for one in extra:
        given: object = one
        if not isinstance(given, type) or not issubclass(given, BaseMessage):
            raise InvalidInputError("allow must hold subclasses of BaseMessage")
        if found.setdefault(one.__name__, one) is not one:
            raise InvalidInputError(f"allow: there is another class of messages called {one.__name__}")
    return found


_INTEGER = 1
"""The code of whole numbers of more than 64 bits, which JSON has and msgpack has not."""


def _pack(value: Any, what: str) -> bytes:
    try:
        # Half a pair of surrogates is what models make of an emoji that they were cut off in.
        packed: bytes = msgpack.packb(value, default=_large_integer, unicode_errors="surrogatepass")
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(f"{what} holds what cannot be stored: {error}") from None
    return packed


def _large_integer(value: Any) -> msgpack.ExtType:
    if isinstance(value, int):
        return msgpack.ExtType(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    raise TypeError(f"{type(value).__name__} is neither text, number, bytes, list nor map")


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, strict_map_key=False, ext_hook=_extension, unicode_errors="surrogatepass")
    except (ValueError, msgpack.UnpackException):
        raise IntegrityError("a stored message cannot be read") from None


def _extension(code: int, data: bytes) -> int:
    if code != _INTEGER:
        raise ValueError("an unknown extension")
    return int.from_bytes(data, "big", signed=True)


def _plain(message: BaseMessage, classes: Messages) -> list[Any]:
    kind = type(message)
    if classes.get(kind.__name__) is not kind:
        if isinstance(message, BaseMessage):
            raise InvalidInputError(f"a {kind.__name__} cannot be stored unless it is named: allow=[{kind.__name__}]")
        raise InvalidInputError(f"a message must be a BaseMessage, not {kind.__name__}")
    return [kind.__name__, message.model_dump()]


def _message(plain: Any, classes: Messages) -> BaseMessage:
    name, values = _pair(plain)
    kind = classes.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(values, dict):
        raise IntegrityError("a stored message is of a class that is not known here")
    try:
        return kind(**values)
    except Exception:
        raise IntegrityError(f"a stored {name} cannot be read") from None


def _pair(plain: Any) -> Sequence[Any]:
    if not isinstance(plain, list) or len(plain) != 2:
        raise IntegrityError("a stored message cannot be read")
    return plain


def pack_message(message: BaseMessage, classes: Messages) -> bytes:
    """Return a message as data.

    Raises:
        InvalidInputError: it is of a class that is not allowed, or holds something else than text, numbers, bytes, lists, maps.
    """
    return _pack(_plain(message, classes), f"a {type(message).__name__}")


def unpack_message(data: bytes, classes: Messages) -> BaseMessage:
    """Return the message that `pack_message` stored.

    Raises:
        IntegrityError: the data is something else, or names a class that is not allowed.
    """
    return _message(_unpack(data), classes)


def pack_generations(generations: Sequence[Generation], classes: Messages) -> bytes:
    """Return what a model answered as data.

    Raises:
        InvalidInputError: as `pack_message`.
    """
    return _pack([_plain_generation(one, classes) for one in generations], "an answer of the model")


def _plain_generation(one: Generation, classes: Messages) -> list[Any]:
    kind = type(one)
    if kind in _CHAT_GENERATIONS.values():
        assert isinstance(one, ChatGeneration)
        return [kind.__name__, [one.generation_info, _plain(one.message, classes)]]
    if kind in _GENERATIONS.values():
        return [kind.__name__, [one.generation_info, one.text]]
    raise InvalidInputError(f"an answer must be made of Generation or ChatGeneration, not {kind.__name__}")


def unpack_generations(data: bytes, classes: Messages) -> list[Generation]:
    """Return what `pack_generations` stored.

    Raises:
        IntegrityError: as `unpack_message`.
    """
    plain = _unpack(data)
    if not isinstance(plain, list):
        raise IntegrityError("a stored answer cannot be read")
    return [_generation(one, classes) for one in plain]


def _generation(plain: Any, classes: Messages) -> Generation:
    name, values = _pair(plain)
    info, content = _pair(values)
    if not (info is None or (isinstance(info, dict) and all(isinstance(key, str) for key in info))):
        raise IntegrityError("a stored answer cannot be read")
    chat = _CHAT_GENERATIONS.get(name) if isinstance(name, str) else None
    if chat is not None:
        return chat(message=_message(content, classes), generation_info=info)
    kind = _GENERATIONS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(content, str):
        raise IntegrityError("a stored answer is of a class that is not known here")
    return kind(text=content, generation_info=info)
