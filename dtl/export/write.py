"""What a run leaves to others: an adapter or a model that PEFT and transformers open."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dtl.config.schema import Model
from dtl.core.errors import RunFailed
from dtl.core.files import sync_to_disk
from dtl.models.base_adapters import EXPORT_METADATA
from dtl.models.dtypes import torch_dtype
from dtl.models.peft.save_load import build_adapter_files, load_adapter_tensors
from dtl.train.checkpoint_tensors import WeightSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.config.schema import RunConfig
    from dtl.engine.base import Engine
    from dtl.tasks.base import DatasetStats

SHARD_SIZE = "5GB"  # of one weight file, at most


def describe_base_model(model: Model, *, dtype: str) -> dict[str, Any]:
    """What to load the base from, as it was loaded for the run: a quantized one is made of weights
    in `dtype`."""
    base = model.model_dump(mode="json", include={"path", "revision", "adapters"})
    if model.quantize is not None:
        base |= {
            "dtype": dtype,
            "quantize": model.quantize,
            "double_quantize": model.double_quantize,
        }
    return base


def export(
    engine: Engine,
    folder: Path,
    *,
    processor: Any,
    kind: str,
    dtype: str,
    card: str,
    note: dict[str, Any],
    learnt: WeightSource | None,
    pause: Callable[[str], None],
) -> None:
    """Write, reopen, compare, rename. Every rank must call; rank 0 writes.

    `kind`: adapter (fp32) or model (in `dtype`). `note`: what dtl itself must know to open it
    again. `learnt`: a checkpoint, or an average, whose learning weights are taken instead of the
    present ones. `pause` is called on all ranks where the run may be stopped.
    Raises RunFailed when the reopened files are not what was trained.
    """
    pause("export, gathering the weights")
    state = _gather_state_dict(engine, learnt, learning_only=kind == "adapter")
    pause("export, writing")
    staged = staging_folder(folder)
    if engine.is_main_process:
        shutil.rmtree(staged, ignore_errors=True)
        with engine.init_context(False):
            if kind == "adapter":
                write_adapter(engine.unwrapped_model, state, staged, dtype=torch.float32)
            else:
                write_model(engine.unwrapped_model, state, staged, dtype=torch_dtype(dtype))
        processor.save_pretrained(staged)
        write_card_and_metadata(staged, card=card, note=note)
        sync_folder(staged)
    pause("export, giving it its name")
    if engine.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    engine.barrier()


def build_export_metadata(
    config: RunConfig, dataset_stats: DatasetStats, *, kind: str, dtype: str
) -> dict[str, Any]:
    """What dtl must know to open an export of this run again; `dtype`: of the run's weights."""
    return {
        "kind": kind,
        "task": config.task.training_options,
        "dataset_stats": dataset_stats,
        "columns": config.data.columns,
        "base": describe_base_model(config.model, dtype=dtype),
    }


def staging_folder(folder: Path) -> Path:
    """Where an export is written before it takes its name."""
    return folder.with_name(f".{folder.name}-staged")


def write_card_and_metadata(folder: Path, *, card: str, note: dict[str, Any] | None) -> None:
    """The model card, and what dtl itself must know; `note` None: dtl does not open it again."""
    (folder / "README.md").write_text(card, encoding="utf-8")
    if note is not None:
        (folder / EXPORT_METADATA).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Every file open to all who may read the folder, and written out."""
    _make_readable(folder)
    for file in folder.iterdir():
        sync_to_disk(file)
    sync_to_disk(folder)


def _make_readable(folder: Path) -> None:
    """safetensors keeps its files to their owner; an export is for all who may read the folder."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)


def _gather_state_dict(
    engine: Engine, learnt: WeightSource | None, *, learning_only: bool
) -> dict[str, Tensor]:
    """Whole tensors on rank 0; the others take part and keep nothing."""
    state: dict[str, Tensor] = {}
    for name, parameter in engine.unwrapped_model.named_parameters():
        if parameter.requires_grad and learnt is not None:
            if engine.is_main_process:
                state[name] = learnt.read(f"weight/{name}")
        elif parameter.requires_grad or not learning_only:
            value = engine.full_tensor(parameter)
            if engine.is_main_process:
                state[name] = value
    if engine.is_main_process and not learning_only:
        persistent = set(engine.unwrapped_model.state_dict())
        for name, buffer in engine.unwrapped_model.named_buffers():
            if name in persistent:
                state[name] = buffer.detach().to("cpu", copy=True)
            if name in persistent and learnt is not None and f"buffer/{name}" in learnt:
                state[name] = learnt.read(f"buffer/{name}")
    return state


def local_state_dict(model: nn.Module, *, learning_only: bool) -> dict[str, Tensor]:
    """The same of a model that is whole in this process; nothing is copied."""
    state = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or not learning_only
    }
    persistent = set() if learning_only else set(model.state_dict())
    state |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return state


def write_adapter(
    model: nn.Module, state: dict[str, Tensor], folder: Path, *, dtype: torch.dtype
) -> None:
    """As PEFT opens it; read back and compared bit by bit."""
    adapter = build_adapter_files(model, _cast_floating(state, dtype))
    adapter.save(folder, base=model.get_base_model())  # type: ignore[operator]
    _check_bitwise_equal(adapter.tensors, load_adapter_tensors(folder).get, folder)


def write_model(
    model: nn.Module,
    state: dict[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype,
    shard_size: str = SHARD_SIZE,
) -> None:
    """As transformers opens it; read back and compared bit by bit."""
    whole = _cast_floating(state, dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder, state_dict=dict(whole), max_shard_size=shard_size)  # type: ignore[operator]
    reopened = type(model).from_pretrained(folder, dtype=dtype, use_safetensors=True)  # type: ignore[attr-defined]
    stored = {
        **dict(reopened.named_parameters(remove_duplicate=False)),
        **dict(reopened.named_buffers()),
    }
    _check_bitwise_equal(whole, stored.get, folder)


def _cast_floating(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in state.items()
    }


def _check_bitwise_equal(
    expected: dict[str, Tensor], reopened: Callable[[str], Tensor | None], folder: Path
) -> None:
    """Bitwise: a saved file is not called saved before it has been read back."""
    wrong = [
        name
        for name, value in expected.items()
        if (found := reopened(name)) is None or not torch.equal(found.detach(), value)
    ]
    if wrong or not expected:
        raise RunFailed.of(
            str(folder),
            f"{len(wrong)} of {len(expected)} tensors read back differ from the trained ones"
            + (f" (the first is {wrong[0]})" if wrong else ""),
            "the trained weights are in the run's newest checkpoint; check the disk",
        )
