"""The proof of an export: in a fresh process it answers as the trained model does."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dtl.core.errors import RunFailed
from dtl.export.trained_model import TrainedModel
from dtl.models.processor import get_pad_token_id

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.tasks.base import Task

SAMPLE_ROWS = 16
ForwardInputs = dict[str, Any]  # what a model's forward is called with


class _ForwardCalled(Exception):
    """The forward has been called."""


def build_sample_inputs(trained: TrainedModel) -> tuple[list[ForwardInputs], str]:
    """What the model is asked about a few held-out rows, each alone, and which rows these are;
    where nothing is held out, training rows."""
    examples, task = trained.examples, trained.parts.task
    held_out = examples.held_out is not None
    data = examples.held_out if examples.held_out is not None else examples.train
    padding = get_pad_token_id(examples.processor)
    collate = partial(task.collate, pad_token_id=0 if padding is None else padding)
    chosen = data.sample(SAMPLE_ROWS)
    shown = (task.transform(values, processor=examples.processor, rng=None) for values in chosen)
    asked = [_capture_forward_inputs(task, trained.model, collate([one])) for one in shown]
    return asked, f"{len(chosen)} {'held-out' if held_out else 'training'} rows"


def _capture_forward_inputs(
    task: Task, model: nn.Module, batch: dict[str, Tensor]
) -> ForwardInputs:
    """How the task calls the model, which it does in its own way; the first time in its loss."""
    seen: ForwardInputs = {}

    def look(module: nn.Module, given: tuple[Any, ...], named: ForwardInputs) -> None:
        seen.update({name: value for name, value in named.items() if value is not None})
        raise _ForwardCalled

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            task.loss(model, batch)
    except _ForwardCalled:
        pass
    finally:
        hook.remove()
    if "labels" in seen and hasattr(model, "prepare_decoder_input_ids_from_labels"):
        labels = seen.pop("labels")
        seen["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore[operator]
    return seen


@torch.no_grad()
def compute_logits(model: nn.Module, asked: list[ForwardInputs]) -> list[Tensor]:
    """The logits of each question, in fp32."""
    return [model(**question).logits.float().contiguous() for question in asked]


def compute_logits_in_fresh_process(
    export: Path, asked: list[ForwardInputs], folder: Path
) -> list[Tensor]:
    """Those of an export, which another process opens. `folder`: for the files between the two.
    Raises RunFailed."""
    questions, replies = folder / "questions.safetensors", folder / "answers.safetensors"
    save_inputs(asked, questions)
    argv = [
        sys.executable,
        "-m",
        "dtl.export.verify_process",
        *map(str, (export, questions, replies)),
    ]
    ended = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode != 0:
        said = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise RunFailed.of(
            str(export), f"what was written cannot be opened ({said[-1][:300]})", "nothing is kept"
        )
    found = load_file(replies)
    return [found[str(number)] for number in range(len(asked))]


def save_inputs(asked: list[ForwardInputs], file: Path) -> None:
    """Tensors by number and name; what is no tensor goes into the notes of the file."""
    tensors, plain = {}, {}
    for number, question in enumerate(asked):
        for name, value in question.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}/{name}"] = value.contiguous()
            else:
                plain[f"{number}/{name}"] = value
    save_file(tensors, file, metadata={"plain": json.dumps(plain)})


def load_inputs(file: Path) -> list[ForwardInputs]:
    """The same questions again."""
    with safe_open(file, framework="pt") as opened:
        values: dict[str, Any] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        values |= json.loads(opened.metadata()["plain"])
    asked: dict[int, ForwardInputs] = {}
    for place, value in values.items():
        number, _, name = place.partition("/")
        asked.setdefault(int(number), {})[name] = value
    return [asked[number] for number in sorted(asked)]
