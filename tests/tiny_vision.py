"""Tiny models that see, with their image processors, and pictures whose colour tells the label."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 32  # pixels, of what the models are shown
COLOURS = {"blue": (30, 40, 220), "green": (40, 200, 60), "red": (220, 50, 30)}


def _save(config: Any, processor: Any, folder: Path, *, seed: int) -> Path:
    """A model of the config's own kind without a head."""
    import torch
    from transformers import AutoModel

    torch.manual_seed(seed)
    AutoModel.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def vit(folder: Path, *, seed: int = 7) -> Path:
    """A ViT of 2 blocks; pictures are brought to its size whatever their shape."""
    from transformers import ViTConfig
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=SIDE,
        patch_size=8,
    )
    return _save(config, ViTImageProcessorPil(size=_square()), folder, seed=seed)


def resnet(folder: Path, *, seed: int = 7) -> Path:
    """A convolutional network with batch normalisation; of a picture the middle is shown."""
    from transformers import ResNetConfig
    from transformers.models.convnext.image_processing_pil_convnext import (
        ConvNextImageProcessorPil,
    )

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    processor = ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.875)
    return _save(config, processor, folder, seed=seed)


def convnext(folder: Path, *, seed: int = 7) -> Path:
    """A convolutional network without batch normalisation."""
    from transformers import ConvNextConfig
    from transformers.models.convnext.image_processing_pil_convnext import (
        ConvNextImageProcessorPil,
    )

    config = ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], image_size=SIDE)
    processor = ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.875)
    return _save(config, processor, folder, seed=seed)


def swin(folder: Path, *, seed: int = 7) -> Path:
    from transformers import SwinConfig
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    return _save(config, ViTImageProcessorPil(size=_square()), folder, seed=seed)


def _square() -> dict[str, int]:
    return {"height": SIDE, "width": SIDE}


def pixels(label: str, *, seed: int) -> np.ndarray:
    """A noisy picture (H, W, 3) of uneven size and of the label's colour."""
    draw = np.random.default_rng(seed)
    height, width = draw.integers(24, 80, size=2)
    colour = np.array(COLOURS[label]) + draw.integers(-30, 30, size=(height, width, 3))
    return np.clip(colour, 0, 255).astype(np.uint8)


def png(picture: np.ndarray, *, kind: str = "PNG") -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format=kind)
    return file.getvalue()


def pictures(count: int, *, seed: int = 1) -> list[dict[str, Any]]:
    """Rows of pictures as bytes, each with its label."""
    labels = sorted(COLOURS)
    return [
        {"image": png(pixels(labels[n % 3], seed=seed * 1000 + n)), "label": labels[n % 3]}
        for n in range(count)
    ]


def write_folder(folder: Path, count: int, *, seed: int = 1) -> Path:
    """A folder a class."""
    for number, row in enumerate(pictures(count, seed=seed)):
        kind = folder / row["label"]
        kind.mkdir(parents=True, exist_ok=True)
        (kind / f"{number:03}.png").write_bytes(row["image"])
    return folder
