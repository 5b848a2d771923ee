from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.embedding_endpoint import EmbeddingEndpoint
from support.tiny_clip import save_tiny_clip

from agentdb.embedding import Embedder
from agentdb.testing.embedders import EmbedderSuite
from agentdb_embedders import HashingEmbedder, ImageTextEmbedder, OpenAIEmbedder, SentenceTransformerEmbedder

NEAR_IN_WORDS = ("the cat sat on the mat", "a cat sat on a mat", "quarterly revenue rose")


class TestHashing(EmbedderSuite):
    similar = NEAR_IN_WORDS

    def make_embedder(self) -> Embedder:
        return HashingEmbedder()


class TestTinyHashing(EmbedderSuite):
    """Eight dimensions: every feature collides with some other."""

    similar = NEAR_IN_WORDS

    def make_embedder(self) -> Embedder:
        return HashingEmbedder(8, ngrams=1)


class TestSentenceTransformer(EmbedderSuite):
    shared: SentenceTransformerEmbedder

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _load_once(cls) -> Iterator[None]:
        with SentenceTransformerEmbedder(device="cpu") as cls.shared:
            yield

    def make_embedder(self) -> Embedder:
        return self.shared

    def make_closable(self) -> Embedder:
        return SentenceTransformerEmbedder(device="cpu")


class TestImageText(EmbedderSuite):
    """A CLIP of random weights knows letters, no meaning."""

    similar = ("aaaa aaa", "aaaa aab", "123456 ZZZ")
    shared: ImageTextEmbedder

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _load_once(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with ImageTextEmbedder(save_tiny_clip(tmp_path_factory.mktemp("clip")), device="cpu") as cls.shared:
            yield

    def make_embedder(self) -> Embedder:
        return self.shared

    def make_closable(self) -> Embedder:
        path = self.shared._path()
        assert path is not None
        return ImageTextEmbedder(path, device="cpu")


class TestOpenAI(EmbedderSuite):
    similar = NEAR_IN_WORDS
    endpoint: EmbeddingEndpoint
    made: list[OpenAIEmbedder]

    @pytest.fixture(autouse=True)
    def _serve(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        self.endpoint = EmbeddingEndpoint()
        self.made = []
        yield
        for embedder in self.made:
            embedder.close()
        self.endpoint.close()

    def make_embedder(self) -> OpenAIEmbedder:
        self.made.append(OpenAIEmbedder(self.endpoint.url, "hashed", batch_size=16))
        return self.made[-1]

    def make_closable(self) -> Embedder:
        return self.make_embedder()
