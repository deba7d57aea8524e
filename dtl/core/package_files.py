"""The folders of files that are shipped with dtl: configs, launch and slurm."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).parents[1]


def find_package_folder(folder: Literal["configs", "launch", "slurm"]) -> Path:
    """Return the folder in the installed package, or in the checkout that the package runs from."""
    installed = PACKAGE / "_shipped" / folder
    return installed if installed.is_dir() else PACKAGE.parent / folder
