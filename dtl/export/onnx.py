"""A model as an ONNX graph, by torch's exporter."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dtl.core.errors import DtlError, RunFailed
from dtl.export.verify_process import ONNX_FILE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.export.verify import ForwardInputs

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Raise DtlError where a package is not installed."""
    lacking = [name for name in PACKAGES if find_spec(name) is None]
    if lacking:
        raise DtlError.of("--format", f"onnx needs {', '.join(lacking)}", "pip install 'dtl[onnx]'")


class _LogitsModule(torch.nn.Module):
    """From tensors in order to logits; `settings`: what else the model is called with."""

    def __init__(self, model: nn.Module, names: list[str], settings: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.settings = model, names, settings

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        logits: Tensor = self.model(**given, **self.settings).logits
        return logits


def write_onnx(model: nn.Module, asked: list[ForwardInputs], folder: Path) -> None:
    """model.onnx and the model's config. Raises RunFailed where torch cannot trace the model."""
    folder.mkdir()
    example = max(asked, key=lambda question: sum(map(_numel, question.values())))
    tensors = {name: value for name, value in example.items() if isinstance(value, torch.Tensor)}
    settings = {name: value for name, value in example.items() if name not in tensors}
    # Two rows: an axis of one would be taken for a fixed one.
    twice = {name: torch.cat([value, value]) for name, value in tensors.items()}
    axes = tuple(_dynamic_axes([question[name] for question in asked]) for name in twice)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _LogitsModule(model, list(twice), settings),
                tuple(twice.values()),
                folder / ONNX_FILE,
                input_names=list(twice),
                output_names=["logits"],
                dynamic_shapes={"tensors": axes},
                dynamo=True,
                verbose=False,
            )
    except Exception as fault:  # torch raises of many kinds, its own and those of the model's code
        reason = " ".join(str(fault.__cause__ or fault).split())[:300]
        raise RunFailed.of(
            "--format",
            f"torch cannot write a {type(model).__name__} as an ONNX graph ({reason})",
            "take safetensors",
        ) from fault
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]


def _dynamic_axes(values: list[Tensor]) -> dict[int, Any]:
    """Axes that may have any size: the rows, the length of a matrix, and what is seen to vary."""
    first = values[0]
    varying = {
        axis for axis in range(first.dim()) if len({value.shape[axis] for value in values}) > 1
    }
    lengths = {1} if first.dim() == 2 else set()
    return {axis: torch.export.Dim.DYNAMIC for axis in sorted({0} | lengths | varying)}


def _numel(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 0
