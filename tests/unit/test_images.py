from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from support.tiny_clip import save_tiny_clip

import agentdb
from agentdb import Document, ImageOptions, InvalidInputError, NotFoundError, UnavailableError, field
from agentdb.rag.images import describe, prepare
from agentdb.rag.parsing import Block, EmbeddedImage, ParsedDocument
from agentdb_embedders import HashingEmbedder, ImageTextEmbedder


def png(color: str, size: tuple[int, int] = (64, 48)) -> bytes:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((8, 8, size[0] - 9, size[1] - 9), fill=color)
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


class Colors:
    """Puts pictures and texts into one space: their colour, or the colour that is named."""

    name, dimension, max_tokens = "colors", 3, 100
    known: ClassVar = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}

    def embed(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        named = [[np.array(self.known[one]) for one in self.known if one in text] for text in texts]
        return np.array([sum(one, np.full(3, 0.01)) for one in named], np.float32)

    def embed_images(self, images: Sequence[Any]) -> np.ndarray:
        made = []
        for number, one in enumerate(images):
            try:
                source = BytesIO(one) if isinstance(one, bytes) else one
                middle = Image.open(source).convert("RGB").resize((5, 5)).getpixel((2, 2))
            except (OSError, SyntaxError):
                raise InvalidInputError(f"images[{number}] is damaged") from None
            made.append(np.array(middle) / 255 + 0.01)
        return np.array(made, np.float32).reshape(len(made), 3)


def says(**said: str) -> Any:
    """Return a function of an image's bytes that says what is given by its colour."""
    known = {sha256(png(color)).digest(): text for color, text in said.items()}
    return lambda data: known.get(sha256(data).digest(), "")


# --- words ------------------------------------------------------------------------------------------------------------


def parsed(*parts: str | EmbeddedImage) -> ParsedDocument:
    """Return paragraphs with images between them, an image with a caption as a block of its own."""
    text, blocks, images = "", [], []
    for part in parts:
        words = part if isinstance(part, str) else part.caption
        start = len(text) + (2 if text and words else 0)
        if words:
            text += ("\n\n" if text else "") + words
            blocks.append(Block("paragraph" if isinstance(part, str) else "image", start, len(text)))
        if isinstance(part, EmbeddedImage):
            images.append(EmbeddedImage(part.data, part.media_type, part.caption, part.page, start))
    return ParsedDocument(text, "text/html", None, tuple(blocks), tuple(images))


def image(color: str, caption: str | None = None, page: int | None = None) -> EmbeddedImage:
    return EmbeddedImage(png(color), "image/png", caption, page, 0)


def test_what_is_seen_and_read_becomes_text_where_the_picture_stands() -> None:
    options = ImageOptions(captioner=says(red="A red disc.", blue="never asked"), text_reader=says(blue="EXIT"))
    document = parsed("One.", image("red"), "Two.", image("blue", "The way out"), "Three.")
    made = describe(document, options)
    assert made.text == "One.\n\nA red disc.\n\nTwo.\n\nThe way out\n\nEXIT\n\nThree."
    assert [made.text[one.start : one.end] for one in made.blocks if one.kind == "image"] == [
        "A red disc.",
        "The way out",
        "EXIT",
    ]
    prepared, warnings = prepare(made, options)
    assert not warnings
    assert [made.text[one.start : one.end] for one in prepared] == ["A red disc.", "The way out\n\nEXIT"]


def test_a_picture_without_words_stands_where_it_stood() -> None:
    document = parsed("One.", image("red"), "Two.")
    assert describe(document, ImageOptions()) is document
    assert describe(document, ImageOptions(captioner=says(green="not there"))) is document
    (prepared,), _ = prepare(document, ImageOptions())
    assert (prepared.start, prepared.end) == (4, 4)
    (alone,), _ = prepare(ParsedDocument("", "image/png", None, (), (image("red"),)), ImageOptions())
    assert (alone.start, alone.end) == (0, 0)


def test_a_picture_that_comes_twice_is_described_and_kept_once() -> None:
    asked = []

    def caption(data: bytes) -> str:
        asked.append(data)
        return "A logo."

    document = parsed(image("red"), "One.", image("red"), "Two.")
    made = describe(document, ImageOptions(captioner=caption))
    assert len(asked) == 1
    assert made.text == "A logo.\n\nOne.\n\nTwo."
    assert len(prepare(made, ImageOptions())[0]) == 1


class Batched:
    """Ports that are asked for all pictures at once."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    def caption(self, images: Sequence[bytes]) -> Sequence[str]:
        return self.answers

    def read_text(self, images: Sequence[bytes]) -> Sequence[str]:
        return self.answers


def test_ports_are_asked_for_all_pictures_and_must_answer_each() -> None:
    document = parsed(image("red"), "One.", image("blue"))
    made = describe(document, ImageOptions(captioner=Batched(["A\ud800\0", " \n"])))
    assert made.text == "A\ufffd\ufffd\n\nOne."
    for answers in (["only one"], ["one", None], ["one", b"two"]):
        with pytest.raises(InvalidInputError, match="must return one str for each of 2 images"):
            describe(document, ImageOptions(text_reader=Batched(answers)))


_WORDS = st.text("ab \n", min_size=1, max_size=8).map(str.strip).filter(bool)


@given(st.lists(st.one_of(_WORDS, st.tuples(st.integers(0, 3), st.one_of(st.none(), _WORDS))), max_size=8))
def test_descriptions_keep_the_text_around_them(parts: list[Any]) -> None:
    colors = ("red", "green", "blue", "black")
    document = parsed(*(one if isinstance(one, str) else image(colors[one[0]], one[1]) for one in parts))
    options = ImageOptions(captioner=says(red="RED", green="GREEN"), text_reader=says(green="GO", blue="SKY"))
    made = describe(document, options)  # whose constructor checks that blocks are in order and hold all text
    kept = [made.text[one.start : one.end] for one in made.blocks]
    own = [document.text[one.start : one.end] for one in document.blocks]
    left = iter(kept)
    assert all(one in left for one in own), "the blocks of the document are all there, in their order"
    for before, after in zip(document.images, made.images, strict=True):
        assert before.data == after.data
        follows = document.text[before.at :].lstrip()[:3]
        if before.caption:
            assert made.text[after.at :].startswith(follows)
    for one in prepare(made, options)[0]:
        assert 0 <= one.start <= one.end <= len(made.text)
        assert made.text[one.start : one.end].strip() == made.text[one.start : one.end]


# --- what is left out -------------------------------------------------------------------------------------------------


def test_what_cannot_be_kept_is_left_out_with_a_warning() -> None:
    broken = png("red")[:-40] + bytes(40)  # its header is in order
    document = parsed(
        image("green"),
        EmbeddedImage(b"no image", "image/png", None, 3, 0),
        EmbeddedImage(broken, "image/png", None, None, 0),
        EmbeddedImage(png("red", (30, 200)), "image/png", None, None, 0),
        EmbeddedImage(png("blue", (400, 400)), "image/png", None, 7, 0),
    )
    size = len(png("blue", (400, 400)))
    made, warnings = prepare(document, ImageOptions(embedder=Colors(), max_bytes=size - 1))
    assert [(one.number, one.digest) for one in made] == [(0, sha256(png("green")).hexdigest())]
    assert sorted(warnings) == [
        "an image cannot be decoded and was left out",
        "an image of page 3 is damaged, or of a format that is not read, and was left out",
        f"an image of page 7 has {size:,} bytes, more than ImageOptions.max_bytes, and was left out",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedder": HashingEmbedder()}, "ImageOptions.embedder must have .* embed_images"),
        ({"captioner": "blip"}, "ImageOptions.captioner must have caption"),
        ({"text_reader": 3}, "ImageOptions.text_reader must have read_text"),
        ({"keep": "link"}, "ImageOptions.keep must be 'blob' or 'reference'"),
        ({"min_side": 0}, "ImageOptions.min_side must be an int of 1 or more"),
        ({"max_bytes": True}, "ImageOptions.max_bytes must be an int of 1 or more, not bool"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ImageOptions(**options)


# --- in a database ----------------------------------------------------------------------------------------------------


@pytest.fixture
def db(tmp_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(tmp_path / "db", embedder=HashingEmbedder()) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    for color in Colors.known:
        (made / f"{color}.png").write_bytes(png(color))
    (made / "notes.txt").write_text("The door is painted in a dark colour.")
    return made


def names(found: Sequence[Any]) -> list[str]:
    return [Path(one.source).name for one in found]


def test_pictures_are_found_by_text_by_picture_and_by_words(db: agentdb.Database, folder: Path, tmp_path: Path) -> None:
    options = ImageOptions(embedder=Colors(), captioner=says(red="A disc, shining like a tomato."))
    report = db.documents.ingest(folder, images=options)
    assert (report.added, report.failed) == (4, ())
    assert names(db.documents.search_images("something blue", 2))[0] == "blue.png"
    assert names(db.documents.search_images(png("green", (90, 90)), 1)) == ["green.png"]
    assert names(db.documents.search_images(folder / "red.png", 1)) == ["red.png"]
    (passage,) = db.documents.search("tomato", 1)
    assert (Path(passage.source).name, passage.text) == ("red.png", "A disc, shining like a tomato.")
    (found,) = db.documents.search_images("red", 1)
    assert found.text == passage.text == db.documents.text(found.document_id)[found.start : found.end]
    assert db.documents.image(found.document_id, found.number) == png("red")
    assert [one.source for one in db.documents.search("the painted door", 1)] == [str(folder / "notes.txt")]


def test_a_picture_with_its_caption_is_one_document(db: agentdb.Database) -> None:
    pairs = [
        Document(png("red"), source="one", title="A bicycle in front of a shop"),
        Document(png("blue"), source="two", title="A boat at sea"),
    ]
    db.documents.ingest(pairs, images=ImageOptions(embedder=Colors()), metadata={"album": "summer"})
    assert names(db.documents.search("who has a boat?", 1)) == ["two"]
    assert names(db.documents.search_images("red", 1, filter=field("album") == "summer")) == ["one"]
    assert db.documents.search_images("red", 1, filter=field("album") == "winter") == []
    assert db.documents.context("boat", token_budget=200).citations[0].text == "A boat at sea"


def test_pictures_go_with_their_document(db: agentdb.Database, folder: Path) -> None:
    options = ImageOptions(embedder=Colors())
    db.documents.ingest(folder, images=options)
    again = db.documents.ingest(folder, images=options)
    assert (again.unchanged, again.updated) == (4, 0)
    (folder / "red.png").write_bytes(png("black"))
    (folder / "green.png").unlink()
    report = db.documents.ingest(folder, images=options)
    assert (report.updated, report.removed, report.unchanged) == (1, 1, 2)
    assert sorted(names(db.documents.search_images("red green blue", 9))) == ["blue.png", "red.png"]
    (blue,) = db.documents.search_images("blue", 1)
    with db.transaction():
        db.documents.delete(blue.document_id)
    assert names(db.documents.search_images("blue", 9)) == ["red.png"]
    with pytest.raises(NotFoundError, match="has no image 0"):
        db.documents.image(blue.document_id)
    (red,) = db.documents.search_images("red", 1)
    db.documents.erase(red.document_id)
    assert db.documents.search_images("red", 9) == []
    assert png("black")[16:] not in b"".join(
        one.read_bytes() for one in (db.path).rglob("*") if one.is_file() and one.suffix == ".lance"
    )


def test_a_picture_that_was_replaced_is_erased_with_its_document(db: agentdb.Database) -> None:
    options = ImageOptions(embedder=Colors(), captioner=says(red="a xylophonequartz"))
    (shown,) = db.documents.ingest(Document(png("red"), source="shown"), images=options).document_ids
    db.flush()
    db.documents.ingest(Document("only words", source="shown"), images=options)
    assert db.documents.images(shown) == []
    assert db.documents.erase(shown).status == "complete"
    raw = b"".join(one.read_bytes() for one in db.path.rglob("*") if one.is_file())
    assert png("red")[16:] not in raw
    assert b"xylophonequartz" not in raw


def test_a_picture_that_stays_in_its_file_is_read_from_there(db: agentdb.Database, folder: Path) -> None:
    db.documents.ingest(folder, images=ImageOptions(embedder=Colors(), keep="reference"))
    (red,) = db.documents.search_images("red", 1)
    (stored,) = db.documents.images(red.document_id)
    assert (stored.reference, stored.width, stored.height) == (str(folder / "red.png"), 64, 48)
    assert db.documents.image(red.document_id) == png("red")
    (folder / "red.png").write_bytes(png("green"))
    with pytest.raises(NotFoundError, match="has changed"):
        db.documents.image(red.document_id)
    (folder / "red.png").unlink()
    with pytest.raises(NotFoundError, match="cannot be read"):
        db.documents.image(red.document_id)


def test_pictures_inside_of_documents(db: agentdb.Database, tmp_path: Path) -> None:
    from pptx import Presentation
    from pptx.util import Inches

    deck = Presentation()
    for color, heading in (("red", "Warm"), ("blue", "Cold")):
        slide = deck.slides.add_slide(deck.slide_layouts[5])
        slide.shapes.title.text = heading
        slide.shapes.add_picture(BytesIO(png(color)), Inches(1), Inches(2))
    deck.save(tmp_path / "deck.pptx")
    options = ImageOptions(embedder=Colors(), text_reader=says(blue="minus forty"))
    report = db.documents.ingest(tmp_path / "deck.pptx", images=options)
    assert (report.added, report.warnings) == (1, ())
    (found,) = db.documents.search_images("blue", 1)
    assert (found.page, found.number) == (2, 1)
    assert found.text.endswith("minus forty")
    (passage,) = db.documents.search("minus forty", 1)
    assert "minus forty" in passage.text
    assert db.documents.image(found.document_id, 1) == png("blue")
    assert names(db.documents.search_images("red", 1, filter=field("page") == 2)) == ["deck.pptx"]
    assert db.documents.search_images("red", 1, filter=field("page") == 2)[0].page == 2


class OtherColors(Colors):
    name = "other colors"


def test_vectors_of_two_models_are_never_compared(db: agentdb.Database, folder: Path, tmp_path: Path) -> None:
    db.documents.ingest(folder, images=ImageOptions(embedder=Colors()))
    with pytest.raises(InvalidInputError, match=r"'colors'.*'other colors'"):
        db.documents.search_images("red", embedder=OtherColors())
    with pytest.raises(InvalidInputError, match=r"'colors'.*'other colors'"):
        db.documents.ingest(folder, images=ImageOptions(embedder=OtherColors()))
    with agentdb.open(tmp_path / "db", embedder=HashingEmbedder()) as other:
        with pytest.raises(InvalidInputError, match="give the embedder of texts and pictures"):
            other.documents.search_images("red")
        assert names(other.documents.search_images("red", 1, embedder=Colors())) == ["red.png"]


def test_a_collection_that_was_made_without_pictures_gets_their_vectors_when_the_first_come(
    db: agentdb.Database, folder: Path
) -> None:
    report = db.documents.ingest(folder)
    assert report.added == 1
    assert {one.reason for one in report.failed} == {"image"}
    before = {one.id: db.documents.text(one.id) for one in db.documents.list()}
    assert db.documents.search_images("red", embedder=Colors()) == []
    options = ImageOptions(embedder=Colors())
    with agentdb.open(db.path, embedder=HashingEmbedder()) as other:
        assert other.documents.ingest(Document("Opened before.", source="a")).added == 1
        with db.transaction(), pytest.raises(UnavailableError, match="no vectors of pictures yet"):
            db.documents.ingest(folder, images=options)
        assert not db.documents.ingest(folder, images=options).failed
        assert names(db.documents.search_images("red", 1)) == ["red.png"]
        assert names(other.documents.search_images("green", 1, embedder=Colors())) == ["green.png"]
        assert other.documents.ingest(Document("Written afterwards.", source="b")).added == 1
    assert {one: db.documents.text(one) for one in before} == before
    with db.transaction():
        assert db.documents.ingest(Document(png("red"), source="c.png"), images=options).added == 1
    db.optimize()
    assert set(names(db.documents.search_images("red", 2))) == {"red.png", "c.png"}
    assert db.documents.search("Written afterwards.", 1)[0].source == "b"


def test_a_column_that_somebody_who_was_killed_left_is_taken_or_passed_by(db: agentdb.Database, folder: Path) -> None:
    for name, left in (("same", Colors.dimension), ("other", 7)):
        db.documents.ingest("A first text.", collection=name)
        db.documents._require(name)._table.add_columns([pa.field("image", pa.list_(pa.float32(), left))])
        db.documents.ingest(folder, images=ImageOptions(embedder=Colors()), collection=name)
        assert names(db.documents.search_images("blue", 1, collection=name)) == ["blue.png"]
        columns = db.documents._require(name)._store.read().vectors
        assert columns["image"].column == {"same": "image", "other": "image_2"}[name]


def test_vectors_of_pictures_have_one_length(db: agentdb.Database, folder: Path) -> None:
    class Wide(Colors):
        name, dimension = "wide", 9

    db.documents.ingest("A first text.")
    db.documents.ingest(folder, images=ImageOptions(embedder=Colors()))
    with pytest.raises(InvalidInputError, match="vectors of pictures of 3 dimensions"):
        db.documents.ingest(folder, images=ImageOptions(embedder=Wide()))


def test_a_real_clip(db: agentdb.Database, folder: Path, tmp_path: Path) -> None:
    path = save_tiny_clip(tmp_path / "clip")
    with ImageTextEmbedder(path, device="cpu") as clip:
        db.documents.ingest(folder, images=ImageOptions(embedder=clip))
        for color in Colors.known:
            (best,) = db.documents.search_images(png(color), 1)
            assert names([best]) == [f"{color}.png"]
            assert best.score == pytest.approx(1, abs=1e-3)
        by_text = db.documents.search_images("a red disc", 3)
        vectors = clip.embed_images([folder / name for name in names(by_text)])
        cosines = vectors @ clip.embed(["a red disc"], "query")[0] / np.linalg.norm(vectors, axis=1)
        assert (np.diff(cosines) <= 1e-6).all()
        assert len(by_text) == 3
