"""Collections: vectors, texts and metadata of any shape, written and found at once; reopened by name alone."""

import tempfile
from pathlib import Path

import numpy as np

import agentdb
from agentdb import VectorSpec, field

# Deterministic and offline, so that this program always says the same. Without embedder=... a small model is loaded.
embedder = agentdb.load_embedder("hashing")

with tempfile.TemporaryDirectory() as directory, agentdb.open(Path(directory) / "db", embedder=embedder) as db:
    # The database's embedder makes the vectors. agent_id gets a typed, indexed column; every other key can be filtered too.
    notes = db.collection("notes", schema={"agent_id": str})
    notes.upsert(
        ["n1", "n2", "n3"],
        texts=["the user likes green tea", "the server runs on port 8080", "tea was bought in Kyoto"],
        metadata=[
            {"agent_id": "ann", "tags": ["taste"]},
            {"agent_id": "bob", "port": 8080},
            {"agent_id": "ann", "trip": {"city": "Kyoto", "year": 2026}},
        ],
    )

    # What was just written is found by the very next search, in every mode.
    for mode in ("vector", "text", "hybrid"):
        hits = notes.search("green tea", 2, mode=mode, filter=field("agent_id") == "ann")
        print(f"{mode}:", [(hit.id, round(hit.score, 2)) for hit in hits])
    print("in Kyoto since 2025:", [one.id for one in notes.scan(field("trip", "year") >= 2025)])

    # A part of a row can change alone; a new text brings a new vector.
    notes.update(["n2"], texts=["the server runs on port 9090"], metadata=[{"port": 9090}], merge=True)
    print("n2:", notes.get("n2", include=["text", "metadata"]))
    print(notes.explain_search("server", filter=field("agent_id") == "bob").signals[0].reason)

    # Vectors of your own, several for a row, as numpy or Arrow; and back out the same way.
    rng = np.random.default_rng(0)
    parts = db.collection(
        "parts", vectors={"shape": VectorSpec(8, "euclidean", dtype="float16"), "words": VectorSpec(4, multi=True)}
    )
    parts.upsert(
        [f"p{i}" for i in range(1_000)],
        {
            "shape": rng.standard_normal((1_000, 8)),
            "words": [rng.standard_normal((1 + i % 3, 4)) for i in range(1_000)],
        },
    )
    matrix = np.concatenate([batch.vectors("shape") for batch in parts.iterate(batch_rows=400)])
    print("as numpy:", matrix.shape, matrix.dtype)
    query = parts.get("p7").vectors["shape"]
    print("nearest to p7:", [hit.id for hit in parts.search(query, 3, vector_name="shape")])

    # Another embedder: in place, resumable, with searches served from the old vectors until the switch.
    notes.reembed(agentdb.load_embedder("hashing", dimension=64))
    print("now", notes.vectors["vector"].dimension, "dimensions, and still:", notes.search("tea from Kyoto", 1)[0].id)

    print("collections:", db.collections(), "again by name alone:", db.collection("parts").count())
