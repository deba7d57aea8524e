"""What a base makes of rows, as one vector each."""

# N rows, B batch, T positions, W width

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.data.example import Skip
from dtl.data.sources.rows import Row
from dtl.models.head_input import find_base_name, flatten_output, record_outputs
from dtl.models.load import load_pretrained
from dtl.models.pretrained_config import HeadConfig
from dtl.models.processor import get_pad_token_id
from dtl.prepare.prepared_data import PreparedData, prepare_data

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.tasks.base import Task


ROWS_AT_ONCE = 256  # that are held, and sorted by their size


@torch.no_grad()
def pooled(config: RunConfig, rows: Iterable[Row]) -> np.ndarray:
    """The unadapted base's vector of each row (N, W), float32: the mean of what it makes of the
    real tokens, frames or patches; of a convolutional network, what it has pooled itself. A row of
    which nothing can be read is NaN.

    `rows` are as the task reads them, such as those of `PreparedData.rows`. Raises DtlError for a base
    that cannot be told from its head.
    """
    parts = assemble(config)
    examples = prepare_data(config, parts)
    task, processor = parts.task, examples.processor
    model = _opened(config, task, examples)
    padding, size = get_pad_token_id(processor) or 0, config.train.evaluation_batch
    encode = task.encoder(processor, examples.dataset_stats, examples.model_config)
    found: dict[int, np.ndarray] = {}
    read, left = 0, iter(rows)
    while together := [encode(row) for row in islice(left, ROWS_AT_ONCE)]:
        batches: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
        for number, one in enumerate(together, start=read):
            if not isinstance(one, Skip):
                shown = task.transform(dict(one.values), processor=processor, rng=None)
                alone = task.collate([shown], pad_token_id=padding)
                shapes = tuple((name, tensor.shape) for name, tensor in alone.items())
                batches.setdefault(shapes, []).append((number, shown))
        for of_one_shape in batches.values():  # nothing is padded beside a longer one
            for start in range(0, len(of_one_shape), size):
                numbers, shown_rows = zip(*of_one_shape[start : start + size], strict=True)
                batch = task.collate(list(shown_rows), pad_token_id=padding)
                found |= dict(zip(numbers, _vectors(model, task, batch), strict=True))
        read += len(together)
    width = len(next(iter(found.values()))) if found else 0
    nothing = np.full(width, np.nan, dtype=np.float32)
    return np.array([found.get(number, nothing) for number in range(read)], dtype=np.float32)


def _opened(config: RunConfig, task: Task, examples: PreparedData) -> nn.Module:
    """The unadapted model of a config, in evaluation mode."""
    model = load_pretrained(
        config.model,
        head=HeadConfig(task.auto_class, task.head_config(examples.dataset_stats)),
        random_init=False,
        seed=config.train.seed,
        dtype="fp32",
    ).model
    if find_base_name(model) is None:
        raise DtlError.of(
            "model.path",
            f"{type(model).__name__} keeps its base in several modules",
            "take a model of one encoder or one decoder",
        )
    if (padding := get_pad_token_id(examples.processor)) is not None:
        model.config.pad_token_id = padding  # type: ignore[union-attr]
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _vectors(model: nn.Module, task: Task, batch: dict[str, Tensor]) -> list[np.ndarray]:
    """One of each example of a batch."""
    device = next(model.parameters()).device
    base = find_base_name(model)
    assert base is not None, "the model was looked at when it was opened"
    with record_outputs(model.get_submodule(base)) as seen:
        task.loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
    leaves = flatten_output(seen[0])
    states_BTW = leaves.get("last_hidden_state")
    if states_BTW is None or states_BTW.ndim != 3:
        return list(leaves["pooler_output"].flatten(1).float().cpu().numpy())
    mask_BT = batch.get("attention_mask")
    if mask_BT is None or mask_BT.shape != states_BTW.shape[:2]:
        return list(states_BTW.mean(1).float().cpu().numpy())
    real_BT1 = mask_BT.to(device)[..., None] > 0
    means_BW = (states_BTW * real_BT1).sum(1) / real_BT1.sum(1)
    return list(means_BW.float().cpu().numpy())
