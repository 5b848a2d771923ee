"""Blocks: vectors in memory by slot, appended, removed and searched exactly, on the CPU by numpy or on a CUDA device.

A search first computes float32 scores by matrix products, which may be off by a bound that is known. Whatever could still be
among the K nearest given that bound is then measured in float64, as `agentdb.kernels.reference` does, and ranked by the float32
of that distance, among equals by key. So the answer does not depend on the BLAS library, on the order in which rows came, nor on
the way that they are searched: a table scan ranks them alike.

A block belongs to one writer. What `freeze` returns never changes: rows are added behind its end, marks of death go to a copy.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError
from agentdb.types import Metric

__all__ = ["DeviceBlock", "FrozenBlock", "NumpyBlock", "Tie", "VectorBlock", "cuda_device"]

Matrix = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Slots = npt.NDArray[np.int64]
Tie = Callable[[Sequence[int]], Sequence[Any]]
"""Gives slots something by which rows of equal distance are put in order; the slots themselves if there is none."""

_SLAB_BYTES = 1 << 25
"""An allocation: small enough to be let go of and filled piecemeal, large enough for a matrix product at full speed."""
_FIRST_ROWS = 64
_SCORES = 1 << 21
"""Scores that are computed at a time: they stay in the processor's cache until they have been looked through."""
_SAMPLE_ROWS = 1024
"""The first rows of a search, whose best give the later ones a bound to pass."""
_PENDING = 1 << 13
_MOST_PENDING = 1 << 21
_MOST_QUERIES = 1 << 10
_EXACT_NUMBERS = 1 << 20
"""Numbers that are turned into float64 at a time."""
_NOTED_NUMBERS = 1 << 16
"""Numbers that are taken in at a time: what is computed of them stays in the processor's cache."""
_GATHER = 4
"""Rows that a mask leaves are copied together when they are fewer than one in so many."""
_UNTHREADED = 400_000
"""Numbers that OpenBLAS multiplies with one vector in the calling thread: one more, and it divides the work among all."""
_ALONE = 1 << 25
"""In a block of up to so many numbers a query stays in its thread: on a busy machine waiting for another takes longer."""
_SMALL, _LARGE = 2.0**-40, 2.0**40
"""Norms between which float32 products neither overflow nor lose what the bound below allows for; others are measured."""
_ULP = 2.0**-24
_UNIT = 3e-5
"""Rows whose norms are this close to 1 are taken for unit vectors by the first pass; its bound says so."""
_SPARE = 8
_MOST_DEVICE = 1000
"""The largest k of `DeviceIndex`."""


class FrozenBlock(Protocol):
    """Vectors by slot as they were at one moment; any number of threads may search."""

    @property
    def size(self) -> int:
        """The slots given out by then."""
        ...

    @property
    def live(self) -> Mask:
        """`[size]`: which slots hold a vector."""
        ...

    @property
    def place(self) -> str:
        """Where `search` runs, in words."""
        ...

    def search(
        self, queries: npt.ArrayLike, k: int, *, mask: Mask | None = None, tie: Tie | None = None
    ) -> tuple[Slots, Matrix]:
        """Return the exact K nearest rows of each query and their distances, nearest first, equal ones in the order of ``tie``.

        Args:
            queries: `[Q, D]`, finite.
            k: at least 1.
            mask: `[size]`: only these rows count; None: all.
            tie: by what equal float32 distances are ordered; None: the slot.

        Returns:
            slots `[Q, K]` int64 and distances `[Q, K]` float32 as `agentdb.kernels.reference.distances` has them, where K is k,
            or how many rows there are if that is less.

        Raises:
            InvalidInputError: k is below 1, or the dimension is another.
        """
        ...

    def vectors(self, slots: npt.ArrayLike) -> Matrix:
        """Return `[n, D]` float32 of slots that are live here, bit for bit."""
        ...

    def distances(self, query: npt.ArrayLike, slots: npt.ArrayLike) -> Matrix:
        """Return `[n]` float32 distances of a query to slots that are live here, the same ones that `search` returns."""
        ...


class VectorBlock(Protocol):
    """Vectors in memory by slot. One caller at a time."""

    @property
    def size(self) -> int:
        """The slots given out so far."""
        ...

    @property
    def nbytes(self) -> int:
        """How much memory the rows take, of the host or of the device."""
        ...

    def append(self, first: int, matrix: npt.NDArray[Any], present: Mask) -> None:
        """Add rows whose slots are ``first`` and those that follow.

        Args:
            first: not below ``size``; slots that are left out hold no vector.
            matrix: `[n, D]` float32 or float16, finite where present.
            present: `[n]`: which rows have a vector.

        Raises:
            InvalidInputError: a slot is taken, or a shape is wrong.
        """
        ...

    def remove(self, slots: npt.ArrayLike) -> None:
        """Take rows out of every later view; slots without a vector are passed over."""
        ...

    def freeze(self) -> FrozenBlock:
        """Return the rows as they are now, which later changes do not touch; nothing is copied."""
        ...


# --- measuring and ranking --------------------------------------------------------------------------------------------


def _measured(queries: Matrix, which: npt.NDArray[np.int64], rows: Matrix, metric: Metric) -> Matrix:
    """Return the `[n]` float32 distances of queries ``which`` to rows `[n, D]`, computed in float64.

    Every row is summed by itself: equal rows are at equal distances, wherever they lie.
    """
    found = np.empty(len(rows), np.float32)
    step = max(1, _EXACT_NUMBERS // max(1, queries.shape[1]))
    wide = queries.astype(np.float64)
    norms = np.sqrt(np.vecdot(wide, wide)) if metric == "cosine" else None
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        left, right = wide[which[part]], rows[part].astype(np.float64)
        if metric == "l2":
            left -= right
            found[part] = np.vecdot(left, left)
            continue
        products = np.vecdot(left, right)
        if norms is not None:
            sizes = norms[which[part]] * np.sqrt(np.vecdot(right, right))
            products = np.divide(products, sizes, out=np.zeros_like(sizes), where=sizes > 0)
        found[part] = 1.0 - products
    return found


def _ranked(
    which: npt.NDArray[np.int64], slots: Slots, distances: Matrix, k: int, tie: Tie | None
) -> npt.NDArray[np.int64]:
    """Return the positions of the K nearest of each query, nearest first, in the order of the queries."""
    order = np.lexsort((slots, distances, which))
    if not len(order):
        return order
    query, distance = which[order], distances[order]
    is_first = np.ones(len(order), np.bool_)
    np.not_equal(query[1:], query[:-1], out=is_first[1:])
    place = np.arange(len(order)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    if tie is not None:
        # A run of equals; those that begin behind the K-th place do not matter.
        goes_on = ~is_first
        goes_on[1:] &= distance[1:] == distance[:-1]
        if goes_on.any():
            begins = np.flatnonzero(~goes_on)
            ends = np.append(begins[1:], len(order))
            for run in np.flatnonzero((ends - begins > 1) & (place[begins] < k)).tolist():
                part = order[begins[run] : ends[run]]
                by = tie(slots[part].tolist())
                part[:] = part[sorted(range(len(part)), key=by.__getitem__)]
    best: npt.NDArray[np.int64] = order[place < k]
    return best


def _checked(queries: npt.ArrayLike, dimension: int, k: int) -> Matrix:
    array = np.ascontiguousarray(queries, np.float32)
    if array.ndim != 2 or array.shape[1] != dimension:
        raise InvalidInputError(f"queries must be [Q, {dimension}], not {list(array.shape)}")
    if k < 1:
        raise InvalidInputError(f"k must be at least 1, not {k}")
    return array


def _counted(live: Mask, mask: Mask | None) -> Mask:
    if mask is None:
        return live
    if mask.shape != live.shape or mask.dtype != np.bool_:
        raise InvalidInputError(f"a mask must be bool of shape {live.shape}, not {mask.dtype} of {mask.shape}")
    return live & mask


def _check_rows(first: int, size: int, matrix: npt.NDArray[Any], present: Mask, dimension: int) -> None:
    if first < size:
        raise InvalidInputError(f"slot {first} is taken: the block has {size}")
    if matrix.ndim != 2 or matrix.shape[1] != dimension or present.shape != (len(matrix),):
        raise InvalidInputError(f"rows must be [n, {dimension}] with n marks, not {matrix.shape} with {present.shape}")


# --- on the CPU -------------------------------------------------------------------------------------------------------


def _room(array: npt.NDArray[Any], used: int, wanted: int) -> npt.NDArray[Any]:
    """Return the array, or a larger copy of its used part, with place for so many rows; what is new is zero."""
    if wanted <= len(array):
        return array
    grown = np.zeros((max(wanted, 2 * len(array), _FIRST_ROWS), *array.shape[1:]), array.dtype)
    grown[:used] = array[:used]
    return grown


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What the rounding of the first pass depends on; none of it ever falls."""

    norm: float = 0.0
    """The largest norm of a row that the first pass scores."""
    off_unit: float = 0.0
    """The largest distance of such a norm from 1."""

    def including(self, least: float, most: float) -> _Bounds:
        """Return the bounds with rows whose norms lie between two."""
        return _Bounds(max(self.norm, most), max(self.off_unit, abs(least - 1), abs(most - 1)))

    def rounding(self, norms: npt.NDArray[np.float64], dimension: int, metric: Metric) -> npt.NDArray[np.float64]:
        """Return `[Q]`: how far a score can lie from the exact one, that one's own rounding to float32 included.

        A float32 sum of D products is off by at most D ulp of the sum of their sizes in any order of summation, which Cauchy
        and Schwarz bound by the norms. Source: Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1.
        """
        sums = 1.02 * (dimension + 2) * _ULP
        tiny = dimension * 2.0**-80  # products below the smallest normal number may be flushed
        if metric == "cosine":
            off = self.off_unit if self.off_unit <= _UNIT else 0.0
            return np.full_like(norms, (sums + 16 * _ULP) * (1 + off) + off + tiny)
        size = norms * self.norm
        if metric == "dot":
            return sums * size + 4 * _ULP * (1 + size) + tiny
        return sums * size + 4 * _ULP * (norms + self.norm) ** 2 + tiny


class NumpyBlock:
    """Vectors in the host's memory, in slabs that are never moved once they are full. One caller at a time.

    Args:
        dimension: D, at least 1.
        metric: what distance means: ``"cosine"``, ``"l2"`` (the square) or ``"dot"``.
    """

    def __init__(self, dimension: int, metric: Metric) -> None:
        self.dimension, self.metric = dimension, metric
        self.size = 0
        rows = max(1, _SLAB_BYTES // (4 * dimension))
        self._slab_rows = 1 << (rows.bit_length() - 1)
        self._slabs: list[Matrix] = []
        self._scale = np.zeros(0, np.float32)
        self._live = np.zeros(0, np.bool_)
        self._odd = np.zeros(0, np.int64)
        self._bounds = _Bounds()
        self._is_frozen = False

    @property
    def nbytes(self) -> int:
        """How much memory the rows take, unused places included."""
        return sum(one.nbytes for one in self._slabs) + self._scale.nbytes + self._live.nbytes

    def append(self, first: int, matrix: npt.NDArray[Any], present: Mask) -> None:
        """See `VectorBlock.append`."""
        _check_rows(first, self.size, matrix, present, self.dimension)
        size = first + len(matrix)
        self._reserve(size)
        step = max(1, _NOTED_NUMBERS // self.dimension)
        done = 0
        while done < len(matrix):
            # A piece lies in one slab.
            slab, inside = divmod(first + done, self._slab_rows)
            end = min(len(matrix), done + step, done + self._slab_rows - inside)
            part = self._slabs[slab][inside : inside + end - done]
            part[:] = matrix[done:end]
            part[~present[done:end]] = 0
            self._note(first + done, part)
            done = end
        self._live[first:size] = present
        self.size = size

    def _reserve(self, size: int) -> None:
        whole, rest = divmod(size, self._slab_rows)
        wanted = [self._slab_rows] * whole + ([rest] if rest else [])
        for number, rows in enumerate(wanted):
            if number == len(self._slabs):
                room = min(max(rows, _FIRST_ROWS), self._slab_rows) if not number else self._slab_rows
                self._slabs.append(np.zeros((room, self.dimension), np.float32))
            elif rows > len(self._slabs[number]):
                room = min(max(rows, 2 * len(self._slabs[number])), self._slab_rows)
                self._slabs[number] = _room(self._slabs[number], len(self._slabs[number]), room)
        self._scale = _room(self._scale, self.size, size)
        self._live = _room(self._live, self.size, size)

    def _note(self, first: int, rows: Matrix) -> None:
        """Keep what turns products with some rows into scores, and what bounds the error of that."""
        wide = rows.astype(np.float64)
        norms = np.sqrt(np.vecdot(wide, wide))
        if len(norms) and (least := float(norms.min())) >= _SMALL and (most := float(norms.max())) <= _LARGE:
            # As nearly always: no row needs a second look.
            self._bounds = self._bounds.including(least, most)
            self._scale[first : first + len(rows)] = 1.0 / norms if self.metric == "cosine" else -0.5 * norms * norms
            return
        is_odd = norms > _LARGE
        if self.metric == "cosine":
            is_odd |= (norms < _SMALL) & (norms > 0)
        plain = norms[~is_odd & (norms > 0)]
        if len(plain):
            self._bounds = self._bounds.including(float(plain.min()), float(plain.max()))
        if is_odd.any():
            self._odd = np.concatenate([self._odd, np.flatnonzero(is_odd) + first])
        usual = np.where(is_odd, 0.0, norms)
        if self.metric == "cosine":
            scale = np.divide(1.0, usual, out=np.zeros_like(usual), where=usual > 0)
        else:
            scale = -0.5 * usual * usual
        self._scale[first : first + len(rows)] = scale

    def remove(self, slots: npt.ArrayLike) -> None:
        """See `VectorBlock.remove`."""
        gone = np.asarray(slots, np.int64)
        if not len(gone):
            return
        if self._is_frozen:
            self._live, self._is_frozen = self._live.copy(), False
        self._live[gone] = False

    def freeze(self) -> FrozenNumpyBlock:
        """See `VectorBlock.freeze`."""
        self._is_frozen = True
        odd = self._odd[self._live[self._odd]]
        return FrozenNumpyBlock(
            dimension=self.dimension,
            metric=self.metric,
            size=self.size,
            live=self._live[: self.size],
            _slabs=tuple(self._slabs),
            _slab_rows=self._slab_rows,
            _scale=self._scale[: self.size],
            _odd=odd,
            _bounds=self._bounds,
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some rows that are scored together."""

    slots: Slots | int
    """Their slots, or the first of them if they follow each other."""
    rows: Matrix
    scale: Matrix
    counted: Mask | None
    """Which of them count; None: all."""

    def slots_of(self, columns: npt.NDArray[np.int64]) -> Slots:
        return columns + self.slots if isinstance(self.slots, int) else self.slots[columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenNumpyBlock:
    """The rows of a `NumpyBlock` at one moment; any number of threads may search."""

    dimension: int
    metric: Metric
    size: int
    live: Mask
    _slabs: tuple[Matrix, ...]
    _slab_rows: int
    _scale: Matrix
    """`[size]` for cosine the factor of a product, otherwise (for Euclidean) its summand."""
    _odd: Slots
    """Live rows that are too large or too small for float32 products."""
    _bounds: _Bounds

    @property
    def place(self) -> str:
        """See `FrozenBlock.place`."""
        return "on the host"

    def search(
        self, queries: npt.ArrayLike, k: int, *, mask: Mask | None = None, tie: Tie | None = None
    ) -> tuple[Slots, Matrix]:
        """See `FrozenBlock.search`."""
        given = _checked(queries, self.dimension, k)
        counted = _counted(self.live, mask)
        n_counted = int(np.count_nonzero(counted))
        k = min(k, n_counted)
        slots, distances = np.empty((len(given), k), np.int64), np.empty((len(given), k), np.float32)
        for begin in range(0, len(given) if k else 0, _MOST_QUERIES):
            part = slice(begin, begin + _MOST_QUERIES)
            slots[part], distances[part] = self._nearest(given[part], k, counted, n_counted, tie)
        return slots, distances

    def _nearest(self, given: Matrix, k: int, counted: Mask, n_counted: int, tie: Tie | None) -> tuple[Slots, Matrix]:
        found = _Found(self, given, k, tie)
        odd = self._odd[counted[self._odd]]
        if len(odd):
            counted = counted.copy()
            counted[odd] = False
            n_counted -= len(odd)
            found.add_certain(odd)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for piece in self._pieces(counted, n_counted, len(given)):
                found.look_through(piece)
        return found.best()

    def _pieces(self, counted: Mask, n_counted: int, n_queries: int) -> Iterator[_Piece]:
        """Yield all rows that count, the first piece a small one."""
        step = max(_SAMPLE_ROWS, _SCORES // n_queries)
        if n_counted * _GATHER < self.size:
            slots = np.flatnonzero(counted)
            step = min(step, max(1, _SLAB_BYTES // (4 * self.dimension)))
            for begin in range(0, n_counted, step):
                part = slots[begin : begin + step]
                yield _Piece(part, self.vectors(part), self._scale[part], None)
            return
        all_count = n_counted == self.size
        begin = 0
        while begin < self.size:
            slab, inside = divmod(begin, self._slab_rows)
            # With one query the first slab is small enough, and scored at once.
            most = step if begin or n_queries == 1 else _SAMPLE_ROWS
            end = min(self.size, begin + most, begin - inside + self._slab_rows)
            yield _Piece(
                begin,
                self._slabs[slab][inside : inside + end - begin],
                self._scale[begin:end],
                None if all_count else counted[begin:end],
            )
            begin = end

    def vectors(self, slots: npt.ArrayLike) -> Matrix:
        """See `FrozenBlock.vectors`."""
        wanted = np.asarray(slots, np.int64)
        if len(self._slabs) == 1:
            return self._slabs[0][wanted]
        rows = np.empty((len(wanted), self.dimension), np.float32)
        slabs, inside = np.divmod(wanted, self._slab_rows)
        for slab in np.unique(slabs).tolist():
            mine = slabs == slab
            rows[mine] = self._slabs[slab][inside[mine]]
        return rows

    def distances(self, query: npt.ArrayLike, slots: npt.ArrayLike) -> Matrix:
        """See `FrozenBlock.distances`."""
        given = _checked(np.asarray(query, np.float32)[None], self.dimension, 1)
        wanted = np.asarray(slots, np.int64)
        return _measured(given, np.zeros(len(wanted), np.int64), self.vectors(wanted), self.metric)


class _Found:
    """The rows that can be among the K nearest of each query, as far as a search has come.

    A row stays as long as its score reaches the query's floor: the K-th best score known, less what rounding can have moved the
    two by.
    """

    def __init__(self, block: FrozenNumpyBlock, queries: Matrix, k: int, tie: Tie | None) -> None:
        self._block, self._queries, self._k, self._tie = block, queries, k, tie
        wide = queries.astype(np.float64)
        norms = np.sqrt(np.vecdot(wide, wide))
        self._margin = 2 * block._bounds.rounding(norms, block.dimension, block.metric)
        if block.metric == "cosine":
            wide /= np.where(norms > 0, norms, 1.0)[:, None]
        elif not (norms <= _LARGE).all():
            # Too large for float32: every row is measured.
            wide[norms > _LARGE] = 0.0
            self._margin[norms > _LARGE] = np.inf
        self._scan = wide.astype(np.float32)
        self._scaled = block.metric == "cosine" and block._bounds.off_unit > _UNIT
        self._floor = np.full(len(queries), -np.inf, np.float32)
        self._room, self._hits = np.empty(0, np.float32), np.empty(0, np.bool_)
        self._which: list[npt.NDArray[np.int64]] = []
        self._slots: list[Slots] = []
        self._scores: list[Matrix] = []
        self._pending = 0
        self._limit = 2 * len(queries) * k + _PENDING

    def add_certain(self, slots: Slots) -> None:
        """Keep rows that are measured whatever their scores would be; they raise no floor."""
        n = len(self._queries)
        which = np.repeat(np.arange(n), len(slots))
        self._keep(which, np.tile(slots, n), np.full(len(which), np.nan, np.float32))

    def _keep(self, which: npt.NDArray[np.int64], slots: Slots, scores: Matrix) -> None:
        self._which.append(which)
        self._slots.append(slots)
        self._scores.append(scores)
        self._pending += len(slots)

    def look_through(self, piece: _Piece) -> None:
        """Score some rows and keep those that can be among the nearest."""
        scores = self._products(piece.rows)
        if self._scaled:
            scores *= piece.scale
        elif self._block.metric == "l2":
            scores += piece.scale
        if not self._pending or self._floor[0] == -np.inf:
            self._first_floor(scores, piece.counted)
        hits = np.greater_equal(scores, self._floor[:, None], out=self._hits[: scores.size].reshape(scores.shape))
        flat = np.flatnonzero(hits)
        which, columns = np.divmod(flat, scores.shape[1]) if len(scores) > 1 else (np.zeros_like(flat), flat)
        if piece.counted is not None:
            kept = piece.counted[columns]
            flat, which, columns = flat[kept], which[kept], columns[kept]
        self._keep(which, piece.slots_of(columns), scores.ravel()[flat])
        if self._pending > self._limit:
            self._tighten()
            if self._pending > max(_MOST_PENDING, 4 * len(self._queries) * self._k):
                self._settle()
            self._limit = max(self._limit, 2 * self._pending)

    def _products(self, rows: Matrix) -> Matrix:
        """Return `[Q, n]` products of the queries with some rows, in memory that the next call uses again."""
        size = len(self._scan) * len(rows)
        if size > len(self._room):
            # Fresh pages for every piece would cost as much as the products.
            self._room, self._hits = np.empty(size, np.float32), np.empty(size, np.bool_)
        scores = self._room[:size].reshape(len(self._scan), len(rows))
        if len(scores) > 1 or self._block.size * self._block.dimension > _ALONE:
            return np.matmul(self._scan, rows.T, out=scores)
        query, step = self._scan[0], max(1, _UNTHREADED // rows.shape[1])
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            np.matmul(rows[part], query, out=scores[0, part])
        return scores

    def _first_floor(self, scores: Matrix, counted: Mask | None) -> None:
        if counted is not None:
            scores[:, ~counted] = -np.inf
        n = scores.shape[1]
        if n > self._k:
            self._raise_floor(np.partition(scores, n - self._k, axis=1)[:, n - self._k], slice(None))

    def _raise_floor(self, kth: Matrix, which: Any) -> None:
        """Let nothing pass that cannot belong to the K best, given K rows that score at least so much."""
        lower = np.nextafter((kth.astype(np.float64) - self._margin[which]).astype(np.float32), -np.inf)
        self._floor[which] = np.maximum(self._floor[which], lower)

    def _pairs(self) -> tuple[npt.NDArray[np.int64], Slots, Matrix]:
        if len(self._slots) != 1:
            self._which = [np.concatenate(self._which)] if self._which else [np.empty(0, np.int64)]
            self._slots = [np.concatenate(self._slots)] if self._slots else [np.empty(0, np.int64)]
            self._scores = [np.concatenate(self._scores)] if self._scores else [np.empty(0, np.float32)]
        return self._which[0], self._slots[0], self._scores[0]

    def _only(self, kept: Any) -> None:
        which, slots, scores = self._pairs()
        self._which, self._slots, self._scores = [which[kept]], [slots[kept]], [scores[kept]]
        self._pending = len(self._slots[0])

    def _tighten(self) -> None:
        """Raise the floors to what the rows found so far allow, and drop those below."""
        which, _, scores = self._pairs()
        order = np.lexsort((-scores, which))  # NaN comes last
        starts = np.searchsorted(which[order], np.arange(len(self._queries) + 1))
        full = np.flatnonzero(np.diff(starts) >= self._k)
        kth = scores[order[starts[full] + self._k - 1]]
        known = ~np.isnan(kth)
        self._raise_floor(kth[known], full[known])
        self._only(~(scores < self._floor[which]))

    def _settle(self) -> None:
        """Keep only the K nearest rows found so far, measured: so many cannot be told apart by their scores."""
        which, slots, _ = self._pairs()
        self._only(_ranked(which, slots, self._measure(which, slots), self._k, self._tie))

    def _measure(self, which: npt.NDArray[np.int64], slots: Slots) -> Matrix:
        block = self._block
        found = np.empty(len(slots), np.float32)
        step = max(1, 4 * _EXACT_NUMBERS // block.dimension)
        for begin in range(0, len(slots), step):
            part = slice(begin, begin + step)
            found[part] = _measured(self._queries, which[part], block.vectors(slots[part]), block.metric)
        return found

    def best(self) -> tuple[Slots, Matrix]:
        """Return slots and distances `[Q, K]` of the nearest rows."""
        if self._pending > len(self._queries) * (self._k + _SPARE):
            self._tighten()
        which, slots, _ = self._pairs()
        distances = self._measure(which, slots)
        order = _ranked(which, slots, distances, self._k, self._tie)
        shape = (len(self._queries), self._k)
        return slots[order].reshape(shape), distances[order].reshape(shape)


# --- on a device ------------------------------------------------------------------------------------------------------


class DeviceBlock:
    """Vectors in an `agentdb.kernels.DeviceIndex`. One caller at a time.

    Rows that were removed leave the index when no view that has them is left; until then searches pass them over.

    Args:
        dimension: D, at least 1.
        metric: what distance means.
        device: a torch device.

    Raises:
        MissingDependencyError: torch is not installed.
    """

    def __init__(self, dimension: int, metric: Metric, *, device: str) -> None:
        from agentdb.kernels import DeviceIndex

        self.dimension, self.metric, self.device = dimension, metric, device
        self.size = 0
        self._index = DeviceIndex(dimension, metric=metric, device=device)
        self._live = np.zeros(0, np.bool_)
        self._is_frozen = False
        self._removed: list[Slots] = []
        self._done = 0
        """How many times rows were taken out of the index: so many of all removals are no longer in ``_removed``."""
        self._views: weakref.WeakSet[FrozenDeviceBlock] = weakref.WeakSet()

    @property
    def nbytes(self) -> int:
        """How much memory of the device the rows take."""
        return self._index.bytes

    def append(self, first: int, matrix: npt.NDArray[Any], present: Mask) -> None:
        """See `VectorBlock.append`; rows are to be smaller than 1e15."""
        _check_rows(first, self.size, matrix, present, self.dimension)
        size = first + len(matrix)
        rows = matrix if present.all() else matrix[present]
        self._index.put(np.flatnonzero(present) + first, rows)
        self._live = _room(self._live, self.size, size)
        self._live[first:size] = present
        self.size = size

    def remove(self, slots: npt.ArrayLike) -> None:
        """See `VectorBlock.remove`."""
        gone = np.asarray(slots, np.int64)
        if not len(gone):
            return
        if self._is_frozen:
            self._live, self._is_frozen = self._live.copy(), False
        self._live[gone] = False
        self._removed.append(gone)

    def freeze(self) -> FrozenDeviceBlock:
        """See `VectorBlock.freeze`."""
        removals = self._done + len(self._removed)
        needless = min((view.removals for view in self._views), default=removals) - self._done
        if needless:
            self._index.delete(np.concatenate(self._removed[:needless]))
            del self._removed[:needless]
            self._done += needless
        self._is_frozen = True
        view = FrozenDeviceBlock(self._index, self.size, self._live[: self.size], removals)
        self._views.add(view)
        return view


class FrozenDeviceBlock:
    """The rows of a `DeviceBlock` at one moment; any number of threads may search."""

    def __init__(self, index: Any, size: int, live: Mask, removals: int) -> None:
        self.size, self.live, self.removals = size, live, removals
        self._index = index

    @property
    def place(self) -> str:
        """See `FrozenBlock.place`."""
        from agentdb.kernels.choice import choose

        choice = choose("group_max", self._index.device)
        return f"on {choice.device} by {choice.backend} ({choice.reason})"

    def search(
        self, queries: npt.ArrayLike, k: int, *, mask: Mask | None = None, tie: Tie | None = None
    ) -> tuple[Slots, Matrix]:
        """See `FrozenBlock.search`."""
        given = _checked(queries, self._index.dimension, k)
        counted = _counted(self.live, mask)
        n_counted = int(np.count_nonzero(counted))
        k = min(k, n_counted)
        if not k or not len(given):
            return np.empty((len(given), k), np.int64), np.empty((len(given), k), np.float32)
        found = None
        if mask is None:
            # Besides the rows of this view the index holds some that are newer, or that an older view still has.
            found = self._candidates(given, k, counted, None, len(self._index) - n_counted)
        found = found or self._candidates(given, k, counted, np.flatnonzero(counted), 0)
        if found is None:
            return self._on_the_host(given, k, counted, tie)
        which, slots, distances = found
        order = _ranked(which, slots, distances, k, tie)
        return slots[order].reshape(len(given), k), distances[order].reshape(len(given), k)

    def _candidates(
        self, given: Matrix, k: int, counted: Mask, among: Slots | None, others: int
    ) -> tuple[npt.NDArray[np.int64], Slots, Matrix] | None:
        """Return pairs among which are the K nearest of every query and all rows as near as the K-th; None: too many."""
        wanted = k + _SPARE + max(others, 0)
        while wanted <= _MOST_DEVICE:
            slots = self._index.search(given, wanted, among=among).ids
            known = slots >= 0
            distances = np.full(slots.shape, np.inf, np.float32)
            distances[known] = self._measure(given, np.nonzero(known)[0], slots[known])
            # Beyond the last row that was found, none is nearer than it.
            edge = np.where(known.all(axis=1), distances.max(axis=1), np.inf)
            known &= slots < self.size
            known[known] = counted[slots[known]]
            kth = np.partition(np.where(known, distances, np.inf), k - 1, axis=1)[:, k - 1]
            if (kth < edge).all():
                return np.nonzero(known)[0], slots[known], distances[known]
            wanted *= 4
        return None

    def _measure(self, given: Matrix, which: npt.NDArray[np.int64], slots: Slots) -> Matrix:
        return _measured(given, which, self._index.get(slots), self._index.metric)

    def _on_the_host(self, given: Matrix, k: int, counted: Mask, tie: Tie | None) -> tuple[Slots, Matrix]:
        """Search for more than the device returns, or among more equals than it tells apart."""
        slots = np.flatnonzero(counted)
        block = NumpyBlock(self._index.dimension, self._index.metric)
        block.append(0, self._index.get(slots), np.ones(len(slots), np.bool_))
        by = None if tie is None else lambda places: tie(slots[list(places)].tolist())
        places, distances = block.freeze().search(given, k, tie=by)
        return slots[places], distances

    def vectors(self, slots: npt.ArrayLike) -> Matrix:
        """See `FrozenBlock.vectors`."""
        rows: Matrix = self._index.get(np.asarray(slots, np.int64))
        return rows

    def distances(self, query: npt.ArrayLike, slots: npt.ArrayLike) -> Matrix:
        """See `FrozenBlock.distances`."""
        given = _checked(np.asarray(query, np.float32)[None], self._index.dimension, 1)
        wanted = np.asarray(slots, np.int64)
        return self._measure(given, np.zeros(len(wanted), np.int64), wanted)


# --- which of them ----------------------------------------------------------------------------------------------------


@cache
def cuda_device(wanted: str) -> str | None:
    """Return the CUDA device that ``Config.device`` means, or None for the CPU; torch is not imported to learn that.

    ``"auto"`` is CUDA where torch and a device are there.
    """
    if wanted.startswith("cuda"):
        return wanted
    if wanted != "auto" or find_spec("torch") is None or not _has_cuda_driver():
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None


def _has_cuda_driver() -> bool:
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True
