import numpy as np
import pytest

torch = pytest.importorskip("torch")

from agentdb.kernels import reference  # noqa: E402
from agentdb.vectors.blocks import DeviceBlock, cuda_device  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("k", [1, 10, 300, 2000])
def test_a_block_on_the_device_finds_what_float64_finds(metric, k):
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((5000, 96), dtype=np.float32)
    matrix[4000:] = matrix[:1000]
    block = DeviceBlock(96, metric, device="cuda")
    block.append(0, matrix[:3000], np.ones(3000, bool))
    older = block.freeze()
    block.remove(np.arange(0, 3000, 3))
    block.append(3000, matrix[3000:], np.ones(2000, bool))
    mask = rng.random(5000) < 0.3
    for frozen, live in (
        (older, np.ones(3000, bool)),
        (block.freeze(), np.r_[np.arange(3000) % 3 > 0, np.ones(2000)] > 0),
    ):
        for allowed in (None, mask[: len(live)]):
            rows = np.flatnonzero(live if allowed is None else live & allowed)
            slots, distances = frozen.search(matrix[:7], k, mask=allowed)
            wanted = reference.distances(matrix[:7], matrix, metric)
            for found, far, truth in zip(slots, distances, wanted, strict=True):
                assert set(found.tolist()) <= set(rows.tolist())
                np.testing.assert_allclose(far, np.sort(truth[rows])[:k], rtol=3e-7, atol=1e-7)
                np.testing.assert_allclose(far, truth[found], rtol=3e-7, atol=1e-7)


def test_auto_means_the_device_that_is_there():
    assert cuda_device("auto") == "cuda"
