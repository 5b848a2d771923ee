"""``AgentDBLLMCache`` and ``AgentDBSemanticCache``: answers of models, found again by their prompt, or by one that means the same."""

from __future__ import annotations

import base64
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, NamedTuple

import pyarrow as pa
from langchain_core.caches import BaseCache
from langchain_core.embeddings import Embeddings
from langchain_core.messages import BaseMessage
from langchain_core.outputs import Generation

from agentdb import (
    AsyncDatabase,
    Closing,
    Connection,
    Database,
    IntegrityError,
    InvalidInputError,
    NamedCollection,
    NotFoundError,
    Table,
    TableSchema,
    check_vectors,
    field,
)
from langchain_agentdb.embeddings import AgentDBEmbeddings, as_embeddings, embedder_of
from langchain_agentdb.messages import allowed, pack_generations, unpack_generations

__all__ = ["AgentDBLLMCache", "AgentDBSemanticCache"]

ANSWERS = TableSchema(
    "_langchain_cache",
    [
        # Digests: prompts may be longer than a key, and need not lie about once more.
        pa.field("model", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("expires_at", pa.timestamp("us", tz="UTC")),
        pa.field("answer", pa.large_binary(), nullable=False),
    ],
    key=("model", "prompt"),
    indexed="expires_at",
)
_SWEEP_EVERY_S = 30.0
_MAX_TTL_S = timedelta(days=1000 * 365).total_seconds()
"""Far within the calendar, which ends with the year 9999."""
_OURS = field("frame").exists() & field("answer").exists()
"""Of a collection that has other rows, too, the cache's own: whatever else somebody keeps there is not the cache's to delete."""


def _digest(text: str) -> str:
    # Lone surrogates, which some tools put into texts, have a digest like anything else.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()


def _checked_ttl(ttl_s: float | None) -> timedelta | None:
    if ttl_s is None:
        return None
    given: object = ttl_s
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given < math.inf:
        raise InvalidInputError(f"ttl_s must be a number of seconds above 0, or None, not {given!r:.40}")
    if given > _MAX_TTL_S:
        raise InvalidInputError(
            f"ttl_s must be at most {_MAX_TTL_S:.0f} seconds; None is for answers that never expire"
        )
    return timedelta(seconds=given)


def _now(db: Database) -> datetime:
    moment: datetime = db.config.clock()
    return moment.astimezone(UTC)


def _refuse(options: dict[str, Any]) -> None:
    if options:
        raise InvalidInputError(f"clear has no option {', '.join(sorted(options))}")


class _Answers:
    """The table of a database, and the job that empties it of what has expired."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.table: Table = db.table(ANSWERS)
        self._sweep_due = 0.0
        if not db.read_only:
            db.add_maintenance("langchain-cache", self._sweep)

    def _sweep(self, _: float) -> bool:
        if time.monotonic() >= self._sweep_due:
            self._sweep_due = time.monotonic() + _SWEEP_EVERY_S
            with suppress(NotFoundError):  # what made the table was rolled back
                self.table.delete_many(filter=field("expires_at") <= _now(self.db))
        return False


class AgentDBLLMCache(Closing, BaseCache):
    """Answers by prompt and model, to the letter: durable, shared by every thread, event loop and process.

    ``set_llm_cache(AgentDBLLMCache(path))`` or ``ChatModel(cache=...)``. Prompts are stored as digests, answers as plain data:
    what is read back is made of LangChain's own classes of generations and messages, and of those that are allowed.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        ttl_s: how long an answer counts, in seconds; None: until it is cleared.
        allow: classes of messages of your own.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    _connection: Connection[_Answers]

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        ttl_s: float | None = None,
        allow: Iterable[type[BaseMessage]] = (),
    ) -> None:
        self._ttl = _checked_ttl(ttl_s)
        self._classes = allowed(allow)
        self._connection = Connection(db_or_path, _Answers)

    def lookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Return the answer to exactly this prompt by exactly this model, None if there is none or its time is up.

        Raises:
            IntegrityError: what is stored is no answer, or names a class that is not allowed.
        """
        answers = self._connection.found()
        row = None if answers is None else answers.table.get((_digest(llm_string), _digest(prompt)))
        if answers is None or row is None or (row["expires_at"] is not None and row["expires_at"] <= _now(answers.db)):
            return None
        return unpack_generations(row["answer"], self._classes)

    async def alookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Do what `lookup` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.lookup(prompt, llm_string))

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Store an answer in the place of the one before, durable when this returns.

        Raises:
            InvalidInputError: it holds something else than plain data.
        """
        answer = pack_generations(return_val, self._classes)
        answers = self._connection()
        answers.table.put(
            {
                "model": _digest(llm_string),
                "prompt": _digest(prompt),
                "expires_at": None if self._ttl is None else _now(answers.db) + self._ttl,
                "answer": answer,
            }
        )

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Do what `update` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.update(prompt, llm_string, return_val))

    def clear(self, *, llm_string: str | None = None, **kwargs: Any) -> None:
        """Remove all answers.

        Args:
            llm_string: only those of this model.
            kwargs: none; an option that does not exist is refused.
        """
        _refuse(kwargs)
        mine = ~field("model").is_null() if llm_string is None else field("model") == _digest(llm_string)
        self._connection().table.delete_many(filter=mine)

    async def aclear(self, *, llm_string: str | None = None, **kwargs: Any) -> None:
        """Do what `clear` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.clear(llm_string=llm_string, **kwargs))


class _Prompts:
    """The collection of a database that holds prompts as vectors, and the job that empties it of what has expired."""

    def __init__(self, db: Database, rows: NamedCollection) -> None:
        self.db = db
        self.rows = rows
        self._sweep_due = 0.0
        if not db.read_only:
            db.add_maintenance(f"langchain-semantic-cache {rows.name}", self._sweep)

    def _sweep(self, _: float) -> bool:
        if time.monotonic() >= self._sweep_due:
            self._sweep_due = time.monotonic() + _SWEEP_EVERY_S
            expired = _OURS & (field("expires_at") <= _now(self.db).timestamp())
            self.rows.read(lambda found: found.delete(filter=expired))
        return False


class AgentDBSemanticCache(Closing, BaseCache):
    """Answers by model, to the letter, and by what the prompt says: a question asked in other words gets the same answer.

    Of a chat only the last message is met by its meaning: what stands before it, the system prompt first of all, and who speaks,
    must be the same to the letter, because an answer that was given under other instructions, or about something else, is
    another one. Prompts with images or calls of tools in them, and last messages of more than ``max_prompt_chars``, are only met
    to the letter, because vectors of long texts tell too little, and an embedder that cuts a text takes different prompts for the
    same. What means the same is the embedding's judgement: choose ``min_score`` with prompts of your own; nearly equal sentences
    with another number or name in them are near each other, too.

    Args:
        embedding: LangChain embeddings; or an AgentDB embedder; None: that of the database.
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        collection: holds the prompts as vectors; of one embedding only.
        min_score: the cosine from which two prompts mean the same, above 0 and at most 1.
        max_prompt_chars: longer prompts, or last messages, are met to the letter only.
        ttl_s: how long an answer counts, in seconds; None: until it is cleared.
        allow: classes of messages of your own.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    _connection: Connection[_Prompts]

    def __init__(
        self,
        embedding: Embeddings | Any | None,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        collection: str = "semantic_cache",
        min_score: float = 0.95,
        max_prompt_chars: int = 1_000,
        ttl_s: float | None = None,
        allow: Iterable[type[BaseMessage]] = (),
    ) -> None:
        given: object = min_score
        if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given <= 1:
            raise InvalidInputError(f"min_score must be a number above 0 and at most 1, not {given!r:.40}")
        if not isinstance(max_prompt_chars, int) or isinstance(max_prompt_chars, bool) or max_prompt_chars < 0:
            raise InvalidInputError(f"max_prompt_chars must be an int of 0 or more, not {max_prompt_chars!r:.40}")
        made = as_embeddings(embedding)
        self._embeddings = AgentDBEmbeddings.of(lambda: self._connection().db.embedder) if made is None else made
        self._min_score = float(given)
        self._max_prompt_chars = max_prompt_chars
        self._ttl = _checked_ttl(ttl_s)
        self._classes = allowed(allow)
        self._exact = AgentDBLLMCache(db_or_path, ttl_s=ttl_s, allow=allow)
        named = NamedCollection.prepare(collection, metric="cosine", embedder=embedder_of(self._embeddings))
        self._connection = Connection(db_or_path, lambda db: _Prompts(db, named(db)))
        self._connection.on_close = self._exact.close

    def lookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Return the answer of exactly this model to this prompt, or to the one that means the same and is nearest to it.

        Raises:
            IntegrityError: what is stored is no answer, or names a class that is not allowed.
        """
        found = self._exact.lookup(prompt, llm_string)
        asked = _asked(prompt, self._max_prompt_chars)
        if found is not None or asked is None:
            return found
        return self._nearest(asked, self._embeddings.embed_query(asked.words), llm_string)

    async def alookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Do what `lookup` does, without blocking the event loop."""
        found = await self._exact.alookup(prompt, llm_string)
        asked = _asked(prompt, self._max_prompt_chars)
        if found is not None or asked is None:
            return found
        vector = await self._embeddings.aembed_query(asked.words)
        return await self._connection.run("read", lambda: self._nearest(asked, vector, llm_string))

    def _nearest(self, asked: _Asked, vector: Sequence[float], llm_string: str) -> list[Generation] | None:
        if not any(vector):  # of no direction: near to nothing
            return None
        prompts = self._connection()
        mine = (field("model") == _digest(llm_string)) & (field("frame") == asked.frame)
        mine &= ~(field("expires_at") <= _now(prompts.db).timestamp())
        hits = prompts.rows.read(
            lambda found: found.search(vector, 1, filter=mine, min_score=self._min_score, include=["metadata"])
        )
        if not hits:
            return None
        answer = hits[0].metadata.get("answer")
        if not isinstance(answer, str):
            raise IntegrityError("a stored answer cannot be read")
        try:
            data = base64.b64decode(answer, validate=True)
        except ValueError:
            raise IntegrityError("a stored answer cannot be read") from None
        return unpack_generations(data, self._classes)

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Store an answer in the place of the one before, durable when this returns.

        Raises:
            InvalidInputError: it holds something else than plain data.
        """
        asked = _asked(prompt, self._max_prompt_chars)
        vector = None if asked is None else self._embeddings.embed_query(asked.words)
        self._store(prompt, llm_string, return_val, asked, vector)

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Do what `update` does, without blocking the event loop."""
        asked = _asked(prompt, self._max_prompt_chars)
        vector = None if asked is None else await self._embeddings.aembed_query(asked.words)
        await self._connection.run("write", lambda: self._store(prompt, llm_string, return_val, asked, vector))

    def _store(
        self,
        prompt: str,
        llm_string: str,
        return_val: Sequence[Generation],
        asked: _Asked | None,
        vector: Sequence[float] | None,
    ) -> None:
        answer = pack_generations(return_val, self._classes)
        if asked is not None and vector is not None and any(vector):
            prompts = self._connection()
            model = _digest(llm_string)
            metadata: dict[str, Any] = {
                "model": model,
                "frame": asked.frame,
                "answer": base64.b64encode(answer).decode(),
            }
            if self._ttl is not None:
                metadata["expires_at"] = (_now(prompts.db) + self._ttl).timestamp()
            ids, matrix = [_digest(f"{model} {_digest(prompt)}")], check_vectors([vector], source="embedding")
            prompts.rows.write(len(vector), lambda found: found.upsert(ids, matrix, metadata=[metadata]))
        self._exact.update(prompt, llm_string, return_val)

    def clear(self, *, llm_string: str | None = None, **kwargs: Any) -> None:
        """Remove all answers, those of `AgentDBLLMCache` in the same database among them.

        Args:
            llm_string: only those of this model.
            kwargs: none; an option that does not exist is refused.
        """
        _refuse(kwargs)
        self._exact.clear(llm_string=llm_string)
        mine = _OURS if llm_string is None else _OURS & (field("model") == _digest(llm_string))
        self._connection().rows.read(lambda found: found.delete(filter=mine))

    async def aclear(self, *, llm_string: str | None = None, **kwargs: Any) -> None:
        """Do what `clear` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.clear(llm_string=llm_string, **kwargs))


class _Asked(NamedTuple):
    """A prompt as it is met by its meaning: the words of the last message, and a digest of all that must be the same."""

    words: str
    frame: str


def _asked(prompt: str, max_chars: int) -> _Asked | None:
    """Return what a prompt asks, in words; None if that is not all of it, or too much."""
    spoken = _spoken(prompt)
    if not spoken or not 0 < len(spoken[-1][1]) <= max_chars:
        return None
    speaker, words = spoken[-1]
    try:
        words.encode()
    except UnicodeEncodeError:  # a lone surrogate, of which no embedder makes anything
        return None
    return _Asked(words, _digest(json.dumps([spoken[:-1], speaker])))


def _spoken(prompt: str) -> list[tuple[list[Any], str]] | None:
    """Return who says what, in order, in the prompt of a chat model, which is JSON; None if there is more in it than words."""
    said_by_nobody: list[tuple[list[Any], str]] = [([], prompt)]
    if not prompt.startswith("["):
        return said_by_nobody
    try:
        messages = json.loads(prompt)
    except (ValueError, RecursionError):
        return said_by_nobody
    spoken: list[tuple[list[Any], str]] = []
    for one in messages:
        if not isinstance(one, dict) or one.get("type") != "constructor" or not isinstance(one.get("kwargs"), dict):
            return said_by_nobody
        words = _words(one["kwargs"])
        if words is None:
            return None
        spoken.append(([one["kwargs"].get(key) for key in ("type", "role", "name")], words))
    return spoken


def _words(message: dict[str, Any]) -> str | None:
    """Return the text of a serialised message, None if there is more to it."""
    content = message.get("content")
    if message.get("tool_calls") or message.get("tool_call_id") or message.get("additional_kwargs"):
        return None
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else [None]
    texts = [one.get("text") if isinstance(one, dict) and one.get("type") == "text" else None for one in blocks]
    return None if None in texts else " ".join(map(str, texts))
