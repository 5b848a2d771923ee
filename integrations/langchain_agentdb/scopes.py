"""``Scope``: whose memories a run may see, decided by the program and the run's config, never by a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

from langchain_core.runnables import RunnableConfig

from agentdb import InvalidInputError

__all__ = ["Scope", "UserId", "Whose"]

UserId = str | Callable[[RunnableConfig], str | None] | None
"""A user, or a function that tells the user of a run from its config; None: ``config["configurable"]["user_id"]``, if there is one."""


class Whose(TypedDict):
    """A scope of ``db.memories``."""

    agent_id: str
    user_id: str | None
    namespace: str | None


class Scope(NamedTuple):
    """Whose memories; the user may be another one with every run."""

    agent_id: str
    user_id: UserId
    namespace: str | None

    @classmethod
    def of(cls, agent_id: Any, user_id: Any, namespace: Any) -> Scope:
        """Return a checked scope.

        Raises:
            InvalidInputError: an argument is of a wrong type.
        """
        if not isinstance(agent_id, str) or not agent_id:
            raise InvalidInputError(f"agent_id must be a str that is not empty, not {type(agent_id).__name__}")
        if not (user_id is None or isinstance(user_id, str) or callable(user_id)):
            raise InvalidInputError(
                f"user_id must be a str, a function of the run's config, or None, not {type(user_id).__name__}"
            )
        if not (namespace is None or isinstance(namespace, str)):
            raise InvalidInputError(f"namespace must be a str or None, not {type(namespace).__name__}")
        return cls(agent_id, user_id, namespace)

    def whose(self, config: RunnableConfig) -> Whose:
        """Return whose memories a run may see.

        Raises:
            InvalidInputError: the run's user is no string.
        """
        given: Any = self.user_id
        if callable(given):
            given = given(config)
        elif given is None:
            given = config.get("configurable", {}).get("user_id")
        if not (given is None or isinstance(given, str)):
            raise InvalidInputError(f"the user of a run must be a str or None, not {type(given).__name__}")
        return {"agent_id": self.agent_id, "user_id": given, "namespace": self.namespace}


def session_of(config: RunnableConfig) -> str | None:
    """Return the thread of a run, which is the session of what is remembered in it; None if it has none."""
    thread = config.get("configurable", {}).get("thread_id")
    return None if thread is None else str(thread)
