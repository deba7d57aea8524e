"""Write the weights of an export as PEFT and transformers load them, and read them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dtl.core.errors import RunFailed
from dtl.models.peft.save_load import build_adapter_files, load_adapter_tensors
from dtl.models.router_outputs import restore_router_outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.engine.base import Engine
    from dtl.train.checkpoint_tensors import WeightSource

SHARD_SIZE = "5GB"  # largest weight file


def gather_state_dict(
    engine: Engine, source: WeightSource | None, *, trainable_only: bool
) -> dict[str, Tensor]:
    """Return full tensors on the CPU by name, on rank 0; {} on the others. Every rank must call.

    `source`: a checkpoint or an average, whose trained weights replace those of the engine.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in engine.unwrapped_model.named_parameters():
        if parameter.requires_grad and source is not None:
            if engine.is_main_process:
                state[name] = source.read(f"weight/{name}")
        elif parameter.requires_grad or not trainable_only:
            tensor = engine.full_tensor(parameter)
            if engine.is_main_process:
                state[name] = tensor
    if engine.is_main_process and not trainable_only:
        persistent = set(engine.unwrapped_model.state_dict())
        for name, buffer in engine.unwrapped_model.named_buffers():
            if name in persistent:
                state[name] = buffer.detach().to("cpu", copy=True)
            if name in persistent and source is not None and f"buffer/{name}" in source:
                state[name] = source.read(f"buffer/{name}")
    return state


def local_state_dict(model: nn.Module, *, trainable_only: bool) -> dict[str, Tensor]:
    """Return the state dict of a model that is not partitioned. The tensors are not copied."""
    state = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or not trainable_only
    }
    persistent = set() if trainable_only else set(model.state_dict())
    state |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return state


def write_adapter(
    model: nn.Module, state: dict[str, Tensor], folder: Path, *, dtype: torch.dtype
) -> None:
    """Write the adapter as PEFT loads it, and how its model generates by default. Raises RunFailed
    if the files read back differ."""
    adapter = build_adapter_files(model, _cast_floating(state, dtype))
    base = model.get_base_model()  # type: ignore[operator]
    adapter.save(folder, base=base)
    if base.can_generate():
        base.generation_config.save_pretrained(folder)
    _check_bitwise_equal(adapter.tensors, load_adapter_tensors(folder).get, folder)


def write_model(
    model: nn.Module,
    state: dict[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype,
    shard_size: str = SHARD_SIZE,
) -> None:
    """Write the model as transformers loads it. Raises RunFailed if the files read back differ."""
    tensors = _cast_floating(state, dtype)
    restore_router_outputs(model)
    model.config.dtype = dtype
    model.save_pretrained(folder, state_dict=dict(tensors), max_shard_size=shard_size)  # type: ignore[operator]
    reopened, report = type(model).from_pretrained(  # type: ignore[attr-defined]
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    stored = {
        **dict(reopened.named_parameters(remove_duplicate=False)),
        **dict(reopened.named_buffers()),
    }
    trained = dict(model.named_parameters(remove_duplicate=False))  # perhaps without a pooler
    missing = set(report["missing_keys"]) & stored.keys() & trained.keys()
    _check_nothing_is_missing(missing, folder)
    _check_bitwise_equal(tensors, stored.get, folder)


def _check_nothing_is_missing(missing: set[str], folder: Path) -> None:
    """Raise RunFailed where transformers would draw a parameter at random: one that the model ties,
    and the config of the export does not."""
    if missing:
        raise RunFailed.of(
            str(folder),
            f"{len(missing)} tensors are missing in the export, such as {min(missing)}",
            "report the model's architecture; the trained weights are in the run's newest "
            "checkpoint",
        )


def _cast_floating(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def _check_bitwise_equal(
    expected: dict[str, Tensor], read_back: Callable[[str], Tensor | None], folder: Path
) -> None:
    """Raise RunFailed where a tensor that was read back differs in any bit, or is missing."""
    wrong = [
        name
        for name, tensor in expected.items()
        if (stored := read_back(name)) is None or not torch.equal(stored.detach(), tensor)
    ]
    if wrong or not expected:
        example = f", such as {wrong[0]}" if wrong else ""
        raise RunFailed.of(
            str(folder),
            f"{len(wrong)} of {len(expected)} tensors differ when they are read back{example}",
            "check the disk; the trained weights are in the run's newest checkpoint",
        )
