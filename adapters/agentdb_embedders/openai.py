"""Any HTTP endpoint that speaks OpenAI's embeddings API: OpenAI, vLLM, Ollama, llama.cpp, TEI, LM Studio, ..."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from agentdb import (
    AccessDeniedError,
    ClosedError,
    EmbedKind,
    InvalidInputError,
    MissingDependencyError,
    UnavailableError,
    check_vectors,
)

if TYPE_CHECKING:
    import httpx

__all__ = ["OpenAIEmbedder"]

_log = logging.getLogger("agentdb.embedders.openai")
_RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S = 30.0


class _TransientError(Exception):
    """The request may succeed later; says why, and for how long the server asked to wait."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class OpenAIEmbedder:
    """Return the vectors that an OpenAI-compatible endpoint makes; retries what may pass, says clearly what does not.

    Neither the key nor a text appears in a repr, a log or an error. Redirects are not followed: they could carry the
    key elsewhere. No environment variable is read for the key.

    Args:
        base_url: up to and including the version, for example ``http://localhost:11434/v1``.
        model: the model's name at the endpoint.
        api_key: sent as a bearer token.
        dimension: D of the model. None asks the endpoint with one short text on first use.
        sends_dimension: ask for vectors of `dimension` numbers, for models that can shorten theirs.
        name: the identity stored beside the vectors; default `model`. Endpoints that serve the same model make
            comparable vectors, so the URL is no part of it.
        max_tokens: the model's limit; the endpoint decides what happens beyond it.
        query_prompt, document_prompt: put before every text of that kind, for models trained with prompts.
        batch_size: texts per request.
        timeout_s: for connecting, sending and each pause while receiving.
        attempts: requests per batch, the first one included.
        retry_timeout_s: no further attempt after this long.

    Raises:
        MissingDependencyError: httpx or stamina is not installed.
        InvalidInputError: an argument cannot be accepted.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        dimension: int | None = None,
        *,
        sends_dimension: bool = False,
        name: str | None = None,
        max_tokens: int = 8191,
        query_prompt: str = "",
        document_prompt: str = "",
        batch_size: int = 128,
        timeout_s: float = 60.0,
        attempts: int = 6,
        retry_timeout_s: float = 120.0,
    ) -> None:
        missing = [package for package in ("httpx", "stamina") if find_spec(package) is None]
        if missing:
            raise MissingDependencyError(f"{', '.join(missing)} not installed: install 'agentdb-lance[http]'")
        try:
            url = urlsplit(base_url)
            url.port  # noqa: B018  (parsed, and refused, only when it is read)
        except ValueError:
            raise InvalidInputError("base_url is not a valid URL") from None
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InvalidInputError("base_url must be an http or https URL")
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise InvalidInputError("base_url must hold no credentials, query or fragment: pass api_key")
        if not model:
            raise InvalidInputError("model must not be empty")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
            raise InvalidInputError("api_key must be printable ASCII and not blank")
        if sends_dimension and dimension is None:
            raise InvalidInputError("sends_dimension needs a dimension")
        for label, number in (
            ("dimension", 1 if dimension is None else dimension),
            ("max_tokens", max_tokens),
            ("batch_size", batch_size),
            ("attempts", attempts),
        ):
            if number < 1:
                raise InvalidInputError(f"{label} must be at least 1, not {number}")
        if not (timeout_s > 0 and retry_timeout_s > 0):
            raise InvalidInputError("timeout_s and retry_timeout_s must be positive")
        self._url = base_url.rstrip("/") + "/embeddings"
        self._model = model
        self._api_key = api_key
        self._dimension = dimension
        self._sends_dimension = sends_dimension
        self._name = name or model
        self._max_tokens = max_tokens
        self._prompts = {"query": query_prompt, "document": document_prompt}
        self._batch_size = batch_size
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._retry_timeout_s = retry_timeout_s
        self._client: httpx.Client | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self._url.removesuffix('/embeddings')!r}, {self._model!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The identity stored beside the vectors."""
        return self._name

    @property
    def dimension(self) -> int:
        """Numbers in a vector; asks the endpoint on first use if it was not given."""
        if self._dimension is None:
            self._embed_batch([" "])
        assert self._dimension is not None
        return self._dimension

    @property
    def max_tokens(self) -> int:
        """The limit given on construction."""
        return self._max_tokens

    def embed(self, texts: Sequence[str], kind: EmbedKind = "document") -> npt.NDArray[np.float32]:
        """Return `[N, D]` float32, from as many requests as `batch_size` makes necessary.

        Raises:
            AccessDeniedError: the endpoint refuses the key.
            InvalidInputError: the endpoint refuses the request, or answers with vectors of another dimension.
            UnavailableError: no usable answer within the attempts allowed.
            ClosedError: after `close()`.
        """
        prompt = self._prompts[kind]
        # Endpoints refuse an empty string; one space means the same to every tokenizer.
        inputs = [prompt + text or " " for text in texts]
        parts = [
            self._embed_batch(inputs[start : start + self._batch_size])
            for start in range(0, len(inputs), self._batch_size)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def close(self) -> None:
        """Close the connections; later calls raise `ClosedError`. May be called again."""
        with self._lock:
            self._is_closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open_client(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._is_closed:
                raise ClosedError("the embedder is closed")
            if self._client is None:
                headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
                self._client = httpx.Client(headers=headers, timeout=self._timeout_s)
            return self._client

    def _embed_batch(self, inputs: list[str]) -> npt.NDArray[np.float32]:
        import stamina

        reason = ""
        try:
            for attempt in stamina.retry_context(
                on=self._wait_before_retry,
                attempts=self._attempts,
                timeout=self._retry_timeout_s,
                wait_initial=0.2,
                wait_max=_LONGEST_WAIT_S,
            ):
                with attempt:
                    return self._request(inputs)
        except _TransientError as error:
            reason = str(error)
        # Raised out here, so that no exception of the HTTP client, which holds the request, hangs on to it.
        raise UnavailableError(f"the embedding endpoint gave no usable answer: {reason}")

    @staticmethod
    def _wait_before_retry(error: Exception) -> bool | float:
        if not isinstance(error, _TransientError):
            return False
        _log.warning("embedding endpoint: %s; trying again", error)
        return True if error.wait_s is None else min(error.wait_s, _LONGEST_WAIT_S)

    def _request(self, inputs: list[str]) -> npt.NDArray[np.float32]:
        import httpx

        body: dict[str, Any] = {"model": self._model, "input": inputs, "encoding_format": "float"}
        if self._sends_dimension:
            body["dimensions"] = self._dimension
        client = self._open_client()
        reason = ""
        try:
            response = client.post(self._url, json=body)
        except httpx.TimeoutException:
            reason = f"no answer within {self._timeout_s:g} s"
        except httpx.RequestError as error:
            reason = f"connection failed ({type(error).__name__})"
        except httpx.InvalidURL:
            raise InvalidInputError("base_url is not a valid URL") from None
        except RuntimeError:
            if not self._is_closed:
                raise
            reason = "closed"
        if reason:
            if self._is_closed:
                raise ClosedError("the embedder was closed during a request")
            raise _TransientError(reason)
        if response.status_code in _RETRIED_STATUSES:
            raise _TransientError(f"status {response.status_code}", _retry_after_s(response.headers.get("Retry-After")))
        if response.status_code in (401, 403):
            raise AccessDeniedError(f"the embedding endpoint refused the key (status {response.status_code})")
        if response.status_code >= 500 or response.status_code == 404:
            raise UnavailableError(
                f"the embedding endpoint answered status {response.status_code}: check base_url and model"
            )
        if response.status_code != 200:
            raise InvalidInputError(
                f"the embedding endpoint refused the request (status {response.status_code}); a text may be too long"
            )
        vectors = check_vectors(
            _rows_of(response, len(inputs)),
            rows=len(inputs),
            dimension=self._dimension,
            source=f"vectors of model {self._model!r}",
        )
        if vectors.shape[1] == 0:
            raise UnavailableError("the embedding endpoint answered with empty vectors")
        self._dimension = vectors.shape[1]
        return vectors


def _retry_after_s(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; its date form is left to the usual backoff."""
    try:
        wait_s = float(header or "nan")
    except ValueError:
        return None
    return wait_s if wait_s >= 0 else None


def _rows_of(response: httpx.Response, count: int) -> list[Any]:
    """Return the vectors of an answer in the order of the request; the API allows any order."""
    try:
        data = response.json()["data"]
        rows = {int(item.get("index", position)): item["embedding"] for position, item in enumerate(data)}
        return [rows[position] for position in range(count)]
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise UnavailableError("the embedding endpoint's answer is not in the form of OpenAI's embeddings API")
