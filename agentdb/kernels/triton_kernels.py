# A kernel is no function: Triton gives arguments their types, and capitals are compile-time constants.
# ruff: noqa: ANN001, ANN201, ANN202, N803, SIM108
# mypy: ignore-errors
"""Triton programs. Each has a torch twin in `torch_ops` and an oracle in `reference`; `choice` decides which runs.

Rows live in slabs; a table of device addresses ``[5, S]`` int64 (rounded plane, remainder plane, alpha, beta, live bits)
lets one launch reach all of them, because a growing index never moves a row. Every address is computed in 64 bits.

The epilogue of `group_max` rests on one lemma: the exact top k always lies inside the k groups with the largest group
maxima, since otherwise k other groups would each hold an element at least as good.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["nq", "out_stride", "slab_rows", "n_slabs"])
def group_max(
    q, slabs, shift, count, out,
    nq, out_stride, slab_rows, n_slabs,
    D: tl.constexpr, BR: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, G: tl.constexpr,
    SHIFT: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the largest live score of every group of G rows; rows are on the M axis of the product.

    ``count`` holds the number of rows, because a captured launch may run when there are more than there were.
    """
    n = tl.load(count)
    # One axis, because the others end at 65,535 programs.
    n_q = tl.cdiv(nq, BQ)
    pq = tl.program_id(0) % n_q
    pr = tl.program_id(0) // n_q
    block = pr.to(tl.int64) * BR
    if block >= n:
        return
    slab = block // slab_rows
    x = tl.multiple_of(tl.load(slabs + slab).to(tl.pointer_type(tl.bfloat16)), 16)
    alpha = tl.multiple_of(tl.load(slabs + 2 * n_slabs + slab).to(tl.pointer_type(tl.float32)), 16)
    beta = tl.multiple_of(tl.load(slabs + 3 * n_slabs + slab).to(tl.pointer_type(tl.float32)), 16)
    bits = tl.multiple_of(tl.load(slabs + 4 * n_slabs + slab).to(tl.pointer_type(tl.int32)), 16)
    r = (block % slab_rows).to(tl.int32) + tl.arange(0, BR)
    c = pq * BQ + tl.arange(0, BQ)
    r_in = block + tl.arange(0, BR) < n
    c_in = c < nq
    xp = x + tl.where(r_in, r, 0).to(tl.int64)[:, None] * D + tl.arange(0, BK)[None, :]
    qp = q + tl.where(c_in, c, 0).to(tl.int64)[None, :] * D + tl.arange(0, BK)[:, None]
    acc = tl.zeros([BR, BQ], dtype=tl.float32)
    for _ in tl.range(0, D, BK, num_stages=STAGES):
        a = tl.load(xp)
        b = tl.load(qp)
        if WIDE:  # the interpreter multiplies bf16 wrongly
            acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(a, b, acc)
        xp += BK
        qp += BK
    if SHIFT:
        acc -= tl.load(shift + c, mask=c_in, other=0.0)[None, :]
    acc = acc * tl.load(alpha + r, mask=r_in, other=0.0)[:, None] + tl.load(beta + r, mask=r_in, other=0.0)[:, None]
    word = tl.load(bits + (r >> 5), mask=r_in, other=0)
    live = r_in & (((word >> (r & 31)) & 1) != 0)
    acc = tl.where(live[:, None], acc, float("-inf"))
    best = tl.max(tl.reshape(acc, [BR // G, G, BQ]), axis=1)
    g = pr * (BR // G) + tl.arange(0, BR // G)
    tl.store(
        out + c[None, :].to(tl.int64) * out_stride + g[:, None],
        best,
        mask=(g < tl.cdiv(n, G))[:, None] & c_in[None, :],
    )


@triton.jit(do_not_specialize=["n"])
def block_max(table, out, n, B: tl.constexpr, S: tl.constexpr):
    """Write the largest of each S consecutive numbers; n of them are written."""
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    x = tl.load(table + i[:, None] * S + tl.arange(0, S)[None, :], mask=(i < n)[:, None], other=float("-inf"))
    tl.store(out + i, tl.max(x, axis=1), mask=i < n)


@triton.jit(do_not_specialize=["n_columns", "n_candidates", "n_supers"])
def top_columns(
    table, supers, columns, values, n_columns, n_candidates, n_supers,
    N: tl.constexpr, M: tl.constexpr, S: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Write the M largest of one row, best first: of all its columns, or (LISTED) of the listed blocks of S."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, N)
    if LISTED:
        column = tl.load(supers + i * n_supers + j // S, mask=j < n_candidates, other=0).to(tl.int32) * S + j % S
    else:
        column = j
    x = tl.load(table + i * n_columns + column, mask=j < n_candidates, other=float("-inf"))
    bits = x.to(tl.int32, bitcast=True)
    # Integers in the order of the floats, with the column below, so that one sort moves both.
    key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) << 32
    key = tl.where(j < n_candidates, key | column, tl.full([N], -(1 << 63), tl.int64))
    best = tl.topk(key, M)
    bits = (best >> 32).to(tl.int32)
    m = i * M + tl.arange(0, M)
    tl.store(columns + m, best & 0xFFFFFFFF)
    tl.store(values + m, (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True))


@triton.jit
def _tile_maxima(
    acc, alpha, beta, shift, bits, out, pq, pr, nq, n, out_stride, out_first,
    BR: tl.constexpr, BQ: tl.constexpr, G: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Write the group maxima of one tile of products ``[BQ, BR]``."""
    r = pr * BR + tl.arange(0, BR)
    c = pq * BQ + tl.arange(0, BQ)
    r_in = r < n
    c_in = c < nq
    word = tl.load(bits + (r >> 5), mask=r_in, other=0)
    live = ((word >> (r & 31)) & 1) != 0
    # A dead row scores 0 * product - inf: products are finite, so this costs nothing for each of them.
    factor = tl.where(live, tl.load(alpha + r, mask=r_in, other=0.0), 0.0)
    summand = tl.where(live, tl.load(beta + r, mask=r_in, other=0.0), float("-inf"))
    if SHIFT:
        acc -= tl.load(shift + c, mask=c_in, other=0.0)[:, None]
    acc = acc * factor[None, :] + summand[None, :]
    best = tl.max(tl.reshape(acc, [BQ, BR // G, G]), axis=2)
    g = pr * (BR // G) + tl.arange(0, BR // G)
    tl.store(
        out + c[:, None].to(tl.int64) * out_stride + out_first + g[None, :],
        best,
        mask=(g < tl.cdiv(n, G))[None, :] & c_in[:, None],
    )


@triton.jit(do_not_specialize=["nq", "out_stride", "slab_rows", "n_slabs", "slab"])
def group_max_tma(
    q_desc, x_desc, slabs, shift, count, out,
    nq, out_stride, slab_rows, n_slabs, slab,
    D: tl.constexpr, BR: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, G: tl.constexpr,
    SHIFT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """`group_max` with tiles brought in by the tensor memory accelerator, and queries on the M axis.

    A group's rows then lie in few lanes of one warp, so that their maximum costs hardly a shuffle. Every program takes
    tile after tile of one slab, all query blocks of a block of rows in turn, and the next tile comes in while one is
    finished.
    """
    alpha = tl.multiple_of(tl.load(slabs + 2 * n_slabs + slab).to(tl.pointer_type(tl.float32)), 16)
    beta = tl.multiple_of(tl.load(slabs + 3 * n_slabs + slab).to(tl.pointer_type(tl.float32)), 16)
    bits = tl.multiple_of(tl.load(slabs + 4 * n_slabs + slab).to(tl.pointer_type(tl.int32)), 16)
    out_first = slab * (slab_rows // G)
    n = tl.minimum(tl.load(count) - slab * slab_rows, slab_rows).to(tl.int32)
    n_q = tl.cdiv(nq, BQ)
    for tile in tl.range(tl.program_id(0), n_q * tl.cdiv(n, BR), tl.num_programs(0), flatten=True):
        pq = tile % n_q
        pr = tile // n_q
        acc = tl.zeros([BQ, BR], dtype=tl.float32)
        for k in range(0, D, BK):
            a = q_desc.load([pq * BQ, k])
            b = x_desc.load([pr * BR, k])
            if WIDE:  # the interpreter multiplies bf16 wrongly
                acc = tl.dot(a.to(tl.float32), b.to(tl.float32).T, acc, input_precision="ieee")
            else:
                acc = tl.dot(a, b.T, acc)
        _tile_maxima(acc, alpha, beta, shift, bits, out, pq, pr, nq, n, out_stride, out_first, BR, BQ, G, SHIFT)


@triton.jit(do_not_specialize=["slab_rows", "n_slabs", "n_groups_of_all", "n_selected"])
def rescore_groups(
    q, slabs, groups, shift, out,
    slab_rows, n_slabs, n_groups_of_all, n_selected,
    D: tl.constexpr, BK: tl.constexpr, G: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Score all rows of the selected groups from the rounded plane with the unrounded query: ``[Q, C * G]``."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1)
    group = tl.load(groups + i * n_selected + j)
    known = (group >= 0) & (group < n_groups_of_all)
    first = tl.where(known, group, 0) * G
    slab = first // slab_rows
    inside = first % slab_rows + tl.arange(0, G)
    xp = tl.multiple_of(tl.load(slabs + slab).to(tl.pointer_type(tl.bfloat16)), 16)
    alpha = tl.multiple_of(tl.load(slabs + 2 * n_slabs + slab).to(tl.pointer_type(tl.float32)), 16)
    beta = tl.multiple_of(tl.load(slabs + 3 * n_slabs + slab).to(tl.pointer_type(tl.float32)), 16)
    bits = tl.multiple_of(tl.load(slabs + 4 * n_slabs + slab).to(tl.pointer_type(tl.int32)), 16)
    d = tl.arange(0, BK)
    acc = tl.zeros([G], dtype=tl.float32)
    for k in tl.static_range(0, D, BK):
        x = tl.load(xp + inside[:, None] * D + (k + d)[None, :]).to(tl.float32)
        acc += tl.sum(x * tl.load(q + i * D + k + d)[None, :], axis=1)
    if SHIFT:
        acc -= tl.load(shift + i)
    acc = acc * tl.load(alpha + inside) + tl.load(beta + inside)
    live = known & (((tl.load(bits + (inside >> 5)) >> (inside & 31).to(tl.int32)) & 1) != 0)
    acc = tl.where(live, acc, float("-inf"))
    tl.store(out + (i * n_selected + j) * G + tl.arange(0, G), acc)


@triton.jit(do_not_specialize=["slab_rows", "n_slabs", "n_candidates"])
def exact_scores(
    q, slabs, addresses, weight, bias, q_norm, out,
    slab_rows, n_slabs, n_candidates,
    D: tl.constexpr, BK: tl.constexpr, R: tl.constexpr, METRIC: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Score candidate rows in float64 from both planes: METRIC 0 dot, 1 cosine, 2 negative squared L2."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * R + tl.arange(0, R)
    j_in = j < n_candidates
    address = tl.load(addresses + i * n_candidates + j, mask=j_in, other=-1)
    known = address >= 0
    address = tl.where(known, address, 0)
    slab = address // slab_rows
    inside = address % slab_rows
    hi = tl.load(slabs + slab).to(tl.pointer_type(tl.int16))
    lo = tl.load(slabs + n_slabs + slab).to(tl.pointer_type(tl.int16))
    d = tl.arange(0, BK)
    first = tl.zeros([R], dtype=tl.float64)
    second = tl.zeros([R], dtype=tl.float64)
    for k in tl.static_range(0, D, BK):
        at = inside[:, None] * D + (k + d)[None, :]
        high = tl.load(hi[:, None] + at).to(tl.int32)
        low = tl.load(lo[:, None] + at).to(tl.int32)
        x = ((high << 16) + low).to(tl.float32, bitcast=True).to(tl.float64)
        one = tl.load(q + i * D + k + d).to(tl.float64)[None, :]
        if METRIC == 2:
            first -= tl.sum((x - one) * (x - one), axis=1)
        else:
            first += tl.sum(x * one, axis=1)
            if METRIC == 1:
                second += tl.sum(x * x, axis=1)
    if METRIC == 1:
        norm = tl.sqrt(second) * tl.load(q_norm + i)
        first = tl.where(norm > 0, first / tl.where(norm > 0, norm, 1.0), 0.0)
    if WEIGHTED:
        w = tl.load(weight + slab).to(tl.pointer_type(tl.float32))
        b = tl.load(bias + slab).to(tl.pointer_type(tl.float32))
        first = first * tl.load(w + inside).to(tl.float64) + tl.load(b + inside).to(tl.float64)
    first = tl.where(known, first, float("-inf"))
    tl.store(out + i * n_candidates + j, first, mask=j_in)


@triton.jit(do_not_specialize=["slab_rows", "n_slabs", "width"])
def segment_scores(
    q, slabs, tiles, pages, shift, out,
    slab_rows, n_slabs, width,
    D: tl.constexpr, BK: tl.constexpr, BQ: tl.constexpr, P: tl.constexpr, CH: tl.constexpr,
    SHIFT: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Score up to BQ queries of one owner against up to CH pages of P rows: one work item of the paged search.

    ``tiles`` holds (first query, queries, first slot in pages, number of pages) int64; ``out`` is ``[Q, width]`` and
    was filled with -inf, so that a program without pages leaves at once.
    """
    chunks = tl.cdiv(width, P * CH)
    tile = tiles + (tl.program_id(0) // chunks).to(tl.int64) * 4
    start = (tl.program_id(0) % chunks) * CH
    n_pages = tl.load(tile + 3)
    if start < n_pages:
        q0 = tl.load(tile)
        c = tl.arange(0, BQ)
        c_in = c < tl.load(tile + 1)
        slot = tl.load(tile + 2)
        qp = q + (q0 + tl.where(c_in, c, 0))[None, :] * D + tl.arange(0, BK)[:, None]
        for step in tl.range(0, CH, num_stages=STAGES):  # a compile-time bound: the interpreter knows no other
            j = start + step
            on = j < n_pages
            first = tl.load(pages + slot + j, mask=on, other=0) * P
            slab = first // slab_rows
            inside = first % slab_rows + tl.arange(0, P)
            xp = tl.multiple_of(tl.load(slabs + slab).to(tl.pointer_type(tl.bfloat16)), 16)
            alpha = tl.multiple_of(tl.load(slabs + 2 * n_slabs + slab).to(tl.pointer_type(tl.float32)), 16)
            beta = tl.multiple_of(tl.load(slabs + 3 * n_slabs + slab).to(tl.pointer_type(tl.float32)), 16)
            bits = tl.multiple_of(tl.load(slabs + 4 * n_slabs + slab).to(tl.pointer_type(tl.int32)), 16)
            acc = tl.zeros([P, BQ], dtype=tl.float32)
            for k in tl.static_range(0, D, BK):
                a = tl.load(xp + inside[:, None] * D + (k + tl.arange(0, BK))[None, :], mask=on, other=0.0)
                b = tl.load(qp + k)
                if WIDE:
                    acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
                else:
                    acc = tl.dot(a, b, acc)
            if SHIFT:
                acc -= tl.load(shift + q0 + c, mask=c_in, other=0.0)[None, :]
            acc = acc * tl.load(alpha + inside)[:, None] + tl.load(beta + inside)[:, None]
            live = ((tl.load(bits + (inside >> 5)) >> (inside & 31).to(tl.int32)) & 1) != 0
            acc = tl.where(live[:, None], acc, float("-inf"))
            at = out + (q0 + c)[None, :] * width + (j * P + tl.arange(0, P))[:, None]
            tl.store(at, acc, mask=c_in[None, :] & on)


@triton.jit(do_not_specialize=["slab_rows", "n_slabs", "width"])
def segment_scores_one(
    q, slabs, tiles, pages, shift, out,
    slab_rows, n_slabs, width,
    D: tl.constexpr, BK: tl.constexpr, P: tl.constexpr, CH: tl.constexpr, SHIFT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`segment_scores` for one query an owner: no matrix unit, the rounded query in registers."""
    chunks = tl.cdiv(width, P * CH)
    tile = tiles + (tl.program_id(0) // chunks).to(tl.int64) * 4
    start = (tl.program_id(0) % chunks) * CH
    n_pages = tl.load(tile + 3)
    if start < n_pages:
        q0 = tl.load(tile)
        slot = tl.load(tile + 2)
        d = tl.arange(0, BK)
        for step in tl.range(0, CH, num_stages=STAGES):  # a compile-time bound: the interpreter knows no other
            j = start + step
            on = j < n_pages
            first = tl.load(pages + slot + j, mask=on, other=0) * P
            slab = first // slab_rows
            inside = first % slab_rows + tl.arange(0, P)
            xp = tl.multiple_of(tl.load(slabs + slab).to(tl.pointer_type(tl.bfloat16)), 16)
            alpha = tl.multiple_of(tl.load(slabs + 2 * n_slabs + slab).to(tl.pointer_type(tl.float32)), 16)
            beta = tl.multiple_of(tl.load(slabs + 3 * n_slabs + slab).to(tl.pointer_type(tl.float32)), 16)
            bits = tl.multiple_of(tl.load(slabs + 4 * n_slabs + slab).to(tl.pointer_type(tl.int32)), 16)
            acc = tl.zeros([P], dtype=tl.float32)
            for k in tl.static_range(0, D, BK):
                x = tl.load(xp + inside[:, None] * D + (k + d)[None, :], mask=on, other=0.0).to(tl.float32)
                acc += tl.sum(x * tl.load(q + q0 * D + k + d).to(tl.float32)[None, :], axis=1)
            if SHIFT:
                acc -= tl.load(shift + q0)
            acc = acc * tl.load(alpha + inside) + tl.load(beta + inside)
            live = ((tl.load(bits + (inside >> 5)) >> (inside & 31).to(tl.int32)) & 1) != 0
            acc = tl.where(live, acc, float("-inf"))
            tl.store(out + q0 * width + j * P + tl.arange(0, P), acc, mask=on)


@triton.jit(do_not_specialize=["n_docs", "query_tokens", "first"])
def maxsim(
    q, q_weight, tokens, offsets, out,
    n_docs, query_tokens, first,
    D: tl.constexpr, BK: tl.constexpr, BQ: tl.constexpr, BT: tl.constexpr, MAX_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write sum over query tokens of weight times the best document token's score: one program a document and query.

    The query's tokens are BQ from ``first`` on. MAX_BLOCKS bounds the document's length in blocks of BT, for the
    interpreter's sake a compile-time number.
    """
    doc = tl.program_id(0) % n_docs
    i = (tl.program_id(0) // n_docs).to(tl.int64)
    begin = tl.load(offsets + doc)
    end = tl.load(offsets + doc + 1)
    c = first + tl.arange(0, BQ)
    d = tl.arange(0, BK)
    c_in = c < query_tokens
    best = tl.full([BQ], float("-inf"), dtype=tl.float32)
    for block in tl.range(0, MAX_BLOCKS):
        if begin + block * BT < end:
            t = begin + block * BT + tl.arange(0, BT)
            t_in = t < end
            acc = tl.zeros([BT, BQ], dtype=tl.float32)
            for k in tl.range(0, D, BK):  # not unrolled: all of a long query would not fit into shared memory
                a = tl.load(tokens + t[:, None] * D + (k + d)[None, :], mask=t_in[:, None], other=0.0)
                b = tl.load(
                    q + (i * query_tokens + c)[None, :] * D + (k + d)[:, None], mask=c_in[None, :], other=0.0
                )  # fmt: skip
                acc = tl.dot(a, b, acc, input_precision=PRECISION)
            best = tl.maximum(best, tl.max(tl.where(t_in[:, None], acc, float("-inf")), axis=0))
    weight = tl.load(q_weight + i * query_tokens + c, mask=c_in, other=0.0)
    total = tl.sum(tl.where(c_in & (weight != 0), best * weight, 0.0), axis=0)
    tl.store(out + i * n_docs + doc, total)


@triton.jit(do_not_specialize=["n"])
def mmr(gram, relevance, chosen, n, weights, K: tl.constexpr, C: tl.constexpr):
    """Choose K of n candidates greedily, one program a query, ties to the earlier candidate (-1: none left).

    Source: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
    """
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, C)
    weight = tl.load(weights)  # through memory, because an argument would be rounded to float32
    value = tl.load(relevance + i * n + c, mask=c < n, other=float("-inf"))
    free = value > float("-inf")
    value = tl.where(free, value, 0.0)
    nearest = tl.full([C], float("-inf"), dtype=gram.dtype.element_ty)
    for step in tl.range(0, K):
        penalty = tl.where(nearest > float("-inf"), nearest, 0.0)
        score = tl.where(free, weight * value - (1 - weight) * penalty, float("-inf"))
        top = tl.max(score, axis=0)
        pick = tl.min(tl.where((score == top) & free, c, C), axis=0)
        has = pick < C
        tl.store(chosen + i * K + step, tl.where(has, pick, -1).to(tl.int64))
        row = tl.load(gram + i * n * n + tl.where(has, pick, 0) * n + c, mask=c < n, other=0.0)
        nearest = tl.where(has, tl.maximum(nearest, row), nearest)
        free = free & (c != pick)


@triton.jit(do_not_specialize=["n", "capacity", "threshold"])
def near_pairs(
    x, scale, pairs, count, n, capacity, threshold,
    D: tl.constexpr, B: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Append every pair i < j whose rounded cosine reaches the threshold, as i << 32 | j; ``count`` goes past a full buffer."""
    a_tile = tl.program_id(0)
    b_tile = tl.program_id(1)
    if a_tile <= b_tile:
        i = a_tile * B + tl.arange(0, B)
        j = b_tile * B + tl.arange(0, B)
        i_in = i < n
        j_in = j < n
        d = tl.arange(0, BK)
        ap = x + tl.where(i_in, i, 0).to(tl.int64)[:, None] * D + d[None, :]
        bp = x + tl.where(j_in, j, 0).to(tl.int64)[None, :] * D + d[:, None]
        acc = tl.zeros([B, B], dtype=tl.float32)
        for _ in tl.range(0, D, BK):
            a = tl.load(ap)
            b = tl.load(bp)
            if WIDE:
                acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
            else:
                acc = tl.dot(a, b, acc)
            ap += BK
            bp += BK
        acc = (
            acc * tl.load(scale + i, mask=i_in, other=0.0)[:, None] * tl.load(scale + j, mask=j_in, other=0.0)[None, :]
        )
        near = (acc >= threshold) & (i[:, None] < j[None, :]) & i_in[:, None] & j_in[None, :]
        found = tl.sum(near.to(tl.int32))
        if found > 0:
            flat = tl.reshape(near.to(tl.int32), [B * B])
            start = tl.atomic_add(count, found.to(tl.int64))
            # What differs between places is kept in 32 bits, and the rows are told from the place in the tile: more would
            # not fit into the registers.
            place = tl.cumsum(flat, axis=0) - flat
            at = tl.arange(0, B * B)
            room = tl.minimum(tl.maximum(capacity - start, 0), B * B).to(tl.int32)
            keep = (flat != 0) & (place < room)
            left = a_tile * B + at // B
            right = b_tile * B + at % B
            tl.store(pairs + start + place, (left.to(tl.int64) << 32) | right, mask=keep)


@triton.jit
def prepare_queries(
    q, scan, rounded, shift, norms, sizes,
    D: tl.constexpr, BK: tl.constexpr, METRIC: tl.constexpr,
):  # fmt: skip
    """Write each query's normalised and rounded form, its norm, and what bounds the rounding; one program a query."""
    i = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BK)
    total = tl.zeros([BK], dtype=tl.float64)
    for k in tl.static_range(0, D, BK):
        x = tl.load(q + i * D + k + d).to(tl.float64)
        total += x * x
    norm = tl.sqrt(tl.sum(total, axis=0))
    divisor = tl.where(norm > 0, norm, 1.0)
    size = tl.zeros([BK], dtype=tl.float64)
    rest = tl.zeros([BK], dtype=tl.float64)
    for k in tl.static_range(0, D, BK):
        x = tl.load(q + i * D + k + d)
        if METRIC == 1:
            x = (x.to(tl.float64) / divisor).to(tl.float32)
        r = x.to(tl.bfloat16)
        tl.store(scan + i * D + k + d, x)
        tl.store(rounded + i * D + k + d, r)
        away = x.to(tl.float64) - r.to(tl.float64)
        size += x.to(tl.float64) * x.to(tl.float64)
        rest += away * away
    half = norm * norm / 2
    tl.store(norms + i, norm)
    tl.store(shift + i, half.to(tl.float32))
    tl.store(sizes + i * 3, tl.sqrt(tl.sum(size, axis=0)))
    tl.store(sizes + i * 3 + 1, tl.sqrt(tl.sum(rest, axis=0)))
    if METRIC != 2:
        half = half * 0.0
    tl.store(sizes + i * 3 + 2, half)


@triton.jit(do_not_specialize=["slab_rows", "n_slabs", "n_columns", "n_outside", "keep", "k", "map_stride"])
def finish(
    q, norms, sizes, limits, slabs, row_ids, weight, bias, columns, values, outside, places, first, scratch, out,
    slab_rows, n_slabs, n_columns, n_outside, keep, k, map_stride,
    D: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, METRIC: tl.constexpr, WEIGHTED: tl.constexpr,
    SEGMENT: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Score, rank and certify the candidates of one query; write `[2 K + 1]` int64: ids, float64 scores, doubt.

    Column number ``keep`` of ``columns``, where there is one, is the best that was left aside, and so is the first
    of ``outside``, whose rows are ``n_outside`` apart (0: nothing was left out). Doubt is 1 where either could still
    reach the K-th score, 2 where the query is not finite or a score beyond float32.
    """
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, C)
    column = tl.load(columns + i * n_columns + c, mask=c < keep, other=0)
    value = tl.load(values + i * n_columns + c, mask=c < keep, other=float("-inf"))
    known = value > float("-inf")
    if SEGMENT:
        slot = tl.load(first + i) + column // G
        address = tl.load(places + slot, mask=known, other=0) * G + column % G
    else:
        address = tl.load(places + i * map_stride + column // G, mask=known, other=0) * G + column % G
    slab = address // slab_rows
    inside = address % slab_rows
    hi = tl.load(slabs + slab).to(tl.pointer_type(tl.int16))
    lo = tl.load(slabs + n_slabs + slab).to(tl.pointer_type(tl.int16))
    d = tl.arange(0, BK)
    score = tl.zeros([C, BK], dtype=tl.float64)
    square = tl.zeros([C, BK], dtype=tl.float64)
    for j in tl.range(0, D, BK):  # not unrolled: the loads of all steps at once would not fit into the registers
        at = inside[:, None] * D + (j + d)[None, :]
        high = tl.load(hi[:, None] + at, mask=known[:, None], other=0).to(tl.int32)
        low = tl.load(lo[:, None] + at, mask=known[:, None], other=0).to(tl.int32)
        x = ((high << 16) + low).to(tl.float32, bitcast=True).to(tl.float64)
        one = tl.load(q + i * D + j + d).to(tl.float64)[None, :]
        if METRIC == 2:
            score -= (x - one) * (x - one)
        else:
            score += x * one
            if METRIC == 1:
                square += x * x
    norm = tl.load(norms + i)
    score = tl.sum(score, axis=1)
    if METRIC == 1:
        both = tl.sqrt(tl.sum(square, axis=1)) * norm
        score = tl.where(both > 0, score / tl.where(both > 0, both, 1.0), 0.0)
    if WEIGHTED:
        w = tl.load(weight + slab).to(tl.pointer_type(tl.float32))
        b = tl.load(bias + slab).to(tl.pointer_type(tl.float32))
        score = score * tl.load(w + inside).to(tl.float64) + tl.load(b + inside).to(tl.float64)
    score = tl.where(known, score, float("-inf"))
    # Candidates that do not exist rank last, each at a place of its own. Through memory, because the compiler may
    # compute a sum once more in another order for another layout, and then a score would not equal itself.
    names = tl.load(tl.load(row_ids + slab).to(tl.pointer_type(tl.int64)) + inside, mask=known, other=-1)
    order = tl.where(known, names, tl.full([C], 1 << 62, tl.int64) + c)
    tl.store(scratch + i * 2 * C + c, score.to(tl.int64, bitcast=True))
    tl.store(scratch + i * 2 * C + C + c, order)
    tl.debug_barrier()
    score = tl.load(scratch + i * 2 * C + c).to(tl.float64, bitcast=True)
    rank = tl.zeros([C], dtype=tl.int32)
    for j in tl.range(0, C, 16):
        o = scratch + i * 2 * C + j + tl.arange(0, 16)
        other = tl.load(o).to(tl.float64, bitcast=True)[None, :]
        ahead = (other > score[:, None]) | ((other == score[:, None]) & (tl.load(o + C)[None, :] < order[:, None]))
        rank += tl.sum(ahead.to(tl.int32), axis=1)
    row = out + i * (2 * k + 1)
    tl.store(row + rank, tl.where(known, names, -1), mask=rank < k)
    tl.store(row + k + rank, score.to(tl.int64, bitcast=True), mask=rank < k)
    last = tl.max(tl.where(rank == k - 1, score, float("-inf")), axis=0)
    size = tl.load(sizes + i * 3)
    rest = tl.load(sizes + i * 3 + 1)
    shift = tl.load(sizes + i * 3 + 2)
    lost = tl.load(limits)
    kept = tl.load(limits + 1)
    factor = tl.load(limits + 2)
    summand = tl.load(limits + 3)
    # The bound of `_Queries.rounding`, term by term.
    error = size * lost + rest * kept + (D + 8) * 2.384185791015625e-07 * size * (kept + lost)
    error += 4.76837158203125e-07 * (summand + shift * factor) + (D + 8) * 2.350988701644575e-38 * factor
    left = tl.load(values + i * n_columns + keep, mask=keep < n_columns, other=float("-inf"))
    far = tl.load(outside + i * n_outside, mask=n_outside > 0, other=float("-inf"))
    left = tl.maximum(left, far).to(tl.float64)
    # Comparisons the other way round, so that a NaN is doubtful too.
    sure = (left == float("-inf")) | (left + error < last)
    doubt = tl.where(sure, 0, 1)
    # `_LARGEST_NORM` and `_LARGEST_SCORE` of the search.
    largest = size * (kept + lost) + summand + 2 * shift * factor
    doubt = tl.where((norm <= 1e19) & (largest <= 1e38), doubt, 2)
    tl.store(row + 2 * k, doubt.to(tl.int64))
