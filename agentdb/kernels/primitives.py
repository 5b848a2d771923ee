"""What memory is built from besides search: late interaction, diversity, near-duplicates, neighbours among some rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError
from agentdb.kernels.choice import Backend, choose, require_torch, triton_ops

__all__ = ["maxsim", "mmr", "near_duplicates", "nearest", "real_tensor"]

_ROUNDING = 2.0**-7
"""Twice the largest relative error of bfloat16: what rounding two unit rows can change of their cosine."""
_BLOCK_ROWS = 1 << 14
_BLOCK_SCORES = 1 << 24
_EXACT_NUMBERS = 1 << 24


def _ops(operation: str, device: Any, prefer: Backend | None) -> Any:
    if choose(operation, device, prefer=prefer).backend == "triton":
        return triton_ops()
    from agentdb.kernels import torch_ops

    return torch_ops


def real_tensor(values: Any, name: str, dtype: npt.DTypeLike = np.float32) -> Any:
    """Return a caller's numbers as a tensor: one that it is already, in its type and where it is, or ``dtype`` on the CPU.

    Raises:
        InvalidInputError: they are no real numbers.
    """
    torch = require_torch()
    if isinstance(values, torch.Tensor):
        if values.is_complex() or values.dtype == torch.bool:
            raise InvalidInputError(f"{name} must be real numbers, not {values.dtype}")
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise InvalidInputError(f"{name} must be real numbers, not {array.dtype.name}")
    with np.errstate(over="ignore"):  # infinite then, which the caller refuses
        array = np.ascontiguousarray(array, dtype)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _matrix(values: Any, name: str, axes: int, device: Any) -> Any:
    tensor = real_tensor(values, name)
    if tensor.ndim != axes:
        raise InvalidInputError(f"{name} must have {axes} axes, not {tensor.ndim}")
    tensor = tensor.to(device, require_torch().float32)
    if not bool(tensor.isfinite().all()):
        raise InvalidInputError(f"{name} must be finite")
    return tensor


def _padded(tensor: Any) -> Any:
    torch = require_torch()
    width = tensor.shape[-1]
    unit = 64 if width > 48 else 16
    return torch.nn.functional.pad(tensor, (0, -width % unit)).contiguous()


def _units(rows: Any) -> Any:
    """Return rows in float64 at length 1; zero rows stay zero."""
    exact = rows.double()
    norms = exact.norm(dim=1, keepdim=True)
    return require_torch().where(norms > 0, exact / norms.where(norms > 0, 1.0), 0.0)


def _margin(width: int, *, is_rounded: bool) -> float:
    """Return how far a cosine of rounded rows, or of float32 rows, can be off: a sum of D products, and some more.

    Sums in float32, by the matrix unit too, add at most 2^-22 a term.
    """
    return (_ROUNDING if is_rounded else 0.0) + (width + 8) * 2.0**-22


def _exact(left: Any, right: Any, i: Any, j: Any) -> Any:
    """Return `[P]` float64 cosines of rows ``left[i]`` and ``right[j]``; equal rows have equal ones."""
    step = max(1, _EXACT_NUMBERS // max(1, left.shape[1]))
    parts = [(left[a] * right[b]).sum(1) for a, b in zip(i.split(step), j.split(step), strict=True)]
    return require_torch().cat(parts)


def maxsim(
    queries: Any,
    tokens: Any,
    offsets: Any,
    *,
    query_weights: Any = None,
    device: Any = "cpu",
    prefer: Backend | None = None,
) -> npt.NDArray[np.float32]:
    """Return `[Q, N]` float32 late-interaction scores within float32 rounding of `reference.maxsim`.

    Args:
        queries: `[Q, Tq, D]`; pad with tokens of weight 0.
        tokens: `[T, D]`, the tokens of all documents one after another.
        offsets: `[N + 1]` integers from 0 to T that never fall.
        query_weights: `[Q, Tq]`, 1 if None.
        device: where to compute.
        prefer: "torch" leaves Triton aside.

    Raises:
        InvalidInputError: shapes differ, or a value is not finite.
    """
    torch = require_torch()
    asked, known = _matrix(queries, "queries", 3, device), _matrix(tokens, "tokens", 2, device)
    if asked.shape[2] != known.shape[1]:
        raise InvalidInputError(f"queries have {asked.shape[2]} dimensions, tokens {known.shape[1]}")
    ends = np.asarray(offsets)
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise InvalidInputError(f"offsets must be integers of one axis, not {ends.dtype.name} {list(ends.shape)}")
    ends = ends.astype(np.int64)
    if len(ends) < 1 or ends[0] != 0 or ends[-1] != len(known) or (np.diff(ends) < 0).any():
        raise InvalidInputError("offsets must rise from 0 to the number of tokens")
    if len(ends) == 1 or not len(asked):
        return np.empty((len(asked), len(ends) - 1), np.float32)
    if query_weights is None:
        weights = torch.ones(asked.shape[:2], dtype=torch.float32, device=device)
    else:
        weights = _matrix(query_weights, "query_weights", 2, device).contiguous()
        if weights.shape != asked.shape[:2]:
            raise InvalidInputError(f"query_weights must be {list(asked.shape[:2])}, not {list(weights.shape)}")
    ops = _ops("maxsim", device, prefer)
    at = torch.from_numpy(ends).to(device)
    longest = int(np.diff(ends).max())
    result: npt.NDArray[np.float32] = ops.maxsim(_padded(asked), weights, _padded(known), at, longest).cpu().numpy()
    return result


def mmr(
    candidates: Any, relevance: Any, k: int, *, weight: float, device: Any = "cpu", prefer: Backend | None = None
) -> npt.NDArray[np.int64]:
    """Return for each query the positions of K candidates as `reference.mmr` chooses them, -1 where none was left.

    Args:
        candidates: `[Q, C, D]`, C at most 1024.
        relevance: `[Q, C]`, -inf where there is no candidate.
        k: at least 1.
        weight: 0 (difference only) to 1 (relevance only).
        device: where to compute.
        prefer: "torch" leaves Triton aside.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """
    torch = require_torch()
    rows = _matrix(candidates, "candidates", 3, device).double()
    relevance = real_tensor(relevance, "relevance", np.float64)
    if relevance.shape != rows.shape[:2]:
        raise InvalidInputError(f"relevance must be {list(rows.shape[:2])}, not {list(relevance.shape)}")
    # Looked at where it lies: what comes from the host needs no answer of the device.
    if bool((relevance.isnan() | (relevance == math.inf)).any()):
        raise InvalidInputError("relevance must be finite, or -inf where there is no candidate")
    given = relevance.to(device, torch.float64)
    if k < 1 or not 0 <= weight <= 1 or rows.shape[1] > 1024:
        raise InvalidInputError("k must be at least 1, weight from 0 to 1, and candidates at most 1024")
    if not rows.shape[0] or not rows.shape[1]:
        return np.full((len(rows), k), -1, np.int64)
    norms = rows.norm(dim=2, keepdim=True)
    rows = torch.where(norms > 0, rows / norms.where(norms > 0, 1.0), 0.0)
    gram = torch.bmm(rows, rows.transpose(1, 2)).contiguous()
    chosen: npt.NDArray[np.int64] = _ops("mmr", device, prefer).mmr(gram, given.contiguous(), k, weight).cpu().numpy()
    return chosen


def near_duplicates(
    vectors: Any, threshold: float, *, device: Any = "cpu", prefer: Backend | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return exactly the pairs and labels of `reference.near_duplicates`; pairs in ascending order.

    A rounded product finds what may reach the threshold; float64 decides.

    Args:
        vectors: `[N, D]`.
        threshold: a cosine, above 0.
        device: where to compute.
        prefer: "torch" leaves Triton aside.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """
    torch = require_torch()
    rows = _matrix(vectors, "vectors", 2, device)
    if not threshold > 0:
        raise InvalidInputError(f"threshold must be above 0, not {threshold}")
    if not len(rows):
        return np.empty((0, 2), np.int64), np.empty(0, np.int64)
    exact = _units(rows)
    ops = _ops("near_pairs", device, prefer)
    unit = _padded(exact.float())
    is_rounded = rows.is_cuda or hasattr(ops, "LARGEST_FINISH")
    scale = torch.ones(len(rows), dtype=torch.float32, device=rows.device)
    margin = _margin(unit.shape[1], is_rounded=is_rounded)
    pairs = ops.near_pairs(unit.to(torch.bfloat16) if is_rounded else unit, scale, threshold - margin)
    pairs = pairs[_exact(exact, exact, pairs[:, 0], pairs[:, 1]) >= threshold]
    pairs = pairs[(pairs[:, 0] * len(rows) + pairs[:, 1]).argsort()]
    labels = torch.arange(len(rows), device=rows.device)
    while len(pairs):
        lower = torch.minimum(labels[pairs[:, 0]], labels[pairs[:, 1]])
        after = labels.clone()
        for side in (0, 1):
            after.scatter_reduce_(0, pairs[:, side], lower, "amin")
        # Whoever a label stands for may have found a lower one itself.
        after = torch.minimum(after, after[after])
        if bool((after == labels).all()):
            break
        labels = after
    return pairs.cpu().numpy(), labels.cpu().numpy()


def nearest(
    queries: Any, rows: Any, k: int, *, allowed: Any, least: float, device: Any = "cpu"
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return for each query the K rows of the largest cosines, exactly, best first, ties by lower row.

    A float32 product (on a GPU one of rounded rows) finds what may be among them; float64 decides. Rows are brought to
    the device in blocks, so that its memory stays bounded.

    Args:
        queries: `[Q, D]`.
        rows: `[N, D]`.
        k: at least 1.
        allowed: `[Q, N]` bool: which rows count for which query.
        least: only cosines that reach it.
        device: where to compute.

    Returns:
        rows `[Q, K]` int64 and cosines `[Q, K]` float32; -1 and -inf where there was no further row.

    Raises:
        InvalidInputError: shapes differ, k is below 1, or a value is not finite.
    """
    torch = require_torch()
    asked = _matrix(queries, "queries", 2, device)
    known = rows if isinstance(rows, torch.Tensor) else np.asarray(rows)
    if known.ndim != 2 or known.shape[1] != asked.shape[1]:
        raise InvalidInputError(f"rows must be [N, {asked.shape[1]}], not {list(known.shape)}")
    mask = torch.as_tensor(allowed)
    if mask.dtype != torch.bool or mask.shape != (len(asked), len(known)):
        raise InvalidInputError(
            f"allowed must be bool [{len(asked)}, {len(known)}], not {mask.dtype} {list(mask.shape)}"
        )
    if k < 1 or math.isnan(least):
        raise InvalidInputError(f"k must be at least 1 and least a number, not {k} and {least}")
    exact = _units(asked)
    best = torch.full((len(asked), k), -math.inf, dtype=torch.float64, device=asked.device)
    at = torch.full((len(asked), k), -1, dtype=torch.int64, device=asked.device)
    step = max(1, _BLOCK_SCORES // _BLOCK_ROWS)
    for first in range(0, len(known), _BLOCK_ROWS):
        block = _units(_matrix(known[first : first + _BLOCK_ROWS], "rows", 2, device))
        for begin in range(0, len(asked), step):
            part = slice(begin, begin + step)
            counted = mask[part, first : first + len(block)].to(asked.device)
            _improve(best[part], at[part], exact[part], block, counted, first, least)
    return at.cpu().numpy(), best.float().cpu().numpy()


def _improve(best: Any, at: Any, queries: Any, block: Any, counted: Any, first: int, least: float) -> None:
    """Put the rows of a block that belong there among the K best of each query, in place.

    Args:
        best: `[q, K]` float64 cosines so far, best first.
        at: `[q, K]` their rows.
        queries: `[q, D]` float64 unit vectors.
        block: `[r, D]` float64 unit vectors.
        counted: `[q, r]` bool.
        first: the number of the block's first row.
        least: only cosines that reach it.
    """
    torch = require_torch()
    k, is_rounded = best.shape[1], block.is_cuda
    if is_rounded:
        near = torch.mm(queries.to(torch.bfloat16), block.to(torch.bfloat16).T, out_dtype=torch.float32)
    else:
        near = queries.float() @ block.float().T
    near.masked_fill_(~counted, -math.inf)
    margin = _margin(block.shape[1], is_rounded=is_rounded)
    floor = best[:, -1].clamp(min=least)
    if len(block) >= k:
        # K rows of this block reach their approximate score less the margin, so what stays below that is not among the best.
        floor = torch.maximum(floor, near.topk(k, dim=1).values[:, -1].double() - margin)
    query, row = ((near >= (floor - margin).float()[:, None]) & counted).nonzero().unbind(1)
    if not len(query):
        return
    cosines = _exact(queries, block, query, row)
    has = at >= 0
    query = torch.cat([has.nonzero()[:, 0], query[cosines >= least]])
    place = torch.cat([at[has], row[cosines >= least] + first])
    score = torch.cat([best[has], cosines[cosines >= least]])
    order = place.argsort()
    order = order[score[order].argsort(descending=True, stable=True)]
    order = order[query[order].argsort(stable=True)]
    query, place, score = query[order], place[order], score[order]
    counts = torch.bincount(query, minlength=len(best))
    rank = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    kept = rank < k
    best[query[kept], rank[kept]] = score[kept]
    at[query[kept], rank[kept]] = place[kept]
