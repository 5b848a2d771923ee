from __future__ import annotations

import gzip
import json
import logging
import socket
import time
import traceback
from collections.abc import Iterator

import numpy as np
import pytest
import stamina
from support.embedding_endpoint import EmbeddingEndpoint, Misbehaviour

import agentdb_embedders.openai
from agentdb import (
    AccessDeniedError,
    AgentDBError,
    ClosedError,
    InvalidInputError,
    MissingDependencyError,
    UnavailableError,
    load_embedder,
)
from agentdb_embedders import OpenAIEmbedder

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingEndpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = EmbeddingEndpoint()
    yield served
    served.close()


@pytest.fixture
def embedder(endpoint: EmbeddingEndpoint) -> Iterator[OpenAIEmbedder]:
    with OpenAIEmbedder(endpoint.url, "hashed", KEY, batch_size=3, attempts=4) as made:
        yield made


@pytest.fixture
def no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=99, cap=True):
        yield


def answer(vectors: list[list[float]], *, has_index: bool = True) -> bytes:
    rows = [{"embedding": row, **({"index": i} if has_index else {})} for i, row in enumerate(vectors)]
    return json.dumps({"data": rows}).encode()


def test_batches_keep_the_order(endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder) -> None:
    texts = [f"text number {n}" for n in range(8)]
    np.testing.assert_allclose(embedder.embed(texts), endpoint.model.embed(texts), atol=1e-7)
    assert [len(request["input"]) for request in endpoint.requests] == [3, 3, 2]
    assert all(request["model"] == "hashed" and "dimensions" not in request for request in endpoint.requests)


def test_sends_the_key_as_a_bearer_token(endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder) -> None:
    embedder.embed(["a"])
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    with OpenAIEmbedder(endpoint.url + "/", "hashed") as keyless:
        keyless.embed(["a"])
    assert "Authorization" not in endpoint.headers[1]


def test_prompts_go_before_texts(endpoint: EmbeddingEndpoint) -> None:
    with OpenAIEmbedder(endpoint.url, "e5", query_prompt="query: ", document_prompt="passage: ") as embedder:
        embedder.embed(["a"], "query")
        embedder.embed(["a"], "document")
        embedder.embed([""], "query")
    assert [request["input"] for request in endpoint.requests] == [["query: a"], ["passage: a"], ["query: "]]


def test_dimension_is_asked_for_once(endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder) -> None:
    assert embedder.dimension == embedder.dimension == 64
    assert len(endpoint.requests) == 1
    with OpenAIEmbedder(endpoint.url, "hashed", dimension=64, sends_dimension=True) as told:
        assert told.dimension == 64
        assert len(endpoint.requests) == 1
        told.embed(["a"])
    assert endpoint.requests[-1]["dimensions"] == 64


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_retried(endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder, status: int) -> None:
    endpoint.next.extend([Misbehaviour(status), Misbehaviour(status), Misbehaviour(hangs_up=True)])
    assert embedder.embed(["a"]).shape == (1, 64)
    assert len(endpoint.requests) == 4


@pytest.mark.usefixtures("no_waiting")
def test_attempts_are_bounded(endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder) -> None:
    endpoint.next.extend([Misbehaviour(429)] * 10)
    with pytest.raises(UnavailableError, match="429"):
        embedder.embed(["a"])
    assert len(endpoint.requests) == 4


def test_waits_as_long_as_the_server_asks(endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder) -> None:
    endpoint.next.append(Misbehaviour(429, {"Retry-After": "0.4"}))
    start = time.monotonic()
    embedder.embed(["a"])
    assert 0.39 <= time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [("2", 2), ("0", 0), ("-1", None), ("nan", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), (None, None)],
)
def test_retry_after(header: str | None, wait_s: float | None) -> None:
    assert agentdb_embedders.openai._retry_after_s(header) == wait_s


def test_a_long_wait_is_cut() -> None:
    error = agentdb_embedders.openai._TransientError("status 429", 3600)
    assert OpenAIEmbedder._wait_before_retry(error) == 30


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (302, InvalidInputError),
        (400, InvalidInputError),
        (401, AccessDeniedError),
        (403, AccessDeniedError),
        (404, UnavailableError),
        (422, InvalidInputError),
        (501, UnavailableError),
    ],
)
def test_what_will_not_pass_is_not_retried(
    endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder, status: int, error: type[AgentDBError]
) -> None:
    endpoint.next.append(Misbehaviour(status, {"Location": endpoint.url + "/embeddings"}))
    with pytest.raises(error, match=str(status)):
        embedder.embed(["a"])
    assert len(endpoint.requests) == 1


def test_a_slow_server_times_out(endpoint: EmbeddingEndpoint) -> None:
    endpoint.next.append(Misbehaviour(delay_s=0.6))
    with (
        OpenAIEmbedder(endpoint.url, "hashed", timeout_s=0.1, attempts=1) as embedder,
        pytest.raises(UnavailableError, match=r"0\.1 s"),
    ):
        embedder.embed(["a"])


def test_no_server() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with (
            OpenAIEmbedder(url, "hashed", attempts=1) as embedder,
            pytest.raises(UnavailableError, match="ConnectError"),
        ):
            embedder.embed(["a"])


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (answer([[1.0] * 32]), InvalidInputError, "expected 64 dimensions, got 32"),
        (answer([[float("nan")] * 64]), InvalidInputError, "finite"),
        (answer([]), UnavailableError, "form"),
        (answer([["x"] * 64]), InvalidInputError, "real numbers"),  # type: ignore[list-item]
        (answer([[]]), InvalidInputError, "dimensions"),
        (b'{"data": {"a": 1}}', UnavailableError, "form"),
        (b'{"data": [1]}', UnavailableError, "form"),
        (b"[]", UnavailableError, "form"),
        (b"<html>", UnavailableError, "form"),
        (b"\xff\xfe", UnavailableError, "form"),
    ],
)
def test_a_wrong_answer_is_an_error(
    endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder, body: bytes, error: type[AgentDBError], message: str
) -> None:
    embedder.embed(["first"])
    endpoint.next.append(Misbehaviour(body=body))
    with pytest.raises(error, match=message):
        embedder.embed(["a"])


def test_a_wrong_dimension_given_is_an_error(endpoint: EmbeddingEndpoint) -> None:
    with (
        OpenAIEmbedder(endpoint.url, "hashed", dimension=65) as embedder,
        pytest.raises(InvalidInputError, match="expected 65 dimensions, got 64"),
    ):
        embedder.embed(["a"])


def test_answers_without_index_and_compressed(endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder) -> None:
    body = gzip.compress(answer([[1.0] * 64, [2.0] * 64], has_index=False))
    endpoint.next.append(Misbehaviour(headers={"Content-Encoding": "gzip"}, body=body))
    np.testing.assert_array_equal(embedder.embed(["a", "b"])[:, 0], [1, 2])


@pytest.mark.usefixtures("no_waiting")
def test_the_key_and_the_text_are_never_told(
    endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"error": f"bad key {KEY} for private words"}).encode()
    failures = [Misbehaviour(401, body=echo), Misbehaviour(400, body=echo), Misbehaviour(body=echo)]
    failures += [Misbehaviour(500, body=echo)] * 4
    for bad in (failures[:1], failures[1:2], failures[2:3], failures[3:]):
        endpoint.next.extend(bad)
        with pytest.raises(AgentDBError) as caught:
            embedder.embed(["private words"])
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(embedder)
        assert KEY not in told
        assert "bad key" not in told
    logged = caplog.text + repr([vars(record) for record in caplog.records])
    assert "status 500; trying again" in logged
    assert KEY not in logged
    assert "private words" not in logged


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_url": "localhost:1234/v1"},
        {"base_url": "ftp://host/v1"},
        {"base_url": "http://user:pass@host/v1"},
        {"base_url": "http://host/v1?key=1"},
        {"base_url": "http://[::1/v1"},
        {"base_url": "http://host:port/v1"},
        {"model": ""},
        {"api_key": " "},
        {"api_key": "line\nbreak"},
        {"dimension": 0},
        {"batch_size": 0},
        {"attempts": 0},
        {"max_tokens": 0},
        {"timeout_s": 0},
        {"sends_dimension": True},
    ],
)
def test_refuses_what_makes_no_sense(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        OpenAIEmbedder(**{"base_url": "http://host/v1", "model": "m", **arguments})
    assert "pass@" not in str(caught.value)


def test_the_identity_can_be_named(endpoint: EmbeddingEndpoint) -> None:
    assert OpenAIEmbedder(endpoint.url, "text-embedding-3-small").name == "text-embedding-3-small"
    assert OpenAIEmbedder(endpoint.url, "all-minilm", name="MiniLM").name == "MiniLM"


def test_closed_before_the_first_call(endpoint: EmbeddingEndpoint) -> None:
    embedder = OpenAIEmbedder(endpoint.url, "hashed")
    embedder.close()
    with pytest.raises(ClosedError):
        _ = embedder.dimension


def test_is_found_by_name(endpoint: EmbeddingEndpoint) -> None:
    embedder = load_embedder("openai", base_url=endpoint.url, model="hashed")
    assert embedder.dimension == 64
    embedder.close()  # type: ignore[attr-defined]


def test_missing_dependency_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agentdb_embedders.openai, "find_spec", lambda package: None)
    with pytest.raises(MissingDependencyError, match=r"agentdb-lance\[http\]"):
        OpenAIEmbedder("http://host/v1", "m")
