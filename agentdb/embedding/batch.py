"""``BatchEncoder``: many texts through a sentence-transformers model, without padding where the model allows it.

torch is imported when an encoder is made. The forward pass over packed sequences follows the published BERT encoder
(Devlin et al., 2019) as transformers implements it; attention over packed sequences is ``torch.nn.attention.varlen``.
"""

from __future__ import annotations

import copy
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from agentdb.embedding.port import check_texts
from agentdb.embedding.wordpiece import WordTable
from agentdb.errors import InvalidInputError, MissingDependencyError
from agentdb.types import OnProgress, Progress

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["BatchEncoder", "EncoderPath"]

_CUDA_BATCH_TOKENS = 65_536
_CPU_BATCH_TOKENS = 1_024
"""Of texts whose lengths differ a larger batch has more padding; a smaller one gains nothing."""
_CUDA_WINDOW_TEXTS = 4_096
_CPU_WINDOW_TEXTS = 2_048
_TOKENIZER_CHUNK = 512
_WINDOWS_AHEAD = 4
_NO_TOKENS = (np.empty(0, np.int64), np.empty((0, 0), np.float32))


@dataclass(frozen=True, slots=True)
class EncoderPath:
    """How an encoder runs its model: "packed" (no padding) or "padded", and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Window:
    """Some texts as tokens, longest first.

    Attributes:
        first: position of the window's first text among all.
        order: `[N]` positions in the window, those of the most tokens first.
        lengths: `[N]` tokens in that order.
        tokens: `[T]` int32, all tokens in that order.
    """

    first: int
    order: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]


class BatchEncoder:
    """Return the vectors that `SentenceTransformer.encode` returns, within 1e-3 of cosine, in larger batches.

    Texts are tokenised ahead in threads, sorted by tokens and sent in batches of about equally many tokens. On a GPU the
    model runs in float16, sequences lie side by side without padding where the model is a BERT with mean, first-token
    or maximum pooling, and vectors come back once per several thousand texts. Calls from several threads take turns.

    Args:
        model: a loaded model; it is not changed. If it is elsewhere, or not in ``dtype``, a copy of it is made.
        device: where to compute; None is where the model is.
        dtype: "float16", "bfloat16" or "float32"; None is float16 on a GPU and float32 elsewhere. On a CPU with matrix
            units for it (AMX), "bfloat16" is several times faster and still within 1e-3.
        batch_tokens: tokens of a batch; a longer text goes alone.
        threads: that tokenise.
        is_packed: False always pads.

    Raises:
        MissingDependencyError: torch is not installed.
        InvalidInputError: an argument cannot be accepted.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        device: Any = None,
        dtype: str | None = None,
        batch_tokens: int | None = None,
        threads: int = 2,
        is_packed: bool = True,
    ) -> None:
        try:
            self._torch = import_module("torch")
        except ImportError as error:
            raise MissingDependencyError(
                f"torch cannot be imported: install 'agentdb-lance[local]' ({error})"
            ) from error
        if batch_tokens is not None and batch_tokens < 1:
            raise InvalidInputError(f"batch_tokens must be at least 1, not {batch_tokens}")
        if threads < 1:
            raise InvalidInputError(f"threads must be at least 1, not {threads}")
        self._device = self._torch.device(model.device if device is None else device)
        is_cuda = self._device.type == "cuda"
        wanted = dtype or ("float16" if is_cuda else "float32")
        if wanted not in ("float16", "bfloat16", "float32"):
            raise InvalidInputError(f"dtype must be 'float16', 'bfloat16' or 'float32', not {dtype!r}")
        self._dtype = getattr(self._torch, wanted)
        self._batch_tokens = batch_tokens or (_CUDA_BATCH_TOKENS if is_cuda else _CPU_BATCH_TOKENS)
        self._window_texts = _CUDA_WINDOW_TEXTS if is_cuda else _CPU_WINDOW_TEXTS
        self._threads = threads
        self._lock = threading.Lock()
        is_same = self._device == model.device and not model.training
        is_same &= all(one.dtype == self._dtype for one in model.parameters() if one.is_floating_point())
        self._model: Any = model if is_same else copy.deepcopy(model).to(self._device, self._dtype)
        self._model.eval()
        is_normalised = type(list(model)[-1]).__name__ == "Normalize"
        self._renormalise = is_normalised and self._dtype != self._torch.float32
        self._tokenizer = _Tokenizer(model)
        self._pad = int(getattr(model.tokenizer, "pad_token_id", 0) or 0)
        self._packed: _PackedBert | None = None
        self._path = self._choose_path(is_packed=is_packed)

    def explain(self) -> EncoderPath:
        """Return how the model is run, and why."""
        return self._path

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        on_progress: OnProgress | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return `[N, D]` float32, one vector for each text in the order given.

        Args:
            texts: any number of strings.
            prompt: put before each text.
            on_progress: told after every batch how many texts are done.
            is_cancelled: asked before every batch.

        Raises:
            InvalidInputError: a text is no string, or cannot be encoded.
            concurrent.futures.CancelledError: ``is_cancelled`` said so; nothing is returned.
        """
        torch = self._torch
        check_texts(texts)
        if not texts:
            return np.empty((0, self._dimension()), np.float32)
        result: npt.NDArray[np.float32] | None = None
        waiting: tuple[int, Any, Any] | None = None
        with self._lock:
            for first, vectors in self._vectors(texts, prompt, on_progress, is_cancelled):
                if result is None:
                    result = np.empty((len(texts), vectors.shape[1]), np.float32)
                if self._device.type == "cuda":
                    # The copy of one window runs beside the next one's work.
                    host = torch.empty(vectors.shape, dtype=torch.float32, pin_memory=True)
                    host.copy_(vectors, non_blocking=True)
                    event = torch.cuda.Event()
                    event.record()
                    if waiting is not None:
                        _take(result, waiting)
                    waiting = (first, host, event)
                else:
                    result[first : first + len(vectors)] = vectors.cpu().numpy()
            assert result is not None
            if waiting is not None:
                _take(result, waiting)
        return result

    def encode_to_device(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        on_progress: OnProgress | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> Any:
        """Return `[N, D]` float32 as a tensor of the device, to be put into a `DeviceIndex`; see `encode`."""
        check_texts(texts)
        if not texts:
            return self._torch.empty((0, self._dimension()), device=self._device)
        with self._lock:
            parts = [vectors for _, vectors in self._vectors(texts, prompt, on_progress, is_cancelled)]
        return self._torch.cat(parts)

    def encode_tokens(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        on_progress: OnProgress | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Return the token ids `[T]` and contextual vectors `[T, D]` of each text in the order given; see `encode`.

        The tokens are those that reach the model: cut to its limit, the prompt's and special ones included, no padding.
        The vectors are the transformer's, before pooling and whatever follows it.
        """
        check_texts(texts)
        found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = [_NO_TOKENS] * len(texts)
        with self._lock:
            for window, begin, end, part in self._parts(texts, prompt, on_progress, is_cancelled, is_pooled=False):
                vectors = part.float().cpu().numpy()
                ends = np.cumsum(window.lengths[begin:end])
                first = int(window.lengths[:begin].sum())
                for place, (last, length) in enumerate(
                    zip(ends.tolist(), window.lengths[begin:end].tolist(), strict=True)
                ):
                    ids = window.tokens[first + last - length : first + last].astype(np.int64)
                    position = window.first + int(window.order[begin + place])
                    found[position] = ids, vectors[last - length : last].copy()
        return found

    # --- the work

    def _dimension(self) -> int:
        with self._lock:
            ((_, vectors),) = self._vectors([""], "", None, None)
        return int(vectors.shape[1])

    def _choose_path(self, *, is_packed: bool) -> EncoderPath:
        if not is_packed:
            return EncoderPath("padded", "the caller asked for padding")
        if self._device.type != "cuda":
            return EncoderPath("padded", "attention over packed sequences needs a CUDA device")
        if self._dtype == self._torch.float32:
            return EncoderPath("padded", "attention over packed sequences needs 16 bits")
        try:
            self._packed = _PackedBert(self._torch, self._model)
        except _NotPackableError as error:
            return EncoderPath("padded", str(error))
        except ImportError as error:
            return EncoderPath("padded", f"torch.nn.attention.varlen cannot be imported ({error})")
        return EncoderPath("packed", "a BERT in 16 bits on a CUDA device")

    def _vectors(
        self,
        texts: Sequence[str],
        prompt: str,
        on_progress: OnProgress | None,
        is_cancelled: Callable[[], bool] | None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (position of the first text, `[n, D]` float32 on the device) for one window after the other."""
        torch = self._torch
        result: Any = None
        order: Any = None
        for window, begin, end, part in self._parts(texts, prompt, on_progress, is_cancelled, is_pooled=True):
            if result is None:
                result = torch.empty((len(window.order), part.shape[1]), device=self._device)
                order = torch.from_numpy(window.order).to(self._device, non_blocking=True)
            result[order[begin:end]] = part.float()
            if end == len(window.order):
                yield window.first, result
                result = None

    def _parts(
        self,
        texts: Sequence[str],
        prompt: str,
        on_progress: OnProgress | None,
        is_cancelled: Callable[[], bool] | None,
        *,
        is_pooled: bool,
    ) -> Iterator[tuple[_Window, int, int, Any]]:
        """Yield a window, which of its texts were run, and their vectors, or all vectors of their tokens."""
        done = 0
        with self._torch.inference_mode():
            for window in self._windows(texts, prompt, is_cancelled):
                state: Any = None if self._packed is None else self._packed.send(window, self._device)
                for begin, end in self._batches(window.lengths):
                    if is_cancelled is not None and is_cancelled():
                        raise CancelledError
                    if self._packed is None:
                        part = self._padded(window, begin, end, is_pooled=is_pooled)
                    else:
                        part = self._packed.run(window, state, begin, end, is_pooled=is_pooled)
                    done += end - begin
                    yield window, begin, end, part
                    if on_progress is not None:
                        on_progress(Progress("embed", done, len(texts)))

    def _batches(self, lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        begin = 0
        ends = np.cumsum(lengths)
        while begin < len(lengths):
            before = ends[begin - 1] if begin else 0
            if self._packed is None:
                # Padded, every text costs as much as the longest, which is the first.
                end = begin + int(self._batch_tokens // max(1, lengths[begin]))
            else:
                end = int(np.searchsorted(ends, before + self._batch_tokens, side="right"))
            end = min(len(lengths), max(begin + 1, end))
            yield begin, end
            begin = end

    def _windows(self, texts: Sequence[str], prompt: str, is_cancelled: Callable[[], bool] | None) -> Iterator[_Window]:
        """Yield windows of tokens; the next ones are made in threads meanwhile."""
        starts = range(0, len(texts), self._window_texts)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="agentdb-tokenise") as pool:

            def submit(start: int) -> list[Future[tuple[Any, Any]]]:
                stop = min(start + self._window_texts, len(texts))
                return [
                    pool.submit(self._tokenizer.encode, [prompt + text for text in texts[at : min(at + size, stop)]])
                    for size in (_TOKENIZER_CHUNK,)
                    for at in range(start, stop, size)
                ]

            ahead = [submit(start) for start in starts[:_WINDOWS_AHEAD]]
            try:
                for number, start in enumerate(starts):
                    if is_cancelled is not None and is_cancelled():
                        raise CancelledError
                    chunks = [one.result() for one in ahead.pop(0)]
                    if number + _WINDOWS_AHEAD < len(starts):
                        ahead.append(submit(starts[number + _WINDOWS_AHEAD]))
                    yield _sorted_window(start, chunks)
            finally:
                for group in ahead:
                    for one in group:
                        one.cancel()

    def _padded(self, window: _Window, begin: int, end: int, *, is_pooled: bool) -> Any:
        torch = self._torch
        lengths = window.lengths[begin:end]
        longest = int(lengths[0])
        mask = np.arange(longest)[None, :] < lengths[:, None]
        ids = np.full(mask.shape, self._pad, np.int64)
        first = int(window.lengths[:begin].sum())
        ids[mask] = window.tokens[first : first + int(lengths.sum())]
        features = {
            "input_ids": torch.from_numpy(ids).to(self._device),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(self._device),
        }
        if self._tokenizer.has_types:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        found = self._model(features)
        if is_pooled:
            pooled = found["sentence_embedding"]
            # In 16 bits a norm is 1 to within 0.4 % only.
            return torch.nn.functional.normalize(pooled.float(), dim=1) if self._renormalise else pooled
        return found["token_embeddings"][features["attention_mask"].bool()]


def _take(result: npt.NDArray[np.float32], waiting: tuple[int, Any, Any]) -> None:
    first, host, event = waiting
    event.synchronize()
    result[first : first + len(host)] = host.numpy()


def _sorted_window(first: int, chunks: list[tuple[Any, Any]]) -> _Window:
    lengths = np.concatenate([one for one, _ in chunks])
    tokens = np.concatenate([one for _, one in chunks])
    order = np.argsort(-lengths, kind="stable")
    starts = np.cumsum(lengths) - lengths
    sorted_lengths = lengths[order]
    ends = np.cumsum(sorted_lengths)
    # The place of every token in the unsorted run, computed at once.
    take = np.arange(len(tokens)) + np.repeat(starts[order] - (ends - sorted_lengths), sorted_lengths)
    return _Window(first, order.astype(np.int64), sorted_lengths, tokens[take])


class _Tokenizer:
    """Turns texts into token ids, truncated and with special tokens, from any number of threads."""

    def __init__(self, model: Any) -> None:
        self._slow = model.tokenizer
        self._limit = int(model.max_seq_length) if model.max_seq_length else None
        self._words: WordTable | None = None
        self.has_types = "token_type_ids" in getattr(self._slow, "model_input_names", ())
        self._fast: Any = None
        backend = getattr(self._slow, "backend_tokenizer", None)
        if backend is not None:
            # A copy of our own: truncation and padding are settings of the object, which the model changes.
            self._fast = type(backend).from_str(backend.to_str())
            self._fast.no_padding()
            self._fast.no_truncation()
            bare = type(backend).from_str(self._fast.to_str())
            if self._limit:
                self._fast.enable_truncation(self._limit)
            self._words = WordTable.of(bare)
        self._lock = threading.Lock()

    def encode(self, texts: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Return how many tokens each text has, and all tokens one after another."""
        texts = [text.strip() for text in texts]
        if self._words is None:
            return self._cut(texts)
        lengths, tokens, left = self._words.encode(texts, self._limit)
        if not left:
            return lengths, tokens
        other_lengths, others = self._cut([texts[place] for place in left])
        starts = np.cumsum(lengths) - lengths
        starts[left] = len(tokens) + np.cumsum(other_lengths) - other_lengths
        lengths[left] = other_lengths
        take = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
        return lengths, np.concatenate([tokens, others])[take]

    def _cut(self, texts: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        tokens, lengths = array("i"), array("q")
        if self._fast is not None:
            found = (one.ids for one in self._fast.encode_batch_fast(texts))
        else:
            with self._lock:
                found = self._slow(
                    texts,
                    truncation=bool(self._limit),
                    max_length=self._limit,
                    padding=False,
                    return_attention_mask=False,
                )["input_ids"]
        for ids in found:
            lengths.append(len(ids))
            tokens.extend(ids)
        return np.array(lengths, np.int64), np.array(tokens, np.int32)


class _NotPackableError(Exception):
    """The model has a part that the packed pass does not know."""


class _PackedBert:
    """The forward pass of a BERT and its pooling over sequences that lie side by side."""

    def __init__(self, torch: Any, model: Any) -> None:
        self._torch = torch
        self._attention = import_module("torch.nn.attention.varlen").varlen_attn
        modules = list(model)
        bert: Any = getattr(modules[0], "auto_model", None)
        if type(bert).__name__ != "BertModel":
            raise _NotPackableError(f"only BERT runs packed, and this is {type(bert).__name__}")
        config = bert.config
        if getattr(config, "position_embedding_type", "absolute") != "absolute" or config.hidden_act != "gelu":
            raise _NotPackableError("another kind of BERT")
        rest = [type(module).__name__ for module in modules[1:]]
        if rest not in (["Pooling"], ["Pooling", "Normalize"]):
            raise _NotPackableError(f"what follows the transformer is {', '.join(rest)}")
        self._is_normalised = len(rest) == 2
        self._pooling = _pooling_mode(modules[1])
        self._heads = config.num_attention_heads
        self._embeddings = bert.embeddings
        self._eps = config.layer_norm_eps
        self._layers = []
        for layer in bert.encoder.layer:
            attention = layer.attention.self
            parts = (attention.query, attention.key, attention.value)
            self._layers.append(
                (
                    torch.cat([part.weight for part in parts]),
                    torch.cat([part.bias for part in parts]),
                    layer.attention.output.dense,
                    layer.attention.output.LayerNorm,
                    layer.intermediate.dense,
                    layer.output.dense,
                    layer.output.LayerNorm,
                )
            )

    def send(self, window: _Window, device: Any) -> tuple[Any, Any, npt.NDArray[np.int64]]:
        """Copy a window's tokens and ends to the device at once."""
        torch = self._torch
        ends = np.concatenate([[0], np.cumsum(window.lengths)])
        tokens = torch.from_numpy(window.tokens).pin_memory().to(device, non_blocking=True)
        return tokens, torch.from_numpy(ends.astype(np.int32)).pin_memory().to(device, non_blocking=True), ends

    def run(
        self,
        window: _Window,
        state: tuple[Any, Any, npt.NDArray[np.int64]],
        begin: int,
        end: int,
        *,
        is_pooled: bool = True,
    ) -> Any:
        """Return `[n, D]` float32 of the texts from ``begin`` to ``end``, or `[T, D]` of their tokens."""
        torch = self._torch
        functional = torch.nn.functional
        tokens, ends, host_ends = state
        first, last = int(host_ends[begin]), int(host_ends[end])
        longest = int(window.lengths[begin])
        offsets = ends[begin : end + 1] - ends[begin]
        lengths = (offsets[1:] - offsets[:-1]).long()
        starts = torch.repeat_interleave(offsets[:-1], lengths, output_size=last - first)
        positions = torch.arange(last - first, device=tokens.device, dtype=torch.int32) - starts
        known = self._embeddings
        x = functional.embedding(tokens[first:last], known.word_embeddings.weight)
        x = x + functional.embedding(positions, known.position_embeddings.weight)
        x = known.LayerNorm(x + known.token_type_embeddings.weight[0])
        width = x.shape[1]
        for weight, bias, dense, norm, up, down, last_norm in self._layers:
            query, key, value = (
                functional.linear(x, weight, bias).view(-1, 3, self._heads, width // self._heads).unbind(1)
            )
            mixed = self._attention(query, key, value, offsets, offsets, longest, longest)
            x = norm(dense(mixed.reshape(-1, width)) + x)
            x = last_norm(down(functional.gelu(up(x))) + x)
        if not is_pooled:
            return x
        if self._pooling == "cls":
            pooled = x[offsets[:-1].long()].float()
        else:
            pooled = torch.segment_reduce(x.float(), self._pooling, lengths=lengths, axis=0)
        return functional.normalize(pooled, dim=1) if self._is_normalised else pooled


def _pooling_mode(pooling: Any) -> str:
    modes = {"mean": "mean", "cls": "cls", "max": "max"}
    mode = getattr(pooling, "pooling_mode", None)
    if mode is None and hasattr(pooling, "get_pooling_mode_str"):
        mode = pooling.get_pooling_mode_str()
    name = str(mode[0] if isinstance(mode, (tuple, list)) and len(mode) == 1 else mode)
    if name not in modes:
        raise _NotPackableError(f"pooling {name}")
    return modes[name]
