"""The features of the unadapted base, pooled to one vector for each row."""

# N rows, B batch, T positions, W width

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row
from dtl.models.load import load_pretrained
from dtl.models.pretrained_config import HeadConfig
from dtl.models.processor import get_pad_token_id, set_pad_token_id
from dtl.models.structure.head_input import find_base_name, flatten_output, record_outputs
from dtl.prepare.prepared_data import PreparedData, prepare_data

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.tasks.base import Task

BATCH_SIZE = 16  # without train.evaluation_batch
CHUNK_ROWS = 256  # rows in memory at once, grouped by their shapes


@torch.no_grad()
def pool_features(config: RunConfig, rows: Iterable[Row]) -> np.ndarray:
    """Return the unadapted base's vector of each row (N, W), float32; NaN for a skipped row.

    It is the mean over the real tokens, frames or patches; of a convolutional network, its own
    pooled output. `rows`: with the columns of the task. Raises DtlError for a model whose base is
    not one module.
    """
    parts = assemble(config)
    data = prepare_data(config, parts)
    encode = parts.task.encoder(data.processor, data.dataset_stats, data.model_config)
    batching = _Batching(
        parts.task,
        data.processor,
        pad_token_id=get_pad_token_id(data.processor) or 0,
        batch_size=config.train.evaluation_batch or BATCH_SIZE,
    )
    model = _load_base(config, parts.task, data)
    vectors: dict[int, np.ndarray] = {}
    count, remaining = 0, iter(rows)
    while chunk := [encode(row) for row in islice(remaining, CHUNK_ROWS)]:
        encoded = {n: one for n, one in enumerate(chunk, start=count) if not isinstance(one, Skip)}
        for ids, batch in batching.iter_batches(encoded):
            vectors |= dict(zip(ids, _pool(model, parts.task, batch), strict=True))
        count += len(chunk)
    width = len(next(iter(vectors.values()))) if vectors else 0
    missing = np.full(width, np.nan, dtype=np.float32)
    return np.array([vectors.get(number, missing) for number in range(count)], dtype=np.float32)


@dataclass(frozen=True)
class _Batching:
    """Batches of examples of one shape, so that none is padded further by another."""

    task: Task
    processor: Any
    pad_token_id: int
    batch_size: int

    def iter_batches(
        self, encoded: dict[int, EncodedExample]
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Iterate over batches, each with the numbers of its examples."""
        by_shapes: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
        for number, example in encoded.items():
            values = self.task.transform(dict(example.values), processor=self.processor, rng=None)
            single = self.task.collate([values], pad_token_id=self.pad_token_id)
            shapes = tuple((name, tensor.shape) for name, tensor in single.items())
            by_shapes.setdefault(shapes, []).append((number, values))
        for group in by_shapes.values():
            for start in range(0, len(group), self.batch_size):
                numbers, examples = zip(*group[start : start + self.batch_size], strict=True)
                batch = self.task.collate(list(examples), pad_token_id=self.pad_token_id)
                yield list(numbers), batch


def _load_base(config: RunConfig, task: Task, data: PreparedData) -> nn.Module:
    """Load the unadapted model of a config, in evaluation mode."""
    model = load_pretrained(
        config.model,
        head=HeadConfig(task.auto_class, task.head_config(data.dataset_stats)),
        random_init=False,
        seed=config.train.seed,
        dtype="fp32",
    ).model
    if find_base_name(model) is None:
        raise DtlError.of(
            "model.path",
            f"the base of {type(model).__name__} consists of several modules",
            "use a model of one encoder or one decoder",
        )
    if (pad_token_id := get_pad_token_id(data.processor)) is not None:
        set_pad_token_id(model.config, pad_token_id)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _pool(model: nn.Module, task: Task, batch: dict[str, Tensor]) -> list[np.ndarray]:
    """Return the vector (W,) of each example of a batch, float32."""
    device = next(model.parameters()).device
    base = find_base_name(model)
    assert base is not None, "checked by _load_base"
    with record_outputs(model.get_submodule(base)) as outputs:
        task.loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
    leaves = flatten_output(outputs[0])
    states_BTW = leaves.get("last_hidden_state")
    if states_BTW is None or states_BTW.ndim != 3:
        return list(leaves["pooler_output"].flatten(1).float().cpu().numpy())
    mask_BT = batch.get("attention_mask")
    if mask_BT is None or mask_BT.shape != states_BTW.shape[:2]:
        return list(states_BTW.mean(1).float().cpu().numpy())
    real_BT1 = mask_BT.to(device)[..., None] > 0
    means_BW = (states_BTW * real_BT1).sum(1) / real_BT1.sum(1)
    return list(means_BW.float().cpu().numpy())
