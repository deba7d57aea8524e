"""What each micro-batch gets of the global batch, in the order that no layout changes."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dtl.data.loader import Batch, StepBatches
from dtl.train.global_batch import gather_global_values

GLOBAL_IDS = [40, 7, 19, 3, 25]


class Squares:
    """A task whose examples need their own square and the sum of all values before them."""

    def global_values(self, model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert not torch.is_grad_enabled()
        return {"value": batch["value"][:, None].float(), "id": batch["value"]}

    def combine_global_values(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"square": values["value"][:, 0] ** 2, "before": values["id"].cumsum(0)}


def make_batches(*parts: tuple[int, ...]) -> StepBatches:
    batches = tuple(
        Batch(part, {"value": torch.tensor(part or (99,))}, len(part), float(bool(part)))
        for part in parts
    )
    return StepBatches(1, 0, batches, np.array(GLOBAL_IDS), 5, 5)


def gather(batches: StepBatches, other_rank: StepBatches | None = None) -> list[Any]:
    """Return what is gathered; `other_rank` is added to each sum as its rank would do it."""
    sums: list[torch.Tensor] = []

    def record(tensor: torch.Tensor) -> None:
        sums.append(tensor.clone())

    def add(tensor: torch.Tensor) -> None:
        tensor += sums.pop(0)

    engine: Any = SimpleNamespace(
        device=torch.device("cpu"),
        model=None,
        autocast=nullcontext,
        to_device=lambda tensors: tensors,
        all_reduce_tensor=record,
    )
    started: list[int] = []
    if other_rank is not None:
        gather_global_values(engine, Squares(), other_rank, start_forward=started.append)  # type: ignore[arg-type]
        engine.all_reduce_tensor = add
    else:
        engine.all_reduce_tensor = lambda tensor: None
    found = gather_global_values(engine, Squares(), batches, start_forward=started.append)  # type: ignore[arg-type]
    assert started[-len(batches.batches) :] == list(range(len(batches.batches)))
    return found


def expected(part: tuple[int, ...], ids: list[int]) -> dict[str, list[int]]:
    """Return what the examples of a micro-batch get; an empty one gets that of any example."""
    own = part or (ids[0],)
    return {
        "square": [number**2 for number in own],
        "before": [sum(ids[: ids.index(number) + 1]) for number in own],
    }


@pytest.mark.parametrize("parts", [((40, 7, 19, 3, 25),), ((3, 40), (25,), (7, 19), ())])
def test_each_micro_batch_gets_what_belongs_to_its_examples(parts: Any) -> None:
    found = gather(make_batches(*parts))
    assert [{name: value.tolist() for name, value in one.items()} for one in found] == [
        expected(part, GLOBAL_IDS) for part in parts
    ]


def test_values_of_another_rank_are_added_at_their_positions() -> None:
    parts = ((3, 40), ())
    found = gather(make_batches(*parts), make_batches((25,), (7, 19)))
    assert [{name: value.tolist() for name, value in one.items()} for one in found] == [
        expected(part, GLOBAL_IDS) for part in parts
    ]


def test_skipped_rows_of_a_stream_are_left_out() -> None:
    parts = ((3, 40), (25,))
    found = gather(make_batches(*parts))
    present = [40, 3, 25]
    assert [{name: value.tolist() for name, value in one.items()} for one in found] == [
        expected(part, present) for part in parts
    ]
