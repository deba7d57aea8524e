"""Load an export: its model, its processor and its task."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.config import registry
from dtl.config.schema import Model
from dtl.config.schema.plugins import TaskConfig
from dtl.core.errors import DtlError
from dtl.core.files import read_json
from dtl.models.base_adapters import EXPORT_METADATA
from dtl.models.load import load_pretrained, silence_transformers
from dtl.models.peft.base import ADAPTER_WEIGHTS
from dtl.models.peft.save_load import load_adapter, verify_export
from dtl.models.peft.virtual_tokens import count_virtual_tokens, reserve_virtual_tokens
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import get_pad_token_id, load_exported_processor, set_pad_token_id
from dtl.models.quantization import quantize
from dtl.models.router_outputs import disable_router_outputs
from dtl.run.folder import RunFolder
from dtl.tasks.base import DatasetStats, Task

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ExportedModel:
    """An export on the CPU, ready for inference.

    `columns`: name of a column in the training data, by dtl's name of it. `model_config`: the
    config of the base.
    """

    task: Task
    dataset_stats: DatasetStats
    columns: dict[str, str]
    model: nn.Module
    processor: Any
    model_config: Any


def load_export(path: Path, *, for_task: bool = True) -> ExportedModel:
    """Load an export, or that of a finished run, on the CPU in fp32.

    A base that was quantized for the run is quantized again. Code in a model folder is never run.
    `for_task`: whether the task will predict or score with it. Raises DtlError.
    """
    folder = find_export_folder(path)
    verify_export(folder)
    metadata = _read_metadata(folder)
    task, is_adapter = _load_task(metadata), metadata["kind"] == "adapter"
    if task.compares_with_base and not is_adapter and for_task:
        raise DtlError.of(
            str(folder),
            f"task {metadata['task']['name']} needs the base, which a merged model does not have",
            "use the export of the adapter",
        )
    source = _find_base(metadata, folder) if is_adapter else Model(path=str(folder))
    model_config = load_model_config(source)
    processor, dataset_stats = task.adapt_processor(
        load_exported_processor(folder, task.processor_kind), metadata["dataset_stats"]
    )
    head = HeadConfig(task.auto_class, task.head_config(dataset_stats) if is_adapter else {})
    with silence_transformers():  # it warns of a missing head, which the adapter brings
        loaded = load_pretrained(
            source, head=head, random_init=False, seed=0, dtype=source.dtype or "fp32"
        )
        quantize.prepare_saved_model(loaded.model)
        model = _load_adapter(loaded.model, folder) if is_adapter else loaded.model
    if (pad_token_id := get_pad_token_id(processor)) is not None:
        set_pad_token_id(loaded.model.config, pad_token_id)
    disable_router_outputs(loaded.model)
    task.configure_model(loaded.model, processor=processor)
    return ExportedModel(
        task=task,
        dataset_stats=dataset_stats,
        columns=dict(metadata["columns"]),
        model=model.eval(),
        processor=processor,
        model_config=reserve_virtual_tokens(model_config, count_virtual_tokens(model)),
    )


def find_export_folder(path: Path) -> Path:
    """Return the export that a path names: the folder itself, or that of a finished run.

    Raises DtlError.
    """
    if (path / EXPORT_METADATA).is_file():
        return path
    run = RunFolder(path)
    if run.state == "interrupted":
        raise DtlError.of(
            str(path), "the run is not finished", f"finish it with `dtl resume {path}`"
        )
    if run.state == "finished" and (run.export / EXPORT_METADATA).is_file():
        return run.export
    raise DtlError.of(
        str(path),
        f"there is no export with a file {EXPORT_METADATA}",
        "use a run folder or its export",
    )


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / EXPORT_METADATA
    try:
        return dict(read_json(file))
    except (DtlError, TypeError, ValueError) as fault:
        raise DtlError.of(str(file), "the file cannot be read", "export the run again") from fault


def _find_base(metadata: dict[str, Any], folder: Path) -> Model:
    """Return the base of an adapter: where it was, or as far from the export as it was.

    Raises DtlError where it is gone.
    """
    base = Model(**metadata["base"])
    if not Path(base.path).is_absolute() or Path(base.path).is_dir():
        return base
    moved = os.path.normpath(folder.absolute() / metadata.get("base_from_export", ""))
    if Path(moved, "config.json").is_file() and "base_from_export" in metadata:
        return base.model_copy(update={"path": moved})
    raise DtlError.of(
        str(folder),
        f"the base that this adapter was trained over is gone: {base.path}",
        "put it back there, or a link to the folder that has it now",
    )


def _load_task(metadata: dict[str, Any]) -> Task:
    config = TaskConfig.model_validate(metadata["task"])
    task: Task = registry.load("tasks", config.name).Plugin(config.options)
    return task


def _load_adapter(base: nn.Module, folder: Path) -> nn.Module:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise DtlError.of(str(folder), f"there is no {ADAPTER_WEIGHTS}", "export the run again")
    return load_adapter(base, folder)
