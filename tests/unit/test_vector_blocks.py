"""Blocks find what float64 finds, in every state that was ever frozen."""

import threading
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentdb.errors import InvalidInputError
from agentdb.kernels import reference
from agentdb.vectors import blocks
from agentdb.vectors.blocks import DeviceBlock, NumpyBlock, cuda_device

METRICS = ["cosine", "l2", "dot"]


def device_block(dimension, metric):
    pytest.importorskip("torch")
    return DeviceBlock(dimension, metric, device="cpu")


@pytest.fixture(params=[NumpyBlock, device_block], ids=["numpy", "device"])
def make(request):
    return request.param


@pytest.fixture
def small_slabs(monkeypatch):
    """Many slabs, pieces and floors even where there are few rows."""
    monkeypatch.setattr(blocks, "_SLAB_BYTES", 1 << 13)
    monkeypatch.setattr(blocks, "_FIRST_ROWS", 4)
    monkeypatch.setattr(blocks, "_SCORES", 256)
    monkeypatch.setattr(blocks, "_SAMPLE_ROWS", 16)
    monkeypatch.setattr(blocks, "_PENDING", 64)
    monkeypatch.setattr(blocks, "_EXACT_NUMBERS", 1 << 9)


def block_of(make, matrix, metric, first=0):
    block = make(matrix.shape[1], metric)
    block.append(first, matrix, np.ones(len(matrix), bool))
    return block


def check(frozen, matrix, queries, k, metric, *, live=None, mask=None, tie=None):
    """What a block finds is what sorting all distances finds."""
    counted = np.ones(len(matrix), bool) if live is None else live.copy()
    if mask is not None:
        counted &= mask
    slots, distances = frozen.search(queries, k, mask=mask, tie=tie)
    rows = np.flatnonzero(counted)
    assert slots.shape == distances.shape == (len(queries), min(k, len(rows)))
    wanted = reference.distances(queries, matrix, metric)
    order = np.argsort(rows) if tie is None else np.argsort(np.argsort(tie(rows.tolist())))
    for found, far, truth in zip(slots, distances, wanted, strict=True):
        assert len(set(found.tolist())) == len(found)
        assert counted[found].all()
        best = rows[np.lexsort((order, truth[rows]))][: len(found)]
        # Sums in another order may move the last bit of a float64, and then that of a float32.
        np.testing.assert_allclose(far, truth[best], rtol=3e-7, atol=1e-12)
        np.testing.assert_allclose(far, truth[found], rtol=3e-7, atol=1e-12)
        assert (np.diff(far) >= 0).all()
        by = found if tie is None else np.array(tie(found.tolist()))
        assert all(by[i] < by[i + 1] for i in range(len(found) - 1) if far[i] == far[i + 1])


def rows_of(kind, n, d, rng):
    if kind == "random":
        return rng.standard_normal((n, d), dtype=np.float32)
    if kind == "unit":
        rows = rng.standard_normal((n, d), dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if kind == "clustered":
        return rng.standard_normal((3, d), dtype=np.float32)[rng.integers(0, 3, n)] + rng.standard_normal(
            (n, d), dtype=np.float32
        ) * np.float32(1e-3)
    if kind == "equal":
        return np.repeat(rng.standard_normal((1, d), dtype=np.float32), n, axis=0)
    if kind == "duplicates":
        return rng.standard_normal((4, d), dtype=np.float32)[rng.integers(0, 4, n)]
    assert kind == "sizes"
    rows = rng.standard_normal((n, d), dtype=np.float32) * np.float32(10.0) ** rng.integers(-14, 14, (n, 1))
    rows[rng.random(n) < 0.1] = 0
    return rows.astype(np.float32)


KINDS = ["random", "unit", "clustered", "equal", "duplicates", "sizes"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_search_finds_what_float64_finds(make, small_slabs, metric, kind):
    rng = np.random.default_rng(7)
    matrix = rows_of(kind, 700, 24, rng)
    block = block_of(make, matrix, metric)
    queries = np.concatenate([matrix[:4] + np.float32(1e-3), rows_of(kind, 3, 24, rng)])
    for k in (1, 10, 699, 5000):
        check(block.freeze(), matrix, queries, k, metric)
    check(block.freeze(), matrix, queries[:1], 10, metric)
    for share in (0.9, 0.1, 0.0):
        check(block.freeze(), matrix, queries, 10, metric, mask=rng.random(700) < share)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 300),
    d=st.integers(1, 40),
    q=st.integers(0, 5),
    k=st.integers(1, 40),
    metric=st.sampled_from(METRICS),
    kind=st.sampled_from(KINDS),
    step=st.integers(1, 90),
    masked=st.sampled_from([None, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_every_frozen_state_stays_as_it_was(n, d, q, k, metric, kind, step, masked, seed):
    rng = np.random.default_rng(seed)
    matrix, queries = rows_of(kind, n, d, rng), rows_of(kind, q, d, rng)
    block, live, states = NumpyBlock(d, metric), np.zeros(n, bool), []
    for begin in range(0, n, step):
        end = min(n, begin + step)
        present = rng.random(end - begin) < 0.9
        block.append(begin, matrix[begin:end], present)
        live[begin:end] = present
        gone = np.flatnonzero(rng.random(end) < 0.1)
        block.remove(gone)
        live[gone] = False
        states.append((block.freeze(), live[:end].copy()))
    states.append((block.freeze(), live))
    for frozen, alive in states[-4:]:
        mask = None if masked is None else rng.random(len(alive)) < masked
        check(frozen, matrix[: len(alive)], queries, k, metric, live=alive, mask=mask)
        assert np.array_equal(frozen.live, alive)


def test_a_device_block_hides_what_an_older_view_must_not_see():
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((600, 16), dtype=np.float32)
    block = device_block(16, "cosine")
    live, states = np.zeros(600, bool), []
    for begin in range(0, 600, 50):
        block.append(begin, matrix[begin : begin + 50], np.ones(50, bool))
        live[begin : begin + 50] = True
        gone = rng.choice(np.flatnonzero(live), 20, replace=False)
        block.remove(gone)
        live[gone] = False
        states.append((block.freeze(), live[: begin + 50].copy()))
        for frozen, alive in states:
            check(frozen, matrix[: len(alive)], matrix[:3], 10, "cosine", live=alive)
        states = states[-3:]
    del states, frozen
    newest = block.freeze()
    assert len(block._index) == live.sum(), "what no view needs is let go of"
    check(newest, matrix, matrix[:3], 10, "cosine", live=live)


@pytest.mark.parametrize("metric", METRICS)
def test_equals_come_in_the_order_of_their_keys(make, small_slabs, metric):
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((3, 8), dtype=np.float32)[rng.integers(0, 3, 400)]
    names = [f"{name:03}" for name in rng.permutation(400)]
    block = block_of(make, matrix, metric)
    for k in (1, 7, 150, 400):
        check(block.freeze(), matrix, matrix[:3], k, metric, tie=lambda slots: [names[slot] for slot in slots])


def test_vectors_and_distances_are_those_of_the_rows(make, small_slabs):
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((300, 12), dtype=np.float32)
    frozen = block_of(make, matrix, "cosine").freeze()
    slots = rng.permutation(300)[:50]
    assert np.array_equal(frozen.vectors(slots), matrix[slots])
    found, distances = frozen.search(matrix[:1], 20)
    assert np.array_equal(frozen.distances(matrix[0], found[0]), distances[0])


def test_float16_rows_are_kept_exactly(make):
    matrix = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float16)
    frozen = block_of(make, matrix, "dot").freeze()
    assert np.array_equal(frozen.vectors(np.arange(50)), matrix.astype(np.float32))


@pytest.mark.parametrize("metric", METRICS)
def test_queries_and_rows_beyond_float32_products_are_measured(metric):
    rng = np.random.default_rng(9)
    matrix = rng.standard_normal((200, 6), dtype=np.float32)
    matrix[::7] *= np.float32(1e30)
    matrix[1::7] *= np.float32(1e-30)
    queries = rng.standard_normal((6, 6), dtype=np.float32)
    queries[1] *= np.float32(1e25)
    queries[2] *= np.float32(1e-25)
    queries[3] = 0
    frozen = block_of(NumpyBlock, matrix, metric).freeze()
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")
        slots, distances = frozen.search(queries, 12)
        wanted = reference.distances(queries, matrix, metric)
    for found, far, truth in zip(slots, distances, wanted, strict=True):
        np.testing.assert_allclose(far, np.sort(truth)[:12], rtol=3e-7)
        np.testing.assert_allclose(truth[found], far, rtol=3e-7)


def test_near_ties_that_float32_products_confuse_are_told_apart():
    rng = np.random.default_rng(4)
    base = rng.standard_normal(64).astype(np.float32)
    matrix = np.repeat(base[None], 3000, axis=0)
    # One unit in the last place of one number: far less than the error of the product.
    at = rng.integers(0, 64, 3000)
    matrix[np.arange(3000), at] = np.nextafter(matrix[np.arange(3000), at], np.float32(np.inf))
    for metric in METRICS:
        check(block_of(NumpyBlock, matrix, metric).freeze(), matrix, base[None], 25, metric)


def test_an_empty_block_finds_nothing(make):
    block = make(4, "cosine")
    slots, distances = block.freeze().search(np.ones((2, 4)), 3)
    assert slots.shape == distances.shape == (2, 0)
    block.append(0, np.ones((2, 4), np.float32), np.zeros(2, bool))
    assert block.freeze().search(np.ones((2, 4)), 3)[0].shape == (2, 0)


def test_what_cannot_be_accepted_is_refused(make):
    block = block_of(make, np.ones((3, 4), np.float32), "cosine")
    frozen = block.freeze()
    for queries, k in ((np.ones((1, 5)), 1), (np.ones(4), 1), (np.ones((1, 4)), 0)):
        with pytest.raises(InvalidInputError):
            frozen.search(queries, k)
    with pytest.raises(InvalidInputError):
        frozen.search(np.ones((1, 4)), 1, mask=np.ones(2, bool))
    with pytest.raises(InvalidInputError):
        block.append(2, np.ones((1, 4), np.float32), np.ones(1, bool))
    with pytest.raises(InvalidInputError):
        block.append(3, np.ones((1, 5), np.float32), np.ones(1, bool))


def test_threads_search_while_one_writes(make):
    rng = np.random.default_rng(8)
    matrix = rng.standard_normal((4000, 16), dtype=np.float32)
    block = make(16, "l2")
    current = [(block.freeze(), 0)]
    wrong, is_over = [], threading.Event()

    def look():
        while not is_over.is_set():
            frozen, size = current[0]
            try:
                check(frozen, matrix[:size], matrix[:2], 5, "l2")
            except Exception as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=look) for _ in range(3)]
    for one in threads:
        one.start()
    for begin in range(0, 4000, 100):
        block.append(begin, matrix[begin : begin + 100], np.ones(100, bool))
        current[0] = (block.freeze(), begin + 100)
    is_over.set()
    for one in threads:
        one.join()
    assert not wrong


def test_the_cpu_needs_no_torch():
    assert cuda_device("cpu") is None
    assert cuda_device("cuda:1") == "cuda:1"
