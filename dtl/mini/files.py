"""Small bases and small data that dtl brings or makes itself, so that nothing is downloaded."""

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
    "sentiment": ("train", "heldout", "unlabelled"),
    "spoken": ("train", "heldout"),
}
SHIPPED_DATA = ("accents", "spoken")  # were made once, and are shipped


def base_folder(name: str) -> Path:
    """The folder of a base that comes with dtl: config, weights and tokenizer."""
    if name not in BASES:
        raise _unknown_name(f"mini:{name}", "base", name, BASES)
    return Path(__file__).parent / name


def data_file(name: str, split: str) -> Path:
    """The file of `mini:NAME/SPLIT`: JSONL, or Parquet where rows hold sounds or pictures. Made on
    first use and kept in the cache folder, or shipped."""
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
    """The rows of `mini:NAME/SPLIT`, always the same for the same installed packages."""
    import json

    base_folder = data_file(name, split)
    if base_folder.suffix == ".parquet":
        from pyarrow import parquet

        return list(parquet.read_table(base_folder).to_pylist())
    with base_folder.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _unknown_name(location: str, kind: str, name: str, known: Any) -> DtlError:
    hint = near(name, known)
    there_are = f"there are: {', '.join(known)}"
    return DtlError.of(
        location,
        f"no such mini {kind}: '{name}'",
        f"{hint} ({there_are})" if hint else there_are,
    )
