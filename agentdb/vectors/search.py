"""Searching a collection: by vector, by text, or by both; exact wherever that is fast enough.

A search is a pipeline over a batch of queries: the queries are resolved to vectors and texts, a plan says where each signal's
candidates come from (`agentdb.vectors.sources`), each signal finds its own, what a signal does not know of the others'
candidates is computed, the signals are fused; then grouping, reranking and paging, and the payload of what is left.

Where candidates come from, in this order (docs/decisions/012):

1. Inside a transaction, or in a snapshot that others have written past: the table itself, exactly.
2. The filter's scope, or the whole collection, if its vectors take at most `SCAN_BYTES`: a segment in memory, exactly.
3. An index, unless ``exact=True``: Lance's index over the cold rows, and the hot rows in memory, exactly.
4. A larger segment, if it fits ``Config.resident_bytes``: exactly.
5. Lance's flat scan of the cold rows, and the hot rows in memory: exactly.

The *scope* is one equality among the conditions that must all hold: on a promoted column, or else the first on a metadata key.
Texts are ranked by the statistics of the scope's rows, of the whole collection without one.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt

from agentdb.embedding import Embedder, TokenEmbedder, embed_texts
from agentdb.errors import InvalidInputError, StorageError
from agentdb.filters import Filter, encode_json
from agentdb.kernels.reference import distances
from agentdb.storage.engine import Engine
from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table
from agentdb.types import Hit, Metric, Row
from agentdb.vectors.blocks import cuda_device
from agentdb.vectors.definition import Definition, VectorSpec
from agentdb.vectors.fusion import Signal, fuse, mmr
from agentdb.vectors.indexes import IndexSpec
from agentdb.vectors.query import (
    Asked,
    Mode,
    Query,
    Request,
    SearchOptions,
    asked_of,
    checked_int,
    checked_number,
    request_of,
    tokens_of,
    vector_of,
)
from agentdb.vectors.resident import Frozen, Part, ResidentCache, VectorColumn
from agentdb.vectors.sources import (
    Found,
    IndexedTexts,
    IndexedVectors,
    ResidentSource,
    RowCache,
    RowSource,
    TableSource,
    TextSource,
    VectorSource,
)
from agentdb.vectors.store import DefinitionStore

__all__ = ["Explanation", "Query", "Searcher", "SignalPlan"]

Floats = npt.NDArray[np.float64]

SCAN_BYTES = 64 << 20
"""Vectors that are compared one by one although there is an index: it takes a few milliseconds and is exact."""
_CANDIDATES = 100
"""What each of several signals contributes first. If more rows are asked for than that brings, four times as many, and so on."""
_LATE_CANDIDATES = 300
"""The same where tokens rank the candidates."""
_ATTEMPTS = 8
"""How often a search begins anew because the definition, or a segment, has moved past its snapshot."""
_PAYLOAD_SHARE = 8
"""Texts, metadata and tokens of recent hits take one part in so many of ``Config.resident_bytes`` at most."""
_TOKEN_ROWS = 512
"""Rows whose tokens are compared in one product."""


_row_caches: weakref.WeakKeyDictionary[ResidentCache, RowCache] = weakref.WeakKeyDictionary()
"""One for all collections of a database."""


@dataclass(frozen=True, slots=True)
class SignalPlan:
    """Where one signal's candidates came from, and why."""

    signal: Literal["vector", "text"]
    path: Literal["table", "resident", "index", "scan"]
    is_exact: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a search did. ``str()`` makes it readable.

    Attributes:
        mode: vector, text or hybrid.
        signals: the plan of each signal.
        scope: the condition whose rows were searched by themselves; None: all rows.
        filter: the condition as the table sees it.
        candidates: rows that were ranked before paging.
        hits: rows that were returned.
        elapsed_ms: how long each step took, in order.
    """

    mode: Mode
    signals: tuple[SignalPlan, ...]
    scope: Filter | None
    filter: Filter | None
    candidates: int
    hits: int
    elapsed_ms: Mapping[str, float]

    def __str__(self) -> str:
        lines = [f"{self.mode} search: {self.hits} hits of {self.candidates} candidates"]
        lines += [
            f"  {one.signal}: {one.path} ({'exact' if one.is_exact else 'approximate'}), because {one.reason}"
            for one in self.signals
        ]
        if self.scope is not None:
            lines.append(f"  scope: {self.scope}")
        if self.filter is not None and self.filter != self.scope:
            lines.append(f"  filter: {self.filter}")
        lines.append("  " + ", ".join(f"{step} {took:.2f} ms" for step, took in self.elapsed_ms.items()))
        return "\n".join(lines)


@dataclass(slots=True)
class _Ranked:
    """Candidates of one query, best first."""

    keys: list[str]
    scores: Floats
    signals: dict[str, Floats]
    is_all: bool
    """Whether no other row can be a candidate."""

    def take(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> _Ranked:
        at = np.asarray(positions, np.int64)
        signals = {name: values[at] for name, values in self.signals.items()}
        return _Ranked([self.keys[i] for i in at], self.scores[at], signals, self.is_all)

    def continued(self, deeper: _Ranked) -> _Ranked:
        """Return this ranking, and behind it what is new in a deeper one, at most as good as the last of this."""
        if not self.keys:
            return deeper
        shown = set(self.keys)
        new = deeper.take([position for position, key in enumerate(deeper.keys) if key not in shown])
        scores = np.concatenate([self.scores, np.minimum(new.scores, self.scores[-1])])
        signals = {name: np.concatenate([values, new.signals[name]]) for name, values in self.signals.items()}
        return _Ranked(self.keys + new.keys, scores, signals, deeper.is_all)


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where the rows of one search come from."""

    vector: VectorSource | None
    text: TextSource | None
    rows: RowSource
    plans: tuple[SignalPlan, ...]


class _Watch:
    """How long the steps of a search take."""

    def __init__(self) -> None:
        self.elapsed_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.elapsed_ms[step] = self.elapsed_ms.get(step, 0.0) + 1e3 * (now - self._last)
        self._last = now


class Searcher:
    """Searches one collection. Any number of threads may ask at once.

    Args:
        engine: the database.
        table: the collection's table.
        definitions: where the collection's definition is kept.
        cache: the segments in memory, shared by all collections of a database.
        embedder: returns the collection's embedder.
        index: returns the index that a vector has now, by the vector's name; None: it has none.
    """

    def __init__(
        self,
        engine: Engine,
        table: Table,
        definitions: DefinitionStore,
        cache: ResidentCache,
        embedder: Callable[[], Embedder],
        index: Callable[[str], IndexSpec | None],
    ) -> None:
        self._engine = engine
        self._table = table
        self._definitions = definitions
        self._cache = cache
        self._embedder = embedder
        self._index = index
        self._rows = _row_caches.setdefault(cache, RowCache(cache.budget_bytes // _PAYLOAD_SHARE))
        self._flushes = False
        """Whether texts were last searched in Lance, whose index does not know hot rows."""

    @cached_property
    def _schema(self) -> TableSchema:
        """The table's schema as far as it never changes: how keys are encoded. Reading it opens a snapshot."""
        return self._table.schema

    def search(self, query: Any, k: int = 10, **options: Unpack[SearchOptions]) -> list[Hit]:
        """Return the K best hits, best first, fewer where fewer match; see `Collection.search`."""
        return self.search_many([query], k, **options)[0]

    def search_many(self, queries: Any, k: int = 10, **options: Unpack[SearchOptions]) -> list[list[Hit]]:
        """Return what `search` returns for each of many queries, all in one state of the database.

        Args:
            queries: a list of what `search` takes, or a matrix `[Q, D]`.
            k: hits for each.
            options: as in `search`.
        """
        return self._run(queries, k, options, _Watch())[0]

    def explain_search(self, query: Any, k: int = 10, **options: Unpack[SearchOptions]) -> Explanation:
        """Search, and return what was done and why instead of the hits."""
        watch = _Watch()
        hits, plans, request, candidates = self._run([query], k, options, watch)
        return Explanation(
            mode=request.mode,
            signals=plans,
            scope=request.scope,
            filter=request.filter,
            candidates=candidates,
            hits=len(hits[0]),
            elapsed_ms=watch.elapsed_ms,
        )

    def max_marginal_relevance(
        self, query: Any, k: int = 10, fetch_k: int = 50, lambda_mult: float = 0.5, **options: Unpack[SearchOptions]
    ) -> list[Hit]:
        """Return K of the ``fetch_k`` nearest rows, chosen one by one for nearness and for difference from those before.

        Args:
            query: as in `search`.
            k: how many.
            fetch_k: how many to choose from, at least k.
            lambda_mult: 1: nearness alone, which is the cosine's, whatever the metric; 0: difference alone.
            options: as in `search`; the mode is "vector", and neither grouping, reranking nor an offset applies.

        Source: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
        """
        wanted, pool = checked_int("k", k), checked_int("fetch_k", fetch_k)
        if pool < wanted:
            raise InvalidInputError(f"fetch_k must be at least k ({wanted}), not {pool}")
        weight = checked_number("lambda_mult", lambda_mult, 0.0, 1.0)
        refused = {"mode", "group_by", "rerank", "offset", "fusion", "weights"} & set(options)
        if refused:
            raise InvalidInputError(f"max_marginal_relevance takes no {', '.join(sorted(refused))}")

        def diverse(ranked: _Ranked, asked: Asked, request: Request, sources: _Sources) -> _Ranked:
            if request.is_late:
                raise InvalidInputError("max_marginal_relevance needs a vector that is not multi")
            if not ranked.keys:
                return ranked
            assert sources.vector is not None
            assert asked.vector is not None
            vectors = sources.vector.vectors(request.dense_column, ranked.keys)
            # Cosines whatever the metric: nearness and difference must be on one scale.
            nearness = 1.0 - distances(asked.vector[None], vectors, "cosine")[0]
            return ranked.take(mmr(vectors, nearness, wanted, lambda_mult=weight))

        return self._run([query], pool, options, _Watch(), diverse)[0][0]

    # --- the pipeline -------------------------------------------------------------------------------------------------

    def _run(
        self,
        queries: Any,
        k: int,
        options: SearchOptions,
        watch: _Watch,
        choose: Callable[[_Ranked, Asked, Request, _Sources], _Ranked] | None = None,
    ) -> tuple[list[list[Hit]], tuple[SignalPlan, ...], Request, int]:
        """Return the hits of each query, how they were found, and how many candidates there were."""
        queries = _listed(queries)
        request = None
        for attempt in range(_ATTEMPTS):
            # The snapshot will show whether the last one known still stands.
            definition = self._definitions.read() if attempt else self._definitions.last()
            if request is None or definition.revision != request.definition.revision:
                request = request_of(definition, k, options)
                asked = self._resolved(queries, request)
            watch.lap("resolve")
            with self._sources(request, asked, is_last=attempt == _ATTEMPTS - 1) as sources:
                if sources is None:
                    continue
                watch.lap("plan")
                ranked = self._ranked(asked, request, sources)
                candidates = sum(len(one.keys) for one in ranked)
                if choose is not None:
                    ranked = [choose(one, its, request, sources) for one, its in zip(ranked, asked, strict=True)]
                pools = [_cut(one, request) for one in ranked]
                watch.lap("rank")
                rows = self._payload(pools, request, sources)
                watch.lap("fetch")
            # The snapshot is closed: a slow reranker holds up nobody.
            decode = self._schema.decode_key
            hits = [_hits(pool, one, rows, request, decode) for pool, one in zip(pools, asked, strict=True)]
            if request.rerank is not None:
                watch.lap("rerank")
            return hits, sources.plans, request, candidates
        raise StorageError("the collection's definition changed with every attempt to search", retryable=True)

    def _payload(self, pools: Sequence[_Ranked], request: Request, sources: _Sources) -> dict[str, Row]:
        """Return what hits are made of, of every row that may become one, by key."""
        keys = list(dict.fromkeys(key for pool in pools for key in pool.keys))
        if not keys:
            return {}
        columns = list(request.include)
        if request.rerank is not None and "text" not in columns:
            columns.append("text")
        rows = sources.rows.rows(keys, columns) if columns else ({} for _ in keys)
        return dict(zip(keys, rows, strict=True))

    # --- candidates ---------------------------------------------------------------------------------------------------

    def _ranked(self, asked: Sequence[Asked], request: Request, sources: _Sources) -> list[_Ranked]:
        ranked = self._candidates(asked, request, sources, request.pool)
        if request.group is None:
            return ranked
        return [self._grouped(one, its, request, sources) for one, its in zip(ranked, asked, strict=True)]

    def _candidates(self, asked: Sequence[Asked], request: Request, sources: _Sources, wanted: int) -> list[_Ranked]:
        """Return the candidates of each query, best first: at least ``wanted``, if there are so many."""
        if request.mode == "vector" and not request.is_late:
            alone = [one for one in _near(asked, request, sources, wanted) if one is not None]
            return [_single("vector", one, request.scores(one.values), wanted) for one in alone]
        if request.mode == "text":
            assert sources.text is not None
            found = [sources.text.matching(one.text or "", wanted) for one in asked]
            return [_single("text", one, one.values, wanted) for one in found]
        if request.is_late and request.is_exact:
            return [self._every_token(one, request, sources) for one in asked]
        # A ranking that goes deeper never moves what a less deep one has shown, though fused scores depend on the candidates:
        # so pages are cut from one and the same ranking, whatever their size and wherever they begin.
        depth = _LATE_CANDIDATES if request.is_late else _CANDIDATES
        ranked = self._at_depth(asked, request, sources, depth)
        while short := [i for i, one in enumerate(ranked) if len(one.keys) < wanted and not one.is_all]:
            depth *= 4
            deeper = self._at_depth([asked[i] for i in short], request, sources, depth)
            for i, one in zip(short, deeper, strict=True):
                ranked[i] = ranked[i].continued(one)
        return ranked

    def _at_depth(self, asked: Sequence[Asked], request: Request, sources: _Sources, depth: int) -> list[_Ranked]:
        """Return what is best by all signals of the ``depth`` best rows of each."""
        near = _near(asked, request, sources, depth)
        return [self._several(one, its, request, sources, depth) for one, its in zip(asked, near, strict=True)]

    def _several(self, asked: Asked, near: Found | None, request: Request, sources: _Sources, depth: int) -> _Ranked:
        """Rank what any signal found by all signals."""
        texts = (
            sources.text.matching(asked.text, depth) if sources.text is not None and asked.text is not None else None
        )
        if near is None and texts is None:
            return self._every_token(asked, request, sources)
        found = [one for one in (near, texts) if one is not None]
        # In the order of keys, so that ties are broken by them.
        keys = sorted({key for one in found for key in one.keys})
        signals = {}
        if request.is_late:
            signals["vector"] = _late_scores(asked, self._tokens(keys, request, sources), request.spec)
        elif near is not None:
            assert sources.vector is not None
            source, vector = sources.vector, asked.vector
            assert vector is not None
            measured = _completed(
                near, keys, lambda rest: source.distances(request.dense_column, vector, rest, request.metric)
            )
            signals["vector"] = request.scores(measured)
        if request.mode == "hybrid" and texts is not None:
            assert sources.text is not None
            by_text, text = sources.text, asked.text or ""
            signals["text"] = _completed(texts, keys, lambda rest: by_text.text_scores(text, rest))
        return _fused(keys, signals, request, is_all=all(len(one.keys) < depth for one in found))

    def _every_token(self, asked: Asked, request: Request, sources: _Sources) -> _Ranked:
        """Rank every row by its tokens."""
        encode = self._schema.encode_key
        column = request.definition.vectors[request.vector_name].column
        keys: list[str] = []
        scores: list[Floats] = []
        for batch in self._table.scan_arrow(request.filter, columns=["id", column]):
            keys += map(encode, batch.column("id").to_pylist())
            scores.append(_late_scores(asked, batch.column(column).to_pylist(), request.spec))
        signals = {"vector": np.concatenate(scores) if scores else np.empty(0)}
        if request.mode == "hybrid" and sources.text is not None:
            signals["text"] = sources.text.text_scores(asked.text or "", keys)
        return _fused(keys, signals, request, is_all=True)

    @staticmethod
    def _tokens(keys: Sequence[str], request: Request, sources: _Sources) -> list[bytes | None]:
        column = request.definition.vectors[request.vector_name].column
        return [row[column] for row in sources.rows.rows(keys, [column])]

    def _grouped(self, ranked: _Ranked, asked: Asked, request: Request, sources: _Sources) -> _Ranked:
        """Keep the best candidate of every group, looking further until there are groups enough."""
        assert request.group is not None
        column, *path = request.group
        wanted = request.pool
        while True:
            rows = sources.rows.rows(ranked.keys, [column]) if ranked.keys else []
            firsts: dict[Hashable, int] = {}
            for position, row in enumerate(rows):
                firsts.setdefault(_group_of(row[column], path, position), position)
            if len(firsts) >= request.pool or ranked.is_all:
                return ranked.take(list(firsts.values()))
            wanted *= 4
            ranked = self._candidates([asked], request, sources, wanted)[0]

    # --- queries ------------------------------------------------------------------------------------------------------

    def _resolved(self, queries: Any, request: Request) -> list[Asked]:
        """Return what each query means in vectors and text; the embedder sees all texts at once."""
        asked = asked_of(queries, request)
        if request.is_late:
            self._embed_tokens(asked, request)
        elif request.mode != "text":
            self._embed([one for one in asked if one.vector is None], request, request.vector_name)
        return asked

    def _embed(self, asked: Sequence[Asked], request: Request, vector_name: str) -> None:
        """Give queries that have a text only the vector of that text."""
        if not asked:
            return
        spec = request.definition.vectors[vector_name].spec
        embedder = self._embedder_for(request, vector_name)
        matrix = embed_texts(embedder, [one.text or "" for one in asked], "query")
        if matrix.shape[1] != spec.dimension:
            raise InvalidInputError(
                f"vector {vector_name!r} has {spec.dimension} dimensions, but embedder {embedder.name!r} makes "
                f"{matrix.shape[1]}"
            )
        for one, vector in zip(asked, matrix, strict=True):
            one.vector = vector_of(vector, spec, f"the embedder's vector for {vector_name!r}")

    def _embed_tokens(self, asked: Sequence[Asked], request: Request) -> None:
        """Give queries that lack them tokens, and a vector that finds candidates, if there can be one."""
        dense = None if request.dense is None else request.definition.vectors[request.dense].spec
        bare = [one for one in asked if one.tokens is None]
        if bare:
            embedder = self._embedder_for(request, request.vector_name)
            if not isinstance(embedder, TokenEmbedder):
                raise InvalidInputError(
                    f"embedder {embedder.name!r} makes no vectors of tokens; give Query(tokens=...) for "
                    f"vector {request.vector_name!r}"
                )
            found = embedder.embed_tokens([one.text or "" for one in bare], "query")
            for one, (_, vectors) in zip(bare, found, strict=True):
                one.tokens = tokens_of(vectors, request.spec, "the embedder's vectors of tokens")
            if request.dense is not None and dense is not None and dense.embedded:
                self._embed([one for one in bare if one.vector is None], request, request.dense)
        for one in asked:
            # The mean of its tokens is what most models make a text's vector of.
            if one.vector is None and one.tokens is not None and dense is not None:
                mean = one.tokens.mean(axis=0)
                if dense.dimension == len(mean) and mean.any():
                    one.vector = mean

    def _embedder_for(self, request: Request, vector_name: str) -> Embedder:
        if not request.definition.vectors[vector_name].spec.embedded:
            raise InvalidInputError(
                f"vector {vector_name!r} of collection {request.definition.name} is not made from text: "
                "search it with a vector, or Query(text=..., vector=...)"
            )
        return self._embedder()

    # --- the plan -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _sources(self, request: Request, asked: Sequence[Asked], *, is_last: bool) -> Iterator[_Sources | None]:
        """Hold one state of the database; None if the search must begin anew."""
        core = self._engine._core
        is_callers = core.current() is not None
        may_flush = not is_callers and not is_last
        wants_text = request.mode != "vector" or (request.is_late and any(one.text for one in asked))
        if wants_text and may_flush and self._flushes:
            # So that one index ranks all texts.
            self._table.try_flush()
        with self._engine.snapshot():
            if self._definitions.read().revision != request.definition.revision:
                yield None
                return
            view = core.current()
            assert view is not None
            if view.writable:
                yield self._from_table(request, "a transaction is open")
                return
            sources: _Sources | None = None
            try:
                sources = self._planned(request, wants_text=wants_text, may_flush=may_flush)
            except _BehindError:
                # Another thread has moved a segment on: a newer snapshot can use it.
                if is_callers or is_last:
                    sources = self._from_table(request, "others have written past this snapshot")
            yield sources

    def _from_table(self, request: Request, reason: str) -> _Sources:
        source = TableSource(self._table, request.scope, request.filter)
        plans = [SignalPlan(signal, "table", True, reason) for signal in _signals(request)]
        return _Sources(source, source, source, tuple(plans))

    def _planned(self, request: Request, *, wants_text: bool, may_flush: bool) -> _Sources:
        names = () if request.dense is None else (request.dense,)
        # A device compares everything that it holds in less time than an index takes.
        limit = SCAN_BYTES if cuda_device(self._engine.config.device) is None else None
        small = self._resident(request, names, text=wants_text, limit_bytes=limit)
        if small is not None:
            what = "the scope" if request.scope is not None else "the collection"
            fits = "is held in memory" if limit is None else f"takes at most {limit >> 20} MiB in memory"
            reasons = dict.fromkeys(_signals(request), f"{what} {fits}")
            if limit is None and request.dense is not None:
                # Few vectors stay on the host, and so do those that the device refused.
                reasons["vector"] += f" and searched {small.place(request.dense_column)}"
            plans = [SignalPlan(signal, "resident", True, reason) for signal, reason in reasons.items()]
            return _Sources(small, small, small, tuple(plans))
        spec = None if request.dense is None or request.is_exact else self._index(request.dense)
        large = None if spec is not None else self._resident(request, names, text=wants_text, limit_bytes=None)
        if large is not None:
            why = "exact=True" if request.is_exact else "there is no index"
            reason = f"{why}, and everything fits Config.resident_bytes"
            plans = [SignalPlan(signal, "resident", True, reason) for signal in _signals(request)]
            return _Sources(large, large, large, tuple(plans))
        plans = []
        vector: VectorSource | None = None
        text: TextSource | None = None
        if wants_text:
            text, plan = self._large_texts(request, may_flush=may_flush)
            plans.append(plan)
        if request.dense is not None:
            vector, plan = self._large_vectors(request, request.dense, spec, text)
            plans.insert(0, plan)
        rows = vector or text
        assert rows is not None
        return _Sources(vector, text, rows, tuple(plans))

    def _large_vectors(
        self, request: Request, name: str, spec: IndexSpec | None, text: TextSource | None
    ) -> tuple[VectorSource, SignalPlan]:
        """Return where vectors are searched that do not fit in memory, or have an index that is faster."""
        hot = self._frozen(None, request.definition, (name,), text=False, part="hot")
        assert hot is not None, "hot rows are never refused"
        # One query to Lance brings the payload too, where nothing but this signal decides what is returned.
        is_plain = request.mode == "vector" and not request.is_late and request.group is None and request.rerank is None
        probe = None if spec is None else spec.probe_parameters()
        carried = request.include if is_plain else ()
        wanted = request.wanted if request.mode == "vector" and not request.is_late else None
        source = IndexedVectors(self._table, hot, request.filter, probe, wanted, carried=carried, stored=text)
        if spec is not None:
            is_small = self._cache.budget_bytes < SCAN_BYTES
            limit = "Config.resident_bytes" if is_small else f"{SCAN_BYTES >> 20} MiB in memory"
            reason = f"the rows take more than {limit}, and there is an index {type(spec).__name__}"
            return source, SignalPlan("vector", "index", False, reason)
        reason = "the vectors exceed Config.resident_bytes" + ("" if request.is_exact else ", and there is no index")
        return source, SignalPlan("vector", "scan", True, reason)

    def _large_texts(self, request: Request, *, may_flush: bool) -> tuple[TextSource, SignalPlan]:
        """Return where texts are searched whose vectors are searched elsewhere."""
        held = self._resident(request, (), text=True, limit_bytes=None)
        was_flushed, self._flushes = self._flushes, held is None
        if held is not None:
            return held, SignalPlan("text", "resident", True, "the terms fit Config.resident_bytes")
        info = self._table.index_info("text")
        if info is None or not info.segments:
            source = TableSource(self._table, request.scope, request.filter)
            return source, SignalPlan("text", "table", True, "the terms exceed Config.resident_bytes, without an index")
        if may_flush and not was_flushed:
            raise _BehindError
        hot = self._frozen(None, request.definition, (), text=True, part="hot")
        assert hot is not None, "hot rows are never refused"
        texts = IndexedTexts(self._table, hot, request.filter)
        return texts, SignalPlan("text", "index", False, "the terms exceed Config.resident_bytes")

    def _resident(
        self, request: Request, names: Sequence[str], *, text: bool, limit_bytes: int | None
    ) -> ResidentSource | None:
        """Return the rows of the scope, or all, from memory; None if they would take too much."""
        frozen = self._frozen(request.scope, request.definition, names, text=text, limit_bytes=limit_bytes)
        return None if frozen is None else ResidentSource(self._table, frozen, request.rest, self._rows)

    def _frozen(
        self,
        scope: Filter | None,
        definition: Definition,
        names: Sequence[str],
        *,
        text: bool,
        part: Part = "all",
        limit_bytes: int | None = None,
    ) -> Frozen | None:
        """Return a segment as the current snapshot sees it; None if it would take too much memory.

        Raises:
            _BehindError: it is there in a newer state.
        """
        columns = []
        for name in names:
            spec = definition.vectors[name].spec
            metric: Metric = "l2" if spec.metric == "euclidean" else spec.metric
            columns.append(VectorColumn(definition.vectors[name].column, spec.dimension, metric))
        segment = self._cache.segment(
            self._table, scope=scope, vectors=columns, text=text, part=part, limit_bytes=limit_bytes
        )
        if segment is None:
            return None
        frozen = segment.at_view()
        if frozen is None:
            raise _BehindError
        return frozen


class _BehindError(Exception):
    """A newer snapshot can be searched better: a segment is ahead of this one, or rows can be flushed first."""


def _listed(queries: Any) -> list[Any]:
    is_alone = isinstance(queries, str | bytes | Mapping | Query) or getattr(queries, "ndim", 1) == 0
    if is_alone or not isinstance(queries, Iterable):
        raise InvalidInputError(f"queries must be a list of queries or a matrix, not {type(queries).__name__}")
    return list(queries)


def _signals(request: Request) -> tuple[Literal["vector", "text"], ...]:
    return ("vector", "text") if request.mode == "hybrid" else (request.mode,)


# --- ranking ----------------------------------------------------------------------------------------------------------


def _near(asked: Sequence[Asked], request: Request, sources: _Sources, k: int) -> list[Found | None]:
    """Return what is nearest to each query that has a vector."""
    vectors = [one.vector for one in asked if one.vector is not None]
    if not vectors or sources.vector is None:
        return [None] * len(asked)
    matrix = vectors[0][None] if len(vectors) == 1 else np.stack(vectors)
    found = iter(sources.vector.nearest(request.dense_column, matrix, k, request.metric))
    return [None if one.vector is None else next(found) for one in asked]


def _completed(found: Found, keys: Sequence[str], ask: Callable[[list[str]], Floats]) -> Floats:
    """Return a signal's values for all candidates, asking for those that it did not find itself."""
    known = dict(zip(found.keys, found.values.tolist(), strict=True))
    missing = [key for key in keys if key not in known]
    if missing:
        known.update(zip(missing, ask(missing).tolist(), strict=True))
    return np.array([known[key] for key in keys], np.float64)


def _single(name: str, found: Found, scores: Floats, wanted: int) -> _Ranked:
    return _Ranked(found.keys, scores, {name: scores}, is_all=len(found.keys) < wanted)


def _fused(keys: list[str], signals: dict[str, Floats], request: Request, *, is_all: bool) -> _Ranked:
    if request.mode == "hybrid":
        given = [Signal(name, values, 0.0 if name == "text" else None) for name, values in signals.items()]
        scores = fuse(given, request.weights, request.fusion) if keys else np.empty(0)
        if request.is_explained and keys:
            alone = {f"{one.name}.{request.fusion}": fuse([one], method=request.fusion) for one in given}
            signals = {**signals, **alone}
    else:
        scores = signals["vector"]
    # A row without tokens has no score: it is no hit. The sort is stable, so that ties stay in the order of keys.
    order = np.argsort(-scores, kind="stable")
    return _Ranked(keys, scores, signals, is_all).take(order[~np.isnan(scores[order])])


def _late_scores(asked: Asked, stored: Sequence[bytes | None], spec: VectorSpec) -> Floats:
    """Return `[N]` the MaxSim of stored token matrices; nan where there is none.

    The score sums over the query's tokens the token's weight times its best product with a token of the row; with cosine, all
    tokens are brought to length 1 first. Computed in float32, summed in float64.

    Source: Khattab and Zaharia, "ColBERT", SIGIR 2020.
    """
    assert asked.tokens is not None
    query = _unit(asked.tokens) if spec.metric == "cosine" else asked.tokens
    weights = np.ones(len(query)) if asked.token_weights is None else asked.token_weights.astype(np.float64)
    scores = np.full(len(stored), np.nan)
    for begin in range(0, len(stored), _TOKEN_ROWS):
        part = [one or b"" for one in stored[begin : begin + _TOKEN_ROWS]]
        tokens = np.frombuffer(b"".join(part), np.float16).reshape(-1, spec.dimension).astype(np.float32)
        counts = np.array([len(one) // (2 * spec.dimension) for one in part])
        if not len(tokens):
            continue
        products = tokens @ query.T
        if spec.metric == "cosine":
            norms = np.sqrt(np.vecdot(tokens, tokens))[:, None]
            np.divide(products, norms, out=products, where=norms > 0)
        starts = np.cumsum(counts) - counts
        best = np.maximum.reduceat(products, starts[counts > 0], axis=0)
        scores[begin + np.flatnonzero(counts)] = best.astype(np.float64) @ weights
    return scores


def _unit(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return rows of length 1; a zero row stays zero."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)
    return unit


def _group_of(value: Any, path: Sequence[str], position: int) -> Hashable:
    """Return what tells the groups of rows apart; a row without a value is a group by itself."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return ("alone", position)
    # As filters compare: numbers by their value, of whatever type, and booleans are no numbers.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return ("number", float(value))
    return ("value", encode_json(value))


# --- hits -------------------------------------------------------------------------------------------------------------


def _cut(ranked: _Ranked, request: Request) -> _Ranked:
    """Return the candidates that can still become hits: the page, or what the reranker is to see."""
    if request.rerank is not None:
        return ranked.take(np.arange(min(request.pool, len(ranked.keys))))
    return _page(ranked, request)


def _page(ranked: _Ranked, request: Request) -> _Ranked:
    if request.min_score is None and not request.offset and len(ranked.keys) <= request.k:
        return ranked
    kept = np.arange(len(ranked.keys))
    if request.min_score is not None:
        kept = np.flatnonzero(ranked.scores >= request.min_score)
    return ranked.take(kept[request.offset : request.wanted])


def _hits(
    ranked: _Ranked, asked: Asked, rows: Mapping[str, Row], request: Request, decode: Callable[[str], Any]
) -> list[Hit]:
    if request.rerank is not None and ranked.keys:
        scores = request.rerank(asked.text or "", [rows[key]["text"] or "" for key in ranked.keys])
        order = np.argsort(-scores, kind="stable")
        reranked = _Ranked(ranked.keys, scores, {**ranked.signals, "rerank": scores}, ranked.is_all)
        ranked = _page(reranked.take(order), request)
    has_text, has_metadata = "text" in request.include, "metadata" in request.include
    signals = [(name, values.tolist()) for name, values in ranked.signals.items()]
    numbers = zip(ranked.scores.tolist(), request.distances(ranked.scores).tolist(), strict=True)
    hits = []
    for position, (key, (score, distance)) in enumerate(zip(ranked.keys, numbers, strict=True)):
        row = rows[key]
        hits.append(
            Hit(
                id=decode(key),
                score=score,
                distance=distance,
                text=row["text"] if has_text else None,
                metadata=dict(row["metadata"] or {}) if has_metadata else {},
                # nan says nothing
                signals={name: one for name, values in signals if (one := values[position]) == one},
            )
        )
    return hits
