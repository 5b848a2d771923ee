"""Searching documents: chunks found by words and meaning, put in one order, cleared of repetitions, and brought in their surroundings.

The steps of a search, in this order: the query and its expansions are embedded at once; each finds its chunks, by vector and BM25,
fused (`agentdb.vectors.fusion`); the scores of several queries are put together; token vectors or a reranker look at the best;
repetitions and too much of one document are left out; neighbours or parents are read from the stored text.

Nothing holds the database meanwhile: each step reads the newest state, and chunks and texts name the revision of their document.
Where these differ, the document was replaced between two steps, and the search begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, get_args

import numpy as np

from agentdb.embedding import Embedder, TokenEmbedder, embed_texts
from agentdb.errors import InvalidInputError, StorageError
from agentdb.filters import Filter
from agentdb.rag.images import IMAGE_VECTOR
from agentdb.rag.records import RESERVED, FoundImage, Omitted, OmittedReason, Passage
from agentdb.rag.tables import DocumentTables, chunk_id
from agentdb.types import Hit
from agentdb.vectors.collection import Collection
from agentdb.vectors.query import Fusion, Mode, Query, checked_int, checked_number, reranker_of

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = ["Expand", "Found", "PassageFinder", "PassageOptions", "PassageRequest", "Repetitions", "shingles"]

T = TypeVar("T")

Expand = Callable[[str], Sequence[str]]
"""Returns other ways to ask a question: more words, an answer that could be, the same in another language."""

WEIGHTS: Mapping[str, float] = {"vector": 0.5, "text": 0.5}
"""Of the signals of a hybrid search; what they rest on is in docs/decisions/018."""
TOKEN_WEIGHT = 0.5
"""Of late interaction, beside all else."""
_RANKED_AGAIN = 50
"""How many of the best a reranker, or late interaction, sees at least."""
_MOST_QUERIES = 16
_ATTEMPTS = 5
_SHINGLE_WORDS = 3
_SAME = 0.8
"""The share of their shingles that nearly identical passages have in common."""


class PassageOptions(TypedDict, total=False):
    """What a search of documents may be told besides the query and ``k``; the defaults are those of `Documents.search`."""

    filter: Filter | None
    mode: Mode
    fusion: Fusion
    weights: Mapping[str, float] | None
    late_interaction: bool
    rerank: Any
    expand: Expand | None
    deduplicate: bool
    per_source: int | None
    expand_neighbors: int
    parents: bool
    min_score: float | None
    explain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageRequest:
    """The arguments of a search, checked."""

    query: str
    k: int
    filter: Filter | None = None
    mode: Mode = "hybrid"
    fusion: Fusion = "normalized"
    weights: Mapping[str, float] | None = None
    late_interaction: bool = False
    rerank: Callable[[str, Sequence[str]], Any] | None = None
    expand: Expand | None = None
    deduplicate: bool = True
    per_source: int | None = None
    expand_neighbors: int = 0
    parents: bool = True
    min_score: float | None = None
    explain: bool = False

    @property
    def is_ranked_again(self) -> bool:
        """Whether token vectors or a reranker look at the best."""
        return self.late_interaction or self.rerank is not None

    @classmethod
    def of(cls, query: Any, k: Any, options: PassageOptions) -> PassageRequest:
        """Return checked arguments.

        Raises:
            InvalidInputError: one of them cannot be accepted; the message names it.
            TypeError: there is no such argument.
        """
        unknown = set(options) - set(PassageOptions.__annotations__)
        if unknown:
            raise TypeError(f"a search of documents has no option {', '.join(sorted(unknown))}")
        if not isinstance(query, str):
            raise InvalidInputError(f"query must be a str, not {type(query).__name__}")
        given: dict[str, Any] = dict(options)
        for name in ("late_interaction", "deduplicate", "parents", "explain"):
            if not isinstance(given.get(name, False), bool):
                raise InvalidInputError(f"{name} must be a bool, not {type(given[name]).__name__}")
        mode = given.get("mode", "hybrid")
        if mode not in get_args(Mode):
            shown = repr(mode) if isinstance(mode, str) else type(mode).__name__
            raise InvalidInputError(f"mode must be one of {', '.join(map(repr, get_args(Mode)))}, not {shown}")
        if given.get("expand") is not None and not callable(given["expand"]):
            raise InvalidInputError(
                f"expand must be a function from a query to more of them, not {type(given['expand']).__name__}"
            )
        if given.get("per_source") is not None:
            given["per_source"] = checked_int("per_source", given["per_source"])
        if given.get("min_score") is not None:
            given["min_score"] = checked_number("min_score", given["min_score"])
        given["expand_neighbors"] = checked_int("expand_neighbors", given.get("expand_neighbors", 0), low=0)
        if given.get("rerank") is not None:
            given["rerank"] = reranker_of(given["rerank"])
        return cls(query=query, k=checked_int("k", k), **given)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk that was found, with what its metadata says of its place."""

    passage: Passage
    number: int
    parent: tuple[int, int] | None
    searched: str
    """Its text with what stands before it."""

    @classmethod
    def of(cls, hit: Hit) -> Chunk:
        """Return a row of the collection as what it is."""
        metadata = dict(hit.metadata)
        number, start, end, lead, tokens, *parent = map(int, metadata["place"].split())
        text = hit.text or ""
        passage = Passage(
            id=hit.id,
            document_id=metadata["document_id"],
            source=metadata["source"],
            title=metadata.get("title"),
            text=text[lead:],
            score=hit.score,
            signals=hit.signals,
            page=metadata.get("page"),
            heading_path=tuple(metadata.get("headings", ())),
            start=start,
            end=end,
            tokens=tokens,
            metadata={name: value for name, value in metadata.items() if name not in RESERVED},
            matched=(start, end),
            revision=metadata["revision"],
        )
        return cls(passage, number, (parent[0], parent[1]) if parent else None, text)


@dataclass(slots=True)
class Found:
    """What a search found.

    Attributes:
        chunks: best first.
        omitted: what was left out between them, best first.
    """

    chunks: list[Chunk]
    omitted: list[Omitted] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """About how many tokens all of it has."""
        return sum(one.passage.tokens or len(one.passage.text) // 4 for one in self.chunks)


class _ReplacedError(Exception):
    """A document was replaced between two steps of a search."""


class PassageFinder:
    """Searches the documents of one collection.

    Args:
        engine: the database.
        tables: where documents are.
        collection: where their chunks are.
        name: of the documents' collection.
    """

    def __init__(self, engine: Engine, tables: DocumentTables, collection: Collection, name: str) -> None:
        self._engine = engine
        self._tables = tables
        self._collection = collection
        self._name = name

    def search(self, request: PassageRequest) -> list[Passage]:
        """Return passages, best first; see `Documents.search`."""
        return self.consistently(lambda: self.passages(self.find(request), request))

    def consistently(self, work: Callable[[], T]) -> T:
        """Return what ``work`` makes of one state of each document, begun anew where a document is replaced meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                return work()
            except _ReplacedError:
                continue
        try:
            with self._engine.snapshot():
                return work()
        except _ReplacedError:
            raise StorageError("a chunk and the text of its document do not belong together") from None

    # --- candidates ---------------------------------------------------------------------------------------------------

    def find(self, request: PassageRequest) -> Found:
        """Return the K best chunks, and what was left out on the way to them."""
        queries = self._queries(request)
        pool = request.k + 8 if request.deduplicate or request.per_source is not None else request.k
        pool = max(pool, 2 * request.k if request.per_source is not None else 0)
        if request.is_ranked_again:
            pool = max(pool, _RANKED_AGAIN)
        looked_at = pool
        most = 64 * request.k + 256  # where nearly all say the same, there is an end to looking for more
        while True:
            hits = self._collection.search_many(
                queries,
                pool,
                filter=request.filter,
                mode=request.mode,
                fusion=request.fusion,
                weights=self._weights(request),
                explain=request.explain,
            )
            candidates = [Chunk.of(one) for one in _together(hits)]
            ranked = self._ranked_again(candidates, request, looked_at)
            if request.min_score is not None:
                ranked = [one for one in ranked if one.passage.score >= request.min_score]
            found = _chosen(ranked, request)
            # What more there is has lower scores, or is not looked at again.
            is_cut = len(ranked) < len(candidates) or (request.is_ranked_again and len(candidates) >= looked_at)
            if len(found.chunks) >= request.k or is_cut or pool > most or all(len(one) < pool for one in hits):
                return found
            pool *= 4

    @staticmethod
    def _weights(request: PassageRequest) -> Mapping[str, float] | None:
        return WEIGHTS if request.mode == "hybrid" and request.weights is None else request.weights

    def _queries(self, request: PassageRequest) -> list[Query]:
        texts = [request.query]
        if request.expand is not None:
            given: object = request.expand(request.query)
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise InvalidInputError(f"expand must return a list of queries, not {type(given).__name__}")
            for one in given:
                if not isinstance(one, str):
                    raise InvalidInputError(f"expand must return queries (str), not {type(one).__name__}")
                texts.append(one)
        texts = list(dict.fromkeys(texts))[:_MOST_QUERIES]
        if request.mode == "text":
            return [Query(text=one) for one in texts]
        # Before anything is read: an embedder takes its time.
        vectors = embed_texts(self._embedder, texts, "query")
        return [Query(text=text, vector=vector) for text, vector in zip(texts, vectors, strict=True)]

    @property
    def _embedder(self) -> Embedder:
        embedder = self._collection.embedder
        if embedder is None:
            raise InvalidInputError(f"the documents of collection {self._name} have no embedder")
        return embedder

    def _ranked_again(self, ranked: list[Chunk], request: PassageRequest, most: int) -> list[Chunk]:
        """Return the chunks in the order that token vectors, then a reranker, give to the best of them; the rest is dropped."""
        if not ranked or not request.is_ranked_again:
            return ranked
        ranked = ranked[:most]
        if request.late_interaction:
            scores = token_scores(self._embedder, request.query, [one.searched for one in ranked])
            before = np.array([one.passage.score for one in ranked])
            together = (1 - TOKEN_WEIGHT) * _normalized(before) + TOKEN_WEIGHT * _normalized(scores)
            ranked = _scored(ranked, together, {"tokens": scores})
        if request.rerank is not None:
            rated = np.asarray(request.rerank(request.query, [one.searched for one in ranked]), np.float64)
            ranked = _scored(ranked, rated, {"rerank": rated})
        return ranked

    def images(self, vector: Any, k: int, condition: Filter | None) -> list[FoundImage]:
        """Return the K pictures nearest to a vector, best first."""

        def work() -> list[FoundImage]:
            hits = self._collection.search(vector, k, filter=condition, vector_name=IMAGE_VECTOR)
            chunks = [Chunk.of(one) for one in hits]
            texts = self.texts([(one.passage, one.passage.start, one.passage.end) for one in chunks])
            return [
                FoundImage(
                    document_id=one.passage.document_id,
                    number=one.number,
                    source=one.passage.source,
                    title=one.passage.title,
                    score=one.passage.score,
                    page=one.passage.page,
                    start=one.passage.start,
                    end=one.passage.end,
                    text=text,
                    metadata=one.passage.metadata,
                )
                for one, text in zip(chunks, texts, strict=True)
            ]

        return self.consistently(work)

    # --- surroundings -------------------------------------------------------------------------------------------------

    def passages(self, found: Found, request: PassageRequest) -> list[Passage]:
        """Return what was found with its neighbours or parents, each stretch of text once."""
        return [one.passage for one in self.widened(found, request)]

    def widened(self, found: Found, request: PassageRequest) -> list[Chunk]:
        """Return the chunks with their passages as wide as they are to be seen."""
        spans = [one.parent if request.parents else None for one in found.chunks]
        if request.expand_neighbors:
            around = self._around(found.chunks, request.expand_neighbors)
            spans = [span or around[one.passage.id] for one, span in zip(found.chunks, spans, strict=True)]
        joined: list[tuple[Chunk, tuple[int, int]]] = []
        for chunk, span in zip(found.chunks, spans, strict=True):
            own = span or (chunk.passage.start, chunk.passage.end)
            same = [i for i, one in enumerate(joined) if span is not None and _overlap(one, chunk, own)]
            if not same:
                joined.append((chunk, own))
                continue
            # The best one takes it in, and those that it connects with it.
            its = [own, *(joined[i][1] for i in same)]
            joined[same[0]] = joined[same[0]][0], (min(start for start, _ in its), max(end for _, end in its))
            for i in reversed(same[1:]):
                del joined[i]
        wider = [(one.passage, *span) for one, span in joined if span != (one.passage.start, one.passage.end)]
        if not wider:
            return [one for one, _ in joined]
        texts = iter(self.texts(wider))
        return [
            one
            if span == (one.passage.start, one.passage.end)
            else replace(one, passage=replace(one.passage, text=next(texts), start=span[0], end=span[1]))
            for one, span in joined
        ]

    def _around(self, chunks: Sequence[Chunk], neighbors: int) -> dict[str, tuple[int, int]]:
        """Return for each chunk, by its id, the span that it has together with its neighbours."""
        # Each chunk is looked up once more itself: one whose document is gone meanwhile would seem to have no neighbours.
        wanted = {
            chunk_id(one.passage.document_id, one.number + step)
            for one in chunks
            for step in range(-neighbors, neighbors + 1)
            if one.number + step >= 0
        }
        rows = self._collection.get_many(sorted(wanted), include=("metadata",)) if wanted else []
        spans = {}
        for row in rows:
            if row is not None:
                place = list(map(int, row.metadata["place"].split()))
                spans[row.id] = row.metadata["revision"], place[1], place[2]
        found = {}
        for one in chunks:
            passage = one.passage
            start, end = passage.start, passage.end
            for step in range(-neighbors, neighbors + 1):
                beside = spans.get(chunk_id(passage.document_id, one.number + step))
                if beside is None and step:
                    continue
                if beside is None or beside[0] != passage.revision:
                    raise _ReplacedError
                start, end = min(start, beside[1]), max(end, beside[2])
            found[passage.id] = start, end
        return found

    def texts(self, wanted: Sequence[tuple[Passage, int, int]]) -> list[str]:
        """Return stretches of the documents of passages, given with their start and end."""
        found = self._tables.spans(
            self._name, [(one.document_id, one.revision, start, end) for one, start, end in wanted]
        )
        texts = []
        for text in found:
            if text is None:
                raise _ReplacedError
            texts.append(text)
        return texts


# --- pure functions ---------------------------------------------------------------------------------------------------


def _overlap(one: tuple[Chunk, tuple[int, int]], chunk: Chunk, span: tuple[int, int]) -> bool:
    """Whether a chunk that was taken has some of the text of another."""
    other, its = one
    is_same = other.passage.document_id == chunk.passage.document_id
    return is_same and its[0] < span[1] and span[0] < its[1]


def _together(hits: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Return the hits of a query and of its expansions as one list, best first.

    The query counts as much as all its expansions together; what one of them did not find it adds nothing to.
    """
    if len(hits) == 1:
        return list(hits[0])
    weights = [0.5] + [0.5 / (len(hits) - 1)] * (len(hits) - 1)
    scores: dict[str, float] = {}
    best: dict[str, Hit] = {}
    for weight, its in zip(weights, hits, strict=True):
        found = _normalized(np.array([one.score for one in its])) if its else np.empty(0)
        for one, score in zip(its, found, strict=True):
            scores[one.id] = scores.get(one.id, 0.0) + weight * float(score)
            best.setdefault(one.id, one)
    # The sort is stable: of equal ones those that the query itself found come first.
    order = sorted(scores, key=lambda one: -scores[one])
    return [replace(best[one], score=scores[one]) for one in order]


def _normalized(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return scores as parts of the highest, none below 0; all alike are 1."""
    high = scores.max()
    low = min(0.0, float(scores.min()))
    return (scores - low) / (high - low) if high > low else np.ones(len(scores))


def _scored(chunks: Sequence[Chunk], scores: Any, signals: Mapping[str, Any]) -> list[Chunk]:
    """Return chunks with other scores, best first; ties stay in order."""
    made = []
    for position in np.argsort(-np.asarray(scores), kind="stable").tolist():
        chunk = chunks[position]
        more = {**chunk.passage.signals, **{name: float(its[position]) for name, its in signals.items()}}
        made.append(replace(chunk, passage=replace(chunk.passage, score=float(scores[position]), signals=more)))
    return made


def token_scores(embedder: Embedder, query: str, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Return `[N]` the mean over the query's tokens of the best cosine with a token of each text: MaxSim.

    Raises:
        InvalidInputError: the embedder makes no vectors of tokens.

    Source: Khattab and Zaharia, "ColBERT", SIGIR 2020.
    """
    if not isinstance(embedder, TokenEmbedder):
        raise InvalidInputError(f"late_interaction: embedder {embedder.name!r} makes no vectors of tokens")
    asked = _unit(embedder.embed_tokens([query], "query")[0][1])
    scores = np.zeros(len(texts))
    for position, (_, vectors) in enumerate(embedder.embed_tokens(list(texts), "document")):
        if len(vectors) and len(asked):
            scores[position] = float((asked @ _unit(vectors).T).max(axis=1).mean())
    return scores


def _unit(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    made: np.ndarray[Any, Any] = np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)
    return made


def shingles(text: str) -> frozenset[int]:
    """Return every run of three words of a text, whatever their case and the space between them."""
    words = text.casefold().split()
    if len(words) <= _SHINGLE_WORDS:
        return frozenset((hash(tuple(words)),))
    return frozenset(map(hash, zip(words, words[1:], words[2:], strict=False)))


class Repetitions:
    """Tells which texts say nearly the same as one before them, in the same words.

    Of each text the lowest fifth of its shingles is remembered: two that have enough in common share one of these.

    Source: Chaudhuri, Ganti and Kaushik, "A Primitive Operator for Similarity Joins in Data Cleaning", ICDE 2006.
    """

    def __init__(self) -> None:
        self._holders: dict[int, list[frozenset[int]]] = {}

    def is_new(self, text: str) -> bool:
        """Return whether a text repeats none of those that were new; then it is one of them."""
        its = shingles(text)
        lowest = sorted(its)[: len(its) - int(_SAME * len(its)) + 1]
        near = chain.from_iterable(self._holders.get(one, ()) for one in lowest)
        if any(_near_identical(its, other) for other in set(near)):
            return False
        for one in lowest:
            self._holders.setdefault(one, []).append(its)
        return True


def _near_identical(one: frozenset[int], other: frozenset[int]) -> bool:
    common = len(one & other)
    return common >= _SAME * (len(one) + len(other) - common)


def _chosen(ranked: Sequence[Chunk], request: PassageRequest) -> Found:
    """Return the K best that neither repeat a better one nor are too many of one document."""
    found = Found([])
    known = Repetitions()
    of_source: dict[str, int] = {}
    parents: set[tuple[str, tuple[int, int]]] = set()
    for chunk in ranked:
        if len(found.chunks) == request.k:
            break
        passage = chunk.passage
        if request.parents and chunk.parent is not None:
            parent = passage.document_id, chunk.parent
            if parent in parents:
                found.omitted.append(_omitted(passage, "duplicate"))
                continue
        if request.per_source is not None and of_source.get(passage.document_id, 0) >= request.per_source:
            found.omitted.append(_omitted(passage, "per_source"))
            continue
        if request.deduplicate and not known.is_new(passage.text):
            found.omitted.append(_omitted(passage, "duplicate"))
            continue
        if request.parents and chunk.parent is not None:
            parents.add((passage.document_id, chunk.parent))
        of_source[passage.document_id] = of_source.get(passage.document_id, 0) + 1
        found.chunks.append(chunk)
    return found


def _omitted(passage: Passage, reason: OmittedReason) -> Omitted:
    return Omitted(passage.id, passage.document_id, passage.source, reason, passage.tokens)
