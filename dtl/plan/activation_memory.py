"""Estimate the memory of activations, and choose activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dtl.core.errors import DtlError
from dtl.losses.language_model import positions_at_once
from dtl.plan.memory import BYTES_PER_NUMBER
from dtl.plan.records import DecisionLog
from dtl.plan.request import PlanRequest

BYTES_PER_TOKEN = 34  # per unit of width and per layer, in half precision (arXiv:2205.05198)
BYTES_PER_CHECKPOINTED_TOKEN = 2
LOGIT_BYTES = 8  # a logit and its gradient in fp32, next to the logit in the dtype
KEY = "logits"


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model on which its activations depend; those that its config does not name
    are 0. `computes_all_logits`: of all positions together."""

    hidden_size: int
    layers: int
    vocabulary_size: int
    computes_all_logits: bool = True

    @classmethod
    def from_config(cls, model_config: Any, *, computes_all_logits: bool) -> ModelSizes:
        """Read the sizes from a config of transformers."""

        def size(name: str) -> int:
            value = getattr(model_config, name, None)
            return value if isinstance(value, int) else 0

        return cls(
            size("hidden_size"), size("num_hidden_layers"), size("vocab_size"), computes_all_logits
        )

    def count_logits(self, tokens: int) -> int:
        """Return the logits that are in memory together, of so many tokens."""
        if self.computes_all_logits or not self.vocabulary_size:
            return tokens * self.vocabulary_size
        return min(tokens, positions_at_once(self.vocabulary_size)) * self.vocabulary_size


@dataclass(frozen=True)
class ActivationBudget:
    """The device memory that is left for activations, and what an example takes of it.

    `free_bytes`: of one device. `example_length`: of the longest example, in tokens. `traced`: the
    bytes of so many examples, with or without checkpointing, from a trace; None: by a formula.
    """

    free_bytes: int
    example_length: int
    sizes: ModelSizes
    dtype: str
    traced: Callable[[int, bool], int | None] | None = None

    def estimate_bytes(self, examples: int, *, checkpointing: bool) -> int:
        """Return the bytes that forward and backward pass of so many examples take."""
        found = None if self.traced is None else self.traced(examples, checkpointing)
        return (
            found
            if found is not None
            else self.estimate_by_formula(examples, checkpointing=checkpointing)
        )

    def estimate_by_formula(self, examples: int, *, checkpointing: bool) -> int:
        """Return the bytes of the activations of every layer, and of the logits that are in memory
        together, with their gradient in fp32."""
        width, sizes = BYTES_PER_NUMBER[self.dtype], self.sizes
        tokens = examples * self.example_length
        per_token = BYTES_PER_CHECKPOINTED_TOKEN if checkpointing else BYTES_PER_TOKEN
        layers = tokens * sizes.hidden_size * sizes.layers * per_token * width // 2
        return int(layers + sizes.count_logits(tokens) * (LOGIT_BYTES + width))

    def fits(self, examples: int, *, checkpointing: bool) -> bool:
        """Whether the activations of so many examples fit into the free memory."""
        return self.estimate_bytes(examples, checkpointing=checkpointing) <= self.free_bytes


def log_logits(
    request: PlanRequest, sizes: ModelSizes, reason: str | None, log: DecisionLog
) -> None:
    """Add a decision on the logits of a language model. `reason`: why all are computed."""
    if not request.parts.task.predicts_tokens:
        return
    if reason is not None:
        log.add(KEY, "all", reason)
        return
    positions = positions_at_once(sizes.vocabulary_size or 1)
    log.add(KEY, "learned", f"of tokens that count in the loss, {positions} at a time")


def choose_activation_checkpointing(
    request: PlanRequest, budget: ActivationBudget, log: DecisionLog
) -> bool:
    """Return `layout.activation_checkpointing`, else whether one example does not fit without it.

    Raises DtlError where it is requested and a strategy does not support it.
    """
    name = "activation checkpointing"
    requested = request.config.layout.activation_checkpointing
    unsupported = strategy_without_checkpointing(request)
    if requested and unsupported is not None:
        raise DtlError.of(
            "layout.activation_checkpointing",
            f"strategy {unsupported} does not support activation checkpointing",
            "remove it and set a smaller layout.micro_batch, or use strategy lora",
        )
    if unsupported is not None:
        log.add(name, "off", f"strategy {unsupported} does not support it")
        return False
    if requested is not None:
        log.add(name, "on" if requested else "off", "layout.activation_checkpointing")
        return requested
    if budget.fits(1, checkpointing=False):
        log.add(name, "off", "the activations of one example fit without it")
        return False
    log.add(name, "on", "the activations of one example do not fit without it")
    return True


def strategy_without_checkpointing(request: PlanRequest) -> str | None:
    """Return the first strategy of the run that does not support activation checkpointing."""
    strategies = zip(request.parts.strategies, request.config.phases, strict=True)
    names = (
        phase.name for strategy, phase in strategies if not strategy.supports_gradient_checkpointing
    )
    return next(names, None)
