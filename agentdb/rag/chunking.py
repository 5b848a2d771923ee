"""Chunks: spans of a document's text that fit an embedder, cut where the text itself is divided.

Every chunker here keeps these laws: each character that is no white space lies in a chunk; no chunk is empty; chunks are
in order; and ``text[start:end]`` is the chunk. Splitters of others (`as_chunker`) keep the last two.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agentdb.embedding import Embedder, TokenCounter, embed_texts, is_embedder
from agentdb.errors import InvalidInputError, MissingDependencyError
from agentdb.rag import pieces
from agentdb.rag.parsing.model import Block, ParsedDocument
from agentdb.rag.pieces import Cut, Piece
from agentdb.rag.syntax import outline

__all__ = [
    "Chunk",
    "Chunker",
    "CountTokens",
    "ParentChildChunker",
    "SemanticChunker",
    "StructureChunker",
    "as_chunker",
]

CountTokens = Callable[[Sequence[str]], Sequence[int]]
"""Returns how many tokens each text has, special tokens included, as `agentdb.TokenCounter.count_tokens` does."""

_CHARS_PER_TOKEN = 32
"""A chunk has at most so many characters for each token it may have: some tokenizers make one token of any word."""
_REGION = 1 << 20
"""Characters that are cut into pieces at a time, so that memory stays small beside the text's own."""
_EMBEDDED = 1_024
"""Stretches whose vectors are asked for at a time."""
_MOST_WORDS = 1 << 19
_FENCE = re.compile(r" {0,3}(?:`{3,}|~{3,})[^\n]*(?:\n|\Z)")
_FENCE_END = re.compile(r"\n[ \t]*(?:`{3,}|~{3,})[ \t]*\Z")
_LINE_END = re.compile(r"\n")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a document that is embedded and found as one.

    Attributes:
        start, end: characters of `ParsedDocument.text`.
        page: where it begins; None where there are no pages.
        heading_path: the headings, and in source code the classes and functions, that the whole chunk stands under,
            outermost first.
        parent: the span of the larger stretch that is returned in its place; None: the chunk itself.
    """

    start: int
    end: int
    page: int | None
    heading_path: tuple[str, ...]
    parent: tuple[int, int] | None = None


@runtime_checkable
class Chunker(Protocol):
    """Divides documents. May be called from any thread."""

    def chunk(self, document: ParsedDocument) -> list[Chunk]:
        """Return the chunks in the order of the text."""


@dataclass(frozen=True, kw_only=True)
class StructureChunker:
    """Cuts where the text is divided: at headings, blocks, definitions, items, rows and sentences, in this order.

    A chunk ends at the best such place in its second half, at a heading or a definition from its first quarter on. Fenced
    code and tables that fit are never cut. A sentence or a word that does not fit is cut inside.

    Args:
        count_tokens: of the embedder; special tokens count once in each chunk.
        chunk_tokens: the most that a chunk has. What is longer than the embedder's ``max_tokens`` it does not see.
        overlap_tokens: the most that a chunk repeats of the one before it, in whole pieces; nothing is repeated across a
            heading or a definition. At most half of ``chunk_tokens``.
    """

    count_tokens: CountTokens = field(repr=False)
    chunk_tokens: int = 224
    overlap_tokens: int = 32
    _costs: _Costs = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_sizes(self.count_tokens, self.chunk_tokens, self.overlap_tokens, "chunk_tokens")
        object.__setattr__(self, "_costs", _Costs(self.count_tokens))

    def chunk(self, document: ParsedDocument) -> list[Chunk]:
        """Return the chunks in the order of the text; those of a text that holds nothing are none."""
        packer = Packer(document.text, self._costs, self.chunk_tokens, self.overlap_tokens)
        spans: list[tuple[int, int]] = []
        for region in regions(document):
            spans += packer.pack([packer.pieces(region)])
        return placed(document, spans, packer.definitions)


@dataclass(frozen=True, kw_only=True)
class ParentChildChunker:
    """Small chunks to be found, each with the span of the larger stretch that it is returned as.

    Both are cut as `StructureChunker` cuts; the larger stretches do not overlap, and a small chunk lies within one.

    Args:
        count_tokens: as for `StructureChunker`.
        parent_tokens: the most that a larger stretch has; more than ``child_tokens``.
        child_tokens, overlap_tokens: of the small chunks, as ``chunk_tokens`` and ``overlap_tokens`` there.
    """

    count_tokens: CountTokens = field(repr=False)
    parent_tokens: int = 1_024
    child_tokens: int = 128
    overlap_tokens: int = 0
    _costs: _Costs = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_sizes(self.count_tokens, self.child_tokens, self.overlap_tokens, "child_tokens")
        require_tokens("parent_tokens", self.parent_tokens, self.child_tokens + 1)
        object.__setattr__(self, "_costs", _Costs(self.count_tokens))

    def chunk(self, document: ParsedDocument) -> list[Chunk]:
        """Return the small chunks in the order of the text."""
        parents = Packer(document.text, self._costs, self.parent_tokens, 0)
        children = Packer(document.text, self._costs, self.child_tokens, self.overlap_tokens)
        spans: list[tuple[int, int]] = []
        above: list[tuple[int, int]] = []
        for region in regions(document):
            larger = parents.pack([parents.pieces(region)])
            above += larger
            spans += children.pack([children.pieces(list(_within(region, *span))) for span in larger])
        starts = [start for start, _ in above]
        return [
            replace(chunk, parent=above[bisect_right(starts, chunk.start) - 1])
            for chunk in placed(
                document, spans, sorted(parents.definitions + children.definitions, key=_outermost_first)
            )
        ]


def _outermost_first(definition: tuple[int, int, str]) -> tuple[int, int]:
    return definition[0], -definition[1]


def _within(blocks: Sequence[Block], start: int, end: int) -> Iterator[Block]:
    """Yield the blocks of a stretch, those at its borders as far as they lie in it."""
    for block in blocks:
        if block.start < end and start < block.end:
            yield replace(block, start=max(start, block.start), end=min(end, block.end))


@dataclass(frozen=True, kw_only=True)
class SemanticChunker:
    """Cuts where the embeddings of what is before and behind a place differ most.

    The text is divided into sentences, items, rows and lines. A place begins a new chunk if the vectors of the stretches
    before and behind it are farther apart than most; otherwise chunks are cut as `StructureChunker` cuts, without overlap.

    Args:
        embedder: embeds each stretch once; the same as for search or a cheaper one.
        count_tokens: as for `StructureChunker`; None: those of the embedder, which must be a `agentdb.TokenCounter` then.
        chunk_tokens: the most that a chunk has.
        percentile: which share of the places of a document is no breakpoint, 0 to 100.
        window: sentences on each side that are compared.

    Source:
        Kamradt, 5 Levels Of Text Splitting, 2024: breakpoints at a percentile of the distances.
    """

    embedder: Embedder
    count_tokens: CountTokens | None = field(default=None, repr=False)
    chunk_tokens: int = 224
    percentile: float = 90.0
    window: int = 2
    _costs: _Costs = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_embedder(self.embedder):
            raise InvalidInputError(f"embedder must be an Embedder, not {type(self.embedder).__name__}")
        count = self.count_tokens
        if count is None:
            if not isinstance(self.embedder, TokenCounter):
                raise InvalidInputError("count_tokens is required: the embedder does not count tokens")
            count = self.embedder.count_tokens
        require_sizes(count, self.chunk_tokens, 0, "chunk_tokens")
        if isinstance(self.percentile, bool) or not isinstance(self.percentile, int | float):
            raise InvalidInputError(f"percentile must be a number, not {type(self.percentile).__name__}")
        if not 0 <= self.percentile <= 100:
            raise InvalidInputError(f"percentile must be from 0 to 100, not {self.percentile}")
        require_tokens("window", self.window, 1)
        object.__setattr__(self, "_costs", _Costs(count))

    def chunk(self, document: ParsedDocument) -> list[Chunk]:
        """Return the chunks in the order of the text."""
        packer = Packer(document.text, self._costs, self.chunk_tokens, 0)
        spans: list[tuple[int, int]] = []
        for region in regions(document):
            spans += packer.pack([self._broken(document.text, packer.pieces(region))])
        return placed(document, spans, packer.definitions)

    def _broken(self, text: str, parts: list[Piece]) -> list[Piece]:
        """Return the pieces with a better cut where the subject changes."""
        count = len(parts)
        if count < 3:
            return parts
        stretches = [text[parts[at][0] : parts[min(at + self.window, count) - 1][1]] for at in range(count)]
        vectors = np.concatenate(
            [embed_texts(self.embedder, stretches[first : first + _EMBEDDED]) for first in range(0, count, _EMBEDDED)]
        )
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        # Before the first places there are fewer sentences than the window: the stretch that begins with the text.
        before = np.maximum(np.arange(1, count) - self.window, 0)
        distances = 1 - np.einsum("nd,nd->n", vectors[before], vectors[1:])
        threshold = np.percentile(distances, self.percentile)
        is_break = np.append(False, distances > threshold)
        return [
            (start, end, max(cut, Cut.MEANING) if new and cut != Cut.GLUED else cut)
            for (start, end, cut), new in zip(parts, is_break.tolist(), strict=True)
        ]


def require_sizes(count_tokens: object, tokens: object, overlap: object, name: str) -> None:
    """Return if the sizes of chunks can be kept.

    Raises:
        InvalidInputError: they cannot; names the field.
    """
    if not callable(count_tokens):
        raise InvalidInputError(f"count_tokens must be callable, not {type(count_tokens).__name__}")
    most = require_tokens(name, tokens, 1)
    if require_tokens("overlap_tokens", overlap, 0) * 2 > most:
        raise InvalidInputError(f"overlap_tokens must be at most half of {name}")


def require_tokens(name: str, value: object, least: int) -> int:
    """Return a number that is at least so large.

    Raises:
        InvalidInputError: it is not, or it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInputError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise InvalidInputError(f"{name} must be at least {least}, not {value}")
    return value


def placed(
    document: ParsedDocument, spans: Sequence[tuple[int, int]], definitions: Sequence[tuple[int, int, str]] = ()
) -> list[Chunk]:
    """Return spans, in order, as chunks that know their place."""
    chunks: list[Chunk] = []
    open_: list[tuple[int, int, str]] = []
    at = 0
    for start, end in spans:
        while at < len(definitions) and definitions[at][0] <= start:
            open_.append(definitions[at])
            at += 1
        open_ = [one for one in open_ if one[1] > start]
        inside = tuple(name for _, last, name in open_ if last >= end)
        path = _common(document.heading_path(start), document.heading_path(end - 1))
        chunks.append(Chunk(start, end, document.page_of(start), (*path, *inside)))
    return chunks


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return one[:same]


def regions(document: ParsedDocument) -> Iterator[list[Block]]:
    """Yield the blocks in runs of about a million characters; a longer block is cut at the end of a line."""
    text = document.text
    run: list[Block] = []
    size = 0
    for block in document.blocks:
        start = block.start
        while block.end - start > 2 * _REGION:
            stop = text.rfind("\n", start + _REGION // 2, start + _REGION) + 1
            if not stop:
                stop = start + _REGION
                while not pieces.is_grapheme_end(text, stop) and stop > start + _REGION // 2:
                    stop -= 1
            if bare := text[start:stop].rstrip():
                yield [*run, replace(block, start=start, end=start + len(bare))]
                run, size = [], 0
            start = stop
        if text[start : block.end].isspace():
            continue
        run.append(replace(block, start=start))
        size += block.end - start
        if size >= _REGION:
            yield run
            run, size = [], 0
    if run:
        yield run


class _Costs:
    """What stretches of text take of a chunk: tokens, estimated from those of their words, which are counted once.

    The tokens of neighbouring words may melt into one or part differently, so a chunk is counted once more as a whole.
    """

    _WORDS = re.compile(r"\w{1,64}|[^\w\s]{1,16}")

    def __init__(self, count_tokens: CountTokens) -> None:
        self._count = count_tokens
        self._words: dict[str, int] = {}
        self._special: int | None = None

    @property
    def special(self) -> int:
        """Tokens that every text has besides its own."""
        if self._special is None:
            self._special = self.exact([""])[0]
        return self._special

    def exact(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of whole texts, special ones included."""
        counts = [int(one) for one in self._count(texts)]
        if len(counts) != len(texts) or any(one < 0 for one in counts):
            raise InvalidInputError("count_tokens must return one number, not negative, for each text")
        return counts

    def estimate(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Return about how many tokens each stretch has without special ones, and at least 1 for so many characters."""
        find = self._WORDS.findall
        words = [find(text, start, end) for start, end in spans]
        known = self._known(set(chain.from_iterable(words)))
        take = known.__getitem__
        return [
            max(sum(map(take, found)), -(-(end - start) // _CHARS_PER_TOKEN))
            for found, (start, end) in zip(words, spans, strict=True)
        ]

    def _known(self, wanted: set[str]) -> dict[str, int]:
        """Return a table that has all of the words."""
        known = self._words
        new = [word for word in wanted if word not in known]
        if new:
            counts = {word: max(0, count - self.special) for word, count in zip(new, self.exact(new), strict=True)}
            if len(known) + len(new) > _MOST_WORDS:
                # Texts have few words that come back and many that never do: begin anew rather than grow for ever.
                # Another thread may still read the table that it was given.
                known = self._words = {word: known[word] for word in wanted if word in known}
            known.update(counts)
        return known


class Packer:
    """Puts the pieces of one text together to chunks."""

    def __init__(self, text: str, costs: _Costs, chunk_tokens: int, overlap_tokens: int) -> None:
        self._text = text
        self._costs = costs
        self._limit = chunk_tokens
        self._capacity = chunk_tokens - costs.special
        if self._capacity < 1:
            raise InvalidInputError(
                f"chunks of {chunk_tokens} tokens hold no text: {costs.special} of them are special tokens"
            )
        self._overlap = overlap_tokens
        self._known: dict[tuple[int, int], int] = {}  # what blocks cost that were counted as a whole
        self.definitions: list[tuple[int, int, str]] = []
        """Where classes, functions and the like begin and end, and what they are called, in order, outer ones first."""

    # --- pieces

    def pieces(self, blocks: Sequence[Block]) -> list[Piece]:
        """Return the pieces of some blocks: blocks that stay whole, sentences, rows, items, lines."""
        whole = self._whole(blocks)
        found: list[Piece] = []
        after_heading = False
        for block in blocks:
            cut = Cut.GLUED if after_heading else Cut.BLOCK
            after_heading = block.kind == "heading"
            if after_heading:
                found.append((block.start, block.end, Cut.HEADING_6 + 6 - block.level))
            elif block.start in whole:
                found.append((block.start, block.end, cut))
            elif block.kind == "code":
                found += self._code(block, cut)
            elif block.kind == "table":
                found += pieces.table_rows(self._text, block.start, block.end, cut)
            elif block.kind == "list":
                found += pieces.list_lines(self._text, block.start, block.end, cut)
            else:
                found += pieces.sentences(self._text, block.start, block.end, cut)
        return found

    def _code(self, block: Block, cut: int) -> Iterator[Piece]:
        """Yield the lines of code that does not fit as a whole, and note what is defined in it."""
        code = self._text[block.start : block.end]
        if fence := _FENCE.match(code):
            # Its lines stay, so that lines keep their numbers, but empty: they are not in the language.
            code = code[fence.end() :]
            code = code[: code.rfind("\n") + 1] if _FENCE_END.search(code) else code
            code = "\n" + code
        divided = outline(code, block.language)
        if divided is not None and divided.definitions:
            starts = [found.end() for found in _LINE_END.finditer(self._text, block.start, block.end)]
            starts = [block.start, *starts, block.end]
            for one in divided.definitions:
                last = min(one.last + 1, len(starts) - 1)
                self.definitions.append((starts[one.first], starts[last], one.name))
        return pieces.code_lines(self._text, block.start, block.end, cut, divided)

    def _whole(self, blocks: Sequence[Block]) -> set[int]:
        """Return where the code and the tables begin that fit into a chunk."""
        spans = [
            (block.start, block.end)
            for block in blocks
            if block.kind in ("code", "table") and block.end - block.start <= self._capacity * _CHARS_PER_TOKEN
        ]
        estimates = self._costs.estimate(self._text, spans)
        # Far too many words is too many; otherwise it is counted exactly.
        near = [span for span, cost in zip(spans, estimates, strict=True) if cost <= 3 * self._capacity]
        counts = self._costs.exact([self._text[start:end] for start, end in near]) if near else []
        fitting = {span: count for span, count in zip(near, counts, strict=True) if count <= self._limit}
        for span, count in fitting.items():
            self._known[span] = max(1, min(count - self._costs.special, self._capacity))
        return {start for start, _ in fitting}

    # --- chunks

    def pack(self, groups: Sequence[list[Piece]]) -> list[tuple[int, int]]:
        """Return spans that hold all of the pieces, each within the limit and within one group, in order."""
        parts: list[Piece] = []
        costs: list[int] = []
        runs: list[tuple[int, int, int]] = []
        for group in groups:
            if group:
                fitting, measured = self._fitting(group)
                first = len(parts)
                parts += fitting
                costs += measured
                runs += self._divide(parts, costs, first, len(parts), self._capacity, self._overlap)
        return self._verified(parts, costs, runs)

    def _fitting(self, found: list[Piece]) -> tuple[list[Piece], list[int]]:
        """Return pieces that each fit, and what they cost."""
        spans = [(start, end) for start, end, _ in found]
        costs = self._costs.estimate(self._text, spans)
        costs = [self._known.get(span, cost) for span, cost in zip(spans, costs, strict=True)]
        while max(costs) > self._capacity:
            parts: list[Piece] = []
            places: list[int] = []
            fresh: list[int] = []
            for piece, cost in zip(found, costs, strict=True):
                length = piece[1] - piece[0]
                if cost <= self._capacity or length == 1:
                    parts.append(piece)
                    fresh.append(min(cost, self._capacity))
                    continue
                target = max(1, min(length - 1, length * self._capacity // (cost * 4)))
                for short in pieces.shorter(self._text, piece, target):
                    places.append(len(parts))
                    parts.append(short)
                    fresh.append(0)
            measured = self._costs.estimate(self._text, [parts[place][:2] for place in places])
            for place, cost in zip(places, measured, strict=True):
                fresh[place] = cost
            found, costs = parts, fresh
        return found, costs

    def _divide(
        self, parts: list[Piece], costs: list[int], first: int, last: int, capacity: int, overlap: int
    ) -> list[tuple[int, int, int]]:
        """Return runs of pieces: where each begins, where what it does not repeat begins, and where it ends."""
        sums = [0, *accumulate(costs[first:last])]
        cuts = [cut for _, _, cut in parts[first:last]]
        count = last - first
        runs: list[tuple[int, int, int]] = []
        begin = fresh = 0
        while fresh < count:
            base = sums[begin]
            furthest = max(fresh + 1, bisect_right(sums, base + capacity) - 1)
            end = self._best(cuts, sums, base, fresh, furthest, count, capacity)
            runs.append((first + begin, first + fresh, first + end))
            fresh = end
            begin = self._repeated(cuts, sums, runs[-1][1] - first, end, overlap, capacity) if end < count else end
        return runs

    @staticmethod
    def _best(cuts: list[int], sums: list[int], base: int, fresh: int, furthest: int, count: int, capacity: int) -> int:
        """Return where a chunk ends.

        The first heading or change of subject after its first quarter, else the last definition there, else the best place in its second half.
        """
        quarter = max(fresh + 1, bisect_right(sums, base + capacity // 4, fresh))
        for place in range(quarter, min(furthest + 1, count)):
            if cuts[place] >= Cut.MEANING:
                return place
        if furthest >= count:
            return count
        half = max(fresh + 1, bisect_right(sums, base + capacity // 2, fresh))
        for floor, least in ((quarter, Cut.NESTED), (half, Cut.INSIDE_WORD), (fresh + 1, Cut.INSIDE_WORD)):
            window = cuts[floor : furthest + 1]
            best = max(window, default=Cut.GLUED)
            if best >= least:
                return furthest - window[::-1].index(best)
        return furthest

    @staticmethod
    def _repeated(cuts: list[int], sums: list[int], floor: int, end: int, overlap: int, capacity: int) -> int:
        """Return where a chunk begins that repeats the last pieces before ``end``."""
        allowed = min(overlap, capacity - (sums[end + 1] - sums[end]))
        begin = end
        while begin > floor + 1 and cuts[begin] < Cut.NESTED and sums[end] - sums[begin - 1] <= allowed:
            begin -= 1
        # What is repeated begins where a sentence or a line does.
        while begin < end and cuts[begin] in (Cut.GLUED, Cut.INSIDE_WORD):
            begin += 1
        return begin

    def _verified(
        self, parts: list[Piece], costs: list[int], runs: list[tuple[int, int, int]]
    ) -> list[tuple[int, int]]:
        """Return the spans of the runs, those divided again that have more tokens than the estimate said."""
        done: list[tuple[int, int]] = []
        while runs:
            spans = [self._span(parts, begin, end) for begin, _, end in runs]
            counts = self._costs.exact([self._text[start:end] for start, end in spans])
            left: list[tuple[int, int, int]] = []
            for run, span, count in zip(runs, spans, counts, strict=True):
                if count <= self._limit or span[1] - span[0] == 1:
                    done.append(span)
                else:
                    left += self._smaller(parts, costs, run, count)
            runs = left
        # A part of a chunk that was divided again may be all that the next chunk repeats.
        kept: list[tuple[int, int]] = []
        for span in sorted(done, key=lambda one: (one[0], -one[1])):
            if not kept or span[1] > kept[-1][1]:
                kept.append(span)
        return kept

    def _smaller(
        self, parts: list[Piece], costs: list[int], run: tuple[int, int, int], count: int
    ) -> list[tuple[int, int, int]]:
        """Return a run that is too long without what it repeats, or else in parts."""
        begin, fresh, end = run
        if begin < fresh:
            return [(fresh, fresh, end)]
        if end - begin > 1:
            total = sum(costs[begin:end])
            capacity = max(1, min(total - 1, total * self._capacity // (count + 1)))
            return self._divide(parts, costs, begin, end, capacity, 0)
        piece = parts[begin]
        target = max(1, (piece[1] - piece[0]) * self._capacity // (2 * count))
        shorter = list(pieces.shorter(self._text, piece, min(target, piece[1] - piece[0] - 1)))
        first = len(parts)
        parts += shorter
        costs += [max(1, costs[begin] // len(shorter))] * len(shorter)
        return [(place, place, place + 1) for place in range(first, len(parts))]

    @staticmethod
    def _span(parts: list[Piece], begin: int, end: int) -> tuple[int, int]:
        return parts[begin][0], parts[end - 1][1]


# --- splitters of others


def as_chunker(value: object) -> Chunker:
    """Return a chunker: a `Chunker` as it is, or what divides texts elsewhere, behind the same method.

    Args:
        value: a `Chunker`; a text splitter of LangChain, or whatever has ``split_text``; a node parser of LlamaIndex, or
            whatever has ``get_nodes_from_documents``; a callable that takes a text and returns its parts. Each part must
            be a stretch of the text, but for white space at its ends; `Chunker.chunk` raises `InvalidInputError` where
            one is not. What such a splitter leaves out lies in no chunk.

    Raises:
        InvalidInputError: it is none of these.
    """
    if isinstance(value, type):
        raise InvalidInputError(f"a chunker must be an object, not the class {value.__name__}")
    if callable(getattr(value, "chunk", None)):
        assert isinstance(value, Chunker)
        return value
    if callable(getattr(value, "get_nodes_from_documents", None)):
        return _NodeParser(value)
    for divide in (getattr(value, "split_text", None), value):
        if callable(divide):
            return _Splitter(divide)
    raise InvalidInputError(
        "a chunker must have chunk(), split_text() or get_nodes_from_documents(), or be callable with a text, not "
        f"{type(value).__name__}"
    )


@dataclass(frozen=True, slots=True)
class _Splitter:
    """Whatever divides a text into strings."""

    divide: Callable[[str], Any]

    def chunk(self, document: ParsedDocument) -> list[Chunk]:
        if not document.text.strip():
            return []
        # Splitters by headings return documents, whose text is their page_content.
        parts = [getattr(part, "page_content", part) for part in self.divide(document.text)]
        for number, part in enumerate(parts):
            if not isinstance(part, str):
                raise InvalidInputError(f"part {number} of the splitter must be a string, not {type(part).__name__}")
        return placed(document, list(_located(document.text, parts)))


@dataclass(frozen=True, slots=True)
class _NodeParser:
    """A node parser of LlamaIndex. Of nodes in levels the lowest are the chunks, each with the span of its parent."""

    parser: Any

    def chunk(self, document: ParsedDocument) -> list[Chunk]:
        if not document.text.strip():
            return []
        try:
            from llama_index.core.schema import Document
        except ImportError as error:
            raise MissingDependencyError("a node parser needs 'agentdb-lance[llama-index]'") from error
        nodes = list(self.parser.get_nodes_from_documents([Document(text=document.text)]))
        lowest = [node for node in nodes if not node.child_nodes]
        chunks = placed(document, list(_located(document.text, [node.text for node in lowest])))
        above = {node.node_id: node for node in nodes}
        parents: dict[str, tuple[int, int] | None] = {}
        found: list[Chunk] = []
        for chunk, node in zip(chunks, (node for node in lowest if node.text.strip()), strict=True):
            parent = above.get(node.parent_node.node_id) if node.parent_node is not None else None
            if parent is None:
                found.append(chunk)
                continue
            if parent.node_id not in parents:
                parents[parent.node_id] = _around(document.text, parent.text.strip(), chunk)
            found.append(replace(chunk, parent=parents[parent.node_id]))
        return found


def _around(text: str, larger: str, chunk: Chunk) -> tuple[int, int] | None:
    """Return where a larger stretch lies that holds a chunk, or None."""
    start = text.rfind(larger, 0, chunk.start + len(larger))
    return (start, start + len(larger)) if start >= 0 and chunk.end <= start + len(larger) else None


def _located(text: str, parts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield where the parts lie, each after the beginning of the one before it.

    A part that occurs more than once is taken where nothing is left out before it, with as little overlap as possible.
    """
    start, end = -1, 0
    for number, part in enumerate(parts):
        bare = part.strip()
        if not bare:
            continue
        following = end
        while following < len(text) and text[following].isspace():
            following += 1
        at = text.rfind(bare, start + 1, following + len(bare))
        if at < 0:
            at = text.find(bare, start + 1)
        if at < 0:
            raise InvalidInputError(
                f"part {number} of the splitter is not a stretch of the text after part {number - 1}: a splitter that "
                "rewrites the text cannot be used, because citations would not be exact"
            )
        start, end = at, at + len(bare)
        yield start, end
