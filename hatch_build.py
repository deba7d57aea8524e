"""Puts the recipes, launch files and cluster files into the wheel, where an installed dtl finds
them. An editable install reads them from the checkout."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedFiles(BuildHookInterface):
    """Adds the folders to a real wheel, under dtl/_shipped/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        for name in ("configs", "launch", "slurm"):
            if (Path(self.root) / name).is_dir():
                build_data["force_include"][name] = f"dtl/_shipped/{name}"
