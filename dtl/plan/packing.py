"""Decide whether the examples of a micro-batch are packed, and how many positions it then has."""

from __future__ import annotations

from math import ceil

from dtl.config.schema.model import KERNEL_OWNER
from dtl.core.errors import DtlError
from dtl.models.attention import FLASH_PREFIX
from dtl.models.packing_support import find_packing_obstacle, is_known_to_isolate
from dtl.plan.records import DecisionLog
from dtl.plan.request import PlanRequest

KEY = "packing"
LOCATION = "train.packing"
REMOVE = "remove it, or set it to false: the loss is the same without it"
SMALLEST_SAVING = 0.05  # of the work, from which packing is planned
# Positions of a packed micro-batch on a CPU, where more would only take more memory. An estimate.
MAX_POSITIONS_CPU = 2048
ISOLATING_ATTENTION = ("sdpa", "flex_attention", FLASH_PREFIX, KERNEL_OWNER)


def choose_packing(request: PlanRequest, log: DecisionLog, *, saving: float) -> bool:
    """Return `train.packing`, else whether the model isolates packed examples and it pays.

    `saving`: the share of the work of a step that it saves. Raises DtlError where packing is
    requested and cannot be done. Whether the model does isolate them is checked at the start.
    """
    requested, task = request.config.train.packing, request.parts.task
    if requested is None and task.media_column is not None:
        return False
    if requested is False:
        log.add(KEY, "off", LOCATION)
        return False
    obstacle = _find_obstacle(request)
    if requested and obstacle is not None:
        raise DtlError.of(LOCATION, f"examples cannot be packed: {obstacle}", REMOVE)
    if requested:
        log.add(KEY, "on", LOCATION)
        return True
    reason = obstacle or _find_doubt(request)
    if reason is None and saving < SMALLEST_SAVING:
        reason = "the examples have little padding"
    if reason is not None:
        log.add(KEY, "off", reason)
        return False
    log.add(KEY, "on", f"it saves {saving:.0%} of the work, and the loss is the same")
    return True


def _find_obstacle(request: PlanRequest) -> str | None:
    """Return why examples cannot be packed; None where they can, as far as it is known."""
    config = request.config
    if not request.parts.task.packs_examples:
        return f"task {config.task.name} computes its loss on padded examples only"
    if config.data.train.streaming:
        return "the length of a row is unknown while data.train is streamed"
    for phase, strategy in zip(config.phases, request.parts.strategies, strict=True):
        if strategy.num_virtual_tokens:
            return f"strategy {phase.name} puts virtual tokens before each text"
        if strategy.cache_features is not False:
            return f"strategy {phase.name} may cache the features of each example"
    return find_packing_obstacle(request.model_config)


def _find_doubt(request: PlanRequest) -> str | None:
    """Return why packing is on only where it is requested; None where it may be planned."""
    config, attention = request.model_config, request.config.model.attention
    if not is_known_to_isolate(config):
        return (
            f"{config.model_type} is not among the architectures for which isolation is tested; "
            "train.packing=true checks it at the start"
        )
    if request.hardware.device == "cuda" and attention in (None, "sdpa"):
        return "sdpa on a GPU runs a kernel for each example, and what that costs is not measured"
    if attention is not None and not attention.startswith(ISOLATING_ATTENTION):
        return f"{attention} attention computes the scores of all pairs of packed tokens"
    return None


def packed_positions(request: PlanRequest, micro_batch: int) -> int:
    """Return the most positions of a packed micro-batch: those of `micro_batch` of the longest
    examples; on a CPU fewer, unless `layout.micro_batch` sets the number."""
    longest = request.longest_example
    if request.config.layout.micro_batch is None and request.hardware.device == "cpu":
        return max(longest, min(micro_batch * longest, MAX_POSITIONS_CPU))
    return micro_batch * longest


def examples_of_positions(request: PlanRequest, positions: int) -> int:
    """Return how many of the longest examples have at least so many positions."""
    return ceil(positions / request.longest_example)
