"""CLIP and SigLIP models of a few thousand random weights, saved as the real ones are."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

__all__ = ["save_tiny_clip", "save_tiny_siglip"]

SIDE = 32
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": SIDE, "patch_size": 8}


def save_tiny_clip(path: Path, *, seed: int = 0) -> Path:
    """Save a CLIP of 24 dimensions and 16 tokens, one for each letter of a text."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = [one + end for end in ("", "</w>") for one in string.printable.strip()]
    vocabulary = {token: at for at, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    size = len(vocabulary)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    text = {**TOWER, "vocab_size": size, "max_position_embeddings": 16}
    text |= {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return _save(path, model, CLIPProcessor(image_processor=images, tokenizer=tokenizer))


def save_tiny_siglip(path: Path) -> Path:
    """Save a SigLIP of 32 dimensions and 16 tokens, one for each word of a text that it knows."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel, SiglipProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    words = {"<pad>": 0, "<unk>": 1, "red": 2, "green": 3, "blue": 4, "square": 5}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    # Without a limit of its own, as some have it; without a mask of padding, as all have it.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", model_input_names=["input_ids"]
    )
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": len(words), "max_position_embeddings": 16, "pad_token_id": 0}
    text |= {"bos_token_id": 0, "eos_token_id": 0}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return _save(path, model, SiglipProcessor(image_processor=images, tokenizer=tokenizer))


def _save(path: Path, model: Any, processor: Any) -> Path:
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path
