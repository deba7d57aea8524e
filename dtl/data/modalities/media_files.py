"""Files that rows name: where they lie, and a digest of them that costs little."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dtl.core.errors import DtlError

DIGEST_BYTES = 4096  # bytes read of each end of a file: enough to tell two sounds or pictures apart
SUFFIXES = {
    "audio": (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph"),
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
}
# What other tools call the column: audiofolder and imagefolder, NeMo, Common Voice.
ALIASES = {
    "audio": ("file_name", "audio_filepath", "audio_path", "path", "file"),
    "image": ("file_name", "image_path", "path", "file"),
}


class MediaDecodeError(DtlError):
    """A file whose header is good cannot be decoded to its end."""


def rename_media_column(fields: dict[str, Any], media: str) -> dict[str, Any]:
    """The fields, with what other tools call the column under its own name."""
    if media in fields:
        return fields
    alias = next((name for name in ALIASES[media] if isinstance(fields.get(name), str)), None)
    if alias is None:
        return fields
    return {media: fields[alias], **{k: v for k, v in fields.items() if k != alias}}


def resolve_media_file(value: Any, folder: Path) -> Path | None:
    """The file that a value names, relative to the folder that the row stands in; None for bytes
    and arrays."""
    if isinstance(value, dict) and value.get("bytes") is None and "array" not in value:
        value = value.get("path")
    if not isinstance(value, str):
        return None
    path = Path(value).expanduser()
    inside = folder / path
    return inside if inside.exists() or not path.exists() else path


def digest_media_files(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over names, sizes and both ends of the files; what is not there counts as nothing."""
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
