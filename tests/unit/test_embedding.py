from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest

import agentdb.embedding.registry
from agentdb import (
    EmbedderIdentity,
    InvalidInputError,
    MissingDependencyError,
    TokenCounter,
    TokenEmbedder,
    check_vectors,
    embed_texts,
    load_embedder,
)
from agentdb.embedding import is_embedder
from agentdb_embedders import HashingEmbedder


class Broken(HashingEmbedder):
    """Breaks the contract in the way it is told."""

    def __init__(self, vectors: object) -> None:
        super().__init__(8)
        self._vectors = vectors

    def embed(self, texts, kind="document"):
        return self._vectors


def test_check_vectors_converts_and_keeps_what_fits() -> None:
    fits = np.ones((2, 3), np.float32)
    assert check_vectors(fits) is fits
    for given in (
        fits.astype(np.float16),
        fits.astype(np.float64),
        fits.astype(np.int8),
        fits.tolist(),
        fits.T.copy().T,
    ):
        made = check_vectors(given, rows=2, dimension=3)
        assert made.dtype == np.float32
        assert made.flags.c_contiguous
        np.testing.assert_array_equal(made, fits)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], [1.0]], "same dimension"),
        ([1.0, 2.0], r"shape \[2\]"),
        (np.ones((1, 1, 1)), r"shape \[1, 1, 1\]"),
        ([["a"]], "real numbers"),
        ([[True]], "real numbers"),
        ([[1j]], "real numbers"),
        ([[None]], "real numbers"),
        ([[1.0, 2.0], [np.nan, 0.0]], "row 1"),
        ([[np.inf, 2.0]], "row 0"),
        ([[1e39, 2.0]], "row 0"),
    ],
)
def test_check_vectors_refuses(vectors: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_vectors(vectors)


def test_check_vectors_compares_shapes() -> None:
    with pytest.raises(InvalidInputError, match="memories: expected 3 rows, got 2"):
        check_vectors(np.ones((2, 4)), rows=3, source="memories")
    with pytest.raises(InvalidInputError, match="expected 5 dimensions, got 4"):
        check_vectors(np.ones((2, 4)), dimension=5)


@pytest.mark.parametrize("vectors", [np.ones((1, 8)), np.ones((2, 7)), np.full((2, 8), np.nan), None])
def test_a_broken_embedder_is_named(vectors: object) -> None:
    with pytest.raises(InvalidInputError, match="hashing-2-v1"):
        embed_texts(Broken(vectors), ["a", "b"])


@pytest.mark.parametrize("texts", ["text", [1], [b"a"], ["\ud800"], [None]])
def test_embed_texts_refuses_what_is_no_text(texts: object) -> None:
    with pytest.raises(InvalidInputError, match="text"):
        embed_texts(HashingEmbedder(), texts)


def test_embed_texts_refuses_another_kind() -> None:
    with pytest.raises(InvalidInputError, match="kind"):
        embed_texts(HashingEmbedder(), ["a"], "passage")


def test_embed_texts_of_nothing_asks_nobody() -> None:
    assert embed_texts(Broken(None), []).shape == (0, 8)


def test_identity_mismatch_is_a_clear_error() -> None:
    stored = EmbedderIdentity.of(HashingEmbedder(64))
    assert stored == EmbedderIdentity("hashing-2-v1", 64)
    stored.require_match(HashingEmbedder(64))
    with pytest.raises(InvalidInputError, match="64 dimensions, but now makes 32"):
        stored.require_match(HashingEmbedder(32))
    with pytest.raises(InvalidInputError, match=r"'hashing-2-v1' \(64 dimensions\).*'hashing-1-v1'"):
        stored.require_match(HashingEmbedder(64, ngrams=1))


def test_is_embedder_does_not_load_anything() -> None:
    class Heavy(HashingEmbedder):
        @property
        def dimension(self) -> int:
            raise AssertionError("loaded")

    assert is_embedder(Heavy())
    assert not is_embedder(object())
    assert not is_embedder("local")


def test_capabilities_are_seen() -> None:
    assert isinstance(HashingEmbedder(), TokenEmbedder)
    assert isinstance(HashingEmbedder(), TokenCounter)
    assert not isinstance(object(), TokenEmbedder)


def test_load_by_name_passes_options() -> None:
    assert load_embedder("hashing", dimension=33).dimension == 33


def test_load_default_is_local() -> None:
    assert load_embedder().name == "sentence-transformers/all-MiniLM-L6-v2"


def install(monkeypatch: pytest.MonkeyPatch, **embedders: str | tuple[str, ...]) -> None:
    group = agentdb.embedding.registry.ENTRY_POINT_GROUP
    found = EntryPoints(
        EntryPoint(name, value, group)
        for name, values in embedders.items()
        for value in ((values,) if isinstance(values, str) else values)
    )
    monkeypatch.setattr(agentdb.embedding.registry, "entry_points", lambda **wanted: found.select(**wanted))


def test_load_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(MissingDependencyError, match=r"agentdb-lance\[local\]"):
        load_embedder()
    with pytest.raises(InvalidInputError, match=r"'hashing'.*none"):
        load_embedder("hashing")


def test_load_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(InvalidInputError, match="hashing, local, openai"):
        load_embedder("nothing")


def test_load_what_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, local="no_such_module_anywhere:Embedder", mine="no_such_module_anywhere:Embedder")
    with pytest.raises(MissingDependencyError, match=r"agentdb-lance\[local\]"):
        load_embedder()
    with pytest.raises(MissingDependencyError, match="'mine'"):
        load_embedder("mine")


def test_load_what_is_claimed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    same = "agentdb_embedders:HashingEmbedder"
    install(monkeypatch, twice=(same, same), torn=(same, "builtins:object"))
    assert load_embedder("twice").dimension == 256
    with pytest.raises(InvalidInputError, match="more than once"):
        load_embedder("torn")


def test_load_what_is_no_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, odd="builtins:object")
    with pytest.raises(InvalidInputError, match="returned a object"):
        load_embedder("odd")
