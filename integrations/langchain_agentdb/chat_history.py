"""``AgentDBChatMessageHistory``: the messages of a chat, in order, session by session."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage

from agentdb import AsyncDatabase, Closing, Connection, Database, InvalidInputError, Table, TableSchema, field
from langchain_agentdb.messages import allowed, pack_message, unpack_message

__all__ = ["AgentDBChatMessageHistory"]

MESSAGES = TableSchema(
    "_langchain_messages",
    [
        pa.field("session_id", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("message", pa.large_binary(), nullable=False),
    ],
    key=("session_id", "number"),
)
SESSIONS = TableSchema(
    "_langchain_sessions",
    [
        pa.field("session_id", pa.string(), nullable=False),
        # Of the last message: a new one never asks what may be cold.
        pa.field("last", pa.int64(), nullable=False),
    ],
    key="session_id",
    hot_only=True,
)


class _Chats(NamedTuple):
    db: Database
    messages: Table
    sessions: Table

    @classmethod
    def of(cls, db: Database) -> _Chats:
        return cls(db, db.table(MESSAGES), db.table(SESSIONS))


class AgentDBChatMessageHistory(Closing, BaseChatMessageHistory):
    """The messages of one session in the order in which they were added, durable when a call returns.

    Any number of threads, event loops and processes may add to a session: those of one call stay together, and none is lost.
    Async methods run on threads and never block the event loop. Making one costs nothing; give an open database where they are
    made for every call, as ``RunnableWithMessageHistory`` does.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        session_id: whose messages; met to the letter.
        allow: classes of messages of your own.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    _connection: Connection[_Chats]

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        session_id: str,
        allow: Iterable[type[BaseMessage]] = (),
    ) -> None:
        super().__init__()
        given: object = session_id
        if not isinstance(given, str) or not given:
            raise InvalidInputError(
                "session_id must not be empty"
                if given == ""
                else f"session_id must be a str, not {type(given).__name__}"
            )
        self._session_id = session_id
        self._classes = allowed(allow)
        self._connection = Connection(db_or_path, _Chats.of)

    @property
    def session_id(self) -> str:
        """Whose messages these are."""
        return self._session_id

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """The messages, oldest first, from one consistent state.

        Raises:
            IntegrityError: what is stored is no message, or of a class that is not allowed.
        """
        mine = field("session_id") == self._session_id
        chats = self._connection.found()
        rows = () if chats is None else chats.messages.scan(mine, order_by="number", columns=["message"])
        return [unpack_message(row["message"], self._classes) for row in rows]

    async def aget_messages(self) -> list[BaseMessage]:
        """Return `messages`, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.messages)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Add messages behind those that are there, all or none.

        Raises:
            InvalidInputError: one is of a class that is not allowed, or holds something else than plain data.
        """
        packed = [pack_message(one, self._classes) for one in messages]
        chats, session_id = self._connection(), self._session_id

        def work() -> None:
            head = chats.sessions.get(session_id)
            first = 1 if head is None else head["last"] + 1
            chats.messages.put_many(
                {"session_id": session_id, "number": number, "message": one}
                for number, one in enumerate(packed, start=first)
            )
            chats.sessions.put({"session_id": session_id, "last": first + len(packed) - 1})

        if packed:
            chats.db.transact(work)

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Do what `add_messages` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.add_messages(messages))

    def clear(self) -> None:
        """Remove the messages of this session, and of no other."""
        chats, session_id = self._connection(), self._session_id

        def work() -> None:
            chats.messages.delete_many(filter=field("session_id") == session_id)
            chats.sessions.delete(session_id)

        chats.db.transact(work)

    async def aclear(self) -> None:
        """Do what `clear` does, without blocking the event loop."""
        await self._connection.run("write", self.clear)
