"""The content of a pretrained model in one short text, so that a run goes on with its own base."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dtl.config.schema import Model
from dtl.models.load import adapter_folders, locate
from dtl.models.trust import ADAPTER

WHOLE = 64 * 2**20  # bytes: a smaller file is hashed whole
PIECES, PIECE = 256, 64 * 2**10  # of a larger one so many pieces of so many bytes, evenly spaced


def fingerprint(model: Model) -> str:
    """Of a hub model the commit; of a folder SHA-256 over its config and weight files.

    Of a large file the size, the beginning with safetensors' header, and evenly spaced pieces are
    read, so that 100 GB take a second. Changed weights are found; a few bytes changed by damage
    may not be.
    """
    where = locate(model)
    folder = Path(where)
    if folder.is_dir():
        base = _of_folder(folder, "config.json")
    else:
        snapshot = in_hub_cache(where, model.revision)
        base = f"hub:{where}@{snapshot.name if snapshot else model.revision or 'main'}"
    return "+".join([base, *(_of_folder(one, ADAPTER) for one in adapter_folders(model))])


def of_adapter(folder: Path) -> str | None:
    """Of an adapter's settings and weights; None where there is none."""
    return _of_folder(folder, ADAPTER) if (folder / ADAPTER).is_file() else None


def _of_folder(folder: Path, settings: str) -> str:
    digest = hashlib.sha256()
    for file in sorted([folder / settings, *folder.glob("*.safetensors")]):
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        _add(digest, file)
    return digest.hexdigest()


def in_hub_cache(repository: str, revision: str | None) -> Path | None:
    """The snapshot folder, named by its commit."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _add(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= WHOLE:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
            return
        for piece in range(PIECES):
            opened.seek(piece * (size - PIECE) // (PIECES - 1))
            digest.update(opened.read(PIECE))
