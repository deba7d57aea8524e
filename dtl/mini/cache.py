"""Caches generated data on disk, and generates it again when its inputs change."""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from dtl.core.cache_folder import cache_folder
from dtl.core.checksums import CheckedFolder, open_cache_folder, open_intact, seal_folder
from dtl.core.errors import DtlError
from dtl.core.files import staged_folder, sync_to_disk

GENERATOR_FILES = (  # files that determine the rows
    *("docstrings.py", "graphs.py", "lexicon.py", "prose.py", "sentiment.py"),
    *("digits.py", "glyphs.py", "glyphs.png", "perturb.py"),
)


Splits = dict[str, list[dict[str, Any]]]


def ensure_generated(
    name: str,
    *,
    splits: Iterable[str],
    generate: Callable[[], Splits],
    packages: Iterable[str] = (),
) -> Path:
    """Return the folder with one file per split; generate it first if needed. An interrupted call
    leaves nothing. Several processes may call it at once."""
    target = cache_folder() / "mini" / f"{name}-{cache_key(packages)}"
    if open_intact(target, _open_verified) is not None:
        return target
    logging.getLogger("dtl").info("generating mini:%s once, in %s", name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with staged_folder(target) as staged:
        generated = generate()
        for split in splits:
            _write_split(staged / split, generated[split])
        seal_folder(staged)
    return target


def _open_verified(folder: Path) -> CheckedFolder:
    opened = open_cache_folder(folder)
    opened.verify_all()
    return opened


def cache_key(packages: Iterable[str]) -> str:
    """Return a hash of all inputs of generated data: this code, Python and the packages. Raises
    DtlError for a package that is not installed."""
    digest = hashlib.sha256(sys.version.encode())
    for package in packages:
        digest.update(f"{package} {_package_version(package)}\n".encode())
    for name in GENERATOR_FILES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:16]


def _package_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise DtlError.of(
            f"package {package}", "is not installed", f"run pip install {package}"
        ) from None


def _write_split(stem: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSONL, or Parquet if the rows contain bytes."""
    if any(isinstance(value, bytes) for value in rows[0].values()):
        import pyarrow as pa
        from pyarrow import parquet

        path = stem.with_suffix(".parquet")
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path = stem.with_suffix(".jsonl")
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    sync_to_disk(path)
