import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support.kernel_cases import (  # noqa: E402
    make,
    maxima_case,
    nearest_case,
    operations_case,
    primitives_case,
    same_up_to_equal_scores,
    search_case,
)

from agentdb.errors import InvalidInputError  # noqa: E402
from agentdb.kernels import DeviceIndex, explain, reference  # noqa: E402
from agentdb.kernels.primitives import maxsim  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("prefer", [None, "torch"])
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("is_segmented", [False, True])
@pytest.mark.parametrize("kind", ["random", "clustered", "duplicates"])
def test_search_finds_what_float64_finds(metric, is_segmented, kind, prefer):
    search_case(
        "cuda", 20_001, 40, 70, 10, metric, kind=kind, weighted=kind == "random", is_segmented=is_segmented,
        slab_rows=8192, prefer=prefer,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n", "d", "q", "k"),
    [
        (3, 8, 1, 10),
        (1, 1, 1, 1),
        (30_000, 384, 200, 100),
        (15_000, 17, 2, 1000),
        (5000, 1536, 65, 3),
        (9999, 100, 16, 74),
    ],
)
def test_shapes_that_are_no_power_of_two(n, d, q, k):
    search_case("cuda", n, d, q, k, "cosine", slab_rows=4096)
    search_case("cuda", n, d, q, k, "l2", slab_rows=4096, is_segmented=True, kind="clustered")


@pytest.mark.parametrize("seed", range(8))
def test_recall_is_exactly_one(seed):
    generator = np.random.default_rng(seed)
    search_case(
        "cuda", int(generator.integers(1, 30_000)), int(generator.integers(1, 200)), int(generator.integers(1, 150)),
        int(generator.integers(1, 80)), ["cosine", "dot", "l2"][seed % 3], kind=["random", "clustered"][seed % 2],
        is_segmented=seed % 4 == 3, seed=seed, slab_rows=8192,
    )  # fmt: skip


@pytest.mark.parametrize("prefer", [None, "torch"])
@pytest.mark.parametrize("d", [8, 16, 24, 100, 384, 1536])
def test_primitives_agree_with_their_oracles(prefer, d):
    primitives_case("cuda", prefer=prefer, d=d)


@pytest.mark.parametrize("prefer", [None, "torch"])
def test_maxima_of_many_queries_keep_to_their_bound(prefer):
    maxima_case("cuda", prefer=prefer)
    maxima_case("cuda", n=5_001, d=384, n_queries=333, prefer=prefer)


@pytest.mark.parametrize(("n", "d", "k"), [(70, 8, 5), (40_000, 100, 10), (5, 1536, 12)])
def test_neighbours_among_some_rows_are_those_of_float64(n, d, k):
    nearest_case("cuda", 33, n, d, k, 0.2)


@pytest.mark.parametrize("prefer", [None, "torch"])
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize(("n", "d", "n_queries"), [(5_000, 100, 5), (999, 1536, 40), (3_000, 384, 150)])
def test_every_step_of_a_search_keeps_to_its_bound(metric, n, d, n_queries, prefer):
    operations_case("cuda", metric=metric, n=n, d=d, n_queries=n_queries, prefer=prefer)


def test_triton_is_what_runs():
    assert {name for name, choice in explain("cuda").items() if choice.backend != "triton"} == {"nearest"}


def test_a_query_of_many_tokens():
    generator = np.random.default_rng(4)
    queries = generator.standard_normal((2, 300, 48)).astype(np.float32)
    tokens = generator.standard_normal((900, 48)).astype(np.float32)
    offsets = np.array([0, 400, 401, 401, 900])
    got = maxsim(queries, tokens, offsets, device="cuda")
    np.testing.assert_allclose(got, reference.maxsim(queries, tokens, offsets), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("n_queries", [1, 64, 200])
def test_a_repeated_search_is_replayed_and_sees_what_was_written(n_queries):
    generator = np.random.default_rng(n_queries)
    rows = make(21_000, 96, generator, kind="clustered")
    index = DeviceIndex(96, device="cuda", slab_rows=8192)
    index.put(np.arange(20_000), rows[:20_000])
    live = np.zeros(21_000, bool)
    live[:20_000] = True
    for step in range(4):
        for turn in range(4):
            queries = make(n_queries, 96, generator, kind="random")
            queries[0] = rows[20_000 + 200 * step - 1 if step else 5]
            found = index.search(torch.from_numpy(queries).cuda(), 7)
            assert turn < 2 or found.counts.replayed == n_queries
            same_up_to_equal_scores(found, *reference.topk(queries, rows, 7, "cosine", live=live))
        added = np.arange(20_000 + 200 * step, 20_200 + 200 * step)
        index.put(added, rows[added])
        dead = generator.permutation(20_000)[:50]
        index.delete(dead)
        live[added], live[dead] = True, False


def test_segments_are_replayed():
    generator = np.random.default_rng(6)
    rows, owners = make(9_000, 40, generator, kind="random"), generator.integers(0, 50, 9_000)
    index = DeviceIndex(40, device="cuda", metric="l2")
    index.put(np.arange(9_000), rows, owners=owners)
    for turn in range(5):
        wanted = np.arange(60)
        queries = make(60, 40, generator, kind="random")
        found = index.search_segments(queries, wanted, 9)
        assert turn < 2 or found.counts.replayed == 60
        same_up_to_equal_scores(found, *reference.segmented_topk(queries, wanted, rows, owners, 9, "l2"))


def test_a_query_that_is_not_finite_is_refused_by_a_replay_too():
    index = DeviceIndex(16, device="cuda")
    index.put(np.arange(5_000), np.random.default_rng(1).standard_normal((5_000, 16)).astype(np.float32))
    good = torch.ones((3, 16), device="cuda")
    bad = good.clone()
    bad[1, 1] = float("nan")
    for _ in range(5):
        index.search(good, 4)
    for _ in range(3):
        with pytest.raises(InvalidInputError):
            index.search(bad, 4)
    assert index.search(good, 4).counts.replayed == 3


def test_threads_search_while_one_writes():
    generator = np.random.default_rng(9)
    rows = make(40_000, 64, generator, kind="random")
    index = DeviceIndex(64, device="cuda", slab_rows=16_384)
    index.put(np.arange(10_000), rows[:10_000])
    failed, stop = [], threading.Event()

    def search(seed):
        own = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                pick = own.integers(0, 10_000, 32)
                found = index.search(torch.from_numpy(rows[pick]).cuda(), 3)
                assert (found.ids[:, 0] == pick).all()
                np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-6)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=search, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for begin in range(10_000, 40_000, 1_000):
        index.put(np.arange(begin, begin + 1_000), rows[begin : begin + 1_000])
        index.delete(np.arange(begin, begin + 100))
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
    assert len(index) == 37_000
