"""Pages of whatever size, cut anywhere, are parts of one ranking: nothing twice, nothing left out, no score rising."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentdb
from agentdb import Config, IvfFlat, Query, field
from agentdb.vectors.collection import Collection

ROWS, D = 1_150, 4
WORDS = ("red", "green", "blue", "fish", "bird", "tree")

queries = st.builds(
    Query,
    text=st.lists(st.sampled_from((*WORDS, "unheard")), min_size=1, max_size=3).map(" ".join),
    vector=st.lists(st.integers(-2, 2), min_size=D, max_size=D).filter(any),
)
options = st.fixed_dictionaries(
    {"mode": st.sampled_from(["hybrid", "hybrid", "vector", "text"])},
    optional={
        "filter": st.sampled_from([field("tag") == "a", field("n") < 400, field("tag") == "none"]),
        "group_by": st.just("group"),
        "fusion": st.sampled_from(["rrf", "normalized"]),
        "exact": st.just(True),
    },
)
weights = st.none() | st.fixed_dictionaries({"vector": st.sampled_from([0.0, 0.3, 1.0]), "text": st.just(0.7)})


@pytest.fixture(scope="module", params=["resident", "index"])
def collection(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    """Rows in memory, many of them equally near; and rows behind an index that looks everywhere, some waiting for a flush."""
    is_indexed = request.param == "index"
    budget = {"resident_bytes": 1} if is_indexed else {}
    config = Config(maintenance=False, **budget)  # type: ignore[arg-type]
    chooser = np.random.default_rng(5)
    with agentdb.open(tmp_path_factory.mktemp("pages") / "db", config=config) as db:
        made = db.collection("c", dimension=D)
        if is_indexed:  # which of two equals it leaves out is left to chance
            vectors = chooser.standard_normal((ROWS, D)).astype(np.float32)
        else:
            vectors = chooser.integers(-2, 3, (ROWS, D)).astype(np.float32)
            vectors[~vectors.any(axis=1)] = 1
        texts = [" ".join(chooser.choice(WORDS, chooser.integers(1, 5))) for _ in range(ROWS)]
        metadata = [{"n": i, "group": int(chooser.integers(0, 150)), "tag": "ab"[i % 2]} for i in range(ROWS)]
        for part in (slice(0, 1_100), slice(1_100, ROWS)):
            names = [f"r{i:03d}" for i in range(ROWS)[part]]
            made.upsert(names, vectors=vectors[part], texts=texts[part], metadata=metadata[part])
            if is_indexed and not part.start:
                made.set_index(IvfFlat(partitions=1, nprobes=1))
                db.optimize()
        path = made.explain_search([1, 0, 0, 0]).signals[0].path
        assert path == request.param
        yield made


@settings(deadline=None, max_examples=20)
@given(query=queries, given=options, weights=weights, data=st.data())
def test_pages_are_cut_from_one_ranking(
    collection: Collection, query: Query, given: dict[str, Any], weights: dict[str, float] | None, data: st.DataObject
) -> None:
    if given["mode"] == "hybrid" and weights is not None:
        given = {**given, "weights": weights}
    whole = collection.search(query, 2 * ROWS, include=(), **given)
    assert len({hit.id for hit in whole}) == len(whole)
    scores = [hit.score for hit in whole]
    assert scores == sorted(scores, reverse=True)
    if given["mode"] == "hybrid" and not {"filter", "group_by"} & set(given):
        assert len(whole) == ROWS  # every row has a vector
    done = 0
    while done < len(whole):
        size = data.draw(st.sampled_from([1, 7, 25, 60, 130, 500]), label="size")
        page = collection.search(query, size, offset=done, include=(), **given)
        assert [(hit.id, hit.score) for hit in page] == [(hit.id, hit.score) for hit in whole[done : done + size]]
        done += size if size > 1 else 90  # a single row here and there
    assert collection.search(query, 3, offset=len(whole), include=(), **given) == []
