"""The process that loads an export and computes its logits (started by sample_logits.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from dtl.core.errors import DtlError
from dtl.export.load_export import load_export
from dtl.export.onnx import ONNX_FILE
from dtl.export.sample_inputs import ForwardInputs, load_inputs
from dtl.export.sample_logits import compute_logits

if TYPE_CHECKING:
    from torch import Tensor

ComputeLogits = Callable[[list[ForwardInputs]], list["Tensor"]]


def main(arguments: list[str]) -> int:
    """Run with EXPORT INPUTS LOGITS: a folder and two safetensors files. Return the exit code."""
    export, inputs_file, logits_file = map(Path, arguments)
    try:
        load = _load_onnx if (export / ONNX_FILE).is_file() else _load_transformers
        logits = load(export)(load_inputs(inputs_file))
    except DtlError as fault:
        print(fault, file=sys.stderr)
        return fault.exit_code
    save_file({str(index): tensor for index, tensor in enumerate(logits)}, logits_file)
    return 0


def _load_transformers(export: Path) -> ComputeLogits:
    model = load_export(export, for_task=False).model
    return lambda inputs: compute_logits(model, inputs)


def _load_onnx(export: Path) -> ComputeLogits:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(export / ONNX_FILE, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def compute(inputs: list[ForwardInputs]) -> list[Tensor]:
        feeds = ({name: arguments[name].numpy() for name in names} for arguments in inputs)
        return [torch.from_numpy(session.run(["logits"], feed)[0]) for feed in feeds]

    return compute


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
