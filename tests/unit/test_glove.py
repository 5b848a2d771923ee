"""Real word vectors whose exact neighbours others have computed: exact search finds them all, the automatic index nearly all."""

import os
from pathlib import Path

import numpy as np
import pytest

import agentdb
from agentdb import Config

GLOVE = Path(os.environ.get("AGENTDB_BENCH_DATA", "nowhere")) / "glove50_100k"
pytestmark = pytest.mark.skipif(not GLOVE.is_dir(), reason="AGENTDB_BENCH_DATA names no directory with glove50_100k")

QUERIES, K = 200, 10


@pytest.mark.parametrize(("metric", "truth"), [("cosine", "gt_cosine100.npy"), ("euclidean", "gt_l2_100.npy")])
def test_the_neighbours_given_are_found(tmp_path, monkeypatch, metric, truth):
    base, queries, gold = (np.load(GLOVE / name) for name in ("base.npy", "query.npy", truth))
    # So small that an index pays, and that no vector is answered from memory unless it is asked for.
    monkeypatch.setattr("agentdb.vectors.upkeep.SCAN_BYTES", 1 << 20)
    monkeypatch.setattr("agentdb.vectors.search.SCAN_BYTES", 1 << 20)
    with agentdb.open(tmp_path / "db", config=Config(maintenance=False)) as db:
        words = db.collection("words", dimension=50, metric=metric)
        words.upsert([str(i) for i in range(len(base))], vectors=base)
        exact = words.search_many(queries[:QUERIES], K, exact=True, include=())
        for hits, query, expected in zip(exact, queries, gold, strict=False):
            # Neighbours at equal distances may stand in any order, and at the edge any of them may be left out.
            found = np.array([_distance(query, base[int(hit.id)], metric) for hit in hits])
            wanted = np.array([_distance(query, base[i], metric) for i in expected[:K]])
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        db.optimize()
        assert words.explain_search(queries[0]).signals[0].path == "index"
        shares = [
            len({int(hit.id) for hit in words.search(query, K, include=())} & set(expected[:K].tolist())) / K
            for query, expected in zip(queries[:QUERIES], gold, strict=False)
        ]
        assert np.mean(shares) >= 0.95


def _distance(one, other, metric):
    one, other = one.astype(np.float64), other.astype(np.float64)
    if metric == "euclidean":
        return np.linalg.norm(one - other)
    return 1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other)
