"""Compute logits of sample inputs: by the trained model, or by an export in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from dtl.core.errors import RunFailed, shorten_message
from dtl.export.sample_inputs import ForwardInputs, save_inputs

if TYPE_CHECKING:
    from torch import Tensor, nn


@torch.no_grad()
def compute_logits(model: nn.Module, inputs: list[ForwardInputs]) -> list[Tensor]:
    """Return the logits of each input, in fp32."""
    return [get_logits(model(**arguments)).float().contiguous() for arguments in inputs]


def get_logits(output: Any) -> Tensor:
    """Return the logits of a model's output; of a model without a head its last hidden states."""
    logits: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return logits


def compute_logits_in_fresh_process(
    export: Path, inputs: list[ForwardInputs], work_folder: Path
) -> list[Tensor]:
    """Return the logits of an export, which another process loads.

    `work_folder`: for the files that the two processes exchange. Raises RunFailed where the export
    cannot be loaded.
    """
    inputs_file, logits_file = (
        work_folder / name for name in ("inputs.safetensors", "logits.safetensors")
    )
    save_inputs(inputs, inputs_file)
    argv = [sys.executable, "-m", "dtl.export.sample_logits_process"]
    argv += map(str, (export, inputs_file, logits_file))
    completed = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    if completed.returncode != 0:
        lines = completed.stderr.strip().splitlines() or [f"exit code {completed.returncode}"]
        raise RunFailed.of(
            str(export),
            f"the written export cannot be loaded ({shorten_message(lines[-1])})",
            "choose another format; the failed export was deleted",
        )
    logits = load_file(logits_file)
    return [logits[str(index)] for index in range(len(inputs))]
