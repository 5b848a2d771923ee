"""``AgentDBChatMemory`` and ``AgentDBVectorMemory``: memory for the chains of ``langchain_classic``, on the parts that agents use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.messages import BaseMessage, get_buffer_string
from pydantic import ConfigDict, PrivateAttr

from agentdb import AsyncDatabase, Closing, Connection, Database, InvalidInputError, MissingDependencyError
from langchain_agentdb.chat_history import AgentDBChatMessageHistory
from langchain_agentdb.vector_store import AgentDBVectorStore

try:
    from langchain_classic.base_memory import BaseMemory
    from langchain_classic.memory.chat_memory import BaseChatMemory
    from langchain_classic.memory.utils import get_prompt_input_key
except ImportError as error:
    raise MissingDependencyError(
        f"the memory of classic chains needs langchain-classic: pip install 'agentdb-lance[langchain-classic]' ({error})"
    ) from None

__all__ = ["AgentDBChatMemory", "AgentDBVectorMemory"]


class AgentDBChatMemory(Closing, BaseChatMemory):
    """The conversation of one session as a chain's memory: every turn is durable when ``save_context`` returns.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one.
        session_id: whose messages.
        memory_key: the name of the variable that holds them.
        k: only the last so many turns (a question and an answer); None: all.
        return_messages: messages, and not a text.
        human_prefix, ai_prefix: how the text names the speakers.
        input_key, output_key: which of a chain's inputs and outputs is said; None: the only one.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    memory_key: str = "history"
    k: int | None = None
    human_prefix: str = "Human"
    ai_prefix: str = "AI"
    _connection: Connection[Any] = PrivateAttr()

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        session_id: str,
        **fields: Any,
    ) -> None:
        history = AgentDBChatMessageHistory(db_or_path, session_id=session_id)
        super().__init__(chat_memory=history, **fields)
        if self.k is not None and self.k < 1:
            raise InvalidInputError(f"k must be an int of 1 or more, or None, not {self.k}")
        self._connection = history._connection

    @property
    def memory_variables(self) -> list[str]:
        """The one variable that `load_memory_variables` gives."""
        return [self.memory_key]

    def load_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the conversation under `memory_key`."""
        del inputs
        return {self.memory_key: self._shown(self.chat_memory.messages)}

    async def aload_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Do what `load_memory_variables` does, without blocking the event loop."""
        del inputs
        return {self.memory_key: self._shown(await self.chat_memory.aget_messages())}

    def _shown(self, messages: list[BaseMessage]) -> list[BaseMessage] | str:
        last = messages if self.k is None else messages[-2 * self.k :]
        if self.return_messages:
            return last
        return get_buffer_string(last, human_prefix=self.human_prefix, ai_prefix=self.ai_prefix)


class AgentDBVectorMemory(Closing, BaseMemory):
    """The turns of a session that are nearest to what is asked, as a chain's memory.

    Args:
        embedding: as `AgentDBVectorStore` takes it.
        db_or_path: an open database, which stays the caller's to close, or the path of one.
        session_id: whose turns; those of other sessions are not found.
        collection: where they are stored.
        k: how many turns.
        memory_key: the name of the variable that holds them.
        input_key: which of a chain's inputs is asked; None: the only one.
        exclude_input_keys: inputs that are not remembered.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    session_id: str
    k: int = 4
    memory_key: str = "history"
    input_key: str | None = None
    exclude_input_keys: Sequence[str] = ()
    _store: AgentDBVectorStore = PrivateAttr()
    _connection: Connection[Any] = PrivateAttr()

    def __init__(
        self,
        embedding: Embeddings | Any | None,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        collection: str = "conversations",
        **fields: Any,
    ) -> None:
        super().__init__(**fields)
        self._store = AgentDBVectorStore(embedding, db_or_path, collection=collection)
        self._connection = self._store._connection

    @property
    def memory_variables(self) -> list[str]:
        """The one variable that `load_memory_variables` gives."""
        return [self.memory_key]

    def load_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the turns nearest to what is asked, one below the other, under `memory_key`."""
        found = self._store.similarity_search(self._asked(inputs), self.k, filter=self._mine)
        return {self.memory_key: "\n".join(one.page_content for one in found)}

    async def aload_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Do what `load_memory_variables` does, without blocking the event loop."""
        found = await self._store.asimilarity_search(self._asked(inputs), self.k, filter=self._mine)
        return {self.memory_key: "\n".join(one.page_content for one in found)}

    def save_context(self, inputs: dict[str, Any], outputs: dict[str, str]) -> None:
        """Store one turn, durable when this returns."""
        self._store.add_texts([self._said(inputs, outputs)], [self._mine])

    async def asave_context(self, inputs: dict[str, Any], outputs: dict[str, str]) -> None:
        """Do what `save_context` does, without blocking the event loop."""
        await self._store.aadd_texts([self._said(inputs, outputs)], [self._mine])

    def clear(self) -> None:
        """Remove the turns of this session, and of no other."""
        self._store.delete(filter=self._mine)

    async def aclear(self) -> None:
        """Do what `clear` does, without blocking the event loop."""
        await self._store.adelete(filter=self._mine)

    @property
    def _mine(self) -> dict[str, Any]:
        return {"session_id": self.session_id}

    def _asked(self, inputs: dict[str, Any]) -> str:
        key = get_prompt_input_key(inputs, self.memory_variables) if self.input_key is None else self.input_key
        return str(inputs[key])

    def _said(self, inputs: dict[str, Any], outputs: dict[str, str]) -> str:
        left_out = {*self.exclude_input_keys, self.memory_key}
        said = {**{key: value for key, value in inputs.items() if key not in left_out}, **outputs}
        return "\n".join(f"{key}: {value}" for key, value in said.items())
