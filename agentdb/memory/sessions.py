"""What is known of a session without a look at its memories: what came last, and what is working memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from agentdb.memory.encoding import CONTEXT_MEMORIES
from agentdb.memory.records import Scope
from agentdb.memory.rows import tokens_of
from agentdb.storage.table import Table
from agentdb.types import Row

__all__ = ["Head", "head_key", "heads_of"]


@dataclass(slots=True)
class Head:
    """The row of ``_memory_heads`` of one session.

    Attributes:
        key: agent, and a digest of the rest of the scope.
        last: the place in the session that was given out last.
        newest: ids of the newest memories, oldest first.
        working: ids and tokens of working memories, oldest first.
    """

    key: tuple[str, str]
    last: int
    newest: list[str]
    working: list[tuple[str, int]]

    @classmethod
    def of(cls, key: tuple[str, str], row: Row | None) -> Head:
        """Return what a row says; a session without one is empty."""
        if row is None:
            return cls(key, 0, [], [])
        working = [(memory_id, tokens) for memory_id, tokens in json.loads(row["working"])]
        return cls(key, row["last_ordinal"], json.loads(row["newest"]), working)

    def row(self) -> Row:
        """Return it as it is stored."""
        return {
            "agent_id": self.key[0],
            "scope": self.key[1],
            "last_ordinal": self.last,
            "newest": json.dumps(self.newest),
            "working": json.dumps(self.working),
        }

    def append(self, memory_id: str) -> int:
        """Give a memory the next place in the session, and return it."""
        self.last += 1
        self.newest = [*self.newest, memory_id][-CONTEXT_MEMORIES:]
        return self.last

    def hold(self, memory_id: str, text: str) -> None:
        """Count a memory as the newest working memory."""
        self.release([memory_id])
        self.working.append((memory_id, tokens_of(text)))

    def resize(self, memory_id: str, text: str) -> None:
        """Count a working memory by another text, in its place."""
        self.working = [(one, tokens_of(text) if one == memory_id else tokens) for one, tokens in self.working]

    def release(self, memory_ids: Iterable[str]) -> None:
        """Count memories as working memory no more."""
        gone = set(memory_ids)
        self.working = [one for one in self.working if one[0] not in gone]

    def overflow(self, items: int, tokens: int) -> list[str]:
        """Take out, and return, the oldest working memories that are too many; the newest always stays."""
        total = sum(one[1] for one in self.working)
        leaving = []
        while len(self.working) > 1 and (len(self.working) > items or total > tokens):
            memory_id, size = self.working.pop(0)
            total -= size
            leaving.append(memory_id)
        return leaving


def head_key(scope: Scope) -> tuple[str, str]:
    """Return the key of a session's head."""
    # A digest: three identifiers, each of which may be absent, in one key column of bounded length.
    parts = [scope.user_id, scope.namespace, scope.session_id]
    return scope.agent_id, blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def heads_of(table: Table, scopes: Iterable[Scope]) -> dict[tuple[str, str], Head]:
    """Return the heads of sessions, each once, by their keys."""
    keys = list(dict.fromkeys(head_key(one) for one in scopes))
    return {key: Head.of(key, row) for key, row in zip(keys, table.get_many(keys), strict=True)}
