"""``open_async`` and the asynchronous twins: the same names, signatures and documentation, on threads of their own.

Lance and SQLite block and release the GIL, so the synchronous classes are the truth and their twins only choose a thread:

- Reads and writes have a pool each. A writer may wait for its turn for long; reads never queue behind it.
- Whatever may wait for an embedder has another: searches of collections one, writes of texts one. A slow embedder starves
  no other call.
- A transaction or snapshot has a thread to itself, outside the pools, because the engine ties it to one.

Nothing here is bound to an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import Context, copy_context
from itertools import islice
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar

import pyarrow as pa

from agentdb.config import Config
from agentdb.database import Database, open
from agentdb.embedding import Embedder
from agentdb.errors import ClosedError, NotFoundError
from agentdb.memory import AgentMemories, MemoryPolicies
from agentdb.rag import Documents
from agentdb.states import AgentStates, StateVersion
from agentdb.storage.core import Core, View
from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table
from agentdb.types import Progress, Row
from agentdb.vectors.collection import Collection
from agentdb.vectors.definition import CollectionMetric, PromotedType, VectorSpec
from agentdb.vectors.rows import Batch, Record

__all__ = [
    "AsyncAgentMemories",
    "AsyncAgentStates",
    "AsyncCollection",
    "AsyncDatabase",
    "AsyncDocuments",
    "AsyncTable",
    "open_async",
]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., object])
S_co = TypeVar("S_co", covariant=True)
Pool = Literal["read", "write", "search", "embed"]

_READERS = 16
_EMBEDDERS = 16
_WRITERS = 32
"""Waiting for a commit costs no processor, and writers that wait together share one."""
_ROWS_AT_ONCE = 256
"""Rows that an iterator fetches by one hop to a thread and back."""
_HISTORY_BYTES = 16 << 20


def called(work: Callable[[], R]) -> R:
    """Return what ``work`` returns, for a task that waits for it.

    Raises:
        RuntimeError: it raised a ``StopIteration``, which no future takes: before Python 3.12 the task would wait for ever.
    """
    try:
        return work()
    except StopIteration as error:
        raise RuntimeError("what was called for a task raised StopIteration") from error


class _Lane:
    """The thread of one open transaction or snapshot, and the task that it belongs to."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "agentdb-transaction")
        self.task = asyncio.current_task()


_lanes: dict[View, _Lane] = {}
"""Of every open block, in all handles: a task's calls join its block whichever handle they go through."""


class _Threads:
    """The threads of one handle."""

    def __init__(self) -> None:
        self._pools: dict[Pool, ThreadPoolExecutor] = {
            "read": ThreadPoolExecutor(_READERS, "agentdb-read"),
            "write": ThreadPoolExecutor(_WRITERS, "agentdb-write"),
            "search": ThreadPoolExecutor(_READERS, "agentdb-search"),
            "embed": ThreadPoolExecutor(_EMBEDDERS, "agentdb-embed"),
        }
        self.core: Core | None = None
        self.is_closing = False

    def lane(self) -> _Lane | None:
        """Return where the calls of this task must run because it has a block open.

        Raises:
            UnavailableError: the block belongs to another task.
        """
        view = self.core.innermost() if self.core is not None else None
        lane = _lanes.get(view) if view is not None else None
        if view is not None and lane is not None and lane.task is not asyncio.current_task():
            view.check()
        return lane

    def start(self, pool: Pool, work: Callable[[], R]) -> Future[R]:
        """Begin a call on the thread that it belongs to.

        Raises:
            ClosedError: the handle is closed, or about to be.
            UnavailableError: this is a forked child: on the parent's threads nothing would ever run.
        """
        if self.core is not None:
            self.core.check()
        lane = self.lane()
        if self.is_closing and lane is None:
            raise ClosedError("the database is closed")
        try:
            # In the caller's context, as asyncio.to_thread does: the engine sees there what the task has open.
            return (lane.thread if lane is not None else self._pools[pool]).submit(copy_context().run, called, work)
        except RuntimeError:
            raise ClosedError("the database is closed") from None

    async def run(self, pool: Pool, work: Callable[[], R]) -> R:
        return await asyncio.wrap_future(self.start(pool, work))

    def end(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=True)


class _Twin(Generic[S_co]):
    """Base of the asynchronous classes."""

    def __init__(self, threads: _Threads, sync: S_co) -> None:
        self._threads = threads
        self._sync = sync

    @property
    def sync(self) -> S_co:
        """The synchronous object behind this one; it may be used from any thread, also one that runs an event loop."""
        return self._sync

    def __repr__(self) -> str:
        return f"Async{self._sync!r}"


class _Later(Awaitable[R]):
    """A property's value: read when it is awaited."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, R]]) -> None:
        self._start = start

    def __await__(self) -> Generator[Any, Any, R]:
        return self._start().__await__()


def _calls(
    pool: Pool, method: Callable[Concatenate[S_co, P], R], then: Callable[[R], object] | None = None
) -> Callable[Concatenate[_Twin[S_co], P], Coroutine[Any, Any, R]]:
    @functools.wraps(method)
    async def call(self: _Twin[S_co], /, *args: P.args, **kwargs: P.kwargs) -> R:
        def work() -> R:
            result = method(self._sync, *args, **kwargs)
            if then is not None:
                then(result)
            return result

        return await self._threads.run(pool, work)

    _show(call, method)
    return call


def _reads(
    method: Callable[Concatenate[S_co, P], R], *, then: Callable[[R], object] | None = None
) -> Callable[Concatenate[_Twin[S_co], P], Coroutine[Any, Any, R]]:
    """Return the twin of a method that waits for no writer; ``then`` works on the result before the loop gets it."""
    return _calls("read", method, then)


def _writes(
    method: Callable[Concatenate[S_co, P], R],
) -> Callable[Concatenate[_Twin[S_co], P], Coroutine[Any, Any, R]]:
    """Return the twin of a method that may wait for its turn to write."""
    return _calls("write", method)


def _searches(
    method: Callable[Concatenate[S_co, P], R],
) -> Callable[Concatenate[_Twin[S_co], P], Coroutine[Any, Any, R]]:
    """Return the twin of a method that may wait for an embedder, and for no writer."""
    return _calls("search", method)


def _embeds(
    method: Callable[Concatenate[S_co, P], R],
) -> Callable[Concatenate[_Twin[S_co], P], Coroutine[Any, Any, R]]:
    """Return the twin of a method that may wait for an embedder, and for its turn to write."""
    return _calls("embed", method)


def _stops(
    method: Callable[Concatenate[S_co, P], R],
) -> Callable[Concatenate[_Twin[S_co], P], Coroutine[Any, Any, R]]:
    """Return the twin of a long method that tells its progress: when its task is cancelled, it ends the next time that it does."""

    @functools.wraps(method)
    async def call(self: _Twin[S_co], /, *args: P.args, **kwargs: P.kwargs) -> R:
        is_abandoned = Event()
        given: Any = kwargs.get("on_progress")

        def on_progress(progress: Progress) -> None:
            if is_abandoned.is_set():
                raise _AbandonedError
            if given is not None:
                given(progress)

        told: Any = kwargs if given is not None and not callable(given) else {**kwargs, "on_progress": on_progress}
        try:
            return await self._threads.run("embed", lambda: method(self._sync, *args, **told))
        except asyncio.CancelledError:
            is_abandoned.set()
            raise

    _show(call, method)
    return call


class _AbandonedError(Exception):
    """Nobody waits for a call any more."""


def _iterates(
    method: Callable[Concatenate[S_co, P], Iterator[R]], *, items: Any, at_once: int = _ROWS_AT_ONCE
) -> Callable[Concatenate[_Twin[S_co], P], AsyncIterator[R]]:
    """Return the twin of a method that gives an iterator; it begins when the first item is asked for."""

    @functools.wraps(method)
    def call(self: _Twin[S_co], /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        return _Items(self._threads, lambda: method(self._sync, *args, **kwargs), at_once)

    _show(call, method, returns=AsyncIterator[items])
    return call


def _show(twin: Any, method: Callable[..., object], *, returns: Any = None) -> None:
    """Let help and the reference show the method's signature, and that the twin is asynchronous."""
    shown = inspect.signature(method)
    twin.__signature__ = shown if returns is None else shown.replace(return_annotation=returns)
    del twin.__wrapped__


def _documented(method: Callable[..., object]) -> Callable[[F], F]:
    """Give a twin that needs a body of its own the documentation of its method."""

    def mark(twin: F) -> F:
        twin.__doc__ = method.__doc__
        return twin

    return mark


class _Items(AsyncIterator[R]):
    """An iterator whose items are fetched on a thread, several at once.

    Cancelling the wait for an item loses none: the next call gets it.
    """

    def __init__(self, threads: _Threads, begin: Callable[[], Iterator[R]], at_once: int) -> None:
        self._threads = threads
        self._begin = begin
        self._at_once = at_once
        self._items: Iterator[R] | None = None
        self._ready: deque[R] = deque()
        self._fetching: Future[list[R]] | None = None
        self._turn = asyncio.Lock()
        self._is_over = False

    async def __anext__(self) -> R:
        async with self._turn:
            if not self._ready and not self._is_over:
                if self._fetching is None:
                    self._fetching = self._threads.start("read", self._fetch)
                try:
                    fetched: list[R] = await asyncio.shield(asyncio.wrap_future(self._fetching))
                except Exception:
                    self._fetching, self._is_over = None, True
                    raise
                self._fetching = None
                self._ready.extend(fetched)
                self._is_over = not fetched
            if not self._ready:
                raise StopAsyncIteration
            return self._ready.popleft()

    def _fetch(self) -> list[R]:
        if self._items is None:
            self._items = self._begin()
        return list(islice(self._items, self._at_once))

    async def aclose(self) -> None:
        """End the iteration and let go of its snapshot; nothing is left to wait for."""
        async with self._turn:
            self._is_over = True
            self._ready.clear()
            if self._fetching is not None:
                with contextlib.suppress(Exception):
                    await asyncio.shield(asyncio.wrap_future(self._fetching))
                self._fetching = None
            close = getattr(self._items, "close", None)
            if close is not None:
                await self._threads.run("read", close)


class _Block(AbstractAsyncContextManager[None]):
    """A transaction or snapshot of one task: on a thread of its own, or inside the one that the task has open."""

    def __init__(self, threads: _Threads, core: Core, begin: Callable[[], AbstractContextManager[None]]) -> None:
        self._threads = threads
        self._core = core
        self._begin = begin
        self._block: AbstractContextManager[None] | None = None
        self._scope = contextlib.ExitStack()
        self._outer: _Lane | None = None
        self._lane: _Lane | None = None

    async def __aenter__(self) -> None:
        if self._lane is not None:
            raise ClosedError("a transaction or snapshot is entered once; make another one")
        self._outer = self._threads.lane()
        if self._threads.is_closing and self._outer is None:
            raise ClosedError("the database is closed")
        self._lane = self._outer or _Lane()
        # The engine sets and resets a context variable: both must happen in one context.
        self._context = copy_context()
        entering = self._lane.thread.submit(self._context.run, self._enter)
        try:
            view = await asyncio.wrap_future(entering)
        except asyncio.CancelledError as error:
            # It may still be waiting for its turn, or just have got it.
            self._lane.thread.submit(self._context.run, self._leave, type(error), error, None)
            self._let_go()
            raise
        except BaseException:
            self._let_go()
            raise
        if self._outer is None and view is not None:
            _lanes[view] = self._lane
            self._scope.callback(_lanes.pop, view)
            # For calls of this task, and so that a synchronous one gets an error instead of waiting for its own lock.
            self._scope.enter_context(self._core.entered(view))

    def _enter(self) -> View | None:
        block = self._begin()
        block.__enter__()
        self._block = block
        return self._core.innermost()

    def _leave(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(exc_type, exc, traceback)

    def _let_go(self) -> None:
        if self._outer is None and self._lane is not None:
            self._lane.thread.shutdown(wait=False)  # what it has begun, it ends

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._lane is not None
        leaving = self._lane.thread.submit(self._context.run, self._leave, exc_type, exc, traceback)
        try:
            # Cancelled here, the wait ends and the commit or rollback does not.
            await asyncio.shield(asyncio.wrap_future(leaving))
        finally:
            with contextlib.suppress(ValueError):  # left in another context than entered, by an exit stack for example
                self._scope.close()
            self._let_go()


def _read_data(versions: list[StateVersion]) -> None:
    left = _HISTORY_BYTES
    for version in versions:
        left -= version.size_bytes
        if left < 0:
            return
        with contextlib.suppress(NotFoundError):  # deleted since it was listed
            _ = version.data


def _decode(version: StateVersion | None) -> None:
    if version is not None:
        _ = version.data


def _decode_many(versions: list[StateVersion | None]) -> None:
    for version in versions:
        _decode(version)


class AsyncTable(_Twin[Table]):
    """A table, for tasks. Made by ``await db.table(...)``; see `Table`.

    Iterators begin when their first item is asked for, and have ``aclose()``.
    """

    @property
    def name(self) -> str:
        """The table's name."""
        return self._sync.name

    @property
    def schema(self) -> Awaitable[TableSchema]:
        """The table's current definition."""
        return _Later(lambda: self._threads.run("read", lambda: self._sync.schema))

    get = _reads(Table.get)
    require = _reads(Table.require)
    last_commit = _reads(Table.last_commit)
    get_many = _reads(Table.get_many)
    scan = _iterates(Table.scan, items=Row)
    scan_arrow = _iterates(Table.scan_arrow, items=pa.RecordBatch, at_once=1)
    count = _reads(Table.count)
    search = _reads(Table.search)
    put = _writes(Table.put)
    put_many = _writes(Table.put_many)
    delete = _writes(Table.delete)
    delete_many = _writes(Table.delete_many)
    erase_many = _writes(Table.erase_many)
    add_columns = _writes(Table.add_columns)


class AsyncAgentMemories(_Twin[AgentMemories]):
    """The memories of all agents, for tasks; see `AgentMemories`."""

    def __repr__(self) -> str:
        return "AsyncAgentMemories()"

    @property
    @_documented(AgentMemories.policies)
    def policies(self) -> MemoryPolicies:  # noqa: D102 - documented
        return self._sync.policies

    @policies.setter
    def policies(self, policies: MemoryPolicies) -> None:
        self._sync.policies = policies

    remember = _embeds(AgentMemories.remember)
    remember_many = _embeds(AgentMemories.remember_many)
    get = _reads(AgentMemories.get)
    require = _reads(AgentMemories.require)
    list = _reads(AgentMemories.list)
    history = _reads(AgentMemories.history)
    why = _reads(AgentMemories.why)
    recall = _embeds(AgentMemories.recall)
    recall_many = _embeds(AgentMemories.recall_many)
    context = _embeds(AgentMemories.context)
    embed_pending = _embeds(AgentMemories.embed_pending)
    update = _embeds(AgentMemories.update)
    forget = _writes(AgentMemories.forget)
    restore = _writes(AgentMemories.restore)
    erase = _writes(AgentMemories.erase)
    maintain = _embeds(AgentMemories.maintain)
    upkeep_report = _reads(AgentMemories.upkeep_report)
    export_jsonl = _reads(AgentMemories.export_jsonl)
    import_jsonl = _writes(AgentMemories.import_jsonl)


class AsyncDocuments(_Twin[Documents]):
    """The documents of a database, for tasks; see `Documents`.

    Cancelling ``ingest`` ends it: what was stored until then stays, and the same call goes on there.
    """

    def __repr__(self) -> str:
        return "AsyncDocuments()"

    ingest = _stops(Documents.ingest)
    collections = _reads(Documents.collections)
    list = _reads(Documents.list)
    get = _reads(Documents.get)
    text = _reads(Documents.text)
    delete = _writes(Documents.delete)
    erase = _writes(Documents.erase)
    drop = _writes(Documents.drop)
    search = _searches(Documents.search)
    search_images = _searches(Documents.search_images)
    image = _reads(Documents.image)
    images = _reads(Documents.images)
    context = _searches(Documents.context)
    answer = _embeds(Documents.answer)


class AsyncAgentStates(_Twin[AgentStates]):
    """The states of all agents, for tasks; see `AgentStates`.

    ``load`` and ``load_many`` give versions whose data is decoded already, and so does ``history`` for its newest versions, up
    to 16 MiB in all. What is beyond is read when ``data`` is accessed, in the calling thread: ``load`` it instead.
    """

    def __repr__(self) -> str:
        return "AsyncAgentStates()"

    save = _writes(AgentStates.save)
    save_many = _writes(AgentStates.save_many)
    load = _reads(AgentStates.load, then=_decode)
    load_many = _reads(AgentStates.load_many, then=_decode_many)
    history = _reads(AgentStates.history, then=_read_data)
    diff = _reads(AgentStates.diff)
    restore = _writes(AgentStates.restore)
    branch = _writes(AgentStates.branch)
    tag = _writes(AgentStates.tag)
    untag = _writes(AgentStates.untag)
    tags = _reads(AgentStates.tags)
    delete = _writes(AgentStates.delete)
    erase = _writes(AgentStates.erase)
    agents = _iterates(AgentStates.agents, items=str)
    sessions = _reads(AgentStates.sessions)
    types = _reads(AgentStates.types)
    set_retention = _writes(AgentStates.set_retention)
    retention = _reads(AgentStates.retention)
    apply_retention = _writes(AgentStates.apply_retention)


class AsyncCollection(_Twin[Collection]):
    """A collection, for tasks. Made by ``await db.collection(...)``; see `Collection`.

    Iterators begin when their first item is asked for, and have ``aclose()``.
    """

    @property
    def name(self) -> str:
        """The collection's name."""
        return self._sync.name

    @property
    @_documented(Collection.vectors)
    def vectors(self) -> Awaitable[Mapping[str, VectorSpec]]:  # noqa: D102 - documented
        return _Later(lambda: self._threads.run("read", lambda: self._sync.vectors))

    @property
    @_documented(Collection.promoted)
    def promoted(self) -> Awaitable[Mapping[tuple[str, ...], PromotedType]]:  # noqa: D102 - documented
        return _Later(lambda: self._threads.run("read", lambda: self._sync.promoted))

    @property
    @_documented(Collection.embedder)
    def embedder(self) -> Awaitable[Embedder | None]:  # noqa: D102 - documented
        return _Later(lambda: self._threads.run("embed", lambda: self._sync.embedder))

    upsert = _embeds(Collection.upsert)
    add = _embeds(Collection.add)
    update = _embeds(Collection.update)
    delete = _writes(Collection.delete)
    erase = _writes(Collection.erase)
    promote = _writes(Collection.promote)
    reembed = _embeds(Collection.reembed)
    get = _reads(Collection.get)
    get_many = _reads(Collection.get_many)
    count = _reads(Collection.count)
    search = _searches(Collection.search)
    search_many = _searches(Collection.search_many)
    max_marginal_relevance = _searches(Collection.max_marginal_relevance)
    explain_search = _searches(Collection.explain_search)
    set_index = _writes(Collection.set_index)
    index_status = _reads(Collection.index_status)
    scan = _iterates(Collection.scan, items=Record)
    iterate = _iterates(Collection.iterate, items=Batch, at_once=1)


class AsyncDatabase(_Twin[Database]):
    """A database, for tasks: no call blocks the event loop. Made by `open_async`; see `Database`.

    A transaction or snapshot belongs to the task that opened it: calls of that task join it, calls of any other task, also of
    a child that inherited its context, get an ``UnavailableError`` at once. So do not wrap calls inside one in ``gather``,
    ``create_task`` or, before Python 3.12, ``wait_for``, which makes a task; ``asyncio.timeout`` does not.

    Cancelling a task abandons its wait. A single call is then done or not done, never half of it; leaving the block of a
    transaction by cancellation rolls it back, and a commit that has begun ends. Callbacks such as ``on_progress`` run on a
    worker thread.

    Attributes:
        states: the Agent State Manager.
        memories: the Memory Manager.
        documents: the RAG Engine.
    """

    states: AsyncAgentStates
    memories: AsyncAgentMemories
    documents: AsyncDocuments

    def __init__(self, threads: _Threads, sync: Database) -> None:
        super().__init__(threads, sync)
        threads.core = sync._core
        self.states = AsyncAgentStates(threads, sync.states)
        self.memories = AsyncAgentMemories(threads, sync.memories)
        self.documents = AsyncDocuments(threads, sync.documents)
        self._closed: Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def path(self) -> Path:
        """The database's directory."""
        return self._sync.path

    @property
    def config(self) -> Config:
        """The configuration of this process's engine."""
        return self._sync.config

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._sync.read_only

    @property
    def in_transaction(self) -> bool:
        """Whether the caller's thread or task has a transaction open, which its calls join."""
        return self._sync.in_transaction

    @property
    def embedder(self) -> Awaitable[Embedder]:
        """The embedder given to `open`, or the installed default, loaded at the first use.

        Raises:
            MissingDependencyError: none is installed; the message names the extra ``local``.
        """
        return _Later(lambda: self._threads.run("read", lambda: self._sync.embedder))

    embedder_for = _reads(Database.embedder_for)

    @_documented(Database.table)
    async def table(self, schema: TableSchema | str) -> AsyncTable:  # noqa: D102 - documented
        pool: Pool = "write" if isinstance(schema, TableSchema) else "read"
        return AsyncTable(self._threads, await self._threads.run(pool, lambda: self._sync.table(schema)))

    tables = _reads(Database.tables)
    drop_table = _writes(Database.drop_table)

    @_documented(Database.collection)
    async def collection(  # noqa: D102 - documented
        self,
        name: str,
        *,
        dimension: int | None = None,
        metric: CollectionMetric | None = None,
        embedder: Embedder | None = None,
        vectors: Mapping[str, VectorSpec] | None = None,
        schema: Mapping[str | Sequence[str], type | PromotedType] | None = None,
    ) -> AsyncCollection:
        def work() -> Collection:
            return self._sync.collection(
                name, dimension=dimension, metric=metric, embedder=embedder, vectors=vectors, schema=schema
            )

        return AsyncCollection(self._threads, await self._threads.run("embed", work))

    collections = _reads(Database.collections)
    drop_collection = _writes(Database.drop_collection)
    transact = _writes(Database.transact)

    @_documented(Database.transaction)
    def transaction(self) -> AbstractAsyncContextManager[None]:  # noqa: D102 - documented
        return _Block(self._threads, self._sync._core, self._sync.transaction)

    @_documented(Database.snapshot)
    def snapshot(self) -> AbstractAsyncContextManager[None]:  # noqa: D102 - documented
        return _Block(self._threads, self._sync._core, self._sync.snapshot)

    flush = _writes(Database.flush)
    optimize = _writes(Database.optimize)
    stats = _reads(Database.stats)
    verify = _reads(Database.verify)
    backup = _reads(Database.backup)
    erasure = _reads(Database.erasure)
    settle_erasures = _writes(Database.settle_erasures)

    @_documented(Database.close)
    async def close(self) -> None:  # noqa: D102 - documented
        self._threads.is_closing = True
        if self._closed is None:
            # Not in a pool: it may be full of calls that wait.
            closer = ThreadPoolExecutor(1, "agentdb-close")
            self._closed = closer.submit(self._close)
            closer.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(self._closed))

    def _close(self) -> None:
        try:
            self._sync.close()
        finally:
            self._threads.end()


class _Opening(Awaitable[AsyncDatabase], AbstractAsyncContextManager[AsyncDatabase]):
    """What `open_async` returns: ``await`` it for a database to be closed later, or use it in ``async with``."""

    def __init__(self, work: Callable[[], Database]) -> None:
        self._work = work
        self._database: AsyncDatabase | None = None

    def __await__(self) -> Generator[Any, Any, AsyncDatabase]:
        return self._open().__await__()

    async def _open(self) -> AsyncDatabase:
        threads = _Threads()
        # Outside the caller's context: a transaction that this task has open, on another handle, must not be in the way.
        opening = threads.start("write", lambda: Context().run(self._work))
        try:
            return AsyncDatabase(threads, await asyncio.wrap_future(opening))
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise

    async def __aenter__(self) -> AsyncDatabase:
        self._database = await self._open()
        return self._database

    async def __aexit__(self, *exc: object) -> None:
        assert self._database is not None
        await self._database.close()


def _close_unwanted(opened: Future[Database]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()


def open_async(
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    create: bool = True,
    config: Config | None = None,
    embedder: Embedder | None = None,
) -> _Opening:
    """Open the database in a directory; it is created where there is none. ``await`` it, or use it in ``async with``.

    Any number of handles, threads and processes may have one path open at once; start processes with the
    ``spawn`` or ``forkserver`` method.

    Args:
        path: a directory on a local disk.
        read_only: refuse writes, and write nothing, not even a lock file.
        create: False: raise where there is no database.
        config: how it behaves in this process; None: the defaults, or those of the handle that is open already.
        embedder: turns text into vectors; None: the installed default, loaded when text is first embedded.

    Raises:
        NotFoundError: there is no database, and none may be created.
        FormatError: the path holds something else, or a newer format; nothing was written.
        AccessDeniedError: the directory cannot be written; ``read_only=True`` may help.
        UnavailableError: a network file system.
    """
    return _Opening(lambda: open(path, read_only=read_only, create=create, config=config, embedder=embedder))
