"""Fingerprint the content of a pretrained model, so that a run continues with the same base."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dtl.config.schema import Model
from dtl.models.base_adapters import resolve_adapters
from dtl.models.locate import locate_model
from dtl.models.trust import ADAPTER_CONFIG

FULL_HASH_BYTES = 64 * 2**20  # a smaller file is hashed completely
SAMPLE_COUNT = 256  # evenly spaced samples of a larger file
SAMPLE_BYTES = 64 * 2**10


def fingerprint_model(model: Model) -> str:
    """Return the commit of a hub model, or SHA-256 over the config and weight files of a folder.

    Of a large file only the size and evenly spaced samples are hashed, the first with the header of
    safetensors, so that 100 GB take a second. Other weights give another fingerprint; a few
    corrupted bytes may not.
    """
    where = locate_model(model)
    folder = Path(where)
    if folder.is_dir():
        base = _hash_folder(folder, "config.json")
    else:
        snapshot = find_hub_snapshot(where, model.revision)
        base = f"hub:{where}@{snapshot.name if snapshot else model.revision or 'main'}"
    return "+".join(
        [base, *(_hash_folder(adapter, ADAPTER_CONFIG) for adapter in resolve_adapters(model))]
    )


def fingerprint_adapter(folder: Path) -> str | None:
    """Return the SHA-256 of an adapter's config and weights; None if the folder has no adapter."""
    return _hash_folder(folder, ADAPTER_CONFIG) if (folder / ADAPTER_CONFIG).is_file() else None


def _hash_folder(folder: Path, config_file: str) -> str:
    digest = hashlib.sha256()
    for file in sorted([folder / config_file, *folder.glob("*.safetensors")]):
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        _update_digest(digest, file)
    return digest.hexdigest()


def find_hub_snapshot(repository: str, revision: str | None) -> Path | None:
    """Return the folder of a hub model in the cache, named after its commit; None if not cached."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _update_digest(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= FULL_HASH_BYTES:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
            return
        for index in range(SAMPLE_COUNT):
            opened.seek(index * (size - SAMPLE_BYTES) // (SAMPLE_COUNT - 1))
            digest.update(opened.read(SAMPLE_BYTES))
