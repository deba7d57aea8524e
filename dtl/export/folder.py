"""The folder of an export: its name while it is written, its metadata and its model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.config.schema import Model
from dtl.core.checksums import seal_folder
from dtl.core.files import write_json, write_text
from dtl.models.base_adapters import EXPORT_METADATA
from dtl.models.vocabulary import changes_vocabulary

if TYPE_CHECKING:
    from dtl.config.schema import RunConfig
    from dtl.tasks.base import DatasetStats

MODEL_CARD = "README.md"


def staging_folder(folder: Path) -> Path:
    """Return where an export is written before it is renamed to `folder`."""
    return folder.with_name(f".{folder.name}-staged")


def build_export_metadata(
    config: RunConfig, dataset_stats: DatasetStats, *, kind: str, dtype: str, target: Path
) -> dict[str, Any]:
    """Return what dtl needs to load an export of this run.

    `kind`: adapter or model. `dtype`: of the run's weights. `target`: the folder of the export.
    `base_from_export`: the way to a base in a folder, by which it is found when both have moved.
    """
    base = describe_base_model(config.model, dtype=dtype)
    is_folder = Path(base["path"]).is_absolute()
    way = {"base_from_export": os.path.relpath(base["path"], target.absolute())}
    return {
        "kind": kind,
        "task": config.task.training_options,
        "dataset_stats": dataset_stats,
        "columns": config.data.columns,
        "base": base,
        **(way if is_folder else {}),
    }


def describe_base_model(model: Model, *, dtype: str) -> dict[str, Any]:
    """Return the config section `model` that loads the base as the run has loaded it.

    `dtype`: of the weights from which a quantized base is made.
    """
    base = model.model_dump(mode="json", include={"path", "revision", "adapters"})
    base["path"] = _make_absolute(model.path)
    base["adapters"] = [_make_absolute(path) for path in model.adapters]
    if changes_vocabulary(model):
        keys = {"add_tokens", "add_special_tokens", "resize_embeddings"}
        base |= model.model_dump(mode="json", include=keys)
    if model.quantize is not None:
        base |= {
            "dtype": dtype,
            "quantize": model.quantize,
            "double_quantize": model.double_quantize,
        }
    return base


def _make_absolute(path: str) -> str:
    """Return the absolute path of a folder; the name of a model of the Hub or of dtl unchanged."""
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() else path


def write_card_and_metadata(folder: Path, *, card: str, metadata: dict[str, Any] | None) -> None:
    """Write README.md and dtl.json. `metadata` None: there is none, or it is written already."""
    write_text(folder / MODEL_CARD, card, sync=True)
    if metadata is not None:
        write_json(folder / EXPORT_METADATA, metadata)


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Write texts to files by their relative paths."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text, sync=True)


def seal_export(folder: Path) -> None:
    """Make every file readable as the umask allows, write checksums.json, and wait until all are
    on disk. The model card may be edited later."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):  # safetensors creates files that only their owner can read
        if file.is_file():
            file.chmod(0o666 & ~mask)
    seal_folder(folder, unchecked=[MODEL_CARD])
