"""A task learnt from what its frozen base was seen to make of each example: the head runs alone."""

# B batch, T positions

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from dtl.data.cache.features import DTYPES, Field, Part
from dtl.models.anatomy import unwrapped
from dtl.models.head_input import Form, giving, places

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.tasks.base import EvalRecord, Task

FEATURES = "features"  # of an example; in a batch with the name of each field


@dataclass(frozen=True)
class SplitPoint:
    """Where a model is cut: the name of its base, how that one's output is built, and what of it
    the head reads."""

    base: str
    form: Form
    fields: tuple[Field, ...]


def describe_field(name: str, tensor_B: Tensor, *, positions: str) -> Field:
    """How a tensor of a base's output is kept."""
    shape = tuple(tensor_B.shape[1 if positions == "whole" else 2 :])
    return Field(name, positions, str(tensor_B.dtype).removeprefix("torch."), shape)


def make_feature_task(task: Task, cut: SplitPoint) -> Task:
    """The task for examples that have `features` beside them; all else is as the task has it."""
    return cast("Task", _FeatureTask(task, cut))


class _FeatureTask:
    """Stands for a task wherever a model is trained or scored."""

    def __init__(self, task: Task, cut: SplitPoint) -> None:
        self.task, self.cut = task, cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def transform(
        self, values: dict[str, Any], *, processor: Any, draw: Generator | None
    ) -> dict[str, Any]:
        return {
            **self.task.transform_without_input(values, processor=processor),
            FEATURES: values[FEATURES],
        }

    def collate(self, examples: list[dict[str, Any]], *, padding: int) -> dict[str, Tensor]:
        batch = self.task.collate(examples, pad_token_id=padding)
        mask_BT = batch.get("attention_mask")
        for field in self.cut.fields:
            parts = [example[FEATURES][field.name] for example in examples]
            batch[f"{FEATURES}.{field.name}"] = join_field(parts, field, mask_BT)
        return batch

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with self._replace_base_output(model, batch) as inputs:
            return self.task.loss(model, inputs)

    def outcomes(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        with self._replace_base_output(model, batch) as inputs:
            return self.task.eval_records(model, inputs, processor=processor)

    @contextmanager
    def _replace_base_output(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> Iterator[dict[str, Tensor]]:
        """The batch without its features, which the base gives instead of looking at it."""
        leaves = {field.name: batch[f"{FEATURES}.{field.name}"] for field in self.cut.fields}
        inputs = {
            name: tensor for name, tensor in batch.items() if name.partition(".")[0] != FEATURES
        }
        base = unwrapped(model).get_submodule(self.cut.base)
        with giving(base, self.cut.form.built(leaves)):
            yield inputs


def join_field(parts: list[Part], field: Field, mask_BT: Tensor | None) -> Tensor:
    """A field of several examples as one tensor, (B, *shape), or (B, T, *shape) with zeros."""
    size = len(parts)
    if field.positions == "whole":
        return _tensor(np.stack([part.values[0] for part in parts]), field)
    longest = max(part.positions for part in parts)
    padded = np.zeros((size, longest, *field.shape), dtype=DTYPES[field.dtype])
    if field.positions == "all":
        for row, part in enumerate(parts):
            padded[row, : part.positions] = part.values
        return _tensor(padded, field)
    tensor_BT = _tensor(padded, field)
    places_B = places(field.positions, tensor_BT, mask_BT)
    assert places_B is not None, "a field that keeps the last position has a mask"
    padded[np.arange(size), places_B.numpy()] = np.concatenate([part.values for part in parts])
    return tensor_BT


def _tensor(values: np.ndarray, field: Field) -> Tensor:
    return torch.from_numpy(values).view(getattr(torch, field.dtype))


def split_field(tensor_B: Tensor, field: Field, mask_BT: Tensor | None) -> list[Part]:
    """What is kept of each example of a batch, on the CPU; the inverse of `together`."""
    values = _array(tensor_B, field)
    if field.positions == "whole":
        return [Part(row[None], 1) for row in values]
    length = values.shape[1]
    if field.positions == "all":
        return [Part(row, length) for row in values]
    places_B = places(field.positions, tensor_B, mask_BT)
    assert places_B is not None, "a field that keeps the last position has a mask"
    return [
        Part(row[place : place + 1], length)
        for row, place in zip(values, places_B.tolist(), strict=True)
    ]


def _array(tensor: Tensor, field: Field) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if field.dtype == "bfloat16":
        tensor = tensor.view(torch.int16)
    return tensor.numpy()
