"""Small bases and small data that dtl brings or makes itself, so that nothing is downloaded."""

from importlib import import_module
from pathlib import Path
from typing import Any

from dtl.core.errors import DtlError, near

PREFIX = "mini:"
BASES = ("speech", "text", "vision")
DATA = {
    "accents": ("train", "heldout"),
    "digits": ("train", "heldout"),
    "glyphs": ("train", "heldout"),
    "graphs": ("train", "heldout"),
    "prose": ("train", "heldout"),
    "sentiment": ("train", "heldout", "unlabelled"),
    "spoken": ("train", "heldout"),
}
CLIPS = ("accents", "spoken")  # were made once, and are shipped


def path(name: str) -> Path:
    """The folder of a base that comes with dtl: config, weights and tokenizer."""
    if name not in BASES:
        raise _unknown(f"mini:{name}", "base", name, BASES)
    return Path(__file__).parent / name


def file(name: str, split: str) -> Path:
    """The file of `mini:NAME/SPLIT`: JSONL, or Parquet where rows hold sounds or pictures. Made on
    first use and kept in the cache folder, or shipped."""
    if name not in DATA:
        raise _unknown(f"mini:{name}/{split}", "data set", name, DATA)
    if split not in DATA[name]:
        raise _unknown(f"mini:{name}/{split}", "split", split, DATA[name])
    if name in CLIPS:
        return Path(__file__).parent / "clips" / f"{name}-{split}.parquet"
    from dtl.mini import generated as cache

    maker = import_module(f"dtl.mini.{name}")
    home = cache.kept(name, splits=DATA[name], make=maker.make, packages=maker.PACKAGES)
    return next(home.glob(f"{split}.*"))


def rows(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of `mini:NAME/SPLIT`, always the same for the same installed packages."""
    import json

    path = file(name, split)
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return list(parquet.read_table(path).to_pylist())
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _unknown(place: str, kind: str, name: str, known: Any) -> DtlError:
    hint = near(name, known)
    there_are = f"there are: {', '.join(known)}"
    return DtlError.of(
        place,
        f"no such mini {kind}: '{name}'",
        f"{hint} ({there_are})" if hint else there_are,
    )
