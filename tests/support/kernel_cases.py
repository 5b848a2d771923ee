"""Checks of the kernels against their oracles, on any device: pytest on the CPU and on a GPU, and Triton's interpreter."""

import itertools
import sys

import numpy as np

from agentdb.kernels import reference
from agentdb.kernels.index import DeviceIndex
from agentdb.kernels.primitives import maxsim, mmr, near_duplicates, nearest


def make(n, d, generator, *, kind):
    rows = generator.standard_normal((n, d)).astype(np.float32)
    if kind == "clustered" and n:
        rows = (rows[generator.integers(0, max(1, n // 50), n)] + 0.05 * rows).astype(np.float32)
    if kind == "duplicates" and n > 1:
        rows[n // 2 :] = rows[: n - n // 2]
    return rows


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


def primitives_case(device, *, prefer=None, d=24, seed=0, tokens_dtype=np.float32):
    generator = np.random.default_rng(seed)
    lengths = np.array([3, 0, 70, 1, 17])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = generator.standard_normal((offsets[-1], d)).astype(tokens_dtype)
    queries = generator.standard_normal((3, 5, d)).astype(tokens_dtype)
    weights = generator.random((3, 5)).astype(np.float32)
    weights[1, 3:] = 0
    got = maxsim(queries, tokens, offsets, query_weights=weights, device=device, prefer=prefer)
    np.testing.assert_allclose(
        got, reference.maxsim(queries, tokens, offsets, query_weights=weights), rtol=1e-4, atol=1e-4
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
    from agentdb.kernels.choice import explain

    assert all(choice.backend == "triton" for choice in explain("cpu").values()), explain("cpu")
    search_case("cpu", 300, 20, 2, 3, "cosine", kind="duplicates", slab_rows=128)
    search_case("cpu", 200, 16, 2, 3, "l2", weighted=True, slab_rows=128)
    search_case("cpu", 260, 16, 3, 3, "dot", is_segmented=True, slab_rows=128)
    search_case("cpu", 64, 1536, 2, 2, "cosine", is_segmented=True, slab_rows=128)
    primitives_case("cpu", d=16)
    print("interpreted")


if __name__ == "__main__":
    sys.exit(interpreted())
