"""``AgentDBMemoryBlock``: the long-term memory of an agent behind LlamaIndex's ``Memory``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Self

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.memory.memory import BaseMemoryBlock
from typing_extensions import override

from agentdb import AsyncDatabase, Closing, Connection, Database, InvalidInputError, MemoryWrite, field
from llama_index_agentdb.kv_store import path_of

__all__ = ["AgentDBMemoryBlock"]

_INSTRUCTIONS = (MessageRole.SYSTEM, MessageRole.DEVELOPER)
_MAX_CHARS = 1 << 20
"""What one memory may hold; a longer message, the output of a tool perhaps, becomes several."""
_MICROSECOND = timedelta(microseconds=1)


class AgentDBMemoryBlock(Closing, BaseMemoryBlock[str]):
    """Long-term memory in a database: messages that leave the short-term memory are remembered word for word, and recalled.

    What it returns is what of the session matters to the newest message of the user, a numbered line for each memory, in the order
    of events. The session is that of each call: one block may serve any number of ``Memory`` objects, and never shows one session
    what was said in another, unless it is told to. It is the database's ``memories``: there every method of the Memory Manager
    (upkeep, forgetting, erasing, export) applies.

    Serialised, it is its fields, the path among them.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call. The database's embedder is used.
        agent_id: whose memory.
        user_id: about, or from, which user; a wall: nothing is found across it.
        namespace: a wall within the agent.
        across_sessions: recall from every session of the agent, user and namespace.
        similarity_top_k: at most so many memories are recalled.
        token_budget: what is recalled has at most so many tokens.
        name: of the block; ``Memory`` puts what is recalled between tags of this name.
        description, priority, accept_short_term_memory: see ``BaseMemoryBlock``.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    db_or_path: str = Field(description="Path of the database.")
    agent_id: str | int = Field(description="Whose memory.")
    user_id: str | int | None = Field(default=None, description="About, or from, which user.")
    namespace: str | int | None = Field(default=None, description="A wall within the agent.")
    across_sessions: bool = Field(default=False, description="Recall from every session.")
    similarity_top_k: int = Field(default=10, description="At most so many memories are recalled.")
    token_budget: int = Field(default=1_000, description="What is recalled has at most so many tokens.")
    _connection: Connection[Database] = PrivateAttr()

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        agent_id: str | int,
        user_id: str | int | None = None,
        namespace: str | int | None = None,
        across_sessions: bool = False,
        similarity_top_k: int = 10,
        token_budget: int = 1_000,
        name: str = "long_term_memory",
        description: str | None = None,
        priority: int = 0,
        accept_short_term_memory: bool = True,
    ) -> None:
        connection = Connection(db_or_path, lambda db: db)
        for what, value, least in (("similarity_top_k", similarity_top_k, 1), ("token_budget", token_budget, 0)):
            if type(value) is not int or value < least:
                raise InvalidInputError(f"{what} must be an int of {least} or more")
        own: dict[str, Any] = {
            "db_or_path": path_of(db_or_path),
            "agent_id": agent_id,
            "user_id": user_id,
            "namespace": namespace,
            "across_sessions": across_sessions,
            "similarity_top_k": similarity_top_k,
            "token_budget": token_budget,
        }
        super().__init__(
            name=name,
            description=description,
            priority=priority,
            accept_short_term_memory=accept_short_term_memory,
            **own,
        )
        self._connection = connection

    def __reduce__(self) -> tuple[partial[Self], tuple[()]]:
        return partial(type(self), **self.model_dump()), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    @override
    async def _aget(
        self, messages: list[ChatMessage] | None = None, session_id: str | None = None, **block_kwargs: Any
    ) -> str:
        """Return what of a session matters to the newest message of the user; of no session: what was put without one."""
        query = _newest_question(messages or [])
        if not query:
            return ""

        def work() -> str:
            is_apart = session_id is None and not self.across_sessions
            return (
                self._connection()
                .memories.context(
                    query,
                    agent_id=self.agent_id,
                    user_id=self.user_id,
                    namespace=self.namespace,
                    session_id=None if self.across_sessions else session_id,
                    filter=field("session_id").is_null() if is_apart else None,
                    k=self.similarity_top_k,
                    token_budget=self.token_budget,
                )
                .text
            )

        return await self._connection.run("write", work)

    @override
    async def aput(
        self, messages: list[ChatMessage], from_short_term_memory: bool = False, session_id: str | None = None
    ) -> None:
        """Remember messages of a session, all or none; they are not changed.

        Args:
            messages: oldest first; instructions and what has no text are passed over.
            from_short_term_memory: they were ejected from there; nothing is done if the block does not accept that.
            session_id: of which session; None: each of the one that its ``additional_kwargs["session_id"]`` names, or of none.
        """
        # Not as the base class does it: that writes the session into messages which other blocks see at the same time.
        if from_short_term_memory and not self.accept_short_term_memory:
            return
        if session_id is None:
            await self._aput(messages)
        else:
            await self._remember([(one, session_id) for one in messages])

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await self._remember([(one, one.additional_kwargs.get("session_id")) for one in messages])

    async def _remember(self, said: Sequence[tuple[ChatMessage, str | None]]) -> None:
        parts = [
            (message.role.value, session_id, text[start : start + _MAX_CHARS])
            for message, session_id in said
            if message.role not in _INSTRUCTIONS and (text := _text(message))
            for start in range(0, len(text), _MAX_CHARS)
        ]
        parts = [one for one in parts if one[2].strip()]

        def work() -> None:
            db = self._connection()
            now: datetime = db.config.clock().astimezone(UTC)
            db.memories.remember_many(
                MemoryWrite(
                    content=text,
                    agent_id=self.agent_id,
                    user_id=self.user_id,
                    namespace=self.namespace,
                    session_id=session_id,
                    role=role,
                    # Of messages that come together the order shows only in this.
                    occurred_at=now + i * _MICROSECOND,
                )
                for i, (role, session_id, text) in enumerate(parts)
            )

        if parts:
            await self._connection.run("write", work)


def _newest_question(messages: Sequence[ChatMessage]) -> str:
    """Return the text of the user's newest message, or of the newest at all if the user said nothing."""
    texts = [(one.role, text) for one in reversed(messages) if (text := _text(one))]
    return next((text for role, text in texts if role == MessageRole.USER), texts[0][1] if texts else "")


def _text(message: ChatMessage) -> str:
    """Return what a message says in words; "" if that is nothing but white space."""
    text = message.content or ""
    # A lone surrogate, half a character of a broken stream, must not make an agent lose its memory.
    return text.encode("utf-8", "replace").decode() if text.strip() else ""
