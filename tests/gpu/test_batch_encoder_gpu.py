import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from agentdb.embedding.batch import BatchEncoder  # noqa: E402
from agentdb.kernels import DeviceIndex  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

WORDS = [a + b for a in ("ba", "de", "ki", "lo", "mu") for b in ("na", "pe", "ri", "so", "tu")]


def small_bert(path, pooling):
    """A BERT with random weights and a vocabulary of 25 words and their letters."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *("##" + one for one in letters)]
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=96,
    )  # fmt: skip
    BertModel(config).save_pretrained(path)
    BertTokenizerFast(vocab_file=str(path / "vocab.txt")).save_pretrained(path)
    transformer = Transformer(str(path), max_seq_length=80)
    return SentenceTransformer(modules=[transformer, Pooling(64, pooling), Normalize()], device="cpu")


def texts(count):
    generator = np.random.default_rng(3)
    lengths = generator.integers(0, 120, count)
    return ["", "naïve ba", *(" ".join(generator.choice([*WORDS, "xyz."], length)) for length in lengths)]


def cosines(left, right):
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_vectors_are_those_of_encode(tmp_path, pooling, is_packed):
    model = small_bert(tmp_path, pooling)
    encoder = BatchEncoder(model, device="cuda", is_packed=is_packed, batch_tokens=700)
    assert encoder.explain().path == ("packed" if is_packed else "padded")
    encoder._window_texts = 64
    asked = texts(200)
    want = model.encode(asked, show_progress_bar=False)
    assert cosines(encoder.encode(asked), want).min() > 1 - 1e-3
    there = encoder.encode_to_device(asked)
    assert there.is_cuda
    assert cosines(there.cpu().numpy(), want).min() > 1 - 1e-3
    index = DeviceIndex(64, device="cuda")
    index.put(np.arange(len(asked)), there)
    assert len(index) == len(asked)


@pytest.mark.parametrize("is_packed", [True, False])
def test_token_vectors_are_those_of_the_transformer(tmp_path, is_packed):
    model = small_bert(tmp_path, "mean")
    encoder = BatchEncoder(model, device="cuda", is_packed=is_packed, batch_tokens=500)
    encoder._window_texts = 16
    asked = texts(40)
    theirs = model.encode(asked, output_value="token_embeddings", show_progress_bar=False)
    for text, (ids, vectors), wanted in zip(asked, encoder.encode_tokens(asked), theirs, strict=True):
        assert ids.tolist() == model.tokenizer(text, truncation=True, max_length=80)["input_ids"]
        assert cosines(vectors, wanted.numpy()).min() > 1 - 1e-3
