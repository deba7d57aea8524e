"""What a loss needs of all examples of a global batch, also where several ranks have them."""

# B examples of a micro-batch, N of the global batch

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.data.loader import StepBatches
    from dtl.engine.base import Engine
    from dtl.tasks.base import Task


@torch.no_grad()
def gather_global_values(
    engine: Engine, task: Task, batches: StepBatches, *, start_forward: Callable[[int], None]
) -> list[dict[str, Tensor]]:
    """Return, for each micro-batch of this rank, what the task's loss needs of its examples.

    The values of all ranks are put in the order of the global batch, which no layout changes.
    `start_forward(index)` is called before the forward pass of a micro-batch. Every rank must call.
    """
    slots: dict[str, Tensor] = {}
    is_present_N = torch.zeros(batches.global_examples, dtype=torch.int64, device=engine.device)
    positions = [_positions(batch.ids, batches.global_ids) for batch in batches.batches]
    for index, batch in enumerate(batches.batches):
        start_forward(index)
        with engine.autocast():
            values = task.global_values(engine.model, engine.to_device(batch.tensors))
        for name, value in values.items():
            if name not in slots:
                slots[name] = value.new_zeros((len(is_present_N), *value.shape[1:]))
            if batch.ids:  # else it is the placeholder of an empty micro-batch
                slots[name][positions[index]] = value
        is_present_N[positions[index]] = 1
    for tensor in (is_present_N, *slots.values()):
        engine.all_reduce_tensor(tensor)  # each position is written by one rank, the others have 0
    present = is_present_N.bool()  # rows that are streamed may be skipped
    combined = task.combine_global_values({name: value[present] for name, value in slots.items()})
    ranks_N = (present.cumsum(0) - 1).cpu().numpy()
    return [
        {name: value[ranks_N[own] if len(own) else [0]] for name, value in combined.items()}
        for own in positions
    ]


def _positions(ids: tuple[int, ...], global_ids: np.ndarray) -> np.ndarray:
    """Return the position of each id in the global batch (B,)."""
    order = np.argsort(global_ids)
    return order[np.searchsorted(global_ids, np.asarray(ids, dtype=np.int64), sorter=order)]
