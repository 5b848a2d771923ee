"""``AgentDBStore``: LangGraph's long-term memory of items in namespaces, found by key, filter and meaning."""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, Self

import numpy as np
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    validate_op_namespace,
)

from agentdb import AccessDeniedError, AsyncDatabase, ClosedError, Closing, Connection, Database, InvalidInputError
from langgraph_agentdb.store_index import StoreIndex, StoreIndexConfig, Vectors
from langgraph_agentdb.store_items import Items, NewItem, SearchRequest, namespace_of, text_of
from langgraph_agentdb.store_resident import ItemKey, copied

__all__ = ["AgentDBStore"]

_LOGGER = logging.getLogger(__name__)
_SWEEP_MINUTES = 5.0
_AT_ONCE = 32
"""More operations than this are prepared on a thread of their own, so that the event loop goes on."""
_ENDLESS = 1 << 60
"""Nobody has more items: what is asked beyond it would be no number of a slice."""
_OPERATIONS = (GetOp, SearchOp, ListNamespacesOp, PutOp)


@dataclass(slots=True)
class _Plan:
    """The operations of a batch, checked."""

    gets: dict[int, tuple[GetOp, ItemKey]] = attribute(default_factory=dict)
    searches: dict[int, SearchOp] = attribute(default_factory=dict)
    lists: dict[int, ListNamespacesOp] = attribute(default_factory=dict)
    puts: dict[ItemKey, PutOp] = attribute(default_factory=dict)
    values: dict[ItemKey, dict[str, Any] | None] = attribute(default_factory=dict)
    texts: dict[ItemKey, list[str]] = attribute(default_factory=dict)
    """What is embedded of each item."""
    queries: list[str] = attribute(default_factory=list)
    size: int = 0

    @property
    def is_reading(self) -> int:
        """How many operations read."""
        return len(self.gets) + len(self.searches) + len(self.lists)

    @property
    def all_texts(self) -> list[str]:
        """Each text once."""
        return list(dict.fromkeys(text for texts in self.texts.values() for text in texts))


class AgentDBStore(Closing, BaseStore):
    """Items in namespaces, durable and shared by every thread, event loop and process that opens the database.

    ``graph.compile(store=AgentDBStore(path))``. The reads of a batch see the state before its puts, all in one state of the
    database; its puts are one transaction, in which the last put of a key counts. Inside ``db.transaction()`` of an open
    database given here a batch joins that one. Async methods run on threads of their own and never block the event loop.

    A search without a query returns the newest items first. One with a query ranks the items that have vectors by the best of
    theirs; without ``index`` the query is ignored. See ``store_filters`` for what filters mean.

    Args:
        db_or_path: an open database, which stays the caller's to close, or the path of one; it is opened, and created, at the
            first call.
        index: what is embedded, and by what (see `StoreIndexConfig`); None: nothing. ``index["mode"] = "hybrid"`` ranks by
            meaning and by words together. Vectors of two models do not compare: a store that one of AgentDB's embedders
            filled, which have names, takes no other, and one that was filled otherwise none of them. Functions and
            LangChain's embeddings have no names: not to exchange one for another is left to you.
        ttl: ``default_ttl`` in minutes, ``refresh_on_read`` (default True), ``omit_expired`` (default False: what has expired
            is seen until it is swept), ``sweep_interval_minutes`` (default 5). The default of LangGraph's methods; an
            operation may say otherwise. A read that prolongs a life waits for its turn to write, and is answered though none
            comes in time.

    Raises:
        InvalidInputError: an argument cannot be accepted; the message names it.
    """

    supports_ttl = True

    def __init__(
        self,
        db_or_path: Database | AsyncDatabase | str | os.PathLike[str],
        *,
        index: StoreIndexConfig | Mapping[str, Any] | None = None,
        ttl: TTLConfig | None = None,
    ) -> None:
        embedded = None if index is None else StoreIndex(index)
        config = _ttl_config(ttl)
        omits_expired = bool(config and config.get("omit_expired"))
        # First, because pickling takes attributes in their order, and the connection says why it cannot be.
        self._connection: Connection[Items] = Connection(
            db_or_path, lambda db: Items(db, embedded, omits_expired=omits_expired)
        )
        self._index = embedded
        self.ttl_config = config
        self._sweeping = threading.Lock()
        self._sweeper: tuple[threading.Thread, threading.Event, Future[None]] | None = None
        self._connection.on_close = self._end_sweeper

    def __deepcopy__(self, memo: object) -> Self:
        """Return a copy that goes on in the same database by the same embedder, as a shallow one does."""
        return copy(self)

    # --- batches ------------------------------------------------------------------------------------------------------

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute operations and return their results in order; puts are durable when this returns.

        Raises:
            InvalidNamespaceError: a label is empty, no text, or holds a point; nothing is read or written.
            InvalidInputError: an argument of an operation cannot be accepted; nothing is read or written.
        """
        plan = self._planned(list(ops))
        queries = texts = None
        if self._index is not None and plan.queries:
            queries = self._index.queries(plan.queries)
        if self._index is not None and plan.texts:
            texts = self._index.documents(plan.all_texts)
        results, due = self._execute(plan, queries, texts)
        if due:
            self._connection().refresh(due)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Do what `batch` does, without blocking the event loop."""
        self._connection.check()
        given = list(ops)
        plan = (
            self._planned(given)
            if len(given) <= _AT_ONCE
            else await self._connection.on_thread(lambda: self._planned(given))
        )
        queries = texts = None
        if self._index is not None and plan.queries:
            queries = await self._index.aqueries(plan.queries, self._connection.on_thread)
        if self._index is not None and plan.texts:
            texts = await self._index.adocuments(plan.all_texts, self._connection.on_thread)
        pool: Any = "write" if plan.puts else "read"
        results, due = await self._connection.run(pool, lambda: self._execute(plan, queries, texts))
        if due:
            # Among the writers: reads that waited for a turn to write would hold up all others.
            await self._connection.run("write", lambda: self._connection().refresh(due))
        return results

    def _planned(self, ops: Sequence[Op]) -> _Plan:
        plan = _Plan(size=len(ops))
        for number, op in enumerate(ops):
            if not isinstance(op, _OPERATIONS):
                raise InvalidInputError(f"ops[{number}] must be a GetOp, SearchOp, ListNamespacesOp or PutOp")
            _check_namespace(op)
            match op:
                case GetOp():
                    plan.gets[number] = op, _item_key(op.namespace, op.key)
                case SearchOp():
                    plan.searches[number] = _checked_search(op)
                case ListNamespacesOp():
                    plan.lists[number] = _checked_list(op)
                case PutOp():
                    if not op.namespace:
                        raise InvalidNamespaceError("the namespace of a put must not be empty")
                    at = _item_key(op.namespace, op.key)
                    plan.puts.pop(at, None)  # the last one counts
                    plan.puts[at] = op
        for at, op in plan.puts.items():
            plan.values[at] = _checked_value(op)
            _checked_ttl(op.ttl, "ttl")
            value = plan.values[at]
            if self._index is not None and value is not None:
                try:
                    plan.texts[at] = self._index.texts(value, op.index)
                except (TypeError, ValueError, RecursionError) as error:
                    if isinstance(error, InvalidInputError):
                        raise
                    raise InvalidInputError("the value of a put must be JSON") from None
        if self._index is not None:
            plan.queries = list(dict.fromkeys(op.query for op in plan.searches.values() if op.query))
        return plan

    def _execute(
        self, plan: _Plan, queries: Vectors | None, texts: Vectors | None
    ) -> tuple[list[Result], list[ItemKey]]:
        """Return the results, and the items whose lives are prolonged by having been read."""
        items = self._connection() if plan.puts else self._connection.found()
        if items is None:  # a read-only database in which nobody has stored anything yet
            return [None if number in plan.gets else [] for number in range(plan.size)], []
        vectors = {} if queries is None else dict(zip(plan.queries, queries, strict=True))
        results: list[Result] = [None] * plan.size
        read: list[ItemKey] = []
        if plan.is_reading > 1 and not items.db.in_transaction:
            with items.view():
                self._read(items, plan, vectors, results, read)
        elif plan.is_reading:
            self._read(items, plan, vectors, results, read)
        if plan.puts:
            items.write(self._new_items(plan, texts))
        return results, items.due(read) if read else []

    def _read(
        self, items: Items, plan: _Plan, vectors: Mapping[str, Any], results: list[Result], read: list[ItemKey]
    ) -> None:
        """Put results where they belong, and into ``read`` the items whose lives are prolonged by it."""
        for number, (get, at) in plan.gets.items():
            found = items.get(at)
            if found is not None:
                results[number] = Item(
                    value=found.value(),
                    key=found.at.key,
                    namespace=namespace_of(found.at.namespace),
                    created_at=found.created_at,
                    updated_at=found.updated_at,
                )
                if get.refresh_ttl and found.ttl is not None:
                    read.append(at)
        for number, search in plan.searches.items():
            hits = items.search(self._request(search, vectors))
            results[number] = [
                SearchItem(
                    namespace_of(one.at.namespace),
                    one.at.key,
                    one.value(),
                    one.created_at,
                    one.updated_at,
                    score,
                )
                for one, score in hits
            ]
            if search.refresh_ttl:
                read.extend(one.at for one, _ in hits if one.ttl is not None)
        if plan.lists:
            namespaces = sorted(map(namespace_of, items.list_namespaces()))
            for number, listing in plan.lists.items():
                results[number] = _listed(namespaces, listing)

    def _request(self, op: SearchOp, vectors: Mapping[str, Any]) -> SearchRequest:
        vector = vectors.get(op.query) if op.query and self._index is not None else None
        return SearchRequest(
            prefix=text_of(op.namespace_prefix),
            filter=op.filter,
            limit=min(op.limit, _ENDLESS),
            offset=min(op.offset, _ENDLESS),
            query=op.query,
            vector=vector,
            is_hybrid=self._index is not None and self._index.mode == "hybrid",
        )

    @staticmethod
    def _new_items(plan: _Plan, vectors: Vectors | None) -> dict[ItemKey, NewItem]:
        """Return what is put; a text whose vector is zero has no direction, and is not found by meaning."""
        known = {} if vectors is None else dict(zip(plan.all_texts, vectors, strict=True))
        made = {}
        for at, op in plan.puts.items():
            texts = [text for text in plan.texts.get(at, ()) if known[text].any()]
            matrix = np.stack([known[text] for text in texts]) if texts else None
            made[at] = NewItem(value=plan.values[at], ttl=op.ttl, texts=texts, vectors=matrix)
        return made

    # --- time to live -------------------------------------------------------------------------------------------------

    def sweep_ttl(self) -> int:
        """Delete the items whose time is up; return how many there were."""
        return self._connection().sweep()

    async def asweep_ttl(self) -> int:
        """Do what `sweep_ttl` does, without blocking the event loop."""
        return await self._connection.run("write", self.sweep_ttl)

    def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> Future[None]:
        """Sweep again and again in the background until `stop_ttl_sweeper` or `close`; cancelling the future ends it, too.

        Args:
            sweep_interval_minutes: more than 0; None: that of ``ttl``, or 5.

        Returns:
            A future that is done when the sweeper has ended; that of the running one, if there is one; one that is done
            already if the store was made without ``ttl``.

        Raises:
            InvalidInputError: the interval is no number of minutes above 0.
        """
        interval = _checked_interval(sweep_interval_minutes, "sweep_interval_minutes")
        done: Future[None] = Future()
        if self.ttl_config is None:
            done.set_result(None)
            return done
        minutes = interval or self.ttl_config.get("sweep_interval_minutes") or _SWEEP_MINUTES
        self._connection.check()
        with self._sweeping:
            if self._sweeper is not None and self._sweeper[0].is_alive():
                return self._sweeper[2]
            stop = threading.Event()
            done.add_done_callback(lambda _: stop.set())
            arguments = (weakref.ref(self), stop, done, 60.0 * minutes)
            thread = threading.Thread(target=_sweep, args=arguments, daemon=True, name="agentdb-store-sweeper")
            self._sweeper = thread, stop, done
            thread.start()
        return done

    def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """Stop the sweeper; whether it has ended, or there was none.

        Args:
            timeout: how many seconds to wait for it at most; None: as long as it takes.
        """
        with self._sweeping:
            sweeper = self._sweeper
        if sweeper is None or sweeper[0] is threading.current_thread():
            return True
        sweeper[1].set()
        sweeper[0].join(timeout)
        return not sweeper[0].is_alive()

    def _end_sweeper(self) -> None:
        self.stop_ttl_sweeper()

    async def astop_ttl_sweeper(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as the sync one
        """Do what `stop_ttl_sweeper` does, without blocking the event loop."""
        return await self._connection.run("write", lambda: self.stop_ttl_sweeper(timeout))


def _sweep(store: weakref.ref[AgentDBStore], stop: threading.Event, done: Future[None], interval_s: float) -> None:
    """Sweep a store until it is told to stop, or nobody has the store any more."""
    while not stop.wait(interval_s):
        here = store()
        if here is None:
            break
        try:
            here.sweep_ttl()
        except (ClosedError, AccessDeniedError):
            break
        except Exception:
            _LOGGER.exception("sweeping expired items failed; it is tried again")
        del here
    with suppress(InvalidStateError):  # it was cancelled
        done.set_result(None)


# --- operations -------------------------------------------------------------------------------------------------------


def _check_namespace(op: Op) -> None:
    match op:
        case GetOp() | PutOp():
            parts: list[Any] = [op.namespace]
        case SearchOp():
            parts = [op.namespace_prefix]
        case _:
            parts = [] if op.match_conditions is None else [one.path for one in op.match_conditions]
    for one in parts:
        if not isinstance(one, tuple | list):
            raise InvalidNamespaceError(f"a namespace must be a tuple of str, not {type(one).__name__}")
    validate_op_namespace(op)


def _item_key(namespace: Iterable[str], key: Any) -> ItemKey:
    if not isinstance(key, str):
        raise InvalidInputError(f"the key of an item must be a str, not {type(key).__name__}")
    return ItemKey(text_of(namespace), key)


def _checked_count(value: Any, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInputError(f"{name} must be an int of 0 or more, not {value!r:.40}")


def _checked_search(op: SearchOp) -> SearchOp:
    _checked_count(op.limit, "limit")
    _checked_count(op.offset, "offset")
    query: object = op.query
    if query is not None and not isinstance(query, str):
        raise InvalidInputError(f"query must be a str or None, not {type(query).__name__}")
    return op


def _checked_list(op: ListNamespacesOp) -> ListNamespacesOp:
    _checked_count(op.limit, "limit")
    _checked_count(op.offset, "offset")
    if op.max_depth is not None:
        _checked_count(op.max_depth, "max_depth")
    for one in op.match_conditions or ():
        if one.match_type not in ("prefix", "suffix"):
            raise InvalidInputError(f"match_type must be 'prefix' or 'suffix', not {one.match_type!r:.40}")
    return op


def _checked_value(op: PutOp) -> dict[str, Any] | None:
    """Return a copy of the value: the caller's may change before it is stored, and after."""
    value: object = op.value
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"the value of a put must be a dict or None, not {type(value).__name__}")
    index: object = op.index
    if index is not None and index is not False and not isinstance(index, list | tuple):
        raise InvalidInputError(f"index must be False, a list of paths or None, not {type(index).__name__}")
    try:
        own: dict[str, Any] = copied(value)
    except RecursionError:
        raise InvalidInputError("the value of a put is nested too deep") from None
    return own


def _checked_ttl(value: Any, name: str) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise InvalidInputError(f"{name} must be a number of minutes, 0 or more, or None, not {value!r:.40}")
    return float(value)


def _checked_interval(value: Any, name: str) -> float | None:
    minutes = _checked_ttl(value, name)
    if minutes == 0:
        raise InvalidInputError(f"{name} must be more than 0: there is no sweeping without a pause")
    return minutes


def _ttl_config(given: TTLConfig | None) -> TTLConfig | None:
    config: object = given
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise InvalidInputError(f"ttl must be a dict or None, not {type(config).__name__}")
    allowed = ("refresh_on_read", "omit_expired", "default_ttl", "sweep_interval_minutes")
    unknown = set(config) - set(allowed)
    if unknown:
        raise InvalidInputError(
            f"ttl: unknown key {', '.join(map(repr, sorted(unknown, key=str)))}; allowed are {', '.join(allowed)}"
        )
    for name in ("refresh_on_read", "omit_expired"):
        if not isinstance(config.get(name, False), bool):
            raise InvalidInputError(f"ttl: {name} must be a bool, not {type(config[name]).__name__}")
    _checked_ttl(config.get("default_ttl"), "ttl: default_ttl")
    _checked_interval(config.get("sweep_interval_minutes"), "ttl: sweep_interval_minutes")
    made: TTLConfig = {**config}  # type: ignore[typeddict-item]
    return made


def _listed(namespaces: Sequence[tuple[str, ...]], op: ListNamespacesOp) -> list[tuple[str, ...]]:
    conditions = op.match_conditions or ()
    found = [one for one in namespaces if all(_matches(one, condition) for condition in conditions)]
    if op.max_depth is not None:
        found = sorted({one[: op.max_depth] for one in found})
    return found[op.offset : op.offset + op.limit]


def _matches(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    """Whether a namespace begins, or ends, with a path in which ``*`` stands for any one label."""
    path = tuple(condition.path)
    if len(path) > len(namespace):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for label, wanted in zip(part, path, strict=True))
