"""An export, opened to be used: its model, what reads its input, and its task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.config import registry
from dtl.config.schema import Model
from dtl.config.schema.plugins import TaskConfig
from dtl.core.errors import DtlError
from dtl.models.base_adapters import EXPORT_METADATA
from dtl.models.load import load_pretrained, silence_transformers
from dtl.models.peft.base import ADAPTER_WEIGHTS
from dtl.models.peft.save_load import load_adapter
from dtl.models.peft.virtual_tokens import count_virtual_tokens, reserve_virtual_tokens
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import get_pad_token_id, load_exported_processor
from dtl.models.quantization import quantize
from dtl.run.folder import RunFolder
from dtl.tasks.base import DatasetStats, Task

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ExportedModel:
    """`columns`: dtl's name of a column -> its name in the data that it was trained on."""

    task: Task
    dataset_stats: DatasetStats
    columns: dict[str, str]
    model: nn.Module
    processor: Any
    model_config: Any


def find_export_folder(path: Path) -> Path:
    """The export that a path names: itself, or that of a finished run. Raises DtlError."""
    if (path / EXPORT_METADATA).is_file():
        return path
    run = RunFolder(path)
    if run.state == "interrupted":
        raise DtlError.of(str(path), "the run is not finished", f"`dtl resume {path}` finishes it")
    if run.state == "finished" and (run.export / EXPORT_METADATA).is_file():
        return run.export
    raise DtlError.of(
        str(path),
        f"there is no export with a {EXPORT_METADATA} in it",
        "name a run folder, or its export",
    )


def load_export(path: Path, *, for_task: bool = True) -> ExportedModel:
    """Load it on the CPU, in fp32, on a base that is quantized as it was for the run. Code that a
    model brings is never run. `asks`: whether its task will be asked to predict or to score. Raises
    DtlError."""
    folder = find_export_folder(path)
    note = _read_metadata(folder)
    choice = TaskConfig.model_validate(note["task"])
    task: Task = registry.load("tasks", choice.name).Plugin(choice.options)
    if task.compares_with_base and note["kind"] != "adapter" and for_task:
        raise DtlError.of(
            str(folder),
            f"task {choice.name} compares with the base, which a merged model no longer has",
            "name the export of the adapter",
        )
    dataset_stats = note["dataset_stats"]
    adapter = note["kind"] == "adapter"
    source = Model(**note["base"]) if adapter else Model(path=str(folder))
    settings = load_model_config(source)
    processor, dataset_stats = task.adapt_processor(
        load_exported_processor(folder, task.processor_kind), dataset_stats
    )
    with silence_transformers():  # the head that the base lacks is in the adapter
        loaded = load_pretrained(
            source,
            head=HeadConfig(task.auto_class, task.head_config(dataset_stats) if adapter else {}),
            random_init=False,
            seed=0,
            dtype=source.dtype or "fp32",
        )
        quantize.prepare_saved_model(loaded.model)
        model = _load_adapter(loaded.model, folder) if adapter else loaded.model
    if (padding := get_pad_token_id(processor)) is not None:
        loaded.model.config.pad_token_id = padding  # type: ignore[union-attr]
    task.configure_model(loaded.model, processor=processor)
    settings = reserve_virtual_tokens(settings, count_virtual_tokens(model))
    return ExportedModel(
        task, dataset_stats, dict(note["columns"]), model.eval(), processor, settings
    )


def _load_adapter(base: nn.Module, folder: Path) -> nn.Module:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise DtlError.of(str(folder), f"there is no {ADAPTER_WEIGHTS}", "export the run again")
    return load_adapter(base, folder)


def _read_metadata(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / EXPORT_METADATA).read_text(encoding="utf-8")))
    except ValueError as fault:
        raise DtlError.of(
            str(folder / EXPORT_METADATA), f"cannot be read ({fault})", "export the run again"
        ) from fault
