"""The tensors of a checkpoint: `weight/NAME`, `buffer/NAME`, and optimizer state by its kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import safe_open
from safetensors.torch import save_file

from dtl.core.errors import RunFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.engine.base import Engine


class WeightSource(Protocol):
    """Trainable weights (`weight/NAME`) and changed buffers (`buffer/NAME`) by name."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> Tensor: ...


class CheckpointTensors(WeightSource):
    """The tensors of a checkpoint by name, over all of its files."""

    def __init__(self, path: Path) -> None:
        self._file_by_name: dict[str, Any] = {}
        for part in sorted(path.glob("part-*.safetensors")):
            file = safe_open(str(part), framework="pt")
            self._file_by_name |= dict.fromkeys(file.keys(), file)

    def optimizer_state(self, name: str) -> dict[str, Tensor]:
        """Return the optimizer state of a parameter; empty where it never had a gradient."""
        keys = [key.partition("/") for key in self._file_by_name]
        kinds = [kind for kind, _, parameter in keys if parameter == name]
        return {kind: self.read(f"{kind}/{name}") for kind in kinds if kind != "weight"}

    def __contains__(self, name: str) -> bool:
        return name in self._file_by_name

    @property
    def weight_names(self) -> set[str]:
        """The names of the parameters."""
        keys = (key.partition("/") for key in self._file_by_name)
        return {name for kind, _, name in keys if kind == "weight"}

    def read(self, name: str) -> Tensor:
        """Return a tensor on the CPU."""
        tensor: Tensor = self._file_by_name[name].get_tensor(name)
        return tensor


def load_weights(path: Path, engine: Engine, model: nn.Module) -> None:
    """Copy the trained weights and the changed buffers into a model that is not yet prepared."""
    tensors = CheckpointTensors(path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or f"weight/{name}" in tensors:
            engine.write_full_tensor(parameter, tensors.read(f"weight/{name}"))
    restore_buffers(tensors, model)


def restore_weights(source: WeightSource, engine: Engine, *, allow_missing: bool = False) -> None:
    """Write trainable weights into a prepared engine. `allow_missing`: skip those that the source
    does not have.

    Under ZeRO the model has them only after the next step: take a step that changes nothing, then
    restore the buffers and the optimizer state.
    """
    for name, parameter in engine.trainable_parameters():
        if allow_missing and f"weight/{name}" not in source:
            continue
        engine.set_weight(parameter, source.read(f"weight/{name}"))


def restore_buffers(source: WeightSource, model: nn.Module) -> None:
    """Copy the changed buffers into a model."""
    for name, buffer in model.named_buffers():
        if f"buffer/{name}" in source:
            buffer.copy_(source.read(f"buffer/{name}"))


def restore_optimizer_state(path: Path, engine: Engine, *, updates: int) -> None:
    """Write the optimizer state into a prepared engine whose optimizer has created it.

    `updates`: steps of the phase whose update was applied.
    """
    tensors = CheckpointTensors(path)
    for name, parameter in engine.trainable_parameters():
        engine.set_optimizer_state(parameter, tensors.optimizer_state(name), step=updates)


def tensors_of_rank(engine: Engine) -> dict[str, Tensor]:
    """Return this rank's share of a checkpoint. Gathering a tensor is a collective, so every rank
    gathers every tensor."""
    share: dict[str, Tensor] = {}
    sizes = [0] * engine.world_size
    for name, parameter in engine.parameters_to_save():
        value = engine.full_tensor(parameter)
        state = engine.optimizer_state(parameter) if parameter.requires_grad else {}
        smallest = sizes.index(min(sizes))
        sizes[smallest] += value.numel()
        if smallest == engine.rank:
            share[f"weight/{name}"] = value.contiguous()
            share |= {f"{kind}/{name}": tensor.contiguous() for kind, tensor in state.items()}
    if engine.is_main_process:
        share |= {f"buffer/{name}": value for name, value in engine.changed_buffers().items()}
    return share


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, read it back and compare it. Raises RunFailed."""
    save_file(tensors, str(file))
    with safe_open(str(file), framework="pt") as reopened:
        wrong = [
            name for name, value in tensors.items() if not _is_bit_equal(reopened, name, value)
        ]
    if wrong:
        raise RunFailed.of(
            str(file),
            f"{len(wrong)} of {len(tensors)} tensors read back differ (the first is {wrong[0]})",
            "check the disk; the older checkpoints are unchanged",
        )


def _is_bit_equal(reopened: Any, name: str, value: Tensor) -> bool:
    """Compare bit by bit, so that NaN equals itself."""
    import torch

    stored: Tensor = reopened.get_tensor(name)
    bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (stored, value)]
    return stored.dtype == value.dtype and torch.equal(*bits)
