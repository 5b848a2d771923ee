"""What every index specification accepts, and that Lance builds and searches what it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from agentdb.errors import FormatError, InvalidInputError
from agentdb.vectors.indexes import (
    IndexSpec,
    IvfFlat,
    IvfHnswFlat,
    IvfHnswPq,
    IvfHnswSq,
    IvfPq,
    IvfRq,
    IvfSq,
    default_index,
    index_from_json,
)

KINDS = [IvfFlat, IvfSq, IvfRq, IvfPq, IvfHnswFlat, IvfHnswSq, IvfHnswPq]


@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_read_again(kind: type[IndexSpec]) -> None:
    spec = kind(partitions=7, nprobes=9)
    assert index_from_json(spec.to_json()) == spec
    assert index_from_json(kind().to_json()) == kind()


@pytest.mark.parametrize("stored", [{"kind": "IVF_NEW"}, {"kind": "IVF_SQ", "colour": 1}, {}])
def test_what_a_newer_version_stored_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        index_from_json(stored)


@pytest.mark.parametrize(
    ("kind", "arguments", "names"),
    [
        (IvfSq, {"partitions": 0}, "partitions"),
        (IvfSq, {"nprobes": 0}, "nprobes"),
        (IvfSq, {"nprobes": 2.5}, "nprobes"),
        (IvfSq, {"nprobes": True}, "nprobes"),
        (IvfSq, {"nprobes": None}, "nprobes"),
        (IvfFlat, {"refine_factor": -1}, "refine_factor"),
        (IvfFlat, {"sample_rate": 1}, "sample_rate"),
        (IvfFlat, {"iterations": 0}, "iterations"),
        (IvfRq, {"bits": 9}, "bits"),
        (IvfPq, {"bits": 5}, "bits"),
        (IvfPq, {"sub_vectors": 0}, "sub_vectors"),
        (IvfHnswPq, {"bits": 16}, "bits"),
        (IvfHnswSq, {"neighbours": 1}, "neighbours"),
        (IvfHnswFlat, {"ef_construction": 0}, "ef_construction"),
        (IvfHnswFlat, {"ef": 0}, "ef"),
    ],
)
def test_a_parameter_out_of_range_is_named(kind: type[IndexSpec], arguments: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"{kind.__name__}\.{names}"):
        kind(**arguments)


def test_parameters_that_do_not_fit_the_vectors() -> None:
    with pytest.raises(InvalidInputError, match="multiple of 8"):
        IvfRq().build_parameters(1_000, 50)
    with pytest.raises(InvalidInputError, match="divide the dimension 50"):
        IvfPq(sub_vectors=7).build_parameters(1_000, 50)
    with pytest.raises(InvalidInputError, match="even for 4 bits"):
        IvfPq(sub_vectors=5, bits=4).build_parameters(1_000, 50)
    assert IvfPq().build_parameters(1_000, 50)["num_sub_vectors"] == 10
    assert IvfPq().build_parameters(1_000, 3)["num_sub_vectors"] == 1
    assert default_index(384) == IvfRq()
    assert default_index(50) == IvfSq()


def test_there_are_never_more_partitions_than_vectors() -> None:
    assert IvfSq(partitions=100).build_parameters(10, 8)["num_partitions"] == 10
    assert IvfSq().build_parameters(0, 8)["num_partitions"] == 1


@pytest.mark.parametrize("spec", [kind(partitions=4) for kind in KINDS] + [IvfHnswSq(ef=50), IvfPq(bits=4)])
def test_lance_builds_and_searches_it(spec: IndexSpec, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((1_000, 16), np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 16)
    dataset = lance.write_dataset(pa.table({"n": pa.array(range(1_000)), "v": column}), tmp_path / "d.lance")
    dataset.create_index("v", spec.kind, metric="cosine", **spec.build_parameters(1_000, 16))
    near = {"column": "v", "q": vectors[5], "k": 3, **spec.probe_parameters()}
    found = dataset.scanner(columns=["n", "_distance"], nearest=near).to_table()
    assert 5 in found.column("n").to_pylist()
