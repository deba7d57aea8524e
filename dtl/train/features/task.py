"""A task on cached features of its frozen base: only the head is run."""

# B batch, T positions

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from dtl.data.cache.feature_cache import DTYPES, CachedFeature, FeatureField
from dtl.models.structure.head_input import OutputLayout, position_indices, replace_output
from dtl.models.structure.wrappers import unwrap

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.metrics.base import EvalRecord
    from dtl.tasks.base import Task

FEATURES = "features"  # key in an example; in a batch, with the name of each field


@dataclass(frozen=True)
class SplitPoint:
    """Where a model is split: the name of its base, the structure of the base's output, and the
    fields of it that the head reads."""

    base: str
    form: OutputLayout
    fields: tuple[FeatureField, ...]


def describe_field(name: str, tensor_B: Tensor, *, positions: str) -> FeatureField:
    """Return how a tensor of the base's output is cached."""
    shape = tuple(tensor_B.shape[1 if positions == "pooled" else 2 :])
    return FeatureField(name, positions, str(tensor_B.dtype).removeprefix("torch."), shape)


def make_feature_task(task: Task, split: SplitPoint) -> Task:
    """Return the task for examples that have `features`; all else is unchanged."""
    return cast("Task", _FeatureTask(task, split))


class _FeatureTask:
    """Wraps a task for training and scoring on cached features."""

    def __init__(self, task: Task, split: SplitPoint) -> None:
        self.task, self.split = task, split

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        """Return an example without the base's input, with its features."""
        return {
            **self.task.transform_without_input(values, processor=processor),
            FEATURES: values[FEATURES],
        }

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        """Return a batch with one tensor for each field of the features."""
        batch = self.task.collate(examples, pad_token_id=pad_token_id)
        mask_BT = batch.get("attention_mask")
        for field in self.split.fields:
            parts = [example[FEATURES][field.name] for example in examples]
            batch[f"{FEATURES}.{field.name}"] = join_field(parts, field, mask_BT)
        return batch

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the sum of the losses, shape ()."""
        with self._replace_base_output(model, batch) as inputs:
            return self.task.loss(model, inputs)

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        """Return what scoring needs of each example."""
        with self._replace_base_output(model, batch) as inputs:
            return self.task.eval_records(model, inputs, processor=processor)

    @contextmanager
    def _replace_base_output(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the batch without its features, which the base returns instead of running."""
        leaves = {field.name: batch[f"{FEATURES}.{field.name}"] for field in self.split.fields}
        inputs = {
            name: tensor for name, tensor in batch.items() if name.partition(".")[0] != FEATURES
        }
        base = unwrap(model).get_submodule(self.split.base)
        with replace_output(base, self.split.form.build_output(leaves)):
            yield inputs


def join_field(parts: list[CachedFeature], field: FeatureField, mask_BT: Tensor | None) -> Tensor:
    """Return a field of several examples as one tensor: (B, *shape), or (B, T, *shape) with zeros
    as padding."""
    size = len(parts)
    if field.positions == "pooled":
        return _to_tensor(np.stack([part.values[0] for part in parts]), field)
    longest = max(part.positions for part in parts)
    padded = np.zeros((size, longest, *field.shape), dtype=DTYPES[field.dtype])
    if field.positions == "all":
        for row, part in enumerate(parts):
            padded[row, : part.positions] = part.values
        return _to_tensor(padded, field)
    tensor_BT = _to_tensor(padded, field)
    positions_B = position_indices(field.positions, tensor_BT, mask_BT)
    assert positions_B is not None, "a field of the last position has a mask"
    padded[np.arange(size), positions_B.numpy()] = np.concatenate([part.values for part in parts])
    return tensor_BT


def split_field(
    tensor_B: Tensor, field: FeatureField, mask_BT: Tensor | None
) -> list[CachedFeature]:
    """Return what is cached of each example of a batch, on the CPU; the inverse of `join_field`."""
    values = _to_array(tensor_B, field)
    if field.positions == "pooled":
        return [CachedFeature(row[None], 1) for row in values]
    length = values.shape[1]
    if field.positions == "all":
        return [CachedFeature(row, length) for row in values]
    positions_B = position_indices(field.positions, tensor_B, mask_BT)
    assert positions_B is not None, "a field of the last position has a mask"
    return [
        CachedFeature(row[position : position + 1], length)
        for row, position in zip(values, positions_B.tolist(), strict=True)
    ]


def _to_tensor(values: np.ndarray, field: FeatureField) -> Tensor:
    return torch.from_numpy(values).view(getattr(torch, field.dtype))


def _to_array(tensor: Tensor, field: FeatureField) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if field.dtype == "bfloat16":
        tensor = tensor.view(torch.int16)
    return tensor.numpy()
