"""The approximate indices that can be chosen for a vector: how each is built, and how it is searched.

IVF sorts the vectors into partitions by k-means; a search looks into the ``nprobes`` nearest ones. Within a partition, FLAT
compares the vectors themselves, SQ and PQ and RQ compare codes of them, and HNSW walks a graph. Codes are inexact, so
``refine_factor`` times as many candidates are taken from them and ranked by the stored vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from agentdb.errors import FormatError, InvalidInputError

__all__ = [
    "DEFAULT_INDEX",
    "IndexSpec",
    "IvfFlat",
    "IvfHnswFlat",
    "IvfHnswPq",
    "IvfHnswSq",
    "IvfPq",
    "IvfRq",
    "IvfSq",
    "index_from_json",
]

_MAX_PARTITIONS = 16_384
_GRAPH_ROWS = 500_000
"""Rows in one partition of a graph: searching a few large graphs is faster than many small ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSpec:
    """What every index has. Made as one of its subclasses, such as `IvfRq`.

    Args:
        partitions: how many parts k-means makes of the vectors; None: about the square root of their number, few with graphs.
        nprobes: how many partitions a search looks into. More find more and take longer.
        refine_factor: rank so many times K candidates by the stored vectors; 0: trust the index's own distances.
        sample_rate: vectors for each partition that k-means sees.
        iterations: at most so many rounds of k-means.

    Raises:
        InvalidInputError: a parameter is no int or out of its range.
    """

    kind: ClassVar[str] = ""
    """Lance's name."""

    partitions: int | None = None
    nprobes: int = 64
    refine_factor: int = 3
    sample_rate: int = 256
    iterations: int = 50

    def __post_init__(self) -> None:
        self._check("partitions", 1, _MAX_PARTITIONS, optional=True)
        self._check("nprobes", 1, _MAX_PARTITIONS)
        self._check("refine_factor", 0, 1_000)
        self._check("sample_rate", 2, 65_536)
        self._check("iterations", 1, 1_000)

    def _check(self, name: str, low: int, high: int, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            shown = value if isinstance(value, int | float) else type(value).__name__
            raise InvalidInputError(
                f"{type(self).__name__}.{name} must be an int from {low} to {high}"
                f"{' or None' if optional else ''}, not {shown}"
            )

    def build_parameters(self, rows: int, dimension: int) -> dict[str, int]:
        """Return Lance's parameters for building the index of so many vectors.

        Raises:
            InvalidInputError: the index cannot be built for vectors of this dimension.
        """
        wanted = self.partitions or self._partitions(rows)
        return {
            "num_partitions": max(1, min(wanted, rows)),
            "sample_rate": self.sample_rate,
            "max_iters": self.iterations,
            **self._quantiser(dimension),
        }

    def probe_parameters(self) -> dict[str, int]:
        """Return Lance's parameters for searching the index."""
        found = {"nprobes": self.nprobes}
        if self.refine_factor:
            found["refine_factor"] = self.refine_factor
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain values from which `index_from_json` makes an equal index."""
        return {"kind": self.kind, **asdict(self)}

    def _partitions(self, rows: int) -> int:
        return min(math.isqrt(max(rows, 1)), _MAX_PARTITIONS)

    def _quantiser(self, dimension: int) -> dict[str, int]:  # noqa: ARG002 - not every index looks at it
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class IvfFlat(IndexSpec):
    """The vectors themselves, partitioned: exact within the partitions that are searched, and the largest index."""

    kind: ClassVar[str] = "IVF_FLAT"

    refine_factor: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class IvfSq(IndexSpec):
    """Scalar quantisation: one byte for a component."""

    kind: ClassVar[str] = "IVF_SQ"


@dataclass(frozen=True, kw_only=True, slots=True)
class IvfRq(IndexSpec):
    """RaBitQ: a random rotation, then a few bits for a component. The default: built fast, small, and precise.

    Args:
        bits: for a component, 1 to 8. The dimension must be a multiple of 8.

    Source: Gao and Long, "RaBitQ", SIGMOD 2024, https://arxiv.org/abs/2405.12497
    """

    kind: ClassVar[str] = "IVF_RQ"

    bits: int = 5

    def __post_init__(self) -> None:
        IndexSpec.__post_init__(self)
        self._check("bits", 1, 8)

    def _quantiser(self, dimension: int) -> dict[str, int]:
        if dimension % 8:
            raise InvalidInputError(
                f"IvfRq needs a dimension that is a multiple of 8, not {dimension}; IvfSq takes any"
            )
        return {"num_bits": self.bits}


@dataclass(frozen=True, kw_only=True, slots=True)
class IvfPq(IndexSpec):
    """Product quantisation: runs of components are replaced by the nearest of 256 (or 16) learnt ones.

    Args:
        sub_vectors: runs that a vector is cut into; must divide its dimension. None: about a quarter of the dimension.
        bits: for a run, 8 or 4.

    Source: Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", TPAMI 2011.
    """

    kind: ClassVar[str] = "IVF_PQ"

    sub_vectors: int | None = None
    bits: int = 8
    refine_factor: int = 10

    def __post_init__(self) -> None:
        IndexSpec.__post_init__(self)
        _check_product(self)

    def _quantiser(self, dimension: int) -> dict[str, int]:
        return _product(self, dimension)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Graph(IndexSpec):
    """What the indices with a graph in every partition share.

    Args:
        neighbours: edges of a node.
        ef_construction: candidates looked at for each node while building.
        ef: candidates kept while searching; None: one and a half times as many as are asked for.
    """

    nprobes: int = 4
    neighbours: int = 20
    ef_construction: int = 150
    ef: int | None = None

    def __post_init__(self) -> None:
        IndexSpec.__post_init__(self)
        self._check("neighbours", 2, 256)
        self._check("ef_construction", 8, 10_000)
        self._check("ef", 1, 100_000, optional=True)

    def probe_parameters(self) -> dict[str, int]:
        """Return Lance's parameters for searching the index."""
        found = IndexSpec.probe_parameters(self)
        return found if self.ef is None else {**found, "ef": self.ef}

    def _partitions(self, rows: int) -> int:
        return max(1, rows // _GRAPH_ROWS)

    def _quantiser(self, dimension: int) -> dict[str, int]:  # noqa: ARG002 - a graph takes any
        return {"m": self.neighbours, "ef_construction": self.ef_construction}


@dataclass(frozen=True, kw_only=True, slots=True)
class IvfHnswFlat(_Graph):
    """A graph over the vectors themselves: the best recall, the largest index, slow to build.

    Source: Malkov and Yashunin, "Hierarchical Navigable Small World graphs", TPAMI 2020, https://arxiv.org/abs/1603.09320
    """

    kind: ClassVar[str] = "IVF_HNSW_FLAT"

    refine_factor: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class IvfHnswSq(_Graph):
    """A graph over vectors of one byte for a component."""

    kind: ClassVar[str] = "IVF_HNSW_SQ"


@dataclass(frozen=True, kw_only=True, slots=True)
class IvfHnswPq(_Graph):
    """A graph over product-quantised vectors; see `IvfPq` for ``sub_vectors`` and ``bits``."""

    kind: ClassVar[str] = "IVF_HNSW_PQ"

    sub_vectors: int | None = None
    bits: int = 8
    refine_factor: int = 10

    def __post_init__(self) -> None:
        _Graph.__post_init__(self)
        _check_product(self)

    def _quantiser(self, dimension: int) -> dict[str, int]:
        return {**_Graph._quantiser(self, dimension), **_product(self, dimension)}


DEFAULT_INDEX = IvfRq()


def default_index(dimension: int) -> IndexSpec:
    """Return the index that is built where none was chosen."""
    return DEFAULT_INDEX if dimension % 8 == 0 else IvfSq()


def index_from_json(value: Mapping[str, Any]) -> IndexSpec:
    """Return the index that `IndexSpec.to_json` described.

    Raises:
        FormatError: the kind, or one of its parameters, is not known.
    """
    rest = dict(value)
    found = _KINDS.get(rest.pop("kind", ""))
    if found is None or not set(rest) <= {one.name for one in fields(found)}:
        raise FormatError("a stored definition names an index, or a parameter of one, that this version does not know")
    return found(**rest)


def _check_product(spec: IvfPq | IvfHnswPq) -> None:
    spec._check("sub_vectors", 1, 65_536, optional=True)
    if spec.bits not in (4, 8):
        raise InvalidInputError(f"{type(spec).__name__}.bits must be 4 or 8")


def _product(spec: IvfPq | IvfHnswPq, dimension: int) -> dict[str, int]:
    """Return how a vector is cut into runs; codes of 4 bits come in pairs."""
    step = 2 if spec.bits == 4 else 1
    counts = [one for one in range(step, dimension + 1, step) if dimension % one == 0]
    if spec.sub_vectors is not None:
        counts = [one for one in counts if one == spec.sub_vectors]
    if not counts:
        raise InvalidInputError(
            f"{type(spec).__name__}.sub_vectors must divide the dimension {dimension}"
            f"{' and be even for 4 bits' if step == 2 else ''}"
        )
    small = [one for one in counts if one * 4 <= dimension]
    return {"num_sub_vectors": small[-1] if small else counts[0], "num_bits": spec.bits}


_KINDS: dict[str, type[IndexSpec]] = {
    one.kind: one for one in (IvfFlat, IvfSq, IvfRq, IvfPq, IvfHnswFlat, IvfHnswSq, IvfHnswPq)
}
