"""Choose the micro-batch, and count the accumulation steps that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from dtl.data.batching import Batching
from dtl.data.micro_batches import (
    accumulation_steps,
    count_padding,
    largest_padded_size,
    split_into_micro_batches,
)
from dtl.data.packing import split_packed
from dtl.data.padding import pad_lengths
from dtl.models.padding_dependence import EXAMPLE_ALONE
from dtl.models.router_outputs import find_router_losses
from dtl.plan.activation_memory import ActivationBudget
from dtl.plan.packing import choose_packing, examples_of_positions, packed_positions
from dtl.plan.records import DecisionLog
from dtl.plan.request import PlanRequest

MAX_MICRO_BATCH_CPU = 8
MAX_MICRO_BATCH_GPU = 64
SAMPLED_BATCHES = 200  # from which padding and accumulation are measured
# Positions that take a CPU as long as what a forward and backward pass costs besides its positions.
# An estimate, which has not been measured.
PASS_POSITIONS = 64
REPORTED_PADDING = 0.1  # share of the positions above which the plan reports padding


@dataclass(frozen=True)
class MicroBatch:
    """What a forward and backward pass holds.

    `examples`: how many of the longest ones fit. `packed_positions`: the most positions, where
    examples are packed; None: they are padded.
    """

    examples: int
    packed_positions: int | None = None


def choose_micro_batch(
    request: PlanRequest,
    budget: ActivationBudget,
    *,
    data_parallel_size: int,
    checkpointing: bool,
    log: DecisionLog,
) -> MicroBatch:
    """Return what one forward and backward pass holds: as much as fits into the free memory.

    `layout.micro_batch` is used as it is, where a rank has that many examples in a step. Else the
    largest possible number is halved until the activations fit, and then evened out so that the
    micro-batches of a step are of one size. On a CPU, fewer texts of uneven length are taken where
    that is less work, padding included. Packed examples are cut by the sum of their lengths; see
    `choose_packing`. The loss does not depend on any of this.
    """
    share = _examples_per_rank(request.batching, data_parallel_size)
    fitting = _count_fitting(request, budget, share, checkpointing=checkpointing)
    padded = _choose_padded(request, share, fitting, data_parallel_size)
    most = padded.examples if request.config.layout.micro_batch is not None else fitting
    positions = packed_positions(request, most)
    saving = _share_saved(request, padded.examples, positions, data_parallel_size)
    if not choose_packing(request, log, saving=saving):
        log.add("micro-batch", padded.examples, padded.reason)
        return MicroBatch(padded.examples)
    unit = request.parts.task.length_unit
    examples = examples_of_positions(request, positions)
    log.add(
        "micro-batch",
        f"{positions} {unit}",
        f"packed; the longest example has {request.longest_example}",
    )
    return MicroBatch(examples, positions)


def _count_fitting(
    request: PlanRequest, budget: ActivationBudget, share: int, *, checkpointing: bool
) -> int:
    """Return how many of the longest examples fit into the free memory, at least 1."""
    is_cpu = request.hardware.device == "cpu"
    examples = min(share, MAX_MICRO_BATCH_CPU if is_cpu else MAX_MICRO_BATCH_GPU)
    while examples > 1 and not budget.fits(examples, checkpointing=checkpointing):
        examples = ceil(examples / 2)
    return examples


@dataclass(frozen=True)
class _PaddedMicroBatch:
    """The number of examples of a micro-batch that is padded, and the reason for it."""

    examples: int
    reason: str


def _choose_padded(
    request: PlanRequest, share: int, fitting: int, data_parallel_size: int
) -> _PaddedMicroBatch:
    batching, padding = request.batching, request.padding_dependence
    if request.config.layout.micro_batch is not None:
        micro_batch = min(request.config.layout.micro_batch, share)
        warning = f"; warning: the loss depends on it, because {padding}" if padding else ""
        return _PaddedMicroBatch(micro_batch, "layout.micro_batch" + warning * (micro_batch > 1))
    if padding is not None:
        return _PaddedMicroBatch(EXAMPLE_ALONE, f"else the loss would depend on it: {padding}")
    micro_batch = fitting
    if batching.sizes is None:  # every global batch has the same number of examples
        micro_batch = ceil(share / ceil(share / micro_batch))
    if request.hardware.device == "cpu" and _can_reduce_padding(request):
        best = _micro_batch_of_least_work(request, micro_batch, data_parallel_size)
        if best < micro_batch:
            return _PaddedMicroBatch(best, "least work on a CPU, because there is less padding")
    unit = request.parts.task.length_unit
    reason = (
        f"largest number of examples (up to {request.longest_example} {unit} each) "
        "that fits into free memory"
    )
    return _PaddedMicroBatch(micro_batch, reason)


def _share_saved(
    request: PlanRequest, micro_batch: int, positions: int, data_parallel_size: int
) -> float:
    """Return the share of the work on padded micro-batches of so many examples that is saved where
    examples are packed, with so many positions at most."""
    if not request.parts.task.packs_examples:
        return 0.0
    lengths = request.lengths
    totals = [
        int(lengths[batch].sum()) for batch in request.batching.form_epoch(0)[:SAMPLED_BATCHES]
    ]
    passes = sum(ceil(total / (data_parallel_size * positions)) for total in totals)
    packed = sum(totals) + PASS_POSITIONS * data_parallel_size * passes
    return 1 - packed / _padded_work(request, micro_batch, data_parallel_size)


def _can_reduce_padding(request: PlanRequest) -> bool:
    """Whether texts are padded to the longest of a micro-batch, each of which runs the model once.

    With losses of routers or of the global batch, several micro-batches run it once more.
    """
    task, coefficient = request.parts.task, request.config.train.router_aux_loss_coef
    if task.media_column is not None or task.reads_global_batch:
        return False
    config = request.model_config
    return config is None or find_router_losses(config, coefficient) is None


def _micro_batch_of_least_work(request: PlanRequest, most: int, data_parallel_size: int) -> int:
    """Return the number of examples, at most this many, whose micro-batches take a rank least."""
    lengths = pad_lengths(request.lengths)
    if lengths.min() == lengths.max():
        return most
    candidates = sorted({ceil(most / 2**halvings) for halvings in range(most.bit_length())})
    return min(
        reversed(candidates), key=lambda each: _padded_work(request, each, data_parallel_size)
    )


def _padded_work(request: PlanRequest, micro_batch: int, data_parallel_size: int) -> int:
    """Return the work on the first global batches, in positions, padding included."""
    steps = _sample_steps(request, data_parallel_size, MicroBatch(micro_batch))
    positions, _ = count_padding(steps, pad_lengths(request.lengths))
    return positions + PASS_POSITIONS * data_parallel_size * len(steps)


def _sample_steps(
    request: PlanRequest, data_parallel_size: int, micro_batch: MicroBatch
) -> list[list[np.ndarray]]:
    """Return the micro-batches of the first global batches, of each step one per rank."""
    return [
        step
        for steps in _sample_batches(request, data_parallel_size, micro_batch)
        for step in steps
    ]


def _sample_batches(
    request: PlanRequest, data_parallel_size: int, micro_batch: MicroBatch
) -> list[list[list[np.ndarray]]]:
    """Return the steps of accumulation of each of the first global batches."""
    batching, lengths, positions = request.batching, request.lengths, micro_batch.packed_positions
    batches = batching.form_epoch(0)[:SAMPLED_BATCHES]
    if positions is not None:
        return [
            split_packed(
                batch, lengths, data_parallel_size=data_parallel_size, max_positions=positions
            )
            for batch in batches
        ]
    return [
        split_into_micro_batches(
            batch,
            lengths,
            data_parallel_size=data_parallel_size,
            micro_batch=micro_batch.examples,
            max_padded_size=_largest_padded_size(request, micro_batch),
        )
        for batch in batches
    ]


def _largest_padded_size(request: PlanRequest, micro_batch: MicroBatch) -> int | None:
    """Return the limit of a padded micro-batch where the global batch counts tokens, else None."""
    if request.batching.sizes is None:
        return None
    return largest_padded_size(micro_batch.examples, request.lengths)


def count_accumulation_steps(
    request: PlanRequest, micro_batch: MicroBatch, *, data_parallel_size: int, log: DecisionLog
) -> int:
    """Return the micro-batches that a rank runs in a step, the most of the first batches sampled.

    Adds a decision on padding where it takes more than `REPORTED_PADDING` of the positions.
    """
    batching, positions = request.batching, micro_batch.packed_positions
    unit, size = request.parts.task.length_unit, request.config.train.global_batch
    limit = _largest_padded_size(request, micro_batch)
    steps_of_batches = _sample_batches(request, data_parallel_size, micro_batch)
    if limit is None and positions is None:
        steps = accumulation_steps(
            batching.max_size,
            data_parallel_size=data_parallel_size,
            micro_batch=micro_batch.examples,
        )
        held = f"{data_parallel_size} ranks x {steps} x at most {micro_batch.examples}"
    else:
        steps = max(map(len, steps_of_batches))
        most = f"{limit} {unit}, padded" if positions is None else f"{positions} {unit}, packed"
        held = f"{data_parallel_size} ranks x up to {steps} x at most {most}"
    log.add("accumulation", steps, f"{size} per step = {held}")
    if positions is None:
        _log_padding(request, [step for steps in steps_of_batches for step in steps], log)
    return steps


def _log_padding(
    request: PlanRequest, micro_batches: list[list[np.ndarray]], log: DecisionLog
) -> None:
    """Add a decision on padding where it takes more than `REPORTED_PADDING` of the positions."""
    positions, padded = count_padding(micro_batches, request.lengths)
    if padded <= REPORTED_PADDING * positions:
        return
    is_grouped = request.batching.lengths is not None
    advice = "" if is_grouped else "; train.group_by_length=true reduces it"
    log.add("padding", f"{padded / positions:.0%}", f"of all positions, including padding{advice}")


def _examples_per_rank(batching: Batching, data_parallel_size: int) -> int:
    """Return the most examples of a global batch that a rank gets; all, where it counts tokens."""
    if batching.sizes is None:
        return ceil(batching.max_size / data_parallel_size)
    return batching.examples
