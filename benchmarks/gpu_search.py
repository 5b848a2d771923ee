"""Exact search on a device beside its peers: checks first, then times.

    python -m benchmarks.gpu_search [--quick] [--tune] [--out DIRECTORY]

Peers run in the same process, in turn with ours, on the same rows. All times are wall clock from queries on the device to
a finished result (ours: on the host, in float64, certified; peers: on the device, rounded). flashlib is a peer where it
is installed: its rows are unit vectors here, so that its L2 ranks as cosine does.
"""

import argparse
import gc
import itertools
import json
import os
import platform
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from agentdb.kernels import DeviceIndex, reference
from agentdb.kernels.primitives import maxsim, mmr, near_duplicates
from benchmarks.harness import Figure, alternate, gate, median, spread

OUT = Path(__file__).parent / "results"


def in_turn(rounds, contestants, each=5, *, is_warm=False):
    """Alternate between contestants, ``each`` runs at a time, after one that is not counted unless they are warm."""

    def several(run):
        if not is_warm:
            run()
        return [run() for _ in range(each)]

    taken = alternate(rounds, **{name: lambda run=run: several(run) for name, run in contestants.items()})
    return {name: [one for runs in blocks for one in runs] for name, blocks in taken.items()}


def timed(work, device):
    def run():
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def ceilings(device, *, quick):
    size = 1 << (24 if quick else 30)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 512 if quick else 8192
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    right = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    copy, gemm = timed(lambda: target.copy_(source), device), timed(lambda: left @ right, device)
    for _ in range(3):
        copy(), gemm()
    taken = alternate(10, copy=copy, gemm=gemm)
    return 2 * size / median(taken["copy"]), 2 * side**3 / median(taken["gemm"])


def make_rows(n, d, device, *, clustered, seed=1):
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.randn(n, d, device=device, generator=generator)
    if clustered:
        centres = torch.randn(max(1, n // 250), d, device=device, generator=generator)
        rows = centres[torch.randint(0, len(centres), (n,), device=device, generator=generator)] + 0.4 * rows
    return rows / rows.norm(dim=1, keepdim=True)


def check(found, queries, rows, owners=None, query_owners=None, sample=32):
    """Compare with float64: the ids equal up to equal scores."""
    pick = np.linspace(0, len(queries) - 1, min(sample, len(queries))).astype(int)
    k = found.ids.shape[1]
    exact_rows = rows
    for i in pick:
        query = queries[i].double()
        part = torch.arange(len(rows), device=rows.device)
        if owners is not None:
            part = (owners == query_owners[i]).nonzero().squeeze(1)
        scores = torch.cat(
            [(exact_rows[c].double() @ query) / exact_rows[c].double().norm(dim=1) for c in part.split(1 << 17)]
        )
        scores /= query.norm()
        best = scores.topk(min(k, len(part))).values.cpu().numpy()
        ids = torch.from_numpy(found.ids[i][: len(best)]).to(rows.device)
        assert (ids >= 0).all()
        assert len(torch.unique(ids)) == len(ids)
        mine = (rows[ids].double() @ query) / rows[ids].double().norm(dim=1) / query.norm()
        assert np.abs(mine.cpu().numpy() - best).max() < 1e-12, f"query {i}: another set of rows"
        assert np.abs(found.scores[i][: len(best)] - best).max() < 1e-6, f"query {i}: scores differ"


def mm_topk(queries, rows, k):
    if rows.dtype == torch.bfloat16 and rows.is_cuda:
        return torch.mm(queries, rows.T, out_dtype=torch.float32).topk(k, dim=1)
    return (queries @ rows.T).float().topk(k, dim=1)


def two_level(queries, rows, k, chunk=1 << 16):
    values, places = [], []
    for begin in range(0, len(rows), chunk):
        part = rows[begin : begin + chunk]
        scores = torch.mm(queries, part.T, out_dtype=torch.float32) if rows.is_cuda else queries @ part.T
        top = scores.topk(k, dim=1)
        values.append(top.values)
        places.append(top.indices + begin)
    values, places = torch.cat(values, 1), torch.cat(places, 1)
    top = values.topk(k, dim=1)
    return top.values, places.gather(1, top.indices)


def flashlib_search():
    try:
        from flashlib.primitives.knn import flash_knn
    except ImportError as error:
        print(f"flashlib is no peer: {error}")
        return None
    return lambda queries, rows, k: flash_knn(queries[None], rows[None], k)


def flat(figures, device, rate, flops, *, quick):
    n, d, k = (20_000, 384, 10) if quick else (1_000_000, 384, 10)
    rounds = 2 if quick else 8
    for clustered in (False, True):
        rows = make_rows(n, d, device, clustered=clustered)
        kind = "clustered" if clustered else "random"
        index = DeviceIndex(d, device=device)
        start = time.perf_counter()
        index.put(np.arange(n), rows)
        figures.append(Figure(f"put {n} rows from the device, {kind}", time.perf_counter() - start, "s"))
        rounded = rows.to(torch.bfloat16)
        compiled = torch.compile(two_level) if device.type == "cuda" and not clustered else None
        flash = flashlib_search() if device.type == "cuda" else None
        for n_queries in (1, 64, 1024):
            queries = make_rows(n_queries, d, device, clustered=False, seed=n_queries + 7)
            if clustered:
                queries = rows[:: max(1, n // n_queries)][:n_queries] + 0.03 * queries
            q16 = queries.to(torch.bfloat16)
            found = index.search(queries, k)
            with gate(f"flat {kind} Q={n_queries}"):
                check(found, queries, rows)
            contestants = {
                "ours": timed(lambda index=index, queries=queries: index.search(queries, k), device),
                "mm_topk": timed(lambda q16=q16, rounded=rounded: mm_topk(q16, rounded, k), device),
                "two_level": timed(lambda q16=q16, rounded=rounded: two_level(q16, rounded, k), device),
            }
            if flash is not None:
                contestants["flashlib"] = timed(
                    lambda q16=q16, rounded=rounded, flash=flash: flash(q16, rounded, k), device
                )  # fmt: skip
            if compiled is not None and n_queries > 1:
                contestants["compiled"] = timed(
                    lambda q16=q16, rounded=rounded, compiled=compiled: compiled(q16, rounded, k), device
                )
            cold = {}
            for name, run in list(contestants.items()):
                try:
                    cold[name] = run()
                    run()
                except Exception as error:  # a peer that does not run is reported, not hidden
                    print(f"peer {name} failed: {type(error).__name__}: {str(error)[:200]}")
                    del contestants[name]
            with gate(f"flat {kind} Q={n_queries}, repeated"):
                found = index.search(queries, k)
                check(found, queries, rows)
            taken = in_turn(rounds, contestants)
            ours = median(taken["ours"])
            floor = max(2 * n * d / (rate / 1), 2.0 * n * d * n_queries / flops)
            label = f"{kind} N={n} D={d} k={k} Q={n_queries}"
            figures.append(
                Figure(
                    f"{label}: ours",
                    ours * 1e3,
                    "ms",
                    detail={
                        **spread(taken["ours"]),
                        "widened": found.counts.widened,
                        "scanned": found.counts.scanned,
                        "replayed": found.counts.replayed,
                        "first_s": cold["ours"],
                    },
                )
            )
            for name in contestants:
                if name != "ours":
                    figures.append(
                        Figure(f"{label}: {name}", median(taken[name]) * 1e3, "ms", detail=spread(taken[name]))
                    )
            bar = {64: 2.0, 1024: 4.0}.get(n_queries) if not quick and not clustered else None
            figures.append(Figure(f"{label}: over mm_topk", median(taken["mm_topk"]) / ours, "x", bar, higher=True))
            bar = 40.0 if n_queries == 1024 and not quick and not clustered else None
            figures.append(Figure(f"{label}: of the ceiling", 100 * floor / ours, "%", bar, higher=True))
        print_last(figures)
        if not clustered:
            appending(figures, index, device, quick=quick)
        del index, rows, rounded


def appending(figures, index, device, *, quick):
    """Search while another thread adds 10,000 rows at a time, ten times."""
    d, count = index.dimension, 1_000 if quick else 10_000
    queries = make_rows(64, d, device, clustered=False, seed=99)
    # New rows each time: copies of one row tie with each other, and ties cost more.
    extra = np.random.default_rng(5).standard_normal((10, count, d)).astype(np.float32)
    run = timed(lambda: index.search(queries, 10), device)
    searches = 20 if quick else 1_000
    for _ in range(5):
        run()
    alone = [run() for _ in range(searches)]
    puts = []

    def add():
        for number, rows in enumerate(extra):
            time.sleep(0.05)
            start = time.perf_counter()
            index.put(np.arange(count) + 10_000_000 + number * count, rows)
            puts.append(time.perf_counter() - start)

    thread = threading.Thread(target=add)
    before, beside = index.counts, []
    thread.start()
    while thread.is_alive():
        beside.append(run())
    thread.join()
    counts = index.counts
    after = [run() for _ in range(searches)]
    with gate("search while adding"):
        found = index.search(torch.from_numpy(extra[:, 7]).to(device), 1)
        np.testing.assert_allclose(found.scores, 1.0, atol=1e-6)
    p95 = lambda values: sorted(values)[int(len(values) * 0.95)]  # noqa: E731
    figures.append(
        Figure(
            "p95 of a search while 10k rows are added, over alone",
            p95(beside) / p95(alone),
            "x",
            None if quick else 2.0,
            detail={
                "alone_ms": p95(alone) * 1e3,
                "beside_ms": p95(beside) * 1e3,
                "after_ms": p95(after) * 1e3,
                "median_alone_ms": median(alone) * 1e3,
                "median_beside_ms": median(beside) * 1e3,
                "slowest_beside_ms": max(beside) * 1e3,
                "searches": len(beside),
                "replayed": (counts.replayed - before.replayed) / (counts.queries - before.queries),
                "widened": counts.widened - before.widened,
                "appends": len(puts),
                "append_ms": median(puts) * 1e3,
            },
        )
    )


def segments(figures, device, rate, *, quick):
    agents, mean, d, k = (20, 200, 384, 10) if quick else (1000, 4000, 384, 10)
    rounds = 2 if quick else 8
    for kind in ("even", "ragged"):
        generator = np.random.default_rng(3)
        sizes = (
            np.full(agents, mean) if kind == "even" else generator.integers(mean // 4, mean * 7 // 4, agents)
        ).astype(np.int64)
        n = int(sizes.sum())
        rows = make_rows(n, d, device, clustered=True)
        owners = np.repeat(np.arange(agents), sizes)
        index = DeviceIndex(d, device=device)
        index.put(np.arange(n), rows, owners=owners)
        widest = int(sizes.max())
        ends = np.cumsum(sizes)
        rounded = rows.to(torch.bfloat16)
        padded = torch.zeros(agents, widest, d, device=device, dtype=torch.bfloat16)
        for a in range(agents):
            padded[a, : sizes[a]] = rounded[ends[a] - sizes[a] : ends[a]]
        # What answers as exactly as ours does, up to float32's own rounding.
        padded32 = torch.zeros(agents, widest, d, device=device)
        for a in range(agents):
            padded32[a, : sizes[a]] = rows[ends[a] - sizes[a] : ends[a]]
        away = torch.arange(widest, device=device)[None, :] >= torch.from_numpy(sizes).to(device)[:, None]
        parts = [rounded[ends[a] - sizes[a] : ends[a]] for a in range(agents)]
        for each_queries in (1, 8):
            query_owners = np.repeat(np.arange(agents), each_queries)
            queries = make_rows(agents * each_queries, d, device, clustered=False, seed=11)
            q16 = queries.to(torch.bfloat16).view(agents, each_queries, d)

            def loop(q16=q16, parts=parts):
                for a in range(agents):
                    mm_topk(q16[a], parts[a], k)

            def bmm(q16=q16, padded=padded, away=away):
                if padded.is_cuda:
                    scores = torch.bmm(q16, padded.transpose(1, 2), out_dtype=torch.float32)
                else:
                    scores = torch.bmm(q16, padded.transpose(1, 2)).float()
                scores.masked_fill_(away[:, None, :], float("-inf")).topk(k, dim=2)

            def bmm32(queries=queries, padded=padded32, away=away, count=each_queries):
                scores = torch.bmm(queries.view(agents, count, d), padded.transpose(1, 2))
                scores.masked_fill_(away[:, None, :], float("-inf")).topk(k, dim=2)

            found = index.search_segments(queries, query_owners, k)
            with gate(f"segments {kind}"):
                check(
                    found, queries, rows, torch.from_numpy(owners).to(device), query_owners
                )  # fmt: skip
            contestants = {
                "ours": timed(
                    lambda index=index, q=queries, o=query_owners: index.search_segments(q, o, k), device
                ),
                "loop": timed(loop, device),
                "bmm": timed(bmm, device),
                "bmm_float32": timed(bmm32, device),
            }  # fmt: skip
            for run in contestants.values():
                run(), run()
            taken = in_turn(rounds, contestants)
            ours = median(taken["ours"])
            label = f"{agents} agents x {mean} {kind}, {each_queries} queries each"
            is_bar = not quick and each_queries == 1
            figures.append(
                Figure(
                    f"{label}: ours",
                    ours * 1e3,
                    "ms",
                    2.5 if is_bar else None,
                    detail={
                        **spread(taken["ours"]), "widened": found.counts.widened, "floor_ms": 2e3 * n * d / rate
                    },
                )
            )  # fmt: skip
            for name, bar in (("loop", 10.0), ("bmm", 2.0), ("bmm_float32", None)):
                figures.append(Figure(f"{label}: {name}", median(taken[name]) * 1e3, "ms", detail=spread(taken[name])))
                figures.append(
                    Figure(
                        f"{label}: over {name}", median(taken[name]) / ours, "x", bar if is_bar else None, higher=True
                    )
                )
        print_last(figures)
        del rows, rounded, padded, padded32, parts, index


def primitives(figures, device, *, quick):
    """Late interaction, diversity and near-duplicates beside the same in plain torch."""
    generator = torch.Generator(device).manual_seed(4)
    rounds, small = (2, 20) if quick else (5, 1)

    def race(label, contestants, detail=None):
        for run in contestants.values():
            run(), run()
        taken = in_turn(rounds, contestants, each=3)
        for name, seconds in taken.items():
            figures.append(
                Figure(f"{label}: {name}", median(seconds) * 1e3, "ms", detail={**spread(seconds), **(detail or {})})
            )
        figures.append(
            Figure(f"{label}: over torch", median(taken["torch"]) / median(taken["ours"]), "x", None, higher=True)
        )  # fmt: skip

    n_docs, d, n_queries, query_tokens = 10_000 // small, 128, 16, 32
    lengths = np.random.default_rng(8).integers(20, 181, n_docs)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = torch.randn(int(offsets[-1]), d, device=device, generator=generator)
    queries = torch.randn(n_queries, query_tokens, d, device=device, generator=generator)
    padded = torch.zeros(n_docs, int(lengths.max()), d, device=device)
    away = torch.arange(padded.shape[1], device=device)[None] >= torch.from_numpy(lengths).to(device)[:, None]
    padded[~away] = tokens

    def padded_maxsim():
        scores = torch.einsum("qtd,nsd->qnts", queries, padded)
        return scores.masked_fill_(away[None, :, None], float("-inf")).amax(3).sum(2)

    with gate("maxsim"):
        mine = maxsim(queries, tokens, offsets, device=device)
        few = [0, n_docs // 2, n_docs - 1]
        for doc in few:
            part = queries.double() @ tokens[offsets[doc] : offsets[doc + 1]].double().T
            assert np.allclose(mine[:, doc], part.amax(2).sum(1).cpu().numpy(), rtol=1e-5)
    race(
        f"MaxSim, {n_queries} queries x {query_tokens} tokens, {n_docs} documents of 20 to 180 tokens, D={d}",
        {
            "ours": timed(lambda: maxsim(queries, tokens, offsets, device=device), device),
            "torch": timed(padded_maxsim, device),
        },
        {"tokens": int(offsets[-1])},
    )

    n_queries, n, d = 1_000 // small, 128, 384
    candidates = torch.randn(n_queries, n, d, device=device, generator=generator)
    relevance = torch.rand(n_queries, n, device=device, generator=generator, dtype=torch.float64)
    with gate("mmr"):
        mine = mmr(candidates, relevance, 10, weight=0.5, device=device)
        want = reference.mmr(candidates[3].cpu().numpy(), relevance[3].cpu().numpy(), 10, weight=0.5)
        assert np.array_equal(mine[3], want)
    race(
        f"MMR, {n_queries} queries, 10 of {n} candidates, D={d}",
        {
            "ours": timed(lambda: mmr(candidates, relevance, 10, weight=0.5, device=device), device),
            "torch": timed(lambda: mmr(candidates, relevance, 10, weight=0.5, device=device, prefer="torch"), device),
        },
    )

    n, d = 100_000 // small, 384
    rows = make_rows(n, d, device, clustered=False)
    rows[n // 2 : n // 2 + n // 100] = rows[: n // 100] + 0.005 * rows[n // 2 : n // 2 + n // 100]
    with gate("near-duplicates"):
        pairs, _ = near_duplicates(rows, 0.95, device=device)
        assert {(i, n // 2 + i) for i in range(n // 100)} == set(map(tuple, pairs.tolist()))
    race(
        f"near-duplicates among {n} rows, D={d}",
        {
            "ours": timed(lambda: near_duplicates(rows, 0.95, device=device), device),
            "torch": timed(lambda: near_duplicates(rows, 0.95, device=device, prefer="torch"), device),
        },
        {"pairs": len(pairs)},
    )
    print_last(figures)


def print_last(figures, seen=[0]):  # noqa: B006
    for one in figures[seen[0] :]:
        print(one.line(), flush=True)
    seen[0] = len(figures)


def tune(device):
    """Time shapes of the fused product and of the paged scores; not part of the figures."""
    import triton
    from triton.tools.tensor_descriptor import TensorDescriptor

    from agentdb.kernels import triton_kernels as programs

    n, d = 262144, 384
    x = make_rows(n, d, device, clustered=False).to(torch.bfloat16)
    alpha, beta = torch.ones(n, device=device), torch.zeros(n, device=device)
    bits = torch.full((n // 32,), -1, dtype=torch.int32, device=device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    for n_queries in (1, 64, 1024):
        q = make_rows(n_queries, d, device, clustered=False).to(torch.bfloat16)
        results = []
        if n_queries == 1:
            shapes = itertools.product((0,), (64, 128), (16,), (64, 128), (4,), (2, 3, 4))
        elif n_queries == 64:
            shapes = [
                *itertools.product((0,), (64, 128), (64,), (64, 128), (4,), (3, 4)),
                *itertools.product((1, 2, 3), (64, 128, 256), (64,), (64,), (4,), (3, 4)),
            ]
        else:
            tiles = (((128, 128), 4), ((128, 128), 8), ((128, 256), 8), ((256, 128), 8), ((256, 64), 4))
            # How many programs of a kind share a multiprocessor; 99 is one program a tile.
            shapes = (
                (each, *tile, 64, warps, stages)
                for each in (1, 2, 99)
                for tile, warps in tiles
                for stages in (3, 4)
            )  # fmt: skip
        for each, br, bq, bk, warps, stages in shapes:
            if (br + bq) * bk * 2 * stages * (min(each, 3) if each != 99 else 1) > 228_000:
                continue
            group = min(32, br)
            out = torch.full((n_queries, n // group), float("nan"), device=device)
            grid = (triton.cdiv(n_queries, bq), triton.cdiv(n, br))
            table = torch.tensor([one.data_ptr() for one in (x, x, alpha, beta, bits)], device=device)
            common = (table, alpha, torch.tensor([n], device=device), out, n_queries, n // group, n, 1)
            shape = {"D": d, "BR": br, "BQ": bq, "BK": bk, "G": group, "SHIFT": False, "WIDE": False}

            def run(each=each, bq=bq, br=br, bk=bk, warps=warps, grid=grid, common=common, shape=shape, q=q, st=stages):  # fmt: skip
                if each:
                    qd, xd = TensorDescriptor.from_tensor(q, [bq, bk]), TensorDescriptor.from_tensor(x, [br, bk])
                    programs_of = min(grid[0] * grid[1], each * processors if each != 99 else 1 << 30)
                    return programs.group_max_tma[(programs_of,)](
                        qd, xd, *common, 0, **shape, num_warps=warps, num_stages=st
                    )
                return programs.group_max[(grid[0] * grid[1],)](q, *common, **shape, STAGES=st, num_warps=warps)

            try:
                kernel = run()
                torch.cuda.synchronize()
                ms = triton.testing.do_bench(run, warmup=3, rep=15, return_mode="median")
                results.append((ms, each, br, bq, bk, warps, stages, kernel.n_spills))
            except Exception as error:
                results.append((1e9, each, br, bq, bk, warps, stages, f"{type(error).__name__} {str(error)[:60]}"))
        results.sort(key=lambda one: one[0])
        print(f"group_max Q={n_queries} N={n}: ms, TMA programs each, BR, BQ, BK, warps, stages, spills")
        for one in results[:14]:
            print(
                "   ", *one, f"{2 * n * d * n_queries / one[0] / 1e9:.0f} TFLOP/s {2 * n * d / one[0] / 1e6:.0f} GB/s"
            )
        print("    failed:", sum(one[0] > 1e8 for one in results), next((o for o in results if o[0] > 1e8), ""))
    tune_segments(device, programs, triton)


def tune_segments(device, programs, triton):
    agents, each, d = 1000, 63, 384
    pages_total = agents * each
    index = DeviceIndex(d, device=device)
    rows = make_rows(pages_total * 64, d, device, clustered=False)
    index.put(np.arange(len(rows)), rows, owners=np.repeat(np.arange(agents), each * 64))
    view = index._state.view
    pages = torch.arange(pages_total, device=device)
    tiles = torch.stack(
        [torch.arange(agents), torch.ones(agents), torch.arange(agents) * each, torch.full((agents,), each)], 1
    ).long()
    tiles = tiles.to(device).contiguous()
    q = make_rows(agents, d, device, clustered=False).to(torch.bfloat16)
    out = torch.empty(agents, each * 64, device=device)
    results = []
    shapes = [
        *itertools.product((True,), (2, 8, 32), (64, 128), (4, 8), (1, 3)),
        *itertools.product((False,), (2, 8, 32), (64, 128), (4,), (1, 2, 3)),
    ]
    for one, chunk, bk, warps, stages in shapes:
        grid = (triton.cdiv(each, chunk) * agents,)
        args = (q, view.table, tiles, pages, view.alpha[0], out, view.slab_rows, view.n_slabs, each * 64)
        shape = {"D": d, "BK": bk, "P": 64, "CH": chunk, "SHIFT": False, "STAGES": stages, "num_warps": warps}

        def run(one=one, grid=grid, args=args, shape=shape):
            if one:
                return programs.segment_scores_one[grid](*args, **shape)
            return programs.segment_scores[grid](*args, **shape, BQ=16, WIDE=False)

        try:
            kernel = run()
            torch.cuda.synchronize()
            ms = triton.testing.do_bench(run, warmup=5, rep=25, return_mode="median")
            results.append((ms, one, chunk, bk, warps, stages, kernel.n_spills))
        except Exception as error:
            results.append((1e9, one, chunk, bk, warps, stages, f"{type(error).__name__} {str(error)[:60]}"))
    results.sort(key=lambda one: one[0])
    print("segment scores 1000 x 4032: ms, one, chunk, BK, warps, stages, spills")
    for one in results[:10]:
        print("   ", *one, f"{2 * pages_total * 64 * d / one[0] / 1e6:.0f} GB/s")
    best = next((one for one in results if not one[1]), None)
    print("    best with the matrix unit:", best)


def profile(device):
    """Print where a search spends its time on the device."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    n, d = 1_000_000, 384
    index = DeviceIndex(d, device=device)
    index.put(np.arange(n), make_rows(n, d, device, clustered=False), owners=np.arange(n) // 4000)
    queries = make_rows(1024, d, device, clustered=False, seed=3)
    work = {
        "Q=1024": lambda: index.search(queries, 10),
        "Q=64": lambda: index.search(queries[:64], 10),
        "250 agents": lambda: index.search_segments(queries[:250], np.arange(250), 10),
    }
    for name, run in work.items():
        run(), run()
        with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            run()
            torch.cuda.synchronize()
        print(name, recorded.key_averages().table(sort_by="cuda_time_total", row_limit=14, max_name_column_width=50))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cpu" and not given.quick:
        sys.exit("there is no CUDA device: --quick runs the checks at small sizes on the CPU")
    if given.tune:
        tune(device)
    if given.profile:
        profile(device)
    if given.tune or given.profile:
        return
    for operation, choice in DeviceIndex(8, device=device).explain().items():
        print(f"{operation:<16} {choice.backend:<7} {choice.reason}")
    gc.collect()
    gc.freeze()
    rate, flops = ceilings(device, quick=given.quick)
    figures = [Figure("copy, read plus written", rate / 1e9, "GB/s"), Figure("bf16 product", flops / 1e12, "TF/s")]
    print_last(figures)
    segments(figures, device, rate, quick=given.quick)
    flat(figures, device, rate, flops, quick=given.quick)
    primitives(figures, device, quick=given.quick)
    print_last(figures)
    given.out.mkdir(parents=True, exist_ok=True)
    save(figures, given.out / f"gpu_search{'_quick' if given.quick else ''}.json", device, quick=given.quick)


def save(figures, target, device, *, quick):
    hardware = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if device.type == "cuda":
        import triton

        hardware["triton"] = triton.__version__
    result = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": quick,
        "hardware": hardware,
        "figures": [{**asdict(one), "met": one.met} for one in figures],
    }
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {target}")


if __name__ == "__main__":
    main()
