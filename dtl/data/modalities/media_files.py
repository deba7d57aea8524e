"""Audio and image files that rows name: their columns, their paths and a cheap digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dtl.core.errors import InvalidRowError

DIGEST_BYTES = 4096  # read at each end of a file: enough to distinguish two recordings or images
SUFFIXES = {
    "audio": (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph"),
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
}
# The column's names in other tools: audiofolder and imagefolder, NeMo, Common Voice.
ALIASES = {
    "audio": ("file_name", "audio_filepath", "audio_path", "path", "file"),
    "image": ("file_name", "image_path", "path", "file"),
}


class MediaDecodeError(InvalidRowError):
    """A media file with a valid header cannot be decoded to its end, or has values that are not
    finite."""


def rename_media_column(fields: dict[str, Any], media: str) -> dict[str, Any]:
    """Return the fields with the media column renamed from its name in other tools."""
    if media in fields:
        return fields
    alias = next((name for name in ALIASES[media] if isinstance(fields.get(name), str)), None)
    if alias is None:
        return fields
    return {media: fields[alias], **{k: v for k, v in fields.items() if k != alias}}


def resolve_media_file(value: Any, folder: Path) -> Path | None:
    """Return the file that a value names, relative to the row's folder; None for data itself."""
    if isinstance(value, dict) and value.get("bytes") is None and "array" not in value:
        value = value.get("path")
    if not isinstance(value, str):
        return None
    path = Path(value).expanduser()
    inside = folder / path
    return inside if inside.exists() or not path.exists() else path


def digest_media_files(files: Iterable[tuple[str, Path]]) -> str:
    """Return the SHA-256 over names, sizes and both ends of files; of a missing one, its name."""
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\n".encode())
        if not path.is_file():
            continue
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{size}\n".encode() + file.read(DIGEST_BYTES))
            if size > DIGEST_BYTES:
                file.seek(max(DIGEST_BYTES, size - DIGEST_BYTES))
                digest.update(file.read())
    return digest.hexdigest()
