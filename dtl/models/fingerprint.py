"""The content of a pretrained model in one short text, so that a run goes on with its own base."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dtl.config.schema import Model
from dtl.models.base_adapters import resolve_adapters
from dtl.models.locate import locate_model
from dtl.models.trust import ADAPTER_CONFIG

FULL_HASH_BYTES = 64 * 2**20  # bytes: a smaller file is hashed whole
SAMPLE_COUNT, SAMPLE_BYTES = (
    256,
    64 * 2**10,
)  # of a larger one so many pieces of so many bytes, evenly spaced


def fingerprint_model(model: Model) -> str:
    """Of a hub model the commit; of a folder SHA-256 over its config and weight files.

    Of a large file the size, the beginning with safetensors' header, and evenly spaced pieces are
    read, so that 100 GB take a second. Changed weights are found; a few bytes changed by damage
    may not be.
    """
    where = locate_model(model)
    folder = Path(where)
    if folder.is_dir():
        base = _hash_folder(folder, "config.json")
    else:
        snapshot = find_hub_snapshot(where, model.revision)
        base = f"hub:{where}@{snapshot.name if snapshot else model.revision or 'main'}"
    return "+".join([base, *(_hash_folder(one, ADAPTER_CONFIG) for one in resolve_adapters(model))])


def fingerprint_adapter(folder: Path) -> str | None:
    """Of an adapter's settings and weights; None where there is none."""
    return _hash_folder(folder, ADAPTER_CONFIG) if (folder / ADAPTER_CONFIG).is_file() else None


def _hash_folder(folder: Path, settings: str) -> str:
    digest = hashlib.sha256()
    for file in sorted([folder / settings, *folder.glob("*.safetensors")]):
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        _update_digest(digest, file)
    return digest.hexdigest()


def find_hub_snapshot(repository: str, revision: str | None) -> Path | None:
    """The snapshot folder, named by its commit."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _update_digest(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= FULL_HASH_BYTES:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
            return
        for piece in range(SAMPLE_COUNT):
            opened.seek(piece * (size - SAMPLE_BYTES) // (SAMPLE_COUNT - 1))
            digest.update(opened.read(SAMPLE_BYTES))
