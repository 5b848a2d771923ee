"""Checks of the kernels against their oracles, on any device: pytest on the CPU and on a GPU, and Triton's interpreter."""

import itertools
import sys
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch

from agentdb.kernels import reference
from agentdb.kernels.index import DeviceIndex
from agentdb.kernels.primitives import maxsim, mmr, near_duplicates, nearest
from agentdb.kernels.search import _tiles


@contextmanager
def poisoned():
    """Memory that is not written first holds NaN or a number that is no place of anything."""
    with mock.patch.multiple(torch, empty=_full(torch.empty), empty_like=_full(torch.empty_like)):
        yield


def _full(make):
    def made(*shape, **options):
        tensor = make(*shape, **options)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max // 2)

    return made


def make(n, d, generator, *, kind):
    rows = generator.standard_normal((n, d)).astype(np.float32)
    if kind == "clustered" and n:
        rows = (rows[generator.integers(0, max(1, n // 50), n)] + 0.05 * rows).astype(np.float32)
    if kind == "duplicates" and n > 1:
        rows[n // 2 :] = rows[: n - n // 2]
    return rows


@poisoned()
def search_case(
    device,
    n,
    d,
    n_queries,
    k,
    metric,
    *,
    kind="random",
    weighted=False,
    is_segmented=False,
    slab_rows=256,
    prefer=None,
    seed=0,
):
    """Put in two parts, delete a tenth, replace some, search, and compare with float64."""
    generator = np.random.default_rng(seed)
    rows = make(n, d, generator, kind=kind)
    queries = make(n_queries, d, generator, kind="random")
    if kind != "random" and n:
        queries[0] = rows[0]
    ids = np.sort(generator.permutation(3 * n + 1)[:n])
    owners = generator.integers(0, 7, n) * 5
    alpha = generator.random(n).astype(np.float32) + 0.1 if weighted else None
    beta = generator.standard_normal(n).astype(np.float32) * 0.1 if weighted else None
    index = DeviceIndex(d, metric=metric, device=device, slab_rows=slab_rows, prefer=prefer)
    order = generator.permutation(n)
    for part in (order[: n // 3], order[n // 3 :], order[n // 2 : n // 2 + 5]):
        index.put(
            ids[part],
            rows[part],
            owners=owners[part],
            alpha=None if alpha is None else alpha[part],
            beta=None if beta is None else beta[part],
        )
    dead = ids[generator.permutation(n)[: n // 10]]
    assert index.delete(dead) == len(dead)
    live = ~np.isin(ids, dead)
    assert len(index) == live.sum()
    assert np.array_equal(index.get(ids[live]), rows[live])
    if is_segmented:
        wanted = generator.integers(0, 8, n_queries) * 5
        found = index.search_segments(queries, wanted, k)
        scores, best = reference.segmented_topk(
            queries, wanted, rows, owners, k, metric, alpha=alpha, beta=beta, live=live
        )
    else:
        found = index.search(queries, k)
        scores, best = reference.topk(queries, rows, k, metric, alpha=alpha, beta=beta, live=live)
    same_up_to_equal_scores(found, scores, np.where(best >= 0, ids[best] if n else -1, -1))
    return found


def same_up_to_equal_scores(found, scores, ids):
    assert found.ids.shape == ids.shape
    assert ((found.ids >= 0) == (ids >= 0)).all()
    known = ids >= 0
    np.testing.assert_allclose(found.scores[known], scores[known], rtol=1e-5, atol=1e-6)
    assert (found.scores[~known] == -np.inf).all()
    other = found.ids != ids
    if other.any():
        # Sums in another order: only scores that are equal to a few ulp of float64 may have changed places.
        for query in np.flatnonzero(other.any(axis=1)):
            mine, theirs = set(found.ids[query]), set(ids[query])
            last = scores[query][known[query]][-1]
            where = {name: place for place, name in enumerate(ids[query])}
            assert all(abs(scores[query][where[one]] - last) < 1e-12 * max(1, abs(last)) for one in theirs - mine)
            for place in np.flatnonzero(other[query]):
                if found.ids[query][place] in where:
                    rank = where[found.ids[query][place]]
                    assert abs(scores[query][rank] - scores[query][place]) < 1e-12 * max(1, abs(last))
    for row in found.ids:
        assert len(set(row[row >= 0])) == (row >= 0).sum()


@poisoned()
def operations_case(device, *, metric="cosine", prefer=None, n=700, d=40, n_queries=5, seed=0):
    """Every step of a search by itself: approximate scores within the bound that is claimed for them, exact ones exactly."""
    generator = np.random.default_rng(seed)
    rows, queries = make(n, d, generator, kind="clustered"), make(n_queries, d, generator, kind="random")
    factors, summands = (generator.random(n).astype(np.float32) for _ in range(2))
    index = DeviceIndex(d, metric=metric, device=device, slab_rows=256, prefer=prefer)
    index.put(np.arange(n), rows, owners=generator.integers(0, 4, n), alpha=factors, beta=summands)
    index.delete(generator.permutation(n)[: n // 3])
    index.delete(np.arange(n - 70, n))
    view, search = index._state.view, index._searcher
    q = search._prepare(view, search._pad(torch.from_numpy(queries).to(device)))
    bound = q.rounding(view).cpu().numpy()[:, None]
    at = index._lookup(np.arange(n))
    want = np.full((n_queries, -(-view.n_rows // 128) * 128), -np.inf)
    scores = reference.similarities(queries, rows, metric) * factors.astype(float) + summands.astype(float)
    want[:, at[at >= 0]] = scores[:, at >= 0]

    def near(found, wanted):
        found = found.cpu().numpy().astype(float)
        assert found.shape == wanted.shape
        with np.errstate(invalid="ignore"):  # -inf less -inf
            assert ((found == wanted) | (np.abs(found - wanted) <= bound)).all(), np.nanmax(np.abs(found - wanted))

    norms = np.linalg.norm(queries.astype(float), axis=1)
    np.testing.assert_allclose(q.norms.cpu().numpy(), norms, rtol=1e-12)
    torch.testing.assert_close(q.rounded.float(), q.scan, rtol=2.0**-7, atol=0.0)  # the interpreter cuts off
    for group in (8, 64):
        maxima = search._ops("group_max").group_max(view, q.scan, q.rounded, q.shift, group)
        used = view.n_groups(group)
        near(maxima[:, :used], want.reshape(n_queries, -1, group).max(axis=2)[:, :used])
        assert torch.isneginf(maxima[:, used:]).all()
        groups = np.stack([generator.permutation(used)[:7] for _ in queries])
        given = torch.from_numpy(groups).to(device)
        found = search._ops("rescore_groups").rescore_groups(view, q.scan, given, q.shift, group)
        places = (groups[:, :, None] * group + np.arange(group)).reshape(n_queries, -1)
        near(found, np.take_along_axis(want, places, axis=1))
    places = generator.choice(at[at >= 0], (n_queries, 37))
    exact = np.take_along_axis(want, places, axis=1)
    places[:, ::5], exact[:, ::5] = -1, -np.inf
    found = search._ops("exact_scores").exact_scores(view, q.plain, q.norms, torch.from_numpy(places).to(device))
    np.testing.assert_allclose(found.cpu().numpy(), exact, rtol=1e-11, atol=1e-12)
    owners, first, order, pages = index._state.segments
    for wanted in (np.arange(min(4, n_queries)), np.sort(generator.integers(0, 2, n_queries))):
        slot = np.searchsorted(owners, wanted)
        n_pages = first[slot + 1] - first[slot]
        tiles, most = _tiles(wanted, first[slot], n_pages)
        width = (int(n_pages.max()) + 1) * view.page
        some = q.part(0, len(wanted))
        given = torch.from_numpy(tiles).to(device)
        found = search._ops("segment_scores").segment_scores(
            view, some.rounded, some.shift, given, pages, width, most
        ).cpu().numpy()  # fmt: skip
        for i, (begin, count) in enumerate(zip(first[slot], n_pages, strict=True)):
            here = (order[begin : begin + count, None] * view.page + np.arange(view.page)).ravel()
            with np.errstate(invalid="ignore"):
                off = np.abs(found[i, : len(here)] - want[i, here])
            assert ((found[i, : len(here)] == want[i, here]) | (off <= bound[i])).all()
            assert np.isneginf(found[i, len(here) :]).all()
    for columns in (40, 64, 2048):
        table = generator.integers(-5, 5, (3, columns)).astype(np.float32)
        table[:, ::3] = -np.inf
        indices, values = search._top(torch.from_numpy(table).to(device), 20)
        indices, values = indices.cpu().numpy()[:, :20], values.cpu().numpy()[:, :20]
        np.testing.assert_array_equal(values, -np.sort(-table, axis=1)[:, :20])
        np.testing.assert_array_equal(np.take_along_axis(table, indices, axis=1), values)
        assert all(len(set(one)) == 20 for one in indices.tolist())


@poisoned()
def maxima_case(device, *, n=200, d=128, n_queries=70, prefer=None):
    """Group maxima for more queries than one product takes: on a GPU by the copy engine."""
    generator = np.random.default_rng(1)
    rows, queries = make(n, d, generator, kind="clustered"), make(n_queries, d, generator, kind="random")
    index = DeviceIndex(d, metric="l2", device=device, slab_rows=128, prefer=prefer)
    index.put(np.arange(n), rows)
    index.delete(np.arange(50))
    view, search = index._state.view, index._searcher
    q = search._prepare(view, search._pad(torch.from_numpy(queries).to(device)))
    maxima = search._ops("group_max").group_max(view, q.scan, q.rounded, q.shift, 8).cpu().numpy()
    want = np.full((n_queries, 8 * maxima.shape[1]), -np.inf)
    want[:, 50:n] = reference.similarities(queries, rows, "l2")[:, 50:]
    want = want.reshape(n_queries, -1, 8).max(axis=2)
    with np.errstate(invalid="ignore"):  # -inf less -inf
        off = np.abs(maxima - want)
    assert ((maxima == want) | (off <= q.rounding(view).cpu().numpy()[:, None])).all()


@poisoned()
def primitives_case(device, *, prefer=None, d=24, seed=0, tokens_dtype=np.float32):
    generator = np.random.default_rng(seed)
    lengths = np.array([3, 0, 70, 1, 17])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    scale = 1e-5 * max(10, d)
    tokens = generator.standard_normal((offsets[-1], d)).astype(tokens_dtype)
    queries = generator.standard_normal((3, 5, d)).astype(tokens_dtype)
    weights = generator.random((3, 5)).astype(np.float32)
    weights[1, 3:] = 0
    got = maxsim(queries, tokens, offsets, query_weights=weights, device=device, prefer=prefer)
    np.testing.assert_allclose(
        got, reference.maxsim(queries, tokens, offsets, query_weights=weights), rtol=1e-4, atol=scale
    )
    candidates = generator.standard_normal((4, 21, d)).astype(np.float32)
    candidates[0, 1] = candidates[0, 0]
    relevance = generator.random((4, 21))
    relevance[1, 4:] = -np.inf
    relevance[2] = -np.inf
    for weight in (0.0, 0.3, 1.0):
        got = mmr(candidates, relevance, 9, weight=weight, device=device, prefer=prefer)
        want = [reference.mmr(c, r, 9, weight=weight) for c, r in zip(candidates, relevance, strict=True)]
        np.testing.assert_array_equal(got, np.stack(want))
    rows = generator.standard_normal((90, d)).astype(np.float32)
    rows[40:60] = rows[:20] + 0.02 * rows[40:60]
    rows[60:63] = rows[40:43] + 0.02 * rows[60:63]
    rows[70] = 0
    rows = np.concatenate([rows, np.repeat(rows[:1], 50, axis=0)])  # more pairs than there is room for at first
    for threshold in (0.5, 0.99):
        pairs, labels = near_duplicates(rows, threshold, device=device, prefer=prefer)
        want_pairs, want_labels = reference.near_duplicates(rows, threshold)
        np.testing.assert_array_equal(pairs, want_pairs)
        np.testing.assert_array_equal(labels, want_labels)


@poisoned()
def nearest_case(device, n_queries, n, d, k, least, *, share=0.7, seed=0):
    """Neighbours among the rows that a random mask leaves, some of them equal, some zero, against float64."""
    generator = np.random.default_rng(seed)
    queries, rows = (generator.standard_normal((size, d)).astype(np.float32) for size in (n_queries, n))
    rows[n // 2 :] = rows[: n - n // 2]
    rows[n // 3 : n // 3 + 2] = 0
    queries[: n // 4] = rows[: min(n // 4, n_queries)]
    allowed = generator.random((n_queries, n)) < share
    allowed[n_queries // 2 :][:1] = False
    at, cosines = nearest(queries, rows, k, allowed=allowed, least=least, device=device)
    assert at.dtype == np.int64
    assert cosines.dtype == np.float32
    for query, mask, mine, found in zip(queries, allowed, at, cosines, strict=True):
        # All of them, so that what is equal up to an ulp of float64 may change places anywhere.
        scores, order = reference.topk(query[None], rows, n, "cosine", live=mask)
        scores, order = scores[0][order[0] >= 0], order[0][order[0] >= 0]
        wanted = int(min(k, (scores >= least).sum()))
        assert (mine[wanted:] == -1).all()
        assert (found[wanted:] == -np.inf).all()
        np.testing.assert_allclose(found[:wanted], scores[:wanted], rtol=1e-6, atol=1e-7)
        exact = dict(zip(order.tolist(), scores.tolist(), strict=True))
        np.testing.assert_allclose([exact[one] for one in mine[:wanted].tolist()], scores[:wanted], rtol=0, atol=1e-14)
        for one, other in itertools.pairwise(mine[:wanted].tolist()):
            assert one < other or not np.array_equal(rows[one], rows[other])
        if wanted:
            last = int(mine[wanted - 1])
            twins = np.flatnonzero((rows[:last] == rows[last]).all(axis=1) & mask[:last])
            assert set(twins.tolist()) <= set(mine.tolist())


def interpreted():
    """Small shapes of everything in Triton's interpreter."""
    from agentdb.kernels.choice import OPERATIONS, choose

    for name, ways in OPERATIONS.items():
        assert choose(name, "cpu").backend == ways[0], choose(name, "cpu")
    with ranges_of_scalars():
        search_case("cpu", 300, 20, 2, 3, "cosine", kind="duplicates", slab_rows=128)
        search_case("cpu", 200, 16, 2, 3, "l2", weighted=True, slab_rows=128)
        search_case("cpu", 260, 16, 3, 3, "dot", is_segmented=True, slab_rows=128)
        search_case("cpu", 64, 1536, 2, 2, "cosine", is_segmented=True, slab_rows=128)
        search_case("cpu", 200, 8, 2, 90, "cosine", slab_rows=128)
        operations_case("cpu", metric="l2", n=200, d=16, n_queries=3)
        maxima_case("cpu")
        primitives_case("cpu", d=16)
        primitives_case("cpu", d=8, tokens_dtype=np.float16)
    print("interpreted")


@contextmanager
def ranges_of_scalars():
    """The interpreter holds a scalar as an array of one number, which numpy takes for no index any more."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    with mock.patch.object(interpreter, "_patch_lang_tensor", patched):
        yield


if __name__ == "__main__":
    sys.exit(interpreted())
