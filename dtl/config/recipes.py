"""The recipes: configs that are shipped with dtl and run without changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from dtl.core.errors import DtlError, near
from dtl.core.package_files import find_package_folder


@dataclass(frozen=True)
class Recipe:
    """A shipped config: its name, such as quickstart/text, and its first comment as summary."""

    name: str
    path: Path
    summary: str


def list_recipes() -> tuple[Recipe, ...]:
    """Return every shipped config, sorted by name."""
    return tuple(_read_recipes(find_package_folder("configs")))


def copy_recipe(name: str, *, to: Path) -> Path:
    """Copy a recipe to a file or into a folder, and return the new file.

    Raises DtlError if there is no such recipe, or if the file exists already.
    """
    by_name = {recipe.name: recipe for recipe in list_recipes()}
    if name not in by_name:
        fix = near(name, by_name) or "`dtl recipes list` shows all of them"
        raise DtlError.of("recipes", f"there is no recipe '{name}'", fix)
    source = by_name[name].path
    copy = to / source.name if to.is_dir() else to
    if not copy.parent.is_dir():
        raise DtlError.of(str(copy), f"there is no folder {copy.parent}", "create the folder first")
    try:
        with copy.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        fix = "use another file, or remove this one"
        raise DtlError.of(str(copy), "the file exists already", fix) from None
    except OSError as error:
        problem = f"the file cannot be written ({error.strerror})"
        raise DtlError.of(str(copy), problem, "choose a folder that you may write to") from None
    return copy


def _read_recipes(folder: Path) -> Iterator[Recipe]:
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        yield Recipe(name, path, _summary(path.read_text(encoding="utf-8")))


def _summary(text: str) -> str:
    """Return the first sentence of the comment at the top of the file."""
    lines = takewhile(lambda line: line.startswith("# "), text.splitlines())
    words = " ".join(line.removeprefix("# ").strip() for line in lines)
    sentence, stop, _ = words.partition(". ")
    return sentence + stop.strip()
