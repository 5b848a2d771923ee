"""``AgentDBSaver``: LangGraph's checkpoints in a database, for threads and tasks alike."""

from __future__ import annotations

import builtins
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from typing import Any, Literal, NamedTuple, Self
from uuid import UUID

import msgpack
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from agentdb import AsyncDatabase, Closing, Connection, Database, IntegrityError, InvalidInputError
from langgraph_agentdb.batch import Batch
from langgraph_agentdb.checkpoints import Checkpoints, NewCheckpoint, Place, Prepare, StoredCheckpoint, Write
from langgraph_agentdb.serializer import StrictSerializer, load_typed

__all__ = ["AgentDBSaver"]

_BRANCHING = ("fork", "update")
_AT_ONCE = (1, 4, 8, 16, 32)


_random = random.Random()  # noqa: S311 - no secret; of its own, so that no seed of the caller's makes versions repeat
os.register_at_fork(after_in_child=_random.seed)


class _Where(NamedTuple):
    place: Place
    checkpoint_id: str | None


class AgentDBSaver(Closing, BaseCheckpointSaver[str]):
    """Checkpoints of every thread in a database: each value is stored once, and as a delta where it grows.

    ``graph.compile(checkpointer=AgentDBSaver(path))``. All methods may be called from any thread, event loop and process at
    once. Async methods run on threads of their own and never block the event loop; sync ones work inside a running loop too,
    and block it.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        serde: turns values into bytes and back; None: a `StrictSerializer`.
        fence: refuse a checkpoint whose parent is not the newest of its thread, with ``agentdb.ConflictError``: of two workers
            that run one thread, the second is stopped at its next step and the thread does not fork. Branches made on purpose,
            by ``update_state`` or by running on from an older checkpoint, are accepted.
    """

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        serde: SerializerProtocol | None = None,
        fence: bool = False,
    ) -> None:
        # First, because pickling takes attributes in their order, and the connection says why it cannot be.
        self._connection = Connection(db_or_path, Checkpoints)
        super().__init__(serde=serde or StrictSerializer())
        self._batch = Batch(lambda works: self._connection().commit_all(works), lambda: self._connection().check())
        self._connection.on_close = self._batch.close
        self._fence = fence

    def __deepcopy__(self, memo: object) -> Self:
        """Return a copy that goes on in the same database, as a shallow one does."""
        return copy(self)

    # --- reading ------------------------------------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that the config names, or the newest of its thread and namespace; None where there is none.

        An id is met exactly or not at all. Pending writes come in the order in which LangGraph applies them.

        Raises:
            InvalidInputError: the config names no thread, or a value holds a type that the serializer refuses.
            IntegrityError: what is stored does not match its checksum.
        """
        where = _where(config)
        checkpoints = self._connection.found()
        found = None if checkpoints is None else checkpoints.get(*where)
        return None if found is None else self._tuple(found)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield checkpoints, newest first, reading them as they are asked for.

        Args:
            config: the thread, the namespace if it names one, and the id if it names one; None: all threads.
            filter: metadata that they must have: equal in type and value, all the way down. None: absent or null.
            before: only those with an id lower than that of this config; one that names no id leaves out none.
            limit: at most so many.

        Raises:
            InvalidInputError: as `get_tuple`, or a negative limit.
        """
        if limit is not None and limit < 0:
            raise InvalidInputError("limit must be 0 or more, or None")
        place: tuple[str, ...] = ()
        checkpoint_id = None
        if config is not None:
            where = _where(config)
            checkpoint_id = where.checkpoint_id
            place = where.place if "checkpoint_ns" in config["configurable"] else where.place[:1]
        checkpoints = self._connection.found()
        if checkpoints is None:
            return iter(())
        found = checkpoints.find(
            place,
            checkpoint_id=checkpoint_id,
            before=None if before is None else _before(before),
            limit=limit,
            accepts=(lambda body: _has(self._body(body)[1], filter)) if filter else None,
        )
        return (self._tuple(one) for one in found)

    def _tuple(self, found: StoredCheckpoint) -> CheckpointTuple:
        checkpoint, metadata = self._body(found.body)
        checkpoint["channel_values"] = {name: self._load(content) for name, content in found.values.items()}
        return CheckpointTuple(
            config=_config(found.place, found.checkpoint_id),
            checkpoint=checkpoint,
            metadata=metadata,
            parent_config=None if found.parent is None else _config(found.place, found.parent),
            pending_writes=[(one.task_id, one.channel, self._load(one.content)) for one in found.writes],
        )

    def _body(self, body: bytes) -> tuple[Any, Any]:
        kind, data, metadata_kind, metadata = _unpacked(body, 4)
        return load_typed(self.serde, (kind, data)), load_typed(self.serde, (metadata_kind, metadata))

    def _load(self, content: bytes) -> Any:
        kind, data = _unpacked(content, 2)
        return load_typed(self.serde, (kind, data))

    def _dump(self, value: Any) -> bytes:
        packed: bytes = msgpack.packb(self.serde.dumps_typed(value))
        return packed

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return, per channel, the writes of the checkpoint's ancestors and the value that they begin from.

        See ``BaseCheckpointSaver.get_delta_channel_history``. One read per kind of row, however long the thread.
        """
        if not channels:
            return {}
        where = _where(config)
        result: dict[str, DeltaChannelHistory] = {}
        checkpoints, names = self._connection.found(), list(dict.fromkeys(channels))
        if checkpoints is None:
            return {name: {"writes": []} for name in names}
        for name, (writes, seed) in checkpoints.history(*where, names).items():
            entry: DeltaChannelHistory = {
                "writes": [(one.task_id, one.channel, self._load(one.content)) for one in writes]
            }
            if seed is not None:
                entry["seed"] = self._load(seed)
            result[name] = entry
        return result

    # --- writing ------------------------------------------------------------------------------------------------------

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, durable when this returns, and return the config that names it.

        Values of channels that have the version that the parent has are not stored again.

        Args:
            config: the thread, the namespace, and as ``checkpoint_id`` the parent.
            checkpoint: what to store.
            metadata: is kept as it is, with what the config adds to it.
            new_versions: the channels that changed.

        Raises:
            ConflictError: with ``fence``, another worker has gone on with the thread.
            InvalidInputError: the config names no thread, or an id is too long.
            StorageError: a turn to write did not come in time (retryable), or storing failed.
        """
        stored, prepare = self._putting(config, checkpoint, metadata, new_versions)
        self._connection().commit(prepare)
        return stored

    def _putting(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> tuple[RunnableConfig, Prepare]:
        place, parent = _where(config)
        checkpoint_id = _required_text(checkpoint["id"], "the checkpoint's id")
        values = checkpoint["channel_values"]
        versions = checkpoint["channel_versions"]
        all_metadata = get_checkpoint_metadata(config, metadata)
        counters = all_metadata.get("counters_since_delta_snapshot") or {}
        run_id = all_metadata.get("run_id")
        new = NewCheckpoint(
            checkpoint_id=checkpoint_id,
            parent=parent,
            run_id=None if run_id is None else str(run_id),
            body=self._dump_body(checkpoint, all_metadata),
            fresh={
                name: (versions.get(name), self._dump(value))
                for name, value in values.items()
                if name in new_versions or name not in versions
            },
            known={name: version for name, version in versions.items() if name not in new_versions},
            valued=values.keys(),
            content=lambda name: self._dump(values[name]),
            needs=[name for name in counters if name not in values],
            is_branch=all_metadata.get("source") in _BRANCHING,
        )
        is_fenced = self._fence and not place.checkpoint_ns
        return _config(place, checkpoint_id), self._connection().putting(place, new, is_fenced=is_fenced)

    def _dump_body(self, checkpoint: Checkpoint, metadata: CheckpointMetadata) -> bytes:
        body = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        packed: bytes = msgpack.packb([*self.serde.dumps_typed(body), *self.serde.dumps_typed(metadata)])
        return packed

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store writes of a task, durable when this returns; the checkpoint itself may come later.

        What is stored of a task stays, but errors, interrupts and resumes are replaced.

        Args:
            config: the thread, the namespace, and the checkpoint that the writes follow.
            writes: (channel, value), in order.
            task_id: whose writes.
            task_path: where the task stands among those of its step; pending writes are sorted by it.

        Raises:
            InvalidInputError: the config names no checkpoint, or an id is too long; nothing is stored.
            TypeError: the serializer cannot encode a value; nothing is stored.
            StorageError: a turn to write did not come in time (retryable), or storing failed.
        """
        if writes:
            self._connection().commit(self._writing(config, writes, task_id, task_path)[1])

    def _writing(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> tuple[None, Prepare]:
        place, checkpoint_id = _where(config)
        if checkpoint_id is None:
            raise InvalidInputError("the config of put_writes must name a checkpoint_id")
        task = _required_text(task_id, "task_id")
        path = _string(task_path, "task_path")
        prepared = [
            Write(path, task, WRITES_IDX_MAP.get(channel, index), _string(channel, "channel"), self._dump(value))
            for index, (channel, value) in enumerate(writes)
        ]
        return None, self._connection().writing(place, checkpoint_id, task, prepared)

    # --- removing and copying -----------------------------------------------------------------------------------------

    def delete_thread(self, thread_id: str) -> None:
        """Remove everything of a thread, in all namespaces."""
        self._connection().delete_thread(_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints of runs with their writes and values.

        Those that a remaining checkpoint needs to rebuild a ``DeltaChannel`` stay.
        """
        self._connection().delete_for_runs([str(one) for one in run_ids])

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy everything of a thread to one that has nothing; what does not exist copies to nothing.

        Raises:
            ConflictError: the target has checkpoints.
            InvalidInputError: source and target are the same.
        """
        self._connection().copy_thread(_thread(source_thread_id), _thread(target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove checkpoints of threads.

        Args:
            thread_ids: which threads.
            strategy: ``"keep_latest"``: all but the newest of each namespace, and the ancestors that it needs to rebuild a
                ``DeltaChannel``. ``"delete"``: all.

        Raises:
            InvalidInputError: another strategy.
        """
        if isinstance(thread_ids, str):
            raise InvalidInputError("thread_ids must be a sequence of ids, not one")
        threads = [_thread(one) for one in thread_ids]
        checked: Literal["keep_latest", "delete"]
        if strategy not in ("keep_latest", "delete"):
            raise InvalidInputError("strategy must be 'keep_latest' or 'delete'")
        checked = "delete" if strategy == "delete" else "keep_latest"
        checkpoints = self._connection()
        if checked == "keep_latest":
            checkpoints.prune(threads)
            return
        for one in threads:
            checkpoints.delete_thread(one)

    def get_next_version(self, current: str | None, channel: None) -> str:  # noqa: ARG002 - the interface's
        """Return a version above ``current`` that nobody else makes, on whatever branch or in whatever process."""
        number = 0 if current is None else int(str(current).split(".", maxsplit=1)[0])
        return f"{number + 1:032}.{_random.getrandbits(53):016}"

    # --- the same for tasks -------------------------------------------------------------------------------------------

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Do what `get_tuple` does, without blocking the event loop."""
        return await self._connection.run("read", lambda: self.get_tuple(config))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield what `list` yields, without blocking the event loop."""
        found = await self._connection.run("read", lambda: self.list(config, filter=filter, before=before, limit=limit))
        sizes = iter(_AT_ONCE)
        while True:
            size = next(sizes, _AT_ONCE[-1])
            page = await self._connection.run("read", lambda: builtins.list(islice(found, size)))  # noqa: B023
            for one in page:
                yield one
            if len(page) < size:
                return

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Do what `get_delta_channel_history` does, without blocking the event loop."""
        return await self._connection.run(
            "read", lambda: self.get_delta_channel_history(config=config, channels=channels)
        )

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Do what `put` does, without blocking the event loop."""
        self._connection.check()
        return await self._batch.run(lambda: self._putting(config, checkpoint, metadata, new_versions))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Do what `put_writes` does, without blocking the event loop."""
        self._connection.check()
        if writes:
            await self._batch.run(lambda: self._writing(config, writes, task_id, task_path))

    async def adelete_thread(self, thread_id: str) -> None:
        """Do what `delete_thread` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.delete_thread(thread_id))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Do what `delete_for_runs` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.delete_for_runs(run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Do what `copy_thread` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.copy_thread(source_thread_id, target_thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Do what `prune` does, without blocking the event loop."""
        await self._connection.run("write", lambda: self.prune(thread_ids, strategy=strategy))


def _where(config: RunnableConfig) -> _Where:
    configurable: Any = config.get("configurable") or {}
    if "thread_id" not in configurable:
        raise InvalidInputError("the config must name a thread: config['configurable']['thread_id']")
    return _Where(
        Place(_thread(configurable["thread_id"]), _string(configurable.get("checkpoint_ns", ""), "checkpoint_ns")),
        _text(configurable.get("checkpoint_id"), "checkpoint_id"),
    )


def _before(config: RunnableConfig) -> str | None:
    return _text((config.get("configurable") or {}).get("checkpoint_id"), "checkpoint_id")


def _config(place: Place, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {**place._asdict(), "checkpoint_id": checkpoint_id}}


def _thread(value: object) -> str:
    if isinstance(value, int | UUID) and not isinstance(value, bool):
        return str(value)
    return _required_text(value, "thread_id")


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"{what} must be a str, not {type(value).__name__}")
    return value


def _text(value: object, what: str) -> str | None:
    """Return an id; None where there is none, which an empty one says too."""
    if isinstance(value, UUID):
        value = str(value)
    return None if value is None else _string(value, what) or None


def _required_text(value: object, what: str) -> str:
    text = _text(value, what)
    if text is None:
        raise InvalidInputError(f"{what} must not be empty")
    return text


def _unpacked(blob: bytes, parts: int) -> Any:
    found = msgpack.unpackb(blob)
    if not isinstance(found, builtins.list) or len(found) != parts:
        raise IntegrityError("a stored value is not what a saver writes")
    return found


def _has(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(_same(metadata.get(name), value) for name, value in wanted.items())


def _same(a: Any, b: Any) -> bool:
    """Equal in value, and a boolean is no number, all the way down."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, builtins.list | tuple) and isinstance(b, builtins.list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
