"""Launches the Triton programs with tensors: the same signatures as `torch_ops`."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from agentdb.kernels import triton_kernels as programs
from agentdb.kernels.view import METRICS, View

__all__ = [
    "LARGEST_FINISH",
    "exact_scores",
    "finish",
    "group_max",
    "maxsim",
    "mmr",
    "near_pairs",
    "prepare_queries",
    "rescore_groups",
    "segment_scores",
    "top",
]

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _block(width: int, largest: int = 128) -> int:
    """Return the largest power of two that divides the padded width."""
    size = largest
    while width % size:
        size //= 2
    return size


def unrolled_block(width: int, largest: int) -> int:
    """Return the columns that a program takes at a time whose loop is unrolled.

    From 1,024 columns on the registers hold the loads of blocks half as large only.
    """
    return _block(width, largest if width < 1024 else largest // 2)


def group_max(view: View, queries: Any, rounded: Any, shift: Any, group: int) -> Any:
    """See `torch_ops.group_max`."""
    n_queries = len(queries)
    out = view.maxima(n_queries, group, torch)
    depth = view.width
    # Measured on an H100 (benchmarks/gpu_search.py --tune): the copy engine wins once the matrix unit is the limit.
    if n_queries > 64 and depth % 64 == 0 and _has_tma(queries.device):
        for slab in range(view.n_slabs):
            rows = view.rows_in(slab)
            tiles = triton.cdiv(n_queries, 128) * triton.cdiv(rows, 128)
            programs.group_max_tma[(min(tiles, 2 * _processors(queries.device)),)](
                TensorDescriptor.from_tensor(rounded, [128, 64]), TensorDescriptor.from_tensor(view.high[slab], [128, 64]),
                view.table, shift if shift is not None else queries, view.count, out,
                n_queries, out.shape[1], view.slab_rows, view.n_slabs, slab,
                D=depth, BR=128, BQ=128, BK=64, G=group, SHIFT=shift is not None, WIDE=_INTERPRETED,
                num_warps=4, num_stages=3,
            )  # fmt: skip
        return out
    rows_block, query_block, stages = (128, 16, 2) if n_queries <= 16 else (max(64, group), 64, 4)
    if _INTERPRETED:
        rows_block, query_block = max(group, 32), 16
    programs.group_max[(triton.cdiv(n_queries, query_block) * triton.cdiv(view.n_rows, rows_block),)](
        rounded, view.table, shift if shift is not None else queries, view.count, out,
        n_queries, out.shape[1], view.slab_rows, view.n_slabs,
        D=depth, BR=rows_block, BQ=query_block, BK=_block(depth, 64), G=group,
        SHIFT=shift is not None, WIDE=_INTERPRETED, STAGES=stages, num_warps=4,
    )  # fmt: skip
    return out


_SUPER = 32
_MOST_SORTED = 256 if _INTERPRETED else 4096


def top(table: Any, count: int) -> tuple[Any, Any] | None:
    """Return columns `[Q, M]` int64 and values of the M >= ``count`` largest of every row, best first.

    None where one program cannot sort what there is. By the lemma the M best lie in the M blocks with the best maxima.
    """
    n_queries, n_columns = table.shape
    most = triton.next_power_of_2(count)
    if most > 128 or most > n_columns or not table.is_contiguous():
        return None
    supers, n_candidates = table, n_columns
    if n_columns > _MOST_SORTED or (n_columns % _SUPER == 0 and n_columns >= 2 * _SUPER * most):
        if n_columns % _SUPER:
            return None
        n_supers = n_columns // _SUPER
        best = torch.empty((n_queries, n_supers), dtype=torch.float32, device=table.device)
        programs.block_max[(triton.cdiv(best.numel(), 128),)](
            table, best, best.numel(), B=128, S=_SUPER, num_warps=4
        )  # fmt: skip
        found = top(best, most)
        if found is None:
            return None
        supers, n_candidates = found[0], most * _SUPER
    columns = torch.empty((n_queries, most), dtype=torch.int64, device=table.device)
    values = torch.empty((n_queries, most), dtype=torch.float32, device=table.device)
    size = max(most, triton.next_power_of_2(n_candidates))
    programs.top_columns[(n_queries,)](
        table, supers, columns, values, n_columns, n_candidates, supers.shape[1],
        N=size, M=most, S=_SUPER, LISTED=supers is not table, num_warps=8 if size > 1024 else 4,
    )  # fmt: skip
    return columns, values


@cache
def _processors(device: Any) -> int:
    return 1 if _INTERPRETED else int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def _has_tma(device: Any) -> bool:
    if _INTERPRETED:
        return True
    major, _ = torch.cuda.get_device_capability(device)
    return bool(major >= 9)


def rescore_groups(view: View, queries: Any, groups: Any, shift: Any, group: int) -> Any:
    """See `torch_ops.rescore_groups`."""
    n_queries, n_selected = groups.shape
    out = torch.empty((n_queries, n_selected * group), dtype=torch.float32, device=queries.device)
    programs.rescore_groups[(n_queries, n_selected)](
        queries, view.table, groups, shift if shift is not None else queries, out,
        view.slab_rows, view.n_slabs, view.n_groups(group), n_selected,
        D=view.width, BK=_block(view.width), G=group, SHIFT=shift is not None, num_warps=4,
    )  # fmt: skip
    return out


def exact_scores(view: View, queries: Any, norms: Any, addresses: Any) -> Any:
    """See `torch_ops.exact_scores`."""
    n_queries, n_candidates = addresses.shape
    out = torch.empty((n_queries, n_candidates), dtype=torch.float64, device=queries.device)
    weighted = view.weight_table is not None
    programs.exact_scores[(n_queries, triton.cdiv(n_candidates, 8))](
        queries, view.table, addresses,
        view.weight_table if weighted else view.table, view.bias_table if weighted else view.table, norms, out,
        view.slab_rows, view.n_slabs, n_candidates,
        D=view.width, BK=unrolled_block(view.width, 64), R=8, METRIC=METRICS[view.metric], WEIGHTED=weighted, num_warps=4,
    )  # fmt: skip
    return out


def prepare_queries(view: View, plain: Any) -> tuple[Any, ...]:
    """Return (scan, rounded, shift or None, norms, sizes) of `[Q, width]` float32, as `_Queries` explains them."""
    n_queries, width = plain.shape
    scan, rounded = torch.empty_like(plain), torch.empty_like(plain, dtype=torch.bfloat16)
    shift = torch.empty(n_queries, dtype=torch.float32, device=plain.device)
    numbers = torch.empty((n_queries, 4), dtype=torch.float64, device=plain.device).view(-1)
    norms, sizes = numbers[:n_queries], numbers[n_queries:].view(n_queries, 3)
    programs.prepare_queries[(n_queries,)](
        plain, scan, rounded, shift, norms, sizes,
        D=width, BK=_block(width), METRIC=METRICS[view.metric], num_warps=2,
    )  # fmt: skip
    return scan, rounded, shift if view.metric == "l2" else None, norms, sizes


LARGEST_FINISH = 128
"""Candidates that one program ranks."""


def finish(
    view: View, queries: Any, columns: Any, values: Any, outside: Any, places: Any, first: Any, keep: int, k: int,
    group: int,
) -> Any:  # fmt: skip
    """Return `[Q, 2 K + 1]` int64: ids, bits of the float64 scores, and whether the answer is in doubt.

    Args:
        view: the rows.
        queries: the batch in all its forms.
        columns: `[Q, >= keep]` int64 columns of candidates, best first.
        values: their approximate scores, of the same shape.
        outside: `[Q, m]` whose first column bounds what was never a candidate; None: nothing was left out.
        places: the groups `[Q, C]` that columns count in, or the pages if ``first`` is given.
        first: `[Q]` int64, each query's first slot in the pages, or None.
        keep: candidates to score, at least k.
        k: results.
        group: rows of a group or page.
    """
    n_queries, n_columns = columns.shape
    out = torch.empty((n_queries, 2 * k + 1), dtype=torch.int64, device=columns.device)
    size = max(16, triton.next_power_of_2(keep))
    scratch = torch.empty((n_queries, 2 * size), dtype=torch.int64, device=columns.device)
    weighted = view.weight_table is not None
    programs.finish[(n_queries,)](
        queries.plain, queries.norms, queries.sizes, view.limits, view.table, view.id_table,
        view.weight_table if weighted else view.table, view.bias_table if weighted else view.table,
        columns, values, values if outside is None else outside, places, columns if first is None else first, scratch, out,
        view.slab_rows, view.n_slabs, n_columns, 0 if outside is None else outside.stride(0), keep, k,
        0 if first is not None else places.shape[1],
        D=view.width, BK=_block(view.width, 16), C=size,
        METRIC=METRICS[view.metric], WEIGHTED=weighted, SEGMENT=first is not None, G=group, num_warps=8 if size > 64 else 4,
    )  # fmt: skip
    return out


def segment_scores(view: View, rounded: Any, shift: Any, tiles: Any, pages: Any, width: int, most: int) -> Any:
    """See `torch_ops.segment_scores`."""
    out = torch.full((len(rounded), width), float("-inf"), dtype=torch.float32, device=rounded.device)
    chunk = 2 if most == 1 else 8
    grid = (triton.cdiv(width // view.page, chunk) * len(tiles),)
    at = (
        rounded, view.table, tiles, pages, shift if shift is not None else view.alpha[0], out,
        view.slab_rows, view.n_slabs, width,
    )  # fmt: skip
    if most == 1:
        programs.segment_scores_one[grid](
            *at, D=view.width, BK=unrolled_block(view.width, 128), P=view.page, CH=chunk, SHIFT=shift is not None, STAGES=1,
            num_warps=4,
        )  # fmt: skip
    else:
        programs.segment_scores[grid](
            *at, D=view.width, BK=_block(view.width), BQ=16, P=view.page, CH=chunk, SHIFT=shift is not None,
            WIDE=_INTERPRETED, STAGES=1, num_warps=4,
        )  # fmt: skip
    return out


def maxsim(queries: Any, weights: Any, tokens: Any, offsets: Any, longest: int) -> Any:
    """See `torch_ops.maxsim`."""
    n_queries, query_tokens, width = queries.shape
    n_docs = len(offsets) - 1
    most = min(128, max(16, triton.next_power_of_2(query_tokens)))
    firsts = range(0, query_tokens, most)
    out = torch.zeros((max(1, len(firsts)), n_queries, n_docs), dtype=torch.float32, device=queries.device)
    blocks = triton.next_power_of_2(triton.cdiv(max(longest, 1), 64))
    for part, first in zip(out, firsts, strict=False):
        programs.maxsim[(n_docs * n_queries,)](
            queries, weights, tokens, offsets, part, n_docs, query_tokens, first,
            D=width, BK=_block(width, 32), BQ=most, BT=64, MAX_BLOCKS=blocks,
            PRECISION="ieee" if _INTERPRETED else "tf32x3", num_warps=4 if most <= 64 else 8, num_stages=3,
        )  # fmt: skip
    return out.sum(dim=0).masked_fill_(offsets[1:] == offsets[:-1], float("-inf"))


def mmr(gram: Any, relevance: Any, k: int, weight: float) -> Any:
    """See `torch_ops.mmr`."""
    n_queries, n = relevance.shape
    out = torch.empty((n_queries, k), dtype=torch.int64, device=gram.device)
    programs.mmr[(n_queries,)](
        gram, relevance, out, n, torch.tensor([weight], dtype=gram.dtype, device=gram.device), K=k, C=triton.next_power_of_2(n), num_warps=4
    )  # fmt: skip
    return out


def near_pairs(rows: Any, scale: Any, threshold: float) -> Any:
    """See `torch_ops.near_pairs`."""
    n, width = rows.shape
    capacity = max(1024, 4 * n)
    block = 32 if _INTERPRETED else 128
    while True:
        pairs = torch.empty(capacity, dtype=torch.int64, device=rows.device)
        count = torch.zeros(1, dtype=torch.int64, device=rows.device)
        tiles = triton.cdiv(n, block)
        programs.near_pairs[(tiles, tiles)](
            rows, scale, pairs, count, n, capacity, threshold,
            D=width, B=block, BK=_block(width, 64), WIDE=_INTERPRETED, num_warps=8,
        )  # fmt: skip
        found = int(count.item())
        if found <= capacity:
            return torch.stack((pairs[:found] >> 32, pairs[:found] & 0xFFFFFFFF), dim=1)
        capacity = found
