"""The adapters that a config merges into its base."""

from __future__ import annotations

import json
from pathlib import Path

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.peft.save_load import check_adapter_folder

EXPORT_METADATA = "dtl.json"  # in an export: what dtl needs to load it


def resolve_adapters(model: Model) -> list[Path]:
    """Return the folders of the adapters that are merged into the base, in this order.

    Raises DtlError if a folder has no adapter, or if an adapter was trained over others that are
    not named before it.
    """
    folders = [Path(path).expanduser() for path in model.adapters]
    for index, folder in enumerate(folders):
        check_adapter_folder(folder, "model.adapters")
        required = read_base_adapters(folder)
        earlier = [other.resolve() for other in folders[:index]]
        if required != earlier and (required or index == 0):
            raise DtlError.of(
                "model.adapters",
                f"{folder} was trained over other adapters",
                f"list them before it: [{', '.join(map(str, [*required, folder]))}]",
            )
    return folders


def read_base_adapters(folder: Path) -> list[Path]:
    """Return the adapters over which an adapter was trained, if dtl's metadata names any."""
    file = folder / EXPORT_METADATA
    base = json.loads(file.read_text(encoding="utf-8"))["base"] if file.is_file() else {}
    return [Path(path).expanduser().resolve() for path in base.get("adapters", ())]
