"""Vectors of passages and memories that are longer than an embedder reads.

How long a passage should be is a matter of what is found by it; how much a small model reads at once is another one. A text that
does not fit is read in windows of about equal length, each behind the words that stand before the text, and its vector is the
mean of theirs: docs/decisions/016 and 018 have what that is worth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["Windows", "windows_of"]

Count = Callable[[Sequence[str]], list[int]]

_MOST_WINDOWS = 256
_SPACE = re.compile(r"\s+")
_END = re.compile(r"[.!?:;][\"')\]]*\s|\n")


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """What an embedder is to read for some passages.

    Attributes:
        texts: `[W]` in the order of the passages.
        owners: `[W]` which passage each belongs to.
        tokens: `[W]` how long each is.
    """

    texts: list[str]
    owners: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]

    def pooled(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return one vector for each passage: its window's as it is, or the mean direction of several, by their length.

        Args:
            vectors: `[W, D]` of the texts.

        Returns:
            `[N, D]` float32; a mean has length 1.
        """
        first = np.flatnonzero(np.diff(self.owners, prepend=-1))
        if len(first) == len(self.texts):
            return vectors
        counts = np.diff(first, append=len(self.texts))
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        sums = np.add.reduceat(unit * self.tokens[:, None], first, axis=0)
        means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        pooled: npt.NDArray[np.float32] = np.where((counts == 1)[:, None], vectors[first], means).astype(np.float32)
        return pooled


def windows_of(
    texts: Sequence[str], leads: Sequence[int], max_tokens: int, count_tokens: Count, *, most: int = _MOST_WINDOWS
) -> Windows:
    """Return the passages in windows that an embedder reads whole.

    Args:
        texts: of the passages, each with its lead.
        leads: how many characters of each stand before every window of it.
        max_tokens: what the embedder reads.
        count_tokens: as the embedder counts, special tokens included.
        most: windows of one passage, at least 2. If they are too few, each is longer than the embedder reads, and it cuts them all.
    """
    made: list[str] = []
    owners: list[int] = []
    tokens: list[int] = []
    for owner, (text, lead, count) in enumerate(zip(texts, leads, count_tokens(texts) if texts else [], strict=True)):
        if count <= max_tokens:
            parts, counts = [text], [count]
        else:
            parts, counts = _divided(text, lead, count, max_tokens, count_tokens, most)
        made += parts
        owners += [owner] * len(parts)
        tokens += [max(1, one) for one in counts]
    return Windows(made, np.array(owners, np.int64), np.array(tokens, np.int64))


def _divided(
    text: str, lead: int, count: int, max_tokens: int, count_tokens: Count, most: int
) -> tuple[list[str], list[int]]:
    """Return the fewest windows of about equal length that all fit, or the most, and their tokens."""
    head, body = text[:lead], text[lead:]
    of_head = count_tokens([head])[0] if head.strip() else 0
    if of_head > max_tokens // 2:
        head, of_head = "", 0  # it would leave no room
    number = max(2, -(-(count - of_head) // max(1, max_tokens - of_head)))
    most = min(most, len(body))
    number = min(number, most)
    while True:
        cuts = [0, *(_cut(body, place, number) for place in range(1, number)), len(body)]
        parts = [head + body[a:b] for a, b in pairwise(cuts) if body[a:b].strip()]
        counts = count_tokens(parts)
        if max(counts) <= max_tokens or number >= most:
            return parts, counts
        number = min(most, number + max(1, number // 4))


def _cut(body: str, place: int, number: int) -> int:
    """Return where a window ends: at the end of a sentence or a word that is near to where it should."""
    wanted = len(body) * place // number
    for pattern, share in ((_END, 4), (_SPACE, 2)):
        reach = len(body) // (share * number)
        ends = [found.end() for found in pattern.finditer(body, max(0, wanted - reach), wanted + reach + 1)]
        if ends:
            return min(ends, key=lambda end: abs(end - wanted))
    return wanted
