"""``AgentDBMemoryToolkit``: the memory of an agent as tools that a model calls."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, BaseToolkit, StructuredTool
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints

from agentdb import AsyncDatabase, Closing, Connection, Database, InvalidInputError
from langchain_agentdb.scopes import Scope, UserId, session_of

__all__ = ["AgentDBMemoryToolkit"]

MemoryType = Literal["episodic", "semantic", "procedural"]
_ANSWER_TOKENS = 1_000
# What a model gets wrong is told to the model, as any argument that does not fit the tool, and ends nobody's run.
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100_000)]


class _Remember(BaseModel):
    content: Words = Field(description="One fact, in a sentence that can be understood without the conversation.")
    memory_type: MemoryType = Field(
        default="semantic",
        description="semantic: a fact; episodic: something that happened; procedural: how something is done.",
    )


class _Recall(BaseModel):
    query: Words = Field(description="What you want to know, as a question or in keywords.")


class AgentDBMemoryToolkit(Closing, BaseToolkit):
    """Two tools, ``remember`` and ``recall``, over the memories of one agent; what was remembered is recalled at once.

    Whose memories is the program's choice, and never the model's: the scope is no argument of the tools. May be called from any
    thread and event loop; async calls run on threads.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one.
        agent_id: whose memories.
        user_id: of which user: a text, or a function of the run's config; None: ``config["configurable"]["user_id"]``, and
            memories without a user where a run has none.
        namespace: of which namespace.
        k: how many memories ``recall`` finds.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    k: int = 5
    _scope: Scope = PrivateAttr()
    _connection: Connection[Database] = PrivateAttr()

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        agent_id: str,
        user_id: UserId = None,
        namespace: str | None = None,
        k: int = 5,
    ) -> None:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise InvalidInputError(f"k must be an int of 1 or more, not {k!r:.40}")
        super().__init__(k=k)  # type: ignore[call-arg]
        self._scope = Scope.of(agent_id, user_id, namespace)
        self._connection = Connection(db_or_path, lambda db: db)

    def get_tools(self) -> list[BaseTool]:
        """Return the tools ``remember`` and ``recall``."""
        return [
            StructuredTool.from_function(
                self._remember,
                coroutine=self._aremember,
                name="remember",
                description="Keep a fact about the user or the task for later conversations.",
                args_schema=_Remember,
            ),
            StructuredTool.from_function(
                self._recall,
                coroutine=self._arecall,
                name="recall",
                description="Look up what is remembered from earlier conversations.",
                args_schema=_Recall,
            ),
        ]

    def _remember(self, content: str, config: RunnableConfig, memory_type: MemoryType = "semantic") -> str:
        self._connection().memories.remember(
            content,
            **self._scope.whose(config),
            session_id=session_of(config),
            memory_type=memory_type,
        )
        return "Remembered."

    async def _aremember(self, content: str, config: RunnableConfig, memory_type: MemoryType = "semantic") -> str:
        return await self._connection.run("write", lambda: self._remember(content, config, memory_type))

    def _recall(self, query: str, config: RunnableConfig) -> str:
        whose = self._scope.whose(config)
        found = self._connection().memories.context(query, token_budget=_ANSWER_TOKENS, k=self.k, **whose)
        return found.text or "Nothing is remembered about that."

    async def _arecall(self, query: str, config: RunnableConfig) -> str:
        # It counts what it finds as used, and may wait for another writer.
        return await self._connection.run("write", lambda: self._recall(query, config))
