"""A folder is the register: one file in tasks/, strategies/ or backends/ is one plugin."""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from dtl.core.errors import DtlError, near

if TYPE_CHECKING:
    from dtl.config.record import Record

Folder = Literal["tasks", "strategies", "backends"]
FOLDERS: tuple[Folder, ...] = ("tasks", "strategies", "backends")
_ONE = {"tasks": "task", "strategies": "strategy", "backends": "backend"}
_PACKAGE = Path(__file__).parents[1]


@cache
def names(folder: str) -> tuple[str, ...]:
    """The plugins in a folder, sorted: the file's name is the plugin's name."""
    files = (_PACKAGE / folder).glob("*.py")
    return tuple(
        sorted(file.stem for file in files if not file.stem.startswith("_") and file.stem != "base")
    )


def load(folder: str, name: str) -> ModuleType:
    """The plugin's module. Raises DtlError when the folder has no such plugin."""
    if name not in names(folder):
        problem, fix = unknown(folder, name)
        raise DtlError.of(_ONE[folder], problem, fix)
    return import_module(f"dtl.{folder}.{name}")


def options(folder: str, name: str) -> type[Record]:
    """The record of the plugin's options. Raises DtlError when there is no such plugin."""
    found: type[Record] = load(folder, name).Options
    return found


def summary(folder: str, name: str) -> str:
    """The first line of the plugin's docstring, read without importing it."""
    source = (_PACKAGE / folder / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def unknown(folder: str, name: str) -> tuple[str, str]:
    """Problem and fix for a name that the folder does not have."""
    known = names(folder)
    choose = f"choose one of: {', '.join(known)}" if known else "none is installed"
    hint = near(name, known)
    return f"no {_ONE[folder]} is named '{name}'", f"{hint} ({choose})" if hint else choose
