"""Plan the batches of evaluations, by the memory that a forward pass without gradients takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.data.micro_batches import examples_of_longest, largest_padded_size
from dtl.losses.cross_entropy import CHUNK_POSITIONS
from dtl.models.padding_dependence import EXAMPLE_ALONE
from dtl.plan.activation_memory import BYTES_PER_TOKEN, ModelSizes
from dtl.plan.memory import BYTES_PER_NUMBER, FP32_BYTES
from dtl.plan.records import DecisionLog
from dtl.plan.request import PlanRequest

MAX_EXAMPLES_CPU = 16
MAX_EXAMPLES_GPU = 64
KEY = "evaluation batch"
LOCATION = "train.evaluation_batch"
LOSS_COPIES = 2  # of a chunk of logits: in fp32, and as log-probabilities


@dataclass(frozen=True)
class EvaluationMemory:
    """What a forward pass without gradients takes. `dtype`: of the activations. `beams`: of the
    texts that an evaluation generates; 0: none. `traced`: the bytes of so many tokens, from a
    trace; None: by a formula."""

    sizes: ModelSizes
    dtype: str
    beams: int
    traced: Callable[[int], int | None] | None = None

    def estimate_bytes(self, tokens: int) -> int:
        """Return the bytes for so many tokens, padding included.

        By the formula, they are the activations of one layer, the hidden states before and after
        it, the logits that are in memory together, and a chunk of them in fp32. Where texts are
        generated: the keys and values of all layers.
        """
        width, sizes = BYTES_PER_NUMBER[self.dtype], self.sizes
        cache = 2 * tokens * sizes.hidden_size * sizes.layers * width * self.beams
        if self.traced is not None and (found := self.traced(tokens)) is not None:
            return max(found, cache)
        layer = tokens * sizes.hidden_size * (BYTES_PER_TOKEN // 2 + 2) * width
        logits = sizes.count_logits(tokens) * width
        positions = min(tokens, CHUNK_POSITIONS) * sizes.vocabulary_size
        at_once = positions if sizes.computes_all_logits else sizes.count_logits(tokens)
        chunk = at_once * FP32_BYTES * LOSS_COPIES
        return layer + max(logits + chunk, cache)


def choose_evaluation_batch(
    request: PlanRequest, memory: EvaluationMemory, *, free_bytes: int, log: DecisionLog
) -> EvaluationBatchSize:
    """Return `train.evaluation_batch`, else as many positions as fit into the free memory.

    The largest possible number of the longest examples is halved until it fits. A batch of shorter
    ones then has as many positions, and at most the largest possible number of examples.
    """
    lengths = request.held_out_lengths
    requested = request.config.train.evaluation_batch
    is_cpu = request.hardware.device == "cpu"
    most = MAX_EXAMPLES_CPU if is_cpu else MAX_EXAMPLES_GPU
    if lengths is None or len(lengths) == 0:
        return EvaluationBatchSize(requested or most)
    if requested is not None:
        needed = memory.estimate_bytes(largest_padded_size(requested, lengths))
        warning = "; warning: it may not fit into memory" if needed > free_bytes else ""
        log.add(KEY, requested, LOCATION + warning)
        return EvaluationBatchSize(requested)
    if (padding := request.padding_dependence) is not None:
        log.add(KEY, EXAMPLE_ALONE, f"else the scores would depend on it: {padding}")
        return EvaluationBatchSize(EXAMPLE_ALONE)
    examples = most
    while (
        examples > 1 and memory.estimate_bytes(largest_padded_size(examples, lengths)) > free_bytes
    ):
        examples = ceil(examples / 2)
    unit = request.parts.task.length_unit
    if examples == most:
        log.add(KEY, examples, f"of up to {int(lengths.max())} {unit} each fit into free memory")
        return EvaluationBatchSize(examples)
    log.add(
        KEY,
        examples,
        f"of {int(lengths.max())} {unit} fit into free memory; of shorter ones up to {most}",
    )
    return EvaluationBatchSize(most, padded_size=largest_padded_size(examples, lengths))


def estimate_evaluation_bytes(
    request: PlanRequest, memory: EvaluationMemory, batch: EvaluationBatchSize
) -> int:
    """Return the bytes of the largest batch of an evaluation; 0 where nothing is evaluated."""
    lengths = request.held_out_lengths
    if lengths is None or len(lengths) == 0:
        return 0
    examples = min(examples_of_longest(batch, lengths), len(lengths))
    return memory.estimate_bytes(largest_padded_size(examples, lengths))
