"""Write a model as an ONNX graph, with torch's exporter."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dtl.core.errors import DtlError, RunFailed, shorten_message
from dtl.export.sample_inputs import ForwardInputs
from dtl.export.sample_logits import get_logits

if TYPE_CHECKING:
    from torch import Tensor, nn

ONNX_FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Raise DtlError where a package that ONNX needs is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise DtlError.of(
            "--format", f"onnx needs {', '.join(missing)}", "run `pip install 'dtl[onnx]'`"
        )


class _LogitsModule(torch.nn.Module):
    """A model with positional tensors as its input and logits as its output.

    `settings`: further keyword arguments of the model, which are not tensors.
    """

    def __init__(self, model: nn.Module, names: list[str], settings: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.settings = model, names, settings

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the logits of the tensors, which are in the order of `names`."""
        inputs = dict(zip(self.names, tensors, strict=True))
        return get_logits(self.model(**inputs, **self.settings))


def write_onnx(model: nn.Module, inputs: list[ForwardInputs], folder: Path) -> None:
    """Write model.onnx and the model's config. Raises RunFailed where torch cannot trace it."""
    folder.mkdir()
    largest = max(inputs, key=lambda arguments: sum(map(_numel, arguments.values())))
    tensors = {name: value for name, value in largest.items() if isinstance(value, torch.Tensor)}
    settings = {name: value for name, value in largest.items() if name not in tensors}
    # Two rows: torch.export makes an axis of size 1 a constant.
    doubled = {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}
    axes = tuple(_dynamic_axes([arguments[name] for arguments in inputs]) for name in doubled)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _LogitsModule(model, list(doubled), settings),
                tuple(doubled.values()),
                folder / ONNX_FILE,
                input_names=list(doubled),
                output_names=["logits"],
                dynamic_shapes={"tensors": axes},
                dynamo=True,
                verbose=False,
            )
    except Exception as fault:  # of many types: torch's own and those of the model's code
        reason = shorten_message(fault.__cause__ or fault)
        raise RunFailed.of(
            "--format",
            f"torch cannot write a {type(model).__name__} as an ONNX graph ({reason})",
            "use --format safetensors",
        ) from fault
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]


def _dynamic_axes(tensors: list[Tensor]) -> dict[int, Any]:
    """Return the axes that may have any size: rows, the length of a matrix, and those that vary."""
    first = tensors[0]
    varying = {
        axis for axis in range(first.dim()) if len({tensor.shape[axis] for tensor in tensors}) > 1
    }
    lengths = {1} if first.dim() == 2 else set()
    return {axis: torch.export.Dim.DYNAMIC for axis in sorted({0} | lengths | varying)}


def _numel(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 0
