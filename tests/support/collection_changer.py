"""Promotes keys and changes the embedder of a collection, until it is done or killed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import agentdb
from agentdb import Config
from agentdb.vectors import evolution

QUIET = Config(maintenance=False, bulk_rows=64, bulk_bytes=1)


class Letters:
    """An embedder that counts letters, a tenth of a millisecond each, and how many texts it saw."""

    max_tokens = 1_000

    def __init__(self, dimension: int) -> None:
        self.name = f"letters-{dimension}"
        self.dimension = dimension
        self.asked = 0

    def embed(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        self.asked += len(texts)
        counts = [[text.count(chr(ord("a") + i)) for i in range(self.dimension)] for text in texts]
        return np.array(counts, np.float32) + np.float32(0.5)


def small_steps() -> None:
    evolution._CHUNK = evolution._EMBED = 8
    evolution._PAGE = 50


if __name__ == "__main__":
    small_steps()
    with agentdb.open(sys.argv[1], config=QUIET) as db:
        print("ready", flush=True)
        notes = db.collection("notes")
        notes.promote("n", float)
        notes.reembed(Letters(int(sys.argv[2])))
        print("done", flush=True)
