from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentdb import InvalidInputError
from agentdb_embedders import HashingEmbedder

TEXT = "Über die cats: the cat sat on the mat, 42 times"


def test_vectors_are_the_same_for_ever() -> None:
    # Written down once: a change of these numbers makes every stored vector of this embedder useless.
    vector = HashingEmbedder(8).embed(["the cat sat"])[0]
    np.testing.assert_array_equal(vector, np.array([0, 1, 0, 1, 0, -1, -1, -1] / np.sqrt(5), np.float32))


def test_vectors_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "import sys; from agentdb_embedders import HashingEmbedder; "
        f"sys.stdout.write(HashingEmbedder(32).embed([{TEXT!r}]).tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert outputs == {HashingEmbedder(32).embed([TEXT]).tobytes().hex()}


@given(st.text())
def test_every_text_has_a_vector_of_length_one(text: str) -> None:
    vector = HashingEmbedder(8, ngrams=3).embed([text])[0]
    assert np.isclose(np.linalg.norm(vector), 1, atol=1e-6)


def test_case_and_compatibility_forms_do_not_matter() -> None:
    plain, other = HashingEmbedder().embed(["file STRASSE", "\N{LATIN SMALL LIGATURE FI}le straße"])
    np.testing.assert_array_equal(plain, other)


def test_order_of_words_matters_with_bigrams() -> None:
    a, b = HashingEmbedder(ngrams=2).embed(["dog bites man", "man bites dog"])
    assert 0.1 < a @ b < 0.99
    a, b = HashingEmbedder(ngrams=1).embed(["dog bites man", "man bites dog"])
    np.testing.assert_array_equal(a, b)


def test_the_name_tells_schemes_apart() -> None:
    assert HashingEmbedder(ngrams=1).name != HashingEmbedder(ngrams=2).name


@pytest.mark.parametrize("arguments", [{"dimension": 7}, {"ngrams": 0}])
def test_refuses_what_makes_no_sense(arguments: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError):
        HashingEmbedder(**arguments)
