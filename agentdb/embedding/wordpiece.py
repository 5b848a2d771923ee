"""``WordTable``: the tokens of a BERT tokenizer for plain text, word by word from a table.

A BERT tokenizer lower-cases a text, splits it at white space and punctuation, and cuts every word into pieces without
looking at its neighbours. So what it once made of a word it always makes of it, and whole arrays of words can be looked
up at once. The tokenizer itself says what it makes of each character and of each new word; a text that it could treat
in another way (beyond ASCII, with control characters or special tokens) is left to it.

Source: the split is that of Devlin et al., "BERT", 2019, as the library tokenizers implements it.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["WordTable"]

_LONGEST = 16
"""Bytes of a word that fit into its key; a longer one is looked up by itself."""
_MOST_WORDS = 1 << 15
_SPACE, _LETTER, _MARK, _STRANGE = range(4)

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
_FULL = (1 << 64) - 1
_KEPT = np.array([(1 << 8 * n) - 1 for n in range(8)] + [_FULL], np.uint64)
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)


@dataclass(frozen=True, slots=True)
class _Table:
    """Words and where their tokens lie; replaced as a whole, so that readers need no lock."""

    low: Words
    high: Words
    first: Int64s
    count: Int64s
    pool: Int32s
    n_words: int

    @classmethod
    def empty(cls, n_words: int) -> _Table:
        """Return a table with room for so many words: at most a quarter of its slots is used."""
        slots = 1 << (4 * n_words - 1).bit_length()
        first, count = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        return cls(np.zeros(slots, np.uint64), np.zeros(slots, np.uint64), first, count, np.zeros(0, np.int32), 0)

    def _home(self, low: Words, high: Words) -> Int64s:
        shift = np.uint64(65 - len(self.low).bit_length())
        home: Int64s = ((low * _MIX[0] ^ high * _MIX[1]) >> shift).astype(np.int64)
        return home

    def find(self, low: Words, high: Words) -> Int64s:
        """Return the slot of each word, -1 where it is not known."""
        slot = self._home(low, high)
        known = self.low[slot]
        hit = (known == low) & (self.high[slot] == high)
        found = np.where(hit, slot, -1)
        open_at = np.flatnonzero(~hit & (known != 0))
        while len(open_at):
            slot[open_at] = (slot[open_at] + 1) % len(self.low)
            there = slot[open_at]
            known = self.low[there]
            hit = (known == low[open_at]) & (self.high[there] == high[open_at])
            found[open_at[hit]] = there[hit]
            open_at = open_at[~hit & (known != 0)]
        return found

    def with_words(self, low: Words, high: Words, pieces: list[list[int]]) -> _Table:
        """Return a table that knows these words too, each new and once."""
        keys, others, first, count = self.low.copy(), self.high.copy(), self.first.copy(), self.count.copy()
        slots = self._home(low, high).tolist()
        at = len(self.pool)
        for position, ids in enumerate(pieces):
            slot = slots[position]
            while keys[slot]:
                slot = (slot + 1) % len(keys)
            keys[slot], others[slot], first[slot], count[slot] = low[position], high[position], at, len(ids)
            at += len(ids)
        fresh = np.fromiter((one for ids in pieces for one in ids), np.int32, at - len(self.pool))
        return _Table(keys, others, first, count, np.concatenate([self.pool, fresh]), self.n_words + len(pieces))


class WordTable:
    """Tokens of plain texts exactly as a BERT tokenizer makes them, from any number of threads.

    Use `of`, which returns None for a tokenizer of another kind.
    """

    def __init__(self, backend: Any, kinds: npt.NDArray[np.uint8], lower: npt.NDArray[np.uint8]) -> None:
        self._backend = backend
        self._kinds = kinds.tobytes()
        self._lower = lower.tobytes()
        full, bare = backend.encode("a").ids, backend.encode("a", add_special_tokens=False).ids
        at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        self._before = np.array(full[:at], np.int32)
        self._after = np.array(full[at + len(bare) :], np.int32)
        self._special = [token.content for token in backend.get_added_tokens_decoder().values()]
        self._table = _Table.empty(_MOST_WORDS)
        self._lock = threading.Lock()

    @classmethod
    def of(cls, backend: Any) -> WordTable | None:
        """Return the table of a ``tokenizers.Tokenizer``, or None if it is not a BERT's."""
        parts = json.loads(backend.to_str())
        kind = [(parts.get(name) or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")]
        if kind != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
            return None
        kinds, lower = np.full(256, _STRANGE, np.uint8), np.zeros(256, np.uint8)
        for code in range(128):
            split = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(f"a{chr(code)}a"))
            words = [word for word, _ in split]
            if words == ["a", "a"]:
                kinds[code] = _SPACE
            elif len(words) == 1 and len(words[0]) == 3:
                kinds[code], lower[code] = _LETTER, ord(words[0][1])
            elif len(words) == 3 and len(words[1]) == 1:
                kinds[code], lower[code] = _MARK, ord(words[1])
        return cls(backend, kinds, lower) if kinds[ord(" ")] == _SPACE else None

    def encode(self, texts: list[str], limit: int | None) -> tuple[Int64s, Int32s, list[int]]:
        """Return tokens of each text, special ones included, all tokens in turn, and the texts left to the tokenizer.

        Args:
            texts: any.
            limit: tokens that a text is cut to; None: not at all.

        Returns:
            lengths `[N]`, 0 for a text that was left aside; tokens `[T]`; and the positions of those texts.
        """
        lengths = np.zeros(len(texts), np.int64)
        plain = [place for place, text in enumerate(texts) if text.isascii()]
        plain, joined = self._without_special(texts, plain)
        written = joined.encode() + bytes(_LONGEST + 8)
        kinds = np.frombuffer(written.translate(self._kinds), np.uint8)
        begins = np.zeros(len(plain) + 1, np.int64)
        np.cumsum([len(texts[place]) + 1 for place in plain], out=begins[1:])
        strange = np.flatnonzero(kinds[: len(joined)] == _STRANGE)
        if len(strange):
            bad = set(np.searchsorted(begins, strange, side="right") - 1)
            others = [place for at, place in enumerate(plain) if at not in bad]
            sub_lengths, tokens, _ = self.encode([texts[place] for place in others], limit)
            lengths[others] = sub_lengths
            return lengths, tokens, _rest(len(texts), others)
        if not plain:
            return lengths, np.zeros(0, np.int32), list(range(len(texts)))
        is_letter = kinds == _LETTER
        is_mark = kinds == _MARK
        inside = np.zeros(len(kinds), bool)
        inside[1:] = is_letter[1:] & is_letter[:-1]
        starts = np.flatnonzero((is_letter | is_mark) & ~inside)
        inside[:-1] = is_letter[:-1] & is_letter[1:]
        inside[-1] = False
        sizes = np.flatnonzero((is_letter | is_mark) & ~inside) - starts + 1
        first, count, pool = self._pieces(np.frombuffer(written.translate(self._lower), np.uint8), starts, sizes)
        ends = np.zeros(len(starts) + 1, np.int64)
        np.cumsum(count, out=ends[1:])
        # Tokens of each text: those of the words that begin in it, cut, between the special ones.
        begin = ends[np.searchsorted(starts, begins)]
        extra = len(self._before) + len(self._after)
        taken = np.diff(begin)
        if limit is not None:
            taken = np.minimum(taken, max(0, limit - extra))
        lengths[plain] = taken + extra
        tokens = np.empty(int(taken.sum()) + extra * len(plain), np.int32)
        outer = np.cumsum(taken + extra) - (taken + extra)
        inner = np.cumsum(taken) - taken
        words = np.repeat(first - ends[:-1], count)
        words += np.arange(len(words))
        at = np.arange(int(taken.sum()))
        body = pool[words[at + np.repeat(begin[:-1] - inner, taken)]]
        tokens[at + np.repeat(outer + len(self._before) - inner, taken)] = body
        for place, token in enumerate(self._before):
            tokens[outer + place] = token
        for place, token in enumerate(self._after):
            tokens[outer + taken + len(self._before) + place] = token
        return lengths, tokens, _rest(len(texts), plain)

    def _without_special(self, texts: list[str], plain: list[int]) -> tuple[list[int], str]:
        """Return the texts without a special token in them, and those texts side by side, each with a space after."""
        joined = " ".join([*(texts[place] for place in plain), ""])
        # The tokenizer looks for them in the text as it is, or as it is normalised.
        lower = joined.lower()
        found = [token for token in self._special if token in joined or token in lower]
        if found:
            plain = [
                place
                for place in plain
                if not any(token in texts[place] or token in texts[place].lower() for token in found)
            ]
            joined = " ".join([*(texts[place] for place in plain), ""])
        return plain, joined

    def _pieces(self, data: npt.NDArray[np.uint8], starts: Int64s, sizes: Int64s) -> tuple[Int64s, Int64s, Int32s]:
        """Return where the tokens of each word begin in a pool, how many they are, and the pool."""
        # Eight bytes at every place: what lies past the word is masked away.
        eight = np.ndarray((len(data) - 7,), np.uint64, data, strides=(1,))
        low = eight[starts] & _KEPT[np.minimum(sizes, 8)]
        high = eight[starts + 8] & _KEPT[np.clip(sizes - 8, 0, 8)]
        long_at = np.flatnonzero(sizes > _LONGEST)
        short = sizes <= _LONGEST
        table = self._table
        found = table.find(low, high)
        if ((found < 0) & short).any():
            table = self._learn(low[short], high[short])
            found = table.find(low, high)
        first, count, pool = table.first[found], table.count[found], table.pool
        if len(long_at):
            words = [
                data[start : start + size].tobytes().decode()
                for start, size in zip(starts[long_at].tolist(), sizes[long_at].tolist(), strict=True)
            ]
            ids = self._cut(words)
            count[long_at] = [len(one) for one in ids]
            first[long_at] = len(pool) + np.cumsum(count[long_at]) - count[long_at]
            pool = np.concatenate([pool, np.array([one for each in ids for one in each], np.int32)])
        return first, count, pool

    def _learn(self, low: Words, high: Words) -> _Table:
        """Return a table that knows all of these words."""
        with self._lock:
            table = self._table
            names = np.unique(np.stack([low, high], axis=1).view(f"S{_LONGEST}"))
            keys = np.frombuffer(names.tobytes(), np.uint64).reshape(-1, 2)
            keys = keys[table.find(keys[:, 0], keys[:, 1]) < 0]
            if table.n_words + len(keys) > _MOST_WORDS:
                # Texts have few words that come back and many that never do: begin anew rather than grow for ever.
                keys = np.frombuffer(names.tobytes(), np.uint64).reshape(-1, 2)
                table = _Table.empty(max(_MOST_WORDS, len(keys)))
            words = [key.tobytes().rstrip(b"\0").decode() for key in keys]
            table = table.with_words(keys[:, 0], keys[:, 1], self._cut(words))
            if table.n_words <= _MOST_WORDS:
                self._table = table
            return table

    def _cut(self, words: list[str]) -> list[list[int]]:
        return [one.ids for one in self._backend.encode_batch_fast(words, add_special_tokens=False)]


def _rest(count: int, places: list[int]) -> list[int]:
    """Return the positions that are not among the places."""
    left = np.ones(count, bool)
    left[places] = False
    return np.flatnonzero(left).tolist()
