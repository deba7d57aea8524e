"""Choose the micro-batch, and count the accumulation steps that it makes."""

from __future__ import annotations

from math import ceil

import numpy as np

from dtl.data.batching import Batching
from dtl.data.micro_batches import (
    accumulation_steps,
    count_padding,
    largest_padded_size,
    split_into_micro_batches,
)
from dtl.data.padding import pad_lengths
from dtl.models.padding_dependence import EXAMPLE_ALONE
from dtl.models.router_outputs import find_router_losses
from dtl.plan.activation_memory import ActivationBudget
from dtl.plan.records import DecisionLog
from dtl.plan.request import PlanRequest

MAX_MICRO_BATCH_CPU = 8
MAX_MICRO_BATCH_GPU = 64
SAMPLED_BATCHES = 200  # from which padding and accumulation are measured
# Positions that take a CPU as long as what a forward and backward pass costs besides its positions.
# An estimate, which has not been measured.
PASS_POSITIONS = 64
REPORTED_PADDING = 0.1  # share of the positions above which the plan reports padding


def choose_micro_batch(
    request: PlanRequest,
    budget: ActivationBudget,
    *,
    data_parallel_size: int,
    checkpointing: bool,
    log: DecisionLog,
) -> int:
    """Return the examples of one forward and backward pass: as many as fit into the free memory.

    `layout.micro_batch` is used as it is, where a rank has that many examples in a step. Else the
    largest possible number is halved until the activations fit, and then evened out so that the
    micro-batches of a step are of one size. On a CPU, fewer texts of uneven length are taken where
    that is less work, padding included. The loss does not depend on it.
    """
    batching, padding = request.batching, request.padding_dependence
    share = _examples_per_rank(batching, data_parallel_size)
    if request.config.layout.micro_batch is not None:
        micro_batch = min(request.config.layout.micro_batch, share)
        warning = f"; warning: the loss depends on it, because {padding}" if padding else ""
        log.add("micro-batch", micro_batch, "layout.micro_batch" + warning * (micro_batch > 1))
        return micro_batch
    if padding is not None:
        log.add("micro-batch", EXAMPLE_ALONE, f"else the loss would depend on it: {padding}")
        return EXAMPLE_ALONE
    is_cpu = request.hardware.device == "cpu"
    micro_batch = min(share, MAX_MICRO_BATCH_CPU if is_cpu else MAX_MICRO_BATCH_GPU)
    while micro_batch > 1 and not budget.fits(micro_batch, checkpointing=checkpointing):
        micro_batch = ceil(micro_batch / 2)
    if batching.sizes is None:  # every global batch has the same number of examples
        micro_batch = ceil(share / ceil(share / micro_batch))
    if is_cpu and _can_reduce_padding(request):
        best = _micro_batch_of_least_work(request, micro_batch, data_parallel_size)
        if best < micro_batch:
            log.add("micro-batch", best, "least work on a CPU, because there is less padding")
            return best
    unit = request.parts.task.length_unit
    reason = (
        f"largest number of examples (up to {request.longest_example} {unit} each) "
        "that fits into free memory"
    )
    log.add("micro-batch", micro_batch, reason)
    return micro_batch


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

    def work(micro_batch: int) -> int:
        steps = _sample_steps(request, data_parallel_size, micro_batch)
        positions, _ = count_padding(steps, lengths)
        return positions + PASS_POSITIONS * data_parallel_size * len(steps)

    return min(reversed(candidates), key=work)


def _sample_steps(
    request: PlanRequest, data_parallel_size: int, micro_batch: int
) -> list[list[np.ndarray]]:
    """Return the micro-batches of the first global batches, of each step one per rank."""
    return [
        step
        for steps in _sample_batches(request, data_parallel_size, micro_batch)
        for step in steps
    ]


def _sample_batches(
    request: PlanRequest, data_parallel_size: int, micro_batch: int
) -> list[list[list[np.ndarray]]]:
    """Return the steps of accumulation of each of the first global batches."""
    batching, lengths = request.batching, request.lengths
    limit = None if batching.sizes is None else largest_padded_size(micro_batch, lengths)
    return [
        split_into_micro_batches(
            batch,
            lengths,
            data_parallel_size=data_parallel_size,
            micro_batch=micro_batch,
            max_padded_size=limit,
        )
        for batch in batching.form_epoch(0)[:SAMPLED_BATCHES]
    ]


def count_accumulation_steps(
    request: PlanRequest, *, data_parallel_size: int, micro_batch: int, log: DecisionLog
) -> int:
    """Return the micro-batches that a rank runs in a step, the most of the first batches sampled.

    Adds a decision on padding where it takes more than `REPORTED_PADDING` of the positions.
    """
    batching, lengths = request.batching, request.lengths
    unit, size = request.parts.task.length_unit, request.config.train.global_batch
    limit = None if batching.sizes is None else largest_padded_size(micro_batch, lengths)
    steps_of_batches = _sample_batches(request, data_parallel_size, micro_batch)
    if limit is None:
        steps = accumulation_steps(
            batching.max_size, data_parallel_size=data_parallel_size, micro_batch=micro_batch
        )
        held = f"{data_parallel_size} ranks x {steps} x at most {micro_batch}"
    else:
        steps = max(map(len, steps_of_batches))
        held = f"{data_parallel_size} ranks x up to {steps} x at most {limit} {unit}, padded"
    log.add("accumulation", steps, f"{size} per step = {held}")
    positions, padded = count_padding(
        [step for steps in steps_of_batches for step in steps], lengths
    )
    if padded > REPORTED_PADDING * positions:
        is_grouped = batching.lengths is not None
        advice = "" if is_grouped else "; train.group_by_length=true reduces it"
        log.add(
            "padding", f"{padded / positions:.0%}", f"of all positions, including padding{advice}"
        )
    return steps


def _examples_per_rank(batching: Batching, data_parallel_size: int) -> int:
    """Return the most examples of a global batch that a rank gets; all, where it counts tokens."""
    if batching.sizes is None:
        return ceil(batching.max_size / data_parallel_size)
    return batching.examples
