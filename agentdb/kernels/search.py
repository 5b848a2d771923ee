"""How a search over the rows of one moment runs: candidates, exact scores, and the proof that nothing is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError
from agentdb.kernels.choice import Backend, choose, require_torch, triton_ops
from agentdb.kernels.replay import Replay, Replays
from agentdb.kernels.view import PAGE, View

__all__ = ["Neighbours", "SearchCounts", "Searcher"]

_SCORE_BYTES = 1 << 29
_WIDEST_ROWS = 1 << 18
_SHARED_BYTES = 1 << 28
_SECOND_CHANCE = 127
_LARGEST_NORM = 1e19
"""Half its square is still a float32."""
_LARGEST_SCORE = 1e38

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SearchCounts:
    """How many queries needed what.

    Attributes:
        queries: all.
        widened: those whose first candidates could not be proved complete, so that more were scored.
        scanned: those for which every row was scored in float64.
        replayed: those that a captured graph answered first.
    """

    queries: int = 0
    widened: int = 0
    scanned: int = 0
    replayed: int = 0

    def __add__(self, other: SearchCounts) -> SearchCounts:
        return SearchCounts(
            self.queries + other.queries,
            self.widened + other.widened,
            self.scanned + other.scanned,
            self.replayed + other.replayed,
        )


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The exact K best rows of each query, best first, ties by lower id.

    Attributes:
        ids: `[Q, K]` int64, -1 where there was no further row.
        scores: `[Q, K]` float32 (computed in float64), -inf there.
        counts: how the result was proved complete.
    """

    ids: Ids
    scores: npt.NDArray[np.float32]
    counts: SearchCounts


@dataclass(frozen=True, slots=True)
class _Launched:
    """A search under way on the device.

    Attributes:
        table: `[Q, 2 K + 1]` int64: ids, the bits of the float64 scores, and doubt (1: not proved, 2: beyond float32).
        q: the queries.
        scores: approximate scores of the candidates.
        where: which rows their columns stand for.
        maxima: the group maxima and the size of a group, or None where ``scores`` has every row.
    """

    table: Any
    q: _Queries
    scores: Any
    where: _GroupAddresses | _SegmentAddresses
    maxima: tuple[Any, int] | None


class _Begun:
    """A search whose answer is on its way to the host."""

    def __init__(self, launched: _Launched, replay: Replay | None, torch: Any) -> None:
        self.launched = launched
        self._replay = replay
        self._event = None
        if replay is None:
            table = launched.table
            self._host = table
            if table.is_cuda:
                self._host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
                self._host.copy_(table, non_blocking=True)
                self._event = torch.cuda.Event()
                self._event.record()

    @property
    def is_replay(self) -> bool:
        return self._replay is not None

    def result(self) -> npt.NDArray[np.int64]:
        """Wait; the one place where the host does."""
        if self._replay is not None:
            return self._replay.result()
        if self._event is not None:
            self._event.synchronize()
        table: npt.NDArray[np.int64] = self._host.numpy()
        return table

    def release(self) -> None:
        """Give a captured search back; any number of times."""
        replay, self._replay = self._replay, None
        if replay is not None:
            replay.release()


class Searcher:
    """Exact searches on one device; holds no rows.

    Args:
        device: a torch device.
        dimension: D of the queries.
        width: D as stored, padded.
        prefer: "torch" leaves Triton aside.
    """

    def __init__(self, device: Any, dimension: int, width: int, prefer: Backend | None) -> None:
        self._torch = require_torch()
        self.device = device
        self._dimension = dimension
        self._width = width
        self._prefer = prefer
        self._modules: dict[str, Any] = {}
        self._can_capture = device.type == "cuda" and hasattr(self._ops("prepare_queries"), "prepare_queries")
        self._replay_bytes = 0
        if self._can_capture:
            memory = self._torch.cuda.get_device_properties(device).total_memory
            self._replay_bytes = min(1 << 30, memory // 32)

    def replays(self) -> Replays | None:
        """Return what to keep beside an index, so that searches of it can be captured; None where they cannot."""
        return Replays(self._replay_bytes) if self._can_capture else None

    def flat(self, view: View, replays: Replays | None, given: Any, k: int) -> Neighbours:
        """Return the exact K best of all rows for queries of the device `[Q, D]`."""
        group = _group_rows(view.n_rows, k, self._width)
        chosen = k + _spare(k)
        step = max(1, _SCORE_BYTES // 4 // max(view.n_groups(group), chosen * group))
        kept = 5 * min(step, len(given)) * (view.capacity // group + chosen * group)

        def launch(over: View, plain: Any, _numbers: Any, _pages: Any) -> _Launched:
            q = self._prepare(over, plain)
            maxima = self._ops("group_max").group_max(over, q.scan, q.rounded, q.shift, group)
            return self._from_groups(over, q, k, maxima, group, chosen)

        parts = []
        for first in range(0, len(given), step):
            part = given[first : first + step]
            key = ("flat", len(part), k, group)
            begun = self._begin(view, replays, key, kept, part, None, None, k, launch)
            parts.append(self._settle(view, begun, k))
        return _joined(parts)

    def segments(
        self, view: View, replays: Replays | None, given: Any, owners: Ids, first: Ids, n_pages: Ids, pages: Any, k: int
    ) -> Neighbours:
        """Return the exact K best rows among each query's own pages.

        Args:
            view: the rows.
            replays: where searches over these rows are captured, or None.
            given: `[Q, D]` of the device.
            owners: `[Q]`.
            first: `[Q]` slot in ``pages`` of the first page of each query's owner.
            n_pages: `[Q]` pages of that owner.
            pages: `[P]` int64 page numbers, on the device.
            k: results.
        """
        width = None
        if len(owners) * int(n_pages.max()) * PAGE * 4 > _SHARED_BYTES:
            # Segments of a like length share a matrix of scores.
            width = np.where(n_pages > 0, np.ceil(np.log2(np.maximum(n_pages, 1)) / 4).astype(np.int64), -1)
        order = None
        if width is not None or (owners[1:] < owners[:-1]).any():
            order = np.argsort(owners, kind="stable") if width is None else np.lexsort((owners, width))
            owners, first, n_pages = owners[order], first[order], n_pages[order]
            given = given[self._torch.from_numpy(order).to(given.device)]
        ends = [len(owners)] if width is None else [*(np.flatnonzero(np.diff(width[order])) + 1), len(owners)]
        parts: list[Neighbours] = []
        waiting: list[_Begun] = []
        done = held = 0
        try:
            for end in ends:
                # Rounded up, so that batches that differ a little are one launch.
                columns = _round_up(int(n_pages[done:end].max())) * PAGE
                if not columns:
                    parts.append(_nothing(end - done, k))  # they sort first
                    done = end
                step = max(1, _SCORE_BYTES // 4 // max(columns, 1))
                for begin in range(done, end, step):
                    part = slice(begin, min(begin + step, end))
                    if held + (part.stop - begin) * columns > _SCORE_BYTES // 4:
                        parts += [self._settle(view, one, k) for one in waiting]
                        waiting, held = [], 0
                    held += (part.stop - begin) * columns
                    waiting.append(
                        self._begin_segments(
                            view, replays, given[part], owners[part], first[part], n_pages[part], pages, columns, k
                        )
                    )
                done = end
            parts += [self._settle(view, one, k) for one in waiting]
        finally:
            for one in waiting:
                one.release()
        result = _joined(parts)
        if order is None:
            return result
        ids, scores = np.empty_like(result.ids), np.empty_like(result.scores)
        ids[order], scores[order] = result.ids, result.scores
        return Neighbours(ids, scores, result.counts)

    def rows(self, view: View, given: Any, allowed: Ids, k: int) -> Neighbours:
        """Search a few rows, given by their addresses, by scoring each of them in float64."""
        if not len(allowed):
            return _nothing(len(given), k)
        q = self._prepare(view, self._pad(given))
        rows = self._torch.from_numpy(allowed).to(self.device)
        step = max(1, _SCORE_BYTES // 64 // len(allowed))
        parts = []
        for begin in range(0, len(given), step):
            part = q.part(begin, begin + step)
            at = rows.expand(len(part.plain), -1).contiguous()
            exact = self._ops("exact_scores").exact_scores(view, part.plain, part.norms, at)
            best, ids, _ = self._rank(view, exact, at, k)
            parts.append(
                Neighbours(ids.cpu().numpy(), best.float().cpu().numpy(), SearchCounts(len(part.plain)))
            )  # fmt: skip
        return _joined(parts)

    # --- the steps

    def _ops(self, operation: str) -> Any:
        found = self._modules.get(operation)
        if found is None:
            from agentdb.kernels import torch_ops

            is_triton = choose(operation, self.device, prefer=self._prefer).backend == "triton"
            found = self._modules[operation] = triton_ops() if is_triton else torch_ops
        return found

    def _pad(self, given: Any) -> Any:
        if self._width != self._dimension:
            given = self._torch.nn.functional.pad(given, (0, self._width - self._dimension))
        return given.contiguous()

    def _prepare(self, view: View, plain: Any) -> _Queries:
        ops = self._ops("prepare_queries")
        if hasattr(ops, "prepare_queries"):
            return _Queries(plain, *ops.prepare_queries(view, plain))
        return _Queries.of(view, plain, self._torch)

    def _begin(
        self,
        view: View,
        replays: Replays | None,
        key: Hashable,
        kept_bytes: int,
        given: Any,
        numbers: Ids | None,
        pages: Any,
        k: int,
        launch: Callable[[View, Any, Any, Any], _Launched],
    ) -> _Begun:
        """Start a search: as a captured graph where there is one, launch by launch otherwise."""
        replay = None
        if replays is not None:
            n_numbers = 0 if numbers is None else len(numbers)
            replay = replays.take(
                view, key, kept_bytes, lambda: Replay(view, pages, len(given), n_numbers, 2 * k + 1, launch)
            )
        if replay is None:
            sent = None if numbers is None else self._torch.from_numpy(numbers).to(self.device)
            return _Begun(launch(view, self._pad(given), sent, pages), None, self._torch)
        begun = _Begun(replay.launched, replay, self._torch)
        try:
            replay.run(view, pages, given, numbers)
        except BaseException:
            begun.release()
            raise
        return begun

    def _begin_segments(
        self,
        view: View,
        replays: Replays | None,
        given: Any,
        owners: Ids,
        first: Ids,
        n_pages: Ids,
        pages: Any,
        columns: int,
        k: int,
    ) -> _Begun:
        tiles, most = _tiles(owners, first, n_pages)
        n_queries = len(given)
        n_tiles = min(n_queries, _round_up(len(tiles)))
        numbers = np.zeros(4 * n_tiles + n_queries, np.int64)
        numbers[: tiles.size] = tiles.ravel()
        numbers[4 * n_tiles :] = first

        def launch(over: View, plain: Any, sent: Any, of_owners: Any) -> _Launched:
            q = self._prepare(over, plain)
            scores = self._ops("segment_scores").segment_scores(
                over, q.rounded, q.shift, sent[: 4 * n_tiles].view(-1, 4), of_owners, columns, most
            )
            where = _SegmentAddresses(of_owners, sent[4 * n_tiles :], PAGE)
            return self._judge(over, q, k, scores, where, None, None, k + _spare(k))

        key = ("segments", n_queries, k, n_tiles, columns, most > 1)
        return self._begin(view, replays, key, 5 * n_queries * columns, given, numbers, pages, k, launch)

    def _from_groups(self, view: View, q: _Queries, k: int, maxima: Any, group: int, chosen: int) -> _Launched:
        """Search the groups that can hold the answer."""
        n_groups = maxima.shape[1]
        outside = None
        if n_groups <= chosen:
            groups = self._torch.arange(n_groups, device=self.device).expand(len(maxima), -1).contiguous()
        else:
            groups, outside = self._top(maxima, chosen + 1)
            outside = outside[:, chosen:]
            groups = groups[:, :chosen].contiguous()
        scores = self._ops("rescore_groups").rescore_groups(view, q.scan, groups, q.shift, group)
        return self._judge(view, q, k, scores, _GroupAddresses(groups, group), outside, (maxima, group), chosen)

    def _top(self, table: Any, count: int) -> tuple[Any, Any]:
        """Return the columns and values of the ``count`` largest of every row, or a few more, best first."""
        ops = self._ops("top")
        if hasattr(ops, "top"):
            found: tuple[Any, Any] | None = ops.top(table, count)
            if found is not None:
                return found
        best = table.topk(count, dim=1)
        return best.indices, best.values

    def _judge(
        self,
        view: View,
        q: _Queries,
        k: int,
        scores: Any,
        where: _GroupAddresses | _SegmentAddresses,
        outside: Any,
        maxima: tuple[Any, int] | None,
        keep: int,
    ) -> _Launched:
        """Rank the best candidates in float64 and tell which queries' answers are proved complete.

        The first column of ``outside`` bounds the approximate scores of the rows that are not among the candidates. The
        answer stands where both they and the candidates past ``keep`` stay below the K-th exact score by more than the
        rounding can have moved them.
        """
        torch = self._torch
        n_columns = scores.shape[1]
        keep = min(keep, n_columns)
        if n_columns > keep:
            columns, values = self._top(scores, keep + 1)
        else:
            columns, values = torch.arange(keep, device=self.device).expand(len(scores), -1).contiguous(), scores
        ops = self._ops("finish")
        if k <= keep <= getattr(ops, "LARGEST_FINISH", 0):
            if isinstance(where, _SegmentAddresses):
                places, first = where.pages, where.first
            else:
                places, first = where.groups, None
            table = ops.finish(view, q, columns, values, outside, places, first, keep, k, where.group)
        else:
            addresses = torch.where(values[:, :keep] > -math.inf, where.of(columns[:, :keep]), -1)
            exact = self._ops("exact_scores").exact_scores(view, q.plain, q.norms, addresses)
            best, ids, last = self._rank(view, exact, addresses, k)
            left = torch.full_like(last, -math.inf) if outside is None else outside[:, 0].double()
            if n_columns > keep:
                left = torch.maximum(left, values[:, keep].double())
            sure = (left == -math.inf) | (left + q.rounding(view) < last)
            is_sound = (q.norms <= _LARGEST_NORM) & (q.largest(view) <= _LARGEST_SCORE)
            doubt = torch.where(is_sound, (~sure).long(), 2)
            table = torch.cat([ids, best.view(torch.int64), doubt[:, None]], dim=1)
        return _Launched(table, q, scores, where, maxima)

    def _settle(self, view: View, begun: _Begun, k: int) -> Neighbours:
        """Wait for the answers; the doubtful queries are done again with every row that could reach them."""
        try:
            host = begun.result()
            doubtful = np.flatnonzero(host[:, 2 * k])
            if len(doubtful) and (host[doubtful, 2 * k] == 2).any():
                raise InvalidInputError("queries must be finite, and no score of theirs too large for float32")
            ids, best = host[:, :k].copy(), host[:, k : 2 * k].copy().view(np.float64)
            scanned = self._redo(view, begun.launched, doubtful, ids, best) if len(doubtful) else 0
            replayed = len(ids) if begun.is_replay else 0
        finally:
            begun.release()
        counts = SearchCounts(len(ids), len(doubtful) - scanned, scanned, replayed)
        return Neighbours(ids, best.astype(np.float32), counts)

    def _redo(
        self, view: View, launched: _Launched, doubtful: npt.NDArray[np.intp], ids: Ids, best: npt.NDArray[np.float64]
    ) -> int:
        """Put the complete answers of doubtful queries in place; return for how many all rows were scored."""
        torch = self._torch
        k = ids.shape[1]
        if k + _spare(k) < _SECOND_CHANCE:
            # Most doubts end with a few times as many candidates, for which no table has to be looked through.
            which = torch.from_numpy(doubtful).to(self.device)
            again = launched.q.only(which)
            if launched.maxima is None:
                where = launched.where.only(which)
                second = self._judge(view, again, k, launched.scores[which], where, None, None, _SECOND_CHANCE)
            else:
                table, group = launched.maxima
                second = self._from_groups(view, again, k, table[which], group, _SECOND_CHANCE)
            host = second.table.cpu().numpy()
            ids[doubtful], best[doubtful] = host[:, :k], host[:, k : 2 * k].copy().view(np.float64)
            doubtful = doubtful[host[:, 2 * k] != 0]
            if not len(doubtful):
                return 0
        which = torch.from_numpy(doubtful).to(self.device)
        again = launched.q.only(which)
        floor = (torch.from_numpy(best[doubtful, -1]).to(self.device) - again.rounding(view)).float()
        floor = torch.nextafter(floor, torch.full_like(floor, -math.inf))
        scanned = 0
        for begin, rows in self._widen(view, again, launched, which, floor):
            if rows is None:
                scanned += 1
                one = again.part(begin, begin + 1)
                found, names = self._scan_all(view, one, k)
            else:
                one = again.part(begin, begin + len(rows))
                exact = self._ops("exact_scores").exact_scores(view, one.plain, one.norms, rows)
                found, names, _ = self._rank(view, exact, rows, k)
            at = doubtful[begin : begin + len(found)]
            best[at], ids[at] = found.cpu().numpy(), names.cpu().numpy()
        return scanned

    def _widen(
        self, view: View, q: _Queries, launched: _Launched, doubtful: Any, floor: Any
    ) -> Iterator[tuple[int, Any]]:
        """Yield (first query, addresses of all rows that can reach the floor), or None for a query with too many."""
        if launched.maxima is None:
            yield from self._reaching(launched.scores[doubtful], launched.where.only(doubtful), floor, 0)
            return
        table, group = launched.maxima[0][doubtful], launched.maxima[1]
        needed = (table >= floor[:, None]).sum(dim=1).tolist()
        begin = 0
        while begin < len(needed):
            most = needed[begin]
            if most * group > _WIDEST_ROWS:
                yield begin, None
                begin += 1
                continue
            end = begin + 1
            while end < len(needed):
                wider = max(most, needed[end])
                if wider * group > _WIDEST_ROWS or wider * group * (end + 1 - begin) * 4 > _SCORE_BYTES:
                    break
                most, end = wider, end + 1
            groups = table[begin:end].topk(most, dim=1).indices
            some = q.part(begin, end)
            found = self._ops("rescore_groups").rescore_groups(view, some.scan, groups, some.shift, group)
            yield from self._reaching(found, _GroupAddresses(groups, group), floor[begin:end], begin)
            begin = end

    def _reaching(
        self, scores: Any, where: _GroupAddresses | _SegmentAddresses, floor: Any, first: int
    ) -> Iterator[tuple[int, Any]]:
        """Yield (first query, addresses `[q, C]` of the columns that reach the floor, -1 where there are fewer)."""
        reach = scores >= floor[:, None]
        most = int(reach.sum(dim=1).max())
        step = max(1, _SCORE_BYTES // 64 // max(1, most))
        for begin in range(0, len(scores), step):
            part = slice(begin, begin + step)
            columns = scores[part].topk(most, dim=1).indices
            rows = where.only(part).of(columns)
            yield first + begin, self._torch.where(reach[part].gather(1, columns), rows, -1)

    def _scan_all(self, view: View, q: _Queries, k: int) -> tuple[Any, Any]:
        """Return the exact top K of one query over every row, by float64 alone."""
        torch = self._torch
        from agentdb.kernels import torch_ops

        best = torch.full((1, k), -math.inf, dtype=torch.float64, device=self.device)
        addresses = torch.full((1, k), -1, dtype=torch.int64, device=self.device)
        ids = addresses
        for first, found in torch_ops.all_scores(view, q.plain[0], q.norms[0]):
            rows = torch.arange(first, first + len(found), device=self.device)
            merged = torch.cat([best, found[None]], dim=1)
            at = torch.cat([addresses, torch.where(found > -math.inf, rows, -1)[None]], dim=1)
            order = torch_ops.row_ids(view, at).argsort(dim=1, stable=True)
            order = order.gather(1, merged.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
            best, addresses = merged.gather(1, order), at.gather(1, order)
            ids = torch_ops.row_ids(view, addresses)
        return best, ids

    def _rank(self, view: View, exact: Any, addresses: Any, k: int) -> tuple[Any, Any, Any]:
        """Return the K best (scores, ids) and the K-th score, -inf where fewer rows are known."""
        torch = self._torch
        from agentdb.kernels import torch_ops

        ids = torch_ops.row_ids(view, addresses)
        ids, order = ids.sort(dim=1)
        best, places = exact.gather(1, order).sort(dim=1, descending=True, stable=True)
        best, ids = best[:, :k], ids.gather(1, places[:, :k])
        ids = torch.where(best > -math.inf, ids, -1)
        short = k - best.shape[1]
        if short > 0:
            best = torch.nn.functional.pad(best, (0, short), value=-math.inf)
            ids = torch.nn.functional.pad(ids, (0, short), value=-1)
        return best, ids, best[:, k - 1]


@dataclass(frozen=True, slots=True)
class _Queries:
    """A batch of queries in the forms that the steps of a search need."""

    plain: Any  # [Q, width] float32, as given
    scan: Any  # [Q, width] float32, normalised for cosine
    rounded: Any  # [Q, width] bfloat16 of scan
    shift: Any  # [Q] float32 or None
    norms: Any  # [Q] float64 of plain
    sizes: Any  # [Q, 3] float64: |scan|, |scan - rounded|, |shift|

    @classmethod
    def of(cls, view: View, plain: Any, torch: Any) -> _Queries:
        """Return the forms of `[Q, width]` float32."""
        exact = plain.double()
        norms = exact.square().sum(1).sqrt_()
        if not bool((norms <= _LARGEST_NORM).all()):
            raise InvalidInputError("queries must be finite")
        scan = plain
        if view.metric == "cosine":
            scan = (exact / norms.where(norms > 0, 1.0)[:, None]).float()
        rounded = scan.to(torch.bfloat16)
        is_l2 = view.metric == "l2"
        shift = (norms.square() / 2).float() if is_l2 else None
        wide = scan.double()
        sizes = torch.stack(
            [
                wide.square().sum(1).sqrt_(),
                (wide - rounded.double()).square_().sum(1).sqrt_(),
                norms.square() / 2 if is_l2 else torch.zeros_like(norms),
            ],
            dim=1,
        )
        return cls(plain, scan, rounded, shift, norms, sizes)

    def _map(self, pick: Any) -> _Queries:
        return _Queries(
            self.plain[pick],
            self.scan[pick],
            self.rounded[pick],
            None if self.shift is None else self.shift[pick],
            self.norms[pick],
            self.sizes[pick],
        )

    def part(self, begin: int, end: int) -> _Queries:
        """Return a run of the queries."""
        return self._map(slice(begin, end))

    def only(self, which: Any) -> _Queries:
        """Return some of the queries."""
        return self._map(which)

    def largest(self, view: View) -> Any:
        """Return `[Q]` float64: what no approximate score, nor what it is computed from, is larger than."""
        size, _, shift = self.sizes.unbind(1)
        lost, kept, factor, summand = view.limits.unbind(0)
        return size * (kept + lost) + summand + 2 * shift * factor

    def rounding(self, view: View) -> Any:
        """Return `[Q]` float64: how far an approximate score can lie from the exact one.

        With x = h + e and q = r + f (rounded and rest), q·x - r·h = q·e + f·h, so Cauchy and Schwarz bound it by
        |q||e| + |f||h|. Sums in float32, by the matrix unit too, add at most 2^-22 a term; scaling a few ulp more;
        products below the smallest normal number may be flushed.
        """
        size, rest, shift = self.sizes.unbind(1)
        lost, kept, factor, summand = view.limits.unbind(0)
        terms = view.width + 8
        return (
            size * lost
            + rest * kept
            + terms * 2.0**-22 * size * (kept + lost)
            + 2.0**-21 * (summand + shift * factor)
            + terms * 2.0**-125 * factor
        )


@dataclass(frozen=True, slots=True)
class _GroupAddresses:
    """Columns of scores that stand for the rows of selected groups."""

    groups: Any
    group: int

    def of(self, columns: Any) -> Any:
        """Return the addresses behind columns `[Q, C]`."""
        return self.groups.gather(1, columns // self.group) * self.group + columns % self.group

    def only(self, which: Any) -> _GroupAddresses:
        """Return those of some queries."""
        return _GroupAddresses(self.groups[which], self.group)


@dataclass(frozen=True, slots=True)
class _SegmentAddresses:
    """Columns of scores that stand for the rows of an owner's pages, in their order."""

    pages: Any
    first: Any
    group: int

    def of(self, columns: Any) -> Any:
        """Return the addresses behind columns `[Q, C]`; a column past the last page gives any."""
        slot = (self.first[:, None] + columns // self.group).clamp(max=len(self.pages) - 1)
        return self.pages[slot] * self.group + columns % self.group

    def only(self, which: Any) -> _SegmentAddresses:
        """Return those of some queries."""
        return _SegmentAddresses(self.pages, self.first[which], self.group)


def _tiles(owners: Ids, begin: Ids, n_pages: Ids) -> tuple[Ids, int]:
    """Return work items `[T, 4]` (first query, queries, first slot, pages) of at most 16 queries of one owner."""
    starts = np.flatnonzero(np.concatenate([[True], owners[1:] != owners[:-1]]))
    if len(starts) == len(owners):
        return np.stack([starts, np.ones_like(starts), begin, n_pages], axis=1).astype(np.int64), 1
    lengths = np.diff(np.append(starts, len(owners)))
    pieces = -(-lengths // 16)
    rank = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = np.repeat(starts, pieces) + rank * 16
    count = np.minimum(16, np.repeat(starts + lengths, pieces) - first)
    return np.stack([first, count, begin[first], n_pages[first]], axis=1).astype(np.int64), int(count.max())


def _group_rows(n_rows: int, k: int, width: int) -> int:
    """Return how many rows share a maximum: what balances writing maxima against scoring the groups chosen."""
    # Half of what the two costs alone would ask for: more, smaller groups make the certificate stronger.
    best = math.sqrt(6 * n_rows / (2 * k * width))
    return 1 << min(7, max(3, round(math.log2(max(best, 1.0)))))


def _spare(k: int) -> int:
    """Return how many candidates to take beyond k, so that the certificate seldom fails."""
    return 16 + k // 2


def _round_up(count: int) -> int:
    """Return the next number of four binary digits and zeros: at most an eighth more."""
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step


def _nothing(n_queries: int, k: int) -> Neighbours:
    return Neighbours(
        np.full((n_queries, k), -1, np.int64), np.full((n_queries, k), -np.inf, np.float32), SearchCounts(n_queries)
    )


def _joined(parts: list[Neighbours]) -> Neighbours:
    if len(parts) == 1:
        return parts[0]
    return Neighbours(
        np.concatenate([one.ids for one in parts]),
        np.concatenate([one.scores for one in parts]),
        sum((one.counts for one in parts), SearchCounts()),
    )
