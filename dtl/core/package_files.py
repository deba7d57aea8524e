"""Where the files that travel with dtl lie: configs, launch and slurm."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).parents[1]


def shipped(folder: Literal["configs", "launch", "slurm"]) -> Path:
    """The folder in the installed package, or in the checkout that the package runs from."""
    installed = _PACKAGE / "_shipped" / folder
    return installed if installed.is_dir() else _PACKAGE.parent / folder
