"""BM25 in memory over rows that come and go: every search sees the statistics of exactly the rows that live.

The score of a row is the sum over the query's terms of ``idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean))`` with
``idf = ln(1 + (rows - df + 0.5) / (df + 0.5))``, over the rows that have a term: to the digit what Lance computes, so that scores
of both can be ranked together.

A block keeps postings in sorted runs whose sizes fall geometrically, as a log-structured tree does, and the newest rows as
they came. What a frozen view refers to is never changed: rows are added behind its end, marks of death go to a copy.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agentdb.errors import InvalidInputError
from agentdb.vectors.analysis import TERM, decode_terms

__all__ = ["Bm25Block", "FrozenBm25", "TermStatistics"]

_TAIL = 1 << 14
"""Postings that are kept unsorted: finding one term among them takes some microseconds."""
_RATIO = 4
"""A run is merged into its elder when it is not this many times smaller: few runs to search, each posting moved seldom."""


@dataclass(frozen=True, slots=True)
class TermStatistics:
    """What BM25 needs to know about a corpus for one query. Statistics of disjoint corpora add up.

    Attributes:
        rows: how many rows have a term; rows without a text, or of stop words only, are not counted.
        length: how many terms all of them have, repeats counted.
        frequencies: how many rows have a term, by its hash.
    """

    rows: int
    length: int
    frequencies: Mapping[int, int] = field(default_factory=dict)

    def __add__(self, other: TermStatistics) -> TermStatistics:
        terms = self.frequencies.keys() | other.frequencies.keys()
        both = {term: self.frequencies.get(term, 0) + other.frequencies.get(term, 0) for term in terms}
        return TermStatistics(self.rows + other.rows, self.length + other.length, both)


@dataclass(frozen=True, slots=True)
class _Run:
    """Postings of some rows, sorted by term and slot: term i has those from ``offsets[i]`` to ``offsets[i + 1]``."""

    terms: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int32]
    counts: npt.NDArray[np.uint16]

    @property
    def nbytes(self) -> int:
        return self.terms.nbytes + self.offsets.nbytes + self.slots.nbytes + self.counts.nbytes


def _run_of(hashes: npt.NDArray[np.uint32], slots: npt.NDArray[np.int32], counts: npt.NDArray[np.uint16]) -> _Run:
    """Return the run of postings given by rising slot."""
    # The position makes the sort stable and says afterwards what belongs to the term: one sort of integers does it all.
    keys = hashes.astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    terms = (keys >> np.uint64(32)).astype(np.uint32)
    firsts = np.flatnonzero(np.r_[True, terms[1:] != terms[:-1]])
    return _Run(terms[firsts], np.append(firsts, len(terms)), slots[order], counts[order])


def _without_dead(run: _Run, live: npt.NDArray[np.bool_]) -> _Run:
    """Return the postings of a run that belong to living rows."""
    alive = live[run.slots]
    if alive.all():
        return run
    offsets = np.concatenate([[0], np.cumsum(alive)])[run.offsets]
    kept = offsets[1:] > offsets[:-1]
    return _Run(run.terms[kept], np.append(offsets[:-1][kept], offsets[-1]), run.slots[alive], run.counts[alive])


def _merged(older: _Run, newer: _Run) -> _Run:
    """Return the postings of both runs as one; the older's slots are the lower ones."""
    terms = np.union1d(older.terms, newer.terms)
    sizes = np.zeros(len(terms), np.int64)
    sizes[np.searchsorted(terms, older.terms)] = np.diff(older.offsets)
    places, added = np.searchsorted(terms, newer.terms), np.diff(newer.offsets)
    behind = sizes[places]
    sizes[places] += added
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    # A term's newer postings stand behind its older ones; everything else only moves up, in its order.
    at = np.repeat(offsets[places] + behind - newer.offsets[:-1], added) + np.arange(len(newer.slots))
    is_older = np.ones(offsets[-1], bool)
    is_older[at] = False
    slots, counts = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.uint16)
    slots[at], counts[at] = newer.slots, newer.counts
    slots[is_older], counts[is_older] = older.slots, older.counts
    return _Run(terms, offsets, slots, counts)


def _room(array: npt.NDArray[Any], used: int, more: int) -> npt.NDArray[Any]:
    """Return the array, or a larger copy of its used part, with room for more."""
    if used + more <= len(array):
        return array
    grown = np.zeros(max(used + more, 2 * len(array), 64), array.dtype)
    grown[:used] = array[:used]
    return grown


class Bm25Block:
    """The terms of rows by slot, appended and removed one by one or by the hundred thousand. One caller at a time.

    Args:
        k1: how slowly a term that is repeated in a row stops to add, 0 or more.
        b: how much a row's length counts, 0 to 1.
    """

    def __init__(self, *, k1: float = 1.2, b: float = 0.75) -> None:
        if not (k1 >= 0 and 0 <= b <= 1):
            raise InvalidInputError(f"k1 must be at least 0 and b from 0 to 1, not {k1} and {b}")
        self.k1, self.b = k1, b
        self.size = 0
        self._rows = self._length = self._dead = 0
        self._lengths = np.zeros(0, np.int32)
        self._live = np.zeros(0, bool)
        self._is_frozen = False
        self._runs: tuple[_Run, ...] = ()
        self._tail = np.zeros(0, TERM)
        self._tail_slots = np.zeros(0, np.int32)
        self._tail_size = 0

    @property
    def nbytes(self) -> int:
        """How much memory the block holds."""
        rows = self._lengths.nbytes + self._live.nbytes
        return rows + self._tail.nbytes + self._tail_slots.nbytes + sum(run.nbytes for run in self._runs)

    def append(self, first: int, terms: pa.Array | pa.ChunkedArray) -> None:
        """Add rows whose slots are ``first`` and those that follow.

        Args:
            first: not below ``size``; slots that are left out never match.
            terms: `[N]` binary as `encode_terms` makes it; a row without terms never matches and is not counted.

        Raises:
            InvalidInputError: a slot is already taken.
            IntegrityError: the bytes are no terms.
        """
        if first < self.size:
            raise InvalidInputError(f"slot {first} is taken: the block has {self.size}")
        records, sizes = decode_terms(terms)
        size = first + len(sizes)
        self._lengths = _room(self._lengths, self.size, size - self.size)
        self._live = _room(self._live, self.size, size - self.size)
        ends = np.cumsum(sizes)
        total = np.concatenate([[0], np.cumsum(records["count"], dtype=np.int64)])
        lengths = total[ends] - total[ends - sizes]
        # Behind the end of every frozen view, so seen by none of them.
        self._lengths[first:size], self._live[first:size] = lengths, sizes > 0
        self._rows += int(np.count_nonzero(sizes))
        self._length += int(lengths.sum())
        self.size = size
        slots = np.repeat(np.arange(first, size, dtype=np.int32), sizes)
        if len(records) >= _TAIL:
            self._sort_tail()
            self._add_run(_run_of(records["hash"], slots, records["count"]))
            return
        if self._tail_size + len(records) > _TAIL:
            self._sort_tail()
        begin, end = self._tail_size, self._tail_size + len(records)
        self._tail = _room(self._tail, begin, len(records))
        self._tail_slots = _room(self._tail_slots, begin, len(records))
        self._tail[begin:end], self._tail_slots[begin:end] = records, slots
        self._tail_size = end

    def remove(self, slots: npt.ArrayLike) -> None:
        """Take rows out of every later view; slots that are dead already, or have no terms, are passed over.

        Raises:
            InvalidInputError: a slot was never given out.
        """
        given = np.unique(np.asarray(slots, np.int64))
        if len(given) and not 0 <= given[0] <= given[-1] < self.size:
            raise InvalidInputError(f"slots must be from 0 to {self.size - 1}, not {given[0]} to {given[-1]}")
        gone = given[self._live[given]]
        if not len(gone):
            return
        if self._is_frozen:
            self._live, self._is_frozen = self._live.copy(), False
        self._live[gone] = False
        self._rows -= len(gone)
        self._length -= int(self._lengths[gone].sum(dtype=np.int64))
        self._dead += len(gone)

    def freeze(self) -> FrozenBm25:
        """Return the rows as they are now, which later changes do not touch; nothing is copied."""
        self._is_frozen = True
        return FrozenBm25(
            size=self.size,
            k1=self.k1,
            b=self.b,
            _rows=self._rows,
            _length=self._length,
            _lengths=self._lengths,
            _live=self._live if self._dead else None,
            _runs=self._runs,
            _tail=self._tail[: self._tail_size],
            _tail_slots=self._tail_slots[: self._tail_size],
        )

    def _sort_tail(self) -> None:
        if self._tail_size:
            tail = self._tail[: self._tail_size]
            self._add_run(_run_of(tail["hash"], self._tail_slots[: self._tail_size], tail["count"]))
            # New arrays: frozen views hold the old ones.
            self._tail, self._tail_slots, self._tail_size = np.zeros(0, TERM), np.zeros(0, np.int32), 0

    def _add_run(self, run: _Run) -> None:
        runs = self._runs
        while runs and len(runs[-1].slots) < _RATIO * len(run.slots):
            run, runs = _merged(_without_dead(runs[-1], self._live), _without_dead(run, self._live)), runs[:-1]
        self._runs = (*runs, run)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenBm25:
    """The rows of a `Bm25Block` at one moment; any number of threads may ask."""

    size: int
    k1: float
    b: float
    _rows: int
    _length: int
    _lengths: npt.NDArray[np.int32]
    _live: npt.NDArray[np.bool_] | None
    _runs: tuple[_Run, ...]
    _tail: npt.NDArray[Any]
    _tail_slots: npt.NDArray[np.int32]

    def statistics(self, query_terms: npt.NDArray[np.uint32]) -> TermStatistics:
        """Return what `scores` goes by unless it is given something else: the living rows' own statistics."""
        found = self._postings(np.unique(query_terms))
        return self._statistics({term: sum(len(slots) for slots, _ in lists) for term, lists in found})

    def scores(
        self, query_terms: npt.NDArray[np.uint32], *, statistics: TermStatistics | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return every living row that has a term of the query, by rising slot, and its BM25 score, above 0.

        Equal rows score exactly the same, wherever they lie.

        Args:
            query_terms: as `query_terms` returns them; a repeated one counts as often.
            statistics: of a corpus of which this block is a part; terms that it does not know count as those of no row.

        Returns:
            slots `[M]` int64 and scores `[M]` float32.
        """
        asked, repeats = np.unique(query_terms, return_counts=True)
        found = list(self._postings(asked))
        if statistics is None:
            statistics = self._statistics({term: sum(len(slots) for slots, _ in lists) for term, lists in found})
        mean = statistics.length / statistics.rows if statistics.length else 1.0
        base, slope = self.k1 * (1 - self.b), self.k1 * self.b / mean
        total = np.zeros(self.size, np.float32)
        for (term, lists), repeat in zip(found, repeats, strict=True):
            frequency = statistics.frequencies.get(term, 0)
            idf = np.log1p((max(statistics.rows - frequency, 0) + 0.5) / (frequency + 0.5))
            weight = float(repeat * idf * (self.k1 + 1))
            for slots, counts in lists:
                times = counts.astype(np.float32)
                norms = self._lengths[slots] * slope
                norms += base
                norms += times
                times *= weight
                times /= norms
                np.add.at(total, slots, times)
        rows = np.flatnonzero(total > 0)
        return rows, total[rows]

    def _statistics(self, frequencies: Mapping[int, int]) -> TermStatistics:
        return TermStatistics(self._rows, self._length, frequencies)

    def _postings(
        self, terms: npt.NDArray[np.uint32]
    ) -> Iterator[tuple[int, list[tuple[npt.NDArray[np.int32], npt.NDArray[np.uint16]]]]]:
        """Yield every term with the slots and counts of the living rows that have it."""
        places = [np.searchsorted(run.terms, terms).tolist() for run in self._runs]
        tail = np.ascontiguousarray(self._tail["hash"])
        for position, term in enumerate(terms.tolist()):
            lists = []
            for run, place in zip(self._runs, places, strict=True):
                at = place[position]
                if at < len(run.terms) and run.terms[at] == term:
                    part = slice(run.offsets[at], run.offsets[at + 1])
                    lists.append((run.slots[part], run.counts[part]))
            if len(tail):
                hits = np.flatnonzero(tail == term)
                lists.append((self._tail_slots[hits], self._tail["count"][hits]))
            if self._live is not None:
                lists = [(slots[alive], counts[alive]) for slots, counts in lists for alive in [self._live[slots]]]
            yield term, lists
