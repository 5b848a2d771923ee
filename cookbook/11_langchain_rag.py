"""Answers from a folder with LangChain, offline: ingested once, retrieved with citations, cached, kept up to date."""

import re
import tempfile
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.language_models import LLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnablePassthrough

import agentdb
from langchain_agentdb import AgentDBLLMCache, AgentDBRetriever

HANDBOOK = {
    "time-off.md": """# Time off

## Holidays

Everybody has thirty days of holidays a year. Five of them may be taken over into the next year, until the end of March.

## Illness

Tell your team before ten o'clock. A doctor's note is needed from the fourth day on.
""",
    "travel.md": """# Travel

## Trains and planes

Trains are booked in first class. Flights need the consent of the board.

## Expenses

Send receipts within thirty days. Lost receipts are explained in writing.
""",
    "office.md": """# The office

The kitchen is cleaned on Fridays. Table tennis is in the cellar, and the key hangs beside the door.
""",
}


class Quoting(LLM):
    """Stands in for a language model where there is none: quotes the sentence that has most words of the question."""

    @property
    def _llm_type(self) -> str:
        return "quoting"

    def _call(self, prompt, *_, **__):
        context, _, question = prompt.partition("Question:")
        wanted = set(re.findall(r"\w{4,}", question.lower()))
        said = [(one, line[:3]) for line in context.splitlines() for one in re.findall(r"[A-Z][^.]+\.", line[4:])]
        best, number = max(said, key=lambda one: len(wanted & set(re.findall(r"\w{4,}", one[0].lower()))))
        return f"{best} {number}"


def numbered(found: list[Document]) -> str:
    said = (" ".join(line for line in one.page_content.splitlines() if not line.startswith("#")) for one in found)
    return "\n".join(f"[{i}] {' '.join(one.split())}" for i, one in enumerate(said, start=1))


# Deterministic and offline, so that this program always says the same. Without embedder=... a small model is loaded.
embedder = agentdb.load_embedder("hashing")

with tempfile.TemporaryDirectory() as directory:
    folder, path = Path(directory) / "handbook", Path(directory) / "agent.db"
    folder.mkdir()
    for name, text in HANDBOOK.items():
        (folder / name).write_text(text)

    with agentdb.open(path, embedder=embedder) as db:
        report = db.documents.ingest(folder)
        print("ingested:", report.added, "documents")

        # Hybrid search: what the question means, and the words that it uses.
        retriever = AgentDBRetriever(db, documents=True, k=2)
        for found in retriever.invoke("How many holidays a year do I have?"):
            about = found.metadata
            print("found:", Path(about["source"]).name, ">", " > ".join(about["headings"]))
            assert db.documents.text(about["document_id"])[about["start"] : about["end"]] == found.page_content

        # The chain is LangChain's own; the cache of answers lies in the same directory.
        prompt = PromptTemplate.from_template("{context}\n\nQuestion: {question}")
        model = Quoting(cache=AgentDBLLMCache(db))
        question = {"context": retriever | numbered, "question": RunnablePassthrough()}
        chain = question | prompt | model | StrOutputParser()
        print("answer:", chain.invoke("How many days of holidays has everybody?"))
        print("answer:", chain.invoke("Where is table tennis?"))

        # The folder changes: only what changed is read again, and the next question knows it.
        (folder / "office.md").write_text("# The office\n\nTable tennis has moved to the roof.\n")
        (folder / "travel.md").unlink()
        report = db.documents.ingest(folder)
        print("again:", report.updated, "updated,", report.unchanged, "unchanged,", report.removed, "removed")
        print("answer:", chain.invoke("Where is table tennis?"))

        # Filters test what is known of a document, and where a passage stands in it.
        for condition in ({"title": "Time off"}, {"source": {"$contains": "office"}}, {"title": {"$in": ["Travel"]}}):
            names = [Path(one.metadata["source"]).name for one in retriever.invoke("holidays", filter=condition)]
            print("filtered:", condition, names)
