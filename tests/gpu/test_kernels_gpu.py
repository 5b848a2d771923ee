import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support.kernel_cases import primitives_case, search_case  # noqa: E402

from agentdb.kernels import explain  # noqa: E402

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
@pytest.mark.parametrize("d", [16, 24, 100, 384])
def test_primitives_agree_with_their_oracles(prefer, d):
    primitives_case("cuda", prefer=prefer, d=d)


def test_triton_is_what_runs():
    assert {choice.backend for choice in explain("cuda").values()} == {"triton"}
