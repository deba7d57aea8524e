"""Find the folder or hub id of a pretrained model."""

from __future__ import annotations

from pathlib import Path

from dtl import mini
from dtl.config.schema import Model
from dtl.core.errors import DtlError, near
from dtl.core.hub import disable_unreachable_hub
from dtl.core.paths import find_obstacle
from dtl.models.trust import LOCATION


def locate_model(model: Model) -> str:
    """Return the folder or hub id that transformers opens. Raises DtlError for a missing folder."""
    if model.path.startswith("mini:"):
        return str(mini.base_folder(model.path.removeprefix("mini:")))
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DtlError.of(
                LOCATION,
                f"{folder} has no config.json",
                "use a folder that save_pretrained wrote",
            )
        return str(folder)
    problem = find_obstacle(folder)
    if problem is None and folder.is_file():
        problem = f"{folder} is a file, not a folder"
    if problem is not None:
        raise DtlError.of(LOCATION, problem, "use a model folder, a hub id, or mini:text")
    has_parent = folder.parent.is_dir() and str(folder.parent) != "."
    if model.path.startswith((".", "/", "~")) or model.path.count("/") > 1 or has_parent:
        siblings = [entry.name for entry in folder.parent.iterdir()] if has_parent else []
        raise DtlError.of(
            LOCATION,
            f"there is no folder {folder}",
            near(folder.name, siblings) or "use a model folder, a hub id, or mini:text",
        )
    disable_unreachable_hub()
    return model.path
