"""``DeviceIndex``: vectors kept on a device and searched exactly, as one set or in one segment per owner."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError, UnavailableError
from agentdb.kernels.choice import Backend, Choice, explain, require_torch
from agentdb.kernels.primitives import real_tensor
from agentdb.kernels.search import Neighbours, SearchCounts, Searcher
from agentdb.kernels.view import METRICS, PAGE, View
from agentdb.types import Metric

__all__ = ["DeviceIndex", "Neighbours", "SearchCounts"]

_SLAB_ROWS = 1 << 18
_FIRST_ROWS = 1 << 12
_DIRECT_ROWS = 4096
_LARGEST = 1e15
_LARGEST_SCALE = 1e38
_LARGEST_INTEGER = 2**63 - 1
_MAX_K = 1000
_COMPACT_ABOVE = 0.25
_UPLOAD_ROWS = 1 << 17

Ids = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Slab:
    """Tensors of up to ``slab_rows`` rows; a row, once visible, is never overwritten."""

    high: Any
    low: Any
    alpha: Any
    beta: Any
    weight: Any
    bias: Any
    bits: Any
    ids: Any
    attributes: dict[str, Any]


@dataclass(frozen=True)
class _State:
    """What readers see; replaced as a whole by every write."""

    view: View | None
    page_owners: npt.NDArray[np.int64]
    live: npt.NDArray[np.bool_]
    n_live: int
    attributes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @cached_property
    def segments(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], Any]:
        """The owners in order, the first slot of each (and the end), and the page numbers on the device."""
        torch = require_torch()
        order = np.argsort(self.page_owners, kind="stable").astype(np.int64)
        owners, first = np.unique(self.page_owners[order], return_index=True)
        assert self.view is not None
        pages = torch.from_numpy(order).to(self.view.table.device)
        return owners, np.append(first, len(order)).astype(np.int64), order, pages


class DeviceIndex:
    """Exact nearest neighbours on a torch device; every answer is proved complete, or completed until it is.

    Rows are float32 of up to 1e15 in size and kept bit for bit, as two 16-bit planes: a search reads the rounded plane,
    keeps some candidates, scores them in float64 and accepts them only if no row outside can reach the K-th score, by
    a bound on the rounding. Otherwise it widens; `counts` tells how often.

    Searches may run in any number of threads while one writes: each sees the rows as they were when it began.

    Args:
        dimension: D, at least 1.
        metric: ``"cosine"``, ``"dot"``, or ``"l2"`` (scores are negative squared distances).
        device: a torch device.
        attributes: names of int64 columns kept beside the rows, for `where` in a search.
        budget_bytes: of device memory for rows; when a write would pass it, the owners that were searched or written
            longest ago are removed. None: no limit.
        slab_rows: rows of an allocation, a multiple of 128.
        prefer: "torch" leaves Triton aside.

    Raises:
        MissingDependencyError: torch is not installed.
        InvalidInputError: an argument cannot be accepted.
    """

    def __init__(
        self,
        dimension: int,
        *,
        metric: Metric = "cosine",
        device: Any = "cpu",
        attributes: Sequence[str] = (),
        budget_bytes: int | None = None,
        slab_rows: int = _SLAB_ROWS,
        prefer: Backend | None = None,
    ) -> None:
        dimension = _whole(dimension, "dimension", 1)
        slab_rows = _whole(slab_rows, "slab_rows", 128)
        if budget_bytes is not None:
            budget_bytes = _whole(budget_bytes, "budget_bytes", 1)
        if metric not in METRICS:
            raise InvalidInputError(f"metric must be 'cosine', 'l2' or 'dot', not {metric!r}")
        if slab_rows % 128:
            raise InvalidInputError(f"slab_rows must be a multiple of 128, not {slab_rows}")
        self._torch = require_torch()
        self.dimension = dimension
        self.metric = metric
        self.device = self._torch.device(device)
        self._prefer = prefer
        self._slab_rows = slab_rows
        # The matrix unit takes 16 numbers at a time, and blocks of 64 where the row is long enough to pay for them.
        unit = 64 if dimension > 48 else 16
        self._width = -(-dimension // unit) * unit
        self._searcher = Searcher(self.device, dimension, self._width, prefer)
        self._attribute_names = tuple(attributes)
        self._budget_bytes = budget_bytes
        self._lock = threading.RLock()
        self._counts = SearchCounts()
        self._counts_lock = threading.Lock()
        self._clock = itertools.count()
        self._versions = itertools.count()
        self._used: dict[int, int] = {}
        self._is_weighted = False
        self._copy_stream = self._torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._reset()

    def __len__(self) -> int:
        return self._state.n_live

    @property
    def counts(self) -> SearchCounts:
        """What all searches so far needed."""
        return self._counts

    @property
    def bytes(self) -> int:
        """Device memory that the rows take, unused places included."""
        return sum(
            one.numel() * one.element_size()
            for slab in self._slabs
            for one in (
                *(slab.high, slab.low, slab.alpha, slab.beta, slab.weight, slab.bias, slab.bits, slab.ids),
                *slab.attributes.values(),
            )
            if one is not None
        )

    def explain(self) -> dict[str, Choice]:
        """Return which implementation of every operation runs here, and why."""
        return explain(self.device, prefer=self._prefer)

    def put(
        self,
        ids: Any,
        vectors: Any,
        *,
        owners: Any = 0,
        alpha: Any = None,
        beta: Any = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> int:
        """Store rows, replacing those of the same id, and return how many; visible as a whole to later searches.

        Args:
            ids: `[N]` integers of at least 0, each once: numpy or Arrow.
            vectors: `[N, D]` finite: numpy, an Arrow fixed-size list array, or a torch tensor (also of this device).
            owners: one integer, or `[N]`.
            alpha: one factor or `[N]`; a row's score is ``alpha * similarity + beta``.
            beta: one summand or `[N]`.
            attributes: `[N]` integers for every name given to the constructor.

        Raises:
            InvalidInputError: shapes differ, an id repeats, or a value is not finite or too large. Nothing is stored.
            UnavailableError: with these rows their owners alone need more than the budget. Nothing changes.
        """
        new_ids = _ids(ids, "ids")
        count = len(new_ids)
        order = np.argsort(new_ids, kind="stable")
        in_order = new_ids[order]
        if count and (in_order[0] < 0 or bool((in_order[1:] == in_order[:-1]).any())):
            raise InvalidInputError("ids must be at least 0 and differ from each other")
        rows = self._check_rows(vectors, count)
        new_owners = _integers(owners, "owners")
        if np.ndim(owners) and new_owners.shape != (count,):
            raise InvalidInputError(f"owners must be one integer or {count}, not {list(new_owners.shape)}")
        new_owners = np.broadcast_to(new_owners.ravel(), (count,)).copy()
        columns = self._check_attributes(attributes, count)
        factors = None if alpha is None else _numbers(alpha, count, "alpha")
        summands = None if beta is None else _numbers(beta, count, "beta")
        if not count:
            return 0
        with self._lock:
            if factors is not None or summands is not None:
                self._become_weighted()
            dead = self._lookup(new_ids)
            dead = dead[dead >= 0]

            def store(replaced: Ids, *, is_rebuilt: bool) -> None:
                addresses = self._place(new_owners)
                try:
                    self._write(addresses, rows, new_ids, factors, summands, columns)
                    self._live[replaced] = False
                    self._publish(None if is_rebuilt else np.concatenate([addresses, replaced]))
                except BaseException:
                    self._live[addresses], self._live[replaced] = False, True
                    raise
                self._runs.append((in_order, addresses[order]))

            leaving = self._leaving(new_owners, dead)
            if leaving is None:
                store(dead, is_rebuilt=False)
            else:
                with self._undone_on_error():
                    self._live[dead] = False
                    for owner in leaving:
                        self._used.pop(owner)
                    mine = np.isin(self._page_owners[: self._n_pages], leaving)
                    self._live[: len(mine) * PAGE][np.repeat(mine, PAGE)] = False
                    self._rebuild()
                    store(dead[:0], is_rebuilt=True)
            if len(self._runs) > 8:
                self._merge_runs()
            self._touch(new_owners)
            self._compact_if_due()
        return count

    def delete(self, ids: Any) -> int:
        """Remove rows by id and return how many there were."""
        with self._lock:
            addresses = self._lookup(np.unique(_ids(ids, "ids")))
            return self._bury(addresses[addresses >= 0])

    def delete_owner(self, owner: int) -> int:
        """Remove all rows of an owner and return how many there were."""
        with self._lock:
            mine = np.repeat(self._page_owners[: self._n_pages] == owner, PAGE)
            self._tails.pop(owner, None)
            self._used.pop(owner, None)
            return self._bury(np.flatnonzero(mine & self._live[: len(mine)]))

    def set_weights(self, ids: Any, *, alpha: Any, beta: Any) -> int:
        """Give rows new factors and summands and return how many of the ids exist; searches under way keep the old.

        Args:
            ids: `[N]`, each once.
            alpha: one factor or `[N]`.
            beta: one summand or `[N]`.

        Raises:
            InvalidInputError: an id repeats, or a value is not finite. Nothing changes.
        """
        from agentdb.kernels import torch_ops

        wanted = _ids(ids, "ids")
        if len(_distinct(wanted)) != len(wanted):
            raise InvalidInputError("ids must differ from each other")
        factors = _numbers(alpha, len(wanted), "alpha")
        summands = _numbers(beta, len(wanted), "beta")
        with self._lock:
            addresses = self._lookup(wanted)
            at = np.flatnonzero(addresses >= 0)
            if len(at):
                self._become_weighted()
                for slab, inside, mine in self._by_slab(addresses[at]):
                    one = self._slabs[slab]
                    for name in ("alpha", "beta", "weight", "bias"):
                        setattr(one, name, getattr(one, name).clone())
                    rows = torch_ops.join(one.high[inside], one.low[inside])
                    self._scale(one, inside, rows, one.high[inside], factors[at][mine], summands[at][mine])
                self._publish(np.empty(0, np.int64))
        return len(at)

    def get(self, ids: Any) -> npt.NDArray[np.float32]:
        """Return the stored rows `[N, D]`, bit for bit; NaN for an id that is not there."""
        from agentdb.kernels import torch_ops

        with self._lock:
            addresses = self._lookup(_ids(ids, "ids"))
            view = self._state.view
        out = np.full((len(addresses), self.dimension), np.nan, np.float32)
        known = addresses >= 0
        if view is not None and known.any():
            at = self._torch.from_numpy(addresses[known]).to(self.device)
            out[known] = torch_ops.gather(view, at)[:, : self.dimension].cpu().numpy()
        return out

    def compact(self) -> None:
        """Give back the memory of removed rows; searches under way keep the old."""
        with self._lock, self._undone_on_error():
            self._rebuild()
            self._publish()

    def search(
        self,
        queries: Any,
        k: int,
        *,
        among: Any = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> Neighbours:
        """Return the exact K best rows of all owners for each query, best first, ties by lower id.

        Args:
            queries: `[Q, D]` finite: numpy or a tensor.
            k: 1 to 1000.
            among: ids; only these rows count. None: all.
            where: for each attribute named, the least and the largest value that counts.

        Raises:
            InvalidInputError: an argument cannot be accepted.
        """
        given = self._check_queries(queries, k)
        self._check_where(where or {})
        allowed = None
        if among is None:
            state = self._state
        else:
            wanted = np.unique(_ids(among, "among"))
            with self._lock:
                # Addresses are those of one moment: a compaction gives every row another.
                state, allowed = self._state, self._lookup(wanted)
            allowed = allowed[allowed >= 0]
        view = state.view
        if view is None or not len(given):
            return self._nothing(len(given), k)
        if where or (allowed is not None and len(allowed) > _DIRECT_ROWS):
            view = self._restrict(state, view, allowed, where or {})
            allowed = None if not where else allowed
        if allowed is not None and not where:
            return self._counted(self._searcher.rows(view, given, allowed, k))
        replays = self._replays if view is state.view else None
        return self._counted(self._searcher.flat(view, replays, given, k))

    def search_segments(self, queries: Any, owners: Any, k: int) -> Neighbours:
        """Return for each query the exact K best rows of its own owner, best first, ties by lower id.

        Args:
            queries: `[Q, D]` finite: numpy or a tensor.
            owners: `[Q]` integers; an owner without rows finds nothing.
            k: 1 to 1000.

        Raises:
            InvalidInputError: an argument cannot be accepted.
        """
        state = self._state
        given = self._check_queries(queries, k)
        wanted = _integers(owners, "owners")
        if wanted.shape != (len(given),):
            raise InvalidInputError(f"expected {len(given)} owners, got {wanted.shape}")
        view = state.view
        if view is None or not len(given):
            return self._nothing(len(given), k)
        names, first, _, pages = state.segments
        slot = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
        found = names[slot] == wanted
        begin = np.where(found, first[slot], 0)
        n_pages = np.where(found, first[slot + 1] - first[slot], 0)
        if self._budget_bytes is not None:
            self._touch(wanted[found])
        return self._counted(
            self._searcher.segments(view, self._replays, given, wanted, begin, n_pages, pages, k)
        )  # fmt: skip

    def _counted(self, found: Neighbours) -> Neighbours:
        with self._counts_lock:
            self._counts += found.counts
        return found

    def _nothing(self, n_queries: int, k: int) -> Neighbours:
        return Neighbours(
            np.full((n_queries, k), -1, np.int64), np.full((n_queries, k), -np.inf, np.float32), SearchCounts(n_queries)
        )

    def _restrict(self, state: _State, view: View, allowed: Ids | None, where: Mapping[str, tuple[int, int]]) -> View:
        """Return the view with the bits of rows that do not count taken away."""
        torch = self._torch
        from agentdb.kernels import torch_ops

        mask = None
        if allowed is not None:
            mask = np.zeros(view.n_slabs * self._slab_rows, bool)
            mask[allowed] = True
        shifts = torch.arange(32, device=self.device, dtype=torch.int64)
        new_bits = []
        for slab in range(view.n_slabs):
            rows = len(view.bits[slab]) * 32
            keep = torch_ops.live_rows(view.bits[slab], rows)
            for name, (least, largest) in where.items():
                column = state.attributes[name][slab]
                keep = keep & (column >= least) & (column <= largest)
            if mask is not None:
                first = slab * self._slab_rows
                keep = keep & torch.from_numpy(mask[first : first + rows]).to(self.device)
            new_bits.append((keep.view(-1, 32).long() << shifts).sum(dim=1).to(torch.int32))
        return replace(view, bits=tuple(new_bits), table=self._table(view, tuple(new_bits)))

    def _table(self, view: View, bits: tuple[Any, ...]) -> Any:
        kinds = (view.high, view.low, view.alpha, view.beta, bits)
        return self._torch.tensor([[one.data_ptr() for one in kind] for kind in kinds], device=self.device)

    # --- writing; the caller holds the lock

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Take back what the block did to the rows if it fails: it must leave the slabs that there were alone."""
        names = ("_slabs", "_n_pages", "_page_owners", "_ids", "_tails", "_runs", "_limits", "_replays")
        before: dict[str, Any] = {name: getattr(self, name) for name in names}
        before["_live"], before["_used"] = self._live.copy(), self._used.copy()
        try:
            yield
        except BaseException:
            for name, value in before.items():
                setattr(self, name, value)
            raise

    def _rebuild(self) -> None:
        """Copy the live rows to new slabs, close together; searches go on with the old ones until the next `_publish`."""
        old_slabs, old_live = self._slabs, self._live[: self._n_pages * PAGE].copy()
        page_owners, old_ids = self._page_owners[: self._n_pages].copy(), self._ids
        addresses = np.flatnonzero(old_live)
        self._reset(publish=False)
        ids, owners = old_ids[addresses], np.repeat(page_owners, PAGE)[addresses]
        for begin in range(0, len(addresses), _UPLOAD_ROWS):
            part = slice(begin, begin + _UPLOAD_ROWS)
            self._copy(old_slabs, addresses[part], self._place(owners[part]), ids[part])
        self._merge_runs()

    def _reset(self, *, publish: bool = True) -> None:
        torch = self._torch
        self._slabs: list[_Slab] = []
        self._n_pages = 0
        self._page_owners = np.empty(64, np.int64)
        self._ids = np.empty(64 * PAGE, np.int64)
        self._live = np.zeros(64 * PAGE, bool)
        self._tails: dict[int, tuple[int, int]] = {}
        self._runs: list[tuple[Ids, Ids]] = []
        self._limits = torch.zeros(4, dtype=torch.float64, device=self.device)
        self._replays = self._searcher.replays()
        if publish:
            self._state = _State(None, self._page_owners[:0], self._live[:0], 0)

    def _check_rows(self, vectors: Any, count: int, *, peek: bool = True) -> Any:
        """Return `[N, D]` finite float32, a tensor of the device or of the CPU."""
        if hasattr(vectors, "combine_chunks"):
            vectors = vectors.combine_chunks()
        if hasattr(vectors, "null_count"):  # an Arrow array
            if getattr(vectors.type, "list_size", None) != self.dimension:
                raise InvalidInputError(f"vectors must be lists of fixed size {self.dimension}, not {vectors.type}")
            if vectors.null_count:
                raise InvalidInputError("vectors must not be null")
            flat = vectors.flatten().to_numpy(zero_copy_only=False)
            vectors = flat.reshape(len(vectors), -1) if len(vectors) else np.empty((0, self.dimension))
        vectors = real_tensor(vectors, "vectors")
        if vectors.ndim != 2 or vectors.shape[0] != count or vectors.shape[1] != self.dimension:
            raise InvalidInputError(f"vectors must be [{count}, {self.dimension}], not {list(vectors.shape)}")
        vectors = vectors.to(self._torch.float32)
        if count and peek and not bool((vectors.abs().amax() <= _LARGEST).item()):
            raise InvalidInputError(f"vectors must be finite and at most {_LARGEST:g} in size")
        return vectors

    def _check_queries(self, queries: Any, k: int) -> Any:
        if _whole(k, "k", 1) > _MAX_K:
            raise InvalidInputError(f"k must be 1 to {_MAX_K}, not {k}")
        if not hasattr(queries, "__len__"):
            raise InvalidInputError(f"queries must be [Q, {self.dimension}], not {type(queries).__name__}")
        # A tensor of a GPU is checked with the answer: to look at it here would stop the pipeline.
        is_remote = isinstance(queries, self._torch.Tensor) and queries.is_cuda
        return self._check_rows(queries, len(queries), peek=not is_remote).to(self.device)

    def _check_where(self, where: Mapping[str, tuple[int, int]]) -> None:
        unknown = set(where) - set(self._attribute_names)
        if unknown:
            raise InvalidInputError(f"no attribute named {', '.join(sorted(unknown))}")
        for name, bounds in where.items():
            if _ids(bounds, f"where[{name!r}]").shape != (2,):
                raise InvalidInputError(f"where[{name!r}] must be the least and the largest value, not {bounds!r}")

    def _check_attributes(self, attributes: Mapping[str, Any] | None, count: int) -> dict[str, Ids]:
        given = attributes or {}
        if set(given) != set(self._attribute_names):
            raise InvalidInputError(f"attributes must be exactly {', '.join(self._attribute_names) or 'none'}")
        columns = {name: _integers(given[name], name) for name in given}
        if any(column.shape != (count,) for column in columns.values()):
            raise InvalidInputError(f"every attribute must have {count} values")
        return columns

    def _lookup(self, ids: Ids) -> Ids:
        """Return the addresses of live rows, -1 for an id that is not there."""
        found = np.full(len(ids), -1, np.int64)
        for known, addresses in self._runs:
            at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
            candidate = addresses[at]
            hit = (known[at] == ids) & self._live[candidate]
            found[hit] = candidate[hit]
        return found

    def _merge_runs(self) -> None:
        n = self._n_pages * PAGE
        addresses = np.flatnonzero(self._live[:n])
        ids = self._ids[addresses]
        order = np.argsort(ids, kind="stable")
        self._runs = [(ids[order], addresses[order])] if len(ids) else []

    def _place(self, owners: npt.NDArray[np.int64]) -> Ids:
        """Return an address for each row in turn: the rest of its owner's last page, then new pages of its own."""
        order = np.argsort(owners, kind="stable")
        names, counts = np.unique(owners, return_counts=True)
        tails = [self._tails.get(int(name), (-1, PAGE)) for name in names]
        tail = np.array([page for page, _ in tails], np.int64)
        filled = np.array([used for _, used in tails], np.int64)
        fresh = -(-np.maximum(counts - (PAGE - filled), 0) // PAGE)
        first = self._n_pages + np.concatenate([[0], np.cumsum(fresh)[:-1]])
        rank = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        place = np.repeat(filled, counts) + rank
        page = np.where(place < PAGE, np.repeat(tail, counts), np.repeat(first, counts) + place // PAGE - 1)
        addresses = np.empty(len(owners), np.int64)
        addresses[order] = page * PAGE + place % PAGE
        total = int(fresh.sum())
        self._grow(self._n_pages + total)
        self._page_owners[self._n_pages : self._n_pages + total] = np.repeat(names, fresh)
        self._n_pages += total
        last = filled + counts
        for position, name in enumerate(names.tolist()):
            page_of = int(first[position] + fresh[position] - 1) if fresh[position] else int(tail[position])
            self._tails[name] = (page_of, int(last[position] - 1) % PAGE + 1)
        return addresses

    def _grow(self, n_pages: int) -> None:
        """Make room on the host and on the device; what is there keeps its address."""
        if n_pages > len(self._page_owners):
            pages = max(n_pages, 2 * len(self._page_owners))
            self._page_owners = np.resize(self._page_owners, pages)
            self._ids = np.resize(self._ids, pages * PAGE)
            live = np.zeros(pages * PAGE, bool)
            live[: len(self._live)] = self._live
            self._live = live
        rows = n_pages * PAGE
        while rows > len(self._slabs) * self._slab_rows:
            if self._slabs:
                self._extend(self._slab_rows)
            self._slabs.append(self._allocate(0))
        self._extend(rows - (len(self._slabs) - 1) * self._slab_rows)

    def _allocate(self, rows: int) -> _Slab:
        torch = self._torch

        def empty(*shape: int, kind: Any) -> Any:
            # Zeros, because a place without a row is multiplied like any other, and must not hold a NaN.
            return torch.zeros(shape, dtype=kind, device=self.device)

        return _Slab(
            empty(rows, self._width, kind=torch.bfloat16),
            empty(rows, self._width, kind=torch.int16),
            empty(rows, kind=torch.float32),
            empty(rows, kind=torch.float32),
            empty(rows, kind=torch.float32) if self._is_weighted else None,
            empty(rows, kind=torch.float32) if self._is_weighted else None,
            empty(rows // 32, kind=torch.int32),
            empty(rows, kind=torch.int64),
            {name: empty(rows, kind=torch.int64) for name in self._attribute_names},
        )

    def _extend(self, rows: int) -> None:
        """Make the last slab hold at least so many rows; only a slab that is not yet full-sized ever moves."""
        old = self._slabs[-1]
        had = len(old.ids)
        if rows <= had:
            return
        size = max(2 * had, _FIRST_ROWS)
        if self._budget_bytes is not None:
            size = min(size, self._room() * PAGE - (len(self._slabs) - 1) * self._slab_rows)
        size = min(self._slab_rows, max(rows, size))
        new = self._allocate(-(-size // 128) * 128)
        for name in ("high", "low", "alpha", "beta", "weight", "bias", "ids"):
            if getattr(old, name) is not None:
                getattr(new, name)[:had] = getattr(old, name)
        new.bits[: had // 32] = old.bits
        for name in self._attribute_names:
            new.attributes[name][:had] = old.attributes[name]
        self._slabs[-1] = new

    def _by_slab(self, addresses: Ids) -> list[tuple[int, Any, Any]]:
        """Return (slab, places in it as a slice or a tensor, positions among the addresses)."""
        result: list[tuple[int, Any, Any]] = []
        slabs = addresses // self._slab_rows
        for slab in _distinct(slabs).tolist():
            at = np.flatnonzero(slabs == slab)
            inside = addresses[at] - slab * self._slab_rows
            if len(at) == len(addresses):
                at_or_all: Any = slice(None)
            else:
                at_or_all = slice(int(at[0]), int(at[-1]) + 1) if at[-1] - at[0] + 1 == len(at) else at
            if inside[-1] - inside[0] + 1 == len(inside) and bool((np.diff(inside) == 1).all()):
                result.append((slab, slice(int(inside[0]), int(inside[-1]) + 1), at_or_all))
            else:
                result.append((slab, self._torch.from_numpy(inside).to(self.device), at_or_all))
        return result

    def _write(
        self,
        addresses: Ids,
        rows: Any,
        ids: Ids,
        factors: npt.NDArray[np.float32] | None,
        summands: npt.NDArray[np.float32] | None,
        columns: Mapping[str, Ids],
    ) -> None:
        from agentdb.kernels import torch_ops

        torch = self._torch
        for begin in range(0, len(addresses), _UPLOAD_ROWS):
            part = slice(begin, begin + _UPLOAD_ROWS)
            sent = self._upload(rows[part])
            if self._width != self.dimension:
                sent = torch.nn.functional.pad(sent, (0, self._width - self.dimension))
            high, low = torch_ops.split(sent)
            for slab, inside, at in self._by_slab(addresses[part]):
                one = self._slabs[slab]
                mine = at if isinstance(at, slice) else torch.from_numpy(at).to(self.device)
                one.high[inside] = high[mine]
                one.low[inside] = low[mine]
                one.ids[inside] = torch.from_numpy(ids[part][at]).to(self.device)
                for name, column in columns.items():
                    one.attributes[name][inside] = torch.from_numpy(column[part][at]).to(self.device)
                self._scale(
                    one,
                    inside,
                    sent[mine],
                    high[mine],
                    None if factors is None else factors[part][at],
                    None if summands is None else summands[part][at],
                )
        self._ids[addresses] = ids
        self._live[addresses] = True

    def _upload(self, rows: Any) -> Any:
        if self._copy_stream is None or rows.device.type != "cpu":
            return rows.to(self.device)
        cuda = self._torch.cuda
        # On a stream of its own, so that searches do not wait for the bus.
        with cuda.stream(self._copy_stream):
            sent = rows.pin_memory().to(self.device, non_blocking=True)
        current = cuda.current_stream(self.device)
        current.wait_stream(self._copy_stream)
        sent.record_stream(current)
        return sent

    def _scale(self, slab: _Slab, inside: Any, rows: Any, high: Any, factors: Any, summands: Any) -> None:
        """Set what turns a product with the rounded row into a score, and raise the bounds on its error."""
        torch = self._torch

        def tensor(value: Any) -> Any:
            return torch.from_numpy(np.ascontiguousarray(value)).to(self.device).double()

        exact = rows.double()
        norms = exact.square().sum(1).sqrt_()
        alpha, beta = torch.ones_like(norms), torch.zeros_like(norms)
        if self.metric == "cosine":
            alpha = torch.where(norms > 0, 1 / norms.where(norms > 0, 1.0), 0.0)
        elif self.metric == "l2":
            alpha, beta = 2 * alpha, -norms.square()
        if self._is_weighted:
            weight = torch.ones_like(norms) if factors is None else tensor(factors)
            bias = torch.zeros_like(norms) if summands is None else tensor(summands)
            slab.weight[inside], slab.bias[inside] = weight.float(), bias.float()
            alpha, beta = alpha * weight, beta * weight + bias
        slab.alpha[inside], slab.beta[inside] = alpha.clamp(-_LARGEST_SCALE, _LARGEST_SCALE).float(), beta.float()
        rounded = high.double()
        size, kept = alpha.abs(), rounded.square().sum(1).sqrt_()
        # What the rounding of a row takes away, and what a factor too large for float32 does.
        lost = size * (exact - rounded).square_().sum(1).sqrt_() + (size - _LARGEST_SCALE).clamp(min=0) * kept
        seen = torch.stack(
            [
                lost.amax(),
                (size * kept).amax(),
                size.amax(),
                beta.abs().amax(),
            ]
        )
        self._limits = torch.maximum(self._limits, seen)

    def _become_weighted(self) -> None:
        if self._is_weighted:
            return
        self._is_weighted = True
        for slab in self._slabs:
            slab.weight = self._torch.ones_like(slab.alpha)
            slab.bias = self._torch.zeros_like(slab.alpha)

    def _copy(self, old: list[_Slab], source: Ids, target: Ids, ids: Ids) -> None:
        """Copy rows from former slabs, planes and all."""
        from agentdb.kernels import torch_ops

        torch = self._torch
        slabs = source // self._slab_rows
        for slab in _distinct(slabs).tolist():
            at = np.flatnonzero(slabs == slab)
            inside = torch.from_numpy(source[at] - slab * self._slab_rows).to(self.device)
            one = old[slab]
            for new_slab, places, mine in self._by_slab(target[at]):
                chosen = inside[mine if isinstance(mine, slice) else torch.from_numpy(mine).to(self.device)]
                new = self._slabs[new_slab]
                for name in ("high", "low", "ids"):
                    getattr(new, name)[places] = getattr(one, name)[chosen]
                for name in self._attribute_names:
                    new.attributes[name][places] = one.attributes[name][chosen]
                factors = summands = None
                if self._is_weighted:
                    factors, summands = one.weight[chosen].cpu().numpy(), one.bias[chosen].cpu().numpy()
                high, low = one.high[chosen], one.low[chosen]
                self._scale(new, places, torch_ops.join(high, low), high, factors, summands)
        self._ids[target] = ids
        self._live[target] = True

    def _bury(self, addresses: Ids) -> int:
        if len(addresses):
            self._live[addresses] = False
            try:
                self._publish(addresses)
            except BaseException:
                self._live[addresses] = True
                raise
            self._compact_if_due()
        return len(addresses)

    def _publish(self, changed: Ids | None = None) -> None:
        """Let later searches see what was written: rows that came or went, or whatever it was."""
        torch = self._torch
        n_rows = self._n_pages * PAGE
        # There may be one more, if making room for rows failed.
        slabs = self._slabs[: -(-n_rows // self._slab_rows)]
        bits = [one.bits for one in slabs]
        for slab in range(len(slabs)) if changed is None else _distinct(changed // self._slab_rows).tolist():
            one = slabs[slab]
            first = slab * self._slab_rows
            live = np.zeros(len(one.ids), bool)
            mine = self._live[first : min(first + len(one.ids), n_rows)]
            live[: len(mine)] = mine
            packed = np.packbits(live, bitorder="little").view(np.int32)
            # A new tensor: searches under way go on with the old one.
            bits[slab] = torch.from_numpy(packed).to(self.device)
        live_rows = self._live[:n_rows].copy()
        view = View(
            metric=self.metric,
            width=self._width,
            slab_rows=self._slab_rows,
            n_rows=n_rows,
            high=tuple(one.high for one in slabs),
            low=tuple(one.low for one in slabs),
            alpha=tuple(one.alpha for one in slabs),
            beta=tuple(one.beta for one in slabs),
            weight=tuple(one.weight for one in slabs) if self._is_weighted else (),
            bias=tuple(one.bias for one in slabs) if self._is_weighted else (),
            bits=tuple(bits),
            ids=tuple(one.ids for one in slabs),
            limits=self._limits,
            table=None,
            id_table=self._torch.tensor([one.ids.data_ptr() for one in slabs], device=self.device),
            weight_table=self._pointers([one.weight for one in slabs]),
            bias_table=self._pointers([one.bias for one in slabs]),
            count=self._torch.tensor([n_rows], device=self.device),
            version=next(self._versions),
            layout=tuple(
                number
                for one in slabs
                for part in (one.high, one.low, one.alpha, one.beta, one.weight, one.bias, one.ids)
                if part is not None
                for number in (part.data_ptr(), len(part))
            ),
        )
        view = replace(view, table=self._table(view, view.bits))
        for one, its in zip(slabs, bits, strict=True):
            one.bits = its
        self._state = _State(
            view if n_rows and live_rows.any() else None,
            self._page_owners[: self._n_pages],
            live_rows,
            int(live_rows.sum()),
            {name: tuple(one.attributes[name] for one in slabs) for name in self._attribute_names},
        )

    def _pointers(self, tensors: list[Any]) -> Any:
        if not self._is_weighted:
            return None
        return self._torch.tensor([one.data_ptr() for one in tensors], device=self.device)

    def _compact_if_due(self) -> None:
        used = self._state.n_live
        # Pages that are only half filled are not dead: count what was removed.
        dead = sum(filled for filled in self._filled()) - used
        if dead > max(_FIRST_ROWS, _COMPACT_ABOVE * (used + dead)):
            self.compact()

    def _filled(self) -> list[int]:
        open_pages = sum(PAGE - filled for _, filled in self._tails.values())
        return [self._n_pages * PAGE - open_pages]

    def _touch(self, owners: npt.NDArray[np.int64]) -> None:
        if self._budget_bytes is not None:
            now = next(self._clock)
            self._used.update(dict.fromkeys(_distinct(owners).tolist(), now))

    def _room(self) -> int:
        """Return how many pages the budget has room for."""
        assert self._budget_bytes is not None
        return self._budget_bytes // (
            PAGE * (self._width * 4 + 16 + 8 * self._is_weighted + 8 * len(self._attribute_names))
        )

    def _leaving(self, owners: npt.NDArray[np.int64], replaced: Ids) -> list[int] | None:
        """Return which owners must leave, those used longest ago, for new rows to fit into the budget; None: there is room.

        Args:
            owners: `[N]` of the new rows.
            replaced: addresses that the new rows set free.

        Raises:
            UnavailableError: there would be no room if all the others left.
        """
        if self._budget_bytes is None:
            return None
        room = self._room()
        names, counts = np.unique(owners, return_counts=True)
        if self._n_pages + int((-(-counts // PAGE)).sum()) <= room:
            return None
        stays = self._live[: self._n_pages * PAGE].copy()
        stays[replaced] = False
        of_all = np.concatenate([np.repeat(self._page_owners[: self._n_pages], PAGE)[stays], owners])
        # Rebuilt, every owner takes as few pages as hold its rows.
        everyone, rows = np.unique(of_all, return_counts=True)
        pages = dict(zip(everyone.tolist(), (-(-rows // PAGE)).tolist(), strict=True))
        keep = set(names.tolist())
        if sum(pages[owner] for owner in keep) > room:
            raise UnavailableError(f"the rows of these owners need more than the budget of {self._budget_bytes} bytes")
        total, leaving = sum(pages.values()), []
        for owner in sorted(self._used, key=self._used.__getitem__):
            if total <= room:
                break
            if owner not in keep:
                total -= pages.get(owner, 0)
                leaving.append(owner)
        return leaving


def _distinct(values: Ids) -> Ids:
    """Return what `np.unique` returns; it would hold the interpreter's lock meanwhile, and searches would wait."""
    ordered = np.sort(values)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def _integers(values: Any, name: str) -> Ids:
    if hasattr(values, "combine_chunks"):
        values = values.combine_chunks()
    array = values.to_numpy(zero_copy_only=False) if hasattr(values, "null_count") else np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise InvalidInputError(f"{name} must be integers, not {array.dtype.name}")
    if array.dtype == np.uint64 and array.size and array.max() > np.uint64(_LARGEST_INTEGER):
        raise InvalidInputError(f"{name} must be at most {_LARGEST_INTEGER}, not {array.max()}")
    array = np.ascontiguousarray(array, np.int64)
    return array if array.flags.writeable else array.copy()


def _ids(values: Any, name: str) -> Ids:
    array = _integers(values, name)
    if np.ndim(values) == 0 or array.ndim != 1:
        raise InvalidInputError(f"{name} must have one axis")
    return array


def _whole(value: Any, name: str, least: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise InvalidInputError(f"{name} must be an integer of at least {least}, not {value!r}")
    return int(value)


def _numbers(values: Any, count: int, name: str) -> npt.NDArray[np.float32]:
    given = np.asarray(values)
    if given.dtype.kind not in "fiu":
        raise InvalidInputError(f"{name} must be real numbers, not {given.dtype.name}")
    with np.errstate(over="ignore"):  # infinite then, which is refused below
        array = given.astype(np.float32)
    if array.ndim > 1 or (array.ndim == 1 and len(array) != count):
        raise InvalidInputError(f"{name} must be one number or {count}")
    if not np.isfinite(array).all():
        raise InvalidInputError(f"{name} must be finite")
    return np.broadcast_to(array, (count,)).copy()
