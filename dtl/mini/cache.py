"""Generated data on disk: written complete or not at all, and made again when its inputs change."""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from dtl.core.cache_folder import cache_folder
from dtl.core.errors import DtlError

GENERATOR_FILES = (  # files that shape the rows
    *("docstrings.py", "graphs.py", "lexicon.py", "prose.py", "sentiment.py"),
    *("digits.py", "glyphs.py", "glyphs.png", "nuisance.py"),
)


Splits = dict[str, list[dict[str, Any]]]


def ensure_generated(
    name: str,
    *,
    splits: Iterable[str],
    generate: Callable[[], Splits],
    packages: Iterable[str] = (),
) -> Path:
    """The folder with one file a split; several processes may ask at once."""
    target = cache_folder() / "mini" / f"{name}-{cache_key(packages)}"
    if target.is_dir():
        return target
    logging.getLogger("dtl").info("making mini:%s, once; it is kept in %s", name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        generated = generate()
        for split in splits:
            _write_split(staged / split, generated[split])
        _publish(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def cache_key(packages: Iterable[str]) -> str:
    """A short mark of all that made data depends on: our code, Python and what is installed."""
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
            f"package {package}", "is not installed", f"install it: pip install {package}"
        ) from None


def _write_split(stem: Path, rows: list[dict[str, Any]]) -> None:
    """JSONL, or Parquet where rows hold bytes."""
    if any(isinstance(value, bytes) for value in rows[0].values()):
        import pyarrow as pa
        from pyarrow import parquet

        path = stem.with_suffix(".parquet")
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path = stem.with_suffix(".jsonl")
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _publish(staged: Path, target: Path) -> None:
    """Rename the finished folder to its place; who comes second takes what is there."""
    try:
        staged.rename(target)
    except OSError:
        if not target.is_dir():
            raise
