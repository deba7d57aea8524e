"""The plugin registry: each file in tasks/, strategies/ and backends/ is one plugin."""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from dtl.core.errors import DtlError, near, shorten_message

Folder = Literal["tasks", "strategies", "backends"]
FOLDERS: tuple[Folder, ...] = ("tasks", "strategies", "backends")
KINDS = {"tasks": "task", "strategies": "strategy", "backends": "backend"}
PACKAGE = Path(__file__).parents[1]


@cache
def list_names(folder: str) -> tuple[str, ...]:
    """Return the names of the plugins in a folder, sorted: those of its files without base.py."""
    files = (PACKAGE / folder).glob("*.py")
    return tuple(
        sorted(file.stem for file in files if not file.stem.startswith("_") and file.stem != "base")
    )


def load(folder: str, name: str) -> ModuleType:
    """Return the plugin's module. Raises DtlError if the folder has no such plugin."""
    if name not in list_names(folder):
        problem, fix = describe_unknown(folder, name)
        raise DtlError.of(KINDS[folder], problem, fix)
    return import_module(f"dtl.{folder}.{name}")


def load_options(folder: str, name: str) -> Any:
    """Return the record class of the plugin's options. Raises DtlError for an unknown plugin."""
    return load(folder, name).Options


def read_summary(folder: str, name: str) -> str:
    """Return the first line of the plugin's docstring, without importing the plugin."""
    source = (PACKAGE / folder / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def describe_unknown(folder: str, name: str) -> tuple[str, str]:
    """Return problem and fix for a name that the folder does not have."""
    known = list_names(folder)
    choices = f"choose one of: {', '.join(known)}" if known else "none is installed"
    hint, shown = near(name, known), shorten_message(name, characters=60)
    return f"no {KINDS[folder]} is named '{shown}'", f"{hint} ({choices})" if hint else choices
