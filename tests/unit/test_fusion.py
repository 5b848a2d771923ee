import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agentdb.errors import InvalidInputError
from agentdb.kernels import reference
from agentdb.vectors.fusion import Signal, fuse, mmr

NAN = float("nan")
SCORES = hnp.arrays(np.float64, 12, elements=st.integers(-50, 50).map(float) | st.just(NAN))


def dense(*scores):
    return Signal("vector", np.array(scores))


def text(*scores):
    return Signal("text", np.array(scores), floor=0.0)


def test_normalized_scores_are_a_weighted_mean():
    signals = [dense(0.9, 0.5, 0.7, NAN), text(0.0, 8.0, 2.0, 4.0)]
    assert fuse(signals) == pytest.approx([0.5, 0.5, 0.375, 0.25])
    assert fuse(signals, {"vector": 3}) == pytest.approx([0.75, 0.25, 0.4375, 0.125])
    assert fuse(signals, {"vector": 3, "text": 0}) == pytest.approx([1, 0, 0.5, 0])


def test_ranks_that_are_equal_are_shared_and_what_was_not_found_has_none():
    signals = [dense(0.9, 0.5, 0.9, NAN), text(0.0, 8.0, 2.0, 4.0)]
    expected = [1 / 61, 1 / 63 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62]
    assert fuse(signals, method="rrf") == pytest.approx(expected)
    assert fuse(signals, {"text": 2}, "rrf") == pytest.approx([1 / 61, 1 / 63 + 2 / 61, 1 / 61 + 2 / 63, 2 / 62])


def test_a_signal_that_found_nothing_or_all_alike():
    assert fuse([dense(0.3, 0.2), text(0.0, 0.0)]).tolist() == [0.5, 0]
    assert fuse([dense(0.3, 0.3), text(0.0, 1.0)]).tolist() == [0.5, 1]
    assert fuse([dense(NAN), text(2.0)]).tolist() == [0.5]
    assert fuse([dense(), text()]).tolist() == []


@given(SCORES, SCORES, st.sampled_from(["normalized", "rrf"]), st.permutations(range(12)))
def test_neither_order_nor_scale_of_a_signal_matters(first, second, method, order):
    fused = fuse([dense(*first), text(*second)], method=method)
    moved = fuse([text(*second[order]), dense(*first[order])], method=method)
    scaled = fuse([dense(*(7 + 2 * first)), text(*(3 * second))], method=method)
    np.testing.assert_allclose(moved, fused[order], atol=1e-12)
    np.testing.assert_allclose(scaled, fused, atol=1e-12)
    assert ((fused >= 0) & (fused <= 1)).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ([],),
        ([dense(1.0), text(1.0, 2.0)],),
        ([dense(1.0)], {"text": 1}),
        ([dense(1.0)], {"vector": -1}),
        ([dense(1.0)], {"vector": NAN}),
        ([dense(1.0)], {"vector": float("inf")}),
        ([dense(1.0)], {"vector": 0}),
        ([dense(1.0)], None, "best"),
    ],
)
def test_what_cannot_be_fused(arguments):
    with pytest.raises(InvalidInputError):
        fuse(*arguments)


def test_mmr_prefers_what_is_different():
    vectors = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]], np.float32)
    scores = np.array([0.9, 0.8, 0.5])
    assert mmr(vectors, scores, 2).tolist() == [0, 2]
    assert mmr(vectors, scores, 2, lambda_mult=1).tolist() == [0, 1]
    assert mmr(vectors, scores, 10).tolist() == [0, 2, 1]
    assert mmr(vectors[:0], scores[:0], 3).tolist() == []
    for wrong in ({"k": 0}, {"k": 1, "lambda_mult": 1.5}, {"k": 1, "lambda_mult": NAN}):
        with pytest.raises(InvalidInputError, match="lambda_mult"):
            mmr(vectors, scores, **wrong)
    with pytest.raises(InvalidInputError, match="scores"):
        mmr(vectors, scores[:2], 1)


@given(st.integers(0, 1000), st.integers(1, 20), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_mmr_chooses_greedily(seed, k, weight):
    random = np.random.default_rng(seed)
    vectors, scores = random.normal(size=(12, 3)).astype(np.float32), random.random(12)
    cosines = reference.similarities(vectors, vectors, "cosine")
    chosen: list[int] = []
    for _ in range(min(k, 12)):
        worth = {
            one: weight * scores[one] - (1 - weight) * max((cosines[one, other] for other in chosen), default=0.0)
            for one in range(12)
            if one not in chosen
        }
        chosen.append(max(worth, key=lambda one: (worth[one], -one)))
    assert mmr(vectors, scores, k, lambda_mult=weight).tolist() == chosen
