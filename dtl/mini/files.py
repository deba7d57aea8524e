"""The files of the miniature bases and data: shipped, or generated on first use."""

from importlib import import_module
from pathlib import Path
from typing import Any

from dtl.core.errors import DtlError, near

PREFIX = "mini:"
BASES = ("speech", "text", "vision")
SPLITS = {
    "accents": ("train", "heldout"),
    "digits": ("train", "heldout"),
    "glyphs": ("train", "heldout"),
    "graphs": ("train", "heldout"),
    "prose": ("train", "heldout"),
    "sentiment": ("train", "heldout", "unlabeled"),
    "spoken": ("train", "heldout"),
}
SHIPPED_DATA = ("accents", "spoken")  # data that is shipped and not generated


def base_folder(name: str) -> Path:
    """Return the folder of a shipped base: config, weights and tokenizer. Raises DtlError for an
    unknown name."""
    if name not in BASES:
        raise _unknown_name(f"mini:{name}", "base", name, BASES)
    return Path(__file__).parent / name


def data_file(name: str, split: str) -> Path:
    """Return the file of `mini:NAME/SPLIT`: JSONL, or Parquet for audio and images.

    It is shipped, or generated on first use in the cache folder. Raises DtlError for an unknown
    name or split.
    """
    if name not in SPLITS:
        raise _unknown_name(f"mini:{name}/{split}", "data set", name, SPLITS)
    if split not in SPLITS[name]:
        raise _unknown_name(f"mini:{name}/{split}", "split", split, SPLITS[name])
    if name in SHIPPED_DATA:
        return Path(__file__).parent / "clips" / f"{name}-{split}.parquet"
    from dtl.mini import cache

    generator = import_module(f"dtl.mini.{name}")
    folder = cache.ensure_generated(
        name, splits=SPLITS[name], generate=generator.generate, packages=generator.PACKAGES
    )
    return next(folder.glob(f"{split}.*"))


def load_rows(name: str, split: str) -> list[dict[str, Any]]:
    """Return the rows of `mini:NAME/SPLIT`. They depend only on the versions of the installed
    packages."""
    import json

    path = data_file(name, split)
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return list(parquet.read_table(path).to_pylist())
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _unknown_name(location: str, kind: str, name: str, known: Any) -> DtlError:
    hint = near(name, known)
    names = f"use one of {', '.join(known)}"
    return DtlError.of(
        location,
        f"no such mini {kind}: '{name}'",
        f"{hint} ({names})" if hint else names,
    )
