"""Models that put images and texts into one space (CLIP, SigLIP and their kind), through sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from agentdb import EmbedKind, InvalidInputError, MissingDependencyError
from agentdb_embedders.sentence_transformer import LocalModel

if TYPE_CHECKING:
    from PIL.Image import Image
    from sentence_transformers import SentenceTransformer

__all__ = ["ImageTextEmbedder"]

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: an image of a few kilobytes can claim any size."""
# Only formats that hold pixels: Pillow would hand others, such as PostScript, to programs outside.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


class ImageTextEmbedder(LocalModel):
    """Return vectors of images and of texts that can be compared, from one model; torch and the model load on first use.

    Calls from several threads take turns. A text is always a text: one that reads like the address of an image is not fetched.
    The texts are meant to be short, such models read few tokens of them.

    Args:
        model: the name of a model on the hub (``"sentence-transformers/clip-ViT-B-32"``, ``"google/siglip2-base-patch16-224"``)
            or a directory, of sentence-transformers or of transformers.
        name: the identity stored beside the vectors; see `SentenceTransformerEmbedder`.
        device: where torch computes: "auto" (CUDA if there is one, else the CPU), "cpu", "cuda:1", "mps", ...
        batch_size: images or texts per forward pass.
        max_tokens: truncate texts here instead of at the model's own limit.
        revision: branch, tag or commit of a model on the hub.

    Raises:
        MissingDependencyError: sentence-transformers (5.4 or later), torch or Pillow is not installed.
        InvalidInputError: an argument cannot be accepted; at the first use: the model knows no images.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        name: str | None = None,
        device: str = "auto",
        batch_size: int = 32,
        max_tokens: int | None = None,
        revision: str | None = None,
    ) -> None:
        if not isinstance(model, str | Path):
            raise InvalidInputError(f"model must be a name or a path, not {type(model).__name__}")
        super().__init__(
            model, name=name, device=device, batch_size=batch_size, max_tokens=max_tokens, revision=revision
        )

    def embed(self, texts: Sequence[str], kind: EmbedKind = "document") -> npt.NDArray[np.float32]:
        """Return `[N, D]` float32; the model's own prompt for the kind, if it has one, is put before each text."""
        # Given as bare strings, addresses and paths of images would be fetched and read as images.
        return self._encode([{"text": text} for text in texts], kind)

    def embed_images(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return `[N, D]` float32, one vector for each image.

        Args:
            images: encoded bytes (PNG, JPEG, WebP, GIF, TIFF, BMP), paths of such files, or ``PIL.Image`` objects. Of an
                animation the first frame counts. Turned as their EXIF data say.

        Raises:
            InvalidInputError: one is no image, is damaged, or has more than 64 million pixels; the message says which.
        """
        vectors = [
            # Decoded by the batch: an image takes a hundred times its file's size.
            self._encode([_decoded(one, at) for at, one in enumerate(images[start : start + self._batch_size], start)])
            for start in range(0, len(images), self._batch_size)
        ]
        return np.concatenate(vectors) if vectors else np.empty((0, self.dimension), np.float32)

    def _encode(self, inputs: list[Any], kind: EmbedKind = "document") -> npt.NDArray[np.float32]:
        with self._loaded() as model:
            if not inputs:
                return np.empty((0, self.dimension), np.float32)
            encode: Any = model.encode_query if kind == "query" else model.encode_document
            vectors = encode(inputs, batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True)
            return np.ascontiguousarray(vectors, np.float32)

    def _load(self) -> SentenceTransformer:
        model = super()._load()
        known = getattr(model, "modalities", None)
        if known is None:
            raise MissingDependencyError(
                "images need sentence-transformers 5.4 or later: install 'agentdb-lance[local]'"
            )
        if not {"text", "image"} <= set(known):
            raise InvalidInputError(
                f"model {str(self._source)!r} must know text and image, but knows only {', '.join(map(str, known))}"
            )
        _prepare_texts(model)
        return model


def _prepare_texts(model: SentenceTransformer) -> None:
    """Let a model read texts as it was trained to, where what it was saved with does not say so."""
    config: Any = getattr(model.transformers_model, "config", None)
    if config is None:
        return
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        # Tokenizers of models that have 64 places may know no limit at all.
        model.max_seq_length = min(positions, model.max_seq_length or positions)
    if config.model_type.startswith("siglip"):
        # Its vector is that of the last place, padding or not: padded only to the longest, it would depend on the batch.
        first: Any = model[0]
        given = first.processing_kwargs
        first.processing_kwargs = {**given, "text": {"padding": "max_length", **given.get("text", {})}}


def _decoded(image: Any, position: int) -> Image:
    """Return an image as RGB, upright.

    Raises:
        InvalidInputError: it is none, is damaged or too large.
        MissingDependencyError: Pillow is not installed.
    """
    try:
        from PIL import Image as Pillow
        from PIL import ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError("Pillow is not installed: install 'agentdb-lance[documents]'") from error

    where = f"images[{position}]"
    if isinstance(image, bytes | bytearray | memoryview):
        source: Any = BytesIO(image)
    elif isinstance(image, str | Path):
        source = Path(image)
        if not source.is_file():
            raise InvalidInputError(f"{where} must be the path of a file, which it is not")
    elif isinstance(image, Pillow.Image):
        source = None
    else:
        raise InvalidInputError(f"{where} must be bytes, a path or a PIL.Image, not {type(image).__name__}")
    try:
        opened = image if source is None else Pillow.open(source, formats=_FORMATS)
        if opened.width * opened.height <= MAX_PIXELS:
            upright = ImageOps.exif_transpose(opened)
            return upright.convert("RGB")
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        pass  # larger still
    except UnidentifiedImageError:
        raise InvalidInputError(f"{where} is no image of a format that is read ({', '.join(_FORMATS)})") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InvalidInputError(f"{where} is damaged ({type(error).__name__})") from error
    raise InvalidInputError(f"{where} has more than {MAX_PIXELS:,} pixels")
