"""The adapters that a config merges into its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.peft.save_load import check_adapter_folder

if TYPE_CHECKING:
    pass


EXPORT_METADATA = "dtl.json"  # what dtl must know of an export


def resolve_adapters(model: Model) -> list[Path]:
    """Where the adapters lie that are worked into the base. Raises DtlError where one is missing,
    or was learnt over another that does not come before it."""
    folders = [Path(path).expanduser() for path in model.adapters]
    for place, folder in enumerate(folders):
        check_adapter_folder(folder, "model.adapters")
        below = read_base_adapters(folder)
        if below != [earlier.resolve() for earlier in folders[:place]] and (below or place == 0):
            raise DtlError.of(
                "model.adapters",
                f"{folder} was learnt over other adapters",
                f"name them before it: [{', '.join(map(str, [*below, folder]))}]",
            )
    return folders


def read_base_adapters(folder: Path) -> list[Path]:
    """The adapters that another one was learnt over, as dtl has noted; none where it has not."""
    note = folder / EXPORT_METADATA
    base = json.loads(note.read_text(encoding="utf-8"))["base"] if note.is_file() else {}
    return [Path(path).expanduser().resolve() for path in base.get("adapters", ())]
