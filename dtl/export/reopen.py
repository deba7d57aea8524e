"""In a process of its own: open an export, and answer the questions that lie in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from dtl.core.errors import DtlError
from dtl.export.opened import open_export
from dtl.export.verify import Question, answers, read_questions

if TYPE_CHECKING:
    from torch import Tensor

ONNX = "model.onnx"


def main(arguments: list[str]) -> int:
    """EXPORT QUESTIONS ANSWERS: folder, and two safetensors files."""
    export, questions, replies = map(Path, arguments)
    try:
        answer = _with_onnxruntime if (export / ONNX).is_file() else _with_transformers
        found = answer(export)(read_questions(questions))
    except DtlError as fault:
        print(fault, file=sys.stderr)
        return fault.exit_code
    save_file({str(number): logits for number, logits in enumerate(found)}, replies)
    return 0


def _with_transformers(export: Path) -> Callable[[list[Question]], list[Tensor]]:
    model = open_export(export, asks=False).model
    return lambda asked: answers(model, asked)


def _with_onnxruntime(export: Path) -> Callable[[list[Question]], list[Tensor]]:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(export / ONNX, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def answer(asked: list[Question]) -> list[Tensor]:
        given = ({name: question[name].numpy() for name in names} for question in asked)
        return [torch.from_numpy(session.run(["logits"], one)[0]) for one in given]

    return answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
