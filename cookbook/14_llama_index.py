"""LlamaIndex over a folder: changed files are indexed anew, search is by meaning and words, and every answer can be opened.

Needs ``pip install 'agentdb-lance[llama-index]'``. Nothing here asks the network: the language model is a stand-in that
copies a sentence from its sources.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import CompletionResponse, MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import CitationQueryEngine
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

import agentdb
from llama_index_agentdb import AgentDBDocumentStore, AgentDBEmbedding, AgentDBRetriever, AgentDBVectorStore

FILES = {
    "kettle.txt": "The kettle K-20 boils a litre in three minutes. Error E7 means that the lid is open. Descale it every month.",
    "lamp.txt": "The lamp L-3 has a battery for nine hours. Clean it with a dry cloth, never under running water.",
    "radio.txt": "The radio R-9 receives FM and DAB. Error E7 means that the radio has no antenna.",
}


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


class Copyist(MockLLM):
    """Answers with a sentence of the source that shares most words with the question, and with the number of that source."""

    def complete(self, prompt: str, *_args: Any, **_kwargs: Any) -> CompletionResponse:
        sources, _, question = prompt.rpartition("Below are")[2].rpartition("Query:")
        numbered = [part.partition(":\n") for part in sources.split("Source ")[1:]]

        def shared(text: str) -> int:
            return len(words(text) & words(question))

        number, _, text = max(numbered, key=lambda one: shared(one[2]))
        best = max(re.findall(r"[A-Z][^.]+\.", text), key=shared)
        return CompletionResponse(text=f"{best} [{number}]")


def main(root: Path) -> None:
    folder = root / "manuals"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)

    # Deterministic and offline, so that this program always says the same. Without embedder=... a small model is loaded.
    with agentdb.open(root / "agent.db", embedder=agentdb.load_embedder("hashing")) as db:
        embed_model = AgentDBEmbedding(db.embedder)
        vector_store = AgentDBVectorStore(db, collection="manuals")
        # Nodes and documents lie in one database: what is indexed, and what it was made of.
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=0), embed_model],
            vector_store=vector_store,
            docstore=AgentDBDocumentStore(db),
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        )

        def index_folder() -> int:
            documents = SimpleDirectoryReader(folder, filename_as_id=True).load_data()
            return len(pipeline.run(documents=documents))

        print("nodes indexed:", index_folder())
        print("indexed again, nothing changed:", index_folder())
        (folder / "lamp.txt").write_text(FILES["lamp.txt"] + " A full charge takes four hours.")
        print("one file changed:", index_folder())

        # "E7" is in two files, and so is its meaning: words and vectors together tell them apart most clearly.
        index = VectorStoreIndex.from_vector_store(vector_store, embed_model=embed_model)
        question = "What does error E7 of the radio mean?"
        for mode in ("default", "text_search", "hybrid"):
            found = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=3).retrieve(question)
            print(f"{mode:>12}:", [(one.metadata["file_name"], round(one.score, 2)) for one in found])

        # Filters are exact, whatever is in a value.
        not_the_radio = MetadataFilters(
            filters=[MetadataFilter(key="file_name", value="radio.txt", operator=FilterOperator.NE)]
        )
        found = index.as_retriever(vector_store_query_mode="hybrid", filters=not_the_radio, similarity_top_k=1)
        print("not the radio:", found.retrieve(question)[0].metadata["file_name"])

        # An answer with citations: numbers lead to nodes, nodes to files.
        engine = CitationQueryEngine.from_args(
            index,
            llm=Copyist(),
            similarity_top_k=2,
            retriever=index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=2),
        )
        answer = engine.query(question)
        print("answer:", answer)
        for number, source in enumerate(answer.source_nodes, 1):
            print(f"  [{number}] {source.metadata['file_name']}")

        # The same folder through AgentDB's own documents: parsed with structure, each passage with its place in the text.
        db.documents.ingest(folder)
        (best,) = AgentDBRetriever(db, documents=True, similarity_top_k=1).retrieve(question)
        text = db.documents.text(best.metadata["document_id"])
        print("passage:", Path(best.metadata["source"]).name, text[best.node.start_char_idx : best.node.end_char_idx])


with tempfile.TemporaryDirectory() as directory:
    main(Path(directory))
