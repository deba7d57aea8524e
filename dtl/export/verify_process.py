"""In a process of its own: open an export, and answer the questions that lie in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from dtl.core.errors import DtlError
from dtl.export.load_export import load_export
from dtl.export.verify import ForwardInputs, compute_logits, load_inputs

if TYPE_CHECKING:
    from torch import Tensor

ONNX_FILE = "model.onnx"


def main(arguments: list[str]) -> int:
    """EXPORT QUESTIONS ANSWERS: folder, and two safetensors files."""
    export, questions, replies = map(Path, arguments)
    try:
        answer = _with_onnxruntime if (export / ONNX_FILE).is_file() else _with_transformers
        found = answer(export)(load_inputs(questions))
    except DtlError as fault:
        print(fault, file=sys.stderr)
        return fault.exit_code
    save_file({str(number): logits for number, logits in enumerate(found)}, replies)
    return 0


def _with_transformers(export: Path) -> Callable[[list[ForwardInputs]], list[Tensor]]:
    model = load_export(export, asks=False).model
    return lambda asked: compute_logits(model, asked)


def _with_onnxruntime(export: Path) -> Callable[[list[ForwardInputs]], list[Tensor]]:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(export / ONNX_FILE, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def answer(asked: list[ForwardInputs]) -> list[Tensor]:
        given = ({name: question[name].numpy() for name in names} for question in asked)
        return [torch.from_numpy(session.run(["logits"], one)[0]) for one in given]

    return answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
