"""The operations of a search in plain torch, for any device: what runs where Triton does not, and the kernels' twin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from agentdb.kernels.view import View

__all__ = [
    "all_scores",
    "exact_scores",
    "gather",
    "group_max",
    "join",
    "live_rows",
    "maxsim",
    "mmr",
    "near_pairs",
    "rescore_groups",
    "row_ids",
    "segment_scores",
    "split",
]

_CHUNK_BYTES = 1 << 28
_LOWEST = float("-inf")


def split(rows: Any) -> tuple[Any, Any]:
    """Return the two 16-bit planes of float32: the value rounded to bfloat16, and what is left of its bits.

    ``(high << 16) + low`` are the bits of the float32 for every value, so nothing is lost.
    """
    bits = rows.contiguous().view(torch.int32)
    high = (bits + 0x8000) >> 16
    low = bits - (high << 16)
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def join(high: Any, low: Any) -> Any:
    """Return the float32 whose planes these are, bit for bit."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)


def live_rows(bits: Any, rows: int) -> Any:
    """Return `[rows]` bool from one bit a row."""
    words = bits[: -(-rows // 32)]
    return ((words[:, None] >> torch.arange(32, device=bits.device, dtype=torch.int32)) & 1).bool().flatten()[:rows]


def gather(view: View, addresses: Any) -> Any:
    """Return the float32 rows at valid addresses, of their shape and one axis more."""
    flat = addresses.flatten()
    if view.n_slabs == 1:
        return join(view.high[0][flat], view.low[0][flat]).view(*addresses.shape, view.width)
    out = torch.empty((len(flat), view.width), dtype=torch.float32, device=addresses.device)
    slabs = flat // view.slab_rows
    for slab in range(view.n_slabs):
        at = (slabs == slab).nonzero().squeeze(1)
        inside = flat[at] - slab * view.slab_rows
        out[at] = join(view.high[slab][inside], view.low[slab][inside])
    return out.view(*addresses.shape, view.width)


def _column(view: View, kind: tuple[Any, ...], addresses: Any) -> Any:
    """Return one number of each row at valid addresses."""
    if view.n_slabs == 1:
        return kind[0][addresses]
    slabs = addresses // view.slab_rows
    inside = addresses % view.slab_rows
    out = kind[0][inside]
    for slab in range(1, view.n_slabs):
        # A young slab is shorter than an old one, so a place in another slab may not exist in it.
        out = torch.where(slabs == slab, kind[slab][torch.where(slabs == slab, inside, 0)], out)
    return out


def _is_live(view: View, addresses: Any) -> Any:
    slabs = addresses // view.slab_rows
    inside = addresses % view.slab_rows
    words = torch.zeros(addresses.shape, dtype=torch.int32, device=addresses.device)
    for slab in range(view.n_slabs):
        at = torch.where(slabs == slab, inside, 0)  # a young slab is shorter than an old one
        words = torch.where(slabs == slab, view.bits[slab][at >> 5], words)
    return ((words >> (inside & 31).to(torch.int32)) & 1) != 0


def row_ids(view: View, addresses: Any) -> Any:
    """Return the ids of rows, -1 at address -1."""
    return torch.where(addresses >= 0, _column(view, view.ids, addresses.clamp(min=0)), -1)


def _product(queries: Any, rounded: Any, view: View, slab: int, begin: int, end: int) -> Any:
    """Return `[Q, rows]` float32 products: rounded on a GPU, where only that is fast, exact rows elsewhere."""
    high = view.high[slab][begin:end]
    if queries.device.type == "cuda":
        return torch.mm(rounded, high.T, out_dtype=torch.float32)
    return queries @ join(high, view.low[slab][begin:end]).T


def _scan(view: View, queries: Any, rounded: Any, shift: Any, align: int) -> Iterator[tuple[int, Any]]:
    """Yield (first address, scores `[Q, rows]`) over all rows, dead ones at -inf."""
    step = max(align, _CHUNK_BYTES // 4 // max(1, len(queries), view.width) // align * align)
    for slab in range(view.n_slabs):
        rows = view.rows_in(slab)
        live = live_rows(view.bits[slab], rows)
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            scores = _product(queries, rounded, view, slab, begin, end)
            if shift is not None:
                scores -= shift[:, None]
            scores = scores.mul_(view.alpha[slab][begin:end]).add_(view.beta[slab][begin:end])
            yield slab * view.slab_rows + begin, scores.masked_fill_(~live[begin:end], _LOWEST)


def group_max(view: View, queries: Any, rounded: Any, shift: Any, group: int) -> Any:
    """Return `View.maxima` filled: the largest score among each ``group`` consecutive live rows, -inf if none lives.

    Args:
        view: the rows.
        queries: `[Q, width]` float32 (normalised for cosine).
        rounded: `[Q, width]` bfloat16 of the same.
        shift: `[Q]` float32 taken from every product before alpha, or None.
        group: rows of a group, a power of two of at least 8 that divides 128.
    """
    out = view.maxima(len(queries), group, torch)
    for first, scores in _scan(view, queries, rounded, shift, 128):
        short = -scores.shape[1] % group
        whole = torch.nn.functional.pad(scores, (0, short), value=_LOWEST) if short else scores
        best = whole.view(len(queries), -1, group).amax(dim=2)
        out[:, first // group : first // group + best.shape[1]] = best
    return out


def rescore_groups(view: View, queries: Any, groups: Any, shift: Any, group: int) -> Any:
    """Return `[Q, C * group]` float32 scores of all rows of the selected groups `[Q, C]`; dead rows at -inf."""
    n_queries = len(queries)
    addresses = (groups[:, :, None] * group + torch.arange(group, device=groups.device)).view(n_queries, -1)
    known = addresses < view.n_rows
    addresses = torch.where(known, addresses, 0)
    out = torch.empty(addresses.shape, dtype=torch.float32, device=queries.device)
    step = max(1, _CHUNK_BYTES // 4 // (addresses.shape[1] * view.width))
    for begin in range(0, n_queries, step):
        part = slice(begin, begin + step)
        out[part] = torch.bmm(gather(view, addresses[part]), queries[part, :, None]).squeeze(2)
    if shift is not None:
        out -= shift[:, None]
    out = out * _column(view, view.alpha, addresses) + _column(view, view.beta, addresses)
    return out.masked_fill_(~(known & _is_live(view, addresses)), _LOWEST)


def exact_scores(view: View, queries: Any, norms: Any, addresses: Any) -> Any:
    """Return `[Q, C]` float64 scores computed in float64 from the stored rows; -inf at address -1.

    Args:
        view: the rows.
        queries: `[Q, width]` float32 as the caller gave them.
        norms: `[Q]` float64 norms of the queries.
        addresses: `[Q, C]` int64, -1 where there is no candidate.
    """
    known = addresses >= 0
    addresses = addresses.clamp(min=0)
    out = torch.empty(addresses.shape, dtype=torch.float64, device=queries.device)
    step = max(1, _CHUNK_BYTES // 8 // (max(1, addresses.shape[1]) * view.width))
    for begin in range(0, len(queries), step):
        part = slice(begin, begin + step)
        rows = gather(view, addresses[part]).double()
        out[part] = _similar(view, rows, queries[part].double()[:, None, :], norms[part, None])
    if view.weight_table is not None:
        out = out * _column(view, view.weight, addresses).double() + _column(view, view.bias, addresses).double()
    return out.masked_fill_(~known, _LOWEST)


def _similar(view: View, rows: Any, queries: Any, norms: Any) -> Any:
    """Return similarities over the last axis in float64, by a sum whose order depends on the width alone."""
    if view.metric == "l2":
        return -(rows - queries).square_().sum(-1)
    dots = (rows * queries).sum(-1)
    if view.metric == "dot":
        return dots
    both = rows.square().sum(-1).sqrt_() * norms
    return torch.where(both > 0, dots / both.where(both > 0, 1.0), 0.0)


def all_scores(view: View, query: Any, norm: Any) -> Iterator[tuple[int, Any]]:
    """Yield (first address, `[rows]` float64 scores) of one query over all rows, dead ones at -inf: the last resort."""
    step = max(128, _CHUNK_BYTES // 32 // view.width // 128 * 128)
    for slab in range(view.n_slabs):
        rows = view.rows_in(slab)
        live = live_rows(view.bits[slab], rows)
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            found = _similar(
                view, join(view.high[slab][begin:end], view.low[slab][begin:end]).double(), query.double(), norm
            )
            if view.weight_table is not None:
                found = found * view.weight[slab][begin:end].double() + view.bias[slab][begin:end].double()
            yield slab * view.slab_rows + begin, found.masked_fill_(~live[begin:end], _LOWEST)


def segment_scores(view: View, rounded: Any, shift: Any, tiles: Any, pages: Any, width: int, most: int) -> Any:
    """Return `[Q, width]` float32: scores of each query against its owner's pages in their order, -inf elsewhere.

    Args:
        view: the rows.
        rounded: `[Q, width]` queries, those of one owner side by side (normalised for cosine).
        shift: `[Q]` or None, as in `group_max`.
        tiles: `[T, 4]` int64: first query, number of queries, first slot in ``pages``, number of pages.
        pages: `[P]` int64 page numbers.
        width: columns, a multiple of the page and at least the rows of the largest segment.
        most: the largest number of queries of a tile.
    """
    del most
    out = torch.full((len(rounded), width), _LOWEST, dtype=torch.float32, device=rounded.device)
    inside = torch.arange(view.page, device=rounded.device)
    for first, count, slot, n_pages in tiles.tolist():
        if not n_pages:
            continue
        addresses = (pages[slot : slot + n_pages, None] * view.page + inside).flatten()
        part = rounded[first : first + count].float() @ gather(view, addresses).T
        if shift is not None:
            part -= shift[first : first + count, None]
        part = part * _column(view, view.alpha, addresses) + _column(view, view.beta, addresses)
        out[first : first + count, : len(addresses)] = part.masked_fill_(~_is_live(view, addresses), _LOWEST)
    return out


def maxsim(queries: Any, weights: Any, tokens: Any, offsets: Any, longest: int) -> Any:
    """Return `[Q, N]` float32: the weighted sum over query tokens of the best document token's dot product.

    Args:
        queries: `[Q, Tq, width]`.
        weights: `[Q, Tq]` float32.
        tokens: `[T, width]`, the same dtype.
        offsets: `[N + 1]` int64.
        longest: the most tokens of a document.
    """
    del longest
    n_queries, query_tokens, width = queries.shape
    n_docs = len(offsets) - 1
    lengths = offsets[1:] - offsets[:-1]
    owner = torch.repeat_interleave(torch.arange(n_docs, device=tokens.device), lengths)
    best = torch.full((n_queries * query_tokens, n_docs), _LOWEST, dtype=torch.float32, device=tokens.device)
    flat = queries.reshape(-1, width)
    step = max(1, _CHUNK_BYTES // 4 // max(1, len(flat)))
    for begin in range(0, len(tokens), step):
        part = flat.float() @ tokens[begin : begin + step].float().T
        best.scatter_reduce_(1, owner[begin : begin + step].expand(len(flat), -1), part, "amax")
    best = best.view(n_queries, query_tokens, n_docs)
    weighted = torch.where(weights[:, :, None] != 0, best * weights[:, :, None], 0.0)
    return torch.where(lengths > 0, weighted.sum(dim=1), _LOWEST)


def mmr(gram: Any, relevance: Any, k: int, weight: float) -> Any:
    """Return `[Q, K]` int64 positions chosen greedily, -1 where no candidate was left; ties to the earlier one.

    Args:
        gram: `[Q, C, C]` cosines.
        relevance: `[Q, C]` of the same dtype, -inf where there is no candidate.
        k: steps.
        weight: 1 is relevance only.
    """
    free = relevance > _LOWEST
    value = torch.where(free, relevance, 0.0)
    nearest = torch.full_like(value, _LOWEST)
    chosen = torch.full((len(relevance), k), -1, dtype=torch.int64, device=gram.device)
    places = torch.arange(relevance.shape[1], device=gram.device)
    for step in range(k):
        penalty = torch.where(nearest > _LOWEST, nearest, 0.0)
        score = torch.where(free, weight * value - (1 - weight) * penalty, _LOWEST)
        pick = score.argmax(dim=1, keepdim=True)
        # argmax promises no order among equals.
        pick = torch.where(score == score.gather(1, pick), places, len(places)).amin(dim=1, keepdim=True)
        has = free.any(dim=1, keepdim=True)
        chosen[:, step : step + 1] = torch.where(has, pick, -1)
        row = gram.gather(1, pick[:, :, None].expand(-1, -1, gram.shape[2])).squeeze(1)
        nearest = torch.where(has, torch.maximum(nearest, row), nearest)
        free = free.scatter(1, pick, value=False)
    return chosen


def near_pairs(rows: Any, scale: Any, threshold: float) -> Any:
    """Return `[P, 2]` int64 pairs i < j, in no order, whose scaled product of rounded rows reaches the threshold.

    Args:
        rows: `[N, width]` bfloat16 on a GPU, float32 elsewhere.
        scale: `[N]` float32, one over the norm.
        threshold: of the scaled product.
    """
    n = len(rows)
    step = max(1, min(4096, _CHUNK_BYTES // 4 // max(1, n)))
    found = []
    for begin in range(0, n, step):
        part = rows[begin : begin + step]
        if rows.dtype == torch.float32:
            scores = part @ rows[begin:].T
        else:
            scores = torch.mm(part, rows[begin:].T, out_dtype=torch.float32)
        scores *= scale[begin : begin + step, None]
        scores *= scale[None, begin:]
        at = (scores >= threshold).triu(1).nonzero()
        found.append(at + begin)
    return torch.cat(found) if found else torch.empty((0, 2), dtype=torch.int64, device=rows.device)
