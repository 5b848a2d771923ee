"""Ingests a folder, slowly, until it is done or killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np

import agentdb
from agentdb import Config
from agentdb.rag import ingestion
from agentdb_embedders import HashingEmbedder

QUIET = Config(maintenance=False, bulk_rows=64, bulk_bytes=1)


class Slow(HashingEmbedder):
    """Takes four milliseconds for each text."""

    def embed(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        time.sleep(0.004 * len(texts))
        return super().embed(texts, kind)  # type: ignore[arg-type]


if __name__ == "__main__":
    ingestion._WINDOW_CHUNKS = 12
    with agentdb.open(sys.argv[1], config=QUIET, embedder=Slow()) as db:
        print("ready", flush=True)
        report = db.documents.ingest(sys.argv[2])
        print("done", report.added, report.updated, report.unchanged, report.removed, len(report.failed), flush=True)
