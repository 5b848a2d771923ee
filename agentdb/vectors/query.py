"""What a search is asked: its arguments, checked, and its queries in every form they have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError
from agentdb.filters import And, Compare, Field, Filter, Path
from agentdb.llm import Reranker
from agentdb.types import Metric
from agentdb.vectors.definition import MAX_LENGTH, Definition, VectorSpec, metadata_path

__all__ = ["Asked", "Fusion", "Mode", "Query", "Request", "SearchOptions", "asked_of", "request_of", "reranker_of"]

Mode = Literal["vector", "text", "hybrid"]
Fusion = Literal["normalized", "rrf"]
Floats = npt.NDArray[np.float64]

_RERANKED = 50
"""How many of the best a reranker sees at least."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Query:
    """What is searched for, in more than one form. A plain text or vector is short for one of just that.

    Args:
        text: what BM25 and rerankers read, and what is embedded where neither a vector nor tokens are given.
        vector: `[D]` numbers.
        tokens: `[T, D]`: one vector for each token, to search a ``multi`` vector with.
        token_weights: `[T]` numbers of 0 or more: how much each token counts; None: 1.
    """

    text: str | None = None
    vector: Any = None
    tokens: Any = None
    token_weights: Any = None


class SearchOptions(TypedDict, total=False):
    """What a search may be told besides the query and ``k``; the defaults are those of `Collection.search`."""

    filter: Filter | None
    mode: Mode
    vector_name: str | None
    fusion: Fusion
    weights: Mapping[str, float] | None
    rerank: Any
    min_score: float | None
    group_by: str | Field | None
    offset: int
    include: Iterable[str]
    exact: bool
    explain: bool


_OPTIONS = frozenset(SearchOptions.__annotations__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of a search, checked."""

    definition: Definition
    k: int
    offset: int
    mode: Mode
    vector_name: str
    fusion: Fusion
    weights: Mapping[str, float]
    filter: Filter | None
    scope: Filter | None
    rest: Filter | None
    """What must hold of the scope's rows besides."""
    group: Path | None
    rerank: Callable[[str, Sequence[str]], Floats] | None
    min_score: float | None
    include: tuple[str, ...]
    is_exact: bool
    is_explained: bool
    dense: str | None
    """The vector that finds candidates."""

    @property
    def wanted(self) -> int:
        """How many rows a page ends behind."""
        return self.offset + self.k

    @property
    def pool(self) -> int:
        """How many of the best are looked at once more, after ranking."""
        return self.wanted if self.rerank is None else max(self.wanted, _RERANKED)

    @property
    def spec(self) -> VectorSpec:
        """What is known of the vector that is searched."""
        return self.definition.vectors[self.vector_name].spec

    @property
    def is_late(self) -> bool:
        """Whether candidates are ranked by their tokens."""
        return self.mode != "text" and self.spec.multi

    @property
    def dense_column(self) -> str:
        """The column of the vector that finds candidates."""
        assert self.dense is not None
        return self.definition.vectors[self.dense].column

    @property
    def metric(self) -> Metric:
        """What the kernels call its metric."""
        assert self.dense is not None
        metric = self.definition.vectors[self.dense].spec.metric
        return "l2" if metric == "euclidean" else metric

    def scores(self, distances: Floats) -> Floats:
        """Return the scores of distances as the kernels give them; of inf, nan."""
        if self.metric == "l2":
            scores = 1.0 / (1.0 + np.sqrt(distances))
            return np.where(np.isinf(distances), np.nan, scores)
        return np.where(np.isinf(distances), np.nan, 1.0 - distances)

    def distances(self, scores: Floats) -> Floats:
        """Return the distances of scores: what they lack to 1, or the Euclidean distance where they were made of one."""
        plain = self.mode == "vector" and not self.is_late and self.rerank is None
        return 1.0 / scores - 1.0 if plain and self.metric == "l2" else 1.0 - scores


@dataclass(slots=True)
class Asked:
    """One query, resolved."""

    text: str | None = None
    vector: npt.NDArray[np.float32] | None = None
    tokens: npt.NDArray[np.float32] | None = None
    token_weights: npt.NDArray[np.float32] | None = None


# --- arguments --------------------------------------------------------------------------------------------------------


def _shown(value: object) -> str:
    """Return a value as an error may name it: a number itself, of anything else the type."""
    return str(value) if isinstance(value, int | float) else type(value).__name__


def checked_int(name: str, value: Any, *, low: int = 1) -> int:
    """Return an int of ``low`` or more."""
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InvalidInputError(f"{name} must be an int of {low} or more, not {_shown(value)}")
    return value


def checked_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InvalidInputError(f"{name} must be a number, not {type(value).__name__}")
    if not math.isfinite(value) or not low <= value <= high:
        allowed = (
            "finite" if low == -math.inf else f"from {low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
        )
        raise InvalidInputError(f"{name} must be {allowed}, not {value}")
    return float(value)


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> Any:
    if not isinstance(value, str) or value not in allowed:
        shown = repr(value) if isinstance(value, str) else type(value).__name__
        raise InvalidInputError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {shown}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} must be a bool, not {type(value).__name__}")
    return value


def request_of(definition: Definition, k: Any, options: SearchOptions) -> Request:
    """Return the arguments of a search on a collection.

    Raises:
        InvalidInputError: one of them cannot be accepted; the message names it.
        TypeError: there is no such argument.
    """
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise TypeError(f"a search has no option {', '.join(sorted(unknown))}")
    mode: Mode = _one_of("mode", options.get("mode", "vector"), get_args(Mode))
    vector_name = options.get("vector_name")
    if vector_name is None:
        vector_name = definition.default_vector
    if definition.vector(vector_name).spec.multi and definition.vector(vector_name).spec.metric == "euclidean":
        raise InvalidInputError(f"vector {vector_name!r}: tokens are compared by 'cosine' or 'dot', not 'euclidean'")
    condition = definition.table_filter(options.get("filter"))
    scope, rest = _scope(condition)
    rerank, min_score = options.get("rerank"), options.get("min_score")
    return Request(
        definition=definition,
        k=checked_int("k", k),
        offset=checked_int("offset", options.get("offset", 0), low=0),
        mode=mode,
        vector_name=vector_name,
        fusion=_one_of("fusion", options.get("fusion", "normalized"), get_args(Fusion)),
        weights=_weights(options.get("weights"), mode),
        filter=condition,
        scope=scope,
        rest=rest,
        group=_group_path(options.get("group_by")),
        rerank=None if rerank is None else reranker_of(rerank),
        min_score=None if min_score is None else checked_number("min_score", min_score),
        include=_included(options.get("include", ("text", "metadata"))),
        is_exact=_flag("exact", options.get("exact", False)),
        is_explained=_flag("explain", options.get("explain", False)),
        dense=_dense(definition, mode, vector_name),
    )


def _dense(definition: Definition, mode: Mode, vector_name: str) -> str | None:
    if mode == "text":
        return None
    if not definition.vectors[vector_name].spec.multi:
        return vector_name
    return next((name for name, one in definition.vectors.items() if not one.spec.multi), None)


def _scope(condition: Filter | None) -> tuple[Filter | None, Filter | None]:
    """Return the equality whose rows are searched by themselves, and what else must hold of them."""
    if condition is None:
        return None, None
    parts = condition.filters if isinstance(condition, And) else (condition,)
    equal = [
        one
        for one in parts
        if isinstance(one, Compare) and one.op == "eq" and one.path[0] not in ("id", "text")
    ]  # fmt: skip
    if not equal:
        return None, condition
    scope = next((one for one in equal if one.path[0] != "metadata"), equal[0])
    rest = [one for one in parts if one is not scope]
    return scope, rest[0] if len(rest) == 1 else And(*rest) if rest else None


def _weights(value: Any, mode: Mode) -> Mapping[str, float]:
    if value is None:
        return {}
    if mode != "hybrid":
        raise InvalidInputError(f"weights belong to mode 'hybrid', not {mode!r}")
    if not isinstance(value, Mapping) or not set(value) <= {"vector", "text"}:
        raise InvalidInputError("weights must be a mapping with the keys 'vector' and 'text'")
    found = {name: checked_number(f"weights[{name!r}]", weight, 0.0) for name, weight in value.items()}
    if len(found) == 2 and not any(found.values()):
        raise InvalidInputError("weights must not all be 0")
    return found


def _group_path(value: Any) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | Field):
        raise InvalidInputError(f"group_by must be a metadata key (str) or a field(...), not {type(value).__name__}")
    return metadata_path((value,) if isinstance(value, str) else value.path)


def _included(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidInputError(f"include must be a list with 'text' and 'metadata', not {type(value).__name__}")
    return tuple(dict.fromkeys(_one_of("include", one, ("text", "metadata")) for one in value))


def reranker_of(value: Any) -> Callable[[str, Sequence[str]], Floats]:
    """Return one way to call a `Reranker`, a sentence-transformers ``CrossEncoder`` or a plain function."""
    if isinstance(value, Reranker):
        rate: Callable[[str, Sequence[str]], Any] = value.rerank
    elif callable(getattr(value, "predict", None)):

        def rate(query: str, texts: Sequence[str]) -> Any:
            return value.predict([(query, text) for text in texts], show_progress_bar=False)
    elif callable(value):
        rate = value
    else:
        raise InvalidInputError(
            "rerank must have rerank(query, texts), be a sentence-transformers CrossEncoder, or be a function of query "
            f"and texts, not {type(value).__name__}"
        )

    def rated(query: str, texts: Sequence[str]) -> Floats:
        given = rate(query, texts)
        if callable(getattr(given, "detach", None)):
            given = given.detach().float().cpu()  # a tensor that a model made, on its device and with its gradient
        try:
            scores = np.asarray(given, np.float64)
        except (TypeError, ValueError):
            raise InvalidInputError(f"the reranker must return numbers, not {type(given).__name__}") from None
        if scores.shape != (len(texts),) or not np.isfinite(scores).all():
            raise InvalidInputError(
                f"the reranker must return {len(texts)} finite numbers, one for each text, not an array of shape "
                f"{list(scores.shape)}"
            )
        return scores

    return rated


# --- queries ----------------------------------------------------------------------------------------------------------


def asked_of(values: Sequence[Any], request: Request) -> list[Asked]:
    """Return the queries as far as they can be understood without an embedder.

    Raises:
        InvalidInputError: one is of a wrong type, dimension or value, or lacks what the mode needs.
    """
    names = ["query"] if len(values) == 1 else [f"queries[{i}]" for i in range(len(values))]
    return [_asked(_query(one, request, name), request, name) for name, one in zip(names, values, strict=True)]


def _query(value: Any, request: Request, where: str) -> Query:
    if isinstance(value, Query):
        return value
    if isinstance(value, str):
        return Query(text=value)
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidInputError(
            f"{where} must be a text (str), a vector of numbers or a Query, not {type(value).__name__}"
        )
    parts = list(value) if request.is_late else []
    is_flat = bool(parts) and all(isinstance(one, int | float | np.number) for one in parts)
    return Query(vector=value) if is_flat or not request.is_late else Query(tokens=value)


def _asked(query: Query, request: Request, where: str) -> Asked:
    asked = Asked()
    if query.text is not None:
        asked.text = _text(query.text, where)
    elif request.mode != "vector" or request.rerank is not None:
        what = "reranking" if request.mode == "vector" else f"mode {request.mode!r}"
        raise InvalidInputError(f"{where} must have a text for {what}: give a str or Query(text=..., vector=...)")
    if request.mode == "text":
        return asked
    if query.vector is not None:
        if request.dense is None or (request.is_late and np.ndim(query.vector) != 1):
            raise InvalidInputError(
                f"{where}: vector {request.vector_name!r} is searched with a matrix [T, D] or a text"
            )
        asked.vector = vector_of(query.vector, request.definition.vectors[request.dense].spec, where)
    if query.tokens is not None:
        if not request.is_late:
            raise InvalidInputError(f"{where}: tokens are for a multi vector, which {request.vector_name!r} is not")
        asked.tokens = tokens_of(query.tokens, request.spec, where)
    if query.token_weights is not None:
        asked.token_weights = _token_weights(query.token_weights, asked.tokens, where)
    if query.text is None and (asked.tokens if request.is_late else asked.vector) is None:
        raise InvalidInputError(f"{where} must have a text or a {'matrix of tokens' if request.is_late else 'vector'}")
    return asked


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"{where}: the text must be a str, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{where}: the text holds a lone surrogate") from None
    return value


def _numbers(value: Any, axes: int, shape: str, where: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError:
        raise InvalidInputError(f"{where} must be {shape}: its rows differ in length") from None
    if array.dtype.kind not in "fiu" or array.ndim != axes:
        raise InvalidInputError(
            f"{where} must be {shape} of real numbers, not of shape {list(array.shape)} and type {array.dtype.name}"
        )
    return array


def vector_of(value: Any, spec: VectorSpec, where: str) -> npt.NDArray[np.float32]:
    """Return `[D]` float32, rounded as stored vectors are, so that every way to search compares alike.

    Raises:
        InvalidInputError: another dimension, NaN or infinity, the zero vector with cosine, or one too long without.
    """
    array = _numbers(value, 1, f"a vector [{spec.dimension}]", where)
    if len(array) != spec.dimension:
        raise InvalidInputError(f"{where} must have {spec.dimension} dimensions, not {len(array)}")
    vector: npt.NDArray[np.float32] = array
    if array.dtype != np.float32 or spec.dtype != "float32":
        with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused
            vector = array.astype(spec.dtype).astype(np.float32)
    if not np.isfinite(vector).all():
        raise InvalidInputError(f"{where} holds NaN, infinity, or a number that is no finite {spec.dtype}")
    if spec.metric == "cosine" and not vector.any():
        raise InvalidInputError(f"{where} must not be the zero vector with metric 'cosine'")
    if spec.metric != "cosine" and np.linalg.norm(vector.astype(np.float64)) > MAX_LENGTH:
        raise InvalidInputError(f"{where} is longer than {MAX_LENGTH:.2g}, and cannot be compared")
    return vector


def tokens_of(value: Any, spec: VectorSpec, where: str) -> npt.NDArray[np.float32]:
    """Return `[T, D]` finite float32, T at least 1.

    Raises:
        InvalidInputError: another shape, NaN or infinity.
    """
    array = _numbers(value, 2, f"a matrix [T, {spec.dimension}]", where)
    if not len(array) or array.shape[1] != spec.dimension:
        raise InvalidInputError(
            f"{where} must be a matrix [T, {spec.dimension}] with at least one token, not of shape {list(array.shape)}"
        )
    with np.errstate(over="ignore"):
        tokens = array.astype(np.float32)
    if not np.isfinite(tokens).all():
        raise InvalidInputError(f"{where} holds NaN, infinity, or a number that is no finite float32")
    return tokens


def _token_weights(value: Any, tokens: npt.NDArray[np.float32] | None, where: str) -> npt.NDArray[np.float32]:
    if tokens is None:
        raise InvalidInputError(f"{where}: token_weights need tokens")
    weights = _numbers(value, 1, f"{where}: token_weights a vector [{len(tokens)}]", where).astype(np.float32)
    if len(weights) != len(tokens) or not np.isfinite(weights).all() or (weights < 0).any():
        raise InvalidInputError(f"{where}: token_weights must be {len(tokens)} finite numbers of 0 or more")
    return weights
