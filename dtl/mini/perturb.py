"""Perturbs a clean image: random size, position, rotation, contrast and noise, seeded by name."""

import hashlib
import io
from typing import Any

IMAGE_SIDE = 32  # pixels of the perturbed image
GLYPH_SIDES = (16, 24)  # pixels, minimum and maximum
MAX_ROTATION = 25  # degrees, in both directions
NOISE_STD = 0.12  # standard deviation; black is 0, white is 1
CONTRASTS = (0.55, 1.0)


def perturb_image(image: Any, *, name: str) -> bytes:
    """Return a PNG (RGB, IMAGE_SIDE x IMAGE_SIDE) of a square gray image, uint8 (side, side). The
    perturbation depends only on `name`."""
    import numpy
    from PIL import Image

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    random = numpy.random.default_rng(seed)
    size = int(random.integers(*GLYPH_SIDES, endpoint=True))
    glyph = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (IMAGE_SIDE, IMAGE_SIDE))
    left, top = (
        int(offset) for offset in random.integers(0, IMAGE_SIDE - size, size=2, endpoint=True)
    )
    canvas.paste(glyph, (left, top))
    center = (left + size / 2, top + size / 2)
    rotated = canvas.rotate(
        random.uniform(-MAX_ROTATION, MAX_ROTATION), Image.Resampling.BICUBIC, center=center
    )
    light = numpy.asarray(rotated) / 255 * random.uniform(*CONTRASTS)
    noisy = numpy.clip(light + random.normal(0, NOISE_STD, light.shape), 0, 1)
    buffer = io.BytesIO()
    gray = Image.fromarray((noisy * 255).round().astype(numpy.uint8))
    gray.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
