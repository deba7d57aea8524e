"""What makes a clean small picture hard: place, size, turn, strength and noise, drawn by name."""

import hashlib
import io
from typing import Any

IMAGE_SIDE = 32  # pixels of the result
GLYPH_SIDES = (16, 24)  # pixels of the sign, from, to
MAX_ROTATION = 25  # degrees to either side
NOISE_STD = 0.12  # standard deviation; black is 0, white is 1
CONTRASTS = (0.55, 1.0)


def perturb_image(picture: Any, *, name: str) -> bytes:
    """A PNG (RGB, SIDE x SIDE) of a square grey picture, uint8; always the same for a name."""
    import numpy
    from PIL import Image

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    random = numpy.random.default_rng(seed)
    size = int(random.integers(*GLYPH_SIDES, endpoint=True))
    sign = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (IMAGE_SIDE, IMAGE_SIDE))
    left, top = (
        int(place) for place in random.integers(0, IMAGE_SIDE - size, size=2, endpoint=True)
    )
    canvas.paste(sign, (left, top))
    middle = (left + size / 2, top + size / 2)
    turned = canvas.rotate(
        random.uniform(-MAX_ROTATION, MAX_ROTATION), Image.Resampling.BICUBIC, center=middle
    )
    light = numpy.asarray(turned) / 255 * random.uniform(*CONTRASTS)
    noisy = numpy.clip(light + random.normal(0, NOISE_STD, light.shape), 0, 1)
    packed = io.BytesIO()
    grey = Image.fromarray((noisy * 255).round().astype(numpy.uint8))
    grey.convert("RGB").save(packed, "PNG")
    return packed.getvalue()
