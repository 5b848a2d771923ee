"""Move a LangChain store from Chroma to AgentDB: ids, texts, metadata and vectors as they are, nothing embedded again."""

import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from langchain_core.embeddings import DeterministicFakeEmbedding

from langchain_agentdb import AgentDBVectorStore

BATCH = 1_000


def pages(collection, size: int = BATCH) -> Iterator[dict]:
    """Yield the rows of a Chroma collection, so many at a time."""
    for offset in range(0, collection.count(), size):
        yield collection.get(limit=size, offset=offset, include=["documents", "metadatas", "embeddings"])


def migrate(collection, store: AgentDBVectorStore) -> int:
    """Copy a Chroma collection, and return how many rows it had. Run again, it writes the same rows in the same places.

    Metadata is taken as it is: Chroma holds texts, numbers, booleans and lists of one of them. A row without a text gets an empty
    one, as LangChain shows it; a row without metadata, which LangChain's Chroma cannot show at all, an empty dictionary.
    """
    copied = 0
    for page in pages(collection):
        copied += len(
            store.add_embeddings(
                [text or "" for text in page["documents"]],
                page["embeddings"],
                [dict(one or {}) for one in page["metadatas"]],
                ids=page["ids"],
            )
        )
    return copied


def metric_of(collection) -> str:
    """Return what the collection compares by, as AgentDB calls it."""
    space = (collection.configuration.get("hnsw") or {}).get("space", "l2")
    return {"l2": "euclidean", "ip": "dot", "cosine": "cosine"}[space]


def main() -> None:
    from langchain_chroma import Chroma

    embeddings = DeterministicFakeEmbedding(size=64)
    with tempfile.TemporaryDirectory() as directory:
        old = Chroma("notes", embeddings, str(Path(directory) / "chroma"), collection_metadata={"hnsw:space": "cosine"})
        texts = [f"note {i}" for i in range(2_500)]
        metadata = [
            {"author": "ann" if i % 2 else "bob", "stars": i % 5, "tags": ["old", f"t{i}"]} for i in range(2_500)
        ]
        old.add_texts(texts, metadata, ids=texts)
        old.add_texts(["a note of nothing"], ids=["bare"])

        source = old._collection  # `chromadb.PersistentClient(path).get_collection("notes")` is the same
        with AgentDBVectorStore(embeddings, Path(directory) / "agent.db", metric=metric_of(source)) as new:
            print("copied:", migrate(source, new))
            print("copied again, in place:", migrate(source, new))

            # Texts, metadata and vectors are what they were.
            for page in pages(source):
                copies = new.get_by_ids(page["ids"])
                assert [one.page_content for one in copies] == page["documents"]
                assert [one.metadata for one in copies] == [one or {} for one in page["metadatas"]]
            for row_id in ("note 7", "bare"):
                vector = source.get(row_id, include=["embeddings"])["embeddings"][0]
                ((nearest, score),) = new.similarity_search_with_score_by_vector(vector, 1)
                assert (nearest.id, round(score, 5)) == (row_id, 1.0)

            # Both find the same, with the filters that both know.
            for query in ("note 7", "note 2000"):
                for condition in (None, {"author": "ann"}, {"stars": {"$gte": 3}}):
                    before = [one.id for one in old.similarity_search(query, 5, filter=condition)]
                    after = [one.id for one in new.similarity_search(query, 5, filter=condition)]
                    assert after[0] == before[0]
                    assert len(set(after) & set(before)) >= 4  # Chroma's index is approximate
            print("the same is found:", new.similarity_search("note 7", 1)[0])

            # And what Chroma cannot hold or ask:
            new.add_texts(["note x"], [{"tags": ["new", "moved"], "by": {"name": "ann"}}])
            print("nested:", new.similarity_search("x", filter={"by": {"name": "ann"}, "tags": {"$contains": "moved"}}))


if find_spec("chromadb") is None or find_spec("langchain_chroma") is None:
    print("This program copies a store of langchain-chroma, which is not installed here.")
    print("To see it run:     pip install langchain-chroma")
    print("What it does:      AgentDBVectorStore.add_embeddings(texts, vectors, metadata, ids=ids), page by page")
    print("Nothing was done.")
    sys.exit()
os.environ["ANONYMIZED_TELEMETRY"] = "False"
main()
