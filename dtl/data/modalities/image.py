"""Decodes images to 8-bit RGB."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault
from dtl.data.modalities.media_files import MediaDecodeError, resolve_media_file

if TYPE_CHECKING:
    import numpy as np

    from dtl.data.sources.rows import Row

BACKGROUND = (255, 255, 255)  # behind transparent pixels


def find_image_fault(row: Row) -> Fault | None:
    """Return the fault of a row's `image`, or None; only the file's header is read."""
    value = row.fields.get("image")
    file = resolve_media_file(value, row.folder)
    if file is not None and not file.is_file():
        return Fault(
            row.location, f"image file not found: {file}", "correct `image`, or add the file"
        )
    content = _get_content(row)
    if content is None:
        return _no_image_fault(row, value)
    pillow, decode_errors = _import_pillow()
    try:
        with pillow.open(content):
            return None
    except decode_errors as error:
        return _decode_fault(row, error)


def load_image(row: Row, *, max_short_side: int | None = None) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 of a valid row, rotated as its EXIF data says, transparent
    pixels on white. An image whose shorter side exceeds `max_short_side` is resized to it.

    Raises MediaDecodeError if the image cannot be decoded to its end, or if a pixel is not finite.
    """
    import numpy as np

    pillow, decode_errors = _import_pillow()
    try:
        with pillow.open(_get_content(row)) as encoded:
            image = _convert_to_rgb(encoded)
    except decode_errors as error:
        raise MediaDecodeError(_decode_fault(row, error)) from None
    short_side = min(image.size)
    if max_short_side is not None and short_side > max_short_side:
        scale = max_short_side / short_side
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, pillow.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def _convert_to_rgb(encoded: Any) -> Any:
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(encoded)
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise ValueError("it has pixels that are not finite, NaN or infinite")
    if image.mode.startswith("I"):  # 16 bits per pixel, which convert() would clip at 255
        pixels = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((pixels / (257.0 if pixels.max() > 255 else 1.0)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        foreground = image.convert("RGBA")
        background = Image.new("RGBA", foreground.size, (*BACKGROUND, 255))
        return Image.alpha_composite(background, foreground).convert("RGB")
    return image.convert("RGB")


def _get_content(row: Row) -> Path | io.BytesIO | None:
    value: Any = row.fields.get("image")
    file = resolve_media_file(value, row.folder)
    if file is not None:
        return file
    data = value.get("bytes") if isinstance(value, dict) else value
    return io.BytesIO(data) if isinstance(data, bytes) else None


def _no_image_fault(row: Row, value: Any) -> Fault:
    columns = ", ".join(map(repr, row.fields)) or "nothing"
    return Fault(
        row.location,
        f"the column `image` is missing (the row has {columns})"
        if value is None
        else f"`image` is {type(value).__name__} (expected a file name or image data)",
        "set it to a file, or map its column in data.columns: {image: ...}",
    )


def _decode_fault(row: Row, error: Exception) -> Fault:
    reason = " ".join(str(error).split())[:120].rstrip(".")
    return Fault(
        row.location,
        f"`image` cannot be decoded ({reason})",
        "convert it to PNG, JPEG, WebP, BMP, GIF or TIFF",
    )


def _import_pillow() -> tuple[Any, tuple[type[Exception], ...]]:
    """Return Pillow's Image module, and the errors that it raises for an invalid image."""
    try:
        from PIL import Image
    except ImportError:
        raise DtlError.of(
            "task",
            "images need the package Pillow, which is not installed",
            "pip install 'dtl[vision]'",
        ) from None
    return Image, (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
