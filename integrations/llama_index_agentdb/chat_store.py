"""``AgentDBChatStore`` for ``Memory``, and ``AgentDBLegacyChatStore`` for what came before it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, TypeVar

import pyarrow as pa
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus

from agentdb import AsyncDatabase, Closing, Connection, Database, Filter, InvalidInputError, Row, TableSchema, field
from llama_index_agentdb.encoding import decode, encode
from llama_index_agentdb.kv_store import path_of

__all__ = ["AgentDBChatStore", "AgentDBLegacyChatStore"]

MESSAGES = TableSchema(
    "_llama_index_messages",
    [
        pa.field("chat", pa.string(), nullable=False),
        # The order; never used twice while the chat has messages.
        pa.field("number", pa.int64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("message", pa.large_binary(), nullable=False),
    ],
    key=("chat", "number"),
    # So that the active ones of a chat are found without a look into thousands of archived ones.
    indexed="status",
)
CHATS = TableSchema(
    "_llama_index_chats",
    [
        pa.field("chat", pa.string(), nullable=False),
        pa.field("last", pa.int64(), nullable=False),
        # How many there are of each status.
        pa.field("active", pa.int64(), nullable=False),
        pa.field("archived", pa.int64(), nullable=False),
    ],
    key="chat",
    hot_only=True,
)
Status = Literal["active", "archived"]
R = TypeVar("R")


class _Chats:
    """The messages of a database by chat, in the order in which they were added; every method is one transaction."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.messages = db.table(MESSAGES)
        self.chats = db.table(CHATS)

    def _head(self, chat: str) -> Row:
        return self.chats.get(chat) or {"chat": chat, "last": 0, "active": 0, "archived": 0}

    def _put_head(self, head: Row) -> None:
        if head["active"] or head["archived"]:
            self.chats.put(head)
        else:
            self.chats.delete(head["chat"])

    def _where(self, chat: str, status: Status | None) -> Filter:
        of_chat = field("chat") == chat
        return of_chat if status is None else of_chat & (field("status") == status)

    def names(self) -> list[str]:
        return [row["chat"] for row in self.chats.scan(order_by="chat", columns=["chat"])]

    def count(self, chat: str, status: Status | None) -> int:
        head = self._head(chat)
        return int(head["active"] + head["archived"] if status is None else head[status])

    def oldest(self, chat: str, status: Status | None, limit: int | None) -> list[Row]:
        most = None if limit is None else min(limit, sys.maxsize)
        return list(self.messages.scan(self._where(chat, status), order_by=["chat", "number"], limit=most))

    def read(self, chat: str, status: Status | None, limit: int | None, offset: int) -> list[ChatMessage]:
        rows = self.oldest(chat, status, None if limit is None else limit + offset)
        return [_message(row) for row in rows[offset:]]

    def add(self, chat: str, messages: Sequence[bytes], status: Status, *, replace: bool = False) -> None:
        def work() -> None:
            head = self._head(chat)
            if replace:
                self.messages.delete_many(filter=self._where(chat, None))
                head.update(active=0, archived=0)
            first = head["last"] + 1
            self.messages.put_many(
                {"chat": chat, "number": number, "status": status, "message": message}
                for number, message in enumerate(messages, first)
            )
            head["last"] += len(messages)
            head[status] += len(messages)
            self._put_head(head)

        if messages or replace:
            self.db.transact(work)

    def remove_at(self, chat: str, index: int, status: Status | None) -> ChatMessage | None:
        def work() -> Row | None:
            there = self.count(chat, status)
            at = index + there if index < 0 else index
            if not 0 <= at < there:
                return None
            # From the nearer end.
            back = there - at
            order: Any = ["chat", "number"] if at < back else ["chat", ("number", "desc")]
            rows = self.messages.scan(self._where(chat, status), order_by=order, limit=min(at + 1, back))
            row = list(rows)[-1]
            self._remove(chat, [row])
            return row

        found = self.db.transact(work)
        return None if found is None else _message(found)

    def _remove(self, chat: str, rows: Sequence[Row]) -> None:
        self.messages.delete_many([(chat, row["number"]) for row in rows])
        head = self._head(chat)
        for row in rows:
            head[row["status"]] -= 1
        self._put_head(head)

    def remove(self, chat: str, status: Status | None) -> None:
        def work() -> None:
            self.messages.delete_many(filter=self._where(chat, status))
            head = self._head(chat)
            head.update(dict.fromkeys(("active", "archived") if status is None else (status,), 0))
            self._put_head(head)

        self.db.transact(work)

    def take_all(self, chat: str) -> list[ChatMessage]:
        def work() -> list[Row]:
            rows = self.oldest(chat, None, None)
            self.remove(chat, None)
            return rows

        return [_message(row) for row in self.db.transact(work)]

    def take_oldest(self, chat: str, n: int, *, archive: bool) -> list[ChatMessage]:
        def work() -> list[Row]:
            rows = self.oldest(chat, "active", n)
            if archive:
                self.messages.put_many({**row, "status": "archived"} for row in rows)
                head = self._head(chat)
                head["active"] -= len(rows)
                head["archived"] += len(rows)
                self._put_head(head)
            else:
                self._remove(chat, rows)
            return rows

        return [_message(row) for row in self.db.transact(work)]


class _OnChats(Closing, BaseModel):
    """What both chat stores are: a model of one field, the path, by which another process opens the same database."""

    db_or_path: str = Field(description="Path of the database.")
    _connection: Connection[_Chats] = PrivateAttr()

    def __init__(self, db_or_path: Database | AsyncDatabase | str | os.PathLike[str]) -> None:
        connection = Connection(db_or_path, _Chats)
        own: dict[str, Any] = {"db_or_path": path_of(db_or_path)}
        super().__init__(**own)
        self._connection = connection

    def _reading(self, read: Callable[[_Chats], R], nothing: R) -> R:
        """Return what is read; ``nothing`` where a read-only database has no chats yet."""
        chats = self._connection.found()
        return nothing if chats is None else read(chats)

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.db_or_path,)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()


class AgentDBChatStore(_OnChats, AsyncDBChatStore):
    """A chat store in a database, for ``Memory.from_defaults(chat_store=...)``: durable, the same for every process.

    Messages come back as they were given, in the order in which they were added: one after the other within a call, and calls in
    the order in which they were committed. However many processes add to one chat, none is lost and none is moved. Every method
    is one transaction and runs on a thread of its own; the event loop is never blocked.

    Serialised, it is its path.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which it is serialised."""
        return "AgentDBChatStore"

    async def get_messages(
        self,
        key: str,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[ChatMessage]:
        """Return messages of a chat, oldest first.

        Args:
            key: which chat.
            status: only these; None: all, in one order.
            limit: at most so many.
            offset: without the first so many.

        Raises:
            InvalidInputError: limit or offset is negative.
        """
        wanted = _status(status)
        for name, value in (("limit", limit), ("offset", offset)):
            if value is not None and (type(value) is not int or value < 0):
                raise InvalidInputError(f"{name} must be an int of 0 or more, or None")
        return await self._connection.run(
            "read", lambda: self._reading(lambda chats: chats.read(key, wanted, limit, offset or 0), [])
        )

    async def count_messages(self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        """Return how many messages of a status a chat has; of None: of both."""
        wanted = _status(status)
        return await self._connection.run("read", lambda: self._reading(lambda chats: chats.count(key, wanted), 0))

    async def add_message(self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE) -> None:
        """Add a message behind all others of its chat.

        Raises:
            InvalidInputError: it is no message, or holds what JSON does not.
        """
        await self.add_messages(key, [message], status)

    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Add messages behind all others of their chat, all or none, nobody else's between them.

        Raises:
            InvalidInputError: as `add_message`; nothing is written.
        """
        await self._put(key, messages, status, replace=False)

    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Put messages in the place of all of a chat, archived ones included, at once.

        Raises:
            InvalidInputError: as `add_message`; what was there stays.
        """
        await self._put(key, messages, status, replace=True)

    async def _put(self, key: str, messages: list[ChatMessage], status: MessageStatus | None, *, replace: bool) -> None:
        wanted = _status(status)
        if wanted is None:
            raise InvalidInputError("status must be a MessageStatus, not None")

        def work() -> None:
            self._connection().add(key, _encoded(messages), wanted, replace=replace)

        await self._connection.run("write", work)

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Delete the message at a place among those that ``get_messages(key)`` returns, and return it.

        Args:
            key: which chat.
            idx: from 0; -1 is the newest.

        Returns:
            The message; None if there is none at that place.
        """
        place = _place(idx)
        return await self._connection.run("write", lambda: self._connection().remove_at(key, place, "active"))

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        """Delete all messages of a chat, or (with a status) all of that."""
        wanted = _status(status)
        await self._connection.run("write", lambda: self._connection().remove(key, wanted))

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Delete the oldest N active messages, or as many as there are, and return them, oldest first."""
        return await self._take(key, n, archive=False)

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Make the oldest N active messages archived ones, or as many as there are, and return them, oldest first."""
        return await self._take(key, n, archive=True)

    async def _take(self, key: str, n: int, *, archive: bool) -> list[ChatMessage]:
        if type(n) is not int or n < 0:
            raise InvalidInputError("n must be an int of 0 or more")
        return await self._connection.run("write", lambda: self._connection().take_oldest(key, n, archive=archive))

    async def get_keys(self) -> list[str]:
        """Return the keys of all chats that have messages, sorted."""
        return await self._connection.run("read", lambda: self._reading(_Chats.names, []))


class AgentDBLegacyChatStore(_OnChats, BaseChatStore):
    """A chat store in a database for ``ChatMemoryBuffer`` and others that came before ``Memory``; it has no archive.

    What one of these writes an `AgentDBChatStore` of the same database reads, and the other way round; messages that were archived
    there are in their places here. Everything else is as said there.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which it is serialised."""
        return "AgentDBLegacyChatStore"

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Put messages in the place of all of a chat, at once.

        Raises:
            InvalidInputError: one is no message, or holds what JSON does not; what was there stays.
        """
        self._connection().add(key, _encoded(messages), "active", replace=True)

    async def aset_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Do what `set_messages` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.set_messages(key, messages))

    def get_messages(self, key: str) -> list[ChatMessage]:
        """Return all messages of a chat, oldest first."""
        return self._reading(lambda chats: chats.read(key, None, None, 0), [])

    async def aget_messages(self, key: str) -> list[ChatMessage]:
        """Do what `get_messages` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.get_messages(key))

    def add_message(self, key: str, message: ChatMessage) -> None:
        """Add a message behind all others of its chat.

        Raises:
            InvalidInputError: as `set_messages`.
        """
        self._connection().add(key, _encoded([message]), "active")

    async def async_add_message(self, key: str, message: ChatMessage) -> None:
        """Do what `add_message` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.add_message(key, message))

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        """Delete all messages of a chat and return them; None if there are none."""
        return self._connection().take_all(key) or None

    async def adelete_messages(self, key: str) -> list[ChatMessage] | None:
        """Do what `delete_messages` does, without blocking the event loop."""
        return await self._connection.run("write", lambda: self.delete_messages(key))

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Delete the message at a place, from 0, and return it; -1 is the newest. None if there is none at that place."""
        return self._connection().remove_at(key, _place(idx), None)

    async def adelete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Do what `delete_message` does, without blocking the event loop."""
        return await self._connection.run("write", lambda: self.delete_message(key, idx))

    def delete_last_message(self, key: str) -> ChatMessage | None:
        """Delete the newest message of a chat and return it; None if there is none."""
        return self.delete_message(key, -1)

    async def adelete_last_message(self, key: str) -> ChatMessage | None:
        """Do what `delete_last_message` does, without blocking the event loop."""
        return await self.adelete_message(key, -1)

    def get_keys(self) -> list[str]:
        """Return the keys of all chats that have messages, sorted."""
        return self._reading(_Chats.names, [])

    async def aget_keys(self) -> list[str]:
        """Do what `get_keys` does, without blocking the event loop."""
        return await self._connection.run("read", self.get_keys)


def _encoded(messages: Sequence[ChatMessage]) -> list[bytes]:
    given: object = messages
    if not isinstance(given, list | tuple):
        raise InvalidInputError(f"messages must be a list of ChatMessage, not {type(given).__name__}")
    return [_bytes(one, f"messages[{i}]") for i, one in enumerate(given)]


def _bytes(message: object, where: str) -> bytes:
    if not isinstance(message, ChatMessage):
        raise InvalidInputError(f"{where} must be a ChatMessage, not {type(message).__name__}")
    try:
        plain = message.model_dump(mode="json")
    except ValueError as error:  # pydantic's, which names the type
        raise InvalidInputError(f"{where} holds what JSON does not: {error}") from None
    return encode(plain, where)


def _message(row: Row) -> ChatMessage:
    return ChatMessage.model_validate(decode(row["message"]))


def _status(status: object) -> Status | None:
    if status is None:
        return None
    try:
        return MessageStatus(status).value
    except ValueError:
        raise InvalidInputError(f"status must be a MessageStatus or None, not {type(status).__name__}") from None


def _place(idx: object) -> int:
    if type(idx) is not int:
        raise InvalidInputError(f"idx must be an int, not {type(idx).__name__}")
    return idx
