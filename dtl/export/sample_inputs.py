"""The inputs with which a trained model and its export are compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dtl.export.trained_model import TrainedModel
from dtl.models.processor import get_pad_token_id

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.tasks.base import Task

SAMPLE_ROWS = 16
ForwardInputs = dict[str, Any]  # keyword arguments of a model's forward
METADATA_KEY = "plain"  # in the metadata of the file: the arguments that are not tensors


@dataclass(frozen=True)
class SampleInputs:
    """Inputs of a model, one a row. `description`: which rows these are."""

    inputs: list[ForwardInputs]
    description: str


def build_sample_inputs(trained: TrainedModel) -> SampleInputs:
    """Return the inputs of some held-out rows; of training rows where nothing is held out."""
    data, task = trained.data, trained.parts.task
    is_held_out = data.held_out is not None
    examples = data.held_out if data.held_out is not None else data.train
    pad_token_id = get_pad_token_id(data.processor)
    collate = partial(task.collate, pad_token_id=0 if pad_token_id is None else pad_token_id)
    sample = examples.sample(SAMPLE_ROWS)
    transformed = (task.transform(values, processor=data.processor, rng=None) for values in sample)
    inputs = [
        _capture_forward_inputs(task, trained.model, collate([values])) for values in transformed
    ]
    return SampleInputs(inputs, f"{len(sample)} {'held-out' if is_held_out else 'training'} rows")


class _ForwardCalled(Exception):
    """The forward of the model was called."""


def _capture_forward_inputs(
    task: Task, model: nn.Module, batch: dict[str, Tensor]
) -> ForwardInputs:
    """Return the arguments of the first call of the model in the task's loss."""
    captured: ForwardInputs = {}

    def capture(module: nn.Module, args: tuple[Any, ...], kwargs: ForwardInputs) -> None:
        captured.update({name: value for name, value in kwargs.items() if value is not None})
        raise _ForwardCalled

    hook = model.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        with torch.no_grad():
            task.loss(model, batch)
    except _ForwardCalled:
        pass
    finally:
        hook.remove()
    if "input_ids" in captured and "attention_mask" in batch:  # which no causal loss needs
        captured.setdefault(
            "attention_mask", batch["attention_mask"].view_as(captured["input_ids"])
        )
    if "labels" in captured and hasattr(model, "prepare_decoder_input_ids_from_labels"):
        labels = captured.pop("labels")
        captured["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore[operator]
    return captured


def save_inputs(inputs: list[ForwardInputs], file: Path) -> None:
    """Write inputs to a safetensors file; what is not a tensor goes into its metadata."""
    tensors, plain = {}, {}
    for index, arguments in enumerate(inputs):
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{name}"] = value.contiguous()
            else:
                plain[f"{index}/{name}"] = value
    save_file(tensors, file, metadata={METADATA_KEY: json.dumps(plain)})


def load_inputs(file: Path) -> list[ForwardInputs]:
    """Return the inputs in a file that save_inputs has written."""
    with safe_open(file, framework="pt") as opened:
        values: dict[str, Any] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        values |= json.loads(opened.metadata()[METADATA_KEY])
    inputs: dict[int, ForwardInputs] = {}
    for key, value in values.items():
        index, _, name = key.partition("/")
        inputs.setdefault(int(index), {})[name] = value
    return [inputs[index] for index in sorted(inputs)]
