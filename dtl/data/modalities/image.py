"""Pictures of any kind as 8-bit RGB."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault
from dtl.data.modalities.media_files import MediaDecodeError, resolve_media_file

if TYPE_CHECKING:
    import numpy as np

    from dtl.data.sources.rows import Row

BACKGROUND = (255, 255, 255)  # what a transparent picture is laid on


def find_image_fault(row: Row) -> Fault | None:
    """What is wrong with a row's `image`, as its header and its place tell; None: nothing."""
    value = row.fields.get("image")
    file = resolve_media_file(value, row.folder)
    if file is not None and not file.is_file():
        return Fault(
            row.location, f"there is no file {file}", "correct `image`, or put the file there"
        )
    opened = _open_image(row)
    if opened is None:
        return _no_image_fault(row, value)
    image, unreadable = _import_pillow()
    try:
        with image.open(opened):
            return None
    except unreadable as fault:
        return _decode_fault(row, fault)


def load_image(row: Row, *, max_short_side: int | None = None) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of a row that `picture_fault` has passed: turned as the camera says,
    transparency laid on white. One whose shorter side is longer than asked is made smaller.

    Raises Undecodable where the picture cannot be decoded to its end.
    """
    import numpy as np

    image, unreadable = _import_pillow()
    try:
        with image.open(_open_image(row)) as opened:
            picture = _convert_to_rgb(opened)
    except unreadable as fault:
        raise MediaDecodeError(_decode_fault(row, fault)) from None
    short = min(picture.size)
    if max_short_side is not None and short > max_short_side:
        scale = max_short_side / short
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize(size, image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.uint8)


def _convert_to_rgb(opened: Any) -> Any:
    import numpy as np
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):  # 16 bits a pixel, which convert() would cut off at 255
        deep = np.asarray(picture, dtype=np.float64)
        picture = Image.fromarray((deep / (257.0 if deep.max() > 255 else 1.0)).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        above = picture.convert("RGBA")
        ground = Image.new("RGBA", above.size, (*BACKGROUND, 255))
        return Image.alpha_composite(ground, above).convert("RGB")
    return picture.convert("RGB")


def _open_image(row: Row) -> Path | io.BytesIO | None:
    value: Any = row.fields.get("image")
    file = resolve_media_file(value, row.folder)
    if file is not None:
        return file
    data = value.get("bytes") if isinstance(value, dict) else value
    return io.BytesIO(data) if isinstance(data, bytes) else None


def _no_image_fault(row: Row, value: Any) -> Fault:
    named = ", ".join(map(repr, row.fields)) or "nothing"
    return Fault(
        row.location,
        f"there is no `image` (the row has {named})"
        if value is None
        else f"`image` is {type(value).__name__}, neither a file name nor a picture",
        "name a file, or map its column in data.columns: {image: ...}",
    )


def _decode_fault(row: Row, fault: Exception) -> Fault:
    reason = " ".join(str(fault).split())[:120].rstrip(".")
    return Fault(
        row.location,
        f"`image` cannot be decoded ({reason})",
        "give PNG, JPEG, WebP, BMP, GIF or TIFF",
    )


def _import_pillow() -> tuple[Any, tuple[type[Exception], ...]]:
    """The library, and what it raises for a file that is no picture."""
    try:
        from PIL import Image
    except ImportError:
        raise DtlError.of(
            "task",
            "pictures are read by Pillow, which is not installed",
            "pip install 'dtl[vision]'",
        ) from None
    return Image, (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
